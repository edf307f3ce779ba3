"""Checks every einops pattern in Python source: the glossary's letters only, heads split by width, no axis lost."""

import ast
import re

AXES = set("btqkrhdefvcl")
OPERATIONS = {"rearrange", "reduce", "repeat", "einsum", "pack", "unpack"}


def faults(source: str, name: str = "<string>") -> list[str]:
    """One line per fault. A split must name d, never h, so that it stays right when heads are pruned or sharded."""
    found = []
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        operation = getattr(call.func, "id", getattr(call.func, "attr", ""))
        strings = [arg for arg in call.args if isinstance(arg, (ast.Constant, ast.IfExp))]
        for arg in strings if operation in OPERATIONS else []:
            for constant in ast.walk(arg):
                if isinstance(constant, ast.Constant) and isinstance(constant.value, str) and "->" in constant.value:
                    where = f"{name}:{constant.lineno}: {constant.value!r}"
                    sizes = {keyword.arg for keyword in call.keywords}
                    found += [f"{where} {fault}" for fault in pattern_faults(constant.value, operation, sizes)]
    return found


def pattern_faults(pattern: str, operation: str, sizes: set[str]) -> list[str]:
    left, right = pattern.split("->")
    letters = re.findall(r"[A-Za-z_]\w*", pattern)
    found = [f"names {letter}, which is not in the glossary" for letter in letters if letter not in AXES]
    if "h" in sizes:
        found.append("gives h: give d instead")
    if operation == "einsum":  # an axis that only one operand has and the result lacks is summed away unseen
        operands = [set(re.findall(r"\w+", operand)) for operand in left.split(",")]
        kept = set(re.findall(r"\w+", right))
        for axis in set.union(*operands) - kept:
            if sum(axis in operand for operand in operands) == 1:
                found.append(f"sums {axis} away from one operand alone")
    return found
