"""The exercises of notebooks/07_heads.ipynb."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..checks import Exercise, copy_case, exercise, randn


def classifier_cases():
    return [(randn(2, 3, 4), linear(5, 4), linear(3, 5, seed=1)), (randn(1, 6, 4, seed=2), linear(4, 4), linear(2, 4))]


def linear(rows, columns, seed=0):
    """A linear layer without a gradient, of random numbers."""
    layer = torch.nn.Linear(columns, rows).requires_grad_(False)
    layer.weight.copy_(randn(rows, columns, seed=seed))
    layer.bias.copy_(randn(rows, seed=seed + 10))
    return layer


@exercise(classifier_cases, hint="First select the vector of <s>: `hidden[:, 0]`.")
def my_classifier(hidden, dense, out_proj):
    return out_proj(torch.tanh(dense(hidden[:, 0])))


classify = my_classifier.solution
my_classifier.misconceptions = {
    "The head reads the first token, <s>, and this is the last one.": (
        lambda hidden, dense, out_proj: classify(hidden.flip(1), dense, out_proj)
    ),
    "That is the mean over all tokens: this head reads <s> only.": (
        lambda hidden, dense, out_proj: classify(hidden.mean(1, keepdim=True), dense, out_proj)
    ),
    "The tanh between the two layers is missing.": lambda hidden, dense, out_proj: out_proj(dense(hidden[:, 0])),
    "The activation here is tanh, as in BERT's pooler, and not GELU.": (
        lambda hidden, dense, out_proj: out_proj(F.gelu(dense(hidden[:, 0])))
    ),
    "The tanh is after `dense`, not after `out_proj`: logits have no bounds.": (
        lambda hidden, dense, out_proj: torch.tanh(out_proj(dense(hidden[:, 0])))
    ),
    "These are probabilities: return logits, as the loss contains the softmax.": (
        lambda *given: classify(*given).softmax(-1)
    ),
    "These are logits for every token: select the first token.": (
        lambda hidden, dense, out_proj: out_proj(torch.tanh(dense(hidden)))
    ),
    "The axis of the text is still there: `hidden[:, 0]` instead of `hidden[:, :1]`.": (
        lambda *given: classify(*given)[:, None]
    ),
}
check_classifier = my_classifier.check


def label_cases():
    offsets = [(0, 0), (0, 3), (3, 5), (6, 9), (9, 10), (11, 14), (0, 0)]
    return [
        (offsets, [(0, 5, 2), (6, 10, 0), (11, 14, 1)]),
        (offsets, [(6, 14, 3)]),
        ([(0, 0), (0, 1), (1, 4), (5, 7), (0, 0)], [(1, 4, 1), (0, 1, 5)]),
        ([(0, 0), (0, 2), (2, 5), (5, 8), (8, 9), (0, 0)], [(1, 4, 1), (5, 8, 2)]),  # tokens across a start and an end
        ([(0, 0), (0, 0), (0, 1), (1, 5), (0, 0)], [(0, 5, 3)]),  # "Hello": `▁` has no characters
        ([(0, 0), (0, 2), (3, 3), (3, 4), (5, 5), (5, 6), (0, 0)], [(0, 2, 1), (3, 6, 2)]),  # so here: "日本 , 。"
    ]


@exercise(label_cases, hint="For each token, go through the spans, and take the one that the token's start lies in.")
def my_labels(offsets, spans):
    labels = []
    for start, end in offsets:
        found = [label for first, last, label in spans if first <= start < last and start < end]
        labels.append(found[0] if found else -100)
    return labels


label_tokens = my_labels.solution


def labels_where(is_inside, missing=-100):
    """my_labels with a mistake. is_inside: start and end of a token, start and end of a span -> bool."""

    def mistaken(offsets, spans):
        found = [[label for first, last, label in spans if is_inside(*token, first, last)] for token in offsets]
        return [(labels or [missing])[0] for labels in found]

    return mistaken


def label_without_ends(offsets, spans):
    """my_labels with a mistake: of the tokens without characters, only the first and the last have no label."""
    found = labels_where(lambda start, end, first, last: first <= start < last)(offsets, spans)
    return [-100, *found[1:-1], -100]


my_labels.misconceptions = {
    "Tokens without characters, such as <s> and </s>, have the label -100: their start equals their end.": (
        labels_where(lambda start, end, first, last: first <= start < last)
    ),
    "Without a label is -100, which the loss leaves out: 0 is a class.": (
        labels_where(lambda start, end, first, last: first <= start < last and start < end, missing=0)
    ),
    "Only <s> and </s> get a wrong label, 0: they should have -100.": (
        lambda *given: [0, *label_tokens(*given)[1:-1], 0]
    ),
    "Only tokens without characters get a wrong label, 0: they should have -100.": lambda offsets, spans: [
        0 if start == end else x for (start, end), x in zip(offsets, label_tokens(offsets, spans), strict=True)
    ],
    "`▁` may be a token without characters, too, such as (3, 3): its label is -100.": (
        labels_where(lambda start, end, first, last: first <= start < last and (start, end) != (0, 0))
    ),
    "Not only the first and the last token have no characters: `▁` may have none, too, and its label is -100.": (
        label_without_ends
    ),
    "A token that starts in a span has the span's label, though it ends after the span.": (
        labels_where(lambda start, end, first, last: first <= start < end <= last)
    ),
    "A token that starts before a span does not have the span's label, though the two overlap.": (
        labels_where(lambda start, end, first, last: start < last and first < end and start < end)
    ),
    "A token's label is that of the span in which it starts, not of the one in which it ends.": (
        labels_where(lambda start, end, first, last: first < end <= last and start < end)
    ),
    "A token inside a span has the span's label, too, not only the first one.": (
        labels_where(lambda start, end, first, last: first == start < end)
    ),
    "A span ends before `end`: the character there is no part of it.": (
        labels_where(lambda start, end, first, last: first <= start <= last and start < end)
    ),
    "These are the labels of the tokens without <s> and </s>: keep a place for each token.": (
        lambda *given: label_tokens(*given)[1:-1]
    ),
    "A label for each token, not for each character.": (
        lambda offsets, spans: [label for first, last, label in spans for _ in range(last - first)]
    ),
}
check_labels = my_labels.check


def span_loss_cases():
    return [
        (randn(3, 6), randn(3, 6, seed=1), torch.tensor([0, 2, 5]), torch.tensor([1, 2, 5])),
        (2 * randn(1, 4), randn(1, 4, seed=1), torch.tensor([1]), torch.tensor([3])),
    ]


class TensorExercise(Exercise):
    """An exercise whose result has to be a tensor."""

    def find_fault(self, result, expected, case, arguments):
        fault = super().find_fault(result, expected, case, arguments)
        return fault or ("" if isinstance(result, torch.Tensor) else "It should be a tensor.")


@partial(
    TensorExercise, make_cases=span_loss_cases, disallowed={}, grade=None,
    hint="`F.cross_entropy` takes logits `b t`, with t in place of the classes.",
)  # fmt: skip
def my_span_loss(start_logits, end_logits, starts, ends):
    return (F.cross_entropy(start_logits, starts) + F.cross_entropy(end_logits, ends)) / 2


span_loss = my_span_loss.solution
my_span_loss.misconceptions = {
    "Return the loss as a tensor: from a float no gradient can be computed.": lambda *given: float(span_loss(*given)),
    "The mean of both losses, not their sum.": lambda *given: 2 * span_loss(*given),
    "That is the loss of the start only.": lambda s, e, starts, ends: F.cross_entropy(s, starts),
    "That is the loss of the end only.": lambda s, e, starts, ends: F.cross_entropy(e, ends),
    "Start and end are swapped.": lambda s, e, starts, ends: span_loss(s, e, ends, starts),
    "cross_entropy contains the softmax: give it logits, not probabilities.": (
        lambda s, e, starts, ends: span_loss(s.softmax(-1), e.softmax(-1), starts, ends)
    ),
    "The softmax runs along the text, over t, and not over the batch.": (
        lambda s, e, starts, ends: (
            -(s.log_softmax(0).gather(1, starts[:, None]).mean() + e.log_softmax(0).gather(1, ends[:, None]).mean()) / 2
        )
    ),
    "One softmax over both is another loss: start and end have one each.": (
        lambda s, e, starts, ends: F.cross_entropy(s + e, starts)
    ),
    "The mean over the texts is missing: return one number.": (
        lambda s, e, starts, ends: (
            (F.cross_entropy(s, starts, reduction="none") + F.cross_entropy(e, ends, reduction="none")) / 2
        )
    ),
}
check_span_loss = my_span_loss.check


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


def lora_cases():
    """All sizes differ, also b t from f and e: so the shape f e shows the product BA."""
    return [
        (randn(2, 4, 6), randn(5, 6), randn(2, 6, seed=1), randn(5, 2, seed=2), 16),
        (randn(1, 3, 4), randn(7, 4), randn(3, 4, seed=1), randn(7, 3, seed=2), 2),
    ]


class ProductWatcher(TorchDispatchMode):
    """Notices a tensor as large as the weight that was made of others: `sizes` are the weights' sizes, f and e."""

    def __init__(self, sizes):
        super().__init__()
        self.sizes, self.seen = sizes, False

    def is_as_large(self, value):
        return isinstance(value, torch.Tensor) and {size for size in value.shape if size > 1} in self.sizes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = [value for value in tree_leaves(args) if isinstance(value, torch.Tensor)]
        if given and self.is_as_large(out) and not any(map(self.is_as_large, given)):
            self.seen = True
        return out


def makes_product(mine):
    """The last test of my_lora: the product BA must not be made."""
    with ProductWatcher([set(weight.shape) for (_, weight, *_), _ in my_lora.cases]) as watcher:
        for case, _ in my_lora.cases:
            mine(*copy_case(case))
    return WITH_PRODUCT if watcher.seen else ""


WITH_PRODUCT = "Right numbers. But this makes the product BA, which is as large as the weight: apply a to x, then b."


@exercise(lora_cases, hint="`x @ a.T` has r components, and then `@ b.T` as many as the output.", last=makes_product)
def my_lora(x, weight, a, b, alpha):
    return x @ weight.T + alpha / len(a) * (x @ a.T @ b.T)


def lora_with(scale):
    """my_lora with another scale. scale: a, b, alpha -> a number."""
    return lambda x, weight, a, b, alpha: x @ weight.T + scale(a, b, alpha) * (x @ a.T @ b.T)


my_lora.misconceptions = {
    "The scale alpha / r is missing.": lora_with(lambda a, b, alpha: 1),
    "The scale is alpha divided by r, the number of rows of a.": lora_with(lambda a, b, alpha: alpha),
    "The scale is alpha divided by r, the number of rows of a, not of its columns.": (
        lora_with(lambda a, b, alpha: alpha / a.shape[1])
    ),
    "The scale is alpha divided by r, the number of rows of a, not of b.": (
        lora_with(lambda a, b, alpha: alpha / len(b))
    ),
    "The scale is alpha / r, not r / alpha.": lora_with(lambda a, b, alpha: len(a) / alpha),
    "The frozen weight is missing: LoRA adds to it.": (lambda x, weight, a, b, alpha: alpha / len(a) * (x @ a.T @ b.T)),
    "alpha scales what is added, and not the frozen weight.": (
        lambda x, weight, a, b, alpha: alpha / len(a) * (x @ weight.T + x @ a.T @ b.T)
    ),
    "That is the frozen layer alone.": lambda x, weight, a, b, alpha: x @ weight.T,
    "LoRA adds to the layer's output, and does not multiply it.": (
        lambda x, weight, a, b, alpha: x @ weight.T * (1 + alpha / len(a) * (x @ a.T @ b.T))
    ),
}
check_lora = my_lora.check
