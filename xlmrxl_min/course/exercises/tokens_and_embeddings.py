"""The exercises of notebooks/01_tokens_and_embeddings.ipynb."""

import math
from functools import cache

from ...tokenizer import XLMRobertaTokenizer
from ..checks import exercise


@cache
def load_tokenizer(name):
    return XLMRobertaTokenizer.from_pretrained(name)


def ids_cases():
    tokens = ["▁free", "ᐃᓄ", "<s>", "<pad>", "</s>", "<unk>", "<mask>"]  # the second is in no vocabulary of ours
    return [(tokens, load_tokenizer(name).sp_model) for name in ("xlm-roberta-xl", "tiny-udhr")]


@exercise(ids_cases, hint="Three cases: a special token, an unknown piece, any other piece.")
def to_ids(tokens, sp):
    special = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": len(sp) + 1}
    ids = []
    for token in tokens:
        number = sp.piece_to_id(token)
        ids.append(special[token] if token in special else number + 1 if number else 3)
    return ids


def ids_with(offset=1, unknown=3, mask=lambda sp: len(sp) + 1, has_special=True):
    """to_ids with a mistake."""

    def mistaken(tokens, sp):
        special = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": mask(sp)} if has_special else {}
        numbers = {token: sp.piece_to_id(token) for token in tokens}
        return [special.get(token, number + offset if number else unknown) for token, number in numbers.items()]

    return mistaken


to_ids.misconceptions = {
    "A piece's id is its number in sp, plus one.": ids_with(offset=0),
    "What sp does not know is 0 there and 3 here; 0 + 1 is padding.": ids_with(unknown=1),
    "What sp does not know has the id 3, not 0: that is <s>.": ids_with(unknown=0),
    "Special tokens have ids of their own, whatever sp says.": ids_with(has_special=False),
    "<mask> comes after the last piece, wherever that is: not always 250001.": ids_with(mask=lambda sp: 250_001),
    "<mask> comes after the last piece: len(sp) + 1, as pieces are shifted by one.": ids_with(mask=len),
}
check_ids = to_ids.check


def fewest_cases():
    sp = load_tokenizer("xlm-roberta-xl").sp_model
    vocabulary = frozenset(sp.id_to_piece(i) for i in range(3, len(sp)))
    small = [frozenset([*"abcdef", *longer]) for longer in (("ab", "abc", "cdef"), ("abcd", "def", "ef"))]
    words = ("▁desempleo", "▁untranslatable")
    return [*((word, vocabulary) for word in words), *(("abcdef", pieces) for pieces in small)]


def greedy(text, pieces):
    """From left to right, always the longest piece that fits."""
    cut = []
    while text:
        cut.append(max((text[:end] for end in range(1, len(text) + 1) if text[:end] in pieces), key=len))
        text = text[len(cut[-1]) :]
    return cut


def greedy_backwards(text, pieces):
    return [piece[::-1] for piece in greedy(text[::-1], {piece[::-1] for piece in pieces})][::-1]


def most_probable(text, pieces):
    return load_tokenizer("xlm-roberta-xl").tokenize(text.replace("▁", " "))


def grade_fewest(result, case):
    (text, pieces), fewest = case[:2], fewest_pieces.solution(*case[:2])
    if type(result) is int:
        return "Return the pieces themselves, not how many they are."
    if not isinstance(result, (list, tuple)):
        raise TypeError("not a list of pieces")
    result = list(result)
    if "".join(result) != text:
        if "".join(result[::-1]) == text:
            return "The pieces are in reverse order: the last one is found first."
        return "Joined in their order, these pieces are not the text."
    if not pieces.issuperset(result):
        return "Not all of these are in `pieces`."
    if len(result) <= len(fewest):
        return ""
    if len(result) == len(text):
        return "These are the most pieces, not the fewest."
    if result == most_probable(text, pieces):
        return "This is the most probable cut: let every piece cost the same."
    if result in (greedy(text, pieces), greedy_backwards(text, pieces)):
        return "The longest piece at every step is not the best in the end."
    return f"{text!r} can be cut into {len(fewest)} pieces, and yours are {len(result)}."


@exercise(fewest_cases, grade=grade_fewest)
def fewest_pieces(text, pieces):
    longest = max(map(len, pieces))
    best, last = [0] + [math.inf] * len(text), [0] * (len(text) + 1)
    for end in range(1, len(text) + 1):
        for begin in range(max(0, end - longest), end):
            if text[begin:end] in pieces and best[begin] + 1 < best[end]:
                best[end], last[end] = best[begin] + 1, begin
    cut, end = [], len(text)
    while end:
        cut, end = [text[last[end] : end], *cut], last[end]
    return cut


fewest_pieces.misconceptions = {
    "These are the most pieces, not the fewest.": lambda text, pieces: list(text),
    "This is the most probable cut: let every piece cost the same.": most_probable,
    "The longest piece at every step is not the best in the end.": greedy,
    "The pieces are in reverse order: the last one is found first.": (
        lambda text, pieces: fewest_pieces.solution(text, pieces)[::-1]
    ),
    "Joined in their order, these pieces are not the text.": (
        lambda text, pieces: fewest_pieces.solution(text, pieces)[1:]
    ),
    "Not all of these are in `pieces`.": lambda text, pieces: [text],
    "Return the pieces themselves, not how many they are.": (
        lambda text, pieces: len(fewest_pieces.solution(text, pieces))
    ),
}
check_fewest = fewest_pieces.check
