"""Saliency: how much each input token contributes to a score. Walked through in notebooks/03_seeing_attention.ipynb."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ..inputs import as_model_inputs, check_integer
from ..model import PreTrainedModel
from ..utils import eval_mode
from .hooks import check_model, hooked
from .interventions import Score, compute_score


@contextmanager
def embeddings_replaced(model: PreTrainedModel, embeddings: Tensor) -> Iterator[None]:
    """Use these word embeddings `b t e` for a `with` block; positions still depend on the ids."""
    with hooked([(model.get_input_embeddings(), lambda module, args, output: embeddings)]):
        yield


def embedding_gradient(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], score: Score, embeddings: Tensor
) -> Tensor:  # b t e
    """The gradient of `score` with respect to the word embeddings, at `embeddings`; no parameter gets a gradient."""
    leaf = embeddings.detach().requires_grad_()
    with eval_mode(model, gradients=True), embeddings_replaced(model, leaf):
        value = compute_score(score, model, inputs)
        gradient = torch.autograd.grad(value, leaf, allow_unused=True)[0] if value.requires_grad else None
    if gradient is None:
        remedy = "return a tensor computed from the output, without item() or detach()"
        raise ValueError(f"score gave {value.item():.4g}, which has no gradient with respect to the text: {remedy}.")
    return gradient


def gradient_times_input(model: PreTrainedModel, inputs: Mapping[str, Tensor], score: Score) -> Tensor:  # b t
    """Each token's word embedding times the gradient of `score` (Shrikumar et al. 2017, arXiv:1605.01713).

    To first order, how much `score` would fall if the embedding were zero.
    """
    check_model(model)
    inputs = as_model_inputs(inputs, model)
    embeddings = model.get_input_embeddings()(inputs["input_ids"]).detach()
    return (embedding_gradient(model, inputs, score, embeddings) * embeddings).sum(-1)


class IntegratedGradients(NamedTuple):
    attributions: Tensor  # b t
    difference: float  # the score of the text minus that of the baseline: what the attributions should sum to
    error: float  # how far they are from it, relative to the difference: the completeness check


def integrated_gradients(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], score: Score, baseline_id: int, *, steps: int = 64,
    progress: bool = True,
) -> IntegratedGradients:  # fmt: skip
    """Integrate gradients along the straight path from a text of `baseline_id` tokens to this text.

    Sundararajan et al. 2017 (arXiv:1703.01365); the integral by the midpoint rule. Special tokens keep their
    embeddings. If the error is large, take more steps.
    """
    check_model(model)
    check_integer("baseline_id", baseline_id, 0, model.config.vocab_size - 1)
    check_integer("steps", steps)
    inputs = as_model_inputs(inputs, model)
    ids, embed = inputs["input_ids"], model.get_input_embeddings()
    special_ids = [i for i in (model.config.bos_token_id, model.config.eos_token_id) if i is not None]
    special = torch.isin(ids, torch.tensor(special_ids, device=ids.device))
    with torch.no_grad():
        end, start = embed(ids), embed(ids.where(special, baseline_id))
    total = torch.zeros_like(end)
    for step in tqdm(range(steps), unit="step", disable=not progress, delay=2):
        total += embedding_gradient(model, inputs, score, start + (step + 0.5) / steps * (end - start))
    attributions = (total / steps * (end - start)).sum(-1)
    with eval_mode(model):
        original = compute_score(score, model, inputs)
        with embeddings_replaced(model, start):
            difference = float(original - compute_score(score, model, inputs))
    error = abs(float(attributions.sum()) - difference) / max(abs(difference), 1e-12)
    return IntegratedGradients(attributions, difference, error)


def occlusion(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], score: Score, replacement_id: int, *, progress: bool = True
) -> Tensor:  # b t
    """How much `score` falls when one token at a time is replaced (Zeiler and Fergus 2014, arXiv:1311.2901).

    0 where the token is `replacement_id` already. In a batch, the same position is replaced in all texts at once.
    """
    check_model(model)
    check_integer("replacement_id", replacement_id, 0, model.config.vocab_size - 1)
    inputs = as_model_inputs(inputs, model)
    ids = inputs["input_ids"]
    falls = torch.zeros(ids.shape)
    with eval_mode(model):
        original = compute_score(score, model, inputs)
        for position in tqdm(range(ids.shape[1]), unit="token", disable=not progress, delay=2):
            occluded = ids.clone()
            occluded[:, position] = replacement_id
            falls[:, position] = float(original - compute_score(score, model, {**inputs, "input_ids": occluded}))
    return falls
