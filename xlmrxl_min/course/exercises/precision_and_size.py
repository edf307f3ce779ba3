"""The steps and exercises of notebooks/09_precision_and_size.ipynb."""

import copy

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ...checkpoints.int8 import quantize_rows
from ...model import XLMRobertaXLConfig
from ..checks import copy_case, describe_shape, exercise, randn


def small_config(**changes):
    sizes = {"vocab_size": 99, "hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 40, "max_position_embeddings": 20, "type_vocab_size": 3}
    config = XLMRobertaXLConfig(**{**sizes, **changes})
    config.label = (  # type: ignore[attr-defined]  # for messages
        f"(e = {config.hidden_size}, f = {config.intermediate_size}, v = {config.vocab_size}, "
        f"layers = {config.num_hidden_layers}, positions = {config.max_position_embeddings}, "
        f"token types = {config.type_vocab_size})"
    )
    return config


CONFIGS = (small_config(), small_config(hidden_size=20, num_hidden_layers=2, vocab_size=50, num_attention_heads=4))


def off_by(one, difference):
    """A solution that counts too much or too little. difference: the arguments -> what is too much."""
    return lambda config, *others: one.solution(config, *others) + difference(config, *others)


def with_four_e(one):
    """A solution that takes f = 4 e."""

    def mistaken(config, *others):
        config = copy.copy(config)
        config.intermediate_size = 4 * config.hidden_size
        return one.solution(config, *others)

    return mistaken


# ---- counting


@exercise(lambda: [(config,) for config in CONFIGS], hint="Count each table, each matrix and each bias once.")
def count_parameters(config):
    e, f, v = config.hidden_size, config.intermediate_size, config.vocab_size
    embeddings = (v + config.max_position_embeddings + config.type_vocab_size) * e
    attention = 4 * (e * e + e)  # query, key, value, output projection
    feed_forward = (e * f + f) + (f * e + e)  # up, down
    layer_norm = 2 * e
    block = attention + feed_forward + 2 * layer_norm
    head = (e * e + e) + layer_norm + v  # its matrix is the word embeddings
    return embeddings + config.num_hidden_layers * block + layer_norm + head


def width(config):
    return config.hidden_size


count_parameters.misconceptions = {
    "The LM head's matrix is the word embedding matrix: a tied matrix counts once.": (
        off_by(count_parameters, lambda config: config.vocab_size * width(config))
    ),
    "The biases of the LM head are missing: one for each token of the vocabulary.": (
        off_by(count_parameters, lambda config: -config.vocab_size)
    ),
    "A LayerNorm is missing: the final one, after the last block, or the LM head's, after its dense layer.": (
        off_by(count_parameters, lambda config: -2 * width(config))
    ),
    "Two LayerNorms are missing: the final one, after the last block, and the LM head's, after its dense layer.": (
        off_by(count_parameters, lambda config: -4 * width(config))
    ),
    "A block has two LayerNorms: one before attention, one before feed-forward.": (
        off_by(count_parameters, lambda config: -2 * width(config) * config.num_hidden_layers)
    ),
    "One LayerNorm too many: the embeddings have none of their own.": (
        off_by(count_parameters, lambda config: 2 * width(config))
    ),
    "The width of feed-forward is `config.intermediate_size`: it need not be 4 e.": with_four_e(count_parameters),
    "A LayerNorm has scales and shifts: 2 e in all.": (
        off_by(count_parameters, lambda config: -width(config) * (2 * config.num_hidden_layers + 2))
    ),
    "The biases of the blocks' linear layers are missing.": (
        off_by(count_parameters, lambda c: -c.num_hidden_layers * (5 * width(c) + c.intermediate_size))
    ),
    "Attention has four matrices: the output projection is missing.": (
        off_by(count_parameters, lambda config: -config.num_hidden_layers * (width(config) ** 2 + width(config)))
    ),
    "The token type embeddings are missing.": (
        off_by(count_parameters, lambda config: -config.type_vocab_size * width(config))
    ),
    "The dense layer of the LM head is missing.": (off_by(count_parameters, lambda c: -(width(c) ** 2) - width(c))),
}
check_count = count_parameters.check


@exercise(lambda: [(config, tokens) for config in CONFIGS for tokens in (1, 16)], hint="A matmul has 2abc FLOPs.")
def count_flops(config, tokens):
    e, f, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    weights = layers * (4 * e * e + 2 * e * f) + e * e + config.vocab_size * e
    scores_and_sum = layers * 2 * tokens * tokens * e
    return 2 * (tokens * weights + scores_and_sum)


count_flops.misconceptions = {
    "A product and its addition are two FLOPs.": lambda config, t: count_flops.solution(config, t) // 2,
    "The word embedding matrix is used in the LM head: count it there.": (
        off_by(count_flops, lambda config, t: -2 * t * config.vocab_size * width(config))
    ),
    "The dense layer of the LM head is missing: it has a matrix, too, of e × e.": (
        off_by(count_flops, lambda config, t: -2 * t * width(config) ** 2)
    ),
    "The width of feed-forward is `config.intermediate_size`: it need not be 4 e.": with_four_e(count_flops),
    "Attention itself is missing: scores, and the weighted sum of the values.": (
        off_by(count_flops, lambda config, t: -4 * t * t * width(config) * config.num_hidden_layers)
    ),
    "Attention has two products without weights: scores, and the weighted sum of the values.": (
        off_by(count_flops, lambda config, t: -2 * t * t * width(config) * config.num_hidden_layers)
    ),
    "The heads divide e among them: all scores together cost as much as those of one head of width e.": (
        off_by(count_flops, lambda c, t: 4 * t * t * width(c) * c.num_hidden_layers * (c.num_attention_heads - 1))
    ),
    "The word embeddings on the way in are looked up, not multiplied.": (
        off_by(count_flops, lambda config, t: 2 * t * config.vocab_size * width(config))
    ),
}
check_flops = count_flops.check


# ---- int8


def int8_cases():
    weight = randn(60, 400) * torch.tensor([*range(59), 1e-7])[:, None]  # the first row is zero, the last one is small
    return [(weight,), (weight.bfloat16(),)]


INEXACT = "In bfloat16 this is inexact: x.float() first."


def grade_int8(result, case):
    (integers, scale), weight = result, case[0].float()
    right = weight.abs().amax(-1) / 127
    if integers.dtype != torch.int8:
        return f"The integers are {integers.dtype}, and should be torch.int8."
    if integers.shape != weight.shape:
        return f"The integers are {describe_shape(integers)}, and should be {describe_shape(weight)}, as x is."
    if scale.dtype != torch.float32:
        return f"The scales are {scale.dtype}, and should be torch.float32." + f" {INEXACT}" * (
            scale.dtype == torch.bfloat16
        )
    if scale.shape != right.shape:
        return f"The scales are {describe_shape(scale)}, and should be {describe_shape(right)}: one for each row."
    if scale.isnan().any() or integers[0].any():
        return "A row of zeros gives 0 / 0: its integers should be 0."
    is_scale_wrong = ((scale / right - 1).abs() > 0.001)[1:]
    is_row_wrong = ((integers * right[:, None] - weight).abs().amax(-1) > 0.51 * right)[1:]
    if case[0].dtype == torch.bfloat16 and (is_scale_wrong | is_row_wrong).any():  # in float32 it was right
        return INEXACT
    if is_scale_wrong[:-1].any():
        return "Each row's own largest magnitude, divided by 127, is its scale."
    if is_row_wrong[:-1].any():
        return "Round, do not cut off."
    if is_scale_wrong[-1] or is_row_wrong[-1]:
        return "A row of small numbers, such as 1e-7, has a small scale: add nothing to it, and do not raise it so far."
    return ""


class NaNWatcher(TorchDispatchMode):
    """Notices a conversion of NaN to int8."""

    def __init__(self):
        super().__init__()
        self.seen = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype == torch.int8:
            given = [value for value in tree_leaves(args) if isinstance(value, torch.Tensor)]
            self.seen |= any(bool(value.isnan().any()) for value in given if not value.is_meta)
        return out


def converts_nan(mine):
    """The last test of quantize: NaN must not become an int8."""
    with NaNWatcher() as watcher:
        for case, _ in quantize.cases:
            mine(*copy_case(case))
    return FROM_NAN if watcher.seen else ""


FROM_NAN = "Right numbers. But 0 / 0 is NaN, which an int8 cannot be: on another processor it may not become 0."


@exercise(int8_cases, grade=grade_int8, hint="`.to(torch.int8)` cuts off: round first.", last=converts_nan)
def quantize(x):
    scale = x.float().abs().amax(-1) / 127
    integers = (x.float() / scale.clamp_min(1e-30)[:, None]).round()
    return integers.to(torch.int8), scale


def quantize_with(largest=lambda x: x.abs().amax(-1), to_integer=torch.round):
    """quantize with a mistake."""

    def mistaken(x):
        scale = largest(x.float()) / 127
        return to_integer(x.float() / scale.clamp_min(1e-30)[:, None]).to(torch.int8), scale

    return mistaken


quantize.misconceptions = {
    "A row of zeros gives 0 / 0: its integers should be 0.": (
        lambda x: (quantize.solution(x)[0], (x.float().abs().amax(-1) / 127).where(x.any(-1), torch.nan))
    ),
    "Each row's own largest magnitude, divided by 127, is its scale.": (
        quantize_with(largest=lambda x: x.abs().max().expand(len(x)))
    ),
    "Round, do not cut off.": quantize_with(to_integer=torch.trunc),
    "A row of small numbers, such as 1e-7, has a small scale: add nothing to it, and do not raise it so far.": (
        quantize_with(largest=lambda x: x.abs().amax(-1) + 127e-8)
    ),
    INEXACT: lambda x: (quantize.solution(x)[0], (x.abs().amax(-1) / 127).float()),
    f"The scales are torch.bfloat16, and should be torch.float32. {INEXACT}": (
        lambda x: (quantize.solution(x)[0], x.abs().amax(-1) / 127)
    ),
    "The scales are of shape (400,), and should be of shape (60,): one for each row.": (
        lambda x: (quantize.solution(x)[0], x.float().abs().amax(0) / 127)
    ),
    "The scales are of shape (60, 1), and should be of shape (60,): one for each row.": (
        lambda x: (quantize.solution(x)[0], quantize.solution(x)[1][:, None])
    ),
    "The integers are torch.float32, and should be torch.int8.": (
        lambda x: (quantize.solution(x)[0].float(), quantize.solution(x)[1])
    ),
}
check_int8 = quantize.check


def linear_cases():
    weight, bias = randn(5, 24, seed=1) * torch.arange(1, 6)[:, None], randn(5, seed=2)
    x = randn(5, 24) * torch.tensor([1, 10, 0.1, 3, 1])[:, None]
    return [(x, *quantize_rows(weight), bias)]


@exercise(linear_cases, hint="Quantize x, multiply the integers as int32, then both scales, then the bias.")
def int8_linear(x, weight, scale, bias):
    integers, x_scale = quantize_rows(x)
    products = integers.int() @ weight.int().T  # t o
    return products * x_scale[:, None] * scale + bias


def linear_with(result, quantized=quantize_rows, multiply=lambda a, b: a.int() @ b.int().T):
    """int8_linear with a mistake. result: products, the tokens' scales, the rows' scales, bias -> t o."""

    def mistaken(x, weight, scale, bias):
        integers, x_scale = quantized(x)
        return result(multiply(integers, weight), x_scale, scale, bias)

    return mistaken


int8_linear.misconceptions = {
    "int8 ends at 127: the sums of products need int32.": (
        linear_with(
            lambda p, x, w, b: p * x[:, None] * w + b, multiply=lambda a, w: (a.int() @ w.int().T).to(torch.int8)
        )
    ),
    "The tokens' scales are missing.": linear_with(lambda p, x, w, b: p * w + b),
    "The scales of the weight's rows are missing.": linear_with(lambda p, x, w, b: p * x[:, None] + b),
    "The scales are on the wrong axes: tokens are the rows of the result, outputs its columns.": (
        linear_with(lambda p, x, w, b: p * x * w[:, None] + b)
    ),
    "The bias comes after the scales: it is float32, and was not quantized.": (
        linear_with(lambda p, x, w, b: (p + b) * x[:, None] * w)
    ),
    "The bias is missing.": linear_with(lambda p, x, w, b: p * x[:, None] * w),
    "x was not quantized: multiply integers by integers.": lambda x, weight, scale, bias: (
        x @ weight.float().T * scale + bias
    ),
    "Each token has a scale of its own: here all have one.": linear_with(
        lambda p, x, w, b: p * x * w + b, quantized=lambda x: ((x / x.abs().max() * 127).round(), x.abs().max() / 127)
    ),
}
check_linear = int8_linear.check


# ---- memory


@exercise(lambda: [(1000, 9000), (1000, 4000), (7, 0)], hint="Only what lives at the same moment adds up.")
def training_peak(parameters, activations):
    weights, optimizer, gradients = 4 * parameters, 8 * parameters, 4 * parameters
    before_backward = weights + optimizer + activations
    adamw_step = weights + optimizer + gradients + 4 * parameters
    return max(before_backward, adamw_step)


training_peak.misconceptions = {
    "Activations and gradients are not all there at the same moment: take the larger of two peaks, not the sum.": (
        lambda n, activations: 20 * n + activations
    ),
    "You add what is never in memory together: when AdamW steps, the activations are freed; and its temporary tensor "
    "(4 bytes per parameter) is missing.": (lambda n, activations: 16 * n + activations),
    "AdamW's step makes temporary tensors as large as the weights.": (
        lambda n, activations: max(12 * n + activations, 16 * n)
    ),
    "AdamW keeps two numbers per parameter.": lambda n, activations: max(8 * n + activations, 16 * n),
    "AdamW's numbers stay between the steps: they are there in the forward pass, too.": (
        lambda n, activations: max(4 * n + activations, 20 * n)
    ),
    "When the backward pass starts, there are no gradients yet.": (
        lambda n, activations: max(16 * n + activations, 20 * n)
    ),
    "A float32 number has four bytes.": lambda n, activations: max(3 * n + activations, 5 * n),
}
check_peak = training_peak.check


# ---- exercises


def smooth_cases():
    norm = torch.tensor([1, 40, 1, 0.5, 2, 1.0])
    return [(randn(9, 6) * norm, randn(4, 6, seed=1)), (randn(3, 8, seed=2), randn(5, 8, seed=3))]


@exercise(smooth_cases, hint="One factor for each channel: √(largest |x| / largest |weight|).")
def smooth(x, weight):
    factor = (x.abs().amax(0) / weight.abs().amax(0)).sqrt()
    return x / factor, weight * factor


def smooth_with(factor=lambda x, w: (x.abs().amax(0) / w.abs().amax(0)).sqrt(), apply=lambda x, w, s: (x / s, w * s)):
    """smooth with a mistake."""
    return lambda x, weight: apply(x, weight, factor(x, weight))


smooth.misconceptions = {
    "The product has changed: what x is divided by, the weight must be multiplied by.": (
        smooth_with(apply=lambda x, w, s: (x / s, w / s))
    ),
    "The weight is as before, so the product has changed.": smooth_with(apply=lambda x, w, s: (x / s, w)),
    "The other way round: divide x, multiply the weight.": smooth_with(apply=lambda x, w, s: (x * s, w / s)),
    "The square root is missing: it shares the difficulty between x and the weight.": (
        smooth_with(lambda x, w: x.abs().amax(0) / w.abs().amax(0))
    ),
    "All of the range of x goes into the weight: divide by the weight's range, and take the root.": (
        smooth_with(lambda x, w: x.abs().amax(0))
    ),
    "One factor for the whole tensor changes nothing in int8: take one for each channel, the columns.": (
        smooth_with(lambda x, w: (x.abs().max() / w.abs().max()).sqrt())
    ),
    "Take the largest magnitude, with abs: a channel may be large and negative.": (
        smooth_with(lambda x, w: (x.amax(0).clamp_min(1e-3) / w.amax(0).clamp_min(1e-3)).sqrt())
    ),
}
check_smooth = smooth.check
