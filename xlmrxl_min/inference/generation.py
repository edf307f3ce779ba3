"""Text by a decoder, one token after another. Walked through in notebooks/08_decoder.ipynb.

    model.generate(input_ids, …)    whole texts: greedily, by drawing, or by beam search
    model.stream(input_ids, …)      the same as an iterator, one token of every text at a time; not for beams

Names and, for greedy and beam search, tokens are those of transformers 4.56.2, but that with a cache, too, positions
count no padding. Prompts of different lengths are padded on the left, so that each goes on where it ends.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor
from tqdm import tqdm

from ..base import check_binary_mask, check_tensor
from ..model import Cache, XLMRobertaXLForCausalLM
from ..utils import check_size, eval_mode


class Beam(NamedTuple):
    tokens: tuple[int, ...]  # the new ones
    score: float  # the sum of their log-probabilities; of a finished text, divided by their number ** length_penalty


class Beams(NamedTuple):
    """Of one prompt, best first: texts that go on, and texts that have ended."""

    running: list[Beam]
    finished: list[Beam]


def generate(
    model: XLMRobertaXLForCausalLM,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int = 20,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    num_return_sequences: int = 1,
    eos_token_id: int | None = None,
    use_cache: bool = True,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    progress: bool = False,
) -> Tensor:  # b t -> b t
    """Continue prompts: input_ids `b t`, padded on the left -> the prompts and what follows them, `b t`.

    A text ends with `eos_token_id` (None: the config's; -1: it never does), after `max_new_tokens`, or with a warning
    where the model has no more positions; padding fills it up. attention_mask `b t`: None finds padding by its id.

    Every token is the most probable one; with do_sample, it is drawn by `generator` from `sampling_probs(…, temperature,
    top_k, top_p)`, which cuts off nothing unless told to (transformers has top_k=50). num_beams above 1: beam search,
    see `beams`. num_return_sequences: so many texts for each prompt, one after another: drawn, or the best beams.
    encoder_hidden_states `b k e`, encoder_attention_mask `b k`: for cross-attention. use_cache=False computes earlier
    tokens again for each new one, to the same end. ValueError for what cannot be right.
    """
    check_size("num_beams", num_beams)
    across = {"encoder_hidden_states": encoder_hidden_states, "encoder_attention_mask": encoder_attention_mask}
    shared = {"max_new_tokens": max_new_tokens, "eos_token_id": eos_token_id, "use_cache": use_cache, **across}
    if num_beams == 1:
        if length_penalty != 1:
            raise ValueError("length_penalty is for beam search: ask for num_beams above 1 with it.")
        drawing = {"do_sample": do_sample, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        drawing |= {"generator": generator, "num_return_sequences": num_return_sequences, "progress": progress}
        new = torch.stack(list(stream(model, input_ids, attention_mask, **drawing, **shared)), dim=1)
    else:
        drawn = do_sample or temperature != 1 or top_k is not None or top_p != 1 or generator is not None
        cure = "leave out either num_beams or do_sample, temperature, top_k, top_p and generator"
        if drawn:
            raise ValueError(f"beam search takes the most probable texts and draws none: {cure}.")
        check_size("num_return_sequences", num_return_sequences, num_beams)
        steps = beams(model, input_ids, attention_mask, num_beams=num_beams, length_penalty=length_penalty, **shared)
        for step in tqdm(steps, total=max_new_tokens, unit="token", disable=not progress, delay=2):
            best = [beam.tokens for text in step for beam in text.finished[:num_return_sequences]]
        longest = max(map(len, best))
        rows = [[*tokens, *[model.config.pad_token_id] * (longest - len(tokens))] for tokens in best]
        new = torch.tensor(rows, device=input_ids.device)
    return torch.cat([repeat(input_ids, "b t -> (b c) t", c=num_return_sequences), new], dim=1)


def stream(
    model: XLMRobertaXLForCausalLM,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int = 20,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    num_return_sequences: int = 1,
    eos_token_id: int | None = None,
    use_cache: bool = True,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    progress: bool = False,
) -> Iterator[Tensor]:
    """What `generate` without beams writes, as it comes: one id per text, `b`, each time; padding after a text's end.

    Beam search cannot be streamed: it settles on its first token last.
    """
    check_size("max_new_tokens", max_new_tokens)
    check_size("num_return_sequences", num_return_sequences)
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    validate_sampling(do_sample, generator, num_return_sequences, **settings)
    across = encoder_hidden_states, encoder_attention_mask
    texts = Texts(model, input_ids, attention_mask, *across, use_cache, eos_token_id)

    def next_tokens(logits: Tensor) -> Tensor:  # b v -> b
        if not do_sample:
            return logits.argmax(-1)
        return torch.multinomial(sampling_probs(logits, **settings), 1, generator=generator)[:, 0]

    def steps() -> Iterator[Tensor]:
        rows = repeat(torch.arange(len(input_ids)), "b -> (b c)", c=num_return_sequences).to(input_ids.device)
        ended = torch.zeros(len(rows), dtype=torch.bool, device=input_ids.device)
        for _ in tqdm(texts.turns(max_new_tokens), total=max_new_tokens, unit="token", disable=not progress, delay=2):
            logits = texts.next_logits()
            if len(logits) < len(rows):  # each prompt was read once, however many texts go on from it
                logits = logits[rows]
                texts.select(rows)
            tokens = next_tokens(logits).masked_fill(ended, model.config.pad_token_id)
            yield tokens
            ended |= tokens == texts.ending
            if ended.all():
                return
            texts.append(tokens)

    return steps()


def beams(
    model: XLMRobertaXLForCausalLM,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    num_beams: int,
    length_penalty: float = 1.0,
    max_new_tokens: int = 20,
    eos_token_id: int | None = None,
    use_cache: bool = True,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
) -> Iterator[list[Beams]]:
    """Beam search, one new token at a time: after each, where the beams of every prompt stand. Options as `generate`'s.

    The `num_beams` most probable unfinished texts go on. Of the candidates for that, one that ends is kept if it is
    among the first `num_beams`; after the last step, all these count as ended. A prompt is done when it has
    `num_beams` finished texts and the best one that goes on scores no more than the worst of them, as it is now.
    """
    check_size("num_beams", num_beams, model.config.vocab_size // 2)
    check_size("max_new_tokens", max_new_tokens)
    across = encoder_hidden_states, encoder_attention_mask
    texts = Texts(model, input_ids, attention_mask, *across, use_cache, eos_token_id)

    def steps() -> Iterator[list[Beams]]:
        state = [Beams([Beam((), 0.0)], []) for _ in range(len(input_ids))]
        done = [False] * len(state)
        for turn in texts.turns(max_new_tokens):
            is_last = turn == min(max_new_tokens, texts.room) - 1
            candidates = best_candidates(texts.next_logits(), [text.running for text in state], 2 * num_beams)
            width, parents = len(state[0].running), []
            for i, found in enumerate(candidates):
                running, finished = [], list(state[i].finished)
                for rank, (parent, beam) in enumerate(found):
                    length = len(beam.tokens)
                    if is_last or beam.tokens[-1] == texts.ending:
                        if rank < num_beams and not done[i]:
                            finished.append(Beam(beam.tokens, beam.score / length**length_penalty))
                    elif len(running) < num_beams:
                        running.append(beam)
                        parents.append(i * width + parent)
                finished = sorted(finished, key=lambda beam: beam.score, reverse=True)[:num_beams]
                state[i] = Beams(running, finished)
                if len(finished) == num_beams and not is_last:
                    done[i] |= running[0].score / length**length_penalty <= finished[-1].score
            yield list(state)
            if is_last and any(beam.tokens[-1] != texts.ending for text in state for beam in text.finished):
                continue  # to the end of turns, which warns where it was the positions that ended
            if is_last or all(done):
                return
            texts.select(torch.tensor(parents, device=input_ids.device))
            last = [beam.tokens[-1] for text in state for beam in text.running]
            texts.append(torch.tensor(last, device=input_ids.device))

    return steps()


def best_candidates(logits: Tensor, running: Sequence[Sequence[Beam]], count: int) -> list[list[tuple[int, Beam]]]:
    """The `count` best continuations of every prompt's beams, best first, each with the number of the one it continues.

    logits `(b c) v`, of c beams for each of b prompts.
    """
    scores = torch.tensor([[beam.score for beam in text] for text in running], device=logits.device)
    totals = rearrange(logits.log_softmax(-1), "(b c) v -> b c v", b=len(running)) + rearrange(scores, "b c -> b c 1")
    best = rearrange(totals, "b c v -> b (c v)").topk(count)
    found = []
    for text, values, places in zip(running, best.values.tolist(), best.indices.tolist(), strict=True):
        pairs = [divmod(place, logits.shape[-1]) for place in places]
        found.append(
            [
                (parent, Beam((*text[parent].tokens, token), score))
                for (parent, token), score in zip(pairs, values, strict=True)
            ]
        )
    return found


# … v -> … v
def sampling_probs(logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0) -> Tensor:
    """The probabilities that tokens are drawn by, after three changes, in this order, each undone by its default.

    temperature divides the logits: below 1 the probable tokens gain, above 1 the others. top_k: only so many, the most
    probable ones, are left, with any that equal the last of them (Fan et al. 2018). top_p: only the most probable ones
    that make up this share, at least one (nucleus sampling, Holtzman et al. 2020). What is left sums to 1 again.
    """
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[..., -1:], -torch.inf)
    probabilities = logits.softmax(-1)
    if top_p < 1:
        ordered, places = probabilities.sort(descending=True)
        is_beyond = ordered.cumsum(-1) - ordered >= top_p  # the more probable ones are enough without it
        is_beyond = torch.zeros_like(is_beyond).scatter(-1, places, is_beyond)
        probabilities = logits.masked_fill(is_beyond, -torch.inf).softmax(-1)
    return probabilities


def validate_sampling(
    do_sample: bool, generator, copies: int, temperature: float, top_k: int | None, top_p: float
) -> None:
    """Raise ValueError, in one sentence, for settings that are impossible, or that nothing would come of."""
    for name, value, unused in (("temperature", temperature, 1), ("top_k", top_k, None), ("top_p", top_p, 1)):
        if value != unused and not do_sample:
            raise ValueError(f"{name}={value!r} is for drawing tokens: add do_sample=True.")
    if generator is not None and not do_sample:
        raise ValueError("a generator is for drawing tokens: add do_sample=True.")
    if copies > 1 and not do_sample:
        raise ValueError(f"all {copies} texts would be the same: add do_sample=True, or num_beams.")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature!r} is impossible: take a number above 0.")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p!r} is impossible: take a share above 0, up to 1.")
    if top_k is not None:
        check_size("top_k", top_k)


class Texts:
    """A batch of texts that are being written: what there is of them, and what the model remembers of it."""

    def __init__(
        self, model: XLMRobertaXLForCausalLM, input_ids: Tensor, attention_mask: Tensor | None,
        encoder_hidden_states: Tensor | None, encoder_attention_mask: Tensor | None, use_cache: bool,
        eos_token_id: int | None = None,
    ) -> None:  # fmt: skip
        config, cure = model.config, "build it with is_decoder=True"
        ending = config.eos_token_id if eos_token_id is None else eos_token_id
        if not config.is_decoder:
            raise ValueError(f"this model is an encoder, and sees what it is to predict: {cure}.")
        check_tensor("input_ids", input_ids)
        self.device = input_ids.device
        shape = tuple(input_ids.shape)
        if len(shape) != 2:
            raise ValueError(f"input_ids have shape {shape}, but must be (batch, tokens).")
        has_id = input_ids != config.pad_token_id
        is_token = has_id if attention_mask is None else self.truths(attention_mask)
        if is_token.shape != shape:
            raise ValueError(f"attention_mask has shape {tuple(is_token.shape)}, but must be {shape}.")
        empty = (~is_token.any(-1)).nonzero()[:1, 0].tolist() if shape[1] else [0]
        start = f"begin with at least one token, such as <s> ({config.bos_token_id})"
        if len(is_token) == 0 or bool(empty):
            raise ValueError(f"the prompt in row {empty} is empty: {start}.")
        gaps = (is_token[:, :-1] & ~is_token[:, 1:]).any(-1).nonzero()[:1, 0].tolist()
        if bool(gaps):
            raise ValueError(f'row {gaps} has padding after its text: tokenize with padding_side="left".')
        # Absolute positions count tokens, distances all places.
        longest = int(has_id.sum(-1).max()) if config.position_embedding_type == "absolute" else shape[1]
        most, cure = config.max_seq_len, "give fewer"
        if longest > most:
            raise ValueError(f"the prompt has {longest} tokens, but this model has room for {most}: {cure}.")
        self.room = most - longest + 1  # new tokens; the last one is never read
        is_flat = encoder_attention_mask is None or encoder_attention_mask.dim() == 2
        if not is_flat:
            raise ValueError("encoder_attention_mask must be (batch, tokens of the encoder): all new tokens share it.")
        self.states_mask = None if encoder_attention_mask is None else encoder_attention_mask.to(self.device)
        if not isinstance(ending, Integral):
            raise ValueError(f"eos_token_id={ending!r} is impossible: take one id, or -1.")
        self.model, self.unread, self.use_cache = model, input_ids, use_cache
        self.mask = None if bool(is_token.all()) else is_token.long()  # b k
        self.states, self.ending = encoder_hidden_states, ending
        self.cache: Cache | None = None

    def truths(self, mask: Tensor) -> Tensor:
        check_tensor("attention_mask", mask)
        check_binary_mask("attention_mask", mask)
        return mask.to(self.device) != 0

    def turns(self, wanted: int) -> Iterator[int]:
        """0, 1, …, for as many new tokens as are wanted and possible, with a warning if these are fewer."""
        yield from range(min(wanted, self.room))
        if wanted > self.room:
            most = self.model.config.max_seq_len
            stop = (
                f"the text stops after {self.room} of {wanted} new tokens: this model has positions for {most} tokens."
            )
            warnings.warn(stop, stacklevel=2)

    def next_logits(self) -> Tensor:  # (b) v
        """Scores of what comes next, float32. Reads what has not been read yet, and of that only the last place."""
        model, states = self.model, self.states if self.cache is None else None  # the cache holds what it needs
        with eval_mode(model):
            out = model.backbone(
                self.unread, self.mask, encoder_hidden_states=states, encoder_attention_mask=self.states_mask,
                past_key_values=self.cache, use_cache=self.use_cache,
                output_attentions=False, output_hidden_states=False,
            )  # fmt: skip
            self.cache = out.past_key_values
            return model.lm_head(out.last_hidden_state[:, -1]).float()

    def append(self, tokens: Tensor) -> None:  # b
        last = tokens.unsqueeze(1)
        self.unread = torch.cat([self.unread, last], dim=1) if self.cache is None else last
        if self.mask is not None:
            self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)

    def select(self, rows: Tensor) -> None:  # b
        """Go on with these rows, in this order; one may be there several times, and goes on in several ways."""
        self.unread = self.unread[rows]
        self.mask, self.states, self.states_mask = (
            None if x is None else x[rows] for x in (self.mask, self.states, self.states_mask)
        )
        if self.cache is not None:
            self.cache.reorder(rows)
