"""What `fit` takes as batches: those of an epoch in order, each checked before training with it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..base.input_checks import check_targets, match_shape
from ..base.loss import ModelWithLoss, infer_problem_type
from ..inputs import check_type
from ..model import (
    PreTrainedModel,
    XLMRobertaXLForMultipleChoice,
    XLMRobertaXLForQuestionAnswering,
    XLMRobertaXLForSequenceClassification,
    XLMRobertaXLForTokenClassification,
)

Batch = Mapping[str, Tensor]  # the arguments of a model's forward, labels included
Batches = Sequence[Batch] | DataLoader | Callable[[int], Iterable[Batch]]  # of every epoch, or a function of the epoch
EXAMPLE = '{"input_ids": …, "attention_mask": …, "labels": …}'


def check_batches(batches: Any) -> None:
    """Raise ValueError for what is no list, no DataLoader and no function of the epoch."""
    remedies = (
        (Mapping, "a single batch goes into a list, [batch]"),
        (Iterator, "one epoch would use it up, so pass a list, or a function of the epoch that makes it anew"),
        (Dataset, "pass a DataLoader of it, or a list of its batches"),
    )
    if isinstance(batches, str) or not (isinstance(batches, (Sequence, DataLoader)) or callable(batches)):
        remedy = next((remedy for kind, remedy in remedies if isinstance(batches, kind)), f"a batch is {EXAMPLE}")
        allowed = "a list of batches, a DataLoader, or a function of the epoch that returns its batches"
        raise ValueError(f"batches is of type {type(batches).__name__}, but must be {allowed}: {remedy}.")


def batches_of_epoch(batches: Batches, epoch: int, seed: int, at_most: int) -> Sequence[Batch]:
    """The batches of an epoch, in an order that only depends on `seed`. ValueError if there are none.

    A DataLoader, and a function of the epoch, find PyTorch's random generator seeded, and a DataLoader its own ones.
    Of what is not a sequence `at_most` batches are taken.
    """
    generator, found = torch.manual_seed(seed), cast(Any, batches)
    if isinstance(batches, Sequence):
        found = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
    elif not isinstance(batches, DataLoader):
        found = batches(epoch)
    if isinstance(found, (Mapping, str, Tensor)) or not isinstance(found, Iterable):
        kind = type(found).__name__
        raise ValueError(f"the batches of epoch {epoch} are of type {kind}, but must be a list of {EXAMPLE}.")
    if isinstance(found, DataLoader):
        for source in (found, found.sampler, found.batch_sampler, getattr(found.batch_sampler, "sampler", None)):
            if isinstance(own := getattr(source, "generator", None), torch.Generator):
                own.manual_seed(seed)
    ordered = found if isinstance(found, Sequence) else list(islice(found, at_most))
    if not len(ordered):
        raise ValueError(f"epoch {epoch} has no batches: give at least one.")
    return ordered


def check_batch(model: PreTrainedModel, batch: Any, name: str, *, own_loss: bool) -> None:
    """Raise ValueError, with the `name` of the batch, unless `model` can be trained on it.

    own_loss: with the model's own loss, which takes the arguments of `forward`, and labels that fit.
    """
    try:
        check_type("it", batch, Mapping, f"a dict of tensors, {EXAMPLE}")
        for key, value in batch.items():
            check_type(key, value, Tensor, 'a tensor: use torch.tensor, or tokenize with return_tensors="pt"')
        rows = {key: value.shape[:1] for key, value in batch.items()}
        if not rows or 0 in (size for shape in rows.values() for size in shape):
            raise ValueError("it is empty: leave it out.")
        if own_loss:
            check_labels(model, batch)
    except ValueError as error:
        raise ValueError(f"{name} cannot be trained on: {error}") from None


def check_labels(model: PreTrainedModel, batch: Batch) -> None:
    """Raise ValueError unless the batch holds arguments of `forward`, and labels that the model's loss can score."""
    assert isinstance(model, ModelWithLoss)
    kind, taken = type(model).__name__, inspect.signature(model.forward).parameters
    missing = [name for name in model.label_names if name not in batch]
    if missing:
        remedy = "make them with transform=dynamic_masking(tokenizer)" if kind.endswith("MaskedLM") else "add them"
        raise ValueError(f"it has no {' and no '.join(missing)}, from which {kind} learns: {remedy}.")
    unknown = [name for name in batch if name not in taken]
    if unknown:
        raise ValueError(f"{kind} does not take {', '.join(unknown)}: leave that out, or pass a loss_function.")
    given, config = batch["input_ids" if "inputs_embeds" not in batch else "inputs_embeds"], model.config
    if given.dim() < 2:
        raise ValueError(f"the input has shape {tuple(given.shape)}, but must be (batch, tokens).")
    shape: tuple[int, ...] = (*given.shape[:2], config.vocab_size)  # of the logits
    if isinstance(model, (XLMRobertaXLForMultipleChoice, XLMRobertaXLForQuestionAnswering)):
        shape = given.shape[:2]
    elif isinstance(model, XLMRobertaXLForSequenceClassification):
        shape = (len(given), config.num_labels)
    elif isinstance(model, XLMRobertaXLForTokenClassification):
        shape = (*given.shape[:2], config.num_labels)
    logits = torch.empty((), device="meta").expand(shape)
    for name, targets in zip(model.label_names, model.targets(**batch), strict=True):
        if targets.is_floating_point():
            problem = infer_problem_type(config, targets)
            match_shape(targets, logits, problem)
            low, high = (0, 1) if problem == "multi_label_classification" else (-math.inf, math.inf)
            if not bool((targets.isfinite() & (targets >= low) & (targets <= high)).all()):
                allowed = "numbers from 0 to 1" if high == 1 else "finite numbers"
                raise ValueError(f"{name} for {problem} must be {allowed}: leave out what has no label.")
        else:
            check_targets(name, targets, logits)
