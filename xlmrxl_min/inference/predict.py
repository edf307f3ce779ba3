"""Texts in, labelled results out: fill_mask, embed, classify, tag, choose, answer.

All take one text, or a list of them in any order; one gives one result, a list a list. Texts of like length share a
batch, so that little is padding; `embed` lays them end to end, and has none. While they run, the model is in evaluation
mode. A text that is longer than the model has room for is a ValueError, unless `truncation=True` asks for its end to be
cut off. `batch_size` is the most texts at once; `progress` shows a bar where it takes more than two seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from ..model import (
    PreTrainedModel,
    XLMRobertaXLForMaskedLM,
    XLMRobertaXLForMultipleChoice,
    XLMRobertaXLForQuestionAnswering,
    XLMRobertaXLForSequenceClassification,
    XLMRobertaXLForTokenClassification,
)
from ..tokenizer import Encoding, Token, XLMRobertaTokenizer
from ..utils import check_size, eval_mode

Pair = tuple[str, str]

# What makes a score of a logit, by problem_type.
SCORES = {
    "regression": lambda logits: logits,
    "single_label_classification": partial(torch.softmax, dim=-1),
    "multi_label_classification": torch.sigmoid,
}


class Prediction(NamedTuple):
    text: str  # the piece as it reads, without ▁
    token_id: int
    probability: float


class Label(NamedTuple):
    label: str
    score: float  # its probability; of a regression, the number itself


class Span(NamedTuple):
    text: str
    start: int  # of its characters in the whole text, which `text` is text[start:end] of
    end: int
    label: str
    score: float


class Choice(NamedTuple):
    index: int  # among the options
    text: str
    score: float


class Answer(NamedTuple):
    text: str
    start: int  # of its characters in the passage
    end: int
    score: float


def fill_mask(
    model: XLMRobertaXLForMaskedLM,
    tokenizer: XLMRobertaTokenizer,
    texts: str | Sequence[str],
    *,
    top_k: int = 5,
    batch_size: int = 16,
    progress: bool = True,
    truncation: bool = False,
) -> list[list[Prediction]] | list[list[list[Prediction]]]:
    """The likeliest tokens for each `<mask>`: `top_k` per mask, best first; for several texts a list of such lists.

    Probabilities are the model's, over its whole vocabulary; only ids that the tokenizer knows are offered. ValueError
    for a text without a mask, one that is too long, or a `top_k` that is no size. A mask that truncation cuts off gets
    no entry.
    """
    expect(model, XLMRobertaXLForMaskedLM)
    known = min(len(tokenizer), model.config.vocab_size)
    check_size("top_k", top_k, known)
    rows = listed(texts)
    for row in rows:
        empty = not isinstance(row, str) or tokenizer.mask_token not in row
        if empty:
            raise ValueError(
                f"there is nothing to fill in {row!r}: put {tokenizer.mask_token} where a word is missing."
            )

    def run(batch: Encoding) -> Iterable[tuple[Tensor, Tensor]]:
        masked = batch["input_ids"] == tokenizer.mask_token_id
        hidden = model.backbone(**batch).last_hidden_state[masked]  # scores for the masks only
        top = model.lm_head(hidden).float().softmax(-1)[:, :known].topk(top_k)
        each_has = masked.sum(-1).tolist()
        return list(zip(top.values.cpu().split(each_has), top.indices.cpu().split(each_has), strict=True))

    def read(values: list[float], ids: list[int]) -> list[Prediction]:
        return [Prediction(tokenizer.decode([i]) or " ", i, value) for value, i in zip(values, ids, strict=True)]

    found = run_batched(model, tokenizer, rows, run, batch_size, progress, truncation)
    results = [list(map(read, values.tolist(), ids.tolist())) for _, (values, ids) in found]
    return results if is_many(texts) else results[0]


def bars(predictions: list[list[Prediction]]) -> str:
    """What `fill_mask` found in one text, for a terminal: a line with a bar for each prediction."""
    lines = []
    for place, found in enumerate(predictions, start=1):
        lines.append(f"<mask> {place}")
        for prediction in found:
            bar = "█" * round(30 * prediction.probability)
            # the word comes last: how wide a script is on the screen, and which way it runs, then moves no column
            lines.append(f"  {prediction.probability:6.1%}  {bar:<30}  {prediction.text}")
    return "\n".join(lines)


def embed(
    model: PreTrainedModel,
    tokenizer: XLMRobertaTokenizer,
    texts: str | Sequence[str],
    *,
    pooling: str = "mean",
    batch_size: int = 16,
    progress: bool = True,
    truncation: bool = False,
) -> Tensor:  # b e
    """Each text as one vector, `b e` in float32, for one text too: what the last layer holds, of any class of model.

    pooling: "mean" over all tokens of the text, `<s>` and `</s>` included, or "first", the `<s>` alone. The result is
    an ordinary tensor without gradients, on the model's device. ValueError for a text that is too long.
    """
    expect(model, PreTrainedModel, "a model of this library, such as XLMRobertaXLModel")
    if pooling not in ("mean", "first"):
        raise ValueError(f"pooling={pooling!r} is unknown: take 'mean' or 'first'.")
    check_size("batch_size", batch_size)
    rows = tokenised(model, tokenizer, plain(texts), progress, truncation)
    vectors = torch.empty(len(rows), model.config.hidden_size, device=model.device)
    with eval_mode(model):
        for places, batch in pack_sequences(model, rows, batch_size, progress):
            hidden = model.base_model(**batch, use_cache=False).last_hidden_state[0].float()
            for place, text in zip(places, hidden.split([len(rows[i]) for i in places]), strict=True):
                vectors[place] = text[0] if pooling == "first" else text.mean(0)
    return vectors


def classify(
    model: XLMRobertaXLForSequenceClassification,
    tokenizer: XLMRobertaTokenizer,
    texts: str | Pair | list[str | Pair],
    *,
    top_k: int | None = None,
    batch_size: int = 16,
    progress: bool = True,
    truncation: bool = False,
) -> list[Label] | list[list[Label]]:
    """The labels of a text or of a pair of texts (a tuple), highest score first: all, or `top_k` of them.

    Scores by the config's problem_type: probabilities that sum to 1, or, of multi_label_classification, one for each
    label by itself, or, of regression, the numbers themselves. Without a problem_type, a single label is a regression,
    as it is in training. ValueError for a text that is too long, or a `top_k` that is no size.
    """
    expect(model, XLMRobertaXLForSequenceClassification)
    config = model.config
    top_k = config.num_labels if top_k is None else top_k
    check_size("top_k", top_k, config.num_labels)
    score = SCORES[config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")]
    rows = texts if isinstance(texts, list) else [texts]  # a tuple is a pair

    def run(batch: Encoding) -> Tensor:  # b t -> b c
        return score(model(**batch).logits.float()).cpu()

    found = run_batched(model, tokenizer, rows, run, batch_size, progress, truncation)
    results = [[Label(config.id2label[i], value) for i, value in best(scores, top_k)] for _, scores in found]
    return results if isinstance(texts, list) else results[0]


def tag(
    model: XLMRobertaXLForTokenClassification,
    tokenizer: XLMRobertaTokenizer,
    texts: str | Sequence[str],
    *,
    by_word: bool = True,
    batch_size: int = 16,
    progress: bool = True,
    truncation: bool = False,
) -> list[Span] | list[list[Span]]:
    """The likeliest label of each word, in the text's order; or, with by_word=False, of each token.

    A word is what stands between spaces: where a script writes none, take tokens. Its label is the one with the largest
    mean probability over its tokens, which is the score. Special tokens get no label, nor does what truncation cuts
    off; the lone ▁ before some words is a token like others, without characters. ValueError for a text that is too
    long.
    """
    expect(model, XLMRobertaXLForTokenClassification)
    unlabelled = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}  # an unknown character is text all the same

    def run(batch: Encoding) -> Tensor:  # b t -> b t c
        return model(**batch).logits.float().softmax(-1).cpu()

    rows, results = plain(texts), []
    found = run_batched(model, tokenizer, rows, run, batch_size, progress, truncation)
    for text, (tokens, probabilities) in zip(rows, found, strict=True):
        groups: list[list[int]] = []
        for place, (token, _) in enumerate(tokens):
            if token in unlabelled:
                continue
            begins = tokenizer.convert_ids_to_tokens(token).startswith("▁") or tokens[place - 1][0] in unlabelled
            groups += [[]] if begins or not by_word else []
            groups[-1].append(place)
        spans = []
        for group in groups:
            [(i, score)] = best(probabilities[group].mean(0), 1)
            (start, _), (_, end) = tokens[group[0]][1], tokens[group[-1]][1]
            spans.append(Span(text[start:end], start, end, model.config.id2label[i], score))
        results.append(spans)
    return results if is_many(texts) else results[0]


def choose(
    model: XLMRobertaXLForMultipleChoice,
    tokenizer: XLMRobertaTokenizer,
    question: str | Sequence[str],
    options: Sequence[str] | Sequence[Sequence[str]],
    *,
    batch_size: int = 16,
    progress: bool = True,
    truncation: bool = False,
) -> list[Choice] | list[list[Choice]]:
    """The options of a question, best first, with probabilities that sum to 1; or of a list of questions.

    Each option is read by itself, in a pair with its question, so that questions may have different numbers of them.
    ValueError for a question without options, a list of options too many or too few, or a pair that is too long.
    """
    expect(model, XLMRobertaXLForMultipleChoice)
    questions, choices = listed(question), listed(options) if is_many(question) else [options]
    check_partners(questions, choices, "lists of options")
    for asked, offered in zip(questions, choices, strict=True):
        wrong = not is_many(offered) or len(offered) == 0
        if wrong:
            raise ValueError(f"the options of {asked!r} are {offered!r}, but must be a list of texts, one or more.")
    pairs = [(asked, option) for asked, offered in zip(questions, choices, strict=True) for option in offered]

    def run(batch: Encoding) -> Tensor:  # b t -> b
        alone = {name: rearrange(x, "b t -> b 1 t") for name, x in batch.items()}
        return model(**alone).logits[:, 0].float().cpu()

    found, results = run_batched(model, tokenizer, pairs, run, batch_size, progress, truncation), []
    logits = torch.tensor([logit for _, logit in found]).split([len(offered) for offered in choices])
    for offered, its_logits in zip(choices, logits, strict=True):
        scores = best(its_logits.softmax(0), len(offered))
        results.append([Choice(i, offered[i], score) for i, score in scores])
    return results if is_many(question) else results[0]


def answer(
    model: XLMRobertaXLForQuestionAnswering,
    tokenizer: XLMRobertaTokenizer,
    question: str | Sequence[str],
    passage: str | Sequence[str],
    *,
    top_k: int = 1,
    longest: int = 64,
    batch_size: int = 16,
    progress: bool = True,
    truncation: bool = False,
) -> list[Answer] | list[list[Answer]]:
    """The parts of a passage that answer a question, best first: `top_k`, or as many as there are; lists likewise.

    Every part of the passage of 1 to `longest` tokens is a candidate; as the lone ▁ before some words is a token too,
    two of them may read the same. The score is the probability among all candidates, the softmax of start logit + end
    logit (BERT, Devlin et al. 2019, section 4.2). Truncation cuts the passage, never the question. ValueError for lists
    of different lengths, a pair that is too long, or sizes that are none.
    """
    expect(model, XLMRobertaXLForQuestionAnswering)
    check_size("top_k", top_k)
    check_size("longest", longest)
    questions, passages, results = listed(question), listed(passage), []
    check_partners(questions, passages, "passages")
    pairs = list(zip(questions, passages, strict=True))

    def run(batch: Encoding) -> Tensor:  # b t -> b 2 t
        out = model(**batch)
        return torch.stack([out.start_logits, out.end_logits], dim=1).float().cpu()

    found = run_batched(model, tokenizer, pairs, run, batch_size, progress, "only_second" if truncation else False)
    for (asked, text), (tokens, logits) in zip(pairs, found, strict=True):
        inside = slice(len(tokenizer.encode(asked)) + 1, len(tokens) - 1)  # <s> question </s></s> passage </s>
        at, (start, end) = [at for _, at in tokens[inside]], logits[:, inside]
        sums = rearrange(start, "q -> q 1") + end
        allowed = torch.ones_like(sums, dtype=torch.bool).triu().tril(longest - 1)
        ends = allowed.nonzero().tolist()
        spans = [(at[ends[i][0]][0], at[ends[i][1]][1], score) for i, score in best(sums[allowed].softmax(0), top_k)]
        results.append([Answer(text[start:end], start, end, score) for start, end, score in spans])
    return results if is_many(question) else results[0]


# ---- what they share


def expect(model: Any, kind: type, name: str = "") -> None:
    wrong, needed, got = not isinstance(model, kind), name or f"an {kind.__name__}", type(model).__name__
    if wrong:
        raise ValueError(
            f"this needs {needed}, but the model is of class {got}: load it with the class that is needed."
        )


def check_partners(questions: list, others: list, name: str) -> None:
    many, there = len(questions), len(others)
    if many != there:
        raise ValueError(f"got {many} questions but {there} {name}: each question needs its own.")


def is_many(texts: Any) -> bool:
    return isinstance(texts, (list, tuple))


def listed(texts: Any) -> list:
    return list(texts) if is_many(texts) else [texts]


def plain(texts: Any) -> list[str]:
    """One text or several -> a list; ValueError for what is no text, or a pair of them."""
    for text in listed(texts):
        if not isinstance(text, str):
            raise ValueError(f"{text!r} is no text: pass a str, or a list of them.")
    return listed(texts)


def best(scores: Tensor, top_k: int) -> list[tuple[int, float]]:
    """The `top_k` largest of a row, or all if there are fewer, with their places; largest first."""
    top = scores.topk(min(top_k, len(scores)))
    return list(zip(top.indices.tolist(), top.values.tolist(), strict=True))


def run_batched(
    model: PreTrainedModel,
    tokenizer: XLMRobertaTokenizer,
    inputs: Sequence[str | Pair],
    run: Callable[[Encoding], Iterable[Any]],
    batch_size: int,
    progress: bool,
    truncation: bool | str,
) -> list[tuple[list[Token], Any]]:
    """For each of `inputs`, in their order, its tokens, and what `run` gives for its row of a batch."""
    check_size("batch_size", batch_size)
    rows = tokenised(model, tokenizer, inputs, progress, truncation)
    results: list[Any] = [None] * len(rows)
    with eval_mode(model):
        for places, batch in batches(rows, tokenizer.pad_token_id, batch_size, model.device, progress):
            for place, result in zip(places, run(batch), strict=True):
                results[place] = result
    return list(zip(rows, results, strict=True))


def tokenised(
    model: PreTrainedModel,
    tokenizer: XLMRobertaTokenizer,
    inputs: Sequence[str | Pair],
    progress: bool,
    truncation: bool | str,
) -> list[list[Token]]:
    room = model.config.max_seq_len if truncation else None  # without, the model itself says what is too long
    bar = tqdm(inputs, unit="text", disable=not progress, delay=2)  # a bar only where there is time to see it
    return [tokenizer.row(item, True, truncation, room) for item in bar]


def batches_by_length(
    tokenizer: XLMRobertaTokenizer, texts: Sequence[str], batch_size: int, device: torch.device, progress: bool
) -> Iterator[tuple[list[int], Encoding]]:
    """Texts of like length together, so that little is padding: the numbers of the texts, and their tensors `b t`."""
    rows = [tokenizer.row(text, True, False, None) for text in texts]
    return batches(rows, tokenizer.pad_token_id, batch_size, device, progress)


MOST_PADDING = 64  # tokens of it in a batch, all rows together: about what reading the weights once more costs


def batches(
    rows: Sequence[list[Token]], pad: int, batch_size: int, device: torch.device, progress: bool
) -> Iterator[tuple[list[int], Encoding]]:
    groups: list[list[int]] = []
    padding = 0
    for i in longest_first(rows):
        padding += len(rows[groups[-1][0]]) - len(rows[i]) if groups else 0
        if not groups or len(groups[-1]) == batch_size or padding > MOST_PADDING:
            groups.append([])
            padding = 0
        groups[-1].append(i)
    for places in tqdm(groups, unit="batch", disable=not progress, delay=2):
        ids = [torch.tensor([token for token, _ in rows[i]]) for i in places]
        tensors = {"input_ids": pad_sequence(ids, batch_first=True, padding_value=pad)}
        tensors["attention_mask"] = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        yield places, Encoding(tensors).to(device)


ROW = 512  # tokens of texts laid end to end: fewer make less use of the machine, more pay for attention to nothing


def pack_sequences(
    model: PreTrainedModel, rows: Sequence[list[Token]], batch_size: int, progress: bool
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Texts one after the other in one row, without padding: their numbers, and the row, `1 t`.

    Each has its own positions, and a mask, `1 q k`, lets it see itself only; so its states are what they are alone.
    """
    config, make_position_ids = model.config, model.base_model.embeddings.make_position_ids
    groups: list[list[int]] = []
    tokens, room = 0, min(ROW, config.max_seq_len)
    for i in longest_first(rows):
        tokens += len(rows[i])
        if not groups or len(groups[-1]) == batch_size or tokens > room:
            groups.append([])
            tokens = len(rows[i])
        groups[-1].append(i)
    for places in tqdm(groups, unit="batch", disable=not progress, delay=2):
        texts = [torch.tensor([token for token, _ in rows[i]]) for i in places]
        parts = {"input_ids": torch.cat(texts)}
        if len(texts) > 1:
            itself = torch.block_diag(*(torch.ones(len(ids), len(ids)) for ids in texts))
            parts["attention_mask"] = itself.tril() if config.is_decoder else itself
            parts["position_ids"] = torch.cat([make_position_ids(ids != config.pad_token_id) for ids in texts])
        yield places, {name: part[None].to(model.device) for name, part in parts.items()}


def longest_first(rows: Sequence[list[Token]]) -> list[int]:
    """The numbers of the rows: what is too long, or too much for the memory, then shows at once."""
    return sorted(range(len(rows)), key=lambda i: len(rows[i]), reverse=True)
