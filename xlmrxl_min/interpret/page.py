"""Self-contained pages for browsers and notebooks: a skeleton, `page.html`, which each page fills with its part."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from ..files import atomic_write, to_path

FOLDER = Path(__file__).parent
PARTS = re.compile(r"<style>\n(.*)</style>\n(.*)<script>\n(.*)</script>\n", re.DOTALL)  # of a page's own file
SLOT = re.compile(r"\{\{(\w+)\}\}")
ONLOAD = """const tell = () => this.contentWindow.postMessage(document.body.dataset.jpThemeLight, "*"); tell();
new MutationObserver(tell).observe(document.body, {attributeFilter: ["data-jp-theme-light"]})"""  # JupyterLab's theme


@dataclass(frozen=True)
class Page:
    """A page. Shows itself as the last line of a notebook cell; `save` writes it for a browser."""

    html: str = field(repr=False)
    title: str
    height: int = field(repr=False)  # in pixels, in a notebook

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page atomically and return its path. Raises OSError if it cannot be written."""
        path = to_path(path)
        with atomic_write(path) as (draft,):
            draft.write_bytes(self.html.encode("utf-8"))
        return path

    def _repr_html_(self) -> str:
        """The page in a sandboxed frame: separate styles and names, and no rights but to run its script."""
        page, title, onload = (in_ascii(text) for text in (self.html, self.title, ONLOAD))
        frame = f'sandbox="allow-scripts" title="{title}" style="width: 100%; height: {self.height}px; border: 0"'
        return f'<iframe srcdoc="{page}" {frame} onload="{onload}"></iframe>'


def make_page(name: str, data: object, title: str, height: int) -> Page:
    """The page whose style, body and script are in `{name}.html`; the script finds `data` as DATA."""
    skeleton, own = ((FOLDER / f"{x}.html").read_text(encoding="utf-8") for x in ("page", name))
    match = PARTS.fullmatch(own)
    assert match is not None
    parts = dict(zip(("style", "body", "script"), match.groups(), strict=True))
    template = SLOT.sub(lambda slot: parts.get(slot[1], slot[0]), skeleton)
    values = {"title": in_ascii(title), "data": script_json(data)}
    return Page(SLOT.sub(lambda slot: values[slot[1]], template), title, height)


def in_ascii(text: str) -> str:
    return escape(text).encode("ascii", "xmlcharrefreplace").decode()


def script_json(data: object) -> str:
    """JSON in ASCII in which no HTML parser finds a tag, an entity or the end of the script."""
    text = json.dumps(data, separators=(",", ":"), default=int)  # numpy's integers, too
    return re.sub("[<>&]", lambda letter: f"\\u{ord(letter[0]):04x}", text)
