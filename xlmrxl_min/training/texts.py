"""The texts in the package: the Universal Declaration of Human Rights, and words of it with their translations."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import NamedTuple

from ..checkpoints.locate import PRETRAINED
from ..inputs import as_texts


class Paragraph(NamedTuple):
    language: str  # BCP 47, such as "en" or "zh"
    article: int  # 1 to 30; 0 is the preamble
    paragraph: int  # from 1; parallel across languages, except in the preamble
    text: str


class TranslatedWord(NamedTuple):
    concept: str
    article: int
    paragraph: int
    language: str
    word: str  # as written in that paragraph, where it occurs once


def udhr(languages: str | Iterable[str] | None = None) -> list[Paragraph]:
    """The Declaration in one or several languages (None: all 50), in the file's order. ValueError for any other."""
    text = [Paragraph(code, int(article), int(number), text) for code, article, number, text in read_tsv("udhr.tsv")]
    known = dict.fromkeys(row.language for row in text)
    if isinstance(languages, (Mapping, Set)):  # their order does not matter here
        languages = list(languages)
    wanted = list(known) if languages is None else as_texts(languages, "languages")
    unknown = [language for language in wanted if language not in known]
    if unknown:
        raise ValueError(f"the Declaration is not here in {', '.join(unknown)}: there are {', '.join(known)}.")
    return [row for row in text if row.language in wanted]


def translated_words() -> list[TranslatedWord]:
    """Ten concepts, each as a word in a paragraph of up to 15 languages, found by hand: to evaluate alignments."""
    return [
        TranslatedWord(concept, int(article), int(number), language, word)
        for concept, article, number, language, word in read_tsv("words.tsv")
    ]


def read_tsv(name: str) -> Iterator[list[str]]:
    with open(PRETRAINED / name, encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(rows)  # the header
        yield from rows
