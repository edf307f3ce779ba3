"""`generate` and `stream` as methods; inference/generation.py does the work."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


class GenerationMixin:
    """Text generation, for XLMRobertaXLForCausalLM; the work is done in inference/generation.py."""

    def generate(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, max_new_tokens: int = 20,
        do_sample: bool = False, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0,
        generator: torch.Generator | None = None, num_beams: int = 1, length_penalty: float = 1.0,
        num_return_sequences: int = 1, eos_token_id: int | None = None, use_cache: bool = True,
        encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None,
        progress: bool = False,
    ) -> Tensor:  # fmt: skip
        """Continue prompts: input_ids `b t`, padded on the left -> the prompts and what follows them, `b t`.

        A sequence ends with `eos_token_id` (None: the config's; -1: never), after `max_new_tokens`, or with a warning
        where the model has no more positions; then it is padded. attention_mask `b t`: None finds padding by its id.

        Greedy decoding by default. do_sample: sample with `generator` from the softmax after temperature, top_k and
        top_p (none of them by default; transformers has top_k=50). num_beams above 1: beam search. Of each prompt,
        num_return_sequences samples or best beams are returned, one after another. encoder_hidden_states `b k e`,
        encoder_attention_mask `b k`: for cross-attention. use_cache=False recomputes earlier tokens for each new one,
        with the same result. Raises ValueError for settings that cannot be right.
        """
        settings = {name: value for name, value in locals().items() if name != "self"}
        from ..inference.generation import generate

        return generate(self, **settings)  # type: ignore[arg-type]

    def stream(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, max_new_tokens: int = 20,
        do_sample: bool = False, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0,
        generator: torch.Generator | None = None, num_return_sequences: int = 1, eos_token_id: int | None = None,
        use_cache: bool = True, encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None, progress: bool = False,
    ) -> Iterator[Tensor]:  # fmt: skip
        """The new tokens of `generate` as they come: one id per sequence, `b`, each time; padding after its end.

        `tokenizer.decode_stream` turns them into parts of a text, with their spaces, if there is one sequence. Not for
        beam search, which decides on its first token last.
        """
        settings = {name: value for name, value in locals().items() if name != "self"}
        from ..inference.generation import stream

        return stream(self, **settings)  # type: ignore[arg-type]
