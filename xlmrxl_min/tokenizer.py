"""Text <-> ids: SentencePiece with fairseq's numbering. Walked through in notebooks/01_tokens_and_embeddings.ipynb.

SentencePiece numbers its pieces `<unk>` 0, `<s>` 1, `</s>` 2, then the vocabulary. fairseq starts with `<s>` 0,
`<pad>` 1, `</s>` 2, `<unk>` 3, so every other id is one higher, and `<mask>` comes last (fairseq's dictionary.py and
masked_lm.py; Hugging Face's tokenization_xlm_roberta.py). A text becomes `<s> A </s>`, a pair `<s> A </s></s> B </s>`.
"""

from __future__ import annotations

import json
import operator
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, overload
from unicodedata import category

import sentencepiece

from .checkpoints.locate import VOCABULARY_FILE, Location, MissingFileError, is_absent, locate
from .encoding import SIDES, Token, TokenizerBase, fill_template
from .files import atomic_write, lock_folder, to_path
from .inputs import as_rows, as_sequence, as_texts, check_integer, check_option, check_text, check_type, is_single_text

FAIRSEQ_OFFSET = 1
SETTINGS_FILE = "tokenizer_config.json"
OLDER_FILES = re.compile("(added_tokens|special_tokens_map|tokenizer)[.]json")  # what they say is in SETTINGS_FILE now
SETTINGS = ("model_max_length", "padding_side", "truncation_side", "clean_up_tokenization_spaces")
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
SPECIAL = (*ROLES, "additional_special_tokens")
OFF = {"do_lower_case": False, "split_special_tokens": False, "sp_model_kwargs": {}}  # what is not offered, turned off
UNLIMITED = 10**20  # transformers writes 10**30 where no length was given
CLEAN_UP = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")  # transformers' list


@dataclass
class AddedToken:
    """A token that is found in a text as it stands; SentencePiece gets what is between such tokens.

    single_word: not beside a letter. lstrip, rstrip: with the white space beside it. special: decoding may skip it.
    """

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False  # only for transformers' fast tokenizers, which may look for it in the normalized text
    special: bool = False

    @classmethod
    def of(cls, token: Any, special: bool = False) -> AddedToken:
        """A str, transformers' AddedToken, or its JSON, as an AddedToken."""
        token = {"content": token, "normalized": not special} if isinstance(token, str) else token
        get: Any = token.get if isinstance(token, Mapping) else partial(getattr, token)
        check_text(get("content", token), "a token")
        if not get("content", ""):
            raise ValueError("a token is empty, but must have one character or more.")
        added = cls(*(get(field.name, False) for field in fields(cls)))
        added.special |= special
        return added


class XLMRobertaTokenizer(TokenizerBase):
    """The XLM-R tokenizer. Call it on a text, a pair of texts, or lists of them.

    Ids 0 to 3 are `<s>`, `<pad>`, `</s>`, `<unk>`, the last is `<mask>`, tokens that were added follow; a special token
    written in a text becomes its id. `vocab_file` is the path of a SentencePiece model. FileNotFoundError, or
    ValueError for another kind of file. special_tokens: as `add_special_tokens` takes them.
    """

    bos_token, eos_token, unk_token, mask_token = "<s>", "</s>", "<unk>", "<mask>"
    bos_token_id, eos_token_id, unk_token_id, mask_token_id = 0, 2, 3, -1  # -1: it follows the pieces

    def __init__(
        self, vocab_file: str | os.PathLike[str], *, model_max_length: int = 512, padding_side: str = "right",
        truncation_side: str = "right", clean_up_tokenization_spaces: bool = False,
        added_tokens_decoder: Mapping[Any, Any] | None = None, **special_tokens: Any,
    ) -> None:  # fmt: skip
        self.name_or_path, self.vocab_file = str(vocab_file), to_path(vocab_file)
        if not self.vocab_file.is_file():
            raise FileNotFoundError(f"{vocab_file} is not a file: a tokenizer is loaded from {VOCABULARY_FILE}.")
        try:
            self.sp_model = sentencepiece.SentencePieceProcessor(model_file=str(vocab_file))
        except RuntimeError as error:
            raise ValueError(f"{vocab_file} is not a SentencePiece model: is the download complete?") from error
        for name, off in OFF.items():
            given = special_tokens.pop(name, off)
            if given not in (None, off):
                what = f"{name}={given!r} is not offered: pass {off} or nothing, and leave it out of {SETTINGS_FILE}"
                raise ValueError(f"{what}, or tokenize by transformers.")
        check_integer("model_max_length", model_max_length)
        check_option("padding_side", padding_side, SIDES)
        check_option("truncation_side", truncation_side, SIDES)
        check_option("clean_up_tokenization_spaces", clean_up_tokenization_spaces, (False, True))
        self.model_max_length = self.model_max_length if model_max_length > UNLIMITED else model_max_length
        self.padding_side, self.truncation_side = padding_side, truncation_side
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        special = self.special_token_ids()
        self.vocab_size = special[self.mask_token] + 1
        self.added_tokens_decoder = {i: AddedToken(token, special=True) for token, i in special.items()}
        self.added_tokens_decoder[special[self.mask_token]].lstrip = True
        self.added_tokens_decoder |= {int(i): AddedToken.of(x) for i, x in (added_tokens_decoder or {}).items()}
        self.index_added_tokens()
        for name in special_tokens:
            check_option("a setting of the tokenizer", name, (*SETTINGS, *SPECIAL))
        self.add_special_tokens({"mask_token": self.mask_token, **special_tokens})

    def special_token_ids(self) -> dict[str, int]:
        return {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": len(self.sp_model) + FAIRSEQ_OFFSET}

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *, revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None, local_files_only: bool = False,
        token: str | bool | None = None, **settings: Any,
    ) -> XLMRobertaTokenizer:  # fmt: skip
        """Load the tokenizer of a folder, a bundled checkpoint ("tiny", …) or a hub id. Raises FileNotFoundError.

        The arguments are those of a model's `from_pretrained`; the path may also be that of the vocabulary file.
        settings: those of the class, such as padding_side, instead of the saved ones.
        """
        hub: Any = {"revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
        location = locate(pretrained_model_name_or_path, **hub)
        with lock_folder(location.folder, shared=True):  # so that both files are of one save
            vocabulary = location.find(VOCABULARY_FILE)
            saved = {} if location.file == vocabulary else read_settings(location)
            tokenizer = cls(vocabulary, **{**saved, **settings})
        tokenizer.name_or_path = str(pretrained_model_name_or_path)
        return tokenizer

    def save_pretrained(self, folder: str | os.PathLike[str], *, safe_serialization: bool = True) -> tuple[str, ...]:
        """Write the vocabulary and tokenizer_config.json into `folder`, for from_pretrained here and in transformers.

        Older files there that say the same are removed. safe_serialization changes nothing: there are no weights.
        """
        values = {name: getattr(self, name) for name in SETTINGS} | self.special_tokens_map
        values["added_tokens_decoder"] = {str(i): asdict(token) for i, token in self.added_tokens_decoder.items()}
        settings = json.dumps({**values, "tokenizer_class": "XLMRobertaTokenizer"}, indent=2, ensure_ascii=False)
        contents = (self.sp_model.serialized_model_proto(), f"{settings}\n".encode())
        files = [to_path(folder, "folder") / name for name in (VOCABULARY_FILE, SETTINGS_FILE)]
        if [path.read_bytes() if os.path.isfile(path) else b"" for path in files] != [*contents]:
            with atomic_write(*files, obsolete=OLDER_FILES) as drafts:
                for draft, content in zip(drafts, contents, strict=True):
                    draft.write_bytes(content)
        return tuple(map(str, files))

    # ---- the vocabulary, special tokens, and tokens that were added

    def __len__(self) -> int:
        return self.vocab_size + sum(i >= self.vocab_size for i in self.added_tokens_decoder)

    def get_vocab(self) -> dict[str, int]:
        pieces = self.convert_ids_to_tokens(range(self.vocab_size))
        return {piece: i for i, piece in enumerate(pieces)} | self.added_tokens_encoder

    def get_added_vocab(self) -> dict[str, int]:
        return dict(self.added_tokens_encoder)

    def __setattr__(self, name: str, value: Any) -> None:
        """A special token and its id, such as pad_token and pad_token_id, change together."""
        role = name.removesuffix("_id")
        if role in ROLES:
            token = AddedToken.of(value).content if name == role else self.convert_id_to_token(value)
            token_id = self.convert_token_to_id(token)
            if token_id == self.unk_token_id and token not in (self.unk_token, "<unk>"):
                raise ValueError(f"{role}={token!r} is not in the vocabulary: pass it to add_special_tokens.")
            super().__setattr__(f"{role}_id", token_id)
            name, value = role, token
        super().__setattr__(name, value)

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        """The token of each role, and as additional_special_tokens those without one, if there are any."""
        roles: dict[str, Any] = {role: getattr(self, role) for role in ROLES}
        special = [token.content for token in self.added_tokens_decoder.values() if token.special]
        more = [token for token in special if token not in roles.values()]
        return {**roles, "additional_special_tokens": more} if more else roles

    @property
    def additional_special_tokens(self) -> list[str]:
        return self.special_tokens_map.get("additional_special_tokens", [])

    @property
    def all_special_tokens(self) -> list[str]:
        return list(dict.fromkeys([*(getattr(self, role) for role in ROLES), *self.additional_special_tokens]))

    @property
    def all_special_ids(self) -> list[int]:
        return self.convert_tokens_to_ids(self.all_special_tokens)

    def add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        """Add one token or several, str or transformers' AddedToken -> how many are new; the model is to be resized."""
        check_option("special_tokens", special_tokens, (False, True))
        before, is_one = len(self), isinstance(new_tokens, (str, Mapping)) or hasattr(new_tokens, "content")
        for given in [new_tokens] if is_one else as_sequence(new_tokens, "new_tokens", "tokens"):
            token = AddedToken.of(given, special_tokens)
            token_id, is_known = self.convert_token_to_id(token.content), token.content in self.added_tokens_encoder
            if is_known and isinstance(given, str):
                self.added_tokens_decoder[token_id].special |= special_tokens
                continue
            if not is_known and token_id == self.unk_token_id:
                token_id = max(self.vocab_size - 1, *self.added_tokens_decoder) + 1
            self.added_tokens_decoder[token_id], self.added_tokens_encoder[token.content] = token, token_id
        self.index_added_tokens()
        return len(self) - before

    def add_special_tokens(
        self, special_tokens_dict: Mapping[str, Any], replace_additional_special_tokens: bool = True
    ) -> int:
        """Add tokens by role, as {"cls_token": "<c>", "additional_special_tokens": ["<a>", "<b>"]} -> how many are new.

        replace_additional_special_tokens: earlier ones are no longer special.
        """
        check_type("special_tokens_dict", special_tokens_dict, Mapping, 'a dict, such as {"cls_token": "<c>"}')
        check_option("replace_additional_special_tokens", replace_additional_special_tokens, (False, True))
        count = 0
        for name, tokens in special_tokens_dict.items():
            check_option("a special token", name, SPECIAL)
            for token in self.added_tokens_decoder.values():
                if name not in ROLES and replace_additional_special_tokens:
                    token.special &= token.content not in self.additional_special_tokens
            count += self.add_tokens([tokens] if name in ROLES else tokens, special_tokens=True)
            if name in ROLES:
                setattr(self, name, tokens)
        return count

    def index_added_tokens(self) -> None:
        """Make the ids by token, and the pattern that finds the tokens in a text, the longest first."""
        self.added_tokens_decoder = dict(sorted(self.added_tokens_decoder.items()))
        self.added_tokens_encoder = {token.content: i for i, token in self.added_tokens_decoder.items()}
        tokens = sorted(self.added_tokens_decoder.values(), key=lambda token: -len(token.content))
        parts = [(r"(?<!\w)%s(?!\w)" if x.single_word else "%s") % re.escape(x.content) for x in tokens]
        self.added_pattern = re.compile("|".join(parts))

    # ---- one text: text <-> tokens <-> ids

    def tokenize_with_offsets(self, text: str) -> list[Token]:
        """Tokenize a text, without `<s>` and `</s>` around it.

        Offsets begin and end at visible characters. A token of nothing else has them all; a lone ▁ has none. Where one
        character becomes several tokens, as the ligature ﬃ may, each of them has that character.
        """
        check_text(text, "the text")
        tokens: list[Token] = []
        start = 0
        for found in self.added_pattern.finditer(text):
            token_id, end = self.added_tokens_encoder[found[0]], found.start()
            token = self.added_tokens_decoder[token_id]
            while token.lstrip and end > start and text[end - 1].isspace():
                end -= 1
            tokens += self.tokenize_segment(text, start, end, next_word(tokens))
            tokens.append(Token(token_id, *found.span(), next_word(tokens), found[0]))
            start = found.end()
            while token.rstrip and text[start : start + 1].isspace():
                start += 1
        return tokens + self.tokenize_segment(text, start, len(text), next_word(tokens))

    def tokenize_segment(self, text: str, start: int, end: int, word: int = 0) -> list[Token]:
        """Tokenize text[start:end], a part without added tokens, whose first word has the number `word`."""
        segment, tokens, at, word = text[start:end], [], 0, word - 1
        _, starts = self.sp_model.normalize(segment, with_offsets=True)  # of each normalized character in `segment`
        ends = starts[1:]  # of characters that were normalized together, as a letter and its accent, all end last
        for i in reversed(range(len(ends) - 1)):
            if ends[i] == starts[i]:
                ends[i] = ends[i + 1]
        subwords = self.sp_model.encode(segment, out_type=str)  # joined, they are the normalized text
        for subword, sp_id in zip(subwords, self.sp_model.piece_to_id(subwords), strict=True):
            is_start = subword.startswith("▁")
            first, at, word = at + is_start, at + len(subword), word + is_start  # the space that became ▁ is of no word
            span = trim(text, start + starts[first], start + (ends[at - 1] if first < at else starts[first]))
            tokens.append(Token(self.add_fairseq_offset(sp_id), *span, word, subword))
        return tokens

    def add_fairseq_offset(self, sp_id: int) -> int:
        return sp_id + FAIRSEQ_OFFSET if sp_id else self.unk_token_id

    def tokenize(self, text: str) -> list[str]:
        """Split `text` into subwords, `▁` for a space; a character unknown to the vocabulary becomes `<unk>`."""
        return self.convert_ids_to_tokens([token.id for token in self.tokenize_with_offsets(text)])

    @overload
    def convert_ids_to_tokens(self, ids: int, skip_special_tokens: bool = False) -> str: ...
    @overload
    def convert_ids_to_tokens(self, ids: Iterable[int], skip_special_tokens: bool = False) -> list[str]: ...
    def convert_ids_to_tokens(self, ids: int | Iterable[int], skip_special_tokens: bool = False) -> str | list[str]:
        """Look up tokens. ValueError for an id beyond the vocabulary, such as XL's last 878 rows of embeddings."""
        check_option("skip_special_tokens", skip_special_tokens, (False, True))
        tokens = [self.convert_id_to_token(i) for i in as_ids(ids, "ids")]
        if not isinstance(ids, Iterable) or getattr(ids, "ndim", 1) == 0:
            return tokens[0]
        skipped = self.all_special_tokens if skip_special_tokens else []
        return [token for token in tokens if token not in skipped]

    def convert_id_to_token(self, i: Any) -> str:
        try:
            if isinstance(i, bool):  # from a mask; as an index it would be 0 or 1
                raise TypeError
            token_id = operator.index(i)
        except TypeError:
            got, remedy = f"got one of type {type(i).__name__}", "for several sequences, use batch_decode"
            raise ValueError(f"a token id is an integer, but {got}: {remedy}.") from None
        if token_id in self.added_tokens_decoder:
            return self.added_tokens_decoder[token_id].content
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(
                f"{token_id} is not a token: this vocabulary has ids 0 to {max(self.added_tokens_decoder)}."
            )
        return self.sp_model.id_to_piece(token_id - FAIRSEQ_OFFSET)

    _convert_id_to_token = convert_id_to_token  # the name by which transformers' collator for whole words calls it

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
        if token in self.added_tokens_encoder:
            return self.added_tokens_encoder[token]
        return self.add_fairseq_offset(self.sp_model.piece_to_id(token))

    def convert_tokens_to_string(self, tokens: Iterable[str]) -> str:
        return "".join(as_texts(tokens, "tokens")).replace("▁", " ").strip()

    def decode(
        self, token_ids: int | Iterable[int], skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:  # fmt: skip
        """Join the tokens to a text again; special tokens are separated by spaces, or skipped.

        clean_up_tokenization_spaces: none before English punctuation and contractions (default: the attribute).
        """
        check_option("clean_up_tokenization_spaces", clean_up_tokenization_spaces, (None, False, True))
        text = "".join(self.decode_stream(as_ids(token_ids, "token_ids"), skip_special_tokens))
        clean = clean_up_tokenization_spaces
        for mark in CLEAN_UP if (self.clean_up_tokenization_spaces if clean is None else clean) else ():
            text = text.replace(mark, mark.strip())
        return text

    def decode_stream(self, ids: Iterable[int], skip_special_tokens: bool = False) -> Iterator[str]:
        """Decode ids one by one, as `model.stream` yields them for one prompt; joined, the parts are decode(ids)."""
        check_option("skip_special_tokens", skip_special_tokens, (False, True))
        if not isinstance(ids, Iterable) or getattr(ids, "ndim", 1) == 0:
            raise ValueError(f"ids is of type {type(ids).__name__}, but must be a list of token ids, or an iterator.")
        skipped = self.all_special_tokens if skip_special_tokens else []
        gap, is_start, is_first = "", True, True  # gap: white space that is only written if something follows
        for i in ids:
            token = self.convert_id_to_token(i)
            if token in skipped:
                continue
            text, is_added = token.replace("▁", " "), token in self.added_tokens_encoder
            if is_added:
                gap = "" if is_first else " "
            elif is_start:
                text = text.lstrip()
            part = token if is_added else text.rstrip()
            if part:
                yield gap + part
                gap, is_start, is_first = " " if is_added else text[len(part) :], is_added, False
            else:
                gap += text

    def batch_decode(
        self, sequences: Iterable[Iterable[int]], skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:  # fmt: skip
        """Decode each row of ids, as `b t`."""
        options = (skip_special_tokens, clean_up_tokenization_spaces)
        return [self.decode(row, *options) for row in as_rows(sequences, "sequences", "lists of token ids")]

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 for each special token, 0 for each other; of ids with special tokens, or of ids that are to get them."""
        if not already_has_special_tokens:
            mask = [[0] * len(ids) for ids in (token_ids_0, token_ids_1) if ids is not None]
            return fill_template(mask, 1, 1)
        if token_ids_1 is not None:
            raise ValueError("token_ids_1 is given, but a pair that has its special tokens is one list: pass it alone.")
        special = set(self.all_special_tokens)
        return [int(token in special) for token in self.convert_ids_to_tokens(token_ids_0)]

    def apply_chat_template(self, *_: Any, **__: Any) -> Any:
        raise ValueError("XLM-R was never trained to chat, and has no chat template: pass a text to the tokenizer.")


def as_ids(ids: Any, name: str) -> list[Any]:
    """One id or several, as a list; their types are not checked."""
    ids = ids.tolist() if hasattr(ids, "tolist") else ids
    return as_sequence(ids, name, "token ids") if isinstance(ids, Iterable) else [ids]


def next_word(tokens: Sequence[Token]) -> int:
    return (tokens[-1].word or 0) + 1 if tokens else 0


def read_settings(location: Location) -> dict[str, Any]:
    """The arguments of the class that tokenizer_config.json holds, or what transformers wrote before it did."""
    found = read_json(location, SETTINGS_FILE)
    if "added_tokens_decoder" not in found:
        found = {**read_json(location, "special_tokens_map.json"), **found}
        added = {i: token for token, i in read_json(location, "added_tokens.json").items()}
        if location.holds("tokenizer.json"):  # large, and on the hub the other files say the same
            added |= {token["id"]: token for token in read_json(location, "tokenizer.json").get("added_tokens", [])}
        found["added_tokens_decoder"] = added
    names = (*SETTINGS, *SPECIAL, *OFF, "added_tokens_decoder")
    return {name: found[name] for name in names if found.get(name) is not None}


def read_json(location: Location, name: str) -> dict[str, Any]:
    try:
        values = json.loads(location.find(name).read_text(encoding="utf-8"))
    except MissingFileError as error:
        if location.hub is None or location.hub["local_files_only"] or is_absent(error.__cause__):
            return {}
        raise
    except ValueError as error:
        raise ValueError(f"{name} of {location} is not JSON ({error}): download it again.") from error
    if not isinstance(values, dict):
        raise ValueError(
            f"{name} of {location} holds a {type(values).__name__}, but must hold a dict: download it again."
        )
    return values


# ---- characters and words

IGNORABLE = re.compile(  # invisible letters and marks: variation selectors, fillers, tags (Unicode, Default_Ignorable)
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]"
)


@lru_cache(maxsize=1 << 16)
def is_visible(character: str) -> bool:
    """Whether it is no white space, control or format character, and not otherwise invisible."""
    return category(character) not in ("Cc", "Cf", "Zs", "Zl", "Zp") and not IGNORABLE.match(character)


def trim(text: str, start: int, end: int) -> tuple[int, int]:
    """Cut white space and invisible characters off both ends of text[start:end], unless there is nothing else."""
    if start < end and is_visible(text[start]) and is_visible(text[end - 1]):  # nearly always
        return start, end
    visible = [i for i in range(start, end) if is_visible(text[i])]
    return (visible[0], visible[-1] + 1) if visible else (start, end)


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
