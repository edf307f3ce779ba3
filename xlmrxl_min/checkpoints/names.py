"""Three names for every weight: ours, Hugging Face's, fairseq's. Walked through in notebooks/10_full_size.ipynb.

Stored tensors are looked up by Hugging Face's names; those of a fairseq checkpoint are renamed first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import CheckpointError
from .readers import Checkpoint

# ours -> Hugging Face, module by module; {} is the index of a layer
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
HEAD_MODULES = ("lm_head", "classifier", "qa_outputs", "pooler")
LEGACY_BUFFERS = re.compile(r"(^|\.)embeddings\.(position_ids|token_type_ids)$")
WORD_EMBEDDINGS = "embeddings.word_embeddings.weight"
# Hugging Face's two names for one tied parameter: a file holds either, or both
ALIASES = {"lm_head.decoder.bias": "lm_head.bias", WORD_EMBEDDINGS: "lm_head.decoder.weight"}


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


def hugging_face_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors of a checkpoint by Hugging Face's names. Raises CheckpointError for another model of fairseq's."""
    return fairseq_tensors(checkpoint) if checkpoint.format == "fairseq" else checkpoint.tensors


def rename_state_dict(model: nn.Module, state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    """A state dict with Hugging Face's names under those of this model; one with its own names as it is.

    Raises ValueError if it holds no weight of the model.
    """
    ours = model.state_dict(keep_vars=True)
    theirs = {hugging_face_name(name): name for name in ours}
    theirs |= {ALIASES[name]: theirs[name] for name in ALIASES if name in theirs}
    if state_dict and not any(name in ours or name in theirs for name in state_dict):
        remedy = "use from_pretrained, or checkpoints.names.hugging_face_name, which gives the names in a file"
        raise ValueError(f"no name of this state dict is known, such as {next(iter(state_dict))!r}: {remedy}.")
    if all(name in ours or name not in theirs for name in state_dict):
        return state_dict
    renamed = {theirs.get(name, name): tensor for name, tensor in state_dict.items()}
    for name, tensor in ours.items():  # of tied parameters, a file holds one
        tied = next((other for other in renamed if ours.get(other) is tensor), None)
        if name not in renamed and tied is not None:
            renamed[name] = renamed[tied]
    return renamed


# ---- fairseq


def fairseq_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """A fairseq model's tensors by Hugging Face's names. Raises CheckpointError unless it has XLM-R XL's architecture.

    fairseq has no token types: zeros are added for them.
    """
    tensors = {current_fairseq_name(name): tensor for name, tensor in checkpoint.tensors.items()}
    heads = {
        name.split("classification_heads.")[1].split(".")[0] for name in tensors if "classification_heads." in name
    }
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith((".version", "._float_tensor")) or (len(heads) > 1 and "classification_heads." in name):
            continue
        module, _, parameter = name.rpartition(".")
        if parameter in ("in_proj_weight", "in_proj_bias"):  # query, key and value in one
            parameter = parameter.removeprefix("in_proj_")
            parts = {f"{module}.{letter}_proj": part for letter, part in zip("qkv", tensor.chunk(3), strict=False)}
        else:
            parts = {module: tensor}
        found |= {fairseq_to_hugging_face(part, parameter, checkpoint.path): values for part, values in parts.items()}
    words = found.get("roberta." + WORD_EMBEDDINGS)
    if words is None or "roberta.encoder.LayerNorm.weight" not in found:
        raise CheckpointError(
            f"{checkpoint.path} has no {'word embeddings' if words is None else 'final norm'}, so it is no XLM-R XL or "
            "XXL (smaller XLM-R models have another architecture)."
        )
    return {**found, "roberta.embeddings.token_type_embeddings.weight": torch.zeros(1, words.shape[1])}


def current_fairseq_name(name: str) -> str:
    """Today's name of a tensor: older checkpoints had other ones (fairseq's own upgrade rules)."""
    name = re.sub(r"^decoder\.", "encoder.", name)
    for number, norm in enumerate(("self_attn_layer_norm", "final_layer_norm")):
        name = name.replace(f".layer_norms.{number}.", f".{norm}.")
    return name.replace(".emb_layer_norm.", ".layernorm_embedding.")


def fairseq_to_hugging_face(module: str, parameter: str, path: Path) -> str:
    number = "".join(re.findall(r"\.layers\.(\d+)\.", module))
    general = re.sub(r"\.layers\.\d+\.", ".layers.{}.", module)
    general = re.sub(r"classification_heads\.[^.]+\.", "classification_heads.{name}.", general)
    ours = next((ours for ours, fairseq in FAIRSEQ_NAMES.items() if fairseq == general), None)
    if ours is None:
        raise CheckpointError(f"{path} holds {module}.{parameter}, which XLM-R XL has not: is it another model?")
    return hugging_face_name(f"{'' if ours in HEAD_NAMES else 'backbone.'}{ours.format(number)}.{parameter}")


def fairseq_config(checkpoint: Checkpoint, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The fields of the config: sizes from `fairseq_tensors`, the number of heads from fairseq's hyperparameters."""
    vocab_size, hidden_size = tensors["roberta." + WORD_EMBEDDINGS].shape
    layers = {int(n) for name in tensors for n in re.findall(r"encoder\.layer\.(\d+)\.", name)}
    heads = checkpoint.settings.get("encoder_attention_heads") or {2560: 32, 4096: 32}.get(hidden_size)  # XL and XXL
    if not heads:
        raise CheckpointError(f"{checkpoint.path} does not say how many heads it has: pass a config with its sizes.")
    values = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads,
        "intermediate_size": len(tensors["roberta.encoder.layer.0.intermediate.dense.weight"]),
        "max_position_embeddings": len(tensors["roberta.embeddings.position_embeddings.weight"]),
        "type_vocab_size": 1,
    }
    if "classifier.out_proj.weight" in tensors:
        values["num_labels"] = len(tensors["classifier.out_proj.weight"])
    return values
