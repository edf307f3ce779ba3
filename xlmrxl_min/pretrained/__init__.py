"""What ships with the package: the Universal Declaration of Human Rights, vocabularies, checkpoints made from them."""

import csv
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent


def find(source: str | os.PathLike[str], name: str) -> Path:
    """The path of the file `name` of `source`: a folder beside this file, any folder, or a hub id (fetched and kept).

    FileNotFoundError, saying what there is, where none of them has it.
    """
    shipped, folder = ", ".join(sorted(path.parent.name for path in HERE.glob(f"*/{name}"))), folder_of(source)
    if folder is not None:
        if (folder / name).is_file():
            return folder / name
        if folder.parent == HERE:
            raise FileNotFoundError(
                f"{source} comes with this package without its {name}, unlike {shipped}; the published models are on "
                "the Hugging Face hub, as facebook/xlm-roberta-xl and facebook/xlm-roberta-xxl."
            )
        raise FileNotFoundError(
            f"{folder} holds no {name}: a checkpoint is a folder with config.json, sentencepiece.bpe.model and the "
            "weights, as model.safetensors, pytorch_model.bin, an index of several such files, or fairseq's model.pt."
        )
    if str(source).count("/") != 1:
        raise FileNotFoundError(
            f"{source} is no folder, and none of what this package holds ({shipped}); "
            "a model on the Hugging Face hub has an owner too, as in facebook/xlm-roberta-xl."
        )
    from huggingface_hub import hf_hub_download  # slow to import, and needed for this line only

    try:
        return Path(hf_hub_download(str(source), name))
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}" if str(error) else type(error).__name__
        raise FileNotFoundError(
            f"{source} is no folder, and {name} could not be had from the Hugging Face hub ({reason})."
        ) from error


def folder_of(source: str | os.PathLike[str]) -> Path | None:
    """The folder that `source` names: one beside this file, by its bare name, or any other; None if there is none."""
    if any(str(source) == path.name for path in HERE.iterdir() if path.is_dir()):
        return HERE / source
    return Path(source) if Path(source).is_dir() else None


class Paragraph(NamedTuple):
    language: str  # BCP 47, such as "en" or "zh"
    article: int  # 1 to 30; 0 is the preamble
    paragraph: int  # from 1; the same number is the same paragraph in every language, but for parts of the preamble
    text: str


class Word(NamedTuple):
    concept: str
    article: int
    paragraph: int
    language: str
    word: str  # as it stands, once, in that paragraph


def words() -> list[Word]:
    """Ten concepts, each by its word in one paragraph of up to fifteen languages, found by hand: what to align."""
    with open(HERE / "words.tsv", encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(rows)  # the header
        return [Word(concept, int(article), int(number), *rest) for concept, article, number, *rest in rows]


def udhr(languages: str | Iterable[str] | None = None) -> list[Paragraph]:
    """The Declaration in one language or several (None: all 50), in the file's order. ValueError for any other."""
    with open(HERE / "udhr.tsv", encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(rows)  # the header
        text = [Paragraph(language, int(article), int(number), words) for language, article, number, words in rows]
    known = dict.fromkeys(row.language for row in text)
    wanted = [languages] if isinstance(languages, str) else list(known if languages is None else languages)
    unknown = [language for language in wanted if language not in known]
    if unknown:
        raise ValueError(f"the Declaration is not here in {', '.join(unknown)}: there are {', '.join(known)}.")
    return [row for row in text if row.language in wanted]
