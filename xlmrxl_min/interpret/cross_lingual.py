"""Translation retrieval: do a text and its translation have similar states? Walked through in notebook 05."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from ..encoding import Encoding
from ..inference.predict import run_batched
from ..inputs import as_texts, as_values, check_option
from ..model import PreTrainedModel
from ..tokenizer import XLMRobertaTokenizer
from .hooks import check_model


def mean_states(
    model: PreTrainedModel, tokenizer: XLMRobertaTokenizer, texts: Sequence[str], *, batch_size: int = 16,
    progress: bool = True,
) -> Tensor:  # l b e  # fmt: skip
    """Mean-pool each text's hidden states: one vector per layer; l is the layers + 1, embeddings first.

    texts: one or several. Raises ValueError for none, and for one that is too long.
    """
    check_model(model)
    texts = as_texts(texts)
    if not texts:
        raise ValueError("texts holds no text: pass one or more.")

    def run(batch: Encoding) -> Tensor:  # b t -> b l e
        states = torch.stack(model.base_model(**batch, output_hidden_states=True, use_cache=False).hidden_states)
        is_token = batch["attention_mask"].to(states.dtype)
        return einsum(states, is_token, "l b t e, b t -> b l e") / rearrange(is_token.sum(-1), "b -> b 1 1")

    outputs = run_batched(model, tokenizer, texts, run, batch_size, progress, truncation=False)
    return torch.stack([states for _, states in outputs], dim=1)


class Retrieval(NamedTuple):
    accuracy: Tensor  # l: how often a text's nearest neighbour in the other language is its translation
    translation_cosine: Tensor  # l: mean cosine of a text and its translation
    other_cosine: Tensor  # l: mean cosine of a text and the other texts of that language


def retrieval(source: Tensor, target: Tensor, *, centred: bool = False) -> Retrieval:  # l b e, l b e
    """Retrieve translations by cosine similarity: row b of `target` translates row b of `source`; both directions.

    As in Tatoeba of XTREME (Hu et al. 2020, arXiv:2003.11080). centred: subtract each language's mean vector first,
    which removes what all its texts have in common (Libovický et al. 2020, arXiv:2004.05160).
    """
    check_option("centred", centred, (True, False))
    device = source.device if isinstance(source, Tensor) else None
    source, target = (as_values(x, name, "l b e").to(device) for x, name in ((source, "source"), (target, "target")))
    if source.shape != target.shape or source.shape[1] < 2:
        shapes = f"{tuple(source.shape)} and {tuple(target.shape)}"
        raise ValueError(f"retrieval needs two equal shapes `l b e` with at least two texts, not {shapes}.")
    if centred:
        source, target = (x - x.mean(1, keepdim=True) for x in (source, target))
    source, target = (nn.functional.normalize(x, dim=-1) for x in (source, target))
    cosines = source @ target.mT  # l b b
    texts = cosines.shape[1]
    expected = torch.arange(texts, device=cosines.device)
    hits = [(cosines.argmax(axis) == expected).float().mean(-1) for axis in (1, 2)]
    translations = cosines.diagonal(0, 1, 2)
    others = (cosines.sum((1, 2)) - translations.sum(-1)) / (texts * (texts - 1))
    return Retrieval((hits[0] + hits[1]) / 2, translations.mean(-1), others)
