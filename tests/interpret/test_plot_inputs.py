"""What users pass to plot: usual forms, labels that do not match, values without a largest one, and hostile strings."""

import math
import re
import warnings

import numpy
import pytest
import torch
from matplotlib import font_manager
from refusal import refused_literally as refused
from transformers_reference import twins

from xlmrxl_min.inference.generation import Beam, Beams
from xlmrxl_min.interpret import Contributions, LogitLens, Retrieval, head_classes, head_metrics, plot, rollout
from xlmrxl_min.interpret.plot.figure import default_style

TOKENS = ["<s>", "▁All", "▁human", "s", "</s>"]
PAIR = ["<s>", "▁a", "▁b", "</s>", "</s>", "▁c", "▁d", "▁e", "</s>"]
MAP = torch.eye(5) * 0.6 + 0.08
STEPS = [Beams([Beam((1,), -0.5), Beam((2,), -0.6)], []), Beams([], [Beam((1, 3, 4, 0), -0.4)])]
HISTORY = [{"step": i, "loss": 4.0 - i, "lr": 0.1, "seconds": float(i)} for i in range(3)]
LENS = LogitLens(*[torch.ones(3, 5)] * 4)
CURVES = Retrieval(*[torch.tensor([0.1, 0.5])] * 3)
PARTS = Contributions(["embeddings", "attention 0"], *[torch.ones(2, 1, 3)] * 3)

# Each figure as a function of its token strings, with as many as are right.
OF_TOKENS = {
    "attention_map": (lambda tokens, **options: plot.attention_map(MAP, tokens, **options), TOKENS),
    "attention_map keys": (lambda tokens, **kwargs: plot.attention_map(MAP[:2], ["a", "b"], tokens, **kwargs), TOKENS),
    "attention_lines": (lambda tokens, **options: plot.attention_lines(MAP, tokens, **options), TOKENS),
    "rollout": (lambda tokens, **options: plot.rollout(MAP[None], tokens, 1, **options), TOKENS),
    "effects": (lambda tokens, **options: plot.effects(MAP[:2], tokens, **options), TOKENS),
    "saliency": (lambda tokens, **options: plot.saliency({"one": MAP[0], "two": MAP[1]}, tokens, **options), TOKENS),
    "logit_lens": (
        lambda tokens, **options: plot.logit_lens(LENS, [TOKENS] * 3, tokens, **options), TOKENS,
    ),
    "logit_lens predictions": (
        lambda tokens, **options: plot.logit_lens(LENS, [TOKENS, tokens, TOKENS], TOKENS, **options),
        TOKENS,
    ),
    "distributions": (lambda tokens, **options: plot.distributions({"one": MAP[0]}, tokens, **options), TOKENS),
    "beam_tree": (lambda tokens, **options: plot.beam_tree(STEPS, tokens, **options), TOKENS),
    "cross_lingual_map": (
        lambda tokens, **options: plot.cross_lingual_map(torch.full((9, 9), 1 / 9), tokens, **options), PAIR,
    ),
}  # fmt: skip

# The other figures.
OTHERS = {
    "head_grid": lambda **options: plot.head_grid(MAP.expand(2, 3, 5, 5), **options),
    "head_metrics": lambda **options: plot.head_metrics({"entropy": MAP, "<s>": MAP}, **options),
    "class_map": lambda **options: plot.class_map([["next", "other"]], **options),
    "offset_profiles": lambda **options: plot.offset_profiles(torch.rand(2, 3, 5), **options),
    "head_scatter": lambda **options: plot.head_scatter(MAP, MAP, marked={"a": [(0, 1)]}, **options),
    "score_parts": lambda **options: plot.score_parts(MAP, TOKENS, **options),
    "paired_scores": lambda **options: plot.paired_scores({"one": MAP[:2], "two": MAP[:2]}, ["a", "b"], **options),
    "effects of heads": lambda **options: plot.effects(MAP, **options),
    "residual_norms": lambda **options: plot.residual_norms(PARTS, **options),
    "retrieval_curves": lambda **options: plot.retrieval_curves({"en": CURVES}, **options),
    "training_curves": lambda **options: plot.training_curves({"one": HISTORY}, **options),
}
ALL = {**{name: lambda f=f, t=t, **options: f(t, **options) for name, (f, t) in OF_TOKENS.items()}, **OTHERS}


def laid_out(plotted):
    """All but the pixels: formulas, missing letters and labels without room are warnings of matplotlib, errors here."""
    assert "nan" not in plotted.caption
    with warnings.catch_warnings(), default_style():
        warnings.simplefilter("error")
        plotted.figure.draw_without_rendering()


def drawn(plotted, axis=0):
    return torch.tensor(plotted.figure.axes[axis].images[0].get_array().filled(math.nan))


# ---- strings of tokens


@pytest.mark.parametrize("name", OF_TOKENS)
def test_strings_of_tokens_in_every_form(name):
    function, tokens = OF_TOKENS[name]
    usual = function(tokens).caption
    for form in (tuple(tokens), (x for x in tokens), numpy.array(tokens)):
        assert function(form).caption == usual
    wrong = ["".join(tokens), tokens[:-1], [], [1] * len(tokens), [*tokens[:-1], None], None, 3, {*tokens}, b"ab"]
    wrong += [dict.fromkeys(tokens), [tokens], torch.zeros(len(tokens)), [] if name == "beam_tree" else [*tokens, "x"]]
    for one in wrong:
        if not (one is None and name in ("effects", "attention_map keys")):  # then there are none
            refused(lambda one=one: function(one))


def test_keys_are_needed_where_they_differ():
    refused(lambda: plot.attention_map(MAP[:2], ["a", "b"]), "the map is (2, 5): pass the tokens of its keys")


def test_a_pair_has_two_texts():
    weights = torch.full((9, 9), 1 / 9)
    without_first, without_second = ["<s>", *["</s>"] * 2, *"abcde", "</s>"], ["<s>", *"abcde", *["</s>"] * 3]
    padded = [*PAIR[:-2], "</s>", "<pad>"]
    for tokens in (without_first, without_second, padded, [*PAIR[:-1], "c"], ["▁x", *PAIR[1:]]):
        refused(lambda tokens=tokens: plot.cross_lingual_map(weights, tokens), "no pair")


# ---- weights and other values


@pytest.fixture(scope="module")
def attentions():
    with torch.no_grad():
        return twins("ForMaskedLM")[1].eval()(torch.tensor([[0, 7, 9, 7, 2]]), output_attentions=True).attentions


def test_attentions_as_they_come(attentions):
    layers = torch.cat(attentions)
    usual = plot.head_grid(layers)
    for form in (attentions, list(attentions), torch.stack(attentions), layers.numpy(), layers.tolist(),
                 (layer for layer in attentions)):  # fmt: skip
        found = plot.head_grid(form)
        assert found.caption == usual.caption
        torch.testing.assert_close(found.data["weights"], usual.data["weights"])
    one = plot.attention_map(layers[0, 1], TOKENS).caption
    for form in (layers[0, 1].numpy(), layers[0, 1].tolist(), layers[0, 1:2], attentions[0][:, 1:2]):
        assert plot.attention_map(form, TOKENS).caption == one
    steps = plot.rollout(rollout(list(layers)), TOKENS, 2).caption
    assert plot.rollout(rollout(attentions), TOKENS, 2).caption == steps
    pair = [layer.expand(2, -1, -1, -1) for layer in attentions]
    refused(lambda: plot.head_grid(pair), "weights[0] holds 2 texts, but must be of one")
    refused(lambda: plot.rollout(rollout(pair), TOKENS, 2), "steps has the shape (2, 2, 5, 5)")
    refused(lambda: plot.head_grid(None), "output_attentions=True")
    refused(lambda: plot.head_grid(layers[0]), "weights are 1 h q k or h q k")
    for plotted in (plot.attention_map, plot.attention_lines, plot.cross_lingual_map):
        refused(lambda plotted=plotted: plotted(attentions, TOKENS), "one map `q k` is shown: pass that of one head")
        refused(lambda plotted=plotted: plotted(layers[0], TOKENS), "weights has the shape (3, 5, 5)")
        for wrong in (None, "map", MAP * math.nan, MAP + 1, -MAP, MAP * math.inf, MAP[:0], 3):
            refused(lambda plotted=plotted, wrong=wrong: plotted(wrong, TOKENS), "weights")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(bad):
    ruined = MAP.clone()
    ruined[1, 2] = bad
    for plotted in (
        lambda: plot.head_grid(ruined.expand(1, 1, 5, 5)),
        lambda: plot.rollout(ruined[None], TOKENS, 1),
        lambda: plot.effects(ruined, TOKENS),
        lambda: plot.saliency({"one": ruined[1]}, TOKENS),
        lambda: plot.distributions({"one": ruined[1]}, TOKENS),
        lambda: plot.logit_lens(LENS._replace(probability=torch.full((3, 5), bad)), [TOKENS] * 3, TOKENS),
        lambda: plot.residual_norms(PARTS._replace(fraction=torch.full((2, 1, 3), bad))),
        lambda: plot.retrieval_curves({"en": CURVES._replace(accuracy=torch.full((2,), bad))}),
    ):
        refused(plotted, "")
    only = torch.full((2, 3), bad)
    refused(lambda: plot.effects(only), "values holds")
    refused(lambda: plot.offset_profiles(only[None]), "profiles holds")
    if not math.isnan(bad):
        refused(lambda: plot.head_metrics({"entropy": only}), "metrics['entropy'] holds")
    assert "entropy nowhere defined" in plot.head_metrics({"entropy": only * math.nan}).caption


def test_values_without_a_largest_one():
    """All zero, as of an ablated head, or all equal: the caption names no largest one, and nothing is divided by 0."""
    zero, same = torch.zeros(5, 5), torch.full((5, 5), 0.2)
    for plotted, words in (
        (plot.attention_map(zero, TOKENS), "all weights are 0.00."),
        (plot.attention_map(same, TOKENS), "all weights are 0.20."),
        (plot.attention_lines(zero, TOKENS), "One head: all weights are 0."),
        (plot.attention_lines(zero, TOKENS, min_weight=0), "all weights are 0."),
        (plot.head_grid(zero.expand(2, 2, 5, 5)), "largest weight is 0.00 in every head."),
        (plot.rollout(zero[None], TOKENS, 1), "0% of “All” comes from its own position."),
        (plot.rollout(torch.ones(1, 1, 1), ["a"], 0), "100% of “a” comes from its own position."),
        (plot.cross_lingual_map(torch.zeros(9, 9), PAIR), "all weights are 0.00."),
        (plot.effects(zero), "all effects are +0.00 (change in score)."),
        (plot.effects(same, TOKENS), "all effects are +0.20 (change in score)."),
        (plot.saliency({"one": zero[0]}, TOKENS), "largest for all tokens alike (+0.00) by one."),
        (plot.head_metrics({"entropy": zero, "<s>": same}), "entropy 0.00 nats (all heads), <s> 20% (all heads)."),
        (plot.offset_profiles(torch.zeros(2, 2, 3)), "0% at every offset."),
        (plot.residual_norms(PARTS._replace(stream_norm=torch.zeros(2, 1, 3))), "from 0.0 to 0.0"),
        (plot.logit_lens(LENS._replace(probability=torch.zeros(3, 5)), [TOKENS] * 3, TOKENS), "“human” from embed"),
        (plot.retrieval_curves({"en": Retrieval(*torch.zeros(3, 2))}), "en 0%"),
    ):
        assert words in plotted.caption, plotted.caption
        laid_out(plotted)


def test_training_curves_with_little_to_show():
    one, unknown = HISTORY[:1], [{**entry, "loss": math.nan} for entry in HISTORY]
    some = [*unknown, {**HISTORY[0], "loss": math.inf}, *one]
    plotted = plot.training_curves({"one": one, "none": unknown, "some": some})
    assert "one from 4.00 to 4.00 in 0 s; none unknown in 2 s (loss not finite in 3 of 3 steps)" in plotted.caption
    assert "some from 4.00 to 4.00 in 0 s (loss not finite in 4 of 5 steps)" in plotted.caption
    assert [line.get_marker() for line in plotted.figure.axes[0].lines][1] == "o", "a single step can be seen"
    laid_out(plotted)
    for wrong in ({}, {"one": []}, HISTORY, {"one": HISTORY[0]}, {"one": [{"step": 1}]}, {"one": None}, {1: HISTORY},
                  {"one": [{**HISTORY[0], "loss": "4"}]}, None, "history"):  # fmt: skip
        refused(lambda wrong=wrong: plot.training_curves(wrong), "histories")


def test_distributions_are_probabilities():
    refused(lambda: plot.distributions({"one": torch.tensor([2.0, -1, 0])}, ["a", "b", "c"]), "use softmax")
    refused(lambda: plot.distributions({"one": torch.zeros(3)}, ["a", "b", "c"]), "use softmax")
    refused(lambda: plot.distributions({"one": MAP[0], "two": MAP[0, :4]}, TOKENS), "of different shapes")
    for wrong in ({}, MAP[0], None, {"one": MAP}):
        refused(lambda wrong=wrong: plot.distributions(wrong, TOKENS), "probabilities")
    for wrong in (0, -1, 65, 2.5, "3", None):
        refused(lambda wrong=wrong: plot.distributions({"one": MAP[0]}, TOKENS, top=wrong), "top=")


def test_beams_of_one_prompt():
    unfinished = plot.beam_tree(STEPS[:1], TOKENS)
    assert unfinished.caption == "Beam search: 0 of 2 hypotheses are finished."
    laid_out(unfinished)
    for wrong in ([], [STEPS], [None], None, [Beams([], [])], [Beams([Beam((), 0.0)], [])], "ab"):
        refused(lambda wrong=wrong: plot.beam_tree(wrong, TOKENS), "steps")


def test_other_arguments():
    for wrong in ({}, None, {"one": None}, {"one": [MAP[0]]}, {"one": MAP}, {"one": [MAP[0], "b"]}, {1: MAP[:2]}):
        refused(lambda wrong=wrong: plot.paired_scores(wrong, ["a", "b"]), "scores")
    refused(lambda: plot.paired_scores({"one": MAP[:2, :1]}, ["a", "b"]), "has one item")
    for wrong in ({"a": [(0, 5)]}, {"a": [0]}, {"a": None}, {"a": [(0,)]}, {"a": ["ab"]}, 3):
        refused(lambda wrong=wrong: plot.head_scatter(MAP, MAP, marked=wrong), "marked")
    refused(lambda: plot.head_scatter(MAP, MAP[:2]), "of different shapes")
    refused(lambda: plot.head_scatter(MAP[:1, :1], MAP[:1, :1]), "1 heads have both values")
    refused(lambda: plot.score_parts(MAP[:2], TOKENS[:2]), "a row and a column for each name")
    for wrong in (-0.1, 1.5, math.nan, "0.1", None):
        refused(lambda wrong=wrong: plot.attention_lines(MAP, TOKENS, min_weight=wrong), "min_weight=")
    for wrong in (5, -1, 1.0, "1", None):
        refused(lambda wrong=wrong: plot.rollout(MAP[None], TOKENS, wrong), "position=")
    for wrong in (-1, 0.5, "1", None):
        refused(lambda wrong=wrong: plot.head_grid(MAP[None, None], first_layer=wrong), "first_layer=")
    refused(lambda: plot.rollout(MAP[None, :, :4], TOKENS[:4], 1), "with q = k")
    refused(lambda: plot.offset_profiles(torch.rand(2, 3, 4)), "has 4 offsets")
    refused(lambda: plot.saliency({"one": MAP[0], "two": MAP[0, :4]}, TOKENS), "of different shapes")
    for wrong in ({}, MAP[0], None, {1: MAP[0]}):
        refused(lambda wrong=wrong: plot.saliency(wrong, TOKENS), "scores")
        refused(lambda wrong=wrong: plot.head_metrics(wrong), "metrics")
        refused(lambda wrong=wrong: plot.retrieval_curves(wrong), "found")
    refused(lambda: plot.head_metrics({"a": MAP, "b": MAP[:2]}), "of different shapes")
    refused(lambda: plot.retrieval_curves({"en": CURVES[:2]}), "found['en'] has 2 parts")
    for wrong in ([], [[]], [["next"], ["next", "other"]], [["nice"]], "next", [None], [[None]], None):
        refused(lambda wrong=wrong: plot.class_map(wrong), "classes")
    assert plot.class_map(numpy.array([["next", "other"]])).data["counts"]["next"] == 1
    for wrong in (None, "parts", (1, 2, 3, 4), PARTS._replace(names=["a"])):
        refused(lambda wrong=wrong: plot.residual_norms(wrong), "parts")


@pytest.mark.parametrize("name", ALL)
def test_titles(name):
    for wrong in (None, 3, b"title", ["title"]):
        refused(lambda wrong=wrong: ALL[name](title=wrong), "title is of type")
    title = "$x$ \\frac{ \n 100% 人人\u202e👦🏽 " + "long " * 200
    plotted = ALL[name](title=title)
    assert plotted.caption.startswith("$x$ \\frac{ 100% 人人RIGHT-TO-LEFT OVERRIDE👦🏽 long long")
    laid_out(plotted)
    assert max(plotted.figure.get_size_inches()) < 15
    assert ALL[name](title="").caption[0] not in ":.,"


# ---- pruned heads


def test_pruned_heads_are_empty_cells():
    """Heads 0 of layer 0 and 1 of layer 1 are pruned; the others are drawn and named by their own numbers."""
    sharp = torch.eye(5).repeat(2, 1, 1)
    layers, heads = [torch.stack([MAP, MAP]), sharp], [[1, 2], [0, 2]]
    plotted = plot.head_grid([layer[None] for layer in layers], heads=heads)
    mosaic = drawn(plotted)
    assert mosaic.shape == (11, 17)
    for layer in range(2):
        for head in range(3):
            cell = mosaic[6 * layer : 6 * layer + 5, 6 * head : 6 * head + 5]
            expected = layers[layer][heads[layer].index(head)] if head in heads[layer] else torch.full((5, 5), math.nan)
            torch.testing.assert_close(cell, expected, equal_nan=True)
    assert "is highest, 1.00, in layer 1, head 0, and lowest, 0.68, in layer 0, head 1." in plotted.caption
    laid_out(plotted)
    assert drawn(plot.head_grid(layers)).shape == (11, 11), "numbered from 0"
    for wrong in ([[1, 2]], [[0], [1]], [[1, 1], [0, 2]], [[-1, 0], [0, 2]], 3):
        refused(lambda wrong=wrong: plot.head_grid(layers, heads=wrong), "heads")

    profiles = [torch.tensor([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]]), torch.tensor([[0.2, 0.9, 0.1], [0.1, 0.1, 0.1]])]
    plotted = plot.offset_profiles(profiles, heads=heads)
    assert "90% at offset +0, in layer 1, head 0" in plotted.caption
    assert drawn(plotted).isnan().all(-1).tolist() == [True, False, False, False, True, False]
    laid_out(plotted)


def test_figures_of_a_pruned_model():
    model = twins("ForMaskedLM")[1].eval()
    model.prune_heads({0: [0], 1: [1]})
    metrics = head_metrics(model, [[0, 7, 9, 7, 2]])
    plotted = plot.head_metrics(metrics)
    assert drawn(plotted).isnan().tolist() == [[True, False, False], [False, True, False]]
    laid_out(plotted)
    classes = head_classes(metrics)
    plotted = plot.class_map(classes)
    assert plotted.data["counts"]["pruned"] == 2
    assert plotted.caption.endswith("2 pruned.")
    assert [text.get_text() == "" for text in plotted.figure.axes[0].texts] == [True, False, False, False, True, False]
    assert drawn(plotted).isnan().tolist() == [[True, False, False], [False, True, False]]
    laid_out(plotted)
    effects = torch.tensor([[math.nan, 0.1], [math.nan, -0.3]])  # one head is pruned in every layer
    assert "is -0.30 (change in score), of layer 1, head 1." in plot.effects(effects).caption


# ---- hostile strings

HOSTILE = ["$x^2$ \\", "$\\frac{", "a\nb\tc", "\x00\x1b[31m", "\u202eabc\u200f", "x" * 300, "", "人", "\ud83d"]
HOSTILE += ["👨\u200d👩 👦🏽"]


@pytest.fixture
def only_dejavu(monkeypatch):
    """As where no other font is installed."""
    fonts = [entry for entry in font_manager.fontManager.ttflist if entry.name == "DejaVu Sans"]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", fonts)


@pytest.mark.parametrize("name", OF_TOKENS)
def test_hostile_tokens_are_drawn_without_warnings(name, only_dejavu):
    function, tokens = OF_TOKENS[name]
    strings = iter(HOSTILE * 2)
    for _ in range(math.ceil(len(HOSTILE) / len(tokens))):
        chosen = [x if name == "cross_lingual_map" and x in ("<s>", "</s>") else next(strings) for x in tokens]
        plotted = function(chosen)
        assert not any(c in plotted.caption for c in "\n\t\x00\x1b\u202e\u200f\ud83d")
        laid_out(plotted)


def test_scripts_are_named_rightly_or_not_at_all(only_dejavu):
    strings = {
        "👦": "symbols",
        "👧🏽": "symbols",
        "🇫🇷": "symbols",
        "a\ue000": "symbols",
        "㍿": "symbols",
        "𝐀": "symbols",
    }
    strings |= {"人": "CJK", "ひ": "Hiragana", "한": "Hangul", "ᄀ": "Hangul", "ก": "Thai", "ꦏ": "Javanese"}
    strings |= {"𐎠": "Old Persian", "𐀀": "Linear B", "𓀀": "Egyptian", "Ａ": "Fullwidth Latin"}
    for text, script in strings.items():
        caption = plot.saliency({"one": torch.tensor([1.0])}, [text]).caption
        found = re.search(r"the fonts here lack them \((.*)\): #1 = ", caption)
        assert (found[1] if found else None) == script, (text, caption)


def test_names_of_curves_and_units():
    name = "$\\frac{ 人\n" + "long " * 50
    for plotted in (
        plot.training_curves({name: HISTORY}),
        plot.retrieval_curves({name: CURVES}),
        plot.saliency({name: MAP[0]}, TOKENS),
        plot.distributions({name: MAP[0]}, TOKENS),
        plot.effects(MAP, unit=name),
        plot.head_metrics({name: MAP}),
        plot.residual_norms(PARTS._replace(names=[name, "b"])),
    ):
        laid_out(plotted)
    refused(lambda: plot.effects(MAP, unit=None), "unit is of type NoneType")
