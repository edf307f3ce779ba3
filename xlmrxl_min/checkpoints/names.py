"""Three names for every weight: ours, Hugging Face's, fairseq's. Walked through in notebooks/10_full_size.ipynb.

What a file holds is looked up by Hugging Face's names; a fairseq checkpoint is given them first.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import CheckpointError
from .readers import CheckpointReader, Entry

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
FAIRSEQ = "encoder.sentence_encoder"
FAIRSEQ_NAMES = {  # ours -> fairseq
    "embeddings.word": f"{FAIRSEQ}.embed_tokens",
    "embeddings.position": f"{FAIRSEQ}.embed_positions",
    "layers.{}.attention.norm": FAIRSEQ + ".layers.{}.self_attn_layer_norm",
    "layers.{}.attention.query": FAIRSEQ + ".layers.{}.self_attn.q_proj",
    "layers.{}.attention.key": FAIRSEQ + ".layers.{}.self_attn.k_proj",
    "layers.{}.attention.value": FAIRSEQ + ".layers.{}.self_attn.v_proj",
    "layers.{}.attention.out": FAIRSEQ + ".layers.{}.self_attn.out_proj",
    "layers.{}.feed_forward.norm": FAIRSEQ + ".layers.{}.final_layer_norm",
    "layers.{}.feed_forward.up": FAIRSEQ + ".layers.{}.fc1",
    "layers.{}.feed_forward.down": FAIRSEQ + ".layers.{}.fc2",
    "norm": f"{FAIRSEQ}.layer_norm",
    "lm_head.dense": "encoder.lm_head.dense",
    "lm_head.norm": "encoder.lm_head.layer_norm",
    "lm_head.decoder": "encoder.lm_head",
    "classifier.dense": "classification_heads.{name}.dense",
    "classifier.out_proj": "classification_heads.{name}.out_proj",
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


class Stored(NamedTuple):
    """Where in a store a tensor is: under this name, all of it or some rows; without a name, it is all zeros."""

    name: str
    entry: Entry
    rows: slice = slice(None)


def hugging_face_tensors(store: CheckpointReader) -> dict[str, Stored]:
    if store.kind != "fairseq":
        return {name: Stored(name, entry) for name, entry in store.entries.items()}
    return fairseq_tensors(store)


# ---- fairseq


def fairseq_tensors(store: CheckpointReader) -> dict[str, Stored]:
    """A fairseq model's tensors by Hugging Face's names. CheckpointError where it is no pre-LN model of theirs."""
    backward = {fairseq: ours for ours, fairseq in FAIRSEQ_NAMES.items()}
    found: dict[str, Stored] = {}
    heads = {
        name.split("classification_heads.")[1].split(".")[0]
        for name in store.entries
        if "classification_heads." in name
    }
    for name, entry in store.entries.items():
        new = fairseq_name(name)
        if new.endswith((".version", "._float_tensor")) or (len(heads) > 1 and "classification_heads." in new):
            continue
        module, _, parameter = re.sub(r"classification_heads\.[^.]+\.", "classification_heads.{name}.", new).rpartition(
            "."
        )
        if parameter in ("in_proj_weight", "in_proj_bias"):  # query, key and value in one
            for i, part in enumerate(("q_proj", "k_proj", "v_proj")):
                width = entry.shape[0] // 3
                rows = slice(i * width, (i + 1) * width)
                third = Entry((width, *entry.shape[1:]), entry.dtype, entry.nbytes // 3)
                theirs = as_hugging_face(f"{module}.{part}", parameter.removeprefix("in_proj_"), backward, store.path)
                found[theirs] = Stored(name, third, rows)
        else:
            found[as_hugging_face(module, parameter, backward, store.path)] = Stored(name, entry)
    words = found.get("roberta." + WORDS)
    if words is None or "roberta.encoder.LayerNorm.weight" not in found:
        raise CheckpointError(
            f"{store.path} has no {'words' if words is None else 'final norm'}, so it is no XLM-R XL or XXL (smaller "
            "XLM-R models have another architecture)."
        )
    zeros = Entry((1, words.entry.shape[1]), torch.float32, 0)
    return {**found, "roberta.embeddings.token_type_embeddings.weight": Stored("", zeros)}


def fairseq_name(name: str) -> str:
    """Today's name of a tensor: older checkpoints had other ones (fairseq's own upgrade rules)."""
    name = re.sub(r"^decoder\.", "encoder.", name)
    for number, norm in enumerate(("self_attn_layer_norm", "final_layer_norm")):
        name = name.replace(f".layer_norms.{number}.", f".{norm}.")
    return name.replace(".emb_layer_norm.", ".layernorm_embedding.")


def as_hugging_face(module: str, parameter: str, backward: dict[str, str], path: Path) -> str:
    number = "".join(re.findall(r"\.layers\.(\d+)\.", module))
    general = re.sub(r"\.layers\.\d+\.", ".layers.{}.", module)
    if general not in backward:
        raise CheckpointError(f"{path} holds {module}.{parameter}, which XLM-R XL has not: is it another model?")
    ours = backward[general].format(number)
    return hugging_face_name(f"{'' if ours in HEAD_NAMES else 'backbone.'}{ours}.{parameter}")


def fairseq_config(store: CheckpointReader, tensors: dict[str, Stored]) -> dict[str, Any]:
    """The fields of the config: sizes from `fairseq_tensors`, the number of heads from the settings beside them."""
    vocabulary, width = tensors["roberta." + WORDS].entry.shape
    layers = {int(n) for name in tensors for n in re.findall(r"encoder\.layer\.(\d+)\.", name)}
    settings = {**store.settings, **(store.settings.get("model") or {})}
    heads = settings.get("encoder_attention_heads") or {2560: 32, 4096: 32}.get(width)  # those of XL and XXL
    if not heads:
        raise CheckpointError(f"{store.path} does not say how many heads it has: pass a config with its sizes.")
    values = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads,
        "intermediate_size": tensors["roberta.encoder.layer.0.intermediate.dense.weight"].entry.shape[0],
        "max_position_embeddings": tensors["roberta.embeddings.position_embeddings.weight"].entry.shape[0],
        "type_vocab_size": 1,
    }
    if "classifier.out_proj.weight" in tensors:
        values["num_labels"] = tensors["classifier.out_proj.weight"].entry.shape[0]
    return values
