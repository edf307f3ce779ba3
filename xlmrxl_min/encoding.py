"""Tokens -> what a model takes: templates, truncation, padding, tensors; and which word each token belongs to.

Names and meanings are those of transformers' tokenizers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter, itemgetter
from typing import Any, ClassVar, NamedTuple

import numpy
import torch

from .inputs import as_samples, as_sequence, check_integer, check_option, check_type

TRUNCATIONS = (None, False, True, "longest_first", "only_first", "only_second", "do_not_truncate")
PADDINGS = (False, True, "longest", "max_length", "do_not_pad")
SIDES = ("right", "left")


class Token(NamedTuple):
    id: int
    start: int = 0  # its characters are text[start:end]; special tokens that were added have none
    end: int = 0
    word: int | None = None  # the number of its word in the text
    text: str = ""  # normalized, with ▁ for a space; that of `<unk>` is what is unknown


@dataclass
class Row:
    """What is known of each token, `t`, of one row of an encoding; padding and added special tokens are of no word."""

    parts: list[list[Token]]  # a text or a pair
    special: tuple[Token, ...]  # `<s>` and `</s>`, or none
    pad: Token
    left: int = 0  # how much padding there is on each side
    right: int = 0

    ids = property(lambda self: self.column(attrgetter("id"), self.pad.id))
    tokens = property(lambda self: self.column(attrgetter("text"), self.pad.text))
    offsets = property(lambda self: self.column(itemgetter(slice(1, 3)), (0, 0)))
    word_ids = property(lambda self: self.column(attrgetter("word"), None))
    attention_mask = property(lambda self: [0] * self.left + [1] * self.num_tokens + [0] * self.right)
    special_tokens_mask = property(lambda self: [int(i is None) for i in self.sequence_ids])
    type_ids = property(lambda self: [0] * self.length)
    length = property(lambda self: self.left + self.num_tokens + self.right)

    @property
    def num_tokens(self) -> int:  # without padding
        return sum(map(len, self.parts)) + len(self.special) * len(self.parts)

    @property
    def sequence_ids(self) -> list[int | None]:  # 1 in the second text of a pair
        numbers = [[i] * len(part) for i, part in enumerate(self.parts)]
        return self.around(fill_template(numbers, *(None for _ in self.special)), None)

    def column(self, get: Callable[[Token], Any], fill: Any) -> list[Any]:
        return self.around([get(token) for token in fill_template(self.parts, *self.special)], fill)

    def around(self, values: list[Any], fill: Any) -> list[Any]:
        return [fill] * self.left + values + [fill] * self.right

    def token_to_sequence(self, token: int) -> int | None:
        return self.sequence_ids[token]

    def token_to_word(self, token: int) -> int | None:
        return self.word_ids[token]

    def token_to_chars(self, token: int) -> tuple[int, int] | None:
        return None if self.sequence_ids[token] is None else self.offsets[token]

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
        return self.encodings[key] if isinstance(key, (int, slice)) else super().__getitem__(key)

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

    def row(self, number: int) -> Row:
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
                if tensor_type == "pt":
                    self[name] = torch.tensor(rows) if rows != [] else torch.empty(0, 0, dtype=torch.long)
                else:
                    self[name] = numpy.array(rows) if rows != [] else numpy.empty((0, 0), int)
                    if self[name].dtype.kind not in "biuf":
                        raise ValueError
            except (ValueError, TypeError, RuntimeError):
                what = f"{name} has rows of different lengths, or what is no number, and a tensor is rectangular"
                raise ValueError(f"{what}: pass padding=True, or leave it out.") from None
        return self


class Encoder(ABC):
    """The part of a tokenizer that begins where texts are tokens."""

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
            if not isinstance(flag, bool) and flag is not None:
                check_option(name, flag, (None, False, True))
        check_option("truncation", truncation, TRUNCATIONS)
        check_integer("stride", stride, 0)
        if truncation is None:  # a max_length alone can only mean one thing
            truncation = max_length is not None and padding is False
        limit = None
        if truncation not in (False, "do_not_truncate"):
            limit = self.model_max_length if max_length is None else max_length
            check_integer("max_length", limit)
        samples, is_single = as_samples(text, text_pair, is_split_into_words)
        options: Any = {"side": truncation_side, "overlap": stride if return_overflowing_tokens else None}
        roles = ((self.cls_token_id, self.cls_token), (self.sep_token_id, self.sep_token))
        special = tuple(Token(i, text=text) for i, text in roles if add_special_tokens)
        pad, rows, origins = Token(self.pad_token_id, text=self.pad_token), [], []
        for number, sample in enumerate(samples):
            parts = [self.tokenize_part(part) for part in sample]
            cuts = self.truncate(parts, limit, truncation, bool(special), **options)
            rows += [Row(kept, special, pad) for kept in cuts]
            origins += [number] * len(cuts)
        side, lengths = self.side(padding_side), (row.num_tokens for row in rows)
        length = self.padded_length(lengths, padding, max_length, pad_to_multiple_of, limit)
        for row in rows if length else ():
            setattr(row, side, max(0, length - row.num_tokens))
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
        return self(text, text_pair, **options)["input_ids"]

    def encode_with_offsets(
        self, text: str | tuple[str, str], max_length: int | None = None, truncation: bool | str = True
    ) -> list[Token]:
        """Tokenize one text or pair, and cut it to `max_length` tokens, special tokens included (None: no limit)."""
        parts = [self.tokenize_with_offsets(part) for part in ([text] if isinstance(text, str) else text)]
        [kept, *_] = self.truncate(parts, max_length, truncation)
        return fill_template(kept, Token(self.cls_token_id), Token(self.sep_token_id))

    def tokenize_part(self, part: str | list[str]) -> list[Token]:
        """Tokenize a text, or words, each by itself."""
        if isinstance(part, str):
            return self.tokenize_with_offsets(part)
        words = enumerate(map(self.tokenize_with_offsets, part))
        return [token._replace(word=number) for number, tokens in words for token in tokens]

    def truncate(
        self, parts: list[list[Token]], max_length: int | None, truncation: bool | str,
        add_special_tokens: bool = True, *, side: str | None = None, overlap: int | None = None,
    ) -> list[list[list[Token]]]:  # fmt: skip
        """Cut a text or pair to `max_length` tokens -> the parts kept; with `overlap`, then those of each overflow."""
        side = self.truncation_side if side is None else side
        check_option("truncation_side", side, SIDES)
        lengths, num_special = [len(part) for part in parts], 2 * len(parts) * add_special_tokens
        if overlap is not None and len(parts) > 1 and truncation in (True, "longest_first"):
            remedy = 'pass truncation="only_first" or "only_second"'
            raise ValueError(f"return_overflowing_tokens needs to know which text of a pair is to be cut: {remedy}.")
        if max_length is None or sum(lengths) + num_special <= max_length:
            return [parts]
        room, which = max_length - num_special, int(truncation == "only_second")
        if truncation in ("only_first", "only_second"):
            kept = [*lengths]
            kept[which : which + 1] = [room - sum(lengths) + sum(lengths[which : which + 1])]
        elif len(parts) == 1:
            kept = [room]
        else:  # from the longer one, from the second if they are equally long
            kept = [min(lengths[0], max(room - lengths[1], room - room // 2))]
            kept.append(room - kept[0])
        if min(kept) < 0 or which >= len(parts) or (truncation in ("only_first", "only_second") and not kept[which]):
            raise ValueError(f"truncation={truncation!r} cannot cut this to max_length={max_length}: allow more.")
        if overlap is not None and overlap >= kept[which]:
            raise ValueError(f"stride={overlap} is impossible: rows have room for {kept[which]} tokens of the text.")
        spans = [windows(*sizes, overlap or 0, side) for sizes in zip(lengths, kept, strict=True)]
        count = 1 if overlap is None else len(spans[which])
        return [
            [part[slice(*span[min(i, len(span) - 1)])] for part, span in zip(parts, spans, strict=True)]
            for i in range(count)
        ]

    def pad(
        self, encoded_inputs: Any, padding: bool | str = True, max_length: int | None = None,
        pad_to_multiple_of: int | None = None, padding_side: str | None = None,
        return_attention_mask: bool | None = None, return_tensors: str | None = None,
    ) -> Encoding:  # fmt: skip
        """Pad one encoding, a batch, or a list of encodings; options as in a call.

        Tensors and arrays stay what they are. What else there is, such as labels, is not padded.
        """
        columns, kind = as_columns(encoded_inputs)
        ids = columns["input_ids"]
        is_single = bool(ids) and not isinstance(ids[0], list)
        if is_single:
            columns = {name: [values] for name, values in columns.items()}
        lengths = [len(row) for row in columns["input_ids"]]
        if return_attention_mask is not False:
            columns.setdefault("attention_mask", [[1] * length for length in lengths])
        length = self.padded_length(lengths, padding, max_length, pad_to_multiple_of)
        fills: dict[str, Any] = {
            "input_ids": self.pad_token_id,
            "token_type_ids": self.pad_token_type_id,
            "attention_mask": 0,
        }
        fills |= {"special_tokens_mask": 1, "offset_mapping": (0, 0)}
        for name in fills.keys() & columns.keys():
            missing = [[fills[name]] * (length - len(row)) for row in columns[name]]
            pairs = zip(columns[name], missing, strict=True)
            columns[name] = [row + more if self.side(padding_side) == "right" else more + row for row, more in pairs]
        if is_single:
            columns = {name: values for name, [values] in columns.items()}
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

    def side(self, padding_side: str | None) -> str:
        side = self.padding_side if padding_side is None else padding_side
        check_option("padding_side", side, SIDES)
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


def windows(length: int, width: int, overlap: int, side: str) -> list[tuple[int, int]]:
    """[start, end) of the parts of at most `width` into which `length` tokens fall, the one that is kept first."""
    starts = range(0, max(length - overlap, 1), max(width - overlap, 1))
    spans = [(start, min(start + width, length)) for start in starts]
    return spans if side == "right" else [(length - end, length - start) for start, end in spans]


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
