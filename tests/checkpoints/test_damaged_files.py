"""Fuzzing: a damaged checkpoint is read as torch or safetensors read it, or rejected with one clear sentence."""

import json
import random
import re
import shutil
import struct
import warnings
from argparse import Namespace
from collections import Counter
from pathlib import Path

import pytest
import torch
from formats import BIN, MODEL_PT, SAFETENSORS, bits, equal, samples, write, write_shards
from safetensors.torch import load_file, save_file
from test_readers import payloads
from transformers_reference import twins

from xlmrxl_min import CheckpointError, XLMRobertaXLForMaskedLM
from xlmrxl_min.checkpoints.names import ALIASES, hugging_face_name
from xlmrxl_min.checkpoints.readers import open_checkpoint

OLD_BIN = Path(__file__).parent / "old.bin"  # by formats.write(OLD_BIN, old=True)
FORMATS = ("safetensors", "safetensors shards", "bin", "bin shards", "old bin", "fairseq")


def write_checkpoint(form, folder, extra=None):
    """Write a small valid checkpoint; returns the path to open and the file to damage."""
    extra = {} if extra is None else {"extra": extra}
    if form.endswith("shards"):
        path = write_shards(folder, ".safetensors" if form[0] == "s" else ".bin")
        return path, path.with_name(
            path.name.split(".")[0] + "-00002-of-00003" + (".safetensors", ".bin")[form[0] == "b"]
        )
    if form == "fairseq":
        settings = {"model": Namespace(arch="roberta_xl", layers=[1, 2]), "n": 5}
        content = {"args": None, "cfg": settings, "model": samples(), "extra_state": {"epoch": 1}, **extra}
        return (write(folder / MODEL_PT, content),) * 2
    path = folder / (SAFETENSORS if form == "safetensors" else BIN)
    if form == "old bin" and not extra:  # torch.save writes addresses of memory into it, other ones in each run
        shutil.copy(OLD_BIN, path)
    else:
        write(path, {**samples(), **extra}, form == "old bin")
    return path, path


def boundaries(content):
    """Offsets at which something ends: a header, a tensor, a record, a pickle."""
    if content[:2] == b"PK":
        found = [
            match.start() for match in re.finditer(b"PK\x03\x04|PK\x01\x02|PK\x05\x06|PK\x06\x06|PK\x07\x08", content)
        ]
    elif content[8:9] == b"{":
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        offsets = [at for value in header.values() for at in value.get("data_offsets", ())]
        found = [8, start, *(start + at for at in offsets)]
    else:
        found = [match.end() for match in re.finditer(rb"\.(?=\x80|$)|storage", content)]
    return sorted(
        {at + step for at in {0, *found, len(content)} for step in (-1, 0, 1) if 0 <= at + step < len(content)}
    )


def damage(content, chance):
    """Change some bytes, more often in the structure of the file than in its data."""
    content, structure = bytearray(content), [m.start() for m in re.finditer(rb"[\x20-\x7e]{3}", content)]
    kind = chance.choice(["flip", "flip", "number", "number", "cut", "paste", "zeros", "word", "size"])
    at = chance.choice(structure) if structure and chance.random() < 0.8 else chance.randrange(len(content))
    if kind == "flip":
        for _ in range(chance.randint(1, 3)):
            content[min(at + chance.randint(0, 9), len(content) - 1)] ^= 1 << chance.randrange(8)
    elif kind == "number":  # a digit of a header, or a small number of a pickle
        digits = [m.start() for m in re.finditer(rb"(?<=[\[,:])\d|(?<=K).|(?<=J)....|(?<=M)..", content, re.DOTALL)]
        at = chance.choice(digits or [at])
        content[at] = chance.choice(b"0123456789") if chr(content[at]).isdigit() else chance.randrange(256)
    elif kind == "cut":
        del content[at : at + chance.choice([1, 2, 8, 64])]
    elif kind == "paste":
        other = chance.randrange(len(content))
        content[at:at] = content[other : other + chance.choice([1, 2, 8, 64])]
    elif kind == "zeros":
        content[at : at + 8] = chance.choice([b"\0", b"\xff"]) * 8
    elif kind == "word":
        old = chance.choice(
            [b"F32", b"BF16", b"BOOL", b"I8", b"shape", b"dtype", b"data_offsets", b"Float", b"cpu", b"v2"]
        )
        content = content.replace(
            old, chance.choice([b"F64", b"F8", b"Byte", b"x", b"", b"qint8", b"v3"]), chance.choice([1, -1])
        )
    else:
        content[:8] = struct.pack(
            "<Q", chance.choice([0, 1, len(content), 10**8 + 1, 2**63, 2**64 - 1, chance.randrange(999)])
        )
    return bytes(content)


def damage_index(path, shard, chance):
    """Change an index, or a file that it names."""
    index = json.loads(path.read_text())
    name = chance.choice(list(index["weight_map"]))
    kind = chance.choice(
        ["elsewhere", "missing key", "extra key", "missing shard", "swap", "kind", "shape of the index"]
    )
    elsewhere = [
        "../x",
        "/etc/passwd",
        "..",
        ".",
        "",
        "a/b.bin",
        "a\\b.safetensors",
        "\0.bin",
        path.name,
        "x" * 999 + ".bin",
        5,
        None,
    ]
    if kind == "elsewhere":
        index["weight_map"][name] = chance.choice(elsewhere)
    elif kind == "missing key":
        del index["weight_map"][name]
    elif kind == "extra key":
        index["weight_map"][name + "!"] = index["weight_map"][name]
    elif kind == "missing shard":
        chance.choice([shard.unlink, lambda: shard.write_bytes(b""), lambda: (shard.unlink(), shard.mkdir())])()
    elif kind == "swap":
        index["weight_map"][name] = chance.choice(sorted(set(index["weight_map"].values())))
    elif kind == "kind":
        other = shard.with_suffix(".bin" if shard.suffix == ".safetensors" else ".safetensors")
        write(other, {"y": torch.zeros(1)})
        index["weight_map"]["y"] = chance.choice([other.name, shard.name])
    else:
        index = chance.choice([{}, [], None, 5, {"weight_map": []}, {"weight_map": {}}, {"weight_map": index}])
    path.write_text(json.dumps(index))


def mutate(form, i, count, folder):
    """Write mutation i of `count`; returns the path to open."""
    chance = random.Random(f"{form} {i}")
    trace = folder.parent / "trace"
    if i == 0:
        return write_checkpoint(form, folder)[0]
    if i < 8 and not form.startswith("safetensors"):
        return write_checkpoint(form, folder, payloads(trace)[i % 6])[0]
    path, victim = write_checkpoint(form, folder)
    content = victim.read_bytes()
    ends = boundaries(content)
    if i == 8:
        victim.unlink()
        victim.mkdir()
    elif i == 9:
        victim.unlink()
    elif i - 10 in range(min(len(ends), count // 2)):
        victim.write_bytes(content[: ends[i - 10] if len(ends) <= count // 2 else chance.choice(ends)])
    elif path != victim and chance.random() < 0.5:
        damage_index(path, victim, chance)
    elif path != victim and chance.random() < 0.2:
        path.write_bytes(damage(path.read_bytes(), chance))
    else:
        for _ in range(chance.choice([1, 1, 1, 3])):
            content = damage(content or b"0", chance)
        victim.write_bytes(content)
    return path


def expected_tensors(form, path):
    """What safetensors or torch reads there; nothing if it reads nothing, or tensors on another device."""
    try:
        if form == "safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([Namespace]):
            content = torch.load(path, weights_only=True)
        return content.get("model", content)
    except Exception:
        return {}


def read_or_reject(source, form):
    """Open and read every element: True; or False, if it is rejected."""
    expected = {} if form.endswith("shards") else expected_tensors(form, source)
    try:
        tensors = open_checkpoint(source).tensors
    except CheckpointError as error:
        sentence = str(error)
        assert sentence.isprintable()
        assert sentence.endswith(".")
        assert len(sentence) < 1200
        return False
    assert not expected or set(expected) == set(tensors)
    assert all(equal(tensors[name], tensor) for name, tensor in expected.items())
    for tensor in tensors.values():
        assert bits(tensor).sum() >= 0
        tensor.zero_()
    return True


@pytest.mark.parametrize("count", [50, pytest.param(400, marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", FORMATS)
def test_a_damaged_file_is_read_or_rejected(form, count, tmp_path):
    found = Counter()
    for i in range(count):
        folder = tmp_path / str(i)
        folder.mkdir()
        found[read_or_reject(mutate(form, i, count, folder), form)] += 1
        assert not (tmp_path / "trace").exists(), i
        assert {path.name for path in tmp_path.iterdir()} == {str(i)}
        for path in folder.iterdir():
            path.rmdir() if path.is_dir() else path.unlink()
        folder.rmdir()
    assert found[True] > count // 40
    assert found[False] > count // 4


CHANGES = {
    "missing": lambda tensors, name, rng: tensors.pop(name),
    "extra": lambda tensors, name, rng: tensors.update({f"{name}.{rng.choice('abc')}": tensors[name].clone()}),
    "renamed": lambda tensors, name, rng: tensors.update({name.replace(".", "_", 1): tensors.pop(name)}),
    "longer": lambda tensors, name, rng: tensors.update({name: torch.cat([tensors[name], tensors[name][:1]])}),
    "shorter": lambda tensors, name, rng: tensors.update({name: tensors[name][1:].clone()}),
    "transposed": lambda tensors, name, rng: tensors.update(
        {name: tensors[name].mT.contiguous() if tensors[name].dim() > 1 else tensors[name][:, None].clone()}
    ),
    "empty": lambda tensors, name, rng: tensors.update({name: tensors[name][:0].clone()}),
    "integers": lambda tensors, name, rng: tensors.update(
        {name: (10 * tensors[name]).to(rng.choice([torch.int8, torch.int64, torch.bool]))}
    ),
    "another dtype": lambda tensors, name, rng: tensors.update(
        {name: tensors[name].to(rng.choice([torch.float16, torch.bfloat16, torch.float64]))}
    ),
    "not a number": lambda tensors, name, rng: tensors.update({name: torch.full_like(tensors[name], torch.nan)}),
}


@pytest.mark.parametrize("count", [2, pytest.param(40, marks=pytest.mark.slow)])
def test_a_changed_checkpoint_is_loaded_as_it_is_or_rejected(count, tmp_path):
    """With one change to one tensor: one sentence, or a model with the values in the file; nothing in between."""
    theirs, _ = twins("ForMaskedLM")
    theirs.save_pretrained(tmp_path)
    path, rng, outcomes = tmp_path / "model.safetensors", random.Random(0), Counter()
    original = load_file(path)
    for kind, change in [(kind, change) for kind, change in CHANGES.items() for _ in range(count)]:
        name, tensors = rng.choice(sorted(original)), dict(original)
        change(tensors, name, rng)
        save_file(tensors, path, metadata={"format": "pt"})
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                model = XLMRobertaXLForMaskedLM.from_pretrained(tmp_path)
        except CheckpointError as error:
            sentence = str(error)
            assert sentence.isprintable()
            assert name.split(".")[0] in sentence
            outcomes[kind, "rejected"] += 1
            continue
        for ours, parameter in model.named_parameters():
            stored = tensors.get(hugging_face_name(ours), tensors.get(ALIASES.get(ours, "")))
            assert torch.equal(parameter.nan_to_num(7), stored.float().nan_to_num(7)), (kind, ours)
        outcomes[kind, "loaded"] += 1
    loaded = {kind for kind, outcome in outcomes if outcome == "loaded"}
    always = {"another dtype", "not a number"}
    assert always <= loaded <= always | {"transposed"}, outcomes  # a square matrix can be transposed
    assert not any((kind, "rejected") in outcomes for kind in always)
