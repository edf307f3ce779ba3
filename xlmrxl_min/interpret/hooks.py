"""Forward hooks that last for a `with` block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from ..model import PreTrainedModel


@contextmanager
def hooked(hooks: Iterable[tuple[nn.Module, Callable]], before: bool = False) -> Iterator[None]:
    """Register forward hooks, `(module, function)` each, and remove them afterwards; before: forward pre-hooks."""
    with ExitStack() as stack:
        for module, hook in hooks:
            register = module.register_forward_pre_hook if before else module.register_forward_hook
            stack.callback(register(hook).remove)
        yield


@contextmanager
def each_layer(model: PreTrainedModel, function: Callable[[Tensor], Any]) -> Iterator[list[Any]]:
    """Apply `function` to each layer's weights `b h q k` during calls with output_attentions=True; yield the results.

    The weights are dropped at once, so that only one layer's exist at a time; the output's attentions are None.
    """
    results: list[Any] = []

    def hook(block: nn.Module, args: tuple, output: tuple) -> tuple:
        hidden, weights, cross_weights = output
        if weights is None:
            raise ValueError("each_layer gets weights only in a call with output_attentions=True.")
        results.append(function(weights))
        return hidden, None, cross_weights

    with hooked((block, hook) for block in model.base_model.layers):
        yield results
