"""Helpers for several folders: evaluation mode, batches of similar length, padding."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from .inputs import check_integer

MODES = threading.Lock()
EVALUATIONS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # of modules in training mode: how many now use it


@contextmanager
def eval_mode(model: nn.Module, *, gradients: bool = False) -> Iterator[None]:
    """Turn off dropout, and gradients unless `gradients`; afterwards put each module back into its own mode.

    Of several threads that use a module, the last one puts it back.
    """
    with MODES:  # some may be frozen in evaluation mode
        were_training = [module for module in model.modules() if module.training or module in EVALUATIONS]
        for module in were_training:
            module.training = False
            EVALUATIONS[module] = EVALUATIONS.get(module, 0) + 1
    try:
        with torch.enable_grad() if gradients else torch.inference_mode():
            yield
    finally:
        with MODES:
            for module in were_training:
                EVALUATIONS[module] -= 1
                if not EVALUATIONS[module]:
                    del EVALUATIONS[module]
                    module.training = True


def group_by_length(
    lengths: Sequence[int], *, batch_size: int | None = None, max_tokens: int | None = None,
    max_padding: int | None = None, packed: bool = False, generator: torch.Generator | None = None,
) -> list[list[int]]:  # fmt: skip
    """Put rows of similar length into the same batch, the longest rows first; return each batch's row indices.

    lengths: tokens of each row. batch_size: rows per batch. max_tokens: tokens per batch, including padding unless
    `packed`; a longer row is a batch of its own. max_padding: padding tokens per batch. None: without a limit.
    generator: shuffle the batches, and vary which rows of nearly the same length meet. ValueError for a limit below 1.
    """
    limits = {"batch_size": batch_size, "max_tokens": max_tokens, "max_padding": max_padding}
    for name, limit in limits.items():
        if limit is not None:
            check_integer(name, limit)
    keys = torch.tensor(lengths, dtype=torch.double)
    if generator is not None:
        keys += 10 * torch.rand(len(lengths), generator=generator)  # up to 10 tokens out of order
    batches: list[list[int]] = []
    longest = tokens = 0  # of the current batch; tokens without padding
    # With a generator the shortest rows come first: the order in which the bundled checkpoints were trained.
    for i in keys.argsort(descending=generator is None, stable=True).tolist():
        longest, tokens, rows = max(longest, lengths[i]), tokens + lengths[i], len(batches[-1]) + 1 if batches else 0
        padded = longest * rows
        sizes = {"batch_size": rows, "max_tokens": tokens if packed else padded, "max_padding": padded - tokens}
        if not batches or any(limit is not None and sizes[name] > limit for name, limit in limits.items()):
            batches.append([])
            longest = tokens = lengths[i]
        batches[-1].append(i)
    if generator is not None:
        batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
    return batches


def pad_rows(rows: Sequence[Sequence[int]], value: int) -> Tensor:  # b t
    """Stack rows into one tensor; `value` fills the end of the shorter ones."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)
