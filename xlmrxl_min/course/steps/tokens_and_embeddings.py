"""The steps of notebooks/01_tokens_and_embeddings.ipynb."""

from functools import cache
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from ...tokenizer import XLMRobertaTokenizer
from ..checks import exercise
from . import solution

SIZES = {
    "vocab_size": 11, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20,
    "max_position_embeddings": 9, "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 0.1,
}  # fmt: skip
ABSOLUTE, RELATIVE_KEY, RELATIVE_KEY_QUERY = (
    SimpleNamespace(**SIZES, position_embedding_type=kind)
    for kind in ("absolute", "relative_key", "relative_key_query")
)
IDS = torch.tensor([[0, 5, 9, 5, 2], [0, 7, 2, 1, 1]])  # the second text is padded


@cache
def load_sp(name):
    return XLMRobertaTokenizer.from_pretrained(name).sp_model


def token_cases():
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    processors = [load_sp(name) for name in ("xlm-roberta-xl", "tiny")]
    return [
        (token, sp) for sp in processors for token in [sp.id_to_piece(3), sp.id_to_piece(99), "not a subword", *special]
    ]


token_id = exercise(token_cases, hint="Three cases: a special token, an unknown subword, any other subword.")(
    solution.token_id
)


def token_id_with(offset=1, unknown=3, mask=lambda sp: len(sp) + 1, has_special=True):
    """token_id with a mistake."""

    def mistaken(token, sp):
        special = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": mask(sp)} if has_special else {}
        number = sp.piece_to_id(token)
        return special.get(token, number + offset if number else unknown)

    return mistaken


token_id.misconceptions = {
    "A subword's id is its id in sp plus one: fairseq has four special tokens in front, SentencePiece three.": (
        token_id_with(offset=0)
    ),
    "sp gives 0 for a subword that it does not know, and 0 + 1 is <pad>: <unk> has the id 3.": token_id_with(unknown=1),
    "A subword that sp does not know has the id 3, <unk>: 0 is <s>.": token_id_with(unknown=0),
    "Special tokens have ids of their own, whatever sp says.": token_id_with(has_special=False),
    "<mask> comes after the last subword, and vocabularies differ in size: its id is not always 250001.": (
        token_id_with(mask=lambda sp: 250_001)
    ),
    "<mask> comes after the last subword: its id is len(sp) + 1, as all ids are one higher than in sp.": (
        token_id_with(mask=len)
    ),
}


encode = exercise(
    lambda: [
        (text, load_sp("tiny"))
        for text in ("All human beings are born free.", "Alle <mask> sind <mask>, und gleich", "<mask>", "")
    ],
    hint="Split the text at `<mask>`, segment the other parts with `sp.encode_as_pieces`, and look up each token's id.",
)(solution.encode)


def ids_of(tokens, sp):
    return [solution.token_id(token, sp) for token in tokens]


def encode_first_mask_only(text, sp):
    before, mask, after = text.partition("<mask>")
    pieces = [sp.encode_as_pieces(part) for part in (before, after)]
    return ids_of(["<s>", *pieces[0], *([mask] if mask else []), *pieces[1], "</s>"], sp)


encode.misconceptions = {
    "<s> and </s> are missing.": lambda text, sp: solution.encode(text, sp)[1:-1],
    "<s> at the beginning is missing.": lambda text, sp: solution.encode(text, sp)[1:],
    "</s> at the end is missing.": lambda text, sp: solution.encode(text, sp)[:-1],
    "<mask> has been segmented into subwords: split the text at <mask> first.": (
        lambda text, sp: ids_of(["<s>", *sp.encode_as_pieces(text), "</s>"], sp)
    ),
    "Only the first <mask> has become the mask token: there may be several.": encode_first_mask_only,
    "These are SentencePiece's own ids: look up each token with token_id.": (lambda text, sp: [0, *sp.encode(text), 2]),
    "The text is split at spaces: sp.encode_as_pieces segments it into subwords.": (
        lambda text, sp: ids_of(["<s>", *text.split(), "</s>"], sp)
    ),
    "These are tokens: return their ids.": lambda text, sp: ["<s>", *sp.encode_as_pieces(text), "</s>"],
}


def grade_rows(result, case):
    rows, expected = case[0], solution.pad_rows(case[0])
    if not isinstance(result, Tensor):
        return "Return a tensor: torch.tensor makes one of lists of equal length."
    longest = max(map(len, rows))
    if result.shape != expected.shape:
        if result.dim() == 2 and result.shape[1] < longest:
            return "Tokens are lost: every row becomes as long as the longest."
        if result.dim() == 2 and result.shape[1] > longest:
            return "The rows are too long: one row, the longest, needs no padding."
        return f"It has the shape {tuple(result.shape)}: it should be {tuple(expected.shape)}, b t."
    if torch.equal(result, expected):
        return ""
    if torch.equal(result.sort(-1).values, expected.sort(-1).values):
        return "The padding is not at the end: XLM-R pads on the right."
    if torch.equal(result[expected != 1], expected[expected != 1]):
        return f"Padding has the id 1, not {int(result[expected == 1][0])}."
    return "The ids of the rows have changed."


pad_rows = exercise(
    lambda: [([[0, 5, 2], [0, 5, 6, 7, 2], [0, 2]],)], grade=grade_rows, hint="A row lacks `longest - len(row)` ids."
)(solution.pad_rows)


def pad_with(length=lambda rows: max(map(len, rows)), pad=1, is_left=False):
    """pad_rows with a mistake."""

    def mistaken(rows):
        padding = [[pad] * (length(rows) - len(row)) for row in rows]
        pairs = zip(rows, padding, strict=True)
        return torch.tensor([(more + row if is_left else row + more)[: length(rows)] for row, more in pairs])

    return mistaken


pad_rows.misconceptions = {
    "Padding has the id 1, not 0.": pad_with(pad=0),
    "The padding is not at the end: XLM-R pads on the right.": pad_with(is_left=True),
    "Tokens are lost: every row becomes as long as the longest.": pad_with(length=lambda rows: min(map(len, rows))),
    "The rows are too long: one row, the longest, needs no padding.": pad_with(length=lambda rows: 512),
    "Return a tensor: torch.tensor makes one of lists of equal length.": lambda rows: pad_with()(rows).tolist(),
}


make_position_ids = exercise(
    lambda: [(torch.tensor([[0, 5, 6, 7, 2], [0, 8, 2, 1, 1], [1, 1, 0, 9, 2]]),), (torch.tensor([[0, 5, 2]]),)],
    hint="Count the tokens from the left with `cumsum(-1)`, without the padding.",
)(solution.make_position_ids)


def count_all(ids, first=2):
    return torch.arange(first, first + ids.shape[1]).expand_as(ids)


make_position_ids.misconceptions = {
    "The first token has position 2: 1 is the position of padding.": (
        lambda ids: (solution.make_position_ids(ids) - 1).where(ids != 1, 1)
    ),
    "All positions are one too low: padding has 1, and the first token 2.": (
        lambda ids: solution.make_position_ids(ids) - 1
    ),
    "Positions count from 2, not from 0.": lambda ids: count_all(ids, 0),
    "Padding does not count: its position is 1.": count_all,
    "The position of padding is 1, not 0.": lambda ids: solution.make_position_ids(ids) * (ids != 1),
    "Padding in front does not count either: the first token has position 2 in every row.": (
        lambda ids: count_all(ids).where(ids != 1, 1)
    ),
    "Each text counts for itself, along the last axis: cumsum(-1).": (
        lambda ids: (ids != 1).cumsum(0) * (ids != 1) + 1
    ),
}


embeddings = exercise(
    lambda: [(ABSOLUTE, IDS), (RELATIVE_KEY, IDS)], hint="Look up three vectors for each token, and add them."
)(solution.Embeddings)


def embeddings_with(forward):
    """Embeddings with a mistake. forward: the module, ids -> b t e."""
    return type("Mistaken", (solution.Embeddings,), {"forward": forward})


def position_vectors(module, ids):
    return module.position(solution.make_position_ids(ids)) if module.is_absolute else 0


def three(module, ids):
    return module.word(ids), module.token_type.weight[0], position_vectors(module, ids)


embeddings.misconceptions = {
    "The token type is missing: all tokens have type 0, and its vector is added, too.": embeddings_with(
        lambda self, ids: self.word(ids) + position_vectors(self, ids)
    ),
    "The positions are missing.": embeddings_with(lambda self, ids: self.word(ids) + self.token_type.weight[0]),
    "Position vectors are added only if position_embedding_type is absolute: relative ones belong to attention.": (
        embeddings_with(
            lambda self, ids: (
                self.word(ids) + self.token_type.weight[0] + self.position(solution.make_position_ids(ids))
            )
        )
    ),
    "The positions are not those of make_position_ids: they count from 2, without the padding.": embeddings_with(
        lambda self, ids: (
            self.word(ids)
            + self.token_type.weight[0]
            + (self.position.weight[: ids.shape[1]] if self.is_absolute else 0)
        )
    ),
    "XLM-R does not multiply the word vectors by √e: add them as they are.": embeddings_with(
        lambda self, ids: sum(three(self, ids)) + (12**0.5 - 1) * self.word(ids)
    ),
    "The three vectors are added, not averaged.": embeddings_with(lambda self, ids: sum(three(self, ids)) / 3),
    "There is no LayerNorm after XLM-R XL's embeddings: return the sum itself.": embeddings_with(
        lambda self, ids: nn.functional.layer_norm(sum(three(self, ids)), (12,))
    ),
}
