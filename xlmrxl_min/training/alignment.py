"""Which word of a text is translated by which word of another, from the texts alone: what tiny-translator learned from.

Counting words that come together (Brown et al. 1993, model 1), with two prejudices: a word stands about as far into its
text as its translation into the other (Dyer et al. 2013), and an encoder's states of the two are alike (Jalili Sabet et
al. 2020). Both directions are multiplied, so that a pair must be each other's choice (Liang et al. 2006).
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor

from ..model import XLMRobertaXLModel
from ..tokenizer import XLMRobertaTokenizer
from ..utils import eval_mode

DISTANCE, LIKENESS, ROUNDS, RARE = 8.0, 5.0, 6, 0.005  # e ** -8 at the other end of the text; e ** 5 for equal states
LAYER = 3  # of the encoder, whose states are compared
LONGEST_PHRASE, LONGEST_SOURCE = 4, 6  # words
LINKED = 0.7  # of a phrase's words


class Words(NamedTuple):
    """A text, word by word; a character or two of a script without spaces count as a word."""

    ids: list[int]  # of its tokens, without <s> and </s>
    spans: list[range]  # of each word, the places of its tokens
    names: list[str]  # without punctuation, in lower case
    states: Tensor  # t e, the mean over a word's tokens


class Phrase(NamedTuple):
    """Neighbouring words that translate one another and nothing else: their tokens' places in both texts."""

    source: range
    target: range


def split(text: str, encoder: XLMRobertaXLModel, tokenizer: XLMRobertaTokenizer, begins: Tensor) -> Words:
    """begins `v`: which tokens begin a word, from train.word_begins."""
    ids = tokenizer.encode(text, truncation=True)
    with eval_mode(encoder):
        states = encoder(torch.tensor([ids]), output_hidden_states=True).hidden_states[LAYER][0, 1:-1]
    ids = ids[1:-1]
    starts = [place for place, token in enumerate(ids) if begins[token] or place == 0]
    spans = [range(start, stop) for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True)]
    pieces = tokenizer.convert_ids_to_tokens(ids)
    punctuation = string.punctuation + "▁«»„“”’،؛。、।;·"
    names = ["".join(pieces[span.start : span.stop]).strip(punctuation).lower() for span in spans]
    means = torch.stack([states[span.start : span.stop].mean(0) for span in spans])
    return Words(ids, spans, names, means)


def align(sources: Sequence[Words], targets: Sequence[Words]) -> list[Tensor]:
    """Of every pair of texts, `q k`: the probability that target word q translates source word k, its rows' sums 1."""
    forth, back = one_way(sources, targets), one_way(targets, sources)
    products = [a * rearrange(b, "k q -> q k") for a, b in zip(forth, back, strict=True)]
    return [both / both.sum(-1, keepdim=True).clamp_min(1e-9) for both in products]


def one_way(sources: Sequence[Words], targets: Sequence[Words]) -> list[Tensor]:  # q k each
    """Expectation maximisation: how sure each pair of places is, and from that how often a word becomes which."""
    known = [{name: i for i, name in enumerate(dict.fromkeys(n for text in side for n in text.names))}
             for side in (sources, targets)]  # fmt: skip
    places = [[torch.tensor([index[name] for name in text.names]) for text in side]
              for index, side in zip(known, (sources, targets), strict=True)]  # fmt: skip
    pairs = list(zip(*places, [belief(a, b) for a, b in zip(sources, targets, strict=True)], strict=True))
    becomes, found = torch.ones(len(known[0]), len(known[1])), []
    for _ in range(ROUNDS):
        counts, found = torch.full_like(becomes, RARE), []
        for source, target, prior in pairs:
            sure = becomes[source][:, target].T * prior
            found.append(sure / sure.sum(-1, keepdim=True))
            counts.index_put_(torch.broadcast_tensors(source[None], target[:, None]), found[-1], accumulate=True)
        becomes = counts / counts.sum(-1, keepdim=True)
    return found


def belief(source: Words, target: Words) -> Tensor:  # q k
    """What is believed of two places before any counting."""
    share = [(torch.arange(len(text.names)) + 0.5) / len(text.names) for text in (source, target)]
    apart = (rearrange(share[1], "q -> q 1") - rearrange(share[0], "k -> 1 k")).abs()
    states = [F.normalize(text.states, dim=-1) for text in (target, source)]
    return (LIKENESS * einsum(*states, "q e, k e -> q k") - DISTANCE * apart).exp()


def centred(texts: Sequence[Words]) -> list[Words]:
    """Without the mean of all states, which is a language's own and hides what two words have in common."""
    mean = torch.cat([text.states for text in texts]).mean(0)
    return [text._replace(states=text.states - mean) for text in texts]


def phrases(source: Words, target: Words, aligned: Tensor) -> list[Phrase]:
    """All pairs of short runs of words, most of them linked, none to the outside; links: each other's best, above 1/2.

    After Och and Ney 2004. aligned `q k`.
    """
    best = aligned.argmax(-1).tolist()
    back = aligned.argmax(0).tolist()
    links = {q: k for q, k in enumerate(best) if back[k] == q and aligned[q, k] > 0.5}
    owner, found = {k: q for q, k in links.items()}, []
    for first in links:
        for last in links:
            inside = [links[q] for q in range(first, last + 1) if q in links]
            if not first <= last < first + LONGEST_PHRASE or len(inside) < LINKED * (last + 1 - first):
                continue
            low, high = min(inside), max(inside)
            strays = [k for k in range(low, high + 1) if k in owner and not first <= owner[k] <= last]
            if high - low < LONGEST_SOURCE and not strays:
                ours = range(target.spans[first].start, target.spans[last].stop)
                found.append(Phrase(range(source.spans[low].start, source.spans[high].stop), ours))
    return found


def by_token(source: Words, target: Words, aligned: Tensor) -> Tensor:  # q k of words -> q k of tokens
    """Each token of a target word looks at all tokens of the source word, to equal parts."""
    rows = [word for word, span in enumerate(target.spans) for _ in span]
    columns = [word for word, span in enumerate(source.spans) for _ in span]
    sizes = torch.tensor([len(span) for span in source.spans])
    return (aligned / sizes)[rows][:, columns]
