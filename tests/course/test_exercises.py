"""The exercises: every solution passes, every blank and every crash is met gently, every slip gets its own sentence."""

import ast
import functools
import inspect
import json
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from xlmrxl_min.course import exercises
from xlmrxl_min.course.checks import BLANK, Exercise, compare, guess, names_in

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("[0-9]*.ipynb"))
EXERCISES = {name: value for name, value in vars(exercises).items() if isinstance(value, Exercise)}
CELLS = {path.stem: json.loads(path.read_text(encoding="utf-8"))["cells"] for path in NOTEBOOKS}


def source(cell):
    return "".join(cell["source"])


def text_of(exercise):
    """The solution as it is written, without its decorator."""
    written = textwrap.dedent(inspect.getsource(exercise.solution))
    return written[written.index("def ") :].strip()


@pytest.mark.parametrize("name", EXERCISES)
def test_solution_is_right(name):
    assert EXERCISES[name].check(EXERCISES[name].solution) == "Right!"


@pytest.mark.parametrize(
    ("name", "why"), [(name, why) for name, one in EXERCISES.items() for why in one.misconceptions]
)
def test_slip_is_recognised(name, why):
    assert EXERCISES[name].check(EXERCISES[name].misconceptions[why]) == f"Not quite. {why}"


@pytest.mark.parametrize("name", EXERCISES)
def test_there_are_at_least_four_slips_and_they_differ(name):
    exercise = EXERCISES[name]
    assert len(exercise.misconceptions) >= 4
    assert all(why.endswith(".") and why.count(" ") >= 2 for why in exercise.misconceptions), "whole sentences"


@pytest.mark.parametrize("name", EXERCISES)
def test_blank_and_crash_are_met_gently(name):
    check = EXERCISES[name].check
    assert check(lambda *args: None) == BLANK
    assert check(lambda *args: (None, None)) == BLANK

    def crash(*args):
        raise RuntimeError("The size of tensor a must match\nand more")

    assert check(crash).startswith("Your code stops with RuntimeError: The size of tensor a must match.")
    for nonsense in ("nonsense", object(), {}, 1 + 2j, torch.tensor(1 + 2j), 10**400, torch.ones(2, device="meta")):
        assert check(lambda *args, nonsense=nonsense: nonsense).startswith("Not quite. ")
    said = check(lambda *args: "nonsense").lower()
    assert re.search("it is (a str|'nonsense'), and should be", said)
    assert check(3) == "Hand over the function itself, without brackets behind it: this is an int."


@pytest.mark.parametrize("name", EXERCISES)
def test_notebook_shows_the_solution_a_blank_and_the_check(name):
    """The solution as it stands in exercises.py; a stub of the same name, which the check meets gently."""
    exercise = EXERCISES[name]
    check = next(key for key, value in vars(exercises).items() if value == exercise.check)
    where = [stem for stem, cells in CELLS.items() if any(f"{check}({name})" in source(cell) for cell in cells)]
    assert len(where) == 1, f"{check}({name}) is in {where}"
    cells = CELLS[where[0]]
    solutions = [block for cell in cells for block in re.findall(r"```python\n(.*?)\n```", source(cell), re.DOTALL)]
    assert text_of(exercise) in solutions
    stubs = [
        ast.unparse(node)
        for cell in cells
        if cell["cell_type"] == "code" and f"def {name}(" in source(cell)
        for node in ast.parse(source(cell)).body
        if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    assert len(stubs) == 1
    assert (
        inspect.signature(exercise.solution).parameters.keys()
        == {arg.arg: None for arg in ast.parse(stubs[0]).body[0].args.args}.keys()
    )
    namespace = {}
    exec(stubs[0], namespace)
    assert exercise.check(namespace[name]) == BLANK
    said = [
        source({"source": out.get("text", [])}) for cell in cells if check in source(cell) for out in cell["outputs"]
    ]
    assert said == [f"{BLANK}\n"]


@pytest.mark.parametrize("name", EXERCISES)
def test_notebook_has_what_the_solution_needs(name):
    exercise = EXERCISES[name]
    needed = {used for used in names_in(exercise.solution.__code__) if used in vars(exercises)}
    cells = next(cells for cells in CELLS.values() if any(f"({name}))" in source(cell) for cell in cells))
    code = "\n".join(source(cell) for cell in cells if cell["cell_type"] == "code")
    lines = [node for node in ast.parse(code).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    there = {(alias.asname or alias.name).split(".")[0] for line in lines for alias in line.names}
    there |= {node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)}
    assert needed <= there, needed - there


def test_right_answers_may_come_in_any_form():
    class Answer(torch.nn.Module):
        def forward(self, x, gamma, beta, eps):
            return torch.nn.functional.layer_norm(x, (4,), gamma, beta, eps)

    assert exercises.check_norm(Answer()) == "Right!"
    assert exercises.check_norm(functools.partial(lambda *args: exercises.my_norm.solution(*args))) == "Right!"
    assert exercises.check_split_heads(lambda x, d: list(x.unflatten(-1, (-1, d)).transpose(1, 2))) == "Right!"
    assert exercises.check_distances(lambda tokens: torch.tensor(2 * tokens - 1)) == "Right!"
    by_numpy = exercises.check_most_looked_at(lambda weights, tokens: list(np.array(tokens)[weights.argmax(-1)]))
    assert by_numpy == "Right!"


def test_of_cuts_equally_short_any_will_do():
    def latest(text, pieces):
        """As the solution, but the last begin wins, not the first."""
        shortest = [()]
        for end in range(1, len(text) + 1):
            begins = [begin for begin in reversed(range(end)) if text[begin:end] in pieces]
            shortest.append(min(((*shortest[begin], text[begin:end]) for begin in begins), key=len))
        return shortest[-1]

    assert any(list(latest(*case)) != exercises.fewest_pieces.solution(*case) for case in exercises.fewest_cases())
    assert exercises.check_fewest(latest) == "Right!"


def test_guesses_that_see_each_other_are_not_those_asked_for():
    """Filled one after the other, from either end."""

    def from_the_end(model, tokenizer, text):
        while "<mask>" in text:
            before, after = text.rsplit("<mask>", 1)
            text = before + exercises.fill_mask(model, tokenizer, text)[-1][0].text + after
        return text

    assert exercises.check_complete(from_the_end).startswith("Not quite. ")


def test_a_mistake_is_recognised_though_the_code_stops_elsewhere():
    """Without a mask fill_mask stops, but that is not the mistake which comes first."""

    def only_the_first(model, tokenizer, text):
        return text.replace("<mask>", exercises.fill_mask(model, tokenizer, text)[0][0].text, 1)

    assert (
        exercises.check_complete(only_the_first) == "Not quite. Only the first <mask> is filled: there may be several."
    )


@pytest.mark.parametrize(
    ("check", "mine", "says"),
    [
        (
            "needed",
            lambda cuts: cuts.clear() or 7,
            "Not quite. With cuts = ['columns', 'columns']: different: 7 where 2 should be.",
        ),
        (
            "choice",
            lambda ids, encode, score: score(encode(ids.flatten(0, 1))).view(-1, 4),
            "Your code stops with RuntimeError: shape",
        ),
        ("choice", lambda ids, encode, score: score(encode(ids)), "Your code stops with ValueError: encode takes n t"),
        ("distances", lambda tokens: tokens + 5, "Not quite. With tokens = 1: different: 6 where 1 should be."),
        ("norm", lambda x, *rest: y, "Your code stops with NameError: name 'y' is not defined."),
    ],
)
def test_the_sentence_says_with_what(check, mine, says):
    assert getattr(exercises, f"check_{check}")(mine).lower().startswith(says.lower())


def test_masks_of_the_attention_cases_differ():
    for _, _, _, may in exercises.attention_cases()[1::2]:
        assert not torch.equal(may[0, :, :2], may[1, :, :2])


def test_what_is_forbidden_is_said():
    from einops import rearrange

    def by_einops(x, d):
        return rearrange(x, "b t (h d) -> b h t d", d=d)

    assert exercises.check_split_heads(by_einops) == "Right numbers. Now without einops."

    def by_kernel(query, key, value, attention_mask):
        low = torch.zeros(attention_mask.shape).masked_fill(~attention_mask, torch.finfo(torch.float32).min / 2)
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=low)

    assert exercises.check_attention(by_kernel) == "Right numbers. But SDPA did it: write it out."


def test_what_is_given_may_be_written_to():
    """A function that spoils its arguments is judged on fresh ones, and told of it."""

    def careless(x, gamma, beta, eps):
        x -= x.mean(-1, keepdim=True)
        x /= (x.square().mean(-1, keepdim=True) + eps).sqrt()
        return x.mul_(gamma).add_(beta)

    said = "Right numbers. But `x` is no longer what it was: work on a new one."
    assert exercises.check_norm(careless) == exercises.check_norm(careless) == said


# ---- compare


@pytest.mark.parametrize(
    ("mine", "reference", "says", "is_close"),
    [
        (torch.ones(2, 3), torch.ones(2, 3), "Exactly equal.", True),
        (torch.ones(2), torch.ones(2) + 4e-6, "Close: at most 4.1e-06 apart at [0].", True),
        (torch.ones(2, 3), torch.ones(3, 2), "It is of shape (2, 3), and should be of shape (3, 2).", False),
        (
            torch.tensor([[1.0, 2], [3, 4]]),
            torch.tensor([[1.0, 2], [3.5, 4]]),
            "Different in 1 of 4 numbers, most at [1, 0]: 3 where 3.5 should be.",
            False,
        ),
        (torch.tensor([1.0, torch.nan]), torch.ones(2), "It holds NaN, not a number at [1].", False),
        (torch.tensor([torch.inf, 1.0]), torch.tensor([torch.inf, 1.0]), "Exactly equal.", True),
        (3, 4, "Different: 3 where 4 should be.", False),
        (100_001, 100_000, "Different: 100001 where 100000 should be.", False),
        (
            torch.tensor([250_003]),
            torch.tensor([250_001]),
            "Different in 1 of 1 numbers, most at [0]: 250003 where 250001 should be.",
            False,
        ),
        (1.0, float("nan"), "It holds a number where NaN should be.", False),
        (float("nan"), float("nan"), "Close: at most 0.0e+00 apart.", True),
        (1 + 2j, 1.0, "It is a complex, and should be one number.", False),
        (torch.ones(2) > 0, True, "It is of shape (2,), and should be True or False: is .all() missing?", False),
        (torch.ones(1) > 0, True, "Exactly equal.", True),
        (np.float32(1), 1, "Exactly equal.", True),
        (np.arange(3)[::-1].copy(), torch.tensor([2, 1, 0]), "Exactly equal.", True),
        ([torch.ones(2), torch.zeros(2)], torch.tensor([[1.0, 1], [0, 0]]), "Exactly equal.", True),
        ({"a": torch.ones(2)}, {"a": torch.ones(2)}, "a dict and a dict cannot be compared here.", False),
        (1e6, 1e6 + 1, "Close: at most 1.0e+00 apart.", True),
        (0.1 + 0.2, 0.3, "Close: at most 5.6e-17 apart.", True),
        ("a", "b", "It is 'a', and should be 'b'.", False),
        (None, torch.ones(2), "It is a NoneType, and should be of shape (2,).", False),
        ([torch.ones(2)], [torch.ones(2), torch.ones(2)], "Its length is 1, and should be 2.", False),
        ((torch.ones(2), torch.zeros(2)), (torch.ones(2), torch.ones(2)), None, False),
    ],
)
def test_compare_says_shape_first_then_where(mine, reference, says, is_close):
    said = compare(mine, reference)
    assert bool(said) == is_close
    assert says is None or str(said) == says
    assert repr(said) == str(said)


# ---- guess


def test_guess_commits_before_and_is_told_after():
    assert guess("How many?").against(10) == "No guess was made; it is 10."
    assert guess("How many?", 10).against(10) == "You said 10; it is 10. Right!"
    assert guess("How many?", 9.5).against(10).endswith("Right!")
    assert guess("How many?", 3).against(10) == "You said 3; it is 10. What did you not think of?"
    assert guess("Which?", "rows").against("columns").startswith("You said rows; it is columns.")
    assert guess("Which?", "Rows ").against("rows").endswith("Right!")
    assert guess("Which?", [1, 2]).against([1, 3]).endswith("think of?")
    assert guess("How many?", 1.0).against(float("inf")).endswith("think of?")
    assert repr(guess("How many?")) == "How many? Put your guess in place of None."
