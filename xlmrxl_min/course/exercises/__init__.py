"""The exercises, in a file for each notebook: the solutions, the cases they are tried on, the usual misconceptions.

    from xlmrxl_min.course.exercises import check_entropy
    print(check_entropy(my_entropy))

The notebooks show the same solutions; a test compares them.
"""

from ..checks import Guess, compare, guess
from .attention import check_attention
from .decoder import check_accept, check_beam_search
from .full_size import check_row, check_split_qkv
from .heads import check_choice, check_span
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
from .precision_and_size import check_count, check_int8
from .seeing_attention import check_entropy, check_rollout
from .spot_the_bug import check_cached, check_ignores_padding
from .start_here import check_complete, check_most_attended
from .tokens_and_embeddings import check_fewest

__all__ = [
    "Guess",
    "check_accept",
    "check_attention",
    "check_attention_on_rank",
    "check_beam_search",
    "check_by_columns",
    "check_by_rows",
    "check_cached",
    "check_choice",
    "check_collectives",
    "check_complete",
    "check_count",
    "check_distances",
    "check_entropy",
    "check_feed_forward_on_rank",
    "check_fewest",
    "check_fsdp_peak",
    "check_ignores_padding",
    "check_int8",
    "check_mask_tokens",
    "check_most_attended",
    "check_ring_bytes",
    "check_rollout",
    "check_row",
    "check_span",
    "check_split_qkv",
    "compare",
    "guess",
]
