"""Fine-tuning on the tasks of tasks.py: examples -> token ids and labels; predictions -> metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from statistics import correlation, fmean, median
from typing import Any

from ..inference.predict import answer, choose, classify, tag
from ..inputs import as_sequence, check_integer, check_number, check_text, check_type, shown
from ..model import (
    XLMRobertaXLForMultipleChoice,
    XLMRobertaXLForQuestionAnswering,
    XLMRobertaXLForSequenceClassification,
    XLMRobertaXLForTokenClassification,
)
from ..tokenizer import XLMRobertaTokenizer
from .batching import IGNORE_INDEX, EncodedExample
from .tasks import Example, Task, passage_spans

# ---- examples -> token ids and labels


def encode_examples(
    task: Task, tokenizer: XLMRobertaTokenizer, examples: Iterable[Example], *, max_length: int = 512
) -> list[EncodedExample]:
    """The input_ids and labels, or start_positions and end_positions, of each example.

    max_length: in tokens; longer texts are truncated. A class becomes its id, several classes a list of 1.0 and 0.0; a
    number stays. Multiple choice has a list of input_ids for each choice. Raises ValueError for an unknown label, for a
    span outside the text, for a truncated answer, and for what is no task, tokenizer or example.
    """
    examples = check_examples(task, examples, at_least=0)
    check_integer("max_length", max_length)
    check_type("tokenizer", tokenizer, XLMRobertaTokenizer, "an XLMRobertaTokenizer: load one by from_pretrained")
    functions: dict[Any, Callable[..., EncodedExample]] = {
        XLMRobertaXLForSequenceClassification: encode_classification,
        XLMRobertaXLForTokenClassification: encode_tagging,
        XLMRobertaXLForMultipleChoice: encode_choice,
        XLMRobertaXLForQuestionAnswering: encode_question,
    }
    encode = functions[task.model_class]
    return [encode(task, tokenizer, example, max_length) for example in examples]


def check_examples(task: Any, examples: Any, at_least: int = 1) -> list[Example]:
    """The examples as a list. ValueError for what is no task, what are no examples, and too few of them."""
    check_type("task", task, Task, 'a Task, such as tasks.task("language_tagging", …)')
    examples = as_sequence(examples, "examples", f"examples, such as tasks.{task.name} makes")
    for i, example in enumerate(examples):
        check_type(f"examples[{i}]", example, Example, "an Example of tasks.py: pass a list of them")
        check_text(example.text, f"the text of examples[{i}]")
        for text in as_sequence(example.others, f"others of examples[{i}]", "texts"):
            check_text(text, f"a text in others of examples[{i}]")
    if len(examples) < at_least:
        raise ValueError("there is nothing to score: give one example or more.")
    return examples


def label_id(task: Task, label: Any) -> int:
    if not isinstance(label, str) or label not in task.labels:
        raise ValueError(f"{shown(label)} is no label of {task.name}, which has {', '.join(task.labels)}.")
    return task.labels.index(label)


def encode_classification(
    task: Task, tokenizer: XLMRobertaTokenizer, example: Example, max_length: int
) -> EncodedExample:
    ids = tokenizer.encode(example.text, max_length=max_length, truncation=True)
    if task.problem_type == "multi_label_classification":
        present = {label_id(task, label) for label in as_sequence(example.label, "the label", "names")}
        return {"input_ids": ids, "labels": [float(i in present) for i in range(len(task.labels))]}
    is_number = task.problem_type == "regression"
    if is_number:
        check_number("label", example.label, -1e9, 1e9)
    return {"input_ids": ids, "labels": float(example.label) if is_number else label_id(task, example.label)}


def encode_tagging(task: Task, tokenizer: XLMRobertaTokenizer, example: Example, max_length: int) -> EncodedExample:
    """Label each token by its first character; tokens without characters get -100.

    Not only the first token of each word, as is usual: a text in Chinese or Japanese would have a single label.
    """
    encoding = tokenizer(example.text, max_length=max_length, truncation=True, return_offsets_mapping=True)
    for span in as_sequence(example.label, "the label", "spans, (start, end, name)"):
        check_span(span, 3, example.text)
    characters = character_labels(len(example.text), example.label)
    labels = [
        IGNORE_INDEX if start == end or characters[start] is None else label_id(task, characters[start])
        for start, end in encoding.offset_mapping
    ]
    return {"input_ids": encoding.input_ids, "labels": labels}


def character_labels(size: int, spans: Iterable[tuple[int, int, str]]) -> list[str | None]:
    """The label of each of `size` characters, None outside the spans."""
    labels: list[str | None] = [None] * size
    for start, end, label in spans:
        labels[start:end] = [label] * (end - start)
    return labels


def encode_choice(task: Task, tokenizer: XLMRobertaTokenizer, example: Example, max_length: int) -> EncodedExample:
    """The text paired with each choice, and the number of the right one."""
    count = len(example.others)
    if not isinstance(example.label, Integral) or int(example.label) not in range(count):
        raise ValueError(f"the answer is choice {shown(example.label)} of {count}: give its number, counted from 0.")
    pairs = [(example.text, other) for other in example.others]
    ids = [tokenizer.encode(*pair, max_length=max_length, truncation=True) for pair in pairs]
    return {"input_ids": ids, "labels": example.label}


def encode_question(task: Task, tokenizer: XLMRobertaTokenizer, example: Example, max_length: int) -> EncodedExample:
    """The text paired with the passage, and the first and the last token of the answer."""
    if len(example.others) != 1:
        raise ValueError(f"{task.name} looks for an answer in one passage, and this example has {len(example.others)}.")
    check_span(example.label, 2, example.others[0])
    [passage], (start, end) = example.others, example.label
    encoding = tokenizer(example.text, passage, return_offsets_mapping=True)
    ids, offsets = encoding.input_ids, encoding.offset_mapping
    first = len(tokenizer.encode(example.text)) + 1  # of the passage: after <s> question </s></s>
    answer_tokens = [i for i in range(first, len(ids) - 1) if offsets[i][0] < end and offsets[i][1] > start]
    last = answer_tokens[-1]
    if last > max_length - 2:  # the last position is for </s>
        raise ValueError(f"the answer ends with token {last}, and max_length={max_length} cuts it off: allow more.")
    ids = [*ids[: max_length - 1], tokenizer.eos_token_id] if len(ids) > max_length else ids
    return {"input_ids": ids, "start_positions": answer_tokens[0], "end_positions": last}


def check_span(span: Any, size: int, text: str) -> None:
    """Raise ValueError unless `span`, (start, end) or (start, end, name), is of some characters of `text`."""
    is_span = isinstance(span, (tuple, list)) and len(span) == size
    if not is_span or not all(isinstance(place, Integral) for place in span[:2]):
        raise ValueError(
            f"{shown(span)} is no span: give {('start, end', 'start, end, name')[size - 2]}, in characters."
        )
    start, end = span[:2]
    if not 0 <= start < end <= len(text) or not text[start:end].strip():
        raise ValueError(f"characters {start} to {end} hold no text: there are {len(text)}, counted from 0.")


# ---- metrics


def evaluate(task: Task, model: Any, tokenizer: XLMRobertaTokenizer, examples: Sequence[Example]) -> dict[str, float]:
    """The metrics of the model's predictions, the most important one first.

    accuracy: of texts or, in tagging, of characters. exact_match: the fraction of texts with all labels right, or with
    both ends of the answer; label_accuracy: of single labels; f1: of the answer's characters (Rajpurkar et al. 2016,
    arXiv:1606.05250, count words). mean_absolute_error; correlation: Pearson's, 0 if all predictions are equal.
    """
    examples = check_examples(task, examples)
    return compute_metrics(task, predict(task, model, tokenizer, examples), examples)


def majority_baseline(task: Task, examples: Sequence[Example]) -> dict[str, float]:
    """The best metrics without reading the text, with the same prediction for all examples.

    It is the most frequent class, set or choice, the median number; of a passage its n-th text, or all of it.
    """
    examples = check_examples(task, examples)
    labels = [example.label for example in examples]
    guesses: list[list[Any]]
    if task.model_class is XLMRobertaXLForTokenClassification:
        names = Counter(label for x in examples for label in character_labels(len(x.text), x.label) if label)
        guesses = [[((0, len(example.text), names.most_common(1)[0][0]),) for example in examples]]
    elif task.model_class is XLMRobertaXLForQuestionAnswering:
        passages = [passage_spans(passage) for [passage] in (example.others for example in examples)]
        fewest = min(map(len, passages), default=0)
        guesses = [[spans[n] for spans in passages] for n in range(fewest)]
        guesses.append([(0, spans[-1][1]) for spans in passages])
    elif task.problem_type == "multi_label_classification":
        guesses = [[Counter(tuple(sorted(names)) for names in labels).most_common(1)[0][0]] * len(labels)]
    else:
        is_number = task.problem_type == "regression"
        guesses = [[median(labels) if is_number else Counter(labels).most_common(1)[0][0]] * len(labels)]
    results = [compute_metrics(task, guess, examples) for guess in guesses]
    return {name: max(result[name] for result in results) for name in results[0]}


def predict(task: Task, model: Any, tokenizer: XLMRobertaTokenizer, examples: Sequence[Example]) -> list[Any]:
    """The model's predictions, in the form of the examples' labels."""
    texts: list[Any] = [example.text for example in examples]
    others = [list(example.others) for example in examples]
    if task.model_class is XLMRobertaXLForTokenClassification:
        tags: Any = tag(model, tokenizer, texts, by_word=False, progress=False)
        return [tuple((span.start, span.end, span.label) for span in spans) for spans in tags]
    if task.model_class is XLMRobertaXLForMultipleChoice:
        choices: Any = choose(model, tokenizer, texts, others, progress=False)
        return [best.index for best, *_ in choices]
    if task.model_class is XLMRobertaXLForQuestionAnswering:
        answers: Any = answer(model, tokenizer, texts, [passage for [passage] in others], progress=False)
        return [(best.start, best.end) for [best] in answers]
    labels: Any = classify(model, tokenizer, texts, progress=False)
    if task.problem_type == "multi_label_classification":
        return [tuple(label for label, probability in found if probability > 0.5) for found in labels]
    return [best.score if task.problem_type == "regression" else best.label for best, *_ in labels]


def compute_metrics(task: Task, predictions: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
    """The metrics of `evaluate` for predictions in the form of labels. ValueError if there are no examples."""
    examples = check_examples(task, examples)
    if len(predictions) != len(examples):
        raise ValueError(f"there are {len(predictions)} predictions for {len(examples)} examples: give one for each.")
    pairs = list(zip(predictions, (example.label for example in examples), strict=True))
    if task.model_class is XLMRobertaXLForTokenClassification:
        characters: list[tuple[str | None, str | None]] = []
        for example, (found, right) in zip(examples, pairs, strict=True):
            size = len(example.text)
            characters += zip(character_labels(size, found), character_labels(size, right), strict=True)
        return {"accuracy": fmean(a == b for a, b in characters if b)}
    if task.model_class is XLMRobertaXLForQuestionAnswering:
        return {"exact_match": fmean(a == b for a, b in pairs), "f1": fmean(f1(a, b) for a, b in pairs)}
    if task.problem_type == "multi_label_classification":
        by_label = [(name in a) == (name in b) for a, b in pairs for name in task.labels]
        return {"exact_match": fmean(set(a) == set(b) for a, b in pairs), "label_accuracy": fmean(by_label)}
    if task.problem_type == "regression":
        varies = len(set(predictions)) > 1 and len({right for _, right in pairs}) > 1
        error = fmean(abs(a - b) for a, b in pairs)
        return {"mean_absolute_error": error, "correlation": correlation(*zip(*pairs, strict=True)) if varies else 0.0}
    return {"accuracy": fmean(a == b for a, b in pairs)}


def f1(a: tuple[int, int], b: tuple[int, int]) -> float:
    """F1 of two spans: twice the overlap over the sum of their lengths."""
    common = max(0, min(a[1], b[1]) - max(a[0], b[0]))
    return 2 * common / (a[1] - a[0] + b[1] - b[0])
