"""Figures show their data: arrays, labels, captions; every character of every script is rendered or numbered."""

import io
import warnings

import matplotlib
import pytest
import torch
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from xlmrxl_min.inference.generation import Beam, Beams
from xlmrxl_min.interpret import Contributions, LogitLens, Retrieval, plot
from xlmrxl_min.interpret.plot.figure import COLORS

TOKENS = ["<s>", "▁All", "▁human", "▁being", "s", "</s>"]
HAND = torch.tensor(
    [
        [0.5, 0.1, 0.1, 0.1, 0.1, 0.1],
        [0.0, 0.2, 0.8, 0.0, 0.0, 0.0],
        [0.0, 0.1, 0.1, 0.8, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.05, 0.95, 0.0],
        [0.2, 0.2, 0.2, 0.2, 0.1, 0.1],
        [0.0, 0.0, 0.0, 0.0, 0.3, 0.7],
    ]
)


def shown(plotted, axis=0):
    """The array of the image of one of the figure's axes."""
    return torch.tensor(plotted.figure.axes[axis].images[0].get_array().filled(float("nan")))


def labels(axis):
    return [label.get_text() for label in axis]


def rendered(plotted):
    """The picture; a letter that the fonts lack is a warning in matplotlib, and an error here."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Image.open(io.BytesIO(plotted.png()))


def test_attention_map():
    plotted = plot.attention_map(HAND, TOKENS, title="A head")
    torch.testing.assert_close(shown(plotted), HAND)
    axis = plotted.figure.axes[0]
    assert labels(axis.get_yticklabels()) == labels(axis.get_xticklabels()) == [
        "<s>", "All", "human", "being", "s", "</s>",
    ]  # fmt: skip
    assert plotted.caption == "A head: the largest weight is 0.95, from query “being” to key “s”."
    with pytest.raises(ValueError, match=r"tokens has 5 strings, but there are 6 tokens"):
        plot.attention_map(HAND, TOKENS[:5])


def test_attention_map_of_other_keys():
    plotted = plot.attention_map(HAND[:2], ["a", "b"], TOKENS)
    assert "from query “b” to key “human”" in plotted.caption
    assert len(plotted.figure.axes[0].get_yticks()) == 2


def test_long_maps_are_pooled():
    weights = torch.randn(130, 130).softmax(-1)
    plotted = plot.attention_map(weights, [f"w{i}" for i in range(130)])
    values = shown(plotted)
    assert values.shape == (44, 44), "blocks of three"
    torch.testing.assert_close(values[1, 2], sum(weights[q, k] for q in (3, 4, 5) for k in (6, 7, 8)) / 3)
    torch.testing.assert_close(values[43], weights[129:].reshape(130).split(3)[0].new_tensor(
        [part.sum() for part in weights[129].split(3)]
    ))  # fmt: skip
    torch.testing.assert_close(values.sum(-1), torch.ones(44))
    assert "130 tokens in blocks of 3" in plotted.figure.axes[0].get_title()
    assert "Pooled: queries: 130 tokens in blocks of 3" in plotted.caption
    assert labels(plotted.figure.axes[0].get_yticklabels())[1] == "3–5"
    rendered(plotted)


def test_head_grid():
    weights = torch.randn(2, 3, 5, 5).softmax(-1)
    weights[1, 2] = torch.eye(5)
    weights[0, 1] = 1 / 5
    plotted = plot.head_grid(weights, first_layer=4)
    mosaic = shown(plotted)
    assert mosaic.shape == (11, 17)
    for layer in range(2):
        for head in range(3):
            part = mosaic[6 * layer : 6 * layer + 5, 6 * head : 6 * head + 5]
            torch.testing.assert_close(part, weights[layer, head])
    assert mosaic[5].isnan().all()
    assert plotted.figure.axes[0].get_facecolor()[3] == 0, "the gaps have the colour of the page"
    assert "is highest, 1.00, in layer 5, head 2, and lowest, 0.20, in layer 4, head 1." in plotted.caption
    with pytest.raises(ValueError, match=r"1,152 maps are too many for one picture \(64\): take some layers"):
        plot.head_grid(torch.zeros(36, 32, 2, 2))


def test_head_grid_with_tokens():
    weights = torch.randn(2, 3, 6, 6).softmax(-1)
    axis = plot.head_grid(weights, TOKENS).figure.axes[0]
    names = ["<s>", "All", "human", "being", "s", "</s>"]
    assert labels(axis.get_xticklabels(minor=True)) == 3 * names
    assert labels(axis.get_yticklabels(minor=True)) == 2 * names
    assert axis.get_xticks(minor=True).tolist() == [7 * head + k for head in range(3) for k in range(6)]
    with pytest.raises(ValueError, match="at most 16"):
        plot.head_grid(torch.full((1, 1, 17, 17), 1 / 17), ["a"] * 17)


def test_attention_lines_join_queries_and_keys():
    plotted = plot.attention_lines(HAND, TOKENS, min_weight=0.15)
    expected = {(q, k) for q in range(6) for k in range(6) if HAND[q, k] >= 0.15}
    axis = plotted.figure.axes[0]
    assert {tuple(line.get_ydata()) for line in axis.lines} == expected
    assert {(q, k) for q, k, _ in plotted.data["lines"]} == expected
    ends = [text.get_text() for text in axis.texts]
    assert ends.count("human") == 2, "left and right"
    fraction = sum(float(HAND[q, k]) for q, k in expected) / 6
    assert plotted.data["fraction"] == pytest.approx(fraction)
    assert f"{len(expected)} weights of at least 0.15 hold {fraction:.0%}" in plotted.caption
    assert "is from query “being” to key “s”" in plotted.caption
    assert "0 weights of at least 0.99" in plot.attention_lines(HAND, TOKENS, min_weight=0.99).caption


def test_head_metrics():
    metrics = {"entropy": torch.rand(4, 3) * 2, "<s>": torch.rand(4, 3) / 2}
    metrics["entropy"][2, 1], metrics["<s>"][3, 0], metrics["<s>"][0, 0] = 2.5, 0.75, float("nan")
    plotted = plot.head_metrics(metrics)
    torch.testing.assert_close(shown(plotted, 0), metrics["entropy"])
    torch.testing.assert_close(shown(plotted, 1), metrics["<s>"], equal_nan=True)
    assert "entropy 2.50 nats (L2H1), <s> 75% (L3H0)" in plotted.caption
    assert [axis.images[0].norm.vmax for axis in plotted.figure.axes[:2]] == [2.5, 0.75], "each on its own scale"
    written = [[text.get_text() for text in axis.texts] for axis in plotted.figure.axes[:2]]
    assert [len(texts) for texts in written] == [12, 11], "NaN has no number"
    assert "2.5" in written[0]
    assert "0.75" in written[1]
    assert not plot.head_metrics({"<s>": torch.rand(36, 32)}).figure.axes[0].texts, "no room"


def test_class_map():
    plotted = plot.class_map([["next", "other", "other"], ["uniform", "other", "next"]])
    assert plotted.data["counts"]["next"] == 2
    assert plotted.caption.endswith("of 6 heads: 2 next, 1 uniform, 3 other.")
    assert [text.get_text() for text in plotted.figure.axes[0].texts] == [
        "next", "other", "other", "uniform", "other", "next",
    ]  # fmt: skip
    assert not plot.class_map([["other"] * 32] * 36).figure.axes[0].texts, "a legend instead, where there is no room"


def test_offset_profiles():
    profiles = torch.rand(2, 3, 9) / 2
    profiles[1, 2, 3] = 0.75
    plotted = plot.offset_profiles(profiles)
    torch.testing.assert_close(shown(plotted), profiles.reshape(6, 9))
    assert "75% at offset -1, in layer 1, head 2" in plotted.caption
    assert "0.75" in [text.get_text() for text in plotted.figure.axes[0].texts]


def test_head_scatter():
    x, y = torch.tensor([[0.1, 0.9], [0.5, float("nan")]]), torch.tensor([[-0.1, -3.0], [0.2, 7.0]])
    plotted = plot.head_scatter(x, y, x="sharpness", y="cost", marked={"next": [(0, 1)]})
    others, marked = [line for line in plotted.figure.axes[0].lines if line.get_marker() == "o"]
    assert others.get_xydata().flatten().tolist() == pytest.approx([0.1, -0.1, 0.5, 0.2])
    assert marked.get_xydata().flatten().tolist() == pytest.approx([0.9, -3.0])
    assert [text.get_text().strip() for text in plotted.figure.axes[0].texts] == ["L0H1"]
    assert plotted.data["correlation"] == pytest.approx(-0.5), "ranks 0, 2, 1 and 1, 0, 2"
    assert "the largest sharpness is 0.90, of L0H1; the largest cost -3.00, of L0H1" in plotted.caption
    with pytest.raises(ValueError, match=r"marked has \(1, 1\)"):
        plot.head_scatter(x, y, marked={"next": [(1, 1)]})


def test_score_parts():
    parts = torch.tensor([[0.0, -1.0], [2.5, 0.01]])
    plotted = plot.score_parts(parts, ["word", "position"], title="L0H1")
    torch.testing.assert_close(shown(plotted), parts)
    assert [text.get_text() for text in plotted.figure.axes[0].texts] == ["-1.0", "+2.5"], "small ones are left out"
    assert plotted.caption == (
        "L0H1: +1.5 in all; the largest part, +2.5, is the query's position with the key's word."
    )


def test_paired_scores():
    a, b = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-1.5, -2.0, -4.0])
    plotted = plot.paired_scores({"all": (a, b), "without": (b, b)}, ("right", "wrong"), unit="score")
    whole, without = plotted.data.values()
    assert whole == pytest.approx(
        {"first": -2, "second": -2.5, "difference": 0.5, "change": 0.5, "margin": 0.98 / 3**0.5}
    )
    assert without["difference"] == 0
    assert without["change"] == -0.5
    assert "right minus wrong, in score, all: +0.50 ± 0.57." in plotted.caption
    assert "Changes of this difference: without: -0.50 ± 0.57." in plotted.caption
    with pytest.raises(ValueError, match="of different shapes"):
        plot.paired_scores({"all": (a, b), "without": (b[:2], b[:2])}, ("right", "wrong"))


def test_rollout():
    steps = torch.stack([torch.eye(6), HAND])
    plotted = plot.rollout(steps, TOKENS, 4)
    torch.testing.assert_close(shown(plotted), torch.stack([torch.eye(6)[4], HAND[4]]))
    assert "10% of “s” comes from its own position;" in plotted.caption
    assert "the largest fraction from another one is 20%, from “<s>” at position 0." in plotted.caption


def test_residual_norms():
    names = ["embeddings", "attention 0", "feed-forward 0"]
    parts = Contributions(
        names,
        torch.ones(3, 1, 2),
        torch.tensor([[[1.0, 3.0]], [[4.0, 4.0]], [[5.0, 7.0]]]),
        torch.tensor([[[0.1, 0.3]], [[0.2, 0.2]], [[0.7, 0.5]]]),
    )
    plotted = plot.residual_norms(parts)
    left, right = plotted.figure.axes
    assert left.lines[0].get_ydata().tolist() == [2.0, 4.0, 6.0]
    assert [bar.get_height() for bar in right.patches[:3]] == pytest.approx([0.2, 0.2, 0.6])
    assert "from 2.0 to 6.0" in plotted.caption
    assert "20% comes from embeddings, 20% comes from attention, 60% comes from feed-forward" in plotted.caption


def test_logit_lens():
    probability = torch.tensor([[0.0, 0.1], [0.4, 0.9]])
    lens = LogitLens(torch.zeros(2, 2), probability, torch.tensor([[1200, 1], [2, 1]]), torch.zeros(2, 2))
    plotted = plot.logit_lens(lens, [["▁a", "▁b"], ["▁c", "▁b"]], ["▁life", "▁b"])
    torch.testing.assert_close(shown(plotted), probability)
    assert [text.get_text() for text in plotted.figure.axes[0].texts] == [
        "a\nrank 1,200", "b\nrank 1", "c\nrank 2", "b\nrank 1",
    ]  # fmt: skip
    assert "“life” never, “b” from embeddings on" in plotted.caption


def test_effects():
    values = torch.tensor([[0.1, -0.7, 0.2], [float("nan"), 0.3, 0.0]])
    plotted = plot.effects(values, title="Ablation", unit="logit")
    torch.testing.assert_close(shown(plotted), values, equal_nan=True)
    assert "is -0.70 (logit), of layer 0, head 1." in plotted.caption
    image = plotted.figure.axes[0].images[0]
    assert image.norm.vmax == -image.norm.vmin == pytest.approx(0.7), "the scale is symmetric around 0"
    assert ", of layer 1, “human”." in plot.effects(values.nan_to_num(0).flip(0), ["▁All", "▁human", "s"]).caption
    long = plot.effects(torch.ones(2, 130), [f"w{i}" for i in range(130)])
    assert shown(long).shape == (2, 44)
    assert float(shown(long)[0, 0]) == 3, "summed"
    assert "summed" in long.figure.axes[0].get_title()


def test_saliency():
    scores = {"one": torch.tensor([0.0, 1, 2, -3, 0, 0]), "two": torch.tensor([0.0, 5, 0, 0, 0, 0])}
    plotted = plot.saliency(scores, TOKENS)
    for axis, values in zip(plotted.figure.axes, scores.values(), strict=True):
        assert [bar.get_width() for bar in axis.patches] == values.tolist()
    assert "largest for “being” (-3.00) by one, “All” (+5.00) by two" in plotted.caption


def test_cross_lingual_map():
    tokens = ["<s>", "▁a", "b", "</s>", "</s>", "▁c", "</s>"]
    weights = torch.full((7, 7), 1 / 7)
    weights[5] = torch.tensor([0.0, 0.5, 0.25, 0, 0, 0.25, 0])
    plotted = plot.cross_lingual_map(weights, tokens)
    assert plotted.data["second to first"] == pytest.approx(0.75)
    assert plotted.data["first to second"] == pytest.approx(1 / 7)
    assert "the second text gives 75% of its attention to the first, and the first 14% to the second" in plotted.caption
    assert "is 0.75, from query “c” to key “ab”." in plotted.caption
    assert shown(plotted).shape == (6, 6), "words"
    with pytest.raises(ValueError, match="no pair"):
        plot.cross_lingual_map(HAND, TOKENS)


def test_retrieval_curves():
    one = Retrieval(torch.tensor([0.1, 0.6, 0.5]), torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0.5, 0.4, 0.3]))
    plotted = plot.retrieval_curves({"English – French": one})
    left, right = plotted.figure.axes
    assert left.lines[0].get_ydata().tolist() == one.accuracy.tolist()
    assert [line.get_ydata().tolist() for line in right.lines] == [
        one.translation_cosine.tolist(),
        one.other_cosine.tolist(),
    ]
    assert "English – French 60% (after 1 layers)" in plotted.caption
    both = plot.retrieval_curves({"French": one, "Hindi": one}).figure.axes
    assert [len(axis.lines) for axis in both] == [2, 2, 2], "each pair's cosines in a panel of its own"


# ---- scripts


@pytest.fixture
def only_dejavu(monkeypatch):
    """As on a machine that has only matplotlib's own fonts."""
    fonts = [entry for entry in font_manager.fontManager.ttflist if entry.name == "DejaVu Sans"]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", fonts)


SCRIPTS = ["▁Würde", "право", "自由和", "गौरव", "ศักดิ์ศรี", "Όλοι"]


def test_tokens_that_the_fonts_lack_are_numbered(only_dejavu):
    plotted = plot.attention_map(HAND, SCRIPTS)
    names = ["Würde", "право", "#1", "#2", "#3", "Όλοι"]
    assert labels(plotted.figure.axes[0].get_xticklabels()) == names
    assert "#1 = 自由和, #2 = गौरव, #3 = ศักดิ์ศรี" in plotted.caption
    assert "(CJK, Devanagari, Thai)" in plotted.caption
    assert "see the caption" in plotted.figure.get_supxlabel()
    rendered(plotted)


def test_no_figure_renders_a_missing_glyph(only_dejavu):
    maps, values = HAND.expand(2, 6, 6), torch.rand(2, 6)
    pair = ["<s>", "▁自由", "</s>", "</s>", "▁गौरव", "</s>"]
    lens = LogitLens(values, values, torch.ones(2, 6), values)
    for plotted in (
        plot.attention_lines(HAND, SCRIPTS),
        plot.rollout(maps, SCRIPTS, 2),
        plot.logit_lens(lens, [SCRIPTS, SCRIPTS], SCRIPTS),
        plot.effects(values, SCRIPTS),
        plot.saliency({"one": values[0]}, SCRIPTS),
        plot.cross_lingual_map(HAND, pair),
    ):
        rendered(plotted)
        assert "#1 = 自由" in plotted.caption
        assert plotted.figure.get_supxlabel().endswith("see the caption")


@pytest.mark.parametrize(("version", "is_numbered"), [((3, 10), True), ((3, 11), False)])
def test_arabic_is_numbered_where_matplotlib_does_not_join_letters(only_dejavu, monkeypatch, version, is_numbered):
    monkeypatch.setattr(matplotlib, "__version_info__", version)
    caption = plot.attention_lines(HAND, ["الكرامة", "▁Würde", "право", "a", "b", "c"]).caption
    assert caption.endswith("(Arabic): #1 = الكرامة.") == is_numbered == ("#" in caption)


@pytest.mark.skipif(matplotlib.__version_info__ < (3, 11), reason="matplotlib before 3.11 does not join letters")
def test_arabic_letters_are_joined():
    """Joined letters are narrower than the same ones apart, which a zero-width non-joiner keeps them."""
    figure = matplotlib.figure.Figure()
    renderer = FigureCanvasAgg(figure).get_renderer()
    joined, apart = (figure.text(0, 0, text).get_window_extent(renderer).width for text in ("ببب", "ب\u200cب\u200cب"))
    assert joined < apart


def test_invisible_tokens_have_names_and_no_token_is_a_formula():
    plotted = plot.attention_map(HAND, ["▁", "$x_1$ $", "\u200b", "\n", "<script>", "%s"])
    assert labels(plotted.figure.axes[0].get_xticklabels()) == [
        "▁", "$x_1$ $", "ZERO WIDTH SPACE", "U+000A", "<script>", "%s",
    ]  # fmt: skip
    rendered(plotted)


# ---- output


def test_figures_ignore_the_users_settings():
    before = plot.attention_lines(HAND, TOKENS).png()
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.dpi": 300}):
        assert plot.attention_lines(HAND, TOKENS).png() == before
    assert plot.attention_lines(HAND, TOKENS).png() == before


def test_a_notebook_shows_the_picture_then_the_caption(monkeypatch, capsys):
    published = []
    monkeypatch.setattr("IPython.display.display", lambda *args, **kwargs: published.append((args, kwargs)))
    plotted = plot.attention_lines(HAND, TOKENS)
    plotted._ipython_display_()
    [((data,), options)] = published
    assert data["image/png"] == plotted.png()
    assert options["metadata"]["image/png"]["alt"] == plotted.caption
    printed = capsys.readouterr().out
    assert " ".join(printed.split()) == plotted.caption
    assert max(map(len, printed.splitlines())) <= 96


def test_save_writes_each_format(tmp_path):
    plotted = plot.attention_lines(HAND, TOKENS)
    for name in ("links.png", "links.svg", "links.pdf"):
        plotted.save(tmp_path / "new" / name)
    assert Image.open(tmp_path / "new" / "links.png").size == rendered(plotted).size


def test_training_curves():
    history = [{"step": i + 1, "loss": 20.0 - i, "lr": i / 20, "seconds": 2.0 * i} for i in range(20)]
    history[3]["loss"] = float("nan")
    plotted = plot.training_curves({"one": history})
    left, right = plotted.figure.axes
    assert left.lines[0].get_ydata()[0] == 20
    assert left.lines[1].get_ydata()[:4].tolist() == [20.0, 19.5, 18.5, 17.0], "a mean of two; step 4 has no loss"
    assert left.lines[1].get_xdata()[:4].tolist() == [1, 2, 3, 5]
    assert right.lines[0].get_ydata().tolist() == [entry["lr"] for entry in history]
    assert "one from 20.00 to 1.50 in 38 s" in plotted.caption


def test_distributions():
    ones = {"all": torch.tensor([0.1, 0.6, 0.3, 0.0]), "two": torch.tensor([0.0, 0.7, 0.3, 0.0])}
    plotted = plot.distributions(ones, ["a", "▁b", "c", "d"], top=3)
    left, right = plotted.figure.axes
    assert labels(left.get_yticklabels()) == ["b", "c", "a"]
    assert [round(bar.get_width(), 3) for bar in left.patches] == [0.6, 0.3, 0.1]
    assert [text.get_text() for text in right.texts] == ["cut off"]
    assert plotted.caption == "Next-token probabilities: all 60% for “b”, 3 possible; two 70% for “b”, 2 possible."
    rendered(plotted)


def test_beam_tree():
    steps = [
        Beams([Beam((1,), -0.5), Beam((2,), -1.0)], []),
        Beams([Beam((1, 3), -0.7), Beam((1, 4), -0.9)], []),
        Beams([], [Beam((1, 4, 0), -0.4), Beam((1, 3, 0), -0.5)]),
    ]
    plotted = plot.beam_tree(steps, ["</s>", "▁a", "▁b", "c", "d"])
    axis = plotted.figure.axes[0]
    written = {text.get_text(): (text.get_position()[0], text.get_weight()) for text in axis.texts}
    assert set(written) == {"prompt", "a", "b", "c", "d", "</s>  (1)", "</s>  (2)"}
    assert written["d"] == (2, "bold"), "on the path of the best"
    assert written["b"] == (1, "normal"), "pruned"
    assert [line.get_color() for line in axis.lines].count(COLORS[0]) == 3
    assert len(axis.lines) == 6
    plotted.figure.draw_without_rendering()
    for text in axis.texts:  # nothing covers the line behind a text
        assert text.get_bbox_patch() is None
        extent = text.get_window_extent()
        for line in axis.lines:
            ends = axis.transData.transform(line.get_xydata())
            assert not extent.contains(*ends[0]), text
            assert not extent.contains(*ends[1]), text
    assert "2 of 3 hypotheses are finished, the best “ad</s>” with score -0.40" in plotted.caption
    rendered(plotted)
