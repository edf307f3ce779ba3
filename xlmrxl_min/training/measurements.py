"""What an encoder knows of text that it has not studied, as numbers: `python -m xlmrxl_min evaluate CHECKPOINT`.

Each function measures one thing, `evaluate_encoder` all of them. Every choice (of sentences, of masked tokens) is
seeded, so that checkpoints with one vocabulary are compared on the same ones.
"""

from __future__ import annotations

import random
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from ..interpret.cross_lingual import mean_states, retrieval
from ..interpret.hooks import self_attentions
from ..interpret.interventions import ablated, head_means
from ..interpret.stream import logit_lens
from ..model import XLMRobertaXLForMaskedLM, XLMRobertaXLForSequenceClassification
from ..tokenizer import XLMRobertaTokenizer
from ..utils import eval_mode
from .batching import EncodedExample, make_batches
from .corpus import LANGUAGES, Row, read_corpus
from .evaluation import MAX_TOKENS, Score, masked_accuracy, masked_logits
from .excerpts import VERSIONS, in_hash_order
from .finetuning import encode_examples, evaluate
from .loop import fit
from .masking import mask_tokens
from .tasks import Example, Task
from .texts import Emoji, emoji_names

MASK_PROB = 0.15
PASSAGE_TOKENS, FEWEST_PASSAGES = 254, 10
OTHER_SCRIPTS = ("ru", "el", "ar", "hi", "zh", "ja")
LARGE = 100_000  # words of studied text
MIN_WORDS, MAX_WORDS = 8, 40  # of the English sentence: fewer are not distinct
MAX_WORDS_OF_PAIR = 25  # which stand in one input
# The source and the target, part of which is masked.
LANGUAGE_PAIRS = (
    ("en", "ru"), ("ru", "en"), ("en", "hi"), ("en", "el"), ("ar", "fr"), ("en", "ja"), ("zh", "en"), ("de", "ru"),
)  # fmt: skip
Batch = dict[str, Tensor]
Places = Mapping[tuple[str, str, str], Mapping[str, str]]  # source, section, place -> the text in each language


class Effort(NamedTuple):
    """How much is measured."""

    passages: int = 110  # of a language
    sentences: int = 400  # retrieved among each other
    pairs: int = 200  # of two languages
    pairs_by_head: int = 25  # of two languages
    passages_by_head: int = 8  # of a language
    all_heads: bool = True
    fine_tuning: bool = True


FULL = Effort()
QUICK = Effort(passages=30, sentences=400, pairs=60, passages_by_head=4, all_heads=False, fine_tuning=False)


def evaluate_encoder(source: Any, corpus: Path, effort: Effort = FULL, *, progress: bool = True) -> dict[str, Any]:
    """All measurements of a checkpoint, for its record.json. source: its name or folder; corpus: a folder."""
    model: XLMRobertaXLForMaskedLM = XLMRobertaXLForMaskedLM.from_pretrained(source)
    tokenizer = XLMRobertaTokenizer.from_pretrained(source)
    held_out, studied = (read_corpus(corpus, held_out=held_out) for held_out in (True, False))
    passages = Passages(model, tokenizer, held_out, studied, effort.passages)
    places = by_place(held_out)
    results = {
        "masked": masked_accuracy_by_language(model, tokenizer, passages, progress=progress),
        "retrieval": retrieval_by_language(model, tokenizer, places, effort.sentences, progress=progress),
        "emoji": emoji_probe(model, tokenizer, emoji_names(), progress=progress),
        "translation": translation_effect(model, tokenizer, places, effort.pairs, progress=progress),
        "ablation": ablation_costs(
            model, tokenizer, passages, effort.passages_by_head, each=effort.all_heads, progress=progress
        ),
        "lens": lens_layers(model, tokenizer, passages, effort.passages_by_head),
    }
    if effort.all_heads:
        results["translation_heads"] = translation_heads(
            model, tokenizer, places, effort.pairs_by_head, progress=progress
        )
    if effort.fine_tuning:
        results["emoji_fine_tuned"] = emoji_fine_tuning(source, tokenizer, emoji_names(), progress=progress)
    return rounded(results)


def rounded(value: Any, digits: int = 4) -> Any:
    """Numbers within dicts and lists, as they stand in a record."""
    if isinstance(value, Mapping):
        return {name: rounded(x, digits) for name, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(x, digits) for x in value]
    return round(value, digits) if isinstance(value, float) else value


def mean(numbers: Iterable[float]) -> float:
    """The mean; 0 where a corpus has nothing to measure."""
    given = list(numbers)
    return fmean(given) if given else 0.0


# ---- running text


class Passages:
    """Running text of one chapter or page each, by language: held out, and as much that was studied.

    Both have the same share of each source and version of the Bible. At most `count` of each language; those with fewer
    than 10 are left out. words: studied, in each language.
    """

    def __init__(
        self, model: XLMRobertaXLForMaskedLM, tokenizer: XLMRobertaTokenizer, held_out: Sequence[Row],
        studied: Sequence[Row], count: int,
    ) -> None:  # fmt: skip
        room = min(PASSAGE_TOKENS, model.config.max_seq_len - 2)
        self.words = count_words(studied)
        self.held_out: dict[str, list[str]] = defaultdict(list)
        self.studied: dict[str, list[str]] = defaultdict(list)
        rng = random.Random(0)
        sections, in_studied = by_section(held_out), by_section(studied)
        for key, pages in sections.items():
            found = [x for texts in pages for x in cut_passages(tokenizer, texts, room)]
            others = list(in_studied.get(key, ()))
            rng.shuffle(others)
            same: list[str] = []
            for texts in others:
                same += cut_passages(tokenizer, texts, room) if len(same) < len(found) else []
            self.held_out[key[0]] += found
            self.studied[key[0]] += same[: len(found)]
        for language in list(self.held_out):
            both = self.held_out[language], self.studied[language]
            if min(map(len, both)) < FEWEST_PASSAGES:
                del self.held_out[language], self.studied[language]
            for some in both:
                rng.shuffle(some)
                del some[count:]

    def some(self, count: int, *, held_out: bool) -> list[str]:
        """The first `count` in each language."""
        texts = self.held_out if held_out else self.studied
        return [x for language in texts for x in texts[language][:count]]


def count_words(rows: Iterable[Row]) -> dict[str, int]:
    """Words of running text in each language; in Chinese and Japanese, which have no spaces, characters by two."""
    words: Counter[str] = Counter()
    for row in rows:
        if row.source != "words":
            words[row.language] += len(row.text) // 2 if row.language in ("zh", "ja") else row.text.count(" ") + 1
    return dict(words)


def by_section(rows: Iterable[Row]) -> dict[tuple[str, str, str], list[list[str]]]:
    """language, source, version -> the texts of each chapter or page, in order."""
    sections: dict[Any, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.source not in ("scratch", "words"):
            sections[row.language, row.source, row.version][row.section].append(row.text)
    return {key: list(texts.values()) for key, texts in sections.items()}


def cut_passages(tokenizer: XLMRobertaTokenizer, texts: Iterable[str], room: int) -> Iterator[str]:
    """Neighbouring texts joined, as many as fit into `room` tokens; a text that does not fit alone is left out."""
    passage, length = "", 0
    for text in texts:
        size = len(tokenizer.encode(text, add_special_tokens=False))
        if length + size > room and passage:
            yield passage
            passage, length = "", 0
        if size <= room:
            passage, length = f"{passage} {text}".strip(), length + size
    if passage:
        yield passage


def masked_accuracy_by_language(
    model: XLMRobertaXLForMaskedLM, tokenizer: XLMRobertaTokenizer, passages: Passages, *, progress: bool = True
) -> dict[str, Any]:
    """Accuracy and loss at masked tokens of held-out and of studied passages, by language.

    unigram: the accuracy on held-out text of always predicting the most frequent token of studied text. mean: over the
    languages of which more than 100,000 words were studied.
    """

    def measure(texts: list[str]) -> dict[str, float]:
        return masked_accuracy(model, tokenizer, texts, mask_prob=MASK_PROB)

    return accuracy_by_language(tokenizer, passages, measure, "masked words", progress)


def accuracy_by_language(
    tokenizer: XLMRobertaTokenizer, passages: Passages, measure: Callable[[list[str]], dict[str, float]],
    description: str, progress: bool,
) -> dict[str, Any]:  # fmt: skip
    """What `measure` says of held-out and of studied passages, the unigram guess, and the means of the accuracies."""
    results: dict[str, Any] = {"held_out": {}, "studied": {}, "unigram": {}}
    for language in tqdm(passages.held_out, desc=description, unit="language", disable=not progress, delay=2):
        texts = {"held_out": passages.held_out[language], "studied": passages.studied[language]}
        for name, some in texts.items():
            results[name][language] = measure(some)
        results["unigram"][language] = unigram_accuracy(tokenizer, texts["studied"], texts["held_out"])
    large = [language for language in results["held_out"] if passages.words.get(language, 0) > LARGE]
    means = {name: mean(results[name][x]["accuracy"] for x in large) for name in ("held_out", "studied")}
    means["unigram"] = mean(results["unigram"][x] for x in large)
    return {**results, "words": passages.words, "mean": means, "large": large}


def unigram_accuracy(tokenizer: XLMRobertaTokenizer, studied: Sequence[str], held_out: Sequence[str]) -> float:
    """How often a token of `held_out` is the one that is most frequent in `studied`."""
    special = tokenizer.all_special_ids  # such as <unk>, which is never masked
    counts, asked = (
        Counter(x for text in texts for x in tokenizer.encode(text) if x not in special)
        for texts in (studied, held_out)
    )
    return asked[counts.most_common(1)[0][0]] / asked.total() if counts and asked else 0.0


# ---- translations


def by_place(rows: Iterable[Row]) -> Places:
    """The text of each place in every language, by one version of the Bible each."""
    places: dict[Any, dict[str, str]] = defaultdict(dict)
    for row in rows:
        if row.source != "words" and row.version in VERSIONS:
            places[row[1], row[3], row[4]][row.language] = row.text
    return places


def choose_pairs(
    places: Places, source: str, target: str, count: int, longest: int = MAX_WORDS_OF_PAIR
) -> list[list[str]]:
    """Up to `count` texts and their translations, of Bible and help, with 8 words or more in English.

    The same places in every language where they are, each text at most once. Those of one source follow each other.
    """
    chosen: list[tuple[str, list[str]]] = []
    seen: set[str] = set()
    for place in in_hash_order(places):
        texts = places[place]
        if place[0] in ("bible", "help") and {"en", source, target} <= set(texts):
            pair = [texts[source], texts[target]]
            if MIN_WORDS <= len(texts["en"].split()) <= longest and not seen & set(pair):
                chosen.append((place[0], pair))
                seen |= set(pair)
    return [pair for _, pair in sorted(chosen[:count], key=lambda x: x[0])]


def retrieval_by_language(
    model: XLMRobertaXLForMaskedLM, tokenizer: XLMRobertaTokenizer, places: Places, count: int = 400, *,
    progress: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """How often the nearest of `count` sentences is the translation, from and to English, after each layer.

    By the cosine of mean states, centred per language. Where there are fewer sentences, retrieval is easier; sentences
    says how many there were. mean: at the last layer, over all languages, and over those of other scripts.
    """
    accuracy: dict[str, list[float]] = {}
    sentences: dict[str, int] = {}
    known: dict[str, Tensor] = {}  # of English sentences

    def states(texts: list[str]) -> Tensor:  # b l e
        return rearrange(mean_states(model, tokenizer, texts, batch_size=64, progress=False), "l b e -> b l e")

    room = model.config.max_seq_len
    for language in tqdm(LANGUAGES[1:], desc="retrieval", unit="language", disable=not progress, delay=2):
        pairs = choose_pairs(places, "en", language, count, longest=MAX_WORDS)
        pairs = [x for x in pairs if all(len(tokenizer.encode(text)) <= room for text in x)]
        if len(pairs) > 1:
            english, others = ([pair[i] for pair in pairs] for i in (0, 1))
            new = [text for text in english if text not in known]
            known |= zip(new, states(new), strict=True) if new else ()
            source = torch.stack([known[text] for text in english], dim=1)
            accuracy[language] = retrieval(
                source, rearrange(states(others), "b l e -> l b e"), centred=True
            ).accuracy.tolist()
            sentences[language] = len(pairs)
    last = {language: by_layer[-1] for language, by_layer in accuracy.items()}
    means = {"all": mean(last.values()), "other_scripts": mean(last[x] for x in OTHER_SCRIPTS if x in last)}
    return {"accuracy_by_layer": accuracy, "sentences": sentences, "mean": means}


def mask_targets(tokenizer: XLMRobertaTokenizer, pairs: Sequence[Sequence[str]], room: int) -> list[list[Batch]]:
    """Batches of the pairs, with 15% of the target's tokens masked; and the same with the source of another pair.

    The other pair is the next one. Pairs that do not fit into `room` tokens either way are left out.
    """
    generator = torch.Generator().manual_seed(0)
    versions: list[list[EncodedExample]] = [[], []]
    for i, (source, target) in enumerate(pairs):
        wrong = pairs[(i + 1) % len(pairs)][0]
        ids = tokenizer.encode(target, add_special_tokens=False)
        is_masked = torch.rand(len(ids), generator=generator) < MASK_PROB
        is_masked[int(torch.randint(len(ids), (), generator=generator))] |= not is_masked.any()  # one at least
        hidden = [tokenizer.mask_token_id if masked else x for x, masked in zip(ids, is_masked.tolist(), strict=True)]
        labels = [x if masked else -100 for x, masked in zip(ids, is_masked.tolist(), strict=True)]
        rows: list[EncodedExample] = []
        for text in (source, wrong):
            start = [*tokenizer.encode(text), tokenizer.sep_token_id]
            given = [*start, *hidden, tokenizer.sep_token_id]
            rows.append({"input_ids": given, "labels": [-100] * len(start) + labels + [-100]})
        if max(len(row["input_ids"]) for row in rows) <= room:
            for version, row in zip(versions, rows, strict=True):
                version.append(row)
    return [make_batches(rows, MAX_TOKENS, tokenizer.pad_token_id) for rows in versions]


def score(model: XLMRobertaXLForMaskedLM, batches: Iterable[Batch]) -> dict[str, float]:
    """Accuracy and loss at the tokens with labels."""
    result = Score()
    with eval_mode(model):
        for batch in batches:
            is_masked = batch["labels"] != -100
            result.add(masked_logits(model, batch["input_ids"], is_masked), batch["labels"][is_masked])
    return result.means()


def translation_effect(
    model: XLMRobertaXLForMaskedLM, tokenizer: XLMRobertaTokenizer, places: Places, count: int = 200, *,
    progress: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Accuracy at masked tokens of a sentence beside its translation (right) and beside another sentence's (wrong)."""
    results: dict[str, Any] = {}
    for languages in tqdm(LANGUAGE_PAIRS, desc="translation pairs", unit="pair", disable=not progress, delay=2):
        pairs = choose_pairs(places, *languages, count)
        if len(pairs) > 1:
            right, wrong = (score(model, x) for x in mask_targets(tokenizer, pairs, model.config.max_seq_len))
            results["-".join(languages)] = {
                "right": right["accuracy"], "wrong": wrong["accuracy"], "pairs": len(pairs), "tokens": right["tokens"]
            }  # fmt: skip
    means = {name: mean(x[name] for x in results.values()) for name in ("right", "wrong")}
    return {"by_pair": results, "mean": means, "difference": means["right"] - means["wrong"]}


def translation_heads(
    model: XLMRobertaXLForMaskedLM, tokenizer: XLMRobertaTokenizer, places: Places, count: int = 25, *,
    progress: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """What each head does for `translation_effect`: the difference that is lost with its output replaced by its mean.

    The mean is over the same pairs. lost: `l h`, as a fraction of the difference of the whole model.
    """
    pairs = [x for languages in LANGUAGE_PAIRS for x in choose_pairs(places, *languages, count)]
    versions = mask_targets(tokenizer, pairs, model.config.max_seq_len)
    rows = [row[mask.bool()] for batch in versions[0] for row, mask in zip(*inputs_of(batch), strict=True)]
    means = head_means(model, rows)

    def difference(heads: Mapping[int, Sequence[int]]) -> float:
        with ablated(model, heads, means):
            right, wrong = (score(model, batches)["accuracy"] for batches in versions)
        return right - wrong

    whole = difference({})
    lost = [[0.0] * model.config.num_attention_heads for _ in self_attentions(model)]
    for layer, head in tqdm(heads_of(model), desc="heads, on pairs", unit="head", disable=not progress, delay=2):
        lost[layer][head] = (whole - difference({layer: [head]})) / whole if whole > 0 else 0.0
    most, layer, head = max((x, i, j) for i, row in enumerate(lost) for j, x in enumerate(row))
    return {"difference": whole, "layer": layer, "head": head, "most": most, "lost": lost, "pairs": len(pairs)}


def inputs_of(batch: Batch) -> tuple[Tensor, Tensor]:
    return batch["input_ids"], batch["attention_mask"]


def heads_of(model: XLMRobertaXLForMaskedLM) -> list[tuple[int, int]]:
    return [(layer, head) for layer, attention in enumerate(self_attentions(model)) for head in attention.heads]


# ---- inside the model


def mask_passages(tokenizer: XLMRobertaTokenizer, texts: Iterable[str]) -> list[Batch]:
    generator, rows = torch.Generator().manual_seed(0), []
    for text in texts:
        ids = torch.tensor([tokenizer.encode(text)])
        labels = mask_tokens(ids, MASK_PROB, tokenizer, generator)[1]
        hidden = ids.masked_fill(labels != -100, tokenizer.mask_token_id)
        rows.append({"input_ids": hidden[0].tolist(), "labels": labels[0].tolist()})
    return make_batches(rows, MAX_TOKENS, tokenizer.pad_token_id)


def ablation_costs(
    model: XLMRobertaXLForMaskedLM, tokenizer: XLMRobertaTokenizer, passages: Passages, count: int = 8, *,
    each: bool = True, progress: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """The change of masked accuracy on held-out text when heads' outputs are replaced by their means on studied text.

    upper_half: all heads of the upper half of the layers at once. each: also every layer's heads at once, and every
    head alone. count: passages of each language.
    """
    studied = [torch.tensor(tokenizer.encode(text)) for text in passages.some(count, held_out=False)]
    means, batches = head_means(model, studied), mask_passages(tokenizer, passages.some(count, held_out=True))

    def accuracy(heads: Mapping[int, Sequence[int]]) -> float:
        with ablated(model, heads, means):
            return score(model, batches)["accuracy"]

    whole, all_heads = score(model, batches), dict(enumerate(x.heads for x in self_attentions(model)))
    upper = {layer: heads for layer, heads in all_heads.items() if layer >= len(all_heads) // 2}
    results: dict[str, Any] = {**whole, "upper_half": accuracy(upper) - whole["accuracy"]}
    if each:
        layers = [accuracy({layer: heads}) - whole["accuracy"] for layer, heads in all_heads.items()]
        by_head = [[0.0] * model.config.num_attention_heads for _ in all_heads]
        for layer, head in tqdm(heads_of(model), desc="heads", unit="head", disable=not progress, delay=2):
            by_head[layer][head] = accuracy({layer: [head]}) - whole["accuracy"]
        results |= {"layers": layers, "heads": by_head}
    return results


def lens_layers(
    model: XLMRobertaXLForMaskedLM, tokenizer: XLMRobertaTokenizer, passages: Passages, count: int = 8
) -> dict[str, Any]:
    """Of the masked tokens that the model predicts correctly: after which layer the logit lens first does.

    first: the fraction for each layer, embeddings first. upper_half: the sum over the upper half of the layers.
    """
    counts = torch.zeros(model.config.num_hidden_layers + 1)
    for batch in mask_passages(tokenizer, passages.some(count, held_out=True)):
        is_masked = batch["labels"] != -100
        ids, mask = inputs_of(batch)
        rank = logit_lens(model, ids, is_masked, batch["labels"][is_masked], attention_mask=mask).rank
        is_right = rank[:, rank[-1] == 1] == 1
        counts += torch.bincount(is_right.int().argmax(0), minlength=len(counts))
    first = counts / counts.sum().clamp(min=1)
    upper_half = first[1 + model.config.num_hidden_layers // 2 :].sum()
    return {"first": first.tolist(), "upper_half": float(upper_half), "tokens": int(counts.sum())}


# ---- emoji


def split_emoji(emoji: Sequence[Emoji]) -> tuple[list[Emoji], dict[str, list[Emoji]], list[str], float]:
    """The training names, the test names by language, the groups, and the fraction of the most frequent one."""
    train, test = [x for x in emoji if x.split == "train"], defaultdict(list)
    for x in emoji:
        if x.split == "test":
            test[x.language].append(x)
    groups = Counter(x.group for x in test["en"])
    return train, test, sorted({x.group for x in emoji}), groups.most_common(1)[0][1] / groups.total()


def emoji_probe(
    model: XLMRobertaXLForMaskedLM, tokenizer: XLMRobertaTokenizer, emoji: Sequence[Emoji], *, progress: bool = True
) -> dict[str, Any]:
    """How often a linear classifier of English emoji names finds the group of other emoji, in every language.

    It reads mean states of the last layer, centred per language. majority: the accuracy of the most frequent group.
    """
    train, test, groups, majority = split_emoji(emoji)
    names = {"train": train, **test}
    states = {}
    for key in tqdm(names, desc="emoji", unit="language", disable=not progress, delay=2):
        vectors = mean_states(model, tokenizer, [x.name for x in names[key]], batch_size=64, progress=False)[-1].clone()
        states[key] = vectors - vectors.mean(0)
    classify = fit_probe(states["train"], torch.tensor([groups.index(x.group) for x in train]))
    accuracy = {
        language: fmean([groups[i] == x.group for i, x in zip(classify(states[language]), test[language], strict=True)])
        for language in test
    }
    return {"accuracy": accuracy, "majority": majority, **summary(accuracy)}


def summary(accuracy: Mapping[str, float]) -> dict[str, float]:
    """Over the languages other than English: the mean, and how many reach 35%."""
    others = [x for language, x in accuracy.items() if language != "en"]
    return {"mean": mean(others), "at_least_35": sum(x >= 0.35 for x in others)}


def fit_probe(vectors: Tensor, labels: Tensor, weight_decay: float = 0.05) -> Any:  # b e, b
    """Logistic regression on standardised vectors, with an L2 penalty -> a function from vectors to classes."""
    mean, scale = vectors.mean(0), vectors.std(0).clamp(min=1e-6)
    inputs = (vectors - mean) / scale
    weight = torch.zeros(int(labels.max()) + 1, vectors.shape[1], requires_grad=True)
    bias = torch.zeros(len(weight), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(inputs @ weight.T + bias, labels) + weight_decay / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    return lambda x: ((x - mean) / scale @ weight.detach().T + bias.detach()).argmax(-1).tolist()


def emoji_fine_tuning(
    source: Any, tokenizer: XLMRobertaTokenizer, emoji: Sequence[Emoji], *, epochs: int = 8,
    learning_rate: float = 3e-4, seed: int = 0, progress: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """The same by a fine-tuned classification head: all weights are trained, on the English names."""
    train, test, groups, majority = split_emoji(emoji)
    task = Task("emoji_group", XLMRobertaXLForSequenceClassification, "single_label_classification", tuple(groups))
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*initialised at random")  # the head is new
        model = task.model_class.from_pretrained(source, **task.config)
    examples = {key: [Example(x.name, x.group, x.language) for x in some] for key, some in {"": train, **test}.items()}
    batches = make_batches(encode_examples(task, tokenizer, examples.pop("")), 512, tokenizer.pad_token_id)
    steps = epochs * len(batches)
    fit(
        model, batches, steps=steps, learning_rate=learning_rate, warmup_steps=steps // 10, seed=seed, progress=progress
    )  # fmt: skip
    accuracy = {language: evaluate(task, model, tokenizer, some)["accuracy"] for language, some in examples.items()}
    return {"accuracy": accuracy, "majority": majority, **summary(accuracy)}


# ---- the table


def format_evaluation(results: Mapping[str, Any]) -> str:
    """A record's evaluation as it stands in the model card: a row for each language, then the means, in Markdown."""
    masked, retrieved = results["masked"], results["retrieval"]
    columns = {
        "words": {x: f"{n:,}" for x, n in masked["words"].items()},
        "masked, held out": {x: percent(row["accuracy"]) for x, row in masked["held_out"].items()},
        "studied": {x: percent(row["accuracy"]) for x, row in masked["studied"].items()},
        "unigram": {x: percent(n) for x, n in masked["unigram"].items()},
        "loss, held out": {x: f"{row['loss']:.2f}" for x, row in masked["held_out"].items()},
        "retrieval": {
            x: f"{rows[-1]:.0%} of {retrieved['sentences'][x]}" for x, rows in retrieved["accuracy_by_layer"].items()
        },
        "emoji": {x: f"{n:.0%}" for x, n in results["emoji"]["accuracy"].items()},
    }
    if "emoji_fine_tuned" in results:
        columns["fine-tuned"] = {x: f"{n:.0%}" for x, n in results["emoji_fine_tuned"]["accuracy"].items()}
    rows = [["", *columns], *([x, *(column.get(x, "–") for column in columns.values())] for x in LANGUAGES)]
    means, emoji, pairs = masked["mean"], results["emoji"], results["translation"]
    lines = [
        f"Masked, mean over the {len(masked['large'])} languages with more than {LARGE:,} words: "
        f"**{percent(means['held_out'])}**, studied {percent(means['studied'])}, unigram {percent(means['unigram'])}.",
        f"Retrieval, mean over the languages of other scripts: **{retrieved['mean']['other_scripts']:.0%}**.",
        f"Emoji, mean over the languages other than English: **{emoji['mean']:.0%}**; {emoji['at_least_35']} of "
        f"{len(emoji['accuracy']) - 1} reach 35%. The most frequent group: {percent(emoji['majority'])}.",
        f"Masked words with the right translation beside them: {percent(pairs['mean']['right'])}; with another "
        f"sentence: {percent(pairs['mean']['wrong'])}. The translation is worth "
        f"**{100 * pairs['difference']:+.1f} points**.",
        f"All heads of the upper half of the layers replaced by their means: "
        f"{100 * results['ablation']['upper_half']:+.1f} points.",
        f"Logit lens: of the masked words that are right at the end, {results['lens']['upper_half']:.0%} are first "
        f"right in the upper half of the layers.",
    ]
    if "translation_heads" in results:
        heads = results["translation_heads"]
        lines.append(
            f"Layer {heads['layer']}, head {heads['head']} replaced by its mean: {heads['most']:.0%} of the "
            f"translation's {100 * heads['difference']:.1f} points are lost (over {heads['pairs']} pairs)."
        )
    return to_markdown(rows, lines)


def to_markdown(rows: Sequence[Sequence[str]], lines: Sequence[str]) -> str:
    """A table, whose first row is its head, and a list."""
    head, *rest = rows
    table = [head, ["---"] * len(head), *rest]
    return "\n".join([*("| " + " | ".join(row) + " |" for row in table), "", *(f"- {line}" for line in lines)])


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}%"
