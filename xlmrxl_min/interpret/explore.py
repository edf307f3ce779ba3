"""An interactive page of attention weights: one self-contained HTML file, for a browser or a notebook."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import torch
from torch import Tensor

from ..files import atomic_write, to_path
from ..inputs import as_attentions, as_head_numbers, as_tokens, check_type, check_weights

TEMPLATE = Path(__file__).with_name("explore.html")
MAX_WEIGHTS = 24_000_000  # per page, one byte each; base64 makes them a third larger
LEVELS = 255  # a weight w is stored as round(255 w)


@dataclass(frozen=True)
class Explorer:
    """The page. Shows itself as the last line of a notebook cell; `save` writes it for a browser."""

    html: str = field(repr=False)
    title: str
    height: int = field(repr=False)  # in pixels, in a notebook

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page atomically and return its path. Raises OSError if it cannot be written."""
        path = to_path(path)
        with atomic_write(path) as (draft,):
            draft.write_bytes(self.html.encode("utf-8"))
        return path

    def _repr_html_(self) -> str:
        """The page in a sandboxed frame: separate styles and names, and no rights but to run its script."""
        page, title = (escape(x).encode("ascii", "xmlcharrefreplace").decode() for x in (self.html, self.title))
        style = f"width: 100%; height: {self.height}px; border: 0"
        return f'<iframe srcdoc="{page}" sandbox="allow-scripts" title="{title}" style="{style}"></iframe>'


def explore(
    attentions: Sequence[Tensor] | Tensor, tokens: Sequence[str], *, keys: Sequence[str] | None = None,
    heads: Sequence[Sequence[int]] | None = None, title: str = "Attention",
) -> Explorer:  # fmt: skip
    """Make a page that shows the attention weights of one text, layer by layer and head by head.

    attentions: `out.attentions` of a model, l of `1 h q k` or `h q k`; layers may differ in their number of heads.
    tokens: the strings of the queries; keys: those of the keys if they differ, as in cross-attention. heads: of a
    pruned model, the numbers of each layer's heads, [layer.attention.heads for layer in model.base_model.layers]. The
    page rounds weights to 1/255, and says so. Raises ValueError if weights and tokens do not match, and for a page that
    would be too large.
    """
    check_type("title", title, str, "a str")
    layers = as_attentions(attentions)
    numbers, (queries, length) = as_head_numbers(heads, layers), layers[0].shape[1:]
    tokens = as_tokens(tokens, queries)
    keys = as_tokens(tokens if keys is None else keys, length, "keys")
    check_page_size([layer.numel() for layer in layers], queries, length)
    data = {
        "queries": tokens,
        "keys": keys,
        "heads": numbers,
        "layers": [encode(layer, f"attentions[{i}]") for i, layer in enumerate(layers)],
    }
    parts = {"title": escape(title).encode("ascii", "xmlcharrefreplace").decode(), "data": script_json(data)}
    page = re.sub(r"\{\{(\w+)\}\}", lambda slot: parts[slot[1]], TEMPLATE.read_text(encoding="utf-8"))
    return Explorer(page, title, height=min(max(460, 150 + 26 * max(len(tokens), len(keys))), 760))


def check_page_size(sizes: Sequence[int], queries: int, keys: int) -> None:
    if sum(sizes) > MAX_WEIGHTS:
        fitting = sum(sum(sizes[: i + 1]) <= MAX_WEIGHTS for i in range(len(sizes)))
        fewer = f"fewer layers (out.attentions[:{fitting}]) or " if fitting else ""
        raise ValueError(
            f"{len(sizes)} layers with {queries} queries and {keys} keys make {sum(sizes) / 1e6:.0f} MB of weights, "
            f"but a page holds {MAX_WEIGHTS / 1e6:.0f} MB: take {fewer}a shorter text."
        )


def encode(layer: Tensor, name: str) -> str:
    """Weights, one byte each, in base64; ValueError for values that no softmax gives."""
    check_weights(layer, name)
    levels = (layer.double() * LEVELS).round().to(torch.uint8)
    return base64.b64encode(levels.cpu().contiguous().numpy().tobytes()).decode()


def script_json(data: object) -> str:
    """JSON in ASCII in which no HTML parser finds a tag, an entity or the end of the script."""
    return re.sub("[<>&]", lambda letter: f"\\u{ord(letter[0]):04x}", json.dumps(data, separators=(",", ":")))
