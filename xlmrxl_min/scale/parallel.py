"""More than one GPU: the same model on torch.distributed's engines. Walked through in notebooks/11_many_gpus.ipynb.

    torchrun --nproc-per-node 2 -m xlmrxl_min.scale.parallel fill "Alle Menschen sind frei und <mask> an Würde"
    torchrun --nproc-per-node 4 -m xlmrxl_min.scale.parallel train --tensor 2 --steps 10 --into FOLDER

A rank is one process with one GPU; without GPUs, with the CPU. The ranks stand in a grid, a device mesh. Along its axis
"tensor" (Megatron-LM, Shoeybi et al. 2019) every matrix is cut and the ranks work on the same texts together: for a
model that is too large. Along its axis "data" (FSDP, Zhao et al. 2023; ZeRO, Rajbhandari et al. 2020) each rank has
texts of its own and keeps a part of every block, which is gathered when it is that block's turn: for training.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleOutput,
    RowwiseParallel,
    parallelize_module,
)

import xlmrxl_min

from ..checkpoints.int8 import Int8Embedding, Int8Linear
from ..checkpoints.load import Whole, put
from ..checkpoints.load import load as load_whole
from ..inference.predict import bars, fill_mask
from ..model import Attention, PreTrainedModel, XLMRobertaXLConfig
from ..tokenizer import XLMRobertaTokenizer
from ..training.loop import Batch, adamw, compute_loss, hide, labelled, rate
from ..training.texts import udhr
from .planner import GPUS, fits, itemsize
from .planner import plan as plan_of


class RankError(RuntimeError):
    """Ranks could not work together: one of them is gone, or did not answer in time."""


# ---- the grid


OLDEST = (2, 12)  # of torch: before, DTensor's cut embedding and FSDP's way back fail with this model


@contextmanager
def ranks(tensor: int = 1, *, timeout_s: float = 600) -> Iterator[DeviceMesh]:
    """The grid of all ranks that torchrun has started, `data` by `tensor`; what is opened is closed at the end.

    tensor: how many ranks share every matrix; the others multiply the texts. A rank that dies or is waited for longer
    than `timeout_s` seconds raises RankError in those that need it. ValueError without torchrun, for a `tensor` that
    does not divide the number of ranks, and for a torch that is too old.
    """
    is_old = tuple(int(number) for number in torch.__version__.split(".")[:2]) < OLDEST
    if is_old:
        raise ValueError(f"torch {torch.__version__} is too old for several ranks: install 2.12 or newer.")
    if "RANK" not in os.environ:
        raise ValueError("there are no ranks: start this with torchrun --nproc-per-node N.")
    rank, count = os.environ["RANK"], int(os.environ["WORLD_SIZE"])
    if tensor < 1 or count % tensor > 0:
        raise ValueError(f"{count} ranks cannot stand in rows of {tensor}: take a divisor.")
    device, met = own_device(int(os.environ.get("LOCAL_RANK", "0"))), False
    try:
        backend = dist.get_default_backend_for_device(device.type)
        own = None if device.type == "cpu" else device
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s), device_id=own)
        met = True
        with quiet_engines():
            yield init_device_mesh(device.type, (count // tensor, tensor), mesh_dim_names=("data", "tensor"))
        dist.barrier()
    except RuntimeError as error:
        if not is_comm_error(error):
            raise
        lost = f"has lost the others: one has died, or did not answer within {timeout_s:g} s"
        what = lost if met else "could not reach the others"
        cause = re.sub(r"^\[.*?\] ", "", str(error).strip())  # without a line of somebody's source
        cause = re.split(r"\. |\n", cause)[0]  # without what gloo adds for those who develop it
        says = f"the first error that any rank printed says why (here: {cause.rstrip('.')})"
        raise RankError(f"rank {rank} of {count} {what}; {says}.") from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
            # A thread of gloo lets go of its tensors a moment after it has reported them as done. Were the interpreter
            # at its end by then, it would abort the process (https://github.com/pytorch/pytorch/pull/179291).
            time.sleep(0.2)


@contextmanager
def quiet_engines() -> Iterator[None]:
    """Without two warnings that say nothing to our users: FSDP's, not to write into logits, which nobody does, and
    DTensor's, that a weight cut along both axes is gathered along one after the other."""
    logger = logging.getLogger("torch.distributed.tensor._redistribute")
    level = logger.level
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*returned a view tensor")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def is_comm_error(error: RuntimeError) -> bool:
    """Whether this came from between the ranks. Gloo has no class of its own for that, only words."""
    words = ("gloo", "nccl", "socket", "pair closure", "timed out waiting", "by peer", "broken pipe")
    text = str(error).lower()
    return isinstance(error, dist.DistError) or (
        any(word in text for word in words) and "does not support" not in text  # "Backend gloo does not support …"
    )


def own_device(number: int) -> torch.device:
    """The GPU of the rank with this number on its machine; the CPU where there are none, or none that can talk."""
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if kind is None or dist.Backend.default_device_backend_map.get(kind.type, "gloo") == "gloo":  # which is the CPU's
        return torch.device("cpu")
    count = torch.accelerator.device_count()
    cure = "start one rank for each, or hide them (CUDA_VISIBLE_DEVICES=) to use the CPU"
    if number >= count:
        raise ValueError(f"rank {number} of this machine has no GPU, as there are {count}: {cure}.")
    torch.accelerator.set_device_index(number)
    return torch.device(kind.type, number)


# ---- who holds what

# By what each matrix is cut. Columns: of the result, so each rank has some heads, or some wide features, whole. Rows:
# what goes in is cut already, so each rank has one summand of everything, and one sum over the ranks mends it. Nothing:
# but three matrices read what this norm makes, and their gradients for it are added before the ranks sum them, once.
BLOCK_PLAN = {
    "attention.norm": "nothing",
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
    """BLOCK_PLAN for every block, and the vocabulary's two matrices, for `parallelize_module`.

    Each rank has some words: it looks those up and adds zeros for the others; and makes some of the logits.
    Norms, positions and the small heads are everywhere.
    """
    everywhere = {"output_layouts": Replicate(), "desired_output_layouts": Replicate(), "use_local_output": False}
    styles = {
        "columns": ColwiseParallel,
        "rows": RowwiseParallel,
        "nothing": partial(PrepareModuleOutput, **everywhere),
    }
    base = model.base_model
    prefix = "" if base is model else "backbone."
    plan: dict[str, ParallelStyle] = {f"{prefix}embeddings.word": RowwiseParallel(input_layouts=Replicate())}
    for i, block in enumerate(base.layers):
        for part, cut_by in BLOCK_PLAN.items():
            if block.cross_attention is not None or not part.startswith("cross_attention"):
                plan[f"{prefix}layers.{i}.{part}"] = styles[cut_by]()
    if model.get_output_embeddings() is not None:
        plan["lm_head.decoder"] = ColwiseParallel(output_layouts=Replicate())
    return plan


def parallelize(
    model: PreTrainedModel, mesh: DeviceMesh, *, mixed_precision: MixedPrecisionPolicy | None = None
) -> PreTrainedModel:
    """Divide a model among the ranks of `mesh` (see `ranks`), in place; then it is called as ever, by all ranks.

    All ranks must have the same weights, on their own devices. Those of a row of the "tensor" axis must be given the
    same inputs, and the same seed wherever something is drawn; they all have the same answer, that of the whole model.
    Along "data" gradients are averaged, and all ranks must go through the model equally often: `generate` there with
    eos_token_id=-1, never to end early. On the meta device this only says who will hold what. mixed_precision: FSDP's,
    such as `MixedPrecisionPolicy(param_dtype=torch.bfloat16)`. ValueError where heads or the feed-forward width cannot
    be dealt out evenly, for int8, and for mixed_precision without ranks along "data".
    """
    check(model, mesh["tensor"].size())
    is_idle = mixed_precision is not None and mesh["data"].size() == 1
    if is_idle:
        raise ValueError(
            'mixed_precision is FSDP\'s, and there is one rank along "data": load in that dtype, or autocast.'
        )
    if mesh["tensor"].size() > 1:
        parallelize_module(model, mesh["tensor"], tensor_plan(model))
        for module in model.modules():
            if isinstance(module, Attention):
                shard_heads(module, mesh["tensor"])
    tie(model)  # parallelize_module has made two of what was one
    if mesh["data"].size() > 1:
        policy = mixed_precision or MixedPrecisionPolicy()
        for block in model.base_model.layers:
            fully_shard(block, mesh=mesh["data"], mp_policy=policy)
        # By default the outermost module stays gathered after a forward pass: then zero_grad would clear the gathered
        # weights' gradients, and leave those of the parts.
        fully_shard(model, mesh=mesh["data"], reshard_after_forward=True, mp_policy=policy)
        model.within = MethodType(lambda self, function, *args: function(self, *args), model)
        register_fsdp_forward_method(model, "within")
        tie(model)
    for name in ("prune_heads", "resize_token_embeddings") if mesh.size() > 1 else ():
        setattr(model, name, too_late)
    gather_once(model)
    return model


def gather_once(model: PreTrainedModel) -> None:
    """FSDP makes room for what it gathers when it first does, and keeps it. Made in inference mode, as `generate` and
    `fill_mask` would, that room could not be trained with ever after.
    """
    if not any(parameter.is_meta for parameter in model.parameters()):
        with torch.inference_mode(False):
            for module in model.modules():
                if isinstance(module, FSDPModule):
                    module.unshard()
                    module.reshard()


def check(model: PreTrainedModel, count: int) -> None:
    is_int8 = any(isinstance(module, (Int8Linear, Int8Embedding)) for module in model.modules())
    if is_int8:
        raise ValueError("int8 weights are not divided among ranks: load them in bfloat16, or on one device.")
    for i, block in enumerate(model.base_model.layers):
        for attention in filter(None, (block.attention, block.cross_attention)):
            heads = len(attention.heads)
            layer = f" (in layer {i}, after pruning)" if heads < model.config.num_attention_heads else ""
            if heads % count > 0:
                raise ValueError(f"{heads} heads{layer} cannot be dealt to {count} ranks: take a divisor.")
    width = model.config.intermediate_size
    if width % count > 0:
        raise ValueError(f"intermediate_size={width} cannot be dealt to {count} ranks: take a divisor.")


def too_late(*args: Any, **kwargs: Any) -> None:
    raise ValueError("this model is divided among ranks, and its sizes stay as they are: prune and resize before.")


def shard_heads(attention: Attention, mesh: DeviceMesh) -> None:
    """Tell `attention` which heads are this rank's own, whose weights to hand out, which to drop, what to learn."""
    count = len(attention.heads) // mesh.size()
    first = mesh.get_local_rank() * count
    attention.heads = attention.heads[first : first + count]
    attention.register_forward_hook(lambda module, args, out: (out[0], all_heads(out[1], mesh)))
    attention.mesh = mesh
    for name in ("eager_attention", "sdpa_attention"):
        setattr(attention, name, partial(own_draws, attention, getattr(attention, name)))
    if attention.position_embedding_type != "absolute":
        attention.position_bias = MethodType(position_bias, attention)


def own_draws(attention: Attention, mix: Callable, *args: Any) -> tuple[Tensor, Tensor | None]:
    """`mix`, where ranks draw alike everywhere else, but drop attention weights each of its own."""
    if not (attention.training and attention.attention_dropout.p):
        return mix(*args)
    seed = int(torch.randint(2**31, ())) + attention.mesh.get_local_rank()
    with forked(attention.mesh.device_type):
        torch.manual_seed(seed)
        return mix(*args)


def forked(kind: str) -> AbstractContextManager:
    """After it, the CPU's and the own GPU's random generators are as before it."""
    if kind == "cpu":
        return torch.random.fork_rng([])
    return torch.random.fork_rng([torch.accelerator.current_device_index()], device_type=kind)


def all_heads(weights: Tensor | None, mesh: DeviceMesh) -> Tensor | None:
    """Attention weights of the own heads -> of all, b h q k each."""
    return None if weights is None else DTensor.from_local(weights, mesh, [Shard(1)], run_check=False).full_tensor()


def position_bias(attention: Attention, query: Tensor, key: Tensor, query_offset: int) -> Tensor:
    """Attention's own, but for gradients: the table of distances is on all ranks, and each finds its heads' summand."""
    if not torch.is_grad_enabled():
        return Attention.position_bias(attention, query, key, query_offset)
    table = DTensor.from_local(attention.distance.weight, attention.mesh, [Replicate()], run_check=False)
    table = table.to_local(grad_placements=[Partial()])  # the same numbers; on the way back, summed over the ranks
    width, kind = attention.head_dim, attention.position_embedding_type
    whole = SimpleNamespace(head_dim=width, position_embedding_type=kind, distance=SimpleNamespace(weight=table))
    return Attention.position_bias(whole, query, key, query_offset)


def tie(model: PreTrainedModel) -> None:
    """Tie, and make sure of it: an optimizer would otherwise teach the two halves of a pair different things."""
    model.tie_weights()
    head, words = model.get_output_embeddings(), model.get_input_embeddings()
    assert head is None or not model.config.tie_word_embeddings or head.weight is words.weight


def within(model: PreTrainedModel, function: Callable, *args: Any) -> Any:
    """`function(model, *args)`, where the function calls parts of the model, such as its backbone, instead of it all.

    FSDP gathers what is outside the blocks when the model is called; this has it do so for any function, which then
    calls parts of the model, or the model, but not both.
    """
    return model.within(function, *args) if hasattr(model, "within") else function(model, *args)


# ---- loading and saving


class Share(Whole):
    """This rank's part of every weight; for `checkpoint.load`."""

    def __init__(self, mesh: DeviceMesh, mixed_precision: MixedPrecisionPolicy | None = None) -> None:
        self.mesh, self.mixed_precision = mesh, mixed_precision
        on_cpu = mesh.device_type == "cpu"
        self.neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", str(dist.get_world_size()))) if on_cpu else 1

    def cut(self, model: PreTrainedModel) -> None:
        parallelize(model, self.mesh, mixed_precision=self.mixed_precision)
        dist.barrier()  # so that nobody counts free memory when a neighbour has already taken his

    def own(self, parameter: Tensor) -> tuple[slice, ...]:
        return own_part(parameter)

    def to_dtensor(self, values: Tensor, parameter: Tensor) -> Tensor:
        if not isinstance(parameter, DTensor):
            return values
        mesh, placements = parameter.device_mesh, parameter.placements
        whole = {"shape": parameter.shape, "stride": parameter.stride()}  # does not follow from parts that are unequal
        return DTensor.from_local(values.contiguous(), mesh, placements, run_check=False, **whole)

    @contextmanager
    def synced_rng(self) -> Iterator[None]:
        seed = torch.randint(2**31, (1,), device=self.mesh.device_type)
        dist.broadcast(seed, src=0)
        with forked(self.mesh.device_type):
            torch.manual_seed(int(seed))
            yield


def own_part(parameter: Tensor) -> tuple[slice, ...]:
    """Which part of the whole weight this rank holds: one range for each axis.

    The axes of the grid are taken from the last, "tensor", to the first: FSDP cuts what tensor parallelism has left.
    Where a size does not divide, the last ranks have less, or nothing.
    """
    own = [slice(0, size) for size in parameter.shape]
    if isinstance(parameter, DTensor):
        mesh, at = parameter.device_mesh, parameter.device_mesh.get_coordinate()
        for axis in reversed(range(mesh.ndim)):
            cut = cut_by(parameter.placements[axis])
            if cut is not None:
                begin, end = own[cut].start, own[cut].stop
                size = -(-(end - begin) // mesh.size(axis))
                own[cut] = slice(min(begin + at[axis] * size, end), min(begin + (at[axis] + 1) * size, end))
    return tuple(own)


def cut_by(placement: Placement) -> int | None:
    """The axis of a tensor that is cut; None where it is whole. (FSDP's kind of a cut denies being a shard.)"""
    return getattr(placement, "dim", None)


def load(
    cls: type[PreTrainedModel],
    source: str | os.PathLike[str],
    mesh: DeviceMesh,
    *,
    mixed_precision: MixedPrecisionPolicy | None = None,
    **options: Any,
) -> PreTrainedModel:
    """`cls.from_pretrained(source)`, divided among the ranks of `mesh` as by `parallelize`; each rank reads its part.

    options: from_pretrained's dtype, progress, config and its fields. Errors: both functions'.
    """
    if options.get("quantize") is not None:
        raise ValueError("int8 weights are not divided among ranks: leave out quantize.")
    on_cpu = mesh.device_type == "cpu"
    device = torch.device("cpu") if on_cpu else torch.device(mesh.device_type, torch.accelerator.current_device_index())
    options = {"progress": dist.get_rank() == 0, **options}
    model = load_whole(cls, source, device=device, share=Share(mesh, mixed_precision), **options)
    gather_once(model)
    return model


def save(model: PreTrainedModel, folder: str | os.PathLike[str], **options: Any) -> None:
    """Gather a divided model, weight by weight, on rank 0, which then writes it as `save_pretrained` does.

    To be called by all ranks. Rank 0 needs room for the whole model in the CPU's memory. CheckpointError on every rank
    if it could not be written.
    """
    cls = next(c for c in type(model).__mro__ if not issubclass(c, FSDPModule))  # FSDP has put itself before it
    is_writer = dist.get_rank() == 0
    with torch.device("meta"):
        build = {"add_pooling_layer": model.pooler is not None} if model is model.base_model else {}
        whole = cls(model.config, **build)
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        values = values.full_tensor() if isinstance(values, DTensor) else values
        if is_writer:
            put(whole, name, values.cpu())
    error: list[Exception | None] = [None]
    if is_writer:
        tie(whole)
        try:
            whole.save_pretrained(folder, **options)
        except Exception as caught:  # whatever it is: the others wait to hear of it
            error = [caught]
    dist.broadcast_object_list(error, src=0)
    if error[0] is not None:
        raise error[0]


# ---- training


def train_step(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, batch: Batch, mesh: DeviceMesh, clip: float = 1.0
) -> float:
    """One step on a batch of this rank's own, as one process would do it on the batches of all; returns their loss.

    Ranks in a row of the "tensor" axis have the same batch. clip: the longest gradient allowed.
    """
    loss = shared_loss(model, batch, mesh)
    loss.backward()
    clip_gradients(model.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad()
    mean = loss.detach() / mesh["data"].size()
    dist.all_reduce(mean, group=mesh["data"].get_group())
    return mean.item()


def shared_loss(model: PreTrainedModel, batch: Batch, mesh: DeviceMesh) -> Tensor:
    """The loss of this rank's batch, weighted so that the mean over the "data" axis is the loss of all batches in one.

    FSDP takes the mean of the ranks' gradients; but one batch may have more labels than another, or none.
    """
    data, count = mesh["data"], torch.tensor(labelled(model, batch), dtype=torch.float64, device=model.device)
    total = count.clone()
    dist.all_reduce(total, group=data.get_group())
    for name in ("start_positions", "end_positions"):  # of which each has a mean of its own
        beyond = name in batch and bool((batch[name] >= batch["input_ids"].shape[1]).any())
        if beyond:
            raise ValueError(f"{name} lie beyond the text, which no weight over ranks can count: drop those texts.")
    if not count:  # nothing to learn here, but the others wait for this rank's gradients: of any label, times 0
        batch = {**batch, "labels": torch.zeros_like(batch["labels"])}
    batch = {name: values.to(model.device) for name, values in batch.items()}
    return within(model, compute_loss, batch) * (count * data.size() / total.clamp(min=1))


def clip_gradients(parameters: Iterable[nn.Parameter], longest: float) -> Tensor:
    """Shorten all gradients together to the length `longest`, if they are longer; returns the length before.

    A rank knows the squares of its own parts. Of a weight that is cut along an axis of the grid they are summed over
    that axis; one that is whole everywhere counts once.
    """
    gradients, squares = [p.grad for p in parameters if p.grad is not None], {}
    for gradient in gradients:
        mesh = gradient.device_mesh if isinstance(gradient, DTensor) else None
        axes = () if mesh is None else (i for i in range(mesh.ndim) if cut_by(gradient.placements[i]) is not None)
        key = tuple(mesh.get_group(axis) for axis in axes)
        own = local(gradient)
        exact = torch.promote_types(own.dtype, torch.float32)
        squares[key] = squares.get(key, 0.0) + torch.linalg.vector_norm(own, dtype=exact).double().square()
    for groups, square in squares.items():
        for group in groups:
            dist.all_reduce(square, group=group)
    length = sum(squares.values()).sqrt()
    for gradient in gradients:
        local(gradient).mul_((longest / (length + 1e-6)).clamp(max=1.0))
    return length


# ---- planning


class RankPlan(NamedTuple):
    """What one rank holds, in bytes but for the first; made by `plan_rank`."""

    parameters: int  # numbers
    weights: int
    gradients: int
    optimizer: int
    gathered: int  # whole for a moment. FSDP: three blocks, and what is in none; tensor parallelism: the logits
    activations: int  # and a decoder's cache; no more than one process would have
    total: int  # no less than is there at the fullest moment


def plan_rank(
    config: XLMRobertaXLConfig, tensor: int = 1, data: int = 1, *, head: str = "ForMaskedLM", dtype: str = "float32",
    train: bool = False, **options: Any,
) -> RankPlan:  # fmt: skip
    """What the fullest of `tensor` times `data` ranks holds, without any of them: a model on the meta device is cut by
    the engines themselves, among ranks that only seem to be there (PyTorch's "fake" process group).

    options: batch, tokens, masked_fraction and decode, as sizes.plan takes them; the batch is each rank's own. ValueError
    as there and in `parallelize`; RuntimeError among real ranks.
    """
    alone, size = plan_of(config, head=head, dtype=dtype, train=train, **options), itemsize(dtype)
    with torch.device("meta"):
        model = getattr(xlmrxl_min, f"XLMRobertaXL{head}")(config)
    dist.init_process_group("fake", rank=0, world_size=tensor * data, store=dist.HashStore())
    try:
        mesh = init_device_mesh("cpu", (data, tensor), mesh_dim_names=("data", "tensor"))
        parallelize(model, mesh)
        numbers, largest = held(model), max(local(p).numel() for p in model.parameters())
        blocks = [gathered(block, tensor) for block in model.base_model.layers]
        whole = gathered(model, tensor) - sum(blocks) + sum(blocks[:3])  # one at work, the next, and that one's copy
    finally:
        dist.destroy_process_group()
    whole = whole * size * (1 + train) if data > 1 else 0  # in training, with their gradients
    if tensor > 1 and "LM" in head:  # the own part and all parts, beside the whole that they become
        whole += alone.logits // tensor + alone.logits
    gradients, optimizer = numbers * size * train, numbers * (8 if size == 4 else 12) * train
    words, is_tied = config.vocab_size * config.hidden_size, "LM" in head and config.tie_word_embeddings
    if tensor > 1 and not is_tied:  # where only the embedding needs it, its gradient is found whole
        gradients += size * train * (words - words // tensor)
    # A moment of AdamW's: alone on a GPU the roots of all weights at once, among ranks those of one after the other;
    # or of the way back: the gradients of embedding and LM head, and their sum.
    moment = max(4 * (numbers if tensor * data == 1 else largest), 2 * size * words // tensor * ("LM" in head)) * train
    activations = alone.activations + alone.cache
    total = numbers * size + gradients + optimizer + max(whole + activations, moment)
    return RankPlan(numbers, numbers * size, gradients, optimizer, whole, activations, total)


def report(config: XLMRobertaXLConfig, counts: Iterable[int], **options: Any) -> str:
    """A line for each number of ranks and each way to cut: GB (10⁹ bytes) per rank, and the smallest GPU for it.

    options: plan_rank's.
    """
    columns = ("weights", "gradients", "optimizer", "gathered", "activations", "total")
    lines = ["GB per rank", "ranks  cut by" + "".join(f"{name:>13}" for name in columns) + "  smallest GPU"]
    for count in counts:
        for axis in ("tensor", "data"):
            if count < 1:
                raise ValueError(f"{count} ranks are impossible: take 1 or more.")
            planned = plan_rank(config, **{axis: count}, **options)
            fitting = fits(planned)
            row = "".join(f"{getattr(planned, name) / 1e9:>13.2f}" for name in columns)
            gpu = f"{fitting[0]} ({GPUS[fitting[0]]})" if fitting else "none of our list"
            lines.append(f"{count:>5}  {axis:<6}{row}  {gpu}")
    note = "Each rank of data has a batch of its own; the ranks of tensor share one, and may need less for activations."
    return "\n".join([*lines, "", note])


def held(module: nn.Module) -> int:
    """Parameters that this rank holds."""
    return sum(local(p).numel() for p in module.parameters())


def local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def gathered(module: nn.Module, tensor: int) -> int:
    """Parameters that this rank holds while FSDP has gathered `module`: all that tensor parallelism has left it."""

    def is_cut(p: Tensor) -> bool:
        on_tensor = isinstance(p, DTensor) and p.device_mesh.mesh_dim_names[-1] == "tensor"
        return on_tensor and cut_by(p.placements[-1]) is not None

    return sum(-(-p.numel() // tensor) if is_cut(p) else p.numel() for p in module.parameters())


# ---- the worked example


def learn(
    model: PreTrainedModel, tokenizer: XLMRobertaTokenizer, texts: Sequence[str], mesh: DeviceMesh, *, steps: int,
    batch: int = 8, learning_rate: float = 1e-4, seed: int = 0,
) -> Iterator[float]:  # fmt: skip
    """Masked language modelling, step by step: `batch` of the `texts` for each rank of the "data" axis; the losses."""
    data, here = mesh["data"].size(), mesh["data"].get_local_rank()
    if len(texts) < batch * data:
        raise ValueError(f"{len(texts)} texts are too few for {data} batches of {batch}: give more.")
    optimizer = adamw(model, learning_rate, weight_decay=0.01)
    model.train()
    for step in range(steps):
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed * 1_000_003 + step))
        mine = [texts[i] for i in order[here * batch : (here + 1) * batch]]
        draws = torch.manual_seed((seed * 1_000_003 + step) * data + here)  # a row of the tensor axis draws alike
        encoding = tokenizer(mine, padding=True, truncation=True, max_length=128, return_tensors="pt")
        seen, labels = hide(encoding["input_ids"], 0.15, tokenizer, draws)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rate(step, steps, 0, decay_fraction=1.0)
        yield train_step(model, optimizer, {**encoding, "input_ids": seen, "labels": labels}, mesh)
    model.eval()


def say(mesh: DeviceMesh, line: str) -> None:
    """Print what every rank has to say, in their order, once."""
    lines: list[str] = [""] * mesh.size()
    dist.all_gather_object(lines, line)
    if dist.get_rank() == 0:
        print("\n".join(dict.fromkeys(lines)), flush=True)


def run(options: argparse.Namespace, mesh: DeviceMesh) -> None:
    tokenizer = XLMRobertaTokenizer.from_pretrained(options.model)
    model = load(xlmrxl_min.XLMRobertaXLForMaskedLM, options.model, mesh, dtype=options.dtype)
    at = ", ".join(f"{name} {mesh[name].get_local_rank()}" for name in mesh.mesh_dim_names)
    whole = sum(p.numel() for p in model.parameters())
    say(mesh, f"rank {dist.get_rank()} ({at}) on {model.device}: {held(model):,} of {whole:,} parameters")
    if options.command == "fill":
        say(mesh, bars(within(model, fill_mask, tokenizer, options.text)))
        return
    texts = [row.text for row in udhr([options.language])]
    is_first = dist.get_rank() == 0
    losses = learn(model, tokenizer, texts, mesh, steps=options.steps, batch=options.batch, learning_rate=options.rate)
    for step, loss in enumerate(losses, start=1):
        if is_first:  # the loss is that of all ranks
            print(f"step {step}: loss {loss:.4f}", flush=True)
    if options.into is not None:
        save(model, options.into)
        if is_first:
            tokenizer.save_pretrained(options.into)
            print(f"{options.into}: saved, whole")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="torchrun --nproc-per-node N -m xlmrxl_min.scale.parallel",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    command = commands.add_parser("fill", help="say what a <mask> in a text stands for")
    command.add_argument("text", help='such as "Alle Menschen sind frei und <mask> an Würde"')
    command.add_argument("--tensor", type=int, metavar="N", help="ranks that share every matrix (default: all)")
    command = commands.add_parser("train", help="train on the Universal Declaration of Human Rights in one language")
    command.add_argument("--language", default="pt", help="(default: pt, Portuguese, which tiny has never read)")
    command.add_argument(
        "--tensor", type=int, default=1, metavar="N", help="ranks that share every matrix (default: 1)"
    )
    command.add_argument("--steps", type=int, default=10, metavar="N", help="(default: 10)")
    command.add_argument("--batch", type=int, default=8, metavar="N", help="texts per rank and step (default: 8)")
    command.add_argument(
        "--rate",
        type=float,
        default=1e-3,
        metavar="X",
        help="learning rate, at first (default: 1e-3, which suits tiny; XL wants 1e-5)",
    )
    command.add_argument("--into", type=Path, metavar="FOLDER", help="where to save the result")
    for command in commands.choices.values():
        command.add_argument("--model", default="tiny", help="a checkpoint's name, folder or hub id (default: tiny)")
        command.add_argument("--dtype", default="float32", help="of weights and arithmetic (default: float32)")
        command.add_argument("--timeout", type=float, default=600, metavar="SECONDS", help="to wait for another rank")
    options = parser.parse_args(arguments)
    sys.stdout.reconfigure(encoding="utf-8")  # a terminal may have been declared to be ASCII; the text is not
    tensor = options.tensor if options.tensor is not None else int(os.environ.get("WORLD_SIZE", "1"))
    try:
        with ranks(tensor, timeout_s=options.timeout) as mesh:
            run(options, mesh)
    except (OSError, ValueError, RankError) as error:
        print(error, file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
