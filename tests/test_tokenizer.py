"""The tokenizer equals published ids, SentencePiece's and fairseq's rules, and transformers' tokenizer; words."""

import unicodedata

import pytest
import sentencepiece
import torch
import transformers

from xlmrxl_min import XLMRobertaTokenizer
from xlmrxl_min.checkpoints.locate import PRETRAINED
from xlmrxl_min.tokenizer import VOCABULARY_FILE, group_words, starts_word, word_spans
from xlmrxl_min.training.texts import udhr

STRINGS = (
    "",
    " ",
    "Hello world!",
    "  two  spaces, a\ttab\nand a line ",
    "Europe is a <mask> continent.",
    "Europe is a<mask>continent.",
    "<mask>",
    "<mask> <mask><mask> .",
    "the end </s> and <s> a <pad> beginning <unk>",
    "not special: <MASK> < mask > <mask",
    "ﬁne ½ ① ｆｕｌｌ　ｗｉｄｔｈ",
    "👍🏽 \U0001f9ff \u0b05 ꧁",
    "e\u0301 and é",
    "zero\u200bwidth, soft\u00adhyphen, non\u00a0breaking",
    "人人生而自由,在尊严和权利上一律平等。",
    "يولد جميع الناس أحرارًا متساوين",
    "ทุกคนเกิดมาอิสระ",
    "▁ itself",
)


@pytest.fixture(scope="module", params=["xlm-roberta-xl", "tiny"])
def both(request):
    """(theirs, ours) on the same vocabulary."""
    path = PRETRAINED / request.param / VOCABULARY_FILE
    return transformers.XLMRobertaTokenizer(str(path)), XLMRobertaTokenizer.from_pretrained(request.param)


def test_published_ids():
    """fairseq's README for XLM-R; Hugging Face's integration test of the model."""
    tokenizer = XLMRobertaTokenizer.from_pretrained("xlm-roberta-xl")
    assert tokenizer.encode("Hello world!") == [0, 35378, 8999, 38, 2]
    assert tokenizer.encode("Bonjour le monde") == [0, 84602, 95, 11146, 2]
    sentence = "The dog is cute and lives in the garden house"
    assert tokenizer.encode(sentence) == [0, 581, 10269, 83, 99942, 136, 60742, 23, 70, 80583, 18276, 2]
    assert len(tokenizer) == tokenizer.vocab_size == 250002
    assert tokenizer.mask_token_id == 250001
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (
        0,
        1,
        2,
        3,
    )


def test_fairseq_numbering():
    """Every id is one higher than SentencePiece's; the first four are fairseq's special tokens."""
    tokenizer = XLMRobertaTokenizer.from_pretrained("xlm-roberta-xl")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(PRETRAINED / "xlm-roberta-xl" / VOCABULARY_FILE))
    for number in (3, 4, 5, 1000, 249_999):
        assert tokenizer.convert_tokens_to_ids(pieces.id_to_piece(number)) == number + 1
        assert tokenizer.convert_ids_to_tokens(number + 1) == pieces.id_to_piece(number)
    assert tokenizer.convert_ids_to_tokens(range(4)) == ["<s>", "<pad>", "</s>", "<unk>"]
    assert tokenizer.convert_tokens_to_ids(["<mask>", "no such piece"]) == [250001, 3]


@pytest.mark.parametrize("text", STRINGS)
def test_strings_equal_transformers(both, text):
    theirs, ours = both
    assert ours.encode(text) == theirs.encode(text)
    assert ours.convert_ids_to_tokens(ours.encode(text)) == theirs.convert_ids_to_tokens(theirs.encode(text))
    kept = ours.encode(text)
    assert ours.decode(kept, skip_special_tokens=True) == theirs.decode(kept, skip_special_tokens=True).strip()


def test_every_paragraph_in_fifty_languages_equals_transformers(both):
    theirs, ours = both
    texts = [row.text for row in udhr()]
    assert ours(texts)["input_ids"] == theirs(texts)["input_ids"]


def test_pairs_padding_truncation_equal_transformers(both):
    theirs, ours = both
    rows = udhr(["en", "zh", "ar"])
    firsts, seconds = [row.text for row in rows[:12]], [row.text for row in rows[-12:]]
    for options in (
        {"padding": True},
        {"padding": "max_length", "max_length": 200},
        {"padding": True, "truncation": True, "max_length": 20},
        {"truncation": "only_first", "max_length": 200},
        {"add_special_tokens": False},
    ):
        for pair in (None, seconds):
            expected, got = theirs(firsts, pair, **options), ours(firsts, pair, **options)
            assert got["input_ids"] == expected["input_ids"]
            assert got["attention_mask"] == expected["attention_mask"]
    for limit in range(4, 40):
        expected = theirs(firsts[0], seconds[0], truncation="longest_first", max_length=limit)["input_ids"]
        assert ours(firsts[0], seconds[0], truncation=True, max_length=limit)["input_ids"] == expected


def test_max_length_alone_truncates():
    tokenizer = XLMRobertaTokenizer.from_pretrained("tiny")
    long = "all human beings are born free and equal"
    assert len(tokenizer(long, max_length=5).input_ids) == 5
    assert len(tokenizer(long, max_length=5, truncation=False).input_ids) > 5
    assert len(tokenizer(long, max_length=5, padding=True).input_ids) > 5
    assert len(tokenizer("free " * 100_000, truncation=True).input_ids) == 512  # and it is fast


def test_template_of_a_pair():
    tokenizer = XLMRobertaTokenizer.from_pretrained("tiny")
    a, b = tokenizer.encode("free"), tokenizer.encode("libre")
    assert tokenizer.encode("free", "libre") == [*a, 2, *b[1:]]
    assert tokenizer([("free", "libre")])["input_ids"] == [[*a, 2, *b[1:]]]


def test_left_padding():
    encoding = XLMRobertaTokenizer.from_pretrained("tiny")(
        ["one", "one two three"], padding=True, padding_side="left", return_tensors="pt"
    )
    assert encoding.input_ids[0, 0] == 1
    assert encoding.attention_mask[0, 0] == 0
    assert encoding.attention_mask[0, -1] == 1
    assert encoding.to("cpu").input_ids.dtype == torch.long


def test_offsets_give_the_characters_of_each_token(both):
    """Each token, without its ▁, is the normalized form of the characters at its offsets."""
    _, ours = both
    for text in [*STRINGS, *(row.text for row in udhr() if row.article == 1)]:
        encoding = ours(text, return_offsets_mapping=True)
        previous = 0
        for token, (begin, end) in zip(encoding.input_ids, encoding.offset_mapping, strict=True):
            if token in (0, 1, 2, 3, ours.mask_token_id):
                assert text[begin:end] in ("", *ours.special_token_ids) or token == 3
                continue
            assert previous <= end <= len(text)
            assert text[begin:end] == text[begin:end].lstrip(), "the space before a word is not part of it"
            previous = end
            subword = ours.convert_ids_to_tokens(token).replace("▁", "")
            origin = unicodedata.normalize("NFKC", text[begin:end]).replace("\u200b", "").strip("▁ ")
            # one character may be normalized to several, in several tokens; a lone ▁ has none
            is_part = not subword or (origin and (subword in origin or origin in subword))
            assert subword == origin or is_part or "\u00ad" in text, (text, subword, origin)


def test_decoding_restores_the_normalized_text():
    tokenizer = XLMRobertaTokenizer.from_pretrained("xlm-roberta-xl")
    for row in udhr(["en", "ru", "hi", "th", "zh", "ar"]):
        text = tokenizer.decode(tokenizer.encode(row.text), skip_special_tokens=True)
        expected = " ".join(tokenizer.sp_model.normalize(row.text).replace("▁", " ").split())
        assert text == expected or "<unk>" in tokenizer.tokenize(row.text)
    assert tokenizer.decode(tokenizer.encode("a <mask> b")) == "<s> a <mask> b </s>"
    assert tokenizer.batch_decode([[0, 35378, 2]], skip_special_tokens=True) == ["Hello"]


def test_saving_and_loading_the_vocabulary(tmp_path):
    tokenizer = XLMRobertaTokenizer.from_pretrained("tiny")
    tokenizer.save_pretrained(tmp_path / "copy")
    assert XLMRobertaTokenizer.from_pretrained(tmp_path / "copy").encode("free and equal") == tokenizer.encode(
        "free and equal"
    )
    tokenizer.save_pretrained(PRETRAINED / "tiny")  # onto itself: no error


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda t: t(7), "type int"),
        (lambda t: t(["a", 7]), "type int"),
        (lambda t: t(["a", "b"], ["c"]), "2 texts but 1"),
        (lambda t: t("a", padding="longer"), "padding='longer'"),
        (lambda t: t("a", truncation="middle"), "truncation='middle'"),
        (lambda t: t("a", return_tensors="tf"), "return_tensors='tf'"),
        (lambda t: t("a", padding_side="top"), "padding_side='top'"),
        (lambda t: t(["a", "a b c d"], return_tensors="pt"), "padding=True"),
        (lambda t: t("a b", "c", truncation=True, max_length=3), "max_length=3"),
        (lambda t: t([("a", "b", "c")]), "3 texts"),
        (lambda t: t.convert_ids_to_tokens(len(t)), "ids 0 to"),
        (lambda t: t.convert_ids_to_tokens(-1), "ids 0 to"),
    ],
)
def test_impossible_input_raises_one_sentence(call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call(XLMRobertaTokenizer.from_pretrained("tiny"))
    assert str(caught.value).count("\n") == 0


def test_a_missing_or_broken_vocabulary_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match=VOCABULARY_FILE):
        XLMRobertaTokenizer.from_pretrained(tmp_path)
    (tmp_path / VOCABULARY_FILE).write_bytes(b"this is no vocabulary")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        XLMRobertaTokenizer.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"tiny, .*xlm-roberta-xl"):
        XLMRobertaTokenizer.from_pretrained("no-such-vocabulary")


# ---- words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("free and  equal", ["free", "and", "equal"]),
        ("人人生而自由，在", ["人人", "生而", "自由", "，在"]),
        ("人人 生而自由 free", ["人人", "生而", "自由", "free"]),
        ("", []),
    ],
)
def test_word_spans(text, words):
    assert [text[start:end] for start, end in word_spans(text)] == words


def test_tokens_that_start_a_word():
    for token, expected in {"▁free": True, "ings": False, "<s>": True, "<mask>": True, "人人": True, "ทุก": True,
                            ".": False, "<": False, "<unk>": False}.items():  # fmt: skip
        assert starts_word(token) == expected, token
    assert not starts_word("人人", split_unspaced=False)


def test_tokens_are_grouped_into_words():
    tokens = ["<s>", "▁All", "▁human", "▁being", "s", "<unk>", "</s>", "</s>", "人人", "生", "<mask>", "<", "</s>"]
    words = [["<s>"], ["▁All"], ["▁human"], ["▁being", "s", "<unk>"], ["</s>"], ["</s>"], ["人人", "生"], ["<mask>"],
             ["<"], ["</s>"]]  # fmt: skip
    assert [[tokens[i] for i in word] for word in group_words(tokens)] == words
    words[6:7] = [["人人"], ["生"]]
    assert [[tokens[i] for i in word] for word in group_words(tokens, split_unspaced=True)] == words
    assert [list(word) for word in group_words(["s", "▁a"])] == [[0], [1]]
    assert group_words([]) == []
