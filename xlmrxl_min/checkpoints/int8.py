"""Weights in eight bits, a scale for each row. Walked through in notebooks/09_precision_and_size.ipynb.

A row w becomes integers from -127 to 127 and one number: w ≈ integers × scale, with scale = max |w| / 127. That takes a
quarter of float32's memory, not of its time: each matrix is turned back, part by part, when it is used.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import PreTrainedModel

PART = 1 << 24  # weights that are turned back at a time: 64 MiB in float32


def quantized(rows: Tensor) -> tuple[Tensor, Tensor]:  # o i -> o i in int8, o
    """The nearest integers and the scales, row by row: so a part of the rows gives a part of the result."""
    rows = rows.float()
    scale = rows.abs().amax(-1) / 127
    return (rows / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round().to(torch.int8), scale


class Int8Linear(nn.Module):
    """nn.Linear with its weights in int8: `... i -> ... o`, in the type of what comes in."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.scale = empty_rows(linear.weight)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        size = max(1, PART // self.in_features)
        biases = [None] * len(self.weight) if self.bias is None else self.bias.split(size)
        parts = zip(self.weight.split(size), self.scale.split(size), biases, strict=False)
        out = [self.part(x, *part) for part in parts]
        return out[0] if len(out) == 1 else torch.cat(out, dim=-1)

    def part(self, x: Tensor, rows: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:  # ... i -> ... (some of o)
        product = F.linear(x, rows.to(x.dtype)) * scale.to(x.dtype)
        return product if bias is None else product + bias


class Int8Embedding(nn.Module):
    """nn.Embedding with its rows in int8; gives `dtype`."""

    def __init__(self, table: nn.Embedding, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.padding_idx = *table.weight.shape, table.padding_idx
        self.weight, self.scale = empty_rows(table.weight)
        self.dtype = dtype

    def forward(self, ids: Tensor) -> Tensor:  # b t -> b t e
        return (F.embedding(ids, self.weight) * self.scale[ids][..., None]).to(self.dtype)


def empty_rows(weight: Tensor) -> tuple[nn.Parameter, nn.Parameter]:
    """Room for the integers and the scales; integers have no gradient, and the scales get none either."""
    integers = torch.empty_like(weight, dtype=torch.int8)
    scale = torch.empty(weight.shape[:1], dtype=torch.float32, device=weight.device)
    return nn.Parameter(integers, requires_grad=False), nn.Parameter(scale, requires_grad=False)


def with_int8(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Exchange the matrices of the blocks, of the LM head and of the words for empty int8 ones, tied as they were.

    For a model on the meta device, before anything is loaded. Norms, biases, positions and small heads stay in `dtype`.
    """
    homes = [model.base_model.layers, *([model.lm_head] if hasattr(model, "lm_head") else [])]
    for home in homes:
        for module in list(home.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, Int8Linear(child))
    embeddings = model.base_model.embeddings
    embeddings.word = Int8Embedding(embeddings.word, dtype)
    model.tie_weights()
    return model
