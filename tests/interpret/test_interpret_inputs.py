"""What users pass to interpret: every usual form gives the same answer, and anything else is refused in a sentence."""

import math
from types import SimpleNamespace

import numpy
import pytest
import torch
from refusal import refused_literally as refused
from transformers import BatchEncoding
from transformers_reference import twins

from xlmrxl_min import XLMRobertaTokenizer, XLMRobertaXLForMaskedLM
from xlmrxl_min.interpret import (
    ablated,
    ablation_effects,
    attention_mass,
    contributions,
    each_layer,
    entropy,
    gradient_times_input,
    head_classes,
    head_means,
    head_metrics,
    hooked,
    integrated_gradients,
    logit_lens,
    mean_distance,
    mean_states,
    merge_tokens,
    occlusion,
    offset_profile,
    patch_effects,
    plot,
    retrieval,
    rollout,
    value_norms,
    value_weighted,
)
from xlmrxl_min.interpret.explore import explore

A, B = [0, 7, 9, 7, 2], [0, 11, 2]


@pytest.fixture(scope="module")
def model():
    """A random masked language model of 2 layers with 3 heads, and 61 ids."""
    torch.manual_seed(0)
    return twins("ForMaskedLM")[1].eval()


@pytest.fixture(scope="module")
def out(model):
    with torch.no_grad():
        return model(torch.tensor([A]), output_attentions=True, output_hidden_states=True)


def score(output):
    return output.logits[0, 1, 9]


def same(one, other):
    torch.testing.assert_close(one, other, check_dtype=False, equal_nan=True)


# ---- texts of ids


@pytest.mark.parametrize("function", [head_metrics, head_means])
def test_texts_in_every_form(model, function):
    ids = [torch.tensor(A), torch.tensor(B)]
    usual = function(model, ids)
    padded = torch.tensor([A, [*B, 1, 1]])
    encoding = {"input_ids": padded, "attention_mask": (padded != 1).long()}
    for form in (tuple(ids), (x for x in ids), [A, B], [x.numpy() for x in ids], [x.int() for x in ids],
                 encoding, BatchEncoding(encoding), {"input_ids": [A, B]}):  # fmt: skip
        same(function(model, form), usual)
    one = function(model, [torch.tensor(A)])
    for form in (torch.tensor(A), A, numpy.array(A), torch.tensor([A]), numpy.array([A]),
                 {"input_ids": A, "attention_mask": [1] * 5}, range(0)):  # fmt: skip
        if not isinstance(form, range):
            same(function(model, form), one)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([], "texts holds no text"),
        ("Hello", "texts is of type str, but must be a list of texts, input_ids"),
        (["Hello"], "texts[0] is of type str"),
        (None, "texts is of type NoneType"),
        ([[0, 7.5, 2]], "texts[0] must be integers"),
        (torch.tensor([0.0, 7, 2]), "texts"),
        ([[0, 99, 2]], "texts[0] holds 99, but allowed are 0 to 60"),
        ([[0, -1, 2]], "texts[0] holds -1"),
        ([[]], "texts[0]"),
        ([A, torch.tensor([A])], "texts[1] has the shape (1, 5): pass a list of texts"),
        (torch.zeros(1, 1, 3, dtype=torch.long), "texts[0] has the shape (1, 3)"),
        (torch.tensor([A, [*B, 1, 1]]), "texts[1] holds padding: pass the encoding with its attention_mask"),
        ({"attention_mask": [[1]]}, "without input_ids"),
        ({"input_ids": [A], "attention_mask": [[1, 1]]}, "attention_mask"),
        ({0, 7, 2}, "texts is of type set"),
    ],
)
def test_wrong_texts(model, texts, words):
    for function in (head_metrics, head_means):
        refused(lambda function=function: function(model, texts), words)


def test_texts_of_one_token_have_no_metrics(model):
    refused(lambda: head_metrics(model, [A, [0]]), "pass a list of texts, input_ids `t` each, of 2 or more tokens")
    assert head_means(model, [[0]]).shape == (2, 3, 8)


# ---- the inputs of a model

OF_INPUTS = {
    "contributions": lambda model, inputs: contributions(model, inputs).fraction,
    "ablation_effects": lambda model, inputs: ablation_effects(model, inputs, score),
    "gradient_times_input": lambda model, inputs: gradient_times_input(model, inputs, score),
    "integrated_gradients": lambda model, inputs: integrated_gradients(model, inputs, score, 3, steps=2).attributions,
    "occlusion": lambda model, inputs: occlusion(model, inputs, score, 3),
    "patch_effects": lambda model, inputs: patch_effects(model, inputs, {"input_ids": [[0, 7, 50, 7, 2]]}, score),
}


@pytest.mark.parametrize("name", OF_INPUTS)
def test_inputs_in_every_form_and_wrong_ones(model, name):
    function, ids = OF_INPUTS[name], torch.tensor([A])
    usual = function(model, {"input_ids": ids})
    both = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for form in ({"input_ids": [A]}, {"input_ids": A, "attention_mask": [1] * 5}, {"input_ids": ids.numpy()},
                 BatchEncoding(both), {"input_ids": ids, "labels": None}):  # fmt: skip
        same(function(model, form), usual)
    for wrong, words in (
        (ids, "and has no input_ids: pass tokenizer(text, return_tensors="),
        ("Hello", "is of type str"),
        (None, "is of type NoneType"),
        ({}, "is of type dict, and has no input_ids"),
        ({"input_ids": None}, "has no input_ids"),
        ({"input_ids": [[0, 99, 2]]}, "holds 99, but allowed are 0 to 60"),
        ({"input_ids": [[0.5, 2.0]]}, "must be integers"),
        ({"input_ids": "Hello"}, "is str, but must be ids `b t`"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, "is (1, 0), but must be ids `b t`"),
        ({"input_ids": ids, "offset_mapping": [[(0, 0)]]}, "'offset_mapping', which XLMRobertaXLForMaskedLM does not"),
        ({"input_ids": ids, "attention_mask": [[1, 1]]}, "attention_mask has shape (1, 2)"),
    ):
        refused(lambda wrong=wrong: function(model, wrong), words)
    for wrong in (None, "tiny", torch.nn.Linear(2, 2)):
        refused(lambda wrong=wrong: function(wrong, {"input_ids": ids}), "a model of this library")


@pytest.mark.parametrize("function", [gradient_times_input, ablation_effects])
def test_scores(model, function):
    inputs = {"input_ids": [A]}
    for wrong, words in (
        (None, "score is of type NoneType, but must be a function"),
        ("logits", "score is of type str"),
        (lambda output: output.logits, "score gave (1, 5, 61), but must give one number"),
        (lambda output: None, "score gave NoneType"),
        (lambda output: output.logits.sum() * math.nan, "score gave nan, but must give a finite number"),
    ):
        refused(lambda wrong=wrong: function(model, inputs, wrong), words)
    as_number = lambda output: float(score(output).detach())  # noqa: E731
    if function is gradient_times_input:
        for wrong in (as_number, lambda output: model.lm_head.decoder.bias[0] * 1.0):
            refused(lambda wrong=wrong: function(model, inputs, wrong), "no gradient with respect to the text")
    else:
        same(function(model, inputs, as_number), function(model, inputs, score))


def test_ids_and_steps_of_saliency(model):
    inputs = {"input_ids": [A]}
    for wrong in (99, -1, 3.0, "3", None, True, [3]):
        refused(lambda wrong=wrong: integrated_gradients(model, inputs, score, wrong), "baseline_id=")
        refused(lambda wrong=wrong: occlusion(model, inputs, score, wrong), "replacement_id=")
    for wrong in (0, -1, 2.5, "2", None):
        refused(lambda wrong=wrong: integrated_gradients(model, inputs, score, 3, steps=wrong), "steps=")
    same(occlusion(model, inputs, score, numpy.int64(3)), occlusion(model, inputs, score, 3))


def test_sites_of_patches(model):
    other = {"input_ids": [[0, 7, 50, 7, 2]]}
    for wrong in ("head", None, 3, ["stream"]):
        refused(lambda wrong=wrong: patch_effects(model, {"input_ids": [A]}, other, score, wrong), "site=")


def ablated_logits(model, heads, means=None):
    with torch.no_grad(), ablated(model, heads, means):
        return model(torch.tensor([A])).logits


def test_heads_and_means_of_ablations(model):
    usual = ablated_logits(model, {0: [1, 2]})
    for form in ({0: (1, 2)}, {0: numpy.array([1, 2])}, {numpy.int64(0): torch.tensor([1, 2])}, {0: iter([1, 2])}):
        same(ablated_logits(model, form), usual)
    means = head_means(model, [A])
    same(ablated_logits(model, {0: [1]}, means.numpy()), ablated_logits(model, {0: [1]}, means))
    same(ablated_logits(model, {0: [1]}, means.tolist()), ablated_logits(model, {0: [1]}, means))
    for wrong, words in (
        ({0: [-1]}, "layer 0 has no heads [-1]: it has [0, 1, 2]"),
        ({-1: [0]}, "there is no layer -1"),
        ({"0": [1]}, "there is no layer '0': there are 2, integers"),
        ({0: ["1"]}, "layer 0 has no heads ['1']"),
        ({0: 1}, "heads[0] is of type int, but must be a list of heads"),
        ([0, 1], "heads is of type list, but must be a dict"),
        (None, "heads is of type NoneType"),
    ):
        refused(lambda wrong=wrong: ablated_logits(model, wrong), words)
    for wrong in (means[0], means[:, :2], means[:1], 0.5, "mean"):
        refused(lambda wrong=wrong: ablated_logits(model, {0: [1]}, wrong), "means ")
        refused(lambda wrong=wrong: ablation_effects(model, {"input_ids": [A]}, score, wrong), "means ")


def test_texts_positions_and_targets_of_the_logit_lens(model):
    positions = torch.tensor([[False, True, False, True, False]])
    usual = logit_lens(model, torch.tensor([A]), positions, torch.tensor([7, 33]))
    for ids in (A, [A], numpy.array(A)):
        for at in (positions[0], positions.tolist(), positions.numpy()):
            for targets in ([7, 33], numpy.array([7, 33]), (7, 33)):
                same(logit_lens(model, ids, at, targets), usual)
    for targets, words in (
        ([7], "targets has the shape (1,), but there are 2 positions: pass one id for each"),
        ([7, 33, 5], "targets has the shape (3,)"),
        ([7, 99], "targets holds 99"),
        ([0.5, 1.0], "targets must be integers"),
        ("ab", "targets is of type str"),
    ):
        refused(lambda targets=targets: logit_lens(model, A, positions, targets), words)
    refused(lambda: logit_lens(model, A, [True]), "must be bool (1, 5)")
    refused(lambda: logit_lens(model, "Hello", positions), "is str, but must be ids `b t`")
    refused(lambda: logit_lens(model, [99], [True]), "holds 99")


def test_each_layer_takes_a_function(model):
    def use(*args):
        with each_layer(*args):
            pass

    refused(lambda: use(model, None), "function is of type NoneType")
    refused(lambda: use("tiny", entropy), "a model of this library")


# ---- attention weights

OF_WEIGHTS = {
    "entropy": entropy,
    "mean_distance": mean_distance,
    "offset_profile": lambda weights: offset_profile(weights, 2),
    "attention_mass": lambda weights: attention_mass(weights, torch.tensor(A)),
    "merge_tokens": lambda weights: merge_tokens(weights, [range(2), range(2, 5)], [range(5)]),
}


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_weights_in_every_form_and_wrong_ones(out, name):
    function, layers = OF_WEIGHTS[name], torch.cat(out.attentions)
    usual = function(layers)
    for form in (out.attentions, list(out.attentions), torch.stack(out.attentions), layers.numpy(), layers.tolist(),
                 [layer.numpy() for layer in layers], (layer for layer in layers), layers.double()):  # fmt: skip
        same(function(form), usual)
    same(function(layers[0, 1]), usual[0, 1] if torch.is_tensor(usual) else {k: x[0, 1] for k, x in usual.items()})
    pair = [layer.expand(2, -1, -1, -1) for layer in out.attentions]
    pruned = [out.attentions[0], out.attentions[1][:, :2]]
    for wrong, words in (
        (None, "weights holds no weights, or None for a layer: call the model with output_attentions=True"),
        ([None, None], "or None for a layer"),
        ((), "weights holds no weights"),
        (out, "weights is of type ModelOutput, but must be weights: pass out.attentions"),
        (pair, "weights holds 2 texts: pass one"),
        (pruned, "weights is of type list, but must hold attention weights: a tensor, an array, or a list whose parts"),
        ("map", "weights is of type str"),
        (torch.tensor(0.5), "weights has the shape ()"),
        (layers[..., :0], "with one or more of each"),
        (layers * math.nan, "weights holds nan, but attention weights are from 0 to 1"),
        (layers - 1, "but attention weights are from 0 to 1"),
        (layers * 5, "model.eval()"),
        (layers + math.inf, "weights holds inf"),
    ):
        refused(lambda wrong=wrong: function(wrong), words)


def test_other_arguments_of_metrics(out):
    weights = out.attentions[0]
    for wrong in (-1, 5, 1.5, "2", None):
        refused(lambda wrong=wrong: offset_profile(weights, wrong), "reach=")
    same(attention_mass(weights, A), attention_mass(weights, torch.tensor(A)))
    for wrong in ([A], [0, 1], "abcde", [0.5] * 5, None):
        refused(lambda wrong=wrong: attention_mass(weights, wrong))
    for wrong in ([], [range(0)], [range(4, 6)], [range(-1, 1)], [[0, 1]], range(2), None, "ab", [range(0, 4, 2)]):
        refused(lambda wrong=wrong: merge_tokens(weights, wrong, [range(2)]), "queries is")
        refused(lambda wrong=wrong: merge_tokens(weights, [range(2)], wrong), "keys is")


def test_rollout_in_every_form(out):
    usual = rollout(out.attentions)
    assert usual.shape == (2, 1, 5, 5)
    for form in (list(out.attentions), (layer for layer in out.attentions), torch.stack(out.attentions),
                 [layer.numpy() for layer in out.attentions]):  # fmt: skip
        same(rollout(form), usual)
    same(rollout([out.attentions[0], out.attentions[1][:, :2]])[0], usual[0])
    for wrong in (None, (), [], [None], out, "ab", torch.rand(5, 5), [torch.rand(1, 3, 5, 4)], 3, iter([]),
                  [out.attentions[0], out.attentions[1][..., :4, :4]], [out.attentions[0] * math.nan]):  # fmt: skip
        refused(lambda wrong=wrong: rollout(wrong), "attentions")
    for wrong in (-0.1, 1.5, math.nan, "0.5", None, 1j):
        refused(lambda wrong=wrong: rollout(out.attentions, wrong), "residual=")


def test_values(model, out):
    attention, hidden = model.backbone.layers[1].attention, out.hidden_states[1]
    usual = value_norms(attention, hidden)
    same(value_norms(attention, hidden.numpy()), usual)
    same(value_norms(attention, hidden.tolist()), usual)
    for wrong in (None, "ab", hidden[0], hidden[..., :-1], hidden[:, :0], hidden * math.nan):
        refused(lambda wrong=wrong: value_norms(attention, wrong), "hidden ")
    refused(lambda: value_norms(model, hidden), "attention is of type XLMRobertaXLForMaskedLM")
    same(value_weighted(out.attentions[1].numpy(), usual.numpy()), value_weighted(out.attentions[1], usual))
    for wrong in (usual[0], usual[:, :2], usual[..., :-1], None):
        refused(lambda wrong=wrong: value_weighted(out.attentions[1], wrong), "norms")


# ---- across languages


def test_a_single_text_is_one_text():
    tokenizer, model = (cls.from_pretrained("tiny") for cls in (XLMRobertaTokenizer, XLMRobertaXLForMaskedLM))
    usual = mean_states(model, tokenizer, ["one", "two and three"])
    assert mean_states(model, tokenizer, "one").shape == (model.config.num_hidden_layers + 1, 1, usual.shape[2])
    same(mean_states(model, tokenizer, "one"), usual[:, :1])
    for form in (
        ("one", "two and three"),
        (x for x in ("one", "two and three")),
        numpy.array(["one", "two and three"]),
    ):
        same(mean_states(model, tokenizer, form), usual)
    for wrong in ([], [b"one"], [None], None, {"one"}, [["one"]]):
        refused(lambda wrong=wrong: mean_states(model, tokenizer, wrong), "text")
    refused(lambda: mean_states("tiny", tokenizer, "one"), "a model of this library")


def test_vectors_of_retrieval():
    ours, theirs = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    usual = retrieval(ours, theirs)
    same(retrieval(ours.numpy(), theirs.tolist()), usual)
    for wrong in (theirs[0], theirs[:, :2], theirs[:1], theirs * math.nan, theirs + math.inf, None, "ab", []):
        refused(lambda wrong=wrong: retrieval(ours, wrong))
        refused(lambda wrong=wrong: retrieval(wrong, ours))
    refused(lambda: retrieval(ours[:, :1], theirs[:, :1]), "at least two texts")


# ---- pruned heads keep their numbers


@pytest.fixture(scope="module")
def pruned():
    """The model without head 0 of layer 0 and head 1 of layer 1; `masked` is the whole one, in which they give 0."""
    torch.manual_seed(0)
    whole = twins("ForMaskedLM")[1].eval()
    torch.manual_seed(0)
    model = twins("ForMaskedLM")[1].eval()
    mask = torch.tensor([[0.0, 1, 1], [1, 0, 1]])
    model.prune_heads({0: [0], 1: [1]})
    with torch.no_grad():
        masked = whole(torch.tensor([A]), head_mask=mask, output_attentions=True, output_hidden_states=True)
        out = model(torch.tensor([A]), output_attentions=True, output_hidden_states=True)
    heads = [layer.attention.heads for layer in model.backbone.layers]
    return SimpleNamespace(model=model, whole=whole, out=out, masked=masked, heads=heads, is_left=mask.bool())


def test_metrics_of_a_pruned_model(pruned):
    found = head_metrics(pruned.model, [A])
    maps = torch.cat(pruned.masked.attentions)
    for name, values in {"entropy": entropy(maps).mean(-1), "previous": attention_mass(maps, A)["previous"]}.items():
        same(found[name], values.masked_fill(~pruned.is_left, math.nan).float())
    classes = head_classes(found)
    assert [[name == "pruned" for name in row] for row in classes] == (~pruned.is_left).tolist()
    assert head_classes(head_metrics(pruned.whole, [A]))[0][2] == classes[0][2], "the first layer is otherwise the same"


def test_means_and_effects_of_a_pruned_model(pruned):
    means = head_means(pruned.model, [A])
    hidden, attention = pruned.masked.hidden_states[1], pruned.whole.backbone.layers[1].attention
    values = attention.split_heads(attention.value(attention.norm(hidden)))
    expected = (pruned.masked.attentions[1] @ values)[0].mean(1).detach()  # h d
    same(means[1, 2], expected[2])
    assert not means[0, 0].any()
    same(ablated_logits(pruned.model, {1: [2]}, means), ablated_logits(pruned.model, {1: [2]}, means.numpy()))
    assert (ablation_effects(pruned.model, {"input_ids": [A]}, score).isnan() == ~pruned.is_left).all()


def test_values_of_a_pruned_model(pruned):
    model, whole, states = pruned.model, pruned.whole, pruned.masked.hidden_states[1]
    norms = value_norms(model.backbone.layers[1].attention, states)
    expected = value_norms(whole.backbone.layers[1].attention, states)
    same(norms[:, [0, 2]], expected[:, [0, 2]])
    assert norms[:, 1].isnan().all()
    weighted = value_weighted(pruned.out.attentions[1], norms)
    same(weighted[:, [0, 2]], value_weighted(pruned.masked.attentions[1], expected)[:, [0, 2]])
    assert weighted[:, 1].isnan().all()


def test_values_of_cross_attention_and_int8():
    decoder = twins("ForCausalLM", is_decoder=True, add_cross_attention=True)[1].eval()
    cross, states = decoder.backbone.layers[0].cross_attention, torch.randn(1, 4, 24)
    value = cross.split_heads(cross.value(states))  # without cross.norm, which is for the queries
    alone = torch.zeros(1, 3, 8)
    alone[:, 1] = value[:, 1, 2]
    added = cross.out(alone.flatten(1)) - cross.out.bias
    same(value_norms(cross, states)[0, 1, 2], added.norm().detach())

    tiny, int8 = (XLMRobertaXLForMaskedLM.from_pretrained("tiny", quantize=x) for x in (None, "int8"))
    hidden = torch.randn(1, 4, tiny.config.hidden_size)
    one, other = (value_norms(x.backbone.layers[0].attention, hidden) for x in (tiny, int8))
    torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


def test_the_page_of_a_pruned_model(pruned):
    tokens = [str(i) for i in A]
    page = explore(pruned.out.attentions, tokens, heads=pruned.heads)
    assert '"heads":[[1,2],[0,2]]' in page.html
    assert '"heads":[[0,1],[0,1]]' in explore(pruned.out.attentions, tokens).html
    fewer = [pruned.out.attentions[0], pruned.out.attentions[1][:, :1]]  # as if one more head were pruned
    refused(lambda: explore(fewer, tokens), "so some are pruned: pass heads=")
    refused(lambda: plot.head_grid(fewer), "so some are pruned: pass heads=")
    for wrong in ([[1, 2]], [[1, 2], [0]], [[1, 1], [0, 2]], [[-1, 2], [0, 2]], [["1", 2], [0, 2]], [1, 2], 3, "ab"):
        refused(lambda wrong=wrong: explore(pruned.out.attentions, tokens, heads=wrong), "heads")


def test_the_explorer_takes_every_form(out):
    tokens = ["a", "b", "c", "d", "e"]
    usual = explore(out.attentions, tokens).html
    for form in ([layer.numpy() for layer in out.attentions], (layer for layer in out.attentions),
                 torch.stack(out.attentions).numpy(), torch.cat(out.attentions).tolist()):  # fmt: skip
        assert explore(form, tokens).html == usual
    for form in (tuple(tokens), (x for x in tokens), numpy.array(tokens)):
        assert explore(out.attentions, form).html == usual
    for wrong in ("abcde", tokens[:4], [*tokens, "f"], [1] * 5, [None, *tokens[1:]], None, dict.fromkeys(tokens)):
        refused(lambda wrong=wrong: explore(out.attentions, wrong), "tokens")
    for wrong in (None, 3, b"a"):
        refused(lambda wrong=wrong: explore(out.attentions, tokens, title=wrong), "title")
    refused(lambda: explore(out, tokens), "pass out.attentions")
    refused(lambda: explore(3, tokens), "attentions is of type int")


def test_tensors_that_cannot_be_read_and_hooks_that_are_no_pairs():
    for wrong in (torch.eye(3).to_sparse(), torch.empty(3, 3, device="meta"), torch.eye(3) * 1j):
        refused(lambda wrong=wrong: entropy(wrong), "that can be read")
    for hooks in (None, "ab", [torch.nn.Identity()]):
        refused(lambda hooks=hooks: hooked(hooks).__enter__(), "must be a pair of a module and a function")
