"""The training of masked language models: what is hidden, how batches are made, and that a broken-off run goes on."""

import copy
import json
import math
import re
from dataclasses import replace

import pytest
import torch
from reference import twins

from xlmrxl_min import XLMRobertaTokenizer, XLMRobertaXLConfig, XLMRobertaXLForMaskedLM
from xlmrxl_min.checkpoints.locate import PRETRAINED
from xlmrxl_min.training import loop
from xlmrxl_min.training.loop import (
    Recipe,
    batches,
    compute_loss,
    examples,
    fit,
    hide,
    masked_accuracy,
    masking,
    pretrain,
    rate,
    word_begins,
)
from xlmrxl_min.training.texts import udhr


@pytest.fixture(scope="module")
def tokenizer():
    return XLMRobertaTokenizer.from_pretrained("tiny")


@pytest.fixture
def recipe():
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return Recipe(
        languages=["en", "fr"], vocabulary="tiny", config={**small, "initializer_range": 0.1}, held_out_article=17,
        steps=24, tokens_per_batch=512, learning_rate=0.01, matrix_learning_rate=0.02,
        matrix_weight_decay=0.1, warmup_steps=5, decay_fraction=0.5,
        mask_prob=0.3, pair_prob=0.5, cut_prob=0.2, dtype="float32", seed=3,
    )  # fmt: skip


def test_hiding_keeps_to_its_shares(tokenizer):
    ids = torch.randint(4, tokenizer.mask_token_id, (400, 100))
    ids[:, 0], ids[:, -1], ids[::2, 50:] = 0, 2, 1
    seen, labels = hide(ids, 0.15, tokenizer, torch.Generator().manual_seed(0))
    words = (ids > 3).sum().item()
    chosen = labels != -100
    assert abs(chosen.sum().item() / words - 0.15) < 0.01
    assert torch.equal(labels[chosen], ids[chosen])
    assert not chosen[ids < 4].any(), "special tokens are never hidden"
    assert torch.equal(seen[~chosen], ids[~chosen])
    masked, kept = (seen == tokenizer.mask_token_id)[chosen], (seen == ids)[chosen]
    assert abs(masked.float().mean().item() - 0.8) < 0.02
    assert abs(kept.float().mean().item() - 0.1) < 0.02
    random = seen[chosen][~masked & ~kept]
    assert random.min() >= 4
    assert random.max() < tokenizer.mask_token_id


def test_batches_hold_every_row_once_within_their_size(tokenizer):
    rows = [[i] * (1 + i % 37) for i in range(1, 200)]
    made = batches(rows, 128, 0, torch.Generator().manual_seed(0))
    assert all(batch.numel() <= 128 for batch in made)
    found = sorted([int(i) for i in row if i] for batch in made for row in batch)
    assert found == sorted(rows)
    padding = sum(int((batch == 0).sum()) for batch in made) / sum(batch.numel() for batch in made)
    assert padding < 0.25


def test_no_text_is_said_to_be_none(tokenizer, recipe):
    model = XLMRobertaXLForMaskedLM(XLMRobertaXLConfig(vocab_size=len(tokenizer), **recipe.config))
    for texts in ([], [""]):
        with pytest.raises(ValueError, match="no token was hidden"):
            masked_accuracy(model, tokenizer, texts)


def test_pairs_are_translations(tokenizer, recipe):
    text = [row for row in udhr(["en", "fr", "de"]) if row.article != 17]
    rows = examples(replace(recipe, pair_prob=1.0), tokenizer, text, epoch=0)
    by_text = {row.text: row for row in text}
    paired = 0
    for row, ids in zip(text, rows, strict=True):
        assert ids[: len(tokenizer.encode(row.text))] == tokenizer.encode(row.text)
        if len(ids) > len(tokenizer.encode(row.text)):
            rest = [2, *ids[len(tokenizer.encode(row.text)) :]]
            partner = next(other for other in text if tokenizer.encode(other.text)[1:] == rest[2:])
            assert by_text[partner.text][1:3] == row[1:3]
            assert partner.language != row.language
            paired += 1
    assert 0.4 * len(text) < paired < len(text)
    assert examples(recipe, tokenizer, text, 0) == examples(recipe, tokenizer, text, 0)
    assert examples(recipe, tokenizer, text, 0) != examples(recipe, tokenizer, text, 1)


def test_a_cut_text_reads_as_around_a_mask(tokenizer):
    text = "人人生而自由,在尊严和权利上一律平等。"
    ids = loop.cut(tokenizer, text, 4 / len(text))
    around = tokenizer.encode("人人生而<mask>自由,在尊严和权利上一律平等。")
    assert ids == [i for i in around if i != tokenizer.mask_token_id]
    assert loop.cut(tokenizer, "free and equal", 0.5) == tokenizer.encode("free and equal")


def test_the_rate_rises_stays_and_falls():
    rates = [rate(step, 24, 5, 0.5) for step in range(24)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert max(rates[5:13]) == min(rates[5:13]) == 1.0
    assert rates[-1] == pytest.approx(1 / 12)


@pytest.mark.parametrize("matrix_learning_rate", [0.0, 0.02])
def test_a_run_learns_and_leaves_a_checkpoint(recipe, tokenizer, tmp_path, matrix_learning_rate):
    pretrain(replace(recipe, steps=80, matrix_learning_rate=matrix_learning_rate), tmp_path, progress=False)
    record = json.loads((tmp_path / "record.json").read_text())
    model = XLMRobertaXLForMaskedLM.from_pretrained(tmp_path)
    texts = [row.text for row in udhr(["en", "fr"]) if row.article != 17]
    again = masked_accuracy(model, XLMRobertaTokenizer.from_pretrained(tmp_path), texts)
    assert again == pytest.approx(record["own_text"])
    torch.manual_seed(0)
    untrained = XLMRobertaXLForMaskedLM(XLMRobertaXLConfig(vocab_size=len(tokenizer), **recipe.config))
    assert again["loss"] < masked_accuracy(untrained, tokenizer, texts)["loss"] - 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.json", "model.safetensors", "record.json", "sentencepiece.bpe.model",
    ]  # fmt: skip


def dying(monkeypatch, after):
    """Training that is interrupted in the step after `after` others."""
    learn, calls = loop.Run.learn, []

    def interrupted(self, group):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return learn(self, group)

    monkeypatch.setattr(loop.Run, "learn", interrupted)


def test_a_broken_off_run_goes_on_to_the_same_result(recipe, tmp_path, monkeypatch):
    pretrain(recipe, tmp_path / "whole", progress=False)
    dying(monkeypatch, after=16)
    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe, tmp_path / "broken", minutes_between_saves=0, progress=False)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"a run with other settings \(seed\)"):
        pretrain(replace(recipe, seed=4), tmp_path / "broken", progress=False)
    with pytest.raises(ValueError, match=r"a run with other settings \(languages\)"):
        pretrain(replace(recipe, languages=["en", "de"]), tmp_path / "broken", progress=False)
    pretrain(recipe, tmp_path / "broken", progress=False)
    whole, broken = (XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / name) for name in ("whole", "broken"))
    for a, b in zip(whole.parameters(), broken.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_loss_at_the_chosen_places_is_the_models_own(recipe, tokenizer):
    model = XLMRobertaXLForMaskedLM(XLMRobertaXLConfig(vocab_size=len(tokenizer), **recipe.config)).eval()
    ids = tokenizer([row.text for row in udhr(["en"])[:6]], padding=True, return_tensors="pt").input_ids
    seen, labels = hide(ids, 0.3, tokenizer, torch.Generator().manual_seed(0))
    logits = loop.scores(model, seen, labels != -100)
    some = torch.nn.functional.cross_entropy(logits, labels[labels != -100])
    torch.testing.assert_close(some, model(seen, (ids != 1).long(), labels=labels).loss)


def test_shuffling_keeps_tokens_and_ends(recipe, tokenizer, monkeypatch):
    asked = []
    monkeypatch.setattr(loop, "batches", lambda rows, *_: asked.append(rows) or [])
    texts = [row.text for row in udhr(["en"])]
    for shuffled in (False, True):
        with pytest.raises(ValueError, match="no token was hidden"):
            masked_accuracy(
                XLMRobertaXLForMaskedLM(XLMRobertaXLConfig(vocab_size=9, **recipe.config)),
                tokenizer,
                texts,
                shuffled=shuffled,
            )
    straight, shuffled = asked
    assert straight != shuffled
    for a, b in zip(straight, shuffled, strict=True):
        assert sorted(a) == sorted(b)
        assert (a[0], a[-1]) == (b[0], b[-1]) == (0, 2)


CHECKPOINTS = ("tiny", "tiny-relative-key", "tiny-relative-key-query")


def test_the_checkpoints_differ_in_their_positions_only():
    recipes = [json.loads((PRETRAINED / name / "recipe.json").read_text()) for name in CHECKPOINTS]
    types = [recipe["config"].pop("position_embedding_type", "absolute") for recipe in recipes]
    assert types == ["absolute", "relative_key", "relative_key_query"]
    assert recipes[0] == recipes[1] == recipes[2]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_recipe_is_the_one_on_record(name):
    recipe = Recipe(**json.loads((PRETRAINED / name / "recipe.json").read_text()))
    record = json.loads((PRETRAINED / name / "record.json").read_text())
    assert record["history"][-1]["step"] == recipe.steps
    config = XLMRobertaXLConfig.from_pretrained(name)
    assert all(getattr(config, name) == value for name, value in recipe.config.items())
    assert re.match(r"python -m xlmrxl_min.training.loop", record["made_by"])


# ---- fit


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
def test_the_head_at_labelled_places_only_gives_the_same_loss_and_gradients(task):
    model, batch = head(task)
    seen = []
    model.lm_head.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    whole, some = [], []
    for kept, loss in ((whole, model(**batch).loss), (some, compute_loss(model, batch))):
        loss.backward()
        kept += [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]
        model.zero_grad()
    torch.testing.assert_close(some, whole)
    places = batch["labels"] if task == "ForMaskedLM" else batch["labels"][:, 1:]
    assert seen == [(6, 8, 61), (int((places != -100).sum()), 61)], "the other places' logits never exist"


@pytest.mark.parametrize("task", HEADS)
def test_fit_is_the_plain_loop(task):
    """Two steps over two batches, written out with transformers' order of things: loss, clip, AdamW, rate."""
    model, batch = head(task)
    plain = copy.deepcopy(model)
    halves = [part(batch, slice(0, 3)), part(batch, slice(3, 6))]
    history = fit(
        model, lambda epoch: halves, steps=4, learning_rate=0.01, warmup_steps=2, clip=0.3, weight_decay=0.1,
    )  # fmt: skip

    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in plain.parameters() if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in plain.parameters() if p.dim() == 1], "weight_decay": 0.0},
        ],
        lr=0.01, betas=(0.9, 0.98), eps=1e-6,
    )  # fmt: skip
    losses = []
    for step, factor in enumerate((0.5, 0.75, 0.5, 0.25)):
        loss = plain(**halves[step % 2]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.3)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * factor
        optimizer.step(), optimizer.zero_grad()
        losses.append(loss.item())
    assert [entry["loss"] for entry in history] == pytest.approx(losses, rel=1e-4)
    assert [entry["rate"] for entry in history] == pytest.approx([0.005, 0.0075, 0.005, 0.0025])
    assert [entry["step"] for entry in history] == [1, 2, 3, 4]
    torch.testing.assert_close(list(model.parameters()), list(plain.parameters()), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("task", HEADS)
def test_accumulated_batches_are_one_large_batch(task):
    """Also where the parts have different numbers of labels."""
    model, batch = head(task)
    other = copy.deepcopy(model)
    parts = [part(batch, slice(0, 1)), part(batch, slice(1, 4)), part(batch, slice(4, 6))]
    settings = {"learning_rate": 0.01, "clip": 1e9}
    gradients = [
        fit(one, lambda epoch, given=given: given, steps=1, accumulate=len(given), **settings)[0]
        for one, given in ((model, parts), (other, [batch]))
    ]
    for name in ("loss", "gradient"):
        assert gradients[0][name] == pytest.approx(gradients[1][name], rel=1e-4)


def test_batches_without_labels_teach_nothing():
    model, batch = head("ForMaskedLM")
    before = copy.deepcopy(model.state_dict())
    nothing = {**batch, "labels": torch.full((6, 8), -100)}
    assert compute_loss(model, nothing) == 0
    [entry] = fit(model, [nothing], steps=1, learning_rate=0.1)
    assert math.isnan(entry["loss"])
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    [mixed] = fit(copy.deepcopy(model), lambda _: [batch, nothing], steps=1, accumulate=2, learning_rate=0.01)
    [alone] = fit(copy.deepcopy(model), [batch], steps=1, learning_rate=0.01)
    assert mixed["loss"] == pytest.approx(alone["loss"])


@pytest.mark.parametrize("task", ["ForMaskedLM", "ForQuestionAnswering"])
def test_an_interrupted_fit_ends_in_equal_weights(task, tmp_path, monkeypatch):
    """With dropout, several batches, accumulation and, for the language model, dynamic masking."""
    tokenizer = XLMRobertaTokenizer.from_pretrained("tiny")
    size = {"vocab_size": len(tokenizer), "hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1}
    start, batch = head(task, **size)
    given = [part(batch, slice(i, i + 1)) for i in range(6)]
    settings = {"steps": 10, "learning_rate": 0.01, "accumulate": 2}
    settings |= {"change": masking(tokenizer, 0.5)} if task == "ForMaskedLM" else {}
    whole, broken = copy.deepcopy(start), copy.deepcopy(start)
    history = fit(whole, given, **settings)
    dying(monkeypatch, after=7)
    with pytest.raises(KeyboardInterrupt):
        fit(broken, given, **settings, folder=tmp_path, minutes_between_saves=0)
    monkeypatch.undo()
    again = copy.deepcopy(start)
    resumed = fit(again, given, **settings, folder=tmp_path)
    torch.testing.assert_close(again.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert [entry["loss"] for entry in resumed] == pytest.approx([entry["loss"] for entry in history], nan_ok=True)
    seconds = [entry["seconds"] for entry in resumed]
    assert seconds == sorted(seconds)
    for wrong in ({"learning_rate": 0.02}, {"about": {"data": "another"}}):
        with pytest.raises(ValueError, match=f"other settings .({'|'.join([*wrong, 'data'])})"):
            fit(copy.deepcopy(start), given, **{**settings, **wrong}, folder=tmp_path)
    smaller = head(task, **{**size, "intermediate_size": 8})[0]
    with pytest.raises(ValueError, match=r"other settings \(intermediate_size\)"):
        fit(smaller, given, **settings, folder=tmp_path)


def test_what_requires_no_gradient_stays():
    model, batch = head("ForSequenceClassification")
    model.backbone.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    fit(model, [batch], steps=2, learning_rate=0.01)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("backbone"), name
    with pytest.raises(ValueError, match="nothing to train"):
        fit(model.requires_grad_(False), [batch], steps=1, learning_rate=0.01)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precision_is_near(dtype):
    model, batch = head("ForMaskedLM")
    other = copy.deepcopy(model)
    exact, near = (fit(one, [batch], steps=3, learning_rate=0.01, dtype=kind)
                   for one, kind in ((model, "float32"), (other, dtype)))  # fmt: skip
    assert [x["loss"] for x in near] == pytest.approx([x["loss"] for x in exact], rel=0.02)
    assert [x["loss"] for x in near] != [x["loss"] for x in exact]
    assert {parameter.dtype for parameter in other.parameters()} == {torch.float32}


def test_every_epoch_has_an_order_of_its_own():
    model, batch = head("ForSequenceClassification")
    given, seen = [part(batch, slice(i, i + 1)) for i in range(6)], []

    def change(one, generator):
        seen.append(next(i for i, other in enumerate(given) if other is one))
        return one

    fit(model, given, steps=18, learning_rate=0.001, change=change)
    epochs = [seen[:6], seen[6:12], seen[12:]]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"steps": 0}, "no training is possible"),
        ({"accumulate": 0}, "no training is possible"),
        ({"decay_fraction": 2}, "no training is possible"),
        ({"dtype": "int8"}, "take float32, bfloat16 or float16"),
    ],
)
def test_impossible_settings(wrong, why):
    model, batch = head("ForSequenceClassification")
    with pytest.raises(ValueError, match=why):
        fit(model, [batch], **{"steps": 1, "learning_rate": 0.1, **wrong})
    with pytest.raises(ValueError, match="epoch 0 has no batches"):
        fit(model, [], steps=1, learning_rate=0.1)


def test_labels_that_cannot_be():
    model, batch = head("ForMaskedLM")
    for labels, why in ((batch["labels"].clamp_min(61), "61"), (batch["labels"][:, :5], r"labels have shape \(6, 5\)")):
        with pytest.raises(ValueError, match=why):
            compute_loss(model, {**batch, "labels": labels})


def test_whole_words_are_hidden_whole(tokenizer):
    begins = word_begins(tokenizer)
    for token, is_one in (("▁free", True), ("ings", False), ("<s>", True), ("人人", True), (".", False)):
        assert begins[tokenizer.convert_tokens_to_ids(token)] == is_one, token
    texts = [row.text for row in udhr(["en", "de", "zh", "ar"])]
    ids = tokenizer(texts, padding=True, return_tensors="pt").input_ids
    labels = hide(ids, 0.3, tokenizer, torch.Generator().manual_seed(0), whole_words=True)[1]
    chosen, inner = labels != -100, ~begins[ids]
    assert torch.equal(chosen[:, 1:][inner[:, 1:]], chosen[:, :-1][inner[:, 1:]]), "a piece goes with the one before"
    real = ids > 3
    assert abs(chosen[real].float().mean() - 0.3) < 0.02
    apart = hide(ids, 0.3, tokenizer, torch.Generator().manual_seed(0))[1] != -100
    assert not torch.equal(apart[:, 1:][inner[:, 1:]], apart[:, :-1][inner[:, 1:]])
