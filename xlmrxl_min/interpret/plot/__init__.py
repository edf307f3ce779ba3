"""Figures with captions that are generated from their data. Walked through in notebooks/03_seeing_attention.ipynb."""

from .attention import (
    attention_lines,
    attention_map,
    class_map,
    cross_lingual_map,
    head_grid,
    head_metrics,
    head_scatter,
    offset_profiles,
    paired_scores,
    rollout,
    score_parts,
)
from .figure import CaptionedFigure
from .stream import effects, logit_lens, residual_norms, retrieval_curves, saliency
from .training import beam_tree, distributions, training_curves

__all__ = [
    "CaptionedFigure", "attention_lines", "attention_map", "beam_tree", "class_map", "cross_lingual_map",
    "distributions", "effects", "head_grid", "head_metrics", "head_scatter", "logit_lens",
    "offset_profiles", "paired_scores", "residual_norms", "retrieval_curves", "rollout", "saliency", "score_parts",
    "training_curves",
]  # fmt: skip
