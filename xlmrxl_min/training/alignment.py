"""Word alignment of parallel texts without a dictionary: the supervision of tiny-translator's cross-attention.

IBM model 1 (Brown et al. 1993) with two priors: an aligned pair of words has similar relative positions (Dyer et al.
2013) and similar hidden states in an encoder (Jalili Sabet et al. 2020). The product of both directions is taken, so
that only mutual choices remain (Liang et al. 2006).
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
from ..tokenizer import XLMRobertaTokenizer, group_words
from ..utils import eval_mode

POSITION_WEIGHT, SIMILARITY_WEIGHT = 8.0, 5.0  # prior e ** -8 at the other end of the text, e ** 5 for equal states
EM_ITERATIONS, SMOOTHING = 6, 0.005
LAYER = 3  # of the encoder, whose hidden states are compared
MAX_TARGET_WORDS, MAX_SOURCE_WORDS = 4, 6  # of a phrase
MIN_LINKED = 0.7  # fraction of a phrase's target words


class Words(NamedTuple):
    """A text split into words; in a script without spaces, each token is a word."""

    ids: list[int]  # of its tokens, without <s> and </s>
    spans: list[range]  # the token positions of each word
    names: list[str]  # each word in lower case, without punctuation
    states: Tensor  # one row for each word, the mean over its tokens


class Phrase(NamedTuple):
    """A few adjacent words and their translation, as token positions in both texts."""

    source: slice
    target: slice


def split_into_words(text: str, encoder: XLMRobertaXLModel, tokenizer: XLMRobertaTokenizer) -> Words:
    ids = tokenizer.encode(text, truncation=True)
    with eval_mode(encoder):
        states = encoder(torch.tensor([ids]), output_hidden_states=True).hidden_states[LAYER][0, 1:-1]
    ids = ids[1:-1]
    pieces = tokenizer.convert_ids_to_tokens(ids)
    spans = group_words(pieces, split_unspaced=True)
    punctuation = string.punctuation + "▁«»„“”’،؛。、।;·"
    names = ["".join(pieces[span.start : span.stop]).strip(punctuation).lower() for span in spans]
    return Words(ids, spans, names, torch.stack([states[span.start : span.stop].mean(0) for span in spans]))


def subtract_mean_state(texts: Sequence[Words]) -> list[Words]:
    """Subtract the mean over all words of a language: what remains is more alike across languages."""
    mean = torch.cat([text.states for text in texts]).mean(0)
    return [text._replace(states=text.states - mean) for text in texts]


def align(
    sources: Sequence[Words], targets: Sequence[Words], *, position_weight: float = POSITION_WEIGHT
) -> list[Tensor]:
    """For each pair of texts `q k`: the probability that target word q translates source word k. Rows sum to 1."""
    forward = ibm_model_1(sources, targets, position_weight)
    backward = ibm_model_1(targets, sources, position_weight)
    products = [a * rearrange(b, "k q -> q k") for a, b in zip(forward, backward, strict=True)]
    return [product / product.sum(-1, keepdim=True).clamp_min(1e-9) for product in products]


def ibm_model_1(sources: Sequence[Words], targets: Sequence[Words], position_weight: float) -> list[Tensor]:
    """One direction, by expectation maximisation: `q k` for each pair of texts, rows sum to 1."""
    vocabularies = [{name: i for i, name in enumerate(dict.fromkeys(n for text in side for n in text.names))}
                    for side in (sources, targets)]  # fmt: skip
    indices = [[torch.tensor([vocabulary[name] for name in text.names]) for text in side]
               for vocabulary, side in zip(vocabularies, (sources, targets), strict=True)]  # fmt: skip
    priors = [prior(source, target, position_weight) for source, target in zip(sources, targets, strict=True)]
    translation = torch.ones(*map(len, vocabularies))  # p(target word | source word), up to a factor
    for _ in range(EM_ITERATIONS):
        counts, posteriors = torch.full_like(translation, SMOOTHING), []
        for source, target, prior_of_pair in zip(*indices, priors, strict=True):
            scores = translation[source][:, target].T * prior_of_pair
            posteriors.append(scores / scores.sum(-1, keepdim=True))
            cells = torch.broadcast_tensors(source[None], target[:, None])
            counts.index_put_(cells, posteriors[-1], accumulate=True)
        translation = counts / counts.sum(-1, keepdim=True)
    return posteriors


def prior(source: Words, target: Words, position_weight: float) -> Tensor:  # q k
    """How plausible each pair of words is by position and hidden states, up to a factor."""
    relative = [(torch.arange(len(text.names)) + 0.5) / len(text.names) for text in (source, target)]
    distance = (rearrange(relative[1], "q -> q 1") - rearrange(relative[0], "k -> 1 k")).abs()
    queries, keys = (F.normalize(text.states, dim=-1) for text in (target, source))
    return (SIMILARITY_WEIGHT * einsum(queries, keys, "q e, k e -> q k") - position_weight * distance).exp()


def extract_phrases(source: Words, target: Words, alignment: Tensor) -> list[Phrase]:
    """All pairs of short, mostly linked runs of words without links to other words. After Och and Ney 2004.

    alignment: `q k`. Two words are linked if each is the other's best match, with a probability above 1/2.
    """
    best = alignment.argmax(-1).tolist()
    best_target = alignment.argmax(0).tolist()
    links = {q: k for q, k in enumerate(best) if best_target[k] == q and alignment[q, k] > 0.5}
    target_of, phrases = {k: q for q, k in links.items()}, []
    for first in links:
        for last in links:
            linked = [links[q] for q in range(first, last + 1) if q in links]
            if not first <= last < first + MAX_TARGET_WORDS or len(linked) < MIN_LINKED * (last + 1 - first):
                continue
            low, high = min(linked), max(linked)
            outside = [k for k in range(low, high + 1) if k in target_of and not first <= target_of[k] <= last]
            if high - low < MAX_SOURCE_WORDS and not outside:
                source_tokens = slice(source.spans[low].start, source.spans[high].stop)
                phrases.append(Phrase(source_tokens, slice(target.spans[first].start, target.spans[last].stop)))
    return phrases


def expand_to_tokens(source: Words, target: Words, alignment: Tensor) -> Tensor:  # q k of words -> q k of tokens
    """Give each token of a target word its word's row, spread evenly over the tokens of each source word."""
    rows = [word for word, span in enumerate(target.spans) for _ in span]
    columns = [word for word, span in enumerate(source.spans) for _ in span]
    sizes = torch.tensor([len(span) for span in source.spans])
    return (alignment / sizes)[rows][:, columns]
