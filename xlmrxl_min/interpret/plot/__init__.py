"""Figures with captions that are generated from their data. Walked through in notebooks/03_seeing_attention.ipynb."""

from .attention import (
    attention_lines,
    attention_map,
    class_map,
    cross_lingual_map,
    head_grid,
    head_metrics,
    offset_profiles,
    rollout,
)
from .figure import CaptionedFigure
from .stream import effects, logit_lens, residual_norms, retrieval_curves, saliency
from .training import beam_tree, distributions, training_curves

__all__ = [
    "CaptionedFigure", "attention_lines", "attention_map", "beam_tree", "class_map", "cross_lingual_map",
    "distributions", "effects", "head_grid", "head_metrics", "logit_lens", "offset_profiles", "residual_norms",
    "retrieval_curves", "rollout", "saliency", "training_curves",
]  # fmt: skip
