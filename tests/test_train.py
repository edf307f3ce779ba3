"""The training of masked language models: what is hidden, how batches are made, and that a broken-off run goes on."""

import json
import re
from dataclasses import replace

import pytest
import torch

from xlmrxl_min import XLMRobertaTokenizer, XLMRobertaXLConfig, XLMRobertaXLForMaskedLM, train
from xlmrxl_min.pretrained import HERE as PRETRAINED
from xlmrxl_min.pretrained import udhr
from xlmrxl_min.train import Recipe, batches, examples, hide, masked_accuracy, pretrain, rate


@pytest.fixture(scope="module")
def tokenizer():
    return XLMRobertaTokenizer.from_pretrained("tiny")


@pytest.fixture
def recipe():
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return Recipe(
        languages=["en", "fr"], vocabulary="tiny", config={**small, "initializer_range": 0.1}, held_out_article=17,
        steps=24, tokens_per_batch=512, learning_rate=0.01, matrix_learning_rate=0.02,
        matrix_weight_decay=0.1, warmup_steps=5, decay_share=0.5,
        mask_share=0.3, pair_share=0.5, cut_share=0.2, dtype="float32", seed=3,
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
    rows = examples(replace(recipe, pair_share=1.0), tokenizer, text, epoch=0)
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
    ids = train.cut(tokenizer, text, 4 / len(text))
    around = tokenizer.encode("人人生而<mask>自由,在尊严和权利上一律平等。")
    assert ids == [i for i in around if i != tokenizer.mask_token_id]
    assert train.cut(tokenizer, "free and equal", 0.5) == tokenizer.encode("free and equal")


def test_the_rate_rises_stays_and_falls(recipe):
    rates = [rate(recipe, step) for step in range(recipe.steps)]
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


def test_a_broken_off_run_goes_on_to_the_same_result(recipe, tmp_path, monkeypatch):
    pretrain(recipe, tmp_path / "whole", progress=False)
    step, calls = train.training_step, []

    def dying(*args):
        calls.append(1)
        if len(calls) == 17:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(train, "training_step", dying)
    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe, tmp_path / "broken", minutes_between_saves=0, progress=False)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="a run of another recipe"):
        pretrain(replace(recipe, seed=4), tmp_path / "broken", progress=False)
    pretrain(recipe, tmp_path / "broken", progress=False)
    whole, broken = (XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / name) for name in ("whole", "broken"))
    for a, b in zip(whole.parameters(), broken.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_loss_at_the_chosen_places_is_the_models_own(recipe, tokenizer):
    model = XLMRobertaXLForMaskedLM(XLMRobertaXLConfig(vocab_size=len(tokenizer), **recipe.config)).eval()
    ids = tokenizer([row.text for row in udhr(["en"])[:6]], padding=True, return_tensors="pt").input_ids
    seen, labels = hide(ids, 0.3, tokenizer, torch.Generator().manual_seed(0))
    logits = train.scores(model, seen, labels != -100)
    some = torch.nn.functional.cross_entropy(logits, labels[labels != -100])
    torch.testing.assert_close(some, model(seen, (ids != 1).long(), labels=labels).loss)


def test_shuffling_keeps_tokens_and_ends(recipe, tokenizer, monkeypatch):
    asked = []
    monkeypatch.setattr(train, "batches", lambda rows, *_: asked.append(rows) or [])
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
    assert all(config[name] == value for name, value in recipe.config.items())
    assert re.match(r"python -m xlmrxl_min.train", record["made_by"])
