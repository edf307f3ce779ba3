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

from ..utils import atomic_write, to_path

TEMPLATE = Path(__file__).with_name("explore.html")
MAX_WEIGHTS = 24_000_000  # per page, one byte each; base64 makes them a third larger
LEVELS = 255  # a weight w is stored as round(255 w)
TOLERANCE = 1e-3  # above 1, for rounding in a row with a single weight; still stored as 255


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
        page, title = escape(self.html), escape(self.title)
        style = f"width: 100%; height: {self.height}px; border: 0"
        return f'<iframe srcdoc="{page}" sandbox="allow-scripts" title="{title}" style="{style}"></iframe>'


def explore(
    attentions: Sequence[Tensor] | Tensor, tokens: Sequence[str], *, keys: Sequence[str] | None = None,
    title: str = "Attention",
) -> Explorer:  # fmt: skip
    """Make a page that shows the attention weights of one text, layer by layer and head by head.

    attentions: `out.attentions` of a model, l of `1 h q k` or `h q k`; layers may differ in their number of heads.
    tokens: the strings of the queries; keys: those of the keys if they differ, as in cross-attention. The page rounds
    weights to 1/255, and says so. Raises ValueError if weights and tokens do not match, and for a page that would be
    too large.
    """
    keys = tokens if keys is None else keys
    for name, strings in (("tokens", tokens), ("keys", keys)):
        is_list = isinstance(strings, (list, tuple))
        if not is_list or not strings or not all(isinstance(string, str) for string in strings):
            what = f"a {type(strings).__name__}" if not is_list else "a list of something else" if strings else "empty"
            hint = "try tokenizer.convert_ids_to_tokens(input_ids[0])"
            raise ValueError(f"{name} is {what}, but it takes a list of strings: {hint}.")
    named = [(f"attentions[{i}]", layer) for i, layer in enumerate(() if attentions is None else attentions)]
    layers = [check_layer(layer, name, len(tokens), len(keys)) for name, layer in named]
    if not layers:
        raise ValueError(f"attentions={attentions!r} holds no layer: call the model with output_attentions=True.")
    check_page_size([layer.numel() for layer in layers], len(tokens), len(keys))
    data = {
        "queries": list(tokens),
        "keys": list(keys),
        "heads": [len(layer) for layer in layers],
        "layers": [encode(layer, name) for layer, (name, _) in zip(layers, named, strict=True)],
    }
    parts = {"title": escape(title).encode("ascii", "xmlcharrefreplace").decode(), "data": script_json(data)}
    page = re.sub(r"\{\{(\w+)\}\}", lambda slot: parts[slot[1]], TEMPLATE.read_text(encoding="utf-8"))
    return Explorer(page, title, height=min(max(460, 150 + 26 * max(len(tokens), len(keys))), 760))


def check_layer(layer: Tensor, name: str, queries: int, keys: int) -> Tensor:
    """1 h q k or h q k -> h q k; ValueError for anything else."""
    if not isinstance(layer, Tensor):
        kind = "None" if layer is None else f"a {type(layer).__name__}"
        raise ValueError(f"{name} is {kind}, no tensor of weights: call the model with output_attentions=True.")
    shape = tuple(layer.shape)
    if layer.ndim == 4 and len(layer) != 1:
        raise ValueError(f"{name} holds {len(layer)} texts, and a page shows one: take [a[:1] for a in attentions].")
    if layer.ndim not in (3, 4):
        raise ValueError(f"{name} has the shape {shape}, but weights are 1 h q k or h q k: pass out.attentions.")
    layer = layer[0] if layer.ndim == 4 else layer
    if not len(layer):
        raise ValueError(f"{name} has the shape {shape}, without any head: pass the weights of one or more.")
    for axis, count, role, option in ((-2, queries, "queries", "tokens"), (-1, keys, "keys", "keys")):
        if layer.shape[axis] != count:
            raise ValueError(f"{name} has {layer.shape[axis]} {role}, but {option} has {count}: pass one string each.")
    return layer.detach()


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
    low, high = layer.amin().item(), layer.amax().item()  # NaN if any weight is
    if not (low >= 0 and high <= 1 + TOLERANCE):
        raise ValueError(
            f"{name} holds {high if low >= 0 else low:.6g}, but attention weights are from 0 to 1: "
            "pass the output of the softmax, of a model in evaluation mode (model.eval(): dropout rescales)."
        )
    levels = (layer.double() * LEVELS).round().to(torch.uint8)
    return base64.b64encode(levels.cpu().contiguous().numpy().tobytes()).decode()


def script_json(data: object) -> str:
    """JSON in ASCII in which no HTML parser finds a tag, an entity or the end of the script."""
    return re.sub("[<>&]", lambda letter: f"\\u{ord(letter[0]):04x}", json.dumps(data, separators=(",", ":")))
