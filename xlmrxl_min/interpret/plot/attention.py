"""Figures of attention weights and of their metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import torch
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize, PowerNorm
from torch import Tensor

from ...inputs import (
    as_attentions,
    as_head_numbers,
    as_layers,
    as_named,
    as_rows,
    as_sequence,
    as_table,
    as_tensor,
    as_tokens,
    as_values,
    as_weights,
    by_head_number,
    check_integer,
    check_number,
    check_weights,
    shown,
)
from ...tokenizer import group_words
from ..metrics import HEAD_CLASSES, OTHER, PRUNED, merge_tokens
from .figure import (
    CHANGE,
    COLORS,
    INK,
    MAX_LABELS,
    Labels,
    Parts,
    argmax,
    captioned,
    check_known,
    extra_size,
    heatmap,
    is_constant,
    layer_head_ticks,
    pool_columns,
    pool_map,
    pooled,
    quoted,
    set_suptitle,
    set_title,
    subplots,
    token_axis,
    wrapped,
)

MAX_MAPS, MAX_TOKENS = 64, 16  # of a head grid
MAX_NUMBERS = 200  # written into the cells of a map


def draw_map(weights: Tensor, tokens: Sequence[str], keys: Sequence[str] | None, title: str):
    """A map with its tokens, and the end of its caption."""
    values, rows, columns, note = pool_map(weights, tokens, keys)
    label, (q, k) = Labels(), argmax(values)
    below, left = list(map(label, columns.names)), list(map(label, rows.names))
    width, height = 2.4 + 0.17 * len(below) + extra_size(left), 1.6 + 0.17 * len(left) + extra_size(below)
    figure, axis = subplots(width, height)
    heatmap(axis, values, "attention", title=title, note=note, rows=left, columns=below, aspect="equal", shrink=0.6)
    axis.set(xlabel="key", ylabel="query")
    caption = f"the largest weight is {values[q, k]:.2f}, from query {rows.describe(q)} to key {columns.describe(k)}."
    caption = f"all weights are {values[q, k]:.2f}." if is_constant(values) else caption
    return figure, values, f"{caption}{pooled(note)}{label.legend(figure)}"


def as_map_with_tokens(weights: Any, tokens: Any, keys: Any) -> tuple[Tensor, list[str], list[str]]:
    """One head's weights `q k`, and the tokens of its queries and of its keys."""
    weights = as_weights(weights).detach().float().cpu()
    while weights.dim() > 2 and len(weights) == 1:
        weights = weights[0]
    if weights.dim() != 2:
        one = "one map `q k` is shown: pass that of one head, such as out.attentions[layer][0, head]"
        raise ValueError(f"weights has the shape {tuple(weights.shape)}, but {one}.")
    queries = as_tokens(tokens, len(weights))
    if keys is None and weights.shape[0] != weights.shape[1]:
        raise ValueError(f"the map is {tuple(weights.shape)}: pass the tokens of its keys as `keys`.")
    return weights, queries, queries if keys is None else as_tokens(keys, weights.shape[1], "keys")


@captioned
def attention_map(
    weights: Tensor, tokens: Sequence[str], keys: Sequence[str] | None = None, *, title: str = "One head"
) -> Parts:
    """One head's map `q k`: a row per query, a column per key. `keys`: the tokens of the keys, if they differ.

    Raises ValueError for several heads, for what are no weights, and for too few or too many tokens.
    """
    weights, tokens, keys = as_map_with_tokens(weights, tokens, keys)
    figure, values, caption = draw_map(weights, tokens, keys, title)
    return figure, {"weights": values}, f"{title}: {caption}"


@captioned
def head_grid(
    weights: Sequence[Tensor] | Tensor, tokens: Sequence[str] | None = None, *,
    heads: Sequence[Sequence[int]] | None = None, first_layer: int = 0, title: str = "All heads",
) -> Parts:  # fmt: skip
    """Maps of up to 64 heads on one colour scale: `out.attentions` of one text, or `l h q k`.

    tokens: written beside the maps of self-attention, of texts of up to 16 tokens. heads: of a pruned model, the
    numbers of each layer's heads, [layer.attention.heads for layer in model.base_model.layers]; the cells of the others
    stay empty, as where all weights are NaN. first_layer: the number of the first row. Raises ValueError for several
    texts, and for more than 64 maps.
    """
    check_integer("first_layer", first_layer, 0)
    maps = as_attentions(weights, "weights")
    numbers = as_head_numbers(heads, maps)
    layers, count = len(maps), max(map(max, numbers)) + 1
    if layers * count > MAX_MAPS:
        ways = f"take some layers, as in weights[: {max(1, MAX_MAPS // count)}], or head_metrics for all heads"
        raise ValueError(f"{layers * count:,} maps are too many for one picture ({MAX_MAPS}): {ways}.")
    stacked = by_head_number([layer.float().cpu() for layer in maps], numbers)
    is_pruned = stacked.isnan().all(-1).all(-1)  # l h
    if is_pruned.all():
        raise ValueError("weights holds only nan: pass the weights of one head or more.")
    check_weights(stacked[~is_pruned], "weights")
    queries, keys = stacked.shape[-2:]
    values, _, _, note = pool_map(stacked, *([str(i) for i in range(n)] for n in (queries, keys)))
    height, width = values.shape[-2] + 1, values.shape[-1] + 1  # with a gap between maps
    padded = torch.nn.functional.pad(values, (0, 1, 0, 1), value=math.nan)
    mosaic = rearrange(padded, "l h q k -> (l q) (h k)")[:-1, :-1]
    label, names = Labels(10), [] if tokens is None else as_tokens(tokens, queries)
    if names and (queries != keys or queries > MAX_TOKENS):
        raise ValueError(f"tokens of {queries} queries and {keys} keys: give those of one text, at most {MAX_TOKENS}.")
    below = list(map(label, names))
    figure, axis = subplots(9, min(12, 1.1 + 7.3 * mosaic.shape[0] / mosaic.shape[1]))
    heading = f"{title} (rows: queries, columns: keys{f'; {note}' if note else ''})"
    options: dict[str, Any] = {"norm": PowerNorm(0.5, 0, 1), "vmin": None, "vmax": None}
    heatmap(axis, mosaic, "attention (square-root scale)", title=heading, aspect="equal", shrink=0.7, **options)
    axis.set_facecolor("none")
    axis.set_xticks([(i + 0.5) * width - 1 for i in range(count)], range(count))
    axis.set_yticks([(i + 0.5) * height - 1 for i in range(layers)], range(first_layer, first_layer + layers))
    axis.set(xlabel="head", ylabel="layer")
    axis.spines[:].set_visible(False)
    if below:  # the numbers of layers and heads make room for them
        axis.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False, labelright=True, labeltop=True)
        axis.xaxis.set_label_position("top"), axis.yaxis.set_label_position("right")
        for ticks, size, count_of_maps in ((axis.set_xticks, width, count), (axis.set_yticks, height, layers)):
            places = [size * i + j for i in range(count_of_maps) for j in range(len(below))]
            rotation = 90 if ticks == axis.set_xticks else 0
            ticks(places, below * count_of_maps, minor=True, fontsize=6, rotation=rotation)
        axis.tick_params(which="minor", length=0, pad=2)
    sharpness = stacked.amax(-1).mean(-1)  # l h: the mean of each query's largest weight
    (top, left), (low, right) = argmax(sharpness), argmax(-sharpness)
    caption = f"{title}. The mean of each query's largest weight is highest, {sharpness[top, left]:.2f}, in layer"
    caption += f" {top + first_layer}, head {left}, and lowest, {sharpness[low, right]:.2f}, in layer"
    caption += f" {low + first_layer}, head {right}."
    if is_constant(sharpness):
        caption = f"{title}. The mean of each query's largest weight is {sharpness[top, left]:.2f} in every head."
    return figure, {"weights": values, "sharpness": sharpness}, f"{caption}{pooled(note)}{label.legend(figure)}"


@captioned
def attention_lines(
    weights: Tensor, tokens: Sequence[str], keys: Sequence[str] | None = None, *, min_weight: float = 0.1,
    title: str = "One head",
) -> Parts:  # fmt: skip
    """One head's map `q k` as lines from queries, left, to keys; weights below `min_weight` are left out."""
    check_number("min_weight", min_weight, 0, 1)
    weights, tokens, keys = as_map_with_tokens(weights, tokens, keys)
    values, rows, columns, note = pool_map(weights, tokens, keys)
    label, height = Labels(), max(len(rows.names), len(columns.names))
    figure, axis = subplots(5.5, 0.9 + 0.17 * height)
    lines = [(q, k, float(values[q, k])) for q, k in (values >= min_weight).nonzero().tolist()]
    for q, k, weight in lines:
        axis.plot([0, 1], [q, k], color=COLORS[0], alpha=min(1.0, weight), linewidth=0.5 + 2 * weight)
    for x, names, align, heading in ((-0.02, rows.names, "right", "query"), (1.02, columns.names, "left", "key")):
        axis.text(x, -1.2, heading, ha=align, fontsize=8)
        for y, name in enumerate(names):
            axis.text(x, y, label(name), ha=align, va="center", fontsize=8)
    axis.set(xlim=(-0.6, 1.6), ylim=(height - 0.5, -1.5))
    axis.axis("off")
    set_title(axis, title, note)
    fraction = sum(weight for *_, weight in lines) / (float(values.sum()) or 1.0)
    caption = f"{title}: {len(lines)} weights of at least {min_weight:.2f} hold {fraction:.0%} of the attention"
    if not values.any():
        caption = f"{title}: all weights are 0"
    elif lines:
        q, k, weight = max(lines, key=lambda line: line[2])
        caption += f"; the largest, {weight:.2f}, is from query {rows.describe(q)} to key {columns.describe(k)}"
    caption += f".{pooled(note)}{label.legend(figure)}"
    return figure, {"lines": lines, "fraction": fraction}, caption


def write_numbers(axis: Axes, values: Tensor, form: str, least: float = 0.0, signed: bool = False) -> None:
    """Write values of at least `least` into the cells of a heatmap. signed: for the palette CHANGE."""
    largest = float(values.nan_to_num(0).abs().max())
    for row, line in enumerate(values.tolist()):
        for column, value in enumerate(line):
            if abs(value) >= least:  # NaN is not
                is_dark = abs(value) > 0.6 * largest if signed else value < 0.55 * largest
                color = "white" if is_dark else "black"
                axis.text(column, row, form.format(value), ha="center", va="center", fontsize=6.5, color=color)


UNITS = {"entropy": " nats", "normalised entropy": "", "distance": " tokens"}


@captioned
def head_metrics(metrics: Mapping[str, Tensor], *, title: str = "Metrics of every head") -> Parts:
    """A layer × head map for each metric of interpret.head_metrics, `l h` each; NaN, as of a pruned head, is grey.

    Each map has its own colour scale; the values of up to 200 heads are written into it.
    """
    tables = as_table(metrics, "metrics", "metrics", "l h", may_lack_values=True)
    layers, heads = next(iter(tables.values())).shape
    rows = math.ceil(len(tables) / 3)
    figure, axes = subplots(9, rows * (0.9 + min(4.0, 2.2 * layers / heads)), rows, 3, squeeze=False)
    for axis in axes.flat[len(tables) :]:
        axis.axis("off")
    phrases = []
    for axis, (name, values) in zip(axes.flat, tables.items(), strict=False):
        unit = UNITS.get(name)
        heading = f"attention to: {name}" if unit is None else f"{name} ({unit.strip()})" if unit else name
        heatmap(axis, values, title=heading)
        if layers * heads <= MAX_NUMBERS:
            write_numbers(axis, values, "{:.2f}" if unit is None else "{:.1f}")
        layer_head_ticks(axis, values)
        layer, head = argmax(values)
        amount = f"{values[layer, head]:.0%}" if unit is None else f"{values[layer, head]:.2f}{unit}"
        where = f"L{layer}H{head}" if not is_constant(values) else "all heads"
        phrases.append(f"{name} nowhere defined" if values.isnan().all() else f"{name} {amount} ({where})")
    set_suptitle(figure, f"{title}: {layers} layers × {heads} heads")
    return figure, dict(metrics), f"{title}. Largest values, with layer and head: {', '.join(phrases)}."


@captioned
def class_map(classes: Sequence[Sequence[str]], *, title: str = "Head classes") -> Parts:
    """The names of interpret.head_classes, l lists of h, as a map; pruned heads are empty cells."""
    names = [*HEAD_CLASSES, OTHER, PRUNED]
    rows = as_rows(classes, "classes", "lists of names")
    rows = [as_sequence(row, f"classes[{layer}]", "names") for layer, row in enumerate(rows)]
    wrong = [name for row in rows for name in row if name not in names]
    if not rows or not rows[0] or len({len(row) for row in rows}) > 1 or wrong:
        what = shown(wrong[0]) if wrong else f"{[len(row) for row in rows]} names in each layer"
        allowed = f"as many for each layer, of {', '.join(names)}: use interpret.head_classes"
        raise ValueError(f"classes has {what}, but must have one or more names, {allowed}.")
    numbers = torch.tensor([[names.index(name) for name in row] for row in rows])
    values = numbers.float().masked_fill(numbers == names.index(PRUNED), math.nan)
    layers, heads = values.shape
    figure, axis = subplots(8, 1.2 + min(7.0, 0.36 * layers))
    colors, norm = ListedColormap(COLORS), Normalize(-0.5, len(COLORS) - 0.5)
    axis.imshow(values.numpy(), cmap=colors, norm=norm, aspect="auto")
    if layers * heads <= MAX_NUMBERS:
        for layer, row in enumerate(rows):
            for head, name in enumerate(row):
                axis.text(head, layer, name if name != PRUNED else "", ha="center", va="center", fontsize=7)
    else:
        bar = figure.colorbar(matplotlib.cm.ScalarMappable(norm, colors), ax=axis)
        bar.set_ticks(range(len(COLORS)), labels=names[: len(COLORS)])
    layer_head_ticks(axis, values)
    set_title(axis, title)
    counts = {name: int((numbers == i).sum()) for i, name in enumerate(names)}
    phrase = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return figure, {"counts": counts}, f"{title}, of {layers * heads} heads: {phrase}."


@captioned
def offset_profiles(
    profiles: Sequence[Tensor] | Tensor, *, heads: Sequence[Sequence[int]] | None = None, title: str = "Offset profiles"
) -> Parts:
    """interpret.offset_profile of all heads, `l h r`, or of each layer, l of `h r`: a row per head, layers downwards.

    heads: of a pruned model, the numbers of each layer's heads, as in head_grid; the rows of the others stay empty.
    """
    if heads is not None:
        layers_of_heads = [as_tensor(x, f"profiles[{i}]") for i, x in enumerate(as_layers(profiles, "profiles"))]
        profiles = by_head_number(layers_of_heads, as_head_numbers(heads, layers_of_heads))
    profiles = as_values(profiles, "profiles", "l h r", may_lack_values=True)
    layers, count, offsets = profiles.shape
    check_known(profiles, "profiles")
    if offsets % 2 == 0:
        raise ValueError(f"profiles has {offsets} offsets, but must have 2 reach + 1: use interpret.offset_profile.")
    reach, values = offsets // 2, profiles.flatten(0, 1)
    figure, axis = subplots(7, 1.2 + min(8.0, 0.14 * len(values)))
    norm = PowerNorm(0.5, 0, float(values.nan_to_num(0).max()) or 1.0)
    options: dict[str, Any] = {"norm": norm, "vmin": None, "vmax": None}
    heading = f"{title}: mean attention by offset, a row per head"
    heatmap(axis, values, "mean attention (square-root scale)", title=heading, **options)
    if len(values) <= MAX_LABELS:
        write_numbers(axis, values, "{:.2f}", least=0.2)
    for layer in range(1, layers):
        axis.axhline(layer * count - 0.5, color="white", linewidth=1.5)
    axis.set_yticks([(layer + 0.5) * count - 0.5 for layer in range(layers)], [f"layer {i}" for i in range(layers)])
    step = max(1, reach // 4)
    axis.set_xticks(range(reach % step, offsets, step), range(-reach + reach % step, reach + 1, step))
    axis.set(xlabel="offset: key position minus query position")
    row, column = argmax(values)
    peak = f"{values[row, column]:.0%} at offset {column - reach:+d}, in layer {row // count}, head {row % count}"
    caption = f"{title}: the highest peak is {peak}."
    caption = f"{title}: {values[row, column]:.0%} at every offset." if is_constant(values) else caption
    return figure, {"profiles": profiles}, caption


@captioned
def rollout(steps: Tensor, tokens: Sequence[str], position: int, *, title: str = "Attention rollout") -> Parts:
    """interpret.rollout's `l q k` for the query at `position`: the tokens its state comes from, after each layer."""
    steps = as_values(steps, "steps", "l q k")
    check_weights(steps, "steps")
    if steps.shape[1] != steps.shape[2]:
        raise ValueError(f"steps has the shape {tuple(steps.shape)}, but must be `l q k`, with q = k: use rollout.")
    tokens = as_tokens(tokens, steps.shape[2])
    check_integer("position", position, 0, len(tokens) - 1)
    columns, label = token_axis(tokens), Labels()
    values = pool_columns(steps[:, position], columns)
    heading, below = f"{title}: {label(tokens[position])}, position {position}", list(map(label, columns.names))
    figure, axis = subplots(2.2 + 0.17 * len(below), 1.6 + 0.24 * len(steps) + extra_size(below))
    rows = [f"after layer {i}" for i in range(len(steps))]
    heatmap(axis, values, "fraction", title=heading, note=columns.note, rows=rows, columns=below)
    final = steps[-1, position].clone()
    own, final[position] = float(final[position]), 0
    other = int(final.argmax())
    caption = f"{title} (a heuristic): after the last layer, {own:.0%} of {quoted(tokens[position])} comes from its own"
    caption += " position"
    if final.any():
        caption += f"; the largest fraction from another one is {float(final[other]):.0%}, from"
        caption += f" {quoted(tokens[other])} at position {other}"
    return figure, {"fractions": values}, f"{caption}.{pooled(columns.note)}{label.legend(figure)}"


@captioned
def cross_lingual_map(weights: Tensor, tokens: Sequence[str], *, title: str = "Two languages, one head") -> Parts:
    """One head's map `q k` of a pair `<s> A </s></s> B </s>`, merged into words, and the attention between texts."""
    weights, tokens, _ = as_map_with_tokens(weights, tokens, None)
    ends = [i for i, token in enumerate(tokens) if token == "</s>"]
    is_pair = len(ends) == 3 and tokens[0] == "<s>" and ends[0] > 1 and ends[1] == ends[0] + 1 < ends[2] - 1
    if not is_pair or ends[2] != len(tokens) - 1:
        raise ValueError("these tokens are no pair `<s> A </s></s> B </s>`: tokenize with tokenizer(first, second).")
    groups = group_words(tokens)
    names = ["".join(tokens[i] for i in group) for group in groups]
    parts = {"first": range(1, ends[0]), "second": range(ends[1] + 1, ends[2])}
    between = {f"{a} to {b}": float(merge_tokens(weights, [parts[a]], [parts[b]])) for a in parts for b in parts}
    figure, values, caption = draw_map(merge_tokens(weights, groups, groups), names, None, title)
    if len(names) <= MAX_LABELS:
        border = next(i for i, group in enumerate(groups) if group.start == ends[1]) - 0.5
        figure.axes[0].axhline(border, color="white"), figure.axes[0].axvline(border, color="white")
    between_texts = (
        f"the second text gives {between['second to first']:.0%} of its attention to the first, and the first"
    )
    between_texts += f" {between['first to second']:.0%} to the second"
    return figure, {"weights": values, **between}, f"{title}: {between_texts}; between words, {caption}"


@captioned
def head_scatter(
    striking: Tensor, effect: Tensor, *, x: str = "sharpness", y: str = "effect of its ablation",
    marked: Mapping[str, Sequence[tuple[int, int]]] | None = None, title: str = "How a head looks, and what it does",
) -> Parts:  # fmt: skip
    """A dot for each head: a metric of its map (x) and the effect of its ablation (y), `l h` each; NaN is left out.

    marked: heads `(layer, head)` by the names of their groups, at most five, in colour and with their numbers. The
    caption gives Spearman's rank correlation.
    """
    tables = as_table({"x": striking, "y": effect}, "values", "values", "l h", may_lack_values=True)
    is_known = ~(tables["x"].isnan() | tables["y"].isnan())
    places = [(layer, head) for layer, head in is_known.nonzero().tolist()]
    if len(places) < 2:
        raise ValueError(f"{len(places)} heads have both values: give those of two or more.")
    left, right = (tables[name][is_known] for name in ("x", "y"))
    correlation = rank_correlation(left, right)
    groups = {
        name: as_rows(some, f"marked[{name!r}]", "heads (layer, head)")
        for name, some in (as_named(marked, "marked", "groups of heads") if marked else {}).items()
    }
    colored = {
        place: name
        for name, some in groups.items()
        for place in (tuple(as_sequence(x, "a head in marked", "a layer and a head")) for x in some)
    }
    if wrong := [place for place in colored if place not in places]:
        raise ValueError(f"marked has {shown(wrong[0])}, but must have heads (layer, head) that have both values.")
    figure, axis = subplots(7, 4)
    axis.axhline(0, color="#999999", linewidth=0.8)
    for i, name in enumerate(["", *groups]):
        at = [n for n, place in enumerate(places) if colored.get(place, "") == name]
        color = COLORS[(1, 0, 2, 3, 5)[(i - 1) % 5]] if name else COLORS[7]
        axis.plot(left[at].tolist(), right[at].tolist(), "o", color=color, markersize=6, label=name or "other heads")
        for n in at if name else ():
            text = f" L{places[n][0]}H{places[n][1]}"
            axis.annotate(text, (float(left[n]), float(right[n])), (4, 3), textcoords="offset points", fontsize=8)
    axis.set(xlabel=x, ylabel=y)
    axis.margins(x=0.1)
    axis.grid(color=INK, alpha=0.3, linewidth=0.6)
    axis.set_axisbelow(True)
    if groups:
        axis.legend(frameon=False, fontsize=8)
    set_title(axis, f"{title} ({len(places)} heads)")
    (a, b), (c, d) = (places[int(values.abs().argmax())] for values in (left, right))
    caption = f"{title}: the largest {x} is {float(left.abs().max()):.2f}, of L{a}H{b}; the largest {y}"
    caption += f" {float(right[right.abs().argmax()]):+.2f}, of L{c}H{d}; rank correlation {correlation:+.2f}."
    return figure, {"x": left, "y": right, "heads": places, "correlation": correlation}, caption


def rank_correlation(left: Tensor, right: Tensor) -> float:
    """Spearman's; equal values share their mean rank. 0 where all values are equal."""
    ranks = [(x[:, None] > x).sum(1) + 0.5 * (x[:, None] == x).sum(1) for x in (left, right)]
    return float(torch.corrcoef(torch.stack(ranks)).nan_to_num(0)[0, 1])


@captioned
def score_parts(parts: Tensor, names: Sequence[str], *, title: str = "Why a head looks there") -> Parts:
    """A score, or a difference of scores, by interpret.score_parts: a row per query part, a column per key part."""
    values = as_values(parts, "parts", "q k")
    names = as_tokens(names, len(values), "names")
    if values.shape[0] != values.shape[1]:
        raise ValueError(f"parts has the shape {tuple(values.shape)}, but must have a row and a column for each name.")
    figure, axis = subplots(2.6 + 0.5 * len(names), 1.6 + 0.34 * len(names))
    limit = float(values.abs().max()) or 1.0
    options: dict[str, Any] = {"cmap": CHANGE, "vmin": -limit, "vmax": limit}
    heatmap(axis, values, "part of the score", title=title, rows=names, columns=names, **options)
    write_numbers(axis, values, "{:+.1f}", least=0.05, signed=True)
    axis.set(xlabel="part of the key", ylabel="part of the query")
    row, column = argmax(values)
    caption = f"{title}: {float(values.sum()):+.1f} in all; the largest part, {float(values[row, column]):+.1f}, is the"
    caption += f" query's {names[row]} with the key's {names[column]}."
    return figure, {"parts": values}, caption


@captioned
def paired_scores(
    scores: Mapping[str, tuple[Tensor, Tensor]], names: tuple[str, str], *, unit: str = "mean log-probability",
    title: str = "Two inputs, several models",
) -> Parts:  # fmt: skip
    """Two scores of the same items, `t` each, under one or more conditions: the means, and their difference.

    names: of the first and the second score. The caption gives the difference, first minus second, under the first
    condition, and by how much each other condition changes it, with 95% intervals (1.96 standard errors, over items).
    """
    pairs = {name: as_rows(pair, f"scores[{name!r}]", "two tensors of scores")
             for name, pair in as_named(scores, "scores", "pairs of scores").items()}  # fmt: skip
    first, second = as_tokens(names, 2, "names")
    if counts := [len(pair) for pair in pairs.values() if len(pair) != 2]:
        raise ValueError(f"scores has a condition with {counts[0]} scores, but must have two: pass (first, second).")
    table = as_table(
        {f"{name}, {i}": x for name, pair in pairs.items() for i, x in enumerate(pair)}, "scores", "scores", "t"
    )
    pairs = {name: [table[f"{name}, {i}"] for i in range(2)] for name in pairs}
    if len(next(iter(table.values()))) < 2:
        raise ValueError("scores has one item, but must have two or more, for the intervals.")
    figure, axis = subplots(8, 1.3 + 0.36 * len(pairs))
    data: dict[str, dict[str, float]] = {}
    phrases, usual = [], None
    for i, (name, (a, b)) in enumerate(pairs.items()):
        difference = a - b
        change = difference if usual is None else difference - usual
        margin = 1.96 * float(change.std()) / math.sqrt(len(change))
        means = {"first": float(a.mean()), "second": float(b.mean()), "difference": float(difference.mean())}
        data[name] = {**means, "change": float(change.mean()), "margin": margin}
        phrase = f"{change.mean():+.2f} ± {margin:.2f}"
        phrases.append(f"{name}: {phrase}")
        xs = [means["first"], means["second"]]
        axis.plot(xs, [i, i], color="#999999", linewidth=2, zorder=1)
        for x, color, word, marker in zip(xs, (COLORS[0], COLORS[1]), (first, second), "os", strict=True):
            axis.plot(x, i, marker, color=color, markersize=8, label=None if i else word)
        text = f"{means['difference']:+.2f}" + (f" (change {phrase})" if i else f" ± {margin:.2f}")
        axis.annotate(text, (max(xs), i), (9, 0), textcoords="offset points", va="center", fontsize=8)
        usual = difference if usual is None else usual
    axis.set_yticks(range(len(pairs)), [wrapped(name, 3) for name in pairs])
    axis.set_ylim(len(pairs) - 0.5, -0.5)
    axis.set_xlabel(unit)
    left, right = axis.get_xlim()
    axis.set_xlim(left, right + 0.5 * (right - left))
    axis.grid(axis="y", color=INK, alpha=0.3, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    set_suptitle(figure, title)
    rest = f" Changes of this difference: {', '.join(phrases[1:])}." if len(phrases) > 1 else ""
    return figure, data, f"{title}: {first} minus {second}, in {unit}, {phrases[0]}.{rest}"
