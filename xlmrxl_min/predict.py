"""Texts in, labelled results out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from tqdm import tqdm

from .model import PreTrainedModel, XLMRobertaXLForMaskedLM
from .tokenizer import Encoding, XLMRobertaTokenizer


class Prediction(NamedTuple):
    text: str  # the piece as it reads, without ▁
    token_id: int
    probability: float


def fill_mask(
    model: XLMRobertaXLForMaskedLM,
    tokenizer: XLMRobertaTokenizer,
    texts: str | Sequence[str],
    *,
    top_k: int = 5,
    batch_size: int = 16,
    progress: bool = True,
) -> list[list[Prediction]] | list[list[list[Prediction]]]:
    """The likeliest tokens for each `<mask>`: `top_k` per mask, best first; for several texts a list of such lists.

    Probabilities are the model's, over its whole vocabulary; only ids that the tokenizer knows are offered. Puts the
    model into evaluation mode while it runs. ValueError for a text without a mask, or a `top_k` that is no size.
    """
    known = min(len(tokenizer), model.config.vocab_size)
    if not isinstance(top_k, int) or not 1 <= top_k <= known:
        raise ValueError(f"top_k={top_k!r} is impossible: take 1 to {known}, the size of the vocabulary.")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is impossible: take 1 or more.")
    rows = list(texts) if isinstance(texts, (list, tuple)) else [texts]
    for row in rows:
        if not isinstance(row, str) or tokenizer.mask_token not in row:
            raise ValueError(
                f"there is nothing to fill in {row!r}: put {tokenizer.mask_token} where a word is missing."
            )
    results: list[list[list[Prediction]]] = [[] for _ in rows]
    with evaluating(model):
        for places, batch in batches_by_length(tokenizer, rows, batch_size, model.device, progress):
            hidden = model.backbone(**batch).last_hidden_state
            masked = batch["input_ids"] == tokenizer.mask_token_id
            probabilities = model.lm_head(hidden[masked]).float().softmax(-1)[:, :known]  # scores for the masks only
            best = probabilities.topk(top_k)
            owners = [places[int(i)] for i in masked.nonzero()[:, 0]]
            for owner, values, ids in zip(owners, best.values.tolist(), best.indices.tolist(), strict=True):
                readable = [tokenizer.decode([i]) or " " for i in ids]
                results[owner].append([Prediction(*row) for row in zip(readable, ids, values, strict=True)])
    return results[0] if isinstance(texts, str) else results


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout and without gradients; afterwards the model is in the mode it was in."""
    were_training = [module for module in model.modules() if module.training]  # some may be frozen in evaluation mode
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in were_training:
            module.training = True


def batches_by_length(
    tokenizer: XLMRobertaTokenizer, texts: Sequence[str], batch_size: int, device: torch.device, progress: bool
) -> Iterator[tuple[list[int], Encoding]]:
    """Texts of like length together, so that little is padding: the numbers of the texts, and their tensors."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    starts = range(0, len(order), batch_size)
    for start in tqdm(starts, unit="batch", disable=not progress, delay=2):  # a bar only where there is time to see it
        places = order[start : start + batch_size]
        batch = tokenizer([texts[i] for i in places], padding=True, return_tensors="pt")
        yield places, batch.to(device)
