"""The command `convert`: any checkpoint as safetensors, in another dtype or in int8."""

import json

import pytest
import torch
from formats import logits
from safetensors.torch import load_file
from test_fairseq import SETTINGS, fairseq_state
from transformers_reference import SMALL, error, twins

import xlmrxl_min
from xlmrxl_min import (
    XLMRobertaXLConfig,
    XLMRobertaXLForMaskedLM,
    XLMRobertaXLForSequenceClassification,
    XLMRobertaXLModel,
)
from xlmrxl_min.__main__ import main
from xlmrxl_min.scale import planner


def test_convert_to_bfloat16_and_int8(tmp_path, capsys):
    theirs, _ = twins("ForMaskedLM")
    theirs.save_pretrained(tmp_path / "one")
    assert main(["convert", str(tmp_path / "one"), str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    out = capsys.readouterr()
    assert "GB of weights" in out.out
    assert "has no sentencepiece.bpe.model" in out.err
    ours = XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "half", dtype="bfloat16")
    assert error(logits(ours).float(), logits(theirs.to(torch.bfloat16)).float()) < 0.05
    assert main(["convert", "tiny", str(tmp_path / "tiny8"), "--int8"]) == 0
    pair = "The king went to the house of his father.</s></s>El rey fue a la <mask> de su padre."
    assert main(["fill", pair, "--model", str(tmp_path / "tiny8")]) == 0
    assert "casa" in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "nowhere"), str(tmp_path / "x")]) == 2


@pytest.mark.parametrize("head", planner.MODEL_HEADS)
def test_convert_keeps_the_head(head, tmp_path, capsys):
    """A checkpoint of any class is saved as that class, with equal weights; `plan` finds the class, too."""
    config = XLMRobertaXLConfig(**SMALL, is_decoder=head == "ForCausalLM")
    kind = getattr(xlmrxl_min, f"XLMRobertaXL{head}")
    model = kind(config).eval()
    model.save_pretrained(tmp_path / "a")
    assert main(["convert", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert f"XLMRobertaXL{head}, " in capsys.readouterr().out
    assert main(["plan", str(tmp_path / "b")]) == 0
    assert f"XLMRobertaXL{head}, " in capsys.readouterr().out
    after = kind.from_pretrained(tmp_path / "b").state_dict()
    assert after.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in model.state_dict().items())


def test_convert_initialises_no_weights(tmp_path, capsys):
    bare = XLMRobertaXLModel(XLMRobertaXLConfig(**SMALL), add_pooling_layer=False)
    bare.save_pretrained(tmp_path / "a")
    assert main(["convert", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert not any("pooler" in name for name in load_file(tmp_path / "b" / "model.safetensors"))
    settings = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps({**settings, "architectures": None}))
    capsys.readouterr()
    assert main(["convert", str(tmp_path / "a"), str(tmp_path / "c")]) == 2
    assert "holds no lm_head, which XLMRobertaXLForMaskedLM needs: name the right class" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_convert_reads_fairseq(tmp_path, capsys):
    theirs, _ = twins("ForSequenceClassification", type_vocab_size=1, num_labels=4)
    theirs.roberta.embeddings.token_type_embeddings.weight.data.zero_()
    (tmp_path / "a").mkdir()
    torch.save({"model": fairseq_state(theirs, head="mnli"), **SETTINGS["args"](3)}, tmp_path / "a" / "model.pt")
    assert main(["plan", str(tmp_path / "a")]) == 0
    assert main(["convert", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert capsys.readouterr().out.count("XLMRobertaXLForSequenceClassification, ") == 2
    assert error(logits(XLMRobertaXLForSequenceClassification.from_pretrained(tmp_path / "b")), logits(theirs)) < 1e-6
