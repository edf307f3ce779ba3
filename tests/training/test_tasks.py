"""The tasks: their labels agree with the text, nothing is in both train and test articles, errors."""

import math
import random
from collections import Counter
from itertools import pairwise

import pytest

from xlmrxl_min.tokenizer import word_spans
from xlmrxl_min.training import tasks
from xlmrxl_min.training.tasks import ARTICLES, SEPARATOR, TASKS, Example, train_test_split
from xlmrxl_min.training.texts import parallel_sentences, udhr

LANGUAGES = ["en", "fr", "de", "es", "it", "nl", "ru", "el", "tr", "ar", "hi", "zh", "ja", "sw", "id"]
SOME = ["en", "ru", "zh", "hi"]
TEXT = [row for row in udhr() if row.article > 0]


def derive(name, languages=SOME, articles=ARTICLES, **options):
    return getattr(tasks, name)(languages, articles, **options)


def paragraphs_with(part, language):
    """The paragraphs in this language that contain this text."""
    return {row[1:3] for row in TEXT if row.language == language and part in row.text}


# ---- the text


def test_train_and_test_articles_are_disjoint_for_any_selection():
    train_articles, test = train_test_split()
    assert test == [2, 7, 12, 17, 22, 27]
    assert sorted([*train_articles, *test]) == list(ARTICLES)
    assert train_test_split([17, 3, 4, 2]) == ([3, 4], [17, 2])
    for articles in ([1, 3], [2, 17]):
        with pytest.raises(ValueError, match="leave a part empty: give some of 2, 7, 12, 17, 22, 27"):
            train_test_split(articles)


@pytest.mark.parametrize("name", TASKS)
def test_every_text_is_from_the_given_articles(name):
    """All of an example is in a paragraph of these articles, so no test text is in the training examples."""
    for articles in train_test_split():
        texts = [row.text for row in TEXT if row.article in articles and row.language in SOME]
        for example in derive(name, articles=articles):
            parts = [part for other in example.others for part in other.split(SEPARATOR)]
            if name in ("language_tagging", "languages_present", "language_fraction"):
                words = example.text.split()
                assert all(any(word in text for text in texts) for word in words)
            else:
                parts.append(example.text)
            assert all(any(part in text for text in texts) for part in parts)


def test_words_are_separated_by_spaces_in_scripts_with_spaces():
    for row in TEXT:
        words = [row.text[slice(*span)] for span in word_spans(row.text)]
        assert "".join(words) == "".join(row.text.split())
        if row.language in LANGUAGES and row.language not in ("zh", "ja"):
            assert words == row.text.split()
    for language in ("zh", "ja"):  # as many words as elsewhere, roughly: English has 27 to a paragraph
        mean = sum(len(word_spans(row.text)) for row in TEXT if row.language == language) / 50
        assert 18 < mean < 36, (language, mean)


def test_every_run_of_words_can_be_an_excerpt():
    text = "one two three four"
    found = {tasks.excerpt(text, 2, random.Random(seed)) for seed in range(50)}
    assert found == {"one two", "two three", "three four"}
    assert tasks.excerpt(text, 4, random.Random(0)) == tasks.excerpt(text, 9, random.Random(0)) == text
    assert [tasks.first_words(text, n) for n in (1, 3, 4, 7)] == ["one", "one two three", text, text]


@pytest.mark.parametrize("name", TASKS)
def test_a_seed_determines_the_examples_and_rounds_differ(name):
    first, again, other = (derive(name, articles=range(3, 8), seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other or name == "article_identification"  # whole paragraphs: nothing is random
    twice = derive(name, articles=range(3, 8), seed=1, rounds=2)
    assert abs(len(twice) - 2 * len(first)) <= 2  # an ambiguous choice is left out
    assert len(set(twice)) > 1.5 * len(first) or name == "article_identification"


# ---- labels agree with the text


def test_excerpts_are_in_the_language_of_their_label():
    examples = tasks.language_identification(LANGUAGES, [1, 2, 3], words=4, rounds=3)
    assert Counter(example.label for example in examples) == dict.fromkeys(LANGUAGES, 12)
    for example in examples:
        assert example.label == example.language
        assert paragraphs_with(example.text, example.label)
        assert len(word_spans(example.text)) <= 4
    whole = tasks.language_identification("en", [3], words=20)
    assert whole == [Example("Everyone has the right to life, liberty and the security of person.", "en", "en")]


def test_article_labels_are_right():
    examples = tasks.article_identification(SOME, ARTICLES)
    assert len(examples) == 4 * 50
    for example in [*examples, *tasks.article_identification(["en", "zh"], [3, 16], words=6, rounds=2)]:
        number = int(example.label.removeprefix("Article "))
        assert number in {article for article, _ in paragraphs_with(example.text, example.language)}


def test_tagged_spans_are_in_their_language():
    counts = Counter()
    for example in tasks.language_tagging(LANGUAGES, ARTICLES):
        assert example.language == "+".join(language for *_, language in example.label)
        sources = []
        for begin, end, language in example.label:
            part = example.text[begin:end]
            assert part == part.strip()
            assert 1 <= len(word_spans(part)) <= 6
            sources.append(paragraphs_with(part, language))
        assert set.intersection(*sources), "all from one paragraph"
        assert {example.text[a[1] : b[0]] for a, b in pairwise(example.label)} == {" "}
        assert (example.label[0][0], example.label[-1][1]) == (0, len(example.text))
        counts[len(example.label)] += 1
    assert set(counts) == {2, 3}
    assert min(counts.values()) > 300
    assert {len(example.label) for example in tasks.language_tagging(["en", "fr"], [1, 2])} == {2}


def test_languages_present_are_complete():
    examples = tasks.languages_present(SOME, ARTICLES, rounds=2)
    assert set(Counter(len(example.label) for example in examples)) == {1, 2, 3}
    for example in examples:
        assert len(set(example.label)) == len(example.label)
        cyrillic, devanagari, chinese, latin = (
            any(low <= letter <= high for letter in example.text)
            for low, high in (("а", "я"), ("\u0900", "\u097f"), ("\u4e00", "\u9fff"), ("a", "z"))
        )
        assert set(example.label) == {
            name
            for name, there in zip(("ru", "hi", "zh", "en"), (cyrillic, devanagari, chinese, latin), strict=True)
            if there
        }


def test_fractions_can_be_counted_by_hand():
    examples = tasks.language_fraction(["en", "ru"], ARTICLES, words=10, rounds=2)
    assert len(examples) == 100
    assert {example.language for example in examples} == {"en+ru", "ru+en"}
    for example in examples:
        words = example.text.split()
        latin = sum(any("a" <= letter <= "z" for letter in word.lower()) for word in words)
        assert len(words) <= 10
        assert example.label == pytest.approx(latin / len(words), abs=0.11)  # "29" has no letter
    assert 0.05 < min(example.label for example in examples) < 0.2
    assert 0.8 < max(example.label for example in examples) < 0.95
    for example in tasks.language_fraction(["zh", "en"], [3], words=6, rounds=20):
        pairs = math.ceil(sum(letter > "\u3000" for letter in example.text) / 2)
        latin = sum(word.isascii() for word in example.text.split())
        assert example.label == pytest.approx(pairs / (pairs + latin))


@pytest.mark.parametrize("name", ["translation_choice", "translation_finding"])
def test_exactly_the_right_candidate_is_the_translation(name):
    """Checked on the text itself: the paragraphs that begin like this, in any language."""
    beginnings = {}
    for row in TEXT:
        if row.language in LANGUAGES:
            beginnings.setdefault(tasks.first_words(row.text, 8), set()).add((row.language, row[1:3]))
    counts = Counter()
    for example in derive(name, LANGUAGES, train_test_split()[0], seed=3):
        texts, right = list(example.others), example.label
        if name == "translation_finding":
            texts = texts[0].split(SEPARATOR)
            right = texts.index(example.others[0][slice(*example.label)])
        asked = {at for _, at in beginnings[example.text]}
        assert asked & {at for _, at in beginnings[texts[right]]}
        assert example.language not in {language for language, _ in beginnings[texts[right]]}
        assert len({article for article, _ in asked} & {article for _, (article, _) in beginnings[texts[right]]}) == 1
        for i, text in enumerate(texts):
            assert (i == right) == bool({x[0] for x in asked} & {at[0] for _, at in beginnings[text]})
        assert len(set.union(*({language for language, _ in beginnings[text]} for text in texts))) < 3
        counts[right] += 1
    assert set(counts) == set(range(len(texts)))
    assert min(counts.values()) > 0.7 * max(counts.values())


@pytest.mark.parametrize("part", tasks.PARTS)
def test_translations_among_the_parallel_sentences(part):
    """Of the right part, and with the right translation, by the file itself."""
    beginnings = {}
    for row in parallel_sentences():
        if row.held_out == tasks.PARTS.index(part):
            beginnings.setdefault(tasks.first_words(row.text, 12), set()).add(row[1:4])
    for example in tasks.translation_choice("en", part, into=["fr", "hi"], words=12):
        right = [i for i, other in enumerate(example.others) if beginnings[example.text] & beginnings[other]]
        assert right == [example.label]


def test_topics_are_those_of_the_books_and_no_text_is_in_both_parts():
    studied, held_out = (tasks.topic_texts(LANGUAGES, part) for part in tasks.PARTS)
    rows = {tasks.first_words(row.text, 20): row for row in parallel_sentences()}
    places = []
    for texts, is_held_out in ((studied, False), (held_out, True)):
        assert set(texts) >= {(language, topic) for language in LANGUAGES for topic in ("software", "law")}
        for (language, topic), some in texts.items():
            assert all(len(word_spans(text)) <= 20 for text in some)
            for row in (rows[text] for text in some if topic != "law"):
                assert (row.language, topic) == (language, "religion" if row.source == "bible" else "software")
                assert row.source == "scratch" or row.held_out == is_held_out
        laws = [row for (_, topic), some in texts.items() if topic == "law" for row in some]
        places.append({rows[text][1:4] for (_, topic), some in texts.items() if topic != "law" for text in some})
        places[-1] |= {at for text in laws for at in {row[1:3] for row in TEXT if row.text.startswith(text)}}
    assert not places[0] & places[1], "a text has its translation in the other part"


def test_topics_are_found_in_the_passage():
    examples, texts = (make(LANGUAGES, "held out") for make in (tasks.topic_finding, tasks.topic_texts))
    texts_of = tasks.topic_texts(LANGUAGES, "studied")
    for example in examples:
        assert example.others[0][slice(*example.label)] in texts[example.language, example.text]
        assert example.others[0].count(SEPARATOR) == sum(language == example.language for language, _ in texts) - 1
    assert set(Counter(x.language for x in tasks.topic_finding(LANGUAGES, "held out", count=9)).values()) == {9}
    for example in tasks.topic_choice(LANGUAGES, "studied", count=9):
        found = texts_of[example.language, example.text]
        assert [text in found for text in example.others] == [i == example.label for i in range(len(example.others))]
    assert {x.text for x in tasks.topic_finding(LANGUAGES, "held out", topic="law", count=3)} == {"law"}
    counted = tasks.topic_identification(["en", "sw"], "held out", count=5)
    assert Counter(x.language for x in counted) == {"en": 15, "sw": 10}
    assert all(x.text in texts[x.language, x.label] for x in counted)


def test_length_does_not_reveal_the_translation():
    """Taking the choice closest in length to the question, in characters, is hardly better than chance."""
    examples = tasks.translation_choice(LANGUAGES, ARTICLES, rounds=2)
    by_length = [
        min(range(4), key=lambda i, e=example: abs(len(e.others[i]) - len(e.text))) == example.label
        for example in examples
    ]
    assert sum(by_length) / len(examples) < 0.34


def test_impossible_examples():
    for action, words in (
        (lambda: tasks.task("poetry"), "'poetry' is no task: there are language_identification"),
        (lambda: tasks.task("language_tagging"), r"was given the labels \(\), but takes its labels, each once"),
        (lambda: tasks.task("language_tagging", ["en", "en"]), "takes its labels, each once"),
        (lambda: tasks.task("translation_choice", ["en"]), "but takes no labels"),
        (lambda: derive("language_identification", []), "too few languages here: name 1 or more"),
        (lambda: derive("language_tagging", ["en"]), "too few languages here: name 2 or more"),
        (lambda: derive("language_fraction", "en"), "too few languages here: name 2 or more"),
        (lambda: derive("translation_choice", "en"), "en is no translation of en"),
        (lambda: derive("translation_choice", articles=[3, 4]), "4 texts of 8 words in 1 rounds cannot be had"),
        (
            lambda: derive("language_identification", articles=[0]),
            r"articles \[0\] are not possible: take some of 1 to 30",
        ),
        (lambda: derive("language_identification", rounds=0), "rounds=0 is impossible"),
        (lambda: derive("language_fraction", words=1), "words=1 is impossible"),
        (lambda: derive("language_identification", ["tlh"]), "tlh"),
        (lambda: tasks.topic_choice("en", "studied", topic="art"), "topic='art' is unknown: take one of 'religion'"),
        (lambda: tasks.topic_identification("en", "test"), "part='test' is unknown: take one of 'studied', 'held"),
    ):
        with pytest.raises(ValueError, match=words):
            action()
