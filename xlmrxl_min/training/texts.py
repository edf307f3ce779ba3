"""The text that ships with the package: the Universal Declaration of Human Rights, and words to align in it."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from typing import NamedTuple

from ..checkpoints.locate import PRETRAINED


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
    with open(PRETRAINED / "words.tsv", encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(rows)  # the header
        return [Word(concept, int(article), int(number), *rest) for concept, article, number, *rest in rows]


def udhr(languages: str | Iterable[str] | None = None) -> list[Paragraph]:
    """The Declaration in one language or several (None: all 50), in the file's order. ValueError for any other."""
    with open(PRETRAINED / "udhr.tsv", encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(rows)  # the header
        text = [Paragraph(language, int(article), int(number), words) for language, article, number, words in rows]
    known = dict.fromkeys(row.language for row in text)
    wanted = [languages] if isinstance(languages, str) else list(known if languages is None else languages)
    unknown = [language for language in wanted if language not in known]
    if unknown:
        raise ValueError(f"the Declaration is not here in {', '.join(unknown)}: there are {', '.join(known)}.")
    return [row for row in text if row.language in wanted]
