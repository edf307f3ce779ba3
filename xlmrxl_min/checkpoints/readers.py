"""Memory-mapped tensors of a checkpoint: safetensors, .bin and fairseq's model.pt, in one file or sharded.

A tensor is a view of a private map of its file: pages are read when they are used, and writing to the tensor changes
this process's copy of a page, never the file. The system refuses such a map for a file larger than memory and swap.
That file is mapped as shared instead, and its tensors may only be read.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import warnings
import zipfile
from argparse import Namespace
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from . import CheckpointError
from .locate import WEIGHT_FILES

DTYPES = {  # by their names in safetensors
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
FAIRSEQ_SHARD = re.compile(r"(-shard|_part)-?\d+\.pt$")
DOWNLOAD_AGAIN = "download it again"
TOO_LARGE = "unable to mmap"  # in the error for a file of which the system refuses a private map


@dataclass
class Checkpoint:
    """The memory-mapped tensors of a checkpoint, by the names in its files, and what else these say.

    path: the file, or the index of several. format: "safetensors", "bin" or "fairseq". settings: fairseq's
    hyperparameters. is_writable: whether the tensors may be written to; that never changes the file.
    """

    path: Path
    format: str
    tensors: dict[str, Tensor]
    settings: dict[str, Any] = field(default_factory=dict)
    is_writable: bool = True


def open_checkpoint(source: str | os.PathLike[str]) -> Checkpoint:
    """Map a checkpoint: a folder with one of WEIGHT_FILES (the first of them), or a file. Reads no weights.

    Files that torch saved before 1.6 are the exception: they cannot be mapped and are read at once. Raises
    CheckpointError, in one sentence, for whatever cannot be read or is no checkpoint.
    """
    path = Path(source)
    try:
        path = weight_file_in(path) if path.is_dir() else path
        return open_sharded(path) if path.suffix == ".json" else open_file(path)
    except OSError as error:
        raise checkpoint_error(path, f"cannot be read ({error.strerror or error})", "see to that first") from error


def checkpoint_error(path: Path, problem: str, remedy: str = DOWNLOAD_AGAIN) -> CheckpointError:
    """One sentence: which file, what is wrong, what to do. Names in a file may hold anything, even line breaks."""
    sentence = f"{path} {problem if len(problem) <= 600 else problem[:600] + '…'}: {remedy}."
    return CheckpointError("".join(char if char.isprintable() else " " for char in sentence))


# ---- which file


def weight_file_in(folder: Path) -> Path:
    """The first of WEIGHT_FILES in `folder`; a broken link counts, so that the error can name it."""
    for name in WEIGHT_FILES:
        if os.path.lexists(folder / name):
            return folder / name
    names = sorted(path.name for path in folder.iterdir())
    check_fairseq_shards(folder / "model.pt", names)
    found = f"{', '.join(names[:9])}{', and more' if len(names) > 9 else ''}" if names else "nothing"
    raise checkpoint_error(folder, f"holds none of {', '.join(WEIGHT_FILES)}", f"there is {found}")


def check_fairseq_shards(path: Path, names: list[str]) -> None:
    """Raise CheckpointError for the shards of a fairseq model-parallel or FSDP run, which only fairseq can join."""
    shards = [name for name in names if name.startswith(path.stem) and FAIRSEQ_SHARD.search(name)]
    if shards or FAIRSEQ_SHARD.search(path.name):
        problem = f"is a model that fairseq has split into shards ({', '.join(shards[:3]) or path.name})"
        raise checkpoint_error(path, problem, "merge them with fairseq into one model.pt")


def check_file(path: Path) -> None:
    """Raise CheckpointError unless `path` is a file with content of its own."""
    if not path.is_file():  # checked before opening, as opening a pipe would block
        missing = "is a broken link" if path.is_symlink() else "is not there"
        problem = "is a directory" if path.is_dir() else "is no regular file" if path.exists() else missing
        remedy = "a checkpoint is a file, or a folder with one of " + ", ".join(WEIGHT_FILES)
        raise checkpoint_error(path, problem, remedy)
    with open(path, "rb") as file:
        start = file.read(23)
    if not start:
        raise checkpoint_error(path, "is empty")
    if start == b"version https://git-lfs":
        raise checkpoint_error(path, "is only a git-lfs pointer to the weights", "run git lfs pull in its folder")


def open_file(path: Path) -> Checkpoint:
    check_file(path)
    is_safetensors = path.suffix == ".safetensors"
    if path.suffix == ".pt":
        check_fairseq_shards(path, [other.name for other in path.parent.glob("*.pt")])
    try:
        checkpoint = open_safetensors(path) if is_safetensors else open_pickle(path)
    except CheckpointError:
        raise
    except Exception as error:  # a broken pickle can raise anything
        why = describe(error, "safetensors") if is_safetensors else explain_pickle(path, error)
        raise checkpoint_error(path, *why) from error
    checkpoint.tensors = {name: plain_tensor(path, name, value) for name, value in checkpoint.tensors.items()}
    return checkpoint


def plain_tensor(path: Path, name: Any, value: Any) -> Tensor:
    """`value`, detached. Raises CheckpointError unless it is a tensor on the CPU with a number for each element."""
    if not isinstance(name, str) or not isinstance(value, Tensor):
        raise checkpoint_error(path, f"has {name!r}, a {type(value).__name__}, among its tensors", "take it out")
    is_plain = value.layout is torch.strided and not value.is_quantized and not value.is_neg()
    is_plain = is_plain and value.device.type == "cpu" and value.dtype in DTYPES.values()
    if not is_plain or value.nbytes > value.untyped_storage().nbytes():  # fewer bytes: expanded, to any size
        problem = f"has {name!r} as a {value.layout} tensor of {value.dtype}".replace("torch.", "")
        raise checkpoint_error(path, problem, "make it a contiguous one of " + ", ".join(DTYPES))
    return value.detach()


# ---- sharded checkpoints


def load_index(path: Path) -> dict[str, str]:
    """{name of a tensor: name of a file beside `path`}. Raises CheckpointError for anything else, paths included."""
    check_file(path)
    try:
        index = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise checkpoint_error(path, f"does not hold the JSON it should ({error})") from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not (isinstance(weight_map, dict) and weight_map and all(isinstance(to, str) for to in weight_map.values())):
        raise checkpoint_error(path, "has no weight_map from tensors to files")
    for shard in dict.fromkeys(weight_map.values()):
        is_local = re.fullmatch(r"[^/\\:]+\.(safetensors|bin)", shard) and shard.isprintable()
        if not is_local:  # only the name counts: in the hub's cache it is a link to elsewhere
            raise checkpoint_error(path, f"points to {shard!r}, which is no file beside it", "do not trust it")
    return weight_map


def open_sharded(path: Path) -> Checkpoint:
    """Map all files of an index. Tensors that it does not list are ignored."""
    weight_map = load_index(path)
    for shard in dict.fromkeys(weight_map.values()):
        if not os.path.lexists(path.with_name(shard)):
            raise checkpoint_error(path, f"names {shard}, which is not there", "download that file too")
    shards = {shard: open_file(path.with_name(shard)) for shard in dict.fromkeys(weight_map.values())}
    for name, shard in weight_map.items():
        if name not in shards[shard].tensors:
            raise checkpoint_error(path, f"says {name!r} is in {shard}, and it is not", "download both again")
    tensors = {name: shards[shard].tensors[name] for name, shard in weight_map.items()}
    is_writable = all(checkpoint.is_writable for checkpoint in shards.values())
    return Checkpoint(path, next(iter(shards.values())).format, tensors, is_writable=is_writable)


# ---- safetensors: 8 bytes with the length of the header, a header in JSON, the data


def open_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, "pt") as file:
            return Checkpoint(path, "safetensors", {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except RuntimeError as error:  # the header is checked, but the data cannot be mapped
        if TOO_LARGE not in str(error):
            raise
    with open(path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        values = torch.frombuffer(data, dtype=torch.uint8)[start:]
    tensors = {
        name: values[slice(*entry["data_offsets"])].view(DTYPES[entry["dtype"]]).view(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__"
    }
    return Checkpoint(path, "safetensors", tensors, is_writable=False)


# ---- pickles of torch: .bin and .pt


def open_pickle(path: Path) -> Checkpoint:
    """Read a pickle with weights_only=True, so that nothing in it runs; its tensors are mapped by torch."""
    with open(path, "rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"  # as torch.save writes it since 1.6
    if is_zip:
        check_zip(path)
    load = partial(torch.load, path, map_location="cpu", weights_only=True, mmap=is_zip)
    allowed = {Namespace} - set(torch.serialization.get_safe_globals())  # a class in both would be taken out at the end
    with warnings.catch_warnings(), torch.serialization.safe_globals([*allowed]):
        warnings.simplefilter("ignore")
        try:
            content, is_writable = load(), True
        except RuntimeError as error:
            if TOO_LARGE not in str(error):
                raise
            with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
                content, is_writable = load(), False
    if not isinstance(content, dict):
        raise checkpoint_error(path, f"holds a {type(content).__name__}", "save the state_dict() instead")
    tensors = next((content[key] for key in ("model", "state_dict") if isinstance(content.get(key), dict)), content)
    is_fairseq = tensors is content.get("model") and ("args" in content or "cfg" in content)
    settings = fairseq_settings(path, content) if is_fairseq else {}
    return Checkpoint(path, "fairseq" if is_fairseq else "bin", tensors, settings, is_writable)


def check_zip(path: Path) -> None:
    """Raise CheckpointError for records that torch would map as they are although they have to be converted first."""
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED:
                problem = f"is compressed, or a TorchScript archive ({record.filename})"
                raise checkpoint_error(path, problem, "save the state_dict() with torch.save instead")
            is_byte_order = record.filename.lower().endswith("/byteorder")  # torch finds it in any case
            if is_byte_order and archive.read(record) != b"little":  # torch would swap the bytes in the map
                raise checkpoint_error(path, "is from a big-endian machine", "convert it to safetensors there")


def fairseq_settings(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The model's hyperparameters: fairseq's `cfg["model"]`, or `args`, as it was called before."""

    def as_dict(value: Any) -> Any:
        return vars(value) if isinstance(value, Namespace) else value

    settings = as_dict(content.get("cfg") or content.get("args") or {})
    settings = as_dict(settings.get("model") or settings) if isinstance(settings, dict) else settings
    if not isinstance(settings, dict):
        raise checkpoint_error(path, f"has a {type(settings).__name__} for its settings", "is it from fairseq?")
    return settings


def explain_pickle(path: Path, error: Exception) -> tuple[str, str]:
    """Why a pickle could not be read, and what to do."""
    names = re.findall(r"GLOBAL (\S+)", str(error))
    if not names:
        return describe(error, "torch.save")
    with suppress(Exception):  # the error names one; this finds all
        names = sorted({*torch.serialization.get_unsafe_globals_in_checkpoint(path)} - {"argparse.Namespace"}) or names
    return (
        f"asks to run code ({', '.join(names)}), which a file of weights need not",
        "where you trust it, torch.load(..., weights_only=False) and safetensors.torch.save_file convert it",
    )


def describe(error: Exception, writer: str) -> tuple[str, str]:
    return f"is truncated, or not written by {writer} ({type(error).__name__}: {str(error)[:200]})", DOWNLOAD_AGAIN
