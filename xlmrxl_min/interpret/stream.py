"""The residual stream: what writes into it, and the logit lens. Walked through in notebooks/05_the_block.ipynb."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from ..inputs import as_model_inputs, as_tensor, check_ids
from ..model import Attention, FeedForward, PreTrainedModel, XLMRobertaXLForMaskedLM
from ..utils import eval_mode
from .hooks import check_model, hooked


class Contributions(NamedTuple):
    """What each part adds to the residual stream; c counts the embeddings, then each layer's branches in order."""

    names: list[str]
    update_norm: Tensor  # c b t: the L2 norm of what is added
    stream_norm: Tensor  # c b t: the L2 norm of the stream after that
    fraction: Tensor  # c b t: of the final stream; sums to 1 over c, and may be negative


def contributions(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Contributions:
    """Measure each branch's contribution to the residual stream, before the final norm.

    The final stream is the sum of all updates (Elhage et al. 2021, "A Mathematical Framework for Transformer
    Circuits"): an update's fraction is its projection on that sum, divided by the norm of the sum.
    """
    check_model(model)
    inputs = as_model_inputs(inputs, model)
    records: list[tuple[str, Tensor, Tensor]] = []  # name, update, the stream after it

    def hook(name: str) -> Callable:
        def record(module: nn.Module, args: tuple, output: Any) -> None:
            after = output[0] if isinstance(output, tuple) else output
            if not records:
                records.append(("embeddings", args[0], args[0]))
            records.append((name, after - args[0], after))

        return record

    branches = [
        (module, hook(f"{name.replace('_', '-')} {i}"))
        for i, block in enumerate(model.base_model.layers)
        for name, module in block.named_children()
        if isinstance(module, (Attention, FeedForward))
    ]
    with eval_mode(model), hooked(branches):
        model(**inputs)
    names, updates, streams = (list(column) for column in zip(*records, strict=True))
    final = torch.stack(updates).sum(0)
    fraction = torch.stack([(update * final).sum(-1) / final.square().sum(-1) for update in updates])
    update_norm, stream_norm = (torch.stack([x.norm(dim=-1) for x in states]) for states in (updates, streams))
    return Contributions(names, update_norm, stream_norm, fraction)


class LogitLens(NamedTuple):
    """The model's prediction after each layer, at n positions; row 0 is before the first layer."""

    top_ids: Tensor  # l n: the most probable token
    probability: Tensor  # l n: of the target
    rank: Tensor  # l n: of the target, from 1
    divergence: Tensor  # l n: KL(final prediction ‖ this one), nats


def logit_lens(
    model: XLMRobertaXLForMaskedLM, input_ids: Tensor, positions: Tensor, targets: Tensor | None = None, *,
    attention_mask: Tensor | None = None, final_norm: bool = True,
) -> LogitLens:  # fmt: skip
    """Decode the stream after each layer by the final norm and the LM head (nostalgebraist 2020, "logit lens").

    input_ids and attention_mask `b t`; positions `b t`, True where to decode; targets `n` ids (None: the model's own
    predictions). final_norm=False leaves out the final norm, which a pre-LN model has because its stream grows from
    layer to layer. Raises ValueError for a model without an LM head and for positions of another shape.
    """
    if not isinstance(model, XLMRobertaXLForMaskedLM):
        raise ValueError(f"the logit lens needs a masked-LM head, which {type(model).__name__} lacks.")
    inputs = as_model_inputs({"input_ids": input_ids, "attention_mask": attention_mask}, model, "the text")
    input_ids, positions = inputs["input_ids"], as_tensor(positions, "positions", "True where to decode")
    positions = (positions[None] if positions.dim() == 1 else positions).to(input_ids.device)
    if positions.shape != input_ids.shape or positions.dtype != torch.bool or not positions.any():
        given = f"positions are {positions.dtype} {tuple(positions.shape)}"
        raise ValueError(f"{given}, but must be bool {tuple(input_ids.shape)}, True at one position at least.")
    if targets is not None:
        targets = as_tensor(targets, "targets", "ids").to(input_ids.device)
        if targets.shape != (int(positions.sum()),):
            shape = f"has the shape {tuple(targets.shape)}, but there are {int(positions.sum())} positions"
            raise ValueError(f"targets {shape}: pass one id for each.")
        check_ids("targets", targets, model)
    streams: list[Tensor] = []  # the input of each layer, then that of the final norm
    modules = [*model.backbone.layers, model.backbone.norm]
    with eval_mode(model):
        with hooked([(x, lambda module, args: streams.append(args[0][positions])) for x in modules], before=True):
            model.backbone(**inputs, use_cache=False)
        norm = model.backbone.norm if final_norm else nn.Identity()
        final = model.lm_head(model.backbone.norm(streams[-1])).float().log_softmax(-1)
        target = rearrange(final.argmax(-1) if targets is None else targets.long(), "t -> t 1")
        rows = []
        for stream in streams:
            log_probs = model.lm_head(norm(stream)).float().log_softmax(-1)
            of_target = log_probs.gather(-1, target)
            rank = (log_probs > of_target).sum(-1) + 1
            divergence = (final.exp() * (final - log_probs)).sum(-1)
            rows.append((log_probs.argmax(-1), of_target[:, 0].exp(), rank, divergence))
        return LogitLens(*map(torch.stack, zip(*rows, strict=True)))
