"""xlmrxl_min: understand XLM-RoBERTa-XL by one file and a course of notebooks, then load it for real."""

from .base import PreTrainedModel as XLMRobertaXLPreTrainedModel
from .checkpoints import CheckpointError
from .inference.predict import answer, choose, classify, embed, fill_mask, tag
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
    "XLMRobertaXLPreTrainedModel",
    "answer",
    "choose",
    "classify",
    "embed",
    "fill_mask",
    "tag",
]
