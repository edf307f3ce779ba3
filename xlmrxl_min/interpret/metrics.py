"""Numbers out of models, attentions and hidden states. Walked through in notebooks/03_seeing_attention.ipynb.

Weights are one text's attentions, without padding; `…` stands for any axes before q and k. The pictures of these
numbers are in plot.py.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from einops import einsum, rearrange, reduce
from torch import Tensor, nn
from tqdm import tqdm

from ..inference.predict import batches_by_length
from ..model import Attention, FeedForward, ModelOutput, PreTrainedModel, XLMRobertaXLForMaskedLM
from ..tokenizer import XLMRobertaTokenizer
from ..utils import eval_mode

AnyModel = TypeVar("AnyModel", bound=PreTrainedModel)
Score = Callable[[ModelOutput], Tensor]  # one number out of a model's output, such as a logit: what is to be explained


# ---- where a head looks


def entropy(weights: Tensor) -> Tensor:  # … q k -> … q
    """How spread out each query's attention is, in nats: 0 for a single key, log k for all k alike (Shannon 1948)."""
    return torch.special.entr(weights).sum(-1)


def mean_distance(weights: Tensor) -> Tensor:  # … q k -> … q
    """How many tokens away each query looks, in the mean by weight (Vig and Belinkov 2019, arXiv:1906.04284)."""
    queries, keys = (torch.arange(n, device=weights.device) for n in weights.shape[-2:])
    return (weights * (keys - rearrange(queries, "q -> q 1")).abs()).sum(-1)


def offset_profile(weights: Tensor, reach: int) -> Tensor:  # … q k -> … r
    """Mean attention by offset, key position minus query position, from -reach to reach: r = 2 reach + 1.

    The mean is over all queries that have a key at this offset. ValueError where none has.
    """
    longest = min(weights.shape[-2:]) - 1
    if not 0 <= reach <= longest:
        raise ValueError(f"reach={reach} is impossible: {longest + 1} tokens lie at most {longest} apart.")
    offsets = range(-reach, reach + 1)
    return torch.stack([weights.diagonal(offset, -2, -1).mean(-1) for offset in offsets], dim=-1)


def mass(weights: Tensor, input_ids: Tensor, bos: int = 0, eos: int = 2) -> dict[str, Tensor]:  # … q k, t -> … each
    """The share of attention that falls on six kinds of keys, as in Clark et al. 2019 (arXiv:1906.04341), section 3.

    `<s>`; `</s>`; the query itself; other places of the same token, special ones aside; the previous token; the next.
    Each is the mean over the queries that have such a key, and NaN where none has. Kinds overlap: `<s>` is also the
    token previous to the first word.
    """
    if input_ids.dim() != 1 or weights.shape[-2:] != 2 * input_ids.shape:
        ours, shape = f"{len(input_ids)} tokens", tuple(weights.shape[-2:])
        raise ValueError(f"mass takes one text: input_ids `t` with weights `… t t`, not {ours} with weights {shape}.")
    row, column = rearrange(input_ids, "q -> q 1"), rearrange(input_ids, "k -> 1 k")
    one = torch.eye(len(input_ids), dtype=torch.bool, device=input_ids.device)
    kinds = {
        "<s>": (column == bos).expand_as(one),
        "</s>": (column == eos).expand_as(one),
        "itself": one,
        "same token": (row == column) & ~one & (row != bos) & (row != eos),
        "previous": one.roll(-1, 1).tril(),
        "next": one.roll(1, 1).triu(),
    }
    return {
        name: (weights * of_kind).sum((-2, -1)) / of_kind.any(-1).sum()  # 0 / 0 = NaN: no query has such a key
        for name, of_kind in kinds.items()
    }


# What a head is called, by one of `overview`'s numbers: the first line whose number is reached. The kinds are those of
# Clark et al. 2019 and Voita et al. 2019 (arXiv:1905.09418), the thresholds our convention: there are no agreed ones.
HEAD_CLASSES = {
    "previous": ("previous", 0.5),
    "next": ("next", 0.5),
    "itself": ("itself", 0.5),
    "same token": ("same token", 0.3),
    "<s>": ("<s>", 0.5),
    "</s>": ("</s>", 0.5),
    "even": ("evenness", 0.9),
}
OTHERWISE = "mixed"


def head_classes(numbers: Mapping[str, Tensor]) -> list[list[str]]:  # l h each -> l lists of h names
    """A name for each head: the first of HEAD_CLASSES whose threshold it reaches; else "mixed". NaN reaches none."""
    layers, heads = numbers["evenness"].shape
    table = {name: numbers[measure].tolist() for name, (measure, _) in HEAD_CLASSES.items()}

    def name_of(layer: int, head: int) -> str:
        reached = (name for name, (_, least) in HEAD_CLASSES.items() if table[name][layer][head] >= least)
        return next(reached, OTHERWISE)

    return [[name_of(layer, head) for head in range(heads)] for layer in range(layers)]


def merge(weights: Tensor, queries: Sequence[range], keys: Sequence[range]) -> Tensor:  # … q k -> … q k, fewer of each
    """Tokens joined to groups, such as words: a mean over the queries of a group, a sum over its keys.

    Where the groups hold all keys, rows still sum to 1 (Clark et al. 2019, section 4.1).
    """

    def member(groups: Sequence[range], size: int) -> Tensor:
        rows = weights.new_zeros(len(groups), size)
        for row, group in zip(rows, groups, strict=True):
            row[group.start : group.stop] = 1
        return rows

    of_query, of_key = member(queries, weights.shape[-2]), member(keys, weights.shape[-1])
    return (of_query / of_query.sum(-1, keepdim=True)) @ weights @ of_key.mT


def words(tokens: Sequence[str]) -> list[range]:
    """The places of each word's tokens: a word begins at a `▁`, and special tokens such as `<s>` stand alone."""
    starts = [i for i, token in enumerate(tokens) if not i or token.startswith(("▁", "<")) or tokens[i - 1][:1] == "<"]
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], len(tokens)], strict=True)]


# ---- through all layers


def rollout(attentions: Sequence[Tensor], residual: float = 0.5) -> Tensor:  # l of … h q k -> l … q k
    """Where what a place holds after each layer has come from, if attention alone carried it.

    Abnar and Zuidema 2020 (arXiv:2005.00928): heads averaged, `residual` of the identity mixed in for the residual
    stream, layers multiplied. A heuristic: it knows nothing of values, feed-forward and norms, and the true weight of
    the residual differs by layer and token.
    """
    if not 0 <= residual <= 1:
        raise ValueError(f"residual={residual} is impossible: it is a share, from 0 to 1.")
    so_far, steps = None, []
    for weights in attentions:
        layer = (1 - residual) * weights.mean(-3)
        layer.diagonal(0, -2, -1).add_(residual)
        so_far = layer if so_far is None else layer @ so_far
        steps.append(so_far)
    return torch.stack(steps)


@torch.no_grad()
def value_norms(attention: Attention, hidden: Tensor) -> Tensor:  # b t e -> b h k
    """The length of what each key would add to the stream if a head looked at nothing else: its value, through `out`.

    `hidden` is what goes into the layer: of the model's hidden_states, the one with the layer's own number.
    """
    value = attention.split_heads(attention.value(attention.norm(hidden)))
    out = rearrange(attention.out.weight, "e (h d) -> h e d", d=attention.head_dim)
    return torch.stack([(value[:, i] @ out[i].mT).norm(dim=-1) for i in range(len(out))], dim=1)  # a head at a time


def value_weighted(weights: Tensor, norms: Tensor) -> Tensor:  # b h q k, b h k -> b h q k
    """Attention times the length of what is looked at, each row's sum 1 again.

    Kobayashi et al. 2020 (arXiv:2004.10102): a head that has nothing to do looks at a token whose value is almost zero.
    """
    lengths = weights * rearrange(norms, "b h k -> b h 1 k")
    return lengths / lengths.sum(-1, keepdim=True)


@contextmanager
def each_layer(model: PreTrainedModel, use: Callable[[Tensor], Any]) -> Iterator[list[Any]]:
    """While open, each layer of a call with output_attentions=True hands its weights `b h q k` to `use` and drops them.

    Yields the list of the results, which grows with every layer. So no more than one layer's weights live at a time;
    the output's own attentions are None.
    """
    results: list[Any] = []

    def hook(block: nn.Module, args: tuple, output: tuple) -> tuple:
        hidden, weights, across = output
        if weights is None:
            raise ValueError("each_layer sees weights only in a call with output_attentions=True.")
        results.append(use(weights))
        return hidden, None, across

    with hooked((block, hook) for block in model.base_model.layers):
        yield results


def overview(model: PreTrainedModel, texts: Sequence[Tensor], *, progress: bool = True) -> dict[str, Tensor]:
    """Every head in numbers, `l h` each: entropy (nats), evenness (entropy / log k), distance, and the kinds of `mass`.

    `texts` are input_ids, `t` each; the numbers are means over texts, those without such a key aside. Layers are
    reduced one by one: never are three layers' maps held at once (all 36 × 32 of XL at 512 tokens would be 1.2 GB).
    """
    if not texts or any(ids.dim() != 1 or len(ids) < 2 for ids in texts):
        raise ValueError("overview takes a list of texts, input_ids `t` each with at least two tokens.")
    sums: dict[str, list[Tensor]] = {}
    for ids in tqdm(texts, unit="text", disable=not progress, delay=2):

        def head(weights: Tensor, ids: Tensor = ids) -> dict[str, Tensor]:  # q k
            spread, distance = entropy(weights).mean(), mean_distance(weights).mean()
            kinds = mass(weights, ids, model.config.bos_token_id, model.config.eos_token_id)
            return {"entropy": spread, "evenness": spread / math.log(len(ids)), "distance": distance, **kinds}

        def layer(weights: Tensor, head: Callable = head) -> list[dict[str, Tensor]]:
            return [head(one) for one in weights[0].float()]  # a head at a time: what is computed stays small

        with eval_mode(model), each_layer(model, layer) as rows:
            model.base_model(rearrange(ids, "t -> 1 t"), output_attentions=True, use_cache=False)
        for name in rows[0][0]:
            sums.setdefault(name, []).append(torch.stack([torch.stack([x[name] for x in row]) for row in rows]))
    return {name: torch.stack(tables).nanmean(0) for name, tables in sums.items()}


@contextmanager
def hooked(pairs: Any, before: bool = False) -> Iterator[None]:
    """Hooks, `(module, function)` each, that are gone afterwards."""
    with ExitStack() as stack:
        for module, hook in pairs:
            add = module.register_forward_pre_hook if before else module.register_forward_hook
            stack.callback(add(hook).remove)
        yield


# ---- the residual stream


class Contributions(NamedTuple):
    """What wrote how much into the residual stream; c counts the embeddings, then each layer's branches in order."""

    names: list[str]
    update: Tensor  # c b t: the length of what was added
    stream: Tensor  # c b t: the length of the stream after that
    share: Tensor  # c b t: the part of the last stream that it is; sums to 1 over c, and may be negative


def contributions(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Contributions:
    """Residual-stream norms and each branch's share, before the final norm.

    The last stream is the sum of all that was written: the share of one is its projection on that sum, by the
    length of the sum. (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", on such sums.)
    """
    names, written, length = [], [], []

    def hook(name: str) -> Callable:
        def record(module: nn.Module, args: tuple, output: Any) -> None:
            after = output[0] if isinstance(output, tuple) else output
            if not names:
                names.append("embeddings"), written.append(args[0]), length.append(args[0].norm(dim=-1))
            names.append(name), written.append(after - args[0]), length.append(after.norm(dim=-1))

        return record

    branches = [
        (module, hook(f"{name.replace('_', '-')} {i}"))
        for i, block in enumerate(model.base_model.layers)
        for name, module in block.named_children()
        if isinstance(module, (Attention, FeedForward))
    ]
    with eval_mode(model), hooked(branches):
        model(**inputs)
    last = sum(written)
    share = torch.stack([(x * last).sum(-1) / last.square().sum(-1) for x in written])
    return Contributions(names, torch.stack([x.norm(dim=-1) for x in written]), torch.stack(length), share)


class Lens(NamedTuple):
    """What the model would answer after each layer, at n places; row 0 is before the first layer."""

    best: Tensor  # l n: the likeliest token's id
    probability: Tensor  # l n: of the target
    rank: Tensor  # l n: of the target, 1 = first
    divergence: Tensor  # l n: KL(the model's answer ‖ this one), nats


def lens(
    model: XLMRobertaXLForMaskedLM,
    input_ids: Tensor,
    places: Tensor,
    targets: Tensor | None = None,
    *,
    attention_mask: Tensor | None = None,
    final_norm: bool = True,
) -> Lens:
    """The stream after each layer through the final norm and the head, as if no layer followed.

    "Logit lens" (nostalgebraist 2020), on masked language models. input_ids and attention_mask `b t`, places `b t`
    (True where to look), targets `n` ids (None: what the model answers). final_norm=False leaves out the norm between
    stream and head, which a pre-LN model has because its stream grows from layer to layer.
    """
    if not isinstance(model, XLMRobertaXLForMaskedLM):
        raise ValueError(f"the lens reads through a masked-LM head, which {type(model).__name__} has not.")
    if places.shape != input_ids.shape or places.dtype != torch.bool or not places.any():
        ours = f"places are {places.dtype} {tuple(places.shape)}"
        raise ValueError(f"{ours}, but must be bool {tuple(input_ids.shape)}, True at one place at least.")
    streams: list[Tensor] = []
    after = [(block, lambda block, args, output: streams.append(output[0][places])) for block in model.backbone.layers]
    first = (model.backbone.layers[0], lambda block, args: streams.append(args[0][places]))
    with eval_mode(model), hooked(after), hooked([first], before=True):
        model.backbone(input_ids, attention_mask, use_cache=False)

        def answer(stream: Tensor, norm: bool) -> Tensor:
            return model.lm_head(model.backbone.norm(stream) if norm else stream).float().log_softmax(-1)

        final, rows = answer(streams[-1], norm=True), []
        wanted = final.argmax(-1) if targets is None else targets.to(input_ids.device)
        for stream in streams:
            answers = answer(stream, final_norm)
            of_target = answers.gather(-1, rearrange(wanted, "t -> t 1"))
            rank = (answers > of_target).sum(-1) + 1
            divergence = (final.exp() * (final - answers)).sum(-1)
            rows.append((answers.argmax(-1), of_target[:, 0].exp(), rank, divergence))
        return Lens(*(torch.stack(column) for column in zip(*rows, strict=True)))


# ---- interventions: what happens if


@contextmanager
def ablated(model: PreTrainedModel, heads: Mapping[int, Sequence[int]], means: Tensor | None = None) -> Iterator[None]:
    """While open, the heads `{layer: [heads]}`, counted from 0, give zeros, or always the same: `means` `l h d`.

    Zeros are what head_mask=0 does (Michel et al. 2019, arXiv:1905.10650). The mean (see head_means) leaves what the
    later layers expect on average, and takes only what the head has to say about *this* text.
    """

    def hook(layer: int, attention: Attention) -> Callable:
        unknown = sorted(set(heads[layer]) - set(attention.heads))
        if unknown:
            raise ValueError(f"layer {layer} has no heads {unknown}: it has {attention.heads}, counted from 0.")

        def replace(out: nn.Linear, args: tuple[Tensor]) -> tuple[Tensor]:
            merged = rearrange(args[0], "b q (h d) -> b q h d", d=attention.head_dim).clone()
            for head in heads[layer]:
                merged[:, :, attention.heads.index(head)] = 0 if means is None else means[layer, head]
            return (rearrange(merged, "b q h d -> b q (h d)"),)

        return replace

    layers = model.base_model.layers
    if not set(heads) <= set(range(len(layers))):
        raise ValueError(f"there is no layer {max(heads)}: there are {len(layers)}, counted from 0.")
    attentions = {layer: layers[layer].attention for layer in heads}
    with hooked([(module.out, hook(layer, module)) for layer, module in attentions.items()], before=True):
        yield


def head_means(model: PreTrainedModel, texts: Sequence[Tensor]) -> Tensor:  # texts of t -> l h d
    """What each head adds on average, over all tokens of `texts` (input_ids), before `out`; zeros for pruned heads."""
    attentions = [block.attention for block in model.base_model.layers]
    sums = torch.zeros(len(attentions), model.config.num_attention_heads, attentions[0].head_dim, device=model.device)

    def hook(layer: int, attention: Attention) -> Callable:
        def record(out: nn.Linear, args: tuple[Tensor]) -> None:
            merged = rearrange(args[0], "b q (h d) -> b q h d", d=attention.head_dim)
            sums[layer, attention.heads] += reduce(merged.float(), "b q h d -> h d", "sum")

        return record

    with eval_mode(model), hooked([(x.out, hook(i, x)) for i, x in enumerate(attentions)], before=True):
        for ids in texts:
            model.base_model(rearrange(ids, "t -> 1 t"), use_cache=False)
    return sums / sum(map(len, texts))


def ablation_effects(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    score: Score,
    means: Tensor | None = None,
    *,
    progress: bool = True,
) -> Tensor:  # l h
    """By how much `score` of the output changes when one head at a time is ablated; NaN for pruned heads."""
    layers = model.base_model.layers
    effects = torch.full((len(layers), model.config.num_attention_heads), math.nan)
    every = [(layer, head) for layer, block in enumerate(layers) for head in block.attention.heads]
    with eval_mode(model):
        whole = number(score, model(**inputs))
        for layer, head in tqdm(every, unit="head", disable=not progress, delay=2):
            with ablated(model, {layer: [head]}, means):
                effects[layer, head] = float(number(score, model(**inputs)) - whole)
    return effects


SITES = ("stream", "attention", "feed_forward")


def patch_effects(
    model: PreTrainedModel,
    clean: Mapping[str, Tensor],
    corrupted: Mapping[str, Tensor],
    score: Score,
    site: str = "stream",
    *,
    progress: bool = True,
) -> Tensor:  # l t
    """Activation patching: what a corrupted run regains of `score` from the clean run's state at one layer and token.

    Texts of the same length. site: the "stream" that enters a layer, or what its "attention" or "feed_forward" adds.
    0 = as corrupted, 1 = as clean. (Causal tracing, Meng et al. 2022, arXiv:2202.05262; Vig et al. 2020,
    arXiv:2004.12265.) ValueError where the two runs have the same score: nothing could be regained.
    """
    if site not in SITES:
        raise ValueError(f"site={site!r} is unknown: take one of {', '.join(SITES)}.")
    shapes = [tuple(inputs["input_ids"].shape) for inputs in (clean, corrupted)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"the clean text is {shapes[0]} and the corrupted one {shapes[1]}: tokens must match in place."
        )
    layers, kept = model.base_model.layers, []
    modules = [block if site == "stream" else getattr(block, site) for block in layers]
    is_stream = site == "stream"

    def added(args: tuple, output: Any) -> Tensor:
        return (output[0] if isinstance(output, tuple) else output) - args[0]

    def keep(module: nn.Module, args: tuple, output: Any = None) -> None:
        kept.append(args[0] if is_stream else added(args, output))

    def patch(layer: int, token: int) -> Callable:
        def enter(module: nn.Module, args: tuple) -> tuple:
            stream = args[0].clone()
            stream[:, token] = kept[layer][:, token]
            return stream, *args[1:]

        def leave(module: nn.Module, args: tuple, output: Any) -> Any:
            branch = added(args, output)
            branch[:, token] = kept[layer][:, token]
            return (args[0] + branch, *output[1:]) if isinstance(output, tuple) else args[0] + branch

        return enter if is_stream else leave

    effects = torch.zeros(len(layers), shapes[0][1])
    with eval_mode(model):
        with hooked([(module, keep) for module in modules], before=is_stream):
            best = number(score, model(**clean))
        worst = number(score, model(**corrupted))
        if torch.isclose(best, worst):
            raise ValueError(f"both texts have the score {float(best):.4g}: choose texts between which it differs.")
        every = [(layer, token) for layer in range(len(layers)) for token in range(shapes[0][1])]
        for layer, token in tqdm(every, unit="patch", disable=not progress, delay=2):
            with hooked([(modules[layer], patch(layer, token))], before=is_stream):
                effects[layer, token] = float((number(score, model(**corrupted)) - worst) / (best - worst))
    return effects


def number(score: Score, output: ModelOutput) -> Tensor:
    value = score(output)
    if not isinstance(value, Tensor) or value.numel() != 1:
        what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"score gave {what}, but must give one number, such as output.logits[0, place, token].")
    return value.reshape(()).float()


# ---- saliency: which tokens the answer hangs on


@contextmanager
def words_replaced(model: PreTrainedModel, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While open, the word vectors `b t e` go through `change`; positions are still counted from the ids."""
    with hooked([(model.get_input_embeddings(), lambda module, args, output: change(output))]):
        yield


def word_gradient(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], score: Score, change: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:  # b t e, and one number
    """The gradient of `score` by the word vectors, after `change`; and the score. Leaves no gradient anywhere else."""
    held: list[Tensor] = []

    def leaf(vectors: Tensor) -> Tensor:
        held.append(change(vectors.detach()).requires_grad_())
        return held[0]

    were_training = [module for module in model.modules() if module.training]
    model.eval()  # without dropout, as everywhere here, but with gradients
    try:
        with torch.enable_grad(), words_replaced(model, leaf):
            value = number(score, model(**inputs))
            [gradient] = torch.autograd.grad(value, held)
    finally:
        for module in were_training:
            module.training = True
    return gradient, value.detach()


def gradient_times_input(model: PreTrainedModel, inputs: Mapping[str, Tensor], score: Score) -> Tensor:  # b t
    """Each token's word vector times the gradient of `score` there (Shrikumar et al. 2017, arXiv:1605.01713).

    The change of `score` to be expected if the vector shrank to nothing, were the model a straight line.
    """
    vectors = model.get_input_embeddings()(inputs["input_ids"]).detach()
    gradient, _ = word_gradient(model, inputs, score, lambda x: x)
    return (gradient * vectors).sum(-1)


class Integrated(NamedTuple):
    tokens: Tensor  # b t: each token's part of the change
    change: float  # the score of the text less the score of the baseline: what the parts should add up to
    gap: float  # by how much they miss it, as a share of the change: the completeness check


def integrated_gradients(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    score: Score,
    baseline_id: int,
    *,
    steps: int = 64,
    progress: bool = True,
) -> Integrated:
    """Gradients added up along the straight way from a text of nothing but `baseline_id` to this text.

    Sundararajan et al. 2017 (arXiv:1703.01365); the integral by the midpoint rule. Special tokens keep their vectors.
    If the gap is large, take more steps.
    """
    ids, words = inputs["input_ids"], model.get_input_embeddings()
    special = torch.isin(ids, torch.tensor([model.config.bos_token_id, model.config.eos_token_id], device=ids.device))
    with torch.no_grad():
        end, start = words(ids), words(ids.where(special, baseline_id))
    total = torch.zeros_like(end)
    for step in tqdm(range(steps), unit="step", disable=not progress, delay=2):
        way = (step + 0.5) / steps
        total += word_gradient(model, inputs, score, lambda _, way=way: start + way * (end - start))[0]
    tokens = (total / steps * (end - start)).sum(-1)
    with eval_mode(model):
        last = number(score, model(**inputs))
        with words_replaced(model, lambda _: start):
            change = float(last - number(score, model(**inputs)))
    return Integrated(tokens, change, abs(float(tokens.sum()) - change) / max(abs(change), 1e-12))


def occlusion(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], score: Score, replacement_id: int, *, progress: bool = True
) -> Tensor:  # b t
    """By how much `score` falls when one token at a time is replaced (Zeiler and Fergus 2014, arXiv:1311.2901).

    0 where the token is `replacement_id` already. With several texts in a batch, the same place in all at once.
    """
    ids = inputs["input_ids"]
    falls = torch.zeros(ids.shape)
    with eval_mode(model):
        whole = number(score, model(**inputs))
        for place in tqdm(range(ids.shape[1]), unit="token", disable=not progress, delay=2):
            hidden = ids.clone()
            hidden[:, place] = replacement_id
            falls[:, place] = float(whole - number(score, model(**{**inputs, "input_ids": hidden})))
    return falls


# ---- across languages


def mean_states(
    model: PreTrainedModel,
    tokenizer: XLMRobertaTokenizer,
    texts: Sequence[str],
    *,
    batch_size: int = 16,
    progress: bool = True,
) -> Tensor:  # l b e
    """Each text as one vector per layer: the mean over its tokens; l is the layers + 1, embeddings first."""
    vectors: list[Tensor | None] = [None] * len(texts)
    with eval_mode(model):
        for places, batch in batches_by_length(tokenizer, texts, batch_size, model.device, progress):
            states = torch.stack(model.base_model(**batch, output_hidden_states=True, use_cache=False).hidden_states)
            real = batch["attention_mask"].to(states.dtype)
            means = einsum(states, real, "l b t e, b t -> l b e") / real.sum(-1, keepdim=True)
            for place, vector in zip(places, means.unbind(1), strict=True):
                vectors[place] = vector
    return torch.stack(vectors, dim=1)


class Retrieval(NamedTuple):
    accuracy: Tensor  # l: how often a text's nearest neighbour in the other language is its translation
    translations: Tensor  # l: mean cosine of a text and its translation
    strangers: Tensor  # l: mean cosine of a text and the others of that language


def retrieval(ours: Tensor, theirs: Tensor, *, centred: bool = False) -> Retrieval:  # l b e, l b e
    """Are translations near each other? Row b of `theirs` translates row b of `ours`; both directions count alike.

    As in Tatoeba of XTREME (Hu et al. 2020, arXiv:2003.11080), by cosine. centred: each language's mean vector is
    subtracted first, and with it what all its texts have in common (Libovický et al. 2020, arXiv:2004.05160).
    """
    if ours.shape != theirs.shape or ours.shape[1] < 2:
        shapes = f"{tuple(ours.shape)} and {tuple(theirs.shape)}"
        raise ValueError(f"retrieval needs two equal shapes `l b e` with at least two texts, not {shapes}.")
    if centred:
        ours, theirs = (x - x.mean(1, keepdim=True) for x in (ours, theirs))
    ours, theirs = (nn.functional.normalize(x.float(), dim=-1) for x in (ours, theirs))
    cosines = ours @ theirs.mT  # l b b
    texts = cosines.shape[1]
    right = torch.arange(texts, device=cosines.device)
    hits = [(cosines.argmax(axis) == right).float().mean(-1) for axis in (1, 2)]
    pairs = cosines.diagonal(0, 1, 2)
    strangers = (cosines.sum((1, 2)) - pairs.sum(-1)) / (texts * (texts - 1))
    return Retrieval((hits[0] + hits[1]) / 2, pairs.mean(-1), strangers)


def without_positions(model: AnyModel) -> AnyModel:
    """A copy of `model` to which every order of the tokens is the same: its vectors of positions or distances are 0."""
    blind = copy.deepcopy(model)
    for name, parameter in blind.named_parameters():
        if name.endswith(("embeddings.position.weight", "attention.distance.weight")):
            parameter.data.zero_()
    return blind
