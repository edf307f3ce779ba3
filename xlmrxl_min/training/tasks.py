"""A real task for every head, made from one text in many languages. Walked through in notebooks/07_heads.ipynb.

The Universal Declaration of Human Rights says the same in 50 languages, paragraph by paragraph. So its languages, its
articles and its translations are labels that nobody had to write:

| task                    | input                               | label                        | where it is from      |
|-------------------------|-------------------------------------|------------------------------|-----------------------|
| language_identification | a few words                         | their language               | the paragraph's       |
| article_identification  | a paragraph                         | its article                  | the paragraph's       |
| languages_present       | words in 1, 2 or 3 languages        | which languages              | excerpts put together |
| language_share          | words in 2 languages                | the first language's share   | words counted         |
| language_tagging        | words in 2 or 3 languages           | the language of each stretch | excerpts put together |
| translation_choice      | a text, and 4 in another language   | which says the same, from 0  | the other 3 are of    |
|                         |                                     |                              | other articles        |
| translation_finding     | a text, and a passage of 3 texts in | where the same is said       | the other 2 are of    |
|                         | another language                    |                              | other articles        |

Each is a function (languages, articles, *, rounds, seed, …) -> examples; in every round all is drawn anew. The preamble
is divided differently from language to language, and is left out. What is new to whom: `tiny` has read all articles but
17 in 15 languages, and translations side by side, before any of this. The test articles of `split` are new to the head;
only Article 17, one of them, and the other 35 languages are new to the encoder.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from statistics import correlation, fmean, median
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from ..inference.predict import answer, choose, classify, tag
from ..model import (
    PreTrainedModel,
    XLMRobertaXLForMultipleChoice,
    XLMRobertaXLForQuestionAnswering,
    XLMRobertaXLForSequenceClassification,
    XLMRobertaXLForTokenClassification,
)
from ..tokenizer import XLMRobertaTokenizer, word_spans
from .loop import groups_by_length, padded
from .texts import Paragraph, udhr

ARTICLES = range(1, 31)
SEPARATOR = " </s> "  # between the texts of a passage, as between documents in Liu et al. 2019, section 4.2
NO_LABEL = -100  # the losses leave it out
Languages = str | Iterable[str]
Row = dict[str, Any]  # one example's input_ids and labels, as lists and numbers


class Example(NamedTuple):
    text: str
    label: Any  # what is to be found, as the task says it: a name, names, a number, or where in a text
    language: str  # of the text; of a mixture all of them, joined by +
    others: tuple[str, ...] = ()  # what the text is compared with: the choices, or the passage


class Task(NamedTuple):
    """A task as a model sees it: `task.model_class.from_pretrained("tiny", **task.config)` has the head for it."""

    name: str
    model_class: type[PreTrainedModel]
    problem_type: str | None = None
    labels: tuple[str, ...] = ()  # in the order of their numbers

    @property
    def config(self) -> dict[str, Any]:
        """The fields of the config that depend on the task."""
        names = {"num_labels": len(self.labels), "id2label": dict(enumerate(self.labels))} if self.labels else {}
        return {"problem_type": self.problem_type, **names}


TASKS: dict[str, tuple[type[PreTrainedModel], str | None]] = {
    "language_identification": (XLMRobertaXLForSequenceClassification, "single_label_classification"),
    "article_identification": (XLMRobertaXLForSequenceClassification, "single_label_classification"),
    "languages_present": (XLMRobertaXLForSequenceClassification, "multi_label_classification"),
    "language_share": (XLMRobertaXLForSequenceClassification, "regression"),
    "language_tagging": (XLMRobertaXLForTokenClassification, None),
    "translation_choice": (XLMRobertaXLForMultipleChoice, None),
    "translation_finding": (XLMRobertaXLForQuestionAnswering, None),
}


def task(name: str, labels: Iterable[str] = ()) -> Task:
    """The task of this name; `labels`: the languages to tell apart, or the names of the articles, where it has such.

    ValueError for a name that is none, and for labels that are missing or too many.
    """
    if name not in TASKS:
        raise ValueError(f"{name!r} is no task: there are {', '.join(TASKS)}.")
    model_class, problem_type = TASKS[name]
    names = {"language_share": ("share",), "translation_choice": (), "translation_finding": ("start", "end")}
    given = tuple(labels)
    if (name in names) == bool(given) or len(set(given)) != len(given):
        needs = "no labels" if name in names else "its labels, each once"
        raise ValueError(f"{name} was given the labels {given}, but takes {needs}.")
    return Task(name, model_class, problem_type, given or names[name])


# ---- the text


def split(articles: Iterable[int] = ARTICLES) -> tuple[list[int], list[int]]:
    """Articles to train with, and articles to test with: of the given ones 2, 7, 12, 17, 22 and 27.

    So no paragraph has a translation, or its neighbour, on the other side. ValueError where a side would be empty.
    """
    given = checked(articles)
    train, test = ([number for number in given if (number % 5 == 2) == is_test] for is_test in (False, True))
    if not train or not test:
        raise ValueError(f"articles {given} leave a side empty: give some of 2, 7, 12, 17, 22, 27, and some others.")
    return train, test


def checked(articles: Iterable[int]) -> list[int]:
    given = list(dict.fromkeys(articles))
    if not given or not set(given) <= set(ARTICLES):
        raise ValueError(f"articles {given} are not possible: take some of 1 to 30 (the preamble is not parallel).")
    return given


def listed(languages: Languages, at_least: int = 1) -> list[str]:
    given = [languages] if isinstance(languages, str) else list(dict.fromkeys(languages))
    if len(given) < at_least:
        raise ValueError(f"{given} are too few languages here: name {at_least} or more.")
    return given


def paragraphs(languages: Languages, articles: Iterable[int], rounds: int = 1) -> list[Paragraph]:
    """These articles in these languages, in the file's order, `rounds` times over."""
    wanted = set(checked(articles))
    if rounds < 1:
        raise ValueError(f"rounds={rounds} is impossible: take 1 or more.")
    return [row for row in udhr(listed(languages)) if row.article in wanted] * rounds


def parallel(rows: Iterable[Paragraph]) -> dict[tuple[int, int], list[Paragraph]]:
    """By article and paragraph: the same in all languages."""
    table: dict[tuple[int, int], list[Paragraph]] = {}
    for row in dict.fromkeys(rows):
        table.setdefault(row[1:3], []).append(row)
    return table


def opening(text: str, words: int) -> str:
    """The first so many words; the whole text, if it has no more."""
    spans = word_spans(text)
    return text if len(spans) <= words else text[: spans[words - 1][1]]


def excerpt(text: str, words: int, rng: random.Random) -> str:
    """So many words in a row, as they stand in `text`; the whole text, if it has no more."""
    spans = word_spans(text)
    first = rng.randrange(max(1, len(spans) - words + 1))
    return text if len(spans) <= words else opening(text[spans[first][0] :], words)


# ---- the tasks


def language_identification(
    languages: Languages, articles: Iterable[int], *, words: int = 5, rounds: int = 1, seed: int = 0
) -> list[Example]:
    """An excerpt of every paragraph, of so many words -> its language."""
    rng, rows = random.Random(seed), paragraphs(languages, articles, rounds)
    return [Example(excerpt(row.text, words, rng), row.language, row.language) for row in rows]


def article_identification(
    languages: Languages, articles: Iterable[int], *, words: int = 1000, rounds: int = 1, seed: int = 0
) -> list[Example]:
    """Every paragraph, or an excerpt of so many words -> "Article n".

    Each article is a class of its own, so train it in some languages and test it in others.
    """
    rng, rows = random.Random(seed), paragraphs(languages, articles, rounds)
    return [Example(excerpt(row.text, words, rng), article_name(row.article), row.language) for row in rows]


def article_name(number: int) -> str:
    return f"Article {number}"


def mixed(
    languages: Languages, articles: Iterable[int], counts: Sequence[int], rounds: int, rng: random.Random
) -> Iterator[list[Paragraph]]:
    """For each paragraph an excerpt of 3 to 6 words, with excerpts of its translations, in random order.

    All of a mixture is from one paragraph of the Declaration, so that the subject does not tell the languages apart.
    `counts`: one of them, drawn anew for each, is the number of languages.
    """
    rows = paragraphs(listed(languages, max(counts)), articles, rounds)
    table = parallel(rows)
    for row in rows:
        others = [other for other in table[row[1:3]] if other != row]
        parts = [row, *rng.sample(others, rng.choice(counts) - 1)]
        rng.shuffle(parts)
        yield [part._replace(text=excerpt(part.text, rng.randint(3, 6), rng)) for part in parts]


def joined(parts: Sequence[Paragraph]) -> tuple[str, tuple[tuple[int, int, str], ...]]:
    """The parts as one text, and where each stands: begin, end, language."""
    text, spans = "", []
    for part in parts:
        text += " " if text else ""
        spans.append((len(text), len(text) + len(part.text), part.language))
        text += part.text
    return text, tuple(spans)


def language_tagging(languages: Languages, articles: Iterable[int], *, rounds: int = 1, seed: int = 0) -> list[Example]:
    """Words in 2 or 3 languages -> (begin, end, language) of each stretch of characters."""
    languages, rng = listed(languages), random.Random(seed)
    counts = (2, 3) if len(languages) > 2 else (2,)
    made = [joined(parts) for parts in mixed(languages, articles, counts, rounds, rng)]
    return [Example(text, spans, "+".join(name for *_, name in spans)) for text, spans in made]


def languages_present(
    languages: Languages, articles: Iterable[int], *, rounds: int = 1, seed: int = 0
) -> list[Example]:
    """Words in 1, 2 or 3 languages -> their names."""
    examples = []
    for parts in mixed(languages, articles, (1, 2, 3), rounds, random.Random(seed)):
        names = tuple(part.language for part in parts)
        examples.append(Example(joined(parts)[0], names, "+".join(names)))
    return examples


def language_share(
    languages: Languages, articles: Iterable[int], *, words: int = 12, rounds: int = 1, seed: int = 0
) -> list[Example]:
    """So many words, of the first of `languages` and of one of the others -> the share of the first, above 0, below 1.

    A number that can be counted by hand, that needs the whole text, and that is there for any article.
    """
    (first, *_), rng, examples = listed(languages, 2), random.Random(seed), []
    if words < 2:
        raise ValueError(f"{words} words cannot be shared by two languages: take 2 or more.")
    rows = paragraphs(languages, articles, rounds)
    ours = {row[1:3]: row for row in rows if row.language == first}
    for row in rows:
        if row.language == first:
            continue
        count = rng.randint(1, words - 1)
        parts = [(ours[row[1:3]], count), (row, words - count)]
        parts = [part._replace(text=excerpt(part.text, number, rng)) for part, number in parts]
        mine, theirs = (len(word_spans(part.text)) for part in parts)
        rng.shuffle(parts)
        examples.append(Example(joined(parts)[0], mine / (mine + theirs), "+".join(part.language for part in parts)))
    return examples


def openings(languages: Languages, articles: Iterable[int], words: int) -> list[Paragraph]:
    """The first so many words of each paragraph; without those that begin like another: "Everyone has the right to"."""
    rows = [row._replace(text=opening(row.text, words)) for row in paragraphs(languages, articles)]
    counts = Counter((row.language, row.text) for row in rows)
    return [row for row in rows if counts[row.language, row.text] == 1]


def with_translation(
    languages: Languages,
    into: Languages | None,
    articles: Iterable[int],
    words: int,
    count: int,
    rounds: int,
    rng: random.Random,
) -> Iterator[tuple[Paragraph, list[Paragraph], int]]:
    """Each opening, `count` in one of the languages of `into`, and which of those is its translation.

    The others are of other articles. All are cut to as many words, or their lengths would tell.
    """
    targets = listed(languages if into is None else into)
    numbers = checked(articles)
    if not 2 <= count <= len(numbers) or words < 1 or rounds < 1:
        wanted = f"{count} texts of {words} words in {rounds} rounds"
        raise ValueError(f"{wanted} cannot be had of articles {numbers}: take 2 texts or more, or more articles.")
    offers = openings(targets, articles, words)
    for row in openings(languages, articles, words) * rounds:
        if targets == [row.language]:
            raise ValueError(f"{row.language} is no translation of {row.language}: name another language to look in.")
        there = [other for other in offers if other[1:3] == row[1:3] and other.language != row.language]
        if not there:  # all of them begin like others
            continue
        right = rng.choice(there)
        wrong = [other for other in offers if other.language == right.language and other.article != row.article]
        offered = rng.sample([right, *rng.sample(wrong, count - 1)], count)
        yield row, offered, offered.index(right)


def translation_choice(
    languages: Languages,
    articles: Iterable[int],
    *,
    into: Languages | None = None,
    choices: int = 4,
    words: int = 8,
    rounds: int = 1,
    seed: int = 0,
) -> list[Example]:
    """How a paragraph begins, and `choices` in a language of `into` -> which is its translation, from 0.

    into: None means another of `languages`.
    """
    drawn = with_translation(languages, into, articles, words, choices, rounds, random.Random(seed))
    return [Example(row.text, at, row.language, tuple(other.text for other in offered)) for row, offered, at in drawn]


def translation_finding(
    languages: Languages,
    articles: Iterable[int],
    *,
    into: Languages | None = None,
    parts: int = 3,
    words: int = 8,
    rounds: int = 1,
    seed: int = 0,
) -> list[Example]:
    """How a paragraph begins, and a passage of `parts` texts in a language of `into` -> [begin, end) of the same there.

    into: None means another of `languages`.
    """
    examples = []
    for row, offered, at in with_translation(languages, into, articles, words, parts, rounds, random.Random(seed)):
        passage = SEPARATOR.join(other.text for other in offered)
        examples.append(Example(row.text, texts_in(passage)[at], row.language, (passage,)))
    return examples


# ---- examples -> rows


def encode(
    task: Task, tokenizer: XLMRobertaTokenizer, examples: Iterable[Example], *, max_length: int = 512
) -> list[Row]:
    """Every example's input_ids and labels, or start_positions and end_positions; cut to `max_length` tokens.

    A class becomes its number, several become 1.0 for each that there is and 0.0 for the others, a share stays what it
    is. Multiple choice has a list of input_ids for each choice. ValueError for a label that is none of the task's, a
    place that is none in the text, and an answer that would be cut off.
    """
    by_class = {
        XLMRobertaXLForSequenceClassification: labelled,
        XLMRobertaXLForTokenClassification: tagged,
        XLMRobertaXLForMultipleChoice: with_choices,
        XLMRobertaXLForQuestionAnswering: with_answer,
    }
    return [by_class[task.model_class](task, tokenizer, example, max_length) for example in examples]


def number_of(task: Task, label: Any) -> int:
    if label not in task.labels:
        raise ValueError(f"{label!r} is no label of {task.name}, which has {', '.join(task.labels)}.")
    return task.labels.index(label)


def labelled(task: Task, tokenizer: XLMRobertaTokenizer, example: Example, max_length: int) -> Row:
    """A whole text's class, classes, or number."""
    ids = tokenizer.encode(example.text, max_length=max_length, truncation=True)
    if task.problem_type == "multi_label_classification":
        present = {number_of(task, label) for label in example.label}
        return {"input_ids": ids, "labels": [float(i in present) for i in range(len(task.labels))]}
    is_number = task.problem_type == "regression"
    return {"input_ids": ids, "labels": float(example.label) if is_number else number_of(task, example.label)}


def tagged(task: Task, tokenizer: XLMRobertaTokenizer, example: Example, max_length: int) -> Row:
    """A class for every token with characters, by the stretch where its first one stands; -100 for all others.

    Not for the first token of a word only, as is usual: Chinese and Japanese would have one label for a whole text.
    """
    encoding = tokenizer(example.text, max_length=max_length, truncation=True, return_offsets_mapping=True)
    for begin, end, _ in example.label:
        check_span(begin, end, example.text)
    label_at = painted(len(example.text), example.label)
    labels = [
        NO_LABEL if begin == end or label_at[begin] is None else number_of(task, label_at[begin])
        for begin, end in encoding.offset_mapping
    ]
    return {"input_ids": encoding.input_ids, "labels": labels}


def painted(size: int, spans: Iterable[tuple[int, int, str]]) -> list[str | None]:
    """The label of each of so many characters."""
    labels: list[str | None] = [None] * size
    for begin, end, label in spans:
        labels[begin:end] = [label] * (end - begin)
    return labels


def with_choices(task: Task, tokenizer: XLMRobertaTokenizer, example: Example, max_length: int) -> Row:
    """The text with each choice, as a pair; the number of the right one."""
    count = len(example.others)
    if example.label not in range(count):
        raise ValueError(f"the answer is choice {example.label!r} of {count}: give its number, counted from 0.")
    pairs = [(example.text, other) for other in example.others]
    ids = [tokenizer.encode(*pair, max_length=max_length, truncation=True) for pair in pairs]
    return {"input_ids": ids, "labels": example.label}


def with_answer(task: Task, tokenizer: XLMRobertaTokenizer, example: Example, max_length: int) -> Row:
    """The text and the passage as a pair; the first and the last of the tokens that hold a part of the answer."""
    if len(example.others) != 1:
        raise ValueError(f"{task.name} looks for an answer in one passage, and this example has {len(example.others)}.")
    [passage], (begin, end) = example.others, example.label
    check_span(begin, end, passage)
    encoding = tokenizer(example.text, passage, return_offsets_mapping=True)
    ids, offsets = encoding.input_ids, encoding.offset_mapping
    first = len(tokenizer.encode(example.text)) + 1  # of the passage: after <s> question </s></s>
    holds = [i for i in range(first, len(ids) - 1) if offsets[i][0] < end and offsets[i][1] > begin]
    if holds[-1] > max_length - 2:  # the last place is for </s>
        raise ValueError(
            f"the answer ends with token {holds[-1]}, and max_length={max_length} cuts it off: allow more."
        )
    ids = [*ids[: max_length - 1], tokenizer.eos_token_id] if len(ids) > max_length else ids
    return {"input_ids": ids, "start_positions": holds[0], "end_positions": holds[-1]}


def check_span(begin: int, end: int, text: str) -> None:
    if not 0 <= begin < end <= len(text) or not text[begin:end].strip():
        raise ValueError(f"characters {begin} to {end} hold no text: there are {len(text)}, counted from 0.")


# ---- rows -> batches


def labelled_batches(
    rows: Sequence[Row], tokens_per_batch: int, pad: int, generator: torch.Generator | None = None
) -> list[dict[str, Tensor]]:
    """Rows of like length together, at most `tokens_per_batch` in a batch, padding included; for `model(**batch)`.

    input_ids and attention_mask `b t`, of multiple choice `b c t`; labels `b`, `b t` (padding has -100) or `b c`;
    start_positions, end_positions `b`. In random order, with a generator. ValueError for rows that cannot be one batch.
    """
    choices = [len(row["input_ids"]) if isinstance(row["input_ids"][0], list) else 1 for row in rows]
    if len(set(choices)) > 1:
        raise ValueError(f"rows have {sorted(set(choices))} choices: give each as many.")
    lengths = [max(map(len, texts_of(row))) * count for row, count in zip(rows, choices, strict=True)]
    groups = groups_by_length(lengths, tokens_per_batch, generator)
    return [padded_together([rows[i] for i in group], pad) for group in groups]


def texts_of(row: Row) -> list[list[int]]:
    ids = row["input_ids"]
    return ids if isinstance(ids[0], list) else [ids]


def padded_together(rows: Sequence[Row], pad: int) -> dict[str, Tensor]:
    """The tensors of a few rows, filled up on the right to the longest."""
    texts = [ids for row in rows for ids in texts_of(row)]
    batch = {"input_ids": padded(texts, pad), "attention_mask": padded([[1] * len(ids) for ids in texts], 0)}
    if isinstance(rows[0]["input_ids"][0], list):
        batch = {name: rearrange(values, "(b c) t -> b c t", b=len(rows)) for name, values in batch.items()}
    for name in [name for name in rows[0] if name != "input_ids"]:
        batch[name] = label_tensor([row[name] for row in rows], [len(ids) for ids in texts])
    return batch


def label_tensor(labels: list[Any], lengths: list[int]) -> Tensor:
    """Numbers `b`; or lists, of floats, one for each class, `b c`, or of integers, one for each token, `b t`."""
    if not isinstance(labels[0], list):
        return torch.tensor(labels)
    by_token = isinstance(labels[0][0], int)
    for row, length in zip(labels, lengths, strict=True):
        wanted = length if by_token else len(labels[0])
        if len(row) != wanted:
            raise ValueError(f"a row has {len(row)} labels, but must have {wanted}: one for each token, or class.")
    return padded(labels, NO_LABEL) if by_token else torch.tensor(labels)


# ---- how well it is learned


def score(
    task: Task, model: PreTrainedModel, tokenizer: XLMRobertaTokenizer, examples: Sequence[Example]
) -> dict[str, float]:
    """How good the answers of `predict` are, the most telling measure first.

    accuracy: the share that is right, of texts, or, in tagging, of characters. exact: the share of texts with all
    labels right, or with both ends of the answer; by_label: the share of labels that is right; overlap: F1 of the
    answer's characters (Rajpurkar et al. 2016, arXiv:1606.05250, has words). error: the mean absolute difference;
    correlation: Pearson's, 0 if the answer is always the same.
    """
    return compare(task, answers(task, model, tokenizer, examples), examples)


def chance(task: Task, examples: Sequence[Example]) -> dict[str, float]:
    """What `score` gives, at best, without a look at the text: always the same answer.

    The commonest class, set or place, the median number; of a passage one of its texts, by its number, or all of it.
    """
    labels = [example.label for example in examples]
    if task.model_class is XLMRobertaXLForTokenClassification:
        names = Counter(label for e in examples for label in painted(len(e.text), e.label) if label)
        guesses = [[((0, len(example.text), names.most_common(1)[0][0]),) for example in examples]]
    elif task.model_class is XLMRobertaXLForQuestionAnswering:
        spans = [texts_in(passage) for [passage] in (example.others for example in examples)]
        fewest = min(map(len, spans), default=0)
        guesses = [[one[k] for one in spans] for k in range(fewest)] + [[(0, one[-1][1]) for one in spans]]
    elif task.problem_type == "multi_label_classification":
        guesses = [[Counter(tuple(sorted(names)) for names in labels).most_common(1)[0][0]] * len(labels)]
    else:
        is_number = task.problem_type == "regression"
        guesses = [[median(labels) if is_number else Counter(labels).most_common(1)[0][0]] * len(labels)]
    results = [compare(task, guess, examples) for guess in guesses]
    return {name: max(result[name] for result in results) for name in results[0]}


def texts_in(passage: str) -> list[tuple[int, int]]:
    """Where the texts of a passage stand: begin and end of each."""
    spans, begin = [], 0
    for text in passage.split(SEPARATOR):
        spans.append((begin, begin + len(text)))
        begin += len(text) + len(SEPARATOR)
    return spans


def answers(
    task: Task, model: PreTrainedModel, tokenizer: XLMRobertaTokenizer, examples: Sequence[Example]
) -> list[Any]:
    """What the model says of each example, in the form of the examples' labels."""
    texts, others = [example.text for example in examples], [list(example.others) for example in examples]
    if task.model_class is XLMRobertaXLForTokenClassification:
        tags = tag(model, tokenizer, texts, by_word=False, progress=False)
        return [tuple((span.start, span.end, span.label) for span in spans) for spans in tags]
    if task.model_class is XLMRobertaXLForMultipleChoice:
        return [best.index for best, *_ in choose(model, tokenizer, texts, others, progress=False)]
    if task.model_class is XLMRobertaXLForQuestionAnswering:
        found = answer(model, tokenizer, texts, [passage for [passage] in others], progress=False)
        return [(best.start, best.end) for [best] in found]
    labels = classify(model, tokenizer, texts, progress=False)
    if task.problem_type == "multi_label_classification":
        return [tuple(label for label, probability in found if probability > 0.5) for found in labels]
    return [best.score if task.problem_type == "regression" else best.label for best, *_ in labels]


def compare(task: Task, found: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
    """The measures of `score`, of answers in the form of labels. ValueError where there is nothing to compare."""
    if not examples:
        raise ValueError("there is nothing to score: give one example or more.")
    pairs = list(zip(found, (example.label for example in examples), strict=True))
    if task.model_class is XLMRobertaXLForTokenClassification:
        sizes = [len(example.text) for example in examples]
        by_character = [
            zip(painted(size, a), painted(size, b), strict=True) for size, (a, b) in zip(sizes, pairs, strict=True)
        ]
        return {"accuracy": fmean(a == b for both in by_character for a, b in both if b)}
    if task.model_class is XLMRobertaXLForQuestionAnswering:
        return {"exact": fmean(a == b for a, b in pairs), "overlap": fmean(overlap(a, b) for a, b in pairs)}
    if task.problem_type == "multi_label_classification":
        by_label = [(name in a) == (name in b) for a, b in pairs for name in task.labels]
        return {"exact": fmean(set(a) == set(b) for a, b in pairs), "by_label": fmean(by_label)}
    if task.problem_type == "regression":
        varies = len(set(found)) > 1 and len({right for _, right in pairs}) > 1
        error = fmean(abs(a - b) for a, b in pairs)
        return {"error": error, "correlation": correlation(*zip(*pairs, strict=True)) if varies else 0.0}
    return {"accuracy": fmean(a == b for a, b in pairs)}


def overlap(a: tuple[int, int], b: tuple[int, int]) -> float:
    common = max(0, min(a[1], b[1]) - max(a[0], b[0]))
    return 2 * common / (a[1] - a[0] + b[1] - b[0])
