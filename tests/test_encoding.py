"""What a call gives equals transformers' tokenizers; its collators and pipelines take ours."""

import copy
import pickle
import random
import warnings

import numpy
import pytest
import torch
import transformers
from refusal import refused

from xlmrxl_min import (
    XLMRobertaTokenizer,
    XLMRobertaXLForMaskedLM,
    XLMRobertaXLForQuestionAnswering,
    XLMRobertaXLForSequenceClassification,
    XLMRobertaXLForTokenClassification,
)
from xlmrxl_min.checkpoints.locate import PRETRAINED, VOCABULARY_FILE
from xlmrxl_min.training.texts import udhr

TEXTS = ["Alle Menschen sind frei", "und gleich an Würde und Rechten geboren.", "人人 生而自由 free"]
UNUSUAL = ["<mask>", "</s>", "<ent>", "<e1>", "😀", "ﬁ", "ｆｕｌｌ", "½", "꧁", "①", ".", "e\u0301"]


PARAGRAPHS = [row.text for row in udhr()]
SLOW, FAST = transformers.XLMRobertaTokenizer, transformers.XLMRobertaTokenizerFast


def load(name, *kinds):
    """Tokenizers of one vocabulary, with the same tokens added."""
    longest = 256 if name == "tiny" else 512
    tokenizers = [kind(str(PRETRAINED / name / VOCABULARY_FILE), model_max_length=longest) for kind in kinds]
    for tokenizer in tokenizers:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<ent>", "<e1>"]})
    return tokenizers


@pytest.fixture(scope="module")
def small():
    return load("tiny", SLOW, FAST, XLMRobertaTokenizer)


def as_lists(encoding):
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in encoding.items()}


# ---- a call


def random_text(rng):
    words = rng.choice(PARAGRAPHS).split()
    start = rng.randrange(len(words))
    words = words[start : start + rng.randrange(12)]
    for _ in range(rng.randrange(3)):
        words.insert(rng.randrange(len(words) + 1), rng.choice(UNUSUAL))
    return rng.choice([" ", " ", "  ", ""]).join(words)[:400] or "a"


def random_call(rng):
    """What to tokenize, and options that slow, fast and ours all take."""
    are_words, is_batch, is_pair = rng.random() < 0.3, rng.random() < 0.6, rng.random() < 0.5
    samples = [
        [random_text(rng).split() or ["a"] if are_words else random_text(rng) for _ in range(rng.randrange(1, 4))]
        for _ in range(2)
    ]
    samples[1] = (samples[1] * 3)[: len(samples[0])]
    first, second = samples if is_batch else [sample[0] for sample in samples]
    truncation = rng.choice([None, False, True, "only_first", "only_second" if is_pair else "longest_first"])
    options = {
        "text_pair": second if is_pair else None,
        "is_split_into_words": are_words,
        "padding": rng.choice([False, True, "max_length", "longest", "do_not_pad"]),
        "truncation": truncation,
        "max_length": rng.choice([50, rng.randrange(6, 40)]),
        "add_special_tokens": rng.random() < 0.8,
        "return_special_tokens_mask": rng.random() < 0.5,
        "return_attention_mask": rng.choice([None, True, False]),
        "padding_side": rng.choice([None, "left", "right"]),
    }
    options["return_token_type_ids"] = options["add_special_tokens"] and rng.random() < 0.5
    if options["padding"] not in (False, "do_not_pad") and rng.random() < 0.5:
        options |= {"pad_to_multiple_of": 8, "max_length": options["max_length"] // 8 * 8 + 8}
    return first, options


def check_random_call(seed, slow, ours, fast=None):
    """Compare one call; return whether it was compared with the fast one, too."""
    rng = random.Random(seed)
    text, options = random_call(rng)
    sides = rng.choice(["left", "right"]), rng.choice(["left", "right"])
    for tokenizer in filter(None, (slow, ours, fast)):
        tokenizer.padding_side, tokenizer.truncation_side = sides
    try:
        got = ours(text, **options)
    except ValueError:
        refused(lambda: ours(text, **options), "cannot cut this to max_length")
        if fast:
            with pytest.raises(Exception, match="Truncation error"):
                fast(text, **options)
        return False
    assert dict(got) == as_lists(slow(text, **options)), seed
    if not fast:
        return False
    uncut = {"padding": False, "truncation": False, "pad_to_multiple_of": None, "return_token_type_ids": False}
    if slow(text, **{**options, **uncut})["input_ids"] != fast(text, **{**options, **uncut})["input_ids"]:
        return False
    if options["text_pair"] and options["truncation"] in (None, True, "longest_first"):
        return False  # slow and fast differ where both texts are cut
    overflows = rng.random() < 0.7
    options |= {"return_overflowing_tokens": overflows, "stride": rng.randrange(3) * overflows}
    options |= {"return_offsets_mapping": True, "return_length": True, "return_token_type_ids": False}
    try:
        expected = fast(text, **options)
    except BaseException:  # a panic of Rust, for a stride that is too large
        refused(lambda: ours(text, **options), "stride=")
        return False
    got = ours(text, **options)
    names = set(got) - {"offset_mapping", "length"}
    assert {name: got[name] for name in names} == {name: expected[name] for name in names}, seed
    assert set(got) == set(expected)
    assert len(got.encodings) == len(expected.encodings)
    for i, (row, other) in enumerate(zip(got.encodings, expected.encodings, strict=True)):
        assert got.word_ids(i) == expected.word_ids(i), seed
        assert got.sequence_ids(i) == expected.sequence_ids(i), seed
        assert (row.ids, row.attention_mask, row.length) == (other.ids, other.attention_mask, len(other.ids)), seed
    return True


def test_random_calls_equal_those_of_both(small):
    slow, fast, ours = small
    assert sum(check_random_call(seed, slow, ours, fast) for seed in range(200)) > 60


@pytest.mark.slow  # it takes seconds to build the fast tokenizer
def test_many_random_calls_equal_those_of_both_over_the_real_vocabulary():
    slow, fast, ours = load("xlm-roberta-xl", SLOW, FAST, XLMRobertaTokenizer)
    assert sum(check_random_call(seed, slow, ours, fast) for seed in range(4000)) > 1000


def test_rows_that_overflow_name_their_text(small):
    _, fast, ours = small
    for tokenizer in (fast, ours):
        tokenizer.padding_side = tokenizer.truncation_side = "right"
    options = {
        "max_length": 14,
        "stride": 2,
        "return_overflowing_tokens": True,
        "padding": True,
        "return_tensors": "np",
    }
    expected, got = (x("Wer?", " ".join(TEXTS), truncation="only_second", **options) for x in (fast, ours))
    assert len(got["input_ids"]) > 3
    assert as_lists(got) == as_lists(expected)
    got = ours(TEXTS, truncation=True, **options)
    assert as_lists(got) == as_lists(fast(TEXTS, truncation=True, **options))
    assert {0, 1, 2} == set(got["overflow_to_sample_mapping"].tolist())


def test_characters_tokens_and_words_lead_to_each_other(small):
    """As in the fast tokenizer, but a space before a word is not part of it."""
    _, fast, ours = small
    first, second = "Alle  Menschen <mask> frei", TEXTS[1]
    expected, got = fast([first, first], [second, second]), ours([first, first], [second, second])
    for i, token in enumerate(got.word_ids(1)):
        assert got.token_to_word(1, i) == expected.token_to_word(1, i) == token == got[1].token_to_word(i)
        assert got.token_to_sequence(1, i) == (None if token is None else expected.token_to_sequence(1, i))
        start, end = got.token_to_chars(1, i) or (0, 0)
        theirs = expected.token_to_chars(1, i) or (0, 0)
        text = [first, second][got.sequence_ids(1)[i] or 0]
        assert (end, text[start:end]) == (theirs[1], text[slice(*theirs)].strip())
    for sequence, text in enumerate((first, second)):
        for char in range(len(text)):
            found = got.char_to_token(1, char, sequence), got.char_to_word(1, char, sequence)
            theirs = expected.char_to_token(1, char, sequence), expected.char_to_word(1, char, sequence)
            assert found == ((None, None) if text[char] == " " else theirs)
        for word in range(4):
            assert got.word_to_tokens(1, word, sequence) == tuple(expected.word_to_tokens(1, word, sequence))
            start, end = got.word_to_chars(1, word, sequence)
            theirs = expected.word_to_chars(1, word, sequence)
            assert (end, text[start:end]) == (theirs[1], text[slice(*theirs)].strip())
    assert got.token_to_chars(0, 99) is expected.token_to_chars(0, 99) is None
    for encoding in (got, expected):
        assert [row.ids for row in encoding[1:]] == got["input_ids"][1:]
    one = ours(first)
    assert one.char_to_token(6) == one.char_to_token(0, 6) == one.encodings[0].char_to_token(6) == 2
    assert got.word_to_tokens(0, 99) is None
    assert one.tokens() == ours.convert_ids_to_tokens(one.input_ids)


def test_an_encoding_is_a_dict_that_is_copied_and_sent():
    ours = XLMRobertaTokenizer.from_pretrained("tiny")
    encoding = ours(TEXTS, padding=True, return_tensors="pt")
    for again in (
        copy.deepcopy(encoding),
        copy.copy(encoding),
        pickle.loads(pickle.dumps(encoding)),
        encoding.to("cpu"),
    ):
        assert again.word_ids(1) == encoding.word_ids(1)
        assert torch.equal(again["input_ids"], encoding.data["input_ids"])
    assert encoding.to("meta", non_blocking=True).attention_mask.is_meta
    refused(lambda: encoding.to(torch.float16), "device is of type dtype, but must be a device")
    refused(lambda: ours.pad({"input_ids": [1]}).word_ids(), "knows no words or texts")
    with pytest.raises(AttributeError, match="this encoding has no 'labels': it has input_ids"):
        _ = encoding.labels
    assert ours(TEXTS, padding=True, return_tensors="np").input_ids.dtype == numpy.int64
    for kind, integer in (("np", numpy.int64), ("pt", torch.long)):
        for texts, options in (([], {}), ([""], {"add_special_tokens": False})):
            ids = ours(texts, return_tensors=kind, **options).input_ids
            assert (ids.shape, ids.dtype) == ((len(texts), 0), integer)


def test_ids_without_texts(small):
    slow, _, ours = small
    one, two = [10, 5], [7, 12001, 3]
    for pair in ((one,), (one, two)):
        for method in ("build_inputs_with_special_tokens", "create_token_type_ids_from_sequences"):
            assert getattr(ours, method)(*pair) == getattr(slow, method)(*pair)
        assert ours.get_special_tokens_mask(*pair) == slow.get_special_tokens_mask(*pair)
        assert ours.num_special_tokens_to_add(len(pair) > 1) == slow.num_special_tokens_to_add(len(pair) > 1)
    ids = ours.encode("a <mask> <e1> ꧁", "b")
    assert ours.get_special_tokens_mask(ids, already_has_special_tokens=True) == slow.get_special_tokens_mask(
        ids, already_has_special_tokens=True
    )
    assert ours.max_len_single_sentence == slow.max_len_single_sentence
    assert ours.max_len_sentences_pair == slow.max_len_sentences_pair
    assert ours.convert_ids_to_tokens(ids, skip_special_tokens=True) == slow.convert_ids_to_tokens(ids, True)
    tokens = ours.convert_ids_to_tokens(ids)
    assert ours.convert_tokens_to_string(tokens) == slow.convert_tokens_to_string(tokens)


# ---- pad, and what calls it


def features(tokenizer, **more):
    return [{**tokenizer(text), **{name: value(i) for name, value in more.items()}} for i, text in enumerate(TEXTS)]


def labelled(tokenizer):
    return [{**tokenizer(text), "labels": [1] * len(tokenizer(text)["input_ids"])} for text in TEXTS]


COLLATORS = {
    "padding": (transformers.DataCollatorWithPadding, {"pad_to_multiple_of": 8}, lambda t: features(t, label=int)),
    "max_length": (transformers.DataCollatorWithPadding, {"padding": "max_length", "max_length": 30}, features),
    "token classification": (transformers.DataCollatorForTokenClassification, {}, labelled),
    "sequence to sequence": (transformers.DataCollatorForSeq2Seq, {}, labelled),
    "multiple choice": (
        transformers.DataCollatorForMultipleChoice, {},
        lambda t: [{"label": i, **{k: [v, v] for k, v in x.items()}} for i, x in enumerate(features(t))],
    ),
    "masked, with a mask": (
        transformers.DataCollatorForLanguageModeling, {"seed": 1},
        lambda t: [t(text, return_special_tokens_mask=True) for text in TEXTS],
    ),
    "masked, ids alone": (
        transformers.DataCollatorForLanguageModeling, {"seed": 1, "pad_to_multiple_of": 4},
        lambda t: [t(text)["input_ids"] for text in TEXTS],
    ),
    "causal": (transformers.DataCollatorForLanguageModeling, {"mlm": False}, features),
    "permuted": (
        transformers.DataCollatorForPermutationLanguageModeling, {}, lambda t: [{"input_ids": [0, *range(5, 11), 2]}],
    ),
}  # fmt: skip


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", COLLATORS)
def test_collators_of_transformers_take_our_tokenizer(small, name, side):
    collator, options, make = COLLATORS[name]
    for kind in ("pt", "np"):
        batches = []
        for tokenizer in (small[0], small[2]):
            tokenizer.padding_side = side
            torch.manual_seed(0)
            numpy.random.seed(0)
            random.seed(0)
            one = (
                collator(tokenizer, return_tensors=kind, **options)
                if name != "multiple choice"
                else collator(tokenizer)
            )
            batches.append(one(make(tokenizer)))
        expected, got = batches
        assert set(expected) == set(got)
        for key, value in expected.items():
            assert (type(value), value.dtype) == (type(got[key]), got[key].dtype)
            assert value.tolist() == got[key].tolist(), key


def test_pad_takes_each_form(small):
    slow, _, ours = small
    slow.padding_side = ours.padding_side = "right"
    rows = [slow(text, return_special_tokens_mask=True, return_token_type_ids=True) for text in TEXTS]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    arrays = [{name: numpy.array(value) for name, value in row.items()} for row in rows]
    tensors = [{name: torch.tensor(value) for name, value in row.items()} for row in rows]
    for given in (rows, columns, arrays, tensors, rows[0], tensors[0]):
        for options in (
            {}, {"padding": "max_length", "max_length": 20}, {"padding": False}, {"padding_side": "left"},
            {"pad_to_multiple_of": 5, "return_tensors": "pt"},
        ):  # fmt: skip
            if options.get("padding") is False and (given is arrays or given is tensors):
                continue
            expected, got = slow.pad(copy.deepcopy(given), **options), ours.pad(given, **options)
            assert as_lists(got) == as_lists(expected)
            assert {k: type(v) for k, v in got.items()} == {k: type(v) for k, v in expected.items()}
    assert columns["input_ids"][0] == rows[0]["input_ids"], "what was passed has changed"
    assert ours.pad([]) == ours([])
    assert ours.pad({"input_ids": [[5], []]}) == {"input_ids": [[5], [1]], "attention_mask": [[1], [0]]}


def test_datasets_map_takes_our_tokenizer(small):
    _, fast, ours = small
    datasets = pytest.importorskip("datasets", reason="needs datasets: install the extra `clients`")
    data = datasets.Dataset.from_dict({"text": TEXTS})
    mapped = data.map(ours, input_columns="text", batched=True)
    assert mapped[:]["input_ids"] == fast(TEXTS)["input_ids"]
    assert mapped.column_names == ["text", "input_ids", "attention_mask"]


def plain(found):
    """What a pipeline found, without the space before a word, which is part of it for the fast tokenizer."""
    if isinstance(found, dict):
        return {k: plain(v) for k, v in found.items() if k not in ("start", "sequence")}
    return [plain(x) for x in found] if isinstance(found, list) else found.strip() if isinstance(found, str) else found


LAW = "Everyone has the right to life, liberty and security of person. "
PIPELINES = {
    "fill-mask": (
        XLMRobertaXLForMaskedLM, {},
        lambda run: [run(["Alle Menschen sind <mask>.", "<mask> a <mask>"]), run("Alle <mask>", targets=["frei"])],
    ),
    "text-classification": (
        XLMRobertaXLForSequenceClassification, {},
        lambda run: [run([LAW, "Hi"], batch_size=2), run({"text": LAW, "text_pair": "Hi"}),
                     run(LAW * 3, truncation=True, max_length=20)],
    ),
    "zero-shot-classification": (
        XLMRobertaXLForSequenceClassification, {}, lambda run: run(LAW, candidate_labels=["law", "food"]),
    ),
    "token-classification": (
        XLMRobertaXLForTokenClassification, {"aggregation_strategy": "first", "stride": 9},
        lambda run: [run(LAW * 50), run("꧁ Alle ｆｕｌｌ")],
    ),
    "token-classification of words": (
        XLMRobertaXLForTokenClassification, {"aggregation_strategy": "simple"},
        lambda run: run(LAW.split(), is_split_into_words=True),
    ),
    "question-answering": (
        XLMRobertaXLForQuestionAnswering, {},
        lambda run: [run(question="Who has rights?", context=LAW), run(question="a", context=LAW, align_to_words=False),
                     run(question="Who?", context=LAW * 9, max_seq_len=50, doc_stride=10, top_k=3)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_of_transformers_take_our_tokenizer(small, name):
    """And find the same as with the fast tokenizer."""
    model_class, options, call = PIPELINES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a new head; words are guessed
        torch.manual_seed(0)
        model, found = model_class.from_pretrained("tiny"), []
        for tokenizer in small[1:]:
            tokenizer.padding_side = tokenizer.truncation_side = "right"
            run = transformers.pipeline(
                name.split(" of ")[0], model=model, tokenizer=tokenizer, device="cpu", **options
            )
            found.append(plain(call(run)))
    assert found[0] == found[1]


# ---- what is refused


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda t: t("a b", is_split_into_words=True), "text is of type str, but must be a list of words, or lists of"),
        (lambda t: t(["a"], "b", is_split_into_words=True), "is_split_into_words=True takes lists of words"),
        (lambda t: t([["a", 7]], is_split_into_words=True), r"a list of words\[1\] is of type int"),
        (lambda t: t(["a"], [["b"], ["c"]], is_split_into_words=True), r"a list of words\[0\] is of type list"),
        (
            lambda t: t("a b", padding=True, pad_to_multiple_of=8, truncation=True, max_length=9),
            "cut to 9 tokens, which",
        ),
        (lambda t: t("a", pad_to_multiple_of=8), "pad_to_multiple_of=8 needs padding"),
        (
            lambda t: t("a", padding=True, pad_to_multiple_of="8", truncation=True),
            "pad_to_multiple_of='8' is impossible",
        ),
        (
            lambda t: t("a b c", max_length=4, stride=2, return_overflowing_tokens=True),
            "stride=2 is impossible: rows have",
        ),
        (lambda t: t("a", stride=2, truncation=True), "stride=2 is of rows that overflow"),
        (lambda t: t.encode(["a", "b"]), "text is of type list, but encode takes one text"),
        (lambda t: t.pad({"input_ids": ["a"]}), "input_ids holds what is no integer"),
        (lambda t: t.pad({"input_ids": [[[5]], [[6], [7]]]}), "input_ids holds what is no integer"),
        (lambda t: t.pad({"input_ids": 5}), "input_ids is of type int, but must be a list of ids"),
        (
            lambda t: t.pad({"input_ids": [[5], [5, 6]], "attention_mask": [[1], [1]]}),
            "attention_mask and input_ids have",
        ),
        (lambda t: t.pad([], padding_side="top"), "padding_side='top' is unknown"),
        (lambda t: t([], truncation_side="top"), "truncation_side='top' is unknown"),
        (lambda t: t("a", stride=-1), "stride=-1 is impossible"),
        (lambda t: t("a", "b", truncation=True, return_overflowing_tokens=True), "which text of a pair is to be cut"),
        (lambda t: t("a b c", truncation="only_second", max_length=3), "truncation='only_second' cannot cut"),
        (lambda t: t("a", truncation_side="top"), "truncation_side='top' is unknown: take one of 'right', 'left'"),
        (lambda t: t("a", return_tensors="tf"), "return_tensors='tf' is unknown: take one of None, 'pt', 'np'"),
        (lambda t: t("a", return_special_tokens_mask="no"), "return_special_tokens_mask='no' is unknown"),
        (lambda t: t(["a", "b c"], return_tensors="np"), "input_ids has rows of different lengths"),
        (lambda t: t.pad({"ids": [1]}), r"encoded_inputs has \['ids'\], but must have input_ids"),
        (lambda t: t.pad([[1, 2]]), r"encoded_inputs\[0\] is of type list, but must be an encoding"),
        (lambda t: t.pad([{"input_ids": [1]}, {"input_ids": [1], "x": 2}]), r"encoded_inputs\[1\] has .*'x'"),
        (
            lambda t: t.pad({"input_ids": [[1], [1]], "x": ["a", "b"]}, return_tensors="pt"),
            "x has rows of .* no number",
        ),
        (lambda t: t.pad({"input_ids": [1]}, max_length=0), "max_length=0 is impossible"),
        (lambda t: t.get_special_tokens_mask([0], [1], True), "a pair that has its special tokens is one list"),
        (lambda t: t.apply_chat_template([{"role": "user", "content": "a"}]), "has no chat template: pass a text"),
    ],
)
def test_what_is_not_offered_is_refused_in_a_sentence(call, words):
    refused(lambda: call(XLMRobertaTokenizer.from_pretrained("tiny")), words)


def test_attributes_are_checked_when_they_are_used():
    tokenizer = XLMRobertaTokenizer.from_pretrained("tiny")
    for name in ("padding_side", "truncation_side"):
        setattr(tokenizer, name, "top")
        refused(lambda: tokenizer("a"), f"{name}='top' is unknown")
        setattr(tokenizer, name, "right")
    tokenizer.model_max_length = 5
    assert len(tokenizer("a b c d e f", truncation=True).input_ids) == 5
