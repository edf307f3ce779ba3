"""Loading at full size on the CPU, beside transformers 4.56.2: seconds, and the most memory that is no file's.

    python tests/benchmarks/full_size.py FOLDER            # XL: 7 GB on the disk, 20 GB of memory
    python tests/benchmarks/full_size.py FOLDER --xxl      # XXL in int8: 22 + 12 GB on the disk, 14 GB of memory

Makes random checkpoints of the real sizes in FOLDER, if they are not there yet. Every load is a process of its own. XL:
its file is read once before, so that it comes from the page cache for all; a bfloat16 file to float32, three times in
turn, and the logits of 16 tokens, ours against theirs; beside them what the machine takes to hand out so much
memory, which nobody can undercut; and the file as it is. The first round is not counted: a virtual machine may have to
fetch its memory first. XXL: bfloat16 to int8, 16 tokens through it, the output of a layer against that of its weights
turned back to float32; then saved as int8, and loaded from there.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from against_peers import MemoryWatch
from safetensors.torch import save_file
from tqdm import tqdm

from xlmrxl_min import XLMRobertaXLConfig, XLMRobertaXLForMaskedLM
from xlmrxl_min.checkpoints.load import allocate
from xlmrxl_min.checkpoints.names import hugging_face_name
from xlmrxl_min.scale.planner import parameters

ROUNDS = 3
NUMBERS = ("seconds", "weights", "peak", "forward", "all")
IDS = torch.tensor([[0, *range(1000, 15000, 1000), 2]])


def make(folder: Path, config: XLMRobertaXLConfig) -> None:
    """Random weights in bfloat16, a file for each layer; norms near 1, so that activations are as large as usual."""
    if (folder / "config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        model = XLMRobertaXLForMaskedLM(config)
    generator, groups, index = torch.Generator().manual_seed(0), {}, {}
    for name, parameter in model.named_parameters():
        number = name.split(".")[2] if ".layers." in name else "rest"
        groups.setdefault(number, []).append((name, parameter.shape))
    for number, group in tqdm(groups.items(), desc=f"making {folder.name}", unit="layer"):
        tensors = {}
        for name, shape in group:
            values = torch.empty(shape, dtype=torch.bfloat16).normal_(std=config.initializer_range, generator=generator)
            tensors[hugging_face_name(name)] = values + 1 if name.endswith("norm.weight") else values
        save_file(tensors, folder / f"layer-{number}.safetensors", metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, f"layer-{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config.save_pretrained(folder)


def load(who: str, folder: Path, dtype: str, quantize: str | None, out: str) -> None:
    """In a process of its own: load, note seconds and peak, run 16 tokens, keep the logits in `out`."""
    if who == "memory":
        print(json.dumps(touch(XLMRobertaXLConfig.from_pretrained(folder))))
        return
    if who == "theirs":
        import transformers

        def run():
            kind = transformers.XLMRobertaXLForMaskedLM
            return kind.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="eager")
    else:

        def run():
            return XLMRobertaXLForMaskedLM.from_pretrained(folder, dtype=dtype, quantize=quantize, progress=False)

    with MemoryWatch() as watch:
        start = time.perf_counter()
        model = run().eval()
        seconds, loaded = time.perf_counter() - start, watch.peak
        start = time.perf_counter()
        with torch.inference_mode():
            logits = model(IDS).logits
        forward = time.perf_counter() - start
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    torch.save(logits.float(), out)
    numbers = {
        "seconds": seconds,
        "weights": weights,
        "peak": loaded,
        "forward": forward,
        "all": watch.peak,
    }
    print(json.dumps(numbers))


def touch(config: XLMRobertaXLConfig) -> dict[str, float]:
    """Write to as much fresh memory as the float32 model takes, in huge pages, with a thread for each processor."""
    size = sum(parameters(config).values()) * 4
    start = time.perf_counter()
    allocate(torch.Size([size // 4]), torch.float32, torch.device("cpu")).fill_(1)
    return {"seconds": time.perf_counter() - start, "weights": size, "peak": size, "forward": 0.0, "all": size}


def measured(who: str, folder: Path, dtype: str, quantize: str | None = None) -> dict:
    out = folder / f"logits-{who}-{dtype}-{quantize}.pt"
    call = [sys.executable, __file__, str(folder), "--load", who, dtype, str(quantize or ""), str(out)]
    run = subprocess.run(call, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(run.stderr[-2000:])
    logits = {} if who == "memory" else {"logits": torch.load(out)}
    return {**json.loads(run.stdout.splitlines()[-1]), **logits}


def warm(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 26):
                pass


def row(name: str, m: dict) -> None:
    numbers = (m["seconds"], m["weights"] / 1e9, m["peak"] / 1e9, m["forward"], m["all"] / 1e9)
    print(f"{name:<44}" + "".join(f"{number:9.2f}" for number in numbers), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--xxl", action="store_true")
    parser.add_argument("--load", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        who, dtype, quantize, out = options.load
        load(who, options.folder, dtype, quantize or None, out)
        return
    print(f"{'':<44}" + "".join(f"{head:>9}" for head in NUMBERS) + "   (GB; peak: to load; all: with 16 tokens)")
    if options.xxl:
        xxl(options.folder / "xxl")
    else:
        xl(options.folder / "xl")


def xl(folder: Path) -> None:
    make(folder, XLMRobertaXLConfig.xl())
    warm(folder)
    runs = {"the memory alone": [], "ours, bfloat16 file to float32": [], "transformers, the same": []}
    for number in range(1 + ROUNDS):
        for who, (name, results) in zip(("memory", "ours", "theirs"), runs.items(), strict=True):
            result = measured(who, folder, "float32")
            row(f"  round {number}: {name}", result)
            results += [result] if number else []
    for name, results in runs.items():
        row(f"median: {name}", {key: statistics.median(result[key] for result in results) for key in NUMBERS})
    row("ours, bfloat16 file as it is", measured("ours", folder, "bfloat16"))
    _, ours, theirs = runs.values()
    memory, we, they = (statistics.median(result["seconds"] for result in results) for results in runs.values())
    difference = float((ours[0]["logits"] - theirs[0]["logits"]).abs().max() / theirs[0]["logits"].abs().max())
    print(f"logits differ by {difference:.1e} of the largest")
    print(f"in terms of our median: transformers {they / we:.2f}, the memory alone {memory / we:.2f}")
    assert difference < 1e-4
    small, exact = measured("ours", folder, "float32", "int8"), ours[0]["logits"]
    row("ours, bfloat16 file to int8", small)
    same = (small["logits"].argmax(-1) == exact.argmax(-1)).float().mean()
    distance = (small["logits"] - exact).norm() / exact.norm()
    print(f"int8: logits differ by {distance:.1%} of their norm; {same:.0%} of the first answers are the same")


def xxl(folder: Path) -> None:
    make(folder, XLMRobertaXLConfig.xxl())
    small = measured("ours", folder, "float32", "int8")
    row("ours, XXL, bfloat16 file to int8", small)
    print(f"logits of 16 tokens are finite: {bool(small['logits'].isfinite().all())}")
    model = XLMRobertaXLForMaskedLM.from_pretrained(folder, quantize="int8")
    eighth = folder.with_name("xxl-int8")
    if not (eighth / "config.json").exists():
        model.save_pretrained(eighth)
    stored = measured("ours", eighth, "float32")
    row("ours, XXL, int8 file as it is", stored)
    assert torch.equal(stored["logits"], small["logits"])
    layer, states = model.backbone.layers[20], torch.randn(1, 16, 4096, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        fast = layer(states)[0]
        for module in layer.modules():
            for name, child in list(module.named_children()):
                if hasattr(child, "scale"):
                    plain = torch.nn.Linear(child.in_features, child.out_features, device="meta")
                    weight = child.weight.float() * child.scale[:, None]
                    plain.weight, plain.bias = torch.nn.Parameter(weight), child.bias
                    setattr(module, name, plain)
        slow = layer(states)[0]
    print(f"layer 20 differs from its weights turned back by {float((fast - slow).abs().max() / slow.abs().max()):.1e}")


if __name__ == "__main__":
    main()
