"""Look inside a model: metrics, interventions, saliency; figures are in `plot`, the explorer page in `explore`."""

from .cross_lingual import Retrieval, mean_states, retrieval
from .hooks import each_layer, hooked
from .interventions import ablated, ablation_effects, head_means, patch_effects
from .metrics import (
    HEAD_CLASSES,
    attention_mass,
    entropy,
    head_classes,
    head_metrics,
    mean_distance,
    merge_tokens,
    offset_profile,
    rollout,
    score_parts,
    value_norms,
    value_weighted,
)
from .saliency import gradient_times_input, integrated_gradients, occlusion
from .stream import Contributions, LogitLens, contributions, logit_lens

__all__ = [
    "HEAD_CLASSES", "Contributions", "LogitLens", "Retrieval", "ablated", "ablation_effects", "attention_mass",
    "contributions", "each_layer", "entropy", "gradient_times_input", "head_classes", "head_means", "head_metrics",
    "hooked", "integrated_gradients", "logit_lens", "mean_distance", "mean_states", "merge_tokens", "occlusion",
    "offset_profile", "patch_effects", "retrieval", "rollout", "score_parts", "value_norms", "value_weighted",
]  # fmt: skip
