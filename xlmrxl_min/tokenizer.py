"""Text <-> ids: SentencePiece with fairseq's numbering. Walked through in notebooks/01_tokens_and_embeddings.ipynb.

SentencePiece numbers its pieces `<unk>` 0, `<s>` 1, `</s>` 2, then the vocabulary. fairseq starts with `<s>` 0,
`<pad>` 1, `</s>` 2, `<unk>` 3, so every other id is one higher, and `<mask>` comes last (fairseq's dictionary.py and
masked_lm.py; Hugging Face's tokenization_xlm_roberta.py). A text becomes `<s> A </s>`, a pair `<s> A </s></s> B </s>`.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, overload
from unicodedata import category

import sentencepiece
import torch

from .checkpoints.locate import VOCABULARY_FILE, locate
from .files import atomic_write, to_path
from .inputs import (
    as_rows,
    as_sequence,
    as_texts,
    as_texts_or_pairs,
    check_integer,
    check_option,
    check_text,
    is_single_text,
)

FAIRSEQ_OFFSET = 1
TRUNCATIONS = (None, False, True, "longest_first", "only_first", "only_second")
PADDINGS = (False, True, "longest", "max_length")


class Token(NamedTuple):
    id: int
    start: int = 0  # its characters are text[start:end]; special tokens that were added have none
    end: int = 0


class Encoding(dict):
    """input_ids, attention_mask and what else was asked for, as keys and as attributes; use as `model(**encoding)`."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"this encoding has no {name!r}: it has {', '.join(self)}.")

    def to(self, device: Any) -> Encoding:
        """Move every tensor to `device`, in place as in Hugging Face."""
        self.update({name: value.to(device) if hasattr(value, "to") else value for name, value in self.items()})
        return self


class XLMRobertaTokenizer:
    """The XLM-R tokenizer. Call it on a text, a pair of texts, or lists of them.

    Ids 0 to 3 are `<s>`, `<pad>`, `</s>`, `<unk>`, the last is `<mask>`; a special token written in a text becomes its
    id. `vocab_file` is the path of a SentencePiece model. FileNotFoundError, or ValueError for another kind of file.
    """

    bos_token, pad_token, eos_token, unk_token, mask_token = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
    bos_token_id, pad_token_id, eos_token_id, unk_token_id = range(4)
    cls_token, sep_token, cls_token_id, sep_token_id = bos_token, eos_token, bos_token_id, eos_token_id
    model_max_length = 512

    def __init__(self, vocab_file: str | os.PathLike[str]) -> None:
        self.vocab_file = to_path(vocab_file)
        if not self.vocab_file.is_file():
            raise FileNotFoundError(f"{vocab_file} is not a file: a tokenizer is loaded from {VOCABULARY_FILE}.")
        try:
            self.sp_model = sentencepiece.SentencePieceProcessor(model_file=str(vocab_file))
        except RuntimeError as error:
            raise ValueError(f"{vocab_file} is not a SentencePiece model: is the download complete?") from error
        self.mask_token_id = len(self.sp_model) + FAIRSEQ_OFFSET
        names = (self.bos_token, self.pad_token, self.eos_token, self.unk_token, self.mask_token)
        self.special_token_ids = dict(zip(names, (*range(4), self.mask_token_id), strict=True))
        self.special_tokens = {i: token for token, i in self.special_token_ids.items()}

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike[str], *, revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None, local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> XLMRobertaTokenizer:  # fmt: skip
        """Load the tokenizer of a folder, a bundled checkpoint ("tiny", …) or a hub id. Raises FileNotFoundError.

        The arguments are those of a model's `from_pretrained`; source may also be the vocabulary file.
        """
        hub: Any = {"revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
        return cls(locate(source, **hub).find(VOCABULARY_FILE))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the vocabulary file into `folder`, where from_pretrained finds it."""
        target, vocabulary = to_path(folder, "folder") / VOCABULARY_FILE, self.sp_model.serialized_model_proto()
        if not (os.path.isfile(target) and target.read_bytes() == vocabulary):
            with atomic_write(target) as (draft,):
                draft.write_bytes(vocabulary)

    def __len__(self) -> int:
        return self.mask_token_id + 1

    @property
    def vocab_size(self) -> int:
        return len(self)

    @property
    def all_special_ids(self) -> list[int]:
        return list(self.special_tokens)

    # ---- one text: text <-> tokens <-> ids

    def tokenize_with_offsets(self, text: str) -> list[Token]:
        """Tokenize a text, without `<s>` and `</s>` around it.

        Offsets begin and end at visible characters. A token of nothing else has them all; a lone ▁ has none. Where one
        character becomes several tokens, as the ligature ﬃ may, each of them has that character.
        """
        check_text(text, "the text")
        tokens: list[Token] = []
        start = 0
        for special in re.finditer("|".join(self.special_token_ids), text):
            tokens += self.tokenize_segment(text, start, special.start())  # sentencepiece strips the space before it
            tokens.append(Token(self.special_token_ids[special[0]], *special.span()))
            start = special.end()
        return tokens + self.tokenize_segment(text, start, len(text))

    def tokenize_segment(self, text: str, start: int, end: int) -> list[Token]:
        """Tokenize text[start:end], a part without special tokens."""
        segment, tokens, at = text[start:end], [], 0
        _, starts = self.sp_model.normalize(segment, with_offsets=True)  # of each normalized character in `segment`
        ends = starts[1:]  # of characters that were normalized together, as a letter and its accent, all end last
        for i in reversed(range(len(ends) - 1)):
            if ends[i] == starts[i]:
                ends[i] = ends[i + 1]
        subwords = self.sp_model.encode(segment, out_type=str)  # joined, they are the normalized text
        for subword, sp_id in zip(subwords, self.sp_model.piece_to_id(subwords), strict=True):
            first, at = at + subword.startswith("▁"), at + len(subword)  # the space that became ▁ is not of the word
            span = trim(text, start + starts[first], start + (ends[at - 1] if first < at else starts[first]))
            tokens.append(Token(self.add_fairseq_offset(sp_id), *span))
        return tokens

    def add_fairseq_offset(self, sp_id: int) -> int:
        return sp_id + FAIRSEQ_OFFSET if sp_id else self.unk_token_id

    def tokenize(self, text: str) -> list[str]:
        """Split `text` into subwords, `▁` for a space; a character unknown to the vocabulary becomes `<unk>`."""
        return self.convert_ids_to_tokens([token.id for token in self.tokenize_with_offsets(text)])

    def encode(self, text: str, text_pair: str | None = None, **options: Any) -> list[int]:
        """Return the input_ids of one text or pair; options as in a call."""
        return self(text, text_pair, **options)["input_ids"]

    @overload
    def convert_ids_to_tokens(self, ids: int) -> str: ...
    @overload
    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str]: ...
    def convert_ids_to_tokens(self, ids: int | Iterable[int]) -> str | list[str]:
        """Look up tokens. ValueError for an id beyond the vocabulary, such as XL's last 878 rows of embeddings."""
        if hasattr(ids, "tolist"):
            ids = ids.tolist()
        if isinstance(ids, Iterable):
            return [self.convert_id_to_token(i) for i in as_sequence(ids, "ids", "token ids")]
        return self.convert_id_to_token(ids)

    def convert_id_to_token(self, i: Any) -> str:
        try:
            if isinstance(i, bool):  # from a mask; as an index it would be 0 or 1
                raise TypeError
            token_id = operator.index(i)
        except TypeError:
            got, remedy = f"got one of type {type(i).__name__}", "for several sequences, use batch_decode"
            raise ValueError(f"a token id is an integer, but {got}: {remedy}.") from None
        if not 0 <= token_id < len(self):
            raise ValueError(f"{token_id} is not a token: this vocabulary has ids 0 to {len(self) - 1}.")
        return self.special_tokens.get(token_id) or self.sp_model.id_to_piece(token_id - FAIRSEQ_OFFSET)

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...
    @overload
    def convert_tokens_to_ids(self, tokens: list[str] | tuple[str, ...]) -> list[int]: ...
    def convert_tokens_to_ids(self, tokens: str | list[str] | tuple[str, ...]) -> int | list[int]:
        """Look up ids; that of `<unk>` for a token that is not in the vocabulary."""
        if not is_single_text(tokens):
            return [self.convert_token_to_id(token) for token in as_sequence(tokens, "tokens", "tokens")]
        return self.convert_token_to_id(str(tokens))

    def convert_token_to_id(self, token: str) -> int:
        check_text(token, "a token")
        if token in self.special_token_ids:
            return self.special_token_ids[token]
        return self.add_fairseq_offset(self.sp_model.piece_to_id(token))

    def decode(self, ids: int | Iterable[int], skip_special_tokens: bool = False) -> str:
        """Join the tokens to a text again; special tokens are separated by spaces, or skipped."""
        if hasattr(ids, "tolist"):
            ids = ids.tolist()
        sequence = as_sequence(ids, "ids", "token ids") if isinstance(ids, Iterable) else [ids]
        return "".join(self.decode_stream(sequence, skip_special_tokens))

    def decode_stream(self, ids: Iterable[int], skip_special_tokens: bool = False) -> Iterator[str]:
        """Decode ids one by one, as `model.stream` yields them for one prompt; joined, the parts are decode(ids)."""
        check_option("skip_special_tokens", skip_special_tokens, (False, True))
        if not isinstance(ids, Iterable) or getattr(ids, "ndim", 1) == 0:
            raise ValueError(f"ids is of type {type(ids).__name__}, but must be a list of token ids, or an iterator.")
        gap, is_start, is_first = "", True, True  # gap: white space that is only written if something follows
        for i in ids:
            token = self.convert_id_to_token(i)
            text, is_special = token.replace("▁", " "), token in self.special_token_ids
            if is_special and skip_special_tokens:
                continue
            if is_special:
                gap = "" if is_first else " "
            elif is_start:
                text = text.lstrip()
            part = text.rstrip()
            if part:
                yield gap + part
                gap, is_start, is_first = " " if is_special else text[len(part) :], is_special, False
            else:
                gap += text

    def batch_decode(self, rows: Iterable[Iterable[int]], skip_special_tokens: bool = False) -> list[str]:
        """Decode each row of ids, as `b t`."""
        return [self.decode(row, skip_special_tokens) for row in as_rows(rows, "rows", "lists of token ids")]

    # ---- many texts: templates, truncation, padding

    def __call__(
        self, text: str | Iterable[str | tuple[str, str]], text_pair: str | Iterable[str] | None = None, *,
        add_special_tokens: bool = True, padding: bool | str = False, truncation: bool | str | None = None,
        max_length: int | None = None, padding_side: str = "right", return_tensors: str | None = None,
        return_offsets_mapping: bool = False,
    ) -> Encoding:  # fmt: skip
        """Texts -> input_ids and attention_mask (1 = token, 0 = padding): lists, or with return_tensors="pt" `b t`.

        A list, array or generator gives a batch, and so does one of pairs (text, text_pair). padding: True or
        "longest", "max_length". truncation: True or "longest_first", "only_first", "only_second", to max_length
        (default 512), including special tokens; also where only max_length is given. return_offsets_mapping adds
        offset_mapping: the [start, end) of each token in its own text, (0, 0) for added special tokens. ValueError for
        any other value of an option.
        """
        check_option("padding", padding, PADDINGS)
        check_option("truncation", truncation, TRUNCATIONS)
        check_option("padding_side", padding_side, ("right", "left"))
        check_option("return_tensors", return_tensors, (None, "pt"))
        check_option("add_special_tokens", add_special_tokens, (False, True))
        check_option("return_offsets_mapping", return_offsets_mapping, (False, True))
        if max_length is not None:
            check_integer("max_length", max_length)
        is_single = is_single_text(text)
        texts: list[Any] = as_texts(text, "text") if is_single else as_texts_or_pairs(text, "text")
        if text_pair is not None:
            pairs = as_texts(text_pair, "text_pair")
            if len(pairs) != len(texts):
                raise ValueError(f"got {len(texts)} texts but {len(pairs)} in text_pair: give one for each text.")
            if not all(isinstance(item, str) for item in texts):
                raise ValueError("text holds pairs, so text_pair would be a third text: leave one of them out.")
            texts = list(zip(texts, pairs, strict=True))
        if truncation is None:  # a max_length alone can only mean one thing
            truncation = max_length is not None and not padding
        limit = (max_length or self.model_max_length) if truncation else None
        rows = [self.encode_with_offsets(item, limit, truncation, add_special_tokens) for item in texts]
        length = max(map(len, rows), default=0) if padding else 0
        if padding == "max_length":
            length = max(length, max_length or self.model_max_length)

        def pad(values: list, fill: Any) -> list:
            missing = [fill] * (length - len(values))
            return values + missing if padding_side == "right" else missing + values

        encoding = Encoding(input_ids=[pad([token.id for token in row], self.pad_token_id) for row in rows])
        if return_offsets_mapping:
            encoding["offset_mapping"] = [pad([(token.start, token.end) for token in row], (0, 0)) for row in rows]
        encoding["attention_mask"] = [pad([1] * len(row), 0) for row in rows]
        if return_tensors is None:
            return Encoding({name: rows[0] if is_single else rows for name, rows in encoding.items()})
        if len({len(row) for row in encoding.input_ids}) > 1:
            raise ValueError("the texts have different lengths, and a tensor is rectangular: pass padding=True.")
        return Encoding(
            {name: torch.tensor(rows or [[]], dtype=torch.long)[: len(rows)] for name, rows in encoding.items()}
        )

    def encode_with_offsets(
        self, text: str | tuple[str, str], max_length: int | None = None, truncation: bool | str = True,
        add_special_tokens: bool = True,
    ) -> list[Token]:  # fmt: skip
        """Tokenize one text or pair, and cut it to `max_length` tokens, special tokens included (None: no limit)."""
        parts = [self.tokenize_with_offsets(part) for part in ([text] if isinstance(text, str) else text)]
        num_special = 2 * len(parts) if add_special_tokens else 0
        surplus = 0 if max_length is None else sum(map(len, parts)) + num_special - max_length
        kept = [len(part) for part in parts]
        for _ in range(surplus):  # one by one from the longer part, from the second if they are equally long
            longer = max(range(len(parts)), key=lambda i: (kept[i], i))
            which = 0 if truncation == "only_first" else 1 if truncation == "only_second" else longer
            if which >= len(parts) or not kept[which]:
                raise ValueError(f"truncation={truncation!r} cannot cut this to max_length={max_length}: allow more.")
            kept[which] -= 1
        parts = [part[:length] for part, length in zip(parts, kept, strict=True)]
        if not add_special_tokens:
            return [token for part in parts for token in part]
        row: list[Token] = []
        for part in parts:
            row += [Token(self.eos_token_id if row else self.bos_token_id), *part, Token(self.eos_token_id)]
        return row


# ---- characters and words

IGNORABLE = re.compile(  # invisible letters and marks: variation selectors, fillers, tags (Unicode, Default_Ignorable)
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]"
)


def is_visible(character: str) -> bool:
    """Whether it is no white space, control or format character, and not otherwise invisible."""
    return category(character) not in ("Cc", "Cf", "Zs", "Zl", "Zp") and not IGNORABLE.match(character)


def trim(text: str, start: int, end: int) -> tuple[int, int]:
    """Cut white space and invisible characters off both ends of text[start:end], unless there is nothing else."""
    first = next((i for i in range(start, end) if is_visible(text[i])), None)
    if first is None:
        return start, end
    return first, next(i for i in range(end, start, -1) if is_visible(text[i - 1]))


CONTROL_TOKENS = frozenset(("<s>", "<pad>", "</s>", "<mask>"))  # not <unk>, which is a character of the text
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3001-\u9fff\uff00-\uffef"  # Thai, Lao, Burmese, Khmer, Chinese …
WORD = re.compile(f"[{UNSPACED}]{{1,2}}|[^{UNSPACED}\\s]+")


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return [start, end) of each word: the text between spaces; in a script without spaces, every two characters."""
    return [match.span() for match in WORD.finditer(text)]


def starts_word(token: str, *, split_unspaced: bool = True) -> bool:
    """Test for ▁ or a control token; with split_unspaced, also for a token in a script without spaces."""
    return token[:1] == "▁" or token in CONTROL_TOKENS or (split_unspaced and bool(re.match(f"[{UNSPACED}]", token)))


def group_words(tokens: Sequence[str], *, split_unspaced: bool = False) -> list[range]:
    """Return the positions of each word's tokens. A control token is a group of its own."""
    is_start = [starts_word(token, split_unspaced=split_unspaced) for token in tokens]
    starts = [i for i in range(len(tokens)) if i == 0 or is_start[i] or tokens[i - 1] in CONTROL_TOKENS]
    return [range(*pair) for pair in pairwise([*starts, len(tokens)])]
