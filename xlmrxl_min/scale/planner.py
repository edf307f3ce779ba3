"""Parameters, bytes and FLOPs of a model before it exists. Walked through in notebooks/09_precision_and_size.ipynb.

Everything is a formula of the config, with the letters of model.py: b batch, t token, h head, d head width, e hidden
width, f feed-forward width, v vocabulary, l layer. The tests hold the formulas to models: the parameters to every class
on the meta device, the FLOPs to PyTorch's counter, the plan to the bytes that a run really has at its fullest moment.
"""

from __future__ import annotations

import textwrap
from typing import NamedTuple

import torch

from ..checkpoints.int8 import PART
from ..model import QUERY_BLOCK_SIZE, XLMRobertaXLConfig

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
HEADS = ("Model", "ForMaskedLM", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification")
HEADS += ("ForMultipleChoice", "ForQuestionAnswering")
# GiB that the makers print on the box. Drivers and PyTorch take their share of it: see SPARE.
GPUS = {
    "RTX 3060": 12, "T4": 16, "RTX 4090": 24, "L4": 24, "A10": 24, "V100": 32, "RTX 5090": 32, "A100 40": 40,
    "L40S": 48, "A100 80": 80, "H100": 80, "H200": 141,
}  # fmt: skip
SPARE = 0.1  # the share of a GPU that `fits` leaves free, for all that a plan does not count


# ---- parameters


class Part(NamedTuple):
    """Numbers of one component: in matrices that int8 can hold, the rows of those, and what is beside them."""

    matrices: int = 0
    rows: int = 0
    rest: int = 0

    @property
    def numbers(self) -> int:
        return self.matrices + self.rest


def together(*parts: Part, times: int = 1) -> Part:
    return Part(*(times * sum(column) for column in zip(*parts, strict=True)))


def linear(columns: int, rows: int) -> Part:
    """A layer from `columns` numbers to `rows`, with its bias."""
    return Part(rows * columns, rows, rows)


def parts(config: XLMRobertaXLConfig, head: str = "ForMaskedLM") -> dict[str, Part]:
    """Every component of the class `XLMRobertaXL` + head; a tied matrix counts once. ValueError for another head."""
    if head not in HEADS:
        raise ValueError(f"head={head!r} is unknown: take one of {', '.join(HEADS)}.")
    config.validate()
    e, f, v, layers = config.hidden_size, config.intermediate_size, config.vocab_size, config.num_hidden_layers
    inner = inner_widths(config)
    norms = 2 * layers + 1 + layers * config.add_cross_attention
    distances = (2 * config.max_position_embeddings - 1) * head_dim(config) * layers
    lm = together(linear(e, e), Part(rest=2 * e), Part(rest=v) if config.tie_word_embeddings else linear(e, v))
    heads = {"ForMaskedLM": lm, "ForCausalLM": lm, "ForMultipleChoice": linear(e, 1)}
    heads["ForSequenceClassification"] = together(linear(e, e), linear(e, config.num_labels))
    heads["ForTokenClassification"] = heads["ForQuestionAnswering"] = linear(e, config.num_labels)
    return {
        "word embeddings": Part(matrices=v * e, rows=v),
        "positions": Part(rest=config.max_position_embeddings * e),
        "token types": Part(rest=config.type_vocab_size * e),
        "attention": together(*(part for i in inner for part in [linear(e, i)] * 3 + [linear(i, e)])),
        "distance tables": Part(rest=distances if config.position_embedding_type != "absolute" else 0),
        "cross-attention": together(linear(e, e), times=4 * layers * config.add_cross_attention),
        "feed-forward": together(linear(e, f), linear(f, e), times=layers),
        "norms": Part(rest=2 * e * norms),
        "pooler": linear(e, e) if head in ("Model", "ForMultipleChoice") else Part(),
        "head": heads.get(head, Part()),
    }


def parameters(config: XLMRobertaXLConfig, head: str = "ForMaskedLM") -> dict[str, int]:
    """How many parameters each component of the class `XLMRobertaXL` + head has; "Model" is the one with a pooler.

    A position table counts even where relative positions leave it unused, as it is there. ValueError for other heads.
    """
    return {name: part.numbers for name, part in parts(config, head).items()}


def head_dim(config: XLMRobertaXLConfig) -> int:
    return config.hidden_size // config.num_attention_heads


def inner_widths(config: XLMRobertaXLConfig) -> list[int]:
    """Of every layer, how wide its heads are together: e, less the pruned ones."""
    gone = [len(set(config.pruned_heads.get(i, ()))) for i in range(config.num_hidden_layers)]
    return [config.hidden_size - n * head_dim(config) for n in gone]


def bytes_of_weights(
    config: XLMRobertaXLConfig, dtype: str = "float32", head: str = "ForMaskedLM", quantize: str | None = None
) -> int:
    """Bytes of all parameters in `dtype`.

    quantize="int8": the matrices of the blocks, of the LM head and of the words take a byte per number, and four more,
    a float32 scale, per row; biases, norms, positions, token types, distance tables and small heads stay in `dtype`.
    """
    size, of = itemsize(dtype), parts(config, head)
    whole, small = together(*of.values()), together(of["pooler"], Part() if "LM" in head else of["head"])
    if quantize not in (None, "int8"):
        raise ValueError(f"quantize={quantize!r} is unknown: take int8 or None.")
    in_int8 = whole.matrices - small.matrices if quantize else 0
    scales = 4 * (whole.rows - small.rows) if quantize else 0
    return in_int8 + scales + (whole.numbers - in_int8) * size


def itemsize(dtype: str | torch.dtype) -> int:
    name = str(dtype).removeprefix("torch.")
    if name not in BYTES:
        raise ValueError(f"dtype={name!r} is unknown: take {', '.join(BYTES)}.")
    return BYTES[name]


# ---- FLOPs


def flops(config: XLMRobertaXLConfig, batch: int = 1, tokens: int = 512, head: str = "ForMaskedLM") -> dict[str, int]:
    """Floating-point operations of one forward pass, by component: two, multiply and add, for each product of a matmul.

    Norms, activations, softmax and additions are left out; the matmuls are the work. A causal mask saves nothing here,
    though a kernel may skip what it hides. Cross-attention looks at as many tokens; multiple choice counts a text for
    every choice.
    """
    check_shape(config, batch, tokens)
    of, b, t, e = parts(config, head), batch, tokens, config.hidden_size
    inner = sum(inner_widths(config))
    pairs = {"absolute": 0, "relative_key": 1, "relative_key_query": 2}[config.position_embedding_type]
    blocks = [min(QUERY_BLOCK_SIZE, t - start) for start in range(0, t, QUERY_BLOCK_SIZE)]
    # relative_scores multiplies a block of rows by every distance that one of them needs: those to t columns, and rows - 1
    seen = sum(rows * (rows + t - 1) for rows in blocks) if pairs else 0
    if pairs == 2:  # a block of queries seen from the keys, those in blocks of their own
        seen += sum(keys * (keys + rows - 1) for rows in blocks for keys in blocks)
    across = config.num_hidden_layers * e if config.add_cross_attention else 0
    every_token = head in ("ForMaskedLM", "ForCausalLM", "ForTokenClassification", "ForQuestionAnswering")
    lm_words = config.vocab_size * e if config.tie_word_embeddings and "LM" in head else 0  # Part counts these as words
    return {
        "attention": 2 * b * t * of["attention"].matrices,
        "scores and mixing": 4 * b * t * t * (inner + across),
        "distances": 2 * b * seen * inner,
        "cross-attention": 2 * b * t * of["cross-attention"].matrices,
        "feed-forward": 2 * b * t * of["feed-forward"].matrices,
        "pooler": 2 * b * of["pooler"].matrices,
        "head": 2 * b * (t if every_token else 1) * (of["head"].matrices + lm_words),
    }


def check_shape(config: XLMRobertaXLConfig, batch: int, tokens: int) -> None:
    room = config.max_seq_len
    if batch < 1 or tokens < 1:
        raise ValueError(f"a batch of {batch} texts of {tokens} tokens is impossible: take 1 or more.")
    if tokens > room:
        raise ValueError(f"{tokens} tokens are too many: this model has room for {room}.")


# ---- the plan


class Plan(NamedTuple):
    """Bytes that a model needs, and when; made by `plan`."""

    parameters: dict[str, int]  # numbers, by component
    weights: int
    activations: int  # all else that a forward pass, or in training the turn to the backward pass, holds at its fullest
    logits: int  # the part of the activations that is logits, at the moment when they are made
    cache: int  # keys and values of a decoder
    gradients: int  # of all weights, after the backward pass
    optimizer: int
    total: int  # at the fullest moment


def plan(
    config: XLMRobertaXLConfig,
    *,
    head: str = "ForMaskedLM",
    dtype: str = "float32",
    quantize: str | None = None,
    batch: int = 1,
    tokens: int = 512,
    train: bool = False,
    masked_fraction: float = 0.15,
    decode: int = 0,
) -> Plan:
    """What a batch of `batch` texts of `tokens` tokens needs, in bytes, with weights and arithmetic in `dtype`.

    A forward pass without gradients (train=False) is fullest in a block, with the stream and its own wide vectors, or
    where the LM head makes the logits of all places. With quantize="int8", a part of
    a matrix is also there in `dtype` while it is used. A decoder keeps keys and values of the tokens and of `decode`
    more, in memory that doubles when it is full; with cross-attention also those of an encoder's text, taken to be as
    long.

    Training (`train.fit`) is fullest either where the forward pass turns back, all activations kept and the LM head's
    gradient made, or in AdamW's step, all gradients there and the optimizer's roots for a moment, on a GPU of all
    weights at once (foreach). So the total is no sum: the gradients grow while the activations shrink. With several
    batches per step (accumulate) it is one, as the gradients stay. Of a masked language model `masked_fraction` of the
    places have a label and so logits. AdamW has two float32 numbers per weight. With half-precision weights a third is
    counted, the float32 weights that small steps are added to; 16 bytes per parameter either way. (`fit` by autocast
    has float32 weights: plan it as float32.)

    Not counted: what the allocator holds in vain, kernels' workspaces, the GPU's own context, ids and masks. Taken for
    granted: kernels that never hold the attention weights. On a CPU in training that needs
    attention_probs_dropout_prob=0, and absolute positions. ValueError for impossible settings.
    """
    if not 0 < masked_fraction <= 1:
        raise ValueError(f"masked_fraction={masked_fraction} is impossible: take a share above 0, up to 1.")
    if decode < 0 or (decode > 0 and not config.is_decoder):
        raise ValueError(f"decode={decode} is impossible: only decoders can.")
    if train and quantize is not None:
        raise ValueError("int8 weights cannot be trained: leave out either quantize or train.")
    if train and decode > 0:
        raise ValueError("training does not decode: leave out either decode or train.")
    check_shape(config, batch, tokens + decode)
    size, b, t, weights = itemsize(dtype), batch, tokens, bytes_of_weights(config, dtype, head, quantize)
    counts, labels = parameters(config, head), config.num_labels
    places = b * t if not train else round(masked_fraction * b * t) if head == "ForMaskedLM" else b * (t - 1)
    sizes = {"ForMaskedLM": places * config.vocab_size, "ForCausalLM": places * config.vocab_size, "Model": 0}
    sizes |= {"ForSequenceClassification": b * labels, "ForMultipleChoice": b}
    logits = size * sizes.get(head, b * t * labels)
    is_lm = "LM" in head
    if not train:
        cache = cache_bytes(config, b, t, decode, size)
        activations = forward_bytes(config, b, t, size, logits if is_lm else 0, quantize)
        return Plan(counts, weights, activations, logits, cache, 0, 0, weights + cache + activations)
    numbers = sum(counts.values())
    gradients, optimizer = numbers * size, numbers * (8 if size == 4 else 12)
    activations = turning_bytes(config, b, t, size, places if is_lm else 0)
    # the optimizer's roots; or what embeddings and LM head find for one matrix, and their sum
    fullest = max(activations, gradients + max(4 * numbers, 2 * size * config.vocab_size * config.hidden_size * is_lm))
    return Plan(counts, weights, activations, logits, 0, gradients, optimizer, weights + optimizer + fullest)


def forward_bytes(config: XLMRobertaXLConfig, b: int, t: int, size: int, logits: int, quantize: str | None) -> int:
    """The most that a forward pass without gradients holds beside weights and cache; `logits`: of an LM head, or 0."""
    e, f = config.hidden_size, config.intermediate_size
    stream, wide = b * t * e * size, b * t * f * size

    def widened(numbers: int) -> int:  # of an int8 matrix a part at a time, freed after its product
        return size * min(numbers, PART) if quantize else 0

    attention = 7 * stream + widened(e * e)  # norm, query, key, value, mixed, out, the new stream
    remembers = config.is_decoder and config.use_cache  # then keys and values are in the cache, and nowhere else
    attention = max(attention, (2 if remembers else 4) * stream + bias_bytes(config, b, t, size))
    feed_forward = stream + max(2 * wide, stream + wide + widened(e * f))  # the new stream; before and after the bend
    block = stream + max(attention, feed_forward)
    scaled = max(logits, widened(e * config.vocab_size)) if quantize else 0
    return max(block, 2 * stream + logits + scaled if logits else 0)


def bias_bytes(config: XLMRobertaXLConfig, b: int, t: int, size: int) -> int:
    """The most that `Attention.fused` holds of what is added to the scores, with the skewed products it comes from."""
    rows, heads, is_decoder = min(t, QUERY_BLOCK_SIZE), config.num_attention_heads, config.is_decoder
    if config.position_embedding_type == "absolute":  # which keys come before, in truths and in numbers, for all texts
        return t * t * (2 + 2 * size) * is_decoder
    bias, table = b * heads * rows * t * size, (2 * config.max_position_embeddings - 1) * head_dim(config) * size
    masked = (bias + rows * t * (1 + 2 * size)) * is_decoder
    held = t * t * is_decoder + bias * (1 + (t > rows))  # this block's, and the last one's if there was one
    if config.position_embedding_type == "relative_key":
        return held + max(masked, table + b * heads * rows * (rows + t - 1) * size)
    blocks = [min(QUERY_BLOCK_SIZE, t - start) for start in range(0, t, QUERY_BLOCK_SIZE)]
    from_keys = sum(keys * (keys + rows - 1) for keys in blocks) * b * heads * size
    return held + max(masked, 2 * table + bias + from_keys)


def turning_bytes(config: XLMRobertaXLConfig, b: int, t: int, size: int, places: int) -> int:
    """The most that training holds beside weights and optimizer before the blocks' gradients come.

    places: how many of them go through an LM head; 0 for other heads.
    """
    e, f, v, layers = config.hidden_size, config.intermediate_size, config.vocab_size, config.num_hidden_layers
    stream, wide, heads = b * t * e * size, b * t * f * size, config.num_attention_heads
    masks = stream * (config.hidden_dropout_prob > 0)  # dropout keeps what it has drawn; on a GPU as bytes
    attention = 6 * stream + masks + 4 * b * heads * t  # norm, query, key, value, mixed, sum; a float32 sum per row
    layer = attention * (1 + config.add_cross_attention) + 2 * stream + 2 * wide
    relative = config.position_embedding_type != "absolute"
    if relative:  # what PyTorch keeps where no fused kernel has a gradient for the bias
        copies = -(-t // QUERY_BLOCK_SIZE) * (3 if config.position_embedding_type == "relative_key_query" else 2)
        layer += b * heads * t * t * size + copies * stream
    layer += t * t * size * config.is_decoder
    kept = 2 * stream + masks + layers * layer  # the first stream, the last norm
    matrix = v * e * size if places else 0  # its gradient, before the blocks have any
    # log-probabilities, their gradient, the logits' gradient; then the matrix's; then a block's wide vectors again
    moments = [3 * 4 * places * v, places * v * size + matrix, matrix + wide + 2 * stream + e * f * size]
    if relative:  # the last layer's bias, which is made before what follows it in that layer
        later = 2 * wide + 4 * stream + b * heads * min(t, QUERY_BLOCK_SIZE) * t * size
        moments.append(bias_bytes(config, b, t, size) - later)
    return kept + 4 * places * e * size + max(moments)


def cache_bytes(config: XLMRobertaXLConfig, b: int, t: int, decode: int, size: int) -> int:
    """Keys and values of all layers in memory that `LayerCache` has doubled until tokens and `decode` more fit."""
    if not (config.is_decoder and config.use_cache):
        return 0
    room = max(t + 1, 64)  # one place stays free (LayerCache.append)
    while room <= t + decode:
        room *= 2
    own, across = sum(inner_widths(config)), config.num_hidden_layers * config.hidden_size * config.add_cross_attention
    return 2 * b * size * (room * own + max(t + 1, 64) * across)


# ---- what there is


def fits(plan: Plan) -> list[str]:
    """Names of the GPUs of `GPUS` whose memory, less a tenth (`SPARE`), holds the plan's total."""
    return [name for name, gib in GPUS.items() if plan.total <= gib * 2**30 * (1 - SPARE)]


def report(plan: Plan) -> str:
    """The plan as a table: numbers by component, bytes in GB (10⁹), and the GPUs that it fits into."""
    rows = [(name, f"{count:,}") for name, count in plan.parameters.items() if count]
    rows += [("parameters", f"{sum(plan.parameters.values()):,}"), None]
    names = ("weights", "activations", "logits", "cache", "gradients", "optimizer", "total")
    said = {"activations": "activations at their fullest", "logits": "  logits among them", "total": "fullest moment"}
    rows += [(said.get(name, name), gigabytes(n)) for name in names if (n := getattr(plan, name)) or name == "total"]
    lines = ["" if row is None else f"{row[0]:<30}{row[1]:>16}" for row in rows]
    fitting = fits(plan)
    for words, names in (("fits", fitting), ("does not fit", [name for name in GPUS if name not in fitting])):
        gpus = ", ".join(f"{name} ({GPUS[name]})" for name in names) or "none of our list"
        lines += ["", *textwrap.wrap(f"{words}, with a tenth to spare, into: {gpus}", 96, subsequent_indent="  ")]
    return "\n".join(lines)


def gigabytes(n: int) -> str:
    return f"{n / 1e9:,.2f} GB" if n >= 1e7 else f"{n / 1e6:,.2f} MB"
