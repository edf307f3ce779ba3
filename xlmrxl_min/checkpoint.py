"""Files <-> weights: the name table, loading, saving. Walked through in notebooks/10_full_size.ipynb.

Checkpoints are Hugging Face folders: a `config.json` and a `model.safetensors` under Hugging Face's names.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from .files import CheckpointError
from .model import PreTrainedModel, XLMRobertaXLConfig
from .pretrained import find

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
MODEL_TYPE = "xlm-roberta-xl"
CONFIG_FIELDS = tuple(field.name for field in fields(XLMRobertaXLConfig) if field.name != "extra")

# ours -> Hugging Face, module by module; {} is the number of a layer
BACKBONE_NAMES = {
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.token_type": "embeddings.token_type_embeddings",
    "layers.{}.attention.norm": "encoder.layer.{}.attention.self_attn_layer_norm",
    "layers.{}.attention.query": "encoder.layer.{}.attention.self.query",
    "layers.{}.attention.key": "encoder.layer.{}.attention.self.key",
    "layers.{}.attention.value": "encoder.layer.{}.attention.self.value",
    "layers.{}.attention.distance": "encoder.layer.{}.attention.self.distance_embedding",
    "layers.{}.attention.out": "encoder.layer.{}.attention.output.dense",
    "layers.{}.cross_attention.norm": "encoder.layer.{}.crossattention.self_attn_layer_norm",
    "layers.{}.cross_attention.query": "encoder.layer.{}.crossattention.self.query",
    "layers.{}.cross_attention.key": "encoder.layer.{}.crossattention.self.key",
    "layers.{}.cross_attention.value": "encoder.layer.{}.crossattention.self.value",
    "layers.{}.cross_attention.out": "encoder.layer.{}.crossattention.output.dense",
    "layers.{}.feed_forward.norm": "encoder.layer.{}.LayerNorm",
    "layers.{}.feed_forward.up": "encoder.layer.{}.intermediate.dense",
    "layers.{}.feed_forward.down": "encoder.layer.{}.output.dense",
    "norm": "encoder.LayerNorm",
    "pooler.dense": "pooler.dense",
}
HEAD_NAMES = {
    "lm_head.dense": "lm_head.dense",
    "lm_head.norm": "lm_head.layer_norm",
    "lm_head.decoder": "lm_head.decoder",
    "classifier": "classifier",
    "classifier.dense": "classifier.dense",
    "classifier.out_proj": "classifier.out_proj",
    "qa_outputs": "qa_outputs",
}
HEADS = ("lm_head", "classifier", "qa_outputs", "pooler")
LEGACY_BUFFERS = re.compile(r"(^|\.)embeddings\.(position_ids|token_type_ids)$")
WORDS = "embeddings.word_embeddings.weight"
# Hugging Face's two names for one tied parameter: a file holds either, or both
ALIASES = {"lm_head.decoder.bias": "lm_head.bias", WORDS: "lm_head.decoder.weight"}


def hugging_face_name(ours: str) -> str:
    """`backbone.layers.3.attention.out.weight` -> `roberta.encoder.layer.3.attention.output.dense.weight`.

    Without `backbone.` in front (the bare model) there is no `roberta.` either; heads have neither.
    """
    module, _, parameter = ours.rpartition(".")
    inner = module.removeprefix("backbone.")
    prefix = "roberta." if inner != module else ""
    number = "".join(re.findall(r"^layers\.(\d+)\.", inner))
    table = HEAD_NAMES if inner in HEAD_NAMES else BACKBONE_NAMES
    theirs = table[re.sub(r"^layers\.\d+\.", "layers.{}.", inner)]
    return f"{prefix}{theirs.format(number)}.{parameter}"


# ---- finding and reading


def locate(source: str | os.PathLike[str], name: str) -> Path:
    """The path of one file of a checkpoint; CheckpointError where it is not."""
    try:
        return find(source, name)
    except FileNotFoundError as error:
        raise CheckpointError(str(error)) from error


def load_config(cls: type[XLMRobertaXLConfig], source: str | os.PathLike[str], **overrides: Any) -> XLMRobertaXLConfig:
    """Read `config.json` of `source` (see load), with `overrides` on top. CheckpointError if it is another model's."""
    path = locate(source, CONFIG_FILE)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        model_type = values.pop("model_type", None)
    except (ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} is not the JSON of a config ({error}): fetch it again.") from error
    if model_type != MODEL_TYPE:
        raise CheckpointError(f"{path} is of model_type {model_type!r}, but this library loads only {MODEL_TYPE!r}.")
    try:
        config = config_from(cls, values, {})
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} makes no model: {error}") from error
    return config_from(cls, config_keys(config), overrides)


def config_from(cls: type[XLMRobertaXLConfig], values: dict[str, Any], overrides: dict[str, Any]) -> XLMRobertaXLConfig:
    """Build from the keys of a `config.json`, with `overrides` on top; keys that are no field go to `extra`."""
    unknown = sorted(set(overrides) - set(CONFIG_FIELDS))
    if unknown:
        raise ValueError(f"got {', '.join(unknown)}, which is no option and no field of the config.")
    labels = overrides.get("num_labels")
    is_new = "id2label" in overrides or (labels is not None and labels != len(values.get("id2label") or "no"))
    stale = ("num_labels", "id2label", "label2id") if is_new else ()
    values = {**{name: value for name, value in values.items() if name not in stale}, **overrides}
    extra = {name: values.pop(name) for name in list(values) if name not in CONFIG_FIELDS}
    return cls(**values, extra=extra)


def config_keys(config: XLMRobertaXLConfig) -> dict[str, Any]:
    """The keys and values of its `config.json`, `extra` included."""
    return {**config.extra, **{name: config[name] for name in CONFIG_FIELDS}}


def save_config(config: XLMRobertaXLConfig, folder: str | os.PathLike[str]) -> None:
    """Write `config.json` into `folder`, under Hugging Face's keys."""
    with all_or_nothing(Path(folder) / CONFIG_FILE) as (draft,):
        draft.write_text(config_json(config), encoding="utf-8")


def config_json(config: XLMRobertaXLConfig, **more: Any) -> str:
    if callable(config.hidden_act):
        raise ValueError(
            "hidden_act is a function, which JSON cannot hold: name one of the built-in activations instead."
        )
    return json.dumps({**config_keys(config), "model_type": MODEL_TYPE, **more}, indent=2, ensure_ascii=False) + "\n"


@contextmanager
def all_or_nothing(*files: Path) -> Iterator[tuple[Path, ...]]:
    """Yield a draft for each of `files`: when all are written they take their names, after an error none does."""
    drafts = tuple(file.with_name(f".{file.name}.draft") for file in files)
    try:
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
        yield drafts
        for draft, file in zip(drafts, files, strict=True):
            os.replace(draft, file)
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)


# ---- weights


def load(
    cls: type[PreTrainedModel],
    source: str | os.PathLike[str],
    *,
    config: XLMRobertaXLConfig | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
    **config_overrides: Any,
) -> PreTrainedModel:
    """Build a model with the weights of `source`, in evaluation mode.

    source: a name in `xlmrxl_min/pretrained/` ("tiny"), a folder, or a Hugging Face hub id. dtype: None for float32,
    or a torch dtype or its name. config_overrides: fields of the config to change, such as num_labels=3. A head that
    the checkpoint lacks is initialised, and one warning says so; anything else missing, unexpected or of another shape
    is a CheckpointError that lists all of it.
    """
    dtype = dtype_named(config_overrides.pop("torch_dtype", None) if dtype is None else dtype)
    build = (
        {"add_pooling_layer": config_overrides.pop("add_pooling_layer")}
        if "add_pooling_layer" in config_overrides
        else {}
    )
    if config is None:
        config = XLMRobertaXLConfig.from_pretrained(source, **config_overrides)
    else:  # a copy: what happens to this model's config is nobody else's business
        config = config_from(XLMRobertaXLConfig, config_keys(config), config_overrides)
    path = locate(source, WEIGHTS_FILE)
    with torch.device("meta"):  # shapes without memory: each weight is allocated once, when its values are there
        model = cls(config, **build)
    try:
        with safe_open(path, framework="pt") as file:
            stored_names = list(file.keys())
            theirs, fresh = match(model, {name: tuple(file.get_slice(name).get_shape()) for name in stored_names}, path)
            sizes = {name: model.get_parameter(name).numel() * dtype.itemsize for name in theirs}
            with tqdm(total=sum(sizes.values()), unit="B", unit_scale=True, disable=not progress, delay=2) as bar:
                for name, stored in theirs.items():
                    put(model, name, file.get_tensor(stored).to(device, dtype))
                    bar.update(sizes[name])
    except SafetensorError as error:
        raise CheckpointError(f"{path} cannot be read ({error}): is the download complete?") from error
    if fresh:
        initialise(model, fresh, torch.device(device), dtype)
        heads = ", ".join(sorted({name.removeprefix("backbone.").split(".")[0] for name in fresh}))
        warnings.warn(f"{path} holds no {heads}: initialised at random, to be trained before use.", stacklevel=2)
    model.tie_weights()
    left = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    assert not left, f"never loaded: {left}"
    return model.eval()


def match(model: PreTrainedModel, stored: dict[str, tuple[int, ...]], path: Path) -> tuple[dict[str, str], list[str]]:
    """Which stored tensor each of the model's parameters comes from, and which parameters have to be initialised.

    A checkpoint of a bare model has no prefix, a wrapped one another: it is read off the name of the word embeddings.
    """
    prefix = next((name.removesuffix(WORDS) for name in stored if name.endswith(WORDS)), "roberta.")
    outer = prefix.removesuffix("roberta.")

    def head_of(name: str) -> str | None:
        first = name.removeprefix(prefix).removeprefix(outer).split(".")[0]
        return first if first in HEADS else None

    theirs, missing, wrong, seen = {}, {}, [], set()
    for ours, parameter in model.named_parameters():  # a tied pair counts once
        name = hugging_face_name(ours)
        inner = name.removeprefix("roberta.")
        in_head = inner.split(".")[0] in HEADS
        places = [(outer if in_head and not inner.startswith("pooler.") else prefix) + inner]
        if inner in ALIASES and (inner != WORDS or model.config.tie_word_embeddings):
            places.append(outer + ALIASES[inner])
        found = [place for place in places if place in stored]
        seen.update(found)
        wrong += [
            f"{place} is {stored[place]}, the model needs {tuple(parameter.shape)}"
            for place in found
            if stored[place] != tuple(parameter.shape)
        ]
        if found:
            theirs[ours] = found[0]
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


def put(model: nn.Module, name: str, value: Tensor) -> None:
    module, _, parameter = name.rpartition(".")
    setattr(model.get_submodule(module), parameter, nn.Parameter(value))


def initialise(model: PreTrainedModel, names: list[str], device: torch.device, dtype: torch.dtype) -> None:
    for name in names:
        put(model, name, torch.empty_like(model.get_parameter(name), device=device, dtype=dtype))
    for module in dict.fromkeys(name.rpartition(".")[0] for name in names):  # a set's order changes with the process
        owner = model.get_submodule(module)
        owner.reset_parameters()  # for norms; the next line gives linear layers the model's own distribution
        model.init_weights(owner)


def dtype_named(dtype: torch.dtype | str | None) -> torch.dtype:
    found = torch.float32 if dtype is None else getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype={dtype!r} is unknown: take float32, bfloat16 or float16.")
    return found


def save(model: PreTrainedModel, folder: str | os.PathLike[str]) -> None:
    """Write `config.json` and `model.safetensors` into `folder`: Hugging Face's names, both files or neither."""
    head = model.get_output_embeddings()
    is_tied = head is not None and head.weight is model.get_input_embeddings().weight
    if head is not None and is_tied != model.config.tie_word_embeddings:
        raise ValueError(
            f"the LM head and the word embeddings are {'one' if is_tied else 'two'}, against "
            f"tie_word_embeddings={model.config.tie_word_embeddings}: set that field right, or call tie_weights()."
        )
    tensors = {}
    for ours, parameter in model.state_dict().items():
        if not (is_tied and ours == "lm_head.decoder.weight"):
            tensors[ALIASES.get(ours) or hugging_face_name(ours)] = parameter.detach().contiguous().cpu()
    dtype = str(model.dtype).removeprefix("torch.")  # transformers has called it by both names
    more = {"architectures": [type(model).__name__], "torch_dtype": dtype, "dtype": dtype}
    text = config_json(model.config, **more)
    with all_or_nothing(Path(folder) / CONFIG_FILE, Path(folder) / WEIGHTS_FILE) as (config_draft, weights_draft):
        config_draft.write_text(text, encoding="utf-8")
        save_file(tensors, weights_draft, metadata={"format": "pt"})


# Hung on the classes here, so that model.py knows nothing of files.
XLMRobertaXLConfig.from_pretrained = classmethod(load_config)
XLMRobertaXLConfig.save_pretrained = save_config
PreTrainedModel.from_pretrained = classmethod(load)
PreTrainedModel.save_pretrained = save
