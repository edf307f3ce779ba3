"""int8, symmetric: weights with a scale per output row, inputs with a scale per token. See notebook 09.

A row w becomes integers from -127 to 127 and one number: w ≈ integers × scale, with scale = max |w| / 127. That takes a
quarter of float32's memory. Processors with AVX512-VNNI, and GPUs, also multiply int8 matrices several times as fast as
float32 ones: there the inputs are quantized, too, at run time. Elsewhere the weights are dequantized whenever they are
used: for a few tokens in registers, else in chunks of rows.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import PreTrainedModel

DEQUANTIZE_CHUNK = 1 << 20  # weights that are dequantized at a time: 4 MiB in float32, which stay in the cache
FEW_TOKENS = 8  # up to which a CPU is faster when it dequantizes in registers
TOKEN_CHUNK = 128  # tokens that are multiplied at a time, so that their products stay in the cache
FEWEST_ON_CUDA = 17  # tokens that torch._int_mm takes there


def quantize_rows(
    weight: Tensor,
) -> tuple[Tensor, Tensor]:  # outputs × inputs -> the same in int8, and a scale per output
    """Round each row to int8 with a scale of its own. Rows are independent, so a weight can be quantized in chunks."""
    weight = weight.float()
    scale = weight.abs().amax(-1) / 127
    return (weight / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round().to(torch.int8), scale


class Int8Linear(nn.Module):
    """nn.Linear with an int8 weight.

    forward: x ... i -> ... o, in the dtype of x. The product is of int8 matrices where `multiplies_int8` says so, and
    no gradient is needed (under torch.no_grad or torch.inference_mode): rounding has none.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.scale = empty_int8(linear.weight)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and (x.requires_grad or (self.bias is not None and self.bias.requires_grad)):
            return self.dequantized(x)
        if multiplies_int8(x, self.weight):
            return self.quantized(x)
        is_few = x.device.type == "cpu" and 0 < x.numel() <= FEW_TOKENS * self.in_features
        if is_few and self.in_features % 16 == 0:  # of other widths the kernel reads beyond the end
            return self.few_tokens(x)
        return self.dequantized(x)

    def quantized(self, x: Tensor) -> Tensor:
        out = x.new_empty(*x.shape[:-1], self.out_features)
        tokens, products = x.flatten(0, -2), out.flatten(0, -2)
        count = max(1, math.ceil(len(tokens) / TOKEN_CHUNK))  # equal chunks: none may be below FEWEST_ON_CUDA
        for chunk, product in zip(tokens.tensor_split(count), products.tensor_split(count), strict=True):
            product.copy_(self.int8_product(chunk))
        return out

    def int8_product(self, x: Tensor) -> Tensor:  # t i -> t o, float32
        integers, scale = quantize_rows(x)
        # of one token, a matrix times a vector is up to 1.6 times as fast as a row times a matrix
        is_one = len(x) == 1
        product = torch._int_mm(self.weight, integers.T).T if is_one else torch._int_mm(integers, self.weight.T)
        out = product.float().mul_(scale[:, None]).mul_(self.scale)
        return out if self.bias is None else out.add_(self.bias)

    def few_tokens(self, x: Tensor) -> Tensor:
        """Only the int8 weights are read from memory, which takes most of the time here; inputs become bfloat16."""
        ones = torch.ones_like(self.scale, dtype=torch.bfloat16)
        product = torch._weight_int8pack_mm(x.flatten(0, -2).bfloat16(), self.weight, ones).float() * self.scale
        out = product if self.bias is None else product + self.bias
        return out.to(x.dtype).unflatten(0, x.shape[:-1])

    def dequantized(self, x: Tensor) -> Tensor:
        rows = max(1, DEQUANTIZE_CHUNK // self.in_features)
        biases = [None] * len(self.weight) if self.bias is None else self.bias.split(rows)
        chunks = zip(self.weight.split(rows), self.scale.split(rows), biases, strict=False)
        out = [self.forward_rows(x, *chunk) for chunk in chunks]
        return out[0] if len(out) == 1 else torch.cat(out, dim=-1)

    def forward_rows(self, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        product = F.linear(x, weight.to(x.dtype)) * scale.to(x.dtype)
        return product if bias is None else product + bias


def multiplies_int8(x: Tensor, weight: Tensor) -> bool:
    """Whether torch._int_mm is faster than a product of floats.

    On a CPU without AVX512-VNNI it is a plain loop; on CUDA it takes 17 rows or more, and widths divisible by 8.
    """
    if x.device.type == "cpu":
        return torch.cpu._is_vnni_supported()
    return (
        x.device.type == "cuda" and x.numel() >= FEWEST_ON_CUDA * x.shape[-1] and not any(n % 8 for n in weight.shape)
    )


class Int8Embedding(nn.Module):
    """nn.Embedding with an int8 weight.

    forward: ids b t -> b t e, in `dtype`
    """

    def __init__(self, embedding: nn.Embedding, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = embedding.weight.shape
        self.padding_idx = embedding.padding_idx
        self.weight, self.scale = empty_int8(embedding.weight)
        self.dtype = dtype

    def forward(self, ids: Tensor) -> Tensor:
        return (F.embedding(ids, self.weight) * self.scale[ids][..., None]).to(self.dtype)


def empty_int8(weight: Tensor) -> tuple[nn.Parameter, nn.Parameter]:
    """An uninitialised int8 weight and its scales, o i and o, neither of which gets a gradient."""
    integers = torch.empty_like(weight, dtype=torch.int8)
    scale = torch.empty(weight.shape[:1], dtype=torch.float32, device=weight.device)
    return nn.Parameter(integers, requires_grad=False), nn.Parameter(scale, requires_grad=False)


def convert_to_int8(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Replace the matrices of the blocks and of the LM head, and the word embeddings, by empty int8 ones, in place.

    For a model on the meta device, before loading. Norms, biases, positions and small heads stay in `dtype`; tied
    weights are tied again.
    """
    for parent in (model.base_model.layers, getattr(model, "lm_head", None)):
        for module in [] if parent is None else list(parent.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, Int8Linear(child))
    embeddings: Any = model.base_model.embeddings
    embeddings.word = Int8Embedding(embeddings.word, dtype)
    model.tie_weights()
    return model
