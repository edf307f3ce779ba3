"""Charts of the notebooks, with captions made from their numbers, legible on a light and on a dark page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from torch import Tensor

from ..interpret.plot.figure import COLORS, INK, Labels, Parts, argmax, captioned, quoted, subplots
from .drawings import BLUE, NONE, canvas, grid, label

STYLES = ("-", "--", ":", "-.")


def charts(width: float, height: float, *args: Any, **kwargs: Any) -> tuple[Figure, Any]:
    figure, axes = subplots(width, height, *args, squeeze=False, **kwargs)
    for axis in axes.flat:
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def name_axes(axis: Any, xlabel: str = "", ylabel: str = "", title: str = "") -> None:
    axis.set_xlabel(xlabel, fontsize=8)
    axis.set_ylabel(ylabel, fontsize=8)
    axis.set_title(title, fontsize=9)


def mark_line(axis: Any, name: str, x: float, y: float, va: str) -> None:
    """A dotted line at x, and its name at y: on the right, or on the left where there is no room."""
    axis.axvline(x, color=INK, linewidth=1.3, linestyle=":")
    left, right = axis.get_xlim()
    shift, ha = (-5, "right") if x > left + 0.7 * (right - left) else (5, "left")
    axis.annotate(name, (x, y), (shift, 0), textcoords="offset points", ha=ha, va=va, fontsize=8)


@captioned
def bars(values: Mapping[str, Mapping[str, float]], ylabel: str) -> Parts:
    """Fractions in groups, group -> name -> fraction, with the same names in each group."""
    figure, [[axis]] = charts(8.4, 2.5, 1, 1)
    names, top = list(next(iter(values.values()))), max(max(group.values()) for group in values.values())
    width = 0.8 / len(names)
    for n, name in enumerate(names):
        x = [i + width * (n - (len(names) - 1) / 2) for i in range(len(values))]
        shown = axis.bar(x, [group[name] for group in values.values()], 0.92 * width, color=COLORS[n], label=name)
        axis.bar_label(shown, [f"{group[name]:.0%}" for group in values.values()], padding=2, fontsize=8, color=INK)
    axis.set_xticks(range(len(values)), list(values))
    axis.set_ylim(0, 1.15 * top)
    axis.yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
    axis.yaxis.set_major_formatter(lambda y, _: f"{round(100 * y, 6):g}%")
    name_axes(axis, ylabel=ylabel)
    if len(names) > 1:
        figure.legend(loc="outside right center", frameon=False, fontsize=8, labelcolor=INK)
    phrases = [
        f"{' '.join(group.split())}: " + ", ".join(f"{n} {x:.1%}" for n, x in of.items())
        for group, of in values.items()
    ]
    return figure, dict(values), f"{ylabel[:1].upper()}{ylabel[1:]}, {'; '.join(phrases)}."


@captioned
def curves(
    values: Sequence[Tensor], x: Sequence[float], lines: Sequence[str], rows: Sequence[str] = ("",),
    columns: Sequence[str] = ("",), *, xlabel: str, ylabel: str, percent: bool = False, mark: float | None = None,
    log: bool = False,
) -> Parts:  # fmt: skip
    """Lines in a grid of panels: for each row a tensor (columns) (lines) (x); a dotted line at `mark`; log: of y.

    The caption has the ends of each line of a single panel, and of a grid the largest value of each row.
    """
    single = len(rows) == len(columns) == 1
    size = (7.2, 2.8) if single else (10.0, 0.5 + 1.35 * len(rows))
    figure, axes = charts(*size, len(rows), len(columns), sharex=True, sharey=True)

    def text(value: float) -> str:
        if percent:
            return f"{100 * value:.2g}%" if log and value < 0.1 else f"{value:.0%}"
        return f"{round(value, 2) + 0.0:.2f}"  # not -0.00

    phrases: list[str] = []
    handles: list[Any] = []
    for i, (name, of) in enumerate(zip(rows, values, strict=True)):
        for j, panel in enumerate(of):
            axis = axes[i, j]
            styles = STYLES * len(lines) if single else ("-",) * len(lines)
            drawn_lines = [
                axis.plot(x, line.tolist(), style, color=color, linewidth=1.4)[0]
                for line, style, color in zip(panel, styles, COLORS, strict=False)
            ]
            handles = max(handles, drawn_lines, key=len)
            if mark is not None:
                axis.axvline(mark, color=INK, linewidth=0.8, linestyle=":")
            if log:
                axis.set_yscale("log")
                axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.yaxis.set_minor_formatter(NullFormatter())
            if percent:
                axis.yaxis.set_major_formatter(lambda y, _: text(y))
            is_last = i == len(rows) - 1 and j == len(columns) // 2
            name_axes(axis, xlabel * is_last, f"{name}\n{ylabel}".strip() * (not j), columns[j] * (not i))
        for axis in axes[i, len(of) :]:
            axis.set_visible(False)
        panel, best = argmax(of.flatten(1))
        where = f"{columns[panel]}, {lines[best // len(x)]}, at {x[best % len(x)]:+g}"
        phrases.append(f"{name}: the largest is {text(float(of.max()))} ({where})")
    if single:
        ends = [(name, *line[[0, -1]].tolist()) for name, line in zip(lines, values[0][0], strict=True)]
        phrases = [f"{name} {text(first)} at {x[0]:g}, {text(last)} at {x[-1]:g}" for name, first, last in ends]
    figure.legend(handles, lines[: len(handles)], loc="outside right center", frameon=False, fontsize=8, labelcolor=INK)
    return figure, {"values": values}, f"{ylabel[:1].upper()}{ylabel[1:]}, {'; '.join(phrases)}."


@captioned
def sizes(parameters: Mapping[str, int]) -> Parts:
    """Models as squares whose areas are proportional to their numbers of parameters, the smallest first."""
    figure, axis = canvas(9.4, 2.7)
    names = sorted(parameters, key=lambda name: parameters[name])
    smallest, largest = (parameters[names[i]] for i in (0, -1))
    x = 0.2
    for name, color in zip(names, COLORS, strict=False):
        number, side = parameters[name], 2.3 * math.sqrt(parameters[name] / largest)
        axis.add_patch(Rectangle((x, 0.2), side, side, facecolor=color))
        text = f"{name}\n{number:,} parameters\n{2 * number / 1e9:.2f} GB in bfloat16"
        label(axis, x + side + 0.12, 0.45, text, "left", linespacing=1.4)
        x += side + 1.85
    times = [f"{name} has {parameters[name] / smallest:,.0f} times as many parameters as {names[0]}" for name in names]
    caption = f"The area of a square is proportional to the number of parameters: {', '.join(times[1:])}."
    return figure, {name: parameters[name] / smallest for name in names}, caption


@captioned
def weights(values: Tensor, tokens: Sequence[str], title: str) -> Parts:
    """Attention weights of a short text, `q k`, with the percents in the cells; a weight of exactly 0 is left blank."""
    label_of = Labels()
    names = list(map(label_of, tokens))
    margin, size = 0.2 + 0.075 * max(map(len, names)), 0.3 * len(names)
    figure, axis = canvas(max(4.6, margin + size + 0.2), margin + size + 0.75)

    def look(weight: float) -> tuple[str, Any]:  # from white to blue
        color = [1 - weight * (1 - part) for part in to_rgb(BLUE)]
        return f"{100 * weight:.0f}" if weight else "", color if weight >= 0.005 else NONE

    grid(axis, margin, 0.35 + size, names, names, [[look(weight) for weight in row] for row in values.tolist()])
    label(axis, margin, margin + size + 0.55, title, "left", weight="bold")
    label(axis, margin, 0.12, "rows: queries; columns: keys; weights in %", "left")
    q, k = argmax(values)
    caption = f"{title}: the largest weight is {values[q, k]:.0%}, from query {quoted(tokens[q])} to key"
    return figure, {"weights": values}, f"{caption} {quoted(tokens[k])}.{label_of.legend(figure)}"


@captioned
def stacked_bars(
    values: Mapping[str, Mapping[str, float]], xlabel: str, marks: Mapping[str, float] | None = None
) -> Parts:  # fmt: skip
    """Bars of parts, bar -> part -> amount, from above; a dotted line for each mark, name -> amount."""
    figure, [[axis]] = charts(9.4, 0.8 + 0.3 * len(values), 1, 1)
    parts = list(dict.fromkeys(part for bar in values.values() for part, amount in bar.items() if amount))
    totals = {name: sum(bar.values()) for name, bar in values.items()}
    for n, part in enumerate(parts):
        amounts = [bar.get(part, 0.0) for bar in values.values()]
        left = [sum(bar.get(before, 0.0) for before in parts[:n]) for bar in values.values()]
        axis.barh(range(len(values)), amounts, 0.75, left=left, color=COLORS[n], label=part)
    for i, total in enumerate(totals.values()):
        axis.text(total, i, f" {total:,.0f}", va="center", fontsize=8)
    axis.set_yticks(range(len(values)), list(values))
    axis.set_ylim(len(values) - 0.5, -0.5 - 0.6 * bool(marks))
    for name, amount in (marks or {}).items():
        mark_line(axis, name, amount, -0.6, "baseline")
    name_axes(axis, xlabel=xlabel)
    figure.legend(loc="outside right center", frameon=False, fontsize=8, labelcolor=INK)
    phrases = [f"{name}: {total:,.1f}" for name, total in totals.items()]
    return figure, totals, f"{xlabel[:1].upper()}{xlabel[1:]}; {'; '.join(phrases)}."


@captioned
def held_over_time(parts: Mapping[str, Sequence[float]], ylabel: str, whole: float, turn: int) -> Parts:
    """Areas, name -> amount at each moment; dotted: `whole`; the backward pass starts at the moment `turn`."""
    figure, [[axis]] = charts(9.4, 2.6, 1, 1)
    moments = range(len(next(iter(parts.values()))))
    axis.stackplot(moments, list(parts.values()), labels=list(parts), colors=COLORS, step="mid")
    axis.axhline(whole, color=INK, linestyle=":")
    axis.text(0, 1.02 * whole, "the whole model", fontsize=8)
    axis.axvline(turn - 0.5, color=INK, linewidth=0.8)
    axis.set_xticks([turn / 2, (turn + len(moments)) / 2], ["forward →", "backward →"])
    axis.set_ylim(0, 1.15 * whole)
    name_axes(axis, ylabel=ylabel)
    figure.legend(loc="outside right center", frameon=False, fontsize=8, labelcolor=INK)
    total = [sum(now) for now in zip(*parts.values(), strict=True)]
    caption = f"{ylabel[:1].upper()}{ylabel[1:]}: {total[0]:.2f} before and {total[-1]:.2f} after the step, at most"
    return figure, {"total": total}, f"{caption} {max(total):.2f}; the whole model has {whole:.2f}."


@captioned
def memory_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]], xlabel: str, ylabel: str = "memory, GB", line: str = "",
    at: float = 0.0,
) -> Parts:  # fmt: skip
    """Gigabytes over time, name -> pairs of x and bytes; the dotted line, named `line`, is at so many bytes."""
    figure, [[axis]] = charts(8.6, 2.9, 1, 1)
    for (name, curve), style, color in zip(curves.items(), STYLES, COLORS, strict=False):
        x, size = zip(*curve, strict=True)
        axis.plot(x, [n / 1e9 for n in size], style, color=color, linewidth=1.6, label=name)
    if line:
        axis.axhline(at / 1e9, color=INK, linewidth=0.8, linestyle=(0, (1, 3)), label=line)
    high = axis.get_ylim()[1]
    axis.set_ylim(-0.03 * high, high)  # a curve at 0 is beside the axis, not on it
    name_axes(axis, xlabel, ylabel)
    figure.legend(loc="outside right center", frameon=False, fontsize=8, labelcolor=INK)
    peaks = {name: max(size for _, size in curve) for name, curve in curves.items()}
    phrases = [f"{name} {peak / 1e9:.2f} GB" for name, peak in peaks.items()]
    if line:
        phrases = [f"{phrase} ({peaks[name] / at:.2f} × {line})" for name, phrase in zip(peaks, phrases, strict=True)]
    return figure, peaks, f"Peaks: {', '.join(phrases)}."


@captioned
def dots(
    values: Mapping[str, Sequence[float]], xlabel: str, *, percent: bool = False, mark: tuple[str, float] | None = None
) -> Parts:
    """A row of dots for each name; a dotted line with a name at `mark`."""
    figure, [[axis]] = charts(8.4, 0.9 + 0.35 * len(values), 1, 1)

    def text(value: float) -> str:
        return f"{value:.1%}" if percent else f"{value:.2f}"

    for i, (row, color) in enumerate(zip(values.values(), COLORS, strict=False)):
        axis.plot(row, [i] * len(row), "o", color=color, alpha=0.6, markersize=7, markeredgecolor=NONE)
    axis.set_yticks(range(len(values)), list(values))
    axis.set_ylim(len(values) - 0.4, -0.6)
    if percent:
        axis.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    phrases = [f"{name} {text(min(row))} to {text(max(row))}" for name, row in values.items()]
    if mark is not None:
        mark_line(axis, *mark, -0.55, "top")
        phrases.append(f"{mark[0]} {text(mark[1])}")
    name_axes(axis, xlabel)
    return figure, dict(values), f"{xlabel[:1].upper()}{xlabel[1:]}: {'; '.join(phrases)}."


@captioned
def training_memory(traces: Mapping[str, Mapping[str, Any]]) -> Parts:
    """A step of training: a panel for each trace of memory.trace_step, name -> trace, with areas of its four parts."""
    figure, axes = charts(9.6, 3.0, 1, len(traces), sharey=True)
    phrases, peaks = [], {}
    for n, (axis, (name, trace)) in enumerate(zip(axes[0], traces.items(), strict=True)):
        parts = {part: [size / 1e6 for size in sizes] for part, sizes in trace.items() if part != "turns"}
        total = [sum(now) for now in zip(*parts.values(), strict=True)]
        axis.stackplot(range(len(total)), list(parts.values()), labels=list(parts), colors=COLORS)
        bounds = [0, *trace["turns"], len(total)]
        for start, end, phase in zip(bounds, bounds[1:], ("forward", "backward", "AdamW"), strict=False):
            axis.text((start + end) / 2, 1.02, phase, fontsize=8, ha="center", transform=axis.get_xaxis_transform())
            axis.axvline(end, color=INK, linewidth=0.8, linestyle=":")
        axis.set_xlim(0, len(total))
        axis.locator_params(axis="x", nbins=4)
        peak = max(range(len(total)), key=total.__getitem__)
        phase = "forward" if peak < bounds[1] else "backward" if peak < bounds[2] else "optimizer"
        peaks[name] = {"MB": total[peak], "phase": phase}
        phrases.append(f"{name}: at most {total[peak]:.0f} MB, in the {phase} {'step' if phase[0] == 'o' else 'pass'}")
        name_axes(axis, "operations", "MB" * (not n), f"{name}\n")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles[::-1], names[::-1], loc="outside right center", frameon=False, fontsize=8, labelcolor=INK)
    return figure, peaks, f"Memory of a training step, {'; '.join(phrases)}."


@captioned
def transfer(
    results: Mapping[str, Mapping[str, Mapping[str, float]]], chance: Mapping[str, Mapping[str, float]], *, trained: str
) -> Parts:
    """task -> start -> language -> fraction, a panel for each task, with a line at the chance level of each language.

    trained: the language with labels; means are over the others.
    """
    figure, axes = charts(9.4, 0.5 + 1.75 * len(results), len(results), 1, sharex=True, sharey=True)
    languages = list(dict.fromkeys(code for starts in results.values() for of in starts.values() for code in of))
    phrases, means, handles = [], {}, {}
    for axis, (task, starts) in zip(axes[:, 0], results.items(), strict=True):
        for i, code in enumerate(languages):
            if code in chance[task]:
                level = [chance[task][code]] * 2
                handles["chance"] = axis.plot([i - 0.4, i + 0.4], level, color=INK, linewidth=1.4)[0]
        for (start, of), marker, color, shift in zip(starts.items(), "o^s", COLORS, (-0.18, 0, 0.18), strict=False):
            x = [languages.index(code) + shift for code in of]
            handles[start] = axis.plot(x, of.values(), marker, color=color, markersize=6, markeredgecolor=NONE)[0]
        axis.axvline(languages.index(trained) + 0.5, color=INK, linewidth=0.8, linestyle=":")
        axis.set_ylim(-0.04, 1.04)
        axis.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
        axis.grid(axis="y", color=INK, alpha=0.2, linewidth=0.6)
        name_axes(axis, title=task)
        means[task] = {
            name: sum(x for code, x in of.items() if code != trained) / len({*of} - {trained})
            for name, of in {**starts, "chance": chance[task]}.items()
        }
        phrases.append(f"{task}: " + ", ".join(f"{name} {x:.0%}" for name, x in means[task].items()))
    axes[-1, 0].set_xticks(range(len(languages)), languages)
    axes[-1, 0].tick_params(axis="x", labelsize=9)
    figure.legend(handles.values(), handles, loc="outside right center", frameon=False, fontsize=8, labelcolor=INK)
    caption = f"Trained in {trained}; mean over the {len(languages) - 1} other languages, {'; '.join(phrases)}."
    return figure, means, caption
