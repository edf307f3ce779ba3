"""The training loop: `fit`, for a model with any head. Walked through in notebooks/06_masked_language_model.ipynb.

A run can be stopped and resumed to the same result: all randomness comes from a seed and the number of the step or
epoch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..model import PreTrainedModel, XLMRobertaXLForCausalLM, XLMRobertaXLForMaskedLM, cross_entropy
from ..utils import atomic_write

Batch = Mapping[str, Tensor]  # the arguments of a model's forward, labels included
Batches = Sequence[Batch] | Callable[[int], Sequence[Batch]]  # of every epoch, or a function of the epoch
Transform = Callable[[Batch, torch.Generator], Batch]
LossFunction = Callable[[PreTrainedModel, Batch], Tensor]
STATE_FILE = "training_state.pt"


def fit(
    model: PreTrainedModel, batches: Batches, *, steps: int, learning_rate: float, warmup_steps: int = 0,
    decay_fraction: float = 1.0, weight_decay: float = 0.01, max_grad_norm: float = 1.0,
    gradient_accumulation_steps: int = 1, dtype: str = "float32", seed: int = 0, transform: Transform | None = None,
    loss_function: LossFunction | None = None, optimizers: Sequence[torch.optim.Optimizer] | None = None,
    folder: Path | None = None, minutes_between_saves: float = 5, metadata: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> list[dict[str, float]]:  # fmt: skip
    """Train `model` and return its history: step, loss, lr, grad_norm (before clipping) and seconds of every step.

    batches: one epoch, shuffled anew each time; or a function that returns the batches of epoch 0, 1, … in order.
    learning_rate: the peak of a warmup-stable-decay schedule: linear warm-up for `warmup_steps`, linear decay to 0 over
    the last `decay_fraction` of the steps.
    gradient_accumulation_steps: batches per step, weighted by their labels, as if they were one large batch.
    dtype: "float32", or "bfloat16" or "float16" for mixed precision (autocast; float16 with loss scaling, which skips
    a step that overflows).
    transform: applied to each batch when it is used, such as `dynamic_masking(tokenizer)`.
    loss_function: replaces `compute_loss`. optimizers: replace AdamW, with their peak learning rates set.
    folder: where to save the state, every `minutes_between_saves`; a state found there is resumed if its settings are
    the same.
    metadata: further settings to compare, such as a description of the data.

    loss is the mean per label, in nats; lr is that of the built-in AdamW. Parameters with requires_grad=False are not
    trained. The model ends in evaluation mode. Raises ValueError for impossible settings, for an epoch without
    batches, and for the saved state of a run with other settings.
    """
    settings = {"steps": steps, "learning_rate": learning_rate, "warmup_steps": warmup_steps, "dtype": dtype}
    settings |= {"decay_fraction": decay_fraction, "weight_decay": weight_decay, "max_grad_norm": max_grad_norm}
    settings |= {"gradient_accumulation_steps": gradient_accumulation_steps, "seed": seed, **(metadata or {})}
    if not (steps >= 1 and gradient_accumulation_steps >= 1 and learning_rate > 0 and 0 <= decay_fraction <= 1):
        raise ValueError(
            f"training is impossible with {settings}: steps, gradient_accumulation_steps and learning_rate must be "
            "above 0, decay_fraction from 0 to 1."
        )
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype={dtype!r} is unknown: take float32, bfloat16 or float16.")
    run = Run(model, optimizers or [adamw(model, learning_rate, weight_decay)], settings, loss_function or compute_loss)
    if folder is not None:
        run.resume(folder)
    model.train()
    last_save = time.monotonic()
    with tqdm(total=steps, initial=run.step, unit="step", disable=not progress, mininterval=1, delay=2) as bar:
        while run.step < steps:
            entry = run.train_step(run.next_batches(batches, transform))
            bar.update()
            bar.set_postfix(loss=f"{entry['loss']:.3f}", refresh=False)
            if folder is not None and (run.step == steps or time.monotonic() - last_save > 60 * minutes_between_saves):
                last_save = time.monotonic()
                run.save(folder)
    model.eval()
    return run.history


class Run:
    """The state of a training run: everything that must be saved to resume it."""

    def __init__(
        self, model: PreTrainedModel, optimizers: Sequence[torch.optim.Optimizer], settings: Mapping[str, Any],
        loss_function: LossFunction,
    ) -> None:  # fmt: skip
        self.model, self.optimizers, self.settings, self.loss_function = model, optimizers, settings, loss_function
        self.peak_lrs = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=settings["dtype"] == "float16")
        self.step = self.epoch = self.batches_done = 0  # batches of this epoch
        self.epoch_batches: Sequence[Batch] | None = None
        self.history: list[dict[str, float]] = []
        self.start = time.monotonic()

    def next_batches(self, batches: Batches, transform: Transform | None) -> list[Batch]:
        """Return the batches of the next step, and seed all randomness, dropout's too, by its number."""
        generator = torch.manual_seed(self.settings["seed"] * 1_000_003 + self.step)
        chosen: list[Batch] = []
        while len(chosen) < self.settings["gradient_accumulation_steps"]:
            if self.epoch_batches is None:
                self.epoch_batches = self.start_epoch(batches)
            if self.batches_done == len(self.epoch_batches):
                self.epoch, self.batches_done, self.epoch_batches = self.epoch + 1, 0, None
                continue
            batch = self.epoch_batches[self.batches_done]
            chosen.append(batch if transform is None else transform(batch, generator))
            self.batches_done += 1
        return chosen

    def start_epoch(self, batches: Batches) -> Sequence[Batch]:
        if callable(batches):
            ordered = batches(self.epoch)
        else:
            generator = torch.Generator().manual_seed(self.settings["seed"] * 1_000_003 + self.epoch)
            ordered = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
        if not ordered:
            raise ValueError(f"epoch {self.epoch} has no batches: give at least one.")
        return ordered

    def train_step(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Take one optimizer step. Without any label the loss is NaN and the model stays as it is."""
        settings, counts = self.settings, [count_labels(self.model, batch) for batch in batches]
        factor = lr_schedule(self.step, settings["steps"], settings["warmup_steps"], settings["decay_fraction"])
        loss = grad_norm = math.nan
        if any(counts):
            loss, dtype = 0.0, settings["dtype"]
            for batch, count in zip(batches, counts, strict=True):
                with torch.autocast(self.model.device.type, getattr(torch, dtype), enabled=dtype != "float32"):
                    part = self.loss_function(self.model, {k: x.to(self.model.device) for k, x in batch.items()})
                part = part * (count / sum(counts)) if count else part
                self.scaler.scale(part).backward()
                loss += part.item()
            for optimizer, peaks in zip(self.optimizers, self.peak_lrs, strict=True):
                self.scaler.unscale_(optimizer)
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["lr"] = peak * factor
            grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings["max_grad_norm"]).item()
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
            self.scaler.update()
            self.model.zero_grad()
        self.step += 1
        entry = {"step": self.step, "loss": loss, "lr": settings["learning_rate"] * factor, "grad_norm": grad_norm}
        self.history.append({**entry, "seconds": round(time.monotonic() - self.start, 3)})
        return self.history[-1]

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "position": (self.step, self.epoch, self.batches_done),
            "history": self.history,
            "settings": {**self.settings, **{name: str(value) for name, value in vars(self.model.config).items()}},
        }

    def save(self, folder: Path) -> None:
        with atomic_write(Path(folder) / STATE_FILE) as (draft,):
            torch.save(self.state(), draft)

    def resume(self, folder: Path) -> None:
        """Load the state in `folder`, if there is one. ValueError if it belongs to a run with other settings."""
        path = Path(folder) / STATE_FILE
        if not path.exists():
            return
        state, settings = torch.load(path, weights_only=True, map_location=self.model.device), self.state()["settings"]
        saved = state["settings"]
        different = [name for name in sorted({**settings, **saved}) if settings.get(name) != saved.get(name)]
        if different:
            remedy = f"choose another folder, or delete {STATE_FILE} there"
            raise ValueError(f"{folder} holds a run with other settings ({', '.join(different)}): {remedy}.")
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.scaler.load_state_dict(state["scaler"])
        (self.step, self.epoch, self.batches_done), self.history = state["position"], state["history"]
        self.start -= self.history[-1]["seconds"]  # the time before the interruption counts


def adamw(model: PreTrainedModel, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) with RoBERTa's betas and epsilon, and no decay of biases and norms.

    Raises ValueError if every parameter has requires_grad=False.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("no parameter of this model requires a gradient: there is nothing to train.")
    groups = [
        {"params": [parameter for parameter in trained if parameter.dim() >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), eps=1e-6)


def lr_schedule(step: int, steps: int, warmup_steps: int, decay_fraction: float) -> float:
    """The factor, 0 to 1, on the peak learning rate at `step`: linear warm-up, plateau, linear decay."""
    warmup = (step + 1) / max(1, warmup_steps)
    decay = (steps - step) / max(1, decay_fraction * steps)
    return min(1.0, warmup, decay)


def count_labels(model: PreTrainedModel, batch: Batch) -> int:
    """The number of labels that the loss of `batch` is a mean over: tokens, texts, or numbers."""
    if "labels" not in batch:
        return len(batch["start_positions"])
    labels = batch["labels"][:, 1:] if isinstance(model, XLMRobertaXLForCausalLM) else batch["labels"]
    return labels.numel() if labels.is_floating_point() else int((labels != -100).sum())


def compute_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The model's own loss, in language models with logits at the labelled positions only; 0 without a label.

    The logits `b t v` of all positions would be most of the memory and of the work. ValueError for labels that are not
    `b t`.
    """
    inputs: dict[str, Any] = dict(batch)
    if not isinstance(model, (XLMRobertaXLForMaskedLM, XLMRobertaXLForCausalLM)):
        return model(**inputs).loss
    labels = inputs.pop("labels")
    hidden = model.backbone(**inputs, use_cache=False).last_hidden_state
    if labels.shape != hidden.shape[:2]:
        raise ValueError(f"labels have shape {tuple(labels.shape)}, but must be {tuple(hidden.shape[:2])}.")
    if isinstance(model, XLMRobertaXLForCausalLM):  # each position predicts the label to its right
        hidden, labels = hidden[:, :-1], labels[:, 1:]
    labelled = labels != -100
    if not labelled.any():
        return hidden.sum() * 0
    return cross_entropy(model.lm_head(hidden[labelled]).float(), labels[labelled])
