"""Write a checkpoint: `config.json` and safetensors under Hugging Face's names."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..files import atomic_write, to_path
from ..inputs import shown
from ..model import PreTrainedModel
from . import CheckpointError
from .locate import CONFIG_FILE, GENERATION_CONFIG_FILE, import_hub
from .names import ALIASES, hugging_face_name

INDEX_FILE = "model.safetensors.index.json"
WEIGHT_FILE = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


def save(
    model: PreTrainedModel, folder: str | os.PathLike[str], *, max_shard_size: int | str = "5GB",
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:  # fmt: skip
    """Write `config.json` and `model.safetensors` into `folder`, under Hugging Face's names: all files, or none.

    state_dict: the weights under the model's own names, if they are not to be taken from it. max_shard_size: in bytes,
    or a text such as "5GB"; a larger model is written as several files and an index. Raises CheckpointError if the
    files cannot be written, and ValueError for an impossible size, a hidden_act that is a function, or an LM head whose
    tie contradicts the config.
    """
    head = model.get_output_embeddings()
    is_tied = head is not None and head.weight is model.get_input_embeddings().weight
    if head is not None and is_tied != model.config.tie_word_embeddings:
        raise ValueError(
            f"the LM head and the word embeddings are {'tied' if is_tied else 'not tied'}, but "
            f"tie_word_embeddings={model.config.tie_word_embeddings}: correct that field, or call tie_weights()."
        )
    tensors = {}
    for ours, parameter in (model.state_dict() if state_dict is None else state_dict).items():
        if not (is_tied and ours in ("lm_head.decoder.weight", "lm_head.decoder.scale")):
            tensors[ALIASES.get(ours) or hugging_face_name(ours)] = parameter.detach()
    shards = import_hub().split_torch_state_dict_into_shards(tensors, max_shard_size=parse_size(max_shard_size))
    dtype = str(model.dtype).removeprefix("torch.")  # under both of the names that transformers has used
    written = {"architectures": [type(model).__name__], "torch_dtype": dtype, "dtype": dtype}
    texts = {CONFIG_FILE: replace(model.config, extra={**model.config.extra, **written}).to_json_string()}
    if model.can_generate():
        settings = {name: value for name, value in vars(model.generation_config).items() if name[0] != "_"}
        texts[GENERATION_CONFIG_FILE] = json.dumps(settings, indent=2) + "\n"
    if shards.is_sharded:
        metadata = {"total_size": sum(tensor.nbytes for tensor in tensors.values())}
        index = {"metadata": metadata, "weight_map": shards.tensor_to_filename}
        texts[INDEX_FILE] = json.dumps(index, indent=1) + "\n"
    folder, names = to_path(folder, "folder"), [*shards.filename_to_tensors, *texts]
    try:  # weights of an earlier save would be read instead
        with atomic_write(*(folder / name for name in names), obsolete=WEIGHT_FILE) as drafts:
            for draft, shard in zip(drafts, shards.filename_to_tensors.values(), strict=False):
                write_tensors({name: tensors[name].contiguous().cpu() for name in shard}, draft)
            for draft, text in zip(drafts[-len(texts) :], texts.values(), strict=True):
                draft.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CheckpointError(str(error)) from error


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:  # a full disk, above all
        raise OSError(str(error)) from error


def parse_size(size: int | str) -> int:
    """5_000_000 or "5MB" -> 5000000. Raises ValueError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", str(size).strip().upper())
    if not found or float(found[1]) <= 0:
        raise ValueError(f"max_shard_size={shown(size)} is no size: take a number of bytes, or a text such as '5GB'.")
    return int(float(found[1]) * 1000 ** " KMGT".index(found[2] or " "))
