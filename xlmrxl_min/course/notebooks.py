"""The notebooks as one course: linked, framed, timed, and made into pages.

python -m xlmrxl_min.course.notebooks tidy                 glossary links, header cards, footers; run it after every change
python -m xlmrxl_min.course.notebooks run 00 03            execute from top to bottom, in place; keeps the seconds
python -m xlmrxl_min.course.notebooks read FOLDER          the course as pages to read: no server, no network, no script
python -m xlmrxl_min.course.notebooks badges OWNER/NAME    Markdown for Binder and Colab, for a repository on GitHub
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

HERE = Path(__file__).resolve().parents[2] / "notebooks"
ROOT = HERE.parent
GLOSSARY = HERE / "glossary.ipynb"
CARD = ("You will be able to", "You need", "Time and memory", "Paper", "Papers", "Contents", "Before, next")
MAP = "[map of the course](00_start_here.ipynb#The-map-of-the-course)"


# ---- notebooks


def notebooks() -> list[Path]:
    return sorted(HERE.glob("[0-9][0-9]_*.ipynb"))


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def dumped(notebook: dict[str, Any]) -> str:
    """As Jupyter writes it, to the byte."""
    return json.dumps(notebook, ensure_ascii=False, indent=1) + "\n"


def write_whole(path: Path, text: str) -> None:
    """The old file stays until the new one is whole."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, encoding="utf-8", newline="\n")
    draft.replace(path)


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def prose(notebook: dict[str, Any]) -> list[str]:
    return [source(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]


def headings(notebook: dict[str, Any]) -> list[tuple[int, str]]:
    """Level and text of each, in order."""
    text = re.sub(r"^```.*?^```", "", "\n".join(prose(notebook)), flags=re.DOTALL | re.MULTILINE)
    return [(len(marks), name) for marks, name in re.findall(r"^(#+) (.+)$", text, flags=re.MULTILINE)]


def sections(notebook: dict[str, Any]) -> list[str]:
    return [name for level, name in headings(notebook) if level == 2]


def anchor(heading: str) -> str:
    """The id that Jupyter gives to a heading: its text with dashes for spaces."""
    return re.sub(r"[*`]", "", heading).replace(" ", "-")


def fragment(heading: str) -> str:
    """An anchor as the end of a link; what would end the link too early is encoded."""
    return "#" + re.sub(r'[()<>"%]', lambda found: quote(found[0]), anchor(heading))


def figures(cell: dict[str, Any]) -> list[str]:
    """For each figure of a cell its sentence: what is printed next, up to a blank line, or else what came before."""
    said, before = [], ""
    for output in reversed(cell.get("outputs", [])):
        if "image/png" in output.get("data", {}):
            said, before = [before, *said], ""
        before = "".join(output.get("text", [])) + before
    said = [text if text.strip() else before for text in said]
    return [unwrapped(re.split(r"\n\s*\n", text.strip())[0]) for text in said]


def unwrapped(text: str) -> str:
    """On one line; a slash stands for the end of a line that is not one of a sentence wrapped at 96 characters."""
    lines = [" ".join(line.split()) for line in text.splitlines()] or [""]
    joined = lines[0]
    for line, after in pairwise(lines):
        was_wrapped = len(line) <= 96 < len(f"{line} {after.split()[0]}")
        joined += (" " if was_wrapped else " / ") + after
    return joined


# ---- tidy: glossary links, header cards, footers

LINKED = re.compile(r"\[([^\[\]]+)\]\(glossary\.ipynb#([^)]*)\)")
FOOTER = re.compile(r"\s*\n\[(?:← |map of the course).*\Z")
NO_TERMS_IN = "|".join(
    (
        r"^```.*?^```|(?P<ticks>`+).+?(?P=ticks)",  # code
        r"\$\$.+?\$\$|\$[^$]+\$",  # formulas
        r"!?\[[^\]]*\]\([^)]*\)|https?://\S+",  # links
        r"^#.*?$|^\|.*?$",  # headings and tables
        r"<summary>.*?</summary>|<[^>]+>",  # HTML
    )
)


def glossary() -> dict[str, list[str]]:
    """Each term with its spellings: those after "In the notebooks:", or the term itself."""
    text = "\n".join(prose(load(GLOSSARY)))
    found = {}
    for entry in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        listed = re.search(r"^In the notebooks: (.+)$", entry, flags=re.MULTILINE)
        name = entry.splitlines()[0]
        found[name] = listed[1].split(", ") if listed else [name]
    return found


def pattern(spelling: str) -> str:
    """Whole words, the first letter large or small, or in a plain plural; a *word* only where it is emphasised."""
    words = spelling.strip("*").split()
    text = "[ \n]".join(map(re.escape, words))
    text = f"(?i:{text[0]}){text[1:]}"
    text = f"{text[:-1]}(?:y|ies)" if re.search("[^aeiou]y$", text) else f"{text}(?:s|es)?"
    return rf"(?<=\*){text}(?=\*)" if spelling[0] == "*" else rf"(?<![\w-]){text}(?![\w-])"


def with_terms(texts: list[str], terms: dict[str, list[str]]) -> list[str]:
    """The first use of each term becomes a link; of several terms that begin at one place the longest counts."""
    spelled = sorted(((spelling, name) for name in terms for spelling in terms[name]), key=lambda one: -len(one[0]))
    names = {f"n{i}": name for i, (_, name) in enumerate(spelled)}
    ways = "|".join(f"(?P<n{i}>{pattern(spelling)})" for i, (spelling, _) in enumerate(spelled))
    finder = re.compile(f"(?P<not_here>{NO_TERMS_IN})|{ways}", flags=re.DOTALL | re.MULTILINE)
    met = {"not_here"}

    def link(found: re.Match[str]) -> str:
        name = names.get(found.lastgroup, "not_here")
        if name in met:
            return found[0]
        met.add(name)
        return f"[{found[0]}]({GLOSSARY.name}{fragment(name)})"

    return [finder.sub(link, text) for text in texts]


def terms_of(notebook: dict[str, Any]) -> list[str]:
    """The glossary's terms that a notebook links to, in its order."""
    names = {fragment(name): name for name in glossary()}
    return [names[f"#{end}"] for text in prose(notebook) for _, end in LINKED.findall(text)]


def around(path: Path) -> str:
    """Where to go from here: the notebook before, the map, the glossary, the next notebook."""
    paths = notebooks()
    here = paths.index(path)
    before = [f"[← {title(one)}]({one.name})" for one in paths[:here][-1:]]
    after = [f"[{title(one)} →]({one.name})" for one in paths[here + 1 :][:1]]
    return " · ".join([*before, MAP, f"[glossary]({GLOSSARY.name})", *after])


def title(path: Path) -> str:
    return path.stem.replace("_", " ").replace("gpu", "GPU")


def card(text: str) -> dict[str, str]:
    """The rows of the table in a notebook's first cell."""
    return dict(re.findall(r"^\| \*\*(.+?)\*\* \| (.*) \|$", text, flags=re.MULTILINE))


def with_card(path: Path, text: str, names: list[str]) -> str:
    """The first cell, with the card's rows in one order; Contents and "Before, next" are made anew."""
    rows = card(text) | {"Contents": " · ".join(f"[{name}]({fragment(name)})" for name in names)}
    rows["Before, next"] = around(path)
    if set(rows) not in ({*CARD} - {"Paper"}, {*CARD} - {"Papers"}):
        raise ValueError(f"The header card of {path.name} has the rows {', '.join(rows)}; it needs {', '.join(CARD)}.")
    table = "".join(f"| **{row}** | {rows[row]} |\n" for row in CARD if row in rows)
    return re.sub(r"(?<=\n\| \| \|\n\|---\|---\|\n)(?:\|.*\n)+", lambda _: table, text)


def tidied(path: Path) -> str:
    """The file of a notebook as it should be."""
    notebook = load(path)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    if notebook["cells"][-1] is not cells[-1]:
        raise ValueError(f"The last cell of {path.name} is code; the footer needs one with text.")
    texts = with_terms([LINKED.sub(r"\1", source(cell)) for cell in cells], glossary())
    texts[0] = with_card(path, texts[0], sections(notebook))
    texts[-1] = f"{FOOTER.sub('', texts[-1]).rstrip()}\n\n{around(path)}"
    for cell, text in zip(cells, texts, strict=True):
        cell["source"] = text.splitlines(keepends=True)
    return dumped(notebook)


def tidy() -> None:
    for path in notebooks():
        text = tidied(path)
        if text != path.read_text(encoding="utf-8"):
            write_whole(path, text)
            print(f"{path.name} is tidy again.")


# ---- run


def is_progress(output: dict[str, Any]) -> bool:
    """A bar of tqdm, or the line's end that came after it: once it is done it tells nothing. A warning does."""
    return output.get("name") == "stderr" and bool(re.search(r"\d%\||\A\s*\Z", output["text"]))


def whole(outputs: list[Any]) -> list[Any]:
    """What was printed in one go, in one piece; it comes in as many as the kernel found time for."""
    joined: list[Any] = []
    for output in outputs:
        if joined and "name" in output and output["name"] == joined[-1].get("name"):
            joined[-1]["text"] += output["text"]
        else:
            joined.append(output)
    return joined


def run(names: list[str]) -> None:
    """Execute notebooks in place; how long it took stands in their metadata."""
    import nbformat
    from nbclient import NotebookClient

    for name in names:
        paths = [path for path in notebooks() if name in (path.stem, path.name, path.stem[:2])]
        if not paths:
            raise ValueError(f"There is no notebook {name!r}; there are {', '.join(map(title, notebooks()))}.")
        notebook = nbformat.read(paths[0], as_version=4)
        resources = {"metadata": {"path": str(HERE)}}
        options = {"timeout": None, "record_timing": False, "store_widget_state": False}
        client = NotebookClient(notebook, resources=resources, **options)
        start = time.perf_counter()
        client.execute()
        seconds = max(1, round(time.perf_counter() - start))
        notebook.metadata["xlmrxl_min"] = {"run_seconds": seconds}
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # when each cell ran: of no use, and never twice the same
            if cell.cell_type == "code":
                cell.outputs = whole([output for output in cell.outputs if not is_progress(output)])
        write_whole(paths[0], nbformat.writes(notebook) + "\n")
        print(f"{paths[0].name}: {seconds} s")


# ---- badges


def badges(repository: str) -> str:
    """Markdown of a badge that opens the course on Binder, and one for each notebook on Colab.

    Binder builds environment.yml. Colab has a notebook only: there `%pip install git+https://github.com/OWNER/NAME`
    comes first.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ValueError(f"A repository on GitHub has the form OWNER/NAME; {repository!r} has not.")
    start = quote(f"lab/tree/notebooks/{notebooks()[0].name}", safe="")
    binder = f"https://mybinder.org/v2/gh/{repository}/HEAD?urlpath={start}"
    lines = [f"[![Binder](https://mybinder.org/badge_logo.svg)]({binder})"]
    for path in notebooks():
        colab = f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/{path.name}"
        image = "https://colab.research.google.com/assets/colab-badge.svg"
        lines.append(f"[![{title(path)} in Colab]({image})]({colab})")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("tidy")
    commands.add_parser("run").add_argument("names", nargs="+", metavar="NAME")
    commands.add_parser("read").add_argument("folder", type=Path)
    commands.add_parser("badges").add_argument("repository", metavar="OWNER/NAME")
    given = parser.parse_args()
    try:
        if given.command == "tidy":
            tidy()
        elif given.command == "run":
            run(given.names)
        elif given.command == "read":
            from .reading import read  # it needs nbconvert and latex2mathml, and the rest does not

            read(given.folder.resolve())
        else:
            print(badges(given.repository))
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
