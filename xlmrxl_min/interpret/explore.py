"""An interactive page of attention weights: one self-contained HTML file, for a browser or a notebook."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..inference.predict import check_model_type, check_tokenizer
from ..inputs import (
    as_attentions,
    as_head_numbers,
    as_model_inputs,
    as_tokens,
    check_integer,
    check_option,
    check_type,
    check_weights,
    shown,
)
from ..model import XLMRobertaXLForMaskedLM
from ..utils import eval_mode
from .hooks import self_attentions
from .interventions import ablated
from .page import Page, make_page

MAX_WEIGHTS = 24_000_000  # per page, one byte each; base64 makes them a third larger
LEVELS = 255  # a weight w is stored as round(255 w)
Predictions = list[tuple[str, float]]  # tokens and probabilities


@dataclass(frozen=True)
class HeadAblation:
    """The prediction at one position, and what it becomes without each head in turn; `explore` shows it."""

    position: int
    target: str
    probability: float  # of the target
    before: Predictions
    after: list[list[Predictions]]  # per layer, per head that is not pruned
    probabilities: list[list[float]]  # of the target
    costs: list[list[float]]  # the increase of the target's cross-entropy, in nats
    heads: list[list[int]]  # the numbers of each layer's heads
    by: str  # what replaced a head's output


def ablate_each_head(
    model: XLMRobertaXLForMaskedLM, tokenizer: Any, inputs: Mapping[str, Any], means: Tensor | None = None, *,
    position: int | None = None, target: str | None = None, top_k: int = 5, progress: bool = True,
) -> HeadAblation:  # fmt: skip
    """Predict one token of a text, without ablation and with one head's output replaced by its mean (or by zeros).

    inputs: one text; means: `head_means(model, texts)`, None for zeros; position: of the predicted token (None: the
    first `<mask>`); target: the token whose cross-entropy is the cost (None: the model's own prediction). Call it by
    `explore(out.attentions, tokens, ablation=ablate_each_head(model, tokenizer, inputs, means))`. ValueError for
    several texts, and for a position, target or top_k that does not exist.
    """
    check_model_type(model, XLMRobertaXLForMaskedLM)
    check_tokenizer(model, tokenizer)
    inputs = as_model_inputs(inputs, model)
    ids = inputs["input_ids"]
    if len(ids) != 1:
        raise ValueError(f"inputs holds {len(ids)} texts, but must hold one.")
    masks = (ids[0] == tokenizer.mask_token_id).nonzero()[:, 0].tolist()
    if position is None and not masks:
        raise ValueError(f"the text has no {tokenizer.mask_token}: put one in, or pass the position of a token.")
    position = masks[0] if position is None else position
    check_integer("position", position, 0, ids.shape[1] - 1)
    check_integer("top_k", top_k, 1, len(tokenizer))
    if target not in (None, tokenizer.unk_token) and tokenizer.convert_tokens_to_ids(target) == tokenizer.unk_token_id:
        remedy = "pass one of tokenizer.tokenize(text), such as '▁casa'"
        raise ValueError(f"target={shown(target)} is no token of this vocabulary: {remedy}.")
    attentions = self_attentions(model)
    heads = [list(attention.heads) for attention in attentions]

    def predict() -> Tensor:  # v
        return model(**inputs).logits[0, position].float().log_softmax(-1)[: len(tokenizer)]

    def top(log_probs: Tensor) -> Predictions:
        best = log_probs.topk(top_k)
        return list(zip(tokenizer.convert_ids_to_tokens(best.indices), best.values.exp().tolist(), strict=True))

    after: list[list[Predictions]] = [[] for _ in heads]
    log_probs: list[list[float]] = [[] for _ in heads]
    with eval_mode(model):
        before = predict()
        target_id = int(before.argmax()) if target is None else tokenizer.convert_tokens_to_ids(target)
        pairs = [(layer, head) for layer, numbers in enumerate(heads) for head in numbers]
        for layer, head in tqdm(pairs, unit="head", disable=not progress, delay=2):
            with ablated(model, {layer: [head]}, means):
                now = predict()
            after[layer].append(top(now))
            log_probs[layer].append(float(now[target_id]))
    original, by = before[target_id], "zeros" if means is None else "its mean"
    probabilities = [torch.tensor(layer).exp().tolist() for layer in log_probs]
    costs = [[float(original) - value for value in layer] for layer in log_probs]
    name = tokenizer.convert_ids_to_tokens([target_id])[0]
    return HeadAblation(position, name, float(original.exp()), top(before), after, probabilities, costs, heads, by)


def explore(
    attentions: Sequence[Tensor] | Tensor, tokens: Sequence[str], *, keys: Sequence[str] | None = None,
    heads: Sequence[Sequence[int]] | None = None, title: str = "Attention", layer: int = 0, head: int | None = None,
    token: str | int | None = None, ablation: HeadAblation | None = None,
) -> Page:  # fmt: skip
    """Make a page that shows the attention weights of one text, layer by layer and head by head, or all at once.

    attentions: `out.attentions` of a model, l of `1 h q k` or `h q k`; layers may differ in their number of heads.
    tokens: the strings of the queries; keys: those of the keys if they differ, as in cross-attention. heads: of a
    pruned model, the numbers of each layer's heads, [layer.attention.heads for layer in model.base_model.layers].
    layer, head, token: what is shown first: the head's number (None: the mean), a query by position or by its string
    (None: all). ablation: from `ablate_each_head`, to see the prediction without a head, and what each head's ablation
    costs. The page rounds weights to 1/255, and says so. Raises ValueError if weights and tokens do not match, for a
    start that does not exist, and for a page that would be too large.
    """
    check_type("title", title, str, "a str")
    layers = as_attentions(attentions)
    numbers, (queries, length) = as_head_numbers(heads, layers), layers[0].shape[1:]
    tokens = as_tokens(tokens, queries)
    keys = as_tokens(tokens if keys is None else keys, length, "keys")
    check_page_size([layer.numel() for layer in layers], queries, length)
    check_integer("layer", layer, 0, len(layers) - 1)
    if head is not None:
        check_option("head", head, numbers[layer])
    if isinstance(token, str):
        check_option("token", token, tokens)
        token = tokens.index(token)
    elif token is not None:
        check_integer("token", token, 0, queries - 1)
    check_type("ablation", ablation, (HeadAblation, type(None)), "what ablate_each_head returns")
    if ablation and (ablation.heads != numbers or ablation.position >= queries):
        raise ValueError("ablation is of another model or text than attentions: use the same inputs for both.")
    data = {
        "queries": tokens,
        "keys": keys,
        "heads": numbers,
        "layers": [encode(weights, f"attentions[{i}]") for i, weights in enumerate(layers)],
        "start": {"layer": layer, "head": -1 if head is None else numbers[layer].index(head), "token": token},
        "ablation": ablation and pack(ablation),
    }
    rows = 26 * max(len(tokens), len(keys)) + (120 if ablation else 0)
    return make_page("explore", data, title, height=min(max(460, 150 + rows), 760))


def pack(ablation: HeadAblation) -> dict[str, Any]:
    """The ablation as the page's script reads it: tokens as numbers, probabilities with four decimals."""
    vocabulary: dict[str, int] = {}

    def short(predictions: Predictions) -> list[tuple[int, float]]:
        return [(vocabulary.setdefault(token, len(vocabulary)), round(p, 4)) for token, p in predictions]

    before, after = short(ablation.before), [[short(head) for head in layer] for layer in ablation.after]
    names = ("position", "target", "probability", "probabilities", "by")
    costs = [[round(cost, 4) for cost in layer] for layer in ablation.costs]
    rest = {name: getattr(ablation, name) for name in names} | {"costs": costs}
    return {"vocabulary": list(vocabulary), "before": before, "after": after, **rest}


def check_page_size(sizes: Sequence[int], queries: int, keys: int) -> None:
    if sum(sizes) > MAX_WEIGHTS:
        fitting = sum(sum(sizes[: i + 1]) <= MAX_WEIGHTS for i in range(len(sizes)))
        fewer = f"fewer layers (out.attentions[:{fitting}]) or " if fitting else ""
        raise ValueError(
            f"{len(sizes)} layers with {queries} queries and {keys} keys make {sum(sizes) / 1e6:.0f} MB of weights, "
            f"but a page holds {MAX_WEIGHTS / 1e6:.0f} MB: take {fewer}a shorter text."
        )


def encode(layer: Tensor, name: str) -> str:
    """Weights, one byte each, in base64; ValueError for values that no softmax gives."""
    check_weights(layer, name)
    levels = (layer.double() * LEVELS).round().to(torch.uint8)
    return base64.b64encode(levels.cpu().contiguous().numpy().tobytes()).decode()
