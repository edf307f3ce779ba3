"""Exercises and predictions: compare two results, commit to a guess, and recognise the usual misconceptions."""

from __future__ import annotations

import inspect
import math
import reprlib
import types
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..model import Attention, XLMRobertaXLConfig

NO_RESULT = "Nothing to check yet: your function returns None. Write your code; or is the `return` missing?"
TOLERANCE = 1e-5  # absolute for numbers up to 1, relative for larger ones
SHORT = reprlib.Repr()
SHORT.maxstring = 80  # enough for a sentence
COPIED = (list, torch.nn.Module, types.SimpleNamespace)


@dataclass(frozen=True, repr=False)
class Comparison:
    """The result of `compare`. It prints as its message; ask for `is_close`, as every object is true."""

    message: str
    is_close: bool

    def __repr__(self) -> str:
        return self.message


def compare(mine: Any, reference: Any) -> Comparison:
    """Compare `mine` with `reference`: first type and shape, then the largest difference and its index.

    Tensors, arrays, numbers, and lists of them may differ by rounding (1e-5, relative for numbers above 1), unless the
    reference is of integers or booleans. NaN equals only NaN.
    """
    try:
        if isinstance(reference, bool):
            return compare_bools(mine, reference)
        if isinstance(reference, (list, tuple)) and not is_numeric(reference):
            return compare_lists(mine, reference)
        if not isinstance(reference, Tensor) and not is_numeric(reference):
            is_same = isinstance(mine, type(reference)) and bool(mine == reference)
            message = f"It is {SHORT.repr(mine)}, and should be {SHORT.repr(reference)}."
            return Comparison("Exactly equal." if is_same else message, is_same)
        expected = as_tensor(reference)
    except Exception:  # an array of objects, a dictionary of tensors, …
        return Comparison(f"{describe_type(mine)} and {describe_type(reference)} cannot be compared here.", False)
    try:
        result = as_tensor(mine)
    except Exception:
        kind = describe_type(mine) + (" with more than numbers" if isinstance(mine, (list, tuple)) else "")
        return Comparison(f"It is {kind}, and should be {describe_shape(expected)}.", False)
    if result.shape != expected.shape:
        return Comparison(f"It is {describe_shape(result)}, and should be {describe_shape(expected)}.", False)
    return compare_numbers(result, expected)


def compare_bools(mine: Any, reference: bool) -> Comparison:
    """Accept as True or False whatever Python, NumPy and PyTorch take for them."""
    shape = tuple(getattr(mine, "shape", ()))
    if math.prod(shape) != 1:
        return Comparison(f"It is of shape {shape}, and should be True or False: is .all() missing?", False)
    value = mine.item() if hasattr(mine, "item") else mine
    if not isinstance(value, (bool, int)) or value not in (0, 1):
        return Comparison(f"It is {describe_type(mine)}, and should be True or False.", False)
    message = f"It is {bool(value)}, and should be {reference}."
    return Comparison("Exactly equal." if value == reference else message, value == reference)


def compare_numbers(result: Tensor, expected: Tensor) -> Comparison:
    """Compare two tensors of the same shape."""
    if torch.equal(result, expected):
        return Comparison("Exactly equal.", True)
    allowed = torch.zeros(expected.shape, dtype=torch.float64)
    if expected.is_floating_point():
        allowed = TOLERANCE * expected.double().abs().nan_to_num().clamp(min=1)
    result, expected = result.double(), expected.double()
    one_is_nan = result.isnan() != expected.isnan()
    if bool(one_is_nan.any()):
        what = "NaN, not a number" if bool((result.isnan() & one_is_nan).any()) else "a number where NaN should be"
        return Comparison(f"It holds {what}{at_largest(one_is_nan.double())[1]}.", False)
    difference = torch.where((result == expected) | expected.isnan(), 0.0, (result - expected).abs())
    index, at_index = at_largest(difference)
    is_wrong = difference > allowed
    if not bool(is_wrong.any()):
        return Comparison(f"Close: at most {difference.max():.1e} apart{at_index}.", True)
    many = f" in {int(is_wrong.sum())} of {expected.numel()} numbers, most{at_index}" if expected.dim() else ""
    values = f"{result[index].item():.6g} where {expected[index].item():.6g} should be"
    return Comparison(f"Different{many}: {values}.", False)


def compare_lists(mine: Any, reference: list | tuple) -> Comparison:
    if not isinstance(mine, (list, tuple)):
        return Comparison(f"It is {describe_type(mine)}, and should be a list of {len(reference)}.", False)
    if len(mine) != len(reference):
        return Comparison(f"Its length is {len(mine)}, and should be {len(reference)}.", False)
    for i, pair in enumerate(zip(mine, reference, strict=True)):
        comparison = compare(*pair)
        if not comparison.is_close:
            return Comparison(f"Entry {i}: {comparison.message[0].lower()}{comparison.message[1:]}", False)
    return Comparison("Equal.", True)


def is_numeric(value: Any) -> bool:
    """Whether `value` is a number, an array, or a list or tuple of such, all of the same length."""
    if isinstance(value, (list, tuple)):
        lengths = {len(x) if isinstance(x, (list, tuple)) else None for x in value}
        return len(lengths) == 1 and all(is_numeric(x) and not isinstance(x, Tensor) for x in value)
    return isinstance(value, (int, float)) or type(value).__module__ == "numpy"


def as_tensor(value: Any) -> Tensor:
    """Convert to a dense tensor on the CPU; integers stay integers. TypeError for complex numbers."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(x, Tensor) for x in value):
        value = torch.stack(list(value))
    if not isinstance(value, Tensor):
        numbers = torch.as_tensor(value)
        value = torch.as_tensor(value, dtype=torch.float64) if numbers.is_floating_point() else numbers
    if value.is_complex():
        raise TypeError("complex numbers cannot be compared here.")
    value = value.detach().to("cpu")
    return value.to_dense() if value.is_sparse else value


def describe_shape(value: Tensor) -> str:
    return "one number" if value.dim() == 0 else f"of shape {tuple(value.shape)}"


def describe_type(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def at_largest(values: Tensor) -> tuple[tuple[int, ...], str]:
    """The index of the largest value, and " at [index]" for a message; for a single number both are empty."""
    if not values.dim():
        return (), ""
    index = tuple(int(i) for i in torch.unravel_index(values.argmax(), values.shape))
    return index, f" at {list(index)}"


# ---- predictions


@dataclass(repr=False)
class Guess:
    """A prediction, made before the result is seen."""

    question: str
    answer: Any = None

    def __repr__(self) -> str:
        return f"{self.question} " + ("Put your guess in place of None." if self.answer is None else f"{self.answer}.")

    def against(self, result: Any) -> str:
        """Compare the prediction with the result, in a sentence to print beside it."""
        if self.answer is None:
            return f"No guess was made; it is {result}."
        is_right = is_near(self.answer, result)
        return f"You said {self.answer}; it is {result}. " + ("Right!" if is_right else "What did you not think of?")

    def mark(self, draw_line: Callable[..., Any]) -> None:
        """Mark the prediction in a figure, if it is a number: `mine.mark(axis.axvline)`, or `axis.axhline`."""
        if isinstance(self.answer, (int, float)):
            draw_line(self.answer, color="#CC79A7", linestyle="--", label=f"your guess: {self.answer}")


def is_near(answer: Any, result: Any) -> bool:
    """Whether they are equal: words in any case, numbers within 10%."""
    if isinstance(answer, str) or isinstance(result, str):
        return str(answer).strip().casefold() == str(result).strip().casefold()
    try:
        is_finite = math.isfinite(answer) and math.isfinite(result)
        return abs(answer - result) <= 0.1 * abs(result) if is_finite else answer == result
    except Exception:  # not numbers
        return compare(answer, result).is_close


def guess(question: str, answer: Any = None) -> Guess:
    """Commit to a prediction: `mine = guess("How many?", 10)`, and after the result `print(mine.against(result))`."""
    return Guess(question, answer)


# ---- exercises


class Exercise:
    """A function or module class for the learner to write. The solution is what `exercise` decorates, the only copy.

    A class is built from the first argument of a case and called with the others (see `call`).

    make_cases: returns the arguments to try, a tuple for each call. disallowed: names that the code must not use, each
    with the message. hint: added to the message about a wrong result. grade: for exercises with several right results;
    called with a result and its case (the arguments as they were, then as the function left them), returns what is
    wrong, or "". last: a test of what the results do not show; called with a function whose results are right, returns
    what to answer, or "". misconceptions: message -> a function with that mistake; a learner who makes it gets the
    message.
    """

    def __init__(
        self, solution: Callable, make_cases: Callable[[], Iterable[tuple]], disallowed: dict[str, str], hint: str,
        grade: Callable[[Any, tuple], str] | None, last: Callable[[Callable], str] | None = None,
    ) -> None:  # fmt: skip
        self.solution, self.make_cases, self.disallowed = solution, make_cases, disallowed
        self.hint, self.grade, self.last = hint, grade, last
        self.misconceptions: dict[str, Callable] = {}

    @cached_property
    def cases(self) -> list[tuple[tuple, Any]]:
        """Each case with its expected result."""
        return [(case, call(self.solution, copy_case(case))) for case in self.make_cases()]

    @cached_property
    def argument_names(self) -> list[str]:
        names = list(inspect.signature(self.solution).parameters)
        if isinstance(self.solution, type):
            names += [*inspect.signature(self.solution.forward).parameters][1:]  # type: ignore[attr-defined]
        return names

    def check(self, mine: Callable) -> str:
        """Return "Right!", or a sentence on what is wrong. Raises nothing, whatever `mine` does."""
        if not callable(mine):
            return f"Pass the function itself, without brackets behind it: this is {describe_type(mine)}."
        is_class = isinstance(self.solution, type)
        if is_class and not (isinstance(mine, type) and issubclass(mine, torch.nn.Module)):
            return "It should be a class, and inherit from nn.Module."
        changed = ""
        for case, expected in self.cases:
            arguments = copy_case(case)
            try:
                with torch.random.fork_rng([]):
                    torch.manual_seed(0)
                    if is_class and (fault := self.find_wrong_parameters(mine, case[0])):
                        return f"Not quite. {fault}"
                    result = call(mine, arguments)
            except Exception as error:
                return f"Your code stops{self.describe_error(error)}"
            if result is None or (isinstance(result, tuple) and result and all(part is None for part in result)):
                return NO_RESULT
            if fault := self.find_fault(result, expected, case, arguments):
                misconception = "" if self.grade else self.find_misconception(mine)
                return f"Not quite. {misconception or fault}"
            changed = changed or self.find_changed(case, arguments)
        code = getattr(inspect.unwrap(mine), "__code__", None)
        used = set() if code is None else names_used(code)
        remark = next((message for name, message in self.disallowed.items() if name in used), changed)
        if remark:
            return f"Right numbers. {remark}"
        try:
            return (self.last and self.last(mine)) or "Right!"
        except Exception as error:
            return f"Your code stops{self.describe_error(error)}"

    def find_fault(self, result: Any, expected: Any, case: tuple, arguments: tuple) -> str:
        """What is wrong with a result; "" if it is right."""
        if self.grade is not None:
            try:
                return self.grade(result, (*case, *arguments))
            except Exception:  # not even of the type that can be graded
                return compare(result, expected).message
        comparison = compare(result, expected)
        return "" if comparison.is_close else f"{self.describe_case(case)}{comparison} {self.hint}".rstrip()

    def find_wrong_parameters(self, mine: Callable, config: Any) -> str:
        """Which parameter of a class has another name or shape than the solution's, or is too many; "" if none is."""
        wanted, found = (
            {name: parameter.shape for name, parameter in cls(config).named_parameters()}
            for cls in (self.solution, mine)
        )
        for name, shape in wanted.items():
            if found.get(name) != shape:
                if name not in found and name in dict(mine(config).named_parameters(remove_duplicate=False)):
                    return f"`{name}` is the parameter of another module, too: build a module for each."
                has = f"has the shape {tuple(found[name])}" if name in found else "is missing"
                return f"The parameter `{name}` {has}: it should have the shape {tuple(shape)}."
        return next((f"The parameter `{name}` is not needed." for name in found if name not in wanted), "")

    def find_changed(self, case: tuple, arguments: tuple) -> str:
        """Which argument was changed in place, though the caller may still need it; "" if none was."""
        for name, before, after in zip(self.argument_names, case, arguments, strict=True):
            if isinstance(before, torch.nn.Module):
                before, after = (list(module.parameters()) for module in (before, after))
            if isinstance(before, (Tensor, list)) and not compare(after, before).is_close:
                return f"But `{name}` was changed in place: work on a copy."
        return ""

    def find_misconception(self, mine: Callable) -> str:
        """The message of the misconception that agrees with `mine` on all cases where `mine` returns; "" if none."""
        results = []
        for case, _ in self.cases:
            with suppress(Exception):  # it may well stop on another case than the one it gets wrong
                results.append((case, call(mine, copy_case(case))))
        for message, mistaken in self.misconceptions.items():
            with suppress(Exception):  # so may a misconception
                agree = [compare(result, call(mistaken, copy_case(case))).is_close for case, result in results]
                if agree and all(agree):
                    return message
        return ""

    def describe_case(self, case: tuple) -> str:
        """Name the arguments that are short enough for a message."""
        parts = []
        for name, value in zip(self.argument_names, case, strict=True):
            if isinstance(value, (int, float, str)):
                parts.append(f"{name} = {value!r}")
            elif isinstance(value, list) and all(isinstance(entry, str) for entry in value):
                parts.append(f"{name} = {SHORT.repr(value)}")
            elif isinstance(value, Tensor):
                parts.append(f"{name} {describe_shape(value)}")
            elif hasattr(value, "label"):  # a model that the exercise has labelled
                parts.append(f"{name} = {value.label}")
        return f"With {', '.join(parts)}: " if parts else ""

    def describe_error(self, error: Exception) -> str:
        """An exception's name and message, and the hint unless it is a plain spelling mistake."""
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        line = (lines[-1] if type(error).__name__ == "EinopsError" else lines[0]) if lines else ""
        is_misspelt = isinstance(error, (NameError, AttributeError, ImportError))
        hint = "" if is_misspelt or not self.hint else f" {self.hint}"
        return f" with {type(error).__name__}" + (f": {line.rstrip('.')}." if line else ".") + hint


def exercise(
    make_cases: Callable[[], Iterable[tuple]], disallowed: dict[str, str] | None = None, hint: str = "",
    grade: Callable[[Any, tuple], str] | None = None, last: Callable[[Callable], str] | None = None,
) -> Callable[[Callable], Exercise]:  # fmt: skip
    """Turn a solution into an Exercise."""
    return lambda solution: Exercise(solution, make_cases, disallowed or {}, hint, grade, last)


def randn(*shape: int, seed: int = 0) -> Tensor:
    """torch.randn, the same numbers each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def call(function: Callable, arguments: tuple) -> Any:
    """Call a function; from a module class, build a module of the first argument, and call that with the others.

    The module's parameters get random numbers that depend on their names and shapes only.
    """
    if not isinstance(function, type):
        return function(*arguments)
    module = function(arguments[0])
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(0.3 * randn(*parameter.shape, seed=zlib.crc32(name.encode())))
        return module(*arguments[1:])


def copy_case(case: tuple) -> tuple:
    """Copy tensors, lists and modules, as a function may change its arguments."""
    return tuple(
        value.clone() if isinstance(value, Tensor) else deepcopy(value) if isinstance(value, COPIED) else value
        for value in case
    )


def names_used(code: types.CodeType) -> set[str]:
    """The global names and attributes that a function uses, functions inside it included."""
    inner = [names_used(part) for part in code.co_consts if isinstance(part, types.CodeType)]
    return {*code.co_names, *code.co_freevars}.union(*inner)


def random_attention(heads: int) -> Attention:
    """Attention with random weights, in evaluation mode and without gradients; its heads are 8 wide."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        config = XLMRobertaXLConfig(hidden_size=8 * heads, num_attention_heads=heads)
        attention = Attention(config).requires_grad_(False).eval()
        for parameter in attention.parameters():
            if parameter is not attention.norm.weight:
                torch.nn.init.normal_(parameter, std=0.3)
    return attention
