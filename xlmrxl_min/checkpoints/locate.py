"""Find the files of a checkpoint: in a folder, bundled with the package, or on the Hugging Face hub."""

from __future__ import annotations

import logging
import os
import re
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

from . import CheckpointError, MissingFileError

PRETRAINED = Path(__file__).parents[1] / "pretrained"  # the bundled checkpoints, the vocabularies and the text
CONFIG_FILE = "config.json"
GENERATION_CONFIG_FILE = "generation_config.json"
VOCABULARY_FILE = "sentencepiece.bpe.model"
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.pt",
)
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".index.json")
FILE_SUFFIXES = (*WEIGHT_SUFFIXES, ".json", ".model", ".pth", ".ckpt", ".h5", ".txt", ".zip")  # never of a hub id
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
ANSWER_TIME = 3.0  # seconds that the hub has for an answer before its cached files are taken as they are
LOOK_UP = "look-up on the hub"  # the name of the thread that waits for the answer
SILENT_TIME = 60.0  # seconds until it is asked again
silent_until = 0.0


@dataclass(frozen=True)
class Location:
    """Where the files of a checkpoint are; made by `locate`.

    source: as it was named. folder: on this machine; of a model on the hub, the cached files if the hub does not
    answer. file: the file in the folder that was named. hub: options for huggingface_hub, None without a hub id.
    """

    source: str
    folder: Path | None
    file: Path | None = None
    hub: dict[str, Any] | None = field(default=None, repr=False)  # with a token

    def __str__(self) -> str:
        return self.source

    @property
    def weight_file(self) -> Path | None:
        """The named file, if it is one of weights."""
        return self.file if self.file and self.file.name.endswith(WEIGHT_SUFFIXES) else None

    def holds(self, name: str) -> bool:
        """Whether `name` is in the folder; a broken link counts, so that the error can name it."""
        return self.folder is not None and os.path.lexists(self.folder / name)

    def find(self, name: str) -> Path:
        """The path of the file `name`, downloaded if need be. Raises MissingFileError, which says what there is."""
        suffix = {CONFIG_FILE: ".json", VOCABULARY_FILE: ".model"}.get(name)
        if self.file and not self.weight_file and self.file.suffix == suffix:
            return self.file
        if self.folder is not None and (self.folder / name).is_file():
            return self.folder / name
        if self.hub is not None:
            return self.download(name)
        assert self.folder is not None
        if self.folder.parent == PRETRAINED:
            raise MissingFileError(
                f"{self} comes with this package without its {name}, unlike {list_bundled(name)}; the published models "
                "are on the Hugging Face hub, as facebook/xlm-roberta-xl and facebook/xlm-roberta-xxl."
            )
        remedy = (
            "a checkpoint is a folder with config.json, sentencepiece.bpe.model and the weights, as model.safetensors, "
            "pytorch_model.bin, an index of several such files, or fairseq's model.pt"
        )
        if name == VOCABULARY_FILE:
            remedy = "write the model's there, by save_pretrained of its tokenizer, or load it from where it is"
        raise MissingFileError(f"{self.folder} holds no {name}: {remedy}.")

    def download(self, name: str) -> Path:
        try:
            return Path(import_hub().hf_hub_download(self.source, name, **(self.hub or {})))
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).splitlines()[0]}" if str(error) else type(error).__name__
            raise MissingFileError(
                f"{self} is no folder, and {name} could not be downloaded from the Hugging Face hub ({reason})."
            ) from error


def locate(
    source: str | os.PathLike[str] | Location, *, revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None, local_files_only: bool = False, token: str | bool | None = None,
) -> Location:  # fmt: skip
    """Find a checkpoint: a folder, a file in it, the name of a bundled checkpoint, or else a hub id.

    A folder that holds any file of a checkpoint comes before a bundled one of the same name, with a warning. The
    options are those of huggingface_hub, for a hub id. If the hub does not answer within ANSWER_TIME, what the cache
    holds of the model is taken from there. Raises MissingFileError for a path that does not exist and a name that is
    not known, CheckpointError for a file of another kind, TypeError for anything but a str or a path.
    """
    if isinstance(source, Location):
        return source
    name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else source
    if not isinstance(name, str):
        raise TypeError(f"got a {type(source).__name__} for a checkpoint: pass its name, its folder or a hub id.")
    if not name.strip():
        raise MissingFileError(f"got {name!r} for a checkpoint: pass its name, its folder or a hub id.")
    path = Path(os.path.expanduser(name))
    bundled = PRETRAINED / name if name in list_bundled().split(", ") else None
    if os.path.isdir(path) and (bundled is None or holds_checkpoint(path)):
        if bundled is not None and not path.samefile(bundled):
            what = f"{name!r} is the folder {path.absolute()} here, not the checkpoint of that name in this package"
            warnings.warn(f"{what}: for that one, pass {str(bundled)!r}.", stacklevel=3)
        return Location(name, path)
    if bundled is not None:
        return Location(name, bundled)
    if os.path.exists(path):
        if not path.name.endswith((*WEIGHT_SUFFIXES, ".json", ".model")):
            kinds = f"weights ({', '.join(WEIGHT_SUFFIXES)}), {CONFIG_FILE} or {VOCABULARY_FILE}"
            raise CheckpointError(f"{name} is a file, but none of {kinds}: pass one of these, or their folder.")
        return Location(name, path.parent, path)
    if not (isinstance(source, str) and HUB_ID.fullmatch(name)) or name.endswith(FILE_SUFFIXES):
        remedy = "a model on the Hugging Face hub has an owner too, as in facebook/xlm-roberta-xl"
        if re.search(r"[/\\]", name) or name.endswith(FILE_SUFFIXES):
            raise MissingFileError(f"{name} does not exist: check the path; {remedy}.")
        known = f"none of what this package holds ({list_bundled()})"
        raise MissingFileError(f"{name} is no folder, and {known}; {remedy}.")
    hub = {"revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
    folder = cached_folder(name, revision, cache_dir)
    if folder is not None and not local_files_only:
        if hub_answers(name, revision, token):
            folder = None  # there may be newer files
        else:
            hub["local_files_only"] = True  # what is not in the cache is told at once
    return Location(name, folder, hub=hub)


def list_bundled(name: str = "*") -> str:
    """The names of the bundled checkpoints, or of those that have the file `name`."""
    return ", ".join(sorted({path.parent.name for path in PRETRAINED.glob(f"*/{name}")}))


def holds_checkpoint(folder: str | os.PathLike[str]) -> bool:
    """Whether any file of a checkpoint is in `folder`."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return any(name in (CONFIG_FILE, VOCABULARY_FILE) or name.endswith(WEIGHT_SUFFIXES) for name in names)


# ---- the Hugging Face hub


def cached_folder(source: str, revision: str | None, cache_dir: str | os.PathLike[str] | None) -> Path | None:
    """The folder with what has been downloaded of a model, if anything has."""
    try:
        options: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "local_files_only": True}
        return Path(import_hub().snapshot_download(source, **options))
    except (OSError, ValueError, TypeError):  # the download says what is wrong with an option
        return None


def hub_answers(source: str, revision: str | None, token: str | bool | None) -> bool:
    """Whether the hub answers in time, be it that there is no such file.

    It is asked in a thread, as no timeout covers the whole request: names are resolved, each of several addresses is
    tried, and huggingface_hub repeats what has failed. That took minutes for a model of three shards.
    """
    global silent_until
    if time.monotonic() < silent_until:
        return False
    hub, answers = import_hub(), []

    def ask() -> None:
        try:
            url = hub.hf_hub_url(source, CONFIG_FILE, revision=revision)
            answers.append(hub.get_hf_file_metadata(url, token=token, timeout=ANSWER_TIME).commit_hash is not None)
        except Exception as error:
            response = getattr(error, "response", None)
            answers.append(getattr(response, "status_code", None) in (401, 403, 404))  # an answer, unlike 503

    thread = Thread(target=ask, daemon=True, name=LOOK_UP)
    logging.getLogger("huggingface_hub.utils._http").addFilter(is_needed)
    thread.start()
    thread.join(ANSWER_TIME)
    if answers != [True]:
        silent_until = time.monotonic() + SILENT_TIME
    return answers == [True]


def is_needed(record: logging.LogRecord) -> bool:
    """Not a message about a retry of the look-up, as after ANSWER_TIME nobody waits for it."""
    return record.threadName != LOOK_UP


def is_absent(error: BaseException | None) -> bool:
    """Whether an error of huggingface_hub says that the hub has no such file; not that it could not be asked."""
    errors = import_hub().errors
    return isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError)


def import_hub() -> Any:
    """huggingface_hub, imported only when needed: it is slow, and its tqdm warns in a notebook without ipywidgets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.utils  # its tqdm, which the first use of a function would import
    return huggingface_hub
