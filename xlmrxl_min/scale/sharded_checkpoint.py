"""Load a checkpoint directly into shards, and save a sharded model. Walked through in notebooks/11_many_gpus.ipynb."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from ..checkpoints import load as checkpoint
from ..model import PreTrainedModel
from .parallel import allocate_unsharded, fork_rng, parallelize, tie_and_check


class MeshSharding(checkpoint.Sharding):
    """What `checkpoints.load` reads of each weight: this rank's shard."""

    def __init__(self, mesh: DeviceMesh, mixed_precision: MixedPrecisionPolicy | None = None) -> None:
        self.mesh, self.mixed_precision = mesh, mixed_precision
        on_cpu = mesh.device_type == "cpu"
        self.local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", str(dist.get_world_size()))) if on_cpu else 1

    def shard_model(self, model: PreTrainedModel) -> None:
        parallelize(model, self.mesh, mixed_precision=self.mixed_precision)
        dist.barrier()  # so that no rank measures free memory after another has started to allocate

    def shard(self, tensor: Tensor, parameter: Tensor) -> Tensor:
        if not isinstance(parameter, DTensor):
            return tensor
        chunk = parameter.__create_chunk_list__()[0]
        return tensor[tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True))]

    def to_dtensor(self, shard: Tensor, parameter: Tensor) -> Tensor:
        if not isinstance(parameter, DTensor):
            return shard
        mesh, placements = parameter.device_mesh, parameter.placements
        shape, stride = parameter.shape, parameter.stride()  # cannot be inferred from uneven shards
        return DTensor.from_local(shard.contiguous(), mesh, placements, run_check=False, shape=shape, stride=stride)

    @contextmanager
    def synced_rng(self) -> Iterator[None]:
        seed = torch.randint(2**31, (1,), device=self.mesh.device_type)
        dist.broadcast(seed, src=0)
        with fork_rng(self.mesh.device_type):
            torch.manual_seed(int(seed))
            yield


def load(
    cls: type[PreTrainedModel], source: str | os.PathLike[str], mesh: DeviceMesh, *,
    mixed_precision: MixedPrecisionPolicy | None = None, **options: Any,
) -> PreTrainedModel:  # fmt: skip
    """`cls.from_pretrained(source)`, sharded over the ranks of `mesh` as by `parallelize`; each rank reads its shards.

    options: from_pretrained's dtype, progress, config and its fields. Raises what both functions raise.
    """
    if options.get("quantize") is not None:
        raise ValueError("int8 weights are not sharded: leave out quantize.")
    on_cpu = mesh.device_type == "cpu"
    device = torch.device("cpu") if on_cpu else torch.device(mesh.device_type, torch.accelerator.current_device_index())
    options = {"progress": dist.get_rank() == 0, **options}
    model, _ = checkpoint.load(cls, source, device=device, sharding=MeshSharding(mesh, mixed_precision), **options)
    allocate_unsharded(model)
    return model


def save(model: PreTrainedModel, folder: str | os.PathLike[str], **options: Any) -> None:
    """Gather a sharded model on rank 0, which writes it as `save_pretrained` does. All ranks must call this.

    Rank 0 needs CPU memory for the whole model. Raises CheckpointError on every rank if it cannot be written.
    """
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    error: list[Exception | None] = [None]
    if dist.get_rank() == 0:
        cls: Any = next(
            c for c in type(model).__mro__ if not issubclass(c, FSDPModule)
        )  # FSDP has put a subclass before it
        build = {"add_pooling_layer": model.pooler is not None} if model is model.base_model else {}
        try:
            with torch.device("meta"):
                unsharded = cls(model.config, **build)
            unsharded.load_state_dict(weights, assign=True)
            tie_and_check(unsharded)
            unsharded.save_pretrained(folder, **options)
        except Exception as caught:  # whatever it is: the other ranks wait for the result
            error = [caught]
    dist.broadcast_object_list(error, src=0)
    if error[0] is not None:
        raise error[0]
