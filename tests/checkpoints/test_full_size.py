"""Large checkpoints: every form and type, nothing in memory twice, XL and XXL loaded onto a device that only pretends.

Tests marked cuda do the same for real; those marked full_size ask the published checkpoints for published numbers.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import threading
import warnings
import weakref
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from reference import SMALL, error, twins
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import xlmrxl_min
from xlmrxl_min import (
    CheckpointError,
    XLMRobertaTokenizer,
    XLMRobertaXLConfig,
    XLMRobertaXLForMaskedLM,
    XLMRobertaXLForSequenceClassification,
    XLMRobertaXLModel,
    fill_mask,
)
from xlmrxl_min.__main__ import main
from xlmrxl_min.checkpoints import int8, load
from xlmrxl_min.checkpoints.names import hugging_face_name
from xlmrxl_min.scale import planner

IDS = torch.randint(2, 60, (2, 7), generator=torch.Generator().manual_seed(0))


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture
def theirs(tmp_path):
    """A model of transformers, as it saves itself: in one file."""
    model, _ = twins("ForMaskedLM")
    model.save_pretrained(tmp_path / "one")
    return model


# ---- forms


FORMS = {
    "one safetensors": {},
    "several safetensors": {"max_shard_size": "20KB"},
    "one bin": {"safe_serialization": False},
    "several bins": {"safe_serialization": False, "max_shard_size": "20KB"},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_that_transformers_writes(form, theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "it", **FORMS[form])
    weights = [path for path in (tmp_path / "it").iterdir() if path.suffix in (".safetensors", ".bin")]
    assert (len(weights) > 1) == form.startswith("several")
    assert error(logits(XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "it")), logits(theirs)) < 1e-6


@pytest.mark.parametrize("prefix", ["", "encoder.model."])
def test_bare_models_and_other_prefixes(prefix, theirs, tmp_path):
    path = tmp_path / "one" / "model.safetensors"
    tensors = {
        name.replace("roberta.", prefix): x for name, x in load_file(path).items() if name.startswith("roberta.")
    }
    tensors[f"{prefix}embeddings.position_ids"] = torch.arange(40)[None]
    save_file(tensors, path, metadata={"format": "pt"})
    ours = XLMRobertaXLModel.from_pretrained(tmp_path / "one", add_pooling_layer=False)
    with torch.no_grad():
        assert error(ours(IDS).last_hidden_state, theirs.roberta(IDS).last_hidden_state) < 1e-6


def test_what_we_save_in_several_files_loads_everywhere(theirs, tmp_path):
    ours = XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "one")
    ours.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert files == {path.name for path in (tmp_path / "many").glob("*.safetensors")}
    assert len(files) > 2
    assert index["metadata"]["total_size"] == sum(p.numel() * 4 for p in ours.parameters())
    again = transformers.XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "many", attn_implementation="eager").eval()
    assert error(logits(XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "many")), logits(again)) < 1e-6
    ours.save_pretrained(tmp_path / "many")  # in one file again: no shard is left behind to be read instead
    assert {path.name for path in (tmp_path / "many").iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("size", ["0", "big", -1, "5 parsecs"])
def test_shard_sizes_that_are_none(size, theirs, tmp_path):
    ours = XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "one")
    with pytest.raises(ValueError, match="is no size: take a number of bytes"):
        ours.save_pretrained(tmp_path / "x", max_shard_size=size)
    assert not (tmp_path / "x").exists()


# ---- fairseq


def fairseq_state(theirs, fused=False, old=False, head=None):
    """Their tensors under fairseq's names: written out here once more, from fairseq's own modules."""
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


@pytest.mark.parametrize("envelope", SETTINGS)
@pytest.mark.parametrize("form", [{}, {"fused": True}, {"old": True}])
def test_fairseq_models(form, envelope, tmp_path):
    theirs, _ = twins("ForMaskedLM", type_vocab_size=1)
    theirs.roberta.embeddings.token_type_embeddings.weight.data.zero_()  # fairseq has none
    torch.save({"model": fairseq_state(theirs, **form), **SETTINGS[envelope](3)}, tmp_path / "model.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = XLMRobertaXLForMaskedLM.from_pretrained(tmp_path)
    assert error(logits(ours), logits(theirs)) < 1e-6
    assert ours.lm_head.decoder.weight is ours.backbone.embeddings.word.weight
    assert ours.config.num_attention_heads == 3


def test_fairseq_classifiers(tmp_path):
    theirs, _ = twins("ForSequenceClassification", type_vocab_size=1, num_labels=4)
    theirs.roberta.embeddings.token_type_embeddings.weight.data.zero_()
    torch.save({"model": fairseq_state(theirs, head="mnli"), **SETTINGS["args"](3)}, tmp_path / "model.pt")
    ours = XLMRobertaXLForSequenceClassification.from_pretrained(tmp_path)
    assert error(logits(ours), logits(theirs)) < 1e-6


def test_other_fairseq_models_are_refused(tmp_path):
    theirs, _ = twins("ForMaskedLM", type_vocab_size=1)
    state, stem = fairseq_state(theirs), "encoder.sentence_encoder"
    for change, words in (
        (lambda s: s.pop(f"{stem}.layer_norm.weight"), "has no final norm, so it is no XLM-R XL"),
        (lambda s: s.update({f"{stem}.layernorm_embedding.weight": torch.ones(24)}), "which XLM-R XL has not"),
        (lambda s: s.pop(f"{stem}.layers.1.fc1.bias"), "missing: roberta.encoder.layer.1.intermediate"),
    ):
        changed = dict(state)
        change(changed)
        torch.save({"model": changed, **SETTINGS["args"](3)}, tmp_path / "model.pt")
        with pytest.raises(CheckpointError, match=words):
            XLMRobertaXLForMaskedLM.from_pretrained(tmp_path)
    torch.save({"model": state, "args": argparse.Namespace()}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="does not say how many heads it has"):
        XLMRobertaXLForMaskedLM.from_pretrained(tmp_path)


# ---- streaming


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float16])
def test_types(stored, wanted, theirs, tmp_path, monkeypatch):
    """Converted part by part, by several threads, the weights are those that `.to()` gives."""
    monkeypatch.setattr(load, "PART", 500)
    theirs.to(stored).save_pretrained(tmp_path / "it")
    ours = XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "it", dtype=wanted)
    assert ours.dtype == wanted
    weights = theirs.state_dict()
    for name, parameter in ours.named_parameters():
        assert parameter.requires_grad
        assert torch.equal(parameter, weights[hugging_face_name(name)].to(wanted)), name


def test_training_on_mapped_weights_leaves_the_file_alone(theirs, tmp_path):
    path = tmp_path / "one" / "model.safetensors"
    before = path.read_bytes()
    ours = XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "one")
    start = logits(ours)
    ours(IDS, labels=IDS).loss.backward()
    torch.optim.SGD(ours.parameters(), lr=0.5).step()
    assert error(logits(ours), start) > 1e-3
    assert path.read_bytes() == before
    ours.save_pretrained(tmp_path / "one")  # over the file that it is mapped from
    assert error(logits(XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "one")), logits(ours)) == 0


@pytest.mark.parametrize(
    ("free", "cure"),  # bytes per parameter
    [
        (2.5, "dtype='bfloat16' needs about .*, quantize='int8' needs about"),
        (1.5, "quantize='int8' needs"),
        (0.5, "no"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_read(free, cure, theirs, tmp_path, monkeypatch):
    theirs.to(torch.bfloat16).save_pretrained(tmp_path / "one")
    count = sum(parameter.numel() for parameter in theirs.parameters())
    monkeypatch.setattr(load, "free_memory", lambda device: int(free * count))
    monkeypatch.setattr(load, "fill", lambda *args: pytest.fail("it began to load"))
    words = rf"weights need 0\.0 GB and cpu has 0\.0 GB free, 0\.0 GB too little: {cure}"
    with pytest.raises(CheckpointError, match=words):
        XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "one")


def anonymous_memory():
    """Bytes that this process holds and that are no file's."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc, to see memory by kind")


@needs_proc
def test_nothing_is_in_memory_twice(tmp_path):
    """Peak of anonymous memory while a 120 MB bfloat16 file becomes 240 MB of float32: the model, and a few parts."""
    config = XLMRobertaXLConfig(vocab_size=20_000, hidden_size=1024, num_attention_heads=8, num_hidden_layers=3)
    XLMRobertaXLForMaskedLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    code = f"""if True:
        import threading, time, torch
        from xlmrxl_min import XLMRobertaXLForMaskedLM
        from test_full_size import anonymous_memory
        torch.set_num_threads(1)
        before, peak, done = anonymous_memory(), 0, False
        def watch():
            global peak
            while not done:
                peak = max(peak, anonymous_memory())
                time.sleep(0.001)
        watcher = threading.Thread(target=watch); watcher.start()
        model = XLMRobertaXLForMaskedLM.from_pretrained({str(tmp_path)!r}, progress=False)
        done = True; watcher.join()
        print(peak - before, sum(p.numel() * 4 for p in model.parameters()))
        before = anonymous_memory()
        same = XLMRobertaXLForMaskedLM.from_pretrained({str(tmp_path)!r}, dtype="bfloat16", progress=False)
        print(anonymous_memory() - before)"""
    here = Path(__file__).resolve().parent
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (here, here.parent)))},
    )
    assert run.returncode == 0, run.stderr
    peak, weights, mapped = map(int, run.stdout.split())
    assert weights <= peak < 1.1 * weights + 20_000_000
    assert mapped < 10_000_000


@pytest.mark.parametrize("quantise", [None, "int8"])
@pytest.mark.parametrize("task", ["Model", "ForMaskedLM", "ForSequenceClassification", "ForMultipleChoice"])
def test_sizes_are_what_is_loaded(task, quantise, tmp_path):
    theirs, _ = twins(task)
    theirs.save_pretrained(tmp_path)
    ours = getattr(xlmrxl_min, f"XLMRobertaXL{task}").from_pretrained(tmp_path, dtype="bfloat16", quantize=quantise)
    loaded = sum(parameter.nbytes for parameter in ours.parameters())
    assert loaded == planner.bytes_of_weights(ours.config, "bfloat16", task, quantise)


# ---- int8


def test_rows_in_parts_are_rows_of_the_whole():
    weight = torch.randn(37, 24, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    integers, scale = int8.quantized(weight)
    parts = [int8.quantized(part) for part in weight.split(5)]
    assert torch.equal(integers, torch.cat([part for part, _ in parts]))
    assert torch.equal(scale, torch.cat([part for _, part in parts]))
    assert integers.abs().amax(-1)[torch.arange(37) != 3].eq(127).all()
    assert not integers[3].any()
    assert (integers * scale[:, None] - weight).abs().max() <= scale.max() / 2 + 1e-6


@pytest.mark.parametrize("part", [24 * 7, 1 << 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_models_are_the_models_of_their_rounded_weights(dtype, part, theirs, tmp_path, monkeypatch):
    monkeypatch.setattr(int8, "PART", part)
    monkeypatch.setattr(load, "PART", 500)
    ours = XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "one", quantize="int8", dtype=dtype)
    rounded = XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "one", dtype=dtype)
    with torch.no_grad():
        for name, module in rounded.named_modules():
            if isinstance(module, torch.nn.Linear) or name == "backbone.embeddings.word":
                integers, scale = int8.quantized(theirs.state_dict()[hugging_face_name(f"{name}.weight")])
                assert torch.equal(ours.get_submodule(name).weight, integers)
                module.weight.copy_(integers * scale[:, None])
    assert ours.lm_head.decoder.weight is ours.backbone.embeddings.word.weight
    assert ours.lm_head.decoder.scale is ours.backbone.embeddings.word.scale
    assert logits(ours).dtype == ours.dtype == dtype
    assert error(logits(ours).float(), logits(rounded).float()) < (1e-5 if dtype == torch.float32 else 0.05)


def test_int8_is_saved_and_comes_back(theirs, tmp_path):
    ours = XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "one", quantize="int8")
    ours.save_pretrained(tmp_path / "int8", max_shard_size="10KB")
    again = XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "int8")
    assert torch.equal(logits(again), logits(ours))
    assert again.lm_head.decoder.weight.dtype == torch.int8
    with pytest.warns(UserWarning, match="holds no classifier"):  # a new head is not quantised: it is to be trained
        model = XLMRobertaXLForSequenceClassification.from_pretrained(tmp_path / "int8", num_labels=3)
    model(IDS, labels=torch.tensor([0, 1])).loss.backward()
    assert model.classifier.dense.weight.grad.abs().max() > 0
    assert model.backbone.embeddings.position.weight.grad.abs().max() > 0


def test_int8_fills_masks():
    tokenizer = XLMRobertaTokenizer.from_pretrained("tiny")
    model = XLMRobertaXLForMaskedLM.from_pretrained("tiny", quantize="int8")
    [[best, *_]] = fill_mask(model, tokenizer, "Everyone has the right to <mask>, liberty and security of person.")
    assert best.text == "life"
    assert best.probability > 0.8


def test_a_new_lm_head_is_not_quantised(theirs, tmp_path):
    theirs.roberta.save_pretrained(tmp_path / "bare")
    with pytest.raises(CheckpointError, match="holds no LM head, and a new one could not learn in int8"):
        XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "bare", quantize="int8")


def test_unknown_quantisation_is_refused(theirs, tmp_path):
    with pytest.raises(ValueError, match="quantize='int4' is unknown: take 'int8' or None"):
        XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "one", quantize="int4")


# ---- harm


def harmed(tensors, rng):
    """A small valid checkpoint with one thing changed: what was done, and the tensors."""
    tensors, name = dict(tensors), rng.choice(sorted(tensors))
    tensor = tensors[name]
    kinds = {
        "missing": lambda: tensors.pop(name),
        "extra": lambda: tensors.update({f"{name}.{rng.choice('abc')}": tensor.clone()}),
        "renamed": lambda: tensors.update({name.replace(".", "_", 1): tensors.pop(name)}),
        "longer": lambda: tensors.update({name: torch.cat([tensor, tensor[:1]])}),
        "shorter": lambda: tensors.update({name: tensor[1:].clone()}),
        "turned": lambda: tensors.update(
            {name: tensor.mT.contiguous() if tensor.dim() > 1 else tensor[:, None].clone()}
        ),
        "empty": lambda: tensors.update({name: tensor[:0].clone()}),
        "integers": lambda: tensors.update({name: (10 * tensor).to(rng.choice([torch.int8, torch.int64, torch.bool]))}),
        "halved": lambda: tensors.update({name: tensor.to(rng.choice([torch.float16, torch.bfloat16, torch.float64]))}),
        "not a number": lambda: tensors.update({name: torch.full_like(tensor, torch.nan)}),
    }
    kind = rng.choice(sorted(kinds))
    kinds[kind]()
    return kind, name, tensors


def test_harmed_checkpoints_are_refused_or_loaded_as_they_are(theirs, tmp_path):
    """340 of them: one sentence, or a whole model with the values that are in the file; nothing in between."""
    path, rng, outcomes = tmp_path / "one" / "model.safetensors", random.Random(0), Counter()
    whole = load_file(path)
    for _ in range(340):
        kind, name, tensors = harmed(whole, rng)
        save_file(tensors, path, metadata={"format": "pt"})
        ours, said = None, ""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                ours = XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "one")
        except CheckpointError as error:
            said = str(error)
        if ours is None:
            assert "\n" not in said
            assert name.split(".")[0] in said
            outcomes[kind, "refused"] += 1
            continue
        for mine, parameter in ours.named_parameters():
            stored = tensors.get(hugging_face_name(mine), tensors.get(load.ALIASES.get(mine, "")))
            assert torch.equal(parameter.nan_to_num(7), stored.float().nan_to_num(7)), (kind, mine)
        outcomes[kind, "loaded"] += 1
    loaded = {kind for kind, outcome in outcomes if outcome == "loaded"}
    assert loaded == {"halved", "not a number", "turned"}, outcomes  # a square matrix can be turned
    assert sum(n for (_, outcome), n in outcomes.items() if outcome == "refused") > 200


def test_a_disk_that_is_full_leaves_what_was_there(theirs, tmp_path):
    """A limit on the size of files stands in for a full disk: the write really fails."""
    before = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    code = f"""if True:
        import resource, signal, xlmrxl_min
        model = xlmrxl_min.XLMRobertaXLForMaskedLM.from_pretrained({str(tmp_path / "one")!r})
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
        try:
            model.save_pretrained({str(tmp_path / "one")!r}, max_shard_size="20KB")
        except xlmrxl_min.CheckpointError as error:
            print(error)"""
    pytest.importorskip("resource", reason="limits of this kind are Unix's")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "could not be written" in run.stdout, run.stderr
    assert "what was there is as it was" in run.stdout
    assert {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()} == before


# ---- convert


def test_convert(theirs, tmp_path, capsys):
    assert main(["convert", str(tmp_path / "one"), str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    out = capsys.readouterr()
    assert "GB of weights" in out.out
    assert "has no sentencepiece.bpe.model" in out.err
    ours = XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "half", dtype="bfloat16")
    assert error(logits(ours).float(), logits(theirs.to(torch.bfloat16)).float()) < 0.05
    assert main(["convert", "tiny", str(tmp_path / "tiny8"), "--int8"]) == 0
    assert main(["fill", "All human beings are <mask> free.", "--model", str(tmp_path / "tiny8")]) == 0
    assert "born" in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "nowhere"), str(tmp_path / "x")]) == 2


@pytest.mark.parametrize("head", planner.HEADS)
def test_convert_keeps_the_head(head, tmp_path, capsys):
    """Every class comes out as what it went in, equal, and nothing is made up; `plan` knows it, too."""
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


def test_convert_makes_nothing_up(tmp_path, capsys):
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


# ---- a device that pretends


class Ledger(TorchDispatchMode):
    """Counts the bytes of every storage that is made on the pretended device."""

    def __init__(self):
        super().__init__()
        self.live, self.now, self.peak, self.total, self.lock = {}, 0, 0, 0, threading.RLock()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "toygpu":
                self.note(tensor.untyped_storage())
        return out

    def note(self, storage):
        with self.lock:
            key = storage._cdata
            if key not in self.live:
                self.live[key] = storage.nbytes()
                self.now += storage.nbytes()
                self.total += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.free, key)

    def free(self, key):
        with self.lock:
            self.now -= self.live.pop(key, 0)


@pytest.fixture(scope="session")
def toygpu():
    """torch's hook for new kinds of devices; its tensors are fake, so they have shapes and types, and no bytes."""
    registration = torch.utils.backend_registration
    if not hasattr(registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip(f"torch {torch.__version__} cannot pretend a device in Python")

    class Module(registration._DummyBackendModule):  # the tests after these have it in their process, too
        def get_amp_supported_dtype(self):
            return [torch.bfloat16]

    registration._setup_privateuseone_for_python_backend("toygpu", Module())
    return torch.device("toygpu", 0)


@contextmanager
def pretending(monkeypatch):
    """What the loader does on the device is done with fake tensors, and entered in the ledger."""
    ledger, fake, lock = Ledger(), FakeTensorMode(allow_non_fake_inputs=True), threading.Lock()
    real_allocate, real_carry = load.allocate, load.HostToDeviceCopier.carry

    def allocate(*args):
        with lock, fake, ledger:
            return real_allocate(*args)

    def carry(self, target, rows, values):
        with lock, fake, ledger:
            real_carry(self, target, rows, values)

    monkeypatch.setattr(load, "allocate", allocate)
    monkeypatch.setattr(load.HostToDeviceCopier, "carry", carry)
    monkeypatch.setattr(load, "free_memory", lambda device: None)
    monkeypatch.setattr(load, "READERS", 1)  # fake tensors do not know of threads
    yield ledger


def sparse_checkpoint(folder, config, dtype="F32", shards=4):
    """A full-size checkpoint whose files are holes: every tensor is zero, and takes no room on the disk."""
    with torch.device("meta"):
        model = XLMRobertaXLForMaskedLM(config)
    size = {"F32": 4, "BF16": 2}[dtype]
    names = {hugging_face_name(name): tuple(p.shape) for name, p in model.named_parameters()}
    folder.mkdir(parents=True, exist_ok=True)
    groups, index = [dict(list(names.items())[i::shards]) for i in range(shards)], {}
    for number, group in enumerate(groups):
        header, at = {}, 0
        for name, shape in group.items():
            nbytes = size * torch.Size(shape).numel()
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + nbytes]}
            at += nbytes
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # as the library does: tensors begin where processors like them to
        path = folder / (f"part-{number}.safetensors" if shards > 1 else "model.safetensors")
        with open(path, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + at)
        index |= dict.fromkeys(group, path.name)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("size", "quantise", "expected"),
    [
        ("xl", None, 6_965_483_520),  # 3,482,741,760 parameters of 2 bytes
        ("xxl", None, 21_425_989_632),  # 10,712,994,816
        ("xxl", "int8", None),
    ],
)
def test_full_size_streams_onto_a_device(size, quantise, expected, toygpu, tmp_path, monkeypatch):
    """What is planned is what is allocated, at the peak and in all: nothing is on the device twice."""
    config = getattr(XLMRobertaXLConfig, size)()
    parameters = sparse_checkpoint(tmp_path, config)
    if quantise:
        monkeypatch.setattr(
            load, "quantized", lambda rows: (rows.new_empty(rows.shape, dtype=torch.int8), torch.empty(len(rows)))
        )
    with pretending(monkeypatch) as ledger:
        model = XLMRobertaXLForMaskedLM.from_pretrained(
            tmp_path, dtype="bfloat16", device=toygpu, quantize=quantise, progress=False
        )
    assert all(parameter.device == toygpu for parameter in model.parameters())
    assert model.lm_head.decoder.weight is model.backbone.embeddings.word.weight
    planned = sum(p.numel() * p.element_size() for p in model.parameters())
    assert planned == ledger.peak == ledger.total
    if quantise is None:
        assert planned == expected == 2 * parameters
    else:
        assert planned < 0.51 * 21_425_989_632


def test_the_ledger_sees_a_careless_loader(toygpu, tmp_path, monkeypatch):
    config = XLMRobertaXLConfig(**SMALL)
    sparse_checkpoint(tmp_path, config, shards=1)

    def careless(self, target, rows, values):
        target[rows].copy_(torch.empty(values.shape, dtype=torch.float32, device=target.device))  # as it is, then cast

    monkeypatch.setattr(load.HostToDeviceCopier, "carry", careless)
    with pretending(monkeypatch) as ledger:
        model = XLMRobertaXLForMaskedLM.from_pretrained(tmp_path, dtype="bfloat16", device=toygpu, progress=False)
    planned = sum(p.numel() * p.element_size() for p in model.parameters())
    assert planned < ledger.peak < ledger.total


def test_pinned_buffers_carry_the_same_bytes(theirs, tmp_path, monkeypatch):
    """The path towards an accelerator, with its events, on the CPU: pinning and events stand in for themselves."""
    events = []

    class Event:
        def record(self):
            events.append("record")

        def synchronize(self):
            events.append("wait")

    class Module:
        @staticmethod
        def synchronize(device):
            events.append("arrived")

    Module.Event = Event

    empty = torch.empty
    monkeypatch.setattr(load, "PART", 500)
    monkeypatch.setattr(torch, "get_device_module", lambda device: Module)
    monkeypatch.setattr(torch, "empty", lambda *args, pin_memory=False, **kwargs: empty(*args, **kwargs))
    monkeypatch.setattr(load, "is_mapped", lambda *args: False)
    make = load.HostToDeviceCopier.__init__
    monkeypatch.setattr(
        load.HostToDeviceCopier, "__init__", lambda self, device: (make(self, device), vars(self).update(pins=True))[0]
    )
    monkeypatch.setattr(load.HostToDeviceCopier, "board", lambda self: events.append("board"))
    ours = XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "one", dtype="float32")
    assert error(logits(ours), logits(theirs)) < 1e-6
    assert events[0] == "board"
    assert 1 <= events.count("board") <= load.READERS
    assert events.count("record") == events.count("wait") > 100
    assert events[-1] == "arrived"


def test_each_thread_is_told_which_gpu_is_its_own(monkeypatch):
    told = []
    monkeypatch.setattr(load, "pins", lambda device: True)
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace(set_device=told.append))
    for device in ("cuda:1", "cuda"):
        load.HostToDeviceCopier(torch.device(device)).board()
    assert told == [torch.device("cuda", 1)]


# ---- for real


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: test_full_size_streams... pretends one")
@pytest.mark.parametrize("quantise", [None, "int8"])
def test_streaming_to_cuda_allocates_the_plan(quantise, tmp_path):
    config = XLMRobertaXLConfig(vocab_size=20_000, hidden_size=1024, num_attention_heads=8, num_hidden_layers=6)
    XLMRobertaXLForMaskedLM(config).save_pretrained(tmp_path)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = XLMRobertaXLForMaskedLM.from_pretrained(tmp_path, dtype="bfloat16", device="cuda", quantize=quantise)
    planned = sum(p.numel() * p.element_size() for p in model.parameters())
    assert planned <= torch.cuda.max_memory_allocated() - before < 1.02 * planned + 1_000_000
    on_cpu = XLMRobertaXLForMaskedLM.from_pretrained(tmp_path, dtype="bfloat16", quantize=quantise)
    for (name, mine), other in zip(model.named_parameters(), on_cpu.parameters(), strict=True):
        assert torch.equal(mine.cpu(), other), name


# of facebook/xlm-roberta-xl and -xxl: the last feature of each token, and what fills "Europe is a <mask> continent."
PUBLISHED = {
    2560: (
        [0.0110, 0.0605, 0.0354, 0.0689, 0.0066, 0.0691, 0.0302, 0.0412, 0.0860, 0.0036, 0.0405, 0.0170],
        {"living": 0.0856, "dead": 0.0800, "lost": 0.0462, "small": 0.0436, "beautiful": 0.0406},
    ),
    4096: (
        [0.0046, 0.0146, 0.0227, 0.0126, 0.0219, 0.0175, -0.0101, 0.0006, 0.0124, 0.0209, -0.0063, 0.0096],
        {"European": 0.2300, "large": 0.1431, "small": 0.1224, "vast": 0.0703, "big": 0.0329},
    ),
}
CHECKPOINT = os.environ.get("XLMRXL_CHECKPOINT")


@pytest.mark.full_size
@pytest.mark.skipif(not CHECKPOINT, reason="XLMRXL_CHECKPOINT names no folder with the published XL or XXL")
def test_published_numbers():
    model = XLMRobertaXLForMaskedLM.from_pretrained(CHECKPOINT)
    features, continent = PUBLISHED[model.config.hidden_size]
    ids = torch.tensor([[0, 581, 10269, 83, 99942, 136, 60742, 23, 70, 80583, 18276, 2]])
    with torch.no_grad():
        last = model.backbone(ids).last_hidden_state[0, :, -1]
    torch.testing.assert_close(last, torch.tensor(features), atol=1e-3, rtol=0)
    tokenizer = XLMRobertaTokenizer.from_pretrained(CHECKPOINT)
    [found] = fill_mask(model, tokenizer, "Europe is a <mask> continent.", top_k=5)
    assert [prediction.text for prediction in found] == list(continent)
    for prediction in found:
        assert prediction.probability == pytest.approx(continent[prediction.text], abs=1e-3)
