"""Padding without a mask: one warning for each model, where transformers warns, too, and none elsewhere."""

import copy
import logging
import warnings

import pytest
import torch
import transformers
from transformers_reference import TASKS, twins

from xlmrxl_min import XLMRobertaTokenizer, XLMRobertaXLForMaskedLM, embed, fill_mask

IDS = torch.randint(3, 60, (3, 7), generator=torch.Generator().manual_seed(0))


def padded(side):
    ids = IDS.clone()
    ids[1, slice(0, 2) if side == "left" else slice(-2, None)] = 1
    return ids


def warned(call):
    """How often `call` warns of padding."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    found = [str(one.message) for one in caught if "hold padding" in str(one.message)]
    assert all("without attention_mask tokens attend to it: pass" in message for message in found)
    return len(found)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("task", [task for task in TASKS if task != "ForCausalLM"])
def test_one_warning_for_each_model(task, side):
    model = twins(task)[1]
    ids = padded(side)[:, None].expand(-1, 2, -1) if task == "ForMultipleChoice" else padded(side)
    assert warned(lambda: model(ids)) == 1
    assert [warned(lambda: model(ids)) for _ in range(3)] == [0, 0, 0]
    assert warned(lambda: twins(task)[1](ids)) == 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_where_transformers_warns(side, caplog):
    theirs, ours = twins("ForMaskedLM")
    for ids, expected in ((IDS, 0), (padded(side), 1)):
        transformers.utils.logging.enable_propagation()
        transformers.utils.logging.warning_once.cache_clear()  # it warns once in a process
        with caplog.at_level(logging.WARNING):
            theirs(ids)
        assert ("padded" in caplog.text) == bool(expected)
        assert warned(lambda ids=ids: ours(ids)) == expected


def test_no_warning_where_nothing_is_wrong():
    ids = padded("right")
    inside = IDS.clone()
    inside[1, 3] = 1  # not at an end: some other use of the id
    for inputs in (
        {"input_ids": IDS},
        {"input_ids": inside},
        {"input_ids": ids, "attention_mask": (ids != 1).long()},
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)},  # the user has decided
        {"input_ids": ids, "attention_mask": torch.ones(3, 7, 7)},
        {"inputs_embeds": torch.randn(3, 7, 24)},
    ):
        assert warned(lambda inputs=inputs: twins("Model")[1](**inputs)) == 0


def test_in_a_decoder_only_padding_before_the_text_is_seen():
    for side, expected in (("left", 1), ("right", 0)):
        model = twins("ForCausalLM", is_decoder=True)[1]
        assert warned(lambda model=model, side=side: model(padded(side))) == expected
    ids = padded("right")
    ids[1, -2:] = 5  # what the padding holds has no effect on the tokens before it
    torch.testing.assert_close(model(padded("right")).logits[:, :-2], model(ids).logits[:, :-2])


def test_the_librarys_own_calls_pass_masks():
    tokenizer = XLMRobertaTokenizer.from_pretrained("tiny")
    masked = XLMRobertaXLForMaskedLM.from_pretrained("tiny")
    texts = ["All human beings <mask> born", "<mask> free"]
    assert warned(lambda: fill_mask(masked, tokenizer, texts)) == 0
    assert warned(lambda: embed(masked, tokenizer, texts)) == 0


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"do_sample": True}])
def test_generation_with_finished_rows(use_cache, settings):
    model = twins("ForCausalLM", is_decoder=True, use_cache=use_cache)[1]
    first = model.generate(IDS, max_new_tokens=1)[0, -1].item()  # ends row 0, at least, at once
    out = []
    options = {"max_new_tokens": 6, "eos_token_id": first, "use_cache": use_cache, **settings}
    assert warned(lambda: out.append(model.generate(IDS, **options))) == 0
    if not settings:
        assert bool((out[0] == 1).any()), "padding after the end"
    left = padded("left")
    assert warned(lambda: model.generate(left, max_new_tokens=3, use_cache=use_cache)) == 0


def test_no_warning_without_values_or_while_compiling():
    model = twins("ForMaskedLM")[1]
    ids = padded("right")
    on_meta = copy.deepcopy(model).to("meta")
    assert warned(lambda: on_meta(ids.to("meta"))) == 0
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert warned(lambda: compiled(ids)) == 0
