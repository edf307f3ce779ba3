"""Checks of what `fit` is set to: ValueError with the value and what is allowed, in one sentence."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch

from ..base.loss import ModelWithLoss
from ..inputs import check_integer, check_number, check_option, check_type, shown
from ..model import PreTrainedModel


def check_settings(settings: Mapping[str, Any], metadata: Any = ()) -> dict[str, Any]:
    """The settings as Python's own numbers, which can be saved. ValueError for one that is impossible."""
    for name in ("steps", "gradient_accumulation_steps"):
        check_integer(name, settings[name])
    check_integer("warmup_steps", settings["warmup_steps"], 0)
    check_integer("seed", settings["seed"], -(2**40), 2**40)
    check_number("learning_rate", settings["learning_rate"], 0, above=True)
    check_number("max_grad_norm", settings["max_grad_norm"], 0, math.inf, above=True)
    check_number("weight_decay", settings["weight_decay"], 0)
    check_number("decay_fraction", settings["decay_fraction"], 0, 1)
    check_option("dtype", settings["dtype"], ("float32", "bfloat16", "float16"))
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
        check_type(name, function, Callable | None, "a function")
    is_list = isinstance(optimizers, Sequence) and len(optimizers) > 0
    if optimizers is not None and not (is_list and all(isinstance(x, torch.optim.Optimizer) for x in optimizers)):
        raise ValueError(f"optimizers={shown(optimizers)} is impossible: it must be a list of PyTorch's optimizers.")
    check_number("minutes_between_saves", minutes_between_saves, 0, math.inf)
