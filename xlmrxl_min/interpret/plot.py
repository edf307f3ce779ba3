"""Figures of measure.py's numbers, with matplotlib alone. Walked through in notebooks/03_seeing_attention.ipynb.

Every function gives a Drawing: the figure, its numbers, and a sentence made from them. Layers, heads and places are
counted from 0, as in the code. Sizes and resolution are fixed; cividis for amounts, PuOr for more or less, Okabe and
Ito's colours for kinds: readable with any colour vision. What is too long is pooled, and the figure says so.
"""

from __future__ import annotations

import io
import math
import os
import textwrap
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import cache, wraps
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import torch
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, PowerNorm
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ..inference.generation import Beams
from ..utils import atomic_write
from .metrics import HEAD_CLASSES, OTHERWISE, Contributions, Lens, Retrieval, merge, words

DPI = 90
AMOUNT, CHANGE = "cividis", "PuOr_r"
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#BBBBBB")  # Okabe and Ito 2008
LONGEST = 64  # tokens that have room for a label each
MOST_MAPS = 64  # of a head grid
SHAPES_TEXT = [int(part) for part in matplotlib.__version__.split(".")[:2]] >= [3, 11]  # joins and reorders letters
FAMILIES = (
    "DejaVu Sans", "Noto Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans SC", "Noto Sans Devanagari",
    "Noto Sans Thai", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Bengali", "Noto Sans Tamil",
    "Noto Sans Telugu", "Noto Sans Kannada", "Noto Sans Malayalam", "Noto Sans Gujarati", "Noto Sans Gurmukhi",
    "Noto Sans Sinhala", "Noto Sans Myanmar", "Noto Sans Khmer", "Noto Sans Lao", "Noto Sans Georgian",
    "Noto Sans Armenian", "Noto Sans Ethiopic", "Hiragino Sans", "PingFang SC", "Yu Gothic", "Microsoft YaHei",
    "Malgun Gothic", "Nirmala UI", "Arial Unicode MS",
)  # fmt: skip


NUMBERED = " Numbered, as this machine's fonts or its matplotlib cannot draw them"


class Drawing(NamedTuple):
    """A figure, what it was drawn from, and what it shows. At the end of a cell: the picture, its sentence below."""

    figure: Figure
    numbers: dict[str, Any]
    sentence: str

    def png(self) -> bytes:
        """For a notebook: in 256 colours, which halves what is committed with it."""
        picture, small = io.BytesIO(), io.BytesIO()
        with matplotlib.rc_context(matplotlib.rcParamsDefault):
            self.figure.savefig(picture, format="png")
        Image.open(picture).convert("RGB").quantize(256).save(small, format="png", optimize=True)
        return small.getvalue()

    def save(self, path: str | os.PathLike[str]) -> None:
        """As .png, .pdf or .svg, by the name's ending; the old file stays until the new one is whole."""
        with atomic_write(Path(path)) as (draft,), matplotlib.rc_context(matplotlib.rcParamsDefault):
            self.figure.savefig(draft, format=Path(path).suffix[1:])

    def _ipython_display_(self) -> None:
        from IPython.display import display  # there is one, or nobody would call this

        data = {"image/png": self.png(), "text/plain": self.sentence}
        display(data, metadata={"image/png": {"alt": self.sentence}}, raw=True)
        print(textwrap.fill(self.sentence, 96))  # a notebook would break the line within a word


# ---- letters


@cache
def fonts() -> tuple[list[str], list[Any]]:
    """Of FAMILIES those that this machine has: their names, and the fonts."""
    installed = {entry.name for entry in font_manager.fontManager.ttflist}
    names = [name for name in FAMILIES if name in installed]
    return names, [font_manager.get_font(font_manager.findfont(name)) for name in names]


def can_draw(text: str) -> bool:
    """Whether the fonts have all its letters, and matplotlib can put them in their places."""
    must_shape = any(unicodedata.bidirectional(c) in ("R", "AL") or unicodedata.combining(c) for c in text)
    must_shape = must_shape or any(unicodedata.category(c) == "Mc" for c in text)
    return (SHAPES_TEXT or not must_shape) and all(
        any(font.get_char_index(ord(c)) for font in fonts()[1]) for c in text
    )


class Labels:
    """Tokens as they can be written in this figure; those that cannot get a number, and the sentence a legend."""

    def __init__(self) -> None:
        self.numbered: dict[str, str] = {}

    def __call__(self, token: str) -> str:
        text = plain(token)
        if can_draw(text):
            return text.replace("$", r"\$")  # or matplotlib takes it for a formula
        return self.numbered.setdefault(text, f"#{len(self.numbered) + 1}")

    def legend(self) -> str:
        """What is to follow the sentence: empty, or which numbers stand for what."""
        if not self.numbered:
            return ""
        undrawn = {unicodedata.name(c, "?").split()[0] for text in self.numbered for c in text if not can_draw(c)}
        scripts = ", ".join(sorted(name if name == "CJK" else name.title() for name in undrawn))
        listed = ", ".join(f"{number} = {text}" for text, number in self.numbered.items())
        return f"{NUMBERED} ({scripts}): {listed}."


def plain(token: str) -> str:
    """A token as it reads, without ▁; what could not be seen, by its name."""
    text = token.replace("▁", " ").strip(" ") or "▁"
    invisible = all(unicodedata.category(c)[0] in "CZ" for c in text)  # a joiner among letters is part of the word
    names = (unicodedata.name(c, f"U+{ord(c):04X}") for c in text)
    return "".join(
        name if invisible or unicodedata.category(c) == "Cc" else c for c, name in zip(text, names, strict=True)
    )


def quoted(token: str) -> str:
    return f"“{plain(token)}”"


def drawing(function: Callable[..., tuple[Figure, dict, str]]) -> Callable[..., Drawing]:
    """Draw with fonts for as many scripts as there are, and without what the user has set for other figures."""

    @wraps(function)
    def drawn(*args: Any, **kwargs: Any) -> Drawing:
        with matplotlib.rc_context({**matplotlib.rcParamsDefault, "font.family": fonts()[0], "font.size": 9}):
            figure, numbers, sentence = function(*args, **kwargs)
            if NUMBERED in sentence:
                known = f"{figure.get_supxlabel()}\n".lstrip()
                figure.supxlabel(f"{known}#1, #2 …: no font here; the sentence lists them", fontsize=8)
            return Drawing(figure, numbers, sentence)

    return drawn


def canvas(width: float, height: float, *args: Any, **kwargs: Any) -> tuple[Figure, Any]:
    figure = Figure((width, height), dpi=DPI, layout="constrained")
    return figure, figure.subplots(*args, **kwargs)


# ---- what is too long


class Side(NamedTuple):
    """The tokens along one side of a map."""

    names: list[str]  # of tokens, or where there are too many, of blocks of them
    groups: list[range]
    notice: str  # empty, or what has been done

    def said(self, i: int) -> str:
        return f"tokens {self.names[i]}" if self.notice else quoted(self.names[i])


def side(tokens: Sequence[str], limit: int = LONGEST) -> Side:
    size = math.ceil(len(tokens) / limit)
    groups = [range(start, min(start + size, len(tokens))) for start in range(0, len(tokens), size)]
    if size == 1:
        return Side(list(tokens), groups, "")
    names = [f"{group.start}–{group.stop - 1}" for group in groups]
    return Side(names, groups, f"{len(tokens)} tokens in blocks of {size}")


def fit(weights: Tensor, tokens: Sequence[str], keys: Sequence[str] | None) -> tuple[Tensor, Side, Side, str]:
    """Weights `… q k` to at most LONGEST rows and columns: a mean over a block's queries, a sum over its keys."""
    keys = tokens if keys is None else keys
    if tuple(weights.shape[-2:]) != (len(tokens), len(keys)):
        ours, shape = (len(tokens), len(keys)), tuple(weights.shape[-2:])
        raise ValueError(f"the map is {shape}, but there are tokens for {ours}: pass one map `q k` and its tokens.")
    rows, columns = side(tokens), side(keys)
    notices = [f"{name}: {x.notice}" for name, x in (("queries", rows), ("keys", columns)) if x.notice]
    return merge(weights.detach().float().cpu(), rows.groups, columns.groups), rows, columns, "; ".join(notices)


def tell(notice: str) -> str:
    return f" Pooled: {notice}." if notice else ""


def write_ticks(axis: Axes, columns: Sequence[str] = (), rows: Sequence[str] = ()) -> None:
    if columns:
        axis.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
    if rows:
        axis.set_yticks(range(len(rows)), rows, fontsize=8)


def numbers_below(axis: Axes, values: Tensor, rows: str, columns: str) -> None:
    """Layers and heads, or what else is counted; every one where there is room."""
    for size, set_ticks in ((len(values), axis.set_yticks), (values.shape[1], axis.set_xticks)):
        set_ticks(range(0, size, max(1, size // 8)))
    axis.set(ylabel=rows, xlabel=columns)


def largest(values: Tensor) -> tuple[int, int]:
    """The row and column of the largest value that is a number."""
    return divmod(int(values.nan_to_num(-math.inf).argmax()), values.shape[1])


# ---- attention


@drawing
def attention_map(
    weights: Tensor, tokens: Sequence[str], keys: Sequence[str] | None = None, *, title: str = "One head"
):
    """One head's map `q k`: rows look, columns are looked at. `keys`: their tokens, where they are other ones."""
    values, rows, columns, notice = fit(weights, tokens, keys)
    label, (q, k) = Labels(), largest(values)
    width, height = 2.4 + 0.17 * len(columns.names), 1.6 + 0.17 * len(rows.names)
    figure, axis = canvas(width, height)
    image = axis.imshow(values.numpy(), cmap=AMOUNT, vmin=0, vmax=float(values.max()))
    write_ticks(axis, [label(name) for name in columns.names], [label(name) for name in rows.names])
    axis.set(xlabel="looked at (key)", ylabel="looking (query)")
    axis.set_title(title + (f"\n({notice})" if notice else ""), fontsize=9)
    figure.colorbar(image, label="attention", shrink=0.6)
    sentence = f"{title}: the largest weight is {values[q, k]:.2f}, {rows.said(q)} looking at"
    return figure, {"weights": values}, f"{sentence} {columns.said(k)}.{tell(notice)}{label.legend()}"


@drawing
def head_grid(weights: Tensor, *, first_layer: int = 0, title: str = "All heads"):
    """Many maps `l h q k` on one scale, for their patterns; at most 64. `first_layer`: the number of the first row."""
    layers, heads, queries, keys = weights.shape
    if layers * heads > MOST_MAPS:
        ways = f"take some layers, as in weights[: {max(1, MOST_MAPS // heads)}], or overview for all heads"
        raise ValueError(f"{layers * heads:,} maps are too many for one picture ({MOST_MAPS}): {ways}.")
    names = [str(i) for i in range(queries)], [str(i) for i in range(keys)]
    values, rows, columns, notice = fit(weights, *names)
    step = len(rows.names) + 1, len(columns.names) + 1  # a gap between the maps
    mosaic = torch.full((layers * step[0] - 1, heads * step[1] - 1), math.nan)
    for layer, head in torch.cartesian_prod(torch.arange(layers), torch.arange(heads)).tolist():
        top, left = layer * step[0], head * step[1]
        mosaic[top : top + step[0] - 1, left : left + step[1] - 1] = values[layer, head]
    figure, axis = canvas(9, min(12, 0.9 + 8.2 * mosaic.shape[0] / mosaic.shape[1]))
    image = axis.imshow(mosaic.numpy(), cmap=AMOUNT, norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    axis.set_xticks([(i + 0.5) * step[1] - 1 for i in range(heads)], range(heads))
    axis.set_yticks([(i + 0.5) * step[0] - 1 for i in range(layers)], range(first_layer, first_layer + layers))
    axis.set(xlabel="head", ylabel="layer")
    how = "rows look, columns are looked at" + (f"; {notice}" if notice else "")
    axis.set_title(f"{title} ({how})", fontsize=9)
    axis.spines[:].set_visible(False)
    figure.colorbar(image, label="attention, on a root scale", shrink=0.7)
    sharpness = weights.detach().float().cpu().amax(-1).mean(-1)  # l h: a query's largest weight, in the mean
    (top, left), (low, right) = largest(sharpness), largest(-sharpness)
    sentence = f"A query's largest weight is {sharpness[top, left]:.2f} in the mean in the sharpest head (layer"
    sentence += f" {top + first_layer}, head {left}), {sharpness[low, right]:.2f} in the most even one"
    sentence += f" (layer {low + first_layer}, head {right}).{tell(notice)}"
    return figure, {"weights": values, "sharpness": sharpness}, f"{title}. {sentence}"


@drawing
def links(
    weights: Tensor,
    tokens: Sequence[str],
    keys: Sequence[str] | None = None,
    *,
    least: float = 0.1,
    title: str = "One head",
):
    """One head's map `q k` as lines from what looks, left, to what is looked at; weights below `least` are left out."""
    values, rows, columns, notice = fit(weights, tokens, keys)
    label, longest = Labels(), max(len(rows.names), len(columns.names))
    figure, axis = canvas(5.5, 0.9 + 0.17 * longest)
    drawn = [(q, k, float(values[q, k])) for q, k in (values >= least).nonzero().tolist()]
    for q, k, weight in drawn:
        axis.plot([0, 1], [q, k], color=COLORS[0], alpha=min(1.0, weight), linewidth=0.5 + 2 * weight)
    for x, names, align in ((-0.02, rows.names, "right"), (1.02, columns.names, "left")):
        for y, name in enumerate(names):
            axis.text(x, y, label(name), ha=align, va="center", fontsize=8)
    axis.set(xlim=(-0.6, 1.6), ylim=(longest - 0.5, -1.5))
    axis.axis("off")
    axis.text(-0.02, -1.2, "looking", ha="right", fontsize=8, color="#555555")
    axis.text(1.02, -1.2, "looked at", ha="left", fontsize=8, color="#555555")
    axis.set_title(title + (f"\n({notice})" if notice else ""), fontsize=9)
    shown = sum(weight for *_, weight in drawn) / float(values.sum())
    sentence = f"{title}: {len(drawn)} links of {least:.2f} or more carry {shown:.0%} of the attention"
    if drawn:
        q, k, weight = max(drawn, key=lambda link: link[2])
        sentence += f"; the strongest, {weight:.2f}, goes from {rows.said(q)} to {columns.said(k)}"
    return figure, {"links": drawn, "share": shown}, f"{sentence}.{tell(notice)}{label.legend()}"


UNITS = {"entropy": "nats", "evenness": "of log k", "distance": "tokens"}


@drawing
def overview(numbers: Mapping[str, Tensor], *, title: str = "Every head in numbers"):
    """A layer × head map for each of measure.overview's numbers, `l h` each."""
    names = list(numbers)
    layers, heads = numbers[names[0]].shape
    across = 3
    down = math.ceil(len(names) / across)
    height = down * (0.9 + min(4.0, 2.2 * layers / heads))
    figure, axes = canvas(9, height, down, across, squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    said = []
    for axis, name in zip(axes.flat, names, strict=False):
        values, unit = numbers[name].detach().float().cpu(), UNITS.get(name)
        top = 1 if unit is None or name == "evenness" else float(values.nan_to_num(0).max())
        image = axis.imshow(values.numpy(), cmap=AMOUNT, vmin=0, vmax=top, aspect="auto", interpolation="nearest")
        numbers_below(axis, values, "layer", "head")
        axis.set_title(f"{name} ({unit})" if unit else f"attention to: {name}", fontsize=9)
        figure.colorbar(image)
        layer, head = largest(values)
        amount = f"{values[layer, head]:.2f} {unit}" if unit else f"{values[layer, head]:.0%}"
        said.append(f"{name} {amount} (L{layer}H{head})")
    figure.suptitle(f"{title}: {layers} layers × {heads} heads", fontsize=10)
    return figure, dict(numbers), f"{title}. The largest, with layer and head: {', '.join(said)}."


@drawing
def class_map(classes: Sequence[Sequence[str]], *, title: str = "What the heads do"):
    """measure.head_classes's names, l lists of h, as a map."""
    names = [*HEAD_CLASSES, OTHERWISE]
    values = torch.tensor([[names.index(name) for name in row] for row in classes])
    layers, heads = values.shape
    figure, axis = canvas(8, 1.2 + min(7.0, 0.36 * layers))
    colors = ListedColormap(COLORS)
    axis.imshow(values.numpy(), cmap=colors, vmin=-0.5, vmax=len(names) - 0.5, aspect="auto")
    if layers * heads <= 200:
        for layer, row in enumerate(classes):
            for head, name in enumerate(row):
                axis.text(head, layer, name, ha="center", va="center", fontsize=7)
    else:
        bar = figure.colorbar(matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(-0.5, 7.5), colors), ax=axis)
        bar.set_ticks(range(len(names)), labels=names)
    numbers_below(axis, values, "layer", "head")
    axis.set_title(title, fontsize=9)
    counts = {name: int((values == i).sum()) for i, name in enumerate(names)}
    listed = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return figure, {"counts": counts}, f"{title}: of {layers * heads} heads {listed}."


@drawing
def offset_profiles(profiles: Tensor, *, title: str = "Offset profiles"):
    """measure.offset_profile of all heads, `l h r`: a row per head, layers from top to bottom."""
    layers, heads, offsets = profiles.shape
    reach, values = offsets // 2, profiles.detach().float().cpu().flatten(0, 1)
    figure, axis = canvas(6, 1.2 + min(8.0, 0.11 * len(values)))
    image = axis.imshow(values.numpy(), cmap=AMOUNT, vmin=0, aspect="auto", interpolation="nearest")
    for layer in range(1, layers):
        axis.axhline(layer * heads - 0.5, color="white", linewidth=1)
    axis.set_yticks([(layer + 0.5) * heads - 0.5 for layer in range(layers)], [f"layer {i}" for i in range(layers)])
    step = max(1, reach // 4)
    axis.set_xticks(range(reach % step, offsets, step), range(-reach + reach % step, reach + 1, step))
    axis.set(xlabel="offset: key minus query, in tokens")
    axis.set_title(f"{title}: a row per head, mean attention by offset", fontsize=9)
    figure.colorbar(image, label="mean attention")
    row, column = largest(values)
    layer, head = divmod(row, heads)
    sentence = (
        f"{title}: the highest peak is {values[row, column]:.0%} at offset {column - reach:+d}, in layer {layer},"
    )
    return figure, {"profiles": profiles}, f"{sentence} head {head}."


@drawing
def rollout(steps: Tensor, tokens: Sequence[str], place: int, *, title: str = "Attention rollout"):
    """measure.rollout's `l q k` for the query at `place`: where it has come from, layer by layer. A heuristic."""
    column, label = side(tokens), Labels()
    values = merge(steps[:, place].detach().float().cpu(), [range(i, i + 1) for i in range(len(steps))], column.groups)
    figure, axis = canvas(2.2 + 0.17 * len(column.names), 1.6 + 0.24 * len(steps))
    image = axis.imshow(values.numpy(), cmap=AMOUNT, vmin=0, aspect="auto")
    write_ticks(axis, [label(name) for name in column.names], [f"after layer {i}" for i in range(len(steps))])
    notice = f" ({column.notice})" if column.notice else ""
    axis.set_title(f"{title}: {label(tokens[place])}, place {place}{notice}", fontsize=9)
    figure.colorbar(image, label="share")
    own, others = float(steps[-1, place, place]), steps[-1, place].detach().clone()
    others[place] = 0
    best = int(others.argmax())
    sentence = (
        f"{title} (a heuristic): after the last layer {own:.0%} of {quoted(tokens[place])} is from its own place,"
    )
    sentence += f" and the next largest share, {float(others[best]):.0%}, from {quoted(tokens[best])} at place {best}."
    return figure, {"shares": values}, f"{sentence}{tell(column.notice)}{label.legend()}"


# ---- the stream


@drawing
def residual_norms(parts: Contributions, *, title: str = "The residual stream"):
    """measure.contributions: the stream's length after every branch, and whose work it is; means over tokens."""
    stream, share = parts.stream.flatten(1).float().cpu(), parts.share.flatten(1).float().cpu()
    figure, (left, right) = canvas(9, 3.2, 1, 2)
    at = range(len(parts.names))
    left.fill_between(
        at,
        stream.amin(1).tolist(),
        stream.amax(1).tolist(),
        color=COLORS[0],
        alpha=0.2,
        linewidth=0,
        label="all tokens",
    )
    left.plot(at, stream.mean(1).tolist(), "o-", color=COLORS[0], markersize=3, label="mean")
    left.legend(frameon=False, fontsize=8)
    left.set(ylabel="length of the stream", ylim=(0, None))
    kinds = [name.rsplit(" ", 1)[0] for name in parts.names]
    colors = dict(zip(dict.fromkeys(kinds), COLORS, strict=False))
    right.bar(at, share.mean(1).tolist(), color=[colors[kind] for kind in kinds])
    right.axhline(0, color="black", linewidth=0.5)
    right.set(ylabel="share of the last stream")
    right.legend([matplotlib.patches.Patch(color=x) for x in colors.values()], colors, frameon=False, fontsize=8)
    names = parts.names if len(parts.names) < 20 else [name if i % 6 == 0 else "" for i, name in enumerate(parts.names)]
    for axis in (left, right):
        axis.set_xticks(at, names, rotation=90, fontsize=8)
    figure.suptitle(title, fontsize=10)
    by_kind = {kind: float(share[[i for i, k in enumerate(kinds) if k == kind]].sum(0).mean()) for kind in colors}
    means = stream.mean(1)
    sentence = f"{title}: its mean length goes from {means[0]:.1f} to {means[-1]:.1f}; of what is in it at the end, "
    sentence += ", ".join(f"{part:.0%} is by {kind}" for kind, part in by_kind.items())
    return figure, {"length": means, "shares": by_kind}, f"{sentence}."


@drawing
def lens_table(lens: Lens, best: Sequence[Sequence[str]], places: Sequence[str], *, title: str = "Masked-LM lens"):
    """measure.lens as a table: `best` are the tokens of lens.best, l lists of n; `places` names the n columns."""
    label, values = Labels(), lens.probability.float().cpu()
    layers, width = values.shape
    figure, axis = canvas(2.2 + 1.1 * width, 1.3 + 0.42 * layers)
    image = axis.imshow(values.numpy(), cmap=AMOUNT, vmin=0, vmax=1, aspect="auto")
    for layer in range(layers):
        for n in range(width):
            text = f"{label(best[layer][n])}\nrank {int(lens.rank[layer, n]):,}"
            color = "white" if values[layer, n] < 0.6 else "black"
            axis.text(n, layer, text, ha="center", va="center", fontsize=7, color=color, linespacing=1.2)
    rows = ["embeddings", *(f"after layer {i}" for i in range(layers - 1))]
    write_ticks(axis, rows=rows)
    axis.set_xticks(range(width), [label(name) for name in places], fontsize=8)
    axis.set_title(f"{title}: first guess, and the rank of the right one", fontsize=9)
    figure.colorbar(image, label="probability of\nthe right one")
    said = []
    for n, name in enumerate(places):
        first = (lens.rank[:, n] == 1).nonzero().flatten().tolist()
        since = next((i for i in first if bool((lens.rank[i:, n] == 1).all())), None)
        said.append(
            f"{quoted(name)} {'never' if since is None else 'from ' + rows[since].removeprefix('after ') + ' on'}"
        )
    numbers = {"probability": values, "rank": lens.rank.cpu(), "divergence": lens.divergence.cpu()}
    return figure, numbers, f"{title}: the right one comes first for {', '.join(said)}.{label.legend()}"


# ---- what hangs on what


@drawing
def effects(
    values: Tensor, columns: Sequence[str] | None = None, *, title: str = "Ablation", unit: str = "change of the score"
):
    """What each head (`l h`) or, with the tokens as `columns`, each layer and place (`l t`) does to a score."""
    values, label, notice = values.detach().float().cpu(), Labels(), ""
    if columns is None:
        figure, axis = canvas(2.5 + 0.42 * min(16, values.shape[1]), 1.4 + min(7.0, 0.34 * len(values)))
        numbers_below(axis, values, "layer", "head")
    else:
        names = side(columns)
        notice, one = names.notice, [range(i, i + 1) for i in range(len(values))]
        values = merge(values, one, names.groups)
        figure, axis = canvas(2.5 + 0.2 * len(names.names), 1.6 + 0.28 * len(values))
        write_ticks(axis, [label(name) for name in names.names], [f"layer {i}" for i in range(len(values))])
    reach = float(values.nan_to_num(0).abs().max()) or 1.0
    image = axis.imshow(values.numpy(), cmap=CHANGE, vmin=-reach, vmax=reach, aspect="auto", interpolation="nearest")
    axis.set_facecolor("#DDDDDD")  # not a number: a pruned head
    axis.set_title(title + (f"\n({notice}, added up)" if notice else ""), fontsize=9)
    figure.colorbar(image, label=unit)
    row, column = largest(values.abs())
    where = f"head {column}" if columns is None else names.said(column)
    sentence = f"{title}: the largest effect, {values[row, column]:+.2f} ({unit}), is that of layer {row}, {where}."
    return figure, {"effects": values}, f"{sentence}{tell(notice)}{label.legend()}"


@drawing
def saliency(scores: Mapping[str, Tensor], tokens: Sequence[str], *, title: str = "What the answer hangs on"):
    """One or more measures of saliency, `t` each, side by side over the tokens; each on its own scale."""
    names, label = side(tokens), Labels()
    figure, axes = canvas(
        2 + 2.2 * len(scores), 1.1 + 0.19 * len(names.names), 1, len(scores), squeeze=False, sharey=True
    )
    said, pooled = [], {}
    for axis, (name, values) in zip(axes[0], scores.items(), strict=True):
        one = values.detach().float().cpu()[None]
        pooled[name] = part = merge(one, [range(1)], names.groups)[0]
        axis.barh(range(len(part)), part.tolist(), color=[COLORS[5] if x < 0 else COLORS[0] for x in part.tolist()])
        axis.axvline(0, color="black", linewidth=0.5)
        axis.set_title(name, fontsize=9)
        axis.tick_params(axis="x", labelsize=7)
        axis.locator_params(axis="x", nbins=3)
        top = int(part.abs().argmax())
        said.append(f"{names.said(top)} ({part[top]:+.2f}) by {name}")
    axes[0, 0].set_ylim(len(names.names) - 0.5, -0.5)
    write_ticks(axes[0, 0], rows=[label(name) for name in names.names])
    figure.suptitle(title + (f" ({names.notice}, added up)" if names.notice else ""), fontsize=10)
    figure.supxlabel("blue, to the right: raises the score; red, to the left: lowers it", fontsize=8)
    return figure, pooled, f"{title}: most on {', '.join(said)}.{tell(names.notice)}{label.legend()}"


# ---- across languages


@drawing
def crosslingual_block(weights: Tensor, tokens: Sequence[str], *, title: str = "Two languages, one head"):
    """One head's map `q k` on a pair `<s> A </s></s> B </s>`, joined to words, and who looks across."""
    ends = [i for i, token in enumerate(tokens) if token == "</s>"]
    if len(ends) != 3 or ends[1] != ends[0] + 1:
        raise ValueError("these tokens are no pair `<s> A </s></s> B </s>`: tokenize with tokenizer(first, second).")
    grouped = words(tokens)
    names = ["".join(tokens[i] for i in group) for group in grouped]
    values = merge(weights.detach().float().cpu(), grouped, grouped)
    middle = next(i for i, group in enumerate(grouped) if group.start == ends[1])
    parts = {"first": range(1, ends[0]), "second": range(ends[1] + 1, ends[2]), "all": range(len(tokens))}
    across = {
        f"{a} at {b}": float(merge(weights.detach().float().cpu(), [parts[a]], [parts[b]]))
        for a in ("first", "second")
        for b in ("first", "second")
    }
    figure, _, said = attention_map.__wrapped__(values, names, title="by words")
    axis = figure.axes[0]
    axis.set_title(title, fontsize=9)
    if len(names) <= LONGEST:
        axis.axhline(middle - 0.5, color="white"), axis.axvline(middle - 0.5, color="white")
    sentence = f"{title}: the second text gives {across['second at first']:.0%} of its attention to the first, and the"
    sentence += f" first {across['first at second']:.0%} to the second; {said}"
    return figure, {"weights": values, **across}, sentence


@drawing
def retrieval_curves(found: Mapping[str, Retrieval], *, title: str = "Translations as neighbours"):
    """measure.retrieval by layer for one or more pairs of languages."""
    figure, (left, right) = canvas(9, 3.2, 1, 2)
    last = {}
    for color, marker, (name, one) in zip(COLORS * 9, "osD^vP*X" * 9, found.items(), strict=False):
        at = range(len(one.accuracy))
        left.plot(at, one.accuracy.tolist(), "-", marker=marker, markersize=4, color=color, label=name)
        right.plot(at, one.translations.tolist(), "-", marker=marker, markersize=4, color=color)
        right.plot(at, one.strangers.tolist(), ":", marker=marker, markersize=3, color=color)
        last[name] = one.accuracy.cpu()
    left.set(ylabel="translation is the nearest", ylim=(0, 1.03), xlabel="layers passed (0: embeddings)")
    right.set(ylabel="cosine", xlabel="layers passed (0: embeddings)")
    right.set_title("lines: to the translation; dots: to other texts", fontsize=9)
    for axis in (left, right):
        axis.xaxis.get_major_locator().set_params(integer=True)
    left.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    said = [f"{name} {accuracy.max():.0%} (after {int(accuracy.argmax())} layers)" for name, accuracy in last.items()]
    return figure, last, f"{title}: a text's translation is its nearest for {', '.join(said)}, at best."


@drawing
def training(histories: Mapping[str, Sequence[Mapping[str, float]]], *, title: str = "Training"):
    """The histories of train.fit, by name: the loss of every step with its mean over 10% of the steps, and the rate."""
    figure, (left, right) = canvas(9, 3, 1, 2, width_ratios=[2, 1])
    said, means = [], {}
    for color, style, (name, history) in zip(COLORS * 9, ("-", "--", ":", "-.") * 9, histories.items(), strict=False):
        steps, losses = ([entry[key] for entry in history] for key in ("step", "loss"))
        known = [loss for loss in losses if not math.isnan(loss)]
        window = max(1, math.ceil(len(known) / 10))
        means[name] = [sum(known[max(0, i - window + 1) : i + 1]) / len(known[max(0, i - window + 1) : i + 1])
                       for i in range(len(known))]  # fmt: skip
        left.plot(steps, losses, color=color, alpha=0.25, linewidth=0.7)
        counted = [step for step, loss in zip(steps, losses, strict=True) if not math.isnan(loss)]
        left.plot(counted, means[name], style, color=color, label=name)
        right.plot(steps, [entry["rate"] for entry in history], style, color=color)
        said.append(f"{name} from {means[name][0]:.2f} to {means[name][-1]:.2f} in {history[-1]['seconds']:.0f} s")
    left.set(xlabel="step", ylabel="loss (nats)", ylim=(0, None))
    right.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    left.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure, means, f"{title}: the mean loss goes, for {'; for '.join(said)}."


# ---- generation


@drawing
def distributions(
    probabilities: Mapping[str, Tensor], pieces: Sequence[str], *, most: int = 12, title: str = "What may come next"
):
    """Distributions over a vocabulary, `v` each, by name: the `most` tokens that are likeliest in the first of them."""
    first = next(iter(probabilities.values()))
    best = first.topk(min(most, len(first))).indices.tolist()
    numbers = {name: one.detach().float().cpu()[best] for name, one in probabilities.items()}
    figure, axes = canvas(1.6 + 1.7 * len(numbers), 1.0 + 0.21 * len(best), 1, len(numbers), sharey=True, squeeze=False)
    label, said = Labels(), []
    for axis, color, (name, values), one in zip(
        axes[0], COLORS * 9, numbers.items(), probabilities.values(), strict=False
    ):
        axis.barh(range(len(best)), values.tolist(), color=color)
        axis.set_title(name, fontsize=9)
        axis.set(xlim=(0, 1), xlabel="probability", ylim=(len(best) - 0.4, -0.6))
        possible = int((one > 0).sum())
        said.append(f"{name} {float(one.max()):.0%} for {quoted(pieces[int(one.argmax())])}, {possible:,} possible")
        for place, value in enumerate(values.tolist()):
            if value == 0:
                axis.text(0.02, place, "cut off", fontsize=7, va="center", color="0.4")
    axes[0, 0].set_yticks(range(len(best)), [label(pieces[i]) for i in best], fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure, numbers, f"{title}: {'; '.join(said)}.{label.legend()}"


@drawing
def beam_tree(steps: Sequence[Beams], pieces: Sequence[str], *, title: str = "Beam search"):
    """generation.beams of one prompt, step by step: every beam that ever went on or ended, as paths from the left."""
    finished = steps[-1].finished
    kept = {beam.tokens for step in steps for beam in (*step.running, *step.finished)}
    nodes = sorted({tokens[:end] for tokens in kept for end in range(len(tokens) + 1)})
    leaves = [node for node in nodes if not any(other[: len(node)] == node and other != node for other in nodes)]
    rank = {beam.tokens: place for place, beam in enumerate(finished, start=1)}
    height = {leaf: place for place, leaf in enumerate(sorted(leaves, key=lambda leaf: (rank.get(leaf[:1], 0), leaf)))}
    for node in sorted(nodes, key=len, reverse=True):
        below = [height[other] for other in nodes if len(other) == len(node) + 1 and other[:-1] == node]
        height.setdefault(node, sum(below) / len(below) if below else 0)
    depth, label = max(map(len, nodes)), Labels()
    figure, axis = canvas(1.5 + 1.05 * depth, 0.8 + 0.3 * len(leaves))
    winner = finished[0].tokens if finished else ()
    for node in nodes[1:]:
        ends = any(node == text for text in rank)
        color = COLORS[0] if node == winner[: len(node)] else COLORS[5] if ends else "0.6"
        wins = color == COLORS[0]
        axis.plot(
            [len(node) - 1, len(node)], [height[node[:-1]], height[node]], color=color, linewidth=2.2 if wins else 0.9
        )
        text = label(pieces[node[-1]]) + (f"  ({rank[node]})" if ends else "")
        axis.text(len(node), height[node], text, color=color if wins or ends else "0.35", fontsize=8, ha="center",
                  va="center", bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
    axis.text(0, height[()], "prompt", fontsize=8, ha="center", va="center", bbox={"facecolor": "white", "pad": 2})
    axis.set(xlabel="new tokens", yticks=[], xlim=(-0.5, depth + 0.7), ylim=(len(leaves) - 0.4, -0.6))
    axis.spines[["left", "right", "top"]].set_visible(False)
    axis.set_title(title, fontsize=10)
    numbers = {beam.tokens: beam.score for beam in finished}
    best = "".join(pieces[token] for token in winner).replace("▁", " ").strip()
    said = f"of {len(leaves)} paths {len(finished)} are finished, the best “{best}” with score {finished[0].score:.2f}"
    return figure, numbers, f"{title}: {said}; grey ones were given up.{label.legend()}"
