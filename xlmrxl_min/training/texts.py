"""The texts in the package: the Universal Declaration and words of it, parallel sentences, and names of emoji."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import NamedTuple

from ..checkpoints.locate import PRETRAINED
from ..inputs import as_texts

EMOJI_FILE, PARALLEL_FILE = "emoji.tsv", "parallel.tsv"


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


class Emoji(NamedTuple):
    emoji: str
    group: str  # one of eight, such as "Food & Drink"
    split: str  # "train", in English only, or "test", in all 15 languages
    language: str
    name: str  # by the Unicode CLDR


class ParallelSentence(NamedTuple):
    language: str
    source: str  # bible, help or scratch
    section: str  # the chapter or page
    place: str  # the verse or paragraph in it, the same in every language
    held_out: bool  # the bundled checkpoints have not studied it, in any language
    text: str


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


def emoji_names() -> list[Emoji]:
    """1,577 emoji by name, in English; 474 of them in 15 languages. To classify into groups, also across languages."""
    return [Emoji._make(row) for row in read_tsv(EMOJI_FILE)]


def parallel_sentences() -> list[ParallelSentence]:
    """Short sentences of the training corpus, and of what was held out of it, in 6 to 15 languages each.

    A sentence and its translations have the same source, section and place.
    """
    return [
        ParallelSentence(language, source, section, place, held_out == "1", text)
        for language, source, section, place, held_out, text in read_tsv(PARALLEL_FILE)
    ]


def read_tsv(name: str) -> Iterator[list[str]]:
    with open(PRETRAINED / name, encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(rows)  # the header
        yield from rows
