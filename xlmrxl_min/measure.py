"""Numbers out of models, attentions and hidden states."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor

from .model import PreTrainedModel

AnyModel = TypeVar("AnyModel", bound=PreTrainedModel)


def offset_profile(weights: Tensor, reach: int) -> Tensor:  # b h q k -> b h r
    """Mean attention by offset, key position minus query position, from -reach to reach: r = 2 reach + 1.

    The mean is over all queries that have a key at this offset. ValueError where none has. `weights` are one call's
    attentions without padding, or anything else whose last two axes are q and k.
    """
    longest = min(weights.shape[-2:]) - 1
    if not 0 <= reach <= longest:
        raise ValueError(f"reach={reach} is impossible: {longest + 1} tokens lie at most {longest} apart.")
    offsets = range(-reach, reach + 1)
    return torch.stack([weights.diagonal(offset, -2, -1).mean(-1) for offset in offsets], dim=-1)


def without_positions(model: AnyModel) -> AnyModel:
    """A copy of `model` to which every order of the tokens is the same: its vectors of positions or distances are 0."""
    blind = copy.deepcopy(model)
    for name, parameter in blind.named_parameters():
        if name.endswith(("embeddings.position.weight", "attention.distance.weight")):
            parameter.data.zero_()
    return blind
