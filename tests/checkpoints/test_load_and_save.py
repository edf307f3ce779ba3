"""Loading and saving: to and from transformers; what does not fit is rejected; saves are atomic."""

import json
import os
import signal
import subprocess
import sys
import warnings

import pytest
import torch
import transformers
from formats import IDS, logits
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers_reference import SMALL, TASKS, error, twins

import xlmrxl_min
from xlmrxl_min import CheckpointError, XLMRobertaXLConfig, XLMRobertaXLForMaskedLM, XLMRobertaXLModel
from xlmrxl_min.checkpoints.names import hugging_face_name

DECODER = {"is_decoder": True, "add_cross_attention": True, "position_embedding_type": "relative_key_query"}
KINDS = [*((task, {}) for task in TASKS if task != "ForCausalLM"), ("Model", DECODER), ("ForCausalLM", DECODER)]


def class_of(library, task):
    return getattr(library, f"XLMRobertaXL{task}")


def answers(model, task):
    """What the model says to a fixed input."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(2, 60, (2, 3, 6) if task == "ForMultipleChoice" else (2, 6), generator=generator)
    across = {}
    if model.config.is_decoder:
        across["use_cache"] = False  # with one, the reference is wrong on relative positions
    if model.config.add_cross_attention:
        across["encoder_hidden_states"] = torch.randn(2, 4, 24, generator=generator)
    with torch.no_grad():
        return model(ids, **across)[0]


@pytest.mark.parametrize(("task", "extra"), KINDS)
def test_our_checkpoints_load_in_transformers(task, extra, tmp_path, parity):
    _, ours = twins(task, **extra)
    ours.save_pretrained(tmp_path)
    theirs, report = class_of(transformers, task).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    parity(error(answers(ours, task), answers(theirs, task)))
    auto = transformers.AutoConfig.from_pretrained(tmp_path)
    assert auto.model_type == "xlm-roberta-xl"
    assert auto.architectures == [type(ours).__name__]


@pytest.mark.parametrize(("task", "extra"), KINDS)
def test_checkpoints_of_transformers_load(task, extra, tmp_path, parity):
    theirs, _ = twins(task, num_labels=2 if task == "ForQuestionAnswering" else 4, **extra)
    theirs.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = class_of(xlmrxl_min, task).from_pretrained(tmp_path)
    assert not ours.training
    assert ours.config.num_labels == theirs.config.num_labels
    parity(error(answers(ours, task), answers(theirs, task)))


@pytest.mark.parametrize("tie", [True, False])
def test_saving_and_loading_is_exact(tie, tmp_path):
    _, ours = twins("ForMaskedLM", tie_word_embeddings=tie, id2label={0: "no", 1: "yes"})
    ours.config.extra["a_key_of_somebody_else"] = [1, 2]
    ours.save_pretrained(tmp_path)
    again = XLMRobertaXLForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(answers(ours, "ForMaskedLM"), answers(again, "ForMaskedLM"))
    assert (again.lm_head.decoder.weight is again.backbone.embeddings.word.weight) == tie
    assert again.config.a_key_of_somebody_else == [1, 2]
    assert again.config.id2label == {0: "no", 1: "yes"}
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert ("lm_head.decoder.weight" in file.keys()) != tie  # noqa: SIM118
        assert file.metadata() == {"format": "pt"}


def test_pruned_models_are_saved_and_loaded(tmp_path, parity):
    theirs, ours = twins("ForMaskedLM", num_attention_heads=4)
    ours.prune_heads({1: [0, 2]})
    ours.save_pretrained(tmp_path)
    again = XLMRobertaXLForMaskedLM.from_pretrained(tmp_path)
    assert again.backbone.layers[1].attention.heads == [1, 3]
    theirs = transformers.XLMRobertaXLForMaskedLM.from_pretrained(tmp_path)
    for model in (again, theirs):
        parity(error(answers(model, "ForMaskedLM"), answers(ours, "ForMaskedLM")))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_saved_and_converted_on_loading(dtype, tmp_path):
    _, ours = twins("ForMaskedLM")
    ours.to(dtype).save_pretrained(tmp_path)
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {dtype}
    assert XLMRobertaXLForMaskedLM.from_pretrained(tmp_path).dtype == torch.float32
    assert XLMRobertaXLForMaskedLM.from_pretrained(tmp_path, dtype=dtype).dtype == dtype
    assert XLMRobertaXLForMaskedLM.from_pretrained(tmp_path, dtype="bfloat16").dtype == torch.bfloat16
    assert XLMRobertaXLForMaskedLM.from_pretrained(tmp_path, torch_dtype=dtype).dtype == dtype


@pytest.fixture
def theirs(tmp_path):
    """A model of transformers, saved in `one`."""
    model, _ = twins("ForMaskedLM")
    model.save_pretrained(tmp_path / "one")
    return model


FORMS = {
    "one safetensors": {},
    "several safetensors": {"max_shard_size": "20KB"},
    "one bin": {"safe_serialization": False},
    "several bins": {"safe_serialization": False, "max_shard_size": "20KB"},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_format_of_transformers_loads(form, theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "it", **FORMS[form])
    weights = [path for path in (tmp_path / "it").iterdir() if path.suffix in (".safetensors", ".bin")]
    assert (len(weights) > 1) == form.startswith("several")
    assert error(logits(XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "it")), logits(theirs)) < 1e-6


@pytest.mark.parametrize("prefix", ["", "encoder.model."])
def test_bare_models_and_other_prefixes_load(prefix, theirs, tmp_path):
    path = tmp_path / "one" / "model.safetensors"
    tensors = {
        name.replace("roberta.", prefix): x for name, x in load_file(path).items() if name.startswith("roberta.")
    }
    tensors[f"{prefix}embeddings.position_ids"] = torch.arange(40)[None]
    save_file(tensors, path, metadata={"format": "pt"})
    ours = XLMRobertaXLModel.from_pretrained(tmp_path / "one", add_pooling_layer=False)
    with torch.no_grad():
        assert error(ours(IDS).last_hidden_state, theirs.roberta(IDS).last_hidden_state) < 1e-6


def test_sharded_checkpoints_load_here_and_in_transformers(theirs, tmp_path):
    ours = XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "one")
    ours.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert files == {path.name for path in (tmp_path / "many").glob("*.safetensors")}
    assert len(files) > 2
    assert index["metadata"]["total_size"] == sum(p.numel() * 4 for p in ours.parameters())
    again = transformers.XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "many", attn_implementation="eager").eval()
    assert error(logits(XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "many")), logits(again)) < 1e-6
    ours.save_pretrained(tmp_path / "many")  # in one file again: no shard is left behind to be read instead
    assert {path.name for path in (tmp_path / "many").iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("size", ["0", "big", -1, "5 parsecs"])
def test_impossible_shard_sizes_are_rejected(size, theirs, tmp_path):
    ours = XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "one")
    with pytest.raises(ValueError, match="is no size: take a number of bytes"):
        ours.save_pretrained(tmp_path / "x", max_shard_size=size)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_converted_as_by_to(stored, dtype, theirs, tmp_path):
    theirs.to(stored).save_pretrained(tmp_path / "half")
    ours = XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "half", dtype=dtype)
    assert ours.dtype == dtype
    weights = theirs.state_dict()
    for name, parameter in ours.named_parameters():
        assert parameter.requires_grad
        assert torch.equal(parameter, weights[hugging_face_name(name)].to(dtype)), name


def test_large_weights_are_converted_in_chunks(tmp_path):
    model = XLMRobertaXLForMaskedLM(XLMRobertaXLConfig(**{**SMALL, "vocab_size": 150_001}))  # more than two of 4 MiB
    model.save_pretrained(tmp_path)
    ours = XLMRobertaXLForMaskedLM.from_pretrained(tmp_path, dtype="bfloat16")
    assert torch.equal(ours.lm_head.decoder.weight, model.lm_head.decoder.weight.bfloat16())


def test_training_on_mapped_weights_does_not_change_the_file(theirs, tmp_path):
    path = tmp_path / "one" / "model.safetensors"
    before = path.read_bytes()
    ours = XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "one")
    start = logits(ours)
    ours(IDS, labels=IDS).loss.backward()
    torch.optim.SGD(ours.parameters(), lr=0.5).step()
    assert error(logits(ours), start) > 1e-3
    assert path.read_bytes() == before
    ours.save_pretrained(tmp_path / "one")  # over the file that it is mapped from
    assert error(logits(XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "one")), logits(ours)) == 0


def rewrite(folder, change):
    """Apply `change` to the tensors of the folder's file."""
    tensors = load_file(folder / "model.safetensors")
    tensors = change(tensors) or tensors
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def folder(tmp_path):
    _, ours = twins("ForMaskedLM")
    ours.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("prefix", ["", "encoder.model.roberta.", "model."])
def test_any_prefix_is_found(prefix, folder):
    expected = answers(XLMRobertaXLForMaskedLM.from_pretrained(folder), "ForMaskedLM")
    outer = prefix.removesuffix("roberta.")
    rewrite(
        folder,
        lambda tensors: {
            prefix + n.removeprefix("roberta.") if n.startswith("roberta.") else outer + n: t
            for n, t in tensors.items()
        },
    )
    assert torch.equal(answers(XLMRobertaXLForMaskedLM.from_pretrained(folder), "ForMaskedLM"), expected)


@pytest.mark.parametrize("held", ["word", "decoder", "both"])
@pytest.mark.parametrize("bias", ["lm_head.bias", "lm_head.decoder.bias"])
def test_either_name_of_a_tied_pair_is_enough(held, bias, folder):
    expected = answers(XLMRobertaXLForMaskedLM.from_pretrained(folder), "ForMaskedLM")

    def change(tensors):
        words = tensors["roberta.embeddings.word_embeddings.weight"]
        if held != "word":
            tensors["lm_head.decoder.weight"] = words.clone()
        if held == "decoder":
            del tensors["roberta.embeddings.word_embeddings.weight"]
        tensors[bias] = tensors.pop("lm_head.bias")

    rewrite(folder, change)
    assert torch.equal(answers(XLMRobertaXLForMaskedLM.from_pretrained(folder), "ForMaskedLM"), expected)


def test_legacy_buffers_are_ignored(folder):
    rewrite(folder, lambda tensors: {**tensors, "roberta.embeddings.position_ids": torch.arange(40)[None]})
    XLMRobertaXLForMaskedLM.from_pretrained(folder)


def test_a_missing_head_is_initialised_with_one_warning(folder):
    with pytest.warns(UserWarning, match="holds no classifier") as caught:
        model = xlmrxl_min.XLMRobertaXLForSequenceClassification.from_pretrained(folder, num_labels=5)
    assert len(caught) == 1
    assert model.config.num_labels == 5
    assert model.classifier.out_proj.weight.shape == (5, 24)
    assert abs(model.classifier.dense.weight.std().item() - SMALL["initializer_range"]) < 0.05
    assert not model.classifier.dense.bias.any()
    words = XLMRobertaXLForMaskedLM.from_pretrained(folder).backbone.embeddings.word.weight
    assert torch.equal(model.backbone.embeddings.word.weight, words)


def test_the_bare_model_loads_with_a_new_pooler_or_none(folder):
    with pytest.warns(UserWarning, match="holds no pooler"):
        assert XLMRobertaXLModel.from_pretrained(folder).pooler is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert XLMRobertaXLModel.from_pretrained(folder, add_pooling_layer=False).pooler is None


NEW_HEAD = """
import warnings, torch, xlmrxl_min
warnings.simplefilter("ignore")
torch.manual_seed(0)
head = xlmrxl_min.XLMRobertaXLForSequenceClassification.from_pretrained("tiny").classifier
print(head.dense.weight.sum().item(), head.out_proj.weight.sum().item())
"""


@pytest.mark.slow
def test_a_new_head_is_the_same_in_every_process():
    """It does not depend on the order of a set, which differs between processes."""
    runs = []
    for seed in range(3):
        environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
        run = subprocess.run([sys.executable, "-c", NEW_HEAD], env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        runs.append(run.stdout)
    assert len(set(runs)) == 1, runs


def test_a_new_head_is_initialised_module_by_module(folder):
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="holds no classifier"):
        model = xlmrxl_min.XLMRobertaXLForSequenceClassification.from_pretrained(folder)
    weights = [model.classifier.dense.weight.clone(), model.classifier.out_proj.weight.clone()]
    torch.manual_seed(0)
    for module, weight in zip((model.classifier.dense, model.classifier.out_proj), weights, strict=True):
        module.reset_parameters()
        model.init_weights(module)
        assert torch.equal(module.weight, weight)


def test_a_new_lm_head_is_tied_and_complete(tmp_path):
    _, bare = twins("Model")
    bare.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="holds no lm_head"):
        model = XLMRobertaXLForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(model.backbone.embeddings.word.weight, bare.embeddings.word.weight)
    assert model.lm_head.decoder.weight is model.backbone.embeddings.word.weight
    assert bool((model.lm_head.norm.weight == 1).all())


def test_all_misfits_are_listed(folder):
    def change(tensors):
        del tensors["roberta.encoder.layer.0.attention.self.query.weight"]
        del tensors["lm_head.dense.bias"]  # a head that is there in part is not a head that is missing
        tensors["roberta.encoder.layer.7.LayerNorm.bias"] = torch.zeros(24)
        tensors["roberta.encoder.LayerNorm.weight"] = torch.zeros(25)

    rewrite(folder, change)
    with pytest.raises(CheckpointError) as caught:
        XLMRobertaXLForMaskedLM.from_pretrained(folder)
    message = str(caught.value)
    for part in (
        "model.safetensors",
        "missing: lm_head.dense.bias, roberta.encoder.layer.0.attention.self.query.weight.",
        "unexpected: roberta.encoder.layer.7.LayerNorm.bias.",
        "roberta.encoder.LayerNorm.weight is (25,), the model needs (24,)",
    ):
        assert part in message


def test_another_number_of_labels_is_rejected(tmp_path):
    _, ours = twins("ForSequenceClassification", num_labels=3)
    ours.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"classifier.out_proj.weight is \(3, 24\), the model needs \(4, 24\)"):
        xlmrxl_min.XLMRobertaXLForSequenceClassification.from_pretrained(tmp_path, num_labels=4)


def test_broken_weight_files_are_rejected(folder):
    path = folder / "model.safetensors"
    before = path.read_bytes()
    for content in (before[: len(before) // 2], b"", b"not a checkpoint at all"):
        path.write_bytes(content)
        with pytest.raises(
            CheckpointError,
            match=r"model.safetensors (is empty|is truncated)",
        ):
            XLMRobertaXLForMaskedLM.from_pretrained(folder)
    save_file({"some.other.model.weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match=r"model.safetensors does not fit .*unexpected: some.other.model.weight"):
        XLMRobertaXLForMaskedLM.from_pretrained(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"holds no model.safetensors"):
        XLMRobertaXLForMaskedLM.from_pretrained(folder)


def test_broken_configs_are_rejected(folder):
    path = folder / "config.json"
    values = json.loads(path.read_text())
    for content, words in (
        (json.dumps({**values, "model_type": "xlm-roberta"}), "model_type 'xlm-roberta'"),
        (json.dumps({**values, "model_type": None}), "model_type None"),
        (json.dumps({**values, "num_attention_heads": 5}), "hidden_size=24 is impossible"),
        (json.dumps({**values, "layer_norm_eps": "1e-5"}), "layer_norm_eps='1e-5' is impossible"),
        (json.dumps({**values, "pruned_heads": {"0": 5}}), "is not a valid config"),
        ("{", "not the JSON of a config"),
        ("[1]", "not the JSON of a config"),
    ):
        path.write_text(content)
        with pytest.raises(CheckpointError, match=words) as caught:
            XLMRobertaXLForMaskedLM.from_pretrained(folder)
        assert "config.json" in str(caught.value)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"holds no config.json"):
        XLMRobertaXLConfig.from_pretrained(folder)


def test_unknown_options_are_rejected(folder):
    with pytest.raises(ValueError, match="got nmu_labels, which is neither an argument"):
        XLMRobertaXLForMaskedLM.from_pretrained(folder, nmu_labels=3)
    with pytest.raises(ValueError, match="dtype='float13' is unknown"):
        XLMRobertaXLForMaskedLM.from_pretrained(folder, dtype="float13")


@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"])
def test_a_failed_save_changes_nothing(max_shard_size, folder):
    """A limit on the size of files stands in for a full disk: the write fails."""
    resource = pytest.importorskip("resource", reason="limits of this kind are Unix's")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    _, other = twins("ForMaskedLM", seed=1)
    handler, (soft, hard) = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"could not be written .*; existing files are unchanged"):
            other.save_pretrained(folder, max_shard_size=max_shard_size)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    other.config.hidden_act = torch.sin
    with pytest.raises(ValueError, match="hidden_act is a function"):
        other.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_configs_are_saved_and_loaded(tmp_path):
    config = XLMRobertaXLConfig.xxl(id2label={0: "a", 1: "b", 2: "c"}, classifier_dropout=0.3, is_decoder=True)
    config.save_pretrained(tmp_path)
    assert XLMRobertaXLConfig.from_pretrained(tmp_path) == config
    theirs = transformers.XLMRobertaXLConfig.from_pretrained(tmp_path)
    for name in (
        "hidden_size",
        "num_hidden_layers",
        "intermediate_size",
        "id2label",
        "classifier_dropout",
        "is_decoder",
    ):
        assert getattr(theirs, name) == getattr(config, name), name


def test_label_names_stay_unless_their_number_changes(tmp_path):
    XLMRobertaXLConfig(id2label={0: "no", 1: "yes"}).save_pretrained(tmp_path)
    assert XLMRobertaXLConfig.from_pretrained(tmp_path, num_labels=2).id2label == {0: "no", 1: "yes"}
    assert XLMRobertaXLConfig.from_pretrained(tmp_path, num_labels=3).id2label[2] == "LABEL_2"
    assert XLMRobertaXLConfig.from_pretrained(tmp_path, id2label={0: "a"}).num_labels == 1


def test_a_given_config_is_copied(folder):
    config = XLMRobertaXLConfig.from_pretrained(folder)
    a, b = (XLMRobertaXLForMaskedLM.from_pretrained(folder, config=config) for _ in range(2))
    a.prune_heads({0: [1]})
    a.resize_token_embeddings(70)
    assert (b.config.pruned_heads, b.config.vocab_size, config.vocab_size) == ({}, 61, 61)
    b.save_pretrained(folder)
    XLMRobertaXLForMaskedLM.from_pretrained(folder)


def test_the_config_records_the_saved_dtype(folder):
    """transformers reads it from the config, under either of two names."""
    theirs = transformers.XLMRobertaXLForMaskedLM.from_pretrained(folder)
    theirs.save_pretrained(folder)
    XLMRobertaXLForMaskedLM.from_pretrained(folder).half().save_pretrained(folder)
    assert transformers.XLMRobertaXLForMaskedLM.from_pretrained(folder, dtype="auto").dtype == torch.float16


def test_a_tie_that_contradicts_the_config_is_not_saved(folder):
    model = XLMRobertaXLForMaskedLM.from_pretrained(folder)
    model.lm_head.decoder.weight = torch.nn.Parameter(model.lm_head.decoder.weight.detach().clone())
    with pytest.raises(ValueError, match="are not tied, but tie_word_embeddings=True"):
        model.save_pretrained(folder)
    model.tie_weights()
    model.config.tie_word_embeddings = False
    with pytest.raises(ValueError, match="are tied, but tie_word_embeddings=False"):
        model.save_pretrained(folder)


def test_the_second_name_of_a_tied_pair_must_fit_too(folder):
    rewrite(folder, lambda tensors: {**tensors, "lm_head.decoder.weight": torch.zeros(7, 3)})
    with pytest.raises(CheckpointError, match=r"lm_head.decoder.weight is \(7, 3\), the model needs \(61, 24\)"):
        XLMRobertaXLForMaskedLM.from_pretrained(folder)
    rewrite(folder, lambda tensors: {n: t for n, t in tensors.items() if n != "lm_head.decoder.weight"})
    rewrite(folder, lambda tensors: {**tensors, "roberta.encoder.layer.0.classifier.junk": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"unexpected: roberta.encoder.layer.0.classifier.junk"):
        XLMRobertaXLForMaskedLM.from_pretrained(folder)


def test_our_own_names_are_not_read(folder):
    rewrite(
        folder, lambda tensors: {n.replace("roberta.encoder.LayerNorm", "backbone.norm"): t for n, t in tensors.items()}
    )
    with pytest.raises(CheckpointError, match=r"missing: roberta.encoder.LayerNorm.bias"):
        XLMRobertaXLForMaskedLM.from_pretrained(folder)


def test_config_has_every_default_of_the_reference():
    ours, theirs = XLMRobertaXLConfig(), transformers.XLMRobertaXLConfig().to_dict()
    for name in vars(ours):
        if name != "extra":
            assert getattr(ours, name) == theirs.get(name, getattr(ours, name)), name
    named = transformers.XLMRobertaXLConfig.__init__.__code__.co_varnames[1:]
    assert set(named) - {"kwargs"} <= set(vars(ours))


def test_every_parameter_has_a_name_in_transformers():
    for task in TASKS:
        theirs, ours = twins(task, **(DECODER if task in ("Model", "ForCausalLM") else {}))
        assert {hugging_face_name(n) for n in ours.state_dict()} | {"lm_head.bias"} == {
            *theirs.state_dict(),
            "lm_head.bias",
        }
