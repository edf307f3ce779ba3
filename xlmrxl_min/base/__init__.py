"""What surrounds the model: config behaviour, output, KV cache, input checks, loading and saving, generation.

The mathematics is in model.py; of it, only how the terms of a loss are weighted and added up is here, in loss.py.
"""

from . import input_checks
from .cache import Cache, LayerCache
from .config import PreTrainedConfig
from .generation_mixin import GenerationMixin
from .output import ModelOutput
from .pretrained_model import PreTrainedModel

__all__ = [
    "Cache", "GenerationMixin", "LayerCache", "ModelOutput", "PreTrainedConfig", "PreTrainedModel", "input_checks",
]  # fmt: skip
