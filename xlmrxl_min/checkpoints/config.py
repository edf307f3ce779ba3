"""`config.json` <-> XLMRobertaXLConfig."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from typing import Any

from ..files import atomic_write, to_path
from ..model import XLMRobertaXLConfig
from . import CheckpointError
from .locate import CONFIG_FILE, Location

MODEL_TYPE = "xlm-roberta-xl"
CONFIG_FIELDS = tuple(field.name for field in fields(XLMRobertaXLConfig) if field.name != "extra")


def load_config(cls: type[XLMRobertaXLConfig], location: Location, **overrides: Any) -> XLMRobertaXLConfig:
    """Read `config.json` of a checkpoint, with `overrides` on top. Raises CheckpointError if it is another model's."""
    path = location.find(CONFIG_FILE)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        model_type = values.pop("model_type", None)
    except (ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} is not the JSON of a config ({error}): download it again.") from error
    if model_type != MODEL_TYPE:
        raise CheckpointError(f"{path} is of model_type {model_type!r}, but this library loads only {MODEL_TYPE!r}.")
    try:
        config = build_config(cls, values, {})
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a valid config: {error}") from error
    return build_config(cls, config_dict(config), overrides)


def build_config(
    cls: type[XLMRobertaXLConfig], values: dict[str, Any], overrides: dict[str, Any]
) -> XLMRobertaXLConfig:
    """Build a config from the keys of a `config.json`, with `overrides` on top; unknown keys go to `extra`."""
    unknown = sorted(set(overrides) - set(CONFIG_FIELDS))
    if unknown:
        raise ValueError(f"got {', '.join(unknown)}, which is neither an argument nor a field of the config.")
    labels = overrides.get("num_labels")
    is_new = "id2label" in overrides or (
        labels is not None and labels != len(values.get("id2label") or range(2))
    )  # 2 by default
    stale = ("num_labels", "id2label", "label2id") if is_new else ()
    values = {**{name: value for name, value in values.items() if name not in stale}, **overrides}
    extra = {name: values.pop(name) for name in list(values) if name not in CONFIG_FIELDS}
    return cls(**values, extra=extra)


def config_dict(config: XLMRobertaXLConfig) -> dict[str, Any]:
    """The keys and values of the config's `config.json`, `extra` included."""
    return {**config.extra, **{name: getattr(config, name) for name in CONFIG_FIELDS}}


def save_config(config: XLMRobertaXLConfig, folder: str | os.PathLike[str]) -> None:
    """Write `config.json` into `folder`, under Hugging Face's keys. Raises CheckpointError if it cannot be written."""
    try:
        with atomic_write(to_path(folder, "folder") / CONFIG_FILE) as (draft,):
            draft.write_text(config_to_json(config), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(str(error)) from error


def config_to_json(config: XLMRobertaXLConfig, **more: Any) -> str:
    if callable(config.hidden_act):
        raise ValueError(
            "hidden_act is a function, which JSON cannot hold: name one of the built-in activations instead."
        )
    return json.dumps({**config_dict(config), "model_type": MODEL_TYPE, **more}, indent=2) + "\n"
