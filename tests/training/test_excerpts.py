"""The excerpts in the package, and the rules by which they are chosen."""

from collections import Counter, defaultdict

import pytest

from xlmrxl_min.checkpoints.locate import PRETRAINED
from xlmrxl_min.training.corpus import LANGUAGES, Row, is_held_out
from xlmrxl_min.training.excerpts import (
    MAX_WORDS,
    MIN_LANGUAGES,
    PLACES,
    PLACES_OF_SECTION,
    TEST_EMOJI,
    emoji_rows,
    in_hash_order,
    parallel_rows,
)
from xlmrxl_min.training.texts import PARALLEL_FILE, emoji_names, parallel_sentences


def test_an_order_that_is_always_the_same():
    assert in_hash_order("abcd") == in_hash_order("dbca") == ["d", "c", "b", "a"]
    assert in_hash_order([("b", "c"), ("a", "")]) == in_hash_order([("a", ""), ("b", "c")])


# ---- the files


def test_emoji_names():
    rows = emoji_names()
    languages = defaultdict(set)
    for row in rows:
        languages[row.emoji, row.split].add(row.language)
        assert row.name == row.name.strip() != ""
    assert set(map(frozenset, languages.values())) == {frozenset(["en"]), frozenset(LANGUAGES)}
    assert Counter(split for _, split in languages) == {"train": 1103, "test": TEST_EMOJI}
    groups = Counter(row.group for row in rows if (row.split, row.language) == ("test", "en"))
    assert len(groups) == 8
    assert "Flags" not in groups
    assert max(groups.values()) / TEST_EMOJI == pytest.approx(0.2, abs=0.02)


def test_parallel_sentences():
    rows = parallel_sentences()
    assert (PRETRAINED / PARALLEL_FILE).stat().st_size <= 450_000
    places = defaultdict(dict)
    for row in rows:
        assert row.held_out == is_held_out(Row(row.language, row.source, "", row.section, row.place, row.text))
        assert row.language not in places[row[1:5]]
        places[row[1:5]][row.language] = row.text
    for texts in places.values():
        assert len(texts) >= MIN_LANGUAGES
        assert len(texts["en"].split()) <= MAX_WORDS
    counts = Counter((source, held_out) for source, _, _, held_out in places)
    assert counts == {(source, bool(i)): n for source, numbers in PLACES.items() for i, n in enumerate(numbers)}


# ---- the rules


def test_emoji_without_a_name_or_a_group_are_left_out():
    names = {"en": {"❤\ufe0f": "red heart", "🏁": "chequered flag", "🐋": "whale"}, "sw": {"❤": "moyo"}}
    groups = {"❤": "Smileys & Emotion", "🏁": "Flags", "🐋\ufe0f": "Animals & Nature"}
    assert list(emoji_rows(names, groups)) == [
        ("❤", "Smileys & Emotion", "test", "en", "red heart"),
        ("❤", "Smileys & Emotion", "test", "sw", "moyo"),
    ]


def place(section, english, languages="en fr de ru hi ar", source="bible", version=""):
    return [
        Row(language, source, version, section, "1", english if language == "en" else language)
        for language in languages.split()
    ]


def test_which_sentences_are_chosen():
    good = "This is a whole and short sentence."
    rows = [
        *place("1", good),
        *place("2", good, "en fr de ru hi"),
        *place("3", good, "es fr de ru hi ar"),
        *place("4", good.replace("This", "this")),
        *place("5", good.replace(".", ",")),
        *place("6", "Too short."),
        *place("7", good[:-1] + " which goes on" * 10 + "."),
        *place("8", good, source="udhr"),
        *place("9", "when clicked", source="scratch"),
        *place("10", "when flag clicked", source="scratch"),
        *place("1", "King James", "en", version="k"),
    ]
    found = list(parallel_rows(rows))
    assert {(row.source, row.section) for row in found} == {("bible", "1"), ("scratch", "10")}
    assert [row.language for row in found if row.source == "bible"] == ["en", "fr", "de", "ru", "ar", "hi"]
    assert [row.text for row in found if row.language == "en" and row.source == "bible"] == [good]
    assert all(row.held_out == is_held_out(Row("", row.source, "", row.section, "", "")) for row in found)


def test_few_of_one_section_and_of_one_source():
    one = [row._replace(place=str(i)) for i in range(50) for row in place("1", "This is a whole and short sentence.")]
    assert len(list(parallel_rows(one))) == 6 * PLACES_OF_SECTION
    many = [row for i in range(5000) for row in place(str(i), "This is a whole and short sentence.")]
    found = Counter(row.held_out for row in parallel_rows(many))
    assert found == {False: 6 * PLACES["bible"][0], True: 6 * PLACES["bible"][1]}
