"""Every misuse that a learner will make gets one ValueError of one sentence: the value, the limit, the way out."""

import pytest
import torch
from refusal import refused
from transformers_reference import SMALL, twins

import xlmrxl_min
from xlmrxl_min import Cache, XLMRobertaXLConfig

IDS = torch.full((2, 5), 7)
CASES = {
    "a text": ({"input_ids": "Everyone"}, "the input is a str, but must be a tensor: tokenize with return_tensors"),
    "a list": ({"input_ids": [[0, 5, 2]]}, "the input is a list, but must be a tensor"),
    "a mask as a list": ({"input_ids": IDS, "attention_mask": [[1] * 5] * 2}, "attention_mask is a list, but must be"),
    "id beyond the vocabulary": (
        {"input_ids": IDS + 60},
        r"input_ids holds 67, but allowed are 0 to 60: tokenize with",
    ),
    "negative id": ({"input_ids": IDS - 8}, "input_ids holds -1, but allowed are 0 to 60"),
    "ids as floats": ({"input_ids": IDS.float()}, "input_ids must be integers, not torch.float32"),
    "ids of one axis": ({"input_ids": IDS[0]}, r"the input has shape \(5,\), but must be \(batch, tokens\)"),
    "no tokens": ({"input_ids": IDS[:, :0]}, r"the input has shape \(2, 0\).* at least one token"),
    "a list of token types": ({"input_ids": IDS, "token_type_ids": [[0] * 5] * 2}, "token_type_ids is a list"),
    "too many tokens": (
        {"input_ids": IDS.repeat(1, 8)},
        "40 tokens are too many: there is room for 38, so cut",
    ),
    "too many positions": (
        {"input_ids": IDS, "position_ids": IDS + 33},
        "position_ids holds 40, but allowed are 0 to 39",
    ),
    "token type": (
        {"input_ids": IDS, "token_type_ids": IDS * 0 + 1},
        "token_type_ids holds 1, .* leave token_type_ids out",
    ),
    "both inputs": (
        {"input_ids": IDS, "inputs_embeds": torch.zeros(2, 5, 24)},
        "got both of input_ids and inputs_embeds",
    ),
    "neither input": ({}, "got neither of input_ids and inputs_embeds: pass one of them"),
    "embeddings of another width": (
        {"inputs_embeds": torch.zeros(2, 5, 23)},
        r"\(2, 5, 23\), but must be .*hidden_size=24",
    ),
    "mask of another length": (
        {"input_ids": IDS, "attention_mask": torch.ones(2, 6)},
        r"attention_mask has shape \(2, 6\), but must be \(2, 5\) or \(2, 5, 5\)",
    ),
    "additive mask": ({"input_ids": IDS, "attention_mask": IDS * -1e4}, "attention_mask takes only 1 .* and 0"),
    "only padding": (
        {"input_ids": IDS, "attention_mask": torch.tensor([[1] * 5, [0] * 5])},
        r"attention_mask has only padding in row \[1\]: drop it",
    ),
    "head mask of another size": (
        {"input_ids": IDS, "head_mask": torch.ones(4)},
        r"head_mask has shape \(4,\), but must be \(3,\) or \(2, 3\)",
    ),
    "states without cross-attention": (
        {"input_ids": IDS, "encoder_hidden_states": torch.zeros(2, 4, 24)},
        "no cross-attention: for encoder_hidden_states, build it with is_decoder=True, add_cross_attention=True",
    ),
    "token types of another shape": (
        {"input_ids": IDS, "token_type_ids": IDS[:, 1:] * 0},
        r"token_type_ids has shape \(2, 4\), but must be \(2, 5\)",
    ),
    "positions for more rows": (
        {"input_ids": IDS[:1], "position_ids": IDS},
        r"position_ids has shape \(2, 5\), but must be \(1, 5\)",
    ),
    "cache of an encoder": (
        {"input_ids": IDS, "past_key_values": Cache(2)},
        "past_key_values is a Cache: only a decoder",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_wrong_input(case):
    inputs, words = CASES[case]
    refused(lambda: twins("Model")[1](**inputs), words)


def decoder(task="ForCausalLM", **config):
    return twins(task, is_decoder=True, **config)[1]


@pytest.mark.parametrize("position_embedding_type", ["relative_key", "relative_key_query"])
def test_too_many_tokens_for_the_table_of_distances(position_embedding_type):
    model = twins("Model", position_embedding_type=position_embedding_type)[1]
    assert model(IDS.repeat(1, 8)).last_hidden_state.shape[1] == 40
    refused(lambda: model(IDS.repeat(1, 9)), "45 tokens are too many: there is room for 40, so cut the text")


@pytest.mark.parametrize("position_embedding_type", ["absolute", "relative_key"])
def test_a_cache_that_grows_past_the_positions(position_embedding_type):
    model = decoder(position_embedding_type=position_embedding_type)
    cache = model(IDS.repeat(1, 7)).past_key_values
    refused(lambda: model(IDS.repeat(1, 2), past_key_values=cache), "cut the text")


def test_cross_attention():
    model = decoder(add_cross_attention=True)
    refused(lambda: model(IDS), "needs encoder_hidden_states: pass the encoder's last_hidden_state")
    states = torch.zeros(2, 4, 24)
    refused(lambda: model(IDS, encoder_hidden_states=states[:1]), r"are \(1, 4, 24\), not \(batch=2")
    refused(lambda: model(IDS, encoder_hidden_states=states[..., 1:]), r"are \(2, 4, 23\), not")
    mask = {"encoder_attention_mask": torch.ones(2, 3)}
    refused(lambda: model(IDS, encoder_hidden_states=states, **mask), r"encoder_attention_mask has shape \(2, 3\)")
    mask = {"encoder_attention_mask": torch.zeros(2, 4)}
    refused(lambda: model(IDS, encoder_hidden_states=states, **mask), "encoder_attention_mask has only padding")


def test_past_key_values_of_somebody_else():
    refused(
        lambda: decoder()(IDS, past_key_values=((IDS,),)), "past_key_values is a tuple: only a decoder's own go back"
    )


def test_a_cache_that_does_not_fit():
    model = decoder()
    cache = model(IDS).past_key_values
    refused(
        lambda: model(IDS[:1], past_key_values=cache), "hold 2 layers and 2 rows, but must hold 2 layers and 1 rows"
    )
    refused(lambda: model(IDS, past_key_values=Cache(1)), "hold 1 layers")
    model.gradient_checkpointing_enable()
    refused(lambda: model.train()(IDS, past_key_values=cache), "do not go with gradient checkpointing")


@pytest.mark.parametrize("position_embedding_type", ["absolute", "relative_key"])
def test_what_is_refused_leaves_the_cache_as_it_was(position_embedding_type):
    model = decoder(position_embedding_type=position_embedding_type).requires_grad_(False)
    cache = model(IDS.repeat(1, 7)).past_key_values
    refused(lambda: model(IDS.repeat(1, 2), past_key_values=cache), "cut the text")
    assert {layer.length for layer in cache.layers} == {35}
    whole = model(torch.cat([IDS.repeat(1, 7), IDS[:, :3]], 1), use_cache=False).logits
    torch.testing.assert_close(model(IDS[:, :3], past_key_values=cache).logits, whole[:, 35:])


def test_a_mask_for_the_new_tokens_only():
    model = decoder()
    cache = model(IDS).past_key_values
    words = r"attention_mask has shape \(2, 1\), but must be \(2, 6\) .* cached ones included"
    refused(lambda: model(IDS[:, :1], attention_mask=torch.ones(2, 1), past_key_values=cache), words)


@pytest.mark.parametrize(
    ("task", "labels", "words"),
    [
        ("ForMaskedLM", {"labels": IDS + 60}, "labels holds 67, but allowed are 0 to 60: -100 marks"),
        ("ForMaskedLM", {"labels": IDS[:, 1:]}, r"labels have shape \(2, 4\), but must be \(2, 5\)"),
        ("ForTokenClassification", {"labels": IDS}, "labels holds 7, but allowed are 0 to 2"),
        ("ForSequenceClassification", {"labels": torch.tensor([3, 0])}, "labels holds 3, but allowed are 0 to 2"),
        ("ForSequenceClassification", {"labels": torch.zeros(2, 4)}, "multi_label_classification needs"),
        ("ForSequenceClassification", {"labels": torch.zeros(3, 2)}, r"shape \(3, 2\), but multi_label.* \(2, 3\)"),
        ("ForCausalLM", {"labels": IDS[:, 1:]}, r"labels have shape \(2, 4\), but must be \(2, 5\)"),
        ("ForQuestionAnswering", {"start_positions": IDS[0, :1], "end_positions": IDS[0, :2]}, "start_positions have"),
    ],
)
def test_wrong_labels(task, labels, words):
    sizes = {"num_labels": 2 if task == "ForQuestionAnswering" else 3, "is_decoder": task == "ForCausalLM"}
    model = twins(task, **sizes)[1]
    refused(lambda: model(IDS, **labels), words)


def test_multiple_choice_wants_choices():
    refused(lambda: twins("ForMultipleChoice")[1](IDS), r"takes input_ids \(batch, choices, tokens\)")
    refused(lambda: twins("ForMultipleChoice")[1](IDS), r"got shape \(2, 5\)")
    refused(lambda: twins("ForMultipleChoice")[1](), "multiple choice takes .*, but got a NoneType")


def test_question_answering_has_two_ends():
    config = XLMRobertaXLConfig(**SMALL, num_labels=3)
    refused(lambda: xlmrxl_min.XLMRobertaXLForQuestionAnswering(config), "num_labels=3 is impossible here")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_attention_heads", 5), ("num_attention_heads", 0), ("hidden_size", -24), ("num_hidden_layers", 0),
        ("num_hidden_layers", 1.5), ("vocab_size", "many"), ("hidden_act", "swish-ish"), ("hidden_dropout_prob", 1.0),
        ("attention_probs_dropout_prob", -0.1), ("classifier_dropout", 2), ("layer_norm_eps", 0.0),
        ("position_embedding_type", "rotary"), ("problem_type", "guessing"), ("pad_token_id", 61),
        ("pad_token_id", None), ("max_position_embeddings", 2), ("type_vocab_size", 0), ("num_labels", 0),
        ("initializer_range", -1.0), ("add_cross_attention", True), ("layer_norm_eps", "1e-5"),
        ("hidden_dropout_prob", None), ("hidden_dropout_prob", "0.1"), ("hidden_act", ["gelu"]),
    ],
)  # fmt: skip
def test_impossible_configs(field, value):
    with pytest.raises(ValueError, match="is impossible: it must be") as caught:
        XLMRobertaXLConfig(**{**SMALL, field: value})
    if field != "num_attention_heads":
        assert f"{field}={value!r}" in str(caught.value)


def test_a_config_spoilt_after_it_was_made():
    config = XLMRobertaXLConfig(**SMALL)
    config.hidden_size = 25
    refused(lambda: xlmrxl_min.XLMRobertaXLModel(config), "hidden_size=25 is impossible")


def test_labels_must_have_as_many_names():
    refused(lambda: XLMRobertaXLConfig(num_labels=3, id2label={0: "a"}), "num_labels=3 is impossible")


@pytest.mark.parametrize("heads", [{2: [0]}, {0: [3]}, {0: [0, 1, 2]}, {-3: [0]}])
def test_impossible_pruning_changes_nothing(heads):
    model = twins("Model")[1]
    refused(lambda: model.prune_heads({1: [0], **heads}), "prune_heads")
    assert model.config.pruned_heads == {}
    assert model.layers[1].attention.heads == [0, 1, 2]


def test_pruning_the_rest():
    model = twins("Model")[1]
    model.prune_heads({0: [0, 1]})
    refused(lambda: model.prune_heads({0: [2]}), "would leave no head in layer 0")


def test_a_vocabulary_too_small_for_the_special_tokens():
    refused(lambda: twins("ForMaskedLM")[1].resize_token_embeddings(2), "needs an integer above 2")


def test_models_that_cannot_do_their_task_warn():
    with pytest.warns(UserWarning, match="cannot see what follows"):
        xlmrxl_min.XLMRobertaXLForMaskedLM(XLMRobertaXLConfig(**SMALL, is_decoder=True))
    with pytest.warns(UserWarning, match="sees what it is to predict"):
        xlmrxl_min.XLMRobertaXLForCausalLM(XLMRobertaXLConfig(**SMALL))


@pytest.mark.parametrize("output_attentions", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_padding_does_not_overflow_in_half_precision(dtype, output_attentions):
    """The lowest number of float16 plus a score of -16 is -inf, and a row of -inf is not a number."""
    model = decoder()
    for layer in model.backbone.layers:
        layer.attention.query.bias.data.fill_(3.0)
        layer.attention.key.bias.data.fill_(-30.0)
    mask = torch.ones(2, 5)
    mask[0, :2] = 0
    with torch.no_grad():
        assert bool(model.to(dtype)(IDS, mask, output_attentions=output_attentions).logits.isfinite().all())


def test_a_query_without_anything_to_see_is_finite():
    """A `b q k` mask may leave a query without keys: an even spread, as in the reference, never NaN."""
    mask = torch.ones(2, 5, 5)
    mask[0, 3] = 0
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = twins("Model")[1].to(dtype)
        for want in (True, False):
            with torch.no_grad():
                out = model(IDS, attention_mask=mask, output_attentions=want)
            assert bool(out.last_hidden_state.isfinite().all())
    torch.testing.assert_close(
        twins("Model")[1](IDS, mask, output_attentions=True).attentions[0][0, :, 3], torch.full((3, 5), 0.2)
    )


def test_a_row_of_padding_is_allowed_only_where_a_cache_lets_it_grow():
    model, mask = decoder(), torch.tensor([[1] * 5, [0] * 5])
    refused(lambda: model(IDS, mask, use_cache=False), r"only padding in row \[1\]")
    assert model(IDS, mask).past_key_values.get_seq_length() == 5


def test_encoder_states_have_three_axes():
    states = torch.zeros(2, 4, 24, 3)
    refused(lambda: decoder(add_cross_attention=True)(IDS, encoder_hidden_states=states), "encoder_hidden_states are")


def test_pruning_keeps_frozen_weights_frozen(tmp_path):
    model = twins("ForMaskedLM")[1].requires_grad_(False)
    model.prune_heads({0: [1]})
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_int8_weights_keep_their_size(tmp_path):
    twins("ForMaskedLM")[1].save_pretrained(tmp_path)
    quantized = xlmrxl_min.XLMRobertaXLForMaskedLM.from_pretrained(tmp_path, quantize="int8")
    logits = quantized(IDS).logits
    refused(lambda: quantized.prune_heads({1: [0]}), "cannot prune int8 weights: prune first")
    refused(lambda: quantized.resize_token_embeddings(70), "cannot resize int8 weights: resize first")
    quantized.prune_heads({})
    quantized.resize_token_embeddings(quantized.config.vocab_size)
    torch.testing.assert_close(quantized(IDS).logits, logits)


def test_an_output_advises_only_options_that_exist():
    out = twins("ForMaskedLM")[1](IDS)
    for name, advice in {
        "loss": "pass labels",
        "attentions": "output_attentions=True",
        "start_logits": "logits",
    }.items():
        with pytest.raises(KeyError, match=advice):
            out[name]
    with pytest.raises(AttributeError, match="no 'losses'"):
        out.losses = 1
