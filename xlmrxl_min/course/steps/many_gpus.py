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
import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
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
        Path(folder, "script.py").write_text(f"import os{script}", encoding="utf-8")
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        settings = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
        done = subprocess.run([*torchrun, "script.py"], cwd=folder, env=settings, capture_output=True, text=True)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "Error: " in line]
            raise RuntimeError("\n".join(errors) or done.stderr[-2000:])
        return [torch.load(Path(folder, f"{rank}.pt")) for rank in range(count)]
