"""Tables of the notebooks in HTML, so that the browser has the letters and the direction of every script."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

LANGUAGES = {  # of the Declaration, by BCP 47 code; the first fifteen are those of the bundled checkpoints
    "en": "English", "fr": "French", "de": "German", "es": "Spanish", "it": "Italian", "nl": "Dutch", "ru": "Russian",
    "el": "Greek", "tr": "Turkish", "ar": "Arabic", "hi": "Hindi", "zh": "Chinese", "ja": "Japanese", "sw": "Swahili",
    "id": "Indonesian", "pt": "Portuguese", "pl": "Polish", "uk": "Ukrainian", "cs": "Czech", "ro": "Romanian",
    "hu": "Hungarian", "fi": "Finnish", "sv": "Swedish", "da": "Danish", "bg": "Bulgarian", "sr": "Serbian",
    "ca": "Catalan", "eu": "Basque", "ga": "Irish", "is": "Icelandic", "he": "Hebrew", "fa": "Persian", "ur": "Urdu",
    "bn": "Bengali", "ta": "Tamil", "te": "Telugu", "ne": "Nepali", "th": "Thai", "lo": "Lao", "my": "Burmese",
    "vi": "Vietnamese", "ko": "Korean", "ka": "Georgian", "hy": "Armenian", "az": "Azerbaijani", "kk": "Kazakh",
    "am": "Amharic", "so": "Somali", "af": "Afrikaans", "cy": "Welsh",
}  # fmt: skip
SCRIPTS = {
    "Latin": (
        *("en", "fr", "de", "es", "it", "nl", "tr", "sw", "id", "pt", "pl", "cs", "ro", "hu", "fi", "sv", "da", "ca"),
        *("eu", "ga", "is", "vi", "az", "so", "af", "cy"),
    ),
    "Cyrillic": ("ru", "uk", "bg", "sr", "kk"),
    "Arabic, Hebrew": ("ar", "fa", "ur", "he"),
    "South Asia": ("hi", "ne", "bn", "ta", "te"),
    "Thai, Lao, Burmese": ("th", "lo", "my"),
    "East Asia": ("zh", "ja", "ko"),
    "other": ("el", "ka", "hy", "am"),
}


class Table:
    """Shown by a notebook as an HTML table. A cell is anything with a str, or (text, code of its language)."""

    def __init__(self, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        self.head, self.rows = head, [list(row) for row in rows]

    def _repr_html_(self) -> str:
        style = "style='text-align: left'"
        lines = ["".join(f"<th {style}>{escape(name)}</th>" for name in self.head)] if self.head else []
        for row in self.rows:
            pairs = [cell if isinstance(cell, tuple) else (cell, "en") for cell in row]
            shown = [(escape(str(text)).replace("\n", "<br>"), language) for text, language in pairs]
            lines.append("".join(f"<td {style} dir='auto' lang='{code}'>{text}</td>" for text, code in shown))
        return f"<table><tr>{'</tr><tr>'.join(lines)}</tr></table>"

    def __repr__(self) -> str:
        return f"A table of {len(self.rows)} rows: {', '.join(self.head)}"
