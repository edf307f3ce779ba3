"""The steps of notebooks/10_full_size.ipynb, what it measures memory with, and its sparse files."""

import ctypes
import json
import tempfile
import time
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load, load_file, save_file
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ...checkpoints.locate import PRETRAINED
from ...checkpoints.names import FAIRSEQ_NAMES, hugging_face_name
from ...model import XLMRobertaXLForMaskedLM
from ..checks import compare, exercise, randn
from . import solution
from .tokens_and_embeddings import ABSOLUTE, SIZES

# ---- memory, measured

STATUS = Path("/proc/self/status")  # Linux


def resident(kind: str = "RssAnon") -> int:
    """Bytes of memory that this process has: RssAnon, which belong to no file, or RssFile. 0 where Linux is not."""
    lines = STATUS.read_text().splitlines() if STATUS.exists() else []
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(kind))


def watch(function, *args):
    """Call a function; returns its result, and (seconds, bytes of anonymous memory that came on top), every 2 ms."""
    if STATUS.exists() and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)  # memory that was freed goes back to the system first, so that it counts anew
    curve, begin, before = [], time.perf_counter(), resident()
    with ThreadPoolExecutor(1) as worker:
        result = worker.submit(function, *args)
        while not curve or not result.done():
            curve.append((time.perf_counter() - begin, max(0, resident() - before)))
            time.sleep(0.002)
    curve.append((time.perf_counter() - begin, max(0, resident() - before)))
    return result.result(), curve


class LiveMemory(TorchDispatchMode):
    """Inside, counts the bytes of all tensors that operations allocate, until they are freed; also on meta.

    curve: the bytes after each operation. Tensors that are passed do not count.
    """

    def __init__(self, *known):
        super().__init__()
        self.alive = {tensor.untyped_storage()._cdata for tensor in known}
        self.now, self.curve = 0, [0]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.alive:
                storage = tensor.untyped_storage()
                self.alive.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        self.curve.append(self.now)
        return result

    def free(self, key, size):
        self.alive.discard(key)
        self.now -= size


def forward_curve(model, ids):
    """What is alive during a forward pass besides the weights: (part of the pass, bytes) after each operation."""
    with torch.no_grad(), LiveMemory(*model.parameters(), ids) as live:
        model.eval()(ids)
    return [(i / len(live.curve), size) for i, size in enumerate(live.curve)]


def python_memory(function, *arguments) -> int:
    """Bytes at the peak of what Python allocates in a call: of bytes and bytearrays, not tensors or mapped files."""
    was_tracing = tracemalloc.is_tracing()
    tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        function(*arguments)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        if not was_tracing:
            tracemalloc.stop()


# ---- files of full size, without weights


def write_sparse(path, config):
    """A safetensors file of a float32 model with Hugging Face's names: a header, and a hole for the data."""
    with torch.device("meta"):
        parameters = dict(XLMRobertaXLForMaskedLM(config).named_parameters())
    header, at = {}, 0
    for ours, parameter in parameters.items():
        name, size = hugging_face_name(ours).replace("decoder.bias", "bias"), 4 * parameter.numel()
        header[name] = {"dtype": "F32", "shape": [*parameter.shape], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)


def write_sparse_fairseq(path, shapes):
    """A fairseq checkpoint of tensors of these shapes, by name: PyTorch leaves holes for the data of fake tensors."""
    with FakeTensorMode(), torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save({"args": None, "model": {name: torch.empty(shape) for name, shape in shapes.items()}}, path)


# ---- what the results do not show


def reads_little(message, *arguments, limit=1e6):
    """A last test: with these arguments the function reads at most `limit` bytes into memory; else the message."""
    return lambda mine: f"Not quite. {message}" if python_memory(mine, *arguments) > limit else ""


LARGE_FILE = PRETRAINED / "tiny" / "model.safetensors"  # 10 MB


# ---- files to try the steps on


@cache
def temporary_folder() -> tempfile.TemporaryDirectory:
    """A folder that is deleted when Python ends."""
    return tempfile.TemporaryDirectory()


@cache
def small_file() -> Path:
    """A file with a longer header, with metadata, and with tensors of several shapes and types."""
    path = Path(temporary_folder().name, "small.safetensors")
    tensors = {"b": randn(5, 3), "a": randn(4).bfloat16(), "c.weight": randn(2, 3, 4, seed=1).half()}
    save_file(tensors, path, metadata={"format": "pt"})
    return path


@cache
def plain_file() -> Path:
    """A file without metadata. Its header lists the tensors in another order than the data have."""
    path = Path(temporary_folder().name, "plain.safetensors")
    stored, at, entries = {"z": randn(2, 5), "y": randn(3, 2, seed=1), "x": randn(7, seed=2)}, 0, {}
    for name, tensor in stored.items():
        entries[name] = {"dtype": "F32", "shape": [*tensor.shape], "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps({name: entries[name] for name in sorted(entries)}).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(tensor.numpy().tobytes() for tensor in stored.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@cache
def split_folder() -> Path:
    """A checkpoint of two bfloat16 files. As some do, it holds the tied weights under both names."""
    folder = Path(temporary_folder().name, "split")
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(vars(ABSOLUTE)))
    names = [name for name in load_file(PRETRAINED / "tiny" / "model.safetensors") if ".layer." not in name]
    names += [name for name in name_of_layer() if "distance" not in name]
    shapes = {name: parameter.shape for name, parameter in solution.MaskedLM(ABSOLUTE).named_parameters()}
    tensors = {
        name: randn(*shapes[solution.my_name(name)], seed=seed).bfloat16() for seed, name in enumerate(sorted(names))
    }
    tied = {
        "decoder.weight": tensors["roberta.embeddings.word_embeddings.weight"],
        "decoder.bias": tensors["lm_head.bias"],
    }
    tensors |= {f"lm_head.{name}": tensor.clone() for name, tensor in tied.items()}
    for part in range(2):
        chosen = {name: tensors[name] for name in sorted(tensors)[part::2]}
        save_file(chosen, folder / f"model-{part + 1:05}-of-00002.safetensors")
    return folder


def name_of_layer() -> list[str]:
    """Hugging Face's names of all weights of the blocks of a small model."""
    stored = load_file(PRETRAINED / "tiny" / "model.safetensors")
    return [name for name in stored if any(f".layer.{i}." in name for i in range(ABSOLUTE.num_hidden_layers))]


# ---- read_header

HEADER_ONLY = "The result is right, but the whole file was read: read the 8 bytes and the header, and no more."
read_header = exercise(
    lambda: [(small_file(),), (LARGE_FILE,), (plain_file(),)],
    hint='`struct.unpack("<Q", eight_bytes)` gives a tuple of one number; `json.loads` takes bytes.',
    grade=lambda result, case: grade_header(result, case),
    last=reads_little(HEADER_ONLY, LARGE_FILE),
)(solution.read_header)


def grade_header(result, case):
    header, start = result
    expected, begin = solution.read_header(case[0])
    length = begin - 8
    faults = {
        "The data begin after the header *and* the 8 bytes with its length.": start == length,
        "The 8 bytes hold a number, the header's length: little-endian (`<`), unsigned, of 8 bytes (`Q`).": (
            isinstance(start, int) and start > 2**32
        ),
        "The header is JSON: `json.loads` makes a dict of it.": not isinstance(header, dict),
        "Leave out `__metadata__`: it is no tensor.": "__metadata__" in header,
        "Return what the header says of each tensor, not only the names.": sorted(header) == sorted(expected)
        and header != expected,
        "These are not the tensors of the file: begin to read the JSON behind the 8 bytes.": header != expected,
        "This is the end of the file: the data begin right after the header.": start == case[0].stat().st_size,
    }
    found = next((message for message, is_wrong in faults.items() if is_wrong), "")
    return found or ("" if start == begin else f"The data begin at byte {begin}, not at {start}.")


def header_with(change):
    """read_header with a mistake. change: header, start, path -> what is returned."""
    return lambda path: change(*solution.read_header(path), path)


def raw(path):
    length = int.from_bytes(path.read_bytes()[:8], "little")
    return path.read_bytes()[8 : 8 + length]


read_header.misconceptions = {
    "The data begin after the header *and* the 8 bytes with its length.": header_with(lambda h, n, path: (h, n - 8)),
    "The 8 bytes hold a number, the header's length: little-endian (`<`), unsigned, of 8 bytes (`Q`).": (
        header_with(lambda h, n, path: (h, int.from_bytes(path.read_bytes()[:8], "big")))
    ),
    "Leave out `__metadata__`: it is no tensor.": header_with(lambda h, n, path: (json.loads(raw(path)), n)),
    "The header is JSON: `json.loads` makes a dict of it.": header_with(lambda h, n, path: (str(raw(path)), n)),
    "Return what the header says of each tensor, not only the names.": (
        header_with(lambda h, n, path: (dict.fromkeys(h), n))
    ),
    "This is the end of the file: the data begin right after the header.": (
        header_with(lambda h, n, path: (h, path.stat().st_size))
    ),
    HEADER_ONLY: header_with(lambda h, n, path: (h, len(path.read_bytes()[:n]))),
}


# ---- map_tensors


def grade_mapped(result, case):
    expected = load_file(case[0])
    if sorted(result) != sorted(expected):
        return compare(sorted(result), sorted(expected)).message
    header, _ = solution.read_header(case[0])
    origin = {result[name].data_ptr() - header[name]["data_offsets"][0] for name in header}
    right = {name: result[name].shape == x.shape and torch.equal(result[name], x) for name, x in expected.items()}
    bits = {name: result[name].view(torch.uint8).flatten() for name in expected}
    faults = {
        "These are bytes: read them as the header's dtype.": all(x.dtype == torch.uint8 for x in result.values()),
        "BF16 is torch.bfloat16, F16 is torch.float16: both have two bytes, and different bits for a number.": any(
            result[name].dtype != x.dtype and torch.equal(bits[name], x.view(torch.uint8).flatten())
            for name, x in expected.items()
        ),
        "The dtypes are not the file's: convert nothing here.": any(
            result[name].dtype != x.dtype for name, x in expected.items()
        ),
        "The tensors are flat: give each the header's shape.": any(
            result[name].shape != x.shape and torch.equal(result[name].flatten(), x.flatten())
            for name, x in expected.items()
        ),
        "The data may have another order than the header: begin where a tensor's data_offsets say.": (
            not all(right.values()) and is_in_order_of_header(result, case[0])
        ),
        "data_offsets count from the end of the header, not from the beginning of the file.": not any(right.values()),
        "Each tensor has an offset of its own.": not all(right.values()),
        "The numbers are right, but they are copies: make all tensors from the one mapped file.": len(origin) > 1,
    }
    return next((message for message, is_wrong in faults.items() if is_wrong), "")


def is_in_order_of_header(result, path):
    """Whether these are the tensors if each begins where the header's one before it ends."""
    wrong = mapped_with(in_order=True)(path)
    return all(torch.equal(result[name], tensor) for name, tensor in wrong.items())


MAPPED_ONLY = "The numbers are right, but the whole file was read into memory: map it, with `mmap.mmap`."
map_tensors = exercise(
    lambda: [(small_file(),), (LARGE_FILE,), (plain_file(),)],
    disallowed=dict.fromkeys(("load_file", "safe_open"), "But safetensors did it: use read_header, mmap and torch."),
    hint="`mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)` maps an open file. "
    "`torch.frombuffer(memory, dtype=…, offset=…, count=…)`: offset in bytes, count in numbers.",
    grade=grade_mapped,
    last=reads_little(MAPPED_ONLY, LARGE_FILE),
)(solution.map_tensors)


def mapped_with(change=lambda name, tensor: tensor, shift=0, same=False, in_order=False):
    """map_tensors with a mistake. change: name, tensor -> tensor; shift: of the offsets; same: the first's for all.

    in_order: the data in the order of the header. Even without any of these the file is read, not mapped.
    """

    def mistaken(path):
        (header, start), found, at = solution.read_header(path), {}, 0
        data = bytearray(path.read_bytes()) + bytes(4096)
        dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
        for name, entry in header.items():
            count = solution.math.prod(entry["shape"])
            first, end = entry["data_offsets"]
            begin = start + shift * start + (0 if same else at if in_order else first)
            at += end - first
            tensor = torch.frombuffer(data, dtype=dtypes[entry["dtype"]], offset=begin, count=count)
            found[name] = change(name, tensor.view(entry["shape"]))
        return found

    return mistaken


map_tensors.misconceptions = {
    "The tensors are flat: give each the header's shape.": mapped_with(lambda name, x: x.flatten()),
    "data_offsets count from the end of the header, not from the beginning of the file.": mapped_with(shift=-1),
    "Each tensor has an offset of its own.": mapped_with(same=True),
    "The dtypes are not the file's: convert nothing here.": mapped_with(lambda name, x: x.float()),
    "These are bytes: read them as the header's dtype.": mapped_with(lambda name, x: x.view(torch.uint8)),
    "BF16 is torch.bfloat16, F16 is torch.float16: both have two bytes, and different bits for a number.": (
        mapped_with(lambda name, x: x.view(torch.float16) if x.dtype == torch.bfloat16 else x)
    ),
    "The numbers are right, but they are copies: make all tensors from the one mapped file.": (
        mapped_with(lambda name, x: x.clone())
    ),
    "The data may have another order than the header: begin where a tensor's data_offsets say.": (
        mapped_with(in_order=True)
    ),
    MAPPED_ONLY: mapped_with(),
}


# ---- fairseq_name


def fairseq_cases():
    """The name of every weight of XL in a fairseq checkpoint, once for each kind of weight; but not the tied matrix."""
    modules = {theirs.format(10): ours for ours, theirs in FAIRSEQ_NAMES.items() if not ours.startswith("classifier")}
    only_bias, only_weight = ("encoder.lm_head",), ("embed_tokens", "embed_positions")
    return [
        (f"{module}.{part}",)
        for i, module in enumerate(modules)
        for part in [("bias" if i % 2 or module in only_bias else "weight")]
        if not module.endswith(only_weight) or part == "weight"
    ] + [("encoder.sentence_encoder.embed_positions.weight",), ("encoder.sentence_encoder.layers.3.fc1.weight",)]


fairseq_name = exercise(
    fairseq_cases, hint="As in `my_name`: a dict of what to replace, from the outer parts inwards."
)(solution.fairseq_name)


def fairseq_with(*wrong):
    """fairseq_name with a mistake: pairs of what stands in the right name, and what in the wrong one."""

    def mistaken(name):
        right = solution.fairseq_name(name)
        for old, new in wrong:
            right = right.replace(old, new)
        return right

    return mistaken


fairseq_name.misconceptions = {
    "The name is as it was: change what differs.": lambda name: name,
    "Of `encoder.sentence_encoder.` only `encoder.` is left.": fairseq_with(("encoder.", "encoder.sentence_encoder.")),
    "A block's final_layer_norm is the one before its feed-forward layer: feed_forward_norm, not norm.": (
        fairseq_with(("feed_forward_norm", "norm"))
    ),
    "The two LayerNorms of a block are swapped.": (
        fairseq_with(
            ("feed_forward_norm", "first"), ("attention_norm", "feed_forward_norm"), ("first", "attention_norm")
        )
    ),
    "q_proj, k_proj and v_proj are called query, key and value here.": (
        fairseq_with(("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))
    ),
    "out_proj belongs to attention: attention.out.": fairseq_with(("attention.out", "out")),
    "fc1 is the up-projection, fc2 the down-projection.": (
        fairseq_with(("up", "first"), ("down", "up"), ("first", "down"))
    ),
    "The LM head is no part of the encoder here.": fairseq_with(("lm_head.", "encoder.lm_head.")),
    "The LM head's layer_norm is called norm here.": fairseq_with(("lm_head.norm", "lm_head.layer_norm")),
    "The embeddings are a part of the encoder called embeddings: embeddings.word, embeddings.position.": (
        fairseq_with(("embeddings.", ""))
    ),
}


# ---- build

HUGE = SimpleNamespace(**{**SIZES, "vocab_size": 2**42}, position_embedding_type="absolute")  # 211 TB


def build_cases():
    with torch.device("meta"):
        small, huge = solution.MaskedLM(ABSOLUTE), solution.MaskedLM(HUGE)
    given = {name: randn(*p.shape, seed=seed) for seed, (name, p) in enumerate(small.named_parameters())}
    zeros = {name: torch.zeros(1).expand(p.shape) for name, p in huge.named_parameters()}  # one number each
    half = {name: tensor.bfloat16() for name, tensor in given.items()}
    small_cases = [(ABSOLUTE, given, torch.float32), (ABSOLUTE, half, torch.float32), (ABSOLUTE, given, torch.bfloat16)]
    return [*small_cases, (HUGE, zeros, torch.float32)]


def grade_build(result, case):
    _, tensors, dtype = case[:3]
    if not isinstance(result, torch.nn.Module):
        return "Return the model itself."
    found = dict(result.named_parameters())
    if missing := [name for name in tensors if name not in found]:
        return f"The parameter `{missing[0]}` is missing: replace it by an nn.Parameter, and it keeps its name."
    empty = [name for name in tensors if found[name].is_meta]
    if len(empty) == len(tensors):
        return "No weight has arrived: on meta there is nothing to copy into, so *replace* each parameter."
    if empty:
        return f"These have no memory yet: {', '.join(empty[:3])}."
    if any(found[name].dtype != dtype for name in tensors):
        return "The parameters should have the dtype that is asked for."
    if any(t.dtype == dtype and found[name].data_ptr() != t.data_ptr() for name, t in tensors.items()):
        return "A tensor that has the dtype already needs no copy: `tensor.to(dtype)` returns it as it is."
    if any(t.numel() < 2**30 and not torch.equal(found[name], t.to(dtype)) for name, t in tensors.items()):
        return "A parameter has the numbers of another one, or was rounded on the way."
    return ""


NOT_MISSED = "A weight is missing in `tensors`, and stays on meta: raise an AssertionError or a ValueError."
NOT_COMPARED = "A tensor has another shape than its parameter: raise an AssertionError or a ValueError."


def does_not_refuse(mine):
    """The last test of build: what it does not refuse."""
    config, given, dtype = build_cases()[0]
    missing = {name: tensor for name, tensor in given.items() if name != "encoder.norm.bias"}
    turned = {name: tensor.T if name.endswith("feed_forward.up.weight") else tensor for name, tensor in given.items()}
    for tensors, message in ((missing, NOT_MISSED), (turned, NOT_COMPARED)):
        try:
            mine(config, tensors, dtype)
        except (AssertionError, ValueError, LookupError, RuntimeError):  # the last is of load_state_dict
            continue
        except Exception as error:
            return f"Not quite. {message} Your code stops with {type(error).__name__}."
        return f"Not quite. {message}"
    return ""


build = exercise(
    build_cases,
    grade=grade_build,
    hint='Inside `with torch.device("meta"):` a module has no memory. '
    "`model.get_submodule(…)` is the part whose parameter it is; then `setattr(part, name, nn.Parameter(…))`.",
    last=does_not_refuse,
)(solution.build)


def build_with(convert=lambda tensor, dtype: tensor.to(dtype), keep=lambda name: True, wrap=lambda model: model):
    """build with a mistake. convert: tensor, dtype -> tensor; keep: which names are filled."""

    def mistaken(config, tensors, dtype):
        with torch.device("meta"):
            model = solution.MaskedLM(config)
        for name, tensor in tensors.items():
            module, _, parameter = name.rpartition(".")
            if keep(name):
                values = torch.nn.Parameter(convert(tensor, dtype))
                setattr(model.get_submodule(module), parameter, values)
        return wrap(model)

    return mistaken


build.misconceptions = {
    "Return the model itself.": build_with(wrap=lambda model: model.state_dict()),
    "No weight has arrived: on meta there is nothing to copy into, so *replace* each parameter.": (
        build_with(keep=lambda name: False)
    ),
    "These have no memory yet: encoder.norm.weight, encoder.norm.bias.": (
        build_with(keep=lambda name: not name.startswith("encoder.norm"))
    ),
    "The parameters should have the dtype that is asked for.": build_with(lambda tensor, dtype: tensor),
    "A tensor that has the dtype already needs no copy: `tensor.to(dtype)` returns it as it is.": (
        build_with(lambda tensor, dtype: tensor.to(dtype, copy=True))
    ),
    "A parameter has the numbers of another one, or was rounded on the way.": (
        build_with(lambda tensor, dtype: tensor.to(dtype) if tensor.dtype == dtype else tensor.to(dtype) * 1.01)
    ),
    NOT_MISSED: build_with(),
    NOT_COMPARED: build_with(wrap=lambda model: complete(model)),
}


def complete(model):
    assert not any(parameter.is_meta for parameter in model.parameters())
    return model


# ---- load_large


def grade_load_large(result, case):
    folder, dtype = case[:2]
    if not isinstance(result, torch.nn.Module):
        return "Return the model itself."
    expected, found = solution.load_large(folder, dtype).state_dict(), result.state_dict()
    if any(name not in found or found[name].shape != tensor.shape for name, tensor in expected.items()):
        return "The sizes are not those of this folder: read its config.json."
    if empty := [name for name in expected if found[name].is_meta]:
        return f"No file gave these: {', '.join(empty[:3])}. A folder may hold several files."
    if any(tensor.dtype != dtype for tensor in found.values()):
        return "The parameters should have the dtype that is asked for."
    if extra := [name for name in found if name not in expected]:
        return f"`{extra[0]}` is a second name of a tied weight: leave it out."
    wrong = [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])]
    return f"These weights are not the file's: {', '.join(wrong[:3])}." if wrong else ""


FILES_READ = "The model is right, but whole files were read into memory: map them, with `map_tensors`."
load_large = exercise(
    lambda: [(LARGE_FILE.parent, torch.float16), (split_folder(), torch.float32)],
    grade=grade_load_large,
    hint='`Path(folder).glob("*.safetensors")` finds the files. Of the names that `map_tensors` returns, '
    "leave out the two that are tied; `my_name` translates the others for `build`.",
    last=reads_little(FILES_READ, LARGE_FILE.parent, torch.float16, limit=5e6),
)(solution.load_large)


def tensors_in(paths, tied=("lm_head.decoder.weight", "lm_head.decoder.bias"), read=solution.map_tensors):
    found = [item for path in paths for item in read(path).items()]
    return {solution.my_name(name): tensor for name, tensor in found if name not in tied}


def load_with(paths=list, model=None, **changes):
    """load_large with a mistake. paths: files -> those that are read; model: in place of `build`."""

    def mistaken(folder, dtype):
        config = SimpleNamespace(**json.loads((folder / "config.json").read_text()))
        tensors = tensors_in(paths(sorted(folder.glob("*.safetensors"))), **changes)
        return (model or build_with())(config, tensors, dtype)

    return mistaken


load_large.misconceptions = {
    "Return the model itself.": load_with(model=lambda config, tensors, dtype: tensors),
    "The sizes are not those of this folder: read its config.json.": (
        lambda folder, dtype: solution.MaskedLM(SimpleNamespace(**{**vars(ABSOLUTE), "vocab_size": 12}))
    ),
    "No file gave these: encoder.embeddings.word.weight, encoder.embeddings.position.weight, "
    "encoder.layers.0.attention_norm.weight. A folder may hold several files.": load_with(lambda paths: paths[:1]),
    "The parameters should have the dtype that is asked for.": (
        load_with(model=build_with(lambda tensor, dtype: tensor.double()))
    ),
    FILES_READ: load_with(read=lambda path: load(path.read_bytes())),
    "`lm_head.decoder.weight` is a second name of a tied weight: leave it out.": load_with(
        model=lambda config, tensors, dtype: with_decoder(build_with()(config, tensors, dtype), config, dtype)
    ),
}


def with_decoder(model, config, dtype):
    model.lm_head.decoder = torch.nn.Linear(config.hidden_size, config.vocab_size, dtype=dtype)
    return model


# ---- forward_bytes


def memory_cases():
    sizes = {"hidden_size": 2560, "num_attention_heads": 32, "intermediate_size": 10240, "num_hidden_layers": 36}
    small = {**sizes, "vocab_size": 500}
    shapes = [
        (sizes | {"vocab_size": 250_880}, 1, 512),
        (small, 1, 512),
        (small, 1, 2048),
        (small, 3, 2048),  # attention is the largest
        (small, 3, 16),
        (sizes | {"vocab_size": 9}, 2, 99),
    ]
    return [(SimpleNamespace(**values), batch, tokens) for values, batch, tokens in shapes]


forward_bytes = exercise(
    memory_cases,
    hint="A float32 number has 4 bytes, so a tensor `b t e` has 4 · batch · tokens · hidden_size. "
    "In the drawing, count the tensors of each shape in each row.",
)(solution.forward_bytes)


def bytes_with(total=max, size=4, change=lambda hidden, scores, wide, logits: (hidden, scores, wide, logits), **counts):
    """forward_bytes with a mistake. counts: how many of each are alive, such as scores=2; change: the four sizes."""

    def mistaken(config, batch, tokens):
        b, t, e, h = batch, tokens, config.hidden_size, config.num_attention_heads
        shapes = (b * t * e, b * h * t * t, b * t * config.intermediate_size, b * t * config.vocab_size)
        layers = counts.get("layers", lambda config: 1)(config)
        hidden, scores, wide, logits = change(*(size * n for n in shapes))
        in_attention = 5 * hidden + counts.get("scores", 3) * scores
        in_feed_forward = 2 * hidden + counts.get("wide", 3) * wide
        in_head = hidden + counts.get("logits", 2) * logits
        return total([layers * in_attention, layers * in_feed_forward, in_head])

    return mistaken


forward_bytes.misconceptions = {
    "The three moments come one after the other: take the largest, not the sum.": bytes_with(sum),
    "A float32 number has four bytes: this is the count of numbers.": bytes_with(size=1),
    "These are the bytes in half precision: a float32 number has four.": bytes_with(size=2),
    "A block's memory is free again when the next one begins: no factor for the layers.": (
        bytes_with(layers=lambda config: config.num_hidden_layers)
    ),
    "In attention three tensors of scores are alive: divided by √d, masked, and the softmax of these.": (
        bytes_with(scores=1)
    ),
    "In the head the logits are there twice: with and without the bias.": bytes_with(logits=1),
    "Every head has scores of its own: b h q k.": lambda config, batch, tokens: bytes_with(
        change=lambda hidden, scores, wide, logits: (hidden, scores // config.num_attention_heads, wide, logits)
    )(config, batch, tokens),
    "Every text of the batch needs as much: the batch is missing.": (
        lambda config, batch, tokens: solution.forward_bytes(config, 1, tokens)
    ),
    "Every text has scores of its own: b h q k.": lambda config, batch, tokens: bytes_with(
        change=lambda hidden, scores, wide, logits: (hidden, scores // batch, wide, logits)
    )(config, batch, tokens),
    "That is the smallest of the three moments: take the largest.": bytes_with(min),
}
