"""XLM-RoBERTa-XL in one file: encoder, decoder, every task head.

Goyal et al. 2021, "Larger-Scale Transformers for Multilingual Masked Language Modeling" (arXiv:2105.00572): the 3.5 and
10.7 billion parameter members of the XLM-R family. The numbers equal those of fairseq's `roberta/model_xlmr.py` and of
Hugging Face's `modeling_xlm_roberta_xl.py` (4.56.2), but for two cases in which the latter depends on the cache: here,
relative positions always use each query's own position, and absolute positions never count padding.

Axes, the same letters in every pattern, comment and notebook:

    b batch     t token     q query position   k key position        r relative distance     h head
    d head width            e hidden width     f feed-forward width  v vocabulary            c choice, class     l layer

e is h times d, and in self-attention q and k both run over the same tokens t.

Masks: one convention everywhere, True = may attend. Hugging Face's 0/1 masks are converted to it once, on entry.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .base import Cache, GenerationMixin, LayerCache, ModelOutput, PreTrainedConfig, PreTrainedModel, input_checks
from .base.loss import ModelWithLoss, infer_problem_type

gelu_new = partial(F.gelu, approximate="tanh")
ACTIVATIONS: dict[str, Any] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu, "gelu_new": gelu_new}
QUERY_BLOCK_SIZE = 128  # queries whose relative scores are computed at once: a larger block needs more memory
Opt: TypeAlias = "Tensor | None"  # most arguments are optional


@dataclass
class XLMRobertaXLConfig(PreTrainedConfig):
    """The sizes and settings of a model, under Hugging Face's names; the defaults are XL's (paper, section 2).

    Unknown keys of a `config.json` are kept in `extra`, as attributes, too. ValueError for a value no model can have.
    """

    vocab_size: int = 250880
    hidden_size: int = 2560
    num_hidden_layers: int = 36
    num_attention_heads: int = 32
    intermediate_size: int = 10240
    hidden_act: str | Callable[[Tensor], Tensor] = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 514  # 512 tokens: the first one has position pad_token_id + 1 = 2
    type_vocab_size: int = 1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    pad_token_id: int = 1
    bos_token_id: int | None = 0
    eos_token_id: int | None = 2
    position_embedding_type: str = "absolute"
    use_cache: bool = True
    classifier_dropout: float | None = None  # None: hidden_dropout_prob
    is_decoder: bool = False
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True
    num_labels: int = None  # type: ignore[assignment]  # as many as there are names in id2label, or 2
    problem_type: str | None = None  # None: inferred from the labels
    id2label: dict[int, str] = None  # type: ignore[assignment]  # LABEL_0, LABEL_1, …
    label2id: dict[str, int] = None  # type: ignore[assignment]  # the inverse of id2label
    pruned_heads: dict[int, list[int]] = field(default_factory=dict)
    output_attentions: bool = False
    output_hidden_states: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    activations: ClassVar[dict[str, Any]] = ACTIVATIONS  # for validation

    @classmethod
    def xl(cls, **overrides: Any) -> XLMRobertaXLConfig:
        return cls(**overrides)

    @classmethod
    def xxl(cls, **overrides: Any) -> XLMRobertaXLConfig:
        return cls(**{"hidden_size": 4096, "num_hidden_layers": 48, "intermediate_size": 16384, **overrides})


def build_attention_mask(mask: Opt, queries: int, keys: int, device: torch.device, is_causal: bool) -> Opt:
    """0/1 mask `b k` -> `b 1 1 k`, `b q k` -> `b 1 q k`, True = may attend; None if every query may attend to all keys.

    is_causal: -> `b 1 q k` or `1 1 q k`; a query attends to itself and to earlier tokens. As in Hugging Face, a `b q k`
    mask is used as it is.
    """
    allowed = None
    if mask is not None and not (input_checks.is_readable(mask) and bool(mask.all())):
        allowed = rearrange(mask.to(device) != 0, "b k -> b 1 1 k" if mask.dim() == 2 else "b q k -> b 1 q k")
    if is_causal and queries > 1 and (mask is None or mask.dim() == 2):
        causal_mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
        allowed = rearrange(causal_mask, "q k -> 1 1 q k") if allowed is None else allowed & causal_mask
    return allowed


def mask_to_bias(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """True -> 0, False -> a number far below any score; added to the scores before the softmax."""
    low = torch.finfo(dtype).min / 2  # half, so that a score cannot make it -inf: a fully masked row would be NaN
    return torch.zeros_like(attention_mask, dtype=dtype).masked_fill(~attention_mask, low)


class Embeddings(nn.Module):
    """Word + position + token type, no LayerNorm. Walked through in notebooks/01_tokens_and_embeddings.ipynb."""

    def __init__(self, config: XLMRobertaXLConfig) -> None:
        super().__init__()
        self.config, pad = config, config.pad_token_id
        self.word = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=pad)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size, padding_idx=pad)
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    # b t -> b t e
    def forward(self, input_ids: Opt, inputs_embeds: Opt, token_type_ids: Opt, position_ids: Tensor) -> Tensor:
        hidden = self.word(input_ids) if inputs_embeds is None else inputs_embeds
        hidden = hidden + self.token_type(torch.zeros_like(position_ids) if token_type_ids is None else token_type_ids)
        if self.config.position_embedding_type == "absolute":
            hidden = hidden + self.position(position_ids)
        return self.dropout(hidden)

    def make_position_ids(self, is_token: Tensor, num_earlier: Tensor | int = 0) -> Tensor:  # b t -> b t
        """Tokens count from pad_token_id + 1, after `num_earlier` (b 1) cached ones; padding has pad_token_id."""
        return (is_token.cumsum(-1) + num_earlier) * is_token + self.config.pad_token_id


# b h q d, r d -> b h q k
def relative_scores(vectors: Tensor, table: Tensor, query_offset: int, num_keys: int) -> Tensor:
    """Every query times the vector of its distance to every key; query i has position i + query_offset.

    `table` holds a vector for each distance from -(r // 2) to r // 2. Neighbouring queries share most distances, so a
    block of queries is multiplied by all the vectors it needs, and `skew` shifts each product to its key. A vector for
    each pair of query and key would hold q k d numbers (tests/parity/test_positions.py).
    """
    start = len(table) // 2 + query_offset  # the row of the distance from the first query to key 0
    if num_keys == 1:  # keys in the role of queries, and one new query in that of the keys: nothing to skew
        return einsum(vectors, table[start : start + vectors.shape[2]], "b h q d, q d -> b h q")[..., None]
    blocks = []
    for block in input_checks.split_queries(vectors, QUERY_BLOCK_SIZE):
        stop = start + block.shape[2]
        distances = table[start - num_keys + 1 : stop].flip(0)  # the last query's largest distance first
        blocks.append(skew(einsum(block, distances, "b h q d, r d -> b h q r"), num_keys))
        start = stop
    return torch.cat(blocks, dim=2)


def skew(scores: Tensor, num_keys: int) -> Tensor:  # b h q r -> b h q k
    """Shift row i to the left by q - 1 - i, as a view; r = q + k - 1. After Music Transformer (Huang et al. 2018).

    In memory one row follows the other. Read with rows that are one shorter, each row starts one element earlier.
    """
    rows = scores.shape[2]
    flat = rearrange(scores, "b h q r -> b h (q r)")[..., rows - 1 : -1]
    return scores if rows == 1 else rearrange(flat, "b h (q r) -> b h q r", q=rows)[..., :num_keys]


class Attention(nn.Module):
    """Pre-norm multi-head attention; self, causal or cross. Walked through in notebooks/02_attention.ipynb.

    Relative positions (notebooks/04_positions.ipynb) add to the scores of self-attention before the division by √d:
    relative_key after Shaw et al. 2018, without the value term; relative_key_query after Huang et al. 2020, method 4.
    """

    def __init__(self, config: XLMRobertaXLConfig, is_cross: bool = False) -> None:
        super().__init__()
        width, self.is_cross = config.hidden_size, is_cross
        self.head_dim = width // config.num_attention_heads
        self.heads = list(range(config.num_attention_heads))  # those left after pruning, by their first numbers
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.attention_dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.position_embedding_type = "absolute" if is_cross else config.position_embedding_type
        if self.position_embedding_type != "absolute":
            self.distance = nn.Embedding(2 * config.max_position_embeddings - 1, self.head_dim)

    # hidden b q e, encoder_hidden_states b k e -> b q e, weights b h q k (None unless asked for)
    def forward(
        self, hidden: Tensor, encoder_hidden_states: Opt = None, attention_mask: Opt = None, head_mask: Opt = None,
        cache: LayerCache | None = None, output_attentions: bool = False,
    ) -> tuple[Tensor, Opt]:  # fmt: skip
        normed = self.norm(hidden)
        query = self.split_heads(self.query(normed))
        if self.is_cross and cache is not None and cache.length:
            key, value = cache.read()  # the encoder's states stay the same while the decoder generates
        else:
            source = encoder_hidden_states if self.is_cross else normed  # the encoder has normed its states itself
            key, value = self.split_heads(self.key(source)), self.split_heads(self.value(source))
            key, value = (key, value) if cache is None else cache.extend(key, value)
        is_eager = output_attentions or head_mask is not None
        attention = self.eager_attention if is_eager else self.sdpa_attention
        context, weights = attention(query, key, value, attention_mask, head_mask)
        merged = rearrange(context, "b h q d -> b q (h d)")
        return hidden + self.dropout(self.out(merged)), weights if output_attentions else None

    def split_heads(self, hidden: Tensor) -> Tensor:  # b t e -> b h t d
        return rearrange(hidden, "b t (h d) -> b h t d", d=self.head_dim)

    def bias(self, query: Tensor, key: Tensor, query_offset: int, attention_mask: Opt) -> Opt:
        """What is added to the scaled scores, broadcastable to b h q k. The first query has position query_offset."""
        is_relative = self.position_embedding_type != "absolute"
        bias = self.position_bias(query, key, query_offset) if is_relative else None
        if attention_mask is None:
            return bias
        mask_bias = mask_to_bias(attention_mask, query.dtype)
        return mask_bias if bias is None else bias + mask_bias

    def position_bias(self, query: Tensor, key: Tensor, query_offset: int) -> Tensor:  # b h q d, b h k d -> b h q k
        """What the distance, query position minus key position, adds to the scaled scores."""
        table = self.distance.weight.to(query.dtype) / math.sqrt(self.head_dim)
        bias = relative_scores(query, table, query_offset, key.shape[2])
        if self.position_embedding_type == "relative_key_query":  # seen from the keys, distances have the other sign
            by_key = relative_scores(key, table.flip(0), -query_offset, query.shape[2])
            bias += rearrange(by_key, "b h k q -> b h q k")
        return bias

    # b h q d, b h k d, b h k d -> b h q d, b h q k
    def eager_attention(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Opt, head_mask: Opt
    ) -> tuple[Tensor, Opt]:
        """Attention step by step: for the weights, and for masking heads."""
        bias = self.bias(query, key, key.shape[2] - query.shape[2], mask)
        scores = einsum(query / math.sqrt(self.head_dim), key, "b h q d, b h k d -> b h q k")
        weights = self.attention_dropout((scores if bias is None else scores + bias).softmax(-1))
        if head_mask is not None:
            weights = weights * rearrange(head_mask[self.heads], "h -> 1 h 1 1")
        return einsum(weights, value, "b h q k, b h k d -> b h q d"), weights

    # b h q d, b h k d, b h k d -> b h q d, None
    def sdpa_attention(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Opt, head_mask: Opt
    ) -> tuple[Tensor, Opt]:
        """The same by PyTorch's fused kernels: the weights are never in memory, a relative bias only block by block."""
        sdpa = partial(F.scaled_dot_product_attention, dropout_p=self.attention_dropout.p if self.training else 0.0)
        query_offset = key.shape[2] - query.shape[2]  # with a cache, the queries are the last tokens
        if self.position_embedding_type == "absolute":
            return sdpa(query, key, value, self.bias(query, key, query_offset, mask)), None
        blocks = input_checks.split_queries(query, QUERY_BLOCK_SIZE)
        masks: Any = [None] * len(blocks)
        if mask is not None:
            masks = input_checks.split_queries(mask.expand(-1, -1, query.shape[2], -1), QUERY_BLOCK_SIZE)
        contexts = []
        for block, its_mask in zip(blocks, masks, strict=True):
            contexts.append(sdpa(block, key, value, self.bias(block, key, query_offset, its_mask)))
            query_offset += block.shape[2]
        return torch.cat(contexts, dim=2), None


class FeedForward(nn.Module):
    """LayerNorm, up-projection, activation, down-projection. Walked through in notebooks/05_the_block.ipynb."""

    def __init__(self, config: XLMRobertaXLConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)
        self.act = ACTIVATIONS[config.hidden_act] if isinstance(config.hidden_act, str) else config.hidden_act

    def forward(self, hidden: Tensor) -> Tensor:  # b t e -> b t e
        return hidden + self.down(self.act(self.up(self.norm(hidden))))  # no dropout, as in Hugging Face


class Block(nn.Module):
    """Attention, in some decoders cross-attention, feed-forward. Walked through in notebooks/05_the_block.ipynb."""

    def __init__(self, config: XLMRobertaXLConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.cross_attention = Attention(config, is_cross=True) if config.add_cross_attention else None
        self.feed_forward = FeedForward(config)

    # b t e -> b t e, weights b h q k, cross weights b h q k
    def forward(
        self, hidden: Tensor, attention_mask: Opt = None, encoder_hidden_states: Opt = None, encoder_mask: Opt = None,
        head_mask: Opt = None, cache: LayerCache | None = None, cross_cache: LayerCache | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Opt, Opt]:  # fmt: skip
        hidden, weights = self.attention(hidden, None, attention_mask, head_mask, cache, output_attentions)
        cross_weights = None
        if self.cross_attention is not None:
            hidden, cross_weights = self.cross_attention(
                hidden, encoder_hidden_states, encoder_mask, head_mask, cross_cache, output_attentions
            )
        return self.feed_forward(hidden), weights, cross_weights


class Pooler(nn.Module):
    """The first token through a linear layer and tanh. Walked through in notebooks/07_heads.ipynb."""

    def __init__(self, config: XLMRobertaXLConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:  # b t e -> b e
        return torch.tanh(self.dense(hidden[:, 0]))


class XLMRobertaXLModel(PreTrainedModel):
    """Encoder, or with is_decoder=True decoder, without a task head. Walked through in notebooks/05_the_block.ipynb."""

    def __init__(self, config: XLMRobertaXLConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(self.config)
        self.layers = nn.ModuleList(Block(self.config) for _ in range(self.config.num_hidden_layers))
        self.norm = nn.LayerNorm(self.config.hidden_size, eps=self.config.layer_norm_eps)
        self.pooler = Pooler(self.config) if add_pooling_layer else None
        self.post_init()

    # b t -> b t e
    def forward(
        self, input_ids: Opt = None, attention_mask: Opt = None, token_type_ids: Opt = None, position_ids: Opt = None,
        head_mask: Opt = None, inputs_embeds: Opt = None, encoder_hidden_states: Opt = None,
        encoder_attention_mask: Opt = None, past_key_values: Cache | None = None, use_cache: bool | None = None,
        output_attentions: bool | None = None, output_hidden_states: bool | None = None,
    ) -> ModelOutput:  # fmt: skip
        """input_ids `b t` or inputs_embeds `b t e` -> last_hidden_state `b t e`, pooler_output `b e`.

        attention_mask `b k` or `b q k`, 1 = may attend, None = all may; k counts cached tokens too. token_type_ids,
        position_ids `b t`. head_mask `h` or `l h`, 1 = keep. encoder_hidden_states `b k e`, for cross-attention.
        past_key_values: an earlier call's, extended in place. Raises ValueError for inputs that cannot be right.
        """
        config, cache = self.config, past_key_values
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        if cache is None and self.can_cache() and (config.use_cache if use_cache is None else use_cache):
            cache = Cache(len(self.layers))
        tokens = input_checks.check_inputs(
            self, input_ids, inputs_embeds, attention_mask, token_type_ids, position_ids, head_mask,
            encoder_hidden_states, encoder_attention_mask, cache,
        )  # fmt: skip

        queries, device = tokens.shape[1], tokens.device
        keys = queries + (0 if cache is None else cache.get_seq_length())
        is_token = (tokens != config.pad_token_id if inputs_embeds is None else torch.ones_like(tokens[..., 0])).long()
        num_earlier = 0 if cache is None else cache.num_valid_tokens
        if position_ids is None:
            position_ids = self.embeddings.make_position_ids(is_token, num_earlier)
        input_checks.check_length(config, position_ids, keys)
        mask = build_attention_mask(attention_mask, queries, keys, device, is_causal=config.is_decoder)
        encoder_attention_mask = encoder_attention_mask if config.add_cross_attention else None
        encoder_mask = build_attention_mask(encoder_attention_mask, queries, keys, device, is_causal=False)
        is_eager = input_checks.needs_eager(self, (mask, attention_mask), (encoder_mask, encoder_attention_mask))
        head_masks = input_checks.expand_head_mask(self, head_mask)

        hidden = self.embeddings(input_ids, inputs_embeds, token_type_ids, position_ids)
        hidden_states, attentions, cross_attentions = [hidden], [], []
        recomputes = self.gradient_checkpointing and self.training
        for i, block in enumerate(self.layers):
            run: Any = partial(checkpoint, block, **self.gradient_checkpointing_kwargs) if recomputes else block
            caches = (None, None) if cache is None else (cache.layers[i], cache.cross[i])
            hidden, weights, cross_weights = run(
                hidden, mask, encoder_hidden_states, encoder_mask, head_masks[i], *caches, output_attentions or is_eager
            )
            if output_attentions:
                attentions.append(weights)
                cross_attentions.append(cross_weights)
            if output_hidden_states:
                hidden_states.append(hidden)
        hidden = self.norm(hidden)
        if cache is not None:
            cache.num_valid_tokens = cache.num_valid_tokens + is_token.sum(-1, keepdim=True)
        return ModelOutput(
            last_hidden_state=hidden,
            pooler_output=None if self.pooler is None else self.pooler(hidden),
            past_key_values=cache,
            hidden_states=(*hidden_states[:-1], hidden) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
            cross_attentions=tuple(cross_attentions) if output_attentions and config.add_cross_attention else None,
        )


class LMHead(nn.Module):
    """Hidden states to logits over the vocabulary. Walked through in notebooks/06_masked_language_model.ipynb."""

    def __init__(self, config: XLMRobertaXLConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden: Tensor) -> Tensor:  # b t e -> b t v
        return self.decoder(self.norm(F.gelu(self.dense(hidden))))


class ClassificationHead(nn.Module):
    """The first token through two linear layers with dropout. Walked through in notebooks/07_heads.ipynb."""

    def __init__(self, config: XLMRobertaXLConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.head_dropout_prob)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, hidden: Tensor) -> Tensor:  # b t e -> b c
        pooled = torch.tanh(self.dense(self.dropout(hidden[:, 0])))
        return self.out_proj(self.dropout(pooled))


class ModelWithHead(ModelWithLoss):
    """What heads share. Their loss is cross-entropy, if they have no other. See notebooks/07_heads.ipynb."""

    def mean_loss(self, logits: Tensor, targets: Tensor, name: str = "labels") -> Tensor:  # … v, … -> one number
        input_checks.check_targets(name, targets, logits)
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))


class XLMRobertaXLForMaskedLM(ModelWithHead):
    """Predicts masked tokens, the pre-training task. Walked through in notebooks/06_masked_language_model.ipynb."""

    def __init__(self, config: XLMRobertaXLConfig) -> None:
        super().__init__(config)
        if self.config.is_decoder:
            warnings.warn("with is_decoder=True a masked language model cannot see what follows a mask.", stacklevel=2)
        self.backbone = XLMRobertaXLModel(self.config, add_pooling_layer=False)
        self.lm_head = LMHead(self.config)
        self.post_init()

    # b t -> b t v
    def forward(
        self, input_ids: Opt = None, attention_mask: Opt = None, token_type_ids: Opt = None, position_ids: Opt = None,
        head_mask: Opt = None, inputs_embeds: Opt = None, encoder_hidden_states: Opt = None,
        encoder_attention_mask: Opt = None, labels: Opt = None, output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> ModelOutput:  # fmt: skip
        """labels `b t`: the masked tokens, -100 elsewhere. The other arguments are XLMRobertaXLModel's."""
        out = self.backbone(
            input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds, encoder_hidden_states,
            encoder_attention_mask, output_attentions=output_attentions, output_hidden_states=output_hidden_states,
        )  # fmt: skip
        return self.add_loss(out, {"logits": self.lm_head(out.last_hidden_state)}, labels=labels)


class XLMRobertaXLForCausalLM(GenerationMixin, ModelWithHead):
    """Predicts the next token. Walked through in notebooks/08_decoder.ipynb."""

    def __init__(self, config: XLMRobertaXLConfig) -> None:
        super().__init__(config)
        if not self.config.is_decoder:
            warnings.warn("with is_decoder=False a causal language model sees what it is to predict.", stacklevel=2)
        self.backbone = XLMRobertaXLModel(self.config, add_pooling_layer=False)
        self.lm_head = LMHead(self.config)
        self.post_init()

    # b t -> b t v
    def forward(
        self, input_ids: Opt = None, attention_mask: Opt = None, token_type_ids: Opt = None, position_ids: Opt = None,
        head_mask: Opt = None, inputs_embeds: Opt = None, encoder_hidden_states: Opt = None,
        encoder_attention_mask: Opt = None, labels: Opt = None, past_key_values: Cache | None = None,
        use_cache: bool | None = None, output_attentions: bool | None = None, output_hidden_states: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> ModelOutput:  # fmt: skip
        """labels `b t`, usually input_ids: each position is scored on the label to its right; -100 is ignored.

        num_items_in_batch: what the sum of the losses is divided by, instead of the number of scored labels.
        """
        out = self.backbone(
            input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds, encoder_hidden_states,
            encoder_attention_mask, past_key_values, use_cache if labels is None else False, output_attentions,
            output_hidden_states,
        )  # fmt: skip
        return self.add_loss(out, {"logits": self.lm_head(out.last_hidden_state)}, num_items_in_batch, labels=labels)

    def targets(self, **inputs: Any) -> list[Tensor]:
        return [F.pad(labels[..., 1:], (0, 1), value=-100) for labels in super().targets(**inputs)]  # the next tokens

    def mean_loss(self, logits: Tensor, targets: Tensor, name: str = "labels") -> Tensor:
        return super().mean_loss(logits.float(), targets, name)


class XLMRobertaXLForSequenceClassification(ModelWithHead):
    """One class, several, or a number for a whole text. Walked through in notebooks/07_heads.ipynb."""

    def __init__(self, config: XLMRobertaXLConfig) -> None:
        super().__init__(config)
        self.backbone = XLMRobertaXLModel(self.config, add_pooling_layer=False)
        self.classifier = ClassificationHead(self.config)
        self.post_init()

    # b t -> b c
    def forward(
        self, input_ids: Opt = None, attention_mask: Opt = None, token_type_ids: Opt = None, position_ids: Opt = None,
        head_mask: Opt = None, inputs_embeds: Opt = None, labels: Opt = None, output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> ModelOutput:  # fmt: skip
        """labels: `b` integers for one class, `b c` floats 0/1 for several, `b` or `b c` floats for regression."""
        out = self.backbone(
            input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds,
            output_attentions=output_attentions, output_hidden_states=output_hidden_states,
        )  # fmt: skip
        return self.add_loss(out, {"logits": self.classifier(out.last_hidden_state)}, labels=labels)

    def targets(self, **inputs: Any) -> list[Tensor]:
        if infer_problem_type(self.config, inputs["labels"]) != "single_label_classification":
            return [inputs["labels"] + 0.0]  # floats
        return [torch.atleast_1d(classes.squeeze()) for classes in super().targets(**inputs)]

    def mean_loss(self, logits: Tensor, targets: Tensor, name: str = "labels") -> Tensor:
        problem = infer_problem_type(self.config, targets)
        if problem == "single_label_classification":
            return super().mean_loss(logits, targets)
        loss = F.mse_loss if problem == "regression" else F.binary_cross_entropy_with_logits
        return loss(logits, input_checks.match_shape(targets, logits, problem).to(logits.dtype))


class XLMRobertaXLForMultipleChoice(ModelWithHead):
    """A score for each of several texts. Walked through in notebooks/07_heads.ipynb."""

    def __init__(self, config: XLMRobertaXLConfig) -> None:
        super().__init__(config)
        self.backbone = XLMRobertaXLModel(self.config)
        self.dropout = nn.Dropout(self.config.hidden_dropout_prob)
        self.classifier = nn.Linear(self.config.hidden_size, 1)
        self.post_init()

    # b c t -> b c
    def forward(
        self, input_ids: Opt = None, token_type_ids: Opt = None, attention_mask: Opt = None, labels: Opt = None,
        position_ids: Opt = None, head_mask: Opt = None, inputs_embeds: Opt = None,
        output_attentions: bool | None = None, output_hidden_states: bool | None = None,
    ) -> ModelOutput:  # fmt: skip
        """input_ids, token_type_ids, attention_mask, position_ids `b c t`, inputs_embeds `b c t e`; labels `b`."""
        choices = input_checks.check_choices(input_ids, inputs_embeds)
        given = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        ids, mask, types, positions, embeds = (x if x is None else rearrange(x, "b c ... -> (b c) ...") for x in given)
        out = self.backbone(
            ids, mask, types, positions, head_mask, embeds,
            output_attentions=output_attentions, output_hidden_states=output_hidden_states,
        )  # fmt: skip
        logits = rearrange(self.classifier(self.dropout(out.pooler_output)), "(b c) 1 -> b c", c=choices)
        return self.add_loss(out, {"logits": logits}, labels=labels)


class XLMRobertaXLForTokenClassification(ModelWithHead):
    """A class for every token. Walked through in notebooks/07_heads.ipynb."""

    def __init__(self, config: XLMRobertaXLConfig) -> None:
        super().__init__(config)
        self.backbone = XLMRobertaXLModel(self.config, add_pooling_layer=False)
        self.dropout = nn.Dropout(self.config.head_dropout_prob)
        self.classifier = nn.Linear(self.config.hidden_size, self.config.num_labels)
        self.post_init()

    # b t -> b t c
    def forward(
        self, input_ids: Opt = None, attention_mask: Opt = None, token_type_ids: Opt = None, position_ids: Opt = None,
        head_mask: Opt = None, inputs_embeds: Opt = None, labels: Opt = None, output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> ModelOutput:  # fmt: skip
        """labels `b t`: the class of each token, -100 for none; padding has none."""
        out = self.backbone(
            input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds,
            output_attentions=output_attentions, output_hidden_states=output_hidden_states,
        )  # fmt: skip
        logits = self.classifier(self.dropout(out.last_hidden_state))
        return self.add_loss(out, {"logits": logits}, labels=labels, attention_mask=attention_mask)

    def targets(self, **inputs: Any) -> list[Tensor]:
        [labels], mask = super().targets(**inputs), inputs.get("attention_mask")
        return [labels if mask is None or mask.shape != labels.shape else labels.masked_fill(mask == 0, -100)]


class XLMRobertaXLForQuestionAnswering(ModelWithHead):
    """The start and the end of an answer in a text. Walked through in notebooks/07_heads.ipynb."""

    label_names = ("start_positions", "end_positions")

    def __init__(self, config: XLMRobertaXLConfig) -> None:
        super().__init__(config)
        if self.config.num_labels != 2:
            raise ValueError(f"num_labels={self.config.num_labels} is impossible here: a span has 2 ends.")
        self.backbone = XLMRobertaXLModel(self.config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(self.config.hidden_size, self.config.num_labels)
        self.post_init()

    # b t -> b t, b t
    def forward(
        self, input_ids: Opt = None, attention_mask: Opt = None, token_type_ids: Opt = None, position_ids: Opt = None,
        head_mask: Opt = None, inputs_embeds: Opt = None, start_positions: Opt = None, end_positions: Opt = None,
        output_attentions: bool | None = None, output_hidden_states: bool | None = None,
    ) -> ModelOutput:  # fmt: skip
        """start_positions, end_positions `b`: the answer's first and last token; beyond the text: no answer."""
        out = self.backbone(
            input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds,
            output_attentions=output_attentions, output_hidden_states=output_hidden_states,
        )  # fmt: skip
        start, end = self.qa_outputs(out.last_hidden_state).unbind(-1)
        given = {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
        labels = {"start_positions": start_positions, "end_positions": end_positions}
        return self.add_loss(out, {"start_logits": start, "end_logits": end}, **labels, **given)

    def targets(self, **inputs: Any) -> list[Tensor]:
        positions = [x.reshape(-1).clamp(min=0) for x in super().targets(**inputs)]
        return [x.masked_fill(x >= input_checks.num_tokens(**inputs), -100) for x in positions]
