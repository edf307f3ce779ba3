"""Interventions: ablating heads and patching activations. Walked through in notebooks 03 and 05."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from tqdm import tqdm

from ..inputs import as_input_ids, as_model_inputs, as_sequence, as_tensor, check_option, check_type, shown
from ..model import Attention, ModelOutput, PreTrainedModel
from ..utils import eval_mode
from .hooks import check_model, hooked, self_attentions

Score = Callable[[ModelOutput], Tensor]  # model output -> the number to explain, such as one logit


def compute_score(score: Score, model: PreTrainedModel, inputs: Mapping[str, Any]) -> Tensor:
    """The score of the model's output, one number; ValueError if `score` returns anything else."""
    check_type("score", score, Callable, "a function, such as lambda output: output.logits[0, position, token]")
    value = score(model(**inputs))
    value = torch.tensor(float(value)) if isinstance(value, Real) else value
    if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
        what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"score gave {what}, but must give one number, such as output.logits[0, position, token].")
    if not bool(value.isfinite()):
        raise ValueError(f"score gave {value.item()}, but must give a finite number.")
    return value.reshape(()).float()


@contextmanager
def ablated(model: PreTrainedModel, heads: Mapping[int, Sequence[int]], means: Tensor | None = None) -> Iterator[None]:
    """Replace the output of the heads `{layer: [heads]}` by zeros, or by `means` (`l h d`), for a `with` block.

    Zero ablation is what head_mask=0 does (Michel et al. 2019, arXiv:1905.10650). Mean ablation, by head_means, keeps
    what later layers expect on average, and removes only what depends on this text. Raises ValueError for layers and
    heads that do not exist.
    """
    check_model(model)
    attentions = self_attentions(model)
    check_type("heads", heads, Mapping, "a dict {layer: [heads]}")
    chosen = {layer: as_sequence(numbers, f"heads[{layer!r}]", "heads") for layer, numbers in heads.items()}
    for layer, numbers in chosen.items():
        if not isinstance(layer, Integral) or not 0 <= layer < len(attentions):
            raise ValueError(f"there is no layer {shown(layer)}: there are {len(attentions)}, integers counted from 0.")
        missing = [head for head in numbers if head not in attentions[layer].heads]
        if missing:
            raise ValueError(
                f"layer {layer} has no heads {shown(missing)}: it has {attentions[layer].heads}, counted from 0."
            )
    if means is not None:
        means, shape = as_tensor(means, "means"), mean_shape(model)
        if tuple(means.shape) != shape or not bool(means.isfinite().all()):
            given = f"the shape {tuple(means.shape)}" if tuple(means.shape) != shape else "NaN or infinite values"
            raise ValueError(f"means has {given}, but must be finite numbers {shape}, `l h d`: use head_means.")

    def hook(layer: int, attention: Attention) -> Callable:
        def replace(out: nn.Linear, args: tuple[Tensor]) -> tuple[Tensor]:
            context = rearrange(args[0], "b q (h d) -> b q h d", d=attention.head_dim).clone()
            for head in chosen[layer]:
                context[:, :, attention.heads.index(head)] = 0 if means is None else means[layer, head]
            return (rearrange(context, "b q h d -> b q (h d)"),)

        return replace

    with hooked([(attentions[layer].out, hook(layer, attentions[layer])) for layer in chosen], before=True):
        yield


def mean_shape(model: PreTrainedModel) -> tuple[int, int, int]:  # l h d, also of a pruned model
    attentions = self_attentions(model)
    return len(attentions), model.config.num_attention_heads, attentions[0].head_dim


def head_means(model: PreTrainedModel, texts: Sequence[Tensor]) -> Tensor:  # texts of t -> l h d
    """Each head's mean output before `out`, over all tokens of `texts` (input_ids); zeros for pruned heads."""
    check_model(model)
    attentions, texts = self_attentions(model), as_input_ids(texts, model)
    sums = torch.zeros(mean_shape(model), device=model.device)

    def hook(layer: int, attention: Attention) -> Callable:
        def record(out: nn.Linear, args: tuple[Tensor]) -> None:
            context = rearrange(args[0], "b q (h d) -> b q h d", d=attention.head_dim)
            sums[layer, attention.heads] += reduce(context.float(), "b q h d -> h d", "sum")

        return record

    with eval_mode(model), hooked([(x.out, hook(i, x)) for i, x in enumerate(attentions)], before=True):
        for ids in texts:
            model.base_model(rearrange(ids, "t -> 1 t"), use_cache=False)
    return sums / sum(map(len, texts))


def ablation_effects(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], score: Score, means: Tensor | None = None, *,
    progress: bool = True,
) -> Tensor:  # l h  # fmt: skip
    """The change of `score` when one head at a time is ablated; NaN for pruned heads."""
    check_model(model)
    attentions, inputs = self_attentions(model), as_model_inputs(inputs, model)
    effects = torch.full(mean_shape(model)[:2], math.nan)
    pairs = [(layer, head) for layer, attention in enumerate(attentions) for head in attention.heads]
    with eval_mode(model):
        original = compute_score(score, model, inputs)
        for layer, head in tqdm(pairs, unit="head", disable=not progress, delay=2):
            with ablated(model, {layer: [head]}, means):
                effects[layer, head] = float(compute_score(score, model, inputs) - original)
    return effects


SITES = ("stream", "attention", "feed_forward")


def patch_effects(
    model: PreTrainedModel, clean: Mapping[str, Tensor], corrupted: Mapping[str, Tensor], score: Score,
    site: str = "stream", *, progress: bool = True,
) -> Tensor:  # l t  # fmt: skip
    """Activation patching: the fraction of `score` recovered by one activation of the clean run in the corrupted run.

    For texts of equal length, at each layer and token. site: the "stream" that enters a layer, or what its "attention"
    or "feed_forward" adds. 0 = the corrupted score, 1 = the clean one. (Causal tracing, Meng et al. 2022,
    arXiv:2202.05262; Vig et al. 2020, arXiv:2004.12265.) Raises ValueError where both runs have the same score.
    """
    check_option("site", site, SITES)
    check_model(model)
    clean, corrupted = as_model_inputs(clean, model, "clean"), as_model_inputs(corrupted, model, "corrupted")
    shapes = [tuple(inputs["input_ids"].shape) for inputs in (clean, corrupted)]
    if shapes[0] != shapes[1]:
        message = f"the clean text is {shapes[0]} and the corrupted one {shapes[1]}"
        raise ValueError(f"{message}: tokens must have the same positions.")
    is_stream, activations = site == "stream", []
    modules = [block if is_stream else getattr(block, site) for block in model.base_model.layers]

    def update(args: tuple, output: Any) -> Tensor:
        return (output[0] if isinstance(output, tuple) else output) - args[0]

    def record(module: nn.Module, args: tuple, output: Any = None) -> None:
        activations.append(args[0] if is_stream else update(args, output))

    def patch(layer: int, token: int) -> Callable:
        def patched(activation: Tensor) -> Tensor:
            activation = activation.clone()
            activation[:, token] = activations[layer][:, token]
            return activation

        def patch_input(module: nn.Module, args: tuple) -> tuple:
            return patched(args[0]), *args[1:]

        def patch_output(module: nn.Module, args: tuple, output: Any) -> Any:
            stream = args[0] + patched(update(args, output))
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        return patch_input if is_stream else patch_output

    effects = torch.zeros(len(modules), shapes[0][1])
    with eval_mode(model):
        with hooked([(module, record) for module in modules], before=is_stream):
            best = compute_score(score, model, clean)
        worst = compute_score(score, model, corrupted)
        if torch.isclose(best, worst):
            raise ValueError(f"both texts have the score {float(best):.4g}: choose texts between which it differs.")
        pairs = [(layer, token) for layer in range(len(modules)) for token in range(shapes[0][1])]
        for layer, token in tqdm(pairs, unit="patch", disable=not progress, delay=2):
            with hooked([(modules[layer], patch(layer, token))], before=is_stream):
                effects[layer, token] = float((compute_score(score, model, corrupted) - worst) / (best - worst))
    return effects
