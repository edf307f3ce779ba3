"""What users pass, turned into what is computed: texts, token ids, strings of tokens. One place for all functions.

A sequence may be a list, a tuple, a numpy array, a pandas Series, a generator, or another iterable with an order.
ValueError, in one sentence, for anything else: what was given, what is allowed, what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any


def is_single_text(value: Any) -> bool:
    """Whether `value` is one text, or a numpy array without axes that holds one."""
    return isinstance(value, str) or (getattr(value, "ndim", None) == 0 and isinstance(value.item(), str))


def as_sequence(values: Any, name: str, of: str) -> list[Any]:
    """The elements of an ordered iterable, such as `of`="texts", as a list."""
    kind = type(values).__name__
    if getattr(values, "ndim", 1) != 1:  # iterating a DataFrame gives its columns, an array its rows
        raise ValueError(f"{name} is of type {kind} with {values.ndim} axes, but must have one: pass a list of {of}.")
    if isinstance(values, (str, bytes, bytearray, Mapping, AbstractSet)) or not isinstance(values, Iterable):
        raise ValueError(f"{name} is of type {kind}, but must be a list of {of}: pass [...].")
    return values.tolist() if hasattr(values, "tolist") else list(values)


def check_text(text: Any, name: str) -> None:
    """Raise ValueError unless `text` is a str, and UTF-8 can encode it."""
    if not isinstance(text, str):
        raise ValueError(f"{name} is of type {type(text).__name__}, but must be a text, a str.")
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


def check_option(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if not isinstance(value, (str, int, type(None))) or value not in allowed:
        raise ValueError(f"{name}={value!r} is unknown: take one of {', '.join(map(repr, allowed))}.")


def as_tokens(values: Any, count: int, name: str = "tokens") -> list[str]:
    """The strings of `count` tokens, as a list."""
    tokens = as_sequence(values, name, "strings, such as tokenizer.convert_ids_to_tokens(input_ids[0])")
    wrong = next((token for token in tokens if not isinstance(token, str)), None)
    if wrong is not None:
        raise ValueError(f"{name} holds {wrong!r}, but must be strings: try tokenizer.convert_ids_to_tokens.")
    if len(tokens) != count:
        raise ValueError(f"{name} has {len(tokens)} strings, but there are {count} tokens: pass one for each.")
    return tokens
