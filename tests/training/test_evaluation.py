"""Masked accuracy and what it is measured on; models without positions."""

import pytest
import torch
import torch.nn.functional as F
from transformers_reference import twins

from xlmrxl_min import XLMRobertaXLConfig, XLMRobertaXLForMaskedLM
from xlmrxl_min.training.evaluation import masked_accuracy, masked_logits, without_positions
from xlmrxl_min.training.masking import mask_tokens
from xlmrxl_min.training.texts import udhr


@pytest.fixture
def model(tokenizer):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return XLMRobertaXLForMaskedLM(XLMRobertaXLConfig(vocab_size=len(tokenizer), initializer_range=0.1, **sizes)).eval()


def test_masked_logits_give_the_models_own_loss(model, tokenizer):
    ids = tokenizer([row.text for row in udhr(["en"])[:6]], padding=True, return_tensors="pt").input_ids
    masked, labels = mask_tokens(ids, 0.3, tokenizer, torch.Generator().manual_seed(0))
    loss = F.cross_entropy(masked_logits(model, masked, labels != -100), labels[labels != -100])
    torch.testing.assert_close(loss, model(masked, (ids != 1).long(), labels=labels).loss)


def test_masked_accuracy_counts_the_top_predictions(model, tokenizer):
    """A model that always predicts one token is right as often as that token is masked."""
    texts = [row.text for row in udhr(["en"])]
    favourite = tokenizer.convert_tokens_to_ids("▁the")
    with torch.no_grad():
        model.lm_head.decoder.bias[favourite] = 1000.0
    found = masked_accuracy(model, tokenizer, texts, rounds=3)
    tokens = [i for text in texts for i in tokenizer.encode(text)[1:-1]]
    assert found["accuracy"] == pytest.approx(tokens.count(favourite) / len(tokens), abs=0.02)
    assert found["accuracy"] > 0.03
    assert found["tokens"] == pytest.approx(3 * 0.15 * len(tokens), rel=0.1)


def test_evaluation_needs_masked_tokens(model, tokenizer):
    for texts in ([], [""]):
        with pytest.raises(ValueError, match=r"no token of \d texts was masked"):
            masked_accuracy(model, tokenizer, texts)


def test_shuffling_keeps_tokens_and_ends(model, tokenizer):
    rows = {}
    model.backbone.register_forward_hook(lambda module, args, out: rows.setdefault(shuffled, []).extend(args[0]))
    for shuffled in (False, True):
        masked_accuracy(model, tokenizer, [row.text for row in udhr(["en"])], mask_prob=1e-3, shuffled=shuffled)
    changed = 0
    originals = [tokenizer.encode(row.text) for row in udhr(["en"])]
    for shuffled, found in rows.items():
        for row in found:
            row = row[row != 1].tolist()
            if tokenizer.mask_token_id not in row:
                assert (row[0], row[-1]) == (0, 2)
                assert sorted(row) in [sorted(original) for original in originals]
                assert shuffled or row in originals
                changed += row not in originals
    assert changed > 40


@pytest.mark.parametrize("position_embedding_type", ["absolute", "relative_key", "relative_key_query"])
def test_without_positions_the_order_has_no_effect(position_embedding_type):
    model = twins("ForMaskedLM", position_embedding_type=position_embedding_type)[1]
    ids, order = torch.randint(2, 60, (2, 9)), torch.randperm(9)
    changed = without_positions(model)
    torch.testing.assert_close(changed(ids[:, order]).logits, changed(ids).logits[:, order])
    assert (model(ids[:, order]).logits - model(ids).logits[:, order]).abs().max() > 1e-2, "the original is unchanged"
    assert changed.lm_head.decoder.weight is changed.backbone.embeddings.word.weight
