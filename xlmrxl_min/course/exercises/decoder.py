"""The exercises of notebooks/08_decoder.ipynb."""

import torch
import torch.nn.functional as F
from einops import rearrange

from ..checks import exercise, randn, random_attention


def step_cases():
    attention, hidden = random_attention(3), randn(2, 5, 24)
    past = attention.norm(hidden[:, :-1])
    keys, values = (attention.split_heads(linear(past)) for linear in (attention.key, attention.value))
    return [(attention, hidden[:, -1:], keys, values)]


@exercise(step_cases, hint="Return three things: the new stream, the keys, the values.")
def my_step(attention, hidden, keys, values):
    stream = attention.norm(hidden)
    query, key, value = (attention.split_heads(f(stream)) for f in (attention.query, attention.key, attention.value))
    keys, values = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
    context = F.scaled_dot_product_attention(query, keys, values)  # the last token may attend to everything: no mask
    return hidden + attention.out(rearrange(context, "b h q d -> b q (h d)")), keys, values


def step_with(normed=True, sees_itself=True, causal=False, residual=True, keep=True, in_front=False):
    """my_step with a mistake."""

    def mistaken(attention, hidden, keys, values):
        stream = attention.norm(hidden) if normed else hidden
        query, *new = (attention.split_heads(f(stream)) for f in (attention.query, attention.key, attention.value))
        pairs = zip((keys, values), new, strict=True)
        extended = [torch.cat([b, a] if in_front else [a, b], dim=2) for a, b in pairs]
        attended = extended if sees_itself else (keys, values)
        context = F.scaled_dot_product_attention(query, *attended, is_causal=causal)
        out = attention.out(rearrange(context, "b h q d -> b q (h d)"))
        return hidden + out if residual else out, *(extended if keep else (keys, values))

    return mistaken


my_step.misconceptions = {
    "Add what attention makes to the stream.": step_with(residual=False),
    "The new token does not attend to itself: append its key and value to the others.": step_with(sees_itself=False),
    "is_causal=True lets one query attend only to the first key: no mask is needed.": step_with(causal=True),
    "Query, key and value come from the normed stream.": step_with(normed=False),
    "Return also the keys and values, the new token's own at their end.": step_with(keep=False),
    "The new token's key and value belong at the end, after all earlier ones.": step_with(in_front=True),
}
check_step = my_step.check


def top_p_cases():
    row = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])
    return [(row, 0.6), (row, 0.01), (row, 0.95), (randn(20).softmax(-1), 0.5)]


@exercise(top_p_cases, hint="A token is dropped if those before it are enough already.")
def my_top_p(probabilities, p):
    ordered, indices = probabilities.sort(descending=True)
    kept = ordered * (ordered.cumsum(-1) - ordered < p)  # what comes before it is not yet enough
    result = torch.zeros_like(kept).scatter(-1, indices, kept)
    return result / result.sum()


def is_kept(ordered, p):
    return ordered.cumsum(-1) - ordered < p


def unsort(kept, indices):
    return torch.zeros_like(kept).scatter(-1, indices, kept)


def top_p_with(keep=is_kept, unsort=unsort, normalize=True):
    """my_top_p with a mistake. keep: sorted probabilities, p -> which are kept."""

    def mistaken(probabilities, p):
        ordered, indices = probabilities.sort(descending=True)
        kept = unsort(ordered * keep(ordered, p), indices)
        return kept / kept.sum() if normalize else kept

    return mistaken


my_top_p.misconceptions = {
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
check_top_p = my_top_p.check
