"""What all figures share: captions, fonts and labels for every script, pooling of long texts, heatmaps.

Layers, heads and positions are counted from 0. Sizes and resolution are fixed. The colours can be told apart with any
colour vision: cividis for amounts, PuOr for changes, Okabe and Ito's colours for categories.
"""

from __future__ import annotations

import io
import math
import os
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeAlias

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ...utils import atomic_write, to_path
from ..metrics import merge_tokens

DPI = 90
AMOUNT, CHANGE = "cividis", "PuOr_r"
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#BBBBBB")  # Okabe and Ito 2008
MAX_LABELS = 64  # tokens along an axis; longer texts are pooled
FAMILIES = (
    "DejaVu Sans", "Noto Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans SC", "Noto Sans Devanagari",
    "Noto Sans Thai", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Bengali", "Noto Sans Tamil",
    "Noto Sans Telugu", "Noto Sans Kannada", "Noto Sans Malayalam", "Noto Sans Gujarati", "Noto Sans Gurmukhi",
    "Noto Sans Sinhala", "Noto Sans Myanmar", "Noto Sans Khmer", "Noto Sans Lao", "Noto Sans Georgian",
    "Noto Sans Armenian", "Noto Sans Ethiopic", "Hiragino Sans", "PingFang SC", "Yu Gothic", "Microsoft YaHei",
    "Malgun Gothic", "Nirmala UI", "Arial Unicode MS",
)  # fmt: skip
P = ParamSpec("P")
Parts: TypeAlias = "tuple[Figure, dict[Any, Any], str]"  # a figure, its data, its caption


class CaptionedFigure(NamedTuple):
    """A figure, its data, and a caption made from them. As the last line of a cell: the picture above its caption."""

    figure: Figure
    data: dict[Any, Any]
    caption: str

    def png(self) -> bytes:
        """For a notebook: in 256 colours, which halves the size of the committed file."""
        picture, small = io.BytesIO(), io.BytesIO()
        with matplotlib.rc_context(matplotlib.rcParamsDefault):
            self.figure.savefig(picture, format="png")
        Image.open(picture).convert("RGB").quantize(256).save(small, format="png", optimize=True)
        return small.getvalue()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a .png, .pdf or .svg file, by the suffix; after an error an old file is unchanged.

        Raises ValueError for another suffix or none, and OSError if the file cannot be written.
        """
        path = to_path(path)
        suffix = path.suffix.lower()
        if suffix[1:] not in self.figure.canvas.get_supported_filetypes():
            raise ValueError(f"{path} ends in {suffix or 'no suffix'}: name a file that ends in .png, .pdf or .svg.")
        with atomic_write(path) as (draft,), matplotlib.rc_context(matplotlib.rcParamsDefault):
            self.figure.savefig(draft, format=suffix[1:])

    def _ipython_display_(self) -> None:
        from IPython.display import display  # only IPython calls this

        data = {"image/png": self.png(), "text/plain": self.caption}
        display(data, metadata={"image/png": {"alt": self.caption}}, raw=True)
        print(textwrap.fill(self.caption, 96))  # a notebook would break lines inside words


def captioned(function: Callable[P, Parts]) -> Callable[P, CaptionedFigure]:
    """Make figures with fonts for as many scripts as are installed, and independent of the user's settings."""

    @wraps(function)
    def make(*args: P.args, **kwargs: P.kwargs) -> CaptionedFigure:
        with matplotlib.rc_context({**matplotlib.rcParamsDefault, "font.family": installed_fonts(), "font.size": 9}):
            return CaptionedFigure(*function(*args, **kwargs))

    return make


def subplots(width: float, height: float, *args: Any, **kwargs: Any) -> tuple[Figure, Any]:
    figure = Figure((width, height), dpi=DPI, layout="constrained")
    return figure, figure.subplots(*args, **kwargs)


# ---- labels


def installed_fonts() -> list[str]:
    installed = {entry.name for entry in font_manager.fontManager.ttflist}
    return [name for name in FAMILIES if name in installed]


def can_render(text: str) -> bool:
    """Whether the fonts have all characters, and matplotlib (from 3.11) joins and orders them where they need it."""
    needs_shaping = any(
        unicodedata.bidirectional(c) in ("R", "AL") or unicodedata.combining(c) or unicodedata.category(c) == "Mc"
        for c in text
    )
    if needs_shaping and matplotlib.__version_info__ < (3, 11):
        return False
    fonts = [font_manager.get_font(font_manager.findfont(name)) for name in installed_fonts()]
    return all(any(font.get_char_index(ord(c)) for font in fonts) for c in text)


class Labels:
    """The labels of a figure's tokens; tokens that cannot be rendered are numbered, and listed in the caption."""

    def __init__(self) -> None:
        self.numbered: dict[str, str] = {}

    def __call__(self, token: str) -> str:
        text = readable(token)
        if can_render(text):
            return text.replace("$", r"\$")  # or matplotlib reads it as a formula
        return self.numbered.setdefault(text, f"#{len(self.numbered) + 1}")

    def legend(self, figure: Figure) -> str:
        """The end of the caption: empty, or which numbers stand for which tokens; then the figure says so, too."""
        if not self.numbered:
            return ""
        figure.supxlabel(f"{figure.get_supxlabel()}\n#1, #2 …: no font here; see the caption".lstrip(), fontsize=8)
        missing = {unicodedata.name(c, "?").split()[0] for text in self.numbered for c in text if not can_render(c)}
        scripts = ", ".join(sorted(name if name == "CJK" else name.title() for name in missing))
        tokens = ", ".join(f"{number} = {text}" for text, number in self.numbered.items())
        return f" Numbered, because the fonts here lack them ({scripts}): {tokens}."


def readable(token: str) -> str:
    """The token without ▁; invisible characters by their Unicode names."""
    text = token.replace("▁", " ").strip(" ") or "▁"
    invisible = all(unicodedata.category(c)[0] in "CZ" for c in text)  # a joiner among letters is part of the word
    names = (unicodedata.name(c, f"U+{ord(c):04X}") for c in text)
    return "".join(
        name if invisible or unicodedata.category(c) == "Cc" else c for c, name in zip(text, names, strict=True)
    )


def quoted(token: str) -> str:
    return f"“{readable(token)}”"


# ---- pooling of long texts


class TokenAxis(NamedTuple):
    """The tokens along one axis of a map."""

    names: list[str]  # of tokens, or in long texts of blocks of tokens
    groups: list[range]
    note: str  # empty, or how tokens are pooled

    def describe(self, i: int) -> str:
        return f"tokens {self.names[i]}" if self.note else quoted(self.names[i])


def token_axis(tokens: Sequence[str]) -> TokenAxis:
    size = math.ceil(len(tokens) / MAX_LABELS)
    groups = [range(start, min(start + size, len(tokens))) for start in range(0, len(tokens), size)]
    if size == 1:
        return TokenAxis(list(tokens), groups, "")
    names = [f"{group.start}–{group.stop - 1}" for group in groups]
    return TokenAxis(names, groups, f"{len(tokens)} tokens in blocks of {size}")


def pooled(note: str) -> str:
    return f" Pooled: {note}." if note else ""


def pool_columns(values: Tensor, axis: TokenAxis) -> Tensor:  # l t -> l t
    """The sum over each block of tokens."""
    return merge_tokens(values.detach().float().cpu(), [range(i, i + 1) for i in range(len(values))], axis.groups)


def pool_map(
    weights: Tensor, tokens: Sequence[str], keys: Sequence[str] | None
) -> tuple[Tensor, TokenAxis, TokenAxis, str]:
    """Pool weights `… q k` to at most MAX_LABELS rows and columns: the mean over a block's queries, the sum over keys.

    Raises ValueError if the numbers of tokens and weights differ.
    """
    keys = tokens if keys is None else keys
    if tuple(weights.shape[-2:]) != (len(tokens), len(keys)):
        sizes, shape = (len(tokens), len(keys)), tuple(weights.shape[-2:])
        raise ValueError(f"the map is {shape}, but there are tokens for {sizes}: pass one map `q k` and its tokens.")
    rows, columns = token_axis(tokens), token_axis(keys)
    note = "; ".join(f"{name}: {x.note}" for name, x in (("queries", rows), ("keys", columns)) if x.note)
    return merge_tokens(weights.detach().float().cpu(), rows.groups, columns.groups), rows, columns, note


# ---- heatmaps


def heatmap(
    axis: Axes, values: Tensor, label: str | None = None, *, title: str = "", rows: Iterable[str] = (),
    columns: Iterable[str] = (), shrink: float = 1.0, **options: Any,
) -> None:  # fmt: skip
    """Draw `values` with labels and a colour bar; amounts from 0 unless `options` (of imshow) differ."""
    options = {"cmap": AMOUNT, "vmin": 0, "aspect": "auto", "interpolation": "nearest", **options}
    image = axis.imshow(values.numpy(), **options)
    axis.get_figure().colorbar(image, ax=axis, label=label, shrink=shrink)  # type: ignore[union-attr]
    axis.set_title(title, fontsize=9)
    label_ticks(axis, columns, rows)


def label_ticks(axis: Axes, columns: Iterable[str] = (), rows: Iterable[str] = ()) -> None:
    if columns := list(columns):
        axis.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
    if rows := list(rows):
        axis.set_yticks(range(len(rows)), rows, fontsize=8)


def layer_head_ticks(axis: Axes, values: Tensor) -> None:
    """Number layers and heads: all of them where there is room."""
    for size, set_ticks in ((len(values), axis.set_yticks), (values.shape[1], axis.set_xticks)):
        set_ticks(range(0, size, max(1, size // 8)))
    axis.set(ylabel="layer", xlabel="head")


def argmax(values: Tensor) -> tuple[int, int]:
    """The row and column of the largest value that is not NaN."""
    return divmod(int(values.nan_to_num(-math.inf).argmax()), values.shape[1])
