"""Mistakes from the history of such models, planted in ours. Walked through in notebooks/12_spot_the_bug.ipynb.

To read on is to know the culprits: do the notebook first.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum
from torch import Tensor, nn

from ..base import LayerCache
from ..model import (
    Attention,
    Embeddings,
    PreTrainedModel,
    XLMRobertaXLForCausalLM,
    XLMRobertaXLForMaskedLM,
    mask_to_bias,
)
from ..tokenizer import XLMRobertaTokenizer


class Case(NamedTuple):
    """A bug: how the patient is made, who did it, which lines, and what speaks against each of the others."""

    patient: Callable[[], Any]
    culprit: str
    guilty: Any
    why: str
    innocent: dict[str, str]


CASES: dict[str, Case] = {}


def case(letter: str, culprit: str, guilty: Any, why: str, innocent: dict[str, str]) -> Callable:
    def add(make: Callable[[], Any]) -> Callable[[], Any]:
        CASES[letter] = Case(make, culprit, guilty, why, innocent)
        return make

    return add


def find(letter: str) -> Case:
    if letter.upper() not in CASES:
        raise ValueError(f"there is no case {letter!r}: the cases are {', '.join(sorted(CASES))}.")
    return CASES[letter.upper()]


def patient(letter: str) -> Any:
    """What is ill in this case: a new model, tokenizer or function each time. ValueError for a letter without case."""
    return find(letter).patient()


def suspects(letter: str) -> list[str]:
    """In alphabetical order."""
    return sorted([find(letter).culprit, *find(letter).innocent])


def bare(name: str) -> str:
    """As it is compared: in small letters, without its article."""
    return re.sub(r"^(the|an?) ", "", name.strip().lower().replace("’", "'"))


def diagnose(letter: str, suspect: str | None = None) -> str:
    """What speaks for or against this suspect; with the right one, the guilty lines too. None: who the suspects are."""
    found, said = find(letter), bare(str(suspect))
    if said == bare(found.culprit):
        return f"Yes, {found.culprit}. {found.why}\n\n{inspect.getsource(found.guilty).rstrip()}"
    for name, why in found.innocent.items():
        if said == bare(name):
            return f"Not {name}: {why}"
    listed = "; ".join(suspects(letter))
    return f"Who is it? {listed}." if suspect is None else f"{suspect!r} is not among the suspects: {listed}."


def infected(model: PreTrainedModel, kind: type[nn.Module], sick: type[nn.Module]) -> PreTrainedModel:
    """The model itself, every part of this kind turned into a sick one: the same weights, another method."""
    disguised = type(kind.__name__, (sick,), {})  # `print(model)` gives nothing away
    for module in model.modules():
        if type(module) is kind:
            module.__class__ = disguised
    return model.eval()


# ---- A


class NeverAtRest(Attention):
    def sdpa_attention(self, query, key, value, attention_mask, head_mask):
        bias = self.bias(query, key, key.shape[2] - query.shape[2], attention_mask)
        p = self.attention_dropout.p
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=p), None


@case(
    "A",
    "dropout",
    NeverAtRest,
    "The kernel does not know whether the model is training: it drops whenever dropout_p is above 0.",
    {
        "the initialisation": "only a weight that a checkpoint lacks is drawn, and that once, before the runs.",
        "rounding": "sums in another order differ in the seventh digit, not in the first.",
        "the tokenizer": "the ids are made once, before the runs.",
    },
)
def restless() -> XLMRobertaXLForMaskedLM:
    model = XLMRobertaXLForMaskedLM.from_pretrained("tiny", attention_probs_dropout_prob=0.1)
    return infected(model, Attention, NeverAtRest)


# ---- B


class Inverted(Attention):
    def sdpa_attention(self, query, key, value, attention_mask, head_mask):
        hidden = None if attention_mask is None else ~attention_mask
        bias = self.bias(query, key, key.shape[2] - query.shape[2], hidden)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias), None


@case(
    "B",
    "the mask",
    Inverted,
    "This kernel takes True = may attend, and was given True = hide; where nothing is padded, no mask is passed.",
    {
        "the positions": "they count real tokens only, on both paths, and the path that shows its weights is right.",
        "padding's embedding": "where attention's weights are shown, the same embedding does no harm.",
        "layernorm": "it treats each token by itself, so what stands in other places cannot disturb it.",
    },
)
def upside_down() -> XLMRobertaXLForMaskedLM:
    return infected(XLMRobertaXLForMaskedLM.from_pretrained("tiny"), Attention, Inverted)


# ---- C


class FromZero(Embeddings):
    def make_position_ids(self, is_token, num_cached=0):
        return (is_token.cumsum(-1) + num_cached - 1) * is_token


@case(
    "C",
    "the positions",
    FromZero,
    "Text begins at row 2. Here every token stands two rows too early; the first two get rows that no text has used.",
    {
        "the words": "without them, a row of the position table is left, to a thousandth: so it was the right one.",
        "the token types": "there is one row of them, so it cannot differ from place to place.",
        "the order of the tokens": "the rows count up by one from place to place, as they should.",
    },
)
def early() -> XLMRobertaXLForMaskedLM:
    return infected(XLMRobertaXLForMaskedLM.from_pretrained("tiny"), Embeddings, FromZero)


# ---- D


class LateMask(XLMRobertaTokenizer):
    def __init__(self, vocabulary):
        super().__init__(vocabulary)
        special = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
        self.mask_token_id = len(self.pieces) + len(special)
        self.special_ids = special | {"<mask>": self.mask_token_id}
        self.special_tokens = {i: name for name, i in self.special_ids.items()}


@case(
    "D",
    "the tokenizer",
    LateMask,
    "<mask> is the last piece's number plus one: three of the four special tokens are in the vocabulary already.",
    {
        "the lm head": "with the other tokenizer the same head finds the words.",
        "the positions": "with the other tokenizer the same positions do.",
        "too little training": "with the other tokenizer the same weights find the words.",
    },
)
def late() -> tuple[XLMRobertaXLForMaskedLM, XLMRobertaTokenizer]:
    """With filler rows behind the last token, as XL has 878 of them: no id is out of range."""
    model, tokenizer = XLMRobertaXLForMaskedLM.from_pretrained("tiny"), XLMRobertaTokenizer.from_pretrained("tiny")
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model.resize_token_embeddings(8064)
    return model.eval(), type("XLMRobertaTokenizer", (LateMask,), {})(tokenizer.vocabulary)


# ---- E


class AlmostNorm(nn.LayerNorm):
    def forward(self, x):
        mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        return self.weight * (x - mean) / (std + self.eps) + self.bias


@case(
    "E",
    "layernorm",
    AlmostNorm,
    "std() divides by e - 1 where the variance is meant to be divided by e, and eps stands outside the root.",
    {
        "rounding": "it errs by 10⁻⁷, not by 10⁻³.",
        "gelu": "the error is there before the first feed-forward layer.",
        "the softmax": "the error is there before the first attention has mixed anything.",
    },
)
def almost() -> XLMRobertaXLForMaskedLM:
    return infected(XLMRobertaXLForMaskedLM.from_pretrained("tiny"), nn.LayerNorm, AlmostNorm)


# ---- F


MIXING = "b h q k, b h q d -> b h q d"  # by a name: tests/axis_lint.py would find it in the call


class Hermits(Attention):
    def mix(self, query, key, value, attention_mask):
        scores = einsum(query, key, "b h q d, b h k d -> b h q k") / self.head_dim**0.5
        weights = (scores if attention_mask is None else scores + mask_to_bias(attention_mask, scores.dtype)).softmax(
            -1
        )
        return einsum(weights, value, MIXING), weights

    def eager_attention(self, query, key, value, attention_mask, head_mask):
        return self.mix(query, key, value, attention_mask)

    def sdpa_attention(self, query, key, value, attention_mask, head_mask):
        return self.mix(query, key, value, attention_mask)[0], None


@case(
    "F",
    "the mixing",
    Hermits,
    "A q in place of a k: each query's weights are summed, to one, and multiply its own value. einsum says nothing.",
    {
        "the mask": "nothing is padded here, and the attention maps, which it would change, are tiny's.",
        "the softmax": "layer 0's attention maps, which it makes, are tiny's.",
        "the value matrix": "it is tiny's; and whatever it is, it says what is carried, not from where.",
    },
)
def alone() -> XLMRobertaXLForMaskedLM:
    return infected(XLMRobertaXLForMaskedLM.from_pretrained("tiny"), Attention, Hermits)


# ---- G


def our_name(name: str) -> str:
    """A norm of fairseq's layer: the one follows attention, the final one ends the layer, as in BERT."""
    return name.replace("self_attn_layer_norm", "feed_forward.norm").replace("final_layer_norm", "attention.norm")


@case(
    "G",
    "two norms",
    our_name,
    "XL norms first: self_attn_layer_norm stands before attention, and final_layer_norm before the feed-forward layer.",
    {
        "a transposed matrix": "no matrix is among the parameters that differ.",
        "the heads' order": "query, key, value and out are not among the parameters that differ.",
        "a missing weight": "the loader was strict, and what differs is in tiny as well, in another place.",
    },
)
def exchanged() -> XLMRobertaXLForMaskedLM:
    model = XLMRobertaXLForMaskedLM.from_pretrained("tiny")
    theirs = {"attention.norm": "self_attn_layer_norm", "feed_forward.norm": "final_layer_norm"}
    weights = {}
    for name, value in model.state_dict().items():
        for ours, fairseq in theirs.items():
            name = name.replace(ours, fairseq)
        weights[our_name(name)] = value.clone()
    model.load_state_dict(weights, strict=True)
    return model.eval()


# ---- H


def load(model: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    for name, value in weights.items():
        place, _, last = name.rpartition(".")
        setattr(model.get_submodule(place), last, nn.Parameter(value.clone()))


@case(
    "H",
    "the tie",
    load,
    "Every name gets a tensor of its own, and the word embeddings have two names: tie them again, after loading.",
    {
        "the optimizer": "the count was too high before it had done anything.",
        "the initialisation": "before the step both models give the same logits.",
        "a second lm head": "it would bring a dense layer, a norm and a bias too; there are 8,002 × 256 numbers more.",
    },
)
def untied() -> XLMRobertaXLForMaskedLM:
    model = XLMRobertaXLForMaskedLM.from_pretrained("tiny")
    load(model, model.state_dict())
    return model.eval()


# ---- I


class AlwaysEight(Attention):
    def split_heads(self, hidden):  # b t e -> b h t d
        batch, tokens, width = hidden.shape
        return hidden.view(batch, tokens, 8, width // 8).transpose(1, 2)


@case(
    "I",
    "the split into heads",
    AlwaysEight,
    "The number of heads was written down where their width belongs: six heads of 32 were read as eight of 24.",
    {
        "the rows that were cut": "what is left of query, key, value and out is what is left of them in tiny.",
        "a loss of needed heads": "masked, the same heads cost next to nothing.",
        "the bias of out": "it belongs to no head, and is tiny's.",
    },
)
def narrowed() -> XLMRobertaXLForMaskedLM:
    return infected(XLMRobertaXLForMaskedLM.from_pretrained("tiny"), Attention, AlwaysEight)


# ---- J


class TwiceShifted(XLMRobertaXLForCausalLM):
    def forward(self, input_ids=None, *args, labels=None, **inputs):
        if labels is not None:  # next-token prediction
            labels = F.pad(labels[:, 1:], (0, 1), value=-100)
        return super().forward(input_ids, *args, labels=labels, **inputs)


@case(
    "J",
    "the labels' shift",
    TwiceShifted,
    "The model moves the labels by one place itself: moved before as well, each place is asked for the next but one.",
    {
        "the causal mask": "the logits are tiny-decoder's, so what is wrong comes after them.",
        "padding": "there is one text here, and all of it counts.",
        "sum in place of mean": "the sum at shift 1 is smaller than what is reported, and the mean is far smaller.",
    },
)
def far_sighted() -> XLMRobertaXLForCausalLM:
    model = XLMRobertaXLForCausalLM.from_pretrained("tiny-decoder")
    return infected(model, XLMRobertaXLForCausalLM, TwiceShifted)


# ---- K


class AllAtTheEnd(Attention):
    def position_bias(self, query, key, query_offset):
        last = key.shape[2] - 1
        if last < query.shape[2]:  # no past
            return super().position_bias(query, key, query_offset)
        rows = [super(AllAtTheEnd, self).position_bias(row, key, last) for row in query.split(1, dim=2)]
        return torch.cat(rows, dim=2)


@case(
    "K",
    "the queries' positions",
    AllAtTheEnd,
    "With a past, every query of a piece is put at the last key's place: right for one new token, wrong for several.",
    {
        "what the cache holds": "token by token the same cache gives the right answer.",
        "the causal mask": "no weight is on later tokens, and some is on the past.",
        "rounding": "it errs by 10⁻⁵ here, as the healthy decoder shows, whatever the pieces.",
    },
)
def crowded() -> XLMRobertaXLForCausalLM:
    model = XLMRobertaXLForCausalLM.from_pretrained("tiny-relative-key", is_decoder=True)
    return infected(model, Attention, AllAtTheEnd)


# ---- L


def accumulated(model: PreTrainedModel, parts: Sequence[tuple[Tensor, Tensor]]) -> None:
    """The gradient of a batch that comes in parts, of ids and labels, `b t` each."""
    model.zero_grad()
    for ids, labels in parts:
        (model(ids, labels=labels).loss / len(parts)).backward()


@case(
    "L",
    "a mean of means",
    accumulated,
    "Each part's loss is a mean over its own labels; the batch's mean weighs a part by how many labels it has.",
    {
        "the learning rate": "no step is made, these are gradients.",
        "an old gradient": "it would disturb every cut, and 4 + 4 texts give the right gradient.",
        "dropout": "tiny has none; and it would disturb every cut.",
    },
)
def hasty() -> Callable[[PreTrainedModel, Sequence[tuple[Tensor, Tensor]]], None]:
    return accumulated


# ---- nine more, for the tests that the learner writes


class ByPlace(Embeddings):
    def make_position_ids(self, is_token, num_cached=0):
        return torch.ones_like(is_token).cumsum(-1) + num_cached + 1  # padding is counted as well


class Restarting(Embeddings):
    def make_position_ids(self, is_token, num_cached=0):
        return super().make_position_ids(is_token)  # every piece begins at 2


class TopLeft(Attention):
    def sdpa_attention(self, query, key, value, attention_mask, head_mask):
        causal = query.shape[2] > 1  # aligned at the first key: with a past, the past is nearly all that is seen
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal), None


class Leaky(Attention):
    def sdpa_attention(self, query, key, value, attention_mask, head_mask):
        low = None if attention_mask is None else -5.0 * ~attention_mask  # low, but not low enough
        return F.scaled_dot_product_attention(query, key, value, attn_mask=low), None


class Unending(Attention):
    def sdpa_attention(self, query, key, value, attention_mask, head_mask):
        if attention_mask is not None:  # padding behind the text is taken for text
            attention_mask = attention_mask | (attention_mask.flip(-1).cumsum(-1).flip(-1) == 0)
        return super().sdpa_attention(query, key, value, attention_mask, head_mask)


class WhenPadded(XLMRobertaXLForMaskedLM):
    def forward(self, input_ids=None, attention_mask=None, **inputs):
        out = super().forward(input_ids, attention_mask, **inputs)
        if attention_mask is not None and not attention_mask.all():
            out.logits = self.spoiled(out.logits, attention_mask)
        return out


class CutShort(WhenPadded):
    def spoiled(self, logits, mask):  # a text's last token is taken for padding
        return logits.masked_fill(F.pad(mask[:, 1:], (0, 1))[..., None] == 0, -1e4)


class Clipped(WhenPadded):
    def spoiled(self, logits, mask):
        return logits.clamp(min=0)  # none is too low, but some are too high


class Modest(Attention):
    def sdpa_attention(self, query, key, value, attention_mask, head_mask):
        if query.shape[2] == 1 < key.shape[2]:  # one new token sees the past, and not itself
            key, value = key[:, :, :-1], value[:, :, :-1]
        return super().sdpa_attention(query, key, value, attention_mask, head_mask)


class RoundedCache(LayerCache):
    def extend(self, key, value):  # half the memory, were it kept so
        return super().extend(key.bfloat16().float(), value.bfloat16().float())


class Thrifty(Attention):
    def forward(self, hidden, states, attention_mask, head_mask, cache, output_attentions):
        if cache is not None:
            cache.__class__ = RoundedCache
        return super().forward(hidden, states, attention_mask, head_mask, cache, output_attentions)


def leaky() -> XLMRobertaXLForMaskedLM:
    return infected(XLMRobertaXLForMaskedLM.from_pretrained("tiny"), Attention, Leaky)


def unending() -> XLMRobertaXLForMaskedLM:
    return infected(XLMRobertaXLForMaskedLM.from_pretrained("tiny"), Attention, Unending)


def cut_short() -> XLMRobertaXLForMaskedLM:
    return infected(XLMRobertaXLForMaskedLM.from_pretrained("tiny"), XLMRobertaXLForMaskedLM, CutShort)


def clipped() -> XLMRobertaXLForMaskedLM:
    return infected(XLMRobertaXLForMaskedLM.from_pretrained("tiny"), XLMRobertaXLForMaskedLM, Clipped)


def modest() -> XLMRobertaXLForCausalLM:
    return infected(XLMRobertaXLForCausalLM.from_pretrained("tiny-decoder"), Attention, Modest)


def thrifty() -> XLMRobertaXLForCausalLM:
    return infected(XLMRobertaXLForCausalLM.from_pretrained("tiny-decoder"), Attention, Thrifty)


def counted_by_place() -> XLMRobertaXLForMaskedLM:
    return infected(XLMRobertaXLForMaskedLM.from_pretrained("tiny"), Embeddings, ByPlace)


def restarting() -> XLMRobertaXLForCausalLM:
    return infected(XLMRobertaXLForCausalLM.from_pretrained("tiny-decoder"), Embeddings, Restarting)


def top_left() -> XLMRobertaXLForCausalLM:
    return infected(XLMRobertaXLForCausalLM.from_pretrained("tiny-decoder"), Attention, TopLeft)
