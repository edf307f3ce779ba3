"""Token ids -> padded tensors, rows of similar length in one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..utils import group_by_length, pad_rows


def batch_by_length(
    rows: Sequence[Sequence[int]], max_tokens: int, padding: int, generator: torch.Generator
) -> list[Tensor]:
    """Batches `b t` of at most `max_tokens` tokens, padding included, in random order."""
    groups = group_by_length([len(row) for row in rows], max_tokens=max_tokens, generator=generator)
    return [pad_rows([rows[i] for i in group], padding) for group in groups]
