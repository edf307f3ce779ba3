"""A full-size checkpoint on two processes of the CPU, beside one process: seconds, memory, and the same logits?

    python tests/benchmarks/parallel.py FOLDER      # as made by full_size.py FOLDER, in FOLDER/xl: 15 GB of memory

Two ranks of tensor parallelism load their parts in float32; then one process loads it all. A rank's memory is what no
file backs.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from against_peers import anonymous_memory
from full_size import IDS

from xlmrxl_min import XLMRobertaXLForMaskedLM
from xlmrxl_min.scale.mesh import init_mesh
from xlmrxl_min.scale.parallel import num_local_parameters
from xlmrxl_min.scale.sharded_checkpoint import load


def on_a_rank(source: str, folder: Path) -> None:
    with init_mesh(tensor=2) as mesh:
        start = time.monotonic()
        model = load(XLMRobertaXLForMaskedLM, source, mesh)
        result = {"seconds": time.monotonic() - start, "parameters": num_local_parameters(model)}
        result["memory"] = anonymous_memory()
        with torch.no_grad():
            torch.save(model(IDS).logits, folder / f"{dist.get_rank()}.pt")
        (folder / f"{dist.get_rank()}.json").write_text(json.dumps(result))


def main() -> None:
    source = str(Path(sys.argv[1], "xl"))
    with tempfile.TemporaryDirectory() as folder:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        subprocess.run([*torchrun, __file__, source, folder], check=True)
        for rank in range(2):
            of = json.loads(Path(folder, f"{rank}.json").read_text())
            gigabytes = f"{4 * of['parameters'] / 1e9:.2f} GB of weights, {of['memory'] / 1e9:.2f} GB of memory"
            print(f"rank {rank}: {of['parameters']:,} parameters, {gigabytes}, loaded in {of['seconds']:.0f} s")
        divided = [torch.load(Path(folder, f"{rank}.pt")) for rank in range(2)]
    model = XLMRobertaXLForMaskedLM.from_pretrained(source)
    with torch.no_grad():
        whole = model(IDS).logits
    off = max(float((logits - whole).abs().max()) for logits in divided)
    print(
        f"logits of {IDS.shape[1]} tokens, up to {float(whole.abs().max()):.1f}: at most {off:.1e} from one process's"
    )


if __name__ == "__main__":
    main() if len(sys.argv) == 2 else on_a_rank(sys.argv[1], Path(sys.argv[2]))
