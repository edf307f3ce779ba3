"""Text generation with a decoder. Walked through in notebooks/08_decoder.ipynb.

    model.generate(input_ids, …)    whole sequences: greedy decoding, sampling, beam search
    model.stream(input_ids, …)      the same as an iterator, one token of every sequence at a time; no beam search

Names and, for greedy decoding and beam search, tokens are those of transformers 4.56.2, except that absolute positions
never count padding, with a cache too. Prompts of different lengths are padded on the left.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor
from tqdm import tqdm

from ..base.input_checks import check_binary_mask, check_tensor
from ..inputs import check_integer, check_number, check_option, check_type, shown
from ..model import Cache, XLMRobertaXLForCausalLM
from ..utils import eval_mode

MIN_TEMPERATURE = 1e-6  # float32 logits divided by less may be infinite
MAX_LENGTH_PENALTY = 50  # a length to a higher power may be more than a float holds


class Beam(NamedTuple):
    tokens: tuple[int, ...]  # the new ones
    score: (
        float  # the sum of their log-probabilities; of a finished sequence, divided by their number ** length_penalty
    )


class Beams(NamedTuple):
    """The beams of one prompt, best first: unfinished and finished ones."""

    running: list[Beam]
    finished: list[Beam]


def generate(
    model: XLMRobertaXLForCausalLM, input_ids: Tensor, attention_mask: Tensor | None, *, do_sample: bool,
    temperature: float, top_k: int | None, top_p: float, generator: torch.Generator | None, num_beams: int,
    length_penalty: float, num_return_sequences: int, progress: bool, **shared: Any,
) -> Tensor:  # b t -> b t  # fmt: skip
    """The work of GenerationMixin.generate. shared: what `stream` and `beam_search` both take."""
    check_integer("num_beams", num_beams)
    check_number("length_penalty", length_penalty, -MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY)
    if num_beams == 1:
        if length_penalty != 1:
            raise ValueError("length_penalty is for beam search: ask for num_beams above 1 with it.")
        tokens = stream(
            model, input_ids, attention_mask, do_sample=do_sample, temperature=temperature, top_k=top_k, top_p=top_p,
            generator=generator, num_return_sequences=num_return_sequences, progress=progress, **shared,
        )  # fmt: skip
        new = torch.stack(list(tokens), dim=1)
    else:
        if do_sample or temperature != 1 or top_k is not None or top_p != 1 or generator is not None:
            remedy = "leave out either num_beams or do_sample, temperature, top_k, top_p and generator"
            raise ValueError(f"beam search takes the most probable sequences and does not sample: {remedy}.")
        check_integer("num_return_sequences", num_return_sequences, 1, num_beams)
        steps = beam_search(
            model, input_ids, attention_mask, num_beams=num_beams, length_penalty=length_penalty, **shared
        )
        for step in tqdm(steps, total=shared["max_new_tokens"], unit="token", disable=not progress, delay=2):
            best = [beam.tokens for beams in step for beam in beams.finished[:num_return_sequences]]
        longest = max(map(len, best))
        rows = [[*tokens, *[model.config.pad_token_id] * (longest - len(tokens))] for tokens in best]
        new = torch.tensor(rows, device=input_ids.device)
    return torch.cat([repeat(input_ids, "b t -> (b c) t", c=num_return_sequences), new], dim=1)


def stream(
    model: XLMRobertaXLForCausalLM, input_ids: Tensor, attention_mask: Tensor | None, *, max_new_tokens: int,
    do_sample: bool, temperature: float, top_k: int | None, top_p: float, generator: torch.Generator | None,
    num_return_sequences: int, eos_token_id: int | None, use_cache: bool, encoder_hidden_states: Tensor | None,
    encoder_attention_mask: Tensor | None, progress: bool,
) -> Iterator[Tensor]:  # fmt: skip
    """The work of GenerationMixin.stream; settings are checked before the first token is asked for."""
    check_integer("max_new_tokens", max_new_tokens)
    check_integer("num_return_sequences", num_return_sequences)
    validate_sampling(do_sample, generator, num_return_sequences, temperature, top_k, top_p)
    state = GenerationState(
        model, input_ids, attention_mask, encoder_hidden_states, encoder_attention_mask, use_cache, eos_token_id
    )

    def next_tokens(logits: Tensor) -> Tensor:  # b v -> b
        if not do_sample:
            return logits.argmax(-1)
        return torch.multinomial(sampling_probs(logits, temperature, top_k, top_p), 1, generator=generator)[:, 0]

    def steps() -> Iterator[Tensor]:
        rows = repeat(torch.arange(len(input_ids)), "b -> (b c)", c=num_return_sequences).to(input_ids.device)
        is_finished = torch.zeros(len(rows), dtype=torch.bool, device=input_ids.device)
        for _ in tqdm(state.steps(max_new_tokens), total=max_new_tokens, unit="token", disable=not progress, delay=2):
            logits = state.next_logits()
            if len(logits) < len(rows):  # each prompt was read once, however many sequences continue it
                logits = logits[rows]
                state.reorder(rows)
            tokens = next_tokens(logits).masked_fill(is_finished, model.config.pad_token_id)
            yield tokens
            is_finished |= tokens == state.eos_token_id
            if is_finished.all():
                return
            state.append(tokens)

    return steps()


def beam_search(
    model: XLMRobertaXLForCausalLM, input_ids: Tensor, attention_mask: Tensor | None = None, *, num_beams: int,
    length_penalty: float = 1.0, max_new_tokens: int = 20, eos_token_id: int | None = None, use_cache: bool = True,
    encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None,
) -> Iterator[list[Beams]]:  # fmt: skip
    """Yield the beams of every prompt after each new token. Settings as in `generate`.

    input_ids `b t`. Each step continues the `num_beams` most probable unfinished sequences. A candidate that ends is
    kept if it is among the best `num_beams`; after the last step all of these count as finished. As with transformers'
    early_stopping=False, a prompt is done when it has `num_beams` finished sequences and the current score of the best
    unfinished one is not above the worst of them. Raises ValueError as `generate` does.
    """
    check_integer("num_beams", num_beams, 1, model.config.vocab_size // 2)
    check_number("length_penalty", length_penalty, -MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY)
    check_integer("max_new_tokens", max_new_tokens)
    state = GenerationState(
        model, input_ids, attention_mask, encoder_hidden_states, encoder_attention_mask, use_cache, eos_token_id
    )

    def steps() -> Iterator[list[Beams]]:
        prompts = [Beams([Beam((), 0.0)], []) for _ in range(len(input_ids))]
        is_done = [False] * len(prompts)
        for step in state.steps(max_new_tokens):
            is_last = step == min(max_new_tokens, state.max_steps) - 1
            candidates = best_candidates(state.next_logits(), [beams.running for beams in prompts], 2 * num_beams)
            width, parents = len(prompts[0].running), []
            for i, found in enumerate(candidates):
                running: list[Beam] = []
                finished = list(prompts[i].finished)
                for rank, (parent, beam) in enumerate(found):
                    length = len(beam.tokens)
                    if is_last or beam.tokens[-1] == state.eos_token_id:
                        if rank < num_beams and not is_done[i]:
                            finished.append(Beam(beam.tokens, beam.score / length**length_penalty))
                    elif len(running) < num_beams:
                        running.append(beam)
                        parents.append(i * width + parent)
                finished = sorted(finished, key=lambda beam: beam.score, reverse=True)[:num_beams]
                prompts[i] = Beams(running, finished)
                if len(finished) == num_beams and not is_last:
                    is_done[i] |= running[0].score / length**length_penalty <= finished[-1].score
            yield list(prompts)
            if is_last and any(beam.tokens[-1] != state.eos_token_id for beams in prompts for beam in beams.finished):
                continue  # to the end of state.steps, which warns if the positions were used up
            if is_last or all(is_done):
                return
            state.reorder(torch.tensor(parents, device=input_ids.device))
            last = [beam.tokens[-1] for beams in prompts for beam in beams.running]
            state.append(torch.tensor(last, device=input_ids.device))

    return steps()


def best_candidates(logits: Tensor, running: Sequence[Sequence[Beam]], count: int) -> list[list[tuple[int, Beam]]]:
    """The `count` best continuations of every prompt's beams, best first, each with the index of its parent beam.

    logits `(b c) v`, of c beams for each of b prompts.
    """
    scores = torch.tensor([[beam.score for beam in beams] for beams in running], device=logits.device)
    totals = rearrange(logits.log_softmax(-1), "(b c) v -> b c v", b=len(running)) + rearrange(scores, "b c -> b c 1")
    best = rearrange(totals, "b c v -> b (c v)").topk(count)
    found = []
    for beams, values, indices in zip(running, best.values.tolist(), best.indices.tolist(), strict=True):
        pairs = [divmod(index, logits.shape[-1]) for index in indices]
        extended = (
            (parent, Beam((*beams[parent].tokens, token), score))
            for (parent, token), score in zip(pairs, values, strict=True)
        )
        found.append(list(extended))
    return found


# … v -> … v
def sampling_probs(logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0) -> Tensor:
    """The probabilities `… v` to sample from, after three logits processors in this order; each default is off.

    temperature divides the logits: below 1 probable tokens gain, above 1 improbable ones. top_k keeps the most probable
    tokens, with ties of the last one (Fan et al. 2018). top_p keeps the fewest most probable tokens whose probabilities
    sum to at least this much (nucleus sampling, Holtzman et al. 2020). The result sums to 1.
    """
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[..., -1:], -torch.inf)
    probabilities = logits.softmax(-1)
    if top_p < 1:
        ordered, indices = probabilities.sort(descending=True)
        is_outside = ordered.cumsum(-1) - ordered >= top_p  # the more probable ones are enough without it
        is_outside[..., 0] = False  # however small top_p is
        is_outside = torch.zeros_like(is_outside).scatter(-1, indices, is_outside)
        probabilities = logits.masked_fill(is_outside, -torch.inf).softmax(-1)
    return probabilities


def validate_sampling(
    do_sample: bool, generator: torch.Generator | None, num_return_sequences: int, temperature: float,
    top_k: int | None, top_p: float,
) -> None:  # fmt: skip
    """Raise ValueError, in one sentence, for settings that are impossible or would have no effect."""
    check_option("do_sample", do_sample, (False, True))
    if not (isinstance(temperature, Real) and MIN_TEMPERATURE <= temperature <= 1 / MIN_TEMPERATURE):
        allowed = f"from {MIN_TEMPERATURE} to {1 / MIN_TEMPERATURE:.0f}"
        remedy = f"take a number {allowed}; for the most probable token, leave out do_sample"
        raise ValueError(f"temperature={shown(temperature)} is impossible: {remedy}.")
    check_number("top_p", top_p, 0, 1, above=True)
    if top_k is not None:
        check_integer("top_k", top_k)
    allowed = "None, or a torch.Generator, such as torch.Generator().manual_seed(0)"
    check_type("generator", generator, torch.Generator | None, allowed)
    if do_sample:
        return
    for name, value, default in (("temperature", temperature, 1), ("top_k", top_k, None), ("top_p", top_p, 1)):
        if value != default:
            raise ValueError(f"{name}={value} is for sampling: add do_sample=True.")
    if generator is not None:
        raise ValueError("a generator is for sampling: add do_sample=True.")
    if num_return_sequences > 1:
        raise ValueError(f"all {num_return_sequences} sequences would be the same: add do_sample=True, or num_beams.")


class GenerationState:
    """A batch of sequences that are being generated: the tokens to read next, the mask, and the KV cache.

    max_steps: how many new tokens the model has positions for.
    """

    def __init__(
        self, model: XLMRobertaXLForCausalLM, input_ids: Tensor, attention_mask: Tensor | None,
        encoder_hidden_states: Tensor | None, encoder_attention_mask: Tensor | None, use_cache: bool,
        eos_token_id: int | None = None,
    ) -> None:  # fmt: skip
        config = model.config
        eos_token_id = config.eos_token_id if eos_token_id is None else eos_token_id
        if not config.is_decoder:
            raise ValueError("this model is an encoder, and sees what it is to predict: build it with is_decoder=True.")
        check_option("use_cache", use_cache, (False, True))
        check_integer("eos_token_id", eos_token_id, -1, config.vocab_size - 1)  # -1: no token ends a text
        if encoder_attention_mask is not None:
            check_tensor("encoder_attention_mask", encoder_attention_mask)
            if encoder_attention_mask.dim() != 2:
                needed = "(batch, tokens of the encoder): all new tokens share it"
                raise ValueError(f"encoder_attention_mask must be {needed}.")
        length, mask = check_prompts(model, input_ids, attention_mask)
        self.model: XLMRobertaXLForCausalLM = model
        self.next_input_ids: Tensor = input_ids
        self.mask: Tensor | None = mask  # b k
        self.encoder_hidden_states: Tensor | None = encoder_hidden_states
        self.encoder_mask: Tensor | None = None
        if encoder_attention_mask is not None:
            self.encoder_mask = encoder_attention_mask.to(input_ids.device)
        self.use_cache: bool = use_cache
        self.eos_token_id: int = eos_token_id
        self.max_steps: int = config.max_seq_len - length + 1  # the last new token is never read
        self.cache: Cache | None = None
        self.has_training_modules: bool = any(module.training for module in model.modules())  # asked once: it is slow

    def steps(self, wanted: int) -> Iterator[int]:
        """0, 1, …, for as many new tokens as are wanted and possible, with a warning if these are fewer."""
        yield from range(min(wanted, self.max_steps))
        if wanted > self.max_steps:
            end = f"after {self.max_steps} of {wanted} new tokens"
            room = f"this model has positions for {self.model.config.max_seq_len} tokens"
            warnings.warn(f"the text stops {end}: {room}.", stacklevel=2)

    def next_logits(self) -> Tensor:  # b v
        """Logits of the next token, in float32. Reads the tokens that have not been read yet."""
        model = self.model
        states = self.encoder_hidden_states if self.cache is None else None  # the cache holds what is needed of them
        is_training = self.has_training_modules or model.training
        with eval_mode(model) if is_training else torch.inference_mode():
            out = model.backbone(
                self.next_input_ids, self.mask, encoder_hidden_states=states, encoder_attention_mask=self.encoder_mask,
                past_key_values=self.cache, use_cache=self.use_cache, output_attentions=False,
                output_hidden_states=False,
            )  # fmt: skip
            self.cache = out.past_key_values
            return model.lm_head(out.last_hidden_state[:, -1]).float()

    def append(self, tokens: Tensor) -> None:  # b
        last = tokens.unsqueeze(1)
        self.next_input_ids = last if self.cache is not None else torch.cat([self.next_input_ids, last], dim=1)
        if self.mask is not None:
            self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)

    def reorder(self, rows: Tensor) -> None:  # b
        """Continue these rows, in this order, each possibly several times."""
        self.next_input_ids = self.next_input_ids[rows]
        for name in ("mask", "encoder_hidden_states", "encoder_mask"):
            if getattr(self, name) is not None:
                setattr(self, name, getattr(self, name)[rows])
        if self.cache is not None:
            self.cache.reorder(rows)


def check_prompts(
    model: XLMRobertaXLForCausalLM, input_ids: Tensor, attention_mask: Tensor | None
) -> tuple[int, Tensor | None]:
    """Return the positions that the longest prompt takes, and the mask `b t`, None if there is no padding.

    Raises ValueError for prompts that are empty, too long, or padded on the right.
    """
    config = model.config
    check_tensor("input_ids", input_ids)
    shape = tuple(input_ids.shape)
    if len(shape) != 2:
        raise ValueError(f"input_ids have shape {shape}, but must be (batch, tokens).")
    has_id = is_token = input_ids != config.pad_token_id
    if attention_mask is not None:
        check_tensor("attention_mask", attention_mask)
        check_binary_mask("attention_mask", attention_mask)
        is_token = attention_mask.to(input_ids.device) != 0
    if is_token.shape != shape:
        raise ValueError(f"attention_mask has shape {tuple(is_token.shape)}, but must be {shape}.")
    empty = (~is_token.any(-1)).nonzero()[:1, 0].tolist() if shape[1] else [0]
    if len(is_token) == 0 or empty:
        remedy = f"begin with at least one token, such as <s> ({config.bos_token_id})"
        raise ValueError(f"the prompt in row {empty} is empty: {remedy}.")
    gaps = (is_token[:, :-1] & ~is_token[:, 1:]).any(-1).nonzero()[:1, 0].tolist()
    if gaps:
        raise ValueError(f'row {gaps} has padding after its text: tokenize with padding_side="left".')
    # Absolute positions count tokens, relative ones all columns.
    length = int(has_id.sum(-1).max()) if config.position_embedding_type == "absolute" else shape[1]
    if length > config.max_seq_len:
        room = f"this model has room for {config.max_seq_len}: give fewer"
        raise ValueError(f"the prompt has {length} tokens, but {room}.")
    return length, None if bool(is_token.all()) else is_token.long()
