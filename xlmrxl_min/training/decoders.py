"""How the bundled decoders are pre-trained: tiny-decoder and tiny-translator. See notebooks/08_decoder.ipynb.

tiny-decoder learns to continue running text, tiny-translator to translate what a frozen encoder has read. Both start
from an encoder's weights (Rothe et al. 2020); only the cross-attention is new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..inputs import check_integer, check_option
from ..model import XLMRobertaXLConfig, XLMRobertaXLForCausalLM, XLMRobertaXLForMaskedLM, XLMRobertaXLModel
from ..tokenizer import XLMRobertaTokenizer
from ..utils import eval_mode, pad_rows
from .corpus import LANGUAGES
from .dataset import CANDIDATES, MAX_PAIR_TOKENS, STEPS_PER_EPOCH, Dataset, Sampler, draw_number, similar_in_length
from .excerpts import VERSIONS
from .loop import Batch, Transform
from .masking import word_starts
from .pretrain import Recipe, train
from .translation import language_prompt

WORD_START_PROB = 0.5  # of a passage to start with any word, and not with a verse or paragraph
PAIR_TOKENS = 40  # of one of them, about
LENGTHS = (4, 2, 1)  # of the passages of a batch: the longest possible, divided by one of these


@dataclass(kw_only=True)
class DecoderRecipe(Recipe):
    tokens_per_batch: int  # padding included; of a translator on either side
    encoder: str  # name or folder of the encoder whose weights it starts from; a translator attends to its states
    languages: list[str] | None = None  # None: all

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("tokens_per_batch", self.tokens_per_batch)
        for language in self.languages or ():
            check_option("language", language, LANGUAGES)

    def pretrain(self, corpus: Path, folder: Path, **options: Any) -> dict[str, Any]:
        return pretrain_decoder(self, corpus, folder, **options)


class PassageBatches:
    """A function of the epoch for `fit`: running text, each passage from a random place in a chapter or page on.

    If passages always began with a verse or paragraph, the model would not learn to continue anything else.
    """

    def __init__(self, recipe: DecoderRecipe, dataset: Dataset, tokenizer: XLMRobertaTokenizer) -> None:
        self.recipe, self.tokenizer, self.ids = recipe, tokenizer, dataset.ids
        running = [i for i, row in enumerate(dataset.rows) if row.source not in ("scratch", "words")]
        sections = dataset.group(running, lambda row: row[:4])
        self.sections = Sampler(sections, [dataset.rows[section[0]][:2] for section in sections])
        self.length = XLMRobertaXLConfig(**recipe.config).max_seq_len
        self.is_word_start = word_starts(tokenizer).tolist()

    def __call__(self, epoch: int) -> list[Batch]:
        generator = self.recipe.generator(epoch)
        return [self.batch(generator) for _ in range(STEPS_PER_EPOCH)]

    def batch(self, generator: torch.Generator) -> Batch:
        length = self.length // LENGTHS[draw_number(len(LENGTHS), generator)]
        count = CANDIDATES * self.recipe.tokens_per_batch // length + 1
        rows = [self.passage(texts, length, generator) for texts in self.sections.draw(count, generator)]
        chosen = similar_in_length(rows, self.recipe.tokens_per_batch, generator)
        return causal_batch([rows[i] for i in chosen], self.tokenizer.pad_token_id)

    def passage(self, texts: Sequence[int], length: int, generator: torch.Generator) -> list[int]:
        """`<s>`, a section from a random start on, if possible one that enough text follows, and `</s>` at its end."""
        ids: list[int] = []
        starts = []
        for text in texts:
            starts.append(len(ids))
            ids += self.ids[text]
        if torch.rand((), generator=generator) < WORD_START_PROB:
            starts = [i for i, token in enumerate(ids) if self.is_word_start[token]]
        starts = [start for start in starts if start + length <= len(ids)] or starts
        start = starts[draw_number(len(starts), generator)]
        return [self.tokenizer.bos_token_id, *ids[start:], self.tokenizer.eos_token_id][:length]


class TranslationBatches:
    """A function of the epoch for `fit`: texts (`source`) and their translations, in random directions.

    Of the versions of a text in one language all are sources, but one is a translation: else it could not be known
    which is meant.
    """

    def __init__(self, recipe: DecoderRecipe, dataset: Dataset, tokenizer: XLMRobertaTokenizer) -> None:
        self.recipe, self.tokenizer, self.ids, self.rows = recipe, tokenizer, dataset.ids, dataset.rows
        places = [[i for i in texts if len(self.ids[i]) <= MAX_PAIR_TOKENS] for texts in dataset.parallel()]
        places = [texts for texts in places if self.pairs(texts)]
        self.places = Sampler(places, [("", self.rows[texts[0]].source) for texts in places])
        self.prompts = {row.language: language_prompt(tokenizer, row.language) for row in self.rows}

    def __call__(self, epoch: int) -> list[Batch]:
        generator = self.recipe.generator(epoch)
        return [self.batch(generator) for _ in range(STEPS_PER_EPOCH)]

    def pairs(self, texts: Sequence[int]) -> list[tuple[int, int]]:
        """Of the texts of one place, which can be translated into which."""
        targets = [i for i in texts if self.rows[i].version in VERSIONS]
        return [(i, j) for i in texts for j in targets if self.rows[i].language != self.rows[j].language]

    def batch(self, generator: torch.Generator) -> Batch:
        sources, targets, prompts = [], [], []
        for texts in self.places.draw(CANDIDATES * self.recipe.tokens_per_batch // PAIR_TOKENS + 1, generator):
            pairs = self.pairs(texts)
            source, target = pairs[draw_number(len(pairs), generator)]
            prompts.append(self.prompts[self.rows[target].language])
            sources.append(self.tokenizer.build_inputs_with_special_tokens(self.ids[source]))
            targets.append([*prompts[-1], *self.ids[target], self.tokenizer.eos_token_id])
        longer = [max(pair, key=len) for pair in zip(sources, targets, strict=True)]
        chosen = similar_in_length(longer, self.recipe.tokens_per_batch, generator)
        batch = causal_batch([targets[i] for i in chosen], self.tokenizer.pad_token_id)
        for row, i in enumerate(chosen):
            batch["labels"][row, : len(prompts[i])] = -100
        return {**batch, "source": pad_rows([sources[i] for i in chosen], self.tokenizer.pad_token_id)}


def causal_batch(rows: Sequence[Sequence[int]], padding: int) -> dict[str, torch.Tensor]:
    """Every token is a label, to be predicted one position before."""
    ids = pad_rows(rows, padding)
    is_token = ids != padding
    return {"input_ids": ids, "attention_mask": is_token.long(), "labels": ids.masked_fill(~is_token, -100)}


def encode_sources(encoder: XLMRobertaXLModel) -> Transform:
    """A transform for `fit`: replace a batch's source by the frozen encoder's last hidden states."""

    def transform(batch: Batch, generator: torch.Generator) -> Batch:
        mask = (batch["source"] != encoder.config.pad_token_id).long()
        with eval_mode(encoder):
            states = encoder(batch["source"], mask).last_hidden_state
        rest = {name: value for name, value in batch.items() if name != "source"}
        # an inference tensor is made usable for training
        return {**rest, "encoder_hidden_states": states.clone(), "encoder_attention_mask": mask}

    return transform


def pretrain_decoder(recipe: DecoderRecipe, corpus: Path, folder: Path, **options: Any) -> dict[str, Any]:
    torch.manual_seed(recipe.seed)
    tokenizer = XLMRobertaTokenizer.from_pretrained(recipe.encoder)
    model: Any = XLMRobertaXLForCausalLM(XLMRobertaXLConfig(vocab_size=len(tokenizer), **recipe.config))
    trained = XLMRobertaXLForMaskedLM.from_pretrained(recipe.encoder)
    if trained.config.hidden_size != model.config.hidden_size:
        raise ValueError(f"hidden_size={model.config.hidden_size} must be the encoder's, {trained.config.hidden_size}.")
    # What only one of the two models has is left out: cross-attention, and layers that the decoder lacks.
    model.load_state_dict(trained.state_dict(), strict=False)
    dataset = Dataset(corpus, tokenizer, recipe.languages)
    if not model.config.add_cross_attention:
        return train(recipe, model, tokenizer, PassageBatches(recipe, dataset, tokenizer), folder, **options)
    for layer in model.backbone.layers:  # adds nothing at first
        torch.nn.init.zeros_(layer.cross_attention.out.weight)
    batches, transform = TranslationBatches(recipe, dataset, tokenizer), encode_sources(trained.backbone)
    return train(recipe, model, tokenizer, batches, folder, transform=transform, **options)
