"""What several folders need: writing files whole, evaluation mode, and texts of similar length in one batch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import nn


@contextmanager
def atomic_write(*files: Path) -> Iterator[tuple[Path, ...]]:
    """Yield a draft for each of `files`: when all are written they take their names, after an error none does."""
    drafts = tuple(file.with_name(f".{file.name}.draft") for file in files)
    try:
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
        yield drafts
        for draft, file in zip(drafts, files, strict=True):
            os.replace(draft, file)
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)


@contextmanager
def eval_mode(model: nn.Module, *, gradients: bool = False) -> Iterator[None]:
    """Switch dropout off, and gradients too unless asked for; afterwards every module is in the mode it was in."""
    were_training = [module for module in model.modules() if module.training]  # some may be frozen in evaluation mode
    model.eval()
    try:
        with torch.enable_grad() if gradients else torch.inference_mode():
            yield
    finally:
        for module in were_training:
            module.training = True


def check_size(name: str, value: Any, largest: int | None = None) -> None:
    """Raise ValueError unless `value` is an integer from 1 to `largest` (None: without a limit)."""
    if not isinstance(value, Integral) or value < 1 or (largest is not None and value > largest):
        allowed = "1 or more" if largest is None else f"1 to {largest}"
        raise ValueError(f"{name}={value!r} is impossible: take {allowed}.")


def group_by_length(
    lengths: Sequence[int],
    *,
    max_rows: int | None = None,
    max_tokens: int | None = None,
    max_padding: int | None = None,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """Batches of rows of similar length, as lists of row numbers; the longest rows come first.

    max_rows: rows per batch. max_tokens: tokens per batch, padding included; a longer row is a batch of its own.
    max_padding: padding tokens per batch. generator: batches in random order, and rows mixed with others of almost the
    same length, differently each time.
    """
    for name, value in (("max_rows", max_rows), ("max_tokens", max_tokens)):
        if value is not None:
            check_size(name, value)
    jitter = [0.0] * len(lengths)
    if generator is not None:
        jitter = (torch.rand(len(lengths), generator=generator) * 10).tolist()
    batches: list[list[int]] = []
    longest = padding = 0
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i] + jitter[i], reverse=True):
        rows = len(batches[-1]) if batches else 0
        padded_to = max(longest, lengths[i])
        padding = (padded_to - longest) * rows + padding + padded_to - lengths[i]
        is_full = (
            rows == max_rows
            or (max_tokens is not None and padded_to * (rows + 1) > max_tokens)
            or (max_padding is not None and padding > max_padding)
        )
        if not batches or is_full:
            batches.append([])
            padded_to, padding = lengths[i], 0
        longest = padded_to
        batches[-1].append(i)
    if generator is None:
        return batches
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
