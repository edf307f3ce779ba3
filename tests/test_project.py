"""The house rules: layers, axes, names, packaging. Those of the notebooks are in test_course.py."""

import ast
import inspect
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from axis_lint import AXES, faults

import xlmrxl_min
from xlmrxl_min import model
from xlmrxl_min.checkpoints.locate import PRETRAINED
from xlmrxl_min.training.texts import udhr

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGE = sorted((ROOT / "xlmrxl_min").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))


def code_of(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


# ---- axes


def test_every_pattern_keeps_to_the_glossary():
    found = [fault for path in PACKAGE for fault in faults(path.read_text(encoding="utf-8"), path.name)]
    found += [fault for path in NOTEBOOKS for fault in faults(code_of(path), path.name)]
    assert not found, "\n".join(found)


def test_the_glossary_is_the_one_at_the_top_of_the_model():
    entries = re.findall(
        r"(?:^|\s{2,})([a-z]) (?:batch|token|query|key|relative|head|hidden|feed|vocab|choice|layer)", model.__doc__
    )
    assert set(entries) == AXES


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ('rearrange(x, "b s e -> s b e")', "names s"),
        ('rearrange(x, "b t (h d) -> b h t d", h=4)', "give d instead"),
        ('einsum(q, k, "b h q d, b h k d -> b h q")', "sums k away"),
        ('einops.einsum(q, "b h q d, b h q d -> b h q e", k)', ""),
    ],
)
def test_the_lint_can_fail(pattern, words):
    assert any(words in fault for fault in faults(pattern)) == bool(words)


def test_forward_methods_say_their_axes():
    source = (ROOT / "xlmrxl_min" / "model.py").read_text(encoding="utf-8")
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name == "forward":
            near = "\n".join(lines[node.lineno - 2 : node.body[0].lineno])
            shapes = re.search(r"# (.*->.*)", near)
            assert shapes, f"forward in line {node.lineno} does not say its shapes"
            assert set(re.findall(r"\b[a-z]\b", shapes[1])) <= AXES


# ---- layers: an arrow only ever points downward


def imports(path):
    """Names imported at the top of a module, ours with a leading dot."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or "").split(".")[0])
    return found


def test_the_ground_floor_stands_on_nothing_of_ours():
    standard = set(sys.stdlib_module_names)
    assert imports(ROOT / "xlmrxl_min" / "model.py") - standard == {"torch", "einops"}
    assert imports(ROOT / "xlmrxl_min" / "tokenizer.py") - standard == {"sentencepiece", ".pretrained"}
    assert imports(PRETRAINED / "__init__.py") <= standard
    assert "import torch" not in "\n".join(
        line for line in (ROOT / "xlmrxl_min" / "tokenizer.py").read_text().splitlines() if not line.startswith(" ")
    )


def test_nothing_points_upward():
    order = [
        "pretrained",
        "model",
        "quantize",
        "sizes",
        "files",
        "names",
        "tokenizer",
        "checkpoint",
        "predict",
        "generation",
        "align",
        "measure",
        "plot",
        "explore",
        "train",
    ]
    order += ["tasks", "decoders", "parallel", "checks", "bugs", "lessons", "__main__"]
    for path in (ROOT / "xlmrxl_min").glob("*.py"):
        if path.stem != "__init__":
            ours = {name.lstrip(".") for name in imports(path) if name.startswith(".")}
            assert path.stem in order
            assert all(order.index(name) < order.index(path.stem) for name in ours), path.name


def test_no_device_is_named_in_the_library():
    for path in PACKAGE:
        assert "cuda" not in re.sub(r'""".*?"""|#.*', "", path.read_text(encoding="utf-8"), flags=re.DOTALL), path.name


def test_no_buffers():
    """Meta initialisation has nothing to forget: positions come from arange."""
    for cls in (xlmrxl_min.XLMRobertaXLForMaskedLM, xlmrxl_min.XLMRobertaXLForQuestionAnswering):
        config = xlmrxl_min.XLMRobertaXLConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
        assert not list(cls(config).buffers())


# ---- names and documents


def test_everything_promised_is_there():
    promised = [
        "XLMRobertaXLConfig",
        "XLMRobertaXLModel",
        "XLMRobertaXLForMaskedLM",
        "XLMRobertaXLForCausalLM",
        "XLMRobertaXLForSequenceClassification",
        "XLMRobertaXLForTokenClassification",
        "XLMRobertaXLForMultipleChoice",
        "XLMRobertaXLForQuestionAnswering",
        "XLMRobertaTokenizer",
        "fill_mask",
    ]
    assert set(promised) <= set(xlmrxl_min.__all__)
    assert all(hasattr(xlmrxl_min, name) for name in xlmrxl_min.__all__)


def test_the_readme_quotes_the_record_of_tiny():
    record = json.loads((PRETRAINED / "tiny" / "record.json").read_text())
    for key in ("own_text", "held_out_article"):
        assert f"{record[key]['accuracy']:.1%}" in README


def test_the_two_commands():
    assert 'pip install -e ".[lab]" && jupyter lab notebooks/00_start_here.ipynb' in README
    assert 'pip install -e ".[test]" && pytest' in README
    assert re.search(r'pip install.* -e "\.\[test\]" && pytest', (ROOT / ".ci" / "run").read_text())


def test_environment_and_pyproject_name_the_same():
    conda_names = {"pytorch": "torch", "python-sentencepiece": "sentencepiece", "matplotlib-base": "matplotlib"}
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]

    def split(line):
        name, constraint = re.match(r"([\w-]+)\s*(.*)", line).groups()
        return conda_names.get(name, name), constraint

    conda = dict(split(line) for line in environment if isinstance(line, str) and line != "pip")
    project = PROJECT["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    pip = dict(split(line) for line in [*project["dependencies"], *extras])
    assert conda.pop("python") == project["requires-python"]
    assert conda == pip
    assert {"pip": ["-e ."]} in environment


def test_version_is_one():
    assert PROJECT["project"]["version"] == xlmrxl_min.__version__


def test_style():
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *command, str(ROOT)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_import_is_lean():
    """What is heavy and rarely needed waits until it is."""
    heavy = ("transformers", "matplotlib", "huggingface_hub")
    code = f"import sys, xlmrxl_min; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


# ---- the text


def test_the_declaration_is_whole():
    text = udhr()
    languages = Counter(row.language for row in text)
    assert len(languages) == 50
    needed = ["en", "fr", "de", "es", "it", "nl", "ru", "el", "tr", "ar", "hi", "zh", "ja", "sw", "id"]
    assert list(languages)[:15] == needed
    parts = Counter(row[:2] for row in text)
    for language in languages:
        counts = [parts[language, article] for article in range(1, 31)]
        reference = [parts["en", article] for article in range(1, 31)]
        assert sum(a != b for a, b in zip(counts, reference, strict=True)) <= 2, language
    assert all(row.text == row.text.strip() and row.text for row in text)
    first = next(row for row in text if row.language == "en" and row.article == 1)
    assert first.text.startswith("All human beings are born free and equal in dignity and rights.")
    assert udhr("en") == udhr(["en"])
    with pytest.raises(ValueError, match="not here in xx"):
        udhr(["en", "xx"])


def test_what_ships_says_where_it_comes_from():
    for folder in (PRETRAINED, PRETRAINED / "tiny", PRETRAINED / "xlm-roberta-xl"):
        assert "licence" in (folder / "README.md").read_text(encoding="utf-8").lower(), folder.name
    size = sum(path.stat().st_size for path in (PRETRAINED / "tiny").iterdir())
    assert size <= 12_000_000


@pytest.mark.parametrize("name", xlmrxl_min.__all__)
def test_what_is_public_is_documented(name):
    assert inspect.getdoc(getattr(xlmrxl_min, name))


def test_workflow_runs_the_readme_on_the_oldest_and_newest():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    job = workflow["jobs"]["test"]
    rows = job["strategy"]["matrix"]["include"]
    oldest, beyond = re.search(r"torch>=(\d+\.\d+),<(\d+\.\d+)", "\n".join(PROJECT["project"]["dependencies"])).groups()
    major, minor = beyond.split(".")
    assert {row["torch"] for row in rows} == {f"{oldest}.*", f"{major}.{int(minor) - 1}.*"}
    assert min(rows, key=lambda row: row["torch"].split(".")[1].zfill(2))["python"] == (
        PROJECT["project"]["requires-python"].removeprefix(">=")
    )
    assert {row["os"].split("-")[0] for row in rows} == {"ubuntu", "macos"}
    runs = [step["run"] for step in job["steps"] if "run" in step]
    assert runs[-2:] == ['pip install -e ".[test]"', "pytest"]
    assert all(command in README for command in runs[-2:])
    assert job["timeout-minutes"] <= 90
