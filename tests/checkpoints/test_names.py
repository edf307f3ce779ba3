"""What a name means: the user's folder or file first, then a bundled checkpoint, then the hub; never a mixture."""

import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from formats import logits
from test_fairseq import SETTINGS, fairseq_state
from transformers_reference import SMALL, error, twins

from xlmrxl_min import CheckpointError, XLMRobertaTokenizer, XLMRobertaXLConfig, XLMRobertaXLForMaskedLM
from xlmrxl_min.checkpoints.locate import PRETRAINED
from xlmrxl_min.checkpoints.names import hugging_face_name

KINDS = (XLMRobertaXLForMaskedLM, XLMRobertaXLConfig, XLMRobertaTokenizer)


@pytest.fixture
def model():
    return XLMRobertaXLForMaskedLM(XLMRobertaXLConfig(**SMALL)).eval()


@pytest.fixture
def save(tmp_path, monkeypatch, model):
    """Saves a small model, with a tokenizer, in a folder of the working folder."""
    monkeypatch.chdir(tmp_path)

    def save(name, with_tokenizer=True):
        model.save_pretrained(name)
        if with_tokenizer:
            XLMRobertaTokenizer.from_pretrained(PRETRAINED / "tiny").save_pretrained(name)
        return tmp_path / name

    return save


@pytest.fixture
def no_hub(monkeypatch):
    """Fails where anything is asked of the hub."""
    import huggingface_hub

    for name in ("hf_hub_download", "snapshot_download", "get_hf_file_metadata"):
        monkeypatch.setattr(huggingface_hub, name, lambda *_, **__: pytest.fail("the hub was asked"))


def is_ours(loaded, folder):
    if isinstance(loaded, XLMRobertaTokenizer):
        return Path(loaded.vocab_file).resolve().parent == folder
    return getattr(loaded, "config", loaded).hidden_size == SMALL["hidden_size"]


@pytest.mark.parametrize("name", ["tiny", "tiny-translator", "xlm-roberta-xl"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_users_folder_comes_before_a_bundled_checkpoint(name, kind, save):
    folder = save(name)
    for source in (name, Path(name)):
        with pytest.warns(UserWarning, match="is the folder") as caught:
            assert is_ours(kind.from_pretrained(source), folder)
        [notice] = caught
        assert str(folder) in str(notice.message)
        assert f"for that one, pass {str(PRETRAINED / name)!r}" in str(notice.message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing to say where there is no doubt
        for source in (f"./{name}", f"{name}/", folder, f"{folder}/", f"../{folder.parent.name}/{name}"):
            assert is_ours(kind.from_pretrained(source), folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_without_a_checkpoint_does_not_hide_a_bundled_one(kind, save, tmp_path, monkeypatch):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "notes.txt").write_text("mine")
    (tmp_path / "tiny-relative-key").write_text("a file")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("tiny", "tiny-relative-key"):
            assert not is_ours(kind.from_pretrained(name), tmp_path / name)
            with pytest.raises((FileNotFoundError, CheckpointError), match=r"holds no|is a file, but none of"):
                kind.from_pretrained(f"./{name}")


@pytest.mark.parametrize("kind", KINDS)
def test_the_bundled_folder_itself_needs_no_notice(kind, monkeypatch, tmp_path):
    monkeypatch.chdir(PRETRAINED)
    os.symlink(PRETRAINED / "tiny", tmp_path / "tiny")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kind.from_pretrained("tiny")
        monkeypatch.chdir(tmp_path)
        kind.from_pretrained("tiny")


def test_a_folder_with_only_a_part_is_not_completed_from_the_bundled_one(save):
    folder = save("tiny", with_tokenizer=False)
    missing = r"tiny holds no sentencepiece.bpe.model: write the model's there"
    with pytest.warns(UserWarning, match="is the folder"), pytest.raises(FileNotFoundError, match=missing):
        XLMRobertaTokenizer.from_pretrained("tiny")
    for path in folder.iterdir():
        path.unlink()
    shutil.copy(PRETRAINED / "tiny" / "sentencepiece.bpe.model", folder)
    for kind in (XLMRobertaXLForMaskedLM, XLMRobertaXLConfig):
        with pytest.warns(UserWarning, match="is the folder"), pytest.raises(CheckpointError, match="tiny holds no "):
            kind.from_pretrained("tiny")


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_named_like_a_hub_id_is_taken_without_asking_the_hub(kind, save, no_hub):
    folder = save("facebook/xlm-roberta-xl")
    for source in ("facebook/xlm-roberta-xl", "facebook/xlm-roberta-xl/", "./facebook/xlm-roberta-xl"):
        assert is_ours(kind.from_pretrained(source), folder)


@pytest.mark.parametrize("kind", KINDS)
def test_the_home_folder_is_known(kind, save, no_hub, monkeypatch, tmp_path):
    folder = save("mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for source in ("~/mine", "~/mine/", Path("~/mine"), "~/mine/config.json"):
        assert is_ours(kind.from_pretrained(source), folder)


def test_the_named_file_is_loaded_of_several_in_one_folder(save, model, no_hub):
    folder = save("out")
    weights = {}
    for i, name in enumerate(("model.safetensors", "pytorch_model.bin", "other.safetensors", "epoch3.bin")):
        other = XLMRobertaXLForMaskedLM(model.config).eval()
        weights[name] = logits(other)
        if name.endswith(".safetensors"):
            other.save_pretrained(f"part{i}")
            shutil.copy(f"part{i}/model.safetensors", folder / name)
        else:
            torch.save({hugging_face_name(n): t for n, t in other.state_dict().items()}, folder / name)
    model.save_pretrained("sharded", max_shard_size="20KB")
    for path in Path("sharded").glob("model*"):
        shutil.copy(path, folder)
    weights["model.safetensors.index.json"] = logits(model)
    for name, expected in weights.items():
        for source in (f"out/{name}", folder / name):
            assert torch.equal(logits(XLMRobertaXLForMaskedLM.from_pretrained(source)), expected), name
            assert is_ours(XLMRobertaXLConfig.from_pretrained(source), folder)
            assert is_ours(XLMRobertaTokenizer.from_pretrained(source), folder)
    assert torch.equal(logits(XLMRobertaXLForMaskedLM.from_pretrained("out")), weights["model.safetensors"])
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"out holds no config.json"):
        XLMRobertaXLForMaskedLM.from_pretrained("out/model.safetensors")


def test_the_named_config_and_vocabulary_are_loaded(save, no_hub):
    folder = save("out")
    config = json.loads((folder / "config.json").read_text())
    (folder / "wide.json").write_text(json.dumps({**config, "num_labels": 3, "id2label": {0: "a", 1: "b", 2: "c"}}))
    assert XLMRobertaXLConfig.from_pretrained("out/wide.json").num_labels == 3
    assert XLMRobertaXLForMaskedLM.from_pretrained("out/wide.json").config.num_labels == 3
    shutil.copy(PRETRAINED / "xlm-roberta-xl" / "sentencepiece.bpe.model", folder / "large.model")
    assert len(XLMRobertaTokenizer.from_pretrained(folder / "large.model")) == 250002
    assert len(XLMRobertaTokenizer.from_pretrained("out/sentencepiece.bpe.model")) == 12002


@pytest.mark.parametrize("name", ["model.pt", "xlmr.xl.pt"])
def test_a_named_file_of_fairseq_is_loaded(name, tmp_path, no_hub):
    theirs, _ = twins("ForMaskedLM", type_vocab_size=1)
    theirs.roberta.embeddings.token_type_embeddings.weight.data.zero_()
    torch.save({"model": fairseq_state(theirs), **SETTINGS["args"](3)}, tmp_path / name)
    assert error(logits(XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / name)), logits(theirs)) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "source",
    [
        "out/model.safetensors", "out/pytorch_model.bin", "some/config.json", "a/model.pt", "model.safetensors",
        "./out/model", "../nowhere", "~/no such folder", "/nowhere/at/all", "out/", "out\\model", "C:\\models\\xl",
        "a/b/c", Path("out/model"), "https://huggingface.co/facebook/xlm-roberta-xl", "\0", "x" * 5000, "out/a\0b",
    ],
)  # fmt: skip
def test_a_path_that_does_not_exist_is_told_and_never_asked_of_the_hub(kind, source, no_hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"does not exist: check the path|is no folder, and none of") as caught:
        kind.from_pretrained(source)
    assert str(source) in str(caught.value)
    assert isinstance(caught.value, CheckpointError)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_name_is_refused_by_a_sentence(kind, model, tmp_path):
    for source in (None, 3, 2.5, b"tiny", model, ["tiny"], {}, torch.zeros(3)):
        with pytest.raises(TypeError, match=f"got a {type(source).__name__} for a checkpoint: pass its name"):
            kind.from_pretrained(source)
    for source in ("", " "):
        with pytest.raises(CheckpointError, match="for a checkpoint: pass its name"):
            kind.from_pretrained(source)
    (tmp_path / "notes.txt").write_text("hello")
    for source in (tmp_path / "notes.txt", "/dev/null"):
        with pytest.raises(CheckpointError, match="is a file, but none of weights"):
            kind.from_pretrained(source)


def test_other_wrong_arguments_of_loading_are_refused_by_a_sentence():
    load = XLMRobertaXLForMaskedLM.from_pretrained
    for config in ({"hidden_size": 3}, "tiny", XLMRobertaXLConfig):
        with pytest.raises(TypeError, match="but must be an XLMRobertaXLConfig of this package"):
            load("tiny", config=config)
    for device in ("gpu", "cuda:99", 3.5, "tpu"):
        with pytest.raises(ValueError, match=f"device={device!r} cannot be used here"):
            load("tiny", device=device)
    for dtype in ("automatic", 16, "int8", torch.int64):
        with pytest.raises(ValueError, match=r"dtype=.* is unknown: take float32"):
            load("tiny", dtype=dtype)
