"""The steps of notebooks/08_decoder.ipynb."""

import torch
import torch.nn.functional as F

from ..checks import Exercise, as_tensor, call, copy_case, exercise, randn
from . import solution
from .attention import HIDDEN, MASK
from .tokens_and_embeddings import ABSOLUTE

LOW = torch.finfo(torch.float32).min


class MaskExercise(Exercise):
    """The result has to be of booleans."""

    def find_fault(self, result, expected, case, arguments):
        fault = super().find_fault(result, expected, case, arguments)
        return fault or ("" if as_tensor(result).dtype == torch.bool else NO_BOOLEANS)


NO_BOOLEANS = "These are numbers, and should be booleans: `~mask` and `masked_fill` need them."
causal_mask = MaskExercise(
    solution.causal_mask, lambda: [(4, 4), (1, 5), (2, 5), (1, 1)], {}, grade=None,
    hint="`tril(n)` keeps the n-th diagonal and what is below it. The last query may attend to all keys.",
)  # fmt: skip


def triangle(diagonal):
    """diagonal: queries, keys -> the last diagonal that is True."""
    return lambda queries, keys: torch.ones(queries, keys).tril(diagonal(queries, keys)) > 0


causal_mask.misconceptions = {
    NO_BOOLEANS: lambda q, k: torch.ones(q, k).tril(k - q),
    "These are numbers to add to the scores: return booleans, True = may attend.": (
        lambda q, k: torch.zeros(q, k).masked_fill(~solution.causal_mask(q, k), -torch.inf)
    ),
    "Everything is allowed: a query must not attend to later tokens.": lambda q, k: torch.ones(q, k) > 0,
    "This allows what must be hidden: row q is True for itself and what is before.": (
        lambda q, k: torch.ones(q, k).triu(k - q + 1) > 0
    ),
    "This allows a query itself and what comes after it: it should be what comes before.": (
        lambda q, k: torch.ones(q, k).triu(k - q) > 0
    ),
    "A query may attend to itself, too: its own token is given, the next one is predicted.": (
        triangle(lambda q, k: k - q - 1)
    ),
    "Each query sees the token that it is to predict: one diagonal too many.": triangle(lambda q, k: k - q + 1),
    "The queries are the last of the keys: one query and five keys may attend to all five.": triangle(lambda q, k: 0),
    "Rows and columns are swapped: a row for each query, a column for each key.": (
        lambda q, k: solution.causal_mask(q, k).T
    ),
}


def cached_cases():
    keys, values = randn(2, 3, 4, 4, seed=1), randn(2, 3, 4, 4, seed=2)
    return [
        (ABSOLUTE, HIDDEN, keys[:, :, :0], values[:, :, :0]),  # a prompt
        (ABSOLUTE, HIDDEN[:, :1], keys, values),
        (ABSOLUTE, HIDDEN[:, :3], keys, values),
    ]


def calls_scores(mine):
    """The last test of CachedAttention: the scores are those of the parent class."""
    calls = []

    def scores(self, query, key):
        calls.append(key)
        return super(watched, self).scores(query, key)

    watched = type("Watched", (mine,), {"scores": scores})
    call(watched, copy_case(cached_attention.cases[0][0]))
    return "" if calls else SCORES_ELSEWHERE


SCORES_ELSEWHERE = "Right numbers. But self.scores was not called: it is the one place where scores are computed."
cached_attention = exercise(
    cached_cases,
    hint="Append the new keys and values with `torch.cat(…, dim=2)`, and return three things.",
    last=calls_scores,
)(solution.CachedAttention)


def sdpa(query, keys, values):
    may_attend = solution.causal_mask(query.shape[2], keys.shape[2])
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=may_attend)


def append(old, new):
    return torch.cat([old, new], dim=2)


def cached_with(
    join=append, attention=sdpa, finish=lambda self, hidden, context: self.out(context),
    keep=lambda old, new, both: both,
):  # fmt: skip
    """CachedAttention with a mistake. finish: the module, hidden, the merged heads -> the first result."""

    def mistaken(self, hidden, keys, values):
        query, *new = (solution.split_heads(part(hidden), 4) for part in (self.query, self.key, self.value))
        old = keys, values
        both = [join(a, b) for a, b in zip(old, new, strict=True)]
        context = solution.merge_heads(attention(query, *both))
        return finish(self, hidden, context), *(keep(*three) for three in zip(old, new, both, strict=True))

    return type("Mistaken", (solution.CachedAttention,), {"forward": mistaken})


def unmasked(query, keys, values):
    return F.scaled_dot_product_attention(query, keys, values)


def without_offset(query, keys, values):
    return F.scaled_dot_product_attention(query, keys, values, is_causal=True)


def masked_afterwards(query, keys, values):
    may_attend = solution.causal_mask(query.shape[2], keys.shape[2])
    return (solution.attention_scores(query, keys).softmax(-1) * may_attend) @ values


def softmax_over_queries(query, keys, values):
    may_attend = solution.causal_mask(query.shape[2], keys.shape[2])
    return solution.attention_scores(query, keys).masked_fill(~may_attend, LOW).softmax(-2) @ values


def unscaled(query, keys, values):
    may_attend = solution.causal_mask(query.shape[2], keys.shape[2])
    return (query @ keys.mT).masked_fill(~may_attend, LOW).softmax(-1) @ values


cached_attention.misconceptions = {
    "The mask is missing: within the new tokens, a query must not attend to later ones.": cached_with(
        attention=unmasked
    ),
    "The mask ignores the cache: all earlier keys are before the new queries.": cached_with(attention=without_offset),
    "The new tokens' keys and values belong at the end, after the earlier ones.": cached_with(
        join=lambda old, new: append(new, old)
    ),
    "The earlier keys and values are not used: the new tokens attend to them, too.": cached_with(
        attention=lambda query, keys, values: sdpa(
            query, keys[:, :, -query.shape[2] :], values[:, :, -query.shape[2] :]
        )
    ),
    "The new keys and values are used, but not returned: the next token needs them.": cached_with(
        keep=lambda old, new, both: old
    ),
    "Return all keys and values, the earlier ones too, not the new ones only.": cached_with(
        keep=lambda old, new, both: new
    ),
    "Do not add `hidden` here: the residual belongs to the block.": cached_with(
        finish=lambda self, hidden, context: hidden + self.out(context)
    ),
    "The last projection, `out`, is missing.": cached_with(finish=lambda self, hidden, context: context),
    "The mask comes before the softmax: multiplied afterwards, the weights of a query no longer sum to 1.": (
        cached_with(attention=masked_afterwards)
    ),
    "The softmax is over the keys, the last axis, and not over the queries.": cached_with(
        attention=softmax_over_queries
    ),
    "The scores are not divided by √d: use self.scores.": cached_with(attention=unscaled),
}


VOCABULARY, END = 11, 7


def make_model(seed, prompt_length):
    """A model with a cache. It refuses to compute again what it could have kept."""
    table, head = randn(VOCABULARY, 6, seed=seed), randn(6, VOCABULARY, seed=seed + 100)

    def model(ids, cache):
        earlier = cache.get("ids", ids[:, :0])
        if not cache and ids.shape[1] > prompt_length:
            raise ValueError("this computes the earlier tokens again: keep the cache, and pass the new token only.")
        cache["ids"] = append_ids(earlier, ids)
        return (table[cache["ids"]].cumsum(1) @ head)[:, earlier.shape[1] :]

    return model


def append_ids(ids, new):
    return torch.cat([ids, new], dim=1)


def generate_cases():
    prompt, with_end = torch.tensor([[0, 4, 9]]), torch.tensor([[0, END, 9]])
    cases = [(make_model(seed, 3), prompt, count, END) for seed, count in ((3, 6), (23, 9), (16, 1), (11, 3), (37, 12))]
    return [*cases, (make_model(163, 3), with_end, 4, END)]


generate = exercise(
    generate_cases, hint="The model gets the prompt and an empty cache first, then each time the new token."
)(solution.generate)


def generate_with(
    at=-1, feed=lambda ids, new: new, make_cache=lambda cache: cache, extra=0,
    is_end=lambda ids, new, eos_id: int(new) == eos_id, keep_end=True,
):  # fmt: skip
    """generate with a mistake. feed: all ids, the new one -> what the model gets next."""

    def mistaken(model, ids, max_new_tokens, eos_id):
        cache, given = {}, ids
        for _ in range(max_new_tokens + extra):
            new = model(given, cache)[:, at].argmax(-1)[None]
            if not keep_end and int(new) == eos_id:
                break
            ids = append_ids(ids, new)
            given, cache = feed(ids, new), make_cache(cache)
            if is_end(ids, new, eos_id):
                break
        return ids

    return mistaken


generate.misconceptions = {
    "With a cache the model gets the new token only: this passes the earlier ones again.": generate_with(
        feed=lambda ids, new: ids
    ),
    "A new cache for each token forgets the text: make one, before the loop.": generate_with(
        make_cache=lambda cache: {}
    ),
    "The next token is predicted at the last position, not at the first.": generate_with(at=0),
    "The new token follows the last one: this feeds the prompt's last token again.": generate_with(
        feed=lambda ids, new: ids[:, 2:3]
    ),
    "Stop after eos_id: the text is finished.": generate_with(is_end=lambda ids, new, eos_id: False),
    "An eos_id in the prompt does not end the text: look at the new token only.": generate_with(
        is_end=lambda ids, new, eos_id: eos_id in ids
    ),
    "The token eos_id belongs to the result: append it, then stop.": generate_with(keep_end=False),
    "That is one token too many.": generate_with(extra=1),
    "That is one token too few.": generate_with(extra=-1),
    "Return the prompt, too, not the new tokens only.": (
        lambda model, ids, count, eos_id: solution.generate(model, ids, count, eos_id)[:, ids.shape[1] :]
    ),
}


def top_p_cases():
    row = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])
    return [(row, 0.6), (row, 0.01), (row, 0.95), (randn(20).softmax(-1), 0.5), (torch.full((4,), 0.25), 0.5)]


class TopPExercise(Exercise):
    """Which of equally probable tokens are kept does not matter."""

    def find_fault(self, result, expected, case, arguments):
        if len(case[0].unique()) == 1 and isinstance(result, torch.Tensor) and result.shape == expected.shape:
            result, expected = result.sort().values, expected.sort().values
        return super().find_fault(result, expected, case, arguments)


top_p = TopPExercise(
    solution.top_p, top_p_cases, {}, grade=None,
    hint="A token is cut off if those before it, in sorted order, are enough already.",
)  # fmt: skip


def is_kept(ordered, p):
    return ordered.cumsum(-1) - ordered < p


def unsort(kept, indices):
    return torch.zeros_like(kept).scatter(-1, indices, kept)


def top_p_with(keep=is_kept, unsort=unsort, normalize=True):
    """top_p with a mistake. keep: sorted probabilities, p -> which are kept."""

    def mistaken(probabilities, p):
        ordered, indices = probabilities.sort(descending=True)
        kept = unsort(ordered * keep(ordered, p), indices)
        return kept / kept.sum() if normalize else kept

    return mistaken


def with_all_ties(probabilities, p):
    kept = probabilities * (probabilities >= probabilities[solution.top_p(probabilities, p) > 0].min())
    return kept / kept.sum()


top_p.misconceptions = {
    "Of equally probable tokens, too, keep only as many as are needed.": with_all_ties,
    "If the tokens before it sum to exactly p, they are enough: compare with `<`, not with `<=`.": top_p_with(
        lambda ordered, p: ordered.cumsum(-1) - ordered <= p
    ),
    "Normalize what is kept: it must sum to 1 again.": top_p_with(normalize=False),
    "One token too many: the one that reaches p is the last.": top_p_with(
        lambda ordered, p: torch.cat([torch.ones(1) > 0, is_kept(ordered, p)[:-1]])
    ),
    "The token that reaches p is kept; at least one must be left.": top_p_with(
        lambda ordered, p: ordered.cumsum(-1) < p
    ),
    "The tokens are still in sorted order.": top_p_with(unsort=lambda kept, indices: kept),
    "Indexing with the indices sorts once more: scatter restores the order.": top_p_with(
        unsort=lambda kept, indices: kept[indices]
    ),
    "That keeps the tokens whose own probability is p or more.": (
        lambda probabilities, p: probabilities * (probabilities >= p) / (probabilities * (probabilities >= p)).sum()
    ),
}


def cross_cases():
    states = randn(2, 5, 12, seed=5)
    return [(ABSOLUTE, HIDDEN, states, MASK), (ABSOLUTE, HIDDEN[:, :3], states, torch.ones_like(MASK))]


cross_attention = exercise(
    cross_cases, hint="As in Attention, but `key` and `value` are applied to the encoder's states. No causal mask."
)(solution.CrossAttention)


def cross_with(sources, finish=lambda self, hidden, context: self.out(context), mask=lambda mask: mask):
    """CrossAttention with a mistake. sources: hidden, states -> what query, key and value are made of."""

    def mistaken(self, hidden, states, states_mask):
        parts = zip((self.query, self.key, self.value), sources(hidden, states), strict=True)
        query, key, value = (solution.split_heads(part(source), self.width) for part, source in parts)
        scores = solution.attention_scores(query, key)
        return finish(self, hidden, solution.merge_heads(solution.attend(scores, value, mask(states_mask))))

    return type("Mistaken", (solution.CrossAttention,), {"forward": mistaken})


def right(hidden, states):
    return hidden, states, states


cross_attention.misconceptions = {
    "This is self-attention: keys and values are made of the encoder's states.": cross_with(
        lambda hidden, states: (hidden, hidden, hidden)
    ),
    "The values, too, are made of the encoder's states.": cross_with(lambda hidden, states: (hidden, states, hidden)),
    "Queries come from the decoder's hidden states, keys and values from the encoder's: here it is the other way "
    "round.": cross_with(lambda hidden, states: (states, hidden, hidden)),
    "The queries are made of the decoder's hidden states: this never looks at them.": cross_with(
        lambda hidden, states: (states, states, states)
    ),
    "The mask of the encoder's states is not used.": cross_with(right, mask=torch.ones_like),
    "Do not add `hidden` here: the residual belongs to the block.": cross_with(
        right, lambda self, hidden, context: hidden + self.out(context)
    ),
    "The last projection, `out`, is missing.": cross_with(right, lambda self, hidden, context: context),
}
