"""How the two decoders of `pretrained/` were trained. Walked through in notebooks/08_decoder.ipynb.

    python -m xlmrxl_min.training.decoders xlmrxl_min/pretrained/tiny-decoder/recipe.json --into FOLDER

Stopped at any time, the same command goes on from the last saved state, as `xlmrxl_min.training.loop` does, whose loop this is.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..model import (
    XLMRobertaXLConfig,
    XLMRobertaXLForCausalLM,
    XLMRobertaXLForMaskedLM,
    XLMRobertaXLModel,
    cross_entropy,
)
from ..tokenizer import XLMRobertaTokenizer
from ..utils import eval_mode
from .alignment import Phrase, align, by_token, centred, phrases, split
from .loop import Batch, Change, Loss, batches, fit_by, groups_by_length, main, padded, save_result, word_begins
from .texts import Paragraph, Word, udhr, words

PROMPT, CONTINUED = 8, 32  # tokens, of the measured continuations


@dataclass
class DecoderRecipe:
    """All that decides what a training run gives; names as in `train.Recipe`."""

    languages: list[str]
    vocabulary: str
    config: dict[str, Any]
    held_out_article: int
    steps: int
    tokens_per_batch: int
    learning_rate: float
    matrix_learning_rate: float
    matrix_weight_decay: float
    warmup_steps: int
    decay_fraction: float
    anywhere_prob: float  # how many of the texts begin at any word of an article, and not with a paragraph
    noise_prob: float  # how many of the tokens that are read, but not of those to be found, are any other token
    dtype: str
    seed: int
    encoder: str | None = None  # a checkpoint to look at by cross-attention, and to begin with: a translator
    phrase_prob: float = 0.0  # how many of a translator's examples are phrases from everywhere
    guidance: float = 0.0  # weight of the loss that says where to look


# ---- texts that go on


def beginnings(
    recipe: DecoderRecipe, tokenizer: XLMRobertaTokenizer, text: Sequence[Paragraph], epoch: int
) -> list[list[int]]:
    """Every article once, from a random paragraph of it to its end; an `anywhere_prob` from any word of that on.

    A text that always began with a paragraph would teach the model nothing of how to go on from anything else.
    """
    rng, articles = random.Random(recipe.seed * 1_000_003 + epoch), {}
    for row in text:
        articles.setdefault((row.language, row.article), []).append(row.text)
    rows = []
    for paragraphs in articles.values():
        words = " ".join(paragraphs[rng.randrange(len(paragraphs)) :])
        if rng.random() < recipe.anywhere_prob:
            is_spaced = " " in words  # Chinese and Japanese: any character
            words = words[rng.choice([i for i, letter in enumerate(words) if letter == " " or not is_spaced]) :]
        rows.append(tokenizer.encode(words, truncation=True, max_length=512))
    return rows


def continued(
    recipe: DecoderRecipe, tokenizer: XLMRobertaTokenizer, text: Sequence[Paragraph], epoch: int
) -> list[Batch]:
    """The `beginnings` of an epoch in batches: every token is the label of the place before it."""
    order = torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch)
    rows, pad = beginnings(recipe, tokenizer, text, epoch), tokenizer.pad_token_id
    made = batches(rows, recipe.tokens_per_batch, pad, order)
    return [
        {"input_ids": ids, "attention_mask": (ids != pad).long(), "labels": ids.masked_fill(ids == pad, -100)}
        for ids in made
    ]


def noisy(share: float, tokenizer: XLMRobertaTokenizer) -> Change:
    """For `fit`: replaces up to twice the `share` of a text's tokens by any others; what is to be found stays."""

    def change(batch: Batch, generator: torch.Generator) -> Batch:
        ids = batch["input_ids"]
        shares = 2 * share * torch.rand(len(ids), 1, generator=generator)
        hit = (torch.rand(ids.shape, generator=generator) < shares) & (batch["labels"] > 3)
        anything = torch.randint(4, tokenizer.mask_token_id, ids.shape, generator=generator)
        return {**batch, "input_ids": ids.where(~hit, anything)}

    return change


# ---- paragraphs with their translations


class Example(NamedTuple):
    source: list[int]  # tokens
    target: list[int]  # <s>, the code of the language to be written, the translation, </s>
    code: int  # tokens of that code
    looks: Tensor  # q k: where each token of the target should look


class Parallel:
    """Paragraphs word by word, how they translate one another, and examples made of them."""

    def __init__(self, recipe: DecoderRecipe, encoder: XLMRobertaXLModel, tokenizer: XLMRobertaTokenizer) -> None:
        begins = word_begins(tokenizer)
        rows = [row for row in udhr(recipe.languages) if row.article not in (0, recipe.held_out_article)]
        self.recipe, self.tokenizer, by_language = recipe, tokenizer, {language: {} for language in recipe.languages}
        for row in tqdm(rows, desc="reading", unit="text", delay=2):
            by_language[row.language][row[1:3]] = split(row.text, encoder, tokenizer, begins)
        self.texts = {
            language: dict(zip(texts, centred(list(texts.values())), strict=True))
            for language, texts in by_language.items()
        }
        self.aligned: dict[tuple, Tensor] = {}  # (source, target language, article, paragraph) -> q k of words
        self.phrases: dict[tuple[str, str], list[tuple[tuple, Phrase]]] = {}
        pairs = [(a, b) for a in recipe.languages for b in recipe.languages if a != b]
        for a, b in tqdm(pairs, desc="aligning", unit="pair", delay=2):
            places = [place for place in self.texts[a] if place in self.texts[b]]
            found = align([self.texts[a][place] for place in places], [self.texts[b][place] for place in places])
            self.aligned |= {(a, b, place): one for place, one in zip(places, found, strict=True)}
            self.phrases[a, b] = [
                (place, phrase)
                for place, one in zip(places, found, strict=True)
                for phrase in phrases(self.texts[a][place], self.texts[b][place], one)
            ]

    def example(self, rng: random.Random) -> Example:
        """One or two whole paragraphs, or phrases from everywhere, one after another: those can only be read, as no
        memory says what follows.
        """
        a, b = rng.sample(self.recipe.languages, 2)
        if rng.random() < self.recipe.phrase_prob:
            parts = [rng.choice(self.phrases[a, b]) for _ in range(rng.randint(4, 16))]
        else:
            places = [place for place in self.texts[a] if place in self.texts[b]]
            whole = [
                (place, self.texts[a][place], self.texts[b][place])
                for place in rng.sample(places, rng.choice((1, 1, 2)))
            ]
            parts = [(place, Phrase(range(len(x.ids)), range(len(y.ids)))) for place, x, y in whole]
        source, target, looks = [self.tokenizer.bos_token_id], prompt(self.tokenizer, b), []
        code = len(target) - 1
        for place, phrase in parts:
            x, y = self.texts[a][place], self.texts[b][place]
            looks.append((len(source), len(target), phrase, by_token(x, y, self.aligned[a, b, place])))
            source += x.ids[phrase.source.start : phrase.source.stop]
            target += y.ids[phrase.target.start : phrase.target.stop]
        source.append(self.tokenizer.eos_token_id)
        target.append(self.tokenizer.eos_token_id)
        table = torch.zeros(len(target), len(source))
        for k, q, phrase, one in looks:
            part = one[phrase.target.start : phrase.target.stop, phrase.source.start : phrase.source.stop]
            table[q : q + len(phrase.target), k : k + len(phrase.source)] = part
        return Example(source, target, code, table)

    def batches(self, epoch: int) -> list[Batch]:
        """As many examples as there are paragraphs in four languages, in batches of like length."""
        rng, pad = random.Random(self.recipe.seed * 1_000_003 + epoch), self.tokenizer.pad_token_id
        drawn = [self.example(rng) for _ in range(240)]
        order = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + epoch)
        made = []
        for group in groups_by_length([len(one.target) for one in drawn], self.recipe.tokens_per_batch, order):
            some = [drawn[i] for i in group]
            source, target = padded([one.source for one in some], pad), padded([one.target for one in some], pad)
            labels, looks = target.masked_fill(target == pad, -100), torch.zeros(*target.shape, source.shape[1])
            for row, one in enumerate(some):
                labels[row, : 1 + one.code] = -100
                looks[row, : len(one.target), : len(one.source)] = one.looks
            made.append({"input_ids": target, "attention_mask": (target != pad).long(), "labels": labels,
                         "source": source, "looks": looks})  # fmt: skip
        return made


def guided_loss(guidance: float) -> Loss:
    """The model's loss, and the cross-entropy between where two heads look and where they should.

    Head 0 of the first layer is to look at what the token that was just read translates, to know where the text stands;
    head 0 of the last layer at what the next token will translate. After Garg et al. 2019, section 3.
    """

    def loss(model: XLMRobertaXLForCausalLM, batch: Batch) -> Tensor:
        inputs = {name: value for name, value in batch.items() if name not in ("labels", "looks")}
        out = model.backbone(**inputs, use_cache=False, output_attentions=True)
        following, labels = batch["looks"][:, 1:], batch["labels"][:, 1:]
        chosen = labels != -100
        read = cross_entropy(model.lm_head(out.last_hidden_state[:, :-1][chosen]).float(), labels[chosen])
        now, then = out.cross_attentions[0][:, 0], out.cross_attentions[-1][:, 0, :-1]
        return read + guidance * (missed(now, batch["looks"]) + missed(then, following))

    return loss


def missed(weights: Tensor, looks: Tensor) -> Tensor:  # b q k, b q k
    """Cross-entropy, a mean over the queries that should look somewhere."""
    losses = -(looks * weights.clamp_min(1e-6).log()).sum(-1)
    return losses[looks.sum(-1) > 0].mean()


def read(encoder: XLMRobertaXLModel, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:  # b t -> b t e
    """What tiny-translator looks at: the encoder's last states, with three times its embeddings added.

    In `tiny`'s last states little is left of where a token stands, and to find its place in a text a decoder needs it.
    """
    with eval_mode(encoder):
        states = encoder(ids, attention_mask, output_hidden_states=True).hidden_states
        return states[-1] + 3 * states[0]


def reading(encoder: XLMRobertaXLModel, change: Change) -> Change:
    """For `fit`: has the source read by the encoder, which does not learn, and `change` done."""

    def with_states(batch: Batch, generator: torch.Generator) -> Batch:
        source = batch["source"]
        mask = (source != encoder.config.pad_token_id).long()
        states = read(encoder, source, mask).clone()  # made without gradients, and for a pass with them
        rest = {name: value for name, value in change(batch, generator).items() if name != "source"}
        return {**rest, "encoder_hidden_states": states, "encoder_attention_mask": mask}

    return with_states


# ---- the whole run


def pretrain(recipe: DecoderRecipe, folder: Path, *, minutes_between_saves: float = 5, progress: bool = True) -> None:
    """Train by `recipe`; leave in `folder` a checkpoint, its vocabulary and a record. Resumes what it finds there."""
    torch.manual_seed(recipe.seed)
    tokenizer = XLMRobertaTokenizer.from_pretrained(recipe.vocabulary)
    model = XLMRobertaXLForCausalLM(XLMRobertaXLConfig(vocab_size=len(tokenizer), **recipe.config))
    change, loss, encoder = noisy(recipe.noise_prob, tokenizer), None, None
    if recipe.encoder is None:
        text = [row for row in udhr(recipe.languages) if row.article != recipe.held_out_article]
        batches_of = partial(continued, recipe, tokenizer, text)
    else:
        whole = XLMRobertaXLForMaskedLM.from_pretrained(recipe.encoder)
        shared = {name: x for name, x in whole.state_dict().items() if name in model.state_dict()}
        model.load_state_dict({**model.state_dict(), **shared})  # all but cross-attention
        encoder = whole.backbone.eval()
        batches_of = Parallel(recipe, encoder, tokenizer).batches
        change, loss = reading(encoder, change), guided_loss(recipe.guidance)
    saving = {"folder": folder, "minutes_between_saves": minutes_between_saves, "progress": progress}
    history = fit_by(recipe, model, batches_of, change=change, loss=loss, **saving)
    measured = partial(evaluate, tokenizer=tokenizer, recipe=recipe, encoder=encoder)
    save_result(folder, model, tokenizer, history, measured, "xlmrxl_min.training.decoders")


# ---- use


def prompt(tokenizer: XLMRobertaTokenizer, language: str) -> list[int]:
    """What a translation into a language begins with: <s> and the pieces of its code, such as "fr"."""
    return tokenizer.encode(language)[:-1]


def translate(
    model: XLMRobertaXLForCausalLM,
    encoder: XLMRobertaXLModel,
    tokenizer: XLMRobertaTokenizer,
    text: str,
    language: str,
    **options: Any,
) -> str:
    """`text` in another language, by a decoder that looks at what an encoder has read. options: generate's."""
    states = read(encoder, torch.tensor([tokenizer.encode(text)], device=encoder.device))
    start = torch.tensor([prompt(tokenizer, language)], device=model.device)
    out = model.generate(start, encoder_hidden_states=states, **{"max_new_tokens": 200, **options})
    return tokenizer.decode(out[0, start.shape[1] :].tolist(), skip_special_tokens=True)


# ---- measuring


def evaluate(
    model: XLMRobertaXLForCausalLM,
    tokenizer: XLMRobertaTokenizer,
    recipe: DecoderRecipe,
    encoder: XLMRobertaXLModel | None = None,
) -> dict[str, Any]:
    """Of the text that was studied and of the article that was not: what comes next, and how a beginning goes on.

    Of a translator: also with another paragraph to look at; and how often its heads look at the right word.
    """
    text = [row for row in udhr(recipe.languages) if encoder is None or row.article > 0]
    parts = {"own_text": [row for row in text if row.article != recipe.held_out_article]}
    parts["held_out_article"] = [row for row in text if row.article == recipe.held_out_article]
    record: dict[str, Any] = {}
    for name, rows in parts.items():
        if encoder is None:
            record[name] = next_token_accuracy(
                model, tokenizer, [tokenizer.encode(row.text, truncation=True) for row in rows]
            )
            record[f"{name}_continued"] = continuations(model, tokenizer, rows, parts["own_text"])
            continue
        for key, is_other in ((name, False), (f"{name}_beside_another", True)):
            sources, targets = translations(tokenizer, recipe, rows, parts["own_text"] if is_other else None)
            skip = [len(prompt(tokenizer, row.language)) - 1 for row in rows]
            record[key] = next_token_accuracy(model, tokenizer, targets, encoder, sources, skip)
    if encoder is not None:
        record["looks_at_the_word"] = word_alignment(model, encoder, tokenizer, recipe.languages)
    return record


def translations(
    tokenizer: XLMRobertaTokenizer,
    recipe: DecoderRecipe,
    rows: Sequence[Paragraph],
    strangers: Sequence[Paragraph] | None,
) -> tuple[list[list[int]], list[list[int]]]:
    """For every paragraph, itself in another language, by a fixed seed, and as it is to be written. strangers: where
    the source is to be taken from, any other paragraph than the right one.
    """
    rng, by_place = random.Random(0), {row[:3]: row for row in udhr(recipe.languages)}
    sources, targets = [], []
    for row in rows:
        others = [
            language for language in recipe.languages if (language, *row[1:3]) in by_place and language != row.language
        ]
        source = by_place[(rng.choice(others), *row[1:3])]
        if strangers is not None:
            source = rng.choice([one for one in strangers if one.language == source.language and one[1:3] != row[1:3]])
        sources.append(tokenizer.encode(source.text, truncation=True))
        targets.append(
            [*prompt(tokenizer, row.language), *tokenizer.encode(row.text, truncation=True, max_length=500)[1:]]
        )
    return sources, targets


def next_token_accuracy(
    model: XLMRobertaXLForCausalLM,
    tokenizer: XLMRobertaTokenizer,
    rows: Sequence[list[int]],
    encoder: XLMRobertaXLModel | None = None,
    sources: Sequence[list[int]] | None = None,
    skip: Sequence[int] | None = None,
) -> dict[str, float]:
    """How often the most probable next token is the right one; loss: mean negative log-likelihood, nats.

    skip: of each row, how many tokens after the first are no prediction but given.
    """
    hits, loss, tokens, pad = 0, 0.0, 0, tokenizer.pad_token_id
    with eval_mode(model):
        for group in groups_by_length([len(row) for row in rows], 4096):
            ids, across = padded([rows[i] for i in group], pad), {}
            if encoder is not None:
                source = padded([sources[i] for i in group], pad)
                across = {"encoder_attention_mask": (source != pad).long()}
                across["encoder_hidden_states"] = read(encoder, source, across["encoder_attention_mask"])
            answers = ids[:, 1:].clone()
            for place, i in enumerate(group):
                answers[place, : 0 if skip is None else skip[i]] = pad
            hidden = model.backbone(ids, (ids != pad).long(), use_cache=False, **across).last_hidden_state[:, :-1]
            logits, answers = model.lm_head(hidden[answers != pad]).float(), answers[answers != pad]
            hits += int((logits.argmax(-1) == answers).sum())
            loss += float(F.cross_entropy(logits, answers, reduction="sum"))
            tokens += len(answers)
    return {"accuracy": hits / tokens, "loss": loss / tokens, "tokens": tokens}


def word_alignment(
    model: XLMRobertaXLForCausalLM,
    encoder: XLMRobertaXLModel,
    tokenizer: XLMRobertaTokenizer,
    languages: Sequence[str],
) -> dict[str, Any]:
    """For the words of `pretrained.words`, in every pair of languages: does a head look most at the word's translation?

    ahead: of the query whose next token is the word's first, of every layer and head; at: of the query that has just
    read it. chance: the word's share of the source's tokens.
    """
    known: dict[str, list[Word]] = {}
    for word in words():
        if word.language in languages:
            known.setdefault(word.concept, []).append(word)
    text = {row[:3]: row.text for row in udhr(languages)}
    ahead, at, chance, count = torch.zeros(()), torch.zeros(()), 0.0, 0
    for same in known.values():
        for target in same:
            sources = [one for one in same if one != target]
            mine = tokenizer(text[(target.language, *target[1:3])], return_offsets_mapping=True)
            lead = prompt(tokenizer, target.language)
            place = places(mine, text[(target.language, *target[1:3])], target.word)[0] + len(lead) - 1
            ids = torch.tensor([[*lead, *mine["input_ids"][1:]]])
            for source in sources:
                there = text[(source.language, *source[1:3])]
                theirs = tokenizer(there, return_offsets_mapping=True)
                right = torch.tensor(places(theirs, there, source.word))
                with eval_mode(model):
                    states = read(encoder, torch.tensor([theirs["input_ids"]]))
                    out = model.backbone(ids, encoder_hidden_states=states, output_attentions=True, use_cache=False)
                weights = torch.cat(out.cross_attentions)  # l h q k, of one text
                ahead = ahead + torch.isin(weights[:, :, place - 1].argmax(-1), right).float()
                at = at + torch.isin(weights[:, :, place].argmax(-1), right).float()
                chance += len(right) / weights.shape[-1]
                count += 1
    return {"ahead": (ahead / count).tolist(), "at": (at / count).tolist(), "chance": chance / count, "pairs": count}


def places(encoding: Any, text: str, word: str) -> list[int]:
    """The tokens that a word of a text is made of."""
    begin = text.index(word)
    spans = enumerate(encoding["offset_mapping"])
    return [i for i, (start, stop) in spans if start < begin + len(word) and stop > begin and stop > start]


def continuations(
    model: XLMRobertaXLForCausalLM,
    tokenizer: XLMRobertaTokenizer,
    rows: Sequence[Paragraph],
    studied: Sequence[Paragraph],
) -> dict[str, float]:
    """Go on greedily from the first `PROMPT` tokens of each paragraph that is long enough, `CONTINUED` tokens far.

    recited: the share of places that hold the paragraph's own token. in_language: of the tokens that were written, the
    share that the same language's studied text holds; in_another: that a language holds, on average over the others.
    """
    known: dict[str, set[int]] = {}
    for row in studied:
        known.setdefault(row.language, set()).update(tokenizer.encode(row.text)[1:-1])
    ids = [tokenizer.encode(row.text) for row in rows]
    long = [i for i, row in enumerate(ids) if len(row) > PROMPT + 2]
    written = []
    for start in range(0, len(long), 64):
        prompts = torch.tensor([ids[i][:PROMPT] for i in long[start : start + 64]])
        written += model.generate(prompts, max_new_tokens=CONTINUED)[:, PROMPT:].tolist()
    places = hits = tokens = inside = 0
    elsewhere = 0.0
    for i, new in zip(long, written, strict=True):
        answer = ids[i][PROMPT : PROMPT + CONTINUED]
        places += len(answer)
        hits += sum(a == b for a, b in zip(answer, new, strict=False))
        written_words = [token for token in new if token > 3]
        tokens += len(written_words)
        inside += sum(token in known[rows[i].language] for token in written_words)
        others = [language for language in known if language != rows[i].language]
        elsewhere += sum(token in known[other] for token in written_words for other in others) / max(1, len(others))
    tokens = max(1, tokens)  # nothing may have been written
    shares = {"recited": hits / max(1, places), "in_language": inside / tokens, "in_another": elsewhere / tokens}
    return {**shares, "texts": len(long)}


if __name__ == "__main__":
    main(__doc__, DecoderRecipe, pretrain)
