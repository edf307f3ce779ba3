"""The exercises of notebooks/07_heads.ipynb."""

import math

import torch
from einops import rearrange

from ..checks import exercise


def span_cases():
    start, end = torch.tensor([1.0, 0, 5, 0, 4, 0]) - 10, torch.tensor([0.0, 6, 0, 1, 0, 5.5]) - 10
    far = torch.tensor([5.0, 0, 0, 3, 0, 0]), torch.tensor([0.0, 0, 0, 0, 4, 5])
    return [(start, end, 3), (end, start, 1), (*far, 2), (end, start, 3)]


@exercise(span_cases, hint="Compare all pairs: the sum for i and j is start[i] + end[j], without a softmax.")
def my_span(start, end, max_tokens):
    sums = start[:, None] + end[None, :]
    is_possible = torch.ones_like(sums).triu().tril(max_tokens - 1) > 0
    return divmod(int(sums.masked_fill(~is_possible, -math.inf).argmax()), len(end))


def span_where(is_possible, low=-math.inf):
    """my_span with a mistake. is_possible: end - start, max_tokens -> which pairs are compared."""

    def mistaken(start, end, max_tokens):
        position = torch.arange(len(start))
        possible = is_possible(position[None, :] - position[:, None], max_tokens)
        sums = (start[:, None] + end[None, :]).masked_fill(~possible, low)
        return divmod(int(sums.argmax()), len(end))

    return mistaken


best_span = my_span.solution
my_span.misconceptions = {
    "The end must not come before the start.": span_where(lambda distance, n: distance < n),
    "Some answers are too long: no more than `max_tokens` tokens.": span_where(lambda distance, n: distance >= 0),
    "One token too many: with max_tokens=1 an answer is one token.": (
        span_where(lambda distance, n: (distance >= 0) & (distance <= n))
    ),
    "One token too few: positions i to j are j - i + 1 tokens.": (
        span_where(lambda distance, n: (distance >= 0) & (distance < n - 1))
    ),
    "An impossible pair has won, as its sum is 0: take −∞.": (
        span_where(lambda distance, n: (distance >= 0) & (distance < n), low=0.0)
    ),
    "i = j is allowed: an answer may be one token.": span_where(lambda distance, n: (distance >= 1) & (distance < n)),
    "First i, then j: the start, then the end.": lambda *given: best_span(*given)[::-1],
    "j is the last token itself, not the one after it.": (
        lambda *given: (best_span(*given)[0], best_span(*given)[1] + 1)
    ),
    "That is an index into the flattened table: divmod by t makes two of it.": (
        lambda start, end, n: best_span(start, end, n)[0] * len(end) + best_span(start, end, n)[1]
    ),
    "The best start and the best end, each on its own, need not be an answer.": (
        lambda start, end, n: (int(start.argmax()), int(end.argmax()))
    ),
}
check_span = my_span.check


def choice_cases():
    def encode(ids):
        if ids.dim() != 2:
            raise ValueError(f"encode takes n t, one text a row: here are {ids.dim()} axes")
        return torch.stack([ids.sum(-1), ids[:, 0]], -1).float()

    generator = torch.Generator().manual_seed(0)
    cases = [torch.randint(9, shape, generator=generator) for shape in ((3, 4, 5), (2, 3, 6))]
    return [(ids, encode, lambda x: x[:, :1] - 3 * x[:, 1:]) for ids in cases]


@exercise(choice_cases, hint="Two rearrangements, each the inverse of the other, between them only encode and score.")
def my_choice(ids, encode, score):
    first = encode(rearrange(ids, "b c t -> (b c) t"))
    return rearrange(score(first), "(b c) 1 -> b c", b=len(ids))


scores = my_choice.solution
my_choice.misconceptions = {
    "b and c are swapped on the way back.": (
        lambda ids, encode, score: scores(ids, encode, score).view(ids.shape[1], -1).T
    ),
    "b and c are swapped on the way in.": lambda ids, encode, score: scores(ids, encode, score).T.reshape(len(ids), -1),
    "A number per choice, without a softmax.": lambda *given: scores(*given).softmax(-1),
    "A number per choice, without a logarithm of a softmax.": lambda *given: scores(*given).log_softmax(-1),
    "The softmax is over the texts, and none is asked for.": lambda *given: scores(*given).softmax(0),
    "One axis too many: b c, without the 1.": lambda *given: scores(*given)[..., None],
    "The numbers as `score` returns them, without a tanh.": lambda *given: scores(*given).tanh(),
    "What `encode` returns goes to `score` as it is: a pooler, and its tanh, are no part of this.": (
        lambda ids, encode, score: scores(ids, lambda texts: encode(texts).tanh(), score)
    ),
}
check_choice = my_choice.check
