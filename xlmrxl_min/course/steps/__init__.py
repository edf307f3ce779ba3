"""The learner builds the model: each checked step of notebooks 01 to 06, 08 and 10 adds a part to `my_model.py`.

A step is a cell of the notebook. It is checked, and if it is right, it replaces its part of the file:

    %load_ext xlmrxl_min.course.steps

    %%my_model
    def make_position_ids(ids):
        …

`solution.py` is the model answer, to be read from top to bottom; the other files hold what the steps of a notebook are
tried on, a hint and the usual misconceptions. No step needs an earlier one: the answer stands in for missing parts.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

from ..checks import Exercise
from . import (
    attention,
    decoder,
    full_size,
    masked_language_model,
    positions,
    solution,
    the_block,
    tokens_and_embeddings,
)

FILE = "my_model.py"
NOTEBOOKS = (tokens_and_embeddings, attention, positions, the_block, masked_language_model, decoder, full_size)
STEPS = {  # in the order of the file
    step.solution.__name__: step for part in NOTEBOOKS for step in vars(part).values() if isinstance(step, Exercise)
}


def find_definitions(text: str) -> dict[str, tuple[int, int]]:
    """The functions and classes of Python source: where the lines of each begin and end, decorators included."""
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            first = min(line.lineno for line in (node, *node.decorator_list))
            found[node.name] = (first - 1, node.end_lineno or first)
    return found


def cut(text: str, name: str) -> str:
    start, end = find_definitions(text)[name]
    return "\n".join(text.splitlines()[start:end])


ANSWER = inspect.getsource(solution)
ANSWERS = {name: cut(ANSWER, name) for name in STEPS}
NEW_FILE = '"""My masked language model, from a text to logits, built in the notebooks."""' + (
    ANSWER[ANSWER.index("\n\nimport ") : ANSWER.index("\n\n\ndef ")] + "\n"
)


def insert(text: str, name: str, source: str) -> str:
    """The text of a file with a part replaced, or else inserted before the first of the parts that follow it."""
    found, lines, order = find_definitions(text), text.splitlines(), [*STEPS]
    later = [found[step][0] for step in order[order.index(name) + 1 :] if step in found]
    if name in found:
        start, end = found[name]
        lines[start:end] = source.splitlines()
    elif later:
        lines[min(later) : min(later)] = [*source.splitlines(), "", ""]
    else:
        lines += ["", "", *source.splitlines()]
    return "\n".join(lines) + "\n"


def missing(text: str) -> list[str]:
    found = find_definitions(text)
    return [name for name in STEPS if name not in found]


def run(text: str) -> ModuleType:
    """The module that a file's text makes; the model answer stands in for the parts that it lacks."""
    for name in missing(text):
        text = insert(text, name, ANSWERS[name])
    module = ModuleType(Path(FILE).stem)
    exec(compile(text, FILE, "exec"), module.__dict__)
    return module


def read() -> str:
    """The learner's file, or the beginning of a new one. Raises SyntaxError if it is no longer Python."""
    text = Path(FILE).read_text(encoding="utf-8") if Path(FILE).exists() else NEW_FILE
    compile(text, FILE, "exec")
    return text


def add(cell: str) -> str:
    """Check the one step that a cell defines, and write it into my_model.py if it is right; return what to print.

    The cell's other lines are run, to try the code, and not kept. Raises what they raise, and SyntaxError for the file.
    """
    try:
        names = [name for name in find_definitions(cell) if name in STEPS]
    except SyntaxError as error:
        return f"Line {error.lineno} of the code is not Python: {error.msg}."
    if len(names) != 1:
        return f"Define one step in a cell; here are {', '.join(names) or 'none'}. The steps: {', '.join(STEPS)}."
    [name] = names
    text = insert(read(), name, cut(cell, name))
    module = run(text)
    exec(compile(cell, f"<{name}>", "exec"), dict(vars(module)))
    message = STEPS[name].check(getattr(module, name))
    if "NameError" in message:
        return f"{message} Only `{name}` itself is kept: what it needs, imports too, belongs inside it."
    if message != "Right!":
        return message
    Path(FILE).write_text(text, encoding="utf-8")
    return f"Right! `{name}` is in {FILE} now, which has {len(STEPS) - len(missing(text))} of {len(STEPS)} parts."


def my_model() -> ModuleType:
    """The learner's model, of the file in this folder; prints for which parts the model answer stands in."""
    text = read()
    others = missing(text)
    stand_in = f"the model answer stands in for {', '.join(others)}" if others else "nothing is missing"
    print(f"{len(STEPS) - len(others)} of {len(STEPS)} parts are yours; {stand_in}.")
    return run(text)


def stub(name: str) -> str:
    """What the learner begins with: the answer, with a placeholder instead of the code."""
    lines, [node] = ANSWERS[name].splitlines(), ast.parse(ANSWERS[name]).body
    functions = [part for part in getattr(node, "body", []) if isinstance(part, ast.FunctionDef)]
    for function in reversed(functions if isinstance(node, ast.ClassDef) else [node]):
        first: Any = function.body[0]  # type: ignore[attr-defined]
        is_kept = isinstance(first, ast.Expr)  # a docstring, or super().__init__()
        result = "" if function.name == "__init__" else "return None  "  # type: ignore[attr-defined]
        start = first.end_lineno if is_kept else first.lineno - 1
        lines[start : function.end_lineno] = [" " * first.col_offset + f"{result}# your code here"]
    return "\n".join(lines)


def load_ipython_extension(shell: Any) -> None:
    """Called by %load_ext: makes %%my_model known."""
    shell.register_magic_function(lambda line, cell: print(add(cell)), "cell", "my_model")
