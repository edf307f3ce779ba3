"""Pre-training by a recipe, as the bundled checkpoints were made; see encoders.py and decoders.py.

Walked through in notebooks/06_masked_language_model.ipynb.
`python -m xlmrxl_min pretrain RECIPE --corpus CORPUS --into FOLDER`
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ..files import atomic_write, explain_errors, make_folder, to_path
from ..inputs import check_number, check_type
from ..model import PreTrainedModel, XLMRobertaXLConfig, XLMRobertaXLForCausalLM, XLMRobertaXLForMaskedLM
from ..tokenizer import XLMRobertaTokenizer
from .loop import STATE_FILE, Batch, fit
from .muon import Muon
from .settings import check_settings

RECIPE_FILE, RECORD_FILE = "recipe.json", "record.json"
FIT_DEFAULTS = {"gradient_accumulation_steps": 1, "weight_decay": 0.0, "max_grad_norm": 1.0}


@dataclass(kw_only=True)
class Recipe:
    """Everything that, with the corpus, determines the result of a pre-training run."""

    config: dict[str, Any]  # fields of XLMRobertaXLConfig
    steps: int
    learning_rate: float  # peak, of AdamW
    matrix_learning_rate: float  # peak, of Muon, for most matrices of the blocks
    matrix_weight_decay: float  # of Muon
    warmup_steps: int
    decay_fraction: float  # of the steps, at the end, over which the learning rates fall to 0
    dtype: str  # of the arithmetic: float32, or bfloat16 by autocast
    seed: int

    def __post_init__(self) -> None:
        for name in ("matrix_learning_rate", "matrix_weight_decay"):
            check_number(name, getattr(self, name), 0)
        check_settings({**FIT_DEFAULTS, **vars(self)})
        check_type("config", self.config, dict, "a dict of fields of XLMRobertaXLConfig")
        known = {field.name for field in fields(XLMRobertaXLConfig)} - {"vocab_size"}  # the vocabulary determines it
        if unknown := [name for name in self.config if name not in known]:
            raise ValueError(f"config has {', '.join(map(repr, unknown))}, but takes {', '.join(sorted(known))}.")
        XLMRobertaXLConfig(**self.config)  # ValueError if impossible

    def generator(self, epoch: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)

    def pretrain(self, corpus: Path, folder: Path, **options: Any) -> dict[str, Any]:
        raise NotImplementedError("take a recipe of encoders or of decoders.")


def pretrain(
    recipe: Recipe | str | os.PathLike[str], corpus: str | os.PathLike[str], folder: str | os.PathLike[str],
    **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Train by `recipe` (or its file); save checkpoint, vocabulary and record in `folder`; return the record.

    corpus: the folder that `python -m xlmrxl_min corpus` made. options: minutes_between_saves and progress, as in
    `fit`. After an interruption, the same call resumes, to the same result.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    corpus, folder = to_path(corpus, "folder"), to_path(folder, "folder")
    with explain_errors(folder):  # before the training
        make_folder(folder)
    return recipe.pretrain(corpus, folder, **options)


def load_recipe(file: str | os.PathLike[str]) -> Recipe:
    """Read a recipe.json: a DecoderRecipe if its config has is_decoder.

    ValueError for missing and unknown fields, for impossible ones, and for what is no JSON.
    """
    from .decoders import DecoderRecipe  # these import this file
    from .encoders import EncoderRecipe

    path = to_path(file)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"it holds a {type(values).__name__}, but must hold a dict of fields")
        config = values.get("config")
        kind = DecoderRecipe if isinstance(config, dict) and config.get("is_decoder") else EncoderRecipe
        missing = [field.name for field in fields(kind) if field.default is MISSING and field.name not in values]
        unknown = [name for name in values if name not in {field.name for field in fields(kind)}]
        for what, names in (("lacks", missing), ("has unknown fields:", unknown)):
            if names:
                raise ValueError(f"it {what} {', '.join(names)}")
        return kind(**values)
    except ValueError as error:  # of JSON, too
        raise ValueError(f"{file} is no recipe: {str(error).rstrip('.')}.") from error


# ---- what all recipes have in common


def train(
    recipe: Recipe, model: XLMRobertaXLForMaskedLM | XLMRobertaXLForCausalLM, tokenizer: XLMRobertaTokenizer,
    batches: Callable[[int], Sequence[Batch]], folder: Path, **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Run `fit` by `recipe`, then save the checkpoint (float16), the vocabulary, recipe and record in `folder`.

    options: those of `fit`. `python -m xlmrxl_min evaluate` adds to the record what the checkpoint knows.
    """
    history = fit(
        model, batches, steps=recipe.steps, learning_rate=recipe.learning_rate, warmup_steps=recipe.warmup_steps,
        decay_fraction=recipe.decay_fraction, weight_decay=0.0, dtype=recipe.dtype, seed=recipe.seed,
        optimizers=make_optimizers(model, recipe), metadata=asdict(recipe), folder=folder, **options,
    )  # fmt: skip
    model.to(torch.float16).save_pretrained(folder)
    tokenizer.model_max_length = model.config.max_seq_len
    tokenizer.save_pretrained(folder)
    version = torch.__version__.partition("+")[0]
    record = {
        "made_by": f"python -m xlmrxl_min pretrain RECIPE --corpus CORPUS --into FOLDER (torch {version})",
        "hours": round(history[-1]["seconds"] / 3600, 2),
        "parameters": sum(p.numel() for p in model.parameters()),
        "history": running_mean(history, every=250),
    }
    for name, values in ((RECIPE_FILE, asdict(recipe)), (RECORD_FILE, record)):
        with atomic_write(folder / name) as (draft,):
            draft.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    (folder / STATE_FILE).unlink(missing_ok=True)
    return record


def make_optimizers(model: PreTrainedModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for most matrices of the blocks: it needs fewer steps.

    Query, key and distance matrices stay with AdamW. With Muon attention collapsed to a single token, or, with weight
    decay, became uniform.
    """
    by_adamw = ("query.weight", "key.weight", "distance.weight")
    blocks = model.backbone.layers.named_parameters()
    matrices = [p for name, p in blocks if p.dim() == 2 and not name.endswith(by_adamw)]
    in_muon = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in in_muon]
    return [
        torch.optim.AdamW(others, lr=recipe.learning_rate, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0),
        Muon(matrices, lr=recipe.matrix_learning_rate, weight_decay=recipe.matrix_weight_decay),
    ]


def running_mean(history: Sequence[Mapping[str, float]], every: int) -> list[dict[str, float]]:
    """The exponential moving average of the loss (new values weigh 1%), once in `every` steps."""
    kept, average = [], math.nan
    for entry in history:
        if not math.isnan(entry["loss"]):
            average = entry["loss"] if math.isnan(average) else 0.99 * average + 0.01 * entry["loss"]
        if entry["step"] % every == 0:
            kept.append({"step": entry["step"], "loss": round(average, 4)})
    return kept
