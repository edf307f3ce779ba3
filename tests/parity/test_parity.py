"""Equal to transformers 4.56.2 in numbers: logits, hidden states, attentions, losses, gradients."""

import copy
import pickle

import pytest
import torch
from transformers_reference import SMALL, TASKS, draw, error, gradient_error, output_error, twins

from xlmrxl_min import XLMRobertaXLConfig, XLMRobertaXLForMaskedLM, XLMRobertaXLModel

POSITION_TYPES = ("absolute", "relative_key", "relative_key_query")


def compute_loss(out):
    """The loss, or, where there are no labels, a number that depends on all that comes out."""
    if "loss" in out:
        return out["loss"]
    first = [out[name] for name in ("logits", "start_logits", "last_hidden_state", "pooler_output") if name in out]
    return sum((x * torch.linspace(-1, 1, x.numel()).reshape(x.shape)).sum() for x in first)


@pytest.mark.filterwarnings("ignore:input_ids hold padding")  # some have no mask
@pytest.mark.parametrize("seed", range(240))
def test_random_configurations(seed, parity):
    """Everything at once: task, sizes, positions, masks, labels drawn at random; both attention paths; gradients."""
    task, build, config, inputs = draw(seed)
    theirs, ours = twins(task, seed, build, **config)
    expected = theirs(**inputs, output_attentions=True, output_hidden_states=True)
    eager = ours(**inputs, output_attentions=True, output_hidden_states=True)
    parity(output_error(eager, expected))
    sdpa = ours(**inputs, output_hidden_states=True)
    parity(output_error(sdpa, {name: expected[name] for name in expected if not name.endswith("attentions")}))
    if not torch.isfinite(compute_loss(expected)):
        return  # labels that are all -100 have no mean, there as here
    compute_loss(expected).backward()
    for out in (eager, sdpa):
        ours.zero_grad()
        compute_loss(out).backward(retain_graph=True)
        parity(gradient_error(ours, theirs))


@pytest.mark.filterwarnings("ignore:input_ids hold padding")
@pytest.mark.parametrize("seed", range(0, 240, 6))
def test_the_differences_are_rounding(seed):
    """In float64 the same comparisons agree to 1e-12: what is left in float32 is the order of sums."""
    task, build, config, inputs = draw(seed)
    theirs, ours = (model.double() for model in twins(task, seed, build, **config))
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    expected = theirs(**inputs, output_attentions=True, output_hidden_states=True)
    for output_attentions in (True, False):
        out = ours(**inputs, output_attentions=output_attentions, output_hidden_states=True)
        assert output_error(out, {name: expected[name] for name in expected if name in out}) < 1e-12
        if torch.isfinite(compute_loss(expected)):
            theirs.zero_grad(), ours.zero_grad()
            compute_loss(expected).backward(retain_graph=True)
            compute_loss(out).backward()
            assert gradient_error(ours, theirs) < 1e-11


def test_the_draw_reaches_every_corner():
    """So that the test above is about what it says: each choice occurs among its seeds."""
    drawn = [draw(seed) for seed in range(240)]
    assert {task for task, *_ in drawn} == set(TASKS)
    for name in ("position_embedding_type", "hidden_act", "is_decoder", "add_cross_attention", "tie_word_embeddings"):
        assert len({config[name] for _, _, config, _ in drawn}) > 1
    for name in ("head_mask", "inputs_embeds", "token_type_ids", "position_ids", "encoder_attention_mask"):
        assert any(name in inputs for *_, inputs in drawn)
    assert {inputs["attention_mask"].dim() for *_, inputs in drawn if "attention_mask" in inputs} == {2, 3}
    assert any("pruned_heads" in config for _, _, config, _ in drawn)
    assert {config.get("problem_type") for _, _, config, _ in drawn} == {
        None, "regression", "single_label_classification", "multi_label_classification",
    }  # fmt: skip


@pytest.mark.parametrize("position_embedding_type", POSITION_TYPES)
@pytest.mark.parametrize("labels", ["float", "long", "int"])
def test_problem_type_is_inferred_without_a_side_effect(labels, position_embedding_type, parity):
    theirs, ours = twins("ForSequenceClassification", num_labels=3, position_embedding_type=position_embedding_type)
    ids = torch.randint(2, 60, (4, 7))
    wanted = torch.randint(0, 2, (4, 3)).float() if labels == "float" else torch.randint(0, 3, (4,)).long()
    out = ours(ids, labels=wanted.int() if labels == "int" else wanted)
    parity(error(out.loss, theirs(ids, labels=wanted).loss))
    assert ours.config.problem_type is None


def test_regression_takes_integers_for_numbers():
    """The reference fails here in the backward pass; a learner's labels are often integers."""
    _, ours = twins("ForSequenceClassification", num_labels=1)
    ids, numbers = torch.randint(2, 60, (4, 7)), torch.tensor([1, 2, 3, 4])
    loss = ours(ids, labels=numbers).loss
    torch.testing.assert_close(loss, (ours(ids).logits.squeeze(-1) - numbers).square().mean())
    loss.backward()


@pytest.mark.parametrize("task", TASKS)
def test_dropout_sits_where_the_reference_has_it(task, parity):
    """In training mode, with the same random numbers, so that each dropout must come at its place and in its order."""
    config = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2, "classifier_dropout": 0.4}
    theirs, ours = twins(task, is_decoder=task == "ForCausalLM", use_cache=False, **config)
    ids = torch.randint(2, 60, (3, 4, 7) if task == "ForMultipleChoice" else (3, 7))
    outs = []
    for model in (theirs.train(), ours.train()):
        torch.manual_seed(5)
        outs.append(model(ids, output_attentions=True))
    parity(output_error(outs[1], outs[0]))


def test_dropout_of_the_fused_path_has_the_same_mean_and_spread():
    _, ours = twins("Model", attention_probs_dropout_prob=0.3, num_hidden_layers=1)
    ids = torch.randint(2, 60, (1, 7))
    eager, sdpa = (
        torch.stack([ours.train()(ids, output_attentions=want).last_hidden_state for _ in range(600)])
        for want in (True, False)
    )
    torch.testing.assert_close(sdpa.mean(0), eager.mean(0), atol=0.12, rtol=0)
    torch.testing.assert_close(sdpa.std(0).mean(), eager.std(0).mean(), atol=0, rtol=0.1)


@pytest.mark.parametrize("position_embedding_type", POSITION_TYPES)
def test_gradient_checkpointing_changes_no_gradient(position_embedding_type, parity):
    _, ours = twins("ForMaskedLM", position_embedding_type=position_embedding_type)
    ids = torch.randint(2, 60, (2, 9))
    ours.train()(ids, labels=ids).loss.backward()
    used = [p for p in ours.parameters() if p.grad is not None]  # all but, with relative positions, the absolute ones
    expected = [p.grad.clone() for p in used]
    ours.zero_grad()
    ours.gradient_checkpointing_enable()
    ours(ids, labels=ids, output_attentions=True).loss.backward()
    parity(error([p.grad for p in used], expected))
    ours.gradient_checkpointing_disable()
    assert not ours.backbone.gradient_checkpointing


@pytest.mark.parametrize("position_embedding_type", POSITION_TYPES)
def test_pruning_after_the_fact_equals_the_reference(position_embedding_type, parity):
    sizes = {"num_attention_heads": 4, "hidden_size": 24, "num_hidden_layers": 3}
    theirs, ours = twins("ForMaskedLM", position_embedding_type=position_embedding_type, **sizes)
    for heads in ({0: [1], 2: [0, 3]}, {0: [1, 2]}):  # the second time, head 1 has gone already
        theirs.prune_heads(heads)
        ours.prune_heads(heads)
    assert ours.config.pruned_heads == {0: [1, 2], 2: [0, 3]}
    ids = torch.randint(2, 60, (2, 9))
    options = {"output_attentions": True, "output_hidden_states": True}
    ours_out, their_out = ours(ids, **options), theirs(ids, **options)
    parity(output_error(ours_out, their_out))
    assert [w.shape[1] for w in ours_out.attentions] == [2, 4, 2]


def test_a_head_mask_of_zero_equals_pruning(parity):
    _, ours = twins("Model", num_attention_heads=4, hidden_size=24)
    ids, mask = torch.randint(2, 60, (2, 9)), torch.ones(2, 4)
    mask[0, 1] = mask[1, 3] = 0
    masked = ours(ids, head_mask=mask).last_hidden_state
    ours.prune_heads({0: [1], 1: [3]})
    parity(error(ours(ids).last_hidden_state, masked))
    parity(error(ours(ids, head_mask=mask).last_hidden_state, masked))  # numbers of the unpruned model still hold


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("size", [40, 61, 80])
def test_resizing_keeps_the_old_rows(size, tie, parity):
    theirs, ours = twins("ForMaskedLM", tie_word_embeddings=tie)
    ids = torch.randint(2, 40, (2, 9))
    theirs.resize_token_embeddings(size, mean_resizing=False)
    table = ours.resize_token_embeddings(size)
    kept = min(size, 61)
    parity(error(ours(ids).logits[..., :kept], theirs(ids).logits[..., :kept]))
    assert ours(ids).logits.shape[-1] == table.num_embeddings == ours.config.vocab_size == size
    assert (ours.lm_head.decoder.weight is table.weight) == tie
    ours(ids, labels=ids).loss.backward()
    assert table.weight.grad.shape == (size, 24)
    assert not ours.requires_grad_(False).resize_token_embeddings(size + 1).weight.requires_grad


def test_initialisation_follows_the_reference():
    config = XLMRobertaXLConfig(**{**SMALL, "hidden_size": 96, "vocab_size": 500, "initializer_range": 0.05})
    model = XLMRobertaXLForMaskedLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            assert bool((parameter == 1).all()), name
        elif name.endswith("bias"):
            assert bool((parameter == 0).all()), name
        elif parameter.numel() > 2000:
            assert abs(parameter.std().item() - 0.05) < 0.003, name
    embeddings = model.backbone.embeddings
    assert not embeddings.word.weight[1].any()
    assert not embeddings.position.weight[1].any()
    assert embeddings.token_type.weight.any()
    assert model.lm_head.decoder.weight is embeddings.word.weight


def test_output_reads_in_four_ways():
    _, ours = twins("Model")
    ids = torch.randint(2, 60, (2, 5))
    out = ours(ids, output_hidden_states=True)
    assert out[0] is out.last_hidden_state is out["last_hidden_state"] is out.to_tuple()[0]
    assert out[1] is out.pooler_output
    assert out.attentions is None
    assert "attentions" not in out
    assert list(out) == ["last_hidden_state", "pooler_output", "hidden_states"]
    assert out.hidden_states[-1] is out.last_hidden_state
    torch.testing.assert_close(ours(ids, return_dict=False)[0], out[0])
    assert isinstance(ours(ids, return_dict=None), type(out))
    again = type(out)(dict(out))  # as tools do that gather outputs
    assert list(again) == list(out)
    again.loss = torch.zeros(())
    assert again["loss"] is again.loss
    assert pickle.loads(pickle.dumps(out)).last_hidden_state.shape == out[0].shape
    with torch.no_grad():
        assert list(copy.deepcopy(ours(ids))) == ["last_hidden_state", "pooler_output"]
    with pytest.raises(
        KeyError, match=r"no 'attentions' in this output, only last_hidden_state.* output_attentions=True"
    ):
        out["attentions"]
    with pytest.raises(AttributeError, match="no 'logit'"):
        out.logit  # noqa: B018


def test_config_asks_for_attentions_and_hidden_states():
    _, ours = twins("ForMaskedLM", output_attentions=True, output_hidden_states=True)
    out = ours(torch.randint(2, 60, (2, 5)))
    assert len(out.attentions) == 2
    assert len(out.hidden_states) == 3


def test_half_precision_stays_close():
    ids, mask = torch.randint(2, 60, (2, 9)), torch.ones(2, 9).long()
    mask[0, 5:] = 0
    for dtype, limit in ((torch.bfloat16, 0.05), (torch.float16, 0.01)):
        _, ours = twins("ForMaskedLM")
        exact = ours(ids, attention_mask=mask).logits
        for output_attentions in (True, False):
            half = ours.to(dtype)(ids, attention_mask=mask, output_attentions=output_attentions).logits
            assert half.dtype == dtype
            assert error(half.float(), exact) < limit


def test_full_sizes_have_the_published_number_of_parameters():
    """Without memory, on the meta device: 3,482,741,760 and 10,712,994,816, the tied matrix counted once."""
    for config, expected in ((XLMRobertaXLConfig.xl(), 3_482_741_760), (XLMRobertaXLConfig.xxl(), 10_712_994_816)):
        with torch.device("meta"):
            model = XLMRobertaXLForMaskedLM(config)
        assert sum(p.numel() for p in model.parameters()) == expected
        ids = torch.zeros(1, 8, dtype=torch.long, device="meta")
        assert model(ids).logits.shape == (1, 8, 250880)


def test_model_without_pooler_has_no_pooler_output():
    model = XLMRobertaXLModel(XLMRobertaXLConfig(**SMALL), add_pooling_layer=False)
    assert model(torch.randint(2, 60, (1, 4))).pooler_output is None
