"""The exercises of notebooks/03_seeing_attention.ipynb."""

import math

import torch

from ..checks import exercise, randn


@exercise(lambda: [(torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.2, 0.3, 0.4, 0.1]]),)], hint="A sum over the keys.")
def my_entropy(weights):
    return -(weights * weights.clamp_min(1e-30).log()).sum(-1)


entropy = my_entropy.solution
my_entropy.misconceptions = {
    "The sign: an entropy is not negative.": lambda w: -entropy(w),
    "That is in bits: take the natural logarithm, for nats.": lambda w: entropy(w) / math.log(2),
    "A sum over the keys, not a mean.": lambda w: entropy(w) / w.shape[-1],
    "H itself, not exp(H).": lambda w: entropy(w).exp(),
    "0 · log 0 has become NaN: keep zeros away from the logarithm.": lambda w: -(w * w.log()).sum(-1),
    "Over the keys, the last axis: one number per query.": lambda w: -(w * w.clamp_min(1e-30).log()).sum(0),
}
check_entropy = my_entropy.check


@exercise(lambda: [(list(randn(3, 2, 5, 5).softmax(-1)),)], hint="Heads averaged, the last step only.")
def my_rollout(layers):
    total = torch.eye(layers[0].shape[-1])
    for weights in layers:
        step = 0.5 * weights.mean(0) + 0.5 * torch.eye(len(total))
        total = step @ total
    return total


def half_identity(weights, identity):
    return 0.5 * weights.mean(0) + 0.5 * identity


def rollout_with(step=half_identity, multiply=lambda step, total: step @ total):
    """my_rollout with a mistake."""

    def mistaken(layers):
        total = torch.eye(layers[0].shape[-1])
        for weights in layers:
            total = multiply(step(weights, torch.eye(len(total))), total)
        return total

    return mistaken


my_rollout.misconceptions = {
    "The newest layer belongs on the left: its queries attend to what earlier layers made.": rollout_with(
        multiply=lambda step, total: total @ step
    ),
    "Where is the residual? Half of each step is the identity.": rollout_with(lambda weights, one: weights.mean(0)),
    "Half of the identity and half of the weights: the rows must sum to one.": rollout_with(
        lambda weights, one: weights.mean(0) + one
    ),
    "Layers are multiplied as matrices, not number by number.": lambda layers: math.prod(
        half_identity(weights, torch.eye(weights.shape[-1])) for weights in layers
    ),
    "The mean over heads, not their sum.": rollout_with(lambda weights, one: 0.5 * weights.sum(0) + 0.5 * one),
}
check_rollout = my_rollout.check
