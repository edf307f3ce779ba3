"""The comparison with the peers, at a width of 32: every row runs, its answers are equal; unequal ones are refused."""

import json
import sys
from pathlib import Path

import against_peers
import pytest
import torch
import transformers
from against_peers import (
    CHECKPOINTS,
    LIMIT,
    LOADS,
    TASKS,
    compare,
    contend,
    draw,
    make_checkpoints,
    measure,
    random_ids,
    table,
)

NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc, to see memory by kind")
SMALL = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 12002}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(against_peers, "CHECKPOINTS", {name: {**one, **SMALL} for name, one in CHECKPOINTS.items()})
        make_checkpoints(folder, set(CHECKPOINTS))
    for checkpoint in {checkpoint for _, checkpoint in LOADS.values()}:
        (folder / checkpoint).symlink_to(folder / "masked")
    return folder


@NEEDS_PROC
@pytest.mark.slow
@pytest.mark.parametrize("task", [*TASKS, *LOADS])
def test_answers_are_equal(task, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(against_peers, "random_ids", lambda batch, tokens, _=0: random_ids(batch, tokens))
    answers = {}
    for who in ("ours", f"transformers {transformers.__version__}"):
        contend(who, folder, task, tmp_path / "answer.pt", ["once more", "and again"])
        answers[who] = torch.load(tmp_path / "answer.pt")
        numbers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [*map(set, numbers)] == [{"seconds", "peak"}, {"seconds"}, {"seconds"}]
    limit = 0.05 if "int8" in task else 1e-4
    assert compare(task, answers) < limit
    first = answers["ours"][0]
    assert first.numel() > 10 or first.is_floating_point()  # a loss is one number
    answers["ours"][0] = first + (1 if not first.is_floating_point() else 20 * limit * first.abs().max())
    with pytest.raises(AssertionError, match=r"do not write the same|answers differ by"):
        compare(task, answers)


def test_nan_is_rejected():
    with pytest.raises(AssertionError, match="answers differ by nan"):
        compare("a row", {"ours": [torch.ones(3)], "theirs": [torch.tensor([1.0, torch.nan, 1])]})
    with pytest.raises(ValueError, match="zip"):
        compare("a row", {"ours": [torch.ones(3)], "theirs": []})


@NEEDS_PROC
@pytest.mark.slow
@pytest.mark.parametrize("task", ["forward 1×12", "load XL: float32 file"])
def test_contenders_take_turns(task, folder, monkeypatch):
    for name, value in {"TURNS": 3, "TURNS_S": 0, "ROUNDS": 2, "PRODUCT": (8, 8, 8)}.items():
        monkeypatch.setattr(against_peers, name, value)
    row = measure(task, folder, {"ours": sys.executable, f"transformers {transformers.__version__}": sys.executable})
    turns = 2 * 3 if task in TASKS else 2
    assert [len(one["seconds"]) for one in row.values()] == [turns] * (3 if task in TASKS else 2)
    assert all(seconds > 0 for one in row.values() for seconds in one["seconds"])


@NEEDS_PROC
def test_a_contender_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)forward 1×12 by ours: .*does not exist"):
        measure("forward 1×12", tmp_path, {"ours": sys.executable})


def test_table_and_figure(tmp_path):
    rows = {
        "import": {"torch alone": {"seconds": [1, 1]}, "ours": {"seconds": [1.25] * 2}, "theirs": {"seconds": [5, 5]}},
        "forward 1×12": {
            "ours": {"seconds": [2.0, 1.0, 3.0], "peak": [1e9]},
            "theirs": {"seconds": [3.0, 2.9, 9.0], "peak": [2e9]},
            LIMIT: {"seconds": [2.0, 1.0, 3.0]},
        },
    }
    result = {
        "date": "2026-01-01",
        "machine": "2 cores of a CPU",
        "versions": {"ours": "1", "theirs": "2"},
        "rows": rows,
    }
    result["limits"] = {"operations": 1e9, "bytes": 1e9}
    said = table(result)
    assert "import: 0.25 s more than torch alone (1.00 s)" in said
    assert "| forward 1×12 | 2 | 3 | 2.90 | 1.00 | 2.00 |" in said  # the ratios' median: of 1.5, 2.9 and 3
    assert "forward 1×12: 5% of the rate" in said
    draw(result, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000
