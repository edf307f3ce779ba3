"""Ours beside what a user would take instead: transformers 4.56.2 and, by --peer, a newer one. Seconds and memory.

    python tests/benchmarks/against_peers.py FOLDER --peer PYTHON --load --figure FILE

PYTHON is the interpreter of an environment with a newer transformers. Every contender is a process of its own, and they
do the work in turns, at once after one another, as a machine is not always equally fast; a row's ratio is the median of
the turns' ratios, in three rounds of new processes. What they compute is compared first: a row with another answer is
an error, not a figure. In the int8 rows ours stands beside theirs in float32 and in bfloat16. Checkpoints with random
weights of XL's width are made in FOLDER once (10 GB; with --load, all of XL, 28 GB more, and it needs 20 GB of memory).
Beside them stand two limits of the machine, measured in the same run: how fast it multiplies matrices (which takes its
turns among the forward passes), and how fast it copies memory.

Prints a table, and writes it with every single figure to FOLDER/against_peers.json.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, redirect_stdout
from datetime import date
from functools import partial
from operator import truediv
from pathlib import Path

import torch
from tqdm import tqdm

WIDTH, LAYERS = 2560, 2  # XL's, and the encoder's below
XL = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 32,
    "intermediate_size": 4 * WIDTH,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
CHECKPOINTS = {  # of XL's width, in float32
    "encoder": {**XL, "vocab_size": 12002},
    "masked": {**XL, "vocab_size": 250_880},
    "relative": {**XL, "vocab_size": 12002, "position_embedding_type": "relative_key_query"},
    "decoder": {**XL, "vocab_size": 250_880, "num_hidden_layers": 4, "is_decoder": True},
}
PRODUCT = 2048, 4096, 4096  # rows, inner and columns of the matrix product that is the limit
BFLOAT16 = ", bfloat16"  # what a contender of the int8 rows has in its name, beside itself in float32
ROUNDS = 3  # each in new processes: one may be 3% faster than another of the same code, for as long as it lives
TURNS, TURNS_S = 2, 20  # in a round: at least so many, and for so many seconds, of contenders in memory together


# ---- in a contender's process: each of these gives the work to be timed, which gives the numbers to be compared


def random_ids(batch: int, tokens: int, vocabulary: int = 8002) -> torch.Tensor:
    return torch.randint(5, vocabulary - 5, (batch, tokens), generator=torch.Generator().manual_seed(tokens))


def load(who: str, kind: str, path: Path, attention: str = "sdpa", quantize: str | None = None):
    """A model of the class XLMRobertaXL + kind, as the contender loads it: in float32, unless its name says bfloat16.

    quantize: ours only.
    """
    options = {"add_pooling_layer": False} if kind == "Model" else {}
    if who == "ours":
        import xlmrxl_min

        return getattr(xlmrxl_min, f"XLMRobertaXL{kind}").from_pretrained(
            path, dtype="float32", quantize=quantize, progress=False, **options
        )
    import transformers

    transformers.logging.set_verbosity_error()
    cls = getattr(transformers, f"XLMRobertaXL{kind}")
    dtype = torch.bfloat16 if who.endswith(BFLOAT16) else torch.float32
    return cls.from_pretrained(path, dtype=dtype, attn_implementation=attention, **options)


def forward(who: str, path: Path, batch: int, tokens: int, attentions: bool, quantize: str | None = None) -> Callable:
    model = load(who, "Model", path, "eager" if attentions else "sdpa", quantize).eval()
    ids = random_ids(batch, tokens)

    def work():
        with torch.inference_mode():
            out = model(ids, output_attentions=attentions)
        return [out.last_hidden_state, *(out.attentions or ())]

    return work


def embedding(who: str, path: Path, count: int) -> Callable:
    """Mean states of texts: ours from the texts, theirs from padded batches of 64; only ours tokenizes."""
    texts = json.loads((path.parent / "texts.json").read_text(encoding="utf-8"))
    model = load(who, "Model", path).eval()
    if who == "ours":
        from xlmrxl_min import XLMRobertaTokenizer, embed

        tokenizer = XLMRobertaTokenizer.from_pretrained("tiny")
        return lambda: [embed(model, tokenizer, texts["texts"][:count], progress=False)]
    batches = [torch.tensor(ids) for ids in texts["ids"][: count // 64]]

    def pooled(ids):
        mask = (ids != 1).long()
        hidden = model(ids, attention_mask=mask).last_hidden_state
        return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    def work():
        with torch.inference_mode():
            return [torch.cat([pooled(ids) for ids in batches])]

    return work


def step(who: str, path: Path) -> Callable:
    """Forward, backward, clipping, AdamW: 8 texts of 128 tokens, 15% of them labelled."""
    model = load(who, "ForMaskedLM", path).train()
    ids = random_ids(8, 128, 250_000)
    drawn = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.masked_fill(drawn >= 0.15, -100)}
    if who == "ours":
        from xlmrxl_min.training.loop import adamw, compute_loss

        optimizer = adamw(model, 1e-9, 0.0)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), 1e-9, weight_decay=0.0, fused=True)

        def compute_loss(model, batch):
            return model(**batch).loss

    def work():
        loss = compute_loss(model, batch)
        loss.backward()
        length = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        words = model.get_input_embeddings().weight.grad[ids[0, :8]].clone()
        optimizer.step()
        optimizer.zero_grad()
        return [loss.detach(), length, words]

    work()  # only from the second step on are AdamW's numbers there, in time and in memory
    return work


def relative(who: str, path: Path) -> Callable:
    """Forward and backward with relative positions, 4 texts of 512 tokens."""
    model, ids = load(who, "Model", path, "eager").train(), random_ids(4, 512)
    # Not the sum of squares: after a norm that is always the same, and its gradient nothing but rounding.
    direction = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(0))

    def work():
        hidden = model(ids).last_hidden_state
        (hidden @ direction).sum().backward()
        gradient = next(p for name, p in model.named_parameters() if "distance" in name).grad.clone()
        model.zero_grad()
        return [hidden.detach(), gradient]

    return work


def generation(who: str, path: Path, batch: int, new: int, quantize: str | None = None) -> Callable:
    model = load(who, "ForCausalLM", path, quantize=quantize).eval()
    ids = random_ids(batch, 16)
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": new, "do_sample": False, "eos_token_id": -1}
    options |= {} if who == "ours" else {"pad_token_id": 1}
    if who.startswith("transformers 5"):  # its generate counts positions from 0, its forward from 2
        options["position_ids"] = torch.arange(2, 18).expand(batch, -1)
    if quantize is None:
        return lambda: [model.generate(ids, **options)]
    with torch.inference_mode():  # with random weights the least error changes what is written: compare logits
        logits = model(ids).logits[:, -1].float()

    def work():
        model.generate(ids, **options)
        return [logits]

    return work


def loading(who: str, path: Path) -> Callable:
    """The model is made in the work: it is the work."""

    def work():
        model = load(who, "ForMaskedLM", path)
        last = {tuple(p.shape): p.detach()[-8:].clone() for p in model.parameters() if p.dim() == 2}  # of each shape
        return [model.get_input_embeddings().weight.detach()[:64].clone(), *(last[shape] for shape in sorted(last))]

    return work


def products(who: str, path: Path) -> Callable:
    """What a forward pass would do at best; no contender."""
    rows, inner, columns = PRODUCT
    a, b = torch.randn(rows, inner), torch.randn(inner, columns)

    def work():
        a @ b
        return []

    return work


TASKS = {
    **{f"forward {b}×{t}": (forward, "encoder", b, t, False) for b, t in ((1, 12), (1, 128), (1, 512), (8, 512))},
    **{f"with attentions {b}×{t}": (forward, "encoder", b, t, True) for b, t in ((1, 12), (1, 128), (8, 512))},
    "embed 64 texts of mixed length": (embedding, "encoder", 64),
    **{f"tiny embeds {count:,} texts of mixed length": (embedding, "tiny", count) for count in (64, 1024)},
    "masked-LM training step 8×128": (step, "masked"),
    "relative_key_query 4×512, forward and backward": (relative, "relative"),
    **{f"tiny-decoder generates {b}×128 tokens": (generation, "tiny-decoder", b, 128) for b in (1, 8)},
    **{f"XL's width, 4 layers, generates {b}×12 tokens": (generation, "decoder", b, 12) for b in (1, 8)},
    **{f"int8: forward {b}×{t}": (forward, "encoder", b, t, False, "int8") for b, t in ((1, 12), (1, 128), (8, 512))},
    "int8: XL's width, 4 layers, generates 1×12 tokens": (generation, "decoder", 1, 12, "int8"),
}
LOADS = {
    "load XL: bfloat16 file to float32": (loading, "XL-bfloat16"),
    "load XL: bfloat16, 37 files, to float32": (loading, "XL-shards"),
    "load XL: float32 file": (loading, "XL-float32"),
}
LIMIT = "matrix products"
ALL = {**TASKS, **LOADS, LIMIT: (products, "")}
APART = {*LOADS, "masked-LM training step 8×128"}  # too large to be in memory together


def anonymous_memory() -> int:
    """Bytes of this process that are no file's."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


class MemoryWatch:
    """`with MemoryWatch() as watch`: `watch.peak`, the most anonymous memory so far, beyond what there was before."""

    def __enter__(self):
        self.before, self.peak, self.done = anonymous_memory(), 0, threading.Event()
        self.thread = threading.Thread(target=self.look)
        self.thread.start()
        return self

    def look(self) -> None:
        is_last = False
        while not is_last:  # the last look is after the end
            is_last = self.done.wait(0.002)
            self.peak = max(self.peak, anonymous_memory() - self.before)

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()


def product_rate() -> float:
    """Multiplications and additions per second in products of large float32 matrices; the best of five."""
    work = products("", Path())
    return 2 * math.prod(PRODUCT) / min(timed(work) for _ in range(5))


def copy_rate() -> float:
    """Bytes per second, read and written; the best of five."""
    source, target = torch.ones(2**28), torch.empty(2**28)
    return 2 * source.nbytes / min(timed(lambda: target.copy_(source)) for _ in range(5))


def timed(work: Callable) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def contend(who: str, folder: Path, task: str, out: Path, requests: Iterable[str]) -> None:
    """Load, do the task, keep the answer in `out`, print seconds and memory; again for each line of `requests`."""
    respond = partial(print, file=sys.stdout, flush=True)
    with redirect_stdout(sys.stderr):
        make, checkpoint, *arguments = ALL[task]
        with MemoryWatch() as watch:
            work = make(who, folder / checkpoint, *arguments)
            start = time.perf_counter()
            answer = work()
            seconds = time.perf_counter() - start
        torch.save(answer, out)
        del answer
        respond(json.dumps({"seconds": seconds, "peak": watch.peak}))
        for _ in requests:
            respond(json.dumps({"seconds": timed(work)}))


# ---- in this process: checkpoints, turns, the table


def make_checkpoints(folder: Path, names: set[str]) -> None:
    from full_size import make

    from xlmrxl_min import XLMRobertaTokenizer, XLMRobertaXLConfig, XLMRobertaXLForCausalLM, XLMRobertaXLForMaskedLM
    from xlmrxl_min.checkpoints.locate import PRETRAINED
    from xlmrxl_min.training.texts import udhr

    for name in sorted(names & set(CHECKPOINTS)):
        if not (folder / name / "config.json").exists():
            torch.manual_seed(0)
            cls = XLMRobertaXLForCausalLM if "is_decoder" in CHECKPOINTS[name] else XLMRobertaXLForMaskedLM
            model = cls(XLMRobertaXLConfig(**CHECKPOINTS[name]))
            model.save_pretrained(folder / name)
            del model
    for name in ("tiny", "tiny-decoder"):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(PRETRAINED / name)
    tokenizer = XLMRobertaTokenizer.from_pretrained("tiny")
    texts = [row.text for row in [*udhr(["en", "fr", "de", "es"]), *udhr()] if len(tokenizer.encode(row.text)) <= 256]
    batches = [tokenizer(texts[start : start + 64], padding=True).input_ids for start in range(0, 1024, 64)]
    (folder / "texts.json").write_text(json.dumps({"texts": texts, "ids": batches}), encoding="utf-8")
    if any(name.startswith("XL-") for name in names):
        make(folder / "XL-shards", XLMRobertaXLConfig.xl())
    for name, dtype in (("XL-bfloat16", torch.bfloat16), ("XL-float32", torch.float32)):
        if name in names and not (folder / name / "config.json").exists():
            model = XLMRobertaXLForMaskedLM.from_pretrained(folder / "XL-shards", dtype=dtype)
            model.save_pretrained(folder / name, max_shard_size="100GB")
            del model


def compare(task: str, answers: dict[str, list[torch.Tensor]]) -> float:
    """The largest difference from ours, in shares of the largest number; an error where it is more than 1e-4.

    int8 may differ by 5%; those in bfloat16 are not compared.
    """
    differences, limit = [torch.zeros(())], 0.05 if "int8" in task else 1e-4
    for who, answer in answers.items():
        if who.endswith(BFLOAT16):
            continue
        for mine, theirs in zip(answers["ours"], answer, strict=True):
            if mine.is_floating_point():
                differences.append((mine - theirs).abs().max() / theirs.abs().max())
            elif not torch.equal(mine, theirs):
                raise AssertionError(f"{task}: ours and {who} do not write the same")
    worst = float(torch.stack(differences).max())  # NaN, if one is
    if not worst < limit:
        raise AssertionError(f"{task}: the answers differ by {worst:.1e} of their largest number")
    return worst


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class Contender:
    """`with Contender(…) as one`: a process that has done its task once; `one.turn()`, once more."""

    def __init__(self, who: str, python: str, folder: Path, task: str) -> None:
        self.name, self.out, self.errors = f"{task} by {who}", folder / "answer.pt", folder / "errors.txt"
        call = [python, __file__, str(folder), "--contend", who, task, str(self.out)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment()}
        with open(self.errors, "w") as errors:
            self.process = subprocess.Popen(call, stderr=errors, **pipes)

    def __enter__(self):
        self.first = self.response()
        self.answer = torch.load(self.out)
        return self

    def response(self) -> dict[str, float]:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name}: {self.errors.read_text()[-1500:]}")
        return json.loads(line)

    def turn(self) -> float:
        print(file=self.process.stdin, flush=True)
        return self.response()["seconds"]

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()


def measure(task: str, folder: Path, contenders: dict[str, str]) -> dict[str, dict]:
    """{contender: {"seconds": of every turn, "peak": bytes}}; and of matrix products beside them."""
    found: dict[str, dict] = {who: {"seconds": [], "peak": []} for who in contenders}
    for number in range(ROUNDS):
        if task not in APART:
            together(task, folder, contenders, found)
            continue
        answers = {}
        for who, python in contenders.items():
            with Contender(who, python, folder, task) as one:
                answers[who] = one.answer
                found[who]["peak"].append(one.first["peak"])
                found[who]["seconds"].append(one.first["seconds"])
        if number == 0:
            compare(task, answers)
    return found


def together(task: str, folder: Path, contenders: dict[str, str], found: dict[str, dict]) -> None:
    """A round of all contenders in memory at once, and of matrix products; what it measures goes into `found`."""
    with ExitStack() as stack:
        present = {who: stack.enter_context(Contender(who, contenders[who], folder, task)) for who in contenders}
        found["ours"]["error"] = compare(task, {who: one.answer for who, one in present.items()})
        for who, one in present.items():
            found[who]["peak"].append(one.first["peak"])
            del one.answer
        if operations(task):
            found.setdefault(LIMIT, {"seconds": []})
            present[LIMIT] = stack.enter_context(Contender(LIMIT, sys.executable, folder, LIMIT))
        turns, start, order = 0, time.monotonic(), list(present)
        while turns < TURNS or time.monotonic() - start < TURNS_S:
            for who in order:
                found[who]["seconds"].append(present[who].turn())
            order.reverse()
            turns += 1


def imports(contenders: dict[str, str]) -> dict[str, dict]:
    """Of the class for masked words; beside torch alone, which nobody can undercut."""
    calls = {"torch alone": (sys.executable, "import torch")}
    for who, python in contenders.items():
        if who.endswith(BFLOAT16):
            continue
        package = "xlmrxl_min" if who == "ours" else "transformers"
        calls[who] = (python, f"from {package} import XLMRobertaXLForMaskedLM")
    found: dict[str, dict] = {who: {"seconds": [], "peak": []} for who in calls}
    for turn in range(2 * ROUNDS + 1):
        for who, (python, statement) in calls.items():
            call = {"args": [python, "-c", statement], "check": True, "env": environment(), "capture_output": True}
            seconds = timed(lambda call=call: subprocess.run(**call))
            if turn:  # the first reads the files from the disk
                found[who]["seconds"].append(seconds)
    return found


def operations(task: str) -> float | None:
    """Multiplications and additions of a forward pass; of the encoder's matrices alone."""
    make, _, *rest = TASKS.get(task, (None, None))
    if make is not forward or "int8" in task:
        return None
    batch, tokens, _ = rest
    return LAYERS * batch * tokens * (2 * 12 * WIDTH**2 + 2 * 2 * tokens * WIDTH)


def seconds_of(row: dict[str, dict], who: str) -> float:
    return statistics.median(row[who]["seconds"])


def speedup(row: dict[str, dict], who: str) -> tuple[float, float, float]:
    """Their time divided by ours, turn by turn: first quartile, median, third."""
    ratios = map(truediv, row[who]["seconds"], row["ours"]["seconds"])
    return tuple(statistics.quantiles(ratios, n=4, method="inclusive"))


def peers_of(result: dict) -> list[str]:
    """The contenders but ours that any row has."""
    rows = result["rows"].values()
    return [who for who in result["versions"] if who != "ours" and any(who in row for row in rows)]


def table(result: dict) -> str:
    """Seconds of every contender, how many times ours that is, and GB."""
    peers, limit = peers_of(result), result["limits"]
    lines = [f"{result['date']}, {result['machine']}"]
    lines += [f"{who}: {result['versions'][who]}" for who in ("ours", *peers)]
    lines += [f"limits: {limit['operations'] / 1e9:.0f} GFLOP/s, {limit['bytes'] / 1e9:.1f} GB/s read and written"]
    for task, row in result["rows"].items():
        if "int8: forward" in task:
            lines.append(f"{task}: differs from float32 by up to {row['ours']['error']:.1%} of the largest number")
        if LIMIT in row:
            share = operations(task) / (2 * math.prod(PRODUCT)) * speedup(row, LIMIT)[1]
            lines.append(f"{task}: {share:.0%} of the rate of matrix products that took turns with it")
    if "import" in result["rows"]:
        alone, ours = (seconds_of(result["rows"]["import"], who) for who in ("torch alone", "ours"))
        lines.append(f"import: {ours - alone:.2f} s more than torch alone ({alone:.2f} s)")
    heads = ["", "ours, s", *(f"{who}, s | speed-up" for who in peers), "GB, ours", *(f"GB, {who}" for who in peers)]
    lines += ["", f"| {' | '.join(heads)} |", "|---" * (3 + 3 * len(peers)) + "|"]
    for name, row in result["rows"].items():
        ours = seconds_of(row, "ours")
        cells = [name, f"{ours:.3g}"]
        for who in peers:
            cells += [f"{seconds_of(row, who):.3g}", f"{speedup(row, who)[1]:.2f}"] if who in row else ["–"] * 2
        for who in ("ours", *peers):
            cells.append(f"{statistics.median(row[who]['peak']) / 1e9:.2f}" if row.get(who, {}).get("peak") else "–")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(result: dict, file: Path) -> None:
    """A bar from 1 for each peer and row: how many times ours it takes; a line from the first to the third quartile."""
    import matplotlib.pyplot as plt

    peers, rows = peers_of(result), result["rows"]
    figure, axis = plt.subplots(figsize=(8, 0.42 * len(rows) + 1), layout="constrained")
    for number, who in enumerate(peers):
        shift = 0.8 * ((number + 0.5) / len(peers) - 0.5)
        first = next((place for place, row in enumerate(rows.values()) if who in row), None)
        for place, row in enumerate(rows.values()):
            if who in row:
                low, middle, high = speedup(row, who)
                label = who if place == first else None
                axis.barh(place + shift, middle - 1, 0.72 / len(peers), left=1, color=f"C{number}", label=label)
                axis.plot([low, high], [place + shift] * 2, color="black", linewidth=1)
    axis.axvline(1, color="black", linewidth=1)
    axis.set_yticks(range(len(rows)), rows)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set(xscale="log", xlabel="seconds, where ours takes 1")
    axis.set_title(f"{result['date']}, {result['machine']}, {result['versions']['ours']}", fontsize=9)
    axis.set_xticks([1, 1.5, 2, 3, 5, 8], ["1", "1.5", "2", "3", "5", "8"])
    axis.minorticks_off()
    axis.set_xlim(0.8, 1.1 * max(speedup(row, who)[2] for row in rows.values() for who in peers if who in row))
    axis.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.9))
    figure.savefig(file, dpi=150)


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0] if names else platform.machine()}"


def version(python: str) -> tuple[str, str]:
    """Of transformers; and of all that matters."""
    code = "import torch, transformers as t; print(t.__version__, torch.__version__, torch.get_num_threads())"
    theirs, torchs, threads = subprocess.check_output([python, "-c", code], text=True).split()
    return theirs, f"torch {torchs}, {threads} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peer", action="append", default=[], metavar="PYTHON", help="of a newer transformers")
    parser.add_argument("--load", action="store_true", help="the loads of all of XL, too")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="rows whose names hold one of these")
    parser.add_argument("--go-on", action="store_true", help="keep the rows that a broken-off run has measured")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the ratios into this file")
    parser.add_argument("--contend", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contend:
        who, task, out = options.contend
        contend(who, options.folder, task, Path(out), sys.stdin)
        return
    contenders, versions = {"ours": sys.executable}, {"ours": version(sys.executable)[1]}
    for python in (sys.executable, *options.peer):
        number, all_of_it = version(python)
        for precision in ("", BFLOAT16):
            name = f"transformers {number}{precision}"
            contenders[name], versions[name] = python, all_of_it
    tasks = {**TASKS, **(LOADS if options.load else {})}
    wanted = [name for name in ("import", *tasks) if any(word in name for word in options.only)]
    options.folder.mkdir(parents=True, exist_ok=True)
    make_checkpoints(options.folder, {tasks[name][1] for name in wanted if name in tasks})
    result = {
        "date": str(date.today()),
        "machine": machine(),
        "versions": versions,
        "limits": {"operations": product_rate(), "bytes": copy_rate()},
        "rows": {},
    }
    file = options.folder / "against_peers.json"
    if options.go_on:
        result["rows"] = json.loads(file.read_text())["rows"]
    for task in tqdm([name for name in wanted if name not in result["rows"]], unit="row"):
        if task == "import":
            row = imports(contenders)
        else:  # transformers 5 has no relative positions
            able = {who: python for who, python in contenders.items() if "relative" not in task or "s 5" not in who}
            able = {who: python for who, python in able.items() if "int8" in task or not who.endswith(BFLOAT16)}
            row = measure(task, options.folder, able)
        result["rows"][task] = row
        file.write_text(json.dumps(result, indent=1))
    print(table(result))
    if options.figure:
        draw(result, options.figure)


if __name__ == "__main__":
    main()
