"""Reading checkpoints: every format bit for bit, memory-mapped, and one clear sentence for every broken file."""

import errno
import json
import os
import pickle
import re
import struct
import warnings
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from formats import BIN, MODEL_PT, SAFETENSORS, SAFETENSORS_INDEX, equal, samples, write, write_shards
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode

from xlmrxl_min import CheckpointError
from xlmrxl_min.checkpoints.locate import PRETRAINED
from xlmrxl_min.checkpoints.readers import WEIGHT_FILES, open_checkpoint


def assert_rejected(path, message):
    """Opening must fail with one sentence that names the file; returns the sentence."""
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(path)
    sentence = str(caught.value)
    assert sentence.isprintable()
    assert sentence.endswith(".")
    assert str(path).split("\n")[0] in sentence
    assert len(sentence) < 1200
    return sentence


# ---- formats


@pytest.mark.parametrize("form", ["safetensors", "bin", "old bin", "safetensors shards", "bin shards", "fairseq"])
def test_every_format_is_read_bit_for_bit(form, tmp_path):
    if form == "safetensors":
        path, expected = write(tmp_path / SAFETENSORS), load_file(tmp_path / SAFETENSORS)
    elif form.endswith("shards"):
        path, expected = write_shards(tmp_path, ".safetensors" if form[0] == "s" else ".bin"), samples()
    else:
        content = {"model": samples(), "args": Namespace(arch="xl")} if form == "fairseq" else samples()
        path = write(tmp_path / (MODEL_PT if form == "fairseq" else BIN), content, old=form == "old bin")
        expected = samples()
    for source in (tmp_path, path, str(path)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            checkpoint = open_checkpoint(source)
        assert checkpoint.path == path
        assert checkpoint.format == form.removeprefix("old ").split()[0]
        assert checkpoint.settings == ({"arch": "xl"} if form == "fairseq" else {})
        assert checkpoint.is_writable
        assert set(checkpoint.tensors) == set(expected)
        assert all(equal(checkpoint.tensors[name], tensor) for name, tensor in expected.items())


def test_a_bundled_checkpoint_is_read():
    expected = load_file(PRETRAINED / "tiny" / SAFETENSORS)
    tensors = open_checkpoint(PRETRAINED / "tiny").tensors
    assert set(tensors) == set(expected)
    assert all(equal(tensors[name], tensor) for name, tensor in expected.items())


def test_the_first_of_the_weight_files_is_read(tmp_path):
    for name in reversed(WEIGHT_FILES):
        if name.endswith("json"):
            write_shards(tmp_path, ".safetensors" if name == SAFETENSORS_INDEX else ".bin")
        else:
            write(tmp_path / name)
        assert open_checkpoint(tmp_path).path == tmp_path / name


def test_links_are_followed_as_in_the_cache_of_the_hub(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    index = write_shards(tmp_path / "blobs")
    for path in index.parent.iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    assert equal(open_checkpoint(tmp_path / "snapshot").tensors["BF16"], samples()["BF16"])


def test_strided_tensors_shared_storages_and_parameters(tmp_path):
    matrix = torch.arange(24.0).view(4, 6)
    expected = {
        "transposed": matrix.T,
        "rows": matrix[1:3],
        "columns": matrix[:, 1::2],
        "parameter": torch.nn.Parameter(matrix.clone()),
        "empty": matrix[:0],
        "scalar": matrix[2, 3],
    }
    tensors = open_checkpoint(write(tmp_path / BIN, expected)).tensors
    for name, tensor in expected.items():
        assert equal(tensors[name], tensor.detach()), name
        assert type(tensors[name]) is torch.Tensor
        assert not tensors[name].requires_grad


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_a_state_dict_within_a_training_checkpoint(key, tmp_path):
    checkpoint = open_checkpoint(write(tmp_path / BIN, {key: OrderedDict(samples()), "epoch": 3}))
    assert checkpoint.format == "bin"
    assert equal(checkpoint.tensors["F16"], samples()["F16"])


def test_tensors_saved_on_a_gpu_are_read_on_the_cpu(tmp_path):
    path = write(tmp_path / BIN)
    edit_zip(path, lambda data: data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"))
    tensors = open_checkpoint(path).tensors
    assert all(equal(tensors[name], tensor) for name, tensor in samples().items())


def test_tensors_that_an_index_does_not_list_are_ignored(tmp_path):
    path = write_shards(tmp_path)
    index = json.loads(path.read_text())
    del index["weight_map"]["F64"]
    path.write_text(json.dumps(index))
    assert list(open_checkpoint(tmp_path).tensors) == list(index["weight_map"])


# ---- memory-mapping


@pytest.mark.parametrize("name", [SAFETENSORS, BIN, MODEL_PT])
def test_writing_to_a_tensor_does_not_change_the_file(name, tmp_path):
    path = write(tmp_path / name)
    before = path.read_bytes()
    checkpoint = open_checkpoint(path)
    for tensor in checkpoint.tensors.values():
        tensor.zero_()
    assert not checkpoint.tensors["F32"].any()
    assert path.read_bytes() == before
    assert equal(open_checkpoint(path).tensors["F32"], samples()["F32"])


def test_tensors_outlive_the_checkpoint_and_the_name_of_the_file(tmp_path):
    path = write(tmp_path / SAFETENSORS)
    tensor = open_checkpoint(path).tensors["F32"]
    path.unlink()
    assert equal(tensor, samples()["F32"])


def anonymous_memory():
    """Bytes of this process that belong to no file."""
    status = Path("/proc/self/status")
    found = re.search(r"RssAnon:\s+(\d+) kB", status.read_text()) if status.exists() else None
    if not found:
        pytest.skip("this system does not say how much memory is anonymous (RssAnon in /proc/self/status)")
    return int(found[1]) * 1024


def write_sparse_safetensors(path, size):
    header = {
        "small": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "large": {"dtype": "F32", "shape": [size // 4], "data_offsets": [16, size + 16]},
    }
    write_header(path, header, struct.pack("<4f", 1, 2, 3, 4))
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size + size)


def write_sparse_bin(path, size):
    with FakeTensorMode():
        tensors = {name: torch.empty(size // 40) for name in "0123456789"}
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(tensors, path)


@pytest.mark.parametrize(("name", "write_sparse"), [(SAFETENSORS, write_sparse_safetensors), (BIN, write_sparse_bin)])
def test_a_file_larger_than_memory_is_mapped_read_only(name, write_sparse, tmp_path):
    meminfo = Path("/proc/meminfo").read_text() if Path("/proc/meminfo").exists() else "MemTotal: 20000000 kB"
    size = sum(int(kb) << 10 for kb in re.findall(r"(?:MemTotal|SwapTotal): +(\d+)", meminfo)) // 2**30 * 2**30 * 5 // 4
    path = tmp_path / name
    try:
        write_sparse(path, size)
    except OSError as error:
        pytest.skip(f"this disk takes no sparse file of {size >> 30} GiB ({error})")
    if path.stat().st_blocks * 512 > 2**26:
        pytest.skip("this disk has no sparse files")
    open_checkpoint(write(tmp_path / "first.bin"))  # torch's own imports, once in a process
    before = anonymous_memory()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint = open_checkpoint(tmp_path)
    assert sum(tensor.nbytes for tensor in checkpoint.tensors.values()) >= size
    for tensor in checkpoint.tensors.values():
        assert tensor[:4].tolist() == ([1, 2, 3, 4] if tensor.numel() == 4 else [0] * 4)
        assert tensor[-1] == (4 if tensor.numel() == 4 else 0)
    assert anonymous_memory() - before < 2**24
    if Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "0":
        assert not checkpoint.is_writable


# ---- fairseq


@pytest.mark.parametrize("old", [False, True])
def test_both_forms_of_fairseq_settings(old, tmp_path):
    args = Namespace(arch="roberta_xl", dropout=0.1)
    rest = {"extra_state": {"epoch": 1}, "optimizer_history": [], "last_optimizer_state": {"state": torch.zeros(3)}}
    expected = {"arch": "roberta_xl", "dropout": 0.1}
    for settings, result in (
        ({"args": args, "cfg": None}, expected),
        ({"args": args}, expected),
        ({"args": None, "cfg": {"model": args, "task": {"_name": "masked_lm"}}}, expected),
        ({"args": None, "cfg": {"model": expected}}, expected),
        ({"args": None}, {}),
    ):
        checkpoint = open_checkpoint(write(tmp_path / MODEL_PT, {**settings, "model": samples(), **rest}, old))
        assert checkpoint.format == "fairseq"
        assert checkpoint.settings == result
        assert all(equal(checkpoint.tensors[name], tensor) for name, tensor in samples().items())


def test_the_allowed_classes_of_torch_stay_as_they_were(tmp_path):
    path = write(tmp_path / MODEL_PT, {"model": samples(), "args": Namespace(a=1)})
    open_checkpoint(path)
    assert Namespace not in torch.serialization.get_safe_globals()
    with torch.serialization.safe_globals([Namespace]):
        open_checkpoint(path)
        assert Namespace in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("shard", ["model-shard0.pt", "model_part1.pt", "model-shard0_part-1.pt"])
def test_fairseq_shards_are_rejected(shard, tmp_path):
    write(tmp_path / shard, {"model": samples(), "args": None})
    assert shard in assert_rejected(tmp_path, "fairseq has split into shards")
    assert_rejected(tmp_path / shard, "fairseq has split into shards")
    write(tmp_path / MODEL_PT, {"model": samples(), "args": None})
    assert_rejected(tmp_path, "fairseq has split into shards .* merge them with fairseq")
    open_checkpoint(write(tmp_path / "other.pt", {"model": samples(), "args": None}))


# ---- broken files


@pytest.mark.parametrize("name", WEIGHT_FILES)
def test_files_without_weights_are_rejected(name, tmp_path):
    path = tmp_path / name
    assert_rejected(path, "is not there: a checkpoint is a file, or a folder with one of model.safetensors")
    path.mkdir()
    assert_rejected(tmp_path, "is a directory")
    path.rmdir()
    path.symlink_to(tmp_path / "nowhere")
    assert_rejected(tmp_path, "is a broken link")
    path.unlink()
    os.mkfifo(path)
    assert_rejected(tmp_path, "is no regular file")
    path.unlink()
    for content, message in (
        (b"", "is empty"),
        (b"\0", "truncated|not hold the JSON"),
        (b"not a checkpoint at all", "truncated|not hold the JSON"),
        (b"<!DOCTYPE html><html>503</html>", "truncated|not hold the JSON"),
        (b"PK\x03\x04", "truncated|not hold the JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "run git lfs pull"),
        (struct.pack("<Q", 2**63) + b"{}", "truncated|not hold the JSON"),
    ):
        path.write_bytes(content)
        assert_rejected(tmp_path, message)


@pytest.mark.parametrize("name", [SAFETENSORS, BIN, MODEL_PT])
def test_truncated_files_are_rejected(name, tmp_path):
    content = write(tmp_path / name).read_bytes()
    for size in (len(content) // 2, len(content) - 1):
        (tmp_path / name).write_bytes(content[:size])
        assert_rejected(tmp_path, "is truncated, or not written by")


def test_folders_without_weights_list_what_there_is(tmp_path):
    assert_rejected(tmp_path, "holds none of model.safetensors, .*: there is nothing")
    for i in range(12):
        (tmp_path / f"{i:02}.txt").touch()
    assert_rejected(tmp_path, "there is 00.txt, .* 08.txt, and more")
    assert_rejected(tmp_path / "no such folder", "is not there")
    assert_rejected(tmp_path / ("a" * 999), "name too long|is not there")
    assert_rejected(f"{tmp_path}/a\nb", "is not there")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read any file")
def test_files_without_permission_are_rejected(tmp_path):
    path = write(tmp_path / SAFETENSORS)
    path.chmod(0)
    assert_rejected(path, "cannot be read .Permission denied")


def test_errors_of_the_system_are_passed_on(tmp_path):
    resource = pytest.importorskip("resource", reason="limits of this kind are Unix's")
    path, (soft, hard) = write(tmp_path / SAFETENSORS), resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert f"{path} cannot be read ({os.strerror(errno.EMFILE)})" in str(caught.value)


def write_header(path, header, data=b""):
    """A safetensors file with this header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # as safetensors does, so that the data are aligned
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(**changes):
    return {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            entry(dtype="F8_E4M3", shape=[16]),
            "tensor of float8_e4m3fn: make it a contiguous one of F64",
        ),
        (entry(dtype="F31"), "not written by safetensors"),
        (entry(shape=[2, -2]), "not written by safetensors"),
        (entry(shape=[3, 2]), "not written by safetensors"),
        (entry(shape=[1, 2], data_offsets=[0, 8]), "not written by safetensors"),
        (entry(data_offsets=[16, 0]), "not written by safetensors"),
        ({}, "not written by safetensors"),
        (b"[1, 2]", "not written by safetensors"),
        (b"{", "not written by safetensors"),
        (b"\xff\xfe{}", "not written by safetensors"),
        ({"line\nbreak\x1b[31m": {"dtype": "F8"}}, "not written by safetensors"),
        ({"long" * 9999: {"dtype": "F8"}}, "not written by safetensors"),
    ],
)
def test_wrong_safetensors_headers_are_rejected(header, message, tmp_path):
    assert_rejected(write_header(tmp_path / SAFETENSORS, header, bytes(16)), message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"F32": "../x.safetensors"}, "which is no file beside it: do not trust it"),
        ({"F32": "/etc/passwd"}, "which is no file beside it"),
        ({"F32": "/etc/passwd.safetensors"}, "which is no file beside it"),
        ({"F32": "..\\x.safetensors"}, "which is no file beside it"),
        ({"F32": "c:x.safetensors"}, "which is no file beside it"),
        ({"F32": ""}, "which is no file beside it"),
        ({"F32": ".."}, "which is no file beside it"),
        ({"F32": "a\0.safetensors"}, "which is no file beside it"),
        ({"F32": SAFETENSORS_INDEX}, "which is no file beside it"),
        ({"F32": "other.safetensors"}, "names other.safetensors, which is not there"),
        (
            {"F32": "model-00001-of-00003.safetensors"},
            "says 'F32' is in model-00001-of-00003.safetensors, and it is not",
        ),
        ({"F33": "model-00001-of-00003.safetensors"}, "says 'F33' is in"),
        ({"F32": 5}, "has no weight_map"),
    ],
)
def test_indices_that_point_elsewhere_are_rejected(change, message, tmp_path):
    path = write_shards(tmp_path)
    index = json.loads(path.read_text())
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if name != "F32"} | change
    path.write_text(json.dumps(index))
    assert_rejected(tmp_path, message)


def test_broken_indices_and_shards_are_rejected(tmp_path):
    path = write_shards(tmp_path)
    content = path.read_text()
    for text, message in (
        ("{}", "has no weight_map"),
        ('{"weight_map": {}}', "has no weight_map"),
        ('{"weight_map": []}', "has no weight_map"),
        ("[]", "has no weight_map"),
        (content[:50], "not hold the JSON"),
        ("[" * 100_000, "not hold the JSON"),
    ):
        path.write_text(text)
        assert_rejected(tmp_path, message)
    path.write_text(content)
    shard = tmp_path / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003.safetensors is truncated"):
        open_checkpoint(tmp_path)
    shard.unlink()
    assert_rejected(tmp_path, "names model-00002-of-00003.safetensors, which is not there: download that file too")


# ---- pickles


class Payload:
    """Code in a pickle, which leaves a trace if it is run."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def payloads(trace):
    return [
        Payload(os.system, f"touch {trace}"),
        Payload(exec, f"open({str(trace)!r}, 'w')"),
        Payload(eval, f"open({str(trace)!r}, 'w')"),
        Payload(open, str(trace), "w"),
        Payload(Path.touch, trace),
        Payload(os.mkdir, str(trace)),
        Payload(getattr, os, "system"),
    ]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", [BIN, MODEL_PT])
def test_code_in_a_pickle_is_named_and_never_run(name, old, tmp_path):
    trace = tmp_path / "trace"
    for payload in payloads(trace):
        content = {"model": samples(), "args": payload}
        try:
            write(tmp_path / name, content, old)
        except (pickle.PicklingError, TypeError):  # a module cannot be pickled
            continue
        sentence = assert_rejected(tmp_path, r"asks to run code \(.*\), .* torch.load\(..., weights_only=False\)")
        assert re.search(r"\((builtins\.|posix\.|io\.)?(system|exec|eval|open|mkdir|getattr)\b", sentence)
        assert not trace.exists()


def test_all_code_in_a_pickle_is_named(tmp_path):
    content = {"a": torch.zeros(1), "b": Payload(os.system, ""), "c": Payload(print, "x"), "d": Namespace(a=1)}
    sentence = assert_rejected(write(tmp_path / BIN, content), "asks to run code")
    assert "print" in sentence
    assert "posix.system" in sentence
    assert "Namespace" not in sentence


def contents_without_plain_tensors():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantized tensors are deprecated
        quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    return [
        ([torch.zeros(1)], "holds a list"),
        (torch.zeros(1), "holds a Tensor"),
        (5, "holds a int"),
        ({"a": torch.zeros(1), "b": 5}, "has 'b', a int, among its tensors"),
        ({"a": {"b": torch.zeros(1)}}, "has 'a', a dict, among its tensors"),
        ({1: torch.zeros(1)}, "has 1, a Tensor, among its tensors"),
        ({"model": {"a": 5}, "args": None}, "has 'a', a int, among its tensors"),
        ({"model": {"a": torch.zeros(1)}, "args": "x"}, "has a str for its settings"),
        ({"a": torch.eye(3).to_sparse()}, "sparse_coo tensor|truncated"),
        ({"a": torch.zeros(3, dtype=torch.complex64)}, "tensor of complex64"),
        ({"a": torch.zeros(3, dtype=torch.float8_e4m3fn)}, "tensor of float8_e4m3fn|truncated"),
        ({"a": quantized}, "qint8|truncated"),
        ({"a": torch.zeros(3, device="meta")}, "strided tensor"),
        ({"a": torch.zeros(1).expand(2**40)}, "has 'a' as a strided tensor of float32"),
    ]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(("content", "message"), contents_without_plain_tensors())
def test_pickles_of_other_objects_are_rejected(content, message, old, tmp_path):
    assert_rejected(write(tmp_path / BIN, content, old), message)


def edit_zip(path, change, method=zipfile.ZIP_STORED, name="data.pkl"):
    """Write the zip of torch.save again, with one record changed."""
    with zipfile.ZipFile(path) as archive:
        records = [(record.filename, archive.read(record)) for record in archive.infolist()]
    with zipfile.ZipFile(path, "w", method) as archive:
        for record, data in records:
            archive.writestr(record, change(data) if record.endswith(name) else data)
    return path


def test_zips_that_torch_would_map_wrongly_are_rejected(tmp_path):
    path = write(tmp_path / BIN)
    edit_zip(path, lambda data: data, zipfile.ZIP_DEFLATED)
    assert_rejected(path, "is compressed")
    write(path)
    edit_zip(path, lambda data: b"big", name="byteorder")
    assert_rejected(path, "is from a big-endian machine")
    path.write_bytes(path.read_bytes().replace(b"/byteorder", b"/ByteOrder"))
    assert_rejected(path, "is from a big-endian machine")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    assert_rejected(path, "not written by torch.save")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    assert_rejected(path, "TorchScript")


def test_a_zip_written_anew_is_read(tmp_path):
    """By another tool than torch, so that its records lie elsewhere."""
    path = edit_zip(write(tmp_path / BIN), lambda data: data)
    tensors = open_checkpoint(path).tensors
    assert all(equal(tensors[name], tensor) for name, tensor in samples().items())
