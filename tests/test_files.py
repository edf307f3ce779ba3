"""Every file that the package writes: whole or not at all, where and with which permissions `open` would write it."""

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import concurrent_writers
import pytest
import torch

from xlmrxl_min import XLMRobertaTokenizer, XLMRobertaXLConfig, XLMRobertaXLModel, files
from xlmrxl_min.checkpoints import CheckpointError
from xlmrxl_min.checkpoints.locate import PRETRAINED
from xlmrxl_min.files import atomic_write, lock_folder
from xlmrxl_min.interpret import plot
from xlmrxl_min.interpret.explore import explore
from xlmrxl_min.training.loop import STATE_FILE, Run
from xlmrxl_min.training.pretrain import pretrain

posix = pytest.mark.skipif(os.name != "posix", reason="of POSIX systems only")
SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
NOBODY = 65534


class Training(Run):
    """A run with nothing but its state."""

    def __init__(self):
        pass

    def state(self):
        return {"weights": torch.ones(5000)}


def save_page(folder):
    explore([torch.eye(2)[None, None]], ["a", "b"]).save(folder / "page.html")


def save_figure(folder):
    plot.attention_lines(torch.eye(2), ["a", "b"]).save(folder / "map.png")


def save_checkpoint(folder, **options):
    XLMRobertaXLModel(XLMRobertaXLConfig(**SIZES, max_position_embeddings=20)).save_pretrained(folder, **options)


WRITERS = {
    "page": (save_page, ["page.html"]),
    "figure": (save_figure, ["map.png"]),
    "config": (lambda folder: XLMRobertaXLConfig(**SIZES).save_pretrained(folder), ["config.json"]),
    "checkpoint": (save_checkpoint, ["config.json", "model.safetensors"]),
    "tokenizer": (
        lambda folder: XLMRobertaTokenizer.from_pretrained("tiny").save_pretrained(folder),
        ["sentencepiece.bpe.model", "tokenizer_config.json"],
    ),
    "training state": (lambda folder: Training().save(folder), [STATE_FILE]),
}
writers = pytest.mark.parametrize(("write", "names"), WRITERS.values(), ids=WRITERS)


def write(file, text="new"):
    with atomic_write(file) as (draft,):
        draft.write_text(text)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def largest_file(size):
    """A limit on the size of files stands in for a full disk."""
    resource = pytest.importorskip("resource", reason="limits of this kind are Unix's")
    handler, (soft, hard) = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture
def reading():
    return pytest.importorskip("xlmrxl_min.course.reading", reason="needs nbconvert and latex2mathml")


@pytest.fixture
def user_folder(tmp_path):
    """A folder of a user who is not root, and the test as this user, since permissions do not bind root."""
    for write, _ in WRITERS.values():  # what they import may be root's
        write(tmp_path)
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, -1)
        os.seteuid(NOBODY)
        yield folder
        os.seteuid(0)
    else:
        yield folder
    folder.chmod(0o777)
    shutil.rmtree(folder)


@contextmanager
def refused(folder, *names, kind=OSError, number=None):
    """The error is one sentence that names what the user named, and the folder stays as it is."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(kind) as caught:
        yield
    message = str(caught.value)
    assert any(message.startswith(f"{name} could not be written (") for name in names), message
    assert "draft" not in message
    assert "Errno" not in message
    assert "\n" not in message
    if number is not None and kind is OSError:
        assert caught.value.errno == number
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


# ---- what the destination is


@posix
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
@writers
def test_permissions_are_those_that_open_gives(write, names, umask, tmp_path):
    old = os.umask(umask)
    try:
        write(tmp_path)
        (tmp_path / "plain").open("w").close()
        assert {name: mode(tmp_path / name) for name in names} == dict.fromkeys(names, mode(tmp_path / "plain"))
        assert mode(tmp_path / "plain") == 0o666 & ~umask
        for kept in (0o600, 0o640, 0o666):
            for name in names:
                (tmp_path / name).chmod(kept)
            write(tmp_path)
            assert {mode(tmp_path / name) for name in names} == {kept}
    finally:
        os.umask(old)


@posix
def test_nobody_else_can_read_the_draft_of_a_private_file(tmp_path):
    file = tmp_path / "page.html"
    file.write_text("old")
    file.chmod(0o600)
    with atomic_write(file) as (draft,):
        assert mode(draft) == 0o600
        draft.write_text("new")


@posix
def test_the_owner_stays(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root may give files away")
    file = tmp_path / "page.html"
    file.write_text("old")
    os.chown(file, NOBODY, NOBODY)
    save_page(tmp_path)
    assert (file.stat().st_uid, file.stat().st_gid) == (NOBODY, NOBODY)


@posix
def test_default_access_control_lists_apply(tmp_path):
    if shutil.which("setfacl") is None:
        pytest.skip("needs setfacl")
    if subprocess.run(["setfacl", "-d", "-m", "u:65534:rw,m:rw", tmp_path], check=False).returncode:
        pytest.skip("needs a file system with access control lists")
    save_checkpoint(tmp_path)
    (tmp_path / "plain").open("w").close()
    assert mode(tmp_path / "model.safetensors") == mode(tmp_path / "plain")


@posix
@writers
def test_symlinks_are_followed(write, names, tmp_path):
    real, user = tmp_path / "real", tmp_path / "user"
    for folder in (real, user):
        folder.mkdir()
    for name in names:
        (real / name).write_text("old")
        (real / f"link to {name}").symlink_to(name)
        (user / name).symlink_to(Path("..", "real", f"link to {name}"))  # relative, a chain, into another folder
    write(user)
    assert all((user / name).is_symlink() for name in names)
    assert all((real / name).read_bytes() != b"old" for name in names)
    assert sorted(path.name for path in real.iterdir() if not path.is_symlink()) == sorted(names)
    assert sorted(path.name for path in user.iterdir()) == sorted(names)


@posix
def test_a_dangling_link_is_followed(tmp_path):
    (tmp_path / "link").symlink_to("target")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


@posix
def test_a_named_pipe_is_written_to(tmp_path):
    pipe, page = tmp_path / "page.html", explore([torch.eye(2)[None, None]], ["a", "b"])
    os.mkfifo(pipe)
    received = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    page.save(pipe)
    reader.join(20)
    assert received == [page.html.encode()]
    assert list(tmp_path.iterdir()) == [pipe]
    assert pipe.is_fifo()


@posix
@pytest.mark.parametrize("link", [False, True])
def test_a_device_is_written_to(link, tmp_path):
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        device.write_bytes(b"")
    except OSError as error:
        pytest.skip(f"cannot make a device: {error}")
    if link:
        (tmp_path / "link").symlink_to("null")
    save_page_to = tmp_path / ("link" if link else "null")
    explore([torch.eye(2)[None, None]], ["a", "b"]).save(save_page_to)
    assert stat.S_ISCHR(device.stat().st_mode)
    assert save_page_to.is_symlink() == link
    assert len(list(tmp_path.iterdir())) == 1 + link


@posix
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_of_a_checkpoint_may_be_a_pipe_or_device(name, tmp_path):
    (tmp_path / name).symlink_to("/dev/null")
    save_checkpoint(tmp_path)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert (tmp_path / name).is_symlink()


def test_the_home_folder_is_the_same_in_saving_and_loading(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME" if os.name == "posix" else "USERPROFILE", str(tmp_path))
    XLMRobertaTokenizer.from_pretrained("tiny").save_pretrained("~/saved")
    assert XLMRobertaTokenizer.from_pretrained("~/saved").vocab_file == tmp_path / "saved" / "sentencepiece.bpe.model"


@posix
def test_a_descriptor_is_written_to(tmp_path):
    """Often it is a regular file, which a shell has opened and will write to again."""
    file = tmp_path / "log"
    file.write_text("old\n")
    with open(file, "ab") as log:
        name = Path(f"/dev/fd/{log.fileno()}")
        if not name.exists():
            pytest.skip("needs /dev/fd")
        write(name)
        (tmp_path / "link").symlink_to(name)
        write(tmp_path / "link", "er\n")
        log.write(b"last")
    assert file.read_text() == "old\nnewer\nlast"
    with pytest.raises(OSError, match=r"^/dev/fd/987654 could not be written"):
        write(Path("/dev/fd/987654"))


@posix
@pytest.mark.parametrize("output", ["/dev/null", "/dev/stdout"])
def test_the_command_line_writes_to_devices(output, tmp_path):
    before = os.stat("/dev/null")
    log = tmp_path / "log"
    log.write_text("old\n")
    with open(log, "a") as stdout:
        command = [sys.executable, "-m", "xlmrxl_min", "attend", "Hello", "-o", output]
        subprocess.run(command, stdout=stdout, check=True)
    after = os.stat("/dev/null")
    assert (after.st_mode, after.st_ino, after.st_rdev) == (before.st_mode, before.st_ino, before.st_rdev)
    text = log.read_text(encoding="utf-8")
    assert text.startswith("old\n")
    assert text.endswith("</html>\n" if output == "/dev/stdout" else " kB\n")


@pytest.mark.parametrize("name", ["x" * 250 + ".html", "语" * 83 + ".html"])
def test_names_of_255_bytes(name, tmp_path):
    try:
        (tmp_path / name[:-1]).touch()
    except OSError:
        pytest.skip("needs a file system with such names")
    write(tmp_path / name)
    assert (tmp_path / name).read_text() == "new"


# ---- errors: one sentence, old files unchanged, no drafts


@posix
@pytest.mark.parametrize("existing", [False, True])
@writers
def test_a_full_disk(write, names, existing, tmp_path):
    if existing:
        for name in names:
            (tmp_path / name).write_text("old")
    kind = CheckpointError if set(names) & {"config.json"} else OSError
    with refused(tmp_path, tmp_path, *(tmp_path / name for name in names), kind=kind, number=errno.EFBIG):  # noqa: SIM117
        with largest_file(100):
            write(tmp_path)
    if not existing:
        assert list(tmp_path.iterdir()) == []


@posix
def test_a_full_device():
    if not Path("/dev/full").is_char_device():
        pytest.skip("needs /dev/full")
    with pytest.raises(OSError, match=r"^/dev/full could not be written \(No space left on device\)") as caught:
        write(Path("/dev/full"))
    assert caught.value.errno == errno.ENOSPC


@posix
@writers
def test_a_read_only_folder(write, names, user_folder):
    (user_folder / names[0]).write_text("old")
    (user_folder / names[0]).chmod(0o666)  # could be written to, but not replaced whole
    user_folder.chmod(0o555)
    kind = CheckpointError if "config.json" in names else PermissionError
    with refused(user_folder, *(user_folder / name for name in names), kind=kind):
        write(user_folder)
    with refused(user_folder, *(user_folder / "new" / name for name in names), kind=kind):
        write(user_folder / "new")


@posix
@writers
def test_a_read_only_file_is_not_replaced(write, names, user_folder):
    (user_folder / names[-1]).write_text("old")
    (user_folder / names[-1]).chmod(0o444)
    kind = CheckpointError if "config.json" in names else PermissionError
    with refused(user_folder, user_folder / names[-1], kind=kind):
        write(user_folder)
    assert mode(user_folder / names[-1]) == 0o444


@writers
def test_a_file_where_a_folder_is_needed(write, names, tmp_path):
    file = tmp_path / "file"
    file.write_text("old")
    kind = CheckpointError if "config.json" in names else NotADirectoryError
    for folder in (file, file / "below"):
        with refused(tmp_path, *(folder / name for name in names), kind=kind) as _:
            write(folder)
    with pytest.raises(kind, match="file is a file, and a folder is needed there"):
        write(file)


@writers
def test_a_folder_where_a_file_is_needed(write, names, tmp_path):
    (tmp_path / names[-1]).mkdir()
    kind = CheckpointError if "config.json" in names else IsADirectoryError
    with refused(tmp_path, tmp_path / names[-1], kind=kind):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [names[-1]]


@posix
def test_names_that_the_system_refuses(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for name, number in (("x" * 300, errno.ENAMETOOLONG), ("a", errno.ELOOP)):
        with refused(tmp_path, tmp_path / name, number=number):
            write(tmp_path / name)
        for save, names in WRITERS.values():
            kind = CheckpointError if "config.json" in names else OSError
            with refused(tmp_path, *(tmp_path / name / file for file in names), kind=kind, number=number):
                save(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("", ValueError, "is empty, which would mean the working folder"),
        ("a\0b", ValueError, "holds the character"),
        ("a\ud800", ValueError, "a lone surrogate"),
        (None, TypeError, "is a str or a Path, but this one is of type NoneType"),
        (5, TypeError, "of type int"),
        (["a"], TypeError, "of type list"),
    ],
)
def test_what_cannot_be_a_name(name, kind, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for save in (
        explore([torch.eye(2)[None, None]], ["a", "b"]).save,
        plot.attention_lines(torch.eye(2), ["a", "b"]).save,
        XLMRobertaXLConfig(**SIZES).save_pretrained,
        save_checkpoint,
        XLMRobertaTokenizer.from_pretrained("tiny").save_pretrained,
    ):
        with pytest.raises(kind, match=words):
            save(name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["map", "map.", "map.wrong", ".png", "map.html"])
def test_an_ending_that_no_picture_has(name, tmp_path):
    with pytest.raises(ValueError, match=r"ends in .*: name a file that ends in \.png, \.pdf or \.svg") as caught:
        plot.attention_lines(torch.eye(2), ["a", "b"]).save(tmp_path / "new" / name)
    assert str(tmp_path / "new" / name) in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    plot.attention_lines(torch.eye(2), ["a", "b"]).save(tmp_path / "MAP.PNG")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, OSError("no space")])
def test_an_interrupted_write_leaves_the_old_files(error, tmp_path):
    (tmp_path / "a").write_text("old")

    def fail():
        with atomic_write(tmp_path / "a", tmp_path / "b") as drafts:
            for draft in drafts:
                draft.write_text("half")
            raise error

    with pytest.raises(error if isinstance(error, type) else OSError):
        fail()
    assert content(tmp_path) == {"a": b"old"}


# ---- several files


@pytest.mark.parametrize("error", [OSError(errno.EPERM, "not permitted"), KeyboardInterrupt()])
@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("before, after", [("5GB", "4KB"), ("4KB", "5GB"), (None, "4KB")])  # noqa: PT006
def test_a_replacement_that_fails_halfway_is_undone(before, after, links, error, tmp_path, monkeypatch):
    if before is not None:
        save_checkpoint(tmp_path, max_shard_size=before)
    old, steps = content(tmp_path), 0
    replace = os.replace

    def no_link(*_):
        raise OSError("this file system has no links")

    def fails(source, target):
        nonlocal steps
        steps += 1
        if steps == failing:
            raise error
        replace(source, target)

    if not links:
        monkeypatch.setattr(os, "link", no_link)
    for failing in range(1, 30):  # noqa: B007
        steps = 0
        monkeypatch.setattr(os, "replace", fails)
        try:
            save_checkpoint(tmp_path, max_shard_size=after)
            monkeypatch.setattr(os, "replace", replace)
            break
        except (CheckpointError, KeyboardInterrupt):
            monkeypatch.setattr(os, "replace", replace)
        found = content(tmp_path)
        assert found.keys() == old.keys()
        assert found == old or not links
    assert failing > 2
    XLMRobertaXLModel.from_pretrained(tmp_path)


def test_a_loaded_model_keeps_its_weights_when_its_files_are_replaced(tmp_path):
    save_checkpoint(tmp_path)
    model = XLMRobertaXLModel.from_pretrained(tmp_path)
    before = {name: parameter.clone() for name, parameter in model.state_dict().items()}
    save_checkpoint(tmp_path, max_shard_size="4KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.state_dict().items())
    model.save_pretrained(tmp_path)
    again = XLMRobertaXLModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(parameter, before[name]) for name, parameter in again.items())


@posix
def test_loading_waits_until_a_save_is_complete(tmp_path):
    save_checkpoint(tmp_path)
    loaded = threading.Event()

    def load():
        XLMRobertaXLModel.from_pretrained(tmp_path)
        loaded.set()

    with lock_folder(tmp_path):
        thread = threading.Thread(target=load)
        thread.start()
        assert not loaded.wait(0.5)
    assert loaded.wait(20)
    with lock_folder(tmp_path, shared=True):
        XLMRobertaXLModel.from_pretrained(tmp_path)  # readers do not wait for each other
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_saving_and_loading_without_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)  # as on Windows
    save_checkpoint(tmp_path)
    XLMRobertaXLModel.from_pretrained(tmp_path)


@posix
def test_folders_that_cannot_be_locked(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", flock)  # as on some network drives
    save_checkpoint(tmp_path)
    XLMRobertaXLModel.from_pretrained(tmp_path)
    with lock_folder(tmp_path / "missing"):
        pass


@pytest.mark.parametrize("saves", [15, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize("processes", [True, False], ids=["processes", "threads"])
@pytest.mark.parametrize("kind", concurrent_writers.KINDS)
def test_the_last_of_concurrent_writers_wins(kind, processes, saves, tmp_path):
    counts = concurrent_writers.run(tmp_path, kind, saves, processes=processes)
    print(f"{kind}, 2 {'processes' if processes else 'threads'}:", counts)
    assert counts.pop("saves") == 2 * saves
    assert counts.pop("reads") > 0
    assert set(counts.values()) == {0}, counts


# ---- folders


@posix
def test_the_reading_version_stays_if_the_new_one_cannot_replace_it(reading, user_folder, monkeypatch):
    monkeypatch.setattr(reading, "list_notebooks", list)
    monkeypatch.setattr(reading.Site, "__init__", lambda site: site.__dict__.update(pages={}, files=[]))
    monkeypatch.setattr(
        reading.Site, "add_index", lambda site: site.pages.update({"index.html": f"<title>{reading.NAME}</title>"})
    )
    site, rename = user_folder / "site", Path.rename
    reading.read(site)

    def fails(path, target):
        if target == site and path.name == "new":
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fails)
        with pytest.raises(KeyboardInterrupt):
            reading.read(site)
    assert {path.name for path in user_folder.rglob("*")} == {"site", "index.html", ".nojekyll"}
    user_folder.chmod(0o555)
    with refused(user_folder, user_folder / "other", kind=PermissionError):
        reading.read(user_folder / "other")


@posix
def test_a_training_run_names_the_folder_that_it_cannot_make(tmp_path):
    (tmp_path / "file").write_text("old")
    recipe = PRETRAINED.parent / "training" / "recipes" / "tiny.json"
    with refused(tmp_path, tmp_path / "file", kind=NotADirectoryError):
        pretrain(recipe, tmp_path / "corpus", tmp_path / "file")
