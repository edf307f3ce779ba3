"""Text <-> ids: SentencePiece with fairseq's numbering. Walked through in notebooks/01_tokens_and_embeddings.ipynb.

SentencePiece numbers its pieces `<unk>` 0, `<s>` 1, `</s>` 2, then the vocabulary. fairseq starts with `<s>` 0,
`<pad>` 1, `</s>` 2, `<unk>` 3, so every other id is one higher, and `<mask>` comes last (fairseq's dictionary.py and
masked_lm.py; Hugging Face's tokenization_xlm_roberta.py). A text becomes `<s> A </s>`, a pair `<s> A </s></s> B </s>`.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, overload

import sentencepiece

from .checkpoints.locate import find_file

VOCABULARY_FILE = "sentencepiece.bpe.model"
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
        self.vocab_file = Path(vocab_file)
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
    def from_pretrained(cls, source: str | os.PathLike[str]) -> XLMRobertaTokenizer:
        """Load the tokenizer of a bundled checkpoint ("tiny", …), a folder or a hub id. Raises FileNotFoundError."""
        return cls(find_file(source, VOCABULARY_FILE))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Copy the vocabulary file into `folder`, where from_pretrained finds it."""
        from .utils import atomic_write  # imports torch, which only some uses of a tokenizer need

        target = Path(folder) / VOCABULARY_FILE
        if not (target.exists() and target.samefile(self.vocab_file)):
            with atomic_write(target) as (draft,):
                shutil.copyfile(self.vocab_file, draft)

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
        """Tokenize a text, without `<s>` and `</s>` around it."""
        if not isinstance(text, str):
            raise ValueError(f"got a text of type {type(text).__name__}, but a text is a str, a pair two of them.")
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
        _, offsets = self.sp_model.normalize(segment, with_offsets=True)  # of each normalized character in `segment`
        subwords = self.sp_model.encode(segment, out_type=str)  # joined, they are the normalized text
        for subword, sp_id in zip(subwords, self.sp_model.piece_to_id(subwords), strict=True):
            first, last = offsets[at], offsets[at + len(subword)]
            origin = segment[first:last]
            first += len(origin) - len(origin.lstrip())  # the space that became ▁ is not a character of the word
            tokens.append(Token(self.add_fairseq_offset(sp_id), start + first, start + last))
            at += len(subword)
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
    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]: ...
    def convert_ids_to_tokens(self, ids: int | Sequence[int]) -> str | list[str]:
        """Look up tokens. ValueError for an id beyond the vocabulary, such as XL's last 878 rows of embeddings."""
        if hasattr(ids, "tolist"):
            ids = ids.tolist()
        if not isinstance(ids, int):
            return [self.convert_ids_to_tokens(i) for i in ids]
        if not 0 <= ids < len(self):
            raise ValueError(f"{ids} is not a token: this vocabulary has ids 0 to {len(self) - 1}.")
        return self.special_tokens.get(ids) or self.sp_model.id_to_piece(ids - FAIRSEQ_OFFSET)

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...
    @overload
    def convert_tokens_to_ids(self, tokens: list[str] | tuple[str, ...]) -> list[int]: ...
    def convert_tokens_to_ids(self, tokens: str | list[str] | tuple[str, ...]) -> int | list[int]:
        """Look up ids; that of `<unk>` for a token that is not in the vocabulary."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        if tokens in self.special_token_ids:
            return self.special_token_ids[tokens]
        return self.add_fairseq_offset(self.sp_model.piece_to_id(tokens))

    def decode(self, ids: int | Sequence[int], skip_special_tokens: bool = False) -> str:
        """Join the tokens to a text again; special tokens are separated by spaces, or skipped."""
        segments = [""]
        for token in self.convert_ids_to_tokens([ids] if isinstance(ids, int) else ids):
            if token not in self.special_token_ids:
                segments[-1] += token
            elif not skip_special_tokens:
                segments += [token, ""]
        texts = (segment.replace("▁", " ").strip() for segment in segments)
        return " ".join(text for text in texts if text)

    def batch_decode(self, rows: Iterable[Sequence[int]], skip_special_tokens: bool = False) -> list[str]:
        return [self.decode(row, skip_special_tokens) for row in rows]

    # ---- many texts: templates, truncation, padding

    def __call__(
        self, text: str | Sequence[str] | Sequence[tuple[str, str]], text_pair: str | Sequence[str] | None = None, *,
        add_special_tokens: bool = True, padding: bool | str = False, truncation: bool | str | None = None,
        max_length: int | None = None, padding_side: str = "right", return_tensors: str | None = None,
        return_offsets_mapping: bool = False,
    ) -> Encoding:  # fmt: skip
        """Texts -> input_ids and attention_mask (1 = token, 0 = padding): lists, or with return_tensors="pt" `b t`.

        A list gives a batch, and so does a list of (text, text_pair). padding: True or "longest", "max_length".
        truncation: True or "longest_first", "only_first", "only_second", to max_length (default 512), including special
        tokens; also where only max_length is given. return_offsets_mapping adds offset_mapping: the [start, end) of
        each token in its own text, (0, 0) for added special tokens. ValueError for any other value of an option.
        """
        for name, value, allowed in (
            ("padding", padding, PADDINGS),
            ("truncation", truncation, TRUNCATIONS),
            ("padding_side", padding_side, ("right", "left")),
            ("return_tensors", return_tensors, (None, "pt")),
        ):
            if value not in allowed:
                raise ValueError(f"{name}={value!r} is unknown: take one of {', '.join(map(repr, allowed))}.")
        texts: list[Any] = list(text) if isinstance(text, (list, tuple)) else [text]
        if text_pair is not None:
            pairs = [text_pair] if isinstance(text_pair, str) else list(text_pair)
            if len(pairs) != len(texts):
                raise ValueError(f"got {len(texts)} texts but {len(pairs)} in text_pair: give one for each text.")
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
            return Encoding({name: rows[0] if isinstance(text, str) else rows for name, rows in encoding.items()})
        if len({len(row) for row in encoding.input_ids}) > 1:
            raise ValueError("the texts have different lengths, and a tensor is rectangular: pass padding=True.")
        import torch  # only for those who ask for tensors

        return Encoding({name: torch.tensor(rows, dtype=torch.long) for name, rows in encoding.items()})

    def encode_with_offsets(
        self, text: str | tuple[str, str], max_length: int | None = None, truncation: bool | str = True,
        add_special_tokens: bool = True,
    ) -> list[Token]:  # fmt: skip
        """Tokenize one text or pair, and cut it to `max_length` tokens, special tokens included (None: no limit)."""
        texts = text if isinstance(text, (list, tuple)) else [text]
        parts = [self.tokenize_with_offsets(text) for text in texts]
        if len(parts) not in (1, 2):
            raise ValueError(f"got {len(parts)} texts for one input: XLM-R takes one, or a pair.")
        num_special = 2 * len(parts) if add_special_tokens else 0
        surplus = 0 if max_length is None else sum(map(len, parts)) + num_special - max_length
        kept = [len(part) for part in parts]
        for _ in range(surplus):  # one by one from the longer part, from the second if they are equally long
            longer = max(range(len(parts)), key=lambda i: (kept[i], i))
            which = {"only_first": 0, "only_second": 1}.get(str(truncation), longer)
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


# ---- words

CONTROL_TOKENS = frozenset(("<s>", "<pad>", "</s>", "<mask>"))  # not <unk>, which is a character of the text
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u9fff\uff00-\uffef"  # Thai, Lao, Burmese, Khmer, Chinese …
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
