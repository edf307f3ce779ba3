"""Forward hooks that last for a `with` block."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from ..inference.predict import check_model_type
from ..inputs import check_type, shown
from ..model import Attention, PreTrainedModel

REGISTERING = threading.Lock()  # PyTorch numbers hooks without one: two threads could get the same number


@contextmanager
def hooked(hooks: Iterable[tuple[nn.Module, Callable]], before: bool = False) -> Iterator[None]:
    """Register forward hooks, `(module, function)` each, and remove them afterwards; before: forward pre-hooks.

    They act only on calls that this thread makes: others may use the model meanwhile.
    """
    thread = threading.get_ident()

    def in_this_thread(hook: Callable) -> Callable:
        return lambda *args: hook(*args) if threading.get_ident() == thread else None

    with ExitStack() as stack:
        for pair in hooks if isinstance(hooks, Iterable) else [hooks]:
            is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2
            if not is_pair or not isinstance(pair[0], nn.Module) or not callable(pair[1]):
                raise ValueError(f"got the hook {shown(pair)}, but it must be a pair of a module and a function.")
            module, hook = pair
            register = module.register_forward_pre_hook if before else module.register_forward_hook
            with REGISTERING:
                stack.callback(register(in_this_thread(hook)).remove)
        yield


@contextmanager
def each_layer(model: PreTrainedModel, function: Callable[[Tensor], Any]) -> Iterator[list[Any]]:
    """Apply `function` to each layer's weights `b h q k` during calls with output_attentions=True; yield the results.

    The weights are dropped at once, so that only one layer's exist at a time; the output's attentions are None.
    """
    check_model(model)
    check_type("function", function, Callable, "a function of weights `b h q k`")
    results: list[Any] = []

    def hook(block: nn.Module, args: tuple, output: tuple) -> tuple:
        hidden, weights, cross_weights = output
        if weights is None:
            raise ValueError("each_layer gets weights only in a call with output_attentions=True.")
        results.append(function(weights))
        return hidden, None, cross_weights

    with hooked((block, hook) for block in model.base_model.layers):
        yield results


def check_model(model: Any) -> None:
    """Raise ValueError unless `model` is one of this library's."""
    check_model_type(model, PreTrainedModel, "a model of this library, such as XLMRobertaXLForMaskedLM")


def self_attentions(model: PreTrainedModel) -> list[Attention]:
    return [x for x in model.base_model.layers.modules() if isinstance(x, Attention) and not x.is_cross]
