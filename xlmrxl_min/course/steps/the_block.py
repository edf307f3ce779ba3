"""The steps of notebooks/05_the_block.ipynb."""

import math

import torch
import torch.nn.functional as F

from ..checks import exercise, randn
from . import solution
from .attention import HIDDEN, MASK
from .tokens_and_embeddings import ABSOLUTE, IDS, RELATIVE_KEY

layer_norm = exercise(
    lambda: [(ABSOLUTE, HIDDEN + 1)],
    hint="Mean and variance over the last axis; `keepdim=True` keeps it, with size 1.",
)(solution.LayerNorm)


def norm_with(forward):
    """LayerNorm with a mistake. forward: hidden, weight, bias, eps -> b t e."""

    def mistaken(self, hidden):
        return forward(hidden, self.weight, self.bias, self.eps)

    return type("Mistaken", (solution.LayerNorm,), {"forward": mistaken})


def center(x, axis=-1):
    return x - x.mean(axis, keepdim=True)


def variance(x, axis=-1, correction=0):
    return x.var(axis, correction=correction, keepdim=True)


layer_norm.misconceptions = {
    "The variance is divided by e - 1: correction=0 divides by e.": norm_with(
        lambda x, weight, bias, eps: center(x) / (variance(x, correction=1) + eps).sqrt() * weight + bias
    ),
    "eps belongs inside the square root.": norm_with(
        lambda x, weight, bias, eps: center(x) / (variance(x).sqrt() + eps) * weight + bias
    ),
    "eps is config.layer_norm_eps, not always 1e-5.": norm_with(
        lambda x, weight, bias, eps: center(x) / (variance(x) + 1e-5).sqrt() * weight + bias
    ),
    "The mean is not subtracted.": norm_with(
        lambda x, weight, bias, eps: x / (variance(x) + eps).sqrt() * weight + bias
    ),
    "Scale and shift are missing: times weight, plus bias.": norm_with(
        lambda x, weight, bias, eps: center(x) / (variance(x) + eps).sqrt()
    ),
    "Divide by the square root of the variance, not by the variance.": norm_with(
        lambda x, weight, bias, eps: center(x) / (variance(x) + eps) * weight + bias
    ),
    "Each token has its own mean and variance, over the last axis: not over the tokens.": norm_with(
        lambda x, weight, bias, eps: center(x, 1) / (variance(x, 1) + eps).sqrt() * weight + bias
    ),
    "First scale, then shift: the bias is not multiplied by the weight.": norm_with(
        lambda x, weight, bias, eps: (center(x) / (variance(x) + eps).sqrt() + bias) * weight
    ),
}


gelu = exercise(
    lambda: [(torch.linspace(-4, 4, 33),), (randn(2, 3),)],
    disallowed={"gelu": "But F.gelu did it: write it out with torch.erf."},
    hint="Φ(x) = (1 + erf(x / √2)) / 2.",
)(solution.gelu)
gelu.misconceptions = {
    "That is the approximation with tanh, GPT-2's: XLM-R has the one with erf.": lambda x: F.gelu(
        x, approximate="tanh"
    ),
    "That is the approximation x · sigmoid(1.702 x): XLM-R has the one with erf.": lambda x: x * (1.702 * x).sigmoid(),
    "√2 is missing: erf(x / √2).": lambda x: x * (1 + torch.erf(x)) / 2,
    "It is twice as large as it should be: Φ(x) goes up to 1.": lambda x: x * (1 + torch.erf(x / math.sqrt(2))),
    "That is Φ(x): it still has to be multiplied by x.": lambda x: (1 + torch.erf(x / math.sqrt(2))) / 2,
    "The 1 is missing: erf goes from -1 to 1, and Φ from 0 to 1.": lambda x: x * torch.erf(x / math.sqrt(2)) / 2,
    "That is ReLU, with a kink at 0: GELU is smooth.": F.relu,
    "That is SiLU: GELU has Φ(x) in place of the sigmoid.": F.silu,
}


feed_forward = exercise(lambda: [(ABSOLUTE, HIDDEN)], hint="`down(gelu(up(…)))`.")(solution.FeedForward)


def feed_forward_with(forward):
    return type("Mistaken", (solution.FeedForward,), {"forward": forward})


feed_forward.misconceptions = {
    "The activation is missing, so up and down are together one linear map.": feed_forward_with(
        lambda self, hidden: self.down(self.up(hidden))
    ),
    "The activation belongs between up and down, not after both.": feed_forward_with(
        lambda self, hidden: solution.gelu(self.down(self.up(hidden)))
    ),
    "The activation belongs between up and down, not before both.": feed_forward_with(
        lambda self, hidden: self.down(self.up(solution.gelu(hidden)))
    ),
    "There is one activation, between up and down: none after down.": feed_forward_with(
        lambda self, hidden: solution.gelu(self.down(solution.gelu(self.up(hidden))))
    ),
    "The activation is GELU, not ReLU.": feed_forward_with(lambda self, hidden: self.down(F.relu(self.up(hidden)))),
    "The activation is the GELU with erf, not its approximation.": feed_forward_with(
        lambda self, hidden: self.down(F.gelu(self.up(hidden), approximate="tanh"))
    ),
    "Do not add `hidden` here: the residual belongs to the block, the next step.": feed_forward_with(
        lambda self, hidden: hidden + self.down(solution.gelu(self.up(hidden)))
    ),
}


block = exercise(
    lambda: [(config, HIDDEN, mask) for config in (ABSOLUTE, RELATIVE_KEY) for mask in (torch.ones_like(MASK), MASK)],
    hint="`hidden + attention(norm(hidden))`, and the same with `feed_forward`.",
)(solution.Block)


def block_with(second, first=lambda x, n1, a, n2: x + a(n1(x))):
    """Block with a mistake. first: hidden -> the middle; second: the middle and hidden -> the result."""

    def mistaken(self, hidden, attention_mask):
        n1, n2, f = self.attention_norm, self.feed_forward_norm, self.feed_forward
        middle = first(hidden, n1, lambda x: self.attention(x, attention_mask), n2)
        return second(middle, hidden, n1, n2, f)

    return type("Mistaken", (solution.Block,), {"forward": mistaken})


class Unmasked(solution.Block):
    def forward(self, hidden, attention_mask):
        return super().forward(hidden, torch.ones_like(attention_mask))


block.misconceptions = {
    "That is post-LN: the LayerNorm comes after the addition.": block_with(
        lambda m, x, n1, n2, f: n2(m + f(m)), first=lambda x, n1, a, n2: n1(x + a(x))
    ),
    "The feed-forward layer reads the hidden states from before attention.": block_with(
        lambda m, x, n1, n2, f: m + f(n2(x))
    ),
    "The residuals are missing: add what each half computes to the hidden states.": block_with(
        lambda m, x, n1, n2, f: f(n2(m)), first=lambda x, n1, a, n2: a(n1(x))
    ),
    "Attention's output is lost: add to the hidden states after attention.": block_with(
        lambda m, x, n1, n2, f: x + f(n2(m))
    ),
    "Each half has its own LayerNorm: here attention_norm is used twice.": block_with(
        lambda m, x, n1, n2, f: m + f(n1(m))
    ),
    "The two LayerNorms are swapped.": block_with(
        lambda m, x, n1, n2, f: m + f(n1(m)), first=lambda x, n1, a, n2: x + a(n2(x))
    ),
    "The LayerNorm before the feed-forward layer is missing.": block_with(lambda m, x, n1, n2, f: m + f(m)),
    "Add to the hidden states themselves, not to the normed ones.": block_with(
        lambda m, x, n1, n2, f: n2(m) + f(n2(m)), first=lambda x, n1, a, n2: n1(x) + a(n1(x))
    ),
    "The mask is not used: pass it to attention.": Unmasked,
}


encoder = exercise(
    lambda: [(config, ids) for config in (ABSOLUTE, RELATIVE_KEY) for ids in (IDS[:1], IDS)],
    hint="Embeddings, each block in turn, the final LayerNorm.",
)(solution.Encoder)


def encoder_with(before=lambda self, x: x, mask=lambda ids: ids != 1, blocks=list, after=lambda self, x: self.norm(x)):
    """Encoder with a mistake. before, after: change the hidden states; blocks: layers -> those that are run."""

    def mistaken(self, ids):
        hidden = before(self, self.embeddings(ids))
        for layer in blocks(self.layers):
            hidden = layer(hidden, mask(ids))
        return after(self, hidden)

    return type("Mistaken", (solution.Encoder,), {"forward": mistaken})


encoder.misconceptions = {
    "The final LayerNorm is missing.": encoder_with(after=lambda self, x: x),
    "There is no LayerNorm after the embeddings: `norm` comes after the last block.": encoder_with(
        before=lambda self, x: self.norm(x), after=lambda self, x: x
    ),
    "The LayerNorm is used twice: it comes only after the last block.": encoder_with(
        before=lambda self, x: self.norm(x)
    ),
    "Every block has its own parameters: here the first one is run each time.": encoder_with(
        blocks=lambda layers: [layers[0]] * len(layers)
    ),
    "Only the first block is run.": encoder_with(blocks=lambda layers: layers[:1]),
    "The blocks are run in reverse order.": encoder_with(blocks=lambda layers: layers[::-1]),
    "Tokens attend to padding: the mask is ids != 1.": encoder_with(mask=lambda ids: torch.ones_like(ids) > 0),
    "The mask is inverted: True may attend.": encoder_with(mask=lambda ids: ids == 1),
    "Padding has the id 1, not 0: the mask is ids != 1.": encoder_with(mask=lambda ids: ids != 0),
}
