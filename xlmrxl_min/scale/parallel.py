"""Tensor parallelism and FSDP for every model. Walked through in notebooks/11_many_gpus.ipynb.

Tensor parallelism (Megatron-LM, Shoeybi et al. 2019) shards each matrix; the ranks process the same batch together. It
is for models that are too large for one GPU. FSDP (Zhao et al. 2023; ZeRO, Rajbhandari et al. 2020) shards the storage
of each block and gathers it for computing; each rank has its own batch. It is for training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import MethodType, SimpleNamespace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleOutput,
    RowwiseParallel,
    parallelize_module,
)

from ..checkpoints.int8 import Int8Embedding, Int8Linear
from ..model import Attention, PreTrainedModel
from .planner import check_ranks

T = TypeVar("T")

# How each matrix of a block is sharded. By columns of its output: a rank computes some heads, or some features of the
# feed-forward layer. By rows of its input, which is sharded already: a rank computes a partial sum, and one all-reduce
# adds them up. The norm is replicated, but three sharded matrices use its output: declaring that output replicated lets
# the gradients of all three be added before one all-reduce.
BLOCK_PLAN = {
    "attention.norm": "replicated",
    "attention.query": "columns",
    "attention.key": "columns",
    "attention.value": "columns",
    "attention.out": "rows",
    "cross_attention.query": "columns",
    "cross_attention.key": "columns",
    "cross_attention.value": "columns",
    "cross_attention.out": "rows",
    "feed_forward.up": "columns",
    "feed_forward.down": "rows",
}


def tensor_plan(model: PreTrainedModel) -> dict[str, ParallelStyle]:
    """BLOCK_PLAN for every block, and the two vocabulary matrices, as `parallelize_module` takes it.

    The vocabulary is sharded: a rank looks up its own tokens, with zeros for the others, and computes its own logits.
    Norms, positions and small heads are replicated.
    """
    replicated = partial(
        PrepareModuleOutput, output_layouts=Replicate(), desired_output_layouts=Replicate(), use_local_output=False
    )
    styles: dict[str, Callable[[], ParallelStyle]]
    styles = {"columns": ColwiseParallel, "rows": RowwiseParallel, "replicated": replicated}
    prefix = "" if model.base_model is model else "backbone."
    plan: dict[str, ParallelStyle] = {f"{prefix}embeddings.word": RowwiseParallel(input_layouts=Replicate())}
    for i, block in enumerate(model.base_model.layers):
        for name, style in BLOCK_PLAN.items():
            if block.cross_attention is not None or not name.startswith("cross_attention"):
                plan[f"{prefix}layers.{i}.{name}"] = styles[style]()
    if model.get_output_embeddings() is not None:
        plan["lm_head.decoder"] = ColwiseParallel(output_layouts=Replicate())
    return plan


def parallelize(
    model: PreTrainedModel, mesh: DeviceMesh, *, mixed_precision: MixedPrecisionPolicy | None = None
) -> PreTrainedModel:
    """Shard a model over the ranks of `mesh` (see `init_mesh`) in place; all ranks then call it as before.

    All ranks must have the same weights, each on its own device. The ranks of a "tensor" group must get the same
    inputs and the same seed; they return the same outputs, those of the unsharded model. Along "data" the gradients are
    averaged, and all ranks must call the model equally often: `generate` there with eos_token_id=-1, so that no rank
    stops early. On the meta device only the shards' shapes are determined. mixed_precision: FSDP's, such as
    `MixedPrecisionPolicy(param_dtype=torch.bfloat16)`.

    Raises ValueError if the heads or the feed-forward width are not divisible, for int8, and for mixed_precision with
    one rank along "data".
    """
    check_ranks(model.config, mesh["tensor"].size(), mesh["data"].size())
    if any(isinstance(module, (Int8Linear, Int8Embedding)) for module in model.modules()):
        raise ValueError("int8 weights are not sharded: load them in bfloat16, or on one device.")
    if mixed_precision is not None and mesh["data"].size() == 1:
        raise ValueError(
            'mixed_precision is FSDP\'s, and there is one rank along "data": load in that dtype, or use autocast.'
        )
    if mesh["tensor"].size() > 1:
        parallelize_module(model, mesh["tensor"], tensor_plan(model))
        for module in model.modules():
            if isinstance(module, Attention):
                shard_heads(module, mesh["tensor"])
    tie_and_check(model)  # parallelize_module has made two parameters of a tied one
    if mesh["data"].size() > 1:
        policy = mixed_precision or MixedPrecisionPolicy()
        for block in model.base_model.layers:
            fully_shard(block, mesh=mesh["data"], mp_policy=policy)
        # By default the root module stays unsharded after a forward pass. Then zero_grad would clear the gradients of
        # the unsharded weights, and not those of the shards.
        fully_shard(model, mesh=mesh["data"], reshard_after_forward=True, mp_policy=policy)
        root: Any = model
        root.call = MethodType(lambda self, function, *args, **kwargs: function(self, *args, **kwargs), model)
        register_fsdp_forward_method(root, "call")
        tie_and_check(model)
    for name in ("prune_heads", "resize_token_embeddings") if mesh.size() > 1 else ():
        setattr(model, name, reject_resizing)
    allocate_unsharded(model)
    return model


def reject_resizing(*args: Any, **kwargs: Any) -> None:
    raise ValueError("this model is sharded, and its sizes are fixed: prune and resize before sharding.")


def tie_and_check(model: PreTrainedModel) -> None:
    """Tie the LM head to the word embeddings; an optimizer would train two separate parameters apart."""
    model.tie_weights()
    head, words = model.get_output_embeddings(), model.get_input_embeddings()
    assert head is None or not model.config.tie_word_embeddings or head.weight is words.weight


# ---- tensor parallelism: attention


class ShardedAttention(Attention):
    """Attention with the heads of one rank. `shard_heads` turns an Attention into this in place."""

    mesh: DeviceMesh  # one-dimensional

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """As Attention.forward; the attention weights, if any, are those of all heads."""
        hidden, weights = super().forward(*args, **kwargs)
        if weights is not None:
            weights = DTensor.from_local(weights, self.mesh, [Shard(1)], run_check=False).full_tensor()
        return hidden, weights

    def eager_attention(self, *args: Any) -> tuple[Tensor, Tensor | None]:
        with self.rank_rng():
            return super().eager_attention(*args)

    def sdpa_attention(self, *args: Any) -> tuple[Tensor, Tensor | None]:
        with self.rank_rng():
            return super().sdpa_attention(*args)

    @contextmanager
    def rank_rng(self) -> Iterator[None]:
        """Sample dropout of attention weights differently on each rank; all other dropout is the same on all ranks."""
        if not (self.training and self.attention_dropout.p):
            yield
            return
        seed = int(torch.randint(2**31, ())) + self.mesh.get_local_rank()
        with fork_rng(self.mesh.device_type):
            torch.manual_seed(seed)
            yield

    def position_bias(self, query: Tensor, key: Tensor, query_offset: int) -> Tensor:
        """As Attention.position_bias. Each rank finds a partial sum of the distance table's gradient: add them up."""
        if not torch.is_grad_enabled():
            return super().position_bias(query, key, query_offset)
        table = DTensor.from_local(self.distance.weight, self.mesh, [Replicate()], run_check=False)
        distance = SimpleNamespace(weight=table.to_local(grad_placements=[Partial()]))
        position_embedding_type, head_dim = self.position_embedding_type, self.head_dim
        attributes = {"position_embedding_type": position_embedding_type, "head_dim": head_dim, "distance": distance}
        return Attention.position_bias(cast(Attention, SimpleNamespace(**attributes)), query, key, query_offset)


def shard_heads(attention: Attention, mesh: DeviceMesh) -> None:
    """Give `attention`, whose matrices are sharded, the numbers of this rank's heads and ShardedAttention's methods."""
    count = len(attention.heads) // mesh.size()
    first = mesh.get_local_rank() * count
    attention.heads = attention.heads[first : first + count]
    attention.__class__ = ShardedAttention
    cast(ShardedAttention, attention).mesh = mesh


def fork_rng(device_type: str) -> AbstractContextManager[None]:
    """Restore the random generators of the CPU and of this rank's GPU afterwards."""
    if device_type == "cpu":
        return torch.random.fork_rng([])
    return torch.random.fork_rng([torch.accelerator.current_device_index()], device_type=device_type)


# ---- FSDP: what is outside the blocks


def call_unsharded(model: PreTrainedModel, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Return `function(model, *args, **kwargs)`; it may call parts of the model, such as the backbone and the LM head.

    FSDP gathers what is outside the blocks (embeddings, head) when the model itself is called. Here it does so for the
    duration of `function`, which may call either parts of the model or the model, not both.
    """
    root: Any = model
    return root.call(function, *args, **kwargs) if isinstance(model, FSDPModule) else function(model, *args, **kwargs)


def allocate_unsharded(model: PreTrainedModel) -> None:
    """Make FSDP allocate its buffers of unsharded weights now, if there are weights.

    It does so at their first use and keeps them. Allocated in inference mode, as by `generate` or `fill_mask`, they
    could never be used in training.
    """
    if not any(parameter.is_meta for parameter in model.parameters()):
        with torch.inference_mode(False):
            for module in model.modules():
                if isinstance(module, FSDPModule):
                    module.unshard()
                    module.reshard()


def num_local_parameters(module: nn.Module) -> int:
    """Parameters that this rank stores: its shards, and everything replicated."""
    return sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in module.parameters())
