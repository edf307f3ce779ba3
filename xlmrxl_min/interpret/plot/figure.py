"""What all figures share: captions, fonts and labels for every script, pooling of long texts, heatmaps.

Layers, heads and positions are counted from 0. Sizes and resolution are fixed. The colours can be told apart with any
colour vision: cividis for amounts, PuOr for changes, Okabe and Ito's colours for categories.
"""

from __future__ import annotations

import io
import math
import os
import re
import textwrap
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeAlias

import matplotlib
import torch
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ...files import atomic_write, to_path
from ...inputs import check_type
from ..metrics import pool

DPI, SCALE = 90, 1.5  # pixels of the page per inch, and of the picture per pixel of the page: sharp on fine screens
INK = "#7B7B7B"  # lines and text, on a transparent background: the contrast is above 4 on a white and on a dark page
AMOUNT, CHANGE = "cividis", "PuOr_r"
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#BBBBBB")  # Okabe and Ito 2008
MAX_LABELS = 64  # tokens along an axis; longer texts are pooled
MAX_LENGTH = 24  # characters of a label
STYLING = threading.RLock()  # matplotlib's settings are those of the whole process
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
        """For a notebook: in 256 colours, which makes the committed file much smaller."""
        picture, small = io.BytesIO(), io.BytesIO()
        with default_style():
            self.figure.savefig(picture, format="png")
        reduce_colors(Image.open(picture)).save(small, format="png", optimize=True)
        return small.getvalue()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a .png, .pdf or .svg file, by the suffix; after an error an old file is unchanged.

        Raises ValueError for another suffix or none, and OSError if the file cannot be written.
        """
        path = to_path(path)
        suffix = path.suffix.lower()
        if suffix[1:] not in self.figure.canvas.get_supported_filetypes():
            raise ValueError(f"{path} ends in {suffix or 'no suffix'}: name a file that ends in .png, .pdf or .svg.")
        with atomic_write(path) as (draft,), default_style():
            self.figure.savefig(draft, format=suffix[1:])

    def _ipython_display_(self) -> None:
        from IPython.display import display  # only IPython calls this

        metadata = {"alt": self.caption, "width": round(DPI * self.figure.get_figwidth())}
        data = {"image/png": self.png(), "text/plain": self.caption}
        display(data, metadata={"image/png": metadata}, raw=True)
        print(textwrap.fill(self.caption, 96))  # a notebook would break lines inside words


def reduce_colors(picture: Image.Image) -> Image.Image:
    """The 256 most frequent colours of an RGBA image, opacity included; the others become the nearest of these.

    Of Pillow's methods, only the octree keeps opacity, and it leaves 30 colours.
    """
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.int32)
    colors, pixels, counts = pixels.unique(return_inverse=True, return_counts=True)
    rgba = colors.view(torch.uint8).view(-1, 4)
    palette = rgba[counts.argsort(descending=True)[:256]]
    nearest = torch.cdist(rgba.float(), palette.float()).argmin(1).to(torch.uint8)
    reduced = Image.frombytes("P", picture.size, nearest[pixels].numpy().tobytes())
    reduced.putpalette(palette.flatten().tolist(), "RGBA")
    return reduced


@contextmanager
def default_style() -> Iterator[None]:
    """Matplotlib's default settings but for `INK`, fonts for as many scripts as are installed, and no formulas."""
    settings: dict[Any, Any] = {"font.family": installed_fonts(), "font.size": 9, "text.parse_math": False}
    settings["savefig.dpi"] = SCALE * DPI
    settings |= dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor"), "none")
    settings |= dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    with STYLING, matplotlib.rc_context({**matplotlib.rcParamsDefault, **settings}):
        yield


def captioned(function: Callable[P, Parts]) -> Callable[P, CaptionedFigure]:
    """Make figures in `default_style`, whatever the user's settings are. ValueError for a title that is no str."""

    @wraps(function)
    def make(*args: P.args, **kwargs: P.kwargs) -> CaptionedFigure:
        title: Any = kwargs.get("title", "")
        check_type("title", title, str, "a str")
        if title:
            kwargs["title"] = visible(" ".join(title.split()))
        with default_style():
            figure, data, caption = function(*args, **kwargs)
            return CaptionedFigure(figure, data, caption.lstrip(":., "))  # the title may be empty

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
    return not (needs_shaping and matplotlib.__version_info__ < (3, 11)) and not missing_glyphs(text)


def missing_glyphs(text: str) -> set[str]:
    fonts = [font_manager.get_font(font_manager.findfont(name)) for name in installed_fonts()]
    return {c for c in text if not any(font.get_char_index(ord(c)) for font in fonts)}


class Labels:
    """The labels of a figure's tokens; tokens that cannot be rendered are numbered, and listed in the caption."""

    def __init__(self, max_length: int = MAX_LENGTH) -> None:
        self.numbered: dict[str, str] = {}
        self.max_length = max_length

    def __call__(self, token: str) -> str:
        text = readable(token)
        if can_render(text):
            return text if len(text) <= self.max_length else text[: self.max_length - 1] + "…"
        return self.numbered.setdefault(text, f"#{len(self.numbered) + 1}")

    def legend(self, figure: Figure) -> str:
        """The end of the caption: empty, or which numbers stand for which tokens; then the figure says so, too."""
        if not self.numbered:
            return ""
        figure.supxlabel(f"{figure.get_supxlabel()}\n#1, #2 …: no font here; see the caption".lstrip(), fontsize=8)
        scripts = ", ".join(sorted({script_of(c) for text in self.numbered for c in text if not can_render(c)}))
        tokens = ", ".join(f"{number} = {text}" for text, number in self.numbered.items())
        return f" Numbered, because the fonts here lack them ({scripts}): {tokens}."


def script_of(character: str) -> str:
    """The script of a letter, from its Unicode name; "symbols" for anything else, such as emoji."""
    kind = "(?:CAPITAL |SMALL |FINAL )?(?:LETTER|SYLLABLE|SYLLABICS|LIGATURE|HIEROGLYPH|SIGN|VOWEL|CHARACTER)"
    name = unicodedata.name(character, "") if unicodedata.category(character) in ("Lu", "Ll", "Lo", "Mn", "Mc") else ""
    match = re.match(f"(CJK|HANGUL|TANGUT|NUSHU|.+?(?= {kind}))", name)
    found = match[0] if match and not match[0].startswith(("COMBINING", "VARIATION", "MUSICAL")) else "symbols"
    return found if found in ("CJK", "symbols") else found.title()


def visible(text: str) -> str:
    """Control characters, line ends and marks that turn the direction of writing become their Unicode names."""
    return "".join(unicodedata.name(c, f"U+{ord(c):04X}") if is_control(c) else c for c in text)


def is_control(character: str) -> bool:
    turns = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    return character in turns or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


def readable(token: str) -> str:
    """The token without ▁; invisible characters by their Unicode names."""
    text = token.replace("▁", " ").strip(" ") or "▁"
    if all(unicodedata.category(c)[0] in "CZ" for c in text):  # a joiner among letters is part of the word
        return "".join(unicodedata.name(c, f"U+{ord(c):04X}") for c in text)
    return visible(text)


def quoted(token: str) -> str:
    text = readable(token)
    return f"“{text if len(text) <= 4 * MAX_LENGTH else text[: 4 * MAX_LENGTH - 1] + '…'}”"


def wrapped(text: str, inches: float) -> str:
    """A heading in lines that fit into `inches`, at most three; a character that the fonts lack becomes □."""
    missing = missing_glyphs(text)
    text = "".join("□" if c in missing else c for c in text)
    return "\n".join(textwrap.wrap(text, max(8, int(13 * inches)), max_lines=3, placeholder=" …"))


def extra_size(labels: Iterable[str]) -> float:
    """How many inches more than usual the longest label needs."""
    return 0.075 * max(0, max(map(len, labels), default=0) - MAX_LENGTH // 2)


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
    return pool(values, [range(i, i + 1) for i in range(len(values))], axis.groups)


def pool_map(
    weights: Tensor, tokens: Sequence[str], keys: Sequence[str] | None
) -> tuple[Tensor, TokenAxis, TokenAxis, str]:
    """Pool `… q k` to at most MAX_LABELS rows and columns: the mean over a block's queries, the sum over its keys."""
    rows, columns = token_axis(tokens), token_axis(tokens if keys is None else keys)
    note = "; ".join(f"{name}: {x.note}" for name, x in (("queries", rows), ("keys", columns)) if x.note)
    return pool(weights, rows.groups, columns.groups), rows, columns, note


# ---- heatmaps


def heatmap(
    axis: Axes, values: Tensor, label: str | None = None, *, title: str = "", note: str = "",
    rows: Iterable[str] = (), columns: Iterable[str] = (), shrink: float = 1.0, **options: Any,
) -> None:  # fmt: skip
    """Draw `values` with labels and a colour bar; amounts from 0 unless `options` (of imshow) differ; NaN is grey."""
    options = {
        "cmap": AMOUNT,
        "vmin": 0,
        "vmax": max(0.0, float(values.nan_to_num(0).max())) or 1.0,
        "aspect": "auto",
        "interpolation": "nearest",
        **options,
    }
    image = axis.imshow(values.numpy(), **options)
    axis.set_facecolor("#DDDDDD")
    axis.get_figure().colorbar(image, ax=axis, label=label, shrink=shrink)  # type: ignore[union-attr]
    set_title(axis, title, note)
    label_ticks(axis, columns, rows)


def set_title(axis: Axes, title: str, note: str = "") -> None:
    figure, grid = axis.get_figure(), axis.get_subplotspec().get_gridspec()  # type: ignore[union-attr]
    inches = figure.get_figwidth() / grid.ncols  # type: ignore[union-attr]
    axis.set_title("\n".join(filter(None, (wrapped(title, inches), note and f"({note})"))), fontsize=9, wrap=True)


def set_suptitle(figure: Figure, title: str) -> None:
    figure.suptitle(wrapped(title, figure.get_figwidth()), fontsize=10)


def is_constant(values: Tensor) -> bool:
    """Whether no value is the largest, as all known ones are equal."""
    known = values[~values.isnan()]
    return known.numel() != 1 and bool((known == known[:1]).all())


def check_known(values: Tensor, name: str) -> None:
    if values.isnan().all():
        raise ValueError(f"{name} holds only nan, as if all heads were pruned: pass the values of one or more.")


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
