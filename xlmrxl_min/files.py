"""Write files: whole or not at all, wherever a name leads, with errors that name it; lock folders."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]


def to_path(name: str | bytes | os.PathLike[Any], what: str = "file") -> Path:
    """The path that a user has given, `~` being the home folder.

    Raises TypeError or ValueError for what cannot be the name of a `what`.
    """
    try:
        text = os.fsdecode(name)
        os.fsencode(text)
    except TypeError as error:
        raise TypeError(
            f"the name of a {what} is a str or a Path, but this one is of type {type(name).__name__}."
        ) from error
    except UnicodeError as error:
        raise ValueError(f"{name!r} cannot be the name of a {what}: it holds a lone surrogate.") from error
    if not text or "\0" in text:
        problem = "holds the character \\0" if text else "is empty, which would mean the working folder"
        raise ValueError(f"{name!r} cannot be the name of a {what}: it {problem}.")
    return Path(os.path.expanduser(text))


@contextmanager
def atomic_write(*files: Path, obsolete: re.Pattern[str] | None = None) -> Iterator[tuple[Path, ...]]:
    """Yield a temporary path for each of `files`; without an error these replace `files`, all or none.

    A symlink is followed to its target. A new file gets the permissions that `open` would give, an existing one keeps
    its own. What is no regular file (a device, a pipe, /dev/stdout) is not replaced: the content is copied into it.
    Several files stand in one folder, which is locked meanwhile (`lock_folder`). obsolete: pattern of further names in
    it, to be removed in the same step. Raises OSError, in a sentence that names the file.
    """
    folder = files[0].parent
    drafts = [Draft(file) for file in files]
    try:
        for draft in drafts:
            with explain_errors(draft.file, drafts):
                draft.create()
        with explain_errors(files[0] if len(files) == 1 else folder, drafts):
            yield tuple(draft.path for draft in drafts)
        for draft in drafts:
            with explain_errors(draft.file, drafts):
                draft.finish()
        regular = [draft for draft in drafts if draft.stream is None]
        with explain_errors(files[0] if len(files) == 1 else folder, drafts):
            if len(files) == 1:
                for draft in regular:
                    os.replace(draft.path, draft.target)
            else:
                with lock_folder(folder):
                    replace_all(regular, folder, obsolete, {file.name for file in files})
    finally:
        for draft in drafts:
            with suppress(OSError):
                draft.path.unlink()


class Draft:
    """The temporary file `path` in which the content of `file` is written.

    target: `file` behind its symlinks. stream: where the content is copied if that is no regular file, else None.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.target = file, Path(os.path.realpath(file))
        self.stream: str | int | None = None
        self.path = self.target.with_name(draft_name())
        self.mode = 0o600

    def create(self) -> None:
        """Make the draft, with the permissions that `open` would give; wherever `open` fails, this does."""
        self.stream = find_stream(self.file)
        if self.stream is not None:
            self.path = Path(tempfile.gettempdir(), draft_name())
        elif self.target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder: name a file in it")
        else:
            make_folder(self.target.parent)
            self.mode = 0o666
            with suppress(FileNotFoundError):
                os.close(os.open(self.target, os.O_WRONLY))
                self.mode = 0o600 | (0o666 & self.target.stat().st_mode)  # nobody else reads the draft either
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, self.mode))
        except OSError as error:
            raise OSError(error.errno, f"{self.path.parent} takes no new file: {error.strerror}") from error
        self.mode = stat.S_IMODE(self.path.stat().st_mode)  # by the umask or the folder's default

    def finish(self) -> None:
        """Copy the content into the stream, or give the draft its final permissions, those of an existing file."""
        if self.stream is not None:
            where = os.dup(self.stream) if isinstance(self.stream, int) else self.stream
            with open(self.path, "rb") as content, open(where, "wb") as stream:
                shutil.copyfileobj(content, stream)
            return
        os.chmod(self.path, self.mode)  # safetensors leaves 0600
        with suppress(OSError):
            old = self.target.stat()
            for owner in ((-1, old.st_gid), (old.st_uid, -1)) if hasattr(os, "chown") else ():
                with suppress(OSError):  # others than root may not give files away
                    os.chown(self.path, *owner)
            shutil.copystat(self.target, self.path)  # with access control lists
        os.utime(self.path)


def draft_name() -> str:
    return f".{secrets.token_hex(8)}.draft"  # unique, and short however long the file's name is


def make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    except (FileExistsError, NotADirectoryError) as error:
        file = next(path for path in (folder, *folder.parents) if path.exists() and not path.is_dir())
        raise NotADirectoryError(errno.ENOTDIR, f"{file} is a file, and a folder is needed there") from error


def find_stream(file: Path) -> str | int | None:
    """The path of a device or pipe, N for /dev/fd/N (/dev/stdout is /dev/fd/1), None for a regular file or none yet."""
    path = os.fspath(file)
    for _ in range(40):  # links
        path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        descriptor = re.fullmatch(r"(?:/dev|/proc/(\d+)(?:/task/\d+)?)/fd/(\d{1,9})", path)
        if descriptor:  # often a regular file, as after `> page.html`, but one that others have open
            return int(descriptor[2]) if descriptor[1] in (None, str(os.getpid())) else path
        if not os.path.islink(path):
            break
        path = os.path.join(os.path.dirname(path), os.readlink(path))
    try:
        mode = os.stat(file).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    return None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else os.fspath(file)


def replace_all(drafts: Sequence[Draft], folder: Path, obsolete: re.Pattern[str] | None, kept: Collection[str]) -> None:
    """Move every draft to its target, and remove what is obsolete in `folder`; after an error undo all of it.

    kept: names that are not obsolete, also of what was written to, such as a device.
    """
    old = [path for path in folder.iterdir() if obsolete and obsolete.fullmatch(path.name) and path.name not in kept]
    steps = [(draft.target, draft.path) for draft in drafts] + [(path, None) for path in old if not path.is_dir()]
    undo: list[tuple[Path, Path, bool]] = []
    try:
        for path, draft in steps:
            backup, existed = path.with_name(draft_name()), os.path.lexists(path)
            undo.append((path, backup, existed))
            if draft is None:
                os.replace(path, backup)
            else:
                with suppress(OSError):  # some file systems have no links: there a replaced file cannot be restored
                    os.link(path, backup)
                os.replace(draft, path)
    except BaseException:
        for path, backup, existed in reversed(undo):
            if os.path.lexists(backup):
                os.replace(backup, path)
            elif not existed:
                path.unlink(missing_ok=True)
        raise
    finally:
        for _, backup, _ in undo:
            with suppress(OSError):
                backup.unlink()


@contextmanager
def explain_errors(file: Path, drafts: Sequence[Draft] = ()) -> Iterator[None]:
    """Raise an OSError again, with its errno, in a sentence that names `file` or the one whose draft it is about."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch.save raises another after it
        if not isinstance(cause, OSError):
            raise
        for draft in drafts:
            file = draft.file if str(cause.filename) == str(draft.path) else file
        known = [str(path) for draft in drafts for path in (draft.target, draft.file)]
        is_known = cause.filename is None or ".draft" in str(cause.filename) or str(cause.filename) in known
        elsewhere = "" if is_known else f": {cause.filename}"
        unchanged = "" if any(draft.stream is not None for draft in drafts) else "; existing files are unchanged"
        kind = OSError if cause.errno is None else type(OSError(cause.errno, ""))  # such as PermissionError
        explained = kind(f"{file} could not be written ({cause.strerror or cause}{elsewhere}){unchanged}.")
        explained.errno = cause.errno
        raise explained from error


@contextmanager
def lock_folder(folder: Path | None, *, shared: bool = False) -> Iterator[None]:
    """Wait until nobody else holds the lock on `folder`, or, if `shared`, only others who share it; then hold it.

    It keeps readers of several files from seeing some old and some new ones. It leaves no file, and does nothing where
    folders have no locks (on Windows, on some network drives), or if `folder` is None.
    """
    if fcntl is None or folder is None:
        yield
        return
    descriptor = None
    try:
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        if descriptor is not None:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # a process that was forked meanwhile keeps it open
            os.close(descriptor)
