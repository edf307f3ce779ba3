"""The comparison with the peers, at a width of 32: every row runs, its answers are equal; unequal ones are refused."""

import json

import against_peers
import pytest
import torch
import transformers
from against_peers import CHECKPOINTS, LOADS, TASKS, compare, contend, draw, make_checkpoints, table

SMALL = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(against_peers, "CHECKPOINTS", {name: {**one, **SMALL} for name, one in CHECKPOINTS.items()})
        make_checkpoints(folder, set(CHECKPOINTS))
    for checkpoint in {checkpoint for _, checkpoint in LOADS.values()}:
        (folder / checkpoint).symlink_to(folder / "masked")
    return folder


@pytest.mark.parametrize("task", [*TASKS, *LOADS])
def test_answers_are_equal(task, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(against_peers, "TURN_S", 1e-9)  # once
    monkeypatch.setattr(against_peers, "product_rate", lambda: 1.0)
    answers = {}
    for who in ("ours", f"transformers {transformers.__version__}"):
        contend(who, folder, task, str(tmp_path / "answer.pt"))
        answers[who] = torch.load(tmp_path / "answer.pt")
        numbers = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert numbers["seconds"] > 0
    assert compare(task, answers) < 1e-4
    first = answers["ours"][0]
    assert first.numel() > 10 or first.is_floating_point()  # a loss is one number
    answers["ours"][0] = first + (1 if not first.is_floating_point() else 1e-3 * first.abs().max())
    with pytest.raises(AssertionError, match=r"do not write the same|answers differ by"):
        compare(task, answers)


def test_what_is_no_number_is_refused():
    with pytest.raises(AssertionError, match="answers differ by nan"):
        compare("a row", {"ours": [torch.ones(3)], "theirs": [torch.tensor([1.0, torch.nan, 1])]})
    with pytest.raises(ValueError, match="zip"):
        compare("a row", {"ours": [torch.ones(3)], "theirs": []})


def test_table_and_figure(tmp_path):
    rows = {
        "import": {"torch alone": {"seconds": [1.0]}, "ours": {"seconds": [1.25]}, "theirs": {"seconds": [5.0]}},
        "forward 1×12": {
            "ours": {"seconds": [2.0, 1.0, 3.0], "peak": [1e9, 1e9, 1e9], "rate": [1e9, 1e9, 1e9]},
            "theirs": {"seconds": [3.0, 2.9, 9.0], "peak": [2e9, 2e9, 4e9]},
        },
    }
    result = {"date": "2026-01-01", "machine": "an abacus", "versions": {"ours": "1", "theirs": "2"}, "rows": rows}
    result["limits"] = {"operations": 1e9, "bytes": 1e9}
    said = table(result)
    assert "import: 0.25 s more than torch alone (1.00 s)" in said
    assert "| forward 1×12 | 2 | 3 | 1.50 | 1.00 | 2.00 |" in said
    draw(result, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000
