"""The six task guides of transformers, run with this package and with transformers: the same losses and answers."""

import importlib

import guide
import pytest
import torch
import transformers
from torch.utils._pytree import tree_leaves_with_path
from transformers import AutoTokenizer

import xlmrxl_min

IDS = torch.tensor([[0, 17, 300, 4000, 90, 2], [0, 55, 2, 2, 600, 2]])
BY_DEFAULT = "token_classification"


def texts_and_numbers(answers):
    """What a pipeline returned, but for `start`: that of a token is its word's here, in transformers its space's."""
    leaves = [leaf for path, leaf in tree_leaves_with_path(answers) if "start" not in str(path[-1])]
    texts = [leaf.strip() for leaf in leaves if isinstance(leaf, str)]
    return texts, [float(leaf) for leaf in leaves if not isinstance(leaf, str)]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n != BY_DEFAULT)) for n in guide.NAMES])
def test_guide(name, tmp_path):
    for package in ("datasets", "accelerate", "google.protobuf"):  # the last for a fast tokenizer from a vocabulary
        pytest.importorskip(package, reason=f"needs {package}: install the extra `clients`")
    ours, theirs = guide.run_both(name, tmp_path)
    print(guide.HEADER, guide.row(name, ours, theirs), sep="\n")
    assert len(ours["training"]) >= 8
    assert ours["training"] == pytest.approx(theirs["training"], abs=1.1e-4, rel=0)  # Trainer rounds to 4 decimals
    assert ours["evaluation"] == pytest.approx(theirs["evaluation"], abs=1e-4, rel=0)
    torch.testing.assert_close(ours["logits"], theirs["logits"], atol=1e-4, rtol=0)
    (texts, numbers), (their_texts, their_numbers) = (texts_and_numbers(run["answers"]) for run in (ours, theirs))
    assert texts == their_texts
    assert numbers == pytest.approx(their_numbers, abs=1e-4, rel=0)

    task = importlib.import_module(name).MODEL
    loaders = getattr(xlmrxl_min, task), getattr(transformers, task.replace("XLMRobertaXL", "AutoModel"))
    ids = IDS[None] if task.endswith("MultipleChoice") else IDS
    for library in guide.LIBRARIES:  # what Trainer saved of either model, either library loads
        saved = tmp_path / library.__name__
        for folder in (saved, max(saved.glob("checkpoint-*"))):
            a, b = (loader.from_pretrained(folder)(ids).to_tuple()[0] for loader in loaders)
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
        text = "Alle Menschen sind <mask> und gleich"
        tokenizers = guide.tokenizer_class(library).from_pretrained(saved), AutoTokenizer.from_pretrained(saved)
        a, b = (tokenizer(text, "an Würde", truncation=True)["input_ids"] for tokenizer in tokenizers)
        assert a == b
