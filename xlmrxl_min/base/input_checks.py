"""Checks of the inputs of `forward`: ValueError with the value, what is allowed, and the remedy, in one sentence."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .cache import Cache

if TYPE_CHECKING:
    from ..model import XLMRobertaXLConfig, XLMRobertaXLModel


def is_readable(values: Tensor) -> bool:
    """Whether values can be read now: not while compiling, exporting or tracing, and not without storage."""
    return not (is_recorded() or torch.compiler.is_compiling() or values.is_meta) and values.numel() > 0


def is_recorded() -> bool:
    """Whether torch.export or torch.jit.trace records a graph, for inputs of any length."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def split_queries(tensor: Tensor, size: int) -> Sequence[Tensor]:
    """Split `b h q …` into blocks of `size` queries; while a graph is recorded, into one, as their number would be."""
    return (tensor,) if is_recorded() else tensor.split(size, dim=2)


def check_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        remedy = 'tokenize with return_tensors="pt", and call model(**encoding)'
        raise ValueError(f"{name} is a {type(value).__name__}, but must be a tensor: {remedy}.")


def check_binary_mask(name: str, mask: Tensor) -> None:
    wrong = mask[(mask != 0) & (mask != 1)]
    if len(wrong):
        allowed = "takes only 1 (may attend) and 0 (padding)"
        raise ValueError(f"{name} {allowed}, but holds {wrong[0].item()}: of an additive mask, pass mask == 0.")


def check_range(name: str, ids: Tensor, limit: int, remedy: str) -> None:
    """Raise ValueError for an id outside its table, where an IndexError or a CUDA assert would come later."""
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"{name} must be integers, not {ids.dtype}: use .long().")
    if is_readable(ids):
        low, high = torch.stack(ids.aminmax()).tolist()  # read together: on a GPU, reading waits for all earlier work
        if low < 0 or high >= limit:
            raise ValueError(f"{name} holds {low if low < 0 else high}, but allowed are 0 to {limit - 1}: {remedy}.")


def check_mask(
    name: str, mask: Tensor | None, batch: int, queries: int, keys: int, *, allow_padding_rows: bool = False
) -> None:
    """Raise ValueError for a mask that is not `b k` or `b q k`, not binary, or all padding in a row.

    allow_padding_rows: with a cache, a row may begin with nothing but padding.
    """
    if mask is None:
        return
    check_tensor(name, mask)
    shape, allowed = tuple(mask.shape), ((batch, keys), (batch, queries, keys))
    if shape not in allowed:
        needed = f"{allowed[0]} or {allowed[1]}, an entry for every token, cached ones included"
        raise ValueError(f"{name} has shape {shape}, but must be {needed}.")
    if is_readable(mask):
        check_binary_mask(name, mask)
        if mask.dim() == 2 and not allow_padding_rows:
            empty = (mask == 0).all(-1).nonzero()[:1, 0].tolist()
            if empty:
                raise ValueError(f"{name} has only padding in row {empty}: drop it, or mark its tokens with 1.")


def check_inputs(
    model: XLMRobertaXLModel, input_ids: Tensor | None, inputs_embeds: Tensor | None, attention_mask: Tensor | None,
    token_type_ids: Tensor | None, position_ids: Tensor | None, head_mask: Tensor | None,
    encoder_hidden_states: Tensor | None, encoder_attention_mask: Tensor | None, cache: Cache | None,
) -> Tensor:  # fmt: skip
    """Return input_ids or inputs_embeds. Raise ValueError, in one sentence, for inputs that cannot be right."""
    config, states = model.config, encoder_hidden_states
    given, width = input_ids if inputs_embeds is None else inputs_embeds, config.hidden_size
    if (input_ids is None) == (inputs_embeds is None):
        got = "neither" if given is None else "both"
        raise ValueError(f"got {got} of input_ids and inputs_embeds: pass one of them.")
    check_tensor("the input", given)
    assert given is not None
    rest = () if inputs_embeds is None else (width,)
    if given.dim() != 2 + len(rest) or given.shape[1] == 0 or given.shape[2:] != rest:
        allowed = f"(batch, tokens{', hidden_size=' + str(width) if rest else ''})"
        raise ValueError(f"the input has shape {tuple(given.shape)}, but must be {allowed} with at least one token.")
    batch, tokens = given.shape[:2]
    tensors = {"token_type_ids": token_type_ids, "position_ids": position_ids, "head_mask": head_mask}
    for name, value in {**tensors, "encoder_hidden_states": states}.items():
        if value is not None:
            check_tensor(name, value)
    if input_ids is not None:
        check_range("input_ids", input_ids, config.vocab_size, "tokenize with this model's own vocabulary")
    for name, ids in (("input_ids", input_ids), ("token_type_ids", token_type_ids), ("position_ids", position_ids)):
        if ids is not None and ids.dtype in (torch.uint8, torch.int8, torch.int16):
            raise ValueError(f"{name} must be integers of 32 or 64 bits, not {ids.dtype}: use .long().")
    by_token = (
        ("token_type_ids", token_type_ids, config.type_vocab_size),
        ("position_ids", position_ids, config.max_position_embeddings),
    )
    for name, ids, limit in by_token:
        if ids is not None:
            if tuple(ids.shape) not in ((batch, tokens), (1, tokens)):
                raise ValueError(f"{name} has shape {tuple(ids.shape)}, but must be {(batch, tokens)}.")
            check_range(name, ids, limit, f"leave {name} out for the usual ones")
    if head_mask is not None:
        shape = (config.num_hidden_layers, config.num_attention_heads)
        if tuple(head_mask.shape) not in (shape, shape[1:]):
            raise ValueError(f"head_mask has shape {tuple(head_mask.shape)}, but must be {shape[1:]} or {shape}.")
    if cache is not None:
        if not (isinstance(cache, Cache) and config.is_decoder):
            raise ValueError(f"past_key_values is a {type(cache).__name__}: only a decoder's own go back in.")
        if not model.can_cache():
            raise ValueError("past_key_values do not go with gradient checkpointing in training: leave them out.")
        keys = cache.layers[0].keys
        rows = None if keys is None else len(keys)
        if len(cache.layers) != len(model.layers) or rows not in (None, batch):
            needed = f"{len(model.layers)} layers and {batch} rows"
            held = f"{len(cache.layers)} layers and {rows} rows"
            raise ValueError(f"past_key_values hold {held}, but must hold {needed}.")
    if states is None:
        is_cached = cache is not None and cache.cross[0].length > 0
        if config.add_cross_attention and not is_cached:
            raise ValueError("cross-attention needs encoder_hidden_states: pass the encoder's last_hidden_state.")
    elif not config.add_cross_attention:
        remedy = "for encoder_hidden_states, build it with is_decoder=True, add_cross_attention=True"
        raise ValueError(f"this model has no cross-attention: {remedy}.")
    elif states.dim() != 3 or states.shape[::2] != (batch, width):
        needed = f"(batch={batch}, tokens, hidden_size={width})"
        raise ValueError(f"encoder_hidden_states are {tuple(states.shape)}, not {needed}.")
    num_cached = 0 if cache is None else cache.get_seq_length()
    length, has_cache = num_cached + tokens, cache is not None
    check_mask("attention_mask", attention_mask, batch, tokens, length, allow_padding_rows=has_cache)
    if config.add_cross_attention:
        length = states.shape[1] if states is not None else cache.cross[0].length if cache is not None else 0
        check_mask("encoder_attention_mask", encoder_attention_mask, batch, tokens, length)
    if input_ids is not None and attention_mask is None and not num_cached:
        warn_about_padding(model, input_ids)
    return given


def warn_about_padding(model: XLMRobertaXLModel, input_ids: Tensor) -> None:
    """Warn, once for each model, that tokens attend to padding, as no mask marks it; Hugging Face does, too.

    As there, only the first and the last column are read; in a decoder the first, as no token attends to later ones.
    """
    if model.warned_about_padding or not is_readable(input_ids):
        return
    ends = input_ids[:, :1] if model.config.is_decoder else input_ids[:, [0, -1]]
    if bool((ends == model.config.pad_token_id).any()):
        model.warned_about_padding = True
        remedy = "pass the tokenizer's attention_mask, or input_ids != model.config.pad_token_id"
        message = f"input_ids hold padding, and without attention_mask tokens attend to it: {remedy}."
        warnings.warn(message, stacklevel=3)


def num_tokens(input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, **inputs: Any) -> int:
    """The number of tokens per row, padding included."""
    given = input_ids if inputs_embeds is None else inputs_embeds
    check_tensor("the input", given)
    return given.shape[1]  # type: ignore[union-attr]


def as_classes(name: str, labels: Any) -> Tensor:
    """Labels as integers of 64 bits. Raise ValueError unless they are a tensor of integers."""
    check_tensor(name, labels)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{name} must be integers, not {labels.dtype}: use .long().")
    return labels.long()


def check_targets(name: str, targets: Tensor, logits: Tensor) -> None:
    """Raise ValueError unless targets `…` have a class of logits `… v`, or -100. name: the argument with the labels."""
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"{name} have shape {tuple(targets.shape)}, but must be {tuple(logits.shape[:-1])}.")
    scored = targets.masked_fill(targets == -100, 0)
    check_range(name, scored, logits.shape[-1], "-100 marks what has no label")


def match_shape(targets: Tensor, logits: Tensor, problem: str) -> Tensor:
    """Targets in the shape of logits `b c`. Raise ValueError unless they have it, or are `b` where c is 1."""
    if targets.shape != logits.shape and not (logits.shape[1] == 1 and targets.shape == logits.shape[:1]):
        raise ValueError(f"labels have shape {tuple(targets.shape)}, but {problem} needs {tuple(logits.shape)}.")
    return targets.reshape(logits.shape)


def check_choices(input_ids: Any, inputs_embeds: Any) -> int:
    """Return the number of choices of ids `b c t` or embeddings `b c t e`. Raise ValueError for another shape."""
    given, axes = (input_ids, 3) if inputs_embeds is None else (inputs_embeds, 4)
    if not isinstance(given, Tensor) or given.dim() != axes:
        got = f"shape {tuple(given.shape)}" if isinstance(given, Tensor) else f"a {type(given).__name__}"
        allowed = "input_ids (batch, choices, tokens), or inputs_embeds with hidden_size as a last axis"
        raise ValueError(f"multiple choice takes {allowed}, but got {got}.")
    return given.shape[1]


def needs_eager(model: XLMRobertaXLModel, *masks: tuple[Tensor | None, Tensor | None]) -> bool:
    """Whether attention must not use the fused kernels: if the config says so, or for some masks in training.

    The kernels give wrong gradients for queries that may attend to nothing, such as those of left padding. masks: the
    mask `b 1 q k`, and the one of 0 and 1 that it is made from.
    """
    return model.config._attn_implementation == "eager" or (
        torch.is_grad_enabled() and any(has_fully_masked_rows(model, *pair) for pair in masks)
    )


def has_fully_masked_rows(model: XLMRobertaXLModel, mask: Tensor | None, given: Tensor | None) -> bool:
    """Whether a query of `mask` `b 1 q k` may attend to nothing. `given`: the mask of 0 and 1 that it is made from.

    While compiling, masks cannot be read: then the answer is yes wherever it is possible, with causal or `b q k` masks.
    """
    if mask is None:
        return False
    if is_readable(mask):
        return not bool(mask.any(-1).all())
    return given is not None and (model.config.is_decoder or given.dim() == 3)


def expand_head_mask(model: XLMRobertaXLModel, head_mask: Tensor | None) -> list[None] | Tensor:  # h or l h -> l h
    if head_mask is None:
        return [None] * len(model.layers)
    return head_mask.to(model.device, model.dtype).expand(len(model.layers), -1)


def check_length(config: XLMRobertaXLConfig, position_ids: Tensor, keys: int) -> None:
    """Raise ValueError for more tokens than there are positions, or, of relative positions, distances."""
    longest = keys
    if config.position_embedding_type == "absolute":
        longest = int(position_ids.max()) - config.pad_token_id if is_readable(position_ids) else 0
    if longest > config.max_seq_len:
        remedy = "so cut the text (truncation=True)"
        raise ValueError(f"{longest} tokens are too many: there is room for {config.max_seq_len}, {remedy}.")
