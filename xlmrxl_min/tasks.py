"""Real tasks for every head, made from one text in many languages. Walked through in notebooks/07_heads.ipynb.

The Universal Declaration of Human Rights says the same in 50 languages, paragraph by paragraph, so its languages,
articles and translations are labels that nobody had to write. The preamble is divided differently from language to
language and is left out.

| task                    | input                         | label                | how derived            | by chance |
|-------------------------|-------------------------------|----------------------|------------------------|-----------|
| language_identification | a few words                   | their language       | cut out of a paragraph | 1 in l    |
| article_identification  | a paragraph                   | its article          | from its number        | 1 in a    |
| language_tagging        | words in 2 or 3 languages     | each word's language | excerpts put together  | 1 in l    |
| translation_choice      | a paragraph, and 4 in another | which of the 4 says  | the other 3 are from   | 1 in 4    |
|                         | language                      | the same             | other articles         |           |
| translation_finding     | a paragraph, and a passage of | where in the passage | the other 2 are from   | 1 in 3    |
|                         | 3 in another language         | the same is said     | other articles         |           |
| language_finding        | a few words, and a passage in | where in the passage | the parts of the       | 1 in 3    |
|                         | 3 languages                   | the language is the  | passage are each       |           |
|                         |                               | same                 | other's translations   |           |
| language_share          | words of the first language   | the share of the     | the words are counted  | 0.25 off  |
|                         | and of one of the others      | first language       |                        |           |
| languages_present       | words in 1, 2 or 3 languages  | which languages      | excerpts put together  | `chance`  |

l languages, a articles. The chances are round numbers: `chance` says what can be reached on given rows without looking
at the text. (Of passages it knows nothing: one in three is for a guess that knows where their parts begin and end.)

Why a share, of all numbers: it can be counted by hand in any example, it needs the whole text, and it is there for
articles that were never seen. The place of a paragraph in the document is not.

What is new to whom: `tiny` has read all articles but 17 in its 15 languages, with their translations, before any of
this. So the test articles of `split` are new to the head, not to the encoder; Article 17, one of them, and the other 35
languages are new to both. article_identification cannot be split by articles, as each of them is a class: train it in
some languages, and test it in others.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from .model import (
    ModelOutput,
    PreTrainedModel,
    XLMRobertaXLForMultipleChoice,
    XLMRobertaXLForQuestionAnswering,
    XLMRobertaXLForSequenceClassification,
    XLMRobertaXLForTokenClassification,
)
from .predict import evaluating
from .pretrained import Paragraph, udhr
from .tokenizer import XLMRobertaTokenizer

ARTICLES = range(1, 31)
WITHOUT_SPACES = "\u0e00-\u0eff\u1200-\u137f\u3000-\u9fff\uff00-\uffef"  # Thai, Lao, Ethiopic, Chinese, Japanese
WORD = re.compile(f"[{WITHOUT_SPACES}]{{1,2}}|[^{WITHOUT_SPACES}\\s]+")
SEPARATOR = (
    " </s> "  # between the parts of a passage, as between documents in RoBERTa's training (Liu et al. 2019, 4.2)
)
NO_LABEL = -100  # the losses leave it out
Languages = str | Iterable[str]
Span = tuple[int, int, str]  # begin, end and language of a stretch of characters
Row = dict[str, Any]  # one example's input_ids and labels, as lists and numbers


class Example(NamedTuple):
    text: str
    label: Any  # what is to be found: a name, names, a number, or where in a text; each task says which
    language: str  # of the text; of a mixture, all of them, joined by +
    others: tuple[str, ...] = ()  # what the text is compared with: the choices, or the passage


# ---- the text


def split(articles: Iterable[int] = ARTICLES) -> tuple[list[int], list[int]]:
    """Articles to train with, and articles to test with: of the given ones 2, 7, 12, 17, 22 and 27.

    No paragraph has a translation, or another paragraph of its article, on the other side. ValueError where a side
    would be empty.
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


def listed(languages: Languages) -> list[str]:
    given = [languages] if isinstance(languages, str) else list(dict.fromkeys(languages))
    if not given:
        raise ValueError("no language was given: name some, such as en and fr.")
    return given


def paragraphs(languages: Languages, articles: Iterable[int]) -> list[Paragraph]:
    """These articles in these languages, in the file's order. ValueError where one is not there."""
    wanted = set(checked(articles))
    return [row for row in udhr(listed(languages)) if row.article in wanted]


def parallel(rows: Iterable[Paragraph]) -> dict[tuple[int, int], dict[str, Paragraph]]:
    """By article and paragraph, then by language."""
    table: dict[tuple[int, int], dict[str, Paragraph]] = {}
    for row in rows:
        table.setdefault((row.article, row.paragraph), {})[row.language] = row
    return table


def word_spans(text: str) -> list[tuple[int, int]]:
    """[begin, end) of every word: what stands between spaces, or where a script has none, every two characters.

    So the Chinese text has 22 words to a paragraph and the Japanese one 33; the English has 27.
    """
    return [match.span() for match in WORD.finditer(text)]


def excerpt(text: str, words: int | None, rng: random.Random) -> str:
    """So many words in a row, as they stand in `text`; the whole text, if it has no more, or for None."""
    spans = word_spans(text)
    if words is None or len(spans) <= words:
        return text
    first = rng.randrange(len(spans) - words + 1)
    return text[spans[first][0] : spans[first + words - 1][1]]


def opening(text: str, words: int | None) -> str:
    """The first so many words; the whole text, if it has no more, or for None."""
    spans = word_spans(text)
    return text if words is None or len(spans) <= words else text[: spans[words - 1][1]]


# ---- the tasks


def language_identification(
    languages: Languages, articles: Iterable[int], *, words: int | None = 5, excerpts: int = 1, seed: int = 0
) -> list[Example]:
    """A few words -> their language. `excerpts` of every paragraph, of so many words (None: all of them)."""
    rng = random.Random(seed)
    rows = [row for row in paragraphs(languages, articles) for _ in range(excerpts)]
    return [Example(excerpt(row.text, words, rng), row.language, row.language) for row in rows]


def article_identification(
    languages: Languages, articles: Iterable[int], *, words: int | None = None, excerpts: int = 1, seed: int = 0
) -> list[Example]:
    """A paragraph -> "Article n". Or `excerpts` of every paragraph, of so many words."""
    rng = random.Random(seed)
    rows = [row for row in paragraphs(languages, articles) for _ in range(excerpts)]
    return [Example(excerpt(row.text, words, rng), article_name(row.article), row.language) for row in rows]


def mixed(languages: Languages, articles: Iterable[int], counts: Sequence[int], seed: int) -> Iterator[list[Paragraph]]:
    """For each paragraph an excerpt of 3 to 6 words, with excerpts of its translations, in random order.

    All of a mixture is from one paragraph of the Declaration, so that the subject does not tell the languages apart.
    `counts`: one of them, drawn anew for each, is the number of languages. ValueError where there are fewer.
    """
    languages = listed(languages)
    if len(languages) < max(counts):
        raise ValueError(f"{', '.join(languages)} are too few to mix {max(counts)} languages: give more.")
    rng, rows = random.Random(seed), paragraphs(languages, articles)
    table = parallel(rows)
    for row in rows:
        translations = [other for other in table[row.article, row.paragraph].values() if other != row]
        parts = [row, *rng.sample(translations, min(rng.choice(counts) - 1, len(translations)))]
        rng.shuffle(parts)
        yield [part._replace(text=excerpt(part.text, rng.randint(3, 6), rng)) for part in parts]


def joined(parts: Sequence[Paragraph], label: Any = None) -> Example:
    """The parts as one text; label: where each of them stands, if no other is given."""
    text, spans = "", []
    for part in parts:
        begin = len(text) + 1 if text else 0
        text = f"{text} {part.text}" if text else part.text
        spans.append((begin, len(text), part.language))
    return Example(text, tuple(spans) if label is None else label, "+".join(part.language for part in parts))


def language_tagging(languages: Languages, articles: Iterable[int], *, seed: int = 0) -> list[Example]:
    """Words in two languages, or three -> (begin, end, language) of each stretch of characters."""
    counts = (2, 3) if len(listed(languages)) > 2 else (2,)
    return [joined(parts) for parts in mixed(languages, articles, counts, seed)]


def languages_present(languages: Languages, articles: Iterable[int], *, seed: int = 0) -> list[Example]:
    """Words in one, two or three languages -> their names."""
    return [joined(p, tuple(part.language for part in p)) for p in mixed(languages, articles, (1, 2, 3), seed)]


def language_share(
    languages: Languages, articles: Iterable[int], *, words: int = 12, excerpts: int = 1, seed: int = 0
) -> list[Example]:
    """So many words, of the first of `languages` and of one of the others -> the share of the first, above 0, below 1.

    `excerpts` from every paragraph of the others; fewer words where it is short. ValueError without others.
    """
    first, *rest = listed(languages)
    if not rest or words < 2:
        raise ValueError(
            f"{words} words of {', '.join([first, *rest])} cannot be shared: give two languages, two words."
        )
    rng, examples = random.Random(seed), []
    for by_language in parallel(paragraphs([first, *rest], articles)).values():
        ours = by_language.pop(first, None)
        for theirs in by_language.values() if ours else ():
            for _ in range(excerpts):
                count = rng.randint(1, words - 1)
                parts = [ours._replace(text=excerpt(ours.text, count, rng))]
                parts.append(theirs._replace(text=excerpt(theirs.text, words - count, rng)))
                numbers = [len(word_spans(part.text)) for part in parts]
                rng.shuffle(parts)
                examples.append(joined(parts, numbers[0] / sum(numbers)))
    return examples


def with_translation(
    languages: Languages, into: Languages | None, articles: Iterable[int], rng: random.Random
) -> Iterator[tuple[Paragraph, Paragraph, list[Paragraph]]]:
    """Each paragraph, its translation into one of `into`, and what the other articles say in that language."""
    targets = listed(languages) if into is None else listed(into)
    rows, others = paragraphs(languages, articles), paragraphs(targets, articles)
    table = parallel(others)
    for row in rows:
        there = [
            other for other in table.get((row.article, row.paragraph), {}).values() if other.language != row.language
        ]
        if not there and targets == [row.language]:
            raise ValueError(f"{row.language} is no translation of {row.language}: name another language to look in.")
        if there:
            translation = rng.choice(there)
            same = [other for other in others if other.language == translation.language]
            yield row, translation, [other for other in same if other.article != row.article]


def translation_choice(
    languages: Languages,
    articles: Iterable[int],
    *,
    into: Languages | None = None,
    choices: int = 4,
    words: int | None = None,
    seed: int = 0,
) -> list[Example]:
    """A paragraph, and `choices` in a language of `into` (None: of `languages`) -> which is its translation, from 0.

    The wrong ones are from other articles, and like it in length; then all are cut to the words of the shortest, or to
    the first `words`, the paragraph too. Without the cut the length alone would tell: of the 9 paragraphs of the test
    articles, who compares lengths finds 74%. ValueError where `articles` have too few paragraphs.
    """
    rng, examples = random.Random(seed), []
    for row, translation, others in with_translation(languages, into, articles, rng):
        enough(others, choices, articles)
        line = sorted([translation, *others], key=lambda other: len(other.text))  # with its neighbours it stands
        at = line.index(translation)  # anywhere among the choices, shortest, longest, or in the middle
        start = rng.randint(max(0, at - choices + 1), min(at, len(line) - choices))
        offered = rng.sample(line[start : start + choices], choices)
        fewest = min(len(word_spans(other.text)) for other in offered)
        fewest = fewest if words is None else min(fewest, words)
        while [opening(other.text, fewest) for other in offered].count(opening(translation.text, fewest)) > 1:
            fewest += 1  # "everyone has the right to" begins many
        texts = tuple(opening(other.text, fewest) for other in offered)
        examples.append(Example(opening(row.text, words), offered.index(translation), row.language, texts))
    return examples


def translation_finding(
    languages: Languages,
    articles: Iterable[int],
    *,
    into: Languages | None = None,
    parts: int = 3,
    words: int | None = None,
    seed: int = 0,
) -> list[Example]:
    """A paragraph, and a passage of `parts` in a language of `into` -> [begin, end) of its translation in the passage.

    The other parts are from other articles. `words`: the first so many of every paragraph, for shorter texts.
    ValueError where `articles` have too few paragraphs.
    """
    rng, examples = random.Random(seed), []
    for row, translation, others in with_translation(languages, into, articles, rng):
        enough(others, parts, articles)
        drawn = rng.sample([translation, *rng.sample(others, parts - 1)], parts)
        examples.append(in_passage(row, drawn, translation, lambda text: opening(text, words)))
    return examples


def language_finding(
    languages: Languages, articles: Iterable[int], *, parts: int = 3, words: int = 8, seed: int = 0
) -> list[Example]:
    """A few words, and a passage in `parts` languages -> [begin, end) of the part in the language of the words.

    The easier question: the passage says the same in each language, and it is not what the words say. ValueError for
    fewer languages than parts, and for a single paragraph.
    """
    rng, rows = random.Random(seed), paragraphs(languages, articles)
    table, examples = parallel(rows), []
    for row in rows:
        elsewhere = [
            there
            for there in table.values()
            if row.language in there and row not in there.values() and len(there) >= parts
        ]
        if parts < 2 or not elsewhere:
            raise ValueError(
                f"{parts} languages, of another paragraph than asked with, cannot be had: give more of both."
            )
        there = rng.choice(elsewhere)
        answer = there[row.language]
        others = [other for other in there.values() if other != answer]
        drawn = rng.sample([answer, *rng.sample(others, parts - 1)], parts)
        examples.append(in_passage(row, drawn, answer, lambda text: excerpt(text, words, rng)))
    return examples


def in_passage(row: Paragraph, parts: Sequence[Paragraph], answer: Paragraph, cut: Callable[[str], str]) -> Example:
    """The parts as one passage, and where `answer` stands in it; all of them cut."""
    texts, at = [cut(part.text) for part in parts], parts.index(answer)
    begin = sum(len(text) + len(SEPARATOR) for text in texts[:at])
    return Example(cut(row.text), (begin, begin + len(texts[at])), row.language, (SEPARATOR.join(texts),))


def enough(others: Sequence[Paragraph], count: int, articles: Iterable[int]) -> None:
    if not 2 <= count <= len(others) + 1:
        raise ValueError(
            f"{count} paragraphs cannot be had of articles {list(articles)}: take 2 or more, of more articles."
        )


# ---- what is to be learned, for a model


class Task(NamedTuple):
    """A task as a model sees it: `task.model_class.from_pretrained("tiny", **task.config)` has the head for it."""

    name: str
    model_class: type[PreTrainedModel]
    labels: tuple[str, ...] = ()  # in the order of their numbers
    problem_type: str | None = None

    @property
    def config(self) -> dict[str, Any]:
        """The fields of the config that depend on the task: num_labels, id2label, problem_type."""
        names = {"num_labels": len(self.labels), "id2label": dict(enumerate(self.labels))}
        return {"problem_type": self.problem_type, **(names if self.labels else {})}


# By name: the head, the kind of problem, and the labels, from languages and articles.
TASKS: dict[str, tuple[type[PreTrainedModel], str | None, Callable[[Languages, Iterable[int]], Iterable[str]]]] = {
    "language_identification": (
        XLMRobertaXLForSequenceClassification, "single_label_classification", lambda languages, _: listed(languages),
    ),
    "article_identification": (
        XLMRobertaXLForSequenceClassification, "single_label_classification",
        lambda _, articles: [article_name(number) for number in checked(articles)],
    ),
    "language_tagging": (XLMRobertaXLForTokenClassification, None, lambda languages, _: listed(languages)),
    "translation_choice": (XLMRobertaXLForMultipleChoice, None, lambda *_: ()),
    "translation_finding": (XLMRobertaXLForQuestionAnswering, None, lambda *_: ("start", "end")),
    "language_finding": (XLMRobertaXLForQuestionAnswering, None, lambda *_: ("start", "end")),
    "language_share": (
        XLMRobertaXLForSequenceClassification, "regression", lambda languages, _: [f"share of {listed(languages)[0]}"],
    ),
    "languages_present": (
        XLMRobertaXLForSequenceClassification, "multi_label_classification", lambda languages, _: listed(languages),
    ),
}  # fmt: skip


def article_name(number: int) -> str:
    return f"Article {number}"


def task(name: str, languages: Languages = (), articles: Iterable[int] = ARTICLES) -> Task:
    """The task of this name, with the given languages or articles for labels. ValueError for a name that is none."""
    if name not in TASKS:
        raise ValueError(f"{name!r} is no task: there are {', '.join(TASKS)}.")
    model_class, problem_type, labels = TASKS[name]
    return Task(name, model_class, tuple(labels(languages, articles)), problem_type)


# ---- examples -> rows


def encode(
    task: Task, tokenizer: XLMRobertaTokenizer, examples: Iterable[Example], *, max_length: int = 512
) -> list[Row]:
    """Every example's input_ids and labels, or start_positions and end_positions; cut to `max_length` tokens.

    A class becomes its number, several become 0.0 and 1.0 for each that there is, a share stays what it is. Multiple
    choice has a list of input_ids for each choice. ValueError for a label that is none of the task's, a place that is
    none in the text, and an answer that would be cut off.
    """
    special = {
        XLMRobertaXLForTokenClassification: tagged,
        XLMRobertaXLForMultipleChoice: with_choices,
        XLMRobertaXLForQuestionAnswering: with_answer,
    }
    row = special.get(task.model_class, labelled)
    return [row(task, tokenizer, example, max_length) for example in examples]


def number_of(task: Task, label: Any) -> int:
    if label not in task.labels:
        raise ValueError(f"{label!r} is no label of {task.name}, which has {', '.join(task.labels)}.")
    return task.labels.index(label)


def labelled(task: Task, tokenizer: XLMRobertaTokenizer, example: Example, max_length: int) -> Row:
    """A whole text's class, classes, or number."""
    row: Row = {"input_ids": tokenizer.encode(example.text, max_length=max_length)}
    if task.problem_type == "regression":
        if not isinstance(example.label, (int, float)) or not math.isfinite(example.label):
            raise ValueError(f"{example.label!r} is no label of {task.name}, which asks for a number.")
        return {**row, "labels": float(example.label)}
    if task.problem_type == "multi_label_classification":
        present = {number_of(task, label) for label in example.label}
        return {**row, "labels": [float(i in present) for i in range(len(task.labels))]}
    return {**row, "labels": number_of(task, example.label)}


def tagged(task: Task, tokenizer: XLMRobertaTokenizer, example: Example, max_length: int) -> Row:
    """A class for every piece, that of the stretch where its first character stands; -100 for `<s>`, `</s>` and others.

    Not for the first piece of a word only, as others do: Chinese and Japanese would have one label for a whole text.
    """
    encoding = tokenizer(example.text, max_length=max_length, return_offsets_mapping=True)
    at_character = [NO_LABEL] * (len(example.text) + 1)
    for begin, end, label in example.label:
        check_span(begin, end, example.text)
        if any(number != NO_LABEL for number in at_character[begin:end]):
            raise ValueError(f"characters {begin} to {end} of {example.text!r} have a label already: give each one.")
        at_character[begin:end] = [number_of(task, label)] * (end - begin)
    labels = [at_character[begin] for begin, _ in encoding.offset_mapping]
    labels[0] = labels[-1] = NO_LABEL
    return {"input_ids": encoding.input_ids, "labels": labels}


def with_choices(task: Task, tokenizer: XLMRobertaTokenizer, example: Example, max_length: int) -> Row:
    """The text with each choice, as a pair; the number of the right one."""
    if example.label not in range(len(example.others)):
        count = len(example.others)
        raise ValueError(f"the answer is choice {example.label!r} of {count}: give its number, counted from 0.")
    ids = [tokenizer.encode(example.text, other, max_length=max_length) for other in example.others]
    return {"input_ids": ids, "labels": example.label}


def with_answer(task: Task, tokenizer: XLMRobertaTokenizer, example: Example, max_length: int) -> Row:
    """The text and the passage as a pair; the first and the last of the pieces that the answer has a character in."""
    if len(example.others) != 1:
        raise ValueError(f"{task.name} looks for an answer in one passage, and this example has {len(example.others)}.")
    [passage], (begin, end) = example.others, example.label
    check_span(begin, end, passage)
    encoding = tokenizer(example.text, passage, return_offsets_mapping=True)
    ids, offsets = encoding.input_ids, encoding.offset_mapping
    first = 3 + len(tokenizer.tokens_with_offsets(example.text))  # of the passage: after <s> question </s></s>
    inside = [i for i in range(first, len(ids) - 1) if offsets[i][0] < end and offsets[i][1] > begin]
    if len(ids) > max_length:
        ids = [*ids[: max_length - 1], tokenizer.eos_token_id]
    if inside[-1] >= len(ids) - 1:
        raise ValueError(
            f"the answer ends at token {inside[-1]} and max_length={max_length} cuts it: shorten the passage."
        )
    return {"input_ids": ids, "start_positions": inside[0], "end_positions": inside[-1]}


def check_span(begin: int, end: int, text: str) -> None:
    if not 0 <= begin < end <= len(text) or not text[begin:end].strip():
        raise ValueError(f"characters {begin} to {end} hold no text: there are {len(text)}, counted from 0.")


# ---- rows -> batches


def labelled_batches(
    rows: Sequence[Row], tokens_per_batch: int, pad: int, generator: torch.Generator | None = None
) -> list[dict[str, Tensor]]:
    """Rows of like length together, at most `tokens_per_batch` in a batch, padding included; for `model(**batch)`.

    input_ids and attention_mask `b t`, of multiple choice `b c t`; labels `b`, `b t` (padding has -100) or `b c`;
    start_positions, end_positions `b`. In random order, with a generator; a row that is too long is a batch by itself.
    ValueError for rows that cannot be one batch. train.batches makes those of masked language modelling.
    """
    if tokens_per_batch < 1:
        raise ValueError(f"tokens_per_batch={tokens_per_batch} is impossible: take 1 or more.")
    choices = [choices_of(row) for row in rows]
    lengths = [max(map(len, texts)) for texts in choices]
    jitter = [0.0] * len(rows) if generator is None else (torch.rand(len(rows), generator=generator) * 10).tolist()
    groups: list[list[int]] = []
    for i in sorted(range(len(rows)), key=lambda i: lengths[i] + jitter[i]):
        longest = max(lengths[j] for j in [*(groups[-1] if groups else []), i])
        if not groups or longest * len(choices[i]) * (len(groups[-1]) + 1) > tokens_per_batch:
            groups.append([])
        groups[-1].append(i)
    if generator is not None:
        groups = [groups[i] for i in torch.randperm(len(groups), generator=generator)]
    return [padded_together([rows[i] for i in group], pad) for group in groups]


def choices_of(row: Row) -> list[list[int]]:
    ids = row["input_ids"]
    return ids if isinstance(ids[0], list) else [ids]


def padded_together(rows: Sequence[Row], pad: int) -> dict[str, Tensor]:
    """The tensors of a few rows, filled up on the right to the longest."""
    choices = [choices_of(row) for row in rows]
    if len({len(texts) for texts in choices}) > 1:
        raise ValueError(f"rows have {sorted({len(texts) for texts in choices})} choices: give each as many.")
    texts = [ids for row in choices for ids in row]
    length = max(map(len, texts))
    layout = "(b c) t -> b c t" if isinstance(rows[0]["input_ids"][0], list) else "(b c) t -> b (c t)"
    real = [[1] * len(ids) for ids in texts]
    batch = {"input_ids": filled(texts, length, pad), "attention_mask": filled(real, length, 0)}
    batch = {name: rearrange(values, layout, c=len(choices[0])) for name, values in batch.items()}
    for name in ("labels", "start_positions", "end_positions"):
        if name in rows[0]:
            batch[name] = label_tensor([row[name] for row in rows], [len(ids) for ids in texts])
    return batch


def filled(rows: Sequence[list[int]], length: int, value: int) -> Tensor:
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows])


def label_tensor(labels: list[Any], lengths: list[int]) -> Tensor:
    """Numbers `b`, lists of floats `b c`, or lists of integers, one for each token, `b t`."""
    if isinstance(labels[0], list):
        is_by_token = all(isinstance(value, int) for row in labels for value in row)
        expected = lengths if is_by_token else [len(labels[0])] * len(labels)
        for row, count in zip(labels, expected, strict=True):
            if len(row) != count:
                raise ValueError(f"a row has {len(row)} labels, but must have {count}: one for each token, or class.")
        if is_by_token:
            return filled(labels, max(lengths), NO_LABEL)
    return torch.tensor(labels)


# ---- how well it is learned


def score(task: Task, model: PreTrainedModel, batches: Iterable[dict[str, Tensor]]) -> dict[str, float]:
    """How good a model's answers are, the most telling measure first.

    accuracy: the share that is right, of texts or of pieces. exact_match: the share of spans with both ends right;
    overlap: F1 of their tokens (Rajpurkar et al. 2016, arXiv:1606.05250). exact_set: the share of texts with all labels
    right; per_label: the share of labels. mean_absolute_error; correlation: Pearson's, 0 if either never changes.
    """
    found, right = [], []
    with evaluating(model):
        for batch in batches:
            batch = {name: values.to(model.device) for name, values in batch.items()}
            found.append(answers(task, model(**batch), batch))
            right.append(right_answers(batch))
    return compare(task, found, right)


def chance(task: Task, batches: Iterable[dict[str, Tensor]]) -> dict[str, float]:
    """What `score` can be without a look at the text: the same answer for all, the commonest or the median."""
    right = torch.cat([right_answers(batch) for batch in batches])
    values, counts = right.unique(dim=0, return_counts=True)
    constants = (values[counts.argmax()], right.median(0).values)
    results = [compare(task, [constant.expand_as(right)], [right]) for constant in constants]
    return {name: (min if name == "mean_absolute_error" else max)(r[name] for r in results) for name in results[0]}


# b c, b t c, or b t and b t -> (answers), (answers) c or (answers) 2
def answers(task: Task, out: ModelOutput, batch: dict[str, Tensor]) -> Tensor:
    if task.model_class is XLMRobertaXLForQuestionAnswering:
        return best_spans(out.start_logits, out.end_logits, batch["attention_mask"])
    if task.problem_type == "regression":
        return out.logits[:, 0]
    if task.problem_type == "multi_label_classification":
        return (out.logits > 0).float()  # a probability above one half
    best = out.logits.argmax(-1)
    return best[batch["labels"] != NO_LABEL]


def best_spans(start: Tensor, end: Tensor, attention_mask: Tensor) -> Tensor:  # b t, b t, b t -> b 2
    """The first and last token with the largest sum of logits, of those that come in this order."""
    sums = rearrange(start, "b q -> b q 1") + rearrange(end, "b k -> b 1 k")
    possible = torch.ones_like(sums, dtype=torch.bool).triu() & rearrange(attention_mask > 0, "b k -> b 1 k")
    best = rearrange(sums.masked_fill(~possible, -torch.inf), "b q k -> b (q k)").argmax(-1)
    return torch.stack([best // start.shape[1], best % start.shape[1]], dim=-1)


def right_answers(batch: dict[str, Tensor]) -> Tensor:
    if "labels" not in batch:
        return torch.stack([batch["start_positions"], batch["end_positions"]], dim=-1)
    labels = batch["labels"]
    return labels if labels.is_floating_point() else labels[labels != NO_LABEL]


def compare(task: Task, found: list[Tensor], right: list[Tensor]) -> dict[str, float]:
    if not right:
        raise ValueError("there is nothing to score: give one batch or more.")
    answers, labels = torch.cat(found).double(), torch.cat(right).double()
    is_right = answers == labels
    if task.problem_type == "regression":
        varies = len(labels) > 1 and bool(answers.std() > 0) and bool(labels.std() > 0)
        correlation = float(torch.corrcoef(torch.stack([answers, labels]))[0, 1]) if varies else 0.0
        return {"mean_absolute_error": float((answers - labels).abs().mean()), "correlation": correlation}
    if task.problem_type == "multi_label_classification":
        return {"exact_set": share(is_right.all(-1)), "per_label": share(is_right)}
    if task.model_class is XLMRobertaXLForQuestionAnswering:
        common = 1 + torch.minimum(answers[:, 1], labels[:, 1]) - torch.maximum(answers[:, 0], labels[:, 0])
        sizes = 2 + (answers[:, 1] - answers[:, 0]) + (labels[:, 1] - labels[:, 0])
        return {"exact_match": share(is_right.all(-1)), "overlap": float((2 * common.clamp_min(0) / sizes).mean())}
    return {"accuracy": share(is_right)}


def share(of: Tensor) -> float:
    return float(of.double().mean())
