"""A training step on several ranks, equal to one process's on all their batches. See notebooks/11_many_gpus.ipynb."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from ..model import PreTrainedModel
from ..training.loop import Batch, compute_loss, count_labels, label_weights
from .parallel import call_unsharded


def train_step(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, batch: Batch, mesh: DeviceMesh,
    max_grad_norm: float = 1.0,
) -> float:  # fmt: skip
    """Take one optimizer step on this rank's batch and those of the others; return the loss of all of them.

    The ranks of a "tensor" group have the same batch. Without any label the loss is NaN and the model stays as it is.
    """
    weights = weights_over_ranks(model, batch, mesh)
    if not any(map(any, weights)):
        return math.nan
    loss = weighted_loss(model, batch, mesh, weights)
    loss.backward()
    clip_grad_norm(model.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    mean = loss.detach() / mesh["data"].size()
    dist.all_reduce(mean, group=mesh["data"].get_group())
    return mean.item()


def weights_over_ranks(model: PreTrainedModel, batch: Batch, mesh: DeviceMesh) -> list[list[float]]:
    """`label_weights` of the batches of all ranks along "data"."""
    data, own = mesh["data"], count_labels(model, batch)
    counts = torch.zeros(data.size(), len(own), dtype=own.dtype, device=model.device)
    counts[data.get_local_rank()] = own
    dist.all_reduce(counts, group=data.get_group())
    return label_weights(counts)


def weighted_loss(
    model: PreTrainedModel, batch: Batch, mesh: DeviceMesh, weights: Sequence[Sequence[float]] | None = None
) -> Tensor:
    """The loss of this rank's batch, weighted so that its mean over "data" is the loss of all batches as one.

    FSDP averages the ranks' gradients; but one batch may have more labels than another, or none: then its loss and
    gradients are 0, and the other ranks wait for them. weights: `weights_over_ranks`, if they are known.
    """
    data, weights = mesh["data"], weights or weights_over_ranks(model, batch, mesh)
    own = [weight * data.size() for weight in weights[data.get_local_rank()]]
    batch = {name: values.to(model.device) for name, values in batch.items()}
    return call_unsharded(model, compute_loss, batch, own)


def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients down to the norm `max_norm` if theirs is larger; return the norm before.

    As torch.nn.utils.clip_grad_norm_, which cannot mix tensors with DTensors, or DTensors of several meshes.
    """
    groups: dict[DeviceMesh | None, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            mesh = parameter.grad.device_mesh if isinstance(parameter.grad, DTensor) else None
            groups.setdefault(mesh, []).append(parameter)
    norms = [torch.nn.utils.get_total_norm(p.grad for p in group if p.grad is not None) for group in groups.values()]
    norm = torch.stack([x.full_tensor() if isinstance(x, DTensor) else x for x in norms]).norm()
    for group in groups.values():
        torch.nn.utils.clip_grads_with_norm_(group, max_norm, norm)
    return norm
