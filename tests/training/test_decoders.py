"""The recipes of the decoders: examples, noise, runs from start to checkpoint, resuming, and the bundled records."""

import json
from dataclasses import replace

import pytest
import torch

from xlmrxl_min import XLMRobertaXLConfig, XLMRobertaXLForCausalLM
from xlmrxl_min.checkpoints.locate import PRETRAINED
from xlmrxl_min.training.decoders import DecoderRecipe, article_suffixes, token_noise
from xlmrxl_min.training.evaluation import next_token_accuracy
from xlmrxl_min.training.pretrain import load_recipe, pretrain
from xlmrxl_min.training.texts import translated_words, udhr

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
SMALL |= {
    "initializer_range": 0.06,
    "is_decoder": True,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.0,
}


@pytest.fixture
def recipe():
    return DecoderRecipe(
        languages=["en", "fr"], vocabulary="tiny", config=SMALL, held_out_article=17, steps=4, tokens_per_batch=512,
        learning_rate=0.002, matrix_learning_rate=0.02, matrix_weight_decay=0.1, warmup_steps=2, decay_fraction=0.5,
        random_start_prob=0.5, noise_prob=0.1, dtype="float32", seed=3,
    )  # fmt: skip


@pytest.fixture
def translator_recipe(recipe):
    like_the_encoder = {"hidden_size": 256, "intermediate_size": 1024}  # whose weights are the initial ones
    source = {"encoder": "tiny", "phrase_prob": 0.5, "alignment_loss_weight": 1.0}
    config = {**SMALL, **like_the_encoder, "add_cross_attention": True}
    return replace(recipe, config=config, matrix_learning_rate=0.0, **source)  # Muon is slow at such sizes


def test_suffixes_are_ends_of_articles(recipe, tokenizer):
    text = [row for row in udhr(["en", "zh"]) if row.article != 17]
    articles = {}
    for row in text:
        articles.setdefault((row.language, row.article), []).append(row.text)
    articles = [" ".join(paragraphs) for paragraphs in articles.values()]
    rows = article_suffixes(recipe, tokenizer, text, epoch=0)
    assert len(rows) == len(articles) == 60
    starts = 0
    for ids, article in zip(rows, articles, strict=True):
        ending = tokenizer.decode(ids, skip_special_tokens=True)
        assert article.endswith(ending) or len(ids) == 512
        starts += article.startswith(ending[:40])
    assert 10 < starts < 50, "some from the start"
    assert article_suffixes(recipe, tokenizer, text, 0) == rows != article_suffixes(recipe, tokenizer, text, 1)
    from_paragraphs = article_suffixes(replace(recipe, random_start_prob=0.0), tokenizer, text, 0)
    firsts = {tuple(tokenizer.encode(row.text)[:4]) for row in text}
    assert {tuple(ids[:4]) for ids in from_paragraphs} <= firsts
    from_anywhere = article_suffixes(replace(recipe, random_start_prob=1.0), tokenizer, text, 0)
    assert sum(tuple(ids[:4]) in firsts for ids in from_anywhere) < 10


def test_noise_changes_inputs_and_not_labels(tokenizer):
    ids = torch.randint(4, tokenizer.mask_token_id, (200, 50))
    ids[:, 0], ids[:, 40:] = 0, 1
    labels = ids.masked_fill(ids == 1, -100)
    batch = token_noise(0.1, tokenizer)({"input_ids": ids, "labels": labels}, torch.Generator().manual_seed(0))
    assert torch.equal(batch["labels"], labels)
    changed = batch["input_ids"] != ids
    assert not changed[:, 0].any()
    assert not changed[:, 40:].any()
    assert abs(changed[:, 1:40].float().mean().item() - 0.1) < 0.01
    fractions = changed[:, 1:40].float().mean(1)
    assert fractions.max() > 0.15, "some texts have more of it"
    assert fractions.min() < 0.05


@pytest.mark.parametrize("kind", ["recipe", pytest.param("translator_recipe", marks=pytest.mark.slow)])
def test_a_resumed_run_ends_in_the_same_weights(kind, request, tmp_path, interrupted):
    recipe = request.getfixturevalue(kind)
    record = pretrain(recipe, tmp_path / "uninterrupted", progress=False)
    assert record["training_text"]["loss"] < 9.2, "a uniform prediction has 8.99, a bad start much more"
    assert record["made_by"].startswith("python -m xlmrxl_min pretrain RECIPE --into FOLDER")
    with interrupted(after=2):
        pretrain(recipe, tmp_path / "resumed", minutes_between_saves=0, progress=False)
    assert pretrain(recipe, tmp_path / "resumed", progress=False)["training_text"] == record["training_text"]
    models = [XLMRobertaXLForCausalLM.from_pretrained(tmp_path / name) for name in ("uninterrupted", "resumed")]
    torch.testing.assert_close(models[0].state_dict(), models[1].state_dict(), rtol=0, atol=0)


CHECKPOINTS = ("tiny-decoder", "tiny-translator")


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_bundled_recipe_and_record_belong_together(name):
    recipe = load_recipe(PRETRAINED / name / "recipe.json")
    assert isinstance(recipe, DecoderRecipe)
    record = json.loads((PRETRAINED / name / "record.json").read_text())
    assert record["history"][-1]["step"] == recipe.steps // 250 * 250, "kept once in 250 steps"
    config = XLMRobertaXLConfig.from_pretrained(name)
    assert all(getattr(config, name) == value for name, value in recipe.config.items())
    assert record["parameters"] == sum(p.numel() for p in XLMRobertaXLForCausalLM.from_pretrained(name).parameters())


@pytest.mark.slow
def test_the_record_holds_what_tiny_decoder_reaches(tokenizer):
    record = json.loads((PRETRAINED / "tiny-decoder" / "record.json").read_text())
    rows = [
        tokenizer.encode(row.text)
        for row in udhr(load_recipe(PRETRAINED / "tiny" / "recipe.json").languages)
        if row.article == 17
    ]
    found = next_token_accuracy(XLMRobertaXLForCausalLM.from_pretrained("tiny-decoder"), tokenizer, rows)
    assert found == pytest.approx(record["held_out_article"], rel=1e-4)


def test_translated_words_occur_once_in_their_paragraphs():
    text = {row[:3]: row.text for row in udhr()}
    rows = translated_words()
    assert len({row.concept for row in rows}) == 10
    for row in rows:
        assert text[row.language, row.article, row.paragraph].count(row.word) == 1, row
