"""Attention to look around in: one HTML page with everything in it, for a browser or a notebook."""

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

from ..utils import atomic_write

TEMPLATE = Path(__file__).with_name("explore.html")
LARGEST_PAGE = 24_000_000  # weights, one byte each; base64 makes a third more of them
STEPS = 255  # a weight is stored as round(255 w)
SLACK = 1e-3  # above one, for what rounding does to a row's only weight; it still rounds to STEPS


@dataclass(frozen=True)
class Explorer:
    """A page to look around in. Shows itself as the last line of a notebook cell; `save` writes it for a browser."""

    html: str = field(repr=False)
    title: str
    height: int = field(repr=False)  # in pixels, in a notebook

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page, whole or not at all, and return its path. IsADirectoryError where `path` is a folder."""
        path = Path(path)
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder: name a file in it, such as {path / 'attention.html'}.")
        with atomic_write(path) as (draft,):
            draft.write_bytes(self.html.encode("utf-8"))
        return path

    def _repr_html_(self) -> str:
        """The page in a frame of its own: its styles and names meet nobody else's, and it may only run its script."""
        page, title = escape(self.html), escape(self.title)
        style = f"width: 100%; height: {self.height}px; border: 0"
        return f'<iframe srcdoc="{page}" sandbox="allow-scripts" title="{title}" style="{style}"></iframe>'


def explore(
    attentions: Sequence[Tensor] | Tensor,
    tokens: Sequence[str],
    *,
    keys: Sequence[str] | None = None,
    title: str = "Attention",
) -> Explorer:
    """Attention weights of one text -> a page that shows who looks at whom, layer by layer and head by head.

    attentions: `out.attentions` of a model, l of `1 h q k` or `h q k`; layers may have different numbers of heads.
    tokens: the strings of the queries; keys: those of the keys where they are others, as in cross-attention.
    The page keeps weights to 1/255, and says so. ValueError where weights and tokens do not fit, and for a page that
    would be too large.
    """
    keys = tokens if keys is None else keys
    for name, words in (("tokens", tokens), ("keys", keys)):
        is_list = isinstance(words, (list, tuple))
        if not is_list or not words or not all(isinstance(word, str) for word in words):
            what = f"a {type(words).__name__}" if not is_list else "a list of something else" if words else "empty"
            raise ValueError(
                f"{name} is {what}, but it takes a list of strings: try tokenizer.convert_ids_to_tokens(input_ids[0])."
            )
    layers = [
        of_one_text(layer, f"attentions[{number}]", len(tokens), len(keys))
        for number, layer in enumerate(() if attentions is None else attentions)
    ]
    if not layers:
        raise ValueError(f"attentions={attentions!r} holds no layer: call the model with output_attentions=True.")
    check_size(layers, len(tokens), len(keys))
    data = {
        "queries": list(tokens),
        "keys": list(keys),
        "heads": [len(layer) for layer in layers],
        "layers": [packed(layer, f"attentions[{number}]") for number, layer in enumerate(layers)],
    }
    parts = {"title": escape(title).encode("ascii", "xmlcharrefreplace").decode(), "data": for_a_script(data)}
    page = re.sub(r"\{\{(\w+)\}\}", lambda slot: parts[slot[1]], TEMPLATE.read_text(encoding="utf-8"))
    return Explorer(page, title, height=min(max(460, 150 + 26 * max(len(tokens), len(keys))), 760))


def of_one_text(layer: Tensor, name: str, queries: int, keys: int) -> Tensor:
    """1 h q k, h q k -> h q k; ValueError for anything else."""
    if not isinstance(layer, Tensor):
        kind = "None" if layer is None else f"a {type(layer).__name__}"
        raise ValueError(f"{name} is {kind}, no tensor of weights: call the model with output_attentions=True.")
    shape = tuple(layer.shape)
    if layer.ndim == 4 and len(layer) != 1:
        raise ValueError(f"{name} holds {len(layer)} texts, and a page shows one: take [a[:1] for a in attentions].")
    if layer.ndim not in (3, 4):
        raise ValueError(
            f"{name} has the shape {shape}, but weights are 1 h q k or h q k: pass out.attentions as it is."
        )
    layer = layer[0] if layer.ndim == 4 else layer
    if not len(layer):
        raise ValueError(f"{name} has the shape {shape}, which is no head at all: pass the weights of one or more.")
    for size, count, role, option in (
        (layer.shape[1], queries, "queries", "tokens"),
        (layer.shape[2], keys, "keys", "keys"),
    ):
        if size != count:
            raise ValueError(f"{name} has {size} {role}, but {option} names {count}: pass one string for each.")
    return layer.detach()


def check_size(layers: Sequence[Tensor], queries: int, keys: int) -> None:
    sizes = [layer.numel() for layer in layers]
    if sum(sizes) <= LARGEST_PAGE:
        return
    fitting = sum(sum(sizes[: i + 1]) <= LARGEST_PAGE for i in range(len(sizes)))
    fewer = f"fewer layers (out.attentions[:{fitting}]) or " if fitting else ""
    raise ValueError(
        f"{len(sizes)} layers on {queries} tokens that look at {keys} make {sum(sizes) / 1e6:.0f} MB of weights, "
        f"but a page holds {LARGEST_PAGE / 1e6:.0f} MB: take {fewer}a shorter text."
    )


def packed(layer: Tensor, name: str) -> str:
    """Weights, one byte each, in base64; ValueError for what cannot be one."""
    low, high = layer.amin().item(), layer.amax().item()  # nan if any of them is
    if not (low >= 0 and high <= 1 + SLACK):
        raise ValueError(
            f"{name} holds {high if low >= 0 else low:.6g}, but attention weights are from 0 to 1: "
            "pass what comes out of the softmax, of a model in evaluation mode (model.eval(), as dropout rescales)."
        )
    steps = (layer.double() * STEPS).round().to(torch.uint8)
    return base64.b64encode(steps.cpu().contiguous().numpy().tobytes()).decode()


def for_a_script(data: object) -> str:
    """JSON in ASCII that no HTML parser can take for a tag, an entity or the end of the script."""
    return re.sub("[<>&]", lambda letter: f"\\u{ord(letter[0]):04x}", json.dumps(data, separators=(",", ":")))
