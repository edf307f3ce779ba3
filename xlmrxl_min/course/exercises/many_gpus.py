"""The steps and exercises of notebooks/11_many_gpus.ipynb; the steps' answers are in course/steps/many_gpus.py."""

from itertools import pairwise
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from ..checks import exercise, randn, random_attention
from ..steps import many_gpus as answers

RANKS = [(rank, ranks) for ranks in (1, 2, 4) for rank in range(ranks)]


def yours_or_answers(*functions):
    """Each of the steps if it is right, or else its answer; prints which are the learner's."""
    steps = [globals()[function.__name__] for function in functions]
    are_right = [step.check(function) == "Right!" for step, function in zip(steps, functions, strict=True)]
    names = ", ".join(f.__name__ for f, is_right in zip(functions, are_right, strict=True) if is_right)
    print(f"{sum(are_right)} of {len(steps)} functions are yours{': ' if names else ''}{names}.")
    return tuple(
        function if is_right else step.solution
        for function, step, is_right in zip(functions, steps, are_right, strict=True)
    )


def random_linear(inputs, outputs, seed=0):
    linear = nn.Linear(inputs, outputs).requires_grad_(False)
    linear.weight.copy_(randn(outputs, inputs, seed=seed))
    linear.bias.copy_(randn(outputs, seed=seed + 1))
    return linear


# ---- the steps

ring_bytes = exercise(
    lambda: [(name, ranks, 840) for name in ("all-reduce", "all-gather", "reduce-scatter") for ranks in (2, 4, 7)],
    hint="A chunk has size / ranks bytes; each step sends one; count the steps in the drawing.",
)(answers.ring_bytes)
ring_bytes.misconceptions = {
    "An all-reduce is two passes: a reduce-scatter, and then an all-gather.": (
        lambda collective, ranks, size: (ranks - 1) * size / ranks
    ),
    "Only an all-reduce has two passes.": lambda collective, ranks, size: 2 * (ranks - 1) * size / ranks,
    "Each step sends one chunk, size / ranks bytes, and only what one rank sends is asked for.": (
        lambda collective, ranks, size: ring_bytes.solution(collective, ranks, size) * ranks
    ),
    "A pass has ranks − 1 steps: a rank sends nothing to itself.": (
        lambda collective, ranks, size: size * (1 + (collective == "all-reduce"))
    ),
    "This is the number of steps: multiply it by the bytes of a chunk.": (
        lambda collective, ranks, size: ring_bytes.solution(collective, ranks, ranks)
    ),
}
check_ring_bytes = ring_bytes.check


by_columns = exercise(
    lambda: [(random_linear(6, 8), randn(2, 5, 6), *place) for place in RANKS],
    hint="PyTorch stores W as outputs × inputs: W's columns are rows of linear.weight, so chunk along dimension 0.",
)(answers.by_columns)
by_columns.misconceptions = {
    "The bias is missing: each rank adds its own part of it.": (
        lambda linear, x, rank, ranks: x @ linear.weight.chunk(ranks)[rank].T
    ),
    "Every rank adds its own part of the bias, not rank 0 alone.": (
        lambda linear, x, rank, ranks: (
            x @ linear.weight.chunk(ranks)[rank].T + linear.bias.chunk(ranks)[rank] * (rank == 0)
        )
    ),
    "Each rank has other columns: these are rank 0's.": (
        lambda linear, x, rank, ranks: by_columns.solution(linear, x, 0, ranks)
    ),
    "This is the result of the whole layer: a rank computes its own outputs only.": (
        lambda linear, x, rank, ranks: linear(x)
    ),
    "A rank has adjacent columns: chunk the weight, do not take every ranks-th row.": (
        lambda linear, x, rank, ranks: F.linear(x, linear.weight[rank::ranks], linear.bias[rank::ranks])
    ),
    "Return this rank's outputs only, without zeros for the others.": (
        lambda linear, x, rank, ranks: (
            linear(x) * (torch.arange(len(linear.bias)) // (len(linear.bias) // ranks) == rank)
        )
    ),
}
check_by_columns = by_columns.check


by_rows = exercise(
    lambda: [(random_linear(8, 6), randn(2, 5, 8).chunk(ranks, dim=-1)[rank], rank, ranks) for rank, ranks in RANKS],
    hint="W's rows are columns of linear.weight: chunk along dimension 1. Rank 0 adds the bias.",
)(answers.by_rows)


def rows_with(bias=lambda rank, ranks: rank == 0, pick=lambda weight, rank, ranks: weight.chunk(ranks, dim=1)[rank]):
    """by_rows with a mistake. bias: how often it is added; pick: the rank's part of the weight."""
    return lambda linear, x_part, rank, ranks: (
        x_part @ pick(linear.weight, rank, ranks).T + linear.bias * bias(rank, ranks)
    )


by_rows.misconceptions = {
    "The bias comes once for each rank: only rank 0 adds it.": rows_with(bias=lambda rank, ranks: 1),
    "The bias is missing: rank 0 adds it.": rows_with(bias=lambda rank, ranks: 0),
    "A bias divided by the ranks has the right sum, but here rank 0 adds all of it.": (
        rows_with(bias=lambda rank, ranks: 1 / ranks)
    ),
    "Each rank has other rows: these are rank 0's.": rows_with(
        pick=lambda weight, rank, ranks: weight.chunk(ranks, 1)[0]
    ),
    "A rank has adjacent inputs: chunk the weight, do not take every ranks-th column.": (
        rows_with(pick=lambda weight, rank, ranks: weight[:, rank::ranks])
    ),
}
check_by_rows = by_rows.check


feed_forward_on_rank = exercise(
    lambda: [
        (SimpleNamespace(up=random_linear(6, 8), down=random_linear(8, 6, 2)), randn(2, 5, 6), *place)
        for place in RANKS
    ],
    hint="by_columns for up, F.gelu, by_rows for down.",
)(answers.feed_forward_on_rank)


def feed_forward_with(activation=F.gelu, after=lambda x: x):
    """feed_forward_on_rank with a mistake."""
    return lambda feed_forward, normed, rank, ranks: after(
        answers.by_rows(
            feed_forward.down, activation(answers.by_columns(feed_forward.up, normed, rank, ranks)), rank, ranks
        )
    )


def rows_first(feed_forward, normed, rank, ranks):
    summand = answers.by_rows(feed_forward.up, normed.chunk(ranks, dim=-1)[rank], rank, ranks)
    return answers.by_columns(feed_forward.down, F.gelu(summand), rank, ranks)


feed_forward_on_rank.misconceptions = {
    "The GELU between the two matrices is missing.": feed_forward_with(activation=lambda x: x),
    "This is ReLU: the model has GELU.": feed_forward_with(activation=F.relu),
    "The GELU belongs between up and down, not after down.": feed_forward_with(lambda x: x, F.gelu),
    "Columns for up, rows for down: GELU(a + b) is not GELU(a) + GELU(b), so rows first would need a sum inside.": (
        rows_first
    ),
    "The residual is added by the caller, after the all-reduce.": (
        lambda feed_forward, normed, rank, ranks: normed + feed_forward_with()(feed_forward, normed, rank, ranks)
    ),
    "Rank 0 does all the work: the sum is right, and nothing is gained.": (
        lambda feed_forward, normed, rank, ranks: feed_forward_with()(feed_forward, normed, 0, 1) * (rank == 0)
    ),
    "Every rank does all the work, and divides the result by the ranks: nothing is gained.": (
        lambda feed_forward, normed, rank, ranks: feed_forward_with()(feed_forward, normed, 0, 1) / ranks
    ),
}
check_feed_forward_on_rank = feed_forward_on_rank.check


attention_on_rank = exercise(
    lambda: [(random_attention(4), randn(2, 5, 32), *place) for place in RANKS],
    hint="by_columns three times, rearrange with d, scores / √d, softmax, weighted sum, rearrange back, by_rows.",
)(answers.attention_on_rank)


def attention_with(heads=None, divisor=lambda d: d**0.5, bias=lambda rank, ranks: rank == 0, own_rows=True):
    """attention_on_rank with a mistake. heads: how many, whatever the rank has."""

    def mistaken(attention, normed, rank, ranks):
        linears = (attention.query, attention.key, attention.value)
        parts = (answers.by_columns(linear, normed, rank, ranks) for linear in linears)
        count = heads or len(attention.heads) // ranks
        query, key, value = (part.unflatten(-1, (count, -1)).transpose(1, 2) for part in parts)
        weights = (query @ key.mT / divisor(query.shape[-1])).softmax(-1)
        context = (weights @ value).transpose(1, 2).flatten(2)
        rows = attention.out.weight.chunk(ranks, dim=1)[rank if own_rows else 0]
        return context @ rows.T + attention.out.bias * bias(rank, ranks)

    return mistaken


attention_on_rank.misconceptions = {
    "The bias of out comes once for each rank: only rank 0 adds it.": attention_with(bias=lambda rank, ranks: 1),
    "The bias of out is missing: rank 0 adds it, as by_rows does.": attention_with(bias=lambda rank, ranks: 0),
    "Each rank has fewer heads, not narrower ones: give d, not the number of all heads.": attention_with(heads=4),
    "Scores are divided by √d.": attention_with(divisor=lambda d: 1),
    "Scores are divided by √d, not by d.": attention_with(divisor=lambda d: d),
    "Each rank has rows of out of its own: these are rank 0's.": attention_with(own_rows=False),
    "The residual is added by the caller, not here.": (
        lambda attention, normed, *place: normed + attention_on_rank.solution(attention, normed, *place)
    ),
    "Rank 0 does all the work, and the others none: the sum is right, and nothing is gained.": (
        lambda attention, normed, rank, ranks: attention_on_rank.solution(attention, normed, 0, 1) * (rank == 0)
    ),
    "Every rank does all the work, and divides the result by the ranks: nothing is gained.": (
        lambda attention, normed, rank, ranks: attention_on_rank.solution(attention, normed, 0, 1) / ranks
    ),
}
check_attention_on_rank = attention_on_rank.check


fsdp_peak = exercise(
    lambda: [([10, 20, 30], 12, 2), ([40, 40, 40, 40], 100, 4), ([5, 50, 6], 7, 8)],
    hint="A rank always holds its share of everything; at the peak also a whole block, and what is outside the blocks.",
)(answers.fsdp_peak)


def peak_with(share=1, block=max, outside=1):
    """fsdp_peak with a mistake: how often the share and what is outside count, and which block."""
    return lambda blocks, others, ranks: share * (sum(blocks) + others) / ranks + block(blocks) + outside * others


fsdp_peak.misconceptions = {
    "A rank's own share of all parameters stays while a block is gathered.": peak_with(share=0),
    "What is outside the blocks is gathered, too, and kept until the end.": peak_with(outside=0),
    "Blocks are gathered one at a time, and freed after use: not all of them are whole at once.": peak_with(block=sum),
    "Blocks may differ: the largest one makes the peak.": peak_with(block=lambda blocks: blocks[0]),
    "Blocks may differ: the largest one makes the peak, not their mean.": (
        peak_with(block=lambda blocks: sum(blocks) / len(blocks))
    ),
    "This is what a rank stores between steps: to be used, a block must be whole.": (
        peak_with(block=lambda blocks: 0, outside=0)
    ),
    "A gathered block is a whole copy, beside the rank's own share of it: the share is not a part of the copy.": (
        lambda blocks, others, ranks: (sum(blocks) + others) / ranks + (max(blocks) + others) * (ranks - 1) / ranks
    ),
    "What is outside the blocks is sharded, too: its share is stored, and its whole is gathered beside it.": (
        lambda blocks, others, ranks: sum(blocks) / ranks + max(blocks) + others
    ),
}
check_fsdp_peak = fsdp_peak.check


# ---- the exercise


def collectives_cases():
    short = [[first, second] for first in ("columns", "rows") for second in ("columns", "rows")]
    return [
        (splits,) for splits in [*short, ["columns"], ["rows"], 2 * ["columns", "rows"], ["rows", *short[0], "rows"]]
    ]


@exercise(collectives_cases, hint="What does each rank have after a matrix, and what does the next step need?")
def count_collectives(splits):
    return len(splits) - sum(pair == ("columns", "rows") for pair in pairwise(splits))


def count_with(more):
    """count_collectives with a mistake: `more`(splits) too many."""
    return lambda splits: count_collectives.solution(splits) + more(splits)


count_collectives.misconceptions = {
    "Between columns and rows nothing is sent: rows need just the part that columns have made.": len,
    "No sum can wait for the end: GELU(a + b) is not GELU(a) + GELU(b).": lambda splits: 1,
    "Parts must be gathered, too, unless rows come next.": lambda splits: splits.count("rows"),
    "Rows make partial sums, and these must be added up.": count_with(lambda splits: -splits.count("rows")),
    "At the end every rank needs the whole result: parts are gathered there, too.": (
        count_with(lambda splits: -(splits[-1] == "columns"))
    ),
    "An all-reduce is one collective, though it can be done as two.": count_with(lambda splits: splits.count("rows")),
    "Rows take their part of what every rank has: for that nothing is sent.": count_with(
        lambda splits: sum(pair != ("columns", "rows") for pair in pairwise(["", *splits]) if pair[1] == "rows")
    ),
    "Columns, then rows, need nothing between them: not rows, then columns.": (
        lambda splits: len(splits) - list(pairwise(splits)).count(("rows", "columns"))
    ),
}
check_collectives = count_collectives.check
