"""Large checkpoints: nothing is in memory twice, XL and XXL stream onto a fake device, and what does not fit is told.

Tests marked cuda do the same on a GPU; those marked full_size compare the published checkpoints with published numbers.
"""

import json
import os
import subprocess
import sys
import threading
import weakref
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers_reference import SMALL, twins

import xlmrxl_min
from xlmrxl_min import CheckpointError, XLMRobertaTokenizer, XLMRobertaXLConfig, XLMRobertaXLForMaskedLM, fill_mask
from xlmrxl_min.checkpoints.memory import free_memory
from xlmrxl_min.checkpoints.names import hugging_face_name
from xlmrxl_min.scale import planner

# ---- memory

MEASURE = """
import gc, threading, time, torch
from pathlib import Path
from xlmrxl_min import XLMRobertaXLForMaskedLM

def anonymous_memory():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

def watch():
    global peak
    while not done:
        peak = max(peak, anonymous_memory())
        time.sleep(0.001)

torch.set_num_threads(1)
XLMRobertaXLForMaskedLM.from_pretrained("tiny", quantize="int8")  # what torch imports and allocates once
for dtype, quantize in (("float32", None), ("bfloat16", None), ("float32", "int8")):
    gc.collect()  # a model that is freed only while the next one loads would hide some of the peak
    before, peak, done = anonymous_memory(), 0, False
    watcher = threading.Thread(target=watch)
    watcher.start()
    model = XLMRobertaXLForMaskedLM.from_pretrained({folder!r}, dtype=dtype, quantize=quantize, progress=False)
    done = True
    watcher.join()
    peak = max(peak, anonymous_memory())  # the watcher may have missed the end
    print(peak - before, sum(p.nbytes for p in model.parameters()))
    del model
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc, to see memory by kind")
def test_nothing_is_in_memory_twice(tmp_path):
    """Peak anonymous memory while a bfloat16 file is loaded: the model and a few chunks; nothing if it stays mapped."""
    config = XLMRobertaXLConfig(vocab_size=20_000, hidden_size=1024, num_attention_heads=8, num_hidden_layers=3)
    with torch.device("meta"):
        model = XLMRobertaXLForMaskedLM(config)
    model.bfloat16().to_empty(device="cpu").tie_weights()
    model.save_pretrained(tmp_path)
    code = MEASURE.replace("{folder!r}", repr(str(tmp_path)))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    converted, mapped, int8 = (map(int, line.split()) for line in run.stdout.splitlines())
    (peak, weights), (mapped_peak, _), (int8_peak, int8_weights) = converted, mapped, int8
    assert 0.99 * weights < peak < 1.05 * weights
    assert mapped_peak < 10_000_000
    assert int8_peak < int8_weights + 200_000_000


def write_sparse_checkpoint(folder, config, dtype="F32", shards=4):
    """A checkpoint whose files are sparse: every weight is zero and takes no space on the disk; its parameters."""
    with torch.device("meta"):
        model = XLMRobertaXLForMaskedLM(config)
    size = {"F32": 4, "BF16": 2}[dtype]
    names = {hugging_face_name(name): tuple(p.shape) for name, p in model.named_parameters()}
    folder.mkdir(parents=True, exist_ok=True)
    groups, index = [dict(list(names.items())[i::shards]) for i in range(shards)], {}
    for number, group in enumerate(groups):
        header, at = {}, 0
        for name, shape in group.items():
            nbytes = size * torch.Size(shape).numel()
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + nbytes]}
            at += nbytes
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # as safetensors does, so that the data are aligned
        path = folder / (f"part-{number}.safetensors" if shards > 1 else "model.safetensors")
        with open(path, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + at)
        index |= dict.fromkeys(group, path.name)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("bytes_per_parameter", "remedy"),
    [
        (2.8, r"dtype='bfloat16' needs about .* GB, quantize='int8' needs about"),
        (1.4, r"quantize='int8' needs"),
        (0.5, r"no smaller type would fit either"),
    ],
)
def test_a_model_larger_than_free_memory_is_rejected_before_it_is_read(bytes_per_parameter, remedy, tmp_path):
    free = free_memory()
    if free is None:
        pytest.skip("this system does not say how much memory is free")
    config = XLMRobertaXLConfig(**{**SMALL, "hidden_size": 1536, "vocab_size": int(free / bytes_per_parameter / 1536)})
    try:
        write_sparse_checkpoint(tmp_path, config, "BF16", shards=1)
    except OSError as error:
        pytest.skip(f"this disk takes no sparse file of that size ({error})")
    message = rf"weights need [\d.]+ GB and cpu has [\d.]+ GB free, [\d.]+ GB too little: {remedy}"
    with pytest.raises(CheckpointError, match=message):
        XLMRobertaXLForMaskedLM.from_pretrained(tmp_path, dtype="float32")


@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize("task", ["Model", "ForMaskedLM", "ForSequenceClassification", "ForMultipleChoice"])
def test_planned_weights_are_loaded_weights(task, quantize, tmp_path):
    theirs, _ = twins(task)
    theirs.save_pretrained(tmp_path)
    ours = getattr(xlmrxl_min, f"XLMRobertaXL{task}").from_pretrained(tmp_path, dtype="bfloat16", quantize=quantize)
    loaded = sum(parameter.nbytes for parameter in ours.parameters())
    assert loaded == planner.weight_bytes(ours.config, "bfloat16", task, quantize)


# ---- a fake device


class Ledger(FakeTensorMode):
    """Fake tensors, for any thread, and the bytes of every storage that is allocated on the fake device."""

    def __init__(self):
        self.local, self.lock = threading.local(), threading.RLock()
        super().__init__(allow_non_fake_inputs=True)
        self.live, self.now, self.peak, self.total = {}, 0, 0, 0

    @property
    def in_kernel_invocation(self):  # torch keeps one for all threads
        return getattr(self.local, "in_kernel_invocation", False)

    @in_kernel_invocation.setter
    def in_kernel_invocation(self, value):
        self.local.in_kernel_invocation = value

    def __enter__(self):  # also entered by each operation on its tensors, whichever the thread
        self.lock.acquire()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.lock.release()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(func, types, args, kwargs or {})
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "toygpu":
                self.note(tensor.untyped_storage())
        return out

    def note(self, storage):
        key = storage._cdata
        if key not in self.live:
            self.live[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.total += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.free, key)

    def free(self, key):
        self.now -= self.live.pop(key, 0)


class Allocations(TorchDispatchMode):
    """Sends what is to be allocated on the fake device to the ledger."""

    def __init__(self, ledger):
        super().__init__()
        self.ledger = ledger

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with self.ledger if str(kwargs.get("device")).startswith("toygpu") else nullcontext():
            return func(*args, **kwargs)


@pytest.fixture(scope="session")
def toygpu():
    """A device made by torch's hook for new ones; its tensors are fake: shapes and dtypes without memory."""
    registration = torch.utils.backend_registration
    if not hasattr(registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip(f"torch {torch.__version__} cannot have a device made in Python")

    class Module(registration._DummyBackendModule):  # later tests have it in their process, too
        def get_amp_supported_dtype(self):
            return [torch.bfloat16]

    registration._setup_privateuseone_for_python_backend("toygpu", Module())
    return torch.device("toygpu", 0)


@contextmanager
def ledger_of_allocations():
    ledger = Ledger()
    with Allocations(ledger):
        yield ledger


@pytest.mark.parametrize(
    ("config", "quantize", "published"),
    [
        (XLMRobertaXLConfig(**SMALL), None, None),
        (XLMRobertaXLConfig(**SMALL), "int8", None),
        (XLMRobertaXLConfig.xl(), None, 3_482_741_760),
        pytest.param(XLMRobertaXLConfig.xxl(), None, 10_712_994_816, marks=pytest.mark.slow),
        pytest.param(XLMRobertaXLConfig.xxl(), "int8", 10_712_994_816, marks=pytest.mark.slow),
    ],
    ids=["small", "small in int8", "XL", "XXL", "XXL in int8"],
)
def test_weights_stream_onto_a_device(config, quantize, published, toygpu, tmp_path):
    """What is planned is what is allocated, at the peak and in all: nothing is on the device twice."""
    parameters = write_sparse_checkpoint(tmp_path, config)
    assert published in (None, parameters)
    with ledger_of_allocations() as ledger:
        model = XLMRobertaXLForMaskedLM.from_pretrained(
            tmp_path, dtype="bfloat16", device=toygpu, quantize=quantize, progress=False
        )
    assert all(parameter.device == toygpu for parameter in model.parameters())
    assert model.lm_head.decoder.weight is model.backbone.embeddings.word.weight
    planned = sum(p.numel() * p.element_size() for p in model.parameters())
    assert planned == ledger.peak == ledger.total
    if quantize is None:
        assert planned == 2 * parameters
    else:
        assert planned == planner.weight_bytes(config, "bfloat16", "ForMaskedLM", quantize)


def test_the_ledger_sees_a_temporary_copy_on_the_device(toygpu):
    with ledger_of_allocations() as ledger:
        target = torch.empty(1000, dtype=torch.bfloat16, device=toygpu)
        target.copy_(torch.empty(1000, dtype=torch.float32, device=toygpu))
        del target
    assert (ledger.now, ledger.peak, ledger.total) == (0, 6000, 6000)


# ---- real devices and checkpoints


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here; the tests above have a fake one")
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_streaming_to_cuda_allocates_the_plan(quantize, tmp_path):
    config = XLMRobertaXLConfig(vocab_size=20_000, hidden_size=1024, num_attention_heads=8, num_hidden_layers=6)
    XLMRobertaXLForMaskedLM(config).save_pretrained(tmp_path)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = XLMRobertaXLForMaskedLM.from_pretrained(tmp_path, dtype="bfloat16", device="cuda", quantize=quantize)
    planned = sum(p.numel() * p.element_size() for p in model.parameters())
    assert planned <= torch.cuda.max_memory_allocated() - before < 1.02 * planned + 1_000_000
    on_cpu = XLMRobertaXLForMaskedLM.from_pretrained(tmp_path, dtype="bfloat16", quantize=quantize)
    for (name, on_gpu), other in zip(model.named_parameters(), on_cpu.parameters(), strict=True):
        assert torch.equal(on_gpu.cpu(), other), name


# of facebook/xlm-roberta-xl and -xxl: the last feature of each token, and what fills "Europe is a <mask> continent."
PUBLISHED = {
    2560: (
        [0.0110, 0.0605, 0.0354, 0.0689, 0.0066, 0.0691, 0.0302, 0.0412, 0.0860, 0.0036, 0.0405, 0.0170],
        {"living": 0.0856, "dead": 0.0800, "lost": 0.0462, "small": 0.0436, "beautiful": 0.0406},
    ),
    4096: (
        [0.0046, 0.0146, 0.0227, 0.0126, 0.0219, 0.0175, -0.0101, 0.0006, 0.0124, 0.0209, -0.0063, 0.0096],
        {"European": 0.2300, "large": 0.1431, "small": 0.1224, "vast": 0.0703, "big": 0.0329},
    ),
}
CHECKPOINT = os.environ.get("XLMRXL_CHECKPOINT")


@pytest.mark.full_size
@pytest.mark.skipif(not CHECKPOINT, reason="XLMRXL_CHECKPOINT names no folder with the published XL or XXL")
def test_published_checkpoints_give_the_published_numbers():
    model = XLMRobertaXLForMaskedLM.from_pretrained(CHECKPOINT)
    features, continent = PUBLISHED[model.config.hidden_size]
    ids = torch.tensor([[0, 581, 10269, 83, 99942, 136, 60742, 23, 70, 80583, 18276, 2]])
    with torch.no_grad():
        last = model.backbone(ids).last_hidden_state[0, :, -1]
    torch.testing.assert_close(last, torch.tensor(features), atol=1e-3, rtol=0)
    tokenizer = XLMRobertaTokenizer.from_pretrained(CHECKPOINT)
    [found] = fill_mask(model, tokenizer, "Europe is a <mask> continent.", top_k=5)
    assert [prediction.text for prediction in found] == list(continent)
    for prediction in found:
        assert prediction.probability == pytest.approx(continent[prediction.text], abs=1e-3)
