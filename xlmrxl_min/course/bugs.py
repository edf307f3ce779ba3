"""Real bugs of models like this one, planted in ours. Walked through in notebooks/12_spot_the_bug.ipynb.

This file gives the answers away: do the notebook first.
"""

from __future__ import annotations

import base64
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
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
from .checks import Guess
from .drawings import RED, bug_map


@dataclass(frozen=True)
class Case:
    """A bug of notebook 12.

    make: builds the buggy model, tokenizer or function. part: where the bug is, a key of drawings.BUG_PARTS. code: the
    buggy class or function. wrong: the beginning of each wrong line in it. why: what is wrong with it.
    """

    make: Callable[[], Any]
    part: str
    code: Any
    wrong: tuple[str, ...]
    why: str


CASES: dict[str, Case] = {}  # by letter; each is added below, after its code


def find(letter: str) -> Case:
    if letter.upper() not in CASES:
        raise ValueError(f"there is no case {letter!r}: the cases are {', '.join(sorted(CASES))}.")
    return CASES[letter.upper()]


def buggy(letter: str) -> Any:
    """Build the buggy model, tokenizer or function of a case. ValueError for an unknown letter."""
    return find(letter).make()


class Answer:
    """Where a bug is, in the drawing of the model and in the code; folded. part: the learner's guess."""

    def __init__(self, letter: str, part: Guess | None = None) -> None:
        self.case, self.letter = find(letter), letter.upper()
        said = f"{part.against(self.case.part)} " if part is not None and part.answer is not None else ""
        self.drawing = bug_map({self.letter: self.case.part})
        self.text = f"{said}{self.drawing.caption} {self.case.why}"
        self.lines = inspect.getsource(self.case.code).rstrip().splitlines()

    def __repr__(self) -> str:
        return "\n".join([self.text, "", *self.lines])

    def _repr_html_(self) -> str:
        picture = base64.b64encode(self.drawing.png()).decode("ascii")
        width, caption = round(self.drawing.figure.bbox.width), escape(self.drawing.caption)
        is_wrong = [line.strip().startswith(self.case.wrong) for line in self.lines]
        lines = [
            f'<b style="color: {RED}">{escape(line)}</b>' if wrong else escape(line)
            for line, wrong in zip(self.lines, is_wrong, strict=True)
        ]
        return (
            f"<details><summary>Show where bug {self.letter} is</summary>\n"
            f'<img src="data:image/png;base64,{picture}" alt="{caption}" width="{width}">\n'
            f"<p>{escape(self.text)}</p>\n<pre>" + "\n".join(lines) + "</pre>\n</details>"
        )


def plant(model: PreTrainedModel, original: type[nn.Module], replacement: type[nn.Module]) -> PreTrainedModel:
    """Turn every module of the class `original` into a `replacement`: the same weights, another method."""
    disguised = type(original.__name__, (replacement,), {})  # `print(model)` does not tell them apart
    for module in model.modules():
        if isinstance(module, original):
            module.__class__ = disguised
    return model.eval()


tiny = partial(XLMRobertaXLForMaskedLM.from_pretrained, "tiny")
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
    ("p = ", "return"),
    "The kernel does not know whether the model is in training: it drops whenever dropout_p is above 0.",
)


# ---- B


class InvertedMask(Attention):
    def sdpa_attention(self, query, key, value, attention_mask, head_mask):
        masked = None if attention_mask is None else ~attention_mask
        bias = self.bias(query, key, key.shape[2] - query.shape[2], masked)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias), None


CASES["B"] = Case(
    lambda: plant(tiny(), Attention, InvertedMask),
    "mask",
    InvertedMask,
    ("masked = ",),
    "This kernel takes True = may attend, and gets True = masked. Where nothing is padded, no mask is passed at all.",
)


# ---- C


class PositionsFromZero(Embeddings):
    def make_position_ids(self, is_token, num_earlier=0):
        return (is_token.cumsum(-1) + num_earlier - 1) * is_token


CASES["C"] = Case(
    lambda: plant(tiny(), Embeddings, PositionsFromZero),
    "position embeddings",
    PositionsFromZero,
    ("return",),
    "Positions begin at row 2. Here every token is two rows too early; the first two get rows that no text has used.",
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
        model.resize_token_embeddings(12064, mean_resizing=False)
    disguised = type("XLMRobertaTokenizer", (MaskAfterPieces,), {})
    return model.eval(), disguised(XLMRobertaTokenizer.from_pretrained("tiny").vocab_file)


CASES["D"] = Case(
    tiny_with_spare_rows,
    "tokenizer",
    MaskAfterPieces,
    ("return",),
    "<mask> gets the number of pieces plus four, but <s>, </s> and <unk> are pieces already: three too many.",
)


# ---- E


class NormByStd(nn.LayerNorm):
    def forward(self, x):
        mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        return self.weight * (x - mean) / (std + self.eps) + self.bias


CASES["E"] = Case(
    lambda: plant(tiny(), nn.LayerNorm, NormByStd),
    "LayerNorm",
    NormByStd,
    ("mean, std", "return"),
    "std() divides by e − 1 where the variance is meant to be divided by e, and eps is added outside the root.",
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
    "weighted sum",
    MixesOwnValue,
    ("return einsum",),
    "A q in place of a k: each query's weights are summed, to one, and multiply its own value. einsum allows it.",
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
    "LayerNorms of the block",
    our_name,
    ("return",),
    "XL norms first: self_attn_layer_norm comes before attention, and final_layer_norm before the feed-forward layer.",
)


# ---- H


def fill(model: PreTrainedModel, weights: dict[str, Tensor]) -> PreTrainedModel:
    for name, value in weights.items():
        module, _, parameter = name.rpartition(".")
        setattr(model.get_submodule(module), parameter, nn.Parameter(value.clone()))
    return model.eval()


CASES["H"] = Case(
    lambda: fill(tiny(), tiny().state_dict()),
    "tied weight",
    fill,
    ("setattr",),
    "Every name gets a tensor of its own, but the word embedding matrix has two names: tie them again after loading.",
)


# ---- I


class FixedNumberOfHeads(Attention):
    def split_heads(self, hidden):  # b t e -> b h t d
        batch, tokens, width = hidden.shape
        return hidden.view(batch, tokens, 6, width // 6).transpose(1, 2)


CASES["I"] = Case(
    lambda: plant(tiny(), Attention, FixedNumberOfHeads),
    "split into heads",
    FixedNumberOfHeads,
    ("return",),
    "The number of heads is fixed where their width should be: three heads of 32 are read as six of 16.",
)


# ---- J


class ShiftsLabelsTwice(XLMRobertaXLForCausalLM):
    def forward(self, input_ids=None, *args, labels=None, **inputs):
        if labels is not None:  # next-token prediction
            labels = F.pad(labels[:, 1:], (0, 1), value=-100)
        return super().forward(input_ids, *args, labels=labels, **inputs)


CASES["J"] = Case(
    lambda: plant(tiny_decoder(), XLMRobertaXLForCausalLM, ShiftsLabelsTwice),
    "loss",
    ShiftsLabelsTwice,
    ("labels = ",),
    "The model shifts the labels itself: shifted before as well, each position is scored on the token after the next.",
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
    "relative positions",
    QueriesAtTheEnd,
    ("rows = ",),
    "With a cache, every query of a chunk gets the last key's position: right for one new token, wrong for several.",
)


# ---- L


@torch.enable_grad()
def accumulate(model: PreTrainedModel, parts: Sequence[tuple[Tensor, Tensor]]) -> None:
    """The gradient of a batch that comes in parts, of ids and labels, `b t` each."""
    model.zero_grad()
    for ids, labels in parts:
        loss = model(ids, (ids != model.config.pad_token_id).long(), labels=labels).loss
        (loss / len(parts)).backward()


CASES["L"] = Case(
    lambda: accumulate,
    "gradient",
    accumulate,
    ("(loss",),
    "Each part's loss is a mean over its own labels. The mean over the batch weights a part by its number of labels.",
)


# ---- more bugs, and correct models, on which the tests that the learner writes are tried


class PositionsCountPadding(Embeddings):
    def make_position_ids(self, is_token, num_earlier=0):
        return torch.ones_like(is_token).cumsum(-1) + num_earlier + 1


class PositionsRestart(Embeddings):
    def make_position_ids(self, is_token, num_earlier=0):
        return super().make_position_ids(is_token)  # every chunk begins at 2


class CausalFromFirstKey(Attention):
    def sdpa_attention(self, query, key, value, attention_mask, head_mask):
        causal = query.shape[2] > 1  # with a past, a query sees hardly more than the past
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal), None


class WeakMask(Attention):
    def sdpa_attention(self, query, key, value, attention_mask, head_mask):
        bias = None if attention_mask is None else -13.0 * ~attention_mask  # low, but not low enough
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


class DropsEmbeddings(Embeddings):
    def forward(self, *inputs):
        return F.dropout(super().forward(*inputs), 0.1)  # which drops unless it is told training=False


class PositionsFromThree(Embeddings):
    def make_position_ids(self, is_token, num_earlier=0):
        return super().make_position_ids(is_token, num_earlier) + is_token


class OnePosition(Embeddings):
    def make_position_ids(self, is_token, num_earlier=0):
        return 2 * is_token  # right for the first token


class OtherMask(XLMRobertaTokenizer):
    mask_id = 12063

    def special_token_ids(self):
        return super().special_token_ids() | {"<mask>": self.mask_id}


class PadAsMask(OtherMask):
    mask_id = 1


class CorrectNorm(nn.LayerNorm):
    def __init__(self, width):
        super().__init__(width)
        nn.init.normal_(self.weight)
        nn.init.normal_(self.bias)


class NormByStdOfAll(CorrectNorm):  # eps is right
    def forward(self, x):
        return self.weight * (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + self.eps).sqrt() + self.bias


class NormWithEpsOutside(CorrectNorm):
    def forward(self, x):
        std = x.std(-1, keepdim=True, correction=0)
        return self.weight * (x - x.mean(-1, keepdim=True)) / (std + self.eps) + self.bias


class NormWithoutBias(CorrectNorm):
    def forward(self, x):
        return super().forward(x) - self.bias


class SeesThePast(Attention):
    def sdpa_attention(self, query, key, value, attention_mask, head_mask):
        return F.scaled_dot_product_attention(query, key, value, is_causal=True), None


class SeesFirstToken(Attention):
    def sdpa_attention(self, query, key, value, attention_mask, head_mask):
        return value[:, :, :1].expand(query.shape), None


class QueryForKey(Attention):
    def sdpa_attention(self, query, key, value, attention_mask, head_mask):
        return super().sdpa_attention(key, query, value, attention_mask, head_mask)


class PrunesTheNext(XLMRobertaXLForMaskedLM):
    def prune_heads(self, heads):
        super().prune_heads({layer: [(head + 1) % 6 for head in numbers] for layer, numbers in heads.items()})


class DoesNotShift(XLMRobertaXLForCausalLM):
    def targets(self, **inputs):
        return [inputs["labels"]]


class SumsLosses(XLMRobertaXLForCausalLM):
    def mean_loss(self, logits, targets, name="labels"):
        return super().mean_loss(logits, targets, name) * (targets != -100).sum()


@torch.enable_grad()
def accumulate_by_labels(model, parts):  # correct
    model.zero_grad()
    counts = [int((labels != -100).sum()) for _, labels in parts]
    for (ids, labels), count in zip(parts, counts, strict=True):
        (model(ids, labels=labels).loss * count / sum(counts)).backward()


def accumulate_twice(model, parts):
    accumulate_by_labels(model, [part for part in parts for _ in range(2)])  # correct: the same mean


@torch.enable_grad()
def accumulate_sums(model, parts):
    model.zero_grad()
    for ids, labels in parts:
        model(ids, labels=labels).loss.backward()


@torch.enable_grad()
def accumulate_without_zeroing(model, parts):
    counts = [int((labels != -100).sum()) for _, labels in parts]
    for (ids, labels), count in zip(parts, counts, strict=True):
        (model(ids, labels=labels).loss * count / sum(counts)).backward()
