"""Load a checkpoint: weights are streamed from the files to where they belong. See notebooks/10_full_size.ipynb.

Checkpoints are folders of Hugging Face, with `config.json` and weights under their names, or fairseq's; readers.py
reads every form of them.
"""

from __future__ import annotations

import mmap
import os
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..model import PreTrainedModel, XLMRobertaXLConfig
from . import CheckpointError
from .config import CONFIG_FILE, config_from, config_keys, locate
from .int8 import quantized, with_int8
from .locate import find, folder_of
from .memory import free_memory
from .names import (
    ALIASES,
    HEADS,
    LEGACY_BUFFERS,
    WORDS,
    Stored,
    fairseq_config,
    hugging_face_name,
    hugging_face_tensors,
)
from .readers import WEIGHT_FILES, CheckpointReader, index_of, open_store

# ---- finding and reading


def locate_weights(source: str | os.PathLike[str]) -> Path:
    """The folder with the weights; of a hub id, the file or the index, fetched with all that belongs to it."""
    folder = folder_of(source)
    if folder is not None:
        if not any((folder / name).exists() for name in WEIGHT_FILES):
            locate(source, WEIGHT_FILES[0])  # says what there should be
        return folder
    locate(source, CONFIG_FILE)  # one clear error, where there is no such model or no network
    for name in WEIGHT_FILES:
        try:
            path = find(source, name)
        except FileNotFoundError:
            continue
        if name.endswith(".index.json"):
            for shard in sorted(set(index_of(path).values())):
                locate(source, shard)
        return path
    raise CheckpointError(f"{source} has none of {', '.join(WEIGHT_FILES)} on the Hugging Face hub.")


# ---- weights


class Whole:
    """How much of every weight this process holds: all of it. parallel.py has a kind that holds a part."""

    neighbours = 1  # processes that load into the same memory, this one included

    def cut(self, model: PreTrainedModel) -> None:
        """Divide a model on the meta device."""

    def own(self, parameter: Tensor) -> tuple[slice, ...]:
        """Which part of the whole weight belongs here."""
        return tuple(slice(0, size) for size in parameter.shape)

    def to_dtensor(self, values: Tensor, parameter: Tensor) -> Tensor:
        """The own part, as what `parameter` is."""
        return values

    @contextmanager
    def synced_rng(self) -> Iterator[None]:
        """What is drawn in here is the same in all processes."""
        yield


def load(
    cls: type[PreTrainedModel],
    source: str | os.PathLike[str],
    *,
    config: XLMRobertaXLConfig | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    quantize: str | None = None,
    progress: bool = True,
    share: Whole | None = None,
    **config_overrides: Any,
) -> PreTrainedModel:
    """Build a model with the weights of `source`, in evaluation mode.

    source: a name in `xlmrxl_min/pretrained/` ("tiny"), a folder (safetensors or .bin, one file or several; or
    fairseq's model.pt), or a Hugging Face hub id. dtype: None for float32, or a torch dtype or its name. quantize:
    "int8" for the large matrices, a scale per row. config_overrides: fields of the config to change, such as
    num_labels=3. A head that the checkpoint lacks is initialised, and one warning says so; anything else missing,
    unexpected or of another shape is a CheckpointError that lists all of it, and so is a model too large for the
    memory that is free. Nothing is in memory twice, but for a part of a tensor: weights go from the mapped file to
    where they belong. On the CPU, in the file's own type, they stay in the file until they are used. share: what of
    each weight to load, for parallel.py.
    """
    share = share or Whole()
    dtype = dtype_named(config_overrides.pop("torch_dtype", None) if dtype is None else dtype)
    if quantize not in (None, "int8"):
        raise ValueError(f"quantize={quantize!r} is unknown: take 'int8' or None.")
    pooling = config_overrides.pop("add_pooling_layer", None)
    build = {} if pooling is None else {"add_pooling_layer": pooling}
    with open_store(locate_weights(source)) as store:
        stored = hugging_face_tensors(store)
        config = config_for(source, store, stored, config, config_overrides)
        with torch.device("meta"):  # shapes without memory: each weight is allocated once, where it belongs
            model = cls(config, **build)
        is_int8 = any(tensor.entry.dtype == torch.int8 for tensor in stored.values())
        if quantize or is_int8:
            with_int8(model, dtype)
        share.cut(model)
        theirs, fresh = match(model, stored, store.path, quantizing=not is_int8)
        if any(not model.get_parameter(name).is_floating_point() for name in fresh):
            raise CheckpointError(
                f"{store.path} holds no LM head, and a new one could not learn in int8: leave out quantize."
            )
        check_room(model, theirs, dtype, torch.device(device), share)
        fill(model, store, theirs, dtype, torch.device(device), progress, share)
    if fresh:
        initialise(model, fresh, torch.device(device), dtype, share)
        heads = ", ".join(sorted({name.removeprefix("backbone.").split(".")[0] for name in fresh}))
        warnings.warn(f"{store.path} holds no {heads}: initialised at random, to be trained before use.", stacklevel=2)
    model.tie_weights()
    left = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    assert not left, f"never loaded: {left}"
    return model.eval()


def config_for(
    source: str | os.PathLike[str],
    store: CheckpointReader,
    stored: dict[str, Stored],
    config: XLMRobertaXLConfig | None,
    overrides: dict[str, Any],
) -> XLMRobertaXLConfig:
    """The config that is given, or else that of `source`, with `overrides` on top."""
    if config is not None:  # a copy: what happens to this model's config is nobody else's business
        return config_from(XLMRobertaXLConfig, config_keys(config), overrides)
    if store.kind == "fairseq":
        return config_from(XLMRobertaXLConfig, fairseq_config(store, stored), overrides)
    return XLMRobertaXLConfig.from_pretrained(source, **overrides)


def match(
    model: PreTrainedModel, stored: dict[str, Stored], path: Path, quantizing: bool
) -> tuple[dict[str, Stored], list[str]]:
    """Which stored tensor each of the model's parameters comes from, and which parameters have to be initialised.

    A checkpoint of a bare model has no prefix, a wrapped one another: it is read off the name of the word embeddings.
    quantizing: int8's scales are not stored, but come from the weights.
    """
    prefix = next((name.removesuffix(WORDS) for name in stored if name.endswith(WORDS)), "roberta.")
    outer = prefix.removesuffix("roberta.")

    def head_of(name: str) -> str | None:
        first = name.removeprefix(prefix).removeprefix(outer).split(".")[0]
        return first if first in HEADS else None

    theirs, missing, wrong, seen = {}, {}, [], set()
    for ours, parameter in model.named_parameters():  # a tied pair counts once
        if quantizing and ours.endswith(".scale"):
            continue
        name = hugging_face_name(ours)
        inner = name.removeprefix("roberta.")
        in_head = inner.split(".")[0] in HEADS
        places = [(outer if in_head and not inner.startswith("pooler.") else prefix) + inner]
        if inner in ALIASES and (inner != WORDS or model.config.tie_word_embeddings):
            places.append(outer + ALIASES[inner])
        found = [place for place in places if place in stored]
        seen.update(found)
        for place in found:
            shape, dtype = stored[place].entry.shape, stored[place].entry.dtype
            fits = dtype.is_floating_point or (dtype == torch.int8 == parameter.dtype)
            if shape != tuple(parameter.shape) or not fits:
                kind = "" if fits else f" {str(dtype).removeprefix('torch.')}"
                wrong.append(f"{place} is {shape}{kind}, the model needs {tuple(parameter.shape)}")
        if found:
            theirs[ours] = stored[found[0]]
        else:
            missing[ours] = (name, inner.split(".")[0] if in_head else None)
    there = {head_of(name) for name in stored}
    fresh = [ours for ours, (_, head) in missing.items() if head and head not in there]
    mine = {head_of(name) for name in seen}
    unexpected = [
        name
        for name in stored
        if name not in seen
        and not LEGACY_BUFFERS.search(name)
        and not (head_of(name) and head_of(name) not in mine)  # a head for another task stays in the file
    ]
    lost = [name for ours, (name, _) in missing.items() if ours not in fresh]
    kinds = (("missing", lost), ("unexpected", unexpected), ("of another shape", wrong))
    faults = [f"{kind}: {', '.join(sorted(names))}" for kind, names in kinds if names]
    if faults:
        raise CheckpointError(f"{path} does not fit {type(model).__name__} with this config. {'. '.join(faults)}.")
    return theirs, fresh


def check_room(
    model: PreTrainedModel, theirs: dict[str, Stored], dtype: torch.dtype, device: torch.device, share: Whole
) -> None:
    """CheckpointError if the weights cannot fit into the memory that is free; what is mapped needs none."""
    free = free_memory(device)
    free = None if free is None else free // share.neighbours
    mapped = {n for n, stored in theirs.items() if is_mapped(model.get_parameter(n), stored, dtype, device, share)}
    counts = {name: shape_of(share.own(p)).numel() for name, p in model.named_parameters()}
    needed = {name: counts[name] * target_dtype(p, dtype).itemsize for name, p in model.named_parameters()}
    size = sum(n for name, n in needed.items() if name not in mapped)
    if free is None or size <= free:
        return
    numbers = sum(counts.values())
    cures = {"dtype='bfloat16'": 2 * numbers, "quantize='int8'": numbers}
    cures = [f"{how} needs about {need / 1e9:.1f} GB" for how, need in cures.items() if need <= free]
    raise CheckpointError(
        f"the weights need {size / 1e9:.1f} GB and {device} has {free / 1e9:.1f} GB free, {(size - free) / 1e9:.1f} GB"
        f" too little: {', '.join(cures) or 'no smaller type would fit either, so take another machine or model'}."
    )


def target_dtype(parameter: nn.Parameter, dtype: torch.dtype) -> torch.dtype:
    """int8 and its scales are what they are; the others come in the type that was asked for."""
    return parameter.dtype if not parameter.requires_grad else dtype


def is_mapped(parameter: nn.Parameter, stored: Stored, dtype: torch.dtype, device: torch.device, share: Whole) -> bool:
    """Whether a weight can stay in the file: on the CPU, in the file's type, and in one piece."""
    in_one_piece = shape_of(share.own(parameter))[1:] == parameter.shape[1:]
    same = bool(stored.name) and stored.entry.dtype == target_dtype(parameter, dtype)
    return device.type == "cpu" and same and in_one_piece


def shape_of(part: tuple[slice, ...]) -> torch.Size:
    return torch.Size(rows.stop - rows.start for rows in part)


# ---- streaming


PART = 1 << 22  # bytes that are converted at a time: about what the caches hold
READERS = 4  # threads: what a disk and two cores can use
HUGE_PAGE = 1 << 21


def fill(
    model: PreTrainedModel,
    store: CheckpointReader,
    theirs: dict[str, Stored],
    dtype: torch.dtype,
    device: torch.device,
    progress: bool,
    share: Whole,
) -> None:
    """Give every parameter of `theirs` its values on `device`, several at a time."""
    ferry = HostToDeviceCopier(device)
    own = {ours: share.own(model.get_parameter(ours)) for ours in theirs}
    sizes = {
        ours: shape_of(own[ours]).numel() * stored.entry.dtype.itemsize * bool(stored.name)
        for ours, stored in theirs.items()
    }
    with (
        tqdm(total=sum(sizes.values()), unit="B", unit_scale=True, disable=not progress, delay=2) as bar,
        ThreadPoolExecutor(READERS, initializer=ferry.board) as readers,
    ):

        def fill_one(ours: str) -> int:
            stored, parameter = theirs[ours], model.get_parameter(ours)
            wanted = target_dtype(parameter, dtype)
            if not stored.name:
                zeros = allocate(shape_of(own[ours]), wanted, device).zero_()
                put(model, ours, share.to_dtensor(zeros, parameter))
                return sizes[ours]
            if is_mapped(parameter, stored, dtype, device, share):
                values = store.view(stored.name, writable=True)
                if values is not None:
                    put(model, ours, share.to_dtensor(values[stored.rows][own[ours]], parameter))
                    return sizes[ours]
            values = store.view(stored.name)[stored.rows][own[ours]]
            target = allocate(values.shape, wanted, device)
            scale = None
            if wanted == torch.int8 != values.dtype:
                scale = allocate(values.shape[:1], torch.float32, device)
            itemsize = 4 if scale is not None else max(target.element_size(), values.element_size())
            for part in parts(values, itemsize):
                if scale is None:
                    ferry.carry(target, part, values[part])
                else:
                    integers, scales = quantized(values[part])
                    ferry.carry(target, part, integers)
                    ferry.carry(scale, part, scales)
            put(model, ours, share.to_dtensor(target, parameter))
            if scale is not None:
                put(model, ours.removesuffix("weight") + "scale", scale)
            return sizes[ours]

        for size in readers.map(fill_one, sorted(theirs, key=lambda name: -sizes[name])):
            bar.update(size)
    ferry.arrive()


def allocate(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory not yet written to; on Linux in pages of 2 MB, as XL in the usual 4 kB would be 3.4 million of them."""
    size = shape.numel() * dtype.itemsize
    if device.type != "cpu" or size < HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE)
    with suppress(OSError):  # a system may have been built without
        room.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(room, dtype=dtype).view(shape)


def parts(values: Tensor, itemsize: int) -> Iterator[slice]:
    """Rows that together have at most PART bytes."""
    rows = max(1, PART // max(1, itemsize * values[:1].numel()))
    return (slice(start, start + rows) for start in range(0, max(1, len(values)), rows))


class HostToDeviceCopier:
    """Carries parts of tensors to a device: towards an accelerator through two pinned buffers a thread, in turn."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.local = device, threading.local()
        self.pins = pins(device)

    def board(self) -> None:
        """To be called by each thread first: which of several GPUs is the current one, every thread has to be told."""
        if self.pins and self.device.index is not None:
            torch.get_device_module(self.device).set_device(self.device)

    def carry(self, target: Tensor, rows: slice, values: Tensor) -> None:
        target = target[rows]
        if not self.pins:
            target.copy_(values)
            return
        if not hasattr(self.local, "buffers"):
            module = torch.get_device_module(self.device)
            self.local.buffers = [torch.empty(PART, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
            self.local.gone = [module.Event() for _ in range(2)]
            self.local.turn = 0
        turn = self.local.turn = 1 - self.local.turn
        self.local.gone[turn].synchronize()  # what the buffer held has arrived
        staged = self.local.buffers[turn][: target.nbytes].view(target.dtype).view(target.shape)
        staged.copy_(values)  # converts here, so that the device needs no room for it
        target.copy_(staged, non_blocking=True)
        self.local.gone[turn].record()

    def arrive(self) -> None:
        if self.pins:
            torch.get_device_module(self.device).synchronize(self.device)


def pins(device: torch.device) -> bool:
    """Whether there is a device that could fetch from pinned memory."""
    if device.type == "cpu":
        return False
    try:
        torch.empty(1, pin_memory=True)
    except RuntimeError:
        return False
    return True


def put(model: PreTrainedModel, name: str, values: Tensor) -> None:
    owner, _, parameter = name.rpartition(".")
    module = model.get_submodule(owner)
    setattr(module, parameter, nn.Parameter(values, requires_grad=getattr(module, parameter).requires_grad))


def initialise(
    model: PreTrainedModel, names: list[str], device: torch.device, dtype: torch.dtype, share: Whole
) -> None:
    places = {name: model.get_parameter(name) for name in names}
    for name, parameter in places.items():  # the whole weight, of which the own part is kept
        put(model, name, torch.empty(parameter.shape, device=device, dtype=dtype))
    with share.synced_rng():
        for module in dict.fromkeys(name.rpartition(".")[0] for name in names):  # a set's order is not always the same
            owner = model.get_submodule(module)
            owner.reset_parameters()  # for norms; the next line gives linear layers the model's own distribution
            model.init_weights(owner)
    for name, parameter in places.items():
        put(model, name, share.to_dtensor(model.get_parameter(name).detach()[share.own(parameter)], parameter))


def dtype_named(dtype: torch.dtype | str | None) -> torch.dtype:
    found = torch.float32 if dtype is None else getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype={dtype!r} is unknown: take float32, bfloat16 or float16.")
    return found
