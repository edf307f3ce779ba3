"""What figures show is what was measured: their arrays, labels, sentences; and that every letter can be drawn."""

import io
import warnings

import matplotlib
import pytest
import torch
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from xlmrxl_min.inference.generation import Beam, Beams
from xlmrxl_min.interpret import plot
from xlmrxl_min.interpret.metrics import Contributions, Lens, Retrieval

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


def shown(drawing, axis=0):
    """The array of the image of one of the figure's axes."""
    return torch.tensor(drawing.figure.axes[axis].images[0].get_array().filled(float("nan")))


def labels(axis):
    return [label.get_text() for label in axis]


def rendered(drawing):
    """The picture; a letter that the fonts lack is a warning in matplotlib, and an error here."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Image.open(io.BytesIO(drawing.png()))


def test_attention_map():
    drawing = plot.attention_map(HAND, TOKENS, title="A head")
    torch.testing.assert_close(shown(drawing), HAND)
    axis = drawing.figure.axes[0]
    assert labels(axis.get_yticklabels()) == labels(axis.get_xticklabels()) == [
        "<s>", "All", "human", "being", "s", "</s>",
    ]  # fmt: skip
    assert drawing.sentence == "A head: the largest weight is 0.95, “being” looking at “s”."
    with pytest.raises(ValueError, match=r"the map is \(6, 6\), but there are tokens for \(5, 5\)"):
        plot.attention_map(HAND, TOKENS[:5])


def test_attention_map_across():
    drawing = plot.attention_map(HAND[:2], ["a", "b"], TOKENS)
    assert "“b” looking at “human”" in drawing.sentence
    assert len(drawing.figure.axes[0].get_yticks()) == 2


def test_long_maps_are_pooled_and_say_so():
    weights = torch.randn(130, 130).softmax(-1)
    drawing = plot.attention_map(weights, [f"w{i}" for i in range(130)])
    values = shown(drawing)
    assert values.shape == (44, 44), "blocks of three"
    torch.testing.assert_close(values[1, 2], sum(weights[q, k] for q in (3, 4, 5) for k in (6, 7, 8)) / 3)
    torch.testing.assert_close(values[43], weights[129:].reshape(130).split(3)[0].new_tensor(
        [part.sum() for part in weights[129].split(3)]
    ))  # fmt: skip
    torch.testing.assert_close(values.sum(-1), torch.ones(44))
    assert "130 tokens in blocks of 3" in drawing.figure.axes[0].get_title()
    assert "Pooled: queries: 130 tokens in blocks of 3" in drawing.sentence
    assert labels(drawing.figure.axes[0].get_yticklabels())[1] == "3–5"
    rendered(drawing)


def test_head_grid():
    weights = torch.randn(2, 3, 5, 5).softmax(-1)
    weights[1, 2] = torch.eye(5)
    weights[0, 1] = 1 / 5
    drawing = plot.head_grid(weights, first_layer=4)
    mosaic = shown(drawing)
    assert mosaic.shape == (11, 17)
    for layer in range(2):
        for head in range(3):
            part = mosaic[6 * layer : 6 * layer + 5, 6 * head : 6 * head + 5]
            torch.testing.assert_close(part, weights[layer, head])
    assert mosaic[5].isnan().all()
    assert "1.00 in the mean in the sharpest head (layer 5, head 2), 0.20 in the most even one (layer 4, head 1)" in (
        drawing.sentence
    )
    with pytest.raises(ValueError, match=r"1,152 maps are too many for one picture \(64\): take some layers"):
        plot.head_grid(torch.zeros(36, 32, 2, 2))


def test_links_have_both_ends():
    drawing = plot.links(HAND, TOKENS, least=0.15)
    expected = {(q, k) for q in range(6) for k in range(6) if HAND[q, k] >= 0.15}
    axis = drawing.figure.axes[0]
    assert {tuple(line.get_ydata()) for line in axis.lines} == expected
    assert {(q, k) for q, k, _ in drawing.numbers["links"]} == expected
    ends = [text.get_text() for text in axis.texts]
    assert ends.count("human") == 2, "left and right"
    share = sum(float(HAND[q, k]) for q, k in expected) / 6
    assert drawing.numbers["share"] == pytest.approx(share)
    assert f"{len(expected)} links of 0.15 or more carry {share:.0%}" in drawing.sentence
    assert "from “being” to “s”" in drawing.sentence
    assert "0 links of 0.99" in plot.links(HAND, TOKENS, least=0.99).sentence


def test_overview():
    numbers = {"entropy": torch.rand(4, 3) * 2, "<s>": torch.rand(4, 3) / 2}
    numbers["entropy"][2, 1], numbers["<s>"][3, 0], numbers["<s>"][0, 0] = 2.5, 0.75, float("nan")
    drawing = plot.overview(numbers)
    torch.testing.assert_close(shown(drawing, 0), numbers["entropy"])
    torch.testing.assert_close(shown(drawing, 1), numbers["<s>"], equal_nan=True)
    assert "entropy 2.50 nats (L2H1), <s> 75% (L3H0)" in drawing.sentence


def test_class_map():
    drawing = plot.class_map([["next", "mixed", "mixed"], ["even", "mixed", "next"]])
    assert drawing.numbers["counts"]["next"] == 2
    assert drawing.sentence.endswith("of 6 heads 2 next, 1 even, 3 mixed.")
    assert [text.get_text() for text in drawing.figure.axes[0].texts] == [
        "next", "mixed", "mixed", "even", "mixed", "next",
    ]  # fmt: skip
    assert not plot.class_map([["mixed"] * 32] * 36).figure.axes[0].texts, "a legend instead, where there is no room"


def test_offset_profiles():
    profiles = torch.rand(2, 3, 9) / 2
    profiles[1, 2, 3] = 0.75
    drawing = plot.offset_profiles(profiles)
    torch.testing.assert_close(shown(drawing), profiles.reshape(6, 9))
    assert "75% at offset -1, in layer 1, head 2" in drawing.sentence


def test_rollout():
    steps = torch.stack([torch.eye(6), HAND])
    drawing = plot.rollout(steps, TOKENS, 4)
    torch.testing.assert_close(shown(drawing), torch.stack([torch.eye(6)[4], HAND[4]]))
    assert (
        "10% of “s” is from its own place, and the next largest share, 20%, from “<s>” at place 0" in drawing.sentence
    )


def test_residual_norms():
    names = ["embeddings", "attention 0", "feed-forward 0"]
    parts = Contributions(
        names,
        torch.ones(3, 1, 2),
        torch.tensor([[[1.0, 3.0]], [[4.0, 4.0]], [[5.0, 7.0]]]),
        torch.tensor([[[0.1, 0.3]], [[0.2, 0.2]], [[0.7, 0.5]]]),
    )
    drawing = plot.residual_norms(parts)
    left, right = drawing.figure.axes
    assert left.lines[0].get_ydata().tolist() == [2.0, 4.0, 6.0]
    assert [bar.get_height() for bar in right.patches[:3]] == pytest.approx([0.2, 0.2, 0.6])
    assert "from 2.0 to 6.0" in drawing.sentence
    assert "20% is by embeddings, 20% is by attention, 60% is by feed-forward" in drawing.sentence


def test_lens_table():
    probability = torch.tensor([[0.0, 0.1], [0.4, 0.9]])
    lens = Lens(torch.zeros(2, 2), probability, torch.tensor([[1200, 1], [2, 1]]), torch.zeros(2, 2))
    drawing = plot.lens_table(lens, [["▁a", "▁b"], ["▁c", "▁b"]], ["▁life", "▁b"])
    torch.testing.assert_close(shown(drawing), probability)
    assert [text.get_text() for text in drawing.figure.axes[0].texts] == [
        "a\nrank 1,200", "b\nrank 1", "c\nrank 2", "b\nrank 1",
    ]  # fmt: skip
    assert "“life” never, “b” from embeddings on" in drawing.sentence


def test_effects():
    values = torch.tensor([[0.1, -0.7, 0.2], [float("nan"), 0.3, 0.0]])
    drawing = plot.effects(values, title="Ablation", unit="logit")
    torch.testing.assert_close(shown(drawing), values, equal_nan=True)
    assert "-0.70 (logit), is that of layer 0, head 1" in drawing.sentence
    image = drawing.figure.axes[0].images[0]
    assert image.norm.vmax == -image.norm.vmin == pytest.approx(0.7), "nothing is white, more and less look alike"
    assert "is that of layer 1, “human”" in plot.effects(values.nan_to_num(0).flip(0), ["▁All", "▁human", "s"]).sentence
    long = plot.effects(torch.ones(2, 130), [f"w{i}" for i in range(130)])
    assert shown(long).shape == (2, 44)
    assert float(shown(long)[0, 0]) == 3, "added up"
    assert "added up" in long.figure.axes[0].get_title()


def test_saliency():
    scores = {"one": torch.tensor([0.0, 1, 2, -3, 0, 0]), "two": torch.tensor([0.0, 5, 0, 0, 0, 0])}
    drawing = plot.saliency(scores, TOKENS)
    for axis, values in zip(drawing.figure.axes, scores.values(), strict=True):
        assert [bar.get_width() for bar in axis.patches] == values.tolist()
    assert "most on “being” (-3.00) by one, “All” (+5.00) by two" in drawing.sentence


def test_crosslingual_block():
    tokens = ["<s>", "▁a", "b", "</s>", "</s>", "▁c", "</s>"]
    weights = torch.full((7, 7), 1 / 7)
    weights[5] = torch.tensor([0.0, 0.5, 0.25, 0, 0, 0.25, 0])
    drawing = plot.crosslingual_block(weights, tokens)
    assert drawing.numbers["second at first"] == pytest.approx(0.75)
    assert drawing.numbers["first at second"] == pytest.approx(1 / 7)
    assert (
        "the second text gives 75% of its attention to the first, and the first 14% to the second" in drawing.sentence
    )
    assert "0.75, “c” looking at “ab”" in drawing.sentence
    assert shown(drawing).shape == (6, 6), "words"
    with pytest.raises(ValueError, match="no pair"):
        plot.crosslingual_block(HAND, TOKENS)


def test_retrieval_curves():
    one = Retrieval(torch.tensor([0.1, 0.6, 0.5]), torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0.5, 0.4, 0.3]))
    drawing = plot.retrieval_curves({"English – French": one})
    left, right = drawing.figure.axes
    assert left.lines[0].get_ydata().tolist() == one.accuracy.tolist()
    assert [line.get_ydata().tolist() for line in right.lines] == [one.translations.tolist(), one.strangers.tolist()]
    assert "English – French 60% (after 1 layers)" in drawing.sentence


# ---- letters


@pytest.fixture
def only_dejavu(monkeypatch):
    """As on a machine that has no fonts but matplotlib's own."""
    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    monkeypatch.setattr(plot, "fonts", lambda: (["DejaVu Sans"], [font]))


SCRIPTS = ["▁Würde", "право", "自由和", "गौरव", "ศักดิ์ศรี", "Όλοι"]


def test_what_the_fonts_lack_is_numbered(only_dejavu):
    drawing = plot.attention_map(HAND, SCRIPTS)
    names = ["Würde", "право", "#1", "#2", "#3", "Όλοι"]
    assert labels(drawing.figure.axes[0].get_xticklabels()) == names
    assert "#1 = 自由和, #2 = गौरव, #3 = ศักดิ์ศรี" in drawing.sentence
    assert "(CJK, Devanagari, Thai)" in drawing.sentence
    assert "the sentence lists them" in drawing.figure.get_supxlabel()
    rendered(drawing)


def test_no_function_draws_a_box(only_dejavu):
    maps, values = HAND.expand(2, 6, 6), torch.rand(2, 6)
    pair = ["<s>", "▁自由", "</s>", "</s>", "▁गौरव", "</s>"]
    lens = Lens(values, values, torch.ones(2, 6), values)
    for drawing in (
        plot.links(HAND, SCRIPTS),
        plot.rollout(maps, SCRIPTS, 2),
        plot.lens_table(lens, [SCRIPTS, SCRIPTS], SCRIPTS),
        plot.effects(values, SCRIPTS),
        plot.saliency({"one": values[0]}, SCRIPTS),
        plot.crosslingual_block(HAND, pair),
    ):
        rendered(drawing)
        assert "#1 = 自由" in drawing.sentence


def test_joined_letters_are_numbered_where_matplotlib_cannot_join_them(only_dejavu, monkeypatch):
    monkeypatch.setattr(plot, "SHAPES_TEXT", False)
    drawing = plot.links(HAND, ["الكرامة", "▁Würde", "право", "a", "b", "c"])
    assert "#1 = الكرامة" in drawing.sentence
    assert "(Arabic)" in drawing.sentence
    monkeypatch.setattr(plot, "SHAPES_TEXT", True)
    assert "#" not in plot.links(HAND, ["الكرامة", "▁Würde", "право", "a", "b", "c"]).sentence


@pytest.mark.skipif(not plot.SHAPES_TEXT, reason="matplotlib before 3.11 does not join letters")
def test_arabic_letters_are_joined():
    """Joined letters are narrower than the same ones apart, which a zero-width non-joiner keeps them."""
    figure = matplotlib.figure.Figure()
    renderer = FigureCanvasAgg(figure).get_renderer()
    joined, apart = (figure.text(0, 0, text).get_window_extent(renderer).width for text in ("ببب", "ب\u200cب\u200cب"))
    assert joined < apart


def test_what_cannot_be_seen_has_a_name_and_no_token_is_a_formula():
    drawing = plot.attention_map(HAND, ["▁", "$x_1$ $", "\u200b", "\n", "<script>", "%s"])
    assert labels(drawing.figure.axes[0].get_xticklabels()) == [
        "▁", r"\$x_1\$ \$", "ZERO WIDTH SPACE", "U+000A", "<script>", "%s",
    ]  # fmt: skip
    rendered(drawing)


# ---- the drawing itself


def test_a_drawing_is_the_same_whatever_the_user_has_set():
    before = plot.links(HAND, TOKENS).png()
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.dpi": 300}):
        assert plot.links(HAND, TOKENS).png() == before
    assert plot.links(HAND, TOKENS).png() == before


def test_in_a_notebook_the_sentence_follows_the_picture(monkeypatch, capsys):
    published = []
    monkeypatch.setattr("IPython.display.display", lambda *args, **kwargs: published.append((args, kwargs)))
    drawing = plot.links(HAND, TOKENS)
    drawing._ipython_display_()
    [((data,), options)] = published
    assert data["image/png"] == drawing.png()
    assert options["metadata"]["image/png"]["alt"] == drawing.sentence
    said = capsys.readouterr().out
    assert " ".join(said.split()) == drawing.sentence
    assert max(map(len, said.splitlines())) <= 96


def test_save_is_all_or_nothing(tmp_path):
    drawing = plot.links(HAND, TOKENS)
    for name in ("links.png", "links.svg", "links.pdf"):
        drawing.save(tmp_path / "new" / name)
    assert Image.open(tmp_path / "new" / "links.png").size == rendered(drawing).size
    (tmp_path / "links.wrong").write_text("old")
    with pytest.raises(ValueError, match="wrong"):
        drawing.save(tmp_path / "links.wrong")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["links.wrong"]
    assert (tmp_path / "links.wrong").read_text() == "old"


def test_training():
    history = [{"step": i + 1, "loss": 20.0 - i, "rate": i / 20, "seconds": 2.0 * i} for i in range(20)]
    history[3]["loss"] = float("nan")
    drawing = plot.training({"one": history})
    left, right = drawing.figure.axes
    assert left.lines[0].get_ydata()[0] == 20
    assert left.lines[1].get_ydata()[:4].tolist() == [20.0, 19.5, 18.5, 17.0], "a mean of two; step 4 has no loss"
    assert left.lines[1].get_xdata()[:4].tolist() == [1, 2, 3, 5]
    assert right.lines[0].get_ydata().tolist() == [entry["rate"] for entry in history]
    assert "one from 20.00 to 1.50 in 38 s" in drawing.sentence


def test_distributions():
    ones = {"all": torch.tensor([0.1, 0.6, 0.3, 0.0]), "two": torch.tensor([0.0, 0.7, 0.3, 0.0])}
    drawing = plot.distributions(ones, ["a", "▁b", "c", "d"], most=3)
    left, right = drawing.figure.axes
    assert labels(left.get_yticklabels()) == ["b", "c", "a"]
    assert [round(bar.get_width(), 3) for bar in left.patches] == [0.6, 0.3, 0.1]
    assert [text.get_text() for text in right.texts] == ["cut off"]
    assert drawing.sentence == "What may come next: all 60% for “b”, 3 possible; two 70% for “b”, 2 possible."
    rendered(drawing)


def test_beam_tree():
    steps = [
        Beams([Beam((1,), -0.5), Beam((2,), -1.0)], []),
        Beams([Beam((1, 3), -0.7), Beam((1, 4), -0.9)], []),
        Beams([], [Beam((1, 4, 0), -0.4), Beam((1, 3, 0), -0.5)]),
    ]
    drawing = plot.beam_tree(steps, ["</s>", "▁a", "▁b", "c", "d"])
    axis = drawing.figure.axes[0]
    written = {text.get_text(): (text.get_position()[0], text.get_color()) for text in axis.texts}
    assert set(written) == {"prompt", "a", "b", "c", "d", "</s>  (1)", "</s>  (2)"}
    assert written["d"] == (2, plot.COLORS[0]), "on the way to the winner"
    assert written["b"] == (1, "0.35"), "given up"
    assert len(axis.lines) == 6
    assert "of 3 paths 2 are finished, the best “ad</s>” with score -0.40" in drawing.sentence
    rendered(drawing)
