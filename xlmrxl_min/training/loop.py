"""The training loop: `fit`, for a model with any head. Walked through in notebooks/06_masked_language_model.ipynb.

A run can be stopped and resumed to the same result: all randomness comes from a seed and the number of the step or
epoch.
"""

from __future__ import annotations

import math
import os
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..files import atomic_write, to_path
from ..model import PreTrainedModel, XLMRobertaXLForCausalLM, XLMRobertaXLForMaskedLM
from .epochs import Batch, Batches, batches_of_epoch, check_batch, check_batches
from .settings import check_arguments, check_settings

Transform = Callable[[Batch, torch.Generator], Batch]
LossFunction = Callable[[PreTrainedModel, Batch], Tensor]
STATE_FILE = "training_state.pt"


def fit(
    model: PreTrainedModel, batches: Batches, *, steps: int, learning_rate: float, warmup_steps: int = 0,
    decay_fraction: float = 1.0, weight_decay: float = 0.01, max_grad_norm: float = 1.0,
    gradient_accumulation_steps: int = 1, dtype: str = "float32", seed: int = 0, transform: Transform | None = None,
    loss_function: LossFunction | None = None, optimizers: Sequence[torch.optim.Optimizer] | None = None,
    folder: str | os.PathLike[str] | None = None, minutes_between_saves: float = 5,
    metadata: Mapping[str, Any] | None = None, progress: bool = True,
) -> list[dict[str, float]]:  # fmt: skip
    """Train `model` and return its history: step, loss, lr, grad_norm (before clipping) and seconds of every step.

    batches: a list of one epoch's, shuffled anew each time; a DataLoader, whose randomness must be PyTorch's to resume
    exactly; or a function that returns, or yields, the batches of epoch 0, 1, … in order. A batch holds tensors.
    learning_rate: the peak of a warmup-stable-decay schedule: linear warm-up for `warmup_steps`, linear decay to 0 over
    the last `decay_fraction` of the steps.
    gradient_accumulation_steps: batches per step, weighted by the labels that their losses are means over, as if they
    were one large batch.
    dtype: "float32", or "bfloat16" or "float16" for mixed precision (autocast; float16 with loss scaling, which skips
    a step that overflows).
    transform: applied to each batch when it is used, such as `dynamic_masking(tokenizer)`.
    loss_function: replaces `compute_loss`. Its mean must be over the batch's labels (`model.targets` says which count)
    or, in a batch without labels of that form, over its rows: so it is weighted.
    optimizers: replace AdamW, with their peak learning rates set.
    folder: where to save the state, every `minutes_between_saves`; a state found there is resumed if its settings are
    the same.
    metadata: further settings to compare, such as a description of the data.

    loss is the mean per label, in nats; lr is that of the built-in AdamW. A step without any label has loss and
    grad_norm NaN, and leaves the model as it is. Parameters with requires_grad=False are not trained. The model ends in
    evaluation mode. Raises ValueError for impossible settings and batches, and for the saved state of another run.
    """
    settings: dict[str, Any] = {"steps": steps, "learning_rate": learning_rate, "warmup_steps": warmup_steps}
    settings |= {"decay_fraction": decay_fraction, "weight_decay": weight_decay, "max_grad_norm": max_grad_norm}
    settings |= {"gradient_accumulation_steps": gradient_accumulation_steps, "dtype": dtype, "seed": seed}
    metadata = {} if metadata is None else metadata
    settings = check_settings(settings, metadata) | dict(metadata)
    check_arguments(model, optimizers, transform, loss_function, minutes_between_saves)
    check_batches(batches)
    run = Run(
        model,
        optimizers or [adamw(model, settings["learning_rate"], settings["weight_decay"])],
        settings,
        loss_function,
    )
    path = None if folder is None else to_path(folder, "folder")
    if path is not None:
        run.resume(path)
    model.train()
    last_save = time.monotonic()
    try:
        with tqdm(total=steps, initial=run.step, unit="step", disable=not progress, mininterval=1, delay=2) as bar:
            while run.step < steps:
                entry = run.train_step(run.next_batches(batches, transform))
                bar.update()
                bar.set_postfix(loss=f"{entry['loss']:.3f}", refresh=False)
                is_due = time.monotonic() - last_save > 60 * minutes_between_saves
                if path is not None and (run.step == steps or is_due):
                    last_save = time.monotonic()
                    run.save(path)
    finally:
        model.eval()
    return run.history


class Run:
    """The state of a training run: everything that must be saved to resume it."""

    def __init__(
        self, model: PreTrainedModel, optimizers: Sequence[torch.optim.Optimizer], settings: Mapping[str, Any],
        loss_function: LossFunction | None,
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
        chosen: list[Batch] = []
        seed, wanted = self.settings["seed"] * 1_000_003, self.settings["gradient_accumulation_steps"]
        while len(chosen) < wanted:
            if self.epoch_batches is None:
                at_most = self.settings["steps"] * wanted
                self.epoch_batches = batches_of_epoch(batches, self.epoch, seed + self.epoch, at_most)
                for i, batch in enumerate(self.epoch_batches if transform is None else ()):
                    self.check(batch, f"batch {i} of epoch {self.epoch}")
            if self.batches_done >= len(self.epoch_batches):
                self.epoch, self.batches_done, self.epoch_batches = self.epoch + 1, 0, None
                continue
            chosen.append(self.epoch_batches[self.batches_done])
            self.batches_done += 1
        generator = torch.manual_seed(seed + self.step)
        if transform is None:
            return chosen
        transformed = [transform(batch, generator) for batch in chosen]
        for batch in transformed:
            self.check(batch, f"what transform returned in step {self.step + 1}")
        return transformed

    def check(self, batch: Any, name: str) -> None:
        model = getattr(self.model, "_orig_mod", self.model)  # what torch.compile wraps
        check_batch(model, batch, name, own_loss=self.loss_function is None)

    def train_step(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Take one optimizer step. Without any label the loss is NaN and the model stays as it is."""
        settings, weights = self.settings, label_weights(torch.stack([count_labels(self.model, x) for x in batches]))
        factor = lr_schedule(self.step, settings["steps"], settings["warmup_steps"], settings["decay_fraction"])
        loss = grad_norm = math.nan
        if any(map(any, weights)):
            loss, dtype = 0.0, settings["dtype"]
            self.zero_grad()  # there may be gradients of the user's own
            for batch, its_weights in zip(batches, weights, strict=True):
                if any(its_weights):
                    with torch.autocast(self.model.device.type, getattr(torch, dtype), enabled=dtype != "float32"):
                        part = self.loss({k: x.to(self.model.device) for k, x in batch.items()}, its_weights)
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
            self.zero_grad()
        self.step += 1
        entry = {"step": self.step, "loss": loss, "lr": settings["learning_rate"] * factor, "grad_norm": grad_norm}
        self.history.append({**entry, "seconds": round(time.monotonic() - self.start, 3)})
        return self.history[-1]

    def loss(self, batch: Batch, weights: Sequence[float]) -> Tensor:
        if self.loss_function is None:
            return compute_loss(self.model, batch, weights)
        loss = self.loss_function(self.model, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            what += " without a gradient" if isinstance(loss, Tensor) and not loss.requires_grad else ""
            needed = "a tensor with one number, computed by the model"
            raise ValueError(f"loss_function returned {what}, but must return {needed}.")
        return loss.sum() * sum(weights)

    def zero_grad(self) -> None:
        self.model.zero_grad()
        for optimizer in self.optimizers:  # which may have parameters outside the model
            optimizer.zero_grad()

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
        with atomic_write(folder / STATE_FILE) as (draft,), open(draft, "wb") as file:
            torch.save(self.state(), file)  # into a path, it would keep the draft's name

    def resume(self, folder: Path) -> None:
        """Load the state in `folder`, if there is one. ValueError if it is damaged, or belongs to another run."""
        path, remedy = folder / STATE_FILE, f"choose another folder, or delete {STATE_FILE} there"
        if not path.exists():
            return
        own, damage = self.state(), (RuntimeError, EOFError, pickle.UnpicklingError, LookupError, TypeError)
        try:
            if not path.is_file():  # a pipe would never end
                raise TypeError("no regular file")
            state = torch.load(path, weights_only=True, map_location=self.model.device)
            saved, settings = state["settings"], own["settings"]
            different = [name for name in sorted({**settings, **saved}) if settings.get(name) != saved.get(name)]
            sizes, own_sizes = sizes_of(state), sizes_of(own)
            (step, epoch, done), history, scaler = state["position"], state["history"], state["scaler"]
            seconds = history[-1]["seconds"]
        except (*damage, AttributeError, ValueError, OSError) as error:
            raise ValueError(f"{path} is damaged, or no state of a training run: {remedy}.") from error
        if different:
            raise ValueError(f"{folder} holds a run with other settings ({', '.join(different)}): {remedy}.")
        if sizes != own_sizes:
            raise ValueError(f"{folder} holds a run of another model, or with other optimizers: {remedy}.")
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.scaler.load_state_dict(scaler)
        self.step, self.epoch, self.batches_done, self.history = step, epoch, done, history
        self.start -= seconds  # the time before the interruption counts


def sizes_of(state: Mapping[str, Any]) -> Any:
    """Of a run's state: what must be equal to load it."""
    groups = [[len(group["params"]) for group in optimizer["param_groups"]] for optimizer in state["optimizers"]]
    return {name: tuple(values.shape) for name, values in state["model"].items()}, groups


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


def count_labels(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The number of labels, tokens or texts or numbers, that each term of the loss of `batch` is a mean over.

    For a loss_function: where the batch has no labels that the model's own loss could score, the rows.
    """
    try:
        targets = model.targets(**batch)  # type: ignore[operator]
    except (AttributeError, LookupError, TypeError, ValueError):
        return torch.tensor([len(next(iter(batch.values())))] * len(getattr(model, "label_names", ["rows"])))
    return torch.tensor([x.numel() if x.is_floating_point() else int((x != -100).sum()) for x in targets])


def label_weights(counts: Tensor) -> list[list[float]]:
    """What to multiply the mean losses of several batches by, for each of their terms, to add up to one large batch's.

    counts: `count_labels` of each batch. That loss is the mean over the terms; those without any label are left out.
    """
    totals = counts.double().sum(0)
    return (counts / totals.clamp(min=1) / (totals > 0).sum().clamp(min=1)).tolist()


def compute_loss(model: Any, batch: Batch, weights: Sequence[float] | None = None) -> Tensor:
    """The model's own loss, in language models with logits at the labelled positions only; 0 without a label.

    The logits `b t v` of all positions would be most of the memory and of the work. weights: `label_weights` of this
    batch among others. ValueError for labels that the model cannot score.
    """
    weights = label_weights(count_labels(model, batch)[None])[0] if weights is None else weights
    targets = model.targets(**batch)
    inputs: dict[str, Any] = {name: values for name, values in batch.items() if name not in model.label_names}
    if not isinstance(model, (XLMRobertaXLForMaskedLM, XLMRobertaXLForCausalLM)):
        out = model(**inputs)
        logits = [out[name] for name in ("logits", "start_logits", "end_logits") if name in out]
        return model.loss(logits, targets, weights)
    hidden, [labels] = model.backbone(**inputs, use_cache=False).last_hidden_state, targets
    if labels.shape != hidden.shape[:2]:
        raise ValueError(f"labels have shape {tuple(labels.shape)}, but must be {tuple(hidden.shape[:2])}.")
    labelled = labels != -100
    labelled[0, 0] |= ~labelled.any()  # without a label any position: on several ranks each has to use the head
    return model.loss([model.lm_head(hidden[labelled]).float()], [labels[labelled]], weights)
