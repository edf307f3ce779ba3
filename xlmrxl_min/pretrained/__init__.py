"""What ships with the package: the Universal Declaration of Human Rights, vocabularies, checkpoints made from them."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Paragraph(NamedTuple):
    language: str  # BCP 47, such as "en" or "zh"
    article: int  # 1 to 30; 0 is the preamble
    paragraph: int  # from 1; the same number is the same paragraph in every language, but for parts of the preamble
    text: str


def udhr(languages: Iterable[str] | None = None) -> list[Paragraph]:
    """The Declaration in `languages` (None: all 50), in the file's order. ValueError for any other language."""
    with open(Path(__file__).parent / "udhr.tsv", encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(rows)  # the header
        text = [Paragraph(language, int(article), int(number), words) for language, article, number, words in rows]
    known = dict.fromkeys(row.language for row in text)
    wanted = list(known if languages is None else languages)
    unknown = [language for language in wanted if language not in known]
    if unknown:
        raise ValueError(f"the Declaration is not here in {', '.join(unknown)}: there are {', '.join(known)}.")
    return [row for row in text if row.language in wanted]
