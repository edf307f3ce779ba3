"""Accuracy and loss of language models; where a translator's cross-attention looks."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from itertools import permutations
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..inference.predict import check_model_type, check_tokenizer
from ..inputs import as_sequence, as_texts, check_integer
from ..model import PreTrainedModel, XLMRobertaXLForCausalLM, XLMRobertaXLForMaskedLM, XLMRobertaXLModel
from ..tokenizer import XLMRobertaTokenizer
from ..utils import eval_mode, group_by_length, pad_rows
from .batching import batch_by_length
from .masking import check_masking, mask_tokens
from .texts import TranslatedWord, translated_words, udhr
from .translation import language_prompt

AnyModel = TypeVar("AnyModel", bound=PreTrainedModel)
MAX_TOKENS = 4096  # per batch


# ---- masked language models


def masked_accuracy(
    model: XLMRobertaXLForMaskedLM, tokenizer: XLMRobertaTokenizer, texts: str | Iterable[str], *,
    mask_prob: float = 0.15, rounds: int = 1, shuffled: bool = False, seed: int = 0,
) -> dict[str, float]:  # fmt: skip
    """How often the top prediction is right, with each token replaced by `<mask>` with probability `mask_prob`.

    texts: one, or several. rounds: how often, each time with other tokens masked. shuffled: put the tokens between
    `<s>` and `</s>` into random order first. Returns accuracy, loss (mean negative log-likelihood, in nats) and tokens,
    the number of masked positions. ValueError if there are none, and for arguments of another kind.
    """
    check_model_type(model, XLMRobertaXLForMaskedLM)
    check_tokenizer(model, tokenizer)
    check_masking(tokenizer, mask_prob)
    check_integer("rounds", rounds)
    texts, generator = as_texts(texts), make_generator(seed)
    rows = [tokenizer.encode(text, truncation=True) for text in texts] * rounds
    if shuffled:
        rows = [[row[0], *shuffle(row[1:-1], generator), row[-1]] for row in rows]
    score = Score()
    with eval_mode(model):
        for ids in batch_by_length(rows, MAX_TOKENS, tokenizer.pad_token_id, generator):
            masked = mask_tokens(ids, mask_prob, tokenizer, generator)[1] != -100
            score.add(masked_logits(model, ids.masked_fill(masked, tokenizer.mask_token_id), masked), ids[masked])
    if not score.tokens:
        raise ValueError(f"no token of {len(texts)} texts was masked: give more text, or more rounds.")
    return score.means()


def make_generator(seed: Any) -> torch.Generator:
    check_integer("seed", seed, -(2**63), 2**63 - 1)
    return torch.Generator().manual_seed(int(seed))


class Score:
    """Accuracy and loss over batches of predicted tokens."""

    correct, loss, tokens = 0, 0.0, 0

    def add(self, logits: Tensor, labels: Tensor) -> None:  # b v, b
        self.correct += int((logits.argmax(-1) == labels).sum())
        self.loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        self.tokens += len(labels)

    def means(self) -> dict[str, float]:
        if not self.tokens:
            raise ValueError("there is no token to predict: give rows of two tokens or more.")
        return {"accuracy": self.correct / self.tokens, "loss": self.loss / self.tokens, "tokens": self.tokens}


def shuffle(row: Sequence[int], generator: torch.Generator) -> list[int]:
    return [row[i] for i in torch.randperm(len(row), generator=generator).tolist()]


def masked_logits(model: XLMRobertaXLForMaskedLM, ids: Tensor, masked: Tensor) -> Tensor:  # b t, b t -> (masked) v
    """The logits at the `masked` positions only: those of all positions would be most of the work."""
    hidden = model.backbone(ids, ids != model.config.pad_token_id).last_hidden_state
    return model.lm_head(hidden[masked]).float()


def without_positions(model: AnyModel) -> AnyModel:
    """A copy of `model` whose position or distance embeddings are 0, so that the order of the tokens has no effect."""
    copied = copy.deepcopy(model)
    for name, parameter in copied.named_parameters():
        if name.endswith(("embeddings.position.weight", "attention.distance.weight")):
            parameter.data.zero_()
    return copied


# ---- decoders


def next_token_accuracy(
    model: XLMRobertaXLForCausalLM, tokenizer: XLMRobertaTokenizer, rows: Sequence[list[int]],
    encoder: XLMRobertaXLModel | None = None, sources: Sequence[list[int]] | None = None,
    prompt_lengths: Sequence[int] | None = None,
) -> dict[str, float]:  # fmt: skip
    """How often the most probable next token is the right one (teacher forcing).

    sources: the token ids that the encoder reads, for each row. prompt_lengths: tokens after the first that are given
    and not scored, for each row. Returns accuracy, loss (mean negative log-likelihood, in nats) and tokens. ValueError
    if there is nothing to score, and for arguments that do not belong together.
    """
    check_model_type(model, XLMRobertaXLForCausalLM)
    check_tokenizer(model, tokenizer)
    rows, score, pad = as_sequence(rows, "rows", "lists of token ids"), Score(), tokenizer.pad_token_id
    if (encoder is None) != (sources is None):
        raise ValueError("encoder and sources belong together: pass both, or none.")
    for name, values in (("sources", sources), ("prompt_lengths", prompt_lengths)):
        if values is not None and len(values) != len(rows):
            raise ValueError(f"{name} has {len(values)} entries, but there are {len(rows)} rows: pass one for each.")
    with eval_mode(model):
        for group in group_by_length([len(row) for row in rows], max_tokens=MAX_TOKENS):
            ids, cross_inputs = pad_rows([rows[i] for i in group], pad), dict[str, Any]()
            if encoder is not None and sources is not None:
                source = pad_rows([sources[i] for i in group], pad)
                mask = (source != pad).long()
                with eval_mode(encoder):
                    states = encoder(source, mask).last_hidden_state
                cross_inputs = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
            labels = ids[:, 1:].clone()
            for row, i in enumerate(group):
                labels[row, : prompt_lengths[i] if prompt_lengths is not None else 0] = pad
            hidden = model.backbone(ids, (ids != pad).long(), use_cache=False, **cross_inputs).last_hidden_state[:, :-1]
            score.add(model.lm_head(hidden[labels != pad]).float(), labels[labels != pad])
    return score.means()


# ---- translators


class WordPair(NamedTuple):
    """A word and its translation, each in a text in which it occurs once."""

    source: str
    source_word: str
    target: str
    target_word: str
    language: str  # of the target


def word_alignment(
    model: XLMRobertaXLForCausalLM, encoder: XLMRobertaXLModel, tokenizer: XLMRobertaTokenizer,
    languages: Iterable[str],
) -> dict[str, Any]:  # fmt: skip
    """`attention_to_words` for `texts.translated_words`. ValueError without two languages that it has."""
    languages = as_texts(languages, "languages")
    by_concept: dict[str, list[TranslatedWord]] = {}
    for word in translated_words():
        if word.language in languages:
            by_concept.setdefault(word.concept, []).append(word)
    text = {row[:3]: row.text for row in udhr(languages)}
    pairs = []
    for words in by_concept.values():
        for a, b in permutations(words, 2):
            source, target = (text[x.language, x.article, x.paragraph] for x in (a, b))
            pairs.append(WordPair(source, a.word, target, b.word, b.language))
    if not pairs:
        raise ValueError(f"there are no translated words for {', '.join(languages)}: name two languages or more.")
    return attention_to_words(model, encoder, tokenizer, pairs)


def attention_to_words(
    model: XLMRobertaXLForCausalLM, encoder: XLMRobertaXLModel, tokenizer: XLMRobertaTokenizer,
    pairs: Sequence[WordPair],
) -> dict[str, Any]:  # fmt: skip
    """How often cross-attention is highest at a token of the source's word.

    predicting: of each head, `l h`, at the query whose next token is the first one of the translation; reading: `l h`,
    at the query that has just read that token. best: of the best head; mean: of the weights' mean over layers and
    heads; of both. random_baseline: the mean fraction of source tokens that are right. pairs: how many there were.
    """
    predicting, reading, means, baseline = torch.zeros(()), torch.zeros(()), torch.zeros(2), 0.0
    for pair in pairs:
        prompt = language_prompt(tokenizer, pair.language)
        encoding = tokenizer(pair.target, return_offsets_mapping=True)
        query = word_tokens(encoding, pair.target, pair.target_word)[0] + len(prompt) - 1
        ids = torch.tensor([[*prompt, *encoding["input_ids"][1:]]])
        encoding = tokenizer(pair.source, return_offsets_mapping=True)
        right = torch.tensor(word_tokens(encoding, pair.source, pair.source_word))
        with eval_mode(model), eval_mode(encoder):
            states = encoder(torch.tensor([encoding["input_ids"]])).last_hidden_state
            out = model.backbone(ids, encoder_hidden_states=states, output_attentions=True, use_cache=False)
        weights = torch.cat(out.cross_attentions)[:, :, query - 1 : query + 1]  # l h q k, of one text
        hits = torch.isin(weights.argmax(-1), right).float()
        predicting, reading = predicting + hits[..., 0], reading + hits[..., 1]
        means += torch.isin(weights.mean((0, 1)).argmax(-1), right).float()
        baseline += len(right) / weights.shape[-1]
    names, count = ("predicting", "reading"), len(pairs)
    by_head = {name: hits / count for name, hits in zip(names, (predicting, reading), strict=True)}
    return {
        **{name: hits.tolist() for name, hits in by_head.items()},
        "best": {name: float(hits.max()) for name, hits in by_head.items()},
        "mean": dict(zip(names, (means / count).tolist(), strict=True)),
        "random_baseline": baseline / count,
        "pairs": count,
    }


def word_tokens(encoding: Any, text: str, word: str) -> list[int]:
    """The positions of the tokens of `word`, where it first occurs in `text`."""
    begin = text.index(word)
    spans = enumerate(encoding["offset_mapping"])
    return [i for i, (start, stop) in spans if start < begin + len(word) and stop > begin and stop > start]
