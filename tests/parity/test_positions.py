"""Relative positions: the skew against the plain einsum, values and gradients; long texts against transformers."""

import math

import pytest
import torch
from einops import einsum, rearrange
from transformers_reference import error, gradient_error, twins

from xlmrxl_min.model import QUERY_BLOCK_SIZE, relative_scores, skew

TYPES = ("relative_key", "relative_key_query")
LONG = 2 * QUERY_BLOCK_SIZE + 5  # three blocks of rows, the last one not full


def oracle(attention, query, key):
    """The formula as it is written: one vector for every pair of a query and a key, `q k d` numbers."""
    key_at = torch.arange(key.shape[2])
    query_at = key_at[key.shape[2] - query.shape[2] :]
    farthest = attention.distance.num_embeddings // 2
    pairs = attention.distance(rearrange(query_at, "q -> q 1") - key_at + farthest)  # q k d
    bias = einsum(query, pairs, "b h q d, q k d -> b h q k")
    if attention.position_embedding_type == "relative_key_query":
        bias = bias + einsum(key, pairs, "b h k d, q k d -> b h q k")
    return bias / math.sqrt(attention.head_dim)


def attention_of(position_embedding_type):
    model = twins("Model", position_embedding_type=position_embedding_type, max_position_embeddings=LONG)[1]
    return model.double().layers[0].attention


@pytest.mark.parametrize(
    ("queries", "keys"),
    [
        *[(1, 1), (1, 9), (2, 2), (3, 9), (8, 9), (1, LONG), (LONG, LONG), (QUERY_BLOCK_SIZE, QUERY_BLOCK_SIZE)],
        *[(QUERY_BLOCK_SIZE + 1, LONG), (2 * QUERY_BLOCK_SIZE, 2 * QUERY_BLOCK_SIZE + 1)],
    ],
)
@pytest.mark.parametrize("position_embedding_type", TYPES)
def test_the_skew_equals_the_plain_einsum(position_embedding_type, queries, keys):
    attention = attention_of(position_embedding_type)
    query, key = (torch.randn(2, 3, n, 8, dtype=torch.float64, requires_grad=True) for n in (queries, keys))
    inputs = [query, key, attention.distance.weight]
    downstream = torch.randn(2, 3, queries, keys, dtype=torch.float64)
    results = []
    for bias in (attention.position_bias(query, key, keys - queries), oracle(attention, query, key)):
        gradients = torch.autograd.grad((bias * downstream).sum(), inputs, allow_unused=True)
        results.append((bias, *(torch.zeros(()) if g is None else g for g in gradients)))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)


def test_gradients_equal_finite_differences():
    attention = attention_of("relative_key_query")
    query, key = (torch.randn(1, 1, n, 8, dtype=torch.float64, requires_grad=True) for n in (3, 5))
    assert torch.autograd.gradcheck(attention.position_bias, (query, key, 2))


def test_the_skew_is_a_view():
    scores = torch.arange(2 * 3 * 7.0).reshape(1, 2, 3, 7)
    skewed = skew(scores, 5)
    assert skewed.shape == (1, 2, 3, 5)
    assert skewed.untyped_storage().data_ptr() == scores.untyped_storage().data_ptr()
    assert skewed[0, 0].tolist() == [[2, 3, 4, 5, 6], [8, 9, 10, 11, 12], [14, 15, 16, 17, 18]]


def test_no_vector_for_each_pair_is_ever_made():
    """The largest tensor is a block of rows by their distances, or the result: never q k d."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            largest = max([largest, *(x.numel() for x in torch.utils._pytree.tree_leaves(out) if hasattr(x, "numel"))])
            return out

    tokens, width = 512, 16
    vectors, table = torch.randn(1, 2, tokens, width), torch.randn(2 * tokens - 1, width)
    with Watch():
        relative_scores(vectors, table, 0, tokens)
    assert largest == 2 * tokens * tokens < tokens * tokens * width


@pytest.mark.parametrize("position_embedding_type", TYPES)
@pytest.mark.parametrize("output_attentions", [False, True])
def test_long_texts_equal_the_reference(position_embedding_type, output_attentions, parity):
    sizes = {"position_embedding_type": position_embedding_type, "max_position_embeddings": LONG}
    theirs, ours = twins("ForMaskedLM", **sizes)
    ids = torch.randint(2, 60, (2, LONG))
    ids[1, -20:] = 1
    mask = (ids != 1).long()
    labels = ids.masked_fill(ids == 1, -100)
    outputs = [model(ids, mask, labels=labels, output_attentions=output_attentions) for model in (ours, theirs)]
    parity(error(outputs[0].logits, outputs[1].logits))
    parity(error(outputs[0].loss, outputs[1].loss))
    if output_attentions:
        parity(error(outputs[0].attentions, outputs[1].attentions))
    for out in outputs:
        out.loss.backward()
    parity(gradient_error(ours, theirs))


@pytest.mark.parametrize("position_embedding_type", ["absolute", *TYPES])
@pytest.mark.parametrize("padding", [0, 9])
def test_long_cached_equals_uncached(position_embedding_type, padding, parity):
    """Chunks that span several blocks of rows, causal, with left padding; test_decoder.py has the short ones."""
    sizes = {"position_embedding_type": position_embedding_type, "max_position_embeddings": LONG + 2}
    model = twins("ForCausalLM", is_decoder=True, **sizes)[1]
    ids = torch.randint(2, 60, (2, LONG))
    ids[0, :padding] = 1
    mask, cache, logits = (ids != 1).long(), None, []
    with torch.no_grad():
        expected = model(ids, mask, use_cache=False).logits
        for first, last in ((0, QUERY_BLOCK_SIZE + 20), (QUERY_BLOCK_SIZE + 20, LONG - 1), (LONG - 1, LONG)):
            out = model(ids[:, first:last], mask[:, :last], past_key_values=cache)
            cache, logits = out.past_key_values, [*logits, out.logits]
    real = mask.bool()
    parity(error(torch.cat(logits, dim=1)[real], expected[real]))
