"""The tools for the notebooks: copies to work in; glossary links, header cards and footers; execution; badges.

On the command line: `python -m xlmrxl_min course start`, `tidy`, `run 00 03`, `read FOLDER` (reading.py), `badges
OWNER/NAME`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..files import atomic_write

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "notebooks"
GLOSSARY = FOLDER / "glossary.ipynb"
MAP = "[map of the course](00_start_here.ipynb#The-map-of-the-course)"


# ---- reading notebooks


def list_notebooks(folder: Path = FOLDER) -> list[Path]:
    return sorted(folder.glob("[0-9][0-9]_*.ipynb"))


def read_notebook(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def to_json(notebook: dict[str, Any]) -> str:
    """As Jupyter writes it, byte for byte."""
    return json.dumps(notebook, ensure_ascii=False, indent=1) + "\n"


def write(path: Path, text: str) -> None:
    with atomic_write(path) as (draft,):
        draft.write_text(text, encoding="utf-8", newline="\n")


def title(path: Path) -> str:
    return path.stem.replace("_", " ").replace("gpu", "GPU")


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def prose(notebook: dict[str, Any]) -> list[str]:
    return [source(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]


def headings(notebook: dict[str, Any]) -> list[tuple[int, str]]:
    """Level and text of each heading, in order."""
    text = re.sub(r"^```.*?^```", "", "\n".join(prose(notebook)), flags=re.DOTALL | re.MULTILINE)
    return [(len(marks), name) for marks, name in re.findall(r"^(#+) (.+)$", text, flags=re.MULTILINE)]


def sections(notebook: dict[str, Any]) -> list[str]:
    return [name for level, name in headings(notebook) if level == 2]


def anchor(heading: str) -> str:
    """The id that Jupyter gives a heading: its text with dashes for spaces."""
    return re.sub(r"[*`]", "", heading).replace(" ", "-")


def fragment(heading: str) -> str:
    """The end of a link to a heading; characters that would end the link are encoded."""
    return "#" + re.sub(r'[()<>"%]', lambda match: quote(match[0]), anchor(heading))


def captions(cell: dict[str, Any]) -> list[str]:
    """The caption of each figure: the paragraph printed after it, or else the one printed before it."""
    found: list[str] = []
    printed = ""
    for output in reversed(cell.get("outputs", [])):
        if "image/png" in output.get("data", {}):
            found, printed = [printed, *found], ""
        printed = "".join(output.get("text", [])) + printed
    paragraphs = [re.split(r"\n\s*\n", (text if text.strip() else printed).strip())[0] for text in found]
    return [unwrap(text) for text in paragraphs]


def unwrap(text: str) -> str:
    """Put a paragraph on one line; a slash stands for a line break that does not come from wrapping at 96 columns."""
    lines = [" ".join(line.split()) for line in text.splitlines()] or [""]
    joined = lines[0]
    for line, after in pairwise(lines):
        was_wrapped = len(line) <= 96 < len(f"{line} {after.split()[0]}")
        joined += (" " if was_wrapped else " / ") + after
    return joined


# ---- start

PROMPT = "**Predict"
END_OF_RESULT = ("#", "**Exercise", "**Step")  # so does the next prompt
ALWAYS_RESULT = ("**You should see", "**Why")


def paragraphs(text: str) -> list[str]:
    """Split at blank lines, but not inside `<details>` and code blocks. Joined by blank lines they give `text`."""
    found: list[str] = []
    for part in re.split(r"\n\n(?!\n)", text):
        if found and (found[-1].count("<details") > found[-1].count("</details>") or found[-1].count("```") % 2):
            found[-1] += f"\n\n{part}"
        else:
            found.append(part)
    return found


def hide_answers(notebook: dict[str, Any]) -> list[int]:
    """Put what gives a prediction away into `<details>`; returns the indices of the code cells with the result.

    After the prompt and the code that follows it, the text is the answer, up to the next heading, prompt or exercise.
    The last of several paragraphs stays visible if more code or a prompt follows, as it introduces that. An answer that
    begins with `<details>` is left as it is.
    """
    cells, asked, is_answer, results = notebook["cells"], False, False, []
    for i, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            is_answer = asked
            results += [i] if asked else []
            continue
        answer: list[str] = []
        rest: list[str] = []
        for paragraph in paragraphs(source(cell)):
            if PROMPT in paragraph or paragraph.startswith(END_OF_RESULT):
                asked, is_answer = PROMPT in paragraph, False
            (answer if is_answer else rest).append(paragraph)
        after = rest or [source(cell) for cell in cells[i + 1 : i + 2] if cell["cell_type"] == "markdown"] or [""]
        is_last = after[0].startswith(END_OF_RESULT)
        if len(answer) > 1 and not is_last and not answer[-1].startswith(ALWAYS_RESULT):
            rest.insert(0, answer.pop())
        if answer and not answer[0].startswith("<details"):
            answer = ["<details><summary>Show the answer</summary>", *answer, "</details>"]
            cell["source"] = "\n\n".join([*answer, *rest]).splitlines(keepends=True)
    return results


def learner_copy(path: Path, folder: Path) -> str:
    """The file of a notebook as a learner opens it in `folder`: without outputs, and with the answers hidden."""
    notebook = read_notebook(path)
    hide_answers(notebook)
    root = quote(Path(os.path.relpath(ROOT, folder)).as_posix())
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
        else:
            cell["source"] = [line.replace("](../", f"]({root}/") for line in cell["source"]]
    return to_json(notebook)


def start(folder: Path) -> None:
    """Copy the notebooks into `folder`, to work in; what is there already is kept. ValueError for their own folder."""
    if folder.resolve() == FOLDER:
        raise ValueError(f"{folder} holds the notebooks themselves: name another folder for the copies.")
    kept = []
    for path in [*list_notebooks(), GLOSSARY]:
        copy, text = folder / path.name, learner_copy(path, folder)
        if not copy.exists():
            write(copy, text)
        elif copy.read_bytes() != text.encode():
            kept.append(copy.name)
    if kept:
        print(f"{folder} has these already, other than new copies, and they are kept: {', '.join(kept)}.")
        print("For a new copy of one, rename or delete yours, and run this command again.")
    print(f"Next: jupyter lab {shlex.quote(str(folder / list_notebooks()[0].name))}")


# ---- tidy

CARD = ("You will be able to", "You need", "Time and memory", "Paper", "Papers", "Contents", "Before, next")
GLOSSARY_LINK = re.compile(r"\[([^\[\]]+)\]\(glossary\.ipynb#([^)]*)\)")
FOOTER = re.compile(r"\s*\n\[(?:← |map of the course).*\Z")
NOT_LINKED = "|".join(
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
    terms = {}
    for entry in re.split(r"^### ", "\n".join(prose(read_notebook(GLOSSARY))), flags=re.MULTILINE)[1:]:
        spellings = re.search(r"^In the notebooks: (.+)$", entry, flags=re.MULTILINE)
        name = entry.splitlines()[0]
        terms[name] = spellings[1].split(", ") if spellings else [name]
    return terms


def spelling_pattern(spelling: str) -> str:
    """Match whole words, singular or plural, the first letter in either case; a *word* only where it is emphasised."""
    text = "[ \n]".join(map(re.escape, spelling.strip("*").split()))
    text = f"(?i:{text[0]}){text[1:]}"
    text = f"{text[:-1]}(?:y|ies)" if re.search("[^aeiou]y$", text) else f"{text}(?:s|es)?"
    return rf"(?<=\*){text}(?=\*)" if spelling[0] == "*" else rf"(?<![\w-]){text}(?![\w-])"


def link_terms(texts: list[str], terms: dict[str, list[str]]) -> list[str]:
    """Link the first use of each term to the glossary; of several terms that begin together the longest is linked."""
    pairs = sorted(((spelling, name) for name in terms for spelling in terms[name]), key=lambda pair: -len(pair[0]))
    names = {f"n{i}": name for i, (_, name) in enumerate(pairs)}
    patterns = "|".join(f"(?P<n{i}>{spelling_pattern(spelling)})" for i, (spelling, _) in enumerate(pairs))
    finder = re.compile(f"(?P<not_linked>{NOT_LINKED})|{patterns}", flags=re.DOTALL | re.MULTILINE)
    linked = set()

    def link(match: re.Match[str]) -> str:
        name = names.get(match.lastgroup or "")
        if name is None or name in linked:
            return match[0]
        linked.add(name)
        return f"[{match[0]}]({GLOSSARY.name}{fragment(name)})"

    return [finder.sub(link, text) for text in texts]


def linked_terms(notebook: dict[str, Any]) -> list[str]:
    """The glossary's terms that a notebook links to, in its order."""
    names = {fragment(name): name for name in glossary()}
    return [names[f"#{end}"] for text in prose(notebook) for _, end in GLOSSARY_LINK.findall(text)]


def navigation(path: Path) -> str:
    """Links to the notebook before, the map, the glossary, and the next notebook."""
    paths = list_notebooks()
    i = paths.index(path)
    before = [f"[← {title(one)}]({one.name})" for one in paths[:i][-1:]]
    after = [f"[{title(one)} →]({one.name})" for one in paths[i + 1 :][:1]]
    return " · ".join([*before, MAP, f"[glossary]({GLOSSARY.name})", *after])


def card(text: str) -> dict[str, str]:
    """The rows of the table in a notebook's first cell."""
    return dict(re.findall(r"^\| \*\*(.+?)\*\* \| (.*) \|$", text, flags=re.MULTILINE))


def update_card(path: Path, text: str, names: list[str]) -> str:
    """The first cell with new rows "Contents" and "Before, next". ValueError for missing or unknown rows."""
    rows = card(text) | {"Contents": " · ".join(f"[{name}]({fragment(name)})" for name in names)}
    rows["Before, next"] = navigation(path)
    if set(rows) not in ({*CARD} - {"Paper"}, {*CARD} - {"Papers"}):
        raise ValueError(f"The header card of {path.name} has the rows {', '.join(rows)}; it needs {', '.join(CARD)}.")
    table = "".join(f"| **{row}** | {rows[row]} |\n" for row in CARD if row in rows)
    return re.sub(r"(?<=\n\| \| \|\n\|---\|---\|\n)(?:\|.*\n)+", lambda _: table, text)


def tidy_text(path: Path) -> str:
    """The file of a notebook as it should be. ValueError if its last cell is code."""
    notebook = read_notebook(path)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    if notebook["cells"][-1] is not cells[-1]:
        raise ValueError(f"The last cell of {path.name} is code; the footer needs one with text.")
    texts = link_terms([GLOSSARY_LINK.sub(r"\1", source(cell)) for cell in cells], glossary())
    texts[0] = update_card(path, texts[0], sections(notebook))
    texts[-1] = f"{FOOTER.sub('', texts[-1]).rstrip()}\n\n{navigation(path)}"
    for cell, text in zip(cells, texts, strict=True):
        cell["source"] = text.splitlines(keepends=True)
    return to_json(notebook)


def tidy() -> None:
    """Update glossary links, header cards and footers; needed after every change of the text."""
    for path in list_notebooks():
        text = tidy_text(path)
        if text != path.read_text(encoding="utf-8"):
            write(path, text)
            print(f"{path.name} is updated.")


# ---- run


def is_progress(output: dict[str, Any]) -> bool:
    """Whether it is a progress bar of tqdm, or the line break after it; warnings are not."""
    return output.get("name") == "stderr" and bool(re.search(r"\d%\||\A\s*\Z", output["text"]))


def run(names: list[str], folder: Path = FOLDER) -> None:
    """Execute notebooks in place; the seconds it took are kept in their metadata. ValueError for an unknown name."""
    import nbformat
    from nbclient import NotebookClient
    from nbconvert.preprocessors.coalescestreams import CoalesceStreamsPreprocessor

    merger = CoalesceStreamsPreprocessor()  # a kernel sends what is printed in arbitrary pieces
    for name in names:
        paths = [path for path in list_notebooks(folder) if name in (path.stem, path.name, path.stem[:2])]
        if not paths:
            known = ", ".join(map(title, list_notebooks(folder)))
            raise ValueError(f"There is no notebook {name!r}; there are {known}.")
        notebook = nbformat.read(paths[0], as_version=4)
        resources = {"metadata": {"path": str(folder)}}
        client = NotebookClient(
            notebook, resources=resources, timeout=None, record_timing=False, store_widget_state=False
        )
        start = time.perf_counter()
        client.execute()
        seconds = max(1, round(time.perf_counter() - start))
        notebook.metadata["xlmrxl_min"] = {"run_seconds": seconds}
        for i, cell in enumerate(notebook.cells):
            cell.metadata.pop("execution", None)  # the time of day of each cell, different in every run
            if cell.cell_type == "code":
                cell.outputs = [output for output in cell.outputs if not is_progress(output)]
                merger.preprocess_cell(cell, {}, i)
        write(paths[0], nbformat.writes(notebook) + "\n")
        print(f"{paths[0].name}: {seconds} s")


# ---- badges


def badges(repository: str) -> str:
    """Markdown of a badge that opens the course on Binder, and of one for each notebook on Colab.

    Binder builds environment.yml. Colab opens a notebook only: there `%pip install git+https://github.com/OWNER/NAME`
    comes first. ValueError unless `repository` is OWNER/NAME.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ValueError(f"A repository on GitHub has the form OWNER/NAME; {repository!r} has not.")
    start = quote(f"lab/tree/notebooks/{list_notebooks()[0].name}", safe="")
    binder = f"https://mybinder.org/v2/gh/{repository}/HEAD?urlpath={start}"
    lines = [f"[![Binder](https://mybinder.org/badge_logo.svg)]({binder})"]
    for path in list_notebooks():
        colab = f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/{path.name}"
        image = "https://colab.research.google.com/assets/colab-badge.svg"
        lines.append(f"[![{title(path)} in Colab]({image})]({colab})")
    return "\n".join(lines)
