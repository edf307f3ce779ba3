"""Public functions of training take what users have, and refuse the rest in one sentence."""

import numpy
import pytest
import torch
import transformers
from refusal import refused

from xlmrxl_min import XLMRobertaXLForCausalLM, XLMRobertaXLForMaskedLM
from xlmrxl_min.training import tasks
from xlmrxl_min.training.batching import make_batches
from xlmrxl_min.training.evaluation import masked_accuracy, next_token_accuracy, word_alignment
from xlmrxl_min.training.finetuning import compute_metrics, encode_examples, evaluate, majority_baseline
from xlmrxl_min.training.loop import fit
from xlmrxl_min.training.masking import dynamic_masking, mask_tokens
from xlmrxl_min.training.tasks import TASKS, Example
from xlmrxl_min.training.texts import udhr
from xlmrxl_min.training.translation import translate

TEXT = "Everyone has the right to life, liberty and security of person."


@pytest.fixture(scope="module")
def model():
    return XLMRobertaXLForMaskedLM.from_pretrained("tiny")


@pytest.fixture(scope="module")
def decoder():
    return XLMRobertaXLForCausalLM.from_pretrained("tiny-decoder")


@pytest.fixture(scope="module")
def language_task():
    return tasks.task("language_identification", ["en", "fr"])


def test_one_text_is_no_list_of_letters(model, tokenizer):
    expected = masked_accuracy(model, tokenizer, [TEXT], mask_prob=0.5)
    for texts in (TEXT, numpy.array(TEXT), (TEXT,), numpy.array([TEXT]), (text for text in [TEXT])):
        assert masked_accuracy(model, tokenizer, texts, mask_prob=0.5) == expected
    assert udhr("en") == udhr(["en"]) == udhr(("en",)) == udhr(code for code in ["en"])
    assert udhr("en") == udhr({"en"}) == udhr({"en": "English"})  # its order does not depend on theirs
    assert tasks.task("language_identification", "en").labels == ("en",)
    made = [tasks.language_identification(languages, [3, 4]) for languages in ("en", ["en"], numpy.array(["en"]))]
    assert made[0] == made[1] == made[2]


def test_impossible_arguments_of_evaluation(model, decoder, tokenizer):
    for texts, words in (
        ([], "no token of 0 texts was masked: give more text, or more rounds"),
        ([""], "no token of 1 texts was masked"),
        (None, "texts is of type NoneType, but must be a list of texts"),
        (3, "texts is of type int"),
        ([TEXT, 3], r"texts\[1\] is of type int, but must be a text"),
        ({"a": TEXT}, "texts is of type dict"),
    ):
        refused(lambda texts=texts: masked_accuracy(model, tokenizer, texts), words)
    for wrong, words in (
        ({"mask_prob": 1.5}, "mask_prob=1.5 is impossible: it must be a number of at least 0 and at most 1"),
        ({"mask_prob": -0.1}, "mask_prob=-0.1 is impossible"),
        ({"mask_prob": float("nan")}, "mask_prob=nan is impossible"),
        ({"mask_prob": "0.1"}, "mask_prob='0.1' is impossible"),
        ({"rounds": 0}, "rounds=0 is impossible: it must be an integer"),
        ({"rounds": 1.5}, "rounds=1.5 is impossible"),
        ({"seed": "a"}, "seed='a' is impossible"),
        ({"seed": 2**64}, "is impossible: it must be an integer from"),
    ):
        refused(lambda wrong=wrong: masked_accuracy(model, tokenizer, TEXT, **wrong), words)
    refused(lambda: masked_accuracy(decoder, tokenizer, TEXT), "needs an XLMRobertaXLForMaskedLM, but the model is of")
    refused(lambda: masked_accuracy(model, "tiny", TEXT), "the tokenizer is of type str, but must be an XLMRobertaTok")
    refused(lambda: masked_accuracy("tiny", tokenizer, TEXT), "the model is of class str")
    rows = [tokenizer.encode(TEXT)]
    for call, words in (
        (lambda: next_token_accuracy(decoder, tokenizer, []), "there is no token to predict"),
        (lambda: next_token_accuracy(decoder, tokenizer, [[0]]), "there is no token to predict"),
        (lambda: next_token_accuracy(decoder, tokenizer, TEXT), "rows is of type str, but must be a list of lists of"),
        (lambda: next_token_accuracy(model, tokenizer, rows), "needs an XLMRobertaXLForCausalLM"),
        (lambda: next_token_accuracy(decoder, tokenizer, rows, sources=rows), "encoder and sources belong together"),
        (lambda: next_token_accuracy(decoder, tokenizer, rows, prompt_lengths=[1, 2]), "prompt_lengths has 2 entries"),
        (lambda: word_alignment(decoder, model.backbone, tokenizer, "en"), "no translated words for en: name two"),
    ):  # fmt: skip
        refused(call, words)


def test_impossible_arguments_of_masking(model, tokenizer):
    ids, generator = torch.tensor([tokenizer.encode(TEXT)]), torch.Generator()
    for call, words in (
        (lambda: mask_tokens(ids.tolist(), 0.1, tokenizer, generator), "ids is of type list|ids is a list"),
        (lambda: mask_tokens(ids[0], 0.1, tokenizer, generator), r"ids have shape \(\d+,\), but must be"),
        (lambda: mask_tokens(ids.float(), 0.1, tokenizer, generator), "ids must be integers"),
        (lambda: mask_tokens(ids + 8000, 0.1, tokenizer, generator), "allowed are 0 to .*: take the ids that this tok"),
        (lambda: mask_tokens(ids, 2, tokenizer, generator), "mask_prob=2 is impossible"),
        (lambda: mask_tokens(ids, None, tokenizer, generator), "mask_prob=None is impossible"),
        (lambda: mask_tokens(ids, 0.1, "tiny", generator), "tokenizer is of type str, but must be a tokenizer"),
        (lambda: mask_tokens(ids, 0.1, tokenizer, 0), "generator is of type int, but must be a torch.Generator: pass"),
        (lambda: dynamic_masking(None), "tokenizer is of type NoneType"),
        (lambda: dynamic_masking(tokenizer, 15), "mask_prob=15 is impossible"),
        (lambda: dynamic_masking(tokenizer)({"ids": ids}, generator), "with input_ids, but got the names ids"),
        (lambda: fit(model, [ids], steps=1, learning_rate=0.1, transform=dynamic_masking(tokenizer)), "but got Tensor"),
    ):  # fmt: skip
        refused(call, words)


def test_masking_takes_the_tokenizer_of_transformers(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    theirs = transformers.XLMRobertaTokenizer(str(tmp_path / "sentencepiece.bpe.model"))
    ids = torch.tensor([tokenizer.encode(TEXT)])
    found = [mask_tokens(ids, 0.5, one, torch.Generator().manual_seed(0)) for one in (tokenizer, theirs)]
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("name", TASKS)
def test_impossible_arguments_of_tasks(name):
    derive = getattr(tasks, name)
    for arguments, options, words in (
        ((None, [3]), {}, "languages is of type NoneType, but must be a list of texts"),
        (([3, 4, 5], [3]), {}, r"languages\[0\] is of type int"),
        ((["en", "fr", "xx"], [3, 4, 5, 6]), {}, "the Declaration is not here in xx"),
        ((["en", "fr", "ru"], 3), {}, "articles is of type int, but must be a list of numbers, 1 to 30"),
        ((["en", "fr", "ru"], "3"), {}, "articles is of type str"),
        ((["en", "fr", "ru"], []), {}, r"articles \[\] are not possible"),
        ((["en", "fr", "ru"], [3, 31]), {}, "are not possible: take some of 1 to 30"),
        ((["en", "fr", "ru"], [3.0]), {}, "are not possible: take some of 1 to 30"),
        ((["en", "fr", "ru"], ["3"]), {}, "are not possible: take some of 1 to 30"),
        ((["en", "fr", "ru"], [3, 4, 5, 6]), {"rounds": 1.5}, "rounds=1.5 is impossible"),
        ((["en", "fr", "ru"], [3, 4, 5, 6]), {"rounds": "2"}, "rounds='2' is impossible"),
        ((["en", "fr", "ru"], [3, 4, 5, 6]), {"seed": None}, "seed=None is impossible: it must be an integer"),
    ):
        refused(lambda call=(arguments, options): derive(*call[0], **call[1]), words)
    if name not in ("languages_present", "language_tagging"):
        for words in (0, -1, "5", 2.5):
            refused(lambda words=words: derive(["en", "fr", "ru"], [3, 4, 5, 6], words=words), "words=.* is impossible")


def test_impossible_tasks_and_splits():
    for call, words in (
        (lambda: tasks.task(None), "None is no task: there are language_identification"),
        (lambda: tasks.task(["language_tagging"]), "is no task: there are"),
        (lambda: tasks.task("language_tagging", None), "labels is of type NoneType"),
        (lambda: tasks.task("language_tagging", [1, 2]), r"labels\[0\] is of type int"),
        (lambda: tasks.train_test_split(3), "articles is of type int"),
        (lambda: tasks.train_test_split("17"), "articles is of type str"),
        (lambda: udhr(3), "languages is of type int"),
        (lambda: udhr([None]), r"languages\[0\] is of type NoneType"),
    ):
        refused(call, words)


def test_impossible_examples(tokenizer, language_task):
    example = Example(TEXT, "en", "en")
    for call, words in (
        (lambda: encode_examples("language_tagging", tokenizer, []), "task is of type str, but must be a Task"),
        (lambda: encode_examples(language_task, "tiny", [example]), "tokenizer is of type str"),
        (
            lambda: encode_examples(language_task, tokenizer, example),
            "must be an Example of tasks.py: pass a list of them",
        ),
        (lambda: encode_examples(language_task, tokenizer, TEXT), "examples is of type str"),
        (lambda: encode_examples(language_task, tokenizer, [TEXT]), r"examples\[0\] is of type str"),
        (lambda: encode_examples(language_task, tokenizer, [(TEXT, "en")]), r"examples\[0\] is of type tuple"),
        (lambda: encode_examples(language_task, tokenizer, None), "examples is of type NoneType"),
        (lambda: encode_examples(language_task, tokenizer, [example], max_length=0), "max_length=0 is impossible"),
        (lambda: encode_examples(language_task, tokenizer, [example], max_length="9"), "max_length='9' is impossible"),
        (lambda: evaluate(language_task, None, tokenizer, []), "there is nothing to score: give one example or more"),
        (lambda: evaluate(language_task, None, tokenizer, [example]), "the model is of class NoneType"),
        (lambda: majority_baseline(language_task, []), "there is nothing to score"),
        (lambda: majority_baseline("language_tagging", [example]), "task is of type str"),
        (lambda: compute_metrics(language_task, [], [example]), "there are 0 predictions for 1 examples"),
    ):
        refused(call, words)
    assert encode_examples(language_task, tokenizer, (one for one in [example]))[0]["labels"] == 0


LABELS = {
    "language_identification": (None, 3, ["en"], torch.zeros(2)),
    "languages_present": (None, 3, "en", [3], {"en"}),
    "language_fraction": (None, "a", [0.5], float("nan"), float("inf"), torch.zeros(2)),
    "language_tagging": (None, 3, "en", ["en"], [(0, 3)], [("a", "b", "en")], [(0, 0.5, "en")], [0, 3, "en"]),
    "translation_choice": (None, "a", 4, -1, 1.0, [1], torch.zeros(2)),
    "translation_finding": (None, 3, "ab", (0,), (0, 1, 2), (0.0, 3.0), ("a", "b"), (3, 1), torch.zeros(2)),
}


@pytest.mark.parametrize("name", LABELS)
def test_impossible_labels_of_examples(name, tokenizer):
    task = tasks.task(name, () if name in tasks.FIXED_LABELS else ["en", "fr"])
    others = ("abc", "def", "ghi", "jkl")[: {"translation_choice": 4, "translation_finding": 1}.get(name, 0)]
    words = "is no label|is of type|must be a number|is no span|no text|the answer is choice"
    for label in LABELS[name]:
        refused(lambda label=label: encode_examples(task, tokenizer, [Example(TEXT, label, "en", others)]), words)
    refused(lambda: encode_examples(task, tokenizer, [Example(3, None, "en", others)]), "the text of examples.0. is of")
    refused(lambda: encode_examples(task, tokenizer, [Example(TEXT, None, "en", "abc")]), "others of examples.0. is of")


def test_impossible_rows():
    row = {"input_ids": [0, 5, 2], "labels": 1}
    for rows, words in (
        (row, "rows is of type dict, but must be a list of dicts such as"),
        ("tiny", "rows is of type str"),
        ([[0, 5, 2]], r"rows\[0\] is .*, but must be a dict with input_ids and labels"),
        ([{"labels": 1}], r"rows\[0\] is .*labels.*, but must be a dict with input_ids"),
        ([row, {"input_ids": [], "labels": 1}], r"rows\[1\] has input_ids \[\], but must have a list of one"),
        ([{"input_ids": [[0, 2], []], "labels": 1}], "but must have a list of one id or more, for each text"),
        ([{"input_ids": "abc", "labels": 1}], "input_ids 'abc'"),
        ([{"input_ids": 3, "labels": 1}], "input_ids 3"),
        ([{"input_ids": [None, 3], "labels": 1}], "but must have a list of one id or more"),
        ([{"input_ids": [0.5], "labels": 1}], "but must have a list of one id or more"),
        ([{"input_ids": torch.tensor(3), "labels": 1}], "but must have a list of one id or more"),
        ([{**row, "labels": "a"}], "labels .*'a'.* are not possible: give numbers, or lists of them"),
        ([{**row, "labels": None}], "labels .*None.* are not possible"),
        ([{**row, "labels": [1, "a", 2]}], "labels .* are not possible"),
        ([{**row, "labels": [0.5]}, {**row, "labels": 0.5}], "labels of a row are 0.5, but those of another"),
        ([{"input_ids": None, "labels": 1}], "input_ids None"),
        ([row, {"input_ids": [0, 2]}], r"rows\[1\] has input_ids, but rows\[0\] has input_ids, labels: give"),
    ):  # fmt: skip
        refused(lambda rows=rows: make_batches(rows, 100, 1), words)
    assert make_batches([], 100, 1) == []
    for ids in ((0, 5, 2), numpy.array([0, 5, 2])):
        assert make_batches([{**row, "input_ids": ids}], 100, 1)[0]["input_ids"].tolist() == [[0, 5, 2]]


def test_impossible_translations(decoder, model, tokenizer):
    for call, words in (
        (lambda: translate(decoder, model.backbone, tokenizer, [TEXT], "fr"), "text is of type list, but must"),
        (lambda: translate(decoder, model.backbone, tokenizer, TEXT, 3), "language is of type int"),
        (lambda: translate(model, model.backbone, tokenizer, TEXT, "fr"), "needs an XLMRobertaXLForCausalLM"),
        (lambda: translate(decoder, "tiny", tokenizer, TEXT, "fr"), "needs a model as encoder, but"),
        (lambda: translate(decoder, model.backbone, "tiny", TEXT, "fr"), "the tokenizer is of type str"),
    ):  # fmt: skip
        refused(call, words)


def test_a_model_without_a_head_is_refused(model, tokenizer):
    refused(lambda: masked_accuracy(model.backbone, tokenizer, TEXT), "of class XLMRobertaXLModel")
