"""Interactive pages for the course, each a self-contained HTML file: a sentence, masks and scaling, the logit lens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..inputs import as_tensor, as_tokens, as_values, check_integer, check_type
from .page import Page, make_page

MAX_TOKENS = 64  # of a page whose cells are buttons


def mask_painter(
    scores: Tensor, tokens: Sequence[str], *, head_dim: int, keys: Sequence[str] | None = None,
    may_attend: Tensor | None = None, title: str = "Scores, mask and softmax",
) -> Page:  # fmt: skip
    """A page on which scores are masked by clicks and divided by another number than √d; it computes the softmax.

    Call it by `mask_painter(query @ key.T, tokens, head_dim=query.shape[-1])` with one head's `q d` and `k d`. scores:
    `q k`, not divided by √d; tokens: the strings of the queries; keys: those of the keys if they differ; may_attend:
    `q k` or `k`, True = may attend, the mask at the start. Used in notebooks/02_attention.ipynb.
    """
    check_type("title", title, str, "a str")
    check_integer("head_dim", head_dim)
    scores = as_values(scores, "scores", "q k")
    tokens = as_tokens(tokens, len(scores))
    keys = as_tokens(tokens if keys is None else keys, scores.shape[1], "keys")
    check_length(max(scores.shape))
    allowed = torch.ones_like(scores, dtype=torch.bool)
    if may_attend is not None:
        may_attend = as_tensor(may_attend, "may_attend", "True = may attend").to(allowed.device)
        if may_attend.dtype != torch.bool or may_attend.shape not in (scores.shape, scores.shape[1:]):
            given = f"may_attend is {may_attend.dtype} {tuple(may_attend.shape)}"
            raise ValueError(f"{given}, but must be bool {tuple(scores.shape)}, True = may attend.")
        allowed = allowed & may_attend
    data = {
        "queries": tokens,
        "keys": keys,
        "scores": [[float(f"{score:.5g}") for score in row] for row in scores.tolist()],
        "head_dim": head_dim,
        "masked": (~allowed).tolist(),
    }
    return make_page("masks", data, title, height=min(360 + 31 * len(tokens), 760))


def check_length(count: int) -> None:
    if count > MAX_TOKENS:
        raise ValueError(f"{count} tokens are too many for this page: take a text of at most {MAX_TOKENS}.")
