"""A smaller vocabulary, cut from a larger one: the pieces that occur most in a corpus, with their scores."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

MIN_CHARACTER_COUNT = 15
SMOOTHING = 0.75  # 1: every language has the same share; 0: in proportion to its text


def cut_vocabulary(vocab_file: Path, texts: Mapping[str, Iterable[str]], size: int) -> bytes:
    """A SentencePiece model with `size` pieces of `vocab_file`: its special ones, and those that `texts` use most.

    texts: by language. Languages with little text count for more than their share. The characters that occur 15
    times or more are kept, so that hardly any text becomes `<unk>`: what is left out is written with shorter pieces.
    """
    processor = SentencePieceProcessor(model_file=str(vocab_file))
    weights: dict[int, float] = defaultdict(float)
    characters: Counter[str] = Counter()
    for language in texts:
        counts: Counter[int] = Counter()
        for text in texts[language]:
            counts.update(processor.encode(text))
            characters.update(processor.normalize(text))
        scale = counts.total() ** -SMOOTHING
        for piece, count in counts.items():
            weights[piece] += count * scale
    model = sentencepiece_model_pb2.ModelProto.FromString(vocab_file.read_bytes())  # type: ignore[attr-defined]
    special = [i for i, piece in enumerate(model.pieces) if piece.type != piece.NORMAL]
    frequent = {character for character, count in characters.items() if count >= MIN_CHARACTER_COUNT}
    single = [i for i, piece in enumerate(model.pieces) if piece.piece in frequent]
    ranked = sorted(weights, key=lambda i: -weights[i])
    kept = sorted(list(dict.fromkeys([*special, *single, *ranked]))[:size])
    pieces = [model.pieces[i] for i in kept]
    del model.pieces[:]
    model.pieces.extend(pieces)
    model.trainer_spec.vocab_size = len(pieces)
    return model.SerializeToString()
