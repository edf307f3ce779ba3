"""Word alignment: IBM model 1 with priors, phrases, words and their tokens."""

import random

import pytest
import torch

from xlmrxl_min import XLMRobertaXLForMaskedLM
from xlmrxl_min.training.alignment import Words, align, expand_to_tokens, extract_phrases, split_into_words


@pytest.fixture(scope="module")
def encoder():
    return XLMRobertaXLForMaskedLM.from_pretrained("tiny").backbone


def words_of(names, states=None):
    ids = list(range(10, 10 + len(names)))
    return Words(
        ids, [range(i, i + 1) for i in range(len(ids))], names, torch.zeros(len(ids), 2) if states is None else states
    )


def test_words_that_occur_together_are_aligned():
    """Neither position nor state tells these apart, only that a word occurs whenever another one does."""
    rng = random.Random(0)
    sources, targets = [], []
    for _ in range(60):
        chosen = rng.sample(range(12), 5)
        sources.append(words_of([f"s{i}" for i in chosen]))
        targets.append(words_of([f"t{i}" for i in rng.sample(chosen, 5)]))
    right = 0
    for source, target, found in zip(sources, targets, align(sources, targets, position_weight=0.0), strict=True):
        torch.testing.assert_close(found.sum(-1), torch.ones(5))
        best = found.argmax(-1).tolist()
        right += sum(source.names[k][1:] == target.names[q][1:] for q, k in enumerate(best))
    assert right / 300 > 0.9, right


def test_positions_and_states_decide_where_counts_cannot():
    once = [words_of(["a", "b", "c"])], [words_of(["x", "y", "z"])]
    assert align(*once)[0].argmax(-1).tolist() == [0, 1, 2]
    states = torch.eye(3)
    source, target = words_of(["a", "b", "c"], states), words_of(["x", "y", "z"], states.flip(0))
    assert align([source] * 2, [target] * 2)[0].argmax(-1).tolist()[1] == 1


def test_both_directions_are_combined():
    texts = [words_of(["a", "b", "c"], torch.randn(3, 2)), words_of(["x", "y"], torch.randn(2, 2))]
    forward, backward = align(texts[:1], texts[1:])[0], align(texts[1:], texts[:1])[0].T  # equal but for their scales
    odds = [x[0, 0] * x[1, 1] / (x[0, 1] * x[1, 0]) for x in (forward, backward)]
    torch.testing.assert_close(*odds)


def test_phrases_have_no_links_to_other_words():
    source, target = words_of(list("abcd")), words_of(list("wxyz"))
    aligned = torch.eye(4)[[1, 0, 2, 3]] * 0.9 + 0.01  # the first two are swapped
    found = {
        (p.target.start, p.target.stop, p.source.start, p.source.stop) for p in extract_phrases(source, target, aligned)
    }
    assert (0, 2, 0, 2) in found
    assert (0, 1, 1, 2) in found
    assert (2, 3, 2, 3) in found
    assert (1, 3, 0, 3) not in found, "b and c alone: a, between them in the source, belongs to w"
    assert not extract_phrases(source, target, torch.full((4, 4), 0.25)), "no probability above 1/2"


def test_word_alignment_is_expanded_to_tokens():
    source = Words([1, 2, 3], [range(2), range(2, 3)], ["a", "b"], torch.zeros(2, 2))
    target = Words([4, 5], [range(2)], ["x"], torch.zeros(1, 2))
    found = expand_to_tokens(source, target, torch.tensor([[0.6, 0.4]]))
    torch.testing.assert_close(found, torch.tensor([[0.3, 0.3, 0.4]] * 2))


def test_a_text_is_split_into_words(encoder, tokenizer):
    text = "Everyone has the right to a nationality."
    words = split_into_words(text, encoder, tokenizer)
    assert words.names == ["everyone", "has", "the", "right", "to", "a", "nationality"]
    assert words.ids == tokenizer.encode(text)[1:-1]
    assert [i for span in words.spans for i in span] == list(range(len(words.ids)))
    assert words.states.shape == (7, 256)
