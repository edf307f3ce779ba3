"""The charts of the notebooks show their numbers, and can be read on a light and on a dark page."""

import io

import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image

from xlmrxl_min import XLMRobertaXLConfig, XLMRobertaXLForMaskedLM
from xlmrxl_min.course import figures
from xlmrxl_min.course.drawings import BLUE, INK
from xlmrxl_min.course.memory import trace_step

VALUES = {"in order": {"one": 0.25, "two": 0.5}, "shuffled": {"one": 0.02, "two": 0.04}}
CURVES = torch.arange(2 * 3 * 2 * 5).reshape(2, 3, 2, 5) / 60.0  # rows, columns, lines, x
NAMES = {"lines": ["a", "b"], "xlabel": "offset", "ylabel": "mean attention"}


def is_legible(drawn):
    picture = Image.open(io.BytesIO(drawn.png())).convert("RGBA")
    axes = [axis for axis in drawn.figure.axes if axis.get_visible()]
    colors = {to_hex(text.get_color()).upper() for axis in axes for text in (*axis.texts, axis.xaxis.label, axis.title)}
    return picture.getpixel((0, 0))[3] == 0 and colors == {INK}


def test_bars():
    drawn = figures.bars(VALUES, "tokens predicted")
    axis = drawn.figure.axes[0]
    assert [round(bar.get_height(), 2) for bar in axis.patches] == [0.25, 0.02, 0.5, 0.04]
    assert [text.get_text() for text in axis.texts] == ["25%", "2%", "50%", "4%"]
    assert drawn.caption == "Tokens predicted, in order: one 25.0%, two 50.0%; shuffled: one 2.0%, two 4.0%."
    assert is_legible(drawn)


def test_the_percents_of_ticks_are_exact():
    for top in (0.005, 0.02, 0.112, 0.124, 0.5, 1.0):
        axis = figures.bars({"a": {"one": top}, "b": {"one": top / 2}}, "share").figure.axes[0]
        axis.figure.draw_without_rendering()
        ticks = [(tick.get_loc(), tick.label1.get_text()) for tick in axis.yaxis.get_major_ticks()]
        assert [float(text[:-1]) for _, text in ticks] == pytest.approx([100 * y for y, _ in ticks])
        assert len({text for _, text in ticks}) == len(ticks) > 2


def test_a_legend_has_several_entries():
    assert len(figures.bars(VALUES, "share").figure.legends) == 1
    assert not figures.bars({"a": {"one": 0.5}, "b": {"one": 0.25}}, "share").figure.legends


def names_beside_lines(drawn, lines):
    """How many pixels each dotted line is from its name, which is on the figure."""
    axis = drawn.figure.axes[0]
    drawn.figure.draw_without_rendering()
    gaps = []
    for name, x in lines.items():
        [text] = [text for text in axis.texts if text.get_text() == name]
        extent, x = text.get_window_extent(), axis.transData.transform((x, 0))[0]
        assert extent.x0 >= 0
        assert extent.x1 <= drawn.figure.bbox.x1
        gaps.append(extent.x0 - x if extent.x0 > x else x - extent.x1)
    return gaps


def test_names_of_lines_are_beside_them_and_on_the_figure():
    for mark in (1.0, 2.0, 9.0):
        drawn = figures.dots({"a": [1.0, 2.0], "b": [8.9]}, "loss", mark=("all tokens equally probable", mark))
        assert min(names_beside_lines(drawn, {"all tokens equally probable": mark})) > 3
    lines = {"a small GPU": 1.0, "a large GPU": 9.9}
    assert min(names_beside_lines(figures.stacked_bars({"a": {"b": 2.0, "c": 8.0}}, "GB", lines), lines)) > 3


def test_stacked_bars_end_at_the_sum():
    memory = {"one rank": {"weights": 4.0, "gradients": 2.0}, "two": {"weights": 2.0, "activations": 0.5}}
    drawn = figures.stacked_bars(memory, "GB per rank", {"a GPU": 5.0})
    bars = drawn.figure.axes[0].patches
    assert [(bar.get_x(), bar.get_width()) for bar in bars] == [(0, 4), (0, 2), (4, 2), (2, 0), (6, 0), (2, 0.5)]
    assert drawn.caption == "GB per rank; one rank: 6.0; two: 2.5."
    assert is_legible(drawn)


def test_what_a_rank_holds_over_time():
    drawn = figures.held_over_time({"shard": [1, 1, 1, 1], "gathered": [0, 2, 2, 0]}, "million parameters", 4, 2)
    assert drawn.data == {"total": [1, 3, 3, 1]}
    assert drawn.caption == (
        "Million parameters: 1.00 before and 1.00 after the step, at most 3.00; the whole model has 4.00."
    )
    assert is_legible(drawn)


def test_memory_curves():
    curves = {"naive": [(0, 0), (1, 5e9)], "streamed": [(0, 0), (1, 2e9)]}
    drawn = figures.memory_curves(curves, "seconds", line="the model", at=2e9)
    naive, streamed, line = (list(line.get_ydata()) for line in drawn.figure.axes[0].lines)
    assert (naive, streamed, line) == ([0, 5], [0, 2], [2, 2])
    assert drawn.figure.axes[0].get_ylim()[0] < 0, "a curve at 0 can be seen"
    assert drawn.caption == "Peaks: naive 5.00 GB (2.50 × the model), streamed 2.00 GB (1.00 × the model)."
    assert is_legible(drawn)


def test_dots():
    drawn = figures.dots({"one": [1.0, 3.0], "two": [2.0]}, "loss", mark=("chance", 2.5))
    lines = drawn.figure.axes[0].lines
    assert [list(line.get_xdata()) for line in lines] == [[1.0, 3.0], [2.0], [2.5, 2.5]]
    assert drawn.caption == "Loss: one 1.00 to 3.00; two 2.00 to 2.00; chance 2.50."
    assert is_legible(drawn)


def test_curves_of_one_panel():
    drawn = figures.curves([CURVES[0, :1]], range(5), percent=True, mark=2, **NAMES)
    lines = [line.get_ydata() for line in drawn.figure.axes[0].lines]
    torch.testing.assert_close(torch.tensor([list(line) for line in lines[:2]]).float(), CURVES[0, 0])
    assert list(lines[2]) == [0, 1], "the mark"
    assert drawn.caption == "Mean attention, a 0% at 0, 7% at 4; b 8% at 0, 15% at 4."
    assert is_legible(drawn)


def test_curves_in_a_grid_may_have_fewer_panels_in_a_row():
    rows = [CURVES[0], CURVES[1, :2]]
    drawn = figures.curves(rows, range(-2, 3), rows=["first", "second"], columns=["x", "y", "z"], **NAMES)
    assert [axis.get_visible() for axis in drawn.figure.axes] == [True] * 5 + [False]
    assert "first: the largest is 0.48 (z, b, at +2); second: the largest is 0.82 (y, b, at +2)" in drawn.caption
    assert is_legible(drawn)


def test_areas_are_proportional_to_parameters():
    drawn = figures.sizes({"large": 3_000_000, "small": 1000})
    assert drawn.data == {"small": 1, "large": 3000}
    small, large = drawn.figure.axes[0].patches
    assert large.get_width() * large.get_height() / (small.get_width() * small.get_height()) == pytest.approx(3000)
    assert drawn.caption.endswith("large has 3,000 times as many parameters as small.")


def test_weights():
    drawn = figures.weights(torch.tensor([[1, 0], [0.249, 0.751]]), ["<s>", "▁king"], "One head")
    shown = [text.get_text() for text in drawn.figure.axes[0].texts if text.get_text()]
    assert shown == [
        "<s>", "king", "<s>", "100", "king", "25", "75", "One head", "rows: queries; columns: keys; weights in %"
    ]  # fmt: skip
    colors = [to_hex(patch.get_facecolor(), keep_alpha=True) for patch in drawn.figure.axes[0].patches]
    assert colors[0].upper() == f"{BLUE}FF"
    assert [color[-2:] for color in colors] == ["ff", "00", "ff", "ff"]
    assert drawn.caption == "One head: the largest weight is 100%, from query “<s>” to key “<s>”."


def test_transfer_shows_every_start_beside_the_chance_level():
    results = {
        "topic": {"fine-tuned": {"en": 1.0, "ru": 0.75, "zh": 0.5}, "frozen": {"en": 0.5, "ru": 0.25, "zh": 0.25}}
    }
    drawn = figures.transfer(results, {"topic": {"en": 0.25, "ru": 0.25, "zh": 0.5}}, trained="en")
    lines = [line for line in drawn.figure.axes[0].lines if len(line.get_xdata()) == 3]
    assert [list(line.get_ydata()) for line in lines] == [[1.0, 0.75, 0.5], [0.5, 0.25, 0.25]]
    assert drawn.data == {"topic": {"fine-tuned": 0.625, "frozen": 0.25, "chance": 0.375}}
    assert drawn.caption == (
        "Trained in en; mean over the 2 other languages, topic: fine-tuned 62%, frozen 25%, chance 38%."
    )
    assert is_legible(drawn)


def test_memory_of_a_step_is_measured():
    """Weights, optimizer and gradients by their definition; with checkpointing fewer activations."""
    config = XLMRobertaXLConfig(vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=2)
    model, ids = XLMRobertaXLForMaskedLM(config), torch.full((4, 64), 5)
    traces = {"as it is": trace_step(model, {"input_ids": ids, "labels": ids})}
    model.gradient_checkpointing_enable()
    traces["checkpointing"] = trace_step(model, {"input_ids": ids, "labels": ids})
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    activations = []
    for trace in traces.values():
        forward, _ = trace["turns"]
        assert set(trace["weights"]) == {size}
        assert set(trace["optimizer"]) == {2 * size}
        assert trace["gradients"][: forward + 1] == [0] * (forward + 1)
        assert trace["gradients"][-1] == size
        assert trace["activations and temporary"][-1] < 0.1 * size
        activations.append(trace["activations and temporary"][forward - 1])
    assert activations[1] < 0.5 * activations[0]
    drawn = figures.training_memory(traces)
    assert drawn.data["as it is"]["MB"] > drawn.data["checkpointing"]["MB"]
    assert is_legible(drawn)


def test_curves_on_a_logarithmic_axis():
    drawn = figures.curves([CURVES[0, :1] / 100 + 1e-4], range(5), percent=True, log=True, **NAMES)
    assert drawn.figure.axes[0].get_yscale() == "log"
    assert drawn.caption == "Mean attention, a 0.01% at 0, 0.077% at 4; b 0.093% at 0, 0.16% at 4."
