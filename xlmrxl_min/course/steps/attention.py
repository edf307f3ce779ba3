"""The steps of notebooks/02_attention.ipynb."""

import math

import torch
from einops import einsum, rearrange

from ..checks import exercise, randn
from . import solution
from .tokens_and_embeddings import ABSOLUTE

HIDDEN, MASK = randn(2, 5, 12), torch.tensor([[True] * 5, [True, True, True, False, False]])


def shape_scores(lengths=((4, 4), (3, 5))):
    return [(randn(2, 3, q, 6), randn(2, 3, k, 6, seed=1)) for q, k in lengths]


attention_scores = exercise(shape_scores, hint="In einsum an axis that is not on the right is summed over.")(
    solution.attention_scores
)


def scores_with(divisor):
    return lambda query, key: query @ key.mT / divisor(query, key)


attention_scores.misconceptions = {
    "The scores are not divided: √d keeps the softmax from becoming too sharp.": scores_with(lambda q, k: 1),
    "The scores are divided by d: divide by √d.": scores_with(lambda q, k: q.shape[-1]),
    "√d is the square root of a head's width, not of the number of keys.": scores_with(lambda q, k: k.shape[2] ** 0.5),
    "√d belongs to one head: e = h d is the width of all heads.": (
        scores_with(lambda q, k: (q.shape[1] * q.shape[-1]) ** 0.5)
    ),
    "Divide by √d; this multiplies by it.": scores_with(lambda q, k: q.shape[-1] ** -0.5),
    "Queries and keys are swapped: a row for each query, a column for each key.": (
        lambda query, key: solution.attention_scores(key, query)
    ),
    "These are weights already: the softmax comes after the mask, in the next step.": (
        lambda query, key: solution.attention_scores(query, key).softmax(-1)
    ),
}


split_heads = exercise(
    lambda: [(torch.arange(60.0).reshape(1, 5, 12), 4), (randn(2, 4, 6), 2)],
    hint="In the pattern, e is `(h d)`: say what d is, and h follows.",
)(solution.split_heads)
split_heads.misconceptions = {
    "Heads and tokens are not transposed: this is b t h d.": lambda x, d: x.unflatten(-1, (-1, d)),
    "Heads and width are swapped: head_dim is the last axis.": lambda x, d: x.unflatten(-1, (d, -1)).transpose(1, 2),
    "One reshape mixes up the tokens: split e first, then transpose two axes.": (
        lambda x, d: x.reshape(len(x), -1, x.shape[1], d)
    ),
    "The heads are in front of the texts: this is h b t d.": lambda x, d: torch.stack(x.split(d, dim=-1)),
    "A head has d adjacent components, not every h-th one: (h d), not (d h).": (
        lambda x, d: rearrange(x, "b t (d h) -> b h t d", d=d)
    ),
}


merge_heads = exercise(
    lambda: [(torch.arange(60.0).reshape(1, 3, 5, 4),), (randn(2, 3, 4, 4),)],
    hint="The pattern of `split_heads`, from right to left.",
)(solution.merge_heads)
merge_heads.misconceptions = {
    "One reshape mixes up the tokens: first transpose heads and tokens.": (
        lambda context: context.reshape(len(context), context.shape[2], -1)
    ),
    "A head has d adjacent components: (h d), not (d h).": lambda context: rearrange(context, "b h t d -> b t (d h)"),
    "The heads are side by side, not summed.": lambda context: context.sum(1),
    "The heads are side by side, not averaged.": lambda context: context.mean(1),
    "Heads and width are still two axes: this is b t h d.": lambda context: context.transpose(1, 2),
}


def attend_cases():
    mask = torch.tensor([[True, True, False, True], [True, True, True, False]])
    scores, value = 3 * randn(2, 3, 4, 4), randn(2, 3, 4, 6, seed=1)
    return [
        (scores, value, torch.ones_like(mask)),
        (scores, value, mask),
        (scores.double() - 100, value.double(), mask),  # all scores are far below 0
        (scores[:, :, :3], value, mask),
    ]


attend = exercise(
    attend_cases, hint="Mask the scores, take the softmax over the last axis, then sum the values over k."
)(solution.attend)


def attend_with(mask_scores=lambda scores, mask: scores.masked_fill(~mask, -1e30), softmax=None):
    """attend with a mistake. mask_scores: scores, mask -> scores; softmax: scores, mask -> weights."""

    def mistaken(scores, value, attention_mask):
        mask = rearrange(attention_mask, "b k -> b 1 1 k")
        masked = mask_scores(scores, mask)
        return (masked.softmax(-1) if softmax is None else softmax(masked, mask)) @ value

    return mistaken


def ignore_mask(scores, mask):
    return scores


attend.misconceptions = {
    "The mask is not used.": attend_with(ignore_mask),
    "The mask is inverted: True may attend, so change the scores where it is False.": attend_with(
        lambda scores, mask: scores.masked_fill(mask, -1e30)
    ),
    "The weights of a query must sum to one over the keys: softmax(-1).": attend_with(
        softmax=lambda scores, mask: scores.softmax(-2)
    ),
    "The softmax goes over the heads: it should go over the last axis, the keys.": attend_with(
        softmax=lambda scores, mask: scores.softmax(1)
    ),
    "Zeros after the softmax come too late: the weights do not sum to one.": attend_with(
        ignore_mask, lambda scores, mask: scores.softmax(-1) * mask
    ),
    "A score of 0 is not masked, as e⁰ = 1: take a very low number.": attend_with(lambda scores, mask: scores * mask),
    "Adding the mask adds 1 where it is True, and masks nothing.": attend_with(lambda scores, mask: scores + mask * 1),
    "Every text has its own mask: this is the first one's for all.": attend_with(
        lambda scores, mask: scores.masked_fill(~mask[:1], -1e30)
    ),
    "The mask is for keys, the columns; this masks queries, the rows.": attend_with(
        lambda scores, mask: scores.masked_fill(~mask.mT, -1e30)
    ),
    "The softmax is missing: scores are not yet weights.": attend_with(
        lambda scores, mask: scores.masked_fill(~mask, 0), softmax=ignore_mask
    ),
    "These are the weights: they still have to be multiplied by the values, and summed over the keys.": (
        lambda scores, value, mask: attend_with()(scores, torch.eye(4, dtype=value.dtype), mask)
    ),
    "−100 is not low enough for all scores: take torch.finfo(scores.dtype).min.": attend_with(
        lambda scores, mask: scores.masked_fill(~mask, -100)
    ),
}


attention = exercise(
    lambda: [(ABSOLUTE, HIDDEN, torch.ones_like(MASK)), (ABSOLUTE, HIDDEN, MASK)],
    hint="Project, split, score, attend, merge, and project with `out`.",
)(solution.Attention)


def attention_with(forward):
    """Attention with a mistake. forward: the module, query, key, value `b h t d`, mask, hidden -> b t e."""

    def mistaken(self, hidden, attention_mask):
        parts = (solution.split_heads(part(hidden), self.head_dim) for part in (self.query, self.key, self.value))
        return forward(self, *parts, attention_mask, hidden)

    return type("Mistaken", (solution.Attention,), {"forward": mistaken})


def context(query, key, value, mask):
    return solution.merge_heads(solution.attend(solution.attention_scores(query, key), value, mask))


def one_head(self, q, k, v, mask, hidden):
    wide = (solution.merge_heads(x)[:, None] for x in (q, k, v))
    return self.out(context(*wide, mask))


def wrong_split(self, q, k, v, mask, hidden):
    merged = (solution.merge_heads(x) for x in (q, k, v))
    return self.out(context(*(solution.split_heads(x, x.shape[-1] // self.head_dim) for x in merged), mask))


def unscaled(self, q, k, v, mask, hidden):
    scores = einsum(q, k, "b h q d, b h k d -> b h q k")
    return self.out(solution.merge_heads(solution.attend(scores, v, mask)))


attention.misconceptions = {
    "The last projection, `out`, is missing.": attention_with(
        lambda self, q, k, v, mask, hidden: context(q, k, v, mask)
    ),
    "Queries and keys are swapped: scores(query, key).": attention_with(
        lambda self, q, k, v, mask, hidden: self.out(context(k, q, v, mask))
    ),
    "The values are summed, not the keys.": attention_with(
        lambda self, q, k, v, mask, hidden: self.out(context(q, k, k, mask))
    ),
    "The values need their own projection, `value`: this sums the hidden states themselves.": attention_with(
        lambda self, q, k, v, mask, hidden: self.out(context(q, k, solution.split_heads(hidden, self.head_dim), mask))
    ),
    "Do not add `hidden` here: the residual belongs to the block, in notebook 05.": attention_with(
        lambda self, q, k, v, mask, hidden: hidden + self.out(context(q, k, v, mask))
    ),
    "The mask is not used: pass attention_mask to attend.": attention_with(
        lambda self, q, k, v, mask, hidden: self.out(context(q, k, v, torch.ones_like(mask)))
    ),
    "This is one wide head: split query, key and value into heads.": attention_with(one_head),
    "split_heads takes the width of a head, not the number of heads.": attention_with(wrong_split),
    "The scores are not divided by √d: use attention_scores.": attention_with(unscaled),
    "√d is divided by twice: attention_scores does it already.": attention_with(
        lambda self, q, k, v, mask, hidden: self.out(context(q / math.sqrt(self.head_dim), k, v, mask))
    ),
}
