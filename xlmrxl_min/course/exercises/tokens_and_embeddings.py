"""The exercises of notebooks/01_tokens_and_embeddings.ipynb."""

import math
from functools import cache

from ...tokenizer import XLMRobertaTokenizer
from ..checks import exercise


@cache
def load_tokenizer(name):
    return XLMRobertaTokenizer.from_pretrained(name)


def fewest_cases():
    sp = load_tokenizer("xlm-roberta-xl").sp_model
    vocabulary = frozenset(sp.id_to_piece(i) for i in range(3, len(sp)))
    small = [frozenset([*"abcdef", *longer]) for longer in (("ab", "abc", "cdef"), ("abcd", "def", "ef"))]
    words = ("▁desempleo", "▁untranslatable")
    return [*((word, vocabulary) for word in words), *(("abcdef", pieces) for pieces in small)]


def greedy(text, pieces):
    """From left to right, always the longest subword that fits."""
    subwords = []
    while text:
        subwords.append(max((text[:end] for end in range(1, len(text) + 1) if text[:end] in pieces), key=len))
        text = text[len(subwords[-1]) :]
    return subwords


def greedy_backwards(text, pieces):
    return [piece[::-1] for piece in greedy(text[::-1], {piece[::-1] for piece in pieces})][::-1]


def most_probable(text, pieces):
    return load_tokenizer("xlm-roberta-xl").tokenize(text.replace("▁", " "))


def grade_fewest(result, case):
    (text, pieces), fewest = case[:2], fewest_pieces.solution(*case[:2])
    if type(result) is int:
        return "Return the subwords themselves, not their number."
    if not isinstance(result, (list, tuple)):
        raise TypeError("not a list of subwords")
    result = list(result)
    if "".join(result) != text:
        if "".join(result[::-1]) == text:
            return "The subwords are in reverse order: the last one is found first."
        return "Joined in their order, these subwords are not the text."
    if not pieces.issuperset(result):
        return "Not all of these are in `pieces`."
    if len(result) <= len(fewest):
        return ""
    if len(result) == len(text):
        return "These are the most subwords, not the fewest."
    if result == most_probable(text, pieces):
        return "This is the most probable segmentation: let every subword cost the same."
    if result in (greedy(text, pieces), greedy_backwards(text, pieces)):
        return "The longest subword at every step is not the best in the end."
    return f"{text!r} can be segmented into {len(fewest)} subwords, and yours are {len(result)}."


@exercise(fewest_cases, grade=grade_fewest)
def fewest_pieces(text, pieces):
    longest = max(map(len, pieces))
    best, last = [0] + [math.inf] * len(text), [0] * (len(text) + 1)
    for end in range(1, len(text) + 1):
        for begin in range(max(0, end - longest), end):
            if text[begin:end] in pieces and best[begin] + 1 < best[end]:
                best[end], last[end] = best[begin] + 1, begin
    subwords, end = [], len(text)
    while end:
        subwords, end = [text[last[end] : end], *subwords], last[end]
    return subwords


fewest_pieces.misconceptions = {
    "These are the most subwords, not the fewest.": lambda text, pieces: list(text),
    "This is the most probable segmentation: let every subword cost the same.": most_probable,
    "The longest subword at every step is not the best in the end.": greedy,
    "The subwords are in reverse order: the last one is found first.": (
        lambda text, pieces: fewest_pieces.solution(text, pieces)[::-1]
    ),
    "Joined in their order, these subwords are not the text.": (
        lambda text, pieces: fewest_pieces.solution(text, pieces)[1:]
    ),
    "Not all of these are in `pieces`.": lambda text, pieces: [text],
    "Return the subwords themselves, not their number.": (
        lambda text, pieces: len(fewest_pieces.solution(text, pieces))
    ),
}
check_fewest = fewest_pieces.check
