"""The decoder: cached equals uncached, always; and equals the reference wherever the reference is right."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from transformers_reference import error, output_error, twins

from xlmrxl_min import Cache

POSITION_TYPES = ("absolute", "relative_key", "relative_key_query")
TOKENS, ACROSS = 11, 5
CUTS = {
    "token by token": list(range(TOKENS + 1)),
    "prefill, then tokens": [0, 7, *range(8, TOKENS + 1)],
    "chunks": [0, 3, 4, 9, TOKENS],
    "all at once": [0, TOKENS],
}
PADDINGS = ("none", "left", "right of the prefill", "b q k")


def decoder(position_embedding_type="absolute", cross=True, task="ForCausalLM", **config):
    config = {"is_decoder": True, "add_cross_attention": cross, **config}
    return twins(task, position_embedding_type=position_embedding_type, **config)


def inputs(padding, cross=True):
    """ids, mask `b k` or `b q k` for all TOKENS, and what is looked at across."""
    ids = torch.randint(2, 60, (3, TOKENS))
    if padding == "left":
        ids[0, :4] = ids[1, :1] = 1
    if padding == "right of the prefill":
        ids[0, 5:7] = ids[1, 6:7] = 1
    mask = (ids != 1).long()
    if padding == "b q k":
        mask = torch.ones(3, TOKENS, TOKENS).tril().long()
        mask[:, 4:, 1] = 0
    across = {}
    if cross:
        across = {"encoder_hidden_states": torch.randn(3, ACROSS, 24), "encoder_attention_mask": torch.ones(3, ACROSS)}
        across["encoder_attention_mask"][1, 3:] = 0
    return ids, mask, across


def in_steps(model, ids, mask, cuts, across, **options):
    """Feed ids[:, cuts[i]:cuts[i+1]] one after another through one cache; return the outputs."""
    cache, outs = None, []
    for begin, end in pairwise(cuts):
        seen = mask[:, :end] if mask.dim() == 2 else mask[:, begin:end, :end]
        out = model(ids[:, begin:end], attention_mask=seen, past_key_values=cache, use_cache=True, **across, **options)
        cache = out.past_key_values
        outs.append(out)
    assert cache.get_seq_length() == ids.shape[1]
    return outs


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("position_embedding_type", POSITION_TYPES)
def test_cached_equals_uncached(position_embedding_type, padding, cuts, parity):
    _, model = decoder(position_embedding_type)
    ids, mask, across = inputs(padding)
    with torch.no_grad():
        whole = model(ids, mask, use_cache=False, output_attentions=True, output_hidden_states=True, **across)
        steps = in_steps(model, ids, mask, CUTS[cuts], across, output_attentions=True, output_hidden_states=True)
        sdpa = in_steps(model, ids, mask, CUTS[cuts], across)
    # Left padding's queries may attend to nothing, and spread over all there is: with a cache, that is less.
    lost = (mask.cumsum(-1) == 0)[..., None] if mask.dim() == 2 else torch.tensor(False)

    def same(pieces, expected):
        got = torch.cat(list(pieces), 1)
        parity(error(got.masked_fill(lost, 0), expected.masked_fill(lost, 0)))

    for outs in (steps, sdpa):
        same((out.logits for out in outs), whole.logits)
    for layer in range(len(whole.hidden_states)):
        same((out.hidden_states[layer] for out in steps), whole.hidden_states[layer])
    for layer in range(len(whole.attentions)):
        for name, keys in (("attentions", TOKENS), ("cross_attentions", ACROSS)):
            maps = (F.pad(out[name][layer], (0, keys - out[name][layer].shape[3])) for out in steps)
            same((w.transpose(1, 2).flatten(2) for w in maps), whole[name][layer].transpose(1, 2).flatten(2))


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("cross", [False, True])
def test_absolute_positions_with_a_cache_equal_the_reference(cuts, cross, parity):
    theirs, ours = decoder(cross=cross)
    ids, mask, across = inputs("none", cross)
    with torch.no_grad():
        expected = in_steps(theirs, ids, mask, CUTS[cuts], across, output_attentions=True, output_hidden_states=True)
        got = in_steps(ours, ids, mask, CUTS[cuts], across, output_attentions=True, output_hidden_states=True)
    for a, b in zip(got, expected, strict=True):
        parity(output_error(a, b))


def test_left_padding_equals_the_reference_once_it_is_told_the_positions(parity):
    theirs, ours = decoder(cross=False)
    ids, mask, _ = inputs("left", cross=False)
    positions = mask.cumsum(-1) * mask + 1
    cache = None
    steps = in_steps(ours, ids, mask, CUTS["prefill, then tokens"], {})
    for out, (begin, end) in zip(steps, [(0, 7), *((i, i + 1) for i in range(7, TOKENS))], strict=True):
        expected = theirs(
            ids[:, begin:end],
            mask[:, :end],
            position_ids=positions[:, begin:end],
            past_key_values=cache,
            use_cache=True,
        )
        cache = expected.past_key_values
        parity(error(out.logits, expected.logits))


@pytest.mark.parametrize("position_embedding_type", POSITION_TYPES[1:])
def test_relative_positions_token_by_token_equal_the_reference(position_embedding_type, parity):
    theirs, ours = decoder(position_embedding_type, cross=False)
    ids, mask, _ = inputs("none", cross=False)
    expected = in_steps(theirs, ids, mask, CUTS["token by token"], {})
    got = in_steps(ours, ids, mask, CUTS["token by token"], {})
    for a, b in zip(got, expected, strict=True):
        parity(error(a.logits, b.logits))


@pytest.mark.parametrize("position_embedding_type", POSITION_TYPES[1:])
def test_why_we_depart_from_the_reference(position_embedding_type):
    """Its prefill with a cache puts every query at the last position: not its own answer without one."""
    theirs, _ = decoder(position_embedding_type, cross=False)
    ids, mask, _ = inputs("none", cross=False)
    with torch.no_grad():
        uncached, cached = (theirs(ids, mask, use_cache=use).logits for use in (False, True))
    assert error(cached, uncached) > 1e-3


@pytest.mark.parametrize("position_embedding_type", POSITION_TYPES)
def test_embeddings_given_as_they_are(position_embedding_type, parity):
    _, model = decoder(position_embedding_type, cross=False)
    embeddings = torch.randn(2, 8, 24)
    whole = model(inputs_embeds=embeddings, use_cache=False)
    first = model(inputs_embeds=embeddings[:, :5], use_cache=True)
    second = model(inputs_embeds=embeddings[:, 5:], past_key_values=first.past_key_values)
    parity(error(torch.cat([first.logits, second.logits], 1), whole.logits))


@pytest.mark.parametrize("position_embedding_type", POSITION_TYPES)
def test_gradients_through_the_cache(position_embedding_type, parity):
    _, model = decoder(position_embedding_type)
    model.double()  # so that rounding does not hide, nor feign, a difference
    ids, mask, across = inputs("left")
    across["encoder_hidden_states"] = across["encoder_hidden_states"].double()
    real = mask[..., None]  # left padding's queries have no answer that a cache could keep to
    (model(ids, mask, use_cache=False, **across).logits * real).square().sum().backward()
    used = [p for p in model.parameters() if p.grad is not None]
    expected = [p.grad.clone() for p in used]
    model.zero_grad()
    steps = in_steps(model, ids, mask, CUTS["chunks"], across)
    (torch.cat([out.logits for out in steps], 1) * real).square().sum().backward()
    parity(error([p.grad for p in used], expected))


def test_gradients_through_a_cache_of_frozen_keys(parity):
    """Only the queries learn: what they remember of the keys must not be written over by the next step."""
    _, model = decoder(cross=False)
    model.double().requires_grad_(False)
    for layer in model.backbone.layers:
        layer.attention.query.requires_grad_(True)
    used = [p for p in model.parameters() if p.requires_grad]
    ids, mask, _ = inputs("none", cross=False)
    model(ids, use_cache=False).logits.square().sum().backward()
    expected = [p.grad.clone() for p in used]
    model.zero_grad()
    sum(out.logits.square().sum() for out in in_steps(model, ids, mask, CUTS["chunks"], {})).backward()
    parity(error([p.grad for p in used], expected))


def test_cross_attention_is_computed_once():
    _, model = decoder()
    ids, _, across = inputs("none")
    calls = []
    model.backbone.layers[0].cross_attention.key.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        first = model(ids[:, :4], **across)
        mask = {"encoder_attention_mask": across["encoder_attention_mask"]}
        second = model(
            ids[:, 4:], past_key_values=first.past_key_values, **mask
        )  # the states themselves are remembered
        whole = model(ids, use_cache=False, **across)
    assert len(calls) == 2  # once for the two steps, once for the whole
    assert error(second.logits, whole.logits[:, 4:]) < 1e-5


def test_the_cache_writes_into_memory_it_has():
    _, model = decoder(cross=False, max_position_embeddings=300)
    cache, places = Cache(2), []
    with torch.no_grad():
        for _ in range(200):
            model(torch.randint(2, 60, (2, 1)), past_key_values=cache)
            places.append(cache.layers[0].keys.data_ptr())
    assert cache.get_seq_length() == 200
    assert len(set(places)) <= 3  # 64, 128, 256
    assert cache.layers[0].keys.shape == (2, 3, 256, 8)


def test_a_cache_goes_on_in_another_mode(parity):
    """Begun without gradients in one way, continued in the other; and rows chosen of one that is still empty."""
    _, model = decoder(cross=False)
    ids, _, _ = inputs("none", cross=False)
    with torch.inference_mode():
        cache = model(ids[:, :7]).past_key_values
    with torch.no_grad():
        rest = model(ids[:, 7:], past_key_values=cache).logits
        parity(error(rest, model(ids, use_cache=False).logits[:, 7:]))
    empty = Cache(2)
    empty.reorder(torch.tensor([0, 0]))
    assert model(ids[:2], past_key_values=empty).past_key_values.get_seq_length() == TOKENS


def test_a_decoder_keeps_a_cache_unless_told_otherwise():
    ids = torch.randint(2, 60, (2, 5))
    _, model = decoder(cross=False)
    assert isinstance(model(ids).past_key_values, Cache)
    assert model(ids, use_cache=False).past_key_values is None
    assert model(ids, labels=ids).past_key_values is None
    model.gradient_checkpointing_enable()
    assert model.train()(ids).past_key_values is None
    _, encoder = twins("Model")
    assert encoder(ids, use_cache=True).past_key_values is None


@pytest.mark.parametrize("position_embedding_type", POSITION_TYPES)
def test_a_causal_model_does_not_look_ahead(position_embedding_type):
    _, model = decoder(position_embedding_type, cross=False)
    ids = torch.randint(2, 60, (2, TOKENS))
    other = ids.clone()
    other[:, 6:] = torch.randint(2, 60, (2, TOKENS - 6))
    with torch.no_grad():
        a, b = model(ids, use_cache=False).logits, model(other, use_cache=False).logits
    torch.testing.assert_close(a[:, :6], b[:, :6])
    assert error(a[:, 6:], b[:, 6:]) > 1e-2
