"""Translation examples, what a translator attends to, and how it translates."""

import pytest
import torch

from xlmrxl_min import XLMRobertaXLConfig, XLMRobertaXLForCausalLM, XLMRobertaXLModel
from xlmrxl_min.training.corpus import is_held_out
from xlmrxl_min.training.dataset import Dataset
from xlmrxl_min.training.decoders import MAX_PAIR_TOKENS, DecoderRecipe, TranslationBatches, encode_sources
from xlmrxl_min.training.loop import compute_loss
from xlmrxl_min.training.translation import language_prompt, translate

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
SMALL |= {"initializer_range": 0.1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CONFIG = {**SMALL, "is_decoder": True, "add_cross_attention": True}
LANGUAGES = ["en", "fr", "zh"]


@pytest.fixture
def encoder(tokenizer):
    return XLMRobertaXLModel(XLMRobertaXLConfig(vocab_size=len(tokenizer), **SMALL), add_pooling_layer=False).eval()


@pytest.fixture
def model(tokenizer):
    return XLMRobertaXLForCausalLM(XLMRobertaXLConfig(vocab_size=len(tokenizer), **CONFIG)).eval()


@pytest.fixture
def batches(corpus_folder, tokenizer):
    recipe = DecoderRecipe(
        config=CONFIG, steps=1, tokens_per_batch=512, learning_rate=0.002, matrix_learning_rate=0.02, warmup_steps=0,
        matrix_weight_decay=0.1, decay_fraction=0.5, dtype="float32", seed=3, encoder="tiny", languages=LANGUAGES,
    )  # fmt: skip
    return TranslationBatches(recipe, Dataset(corpus_folder, tokenizer, LANGUAGES), tokenizer)


def test_both_sides_are_the_same_place_in_two_languages(batches, tokenizer, corpus_rows):
    rows = {}
    for row in corpus_rows:
        if row.source != "words" and row.language in LANGUAGES and not is_held_out(row):
            rows.setdefault(tuple(tokenizer.encode(row.text)), []).append(row)
    directions, versions = set(), set()
    for batch in batches(0):
        ids, labels, source = batch["input_ids"], batch["labels"], batch["source"]
        assert max(ids.numel() - 2 * len(ids), source.numel()) <= 512
        assert torch.equal(batch["attention_mask"], (ids != 1).long())
        for row, label, given in zip(ids.tolist(), labels.tolist(), source.tolist(), strict=True):
            [(code, prompt)] = [
                (code, ids) for code in LANGUAGES if row[: len(ids := language_prompt(tokenizer, code))] == ids
            ]
            assert label == [-100] * len(prompt) + [-100 if i == 1 else i for i in row[len(prompt) :]]
            given, target = [i for i in given if i != 1], [0, *(i for i in row[len(prompt) :] if i != 1)]
            assert max(len(given), len(target)) <= MAX_PAIR_TOKENS + 2
            pairs = [(a, b) for a in rows[tuple(given)] for b in rows[tuple(target)] if a[3:5] == b[3:5]]
            assert {b.language for _, b in pairs} == {code}
            assert all(a.language != b.language for a, b in pairs)
            directions |= {(a.language, b.language) for a, b in pairs}
            versions |= {b.version for _, b in pairs}
    assert len(directions) == 6
    assert "k" not in versions, "a second version is a source only"


def test_batches_are_a_function_of_the_epoch(batches):
    for a, b in zip(batches(1), batches(1), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(batches(0)[0]["input_ids"], batches(1)[0]["input_ids"])


def test_the_model_reads_the_encoders_last_states(batches, encoder, model):
    batch = batches(0)[0]
    read = encode_sources(encoder)(batch, torch.Generator())
    assert set(read) == {"input_ids", "attention_mask", "labels", "encoder_hidden_states", "encoder_attention_mask"}
    for states, mask, ids in zip(
        *(read[f"encoder_{x}"] for x in ("hidden_states", "attention_mask")), batch["source"], strict=True
    ):
        alone = ids[ids != 1][None]
        assert int(mask.sum()) == alone.shape[1]
        torch.testing.assert_close(states[mask.bool()][None], encoder(alone).last_hidden_state.detach())
    compute_loss(model, read).backward()
    assert model.backbone.layers[0].cross_attention.key.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in encoder.parameters())


def test_translate_continues_the_language_prompt(encoder, model, tokenizer):
    text = "Everyone has the right to life."
    prompt = torch.tensor([language_prompt(tokenizer, "fr")])
    states = encoder(torch.tensor([tokenizer.encode(text)])).last_hidden_state
    expected = model.generate(prompt, encoder_hidden_states=states, max_new_tokens=12)[0, prompt.shape[1] :]
    assert translate(model, encoder, tokenizer, text, "fr", max_new_tokens=12) == tokenizer.decode(
        expected.tolist(), skip_special_tokens=True
    )
