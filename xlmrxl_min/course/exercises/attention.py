"""The exercises of notebooks/02_attention.ipynb."""

import math

import torch
from einops import einsum

from ..checks import exercise, randn


def attention_cases():
    cases = []
    for q, k in ((4, 4), (3, 5)):
        mask = torch.rand(2, 1, q, k, generator=torch.Generator().manual_seed(k)) > 0.5
        mask[..., 0], mask[1, 0, 2] = True, False  # one query may attend to nothing
        query, key, value = randn(2, 3, q, 6), randn(2, 3, k, 6, seed=1), randn(2, 3, k, 6, seed=2)
        cases += [(query, key, value, torch.ones_like(mask)), (query, key, value, mask)]
    low = (-100 * query.abs().double(), key.abs().double(), value.double(), mask)  # all scores are far below 0
    return [*cases, low]


@exercise(attention_cases, disallowed={"scaled_dot_product_attention": "But SDPA did it: write it out."})
def my_attention(query, key, value, attention_mask):
    scores = einsum(query, key, "b h q d, b h k d -> b h q k") / math.sqrt(query.shape[-1])
    scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    return einsum(scores.softmax(-1), value, "b h q k, b h k d -> b h q d")


def fill_lowest(scores, mask):
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)


def ignore_mask(scores, mask):
    return scores


def attention_with(divisor=lambda q, k: q.shape[-1] ** 0.5, mask_scores=fill_lowest, softmax=None, axis=-1):
    """my_attention with a mistake. softmax: scores, attention_mask -> weights."""

    def mistaken(query, key, value, attention_mask):
        scores = mask_scores(query @ key.mT / divisor(query, key), attention_mask)
        return (scores.softmax(axis) if softmax is None else softmax(scores, attention_mask)) @ value

    return mistaken


def weights_only(query, key, value, attention_mask):
    identity = torch.eye(key.shape[2], dtype=value.dtype).expand(*key.shape[:3], -1)
    return my_attention.solution(query, key, identity, attention_mask)


my_attention.misconceptions = {
    "The scores are not divided: by √d, or the softmax is too sharp.": attention_with(lambda q, k: 1),
    "The scores are divided by d: divide by √d.": attention_with(lambda q, k: q.shape[-1]),
    "√d is the square root of a head's width, not of the number of keys.": attention_with(
        lambda q, k: k.shape[2] ** 0.5
    ),
    "The mask is inverted: True may attend, so mask the scores at ~attention_mask.": attention_with(
        mask_scores=lambda scores, mask: fill_lowest(scores, ~mask)
    ),
    "The weights of a query must sum to one over the keys: softmax(-1).": attention_with(axis=-2),
    "The softmax goes over the heads: it should go over the last axis, the keys.": attention_with(axis=1),
    "Zeros after the softmax come too late: the weights do not sum to one.": attention_with(
        mask_scores=ignore_mask, softmax=lambda scores, mask: scores.softmax(-1).masked_fill(~mask, 0)
    ),
    "A query that may attend to nothing has become NaN (−∞ everywhere, or 0/0): take a very low number.": (
        attention_with(mask_scores=lambda scores, mask: scores.masked_fill(~mask, -math.inf))
    ),
    "A query that may attend to nothing gets zeros, as from SDPA: here its weights are uniform.": attention_with(
        softmax=lambda scores, mask: scores.softmax(-1) * mask.any(-1, keepdim=True)
    ),
    "A score of 0 is not masked, as e⁰ = 1: take a very low number.": attention_with(
        mask_scores=lambda scores, mask: scores * mask
    ),
    "Adding the mask adds 1 where it is True, and masks nothing.": attention_with(
        mask_scores=lambda scores, mask: scores + mask.float()
    ),
    "Every text has its own mask: this is the first one's for all.": attention_with(
        mask_scores=lambda scores, mask: fill_lowest(scores, mask[:1])
    ),
    "The mask is not used.": attention_with(mask_scores=ignore_mask),
    "Divide by √d; this multiplies by it.": attention_with(lambda q, k: q.shape[-1] ** -0.5),
    "Another head may have another width: d is query.shape[-1], not 32.": attention_with(lambda q, k: 32**0.5),
    "The values are summed, not the keys.": (
        lambda query, key, value, attention_mask: my_attention.solution(query, key, key, attention_mask)
    ),
    "These are the weights: they still have to be multiplied by the values, and summed over the keys.": weights_only,
    "The softmax is missing: scores are not yet weights.": attention_with(softmax=lambda scores, mask: scores),
}
my_attention.misconceptions |= {
    f"{-low:,} is not low enough for all scores: take torch.finfo(scores.dtype).min.": attention_with(
        mask_scores=lambda scores, mask, low=low: scores.masked_fill(~mask, -low)
    )
    for low in (10, 20, 50, 100)
}
my_attention.misconceptions |= {
    f"Adding {-low:,.0f} does not make scores vanish, and the weights of a query that may attend to nothing are not "
    "uniform: take a much lower number, or masked_fill.": attention_with(
        mask_scores=lambda scores, mask, low=low: scores - low * ~mask
    )
    for low in (1e3, 1e4, 1e5, 1e6, 1e7)
}
check_attention = my_attention.check
