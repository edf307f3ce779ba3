"""Pre-train a model from a recipe file, as the bundled checkpoints were: `python -m xlmrxl_min pretrain RECIPE`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .decoders import DecoderRecipe, pretrain_decoder
from .encoders import EncoderRecipe, pretrain_encoder
from .recipes import RECORD_FILE


def load_recipe(file: str | os.PathLike[str]) -> EncoderRecipe | DecoderRecipe:
    """Read a recipe.json. ValueError for fields that are missing or unknown."""
    fields = json.loads(Path(file).read_text(encoding="utf-8"))
    kind = DecoderRecipe if fields.get("config", {}).get("is_decoder") else EncoderRecipe
    try:
        return kind(**fields)
    except TypeError as error:
        raise ValueError(f"{file} is no recipe: {str(error).partition(' ')[2]}.") from error


def pretrain(
    recipe: EncoderRecipe | DecoderRecipe | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    minutes_between_saves: float = 5,
    progress: bool = True,
) -> dict[str, Any]:
    """Train by `recipe` (or its file); save checkpoint, vocabulary and record in `folder`; return the record.

    If a run was interrupted, call this again with the same folder: it resumes, to the same result.
    """
    if not isinstance(recipe, (EncoderRecipe, DecoderRecipe)):
        recipe = load_recipe(recipe)
    settings: Any = {"minutes_between_saves": minutes_between_saves, "progress": progress}
    if isinstance(recipe, DecoderRecipe):
        pretrain_decoder(recipe, Path(folder), **settings)
    else:
        pretrain_encoder(recipe, Path(folder), **settings)
    return json.loads((Path(folder) / RECORD_FILE).read_text(encoding="utf-8"))
