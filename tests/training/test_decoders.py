"""The recipes of the decoders: passages, runs from start to checkpoint, resuming, sizes, and the bundled records."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from xlmrxl_min import XLMRobertaXLConfig, XLMRobertaXLForCausalLM, XLMRobertaXLForMaskedLM
from xlmrxl_min.checkpoints.locate import PRETRAINED
from xlmrxl_min.training import decoders
from xlmrxl_min.training.corpus import is_held_out
from xlmrxl_min.training.dataset import Dataset
from xlmrxl_min.training.decoders import DecoderRecipe, PassageBatches
from xlmrxl_min.training.masking import word_starts
from xlmrxl_min.training.pretrain import load_recipe, pretrain
from xlmrxl_min.training.texts import translated_words, udhr

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
SMALL |= {"initializer_range": 0.06, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
RECIPES = Path(decoders.__file__).parent / "recipes"
CHECKPOINTS = {"tiny-decoder": 10_200_000, "tiny-translator": 10_600_000}  # bytes in float16, at most


@pytest.fixture
def recipe(tokenizer, tmp_path):
    folder = tmp_path / "encoder"
    XLMRobertaXLForMaskedLM(XLMRobertaXLConfig(vocab_size=len(tokenizer), **SMALL)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return DecoderRecipe(
        config={**SMALL, "is_decoder": True}, encoder=str(folder), steps=6, tokens_per_batch=256, learning_rate=0.002,
        matrix_learning_rate=0.02, matrix_weight_decay=0.1, warmup_steps=2, decay_fraction=0.5, dtype="float32", seed=3,
    )  # fmt: skip


@pytest.fixture
def translator_recipe(recipe):
    return replace(recipe, config={**recipe.config, "add_cross_attention": True}, languages=["en", "fr", "zh"])


def as_text(ids):
    return "".join(f"{i} " for i in ids)


def test_passages_are_running_text(recipe, tokenizer, small_corpus, corpus_rows):
    """From a random start on, of one section and one language; to 40 tokens, or to its end."""
    texts = {}
    for row in corpus_rows:
        if row.source != "words" and not is_held_out(row):
            texts.setdefault(row[:4], []).append(as_text(tokenizer.encode(row.text)[1:-1]))
    ends = {key: ["".join(some[i:]) for i in range(len(some))] for key, some in texts.items()}
    recipe = replace(recipe, config={**recipe.config, "max_position_embeddings": 42})
    batches = PassageBatches(recipe, Dataset(small_corpus, tokenizer), tokenizer)
    starts_word, languages, at_start = word_starts(tokenizer), set(), []
    for batch in batches(0):
        ids = batch["input_ids"]
        assert ids.numel() <= 256
        assert torch.equal(batch["attention_mask"], (ids != 1).long())
        assert torch.equal(batch["labels"], ids.masked_fill(ids == 1, -100))
        for row in ids.tolist():
            first, *passage = (i for i in row if i != 1)
            assert first == 0
            assert len(passage) <= 39
            assert starts_word[passage[0]]
            is_end, text = passage[-1] == 2, as_text(passage).removesuffix(" 2 ").removesuffix(" ") + " "
            found = [key for key, (whole, *_) in ends.items() if f" {text}" in f" {whole}"]
            assert found, tokenizer.decode(passage)
            assert is_end <= any(ends[key][0].endswith(text) for key in found)
            languages |= {key[0] for key in found}
            at_start.append(any(end.startswith(text) for key in found for end in ends[key]))
    assert languages == {"en", "fr", "de", "zh"}
    assert 0.2 < sum(at_start) / len(at_start) < 0.9, "some begin within a verse or paragraph"


def same(a, b):
    return all(torch.equal(x[name], y[name]) for x, y in zip(a, b, strict=True) for name in x)


def test_batches_are_a_function_of_the_epoch(recipe, tokenizer, small_corpus):
    batches = PassageBatches(recipe, Dataset(small_corpus, tokenizer), tokenizer)
    assert same(batches(1), batches(1))
    assert not torch.equal(batches(0)[0]["input_ids"], batches(1)[0]["input_ids"])


@pytest.mark.parametrize("kind", ["recipe", "translator_recipe"])
def test_training_starts_from_the_encoders_weights(kind, request, small_corpus, monkeypatch):
    recipe = request.getfixturevalue(kind)
    monkeypatch.setattr(decoders, "train", lambda recipe, model, *rest, **options: model)
    weights = recipe.pretrain(small_corpus, small_corpus).state_dict()
    cross_attention = {name: weights.pop(name) for name in list(weights) if "cross_attention" in name}
    assert bool(cross_attention) == (kind == "translator_recipe")
    assert not any(x.any() for name, x in cross_attention.items() if name.endswith("out.weight")), "it adds nothing"
    torch.testing.assert_close(weights, XLMRobertaXLForMaskedLM.from_pretrained(recipe.encoder).state_dict())


@pytest.mark.parametrize("kind", ["recipe", "translator_recipe"])
def test_a_resumed_run_ends_in_the_same_weights(kind, request, small_corpus, tmp_path, interrupted):
    recipe = request.getfixturevalue(kind)
    record = pretrain(recipe, small_corpus, tmp_path / "uninterrupted", progress=False)
    assert record == json.loads((tmp_path / "uninterrupted" / "record.json").read_text())
    assert load_recipe(tmp_path / "uninterrupted" / "recipe.json") == recipe
    with interrupted(after=4):
        pretrain(recipe, small_corpus, tmp_path / "resumed", minutes_between_saves=0, progress=False)
    with pytest.raises(ValueError, match=r"a run with other settings \(tokens_per_batch\)"):
        pretrain(replace(recipe, tokens_per_batch=255), small_corpus, tmp_path / "resumed", progress=False)
    pretrain(recipe, small_corpus, tmp_path / "resumed", progress=False)
    models = [XLMRobertaXLForCausalLM.from_pretrained(tmp_path / name) for name in ("uninterrupted", "resumed")]
    torch.testing.assert_close(models[0].state_dict(), models[1].state_dict(), rtol=0, atol=0)


def test_a_run_learns(recipe, small_corpus, tmp_path, monkeypatch):
    losses = []
    monkeypatch.setattr("xlmrxl_min.training.pretrain.running_mean", lambda history, every: losses.extend(history))
    pretrain(replace(recipe, steps=40, learning_rate=0.02), small_corpus, tmp_path, progress=False)
    assert losses[-1]["loss"] < losses[0]["loss"] - 1


def test_impossible_recipes(recipe, translator_recipe, small_corpus, tmp_path):
    for change, words in (
        ({"tokens_per_batch": 0}, "tokens_per_batch=0 is impossible"),
        ({"languages": ["en", "xx"]}, "language='xx' is unknown"),
    ):
        with pytest.raises(ValueError, match=words):
            replace(recipe, **change)
    wrong = replace(translator_recipe, config={**translator_recipe.config, "hidden_size": 16})
    with pytest.raises(ValueError, match="hidden_size=16 must be the encoder's, 32"):
        pretrain(wrong, small_corpus, tmp_path)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_recipes_make_small_checkpoints(name):
    recipe = load_recipe(RECIPES / f"{name}.json")
    assert isinstance(recipe, DecoderRecipe)
    config = XLMRobertaXLConfig(vocab_size=12_002, **recipe.config)
    with torch.device("meta"):
        model = XLMRobertaXLForCausalLM(config)
    assert 2 * sum(p.numel() for p in model.parameters()) < CHECKPOINTS[name]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_bundled_recipe_and_record_belong_together(name):
    recipe, record = (json.loads((PRETRAINED / name / file).read_text()) for file in ("recipe.json", "record.json"))
    assert record["history"][-1]["step"] == recipe["steps"] // 250 * 250, "kept once in 250 steps"
    config = XLMRobertaXLConfig.from_pretrained(name)
    assert all(getattr(config, field) == value for field, value in recipe["config"].items())
    assert record["parameters"] == sum(p.numel() for p in XLMRobertaXLForCausalLM.from_pretrained(name).parameters())


def test_translated_words_occur_once_in_their_paragraphs():
    text = {row[:3]: row.text for row in udhr()}
    rows = translated_words()
    assert len({row.concept for row in rows}) == 10
    for row in rows:
        assert text[row.language, row.article, row.paragraph].count(row.word) == 1, row
