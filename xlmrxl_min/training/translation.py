"""How `tiny-translator` is used; how it is trained is in decoders.py. See notebooks/08_decoder.ipynb."""

from __future__ import annotations

from typing import Any

import torch

from ..inference.predict import check_model_type, check_tokenizer
from ..inputs import check_text
from ..model import PreTrainedModel, XLMRobertaXLForCausalLM, XLMRobertaXLModel
from ..tokenizer import XLMRobertaTokenizer
from ..utils import eval_mode


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
    with eval_mode(encoder):
        states = encoder(torch.tensor([tokenizer.encode(text)], device=encoder.device)).last_hidden_state
    prompt = torch.tensor([language_prompt(tokenizer, language)], device=model.device)
    out = model.generate(prompt, encoder_hidden_states=states, **{"max_new_tokens": 200, **options})
    return tokenizer.decode(out[0, prompt.shape[1] :].tolist(), skip_special_tokens=True)
