"""Metrics, interventions and saliency against cases computed by hand, and loops written from the definitions."""

import math
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers_reference import twins

from xlmrxl_min import XLMRobertaTokenizer, XLMRobertaXLConfig, XLMRobertaXLForMaskedLM, XLMRobertaXLModel
from xlmrxl_min.interpret import (
    HEAD_CLASSES,
    ablated,
    ablation_effects,
    attention_mass,
    contributions,
    each_layer,
    entropy,
    gradient_times_input,
    head_classes,
    head_means,
    head_metrics,
    integrated_gradients,
    logit_lens,
    mean_distance,
    mean_states,
    merge_tokens,
    occlusion,
    offset_profile,
    patch_effects,
    retrieval,
    rollout,
    score_parts,
    value_norms,
    value_weighted,
)
from xlmrxl_min.training.texts import udhr

HAND = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.0, 0.4, 0.6]])


@pytest.fixture
def weights():
    return torch.randn(2, 3, 6, 6).softmax(-1)


@pytest.fixture
def model():
    """A random masked language model of 2 layers with 3 heads."""
    return twins("ForMaskedLM")[1]


@pytest.fixture
def ids():
    return torch.tensor([[0, 7, 9, 7, 2]])


def answer(position, token):
    return lambda out: out.logits[0, position, token]


# ---- attention maps


def test_entropy_by_hand():
    torch.testing.assert_close(entropy(torch.full((1, 4), 0.25)), torch.tensor([math.log(4)]))
    assert entropy(torch.tensor([0.0, 1.0, 0.0])) == 0
    torch.testing.assert_close(entropy(torch.tensor([0.5, 0.5, 0.0])), torch.tensor(math.log(2)))


def test_entropy_by_loops(weights):
    expected = torch.zeros(2, 3, 6)
    for at in torch.cartesian_prod(*map(torch.arange, (2, 3, 6))).tolist():
        expected[tuple(at)] = -sum(p * math.log(p) for p in weights[tuple(at)].tolist())
    torch.testing.assert_close(entropy(weights), expected)


def test_mean_distance_by_hand():
    torch.testing.assert_close(mean_distance(HAND), torch.tensor([0.3 + 2 * 0.2, 0.1 + 0.1, 0.4]))


def test_mean_distance_by_loops(weights):
    expected = torch.stack([sum(weights[..., q, k] * abs(k - q) for k in range(6)) for q in range(6)], dim=-1)
    torch.testing.assert_close(mean_distance(weights), expected)


def test_offset_profile_by_hand():
    expected = [0.0, (0.1 + 0.4) / 2, (0.5 + 0.8 + 0.6) / 3, (0.3 + 0.1) / 2, 0.2]
    torch.testing.assert_close(offset_profile(HAND, 2), torch.tensor(expected))


def test_offset_profile_by_loops(weights):
    expected = torch.zeros(2, 3, 9)
    for offset in range(-4, 5):
        pairs = [(q, q + offset) for q in range(6) if 0 <= q + offset < 6]
        expected[..., offset + 4] = sum(weights[..., q, k] for q, k in pairs) / len(pairs)
    torch.testing.assert_close(offset_profile(weights, 4), expected)


@pytest.mark.parametrize("reach", [-1, 6])
def test_offset_profile_rejects_an_impossible_reach(reach):
    with pytest.raises(ValueError, match="it must be an integer from 0 to 5"):
        offset_profile(torch.rand(1, 1, 6, 6), reach)


def test_attention_mass_by_hand():
    """`<s> a b a </s>`, where every query gives 10, 20, 30, 15, 25% to the five keys."""
    row = torch.tensor([0.10, 0.20, 0.30, 0.15, 0.25])
    kinds = attention_mass(row.expand(5, 5), torch.tensor([0, 7, 9, 7, 2]))
    expected = {
        "<s>": 0.10,
        "</s>": 0.25,
        "self": 1 / 5,
        "same token": (0.15 + 0.20) / 2,
        "previous": (0.10 + 0.20 + 0.30 + 0.15) / 4,
        "next": (0.20 + 0.30 + 0.15 + 0.25) / 4,
    }
    assert {name: float(value) for name, value in kinds.items()} == pytest.approx(expected)


def test_attention_mass_of_one_token():
    kinds = attention_mass(torch.ones(1, 1), torch.tensor([7]))
    assert kinds["self"] == 1
    assert kinds["previous"].isnan(), "it has no neighbours"
    assert kinds["next"].isnan()


def test_attention_mass_by_loops(weights):
    ids = [0, 7, 7, 2, 7, 2]
    of_kind = {
        "<s>": lambda q, k: ids[k] == 0,
        "</s>": lambda q, k: ids[k] == 2,
        "self": lambda q, k: q == k,
        "same token": lambda q, k: ids[q] == ids[k] and q != k and ids[q] not in (0, 2),
        "previous": lambda q, k: k == q - 1,
        "next": lambda q, k: k == q + 1,
    }
    kinds = attention_mass(weights, torch.tensor(ids))
    assert list(kinds) == list(of_kind)
    for name, is_one in of_kind.items():
        rows = {q: [k for k in range(6) if is_one(q, k)] for q in range(6)}
        sums = [weights[..., q, keys].sum(-1) for q, keys in rows.items() if keys]
        torch.testing.assert_close(kinds[name], sum(sums) / len(sums))


def test_attention_mass_is_nan_without_such_keys(weights):
    kinds = attention_mass(weights, torch.tensor([0, 4, 5, 6, 7, 2]))
    assert kinds["same token"].isnan().all()
    assert not kinds["previous"].isnan().any()


def test_attention_mass_rejects_several_texts(weights):
    with pytest.raises(ValueError, match=r"one text.*not 5 tokens with weights \(6, 6\)"):
        attention_mass(weights, torch.arange(5))


def test_head_classes():
    metrics = {metric: torch.zeros(1, 5) for metric, _ in HEAD_CLASSES.values()}
    metrics["previous"] = torch.tensor([[0.5, 0.49, 0.0, 0.9, 0.0]])
    metrics["same token"] = torch.tensor([[0.0, 0.30, float("nan"), 0.0, 0.2]])
    metrics["</s>"] = torch.tensor([[0.9, 0.0, 0.2, 0.0, 0.0]])
    metrics["normalised entropy"] = torch.tensor([[0.1, 0.95, 0.8, 0.2, 0.95]])
    assert head_classes(metrics) == [["previous", "same token", "other", "previous", "uniform"]]


def test_merge_by_hand():
    merged = merge_tokens(HAND, [range(1), range(1, 3)], [range(2), range(2, 3)])
    torch.testing.assert_close(merged, torch.tensor([[0.8, 0.2], [(0.9 + 0.4) / 2, (0.1 + 0.6) / 2]]))


def test_merge_by_loops(weights):
    queries, keys = [range(3), range(3, 4), range(4, 6)], [range(1), range(1, 4), range(4, 6)]
    merged = merge_tokens(weights, queries, keys)
    for i, rows in enumerate(queries):
        for j, columns in enumerate(keys):
            expected = sum(weights[..., q, k] for q in rows for k in columns) / len(rows)
            torch.testing.assert_close(merged[..., i, j], expected)
    torch.testing.assert_close(merged.sum(-1), torch.ones(2, 3, 3))


# ---- scores


@pytest.mark.parametrize("layer", [0, 1])
def test_the_parts_of_scores_add_up_to_the_weights(model, ids, layer):
    names, parts = score_parts(model, ids[0], layer, 2)
    expected = ["constant", "word", "position", "attention 0", "feed-forward 0"][: 3 + 2 * layer]
    assert names == expected
    assert parts.shape == (len(names), len(names), 5, 5)
    with torch.no_grad():
        weights = model.base_model(ids, output_attentions=True).attentions[layer][0, 2]
    torch.testing.assert_close(parts.sum((0, 1)).softmax(-1), weights)


def test_each_part_of_a_score_is_made_of_its_own_embeddings(model, ids):
    """Word with word does not depend on the order, position with position not on the words, but for LayerNorm."""
    with torch.no_grad():
        model.base_model.embeddings.position.weight.zero_()
    names, parts = score_parts(model, ids[0], 0, 0)
    at = names.index("position")
    assert not parts[at].any()
    assert not parts[:, at].any()
    assert parts[names.index("word")].any()


def test_scores_of_int8_weights_have_no_parts():
    int8 = XLMRobertaXLForMaskedLM.from_pretrained("tiny", quantize="int8")
    with pytest.raises(ValueError, match="score_parts needs float weights, but this model is in int8"):
        score_parts(int8, torch.tensor([0, 7, 2]), 0, 0)


# ---- through all layers


def test_rollout_by_hand():
    """Two layers in which both tokens attend only to the first."""
    one = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    steps = rollout([one, one])
    torch.testing.assert_close(steps[0], torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    torch.testing.assert_close(steps[1], torch.tensor([[1.0, 0.0], [0.75, 0.25]]))
    torch.testing.assert_close(rollout([one, one], residual=0)[1], one[0])


def test_rollout_by_paths():
    """Over three layers, the sum over all paths of the product of their steps."""
    layers = [torch.randn(1, 2, 4, 4).softmax(-1) for _ in range(3)]
    steps = [0.7 * x.mean(1)[0] + 0.3 * torch.eye(4) for x in layers]
    expected = torch.zeros(4, 4)
    for q, i, j, k in torch.cartesian_prod(*[torch.arange(4)] * 4).tolist():
        expected[q, k] += steps[2][q, i] * steps[1][i, j] * steps[0][j, k]
    torch.testing.assert_close(rollout(layers, residual=0.3)[-1, 0], expected)
    with pytest.raises(ValueError, match=r"residual=1.5"):
        rollout(layers, residual=1.5)


def test_value_norms_are_what_a_head_would_add(model, ids):
    """With all weight on key k, the head adds out(value of k): computed with the model's own attention output."""
    attention = model.backbone.layers[1].attention
    hidden = model(ids, output_hidden_states=True).hidden_states[1]
    value = attention.split_heads(attention.value(attention.norm(hidden)))
    norms = value_norms(attention, hidden)
    for head in range(3):
        for k in range(5):
            alone = torch.zeros(1, 3, 8)
            alone[:, head] = value[:, head, k]
            added = attention.out(alone.flatten(1)) - attention.out.bias
            torch.testing.assert_close(norms[0, head, k], added.norm())


def test_value_weighted_by_hand():
    norms = torch.tensor([[[1.0, 3.0, 0.0]]])
    expected = torch.tensor([[0.5, 0.9, 0.0], [0.1, 2.4, 0.0], [0.0, 1.2, 0.0]])
    torch.testing.assert_close(value_weighted(HAND[None, None], norms)[0, 0], expected / expected.sum(-1, keepdim=True))


def test_each_layer_gets_the_weights_of_the_output(model, ids):
    with torch.no_grad():
        whole = model(ids, output_attentions=True)
        with each_layer(model, lambda weights: weights.clone()) as seen:
            out = model(ids, output_attentions=True)
    assert out.attentions == (None, None)
    torch.testing.assert_close(tuple(seen), whole.attentions)
    torch.testing.assert_close(out.logits, whole.logits)
    with each_layer(model, entropy), pytest.raises(ValueError, match="output_attentions=True"):
        model(ids)
    assert model(ids, output_attentions=True).attentions[0] is not None, "the hooks are gone"


def test_head_metrics_are_means_over_texts(model):
    texts = [torch.tensor([0, 7, 9, 7, 2]), torch.tensor([0, 11, 12, 2])]
    found = head_metrics(model, texts)
    expected = {name: [] for name in found}
    for ids in texts:
        maps = torch.stack(model(ids[None], output_attentions=True).attentions).detach()[:, 0]
        for name, value in attention_mass(maps, ids).items():
            expected[name].append(value)
        expected["entropy"].append(entropy(maps).mean(-1))
        expected["normalised entropy"].append(entropy(maps).mean(-1) / math.log(len(ids)))
        expected["distance"].append(mean_distance(maps).mean(-1))
    for name, values in expected.items():
        torch.testing.assert_close(found[name], torch.stack(values).nanmean(0), msg=name)
    assert found["same token"].shape == (2, 3), "from the one text that has a token twice"
    assert not found["same token"].isnan().any()
    for wrong in ([], [torch.zeros(1, 4, dtype=torch.long)], [torch.tensor([0])]):
        with pytest.raises(ValueError, match="list of texts"):
            head_metrics(model, wrong)


class MemoryCounter(TorchDispatchMode):
    """Count the bytes of all tensors that operations have made and that still exist, and their peak."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        before = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        out = function(*args, **(kwargs or {}))
        for tensor in (x for x in tree_leaves(out) if isinstance(x, torch.Tensor)):
            storage = tensor.untyped_storage()
            key = storage.data_ptr()
            if key and key not in self.known and key not in before:
                self.known.add(key)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.drop, key, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def drop(self, key, size):
        self.known.discard(key)
        self.now -= size


@pytest.mark.parametrize(
    ("layers", "heads", "tokens"), [(8, 16, 192), pytest.param(36, 32, 512, marks=pytest.mark.slow, id="XL")]
)
def test_head_metrics_never_hold_three_layers(layers, heads, tokens):
    """XL's shape has 36 layers of 32 heads at 512 tokens, but head_dim 80 instead of 4."""
    shape = {"num_hidden_layers": layers, "num_attention_heads": heads, "hidden_size": 4 * heads}
    config = XLMRobertaXLConfig(vocab_size=100, intermediate_size=8 * heads, **shape)
    model = XLMRobertaXLModel(config, add_pooling_layer=False)
    text = torch.randint(3, 100, (tokens,))
    one_layer = heads * tokens**2 * 4
    with MemoryCounter() as memory:
        metrics = head_metrics(model, [text], progress=False)
    assert metrics["entropy"].shape == (layers, heads)
    assert one_layer < memory.peak < 3 * one_layer, f"{memory.peak / one_layer:.2f} layers' maps at the peak"
    with MemoryCounter() as memory, torch.no_grad():
        model(
            text[None, : tokens // 4], output_attentions=True
        )  # the counter works: all layers, a quarter of the tokens
    assert memory.peak > layers * one_layer / 16


# ---- the residual stream


def test_contributions_by_hand(model, ids):
    found = contributions(model, {"input_ids": ids})
    assert found.names == ["embeddings", "attention 0", "feed-forward 0", "attention 1", "feed-forward 1"]
    states = model(ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(found.stream_norm[0], states[0].norm(dim=-1))
    torch.testing.assert_close(found.stream_norm[2], states[1].norm(dim=-1))
    torch.testing.assert_close(found.fraction.sum(0), torch.ones(1, 5))

    block = model.backbone.layers[0]
    middle = block.attention(states[0])[0]
    torch.testing.assert_close(found.update_norm[1], (middle - states[0]).norm(dim=-1))
    torch.testing.assert_close(found.update_norm[2], (states[1] - middle).norm(dim=-1))
    last = model.backbone.layers[1](states[1])[0]
    fraction = ((states[1] - middle) * last).sum(-1) / last.norm(dim=-1) ** 2
    torch.testing.assert_close(found.fraction[2], fraction)


def test_logit_lens_by_hand(model, ids):
    positions = torch.tensor([[False, True, False, True, False]])
    found = logit_lens(model, ids, positions, torch.tensor([7, 33]))
    out = model(ids, output_hidden_states=True)
    final = out.logits.softmax(-1)
    for layer in range(3):
        for n, (position, target) in enumerate(((1, 7), (3, 33))):
            state = out.hidden_states[layer][:, position]  # the last one is normed already
            here = model.lm_head(state if layer == 2 else model.backbone.norm(state)).softmax(-1)[0]
            torch.testing.assert_close(found.probability[layer, n], here[target])
            assert found.rank[layer, n] == 1 + sum(p > here[target] for p in here)
            assert found.top_ids[layer, n] == here.argmax()
            divergence = sum(p * (p / q).log() for p, q in zip(final[0, position], here, strict=True))
            torch.testing.assert_close(found.divergence[layer, n], divergence, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.divergence[-1], torch.zeros(2), atol=1e-6, rtol=0)
    own = logit_lens(model, ids, positions)
    assert own.rank[-1].tolist() == [1, 1], "without targets: what the model itself answers"

    bare = logit_lens(model, ids, positions, final_norm=False)
    middle = model.lm_head(out.hidden_states[1][:, 1]).softmax(-1)[0]
    torch.testing.assert_close(bare.probability[1, 0], middle[final[0, 1].argmax()])


def test_logit_lens_rejects_other_models_and_positions(model, ids):
    with pytest.raises(ValueError, match="masked-LM head, which XLMRobertaXLModel lacks"):
        logit_lens(model.backbone, ids, ids > 2)
    with pytest.raises(ValueError, match="True at one position"):
        logit_lens(model, ids, ids > 99)
    with pytest.raises(ValueError, match="must be bool"):
        logit_lens(model, ids, ids)


# ---- interventions


def test_ablation_by_zero_is_the_head_mask(model, ids):
    with torch.no_grad():
        mask = torch.ones(2, 3)
        mask[0, 1] = mask[1, 0] = mask[1, 2] = 0
        expected = model(ids, head_mask=mask).logits
        with ablated(model, {0: [1], 1: [0, 2]}):
            torch.testing.assert_close(model(ids).logits, expected)
        assert (model(ids).logits - expected).abs().max() > 1e-2, "the hooks are gone, and they had an effect"


def test_ablation_by_mean_by_hand(model):
    """Means and the effect of a mean-ablated head, computed step by step."""
    texts = [torch.tensor([0, 7, 9, 2]), torch.tensor([0, 8, 2])]
    means, sums = head_means(model, texts), torch.zeros(2, 3, 8)
    for ids in texts:
        hidden = model.backbone(ids[None], output_hidden_states=True).hidden_states
        for layer, block in enumerate(model.backbone.layers):
            attention, stream = block.attention, block.attention.norm(hidden[layer])
            weights = attention(hidden[layer], output_attentions=True)[1]
            for head in range(3):
                value = attention.split_heads(attention.value(stream))[0, head]
                sums[layer, head] += (weights[0, head] @ value).sum(0).detach()
    torch.testing.assert_close(means, sums / 7)

    effects = ablation_effects(model, {"input_ids": texts[0][None]}, answer(1, 9), means)
    with torch.no_grad():
        hidden = model.backbone.embeddings(texts[0][None], None, None, torch.tensor([[2, 3, 4, 5]]))
        attention = model.backbone.layers[0].attention
        stream = attention.norm(hidden)
        mixed = attention(hidden, output_attentions=True)[1] @ attention.split_heads(attention.value(stream))
        mixed[:, 2] = means[0, 2]
        hidden = hidden + attention.out(mixed.transpose(1, 2).flatten(2))
        hidden = model.backbone.layers[1](model.backbone.layers[0].feed_forward(hidden))[0]
        changed = model.lm_head(model.backbone.norm(hidden))[0, 1, 9] - model(texts[0][None]).logits[0, 1, 9]
    torch.testing.assert_close(effects[0, 2], changed)


def test_ablation_of_a_pruned_model(ids):
    """Heads keep the numbers of the unpruned model; ablating a head equals pruning it."""
    model = twins("ForMaskedLM")[1]
    model.prune_heads({0: [0]})
    effects = ablation_effects(model, {"input_ids": ids}, answer(1, 9))
    assert effects[0, 0].isnan()
    before = model(ids).logits[0, 1, 9]
    model.prune_heads({0: [2]})
    torch.testing.assert_close(effects[0, 2], (model(ids).logits[0, 1, 9] - before).detach())
    with pytest.raises(ValueError, match=r"layer 0 has no heads \[0\]: it has \[1\]"), ablated(model, {0: [0]}):
        pass
    with pytest.raises(ValueError, match="there is no layer 2"), ablated(model, {2: [0]}):
        pass


@pytest.mark.parametrize("site", ["stream", "attention", "feed_forward"])
def test_patch_effects_by_hand(model, ids, site):
    clean, corrupted = {"input_ids": ids}, {"input_ids": torch.tensor([[0, 7, 50, 7, 2]])}
    effects = patch_effects(model, clean, corrupted, answer(2, 9), site)
    assert effects.shape == (2, 5)
    if site == "stream":  # before the first layer only the changed token differs
        torch.testing.assert_close(effects[0], torch.tensor([0.0, 0, 1, 0, 0]), atol=1e-5, rtol=0)

    def run(ids, start=None, added=None):
        """The model in separate steps, with one token of one branch of layer 1 taken from elsewhere."""
        backbone = model.backbone
        hidden = backbone.embeddings(ids, None, None, torch.arange(2, 7)[None])
        hidden = backbone.layers[0](hidden)[0]
        kept = {"stream": hidden}
        if start is not None:
            hidden[:, 2] = start[:, 2]
        block = backbone.layers[1]
        kept["attention"] = block.attention(hidden)[0] - hidden
        branch = kept["attention"].clone()
        if added is not None and site == "attention":
            branch[:, 2] = added[:, 2]
        hidden = hidden + branch
        kept["feed_forward"] = block.feed_forward(hidden) - hidden
        branch = kept["feed_forward"].clone()
        if added is not None and site == "feed_forward":
            branch[:, 2] = added[:, 2]
        return model.lm_head(backbone.norm(hidden + branch))[0, 2, 9], kept

    with torch.no_grad():
        best, kept = run(ids)
        worst, _ = run(corrupted["input_ids"])
        state = {"start" if site == "stream" else "added": kept[site].clone()}
        patched, _ = run(corrupted["input_ids"], **state)
    torch.testing.assert_close(effects[1, 2], (patched - worst) / (best - worst), atol=1e-4, rtol=1e-4)


def test_patch_effects_reject_wrong_inputs(model, ids):
    inputs = {"input_ids": ids}
    with pytest.raises(ValueError, match="choose texts between which it differs"):
        patch_effects(model, inputs, inputs, answer(1, 9))
    with pytest.raises(ValueError, match="tokens must have the same positions"):
        patch_effects(model, inputs, {"input_ids": ids[:, :4]}, answer(1, 9))
    with pytest.raises(ValueError, match="site='head' is unknown: take one of 'stream', 'attention', 'feed_forward'"):
        patch_effects(model, inputs, inputs, answer(1, 9), "head")
    with pytest.raises(ValueError, match="must give one number"):
        ablation_effects(model, inputs, lambda out: out.logits)


# ---- saliency


def test_gradient_times_input_by_differences(model, ids):
    """Central differences of the score when one token's embedding is scaled by 1 ± 1e-4."""
    model, score = model.double(), answer(1, 9)
    found = gradient_times_input(model, {"input_ids": ids}, score)
    assert all(parameter.grad is None for parameter in model.parameters())
    vectors = model.get_input_embeddings()(ids).detach()
    for position in range(5):
        change = torch.zeros_like(vectors)
        change[:, position] = 1e-4 * vectors[:, position]
        ends = [score(model(inputs_embeds=vectors + sign * change)) for sign in (1, -1)]  # no padding: same positions
        torch.testing.assert_close(found[0, position], (ends[0] - ends[1]).detach() / 2e-4, atol=1e-5, rtol=1e-4)


def test_integrated_gradients_of_a_linear_score_are_exact():
    """A score that is linear in the word embeddings, without layers and norms between."""
    model = twins("ForMaskedLM")[1]
    ids, held = torch.tensor([[0, 7, 9, 7, 2]]), []
    direction = torch.randn(24)
    model.backbone.embeddings.register_forward_hook(lambda module, args, out: held.append(out))
    found = integrated_gradients(model, {"input_ids": ids}, lambda out: (held[-1] @ direction).sum(), 3, steps=1)
    words = model.get_input_embeddings().weight.detach()
    expected = (words[ids] - words[3]) @ direction
    expected[:, [0, 4]] = 0  # special tokens are as they were
    torch.testing.assert_close(found.attributions, expected)
    assert found.error < 1e-5


def test_integrated_gradients_are_complete(model, ids):
    """Completeness: more steps, less error; and the difference is that of the two texts' scores."""
    inputs, score = {"input_ids": ids}, answer(1, 9)
    few, many = (integrated_gradients(model, inputs, score, 3, steps=steps) for steps in (2, 64))
    assert many.error < 1e-4 < 1e-3 < few.error
    with torch.no_grad():
        there = score(model(ids)) - score(model(torch.tensor([[0, 3, 3, 3, 2]])))
    assert many.difference == pytest.approx(float(there), rel=1e-4)
    assert float(many.attributions.sum()) == pytest.approx(float(there), rel=1e-3)


def test_occlusion_by_loops(model, ids):
    found = occlusion(model, {"input_ids": ids}, answer(1, 9), 9)
    with torch.no_grad():
        whole = model(ids).logits[0, 1, 9]
        for position in range(5):
            hidden = [[9 if i == position else token for i, token in enumerate(ids[0].tolist())]]
            torch.testing.assert_close(found[0, position], whole - model(torch.tensor(hidden)).logits[0, 1, 9])
    assert found[0, 2] == 0, "it is that token already"


# ---- across languages


def test_mean_states_by_loops():
    tokenizer = XLMRobertaTokenizer.from_pretrained("tiny")
    model = XLMRobertaXLForMaskedLM.from_pretrained("tiny")
    texts = ["one", "two and three and four", "人人"]
    found = mean_states(model, tokenizer, texts, batch_size=2)
    for i, text in enumerate(texts):
        states = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
        for layer, state in enumerate(states):
            torch.testing.assert_close(found[layer, i], state[0].mean(0).detach(), atol=1e-5, rtol=1e-4)


def test_retrieval_by_hand():
    """Two texts in the plane; both translations point the same way as the first text."""
    ours = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    theirs = torch.tensor([[[3.0, 0.0], [1.0, 0.0]]])
    found = retrieval(ours, theirs)
    # text 0 -> 0 (a tie, the first wins), 1 -> 0 (both 0); back: 0 -> 0, 1 -> 0: half of each direction
    assert found.accuracy.tolist() == [0.5]
    assert found.translation_cosine.tolist() == [0.5]
    assert found.other_cosine.tolist() == [0.5]


@pytest.mark.parametrize("centred", [False, True])
def test_retrieval_by_loops(centred):
    ours = torch.randn(3, 7, 5) + 1
    theirs = ours + torch.randn(3, 7, 5)
    found = retrieval(ours, theirs, centred=centred)
    for layer in range(3):
        a, b = ours[layer], theirs[layer]
        if centred:
            a, b = a - a.mean(0), b - b.mean(0)
        cosine = torch.stack([torch.stack([torch.cosine_similarity(x, y, dim=0) for y in b]) for x in a])
        hits = sum(int(cosine[i].argmax() == i) + int(cosine[:, i].argmax() == i) for i in range(7))
        assert float(found.accuracy[layer]) == pytest.approx(hits / 14)
        torch.testing.assert_close(found.translation_cosine[layer], cosine.diagonal().mean())
        strangers = [cosine[i, j] for i in range(7) for j in range(7) if i != j]
        torch.testing.assert_close(found.other_cosine[layer], torch.stack(strangers).mean())
    with pytest.raises(ValueError, match="at least two texts"):
        retrieval(ours[:, :1], theirs[:, :1])


def test_tiny_finds_translations():
    """On its own document: better than chance in every layer after the first. (Chance: one in 20.)"""
    tokenizer, model = (cls.from_pretrained("tiny") for cls in (XLMRobertaTokenizer, XLMRobertaXLForMaskedLM))
    rows = {language: [row.text for row in udhr(language) if row.article in range(3, 12)] for language in ("en", "fr")}
    found = retrieval(*(mean_states(model, tokenizer, texts, progress=False) for texts in rows.values()))
    assert found.accuracy[1:].min() > 1 / len(rows["en"])
    assert (found.translation_cosine > found.other_cosine).all()
