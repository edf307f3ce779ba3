"""The steps of notebooks/04_positions.ipynb."""

import math

import torch
import torch.nn.functional as F
from einops import einsum

from ..checks import exercise, randn
from . import solution
from .attention import HIDDEN, MASK
from .tokens_and_embeddings import RELATIVE_KEY, RELATIVE_KEY_QUERY

skew = exercise(
    lambda: [(torch.arange(28.0).reshape(1, 1, 4, 7),), (randn(2, 3, 5, 9),), (randn(1, 2, 2, 3),)],
    hint="Put a zero in front of each row, flatten, drop the first t elements, and reshape into t rows again.",
)(solution.skew)


def rows_from(start):
    """Of row i the t columns from `start`(i, t) on."""

    def mistaken(scores):
        rows = F.pad(scores, (0, 1)).unbind(2)
        return torch.stack([row[..., start(i, len(rows)) :][..., : len(rows)] for i, row in enumerate(rows)], 2)

    return mistaken


def all_columns(scores):
    rows = scores.shape[2]
    return F.pad(scores, (1, 0)).flatten(2)[..., rows:].unflatten(2, (rows, -1))


skew.misconceptions = {
    "Row 0 moves most, by t - 1, and the last row not at all.": rows_from(lambda i, t: i),
    "Every row has moved one column too far.": rows_from(lambda i, t: t - i),
    "Nothing has moved: these are the first t columns as they were.": rows_from(lambda i, t: 0),
    "All rows have moved equally far: row i moves by t - 1 - i.": rows_from(lambda i, t: t - 1),
    "Of each row only the first t columns are kept.": all_columns,
    "Of each row the first t columns are kept, not the last.": lambda scores: all_columns(scores)[
        ..., -scores.shape[2] :
    ],
    "Rows and columns are swapped: a row for each query.": lambda scores: solution.skew(scores).mT,
    "The columns are reversed: column 0 belongs to the first key, the largest distance.": (
        lambda scores: solution.skew(scores).flip(-1)
    ),
}


relative_scores = exercise(
    lambda: [(randn(2, 3, 4, 6), randn(17, 6, seed=1)), (randn(1, 2, 3, 4), randn(5, 4, seed=1))],
    hint="Multiply by the rows for t - 1, …, -(t - 1), in this order (slice, then `.flip(0)`), then skew.",
)(solution.relative_scores)


def scores_by_row(row):
    """Vector i times the table's row number `row`(i, j, zero)."""

    def mistaken(vectors, table):
        i = torch.arange(vectors.shape[2])
        rows = table[row(i[:, None], i[None], len(table) // 2)]  # q k d
        return einsum(vectors, rows, "b h q d, q k d -> b h q k")

    return mistaken


relative_scores.misconceptions = {
    "The distance is i - j, query minus key: here it is key minus query.": scores_by_row(
        lambda i, j, zero: zero + j - i
    ),
    "A distance has a sign: a key after the query is not a key before it.": (
        scores_by_row(lambda i, j, zero: zero + (i - j).abs())
    ),
    "Row r // 2 of the table is for distance 0: here it is one row off.": (
        scores_by_row(lambda i, j, zero: zero + i - j - 1)
    ),
    "Row 0 of the table is for the distance -(r // 2), not for 0: distance 0 is in row r // 2.": (
        scores_by_row(lambda i, j, zero: i - j)
    ),
    "These are vectors for positions: the row depends on the distance i - j, not on the key alone.": (
        scores_by_row(lambda i, j, zero: (zero + j).expand(len(i), -1))
    ),
    "The skew is missing: the columns are still distances.": scores_by_row(
        lambda i, j, zero: zero + i.max() - j + 0 * i
    ),
    "This is divided by √d already: that belongs to the next step.": (
        lambda vectors, table: solution.relative_scores(vectors, table) / math.sqrt(vectors.shape[-1])
    ),
    "Rows and columns are swapped: a row for each vector, a column for each position j.": (
        lambda vectors, table: solution.relative_scores(vectors, table).mT
    ),
}


def bias_cases():
    vectors = randn(2, 3, 4, 6), randn(2, 3, 4, 6, seed=1), randn(11, 6, seed=2)
    return [(*vectors, kind) for kind in ("relative_key", "relative_key_query")]


position_bias = exercise(
    bias_cases,
    hint="Two terms of `relative_scores`: of the query, and of the key, with `table.flip(0)`, transposed.",
)(solution.position_bias)


def bias_with(by_key=lambda query, key, table: solution.relative_scores(key, table.flip(0)).mT, root=lambda d: d**0.5):
    """position_bias with a mistake in the second term, or in what both are divided by."""

    def mistaken(query, key, table, kind):
        bias = solution.relative_scores(query, table)
        return (bias + by_key(query, key, table) * (kind == "relative_key_query")) / root(query.shape[-1])

    return mistaken


position_bias.misconceptions = {
    "The bias is divided by √d, like the other scores.": bias_with(root=lambda d: 1),
    "The bias is divided by d: divide by √d.": bias_with(root=lambda d: d),
    "relative_key has the query's term only: the key's belongs to relative_key_query.": (
        lambda query, key, table, kind: solution.position_bias(query, key, table, "relative_key_query")
    ),
    "relative_key_query has two terms: the key's is missing.": (
        lambda query, key, table, kind: solution.position_bias(query, key, table, "relative_key")
    ),
    "The key's term is a row for each key: transpose it before you add it.": bias_with(
        lambda query, key, table: solution.relative_scores(key, table.flip(0))
    ),
    "Seen from the key the distance has the other sign: reverse the table for its term, table.flip(0).": bias_with(
        lambda query, key, table: solution.relative_scores(key, table).mT
    ),
    "The second term is the key times the vector of the distance, not the query once more.": bias_with(
        lambda query, key, table: solution.relative_scores(query, table)
    ),
}


relative_attention = exercise(
    lambda: [
        (config, HIDDEN, mask)
        for config in (RELATIVE_KEY, RELATIVE_KEY_QUERY)
        for mask in (torch.ones_like(MASK), MASK)
    ],
    hint="`scores` is Attention's scores, `super().scores(query, key)`, plus `position_bias`.",
)(solution.RelativeAttention)


def relative_with(scores):
    """RelativeAttention with a mistake. scores: the module, query, key, the bias, Attention's scores -> scores."""

    def mistaken(self, query, key):
        bias = solution.position_bias(query, key, self.distance.weight, self.kind)
        return scores(self, query, key, bias, solution.attention_scores(query, key))

    return type("Mistaken", (solution.RelativeAttention,), {"scores": mistaken})


relative_attention.misconceptions = {
    "The positions change nothing: does the `forward` of your Attention call self.scores?": relative_with(
        lambda self, query, key, bias, content: content
    ),
    "Only the positions count: add the bias to the scores of query and key.": relative_with(
        lambda self, query, key, bias, content: bias
    ),
    "The bias is divided by √d twice: position_bias does it already.": relative_with(
        lambda self, query, key, bias, content: content + bias / math.sqrt(self.head_dim)
    ),
    "The bias is added, not subtracted.": relative_with(lambda self, query, key, bias, content: content - bias),
    "The kind of positions is config.position_embedding_type: this is always relative_key.": relative_with(
        lambda self, query, key, bias, content: (
            content + solution.position_bias(query, key, self.distance.weight, "relative_key")
        )
    ),
    "The kind of positions is config.position_embedding_type: this is always relative_key_query.": relative_with(
        lambda self, query, key, bias, content: (
            content + solution.position_bias(query, key, self.distance.weight, "relative_key_query")
        )
    ),
    "position_bias takes the query first, then the key.": relative_with(
        lambda self, query, key, bias, content: (
            content + solution.position_bias(key, query, self.distance.weight, self.kind)
        )
    ),
}
