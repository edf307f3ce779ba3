"""The course's drawings contain what they must, are true to the model, and can be read on white and on black."""

import io
import pathlib
import tempfile
from itertools import combinations

import matplotlib
import pytest
import torch
import torch.nn.functional as F
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import FancyArrowPatch
from matplotlib.path import Path
from PIL import Image
from safetensors.torch import save_file

from xlmrxl_min import (
    XLMRobertaTokenizer,
    XLMRobertaXLConfig,
    XLMRobertaXLForMaskedLM,
    XLMRobertaXLModel,
    interpret,
)
from xlmrxl_min.course import drawings
from xlmrxl_min.course.checks import guess
from xlmrxl_min.course.drawings import BLUE, DARK, GREEN, GREY, IDS, INK, MAX_WIDTH, ORANGE, PINK, RED, TOKENS, YELLOW
from xlmrxl_min.interpret.plot.figure import SCALE
from xlmrxl_min.model import skew
from xlmrxl_min.training.masking import mask_tokens

WORDS = ["<s>", "▁All", "▁human", "▁being", "s", "</s>"]
MAPS = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(0)).mul(2).softmax(-1)  # l q k
MASKED = (WORDS, ["<s>", "▁All", "<mask>", "▁cat", "s", "</s>"], [-100, -100, 7, 8, 9, -100])
LONG = (WORDS[1:5] * 9, ["<mask>", "▁being", *WORDS[3:5]] * 9, [10, 11, 12, -100] * 9)
LOG_PROBS = {"a": -3.0, "b": -4.0, "c": -4.5, "ab": -6.0, "bc": -5.0}
LENGTHS = (
    {"English": 1.0, "Thai": 1.5, "Vietnamese": 2.25},
    {"Thai": 1.25},
    {"Latin": ["English", "Vietnamese"], "": ["Thai"]},
)
INPUTS, WEIGHTS = torch.tensor([[1.4, 0.42, -0.6]]), torch.tensor([[0.7, -0.3, 0.12], [-0.2, 1.4, 0.9]])  # t i, o i


def write_small_file():
    path = pathlib.Path(tempfile.mkdtemp()) / "small.safetensors"
    save_file({"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.float16)}, path)
    return path


DRAWINGS = {
    "whole_model": drawings.whole_model,
    "whole_model of all": lambda: drawings.whole_model(list(drawings.PARTS)),
    "embeddings_sum": drawings.embeddings_sum,
    "segmentations": lambda: drawings.segmentations("abc", LOG_PROBS, [["a", "bc"], ["ab", "c"]]),
    "relative_lengths": lambda: drawings.relative_lengths(*LENGTHS),
    "attention_shapes": drawings.attention_shapes,
    "masks": drawings.masks,
    "rollout_flow": lambda: drawings.rollout_flow(MAPS, WORDS),
    "rollout_flow to a position": lambda: drawings.rollout_flow(MAPS, ["▁incomprehensibilities", *WORDS[1:]], 3),
    "rollout_flow of other scripts": lambda: drawings.rollout_flow(MAPS, [*WORDS[:4], "\u13f8", "право"]),
    "distances": drawings.distances,
    "skew_steps": drawings.skew_steps,
    "pre_and_post_norm": drawings.pre_and_post_norm,
    "layer_norm_geometry": drawings.layer_norm_geometry,
    "bug_map": lambda: drawings.bug_map({}),
    "bug_map of all": lambda: drawings.bug_map({str(i): part for i, part in enumerate(drawings.BUG_PARTS)}),
    "masking": lambda: drawings.masking(*MASKED),
    "masking in lines": lambda: drawings.masking(*LONG),
    "teacher_forcing": lambda: drawings.teacher_forcing(WORDS, [0.5, 0.25, 1.0, 0.125, 0.001]),
    "kv_cache": lambda: drawings.kv_cache(WORDS, 2),
    "encoder_decoder": drawings.encoder_decoder,
    "bit_patterns": lambda: drawings.bit_patterns(0.1),
    "number_lines": lambda: drawings.number_lines(0.1, 0.009),
    "int8_product": lambda: drawings.int8_product(INPUTS, WEIGHTS, top=7),
    "heads": drawings.heads,
    "file_bytes": lambda: drawings.file_bytes(write_small_file()),
    "mapped_file": drawings.mapped_file,
    "forward_moments": drawings.forward_moments,
    "collectives": drawings.collectives,
    "ring": drawings.ring,
    "sharded_linear": drawings.sharded_linear,
    "parallel_block": drawings.parallel_block,
    "fsdp_steps": drawings.fsdp_steps,
    "mesh": lambda: drawings.mesh(rank=5),
    "pipeline": drawings.pipeline,
}


@pytest.fixture(scope="module", params=DRAWINGS)
def drawn(request):
    return DRAWINGS[request.param]()


def texts(drawn):
    return [text for text in [*drawn.figure.axes[0].texts, *drawn.figure.texts] if text.get_text()]


def boxes(drawn, color=None):
    """The filled boxes, in the order of drawing, with the text that stands in each; of one colour, if it is given."""
    axis, found = drawn.figure.axes[0], []
    shown = [text for text in axis.texts if text.get_text()]
    places = axis.transData.transform([text.get_position() for text in shown])
    for patch in axis.patches:
        fill = to_hex(patch.get_facecolor(), keep_alpha=True).upper()
        if isinstance(patch, FancyArrowPatch) or not fill.endswith("FF") or color not in (None, fill[:7]):
            continue
        low, high = patch.get_window_extent().get_points()
        inside = ((low < places) & (places < high)).all(1).nonzero()[0]
        found.append((patch, shown[inside[0]].get_text() if len(inside) else ""))
    return found


def numbers(drawn, color):
    return [int(text.replace("−", "-")) for _, text in boxes(drawn, color)]


# ---- legible


def test_no_text_leaves_the_figure_or_meets_another_or_an_arrow(drawn):
    figure, axis = drawn.figure, drawn.figure.axes[0]
    extents = [(text, text.get_window_extent().padded(-1)) for text in texts(drawn)]
    for text, extent in extents:
        inside = (figure.bbox.extents[:2] <= extent.min).all() and (extent.max <= figure.bbox.extents[2:]).all()
        assert inside, f"{text.get_text()!r} leaves the figure"
    for (one, its), (other, others) in combinations(extents, 2):
        assert not its.overlaps(others), f"{one.get_text()!r} meets {other.get_text()!r}"
    for arrow in (patch for patch in axis.patches if isinstance(patch, FancyArrowPatch)):
        path = arrow.get_path()
        path = Path(path.vertices[path.codes != Path.CLOSEPOLY], path.codes[path.codes != Path.CLOSEPOLY])
        path = axis.transData.transform_path(path)
        for text, extent in extents:
            if text.get_color() != DARK:  # a box hides what runs behind it
                assert not path.intersects_bbox(extent, filled=False), f"an arrow through {text.get_text()!r}"


def test_text_fits_its_box(drawn):
    dark = [text for text in texts(drawn) if text.get_color() == DARK]
    areas = [patch.get_window_extent() for patch, _ in boxes(drawn)]
    for text in dark:
        low, high = text.get_window_extent().get_points()
        assert any((area.min <= low).all() and (high <= area.max).all() for area in areas), text.get_text()


def contrast(one, other):
    """Of two colours, by WCAG 2.1."""
    light = [torch.tensor(to_rgb(color), dtype=torch.float64) for color in (one, other)]
    light = [torch.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) for c in light]
    low, high = sorted(float(c @ torch.tensor([0.2126, 0.7152, 0.0722], dtype=torch.float64)) for c in light)
    return (high + 0.05) / (low + 0.05)


def test_colours_can_be_read_in_both_themes(drawn):
    for color in {text.get_color() for text in texts(drawn)} - {DARK}:
        assert min(contrast(color, "#FFFFFF"), contrast(color, "#111111")) > 3.8
    for patch, text in boxes(drawn):
        assert not text or contrast(DARK, patch.get_facecolor()) > 4.5, text
    picture = Image.open(io.BytesIO(drawn.png())).convert("RGBA")
    assert picture.getpixel((0, 0))[3] == 0, "the background is not transparent"
    assert 20 <= len(drawn.caption) <= 900


def test_a_notebook_shows_it_smaller_than_its_pixels(monkeypatch, capsys):
    published = []
    monkeypatch.setattr("IPython.display.display", lambda *args, **kwargs: published.append((args, kwargs)))
    drawn = drawings.distances()
    drawn._ipython_display_()
    [((data,), options)] = published
    metadata = options["metadata"]["image/png"]
    assert Image.open(io.BytesIO(data["image/png"])).width == pytest.approx(SCALE * metadata["width"], abs=1)
    assert metadata["alt"] == drawn.caption == " ".join(capsys.readouterr().out.split())


def test_drawings_ignore_the_users_settings_and_leave_them():
    before = drawings.skew_steps().png()
    with matplotlib.rc_context({"font.size": 30, "text.color": "red", "savefig.dpi": 300}):
        assert drawings.skew_steps().png() == before
        assert matplotlib.rcParams["text.color"] == "red"


# ---- the whole model


def test_the_whole_model_is_in_the_order_of_the_forward_pass():
    config = XLMRobertaXLConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
    model, called = XLMRobertaXLForMaskedLM(config).eval(), []
    block = model.backbone.layers[0]
    names = {
        model.backbone.embeddings.word: "word embeddings", block.attention.query: "attention",
        block.feed_forward.up: "feed-\nforward", model.lm_head.dense: "linear", model.lm_head.decoder: "decoder",
    }  # fmt: skip
    for module in model.modules():
        if module in names or isinstance(module, torch.nn.LayerNorm):
            name = names.get(module, "Layer\nNorm")
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    model(torch.tensor([[0, 5, 2]]))
    drawn = [text for _, text in boxes(drawings.whole_model())]
    assert [text for text in drawn if text in called] == called
    assert model.lm_head.decoder.weight is model.backbone.embeddings.word.weight, "the dashed arrow"
    assert drawn.count("+") == 3
    assert len([line for line in drawings.whole_model().figure.axes[0].patches if line.get_linestyle() == "--"]) == 1


MARKED = {
    "tokens": ["tokenizer", *map(str, IDS)],
    "embeddings": ["word embeddings", "position embeddings", "token type embeddings", "+"],
    "positions": ["position embeddings"],
    "block": ["Layer\nNorm", "attention", "+", "Layer\nNorm", "feed-\nforward", "+"],
    "attention": ["attention"],
    "feed_forward": ["feed-\nforward"],
    "layer_norm": ["Layer\nNorm"] * 4,
    "residual": ["+"] * 2,
    "lm_head": ["linear", "GELU", "Layer\nNorm", "decoder"],
}


@pytest.mark.parametrize("part", drawings.PARTS)
def test_here_marks_that_part_and_no_other(part):
    drawn = drawings.whole_model(part)
    marked = [text for patch, text in boxes(drawn) if to_hex(patch.get_edgecolor()).upper() == RED]
    assert sorted(marked) == sorted(MARKED[part])
    assert len(boxes(drawn, GREY)) == len(boxes(drawn)) - len(marked), "the others are grey"
    red = [patch for patch in drawn.figure.axes[0].patches if to_hex(patch.get_edgecolor()).upper() == RED]
    assert len(red) - len(marked) == (part in ("block", "lm_head")), "the frame around all of it"
    assert f"You are here: {drawings.PARTS[part]}" in [text.get_text() for text in texts(drawn)]
    assert drawn.caption.endswith(f"You are here: {drawings.PARTS[part]}.")


def test_here_can_be_several_and_must_be_known():
    drawn = drawings.whole_model(["positions", "attention"])
    marked = [text for patch, text in boxes(drawn) if to_hex(patch.get_edgecolor()).upper() == RED]
    assert sorted(marked) == ["attention", "position embeddings"]
    assert not boxes(drawings.whole_model(), GREY)
    with pytest.raises(ValueError, match=r"here='pooler' is unknown: take one of 'tokens', .*'lm_head'"):
        drawings.whole_model("pooler")


# ---- one idea each


def test_embeddings_are_added_and_their_numbers_are_the_models():
    drawn = drawings.embeddings_sum()
    word, position, token_type, total = (torch.tensor(numbers(drawn, c)) for c in (BLUE, ORANGE, GREEN, GREY))
    assert torch.equal(word + position + token_type, total)
    tokenizer = XLMRobertaTokenizer.from_pretrained("xlm-roberta-xl")
    assert tokenizer.encode("We see you") == IDS
    assert [token.strip("▁") for token in tokenizer.convert_ids_to_tokens(IDS)] == TOKENS
    embeddings = XLMRobertaXLForMaskedLM.from_pretrained("tiny").backbone.embeddings
    positions = embeddings.make_position_ids(torch.ones(1, len(IDS), dtype=torch.long))[0].tolist()
    shown = [text.get_text() for text in texts(drawn) if text.get_color() == INK and text.get_text().isdigit()]
    assert shown == [str(number) for number in [*IDS, *positions, *[0] * len(IDS)]]


def test_segmentations_have_an_arc_for_each_subword():
    drawn = DRAWINGS["segmentations"]()
    axis = drawn.figure.axes[0]
    assert drawn.data == {"arcs": [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)], "sums": [-8.0, -10.5]}
    assert [to_hex(line.get_color()).upper() for line in axis.lines].count(BLUE) == 2, "the most probable way"
    assert len(axis.lines) == 5
    assert [text for _, text in boxes(drawn)] == ["−3.0", "−5.0", "−6.0", "−4.5"]
    assert drawn.caption.startswith("5 subwords of the vocabulary are parts of abc")
    assert drawn.caption.endswith("The most probable way: a | bc.")
    with pytest.raises(ValueError, match="a \\+ b is not abc"):
        drawings.segmentations("abc", LOG_PROBS, [["a", "b"]])


def test_relative_lengths_are_in_order_and_mark_the_guess():
    drawn = drawings.relative_lengths(*LENGTHS, guess("How many times?", 1.75))
    assert drawn.data["order"] == list(LENGTHS[0])
    assert drawn.caption == "From English, 1.00, to Vietnamese, 2.25. The line: 1. Diamonds: Thai 1.50 → 1.25."
    axis = drawn.figure.axes[0]
    widths = [patch.get_width() for patch in axis.patches if not isinstance(patch, FancyArrowPatch)][:3]
    assert [width / widths[0] for width in widths] == pytest.approx([1, 1.5, 2.25])
    dashed = [float(line.get_xdata()[0]) for line in axis.lines if line.get_linestyle() == "--"]
    assert dashed == pytest.approx([1.3 + 1.75 * widths[0], 6.1 + 1.75 * widths[0]]), "in both columns"


def test_attention_has_its_steps_and_shapes():
    drawn = drawings.attention_shapes()
    shown = [text.get_text() for text in texts(drawn)]
    steps = [
        "query",
        "key",
        "value",
        "q · k / √d",
        "+ mask",
        "softmax",
        "weighted sum\nof values",
        "concatenate\nheads",
    ]
    for step in [*steps, "output\nprojection"]:
        assert shown.count(step) == 1
    counts = {"b t e": 4, "b h q d": 2, "b h k d": 2, "b h q k": 2, "b q e": 2}
    assert {text: shown.count(text) for text in shown if text.startswith("b ")} == counts
    assert len(boxes(drawn)) == 3 + 3 * 3 + 4 * 3 + 2, "sheets for what each head does"


def test_masks_are_drawn_as_they_are():
    drawn = drawings.masks()
    is_token, causal = torch.tensor([1, 1, 1, 0, 0]).bool(), torch.ones(5, 5).tril().bool()
    by_padding = [causal & is_token, causal & is_token.flip(0)]
    expected = [is_token.expand(5, 5), causal, *by_padding, is_token.expand(3, 5)]
    for mask, wanted in zip(drawn.data.values(), expected, strict=True):
        assert torch.equal(mask, wanted)
    cells = drawn.figure.axes[0].patches
    assert [patch.get_facecolor()[3] == 1 for patch in cells] == torch.cat([x.flatten() for x in expected]).tolist()
    assert [text.get_text() for text in texts(drawn)].count("<pad>") == 3 * (2 + 2) + 2


def widths(drawn):
    """From the lines: `l q k`, from the right."""
    found = torch.zeros(MAPS.shape)
    lines = drawn.figure.axes[0].lines
    starts = sorted({float(line.get_xdata()[0]) for line in lines})
    heights = sorted({float(line.get_ydata()[0]) for line in drawings.rollout_flow(MAPS, WORDS).figure.axes[0].lines})[
        ::-1
    ]
    for line in lines:
        k, q = (heights.index(float(y)) for y in line.get_ydata())
        found[starts.index(float(line.get_xdata()[0])), q, k] = line.get_linewidth() / MAX_WIDTH
    return found


def test_the_widths_of_the_flow_are_the_weights():
    torch.testing.assert_close(widths(drawings.rollout_flow(MAPS, WORDS, residual=0)), MAPS)
    torch.testing.assert_close(widths(drawings.rollout_flow(MAPS, WORDS)), 0.5 * MAPS + 0.5 * torch.eye(6))


def test_the_flow_to_a_position_is_rollout():
    drawn, given = drawings.rollout_flow(MAPS, WORDS, 3), MAPS.clone()
    rollout = interpret.rollout([layer[None] for layer in MAPS])[-1, 3]
    assert torch.equal(MAPS, given), "the maps are left alone"
    torch.testing.assert_close(widths(drawn).sum((1, 2)), torch.ones(3))
    torch.testing.assert_close(widths(drawn)[0].sum(0), rollout)
    shown = [text.get_text() for text in texts(drawn) if "%" in text.get_text()]
    assert shown == [f"{x:.0%} {token.strip('▁')}" for x, token in zip(rollout.tolist(), WORDS, strict=True)]
    assert [text.get_text() for text in texts(drawn) if text.get_color() == RED] == ["being"]
    assert f"“being”, {rollout[3]:.0%}" in drawn.caption


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"maps": MAPS[:, :5]}, "5 queries and 6 keys"),
        ({"maps": MAPS + 1}, "from 0 to 1"),
        ({"maps": torch.eye(65)[None], "tokens": ["a"] * 65}, "at most 64"),
        ({"tokens": WORDS[1:]}, "tokens has 5 strings"),
        ({"position": 6}, "position"),
        ({"residual": 2}, "residual"),
    ],
)
def test_what_is_no_attention_has_no_flow(change, words):
    with pytest.raises(ValueError, match=words):
        drawings.rollout_flow(**{"maps": MAPS, "tokens": WORDS, **change})


def test_tokens_that_the_fonts_lack_are_numbered():
    drawn = DRAWINGS["rollout_flow of other scripts"]()
    assert "#1 = \u13f8" in drawn.caption
    assert any("see the caption" in text.get_text() for text in drawn.figure.texts)


def test_distances_are_query_minus_key():
    drawn, positions = drawings.distances(), torch.arange(5)
    wanted = positions[:, None] - positions
    assert torch.equal(torch.tensor(numbers(drawn, None)).view(5, 5), wanted)
    assert numbers(drawn, BLUE) == wanted[wanted > 0].tolist()
    assert numbers(drawn, ORANGE) == wanted[wanted < 0].tolist()


def test_the_skew_keeps_the_numbers_that_the_models_keeps():
    drawn, table = drawings.skew_steps(), torch.arange(3, -4, -1).expand(1, 1, 4, 7)
    for color, row in zip((BLUE, ORANGE, GREEN, PINK), skew(table, 4)[0, 0].tolist(), strict=True):
        assert numbers(drawn, color) == row * 4, "in each of the four steps"
    axis = drawn.figure.axes[0]
    assert len([patch for patch in axis.patches if not isinstance(patch, FancyArrowPatch)]) == 28 + 28 + 24 + 16
    borders = torch.tensor([(line.get_xdata()[0], sum(line.get_ydata()) / 2) for line in axis.lines]).float()
    assert borders.shape == (4 + 4 + 3, 2)
    torch.testing.assert_close(borders[4:8, 0].diff(), torch.full((3,), 7 * 0.32))  # in the strip
    torch.testing.assert_close(borders[8:, 0].diff(), torch.full((2,), 0.32))  # in the shorter rows: one further each


def test_layer_norm_comes_before_or_after():
    drawn = drawings.pre_and_post_norm()
    found = {}
    for patch, text in boxes(drawn):
        x, y = patch.get_window_extent().get_points().mean(0).round()
        found.setdefault(y, []).append((x, text))
    rows = [[text for _, text in sorted(found[y])] for y in sorted(found, reverse=True)]
    norm = "Layer\nNorm"
    assert rows == [
        ["+", "+", norm], [norm, "attention", norm, "feed-\nforward"],
        ["+", norm, "+", norm], ["attention", "feed-\nforward"],
    ]  # fmt: skip


def test_the_geometry_is_layer_norm():
    drawn = drawings.layer_norm_geometry()
    data, axis = drawn.data, drawn.figure.axes[0]
    torch.testing.assert_close(data["normed"], F.layer_norm(data["x"], (3,)), atol=1e-4, rtol=0)
    torch.testing.assert_close(data["centred"].sum(-1), torch.zeros(4))
    torch.testing.assert_close(data["normed"].norm(dim=-1), torch.full((4,), 3**0.5))
    arrows = [patch for patch in axis.patches if isinstance(patch, FancyArrowPatch) and patch.get_linestyle() != ":"]
    ends = torch.tensor([patch.get_path().vertices[:2].tolist() for patch in arrows]).view(3, 4, 2, 2)
    assert torch.allclose(ends[0, ..., 0].diff(dim=-1), torch.zeros(()), atol=1e-5), "along (1, 1, 1), which is upright"
    shift = torch.tensor([3.2, 0.0])
    torch.testing.assert_close(
        ends[:-1, :, 1] + shift, ends[1:, :, 0], atol=0.02, rtol=0
    )  # a panel begins where the one before ended
    outline = torch.from_numpy(axis.patches[0].get_path().vertices).float()
    for point in ends[1, :, 1] - shift:
        assert (outline - point).norm(dim=-1).min() < 0.03, "on the circle"


def test_masking_shows_what_stands_where():
    drawn = drawings.masking(*MASKED)
    assert [text for _, text in boxes(drawn, BLUE)] == ["<mask>", "7", "<mask> (80%): 1 here"]
    assert [text for _, text in boxes(drawn, ORANGE)] == ["cat", "8", "a random token (10%): 1 here"]
    assert [text for _, text in boxes(drawn, GREEN)] == ["s", "9", "the same token (10%): 1 here"]
    assert drawn.data == {"<mask>": 1, "a random token": 1, "the same token": 1}
    shown = [text.get_text() for text in texts(drawn)]
    assert shown.count("−100") == 3
    assert {"text", "input", "label", "human", "being"} <= set(shown)
    assert not boxes(drawn, YELLOW)
    assert drawn.caption.startswith("3 of 6 tokens")


def test_masking_takes_what_mask_tokens_gives():
    tokenizer = XLMRobertaTokenizer.from_pretrained("tiny")
    ids = tokenizer("All human beings are born free and equal in dignity and rights.", return_tensors="pt").input_ids
    inputs, labels = mask_tokens(ids, 0.5, tokenizer, torch.Generator().manual_seed(3))
    as_strings = [tokenizer.convert_ids_to_tokens(x[0]) for x in (ids, inputs)]
    assert sum(drawings.masking(*as_strings, labels).data.values()) == int((labels != -100).sum()) > 0
    with pytest.raises(ValueError, match=r"inputs\[\d+\] is not the token there, but has no label"):
        drawings.masking(*as_strings, torch.full_like(labels, -100))
    with pytest.raises(ValueError, match="inputs has"):
        drawings.masking(as_strings[0], as_strings[1][1:], labels)


def test_teacher_forcing_shifts_the_text_by_one():
    drawn = DRAWINGS["teacher_forcing"]()
    inputs = [text for _, text in boxes(drawn, GREY)]
    labels = [text for patch, text in boxes(drawn) if text and to_hex(patch.get_facecolor()).upper() != GREY]
    assert (inputs, labels) == (["<s>", "All", "human", "being", "s"], ["All", "human", "being", "s"])
    assert [text.get_text() for text in texts(drawn)].count("</s>") == 2, "a last token, and a label that is no colour"
    assert [x.get_text() for x in texts(drawn) if "%" in x.get_text()] == ["50%", "25%", "100%", "12%", "0%"]
    assert drawn.data["loss"] == pytest.approx(-torch.tensor([0.5, 0.25, 1.0, 0.125, 0.001]).log().mean().item())
    assert drawn.caption.endswith("The most probable label: being, 100%; the least: </s>, 0.10%.")
    with pytest.raises(ValueError, match="tokens has 5 strings, but there are 6"):
        drawings.teacher_forcing(WORDS[1:], [0.5] * 5)


def test_the_cache_saves_what_is_grey():
    drawn = DRAWINGS["kv_cache"]()
    assert drawn.data == {"without a cache": 2 + 3 + 4 + 5, "with a cache": 2 + 1 + 1 + 1}
    assert len(boxes(drawn, BLUE)) == 14 + 5 + 1, "and the legend"
    assert len(boxes(drawn, GREY)) == 2 + 3 + 4 + 1
    with pytest.raises(ValueError, match="prompt_length=6"):
        drawings.kv_cache(WORDS, 6)


def test_the_decoder_is_wired_as_the_model():
    sizes = {"vocab_size": 9, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    block = XLMRobertaXLModel(XLMRobertaXLConfig(is_decoder=True, add_cross_attention=True, **sizes)).layers[0]
    names = {"attention": "causal\nattention", "cross_attention": "cross-\nattention", "feed_forward": "feed-\nforward"}
    drawn = drawings.encoder_decoder()
    shown = [text for _, text in boxes(drawn)]
    own = [text for text in shown[shown.index("causal\nattention") :] if text in names.values()]
    assert own == [names[name] for name, _ in block.named_children()]
    assert shown.count("Layer\nNorm") == 3 + 4


# ---- numbers in bits


def test_bits_are_those_of_the_formats():
    drawn = drawings.bit_patterns(0.1)
    bits = "".join(text for _, text in boxes(drawn))
    assert bits[:32] == f"{int(torch.tensor(0.1).view(torch.int32)):032b}"
    assert bits[32:48] == f"{int(torch.tensor(0.1, dtype=torch.bfloat16).view(torch.int16)):016b}"
    assert bits[48:64] == f"{int(torch.tensor(0.1, dtype=torch.float16).view(torch.int16)):016b}"
    assert bits[64:72] == f"{13:08b}"
    assert drawn.data["int8"] == 13 / 127


def test_zero_has_no_relative_error():
    with pytest.raises(ValueError, match="number=0 has no relative error"):
        drawings.bit_patterns(0.0)


def test_number_lines_have_each_number_of_a_format():
    found = drawings.number_lines(0.1, 0.009).data
    assert found["int8"]["values"].tolist() == pytest.approx([12 / 127, 13 / 127])
    steps = found["bfloat16"]["values"].diff()
    assert steps.min() == steps.max() == 2**-4 * torch.finfo(torch.bfloat16).eps


def test_int8_product_is_that_of_the_integers():
    drawn = drawings.int8_product(INPUTS, WEIGHTS, top=7)
    assert numbers(drawn, BLUE) == [7, 2, -3]
    assert numbers(drawn, ORANGE) == [7, -3, 1, -1, 7, 4]
    assert numbers(drawn, GREEN) == [40, -5]
    torch.testing.assert_close(drawn.data["exact"], INPUTS @ WEIGHTS.T)


# ---- files, and several ranks


def edges(drawn, color):
    return [text for patch, text in boxes(drawn) if to_hex(patch.get_edgecolor()).upper() == color]


def test_without_marks_the_map_is_grey():
    drawn = drawings.bug_map({})
    assert len(boxes(drawn, GREY)) == len(boxes(drawn))
    assert [text for _, text in boxes(drawings.bug_map({"A": "mask"}), PINK)] == ["+ mask"]


def test_the_length_is_in_hexadecimal():
    drawn = DRAWINGS["file_bytes"]()
    assert bytes.fromhex("".join(text for _, text in boxes(drawn, BLUE))) == drawn.data["length"].to_bytes(8, "little")
    assert "in hexadecimal, least significant byte first:" in [text.get_text() for text in texts(drawn)]


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_every_step_of_the_ring_is_drawn(ranks):
    drawn = drawings.ring(ranks)
    shown = [text.get_text() for text in texts(drawn)]
    last = 2 * (ranks - 1)
    assert [text for text in shown if "step" in text or text == "before"] == [
        "before", *(f"after step {step}" for step in range(1, last + 1))
    ]  # fmt: skip
    everyone = "".join(map(str, range(ranks)))
    complete = [text for _, text in boxes(drawn, GREEN)]
    assert complete == [everyone] * sum(ranks * (step - ranks + 2) for step in range(ranks - 1, last + 1))
    assert all(whose == set(range(ranks)) for chunks in drawn.data["held"] for whose in chunks)


def test_the_bias_is_added_once():
    drawn = drawings.sharded_linear()
    by_rank = [[text for _, text in boxes(drawn, color)] for color in (BLUE, ORANGE)]
    columns, rows = (
        [["W₀", "b₀", "x W₀ + b₀"], ["W₁", "b₁", "x W₁ + b₁"]],
        [["x₀", "W₀", "b", "x₀ W₀ + b"], ["x₁", "W₁", "x₁ W₁"]],
    )
    assert by_rank == [columns[rank] + rows[rank] for rank in range(2)]


def test_the_mesh_marks_a_rank_and_names_its_groups():
    drawn = drawings.mesh(data=4, tensor=2, rank=5)
    assert edges(drawn, RED) == ["rank 5"]
    assert [text for _, text in boxes(drawn, PINK)] == ["tensor-parallel group of rank 5"]
    assert [text for _, text in boxes(drawn, GREEN)] == ["data-parallel group of rank 5"]
    patches = drawn.figure.axes[0].patches
    for color, members in ((PINK, [4, 5]), (GREEN, [1, 3, 5, 7])):
        [frame] = [
            patch for patch in patches
            if to_hex(patch.get_edgecolor()).upper() == color and not isinstance(patch, FancyArrowPatch)
        ]  # fmt: skip
        area = frame.get_window_extent()
        ranks = [text for text in texts(drawn) if text.get_text().startswith("rank ")]
        inside = [int(text.get_text()[5:]) for text in ranks if area.contains(*text.get_window_extent().min)]
        assert sorted(inside) == members
    assert drawn.caption.endswith(
        "Pink: rank 5's tensor-parallel group (4, 5); green: its data-parallel group (1, 3, 5, 7)."
    )
    assert not edges(drawings.mesh(), RED)


def test_backward_takes_twice_as_long_in_the_pipeline():
    drawn = drawings.pipeline(3, (2,))
    work = {color: [patch.get_width() for patch, text in boxes(drawn, color) if text] for color in (BLUE, ORANGE)}
    assert len(work[BLUE]) == len(work[ORANGE]) == 3 * 2
    assert work[ORANGE] == pytest.approx([2 * width for width in work[BLUE]])
    [_, *_, end] = sorted(patch.get_x() + patch.get_width() for patch, text in boxes(drawn) if text)
    start = min(patch.get_x() for patch, text in boxes(drawn) if text)
    assert sum(map(sum, work.values())) / (3 * (end - start)) == pytest.approx(drawn.data[2]) == pytest.approx(2 / 4)
    assert {"time", "forward", "backward", "idle"} <= {text.get_text() for text in texts(drawn)}
