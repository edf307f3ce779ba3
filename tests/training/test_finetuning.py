"""Fine-tuning: encoded labels, batches, metrics by hand, and every head trained and compared with transformers."""

import math
import warnings
from collections import Counter

import pytest
import torch
import transformers
from transformers_reference import SMALL, gradient_error, output_error

from xlmrxl_min import XLMRobertaXLConfig
from xlmrxl_min.training import tasks
from xlmrxl_min.training.batching import make_batches
from xlmrxl_min.training.finetuning import compute_metrics, encode_examples, evaluate, majority_baseline
from xlmrxl_min.training.loop import fit
from xlmrxl_min.training.tasks import ARTICLES, SEPARATOR, TASKS, Example

SOME = ["en", "ru", "zh", "hi"]
LABELS = {"language_identification": SOME, "languages_present": SOME, "language_tagging": SOME}
LABELS["article_identification"] = [f"Article {number}" for number in ARTICLES]
ALL_TASKS = {name: tasks.task(name, LABELS.get(name, ())) for name in TASKS}


def examples_of(name, languages=SOME, articles=ARTICLES, **options):
    return getattr(tasks, name)(languages, articles, **options)


# ---- rows and batches


def test_tokens_have_the_label_of_their_span(tokenizer):
    task, examples = ALL_TASKS["language_tagging"], examples_of("language_tagging")
    for example, row in zip(examples, encode_examples(task, tokenizer, examples), strict=True):
        offsets = tokenizer(example.text, return_offsets_mapping=True).offset_mapping
        assert len(row["labels"]) == len(row["input_ids"])
        assert row["labels"][0] == row["labels"][-1] == -100
        for label, (begin, end) in zip(row["labels"][1:-1], offsets[1:-1], strict=True):
            [language] = [name for a, b, name in example.label if a <= begin < b or (begin == end and a <= begin <= b)][
                :1
            ]
            assert label == (-100 if begin == end else SOME.index(language))


def test_answer_positions_are_right(tokenizer):
    task, examples = ALL_TASKS["translation_finding"], examples_of("translation_finding")
    for example, row in zip(examples, encode_examples(task, tokenizer, examples), strict=True):
        ids = row["input_ids"][row["start_positions"] : row["end_positions"] + 1]
        found, said = tokenizer.decode(ids), example.others[0][slice(*example.label)]
        assert "".join(found.split()) == "".join(tokenizer.decode(tokenizer.encode(said)[1:-1]).split())


def test_impossible_labels(tokenizer):
    def one(name, **changed):
        return lambda: encode_examples(ALL_TASKS[name], tokenizer, [examples_of(name)[0]._replace(**changed)])

    passage = examples_of("translation_finding")[0]
    for action, words in (
        (one("language_identification", label="xx"), "'xx' is no label of language_identification, which has en, ru"),
        (one("languages_present", label=("en", "xx")), "'xx' is no label of languages_present"),
        (one("language_tagging", label=((0, 3, "xx"),)), "'xx' is no label of language_tagging"),
        (one("language_tagging", label=((0, 9999, "en"),)), "characters 0 to 9999 hold no text: there are"),
        (one("translation_choice", label=4), "the answer is choice 4 of 4: give its number, counted from 0"),
        (one("translation_finding", label=(3, 3)), "characters 3 to 3 hold no text"),
        (one("translation_finding", label=(0, 9999)), "characters 0 to 9999 hold no text"),
        (one("translation_finding", others=()), "one passage, and this example has 0"),
        (
            lambda: encode_examples(ALL_TASKS["translation_finding"], tokenizer, [passage], max_length=9),
            "max_length=9 cuts it off",
        ),
        (lambda: compute_metrics(ALL_TASKS["language_fraction"], [], []), "nothing to score"),
    ):
        with pytest.raises(ValueError, match=words):
            action()


def test_an_answer_may_end_at_max_length(tokenizer):
    example = Example("Alle", (0, 3), "de", ("all of it and more",))
    [row] = encode_examples(ALL_TASKS["translation_finding"], tokenizer, [example])
    shortest = row["end_positions"] + 2
    [cut] = encode_examples(ALL_TASKS["translation_finding"], tokenizer, [example], max_length=shortest)
    assert len(cut["input_ids"]) == shortest
    assert cut["input_ids"][-1] == tokenizer.eos_token_id
    with pytest.raises(ValueError, match="cuts it off: allow more"):
        encode_examples(ALL_TASKS["translation_finding"], tokenizer, [example], max_length=shortest - 1)


@pytest.mark.parametrize("name", TASKS)
def test_batches_hold_every_row_once(name, tokenizer):
    task = ALL_TASKS[name]
    rows = encode_examples(task, tokenizer, examples_of(name, articles=range(3, 10)))
    shapes = {"labels": ("b",), "start_positions": ("b",), "end_positions": ("b",)}
    seen = Counter()
    for batch in make_batches(rows, 600, 1, torch.Generator().manual_seed(0)):
        ids = batch["input_ids"]
        assert ids.numel() <= 600 or len(ids) == 1
        torch.testing.assert_close(batch["attention_mask"], (ids != 1).long())
        b, t, c = ids.shape[0], ids.shape[-1], len(task.labels)
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
        if name == "language_fraction":
            labels = torch.tensor(labels).tolist()
        expected[tuple(map(tuple, texts)), str(labels)] += 1
    assert seen == expected


def test_rows_that_cannot_be_in_one_batch():
    with pytest.raises(ValueError, match=r"rows have \[2, 3\] choices: give each as many"):
        make_batches([{"input_ids": [[0, 2]] * n, "labels": 0} for n in (2, 3)], 100, 1)
    with pytest.raises(ValueError, match="a row has 2 labels, but must have 3"):
        make_batches([{"input_ids": [0, 5, 2], "labels": [-100, 1]}], 100, 1)
    with pytest.raises(ValueError, match="a row has 1 labels, but must have 2"):
        make_batches([{"input_ids": [0, 5, 2], "labels": row} for row in ([0.0, 1.0], [1.0])], 100, 1)
    with pytest.raises(ValueError, match="max_tokens=0 is impossible"):
        make_batches([{"input_ids": [0, 5, 2], "labels": 1}], 0, 1)


# ---- scores


def example_of(label, text="ab cd", others=()):
    return Example(text, label, "", others)


@pytest.mark.parametrize(
    ("name", "examples", "found", "expected", "by_majority"),
    [
        ("language_identification", [example_of(x) for x in ("en", "en", "ru", "zh")], ["en", "ru", "ru", "zh"],
         {"accuracy": 3 / 4}, {"accuracy": 2 / 4}),
        ("languages_present", [example_of(x) for x in (("en",), ("en", "ru"), ("en", "ru"))],
         [("en",), ("ru", "en"), ("zh",)],
         {"exact_match": 2 / 3, "label_accuracy": 9 / 12}, {"exact_match": 2 / 3, "label_accuracy": 11 / 12}),
        ("language_fraction", [example_of(x) for x in (0.2, 0.4, 0.9)], [0.1, 0.4, 1.0],
         {"mean_absolute_error": 0.2 / 3, "correlation": 0.33 / math.sqrt(0.26 * 0.42)},
         {"mean_absolute_error": 0.7 / 3, "correlation": 0.0}),
        ("language_tagging", [example_of(((0, 2, "en"), (3, 5, "ru"))), example_of(((0, 4, "ru"),))],
         [((0, 1, "en"), (3, 5, "ru")), ((0, 2, "ru"), (2, 5, "en"))], {"accuracy": 5 / 8}, {"accuracy": 6 / 8}),
        ("translation_choice", [example_of(1, others=("a", "b", "c", "d")), example_of(0, others=("a", "b"))], [1, 1],
         {"accuracy": 1 / 2}, {"accuracy": 1 / 2}),
        ("translation_finding", [example_of(at, others=("one </s> two",)) for at in ((0, 3), (9, 12))],
         [(0, 3), (7, 12)], {"exact_match": 1 / 2, "f1": (1 + 6 / 8) / 2}, {"exact_match": 1 / 2, "f1": 1 / 2}),
        ("translation_finding", [example_of(at, others=("one </s> seven",)) for at in ((0, 3), (9, 14))],
         [(0, 3), (9, 14)], {"exact_match": 1, "f1": 1}, {"exact_match": 1 / 2, "f1": 1 / 2}),
    ],
)  # fmt: skip
def test_metrics_by_hand(name, examples, found, expected, by_majority):
    assert compute_metrics(ALL_TASKS[name], found, examples) == pytest.approx(expected, abs=1e-4)
    assert majority_baseline(ALL_TASKS[name], examples) == pytest.approx(by_majority)


def test_the_baseline_may_answer_with_the_whole_passage():
    passage = SEPARATOR.join(["a" * 20] * 3)  # 72 characters, of which every answer has 20
    examples = [example_of(at, others=(passage,)) for at in ((0, 20), (26, 46), (52, 72))]
    assert majority_baseline(ALL_TASKS["translation_finding"], examples) == pytest.approx(
        {"exact_match": 1 / 3, "f1": 40 / 92}
    )


def fine_tuned(name, tokenizer, count, steps):
    """`tiny` with a new head after some steps on `count` examples, these examples, and a batch of them."""
    torch.manual_seed(0)
    words = {"article_identification": 12, "translation_choice": 6, "translation_finding": 6}
    task, options = ALL_TASKS[name], {"words": words[name]} if name in words else {}
    examples = examples_of(name, articles=range(3, 8), **options)[:count]
    batches = make_batches(encode_examples(task, tokenizer, examples), 1500, tokenizer.pad_token_id)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the head is new
        model = task.model_class.from_pretrained("tiny", **task.config)
    fit(model, batches, steps=steps, learning_rate=1e-3, warmup_steps=3, progress=False)
    return model, examples, batches[0]


ONE_FOR_EACH_HEAD = ("language_identification", "language_tagging", "translation_choice", "translation_finding")


@pytest.mark.parametrize(
    ("name", "count", "steps"),
    [(name, 8, 8) for name in ONE_FOR_EACH_HEAD]
    + [pytest.param(name, 24, 25, marks=pytest.mark.slow) for name in TASKS],
)
def test_every_head_learns_its_training_examples(name, count, steps, tokenizer):
    model, examples, _ = fine_tuned(name, tokenizer, count, steps)
    task = ALL_TASKS[name]
    found, baseline = evaluate(task, model, tokenizer, examples), majority_baseline(task, examples)
    metric = next(iter(found))
    if metric == "mean_absolute_error":
        assert found[metric] < 0.6 * baseline[metric]
    else:
        assert found[metric] > baseline[metric] + 0.25, (found, baseline)


@pytest.mark.parametrize("name", TASKS)
def test_a_fine_tuned_head_agrees_with_transformers(name, tokenizer, tmp_path):
    """The saved checkpoint gives the same loss, logits and gradients there."""
    model, _, batch = fine_tuned(name, tokenizer, count=4, steps=2)
    model.save_pretrained(tmp_path)
    peer = getattr(transformers, type(model).__name__)
    theirs = peer.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert theirs.config.problem_type == ALL_TASKS[name].problem_type
    out, reference = model.eval()(**batch), theirs(**batch)
    assert output_error(out, reference) < 2e-5
    model.zero_grad()
    out.loss.backward()
    reference.loss.backward()
    assert gradient_error(model, theirs) < 2e-5
    assert model.backbone.embeddings.word.weight.grad.abs().max() > 1e-6


def test_a_new_head_is_initialised_by_the_config(tokenizer):
    task = ALL_TASKS["language_tagging"]
    model = task.model_class(XLMRobertaXLConfig(**{**SMALL, **task.config}))
    assert model.config.id2label == dict(enumerate(SOME))
    assert model.classifier.out_features == 4
