"""The ranks of a torchrun job and their device mesh. Walked through in notebooks/11_many_gpus.ipynb.

A rank is one process with one GPU; without GPUs, with the CPU. The device mesh has two dimensions, "data" by "tensor".
Along "tensor" the ranks shard the matrices and process the same batch together; along "data" each has its own batch.
"""

from __future__ import annotations

import logging
import os
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

MIN_TORCH = (2, 12)  # before, DTensor's sharded embedding and FSDP's backward pass fail with this model


def is_torch_too_old() -> bool:
    return tuple(map(int, torch.__version__.split(".")[:2])) < MIN_TORCH


class RankError(ConnectionError):
    """Ranks could not communicate: one of them has died, or did not answer in time."""


@contextmanager
def init_mesh(tensor: int | None = 1, *, timeout_s: float = 600) -> Iterator[DeviceMesh]:
    """Connect all ranks that torchrun has started in a mesh, `data` by `tensor`; disconnect them at the end.

    tensor: how many ranks shard each matrix; None: all of them. Raises RankError in the ranks that need one that has
    died, or that they have waited for longer than `timeout_s` seconds; ValueError without torchrun, for a `tensor` that
    does not divide the number of ranks, and for a torch that is too old.
    """
    if is_torch_too_old():
        raise ValueError(f"torch {torch.__version__} is too old for several ranks: install 2.12 or newer.")
    if "RANK" not in os.environ:
        raise ValueError("there are no ranks: start this with torchrun --nproc-per-node N.")
    if not timeout_s > 0:
        raise ValueError(f"timeout_s={timeout_s} is impossible: take a number of seconds above 0.")
    rank, count = os.environ["RANK"], int(os.environ["WORLD_SIZE"])
    tensor = count if tensor is None else tensor
    if tensor < 1 or count % tensor > 0:
        raise ValueError(f"tensor={tensor} does not divide the number of ranks, {count}: take a divisor.")
    device, is_connected = rank_device(int(os.environ.get("LOCAL_RANK", "0"))), False
    try:
        backend = dist.get_default_backend_for_device(device.type)
        device_id = None if device.type == "cpu" else device
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s), device_id=device_id)
        is_connected = True
        # Irrelevant are FSDP's warning against writing into logits in place, and DTensor's that a weight sharded along
        # both dimensions is gathered along one after the other.
        logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*returned a view tensor")
            yield init_device_mesh(device.type, (count // tensor, tensor), mesh_dim_names=("data", "tensor"))
        dist.barrier()
    except RuntimeError as error:
        if not is_comm_error(error):
            raise
        lost = f"has lost the others: one has died, or did not answer within {timeout_s:g} s"
        problem = lost if is_connected else "could not reach the others"
        cause = re.sub(r"^\[.*?\] ", "", str(error).strip())  # without a line of PyTorch's source
        cause = re.split(r"\. |\n", cause)[0].rstrip(".")  # without gloo's hints for its developers
        hint = f"the first error that any rank printed says why (here: {cause})"
        raise RankError(f"rank {rank} of {count} {problem}; {hint}.") from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
            # A thread of gloo releases its tensors a moment after it has reported them as done. If the interpreter had
            # ended by then, it would abort the process (https://github.com/pytorch/pytorch/pull/179291).
            time.sleep(0.2)


def is_comm_error(error: RuntimeError) -> bool:
    """Whether the communication between ranks has failed. Gloo's errors have no class of their own, only messages."""
    text = str(error).lower()
    words = ("gloo", "nccl", "socket", "pair closure", "timed out waiting", "by peer", "broken pipe")
    is_named = any(word in text for word in words) and "does not support" not in text  # "Backend gloo does not support"
    return is_named or isinstance(error, dist.DistError)


def rank_device(local_rank: int) -> torch.device:
    """The GPU with this number; the CPU if there is no GPU, or none with a communication backend.

    Raises ValueError if this machine has GPUs, but fewer than ranks.
    """
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if kind is None or dist.Backend.default_device_backend_map.get(kind.type, "gloo") == "gloo":  # the CPU's backend
        return torch.device("cpu")
    count = torch.accelerator.device_count()
    if local_rank >= count:
        remedy = "start one rank for each, or use the CPU (CUDA_VISIBLE_DEVICES=)"
        raise ValueError(f"rank {local_rank} of this machine has no GPU, as there are {count}: {remedy}.")
    torch.accelerator.set_device_index(local_rank)
    return torch.device(kind.type, local_rank)
