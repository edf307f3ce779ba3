"""The corpus as token ids, and what to sample from it: passages, sentences, words and parallel texts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from ..tokenizer import XLMRobertaTokenizer
from .corpus import Row, read_corpus

Item = TypeVar("Item")
STEPS_PER_EPOCH = 20
CANDIDATES = 4  # this many times the rows of a batch are drawn, and rows of similar length kept
MAX_PAIR_TOKENS = 126  # of a text, and of its translation
SMOOTHING = 0.5  # exponent on a group's size; 1: in proportion to it, 0: every group the same


class Dataset:
    """The studied part of a corpus. A text is its row number; `ids` are without `<s>` and `</s>`."""

    def __init__(self, folder: Path, tokenizer: XLMRobertaTokenizer, languages: Sequence[str] | None = None) -> None:
        self.rows = [row for row in read_corpus(folder, held_out=False) if not languages or row.language in languages]
        encoded = tokenizer.sp_model.encode([row.text for row in self.rows])
        self.ids = [[tokenizer.add_fairseq_offset(i) for i in ids] for ids in encoded]

    def group(self, numbers: Iterable[int], key: Callable[[Row], Hashable]) -> list[list[int]]:
        groups = defaultdict(list)
        for i in numbers:
            groups[key(self.rows[i])].append(i)
        return list(groups.values())

    def passages(self) -> list[list[int]]:
        """Of the sources with running text, the texts of each chapter or page, in order."""
        running = [i for i, row in enumerate(self.rows) if row.source in ("bible", "help")]
        return self.group(running, lambda row: row[:4])

    def parallel(self) -> list[list[int]]:
        """The texts of each place, in several languages, or in versions of one."""
        texts = [i for i, row in enumerate(self.rows) if row.source != "words"]
        return [group for group in self.group(texts, lambda row: (row.source, *row[3:5])) if len(group) > 1]


class Sampler:
    """Draw items by group: first a language, then a source, each by the square root of its size, then an item."""

    def __init__(self, items: Sequence[Item], keys: Sequence[tuple[str, ...]]) -> None:
        tree: dict[str, dict[str, list[Item]]] = defaultdict(lambda: defaultdict(list))
        for item, (language, source) in zip(items, keys, strict=True):
            tree[language][source].append(item)
        self.sizes = [[len(items) for items in sources.values()] for sources in tree.values()]
        self.items = [list(sources.values()) for sources in tree.values()]

    def draw(self, count: int, generator: torch.Generator) -> list:
        chosen = []
        for group in multinomial([sum(sizes) for sizes in self.sizes], count, generator):
            (source,) = multinomial(self.sizes[group], 1, generator)
            items = self.items[group][source]
            chosen.append(items[draw_number(len(items), generator)])
        return chosen


def multinomial(sizes: Sequence[int], count: int, generator: torch.Generator) -> list[int]:
    weights = torch.tensor(sizes, dtype=torch.double) ** SMOOTHING
    return torch.multinomial(weights, count, replacement=True, generator=generator).tolist()


def draw_number(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (), generator=generator))


def similar_in_length(rows: list[list[int]], max_tokens: int, generator: torch.Generator) -> list[int]:
    """The numbers of rows that are neighbours in length, from a random one on: up to `max_tokens`, with padding."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    first = draw_number(len(rows), generator)
    last = first
    while last < len(rows) and (last - first + 1) * len(rows[order[last]]) <= max_tokens:
        last += 1
    while first > 0 and last > first and (last - first + 1) * len(rows[order[last - 1]]) <= max_tokens:
        first -= 1
    return order[first : max(last, first + 1)]
