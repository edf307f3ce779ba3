"""What every rank does for `torchrun … -m xlmrxl_min distributed fill` and `… distributed train`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from ..checkpoints.locate import locate
from ..inference.predict import Prediction, fill_mask
from ..inputs import check_integer
from ..model import PreTrainedModel, XLMRobertaXLForMaskedLM
from ..tokenizer import XLMRobertaTokenizer
from ..training.loop import adamw, lr_schedule
from ..training.masking import mask_tokens
from ..training.texts import udhr
from .mesh import init_mesh
from .parallel import call_unsharded, num_local_parameters
from .sharded_checkpoint import load, save
from .train import train_step


def fill(
    text: str, source: str | os.PathLike[str] = "tiny", *, tensor: int | None = None, dtype: str = "float32",
    timeout_s: float = 600,
) -> list[list[Prediction]]:  # fmt: skip
    """`fill_mask` for one text, on all ranks; each returns the same. Rank 0 prints how many parameters each rank has.

    tensor: ranks that shard each matrix; None: all. Raises what `init_mesh`, `load` and `fill_mask` raise.
    """
    with init_mesh(tensor, timeout_s=timeout_s) as mesh:
        model, tokenizer = load_all(source, mesh, dtype)
        return call_unsharded(model, fill_mask, tokenizer, text)


def train(
    source: str | os.PathLike[str] = "tiny", *, language: str = "pt", tensor: int | None = 1, dtype: str = "float32",
    steps: int = 10, batch_size: int = 8, learning_rate: float = 1e-3, folder: Path | None = None,
    timeout_s: float = 600,
) -> list[float]:  # fmt: skip
    """Masked language modelling of the Universal Declaration of Human Rights; return the losses. Rank 0 prints them.

    tensor: as in `fill`. batch_size: texts per step and rank along "data". learning_rate: of the first step; it falls
    linearly. folder: where to save model and tokenizer. Raises what `init_mesh`, `load` and `save` raise, and
    ValueError for steps and batch_size below 1, and if the texts are too few for a step.
    """
    check_integer("steps", steps)
    check_integer("batch_size", batch_size)
    texts, losses = [row.text for row in udhr(language)], []
    with init_mesh(tensor, timeout_s=timeout_s) as mesh:
        model, tokenizer = load_all(source, mesh, dtype)
        optimizer, is_printing = adamw(model, learning_rate, weight_decay=0.01), dist.get_rank() == 0
        ranks, rank = mesh["data"].size(), mesh["data"].get_local_rank()
        if len(texts) < batch_size * ranks:
            remedy = "take a smaller batch_size (--batch), or fewer ranks along data"
            raise ValueError(f"{len(texts)} texts are too few for {ranks} batches of {batch_size}: {remedy}.")
        model.train()
        for step in range(steps):
            order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(step)).tolist()
            batch = [texts[i] for i in order[rank * batch_size : (rank + 1) * batch_size]]
            generator = torch.manual_seed(step * ranks + rank)  # for dropout, too: the same within a tensor group
            encoding = tokenizer(batch, padding=True, truncation=True, max_length=128, return_tensors="pt")
            masked, labels = mask_tokens(encoding["input_ids"], 0.15, tokenizer, generator)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * lr_schedule(step, steps, warmup_steps=0, decay_fraction=1.0)
            losses.append(train_step(model, optimizer, {**encoding, "input_ids": masked, "labels": labels}, mesh))
            if is_printing:
                print(f"step {step + 1}: loss {losses[-1]:.4f}", flush=True)
        if folder is not None:
            save(model, folder)
            if is_printing:
                tokenizer.save_pretrained(folder)
                print(f"{folder}: saved")
    return losses


def load_all(
    source: str | os.PathLike[str], mesh: DeviceMesh, dtype: str
) -> tuple[PreTrainedModel, XLMRobertaTokenizer]:
    """Load model and tokenizer; rank 0 prints a line for each rank."""
    location: Any = locate(source)  # once for both
    model = load(XLMRobertaXLForMaskedLM, location, mesh, dtype=dtype)
    position = ", ".join(f"{name} {mesh[name].get_local_rank()}" for name in ("data", "tensor"))
    size = f"{num_local_parameters(model):,} of {sum(p.numel() for p in model.parameters()):,} parameters"
    lines = [""] * mesh.size()
    dist.all_gather_object(lines, f"rank {dist.get_rank()} ({position}) on {model.device}: {size}")
    if dist.get_rank() == 0:
        print(*lines, sep="\n", flush=True)
    return model, XLMRobertaTokenizer.from_pretrained(location)
