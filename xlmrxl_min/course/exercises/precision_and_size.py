"""The exercises of notebooks/09_precision_and_size.ipynb."""

import torch

from ...model import XLMRobertaXLConfig
from ...scale.planner import parameters
from ..checks import exercise, randn


def count(e, f, layers, v, positions):
    """The parameters of a tied masked language model, as the notebook counts them by hand."""
    shape = {"hidden_size": e, "intermediate_size": f, "num_hidden_layers": layers, "vocab_size": v}
    config = XLMRobertaXLConfig(**shape, max_position_embeddings=positions, num_attention_heads=1)
    return sum(parameters(config).values())


@exercise(lambda: [(48, 200, 3, 4, 99, 20), (24, 60, 2, 2, 50, 30)], hint="Count each table and each matrix once.")
def my_count(e, f, layers, heads, v, positions):
    tables = layers * (2 * positions - 1) * (e // heads)
    return count(e, f, layers, v, positions) + v * e + tables


def count_off_by(difference):
    """my_count with a mistake. difference: e, layers, heads, v, positions, numbers of one table -> what is too much."""

    def mistaken(e, f, layers, heads, v, positions):
        table = (2 * positions - 1) * (e // heads)
        return my_count.solution(e, f, layers, heads, v, positions) + difference(e, layers, heads, v, positions, table)

    return mistaken


my_count.misconceptions = {
    "The head has a matrix of its own: v times e more.": count_off_by(lambda e, n, h, v, p, table: -v * e),
    "One bias per word: the head's is counted already.": count_off_by(lambda e, n, h, v, p, table: v),
    "The tables of distances are missing.": count_off_by(lambda e, n, h, v, p, table: -n * table),
    "There is a table in each layer.": count_off_by(lambda e, n, h, v, p, table: (1 - n) * table),
    "From -(n - 1) to n - 1 there are 2 n - 1 distances, not 2 n.": (
        count_off_by(lambda e, n, h, v, p, table: n * (e // h))
    ),
    "From -(n - 1) to n - 1 there are 2 n - 1 distances, not 2 n + 1.": (
        count_off_by(lambda e, n, h, v, p, table: 2 * n * (e // h))
    ),
    "One table per layer: all heads use the same one, as wide as a head.": (
        count_off_by(lambda e, n, h, v, p, table: n * (h - 1) * table)
    ),
    "The table of absolute positions is still there.": count_off_by(lambda e, n, h, v, p, table: -p * e),
}
check_count = my_count.check


def int8_cases():
    weight = randn(60, 400) * torch.arange(60)[:, None]  # the first row is zero
    return [(weight,), (weight.bfloat16(),)]


def grade_int8(result, case):
    (q, scale), weight = result, case[0].float()
    rows = torch.arange(60) > 0
    right = weight.abs().amax(-1, keepdim=True) / 127
    if (q.dtype, q.shape, scale.dtype, scale.shape) != (torch.int8, weight.shape, torch.float32, right.shape):
        return "q should be torch.int8 and have the shape of weight, and scale should be torch.float32, rows by 1."
    if not bool((scale > 0).all()):
        return "A row of zeros gives 0 / 0: keep the scale above 0."
    if ((scale / right)[rows] - 1).abs().max() > 0.001:
        return "Each row's own largest magnitude, divided by 127, is its scale; q * scale is weight."
    if ((q * scale - weight).abs() / scale).max() > 0.51:
        return "Round, do not cut off; and in float32, for in bfloat16 127 may come out as 128."
    return ""


@exercise(int8_cases, grade=grade_int8)
def my_int8(weight):
    weight = weight.float()  # bfloat16 has no 127.5, and float16 no 1e-12
    scale = weight.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
    return (weight / scale).round().to(torch.int8), scale


def int8_with(largest=lambda w: w.abs().amax(-1, keepdim=True), low=1e-12, to_integer=torch.round):
    """my_int8 with a mistake."""

    def mistaken(weight):
        weight = weight.float()
        scale = largest(weight).clamp_min(low) / 127
        return to_integer(weight / scale).to(torch.int8), scale

    return mistaken


my_int8.misconceptions = {
    "A row of zeros gives 0 / 0: keep the scale above 0.": int8_with(low=0.0),
    "Each row's own largest magnitude, divided by 127, is its scale; q * scale is weight.": (
        int8_with(largest=lambda w: w.abs().max().expand(len(w), 1))
    ),
    "Round, do not cut off; and in float32, for in bfloat16 127 may come out as 128.": int8_with(
        to_integer=torch.trunc
    ),
    "q should be torch.int8 and have the shape of weight, and scale should be torch.float32, rows by 1.": (
        int8_with(largest=lambda w: w.abs().amax(0, keepdim=True))
    ),
}
check_int8 = my_int8.check
