"""What users of transformers write, with only the imports changed: configs, signatures, state dicts, loading, sizes."""

import copy
import inspect
import pickle
import subprocess
import sys

import pytest
import torch
import transformers
from refusal import refused
from torch.utils import _pytree as pytree
from transformers_reference import SMALL, TASKS, error, gradient_error, twins

import xlmrxl_min
from xlmrxl_min import CheckpointError, XLMRobertaXLConfig

IDS = torch.tensor([[0, 5, 9, 17, 4, 2], [0, 8, 30, 2, 1, 1]])
MASK = (IDS != 1).long()


def ours_of(task, **config):
    return getattr(xlmrxl_min, f"XLMRobertaXL{task}")(XLMRobertaXLConfig(**{**SMALL, **config})).eval()


# ---- configs


def test_labels_of_a_config_can_be_changed():
    config = XLMRobertaXLConfig(**SMALL)
    config.num_labels = 3
    assert (list(config.id2label), config.label2id["LABEL_2"]) == ([0, 1, 2], 2)
    config.id2label = {0: "no", 1: "yes"}
    assert (config.num_labels, config.label2id) == (2, {"no": 0, "yes": 1})
    for same in (["no", "yes"], {"0": "no", "1": "yes"}):  # a list, and from JSON
        config.id2label = same
        assert (config.id2label, config.num_labels) == ({0: "no", 1: "yes"}, 2)
    config.num_labels = 2
    assert config.id2label == {0: "no", 1: "yes"}
    config.num_labels = 0
    refused(lambda: xlmrxl_min.XLMRobertaXLModel(config), "num_labels=0")


def test_attributes_set_by_hand_are_saved(tmp_path):
    config = XLMRobertaXLConfig(**SMALL)
    config.task_specific_params = {"a": [1]}
    config._not_saved = 1
    config.save_pretrained(tmp_path)
    loaded = XLMRobertaXLConfig.from_pretrained(tmp_path)
    assert loaded.task_specific_params == config.to_dict()["task_specific_params"] == {"a": [1]}
    assert not hasattr(loaded, "_not_saved")
    assert config == copy.deepcopy(config) == pickle.loads(pickle.dumps(config))


@pytest.mark.parametrize("task", TASKS)
def test_a_config_of_transformers_builds_the_same_model(task):
    theirs, ours = twins(task, is_decoder=task == "ForCausalLM", id2label={0: "a", 1: "b"}, classifier_dropout=0.5)
    model = type(ours)(theirs.config).eval()
    assert (model.config.id2label, model.config.extra.get("classifier_dropout")) == ({0: "a", 1: "b"}, None)
    model.load_state_dict(theirs.state_dict())
    ids = IDS[:, None] if task == "ForMultipleChoice" else IDS
    assert error(model(ids)[0], theirs(ids)[0]) < 1e-5
    assert model.num_parameters() == theirs.num_parameters()
    assert model.num_parameters(exclude_embeddings=True) == theirs.num_parameters(exclude_embeddings=True)


def test_a_config_of_another_model_is_refused():
    for config in (transformers.BertConfig(), {"hidden_size": 3}, XLMRobertaXLConfig):
        with pytest.raises(TypeError, match="but must be an XLMRobertaXLConfig of this package, or of transformers"):
            xlmrxl_min.XLMRobertaXLModel(config)


@pytest.mark.parametrize("task", TASKS)
def test_forward_has_the_arguments_of_transformers_in_their_order(task):
    names = [
        list(inspect.signature(getattr(library, f"XLMRobertaXL{task}").forward).parameters)
        for library in (xlmrxl_min, transformers)
    ]
    ours, theirs = ([n for n in given if n not in ("return_dict", "kwargs", "cache_position")] for given in names)
    assert ours[: len(theirs)] == theirs
    assert set(ours) - set(theirs) <= {"num_items_in_batch"}


# ---- classes and outputs


def test_models_are_instances_of_transformers_class_where_it_is_imported():
    model = ours_of("ForMaskedLM")
    assert isinstance(model, transformers.PreTrainedModel)
    assert isinstance(model, xlmrxl_min.XLMRobertaXLPreTrainedModel)
    assert type(model).__name__ == "XLMRobertaXLForMaskedLM"
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(copied) is type(model)
        assert torch.equal(copied(IDS, MASK).logits, model(IDS, MASK).logits)


def test_nothing_of_transformers_is_imported_for_a_model():
    code = "from xlmrxl_min import *; import sys; XLMRobertaXLModel.from_pretrained('tiny'); print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "transformers" not in out.split()


def test_an_output_is_a_pytree():
    out = ours_of("Model")(IDS, MASK, output_hidden_states=True)
    leaves, spec = pytree.tree_flatten(out)
    assert len(leaves) == 2 + 3
    assert list(pytree.tree_unflatten(leaves, spec)) == list(out)


# ---- state dicts


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("task", TASKS)
def test_a_state_dict_of_transformers_is_loaded(task, strict):
    theirs, ours = twins(task, is_decoder=task == "ForCausalLM")
    fresh = type(ours)(ours.config).eval()
    weights = dict(theirs.state_dict())
    weights.pop("lm_head.decoder.weight", None)  # as in a file: it is tied
    fresh.load_state_dict(weights, strict=strict)
    for name, weight in ours.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], weight), name


@pytest.mark.parametrize("strict", [True, False])
def test_a_state_dict_without_a_known_name_is_refused(strict):
    weights = transformers.BertModel(transformers.BertConfig(hidden_size=12, num_hidden_layers=1)).state_dict()
    message = refused(lambda: ours_of("ForMaskedLM").load_state_dict(weights, strict=strict), "no name of this state")
    assert "hugging_face_name" in message


# ---- loading and saving


@pytest.fixture
def saved(tmp_path):
    model = ours_of("ForSequenceClassification", num_labels=3)
    model.save_pretrained(tmp_path)
    return model, tmp_path


def test_loading_arguments_of_transformers(saved):
    model, folder = saved
    load, expected = type(model).from_pretrained, model(IDS, MASK).logits
    for options in (
        {"low_cpu_mem_usage": True, "use_safetensors": True, "trust_remote_code": False},
        {"attn_implementation": "eager"},
        {"attn_implementation": "sdpa", "torch_dtype": "auto"},
        {"device_map": "cpu"},
        {"device_map": {"": torch.device("cpu")}},
        {"device_map": "auto"},
        {"device_map": {"backbone.embeddings": "cpu", "backbone.layers": "cpu", "backbone.norm": 0, "classifier": 0}}
        if torch.cuda.is_available()
        else {"device_map": {"backbone": "cpu", "classifier": "cpu"}},
        {"config": transformers.AutoConfig.from_pretrained(folder)},
    ):
        assert error(load(folder, **options)(IDS, MASK).logits, expected) < 1e-6, options
    refused(lambda: load(folder, attn_implementation="flash_attention_2"), "attn_implementation='flash_attention_2'")
    refused(lambda: load(folder, device_map=[0]), "device_map=\\[0\\]")


def test_the_dtype_of_the_file(saved):
    model, folder = saved
    model.bfloat16().save_pretrained(folder)
    assert type(model).from_pretrained(folder, torch_dtype="auto").dtype == torch.bfloat16
    assert type(model).from_pretrained(folder).dtype == torch.float32


def test_sizes_that_do_not_match_and_what_was_loaded(saved):
    model, folder = saved
    load = type(model).from_pretrained
    with pytest.raises(CheckpointError, match="out_proj"):
        load(folder, num_labels=5)
    with pytest.warns(UserWarning, match="holds other shapes of classifier: initialised at random"):
        other, info = load(folder, num_labels=5, ignore_mismatched_sizes=True, output_loading_info=True)
    assert other(IDS, MASK).logits.shape == (2, 5)
    names = {"classifier.out_proj.weight", "classifier.out_proj.bias"}
    assert {name for name, *_ in info["mismatched_keys"]} == set(info["missing_keys"]) == names
    assert ("classifier.out_proj.bias", (3,), (5,)) in info["mismatched_keys"]
    assert torch.equal(other.classifier.dense.weight, model.classifier.dense.weight)
    _, info = xlmrxl_min.XLMRobertaXLModel.from_pretrained(folder, add_pooling_layer=False, output_loading_info=True)
    assert not info["missing_keys"]
    assert all(name.startswith("classifier.") for name in info["unexpected_keys"])
    assert len(info["unexpected_keys"]) == 4


def test_settings_of_generation_are_saved_and_loaded(tmp_path):
    theirs, ours = twins("ForCausalLM", is_decoder=True)
    ours.save_pretrained(tmp_path / "ours")
    loaded = transformers.GenerationConfig.from_pretrained(tmp_path / "ours")
    assert (loaded.bos_token_id, loaded.pad_token_id, loaded.eos_token_id) == (0, 1, 2)
    theirs.generation_config.max_new_tokens = 3
    theirs.save_pretrained(tmp_path / "theirs")
    again = type(ours).from_pretrained(tmp_path / "theirs")
    assert again.generate(IDS[:1, :3], eos_token_id=-1).shape == (1, 3 + 3)


def test_the_default_device_is_used(saved):
    model, folder = saved
    with torch.device("meta"):
        assert {p.device.type for p in type(model).from_pretrained(folder).parameters()} == {"meta"}


def test_saving_arguments_of_transformers(saved, tmp_path):
    model, _ = saved
    weights = {name: weight + 1 for name, weight in model.state_dict().items()}
    model.save_pretrained(tmp_path / "not", is_main_process=False)
    assert not (tmp_path / "not").exists()
    model.save_pretrained(tmp_path / "more", is_main_process=True, save_function=torch.save, state_dict=weights)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "more")
    assert torch.equal(loaded.classifier.dense.bias, model.classifier.dense.bias + 1)
    refused(lambda: model.save_pretrained(tmp_path / "not", safe_serialization=False), "only safetensors")


# ---- sizes and training


@pytest.mark.parametrize("tie", [True, False])
def test_resized_embeddings_equal_those_of_transformers(tie):
    theirs, ours = twins("ForMaskedLM", tie_word_embeddings=tie)
    for model in (theirs, ours):
        model.resize_token_embeddings(70, pad_to_multiple_of=8)
    assert len(ours.get_input_embeddings().weight) == ours.config.vocab_size == ours.lm_head.decoder.out_features == 72
    assert error(ours(IDS, MASK).logits, theirs(IDS, MASK).logits) < 1e-4  # theirs adds noise to the mean
    refused(lambda: ours.resize_token_embeddings(70, pad_to_multiple_of=1.3), "pad_to_multiple_of=1.3")
    ours.resize_token_embeddings(2000, mean_resizing=False)
    assert ours.get_input_embeddings().weight[72:].std().item() == pytest.approx(0.2, rel=0.05)
    assert len(ours.resize_token_embeddings().weight) == 2000


def test_embeddings_can_be_replaced():
    model = ours_of("ForMaskedLM")
    table = torch.nn.Embedding(61, 24)
    model.set_input_embeddings(table)
    assert model.get_input_embeddings() is table
    model.tie_weights()
    assert model.get_output_embeddings().weight is table.weight


@pytest.mark.parametrize("options", [None, {"use_reentrant": True}, {"use_reentrant": False}])
def test_gradient_checkpointing_with_its_arguments(options):
    theirs, ours = twins("ForMaskedLM")
    ours.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)  # transformers has none for this model
    assert ours.is_gradient_checkpointing
    for model in (theirs, ours):
        model.train()(IDS, MASK, labels=IDS).loss.backward()
    assert gradient_error(ours, theirs) < 1e-5
    ours.gradient_checkpointing_disable()
    assert not ours.is_gradient_checkpointing


def test_the_number_of_items_divides_the_loss_of_a_causal_language_model():
    theirs, ours = twins("ForCausalLM", is_decoder=True)
    labels = IDS.masked_fill(IDS == 1, -100)
    for count in (7, torch.tensor(31)):
        losses = [model(IDS, MASK, labels=labels, num_items_in_batch=count).loss for model in (ours, theirs)]
        assert error(*losses) < 1e-6
    for model in (ours, theirs):  # a micro-batch without any label
        loss = model(IDS, MASK, labels=torch.full_like(IDS, -100), num_items_in_batch=7).loss
        loss.backward()
        assert loss == 0
        assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)
    assert [ours_of(task).accepts_loss_kwargs for task in TASKS[1:]] == [task == "ForCausalLM" for task in TASKS[1:]]
