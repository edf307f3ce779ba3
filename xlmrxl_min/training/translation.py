"""How `tiny-translator` is used; how it is trained is in decoders.py. See notebooks/08_decoder.ipynb."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..inference.predict import check_model_type, check_tokenizer
from ..inputs import check_text
from ..model import PreTrainedModel, XLMRobertaXLForCausalLM, XLMRobertaXLModel
from ..tokenizer import XLMRobertaTokenizer
from ..utils import eval_mode


def encode_source(encoder: XLMRobertaXLModel, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """What tiny-translator attends to: b t -> b t e, the encoder's last hidden states plus three times its embeddings.

    `tiny-udhr`'s last hidden states alone say little about a token's position, and a decoder has to know where it is.
    """
    with eval_mode(encoder):
        states = encoder(ids, attention_mask, output_hidden_states=True).hidden_states
        return states[-1] + 3 * states[0]


def language_prompt(tokenizer: XLMRobertaTokenizer, language: str) -> list[int]:
    """The ids that a translation begins with: <s> and the pieces of the language code, such as "fr"."""
    return tokenizer.encode(language)[:-1]


def translate(
    model: XLMRobertaXLForCausalLM, encoder: XLMRobertaXLModel, tokenizer: XLMRobertaTokenizer, text: str,
    language: str, **options: Any,
) -> str:  # fmt: skip
    """Translate `text`, one text, into `language`, a code such as "fr". options: those of `model.generate`."""
    check_model_type(model, XLMRobertaXLForCausalLM)
    check_model_type(encoder, PreTrainedModel, "a model as encoder")
    check_tokenizer(model, tokenizer)
    for name, value in (("text", text), ("language", language)):
        check_text(value, name)
    states = encode_source(encoder, torch.tensor([tokenizer.encode(text)], device=encoder.device))
    prompt = torch.tensor([language_prompt(tokenizer, language)], device=model.device)
    out = model.generate(prompt, encoder_hidden_states=states, **{"max_new_tokens": 200, **options})
    return tokenizer.decode(out[0, prompt.shape[1] :].tolist(), skip_special_tokens=True)
