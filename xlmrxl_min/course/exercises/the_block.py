"""The exercises of notebooks/05_the_block.ipynb."""

import torch
import torch.nn.functional as F

from ..checks import exercise, randn


@exercise(
    lambda: [(randn(2, 3, 4), randn(4, seed=1), randn(4, seed=2), 0.1)],
    hint="Compare with the formula, over the last axis; keepdim=True keeps an axis of size 1.",
)
def my_norm(x, gamma, beta, eps):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * gamma + beta


def center(x, axis=-1):
    return x - x.mean(axis, keepdim=True)


def variance(x, unbiased=False, axis=-1):
    return x.var(axis, unbiased=unbiased, keepdim=True)


my_norm.misconceptions = {
    "The variance is divided by e - 1: unbiased=False divides by e.": (
        lambda x, gamma, beta, eps: center(x) / (variance(x, unbiased=True) + eps).sqrt() * gamma + beta
    ),
    "eps belongs inside the root.": lambda x, gamma, beta, eps: center(x) / (variance(x).sqrt() + eps) * gamma + beta,
    "The mean is not subtracted.": lambda x, gamma, beta, eps: x / (variance(x) + eps).sqrt() * gamma + beta,
    "gamma and beta are missing.": lambda x, gamma, beta, eps: center(x) / (variance(x) + eps).sqrt(),
    "Divide by the root of the variance, not by the variance.": (
        lambda x, gamma, beta, eps: center(x) / (variance(x) + eps) * gamma + beta
    ),
    "Each token by its own mean and variance, the last axis: not over the tokens.": (
        lambda x, gamma, beta, eps: center(x, 1) / (variance(x, axis=1) + eps).sqrt() * gamma + beta
    ),
}
check_norm = my_norm.check


def block_cases():
    first, second = randn(2, 4, 4, seed=1)
    norms = (lambda y: F.layer_norm(y, (4,))), (lambda y: F.layer_norm(y, (4,)) * 2)
    return [(randn(1, 3, 4), norms[0], lambda y: y @ first, norms[1], lambda y: torch.tanh(y @ second))]


@exercise(block_cases)
def my_block(stream, norm_1, attention, norm_2, feed_forward):
    stream = stream + attention(norm_1(stream))
    return stream + feed_forward(norm_2(stream))


def block_with(second, first=lambda x, n1, a, n2: x + a(n1(x))):
    """my_block with a mistake. first: the stream -> the middle; second: the middle and the stream -> the new stream."""
    return lambda x, n1, a, n2, f: second(first(x, n1, a, n2), x, n1, n2, f)


my_block.misconceptions = {
    "That is post-LN: the norm comes after the addition.": block_with(
        lambda m, x, n1, n2, f: n2(m + f(m)), first=lambda x, n1, a, n2: n1(x + a(x))
    ),
    "The second half reads the old stream, not the one that attention has written to.": block_with(
        lambda m, x, n1, n2, f: m + f(n2(x))
    ),
    "The residuals are missing: add what each half makes to the stream.": block_with(
        lambda m, x, n1, n2, f: f(n2(m)), first=lambda x, n1, a, n2: a(n1(x))
    ),
    "Attention's part is lost: add to the new stream.": block_with(lambda m, x, n1, n2, f: x + f(n2(m))),
    "Each half has a norm of its own.": block_with(lambda m, x, n1, n2, f: m + f(n1(m))),
    "The second norm is missing.": block_with(lambda m, x, n1, n2, f: m + f(m)),
    "Add to the stream itself, not to the normed one.": block_with(
        lambda m, x, n1, n2, f: n2(m) + f(n2(m)), first=lambda x, n1, a, n2: n1(x) + a(n1(x))
    ),
}
check_block = my_block.check
