"""The steps of notebooks/11_many_gpus.ipynb: what one rank does, in plain PyTorch; and `on_ranks`, to run it.

These steps are functions of the notebook, not parts of `my_model.py`: the model itself does not change on several GPUs.
exercises/many_gpus.py checks them.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange

# ---- the answers


def ring_bytes(collective, ranks, size):
    passes = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1}
    return passes[collective] * (ranks - 1) * size / ranks


def by_columns(linear, x, rank, ranks):
    weight, bias = linear.weight.chunk(ranks)[rank], linear.bias.chunk(ranks)[rank]
    return x @ weight.T + bias


def by_rows(linear, x_part, rank, ranks):
    partial_sum = x_part @ linear.weight.chunk(ranks, dim=1)[rank].T
    return partial_sum + linear.bias if rank == 0 else partial_sum


def feed_forward_on_rank(feed_forward, normed, rank, ranks):
    features = F.gelu(by_columns(feed_forward.up, normed, rank, ranks))
    return by_rows(feed_forward.down, features, rank, ranks)


def attention_on_rank(attention, normed, rank, ranks):
    linears, d = (attention.query, attention.key, attention.value), attention.head_dim
    parts = (by_columns(linear, normed, rank, ranks) for linear in linears)
    query, key, value = (rearrange(part, "b t (h d) -> b h t d", d=d) for part in parts)
    weights = (query @ key.transpose(-1, -2) / d**0.5).softmax(-1)
    context = rearrange(weights @ value, "b h t d -> b t (h d)")
    return by_rows(attention.out, context, rank, ranks)


def fsdp_peak(blocks, outside, ranks):
    return (sum(blocks) + outside) / ranks + max(blocks) + outside


# ---- several processes

SCRIPT = """
from __future__ import annotations
import os
import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from xlmrxl_min import XLMRobertaXLForMaskedLM
from xlmrxl_min.scale.mesh import RankError, init_mesh

{sources}
try:
    with init_mesh(tensor={tensor}, timeout_s={timeout_s}) as mesh:
        result = {work}(mesh, *torch.load("given.pt"))
except RankError as error:
    result = str(error)
torch.save(result, f"{{os.environ['RANK']}}.pt")
"""


def on_ranks(
    count: int, work: Callable[..., Any], *given: Any, tensor: int = 1, uses: tuple[Callable[..., Any], ...] = (),
    timeout_s: float = 600,
) -> list[Any]:  # fmt: skip
    """Call `work(mesh, *given)` in `count` processes on the CPU, started by torchrun; return what each returns.

    The source of `work`, and of the functions that it `uses`, becomes a script: what else it needs it must import. The
    processes form a mesh of `tensor` ranks in each tensor group. What is given and returned is copied through files,
    and so must be tensors, numbers, strings, or containers of them. If the ranks lose each other, which they notice
    after `timeout_s` seconds, a rank returns the error's text. Raises RuntimeError if a process fails otherwise.
    """
    sources = "\n\n".join(textwrap.dedent(inspect.getsource(function)) for function in (*uses, work))
    script = SCRIPT.format(sources=sources, tensor=tensor, timeout_s=timeout_s, work=work.__name__)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(given, Path(folder, "given.pt"))
        Path(folder, "script.py").write_text(script, encoding="utf-8")
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        settings = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
        done = subprocess.run([*torchrun, "script.py"], cwd=folder, env=settings, capture_output=True, text=True)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "Error: " in line]
            raise RuntimeError("\n".join(errors) or done.stderr[-2000:])
        return [torch.load(Path(folder, f"{rank}.pt")) for rank in range(count)]


def watch_fsdp(mesh: Any) -> tuple[int, list[tuple[int, int]]]:
    """Train a random model of twelve blocks for a step, with FSDP; return what this rank stores, and what it gathers.

    In parameters: those stored, and at each moment those gathered, of blocks and of what is in no block. Moments are
    before the step, inside and after each block, forward and backward, and after the step.
    """
    from torch.distributed.tensor import DTensor

    from xlmrxl_min import XLMRobertaXLConfig, XLMRobertaXLForMaskedLM
    from xlmrxl_min.scale.parallel import num_local_parameters, parallelize

    sizes: Any = {"hidden_size": 128, "num_hidden_layers": 12, "num_attention_heads": 4, "intermediate_size": 512}
    model = XLMRobertaXLForMaskedLM(XLMRobertaXLConfig(vocab_size=2000, **sizes))
    blocks: Any
    blocks, stored = parallelize(model, mesh).base_model.layers, num_local_parameters(model)
    ids, seen = torch.randint(3, 2000, (2, 50)), []

    def look(*_: Any) -> None:  # what is gathered is a plain tensor, what is not is a DTensor
        counts = [sum(p.numel() for p in part.parameters() if not isinstance(p, DTensor)) for part in (blocks, model)]
        seen.append((counts[0], counts[1] - counts[0]))

    def look_later(module: Any, given: Any, result: Any) -> None:  # in the backward pass
        (result[0] if isinstance(result, tuple) else result).register_hook(look)

    for block in blocks:
        for part in (block.attention, block):
            part.register_forward_hook(look)
        for part in (block.attention, block.feed_forward):
            part.register_forward_hook(look_later)
    look()
    model(ids, labels=ids).loss.backward()
    look()
    return stored, seen


def gradients_without_sum(mesh: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The gradients of what is replicated in layer 0 of tiny-relative-key, if the distance table's are not summed."""
    from types import MethodType

    from torch.distributed.tensor import DTensor

    from xlmrxl_min.model import Attention, XLMRobertaXLForMaskedLM
    from xlmrxl_min.scale.sharded_checkpoint import load

    model: Any = load(XLMRobertaXLForMaskedLM, "tiny-relative-key", mesh, progress=False)
    for block in model.backbone.layers:  # the method of model.py instead of ShardedAttention's
        block.attention.position_bias = MethodType(Attention.position_bias, block.attention)
    model(ids, labels=ids).loss.backward()
    return {name: p.grad for name, p in model.backbone.layers[0].named_parameters() if not isinstance(p, DTensor)}


def train_both_ways(mesh: Any, batches: list[dict[str, torch.Tensor]]) -> dict[str, list[float]]:
    """The losses of tiny in training on this rank's half of each batch: with train_step, and with the mean of means."""
    import torch.distributed as dist

    from xlmrxl_min import XLMRobertaXLForMaskedLM
    from xlmrxl_min.scale.sharded_checkpoint import load
    from xlmrxl_min.scale.train import clip_grad_norm, train_step
    from xlmrxl_min.training.loop import adamw, lr_schedule

    def mean_of_means(model: Any, optimizer: Any, batch: Any, mesh: Any) -> float:  # FSDP's, of each rank's mean
        loss = model(**batch).loss
        loss.backward()
        clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    losses: dict[str, list[float]] = {}
    rank = dist.get_rank()
    for step in (train_step, mean_of_means):
        model = load(XLMRobertaXLForMaskedLM, "tiny", mesh, progress=False).train()
        optimizer, losses[step.__name__] = adamw(model, 1e-3, weight_decay=0.01), []
        for i, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * lr_schedule(i, len(batches), 0, 1.0)
            mine = {name: x.chunk(2)[rank] for name, x in batch.items()}
            losses[step.__name__].append(step(model, optimizer, mine, mesh))
    return losses
