"""What users pass for texts becomes a list of texts, or a ValueError of one sentence."""

import math

import numpy
import pytest

from xlmrxl_min.inputs import as_sequence, as_texts, as_texts_or_pairs, check_option, is_single_text


class Series:
    """As pandas' Series: iterable and with `tolist`, but no sequence."""

    ndim = 1

    def __init__(self, values):
        self.values = list(values)

    def __iter__(self):
        return iter(self.values)

    def tolist(self):
        return self.values


class DataFrame(Series):
    ndim = 2


class Label(str):
    """A subclass of str, as numpy.str_ and members of an enumeration are."""


@pytest.mark.parametrize("form", [list, tuple, iter, Series, numpy.array, lambda x: (text for text in x)])
def test_sequences_of_texts(form):
    assert as_texts(form(["a", "", "b c"])) == ["a", "", "b c"]
    assert as_texts(form([])) == []
    assert not is_single_text(form(["a"]))


@pytest.mark.parametrize("text", ["a b", "", numpy.str_("a b"), numpy.array("a b"), Label("a b")])
def test_one_text(text):
    assert is_single_text(text)
    assert as_texts(text) == [str(text)]
    assert type(as_texts(text)[0]) is str


def test_pandas():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed: classes of the same behaviour are tested")
    assert as_texts(pandas.Series(["a", "b"])) == ["a", "b"]
    with pytest.raises(ValueError, match="texts is of type DataFrame with 2 axes, but must have one"):
        as_texts(pandas.DataFrame({"text": ["a"]}))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (None, "texts is of type NoneType, but must be a list of texts, or one text"),
        (3, "texts is of type int"),
        (math.nan, "texts is of type float"),
        (b"a", "texts is of type bytes"),
        (bytearray(b"a"), "texts is of type bytearray"),
        ({"a": "b"}, "texts is of type dict"),
        ({"a": "b"}.keys(), "texts is of type dict_keys"),
        ({"a"}, "texts is of type set"),
        (frozenset("a"), "texts is of type frozenset"),
        (DataFrame(["a"]), "texts is of type DataFrame with 2 axes, but must have one"),
        (numpy.array([["a"]]), "texts is of type ndarray with 2 axes"),
        (numpy.array(3), "texts is of type ndarray with 0 axes"),
        (["a", math.nan], r"texts\[1\] is of type float, but must be a text, a str"),
        (Series(["a", None]), r"texts\[1\] is of type NoneType"),
        (numpy.array([1, 2]), r"texts\[0\] is of type int"),
        ([["a"]], r"texts\[0\] is of type list"),
        ([b"a"], r"texts\[0\] is of type bytes"),
        (["a", "b\ud83d"], r"texts\[1\] has '\\ud83d' at index 1, a lone surrogate, which is no character: replace it"),
    ],
)
def test_what_is_no_text_raises_one_sentence(values, words):
    with pytest.raises(ValueError, match=words) as caught:
        as_texts(values)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()  # it can be printed


def test_texts_and_pairs():
    items = ["a", ("b", "c"), ["d", "e"]]
    for form in (list, tuple, iter, Series):
        assert as_texts_or_pairs(form(items), "texts") == items
    for item, words in (
        (("a",), r"texts\[1\] has 1 texts, but one input of the model has one or two"),
        (("a", "b", "c"), r"texts\[1\] has 3 texts"),
        (("a", None), r"texts\[1\] is of type NoneType"),
        ({"a", "b"}, r"texts\[1\] is of type set"),
        (("a", "\udfff"), r"texts\[1\] has '\\udfff' at index 0"),
    ):
        with pytest.raises(ValueError, match=words):
            as_texts_or_pairs(["a", item], "texts")


def test_a_sequence_is_not_iterated_twice():
    assert as_sequence(iter([1, 2]), "numbers", "numbers") == [1, 2]


@pytest.mark.parametrize("value", [["a"], {}, {"a"}, numpy.array(["a", "b"]), 1.0, "b", b"a", object])
def test_an_option_of_another_kind_raises_one_sentence(value):
    check_option("padding", "a", (True, "a"))
    check_option("padding", numpy.str_("a"), (True, "a"))
    with pytest.raises(ValueError, match=r"padding=.* is unknown: take one of True, 'a'\."):
        check_option("padding", value, (True, "a"))
