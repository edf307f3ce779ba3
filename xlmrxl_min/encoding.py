"""Tokens -> what a model takes: templates, truncation, padding, tensors; and which word each token belongs to.

Names and meanings are those of transformers' tokenizers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any, ClassVar, NamedTuple

import numpy
import torch

from .inputs import as_samples, as_sequence, check_integer, check_option, check_type, is_single_text

TRUNCATIONS = (None, False, True, "longest_first", "only_first", "only_second", "do_not_truncate")
PADDINGS = (False, True, "longest", "max_length", "do_not_pad")
SIDES = ("right", "left")


class Token(NamedTuple):
    id: int
    start: int = 0  # its characters are text[start:end]; special tokens that were added have none
    end: int = 0
    word: int | None = None  # the number of its word in the text
    text: str = ""  # normalized, with ▁ for a space; that of `<unk>` is what is unknown
    sequence: int | None = 0  # 1 in the second text of a pair, None for padding and special tokens that were added
    mask: int = 1  # 0 for padding


@dataclass
class Row:
    """What is known of each token, `t`, of one row of an encoding; padding and added special tokens are of no word."""

    items: list[Token]

    ids = property(lambda self: [token.id for token in self.items])
    tokens = property(lambda self: [token.text for token in self.items])
    offsets = property(lambda self: [token[1:3] for token in self.items])
    word_ids = property(lambda self: [token.word for token in self.items])
    sequence_ids = property(lambda self: [token.sequence for token in self.items])
    attention_mask = property(lambda self: [token.mask for token in self.items])
    special_tokens_mask = property(lambda self: [int(i is None) for i in self.sequence_ids])
    type_ids = property(lambda self: [0] * len(self.items))
    length = property(lambda self: len(self.items))

    def token(self, number: int) -> Token:
        return self.items[number] if number < len(self.items) else Token(0, sequence=None)

    def token_to_sequence(self, token: int) -> int | None:
        return self.token(token).sequence

    def token_to_word(self, token: int) -> int | None:
        return self.token(token).word

    def token_to_chars(self, token: int) -> tuple[int, int] | None:
        found = self.token(token)
        return None if found.sequence is None else found[1:3]

    def char_to_token(self, char: int, sequence_index: int = 0) -> int | None:
        spans = enumerate(zip(self.sequence_ids, self.offsets, strict=True))
        return next((i for i, (of, (start, end)) in spans if of == sequence_index and start <= char < end), None)

    def char_to_word(self, char: int, sequence_index: int = 0) -> int | None:
        token = self.char_to_token(char, sequence_index)
        return None if token is None else self.word_ids[token]

    def word_to_tokens(self, word: int, sequence_index: int = 0) -> tuple[int, int] | None:
        of_words = enumerate(zip(self.sequence_ids, self.word_ids, strict=True))
        found = [i for i, pair in of_words if pair == (sequence_index, word)]
        return (found[0], found[-1] + 1) if found else None

    def word_to_chars(self, word: int, sequence_index: int = 0) -> tuple[int, int] | None:
        span = self.word_to_tokens(word, sequence_index)
        return span and (self.offsets[span[0]][0], self.offsets[span[1] - 1][1])


FIELDS = {"input_ids": "ids", "token_type_ids": "type_ids", "offset_mapping": "offsets"}  # of Row, for what is asked


class Encoding(dict):
    """input_ids, attention_mask and what else was asked for, as keys and as attributes; use as `model(**encoding)`.

    encodings: for each row a Row, which is also `encoding[i]`; none if it was not made of texts. `tokens`, `word_ids`
    and `sequence_ids` take the number of a row; `char_to_token(row, char, sequence_index=0)` and the other methods of
    Row take it first if there are several.
    """

    def __init__(self, *args: Any, encodings: Sequence[Row] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.encodings = list(encodings)

    def __getitem__(self, key: Any) -> Any:
        return self.row(key) if isinstance(key, (int, slice)) else super().__getitem__(key)

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        if "_to_" in name and hasattr(Row, name):
            return partial(self.look_up, name)
        raise AttributeError(f"this encoding has no {name!r}: it has {', '.join(self)}.")

    @property
    def data(self) -> dict[str, Any]:
        return self

    def look_up(self, name: str, row: int, index: int | None = None, sequence_index: int | None = None) -> Any:
        row, index = (0, row) if index is None else (row, index)
        return getattr(self.row(row), name)(index, *(() if sequence_index is None else (sequence_index,)))

    def row(self, number: Any) -> Any:
        if not self.encodings:
            raise ValueError("this encoding knows no words or texts: call the tokenizer with a text for one that does.")
        return self.encodings[number]

    def tokens(self, batch_index: int = 0) -> list[str]:
        return self.row(batch_index).tokens

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """The number of each token's word, counted between spaces or in the list of words; None for special tokens."""
        return self.row(batch_index).word_ids

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """0 for each token of the text, 1 for those of text_pair, None for special tokens that were added."""
        return self.row(batch_index).sequence_ids

    def to(self, device: Any, *, non_blocking: bool = False) -> Encoding:
        """Move every tensor to `device`, in place as in Hugging Face."""
        check_type("device", device, (str, int, torch.device), "a device: ids are integers, whatever the model's dtype")
        for name, value in self.items():
            self[name] = value.to(device, non_blocking=non_blocking) if hasattr(value, "to") else value
        return self

    def convert_to_tensors(self, tensor_type: str | None) -> Encoding:
        """Turn every list into a torch tensor ("pt") or a numpy array ("np"), in place; None: into neither."""
        check_option("return_tensors", tensor_type, (None, "pt", "np"))
        for name, rows in self.items() if tensor_type else ():
            try:
                values: Any = torch.tensor(rows) if tensor_type == "pt" else numpy.array(rows)
                if tensor_type == "np" and values.dtype.kind not in "biuf":
                    raise ValueError
            except (ValueError, TypeError, RuntimeError):
                what = f"{name} has rows of different lengths, or what is no number, and a tensor is rectangular"
                raise ValueError(f"{what}: pass padding=True, or leave it out.") from None
            empty: Any = torch.zeros if tensor_type == "pt" else numpy.zeros  # of integers, as ids are
            self[name] = empty((len(rows), 0), dtype=int) if 0 in values.shape else values
        return self


class TokenizerBase(ABC):
    """The part of a tokenizer that begins where texts are tokens; as in transformers' PreTrainedTokenizerBase."""

    cls_token, sep_token, pad_token = "<s>", "</s>", "<pad>"
    cls_token_id, sep_token_id, pad_token_id, pad_token_type_id = 0, 2, 1, 0
    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask"]
    model_max_length, padding_side, truncation_side = 512, "right", "right"
    is_fast = True  # which means to transformers that offsets and words are known

    @abstractmethod
    def tokenize_with_offsets(self, text: str) -> list[Token]: ...

    def __call__(
        self, text: str | Iterable[Any], text_pair: str | Iterable[Any] | None = None, *,
        add_special_tokens: bool = True, padding: bool | str = False, truncation: bool | str | None = None,
        max_length: int | None = None, stride: int = 0, is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None, padding_side: str | None = None, truncation_side: str | None = None,
        return_tensors: str | None = None, return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None, return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False, return_offsets_mapping: bool = False, return_length: bool = False,
    ) -> Encoding:  # fmt: skip
        """Texts -> input_ids and attention_mask (1 = token, 0 = padding): lists, or `b t` by return_tensors "pt", "np".

        A list, array or generator gives a batch, and so does one of pairs (text, text_pair). is_split_into_words: each
        text is a list of words. padding: True or "longest", "max_length". truncation: True or "longest_first",
        "only_first", "only_second", to max_length (default: model_max_length), including special tokens; also where
        only max_length is given. padding_side, truncation_side: "right" or "left" (default: the attribute).
        return_overflowing_tokens: what truncation cuts off makes more rows, each of which repeats `stride` tokens of
        the one before, and overflow_to_sample_mapping, the number of each row's text. return_offsets_mapping adds
        offset_mapping: the [start, end) of each token in its own text or word, (0, 0) for added special tokens.
        ValueError for any other value of an option.
        """
        flags = (
            ("add_special_tokens", "", add_special_tokens),
            ("is_split_into_words", "", is_split_into_words),
            ("return_overflowing_tokens", "", return_overflowing_tokens),
            ("return_token_type_ids", "token_type_ids", return_token_type_ids),
            ("return_attention_mask", "attention_mask", return_attention_mask is None or return_attention_mask),
            ("return_special_tokens_mask", "special_tokens_mask", return_special_tokens_mask),
            ("return_offsets_mapping", "offset_mapping", return_offsets_mapping),
            ("return_length", "length", return_length),
        )
        for name, _, flag in flags:
            check_option(name, flag, (None, False, True))
        check_option("truncation", truncation, TRUNCATIONS)
        check_integer("stride", stride, 0)
        if stride and not return_overflowing_tokens:
            raise ValueError(f"stride={stride} is of rows that overflow: pass return_overflowing_tokens=True too.")
        side, cut_side = self.side("padding_side", padding_side), self.side("truncation_side", truncation_side)
        if truncation is None:  # a max_length alone can only mean one thing
            truncation = max_length is not None and padding is False
        limit = None
        if truncation not in (False, "do_not_truncate"):
            limit = self.model_max_length if max_length is None else max_length
            check_integer("max_length", limit)
        samples, is_single = as_samples(text, text_pair, is_split_into_words)
        roles = ((self.cls_token_id, self.cls_token), (self.sep_token_id, self.sep_token))
        special = [Token(i, text=text, sequence=None) for i, text in roles if add_special_tokens]
        rows, origins, overlap = [], [], stride if return_overflowing_tokens else None
        for number, sample in enumerate(samples):
            parts = [self.tokenize_part(part, i) for i, part in enumerate(sample)]
            cuts = truncate(parts, limit, truncation, cut_side, len(special), overlap)
            rows += [Row(fill_template(kept, *special)) for kept in cuts]
            origins += [number] * len(cuts)
        length = self.padded_length([row.length for row in rows], padding, max_length, pad_to_multiple_of, limit)
        pad = Token(self.pad_token_id, text=self.pad_token, sequence=None, mask=0)
        for row in rows if length else ():
            row.items = padded(row.items, length, pad, side)
        names = ["input_ids", *(name for _, name, flag in flags if name and flag)]
        values = {name: [getattr(row, FIELDS.get(name, name)) for row in rows] for name in names}
        if return_overflowing_tokens:
            values["overflow_to_sample_mapping"] = origins
        elif is_single and return_tensors is None:
            values = {name: column[0] for name, column in values.items()}
        return Encoding(values, encodings=rows).convert_to_tensors(return_tensors)

    encode_plus = batch_encode_plus = __call__  # their names before transformers 3

    def encode(self, text: str | list[str], text_pair: str | list[str] | None = None, **options: Any) -> list[int]:
        """Return the input_ids of one text or pair; options as in a call."""
        if not is_single_text(text) and not options.get("is_split_into_words"):
            remedy = "call the tokenizer itself for several, or pass text_pair"
            raise ValueError(f"text is of type {type(text).__name__}, but encode takes one text: {remedy}.")
        return self(text, text_pair, **options)["input_ids"]

    def encode_with_offsets(
        self, text: str | tuple[str, str], max_length: int | None = None, truncation: str = "longest_first"
    ) -> list[Token]:
        """Tokenize one text or pair, and cut it to `max_length` tokens, special tokens included (None: no limit)."""
        parts = [self.tokenize_with_offsets(part) for part in ([text] if isinstance(text, str) else text)]
        [kept] = truncate(parts, max_length, truncation, self.side("truncation_side"))
        return fill_template(kept, Token(self.cls_token_id), Token(self.sep_token_id))

    def tokenize_part(self, part: str | list[str], sequence: int) -> list[Token]:
        """Tokenize a text, or words, each by itself; sequence: 1 for the second text of a pair."""
        if not isinstance(part, str):
            words = enumerate(map(self.tokenize_with_offsets, part))
            return [token._replace(word=word, sequence=sequence) for word, tokens in words for token in tokens]
        tokens = self.tokenize_with_offsets(part)
        return [token._replace(sequence=sequence) for token in tokens] if sequence else tokens

    def pad(
        self, encoded_inputs: Any, padding: bool | str = True, max_length: int | None = None,
        pad_to_multiple_of: int | None = None, padding_side: str | None = None,
        return_attention_mask: bool | None = None, return_tensors: str | None = None,
    ) -> Encoding:  # fmt: skip
        """Pad one encoding, a batch, or a list of encodings; options as in a call.

        Tensors and arrays stay what they are. What else there is, such as labels, is not padded.
        """
        columns, kind = as_columns(encoded_inputs)
        ids, side = columns["input_ids"], self.side("padding_side", padding_side)
        is_single = ids != [] and not (isinstance(ids, list) and isinstance(ids[0], list))
        if is_single:
            columns = {name: [values] for name, values in columns.items()}
        rows = [as_sequence(row, "input_ids", "ids") for row in columns["input_ids"]]
        if not all(isinstance(i, Integral) for row in rows for i in row):
            raise ValueError("input_ids holds what is no integer: pass one list of token ids, or a list of such lists.")
        lengths = [len(row) for row in rows]
        if return_attention_mask is not False:
            columns.setdefault("attention_mask", [[1] * length for length in lengths])
        length = self.padded_length(lengths, padding, max_length, pad_to_multiple_of)
        fills: dict[str, Any] = {"attention_mask": 0, "special_tokens_mask": 1, "offset_mapping": (0, 0)}
        fills |= {"input_ids": self.pad_token_id, "token_type_ids": self.pad_token_type_id}
        for name in fills.keys() & columns.keys():
            if lengths != [len(as_sequence(row, name, "numbers")) for row in columns[name]]:
                raise ValueError(f"{name} and input_ids have different lengths: give a value for each token.")
            columns[name] = [padded(row, length, fills[name], side) for row in columns[name]]
        columns = {name: values for name, [values] in columns.items()} if is_single else columns
        return Encoding(columns).convert_to_tensors(return_tensors or kind)

    def padded_length(
        self, lengths: Iterable[int], padding: Any, max_length: Any, pad_to_multiple_of: Any, limit: int | None = None
    ) -> int:
        check_option("padding", padding, PADDINGS)
        for name, value in (("max_length", max_length), ("pad_to_multiple_of", pad_to_multiple_of)):
            if value is not None:
                check_integer(name, value)
        if padding in (False, "do_not_pad"):
            if pad_to_multiple_of is not None:
                raise ValueError(f"pad_to_multiple_of={pad_to_multiple_of} needs padding: pass padding=True too.")
            return 0
        if limit is not None and pad_to_multiple_of is not None and limit % pad_to_multiple_of:
            what = f"texts are cut to {limit} tokens, which is no multiple of pad_to_multiple_of={pad_to_multiple_of}"
            raise ValueError(f"{what}: pass another max_length.")
        length = (max_length or self.model_max_length) if padding == "max_length" else max(lengths, default=0)
        return length + -length % (pad_to_multiple_of or 1)

    def side(self, name: str, given: str | None = None) -> str:
        """The side of an option, or of the attribute of that name."""
        side = getattr(self, name) if given is None else given
        check_option(name, side, SIDES)
        return side

    # ---- ids alone

    def build_inputs_with_special_tokens(self, ids: list[int], pair: list[int] | None = None) -> list[int]:
        return fill_template([ids] if pair is None else [ids, pair], self.cls_token_id, self.sep_token_id)

    def create_token_type_ids_from_sequences(self, ids: list[int], pair: list[int] | None = None) -> list[int]:
        return [self.pad_token_type_id] * len(self.build_inputs_with_special_tokens(ids, pair))

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        return 4 if pair else 2

    max_len_single_sentence = property(lambda self: self.model_max_length - self.num_special_tokens_to_add())
    max_len_sentences_pair = property(lambda self: self.model_max_length - self.num_special_tokens_to_add(pair=True))


def fill_template(parts: Iterable[Sequence[Any]], *special: Any) -> list[Any]:
    """`<s> A </s>`, or `<s> A </s></s> B </s>`; special: `<s>` and `</s>`, or nothing for A and B alone."""
    return [x for i, part in enumerate(parts) for x in (*special[i > 0 :][:1], *part, *special[1:])]


def truncate(
    parts: list[list[Token]], max_length: int | None, truncation: bool | str, side: str, num_special: int = 2,
    overlap: int | None = None,
) -> list[list[list[Token]]]:  # fmt: skip
    """Cut a text or pair to `max_length` tokens -> the parts kept; with `overlap`, then those of each overflow.

    num_special: how many tokens each part gets around it.
    """
    lengths, which = [len(part) for part in parts], int(truncation == "only_second")
    is_one, is_pair = truncation in ("only_first", "only_second"), len(parts) > 1
    if overlap is not None and is_pair and truncation in (True, "longest_first"):
        remedy = 'pass truncation="only_first" or "only_second"'
        raise ValueError(f"return_overflowing_tokens needs to know which text of a pair is to be cut: {remedy}.")
    room = sum(lengths) if max_length is None else max_length - num_special * len(parts)
    if sum(lengths) <= room:
        return [parts]
    kept = [*lengths]
    if is_pair and not is_one:  # from the longer one, from the second if they are equally long
        kept[0] = min(lengths[0], max(room - lengths[1], room - room // 2))
        kept[1] = room - kept[0]
    elif which < len(parts):
        kept[which] -= sum(lengths) - room
    if min(kept) < 0 or which >= len(parts) or (is_one and not kept[which]):
        raise ValueError(
            f"truncation={truncation!r} cannot cut this to max_length={max_length}: allow more, or cut another text."
        )
    if overlap is None:
        return [[part[:n] if side == "right" else part[len(part) - n :] for part, n in zip(parts, kept, strict=True)]]
    if overlap >= kept[which]:
        raise ValueError(f"stride={overlap} is impossible: rows have room for {kept[which]} tokens of the text.")
    part, width = parts[which], kept[which]
    starts = range(0, lengths[which] - overlap, width - overlap)
    windows = [(start, min(start + width, len(part))) for start in starts]
    if side == "left":
        windows = [(len(part) - end, len(part) - start) for start, end in windows]
    return [[*parts[:which], part[start:end], *parts[which + 1 :]] for start, end in windows]


def padded(row: list[Any], length: int, fill: Any, side: str) -> list[Any]:
    more = [fill] * (length - len(row))
    return row + more if side == "right" else more + row


def as_columns(inputs: Any) -> tuple[dict[str, Any], str | None]:
    """Encodings as lists by name, and what they were: tensors, "pt", arrays, "np", or lists, None."""
    if not isinstance(inputs, Mapping):
        rows = as_sequence(inputs, "encoded_inputs", "encodings")
        for i, row in enumerate(rows):
            check_type(f"encoded_inputs[{i}]", row, Mapping, "an encoding, with input_ids")
            if row.keys() != rows[0].keys():
                raise ValueError(
                    f"encoded_inputs[{i}] has {[*row]}, but the first has {[*rows[0]]}: give all the same."
                )
        inputs = {name: [row[name] for row in rows] for name in (rows[0] if rows else ["input_ids"])}
    if inputs.get("input_ids") is None:
        raise ValueError(f"encoded_inputs has {[*inputs]}, but must have input_ids: pass what the tokenizer gave.")
    first = inputs["input_ids"]
    while isinstance(first, (list, tuple)) and first:
        first = first[0]
    kind = "pt" if isinstance(first, torch.Tensor) else "np" if isinstance(first, numpy.ndarray) else None
    return {name: as_lists(values) for name, values in inputs.items()}, kind


def as_lists(values: Any) -> Any:
    values = values.tolist() if hasattr(values, "tolist") else values
    is_list = isinstance(values, (list, tuple))
    return [row.tolist() if hasattr(row, "tolist") else row for row in values] if is_list else values
