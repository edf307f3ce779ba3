"""`config.json` <-> XLMRobertaXLConfig."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from ..base import PreTrainedConfig
from ..files import atomic_write, to_path
from . import CheckpointError
from .locate import CONFIG_FILE, Location

Config = TypeVar("Config", bound=PreTrainedConfig)


def load_config(cls: type[Config], location: Location, **overrides: Any) -> Config:
    """Read `config.json` of a checkpoint, with `overrides` on top. Raises CheckpointError if it is another model's."""
    path = location.find(CONFIG_FILE)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        model_type = values.pop("model_type", None)
    except (ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} is not the JSON of a config ({error}): download it again.") from error
    if model_type != cls.model_type:
        remedy = f"this library loads only {cls.model_type!r}"
        raise CheckpointError(f"{path} is of model_type {model_type!r}, but {remedy}.")
    try:
        config = cls.from_dict(values)
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a valid config: {error}") from error
    return cls.from_dict(config.to_dict(), **overrides)


def load_generation_config(path: Path) -> SimpleNamespace:
    """The settings of `generate` in a `generation_config.json`."""
    try:
        return SimpleNamespace(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is not the JSON of a generation config ({error}): download it again.") from error


def save_config(config: PreTrainedConfig, folder: str | os.PathLike[str]) -> None:
    """Write `config.json` into `folder`, under Hugging Face's keys. Raises CheckpointError if it cannot be written."""
    try:
        with atomic_write(to_path(folder, "folder") / CONFIG_FILE) as (draft,):
            draft.write_text(config.to_json_string(), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(str(error)) from error
