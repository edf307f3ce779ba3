"""The exercises of notebooks/12_spot_the_bug.ipynb."""

import torch
import torch.nn.functional as F

from ...model import Attention, Embeddings, XLMRobertaXLForMaskedLM
from .. import bugs
from ..checks import exercise


def make_cases(models, ids):
    """A case for each model, labelled for the messages. One layer and 200 tokens are enough, and much faster."""
    for label, model in models.items():
        model.backbone.layers = model.backbone.layers[:1]
        model.resize_token_embeddings(200)
        model.eval().label = label
    return [(model, ids) for model in models.values()]


def padding_cases():
    models = {
        "a correct model (tiny)": bugs.tiny(),
        "a correct model (tiny-relative-key)": XLMRobertaXLForMaskedLM.from_pretrained("tiny-relative-key"),
        "the buggy model B": bugs.buggy("B"),
        "a new buggy model": bugs.plant(bugs.tiny(), Embeddings, bugs.PositionsCountPadding),
        "a second new buggy model": bugs.plant(bugs.tiny(), Attention, bugs.WeakMask),
        "a third new buggy model": bugs.plant(bugs.tiny(), Attention, bugs.AttendsToRightPadding),
        "a fourth new buggy model": bugs.plant(bugs.tiny(), XLMRobertaXLForMaskedLM, bugs.LosesLastToken),
        "a fifth new buggy model": bugs.plant(bugs.tiny(), XLMRobertaXLForMaskedLM, bugs.NoNegativeLogits),
    }
    return make_cases(models, torch.arange(100, 121)[None])


PADDING_HINT = (
    "Alone, padded on the right, padded on the left: the same logits for the same tokens? Padding has the id 1, and 0 "
    "in the mask; allow rounding up to atol=1e-3; return True or False, and raise nothing."
)


@exercise(padding_cases, hint=PADDING_HINT)
def ignores_padding(model, ids):
    with torch.no_grad():
        alone = model(ids).logits
        for left, right in ((0, 3), (3, 0)):
            padded = F.pad(ids, (left, right), value=1)
            logits = model(padded, attention_mask=(padded != 1).long()).logits
            if not torch.allclose(alone, logits[:, left : left + ids.shape[1]], atol=1e-3):
                return False
    return True


def padding_with(sides=((0, 3), (3, 0)), mask=True, as_number=False, tolerance=1e-3, size=torch.abs, **options):
    """ignores_padding with a mistake."""

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


ignores_padding.misconceptions = {
    "All buggy models pass your test: pad the text, and compare the numbers closely, not shapes.": (
        padding_with(tolerance=1e9)
    ),
    "The correct models fail your test: pass attention_mask, compare the text's own tokens, allow for rounding.": (
        padding_with(mask=False)
    ),
    "One buggy model passes your test: its logits are off by a few hundredths, so allow no more than 1e-3.": (
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
    "True and False are swapped: True is for a correct model.": (
        lambda model, ids: not ignores_padding.solution(model, ids)
    ),
}
check_ignores_padding = ignores_padding.check


def decoder_cases():
    models = {
        "a correct model (tiny-decoder)": bugs.tiny_decoder(),
        "a correct model (tiny-relative-key)": bugs.tiny_relative_decoder(),
        "the buggy model K": bugs.buggy("K"),
        "a new buggy model": bugs.plant(bugs.tiny_decoder(), Embeddings, bugs.PositionsRestart),
        "a second new buggy model": bugs.plant(bugs.tiny_decoder(), Attention, bugs.CausalFromFirstKey),
        "a third new buggy model": bugs.plant(bugs.tiny_decoder(), Attention, bugs.RoundsCache),
        "a fourth new buggy model": bugs.plant(bugs.tiny_decoder(), Attention, bugs.IgnoresNewKey),
    }
    return make_cases(models, torch.arange(100, 111)[None])


DECODER_HINT = (
    "At once, in chunks of one token, in chunks of three: the same logits? Begin each pass without a cache; allow "
    "rounding up to atol=1e-3; return True or False, and raise nothing."
)


@exercise(decoder_cases, hint=DECODER_HINT)
def cached_equals_uncached(model, ids):
    with torch.no_grad():
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
    """cached_equals_uncached with a mistake."""

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


cached_equals_uncached.misconceptions = {
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
    "True and False are swapped: True is for a correct model.": (
        lambda model, ids: not cached_equals_uncached.solution(model, ids)
    ),
}
check_cached = cached_equals_uncached.check
