"""The learner's copies of the notebooks, and the reading version: no answer to a prediction is in sight."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from shutil import copytree, ignore_patterns
from urllib.parse import unquote

import pytest
from nbconvert import HTMLExporter

from xlmrxl_min.__main__ import main
from xlmrxl_min.course import notebooks as course
from xlmrxl_min.course.notebooks import FOLDER, GLOSSARY, hide_answers, list_notebooks, read_notebook, source

NOTEBOOKS = [*list_notebooks(), GLOSSARY]
FOLD = r"<details><summary>Show the answer</summary>\n\n(.*?)\n\n</details>(?:\n\n|\Z)"

each_notebook = pytest.mark.parametrize("name", [path.name for path in NOTEBOOKS])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    before = {path: path.read_bytes() for path in FOLDER.iterdir() if path.is_file()}
    folder = tmp_path_factory.mktemp("learner") / "my course"
    assert main(["course", "start", folder]) == 0
    assert {path: path.read_bytes() for path in FOLDER.iterdir() if path.is_file()} == before
    return folder


def markdown(text):
    return {"cell_type": "markdown", "source": text.splitlines(keepends=True)}


def texts(*cells):
    """The texts of the cells once answers are hidden; "code" stands for a code cell."""
    notebook = {
        "cells": [{"cell_type": "code", "source": ["1"]} if cell == "code" else markdown(cell) for cell in cells]
    }
    hide_answers(notebook)
    return [source(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]


def folded(text):
    return f"<details><summary>Show the answer</summary>\n\n{text}\n\n</details>"


class Folds(HTMLParser):
    """The texts of a page, each with the summaries of the folds that it is in."""

    def __init__(self, page):
        super().__init__()
        self.texts, self.folds, self.in_summary = [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.folds += [""] if tag == "details" else []
        self.in_summary = tag == "summary"
        if tag == "img":
            self.texts.append((f"image: {dict(attributes)['alt']}", list(self.folds)))

    def handle_endtag(self, tag):
        if tag == "details":
            self.folds.pop()
        self.in_summary = self.in_summary and tag != "summary"

    def handle_data(self, text):
        if self.in_summary:
            self.folds[-1] += text
        else:
            self.texts.append((text, list(self.folds)))

    def find(self, part):
        return next(folds for text, folds in self.texts if part in text)


# ---- the copies


def test_every_notebook_is_copied(folder):
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in NOTEBOOKS)


@each_notebook
def test_copy_differs_only_in_outputs_folds_and_links(folder, name):
    original, copy = read_notebook(FOLDER / name), read_notebook(folder / name)
    for old, new in zip(original["cells"], copy["cells"], strict=True):
        if old["cell_type"] == "code":
            assert new == old | {"outputs": [], "execution_count": None}
        else:
            text = re.sub(FOLD, r"\1\n\n", source(new), flags=re.DOTALL).rstrip("\n")
            assert re.sub(r"\]\((?!https:)[^)\s]*/(?=(?:xlmrxl_min|tests)/)", "](../", text) == source(old).rstrip("\n")
    assert original | {"cells": []} == copy | {"cells": []}


@each_notebook
def test_no_answer_is_in_sight(folder, name):
    """From the code after a prompt to the next heading or prompt, a cell shows one paragraph, which introduces more."""
    asked = has_run = False
    for cell in read_notebook(folder / name)["cells"]:
        if cell["cell_type"] == "code":
            has_run = asked
            continue
        shown = []
        for paragraph in re.sub("<details>.*?</details>", "", source(cell), flags=re.DOTALL).strip().split("\n\n"):
            if "**Predict" in paragraph or re.match(r"#|\*\*(?:Exercise|Step)", paragraph):
                asked, has_run = "**Predict" in paragraph, False
            shown += [paragraph] if has_run and paragraph else []
        assert len(shown) <= 1, shown
        assert not re.match(r"\*\*(?:You should see|Why)", "".join(shown)), shown


@each_notebook
def test_links_of_copies_lead_to_files(folder, name):
    for text in course.prose(read_notebook(folder / name)):
        for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]+`", "", text)):
            if not re.match("https?:|#", link):
                assert (folder / unquote(link.partition("#")[0])).is_file(), link


def test_links_are_unchanged_beside_the_package():
    text = course.learner_copy(list_notebooks()[0], course.ROOT / "my_course")
    assert "](../xlmrxl_min/model.py)" in text


def test_copy_as_html_hides_the_answers(folder):
    page = HTMLExporter().from_filename(str(folder / "00_start_here.ipynb"))[0]
    answer = Folds(page).find("nineteen tokens")
    assert answer == ["Show the answer"]
    assert Folds(page).find("You should see") == ["Show the answer"], "its markdown is rendered"
    assert "<strong>You should see</strong>" in page
    assert Folds(page).find("How many tokens are these") == []


# ---- what is hidden


def test_answer_ends_at_a_heading_a_prompt_and_an_exercise():
    for end in ("## Next", "**Predict.** And now?", "Look. **Predict.** And now?", "**Exercise 1** (easy)."):
        end += "\n\nMore."
        assert texts("**Predict.** How many?", "code", f"Ten.\n\n{end}")[1] == f"{folded('Ten.')}\n\n{end}"
    assert texts("**Predict.** How many?", "code", "Ten.\n\nAll.", "## Next")[1] == folded("Ten.\n\nAll.")
    assert texts("**Predict.** How many?", "## Next", "code", "Ten.")[2] == "Ten."
    assert texts("See.", "code", "Ten.")[1] == "Ten."


def test_what_introduces_the_next_cell_or_prompt_stays_visible():
    assert texts("**Predict.** Many?", "code", "Ten.\n\nNow:", "code")[1] == f"{folded('Ten.')}\n\nNow:"
    assert texts("**Predict.** Many?", "code", "Ten.\n\nNow:\n\n**Predict.** And?")[1].startswith(
        f"{folded('Ten.')}\n\nNow"
    )
    assert texts("**Predict.** Many?", "code", "Ten.\n\n**Why.** So.", "code")[1] == folded("Ten.\n\n**Why.** So.")


def test_code_and_folds_in_an_answer_stay_whole():
    code = "```python\n# no heading\n\n\n# this neither\n```"
    hint = "<details><summary>More</summary>\n\n# inside\n\n</details>"
    answer = f"Ten.\n\n{code}\n\n{hint}"
    assert texts("**Predict.** Many?", "code", f"{answer}\n\n## Next")[1] == f"{folded(answer)}\n\n## Next"
    assert texts("**Predict.** Many?", "code", hint)[1] == hint, "folded already"


# ---- starting again


def test_own_work_is_kept_and_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["course", "start"]) == 0
    assert capsys.readouterr().out == "Next: jupyter lab my_course/00_start_here.ipynb\n"
    mine, lost = tmp_path / "my_course" / "02_attention.ipynb", tmp_path / "my_course" / "03_seeing_attention.ipynb"
    mine.write_text("my work")
    lost.unlink()
    assert main(["course", "start"]) == 0
    report = capsys.readouterr().out
    assert "they are kept: 02_attention.ipynb.\n" in report
    assert "rename or delete" in report
    assert mine.read_text() == "my work"
    assert json.loads(lost.read_text(encoding="utf-8"))["cells"], "made again"


def test_originals_are_not_taken_for_copies(capsys):
    assert main(["course", "start", FOLDER]) == 2
    assert "name another folder" in capsys.readouterr().err


def test_without_the_notebooks_it_says_where_they_are(tmp_path):
    copytree(course.ROOT / "xlmrxl_min", tmp_path / "xlmrxl_min", ignore=ignore_patterns("pretrained"))  # as a wheel
    command = [sys.executable, "-m", "xlmrxl_min", "course", "start"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert f"not in {tmp_path / 'notebooks'}: get the repository, and run this in its folder." in done.stderr
    assert not (tmp_path / "my_course").exists()


# ---- the reading version


@pytest.fixture(scope="module")
def pages():
    from xlmrxl_min.course.reading import Site

    site = Site()
    for path in NOTEBOOKS:
        site.add_notebook(path)
    return site.pages


def test_page_hides_results_and_answers(pages):
    page = Folds(pages["00_start_here.html"])
    assert not page.folds, "every fold is closed"
    assert page.find("19 tokens:") == ["Show the result"]
    assert page.find("nineteen tokens") == ["Show the answer"]
    assert page.find("How many tokens are these") == []
    assert page.find("in twelve languages") == []


@each_notebook
def test_no_output_is_in_sight_between_a_prompt_and_the_next(pages, name):
    page, found = pages[name.replace(".ipynb", ".html")], 1
    while found:
        page, found = re.subn("<details((?!<details).)*?</details>", "", page, flags=re.DOTALL)  # innermost first
    for part in re.split("<h[1-6]|(?=<strong>(?:Predict|Exercise|Step))", page):
        if part.startswith("<strong>Predict"):
            assert not re.search("^<(?:pre|img|div>)", part, flags=re.MULTILINE), part
