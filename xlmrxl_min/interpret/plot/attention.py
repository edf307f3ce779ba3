"""Figures of attention weights and of their metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import torch
from einops import rearrange
from matplotlib.colors import ListedColormap, Normalize, PowerNorm
from torch import Tensor

from ...tokenizer import group_words
from ..metrics import HEAD_CLASSES, OTHER, merge_tokens
from .figure import (
    COLORS,
    MAX_LABELS,
    Labels,
    Parts,
    argmax,
    captioned,
    heatmap,
    layer_head_ticks,
    pool_columns,
    pool_map,
    pooled,
    quoted,
    subplots,
    token_axis,
)

MAX_MAPS = 64  # of a head grid


def draw_map(weights: Tensor, tokens: Sequence[str], keys: Sequence[str] | None, title: str):
    """A map with its tokens, and the end of its caption."""
    values, rows, columns, note = pool_map(weights, tokens, keys)
    label, (q, k) = Labels(), argmax(values)
    figure, axis = subplots(2.4 + 0.17 * len(columns.names), 1.6 + 0.17 * len(rows.names))
    heatmap(
        axis, values, "attention", title=title + (f"\n({note})" if note else ""), rows=map(label, rows.names),
        columns=map(label, columns.names), vmax=float(values.max()), aspect="equal", shrink=0.6,
    )  # fmt: skip
    axis.set(xlabel="key", ylabel="query")
    caption = f"the largest weight is {values[q, k]:.2f}, from query {rows.describe(q)} to key {columns.describe(k)}."
    return figure, values, f"{caption}{pooled(note)}{label.legend(figure)}"


@captioned
def attention_map(
    weights: Tensor, tokens: Sequence[str], keys: Sequence[str] | None = None, *, title: str = "One head"
) -> Parts:
    """One head's map `q k`: a row per query, a column per key. `keys`: the tokens of the keys, if they differ."""
    figure, values, caption = draw_map(weights, tokens, keys, title)
    return figure, {"weights": values}, f"{title}: {caption}"


@captioned
def head_grid(weights: Tensor, *, first_layer: int = 0, title: str = "All heads") -> Parts:
    """Maps `l h q k` of up to 64 heads on one colour scale. `first_layer`: the number of the first row."""
    layers, heads, queries, keys = weights.shape
    if layers * heads > MAX_MAPS:
        ways = f"take some layers, as in weights[: {max(1, MAX_MAPS // heads)}], or head_metrics for all heads"
        raise ValueError(f"{layers * heads:,} maps are too many for one picture ({MAX_MAPS}): {ways}.")
    values, _, _, note = pool_map(weights, *([str(i) for i in range(n)] for n in (queries, keys)))
    height, width = values.shape[-2] + 1, values.shape[-1] + 1  # with a gap between maps
    padded = torch.nn.functional.pad(values, (0, 1, 0, 1), value=math.nan)
    mosaic = rearrange(padded, "l h q k -> (l q) (h k)")[:-1, :-1]
    figure, axis = subplots(9, min(12, 0.9 + 8.2 * mosaic.shape[0] / mosaic.shape[1]))
    heading = f"{title} (rows: queries, columns: keys{f'; {note}' if note else ''})"
    options: dict[str, Any] = {"norm": PowerNorm(0.5, 0, 1), "vmin": None, "aspect": "equal", "shrink": 0.7}
    heatmap(axis, mosaic, "attention (square-root scale)", title=heading, **options)
    axis.set_xticks([(i + 0.5) * width - 1 for i in range(heads)], range(heads))
    axis.set_yticks([(i + 0.5) * height - 1 for i in range(layers)], range(first_layer, first_layer + layers))
    axis.set(xlabel="head", ylabel="layer")
    axis.spines[:].set_visible(False)
    sharpness = weights.detach().float().cpu().amax(-1).mean(-1)  # l h: the mean of each query's largest weight
    (top, left), (low, right) = argmax(sharpness), argmax(-sharpness)
    caption = f"{title}. The mean of each query's largest weight is highest, {sharpness[top, left]:.2f}, in layer"
    caption += f" {top + first_layer}, head {left}, and lowest, {sharpness[low, right]:.2f}, in layer"
    caption += f" {low + first_layer}, head {right}.{pooled(note)}"
    return figure, {"weights": values, "sharpness": sharpness}, caption


@captioned
def attention_lines(
    weights: Tensor, tokens: Sequence[str], keys: Sequence[str] | None = None, *, min_weight: float = 0.1,
    title: str = "One head",
) -> Parts:  # fmt: skip
    """One head's map `q k` as lines from queries, left, to keys; weights below `min_weight` are left out."""
    values, rows, columns, note = pool_map(weights, tokens, keys)
    label, height = Labels(), max(len(rows.names), len(columns.names))
    figure, axis = subplots(5.5, 0.9 + 0.17 * height)
    lines = [(q, k, float(values[q, k])) for q, k in (values >= min_weight).nonzero().tolist()]
    for q, k, weight in lines:
        axis.plot([0, 1], [q, k], color=COLORS[0], alpha=min(1.0, weight), linewidth=0.5 + 2 * weight)
    for x, names, align, heading in ((-0.02, rows.names, "right", "query"), (1.02, columns.names, "left", "key")):
        axis.text(x, -1.2, heading, ha=align, fontsize=8, color="#555555")
        for y, name in enumerate(names):
            axis.text(x, y, label(name), ha=align, va="center", fontsize=8)
    axis.set(xlim=(-0.6, 1.6), ylim=(height - 0.5, -1.5))
    axis.axis("off")
    axis.set_title(title + (f"\n({note})" if note else ""), fontsize=9)
    fraction = sum(weight for *_, weight in lines) / float(values.sum())
    caption = f"{title}: {len(lines)} weights of at least {min_weight:.2f} hold {fraction:.0%} of the attention"
    if lines:
        q, k, weight = max(lines, key=lambda line: line[2])
        caption += f"; the largest, {weight:.2f}, is from query {rows.describe(q)} to key {columns.describe(k)}"
    caption += f".{pooled(note)}{label.legend(figure)}"
    return figure, {"lines": lines, "fraction": fraction}, caption


UNITS = {"entropy": " nats", "normalised entropy": "", "distance": " tokens"}


@captioned
def head_metrics(metrics: Mapping[str, Tensor], *, title: str = "Metrics of every head") -> Parts:
    """A layer × head map for each metric of interpret.head_metrics, `l h` each."""
    layers, heads = next(iter(metrics.values())).shape
    rows = math.ceil(len(metrics) / 3)
    figure, axes = subplots(9, rows * (0.9 + min(4.0, 2.2 * layers / heads)), rows, 3, squeeze=False)
    for axis in axes.flat[len(metrics) :]:
        axis.axis("off")
    phrases = []
    for axis, (name, values) in zip(axes.flat, metrics.items(), strict=False):
        values, unit = values.detach().float().cpu(), UNITS.get(name)
        heading = f"attention to: {name}" if unit is None else f"{name} ({unit.strip()})" if unit else name
        heatmap(axis, values, title=heading, vmax=float(values.nan_to_num(0).max()) if unit else 1)
        layer_head_ticks(axis, values)
        layer, head = argmax(values)
        amount = f"{values[layer, head]:.0%}" if unit is None else f"{values[layer, head]:.2f}{unit}"
        phrases.append(f"{name} {amount} (L{layer}H{head})")
    figure.suptitle(f"{title}: {layers} layers × {heads} heads", fontsize=10)
    return figure, dict(metrics), f"{title}. Largest values, with layer and head: {', '.join(phrases)}."


@captioned
def class_map(classes: Sequence[Sequence[str]], *, title: str = "Head classes") -> Parts:
    """The names of interpret.head_classes, l lists of h, as a map."""
    names = [*HEAD_CLASSES, OTHER]
    values = torch.tensor([[names.index(name) for name in row] for row in classes])
    layers, heads = values.shape
    figure, axis = subplots(8, 1.2 + min(7.0, 0.36 * layers))
    colors, norm = ListedColormap(COLORS), Normalize(-0.5, len(names) - 0.5)
    axis.imshow(values.numpy(), cmap=colors, norm=norm, aspect="auto")
    if layers * heads <= 200:
        for layer, row in enumerate(classes):
            for head, name in enumerate(row):
                axis.text(head, layer, name, ha="center", va="center", fontsize=7)
    else:
        bar = figure.colorbar(matplotlib.cm.ScalarMappable(norm, colors), ax=axis)
        bar.set_ticks(range(len(names)), labels=names)
    layer_head_ticks(axis, values)
    axis.set_title(title, fontsize=9)
    counts = {name: int((values == i).sum()) for i, name in enumerate(names)}
    phrase = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return figure, {"counts": counts}, f"{title}, of {layers * heads} heads: {phrase}."


@captioned
def offset_profiles(profiles: Tensor, *, title: str = "Offset profiles") -> Parts:
    """interpret.offset_profile of all heads, `l h r`: a row per head, layers from top to bottom."""
    layers, heads, offsets = profiles.shape
    reach, values = offsets // 2, profiles.detach().float().cpu().flatten(0, 1)
    figure, axis = subplots(6, 1.2 + min(8.0, 0.11 * len(values)))
    heatmap(axis, values, "mean attention", title=f"{title}: mean attention by offset, a row per head")
    for layer in range(1, layers):
        axis.axhline(layer * heads - 0.5, color="white", linewidth=1)
    axis.set_yticks([(layer + 0.5) * heads - 0.5 for layer in range(layers)], [f"layer {i}" for i in range(layers)])
    step = max(1, reach // 4)
    axis.set_xticks(range(reach % step, offsets, step), range(-reach + reach % step, reach + 1, step))
    axis.set(xlabel="offset: key position minus query position")
    row, column = argmax(values)
    peak = f"{values[row, column]:.0%} at offset {column - reach:+d}, in layer {row // heads}, head {row % heads}"
    return figure, {"profiles": profiles}, f"{title}: the highest peak is {peak}."


@captioned
def rollout(steps: Tensor, tokens: Sequence[str], position: int, *, title: str = "Attention rollout") -> Parts:
    """interpret.rollout's `l q k` for the query at `position`: the tokens its state comes from, after each layer."""
    columns, label = token_axis(tokens), Labels()
    values = pool_columns(steps[:, position], columns)
    figure, axis = subplots(2.2 + 0.17 * len(columns.names), 1.6 + 0.24 * len(steps))
    heading = f"{title}: {label(tokens[position])}, position {position}{f' ({columns.note})' if columns.note else ''}"
    rows = [f"after layer {i}" for i in range(len(steps))]
    heatmap(axis, values, "fraction", title=heading, rows=rows, columns=map(label, columns.names))
    final = steps[-1, position].detach().clone()
    own, final[position] = float(final[position]), 0
    other = int(final.argmax())
    caption = f"{title} (a heuristic): after the last layer, {own:.0%} of {quoted(tokens[position])} comes from its own"
    caption += f" position; the largest fraction from another one is {float(final[other]):.0%}, from"
    caption += f" {quoted(tokens[other])} at position {other}.{pooled(columns.note)}{label.legend(figure)}"
    return figure, {"fractions": values}, caption


@captioned
def cross_lingual_map(weights: Tensor, tokens: Sequence[str], *, title: str = "Two languages, one head") -> Parts:
    """One head's map `q k` of a pair `<s> A </s></s> B </s>`, merged into words, and the attention between texts."""
    ends = [i for i, token in enumerate(tokens) if token == "</s>"]
    if len(ends) != 3 or ends[1] != ends[0] + 1:
        raise ValueError("these tokens are no pair `<s> A </s></s> B </s>`: tokenize with tokenizer(first, second).")
    groups, weights = group_words(tokens), weights.detach().float().cpu()
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
