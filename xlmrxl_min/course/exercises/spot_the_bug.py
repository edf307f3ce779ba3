"""The exercises of notebooks/12_spot_the_bug.ipynb: a test for each bug, written by the learner.

Each is tried on several texts, on correct models and on buggy ones: the bug of its case, and others like it.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from ...model import Attention, Embeddings, XLMRobertaXLForCausalLM, XLMRobertaXLForMaskedLM
from ...tokenizer import XLMRobertaTokenizer
from .. import bugs
from ..checks import exercise


def shrink(model):
    """One layer and 200 tokens are enough to show a bug, and much faster."""
    model.backbone.layers = model.backbone.layers[:1]
    model.resize_token_embeddings(200)
    return model.eval().requires_grad_(False)


def make_cases(models, tokens=12):
    """Each model with random texts: two of them for the first three models. The models are labelled for messages."""
    cases = []
    for i, (label, model) in enumerate(models.items()):
        shrink(model).label = label
        for seed in range(2 if i < 3 else 1):
            cases.append((model, torch.randint(100, 200, (1, tokens), generator=torch.Generator().manual_seed(seed))))
    return cases


def tiny_relative():
    return XLMRobertaXLForMaskedLM.from_pretrained("tiny-relative-key")


SWAPPED = "True and False are swapped: True is for a correct model."


def swapped(test):
    return lambda *inputs: not test.solution(*inputs)


def always(verdict):
    return lambda *inputs: verdict


# ---- A


def repetition_cases():
    return make_cases({
        "a correct model": bugs.tiny(attention_probs_dropout_prob=0.1),
        "a correct model (tiny-relative-key)": tiny_relative(),
        "the buggy model A": bugs.buggy("A"),
        "a new buggy model": bugs.plant(bugs.tiny(), Embeddings, bugs.DropsEmbeddings),
    })  # fmt: skip


@exercise(repetition_cases, hint="What differs between two runs? Compare their logits, and return True or False.")
def test_a(model, ids):
    return torch.equal(model(ids).logits, model(ids).logits)


def same_twice_when_eager(model, ids):
    first, second = (model(ids, output_attentions=True).logits for _ in range(2))
    return torch.equal(first, second)


test_a.misconceptions = {
    "Model A passes your test: with output_attentions=True another implementation runs, and that one is correct.": (
        same_twice_when_eager
    ),
    "All buggy models pass your test: compare the numbers of two runs, not their shapes.": always(True),
    "The correct models fail your test: give both runs the same ids, and look at .logits.": always(False),
    SWAPPED: swapped(test_a),
}
check_a = test_a.check


# ---- B


def padding_cases():
    return make_cases(
        {
            "a correct model (tiny)": bugs.tiny(),
            "a correct model (tiny-relative-key)": tiny_relative(),
            "the buggy model B": bugs.buggy("B"),
            "a new buggy model": bugs.plant(bugs.tiny(), Embeddings, bugs.PositionsCountPadding),
            "a second new buggy model": bugs.plant(bugs.tiny(), Attention, bugs.WeakMask),
            "a third new buggy model": bugs.plant(bugs.tiny(), Attention, bugs.AttendsToRightPadding),
            "a fourth new buggy model": bugs.plant(bugs.tiny(), XLMRobertaXLForMaskedLM, bugs.LosesLastToken),
            "a fifth new buggy model": bugs.plant(bugs.tiny(), XLMRobertaXLForMaskedLM, bugs.NoNegativeLogits),
        },
        tokens=21,
    )


PADDING_HINT = (
    "Alone, padded on the right, padded on the left: the same logits for the same tokens? Padding has the id 1, and 0 "
    "in the mask; allow rounding up to atol=1e-3; return True or False, and raise nothing."
)


@exercise(padding_cases, hint=PADDING_HINT)
def test_b(model, ids):
    alone, t = model(ids).logits, ids.shape[1]
    for left, right in ((0, 3), (3, 0)):
        padded = F.pad(ids, (left, right), value=1)
        logits = model(padded, attention_mask=(padded != 1).long()).logits
        if not torch.allclose(alone, logits[:, left : left + t], atol=1e-3):
            return False
    return True


def padding_with(sides=((0, 3), (3, 0)), mask=True, as_number=False, tolerance=1e-3, size=torch.abs, **options):
    """test_b with a mistake."""

    def mistaken(model, ids):
        differences = []
        with torch.no_grad():
            alone = model(ids, **options).logits
            for left, right in sides:
                padded = F.pad(ids, (left, right), value=1)
                attention_mask = (padded != 1).long() if mask else None
                logits = model(padded, attention_mask=attention_mask, **options).logits
                differences.append(size(alone - logits[:, left : left + ids.shape[1]]).max().item())
        return max(differences) if as_number else all(difference < tolerance for difference in differences)

    return mistaken


test_b.misconceptions = {
    "All buggy models pass your test: pad the text, and compare the numbers closely, not shapes.": (
        padding_with(tolerance=1e9)
    ),
    "The correct models fail your test: pass attention_mask, compare the text's own tokens, allow for rounding.": (
        padding_with(mask=False)
    ),
    "One buggy model passes your test: its logits are off by less than 1, so allow no more than 1e-3.": (
        padding_with(tolerance=1.0)
    ),
    "One buggy model passes your test: its positions are wrong only with padding on the left.": (
        padding_with(sides=((0, 3),))
    ),
    "One buggy model passes your test: it errs only with padding on the right.": padding_with(sides=((3, 0),)),
    "One buggy model passes your test: its logits are never too low, only too high: so take `.abs()`.": (
        padding_with(size=lambda difference: difference)
    ),
    "One buggy model passes your test: only its last token is wrong, and too low: compare all tokens, by `.abs()`.": (
        padding_with(size=lambda difference: difference[:, 0].abs())
    ),
    "Three buggy models pass your test: with output_attentions=True another path computes, which is correct.": (
        padding_with(output_attentions=True)
    ),
    "Return True or False, not the difference: True where it is below 1e-3.": padding_with(as_number=True),
    "True and False are swapped: True is for a correct model.": (lambda model, ids: not test_b.solution(model, ids)),
}
check_b = test_b.check


# ---- C


def position_cases():
    return make_cases({
        "a correct model": bugs.tiny(),
        "the buggy model C": bugs.buggy("C"),
        "a new buggy model": bugs.plant(bugs.tiny(), Embeddings, bugs.PositionsFromThree),
        "a second new buggy model": bugs.plant(bugs.tiny(), Embeddings, bugs.OnePosition),
    })  # fmt: skip


POSITION_HINT = "Compare with a run in which you give the positions yourself, and allow rounding up to atol=1e-3."


@exercise(position_cases, hint=POSITION_HINT)
def test_c(model, ids):
    rows = torch.arange(2, 2 + ids.shape[1])[None]
    return torch.allclose(model(ids).logits, model(ids, position_ids=rows).logits, atol=1e-3)


def positions_with(start=2, length=None):
    """test_c with a mistake."""

    def mistaken(model, ids):
        ids = ids[:, :length]
        rows = torch.arange(start, start + ids.shape[1])[None]
        return torch.allclose(model(ids).logits, model(ids, position_ids=rows).logits, atol=1e-3)

    return mistaken


test_c.misconceptions = {
    "Model C passes, the correct model fails: the first token has row 2, pad_token_id + 1.": positions_with(start=0),
    "One buggy model passes your test: it is right for the first token. Compare all of them.": positions_with(length=1),
    "All buggy models pass your test: compare the logits of two runs, closely.": always(True),
    "The correct model fails your test: give a row of the table for each token, and allow rounding.": always(False),
    SWAPPED: swapped(test_c),
}
check_c = test_c.check


# ---- D


def mask_cases():
    file = XLMRobertaTokenizer.from_pretrained("tiny").vocab_file
    larger, buggy = bugs.buggy("D")
    tiny, cases = bugs.tiny().eval(), []
    for label, model, tokenizer in (
        ("a correct tokenizer", tiny, XLMRobertaTokenizer.from_pretrained("tiny")),
        ("a correct tokenizer, and a model with spare rows", larger, XLMRobertaTokenizer.from_pretrained("tiny")),
        ("the buggy tokenizer D", larger, buggy),
        ("a new buggy tokenizer", larger, bugs.OtherMask(file)),
        ("a second new buggy tokenizer", larger, bugs.PadAsMask(file)),
    ):
        tokenizer.label = label
        cases.append((model, tokenizer))
    return cases


MASK_HINT = "Look up the row of <mask> among the word embeddings: is it like the rows of other tokens?"


@exercise(mask_cases, hint=MASK_HINT)
def test_d(model, tokenizer):
    norms = model.backbone.embeddings.word.weight.norm(dim=-1)
    return bool(norms[tokenizer.mask_token_id] > norms.median() / 2)


def mask_row(model, tokenizer):
    return model.backbone.embeddings.word.weight[tokenizer.mask_token_id]


test_d.misconceptions = {
    "All buggy tokenizers pass your test: with spare rows no id is out of range, so look at what the row holds.": (
        lambda model, tokenizer: tokenizer.mask_token_id < model.config.vocab_size
    ),
    "A correct tokenizer fails your test: the last row belongs to <mask> only where there are no spare rows.": (
        lambda model, tokenizer: tokenizer.mask_token_id == model.config.vocab_size - 1
    ),
    "Two buggy tokenizers pass your test: a spare row is not zero, only much shorter than a trained one.": (
        lambda model, tokenizer: bool(mask_row(model, tokenizer).norm() > 0.1)
    ),
    "The correct tokenizers fail your test: the row of <mask> is somewhat shorter than most others.": always(False),
    SWAPPED: swapped(test_d),
}
check_d = test_d.check


# ---- E


def norm_cases():
    classes = {
        "a correct LayerNorm": bugs.CorrectNorm,
        "the buggy LayerNorm E": type("E", (bugs.NormByStd, bugs.CorrectNorm), {}),
        "a new buggy LayerNorm": bugs.NormByStdOfAll,
        "a second new buggy LayerNorm": bugs.NormWithEpsOutside,
        "a third new buggy LayerNorm": bugs.NormWithoutBias,
    }
    return [(Maker(label, cls, seed),) for label, cls in classes.items() for seed in range(3)]


class Maker:
    """Builds a LayerNorm of a width, with random weight and bias."""

    def __init__(self, label, cls, seed):
        self.label, self.cls, self.seed = label, cls, seed

    def __call__(self, width):
        with torch.random.fork_rng([]):
            torch.manual_seed(self.seed)
            return self.cls(width)


NORM_HINT = (
    "Compare with the formula, or with F.layer_norm(x, (width,), norm.weight, norm.bias, norm.eps), at the width and "
    "for the x at which the mistakes are largest."
)


@exercise(norm_cases, hint=NORM_HINT)
def test_e(make_norm):
    norm, x = make_norm(4), 0.01 * torch.randn(8, 4)
    expected = F.layer_norm(x, (4,), norm.weight, norm.bias, norm.eps)
    return torch.allclose(norm(x), expected, atol=1e-5)


def norm_with(width=4, size=0.01, tolerance=1e-5, bias=True, correction=0):
    """test_e with a mistake."""

    def mistaken(make_norm):
        norm, x = make_norm(width), size * torch.randn(8, width)
        deviation = (x.var(-1, keepdim=True, correction=correction) + norm.eps).sqrt()
        expected = norm.weight * (x - x.mean(-1, keepdim=True)) / deviation
        return torch.allclose(norm(x) - norm.bias * (not bias), expected + norm.bias * bias, atol=tolerance)

    return mistaken


test_e.misconceptions = {
    "One buggy LayerNorm passes your test: for an x of variance 1, eps makes no difference; take a small x.": (
        norm_with(size=100.0, tolerance=1e-4)
    ),
    "Your test has a mistake of E itself: .std() and .var() divide by e − 1, unless you say correction=0.": (
        norm_with(correction=1)
    ),
    "Two buggy LayerNorms pass your test: at a large width, e and e − 1 are nearly the same; take a small one.": (
        norm_with(width=4096, size=10.0, tolerance=1e-2)
    ),
    "All buggy LayerNorms pass your test: compare numbers, and closely.": always(True),
    "The correct LayerNorm fails your test: multiply by norm.weight, add norm.bias, and allow rounding.": always(False),
    SWAPPED: swapped(test_e),
}
check_e = test_e.check


# ---- F


def mixing_cases():
    return make_cases({
        "a correct model (tiny)": bugs.tiny(),
        "a correct model (tiny-relative-key)": tiny_relative(),
        "the buggy model F": bugs.buggy("F"),
        "a new buggy model": bugs.plant(bugs.tiny(), Attention, bugs.SeesThePast),
        "a second new buggy model": bugs.plant(bugs.tiny(), Attention, bugs.SeesFirstToken),
    })  # fmt: skip


MIXING_HINT = "Replace one token, each in turn: at which other positions do the logits change?"


@exercise(mixing_cases, hint=MIXING_HINT)
def test_f(model, ids):
    before = model(ids).logits[0]
    for i in range(ids.shape[1]):
        other = ids.clone()
        other[0, i] = 99
        change = (model(other).logits[0] - before).abs().amax(-1)
        change[i] = 0  # here it changes in any model
        if change.max() < 1e-3:
            return False
    return True


def every_token_with(positions=slice(None), own=False):
    """test_f with a mistake."""

    def mistaken(model, ids):
        before = model(ids).logits[0]
        for i in range(ids.shape[1])[positions]:
            other = ids.clone()
            other[0, i] = 99
            change = (model(other).logits[0] - before).abs().amax(-1)
            change[i] *= own
            if change.max() < 1e-3:
                return False
        return True

    return mistaken


test_f.misconceptions = {
    "All buggy models pass your test: at the replaced token itself, the logits change in any model.": (
        every_token_with(own=True)
    ),
    "Two buggy models pass your test: replace other tokens than the first, too.": every_token_with(slice(1)),
    "One buggy model passes your test: no token attends to a later one in it, so replace the last, too.": (
        every_token_with(slice(3, 5))
    ),
    "The correct models fail your test: not every position has to change, only some other one.": always(False),
    SWAPPED: swapped(test_f),
}
check_f = test_f.check


# ---- G


def number_cases():
    buggy = bugs.plant(bugs.tiny(), nn.LayerNorm, bugs.NormByStd)
    models = {
        "a correct model": bugs.tiny(),
        "the buggy model G": bugs.buggy("G"),
        "a new buggy model": bugs.plant(bugs.tiny(), Attention, bugs.QueryForKey),
        "a second new buggy model": buggy,
    }
    cases, original = make_cases(models), shrink(bugs.tiny())
    return [(model, ids, original(ids, output_attentions=True).logits.detach()) for model, ids in cases]


NUMBER_HINT = "Compare the model's logits with those of the original, and allow rounding up to atol=1e-3."


@exercise(number_cases, hint=NUMBER_HINT)
def test_g(model, ids, expected):
    return torch.allclose(model(ids).logits, expected, atol=1e-3)


test_g.misconceptions = {
    "One buggy model passes your test: its predictions are the original's. Compare the numbers.": (
        lambda model, ids, expected: torch.equal(model(ids).logits.argmax(-1), expected.argmax(-1))
    ),
    "All buggy models pass your test: names and shapes are right in all of them. Compare the numbers.": (
        lambda model, ids, expected: model(ids).logits.shape == expected.shape
    ),
    "The correct model fails your test: two implementations differ by rounding, so allow up to atol=1e-3.": (
        lambda model, ids, expected: torch.equal(model(ids).logits, expected)
    ),
    SWAPPED: swapped(test_g),
}
check_g = test_g.check


# ---- H


def tie_cases():
    small = shrink(bugs.tiny())
    equal, other = (bugs.fill(copy.deepcopy(small), small.state_dict()) for _ in range(2))
    with torch.no_grad():
        other.lm_head.decoder.weight[5] += 1
    models = {
        "a correct model (tiny)": small,
        "a correct model (tiny-relative-key)": shrink(tiny_relative()),
        "the buggy model H": equal,
        "model H after a step of training": other,
    }
    for label, model in models.items():
        model.label = label
    return [(model,) for model in models.values()]


TIE_HINT = "The two weights are model.backbone.embeddings.word.weight and model.lm_head.decoder.weight."


@exercise(tie_cases, hint=TIE_HINT)
def test_h(model):
    return model.lm_head.decoder.weight is model.backbone.embeddings.word.weight


test_h.misconceptions = {
    "Model H passes your test: two tensors with equal numbers need not be one. Ask `is`.": (
        lambda model: torch.equal(model.lm_head.decoder.weight, model.backbone.embeddings.word.weight)
    ),
    "Both buggy models pass your test: two tensors of one shape need not be one. Ask `is`.": (
        lambda model: model.lm_head.decoder.weight.shape == model.backbone.embeddings.word.weight.shape
    ),
    "The correct models fail your test: compare the weights, not the layers that hold them.": (
        lambda model: model.lm_head.decoder is model.backbone.embeddings.word
    ),
    SWAPPED: swapped(test_h),
}
check_h = test_h.check


# ---- I


class Builder:
    """Builds the same model each time, as a test may change it."""

    def __init__(self, label, model):
        self.label, self.model = label, shrink(model)

    def __call__(self):
        return copy.deepcopy(self.model)


def pruning_cases():
    builders = [
        Builder("builder of a correct model", bugs.tiny()),
        Builder("builder of model I", bugs.buggy("I")),
        Builder("builder of a new buggy model", bugs.plant(bugs.tiny(), XLMRobertaXLForMaskedLM, bugs.PrunesTheNext)),
    ]
    return [(build, ids) for build in builders for _, ids in make_cases({"": builders[0]()})]


PRUNING_HINT = (
    "Mask three heads of layer 0 in one model (head_mask=, 1 = keep), prune the same three in another, and compare the "
    "logits, up to atol=1e-3."
)


@exercise(pruning_cases, hint=PRUNING_HINT)
def test_i(build, ids):
    keep = torch.tensor([1, 0, 1, 0, 1, 0])
    masked = build()(ids, head_mask=keep).logits
    pruned = build()
    pruned.prune_heads({0: [1, 3, 5]})
    return torch.allclose(pruned(ids).logits, masked, atol=1e-3)


def pruned_heads_are_listed(build, ids):
    pruned = build()
    pruned.prune_heads({0: [1, 3, 5]})
    return pruned.backbone.layers[0].attention.heads == [0, 2, 4]


def pruned_equals_whole(build, ids):
    pruned = build()
    pruned.prune_heads({0: [1, 3, 5]})
    return torch.allclose(pruned(ids).logits, build()(ids).logits, atol=1e-3)


test_i.misconceptions = {
    "Model I passes your test: the right heads are left in it. Compare the logits.": pruned_heads_are_listed,
    "Both buggy models pass your test: compare the logits, not their shapes.": always(True),
    "The correct model fails your test: pruning changes the logits, just as much as masking. Compare these two.": (
        pruned_equals_whole
    ),
    SWAPPED: swapped(test_i),
}
check_i = test_i.check


# ---- J


def loss_cases():
    return make_cases({
        "a correct model (tiny-decoder)": bugs.tiny_decoder(),
        "a correct model (tiny-relative-key)": bugs.tiny_relative_decoder(),
        "the buggy model J": bugs.buggy("J"),
        "a new buggy model": bugs.plant(bugs.tiny_decoder(), XLMRobertaXLForCausalLM, bugs.DoesNotShift),
        "a second new buggy model": bugs.plant(bugs.tiny_decoder(), XLMRobertaXLForCausalLM, bugs.SumsLosses),
    })  # fmt: skip


LOSS_HINT = "Compute the loss from the logits with F.cross_entropy: which logits belong to which label?"


@exercise(loss_cases, hint=LOSS_HINT)
def test_j(model, ids):
    out = model(ids, labels=ids)
    by_hand = F.cross_entropy(out.logits[0, :-1], ids[0, 1:])
    return torch.allclose(out.loss, by_hand, atol=1e-4)


def loss_with(shift):
    """test_j with another shift."""

    def mistaken(model, ids):
        out = model(ids, labels=ids)
        by_hand = F.cross_entropy(out.logits[0, : ids.shape[1] - shift], ids[0, shift:])
        return torch.allclose(out.loss, by_hand, atol=1e-4)

    return mistaken


test_j.misconceptions = {
    "Your loss by hand is not shifted: the logits at position t predict the token at t + 1.": loss_with(0),
    "Your loss by hand is shifted twice, as in model J: the logits at position t predict the token at t + 1.": (
        loss_with(2)
    ),
    "All buggy models pass your test: what is the loss worth? Compute it from the logits, and compare.": always(True),
    "The correct models fail your test: take the mean over all positions but the last, and allow rounding.": (
        always(False)
    ),
    SWAPPED: swapped(test_j),
}
check_j = test_j.check


# ---- K


def decoder_cases():
    return make_cases(
        {
            "a correct model (tiny-decoder)": bugs.tiny_decoder(),
            "a correct model (tiny-relative-key)": bugs.tiny_relative_decoder(),
            "the buggy model K": bugs.buggy("K"),
            "a new buggy model": bugs.plant(bugs.tiny_decoder(), Embeddings, bugs.PositionsRestart),
            "a second new buggy model": bugs.plant(bugs.tiny_decoder(), Attention, bugs.CausalFromFirstKey),
            "a third new buggy model": bugs.plant(bugs.tiny_decoder(), Attention, bugs.RoundsCache),
            "a fourth new buggy model": bugs.plant(bugs.tiny_decoder(), Attention, bugs.IgnoresNewKey),
        },
        tokens=8,
    )


DECODER_HINT = (
    "At once, in chunks of one token, in chunks of three: the same logits? Begin each pass without a cache; allow "
    "rounding up to atol=1e-3; return True or False, and raise nothing."
)


@exercise(decoder_cases, hint=DECODER_HINT)
def test_k(model, ids):
    uncached = model(ids, use_cache=False).logits
    for size in (1, 3):
        cache, logits = None, []
        for chunk in ids.split(size, dim=1):
            out = model(chunk, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits.append(out.logits)
        if not torch.allclose(uncached, torch.cat(logits, dim=1), atol=1e-3):
            return False
    return True


def cached_with(sizes=(1, 3), keep_cache=True, as_number=False, tolerance=1e-3):
    """test_k with a mistake."""

    def mistaken(model, ids):
        differences = []
        with torch.no_grad():
            uncached = model(ids, use_cache=False).logits
            for size in sizes:
                cache, logits = None, []
                for chunk in ids.split(size, dim=1):
                    out = model(chunk, past_key_values=cache, use_cache=True)
                    cache = out.past_key_values if keep_cache else None
                    logits.append(out.logits)
                differences.append((uncached - torch.cat(logits, dim=1)).abs().max().item())
        return max(differences) if as_number else all(difference < tolerance for difference in differences)

    return mistaken


test_k.misconceptions = {
    "Two buggy models pass your test: with one new token at a time they are right; they err in chunks of several.": (
        cached_with(sizes=(1,))
    ),
    "All buggy models pass your test: compare the numbers, of logits, and closely.": cached_with(tolerance=1e9),
    "All buggy models pass your test: in one chunk they are right, so read the text in several.": (
        cached_with(sizes=(20,))
    ),
    "One buggy model passes your test: it errs only with a single new token.": cached_with(sizes=(3,)),
    "The correct models fail your test: begin without a cache, pass it on to the next chunk, allow rounding.": (
        cached_with(keep_cache=False)
    ),
    "One buggy model passes your test: its logits are off by a few hundredths, so allow no more than 1e-3.": (
        cached_with(tolerance=1.0)
    ),
    "Return True or False, not the difference: True where it is below 1e-3.": cached_with(as_number=True),
    "True and False are swapped: True is for a correct model.": (lambda model, ids: not test_k.solution(model, ids)),
}
check_k = test_k.check


# ---- L


def gradient_cases():
    model, cases = shrink(bugs.tiny()).requires_grad_(), []
    functions = {
        "a correct function": bugs.accumulate_by_labels,
        "another correct function": bugs.accumulate_twice,
        "the buggy function L": bugs.buggy("L"),
        "a new buggy function": bugs.accumulate_sums,
        "a second new buggy function": bugs.accumulate_without_zeroing,
    }
    for label, function in functions.items():
        for seed in range(2):
            ids = torch.randint(100, 200, (4, 8), generator=torch.Generator().manual_seed(seed))
            labels = ids.clone()
            for row, count in enumerate((2, 6, 3, 5)):  # as many labels in the first two texts as in the last two
                labels[row, count:] = -100
            accumulate = Labelled(label, function)
            cases.append((accumulate, model, ids, labels))
    return cases


class Labelled:
    """A function with a label, for the messages."""

    def __init__(self, label, function):
        self.label, self.function = label, function

    def __call__(self, model, parts):
        self.function(model, parts)


GRADIENT_HINT = (
    "Cut the batch in two ways, as ids.split([1, 3]) does, and compare a gradient, such as that of "
    "model.lm_head.dense.weight; keep a .clone() of it."
)


@exercise(gradient_cases, hint=GRADIENT_HINT)
def test_l(accumulate, model, ids, labels):
    gradients = []
    for cut in ([4], [1, 3]):
        accumulate(model, list(zip(ids.split(cut), labels.split(cut), strict=True)))
        gradients.append(model.lm_head.dense.weight.grad.clone())
    return torch.allclose(*gradients, atol=1e-5)


def parts_with(cuts):
    """test_l with a mistake."""

    def mistaken(accumulate, model, ids, labels):
        gradients = []
        for cut in cuts:
            accumulate(model, list(zip(ids.split(cut), labels.split(cut), strict=True)))
            gradients.append(model.lm_head.dense.weight.grad.clone())
        return torch.allclose(*gradients, atol=1e-5)

    return mistaken


test_l.misconceptions = {
    "Function L passes your test: cut so that the parts have different numbers of labels.": parts_with(([4], [2, 2])),
    "Two buggy functions pass your test: cut the batch in two different ways.": parts_with(([1, 3], [1, 3])),
    "All buggy functions pass your test: compare gradients, closely, and keep a .clone() of the first.": always(True),
    "The correct functions fail your test: give both runs all texts with their labels, and allow rounding.": (
        always(False)
    ),
    SWAPPED: swapped(test_l),
}
check_l = test_l.check
