"""The exercises of notebooks/04_positions.ipynb."""

from ..checks import exercise


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
