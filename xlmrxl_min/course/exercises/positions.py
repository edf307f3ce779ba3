"""The exercises of notebooks/04_positions.ipynb."""

import torch
import torch.nn.functional as F

from ..checks import exercise


@exercise(
    lambda: [(torch.arange(q * (q + k - 1)).reshape(q, -1), k) for q, k in ((4, 4), (3, 6), (5, 2), (2, 3))],
    hint="Row i moves left by q - 1 - i columns.",
)
def my_skew(scores, num_keys):
    rows, width = scores.shape
    return F.pad(scores, (1, 0)).flatten()[rows:].reshape(rows, width)[:, :num_keys]


def rows_from(start):
    """Of every row the columns from `start`(row, rows) on."""
    return lambda scores, num_keys: torch.stack(
        [F.pad(row, (0, 1))[start(i, len(scores)) :][:num_keys] for i, row in enumerate(scores)]
    )


def shifted(scores):
    """The rows shifted correctly, but not yet cut off behind the last key."""
    return scores.flatten()[len(scores) - 1 : -1].view(len(scores), -1)


my_skew.misconceptions = {
    "Row 0 has to move most, not least.": rows_from(lambda i, q: i),
    "Every row has moved one column too far.": rows_from(lambda i, q: q - i),
    "Nothing has moved.": rows_from(lambda i, q: 0),
    "All rows have moved equally far: only row 0 moves by q - 1.": rows_from(lambda i, q: q - 1),
    "Cut off the rest: of each row only the first `num_keys` columns are wanted.": (
        lambda scores, num_keys: shifted(scores)
    ),
    "Of each row the first `num_keys` columns are wanted, not the last.": (
        lambda scores, num_keys: shifted(scores)[:, -num_keys:]
    ),
    "Rows and columns are swapped: a row for each query.": lambda *given: my_skew.solution(*given).T,
    "From right to left: the largest distance belongs to column 0.": lambda *given: my_skew.solution(*given).flip(-1),
}
check_skew = my_skew.check


@exercise(lambda: [(1,), (2,), (3,), (512,)], hint="Write down all of i - j for three tokens, and count.")
def distances_used(tokens):
    return 2 * tokens - 1


distances_used.misconceptions = {
    "Distances have a sign: forward is not backward.": lambda tokens: tokens,
    "Zero counts once.": lambda tokens: 2 * tokens,
    "From -(tokens - 1) to tokens - 1: the farthest is tokens - 1 away.": lambda tokens: 2 * tokens + 1,
    "Zero is a distance, too: that of a token from itself.": lambda tokens: 2 * (tokens - 1),
    "Many pairs have the same distance.": lambda tokens: tokens**2,
    "A token is at distance 0 from itself, and distances have a sign.": lambda tokens: tokens - 1,
}
check_distances = distances_used.check
