"""`tiny-translator`: its training examples and alignment loss, and how to translate. See notebooks/08_decoder.ipynb."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ..inference.predict import check_model_type, check_tokenizer
from ..inputs import check_text
from ..model import PreTrainedModel, XLMRobertaXLForCausalLM, XLMRobertaXLModel
from ..tokenizer import XLMRobertaTokenizer
from ..utils import eval_mode, group_by_length, pad_rows
from .alignment import Phrase, align, expand_to_tokens, extract_phrases, split_into_words, subtract_mean_state
from .loop import Batch, LossFunction, Transform
from .texts import Paragraph


def encode_source(encoder: XLMRobertaXLModel, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """What tiny-translator attends to: b t -> b t e, the encoder's last hidden states plus three times its embeddings.

    `tiny`'s last hidden states alone say little about a token's position, and a decoder has to know where it is.
    """
    with eval_mode(encoder):
        states = encoder(ids, attention_mask, output_hidden_states=True).hidden_states
        return states[-1] + 3 * states[0]


def language_prompt(tokenizer: XLMRobertaTokenizer, language: str) -> list[int]:
    """The ids that a translation begins with: <s> and the pieces of the language code, such as "fr"."""
    return tokenizer.encode(language)[:-1]


def translate(
    model: XLMRobertaXLForCausalLM, encoder: XLMRobertaXLModel, tokenizer: XLMRobertaTokenizer, text: str,
    language: str, **options: Any,
) -> str:  # fmt: skip
    """Translate `text`, one text, into `language`, a code such as "fr". options: those of `model.generate`."""
    check_model_type(model, XLMRobertaXLForCausalLM)
    check_model_type(encoder, PreTrainedModel, "a model as encoder")
    check_tokenizer(model, tokenizer)
    for name, value in (("text", text), ("language", language)):
        check_text(value, name)
    states = encode_source(encoder, torch.tensor([tokenizer.encode(text)], device=encoder.device))
    prompt = torch.tensor([language_prompt(tokenizer, language)], device=model.device)
    out = model.generate(prompt, encoder_hidden_states=states, **{"max_new_tokens": 200, **options})
    return tokenizer.decode(out[0, prompt.shape[1] :].tolist(), skip_special_tokens=True)


# ---- training examples


class TranslationExample(NamedTuple):
    source: list[int]  # token ids
    target: list[int]  # <s>, the code of the target language, the translation, </s>
    code_length: int  # tokens of that code
    alignment: Tensor  # q k: where each token of the target should attend


class ParallelCorpus:
    """Paragraphs in several languages, word-aligned, and random translation examples made of them."""

    def __init__(
        self, text: Sequence[Paragraph], encoder: XLMRobertaXLModel, tokenizer: XLMRobertaTokenizer, phrase_prob: float
    ) -> None:
        self.tokenizer, self.phrase_prob = tokenizer, phrase_prob
        self.languages = list(dict.fromkeys(row.language for row in text))
        self.texts: dict[str, dict] = {language: {} for language in self.languages}
        for row in tqdm(text, desc="encoding", unit="text", delay=2):
            self.texts[row.language][row[1:3]] = split_into_words(row.text, encoder, tokenizer)
        for language, texts in self.texts.items():
            self.texts[language] = dict(zip(texts, subtract_mean_state(list(texts.values())), strict=True))
        self.alignments: dict[
            tuple, Tensor
        ] = {}  # (source language, target language, (article, paragraph)) -> q k of words
        self.phrases: dict[tuple[str, str], list[tuple[tuple[int, int], Phrase]]] = {}
        pairs = [(a, b) for a in self.languages for b in self.languages if a != b]
        for a, b in tqdm(pairs, desc="aligning", unit="pair", delay=2):
            common = self.common_paragraphs(a, b)
            found = align([self.texts[a][at] for at in common], [self.texts[b][at] for at in common])
            self.alignments |= {(a, b, at): alignment for at, alignment in zip(common, found, strict=True)}
            self.phrases[a, b] = [
                (at, phrase)
                for at, alignment in zip(common, found, strict=True)
                for phrase in extract_phrases(self.texts[a][at], self.texts[b][at], alignment)
            ]

    def common_paragraphs(self, a: str, b: str) -> list[tuple[int, int]]:
        return [at for at in self.texts[a] if at in self.texts[b]]

    def example(self, rng: random.Random) -> TranslationExample:
        """One or two paragraphs, or random phrases in a row, which only the source can predict."""
        a, b = rng.sample(self.languages, 2)
        if rng.random() < self.phrase_prob:
            parts = [rng.choice(self.phrases[a, b]) for _ in range(rng.randint(4, 16))]
        else:
            chosen = rng.sample(self.common_paragraphs(a, b), rng.choice((1, 1, 2)))
            lengths = [(at, len(self.texts[a][at].ids), len(self.texts[b][at].ids)) for at in chosen]
            parts = [(at, Phrase(slice(0, source), slice(0, target))) for at, source, target in lengths]
        source, target = [self.tokenizer.bos_token_id], language_prompt(self.tokenizer, b)
        code_length, placed = len(target) - 1, []
        for at, phrase in parts:
            x, y = self.texts[a][at], self.texts[b][at]
            of_tokens = expand_to_tokens(x, y, self.alignments[a, b, at])[phrase.target, phrase.source]
            placed.append((len(target), len(source), of_tokens))
            source += x.ids[phrase.source]
            target += y.ids[phrase.target]
        source.append(self.tokenizer.eos_token_id)
        target.append(self.tokenizer.eos_token_id)
        alignment = torch.zeros(len(target), len(source))
        for q, k, part in placed:
            alignment[q : q + part.shape[0], k : k + part.shape[1]] = part
        return TranslationExample(source, target, code_length, alignment)

    def batches(self, seed: int, max_tokens: int) -> list[Batch]:
        """240 random examples (the paragraphs of four languages), at most `max_tokens` target tokens per batch."""
        rng, pad = random.Random(seed), self.tokenizer.pad_token_id
        examples = [self.example(rng) for _ in range(240)]
        lengths, generator = [len(example.target) for example in examples], torch.Generator().manual_seed(seed)
        batches: list[Batch] = []
        for group in group_by_length(lengths, max_tokens=max_tokens, generator=generator):
            chosen = [examples[i] for i in group]
            source, target = (pad_rows(rows, pad) for rows in ([x.source for x in chosen], [x.target for x in chosen]))
            labels, alignment = target.masked_fill(target == pad, -100), torch.zeros(*target.shape, source.shape[1])
            for row, example in enumerate(chosen):
                labels[row, : 1 + example.code_length] = -100
                alignment[row, : len(example.target), : len(example.source)] = example.alignment
            batch = {"input_ids": target, "attention_mask": (target != pad).long(), "labels": labels}
            batches.append({**batch, "source": source, "alignment": alignment})
        return batches


def encode_sources(encoder: XLMRobertaXLModel, transform: Transform) -> Transform:
    """A transform for `fit`: apply `transform`, and replace a batch's source by the frozen encoder's states."""

    def with_states(batch: Batch, generator: torch.Generator) -> Batch:
        mask = (batch["source"] != encoder.config.pad_token_id).long()
        states = encode_source(encoder, batch["source"], mask).clone()  # an inference tensor, made usable for training
        rest = {name: value for name, value in transform(batch, generator).items() if name != "source"}
        return {**rest, "encoder_hidden_states": states, "encoder_attention_mask": mask}

    return with_states


def alignment_loss(weight: float) -> LossFunction:
    """The language model's loss plus `weight` times the cross-entropy of two heads with the alignment.

    Head 0 of the first layer should attend to the translation of the token just read, head 0 of the last layer to that
    of the next token. After Garg et al. 2019, section 3.
    """

    def loss(model: Any, batch: Batch) -> Tensor:
        inputs: dict[str, Any] = {name: x for name, x in batch.items() if name not in ("labels", "alignment")}
        out = model.backbone(**inputs, use_cache=False, output_attentions=True)
        labels = batch["labels"][:, 1:]
        labelled = labels != -100
        logits = model.lm_head(out.last_hidden_state[:, :-1][labelled])
        language_loss = model.mean_loss(logits, labels[labelled])
        first, last = out.cross_attentions[0][:, 0], out.cross_attentions[-1][:, 0, :-1]  # b q k
        of_heads = attention_cross_entropy(first, batch["alignment"])
        of_heads = of_heads + attention_cross_entropy(last, batch["alignment"][:, 1:])
        return language_loss + weight * of_heads

    return loss


def attention_cross_entropy(weights: Tensor, alignment: Tensor) -> Tensor:  # b q k, b q k
    """The mean over the queries that have an alignment."""
    losses = -(alignment * weights.clamp_min(1e-6).log()).sum(-1)
    return losses[alignment.sum(-1) > 0].mean()
