"""Text generation with a decoder. Walked through in notebooks/08_decoder.ipynb.

    model.generate(input_ids, …)    whole sequences: greedy decoding, sampling, beam search
    model.stream(input_ids, …)      the same as an iterator, one token of every sequence at a time; no beam search

Names and, for greedy decoding and beam search, tokens are those of transformers 4.56.2, except that absolute positions
never count padding, with a cache too. Prompts of different lengths are padded on the left.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from ..base import GenerationMixin, ModelOutput
from ..base.input_checks import check_binary_mask, check_tensor
from ..inputs import as_sequence, check_integer, check_number, check_option, check_type, shown
from ..model import Cache, XLMRobertaXLForCausalLM
from ..utils import eval_mode, pad_rows

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-6, 1e6  # float32 logits divided by less may be infinite
MAX_LENGTH_PENALTY = 50  # a length to a higher power may be more than a float holds
DEFAULTS = {name: one.default for name, one in inspect.signature(GenerationMixin.generate).parameters.items()}
del DEFAULTS["self"]
FLAGS = [name for name, default in DEFAULTS.items() if isinstance(default, bool)]
OUTPUTS = [name for name in FLAGS if name.startswith("output_")]
RETURNED = ("return_dict_in_generate", "streamer", *OUTPUTS)
SAMPLING = ("temperature", "top_k", "top_p", "generator")
NOT_WITH_BEAMS = ("do_sample", *SAMPLING, "stopping_criteria", "streamer")


class GenerateOutput(ModelOutput):
    """What `generate` returns with return_dict_in_generate=True, under transformers' names.

    sequences `b t`: what it returns otherwise. For each new token: logits `b v`; scores `b v`, these after all logits
    processors (in beam search, log-probabilities after them); attentions and hidden_states as `forward` returns them.
    In beam search these have a row for every beam, and each sequence has sequences_scores `b` and beam_indices `b t`,
    the row that each of its new tokens continued, -1 after its end. Otherwise there are past_key_values, a Cache.
    """

    FIELDS = (  # type: ignore[assignment]
        "sequences", "sequences_scores", "scores", "logits", "beam_indices", "attentions", "hidden_states",
        "past_key_values",
    )  # fmt: skip


class Beam(NamedTuple):
    tokens: tuple[int, ...]  # the new ones
    score: float  # the sum of their log-probabilities; if finished, divided by their number ** length_penalty
    parents: tuple[int, ...] = ()  # which of its prompt's unfinished beams each token continued


class Beams(NamedTuple):
    """The beams of one prompt, best first: unfinished and finished ones."""

    running: list[Beam]
    finished: list[Beam]


def settings_of(config: Any) -> dict[str, Any]:
    """What a generation config sets: all but the defaults of its class; transformers' top_k of 50 is set, too."""
    if isinstance(config, type) or not hasattr(config, "__dict__"):
        remedy = "take transformers' GenerationConfig(), or pass the settings as arguments"
        raise ValueError(f"generation_config is of type {type(config).__name__}, without settings in it: {remedy}.")
    unset = {**vars(type(config)()), "top_k": None}
    public = {name: value for name, value in vars(config).items() if not name.startswith(("_", "transformers_version"))}
    return {name: value for name, value in public.items() if value not in (None, unset.get(name))}


def complete(
    model: XLMRobertaXLForCausalLM, method: str, without: Sequence[str], given: dict[str, Any]
) -> dict[str, Any]:
    """The settings of a call with those of its generation config, then of the model's; None and False ask for nothing.

    Raises ValueError for those that `generate` has not, or that are in `without`.
    """
    settings, configs = given, (given.pop("generation_config", None), vars(model).get("generation_config"))
    for config in configs:
        settings = ({} if config is None else settings_of(config)) | settings
    if not settings.get("do_sample"):  # transformers' configs hold top_k=50 even then
        settings = {name: value for name, value in settings.items() if name in given or name not in SAMPLING}
    offered = [name for name in DEFAULTS if name not in without]
    for name, value in settings.items():
        if name not in offered and value is not None and value is not False:
            raise ValueError(f"{name}={shown(value)} is not offered: {method} takes {', '.join(offered)}.")
    return {name: value for name, value in settings.items() if name in offered and value is not None}


def generate(model: XLMRobertaXLForCausalLM, **given: Any) -> Tensor | GenerateOutput:
    """The work of GenerationMixin.generate."""
    state = GenerationState(model, **given)
    settings, prompts, of_beams = state.settings, state.sequences, {}
    count, width, streamer = settings.num_return_sequences, settings.num_beams, settings.streamer
    if width == 1:
        if streamer is not None:
            streamer.put(prompts.repeat_interleave(count, 0).cpu())
        for tokens in sample(state):
            if streamer is not None:
                streamer.put(tokens.cpu())
        if streamer is not None:
            streamer.end()
        sequences, rows = state.sequences, len(state.sequences)
    else:
        for step in search_beams(state):
            best = [(i * width, beam) for i, beams in enumerate(step) for beam in beams.finished[:count]]
        new = pad_rows([beam.tokens for _, beam in best], state.pad_token_id).to(prompts.device)
        sequences = torch.cat([prompts.repeat_interleave(count, 0), new], dim=1)
        indices = pad_rows([[first + parent for parent in beam.parents] for first, beam in best], -1)
        of_beams["beam_indices"] = indices.int().to(prompts.device)
        if settings.output_scores:
            of_beams["sequences_scores"] = torch.tensor([beam.score for _, beam in best], device=prompts.device)
        rows, state.cache = len(prompts) * width, None  # it is of unfinished beams
    if not settings.return_dict_in_generate:
        return sequences

    def expand(values: Any) -> Any:  # to one for each row; as copies, as tensors of inference mode cannot be trained on
        if isinstance(values, (tuple, list)):
            return tuple(map(expand, values))
        return values.repeat_interleave(rows // len(values), 0)

    kept = {name: expand(values) for name, values in state.outputs.items()}
    return GenerateOutput(sequences=sequences, past_key_values=state.cache, **of_beams, **kept)


def stream(model: XLMRobertaXLForCausalLM, **given: Any) -> Iterator[Tensor]:  # b each
    """The work of GenerationMixin.stream."""
    return sample(
        GenerationState(model, **complete(model, "stream", ("num_beams", "length_penalty", *RETURNED), given))
    )


def sample(state: GenerationState) -> Iterator[Tensor]:  # b each
    """Greedy decoding or sampling: append a token to every sequence, and yield them."""
    settings, device = state.settings, state.sequences.device
    rows = torch.arange(len(state.sequences), device=device).repeat_interleave(settings.num_return_sequences)
    is_finished = torch.zeros(len(rows), dtype=torch.bool, device=device)
    eos_token_ids = torch.tensor(state.eos_token_ids, device=device)
    for _ in state.steps():
        logits = state.next_logits()
        if len(logits) < len(rows):  # each prompt was read once, however many sequences continue it
            logits = logits[rows]
            state.reorder(rows)
        scores = state.process(logits)
        if settings.do_sample:
            scores = warp_logits(scores, settings.temperature, settings.top_k, settings.top_p)
            tokens = torch.multinomial(scores.softmax(-1), 1, generator=settings.generator)[:, 0]
        else:
            tokens = scores.argmax(-1)
        state.keep(scores=scores)
        tokens = tokens.masked_fill(is_finished, state.pad_token_id)
        state.append(tokens)
        is_finished |= torch.isin(tokens, eos_token_ids)
        for is_end in settings.stopping_criteria:
            is_finished |= is_end(state.sequences, tuple(state.outputs.get("scores", ())) or None)
        yield tokens
        if is_finished.all():
            return


def beam_search(
    model: XLMRobertaXLForCausalLM, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **given: Any
) -> Iterator[list[Beams]]:
    """Yield the beams of every prompt after each new token. Settings as in `generate`.

    input_ids `b t`. Each step continues the `num_beams` most probable unfinished sequences. A candidate that ends is
    kept if it is among the best `num_beams`; after the last step all of these count as finished. As with transformers'
    early_stopping=False, a prompt is done when it has `num_beams` finished sequences and the current score of the best
    unfinished one is not above the worst of them. Raises ValueError as `generate` does.
    """
    given = {"input_ids": input_ids, "attention_mask": attention_mask, **given}
    without = (*NOT_WITH_BEAMS, *RETURNED, "num_return_sequences")
    return search_beams(GenerationState(model, **complete(model, "beam_search", without, given)))


def search_beams(state: GenerationState) -> Iterator[list[Beams]]:
    """The work of `beam_search`."""
    num_beams, length_penalty = state.settings.num_beams, state.settings.length_penalty
    prompts = [Beams([Beam((), 0.0)], []) for _ in range(len(state.sequences))]
    is_done = [False] * len(prompts)
    for step in state.steps():
        is_last = step == state.num_steps - 1
        scores = state.process(state.next_logits().log_softmax(-1))
        state.keep(scores=scores)
        candidates = best_candidates(scores, [beams.running for beams in prompts], state.per_beam * num_beams)
        width, parents = len(prompts[0].running), []
        for i, found in enumerate(candidates):
            running: list[Beam] = []
            finished = list(prompts[i].finished)
            for rank, beam in enumerate(found):
                length = len(beam.tokens)
                if is_last or beam.tokens[-1] in state.eos_token_ids:
                    if rank < num_beams and not is_done[i]:
                        finished.append(beam._replace(score=beam.score / length**length_penalty))
                elif len(running) < num_beams:
                    running.append(beam)
                    parents.append(i * width + beam.parents[-1])
            finished = sorted(finished, key=lambda beam: beam.score, reverse=True)[:num_beams]
            prompts[i] = Beams(running, finished)
            if len(finished) == num_beams and not is_last:
                is_done[i] |= running[0].score / length**length_penalty <= finished[-1].score
        yield list(prompts)
        ends = [beam.tokens[-1] in state.eos_token_ids for beams in prompts for beam in beams.finished]
        if is_last and not all(ends):
            continue  # to the end of state.steps, which warns if the positions were used up
        if is_last or all(is_done):
            return
        state.reorder(torch.tensor(parents, device=state.sequences.device))
        last = [beam.tokens[-1] for beams in prompts for beam in beams.running]
        state.append(torch.tensor(last, device=state.sequences.device))


def best_candidates(scores: Tensor, running: Sequence[Sequence[Beam]], count: int) -> list[list[Beam]]:
    """The `count` best continuations of every prompt's beams, best first.

    scores `(b c) v`: log-probabilities after c beams for each of b prompts.
    """
    earlier = torch.tensor([[beam.score for beam in beams] for beams in running], device=scores.device)
    totals = rearrange(scores, "(b c) v -> b c v", b=len(running)) + rearrange(earlier, "b c -> b c 1")
    best = rearrange(totals, "b c v -> b (c v)").topk(count)
    found = []
    for beams, values, indices in zip(running, best.values.tolist(), best.indices.tolist(), strict=True):
        pairs = [divmod(index, scores.shape[-1]) for index in indices]
        extended = (
            Beam((*beams[parent].tokens, token), score, (*beams[parent].parents, parent))
            for (parent, token), score in zip(pairs, values, strict=True)
        )
        found.append(list(extended))
    return found


# … v -> … v
def warp_logits(logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0) -> Tensor:
    """Logits `… v` after three logits processors in this order; each default is off. -inf: cannot be sampled.

    temperature divides the logits: below 1 probable tokens gain, above 1 improbable ones. top_k keeps the most probable
    tokens, with ties of the last one (Fan et al. 2018). top_p keeps the fewest most probable tokens whose probabilities
    sum to at least this much (nucleus sampling, Holtzman et al. 2020).
    """
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[..., -1:], -torch.inf)
    if top_p < 1:
        ordered, indices = logits.softmax(-1).sort(descending=True)
        is_outside = ordered.cumsum(-1) - ordered >= top_p  # the more probable ones are enough without it
        is_outside[..., 0] = False  # however small top_p is
        is_outside = torch.zeros_like(is_outside).scatter(-1, indices, is_outside)
        logits = logits.masked_fill(is_outside, -torch.inf)
    return logits


def check_settings(settings: SimpleNamespace, max_beams: int) -> None:
    """Raise ValueError, in one sentence, for settings that are impossible or would have no effect."""
    width, count, streamer = settings.num_beams, settings.num_return_sequences, settings.streamer
    for name in FLAGS:
        check_option(name, getattr(settings, name), (False, True))
    check_integer("num_beams", width, 1, max_beams)
    check_integer("num_return_sequences", count, 1, width if width > 1 else math.inf)
    check_number("length_penalty", settings.length_penalty, -MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY)
    check_number("repetition_penalty", settings.repetition_penalty, 0, above=True)
    check_number("temperature", settings.temperature, MIN_TEMPERATURE, MAX_TEMPERATURE)
    check_number("top_p", settings.top_p, 0, 1, above=True)
    if settings.top_k is not None:
        check_integer("top_k", settings.top_k)
    allowed = "None, or a torch.Generator, such as torch.Generator().manual_seed(0)"
    check_type("generator", settings.generator, torch.Generator | None, allowed)
    if streamer is not None and not (hasattr(streamer, "put") and hasattr(streamer, "end")):
        raise ValueError(f"streamer={shown(streamer)} has no put and end: pass one of transformers' streamers.")
    for name in ("logits_processor", "stopping_criteria"):
        functions = as_sequence(getattr(settings, name), name, "functions")
        setattr(settings, name, functions)
        for i, function in enumerate(functions):
            check_type(f"{name}[{i}]", function, Callable, "a function")
    remedy = f"beam search does not sample: leave out either num_beams or {', '.join(NOT_WITH_BEAMS)}"
    for names, is_without_effect, why in (
        (NOT_WITH_BEAMS, width > 1, f"is impossible, as {remedy}"),
        (SAMPLING, not settings.do_sample, "is for sampling: add do_sample=True"),
        (("length_penalty",), width == 1, "is for beam search: ask for num_beams above 1 with it"),
        (OUTPUTS, not settings.return_dict_in_generate, "has no place: add return_dict_in_generate=True"),
    ):  # fmt: skip
        for name in names:
            value = getattr(settings, name)
            if is_without_effect and value not in (DEFAULTS[name], []):
                raise ValueError(f"{name}={shown(value)} {why}.")
    if count > 1 and width == 1 and not settings.do_sample:
        raise ValueError(f"all {count} sequences would be the same: add do_sample=True, or num_beams.")


class GenerationState:
    """A batch of sequences that are being generated: tokens, mask, KV cache, and what is kept to be returned.

    given: some of the arguments of `generate`. sequences `b t`: the ids so far; without the prompt's, if only its
    embeddings are known. num_steps: how many new tokens there are at most, by the settings and the model's positions.
    """

    def __init__(self, model: XLMRobertaXLForCausalLM, **given: Any) -> None:
        config = model.config
        self.settings = settings = SimpleNamespace(**{**DEFAULTS, **given})
        if not config.is_decoder:
            raise ValueError("this model is an encoder, and sees what it is to predict: build it with is_decoder=True.")
        prepare = getattr(model.prepare_inputs_for_generation, "__func__", None)
        if prepare is not GenerationMixin.prepare_inputs_for_generation:
            remedy = "take an adapter that changes modules in place, such as LoRA"
            raise ValueError(f"generate does not call the prepare_inputs_for_generation of peft's prompts: {remedy}.")
        for name in ("eos_token_id", "pad_token_id", "bos_token_id"):
            if getattr(settings, name) is None:
                setattr(settings, name, getattr(config, name))
        eos = [] if settings.eos_token_id is None else settings.eos_token_id
        eos = [eos] if isinstance(eos, Integral) else as_sequence(eos, "eos_token_id", "ids")
        limits = [("eos_token_id", one, -1) for one in eos]  # -1: no token ends a text
        limits += [(name, getattr(settings, name), 0) for name in ("pad_token_id", "bos_token_id")]
        for name, token_id, low in limits:
            check_integer(name, token_id, low, config.vocab_size - 1)
        settings.eos_token_id = eos
        self.eos_token_ids: list[int] = eos
        self.pad_token_id: int = settings.pad_token_id
        self.per_beam: int = max(2, 1 + len(eos))  # candidates, so that one remains if the others end
        check_settings(settings, max(1, config.vocab_size // self.per_beam))
        ids, is_token, length = read_prompts(model, settings)
        has_embeds = settings.inputs_embeds is not None
        self.model: XLMRobertaXLForCausalLM = model
        self.sequences: Tensor = ids[:, :0] if settings.input_ids is None and has_embeds else ids
        self.num_given: int = self.sequences.shape[1]
        self.is_token: Tensor = is_token  # b t, of the prompts
        self.mask: Tensor | None = None if bool(is_token.all()) else is_token.long()  # b k
        self.encoder_hidden_states: Tensor | None = settings.encoder_hidden_states
        self.encoder_mask: Tensor | None = settings.encoder_attention_mask
        self.use_cache: bool = settings.use_cache or has_embeds  # new tokens have ids only
        self.num_wanted: int = count_new_tokens(settings.max_new_tokens, settings.max_length, ids.shape[1])
        self.max_steps: int = config.max_seq_len - length + 1  # the last new token is never read
        self.num_steps: int = min(self.num_wanted, self.max_steps)
        check_integer("min_new_tokens", settings.min_new_tokens, 0, self.num_wanted)
        wanted = [name.removeprefix("output_") for name in OUTPUTS if getattr(settings, name)]
        self.outputs: dict[str, list[Any]] = {name: [] for name in wanted}
        self.cache: Cache | None = None
        self.has_training_modules: bool = any(module.training for module in model.modules())  # asked once: it is slow

    def steps(self) -> Iterator[int]:
        """0, 1, …, for as many new tokens as are wanted and possible, with a warning if these are fewer."""
        yield from tqdm(range(self.num_steps), unit="token", disable=not self.settings.progress, delay=2)
        if self.num_wanted > self.max_steps:
            end = f"after {self.max_steps} of {self.num_wanted} new tokens"
            room = f"this model has positions for {self.model.config.max_seq_len} tokens"
            warnings.warn(f"the text stops {end}: {room}.", stacklevel=2)

    def next_logits(self) -> Tensor:  # b v
        """Logits of the next token, in float32. Reads the tokens that have not been read yet."""
        model, is_first = self.model, self.cache is None
        prompt: dict[str, Any] = {}
        if is_first and self.settings.inputs_embeds is not None:  # forward cannot tell padding among embeddings
            positions = model.backbone.embeddings.make_position_ids(self.is_token)
            prompt = {"inputs_embeds": self.settings.inputs_embeds, "position_ids": positions}
        ids = None if prompt else self.sequences if is_first else self.sequences[:, -1:]
        is_training = self.has_training_modules or model.training
        with eval_mode(model) if is_training else torch.inference_mode():
            out = model.backbone(
                ids, self.mask, encoder_hidden_states=self.encoder_hidden_states if is_first else None,
                encoder_attention_mask=self.encoder_mask, past_key_values=self.cache, use_cache=self.use_cache,
                output_attentions=self.settings.output_attentions,
                output_hidden_states=self.settings.output_hidden_states, **prompt,
            )  # fmt: skip
            self.cache = out.past_key_values
            if prompt and self.cache is not None:
                self.cache.num_valid_tokens = self.is_token.sum(-1, keepdim=True)
            logits = model.lm_head(out.last_hidden_state[:, -1]).float()
        self.keep(logits=logits, attentions=out.attentions, hidden_states=out.hidden_states)
        return logits

    def keep(self, **values: Any) -> None:
        """Keep what is to be returned, if it was asked for."""
        for name in values.keys() & self.outputs.keys():
            self.outputs[name].append(values[name])

    def process(self, scores: Tensor) -> Tensor:  # b v -> b v
        """A copy of the scores of the next token, after the logits processors, in transformers' order."""
        ids, scores, penalty, shape = self.sequences, scores.clone(), self.settings.repetition_penalty, scores.shape
        if penalty != 1:
            seen = scores.gather(1, ids)
            scores.scatter_(1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))
        if ids.shape[1] < self.num_given + self.settings.min_new_tokens:
            scores[:, [token_id for token_id in self.eos_token_ids if token_id >= 0]] = -torch.inf
        for processor in self.settings.logits_processor:
            scores = processor(ids, scores)
        if not isinstance(scores, Tensor) or scores.shape != shape:
            raise ValueError(f"logits_processor returns {shown(scores)}, but must return scores of {tuple(shape)}.")
        best = scores.amax(-1)  # NaN, where any score is
        if not bool((best < torch.inf).all()) or (self.settings.do_sample and bool((best == -torch.inf).any())):
            remedy = "check repetition_penalty and logits_processor, or run the model in float32"
            raise ValueError(f"the scores of a token hold NaN or infinity, or only -infinity to sample from: {remedy}.")
        return scores

    def append(self, tokens: Tensor) -> None:  # b
        self.sequences = torch.cat([self.sequences, tokens.unsqueeze(1)], dim=1)
        if self.mask is not None:
            self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)

    def reorder(self, rows: Tensor) -> None:  # b
        """Continue these rows, in this order, each possibly several times."""
        for name in ("sequences", "mask", "encoder_hidden_states", "encoder_mask"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value[rows.to(value.device)])
        if self.cache is not None:
            self.cache.reorder(rows)


def count_new_tokens(max_new_tokens: int | None, max_length: int | None, prompt: int) -> int:
    """How many tokens may follow those of the prompt; None for both limits: 20."""
    if max_new_tokens is not None:
        if max_length is not None:
            warnings.warn(f"max_length={max_length} does nothing beside max_new_tokens={max_new_tokens}.", stacklevel=2)
        check_integer("max_new_tokens", max_new_tokens)
        return max_new_tokens
    if max_length is None:
        return 20
    check_integer("max_length", max_length, prompt + 1)
    return max_length - prompt


def read_prompts(model: XLMRobertaXLForCausalLM, settings: SimpleNamespace) -> tuple[Tensor, Tensor, int]:
    """The prompts' ids and which of them are not padding, `b t` each, and the positions that the longest one takes.

    Raises ValueError for prompts that are empty, too long, or padded on the right.
    """
    config, ids, embeds, mask = model.config, settings.input_ids, settings.inputs_embeds, settings.attention_mask
    pad, states = settings.pad_token_id, settings.encoder_hidden_states
    for name in ("input_ids", "inputs_embeds", "attention_mask", "encoder_hidden_states", "encoder_attention_mask"):
        if getattr(settings, name) is not None:
            check_tensor(name, getattr(settings, name))
    if ids is None:
        shape = (1 if states is None else len(states), 1) if embeds is None else embeds.shape[:2]
        ids = torch.full(shape, settings.bos_token_id, device=model.device)
    shape = tuple(ids.shape)
    if embeds is not None and (embeds.dim() != 3 or embeds.shape[:2] != shape):
        raise ValueError(f"inputs_embeds have shape {tuple(embeds.shape)}: pass `b t e`, of the tokens of input_ids.")
    if len(shape) != 2:
        raise ValueError(f"input_ids have shape {shape}, but must be (batch, tokens).")
    # As in transformers, a padding token that ends texts is no sign of padding.
    is_token = torch.ones_like(ids, dtype=torch.bool) if pad in settings.eos_token_id else ids != pad
    if mask is not None:
        check_binary_mask("attention_mask", mask)
        is_token = mask.to(ids.device) != 0
    if is_token.shape != shape:
        raise ValueError(f"attention_mask has shape {tuple(is_token.shape)}, but must be {shape}.")
    empty = (~is_token.any(-1)).nonzero()[:1, 0].tolist() if ids.numel() else [0]
    if empty:
        remedy = f"begin with at least one token, such as <s> ({config.bos_token_id})"
        raise ValueError(f"the prompt in row {empty} is empty: {remedy}.")
    gaps = (is_token[:, :-1] & ~is_token[:, 1:]).any(-1).nonzero()[:1, 0].tolist()
    if gaps:
        raise ValueError(f'row {gaps} has padding after its text: tokenize with padding_side="left".')
    # Absolute positions count tokens, relative ones all columns.
    counted = is_token if embeds is not None else ids != config.pad_token_id
    length = int(counted.sum(-1).max()) if config.position_embedding_type == "absolute" else shape[1]
    if length > config.max_seq_len:
        room = f"this model has room for {config.max_seq_len}: give fewer"
        raise ValueError(f"the prompt has {length} tokens, but {room}.")
    return ids, is_token, length
