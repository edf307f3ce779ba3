"""Measures against cases that can be worked out by hand, and against slow loops."""

import pytest
import torch
from reference import twins

from xlmrxl_min.measure import offset_profile, without_positions


def test_offset_profile_by_hand():
    weights = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.0, 0.4, 0.6]])
    expected = [0.0, (0.1 + 0.4) / 2, (0.5 + 0.8 + 0.6) / 3, (0.3 + 0.1) / 2, 0.2]
    torch.testing.assert_close(offset_profile(weights, 2), torch.tensor(expected))


def test_offset_profile_by_loops():
    weights = torch.rand(2, 3, 6, 6).softmax(-1)
    expected = torch.zeros(2, 3, 9)
    for offset in range(-4, 5):
        pairs = [(q, q + offset) for q in range(6) if 0 <= q + offset < 6]
        expected[..., offset + 4] = sum(weights[..., q, k] for q, k in pairs) / len(pairs)
    torch.testing.assert_close(offset_profile(weights, 4), expected)


@pytest.mark.parametrize("reach", [-1, 6])
def test_offset_profile_knows_its_limits(reach):
    with pytest.raises(ValueError, match="6 tokens lie at most 5 apart"):
        offset_profile(torch.rand(1, 1, 6, 6), reach)


@pytest.mark.parametrize("position_embedding_type", ["absolute", "relative_key", "relative_key_query"])
def test_without_positions_order_means_nothing(position_embedding_type):
    model = twins("ForMaskedLM", position_embedding_type=position_embedding_type)[1]
    ids, order = torch.randint(2, 60, (2, 9)), torch.randperm(9)
    blind = without_positions(model)
    torch.testing.assert_close(blind(ids[:, order]).logits, blind(ids).logits[:, order])
    assert (model(ids[:, order]).logits - model(ids).logits[:, order]).abs().max() > 1e-2, "the original sees it"
    assert blind.lm_head.decoder.weight is blind.backbone.embeddings.word.weight
