"""What the recipes of all bundled checkpoints have in common: their fields, the optimizers, and what a run saves."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..model import PreTrainedModel, XLMRobertaXLForCausalLM, XLMRobertaXLForMaskedLM
from ..tokenizer import XLMRobertaTokenizer
from ..utils import atomic_write
from .loop import STATE_FILE, Batch, LossFunction, Transform, fit

RECORD_FILE = "record.json"
LanguageModel = XLMRobertaXLForMaskedLM | XLMRobertaXLForCausalLM


@dataclass(kw_only=True)
class Recipe:
    """Everything that determines the result of a pre-training run."""

    languages: list[str]
    vocabulary: str  # a name or folder for XLMRobertaTokenizer.from_pretrained
    config: dict[str, Any]  # fields of XLMRobertaXLConfig
    held_out_article: int  # not trained on
    steps: int
    tokens_per_batch: int  # padding included
    learning_rate: float  # peak, of AdamW
    matrix_learning_rate: float  # peak, of Muon, for most matrices of the blocks; 0: AdamW for all parameters
    matrix_weight_decay: float  # of Muon
    warmup_steps: int
    decay_fraction: float  # of the steps, at the end, over which the learning rates fall to 0
    dtype: str  # of the arithmetic: float32, or bfloat16 by autocast
    seed: int

    def generator(self, epoch: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed_of_epoch(epoch))

    def seed_of_epoch(self, epoch: int) -> int:
        return self.seed * 1_000_003 + epoch


def train(
    recipe: Recipe,
    model: LanguageModel,
    tokenizer: XLMRobertaTokenizer,
    batches: Callable[[int], Sequence[Batch]],
    evaluate: Callable[[Any], Mapping[str, Any]],
    folder: Path,
    *,
    transform: Transform,
    loss_function: LossFunction | None = None,
    minutes_between_saves: float,
    progress: bool,
) -> None:
    """Run `fit` by `recipe`, then save the checkpoint (float16), the vocabulary and the record in `folder`.

    The record holds the metrics that `evaluate` returns for the saved checkpoint. A state in `folder` is resumed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    history = fit(
        model, batches, steps=recipe.steps, learning_rate=recipe.learning_rate, warmup_steps=recipe.warmup_steps,
        decay_fraction=recipe.decay_fraction, weight_decay=0.0, dtype=recipe.dtype, seed=recipe.seed,
        optimizers=make_optimizers(model, recipe), metadata=asdict(recipe), transform=transform,
        loss_function=loss_function, folder=folder, minutes_between_saves=minutes_between_saves, progress=progress,
    )  # fmt: skip
    model.to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    saved = type(model).from_pretrained(folder)
    record = {
        "made_by": f"python -m xlmrxl_min pretrain RECIPE --into FOLDER (torch {torch.__version__.split('+')[0]})",
        "hours": round(history[-1]["seconds"] / 3600, 2),
        "parameters": sum(p.numel() for p in saved.parameters()),
        **evaluate(saved),
        "history": running_mean(history, every=250),
    }
    with atomic_write(folder / RECORD_FILE) as (draft,):
        draft.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (folder / STATE_FILE).unlink(missing_ok=True)


def make_optimizers(model: PreTrainedModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon (Jordan 2024) for most matrices of the blocks if the recipe asks for it: it needs fewer steps.

    Query, key and distance matrices stay with AdamW. With Muon attention collapsed to a single token, or, with weight
    decay, became uniform.
    """
    by_adamw = ("query.weight", "key.weight", "distance.weight")
    blocks = model.backbone.layers.named_parameters() if recipe.matrix_learning_rate else ()
    matrices = [p for name, p in blocks if p.dim() == 2 and not name.endswith(by_adamw)]
    in_muon = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in in_muon]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=recipe.learning_rate, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0)
    ]
    if matrices:
        muon = torch.optim.Muon(matrices, lr=recipe.matrix_learning_rate, weight_decay=recipe.matrix_weight_decay)
        optimizers.append(muon)
    return optimizers


def running_mean(history: Sequence[Mapping[str, float]], every: int) -> list[dict[str, float]]:
    """The exponential moving average of the loss (new values weigh 1%), once in `every` steps."""
    kept, average = [], math.nan
    for entry in history:
        if not math.isnan(entry["loss"]):
            average = entry["loss"] if math.isnan(average) else 0.99 * average + 0.01 * entry["loss"]
        if entry["step"] % every == 0:
            kept.append({"step": entry["step"], "loss": round(average, 4)})
    return kept
