"""A fine-tuning task for each head, made from texts in many languages. Walked through in notebooks/07_heads.ipynb.

The Universal Declaration of Human Rights is the same text in 50 languages, paragraph by paragraph, and so are the
sentences of parallel.tsv in up to 15. So languages, articles, translations and sources are labels that nobody had to
annotate:

| task                    | input                               | label                        | source of the label   |
|-------------------------|-------------------------------------|------------------------------|-----------------------|
| language_identification | a few words                         | their language               | the paragraph's       |
| article_identification  | a paragraph                         | its article                  | the paragraph's       |
| languages_present       | words in 1, 2 or 3 languages        | the languages                | excerpts concatenated |
| language_fraction       | words in 2 languages                | fraction in the first one    | words counted         |
| language_tagging        | words in 2 or 3 languages           | the language of each excerpt | excerpts concatenated |
| translation_choice      | a text, and 4 in another language   | its translation, from 0      | the other 3 are of    |
|                         |                                     |                              | other articles        |
| translation_finding     | a text, and a passage of 3 texts in | the span of its translation  | the other 2 are of    |
|                         | another language                    |                              | other articles        |
| topic_identification    | a sentence                          | its topic                    | the book that it is   |
|                         |                                     |                              | from                  |
| topic_choice            | a topic, and a text of each         | its text, from 0             | the same              |
| topic_finding           | a topic, and a passage of a text of | the span of its text         | the same              |
|                         | each                                |                              |                       |

Each is a function (languages, articles, *, rounds, seed, …) -> examples; every round samples anew. `articles` are
numbers, or one of `PARTS`: then the texts are sentences of parallel.tsv. The preamble is left out, as its paragraphs
are not parallel. `tiny` was pre-trained on all articles but 17 in 15 languages, with translations in one input. So the
test articles of `train_test_split` are new to the head, but only Article 17, the sentences that are "held out" and the
other 35 languages are new to the encoder. The last three take a part instead of articles (see `topic_texts`), and
`TOPIC_TASKS` has them, as their labels are always the same.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral
from typing import Any, NamedTuple

from ..inputs import as_sequence, as_texts, check_integer, check_option, shown
from ..model import (
    PreTrainedModel,
    XLMRobertaXLForMultipleChoice,
    XLMRobertaXLForQuestionAnswering,
    XLMRobertaXLForSequenceClassification,
    XLMRobertaXLForTokenClassification,
)
from ..tokenizer import word_spans
from .texts import Paragraph, parallel_sentences, udhr

ARTICLES = range(1, 31)
PARTS = ("studied", "held out")  # of parallel.tsv, by the bundled checkpoints
TOPICS = ("religion", "software", "law")  # the Bible; LibreOffice's help and Scratch; the Declaration
MAX_WORDS = 20  # of a text with a topic
SEPARATOR = " </s> "  # between the texts of a passage, as between documents in Liu et al. 2019, section 4.2
Languages = str | Iterable[str]
Articles = Iterable[int] | str


class Example(NamedTuple):
    text: str
    label: Any  # depends on the task: a name, names, a number, or spans of characters
    language: str  # of the text; of a mixed text all of them, joined by +
    others: tuple[str, ...] = ()  # the choices, or the passage


class Task(NamedTuple):
    """What a model needs to know of a task: `task.model_class.from_pretrained("tiny", **task.config)`."""

    name: str
    model_class: type[PreTrainedModel]
    problem_type: str | None = None
    labels: tuple[str, ...] = ()  # in the order of their ids

    @property
    def config(self) -> dict[str, Any]:
        """The fields of the config that depend on the task."""
        names = {"num_labels": len(self.labels), "id2label": dict(enumerate(self.labels))} if self.labels else {}
        return {"problem_type": self.problem_type, **names}


TASKS: dict[str, tuple[type[PreTrainedModel], str | None]] = {
    "language_identification": (XLMRobertaXLForSequenceClassification, "single_label_classification"),
    "article_identification": (XLMRobertaXLForSequenceClassification, "single_label_classification"),
    "languages_present": (XLMRobertaXLForSequenceClassification, "multi_label_classification"),
    "language_fraction": (XLMRobertaXLForSequenceClassification, "regression"),
    "language_tagging": (XLMRobertaXLForTokenClassification, None),
    "translation_choice": (XLMRobertaXLForMultipleChoice, None),
    "translation_finding": (XLMRobertaXLForQuestionAnswering, None),
}
TOPIC_TASKS = {
    "topic_identification": Task(
        "topic_identification", XLMRobertaXLForSequenceClassification, "single_label_classification", TOPICS
    ),
    "topic_choice": Task("topic_choice", XLMRobertaXLForMultipleChoice),
    "topic_finding": Task("topic_finding", XLMRobertaXLForQuestionAnswering, None, ("start", "end")),
}
FIXED_LABELS = {"language_fraction": ("fraction",), "translation_choice": (), "translation_finding": ("start", "end")}


def task(name: str, labels: Iterable[str] = ()) -> Task:
    """The task `name`. labels: the languages or the names of the articles, for tasks that classify them.

    Raises ValueError for an unknown name, and for labels that are missing, repeated, no texts or not needed.
    """
    if not isinstance(name, str) or name not in TASKS:
        raise ValueError(f"{shown(name)} is no task: there are {', '.join(TASKS)}.")
    given = tuple(as_texts(labels, "labels"))
    if (name in FIXED_LABELS) == bool(given) or len(set(given)) != len(given):
        needs = "no labels" if name in FIXED_LABELS else "its labels, each once"
        raise ValueError(f"{name} was given the labels {given}, but takes {needs}.")
    return Task(name, *TASKS[name], given or FIXED_LABELS[name])


# ---- the text


def train_test_split(articles: Iterable[int] = ARTICLES) -> tuple[list[int], list[int]]:
    """Articles to train on, and articles to test on: of the given ones 2, 7, 12, 17, 22 and 27.

    Split by article, no paragraph has its translation in the other part. ValueError if a part would be empty.
    """
    given = check_articles(articles)
    train, test = ([number for number in given if (number % 5 == 2) == is_test] for is_test in (False, True))
    if not train or not test:
        raise ValueError(f"articles {given} leave a part empty: give some of 2, 7, 12, 17, 22, 27, and some others.")
    return train, test


def check_articles(articles: Articles) -> list[int]:
    given = as_sequence(articles, "articles", "numbers, 1 to 30")
    if not given or not all(isinstance(number, Integral) and int(number) in ARTICLES for number in given):
        raise ValueError(
            f"articles {shown(given)} are not possible: take some of 1 to 30 (the preamble is not parallel)."
        )
    return [int(number) for number in dict.fromkeys(given)]


def make_rng(seed: Any) -> random.Random:
    check_integer("seed", seed, -math.inf)
    return random.Random(int(seed))


def check_languages(languages: Languages, at_least: int = 1) -> list[str]:
    given = list(dict.fromkeys(as_texts(languages, "languages")))
    if len(given) < at_least:
        raise ValueError(f"{given} are too few languages here: name {at_least} or more.")
    return given


def select_paragraphs(languages: Languages, articles: Articles, rounds: int = 1) -> list[Paragraph]:
    """The paragraphs of these articles and languages, in the file's order, repeated `rounds` times.

    articles: numbers, or one of `PARTS`: then each place of parallel.tsv counts as an article.
    """
    if isinstance(articles, str) and articles in PARTS:
        names, sentences = check_languages(languages), parallel_sentences()
        check_integer("rounds", rounds)
        number = {place: i for i, place in enumerate(dict.fromkeys(row[1:4] for row in sentences))}
        rows = [row for row in sentences if row.language in names and row.held_out == PARTS.index(articles)]
        return [Paragraph(row.language, number[row[1:4]], 1, row.text) for row in rows] * rounds
    wanted = set(check_articles(articles))
    check_integer("rounds", rounds)
    return [row for row in udhr(check_languages(languages)) if row.article in wanted] * rounds


def first_words(text: str, count: int) -> str:
    """The first `count` words, or all of them."""
    spans = word_spans(text)
    return text if len(spans) <= count else text[: spans[count - 1][1]]


def excerpt(text: str, count: int, rng: random.Random) -> str:
    """A random run of `count` words, or all of them."""
    check_integer("words", count)
    spans = word_spans(text)
    first = rng.randrange(max(1, len(spans) - count + 1))
    return text if len(spans) <= count else first_words(text[spans[first][0] :], count)


# ---- sequence classification of one excerpt


def language_identification(
    languages: Languages, articles: Articles, *, words: int = 5, rounds: int = 1, seed: int = 0
) -> list[Example]:
    """An excerpt of `words` words from each paragraph -> its language."""
    rng, rows = make_rng(seed), select_paragraphs(languages, articles, rounds)
    return [Example(excerpt(row.text, words, rng), row.language, row.language) for row in rows]


def article_identification(
    languages: Languages, articles: Articles, *, words: int = 1000, rounds: int = 1, seed: int = 0
) -> list[Example]:
    """Each paragraph, or an excerpt of `words` words -> "Article n".

    Each article is a class, so train it in some languages and test it in others.
    """
    rng, rows = make_rng(seed), select_paragraphs(languages, articles, rounds)
    return [Example(excerpt(row.text, words, rng), article_name(row.article), row.language) for row in rows]


def article_name(number: int) -> str:
    return f"Article {number}"


# ---- texts in several languages


def language_tagging(languages: Languages, articles: Articles, *, rounds: int = 1, seed: int = 0) -> list[Example]:
    """Words in 2 or 3 languages -> (start, end, language) of each excerpt, in characters."""
    languages, rng = check_languages(languages), make_rng(seed)
    counts = (2, 3) if len(languages) > 2 else (2,)
    texts = [concatenate(parts) for parts in mixed_excerpts(languages, articles, counts, rounds, rng)]
    return [Example(text, spans, "+".join(name for *_, name in spans)) for text, spans in texts]


def languages_present(languages: Languages, articles: Articles, *, rounds: int = 1, seed: int = 0) -> list[Example]:
    """Words in 1, 2 or 3 languages -> these languages."""
    examples = []
    for parts in mixed_excerpts(languages, articles, (1, 2, 3), rounds, make_rng(seed)):
        names = tuple(part.language for part in parts)
        examples.append(Example(concatenate(parts)[0], names, "+".join(names)))
    return examples


def language_fraction(
    languages: Languages, articles: Articles, *, words: int = 12, rounds: int = 1, seed: int = 0
) -> list[Example]:
    """`words` words, of the first of `languages` and of another one -> the fraction of the first, between 0 and 1.

    A number that can be counted by hand and that depends on all of the text.
    """
    (first, *_), rng, examples = check_languages(languages, 2), make_rng(seed), []
    check_integer("words", words, 2)
    rows = select_paragraphs(languages, articles, rounds)
    in_first = {row[1:3]: row for row in rows if row.language == first}
    for row in rows:
        if row.language == first:
            continue
        count = rng.randint(1, words - 1)
        pair = [(in_first[row[1:3]], count), (row, words - count)]
        parts = [part._replace(text=excerpt(part.text, number, rng)) for part, number in pair]
        of_first, of_second = (len(word_spans(part.text)) for part in parts)
        rng.shuffle(parts)
        label = of_first / (of_first + of_second)
        examples.append(Example(concatenate(parts)[0], label, "+".join(part.language for part in parts)))
    return examples


def mixed_excerpts(
    languages: Languages, articles: Articles, counts: Sequence[int], rounds: int, rng: random.Random
) -> Iterator[list[Paragraph]]:
    """For each paragraph an excerpt of 3 to 6 words with excerpts of its translations, in random order.

    All are from the same paragraph, so that the subject does not reveal the language. counts: numbers of languages, of
    which one is sampled each time.
    """
    rows = select_paragraphs(check_languages(languages, max(counts)), articles, rounds)
    translations: dict[tuple[int, int], list[Paragraph]] = {}
    for row in dict.fromkeys(rows):
        translations.setdefault((row.article, row.paragraph), []).append(row)
    for row in rows:
        others = [other for other in translations[row.article, row.paragraph] if other != row]
        if len(others) < min(counts) - 1:
            continue
        parts = [row, *rng.sample(others, min(rng.choice(counts) - 1, len(others)))]
        rng.shuffle(parts)
        yield [part._replace(text=excerpt(part.text, rng.randint(3, 6), rng)) for part in parts]


def concatenate(parts: Sequence[Paragraph]) -> tuple[str, tuple[tuple[int, int, str], ...]]:
    """The parts as one text, and (start, end, language) of each."""
    text, spans = "", []
    for part in parts:
        text += " " if text else ""
        spans.append((len(text), len(text) + len(part.text), part.language))
        text += part.text
    return text, tuple(spans)


# ---- what a text is about


def topic_texts(languages: Languages, part: str, *, seed: int = 0) -> dict[tuple[str, str], list[str]]:
    """Texts by language and topic, at most 20 words each, in random order. part: one of `PARTS`.

    "studied" is to train on: of the Declaration the odd articles. Of the Bible and of LibreOffice's help "held out" is
    new to the bundled checkpoints, too; of Scratch and the Declaration it is new to the head only. No text has its
    translation in the other part. Not every language has every topic.
    """
    check_option("part", part, list(PARTS))
    rng, names, is_held_out = make_rng(seed), check_languages(languages), PARTS.index(part)
    texts: dict[tuple[str, str], list[str]] = {(language, topic): [] for language in names for topic in TOPICS}
    for row in parallel_sentences():
        is_other = len(row.section) % 2 if row.source == "scratch" else row.held_out  # half of Scratch, whichever
        if row.language in names and is_other == is_held_out:
            texts[row.language, "religion" if row.source == "bible" else "software"].append(row.text)
    for paragraph in select_paragraphs(names, ARTICLES[is_held_out::2]):
        texts[paragraph.language, "law"].append(paragraph.text)
    found = {key: [first_words(text, MAX_WORDS) for text in some] for key, some in texts.items() if some}
    for some in found.values():
        rng.shuffle(some)
    return found


def topic_identification(languages: Languages, part: str, *, count: int = 1000, seed: int = 0) -> list[Example]:
    """A text -> its topic: at most `count` texts of each topic in each language."""
    texts = topic_texts(languages, part, seed=seed)
    return [Example(text, topic, language) for (language, topic), some in texts.items() for text in some[:count]]


def topic_choice(
    languages: Languages, part: str, *, topic: str | None = None, count: int = 1000, seed: int = 0
) -> list[Example]:
    """A topic's name, and a text of each topic that the language has -> the number of the one with that topic, from 0.

    topic: the one that is asked for; None: another one each time. At most `count` of each language.
    """
    check_option("topic", topic, [*TOPICS, None])
    rng, texts, examples = make_rng(seed), topic_texts(languages, part, seed=seed), []
    for language in dict.fromkeys(language for language, _ in texts):
        topics = [name for code, name in texts if code == language]
        for number in range(min(count, max(len(texts[language, name]) for name in topics))):
            order = rng.sample(topics, len(topics))
            several = [texts[language, name] for name in order]
            right = rng.randrange(len(order)) if topic is None else order.index(topic)
            examples.append(Example(order[right], right, language, tuple(some[number % len(some)] for some in several)))
    return examples


def topic_finding(
    languages: Languages, part: str, *, topic: str | None = None, count: int = 1000, seed: int = 0
) -> list[Example]:
    """The same with one passage of all texts -> [start, end) of the one with that topic."""
    examples = []
    for example in topic_choice(languages, part, topic=topic, count=count, seed=seed):
        passage = SEPARATOR.join(example.others)
        examples.append(example._replace(label=passage_spans(passage)[example.label], others=(passage,)))
    return examples


# ---- a text and its translation among others


def translation_choice(
    languages: Languages, articles: Articles, *, into: Languages | None = None, choices: int = 4, words: int = 8,
    rounds: int = 1, seed: int = 0,
) -> list[Example]:  # fmt: skip
    """The first words of a paragraph, and of `choices` in a language of `into` -> the translation's number, from 0.

    into: None means another one of `languages`.
    """
    samples = with_candidates(languages, into, articles, words, choices, rounds, make_rng(seed))
    return [Example(row.text, at, row.language, tuple(x.text for x in candidates)) for row, candidates, at in samples]


def translation_finding(
    languages: Languages, articles: Articles, *, into: Languages | None = None, parts: int = 3, words: int = 8,
    rounds: int = 1, seed: int = 0,
) -> list[Example]:  # fmt: skip
    """The first words of a paragraph, and a passage of `parts` texts in a language of `into` -> [start, end) in it.

    into: None means another one of `languages`.
    """
    examples = []
    for row, candidates, at in with_candidates(languages, into, articles, words, parts, rounds, make_rng(seed)):
        passage = SEPARATOR.join(candidate.text for candidate in candidates)
        examples.append(Example(row.text, passage_spans(passage)[at], row.language, (passage,)))
    return examples


def passage_spans(passage: str) -> list[tuple[int, int]]:
    """[start, end) of each text of a passage."""
    spans, start = [], 0
    for text in passage.split(SEPARATOR):
        spans.append((start, start + len(text)))
        start += len(text) + len(SEPARATOR)
    return spans


def with_candidates(
    languages: Languages, into: Languages | None, articles: Articles, words: int, count: int, rounds: int,
    rng: random.Random,
) -> Iterator[tuple[Paragraph, list[Paragraph], int]]:  # fmt: skip
    """The first words of each paragraph; `count` candidates in one language of `into`; the translation's index.

    The other candidates are of other articles. All have the same number of words, so that length reveals nothing.
    """
    targets = check_languages(languages if into is None else into)
    for name, value in (("words", words), ("rounds", rounds), ("texts", count)):
        check_integer(name, value)
    numbers = sorted({row.article for row in select_paragraphs(targets, articles)})
    if not 2 <= count <= len(numbers):
        wanted = f"{count} texts of {words} words in {rounds} rounds"
        raise ValueError(f"{wanted} cannot be had of articles {numbers}: take 2 texts or more, or more articles.")
    in_targets = unique_beginnings(targets, articles, words)
    for row in unique_beginnings(languages, articles, words) * rounds:
        if targets == [row.language]:
            raise ValueError(f"{row.language} is no translation of {row.language}: name another language to look in.")
        translations = [x for x in in_targets if x[1:3] == row[1:3] and x.language != row.language]
        if not translations:  # all of them begin like other paragraphs
            continue
        right = rng.choice(translations)
        wrong = [x for x in in_targets if x.language == right.language and x.article != row.article]
        if len(wrong) < count - 1:
            continue
        candidates = rng.sample([right, *rng.sample(wrong, count - 1)], count)
        yield row, candidates, candidates.index(right)


def unique_beginnings(languages: Languages, articles: Articles, words: int) -> list[Paragraph]:
    """The first words of each paragraph, without those that begin like another one ("Everyone has the …")."""
    rows = [row._replace(text=first_words(row.text, words)) for row in select_paragraphs(languages, articles)]
    counts = Counter((row.language, row.text) for row in rows)
    return [row for row in rows if counts[row.language, row.text] == 1]
