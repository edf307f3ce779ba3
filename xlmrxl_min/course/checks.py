"""What exercises are made of: compare, guess, and a check that recognises the usual mistakes. Used in all notebooks."""

from __future__ import annotations

import inspect
import math
import reprlib
import types
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

BLANK = "Nothing to check yet: it gives back None. Put your code there; or is the `return` missing?"
CLOSE = 1e-5  # of numbers around 1; of larger ones, this share
SHORT = reprlib.Repr()
SHORT.maxstring = 80  # a sentence is shown whole


class Comparison(str):
    """A sentence on two values, true where they are equal or close."""

    is_close: bool

    def __new__(cls, text: str, is_close: bool) -> Comparison:
        made = super().__new__(cls, text)
        made.is_close = is_close
        return made

    def __bool__(self) -> bool:
        return self.is_close

    __repr__ = str.__str__  # so that a notebook shows it as it is


def compare(mine: Any, reference: Any) -> Comparison:
    """Say in one sentence how `mine` differs from `reference`: first in kind or shape, then by how much and where.

    Tensors, arrays, numbers, and lists of them may differ by rounding (1e-5, or that share of large numbers), but not
    where the reference is whole numbers or truths. NaN equals NaN only.
    """
    try:
        if isinstance(reference, bool):
            return compare_truths(mine, reference)
        if isinstance(reference, (list, tuple)) and not is_numbers(reference):
            return compare_lists(mine, reference)
        if not isinstance(reference, Tensor) and not is_numbers(reference):
            is_same = isinstance(mine, type(reference)) and bool(mine == reference)
            said = f"It is {SHORT.repr(mine)}, and should be {SHORT.repr(reference)}."
            return Comparison("Exactly equal." if is_same else said, is_same)
        wanted = as_tensor(reference)
    except Exception:  # an array of objects, a dictionary of tensors, …
        return Comparison(f"{kind_of(mine)} and {kind_of(reference)} cannot be compared here.", False)
    try:
        got = as_tensor(mine)
    except Exception:
        it = f"{kind_of(mine)} with more than numbers" if isinstance(mine, (list, tuple)) else kind_of(mine)
        return Comparison(f"It is {it}, and should be {described(wanted)}.", False)
    if got.shape != wanted.shape:
        return Comparison(f"It is {described(got)}, and should be {described(wanted)}.", False)
    return compare_numbers(got, wanted)


def compare_truths(mine: Any, reference: bool) -> Comparison:
    """True and False, or what Python, NumPy and PyTorch take for them."""
    shape = tuple(getattr(mine, "shape", ()))
    if math.prod(shape) != 1:
        return Comparison(f"It is of shape {shape}, and should be True or False: is .all() missing?", False)
    value = mine.item() if hasattr(mine, "item") else mine
    if not isinstance(value, (bool, int)) or value not in (0, 1):
        return Comparison(f"It is {kind_of(mine)}, and should be True or False.", False)
    said = f"It is {bool(value)}, and should be {reference}."
    return Comparison("Exactly equal." if value == reference else said, value == reference)


def compare_numbers(got: Tensor, wanted: Tensor) -> Comparison:
    """Of one shape."""
    if torch.equal(got, wanted):
        return Comparison("Exactly equal.", True)
    allowed = torch.zeros(wanted.shape, dtype=torch.float64)
    if wanted.is_floating_point():
        allowed = CLOSE * wanted.double().abs().nan_to_num().clamp(min=1)
    got, wanted = got.double(), wanted.double()
    unequal = got.isnan() != wanted.isnan()
    if bool(unequal.any()):
        what = "NaN, not a number" if bool((got.isnan() & unequal).any()) else "a number where NaN should be"
        return Comparison(f"It holds {what}{at(place(unequal.double()))}.", False)
    difference = torch.where((got == wanted) | wanted.isnan(), 0.0, (got - wanted).abs())
    where, wrong = place(difference), difference > allowed
    if not bool(wrong.any()):
        return Comparison(f"Close: at most {difference.max():.1e} apart{at(where)}.", True)
    many = f" in {int(wrong.sum())} of {wanted.numel()} numbers, most{at(where)}" if wanted.dim() else ""
    values = f"{got[tuple(where)].item():.6g} where {wanted[tuple(where)].item():.6g} should be"
    return Comparison(f"Different{many}: {values}.", False)


def compare_lists(mine: Any, reference: list | tuple) -> Comparison:
    if not isinstance(mine, (list, tuple)):
        return Comparison(f"It is {kind_of(mine)}, and should be a list of {len(reference)}.", False)
    if len(mine) != len(reference):
        return Comparison(f"Its length is {len(mine)}, and should be {len(reference)}.", False)
    for i, (ours, expected) in enumerate(zip(mine, reference, strict=True)):
        if not (said := compare(ours, expected)):
            return Comparison(f"Entry {i}: {said[0].lower()}{said[1:]}", False)
    return Comparison("Equal.", True)


def is_numbers(value: Any) -> bool:
    """Whether it is a number, an array, or a list or tuple of such."""
    if isinstance(value, (list, tuple)):
        return bool(value) and all(is_numbers(x) and not isinstance(x, Tensor) for x in value)
    return isinstance(value, (int, float)) or type(value).__module__ == "numpy"


def as_tensor(value: Any) -> Tensor:
    """In memory, dense; whole numbers stay whole. TypeError for complex numbers."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(x, Tensor) for x in value):
        value = torch.stack(list(value))
    if not isinstance(value, Tensor):
        numbers = torch.as_tensor(value)
        value = torch.as_tensor(value, dtype=torch.float64) if numbers.is_floating_point() else numbers
    if value.is_complex():
        raise TypeError("complex numbers are not what is asked for")
    return value.detach().to("cpu").to_dense() if value.is_sparse else value.detach().to("cpu")


def described(value: Tensor) -> str:
    return "one number" if value.dim() == 0 else f"of shape {tuple(value.shape)}"


def kind_of(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def place(values: Tensor) -> list[int]:
    """Where the largest one is."""
    return [int(i) for i in torch.unravel_index(values.argmax(), values.shape)] if values.dim() else []


def at(where: list[int]) -> str:
    return f" at {where}" if where else ""


# ---- predictions


class Guess:
    """A prediction, made before the result is seen."""

    def __init__(self, question: str, answer: Any = None) -> None:
        self.question, self.answer = question, answer

    def __repr__(self) -> str:
        return f"{self.question} " + ("Put your guess in place of None." if self.answer is None else f"{self.answer}.")

    def against(self, result: Any) -> str:
        """What to print beside the result."""
        if self.answer is None:
            return f"No guess was made; it is {result}."
        is_right = is_near(self.answer, result)
        return f"You said {self.answer}; it is {result}. " + ("Right!" if is_right else "What did you not think of?")


def is_near(answer: Any, result: Any) -> bool:
    """Equal, or for numbers within a tenth: a guess is no calculation. Words count whatever their case."""
    if isinstance(answer, str) or isinstance(result, str):
        return str(answer).strip().casefold() == str(result).strip().casefold()
    try:
        is_finite = math.isfinite(answer) and math.isfinite(result)
        return abs(answer - result) <= 0.1 * abs(result) if is_finite else answer == result
    except Exception:  # no numbers
        return bool(compare(answer, result))


def guess(question: str, answer: Any = None) -> Guess:
    """Commit to a prediction: `mine = guess("How many?", 10)`, and after the result `print(mine.against(result))`."""
    return Guess(question, answer)


# ---- exercises


class Exercise:
    """A function for the learner to write. The solution is the function that this decorates: the only copy there is.

    cases: gives the arguments to try, a tuple for each call. forbidden: names that it must do without, and why.
    slips: sentence -> the function with that mistake; a learner who makes it is told the sentence. judge: where
    more than one result is right; of a result and its case (as it was, and then once more as `mine` has left it) the
    sentence, or nothing.
    """

    def __init__(
        self,
        solution: Callable,
        cases: Callable[[], Iterable[tuple]],
        forbidden: dict[str, str],
        hint: str,
        judge: Callable[[Any, tuple], str] | None,
    ) -> None:
        self.solution, self.cases, self.forbidden, self.hint, self.judge = solution, cases, forbidden, hint, judge
        self.misconceptions: dict[str, Callable] = {}

    def check(self, mine: Callable) -> str:
        """One sentence on `mine`: "Right!", or what is wrong. Raises nothing, whatever `mine` does."""
        if not callable(mine):
            return f"Hand over the function itself, without brackets behind it: this is {kind_of(mine)}."
        cases, changed = list(self.cases()), ""
        for case in cases:
            expected, given = self.solution(*copied(case)), copied(case)
            try:
                with torch.random.fork_rng([]):
                    torch.manual_seed(0)
                    got = mine(*given)
            except Exception as error:
                return f"Your code stops{self.stop(error)}"
            if got is None or (isinstance(got, tuple) and got and all(part is None for part in got)):
                return BLANK
            if why := self.fault(got, expected, case, given):
                known = "" if self.judge else self.recognised(mine, cases)
                return f"Not quite. {known or why}"
            changed = changed or self.changed(case, given)
        code = getattr(inspect.unwrap(mine), "__code__", None)
        used = "" if code is None else next((y for x, y in self.forbidden.items() if x in names_in(code)), "")
        return f"Right numbers. {used or changed}" if used or changed else "Right!"

    def fault(self, got: Any, expected: Any, case: tuple, given: tuple) -> str:
        """What is wrong with a result; nothing if it is right."""
        if self.judge is not None:
            try:
                return self.judge(got, (*case, *given))
            except Exception:  # it is not even of the kind that can be judged
                return str(compare(got, expected))
        said = compare(got, expected)
        return "" if said else f"{self.called(case)}{said} {self.hint}".rstrip()

    def changed(self, case: tuple, given: tuple) -> str:
        """What was given is the caller's, who may need it as it was."""
        for name, before, after in zip(inspect.signature(self.solution).parameters, case, given, strict=True):
            if isinstance(before, (Tensor, list)) and not compare(after, before):
                return f"But `{name}` is no longer what it was: work on a new one."
        return ""

    def called(self, case: tuple) -> str:
        """With which arguments, as far as a few words can say it."""
        names, words = inspect.signature(self.solution).parameters, []
        for name, value in zip(names, case, strict=True):
            if isinstance(value, (int, float, str)):
                words.append(f"{name} = {value!r}")
            elif isinstance(value, list) and all(isinstance(entry, str) for entry in value):
                words.append(f"{name} = {SHORT.repr(value)}")
            elif isinstance(value, Tensor):
                words.append(f"{name} {described(value)}")
            elif hasattr(value, "who"):  # a model that has been given a name
                words.append(f"{name} = {value.who}")
        return f"With {', '.join(words)}: " if words else ""

    def stop(self, error: Exception) -> str:
        """Of an exception: its name, what it says, and the hint where that may help."""
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        line = (lines[-1] if type(error).__name__ == "EinopsError" else lines[0]) if lines else ""
        is_slip = isinstance(error, (NameError, AttributeError, ImportError))
        hint = "" if is_slip or not self.hint else f" {self.hint}"
        return f" with {type(error).__name__}" + (f": {line.rstrip('.')}." if line else ".") + hint

    def recognised(self, mine: Callable, cases: list[tuple]) -> str:
        """The sentence of the slip that gives what `mine` gives, on all cases where it gives something; or nothing."""
        given = []
        for case in cases:
            with suppress(Exception):  # it may well stop on another case than the one it gets wrong
                given.append((case, mine(*copied(case))))
        for why, slip in self.misconceptions.items():
            try:
                if given and all(compare(got, slip(*copied(case))) for case, got in given):
                    return why
            except Exception:  # a mistake may well stop where another one does not
                continue
        return ""


def exercise(
    cases: Callable[[], Iterable[tuple]],
    forbidden: dict[str, str] | None = None,
    hint: str = "",
    judge: Callable[[Any, tuple], str] | None = None,
) -> Callable[[Callable], Exercise]:
    return lambda solution: Exercise(solution, cases, forbidden or {}, hint, judge)


def copied(case: tuple) -> tuple:
    """A function may write to what it is given."""
    return tuple(
        value.clone() if isinstance(value, Tensor) else list(value) if isinstance(value, list) else value
        for value in case
    )


def names_in(code: types.CodeType) -> set[str]:
    """Global names and attributes that a function uses, those inside it too."""
    inner = [names_in(part) for part in code.co_consts if isinstance(part, types.CodeType)]
    return {*code.co_names, *code.co_freevars}.union(*inner)
