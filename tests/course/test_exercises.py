"""The exercises: every solution passes, every misconception gets its message, and a check raises nothing."""

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
import torch.nn.functional as F
from matplotlib.figure import Figure

from xlmrxl_min.course import exercises, steps
from xlmrxl_min.course.checks import NO_RESULT, Exercise, compare, guess, names_used
from xlmrxl_min.course.exercises import (
    attention,
    seeing_attention,
    start_here,
    tokens_and_embeddings,
)

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("[0-9]*.ipynb"))
CELLS = {path.stem: json.loads(path.read_text(encoding="utf-8"))["cells"] for path in NOTEBOOKS}
MODULES = [module for module in vars(exercises).values() if inspect.ismodule(module)]
EXERCISES = {name: value for module in MODULES for name, value in vars(module).items() if isinstance(value, Exercise)}

each_exercise = pytest.mark.parametrize("name", EXERCISES)


def source(cell):
    return "".join(cell["source"])


def python(cells):
    """The code of cells, without the lines of magics and without the steps, whose names do not enter the notebook."""
    code = [source(cell) for cell in cells if cell["cell_type"] == "code" and not source(cell).startswith("%%")]
    return re.sub(r"^%.*$", "", "\n".join(code), flags=re.MULTILINE)


def source_of_solution(exercise):
    """The solution as it is written, without its decorator."""
    text = textwrap.dedent(inspect.getsource(exercise.solution))
    return text[text.index("def ") :].strip()


def check_name(exercise):
    return next(name for name, value in vars(exercises).items() if value == exercise.check)


def test_every_notebook_has_exercises_or_steps():
    files = [module for module in MODULES if "exercises." in module.__name__] + [*steps.NOTEBOOKS]
    assert {file.__name__.rpartition(".")[2] for file in files} == {path.stem[3:] for path in NOTEBOOKS}


@each_exercise
def test_solution_is_right(name):
    assert EXERCISES[name].check(EXERCISES[name].solution) == "Right!"


@pytest.mark.parametrize(
    ("name", "message"), [(name, message) for name, one in EXERCISES.items() for message in one.misconceptions]
)
def test_misconception_is_recognised(name, message):
    assert EXERCISES[name].check(EXERCISES[name].misconceptions[message]) == f"Not quite. {message}"


@each_exercise
def test_there_are_at_least_four_misconceptions_in_whole_sentences(name):
    messages = EXERCISES[name].misconceptions
    assert len(messages) >= 4
    assert all(message.endswith(".") and message.count(" ") >= 2 for message in messages)


@each_exercise
def test_missing_results_and_errors_get_a_message(name):
    check = EXERCISES[name].check
    assert check(lambda *args: None) == NO_RESULT
    assert check(lambda *args: (None, None)) == NO_RESULT

    def fail(*args):
        raise RuntimeError("The size of tensor a must match\nand more")

    assert check(fail).startswith("Your code stops with RuntimeError: The size of tensor a must match.")
    assert re.search("it is (a str|'nonsense'), and should be", check(lambda *args: "nonsense").lower())
    assert check(3) == "Pass the function itself, without brackets behind it: this is an int."


@each_exercise
@pytest.mark.parametrize(
    "nonsense",
    ["nonsense", object(), {}, 1 + 2j, torch.tensor(1 + 2j), 10**400, torch.ones(2, device="meta")],
    ids=lambda value: type(value).__name__,
)
def test_nonsense_gets_a_message(name, nonsense):
    assert EXERCISES[name].check(lambda *args: nonsense).startswith("Not quite. ")


@each_exercise
def test_notebook_shows_the_solution_a_stub_and_the_check(name):
    """The solution as it is in the file of this notebook's exercises, and a stub of the same name."""
    exercise, check = EXERCISES[name], check_name(EXERCISES[name])
    where = [stem for stem, cells in CELLS.items() if any(f"{check}({name})" in source(cell) for cell in cells)]
    assert [stem[3:] for stem in where] == [exercise.solution.__module__.rpartition(".")[2]]
    cells = CELLS[where[0]]
    solutions = [block for cell in cells for block in re.findall(r"```python\n(.*?)\n```", source(cell), re.DOTALL)]
    assert source_of_solution(exercise) in solutions
    stubs = [node for node in ast.parse(python(cells)).body if isinstance(node, ast.FunctionDef) and node.name == name]
    assert len(stubs) == 1
    assert [arg.arg for arg in stubs[0].args.args] == list(inspect.signature(exercise.solution).parameters)
    namespace = {}
    exec(ast.unparse(stubs[0]), namespace)
    assert exercise.check(namespace[name]) == NO_RESULT


@each_exercise
def test_notebook_was_run_with_the_stub(name):
    check = check_name(EXERCISES[name])
    cells = [cell for cells in CELLS.values() for cell in cells if f"{check}({name})" in source(cell)]
    printed = ["".join(out["text"]) for cell in cells for out in cell["outputs"] if "text" in out]
    assert printed == [f"{NO_RESULT}\n"]


@each_exercise
def test_notebook_has_what_the_solution_needs(name):
    solution, check = EXERCISES[name].solution, check_name(EXERCISES[name])
    needed = {used for used in names_used(solution.__code__) if used in solution.__globals__}
    cells = next(cells for cells in CELLS.values() if any(f"{check}({name})" in source(cell) for cell in cells))
    nodes = ast.parse(python(cells)).body
    imports = [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]
    defined = {(alias.asname or alias.name).split(".")[0] for node in imports for alias in node.names}
    defined |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    assert needed <= defined, needed - defined


def test_any_callable_and_any_type_of_result_will_do():
    class Entropy(torch.nn.Module):
        def forward(self, weights):
            return torch.special.entr(weights).sum(-1)

    entropy = seeing_attention.my_entropy.solution
    assert exercises.check_entropy(Entropy()) == "Right!"
    assert exercises.check_entropy(functools.partial(lambda weights: entropy(weights))) == "Right!"
    assert exercises.check_entropy(lambda weights: list(entropy(weights))) == "Right!"
    assert exercises.check_distances(lambda tokens: torch.tensor(2 * tokens - 1)) == "Right!"
    assert exercises.check_most_attended(lambda weights, tokens: list(np.array(tokens)[weights.argmax(-1)])) == "Right!"


def test_any_segmentation_with_the_fewest_subwords_will_do():
    def last_begin(text, pieces):
        """As the solution, but of two equally short segmentations, it takes the one with the last begin."""
        shortest = [()]
        for end in range(1, len(text) + 1):
            begins = [begin for begin in reversed(range(end)) if text[begin:end] in pieces]
            shortest.append(min(((*shortest[begin], text[begin:end]) for begin in begins), key=len))
        return shortest[-1]

    cases = tokens_and_embeddings.fewest_pieces.cases
    assert any(list(last_begin(*case)) != solution for case, solution in cases)
    assert exercises.check_fewest(last_begin) == "Right!"


def test_predictions_from_one_call_differ_from_one_by_one():
    def from_the_end(model, tokenizer, text):
        while "<mask>" in text:
            before, after = text.rsplit("<mask>", 1)
            text = before + start_here.fill_mask(model, tokenizer, text)[-1][0].text + after
        return text

    assert exercises.check_complete(from_the_end).startswith("Not quite. ")


def test_a_misconception_is_recognised_though_the_code_stops_on_a_later_case():
    def only_the_first(model, tokenizer, text):  # fill_mask stops where there is no mask
        return text.replace("<mask>", start_here.fill_mask(model, tokenizer, text)[0][0].text, 1)

    message = "Not quite. Only the first <mask> is filled: there may be several."
    assert exercises.check_complete(only_the_first) == message


@pytest.mark.parametrize(
    ("check", "mine", "message"),
    [
        (
            "collectives",
            lambda splits: splits.clear() or 7,
            "Not quite. With splits = ['columns', 'columns']: different: 7 where 2 should be.",
        ),
        (
            "choice",
            lambda ids, encode, score: score(encode(ids.flatten(0, 1))).view(-1, 4),
            "Your code stops with RuntimeError: shape",
        ),
        ("choice", lambda ids, encode, score: score(encode(ids)), "Your code stops with ValueError: encode takes n t"),
        ("distances", lambda tokens: tokens + 5, "Not quite. With tokens = 1: different: 6 where 1 should be."),
        ("entropy", lambda weights: y, "Your code stops with NameError: name 'y' is not defined."),  # noqa: F821
    ],
)
def test_the_message_names_the_case_or_the_error(check, mine, message):
    assert getattr(exercises, f"check_{check}")(mine).lower().startswith(message.lower())


@pytest.mark.parametrize("kind", [tuple, list, iter, torch.stack, lambda parts: torch.stack(parts).numpy()])
def test_split_qkv_may_return_whatever_has_three_parts(kind):
    assert exercises.check_split_qkv(lambda matrix: kind(matrix.chunk(3))) == "Right!"
    assert exercises.check_split_qkv(lambda matrix: kind(matrix.chunk(3)[::-1])) == (
        "Not quite. The order is query, key, value."
    )
    assert exercises.check_split_qkv(lambda matrix: matrix).startswith("Not quite. Its length is 9")


def quantize(x, low=0.0, dtype=torch.float32):
    """int8 with the smallest scale and the dtype to compute in."""
    scale = (x.float().abs().amax(-1) / 127).clamp_min(low)
    integers = x.to(dtype) / scale.to(dtype).clamp_min(1e-30)[:, None]
    return integers.round().clamp(-127, 127).to(torch.int8), scale


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "Right!"),
        ({"low": 1e-20}, "Right!"),
        ({"low": 1e-5}, "Not quite. A row of small numbers, such as 1e-7, has a small scale"),
    ],
)
def test_quantize_of_small_rows(settings, message):
    assert exercises.check_int8(lambda x: quantize(x, **settings)).startswith(message)


def test_quantize_in_the_dtype_of_x_is_inexact():
    message = f"Not quite. {exercises.precision_and_size.INEXACT}"
    assert exercises.check_int8(lambda x: quantize(x, dtype=x.dtype)) == message

    def small_scales_are_raised_for_the_division_only(x):
        scale = x.float().abs().amax(-1) / 127
        return (x.float() / scale.clamp_min(1e-5)[:, None]).round().to(torch.int8), scale

    assert "such as 1e-7" in exercises.check_int8(small_scales_are_raised_for_the_division_only)


def test_nan_must_not_become_an_int8():
    def without_zeros(x):
        scale = x.float().abs().amax(-1) / 127
        return (x.float() / scale[:, None]).round().to(torch.int8), scale

    def with_zeros_put_in(x):
        scale = x.float().abs().amax(-1) / 127
        return (x.float() / scale[:, None]).nan_to_num(0).round().to(torch.int8), scale

    answer = exercises.check_int8(without_zeros)  # what NaN becomes depends on the processor
    assert answer in (
        exercises.precision_and_size.FROM_NAN,
        "Not quite. A row of zeros gives 0 / 0: its integers should be 0.",
    )
    assert exercises.check_int8(with_zeros_put_in) == "Right!"


def test_counts_name_the_config():
    message = "Not quite. With config = (e = 12, f = 40, v = 99, layers = 3, positions = 20, token types = 3)"
    assert exercises.check_count(lambda config: 7).startswith(f"{message}: Different: 7 where ")
    assert exercises.check_flops(lambda config, tokens: 7).startswith(f"{message}, tokens = 1: Different: 7 where ")


@pytest.mark.parametrize("read", ["header", "matrix"])
def test_a_row_is_read_without_the_rest(read):
    solution = exercises.full_size.my_row.solution

    def read_more(path, name, row):
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if read == "matrix":
                file.read()
            else:
                file.read(length)
        return solution(path, name, row)

    message = exercises.check_row(read_more)
    assert message == ("Right!" if read == "header" else f"Not quite. {exercises.full_size.MORE_READ}")


def test_masks_of_the_attention_cases_differ_between_texts():
    for _, _, _, mask in attention.attention_cases()[1::2]:
        assert not torch.equal(mask[0, :, :2], mask[1, :, :2])


def test_disallowed_names_get_a_message():
    def by_kernel(query, key, value, attention_mask):
        low = torch.zeros(attention_mask.shape).masked_fill(~attention_mask, torch.finfo(torch.float32).min / 2)
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=low)

    assert exercises.check_attention(by_kernel) == "Right numbers. But SDPA did it: write it out."


@pytest.mark.parametrize(
    "product",
    [
        lambda a, b: b @ a,
        lambda a, b: (a.T @ b.T).T,
        lambda a, b: torch.einsum("fr,re->fe", b, a),
        lambda a, b: (b[:, :, None] * a).sum(1),
    ],
)
def test_lora_that_makes_the_product_gets_a_message(product):
    def merged(x, weight, a, b, alpha):
        return x @ (weight + alpha / len(a) * product(a, b)).T

    def separate(x, weight, a, b, alpha):
        return F.linear(x, weight) + x @ product(a, b).T * (alpha / len(a))

    assert exercises.check_lora(merged) == exercises.check_lora(separate) == exercises.heads.WITH_PRODUCT


@pytest.mark.parametrize(
    "mine",
    [
        lambda x, weight, a, b, alpha: F.linear(x, weight) + F.linear(F.linear(x, a), b) * (alpha / len(a)),
        lambda x, weight, a, b, alpha: x @ weight.mT + x @ (a.T / len(a)) @ (alpha * b.T),
        lambda x, weight, a, b, alpha: (
            torch.einsum("bte,fe->btf", x, weight) + alpha / len(a) * torch.einsum("bte,re,fr->btf", x, a, b)
        ),
        lambda x, weight, a, b, alpha: torch.stack(
            [torch.stack([weight @ v + alpha / len(a) * (b @ (a @ v)) for v in rows]) for rows in x]
        ),
    ],
)
def test_lora_without_the_product_is_right(mine):
    assert exercises.check_lora(mine) == "Right!"


def test_arguments_changed_in_place_get_a_message():
    """The function is checked on fresh arguments each time."""

    def in_place(weights):
        weights *= -weights.clamp_min(1e-30).log()
        return weights.sum(-1)

    message = "Right numbers. But `weights` was changed in place: work on a copy."
    assert exercises.check_entropy(in_place) == exercises.check_entropy(in_place) == message


def test_a_module_that_is_changed_is_not_the_next_cases_module():
    def mistaken(linear, x, rank, ranks):
        linear.weight.data, linear.bias.data = (p.chunk(ranks)[rank] for p in (linear.weight.data, linear.bias.data))
        return linear(x)

    check, answer = exercises.check_by_columns, exercises.many_gpus.by_columns.solution
    assert check(mistaken) == "Right numbers. But `linear` was changed in place: work on a copy."
    assert check(answer) == "Right!"


def test_answers_stand_in_for_steps_of_notebook_11_that_are_not_right(capsys):
    def by_rows(linear, x_part, rank, ranks):
        return None

    mine = steps.many_gpus.by_columns
    assert exercises.many_gpus.yours_or_answers(mine, by_rows) == (mine, steps.many_gpus.by_rows)
    assert capsys.readouterr().out == "1 of 2 functions are yours: by_columns.\n"


# ---- compare


@pytest.mark.parametrize(
    ("mine", "reference", "message", "is_close"),
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
        (1.0, 1.00002, "Different: 1 where 1.00002 should be.", False),
        (1e6, 1e6 + 20, "Different: 1e+06 where 1.00002e+06 should be.", False),
        (0.1 + 0.2, 0.3, "Close: at most 5.6e-17 apart.", True),
        ("a", "b", "It is 'a', and should be 'b'.", False),
        (None, torch.ones(2), "It is a NoneType, and should be of shape (2,).", False),
        ([torch.ones(2)], [torch.ones(2), torch.ones(2)], "Its length is 1, and should be 2.", False),
        (
            (torch.ones(2), torch.zeros(2)),
            (torch.ones(2), torch.ones(2)),
            "Entry 1: different in 2 of 2 numbers, most at [0]: 0 where 1 should be.",
            False,
        ),
    ],
)
def test_compare(mine, reference, message, is_close):
    comparison = compare(mine, reference)
    assert comparison.is_close == is_close
    assert comparison.message == repr(comparison) == str(comparison) == message


# ---- guess


def test_guess():
    assert guess("How many?").against(10) == "No guess was made; it is 10."
    assert guess("How many?", 10).against(10) == "You said 10; it is 10. Right!"
    assert guess("How many?", 9.5).against(10).endswith("Right!")
    assert guess("How many?", 3).against(10) == "You said 3; it is 10. What did you not think of?"
    assert guess("Which?", "rows").against("columns").startswith("You said rows; it is columns.")
    assert guess("Which?", "Rows ").against("rows").endswith("Right!")
    assert guess("Which?", [1, 2]).against([1, 3]).endswith("think of?")
    assert guess("How many?", 1.0).against(float("inf")).endswith("think of?")
    assert repr(guess("How many?")) == "How many? Put your guess in place of None."


def test_guess_is_marked_in_a_figure():
    axis = Figure().subplots()
    guess("How many?").mark(axis.axvline)
    guess("Which?", "rows").mark(axis.axvline)
    assert not axis.lines, "no number, no mark"
    guess("How many?", 15).mark(axis.axvline)
    guess("How much?", 0.5).mark(axis.axhline)
    assert [line.get_label() for line in axis.lines] == ["your guess: 15", "your guess: 0.5"]
    assert list(axis.lines[0].get_xdata()) == [15, 15]
    assert list(axis.lines[1].get_ydata()) == [0.5, 0.5]
