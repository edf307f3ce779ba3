"""Parameters, FLOPs and memory of a model before it is built. Walked through in notebooks/09_precision_and_size.ipynb.

Everything is a formula of the config, with the letters of model.py. On one device, parameters, FLOPs, and the bytes of
weights, gradients, optimizer and KV cache are exact. Activations are an estimate: for models of XL's proportions within
15% of the measured peak (tests/scale/test_planner.py).
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from math import ceil
from typing import Any, NamedTuple

import torch

from ..checkpoints.int8 import DEQUANTIZE_CHUNK, TOKEN_CHUNK
from ..inputs import shown
from ..model import QUERY_BLOCK_SIZE, XLMRobertaXLConfig

ITEMSIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
MODEL_HEADS = (
    "Model", "ForMaskedLM", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification", "ForMultipleChoice",
    "ForQuestionAnswering",
)  # fmt: skip
# GiB of memory, as advertised. The driver and PyTorch need some of it: see RESERVED.
GPUS = {
    "RTX 3060": 12, "T4": 16, "RTX 4090": 24, "L4": 24, "A10": 24, "V100": 32, "RTX 5090": 32, "A100 40": 40,
    "L40S": 48, "A100 80": 80, "H100": 80, "H200": 141,
}  # fmt: skip
RESERVED = 0.1  # the fraction of a GPU's memory that `fits` leaves free for what a plan does not count
MASKED = 0.15  # the fraction of the positions that have labels, and so logits, in training a masked language model


# ---- parameters


def matrices(config: XLMRobertaXLConfig, head: str) -> dict[str, list[tuple[int, int]]]:
    """The (rows, columns) of every matrix that a linear layer or the word embeddings have, by component.

    A tied matrix counts once, as word embeddings. Raises ValueError for an unknown head.
    """
    if head not in MODEL_HEADS:
        raise ValueError(f"head={shown(head)} is unknown: take one of {', '.join(MODEL_HEADS)}.")
    config.validate()
    e, f, v, layers = config.hidden_size, config.intermediate_size, config.vocab_size, config.num_hidden_layers
    lm_head = [(e, e)] if config.tie_word_embeddings else [(e, e), (v, e)]
    heads = {"Model": [], "ForMaskedLM": lm_head, "ForCausalLM": lm_head, "ForMultipleChoice": [(1, e)]}
    heads["ForSequenceClassification"] = [(e, e), (config.num_labels, e)]
    return {
        "word embeddings": [(v, e)],
        "attention": [shape for inner in attention_widths(config) for shape in [(inner, e)] * 3 + [(e, inner)]],
        "cross-attention": [(e, e)] * 4 * layers * config.add_cross_attention,
        "feed-forward": [(f, e), (e, f)] * layers,
        "pooler": [(e, e)] * (head in ("Model", "ForMultipleChoice")),
        "head": heads.get(head, [(config.num_labels, e)]),
    }


def parameters(config: XLMRobertaXLConfig, head: str = "ForMaskedLM") -> dict[str, int]:
    """The number of parameters of each component of the class `XLMRobertaXL` + head; a tied matrix counts once.

    "Model" is the one with a pooler. The position table counts even if relative positions leave it unused. Raises
    ValueError for an unknown head.
    """
    shapes, e, layers = matrices(config, head), config.hidden_size, config.num_hidden_layers
    counts = {name: sum(rows * columns + rows for rows, columns in shapes[name]) for name in shapes}
    counts["word embeddings"] -= config.vocab_size  # no bias
    if "LM" in head:  # a norm, and the bias of a tied matrix
        counts["head"] += 2 * e + config.vocab_size * config.tie_word_embeddings
    is_relative = config.position_embedding_type != "absolute"
    return {
        **counts,
        "positions": config.max_position_embeddings * e,
        "token types": config.type_vocab_size * e,
        "distance tables": (2 * config.max_position_embeddings - 1) * head_dim(config) * layers * is_relative,
        "norms": 2 * e * (layers * (2 + config.add_cross_attention) + 1),
    }


def head_dim(config: XLMRobertaXLConfig) -> int:
    return config.hidden_size // config.num_attention_heads


def attention_widths(config: XLMRobertaXLConfig) -> list[int]:
    """For each layer, the width of all its heads together: e without the pruned ones."""
    pruned = [len(set(config.pruned_heads.get(i, ()))) for i in range(config.num_hidden_layers)]
    return [config.hidden_size - n * head_dim(config) for n in pruned]


def weight_bytes(
    config: XLMRobertaXLConfig, dtype: str = "float32", head: str = "ForMaskedLM", quantize: str | None = None
) -> int:
    """The bytes of all parameters in `dtype`.

    quantize="int8": one byte per weight of the matrices of the blocks, the LM head and the word embeddings, and four
    for the float32 scale of each row; all others stay in `dtype`. Raises ValueError for anything else.
    """
    if quantize not in (None, "int8"):
        raise ValueError(f"quantize={shown(quantize)} is unknown: take int8 or None.")
    total, shapes = sum(parameters(config, head).values()), matrices(config, head)
    is_quantized = {name: quantize is not None and name != "pooler" for name in shapes}
    is_quantized["head"] &= "LM" in head
    in_int8 = [shape for name in shapes if is_quantized[name] for shape in shapes[name]]
    quantized = sum(rows * columns for rows, columns in in_int8)
    return quantized + 4 * sum(rows for rows, _ in in_int8) + (total - quantized) * itemsize(dtype)


def itemsize(dtype: str | torch.dtype) -> int:
    name = str(dtype).removeprefix("torch.")
    if name not in ITEMSIZES:
        raise ValueError(f"dtype={shown(name)} is unknown: take {', '.join(ITEMSIZES)}.")
    return ITEMSIZES[name]


# ---- FLOPs


def flops(config: XLMRobertaXLConfig, batch: int = 1, tokens: int = 512, head: str = "ForMaskedLM") -> dict[str, int]:
    """Floating-point operations of one forward pass by component: a multiplication and an addition per matmul product.

    Norms, activations and softmax are left out, as matmuls are nearly all of the work. A causal mask saves nothing
    here, though a kernel may skip masked products. Cross-attention is to as many tokens; multiple choice counts a text
    for every choice.
    """
    check_shape(config, batch, tokens)
    b, t, e, width = batch, tokens, config.hidden_size, sum(attention_widths(config))
    weights = {name: sum(rows * columns for rows, columns in x) for name, x in matrices(config, head).items()}
    if "LM" in head and config.tie_word_embeddings:
        weights["head"] += config.vocab_size * e
    cross_width = config.num_hidden_layers * e * config.add_cross_attention
    blocks = [min(QUERY_BLOCK_SIZE, t - start) for start in range(0, t, QUERY_BLOCK_SIZE)]
    distances = 0  # relative_scores: a block of n queries is multiplied by all n + t - 1 distances that they need
    if config.position_embedding_type != "absolute":
        distances = sum(n * (n + t - 1) for n in blocks)
    if config.position_embedding_type == "relative_key_query":  # and blocks of keys by those to a block of queries
        distances += sum(m * (m + n - 1) for n in blocks for m in blocks)
    is_per_token = "LM" in head or head in ("ForTokenClassification", "ForQuestionAnswering")
    return {
        "attention": 2 * b * t * weights["attention"],
        "scores and mixing": 4 * b * t * t * (width + cross_width),
        "distances": 2 * b * distances * width,
        "cross-attention": 2 * b * t * weights["cross-attention"],
        "feed-forward": 2 * b * t * weights["feed-forward"],
        "pooler": 2 * b * weights["pooler"],
        "head": 2 * b * (t if is_per_token else 1) * weights["head"],
    }


def check_shape(config: XLMRobertaXLConfig, batch: int, tokens: int) -> None:
    if batch < 1 or tokens < 1:
        raise ValueError(f"a batch of {batch} texts of {tokens} tokens is impossible: take 1 or more.")
    if tokens > config.max_seq_len:
        raise ValueError(f"{tokens} tokens are too many: this model has room for {config.max_seq_len}.")


# ---- memory


class Plan(NamedTuple):
    """The memory that a model needs on one rank, in bytes; made by `plan`."""

    parameters: dict[str, int]  # numbers by component, of the whole model
    weights: int
    gradients: int  # of all weights, after the backward pass
    optimizer: int
    cache: int  # keys and values of a decoder
    activations: int  # the peak of everything else, on one device; in training, when the backward pass starts
    logits: int  # those of the activations that are logits
    gathered: int  # on several ranks: unsharded for a moment. FSDP: three blocks and what is in none
    total: int  # peak memory


def plan(
    config: XLMRobertaXLConfig, *, head: str = "ForMaskedLM", dtype: str = "float32", quantize: str | None = None,
    batch: int = 1, tokens: int = 512, train: bool = False, tensor: int = 1, data: int = 1,
) -> Plan:  # fmt: skip
    """The memory for a batch of `batch` texts of `tokens` tokens, with weights and arithmetic in `dtype`.

    train: a step of AdamW. Memory peaks either when the backward pass starts (all activations) or in AdamW's step (all
    gradients, and on a GPU a temporary tensor for each weight). AdamW has two float32 numbers per weight, and with
    half-precision weights a third, a float32 copy: 16 bytes per parameter either way. (`fit` by autocast has float32
    weights: plan as float32.)

    tensor, data: ranks along the two dimensions of the mesh (see `init_mesh`); the batch is that of one rank along
    "data". The parameters of a rank are exact if everything is divisible. Its activations are counted as those of one
    device, and gradients and activations as if they peaked together, so the total errs on the high side.

    Not counted: fragmentation, workspaces of kernels, the GPU's context, ids and masks. Assumed: kernels that never
    store the attention weights; on a CPU in training that takes attention_probs_dropout_prob=0 and absolute positions.
    The KV cache is that of these tokens; in generating its memory doubles when it is full. Raises ValueError for
    impossible settings.
    """
    if train and quantize is not None:
        raise ValueError("int8 weights cannot be trained: leave out either quantize or train.")
    check_shape(config, batch, tokens)
    check_ranks(config, tensor, data, quantize)
    counts, size, is_lm = parameters(config, head), itemsize(dtype), "LM" in head
    in_blocks, outside = tensor_shard(config, head, tensor)
    local = ceil((in_blocks + outside) / data)
    weights = weight_bytes(config, dtype, head, quantize) if quantize else local * size
    words = config.vocab_size * config.hidden_size

    positions = batch * (tokens - 1 if train else tokens)  # of an LM head
    if train and head == "ForMaskedLM":
        positions = round(MASKED * batch * tokens)
    outputs = {"Model": 0, "ForSequenceClassification": batch * config.num_labels, "ForMultipleChoice": batch}
    labels = positions * config.vocab_size if is_lm else outputs.get(head, batch * tokens * config.num_labels)
    logits = size * labels

    gathered = 0
    if data > 1:  # the block at work, the next one, and a copy of that; in training with their gradients
        gathered = (3 * in_blocks // config.num_hidden_layers + outside) * size * (1 + train)
    if tensor > 1 and is_lm:  # the rank's logits and those of all ranks, beside the tensor that they become
        gathered += logits // tensor + logits
    if tensor > 1 and train and not (is_lm and config.tie_word_embeddings):
        gathered += size * words  # the gradient of the word embeddings before it is sharded
    if not train:
        activations = inference_activations(config, batch, tokens, size, logits * is_lm, quantize)
        cache = cache_bytes(config, batch, tokens, size)
        total = weights + cache + gathered + activations
        return Plan(counts, weights, 0, 0, cache, activations, logits, gathered, total)
    activations = training_activations(config, batch, tokens, size, positions * is_lm)
    gradients, optimizer = local * size, local * (8 if size == 4 else 12)
    peak = max(activations, gradients + 4 * local)
    if tensor * data > 1:  # AdamW treats DTensors one after the other: the temporary tensor of the largest
        peak = gradients + max(gathered + activations, 4 * words // (tensor * data))
    return Plan(counts, weights, gradients, optimizer, 0, activations, logits, gathered, weights + optimizer + peak)


def inference_activations(
    config: XLMRobertaXLConfig, b: int, t: int, size: int, logits: int, quantize: str | None
) -> int:
    """The estimated peak of a forward pass without gradients; `logits`: the bytes of an LM head's, or 0."""
    e, f, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    hidden, wide, bias = b * t * e * size, b * t * f * size, b * heads * min(t, QUERY_BLOCK_SIZE) * t * size
    attention = {  # of b t e: the residual stream, its norm, query, key, value and context
        "absolute": 8 * hidden,
        "relative_key": 5 * hidden + 4 * bias,  # the bias of a block of queries, its copies, the products before skew
        "relative_key_query": 5 * hidden + 5 * bias,
    }[config.position_embedding_type]
    feed_forward = 3 * hidden + 2 * wide  # before and after the activation function
    # int8: dequantized weights, and their products times the scales; or a chunk of products in int32 and in float32
    dequantized = size * min(DEQUANTIZE_CHUNK, e * f) if quantize else 0
    products = max(logits, 8 * min(TOKEN_CHUNK, b * t) * logits // (size * b * t)) if quantize else 0
    return max(attention + dequantized, feed_forward + dequantized, 2 * hidden + logits + products)


def training_activations(config: XLMRobertaXLConfig, b: int, t: int, size: int, positions: int) -> int:
    """The estimated peak when the backward pass starts; `positions`: those with logits of an LM head."""
    e, f, v, heads = config.hidden_size, config.intermediate_size, config.vocab_size, config.num_attention_heads
    hidden, wide = b * t * e * size, b * t * f * size
    layer = 9 * hidden + 2 * wide + 7 * hidden * config.add_cross_attention  # what autograd keeps
    if config.position_embedding_type != "absolute":  # attention weights, and scaled copies for each block of queries
        copies = 3 if config.position_embedding_type == "relative_key_query" else 2
        layer += b * heads * t * t * size + copies * ceil(t / QUERY_BLOCK_SIZE) * hidden
    # of the LM head: float32 log-probabilities, their gradient and the logits', or the gradient of its matrix
    head = 4 * positions * e * size + max(3 * 4 * positions * v, size * v * e * (positions > 0))
    return config.num_hidden_layers * layer + 3 * hidden + head


def cache_bytes(config: XLMRobertaXLConfig, b: int, t: int, size: int) -> int:
    """Keys and values of all layers; LayerCache.write allocates 64 positions at least, and one more than needed."""
    if not (config.is_decoder and config.use_cache):
        return 0
    cross_width = config.num_hidden_layers * config.hidden_size * config.add_cross_attention
    return 2 * b * max(t + 1, 64) * size * (sum(attention_widths(config)) + cross_width)


# ---- several ranks


def check_ranks(config: XLMRobertaXLConfig, tensor: int, data: int = 1, quantize: str | None = None) -> None:
    """Raise ValueError if a model cannot be sharded over `tensor` by `data` ranks."""
    if tensor < 1 or data < 1:
        raise ValueError(f"{min(tensor, data)} ranks are impossible: take 1 or more.")
    if quantize is not None and tensor * data > 1:
        raise ValueError("int8 weights are not sharded: leave out quantize, or take one rank.")
    for i, width in enumerate(attention_widths(config)):
        heads = width // head_dim(config)
        if heads % tensor > 0:
            layer = f" (in layer {i}, after pruning)" if heads < config.num_attention_heads else ""
            raise ValueError(f"{heads} heads{layer} cannot be sharded over {tensor} ranks: take a divisor.")
    if config.intermediate_size % tensor > 0:
        width = config.intermediate_size
        raise ValueError(f"intermediate_size={width} cannot be sharded over {tensor} ranks: take a divisor.")


def tensor_shard(config: XLMRobertaXLConfig, head: str, tensor: int) -> tuple[int, int]:
    """The parameters per rank after tensor parallelism: of all blocks, and outside them."""
    counts, e, layers = parameters(config, head), config.hidden_size, config.num_hidden_layers
    replicated_biases = e * layers * (2 + config.add_cross_attention)  # of each block's matrices sharded by rows
    replicated = replicated_biases + counts["norms"] - 2 * e + counts["distance tables"]
    in_blocks = counts["attention"] + counts["cross-attention"] + counts["feed-forward"] - replicated_biases
    vocabulary = counts["word embeddings"]
    if "LM" in head:  # the decoder's bias, and its matrix if it has one of its own
        vocabulary += config.vocab_size * (1 if config.tie_word_embeddings else e + 1)
    outside = sum(counts.values()) - in_blocks - replicated - vocabulary
    return in_blocks // tensor + replicated, ceil(vocabulary / tensor) + outside


# ---- GPUs


def fits(plan: Plan) -> list[str]:
    """The names of those GPUS whose memory, without the fraction RESERVED, holds the plan's total."""
    return [name for name, gib in GPUS.items() if plan.total <= gib * 2**30 * (1 - RESERVED)]


def format_plan(plan: Plan) -> str:
    """The plan as a table: parameters by component, memory in GB (10⁹ bytes), and the GPUs that have enough."""
    rows = [(name, f"{count:,}") for name, count in plan.parameters.items() if count]
    rows += [("parameters", f"{sum(plan.parameters.values()):,}"), ("", "")]
    labels = {"activations": "activations (peak)", "logits": "  of these, logits", "total": "peak memory"}
    names = ("weights", "activations", "logits", "cache", "gradients", "optimizer", "total")
    rows += [(labels.get(name, name), gigabytes(n)) for name in names if (n := getattr(plan, name)) or name == "total"]
    lines = [f"{name:<30}{value:>16}".rstrip() for name, value in rows]
    fitting = fits(plan)
    for label, gpus in (("fits", fitting), ("does not fit", [name for name in GPUS if name not in fitting])):
        listed = ", ".join(f"{name} ({GPUS[name]})" for name in gpus) or "none of our list"
        lines += [
            "",
            *textwrap.wrap(f"{label}, with {RESERVED:.0%} reserved, into: {listed}", 96, subsequent_indent="  "),
        ]
    return "\n".join(lines)


def gigabytes(n: int) -> str:
    return f"{n / 1e9:,.2f} GB" if n >= 1e7 else f"{n / 1e6:,.2f} MB"


def format_rank_plans(config: XLMRobertaXLConfig, counts: Iterable[int], **settings: Any) -> str:
    """A line for each number of ranks and each dimension: GB (10⁹ bytes) per rank, and the smallest GPU for it.

    settings: those of `plan`.
    """
    columns = ("weights", "gradients", "optimizer", "gathered", "activations", "total")
    lines = ["GB per rank", "ranks  along " + "".join(f"{name:>13}" for name in columns) + "  smallest GPU"]
    for count in counts:
        for dimension, (tensor, data) in {"tensor": (count, 1), "data": (1, count)}.items():
            planned = plan(config, tensor=tensor, data=data, **settings)
            fitting = fits(planned)
            row = "".join(f"{getattr(planned, name) / 1e9:>13.2f}" for name in columns)
            gpu = f"{fitting[0]} ({GPUS[fitting[0]]})" if fitting else "none of our list"
            lines.append(f"{count:>5}  {dimension:<6}{row}  {gpu}")
    note = "Ranks along data have a batch each; those along tensor share one, and may need less for activations."
    return "\n".join([*lines, "", note])
