"""Helpers that several folders use: batches of similar length, evaluation mode, atomic writes."""

import random

import pytest
import torch

from xlmrxl_min.files import atomic_write
from xlmrxl_min.utils import eval_mode, group_by_length, pad_rows


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"batch_size": 3},
        {"max_tokens": 40},
        {"max_tokens": 40, "packed": True},
        {"max_padding": 5},
        {"batch_size": 4, "max_tokens": 60, "max_padding": 3},
    ],
)
def test_batches_hold_every_row_once_and_keep_to_the_limits(limits, shuffled):
    rng = random.Random(0)
    for seed in range(50):
        lengths = [rng.randint(1, 30) for _ in range(rng.randint(0, 20))]
        batches = group_by_length(lengths, generator=generator(seed) if shuffled else None, **limits)
        assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
        for batch in batches:
            rows = [lengths[i] for i in batch]
            padded = max(rows) * len(rows)
            assert len(rows) <= limits.get("batch_size", 99)
            assert len(rows) == 1 or (sum(rows) if "packed" in limits else padded) <= limits.get("max_tokens", 9999)
            assert padded - sum(rows) <= limits.get("max_padding", 9999)


def test_rows_of_similar_length_meet_the_longest_first():
    lengths = [3, 9, 5, 9, 4, 8]
    assert group_by_length(lengths, batch_size=2) == [[1, 3], [5, 2], [4, 0]]
    assert group_by_length(lengths, max_tokens=18) == [[1, 3], [5, 2], [4, 0]]
    assert group_by_length(lengths, max_tokens=27) == [[1, 3, 5], [2, 4, 0]]
    assert group_by_length(lengths, max_tokens=31, packed=True) == [[1, 3, 5, 2], [4, 0]]
    assert group_by_length(lengths, max_tokens=5) == [[1], [3], [5], [2], [4], [0]], "a longer row is alone"
    assert group_by_length(lengths, max_padding=1) == [[1, 3, 5], [2, 4], [0]]
    assert group_by_length(lengths) == [[1, 3, 5, 2, 4, 0]]
    assert group_by_length([3] * 100) == [list(range(100))], "equal lengths keep their order"
    assert group_by_length([]) == []


def test_a_generator_shuffles_reproducibly_and_keeps_lengths_similar():
    lengths = [random.Random(i).randint(5, 200) for i in range(400)]
    first = group_by_length(lengths, max_tokens=800, generator=generator(0))
    assert first == group_by_length(lengths, max_tokens=800, generator=generator(0))
    second = group_by_length(lengths, max_tokens=800, generator=generator(1))
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}, "rows meet others"
    longest = [max(lengths[i] for i in batch) for batch in first]
    assert longest != sorted(longest, reverse=True), "the batches are in random order"
    for batch in first:
        assert max(lengths[i] for i in batch) - min(lengths[i] for i in batch) < 40


@pytest.mark.parametrize("name", ["batch_size", "max_tokens", "max_padding"])
def test_impossible_limits(name):
    for value in (0, -1, 2.5, "3"):
        with pytest.raises(ValueError, match=f"{name}={value!r} is impossible: it must be an integer, 1 or more"):
            group_by_length([1, 2], **{name: value})


def test_eval_mode_restores_every_module_even_after_an_error():
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(2, 2), torch.nn.Dropout())
    model[2].eval()
    with eval_mode(model):
        assert not any(module.training for module in model.modules())
        assert torch.is_inference_mode_enabled()

    def fail():
        with eval_mode(model, gradients=True):
            assert not any(module.training for module in model.modules())
            assert model(torch.ones(2)).requires_grad
            raise ZeroDivisionError

    with torch.no_grad(), pytest.raises(ZeroDivisionError):
        fail()
    assert [module.training for module in model.modules()] == [True, True, True, False]


def test_atomic_write_replaces_all_files_or_none(tmp_path):
    files = tmp_path / "new" / "a", tmp_path / "b"
    files[1].write_text("old")

    def fail():
        with atomic_write(*files) as (first, _):
            first.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["b"], "no temporary file is left"
    assert files[1].read_text() == "old"
    with atomic_write(*files) as drafts:
        for draft in drafts:
            draft.write_text("new")
        assert files[1].read_text() == "old"
    assert [file.read_text() for file in files] == ["new", "new"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "new"]


def test_pad_rows():
    assert pad_rows([[5, 6, 7], [8]], 1).tolist() == [[5, 6, 7], [8, 1, 1]]
