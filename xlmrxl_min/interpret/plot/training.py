"""Figures of training and of generation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from torch import Tensor

from ...inference.generation import Beams
from ...inputs import as_named, as_sequence, as_table, as_tokens, check_integer, shown
from .figure import (
    COLORS,
    INK,
    MAX_LABELS,
    Labels,
    Parts,
    captioned,
    extra_size,
    quoted,
    readable,
    set_suptitle,
    set_title,
    subplots,
    wrapped,
)

UNIT = 1.05  # inches from one token of a beam to the next


@captioned
def training_curves(histories: Mapping[str, Sequence[Mapping[str, float]]], *, title: str = "Training") -> Parts:
    """The histories of training.loop.fit, by name: each step's loss, its mean over 10% of the steps, learning rate.

    Steps whose loss is not finite are left out, and the caption says how many.
    """
    runs = {name: as_history(x, name) for name, x in as_named(histories, "histories", "histories of fit").items()}
    figure, (left, right) = subplots(9, 3, 1, 2, width_ratios=[2, 1])
    phrases, means = [], {}
    for i, (name, history) in enumerate(runs.items()):
        color, style = COLORS[i % len(COLORS)], ("-", "--", ":", "-.")[i % 4]
        marker = "o" if len(history) == 1 else None  # a line of one point cannot be seen
        steps, losses, rates = ([entry[key] for entry in history] for key in ("step", "loss", "lr"))
        known = [(step, loss) for step, loss in zip(steps, losses, strict=True) if math.isfinite(loss)]
        window = max(1, math.ceil(len(known) / 10))
        recent = [[loss for _, loss in known[max(0, i + 1 - window) : i + 1]] for i in range(len(known))]
        means[name] = smoothed = [sum(x) / len(x) for x in recent]
        left.plot(steps, [x if math.isfinite(x) else math.nan for x in losses], color=color, alpha=0.25, linewidth=0.7)
        left.plot([step for step, _ in known], smoothed, style, marker=marker, color=color, label=wrapped(name, 3))
        right.plot(steps, rates, style, marker=marker, color=color)
        missing = len(history) - len(known)
        phrase = f"from {smoothed[0]:.2f} to {smoothed[-1]:.2f}" if known else "unknown"
        phrase += f" in {history[-1]['seconds']:.0f} s"
        phrases.append(
            f"{name} {phrase}" + (f" (loss not finite in {missing} of {len(history)} steps)" if missing else "")
        )
    left.set(xlabel="step", ylabel="loss (nats)", ylim=(0, None))
    right.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    left.legend(frameon=False, fontsize=8)
    set_suptitle(figure, title)
    return figure, means, f"{title}, mean loss: {'; '.join(phrases)}."


def as_history(history: Any, name: str) -> list[dict[str, float]]:
    keys = ("step", "loss", "lr", "seconds")
    entries = as_sequence(history, f"histories[{name!r}]", "entries, one for each step")
    for entry in entries:
        if not isinstance(entry, Mapping) or not all(isinstance(entry.get(key), Real) for key in keys):
            raise ValueError(
                f"histories[{name!r}] has {shown(entry)}, but must have a number for each of {', '.join(keys)}."
            )
    if not entries:
        raise ValueError(f"histories[{name!r}] has no step: pass what fit returned, with one or more.")
    return entries


@captioned
def distributions(
    probabilities: Mapping[str, Tensor], vocabulary: Sequence[str], *, top: int = 12,
    title: str = "Next-token probabilities",
) -> Parts:  # fmt: skip
    """Distributions over a vocabulary, `v` each, by name: the `top` most probable tokens of the first."""
    check_integer("top", top, 1, MAX_LABELS)
    wholes = as_table(probabilities, "probabilities", "distributions", "v")
    first = next(iter(wholes.values()))
    vocabulary = as_tokens(vocabulary, len(first), "vocabulary")
    for name, one in wholes.items():
        if one.min() < 0 or not 0 < one.sum() < 1.01:
            what = f"numbers from {one.min():.4g} to {one.max():.4g}, with the sum {one.sum():.4g}"
            raise ValueError(f"probabilities[{name!r}] has {what}, but must have probabilities: use softmax.")
    ids = first.topk(min(top, len(first))).indices.tolist()
    data, label, phrases = {name: one[ids] for name, one in wholes.items()}, Labels(), []
    left = [label(vocabulary[i]) for i in ids]
    width, height = 1.6 + 1.7 * len(data) + extra_size(left), 1.0 + 0.21 * len(ids)
    figure, axes = subplots(width, height, 1, len(data), sharey=True, squeeze=False)
    for i, (axis, (name, one)) in enumerate(zip(axes[0], wholes.items(), strict=True)):
        color = COLORS[i % len(COLORS)]
        axis.barh(range(len(ids)), data[name].tolist(), color=color)
        set_title(axis, name)
        axis.set(xlim=(0, 1), xlabel="probability", ylim=(len(ids) - 0.4, -0.6))
        for row, value in enumerate(data[name].tolist()):
            if value == 0:
                axis.text(0.02, row, "cut off", fontsize=7, va="center", color=INK)
        best = f"{float(one.max()):.0%} for {quoted(vocabulary[int(one.argmax())])}"
        phrases.append(f"{name} {best}, {int((one > 0).sum()):,} possible")
    axes[0, 0].set_yticks(range(len(ids)), left, fontsize=8)
    set_suptitle(figure, title)
    return figure, data, f"{title}: {'; '.join(phrases)}.{label.legend(figure)}"


@captioned
def beam_tree(steps: Sequence[Beams], vocabulary: Sequence[str], *, title: str = "Beam search") -> Parts:
    """What beam_search yields for one prompt, step by step: a tree of all hypotheses, from left to right."""
    steps = as_sequence(steps, "steps", "Beams, those of one prompt at each step")
    wrong = [step for step in steps if not isinstance(step, Beams)]
    kept = {beam.tokens for step in steps if not wrong for beam in (*step.running, *step.finished)}
    if wrong or not any(kept):
        what = f"a {type(wrong[0]).__name__}" if wrong else "no new token"
        raise ValueError(
            f"steps holds {what}, but must hold Beams of one prompt: take [beams[0] for beams in beam_search]."
        )
    vocabulary, finished = as_sequence(vocabulary, "vocabulary", "strings"), steps[-1].finished
    largest = max(max(tokens, default=0) for tokens in kept)
    if largest >= len(vocabulary) or not all(isinstance(vocabulary[i], str) for tokens in kept for i in tokens):
        needed = f"a string for each id up to {largest}: try tokenizer.convert_ids_to_tokens(range(len(tokenizer)))"
        raise ValueError(f"vocabulary has {len(vocabulary)} entries, but must have {needed}.")
    nodes = sorted({tokens[:end] for tokens in kept for end in range(len(tokens) + 1)})
    children = {node: [x for x in nodes if x and x[:-1] == node] for node in nodes}
    rank = {beam.tokens: i for i, beam in enumerate(finished, start=1)}
    leaves = [node for node in nodes if not children[node]]
    height = {leaf: float(i) for i, leaf in enumerate(leaves)}
    for node in sorted(nodes, key=len, reverse=True):
        below = [height[child] for child in children[node]]
        height.setdefault(node, sum(below) / max(1, len(below)))
    depth, label = max(map(len, nodes)), Labels(14)
    figure, axis = subplots(1.5 + UNIT * depth, 0.8 + 0.3 * len(leaves))
    best = finished[0].tokens if finished else ()
    texts = {node: label(vocabulary[node[-1]]) + (f"  ({rank[node]})" if node in rank else "") for node in nodes[1:]}
    texts = {(): "prompt", **texts}
    half = {node: (0.05 + 0.04 * len(text)) / UNIT for node, text in texts.items()}  # of a text's width, about
    for node in nodes:
        is_best = node == best[: len(node)]
        color = COLORS[0] if is_best else COLORS[5] if node in rank else INK
        weight = "bold" if is_best or node in rank else "normal"
        axis.text(len(node), height[node], texts[node], color=INK, fontsize=8, ha="center", va="center", weight=weight)
        if node:  # a line between the texts, and not behind them: there is no background that could cover it
            x = [len(node) - 1 + half[node[:-1]], len(node) - half[node]]
            axis.plot(x, [height[node[:-1]], height[node]], color=color, linewidth=2.2 if is_best else 0.9)
    axis.set(xlabel="new tokens", xticks=range(depth + 1), yticks=[])
    axis.set(xlim=(-0.5, depth + 0.7), ylim=(len(leaves) - 0.4, -0.6))
    axis.spines[["left", "right", "top"]].set_visible(False)
    set_title(axis, title)
    text = readable("".join(vocabulary[token] for token in best))
    caption = f"{title}: {len(finished)} of {len(leaves)} hypotheses are finished"
    caption += f", the best “{text}” with score {finished[0].score:.2f}; the others were pruned" if finished else ""
    caption += f".{label.legend(figure)}"
    return figure, {beam.tokens: beam.score for beam in finished}, caption
