"""Masking for masked language modelling. Walked through in notebooks/06_masked_language_model.ipynb."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..base.input_checks import check_range, check_tensor
from ..inputs import check_number, check_type
from ..tokenizer import XLMRobertaTokenizer, starts_word
from .loop import Batch, Transform


def mask_tokens(
    ids: Tensor, mask_prob: float, tokenizer: XLMRobertaTokenizer, generator: torch.Generator, *,
    whole_words: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """BERT's masking (Devlin et al. 2019, section 3.1): ids `b t` -> masked ids and labels, `b t` each.

    Each token that is not special is selected with probability `mask_prob`. Of the selected ones 80% become `<mask>`,
    10% a random token, 10% stay. Labels are -100 at all other positions. whole_words: select all pieces of a word or
    none of them. Raises ValueError for ids that are no tensor `b t` of this vocabulary, and a mask_prob outside 0 to 1.
    """
    check_masking(tokenizer, mask_prob)
    check_tensor("ids", ids)
    if ids.dim() != 2:
        raise ValueError(f"ids have shape {tuple(ids.shape)}, but must be (batch, tokens).")
    check_range("ids", ids, len(tokenizer), "take the ids that this tokenizer gave")
    check_type("generator", generator, torch.Generator, "a torch.Generator: pass torch.Generator().manual_seed(0)")
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids, device=ids.device))
    samples = torch.rand(ids.shape, generator=generator).to(ids.device)
    if whole_words:  # each piece takes the sample of its word's first piece
        starts = word_starts(tokenizer).to(ids.device)[ids]
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        samples = samples.gather(1, positions.where(starts, 0).cummax(1).values)
    selected = (samples < mask_prob) & ~special
    fate = torch.rand(ids.shape, generator=generator).to(ids.device)
    random_ids = random_tokens(ids, tokenizer, generator)
    masked = ids.where(~selected | (fate >= 0.9), random_ids)
    masked = masked.masked_fill(selected & (fate < 0.8), tokenizer.mask_token_id)
    return masked, ids.masked_fill(~selected, -100)


def random_tokens(ids: Tensor, tokenizer: XLMRobertaTokenizer, generator: torch.Generator) -> Tensor:  # b t -> b t
    """As many random tokens as `ids`, none of them special: ids 0 to 3 and the last one are."""
    return torch.randint(4, tokenizer.mask_token_id, ids.shape, generator=generator).to(ids.device)


def dynamic_masking(tokenizer: XLMRobertaTokenizer, mask_prob: float = 0.15, *, whole_words: bool = False) -> Transform:
    """A transform for `fit` that masks a batch anew each time it is used (Liu et al. 2019, section 4.1)."""
    check_masking(tokenizer, mask_prob)

    def transform(batch: Batch, generator: torch.Generator) -> Batch:
        if not isinstance(batch, Mapping) or "input_ids" not in batch:
            kind = f"the names {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else type(batch).__name__
            raise ValueError(f"dynamic_masking needs a batch with input_ids, but got {kind}.")
        masked, labels = mask_tokens(batch["input_ids"], mask_prob, tokenizer, generator, whole_words=whole_words)
        return {**batch, "input_ids": masked, "labels": labels}

    return transform


def check_masking(tokenizer: Any, mask_prob: Any) -> None:
    """Raise ValueError for what is no tokenizer, and for what is no probability."""
    if not hasattr(tokenizer, "mask_token_id"):
        remedy = 'load one, as by XLMRobertaTokenizer.from_pretrained("tiny")'
        raise ValueError(f"tokenizer is of type {type(tokenizer).__name__}, but must be a tokenizer: {remedy}.")
    check_number("mask_prob", mask_prob, 0, 1)


def word_starts(tokenizer: XLMRobertaTokenizer) -> Tensor:  # v
    """Which tokens start a word; in a script without spaces, all of them."""
    return torch.tensor([starts_word(token) for token in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))])
