"""Write a checkpoint: `config.json` and safetensors under Hugging Face's names."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..model import PreTrainedModel
from ..utils import atomic_write
from . import CheckpointError
from .config import CONFIG_FILE, config_to_json
from .names import ALIASES, hugging_face_name

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
SHARD = "model-{:05d}-of-{:05d}.safetensors"


def save(model: PreTrainedModel, folder: str | os.PathLike[str], *, max_shard_size: int | str = "5GB") -> None:
    """Write `config.json` and `model.safetensors` into `folder`, under Hugging Face's names: all files, or none.

    max_shard_size: in bytes, or a text such as "5GB"; a larger model is written as several files and an index. Raises
    CheckpointError if the files cannot be written, and ValueError for an impossible size, a hidden_act that is a
    function, or an LM head whose tie contradicts the config.
    """
    head = model.get_output_embeddings()
    is_tied = head is not None and head.weight is model.get_input_embeddings().weight
    if head is not None and is_tied != model.config.tie_word_embeddings:
        raise ValueError(
            f"the LM head and the word embeddings are {'one' if is_tied else 'two'}, against "
            f"tie_word_embeddings={model.config.tie_word_embeddings}: set that field right, or call tie_weights()."
        )
    tensors = {}
    for ours, parameter in model.state_dict().items():
        if not (is_tied and ours in ("lm_head.decoder.weight", "lm_head.decoder.scale")):
            tensors[ALIASES.get(ours) or hugging_face_name(ours)] = parameter.detach()
    dtype = str(model.dtype).removeprefix("torch.")  # transformers has called it by both names
    more = {"architectures": [type(model).__name__], "torch_dtype": dtype, "dtype": dtype}
    text, shards = config_to_json(model.config, **more), split_into_shards(tensors, parse_size(max_shard_size))
    names = [WEIGHTS_FILE] if len(shards) == 1 else [SHARD.format(i, len(shards)) for i in range(1, len(shards) + 1)]
    index = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
    more_files = [CONFIG_FILE] if len(shards) == 1 else [CONFIG_FILE, INDEX_FILE]
    folder = Path(folder)
    try:
        with atomic_write(*(folder / name for name in (*more_files, *names))) as drafts:
            drafts[0].write_text(text, encoding="utf-8")
            if len(shards) > 1:
                total = sum(tensor.nbytes for tensor in tensors.values())
                content = {"metadata": {"total_size": total}, "weight_map": index}
                drafts[1].write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            for draft, shard in zip(drafts[len(more_files) :], shards, strict=True):
                own = {name: tensor.contiguous().cpu() for name, tensor in shard.items()}
                save_file(own, draft, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} could not be written ({error}): what was there is as it was.") from error
    for stale in folder.glob("model*.safetensors*"):  # of an earlier save: it would be read instead, or lie about
        if stale.name not in (*more_files, *names) and re.fullmatch(
            r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?", stale.name
        ):
            stale.unlink()


def split_into_shards(tensors: dict[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    """Fill shards of at most `limit` bytes, in order; a larger tensor is a shard of its own."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def parse_size(size: int | str) -> int:
    """5_000_000 or "5MB" -> 5000000. ValueError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", str(size).strip().upper())
    if not found or float(found[1]) <= 0:
        raise ValueError(f"max_shard_size={size!r} is no size: take a number of bytes, or a text such as '5GB'.")
    return int(float(found[1]) * 1000 ** " KMGT".index(found[2] or " "))
