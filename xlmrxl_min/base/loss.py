"""What a loss scores, and how the losses of several batches add up to that of one large batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from . import input_checks
from .config import PreTrainedConfig
from .output import ModelOutput
from .pretrained_model import PreTrainedModel


class ModelWithLoss(PreTrainedModel):
    """A model with a loss: the mean over its terms (question answering has two) of each one's mean over its targets."""

    label_names: ClassVar[tuple[str, ...]] = ("labels",)  # arguments of forward, one for each term

    if TYPE_CHECKING:

        def mean_loss(self, logits: Tensor, targets: Tensor, name: str = "labels") -> Tensor:
            """Of one term."""
            raise NotImplementedError

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether transformers' Trainer passes num_items_in_batch: as to Hugging Face's causal language model."""
        return "num_items_in_batch" in signature(self.forward).parameters

    def targets(self, **inputs: Any) -> list[Tensor]:
        """What each term scores, from the arguments of `forward`: classes, -100 for none, or floats, which all count.

        Raises ValueError for labels that are not a tensor of integers.
        """
        return [input_checks.as_classes(name, inputs[name]) for name in self.label_names]

    def loss(self, logits: Iterable[Tensor], targets: Iterable[Tensor], weights: Sequence[float] = ()) -> Tensor:
        """The mean over the terms, or their sum with other `weights`. A term of weight 0 may be without targets."""
        count = len(self.label_names)
        terms = zip(self.label_names, logits, targets, weights or [1 / count] * count, strict=True)
        return torch.stack([w * self.mean_loss(x, y, name) if w else 0 * x.sum() for name, x, y, w in terms]).sum()

    def add_loss(
        self, out: ModelOutput, logits: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None, **inputs: Any
    ) -> ModelOutput:
        """The backbone's output with logits in place of its last hidden state, and, given labels, the loss.

        num_items_in_batch: what the sum of the losses is divided by, instead of the number of targets.
        """
        if any(inputs[name] is None for name in self.label_names):
            return out.with_logits(None, **logits)
        targets = self.targets(**inputs)
        loss = self.loss(logits.values(), targets)
        if num_items_in_batch is not None:
            count = (targets[0] != -100).sum()
            loss = loss.masked_fill(count == 0, 0.0) * count / num_items_in_batch  # a mean over nothing is NaN
        return out.with_logits(loss, **logits)


def infer_problem_type(config: PreTrainedConfig, labels: Tensor) -> str:
    """The config's problem_type; without one, by num_labels and the labels' dtype, as in Hugging Face."""
    input_checks.check_tensor("labels", labels)
    if labels.is_complex():
        raise ValueError(f"labels must be integers or floats, not {labels.dtype}.")
    is_class = labels.dtype in (torch.long, torch.int)
    inferred = "single_label_classification" if is_class else "multi_label_classification"
    return config.problem_type or ("regression" if config.num_labels == 1 else inferred)
