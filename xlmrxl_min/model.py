"""XLM-RoBERTa-XL in one file: encoder, decoder, every head.

Goyal et al. 2021, "Larger-Scale Transformers for Multilingual Masked Language Modeling" (arXiv:2105.00572): the 3.5 and
10.7 billion parameter members of the XLM-R family. The code gives the numbers of its two reference implementations,
fairseq's `roberta/model_xlmr.py` and Hugging Face's `modeling_xlm_roberta_xl.py` (4.56.2), but for two places where the
latter answers differently with a cache than without: here, relative positions give every query its own position, and
absolute ones go on counting real tokens only.

Axes, the same letters in every pattern, comment and notebook:

    b batch     t token     q query position   k key position        r relative distance     h head
    d head width            e hidden width     f feed-forward width  v vocabulary            c choice, class     l layer

An e is h times d, and in self-attention q and k both run over the same tokens t.

Masks: one convention everywhere, True = may attend. Hugging Face's 0/1 masks are turned into it once, on entry.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral, Real
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu, "gelu_new": partial(F.gelu, approximate="tanh")}
POSITION_TYPES = ("absolute", "relative_key", "relative_key_query")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


def refuse(is_wrong: bool, why: str) -> None:
    if is_wrong:
        raise ValueError(why)


def is_size(value: Any) -> bool:
    return isinstance(value, Integral) and value > 0


def is_share(value: Any) -> bool:
    return isinstance(value, Real) and 0 <= value < 1


# Fields of a config, what makes a value x of theirs possible in config c, and how to say so.
CONFIG_RULES: tuple[tuple[str, Callable[[Any, Any], bool], str], ...] = (
    ("vocab_size hidden_size num_hidden_layers", lambda x, c: is_size(x), "a positive integer"),
    ("num_attention_heads intermediate_size", lambda x, c: is_size(x), "a positive integer"),
    ("type_vocab_size num_labels", lambda x, c: is_size(x), "a positive integer"),
    ("pad_token_id bos_token_id eos_token_id", lambda x, c: x in range(c.vocab_size), "an id below {vocab_size}"),
    ("max_position_embeddings", lambda x, c: is_size(x) and x > c.pad_token_id + 1, "above pad_token_id + 1"),
    ("hidden_size", lambda x, c: x % c.num_attention_heads == 0, "a multiple of num_attention_heads"),
    ("hidden_dropout_prob attention_probs_dropout_prob", lambda x, c: is_share(x), "at least 0, and below 1"),
    ("classifier_dropout", lambda x, c: x is None or is_share(x), "None, or at least 0 and below 1"),
    ("layer_norm_eps", lambda x, c: isinstance(x, Real) and x > 0, "a number above 0"),
    ("initializer_range", lambda x, c: isinstance(x, Real) and x >= 0, "a number, 0 or more"),
    ("hidden_act", lambda x, c: callable(x) or x in ACTIVATIONS, "a function or one of " + ", ".join(ACTIVATIONS)),
    ("position_embedding_type", lambda x, c: x in POSITION_TYPES, "one of " + ", ".join(POSITION_TYPES)),
    ("problem_type", lambda x, c: x in (None, *PROBLEM_TYPES), "None or one of " + ", ".join(PROBLEM_TYPES)),
    ("num_labels", lambda x, c: x == len(c.id2label), "the number of names in id2label"),
    ("add_cross_attention", lambda x, c: c.is_decoder or not x, "False in an encoder"),
)


@dataclass
class XLMRobertaXLConfig:
    """Every choice that shapes the model, under Hugging Face's names; the defaults are XL's (paper, section 2).

    Keys of a `config.json` that mean nothing here are kept in `extra`, can be read as attributes, and are saved again.
    Raises ValueError for a value that no model can have.
    """

    vocab_size: int = 250880
    hidden_size: int = 2560
    num_hidden_layers: int = 36
    num_attention_heads: int = 32
    intermediate_size: int = 10240
    hidden_act: str | Callable[[Tensor], Tensor] = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 514  # 512 tokens: the first stands at position pad_token_id + 1 = 2
    type_vocab_size: int = 1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    pad_token_id: int = 1
    bos_token_id: int = 0
    eos_token_id: int = 2
    position_embedding_type: str = "absolute"
    use_cache: bool = True
    classifier_dropout: float | None = None  # None: hidden_dropout_prob
    is_decoder: bool = False
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True
    num_labels: int | None = None  # None: as many as id2label names, or 2
    problem_type: str | None = None  # None: told by the labels
    id2label: dict[int, str] | None = None
    label2id: dict[str, int] | None = None
    pruned_heads: dict[int, list[int]] = field(default_factory=dict)
    output_attentions: bool = False
    output_hidden_states: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    from_pretrained: ClassVar[Callable[..., XLMRobertaXLConfig]]  # added, like the next, by checkpoint.py
    save_pretrained: ClassVar[Callable[..., None]]

    def __post_init__(self) -> None:
        names = self.id2label or {i: f"LABEL_{i}" for i in range(2 if self.num_labels is None else self.num_labels)}
        names = dict(enumerate(names)) if isinstance(names, list) else names
        self.id2label = {int(i): name for i, name in names.items()}  # JSON has made strings of the numbers
        self.label2id = self.label2id or {name: i for i, name in self.id2label.items()}
        self.num_labels = len(self.id2label) if self.num_labels is None else self.num_labels
        self.pruned_heads = {int(layer): list(heads) for layer, heads in (self.pruned_heads or {}).items()}
        self.check()

    def check(self) -> None:
        """Raise ValueError, in one sentence, if no model can be built from this."""
        for names, is_possible, allowed in CONFIG_RULES:
            for name in names.split():
                wrong = not is_possible(self[name], self)
                refuse(wrong, f"{name}={self[name]!r} is impossible: it must be {allowed.format_map(vars(self))}.")

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def __getattr__(self, name: str) -> Any:  # called only for what is no field
        if name in self.__dict__.get("extra", {}):
            return self.extra[name]
        raise AttributeError(f"XLMRobertaXLConfig has no field {name!r}.")

    @property
    def most_tokens(self) -> int:
        """Tokens of the longest text. Absolute positions begin at pad_token_id + 1; distances need no position."""
        return self.max_position_embeddings - (self.pad_token_id + 1) * (self.position_embedding_type == "absolute")

    @classmethod
    def xl(cls, **overrides: Any) -> XLMRobertaXLConfig:
        return cls(**overrides)

    @classmethod
    def xxl(cls, **overrides: Any) -> XLMRobertaXLConfig:
        return cls(**{"hidden_size": 4096, "num_hidden_layers": 48, "intermediate_size": 16384, **overrides})


class ModelOutput(dict):
    """What every model returns; read `out.logits`, `out["logits"]` or `out[0]`. Fields that do not apply are None.

    loss; logits `b t v`, `b t c` or `b c`; start_logits, end_logits `b t`; last_hidden_state `b t e`; pooler_output
    `b e`; past_key_values: a Cache; hidden_states: l + 1 of `b t e`, the embeddings first, the final-normed stream
    last; attentions, cross_attentions: l of `b h q k`.
    """

    FIELDS = ("loss", "logits", "start_logits", "end_logits", "last_hidden_state", "pooler_output", "past_key_values")
    FIELDS += ("hidden_states", "attentions", "cross_attentions")

    def __init__(self, values: Any = (), **more: Any) -> None:
        values = {**dict(values), **more}
        super().__init__((name, values[name]) for name in self.FIELDS if values.get(name) is not None)

    def __getattr__(self, name: str) -> Any:
        if name in self.FIELDS:
            return self.get(name)
        raise AttributeError(f"a model's output has no {name!r}: it can have {', '.join(self.FIELDS)}.")

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __missing__(self, name: str) -> Any:
        raise KeyError(
            f"there is no {name!r} in this output, only {', '.join(self)}: ask for more, as output_{name}=True."
        )

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self.values())


class LayerCache:
    """Keys and values of one attention, b h k d each, written into memory that is allocated ahead of need."""

    def __init__(self) -> None:
        self.length, self.keys, self.values = 0, None, None

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append b h t d each; return all so far, b h k d each."""
        self.keys, self.values = self.append(self.keys, key), self.append(self.values, value)
        self.length += key.shape[2]
        return self.read()

    def read(self) -> tuple[Tensor, Tensor]:
        return self.keys.narrow(2, 0, self.length), self.values.narrow(2, 0, self.length)

    def select(self, rows: Tensor) -> None:
        if self.keys is not None:
            self.keys, self.values = self.keys[rows], self.values[rows]

    def append(self, old: Tensor | None, new: Tensor) -> Tensor:
        end = self.length + new.shape[2]
        if torch.is_grad_enabled():  # a write in place would spoil what earlier steps keep for their gradients
            return new if old is None else torch.cat([old[:, :, : self.length], new], dim=2)
        can_be = old is not None and not torch.compiler.is_compiling()  # the compiler knows nothing of inference mode
        is_frozen = can_be and old.is_inference() and not torch.is_inference_mode_enabled()
        # Doubling: n steps copy fewer than 2 n positions in all. One place stays free, as all of a tensor is a special
        # case to a compiler, of which it would make one more graph.
        if old is None or is_frozen or end >= old.shape[2]:
            roomier = new.new_empty(*new.shape[:2], max(end + 1, 2 * (self.length + 1), 64), new.shape[3])
            if old is not None:
                roomier[:, :, : self.length] = old[:, :, : self.length]
            old = roomier
        old.narrow(2, self.length, new.shape[2]).copy_(new)
        return old


class Cache:
    """What a decoder remembers between calls: for every layer the keys and values of self- and of cross-attention."""

    def __init__(self, num_layers: int) -> None:
        self.layers = [LayerCache() for _ in range(num_layers)]
        self.cross = [LayerCache() for _ in range(num_layers)]
        self.real_tokens: Tensor | int = 0  # b 1: how many tokens of each row were no padding

    def get_seq_length(self) -> int:
        """Tokens held per row, padding included."""
        return self.layers[0].length

    def select(self, rows: Tensor) -> None:
        """Keep these rows, `b` numbers, in this order; beam search goes on from one row in several ways."""
        for layer in (*self.layers, *self.cross):
            layer.select(rows)
        self.real_tokens = self.real_tokens[rows] if isinstance(self.real_tokens, Tensor) else self.real_tokens


def can_look(values: Tensor) -> bool:
    """Whether values can be read here and now: not while compiling, and not without storage."""
    return values.numel() > 0 and not (values.is_meta or torch.compiler.is_compiling())


def check_tensor(name: str, value: Any) -> None:
    cure = 'tokenize with return_tensors="pt", and call model(**encoding)'
    refuse(not isinstance(value, Tensor), f"{name} is a {type(value).__name__}, but must be a tensor: {cure}.")


def check_truths(name: str, mask: Tensor) -> None:
    strange = (mask != 0) & (mask != 1)
    refuse(bool(strange.any()), f"{name} takes only 1 (may attend) and 0 (padding), and holds something else.")


def check_range(name: str, ids: Tensor, limit: int, way_out: str) -> None:
    """Raise ValueError where an id would fall outside its table, instead of an IndexError or a CUDA assert later."""
    whole = not ids.is_floating_point() and ids.dtype != torch.bool
    refuse(not whole, f"{name} must be integers, not {ids.dtype}: use .long().")
    low, high = (int(bound) for bound in ids.aminmax()) if can_look(ids) else (0, 0)
    wrong = low if low < 0 else high
    refuse(not 0 <= wrong < limit, f"{name} holds {wrong}, but allowed are 0 to {limit - 1}: {way_out}.")


def who_may_attend(
    name: str, mask: Tensor | None, shape: tuple[int, int, int], device: torch.device, causal=False, growing=False
) -> Tensor | None:
    """0/1 mask `b k` or `b q k`, for `shape` (b, q, k) -> b 1 q k, True = may attend; None where everybody may.

    If causal, a query sees itself and what came before; a `b q k` mask is taken as it is, as the reference does.
    ValueError for another shape, other values, or a row that is all padding, unless it is still growing.
    """
    (batch, queries, keys), allowed = shape, None
    if mask is not None:
        check_tensor(name, mask)
        fits = tuple(mask.shape) in ((batch, keys), (batch, queries, keys))
        ours = f"{(batch, keys)} or {(batch, queries, keys)}, an entry for every token, cached ones included"
        refuse(not fits, f"{name} has shape {tuple(mask.shape)}, but must be {ours}.")
        allowed, causal = mask.to(device) != 0, causal and mask.dim() == 2
        if can_look(mask):
            check_truths(name, mask)
            empty = (~allowed.any(-1)).nonzero()[:, 0].tolist() if mask.dim() == 2 and not growing else []
            refuse(bool(empty), f"{name} has only padding in row {empty[:1]}: drop it, or mark its tokens with 1.")
            allowed = None if bool(allowed.all()) else allowed
    if allowed is not None:
        allowed = rearrange(allowed, "b k -> b 1 1 k" if mask.dim() == 2 else "b q k -> b 1 q k")
    if causal and queries > 1:
        query_at, key_at = torch.arange(keys - queries, keys, device=device), torch.arange(keys, device=device)
        before = rearrange(query_at, "q -> 1 1 q 1") >= rearrange(key_at, "k -> 1 1 1 k")
        allowed = before if allowed is None else allowed & before
    return allowed


def as_bias(may_attend: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores: nothing where one may attend, and elsewhere much less than any score."""
    low = torch.finfo(dtype).min / 2  # not -inf, so that a query with nothing to see spreads evenly
    return torch.zeros_like(may_attend, dtype=dtype).masked_fill(~may_attend, low)


class Embeddings(nn.Module):
    """Words, positions, token types, summed; no norm. Walked through in notebooks/01_tokens_and_embeddings.ipynb."""

    def __init__(self, config: XLMRobertaXLConfig) -> None:
        super().__init__()
        self.config, pad = config, config.pad_token_id
        self.word = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=pad)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size, padding_idx=pad)
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    # b t -> b t e
    def forward(self, input_ids, inputs_embeds, token_type_ids: Tensor | None, position_ids: Tensor) -> Tensor:
        hidden = self.word(input_ids) if inputs_embeds is None else inputs_embeds
        hidden = hidden + self.token_type(torch.zeros_like(position_ids) if token_type_ids is None else token_type_ids)
        if self.config.position_embedding_type == "absolute":
            hidden = hidden + self.position(position_ids)
        return self.dropout(hidden)

    def number(self, is_token: Tensor, seen: Tensor | int = 0) -> Tensor:  # b t -> b t
        """Positions: tokens count from pad + 1, after the `seen` ones (b 1); padding gets the padding id (fairseq)."""
        return (is_token.cumsum(-1) + seen) * is_token + self.config.pad_token_id


ROWS_AT_A_TIME = 128  # of by_distance: more cost memory, fewer cost time


# b h q d, r d -> b h q k
def by_distance(vectors: Tensor, table: Tensor, ahead: int, columns: int) -> Tensor:
    """Every row times the vector of its distance to every column; row i stands at position i + ahead.

    `table` holds the vectors of the distances, from -(r // 2) to r // 2. Rows have most distances in common, so a few
    rows are multiplied by all the vectors that they need, and the skew finds each product its place. The plain way, a
    vector for each pair of row and column, holds q k d numbers (tests/test_positions.py).
    """
    blocks, start = [], len(table) // 2 + ahead  # where the table has the distance of the first row to column 0
    if columns == 1:  # decoding with a cache: each row has but one distance
        return einsum(vectors, table[start : start + vectors.shape[2]], "b h q d, q d -> b h q")[..., None]
    for block in vectors.split(ROWS_AT_A_TIME, dim=2):
        stop = start + block.shape[2]
        needed = table[start - columns + 1 : stop].flip(0)  # the last row's largest distance first
        blocks.append(skew(einsum(block, needed, "b h q d, r d -> b h q r"), columns))
        start = stop
    return torch.cat(blocks, dim=2)


def skew(scores: Tensor, columns: int) -> Tensor:  # b h q r -> b h q k
    """Move row i to the left by q - 1 - i places, as a view; r = q + k - 1. After Music Transformer, 2018.

    In memory the rows lie end to end. Read with rows that are one shorter, each begins one place earlier in its own.
    """
    batch, heads, rows, width = scores.shape
    strides = (heads * rows * width, rows * width, width - 1, 1)
    from_row_0 = rearrange(scores.contiguous(), "b h q r -> b h (q r)")[..., rows - 1 :]
    return from_row_0.as_strided((batch, heads, rows, columns), strides)


class Attention(nn.Module):
    """Multi-head attention, pre-normed; self, causal or cross. Walked through in notebooks/02_attention.ipynb.

    Relative positions (notebooks/04_positions.ipynb) are added to self-attention's scores before the division by √d:
    relative_key after Shaw et al. 2018, without the value term; relative_key_query after Huang et al. 2020, method 4.
    """

    def __init__(self, config: XLMRobertaXLConfig, is_cross: bool = False) -> None:
        super().__init__()
        width, self.is_cross = config.hidden_size, is_cross
        self.head_width = width // config.num_attention_heads
        self.heads = list(range(config.num_attention_heads))  # the unpruned model's numbers of the heads that are left
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.weights_dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.position_type = "absolute" if is_cross else config.position_embedding_type
        if self.position_type != "absolute":
            self.distance = nn.Embedding(2 * config.max_position_embeddings - 1, self.head_width)

    # hidden b q e, context b k e -> b q e, weights b h q k (None unless asked for)
    def forward(
        self, hidden: Tensor, context: Tensor | None = None, may_attend: Tensor | None = None,
        head_mask: Tensor | None = None, cache: LayerCache | None = None, want_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        stream = self.norm(hidden)
        query = self.split(self.query(stream))
        if self.is_cross and cache is not None and cache.length:
            key, value = cache.read()  # what is looked at across does not change: computing it once is enough
        else:
            source = context if self.is_cross else stream  # the encoder's states are final-normed: read as they are
            key, value = self.split(self.key(source)), self.split(self.value(source))
            key, value = (key, value) if cache is None else cache.extend(key, value)
        mix = self.written_out if want_weights or head_mask is not None else self.fused
        mixed, weights = mix(query, key, value, may_attend, head_mask)
        merged = rearrange(mixed, "b h q d -> b q (h d)")
        return hidden + self.dropout(self.out(merged)), weights if want_weights else None

    def split(self, hidden: Tensor) -> Tensor:  # b t e -> b h t d
        return rearrange(hidden, "b t (h d) -> b h t d", d=self.head_width)

    def bias(self, query: Tensor, key: Tensor, ahead: int, may_attend: Tensor | None) -> Tensor | None:
        """What is added to the scaled scores: b h q d, b h k d, b 1 q k -> b h q k. The queries begin at `ahead`."""
        bias = None if self.position_type == "absolute" else self.position_bias(query, key, ahead)
        if may_attend is None:
            return bias
        lowest = as_bias(may_attend, query.dtype)
        return lowest if bias is None else bias + lowest

    def position_bias(self, query: Tensor, key: Tensor, ahead: int) -> Tensor:  # b h q d, b h k d -> b h q k
        """What the distance, query position minus key position, adds to the scaled scores."""
        table = self.distance.weight.to(query.dtype) / math.sqrt(self.head_width)
        bias = by_distance(query, table, ahead, key.shape[2])
        if self.position_type == "relative_key_query":  # seen from the keys, every distance has the other sign
            bias += rearrange(by_distance(key, table.flip(0), -ahead, query.shape[2]), "b h k q -> b h q k")
        return bias

    # b h q d, b h k d, b h k d -> b h q d, b h q k
    def written_out(self, query, key, value, may_attend: Tensor | None, head_mask) -> tuple[Tensor, Tensor]:
        """Attention step by step, for whoever wants to see the weights or to mask heads."""
        bias = self.bias(query, key, key.shape[2] - query.shape[2], may_attend)
        scores = einsum(query / math.sqrt(self.head_width), key, "b h q d, b h k d -> b h q k")
        weights = (scores if bias is None else scores + bias).softmax(-1)
        weights = self.weights_dropout(weights)
        if head_mask is not None:
            weights = weights * rearrange(head_mask[self.heads], "h -> 1 h 1 1")
        return einsum(weights, value, "b h q k, b h k d -> b h q d"), weights

    # b h q d, b h k d, b h k d -> b h q d, None
    def fused(self, query, key, value, may_attend: Tensor | None, head_mask: None) -> tuple[Tensor, None]:
        """The same numbers from PyTorch's kernels, which need not hold the weights; nor, in blocks, the whole bias."""
        ahead = key.shape[2] - query.shape[2]  # with a cache, the queries are the last ones
        blocks = query.split(query.shape[2] if self.position_type == "absolute" else ROWS_AT_A_TIME, dim=2)
        for_all = may_attend is None or may_attend.shape[2] == 1
        masks = [may_attend] * len(blocks) if for_all else may_attend.split(blocks[0].shape[2], dim=2)
        mixed, dropout = [], self.weights_dropout.p if self.training else 0.0
        for rows, mask in zip(blocks, masks, strict=True):
            bias = self.bias(rows, key, ahead, mask)
            mixed.append(F.scaled_dot_product_attention(rows, key, value, attn_mask=bias, dropout_p=dropout))
            ahead += rows.shape[2]
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=2), None

    def prune(self, gone: list[int]) -> None:
        """Take out the heads `gone`: their rows of query, key and value, their columns of out."""
        kept = [head for head in self.heads if head not in gone]
        old = torch.tensor([self.heads.index(head) for head in kept], device=self.out.weight.device)
        old = rearrange(old, "h -> h 1") * self.head_width + torch.arange(self.head_width, device=old.device)
        old, self.heads = rearrange(old, "h d -> (h d)"), kept
        for linear in (self.query, self.key, self.value):
            linear.weight, linear.bias = (nn.Parameter(x.detach()[old]) for x in (linear.weight, linear.bias))
            linear.out_features = len(old)
        self.out.weight, self.out.in_features = nn.Parameter(self.out.weight.detach()[:, old]), len(old)


class FeedForward(nn.Module):
    """Norm, widen, bend, narrow, add; no dropout (the reference). Walked through in notebooks/05_the_block.ipynb."""

    def __init__(self, config: XLMRobertaXLConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)
        self.act = config.hidden_act if callable(config.hidden_act) else ACTIVATIONS[config.hidden_act]

    def forward(self, hidden: Tensor) -> Tensor:  # b t e -> b t e
        return hidden + self.down(self.act(self.up(self.norm(hidden))))


class Block(nn.Module):
    """Attention, in some decoders cross-attention, feed-forward. Walked through in notebooks/05_the_block.ipynb."""

    def __init__(self, config: XLMRobertaXLConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.cross_attention = Attention(config, is_cross=True) if config.add_cross_attention else None
        self.feed_forward = FeedForward(config)

    # b t e -> b t e, weights b h q k, cross weights b h q k
    def forward(
        self, hidden: Tensor, may_attend=None, context=None, may_attend_across=None, head_mask=None,
        cache: LayerCache | None = None, cross_cache: LayerCache | None = None, want_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
        cross_weights, extras = None, {"head_mask": head_mask, "want_weights": want_weights}
        hidden, weights = self.attention(hidden, may_attend=may_attend, cache=cache, **extras)
        if self.cross_attention is not None:
            across = {"context": context, "may_attend": may_attend_across, "cache": cross_cache}
            hidden, cross_weights = self.cross_attention(hidden, **across, **extras)
        return self.feed_forward(hidden), weights, cross_weights


class Pooler(nn.Module):
    """The first token, through one more layer. Walked through in notebooks/07_heads.ipynb."""

    def __init__(self, config: XLMRobertaXLConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:  # b t e -> b e
        return torch.tanh(self.dense(hidden[:, 0]))


class PreTrainedModel(nn.Module):
    """What all models share."""

    from_pretrained: ClassVar[Callable[..., Any]]  # this and the next are added by checkpoint.py: no files in this file
    save_pretrained: ClassVar[Callable[..., None]]

    def __init__(self, config: XLMRobertaXLConfig) -> None:
        super().__init__()
        config.check()  # fields may have been changed since it was made
        self.config = config

    def __call__(self, *args: Any, return_dict: bool | None = None, **kwargs: Any) -> Any:
        out = super().__call__(*args, **kwargs)
        return out.to_tuple() if return_dict is False else out

    def finish(self) -> None:
        """The last line of every constructor: initialise, tie, and take out the heads that the config calls pruned."""
        for child in self.children():
            if not isinstance(child, PreTrainedModel):  # a backbone has done all this itself
                child.apply(self.init_weights)
        self.tie_weights()
        if self.base_model is self:
            self.prune_heads(self.config.pruned_heads)

    def init_weights(self, module: nn.Module) -> None:
        """Normal with standard deviation `initializer_range`; zeros for biases and padding; norms as they come."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])

    def tie_weights(self) -> None:
        """Make the LM head's matrix and the word embeddings one object, if the config says so."""
        if self.get_output_embeddings() is not None and self.config.tie_word_embeddings:
            for name, parameter in self.get_input_embeddings().named_parameters():  # weight; in int8 its scale, too
                setattr(self.lm_head.decoder, name, parameter)

    @property
    def base_model(self) -> XLMRobertaXLModel:
        return self.backbone if hasattr(self, "backbone") else self

    @property
    def device(self) -> torch.device:
        return self.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.base_model.norm.weight.dtype  # the matrices may be in int8

    def get_input_embeddings(self) -> nn.Embedding:
        return self.base_model.embeddings.word

    def get_output_embeddings(self) -> nn.Linear | None:
        return self.lm_head.decoder if hasattr(self, "lm_head") else None

    def resize_token_embeddings(self, n: int) -> nn.Embedding:
        """Cut or grow the vocabulary to `n` ids; old rows keep their values, new ones are initialised. Returns it."""
        special = max(self.config.pad_token_id, self.config.bos_token_id, self.config.eos_token_id)
        refuse(n <= special, f"a vocabulary of {n} is too small: the special tokens have ids up to {special}.")
        for table in filter(None, (self.get_input_embeddings(), self.get_output_embeddings())):
            old = dict(table.named_parameters())
            for name, parameter in old.items():
                room = parameter.new_empty(n, *parameter.shape[1:])
                setattr(table, name, nn.Parameter(room, parameter.requires_grad))
            self.init_weights(table)
            for name, parameter in old.items():
                getattr(table, name).data[: len(parameter)] = parameter.data[:n]
            setattr(table, "num_embeddings" if isinstance(table, nn.Embedding) else "out_features", n)
        self.tie_weights()
        self.config.vocab_size = n
        return self.get_input_embeddings()

    def prune_heads(self, heads: dict[int, list[int]]) -> None:
        """Take attention heads out for good: `{layer: [heads]}`, always by the numbers of the unpruned model."""
        layers, width, plan = self.config.num_hidden_layers, self.config.num_attention_heads, {}
        for layer, numbers in heads.items():
            fits = layer in range(layers) and set(numbers) <= set(range(width))
            ranges = f"there are layers 0 to {layers - 1} with heads 0 to {width - 1}"
            refuse(not fits, f"prune_heads got layer {layer}, heads {list(numbers)}, but {ranges}.")
            plan[layer] = sorted({*self.config.pruned_heads.get(layer, []), *numbers})
            refuse(len(plan[layer]) == width, f"prune_heads would leave no head in layer {layer}: keep at least one.")
        for layer, numbers in plan.items():
            self.base_model.layers[layer].attention.prune(numbers)
        self.config.pruned_heads = {**self.config.pruned_heads, **plan}

    def gradient_checkpointing_enable(self, enable: bool = True) -> None:
        """In training, keep only each block's input and compute the rest again for the gradients: saves memory."""
        self.base_model.recomputes = enable

    def gradient_checkpointing_disable(self) -> None:
        self.gradient_checkpointing_enable(False)


class XLMRobertaXLModel(PreTrainedModel):
    """Encoder, or with is_decoder=True decoder, without a head. Walked through in notebooks/05_the_block.ipynb."""

    def __init__(self, config: XLMRobertaXLConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = Pooler(config) if add_pooling_layer else None
        self.recomputes = False
        self.finish()

    # b t -> b t e
    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None, position_ids: Tensor | None = None,
        head_mask: Tensor | None = None, inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None, use_cache: bool | None = None,
        output_attentions: bool | None = None, output_hidden_states: bool | None = None,
    ) -> ModelOutput:  # fmt: skip
        """input_ids `b t` or inputs_embeds `b t e` -> last_hidden_state `b t e`, pooler_output `b e`.

        attention_mask `b k` or `b q k`, 1 = may attend, None = all may; k counts cached tokens too. token_type_ids,
        position_ids `b t`. head_mask `h` or `l h`, 1 = keep. encoder_hidden_states `b k e`, for cross-attention.
        past_key_values: an earlier call's, extended in place. Raises ValueError for what cannot be right.
        """
        config = self.config
        by_token = {"token_type_ids": token_type_ids, "position_ids": position_ids}
        self.check(input_ids, inputs_embeds, by_token, encoder_hidden_states, past_key_values)
        cache = self.open_cache(past_key_values, use_cache)
        want_weights = config.output_attentions if output_attentions is None else output_attentions
        want_hidden = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        tokens = input_ids if inputs_embeds is None else inputs_embeds
        batch, queries, device = *tokens.shape[:2], tokens.device
        keys = queries + (0 if cache is None else cache.get_seq_length())

        is_token = input_ids != config.pad_token_id if inputs_embeds is None else tokens.new_ones(tokens.shape[:2]) > 0
        if position_ids is None:
            position_ids = self.embeddings.number(is_token, 0 if cache is None else cache.real_tokens)
        room, longest = config.most_tokens, keys
        if config.position_embedding_type == "absolute":
            longest = int(position_ids.max()) - config.pad_token_id if can_look(position_ids) else 0
        if longest > room:  # not by `refuse`: naming the number would tie a compiled graph to one length
            cure = "so cut the text (truncation=True)"
            raise ValueError(f"{longest} tokens are too many: there is room for {room}, {cure}.")
        shape, causal = (batch, queries, keys), config.is_decoder
        may_attend = who_may_attend("attention_mask", attention_mask, shape, device, causal, growing=cache is not None)
        across = None
        if config.add_cross_attention:
            shape = (batch, queries, (cache and cache.cross[0].length) or encoder_hidden_states.shape[1])
            across = who_may_attend("encoder_attention_mask", encoder_attention_mask, shape, device)
        # A query that may attend to nothing, such as left padding's, gets wrong gradients from the fused kernels.
        masks = [mask for mask in (may_attend, across) if mask is not None and can_look(mask)]
        lost = [not bool(mask.any(-1).all()) for mask in masks]
        if torch.compiler.is_compiling():  # no looking: any mask given that could have one counts
            given = [mask for mask in (attention_mask, encoder_attention_mask) if mask is not None]
            lost = [config.is_decoder or mask.dim() == 3 for mask in given]
        is_lost = torch.is_grad_enabled() and any(lost)
        head_masks = self.spread(head_mask)

        hidden = self.embeddings(input_ids, inputs_embeds, token_type_ids, position_ids)
        states, weights = [hidden] if want_hidden else [], []
        for i, block in enumerate(self.layers):
            run = partial(checkpoint, block, use_reentrant=False) if self.recomputes and self.training else block
            caches = (None, None) if cache is None else (cache.layers[i], cache.cross[i])
            args = (may_attend, encoder_hidden_states, across, head_masks[i], *caches, want_weights or is_lost)
            hidden, *both_weights = run(hidden, *args)
            weights.append(both_weights)
            if want_hidden:
                states.append(hidden)
        hidden = self.norm(hidden)
        if cache is not None:
            cache.real_tokens = cache.real_tokens + is_token.sum(-1, keepdim=True)
        attentions, cross_attentions = zip(*weights, strict=True)
        return ModelOutput(
            last_hidden_state=hidden,
            pooler_output=None if self.pooler is None else self.pooler(hidden),
            past_key_values=cache,
            hidden_states=(*states[:-1], hidden) if want_hidden else None,
            attentions=attentions if want_weights else None,
            cross_attentions=cross_attentions if want_weights and config.add_cross_attention else None,
        )

    def open_cache(self, given: Cache | None, use_cache: bool | None) -> Cache | None:
        """The cache to read and to extend: the given one, a new one, or None where nothing is to be remembered."""
        wanted = self.config.use_cache if use_cache is None else use_cache
        wanted = wanted and self.config.is_decoder and not (self.recomputes and self.training)
        return Cache(len(self.layers)) if given is None and wanted else given

    def check(self, input_ids, inputs_embeds, by_token: dict, states: Tensor | None, cache: Cache | None) -> None:
        """Raise ValueError, in one sentence, for what cannot be right."""
        config, given = self.config, input_ids if inputs_embeds is None else inputs_embeds
        width, got = config.hidden_size, "neither" if given is None else "both"
        is_one = (input_ids is None) != (inputs_embeds is None)
        refuse(not is_one, f"got {got} of input_ids and inputs_embeds: pass one of them.")
        check_tensor("the input", given)
        rest, ours = ((), "") if inputs_embeds is None else ((width,), f", hidden_size={width}")
        fits = given.dim() == 2 + len(rest) and given.shape[1] > 0 and given.shape[2:] == rest
        ours = f"(batch, tokens{ours})"
        refuse(not fits, f"the input has shape {tuple(given.shape)}, but must be {ours} with at least one token.")
        batch, tokens = given.shape[:2]
        if input_ids is not None:
            check_range("input_ids", input_ids, config.vocab_size, "tokenize with this model's own vocabulary")
        limits = {"token_type_ids": config.type_vocab_size, "position_ids": config.max_position_embeddings}
        for name, ids in by_token.items():
            if ids is not None:
                shape, ours = tuple(ids.shape), (batch, tokens)
                refuse(shape not in (ours, (1, tokens)), f"{name} has shape {shape}, but must be {ours}.")
                check_range(name, ids, limits[name], f"leave {name} out for the usual ones")
        if cache is not None:
            is_ours = isinstance(cache, Cache) and config.is_decoder and not (self.recomputes and self.training)
            refuse(not is_ours, f"past_key_values is a {type(cache).__name__}: only a decoder's own go back in.")
            rows = None if cache.layers[0].keys is None else len(cache.layers[0].keys)
            fits = len(cache.layers) == len(self.layers) and rows in (None, batch)
            ours = f"{len(self.layers)} layers and {batch} rows"
            refuse(not fits, f"past_key_values hold {len(cache.layers)} layers and {rows} rows, but must hold {ours}.")
        remembers = cache is not None and cache.cross[0].length > 0
        lacks_states = config.add_cross_attention and states is None and not remembers
        refuse(lacks_states, "cross-attention needs encoder_hidden_states: pass the encoder's last_hidden_state.")
        if states is not None:
            cure = "for encoder_hidden_states, build it with is_decoder=True, add_cross_attention=True"
            refuse(not config.add_cross_attention, f"this model has no cross-attention: {cure}.")
            ours = f"(batch={batch}, tokens, hidden_size={width})"
            refuse(states.shape[::2] != (batch, width), f"encoder_hidden_states are {tuple(states.shape)}, not {ours}.")

    def spread(self, head_mask: Tensor | None) -> list[None] | Tensor:  # h or l h -> l h
        shape = (self.config.num_hidden_layers, self.config.num_attention_heads)
        if head_mask is None:
            return [None] * shape[0]
        fits = tuple(head_mask.shape) in (shape, shape[1:])
        refuse(not fits, f"head_mask has shape {tuple(head_mask.shape)}, but must be {shape[1:]} or {shape}.")
        return head_mask.to(self.device, self.dtype).expand(shape)


class LMHead(nn.Module):
    """Hidden states to a score for every token. Walked through in notebooks/06_masked_language_model.ipynb."""

    def __init__(self, config: XLMRobertaXLConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden: Tensor) -> Tensor:  # b t e -> b t v
        return self.decoder(self.norm(F.gelu(self.dense(hidden))))


class ClassificationHead(nn.Module):
    """The first token through two layers, with dropout before each. Walked through in notebooks/07_heads.ipynb."""

    def __init__(self, config: XLMRobertaXLConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = head_dropout(config)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, hidden: Tensor) -> Tensor:  # b t e -> b c
        pooled = torch.tanh(self.dense(self.dropout(hidden[:, 0])))
        return self.out_proj(self.dropout(pooled))


def head_dropout(config: XLMRobertaXLConfig) -> nn.Dropout:
    return nn.Dropout(config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout)


def cross_entropy(logits: Tensor, labels: Tensor | None, ignore: int = -100, name: str = "labels") -> Tensor | None:
    """Mean loss of `logits` `… v` at labels `…` other than `ignore`; None without labels, ValueError for wrong ones."""
    if labels is None:
        return None
    shape, ours = tuple(labels.shape), tuple(logits.shape[:-1])
    refuse(shape != ours, f"{name} have shape {shape}, but must be {ours}.")
    counted = labels.masked_fill(labels == ignore, 0)
    check_range(name, counted, logits.shape[-1], f"{ignore} marks what has no label")
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1).long(), ignore_index=ignore)


def headed(out: ModelOutput, loss: Tensor | None, **logits: Tensor) -> ModelOutput:
    """The backbone's output as a head passes it on: its last state has become logits."""
    rest = {name: value for name, value in out.items() if name not in ("last_hidden_state", "pooler_output")}
    return ModelOutput(loss=loss, **logits, **rest)


class XLMRobertaXLForMaskedLM(PreTrainedModel):
    """Fills in masks, the pre-training task. Walked through in notebooks/06_masked_language_model.ipynb."""

    def __init__(self, config: XLMRobertaXLConfig) -> None:
        super().__init__(config)
        if config.is_decoder:
            warnings.warn("with is_decoder=True a masked language model cannot see what follows a mask.", stacklevel=2)
        self.backbone = XLMRobertaXLModel(config, add_pooling_layer=False)
        self.lm_head = LMHead(config)
        self.finish()

    # b t -> b t v
    def forward(self, input_ids: Tensor | None = None, *args, labels: Tensor | None = None, **inputs) -> ModelOutput:
        """labels `b t`: the tokens to be found, -100 elsewhere. The other inputs are XLMRobertaXLModel's."""
        out = self.backbone(input_ids, *args, **inputs)
        logits = self.lm_head(out.last_hidden_state)
        return headed(out, cross_entropy(logits, labels), logits=logits)


class XLMRobertaXLForCausalLM(PreTrainedModel):
    """Predicts the next token. Walked through in notebooks/08_decoder.ipynb."""

    generate: ClassVar[Callable[..., Tensor]]  # this and the next are added by generation.py
    stream: ClassVar[Callable[..., Any]]

    def __init__(self, config: XLMRobertaXLConfig) -> None:
        super().__init__(config)
        if not config.is_decoder:
            warnings.warn("with is_decoder=False a causal language model sees what it is to predict.", stacklevel=2)
        self.backbone = XLMRobertaXLModel(config, add_pooling_layer=False)
        self.lm_head = LMHead(config)
        self.finish()

    # b t -> b t v
    def forward(self, input_ids: Tensor | None = None, *args, labels: Tensor | None = None, **inputs) -> ModelOutput:
        """labels `b t`, usually input_ids: each place is scored on the label to its right. -100 counts nowhere."""
        out = self.backbone(input_ids, *args, **(inputs if labels is None else {**inputs, "use_cache": False}))
        logits = self.lm_head(out.last_hidden_state)
        if labels is None:
            return headed(out, None, logits=logits)
        following = F.pad(labels[:, 1:], (0, 1), value=-100)  # nothing follows the last
        return headed(out, cross_entropy(logits.float(), following), logits=logits)


class XLMRobertaXLForSequenceClassification(PreTrainedModel):
    """One class, several, or a number for a whole text. Walked through in notebooks/07_heads.ipynb."""

    def __init__(self, config: XLMRobertaXLConfig) -> None:
        super().__init__(config)
        self.backbone = XLMRobertaXLModel(config, add_pooling_layer=False)
        self.classifier = ClassificationHead(config)
        self.finish()

    # b t -> b c
    def forward(self, input_ids: Tensor | None = None, *args, labels: Tensor | None = None, **inputs) -> ModelOutput:
        """labels: `b` integers for one class, `b c` floats 0/1 for several, `b` or `b c` floats for regression."""
        out = self.backbone(input_ids, *args, **inputs)
        logits = self.classifier(out.last_hidden_state)
        return headed(out, None if labels is None else self.loss(logits, labels), logits=logits)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """By problem_type; if the config has none, by the number of labels and their dtype, as the reference does."""
        is_class = labels.dtype in (torch.long, torch.int)
        inferred = PROBLEM_TYPES[0 if self.config.num_labels == 1 else 1 if is_class else 2]
        problem = self.config.problem_type or inferred
        if problem == "single_label_classification":
            return cross_entropy(logits, labels.reshape(-1))
        shapes = (logits.shape, logits.shape[:1]) if logits.shape[1] == 1 else (logits.shape,)
        refuse(
            labels.shape not in shapes,
            f"labels have shape {tuple(labels.shape)}, but {problem} needs {tuple(logits.shape)}.",
        )
        loss = F.mse_loss if problem == "regression" else F.binary_cross_entropy_with_logits
        return loss(logits, labels.reshape(logits.shape).to(logits.dtype))


class XLMRobertaXLForMultipleChoice(PreTrainedModel):
    """Scores every one of several texts. Walked through in notebooks/07_heads.ipynb."""

    def __init__(self, config: XLMRobertaXLConfig) -> None:
        super().__init__(config)
        self.backbone = XLMRobertaXLModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.finish()

    # b c t -> b c
    def forward(
        self, input_ids=None, token_type_ids=None, attention_mask=None, labels: Tensor | None = None, position_ids=None,
        head_mask=None, inputs_embeds=None, **inputs,
    ) -> ModelOutput:  # fmt: skip
        """input_ids, token_type_ids, attention_mask, position_ids `b c t`, inputs_embeds `b c t e`; labels `b`."""
        given = input_ids if inputs_embeds is None else inputs_embeds
        fits = isinstance(given, Tensor) and given.dim() == (3 if inputs_embeds is None else 4)
        refuse(not fits, "multiple choice takes input_ids (batch, choices, tokens), or the same as inputs_embeds.")
        flat = {"input_ids": input_ids, "token_type_ids": token_type_ids, "attention_mask": attention_mask}
        flat |= {"position_ids": position_ids, "inputs_embeds": inputs_embeds}
        flat = {name: None if x is None else rearrange(x, "b c ... -> (b c) ...") for name, x in flat.items()}
        out = self.backbone(**flat, head_mask=head_mask, **inputs)
        logits = rearrange(self.classifier(self.dropout(out.pooler_output)), "(b c) 1 -> b c", c=given.shape[1])
        return headed(out, cross_entropy(logits, labels), logits=logits)


class XLMRobertaXLForTokenClassification(PreTrainedModel):
    """A class for every token. Walked through in notebooks/07_heads.ipynb."""

    def __init__(self, config: XLMRobertaXLConfig) -> None:
        super().__init__(config)
        self.backbone = XLMRobertaXLModel(config, add_pooling_layer=False)
        self.dropout = head_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.finish()

    # b t -> b t c
    def forward(
        self, input_ids=None, attention_mask=None, *args, labels: Tensor | None = None, **inputs
    ) -> ModelOutput:
        """labels `b t`: the class of each token, -100 for none; padding has none."""
        out = self.backbone(input_ids, attention_mask, *args, **inputs)
        logits = self.classifier(self.dropout(out.last_hidden_state))
        if labels is not None and attention_mask is not None and attention_mask.shape == labels.shape:
            labels = labels.masked_fill(attention_mask == 0, -100)
        return headed(out, cross_entropy(logits, labels), logits=logits)


class XLMRobertaXLForQuestionAnswering(PreTrainedModel):
    """Finds where an answer starts and where it ends. Walked through in notebooks/07_heads.ipynb."""

    def __init__(self, config: XLMRobertaXLConfig) -> None:
        super().__init__(config)
        refuse(config.num_labels != 2, f"num_labels={config.num_labels} is impossible here: a span has 2 ends.")
        self.backbone = XLMRobertaXLModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, config.num_labels)
        self.finish()

    # b t -> b t, b t
    def forward(self, input_ids=None, *args, start_positions=None, end_positions=None, **inputs) -> ModelOutput:
        """start_positions, end_positions `b`: the answer's first and last token; beyond the text: no answer here."""
        out = self.backbone(input_ids, *args, **inputs)
        start, end = self.qa_outputs(out.last_hidden_state).unbind(-1)
        loss, beyond = None, start.shape[1]
        if start_positions is not None and end_positions is not None:
            ends = {"start_positions": (start, start_positions), "end_positions": (end, end_positions)}
            at = {name: positions.reshape(-1).clamp(0, beyond) for name, (_, positions) in ends.items()}
            loss = sum(cross_entropy(logits, at[name], beyond, name) for name, (logits, _) in ends.items()) / 2
        return headed(out, loss, start_logits=start, end_logits=end)
