"""Checkpoints of fairseq: its names, its settings, its older forms."""

import argparse
import warnings

import pytest
import torch
from formats import logits
from transformers_reference import error, twins

from xlmrxl_min import CheckpointError, XLMRobertaXLForMaskedLM, XLMRobertaXLForSequenceClassification


def fairseq_state(theirs, fused=False, old=False, head=None):
    """The tensors of a model of transformers under fairseq's names, written down from fairseq's own modules."""
    state, hf = {"encoder.sentence_encoder.version": torch.tensor([3.0])}, theirs.state_dict()
    for name, tensor in hf.items():
        parts = name.split(".")
        if name.startswith("roberta.encoder.layer."):
            layer = f"encoder.sentence_encoder.layers.{parts[3]}."
            inner = ".".join(parts[4:-1])
            inner = {
                "attention.self_attn_layer_norm": "layer_norms.0" if old else "self_attn_layer_norm",
                "attention.self.query": "self_attn.q_proj", "attention.self.key": "self_attn.k_proj",
                "attention.self.value": "self_attn.v_proj", "attention.output.dense": "self_attn.out_proj",
                "LayerNorm": "layer_norms.1" if old else "final_layer_norm",
                "intermediate.dense": "fc1", "output.dense": "fc2",
            }[inner]  # fmt: skip
            state[layer + inner + "." + parts[-1]] = tensor
        elif name.startswith("roberta."):
            inner = {
                "roberta.embeddings.word_embeddings": "embed_tokens", "roberta.encoder.LayerNorm": "layer_norm",
                "roberta.embeddings.position_embeddings": "embed_positions",
                "roberta.embeddings.token_type_embeddings": "",
            }[".".join(parts[:-1])]  # fmt: skip
            if inner:
                state[f"encoder.sentence_encoder.{inner}.{parts[-1]}"] = tensor
        elif name in ("lm_head.bias", "lm_head.decoder.weight"):
            state[name.replace("lm_head.decoder.", "lm_head.").replace("lm_head", "encoder.lm_head")] = tensor
        elif name.startswith("lm_head.") and not name.startswith("lm_head.decoder"):
            state[f"encoder.{name}"] = tensor
        elif name.startswith("classifier."):
            state[name.replace("classifier", f"classification_heads.{head}")] = tensor
    if fused:
        for name in [name for name in state if ".q_proj." in name]:
            thirds = [state.pop(name.replace("q_proj", f"{letter}_proj")) for letter in "qkv"]
            state[name.replace("q_proj.", "in_proj_")] = torch.cat(thirds)
    return {name.replace("encoder.sentence", "decoder.sentence") if old else name: x for name, x in state.items()}


SETTINGS = {
    "args": lambda heads: {"args": argparse.Namespace(encoder_attention_heads=heads, arch="roberta_xl")},
    "cfg": lambda heads: {
        "args": None,
        "cfg": {"model": argparse.Namespace(encoder_attention_heads=heads), "task": {}},
    },
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("form", [{}, {"fused": True}, {"old": True}])
def test_fairseq_models_load(form, settings, tmp_path):
    theirs, _ = twins("ForMaskedLM", type_vocab_size=1)
    theirs.roberta.embeddings.token_type_embeddings.weight.data.zero_()  # fairseq has none
    torch.save({"model": fairseq_state(theirs, **form), **SETTINGS[settings](3)}, tmp_path / "model.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = XLMRobertaXLForMaskedLM.from_pretrained(tmp_path)
    assert error(logits(ours), logits(theirs)) < 1e-6
    assert ours.lm_head.decoder.weight is ours.backbone.embeddings.word.weight
    assert ours.config.num_attention_heads == 3


def test_fairseq_classifiers_load(tmp_path):
    theirs, _ = twins("ForSequenceClassification", type_vocab_size=1, num_labels=4)
    theirs.roberta.embeddings.token_type_embeddings.weight.data.zero_()
    torch.save({"model": fairseq_state(theirs, head="mnli"), **SETTINGS["args"](3)}, tmp_path / "model.pt")
    ours = XLMRobertaXLForSequenceClassification.from_pretrained(tmp_path)
    assert error(logits(ours), logits(theirs)) < 1e-6


def test_other_fairseq_models_are_rejected(tmp_path):
    theirs, _ = twins("ForMaskedLM", type_vocab_size=1)
    state, stem = fairseq_state(theirs), "encoder.sentence_encoder"
    for change, message in (
        (lambda s: s.pop(f"{stem}.layer_norm.weight"), "has no final norm, so it is no XLM-R XL"),
        (lambda s: s.update({f"{stem}.layernorm_embedding.weight": torch.ones(24)}), "which XLM-R XL has not"),
        (lambda s: s.pop(f"{stem}.layers.1.fc1.bias"), "missing: roberta.encoder.layer.1.intermediate"),
    ):
        changed = dict(state)
        change(changed)
        torch.save({"model": changed, **SETTINGS["args"](3)}, tmp_path / "model.pt")
        with pytest.raises(CheckpointError, match=message):
            XLMRobertaXLForMaskedLM.from_pretrained(tmp_path)
    torch.save({"model": state, "args": argparse.Namespace()}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="does not say how many heads it has"):
        XLMRobertaXLForMaskedLM.from_pretrained(tmp_path)
