"""The recipe of the bundled encoders (`tiny`, `tiny-relative-key`, …): masked language modelling.

Walked through in notebooks/06_masked_language_model.ipynb.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..model import XLMRobertaXLConfig, XLMRobertaXLForMaskedLM
from ..tokenizer import XLMRobertaTokenizer
from . import recipes
from .batching import batch_by_length
from .evaluation import masked_accuracy, without_positions
from .loop import Batch
from .masking import dynamic_masking
from .texts import Paragraph, udhr


@dataclass(kw_only=True)
class EncoderRecipe(recipes.Recipe):
    mask_prob: float
    pair_prob: float  # of a paragraph to be paired with its translation
    split_prob: float  # of a paragraph without spaces to be tokenized in two parts


def encoder_examples(
    recipe: EncoderRecipe, tokenizer: XLMRobertaTokenizer, text: Sequence[Paragraph], epoch: int
) -> list[list[int]]:
    """The token ids of each paragraph of `text`, some of them with the same paragraph in another language.

    The pairs are those of translation language modelling (Lample and Conneau 2019, arXiv:1901.07291): the translation
    helps to predict a masked word. XLM-R itself was trained without parallel text.
    """
    languages = list(dict.fromkeys(row.language for row in text))
    by_position = {row[:3]: row.text for row in text}
    samples = torch.rand(len(text), 3, generator=recipe.generator(epoch)).tolist()
    rows = []
    for row, (kind, which, where) in zip(text, samples, strict=True):
        other = languages[int(which * len(languages))]
        translation = by_position.get((other, row.article, row.paragraph))
        # The paragraphs of the preamble differ from language to language, so there are no pairs of it.
        if kind < recipe.pair_prob and translation and other != row.language and row.article > 0:
            rows.append(tokenizer.encode(row.text, translation))
        elif kind > 1 - recipe.split_prob:
            rows.append(encode_in_two_parts(tokenizer, row.text, where))
        else:
            rows.append(tokenizer.encode(row.text))
    return rows


def encode_in_two_parts(tokenizer: XLMRobertaTokenizer, text: str, fraction: float) -> list[int]:
    """Tokenize a text without spaces as if a `<mask>` split it at `fraction` of its length.

    A piece after `<mask>` begins with ▁, which in Chinese or Japanese is otherwise found only at the start of a text.
    """
    if " " in text:
        return tokenizer.encode(text)
    at = int(fraction * len(text))
    return [*tokenizer.encode(text[:at])[:-1], *tokenizer.encode(text[at:])[1:]]


def pretrain_encoder(
    recipe: EncoderRecipe, folder: Path, *, minutes_between_saves: float = 5, progress: bool = True
) -> None:
    """Train by `recipe`; save checkpoint, vocabulary and record in `folder`. A state in `folder` is resumed."""
    torch.manual_seed(recipe.seed)
    tokenizer = XLMRobertaTokenizer.from_pretrained(recipe.vocabulary)
    text = [row for row in udhr(recipe.languages) if row.article != recipe.held_out_article]
    model = XLMRobertaXLForMaskedLM(XLMRobertaXLConfig(vocab_size=len(tokenizer), **recipe.config))

    def batches(epoch: int) -> list[Batch]:
        rows, pad = encoder_examples(recipe, tokenizer, text, epoch), tokenizer.pad_token_id
        batched = batch_by_length(rows, recipe.tokens_per_batch, pad, recipe.generator(epoch))
        return [{"input_ids": ids, "attention_mask": (ids != pad).long()} for ids in batched]

    recipes.train(
        recipe, model, tokenizer, batches, lambda saved: evaluate_encoder(saved, tokenizer, recipe), folder,
        transform=dynamic_masking(tokenizer, recipe.mask_prob), minutes_between_saves=minutes_between_saves,
        progress=progress,
    )  # fmt: skip


def evaluate_encoder(
    model: XLMRobertaXLForMaskedLM, tokenizer: XLMRobertaTokenizer, recipe: EncoderRecipe
) -> dict[str, Any]:
    """Accuracy with 15% of the tokens masked, on the training text and on the held-out article.

    On the training text also with shuffled tokens and without positions, to measure how much word order matters.
    """
    text = udhr(recipe.languages)
    training = [row for row in text if row.article != recipe.held_out_article]
    training_texts = [row.text for row in training]
    held_out_texts = [row.text for row in text if row.article == recipe.held_out_article]
    by_language = {}
    for language in recipe.languages:
        found = masked_accuracy(model, tokenizer, [row.text for row in training if row.language == language])
        by_language[language] = round(found["accuracy"], 3)
    return {
        "training_text": masked_accuracy(model, tokenizer, training_texts),
        "training_text_shuffled": masked_accuracy(model, tokenizer, training_texts, shuffled=True),
        "training_text_without_positions": masked_accuracy(without_positions(model), tokenizer, training_texts),
        "held_out_article": masked_accuracy(model, tokenizer, held_out_texts, rounds=10),
        "training_text_by_language": by_language,
    }
