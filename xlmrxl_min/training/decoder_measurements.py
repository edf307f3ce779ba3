"""What a decoder knows of text that it has not studied, as numbers: `python -m xlmrxl_min evaluate CHECKPOINT`.

measurements.py does the same for encoders.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..checkpoints.locate import locate
from ..model import XLMRobertaXLForCausalLM, XLMRobertaXLModel
from ..tokenizer import XLMRobertaTokenizer
from .corpus import LANGUAGES, read_corpus
from .evaluation import WordPair, attention_to_words, next_token_accuracy, word_alignment
from .measurements import (
    FULL,
    LARGE,
    Effort,
    Passages,
    Places,
    accuracy_by_language,
    by_place,
    choose_pairs,
    percent,
    rounded,
    to_markdown,
)
from .pretrain import RECIPE_FILE, load_recipe
from .translation import language_prompt, translate

PROMPT_TOKENS, CONTINUATION_TOKENS = 16, 48
TOP_P = 0.9
NGRAM = 4
EXAMPLES = 2  # of a language, or of two
WORD_PAIRS = 1000  # at most
MIN_DICE = 0.5
MIN_PLACES, MAX_PLACES = 5, 1000  # in which a word occurs


def evaluate_decoder(source: Any, corpus: Path, effort: Effort = FULL, *, progress: bool = True) -> dict[str, Any]:
    """All measurements of a decoder, for its record.json. source: its name or folder; corpus: a folder.

    Of a translator its recipe.json names the encoder and the languages.
    """
    location: Any = locate(source)
    model: Any = XLMRobertaXLForCausalLM.from_pretrained(location)
    tokenizer = XLMRobertaTokenizer.from_pretrained(location)
    if not model.config.add_cross_attention:
        rows, others = (read_corpus(corpus, held_out=held_out) for held_out in (True, False))
        passages = Passages(model, tokenizer, rows, others, effort.passages)
        next_token = next_token_by_language(model, tokenizer, passages, progress=progress)
        return rounded({
            "next_token": next_token, "continuations": continuations(model, tokenizer, passages, progress=progress)
        })  # fmt: skip
    recipe: Any = load_recipe(location.find(RECIPE_FILE))
    encoder = XLMRobertaXLModel.from_pretrained(recipe.encoder, add_pooling_layer=False)
    languages = recipe.languages or LANGUAGES
    held_out, studied = (
        by_place(row for row in read_corpus(corpus, held_out=held_out) if row.language in languages)
        for held_out in (True, False)
    )
    parts = model, encoder, tokenizer
    results: dict[str, Any] = {
        name: translation_accuracy(*parts, places, languages, effort.pairs, progress=progress)
        for name, places in (("held_out", held_out), ("studied", studied))
    }
    results["word_alignment"] = {"by_hand": word_alignment(*parts, languages)}
    if pairs := translated_words_by_counting(studied, held_out, languages, effort.pairs):
        results["word_alignment"]["by_counting"] = attention_to_words(*parts, pairs)
    results["examples"] = translations(*parts, held_out, languages)
    return rounded(results)


# ---- tiny-decoder


def next_token_by_language(
    model: XLMRobertaXLForCausalLM, tokenizer: XLMRobertaTokenizer, passages: Passages, *, progress: bool = True
) -> dict[str, Any]:
    """Next-token accuracy and loss on held-out and on studied passages, by language.

    unigram: the accuracy on held-out text of always predicting the most frequent token of studied text. mean: over the
    languages of which more than 100,000 words were studied.
    """

    def measure(texts: list[str]) -> dict[str, float]:
        return next_token_accuracy(model, tokenizer, [tokenizer.encode(text)[:-1] for text in texts])

    return accuracy_by_language(tokenizer, passages, measure, "next token", progress)


def continuations(
    model: XLMRobertaXLForCausalLM, tokenizer: XLMRobertaTokenizer, passages: Passages, *, progress: bool = True
) -> dict[str, Any]:
    """How the model continues held-out passages: greedy, sampled (top_p 0.9), and for comparison their own text.

    repeated: the fraction of the continuations' 4-grams of tokens that occur in them before. in_language: the fraction
    of tokens that occur in studied passages of the language; in_other_languages: in those of another one, the mean.
    """
    known = {
        language: {i for text in texts for i in tokenizer.encode(text, add_special_tokens=False)}
        for language, texts in passages.studied.items()
    }
    sampling = {"do_sample": True, "top_p": TOP_P, "generator": torch.Generator().manual_seed(0)}
    ways: dict[str, dict[str, Any]] = {"greedy": {}, "sampled": sampling}
    length, special = PROMPT_TOKENS + CONTINUATION_TOKENS, set(tokenizer.all_special_ids)
    written: dict[str, list[tuple[str, list[int]]]] = defaultdict(list)
    examples = []
    for language in tqdm(passages.held_out, desc="continuations", unit="language", disable=not progress, delay=2):
        rows = [tokenizer.encode(text)[:-1][:length] for text in passages.held_out[language]]
        rows = [row for row in rows if len(row) == length]
        if not rows:
            continue
        prompts, found = torch.tensor(rows)[:, :PROMPT_TOKENS], {"text": rows}
        for name, options in ways.items():
            found[name] = model.generate(prompts, max_new_tokens=CONTINUATION_TOKENS, **options).tolist()
        for name in found:
            new = [[i for i in row[PROMPT_TOKENS:] if i not in special] for row in found[name]]
            written[name] += [(language, ids) for ids in new]
        for i in range(min(EXAMPLES, len(rows))):
            after = {name: tokenizer.decode(written[name][i - len(rows)][1]) for name in found}
            examples.append({"language": language, "prompt": tokenizer.decode(rows[i][1:PROMPT_TOKENS]), **after})
    results: dict[str, Any] = {"repeated": {}, "in_language": {}, "in_other_languages": {}}
    for name, texts in written.items():
        ngrams = [[tuple(ids[i : i + NGRAM]) for i in range(len(ids) - NGRAM + 1)] for _, ids in texts]
        results["repeated"][name] = 1 - sum(len(set(x)) for x in ngrams) / max(1, sum(map(len, ngrams)))
        results["in_language"][name] = fraction(i in known[language] for language, ids in texts for i in ids)
        results["in_other_languages"][name] = fraction(
            i in tokens for language, ids in texts for other, tokens in known.items() if other != language for i in ids
        )
    return {**results, "examples": examples}


def fraction(values: Iterable[bool]) -> float:
    counts = Counter(values)
    return counts[True] / max(1, counts.total())


# ---- tiny-translator


def translation_accuracy(
    model: XLMRobertaXLForCausalLM, encoder: XLMRobertaXLModel, tokenizer: XLMRobertaTokenizer, places: Places,
    languages: Sequence[str], count: int, *, progress: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Next-token accuracy and loss with the right source, and with that of another text (wrong), by pair of languages.

    The code of the language is given. difference: of the mean accuracies.
    """
    by_pair: dict[str, Any] = {}
    pairs_of_languages = list(permutations(languages, 2))
    for pair in tqdm(pairs_of_languages, desc="translations", unit="pair", disable=not progress, delay=2):
        pairs, prompt = choose_pairs(places, *pair, count), language_prompt(tokenizer, pair[1])
        if len(pairs) > 1:
            sources = [tokenizer.encode(source) for source, _ in pairs]
            rows = [[*prompt, *tokenizer.encode(target)[1:]] for _, target in pairs]
            given = [len(prompt) - 1] * len(rows)
            by_pair["-".join(pair)] = {
                name: next_token_accuracy(model, tokenizer, rows, encoder, of, given)
                for name, of in (("right", sources), ("wrong", sources[1:] + sources[:1]))
            }
    means = {name: fmean([x[name]["accuracy"] for x in by_pair.values()]) for name in ("right", "wrong") if by_pair}
    return {"by_pair": by_pair, "mean": means, "difference": means["right"] - means["wrong"] if means else 0.0}


def translated_words_by_counting(
    studied: Places, held_out: Places, languages: Sequence[str], count: int
) -> list[WordPair]:
    """Words of held-out texts that translate each other, as far as counting tells, and are not spelled alike.

    Each occurs once in its text, and in the studied texts they are in the same places: by the Dice coefficient, at
    least 0.5, each is the other's best partner in the two texts. count: pairs of texts of two languages.
    """
    texts = {pair: choose_pairs(held_out, *pair, count) for pair in permutations(languages, 2)}
    wanted = {(language, word) for pair, some in texts.items() for both in some
              for language, text in zip(pair, both, strict=True) for word in words_of(text)}  # fmt: skip
    found: dict[tuple[str, str], set[int]] = defaultdict(set)
    for place, translations in enumerate(studied.values()):
        for language, text in translations.items():
            for word in words_of(text):
                if (language, word) in wanted and len(found[language, word]) <= MAX_PLACES:
                    found[language, word].add(place)
    rare = {word: places for word, places in found.items() if MIN_PLACES <= len(places) <= MAX_PLACES}
    pairs = []
    for (source, target), some in texts.items():
        for a, b in some:
            mine, theirs = (
                [(word, rare[language, word]) for word in words_of(text) if (language, word) in rare]
                for language, text in ((source, a), (target, b))
            )
            dice = torch.tensor([[2 * len(x & y) / (len(x) + len(y)) for _, y in theirs] for _, x in mine])
            if not dice.numel():
                continue
            for i, j in (is_best(dice, 0) & is_best(dice, 1) & (dice >= MIN_DICE)).nonzero().tolist():
                x, y = mine[i][0], theirs[j][0]
                if a.count(x) == b.count(y) == 1 and x.casefold() != y.casefold():
                    pairs.append(WordPair(a, x, b, y, target))
    return random.Random(0).sample(pairs, min(len(pairs), WORD_PAIRS))


def is_best(values: Tensor, dim: int) -> Tensor:
    """Which are the largest along a dimension, without ties."""
    largest = values == values.amax(dim, keepdim=True)
    return largest & (largest.sum(dim, keepdim=True) == 1)


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]+", text))


def translations(
    model: XLMRobertaXLForCausalLM, encoder: XLMRobertaXLModel, tokenizer: XLMRobertaTokenizer, places: Places,
    languages: Sequence[str],
) -> list[dict[str, str]]:  # fmt: skip
    """Held-out texts from and to the first language, translated: greedy decoding."""
    first, *others = languages
    return [
        {
            "languages": f"{source}-{target}", "source": text, "reference": reference,
            "translation": translate(model, encoder, tokenizer, text, target),
        }
        for other in others
        for source, target in ((first, other), (other, first))
        for text, reference in choose_pairs(places, source, target, EXAMPLES)
    ]  # fmt: skip


# ---- the table


def format_decoder_evaluation(results: Mapping[str, Any]) -> str:
    """A record's evaluation of a decoder as it stands in the model card, in Markdown."""
    if "next_token" in results:
        return format_next_token(results["next_token"], results["continuations"])
    held_out, studied = results["held_out"], results["studied"]
    rows = [["", "right source", "wrong source", "loss", "studied"]]
    for pair, scores in held_out["by_pair"].items():
        accuracies = [percent(scores[name]["accuracy"]) for name in ("right", "wrong")]
        beside = studied["by_pair"].get(pair)
        rows.append([
            pair, *accuracies, f"{scores['right']['loss']:.2f}", percent(beside["right"]["accuracy"]) if beside else "–"
        ])  # fmt: skip
    lines = [
        f"{what}: next token with the right source {percent(found['mean']['right'])}, with that of another text "
        f"{percent(found['mean']['wrong'])}: **{100 * found['difference']:+.1f} points**."
        for what, found in (("Held out", held_out), ("Studied", studied))
    ]
    for name, found in results["word_alignment"].items():
        best, mean = (
            ", ".join(f"{percent(found[which][when])} when {when} it" for when in ("predicting", "reading"))
            for which in ("best", "mean")
        )
        lines.append(
            f"Cross-attention is highest at the translated word ({found['pairs']} words, {name.replace('_', ' ')}): of "
            f"the best head {best}; of the mean of all heads {mean}; at random {percent(found['random_baseline'])}."
        )
    return to_markdown(rows, lines)


def format_next_token(next_token: Mapping[str, Any], written: Mapping[str, Any]) -> str:
    rows = [["", "words", "held out", "studied", "unigram", "loss, held out"]]
    for language, score in next_token["held_out"].items():
        studied = next_token["studied"].get(language)
        rows.append([
            language, f"{next_token['words'].get(language, 0):,}", percent(score["accuracy"]),
            percent(studied["accuracy"]) if studied else "–", percent(next_token["unigram"][language]),
            f"{score['loss']:.2f}",
        ])  # fmt: skip
    means = next_token["mean"]
    lines = [
        f"Next token, mean over the {len(next_token['large'])} languages with more than {LARGE:,} words: "
        f"**{percent(means['held_out'])}**, studied {percent(means['studied'])}, unigram {percent(means['unigram'])}."
    ]
    lines += [
        f"Continuations, {what}: {', '.join(f'{kind} {percent(x)}' for kind, x in written[name].items())}."
        for name, what in (
            ("repeated", f"{NGRAM}-grams that occurred before"),
            ("in_language", "tokens that occur in studied text of the language"),
            ("in_other_languages", "tokens that occur in that of another language, on average"),
        )
    ]
    return to_markdown(rows, lines)
