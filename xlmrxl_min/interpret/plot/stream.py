"""Figures of the residual stream, and of experiments on it: logit lens, effects, saliency, translation retrieval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.patches import Patch
from torch import Tensor

from ..cross_lingual import Retrieval
from ..stream import Contributions, LogitLens
from .figure import (
    CHANGE,
    COLORS,
    Labels,
    Parts,
    argmax,
    captioned,
    heatmap,
    label_ticks,
    layer_head_ticks,
    pool_columns,
    pooled,
    quoted,
    subplots,
    token_axis,
)


@captioned
def residual_norms(parts: Contributions, *, title: str = "The residual stream") -> Parts:
    """interpret.contributions: the stream's norm after each branch, and each branch's fraction; means over tokens."""
    norms, fractions = (x.flatten(1).float().cpu() for x in (parts.stream_norm, parts.fraction))  # c (b t) each
    means, at = norms.mean(1), range(len(parts.names))
    figure, (left, right) = subplots(9, 3.2, 1, 2)
    low, high = norms.amin(1).tolist(), norms.amax(1).tolist()
    left.fill_between(at, low, high, color=COLORS[0], alpha=0.2, linewidth=0, label="all tokens")
    left.plot(at, means.tolist(), "o-", color=COLORS[0], markersize=3, label="mean")
    left.legend(frameon=False, fontsize=8)
    left.set(ylabel="L2 norm of the stream", ylim=(0, None))
    kinds = [name.rsplit(" ", 1)[0] for name in parts.names]
    colors = dict(zip(dict.fromkeys(kinds), COLORS, strict=False))
    right.bar(at, fractions.mean(1).tolist(), color=[colors[kind] for kind in kinds])
    right.axhline(0, color="black", linewidth=0.5)
    right.set(ylabel="fraction of the final stream")
    right.legend([Patch(color=color) for color in colors.values()], colors, frameon=False, fontsize=8)
    every = 1 if len(parts.names) < 20 else 6
    for axis in (left, right):
        label_ticks(axis, [name if i % every == 0 else "" for i, name in enumerate(parts.names)])
    figure.suptitle(title, fontsize=10)
    by_kind = {kind: float(fractions[[k == kind for k in kinds]].sum(0).mean()) for kind in colors}
    caption = f"{title}: its mean L2 norm goes from {means[0]:.1f} to {means[-1]:.1f}; of the final stream, "
    caption += ", ".join(f"{part:.0%} comes from {kind}" for kind, part in by_kind.items())
    return figure, {"norm": means, "fractions": by_kind}, f"{caption}."


@captioned
def logit_lens(
    lens: LogitLens, predictions: Sequence[Sequence[str]], targets: Sequence[str], *, title: str = "Logit lens"
) -> Parts:
    """interpret.logit_lens as a table; predictions: the tokens of lens.top_ids, l lists of n; targets: n tokens."""
    label, values = Labels(), lens.probability.float().cpu()
    layers, width = values.shape
    figure, axis = subplots(2.2 + 1.1 * width, 1.3 + 0.42 * layers)
    rows = ["embeddings", *(f"after layer {i}" for i in range(layers - 1))]
    heading = f"{title}: top prediction, and rank of the target"
    heatmap(axis, values, "probability of the target", title=heading, rows=rows, vmax=1)
    for layer in range(layers):
        for n in range(width):
            text = f"{label(predictions[layer][n])}\nrank {int(lens.rank[layer, n]):,}"
            color = "white" if values[layer, n] < 0.6 else "black"
            axis.text(n, layer, text, ha="center", va="center", fontsize=7, color=color, linespacing=1.2)
    axis.set_xticks(range(width), list(map(label, targets)), fontsize=8)
    phrases = []
    for n, name in enumerate(targets):
        first = (lens.rank[:, n] == 1).tolist()
        since = next((i for i in range(layers) if all(first[i:])), None)
        when = "never" if since is None else f"from {rows[since].removeprefix('after ')} on"
        phrases.append(f"{quoted(name)} {when}")
    data = {"probability": values, "rank": lens.rank.cpu(), "divergence": lens.divergence.cpu()}
    return figure, data, f"{title}: the target has rank 1: {', '.join(phrases)}.{label.legend(figure)}"


@captioned
def effects(
    values: Tensor, tokens: Sequence[str] | None = None, *, title: str = "Ablation", unit: str = "change in score"
) -> Parts:
    """The effect on a score of each head (`l h`) or, with `tokens`, of each layer and position (`l t`)."""
    label, columns = Labels(), None if tokens is None else token_axis(tokens)
    if columns is None:
        values = values.detach().float().cpu()
        figure, axis = subplots(2.5 + 0.42 * min(16, values.shape[1]), 1.4 + min(7.0, 0.34 * len(values)))
        layer_head_ticks(axis, values)
    else:
        values = pool_columns(values, columns)
        figure, axis = subplots(2.5 + 0.2 * len(columns.names), 1.6 + 0.28 * len(values))
        label_ticks(axis, map(label, columns.names), (f"layer {i}" for i in range(len(values))))
    note, limit = columns.note if columns else "", float(values.nan_to_num(0).abs().max()) or 1.0
    heading = title + (f"\n({note}, summed)" if note else "")
    heatmap(axis, values, unit, title=heading, cmap=CHANGE, vmin=-limit, vmax=limit)
    axis.set_facecolor("#DDDDDD")  # NaN: a pruned head
    row, column = argmax(values.abs())
    where = columns.describe(column) if columns else f"head {column}"
    caption = f"{title}: the largest effect is {values[row, column]:+.2f} ({unit}), of layer {row}, {where}."
    return figure, {"effects": values}, f"{caption}{pooled(note)}{label.legend(figure)}"


@captioned
def saliency(scores: Mapping[str, Tensor], tokens: Sequence[str], *, title: str = "Saliency") -> Parts:
    """Attributions by one or more methods, `t` each, side by side over the tokens; each on its own scale."""
    rows, label = token_axis(tokens), Labels()
    width, height = 2 + 2.2 * len(scores), 1.1 + 0.19 * len(rows.names)
    figure, axes = subplots(width, height, 1, len(scores), squeeze=False, sharey=True)
    phrases, data = [], {}
    for axis, (name, attributions) in zip(axes[0], scores.items(), strict=True):
        data[name] = values = pool_columns(attributions[None], rows)[0]
        axis.barh(range(len(values)), values.tolist(), color=[COLORS[5 if x < 0 else 0] for x in values.tolist()])
        axis.axvline(0, color="black", linewidth=0.5)
        axis.set_title(name, fontsize=9)
        axis.tick_params(axis="x", labelsize=7)
        axis.locator_params(axis="x", nbins=3)
        top = int(values.abs().argmax())
        phrases.append(f"{rows.describe(top)} ({values[top]:+.2f}) by {name}")
    axes[0, 0].set_ylim(len(rows.names) - 0.5, -0.5)
    label_ticks(axes[0, 0], rows=map(label, rows.names))
    figure.suptitle(title + (f" ({rows.note}, summed)" if rows.note else ""), fontsize=10)
    figure.supxlabel("blue (right): raises the score; red (left): lowers it", fontsize=8)
    return figure, data, f"{title}: largest for {', '.join(phrases)}.{pooled(rows.note)}{label.legend(figure)}"


@captioned
def retrieval_curves(found: Mapping[str, Retrieval], *, title: str = "Translation retrieval") -> Parts:
    """interpret.retrieval by layer, for one or more pairs of languages."""
    figure, (left, right) = subplots(9, 3.2, 1, 2)
    for color, marker, (name, one) in zip(COLORS * 9, "osD^vP*X" * 9, found.items(), strict=False):
        layers = range(len(one.accuracy))
        left.plot(layers, one.accuracy.tolist(), "-", marker=marker, markersize=4, color=color, label=name)
        right.plot(layers, one.translation_cosine.tolist(), "-", marker=marker, markersize=4, color=color)
        right.plot(layers, one.other_cosine.tolist(), ":", marker=marker, markersize=3, color=color)
    left.set(ylabel="retrieval accuracy", ylim=(0, 1.03))
    right.set(ylabel="mean cosine")
    right.set_title("solid: with the translation; dotted: with other texts", fontsize=9)
    for axis in (left, right):
        axis.set(xlabel="number of layers (0: embeddings)")
        axis.xaxis.get_major_locator().set_params(integer=True)
    left.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    data = {name: one.accuracy.cpu() for name, one in found.items()}
    phrases = [f"{name} {one.max():.0%} (after {int(one.argmax())} layers)" for name, one in data.items()]
    return figure, data, f"{title}: the best accuracy is, for {', '.join(phrases)}."
