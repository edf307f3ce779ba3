"""Checks of what `fit` is set to: ValueError with the value and what is allowed, in one sentence."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch

from ..base.loss import ModelWithLoss
from ..inputs import shown
from ..model import PreTrainedModel


def is_integer(value: Any, low: float = -math.inf) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= low


def is_number(value: Any, low: float, high: float = math.inf) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and low <= float(value) <= high


LEAST, MOST = 5e-324, 1.7e308  # the smallest number above 0, and one that is not infinite
# Names of settings; whether a value is possible; what is allowed.
SETTING_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("steps gradient_accumulation_steps", lambda x: is_integer(x, 1), "an integer, 1 or more"),
    ("warmup_steps", lambda x: is_integer(x, 0), "an integer, 0 or more"),
    ("seed", lambda x: is_integer(x) and abs(x) < 2**40, "an integer below 2 ** 40"),
    ("learning_rate", lambda x: is_number(x, LEAST, MOST), "a number above 0"),
    ("max_grad_norm", lambda x: is_number(x, LEAST), "a number above 0"),
    ("weight_decay", lambda x: is_number(x, 0, MOST), "a number, 0 or more"),
    ("decay_fraction", lambda x: is_number(x, 0, 1), "a number from 0 to 1"),
    ("dtype", lambda x: isinstance(x, str) and x in ("float32", "bfloat16", "float16"), "float32, bfloat16 or float16"),
)


def check_settings(settings: Mapping[str, Any], metadata: Any = ()) -> dict[str, Any]:
    """The settings as Python's own numbers, which can be saved. ValueError for one that is impossible."""
    for names, is_possible, allowed in SETTING_RULES:
        for name in names.split():
            if not is_possible(settings[name]):
                raise ValueError(f"{name}={shown(settings[name])} is impossible: it must be {allowed}.")
    try:
        json.dumps(dict(metadata))
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata must be a dict of numbers, texts, lists and dicts: {error}.") from None
    return {
        name: int(x) if isinstance(x, Integral) else float(x) if isinstance(x, Real) else x
        for name, x in settings.items()
    }


def check_arguments(
    model: Any, optimizers: Any, transform: Any, loss_function: Any, minutes_between_saves: Any
) -> None:
    """Raise ValueError, in one sentence, for what `fit` cannot use."""
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    if not isinstance(model, PreTrainedModel) or model.device.type == "meta":
        what = "has no weights" if isinstance(model, PreTrainedModel) else f"is of type {type(model).__name__}"
        raise ValueError(f"model {what}, but must be a model of this package: build one, or use from_pretrained.")
    if loss_function is None and not isinstance(model, ModelWithLoss):
        remedy = "take a model with a head, or pass a loss_function"
        raise ValueError(f"{type(model).__name__} has no loss of its own: {remedy}.")
    for name, function in (("transform", transform), ("loss_function", loss_function)):
        if function is not None and not callable(function):
            raise ValueError(f"{name} is of type {type(function).__name__}, but must be a function.")
    is_list = isinstance(optimizers, Sequence) and len(optimizers) > 0
    if optimizers is not None and not (is_list and all(isinstance(x, torch.optim.Optimizer) for x in optimizers)):
        raise ValueError(f"optimizers={shown(optimizers)} is impossible: it must be a list of PyTorch's optimizers.")
    if not is_number(minutes_between_saves, 0):
        raise ValueError(f"minutes_between_saves={shown(minutes_between_saves)} is impossible: it must be 0 or more.")
