"""Load a checkpoint: weights are streamed from the mapped files to their device. See notebooks/10_full_size.ipynb."""

from __future__ import annotations

import mmap
import os
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..files import lock_folder
from ..inputs import check_option, shown
from ..model import PreTrainedModel, XLMRobertaXLConfig
from . import CheckpointError, MissingFileError
from .config import load_config, load_generation_config
from .int8 import convert_to_int8, quantize_rows
from .locate import CONFIG_FILE, GENERATION_CONFIG_FILE, WEIGHT_FILES, Location, is_absent, locate
from .memory import free_memory
from .names import (
    ALIASES,
    HEAD_MODULES,
    LEGACY_BUFFERS,
    WORD_EMBEDDINGS,
    fairseq_config,
    hugging_face_name,
    hugging_face_tensors,
)
from .readers import Checkpoint, load_index, open_checkpoint

CHUNK_BYTES = 1 << 22  # of float32 that a thread converts or quantizes at a time; int8 needs a few times that
BALANCED = ("auto", "balanced", "balanced_low_0", "sequential")  # accelerate's ways to fill several devices
NUM_THREADS = 4  # of readers: twice as fast as one on a file that is not in the page cache yet
HUGE_PAGE = 1 << 21
Model = TypeVar("Model", bound=PreTrainedModel)


class Sharding:
    """Which shard of every weight this process holds; here the whole weight. `scale/` has a subclass for meshes."""

    local_world_size = 1  # processes that load into the same memory, this one included

    def shard_model(self, model: PreTrainedModel) -> None:
        """Shard the parameters of a model on the meta device."""

    def shard(self, tensor: Tensor, parameter: Tensor) -> Tensor:
        """Of a full `tensor` the part that this process holds in `parameter`, as a view."""
        return tensor

    def to_dtensor(self, shard: Tensor, parameter: Tensor) -> Tensor:
        """The shard as a DTensor, if `parameter` is one."""
        return shard

    @contextmanager
    def synced_rng(self) -> Iterator[None]:
        """Inside, all processes sample the same random numbers."""
        yield


class Matches(NamedTuple):
    """Which stored tensor each parameter is loaded from, and what was left over."""

    stored: dict[str, Tensor]  # by the name of the parameter
    newly_initialized: list[str]  # parameters
    unexpected: list[str]  # stored tensors, those of heads for other tasks included
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]]  # parameters, with the stored shape and the model's


def load(
    cls: type[Model], source: str | os.PathLike[str] | Location, *, config: XLMRobertaXLConfig | None = None,
    dtype: torch.dtype | str | None = None, device: torch.device | str | None = None,
    device_map: str | Mapping[str, Any] | None = None, quantize: str | None = None,
    ignore_mismatched_sizes: bool = False, attn_implementation: str = "sdpa", progress: bool = True,
    sharding: Sharding | None = None, **config_overrides: Any,
) -> tuple[Model, dict[str, list]]:  # fmt: skip
    """Build a model with the weights of `source`, in evaluation mode; see `PreTrainedModel.from_pretrained`.

    Also returns the names of the weights that were missing, unexpected, or of another shape.
    sharding: which shard of each weight to load (default: all of it). Each weight is allocated once, in its final
    dtype, and converted in chunks. On the CPU, weights of the dtype asked for stay in the mapped file.
    """
    if device_map is not None:
        device, device_map = split_device_map(device, device_map)
    sharding, device = sharding or Sharding(), as_device(torch.get_default_device() if device is None else device)
    dtype = config_overrides.pop("torch_dtype", None) if dtype is None else dtype
    check_option("attn_implementation", attn_implementation, ("sdpa", "eager", None))
    for name in ("low_cpu_mem_usage", "use_safetensors", "trust_remote_code"):  # transformers' options, without effect
        config_overrides.pop(name, None)
    check_option("quantize", quantize, (None, "int8"))
    pooling = config_overrides.pop("add_pooling_layer", None)
    build = {} if pooling is None else {"add_pooling_layer": pooling}
    location = locate(source)
    with lock_folder(location.folder, shared=True):  # so that all files are of one save
        checkpoint = open_checkpoint(locate_weights(location))
        tensors = hugging_face_tensors(checkpoint)
        config = resolve_config(location, checkpoint, tensors, config, config_overrides)
    config._attn_implementation = attn_implementation or "sdpa"
    dtype = next(t.dtype for t in tensors.values() if t.is_floating_point()) if dtype == "auto" else as_dtype(dtype)
    with torch.device("meta"):  # shapes without memory
        model = cls(config, **build)
    is_int8 = any(tensor.dtype == torch.int8 for tensor in tensors.values())
    if quantize or is_int8:
        convert_to_int8(model, dtype)
    sharding.shard_model(model)
    matches = match_parameters(model, tensors, checkpoint.path, not is_int8, ignore_mismatched_sizes)
    stored, newly_initialized = matches.stored, matches.newly_initialized
    if any(not model.get_parameter(name).is_floating_point() for name in newly_initialized):
        raise CheckpointError(
            f"{checkpoint.path} holds no LM head, and a new one could not learn in int8: leave out quantize."
        )
    shards = {name: sharding.shard(tensor, model.get_parameter(name)) for name, tensor in stored.items()}
    mapped = set()
    if device.type == "cpu" and checkpoint.is_writable:
        wanted = {name: target_dtype(model.get_parameter(name), dtype) for name in shards}
        mapped = {name for name, shard in shards.items() if shard.dtype == wanted[name] and shard.is_contiguous()}
    check_memory(model, mapped, dtype, device, sharding)
    copy_weights(model, shards, mapped, dtype, device, progress, sharding)
    if newly_initialized:
        initialize_weights(model, newly_initialized, dtype, device, sharding)
        heads = ", ".join(sorted({name.removeprefix("backbone.").split(".")[0] for name in newly_initialized}))
        holds = "holds other shapes of" if matches.mismatched else "holds no"
        what = f"{checkpoint.path} {holds} {heads}: initialised at random, to be trained before use."
        warnings.warn(what, stacklevel=3)
    model.tie_weights()
    left = [name for name, parameter in model.named_parameters() if parameter.device.type != device.type]
    assert not left, f"never loaded: {left}"
    model.eval()
    if model.can_generate() and location.holds(GENERATION_CONFIG_FILE):
        setattr(model, "generation_config", load_generation_config(location.find(GENERATION_CONFIG_FILE)))  # noqa: B010
    if device_map is not None:
        dispatch(model, device_map)
    return model, {
        "missing_keys": newly_initialized, "unexpected_keys": matches.unexpected,
        "mismatched_keys": matches.mismatched, "error_msgs": [],
    }  # fmt: skip


def split_device_map(device: Any, device_map: Any) -> tuple[Any, Any]:
    """The device to load to, and the map for accelerate; None if it has only one device. ValueError for other types."""
    if isinstance(device_map, (int, torch.device)):
        return device_map, None
    if isinstance(device_map, str) and device_map not in BALANCED:
        return device_map, None
    if isinstance(device_map, Mapping) and set(device_map) == {""} and device_map[""] != "disk":
        return device_map[""], None
    if not isinstance(device_map, (str, Mapping)):
        allowed = f"a device, one of {', '.join(BALANCED)}, or {{module: device}}"
        raise ValueError(f"device_map={shown(device_map)} is impossible: it must be {allowed}.")
    return device, device_map


def dispatch(model: PreTrainedModel, device_map: str | Mapping[str, Any]) -> None:
    """Spread the modules over devices by accelerate's hooks, which move their inputs. ValueError without accelerate."""
    try:
        import accelerate  # type: ignore[import-untyped]
    except ImportError as error:
        remedy = "pip install 'xlmrxl_min[offload]'"
        raise ValueError(f"device_map={shown(device_map)} needs accelerate: {remedy}, or name one device.") from error
    placement: Any = device_map
    if isinstance(device_map, str):
        options: Any = {"no_split_module_classes": model._no_split_modules, "dtype": model.dtype}
        memory = accelerate.utils.get_balanced_memory(model, low_zero=device_map == "balanced_low_0", **options)
        placement = accelerate.infer_auto_device_map(model, None if device_map == "sequential" else memory, **options)
    accelerate.dispatch_model(model, dict(placement))


def locate_weights(location: Location) -> Path:
    """The file with the weights, or the index of several, which are downloaded with it."""
    if location.weight_file is not None:
        return location.weight_file
    if location.hub is None:
        first = next((name for name in WEIGHT_FILES if location.holds(name)), None)
        return location.folder / first if location.folder and first else location.find(WEIGHT_FILES[0])
    location.find(CONFIG_FILE)  # one clear error, where there is no such model or no network
    for name in sorted(WEIGHT_FILES, key=lambda name: not location.holds(name)):
        try:
            path = location.find(name)
        except MissingFileError as error:
            if not is_absent(error.__cause__):
                raise
            continue
        if name.endswith(".index.json"):
            for shard in sorted(set(load_index(path).values())):
                location.find(shard)
        return path
    raise MissingFileError(f"{location} has none of {', '.join(WEIGHT_FILES)} on the Hugging Face hub.")


def resolve_config(
    location: Location, checkpoint: Checkpoint, tensors: dict[str, Tensor],
    config: XLMRobertaXLConfig | None = None, overrides: dict[str, Any] | None = None,
) -> XLMRobertaXLConfig:  # fmt: skip
    """A copy of `config` if given, or else that of the checkpoint, with `overrides` on top."""
    if config is None and checkpoint.format != "fairseq":
        return load_config(XLMRobertaXLConfig, location, **(overrides or {}))
    values = fairseq_config(checkpoint, tensors) if config is None else XLMRobertaXLConfig.convert(config).to_dict()
    return XLMRobertaXLConfig.from_dict(values, **(overrides or {}))


def match_parameters(
    model: PreTrainedModel, tensors: dict[str, Tensor], path: Path, quantizing: bool,
    ignore_mismatched_sizes: bool = False,
) -> Matches:  # fmt: skip
    """Find the stored tensor of each of the model's parameters.

    The prefix of the backbone differs between checkpoints: it is taken from the name of the word embeddings.
    quantizing: int8's scales are not stored, but computed. ignore_mismatched_sizes: initialise those anew. Raises
    CheckpointError, which lists all names that are missing, unexpected, or of another shape or dtype.
    """
    prefix = next(
        (name.removesuffix(WORD_EMBEDDINGS) for name in tensors if name.endswith(WORD_EMBEDDINGS)), "roberta."
    )
    outer = prefix.removesuffix("roberta.")

    def head_of(name: str) -> str | None:
        first = name.removeprefix(prefix).removeprefix(outer).split(".")[0]
        return first if first in HEAD_MODULES else None

    stored, missing, mismatched, faulty, used = {}, {}, [], [], set()
    for ours, parameter in model.named_parameters():  # a tied pair counts once
        if quantizing and ours.endswith(".scale"):
            continue
        name = hugging_face_name(ours)
        inner = name.removeprefix("roberta.")
        head = inner.split(".")[0] if inner.split(".")[0] in HEAD_MODULES else None
        candidates = [(outer if head not in (None, "pooler") else prefix) + inner]
        if inner in ALIASES and (inner != WORD_EMBEDDINGS or model.config.tie_word_embeddings):
            candidates.append(outer + ALIASES[inner])
        found = [candidate for candidate in candidates if candidate in tensors]
        used.update(found)
        for candidate in found:
            shape, dtype = tuple(tensors[candidate].shape), tensors[candidate].dtype
            fits = dtype.is_floating_point or (dtype == torch.int8 == parameter.dtype)
            if shape != tuple(parameter.shape) and fits and ignore_mismatched_sizes:
                mismatched.append((ours, shape, tuple(parameter.shape)))
            elif shape != tuple(parameter.shape) or not fits:
                kind = "" if fits else f" {str(dtype).removeprefix('torch.')}"
                faulty.append(f"{candidate} is {shape}{kind}, the model needs {tuple(parameter.shape)}")
        if not found:
            missing[ours] = (name, head)
        elif not (mismatched and mismatched[-1][0] == ours):
            stored[ours] = tensors[found[0]]
    stored_heads, used_heads = {head_of(name) for name in tensors}, {head_of(name) for name in used}
    newly_initialized = [ours for ours, (_, head) in missing.items() if head and head not in stored_heads]
    lacking = [name for ours, (name, _) in missing.items() if ours not in newly_initialized]
    unexpected = [name for name in tensors if name not in used and not LEGACY_BUFFERS.search(name)]
    alien = [n for n in unexpected if not head_of(n) or head_of(n) in used_heads]  # of no head for another task
    kinds = (("missing", lacking), ("unexpected", alien), ("of another shape or dtype", faulty))
    faults = [f"{kind}: {', '.join(sorted(names))}" for kind, names in kinds if names]
    if faults:
        raise CheckpointError(f"{path} does not fit {type(model).__name__} with this config. {'. '.join(faults)}.")
    newly_initialized += [ours for ours, *_ in mismatched]
    return Matches(stored, newly_initialized, unexpected, mismatched)


def check_memory(
    model: PreTrainedModel, mapped: set[str], dtype: torch.dtype, device: torch.device, sharding: Sharding
) -> None:
    """Raise CheckpointError if the weights do not fit into free memory; those that stay mapped need none."""
    free = free_memory(device)
    if free is None:
        return
    free //= sharding.local_world_size
    numel = size = 0
    for name, parameter in model.named_parameters():
        count = sharding.shard(torch.empty(parameter.shape, device="meta"), parameter).numel()
        numel += count
        size += 0 if name in mapped else count * target_dtype(parameter, dtype).itemsize
    if size <= free:
        return
    needs = {"dtype='bfloat16'": 2 * numel, "quantize='int8'": numel}
    remedies = [f"{how} needs about {need / 1e9:.1f} GB" for how, need in needs.items() if need <= free]
    raise CheckpointError(
        f"the weights need {size / 1e9:.1f} GB and {device} has {free / 1e9:.1f} GB free, {(size - free) / 1e9:.1f} GB"
        f" too little: {', '.join(remedies) or 'no smaller type would fit either, so take another machine or model'}."
    )


def target_dtype(parameter: Tensor, dtype: torch.dtype) -> torch.dtype:
    """int8 weights and their scales keep their dtype; the others get the one that was asked for."""
    return dtype if parameter.requires_grad else parameter.dtype


# ---- copying


def copy_weights(
    model: PreTrainedModel, shards: dict[str, Tensor], mapped: set[str], dtype: torch.dtype, device: torch.device,
    progress: bool, sharding: Sharding,
) -> None:  # fmt: skip
    """Set the parameters of `mapped` to their stored shards, and the others to copies of these on `device`."""
    copies: list[tuple[Tensor, Tensor, Tensor | None]] = []
    for name, shard in shards.items():
        parameter, target, scale = model.get_parameter(name), shard, None
        if name not in mapped:
            target = allocate(shard.shape, target_dtype(parameter, dtype), device)
            if target.dtype == torch.int8 != shard.dtype:
                scale = allocate(shard.shape[:1], torch.float32, device)
                set_parameter(model, name.removesuffix("weight") + "scale", scale)
            copies.append((target, shard, scale))
        set_parameter(model, name, sharding.to_dtensor(target, parameter))
    copies.sort(key=lambda copy: -copy[1].nbytes)  # the threads are done at about the same time
    bar = tqdm(total=sum(copy[1].nbytes for copy in copies), unit="B", unit_scale=True, disable=not progress, delay=2)
    with bar, ThreadPoolExecutor(NUM_THREADS) as threads:
        for size in threads.map(lambda copy: copy_in_chunks(*copy), copies):
            bar.update(size)


def copy_in_chunks(target: Tensor, source: Tensor, scale: Tensor | None) -> int:
    """Convert `source` to `target`, some rows at a time, or quantize it to `target` and `scale`; returns its bytes."""
    rows = max(1, CHUNK_BYTES // max(1, 4 * source[:1].numel()))
    for start in range(0, len(source), rows):
        chunk = slice(start, start + rows)
        if scale is None:
            target[chunk].copy_(source[chunk])
        else:
            integers, scales = quantize_rows(source[chunk])
            target[chunk].copy_(integers)
            scale[chunk].copy_(scales)
    return source.nbytes


def allocate(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised memory, on Linux in pages of 2 MB: to fill it takes a third of the time of 4 kB pages."""
    size = shape.numel() * dtype.itemsize
    if device.type != "cpu" or size < HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE)
    with suppress(OSError):  # a system may have been built without
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def set_parameter(model: nn.Module, name: str, values: Tensor) -> None:
    module, _, parameter = name.rpartition(".")
    owner = model.get_submodule(module)
    setattr(owner, parameter, nn.Parameter(values, requires_grad=getattr(owner, parameter).requires_grad))


def initialize_weights(
    model: PreTrainedModel, names: list[str], dtype: torch.dtype, device: torch.device, sharding: Sharding
) -> None:
    """Initialise the parameters `names` as a new model's: each weight whole, then this process keeps its shard."""
    parameters = {name: model.get_parameter(name) for name in names}
    for name, parameter in parameters.items():
        set_parameter(model, name, torch.empty(parameter.shape, device=device, dtype=dtype))
    with sharding.synced_rng():
        for module in dict.fromkeys(name.rpartition(".")[0] for name in names):  # in the same order in all processes
            owner: Any = model.get_submodule(module)
            owner.reset_parameters()  # for norms; the next line initialises linear layers as the model does
            model.init_weights(owner)
    for name, parameter in parameters.items():
        shard = sharding.shard(model.get_parameter(name).detach(), parameter)
        set_parameter(model, name, sharding.to_dtensor(shard, parameter))


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    found = torch.float32 if dtype is None else getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype={shown(dtype)} is unknown: take float32, bfloat16 or float16.")
    return found


def as_device(device: torch.device | str) -> torch.device:
    """Raises ValueError for a device that this machine does not have."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"device={shown(device)} cannot be used here ({why}): take 'cpu' or another.") from error
