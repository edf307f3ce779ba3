"""xlmrxl_min: understand XLM-RoBERTa-XL by one file and a course of notebooks, then load it for real."""

from . import generation  # gives XLMRobertaXLForCausalLM its generate and stream
from .checkpoint import CheckpointError
from .model import (
    Cache,
    ModelOutput,
    XLMRobertaXLConfig,
    XLMRobertaXLForCausalLM,
    XLMRobertaXLForMaskedLM,
    XLMRobertaXLForMultipleChoice,
    XLMRobertaXLForQuestionAnswering,
    XLMRobertaXLForSequenceClassification,
    XLMRobertaXLForTokenClassification,
    XLMRobertaXLModel,
)
from .predict import answer, choose, classify, embed, fill_mask, tag
from .tokenizer import XLMRobertaTokenizer

__version__ = "0.1.0"
__all__ = [
    "Cache",
    "CheckpointError",
    "ModelOutput",
    "XLMRobertaTokenizer",
    "XLMRobertaXLConfig",
    "XLMRobertaXLForCausalLM",
    "XLMRobertaXLForMaskedLM",
    "XLMRobertaXLForMultipleChoice",
    "XLMRobertaXLForQuestionAnswering",
    "XLMRobertaXLForSequenceClassification",
    "XLMRobertaXLForTokenClassification",
    "XLMRobertaXLModel",
    "answer",
    "choose",
    "classify",
    "embed",
    "fill_mask",
    "generation",
    "tag",
]
