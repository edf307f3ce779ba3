"""Text <-> ids: SentencePiece under fairseq's numbering. Walked through in notebooks/01_tokens_and_embeddings.ipynb.

SentencePiece numbers its pieces `<unk>` 0, `<s>` 1, `</s>` 2, then the vocabulary. fairseq begins with `<s>` 0,
`<pad>` 1, `</s>` 2, `<unk>` 3 instead, so every other piece moves up by one, and `<mask>` comes last (fairseq's
dictionary.py and masked_lm.py; Hugging Face's tokenization_xlm_roberta.py). One text becomes `<s> A </s>`, a pair
`<s> A </s></s> B </s>`.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from .checkpoints.locate import find

VOCABULARY_FILE = "sentencepiece.bpe.model"
FAIRSEQ_OFFSET = 1
TRUNCATIONS = (None, False, True, "longest_first", "only_first", "only_second")
PADDINGS = (False, True, "longest", "max_length")

Token = tuple[int, tuple[int, int]]  # id, and where its characters begin and end in the text


class Encoding(dict):
    """input_ids, attention_mask and what else was asked for; also as attributes. `model(**encoding)` takes it whole."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"this encoding has no {name!r}: it holds {', '.join(self)}.")

    def to(self, device: Any) -> Encoding:
        """Move every tensor to `device`, in place as Hugging Face does."""
        self.update({name: value.to(device) if hasattr(value, "to") else value for name, value in self.items()})
        return self


class XLMRobertaTokenizer:
    """The XLM-R tokenizer. Call it on a text, a pair of texts, or lists of them.

    Ids 0 to 3 are `<s>`, `<pad>`, `</s>`, `<unk>`, the last is `<mask>`; written out in a text they become their ids.
    `vocabulary` is the path of a SentencePiece model; FileNotFoundError or ValueError where there is none.
    """

    bos_token, pad_token, eos_token, unk_token, mask_token = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
    bos_token_id, pad_token_id, eos_token_id, unk_token_id = range(4)
    cls_token, sep_token, cls_token_id, sep_token_id = bos_token, eos_token, bos_token_id, eos_token_id
    model_max_length = 512

    def __init__(self, vocabulary: str | os.PathLike[str]) -> None:
        self.vocabulary = Path(vocabulary)
        if not self.vocabulary.is_file():
            raise FileNotFoundError(f"{vocabulary} is no file: a tokenizer is read from its {VOCABULARY_FILE}.")
        try:
            self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary))
        except RuntimeError as error:
            raise ValueError(f"{vocabulary} is no SentencePiece model: is the download complete?") from error
        self.mask_token_id = len(self.pieces) + FAIRSEQ_OFFSET
        names = (self.bos_token, self.pad_token, self.eos_token, self.unk_token, self.mask_token)
        self.special_ids = dict(zip(names, (*range(4), self.mask_token_id), strict=True))
        self.special_tokens = {i: name for name, i in self.special_ids.items()}

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str]) -> XLMRobertaTokenizer:
        """source: a name in `xlmrxl_min/pretrained/` ("tiny", …), a folder, a hub id. FileNotFoundError."""
        return cls(find(source, VOCABULARY_FILE))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Copy the vocabulary into `folder`, so that from_pretrained finds it there."""
        target = Path(folder) / VOCABULARY_FILE
        target.parent.mkdir(parents=True, exist_ok=True)
        if not (target.exists() and target.samefile(self.vocabulary)):
            half_done = target.with_suffix(".tmp")
            shutil.copyfile(self.vocabulary, half_done)
            os.replace(half_done, target)

    def __len__(self) -> int:
        return self.mask_token_id + 1

    @property
    def vocab_size(self) -> int:
        return len(self)

    @property
    def all_special_ids(self) -> list[int]:
        return list(self.special_tokens)

    # ---- one text: text <-> pieces <-> ids

    def tokens_with_offsets(self, text: str) -> list[Token]:
        """Ids of `text` without `<s>` and `</s>`, each with the [begin, end) of its characters in `text`."""
        if not isinstance(text, str):
            raise ValueError(f"got a text of type {type(text).__name__}, but a text is a str, and a pair two of them.")
        tokens, begin = [], 0
        # Space before <mask> needs no care: sentencepiece drops it at the end of what comes before.
        for special in re.finditer("|".join(self.special_ids), text):
            tokens += self.plain(text, begin, special.start())
            tokens.append((self.special_ids[special[0]], special.span()))
            begin = special.end()
        return [*tokens, *self.plain(text, begin, len(text))]

    def plain(self, text: str, begin: int, end: int) -> Iterator[Token]:
        part = text[begin:end]
        _, origin = self.pieces.normalize(part, with_offsets=True)  # the pieces, joined, are the normalized text
        at = 0
        for piece in self.pieces.encode(part, out_type=str):
            first, last = origin[at], origin[at + len(piece)]
            blank = len(part[first:last]) - len(
                part[first:last].lstrip()
            )  # the space that became ▁ is no part of a word
            yield self.convert_tokens_to_ids(piece), (begin + first + blank, begin + last)
            at += len(piece)

    def id_of_piece(self, piece: int) -> int:
        return piece + FAIRSEQ_OFFSET if piece else self.unk_token_id

    def tokenize(self, text: str) -> list[str]:
        """The pieces of `text`, `▁` for a space; a character unknown to the vocabulary shows as `<unk>`."""
        return self.convert_ids_to_tokens([i for i, _ in self.tokens_with_offsets(text)])

    def encode(self, text: str, text_pair: str | None = None, **options: Any) -> list[int]:
        """The input_ids of one text or pair; options as in a call."""
        return self(text, text_pair, **options)["input_ids"]

    def convert_ids_to_tokens(self, ids: int | Sequence[int]) -> str | list[str]:
        """ValueError for an id beyond the vocabulary, such as the 878 filler rows at the end of XL's embeddings."""
        if hasattr(ids, "tolist"):
            ids = ids.tolist()
        if not isinstance(ids, int):
            return [self.convert_ids_to_tokens(i) for i in ids]
        if not 0 <= ids < len(self):
            raise ValueError(f"{ids} is no token: this vocabulary has ids 0 to {len(self) - 1}.")
        return self.special_tokens[ids] if ids in self.special_tokens else self.pieces.id_to_piece(ids - FAIRSEQ_OFFSET)

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int]:
        """The id of each piece; `<unk>`'s for what is no piece."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        if tokens in self.special_ids:
            return self.special_ids[tokens]
        return self.id_of_piece(self.pieces.piece_to_id(tokens))

    def decode(self, ids: int | Sequence[int], skip_special_tokens: bool = False) -> str:
        """Pieces joined to text again, special tokens set apart by spaces, or left out."""
        tokens = self.convert_ids_to_tokens(ids)
        text, parts = [], []
        for token in [tokens] if isinstance(tokens, str) else tokens:
            if token not in self.special_ids:
                text.append(token)
            elif not skip_special_tokens:
                parts, text = [*parts, "".join(text), token], []
        words = (part.replace("▁", " ").strip() for part in [*parts, "".join(text)])
        return " ".join(word for word in words if word)

    def batch_decode(self, rows: Iterable[Sequence[int]], skip_special_tokens: bool = False) -> list[str]:
        return [self.decode(row, skip_special_tokens) for row in rows]

    # ---- many texts: templates, truncation, padding

    def __call__(
        self,
        text: str | Sequence[str] | Sequence[tuple[str, str]],
        text_pair: str | Sequence[str] | None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        padding_side: str = "right",
        return_tensors: str | None = None,
        return_offsets_mapping: bool = False,
    ) -> Encoding:
        """Texts -> input_ids and attention_mask (1 = token, 0 = padding): lists, or with return_tensors="pt" `b t`.

        A list gives a batch, and so does a list of (text, text_pair). padding: True or "longest", "max_length";
        truncation: True or "longest_first", "only_first", "only_second", to max_length (default 512), special tokens
        included, and also where only max_length is given; return_offsets_mapping adds offset_mapping, the [begin, end)
        of each token in its own text, (0, 0) for special ones. ValueError for options that are none of these.
        """
        for name, value, allowed in (
            ("padding", padding, PADDINGS),
            ("truncation", truncation, TRUNCATIONS),
            ("padding_side", padding_side, ("right", "left")),
            ("return_tensors", return_tensors, (None, "pt")),
        ):
            if value not in allowed:
                raise ValueError(f"{name}={value!r} is unknown: take one of {', '.join(map(repr, allowed))}.")
        one = isinstance(text, str)
        texts = list(text) if isinstance(text, (list, tuple)) else [text]
        if text_pair is not None:
            pairs = [text_pair] if isinstance(text_pair, str) else list(text_pair)
            if len(pairs) != len(texts):
                raise ValueError(f"got {len(texts)} texts but {len(pairs)} in text_pair: each needs its partner.")
            texts = list(zip(texts, pairs, strict=True))
        if truncation is None:  # a max_length alone can only mean one thing
            truncation = max_length is not None and not padding
        limit = (max_length or self.model_max_length) if truncation else None
        rows = [self.row(item, add_special_tokens, truncation, limit) for item in texts]
        length = max(map(len, rows), default=0)
        if padding == "max_length":
            length = max(length, max_length or self.model_max_length)
        blank = (self.pad_token_id, (0, 0), 0)
        padded = []
        for row in rows:
            fill = [blank] * (length - len(row) if padding else 0)
            marked = [(i, at, 1) for i, at in row]
            padded.append(marked + fill if padding_side == "right" else fill + marked)
        names = ("input_ids", "offset_mapping", "attention_mask")
        columns = {name: [[token[k] for token in row] for row in padded] for k, name in enumerate(names)}
        if not return_offsets_mapping:
            del columns["offset_mapping"]
        if return_tensors is None:
            return Encoding({name: rows[0] if one else rows for name, rows in columns.items()})
        if len({len(row) for row in padded}) > 1:
            raise ValueError("the texts have different lengths, and a tensor is a rectangle: pass padding=True.")
        import torch  # only for those who ask for tensors

        return Encoding({name: torch.tensor(rows, dtype=torch.long) for name, rows in columns.items()})

    def row(self, item: str | tuple[str, str], special: bool, truncation: bool | str, limit: int | None) -> list[Token]:
        """One text or pair -> its tokens: encoded, cut to `limit`, put into the template."""
        texts = item if isinstance(item, (list, tuple)) else [item]
        parts = [self.tokens_with_offsets(text) for text in texts]
        if len(parts) not in (1, 2):
            raise ValueError(f"got {len(parts)} texts for one input: XLM-R takes one, or a pair.")
        extra = 2 * len(parts) if special else 0
        surplus, kept = 0 if limit is None else sum(map(len, parts)) + extra - limit, [len(part) for part in parts]
        for _ in range(surplus):  # one by one from the longer part, from the second where they are equal
            longer = 0 if len(parts) == 1 or kept[0] > kept[1] else 1
            where = {"only_first": 0, "only_second": 1}.get(truncation, longer)
            if where >= len(parts) or not kept[where]:
                raise ValueError(f"truncation={truncation!r} cannot cut this input to max_length={limit}: allow more.")
            kept[where] -= 1
        parts = [part[:length] for part, length in zip(parts, kept, strict=True)]
        if not special:
            return [token for part in parts for token in part]
        start, end = (self.bos_token_id, (0, 0)), (self.eos_token_id, (0, 0))
        row = [start, *parts[0], end]
        return row if len(parts) == 1 else [*row, end, *parts[1], end]
