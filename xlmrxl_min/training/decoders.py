"""The recipes of the bundled decoders, tiny-decoder and tiny-translator. See notebooks/08_decoder.ipynb."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..inputs import check_number
from ..model import XLMRobertaXLConfig, XLMRobertaXLForCausalLM, XLMRobertaXLForMaskedLM, XLMRobertaXLModel
from ..tokenizer import XLMRobertaTokenizer
from .batching import batch_by_length
from .evaluation import continuations, next_token_accuracy, translation_pairs, word_alignment
from .loop import Batch, Transform
from .masking import check_masking, random_tokens
from .pretrain import Recipe, train
from .texts import Paragraph, udhr
from .translation import ParallelCorpus, alignment_loss, encode_sources, language_prompt


@dataclass(kw_only=True)
class DecoderRecipe(Recipe):
    random_start_prob: float  # of a text to start at any word, and not with a paragraph
    noise_prob: float  # of an input token, but not a label, to be replaced by a random token
    encoder: str | None = None  # for a translator: the checkpoint to attend to, and to start from
    phrase_prob: float = 0.0  # of a translator's example to consist of phrases
    alignment_loss_weight: float = 0.0  # of a translator

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("alignment_loss_weight", self.alignment_loss_weight, 0)
        if self.encoder is not None and (len(set(self.languages)) < 2 or not self.config.get("add_cross_attention")):
            raise ValueError("a translator needs two languages or more, and a config with add_cross_attention=True.")

    def pretrain(self, folder: Path, **options: Any) -> dict[str, Any]:
        return pretrain_decoder(self, folder, **options)


# ---- examples of tiny-decoder


def article_suffixes(
    recipe: DecoderRecipe, tokenizer: XLMRobertaTokenizer, text: Sequence[Paragraph], epoch: int
) -> list[list[int]]:
    """The token ids of every article, from a random paragraph, or a random word after its start, to the end.

    If texts always started with a paragraph, the model would never learn to continue anything else.
    """
    rng = random.Random(recipe.seed_of_epoch(epoch))
    articles: dict[tuple[str, int], list[str]] = {}
    for row in text:
        articles.setdefault((row.language, row.article), []).append(row.text)
    rows = []
    for paragraphs in articles.values():
        suffix = " ".join(paragraphs[rng.randrange(len(paragraphs)) :])
        if rng.random() < recipe.random_start_prob:
            has_spaces = " " in suffix  # else any character may be the first
            suffix = suffix[rng.choice([i for i, x in enumerate(suffix) if x == " " or not has_spaces]) :]
        rows.append(tokenizer.encode(suffix, truncation=True, max_length=512))
    return rows


def causal_batches(
    recipe: DecoderRecipe, tokenizer: XLMRobertaTokenizer, text: Sequence[Paragraph], epoch: int
) -> list[Batch]:
    """The `article_suffixes` of an epoch in batches with labels: every token, to be predicted one position before."""
    rows, pad = article_suffixes(recipe, tokenizer, text, epoch), tokenizer.pad_token_id
    batched = batch_by_length(rows, recipe.tokens_per_batch, pad, recipe.generator(epoch))
    return [
        {"input_ids": ids, "attention_mask": (ids != pad).long(), "labels": ids.masked_fill(ids == pad, -100)}
        for ids in batched
    ]


def token_noise(noise_prob: float, tokenizer: XLMRobertaTokenizer) -> Transform:
    """A transform for `fit`: replace input tokens by random ones, a fraction up to 2 `noise_prob` of each text."""
    check_masking(tokenizer, noise_prob, "noise_prob")

    def transform(batch: Batch, generator: torch.Generator) -> Batch:
        ids = batch["input_ids"]
        probs = 2 * noise_prob * torch.rand(len(ids), 1, generator=generator)
        replaced = (torch.rand(ids.shape, generator=generator) < probs) & (batch["labels"] > 3)
        return {**batch, "input_ids": ids.where(~replaced, random_tokens(ids, tokenizer, generator))}

    return transform


# ---- training and evaluation


def pretrain_decoder(recipe: DecoderRecipe, folder: Path, **options: Any) -> dict[str, Any]:
    torch.manual_seed(recipe.seed)
    tokenizer = XLMRobertaTokenizer.from_pretrained(recipe.vocabulary)
    model = XLMRobertaXLForCausalLM(XLMRobertaXLConfig(vocab_size=len(tokenizer), **recipe.config))
    text = [row for row in udhr(recipe.languages) if row.article != recipe.held_out_article]
    transform, loss_function, encoder = token_noise(recipe.noise_prob, tokenizer), None, None
    if recipe.encoder is not None:
        masked_lm = XLMRobertaXLForMaskedLM.from_pretrained(recipe.encoder)
        initial = model.state_dict()  # of which all but cross-attention is the encoder's
        model.load_state_dict(initial | {k: x for k, x in masked_lm.state_dict().items() if k in initial})
        encoder = masked_lm.backbone.eval()
        parallel_text = [row for row in text if row.article > 0]
        corpus = ParallelCorpus(parallel_text, encoder, tokenizer, recipe.phrase_prob)
        transform = encode_sources(encoder, transform)
        loss_function = alignment_loss(recipe.alignment_loss_weight)

    def batches(epoch: int) -> list[Batch]:
        if encoder is None:
            return causal_batches(recipe, tokenizer, text, epoch)
        return corpus.batches(recipe.seed_of_epoch(epoch), recipe.tokens_per_batch)

    evaluate = partial(evaluate_decoder, tokenizer=tokenizer, recipe=recipe, encoder=encoder)
    options |= {"transform": transform, "loss_function": loss_function}
    return train(recipe, model, tokenizer, batches, evaluate, folder, **options)


def evaluate_decoder(
    model: XLMRobertaXLForCausalLM, tokenizer: XLMRobertaTokenizer, recipe: DecoderRecipe,
    encoder: XLMRobertaXLModel | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Next-token accuracy on the training text and on the held-out article.

    Of tiny-decoder also its continuations; of a translator also its accuracy with a wrong source, and whether its
    heads attend to the right word.
    """
    text = [row for row in udhr(recipe.languages) if encoder is None or row.article > 0]
    training = [row for row in text if row.article != recipe.held_out_article]
    held_out = [row for row in text if row.article == recipe.held_out_article]
    record: dict[str, Any] = {}
    for name, rows in (("training_text", training), ("held_out_article", held_out)):
        if encoder is None:
            ids = [tokenizer.encode(row.text, truncation=True) for row in rows]
            record[name] = next_token_accuracy(model, tokenizer, ids)
            record[f"{name}_continuations"] = continuations(model, tokenizer, rows, training)
            continue
        prompt_lengths = [len(language_prompt(tokenizer, row.language)) - 1 for row in rows]
        for key, wrong_sources in ((name, None), (f"{name}_wrong_source", training)):
            sources, targets = translation_pairs(tokenizer, recipe.languages, rows, wrong_sources)
            record[key] = next_token_accuracy(model, tokenizer, targets, encoder, sources, prompt_lengths)
    if encoder is not None:
        record["word_alignment"] = word_alignment(model, encoder, tokenizer, recipe.languages)
    return record
