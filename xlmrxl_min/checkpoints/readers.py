"""Tensors in files: safetensors, .bin and fairseq's model.pt, one file or many, nothing read before it is asked for.

A file is mapped into memory, not read: its table of contents says where each tensor lies, and a tensor over those bytes
costs nothing until somebody looks at it. Two maps serve two purposes. The read-only one may be larger than the memory;
the private one can be written to, and what is written stays in this process: the file never changes. (No map survives
a file that somebody else cuts short while it is open.)
"""

from __future__ import annotations

import io
import json
import mmap
import os
import re
import threading
import warnings
import zipfile
from argparse import Namespace
from contextlib import ExitStack, suppress
from functools import cache, cached_property
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from . import CheckpointError

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.pt",
)
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
LONGEST_HEADER = 100_000_000  # bytes: the limit of the format
MOST_ELEMENTS = 2**48  # a sum of products of such numbers is still an int64
FAIRSEQ_PIECE = re.compile(r"(-shard|_part)-?\d+\.pt$")
AGAIN = "fetch it again"
one_at_a_time = threading.Lock()  # for what belongs to all threads: filters of warnings, classes that torch may load


class Entry(NamedTuple):
    shape: tuple[int, ...]
    dtype: torch.dtype
    nbytes: int  # elements times their size, whatever the strides


class Place(NamedTuple):
    """Where a tensor lies: `strides`, in elements, from byte `begin` of `file`."""

    file: Mapped
    begin: int
    strides: tuple[int, ...]


class CheckpointReader:
    """The tensors of one checkpoint, by the names in its files. As a context manager it closes them at the end.

    entries: name -> Entry, in the order of the file, or of the index. kind: "safetensors", "bin" or "fairseq".
    path: the file, or the index. settings: what a fairseq file says of its model, else {}.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.kind, self.settings = path, "", {}
        self.entries: dict[str, Entry] = {}
        self.places: dict[str, Place | Tensor] = {}  # a Tensor where torch had to read the whole file
        self.files: list[Mapped] = []

    def view(self, name: str, writable: bool = False) -> Tensor | None:
        """The tensor `name`, of the shape and dtype of its entry, over the mapped file: no copy.

        writable=False: never to be written to, which would end the process. writable=True: over the private map, which
        all such views of a store share; None where the system refuses that map, as it does to files larger than memory.
        A view outlives its store.
        """
        if name not in self.places:
            raise checkpoint_error(
                self.path, f"has no tensor {name!r}, or is closed", "take a name of its entries, before that"
            )
        place, (shape, dtype, _) = self.places[name], self.entries[name]
        if isinstance(place, Tensor):
            return place
        with one_at_a_time:
            data, begin = place.file.private if writable else place.file.data, place.begin
        if data is None:
            return None
        if 0 in shape:
            return torch.empty(shape, dtype=dtype)
        count = extent(shape, place.strides)
        if begin % dtype.itemsize:  # no processor likes such addresses, and some refuse them: this one is a copy
            data, begin = bytearray(data[begin : begin + count * dtype.itemsize]), 0
        with one_at_a_time, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            flat = torch.frombuffer(data, dtype=dtype, count=count, offset=begin)  # holds on to the map
        return flat.as_strided(shape, place.strides)

    def close(self) -> None:
        """Let go of the files. Maps are dropped, not closed: Python does not know which views are still in use."""
        for file in self.files:
            file.file.close()
        self.places, self.files = {}, []

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_store(source: str | os.PathLike[str]) -> CheckpointReader:
    """Open a checkpoint: a folder with one of WEIGHT_FILES (the first of them), or a file. Reads no tensor.

    CheckpointError, one sentence, for whatever cannot be read or is not a checkpoint. A .bin or .pt in the form from
    before torch 1.6, which is no zip, is the exception: it cannot be mapped, and is in memory at once.
    """
    path = Path(source)
    try:
        path = weights_in(path) if path.is_dir() else path
        store = CheckpointReader(path)
        try:
            (read_index if path.suffix == ".json" else read_file)(store, path)
        except BaseException:
            store.close()
            raise
        return store
    except OSError as error:
        raise checkpoint_error(path, f"cannot be read ({error.strerror or error})", "see to that first") from error


def weights_in(folder: Path) -> Path:
    """The first of WEIGHT_FILES in `folder`. A link that leads nowhere counts: it is better named than passed over."""
    for name in WEIGHT_FILES:
        if os.path.lexists(folder / name):
            return folder / name
    there = sorted(path.name for path in folder.iterdir())
    refuse_pieces(folder / "model.pt", there)
    found = f"{', '.join(there[:9])}{', and more' if len(there) > 9 else ''}" if there else "nothing"
    raise checkpoint_error(folder, f"holds none of {', '.join(WEIGHT_FILES)}", f"there is {found}")


def refuse_pieces(path: Path, beside: list[str]) -> None:
    """fairseq cuts a large model across its tensors, each piece of its own kind: not read here."""
    pieces = [name for name in beside if name.startswith(path.stem) and FAIRSEQ_PIECE.search(name)]
    if pieces or FAIRSEQ_PIECE.search(path.name):
        what = f"is a model that fairseq has cut in pieces ({', '.join(pieces[:3]) or path.name})"
        raise checkpoint_error(path, what, "join them with fairseq into one model.pt")


def checkpoint_error(path: Path, what: str, cure: str = AGAIN) -> CheckpointError:
    """The one sentence: which file, what is wrong, what to do. Names in a file may hold anything, line breaks too."""
    sentence = f"{path} {what if len(what) <= 600 else what[:600] + '…'}: {cure}."
    return CheckpointError("".join(sign if sign.isprintable() else " " for sign in sentence))


def extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """How many elements lie from the first one to the last one, both counted."""
    return 0 if 0 in shape else 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


class Mapped:
    """A file that is mapped, not read. CheckpointError where it is no file, is empty, or only stands for one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():  # before it is opened, for a pipe would have us wait
            missing = "leads nowhere" if path.is_symlink() else "is not there"
            what = "is a directory" if path.is_dir() else "is no ordinary file" if path.exists() else missing
            raise checkpoint_error(
                path, what, "a checkpoint is a file, or a folder with one of " + ", ".join(WEIGHT_FILES)
            )
        self.file = open(path, "rb")  # noqa: SIM115
        self.size = os.fstat(self.file.fileno()).st_size
        if not self.size:
            self.file.close()
            raise checkpoint_error(path, "is empty")
        self.data = mmap.mmap(self.file.fileno(), self.size, access=mmap.ACCESS_READ)
        if self.data[:23] == b"version https://git-lfs":
            self.file.close()
            raise checkpoint_error(
                path, "only says which file git-lfs should put here", "run git lfs pull in its folder"
            )

    @cached_property
    def private(self) -> mmap.mmap | None:
        try:
            return mmap.mmap(self.file.fileno(), self.size, access=mmap.ACCESS_COPY)
        except OSError:  # the system keeps memory for every page that could be written to, and has not so much
            return None


def read_file(store: CheckpointReader, path: Path) -> None:
    """Enter the tensors of one file into `store`."""
    if path.suffix == ".pt" and not path.is_dir():
        refuse_pieces(path, [other.name for other in path.parent.glob("*.pt")])
    file = Mapped(path)
    store.files.append(file)
    (read_safetensors if path.suffix == ".safetensors" else read_pickle)(store, file)


# ---- many files


def index_of(path: Path) -> dict[str, str]:
    """{name of a tensor: name of a file beside `path`}. CheckpointError for anything else, and for paths elsewhere."""
    file = Mapped(path)
    weight_map = parse(file, 0, file.size).get("weight_map")
    file.file.close()
    if not (isinstance(weight_map, dict) and weight_map and all(isinstance(to, str) for to in weight_map.values())):
        raise checkpoint_error(path, "has no weight_map from tensors to files")
    for shard in dict.fromkeys(weight_map.values()):
        is_plain = re.fullmatch(r"[^/\\:]+\.(safetensors|bin)", shard) and shard.isprintable()
        if not is_plain:  # of the name alone: the link behind it may lead anywhere, as links of the hub's cache do
            raise checkpoint_error(path, f"sends us to {shard!r}, which is no file beside it", "do not trust it")
    return weight_map


def read_index(store: CheckpointReader, path: Path) -> None:
    """The index decides: what it does not list is left alone."""
    weight_map, whole = index_of(path), {}
    for shard in dict.fromkeys(weight_map.values()):
        if not os.path.lexists(path.with_name(shard)):
            raise checkpoint_error(path, f"names {shard}, which is not there", "fetch that file too")
        piece = CheckpointReader(path.with_name(shard))
        piece.files = store.files  # so that all are closed, whatever happens
        read_file(piece, piece.path)
        if twice := [name for name in piece.places if name in whole]:
            raise checkpoint_error(path, f"is in doubt: {twice[0]!r} is in {whole[twice[0]]} and in {shard}")
        if store.kind not in ("", piece.kind):
            raise checkpoint_error(path, f"mixes files of two kinds, {store.kind} and {piece.kind}")
        whole |= dict.fromkeys(piece.places, shard)
        store.kind = piece.kind
        store.entries |= piece.entries
        store.places |= piece.places
    if lost := [name for name, shard in weight_map.items() if whole.get(name) != shard]:
        raise checkpoint_error(path, f"says {lost[0]!r} is in {weight_map[lost[0]]}, and it is not", "fetch both again")
    store.entries = {name: store.entries[name] for name in weight_map}
    store.places = {name: store.places[name] for name in weight_map}


def parse(file: Mapped, begin: int, end: int) -> dict[str, Any]:
    """The JSON object between two bytes of a file; no key may come twice in it."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key comes twice")
        return dict(pairs)

    if end - begin > LONGEST_HEADER:
        raise checkpoint_error(file.path, f"has {end - begin} bytes where there should be at most {LONGEST_HEADER}")
    try:
        values = json.loads(file.data[begin:end].decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise checkpoint_error(file.path, f"does not hold the JSON it should ({error})") from error
    if not isinstance(values, dict):
        raise checkpoint_error(file.path, "does not hold a JSON object")
    return values


# ---- safetensors: 8 bytes that say how long the header is, a header in JSON, the data


def read_safetensors(store: CheckpointReader, file: Mapped) -> None:
    length = int.from_bytes(file.data[:8], "little")
    if file.size < 8 or length > file.size - 8:
        raise checkpoint_error(file.path, "is cut short, or no safetensors file")
    header, start, end = parse(file, 8, 8 + length), 8 + length, 0
    header.pop("__metadata__", None)
    spans = []
    for name, value in header.items():
        shape, dtype, (begin, stop) = described(file, name, value)
        store.entries[name] = Entry(shape, dtype, stop - begin)
        strides = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
        store.places[name] = Place(file, start + begin, strides)
        spans.append((begin, stop, name))
    for begin, stop, name in sorted(spans):  # the format allows neither holes nor bytes of two tensors
        if begin != end:
            raise checkpoint_error(file.path, f"has {name!r} at byte {begin} of its data, where {end} was due")
        end = stop
    if start + end != file.size:
        raise checkpoint_error(file.path, f"has {file.size} bytes, but its header needs {start + end}")
    store.kind = "safetensors"


def described(file: Mapped, name: str, value: Any) -> tuple[tuple[int, ...], torch.dtype, tuple[int, int]]:
    """Shape, dtype, and the bytes from and to of one entry of a header."""

    def counts(numbers: Any) -> bool:
        return isinstance(numbers, list) and all(type(number) is int and number >= 0 for number in numbers)

    value = value if isinstance(value, dict) else {}
    named, shape, span = (value.get(key) for key in ("dtype", "shape", "data_offsets"))
    dtype = DTYPES.get(named) if isinstance(named, str) else None
    if dtype is None:
        raise checkpoint_error(
            file.path, f"has {name!r} as {named!r}, not one of {', '.join(DTYPES)}", "convert it to one"
        )
    is_sound = counts(shape) and counts(span) and len(span) == 2 and len(value) == 3
    if not is_sound or len(shape) > 64 or prod(size or 1 for size in shape) > MOST_ELEMENTS:
        raise checkpoint_error(file.path, f"describes {name!r} in a way that makes no sense")
    if span[1] - span[0] != prod(shape) * dtype.itemsize:
        raise checkpoint_error(
            file.path, f"has bytes {span[0]} to {span[1]} for {name!r}, which do not make a {named} {shape}"
        )
    return tuple(shape), dtype, tuple(span)


# ---- pickles of torch: .bin and .pt


def read_pickle(store: CheckpointReader, file: Mapped) -> None:
    """What torch.save writes is a zip: a pickle in which tensors are numbers, and a record of bytes for each number.

    The pickle is read by torch, with weights_only=True, so that nothing in it runs; under FakeTensorMode, so that no
    record is read. What was saved before torch 1.6 is no zip: torch reads all of it.
    """
    try:
        enter_pickle(store, file)
    except CheckpointError:
        raise
    except Exception as error:  # a broken pickle can raise anything
        raise checkpoint_error(file.path, *reason(file, error)) from error


def enter_pickle(store: CheckpointReader, file: Mapped) -> None:
    is_zip = file.data[:4] == b"PK\x03\x04"
    records = records_of(file) if is_zip else {}
    for name, tensor in unwrapped(store, file, unpickled(file, is_zip)).items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise checkpoint_error(file.path, f"has {name!r}, a {kind_of(tensor)}, among its tensors", "take it out")
        nbytes = tensor.numel() * tensor.dtype.itemsize
        is_plain = tensor.layout is torch.strided and not tensor.is_quantized and tensor.dtype in DTYPES.values()
        is_plain = is_plain and not tensor.is_neg() and (is_zip or tensor.device.type == "cpu")
        if not is_plain or nbytes > room(tensor, records):  # fewer bytes: expanded, to any size
            what = f"has {name!r} as a {tensor.layout} tensor of {tensor.dtype}".replace("torch.", "")
            raise checkpoint_error(file.path, what, "make it a plain and contiguous one of " + ", ".join(DTYPES))
        store.entries[name] = Entry(tuple(tensor.shape), tensor.dtype, nbytes)
        store.places[name] = place_of(file, name, tensor, records) if is_zip else tensor.detach()


def records_of(file: Mapped) -> dict[int, int]:
    """Where the records of a zip begin -> how many bytes they have. Compressed ones could not be mapped."""
    records = {}
    with zipfile.ZipFile(file.file) as archive:
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED:
                what = f"is compressed, or a program of TorchScript ({record.filename})"
                raise checkpoint_error(file.path, what, "save the state_dict() with torch.save instead")
            name = record.filename.lower()  # as torch finds it; on other bytes than ours, torch ends the process
            if name.endswith("/byteorder") and archive.read(record) != b"little":
                raise checkpoint_error(file.path, "is from a big-endian machine", "convert it to safetensors there")
            lengths = file.data[record.header_offset + 26 : record.header_offset + 30]  # of the name, and of padding
            begin = record.header_offset + 30 + int.from_bytes(lengths[:2], "little")
            records[begin + int.from_bytes(lengths[2:], "little")] = record.file_size
    return records


def unpickled(file: Mapped, is_zip: bool) -> Any:
    file.file.seek(0)
    with one_at_a_time, warnings.catch_warnings(), ExitStack() as allowed:
        warnings.simplefilter("ignore")
        if Namespace not in torch.serialization.get_safe_globals():  # if it is, leaving would take it out
            allowed.enter_context(torch.serialization.safe_globals([Namespace]))
        if not is_zip:
            return torch.load(file.file, map_location="cpu", weights_only=True)
        with FakeTensorMode():
            return torch.load(file.file, weights_only=True)


def reason(file: Mapped, error: Exception) -> tuple[str, str]:
    """Why a pickle was not read, and what can be done."""
    named = re.findall(r"GLOBAL (\S+)", str(error))
    if not named:
        return f"is cut short, or nothing that torch.save wrote ({type(error).__name__}: {str(error)[:200]})", AGAIN
    with suppress(Exception):  # then the first one has to do
        file.file.seek(0)
        found = torch.serialization.get_unsafe_globals_in_checkpoint(file.file)
        named = sorted({*found} - {"argparse.Namespace"}) or named
    return (
        f"asks to run code ({', '.join(named)}), which a file of weights need not",
        "where you trust it, torch.load(..., weights_only=False) and safetensors.torch.save_file convert it",
    )


def unwrapped(store: CheckpointReader, file: Mapped, content: Any) -> dict[str, Tensor]:
    """The dict of tensors, itself or one below; the kind of the file, and a fairseq file's settings, go to `store`."""
    if not isinstance(content, dict):
        raise checkpoint_error(file.path, f"holds a {kind_of(content)}", "save the state_dict() instead")
    inner = next((content[key] for key in ("model", "state_dict") if isinstance(content.get(key), dict)), None)
    is_fairseq = isinstance(content.get("model"), dict) and ("args" in content or "cfg" in content)
    store.kind = "fairseq" if is_fairseq else "bin"
    if is_fairseq:
        settings = content.get("cfg") or content.get("args") or {}
        if not isinstance(settings, (dict, Namespace)):
            raise checkpoint_error(
                file.path, f"has a {type(settings).__name__} for its settings", "is it from fairseq?"
            )
        store.settings = plain(settings, {})
    return content if inner is None else inner


def kind_of(value: Any) -> str:
    return type(value).__name__.removeprefix("Fake")


def plain(value: Any, seen: dict[int, Any]) -> Any:
    """Namespaces as dicts, all the way down, and no tensors. `seen`: a pickle can refer to itself."""
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, (dict, Namespace)):
        seen[id(value)] = made = {}
        items = value.items() if isinstance(value, dict) else vars(value).items()
        made.update((key, plain(item, seen)) for key, item in items)
        return made
    if isinstance(value, (list, tuple)):
        seen[id(value)] = made = []
        made.extend(plain(item, seen) for item in value)
        return made
    return value if isinstance(value, (str, int, float, bool)) else None


def place_of(file: Mapped, name: str, tensor: Tensor, records: dict[int, int]) -> Place:
    """Where torch says that the bytes of `tensor` begin there must be a record, of their number."""
    begin, size = begin_of(tensor), room(tensor, records)
    first, needed = tensor.storage_offset(), extent(tuple(tensor.shape), tensor.stride())
    is_record = records.get(begin) == size and begin + size <= file.size
    if tensor.numel() and not (is_record and (first + needed) * tensor.dtype.itemsize <= size):
        raise checkpoint_error(file.path, f"has no record that {name!r} fits", "load and save it again with torch")
    return Place(file, (begin or 0) + first * tensor.dtype.itemsize, tensor.stride())


def begin_of(tensor: Tensor) -> int | None:
    return getattr(tensor.untyped_storage(), "_checkpoint_offset", None)


def room(tensor: Tensor, records: dict[int, int]) -> int:
    """Bytes of the storage under `tensor`."""
    size = tensor.untyped_storage().nbytes()
    return size // tensor.dtype.itemsize if records and overstates() else size


@cache
def overstates() -> bool:
    """Whether this torch takes each byte of a storage that it only pretends to have read for a number, as 2.9 does."""
    file = io.BytesIO()
    torch.save(torch.zeros(1), file)
    file.seek(0)
    with FakeTensorMode():
        return torch.load(file, weights_only=True).untyped_storage().nbytes() > 4
