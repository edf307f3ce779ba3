"""The notebooks: executed in order, within budget, linked, tidy, and rendered as pages."""

import ast
import html
import inspect
import json
import posixpath
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from nbconvert.filters.markdown_mistune import markdown2html_mistune
from nbval.plugin import comment_markers, metadata_tags

from xlmrxl_min import model
from xlmrxl_min.course import notebooks as course
from xlmrxl_min.course.notebooks import (
    GLOSSARY,
    ROOT,
    anchor,
    captions,
    headings,
    list_notebooks,
    prose,
    read_notebook,
    source,
)

README = ROOT / "README.md"
NOTEBOOKS = list_notebooks()
TIDY = "run `python -m xlmrxl_min course tidy`"

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
each_page = pytest.mark.parametrize("path", [*NOTEBOOKS, GLOSSARY, README], ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in read_notebook(path)["cells"] if cell["cell_type"] == "code"]


def outputs(path):
    return [output for cell in code_cells(path) for output in cell["outputs"]]


# ---- each notebook


@each_notebook
def test_notebook_was_run_from_top_to_bottom(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), "run it from top to bottom"
    assert not [out for out in outputs(path) if out["output_type"] == "error" or out.get("name") == "stderr"]


@each_notebook
def test_notebook_is_within_budget(path):
    assert len(read_notebook(path)["cells"]) <= 40
    assert max(len(source(cell).splitlines()) for cell in code_cells(path)) <= 20
    assert path.stat().st_size <= 700_000


def core_path(path):
    """The core path: all but the sections called "Optional: …". Its number of cells, the words in sight, and for each
    code cell whether it is in it, with its source."""
    cells, words, code, is_optional = 0, [], [], False
    for cell in read_notebook(path)["cells"]:
        if cell["cell_type"] == "code":
            code.append((not is_optional, source(cell)))
            cells += not is_optional
            continue
        here = []
        for line in re.sub("<details>.*?</details>", "", source(cell), flags=re.DOTALL).splitlines():
            if heading := re.match("##? (.*)", line):
                is_optional = heading[1].startswith("Optional: ")
            here += [] if is_optional else line.split()
        cells, words = cells + bool(here), words + here
    return cells, words, code


@each_notebook
def test_the_core_path_is_short(path):
    cells, words, code = core_path(path)
    assert cells <= 30
    assert len(words) <= 2500
    assert max(len(text.splitlines()) for is_core, text in code if is_core) <= 15


@each_notebook
def test_the_core_path_needs_nothing_from_optional_sections(path):
    optional, core = set(), set()
    for is_core, text in core_path(path)[2]:
        code = ast.parse("\n".join(line for line in text.splitlines() if not line.startswith("%")))
        nodes = [*ast.walk(code)]
        names = [node for node in nodes if isinstance(node, ast.Name)]
        imports = [one for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for one in node.names]
        defined = {(one.asname or one.name).partition(".")[0] for one in imports}
        defined |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        defined |= {name.id for name in names if isinstance(name.ctx, ast.Store)}
        if is_core:
            core |= defined
            missing = {name.id for name in names} & (optional - core)
            assert not missing, f"{missing} of an optional section in:\n{text}"
        else:
            optional |= defined


@each_notebook
def test_notebook_was_timed(path):
    took = read_notebook(path)["metadata"].get("xlmrxl_min", {}).get("run_seconds")
    assert took is not None, f"run `python -m xlmrxl_min course run {path.stem}`"
    assert 0 < took <= 100, f"{took} s on two cores"


@each_page
def test_headings_are_in_order(path):
    text = path.read_text(encoding="utf-8")
    notebook = {"cells": [{"cell_type": "markdown", "source": [text]}]} if path == README else read_notebook(path)
    levels = [level for level, _ in headings(notebook)]
    names = [name for _, name in headings(notebook)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), "a level is skipped"
    assert len(set(names)) == len(names), "two headings with one anchor"


@each_notebook
def test_every_figure_has_a_caption(path):
    for i, cell in enumerate(read_notebook(path)["cells"]):
        for sentence in captions(cell):
            assert 20 <= len(sentence) <= 900, f"the caption of cell {i}'s figure: {sentence!r}"
        shown = cell.get("outputs", [])
        for figure, below in pairwise([*shown, {}]):
            if "image/png" in figure.get("data", {}):
                assert below.get("name") == "stdout", f"the figure of cell {i} has nothing printed under it"


@each_page
def test_no_paths_of_a_machine_and_nothing_from_the_network(path):
    raw = path.read_text(encoding="utf-8")
    machine = r"(?<![\w.])/(?:home|root|tmp|usr|work|Users)/|[A-Za-z]:\\+Users"
    assert not re.search(machine, raw), "a path of the machine it ran on"
    assert not re.search(r"<(?:script|link)\b|<style[^>]+(?:src|href)|@import", raw), "nothing from outside"
    if path.suffix == ".ipynb":
        shown = json.dumps(outputs(path))
        assert not re.search(r"(?:src|href)\s*=\W*http|url\(\W*http", shown), "an output that needs the network"


@each_notebook
def test_markers_are_known_to_nbval(path):
    for cell in code_cells(path):
        for line in source(cell).splitlines():
            if re.match(r"#\s*(?:nbval|pytest_validate)", line.strip(), flags=re.IGNORECASE):
                assert line.strip("# ") in comment_markers, line
        for tag in cell["metadata"].get("tags", []):
            assert tag in metadata_tags or not tag.lower().startswith("nbval"), tag


# ---- links


def anchors(path):
    """Of a notebook as Jupyter makes them, of Markdown as GitHub does."""
    if path.suffix == ".ipynb":
        return {anchor(name) for _, name in headings(read_notebook(path))}
    names = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w-]", "", name.replace(" ", "-")).lower() for name in names}


def links(path):
    text = path.read_text(encoding="utf-8") if path.suffix == ".md" else "\n".join(prose(read_notebook(path)))
    text = re.sub(r"^```.*?^```|`[^`\n]+`", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"\]\(([^)\s]+)\)", text)


@each_page
def test_links_lead_to_files_and_headings(path):
    for link in links(path):
        if not link.startswith(("https://", "http://")):
            file, _, end = link.partition("#")
            target = path.parent / file if file else path
            assert target.is_file(), link
            assert not end or unquote(end) in anchors(target), link


@each_page
def test_source_files_that_are_named_exist(path):
    text = path.read_text(encoding="utf-8") if path.suffix == ".md" else "\n".join(prose(read_notebook(path)))
    for name in re.findall(r"(?<![\w/])(?:xlmrxl_min|tests|notebooks)/[\w/.-]+\.\w+", text):
        assert (ROOT / name).is_file(), name


def test_anchors_equal_those_of_jupyter():
    for path in [*NOTEBOOKS, GLOSSARY]:
        for _, name in headings(read_notebook(path)):
            made = re.search(r'id="([^"]*)"', markdown2html_mistune(f"# {name}"))[1]
            assert unquote(html.unescape(made)) == anchor(name)


def test_readme_and_map_list_every_notebook():
    readme = README.read_text(encoding="utf-8")
    rows = re.findall(r"^\|.*?(\d\d_\w+).*$", readme, flags=re.MULTILINE)
    assert [row[:2] for row in rows] == [f"{i:02}" for i in range(13)]
    for line in readme.splitlines():
        listed = re.match(r"^\|.*?(\d\d_\w+)", line)
        if listed:
            assert (course.FOLDER / f"{listed[1]}.ipynb").exists(), line
    assert f"notebooks/{GLOSSARY.name}" in links(README)
    assert "python -m xlmrxl_min course read" in readme
    assert {path.name for path in NOTEBOOKS[1:]} <= set(links(NOTEBOOKS[0])), "the map of the course, in 00"


CLASSES = [cls for cls in vars(model).values() if inspect.isclass(cls) and cls.__module__ == model.__name__]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_class_is_in_the_notebook_that_it_names(cls):
    named = [course.FOLDER / f"{stem}.ipynb" for stem in re.findall(r"notebooks/(\w+)\.ipynb", cls.__doc__)]
    assert named or not issubclass(cls, model.nn.Module), f"{cls.__name__} names no notebook"
    assert set(named) <= set(NOTEBOOKS), f"{cls.__name__} names a notebook that is not there"
    shown = {
        path: course.GLOSSARY_LINK.sub(r"\1", "\n".join(map(source, read_notebook(path)["cells"])))
        for path in named or NOTEBOOKS
    }
    found = [path for path in shown if re.search(rf"\b{cls.__name__}\b", shown[path])]
    assert found == named if named else found, f"{cls.__name__} is neither used nor shown in the notebook that it names"


# ---- tidy


@each_notebook
def test_notebook_is_tidy(path):
    assert course.tidy_text(path) == path.read_text(encoding="utf-8"), TIDY


def test_glossary_is_sorted_and_every_term_is_linked():
    names = [name for level, name in headings(read_notebook(GLOSSARY)) if level == 3]
    assert names == sorted(names, key=str.casefold)
    assert names == list(course.glossary())
    spellings = [spelling for some in course.glossary().values() for spelling in some]
    assert len(set(spellings)) == len(spellings), "one spelling for two terms"
    used = {name for path in NOTEBOOKS for name in course.linked_terms(read_notebook(path))}
    assert not set(names) - used, f"linked nowhere; {TIDY}, or leave them out"
    for entry in re.split(r"^### ", "\n".join(prose(read_notebook(GLOSSARY))), flags=re.MULTILINE)[1:]:
        assert re.search(r"→ \[\d\d, .+\]\(\d\d_\w+\.ipynb#.+\)", entry), entry


def test_glossary_has_the_axes_of_the_model():
    table = dict(re.findall(r"^\| ([a-z]) \| (.+) \|$", prose(read_notebook(GLOSSARY))[0], flags=re.MULTILINE))
    axes = model.__doc__.split("Axes,")[1].split(":", 1)[1].split("\n\n")[1]
    assert table == dict(entry.split(" ", 1) for entry in re.split(r"\s{2,}", axes.strip()))


@pytest.mark.parametrize(
    ("text", "linked"),
    [
        ("A cache. A cache.", "A [cache](#Cache). A cache."),
        ("All caches", "All [caches](#Cache)"),
        ("uncached, cache-like, recache", "uncached, cache-like, recache"),
        ("`cache` $cache$ cache", "`cache` $cache$ [cache](#Cache)"),
        (
            "# Cache\n| cache |\n<cache>[cache](x) Cache",
            "# Cache\n| cache |\n<cache>[cache](x) [Cache](#Cache)",
        ),
        ("```\ncache\n```\n<summary>cache</summary>", "```\ncache\n```\n<summary>cache</summary>"),
        (
            "a cross\ncache and a cache",
            "a [cross\ncache](#Cross-cache) and a [cache](#Cache)",
        ),
        ("a key, **keys**", "a key, **[keys](#Key)**"),
        ("queries", "[queries](#Query)"),
    ],
)
def test_first_use_of_a_term_is_linked(text, linked):
    terms = {"Cache": ["cache"], "Cross-cache": ["cross cache"], "Key": ["*key*"], "Query": ["query"]}
    assert course.link_terms([text], terms) == [linked.replace("(#", "(glossary.ipynb#")]


def test_card_with_a_missing_row_raises():
    path = NOTEBOOKS[2]
    text = prose(read_notebook(path))[0].replace("**You need**", "**You want**")
    with pytest.raises(ValueError, match=r"02_attention\.ipynb has the rows .*You want.* it needs"):
        course.update_card(path, text, [])


# ---- run


def test_run_keeps_the_duration_and_no_timestamps(tmp_path):
    cell = {"cell_type": "code", "id": "a", "metadata": {"execution": {}}, "source": ["6 * 7"], "outputs": []}
    notebook = {"cells": [cell | {"execution_count": None}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "00_small.ipynb").write_text(course.to_json(notebook))
    course.run(["00"], tmp_path)
    done = read_notebook(tmp_path / "00_small.ipynb")
    assert done["cells"][0]["outputs"][0]["data"]["text/plain"] == ["42"]
    assert done["cells"][0]["metadata"] == {}
    assert 0 < done["metadata"]["xlmrxl_min"]["run_seconds"] < 60
    assert (tmp_path / "00_small.ipynb").read_text() == course.to_json(done)
    with pytest.raises(ValueError, match="There is no notebook '99'; there are 00 small"):
        course.run(["99"], tmp_path)


# ---- read


class Page(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.tags, self.ids, self.hrefs, self.images = [], [], [], []
        self.formulas, self.in_formula = [], False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_data(self, text):
        self.formulas += [text] if self.in_formula else []

    def handle_endtag(self, tag):
        self.in_formula = self.in_formula and tag != "math"

    def handle_starttag(self, tag, attributes):
        self.in_formula = self.in_formula or tag == "math"
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.hrefs += [attributes["href"]] if tag == "a" else []
        self.images += [attributes] if tag == "img" else []


class Pages(dict):
    """The pages by their paths inside `folder`."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    from xlmrxl_min.course.reading import NAME, read

    folder = tmp_path_factory.mktemp("course") / "pages"
    (folder / "recap").mkdir(parents=True)
    (folder / "index.html").write_text(f"<title>{NAME}</title> An earlier version, which is replaced.")
    (folder / "recap" / "old.html").touch()
    read(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["pages"], "nothing is left over"
    assert not (folder / "recap" / "old.html").exists()
    found = Pages({path.relative_to(folder): Page(path) for path in folder.rglob("*.html")})
    found.folder = folder
    return found


def test_every_notebook_has_its_page_and_its_recap(pages):
    expected = {Path("index.html"), Path("glossary.html"), Path("source/README.md.html")}
    expected |= {Path(f"{path.stem}.html") for path in NOTEBOOKS}
    expected |= {Path("recap", f"{path.stem}.html") for path in NOTEBOOKS}
    assert expected <= set(pages)


def test_links_of_pages_lead_to_pages_and_headings(pages):
    for name, page in pages.items():
        assert len(set(page.ids)) == len(page.ids), f"an id twice in {name}"
        for href in page.hrefs:
            parts = urlsplit(href)
            if parts.scheme:
                assert parts.scheme in ("https", "mailto"), f"{href} in {name}"
                continue
            target = Path(posixpath.normpath(posixpath.join(name.parent, parts.path))) if parts.path else name
            assert target in pages, f"{href} in {name}"
            assert not parts.fragment or unquote(parts.fragment) in pages[target].ids, f"{href} in {name}"


def test_pages_stand_alone(pages):
    for name, page in pages.items():
        assert dict(page.tags)["html"] == {"lang": "en"}
        assert not [formula for formula in page.formulas if "\\" in formula], f"TeX that is no MathML in {name}"
        assert not {"script", "link", "object"} & {tag for tag, _ in page.tags}, name
        for frame in (some for tag, some in page.tags if tag == "iframe"):
            assert set(frame) == {"srcdoc", "sandbox", "title", "style"}, name
            assert frame["sandbox"] == "allow-scripts"
        assert not [attribute for _, some in page.tags for attribute in some if attribute.startswith("on")], name
        for image in page.images:
            assert image["src"].startswith("data:"), name
            assert len(image["alt"]) >= 20, name


def test_index_introduces_the_course_and_leads_to_every_page(pages):
    index = pages[Path("index.html")]
    expected = {f"{folder}{path.stem}.html" for path in NOTEBOOKS for folder in ("", "recap/")}
    assert expected | {"glossary.html", "source/README.md.html#start"} <= set(index.hrefs)
    assert len(index.images) == 1, "the drawing of the model"


def test_recap_has_the_figures_but_the_drawing_of_the_model(pages):
    for path in NOTEBOOKS:
        figures = sum("image/png" in output.get("data", {}) for output in outputs(path))
        images = pages[Path("recap", f"{path.stem}.html")].images
        assert max(figures - 1, 1) <= len(images) <= figures, path.stem
        assert "\\_" not in (pages.folder / "recap" / f"{path.stem}.html").read_text(encoding="utf-8"), "caption"


OPEN_FOLDS = "document.querySelectorAll('details').forEach(fold => fold.open = true)"
BACKGROUND = "getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)"
WIDTHS = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (820, "light"), (1280, "dark")])
def test_pages_in_a_browser(pages, browser, width, scheme):
    """All of them at phone width, a few at others: nothing is logged or wider than the window, and frames are alive."""
    page, events = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme), []
    page.on("console", lambda message: events.append(message.text))
    page.on("pageerror", lambda error: events.append(str(error)))
    page.on("request", lambda request: events.extend([request.url] * request.url.startswith("http")))
    is_dark = scheme == "dark"
    for name in pages if width == 390 else ("index.html", "03_seeing_attention.html", "recap/02_attention.html"):
        page.goto((pages.folder / name).as_uri())
        page.evaluate(OPEN_FOLDS)
        wide, window = page.evaluate(WIDTHS)
        assert wide <= window, f"{name} is {wide} pixels wide"
        for frame in page.frames:
            assert (max(frame.evaluate(BACKGROUND)) < 60) == is_dark, name
    page.goto((pages.folder / "03_seeing_attention.html").as_uri())
    page.evaluate(OPEN_FOLDS)
    explorer = page.frames[1]
    before = explorer.text_content("#sentence")
    explorer.get_by_role("button", name="Clear").click()
    assert explorer.text_content("#sentence") != before
    page.close()
    assert not events


def test_workflow_makes_the_pages():
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    assert "run: python -m xlmrxl_min course read pages\n" in workflow
    assert "path: pages\n" in workflow


def test_a_folder_with_other_files_raises_and_is_kept(tmp_path):
    from xlmrxl_min.course.reading import read

    (tmp_path / "mine" / "recap").mkdir(parents=True)
    (tmp_path / "mine" / "index.html").write_text("<title>My own pages</title> About Understanding XLM-RoBERTa-XL")
    (tmp_path / "mine" / "text").write_text("keep me")
    with pytest.raises(ValueError, match="is there already and is no reading version; name a new folder"):
        read(tmp_path / "mine")
    assert (tmp_path / "mine" / "text").read_text() == "keep me"


# ---- badges


def test_badges_lead_to_binder_and_colab():
    first, *others = course.badges("someone/xlmrxl_min").splitlines()
    binder = urlsplit(re.fullmatch(r"\[!\[Binder\]\(https://\S+\.svg\)\]\((\S+)\)", first)[1])
    assert (binder.netloc, binder.path) == ("mybinder.org", "/v2/gh/someone/xlmrxl_min/HEAD")
    assert parse_qs(binder.query) == {"urlpath": ["lab/tree/notebooks/00_start_here.ipynb"]}
    assert len(others) == len(NOTEBOOKS)
    for line, path in zip(others, NOTEBOOKS, strict=True):
        colab = "https://colab.research.google.com/github/someone/xlmrxl_min/blob/main/notebooks/"
        assert line.endswith(f"]({colab}{path.name})")
    for wrong in ("xlmrxl_min", "https://github.com/a/b", "a/b/c"):
        with pytest.raises(ValueError, match="has the form OWNER/NAME"):
            course.badges(wrong)
