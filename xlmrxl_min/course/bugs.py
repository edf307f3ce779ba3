"""Real bugs of models like this one, planted in ours. Walked through in notebooks/12_spot_the_bug.ipynb.

This file gives the answers away: do the notebook first.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

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


@dataclass(frozen=True)
class Case:
    """A bug of notebook 12.

    make: builds the buggy model, tokenizer or function. cause: the right suspect. code: the buggy class or function.
    why: what is wrong with it. others: each wrong suspect with what speaks against it.
    """

    make: Callable[[], Any]
    cause: str
    code: Any
    why: str
    others: dict[str, str]


CASES: dict[str, Case] = {}  # by letter; each is added below, after its code


def find(letter: str) -> Case:
    if letter.upper() not in CASES:
        raise ValueError(f"there is no case {letter!r}: the cases are {', '.join(sorted(CASES))}.")
    return CASES[letter.upper()]


def buggy(letter: str) -> Any:
    """Build the buggy model, tokenizer or function of a case. ValueError for an unknown letter."""
    return find(letter).make()


def suspects(letter: str) -> list[str]:
    """The possible causes in a case, in alphabetical order."""
    return sorted([find(letter).cause, *find(letter).others])


def diagnose(letter: str, suspect: str | None = None) -> str:
    """What speaks for or against this suspect, with the code for the right one. None: the list of suspects."""
    case = find(letter)
    if suspect is None:
        return f"Who is it? {'; '.join(suspects(letter))}."
    if normalize(suspect) == normalize(case.cause):
        return f"Yes, {case.cause}. {case.why}\n\n{inspect.getsource(case.code).rstrip()}"
    for name, why in case.others.items():
        if normalize(suspect) == normalize(name):
            return f"Not {name}: {why}"
    return f"{suspect!r} is not among the suspects: {'; '.join(suspects(letter))}."


def normalize(name: str) -> str:
    """Lower case, without the article."""
    return re.sub(r"^(the|an?) ", "", name.strip().lower().replace("’", "'"))


def plant(model: PreTrainedModel, original: type[nn.Module], replacement: type[nn.Module]) -> PreTrainedModel:
    """Turn every module of the class `original` into a `replacement`: the same weights, another method."""
    disguised = type(original.__name__, (replacement,), {})  # `print(model)` does not tell them apart
    for module in model.modules():
        if isinstance(module, original):
            module.__class__ = disguised
    return model.eval()


tiny = partial(XLMRobertaXLForMaskedLM.from_pretrained, "tiny-udhr")
tiny_decoder = partial(XLMRobertaXLForCausalLM.from_pretrained, "tiny-decoder")
tiny_relative_decoder = partial(XLMRobertaXLForCausalLM.from_pretrained, "tiny-relative-key", is_decoder=True)


# ---- A


class AlwaysDrops(Attention):
    def sdpa_attention(self, query, key, value, attention_mask, head_mask):
        bias = self.bias(query, key, key.shape[2] - query.shape[2], attention_mask)
        p = self.attention_dropout.p
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=p), None


CASES["A"] = Case(
    lambda: plant(tiny(attention_probs_dropout_prob=0.1), Attention, AlwaysDrops),
    "dropout",
    AlwaysDrops,
    "The kernel does not know whether the model is training: it drops whenever dropout_p is above 0.",
    {
        "the initialisation": "only a weight that a checkpoint lacks is random, and only once, before the runs.",
        "rounding": "sums in another order differ in the seventh digit, not in the first.",
        "the tokenizer": "the ids are made once, before the runs.",
    },
)


# ---- B


class InvertedMask(Attention):
    def sdpa_attention(self, query, key, value, attention_mask, head_mask):
        masked = None if attention_mask is None else ~attention_mask
        bias = self.bias(query, key, key.shape[2] - query.shape[2], masked)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias), None


CASES["B"] = Case(
    lambda: plant(tiny(), Attention, InvertedMask),
    "the mask",
    InvertedMask,
    "This kernel takes True = may attend, and was given True = masked; where nothing is padded, no mask is passed.",
    {
        "the positions": "they count real tokens only, on both paths, and the path that shows its weights is right.",
        "padding's embedding": "where attention's weights are shown, the same embedding does no harm.",
        "layernorm": "it treats each token by itself, so other tokens cannot disturb it.",
    },
)


# ---- C


class PositionsFromZero(Embeddings):
    def make_position_ids(self, is_token, num_cached=0):
        return (is_token.cumsum(-1) + num_cached - 1) * is_token


CASES["C"] = Case(
    lambda: plant(tiny(), Embeddings, PositionsFromZero),
    "the positions",
    PositionsFromZero,
    "Text begins at row 2. Here every token is two rows too early; the first two get rows that no text has used.",
    {
        "the words": "without them, a row of the position table is left, to a thousandth: so it was the right one.",
        "the token types": "there is one row of them, so it cannot differ between tokens.",
        "the order of the tokens": "the rows count up by one from token to token, as they should.",
    },
)


# ---- D


class MaskAfterPieces(XLMRobertaTokenizer):
    def special_token_ids(self):
        special = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
        return special | {"<mask>": len(self.sp_model) + len(special)}


def tiny_with_spare_rows() -> tuple[XLMRobertaXLForMaskedLM, XLMRobertaTokenizer]:
    """As XL, which has 878 unused rows behind the last token: no id is out of range."""
    model = tiny()
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model.resize_token_embeddings(8064)
    disguised = type("XLMRobertaTokenizer", (MaskAfterPieces,), {})
    return model.eval(), disguised(XLMRobertaTokenizer.from_pretrained("tiny-udhr").vocab_file)


CASES["D"] = Case(
    tiny_with_spare_rows,
    "the tokenizer",
    MaskAfterPieces,
    "<mask> is the last piece's number plus one: three of the four special tokens are in the vocabulary already.",
    {
        "the lm head": "with the other tokenizer the same head finds the words.",
        "the positions": "with the other tokenizer the same positions do.",
        "too little training": "with the other tokenizer the same weights find the words.",
    },
)


# ---- E


class NormByStd(nn.LayerNorm):
    def forward(self, x):
        mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        return self.weight * (x - mean) / (std + self.eps) + self.bias


CASES["E"] = Case(
    lambda: plant(tiny(), nn.LayerNorm, NormByStd),
    "layernorm",
    NormByStd,
    "std() divides by e - 1 where the variance is meant to be divided by e, and eps is added outside the root.",
    {
        "rounding": "it errs by 10⁻⁷, not by 10⁻³.",
        "gelu": "the error is there before the first feed-forward layer.",
        "the softmax": "the error is there before the first attention has mixed anything.",
    },
)


# ---- F


WRONG_PATTERN = "b h q k, b h q d -> b h q d"  # by a name: tests/axis_lint.py would find it in the call


class MixesOwnValue(Attention):
    def mix(self, query, key, value, attention_mask):
        scores = einsum(query, key, "b h q d, b h k d -> b h q k") / self.head_dim**0.5
        if attention_mask is not None:
            scores = scores + mask_to_bias(attention_mask, scores.dtype)
        weights = scores.softmax(-1)
        return einsum(weights, value, WRONG_PATTERN), weights

    def eager_attention(self, query, key, value, attention_mask, head_mask):
        return self.mix(query, key, value, attention_mask)

    def sdpa_attention(self, query, key, value, attention_mask, head_mask):
        return self.mix(query, key, value, attention_mask)[0], None


CASES["F"] = Case(
    lambda: plant(tiny(), Attention, MixesOwnValue),
    "the mixing",
    MixesOwnValue,
    "A q in place of a k: each query's weights are summed, to one, and multiply its own value. einsum says nothing.",
    {
        "the mask": "nothing is padded here, and the attention maps, which it would change, are tiny's.",
        "the softmax": "layer 0's attention maps, which it makes, are tiny's.",
        "the value matrix": "it is tiny's; and whatever it is, it says what is carried, not from where.",
    },
)


# ---- G


def our_name(name: str) -> str:
    """A norm of fairseq's layer: the one follows attention, the final one ends the layer, as in BERT."""
    return name.replace("self_attn_layer_norm", "feed_forward.norm").replace("final_layer_norm", "attention.norm")


def tiny_from_fairseq_names() -> XLMRobertaXLForMaskedLM:
    model, weights = tiny(), {}
    for name, value in model.state_dict().items():
        name = name.replace("feed_forward.norm", "final_layer_norm").replace("attention.norm", "self_attn_layer_norm")
        weights[our_name(name)] = value.clone()
    model.load_state_dict(weights, strict=True)
    return model.eval()


CASES["G"] = Case(
    tiny_from_fairseq_names,
    "two norms",
    our_name,
    "XL norms first: self_attn_layer_norm comes before attention, and final_layer_norm before the feed-forward layer.",
    {
        "a transposed matrix": "no matrix is among the parameters that differ.",
        "the heads' order": "query, key, value and out are not among the parameters that differ.",
        "a missing weight": "the loader was strict, and what differs is in tiny as well, under another name.",
    },
)


# ---- H


def fill(model: PreTrainedModel, weights: dict[str, Tensor]) -> PreTrainedModel:
    for name, value in weights.items():
        module, _, parameter = name.rpartition(".")
        setattr(model.get_submodule(module), parameter, nn.Parameter(value.clone()))
    return model.eval()


CASES["H"] = Case(
    lambda: fill(tiny(), tiny().state_dict()),
    "the tie",
    fill,
    "Every name gets a tensor of its own, and the word embeddings have two names: tie them again, after loading.",
    {
        "the optimizer": "the count was too high before it had done anything.",
        "the initialisation": "before the step both models give the same logits.",
        "a second lm head": "it would bring a dense layer, a norm and a bias too; there are 8,002 × 256 numbers more.",
    },
)


# ---- I


class FixedNumberOfHeads(Attention):
    def split_heads(self, hidden):  # b t e -> b h t d
        batch, tokens, width = hidden.shape
        return hidden.view(batch, tokens, 8, width // 8).transpose(1, 2)


CASES["I"] = Case(
    lambda: plant(tiny(), Attention, FixedNumberOfHeads),
    "the split into heads",
    FixedNumberOfHeads,
    "The number of heads is fixed where their width should be: six heads of 32 are read as eight of 24.",
    {
        "the rows that were cut": "what is left of query, key, value and out is what is left of them in tiny.",
        "a loss of needed heads": "masked, the same heads cost next to nothing.",
        "the bias of out": "it belongs to no head, and is tiny's.",
    },
)


# ---- J


class ShiftsLabelsTwice(XLMRobertaXLForCausalLM):
    def forward(self, input_ids=None, *args, labels=None, **inputs):
        if labels is not None:  # next-token prediction
            labels = F.pad(labels[:, 1:], (0, 1), value=-100)
        return super().forward(input_ids, *args, labels=labels, **inputs)


CASES["J"] = Case(
    lambda: plant(tiny_decoder(), XLMRobertaXLForCausalLM, ShiftsLabelsTwice),
    "the labels' shift",
    ShiftsLabelsTwice,
    "The model shifts the labels by one itself: shifted before as well, each token is to predict the next but one.",
    {
        "the causal mask": "the logits are tiny-decoder's, so what is wrong comes after them.",
        "padding": "there is one text here, and all of it counts.",
        "sum in place of mean": "the sum at shift 1 is smaller than what is reported, and the mean is far smaller.",
    },
)


# ---- K


class QueriesAtTheEnd(Attention):
    def position_bias(self, query, key, query_offset):
        last = key.shape[2] - 1
        if last < query.shape[2]:  # no past
            return super().position_bias(query, key, query_offset)
        rows = [super(QueriesAtTheEnd, self).position_bias(row, key, last) for row in query.split(1, dim=2)]
        return torch.cat(rows, dim=2)


CASES["K"] = Case(
    lambda: plant(tiny_relative_decoder(), Attention, QueriesAtTheEnd),
    "the queries' positions",
    QueriesAtTheEnd,
    "With a past, every query of a chunk gets the last key's position: right for one new token, wrong for several.",
    {
        "what the cache holds": "token by token the same cache gives the right answer.",
        "the causal mask": "no weight is on later tokens, and some is on the past.",
        "rounding": "it errs by 10⁻⁵ here, as the correct decoder shows, whatever the chunks.",
    },
)


# ---- L


def accumulate(model: PreTrainedModel, parts: Sequence[tuple[Tensor, Tensor]]) -> None:
    """The gradient of a batch that comes in parts, of ids and labels, `b t` each."""
    model.zero_grad()
    for ids, labels in parts:
        (model(ids, (ids != model.config.pad_token_id).long(), labels=labels).loss / len(parts)).backward()


CASES["L"] = Case(
    lambda: accumulate,
    "a mean of means",
    accumulate,
    "Each part's loss is a mean over its own labels; the batch's mean weights a part by how many labels it has.",
    {
        "the learning rate": "no step is made, these are gradients.",
        "an old gradient": "it would disturb every cut, and 4 + 4 texts give the right gradient.",
        "dropout": "tiny has none; and it would disturb every cut.",
    },
)


# ---- more bugs, on which the tests that the learner writes are tried


class PositionsCountPadding(Embeddings):
    def make_position_ids(self, is_token, num_cached=0):
        return torch.ones_like(is_token).cumsum(-1) + num_cached + 1


class PositionsRestart(Embeddings):
    def make_position_ids(self, is_token, num_cached=0):
        return super().make_position_ids(is_token)  # every chunk begins at 2


class CausalFromFirstKey(Attention):
    def sdpa_attention(self, query, key, value, attention_mask, head_mask):
        causal = query.shape[2] > 1  # with a past, a query sees hardly more than the past
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal), None


class WeakMask(Attention):
    def sdpa_attention(self, query, key, value, attention_mask, head_mask):
        bias = None if attention_mask is None else -5.0 * ~attention_mask  # low, but not low enough
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias), None


class AttendsToRightPadding(Attention):
    def sdpa_attention(self, query, key, value, attention_mask, head_mask):
        if attention_mask is not None:
            attention_mask = attention_mask | (attention_mask.flip(-1).cumsum(-1).flip(-1) == 0)
        return super().sdpa_attention(query, key, value, attention_mask, head_mask)


class ChangesPaddedLogits(XLMRobertaXLForMaskedLM):
    def forward(self, input_ids=None, attention_mask=None, **inputs):
        out = super().forward(input_ids, attention_mask, **inputs)
        if attention_mask is not None and not attention_mask.all():
            out.logits = self.change(out.logits, attention_mask)
        return out


class LosesLastToken(ChangesPaddedLogits):
    def change(self, logits, mask):  # a text's last token is taken for padding
        return logits.masked_fill(F.pad(mask[:, 1:], (0, 1))[..., None] == 0, -1e4)


class NoNegativeLogits(ChangesPaddedLogits):
    def change(self, logits, mask):
        return logits.clamp(min=0)  # none is too low, but some are too high


class IgnoresNewKey(Attention):
    def sdpa_attention(self, query, key, value, attention_mask, head_mask):
        if query.shape[2] == 1 < key.shape[2]:  # a single new token sees the past, and not itself
            key, value = key[:, :, :-1], value[:, :, :-1]
        return super().sdpa_attention(query, key, value, attention_mask, head_mask)


class RoundedLayerCache(LayerCache):
    def extend(self, key, value):
        return super().extend(key.bfloat16().float(), value.bfloat16().float())


class RoundsCache(Attention):
    def forward(self, hidden, states, attention_mask, head_mask, cache, output_attentions):
        if cache is not None:
            cache.__class__ = RoundedLayerCache
        return super().forward(hidden, states, attention_mask, head_mask, cache, output_attentions)
