"""Metrics of attention maps, of one head or of every head. Walked through in notebooks/03_seeing_attention.ipynb.

`weights` are the attention weights of one text without padding: a tensor, an array, a list, or `out.attentions`, which
counts as `l h q k`. `…` stands for any axes before q and k. ValueError for what is no attention weight, such as NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from tqdm import tqdm

from ..inputs import (
    as_input_ids,
    as_layers,
    as_named,
    as_table,
    as_tensor,
    as_weights,
    by_head_number,
    check_integer,
    check_number,
    check_option,
    check_type,
    shown,
)
from ..model import Attention, PreTrainedModel
from ..utils import eval_mode
from .hooks import check_model, each_layer, hooked, self_attentions


def entropy(weights: Tensor) -> Tensor:  # … q k -> … q
    """The entropy of each query's attention, in nats: 0 for a single key, log k for uniform attention."""
    return torch.special.entr(as_weights(weights, axes="k")).sum(-1)


def mean_distance(weights: Tensor) -> Tensor:  # … q k -> … q
    """The mean distance from a query to its keys, in tokens (Vig and Belinkov 2019, arXiv:1906.04284)."""
    weights = as_weights(weights)
    queries, keys = (torch.arange(n, device=weights.device) for n in weights.shape[-2:])
    return (weights * (keys - rearrange(queries, "q -> q 1")).abs()).sum(-1)


def offset_profile(weights: Tensor, reach: int) -> Tensor:  # … q k -> … r
    """Mean attention by offset, key position minus query position, from -reach to reach: r = 2 reach + 1.

    The mean is over all queries that have a key at this offset. Raises ValueError where none has.
    """
    weights = as_weights(weights)
    check_integer("reach", reach, 0, min(weights.shape[-2:]) - 1)
    offsets = range(-reach, reach + 1)
    return torch.stack([weights.diagonal(offset, -2, -1).mean(-1) for offset in offsets], dim=-1)


def attention_mass(weights: Tensor, input_ids: Tensor, bos: int = 0, eos: int = 2) -> dict[str, Tensor]:
    """The mean attention to six kinds of keys (Clark et al. 2019, arXiv:1906.04341, section 3): … q k, t -> … each.

    `<s>`; `</s>`; the query's own position (self); other positions of the same token, special ones aside; the previous
    token; the next one. Each is the mean over the queries that have such a key, and NaN where none has. Kinds overlap:
    `<s>` is also the previous token of the first word.
    """
    weights, input_ids = as_weights(weights), as_tensor(input_ids, "input_ids", "ids")
    input_ids = input_ids.to(weights.device)
    if input_ids.dim() != 1 or weights.shape[-2:] != 2 * input_ids.shape or input_ids.is_floating_point():
        shape = len(input_ids) if input_ids.dim() == 1 else tuple(input_ids.shape)
        sizes = f"{shape} tokens with weights {tuple(weights.shape[-2:])}"
        raise ValueError(f"attention_mass takes one text, input_ids `t` with weights `… t t`, not {sizes}.")
    query, key = rearrange(input_ids, "q -> q 1"), rearrange(input_ids, "k -> 1 k")
    identity = torch.eye(len(input_ids), dtype=torch.bool, device=input_ids.device)
    kinds = {
        "<s>": (key == bos).expand_as(identity),
        "</s>": (key == eos).expand_as(identity),
        "self": identity,
        "same token": (query == key) & ~identity & (query != bos) & (query != eos),
        "previous": torch.ones_like(identity).tril(-1).triu(-1),
        "next": torch.ones_like(identity).tril(1).triu(1),
    }
    return {
        name: (weights * is_kind).sum((-2, -1)) / is_kind.any(-1).sum()  # 0 / 0 = NaN: no query has such a key
        for name, is_kind in kinds.items()
    }


def head_metrics(model: PreTrainedModel, texts: Sequence[Tensor], *, progress: bool = True) -> dict[str, Tensor]:
    """Metrics of every head, `l h` each: entropy (nats; normalised: divided by log k), distance, `attention_mass`.

    `texts` are input_ids, `t` each with two tokens or more. Each metric is the mean over the texts where it is defined;
    heads have the numbers of the unpruned model, and pruned ones are NaN. Each layer is reduced as soon as it has run:
    the weights of three layers never exist at once (XL's 36 × 32 heads at 512 tokens: 1.2 GB).
    """
    check_model(model)
    texts = as_input_ids(texts, model, at_least=2)
    heads = [attention.heads for attention in self_attentions(model)]
    tables: list[dict[str, Tensor]] = []
    for ids in tqdm(texts, unit="text", disable=not progress, delay=2):

        def of_head(weights: Tensor, ids: Tensor = ids) -> dict[str, Tensor]:  # q k
            mean_entropy, distance = entropy(weights).mean(), mean_distance(weights).mean()
            spread = {"entropy": mean_entropy, "normalised entropy": mean_entropy / math.log(len(ids))}
            special = (model.config.bos_token_id, model.config.eos_token_id)
            mass = attention_mass(weights, ids, *(-1 if token_id is None else token_id for token_id in special))
            return {**spread, "distance": distance, **mass}

        def of_layer(weights: Tensor) -> dict[str, Tensor]:  # 1 h q k -> h each
            return stacked([of_head(head) for head in weights[0].float()])  # head by head: needs less memory

        with eval_mode(model), each_layer(model, of_layer) as layers:
            model.base_model(rearrange(ids, "t -> 1 t"), output_attentions=True, use_cache=False)
        tables.append({
            name: by_head_number([layer[name] for layer in layers], heads, model.config.num_attention_heads)
            for name in layers[0]
        })  # fmt: skip
    return {name: table.nanmean(0) for name, table in stacked(tables).items()}


def stacked(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


# The class of a head: the first whose metric reaches the threshold. The classes are those of Clark et al. 2019 and
# Voita et al. 2019 (arXiv:1905.09418), the thresholds our convention: there are no agreed ones.
HEAD_CLASSES = {
    "previous": ("previous", 0.5),
    "next": ("next", 0.5),
    "self": ("self", 0.5),
    "same token": ("same token", 0.3),
    "<s>": ("<s>", 0.5),
    "</s>": ("</s>", 0.5),
    "uniform": ("normalised entropy", 0.9),
}
OTHER, PRUNED = "other", "pruned"


def head_classes(metrics: Mapping[str, Tensor]) -> list[list[str]]:  # l h each -> l lists of h names
    """Classify each head: the first of HEAD_CLASSES whose threshold its metric reaches, or "other".

    A head without a normalised entropy, which every head has, is "pruned".
    """
    metrics, needed = as_named(metrics, "metrics", "metrics"), [metric for metric, _ in HEAD_CLASSES.values()]
    if not set(needed) <= set(metrics):
        raise ValueError(f"metrics has {', '.join(metrics)}, but must have {', '.join(needed)}: use head_metrics.")
    metrics = as_table({name: metrics[name] for name in needed}, "metrics", "metrics", "l h", may_lack_values=True)
    is_pruned = metrics["normalised entropy"].isnan()
    classes = [[PRUNED if pruned else OTHER for pruned in row] for row in is_pruned.tolist()]
    for name, (metric, threshold) in reversed(HEAD_CLASSES.items()):
        for layer, head in (metrics[metric] >= threshold).nonzero().tolist():
            classes[layer][head] = name
    return classes


def merge_tokens(weights: Tensor, queries: Sequence[range], keys: Sequence[range]) -> Tensor:
    """Merge tokens into groups such as words: … q k -> … q k, the mean over a group's queries, the sum over its keys.

    Where the groups contain all keys, rows still sum to 1 (Clark et al. 2019, section 4.1). Raises ValueError for
    groups without tokens, and for tokens that do not exist.
    """
    weights = as_weights(weights)
    for name, groups, size in (("queries", queries, weights.shape[-2]), ("keys", keys, weights.shape[-1])):
        known = isinstance(groups, (list, tuple)) and len(groups) and all(isinstance(x, range) for x in groups)
        if not known or not all(len(x) and x.step == 1 and x.start >= 0 and x.stop <= size for x in groups):
            given = f"{shown(groups)}, but must be a list of ranges"
            raise ValueError(f"{name} is {given} such as range(0, 2), each of one or more of {size} tokens.")
    return pool(weights, queries, keys)


def pool(weights: Tensor, queries: Sequence[range], keys: Sequence[range]) -> Tensor:  # … q k -> … q k
    """merge_tokens, also for other values than weights."""

    def membership(groups: Sequence[range], size: int) -> Tensor:
        rows = weights.new_zeros(len(groups), size)
        for row, group in zip(rows, groups, strict=True):
            row[group.start : group.stop] = 1
        return rows

    in_query, in_key = membership(queries, weights.shape[-2]), membership(keys, weights.shape[-1])
    return (in_query / in_query.sum(-1, keepdim=True)) @ weights @ in_key.mT


def rollout(attentions: Sequence[Tensor], residual: float = 0.5) -> Tensor:  # l of … h q k -> l … q k
    """Attention rollout: the input tokens that each position's state comes from, if only attention moved information.

    Abnar and Zuidema 2020 (arXiv:2005.00928): average the heads, mix in `residual` of the identity for the residual
    stream, multiply the layers. A heuristic: it ignores values, feed-forward layers and LayerNorms, and the true weight
    of the residual differs by layer and token.
    """
    check_number("residual", residual, 0, 1)
    steps: list[Tensor] = []
    for i, given in enumerate(as_layers(attentions, "attentions")):
        weights = as_weights(given, f"attentions[{i}]", "h q k")
        size = (steps[-1] if steps else weights).shape[-1]
        if weights.shape[-2:] != (size, size):
            shape = f"{tuple(weights.shape[-2:])} queries and keys, but must have {(size, size)}"
            raise ValueError(f"attentions[{i}] has {shape}: pass the self-attention of one text.")
        layer = (1 - residual) * weights.mean(-3)
        layer.diagonal(0, -2, -1).add_(residual)
        steps.append(layer @ steps[-1] if steps else layer)
    return torch.stack(steps)


@torch.no_grad()
def value_norms(attention: Attention, hidden: Tensor) -> Tensor:  # b t e -> b h k
    """The L2 norm of what a head would add to the stream with all its attention on one key: the value through `out`.

    `hidden` is the layer's input: of the model's hidden_states, the one with the layer's own number; for
    cross-attention, the encoder's states. Heads have the numbers of the unpruned model, and pruned ones are NaN.
    """
    check_type("attention", attention, Attention, "a layer's, model.base_model.layers[i].attention")
    (width,), dtype = attention.norm.normalized_shape, attention.norm.weight.dtype
    hidden = as_tensor(hidden, "hidden", "hidden states `b t e`").to(attention.norm.weight.device, dtype)
    if hidden.dim() != 3 or hidden.shape[-1] != width or not hidden.numel():
        raise ValueError(f"hidden has the shape {tuple(hidden.shape)}, but must be `b t e`, where e is {width}.")
    if not hidden.isfinite().all():
        raise ValueError("hidden holds nan or inf, but must hold finite hidden states.")
    value = attention.split_heads(attention.value(hidden if attention.is_cross else attention.norm(hidden)))
    weight = attention.out.weight.to(dtype)
    if hasattr(attention.out, "scale"):  # int8
        weight = weight * cast(Tensor, attention.out.scale)[:, None]
    out = rearrange(weight, "e (h d) -> h e d", d=attention.head_dim)
    norms = [(value[:, i] @ out[i].mT).norm(dim=-1) for i in range(len(out))]  # one by one: saves memory
    numbered = by_head_number([torch.stack(norms)], [attention.heads], width // attention.head_dim)[0]
    return rearrange(numbered, "h b k -> b h k")


def value_weighted(weights: Tensor, norms: Tensor) -> Tensor:  # b h q k, b h k -> b h q k
    """Norm-based attention: weights times value norms, each row normalised to sum 1.

    Kobayashi et al. 2020 (arXiv:2004.10102): heads with nothing to do attend to a token whose value is almost zero.
    With norms of a pruned layer, `weights` may be those of the heads that are left; pruned ones become NaN.
    """
    weights, norms = as_weights(weights, axes="b h q k"), as_tensor(norms, "norms", "value norms `b h k`")
    is_left = ~norms.isnan().all(-1).all(0) if norms.dim() == 3 else norms
    if norms.dim() == 3 and weights.shape[1] == int(is_left.sum()) < norms.shape[1]:
        kept = is_left.nonzero()[:, 0].tolist()
        weights = rearrange(by_head_number([rearrange(weights, "b h q k -> h b q k")], [kept], norms.shape[1]),
                            "1 h b q k -> b h q k")  # fmt: skip
    if norms.shape != weights[:, :, 0].shape:
        shapes = f"{tuple(weights.shape)} and norms {tuple(norms.shape)}"
        raise ValueError(f"weights have the shape {shapes}, but must be `b h q k` and `b h k`: use value_norms.")
    weighted = weights * rearrange(norms, "b h k -> b h 1 k")
    return weighted / weighted.sum(-1, keepdim=True)


@torch.no_grad()
def score_parts(
    model: PreTrainedModel, input_ids: Tensor, layer: int, head: int
) -> tuple[list[str], Tensor]:  # t -> the names of c parts, c c q k
    """A head's scores as a sum over pairs: a part of the query (first axis), a part of the key (second axis).

    The stream that enters a layer is a sum: word embedding, position embedding, what each earlier branch has added, and
    a constant (the token type's embedding; biases count as constant, too). LayerNorm divides it by one number per
    token, and is otherwise linear, so queries and keys are sums of as many parts. Over both axes, the parts add up to
    the scores before the softmax, of one text. ValueError for relative positions and int8 weights.
    """
    check_model(model)
    [ids] = as_input_ids([input_ids], model)
    attentions, embeddings = self_attentions(model), model.base_model.embeddings
    check_integer("layer", layer, 0, len(attentions) - 1)
    attention = attentions[layer]
    if attention.query.weight.dtype == torch.int8:
        raise ValueError("score_parts needs float weights, but this model is in int8: load it without quantize.")
    check_option("head", head, attention.heads)
    check_option("the model's position_embedding_type", attention.position_embedding_type, ["absolute"])
    names, updates = ["constant", "word", "position"], list[Tensor]()

    def record(module: nn.Module, args: tuple, output: Any) -> None:
        updates.append(((output[0] if isinstance(output, tuple) else output) - args[0])[0])

    blocks: Any = model.base_model.layers[:layer]
    branches = [branch for block in blocks for branch in (block.attention, block.feed_forward)]
    names += [f"{name} {i}" for i in range(layer) for name in ("attention", "feed-forward")]
    with eval_mode(model), hooked([(branch, record) for branch in branches]):
        model.base_model(rearrange(ids, "t -> 1 t"), use_cache=False)
    positions = embeddings.make_position_ids((ids != model.config.pad_token_id).long()[None])[0]
    constant = embeddings.token_type(torch.zeros_like(ids))
    parts = torch.stack([constant, embeddings.word(ids), embeddings.position(positions), *updates])  # c t e
    spread = (parts.sum(0).var(-1, correction=0, keepdim=True) + attention.norm.eps).sqrt()
    normed = (parts - parts.mean(-1, keepdim=True)) / spread * attention.norm.weight
    normed[0] += attention.norm.bias

    def project(linear: nn.Linear) -> Tensor:  # -> c t d
        projected = normed @ linear.weight.mT
        projected[0] += linear.bias
        return attention.split_heads(projected)[:, attention.heads.index(head)]

    query, key = project(attention.query) / math.sqrt(attention.head_dim), project(attention.key)
    return names, query[:, None] @ key[None].mT
