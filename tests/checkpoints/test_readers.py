"""Every form of checkpoint: bit for bit what torch and safetensors read, lazily, and in one sentence why not."""

import json
import mmap
import os
import pickle
import random
import re
import struct
import threading
import warnings
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import xlmrxl_min
from xlmrxl_min import CheckpointError
from xlmrxl_min.checkpoints.readers import DTYPES, WEIGHT_FILES, Entry, open_store

SAFETENSORS, SAFETENSORS_INDEX, BIN, BIN_INDEX, MODEL_PT = WEIGHT_FILES


def samples():
    """Every dtype, a scalar, nothing at all, and a shape with a zero in it."""
    generator = torch.Generator().manual_seed(0)
    tensors = {name: (torch.randn(3, 5, generator=generator) * 50).to(dtype) for name, dtype in DTYPES.items()}
    return {**tensors, "scalar": torch.tensor(3.5), "none": torch.zeros(0), "no rows": torch.zeros(0, 4)}


def bits(tensor):
    """Its bytes, all of them looked at; a copy, for a stride of any size is allowed where there is one element."""
    return tensor.flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8)


def same(a, b):
    """Bit for bit, NaN included, and of one dtype and shape."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return bits(a).equal(bits(b))


def write(path, tensors=None, old=False):
    tensors = samples() if tensors is None else tensors
    if path.suffix == ".safetensors":
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=not old)
    return path


def write_shards(folder, suffix=".safetensors"):
    """Three files and their index; the samples, dealt out in turn."""
    tensors, index = samples(), SAFETENSORS_INDEX if suffix == ".safetensors" else BIN_INDEX
    stem = index.split(".")[0]
    weight_map = {name: f"{stem}-{i % 3 + 1:05}-of-00003{suffix}" for i, name in enumerate(tensors)}
    for shard in set(weight_map.values()):
        write(folder / shard, {name: tensors[name] for name, to in weight_map.items() if to == shard})
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return folder / index


def refused(path, words):
    """Opening must fail, and say so in one sentence that names the file; the sentence."""
    with pytest.raises(CheckpointError, match=words) as caught:
        open_store(path)
    sentence = str(caught.value)
    assert sentence.isprintable()
    assert sentence.endswith(".")
    assert str(path).split("\n")[0] in sentence
    return sentence


def anonymous_memory():
    """Bytes of this process that no file stands behind."""
    status = Path("/proc/self/status")
    found = re.search(r"RssAnon:\s+(\d+) kB", status.read_text()) if status.exists() else None
    if not found:
        pytest.skip("this system does not say how much memory is anonymous (RssAnon in /proc/self/status)")
    return int(found[1]) * 1024


# ---- what is read is what was written


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("form", ["safetensors", "bin", "old bin", "safetensors shards", "bin shards", "fairseq"])
def test_every_form_is_read_bit_for_bit(form, writable, tmp_path):
    if form == "safetensors":
        path, reference = write(tmp_path / SAFETENSORS), load_file(tmp_path / SAFETENSORS)
    elif form.endswith("shards"):
        path, reference = write_shards(tmp_path, ".safetensors" if form[0] == "s" else ".bin"), samples()
    else:
        content = {"model": samples(), "args": Namespace(arch="xl")} if form == "fairseq" else samples()
        path = write(tmp_path / (MODEL_PT if form == "fairseq" else BIN), content, old=form == "old bin")
        with torch.serialization.safe_globals([Namespace]):
            reference = torch.load(path, weights_only=True)
        reference = reference.get("model", reference)
    for source in (tmp_path, path, str(path)):
        with open_store(source) as store:
            assert store.path == path
            assert store.kind == form.removeprefix("old ").split()[0]
            assert store.settings == ({"arch": "xl"} if form == "fairseq" else {})
            assert set(store.entries) == set(reference)
            for name, tensor in reference.items():
                entry = Entry(tuple(tensor.shape), tensor.dtype, tensor.numel() * tensor.element_size())
                assert store.entries[name] == entry
                assert same(store.view(name, writable), tensor), name


def test_a_checkpoint_of_this_library_is_read():
    path = Path(xlmrxl_min.__file__).parent / "pretrained" / "tiny"
    reference = load_file(path / SAFETENSORS)
    with open_store(path) as store:
        assert set(store.entries) == set(reference)
        assert all(same(store.view(name), tensor) for name, tensor in reference.items())


def test_entries_come_in_the_order_of_the_file(tmp_path):
    tensors = {name: torch.zeros(2) for name in ("b", "a", "c")}
    assert list(open_store(write(tmp_path / BIN, tensors)).entries) == ["b", "a", "c"]
    header = {
        name: {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i, name in ((2, "z"), (0, "y"), (1, "x"))
    }
    assert list(open_store(raw(tmp_path / SAFETENSORS, header, b"abc")).entries) == ["z", "y", "x"]


def test_the_first_of_the_weight_files_is_taken(tmp_path):
    for name in reversed(WEIGHT_FILES):
        if name.endswith("json"):
            write_shards(tmp_path, ".safetensors" if name == SAFETENSORS_INDEX else ".bin")
        else:
            write(tmp_path / name)
        assert open_store(tmp_path).path == tmp_path / name


def test_links_are_followed_as_the_cache_of_the_hub_needs(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    index = write_shards(tmp_path / "blobs")
    for path in index.parent.iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    with open_store(tmp_path / "snapshot") as store:
        assert same(store.view("BF16"), samples()["BF16"])


def test_strided_tensors_shared_storages_and_parameters(tmp_path):
    whole = torch.arange(24.0).view(4, 6)
    tensors = {
        "turned": whole.T,
        "rows": whole[1:3],
        "columns": whole[:, 1::2],
        "parameter": torch.nn.Parameter(whole.clone()),
        "empty": whole[:0],
        "one": whole[2, 3],
    }
    with open_store(write(tmp_path / BIN, tensors)) as store:
        for name, tensor in tensors.items():
            assert same(store.view(name), tensor.detach()), name
            assert type(store.view(name)) is torch.Tensor
        assert store.view("rows").data_ptr() - store.view("turned").data_ptr() == 6 * 4
        store.view("turned", writable=True)[0, 0] = 7
        assert store.view("turned", writable=True)[0, 0] == 7  # all writable views share one map


def test_tensors_may_be_one_floor_below(tmp_path):
    for key in ("model", "state_dict"):
        with open_store(write(tmp_path / BIN, {key: OrderedDict(samples()), "epoch": 3})) as store:
            assert store.kind == "bin"
            assert same(store.view("F16"), samples()["F16"])


def test_tensors_from_another_device_come_to_this_one(tmp_path):
    path = write(tmp_path / BIN)
    edit_pickle(path, lambda data: data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"))
    with open_store(path) as store:
        for name, tensor in samples().items():
            assert store.view(name).device.type == "cpu"
            assert same(store.view(name), tensor)


# ---- no copy, no harm


@pytest.mark.parametrize("name", [SAFETENSORS, BIN, MODEL_PT])
def test_a_view_is_the_file_itself(name, tmp_path):
    path = write(tmp_path / name, {"a": torch.arange(6.0), "b": torch.ones(6)})
    with open_store(path) as store:
        view = store.view("a")
        assert view.data_ptr() == store.view("a").data_ptr()
        content = path.read_bytes()
        begin = content.index(torch.arange(6.0).numpy().tobytes())
        with open(path, "r+b") as file:  # who writes to the file writes to the view
            file.seek(begin)
            file.write(struct.pack("<f", 42))
        assert view[0] == 42


@pytest.mark.parametrize("name", [SAFETENSORS, BIN, MODEL_PT])
def test_writing_to_a_view_does_not_reach_the_file(name, tmp_path):
    path = write(tmp_path / name)
    before = path.read_bytes()
    with open_store(path) as store:
        for tensor in map(store.view, store.entries, [True] * len(store.entries)):
            tensor.zero_()
        assert not store.view("F32", writable=True).any()
        assert same(store.view("F32"), samples()["F32"])
    assert path.read_bytes() == before


def test_a_view_outlives_its_store(tmp_path):
    with open_store(write(tmp_path / SAFETENSORS)) as store:
        views = [store.view("F32"), store.view("F32", writable=True)]
    with pytest.raises(CheckpointError, match="or is closed"):
        store.view("F32")
    del store
    assert all(same(view, samples()["F32"]) for view in views)


def test_one_can_train_on_writable_views(tmp_path):
    with open_store(write(tmp_path / SAFETENSORS, {"weight": torch.ones(4)})) as store:
        weight = torch.nn.Parameter(store.view("weight", writable=True))
        (weight * 2).sum().backward()
        with torch.no_grad():
            weight -= weight.grad
        assert weight.tolist() == [-1] * 4
        assert store.view("weight").tolist() == [1] * 4


def test_what_is_not_aligned_is_copied(tmp_path):
    header = {
        "byte": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "odd": {"dtype": "F64", "shape": [2], "data_offsets": [1, 17]},
    }
    with open_store(raw(tmp_path / SAFETENSORS, header, b"\0" + struct.pack("<2d", 1, 2))) as store:
        for writable in (False, True):
            view = store.view("odd", writable)
            assert view.tolist() == [1, 2]
            assert view.data_ptr() % 8 == 0


def test_views_come_without_warnings_and_from_many_threads(tmp_path):
    path = write(tmp_path / SAFETENSORS)
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings(record=True) as caught, open_store(path) as store:
            warnings.simplefilter("always")
            before, wrong = list(warnings.filters), []

            def look():
                for name, tensor in samples().items():
                    if not same(store.view(name), tensor):
                        wrong.append(name)

            threads = [threading.Thread(target=look) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not wrong
            assert not caught
            assert warnings.filters == before
    finally:
        torch.set_warn_always(False)


# ---- nothing is read before it is asked for

HUGE = 40 * 2**30


def huge_safetensors(path):
    header = {
        "small": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "large": {"dtype": "F32", "shape": [HUGE // 4], "data_offsets": [16, HUGE + 16]},
    }
    raw(path, header, struct.pack("<4f", 1, 2, 3, 4))
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size + HUGE)


def huge_bin(path):
    with torch.device("meta"):
        tensors = {"large": torch.empty(HUGE // 4)}
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        tensors = {name: mode.from_tensor(torch.empty(HUGE // 4 // 10)) for name in "0123456789"}
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(tensors, path)


@pytest.mark.parametrize(("name", "make"), [(SAFETENSORS, huge_safetensors), (BIN, huge_bin)])
def test_a_file_larger_than_the_memory_opens_at_once(name, make, tmp_path):
    path = tmp_path / name
    try:
        make(path)
    except OSError as error:
        pytest.skip(f"this disk takes no sparse file of 40 GiB ({error})")
    if path.stat().st_blocks * 512 > 2**26:
        pytest.skip("this disk has no sparse files")
    write(tmp_path / "first.bin")
    open_store(tmp_path / "first.bin").close()  # torch's own imports, once in a process
    before = anonymous_memory()
    with open_store(tmp_path) as store:
        views = {name: store.view(name) for name in store.entries}
        assert sum(entry.nbytes for entry in store.entries.values()) >= HUGE
        for view in views.values():
            assert view[:4].tolist() == ([1, 2, 3, 4] if view.numel() == 4 else [0] * 4)
            assert view[-1] == (4 if view.numel() == 4 else 0)
        assert anonymous_memory() - before < 2**24
        for name in store.entries:  # either there is a private map, or the system refuses it
            writable = store.view(name, writable=True)
            assert writable is None or writable.shape == views[name].shape


def test_where_no_private_map_can_be_had_there_is_none(tmp_path, monkeypatch):
    def scarce(*arguments, access, **more):
        if access == mmap.ACCESS_COPY:
            raise OSError(12, "Cannot allocate memory")
        return mmap.mmap(*arguments, access=access, **more)

    path = write(tmp_path / SAFETENSORS)

    half = Namespace(ACCESS_READ=mmap.ACCESS_READ, ACCESS_COPY=mmap.ACCESS_COPY, mmap=scarce)
    monkeypatch.setattr(xlmrxl_min.checkpoints.readers, "mmap", half)
    with open_store(path) as store:
        assert store.view("F32", writable=True) is None
        assert same(store.view("F32"), samples()["F32"])


# ---- fairseq


@pytest.mark.parametrize("old", [False, True])
def test_both_envelopes_of_fairseq(old, tmp_path):
    args = Namespace(arch="roberta_xl", dropout=0.1, nested=Namespace(layers=[1, (2, None)]))
    rest = {"extra_state": {"epoch": 1}, "optimizer_history": [], "last_optimizer_state": {"state": torch.zeros(3)}}
    expected = {"arch": "roberta_xl", "dropout": 0.1, "nested": {"layers": [1, [2, None]]}}
    for envelope, settings in (
        ({"args": args, "cfg": None}, expected),
        ({"args": args}, expected),
        (
            {"args": None, "cfg": {"model": args, "task": {"_name": "masked_lm"}}},
            {"model": expected, "task": {"_name": "masked_lm"}},
        ),
        ({"args": None}, {}),
    ):
        with open_store(write(tmp_path / MODEL_PT, {**envelope, "model": samples(), **rest}, old)) as store:
            assert store.kind == "fairseq"
            assert store.settings == settings
            assert all(same(store.view(name), tensor) for name, tensor in samples().items())


def test_settings_that_refer_to_themselves_come_to_an_end(tmp_path):
    loop = {"n": 1}
    loop["self"] = loop
    bomb = []
    for _ in range(60):
        bomb = [bomb, bomb]
    with open_store(write(tmp_path / MODEL_PT, {"model": samples(), "cfg": {"loop": loop, "bomb": bomb}})) as store:
        assert store.settings["loop"]["self"]["self"]["n"] == 1


def test_no_class_stays_allowed(tmp_path):
    open_store(write(tmp_path / MODEL_PT, {"model": samples(), "args": Namespace(a=1)})).close()
    assert Namespace not in torch.serialization.get_safe_globals()
    with torch.serialization.safe_globals([Namespace]):
        open_store(tmp_path).close()
        assert Namespace in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("piece", ["model-shard0.pt", "model_part1.pt", "model-shard0_part-1.pt"])
def test_pieces_of_fairseq_are_refused(piece, tmp_path):
    write(tmp_path / piece, {"model": samples(), "args": None})
    assert piece in refused(tmp_path, "has cut in pieces")
    refused(tmp_path / piece, "has cut in pieces")
    write(tmp_path / MODEL_PT, {"model": samples(), "args": None})
    refused(tmp_path, "has cut in pieces .* join them with fairseq")
    write(tmp_path / "other.pt", {"model": samples(), "args": None})
    open_store(tmp_path / "other.pt").close()


# ---- what is refused, and how


def raw(path, header, data=b""):
    """A safetensors file with this header, be it right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # as safetensors does, for data that begins at a multiple of 8
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def edit_pickle(path, change, method=zipfile.ZIP_STORED, without=".format_version", name="data.pkl"):
    """Write the zip of torch.save again, with one record changed; `without` the promise to be laid out by torch."""
    with zipfile.ZipFile(path) as archive:
        records = [(record.filename, archive.read(record)) for record in archive.infolist()]
    with zipfile.ZipFile(path, "w", method) as archive:
        for record, data in records:
            if not record.endswith(without):
                archive.writestr(record, change(data) if record.endswith(name) else data)
    return path


def one(**changes):
    return {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}}


def pair(first, second):
    return {
        "a": one(data_offsets=first, shape=[(first[1] - first[0]) // 4])["a"],
        "b": one(data_offsets=second, shape=[(second[1] - second[0]) // 4])["a"],
    }


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (one(dtype="F8_E4M3"), "'F8_E4M3', not one of F64"),
        (one(dtype=None), "as None, not one of"),
        (one(dtype=["F32"]), "not one of"),
        ({"a": 5}, "not one of"),
        ({"a": {"dtype": "F32", "shape": [2, 2]}}, "makes no sense"),
        (one(extra=1), "makes no sense"),
        (one(shape=[2, -2]), "makes no sense"),
        (one(shape=[2, 2.0]), "makes no sense"),
        (one(shape=[True, 4]), "makes no sense"),
        (one(shape=4), "makes no sense"),
        (one(shape=[2, "2"]), "makes no sense"),
        (one(shape=[1] * 99 + [4]), "makes no sense"),
        (one(shape=[0, 2**62, 2**62], data_offsets=[0, 0]), "makes no sense"),
        (one(shape=[2**70]), "makes no sense"),
        (one(data_offsets=[0]), "makes no sense"),
        (one(data_offsets=[0, 8, 16]), "makes no sense"),
        (one(data_offsets=[-16, 0]), "makes no sense"),
        (one(data_offsets=[0, 12]), r"bytes 0 to 12 for 'a', which do not make a F32 \[2, 2\]"),
        (one(data_offsets=[16, 0]), "do not make"),
        (one(dtype="F64"), "do not make"),
        (one(shape=[3, 2]), "do not make"),
        (one(shape=[3, 2], data_offsets=[0, 24]), "but its header needs"),
        (one(shape=[1, 2], data_offsets=[0, 8]), "but its header needs"),
        ({}, "but its header needs"),
        (pair([0, 8], [4, 16]), "at byte 4 of its data, where 8 was due"),
        (pair([0, 8], [12, 16]), "at byte 12 of its data, where 8 was due"),
        (pair([0, 16], [0, 16]), "where 16 was due"),
        (b'{"a": 1, "a": 2}', "a key comes twice"),
        (b"[1, 2]", "not hold a JSON object"),
        (b"{", "not hold the JSON"),
        (b"\xff\xfe{}", "not hold the JSON"),
        (b"[" * 100_000, "not hold the JSON"),
        ({"line\nbreak\x1b[31m": {"dtype": "F8"}}, "line"),
        ({"long" * 9999: {"dtype": "F8"}}, "…: fetch|…: convert"),
    ],
)
def test_headers_that_are_not_right(header, words, tmp_path):
    assert len(refused(raw(tmp_path / SAFETENSORS, header, bytes(16)), words)) < 1000


@pytest.mark.parametrize("name", WEIGHT_FILES)
def test_files_that_are_none(name, tmp_path):
    path = tmp_path / name
    refused(path, "is not there: a checkpoint is a file, or a folder with one of model.safetensors")
    path.mkdir()
    refused(tmp_path, "is a directory")
    path.rmdir()
    path.symlink_to(tmp_path / "nowhere")
    refused(tmp_path, "leads nowhere")
    path.unlink()
    os.mkfifo(path)
    refused(tmp_path, "is no ordinary file")
    path.unlink()
    for content, words in (
        (b"", "is empty"),
        (b"\0", "cut short|not hold the JSON"),
        (b"not a checkpoint at all", "cut short|not hold the JSON"),
        (b"<!DOCTYPE html><html>503</html>", "cut short|not hold the JSON"),
        (b"PK\x03\x04", "cut short|not hold the JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "run git lfs pull"),
        (struct.pack("<Q", 2**63) + b"{}", "cut short|not hold the JSON"),
    ):
        path.write_bytes(content)
        refused(tmp_path, words)


def test_folders_without_weights_say_what_there_is(tmp_path):
    refused(tmp_path, "holds none of model.safetensors, .*: there is nothing")
    for i in range(12):
        (tmp_path / f"{i:02}.txt").touch()
    refused(tmp_path, "there is 00.txt, .* 08.txt, and more")
    refused(tmp_path / "no such folder", "is not there")
    refused(tmp_path / ("a" * 999), "name too long|is not there")
    assert "is not there" in refused(f"{tmp_path}/a\nb", "is not there")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="to root nothing is forbidden")
def test_files_that_may_not_be_read(tmp_path):
    path = write(tmp_path / SAFETENSORS)
    path.chmod(0)
    refused(path, "cannot be read .Permission denied")


def test_errors_of_the_system_are_said(tmp_path, monkeypatch):
    path = write(tmp_path / SAFETENSORS)

    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", forbidden)
    refused(path, r"cannot be read \(Permission denied\)")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"F32": "../x.safetensors"}, "which is no file beside it"),
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
        ({"F32": "x.bin"}, "mixes files of two kinds, safetensors and bin"),
    ],
)
def test_indices_that_are_not_right(change, words, tmp_path):
    path = write_shards(tmp_path)
    write(tmp_path / "x.bin", {"F32": torch.zeros(1), "y": torch.zeros(1)})
    index = json.loads(path.read_text())
    index["weight_map"] = {k: v for k, v in index["weight_map"].items() if k != "F32"} | change
    if words.startswith("mixes"):
        write(tmp_path / "x.bin", {"y": torch.zeros(1)})
        index["weight_map"] = {**json.loads(path.read_text())["weight_map"], "y": "x.bin"}
    path.write_text(json.dumps(index))
    refused(tmp_path, words)


def test_more_indices_that_are_not_right(tmp_path):
    path = write_shards(tmp_path)
    whole = path.read_text()
    for text, words in (
        ("{}", "has no weight_map"),
        ('{"weight_map": {}}', "has no weight_map"),
        ('{"weight_map": []}', "has no weight_map"),
        ("[]", "JSON object"),
        (whole[:50], "not hold the JSON"),
        ('{"weight_map": {"a": "b.bin", "a": "c.bin"}}', "a key comes twice"),
    ):
        path.write_text(text)
        refused(tmp_path, words)
    with open(path, "w") as file:
        file.truncate(2**40)
    refused(tmp_path, "should be at most 100000000")
    path.write_text(whole)
    shard = tmp_path / "model-00002-of-00003.safetensors"
    content = shard.read_bytes()
    write(shard, {**load_file(shard), "F64": torch.zeros(1)})
    refused(tmp_path, "is in doubt: 'F64' is in model-00001-of-00003.safetensors and in model-00002-of")
    shard.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003.safetensors has \d+ bytes"):
        open_store(tmp_path)


def test_what_the_index_does_not_list_is_left_alone(tmp_path):
    path = write_shards(tmp_path)
    index = json.loads(path.read_text())
    del index["weight_map"]["F64"]
    path.write_text(json.dumps(index))
    with open_store(tmp_path) as store:
        assert list(store.entries) == list(index["weight_map"])


class Payload:
    """Code in a pickle: whoever runs it leaves a mark."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def payloads(mark):
    return [
        Payload(os.system, f"touch {mark}"),
        Payload(exec, f"open({str(mark)!r}, 'w')"),
        Payload(eval, f"open({str(mark)!r}, 'w')"),
        Payload(open, str(mark), "w"),
        Payload(Path.touch, mark),
        Payload(os.mkdir, str(mark)),
        Payload(getattr, os, "system"),
    ]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", [BIN, MODEL_PT])
def test_code_in_a_pickle_is_named_and_never_run(name, old, tmp_path):
    mark = tmp_path / "mark"
    for payload in payloads(mark):
        content = {"model": samples(), "args": payload}
        try:
            write(tmp_path / name, content, old)
        except (pickle.PicklingError, TypeError):  # a module is nothing to be pickled
            continue
        sentence = refused(tmp_path, r"asks to run code \(.*\), .* torch.load\(..., weights_only=False\)")
        assert re.search(r"\((builtins\.|posix\.|io\.)?(system|exec|eval|open|mkdir|getattr)\b", sentence)
        assert not mark.exists()


def test_all_of_the_code_is_named(tmp_path):
    content = {"a": torch.zeros(1), "b": Payload(os.system, ""), "c": Payload(print, "x"), "d": Namespace(a=1)}
    sentence = refused(write(tmp_path / BIN, content), "asks to run code")
    assert "print" in sentence
    assert "posix.system" in sentence
    assert "Namespace" not in sentence


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.zeros(1)], "holds a list"),
        (torch.zeros(1), "holds a Tensor"),
        (5, "holds a int"),
        ({"a": torch.zeros(1), "b": 5}, "has 'b', a int, among its tensors"),
        ({"a": {"b": torch.zeros(1)}}, "has 'a', a dict, among its tensors"),
        ({1: torch.zeros(1)}, "has 1, a Tensor, among its tensors"),
        ({"model": {"a": 5}, "args": None}, "has 'a', a int, among its tensors"),
        ({"model": {"a": torch.zeros(1)}, "args": "x"}, "has a str for its settings"),
        ({"a": torch.eye(3).to_sparse()}, "sparse_coo tensor|cut short"),
        ({"a": torch.zeros(3, dtype=torch.complex64)}, "tensor of complex64"),
        ({"a": torch.zeros(3, dtype=torch.float8_e4m3fn)}, "tensor of float8_e4m3fn|cut short"),
        ({"a": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, "qint8|cut short"),
        ({"a": torch.zeros(3, device="meta")}, "fits|meta|strided tensor"),
        ({"a": torch.zeros(1).expand(2**40)}, "has 'a' as a strided tensor of float32"),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_pickles_of_something_else(content, words, old, tmp_path):
    refused(write(tmp_path / BIN, content, old), words)


def test_zips_that_torch_did_not_write(tmp_path):
    path = write(tmp_path / BIN)
    edit_pickle(path, lambda data: data, zipfile.ZIP_DEFLATED)
    refused(path, "is compressed")
    write(path)
    edit_pickle(path, lambda data: b"big", name="byteorder")
    refused(path, "is from a big-endian machine")
    path.write_bytes(path.read_bytes().replace(b"/byteorder", b"/ByteOrder"))
    refused(path, "is from a big-endian machine")
    write(path)
    edit_pickle(path, lambda data: data, without="nothing")  # laid out otherwise than torch reckons
    refused(path, "has no record that '.*' fits")
    for name in ("data/0", "data/3"):  # fewer bytes than the pickle says, and more
        for change in (lambda data: data[:-4], lambda data: data * 2):
            write(path)
            edit_pickle(path, change, name=name)
            refused(path, "has no record that '.*' fits")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    refused(path, "nothing that torch.save wrote")
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    refused(path, "TorchScript")


# ---- and whatever else may befall a file

MUTATIONS = 400  # of each form, of which the truncations are some
FORMS = ("safetensors", "safetensors shards", "bin", "bin shards", "old bin", "fairseq")


def make(form, folder, extra=None):
    """A small valid checkpoint of this form in the folder: (what is opened, the file to be harmed)."""
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
    path = write(folder / (SAFETENSORS if form == "safetensors" else BIN), {**samples(), **extra}, form == "old bin")
    return path, path


def boundaries(content):
    """Where something ends in these bytes: a header, a tensor, a record, a pickle."""
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


def harm(content, chance):
    """Change bytes as disks, networks and malice do; more often where the structure is than in the data."""
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


def harm_index(path, shard, chance):
    """Change an index, or what it leads to."""
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


def mutate(form, i, folder):
    """The mutation number i of a checkpoint of this form; what is to be opened."""
    chance = random.Random(f"{form} {i}")
    mark = folder.parent / "mark"
    if i == 0:
        return make(form, folder)[0]
    if i < 8 and not form.startswith("safetensors"):
        return make(form, folder, payloads(mark)[i % 6])[0]
    path, victim = make(form, folder)
    content = victim.read_bytes()
    ends = boundaries(content)
    if i == 8:
        victim.unlink()
        victim.mkdir()
    elif i == 9:
        victim.unlink()
    elif i - 10 in range(min(len(ends), MUTATIONS // 2)):
        victim.write_bytes(content[: ends[i - 10] if len(ends) <= MUTATIONS // 2 else chance.choice(ends)])
    elif path != victim and chance.random() < 0.5:
        harm_index(path, victim, chance)
    elif path != victim and chance.random() < 0.2:
        path.write_bytes(harm(path.read_bytes(), chance))
    else:
        for _ in range(chance.choice([1, 1, 1, 3])):
            content = harm(content or b"0", chance)
        victim.write_bytes(content)
    return path


def reference(form, path):
    """What safetensors or torch reads there; nothing where it reads nothing, or takes the file for something else."""
    try:
        if form == "safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([Namespace]):
            content = torch.load(path, weights_only=True)
        return content.get("model", content)
    except Exception:
        return {}


def outcome(source, form):
    """Open and touch every element of every tensor: "read", or the sentence."""
    expected = {} if form.endswith("shards") else reference(form, source)
    try:
        with open_store(source) as store:
            assert not expected or set(expected) == set(store.entries)
            assert all(same(store.view(name), tensor) for name, tensor in expected.items())
            for name, (shape, dtype, nbytes) in store.entries.items():
                for view in (store.view(name), store.view(name, writable=True)):
                    assert (tuple(view.shape), view.dtype) == (shape, dtype)
                    assert bits(view).sum() >= 0
                    assert nbytes == view.numel() * view.element_size()
                view.zero_()
    except CheckpointError as error:
        sentence = str(error)
        assert sentence.isprintable()
        assert sentence.endswith(".")
        assert len(sentence) < 1200
        return sentence
    return "read"


@pytest.mark.parametrize("form", FORMS)
def test_a_harmed_checkpoint_is_read_or_refused(form, tmp_path):
    found = Counter()
    for i in range(MUTATIONS):
        folder = tmp_path / str(i)
        folder.mkdir()
        found[outcome(mutate(form, i, folder), form) == "read"] += 1
        assert not (tmp_path / "mark").exists(), i
        assert {path.name for path in tmp_path.iterdir()} == {str(i)}
        for path in folder.iterdir():
            path.rmdir() if path.is_dir() else path.unlink()
        folder.rmdir()
    print(f"{form}: {found[True]} read, {found[False]} refused")
    assert found[True] > 10
    assert found[False] > 100
