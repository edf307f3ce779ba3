"""Two writers of one page and of one checkpoint, in processes or threads, while two readers read them; prints counts.

Run by hand with the number of saves of each writer: python tests/concurrent_writers.py 300
"""

import multiprocessing
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from queue import Queue

import torch

from xlmrxl_min import XLMRobertaXLConfig, XLMRobertaXLModel
from xlmrxl_min.interpret.explore import explore

SIZES = {1.0: (16, 1, "5GB"), 2.0: (32, 3, "20KB")}  # a weight's value -> hidden_size, layers, max_shard_size


def make_pages():
    texts = (["a"] * 40, ["another", "text"] * 60)
    return [explore([torch.full((1, 2, len(text), len(text)), 1 / len(text))], text) for text in texts]


def make_models():
    models = []
    for value, (width, layers, _) in SIZES.items():
        config = XLMRobertaXLConfig(
            vocab_size=50, hidden_size=width, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=20,
        )  # fmt: skip
        models.append(XLMRobertaXLModel(config))
        for parameter in models[-1].parameters():
            parameter.data.fill_(value)
    return models


def save_page(folder, page):
    page.save(folder / "page.html")


def save_model(folder, model):
    (shard_size,) = {size for width, _, size in SIZES.values() if width == model.config.hidden_size}
    model.save_pretrained(folder / "model", max_shard_size=shard_size)


def read_page(folder, pages):
    return (folder / "page.html").read_bytes() in [page.html.encode() for page in pages]


def read_model(folder, _):
    model = XLMRobertaXLModel.from_pretrained(folder / "model", progress=False)
    values = {parameter.flatten()[i].item() for parameter in model.parameters() for i in (0, -1)}
    return len(values) == 1 and SIZES[values.pop()][:2] == (model.config.hidden_size, model.config.num_hidden_layers)


KINDS = {"page": (make_pages, save_page, read_page), "checkpoint": (make_models, save_model, read_model)}


def attempt(counts, what, function, *arguments):
    try:
        complete = function(*arguments)
        counts[what] += 1
        counts["partial reads"] += complete is False
    except Exception as error:
        counts["errors"] += 1
        print(f"{what}: {type(error).__name__}: {error}", file=sys.stderr)


def write(folder, kind, saves, start, _, results):
    make, save, _ = KINDS[kind]
    counts, items = Counter(), make()
    start.wait()
    for i in range(saves):
        attempt(counts, "saves", save, folder, items[i % 2])
    results.put(counts)


def read(folder, kind, _, start, stop, results):
    make, _, check = KINDS[kind]
    counts, items = Counter(), make()
    start.wait()
    attempt(counts, "reads", check, folder, items)
    while not stop.is_set():
        attempt(counts, "reads", check, folder, items)
    results.put(counts)


def run(folder, kind, saves, *, processes):
    """Counts of saves, reads, errors and partial reads, and of hidden files that are left."""
    make, save, check = KINDS[kind]
    items = make()
    save(folder, items[0])
    context = multiprocessing.get_context("forkserver" if sys.platform != "win32" else "spawn")
    if processes and sys.platform != "win32":
        context.set_forkserver_preload(["xlmrxl_min"])  # imported once
    worker, event, barrier = (
        (context.Process, context.Event, context.Barrier)
        if processes
        else (threading.Thread, threading.Event, threading.Barrier)
    )
    results = context.Queue() if processes else Queue()
    start, stop = barrier(4), event()
    workers = [worker(target=do, args=(folder, kind, saves, start, stop, results)) for do in (write, write, read, read)]
    for one in workers:
        one.start()
    for one in workers[:2]:
        one.join()
    stop.set()
    counts = sum((results.get(timeout=120) for _ in workers), Counter())
    for one in workers[2:]:
        one.join()
    assert check(folder, items), "the last save is whole"
    counts["files left"] = len([path for path in folder.rglob("*") if path.name.startswith(".")])
    return {name: counts[name] for name in ("saves", "reads", "errors", "partial reads", "files left")}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for kind in KINDS:
        for processes in (True, False):
            with tempfile.TemporaryDirectory() as folder:
                counts = run(Path(folder), kind, int(sys.argv[1]), processes=processes)
            print(f"{kind}, 2 {'processes' if processes else 'threads'}:", counts)
