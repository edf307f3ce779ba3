"""How the bundled encoders are pre-trained: masked language modelling, translation pairs and a teacher.

A batch has four kinds of rows: passages of running text, translation pairs (Lample and Conneau 2019), sentences and
words. The mean vector of a sentence or word is drawn to the teacher's vector of the English sentence, or of the word
(Reimers and Gurevych 2020). XLM-R-XL itself was trained on passages alone, without pairs and without a teacher.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, reduce
from torch import Tensor

from ..inputs import check_integer, check_number
from ..model import XLMRobertaXLConfig, XLMRobertaXLForMaskedLM
from ..tokenizer import XLMRobertaTokenizer
from ..utils import pad_rows
from .dataset import CANDIDATES, STEPS_PER_EPOCH, Dataset, Sampler, draw_number, similar_in_length
from .loop import Batch
from .masking import mask_tokens
from .pretrain import Recipe, train
from .teacher import TeacherVectors, place_of, word_embeddings

PASSAGE_LENGTHS = (62, 126, 254)  # in tokens without the special ones, of which each batch has one
SHORT_PASSAGE_LENGTHS = (22,)  # at first
MAX_TOKENS = 254  # of a sentence
PAIR_TOKENS, SENTENCE_TOKENS, WORD_TOKENS = 70, 35, 5  # of a row, about
NEGATIVES = 1024  # texts that a text is compared with
TEMPERATURE = 0.05
UNMASKED_FRACTION = 0.25  # of the sentences, as those that are embedded later have no masks
Rows = tuple[list[list[int]], list[int]]  # token ids of each row; the text of each row that has a teacher's vector
ROW_KINDS = ("passages", "pairs", "sentences", "words")


@dataclass(kw_only=True)
class EncoderRecipe(Recipe):
    tokens_per_batch: dict[str, int]  # of each kind of rows, padding included
    short_fraction: float  # of the steps, at first, with short passages only: heads find the neighbours sooner
    mask_prob: Sequence[float]  # at the first and at the last step
    pair_mask_prob: Sequence[float]  # the same, in one text of each pair; the other has no masks
    pair_lengths: Sequence[int]  # longest text of a pair, in each of as many parts of the steps
    teacher_weight: float  # of the teacher's part of the loss
    start_from: str | None = None  # folder beside the new one, of the encoder whose weights training starts from

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = self.tokens_per_batch
        if not isinstance(sizes, dict) or sorted(sizes) != sorted(ROW_KINDS):
            raise ValueError(f"tokens_per_batch={sizes} is impossible: give a number for {', '.join(ROW_KINDS)}.")
        for kind, size in sizes.items():
            check_integer(f"tokens_per_batch[{kind!r}]", size)
        for name in ("mask_prob", "pair_mask_prob"):
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)) or len(value) != 2:
                raise ValueError(f"{name}={value} is impossible: give two numbers from 0 to 1.")
            for probability in value:
                check_number(name, probability, 0, 1)
        if not isinstance(self.pair_lengths, (list, tuple)) or not self.pair_lengths:
            raise ValueError(f"pair_lengths={self.pair_lengths} is impossible: give a list of one length or more.")
        for length in self.pair_lengths:
            check_integer("pair_lengths", length)
        check_number("short_fraction", self.short_fraction, 0, 1)
        check_number("teacher_weight", self.teacher_weight, 0)

    def pretrain(self, corpus: Path, folder: Path, **options: Any) -> dict[str, Any]:
        return pretrain_encoder(self, corpus, folder, **options)


class EncoderBatches:
    """A function of the epoch for `fit`: batches of four kinds of rows, masked."""

    def __init__(self, recipe: EncoderRecipe, dataset: Dataset, tokenizer: XLMRobertaTokenizer, of: Mapping) -> None:
        self.recipe, self.tokenizer, self.ids, self.of = recipe, tokenizer, dataset.ids, of
        self.rows = rows = dataset.rows
        groups = dataset.passages()
        self.passages = Sampler(groups, [rows[group[0]][:2] for group in groups])
        self.parallel, places = [], dataset.parallel()
        for length in recipe.pair_lengths:
            short = [[i for i in texts if len(self.ids[i]) <= length] for texts in places]
            groups = [texts for texts in short if len(texts) > 1]
            self.parallel.append(Sampler(groups, [("", rows[group[0]].source) for group in groups]))
        taught = [i for i, row in enumerate(rows) if place_of(row) in of]
        sentences = [i for i in taught if rows[i].source != "words"]
        self.sentences = Sampler(sentences, [rows[i][:2] for i in sentences])
        words = [i for i in taught if rows[i].source == "words"]
        self.words = Sampler(words, [rows[i][:2] for i in words])
        self.vector_numbers = {
            kind: torch.tensor([i for key, i in of.items() if (key[1] == "words") == (kind == "words")])
            for kind in ("sentences", "words")
        }

    def __call__(self, epoch: int) -> list[Batch]:
        generator = self.recipe.generator(epoch)
        return [self.batch(epoch * STEPS_PER_EPOCH + i, generator) for i in range(STEPS_PER_EPOCH)]

    def batch(self, step: int, generator: torch.Generator) -> Batch:
        done = min(step / self.recipe.steps, 1)
        mask_prob, pair_mask_prob = (
            first + (last - first) * done for first, last in (self.recipe.mask_prob, self.recipe.pair_mask_prob)
        )
        is_early = step < self.recipe.short_fraction * self.recipe.steps
        batch: dict[str, Tensor] = {}
        for kind in ROW_KINDS:
            max_tokens = self.recipe.tokens_per_batch[kind]
            if is_early and kind in ("passages", "pairs"):
                rows, taught = self.make_passages(max_tokens, generator, SHORT_PASSAGE_LENGTHS)
            elif kind == "pairs":
                part = min(int(done * len(self.parallel)), len(self.parallel) - 1)
                rows, taught = self.make_pairs(max_tokens, generator, self.parallel[part])
            else:
                rows, taught = getattr(self, f"make_{kind}")(max_tokens, generator)
            ids = pad_rows(rows, self.tokenizer.pad_token_id)
            if kind == "pairs" and not is_early:
                masked, labels = mask_one_text(ids, pair_mask_prob, self.tokenizer, generator)
            else:
                masked, labels = mask_tokens(ids, mask_prob, self.tokenizer, generator)
            if taught:
                keep = UNMASKED_FRACTION if kind == "sentences" else 1.0
                is_kept = torch.rand(len(ids), 1, generator=generator) < keep
                masked, labels = ids.where(is_kept, masked), labels.masked_fill(is_kept, -100)
                numbers = self.vector_numbers[kind]
                batch[f"{kind}_teacher"] = torch.tensor([self.of[place_of(self.rows[i])] for i in taught])
                negatives = torch.randint(len(numbers), (NEGATIVES,), generator=generator)
                batch[f"{kind}_negatives"] = numbers[negatives]
            batch |= {kind: masked, f"{kind}_labels": labels}
        return batch

    def make_passages(
        self, max_tokens: int, generator: torch.Generator, lengths: Sequence[int] = PASSAGE_LENGTHS
    ) -> Rows:
        """Each from the beginning of a random verse or paragraph on, if enough text follows it."""
        rows, length = [], lengths[draw_number(len(lengths), generator)]
        for texts in self.passages.draw(CANDIDATES * max_tokens // (length + 2), generator):
            ids = [i for text in texts for i in self.ids[text]]
            starts = [0, *accumulate(len(self.ids[text]) for text in texts[:-1])]
            possible = [start for start in starts if start + length <= len(ids)] or [0]
            start = possible[draw_number(len(possible), generator)]
            rows.append(self.add_special(ids[start : start + length]))
        return [rows[i] for i in similar_in_length(rows, max_tokens, generator)], []

    def make_pairs(self, max_tokens: int, generator: torch.Generator, parallel: Sampler) -> Rows:
        rows = []
        for texts in parallel.draw(CANDIDATES * max_tokens // PAIR_TOKENS, generator):
            a, b = torch.randperm(len(texts), generator=generator)[:2].tolist()
            rows.append(self.add_special(self.ids[texts[a]], self.ids[texts[b]]))
        return [rows[i] for i in similar_in_length(rows, max_tokens, generator)], []

    def make_taught(self, texts: Sampler, count: int, max_tokens: int, generator: torch.Generator) -> Rows:
        numbers = texts.draw(count, generator)
        rows = [self.add_special(self.ids[i][:MAX_TOKENS]) for i in numbers]
        chosen = similar_in_length(rows, max_tokens, generator)
        return [rows[i] for i in chosen], [numbers[i] for i in chosen]

    def make_sentences(self, max_tokens: int, generator: torch.Generator) -> Rows:
        return self.make_taught(self.sentences, CANDIDATES * max_tokens // SENTENCE_TOKENS, max_tokens, generator)

    def make_words(self, max_tokens: int, generator: torch.Generator) -> Rows:
        return self.make_taught(self.words, CANDIDATES * max_tokens // WORD_TOKENS, max_tokens, generator)

    def add_special(self, ids: list[int], pair: list[int] | None = None) -> list[int]:
        return self.tokenizer.build_inputs_with_special_tokens(ids, pair)


def mask_one_text(
    ids: Tensor, mask_prob: float, tokenizer: XLMRobertaTokenizer, generator: torch.Generator
) -> tuple[Tensor, Tensor]:  # b t -> b t, b t
    """`mask_tokens` in one text of each pair, first or second: the other one says what the masked words mean."""
    masked, labels = mask_tokens(ids, mask_prob, tokenizer, generator)
    is_second_text = (ids == tokenizer.eos_token_id).cumsum(1) > 0
    mask_second = torch.rand(len(ids), 1, generator=generator) < 0.5
    keep = is_second_text != mask_second
    return ids.where(keep, masked), labels.masked_fill(keep, -100)


def teacher_loss(states: Tensor, mask: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:  # b t e, b t, b e, k e
    """How the mean of each row's states differs from the teacher's vector, by itself and compared with other vectors.

    One minus the cosine, plus the divergence of its similarities to `negatives` from the teacher's.
    """
    mask = rearrange(mask, "b t -> b t 1").to(states.dtype)
    means = F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    own, wanted = (einsum(x, negatives, "b e, k e -> b k") / TEMPERATURE for x in (means, targets))
    divergence = F.kl_div(own.log_softmax(-1), wanted.log_softmax(-1), reduction="batchmean", log_target=True)
    return 1 - reduce(means * targets, "b e -> b", "sum").mean() + divergence


def encoder_loss(model: XLMRobertaXLForMaskedLM, batch: Batch, vectors: Tensor, teacher_weight: float) -> Tensor:
    """The masked language model's loss, plus `teacher_weight` times the teacher's of the sentences and of the words."""
    labelled, labels = [], []
    taught = torch.zeros(())
    for kind in ROW_KINDS:
        ids = batch[kind]
        mask = (ids != model.config.pad_token_id).long()
        states = model.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        is_labelled = batch[f"{kind}_labels"] != -100
        labelled.append(states[is_labelled])
        labels.append(batch[f"{kind}_labels"][is_labelled])
        if f"{kind}_teacher" in batch:
            targets, negatives = vectors[batch[f"{kind}_teacher"]], vectors[batch[f"{kind}_negatives"]]
            taught = taught + teacher_loss(states, mask, targets, negatives)
    return F.cross_entropy(model.lm_head(torch.cat(labelled)), torch.cat(labels)) + teacher_weight * taught


def initialize(model: Any, corpus: Path, tokenizer: XLMRobertaTokenizer, texts: Sequence[Sequence[int]]) -> None:
    """Set the weights that training starts from.

    The word embeddings are the teacher's, reduced to the hidden width. They have variance 1, absolute positions are
    sinusoids as large, and the blocks add nothing at first: with small embeddings all tokens soon had nearly the same
    hidden states, and the heads attended to single tokens. The logits start with variance 1, too, around how
    frequent the tokens of `texts` are.
    """
    width, embeddings = model.config.hidden_size, model.backbone.embeddings
    with torch.no_grad():
        embeddings.word.weight.copy_(word_embeddings(corpus, tokenizer, width))
        embeddings.word.weight[model.config.pad_token_id] = 0
        if model.config.position_embedding_type == "absolute":
            embeddings.position.weight.copy_(2**0.5 * sinusoids(len(embeddings.position.weight), width))
        for name, weight in model.backbone.layers.named_parameters():
            if name.endswith(("attention.out.weight", "feed_forward.down.weight")):
                weight.zero_()
        model.lm_head.norm.weight.fill_(width**-0.5)
        counts = torch.bincount(torch.tensor([i for ids in texts for i in ids]), minlength=len(tokenizer)) + 1
        model.lm_head.decoder.bias.copy_((counts / counts.sum()).log())


def sinusoids(positions: int, width: int) -> Tensor:  # t e
    """Sines and cosines of the position (Vaswani et al. 2017, section 3.5), with wavelengths up to the positions."""
    longest = positions / (2 * math.pi)
    frequencies = longest ** -torch.linspace(0, 1, width // 2)
    angles = rearrange(torch.arange(positions), "t -> t 1") * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def pretrain_encoder(recipe: EncoderRecipe, corpus: Path, folder: Path, **options: Any) -> dict[str, Any]:
    torch.manual_seed(recipe.seed)
    tokenizer = XLMRobertaTokenizer.from_pretrained(corpus)
    model = XLMRobertaXLForMaskedLM(XLMRobertaXLConfig(vocab_size=len(tokenizer), **recipe.config))
    dataset = Dataset(corpus, tokenizer)
    if recipe.start_from is None:
        initialize(model, corpus, tokenizer, dataset.ids)
    else:  # what only one of the two models has is left out: the vectors of relative positions start at random
        trained = XLMRobertaXLForMaskedLM.from_pretrained(folder.parent / recipe.start_from)
        model.load_state_dict(trained.state_dict(), strict=False)
    teacher = TeacherVectors(corpus, model.config.hidden_size)

    def loss_function(model: Any, batch: Batch) -> Tensor:
        return encoder_loss(model, batch, teacher.vectors, recipe.teacher_weight)

    batches = EncoderBatches(recipe, dataset, tokenizer, teacher.of)
    return train(recipe, model, tokenizer, batches, folder, loss_function=loss_function, **options)
