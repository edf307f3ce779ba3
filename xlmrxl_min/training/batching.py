"""Token ids and labels -> padded tensors, rows of similar length in one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ..inputs import as_sequence, shown
from ..utils import group_by_length, pad_rows

IGNORE_INDEX = -100  # not counted by the losses
EncodedExample = dict[str, Any]  # input_ids and labels, or start_positions and end_positions, as lists and numbers


def batch_by_length(
    rows: Sequence[Sequence[int]], max_tokens: int, padding: int, generator: torch.Generator
) -> list[Tensor]:
    """Batches `b t` of at most `max_tokens` tokens, padding included, in random order."""
    groups = group_by_length([len(row) for row in rows], max_tokens=max_tokens, generator=generator)
    return [pad_rows([rows[i] for i in group], padding) for group in groups]


def make_batches(
    rows: Sequence[EncodedExample], max_tokens: int, padding: int, generator: torch.Generator | None = None
) -> list[dict[str, Tensor]]:
    """Batches of rows of similar length, at most `max_tokens` tokens each, padding included, for `model(**batch)`.

    input_ids and attention_mask `b t`, for multiple choice `b c t`; labels `b`, `b t` (-100 at padding) or `b c`;
    start_positions, end_positions `b`. generator: for random order. ValueError for rows that cannot be in one batch,
    and for what is no row.
    """
    rows = as_sequence(rows, "rows", 'dicts such as {"input_ids": [0, 5, 2], "labels": 1}')
    for i, row in enumerate(rows):
        check_row(row, f"rows[{i}]", rows[0])
    choices = [len(row["input_ids"]) if isinstance(row["input_ids"][0], list) else 1 for row in rows]
    if len(set(choices)) > 1:
        raise ValueError(f"rows have {sorted(set(choices))} choices: give each as many.")
    lengths = [max(map(len, texts_of(row))) * count for row, count in zip(rows, choices, strict=True)]
    groups = group_by_length(lengths, max_tokens=max_tokens, generator=generator)
    return [collate([rows[i] for i in group], padding) for group in groups]


def check_row(row: Any, name: str, first: EncodedExample) -> None:
    """Raise ValueError unless a row has input_ids, tokens in each of its texts, and the same names as the first one."""
    if not isinstance(row, Mapping) or "input_ids" not in row:
        needed = "a dict with input_ids and labels, as encode_examples makes them"
        raise ValueError(f"{name} is {shown(row)}, but must be {needed}.")
    ids = row["input_ids"]
    if not is_text(ids) and not (isinstance(ids, list) and ids and all(map(is_text, ids))):
        raise ValueError(f"{name} has input_ids {shown(ids)}, but must have a list of one id or more, for each text.")
    if set(row) != set(first):
        names = f"{', '.join(sorted(row))}, but rows[0] has {', '.join(sorted(first))}"
        raise ValueError(f"{name} has {names}: give all rows the same.")


def is_text(ids: Any) -> bool:
    """Whether these are the ids of one text: a list, tuple, array or tensor of one integer or more."""
    if not hasattr(ids, "__len__") or isinstance(ids, (str, bytes, Mapping)) or getattr(ids, "ndim", 1) != 1:
        return False
    return len(ids) > 0 and all(isinstance(i, Integral) for i in (ids.tolist() if hasattr(ids, "tolist") else ids))


def texts_of(row: EncodedExample) -> list[list[int]]:
    ids = row["input_ids"]
    return ids if isinstance(ids[0], list) else [ids]


def collate(rows: Sequence[EncodedExample], padding: int) -> dict[str, Tensor]:
    """One batch, padded on the right."""
    texts = [ids for row in rows for ids in texts_of(row)]
    batch = {"input_ids": pad_rows(texts, padding), "attention_mask": pad_rows([[1] * len(ids) for ids in texts], 0)}
    if isinstance(rows[0]["input_ids"][0], list):
        batch = {name: rearrange(values, "(b c) t -> b c t", b=len(rows)) for name, values in batch.items()}
    for name in [name for name in rows[0] if name != "input_ids"]:
        batch[name] = label_tensor([row[name] for row in rows], [len(ids) for ids in texts])
    return batch


def label_tensor(labels: list[Any], lengths: list[int]) -> Tensor:
    """Numbers -> `b`; lists of floats, one for each class -> `b c`; lists of integers, one for each token -> `b t`."""
    if not isinstance(labels[0], list):
        return as_numbers(labels)
    by_token = bool(labels[0]) and isinstance(labels[0][0], int)
    for row, length in zip(labels, lengths, strict=True):
        if not isinstance(row, list):
            raise ValueError(f"the labels of a row are {shown(row)}, but those of another one are a list.")
        wanted = length if by_token else len(labels[0])
        if len(row) != wanted:
            raise ValueError(f"a row has {len(row)} labels, but must have {wanted}: one for each token, or class.")
    return pad_rows([as_numbers(row).tolist() for row in labels], IGNORE_INDEX) if by_token else as_numbers(labels)


def as_numbers(labels: list[Any]) -> Tensor:
    try:
        return torch.tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"labels {shown(labels)} are not possible: give numbers, or lists of them.") from None
