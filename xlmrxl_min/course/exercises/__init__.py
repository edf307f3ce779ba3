"""The exercises, in a file for each notebook that has some: solutions, the cases they are tried on, misconceptions.

    from xlmrxl_min.course.exercises import check_entropy
    print(check_entropy(my_entropy))

The notebooks show the same solutions; a test compares them.
"""

from ..checks import Guess, compare, guess
from .attention import check_attention
from .decoder import check_accept, check_beam_search
from .full_size import check_row, check_split_qkv
from .heads import check_choice, check_classifier, check_labels, check_lora, check_span, check_span_loss
from .many_gpus import (
    check_attention_on_rank,
    check_by_columns,
    check_by_rows,
    check_collectives,
    check_feed_forward_on_rank,
    check_fsdp_peak,
    check_ring_bytes,
)
from .masked_language_model import check_mask_tokens
from .positions import check_distances
from .precision_and_size import (
    check_count,
    check_flops,
    check_int8,
    check_linear,
    check_peak,
    check_smooth,
)
from .seeing_attention import check_entropy, check_rollout
from .spot_the_bug import (
    check_a,
    check_b,
    check_c,
    check_d,
    check_e,
    check_f,
    check_g,
    check_h,
    check_i,
    check_j,
    check_k,
    check_l,
)
from .start_here import check_complete, check_most_attended
from .tokens_and_embeddings import check_fewest

__all__ = [
    "Guess",
    "check_a",
    "check_accept",
    "check_attention",
    "check_attention_on_rank",
    "check_b",
    "check_beam_search",
    "check_by_columns",
    "check_by_rows",
    "check_c",
    "check_choice",
    "check_classifier",
    "check_collectives",
    "check_complete",
    "check_count",
    "check_d",
    "check_distances",
    "check_e",
    "check_entropy",
    "check_f",
    "check_feed_forward_on_rank",
    "check_fewest",
    "check_flops",
    "check_fsdp_peak",
    "check_g",
    "check_h",
    "check_i",
    "check_int8",
    "check_j",
    "check_k",
    "check_l",
    "check_labels",
    "check_linear",
    "check_lora",
    "check_mask_tokens",
    "check_most_attended",
    "check_peak",
    "check_ring_bytes",
    "check_rollout",
    "check_row",
    "check_smooth",
    "check_span",
    "check_span_loss",
    "check_split_qkv",
    "compare",
    "guess",
]
