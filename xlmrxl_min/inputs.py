"""What users pass, turned into what is computed: texts, token ids, strings of tokens. One place for all functions.

A sequence may be a list, a tuple, a numpy array, a pandas Series, a generator, or another iterable with an order.
ValueError, in one sentence, for anything else: what was given, what is allowed, what to do.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from numbers import Integral, Real
from typing import Any

import numpy
import torch
from torch import Tensor

from .base import PreTrainedModel
from .base.config import shown
from .base.input_checks import check_range

LARGEST = sys.float_info.max
NOT_SEQUENCES = (str, bytes, bytearray, Mapping, AbstractSet)  # iterable, but without an order, or of something else


def is_single_text(value: Any) -> bool:
    """Whether `value` is one text, or a numpy array without axes that holds one."""
    return isinstance(value, str) or (getattr(value, "ndim", None) == 0 and isinstance(value.item(), str))


def as_sequence(values: Any, name: str, of: str) -> list[Any]:
    """The elements of an ordered iterable, such as `of`="texts", as a list."""
    kind = type(values).__name__
    if getattr(values, "ndim", 1) != 1:  # iterating a DataFrame gives its columns, an array its rows
        raise ValueError(f"{name} is of type {kind} with {values.ndim} axes, but must have one: pass a list of {of}.")
    if isinstance(values, NOT_SEQUENCES) or not isinstance(values, Iterable):
        raise ValueError(f"{name} is of type {kind}, but must be a list of {of}: pass [...].")
    return values.tolist() if hasattr(values, "tolist") else list(values)


def as_rows(values: Any, name: str, of: str) -> list[Any]:
    """As `as_sequence`; also the rows of an array or tensor with several axes."""
    is_array = getattr(values, "ndim", 1) > 1 and hasattr(values, "tolist")  # unlike a DataFrame
    return list(values) if is_array else as_sequence(values, name, of)


def check_text(text: Any, name: str) -> None:
    """Raise ValueError unless `text` is a str, and UTF-8 can encode it."""
    check_type(name, text, str, "a text, a str")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        what = f"{text[error.start]!r} at index {error.start}, a lone surrogate, which is no character"
        remedy = "replace it, as text.encode(errors='replace').decode() does"
        raise ValueError(f"{name} has {what}: {remedy}.") from None


def as_texts(values: Any, name: str = "texts") -> list[str]:
    """One text, or a sequence of them, as a list."""
    texts = [str(values)] if is_single_text(values) else as_sequence(values, name, "texts, or one text")
    for i, text in enumerate(texts):
        check_text(text, f"{name}[{i}]")
    return texts


def as_texts_or_pairs(values: Any, name: str) -> list[str | tuple[str, str]]:
    """A sequence of texts and of pairs of them, (text, text) or [text, text], as a list."""
    items = as_sequence(values, name, "texts or pairs")
    for i, item in enumerate(items):
        is_pair = isinstance(item, (list, tuple))
        if is_pair and len(item) != 2:
            raise ValueError(f"{name}[{i}] has {len(item)} texts, but one input of the model has one or two.")
        for text in item if is_pair else [item]:
            check_text(text, f"{name}[{i}]")
    return items


def as_samples(text: Any, text_pair: Any, are_words: bool) -> tuple[list[list[Any]], bool]:
    """What a tokenizer is called with, as one part or two for each row, and whether it is a single row.

    are_words: each part is a list of words, otherwise a text.
    """
    if are_words:
        items: list[Any] = as_sequence(text, "text", "words, or lists of words")
        is_single = all(map(is_single_text, items))
        items = [items] if is_single else items
        are_pairs = [isinstance(item, (list, tuple)) and not any(map(is_single_text, item)) for item in items]
        seconds = (
            [text_pair] if is_single or text_pair is None else as_sequence(text_pair, "text_pair", "lists of words")
        )
    else:
        is_single = is_single_text(text)
        items = as_texts(text, "text") if is_single else as_texts_or_pairs(text, "text")
        are_pairs = [isinstance(item, (list, tuple)) for item in items]
        seconds = [] if text_pair is None else as_texts(text_pair, "text_pair")
    samples = [[*item] if is_pair and len(item) else [item] for item, is_pair in zip(items, are_pairs, strict=True)]
    if text_pair is not None:
        if len(seconds) != len(samples):
            raise ValueError(f"got {len(samples)} texts but {len(seconds)} in text_pair: give one for each text.")
        if any(len(sample) > 1 for sample in samples):
            raise ValueError("text holds pairs, so text_pair would be a third text: leave one of them out.")
        samples = [[*sample, second] for sample, second in zip(samples, seconds, strict=True)]
    for sample in samples if are_words else []:
        for i, part in enumerate(sample):
            if is_single_text(part):
                raise ValueError(
                    "a text is given, but is_split_into_words=True takes lists of words: use text.split()."
                )
            sample[i] = as_texts(part, "a list of words")
    return samples, is_single


def check_option(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if not isinstance(value, (str, int, type(None))) or value not in allowed:
        raise ValueError(f"{name}={shown(value)} is unknown: take one of {', '.join(map(repr, allowed))}.")


def as_tokens(values: Any, count: int, name: str = "tokens") -> list[str]:
    """The strings of `count` tokens, as a list."""
    tokens = as_sequence(values, name, "strings, such as tokenizer.convert_ids_to_tokens(input_ids[0])")
    wrong = [token for token in tokens if not isinstance(token, str)]
    if wrong:
        raise ValueError(f"{name} holds {shown(wrong[0])}, but must be strings: try tokenizer.convert_ids_to_tokens.")
    if len(tokens) != count:
        raise ValueError(f"{name} has {len(tokens)} strings, but there are {count} tokens: pass one for each.")
    return tokens


# ---- tensors

BY_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
MAX_WEIGHT = 1 + 1e-3  # of attention: rounding in a row with a single weight


def as_tensor(values: Any, name: str, of: str = "numbers") -> Tensor:
    """A tensor as it is; an array, a Series, a number, or a list of these, as a new tensor."""
    if isinstance(values, torch.Tensor):
        if values.is_complex() or values.is_quantized or values.is_meta or values.layout is not torch.strided:
            kind = f"{values.dtype} and {values.layout} on {values.device}"
            raise ValueError(f"{name} is a tensor of {kind}, but must hold {of} that can be read: use .to_dense().")
        return values
    try:
        if isinstance(values, Iterable) and not isinstance(values, NOT_SEQUENCES) and not hasattr(values, "__array__"):
            values = list(values)
            if any(hasattr(value, "__array__") for value in values):  # tensors too
                return torch.stack([as_tensor(value, name, of) for value in values])
        array = numpy.array(values)
        if array.dtype.kind in "biuf":
            return torch.from_numpy(array)
    except (TypeError, ValueError, RuntimeError):
        pass
    allowed = f"{of}: a tensor, an array, or a list whose parts have one shape"
    raise ValueError(f"{name} is of type {type(values).__name__}, but must hold {allowed}.")


def as_values(values: Any, name: str, axes: str, *, may_lack_values: bool = False) -> Tensor:
    """Finite numbers with these axes, such as "l h", in float32 on the CPU; a batch of one text loses its axis.

    may_lack_values: NaN is allowed, as of a pruned head.
    """
    tensor, wanted = as_tensor(values, name).detach().float().cpu(), len(axes.split())
    while tensor.dim() > wanted and 1 in tensor.shape[: 2 if axes[0] == "l" else 1]:
        tensor = tensor.squeeze(0 if len(tensor) == 1 else 1)
    if tensor.dim() != wanted or not tensor.numel():
        raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, but must be `{axes}`, with one or more of each.")
    wrong = tensor.isinf() if may_lack_values else ~tensor.isfinite()
    if wrong.any():
        raise ValueError(f"{name} holds {float(tensor[wrong][0])}, but must hold finite numbers.")
    return tensor


def check_weights(weights: Tensor, name: str) -> None:
    """Raise ValueError unless all values are from 0 to 1, as those of a softmax."""
    low, high = (x.item() for x in weights.aminmax())  # NaN if any weight is
    if not (low >= 0 and high <= MAX_WEIGHT):
        raise ValueError(
            f"{name} holds {high if low >= 0 else low:.6g}, but attention weights are from 0 to 1: "
            "pass the output of the softmax, of a model in evaluation mode (model.eval(): dropout rescales)."
        )


def as_weights(weights: Any, name: str = "weights", axes: str = "q k") -> Tensor:
    """Attention weights of any number of axes before the last ones, `axes`; `out.attentions` as `l h q k`."""
    weights = weights if isinstance(weights, Real) or hasattr(weights, "ndim") else as_layers(weights, name)
    tensor = as_tensor(weights, name, "attention weights")
    if tensor.dim() == 5:
        if tensor.shape[1] != 1:
            raise ValueError(f"{name} holds {tensor.shape[1]} texts: pass one, as in [a[:1] for a in out.attentions].")
        tensor = tensor[:, 0]
    if tensor.dim() < len(axes.split()) or not tensor.numel():
        shape = f"{tuple(tensor.shape)}, but must be `… {axes}`, with one or more of each"
        raise ValueError(f"{name} has the shape {shape}.")
    tensor = tensor if tensor.is_floating_point() else tensor.float()
    check_weights(tensor.detach(), name)
    return tensor


def as_layers(values: Any, name: str) -> list[Any]:
    """The layers of a tensor or an array, or of a list of them, such as `out.attentions`; ValueError if one is None."""
    if isinstance(values, Mapping):
        raise ValueError(f"{name} is of type {type(values).__name__}, but must be weights: pass out.attentions.")
    layers = [] if values is None else as_rows(values, name, "layers")
    if not layers or any(layer is None for layer in layers):
        raise ValueError(f"{name} holds no weights, or None for a layer: call the model with output_attentions=True.")
    return layers


def as_attentions(attentions: Any, name: str = "attentions") -> list[Tensor]:
    """`out.attentions` of one text, or a tensor or array `l h q k`, as a list of `h q k`; values are not checked."""
    layers: list[Tensor] = []
    for i, given in enumerate(as_layers(attentions, name)):
        part = f"{name}[{i}]"
        layer = as_tensor(given, part, "weights `h q k`")
        if layer.dim() == 4 and len(layer) > 1:
            raise ValueError(f"{part} holds {len(layer)} texts, but must be of one: take [a[:1] for a in attentions].")
        shape, layer = tuple(layer.shape), layer[0] if layer.dim() == 4 and len(layer) else layer
        if layer.dim() != 3 or not layer.numel():
            allowed = "weights are 1 h q k or h q k, with one or more of each: pass out.attentions"
            raise ValueError(f"{part} has the shape {shape}, but {allowed}.")
        if layers and layer.shape[1:] != layers[0].shape[1:]:
            shapes = f"{tuple(layer.shape[1:])} queries and keys, but {name}[0] {tuple(layers[0].shape[1:])}"
            raise ValueError(f"{part} has {shapes}: pass the layers of one text.")
        layers.append(layer.detach() if layer.is_floating_point() else layer.float())
    return layers


def as_head_numbers(heads: Any, layers: Sequence[Tensor]) -> list[list[int]]:
    """The numbers of each layer's heads, `h` numbers for each of `layers`, `h …`; None: all from 0."""
    advice = "pass heads=[layer.attention.heads for layer in model.base_model.layers]"
    if heads is None:
        if len({len(layer) for layer in layers}) > 1:
            raise ValueError(f"the layers have {[len(x) for x in layers]} heads, so some are pruned: {advice}.")
        return [list(range(len(layer))) for layer in layers]
    numbers = [as_sequence(row, f"heads[{i}]", "numbers") for i, row in enumerate(as_sequence(heads, "heads", "lists"))]
    given, needed = [len(row) for row in numbers], [len(layer) for layer in layers]
    if given != needed:
        raise ValueError(f"heads gives {given} numbers, but the layers have {needed} heads: {advice}.")
    for row in numbers:
        if not all(isinstance(head, Integral) and int(head) >= 0 for head in row) or len(set(row)) != len(row):
            raise ValueError(f"heads holds {shown(row)}, but must be different numbers from 0: {advice}.")
    return [[int(head) for head in row] for row in numbers]


def by_head_number(layers: Sequence[Tensor], heads: Sequence[Sequence[int]], count: int = 0) -> Tensor:
    """Stack layers of `h …` to `l h …` with each head at its own number; NaN for the others, up to `count`."""
    count = max(count, *(max(numbers) + 1 for numbers in heads))
    stacked = layers[0].new_full((len(layers), count, *layers[0].shape[1:]), math.nan)
    for i, (layer, numbers) in enumerate(zip(layers, heads, strict=True)):
        stacked[i, numbers] = layer.to(stacked)
    return stacked


# ---- token ids, and the inputs of a model


def as_input_ids(texts: Any, model: PreTrainedModel, *, at_least: int = 1) -> list[Tensor]:
    """One text or several, as input_ids `t` each on the model's device.

    texts: ids, a list of ids of each text, or a tensor or array `b t` without padding; or an encoding, whose
    attention_mask says what is padding.
    """
    advice = f"pass a list of texts, input_ids `t` each, of {at_least} or more tokens"
    rows = texts
    if isinstance(texts, Mapping):
        if texts.get("input_ids") is None:
            raise ValueError(f"texts is of type {type(texts).__name__}, without input_ids: {advice}.")
        rows = texts["input_ids"]
    rows = as_rows(rows, "texts", "texts, input_ids `t` each")
    if rows and all(isinstance(row, Integral) for row in rows):
        rows = [rows]
    found = [as_tensor(row, f"texts[{i}]", "input_ids") for i, row in enumerate(rows)]
    if isinstance(texts, Mapping) and texts.get("attention_mask") is not None:
        masks = as_tensor(texts["attention_mask"], "attention_mask")
        masks = masks[None] if masks.dim() == 1 else masks
        if [ids.shape for ids in found] != [mask.shape for mask in masks]:
            raise ValueError(f"attention_mask is {tuple(masks.shape)}, but must have an entry for each of input_ids.")
        found = [ids[mask != 0] for ids, mask in zip(found, masks, strict=True)]
    for i, ids in enumerate(found):
        if ids.dim() != 1 or len(ids) < at_least:
            raise ValueError(f"texts[{i}] has the shape {tuple(ids.shape)}: {advice}.")
        check_ids(f"texts[{i}]", ids, model)
        if bool((ids == model.config.pad_token_id).any()):
            raise ValueError(f"texts[{i}] holds padding: pass the encoding with its attention_mask, or ids without it.")
    if not found:
        raise ValueError(f"texts holds no text: {advice}.")
    return [ids.long().to(model.device) for ids in found]


def check_ids(name: str, ids: Tensor, model: PreTrainedModel) -> None:
    check_range(name, ids, model.config.vocab_size, "tokenize with this model's own vocabulary")


def as_model_inputs(inputs: Any, model: PreTrainedModel, name: str = "inputs") -> dict[str, Any]:
    """An encoding, or another mapping with input_ids, as what `model` takes; lists become tensors, one text `1 t`."""
    if not isinstance(inputs, Mapping) or inputs.get("input_ids") is None:
        remedy = 'pass tokenizer(text, return_tensors="pt"), or a dict with input_ids `b t`'
        raise ValueError(f"{name} is of type {type(inputs).__name__}, and has no input_ids: {remedy}.")
    allowed = inspect.signature(model.forward).parameters
    found: dict[str, Any] = {}
    for key, value in inputs.items():
        if key not in allowed:
            raise ValueError(f"{name} has {key!r}, which {type(model).__name__} does not take: leave it out.")
        is_tensor = isinstance(value, Iterable) and not isinstance(value, (str, bytes))
        tensor = found[key] = as_tensor(value, f"{name}[{key!r}]").to(model.device) if is_tensor else value
        if key in BY_TOKEN and is_tensor and tensor.dim() == 1:
            found[key] = tensor[None]
    ids = found["input_ids"]
    if not hasattr(ids, "dim") or ids.dim() != 2 or not ids.numel():
        shape = tuple(ids.shape) if hasattr(ids, "dim") else type(ids).__name__
        raise ValueError(f"{name}['input_ids'] is {shape}, but must be ids `b t`, with one or more of each.")
    check_ids(f"{name}['input_ids']", ids, model)
    return found


# ---- other arguments


def check_type(name: str, value: Any, kind: Any, allowed: str) -> None:
    """Raise ValueError unless `value` is an instance of `kind`, which `allowed` describes."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} is of type {type(value).__name__}, but must be {allowed}.")


def check_integer(name: str, value: Any, low: float = 1, high: float = math.inf) -> None:
    """Raise ValueError unless `value` is an integer from `low` to `high`, and not a bool."""
    if not isinstance(value, Integral) or isinstance(value, bool) or not low <= int(value) <= high:
        limits = f" from {low} to {high}" if high < math.inf else f", {low} or more" if low > -math.inf else ""
        raise ValueError(f"{name}={shown(value)} is impossible: it must be an integer{limits}.")


def check_number(name: str, value: Any, low: float, high: float = LARGEST, *, above: bool = False) -> None:
    """Raise ValueError unless `value` is a number from `low` to `high`, and not a bool. above: `low` is excluded."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    number = value if isinstance(value, int) else float(value) if is_number else math.nan  # an int may exceed floats
    if not (is_number and low <= number <= high and (number > low or not above)):
        limits = (f"above {low}" if above else f"of at least {low}") + f" and at most {high}" * (high < LARGEST)
        raise ValueError(f"{name}={shown(value)} is impossible: it must be a number {limits}.")


def as_named(values: Any, name: str, of: str) -> dict[str, Any]:
    """A mapping from names, such as those of curves, with one entry or more, as a dict."""
    if not isinstance(values, Mapping) or not values or not all(isinstance(key, str) for key in values):
        what = f"is of type {type(values).__name__}" if not isinstance(values, Mapping) else f"has the keys {[*values]}"
        raise ValueError(f'{name} {what}, but must give a name to each of one or more {of}: pass {{"name": …}}.')
    for key in values:
        check_text(key, f"a name in {name}")
    return dict(values)


def as_table(values: Any, name: str, of: str, axes: str, *, may_lack_values: bool = False) -> dict[str, Tensor]:
    """Finite numbers by name, as in `as_values`, all of one shape."""
    table = {
        key: as_values(part, f"{name}[{key!r}]", axes, may_lack_values=may_lack_values)
        for key, part in as_named(values, name, of).items()
    }
    shapes = {key: tuple(part.shape) for key, part in table.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"{name} has {of} of different shapes, {shapes}: pass {of} of one shape.")
    return table


def as_fields(cls: Any, values: Any, name: str, axes: str) -> Any:
    """A named tuple of tensors, all of one shape, as finite numbers in float32 on the CPU."""
    parts = as_sequence(values, name, "tensors")
    if len(parts) != len(cls._fields):
        fields = ", ".join(cls._fields)
        raise ValueError(f"{name} has {len(parts)} parts, but must have {fields}: pass a {cls.__name__}.")
    return cls(**as_table(dict(zip(cls._fields, parts, strict=True)), name, "parts", axes))
