"""The exercises of notebooks/10_full_size.ipynb."""

import json
import struct
import tempfile
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load, save_file

from ..checks import compare, exercise, randn
from ..steps.full_size import python_memory
from ..steps.solution import read_header


@cache
def temporary_folder() -> tempfile.TemporaryDirectory:
    """A folder that is deleted when Python ends."""
    return tempfile.TemporaryDirectory()


def row_cases():
    path = Path(temporary_folder().name, "exercise.safetensors")
    save_file({"a": torch.ones(3, 2).bfloat16(), "b": torch.arange(56.0).view(8, 7).bfloat16()}, path)
    return [(path, "b", 3), (path, "a", 2), (path, "b", 0)]


MORE_READ = (
    "The numbers are right, but more than the row was read: `seek` its first byte, `read` its bytes and no more."
)


def reads_more(mine):
    """The last test of my_row, on a matrix of 8 MB."""
    path = Path(temporary_folder().name, "large.safetensors")
    save_file({"a": torch.zeros(4096, 1024).bfloat16()}, path)
    return f"Not quite. {MORE_READ}" if python_memory(mine, path, "a", 4000) > 1e6 else ""


@exercise(
    row_cases, hint="A bfloat16 number has two bytes, and the result is a tensor of torch.bfloat16.", last=reads_more
)
def my_row(path, name, row):
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        entry = json.loads(file.read(length))[name]
        width = 2 * entry["shape"][1]  # in bytes
        file.seek(8 + length + entry["data_offsets"][0] + row * width)
        return torch.frombuffer(bytearray(file.read(width)), dtype=torch.bfloat16)


def row_with(offset=lambda start, begin, row, width: start + begin + row * 2 * width, dtype=torch.bfloat16):
    """my_row with a mistake. offset: start, begin, row, width -> the byte to begin at."""

    def mistaken(path, name, row):
        header, start = read_header(path)
        begin, width = header[name]["data_offsets"][0], header[name]["shape"][1]
        with open(path, "rb") as file:
            file.seek(offset(start, begin, row, width))
            return torch.frombuffer(bytearray(file.read(2 * width)), dtype=dtype)

    return mistaken


my_row.misconceptions = {
    "Offsets count from the end of the header, not from the beginning of the file.": (
        row_with(lambda start, begin, row, width: begin + row * 2 * width)
    ),
    "The header's own eight bytes of length come before it.": (
        row_with(lambda start, begin, row, width: start - 8 + begin + row * 2 * width)
    ),
    "A matrix begins where its data_offsets say, not where all data do.": (
        row_with(lambda start, begin, row, width: start + row * 2 * width)
    ),
    "A number has two bytes: a row is twice as long.": (
        row_with(lambda start, begin, row, width: start + begin + row * width)
    ),
    "That is the first row, whatever is asked for.": row_with(lambda start, begin, row, width: start + begin),
    "These two bytes are bfloat16's, not float16's.": row_with(dtype=torch.float16),
    MORE_READ: lambda path, name, row: load(path.read_bytes())[name][row],
}
check_row = my_row.check


def grade_thirds(result, case):
    """Three parts, in whatever can be unpacked. Says also which misconception it is."""
    [matrix], parts = case[:1], result if isinstance(result, str) else tuple(result)
    comparison = compare(parts, matrix.chunk(3))
    found = [message for message, wrong in split_qkv.misconceptions.items() if compare(parts, wrong(matrix)).is_close]
    return "" if comparison.is_close else [*found, f"{comparison} {split_qkv.hint}"][0]


@exercise(
    lambda: [(torch.arange(54.0).view(9, 6),), (randn(12, 4),)], hint="Three parts of its rows.", grade=grade_thirds
)
def split_qkv(in_proj_weight):
    return in_proj_weight.chunk(3)


split_qkv.misconceptions = {
    "These are every third row: query's rows come first, all of them.": lambda w: tuple(w[i::3] for i in range(3)),
    "Split the rows, not the columns.": lambda w: w.chunk(3, dim=1),
    "The order is query, key, value.": lambda w: w.chunk(3)[::-1],
    "Key comes before value.": lambda w: tuple(w.chunk(3)[i] for i in (0, 2, 1)),
    "The three are transposed: rows stay rows.": lambda w: tuple(part.T for part in w.chunk(3)),
}
check_split_qkv = split_qkv.check
