"""Interactive pages for the course, each a self-contained HTML file: a sentence, masks, the logit lens, sampling."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..inference.generation import warp_logits
from ..inference.predict import check_model_type, check_tokenizer
from ..inputs import as_tensor, as_texts, as_tokens, as_values, check_integer, check_option, check_text, check_type
from ..model import XLMRobertaXLForCausalLM, XLMRobertaXLForMaskedLM
from ..tokenizer import FAIRSEQ_OFFSET
from ..utils import eval_mode
from .explore import encode
from .hooks import self_attentions
from .page import Page, make_page

MAX_TOKENS = 64  # of a page whose cells are buttons
TEMPERATURES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
TOP_PS = (0.25, 0.5, 0.75, 0.9, 0.95, 1.0)


def live(
    model: XLMRobertaXLForMaskedLM, tokenizer: Any, sentences: Sequence[str], *, layer: int = 0,
    head: int | None = None, top_k: int = 5, title: str = "Tokens, masks, attention",
) -> Page:  # fmt: skip
    """A page that tokenizes what is typed, and for `sentences` shows predictions and attention weights by clicks.

    Call it by `live(model, tokenizer, ["The sky is <mask>.", "Der Himmel ist blau."])`. The page has the vocabulary, 70
    kB for tiny's, and segments by itself; what the model computes is prepared: the prediction at each position if it is
    masked, and the weights of all heads (9 kB per sentence of 16 tokens). layer, head: what is shown first (None: the
    mean over heads). ValueError for a sentence of more than 64 tokens. Used in notebooks/00_start_here.ipynb.
    """
    check_prediction(model, tokenizer, top_k, title)
    sentences, heads = as_texts(sentences, "sentences"), [list(x.heads) for x in self_attentions(model)]
    if not sentences:
        raise ValueError("sentences has no text, but must have one or more.")
    if len(tokenizer) != tokenizer.vocab_size:
        raise ValueError("the page does not know tokens that were added: take a tokenizer without them.")
    check_integer("layer", layer, 0, len(heads) - 1)
    check_option("head", head, (None, *heads[layer]))
    prepared = []
    ends = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    for sentence in sentences:
        encoding = tokenizer(sentence, return_tensors="pt").to(model.device)
        ids, at = encoding.input_ids[0], range(encoding.input_ids.shape[1])
        check_length(len(ids))
        masked = ids.repeat(len(ids), 1).fill_diagonal_(tokenizer.mask_token_id)  # one position in each row
        with eval_mode(model):
            attentions = model.backbone(**encoding, output_attentions=True).attentions
            logits = model.lm_head(model.backbone(masked).last_hidden_state[at, at])
            top = logits.float().softmax(-1)[:, : len(tokenizer)].topk(top_k)
        rows = zip(ids.tolist(), top.indices.tolist(), top.values.tolist(), strict=True)
        predictions = [None if i in ends else list(zip(best, rounded(p), strict=True)) for i, best, p in rows]
        layers = [encode(weights, f"attentions[{i}]") for i, weights in enumerate(attentions)]
        prepared.append({"text": sentence, "ids": ids.tolist(), "layers": layers, "predictions": predictions})
    data = {
        "vocabulary": pack_vocabulary(tokenizer),
        "count": len(tokenizer),
        "heads": heads,
        "start": {"layer": layer, "head": -1 if head is None else head},
        "sentences": prepared,
    }
    return make_page("live", data, title, height=580)


def pack_vocabulary(tokenizer: Any) -> str:
    """gzip, in base64, of the tokens between `<unk>` and `<mask>`, and of their scores by differences of 1/10,000."""
    ids = range(4, tokenizer.vocab_size - 1)
    scores = [round(-1e4 * tokenizer.sp_model.get_score(i - FAIRSEQ_OFFSET)) for i in ids]
    steps = [after - before for before, after in zip([0, *scores], scores, strict=False)]
    text = "\n".join(tokenizer.convert_ids_to_tokens(ids)) + "\n\n" + "\n".join(map(str, steps))
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def rounded(probabilities: Sequence[float]) -> list[float]:
    return [round(p, 4) for p in probabilities]


def check_prediction(model: Any, tokenizer: Any, top_k: int, title: str) -> None:
    check_type("title", title, str, "a str")
    check_model_type(model, XLMRobertaXLForMaskedLM)
    check_tokenizer(model, tokenizer)
    check_integer("top_k", top_k, 1, len(tokenizer))


def mask_painter(
    scores: Tensor, tokens: Sequence[str], *, head_dim: int, keys: Sequence[str] | None = None,
    may_attend: Tensor | None = None, title: str = "Scores, mask and softmax",
) -> Page:  # fmt: skip
    """A page on which scores are masked by clicks and divided by another number than √d; it computes the softmax.

    Call it by `mask_painter(query @ key.T, tokens, head_dim=query.shape[-1])` with one head's `q d` and `k d`. scores:
    `q k`, not divided by √d; tokens: the strings of the queries; keys: those of the keys if they differ; may_attend:
    `q k` or `k`, True = may attend, the mask at the start. Used in notebooks/02_attention.ipynb.
    """
    check_type("title", title, str, "a str")
    check_integer("head_dim", head_dim)
    scores = as_values(scores, "scores", "q k")
    tokens = as_tokens(tokens, len(scores))
    keys = as_tokens(tokens if keys is None else keys, scores.shape[1], "keys")
    check_length(max(scores.shape))
    allowed = torch.ones_like(scores, dtype=torch.bool)
    if may_attend is not None:
        may_attend = as_tensor(may_attend, "may_attend", "True = may attend").to(allowed.device)
        if may_attend.dtype != torch.bool or may_attend.shape not in (scores.shape, scores.shape[1:]):
            given = f"may_attend is {may_attend.dtype} {tuple(may_attend.shape)}"
            raise ValueError(f"{given}, but must be bool {tuple(scores.shape)}, True = may attend.")
        allowed = allowed & may_attend
    data = {
        "queries": tokens,
        "keys": keys,
        "scores": [[float(f"{score:.5g}") for score in row] for row in scores.tolist()],
        "head_dim": head_dim,
        "masked": (~allowed).tolist(),
    }
    return make_page("masks", data, title, height=min(360 + 31 * len(tokens), 760))


def lens(
    model: XLMRobertaXLForMaskedLM, tokenizer: Any, text: str, *, top_k: int = 5, title: str = "Logit lens"
) -> Page:
    """A page of what the model would predict after each layer, at each position: the logit lens, by pointing.

    Call it by `lens(model, tokenizer, "The capital of France is <mask>.")`. As `logit_lens`, it decodes the stream by
    the final norm and the LM head. ValueError for a text of more than 64 tokens. Used in notebooks/05_the_block.ipynb.
    """
    check_prediction(model, tokenizer, top_k, title)
    check_text(text, "text")
    encoding = tokenizer(text, return_tensors="pt").to(model.device)
    tokens = tokenizer.convert_ids_to_tokens(encoding.input_ids[0])
    check_length(len(tokens))
    with eval_mode(model):
        *streams, final = model.backbone(**encoding, output_hidden_states=True).hidden_states
        states = torch.cat([*map(model.backbone.norm, streams), final])  # l t e
        probabilities = model.lm_head(states).float().softmax(-1)[..., : len(tokenizer)]
    best = probabilities.topk(top_k)
    of_final = probabilities[..., best.indices[-1, :, 0]].diagonal(dim1=1, dim2=2)  # l t: of the model's prediction
    used = best.indices.unique().tolist()
    numbers = {token_id: i for i, token_id in enumerate(used)}
    data = {
        "tokens": tokens,
        "start": tokens.index(tokenizer.mask_token) if tokenizer.mask_token in tokens else 0,
        "vocabulary": tokenizer.convert_ids_to_tokens(used),
        "best": [
            [
                [(numbers[i], p) for i, p in zip(ids, rounded(values), strict=True)]
                for ids, values in zip(*rows, strict=True)
            ]
            for rows in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ],
        "final": [rounded(row) for row in of_final.tolist()],
    }
    return make_page("lens", data, title, height=430 + 31 * len(data["best"]))


def sampler(
    model: XLMRobertaXLForCausalLM, tokenizer: Any, prompts: Sequence[str], *, new_tokens: int = 20, texts: int = 2,
    top_k: int = 12, seed: int = 0, title: str = "Temperature and top-p",
) -> Page:  # fmt: skip
    """A page with sliders for temperature and top-p: the next token's probabilities, and texts that were sampled.

    Call it by `sampler(decoder, tokenizer, ["In the beginning", "Le roi"])`. All settings use the same random numbers,
    so that texts differ only where a slider changes a token. top_k: how many tokens are shown. ValueError for a prompt
    of more than 64 tokens. Used in notebooks/08_decoder.ipynb.
    """
    check_type("title", title, str, "a str")
    check_model_type(model, XLMRobertaXLForCausalLM)
    check_tokenizer(model, tokenizer)
    for name, number in (("new_tokens", new_tokens), ("texts", texts)):
        check_integer(name, number)
    check_integer("top_k", top_k, 1, len(tokenizer))
    prompts = as_texts(prompts, "prompts")
    if not prompts:
        raise ValueError("prompts has no text, but must have one or more.")
    count, prepared = len(TEMPERATURES) * len(TOP_PS), []
    for prompt in prompts:
        ids = torch.tensor([tokenizer.encode(prompt)[:-1]])
        check_length(ids.shape[1])
        with eval_mode(model):
            logits = model(ids.to(model.device), use_cache=False).logits[0, -1, : len(tokenizer)].float()
            rows = sample_all(model, tokenizer, ids, new_tokens, texts, seed)
        grid = [[warp_logits(logits, t, None, p) for p in TOP_PS] for t in TEMPERATURES]
        best = logits.topk(top_k).indices
        shown, *whole = (tokenizer.decode([*ids[0].tolist(), *row], skip_special_tokens=True) for row in ([], *rows))
        after = [text.removeprefix(shown) for text in whole]
        prepared.append({
            "text": shown,
            "tokens": tokenizer.convert_ids_to_tokens(best.tolist()),
            "probabilities": [[rounded(one.softmax(-1)[best].tolist()) for one in line] for line in grid],
            "possible": [[int((one > -torch.inf).sum()) for one in line] for line in grid],
            "texts": [after[i::count] for i in range(count)],  # by temperature, then by top-p
        })  # fmt: skip
    data = {"temperatures": TEMPERATURES, "topPs": TOP_PS, "count": len(tokenizer), "prompts": prepared}
    return make_page("sampling", data, title, height=560)


def sample_all(
    model: XLMRobertaXLForCausalLM, tokenizer: Any, ids: Tensor, new_tokens: int, texts: int, seed: int
) -> list[list[int]]:
    """The new tokens after a prompt `1 t` for every setting, and all of them once more for each further text.

    A random number u takes the first token, in the order of probability, up to which the probabilities sum to u.
    """
    temperatures, top_ps = (
        x.repeat(texts)[:, None] for x in torch.cartesian_prod(*map(torch.tensor, (TEMPERATURES, TOP_PS))).unbind(-1)
    )
    rows = len(temperatures)
    generator, size = torch.Generator().manual_seed(seed), min(model.config.max_seq_len - ids.shape[1], new_tokens)
    random = torch.rand(texts, size, generator=generator).repeat_interleave(rows // texts, 0)
    new, cache, found = ids.repeat(rows, 1), None, []
    for i in range(size):
        out = model(new.to(model.device), past_key_values=cache, use_cache=True)
        cache, logits = out.past_key_values, out.logits[:, -1, : len(tokenizer)].float().cpu()
        ordered, indices = (logits / temperatures).softmax(-1).sort(descending=True)
        before = ordered.cumsum(-1) - ordered
        total = (ordered * (before < top_ps)).sum(-1, keepdim=True)
        new = indices.gather(1, (before <= random[:, i, None] * total).sum(-1, keepdim=True) - 1)
        found.append(new)
    ids_found, end = torch.cat(found, 1).tolist(), tokenizer.eos_token_id
    return [row[: row.index(end)] if end in row else row for row in ids_found]


def check_length(count: int) -> None:
    if count > MAX_TOKENS:
        raise ValueError(f"{count} tokens are too many for this page: take a text of at most {MAX_TOKENS}.")
