"""Figures of training and of generation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from ...inference.generation import Beams
from .figure import COLORS, Labels, Parts, captioned, quoted, subplots


@captioned
def training_curves(histories: Mapping[str, Sequence[Mapping[str, float]]], *, title: str = "Training") -> Parts:
    """The histories of training.loop.fit, by name: each step's loss, its mean over 10% of the steps, learning rate."""
    figure, (left, right) = subplots(9, 3, 1, 2, width_ratios=[2, 1])
    phrases, means = [], {}
    for color, style, (name, history) in zip(COLORS * 9, ("-", "--", ":", "-.") * 9, histories.items(), strict=False):
        steps, losses, rates = ([entry[key] for entry in history] for key in ("step", "loss", "lr"))
        known = [(step, loss) for step, loss in zip(steps, losses, strict=True) if not math.isnan(loss)]
        window = max(1, math.ceil(len(known) / 10))
        recent = [[loss for _, loss in known[max(0, i + 1 - window) : i + 1]] for i in range(len(known))]
        means[name] = smoothed = [sum(x) / len(x) for x in recent]
        left.plot(steps, losses, color=color, alpha=0.25, linewidth=0.7)
        left.plot([step for step, _ in known], smoothed, style, color=color, label=name)
        right.plot(steps, rates, style, color=color)
        phrases.append(f"{name} from {smoothed[0]:.2f} to {smoothed[-1]:.2f} in {history[-1]['seconds']:.0f} s")
    left.set(xlabel="step", ylabel="loss (nats)", ylim=(0, None))
    right.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    left.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure, means, f"{title}, mean loss: {'; '.join(phrases)}."


@captioned
def distributions(
    probabilities: Mapping[str, Tensor], vocabulary: Sequence[str], *, top: int = 12,
    title: str = "Next-token probabilities",
) -> Parts:  # fmt: skip
    """Distributions over a vocabulary, `v` each, by name: the `top` most probable tokens of the first."""
    first = next(iter(probabilities.values()))
    ids = first.topk(min(top, len(first))).indices.tolist()
    data = {name: one.detach().float().cpu()[ids] for name, one in probabilities.items()}
    figure, axes = subplots(1.6 + 1.7 * len(data), 1.0 + 0.21 * len(ids), 1, len(data), sharey=True, squeeze=False)
    label, phrases = Labels(), []
    for axis, color, (name, one) in zip(axes[0], COLORS * 9, probabilities.items(), strict=False):
        axis.barh(range(len(ids)), data[name].tolist(), color=color)
        axis.set_title(name, fontsize=9)
        axis.set(xlim=(0, 1), xlabel="probability", ylim=(len(ids) - 0.4, -0.6))
        for row, value in enumerate(data[name].tolist()):
            if value == 0:
                axis.text(0.02, row, "cut off", fontsize=7, va="center", color="0.4")
        best = f"{float(one.max()):.0%} for {quoted(vocabulary[int(one.argmax())])}"
        phrases.append(f"{name} {best}, {int((one > 0).sum()):,} possible")
    axes[0, 0].set_yticks(range(len(ids)), [label(vocabulary[i]) for i in ids], fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure, data, f"{title}: {'; '.join(phrases)}.{label.legend(figure)}"


@captioned
def beam_tree(steps: Sequence[Beams], vocabulary: Sequence[str], *, title: str = "Beam search") -> Parts:
    """generation.beams of one prompt, step by step: a tree of all hypotheses, from left to right."""
    finished = steps[-1].finished
    kept = {beam.tokens for step in steps for beam in (*step.running, *step.finished)}
    nodes = sorted({tokens[:end] for tokens in kept for end in range(len(tokens) + 1)})
    children = {node: [x for x in nodes if x and x[:-1] == node] for node in nodes}
    rank = {beam.tokens: i for i, beam in enumerate(finished, start=1)}
    leaves = sorted((node for node in nodes if not children[node]), key=lambda x: (rank.get(x[:1], 0), x))
    height = {leaf: float(i) for i, leaf in enumerate(leaves)}
    for node in sorted(nodes, key=len, reverse=True):
        below = [height[child] for child in children[node]]
        height.setdefault(node, sum(below) / max(1, len(below)))
    depth, label = max(map(len, nodes)), Labels()
    figure, axis = subplots(1.5 + 1.05 * depth, 0.8 + 0.3 * len(leaves))
    best = finished[0].tokens if finished else ()
    for node in nodes[1:]:
        is_best = node == best[: len(node)]
        color, text_color = (COLORS[0],) * 2 if is_best else (COLORS[5],) * 2 if node in rank else ("0.6", "0.35")
        x, y = [len(node) - 1, len(node)], [height[node[:-1]], height[node]]
        axis.plot(x, y, color=color, linewidth=2.2 if is_best else 0.9)
        text = label(vocabulary[node[-1]]) + (f"  ({rank[node]})" if node in rank else "")
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axis.text(x[1], y[1], text, color=text_color, fontsize=8, ha="center", va="center", bbox=box)
    axis.text(0, height[()], "prompt", fontsize=8, ha="center", va="center", bbox={"facecolor": "white", "pad": 2})
    axis.set(xlabel="new tokens", yticks=[], xlim=(-0.5, depth + 0.7), ylim=(len(leaves) - 0.4, -0.6))
    axis.spines[["left", "right", "top"]].set_visible(False)
    axis.set_title(title, fontsize=10)
    text = "".join(vocabulary[token] for token in best).replace("▁", " ").strip()
    caption = f"{title}: {len(finished)} of {len(leaves)} hypotheses are finished, the best “{text}” with score"
    caption += f" {finished[0].score:.2f}; grey ones were pruned.{label.legend(figure)}"
    return figure, {beam.tokens: beam.score for beam in finished}, caption
