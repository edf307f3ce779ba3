"""What a step of training holds in memory, from moment to moment: notebooks/09_precision_and_size.ipynb."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..model import PreTrainedModel
from ..training.loop import adamw, compute_loss


class MemoryTimeline(TorchDispatchMode):
    """After each operation, the bytes of all storages made since the start and not freed yet; `known` do not count.

    gradients: those of the parameters' gradients, which are part of them.
    """

    def __init__(self, parameters: list[nn.Parameter], *known: Any) -> None:
        super().__init__()
        self.parameters, self.now = parameters, 0
        self.moments, self.gradients = list[int](), list[int]()
        tensors = [tensor for tensor in tree_leaves((parameters, known)) if isinstance(tensor, Tensor)]
        self.alive = {tensor.untyped_storage()._cdata for tensor in tensors}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.add(tensor.untyped_storage())
        self.moments.append(self.now)
        self.gradients.append(sum(p.grad.nbytes for p in self.parameters if p.grad is not None))
        return out

    def add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.alive:
            self.alive.add(key)
            self.now += size
            weakref.finalize(storage, self.free, key, size)

    def free(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.now -= size


def trace_step(model: PreTrainedModel, batch: dict[str, Tensor]) -> dict[str, Any]:
    """A step of AdamW, the second one: bytes of weights, optimizer, gradients and the rest after each operation.

    Also "turns": the moments when the backward pass and the optimizer's step start. The parameters are changed.
    """
    parameters, optimizer = list(model.parameters()), adamw(model.train(), 1e-5, 0.0)
    for group in optimizer.param_groups:
        group["foreach"] = True  # as on a GPU: all parameters at once
    for _ in range(2):
        optimizer.zero_grad()
        memory, turns = MemoryTimeline(parameters, batch, list(optimizer.state.values())), list[int]()
        with memory:
            loss = compute_loss(model, batch)
            turns.append(len(memory.moments))
            loss.backward()
            turns.append(len(memory.moments))
            optimizer.step()
    states = [tensor for state in optimizer.state.values() for tensor in state.values() if tensor.dim()]
    count = len(memory.moments)
    return {
        "weights": [sum(p.nbytes for p in parameters)] * count,
        "optimizer": [sum(tensor.nbytes for tensor in states)] * count,
        "gradients": memory.gradients,
        "activations and temporary": [m - g for m, g in zip(memory.moments, memory.gradients, strict=True)],
        "turns": turns,
    }
