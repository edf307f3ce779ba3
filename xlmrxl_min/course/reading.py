"""The course as pages to read: `python -m xlmrxl_min.course.notebooks read FOLDER`.

Every page stands alone: no server, no network, no script. Formulas are MathML, which browsers draw by themselves.
"""

from __future__ import annotations

import base64
import html
import os
import re
import tempfile
import textwrap
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from latex2mathml.converter import convert
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound
from tqdm import tqdm

from .notebooks import (
    GLOSSARY,
    HERE,
    ROOT,
    anchor,
    card,
    figures,
    fragment,
    headings,
    load,
    notebooks,
    prose,
    sections,
    terms_of,
    title,
)
from .notebooks import source as source_of

NAME = "Understanding XLM-RoBERTa-XL"  # the title of the course, and how a former reading version is known
CODE = HtmlFormatter()
STYLE = Path(__file__).with_name("reading.css").read_text(encoding="utf-8") + CODE.get_style_defs(".highlight")
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}</title>
<style>{style}</style>
</head>
<body class="{kind}">
{aside}<main>
{body}
</main>
</body>
</html>
"""


def address(file: Path) -> str:
    """The page of a file of the repository."""
    return f"{file.stem}.html" if file.suffix == ".ipynb" else f"source/{file.relative_to(ROOT).as_posix()}.html"


def code(text: str, name: str = "cell.py") -> str:
    try:
        lexer = get_lexer_for_filename(name)
    except ClassNotFound:
        lexer = TextLexer()
    return highlight(text, lexer, CODE)


def meant(url: str, file: Path) -> Path:
    """The file that a link or a picture of `file` leads to."""
    target = (file.parent / unquote(url)).resolve()
    if not target.is_file():
        raise ValueError(f"{file.name} leads to {url}, and there is no such file.")
    return target


class Renderer(IPythonRenderer):
    """Markdown of a file as HTML of a page: formulas as MathML, links as links between pages."""

    def __init__(self, site: Site, file: Path, page: str) -> None:
        super().__init__(escape=False)
        self.site, self.file, self.page = site, file, page

    def link(self, text: str, url: str, title: str | None = None) -> str:
        return super().link(text, self.site.link(url, self.file, self.page), title)

    def image(self, text: str, url: str, title: str | None = None) -> str:
        picture = base64.b64encode(meant(url, self.file).read_bytes()).decode("ascii")
        return super().image(text, f"data:image/png;base64,{picture}", title)

    def heading(self, text: str, level: int, **_: Any) -> str:
        name = anchor(html.unescape(re.sub(r"<[^>]+>", "", text)))
        if self.file.suffix == ".md":  # GitHub's form
            name = re.sub(r"[^\w-]", "", name).lower()
        return f'<h{level} id="{html.escape(name)}">{text}</h{level}>\n'

    def inline_math(self, body: str) -> str:
        return mathml(body)

    def block_math(self, body: str) -> str:
        return mathml(body, display="block")


def mathml(formula: str, display: str = "inline") -> str:
    formula = formula.replace(r"\arg\max", r"\text{arg max}")  # two things that latex2mathml leaves as they are
    formula = re.sub(r"\\text\{.*?\}", lambda found: found[0].replace(r"\_", "_"), formula)
    return convert(formula, display=display)


class Site:
    """Pages that link to one another: one for each notebook, and one for each file that a page links to."""

    def __init__(self) -> None:
        self.files = [*notebooks(), GLOSSARY, ROOT / "README.md"]  # grows while pages are made
        self.pages: dict[str, str] = {}

    def link(self, url: str, file: Path, page: str) -> str:
        """What a link of `file` is on a page; what it leads to becomes a page, too."""
        if re.match(r"[a-z]+:", url) or (url.startswith("#") and page == address(file)):
            return url
        path, _, end = url.partition("#")
        target = meant(path, file) if path else file
        if target not in self.files:
            self.files.append(target)
        return os.path.relpath(address(target), os.path.dirname(page)) + (end and f"#{end}")

    def text(self, text: str, file: Path, page: str = "") -> str:
        return MarkdownWithMath(renderer=Renderer(self, file, page or address(file))).render(text)

    def add(self, page: str, name: str, body: str, kind: str, aside: str = "") -> None:
        self.pages[page] = PAGE.format(name=html.escape(name), style=STYLE, kind=kind, aside=aside, body=body)

    def cell(self, cell: dict[str, Any], file: Path) -> Iterator[str]:
        if cell["cell_type"] == "markdown":
            yield self.text(source_of(cell), file)
            return
        yield code(source_of(cell))
        sentences = iter(figures(cell))
        for is_stream, outputs in groupby(cell["outputs"], lambda output: output["output_type"] == "stream"):
            if is_stream:
                printed = "".join("".join(output["text"]) for output in outputs).strip("\n")
                yield f"<pre>{html.escape(printed)}</pre>" if printed.strip() else ""
                continue
            for data in ({kind: "".join(lines) for kind, lines in output["data"].items()} for output in outputs):
                if "image/png" in data:
                    picture = data["image/png"].replace("\n", "")
                    yield f'<img src="data:image/png;base64,{picture}" alt="{html.escape(next(sentences))}">'
                elif "<iframe" in data.get("text/html", ""):  # it would need a script
                    yield f"<p class=note>Something to explore, in the notebook: {html.escape(data['text/plain'])}.</p>"
                elif "text/html" in data:
                    yield f"<div>{data['text/html']}</div>"
                elif "text/markdown" in data:
                    yield self.text(data["text/markdown"], file)
                else:
                    yield f"<pre>{html.escape(data['text/plain'])}</pre>"

    def add_notebook(self, file: Path) -> None:
        notebook, page = load(file), address(file)
        body = "\n".join(part for cell in notebook["cells"] for part in self.cell(cell, file))
        recap = "" if file == GLOSSARY else f'<a href="recap/{page}">On one sheet of paper</a>\n'
        contents = "".join(self.text(f"[{name}]({fragment(name)})", file) for name in sections(notebook))
        aside = f'<nav>\n<a href="index.html">The course</a>\n{recap}{contents}</nav>\n'
        self.add(page, title(file).capitalize(), body, "page", aside)

    def add_source(self, file: Path) -> None:
        page, name, text = address(file), file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")
        body = self.text(text, file) if file.suffix == ".md" else f"<h1>{name}</h1>\n{code(text, file.name)}"
        home = os.path.relpath("index.html", os.path.dirname(page))
        self.add(page, name, body, "page", f'<nav><a href="{home}">The course</a></nav>\n')

    def add_recap(self, file: Path, new: list[str]) -> None:
        """A notebook on one sheet of paper: what one can do now, saw, should remember, can practise, can look up."""
        notebook, page = load(file), f"recap/{file.stem}.html"
        text = "\n".join(prose(notebook))
        able = card(text)["You will be able to"]
        lines = [f"# {headings(notebook)[0][1]}", f"**You can now** {able}.", "## What you saw"]
        for section, shown in seen(notebook).items():
            lines += [f"**{section}**", *shown] if shown else []
        end = text.split("## What to remember\n\n")[1].split("\n\n")
        lines += ["## What to remember", *(part for part in end if part[0] in "-|"), "## Your turn"]
        task = r"^\*\*(Exercise \d+)\*\* \(([^)]+)\)\. (.{60,}?[.?])\s"  # up to the first end of a sentence
        tasks = re.findall(task, text, flags=re.DOTALL | re.MULTILINE)
        lines += [f"**{name}** ({effort}): {begin}" for name, effort, begin in tasks]
        words = " · ".join(f"[{name}]({GLOSSARY.name}{fragment(name)})" for name in new)
        lines += ["## New words", words] if new else []
        self.add(page, f"{title(file).capitalize()}, in short", self.text("\n\n".join(lines), file, page), "recap")

    def add_index(self) -> None:
        lines = [f"# {NAME}\n", "| | you will be able to | time and memory |", "|---|---|---|"]
        for file in notebooks():
            rows, sheet = card(prose(load(file))[0]), f'<a href="recap/{address(file)}">on one sheet</a>'
            able, effort = rows["You will be able to"], rows["Time and memory"]
            lines.append(f"| [{title(file)}]({file.name})<br>{sheet} | {able} | {effort} |")
        lines += [f"\nEvery word of the course: [glossary]({GLOSSARY.name}). The project: [README](../README.md)."]
        body = self.text("\n".join(lines), HERE / "index.ipynb")
        self.add("index.html", NAME, body, "index")


def seen(notebook: dict[str, Any]) -> dict[str, list[str]]:
    """For each section its formulas and the sentences of its figures, as Markdown."""
    found: dict[str, list[str]] = {}
    section = ""
    for cell in notebook["cells"]:
        for sentence in figures(cell):
            short = textwrap.shorten(sentence, 400, placeholder=" …")
            found.setdefault(section, []).append(re.sub(r"([\\`*_$<>\[\]|~#])", r"\\\1", short))
        if cell["cell_type"] == "markdown":
            for part in re.split(r"^(?=## )", source_of(cell), flags=re.MULTILINE):
                section = part.splitlines()[0][3:] if part.startswith("## ") else section
                for formula in re.findall(r"\$\$(.+?)\$\$", part, flags=re.DOTALL):
                    found.setdefault(section, []).extend(f"$${one}$$" for one in formula.split(r"\qquad"))
    return found


def read(folder: Path) -> None:
    """Write the reading version into `folder`: a new one, or a former one, replaced as a whole when all is done."""
    index = folder / "index.html"
    if folder.exists() and not (index.is_file() and f"<title>{NAME}</title>" in index.read_text(encoding="utf-8")):
        raise ValueError(f"{folder} is there already and is no reading version; name a new folder.")
    site, known = Site(), set()
    for file in notebooks():
        new = [name for name in terms_of(load(file)) if name not in known]
        known.update(new)
        site.add_recap(file, new)
    site.add_index()
    for file in tqdm(site.files, unit=" pages"):
        (site.add_notebook if file.suffix == ".ipynb" else site.add_source)(file)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
        for page, text in site.pages.items():
            path = Path(draft, "new", page)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        old = Path(draft, "old")
        if folder.exists():
            folder.rename(old)
        try:
            Path(draft, "new").rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    print(f"{len(site.pages)} pages: open {folder / 'index.html'}")
