"""Predictions for texts: fill_mask, embed, classify, tag, choose, answer.

Each takes one text, or a sequence of texts in any order, and returns one result, or a list of results. A sequence is
a list, a tuple (for `classify` a tuple is a pair), a numpy array, a pandas Series or a generator. Texts of similar
length are batched together, so that there is little padding; `embed` packs them instead, without padding. The model
runs in evaluation mode. A text that is longer than the model allows is a ValueError; truncation=True cuts its end off.
`batch_size` is the largest number of texts in a batch; `progress` shows a bar if a call takes over two seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from ..encoding import Encoding, Token
from ..inputs import as_sequence, as_texts, as_texts_or_pairs, check_integer, check_option, is_single_text, shown
from ..model import (
    PreTrainedModel,
    XLMRobertaXLForMaskedLM,
    XLMRobertaXLForMultipleChoice,
    XLMRobertaXLForQuestionAnswering,
    XLMRobertaXLForSequenceClassification,
    XLMRobertaXLForTokenClassification,
)
from ..tokenizer import CONTROL_TOKENS, XLMRobertaTokenizer, group_words, trim
from ..utils import eval_mode, group_by_length, pad_rows

TextOrPair = str | tuple[str, str]
MAX_PADDING = 64  # padding tokens per batch: more cost as much as one more batch
MAX_PACKED = 512  # tokens per packed row: shorter rows use the hardware less well, longer ones waste masked attention

# From logits to scores, by problem_type.
SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "regression": lambda logits: logits,
    "single_label_classification": partial(torch.softmax, dim=-1),
    "multi_label_classification": torch.sigmoid,
}


class Prediction(NamedTuple):
    text: str  # the token as text, without ▁
    token_id: int
    probability: float


class Label(NamedTuple):
    label: str
    score: float  # a probability; for regression, the number itself


class Span(NamedTuple):
    text: str
    start: int  # text is the input's [start:end], in characters
    end: int
    label: str
    score: float


class Choice(NamedTuple):
    index: int  # type: ignore[assignment]  # of the option; not tuple's method of this name
    text: str
    score: float


class Answer(NamedTuple):
    text: str
    start: int  # text is the passage's [start:end], in characters
    end: int
    score: float


def fill_mask(
    model: XLMRobertaXLForMaskedLM, tokenizer: XLMRobertaTokenizer, texts: str | Iterable[str], *,
    top_k: int = 5, batch_size: int = 16, progress: bool = True, truncation: bool = False,
) -> list[Any]:  # fmt: skip
    """Predict each masked token -> for each `<mask>`, a list of `top_k` Predictions, most probable first; for several
    texts, a list of such lists.

    Probabilities are over the model's whole vocabulary. Ids that the tokenizer does not know are left out, and so are
    masks that truncation removes. ValueError for a text without a mask or one that is too long, and for an impossible
    `top_k`.
    """
    check_model_type(model, XLMRobertaXLForMaskedLM)
    check_tokenizer(model, tokenizer)
    vocab_size = min(len(tokenizer), model.config.vocab_size)
    check_integer("top_k", top_k, 1, vocab_size)
    is_single, inputs = is_single_text(texts), as_texts(texts)
    for text in inputs:
        if tokenizer.mask_token not in text:
            remedy = f"put {tokenizer.mask_token} where a word is missing"
            raise ValueError(f"there is nothing to fill in {shown(text)}: {remedy}.")

    def run(batch: Encoding) -> Iterable[Any]:  # b t -> for each text, values and ids of its masks
        is_mask = batch["input_ids"] == tokenizer.mask_token_id
        hidden = model.backbone(**batch).last_hidden_state[is_mask]  # the LM head is computed for masks only
        top = model.lm_head(hidden).float().softmax(-1)[:, :vocab_size].topk(top_k)
        masks_per_text = is_mask.sum(-1).tolist()
        return list(zip(top.values.cpu().split(masks_per_text), top.indices.cpu().split(masks_per_text), strict=True))

    def read(values: list[float], ids: list[int]) -> list[Prediction]:
        return [Prediction(tokenizer.decode(i) or " ", i, value) for value, i in zip(values, ids, strict=True)]

    outputs = run_batched(model, tokenizer, inputs, run, batch_size, progress, truncation)
    results = [list(map(read, values.tolist(), ids.tolist())) for _, (values, ids) in outputs]
    return results[0] if is_single else results


def embed(
    model: PreTrainedModel, tokenizer: XLMRobertaTokenizer, texts: str | Iterable[str], *,
    pooling: str = "mean", batch_size: int = 16, progress: bool = True, truncation: bool = False,
) -> Tensor:  # b e  # fmt: skip
    """Pool the last hidden states of each text -> one vector per text, `b e` in float32, also for a single text.

    model: of any class. pooling: "mean" over all tokens, `<s>` and `</s>` included, or "first", the state of `<s>`. The
    result is an ordinary tensor without gradients, on the model's device. ValueError for a text that is too long.
    """
    check_model_type(model, PreTrainedModel, "a model of this library, such as XLMRobertaXLModel")
    check_option("pooling", pooling, ("mean", "first"))
    check_integer("batch_size", batch_size)
    tokens = tokenize(model, tokenizer, as_texts(texts), progress, truncation)
    rows = [torch.tensor([token.id for token in row]) for row in tokens]
    room = min(MAX_PACKED, model.config.max_seq_len)
    batches = group_by_length([len(row) for row in rows], batch_size=batch_size, max_tokens=room, packed=True)
    vectors = torch.empty(len(rows), model.config.hidden_size, device=model.device)
    with eval_mode(model):
        for indices in tqdm(batches, unit="batch", disable=not progress, delay=2):
            packed = pack_sequences(model, [rows[i] for i in indices])
            states = model.base_model(**packed, use_cache=False).last_hidden_state[0].float()
            for i, hidden in zip(indices, states.split([len(rows[i]) for i in indices]), strict=True):
                vectors[i] = hidden[0] if pooling == "first" else hidden.mean(0)
    return vectors


def classify(
    model: XLMRobertaXLForSequenceClassification, tokenizer: XLMRobertaTokenizer,
    texts: TextOrPair | Iterable[TextOrPair], *,
    top_k: int | None = None, batch_size: int = 16, progress: bool = True, truncation: bool = False,
) -> list[Any]:  # fmt: skip
    """Score the labels of a text, or of a pair of texts (a tuple) -> `top_k` Labels (None: all), highest score first.

    Scores by the config's problem_type: probabilities that sum to 1; for multi_label_classification, a probability for
    each label; for regression, the numbers themselves. Without a problem_type, a single label is regression, as in
    training. ValueError for a text that is too long, or an impossible `top_k`.
    """
    check_model_type(model, XLMRobertaXLForSequenceClassification)
    names = model.config.id2label or {}
    k = len(names) if top_k is None else top_k
    check_integer("top_k", k, 1, len(names))
    score = SCORES[model.config.problem_type or ("regression" if len(names) == 1 else "single_label_classification")]
    is_single = is_single_text(texts) or isinstance(texts, tuple)  # a tuple is a pair
    inputs = as_texts_or_pairs([texts] if is_single else texts, "texts")

    def run(batch: Encoding) -> Tensor:  # b t -> b c
        return score(model(**batch).logits.float()).cpu()

    outputs = run_batched(model, tokenizer, inputs, run, batch_size, progress, truncation)
    results = [[Label(names[i], value) for i, value in top_scores(scores, k)] for _, scores in outputs]
    return results[0] if is_single else results


def tag(
    model: XLMRobertaXLForTokenClassification, tokenizer: XLMRobertaTokenizer, texts: str | Iterable[str], *,
    by_word: bool = True, batch_size: int = 16, progress: bool = True, truncation: bool = False,
) -> list[Any]:  # fmt: skip
    """Token classification: label each word, or with by_word=False each token -> Spans in the order of the text.

    Words end at spaces; for a script without spaces, use by_word=False. A word's label is the one with the largest mean
    probability over its tokens, which is its score. Special tokens and truncated tokens get no label. A lone ▁
    is a token whose span is empty. ValueError for a text that is too long.
    """
    check_model_type(model, XLMRobertaXLForTokenClassification)
    check_option("by_word", by_word, (False, True))
    is_single, inputs = is_single_text(texts), as_texts(texts)
    names, results = model.config.id2label or {}, []

    def run(batch: Encoding) -> Tensor:  # b t -> b t c
        return model(**batch).logits.float().softmax(-1).cpu()

    outputs = run_batched(model, tokenizer, inputs, run, batch_size, progress, truncation)
    for text, (tokens, probabilities) in zip(inputs, outputs, strict=True):
        subwords = tokenizer.convert_ids_to_tokens([token.id for token in tokens])
        spans = []
        for group in group_words(subwords) if by_word else [range(i, i + 1) for i in range(len(tokens))]:
            if subwords[group.start] not in CONTROL_TOKENS:
                [(label, score)] = top_scores(probabilities[group.start : group.stop].mean(0), 1)
                start, end = trim(text, tokens[group.start].start, tokens[group.stop - 1].end)
                spans.append(Span(text[start:end], start, end, names[label], score))
        results.append(spans)
    return results[0] if is_single else results


def choose(
    model: XLMRobertaXLForMultipleChoice, tokenizer: XLMRobertaTokenizer,
    question: str | Iterable[str], options: Iterable[str] | Iterable[Iterable[str]], *,
    batch_size: int = 16, progress: bool = True, truncation: bool = False,
) -> list[Any]:  # fmt: skip
    """Multiple choice: rank the options of a question -> Choices, best first; their probabilities sum to 1. For a list
    of questions with a list of options each, a list of such lists.

    The model reads each option in a pair with its question; questions may have different numbers of options.
    ValueError for a question without options, too many or too few lists of options, or a pair that is too long.
    """
    check_model_type(model, XLMRobertaXLForMultipleChoice)
    is_single, questions = is_single_text(question), as_texts(question, "question")
    given = [options] if is_single else as_sequence(options, "options", "lists of options")
    check_same_number(questions, given, "lists of options")
    choices: list[list[str]] = []
    for i, (text, texts) in enumerate(zip(questions, given, strict=True)):
        choices.append([] if is_single_text(texts) else as_texts(texts, "options" if is_single else f"options[{i}]"))
        if not choices[-1]:
            raise ValueError(
                f"the options of {shown(text)} are {shown(texts)}, but must be a list of texts, one or more."
            )
    pairs = [(text, option) for text, texts in zip(questions, choices, strict=True) for option in texts]

    def run(batch: Encoding) -> Tensor:  # b t -> b
        return model(**{name: rearrange(x, "b t -> b 1 t") for name, x in batch.items()}).logits[:, 0].float().cpu()

    outputs = run_batched(model, tokenizer, pairs, run, batch_size, progress, truncation)
    logits = torch.tensor([logit for _, logit in outputs]).split([len(texts) for texts in choices])
    results = [
        [Choice(i, texts[i], score) for i, score in top_scores(scores.softmax(0), len(texts))]
        for texts, scores in zip(choices, logits, strict=True)
    ]
    return results[0] if is_single else results


def answer(
    model: XLMRobertaXLForQuestionAnswering, tokenizer: XLMRobertaTokenizer,
    question: str | Iterable[str], passage: str | Iterable[str], *,
    top_k: int = 1, max_answer_len: int = 64, batch_size: int = 16, progress: bool = True, truncation: bool = False,
) -> list[Any]:  # fmt: skip
    """Question answering: extract spans of a passage -> `top_k` Answers, or fewer, best first. For lists of questions
    and passages, a list of such lists.

    Every span of 1 to `max_answer_len` tokens is a candidate; as a lone ▁ is a token, two candidates may have the same
    text. The score is the softmax of start logit + end logit over all candidates (BERT, Devlin et al. 2019, section
    4.2). Truncation cuts the passage, never the question. ValueError for lists of different lengths, a pair that is too
    long, or an impossible `top_k` or `max_answer_len`.
    """
    check_model_type(model, XLMRobertaXLForQuestionAnswering)
    check_integer("top_k", top_k)
    check_integer("max_answer_len", max_answer_len)
    is_single, questions = is_single_text(question), as_texts(question, "question")
    passages = as_texts(passage, "passage")
    check_same_number(questions, passages, "passages")
    pairs, results = list(zip(questions, passages, strict=True)), []

    def run(batch: Encoding) -> Tensor:  # b t -> b 2 t
        out = model(**batch)
        return torch.stack([out.start_logits, out.end_logits], dim=1).float().cpu()

    outputs = run_batched(model, tokenizer, pairs, run, batch_size, progress, truncation, "only_second")
    for (first, text), (tokens, logits) in zip(pairs, outputs, strict=True):
        inside = slice(len(tokenizer.encode(first)) + 1, len(tokens) - 1)  # <s> question </s></s> passage </s>
        tokens, (start_logits, end_logits) = tokens[inside], logits[:, inside]
        logits = rearrange(start_logits, "q -> q 1") + end_logits
        allowed = torch.ones_like(logits, dtype=torch.bool).triu().tril(min(max_answer_len, len(tokens)) - 1)
        candidates = [(tokens[i].start, tokens[j].end) for i, j in allowed.nonzero().tolist()]
        best = [(*trim(text, *candidates[i]), score) for i, score in top_scores(logits[allowed].softmax(0), top_k)]
        results.append([Answer(text[start:end], start, end, score) for start, end, score in best])
    return results[0] if is_single else results


# ---- helpers


def check_model_type(model: Any, expected: type, description: str = "") -> None:
    if not isinstance(model, expected):
        needed, got = description or f"an {expected.__name__}", type(model).__name__
        raise ValueError(
            f"this needs {needed}, but the model is of class {got}: load it with the class that is needed."
        )


def check_same_number(questions: list, others: list, name: str) -> None:
    if len(questions) != len(others):
        raise ValueError(f"got {len(questions)} questions but {len(others)} {name}: each question needs its own.")


def check_tokenizer(model: PreTrainedModel, tokenizer: Any) -> None:
    if not isinstance(tokenizer, XLMRobertaTokenizer):
        remedy = 'load one with XLMRobertaTokenizer.from_pretrained("tiny"), or what the model was loaded from'
        raise ValueError(
            f"the tokenizer is of type {type(tokenizer).__name__}, but must be an XLMRobertaTokenizer: {remedy}."
        )
    if len(tokenizer) > model.config.vocab_size:
        sizes = f"{len(tokenizer)} tokens, but the model has embeddings for {model.config.vocab_size}"
        raise ValueError(f"the tokenizer has {sizes}: load both from the same checkpoint.")


def top_scores(scores: Tensor, k: int) -> list[tuple[int, float]]:
    """The `k` largest of `scores`, or all if there are fewer, as (index, score), largest first."""
    top = scores.topk(min(k, len(scores)))
    return list(zip(top.indices.tolist(), top.values.tolist(), strict=True))


def tokenize(
    model: PreTrainedModel, tokenizer: XLMRobertaTokenizer, inputs: Sequence[TextOrPair], progress: bool,
    truncation: bool, strategy: str = "longest_first",
) -> list[list[Token]]:  # fmt: skip
    """strategy: what truncation cuts; as in a call of the tokenizer."""
    check_tokenizer(model, tokenizer)
    check_option("truncation", truncation, (False, True))
    check_option("progress", progress, (False, True))
    max_length = model.config.max_seq_len if truncation else None  # else the model itself raises for what is too long
    bar = tqdm(inputs, unit="text", disable=not progress, delay=2)
    return [tokenizer.encode_with_offsets(item, max_length, strategy) for item in bar]


def run_batched(
    model: PreTrainedModel, tokenizer: XLMRobertaTokenizer, inputs: Sequence[TextOrPair],
    run: Callable[[Encoding], Iterable[Any]], batch_size: int, progress: bool, truncation: bool = False,
    strategy: str = "longest_first",
) -> list[tuple[list[Token], Any]]:  # fmt: skip
    """Apply `run` to padded batches of similar length -> the tokens of each text or pair, and the result for it.

    run: takes input_ids and attention_mask, `b t`, and returns one result per row; called in inference mode.
    """
    check_integer("batch_size", batch_size)
    rows = tokenize(model, tokenizer, inputs, progress, truncation, strategy)
    results: list[Any] = [None] * len(rows)
    batches = group_by_length([len(row) for row in rows], batch_size=batch_size, max_padding=MAX_PADDING)
    with eval_mode(model):
        for indices in tqdm(batches, unit="batch", disable=not progress, delay=2):
            ids = [[token.id for token in rows[i]] for i in indices]
            batch = Encoding(input_ids=pad_rows(ids, tokenizer.pad_token_id))
            batch["attention_mask"] = pad_rows([[1] * len(row) for row in ids], 0)
            for i, result in zip(indices, run(batch.to(model.device)), strict=True):
                results[i] = result
    return list(zip(rows, results, strict=True))


def pack_sequences(model: PreTrainedModel, texts: Sequence[Tensor]) -> dict[str, Any]:
    """Concatenate texts, input_ids `t` each, into one row without padding -> inputs of the model, `1 t`.

    Each text has its own position ids, and a mask, `1 q k`, so that it attends only to itself: its hidden states are
    those it has alone.
    """
    config, make_position_ids = model.config, model.base_model.embeddings.make_position_ids
    inputs = {"input_ids": torch.cat(list(texts))}
    if len(texts) > 1:
        mask = torch.block_diag(*(torch.ones(len(ids), len(ids)) for ids in texts))
        inputs["attention_mask"] = mask.tril() if config.is_decoder else mask
        inputs["position_ids"] = torch.cat([make_position_ids(ids != config.pad_token_id) for ids in texts])
    return {name: values[None].to(model.device) for name, values in inputs.items()}
