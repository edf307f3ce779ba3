"""`fit`: the training loop for every head, resumed runs, accumulation, precision, the learning rate."""

import copy
import math

import pytest
import torch
from transformers_reference import twins

from xlmrxl_min.training.loop import compute_loss, fit, lr_schedule
from xlmrxl_min.training.masking import dynamic_masking

HEADS = {
    "ForMaskedLM": {"labels": lambda: torch.randint(0, 60, (6, 8)).where(torch.rand(6, 8) < 0.4, -100)},
    "ForCausalLM": {"labels": lambda: torch.randint(0, 60, (6, 8)).where(torch.rand(6, 8) < 0.4, -100)},
    "ForTokenClassification": {"labels": lambda: torch.randint(0, 2, (6, 8)).where(torch.rand(6, 8) < 0.7, -100)},
    "ForSequenceClassification": {"labels": lambda: torch.randint(0, 2, (6,))},
    "ForQuestionAnswering": {name: lambda: torch.randint(0, 8, (6,)) for name in ("start_positions", "end_positions")},
    "ForMultipleChoice": {"labels": lambda: torch.randint(0, 2, (6,))},
}


def head(task, **config):
    """A random model with that head, and six texts with labels."""
    decoder = {"is_decoder": True} if task == "ForCausalLM" else {}
    model = twins(task, **decoder, **config)[1]
    shape = (6, 2, 8) if task == "ForMultipleChoice" else (6, 8)
    return model, {"input_ids": torch.randint(3, 60, shape), **{name: draw() for name, draw in HEADS[task].items()}}


def part(batch, rows):
    return {name: value[rows] for name, value in batch.items()}


@pytest.mark.parametrize("task", ["ForMaskedLM", "ForCausalLM"])
def test_logits_at_labelled_positions_only_give_the_same_loss_and_gradients(task):
    model, batch = head(task)
    seen = []
    model.lm_head.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    all_positions, labelled = [], []
    for kept, loss in ((all_positions, model(**batch).loss), (labelled, compute_loss(model, batch))):
        loss.backward()
        kept += [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]
        model.zero_grad()
    torch.testing.assert_close(labelled, all_positions)
    labels = batch["labels"] if task == "ForMaskedLM" else batch["labels"][:, 1:]
    assert seen == [(6, 8, 61), (int((labels != -100).sum()), 61)], "no logits at other positions"


@pytest.mark.parametrize("task", HEADS)
def test_fit_is_the_standard_training_loop(task):
    """Two steps over two batches, written out in transformers' order: loss, gradient clipping, AdamW, learning rate."""
    model, batch = head(task)
    reference = copy.deepcopy(model)
    halves = [part(batch, slice(0, 3)), part(batch, slice(3, 6))]
    history = fit(
        model, lambda epoch: halves, steps=4, learning_rate=0.01, warmup_steps=2, max_grad_norm=0.3, weight_decay=0.1,
    )  # fmt: skip

    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in reference.parameters() if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in reference.parameters() if p.dim() == 1], "weight_decay": 0.0},
        ],
        lr=0.01, betas=(0.9, 0.98), eps=1e-6,
    )  # fmt: skip
    losses = []
    for step, factor in enumerate((0.5, 0.75, 0.5, 0.25)):
        loss = reference(**halves[step % 2]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.3)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * factor
        optimizer.step(), optimizer.zero_grad()
        losses.append(loss.item())
    assert [entry["loss"] for entry in history] == pytest.approx(losses, rel=1e-4)
    assert [entry["lr"] for entry in history] == pytest.approx([0.005, 0.0075, 0.005, 0.0025])
    assert [entry["step"] for entry in history] == [1, 2, 3, 4]
    torch.testing.assert_close(list(model.parameters()), list(reference.parameters()), rtol=1e-3, atol=1e-4)


def test_a_step_without_labels_changes_nothing():
    model, batch = head("ForMaskedLM")
    before = copy.deepcopy(model.state_dict())
    unlabelled = {**batch, "labels": torch.full((6, 8), -100)}
    assert compute_loss(model, unlabelled) == 0
    [entry] = fit(model, [unlabelled], steps=1, learning_rate=0.1)
    assert math.isnan(entry["loss"])
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    [both] = fit(
        copy.deepcopy(model), lambda _: [batch, unlabelled], steps=1, gradient_accumulation_steps=2, learning_rate=0.01
    )
    [alone] = fit(copy.deepcopy(model), [batch], steps=1, learning_rate=0.01)
    assert both["loss"] == pytest.approx(alone["loss"])


@pytest.mark.parametrize("task", ["ForMaskedLM", "ForQuestionAnswering"])
def test_a_resumed_fit_ends_in_the_same_weights(task, tmp_path, tokenizer, interrupted):
    """With dropout, several batches, accumulation and, for the language model, dynamic masking."""
    size = {"vocab_size": len(tokenizer), "hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1}
    start, batch = head(task, **size)
    batches = [part(batch, slice(i, i + 1)) for i in range(6)]
    settings = {"steps": 10, "learning_rate": 0.01, "gradient_accumulation_steps": 2}
    settings |= {"transform": dynamic_masking(tokenizer, 0.5)} if task == "ForMaskedLM" else {}
    uninterrupted, resumed = copy.deepcopy(start), copy.deepcopy(start)
    history = fit(uninterrupted, batches, **settings)
    with interrupted(after=15):  # in the eighth step
        fit(copy.deepcopy(start), batches, **settings, folder=tmp_path, minutes_between_saves=0)
    assert torch.load(tmp_path / "training_state.pt")["position"][0] == 7
    resumed_history = fit(resumed, batches, **settings, folder=tmp_path)
    torch.testing.assert_close(resumed.state_dict(), uninterrupted.state_dict(), rtol=0, atol=0)
    assert [x["loss"] for x in resumed_history] == pytest.approx([x["loss"] for x in history], nan_ok=True)
    seconds = [entry["seconds"] for entry in resumed_history]
    assert seconds == sorted(seconds)
    for wrong in ({"learning_rate": 0.02}, {"metadata": {"data": "another"}}):
        with pytest.raises(ValueError, match=f"other settings .({'|'.join([*wrong, 'data'])})"):
            fit(copy.deepcopy(start), batches, **{**settings, **wrong}, folder=tmp_path)
    smaller = head(task, **{**size, "intermediate_size": 8})[0]
    with pytest.raises(ValueError, match=r"other settings \(intermediate_size\)"):
        fit(smaller, batches, **settings, folder=tmp_path)


def test_parameters_without_gradient_are_not_trained():
    model, batch = head("ForSequenceClassification")
    model.backbone.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    fit(model, [batch], steps=2, learning_rate=0.01)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("backbone"), name
    with pytest.raises(ValueError, match="nothing to train"):
        fit(model.requires_grad_(False), [batch], steps=1, learning_rate=0.01)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precision_is_close(dtype):
    model, batch = head("ForMaskedLM")
    other = copy.deepcopy(model)
    exact, near = (fit(one, [batch], steps=3, learning_rate=0.01, dtype=kind)
                   for one, kind in ((model, "float32"), (other, dtype)))  # fmt: skip
    assert [x["loss"] for x in near] == pytest.approx([x["loss"] for x in exact], rel=0.02)
    assert [x["loss"] for x in near] != [x["loss"] for x in exact]
    assert {parameter.dtype for parameter in other.parameters()} == {torch.float32}


def test_every_epoch_has_its_own_order():
    model, batch = head("ForSequenceClassification")
    given, seen = [part(batch, slice(i, i + 1)) for i in range(6)], []

    def record(one, generator):
        seen.append(next(i for i, other in enumerate(given) if other is one))
        return one

    fit(model, given, steps=18, learning_rate=0.001, transform=record)
    epochs = [seen[:6], seen[6:12], seen[12:]]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"steps": 0}, "is impossible: it must be"),
        ({"gradient_accumulation_steps": 0}, "is impossible: it must be"),
        ({"decay_fraction": 2}, "is impossible: it must be"),
        ({"dtype": "int8"}, "take one of .float32., .bfloat16., .float16."),
    ],
)
def test_impossible_settings(wrong, why):
    model, batch = head("ForSequenceClassification")
    with pytest.raises(ValueError, match=why):
        fit(model, [batch], **{"steps": 1, "learning_rate": 0.1, **wrong})
    with pytest.raises(ValueError, match="epoch 0 has no batches"):
        fit(model, [], steps=1, learning_rate=0.1)


def test_impossible_labels():
    model, batch = head("ForMaskedLM")
    for labels, why in ((batch["labels"].clamp_min(61), "61"), (batch["labels"][:, :5], r"labels have shape \(6, 5\)")):
        with pytest.raises(ValueError, match=why):
            compute_loss(model, {**batch, "labels": labels})


def test_learning_rate_warms_up_stays_and_decays():
    factors = [lr_schedule(step, 24, 5, 0.5) for step in range(24)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert max(factors[5:13]) == min(factors[5:13]) == 1.0
    assert factors[-1] == pytest.approx(1 / 12)
