"""The heads to prune in all the forms in which users and JSON have them; anything else is refused in one sentence."""

import json
import re
from types import MappingProxyType

import numpy
import pytest
import torch
from transformers_reference import SMALL, twins

from xlmrxl_min import XLMRobertaXLConfig, XLMRobertaXLModel

RIGHT = [
    {0: [1]}, {"0": [1]}, {0: (1,)}, {0: {1}}, {0: range(1, 2)}, {0: [1, 1]}, {"0": [1], 0: [1]},
    {numpy.int64(0): [numpy.int32(1)]}, {0: numpy.array([1])}, {0: torch.tensor([1])}, {0: (i for i in [1])},
    MappingProxyType({0: [1]}), json.loads(json.dumps({0: [1]})),
]  # fmt: skip
WRONG = [
    {0: [1.0]}, {0: ["1"]}, {0: "1"}, {0: 1}, {0: None}, {"first": [1]}, {0.0: [1]}, {None: [1]}, {"0.0": [1]},
    {0: [True]}, {True: [1]}, {0: [False, True, False]}, {0: numpy.array([False, True, False])}, {0: [None]},
    {0: torch.tensor([1.0])}, {0: torch.tensor([False, True])}, {0: [[1]]}, [(0, 1)], [(0, [1])], [1], "0", 1, None,
    {0: numpy.array([1.5])},
]  # fmt: skip


def own(heads):
    """Generators can be read once."""
    return {0: (i for i in [1])} if "generator" in repr(heads) else heads


@pytest.mark.parametrize("heads", RIGHT, ids=range(len(RIGHT)))
def test_all_these_are_head_1_of_layer_0(heads, tmp_path):
    model = twins("Model")[1]
    model.prune_heads(own(heads))
    assert [layer.attention.heads for layer in model.layers] == [[0, 2], [0, 1, 2]]
    config = XLMRobertaXLConfig(**SMALL, pruned_heads=own(heads))
    assert model.config.pruned_heads == config.pruned_heads == {0: [1]}
    for one in (model.config, config):
        assert {type(number) for layer, numbers in one.pruned_heads.items() for number in (layer, *numbers)} == {int}
        one.save_pretrained(tmp_path)
        assert XLMRobertaXLConfig.from_pretrained(tmp_path).pruned_heads == {0: [1]}
    assert XLMRobertaXLModel(config).layers[0].attention.heads == [0, 2]


@pytest.mark.parametrize("heads", WRONG, ids=range(len(WRONG)))
def test_what_are_no_heads_is_refused_and_changes_nothing(heads):
    model = twins("Model")[1]
    words = "is impossible: it must be {layer: [heads]} with integers, such as {0: [1, 2]}."
    with pytest.raises(ValueError, match=re.escape(words)):
        model.prune_heads(heads)
    assert [layer.attention.heads for layer in model.layers] == [[0, 1, 2]] * 2
    if heads is not None:
        with pytest.raises(ValueError, match=re.escape(words)):
            XLMRobertaXLConfig(**SMALL, pruned_heads=heads)


@pytest.mark.parametrize("heads", [{"2": [0]}, {"-3": [0]}, {0: [-1]}, {"0": [3]}, {numpy.int64(5): [0]}])
def test_heads_that_do_not_exist(heads):
    model = twins("Model")[1]
    with pytest.raises(ValueError, match="there are layers 0 to 1 with heads 0 to 2"):
        model.prune_heads(heads)


def test_layers_counted_from_the_end():
    model = twins("Model")[1]
    model.prune_heads({-1: [0], 1: [2]})
    assert [layer.attention.heads for layer in model.layers] == [[0, 1, 2], [1]]


@pytest.mark.parametrize("heads", [{}, {0: []}, {"1": ()}])
def test_nothing_to_prune(heads):
    model = twins("Model")[1]
    expected = model(torch.arange(3, 9)[None]).last_hidden_state
    model.prune_heads(heads)
    assert [layer.attention.heads for layer in model.layers] == [[0, 1, 2]] * 2
    assert torch.equal(model(torch.arange(3, 9)[None]).last_hidden_state, expected)
