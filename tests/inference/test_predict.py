"""Predictions equal transformers' for each text alone, in the order given; `tiny`; the command line."""

import re

import numpy
import pytest
import torch
import transformers
from test_inputs import Series
from transformers_reference import error, twins

import xlmrxl_min
from xlmrxl_min import (
    XLMRobertaTokenizer,
    XLMRobertaXLConfig,
    XLMRobertaXLForCausalLM,
    XLMRobertaXLForMaskedLM,
    XLMRobertaXLModel,
    answer,
    choose,
    classify,
    embed,
    fill_mask,
    tag,
)
from xlmrxl_min.__main__ import main
from xlmrxl_min.checkpoints.locate import PRETRAINED
from xlmrxl_min.tokenizer import is_visible, trim
from xlmrxl_min.training.texts import udhr


@pytest.fixture
def random_model(tokenizer):
    """With a vocabulary larger than the tokenizer's, as XL's is."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = XLMRobertaXLConfig(
        vocab_size=len(tokenizer) + 500, initializer_range=0.2, hidden_dropout_prob=0.5, **sizes
    )
    return XLMRobertaXLForMaskedLM(config)


TEXTS = [
    "<mask> is long enough to make the other texts of this batch need a lot of padding, all of it ignored",
    "one <mask>",
    "two <mask> and <mask>",
    "<mask><mask><mask>",
    "of the same length <mask>",
]


def test_fill_mask_returns_the_probabilities_of_the_model(random_model, tokenizer):
    results = fill_mask(random_model, tokenizer, TEXTS, top_k=7, batch_size=2)
    assert random_model.training, "the mode is restored"
    random_model.eval()
    assert [len(result) for result in results] == [1, 1, 2, 3, 1]
    for text, result in zip(TEXTS, results, strict=True):
        ids = torch.tensor([tokenizer.encode(text)])
        with torch.no_grad():
            probabilities = random_model(ids).logits.softmax(-1)[ids == tokenizer.mask_token_id]
        for values, predictions in zip(probabilities, result, strict=True):
            expected = values[: len(tokenizer)].topk(7)
            assert [p.token_id for p in predictions] == expected.indices.tolist()
            assert [p.probability for p in predictions] == pytest.approx(expected.values.tolist(), abs=1e-6)
            for p in predictions:
                assert p.text == (tokenizer.decode([p.token_id]) or " ")


def test_one_text_gives_the_same_as_in_a_list(random_model, tokenizer):
    [alone] = [fill_mask(random_model, tokenizer, TEXTS[2])]
    [in_list] = fill_mask(random_model, tokenizer, [TEXTS[2]])
    assert alone == in_list
    assert len(alone[0]) == 5
    assert fill_mask(random_model, tokenizer, []) == []


def test_fill_mask_returns_only_ids_that_the_tokenizer_knows(random_model, tokenizer):
    with torch.no_grad():
        random_model.lm_head.decoder.bias[len(tokenizer) :] = 50.0  # of the filler rows
    [[*predictions]] = fill_mask(random_model, tokenizer, "a <mask>")
    assert max(p.token_id for p in predictions) < len(tokenizer)
    assert sum(p.probability for p in predictions) < 1e-6, "probabilities are over the model's whole vocabulary"


# ---- embed, classify, tag, choose, answer: equal to transformers

ROWS = [row.text for row in udhr(["en", "ru", "zh"]) if row.article in (1, 3, 4, 5)]
MIXED = [*ROWS, "", "short", " ", "an emoji 🧿 is unknown", "  spaces  at both ends  ", "a <mask> and a </s> inside"]
NAMES = {0: "one", 1: "two", 2: "three"}
QUESTIONS = ["Who is born free?", "", "Что?", "谁?"]
BATCH_SIZES = (1, 3, 100)


def twins_for(tokenizer, task, **config):
    config = {"vocab_size": len(tokenizer), "max_position_embeddings": 160, **config}
    return twins(task, **config)


def theirs_alone(theirs, tokenizer, *texts):
    """Their output for one text or pair, without padding."""
    with torch.no_grad():
        return theirs(**tokenizer([texts if len(texts) == 2 else texts[0]], return_tensors="pt"))


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
@pytest.mark.parametrize("pooling", ["mean", "first"])
@pytest.mark.parametrize("task", ["Model", "ForMaskedLM", "ForQuestionAnswering", "ForMultipleChoice"])
def test_embed(task, pooling, batch_size, tokenizer, parity):
    theirs, ours = twins_for(tokenizer, task)
    got = embed(ours, tokenizer, MIXED, pooling=pooling, batch_size=batch_size)
    hidden = [theirs_alone(theirs.base_model, tokenizer, text).last_hidden_state[0] for text in MIXED]
    parity(error(got, torch.stack([rows.mean(0) if pooling == "mean" else rows[0] for rows in hidden])))
    parity(error(embed(ours, tokenizer, MIXED[0], pooling=pooling), got[:1]))


def test_embed_includes_a_pad_token_written_in_the_text(tokenizer, parity):
    """Unlike one that pads a batch."""
    theirs, ours = twins_for(tokenizer, "Model")
    [got, _] = embed(ours, tokenizer, ["one <pad> two", MIXED[0]])
    parity(error(got, theirs_alone(theirs, tokenizer, "one <pad> two").last_hidden_state[0].mean(0)))


def test_embeddings_can_be_inputs_of_training(tokenizer):
    _, ours = twins_for(tokenizer, "Model")
    assert embed(ours, tokenizer, []).shape == (0, 24)
    vectors = embed(ours.to(torch.bfloat16), tokenizer, ["one", "two"])
    assert vectors.dtype == torch.float32
    assert not vectors.requires_grad
    probe = torch.nn.Linear(24, 1)
    probe(vectors).sum().backward()  # an error for a tensor made in inference mode
    torch.testing.assert_close(probe.weight.grad[0], vectors.sum(0))


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
@pytest.mark.parametrize(
    ("problem", "names", "score"),
    [
        (None, NAMES, lambda logits: logits.softmax(-1)),
        ("single_label_classification", NAMES, lambda logits: logits.softmax(-1)),
        ("multi_label_classification", NAMES, lambda logits: 1 / (1 + (-logits).exp())),
        ("multi_label_classification", {0: "one"}, lambda logits: 1 / (1 + (-logits).exp())),
        ("regression", NAMES, lambda logits: logits),
        ("regression", {0: "grade"}, lambda logits: logits),
        (None, {0: "grade"}, lambda logits: logits),
    ],
)
def test_classify(problem, names, score, batch_size, tokenizer):
    config = {"problem_type": problem, "id2label": names, "num_labels": len(names), "initializer_range": 0.5}
    theirs, ours = twins_for(tokenizer, "ForSequenceClassification", **config)
    inputs = [*MIXED, (ROWS[0], ROWS[1]), ("", "pair"), (ROWS[2], "")]
    winners = set()
    for item, got in zip(inputs, classify(ours, tokenizer, inputs, batch_size=batch_size), strict=True):
        expected = score(theirs_alone(theirs, tokenizer, *([item] if isinstance(item, str) else item)).logits[0])
        assert [x.score for x in got] == sorted((x.score for x in got), reverse=True)
        assert {x.label: x.score for x in got} == pytest.approx(
            {names[i]: value for i, value in enumerate(expected.tolist())}, abs=1e-5
        )
        winners.add(got[0].label)
    assert len(winners) > 1 or len(names) == 1, "the texts differ enough to tell them apart"
    pair = (ROWS[0], ROWS[1])
    assert classify(ours, tokenizer, pair, top_k=1)[0] == pytest.approx(classify(ours, tokenizer, [pair])[0][0])


def expected_words(text):
    """[start, end) of the words between spaces and special tokens."""
    return [found.span() for found in re.finditer(r"\S+", text.replace("<mask>", " " * 6).replace("</s>", " " * 4))]


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_tag(batch_size, tokenizer):
    theirs, ours = twins_for(tokenizer, "ForTokenClassification", id2label=NAMES, initializer_range=0.4)
    words = tag(ours, tokenizer, MIXED, batch_size=batch_size)
    subwords = tag(ours, tokenizer, MIXED, batch_size=batch_size, by_word=False)
    joined, labels = 0, set()
    for text, by_word, by_token in zip(MIXED, words, subwords, strict=True):
        tokens = tokenizer(text, return_offsets_mapping=True)
        probabilities = theirs_alone(theirs, tokenizer, text).logits[0].softmax(-1)
        at = dict(enumerate(tokens.offset_mapping))
        kept = [i for i in at if tokens.input_ids[i] in range(3, tokenizer.mask_token_id)]
        assert [(span.text, span.start, span.end) for span in by_token] == [(text[slice(*at[i])], *at[i]) for i in kept]
        expected = [probabilities[i].max(0) for i in kept]
        assert [span.score for span in by_token] == pytest.approx([p.values.item() for p in expected], abs=1e-5)
        assert [span.label for span in by_token] == [NAMES[p.indices.item()] for p in expected]

        assert [(span.start, span.end) for span in by_word] == expected_words(text)
        for span in by_word:
            assert span.text == text[span.start : span.end]
            inside = [i for i in kept if span.start <= at[i][0] and at[i][1] <= span.end and at[i][0] < span.end]
            mean = sum(probabilities[i] for i in inside) / len(inside)
            assert span.score == pytest.approx(mean.max().item(), abs=1e-5)
            assert span.label == NAMES[mean.argmax().item()]
            joined += len(inside) > 1
            labels.add(span.label)
    assert joined > 50
    assert len(labels) > 1
    [alone] = tag(ours, tokenizer, "short")
    assert alone[:4] == words[MIXED.index("short")][0][:4]


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_choose(batch_size, tokenizer):
    theirs, ours = twins_for(tokenizer, "ForMultipleChoice")
    questions = QUESTIONS
    options = [ROWS[:4], ["yes", ""], ["only one"], [*ROWS[4:7], "short"]]
    results = choose(ours, tokenizer, questions, options, batch_size=batch_size)
    firsts = set()
    for question, offered, got in zip(questions, options, results, strict=True):
        together = tokenizer([(question, option) for option in offered], padding=True, return_tensors="pt")
        with torch.no_grad():
            scores = theirs(**{name: x[None] for name, x in together.items()}).logits[0].softmax(-1)
        assert [choice.index for choice in got] == scores.argsort(descending=True).tolist()
        assert [choice.text for choice in got] == [offered[choice.index] for choice in got]
        assert [choice.score for choice in got] == pytest.approx(scores.sort(descending=True).values.tolist(), abs=1e-5)
        firsts.add(got[0].index)
    assert len(firsts) > 1, "the best option is not always at the same index"
    [first, *_] = choose(ours, tokenizer, questions[0], options[0])
    assert first == pytest.approx(results[0][0])


@pytest.mark.parametrize(("batch_size", "max_answer_len"), [(1, 64), (3, 5), (100, 1)])
def test_answer(batch_size, max_answer_len, tokenizer):
    theirs, ours = twins_for(tokenizer, "ForQuestionAnswering", initializer_range=0.4)
    questions, passages = [*QUESTIONS, "a </s> in it"], [ROWS[0], ROWS[5], "", "a", "  two words "]
    results = answer(
        ours, tokenizer, questions, passages, top_k=7, max_answer_len=max_answer_len, batch_size=batch_size
    )
    for question, passage, got in zip(questions, passages, results, strict=True):
        out = theirs_alone(theirs, tokenizer, question, passage)
        at = tokenizer(passage, return_offsets_mapping=True, add_special_tokens=False).offset_mapping
        first = out.start_logits.shape[1] - 1 - len(at)  # the passage comes last, before one </s>
        spans = []
        for start in range(len(at)):
            for end in range(start, min(start + max_answer_len, len(at))):
                logit = out.start_logits[0, first + start] + out.end_logits[0, first + end]
                spans.append((logit.exp().item(), *trim(passage, at[start][0], at[end][1])))
        total, best = sum(span[0] for span in spans), sorted(spans, reverse=True)[:7]
        assert [(a.start, a.end) for a in got] == [(start, end) for _, start, end in best]
        assert [a.text for a in got] == [passage[start:end] for _, start, end in best]
        assert [a.score for a in got] == pytest.approx([weight / total for weight, *_ in best], abs=1e-5)
    assert [len(got) for got in results[2:4]] == [0, 1], "as many as there are"
    [alone] = answer(ours, tokenizer, questions[0], passages[0], max_answer_len=max_answer_len)
    assert alone == pytest.approx(results[0][0])


# ---- behaviour of all of them

CALLS = {
    "ForMaskedLM": lambda *model, **options: fill_mask(*model, ["<mask> a", "a", "<mask> b"][::2], **options),
    "Model": lambda *model, **options: embed(*model, ["a", "b"], **options),
    "ForSequenceClassification": lambda *model, **options: classify(*model, ["a", "b"], **options),
    "ForTokenClassification": lambda *model, **options: tag(*model, ["a", "b"], **options),
    "ForMultipleChoice": lambda *model, **options: choose(*model, "a", ["b", "c"], **options),
    "ForQuestionAnswering": lambda *model, **options: answer(*model, ["a", "b"], ["c", "d"], **options),
}


@pytest.mark.parametrize("task", CALLS)
def test_modes(task, tokenizer):
    """The model runs in evaluation and inference mode; each module's mode is restored, even after an error."""
    _, ours = twins_for(tokenizer, task)
    ours.train().base_model.layers[1].eval()
    modes = []

    def record(*_):
        modes.append((torch.is_inference_mode_enabled(), any(module.training for module in ours.modules())))

    ours.base_model.embeddings.register_forward_hook(record)
    CALLS[task](ours, tokenizer, batch_size=1)
    assert modes == [(True, False)] * 2
    ours.base_model.embeddings.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        CALLS[task](ours, tokenizer)
    assert not torch.is_inference_mode_enabled()
    assert [ours.training, *(layer.training for layer in ours.base_model.layers)] == [True, True, False]


@pytest.mark.parametrize("task", CALLS)
def test_wrong_class(task, tokenizer):
    other = torch.nn.Linear(2, 2) if task == "Model" else XLMRobertaXLModel(XLMRobertaXLConfig(**TOY))
    with pytest.raises(ValueError, match=rf"needs .*XLMRobertaXL{task}, but .* {type(other).__name__}: [^.]*\.$"):
        CALLS[task](other, tokenizer)


TOY = {"vocab_size": 9, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}


@pytest.fixture
def shapes():
    """Records (batch, tokens) as a forward hook of a model's embeddings."""

    class Shapes(list):
        def __call__(self, module, args, out):
            self.append(tuple(out.shape[:2]))

    return Shapes()


def test_texts_of_similar_length_are_batched_together(tokenizer, shapes):
    """Similar in tokens, not in characters. The longest batch comes first."""
    _, ours = twins_for(tokenizer, "ForSequenceClassification")
    tokens = {"a b": 4, "🧿" * 9: 4, "a b c": 5, "🧿" * 5 + " a": 5, "a b c d": 6, "🧿" * 30 + " a b": 6}
    assert [len(tokenizer.encode(text)) for text in tokens] == list(tokens.values())
    ours.base_model.embeddings.register_forward_hook(shapes)
    classify(ours, tokenizer, list(tokens), batch_size=2)
    assert shapes == [(2, 6), (2, 5), (2, 4)]
    shapes.clear()
    classify(ours, tokenizer, ["a", "a " * 70, "a b", "a " * 60, "a b"])
    assert shapes == [(2, 72), (3, 4)], "short texts are not padded to 72, though there is room in the batch"


def test_embed_packs_texts(tokenizer, shapes):
    """Up to batch_size texts, 512 tokens, and the room in the model; the longest first."""
    texts = ["a", "a " * 70, "a b", "a " * 60, "a b"]
    for room, batch_size, inputs, expected in (
        (158, 16, texts, [72 + 62 + 4 + 4 + 3]),
        (158, 2, texts, [72 + 62, 4 + 4, 3]),
        (158, 16, texts * 2, [72 + 72, 62 + 62 + 4 * 4 + 2 * 3]),
        (72, 16, texts, [72, 62 + 4 + 4, 3]),
        (998, 16, ["a " * 300, "a " * 208, "a " * 207], [302 + 210, 209]),
    ):
        _, ours = twins_for(tokenizer, "Model", max_position_embeddings=room + 2)
        ours.embeddings.register_forward_hook(shapes)
        embed(ours, tokenizer, inputs, batch_size=batch_size)
        assert shapes == [(1, tokens) for tokens in expected]
        shapes.clear()


@pytest.mark.parametrize("kind", ["absolute", "relative_key", "relative_key_query"])
@pytest.mark.parametrize("is_decoder", [False, True])
def test_packed_texts_do_not_attend_to_each_other(kind, is_decoder, tokenizer, parity):
    config = {
        "position_embedding_type": kind,
        "is_decoder": is_decoder,
        "use_cache": False,
    }  # their decoder fails with a cache
    theirs, ours = twins_for(tokenizer, "Model", **config)
    expected = [theirs_alone(theirs, tokenizer, text).last_hidden_state[0].mean(0) for text in MIXED]
    parity(error(embed(ours, tokenizer, MIXED), torch.stack(expected)))


@pytest.mark.parametrize(("kind", "room"), [("absolute", 20), ("relative_key", 22)])
def test_a_long_text_raises_before_any_computation_or_is_truncated(kind, room, tokenizer, parity):
    theirs, ours = twins_for(tokenizer, "Model", max_position_embeddings=22, position_embedding_type=kind)
    texts = ["short", ROWS[0]]
    calls = []
    ours.embeddings.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=rf"tokens are too many: there is room for {room}, so cut the text \(trunc"):
        embed(ours, tokenizer, texts, batch_size=1)
    assert not calls
    ids = torch.tensor([[*tokenizer.encode(ROWS[0])[: room - 1], tokenizer.eos_token_id]])
    with torch.no_grad():
        expected = theirs(ids).last_hidden_state.mean(1)
    parity(error(embed(ours, tokenizer, texts, truncation=True)[1:], expected))


@pytest.mark.parametrize("task", CALLS)
def test_all_take_truncation(task, tokenizer):
    _, ours = twins_for(tokenizer, task, max_position_embeddings=22)
    long = " ".join("a" * 30)
    calls = {
        "ForMaskedLM": lambda **options: fill_mask(ours, tokenizer, "<mask> " + long + " <mask>", **options),
        "Model": lambda **options: embed(ours, tokenizer, long, **options),
        "ForSequenceClassification": lambda **options: classify(ours, tokenizer, (long, long), **options),
        "ForTokenClassification": lambda **options: tag(ours, tokenizer, long, **options),
        "ForMultipleChoice": lambda **options: choose(ours, tokenizer, long, ["a", "b"], **options),
        "ForQuestionAnswering": lambda **options: answer(
            ours, tokenizer, long[:23], long[:19], max_answer_len=1, top_k=99, **options
        ),
    }
    with pytest.raises(ValueError, match="too many: there is room for 20"):
        calls[task]()
    result = calls[task](truncation=True)
    if task == "ForMaskedLM":
        assert len(result) == 1, "the mask that was cut off has no entry"
    if task == "ForTokenClassification":
        assert [span.start for span in result] == [2 * i for i in range(18)]
    if task == "ForQuestionAnswering":  # <s> question </s></s> passage </s>: 12 tokens, not cut, leave room for 4 of 10
        assert sorted(span.start for span in result) == [0, 2, 4, 6]


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("nothing hidden", {}, "nothing to fill in 'nothing hidden': put <mask>"),
        (["<mask>", ""], {}, "nothing to fill in ''"),
        ([3], {}, r"texts\[0\] is of type int, but must be a text, a str"),
        ("<mask>", {"top_k": 0}, "top_k=0 is impossible: it must be an integer from 1 to 12002"),
        ("<mask>", {"top_k": 90_000}, "top_k=90000 is impossible"),
        ("<mask>", {"top_k": "3"}, "top_k='3' is impossible"),
        (None, {}, "texts is of type NoneType, but must be a list of texts, or one text"),
        ("a <mask> \udce9", {}, r"'\\udce9' at index 9, a lone surrogate"),
        ("<mask>", {"top_k": 2.0}, "top_k=2.0 is impossible"),
        ("<mask>", {"top_k": True}, "top_k=True is impossible"),
        ("<mask>", {"top_k": None}, "top_k=None is impossible"),
        ("<mask>", {"batch_size": True}, "batch_size=True is impossible"),
        ("<mask>", {"batch_size": 1.0}, "batch_size=1.0 is impossible"),
        ("<mask>", {"truncation": "yes"}, "truncation='yes' is unknown: take one of False, True"),
        ("<mask>", {"truncation": None}, "truncation=None is unknown"),
        ("<mask>", {"batch_size": 0}, "batch_size=0 is impossible: it must be an integer, 1 or more"),
        ("<mask>" * 600, {}, "602 tokens are too many: there is room for 512"),
    ],
)
def test_impossible_arguments_of_fill_mask(text, options, words, random_model, tokenizer):
    with pytest.raises(ValueError, match=words):
        fill_mask(random_model, tokenizer, text, **options)


@pytest.mark.parametrize(
    ("task", "call", "words"),
    [
        ("Model", lambda *m: embed(*m, "a", pooling="max"), "pooling='max' is unknown: take one of 'mean', 'first'"),
        ("Model", lambda *m: embed(*m, "a", pooling=["mean"]), r"pooling=\['mean'\] is unknown"),
        ("Model", lambda *m: embed(*m, 3), "texts is of type int, but must be a list of texts, or one text"),
        ("Model", lambda *m: embed(*m, [("a", "b")]), r"texts\[0\] is of type tuple, but must be a text, a str"),
        ("Model", lambda *m: embed(*m, ["a", "\ud800"]), r"texts\[1\] has '\\ud800' at index 0, a lone surrogate"),
        (
            "Model",
            lambda *m: embed(*m, "a", batch_size=-1),
            "batch_size=-1 is impossible: it must be an integer, 1 or more",
        ),
        ("Model", lambda *m: embed(*m, "a", truncation="yes"), "truncation='yes' is unknown"),
        ("Model", lambda *m: embed(*m, "a", progress=torch.ones(2)), "progress=tensor.* is unknown: take one of False"),
        ("ForTokenClassification", lambda *m: tag(*m, "a", by_word="no"), "by_word='no' is unknown"),
        ("ForTokenClassification", lambda *m: tag(*m, ["a", None]), r"texts\[1\] is of type NoneType"),
        (
            "ForSequenceClassification",
            lambda *m: classify(*m, "a", top_k=3),
            "top_k=3 is impossible: it must be an integer from 1 to 2",
        ),
        (
            "ForSequenceClassification",
            lambda *m: classify(*m, ("a", "b", "c")),
            r"texts\[0\] has 3 texts, but one input",
        ),
        ("ForSequenceClassification", lambda *m: classify(*m, ("a", 3)), r"texts\[0\] is of type int"),
        ("ForSequenceClassification", lambda *m: classify(*m, [3]), r"texts\[0\] is of type int"),
        ("ForSequenceClassification", lambda *m: classify(*m, [("a", ["b"])]), r"texts\[0\] is of type list"),
        ("ForSequenceClassification", lambda *m: classify(*m, ["a", ()]), r"texts\[1\] has 0 texts"),
        ("ForMultipleChoice", lambda *m: choose(*m, "a", []), r"the options of 'a' are \[\], but must be a list of"),
        ("ForMultipleChoice", lambda *m: choose(*m, "a", "b"), "the options of 'a' are 'b', but must be a list of"),
        ("ForMultipleChoice", lambda *m: choose(*m, ["a", "b"], ["c", "d"]), "the options of 'a' are 'c', but must"),
        ("ForMultipleChoice", lambda *m: choose(*m, ["a", "b"], [["c"]]), "2 questions but 1 lists of options: each"),
        ("ForMultipleChoice", lambda *m: choose(*m, "a", [3]), r"options\[0\] is of type int"),
        ("ForMultipleChoice", lambda *m: choose(*m, "a", [["b", "c"]]), r"options\[0\] is of type list"),
        (
            "ForMultipleChoice",
            lambda *m: choose(*m, ["a", "b"], [["c"], ["d", None]]),
            r"options\[1\]\[1\] is of type None",
        ),
        ("ForMultipleChoice", lambda *m: choose(*m, ["a"], None), "options is of type NoneType, but must be a list of"),
        ("ForMultipleChoice", lambda *m: choose(*m, None, ["c"]), "question is of type NoneType"),
        ("ForMultipleChoice", lambda *m: choose(*m, ["a", "b"], {"a": ["c"]}), "options is of type dict"),
        ("ForQuestionAnswering", lambda *m: answer(*m, ["a", "b"], "c"), "2 questions but 1 passages: each question"),
        ("ForQuestionAnswering", lambda *m: answer(*m, "a", ["b", "c"]), "1 questions but 2 passages"),
        ("ForQuestionAnswering", lambda *m: answer(*m, [["a"]], [["b"]]), r"question\[0\] is of type list"),
        ("ForQuestionAnswering", lambda *m: answer(*m, "a", None), "passage is of type NoneType"),
        ("ForQuestionAnswering", lambda *m: answer(*m, "a", "\udfff"), r"passage\[0\] has '\\udfff' at index 0"),
        (
            "ForQuestionAnswering",
            lambda *m: answer(*m, "a", "b", top_k=0),
            "top_k=0 is impossible: it must be an integer, 1 or more",
        ),
        ("ForQuestionAnswering", lambda *m: answer(*m, "a", "b", max_answer_len=0), "max_answer_len=0 is impossible"),
        (
            "ForQuestionAnswering",
            lambda *m: answer(*m, "a", "b", max_answer_len=2.5),
            "max_answer_len=2.5 is impossible",
        ),
        ("ForQuestionAnswering", lambda *m: answer(*m, "a", "b", truncation="only_first"), "'only_first' is unknown"),
    ],
)
def test_impossible_arguments_of_the_others(task, call, words, tokenizer):
    _, ours = twins_for(tokenizer, task)
    with pytest.raises(ValueError, match=words):
        call(ours, tokenizer)


FORMS = {
    "list": list,
    "array": lambda values: numpy.array([*values, None], dtype=object)[:-1],
    "Series": Series,
    "generator": lambda values: (value for value in values),
}
TASKS = {
    "ForMaskedLM": lambda m, form: fill_mask(*m, form(["<mask> a", "", "<mask> b"][::2])),
    "Model": lambda m, form: embed(*m, form(["a", "b c"])).tolist(),
    "ForSequenceClassification": lambda m, form: classify(*m, form(["a", ("b", "c")])),
    "ForTokenClassification": lambda m, form: tag(*m, form(["a", "b c"])),
    "ForMultipleChoice": lambda m, form: choose(*m, form(["a", "b"]), form([form(["c", "d"]), form(["e"])])),
    "ForQuestionAnswering": lambda m, form: answer(*m, form(["a", "b"]), form(["c", "d"])),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("task", TASKS)
def test_any_sequence_of_texts_is_as_a_list(task, form, tokenizer):
    _, ours = twins_for(tokenizer, task)
    expected = TASKS[task]((ours, tokenizer), list)
    assert len(expected) == 2
    assert TASKS[task]((ours, tokenizer), FORMS[form]) == expected
    if task != "ForSequenceClassification":  # to which a tuple is a pair
        assert TASKS[task]((ours, tokenizer), tuple) == expected


def test_one_text_as_an_array_and_numbers_as_numpy_s(tiny, tokenizer):
    expected = fill_mask(tiny, tokenizer, "a <mask>", top_k=3)
    for text in (numpy.array("a <mask>"), numpy.str_("a <mask>")):
        assert fill_mask(tiny, tokenizer, text, top_k=numpy.int64(3), batch_size=numpy.int32(2)) == expected
    assert fill_mask(tiny, tokenizer, numpy.array(["a <mask>"]), top_k=3) == [expected]
    _, ours = twins_for(tokenizer, "ForQuestionAnswering")
    assert answer(ours, tokenizer, "a", "b c", top_k=numpy.int64(2), max_answer_len=numpy.int64(2)) == answer(
        ours, tokenizer, "a", "b c", top_k=2, max_answer_len=2
    )


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (None, "is of type NoneType, but must be a list"),
        (7, "is of type int, but must be a list"),
        (b"a <mask>", "is of type bytes, but must be a list"),
        ({"a <mask>": 1}, "is of type dict, but must be a list"),
        ({"a <mask>"}, "is of type set, but must be a list"),
        (numpy.array([["a <mask>", "b <mask>"]]), "is of type ndarray with 2 axes, but must have one"),
        (["a <mask>", float("nan")], r"\[1\] is of type float"),
        (["a <mask>", b"b <mask>"], r"\[1\] is of type bytes"),
        (torch.tensor([5, 6]), r"\[0\] is of type int"),
    ],
)
def test_what_is_no_text_raises_one_sentence(task, texts, words, tokenizer):
    _, ours = twins_for(tokenizer, task)
    calls = {
        "ForMultipleChoice": lambda: choose(ours, tokenizer, texts, [["a"], ["b"]]),
        "ForQuestionAnswering": lambda: answer(ours, tokenizer, texts, ["a", "b"]),
    }
    by_name = {"ForMaskedLM": fill_mask, "Model": embed, "ForSequenceClassification": classify}
    with pytest.raises(ValueError, match=words) as caught:
        calls.get(task, lambda: by_name.get(task, tag)(ours, tokenizer, texts))()
    assert "\n" not in str(caught.value)
    assert re.match("(texts|question)", str(caught.value))


@pytest.mark.parametrize("task", CALLS)
def test_what_is_no_tokenizer_or_no_model_raises_one_sentence(task, tokenizer):
    theirs, ours = twins_for(tokenizer, task)
    their_tokenizer = transformers.XLMRobertaTokenizer(str(PRETRAINED / "tiny" / "sentencepiece.bpe.model"))
    for other in ("tiny", None, their_tokenizer, PRETRAINED / "tiny", XLMRobertaTokenizer):
        words = f"tokenizer is of type {type(other).__name__}, but must be an XLMRobertaTokenizer: load one with"
        with pytest.raises(ValueError, match=words):
            CALLS[task](ours, other)
    for other in ("tiny", None, theirs, type(ours), tokenizer):
        with pytest.raises(ValueError, match=f"the model is of class {type(other).__name__}: load it with"):
            CALLS[task](other, tokenizer)


@pytest.mark.parametrize("task", CALLS)
def test_a_tokenizer_with_more_tokens_than_the_model_raises_one_sentence(task, tokenizer):
    _, ours = twins_for(tokenizer, task)
    words = f"the tokenizer has 250002 tokens, but the model has embeddings for {len(tokenizer)}: load both from"
    with pytest.raises(ValueError, match=words):
        CALLS[task](ours, XLMRobertaTokenizer.from_pretrained("xlm-roberta-xl"))


@pytest.mark.parametrize("name", ["tiny", "xlm-roberta-xl"])
def test_spans_begin_and_end_at_visible_characters(name):
    """Of words, tokens and answers, around what normalization removes or changes; test_tokenizer.py has more of it."""
    tokenizer = XLMRobertaTokenizer.from_pretrained(name)
    small = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    sizes = {"vocab_size": len(tokenizer), "initializer_range": 0.4, **small}
    tagger, reader = (
        getattr(xlmrxl_min, f"XLMRobertaXLFor{task}")(XLMRobertaXLConfig(**sizes))
        for task in ("TokenClassification", "QuestionAnswering")
    )
    changed = "\u200f\u200b\u200d\u00ad\ufe0f\ufeff\x01\x85\u0301\u2028\u3000\xa0\t\U000e0067\u2060\u3164\u115f \0ﷺ…"
    texts = [
        text
        for c in changed
        for text in (
            f"abc{c} def",
            f"abc {c}def",
            f"{c}abc{c}def{c}",
            f"a{c}<mask>{c}b {c} e\u0301{c}",
            f"{c}{c} a {c}",
        )
    ]
    found = [
        tag(tagger, tokenizer, texts), tag(tagger, tokenizer, texts, by_word=False),
        answer(reader, tokenizer, ["a"] * len(texts), texts, top_k=50),
    ]  # fmt: skip
    for results in found:
        for text, spans in zip(texts, results, strict=True):
            for span in spans:
                assert span.text == text[span.start : span.end]
                ends = (is_visible(c) for c in (span.text[:1], span.text[-1:]) if c)
                assert all(ends) or not any(map(is_visible, span.text)), (text, span)
    for text, spans in zip(texts[::5], found[0][::5], strict=True):
        if not is_visible(text[3]):
            words = [span.text for span in spans if any(map(is_visible, span.text))]
            assert words == ["abc", "def"], (text, words)


def test_the_end_of_an_answer_is_no_space(tokenizer):
    """Though a lone ▁, whose place is after the space, may be its last token."""
    _, ours = twins_for(tokenizer, "ForQuestionAnswering")
    found = answer(ours, tokenizer, "a", "x q", top_k=99)
    assert "▁" in tokenizer.tokenize("x q")
    assert {span.text for span in found} == {"", "x", "q", "x q"}


def test_no_texts_no_results(tokenizer):
    for task, call in {
        "ForSequenceClassification": classify,
        "ForTokenClassification": tag,
        "ForMultipleChoice": lambda *m: choose(*m, []),
        "ForQuestionAnswering": lambda *m: answer(*m, []),
    }.items():
        assert call(twins_for(tokenizer, task)[1], tokenizer, []) == []


# ---- the bundled checkpoints


@pytest.mark.parametrize(("english", "spanish"), [("house", "casa"), ("land", "tierra")])
def test_tiny_finds_the_missing_word_in_the_translation(tiny, tokenizer, english, spanish):
    """The README's example. record.json has what it knows of held-out text, in all languages."""
    text = f"The king went to the {english} of his father.</s></s>El rey fue a la <mask> de su padre."
    assert fill_mask(tiny, tokenizer, text)[0][0].text == spanish


@pytest.mark.parametrize("name", ["tiny", "tiny-relative-key", "tiny-relative-key-query"])
def test_the_checkpoints_load_in_transformers(name, parity):
    ours, tokenizer = XLMRobertaXLForMaskedLM.from_pretrained(name), XLMRobertaTokenizer.from_pretrained(name)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(PRETRAINED / name, attn_implementation="eager").float()
    encoding = tokenizer([row.text for row in udhr(["en", "hi"])[:12]], padding=True, return_tensors="pt")
    with torch.no_grad():  # in float64, as the LM head amplifies float32's rounding to 1e-5 of the largest logit
        got, expected = (model.double()(**encoding, output_hidden_states=True) for model in (ours, theirs))
    parity(error(got.logits, expected.logits), limit=1e-10)
    parity(error(got.hidden_states, expected.hidden_states), limit=1e-10)


@pytest.mark.parametrize("name", ["tiny-decoder", "tiny-translator"])
def test_the_decoders_load_in_transformers(name, tiny, tokenizer, parity):
    theirs = transformers.XLMRobertaXLForCausalLM.from_pretrained(PRETRAINED / name, attn_implementation="eager")
    ours = XLMRobertaXLForCausalLM.from_pretrained(name)
    ids = tokenizer("And the king said to his father", return_tensors="pt").input_ids
    with torch.no_grad():
        states = tiny.backbone(ids).last_hidden_state.double() if ours.config.add_cross_attention else None
        got, expected = (model.double()(ids, encoder_hidden_states=states).logits for model in (ours, theirs))
    parity(error(got, expected), limit=1e-10)


def test_their_pipeline_agrees_with_fill_mask(tiny, tokenizer):
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(PRETRAINED / "tiny").float()
    their_tokenizer = transformers.XLMRobertaTokenizer(str(PRETRAINED / "tiny" / "sentencepiece.bpe.model"))
    pipeline = transformers.pipeline("fill-mask", model=theirs, tokenizer=their_tokenizer, device="cpu")
    for text in ("The king went to the <mask>.", "Er ging in das <mask> seines Vaters.", "Он открыл <mask>."):
        [ours] = fill_mask(tiny, tokenizer, text)
        expected = pipeline(text)
        assert [p.token_id for p in ours] == [p["token"] for p in expected]
        assert [p.probability for p in ours] == pytest.approx([p["score"] for p in expected], abs=1e-5)


# ---- the command line


def test_fill_prints_words_and_bars(capsys):
    text = "The <mask> went to the house of his father.</s></s>El rey fue a la <mask> de su padre."
    assert main(["fill", text, "--top-k", "2", "--model", "tiny"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("<mask>")] == ["<mask> 1", "<mask> 2"]
    assert "father" in lines[1]
    assert "%" in lines[1]
    assert len(lines) == 6


def test_fill_reports_an_error_in_one_line(capsys):
    for arguments, words in (
        (["no mask"], "nothing to fill"),
        (["<mask>", "--model", "nowhere"], "none of what this package holds (tiny, tiny-decoder, tiny-relative-key,"),
        (["<mask>", "--model", "xlm-roberta-xl"], "without its model.safetensors, unlike tiny, tiny-decoder"),
    ):
        assert main(["fill", *arguments]) == 2
        out = capsys.readouterr()
        assert words in out.err
        assert out.err.count("\n") == 1
        assert not out.out
