"""The tasks are what they say: labels true of the text, answers in place, scores counted by hand, losses equal."""

import math
import random
import warnings
from collections import Counter
from itertools import pairwise

import pytest
import torch
import transformers
from reference import SMALL, gradient_error, output_error

from xlmrxl_min import XLMRobertaTokenizer, XLMRobertaXLConfig
from xlmrxl_min.training import loop, tasks
from xlmrxl_min.training.tasks import (
    ARTICLES,
    SEPARATOR,
    TASKS,
    Example,
    chance,
    compare,
    encode,
    labelled_batches,
    score,
    split,
)
from xlmrxl_min.training.texts import udhr

LANGUAGES = ["en", "fr", "de", "es", "it", "nl", "ru", "el", "tr", "ar", "hi", "zh", "ja", "sw", "id"]
SOME = ["en", "ru", "zh", "hi"]
TEXT = [row for row in udhr() if row.article > 0]
LABELS = {"language_identification": SOME, "languages_present": SOME, "language_tagging": SOME}
LABELS["article_identification"] = [f"Article {number}" for number in ARTICLES]
JOBS = {name: tasks.task(name, LABELS.get(name, ())) for name in TASKS}


@pytest.fixture(scope="module")
def tokenizer():
    return XLMRobertaTokenizer.from_pretrained("tiny")


def derive(name, languages=SOME, articles=ARTICLES, **options):
    return getattr(tasks, name)(languages, articles, **options)


def places(part, language):
    """Which paragraphs in this language hold this."""
    return {row[1:3] for row in TEXT if row.language == language and part in row.text}


# ---- the text


def test_splits_are_disjoint_and_stay_so_for_any_selection():
    train_articles, test = split()
    assert test == [2, 7, 12, 17, 22, 27]
    assert sorted([*train_articles, *test]) == list(ARTICLES)
    assert split([17, 3, 4, 2]) == ([3, 4], [17, 2])
    for articles in ([1, 3], [2, 17]):
        with pytest.raises(ValueError, match="leave a side empty: give some of 2, 7, 12, 17, 22, 27"):
            split(articles)


@pytest.mark.parametrize("name", TASKS)
def test_every_text_is_from_the_articles_asked_for(name):
    """Whatever an example holds stands in a paragraph of these articles, so nothing of the test is in the training."""
    for articles in split():
        texts = [row.text for row in TEXT if row.article in articles and row.language in SOME]
        for example in derive(name, articles=articles):
            parts = [part for other in example.others for part in other.split(SEPARATOR)]
            if name in ("language_tagging", "languages_present", "language_share"):
                words = example.text.split()
                assert all(any(word in text for text in texts) for word in words)
            else:
                parts.append(example.text)
            assert all(any(part in text for text in texts) for part in parts)


def test_words_are_what_stands_between_spaces_where_there_are_any():
    for row in TEXT:
        words = [row.text[slice(*span)] for span in tasks.word_spans(row.text)]
        assert "".join(words) == "".join(row.text.split())
        if row.language in LANGUAGES and row.language not in ("zh", "ja"):
            assert words == row.text.split()
    for language in ("zh", "ja"):  # as many words as elsewhere, roughly: English has 27 to a paragraph
        mean = sum(len(tasks.word_spans(row.text)) for row in TEXT if row.language == language) / 50
        assert 18 < mean < 36, (language, mean)


def test_excerpts_are_every_run_of_words():
    text = "one two three four"
    found = {tasks.excerpt(text, 2, random.Random(seed)) for seed in range(50)}
    assert found == {"one two", "two three", "three four"}
    assert tasks.excerpt(text, 4, random.Random(0)) == tasks.excerpt(text, 9, random.Random(0)) == text
    assert [tasks.opening(text, n) for n in (1, 3, 4, 7)] == ["one", "one two three", text, text]


@pytest.mark.parametrize("name", TASKS)
def test_seeds_decide_and_rounds_draw_anew(name):
    first, again, other = (derive(name, articles=range(3, 8), seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other or name == "article_identification"  # whole paragraphs: nothing is drawn
    twice = derive(name, articles=range(3, 8), seed=1, rounds=2)
    assert abs(len(twice) - 2 * len(first)) <= 2  # an ambiguous choice is left out
    assert len(set(twice)) > 1.5 * len(first) or name == "article_identification"


# ---- labels are true of the text


def test_excerpts_are_in_the_language_they_are_said_to_be():
    examples = tasks.language_identification(LANGUAGES, [1, 2, 3], words=4, rounds=3)
    assert Counter(example.label for example in examples) == dict.fromkeys(LANGUAGES, 12)
    for example in examples:
        assert example.label == example.language
        assert places(example.text, example.label)
        assert len(tasks.word_spans(example.text)) <= 4
    whole = tasks.language_identification("en", [3], words=20)
    assert whole == [Example("Everyone has the right to life, liberty and the security of person.", "en", "en")]


def test_articles_are_the_paragraphs_own():
    examples = tasks.article_identification(SOME, ARTICLES)
    assert len(examples) == 4 * 50
    for example in [*examples, *tasks.article_identification(["en", "zh"], [3, 16], words=6, rounds=2)]:
        number = int(example.label.removeprefix("Article "))
        assert number in {article for article, _ in places(example.text, example.language)}


def test_stretches_hold_what_they_say():
    counts = Counter()
    for example in tasks.language_tagging(LANGUAGES, ARTICLES):
        assert example.language == "+".join(language for *_, language in example.label)
        sources = []
        for begin, end, language in example.label:
            part = example.text[begin:end]
            assert part == part.strip()
            assert 1 <= len(tasks.word_spans(part)) <= 6
            sources.append(places(part, language))
        assert set.intersection(*sources), "all from one paragraph"
        assert {example.text[a[1] : b[0]] for a, b in pairwise(example.label)} == {" "}
        assert (example.label[0][0], example.label[-1][1]) == (0, len(example.text))
        counts[len(example.label)] += 1
    assert set(counts) == {2, 3}
    assert min(counts.values()) > 300
    assert {len(example.label) for example in tasks.language_tagging(["en", "fr"], [1, 2])} == {2}


def test_languages_present_are_all_there_are():
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


def test_shares_can_be_counted_by_hand():
    examples = tasks.language_share(["en", "ru"], ARTICLES, words=10, rounds=2)
    assert len(examples) == 100
    assert {example.language for example in examples} == {"en+ru", "ru+en"}
    for example in examples:
        words = example.text.split()
        latin = sum(any("a" <= letter <= "z" for letter in word.lower()) for word in words)
        assert len(words) <= 10
        assert example.label == pytest.approx(latin / len(words), abs=0.11)  # "29" has no letter
    assert 0.05 < min(example.label for example in examples) < 0.2
    assert 0.8 < max(example.label for example in examples) < 0.95
    for example in tasks.language_share(["zh", "en"], [3], words=6, rounds=20):
        pairs = math.ceil(sum(letter > "\u3000" for letter in example.text) / 2)
        latin = sum(word.isascii() for word in example.text.split())
        assert example.label == pytest.approx(pairs / (pairs + latin))


@pytest.mark.parametrize("name", ["translation_choice", "translation_finding"])
def test_the_right_one_is_the_translation_and_no_other_is(name):
    """By the text itself: which paragraphs begin like this, in some language."""
    openings = {}
    for row in TEXT:
        if row.language in LANGUAGES:
            openings.setdefault(tasks.opening(row.text, 8), set()).add((row.language, row[1:3]))
    at = Counter()
    for example in derive(name, LANGUAGES, split()[0], seed=3):
        texts, right = list(example.others), example.label
        if name == "translation_finding":
            texts = texts[0].split(SEPARATOR)
            right = texts.index(example.others[0][slice(*example.label)])
        asked = {place for _, place in openings[example.text]}
        assert asked & {place for _, place in openings[texts[right]]}
        assert example.language not in {language for language, _ in openings[texts[right]]}
        assert len({article for article, _ in asked} & {article for _, (article, _) in openings[texts[right]]}) == 1
        for i, text in enumerate(texts):
            assert (i == right) == bool(asked & {place for _, place in openings[text]})
        assert len(set.union(*({language for language, _ in openings[text]} for text in texts))) < 3
        at[right] += 1
    assert set(at) == set(range(len(texts)))
    assert min(at.values()) > 0.7 * max(at.values())


def test_length_alone_finds_few_translations():
    """A rule that takes the choice as long as the question, in characters, is no way to solve it."""
    examples = tasks.translation_choice(LANGUAGES, ARTICLES, rounds=2)
    by_length = [
        min(range(4), key=lambda i, e=example: abs(len(e.others[i]) - len(e.text))) == example.label
        for example in examples
    ]
    assert sum(by_length) / len(examples) < 0.34


# ---- rows and batches


def test_tokens_have_the_language_of_their_stretch(tokenizer):
    job, examples = JOBS["language_tagging"], derive("language_tagging")
    for example, row in zip(examples, encode(job, tokenizer, examples), strict=True):
        offsets = tokenizer(example.text, return_offsets_mapping=True).offset_mapping
        assert len(row["labels"]) == len(row["input_ids"])
        assert row["labels"][0] == row["labels"][-1] == -100
        for label, (begin, end) in zip(row["labels"][1:-1], offsets[1:-1], strict=True):
            [language] = [name for a, b, name in example.label if a <= begin < b or (begin == end and a <= begin <= b)][
                :1
            ]
            assert label == (-100 if begin == end else SOME.index(language))


def test_answers_are_where_the_rows_say(tokenizer):
    job, examples = JOBS["translation_finding"], derive("translation_finding")
    for example, row in zip(examples, encode(job, tokenizer, examples), strict=True):
        ids = row["input_ids"][row["start_positions"] : row["end_positions"] + 1]
        found, said = tokenizer.decode(ids), example.others[0][slice(*example.label)]
        assert "".join(found.split()) == "".join(
            tokenizer.decode(tokenizer.encode(said), skip_special_tokens=True).split()
        )


def test_wrong_labels_are_refused(tokenizer):
    def one(name, **changed):
        return lambda: encode(JOBS[name], tokenizer, [derive(name)[0]._replace(**changed)])

    passage = derive("translation_finding")[0]
    for action, words in (
        (one("language_identification", label="xx"), "'xx' is no label of language_identification, which has en, ru"),
        (one("languages_present", label=("en", "xx")), "'xx' is no label of languages_present"),
        (one("language_tagging", label=((0, 3, "xx"),)), "'xx' is no label of language_tagging"),
        (one("language_tagging", label=((0, 9999, "en"),)), "characters 0 to 9999 hold no text: there are"),
        (one("translation_choice", label=4), "the answer is choice 4 of 4: give its number, counted from 0"),
        (one("translation_finding", label=(3, 3)), "characters 3 to 3 hold no text"),
        (one("translation_finding", label=(0, 9999)), "characters 0 to 9999 hold no text"),
        (one("translation_finding", others=()), "one passage, and this example has 0"),
        (lambda: encode(JOBS["translation_finding"], tokenizer, [passage], max_length=9), "max_length=9 cuts it off"),
        (lambda: tasks.task("poetry"), "'poetry' is no task: there are language_identification"),
        (lambda: tasks.task("language_tagging"), r"was given the labels \(\), but takes its labels, each once"),
        (lambda: tasks.task("translation_choice", ["en"]), "but takes no labels"),
        (lambda: derive("language_identification", []), "too few languages here: name 1 or more"),
        (lambda: derive("language_tagging", ["en"]), "too few languages here: name 2 or more"),
        (lambda: derive("language_share", "en"), "too few languages here: name 2 or more"),
        (lambda: derive("translation_choice", "en"), "en is no translation of en"),
        (
            lambda: derive("translation_choice", articles=[3, 4]),
            "4 texts of 8 words in 1 rounds cannot be had",
        ),
        (
            lambda: derive("language_identification", articles=[0]),
            r"articles \[0\] are not possible: take some of 1 to 30",
        ),
        (lambda: derive("language_identification", rounds=0), "rounds=0 is impossible"),
        (lambda: derive("language_share", words=1), "1 words cannot be shared"),
        (lambda: derive("language_identification", ["tlh"]), "tlh"),
        (lambda: compare(JOBS["language_share"], [], []), "nothing to score"),
    ):
        with pytest.raises(ValueError, match=words):
            action()


def test_the_answer_may_end_with_the_last_token_that_is_left(tokenizer):
    example = Example("Alle", (0, 3), "de", ("all of it and more",))
    [row] = encode(JOBS["translation_finding"], tokenizer, [example])
    shortest = row["end_positions"] + 2
    [cut] = encode(JOBS["translation_finding"], tokenizer, [example], max_length=shortest)
    assert len(cut["input_ids"]) == shortest
    assert cut["input_ids"][-1] == tokenizer.eos_token_id
    with pytest.raises(ValueError, match="cuts it off: allow more"):
        encode(JOBS["translation_finding"], tokenizer, [example], max_length=shortest - 1)


@pytest.mark.parametrize("name", TASKS)
def test_batches_hold_every_row_once(name, tokenizer):
    job = JOBS[name]
    rows = encode(job, tokenizer, derive(name, articles=range(3, 10)))
    shapes = {"labels": ("b",), "start_positions": ("b",), "end_positions": ("b",)}
    seen = Counter()
    for batch in labelled_batches(rows, 600, 1, torch.Generator().manual_seed(0)):
        ids = batch["input_ids"]
        assert ids.numel() <= 600 or len(ids) == 1
        torch.testing.assert_close(batch["attention_mask"], (ids != 1).long())
        b, t, c = ids.shape[0], ids.shape[-1], len(job.labels)
        wanted = {"language_tagging": (b, t), "languages_present": (b, c)}.get(name, (b,))
        assert all(batch[key].shape == wanted for key in shapes if key in batch)
        if name == "language_tagging":
            assert (batch["labels"][ids == 1] == -100).all()
        for i in range(b):
            texts = ids[i] if ids.dim() == 3 else ids[i : i + 1]
            texts = tuple(tuple(text[text != 1].tolist()) for text in texts)
            labels = [batch[key][i].tolist() for key in sorted(shapes) if key in batch]
            labels = [label[: len(texts[0])] if name == "language_tagging" else label for label in labels]
            seen[texts, str(labels)] += 1
    expected = Counter()
    for row in rows:
        texts = row["input_ids"] if name == "translation_choice" else [row["input_ids"]]
        labels = [row[key] for key in sorted(shapes) if key in row]
        if name == "language_share":
            labels = torch.tensor(labels).tolist()
        expected[tuple(map(tuple, texts)), str(labels)] += 1
    assert seen == expected


def test_rows_that_cannot_be_one_batch_are_refused():
    with pytest.raises(ValueError, match=r"rows have \[2, 3\] choices: give each as many"):
        labelled_batches([{"input_ids": [[0, 2]] * n, "labels": 0} for n in (2, 3)], 100, 1)
    with pytest.raises(ValueError, match="a row has 2 labels, but must have 3"):
        labelled_batches([{"input_ids": [0, 5, 2], "labels": [-100, 1]}], 100, 1)
    with pytest.raises(ValueError, match="a row has 1 labels, but must have 2"):
        labelled_batches([{"input_ids": [0, 5, 2], "labels": row} for row in ([0.0, 1.0], [1.0])], 100, 1)
    with pytest.raises(ValueError, match="0 tokens in a batch are impossible"):
        labelled_batches([{"input_ids": [0, 5, 2], "labels": 1}], 0, 1)


# ---- scores


def example_of(label, text="ab cd", others=()):
    return Example(text, label, "", others)


@pytest.mark.parametrize(
    ("name", "examples", "found", "expected", "by_chance"),
    [
        ("language_identification", [example_of(x) for x in ("en", "en", "ru", "zh")], ["en", "ru", "ru", "zh"],
         {"accuracy": 3 / 4}, {"accuracy": 2 / 4}),
        ("languages_present", [example_of(x) for x in (("en",), ("en", "ru"), ("en", "ru"))],
         [("en",), ("ru", "en"), ("zh",)],
         {"exact": 2 / 3, "by_label": 9 / 12}, {"exact": 2 / 3, "by_label": 11 / 12}),
        ("language_share", [example_of(x) for x in (0.2, 0.4, 0.9)], [0.1, 0.4, 1.0],
         {"error": 0.2 / 3, "correlation": 0.33 / math.sqrt(0.26 * 0.42)}, {"error": 0.7 / 3, "correlation": 0.0}),
        ("language_tagging", [example_of(((0, 2, "en"), (3, 5, "ru"))), example_of(((0, 4, "ru"),))],
         [((0, 1, "en"), (3, 5, "ru")), ((0, 2, "ru"), (2, 5, "en"))], {"accuracy": 5 / 8}, {"accuracy": 6 / 8}),
        ("translation_choice", [example_of(1, others=("a", "b", "c", "d")), example_of(0, others=("a", "b"))], [1, 1],
         {"accuracy": 1 / 2}, {"accuracy": 1 / 2}),
        ("translation_finding", [example_of(at, others=("one </s> two",)) for at in ((0, 3), (9, 12))],
         [(0, 3), (7, 12)], {"exact": 1 / 2, "overlap": (1 + 6 / 8) / 2}, {"exact": 1 / 2, "overlap": 1 / 2}),
        ("translation_finding", [example_of(at, others=("one </s> seven",)) for at in ((0, 3), (9, 14))],
         [(0, 3), (9, 14)], {"exact": 1, "overlap": 1}, {"exact": 1 / 2, "overlap": 1 / 2}),
    ],
)  # fmt: skip
def test_scores_by_hand(name, examples, found, expected, by_chance):
    assert compare(JOBS[name], found, examples) == pytest.approx(expected, abs=1e-4)
    assert chance(JOBS[name], examples) == pytest.approx(by_chance)


def test_chance_may_answer_with_the_whole_passage():
    passage = SEPARATOR.join(["a" * 20] * 3)  # 72 characters, of which every answer has 20
    examples = [example_of(at, others=(passage,)) for at in ((0, 20), (26, 46), (52, 72))]
    assert chance(JOBS["translation_finding"], examples) == pytest.approx({"exact": 1 / 3, "overlap": 40 / 92})


@pytest.mark.parametrize("name", TASKS)
def test_a_few_steps_teach_the_examples_and_transformers_agrees(name, tokenizer, tmp_path):
    """Fine-tuned from `tiny`, every head answers better than chance on what it was shown; the saved checkpoint gives
    the same loss, logits and gradients in transformers."""
    torch.manual_seed(0)
    words = {"article_identification": 12, "translation_choice": 6, "translation_finding": 6}
    job, options = JOBS[name], {"words": words[name]} if name in words else {}
    examples = derive(name, articles=range(3, 8), **options)[:24]
    batches = labelled_batches(encode(job, tokenizer, examples), 1500, tokenizer.pad_token_id)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the head is new
        model = job.model_class.from_pretrained("tiny", **job.config)
    loop.fit(model, batches, steps=25, learning_rate=1e-3, warmup_steps=3, progress=False)
    ours, guess = score(job, model, tokenizer, examples), chance(job, examples)
    best = next(iter(ours))
    assert (ours[best] < 0.6 * guess[best]) if best == "error" else (ours[best] > guess[best] + 0.25), (ours, guess)

    model.save_pretrained(tmp_path)
    theirs = (
        getattr(transformers, job.model_class.__name__).from_pretrained(tmp_path, attn_implementation="eager").eval()
    )
    assert theirs.config.problem_type == job.problem_type
    out, reference = model.eval()(**batches[0]), theirs(**batches[0])
    assert output_error(out, reference) < 2e-5
    model.zero_grad()
    out.loss.backward()
    reference.loss.backward()
    assert gradient_error(model, theirs) < 2e-5
    assert model.backbone.embeddings.word.weight.grad.abs().max() > 1e-6


def test_a_new_head_is_initialised_by_the_config(tokenizer):
    job = JOBS["language_tagging"]
    model = job.model_class(XLMRobertaXLConfig(**{**SMALL, **job.config}))
    assert model.config.id2label == dict(enumerate(SOME))
    assert model.classifier.out_features == 4
