"""Rules of the whole project: axes, imports, names, packaging, types."""

import ast
import dataclasses
import graphlib
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
from xlmrxl_min.base.config import ConfigOverrides
from xlmrxl_min.checkpoints.locate import PRETRAINED
from xlmrxl_min.training.decoder_measurements import format_decoder_evaluation
from xlmrxl_min.training.measurements import format_evaluation
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
    """The code of all cells, without the lines of magics."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return re.sub(r"^%.*$", "", code, flags=re.MULTILINE)


# ---- axes


def test_every_pattern_uses_the_axis_glossary():
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


# ---- imports


def imported(path):
    """The modules that a file imports at its top, as `xlmrxl_min.x.y` or the name of another package."""
    package, found = ["xlmrxl_min", *path.relative_to(ROOT / "xlmrxl_min").parts[:-1]], set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base += node.module.split(".") if node.module else []
            for alias in node.names:
                inner = ROOT.joinpath(*base, alias.name)
                is_module = inner.with_suffix(".py").exists() or (inner / "__init__.py").exists()
                found.add(".".join([*base, alias.name] if is_module else base))
    return found


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def top_level(name):
    """xlmrxl_min.model or xlmrxl_min.training, whatever is below it; the name of another package."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "xlmrxl_min" else parts[0]


def test_the_model_imports_only_torch_einops_and_its_base():
    others = {top_level(name) for name in imported(ROOT / "xlmrxl_min" / "model.py")}
    assert others - set(sys.stdlib_module_names) == {"torch", "einops", "xlmrxl_min.base"}
    for path in (ROOT / "xlmrxl_min" / "base").glob("*.py"):
        others = {top_level(name) for name in imported(path)}
        assert others - set(sys.stdlib_module_names) <= {"torch", "einops", "xlmrxl_min.base"}, path.name


@pytest.mark.parametrize("level", ["files", "folders"])
def test_imports_are_acyclic(level):
    graph = {}
    for path in PACKAGE:
        names = {name for name in imported(path) if name.startswith("xlmrxl_min.")}
        if level == "files":
            graph[module_name(path)] = names - {module_name(path)}
        elif path.parent != ROOT / "xlmrxl_min":
            folder = top_level(module_name(path))
            graph.setdefault(folder, set()).update({top_level(name) for name in names} - {folder})
        elif path.stem != "__init__":
            graph[module_name(path)] = {top_level(name) for name in names}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_the_model_is_small():
    assert len((ROOT / "xlmrxl_min" / "model.py").read_text(encoding="utf-8").splitlines()) <= 600


def test_no_device_is_named_in_the_library():
    for path in PACKAGE:
        assert "cuda" not in re.sub(r'""".*?"""|#.*', "", path.read_text(encoding="utf-8"), flags=re.DOTALL), path.name


def test_no_buffers():
    """Meta initialisation has nothing to forget: positions and distances are computed in forward."""
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
    evaluation = json.loads((PRETRAINED / "tiny" / "record.json").read_text())["evaluation"]
    masked, retrieval, emoji = (evaluation[key] for key in ("masked", "retrieval", "emoji"))
    for share in (masked["mean"]["held_out"], retrieval["mean"]["other_scripts"], emoji["mean"]):
        assert f"**{share:.0%}**" in README


@pytest.mark.parametrize("folder", sorted(PRETRAINED.glob("tiny*")), ids=lambda folder: folder.name)
def test_the_model_card_holds_the_record(folder):
    evaluation = json.loads((folder / "record.json").read_text())["evaluation"]
    to_text = format_evaluation if "masked" in evaluation else format_decoder_evaluation
    assert to_text(evaluation) in (folder / "README.md").read_text(encoding="utf-8")


def test_environment_and_pyproject_name_the_same():
    conda_names = {
        "pytorch": "torch",
        "python-sentencepiece": "sentencepiece",
        "matplotlib-base": "matplotlib",
        "playwright-python": "playwright",
    }
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]

    def split(line):
        name, constraint = re.match(r"([\w-]+)\s*(.*)", line).groups()
        return conda_names.get(name, name), constraint

    conda = dict(split(line) for line in environment if isinstance(line, str) and line != "pip")
    project = PROJECT["project"]
    extras = [line for name in ("lab", "offload", "test") for line in project["optional-dependencies"][name]]
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


# ---- types


@pytest.mark.slow
def test_types(tmp_path):
    """mypy accepts the package, and rejects misspelt arguments of the loading and generating methods."""
    mistakes = tmp_path / "mistakes.py"
    mistakes.write_text(
        "from xlmrxl_min import XLMRobertaXLConfig, XLMRobertaXLForCausalLM, XLMRobertaXLForMaskedLM\n"
        "model: XLMRobertaXLForMaskedLM = XLMRobertaXLForMaskedLM.from_pretrained('tiny', num_labels=2)\n"
        "XLMRobertaXLForMaskedLM.from_pretrained('tiny', dtyp=1)\n"
        "XLMRobertaXLConfig.from_pretrained('tiny', vocab=1)\n"
        "XLMRobertaXLForCausalLM.from_pretrained('tiny-decoder').generate(max_tokens=1)\n"
    )
    config = ["--config-file", str(ROOT / "pyproject.toml")]
    command = [sys.executable, "-m", "mypy", *config, str(ROOT / "xlmrxl_min"), str(mistakes)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    lines = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert all(line.startswith("mistakes.py:") for line in lines), done.stdout
    assert {int(line.split(":")[1]) for line in lines} == {3, 4, 5}, done.stdout


def test_the_typed_overrides_are_the_fields_of_the_config():
    names = {field.name for field in dataclasses.fields(xlmrxl_min.XLMRobertaXLConfig)} - {"extra"}
    assert set(ConfigOverrides.__annotations__) == names
