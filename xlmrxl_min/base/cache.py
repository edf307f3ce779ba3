"""The KV cache of a decoder."""

from __future__ import annotations

import torch
from torch import Tensor


class LayerCache:
    """Keys and values of one attention layer, `b h k d` each, in memory that is allocated ahead."""

    def __init__(self) -> None:
        self.length = 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append `b h t d` each; return all so far, `b h k d` each."""
        self.keys, self.values = self.write(self.keys, key), self.write(self.values, value)
        self.length += key.shape[2]
        return self.read()

    def read(self) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        return self.keys.narrow(2, 0, self.length), self.values.narrow(2, 0, self.length)

    def write(self, old: Tensor | None, new: Tensor) -> Tensor:
        end = self.length + new.shape[2]
        if torch.is_grad_enabled():  # writing in place would change tensors saved for the backward pass
            return new if old is None else torch.cat([old[:, :, : self.length], new], dim=2)
        is_frozen = False  # made in inference mode, and not to be written to outside it
        if old is not None and not torch.compiler.is_compiling():  # the compiler does not support is_inference
            is_frozen = old.is_inference() and not torch.is_inference_mode_enabled()
        if old is None or is_frozen or end >= old.shape[2]:  # one position stays free
            # Doubling copies fewer than 2 n positions in n steps. The compiler would trace a full tensor anew.
            larger = new.new_empty(*new.shape[:2], max(end + 1, 2 * (self.length + 1), 64), new.shape[3])
            if old is not None:
                larger[:, :, : self.length] = old[:, :, : self.length]
            old = larger
        old.narrow(2, self.length, new.shape[2]).copy_(new)
        return old


class Cache:
    """The KV cache of a decoder: for every layer the keys and values of self-attention and of cross-attention."""

    def __init__(self, num_layers: int) -> None:
        self.layers = [LayerCache() for _ in range(num_layers)]
        self.cross = [LayerCache() for _ in range(num_layers)]
        self.num_valid_tokens: Tensor | int = 0  # b 1: tokens of each row that were not padding

    def get_seq_length(self) -> int:
        """Cached tokens per row, padding included."""
        return self.layers[0].length

    def reorder(self, rows: Tensor) -> None:
        """Keep the rows `b`, in this order and possibly several times, as beam search needs it."""
        for layer in (*self.layers, *self.cross):
            if layer.keys is not None and layer.values is not None:
                layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        if isinstance(self.num_valid_tokens, Tensor):
            self.num_valid_tokens = self.num_valid_tokens[rows]
