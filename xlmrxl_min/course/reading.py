"""The course as web pages to read: `python -m xlmrxl_min course read FOLDER`.

Every page stands alone: no server, no network, and no script but those of the interactive pages, each in its own
sandboxed frame. Formulas are MathML, which browsers render by themselves.
"""

from __future__ import annotations

import base64
import html
import os
import re
import textwrap
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote

from latex2mathml.converter import convert
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments import formatters, highlight, lexers, util  # type: ignore[import-untyped]
from tqdm import tqdm

from ..files import explain_errors, make_folder
from .notebooks import (
    FOLDER,
    GLOSSARY,
    ROOT,
    anchor,
    captions,
    card,
    fragment,
    headings,
    hide_answers,
    linked_terms,
    list_notebooks,
    prose,
    read_notebook,
    sections,
    source,
    title,
    unwrap,
)

NAME = "Understanding XLM-RoBERTa-XL"  # the title of the index page, by which an earlier version is recognised
FORMATTER = formatters.HtmlFormatter()
CODE_STYLES = {
    "print, (prefers-color-scheme: light)": "default",
    "screen and (prefers-color-scheme: dark)": "github-dark",
}
STYLE = Path(__file__).with_name("reading.css").read_text(encoding="utf-8") + "".join(
    f"@media {medium} {{\n{formatters.HtmlFormatter(style=name).get_style_defs('main .highlight')}\n}}\n"
    for medium, name in CODE_STYLES.items()
)
INTRODUCTION = f"""# {NAME}

A course of thirteen notebooks on [XLM-RoBERTa-XL](https://arxiv.org/abs/2105.00572) (Goyal et al. 2021), a multilingual
encoder with 3.5 billion parameters: what each part computes, why it is there, and what it does in a trained model. You
predict, see the result, and write the part yourself. At the end your own file loads trained weights, gives the logits
of the library, and writes text.

![The model: tokens, embeddings, blocks of attention and feed-forward, LayerNorm, LM head](model.png)

**For whom.** You know the basics of PyTorch: tensors, modules, a training loop. A laptop without a GPU is enough.

**In which order.** 00 is a tour of five minutes. 01 to 06 build the model, each on the one before. 07 to 12 can be read
in any order after that. Plan about an hour for each notebook with its steps and exercises, 15 to 20 in all.

**How to use these pages.** They are for reading. Results and answers are folded: guess first, then open them. Figures
that can be clicked, typed into or hovered over work here, too, without a network. Each notebook has a summary on one
sheet of paper, to print. To run and change the code, get the repository: its [README](../README.md#start) has the two
commands.

## The notebooks
"""
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
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


def page_of(file: Path) -> str:
    """The page for a file of the repository."""
    return f"{file.stem}.html" if file.suffix == ".ipynb" else f"source/{file.relative_to(ROOT).as_posix()}.html"


def render_code(text: str, name: str = "cell.py") -> str:
    try:
        lexer = lexers.get_lexer_for_filename(name)
    except util.ClassNotFound:
        lexer = lexers.TextLexer()
    return highlight(text, lexer, FORMATTER)


def render_formula(latex: str, display: str = "inline") -> str:
    latex = latex.replace(r"\arg\max", r"\text{arg max}")  # two things that latex2mathml leaves as they are
    latex = re.sub(r"\\text\{.*?\}", lambda match: match[0].replace(r"\_", "_"), latex)
    return convert(latex, display=display)


def render_figure(output: dict[str, Any], alt: str) -> str:
    image = "".join(output["data"]["image/png"]).replace("\n", "")
    width = output["metadata"].get("image/png", {}).get("width")
    size = f' width="{width}"' if width else ""
    return f'<img src="data:image/png;base64,{image}" alt="{html.escape(alt)}"{size}>'


def find_target(url: str, file: Path) -> Path:
    """The file that a link or a picture of `file` leads to. ValueError if there is none."""
    target = (file.parent / unquote(url)).resolve()
    if not target.is_file():
        raise ValueError(f"{file.name} leads to {url}, and there is no such file.")
    return target


class Renderer(IPythonRenderer):
    """Markdown of a file to HTML of a page: formulas as MathML, links as links between pages."""

    def __init__(self, site: Site, file: Path, page: str) -> None:
        super().__init__(escape=False)
        self.site, self.file, self.page = site, file, page

    def link(self, text: str, url: str, title: str | None = None) -> str:
        return super().link(text, self.site.link(url, self.file, self.page), title)

    def image(self, text: str, url: str, title: str | None = None) -> str:
        data = base64.b64encode(find_target(url, self.file).read_bytes()).decode("ascii")
        return super().image(text, f"data:image/png;base64,{data}", title)

    def paragraph(self, text: str) -> str:
        return f"<div>{text}</div>\n" if re.fullmatch("<img [^>]*>", text) else super().paragraph(text)

    def heading(self, text: str, level: int, **_: Any) -> str:
        name = anchor(html.unescape(re.sub(r"<[^>]+>", "", text)))
        if self.file.suffix == ".md":  # GitHub's form
            name = re.sub(r"[^\w-]", "", name).lower()
        return f'<h{level} id="{html.escape(name)}">{text}</h{level}>\n'

    def inline_math(self, body: str) -> str:
        return render_formula(body)

    def block_math(self, body: str) -> str:
        return render_formula(body, display="block")


class Site:
    """The pages, which link to one another: one for each notebook, and one for each file that a page links to."""

    def __init__(self) -> None:
        self.files = [*list_notebooks(), GLOSSARY, ROOT / "README.md"]  # grows while pages are made
        self.pages: dict[str, str] = {}

    def link(self, url: str, file: Path, page: str) -> str:
        """A link of `file` as a link of `page`; its target becomes a page, too."""
        if re.match(r"[a-z]+:", url) or (url.startswith("#") and page == page_of(file)):
            return url
        path, _, end = url.partition("#")
        target = find_target(path, file) if path else file
        if target not in self.files:
            self.files.append(target)
        return os.path.relpath(page_of(target), os.path.dirname(page)) + (end and f"#{end}")

    def render(self, text: str, file: Path, page: str = "") -> str:
        return MarkdownWithMath(renderer=Renderer(self, file, page or page_of(file))).render(text)

    def add(self, page: str, name: str, body: str, kind: str, aside: str = "") -> None:
        self.pages[page] = PAGE.format(name=html.escape(name), style=STYLE, kind=kind, aside=aside, body=body)

    def render_cell(self, cell: dict[str, Any], file: Path) -> Iterator[str]:
        if cell["cell_type"] == "markdown":
            yield self.render(source(cell), file)
            return
        yield render_code(source(cell))
        alts, is_below_figure = iter(captions(cell)), False
        for is_stream, outputs in groupby(cell["outputs"], lambda output: output["output_type"] == "stream"):
            if is_stream:
                printed = "".join("".join(output["text"]) for output in outputs).strip("\n")
                first, *others = re.split(r"\n\s*\n", printed, maxsplit=1)
                if is_below_figure and " / " not in unwrap(first):
                    yield f"<p class=caption>{html.escape(unwrap(first))}</p>"
                    printed = "".join(others)
                kind = " class=columns" if re.search(r"\S {2,}\S", printed) else ""
                yield f"<pre{kind}>{html.escape(printed)}</pre>" if printed.strip() else ""
                continue
            for output in outputs:
                is_below_figure = "image/png" in output["data"]
                data = {kind: "".join(lines) for kind, lines in output["data"].items()}
                if "image/png" in data:
                    yield f"<div>{render_figure(output, next(alts))}</div>"
                elif "text/html" in data:
                    shown = re.sub(r'(<iframe [^>]*?) onload="[^"]*"', r"\1", data["text/html"])  # it is for JupyterLab
                    yield f"<div>{shown}</div>"
                elif "text/markdown" in data:
                    yield self.render(data["text/markdown"], file)
                else:
                    yield f"<pre>{html.escape(data['text/plain'])}</pre>"

    def add_notebook(self, file: Path) -> None:
        notebook, page = read_notebook(file), page_of(file)
        results = hide_answers(notebook)
        cells = [list(self.render_cell(cell, file)) for cell in notebook["cells"]]
        for i in results:
            code, *outputs = cells[i]
            if any(outputs):
                cells[i] = [code, "<details class=result><summary>Show the result</summary>", *outputs, "</details>"]
        body = "\n".join(part for parts in cells for part in parts)
        recap = "" if file == GLOSSARY else f'<a href="recap/{page}">On one sheet of paper</a>\n'
        contents = "".join(self.render(f"[{name}]({fragment(name)})", file) for name in sections(notebook))
        aside = f'<nav>\n<a href="index.html">The course</a>\n{recap}{contents}</nav>\n'
        self.add(page, title(file).capitalize(), body, "page", aside)

    def add_source(self, file: Path) -> None:
        page, name, text = page_of(file), file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")
        body = self.render(text, file) if file.suffix == ".md" else f"<h1>{name}</h1>\n{render_code(text, file.name)}"
        index = os.path.relpath("index.html", os.path.dirname(page))
        self.add(page, name, body, "page", f'<nav><a href="{index}">The course</a></nav>\n')

    def add_recap(self, file: Path, new_terms: list[str]) -> None:
        """A notebook on one sheet of paper: abilities, formulas and figures, what to remember, exercises, terms."""
        notebook, page = read_notebook(file), f"recap/{file.stem}.html"
        text = "\n".join(prose(notebook))
        lines = [f"# {headings(notebook)[0][1]}", f"**You can now** {card(text)['You will be able to']}."]
        lines += ["## What you saw"]
        for section, shown in formulas_and_figures(notebook).items():
            lines += [f"**{section}**", *shown]
        end = text.split("## What to remember\n\n")[1].split("\n\n")
        lines += ["## What to remember", *(part for part in end if part[0] in "-|"), "## Your turn"]
        task = r"^\*\*(Exercise \d+)\*\* \(([^)]+)\)\. (.{60,}?[.?])\s"  # up to the first end of a sentence
        tasks = re.findall(task, text, flags=re.DOTALL | re.MULTILINE)
        lines += [f"**{name}** ({effort}): {begin}" for name, effort, begin in tasks]
        terms = " · ".join(f"[{name}]({GLOSSARY.name}{fragment(name)})" for name in new_terms)
        lines += ["## New words", terms] if terms else []
        self.add(page, f"{title(file).capitalize()}, in short", self.render("\n\n".join(lines), file, page), "recap")

    def add_index(self) -> None:
        parts = [INTRODUCTION]
        for file in list_notebooks():
            rows = card(prose(read_notebook(file))[0])
            recap = f'<a href="recap/{page_of(file)}">on one sheet of paper</a>'
            parts += [f"### [{title(file)}]({file.name})", f"You will be able to {rows['You will be able to']}."]
            parts += [f"Time: {rows['Time and memory']}. In short: {recap}."]
        parts += [
            f"## More\n\n[Glossary]({GLOSSARY.name}): every term of the course. [README](../README.md): the library."
        ]
        self.add("index.html", NAME, self.render("\n\n".join(parts), FOLDER / "index.ipynb"), "index")


def formulas_and_figures(notebook: dict[str, Any]) -> dict[str, list[str]]:
    """For each section its displayed formulas and its figures with their captions, as Markdown."""
    found: dict[str, list[str]] = {}
    section = ""
    for cell in notebook["cells"]:
        figures = [output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
        for figure, caption in zip(figures, captions(cell), strict=True):
            short = html.escape(textwrap.shorten(caption, 200, placeholder=" …"))
            found.setdefault(section, []).append(f"<p>{render_figure(figure, caption)}{short}</p>")
        if cell["cell_type"] == "markdown":
            for part in re.split(r"^(?=## )", source(cell), flags=re.MULTILINE):
                section = part.splitlines()[0][3:] if part.startswith("## ") else section
                for formula in re.findall(r"\$\$(.+?)\$\$", part, flags=re.DOTALL):
                    found.setdefault(section, []).extend(f"$${one}$$" for one in formula.split(r"\qquad"))
    found.pop("", None)  # the drawing of the whole model
    return found


def read(folder: Path) -> None:
    """Write the pages into `folder`. ValueError if it exists and is not an earlier version, which is replaced."""
    index = folder / "index.html"
    if folder.exists() and not (index.is_file() and f"<title>{NAME}</title>" in index.read_text(encoding="utf-8")):
        raise ValueError(f"{folder} is there already and is no reading version; name a new folder.")
    site, known = Site(), set()
    for file in list_notebooks():
        terms = linked_terms(read_notebook(file))
        site.add_recap(file, [name for name in terms if name not in known])
        known.update(terms)
    site.add_index()
    for file in tqdm(site.files, unit=" pages"):
        (site.add_notebook if file.suffix == ".ipynb" else site.add_source)(file)
    with explain_errors(folder), TemporaryDirectory(dir=make_folder(folder.parent), suffix=".draft") as draft:
        for page, text in site.pages.items():
            path = Path(draft, "new", page)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        Path(draft, "new", ".nojekyll").touch()  # GitHub Pages would leave out files whose names begin with _
        old = Path(draft, "old")
        try:
            if folder.exists():
                folder.rename(old)
            Path(draft, "new").rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise
    print(f"{len(site.pages)} pages: open {folder / 'index.html'}")
