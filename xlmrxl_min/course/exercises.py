"""The exercises of the course: of each the one solution, what it is tried on, and the mistakes that are recognised.

    from xlmrxl_min.course.exercises import check_norm
    print(check_norm(my_norm))

The notebooks show these solutions, and a test holds them to it.
"""

from __future__ import annotations

import json
import math
import tempfile
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from safetensors.torch import save_file

from ..inference.predict import fill_mask
from ..model import XLMRobertaXLConfig, XLMRobertaXLForCausalLM, XLMRobertaXLForMaskedLM, XLMRobertaXLModel
from ..scale.planner import parameters
from ..tokenizer import XLMRobertaTokenizer
from .bugs import clipped, counted_by_place, cut_short, leaky, modest, patient, restarting, thrifty, top_left, unending
from .checks import Guess, compare, exercise, guess

__all__ = ["Guess", "compare", "guess"]  # and every check_NAME below


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- 00_start_here


@cache
def tiny():
    return XLMRobertaXLForMaskedLM.from_pretrained("tiny"), XLMRobertaTokenizer.from_pretrained("tiny")


def complete_cases():
    texts = ["Everyone has the right to <mask> liberty and <mask> of person.", "All human be<mask> are born free."]
    texts += ["人人生而<mask>,在尊严和权利上一律<mask>。", "Nothing is hidden here."]
    return [(*tiny(), text) for text in texts]


@exercise(complete_cases, hint="Each <mask> gets its own first guess; a text without one comes back as it is.")
def complete(model, tokenizer, text):
    if "<mask>" not in text:
        return text
    for predictions in fill_mask(model, tokenizer, text):
        text = text.replace("<mask>", predictions[0].text, 1)
    return text


def found_in(model, tokenizer, text):
    return fill_mask(model, tokenizer, text) if "<mask>" in text else []


def complete_with(guesses, count=1):
    """complete with a mistake. guesses: tokenizer, predictions of each mask -> what is put in, one after the other."""

    def mistaken(model, tokenizer, text):
        for guessed in guesses(tokenizer, found_in(model, tokenizer, text)):
            text = text.replace("<mask>", guessed, count)
        return text

    return mistaken


def complete_by_ids(skip_special_tokens):
    """complete with a mistake: there and back by the ids."""

    def mistaken(model, tokenizer, text):
        best = iter(predictions[0].token_id for predictions in found_in(model, tokenizer, text))
        ids = [next(best) if i == tokenizer.mask_token_id else i for i in tokenizer.encode(text)]
        return tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    return mistaken


def complete_in_turn(model, tokenizer, text):
    while "<mask>" in text:
        text = text.replace("<mask>", fill_mask(model, tokenizer, text)[0][0].text, 1)
    return text


def complete_words(model, tokenizer, text):
    best = iter(predictions[0].text for predictions in found_in(model, tokenizer, text))
    return " ".join(next(best) if word == "<mask>" else word for word in text.split(" "))


def first_of(found):
    return [predictions[0].text for predictions in found]


complete.misconceptions = {
    "Only the first <mask> is filled: there may be several.": complete_with(lambda _, found: first_of(found)[:1]),
    "All have got the first one's guess: `replace` replaces everywhere, unless it is given a count.": (
        complete_with(lambda _, found: first_of(found), count=-1)
    ),
    "These are the second guesses: counting begins at 0.": (
        complete_with(lambda _, found: [predictions[1].text for predictions in found])
    ),
    "The guesses are in reverse order: the first belongs to the first <mask>.": (
        complete_with(lambda _, found: first_of(found)[::-1])
    ),
    "Ask the model once, for all masks: here a later guess has seen the earlier ones.": complete_in_turn,
    "There is a space too many: those that are needed are in the text.": (
        complete_with(lambda _, found: [f" {guessed}" for guessed in first_of(found)])
    ),
    "These are pieces with their ▁: put in the `text` of a prediction.": (
        complete_with(lambda tokenizer, found: [tokenizer.convert_ids_to_tokens(x[0].token_id) for x in found])
    ),
    "Special tokens are left in it: change the text itself, not its ids.": complete_by_ids(skip_special_tokens=False),
    "Decoding has changed spaces, too: change the text itself, not its ids.": complete_by_ids(skip_special_tokens=True),
    "A <mask> need not be a whole word: one may stand in a word, or before a full stop.": complete_words,
}
check_complete = complete.check


def looked_at_cases():
    tokens = ["<s>", "▁No", "▁one", "▁is", "▁no", "▁one", "</s>"]  # one of them twice
    return [((draw(n, n, seed=n) + torch.eye(n)).softmax(-1), tokens[-n:]) for n in (7, 4)]


@exercise(looked_at_cases, hint="A list with one token for each row.")
def most_looked_at(weights, tokens):
    return [tokens[place] for place in weights.argmax(-1)]


def standing_at(tokens, places):
    return [tokens[place] for place in places]


most_looked_at.misconceptions = {
    "Rows look, columns are looked at: these are the tokens that look most at each.": (
        lambda weights, tokens: standing_at(tokens, weights.argmax(0))
    ),
    "These are places: give the tokens that stand there.": lambda weights, tokens: weights.argmax(-1),
    "These are the weights: give the tokens that get them.": lambda weights, tokens: weights.amax(-1),
    "That is where each looks least.": lambda weights, tokens: standing_at(tokens, weights.argmin(-1)),
    "A token may look most at itself: that counts, too.": (
        lambda weights, tokens: standing_at(tokens, (weights - torch.eye(len(weights))).argmax(-1))
    ),
    "Each row has its own largest weight: this is the token that all together look at most.": (
        lambda weights, tokens: standing_at(tokens, [weights.sum(0).argmax()] * len(tokens))
    ),
    "These are the tokens themselves: each looks at another one, or at itself.": lambda weights, tokens: tokens,
}
check_most_looked_at = most_looked_at.check


# ---- 01_tokens_and_embeddings


def ids_cases():
    tokens = ["▁free", "ᐃᓄ", "<s>", "<pad>", "</s>", "<unk>", "<mask>"]  # the second is in no vocabulary of ours
    return [(tokens, XLMRobertaTokenizer.from_pretrained(name).sp_model) for name in ("xlm-roberta-xl", "tiny")]


@exercise(ids_cases, hint="Three cases: a special token, an unknown piece, any other piece.")
def to_ids(tokens, sp):
    special = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": len(sp) + 1}
    ids = []
    for token in tokens:
        number = sp.piece_to_id(token)
        ids.append(special[token] if token in special else number + 1 if number else 3)
    return ids


def ids_with(shift=1, unknown=3, mask=lambda sp: len(sp) + 1, special=True):
    """to_ids with a mistake."""

    def mistaken(tokens, sp):
        own = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": mask(sp)} if special else {}
        numbers = {token: sp.piece_to_id(token) for token in tokens}
        return [own.get(token, number + shift if number else unknown) for token, number in numbers.items()]

    return mistaken


to_ids.misconceptions = {
    "A piece's id is its number in sp, plus one.": ids_with(shift=0),
    "What sp does not know is 0 there and 3 here; 0 + 1 is padding.": ids_with(unknown=1),
    "What sp does not know has the id 3, not 0: that is <s>.": ids_with(unknown=0),
    "Special tokens have ids of their own, whatever sp says.": ids_with(special=False),
    "<mask> comes after the last piece, wherever that is: not always 250001.": ids_with(mask=lambda sp: 250_001),
    "<mask> comes after the last piece: len(sp) + 1, as pieces are shifted by one.": ids_with(mask=len),
}
check_ids = to_ids.check


@cache
def real():
    """The real tokenizer, and all of its pieces."""
    tokenizer = XLMRobertaTokenizer.from_pretrained("xlm-roberta-xl")
    return tokenizer, frozenset(tokenizer.sp_model.id_to_piece(i) for i in range(3, len(tokenizer.sp_model)))


def fewest_cases():
    letters = [frozenset([*"abcdef", *longer]) for longer in (("ab", "abc", "cdef"), ("abcd", "def", "ef"))]
    return [*((text, real()[1]) for text in ("▁desempleo", "▁untranslatable")), *(("abcdef", x) for x in letters)]


def greedy(text, pieces):
    """From left to right, always the longest piece that fits."""
    cut = []
    while text:
        cut.append(max((text[:end] for end in range(1, len(text) + 1) if text[:end] in pieces), key=len))
        text = text[len(cut[-1]) :]
    return cut


def greedy_backwards(text, pieces):
    return [piece[::-1] for piece in greedy(text[::-1], {piece[::-1] for piece in pieces})][::-1]


def most_probable(text, pieces):
    return real()[0].tokenize(text.replace("▁", " "))


def judge_fewest(got, case):
    (text, pieces), fewest = case[:2], fewest_pieces.solution(*case[:2])
    if type(got) is int:
        return "Give the pieces themselves, not how many they are."
    if not isinstance(got, (list, tuple)):
        raise TypeError("a list of pieces is due")
    got, joined = list(got), "".join(got)
    if joined != text:
        is_reversed = "".join(got[::-1]) == text
        return (
            "The pieces are in reverse order: the last one is found first."
            if is_reversed
            else "Joined in their order, these pieces are not the text."
        )
    if not pieces.issuperset(got):
        return "Not all of these are in `pieces`."
    if len(got) <= len(fewest):
        return ""
    faults = {
        "These are the most pieces, not the fewest.": len(got) == len(text),
        "This is the most probable cut: let every piece cost the same.": got == most_probable(text, pieces),
        "The longest piece at every step is not the best in the end.": (
            got in (greedy(text, pieces), greedy_backwards(text, pieces))
        ),
        f"{text!r} can be cut into {len(fewest)} pieces, and yours are {len(got)}.": True,
    }
    return next(why for why, is_so in faults.items() if is_so)


@exercise(fewest_cases, judge=judge_fewest)
def fewest_pieces(text, pieces):
    longest = max(map(len, pieces))
    best, last = [0] + [math.inf] * len(text), [0] * (len(text) + 1)
    for end in range(1, len(text) + 1):
        for begin in range(max(0, end - longest), end):
            if text[begin:end] in pieces and best[begin] + 1 < best[end]:
                best[end], last[end] = best[begin] + 1, begin
    cut, end = [], len(text)
    while end:
        cut, end = [text[last[end] : end], *cut], last[end]
    return cut


fewest_pieces.misconceptions = {
    "These are the most pieces, not the fewest.": lambda text, pieces: list(text),
    "This is the most probable cut: let every piece cost the same.": most_probable,
    "The longest piece at every step is not the best in the end.": greedy,
    "The pieces are in reverse order: the last one is found first.": (
        lambda text, pieces: fewest_pieces.solution(text, pieces)[::-1]
    ),
    "Joined in their order, these pieces are not the text.": (
        lambda text, pieces: fewest_pieces.solution(text, pieces)[1:]
    ),
    "Not all of these are in `pieces`.": lambda text, pieces: [text],
    "Give the pieces themselves, not how many they are.": (
        lambda text, pieces: len(fewest_pieces.solution(text, pieces))
    ),
}
check_fewest = fewest_pieces.check


# ---- 02_attention


@exercise(
    lambda: [(torch.arange(480.0).reshape(2, 3, 80), 5), (draw(1, 4, 6), 3)],
    forbidden={"rearrange": "Now without einops."},
    hint="Cut e first, then let two axes change places.",
)
def split_heads(x, d):
    return x.unflatten(-1, (-1, d)).transpose(1, 2)


split_heads.misconceptions = {
    "Heads and tokens have not changed places yet: this is b t h d.": lambda x, d: x.unflatten(-1, (-1, d)),
    "Heads and width are swapped: d is the last axis.": lambda x, d: x.unflatten(-1, (d, -1)).transpose(1, 2),
    "One reshape tears the tokens apart: cut e first, then let two axes change places.": (
        lambda x, d: x.reshape(len(x), -1, x.shape[1], d)
    ),
    "The heads are in front of the texts: this is h b t d.": lambda x, d: torch.stack(x.split(d, dim=-1)),
    "A head owns d numbers that stand together, not every h-th one.": (
        lambda x, d: x.unflatten(-1, (d, -1)).permute(0, 3, 1, 2)
    ),
}
check_split_heads = split_heads.check


def attention_cases():
    cases = []
    for q, k in ((4, 4), (3, 5)):
        may = torch.rand(2, 1, q, k, generator=torch.Generator().manual_seed(k)) > 0.5
        may[..., 0], may[1, 0, 2] = True, False  # one query may attend to nothing
        query, key, value = draw(2, 3, q, 6), draw(2, 3, k, 6, seed=1), draw(2, 3, k, 6, seed=2)
        cases += [(query, key, value, torch.ones_like(may)), (query, key, value, may)]
    low = (-100 * query.abs().double(), key.abs().double(), value.double(), may)  # all scores are far below 0
    return [*cases, low]


@exercise(attention_cases, forbidden={"scaled_dot_product_attention": "But SDPA did it: write it out."})
def my_attention(query, key, value, attention_mask):
    scores = einsum(query, key, "b h q d, b h k d -> b h q k") / math.sqrt(query.shape[-1])
    scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    return einsum(scores.softmax(-1), value, "b h q k, b h k d -> b h q d")


def attention_with(divisor=None, hide=None, axis=-1, after=lambda weights, may: weights):
    """my_attention with a mistake. hide: scores, attention_mask -> scores; after: weights, attention_mask -> weights."""

    def mistaken(query, key, value, attention_mask):
        scores = query @ key.mT / (query.shape[-1] ** 0.5 if divisor is None else divisor(query, key))
        scores = (
            hide(scores, attention_mask) if hide else scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        )
        return after(scores.softmax(axis), attention_mask) @ value

    return mistaken


def unhidden(scores, may):
    return scores


my_attention.misconceptions = {
    "The scores are not divided: by √d, or the softmax is too sharp.": attention_with(lambda q, k: 1),
    "The scores are divided by d: by its root, please.": attention_with(lambda q, k: q.shape[-1]),
    "√d is the root of a head's width, not of the number of keys.": attention_with(lambda q, k: k.shape[2] ** 0.5),
    "The mask is inverted: True may attend, so hide ~attention_mask.": attention_with(
        hide=lambda scores, may: scores.masked_fill(may, torch.finfo(scores.dtype).min)
    ),
    "The weights of a query must sum to one over the keys: softmax(-1).": attention_with(axis=-2),
    "The softmax goes over the heads: the last axis, the keys, is meant.": attention_with(axis=1),
    "Zeros after the softmax come too late: the weights do not sum to one.": attention_with(
        hide=unhidden, after=lambda weights, may: weights.masked_fill(~may, 0)
    ),
    "A query that may see nothing has become NaN (−∞ everywhere, or 0/0): take a very low number.": attention_with(
        hide=lambda scores, may: scores.masked_fill(~may, -math.inf)
    ),
    "A query that may attend to nothing gets zeros, as from SDPA: here it spreads evenly.": attention_with(
        after=lambda weights, may: weights * may.any(-1, keepdim=True)
    ),
    "A score of 0 is not hidden, as e⁰ = 1: take a very low number.": attention_with(
        hide=lambda scores, may: scores * may
    ),
    "Adding the mask adds 1 where it is True, and hides nothing.": attention_with(
        hide=lambda scores, may: scores + may.float()
    ),
    "Every text has its own mask: this is the first one's for all.": attention_with(
        hide=lambda scores, may: scores.masked_fill(~may[:1], torch.finfo(scores.dtype).min)
    ),
    "The mask is not used.": attention_with(hide=unhidden),
}
my_attention.misconceptions |= {
    f"{-low:,} is not low enough for all scores: take torch.finfo(scores.dtype).min.": attention_with(
        hide=lambda scores, may, low=low: scores.masked_fill(~may, -low)
    )
    for low in (10, 20, 50, 100)
}
my_attention.misconceptions |= {
    f"Beside {-low:,.0f}, which is added, scores do not vanish, and a query that may see nothing does not spread "
    "evenly: take a much lower number, or masked_fill.": attention_with(
        hide=lambda scores, may, low=low: scores - low * ~may
    )
    for low in (1e3, 1e4, 1e5, 1e6, 1e7)
}
my_attention.misconceptions["Divide by √d; this multiplies by it."] = attention_with(lambda q, k: q.shape[-1] ** -0.5)
my_attention.misconceptions["Another head may have another width: d is query.shape[-1], not 32."] = attention_with(
    lambda q, k: 32**0.5
)
my_attention.misconceptions["The values are mixed, not the keys."] = lambda query, key, value, attention_mask: (
    my_attention.solution(query, key, key, attention_mask)
)
my_attention.misconceptions["These are the weights; they have yet to mix the values."] = (
    lambda query, key, value, attention_mask: (
        (query @ key.mT / query.shape[-1] ** 0.5).masked_fill(~attention_mask, torch.finfo(query.dtype).min).softmax(-1)
    )
)
my_attention.misconceptions["The softmax is missing: scores are not yet weights."] = (
    lambda query, key, value, attention_mask: (
        (query @ key.mT / query.shape[-1] ** 0.5).masked_fill(~attention_mask, torch.finfo(query.dtype).min) @ value
    )
)
check_attention = my_attention.check


# ---- 03_seeing_attention


@exercise(lambda: [(torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.2, 0.3, 0.4, 0.1]]),)], hint="A sum over the keys.")
def my_entropy(weights):
    return -(weights * weights.clamp_min(1e-30).log()).sum(-1)


def entropy(weights):
    return my_entropy.solution(weights)


my_entropy.misconceptions = {
    "The sign: an entropy is not negative.": lambda w: -entropy(w),
    "That is in bits: take the natural logarithm, for nats.": lambda w: entropy(w) / math.log(2),
    "A sum over the keys, not a mean.": lambda w: entropy(w) / w.shape[-1],
    "H itself, not exp(H).": lambda w: entropy(w).exp(),
    "0 · log 0 has become NaN: keep zeros away from the logarithm.": lambda w: -(w * w.log()).sum(-1),
    "Over the keys, the last axis: one number per query.": lambda w: -(w * w.clamp_min(1e-30).log()).sum(0),
}
check_entropy = my_entropy.check


@exercise(lambda: [(list(draw(3, 2, 5, 5).softmax(-1)),)], hint="Heads averaged, the last step only.")
def my_rollout(layers):
    total = torch.eye(layers[0].shape[-1])
    for weights in layers:
        step = 0.5 * weights.mean(0) + 0.5 * torch.eye(len(total))
        total = step @ total
    return total


def rollout_with(step, join):
    """my_rollout with a mistake."""

    def mistaken(layers):
        total = torch.eye(layers[0].shape[-1])
        for weights in layers:
            total = join(step(weights, torch.eye(len(total))), total)
        return total

    return mistaken


def halved(weights, one):
    return 0.5 * weights.mean(0) + 0.5 * one


my_rollout.misconceptions = {
    "The newest layer belongs on the left: its queries look at what earlier layers made.": rollout_with(
        halved, lambda step, total: total @ step
    ),
    "Where is the residual? Half of each step is the identity.": rollout_with(
        lambda weights, one: weights.mean(0), lambda step, total: step @ total
    ),
    "Half of the identity and half of the weights: the rows must sum to one.": rollout_with(
        lambda weights, one: weights.mean(0) + one, lambda step, total: step @ total
    ),
    "Layers are multiplied as matrices, not number by number.": lambda layers: math.prod(
        halved(weights, torch.eye(weights.shape[-1])) for weights in layers
    ),
    "The mean over heads, not their sum.": rollout_with(
        lambda weights, one: 0.5 * weights.sum(0) + 0.5 * one, lambda step, total: step @ total
    ),
}
check_rollout = my_rollout.check


# ---- 04_positions


@exercise(
    lambda: [(torch.arange(q * (q + k - 1)).reshape(q, -1), k) for q, k in ((4, 4), (3, 6), (5, 2), (2, 3))],
    hint="Row i moves left by q - 1 - i places.",
)
def my_skew(scores, columns):
    rows, width = scores.shape
    return F.pad(scores, (1, 0)).flatten()[rows:].reshape(rows, width)[:, :columns]


def rows_from(start):
    """Of every row the columns from `start`(row, rows) on."""
    return lambda scores, columns: torch.stack(
        [F.pad(row, (0, 1))[start(i, len(scores)) :][:columns] for i, row in enumerate(scores)]
    )


def one_shorter(scores):
    """The rows laid end to end, without both ends, and cut one shorter: what is wanted begins every row."""
    return scores.flatten()[len(scores) - 1 : -1].view(len(scores), -1)


my_skew.misconceptions = {
    "Row 0 has to move most, not least.": rows_from(lambda i, q: i),
    "Every row has moved one place too far.": rows_from(lambda i, q: q - i),
    "Nothing has moved.": rows_from(lambda i, q: 0),
    "All rows have moved equally far: only row 0 moves by q - 1.": rows_from(lambda i, q: q - 1),
    "Cut off the rest: of each row only the first `columns` are wanted.": lambda scores, columns: one_shorter(scores),
    "Of each row the first `columns` are wanted, not the last.": (
        lambda scores, columns: one_shorter(scores)[:, -columns:]
    ),
    "Rows and columns have changed places: a row for each query.": lambda scores, columns: (
        my_skew.solution(scores, columns).T
    ),
    "From right to left: the largest distance belongs to column 0.": (
        lambda scores, columns: my_skew.solution(scores, columns).flip(-1)
    ),
}
check_skew = my_skew.check


@exercise(lambda: [(1,), (2,), (3,), (512,)], hint="Write down all of i - j for three tokens, and count.")
def distances_used(tokens):
    return 2 * tokens - 1


distances_used.misconceptions = {
    "Distances have a sign: forward is not backward.": lambda tokens: tokens,
    "Zero counts once.": lambda tokens: 2 * tokens,
    "From -(tokens - 1) to tokens - 1: the farthest is tokens - 1 away.": lambda tokens: 2 * tokens + 1,
    "Zero is a distance, too: that of a token from itself.": lambda tokens: 2 * (tokens - 1),
    "Many pairs have the same distance.": lambda tokens: tokens**2,
    "A token is at distance 0 from itself, and distances have a sign.": lambda tokens: tokens - 1,
}
check_distances = distances_used.check


# ---- 05_the_block


@exercise(
    lambda: [(draw(2, 3, 4), draw(4, seed=1), draw(4, seed=2), 0.1)],
    hint="Compare with the formula, over the last axis; keepdim=True keeps an axis of size 1.",
)
def my_norm(x, gamma, beta, eps):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * gamma + beta


def centred(x, axis=-1):
    return x - x.mean(axis, keepdim=True)


def variance(x, unbiased=False, axis=-1):
    return x.var(axis, unbiased=unbiased, keepdim=True)


my_norm.misconceptions = {
    "The variance is divided by e - 1: unbiased=False divides by e.": (
        lambda x, gamma, beta, eps: centred(x) / (variance(x, unbiased=True) + eps).sqrt() * gamma + beta
    ),
    "eps belongs inside the root.": lambda x, gamma, beta, eps: centred(x) / (variance(x).sqrt() + eps) * gamma + beta,
    "The mean is not subtracted.": lambda x, gamma, beta, eps: x / (variance(x) + eps).sqrt() * gamma + beta,
    "gamma and beta are missing.": lambda x, gamma, beta, eps: centred(x) / (variance(x) + eps).sqrt(),
    "Divide by the root of the variance, not by the variance.": (
        lambda x, gamma, beta, eps: centred(x) / (variance(x) + eps) * gamma + beta
    ),
    "Each token by its own mean and variance, the last axis: not over the tokens.": (
        lambda x, gamma, beta, eps: centred(x, 1) / (variance(x, axis=1) + eps).sqrt() * gamma + beta
    ),
}
check_norm = my_norm.check


def block_cases():
    attend, think = draw(2, 4, 4, seed=1)
    norms = (lambda y: F.layer_norm(y, (4,))), (lambda y: F.layer_norm(y, (4,)) * 2)
    return [(draw(1, 3, 4), norms[0], lambda y: y @ attend, norms[1], lambda y: torch.tanh(y @ think))]


@exercise(block_cases)
def my_block(stream, norm_1, attend, norm_2, think):
    stream = stream + attend(norm_1(stream))
    return stream + think(norm_2(stream))


def block_with(first, second):
    """first: stream -> the middle; second: middle, stream -> the new stream; both know norms and branches."""

    def mistaken(stream, *parts):
        middle = first(stream, *parts)
        return second(middle, stream, *parts)

    return mistaken


def half(x, n1, a, n2, t):
    return x + a(n1(x))


my_block.misconceptions = {
    "That is post-LN: the norm stands after the addition.": block_with(
        lambda x, n1, a, n2, t: n1(x + a(x)), lambda m, x, n1, a, n2, t: n2(m + t(m))
    ),
    "The second half reads the old stream, not the one that attention has written to.": block_with(
        half, lambda m, x, n1, a, n2, t: m + t(n2(x))
    ),
    "The residuals are missing: add what each half makes to the stream.": block_with(
        lambda x, n1, a, n2, t: a(n1(x)), lambda m, x, n1, a, n2, t: t(n2(m))
    ),
    "Attention's part is lost: add to the new stream.": block_with(half, lambda m, x, n1, a, n2, t: x + t(n2(m))),
    "Each half has a norm of its own.": block_with(half, lambda m, x, n1, a, n2, t: m + t(n1(m))),
    "The second norm is missing.": block_with(half, lambda m, x, n1, a, n2, t: m + t(m)),
    "Add to the stream itself, not to the normed one.": block_with(
        lambda x, n1, a, n2, t: n1(x) + a(n1(x)), lambda m, x, n1, a, n2, t: n2(m) + t(n2(m))
    ),
}
check_block = my_block.check


# ---- 06_masked_language_model


@exercise(
    lambda: [(2 * draw(2, 5, 9), torch.tensor([[-100, 3, -100, -100, 8], [-100, -100, 0, -100, -100]]))],
    hint="One number: compare with the formula.",
)
def my_perplexity(logits, labels):
    asked = labels != -100
    log_probability = logits[asked].log_softmax(-1).gather(-1, labels[asked][:, None])
    return (-log_probability.mean()).exp()


def losses(logits, labels):
    return F.cross_entropy(logits[labels >= 0], labels[labels >= 0], reduction="none")


my_perplexity.misconceptions = {
    "That is the loss: e to it.": lambda logits, labels: losses(logits, labels).mean(),
    "First the mean, then the exponential.": lambda logits, labels: losses(logits, labels).exp().mean(),
    "The loss is in nats: e to it, not 2.": lambda logits, labels: 2 ** losses(logits, labels).mean(),
    "The sign: a perplexity is 1 or more.": lambda logits, labels: (-losses(logits, labels).mean()).exp(),
    "A mean over the labelled places, not a sum.": lambda logits, labels: losses(logits, labels).sum().exp(),
    "Divide by the number of labelled places, not of all.": (
        lambda logits, labels: (losses(logits, labels).sum() / labels.numel()).exp()
    ),
    "-100 is no label: leave those places out.": (
        lambda logits, labels: F.cross_entropy(logits.flatten(0, 1), labels.clamp_min(0).flatten()).exp()
    ),
}
check_perplexity = my_perplexity.check


def hide_cases():
    words = (torch.arange(60).expand(400, 60) + 1) // 2  # <s>, 29 words of two pieces, </s>
    ids = torch.randint(4, 40, (400, 60), generator=torch.Generator().manual_seed(0))  # a vocabulary of 41
    ids[:, 0], ids[:, -1] = 0, 2
    return [(ids, words, 0.15, torch.tensor([0, 1, 2, 3, 40]), 40)]


def judge_hide(got, case):
    (seen, labels), ids, given = got, case[0], case[5]
    chosen, swapped = labels != -100, (labels != -100) & (seen != ids) & (seen != 40)
    inner, (masked, left) = chosen[:, 1:-1], (((seen == x) & chosen).sum() / chosen.sum() for x in (40, ids))
    faults = {
        "`ids` itself was changed: work on a copy.": (given != ids).any(),
        "Labels are -100 where nothing was chosen.": chosen.all(),
        "Nothing is chosen.": not inner.any(),
        "Special tokens are chosen: leave them out.": chosen[:, [0, -1]].any(),
        "A label is the true token, not the seen one.": (labels != ids)[chosen].any(),
        "Tokens without a label are changed.": (seen != ids)[~chosen].any(),
        "It is always <mask>: one draw is used twice.": masked > 0.97,
        "The tenth that stays as it is needs its label, too.": left == 0,
        "Words are chosen in part: all pieces of a word take the word's draw.": (inner[:, ::2] != inner[:, 1::2]).any(),
        "15% of the words are to be chosen.": abs(inner.float().mean() - 0.15) > 0.02,
        "Random tokens may not be special: draw from 4 to mask_id - 1.": (seen[swapped] < 4).any(),
        "80% masked, 10% random, 10% left: the shares are others.": max(abs(masked - 0.8), abs(left - 0.1)) > 0.05,
    }
    return next((why for why, is_wrong in faults.items() if is_wrong), "")


@exercise(hide_cases, judge=judge_hide)
def my_hide(ids, word, share, special, mask_id):
    draws = torch.rand(ids.shape).gather(1, word)
    chosen = (draws < share) & ~torch.isin(ids, special)
    fate, other = torch.rand(ids.shape), torch.randint(4, mask_id, ids.shape)
    seen = ids.masked_fill(chosen & (fate < 0.8), mask_id)
    seen = other.where(chosen & (fate >= 0.9), seen)
    return seen, ids.masked_fill(~chosen, -100)


def hide_with(of_words=True, spare=True, once=False, lowest=4, in_place=False, labelled=None):
    """my_hide with a mistake. labelled: (ids, seen, chosen) -> labels."""

    def mistaken(ids, word, share, special, mask_id):
        draws = torch.rand(ids.shape).gather(1, word) if of_words else torch.rand(ids.shape)
        chosen = (draws < share) & (~torch.isin(ids, special) | (not spare))
        fate, other = draws if once else torch.rand(ids.shape), torch.randint(lowest, mask_id, ids.shape)
        true = ids.clone()
        seen = (ids.masked_fill_ if in_place else ids.masked_fill)(chosen & (fate < 0.8), mask_id)
        seen = other.where(chosen & (fate >= 0.9), seen)
        return seen, (true.masked_fill(~chosen, -100) if labelled is None else labelled(true, seen, chosen))

    return mistaken


my_hide.misconceptions = {
    "Words are chosen in part: all pieces of a word take the word's draw.": hide_with(of_words=False),
    "Special tokens are chosen: leave them out.": hide_with(spare=False),
    "It is always <mask>: one draw is used twice.": hide_with(once=True),
    "Random tokens may not be special: draw from 4 to mask_id - 1.": hide_with(lowest=0),
    "`ids` itself was changed: work on a copy.": hide_with(in_place=True),
    "Labels are -100 where nothing was chosen.": hide_with(labelled=lambda ids, seen, chosen: ids),
    "A label is the true token, not the seen one.": (
        hide_with(labelled=lambda ids, seen, chosen: seen.masked_fill(~chosen, -100))
    ),
    "The tenth that stays as it is needs its label, too.": (
        hide_with(labelled=lambda ids, seen, chosen: ids.masked_fill(seen == ids, -100))
    ),
}
check_hide = my_hide.check


# ---- 07_heads


def span_cases():
    start, end = torch.tensor([1.0, 0, 5, 0, 4, 0]) - 10, torch.tensor([0.0, 6, 0, 1, 0, 5.5]) - 10
    far = torch.tensor([5.0, 0, 0, 3, 0, 0]), torch.tensor([0.0, 0, 0, 0, 4, 5])
    return [(start, end, 3), (end, start, 1), (*far, 2), (end, start, 3)]


@exercise(span_cases, hint="Compare all pairs: the sum for i and j is start[i] + end[j], of the numbers as they are.")
def my_span(start, end, longest):
    sums = start[:, None] + end[None, :]
    possible = torch.ones_like(sums).triu().tril(longest - 1) > 0
    return divmod(int(sums.masked_fill(~possible, -math.inf).argmax()), len(end))


def span_where(allowed, low=-math.inf):
    """The best of the pairs for which `allowed`(end - start, longest)."""

    def mistaken(start, end, longest):
        at = torch.arange(len(start))
        possible = allowed(at[None, :] - at[:, None], longest)
        sums = (start[:, None] + end[None, :]).masked_fill(~possible, low)
        return divmod(int(sums.argmax()), len(end))

    return mistaken


my_span.misconceptions = {
    "The end may not stand before the start.": span_where(lambda further, longest: further < longest),
    "Some answers are too long: no more than `longest` tokens.": span_where(lambda further, longest: further >= 0),
    "One token too many: with longest=1 an answer is one token.": (
        span_where(lambda further, longest: (further >= 0) & (further <= longest))
    ),
    "One token too few: places i to j are j - i + 1 tokens.": (
        span_where(lambda further, longest: (further >= 0) & (further < longest - 1))
    ),
    "An impossible pair has won, as its sum is 0: take −∞.": (
        span_where(lambda further, longest: (further >= 0) & (further < longest), low=0.0)
    ),
    "i = j is allowed: an answer may be one token.": (
        span_where(lambda further, longest: (further >= 1) & (further < longest))
    ),
    "First i, then j: the start, then the end.": lambda *given: my_span.solution(*given)[::-1],
    "j is the last token itself, not the one after it.": (
        lambda *given: (my_span.solution(*given)[0], my_span.solution(*given)[1] + 1)
    ),
    "That is a place in the flattened table: divmod by t makes two of it.": (
        lambda start, end, longest: (
            my_span.solution(start, end, longest)[0] * len(end) + my_span.solution(start, end, longest)[1]
        )
    ),
    "The best start and the best end, each for itself, need not be an answer.": (
        lambda start, end, longest: (int(start.argmax()), int(end.argmax()))
    ),
}
check_span = my_span.check


def choice_cases():
    def encode(ids):
        if ids.dim() != 2:
            raise ValueError(f"encode takes n t, one text a row: here are {ids.dim()} axes")
        return torch.stack([ids.sum(-1), ids[:, 0]], -1).float()

    draws = torch.Generator().manual_seed(0)
    cases = [torch.randint(9, shape, generator=draws) for shape in ((3, 4, 5), (2, 3, 6))]
    return [(ids, encode, lambda x: x[:, :1] - 3 * x[:, 1:]) for ids in cases]


@exercise(choice_cases, hint="Two rearrangements, each the other backwards, and between them encode and score alone.")
def my_choice(ids, encode, score):
    first = encode(rearrange(ids, "b c t -> (b c) t"))
    return rearrange(score(first), "(b c) 1 -> b c", b=len(ids))


def choices(ids, encode, score):
    return my_choice.solution(ids, encode, score)


my_choice.misconceptions = {
    "b and c have changed places on the way back.": (
        lambda ids, encode, score: rearrange(choices(ids, encode, score), "b c -> (b c)").view(ids.shape[1], -1).T
    ),
    "b and c have changed places on the way in.": (
        lambda ids, encode, score: choices(ids, encode, score).T.reshape(len(ids), -1)
    ),
    "A number per choice, without a softmax.": lambda *inputs: choices(*inputs).softmax(-1),
    "A number per choice, without a logarithm of a softmax.": lambda *inputs: choices(*inputs).log_softmax(-1),
    "The softmax is over the texts, and none is asked for.": lambda *inputs: choices(*inputs).softmax(0),
    "One axis too many: b c, without the 1.": lambda *inputs: choices(*inputs)[..., None],
    "The numbers as `score` gives them, without a tanh.": lambda *inputs: choices(*inputs).tanh(),
    "What `encode` gives goes to `score` as it is: a pooler, and its tanh, are no part of this.": (
        lambda ids, encode, score: choices(ids, lambda texts: encode(texts).tanh(), score)
    ),
}
check_choice = my_choice.check


# ---- 08_decoder


def some_attention(heads):
    """Random weights, of heads eight wide."""
    sizes = {"vocab_size": 9, "hidden_size": 8 * heads, "num_attention_heads": heads, "num_hidden_layers": 1}
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = XLMRobertaXLModel(XLMRobertaXLConfig(**sizes, intermediate_size=24, initializer_range=0.3))
        attention = model.layers[0].attention.requires_grad_(False).eval()
        torch.nn.init.normal_(attention.out.bias)
    return attention


def step_cases():
    attention, hidden = some_attention(3), draw(2, 5, 24)
    past = attention.norm(hidden[:, :-1])
    return [(attention, hidden[:, -1:], attention.split_heads(attention.key(past)), attention.split_heads(attention.value(past)))]


@exercise(step_cases, hint="Give three things: the new stream, the keys, the values.")
def my_step(attention, hidden, keys, values):
    stream = attention.norm(hidden)
    query, key, value = (attention.split_heads(f(stream)) for f in (attention.query, attention.key, attention.value))
    keys, values = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
    mixed = F.scaled_dot_product_attention(query, keys, values)  # the last token may look at everything: no mask
    return hidden + attention.out(rearrange(mixed, "b h q d -> b q (h d)")), keys, values


def step_with(normed=True, joined=True, causal=False, residual=True, kept=True, first=False):
    """my_step with a mistake."""

    def mistaken(attention, hidden, keys, values):
        stream = attention.norm(hidden) if normed else hidden
        query, *new = (attention.split_heads(f(stream)) for f in (attention.query, attention.key, attention.value))
        parts = zip((keys, values), new, strict=True)
        both = [torch.cat([b, a] if first else [a, b], dim=2) for a, b in parts]
        seen = both if joined else (keys, values)
        mixed = F.scaled_dot_product_attention(query, *seen, is_causal=causal)
        out = attention.out(rearrange(mixed, "b h q d -> b q (h d)"))
        return hidden + out if residual else out, *(both if kept else (keys, values))

    return mistaken


my_step.misconceptions = {
    "Add what attention makes to the stream.": step_with(residual=False),
    "The new token does not see itself: its key and value belong to the others.": step_with(joined=False),
    "is_causal=True lets one query see only the first key: no mask is needed.": step_with(causal=True),
    "Query, key and value come from the normed stream.": step_with(normed=False),
    "Return also the keys and values, the new token's own at their end.": step_with(kept=False),
    "The new token's key and value belong at the end, after all earlier ones.": step_with(first=True),
}
check_step = my_step.check


def top_p_cases():
    row = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])
    return [(row, 0.6), (row, 0.01), (row, 0.95), (draw(20).softmax(-1), 0.5)]


@exercise(top_p_cases, hint="A token goes if those before it are enough already.")
def my_top_p(probabilities, p):
    ordered, places = probabilities.sort(descending=True)
    kept = ordered * (ordered.cumsum(-1) - ordered < p)  # what comes before it is not yet enough
    back = torch.zeros_like(kept).scatter(-1, places, kept)
    return back / back.sum()


def top_p_with(keep, back=lambda kept, places: torch.zeros_like(kept).scatter(-1, places, kept), whole=True):
    """my_top_p with a mistake. keep: the ordered ones and p -> which stay."""

    def mistaken(probabilities, p):
        ordered, places = probabilities.sort(descending=True)
        kept = back(ordered * keep(ordered, p), places)
        return kept / kept.sum() if whole else kept

    return mistaken


def enough(ordered, p):
    return ordered.cumsum(-1) - ordered < p


my_top_p.misconceptions = {
    "Let what is kept sum to 1 again.": top_p_with(enough, whole=False),
    "One token too many: the one that reaches p is the last.": top_p_with(
        lambda ordered, p: torch.cat([torch.ones(1) > 0, enough(ordered, p)[:-1]])
    ),
    "The token that reaches p belongs to them; at least one must be left.": top_p_with(
        lambda ordered, p: ordered.cumsum(-1) < p
    ),
    "The tokens are still in sorted order.": top_p_with(enough, back=lambda kept, places: kept),
    "Indexing with the places sorts once more: scatter takes everything back.": top_p_with(
        enough, back=lambda kept, places: kept[places]
    ),
    "That keeps the tokens whose own probability is p or more.": (
        lambda probabilities, p: probabilities * (probabilities >= p) / (probabilities * (probabilities >= p)).sum()
    ),
}
check_top_p = my_top_p.check


# ---- 09_precision_and_size


def count(e, f, layers, v, positions):
    """The parameters of a tied masked language model, as the notebook counts them by hand."""
    shape = {"hidden_size": e, "intermediate_size": f, "num_hidden_layers": layers, "vocab_size": v}
    config = XLMRobertaXLConfig(**shape, max_position_embeddings=positions, num_attention_heads=1)
    return sum(parameters(config).values())


@exercise(lambda: [(48, 200, 3, 4, 99, 20), (24, 60, 2, 2, 50, 30)], hint="Count each table and each matrix once.")
def my_count(e, f, layers, heads, v, positions):
    tables = layers * (2 * positions - 1) * (e // heads)
    return count(e, f, layers, v, positions) + v * e + tables


def count_off_by(difference):
    """my_count, and `difference`(e, layers, heads, v, positions, the numbers of one table) more."""

    def mistaken(e, f, layers, heads, v, positions):
        table = (2 * positions - 1) * (e // heads)
        return my_count.solution(e, f, layers, heads, v, positions) + difference(e, layers, heads, v, positions, table)

    return mistaken


my_count.misconceptions = {
    "The head has a matrix of its own: v times e more.": count_off_by(lambda e, n, h, v, p, table: -v * e),
    "One bias per word: the head's is counted already.": count_off_by(lambda e, n, h, v, p, table: v),
    "The tables of distances are missing.": count_off_by(lambda e, n, h, v, p, table: -n * table),
    "There is a table in each layer.": count_off_by(lambda e, n, h, v, p, table: (1 - n) * table),
    "From -(n - 1) to n - 1 there are 2 n - 1 distances, not 2 n.": (
        count_off_by(lambda e, n, h, v, p, table: n * (e // h))
    ),
    "From -(n - 1) to n - 1 there are 2 n - 1 distances, not 2 n + 1.": (
        count_off_by(lambda e, n, h, v, p, table: 2 * n * (e // h))
    ),
    "One table per layer: all heads share it, as wide as a head.": (
        count_off_by(lambda e, n, h, v, p, table: n * (h - 1) * table)
    ),
    "The table of absolute positions is still there.": count_off_by(lambda e, n, h, v, p, table: -p * e),
}
check_count = my_count.check


def int8_cases():
    weight = draw(60, 400) * torch.arange(60)[:, None]  # the first row is zero
    return [(weight,), (weight.bfloat16(),)]


def judge_int8(got, case):
    (q, scale), true = got, case[0].float()
    rows = torch.arange(60) > 0
    right = true.abs().amax(-1, keepdim=True) / 127
    if (q.dtype, q.shape, scale.dtype, scale.shape) != (torch.int8, true.shape, torch.float32, right.shape):
        return "q is to be torch.int8, as large as weight, and scale torch.float32, rows by 1."
    if not bool((scale > 0).all()):
        return "A row of zeros gives 0 / 0: keep the scale above 0."
    if ((scale / right)[rows] - 1).abs().max() > 0.001:
        return "Each row's own largest magnitude, divided by 127, is its scale; q * scale is weight."
    if ((q * scale - true).abs() / scale).max() > 0.51:
        return "Round, do not cut off; and in float32, for in bfloat16 127 may come out as 128."
    return ""


@exercise(int8_cases, judge=judge_int8)
def my_int8(weight):
    weight = weight.float()  # bfloat16 has no 127.5, and float16 no 1e-12
    scale = weight.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
    return (weight / scale).round().to(torch.int8), scale


def int8_with(largest=lambda w: w.abs().amax(-1, keepdim=True), low=1e-12, near=torch.round, dtype=torch.float32):
    """my_int8 with a mistake."""

    def mistaken(weight):
        weight = weight.to(dtype)
        scale = largest(weight).clamp_min(low) / 127
        return near(weight / scale).to(torch.int8), scale.to(dtype)

    return mistaken


my_int8.misconceptions = {
    "A row of zeros gives 0 / 0: keep the scale above 0.": int8_with(low=0.0),
    "Each row's own largest magnitude, divided by 127, is its scale; q * scale is weight.": (
        int8_with(largest=lambda w: w.abs().max().expand(len(w), 1))
    ),
    "Round, do not cut off; and in float32, for in bfloat16 127 may come out as 128.": int8_with(near=torch.trunc),
    "q is to be torch.int8, as large as weight, and scale torch.float32, rows by 1.": (
        int8_with(largest=lambda w: w.abs().amax(0, keepdim=True))
    ),
}
check_int8 = my_int8.check


# ---- 10_full_size


@cache
def shelf() -> tempfile.TemporaryDirectory:
    """A folder that goes when Python does."""
    return tempfile.TemporaryDirectory()


def row_cases():
    path = Path(shelf().name, "exercise.safetensors")
    save_file({"a": torch.ones(3, 2).bfloat16(), "b": torch.arange(56.0).view(8, 7).bfloat16()}, path)
    return [(path, "b", 3), (path, "a", 2), (path, "b", 0)]


def header_of(path):
    """What a safetensors file says of its tensors, and where its data begin; the notebook builds it."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), 8 + length


@exercise(row_cases, hint="A bfloat16 number has two bytes, and a tensor of torch.bfloat16 is due.")
def my_row(path, name, row):
    header, start = header_of(path)
    begin, width = header[name]["data_offsets"][0], header[name]["shape"][1]
    with open(path, "rb") as file:
        file.seek(start + begin + row * 2 * width)
        return torch.frombuffer(bytearray(file.read(2 * width)), dtype=torch.bfloat16)


def bytes_from(where, dtype=torch.bfloat16):
    """my_row with a mistake. where: start, begin, row, width -> the byte to begin at."""

    def mistaken(path, name, row):
        header, start = header_of(path)
        begin, width = header[name]["data_offsets"][0], header[name]["shape"][1]
        with open(path, "rb") as file:
            file.seek(where(start, begin, row, width))
            return torch.frombuffer(bytearray(file.read(2 * width)), dtype=dtype)

    return mistaken


my_row.misconceptions = {
    "Offsets count from the end of the header, not from the beginning of the file.": (
        bytes_from(lambda start, begin, row, width: begin + row * 2 * width)
    ),
    "The header's own eight bytes of length come before it.": (
        bytes_from(lambda start, begin, row, width: start - 8 + begin + row * 2 * width)
    ),
    "A matrix begins where its data_offsets say, not where all data do.": (
        bytes_from(lambda start, begin, row, width: start + row * 2 * width)
    ),
    "A number has two bytes: a row is twice as long.": (
        bytes_from(lambda start, begin, row, width: start + begin + row * width)
    ),
    "That is the first row, whatever is asked for.": bytes_from(lambda start, begin, row, width: start + begin),
    "These two bytes are bfloat16's, not float16's.": (
        bytes_from(lambda start, begin, row, width: start + begin + row * 2 * width, torch.float16)
    ),
}
check_row = my_row.check


@exercise(lambda: [(torch.arange(54.0).view(9, 6),), (draw(12, 4),)], hint="Three parts of its rows.")
def my_split(fused):
    return fused.chunk(3)


my_split.misconceptions = {
    "These are every third row: query's rows come first, all of them.": lambda fused: tuple(
        fused[i::3] for i in range(3)
    ),
    "Cut the rows, not the columns.": lambda fused: fused.chunk(3, dim=1),
    "The order is query, key, value.": lambda fused: fused.chunk(3)[::-1],
    "Key comes before value.": lambda fused: tuple(fused.chunk(3)[i] for i in (0, 2, 1)),
    "The three are turned: rows stay rows.": lambda fused: tuple(part.T for part in fused.chunk(3)),
}
check_split = my_split.check

# ---- 11_many_gpus


def by_columns(linear, x, rank, ranks):  # the notebook builds this one and the next
    return x @ linear.weight.chunk(ranks)[rank].T + linear.bias.chunk(ranks)[rank]


def by_rows(linear, x_part, rank, ranks):
    return x_part @ linear.weight.chunk(ranks, dim=1)[rank].T


def summand_cases():
    attention, normed = some_attention(4), draw(2, 5, 32)
    return [(attention, normed, rank, ranks) for ranks in (1, 2, 4) for rank in range(ranks)]


@exercise(summand_cases, hint="Whole heads, √d of a head, the own rows of out.")
def my_summand(attention, normed, rank, ranks):
    d = attention.head_dim
    linears = (attention.query, attention.key, attention.value)
    parts = (by_columns(linear, normed, rank, ranks) for linear in linears)
    query, key, value = (rearrange(part, "b t (h d) -> b h t d", d=d) for part in parts)
    weights = (query @ key.transpose(-1, -2) / d**0.5).softmax(-1)
    summand = by_rows(attention.out, rearrange(weights @ value, "b h t d -> b t (h d)"), rank, ranks)
    return summand + attention.out.bias if rank == 0 else summand


def summand_with(heads=None, divisor=lambda d: d**0.5, bias=lambda rank: rank == 0, own=True):
    """my_summand with a mistake. heads: of this many, whatever the rank has; own: the rank's own rows of out."""

    def mistaken(attention, normed, rank, ranks):
        parts = (by_columns(f, normed, rank, ranks) for f in (attention.query, attention.key, attention.value))
        count = heads or len(attention.heads) // ranks
        query, key, value = (part.unflatten(-1, (count, -1)).transpose(1, 2) for part in parts)
        weights = (query @ key.mT / divisor(query.shape[-1])).softmax(-1)
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        return by_rows(attention.out, mixed, rank if own else 0, ranks) + attention.out.bias * bias(rank)

    return mistaken


my_summand.misconceptions = {
    "The bias of out comes once for each rank: only rank 0 adds it.": summand_with(bias=lambda rank: True),
    "The bias of out is missing: rank 0 adds it.": summand_with(bias=lambda rank: False),
    "Each rank has fewer heads, not narrower ones: give d, not the number of all heads.": summand_with(heads=4),
    "Scores are divided by √d.": summand_with(divisor=lambda d: 1),
    "Scores are divided by √d, not by d.": summand_with(divisor=lambda d: d),
    "Each rank has rows of out of its own: these are rank 0's.": summand_with(own=False),
    "The residual is added by the caller, not here.": (
        lambda attention, normed, *at: normed + my_summand.solution(attention, normed, *at)
    ),
    "Rank 0 does it all, and the others nothing: that is right as a sum, and nobody is helped.": (
        lambda attention, normed, rank, ranks: my_summand.solution(attention, normed, 0, 1) * (rank == 0)
    ),
    "Every rank does it all, and gives a share of the result: nobody is helped.": (
        lambda attention, normed, rank, ranks: my_summand.solution(attention, normed, 0, 1) / ranks
    ),
}
check_summand = my_summand.check


def cut_cases():
    short = [[first, second] for first in ("columns", "rows") for second in ("columns", "rows")]
    return [(cuts,) for cuts in [*short, ["columns"], ["rows"], 2 * ["columns", "rows"], ["rows", *short[0], "rows"]]]


@exercise(cut_cases, hint="What does each rank have after a matrix, and what does the next step want?")
def needed(cuts):
    return len(cuts) - sum(pair == ("columns", "rows") for pair in pairwise(cuts))


def needed_and(more):
    """needed, and `more`(cuts) on top."""
    return lambda cuts: needed.solution(cuts) + more(cuts)


needed.misconceptions = {
    "Between columns and rows nothing travels: rows want just the part that columns have made.": len,
    "No sum can wait for the end: GELU(a + b) is not GELU(a) + GELU(b).": lambda cuts: 1,
    "Parts must be joined, too, unless rows come next.": lambda cuts: cuts.count("rows"),
    "Rows make summands, and these must be added up.": needed_and(lambda cuts: -cuts.count("rows")),
    "At the end everybody is to have the whole result: parts are joined there, too.": (
        needed_and(lambda cuts: -(cuts[-1] == "columns"))
    ),
    "An all-reduce is one collective, though it can be done as two.": needed_and(lambda cuts: cuts.count("rows")),
    "Rows take their part of what everybody has: for that nothing travels.": (
        needed_and(lambda cuts: sum(pair != ("columns", "rows") for pair in pairwise(["", *cuts]) if pair[1] == "rows"))
    ),
    "Columns, then rows, need nothing between them: not rows, then columns.": (
        lambda cuts: len(cuts) - list(pairwise(cuts)).count(("rows", "columns"))
    ),
}
check_needed = needed.check


# ---- 12_spot_the_bug


def named(models):
    """Each with the name that a check calls it by."""
    for who, model in models.items():
        model.eval().who = who
    return list(models.values())


@cache
def padding_cases():
    healthy = {
        f"healthy {name}": XLMRobertaXLForMaskedLM.from_pretrained(name) for name in ("tiny", "tiny-relative-key")
    }
    ill = {
        "patient B": patient("B"),
        "an ill stranger": counted_by_place(),
        "another ill stranger": leaky(),
        "a third ill stranger": unending(),
        "a fourth ill stranger": cut_short(),
        "a fifth ill stranger": clipped(),
    }
    return [(model, torch.arange(100, 121)[None]) for model in named(healthy | ill)]


PADDING_HINT = (
    "Alone, padded behind, padded before: the same logits for the same tokens? Padding has the id 1, and 0 in the "
    "mask; rounding may be up to atol=1e-3; give back True or False, and raise nothing."
)


@exercise(padding_cases, hint=PADDING_HINT)
def ignores_padding(model, ids):
    with torch.no_grad():
        alone = model(ids).logits
        for before, behind in ((0, 3), (3, 0)):
            padded = F.pad(ids, (before, behind), value=1)
            beside = model(padded, attention_mask=(padded != 1).long()).logits
            if not torch.allclose(alone, beside[:, before : before + ids.shape[1]], atol=1e-3):
                return False
    return True


def padding_with(sides=((0, 3), (3, 0)), mask=True, as_number=False, tolerance=1e-3, size=torch.abs, **options):
    """ignores_padding with a mistake."""

    def mistaken(model, ids):
        found = []
        with torch.no_grad():
            alone = model(ids, **options).logits
            for before, behind in sides:
                padded = F.pad(ids, (before, behind), value=1)
                shown = {"attention_mask": (padded != 1).long()} if mask else {}
                beside = model(padded, **shown, **options).logits[:, before : before + ids.shape[1]]
                found.append(size(alone - beside).max().item())
        return max(found) if as_number else all(difference < tolerance for difference in found)

    return mistaken


ignores_padding.misconceptions = {
    "All ill models pass your test: pad the text, and compare the numbers closely, not shapes.": (
        padding_with(tolerance=1e9)
    ),
    "The healthy ones fail your test: pass attention_mask, compare the text's own places, allow for rounding.": (
        padding_with(mask=False)
    ),
    "One ill model passes your test: its logits are off by a tenth only, so allow no more than 1e-3.": (
        padding_with(tolerance=1.0)
    ),
    "One ill model passes your test: its positions are wrong only where padding stands before the text.": (
        padding_with(sides=((0, 3),))
    ),
    "One ill model passes your test: it errs only where padding stands behind the text.": (
        padding_with(sides=((3, 0),))
    ),
    "One ill model passes your test: its logits are never too low, only too high: so take `.abs()`.": (
        padding_with(size=lambda difference: difference)
    ),
    "One ill model passes your test: it is ill at the last token alone, and there too low: compare all, by `.abs()`.": (
        padding_with(size=lambda difference: difference[:, 0].abs())
    ),
    "Three ill models pass your test: with output_attentions=True another path computes, which is well.": (
        padding_with(output_attentions=True)
    ),
    "Give True or False, not the difference: True where it is below 1e-3.": padding_with(as_number=True),
    "True and False have changed places: True is for a model that is well.": (
        lambda model, ids: not ignores_padding.solution(model, ids)
    ),
}
check_ignores_padding = ignores_padding.check


@cache
def decoder_cases():
    healthy = {
        name: XLMRobertaXLForCausalLM.from_pretrained(name, is_decoder=True)
        for name in ("tiny-decoder", "tiny-relative-key")
    }
    ill = {"patient K": patient("K"), "an ill stranger": restarting(), "another ill stranger": top_left()}
    ill |= {"a third ill stranger": thrifty(), "a fourth ill stranger": modest()}
    models = {f"healthy {name}": model for name, model in healthy.items()} | ill
    return [(model, torch.arange(100, 111)[None]) for model in named(models)]


DECODER_HINT = (
    "Whole, in pieces of one token, in pieces of three: the same logits? Every reading begins without a cache; "
    "rounding may be up to atol=1e-3; give back True or False, and raise nothing."
)


@exercise(decoder_cases, hint=DECODER_HINT)
def cached_equals_whole(model, ids):
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        for size in (1, 3):
            cache, logits = None, []
            for piece in ids.split(size, dim=1):
                out = model(piece, past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                logits.append(out.logits)
            if not torch.allclose(whole, torch.cat(logits, dim=1), atol=1e-3):
                return False
    return True


def cached_with(sizes=(1, 3), hand_on=True, as_number=False, tolerance=1e-3):
    """cached_equals_whole with a mistake. hand_on: the cache goes on from piece to piece."""

    def mistaken(model, ids):
        found = []
        with torch.no_grad():
            whole = model(ids, use_cache=False).logits
            for size in sizes:
                cache, logits = None, []
                for piece in ids.split(size, dim=1):
                    out = model(piece, past_key_values=cache, use_cache=True)
                    cache = out.past_key_values if hand_on else None
                    logits.append(out.logits)
                found.append((whole - torch.cat(logits, dim=1)).abs().max().item())
        return max(found) if as_number else all(difference < tolerance for difference in found)

    return mistaken


cached_equals_whole.misconceptions = {
    "Two ill models pass your test: one new token at a time they are right; pieces of several are where they err.": (
        cached_with(sizes=(1,))
    ),
    "All ill models pass your test: compare the numbers, of logits, and closely.": cached_with(tolerance=1e9),
    "All ill models pass your test: in one piece they are right, so read the text in several.": (
        cached_with(sizes=(20,))
    ),
    "One ill model passes your test: it errs only where a single new token comes.": cached_with(sizes=(3,)),
    "The healthy ones fail your test: begin without a cache, hand it from piece to piece, allow for rounding, 1e-3.": (
        cached_with(hand_on=False)
    ),
    "One ill model passes your test: its logits are off by a tenth only, so allow no more than 1e-3.": (
        cached_with(tolerance=1.0)
    ),
    "Give True or False, not the difference: True where it is below 1e-3.": cached_with(as_number=True),
    "True and False have changed places: True is for a model that is well.": (
        lambda model, ids: not cached_equals_whole.solution(model, ids)
    ),
}
check_cached = cached_equals_whole.check
__all__ += [name for name in globals() if name.startswith("check_")]
