"""What users pass, turned into what is computed: texts, token ids, strings of tokens. One place for all functions.

A sequence may be a list, a tuple, a numpy array, a pandas Series, a generator, or another iterable with an order.
ValueError, in one sentence, for anything else: what was given, what is allowed, what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any


def is_single_text(value: Any) -> bool:
    """Whether `value` is one text, or a numpy array without axes that holds one."""
    return isinstance(value, str) or (getattr(value, "ndim", None) == 0 and isinstance(value.item(), str))


def as_sequence(values: Any, name: str, of: str) -> list[Any]:
    """The elements of an ordered iterable, such as `of`="texts", as a list."""
    kind = type(values).__name__
    if isinstance(values, (str, bytes, Mapping, AbstractSet)) or not isinstance(values, Iterable):
        raise ValueError(f"{name} is a {kind}, but must be a list of {of}: pass [...].")
    if getattr(values, "ndim", 1) != 1:  # iterating a DataFrame gives its columns, an array its rows
        raise ValueError(f"{name} is a {kind} of {values.ndim} axes, but must have one: pass a list of {of}.")
    return values.tolist() if hasattr(values, "tolist") else list(values)


def as_texts(values: Any, name: str = "texts") -> list[str]:
    """One text, or a sequence of them, as a list."""
    texts = [str(values)] if is_single_text(values) else as_sequence(values, name, "texts")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{name}[{i}] is {text!r}, a {type(text).__name__}, but must be a text, a str.")
    return texts


def as_tokens(values: Any, count: int, name: str = "tokens") -> list[str]:
    """The strings of `count` tokens, as a list."""
    tokens = as_sequence(values, name, "strings, such as tokenizer.convert_ids_to_tokens(input_ids[0])")
    wrong = next((token for token in tokens if not isinstance(token, str)), None)
    if wrong is not None:
        raise ValueError(f"{name} holds {wrong!r}, but must be strings: try tokenizer.convert_ids_to_tokens.")
    if len(tokens) != count:
        raise ValueError(f"{name} has {len(tokens)} strings, but there are {count} tokens: pass one for each.")
    return tokens
