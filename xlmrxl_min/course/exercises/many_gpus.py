"""The exercises of notebooks/11_many_gpus.ipynb."""

from itertools import pairwise

from einops import rearrange

from ..checks import exercise, randn, random_attention


def by_columns(linear, x, rank, ranks):  # the notebook builds this one and the next
    return x @ linear.weight.chunk(ranks)[rank].T + linear.bias.chunk(ranks)[rank]


def by_rows(linear, x_part, rank, ranks):
    return x_part @ linear.weight.chunk(ranks, dim=1)[rank].T


def partial_sum_cases():
    attention, normed = random_attention(4), randn(2, 5, 32)
    return [(attention, normed, rank, ranks) for ranks in (1, 2, 4) for rank in range(ranks)]


@exercise(partial_sum_cases, hint="Whole heads, √d of a head, the rank's own rows of out.")
def my_partial_sum(attention, normed, rank, ranks):
    d = attention.head_dim
    linears = (attention.query, attention.key, attention.value)
    parts = (by_columns(linear, normed, rank, ranks) for linear in linears)
    query, key, value = (rearrange(part, "b t (h d) -> b h t d", d=d) for part in parts)
    weights = (query @ key.transpose(-1, -2) / d**0.5).softmax(-1)
    out = by_rows(attention.out, rearrange(weights @ value, "b h t d -> b t (h d)"), rank, ranks)
    return out + attention.out.bias if rank == 0 else out


def partial_sum_with(heads=None, divisor=lambda d: d**0.5, has_bias=lambda rank: rank == 0, own_rows=True):
    """my_partial_sum with a mistake. heads: how many, whatever the rank has."""

    def mistaken(attention, normed, rank, ranks):
        parts = (by_columns(f, normed, rank, ranks) for f in (attention.query, attention.key, attention.value))
        count = heads or len(attention.heads) // ranks
        query, key, value = (part.unflatten(-1, (count, -1)).transpose(1, 2) for part in parts)
        weights = (query @ key.mT / divisor(query.shape[-1])).softmax(-1)
        context = (weights @ value).transpose(1, 2).flatten(2)
        return by_rows(attention.out, context, rank if own_rows else 0, ranks) + attention.out.bias * has_bias(rank)

    return mistaken


my_partial_sum.misconceptions = {
    "The bias of out comes once for each rank: only rank 0 adds it.": partial_sum_with(has_bias=lambda rank: True),
    "The bias of out is missing: rank 0 adds it.": partial_sum_with(has_bias=lambda rank: False),
    "Each rank has fewer heads, not narrower ones: give d, not the number of all heads.": partial_sum_with(heads=4),
    "Scores are divided by √d.": partial_sum_with(divisor=lambda d: 1),
    "Scores are divided by √d, not by d.": partial_sum_with(divisor=lambda d: d),
    "Each rank has rows of out of its own: these are rank 0's.": partial_sum_with(own_rows=False),
    "The residual is added by the caller, not here.": (
        lambda attention, normed, *given: normed + my_partial_sum.solution(attention, normed, *given)
    ),
    "Rank 0 does all the work, and the others none: the sum is right, and nothing is gained.": (
        lambda attention, normed, rank, ranks: my_partial_sum.solution(attention, normed, 0, 1) * (rank == 0)
    ),
    "Every rank does all the work, and divides the result by the ranks: nothing is gained.": (
        lambda attention, normed, rank, ranks: my_partial_sum.solution(attention, normed, 0, 1) / ranks
    ),
}
check_partial_sum = my_partial_sum.check


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
