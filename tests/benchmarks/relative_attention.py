"""Attention with relative positions beside transformers 4.56.2: time and extra memory, at XL's 32 heads of 80.

    python tests/benchmarks/relative_attention.py

One whole attention of a block each: norm, projections, scores, output, residual; the same weights and input. Times are
medians of alternating runs in one process; extra memory is a process's peak less what it held before, measured in a
process of its own (Linux). Prints a table, ours against theirs, and fails if an output or a gradient differs.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

import torch
import transformers
from tqdm import tqdm
from transformers.models.xlm_roberta_xl.modeling_xlm_roberta_xl import XLMRobertaXLAttention

from xlmrxl_min import XLMRobertaXLConfig
from xlmrxl_min.checkpoints.names import hugging_face_name
from xlmrxl_min.model import Attention

TOKENS = 512
KINDS, BATCHES = ("relative_key", "relative_key_query"), (1, 4)
HERE = "backbone.layers.0.attention."


def contenders(kind: str, batch: int) -> dict:
    torch.manual_seed(0)
    config = {"position_embedding_type": kind, "attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}
    theirs = XLMRobertaXLAttention(transformers.XLMRobertaXLConfig(**config, attn_implementation="eager"))
    torch.nn.init.normal_(theirs.self.distance_embedding.weight, std=0.3)
    ours = Attention(XLMRobertaXLConfig(**config))
    weights = theirs.state_dict()
    there = hugging_face_name(HERE + "norm.weight").removesuffix("self_attn_layer_norm.weight")
    names = {name: hugging_face_name(HERE + name).removeprefix(there) for name in ours.state_dict()}
    ours.load_state_dict({name: weights[theirs_name] for name, theirs_name in names.items()})
    hidden = torch.randn(batch, TOKENS, 2560, requires_grad=True)
    return {
        "theirs": (theirs, lambda: theirs(hidden)[0], hidden),
        "ours": (ours, lambda: ours(hidden)[0], hidden),
    }


def forward(contender) -> tuple[float, torch.Tensor]:
    """Seconds, and the output."""
    with torch.no_grad():
        start = time.perf_counter()
        out = contender[1]()
        return time.perf_counter() - start, out


def backward(contender) -> tuple[float, torch.Tensor]:
    """Seconds of the backward pass alone, and the gradient of the input."""
    module, run, hidden = contender
    module.zero_grad(), setattr(hidden, "grad", None)
    loss = run().square().sum()
    start = time.perf_counter()
    loss.backward()
    return time.perf_counter() - start, hidden.grad


def held(field: str) -> float:
    """MiB of this process's memory, now (VmRSS) or at its peak (VmHWM)."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field)) / 1024


def extra_memory(name: str, kind: str, batch: int) -> float:
    contender = contenders(kind, batch)[name]
    forward(contender)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts again from here
    before = held("VmRSS")
    forward(contender)
    return held("VmHWM") - before


def in_a_process_of_its_own(name: str, kind: str, batch: int) -> float:
    thrifty = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # give back at once what is freed
    command = [sys.executable, __file__, "--memory", name, kind, str(batch)]
    environment = {**os.environ, **thrifty}
    return float(subprocess.run(command, env=environment, capture_output=True, check=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(extra_memory(options.memory[0], options.memory[1], int(options.memory[2])))
        return
    lines = []
    for kind, batch in tqdm([(kind, batch) for kind in KINDS for batch in BATCHES], unit="row"):
        both = contenders(kind, batch)
        for work in (forward, backward):
            torch.testing.assert_close(work(both["ours"])[1], work(both["theirs"])[1], rtol=1e-4, atol=1e-4)
        figures = {}
        for name, work in (("forward, s", forward), ("backward, s", backward)):
            times = {"theirs": [], "ours": []}
            for _ in range(options.rounds):
                for contender, series in times.items():
                    series.append(work(both[contender])[0])
            figures[name] = {contender: statistics.median(series) for contender, series in times.items()}
        del both
        figures["extra memory, MiB"] = {name: in_a_process_of_its_own(name, kind, batch) for name in ("theirs", "ours")}
        for name, pair in figures.items():
            ratio = pair["ours"] / pair["theirs"]
            lines.append(f"| {kind} | {batch} | {name} | {pair['theirs']:.3g} | {pair['ours']:.3g} | {ratio:.2f} |")
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads"
    head = "| type | batch | measured | theirs | ours | ratio |\n|---|---|---|---|---|---|"
    print(f"{versions}, {TOKENS} tokens, 32 heads of 80\n\n{head}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
