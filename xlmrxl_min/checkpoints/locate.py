"""Find the files of a checkpoint: bundled with the package, in a folder, or on the Hugging Face hub."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

PRETRAINED = Path(__file__).parents[1] / "pretrained"  # the bundled checkpoints, the vocabularies and the text


def find_file(source: str | os.PathLike[str], name: str) -> Path:
    """The path of the file `name` of `source`: a bundled checkpoint, a folder, or a hub id (downloaded and cached).

    Raises FileNotFoundError, which says what there is instead.
    """
    bundled = ", ".join(sorted(path.parent.name for path in PRETRAINED.glob(f"*/{name}")))
    folder = resolve_folder(source)
    if folder is not None:
        if (folder / name).is_file():
            return folder / name
        if folder.parent == PRETRAINED:
            raise FileNotFoundError(
                f"{source} comes with this package without its {name}, unlike {bundled}; the published models are on "
                "the Hugging Face hub, as facebook/xlm-roberta-xl and facebook/xlm-roberta-xxl."
            )
        raise FileNotFoundError(
            f"{folder} holds no {name}: a checkpoint is a folder with config.json, sentencepiece.bpe.model and the "
            "weights, as model.safetensors, pytorch_model.bin, an index of several such files, or fairseq's model.pt."
        )
    if str(source).count("/") != 1:
        raise FileNotFoundError(
            f"{source} is no folder, and none of what this package holds ({bundled}); "
            "a model on the Hugging Face hub has an owner too, as in facebook/xlm-roberta-xl."
        )

    try:
        return Path(import_hub().hf_hub_download(str(source), name))
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}" if str(error) else type(error).__name__
        raise FileNotFoundError(
            f"{source} is no folder, and {name} could not be downloaded from the Hugging Face hub ({reason})."
        ) from error


def resolve_folder(source: str | os.PathLike[str]) -> Path | None:
    """The folder that `source` names: a bundled checkpoint by its bare name, or any other; None if there is none."""
    if any(str(source) == path.name for path in PRETRAINED.iterdir() if path.is_dir()):
        return PRETRAINED / source
    return Path(source) if Path(source).is_dir() else None


def import_hub() -> Any:
    """huggingface_hub, imported only when needed: it is slow, and its tqdm warns in a notebook without ipywidgets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import huggingface_hub
    return huggingface_hub
