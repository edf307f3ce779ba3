"""What exercises are made of: compare, guess, and a check that recognises the usual mistakes. Used in all notebooks."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

BLANK = "Nothing to check yet: replace `None` by your code."
CLOSE = 1e-5  # of numbers around 1; of larger ones, this share


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

    Tensors, numbers, and lists or tuples of them may differ by rounding (1e-5, or that share of large numbers).
    """
    if isinstance(reference, (list, tuple)) and not is_numbers(reference):
        return compare_lists(mine, reference)
    if not isinstance(reference, Tensor) and not is_numbers(reference):
        is_same = type(mine) is type(reference) and mine == reference
        return Comparison("Exactly equal." if is_same else f"It is {mine!r}, and should be {reference!r}.", is_same)
    wanted = as_tensor(reference)
    try:
        got = as_tensor(mine)
    except (TypeError, ValueError, RuntimeError):
        return Comparison(f"It is a {type(mine).__name__}, and should be {described(wanted)}.", False)
    if got.shape != wanted.shape:
        return Comparison(f"It is {described(got)}, and should be {described(wanted)}.", False)
    if torch.equal(got, wanted):
        return Comparison("Exactly equal.", True)
    got, wanted = got.double(), wanted.double()
    if bool((got.isnan() & ~wanted.isnan()).any()):
        return Comparison(f"It holds NaN, not a number, at {place(got.isnan().double())}.", False)
    difference = (got - wanted).abs().nan_to_num()
    is_close = bool((difference <= CLOSE * wanted.abs().nan_to_num().clamp(min=1)).all())
    where, many = place(difference), int((difference > CLOSE).sum())
    at = (
        ""
        if wanted.dim() == 0
        else f" at {where}"
        if is_close
        else f" in {many} of {wanted.numel()} numbers, most at {where}"
    )
    values = f"{got[tuple(where)].item():.6g} where {wanted[tuple(where)].item():.6g} should be"
    if is_close:
        return Comparison(f"Close: at most {difference.max():.1e} apart{at}.", True)
    return Comparison(f"Different{at}: {values}.", False)


def compare_lists(mine: Any, reference: list | tuple) -> Comparison:
    if not isinstance(mine, (list, tuple)) or len(mine) != len(reference):
        size = f"{len(mine)} entries" if isinstance(mine, (list, tuple)) else f"a {type(mine).__name__}"
        return Comparison(f"It is {size}, and should be a list of {len(reference)}.", False)
    for i, (ours, expected) in enumerate(zip(mine, reference, strict=True)):
        if not (said := compare(ours, expected)):
            return Comparison(f"Entry {i}: {said[0].lower()}{said[1:]}", False)
    return Comparison("Equal.", True)


def is_numbers(value: Any) -> bool:
    numbers = value if isinstance(value, (list, tuple)) and value else [value]
    return all(isinstance(x, (int, float)) for x in numbers) or (
        isinstance(value, (list, tuple)) and bool(value) and all(is_numbers(x) for x in value)
    )


def as_tensor(value: Any) -> Tensor:
    return value.detach() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)


def described(value: Tensor) -> str:
    return "one number" if value.dim() == 0 else f"of shape {tuple(value.shape)}"


def place(values: Tensor) -> list[int]:
    """Where the largest one is."""
    return [int(i) for i in torch.unravel_index(values.argmax(), values.shape)] if values.dim() else []


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
        is_right = self.answer == result or (
            is_numbers(result) and is_numbers(self.answer) and near(self.answer, result)
        )
        return f"You said {self.answer}; it is {result}. " + ("Right!" if is_right else "What did you not think of?")


def near(answer: float, result: float) -> bool:
    """Within a tenth: a guess is no calculation."""
    return abs(answer - result) <= 0.1 * abs(result)


def guess(question: str, answer: Any = None) -> Guess:
    """Commit to a prediction: `mine = guess("How many?", 10)`, and after the result `print(mine.against(result))`."""
    return Guess(question, answer)


# ---- exercises


class Exercise:
    """A function for the learner to write. The solution is the function that this decorates: the only copy there is.

    cases: gives the arguments to try, a tuple for each call. forbidden: names that it must do without, and why.
    slips: sentence -> the function with that mistake; a learner who makes it is told the sentence. judge: of a result
    the case (as it was, and then once more as `mine` has left it), where more than one result is right: the sentence,
    or nothing.
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
        self.slips: dict[str, Callable] = {}

    def check(self, mine: Callable) -> str:
        """One sentence on `mine`: "Right!", or what is wrong. Raises nothing, whatever `mine` does."""
        cases = list(self.cases())
        for case in cases:
            expected, given = self.solution(*copied(case)), copied(case)
            try:
                with torch.random.fork_rng([]):
                    torch.manual_seed(0)
                    got = mine(*given)
            except Exception as error:
                said = (str(error).splitlines() or [""])[0].rstrip(".")
                return f"Your code stops with {type(error).__name__}: {said}. {self.hint}".rstrip()
            if got is None or (isinstance(got, tuple) and all(part is None for part in got)):
                return BLANK
            if self.judge is not None:
                try:
                    why = self.judge(got, (*case, *given))
                except Exception:  # it is not even of the kind that can be judged
                    why = str(compare(got, expected))
                if why:
                    return f"Not quite. {why}"
            elif not (said := compare(got, expected)):
                return f"Not quite. {self.recognised(mine, cases) or f'{said} {self.hint}'.rstrip()}"
        used = next((why for name, why in self.forbidden.items() if name in names_in(mine.__code__)), "")
        return f"Right numbers. {used}" if used else "Right!"

    def recognised(self, mine: Callable, cases: list[tuple]) -> str:
        """The sentence of the slip that gives, on all cases, what `mine` gives; or nothing."""
        for why, slip in self.slips.items():
            try:
                if all(compare(mine(*copied(case)), slip(*copied(case))) for case in cases):
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
    return tuple(value.clone() if isinstance(value, Tensor) else value for value in case)


def names_in(code: types.CodeType) -> set[str]:
    """Global names and attributes that a function uses, those inside it too."""
    inner = [names_in(part) for part in code.co_consts if isinstance(part, types.CodeType)]
    return {*code.co_names, *code.co_freevars}.union(*inner)
