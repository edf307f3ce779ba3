"""The drawings of the course: the whole model, and one for each idea of the notebooks.

They can be read on a light and on a dark page: the background is transparent, lines and text are of a middle grey, and
text in coloured boxes is dark. Coordinates are inches from the lower left corner. Shapes have the axis letters of
xlmrxl_min/model.py.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Patch
from matplotlib.path import Path
from torch import Tensor

from ..inputs import as_tokens, as_values, check_integer, check_number, check_option, check_weights
from ..interpret.plot.figure import COLORS, DPI, INK, MAX_LABELS, Labels, Parts, captioned
from ..model import build_attention_mask, skew
from .checks import Guess

DARK, NONE = "#111111", "none"
ORANGE, GREEN, PINK, BLUE, RED, YELLOW, GREY = COLORS[1:]  # DARK text can be read on all of them
TOKENS, IDS = ["<s>", "We", "see", "you", "</s>"], [0, 1401, 1957, 398, 2]  # in the published models' vocabulary
PARTS = {  # what can be marked in the whole model, and its name there
    "tokens": "tokens", "embeddings": "embeddings", "positions": "positions", "block": "block",
    "attention": "attention", "feed_forward": "feed-forward", "layer_norm": "LayerNorm", "residual": "residual",
    "lm_head": "LM head",
}  # fmt: skip
MAX_WIDTH = 15  # points: the line in rollout_flow whose weight is 1


# ---- text, boxes, arrows


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    matplotlib.rcParams["font.size"] = 8  # `captioned` restores it
    figure = Figure((width, height), dpi=DPI)
    axis = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axis.axis("off")
    return figure, axis


def label(axis: Axes, x: float, y: float, text: str, ha: str = "center", **options: Any) -> None:
    """Text around the height y; a single line by its baseline, so that neighbours are level."""
    is_line = "\n" not in text and "rotation" not in options
    options = {"va": "baseline" if is_line else "center", "linespacing": 1.1, **options}
    axis.text(x, y - 0.04 * is_line, text, ha=ha, **options)


def shape(axis: Axes, x: float, y: float, text: str) -> None:
    label(axis, x, y, text, family="monospace", fontsize=8, weight="bold")


def box(
    axis: Axes, x: float, y: float, text: str, color: str = GREY, width: float = 0.7, edge: str = NONE, sheets: int = 1,
    height: float = 0.4, rounding: float = 0.06,
) -> float:  # fmt: skip
    """A box around (x, y), for "+" a circle; several sheets, one behind the other, for heads. Returns its width."""
    for shift in (0.05 * i for i in reversed(range(sheets))):
        style, corner = f"round,pad=0,rounding_size={rounding}", (x - width / 2 + shift, y - height / 2 + shift)
        patch: Patch = Circle((x, y), width / 2) if text == "+" else FancyBboxPatch(corner, width, height, style)
        patch.set(facecolor=color, edgecolor=edge, linewidth=0.7 if edge in (NONE, INK, DARK) else 2.5, zorder=2)
        axis.add_patch(patch)
    label(axis, x, y, text, color=INK if color == NONE else DARK)
    return width + 0.05 * (sheets - 1)


def cell(axis: Axes, x: float, y: float, text: Any, color: str = NONE, width: float = 0.3, edge: str = INK) -> None:
    text = text if isinstance(text, str) else f"{text}".replace("-", "−")
    box(axis, x, y, text, color, width, edge, height=0.3, rounding=0.001)


def arrow(axis: Axes, *points: float, color: str = INK, style: str = "-|>", line: str = "-") -> None:
    """Along x, y, x, y, … to the last point."""
    path = Path(list(zip(points[::2], points[1::2], strict=True)))
    patch = FancyArrowPatch(path=path, arrowstyle=style, mutation_scale=7, joinstyle="miter")
    patch.set(color=color, linestyle=line, linewidth=1.1, zorder=1)
    axis.add_patch(patch)


def chain(axis: Axes, x: float, y: float, *items: Any) -> list[float]:
    """Boxes (the arguments of `box` from `text` on) and arrows (a length, or a shape), from x to the right.

    Returns the centres of the boxes.
    """
    centres = []
    for item in items:
        if isinstance(item, tuple):
            centres.append(x + item[2] / 2)
            x += box(axis, centres[-1], y, *item)
            continue
        length = 0.6 if isinstance(item, str) else item
        arrow(axis, x + 0.03, y, x + length - 0.03, y)
        shape(axis, x + length / 2, y + 0.13, item if isinstance(item, str) else "")
        x += length
    return centres


def grid(axis: Axes, x: float, y: float, rows: Sequence[str], columns: Sequence[str], cells: Any) -> None:
    """Cells (text and colour of each, in rows), below and to the right of (x, y), with names of rows and columns."""
    for j, name in enumerate(columns):
        label(axis, x + 0.3 * j + 0.15, y + 0.06, name, rotation=90, va="bottom")
    for i, (name, row) in enumerate(zip(rows, cells, strict=True)):
        label(axis, x - 0.06, y - 0.3 * i - 0.15, name, "right")
        for j, (text, color) in enumerate(row):
            cell(axis, x + 0.3 * j + 0.15, y - 0.3 * i - 0.15, text, color)


# ---- the drawings


@captioned
def whole_model(here: str | Sequence[str] | None = None) -> Parts:
    """The encoder with its LM head; `here` names the part, or the parts, that are marked. ValueError for another name.

    The names are those of PARTS. Dropout is left out.
    """
    marked = [] if here is None else [here] if isinstance(here, str) else list(here)
    for name in marked:
        check_option("here", name, list(PARTS))
    figure, axis = canvas(10.4, 3.65)

    def part(text: str, color: str, width: float, *names: str) -> tuple[str, str, float, str]:
        is_here = any(name in marked for name in names)
        return text, color if is_here or not marked else GREY, width, RED if is_here else NONE

    you_are_here = f"You are here: {', '.join(PARTS[name] for name in marked)}" if marked else ""
    label(axis, 0.1, 3.53, you_are_here, "left", color=RED, weight="bold")
    label(axis, 0.47, 2.9, "“We see you”")
    chain(axis, 0.9, 2.9, 0.3, part("tokenizer", BLUE, 0.75, "tokens"), 0.3)
    _, color, _, edge = part("", BLUE, 0.4, "tokens")
    for i, number in enumerate(IDS):
        cell(axis, 2.45 + 0.4 * i, 2.9, number, color, 0.4, edge if edge == RED else INK)
    for y, name, path in (
        (2.9, "word", (6.85, 2.9, 6.85, 2.55)), (2.4, "position", (6.71, 2.4)),
        (1.9, "token type", (6.85, 1.9, 6.85, 2.25)),
    ):  # fmt: skip
        chain(axis, 4.25, y, "b t", part(f"{name} embeddings", ORANGE, 1.5, "embeddings", f"{name}s"))
        arrow(axis, 6.38, y, *path)
    label(axis, 4.22, 2.4, "positions, counted from 2", "right")
    label(axis, 4.22, 1.9, "0 for every token", "right")
    box(axis, 6.85, 2.4, *part("+", ORANGE, 0.24, "embeddings"))
    arrow(axis, 7.0, 2.4, 7.35, 2.4, 7.35, 1.55, 0.2, 1.55, 0.2, 0.8, 0.25, 0.8, style="-")
    shape(axis, 7.6, 2.0, "b t e")

    norm, plus = ("Layer\nNorm", YELLOW, 0.5, "layer_norm"), part("+", PINK, 0.24, "residual", "block")
    attention, feed_forward = ("attention", BLUE, 0.75, "attention"), ("feed-\nforward", GREEN, 0.75, "feed_forward")
    x = chain(
        axis, 0.2, 0.8, 0.45, part(*norm, "block"), 0.25, part(*attention, "block"), 0.25, plus,
        0.45, part(*norm, "block"), 0.25, part(*feed_forward, "block"), 0.25, plus, "b t e", part(*norm),
        "b t e", part("linear", PINK, 0.52, "lm_head"), 0.2, part("GELU", PINK, 0.52, "lm_head"), 0.2,
        part(*norm, "lm_head"), 0.2, part("decoder", ORANGE, 0.75, "lm_head"), "b t v",
    )  # fmt: skip
    for i in (0, 3):
        arrow(axis, x[i] - 0.42, 0.8, x[i] - 0.42, 1.17, x[i + 2], 1.17, x[i + 2], 0.95)
    for name, text, left, right in (
        ("block", "block, × n layers", x[0] - 0.5, x[5] + 0.2), ("lm_head", "LM head", x[7] - 0.35, x[-1] + 0.46)
    ):  # fmt: skip
        box(axis, (left + right) / 2, 0.86, "", NONE, right - left, RED if name in marked else INK, height=0.9)
        label(axis, (left + right) / 2, 0.28, text)
    label(axis, 10.1, 0.62, "logits")
    arrow(axis, 5.6, 3.12, 5.6, 3.35, x[-1], 3.35, x[-1], 1.02, line="--")
    label(axis, x[-1] - 0.1, 3.2, "tied: the decoder's weight is the word embedding matrix", "right")
    shape(axis, x[-1] + 0.2, 3.2, "v e")
    caption = "The whole model: tokenizer, embeddings, n blocks, a last LayerNorm, LM head (tied to the embeddings)."
    return figure, {"here": marked}, f"{caption} {you_are_here}{'.' if marked else ''}".strip()


@captioned
def embeddings_sum() -> Parts:
    """Word, position and token type embeddings are added. The vectors, of width e = 3, are made up; the ids are not."""
    figure, axis = canvas(9.0, 2.65)
    generator, count = torch.Generator().manual_seed(1), len(IDS)
    word, position = (torch.randint(-2, 3, (count, 3), generator=generator) for _ in range(2))  # t e
    token_type = torch.tensor([1, 0, -1]).expand(count, 3)  # t e
    data = {"word": word, "position": position, "token type": token_type, "sum": word + position + token_type}
    numbers: list[Sequence[Any]] = [IDS, range(2, 2 + count), [0] * count, [""] * count]
    for name, ids, y, color in zip(data, numbers, (2.1, 1.55, 1.0, 0.25), (BLUE, ORANGE, GREEN, GREY), strict=True):
        label(axis, 0.1, y, name, "left")
        for i, vector in enumerate(data[name].tolist()):
            x = 2 + 1.55 * i
            label(axis, x - 0.52, y, str(ids[i]), "right")
            label(axis, x, y - 0.275, "+" if y > 1 else "")
            for n, value in enumerate(vector):
                cell(axis, x + 0.3 * (n - 1), y, value, color)
    for i, token in enumerate(TOKENS):
        label(axis, 2 + 1.55 * i, 2.46, token, weight="bold")
        arrow(axis, 2 + 1.55 * i, 0.82, 2 + 1.55 * i, 0.43)
    shape(axis, 0.6, 0.25, "b t e")
    caption = "A token's vector is the sum of three. Position numbers begin at 2, because 1 is the padding's."
    return figure, data, f"{caption} Here e = 3."


@captioned
def segmentations(text: str, log_probs: Mapping[str, float], ways: Sequence[Sequence[str]]) -> Parts:
    """A word, every subword in it as an arc, and below it a few of the ways to segment it, each with its sum.

    `log_probs` holds the subwords. Raises ValueError if the subwords of a way, one after the other, are not the text.
    """
    figure, axis = canvas(9.6, 1.95 + 0.45 * len(ways))
    base, left, width = 0.25 + 0.45 * len(ways), 1.3, 0.46
    spans = [(i, j) for j in range(len(text) + 1) for i in range(j) if text[i:j] in log_probs]
    best: set[tuple[int, int]] = set()
    turn = torch.linspace(0, math.pi, 40)
    sums: list[float] = []
    for n, (subwords, color) in enumerate(zip(ways, (BLUE, ORANGE, GREEN, PINK), strict=False)):
        if "".join(subwords) != text:
            raise ValueError(f"{' + '.join(subwords)} is not {text}.")
        ends = [sum(map(len, subwords[:i])) for i in range(len(subwords) + 1)]
        best |= set(pairwise(ends)) if n == 0 else set()
        sums.append(sum(log_probs[subword] for subword in subwords))
        y = base - 0.45 * (n + 1)
        label(axis, left - 0.1, y, "most probable" if n == 0 else f"number {n + 1}", "right")
        label(axis, left + width * len(text) + 0.1, y, f"sum {sums[-1]:.1f}".replace("-", "−"), "left")
        for start, end in pairwise(ends):
            number = f"{log_probs[text[start:end]]:.1f}".replace("-", "−")
            box(axis, left + width * (start + end) / 2, y, number, color, width * (end - start) - 0.05, height=0.3)
    for i, letter in enumerate(text):
        label(axis, left + width * (i + 0.5), base, letter, fontsize=11)
    for start, end in sorted(spans, key=best.__contains__):
        color, line = (BLUE, 2.2) if (start, end) in best else (INK, 0.7)
        x, y = left + width * ((start + end) / 2 - (end - start) / 2 * turn.cos()), base + 0.17
        axis.plot(x, y + 0.22 * (end - start) * turn.sin(), color=color, linewidth=line, zorder=2)
    caption = (
        f"{len(spans)} subwords of the vocabulary are parts of {text}, an arc for each; below, {len(ways)} ways to"
        f" segment it, with log-probabilities. The most probable way: {' | '.join(ways[0])}."
    )
    return figure, {"arcs": spans, "sums": sums}, caption


@captioned
def relative_lengths(
    lengths: Mapping[str, float], changed: Mapping[str, float], groups: Mapping[str, Sequence[str]],
    guess: Guess | None = None,
) -> Parts:  # fmt: skip
    """Bars in two columns, from the shortest, each with a name, and colours for groups of names.

    A diamond is where a bar ends by `changed`; a line marks 1, and a dashed one the guess.
    """
    color_of = {name: color for names, color in zip(groups.values(), COLORS, strict=False) for name in names}
    order = sorted(lengths, key=lambda name: lengths[name])
    rows, scale = math.ceil(len(order) / 2), 2.6 / max(lengths.values())
    figure, axis = canvas(9.6, 0.85 + 0.19 * rows)
    for n, name in enumerate(order):
        column, row = divmod(n, rows)
        x, y = 1.3 + 4.8 * column, 0.6 + 0.19 * (rows - 1 - row)
        axis.barh(y, scale * lengths[name], 0.13, left=x, color=color_of[name])
        label(axis, x - 0.08, y, name, "right")
        label(axis, x + 2.7, y, f"{lengths[name]:.2f}", "left")
        if name in changed:
            axis.plot(x + scale * changed[name], y, "D", color="white", markeredgecolor=DARK, markersize=6)
            label(axis, x + 3.05, y, f"→ {changed[name]:.2f}", "left")
    for x in (1.3, 6.1):
        arrow(axis, x + scale, 0.5, x + scale, 0.57 + 0.19 * rows, style="-")
        label(axis, x + scale, 0.7 + 0.19 * rows, "1")
        if guess is not None:
            guess.mark(lambda value, x=x, **style: axis.axvline(x + scale * value, 0.12, 0.93, **style))
    for n, (name, color) in enumerate(zip(groups, COLORS, strict=False)):
        axis.barh(0.2, 0.15, 0.13, left=0.3 + 1.32 * n, color=color)
        label(axis, 0.5 + 1.32 * n, 0.2, name, "left", fontsize=7)
    first, last = order[0], order[-1]
    moved = ", ".join(f"{name} {lengths[name]:.2f} → {changed[name]:.2f}" for name in changed)
    caption = f"From {first}, {lengths[first]:.2f}, to {last}, {lengths[last]:.2f}. The line: 1. Diamonds: {moved}."
    return figure, {"order": order}, caption


@captioned
def attention_shapes() -> Parts:
    """From hidden states to the output of attention, with the shapes."""
    figure, axis = canvas(10.2, 2.85)
    label(axis, 0.5, 1.5, "LayerNorm\nof the\nhidden states")
    shape(axis, 0.5, 1.1, "b t e")
    for y, name, color in ((2.5, "query", BLUE), (1.5, "key", ORANGE), (0.4, "value", GREEN)):
        arrow(axis, 1.0, 1.5, 1.25, 1.5, 1.25, y, style="-")
        chain(axis, 1.25, y, 0.3, (name, color, 0.7), "b t e", ("split into\nheads", color, 0.8, INK, 3))
        shape(axis, 4.15, y + 0.13, "b h q d" if name == "query" else "b h k d")
    arrow(axis, 3.78, 2.5, 4.75, 2.5, 4.75, 2.3)
    arrow(axis, 3.78, 1.5, 4.7, 1.5, 4.7, 1.75)
    scores, mask = ("q · k / √d", GREY, 0.85, INK, 3), ("+ mask", GREY, 0.65, INK, 3)
    *_, x = chain(axis, 4.3, 1.97, scores, "b h q k", mask, 0.3, ("softmax", GREY, 0.75, INK, 3))
    arrow(axis, x, 1.75, x, 0.72)
    label(axis, x - 0.1, 1.25, "weights", "right")
    shape(axis, x + 0.32, 1.25, "b h q k")
    arrow(axis, 3.78, 0.4, x - 0.56, 0.4)
    weighted_sum, concatenate = ("weighted sum\nof values", GREEN, 1.05, INK, 3), ("concatenate\nheads", GREEN, 0.85)
    _, x = chain(axis, x - 0.53, 0.4, weighted_sum, "b h q d", concatenate)
    arrow(axis, x, 0.62, x, 1.75)
    shape(axis, x + 0.25, 1.25, "b q e")
    chain(axis, x - 0.43, 1.97, ("output\nprojection", PINK, 0.85), "b q e")
    caption = "Self-attention, with a sheet for each head. Its queries q and its keys k are the same tokens t."
    return figure, {}, caption


@captioned
def masks() -> Parts:
    """Five masks `q k`, True = may attend, as build_attention_mask makes them."""
    figure, axis = canvas(10.4, 2.6)
    right, left = ["<s>", "We", "</s>", "<pad>", "<pad>"], ["<pad>", "<pad>", "<s>", "We", "</s>"]
    is_token, data = torch.tensor([[1, 1, 1, 0, 0]]), {}
    for n, (name, queries, keys, mask, is_causal) in enumerate((
        ("padding", right, right, is_token, False), ("causal", TOKENS, TOKENS, None, True),
        ("causal, padding right", right, right, is_token, True),
        ("causal, padding left", left, left, is_token.flip(1), True),
        ("cross-attention", ["<s>", "Nous", "</s>"], right, is_token, False),
    )):  # fmt: skip
        allowed: Any = build_attention_mask(mask, len(queries), len(keys), torch.device("cpu"), is_causal)
        data[name] = allowed[0, 0].expand(len(queries), len(keys))
        cells = [[("", BLUE if may_attend else NONE) for may_attend in row] for row in data[name].tolist()]
        grid(axis, 0.65 + 2.05 * n, 1.75, queries, keys, cells)
        label(axis, 1.4 + 2.05 * n, 2.46, name, weight="bold")
    label(axis, 0.65, 0.1, "rows: queries; columns: keys; blue: the query may attend to the key", "left")
    counts = "; ".join(f"{name} {int(allowed.sum())} of {allowed.numel()}" for name, allowed in data.items())
    return figure, data, f"Masks. Pairs of query and key that may attend: {counts}."


@captioned
def rollout_flow(
    maps: Sequence[Tensor] | Tensor, tokens: Sequence[str], position: int | None = None, *, residual: float = 0.5
) -> Parts:
    """Attention rollout as lines from keys, left, to queries, right. `maps`: `l q k`, the mean of each layer's heads.

    A line is as wide as the layer's weight, with `residual` of the identity mixed in; with a `position`, as wide as
    what comes along it to the query there, which adds up to interpret.rollout's number at each input token. Raises
    ValueError for what are no maps of self-attention, for more than 64 tokens, and for too few or too many strings.
    """
    steps = as_values(maps, "maps", "l q k")
    check_weights(steps, "maps")
    check_number("residual", residual, 0, 1)
    layers, count, keys = steps.shape
    if count != keys or count > MAX_LABELS:
        raise ValueError(f"maps has {count} queries and {keys} keys, but must have as many, at most {MAX_LABELS}.")
    tokens, flow, label_of = as_tokens(tokens, count), torch.ones(count), Labels(14)
    if position is not None:
        check_integer("position", position, 0, count - 1)
        flow = F.one_hot(torch.tensor(position), count).float()  # q
    widths = (1 - residual) * steps + residual * torch.eye(count)
    pitch = min(1.6, 7.2 / layers)
    top, right = 0.24 * count + 0.08, 1.5 + pitch * layers
    figure, axis = canvas(right + 1.3, top + 0.45)
    for layer in reversed(range(layers)):
        widths[layer] *= flow[:, None]
        flow = flow if position is None else widths[layer].sum(0)
        x = [1.55 + pitch * layer, 1.45 + pitch * (layer + 1)]
        label(axis, sum(x) / 2, top + 0.3, f"layer {layer}")
        for q, k in widths[layer].nonzero().tolist():
            y, points = [top - 0.24 * k, top - 0.24 * q], MAX_WIDTH * float(widths[layer, q, k])
            axis.plot(x, y, color=GREEN, linewidth=points, alpha=0.75, solid_capstyle="butt")
    for i, token in enumerate(map(label_of, tokens)):
        label(axis, 1.45, top - 0.24 * i, token if position is None else f"{flow[i]:.0%} {token}", "right")
        mark = {"color": RED, "weight": "bold"} if i == position else {}
        label(axis, right + 0.05, top - 0.24 * i, token, "left", **mark)
    caption = f"Rollout, {residual:.0%} residual in each of {layers} layers: the wider a line, the larger its weight."
    if position is not None:
        caption += f" Of the state of “{label_of(tokens[position])}”, {float(flow[position]):.0%} comes from itself."
    return figure, {"widths": widths, "flow": flow}, caption + label_of.legend(figure)


@captioned
def distances() -> Parts:
    """The distance i - j of each query i to each key j."""
    figure, axis = canvas(3.6, 2.6)
    names = [f"{token} {i}" for i, token in enumerate(TOKENS)]
    numbers = torch.arange(len(names))[:, None] - torch.arange(len(names))  # q k
    cells = [[(n, BLUE if n > 0 else ORANGE if n else GREY) for n in row] for row in numbers.tolist()]
    grid(axis, 1.0, 1.9, names, names, cells)
    label(axis, 0.12, 1.15, "query i", rotation=90)
    label(axis, 1.75, 2.5, "key j")
    label(axis, 1.75, 0.2, "i − j; blue: the key comes before the query; orange: after")
    caption = "Distances i − j of query i and key j: all pairs on a diagonal have the same one."
    return figure, {"distances": numbers}, caption


@captioned
def skew_steps() -> Parts:
    """xlmrxl_min.model.skew for four queries and four keys: where rows begin and end in memory.

    The numbers are distances i - j. Each query has a colour, but only in the cells that are kept in the end.
    """
    figure, axis = canvas(9.5, 4.6)
    n, r, colors = 4, 7, (BLUE, ORANGE, GREEN, PINK)
    table = torch.arange(n - 1, -n, -1).expand(n, r)  # q r
    kept = skew(table[None, None], n)[0, 0]  # q k
    headings = (
        (0.25, 4.45, "1. Each query times the vectors of all distances: q r"),
        (0.25, 2.7, "2. In memory one row follows the other. Drop the first q − 1 elements and the last:"),
        (0.25, 1.7, "3. Read rows of r − 1 elements: each begins one element further left in its row of step 1."),
        (5.9, 1.7, "4. Keep the first k columns: q k"), (5.9, 3.47, "arrows: where a row of step 3 begins"),
    )  # fmt: skip
    for x, y, text in headings:
        label(axis, x, y, text, "left")
    label(axis, 5.9, 3.81, "red: where a row of step 1 ends", "left", color=RED)
    for i in range(n):
        label(axis, 2.75, 4.15 - 0.34 * i, f"query {i}: its keys begin {n - 1 - i} too far right", "left")
    for y, first, last, width in ((4.15, 0, n * r, r), (2.4, 0, n * r, n * r), (1.4, n - 1, n * r - 1, r - 1)):
        for element in range(first, last):
            (row, column), (i, j) = divmod(element, r), divmod(element - first, width)
            color = colors[row] if n - 1 <= row + column < r else NONE
            cell(axis, 0.41 + 0.32 * j, y - 0.34 * i, int(table[row, column]), color, 0.32)
            if column == r - 1:
                ends = [0.57 + 0.32 * j] * 2, [y - 0.34 * i - 0.16, y - 0.34 * i + 0.16]
                axis.plot(*ends, color=RED, linewidth=3.5, zorder=3)
    for i, row in enumerate(kept.tolist()):
        begin = 0.25 + 0.32 * (n - 1 + (r - 1) * i)
        arrow(axis, begin, 1.95, begin, 2.22)
        for j, number in enumerate(row):
            cell(axis, 6.06 + 0.32 * j, 1.4 - 0.34 * i, number, colors[i], 0.32)
    arrow(axis, 2.6, 0.9, 5.6, 0.9)
    caption = f"The skew for {n} queries and {n} keys: rows of {r} are read as rows of {r - 1}, and nothing is moved."
    return figure, {"kept": kept}, caption


@captioned
def pre_and_post_norm() -> Parts:
    """LayerNorm before attention and feed-forward, as here, and after each addition."""
    figure, axis = canvas(9.0, 3.6)
    norm, plus = ("Layer\nNorm", YELLOW, 0.5), ("+", PINK, 0.24)
    attention, feed_forward = ("attention", BLUE, 0.75), ("feed-\nforward", GREEN, 0.75)
    for y, name, text in (
        (2.9, "pre-LN", "XLM-R XL and XXL: x + f(LayerNorm(x))"),
        (1.0, "post-LN", "BERT, XLM-R base and large: LayerNorm(x + f(x))"),
    ):
        label(axis, 0.1, y + 0.55, name, "left", weight="bold")
        label(axis, 0.8, y + 0.55, text, "left")
        label(axis, 0.45, y, "x")
        if name == "pre-LN":
            first, second, last = chain(axis, 0.6, y, 2.8, plus, 3.0, plus, 0.8, norm, 0.6)
            starts, sublayer = (0.9, first + 0.4), [0.3, norm, 0.3]
            label(axis, last, y - 0.4, "once, after the last block")
        else:
            first, last, second, _ = chain(axis, 0.6, y, 2.0, plus, 0.3, norm, 2.26, plus, 0.3, norm, 0.6)
            starts, sublayer = (0.9, last + 0.5), [0.45]
        for x, end, f in zip(starts, (first, second), (attention, feed_forward), strict=True):
            arrow(axis, x, y, x, y - 0.65, style="-")
            *_, centre = chain(axis, x, y - 0.65, *sublayer, f)
            arrow(axis, centre + 0.4, y - 0.65, end, y - 0.65, end, y - 0.14)
    return figure, {}, "Pre-LN: attention and feed-forward only add to x. Post-LN: each sum passes through a LayerNorm."


@captioned
def layer_norm_geometry() -> Parts:
    """LayerNorm of four vectors of width 3, in three steps: an orthographic view with (1, 1, 1) upright."""
    figure, axis = canvas(9.6, 3.3)
    up, across, along = (F.normalize(torch.tensor(v), dim=0) for v in ([1.0, 1, 1], [1.0, -1, 0], [1.0, 1, -2]))
    x = torch.tensor([[2.2, -0.5, 1.3], [-0.8, 0.3, 1.6], [0.5, -0.6, -1.4], [-1.6, -1.3, 1.0]])
    x = x @ torch.stack([across, along, up])
    weight, bias = torch.tensor([1.5, 0.5, 1.0]), torch.tensor([0.0, 0.9, 0.6])
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / x.std(-1, correction=0, keepdim=True)
    steps = {"x": x, "centred": centred, "normed": normed, "output": weight * normed + bias}
    angles, tilt = torch.linspace(0, 2 * math.pi, 200)[:, None], math.radians(25)
    circle = 3**0.5 * (angles.cos() * across + angles.sin() * along)
    view = 0.6 * torch.stack([across, math.sin(tilt) * along + math.cos(tilt) * up], -1)
    for n, (before, after) in enumerate(pairwise(steps.values())):
        x, y = centre = torch.tensor([1.6 + 3.2 * n, 1.4])
        label(axis, x, 3.15, ("1. subtract the mean", "2. divide by the standard deviation", "3. times γ, plus β")[n])
        label(axis, x, 0.15, ("onto the plane x₁ + x₂ + x₃ = 0", "onto the circle of radius √3", "onto an ellipse")[n])
        axis.fill(*(circle @ view + centre).T, facecolor=(INK, 0.25), edgecolor=INK)
        if n == 0:
            arrow(axis, x, y, *(2 * up @ view + centre), line=":")
            label(axis, x, 2.6, "(1, 1, 1)")
        if n == 2:
            axis.plot(*((weight * circle + bias) @ view + centre).T, color=RED, linewidth=1)
        lines = torch.stack([before, after], 1) @ view + centre
        for ends, color in zip(lines, (BLUE, ORANGE, GREEN, PINK), strict=True):
            axis.plot(*ends[0], "o", color=color, markersize=5, zorder=3)
            arrow(axis, *ends.flatten().tolist(), color=color)
    caption = "LayerNorm in three dimensions: a projection along (1, 1, 1), a scaling to length √3, then γ and β."
    return figure, steps, caption


@captioned
def masking(tokens: Sequence[str], inputs: Sequence[str], labels: Sequence[int] | Tensor) -> Parts:
    """A sentence in masked language modelling: its tokens, the model's inputs, and the labels `t`, -100 for none.

    `tokens` and `inputs` are strings, by tokenizer.convert_ids_to_tokens. Raises ValueError if the numbers of the three
    differ, or if an input without a label is not the token.
    """
    ids, label_of = as_values(labels, "labels", "t").int().tolist(), Labels()
    tokens, inputs = as_tokens(tokens, len(ids)), as_tokens(inputs, len(ids), "inputs")
    colors = {"<mask>": BLUE, "a random token": ORANGE, "the same token": GREEN, "": NONE}
    fates = [
        "" if i == -100 else "<mask>" if new == "<mask>" else "the same token" if new == old else "a random token"
        for old, new, i in zip(tokens, inputs, ids, strict=True)
    ]
    if wrong := [i for i, fate in enumerate(fates) if not fate and tokens[i] != inputs[i]]:
        raise ValueError(f"inputs[{wrong[0]}] is not the token there, but has no label: pass mask_tokens' labels.")
    rows = {"text": list(map(label_of, tokens)), "input": list(map(label_of, inputs)), "label": ids}
    scratch, texts = canvas(1, 1)[1], [str(text) for row in rows.values() for text in row]
    width = 0.14 + max(scratch.text(0, 0, text).get_window_extent().width for text in texts) / DPI
    per_line = int(8.7 / width)
    top = 0.45 + 1.1 * math.ceil(len(ids) / per_line)
    figure, axis = canvas(9.6, top + 0.2)
    for i, fate in enumerate(fates):
        line, column = divmod(i, per_line)
        for n, (name, row) in enumerate(rows.items()):
            y = top - 1.1 * line - 0.34 * n
            cell(axis, 0.8 + width * (column + 0.5), y, row[i], colors[fate] if n else NONE, width)
            label(axis, 0.1, y, "" if column else name, "left")
    counts = {fate: fates.count(fate) for fate in colors if fate}
    for i, (fate, count) in enumerate(counts.items()):
        box(axis, 1.8 + 2.2 * i, 0.35, f"{fate} ({(80, 10, 10)[i]}%): {count} here", colors[fate], 2.0, height=0.3)
    caption = f"{sum(counts.values())} of {len(ids)} tokens are selected; the others have the label −100, and no loss."
    return figure, counts, caption + label_of.legend(figure)


BUG_PARTS = {  # what `bug_map` can mark, and the boxes of each
    "tokenizer": ("tokenizer",), "position embeddings": ("positions",), "LayerNorm": ("norm", "norm 2", "last", "head"),
    "LayerNorms of the block": ("norm", "norm 2"), "split into heads": ("split",), "relative positions": ("relative",),
    "mask": ("mask",), "dropout": ("dropout",), "weighted sum": ("sum",), "tied weight": ("tied",), "loss": ("loss",),
    "gradient": ("gradient",),
}  # fmt: skip


# ---- files and memory (notebook 10)


@captioned
def file_bytes(path: str | os.PathLike[str]) -> Parts:
    """A safetensors file of two or three tensors, from its first byte to its last: 8 bytes, the header, the data."""
    with open(path, "rb") as file:
        raw = file.read()
    length = int.from_bytes(raw[:8], "little")
    header = {name: entry for name, entry in json.loads(raw[8 : 8 + length]).items() if name != "__metadata__"}
    figure, axis = canvas(10.4, 2.75)
    for i, byte in enumerate(raw[:8]):
        cell(axis, 0.4 + 0.32 * i, 2.05, f"{byte:02x}", BLUE, 0.32)
    label(axis, 0.24, 2.45, "8 bytes: a number", "left", weight="bold")
    label(axis, 0.24, 1.7, "in hexadecimal, least significant byte first:", "left")
    label(axis, 0.24, 1.5, f"= {length}, the length of the header", "left")
    label(axis, 3.2, 2.45, f"{length} bytes: the header, JSON, filled up with spaces", "left", weight="bold")
    text = raw[8 : 8 + length].decode().rstrip().replace('},"', '},\n"')
    box(axis, 6.7, 1.95, text, ORANGE, 7.0, INK, height=0.5, rounding=0.001)
    label(axis, 0.24, 1.1, f"{len(raw) - 8 - length} bytes: the data", "left", weight="bold")
    x, colors, start = 2.1, (GREEN, PINK, YELLOW, GREY), 8 + length
    per_byte = 7.9 / (len(raw) - start)
    for (name, entry), color in zip(
        sorted(header.items(), key=lambda item: item[1]["data_offsets"]), colors, strict=False
    ):
        begin, end = entry["data_offsets"]
        width = per_byte * (end - begin)
        what = f"{name}: {entry['dtype']} {entry['shape']}"
        box(axis, x + width / 2, 1.0, what, color, width, INK, height=0.4, rounding=0.001)
        label(axis, x, 0.6, f"{begin}", "left")
        label(axis, x + 0.02, 0.35, f"byte {start + begin}", "left")
        x += width
    label(axis, 2.0, 0.6, "data_offsets", "right")
    label(axis, 2.0, 0.35, "in the file", "right")
    label(axis, x, 0.6, f"{end}", "right")
    label(axis, x, 0.35, f"{len(raw)}", "right")
    caption = (
        f"A safetensors file of {len(raw)} bytes: 8 with the length of the header, {length} of header, the data of"
    )
    return figure, {"length": length, "start": start}, f"{caption} {len(header)} tensors."


@captioned
def mapped_file() -> Parts:
    """A file as memory: tensors are views of pages, and a page is read when a number in it is used."""
    figure, axis = canvas(10.4, 3.1)
    rows = {"tensors": 2.55, "pages of the process": 1.85, "page cache (memory)": 1.0, "file (disk)": 0.3}
    for name, y in rows.items():
        label(axis, 1.9, y, name, "right")
    tensors, pages, cache, disk = rows.values()
    in_cache, copied, count, width = {1, 2, 6}, 6, 12, 0.55
    for name, first, last, color in (
        ("word embeddings", 0, 6, BLUE),
        ("a query matrix", 6, 9, ORANGE),
        ("…", 9, 12, GREY),
    ):
        box(axis, 2.05 + width * (first + last) / 2, tensors, name, color, width * (last - first), INK, rounding=0.001)
    for i in range(count):
        x = 2.05 + width * (i + 0.5)
        arrow(axis, x, pages + 0.17, x, tensors - 0.22, style="-")
        cell(axis, x, pages, "copy" if i == copied else "", PINK if i == copied else NONE, width)
        cell(axis, x, disk, f"{i}", GREEN, width)
        if i in in_cache:
            cell(axis, x, cache, f"{i}", GREEN, width)
            arrow(axis, x, disk + 0.17, x, cache - 0.17)
            if i != copied:
                arrow(axis, x, cache + 0.17, x, pages - 0.17, style="-")
    for y, text in (
        (pages, "copy: a page that\nwas written to"), (cache, "read when used,\ncan be dropped"),
        (disk, "12 pages of 4 kB"),
    ):  # fmt: skip
        label(axis, 2.15 + width * count, y, text, "left")
    caption = f"A mapped file of {count} pages. {len(in_cache)} have been used, so they are in memory; one of these was"
    return (
        figure,
        {"in_cache": in_cache},
        f"{caption} written to, which gave the process a copy. The others were never read.",
    )


@captioned
def forward_moments() -> Parts:
    """Which tensors are alive at three moments of the forward pass of my_model.py; sizes are not to scale."""
    figure, axis = canvas(10.4, 2.6)
    moments = {
        "attention,\nin the softmax": [
            ("residual", PINK, "b t e"), ("normed", YELLOW, "b t e"), ("query", BLUE, "b t e"), ("key", BLUE, "b t e"),
            ("value", BLUE, "b t e"), ("scores", ORANGE, "b h t t"), ("masked", ORANGE, "b h t t"),
            ("softmax", ORANGE, "b h t t"),
        ],
        "feed-forward,\nin the GELU": [
            ("residual", PINK, "b t e"), ("normed", YELLOW, "b t e"), ("up(x)", GREEN, "b t f"),
            ("1 + erf(…)", GREEN, "b t f"), ("product", GREEN, "b t f"),
        ],
        "LM head,\nadding the bias": [
            ("normed", YELLOW, "b t e"), ("logits", GREY, "b t v"), ("plus bias", GREY, "b t v"),
        ],
    }  # fmt: skip
    for n, (name, alive) in enumerate(moments.items()):
        y = 2.2 - 0.85 * n
        label(axis, 0.1, y, name, "left")
        for i, (text, color, letters) in enumerate(alive):
            x = 2.0 + 1.1 * i
            box(axis, x, y, text, color, 1.04, INK, rounding=0.001)
            shape(axis, x, y - 0.33, letters)
    text = "1 + erf(…), and its product with up(x):\nintermediate tensors of the GELU"
    label(axis, 7.1, 1.35, text, "left")
    counts = {name.split(",")[0]: len(alive) for name, alive in moments.items()}
    caption = "Tensors that are alive at three moments of a forward pass, besides the weights:"
    return figure, counts, f"{caption} {', '.join(f'{number} in {name}' for name, number in counts.items())}."


# ---- several ranks (notebook 11)


def slab(axis: Axes, x: float, y: float, width: float, height: float, text: str = "", color: str = GREY) -> None:
    """A box without round corners: a matrix, or a part of it; (x, y) is its lower left corner."""
    box(axis, x + width / 2, y + height / 2, text, color, width, INK, height=height, rounding=0.001)


@captioned
def collectives() -> Parts:
    """What two ranks hold before and after each of four collectives. The numbers are made up."""
    figure, axis = canvas(10.4, 2.2)
    own, both = [[1, 2], [10, 20]], torch.tensor([[1, 2], [10, 20]])
    total = both.sum(0).tolist()
    data: dict[str, tuple[Any, Any, str]] = {  # name: before and after, for two ranks; what it does
        "broadcast": ([own[0], [None] * 2], [own[0]] * 2, "rank 0's, to all"),
        "all-gather": ([[1, None], [None, 20]], [[1, 20]] * 2, "everybody's parts, to all"),
        "reduce-scatter": (own, [[total[0], None], [None, total[1]]], "the sum, a part to each"),
        "all-reduce": (own, [total] * 2, "the sum, to all"),
    }
    for n, (name, (before, after, what)) in enumerate(data.items()):
        x = 0.7 + 2.55 * n
        label(axis, x + 0.85, 2.0, name, weight="bold")
        label(axis, x + 0.85, 0.12, what)
        for rank, (y, color) in enumerate(((1.45, BLUE), (0.7, ORANGE))):
            label(axis, x - 0.3, y, f"rank {rank}" if n == 0 else "")
            for j in range(2):
                for left, values in ((x, before[rank]), (x + 1.35, after[rank])):
                    value = values[j]
                    source = BLUE if value in own[0] else ORANGE if value in own[1] else GREEN if value else NONE
                    cell(axis, left + 0.15 + 0.3 * j, y, value or "", source)
            if before[rank] != [None] * 2:
                for other in (1.45, 0.7):
                    arrow(axis, x + 0.63, y, x + 1.32, other, color=color)
    caption = (
        "Four collectives of two ranks, before and after; blue is rank 0's, orange rank 1's, green a sum. Broadcast"
        " copies, all-gather puts parts together, reduce-scatter and all-reduce add."
    )
    return figure, {name: after for name, (_, after, _) in data.items()}, caption


@captioned
def ring(ranks: int = 4) -> Parts:
    """A ring all-reduce: which ranks' numbers each chunk on each rank is the sum of, step by step."""
    last, width, top = 2 * (ranks - 1), 0.065 + 0.07 * ranks, 0.55 + 0.34 * ranks
    pitch = width * ranks + 0.09
    figure, axis = canvas(max(0.62 + pitch * (last + 1), 5.0), top + 0.7)
    held = [[{rank} for _ in range(ranks)] for rank in range(ranks)]  # rank, chunk
    for step in range(last + 1):
        chunks, x = [(rank - step) % ranks for rank in range(ranks)], 0.62 + pitch * step  # what each rank sends next
        label(axis, x + width * ranks / 2, top + 0.17, f"after step {step}" if step else "before", weight="bold")
        for rank in range(ranks):
            y = top - 0.17 - 0.34 * rank
            label(axis, 0.3, y, "" if step else f"rank {rank}")
            for chunk, whose in enumerate(held[rank]):
                color = GREEN if len(whose) == ranks else YELLOW if len(whose) > 1 else NONE
                goes = step < last and chunks[rank] == chunk
                text = "".join(map(str, sorted(whose)))
                cell(axis, x + width * (chunk + 0.5), y, text, color, width, RED if goes else INK)
        if step < last:
            moving = [held[rank][chunk] for rank, chunk in enumerate(chunks)]
            for rank, chunk in enumerate(chunks):
                held[(rank + 1) % ranks][chunk] = held[(rank + 1) % ranks][chunk] | moving[rank]
    for n, name in enumerate(("reduce-scatter", "all-gather")):
        first, end = (0.62 + pitch * (1 + (ranks - 1) * (n + i)) for i in range(2))
        arrow(axis, first, top + 0.4, end - 0.09, top + 0.4, style="-")
        label(axis, (first + end - 0.09) / 2, top + 0.54, name, weight="bold")
    *some, other = map(str, range(min(3, ranks)))
    key = f"{''.join(some)}{other}: the sum of the chunks of ranks {', '.join(some)} and {other}; green: of all ranks"
    label(axis, 0.62, 0.35, key, "left")
    label(axis, 0.62, 0.12, "red: sent next, to the rank below (from the last one to rank 0)", "left")
    caption = (
        f"A ring all-reduce of {ranks} ranks, the tensor in {ranks} chunks. In each of {last} steps every rank sends"
        f" one chunk to the next: the first {ranks - 1} steps add (green: complete), the others copy what is complete."
    )
    return figure, {"sent": last, "held": held}, caption


@captioned
def sharded_linear() -> Parts:
    """A linear layer on two ranks, by columns and by rows."""
    figure, axis = canvas(10.4, 2.05)
    for x, name in ((0.2, "by columns"), (5.4, "by rows")):
        label(axis, x, 1.85, f"{name}: y = x W + b", "left", weight="bold")
        if name == "by rows":
            slab(axis, x, 0.75, 0.4, 0.6, "x₀", BLUE)
            slab(axis, x + 0.4, 0.75, 0.4, 0.6, "x₁", ORANGE)
            slab(axis, x + 1.05, 1.05, 0.8, 0.5, "W₀", BLUE)
            slab(axis, x + 1.05, 0.55, 0.8, 0.5, "W₁", ORANGE)
            slab(axis, x + 2.12, 0.9, 0.6, 0.3, "b", BLUE)
            slab(axis, x + 3.0, 1.13, 0.75, 0.45, "x₀ W₀ + b", BLUE)
            slab(axis, x + 3.0, 0.52, 0.75, 0.45, "x₁ W₁", ORANGE)
            label(axis, x + 3.4, 0.25, "partial sums")
            arrow(axis, x + 3.8, 1.35, x + 4.1, 1.15)
            arrow(axis, x + 3.8, 0.75, x + 4.1, 0.95)
            slab(axis, x + 4.15, 0.75, 0.6, 0.6, "y", GREEN)
            label(axis, x + 4.45, 0.5, "all-reduce")
            label(axis, x + 0.4, 0.5, "half of x on each")
            label(axis, x + 2.42, 0.5, "b: on rank\n0 only")
        else:
            slab(axis, x, 0.75, 0.8, 0.6, "x", GREY)
            slab(axis, x + 1.05, 0.55, 0.4, 1.0, "W₀", BLUE)
            slab(axis, x + 1.45, 0.55, 0.4, 1.0, "W₁", ORANGE)
            slab(axis, x + 2.12, 0.9, 0.3, 0.3, "b₀", BLUE)
            slab(axis, x + 2.42, 0.9, 0.3, 0.3, "b₁", ORANGE)
            slab(axis, x + 3.0, 0.75, 0.75, 0.6, "x W₀ + b₀", BLUE)
            slab(axis, x + 3.9, 0.75, 0.75, 0.6, "x W₁ + b₁", ORANGE)
            label(axis, x + 3.83, 0.5, "finished halves of y")
            label(axis, x + 0.4, 0.5, "all of x, on both")
            label(axis, x + 2.42, 0.5, "b: half\non each")
        for place, sign in ((0.92, "·"), (1.98, "+"), (2.86, "=")):
            label(axis, x + place, 1.05, sign)
        label(axis, x + 1.45, 0.25, "W: inputs × outputs")
    caption = (
        "Rank 0 has the blue part of the weight, rank 1 the orange one. By columns each rank finishes half of the"
        " outputs, with its half of the bias. By rows each gets a partial sum of all outputs, rank 0's with the bias,"
        " and an all-reduce adds the two."
    )
    return figure, {}, caption


@captioned
def parallel_block(heads: int = 6) -> Parts:
    """One block on two ranks, with its two all-reduces. `heads`: of the whole model."""
    figure, axis = canvas(9.9, 2.0)
    sums = []
    for rank, (y, color) in enumerate(((1.4, BLUE), (0.55, ORANGE))):
        label(axis, 0.1, y, f"rank {rank}", "left")
        norm, gap, plus = ("Layer\nNorm", GREY, 0.5), 0.17, ("+", GREY, 0.22)
        own = f"heads {rank * heads // 2} to {(rank + 1) * heads // 2 - 1}:\nquery, key, value"
        *_, last = chain(
            axis, 0.6, y, 0.35, norm, gap, (own, color, 1.25), gap, ("attention", color, 0.7), gap, ("out", color, 0.45)
        )
        features = (("up", color, 0.45), gap, ("GELU", color, 0.5), gap, ("down", color, 0.5))
        second = chain(axis, last + 0.225, y, 0.8, plus, 0.4, norm, gap, *features)
        third = chain(axis, second[-1] + 0.25, y, 0.8, plus, 0.3)
        for start, end in ((0.72, second[0]), (second[0] + 0.25, third[0])):
            arrow(axis, start, y, start, y + 0.33, end, y + 0.33, end, y + 0.13)
        sums = [last + 0.225 + 0.38, second[-1] + 0.25 + 0.38]
    for x in sums:
        box(axis, x, 0.975, "Σ", GREEN, 0.3, height=1.25)
        label(axis, x, 0.1, "all-reduce")
    for x, text in ((2.24, "columns"), (sums[0] - 0.64, "rows"), (sums[1] - 1.97, "columns"), (sums[1] - 0.63, "rows")):
        label(axis, x, 0.1, text)
    caption = (
        "A block on two ranks. Blue and orange parts are sharded, grey ones are the same on both ranks. Between columns"
        " and rows nothing is sent: two all-reduces (green) are all the communication of a forward pass."
    )
    return figure, {}, caption


@captioned
def fsdp_steps() -> Parts:
    """FSDP with two ranks and three blocks: what each rank holds before, while and after block 1 is used."""
    figure, axis = canvas(10.4, 2.7)
    stages = ("stored", "forward", "stored", "backward", "gradients")
    gaps = ("all-gather", "free", "all-gather", "reduce-scatter")
    for n, stage in enumerate(stages):
        x, is_whole, is_gradient = 1.35 + 1.95 * n, stage in ("forward", "backward"), stage == "gradients"
        label(axis, x + 0.4, 2.48, stage, weight="bold")
        for rank, bottom in enumerate((1.5, 0.45)):
            label(axis, 0.1, bottom + 0.38, "" if n else f"rank {rank}", "left")
            for block in range(3):
                y = bottom + 0.27 * (2 - block)
                label(axis, x - 0.08, y + 0.12, "" if n else f"block {block}", "right")
                for half, color in enumerate((BLUE, ORANGE)):
                    is_held = half == rank or (is_whole and block == 1)
                    if is_gradient:
                        is_held, color = half == rank and block == 1, GREEN
                    slab(axis, x + 0.4 * half, y, 0.4, 0.25, str(block) if is_held else "", color if is_held else NONE)
            if n < 4:
                own, other = bottom + 0.38, 1.95 - bottom + 0.38
                color = {"all-gather": (BLUE, ORANGE)[rank], "reduce-scatter": GREEN, "free": INK}[gaps[n]]
                arrow(axis, x + 0.86, own, x + 1.89, own, color=color)
                if gaps[n] != "free":
                    arrow(axis, x + 0.86, own, x + 1.89, other, color=color)
        if n < 4:
            label(axis, x + 1.375, 2.15, gaps[n])
        if is_whole:
            label(axis, x + 0.4, 0.12, "each rank: its own texts")
    caption = (
        "FSDP with two ranks, three blocks, and block 1 at work. Each rank stores half of every block (blue, orange)."
        " A block is gathered, used and freed, forward and backward; its summed gradient (green) is in halves, too."
    )
    return figure, {}, caption


@captioned
def mesh(data: int = 4, tensor: int = 2, rank: int | None = None) -> Parts:
    """The ranks of a device mesh as init_mesh numbers them: a column is a tensor group, a row a data group.

    With a `rank`, it has a red edge, and a frame around each of its two groups.
    """
    ranks = torch.arange(data * tensor).view(data, tensor)
    left, top = 2.0, 0.7 + 0.75 * tensor
    figure, axis = canvas(max(left + 2.6 + 1.25 * data, 7.2), top + (0.1 if rank is None else 0.4))
    own = [] if rank is None else divmod(rank, tensor)
    for j in range(tensor):
        y = top - 0.375 - 0.75 * j
        label(axis, left + 0.1, y, f"heads and features, part {j}", "right")
        for i in range(data):
            x, number = left + 0.75 + 1.25 * i, int(ranks[i, j])
            box(axis, x, y, f"rank {number}", (BLUE, ORANGE)[j % 2], 0.8, RED if number == rank else NONE)
            if i < data - 1:
                arrow(axis, x + 0.43, y, x + 0.82, y, style="<|-|>")
            if j < tensor - 1:
                arrow(axis, x, y - 0.23, x, y - 0.52, style="<|-|>")
    if own:
        x, y, end = left + 0.75 + 1.25 * own[0], top - 0.375 - 0.75 * own[1], left + 0.05 + 1.25 * data
        box(axis, x, top - 0.375 * tensor, "", NONE, 1.06, PINK, height=0.75 * tensor + 0.06)
        box(axis, x, top + 0.17, f"tensor-parallel group of rank {rank}", PINK, 2.1, height=0.28)
        box(axis, (left + 0.2 + end) / 2, y, "", NONE, end - left - 0.2, GREEN, height=0.66)
        box(axis, end + 1.0, y, f"data-parallel group of rank {rank}", GREEN, 2.0, height=0.28)
    key = "↕ in a tensor-parallel group: all-reduces in each block; ↔ in a data-parallel group: FSDP's collectives"
    label(axis, 0.2, 0.12, key, "left")
    for i in range(data):
        label(axis, left + 0.75 + 1.25 * i, 0.45, f"texts {i}")
    groups = {"tensor": ranks.tolist(), "data": ranks.T.tolist()}
    caption = f"{data * tensor} ranks as a mesh of {data} (data) by {tensor} (tensor)."
    if own:
        mates = {"tensor": ranks[own[0]].tolist(), "data": ranks[:, own[1]].tolist()}
        words = {name: ", ".join(map(str, some)) for name, some in mates.items()}
        caption += (
            f" Pink: rank {rank}'s tensor-parallel group ({words['tensor']}); green: its data-parallel group"
            f" ({words['data']})."
        )
    return figure, groups, caption


@captioned
def pipeline(gpus: int = 4, counts: Sequence[int] = (1, 6)) -> Parts:
    """A pipeline's schedule (GPipe): micro-batches forward, then backward, which takes twice as long."""
    slots, slot, left = 3 * (max(counts) + gpus - 1), 0.3, 0.85
    figure, axis = canvas(left + slot * slots + 1.0, len(counts) * (0.34 * gpus + 0.35) + 0.75)
    bottom, busy = 0.75, {}
    for count in reversed(counts):
        label(axis, left, bottom + 0.34 * gpus + 0.1, f"{count} micro-batch{'es' * (count > 1)}", "left", weight="bold")
        half = count + gpus - 1
        busy[count] = count / half
        for gpu in range(gpus):
            y = bottom + 0.34 * (gpus - 1 - gpu) + 0.17
            label(axis, left - 0.1, y, f"GPU {gpu}", "right")
            cells = [(gpu + m, 1, m, BLUE) for m in range(count)]
            cells += [(half + 2 * (gpus - 1 - gpu + m), 2, m, ORANGE) for m in range(count)]
            is_used = {start + i for start, length, *_ in cells for i in range(length)}
            for start, length, batch, color in (*cells, *((i, 1, "", NONE) for i in {*range(3 * half)} - is_used)):
                cell(axis, left + slot * (start + length / 2), y, batch, color, slot * length)
        label(axis, left + 3 * slot * half + 0.1, bottom + 0.17 * gpus, f"busy {busy[count]:.0%}", "left")
        bottom += 0.34 * gpus + 0.35
    label(axis, left - 0.1, 0.57, "time", "right")
    arrow(axis, left, 0.57, left + slot * slots, 0.57)
    for x, length, color, text in ((0, 1, BLUE, "forward"), (1.2, 2, ORANGE, "backward"), (2.8, 1, NONE, "idle")):
        cell(axis, left + x + slot * length / 2, 0.22, "", color, slot * length)
        label(axis, left + x + slot * length + 0.1, 0.22, text, "left")
    label(axis, left + 4.0, 0.22, f"0 to {max(counts) - 1}: number of the micro-batch", "left")
    shares = ", ".join(f"{count}: {busy[count]:.0%}" for count in counts)
    caption = (
        f"A pipeline of {gpus} GPUs, micro-batches by number, forward (blue) and backward (orange, twice as long)."
        f" Blank: the bubble. Time that each GPU works, by the number of micro-batches: {shares}."
    )
    return figure, busy, caption


@captioned
def teacher_forcing(tokens: Sequence[str], probabilities: Sequence[float] | Tensor) -> Parts:
    """A text as inputs, and one position further left as labels; between them the probability of each label.

    `probabilities`, one fewer than tokens: what the model gives each next token; the darker a label, the higher.
    """
    values = as_values(probabilities, "probabilities", "t").tolist()
    names = list(map(Labels(14), as_tokens(tokens, len(values) + 1)))
    scratch = canvas(1, 1)[1]
    needed = [max(0.4, 0.16 + scratch.text(0, 0, name).get_window_extent().width / DPI) for name in names]
    widths = [max(pair) for pair in zip(needed, [*needed[1:], 0], strict=True)]  # a column has an input and its label
    figure, axis = canvas(1.1 + sum(widths), 1.75)
    x = 0.95
    for i, (name, width) in enumerate(zip(names, widths, strict=True)):
        x += width / 2
        cell(axis, x, 1.45, name, GREY if i < len(values) else NONE, width)
        if i < len(values):
            arrow(axis, x, 1.28, x, 1.07)
            label(axis, x, 0.9, f"{values[i]:.0%}")
            arrow(axis, x, 0.79, x, 0.5)
            color: Any = [1 - values[i] * (1 - part) for part in to_rgb(BLUE)]
            cell(axis, x, 0.33, names[i + 1], color if values[i] >= 0.005 else NONE, width)
        x += width / 2
    for y, text in ((1.45, "input"), (0.9, "probability"), (0.33, "label")):
        label(axis, 0.08, y, text, "left")
    best, worst = max(range(len(values)), key=values.__getitem__), min(range(len(values)), key=values.__getitem__)
    loss = sum(-math.log(value) for value in values) / len(values)
    caption = f"One pass, {len(values)} predictions, mean loss {loss:.2f} nats. The most probable label: "
    caption += f"{names[best + 1]}, {values[best]:.0%}; the least: {names[worst + 1]}, {values[worst]:.2%}."
    return figure, {"loss": loss}, caption


@captioned
def kv_cache(tokens: Sequence[str], prompt_length: int) -> Parts:
    """The positions that each forward pass computes, without and with a cache; the tokens after the prompt are new."""
    names = list(map(Labels(10), as_tokens(tokens, len(tokens))))
    check_integer("prompt_length", prompt_length, 1, len(names) - 1)
    steps, above = range(prompt_length, len(names)), 0.12 + 0.075 * max(map(len, names))
    width, height = 0.3 * (len(names) - 1), 0.3 * len(steps)
    figure, axis = canvas(2 * width + 3.6, height + above + 0.85)
    counts = {}
    for n, name in enumerate(("without a cache", "with a cache")):
        x, y = 1.1 + (width + 1.5) * n, height + 0.5
        computed = [range(step) if n == 0 or step == prompt_length else range(step - 1, step) for step in steps]
        cells = [
            [("", BLUE if i in new else GREY if i < step else NONE) for i in range(len(names) - 1)]
            for step, new in zip(steps, computed, strict=True)
        ]
        grid(axis, x, y, [f"→ {names[step]}" for step in steps], names[:-1], cells)
        for i, new in enumerate(computed):
            label(axis, x + width + 0.08, y - 0.3 * i - 0.15, str(len(new)), "left")
        counts[name] = sum(map(len, computed))
        label(axis, x, y + above + 0.14, f"{name}: {counts[name]} positions", "left", weight="bold")
    for x, color, text in ((1.2, BLUE, "computed in this pass"), (3.3, GREY, "keys and values from the cache")):
        cell(axis, x - 0.2, 0.2, "", color, 0.2)
        label(axis, x, 0.2, text, "left")
    first, second = counts.values()
    caption = f"A row is a forward pass, and the token that it predicts. {len(steps)} new tokens after a prompt of "
    caption += f"{prompt_length}: {first} positions are computed without a cache, {second} with it."
    return figure, counts, caption


@captioned
def encoder_decoder() -> Parts:
    """The encoder's last hidden states go into the cross-attention of every block of the decoder."""
    figure, axis = canvas(10.9, 3.45)
    norm, plus = ("Layer\nNorm", YELLOW, 0.5), ("+", PINK, 0.24)
    attention, feed_forward = ("attention", BLUE, 0.75), ("feed-\nforward", GREEN, 0.75)
    embeddings, causal = ("embeddings", ORANGE, 0.85), ("causal\nattention", BLUE, 0.75)
    label(axis, 0.1, 3.27, "encoder: reads the source, all of it at once", "left", weight="bold")
    label(axis, 0.1, 1.35, "decoder: writes the translation, token by token", "left", weight="bold")
    label(axis, 0.42, 2.55, "source")
    label(axis, 0.42, 0.6, "<s>, code,\ntokens so far")
    x = chain(
        axis, 0.85, 2.55, embeddings, 0.5, norm, 0.2, attention, 0.2, plus, 0.4, norm, 0.2, feed_forward, 0.2, plus,
        0.5, norm,
    )  # fmt: skip
    y = chain(
        axis, 0.85, 0.6, embeddings, 0.5, norm, 0.2, causal, 0.2, plus, 0.4, norm, 0.2,
        ("cross-\nattention", BLUE, 0.75, RED), 0.2, plus, 0.4, norm, 0.2, feed_forward, 0.2, plus, 0.45, norm, 0.2,
        ("LM head", ORANGE, 0.6), 0.3,
    )  # fmt: skip
    for centres, height, count in ((x, 2.55, 2), (y, 0.6, 3)):
        for i in range(1, 1 + 3 * count, 3):
            start, end = centres[i] - 0.4, centres[i + 2]
            arrow(axis, start, height, start, height + 0.33, end, height + 0.33, end, height + 0.14)
        left, right = centres[1] - 0.47, centres[3 * count] + 0.2
        box(axis, (left + right) / 2, height + 0.07, "", NONE, right - left, INK, height=0.82)
        label(axis, right - 0.05, height - 0.48, f"block, × {'n' if count == 2 else 'm'} layers", "right")
    arrow(axis, x[-1] + 0.28, 2.55, x[-1] + 0.6, 2.55, x[-1] + 0.6, 1.85, y[5], 1.85, y[5], 0.82, color=RED)
    label(axis, x[-1] + 0.7, 2.4, "the encoder's last hidden states", "left")
    shape(axis, x[-1] + 0.92, 2.2, "b k e")
    label(axis, y[5] + 0.08, 1.67, "keys and values", "left", color=RED)
    label(axis, y[-1] + 0.33, 0.26, "logits")
    caption = "Encoder and decoder. Queries of the cross-attention come from the decoder, keys and values from the"
    return figure, {}, f"{caption} encoder: its last hidden states go into every block."


@captioned
def bug_map(marks: Mapping[str, str]) -> Parts:
    """The model with the inside of attention, its loss and its gradient. `marks`: a letter -> a part of BUG_PARTS."""
    letters: dict[str, str] = {}
    for letter, part in marks.items():
        check_option("part", part, list(BUG_PARTS))
        for name in BUG_PARTS[part]:
            letters[name] = f"{letters.get(name, '')} {letter}".strip()
    figure, axis = canvas(10.4, 2.75)
    top, bottom = 2.05, 0.5
    centres: dict[str, float] = {}

    def row(x: float, y: float, *items: Any) -> float:
        """Boxes (name, text, color, width) and arrows (a length), from x to the right. Returns where it ends."""
        for item in items:
            if isinstance(item, float):
                arrow(axis, x + 0.02, y, x + item - 0.02, y)
                x += item
                continue
            name, text, color, width = item
            is_marked, centres[name] = name in letters, x + width / 2
            shown, edge = (color, RED) if is_marked else (GREY, NONE)
            box(axis, centres[name], y, text, shown, width, edge)
            label(axis, centres[name], y + 0.31, letters.get(name, ""), color=RED, weight="bold", fontsize=10)
            x += width
        return x

    label(axis, 0.28, top, "text")
    norm = "Layer\nNorm", YELLOW, 0.48
    end = row(
        0.45, top, 0.2, ("tokenizer", "tokenizer", BLUE, 0.7), 0.2, ("word", "word\nembeddings", ORANGE, 0.85), 0.2,
        ("+", "+", ORANGE, 0.24), 0.5, ("norm", *norm), 0.15, ("attention", "attention", BLUE, 0.7), 0.15,
        ("+ 1", "+", PINK, 0.24), 0.35, ("norm 2", *norm), 0.15, ("feed", "feed-\nforward", GREEN, 0.62), 0.15,
        ("+ 2", "+", PINK, 0.24), 0.4, ("last", *norm), 0.3, ("linear", "linear,\nGELU", PINK, 0.55), 0.15,
        ("head", *norm), 0.15, ("decoder", "decoder", ORANGE, 0.65),
    )  # fmt: skip
    row(centres["word"] - 0.425, 1.4, ("positions", "position\nembeddings", ORANGE, 0.85))
    arrow(axis, centres["word"] + 0.45, 1.4, centres["+"], 1.4, centres["+"], top - 0.15)
    for first, plus in (("norm", "+ 1"), ("norm 2", "+ 2")):
        x = centres[first] - 0.33
        arrow(axis, x, top, x, top - 0.3, centres[plus], top - 0.3, centres[plus], top - 0.15)
    left, right = centres["norm"] - 0.42, centres["+ 2"] + 0.2
    box(axis, (left + right) / 2, top + 0.03, "", NONE, right - left, INK, height=0.86)
    label(axis, centres["feed"], 1.46, "block, × n layers")
    left, right = centres["linear"] - 0.36, end + 0.08
    box(axis, (left + right) / 2, top + 0.03, "", NONE, right - left, INK, height=0.86)
    label(axis, centres["linear"], 1.46, "LM head")
    color = RED if "tied" in letters else INK
    x, y = centres["decoder"], top + 0.22
    arrow(axis, centres["word"], y, centres["word"], 2.6, x, 2.6, x, y, color=color, line="--")
    weight, tied = ("bold" if "tied" in letters else "normal"), f"{letters.get('tied', '')} tied weight"
    label(axis, centres["+"], 2.42, tied.strip(), color=color, weight=weight)

    end = row(
        0.2, bottom, 0.2, ("qkv", "query,\nkey, value", BLUE, 0.75), 0.12,
        ("split", "split into\nheads", BLUE, 0.75), 0.12, ("scores", "q · k / √d", GREEN, 0.8), 0.12,
        ("relative", "+ relative\npositions", ORANGE, 0.8), 0.12,
        ("mask", "+ mask", PINK, 0.62), 0.12, ("softmax", "softmax", YELLOW, 0.68), 0.12,
        ("dropout", "dropout", PINK, 0.65), 0.12, ("sum", "weighted\nsum", GREEN, 0.72), 0.12,
        ("out", "output\nprojection", BLUE, 0.8), 0.2,
    )  # fmt: skip
    box(axis, (0.1 + end) / 2 + 0.05, bottom + 0.05, "", NONE, end - 0.1, INK, height=0.82)
    arrow(axis, centres["attention"], top - 0.22, centres["attention"], bottom + 0.48, line="--")
    label(axis, centres["attention"] + 0.1, 1.14, "inside attention", "left")
    row(end + 0.45, bottom, ("gradient", "gradient", GREEN, 0.7))
    arrow(axis, centres["decoder"], top - 0.22, centres["decoder"], bottom + (0.5 if "loss" in letters else 0.22))
    row(centres["decoder"] - 0.3, bottom, ("loss", "loss", PINK, 0.6))
    arrow(axis, centres["loss"] - 0.32, bottom, centres["gradient"] + 0.37, bottom)
    where = "; ".join(f"{letter}: {part}" for letter, part in marks.items())
    return figure, dict(marks), f"The model, with the inside of attention below it{', and ' * bool(where)}{where}."


FORMATS = {  # bits of sign, exponent and mantissa; the integer type of the same width
    "float32": (torch.float32, (1, 8, 23), torch.int32), "bfloat16": (torch.bfloat16, (1, 8, 7), torch.int16),
    "float16": (torch.float16, (1, 5, 10), torch.int16), "int8": (torch.int8, (1, 0, 7), torch.int8),
}  # fmt: skip


def stored(name: str, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers in one of FORMATS, int8 with the scale 1/127: the bit patterns as integers, and the values."""
    dtype, _, integer = FORMATS[name]
    kept = (numbers * 127).round().to(dtype) if name == "int8" else numbers.to(dtype)
    return kept.view(integer), kept.double() / (127 if name == "int8" else 1)


@captioned
def bit_patterns(number: float) -> Parts:
    """A number's bits in each of FORMATS, and the value that they stand for. ValueError for 0, or beyond -1 to 1."""
    check_number("number", number, -1, 1)
    if number == 0:
        raise ValueError("number=0 has no relative error: take another number from -1 to 1.")
    figure, axis = canvas(10.0, 2.75)
    data = {}
    for n, (name, (_, sizes, _)) in enumerate(FORMATS.items()):
        bits, value = stored(name, torch.tensor([number]))
        data[name] = float(value)
        pattern = f"{int(bits) % 2 ** sum(sizes):0{sum(sizes)}b}"
        y = 2.1 - 0.44 * n
        label(axis, 1.2, y, "int8, scale 1/127" if name == "int8" else name, "right")
        for place, bit in enumerate(pattern):
            color = RED if place == 0 else ORANGE if place <= sizes[1] else BLUE
            cell(axis, 1.45 + 0.225 * place, y, bit, color, 0.225, DARK)
        label(axis, 1.45 + 0.225 * len(pattern), y, f"{data[name]:.8f}", "left")
    legend = (("sign", RED), ("exponent: how large", ORANGE), ("mantissa, or the integer: how exact", BLUE))
    for (text, color), x in zip(legend, (1.35, 2.5, 4.5), strict=True):
        cell(axis, x + 0.1, 0.25, "", color, 0.2)
        label(axis, x + 0.3, 0.25, text, "left")
    label(axis, 0.1, 2.55, f"{number} in four formats", "left", weight="bold")
    errors = ", ".join(f"{name} {abs(value - number) / abs(number):.1g}" for name, value in data.items())
    return figure, data, f"{number} in bits, and the value that is stored. Its relative error: {errors}."


@captioned
def number_lines(number: float, radius: float) -> Parts:
    """The numbers that bfloat16, float16 and int8 with the scale 1/127 have near a number; arrows lead to the nearest.

    Raises ValueError if the window is not within 0 and 1.
    """
    check_number("radius", radius, 1e-4, 1)
    check_number("number", number, radius, 1 - radius)
    figure, axis = canvas(9.6, 2.9)
    low, high, data = number - radius, number + radius, {}

    def place(value: float) -> float:
        return 1.5 + 7.6 * (value - low) / (high - low)

    for n, name in enumerate(("bfloat16", "float16", "int8")):
        y = 1.95 - 0.75 * n
        values = stored(name, torch.linspace(low, high, 20_001))[1].unique()
        values = values[(values >= low) & (values <= high)]
        nearest = float(stored(name, torch.tensor([number]))[1])
        data[name] = {"values": values, "nearest": nearest}
        label(axis, 1.3, y, "int8,\nscale 1/127" if name == "int8" else name, "right")
        arrow(axis, 1.4, y, 9.2, y, style="-")
        for value in values.tolist():
            color, height = (BLUE, 0.16) if value != nearest else (RED, 0.22)
            axis.plot([place(value)] * 2, [y - height, y + height], color=color, linewidth=0.7 + 1.5 * (color == RED))
        if not low <= nearest <= high:
            raise ValueError(f"{name} has no number within {radius} of {number}: take a larger radius.")
        arrow(axis, place(number), y + 0.38, place(nearest), y + 0.24, color=RED)
    axis.plot([place(number)] * 2, [0.12, 2.45], color=INK, linewidth=0.9, linestyle=":")
    label(axis, place(number), 2.62, f"{number}", weight="bold")
    for value in (low, high):
        label(axis, place(value), 2.62, f"{value:.4g}")
    counts = ", ".join(f"{name} {len(of['values'])}" for name, of in data.items())
    errors = ", ".join(f"{name} {abs(of['nearest'] - number):.1g}" for name, of in data.items())
    caption = (
        f"Numbers between {low:.4g} and {high:.4g}: {counts}. Red: the nearest to {number}; its distance: {errors}."
    )
    return figure, data, caption


@captioned
def int8_product(x: Tensor, weight: Tensor, top: int = 127) -> Parts:
    """Tokens times weights, `t i` and `o i`, as a product of integers with a scale for each token and each output.

    top: the integer of the largest number of a row.
    """
    tokens, outputs = as_values(x, "x", "t i"), as_values(weight, "weight", "o i")
    check_integer("top", top, 1, 127)
    scales = [of.abs().amax(-1) / top for of in (tokens, outputs)]
    integers = [(of / scale[:, None]).round() for of, scale in zip((tokens, outputs), scales, strict=True)]
    products, exact = integers[0] @ integers[1].T, tokens @ outputs.T
    result = products * scales[0][:, None] * scales[1]
    (t, i), o = tokens.shape, len(outputs)
    wide, top_row, left = 0.45, 0.5 + 0.34 * (t + o), 0.95
    figure, axis = canvas(left + 2.9 + wide * (2 * i + 3 * o), top_row + 0.45)

    def rows(x: float, y: float, values: Tensor, color: str, digits: int = 0) -> float:
        """Draw a matrix to the right of x, with its first row at y; returns its right edge."""
        for r, row in enumerate(values.tolist()):
            for c, value in enumerate(row):
                text = f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")  # not −0.00
                cell(axis, x + wide * (c + 0.5), y - 0.34 * r, text, color, wide)
        return x + wide * values.shape[1]

    for name, unit, values, whole, scale, color, y in (
        ("x", "token", tokens, integers[0], scales[0], BLUE, top_row),
        ("w", "output", outputs, integers[1], scales[1], ORANGE, top_row - 0.34 * t - 0.35),
    ):  # fmt: skip
        for r in range(len(values)):
            label(axis, left - 0.1, y - 0.34 * r, f"{unit} {r}", "right")
        edge = rows(left, y, values, NONE, 2)
        label(axis, (left + edge) / 2, y + 0.25, f"{name}, float32")
        label(axis, edge + 0.2, y - 0.17 * (len(values) - 1), "≈")
        second = rows(edge + 0.4, y, whole, color)
        label(axis, edge + 0.4 + wide * i / 2, y + 0.25, "integers")
        label(axis, second + 0.15, y - 0.17 * (len(values) - 1), "×")
        last = rows(second + 0.3, y, scale[:, None], GREY, 2)
        label(axis, last - wide / 2, y + 0.25, "scales")
    y, begin = top_row - 0.17 * (o + 1), last + 0.5
    middle = y - 0.17 * (t - 1)
    for name, values, color, digits, sign in (
        ("integers · integers", products, GREEN, 0, "→"), ("× both scales", result, PINK, 2, "→"),
        ("exact: x wᵀ", exact, NONE, 2, "≈"),
    ):  # fmt: skip
        label(axis, begin - 0.2, middle, sign)
        edge = rows(begin, y, values, color, digits)
        label(axis, (begin + edge) / 2, y + 0.25, name)
        begin = edge + 0.45
    error = float((result - exact).norm() / exact.norm())
    caption = (
        f"Each row is rounded to integers from −{top} to {top}, with a scale of its own. The integers are multiplied,"
        f" and the two scales come last. Relative error of the result: {error:.1%}."
    )
    return figure, {"integers": integers, "products": products, "result": result, "exact": exact}, caption


@captioned
def heads() -> Parts:
    """The four heads: which vectors each reads, the numbers that it gives, and which of these compete in a softmax."""
    figure, axis = canvas(10.2, 3.15)
    text, pair = ["<s>", "We", "see", "you", "</s>"], ["<s>", "q", "</s>", "a", "</s>"]
    x, step = 0.2, 0.35
    for name, rows, reads, gives, note in (
        ("sequence classification", [text], (0,), 3, "c numbers, softmax over classes"),
        ("token classification", [text], range(5), 3, "t × c, a softmax for each token"),
        ("multiple choice", [[*pair[:2], c] for c in "abc"], (0,), 1, "1 for each text, softmax over texts"),
        ("question answering", [pair], range(5), 2, "t × 2, two softmaxes along the text"),
    ):  # fmt: skip
        left = x
        for row in rows:
            box(axis, x + step * len(row) / 2, 1.0, "encoder", GREY, step * len(row) - 0.04, height=0.36)
            for i, token in enumerate(row):
                centre = x + step * (i + 0.5)
                label(axis, centre, 0.5, token)
                arrow(axis, centre, 0.62, centre, 0.82)
                arrow(axis, centre, 1.18, centre, 1.36)
                cell(axis, centre, 1.51, "x", BLUE if i in reads else NONE, 0.28)
                for level in range(gives if i in reads else 0):
                    color = GREEN if level and gives == 2 else ORANGE
                    box(axis, centre, 1.98 + 0.2 * level, "", color, 0.2, INK, height=0.16, rounding=0.02)
                if i in reads:
                    arrow(axis, centre, 1.66, centre, 1.9)
            x += step * len(row) + 0.06
        middle = (left + x - 0.06) / 2
        label(axis, middle, 2.95, name, weight="bold")
        label(axis, middle, 2.73, note, fontsize=7)
        x += 0.38
    label(axis, 0.2, 0.12, "x: vectors, blue if the head reads them; orange, green: the numbers that it gives", "left")
    caption = "Sequence classification and multiple choice read the vector of <s> only; the other two read all vectors."
    return figure, {}, caption
