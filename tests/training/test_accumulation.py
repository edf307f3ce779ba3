"""Several batches in one step equal one large batch: loss, gradient norm, parameters, for every head and any labels."""

import copy
import math
import random

import pytest
import torch
import torch.nn.functional as F
from transformers_reference import twins

from xlmrxl_min.training.loop import compute_loss, count_labels, fit

# head, and the fields of its config
KINDS = {
    "masked": ("ForMaskedLM", {}),
    "causal": ("ForCausalLM", {"is_decoder": True}),
    "tokens": ("ForTokenClassification", {"num_labels": 3}),
    "class": ("ForSequenceClassification", {"num_labels": 3}),
    "classes": ("ForSequenceClassification", {"num_labels": 3, "problem_type": "multi_label_classification"}),
    "number": ("ForSequenceClassification", {"num_labels": 1}),
    "numbers": ("ForSequenceClassification", {"num_labels": 2, "problem_type": "regression"}),
    "choice": ("ForMultipleChoice", {}),
    "answer": ("ForQuestionAnswering", {}),
}


def draw_labels(kind, rng, ids, lengths):
    """Labels of all kinds, on padding too, -100 in whole rows, answers beyond the text, numbers equal to -100."""
    rows, tokens = len(ids), ids.shape[-1]

    def integers(low, high, *shape):
        return torch.tensor([rng.randrange(low, high) for _ in range(math.prod(shape))]).reshape(shape)

    if kind == "answer":
        positions = {name: integers(0, tokens, rows) for name in ("start_positions", "end_positions")}
        for values in positions.values():  # cut away: at the end of the longest text, or far beyond it
            for row in range(rows):
                if rng.random() < 0.4:
                    values[row] = rng.choice((tokens, tokens + 1, 1000))
        return positions
    if kind in ("masked", "causal", "tokens"):
        labels = integers(0, {"tokens": 3}.get(kind, 61), rows, tokens)
        density = rng.choice((0.1, 0.5, 0.9))
        labels[torch.tensor([[rng.random() > density for _ in range(tokens)] for _ in range(rows)])] = -100
        if rng.random() < 0.5:
            labels[rng.randrange(rows)] = -100
        if kind == "causal" and rng.random() < 0.5:  # no position predicts the first token
            labels[0, 0], labels[0, 1:] = 7, -100
        return {"labels": labels}
    if kind in ("class", "choice"):
        labels = integers(0, 2, rows)
        labels[torch.tensor([rng.random() < 0.4 for _ in range(rows)])] = -100
        return {"labels": labels}
    if kind == "classes":
        labels = integers(0, 2, rows, 3)
        return {"labels": labels.float() if rng.random() < 0.5 else labels}
    if kind == "number":
        return {"labels": rng.choice([integers(-3, 3, rows), integers(-101, -98, rows), torch.randn(rows)])}
    return {"labels": torch.randn(rows, 2)}


def draw_batch(kind, seed):
    rng, rows = random.Random(seed), 6
    torch.manual_seed(seed)
    shape = (rows, 3, 8) if kind == "choice" else (rows, 8)
    ids, lengths = torch.randint(3, 61, shape), [rng.randrange(3, 9) for _ in range(rows)]
    lengths[rng.randrange(rows)] = 8
    for row, length in enumerate(lengths):
        ids[row, ..., length:] = 1
    batch = {"input_ids": ids, **draw_labels(kind, rng, ids, lengths)}
    if rng.random() < 0.8:
        batch["attention_mask"] = (ids != 1).long()
    return batch, rng


def split(batch, rng):
    """Into batches of 1 to 3 rows."""
    rows, start, parts = len(batch["input_ids"]), 0, []
    while start < rows:
        stop = min(rows, start + rng.randrange(1, 4))
        parts.append({name: values[start:stop] for name, values in batch.items()})
        start = stop
    return parts


def one_step(model, batches, **settings):
    """The history of a step of gradient descent, whose change of a parameter is its gradient, and the parameters."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"steps": 1, "learning_rate": 0.1, "max_grad_norm": math.inf, "optimizers": [optimizer], **settings}
    [entry] = fit(model, lambda epoch: batches, gradient_accumulation_steps=len(batches), **options)
    return entry, model.state_dict()


@pytest.mark.filterwarnings("ignore:input_ids hold padding")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seeds", [range(8), pytest.param(range(8, 80), marks=pytest.mark.slow)])
def test_accumulated_batches_equal_one_large_batch(kind, seeds):
    task, config = KINDS[kind]
    for seed in seeds:
        model = twins(task, seed, **config)[1].double()  # so that what differs is not rounding
        batch, rng = draw_batch(kind, seed)
        (large, expected), (entry, found) = (one_step(model, given) for given in ([batch], split(batch, rng)))
        for name in ("loss", "grad_norm"):
            assert entry[name] == pytest.approx(large[name], rel=1e-6, nan_ok=True), (seed, name)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7, msg=f"seed {seed}")
        own = model(**batch).loss
        if own.isfinite():
            assert large["loss"] == pytest.approx(own.item(), rel=1e-6), "the loss that a call returns"
            own.backward()
            norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            assert large["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
        elif not any(count_labels(model, batch)):
            assert math.isnan(large["loss"])
            torch.testing.assert_close(expected, model.state_dict(), rtol=0, atol=0)
        else:  # one of the two ends has no label at all: the other is learned
            assert large["loss"] == pytest.approx(compute_loss(model, batch).item(), rel=1e-6)


def test_answers_cut_away_in_some_batches_and_in_all():
    model = twins("ForQuestionAnswering")[1]
    ids = torch.randint(3, 60, (3, 8))
    start, end = torch.tensor([2, 3, 8]), torch.tensor([4, 9, 8])
    batch = {"input_ids": ids, "start_positions": start, "end_positions": end}
    rows = [{name: values[i : i + 1] for name, values in batch.items()} for i in range(3)]
    logits = model(ids)
    by_hand = (
        F.cross_entropy(logits.start_logits[:2], start[:2]) / 2 + F.cross_entropy(logits.end_logits[:1], end[:1]) / 2
    )
    for given in ([batch], rows, rows[::-1]):
        assert one_step(model, given)[0]["loss"] == pytest.approx(by_hand.item(), rel=1e-6)
    start_only = F.cross_entropy(logits.start_logits[1:2], start[1:2]).item()
    assert one_step(model, rows[1:])[0]["loss"] == pytest.approx(start_only, rel=1e-6)
    entry, after = one_step(model, [rows[2]] * 2)
    assert math.isnan(entry["loss"])
    assert math.isnan(entry["grad_norm"])
    torch.testing.assert_close(after, model.state_dict(), rtol=0, atol=0)
    assert model(**rows[2]).loss.isnan(), "as in transformers"


def test_labels_on_padding_count_as_little_in_the_weights_as_in_the_loss():
    model = twins("ForTokenClassification")[1]
    ids = torch.tensor([[5, 6, 7, 8, 9, 10], [5, 1, 1, 1, 1, 1]])
    batch = {"input_ids": ids, "attention_mask": (ids != 1).long(), "labels": torch.tensor([[0] * 6, [1] * 6])}
    assert count_labels(model, batch).tolist() == [7]
    rows = [{name: values[i : i + 1] for name, values in batch.items()} for i in range(2)]
    assert one_step(model, rows)[0]["loss"] == pytest.approx(model(**batch).loss.item(), rel=1e-6)


def test_numbers_count_whatever_their_value_and_dtype():
    """In regression, integers are numbers, and so is -100."""
    model = twins("ForSequenceClassification", num_labels=1)[1]
    batch = {"input_ids": torch.randint(3, 60, (3, 8)), "labels": torch.tensor([-100, 3, 4])}
    assert count_labels(model, batch).tolist() == [3]
    rows = [{name: values[i : i + 1] for name, values in batch.items()} for i in range(3)]
    assert one_step(model, rows)[0]["loss"] == pytest.approx(model(**batch).loss.item(), rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_a_loss_function_that_weights_the_classes_of_several_labels(seed):
    """Its mean is over the labels, those of the model's own loss, so the same weights are right."""
    model = twins("ForSequenceClassification", seed, num_labels=3, problem_type="multi_label_classification")[1]
    batch, rng = draw_batch("classes", seed)

    def loss_function(model, batch):
        logits = model(batch["input_ids"], batch.get("attention_mask", batch["input_ids"] != 1)).logits
        weights = torch.tensor([0.2, 3.0, 7.0])
        return F.binary_cross_entropy_with_logits(logits, batch["labels"].float(), pos_weight=weights)

    (large, expected), (entry, found) = (
        one_step(model, given, loss_function=loss_function) for given in ([batch], split(batch, rng))
    )
    assert entry["loss"] == pytest.approx(large["loss"], rel=1e-5)
    assert large["loss"] == pytest.approx(loss_function(model, batch).item(), rel=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_loss_function_of_batches_without_labels_is_weighted_by_rows():
    model = twins("Model")[1]
    batch = {"input_ids": torch.randint(3, 60, (6, 8))}

    def loss_function(model, batch):
        return model(**batch).pooler_output.square().sum(-1).mean()

    parts = [{"input_ids": batch["input_ids"][rows]} for rows in (slice(0, 1), slice(1, 6))]
    (large, _), (entry, _) = (one_step(model, given, loss_function=loss_function) for given in ([batch], parts))
    assert entry["loss"] == pytest.approx(large["loss"], rel=1e-6)
    assert entry["grad_norm"] == pytest.approx(large["grad_norm"], rel=1e-5)


def test_batches_of_texts_of_different_lengths():
    """Each padded to its own longest text; together to the longest of all."""
    model = twins("ForTokenClassification")[1]
    parts = []
    for length in (2, 5, 8):
        mask = torch.ones(2, length).long()
        mask[1, length // 2 :] = 0
        ids = torch.randint(3, 60, (2, length)).masked_fill(mask == 0, 1)
        parts.append({"input_ids": ids, "attention_mask": mask, "labels": torch.randint(0, 2, (2, length))})
    fill = {"input_ids": 1, "attention_mask": 0, "labels": 1}
    large = {
        name: torch.cat([F.pad(part[name], (0, 8 - part[name].shape[1]), value=value) for part in parts])
        for name, value in fill.items()
    }
    (one, expected), (entry, found) = one_step(model, [large]), one_step(model, parts)
    assert entry["loss"] == pytest.approx(one["loss"], rel=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_gradients_from_before_do_not_count():
    model = twins("ForMultipleChoice")[1]
    batch, _ = draw_batch("choice", 0)
    expected = one_step(model, [batch])
    used = copy.deepcopy(model)
    optimizer = torch.optim.SGD(used.parameters(), lr=0.1)
    (used(**batch).loss * 100).backward()
    fit(used, [batch], steps=1, learning_rate=0.1, max_grad_norm=math.inf, optimizers=[optimizer])
    torch.testing.assert_close(used.state_dict(), expected[1])
