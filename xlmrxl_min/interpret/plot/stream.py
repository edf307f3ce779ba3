"""Figures of the residual stream, and of experiments on it: logit lens, effects, saliency, translation retrieval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.patches import Patch
from torch import Tensor

from ...inputs import as_fields, as_named, as_rows, as_table, as_tokens, as_values, check_text, check_type
from ..cross_lingual import Retrieval
from ..stream import Contributions, LogitLens
from .figure import (
    CHANGE,
    COLORS,
    INK,
    Labels,
    Parts,
    argmax,
    captioned,
    check_known,
    extra_size,
    heatmap,
    is_constant,
    label_ticks,
    layer_head_ticks,
    pool_columns,
    pooled,
    quoted,
    set_suptitle,
    set_title,
    subplots,
    token_axis,
    wrapped,
)


@captioned
def residual_norms(parts: Contributions, *, title: str = "The residual stream") -> Parts:
    """interpret.contributions: the stream's norm after each branch, and each branch's fraction; means over tokens."""
    check_type("parts", parts, Contributions, "what interpret.contributions returns")
    values = as_table({name: getattr(parts, name) for name in ("stream_norm", "fraction")}, "parts", "parts", "c b t")
    norms, fractions = (x.flatten(1) for x in values.values())  # c (b t) each
    names = as_tokens(parts.names, len(norms), "parts.names")
    means, at = norms.mean(1), range(len(names))
    figure, (left, right) = subplots(9, 3.2, 1, 2)
    low, high = norms.amin(1).tolist(), norms.amax(1).tolist()
    left.fill_between(at, low, high, color=COLORS[0], alpha=0.2, linewidth=0, label="all tokens")
    left.plot(at, means.tolist(), "o-", color=COLORS[0], markersize=3, label="mean")
    left.legend(frameon=False, fontsize=8)
    left.set(ylabel="L2 norm of the stream", ylim=(0, None))
    kinds = [name.rsplit(" ", 1)[0] for name in names]
    colors = dict(zip(dict.fromkeys(kinds), COLORS * len(kinds), strict=False))
    right.bar(at, fractions.mean(1).tolist(), color=[colors[kind] for kind in kinds])
    right.axhline(0, color=INK, linewidth=0.5)
    right.set(ylabel="fraction of the final stream")
    patches = [Patch(color=color) for color in colors.values()]
    right.legend(patches, [wrapped(kind, 3) for kind in colors], frameon=False, fontsize=8)
    every = 1 if len(names) < 20 else 6
    for axis in (left, right):
        label_ticks(axis, [wrapped(name, 2) if i % every == 0 else "" for i, name in enumerate(names)])
    set_suptitle(figure, title)
    by_kind = {kind: float(fractions[[k == kind for k in kinds]].sum(0).mean()) for kind in colors}
    caption = f"{title}: its mean L2 norm goes from {means[0]:.1f} to {means[-1]:.1f}; of the final stream, "
    caption += ", ".join(f"{part:.0%} comes from {kind}" for kind, part in by_kind.items())
    return figure, {"norm": means, "fractions": by_kind}, f"{caption}."


@captioned
def logit_lens(
    lens: LogitLens, predictions: Sequence[Sequence[str]], targets: Sequence[str], *, title: str = "Logit lens"
) -> Parts:
    """interpret.logit_lens as a table; predictions: the tokens of lens.top_ids, l lists of n; targets: n tokens."""
    lens = as_fields(LogitLens, lens, "lens", "l n")
    label, in_cell, values = Labels(), Labels(14), lens.probability
    layers, width = values.shape
    targets = as_tokens(targets, width, "targets")
    predictions = as_rows(predictions, "predictions", "lists of strings, one for each layer")
    if len(predictions) != layers:
        raise ValueError(f"predictions has {len(predictions)} lists, but there are {layers} layers: pass one for each.")
    predictions = [as_tokens(row, width, f"predictions[{layer}]") for layer, row in enumerate(predictions)]
    in_cell.numbered = label.numbered  # the same numbers
    below = list(map(label, targets))
    figure, axis = subplots(2.2 + 1.1 * width, 1.3 + 0.42 * layers)
    rows = ["embeddings", *(f"after layer {i}" for i in range(layers - 1))]
    heading = f"{title}: top prediction, and rank of the target"
    heatmap(axis, values, "probability of the target", title=heading, rows=rows, vmax=1)
    for layer in range(layers):
        for n in range(width):
            text = f"{in_cell(predictions[layer][n])}\nrank {int(lens.rank[layer, n]):,}"
            color = "white" if values[layer, n] < 0.6 else "black"
            axis.text(n, layer, text, ha="center", va="center", fontsize=7, color=color, linespacing=1.2)
    axis.set_xticks(range(width), below, fontsize=8)
    phrases = []
    for n, name in enumerate(targets):
        first = (lens.rank[:, n] == 1).tolist()
        since = next((i for i in range(layers) if all(first[i:])), None)
        when = "never" if since is None else f"from {rows[since].removeprefix('after ')} on"
        phrases.append(f"{quoted(name)} {when}")
    data = {"probability": values, "rank": lens.rank.long(), "divergence": lens.divergence}
    return figure, data, f"{title}: the target has rank 1: {', '.join(phrases)}.{label.legend(figure)}"


@captioned
def effects(
    values: Tensor, tokens: Sequence[str] | None = None, *, title: str = "Ablation", unit: str = "change in score"
) -> Parts:
    """The effect on a score of each head (`l h`) or, with `tokens`, of each layer and position (`l t`).

    NaN is a pruned head: its cell is grey.
    """
    values = as_values(values, "values", "l h" if tokens is None else "l t", may_lack_values=tokens is None)
    check_known(values, "values")
    check_text(unit, "unit")
    label, columns = Labels(), None if tokens is None else token_axis(as_tokens(tokens, values.shape[1]))
    if columns is None:
        figure, axis = subplots(2.5 + 0.42 * min(16, values.shape[1]), 1.4 + min(7.0, 0.34 * len(values)))
        layer_head_ticks(axis, values)
    else:
        values = pool_columns(values, columns)
        below = list(map(label, columns.names))
        figure, axis = subplots(2.5 + 0.2 * len(below), 1.6 + 0.28 * len(values) + extra_size(below))
        label_ticks(axis, below, (f"layer {i}" for i in range(len(values))))
    note, limit = columns.note if columns else "", float(values.nan_to_num(0).abs().max()) or 1.0
    summed = f"{note}, summed" if note else ""
    heatmap(axis, values, wrapped(unit, 2), title=title, note=summed, cmap=CHANGE, vmin=-limit, vmax=limit)
    row, column = argmax(values.abs())
    where = columns.describe(column) if columns else f"head {column}"
    caption = f"{title}: the largest effect is {values[row, column]:+.2f} ({unit}), of layer {row}, {where}."
    caption = f"{title}: all effects are {values[row, column]:+.2f} ({unit})." if is_constant(values) else caption
    return figure, {"effects": values}, f"{caption}{pooled(note)}{label.legend(figure)}"


@captioned
def saliency(scores: Mapping[str, Tensor], tokens: Sequence[str], *, title: str = "Saliency") -> Parts:
    """Attributions by one or more methods, `t` each, side by side over the tokens; each on its own scale."""
    methods = as_table(scores, "scores", "attributions", "t")
    rows, label = token_axis(as_tokens(tokens, len(next(iter(methods.values()))))), Labels()
    left = list(map(label, rows.names))
    width, height = 2 + 2.2 * len(methods) + extra_size(left), 1.1 + 0.19 * len(left)
    figure, axes = subplots(width, height, 1, len(methods), squeeze=False, sharey=True)
    phrases, data = [], {}
    for axis, (name, attributions) in zip(axes[0], methods.items(), strict=True):
        data[name] = values = pool_columns(attributions[None], rows)[0]
        axis.barh(range(len(values)), values.tolist(), color=[COLORS[5 if x < 0 else 0] for x in values.tolist()])
        axis.axvline(0, color=INK, linewidth=0.5)
        axis.set_axisbelow(True)
        axis.grid(axis="y", color=INK, alpha=0.3, linewidth=0.6)  # from the tokens to the bars
        set_title(axis, name)
        axis.tick_params(axis="x", labelsize=7)
        axis.locator_params(axis="x", nbins=3)
        top = int(values.abs().argmax())
        where = "all tokens alike" if is_constant(values) else rows.describe(top)
        phrases.append(f"{where} ({values[top]:+.2f}) by {name}")
    axes[0, 0].set_ylim(len(left) - 0.5, -0.5)
    label_ticks(axes[0, 0], rows=left)
    set_suptitle(figure, title + (f" ({rows.note}, summed)" if rows.note else ""))
    figure.supxlabel("blue (right): raises the score; red (left): lowers it", fontsize=8)
    return figure, data, f"{title}: largest for {', '.join(phrases)}.{pooled(rows.note)}{label.legend(figure)}"


@captioned
def retrieval_curves(found: Mapping[str, Retrieval], *, title: str = "Translation retrieval") -> Parts:
    """interpret.retrieval by layer, for one or more pairs of languages: all accuracies, and each pair's cosines."""
    pairs = as_named(found, "found", "pairs of languages")
    curves = {name: as_fields(Retrieval, one, f"found[{name!r}]", "l") for name, one in pairs.items()}
    widths = [2.4, *[1] * len(curves)]
    figure, (left, *others) = subplots(3.6 + 1.7 * len(curves), 3.2, 1, len(widths), width_ratios=widths)
    for i, (axis, (name, one)) in enumerate(zip(others, curves.items(), strict=True)):
        color, marker, layers = COLORS[i % len(COLORS)], "osD^vP*X"[i % 8], range(len(one.accuracy))
        left.plot(layers, one.accuracy.tolist(), "-", marker=marker, markersize=4, color=color, label=wrapped(name, 3))
        cosines = one.translation_cosine.tolist(), one.other_cosine.tolist()
        axis.plot(layers, cosines[0], "-", marker=marker, markersize=3, color=color)
        axis.plot(layers, cosines[1], ":", color=color)
        axis.fill_between(layers, *cosines, color=color, alpha=0.2, linewidth=0)
        if i:
            axis.sharey(others[0])
            axis.tick_params(labelleft=False)
        axis.set(xlabel="layers")
        axis.set_title(wrapped(name, 1.6), fontsize=9)
    left.set(ylabel="retrieval accuracy", ylim=(0, 1.03), xlabel="number of layers (0: embeddings)")
    others[0].set(ylabel="mean cosine; solid: with the\ntranslation, dotted: with other texts")
    for axis in (left, *others):
        axis.xaxis.get_major_locator().set_params(integer=True)
    left.legend(frameon=False, fontsize=8)
    set_suptitle(figure, title)
    data = {name: one.accuracy for name, one in curves.items()}
    phrases = [f"{name} {one.max():.0%} (after {int(one.argmax())} layers)" for name, one in data.items()]
    return figure, data, f"{title}: the best accuracy is, for {', '.join(phrases)}."
