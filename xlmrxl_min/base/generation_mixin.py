"""`generate` and `stream` as methods, and what clients of transformers need; inference/generation.py does the work."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, wraps
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from .cache import Cache

if TYPE_CHECKING:
    from ..model import XLMRobertaXLConfig

Method = TypeVar("Method", bound=Callable[..., Any])


def takes_generation_config(generate: Method) -> Method:
    """Fill in the settings that a generation config has and the call has not; refuse those that are not offered."""

    @wraps(generate)
    def call(self: GenerationMixin, *args: Any, **given: Any) -> Any:
        from ..inference.generation import complete

        return generate(self, *args, **complete(self, "generate", (), given))  # type: ignore[arg-type]

    return call  # type: ignore[return-value]


class GenerationMixin:
    """Text generation, for XLMRobertaXLForCausalLM; the work is done in inference/generation.py."""

    if TYPE_CHECKING:
        config: XLMRobertaXLConfig

    @takes_generation_config
    def generate(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, *,
        inputs_embeds: Tensor | None = None, max_new_tokens: int | None = None, max_length: int | None = None,
        min_new_tokens: int = 0, do_sample: bool = False, temperature: float = 1.0, top_k: int | None = None,
        top_p: float = 1.0, generator: torch.Generator | None = None, num_beams: int = 1, length_penalty: float = 1.0,
        num_return_sequences: int = 1, repetition_penalty: float = 1.0,
        logits_processor: Sequence[Callable[[Tensor, Tensor], Tensor]] = (),
        stopping_criteria: Sequence[Callable[[Tensor, Any], Any]] = (), eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None, bos_token_id: int | None = None, use_cache: bool = True,
        encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None,
        return_dict_in_generate: bool = False, output_scores: bool = False, output_logits: bool = False,
        output_attentions: bool = False, output_hidden_states: bool = False, streamer: Any = None,
        generation_config: Any = None, progress: bool = False,
    ) -> Any:  # fmt: skip
        """Continue prompts: input_ids `b t`, padded on the left -> the prompts and what follows them, `b t`.

        A sequence ends with an `eos_token_id` (None: the config's; -1: never), after `max_new_tokens` (None: 20), or
        with a warning where the model has no more positions; then it is padded. max_length counts the prompt, too.
        attention_mask `b t`: None finds padding by its id. inputs_embeds `b t e` are read in place of input_ids; if
        these are left out, only new tokens are returned. Without either, the prompt is `bos_token_id`.

        Greedy decoding by default. do_sample: sample with `generator` from the softmax after temperature, top_k and
        top_p (none of them by default; transformers has top_k=50). num_beams above 1: beam search. Of each prompt,
        num_return_sequences samples or best beams are returned, one after another. encoder_hidden_states `b k e`,
        encoder_attention_mask `b k`: for cross-attention. use_cache=False recomputes earlier tokens for each new one,
        with the same result.

        The scores `b v` first go through repetition_penalty, min_new_tokens, and each logits_processor(ids, scores),
        for instance one of transformers'. stopping_criteria: functions of ids `b t` and the scores so far; True `b`
        ends a sequence. streamer: its `put` gets the prompts, then each token. return_dict_in_generate: return a
        GenerateOutput, with what the output_… arguments ask for. generation_config, and the model's attribute of this
        name: settings that hold unless an argument says otherwise. Raises ValueError for settings that cannot be right
        or are not offered.
        """
        settings = {name: value for name, value in locals().items() if name != "self"}
        from ..inference.generation import generate

        return generate(self, **settings)  # type: ignore[arg-type]

    def stream(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **settings: Any
    ) -> Iterator[Tensor]:
        """The new tokens of `generate` as they come: one id per sequence, `b`, each time; padding after its end.

        `tokenizer.decode_stream` turns them into parts of a text, with their spaces, if there is one sequence. Settings
        as in `generate`, without those of beam search, which decides on its first token last, and of what is returned.
        """
        from ..inference.generation import stream

        return stream(self, input_ids=input_ids, attention_mask=attention_mask, **settings)  # type: ignore[arg-type]

    # what transformers' pipelines and Trainer, and peft, look for

    @cached_property
    def generation_config(self) -> Any:
        names = ("pad_token_id", "bos_token_id", "eos_token_id")
        return SimpleNamespace(**{name: getattr(self.config, name) for name in names})

    def _prepare_generation_config(
        self, generation_config: Any, use_model_defaults: bool = True, **settings: Any
    ) -> Any:
        """A pipeline's config with this model's settings and then `settings`, and those of them it does not know."""
        from ..inference.generation import settings_of

        prepared = copy.deepcopy(generation_config)
        prepared.update(**settings_of(self.generation_config))
        return prepared, prepared.update(**settings)

    @classmethod
    def can_generate(cls) -> bool:
        return True

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, past_key_values: Cache | None = None, attention_mask: Tensor | None = None,
        **others: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """What `forward` needs for the tokens that are not cached yet, for a client with a loop of its own."""
        new = input_ids if past_key_values is None else input_ids[:, past_key_values.get_seq_length() :]
        return {"input_ids": new, "past_key_values": past_key_values, "attention_mask": attention_mask, **others}
