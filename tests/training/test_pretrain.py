"""The recipe of the encoders: examples, a run from start to checkpoint, resuming, and the bundled records."""

import json
from dataclasses import replace

import pytest
import torch

from xlmrxl_min import XLMRobertaTokenizer, XLMRobertaXLConfig, XLMRobertaXLForMaskedLM
from xlmrxl_min.checkpoints.locate import PRETRAINED
from xlmrxl_min.training.evaluation import masked_accuracy
from xlmrxl_min.training.pretrain import EncoderRecipe, encode_in_two_parts, encoder_examples, load_recipe, pretrain
from xlmrxl_min.training.texts import udhr

CHECKPOINTS = ("tiny", "tiny-relative-key", "tiny-relative-key-query")


@pytest.fixture
def recipe():
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return EncoderRecipe(
        languages=["en", "fr"], vocabulary="tiny", config={**small, "initializer_range": 0.1}, held_out_article=17,
        steps=24, tokens_per_batch=512, learning_rate=0.01, matrix_learning_rate=0.02,
        matrix_weight_decay=0.1, warmup_steps=5, decay_fraction=0.5,
        mask_prob=0.3, pair_prob=0.5, split_prob=0.2, dtype="float32", seed=3,
    )  # fmt: skip


def test_pairs_are_translations(tokenizer, recipe):
    text = [row for row in udhr(["en", "fr", "de"]) if row.article != 17]
    rows = encoder_examples(replace(recipe, pair_prob=1.0), tokenizer, text, epoch=0)
    encoded = {tuple(tokenizer.encode(row.text)[1:]): row for row in text}
    paired = 0
    for row, ids in zip(text, rows, strict=True):
        length = len(tokenizer.encode(row.text))
        assert ids[:length] == tokenizer.encode(row.text)
        if len(ids) > length:
            assert ids[length] == 2
            partner = encoded[tuple(ids[length + 1 :])]
            assert partner[1:3] == row[1:3]
            assert partner.language != row.language
            paired += 1
    assert 0.4 * len(text) < paired < len(text)
    assert encoder_examples(recipe, tokenizer, text, 0) == encoder_examples(recipe, tokenizer, text, 0)
    assert encoder_examples(recipe, tokenizer, text, 0) != encoder_examples(recipe, tokenizer, text, 1)


def test_a_text_in_two_parts_is_tokenized_as_around_a_mask(tokenizer):
    text = "人人生而自由,在尊严和权利上一律平等。"
    around = tokenizer.encode("人人生而<mask>自由,在尊严和权利上一律平等。")
    assert encode_in_two_parts(tokenizer, text, 4 / len(text)) == [i for i in around if i != tokenizer.mask_token_id]
    assert encode_in_two_parts(tokenizer, "free and equal", 0.5) == tokenizer.encode("free and equal")


@pytest.mark.parametrize("matrix_learning_rate", [0.02, pytest.param(0.0, marks=pytest.mark.slow)])
def test_a_run_learns_and_saves_a_checkpoint(recipe, tokenizer, tmp_path, matrix_learning_rate):
    settings = {"steps": 80, "matrix_learning_rate": matrix_learning_rate}
    record = pretrain(replace(recipe, **settings), tmp_path, progress=False)
    assert record == json.loads((tmp_path / "record.json").read_text())
    model = XLMRobertaXLForMaskedLM.from_pretrained(tmp_path)
    texts = [row.text for row in udhr(["en", "fr"]) if row.article != 17]
    found = masked_accuracy(model, XLMRobertaTokenizer.from_pretrained(tmp_path), texts)
    assert found == pytest.approx(record["training_text"])
    torch.manual_seed(0)
    untrained = XLMRobertaXLForMaskedLM(XLMRobertaXLConfig(vocab_size=len(tokenizer), **recipe.config))
    assert found["loss"] < masked_accuracy(untrained, tokenizer, texts)["loss"] - 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.json", "model.safetensors", "record.json", "sentencepiece.bpe.model", "tokenizer_config.json",
    ]  # fmt: skip


def test_a_resumed_run_ends_in_the_same_weights(recipe, tmp_path, interrupted):
    pretrain(recipe, tmp_path / "uninterrupted", progress=False)
    with interrupted(after=16):
        pretrain(recipe, tmp_path / "resumed", minutes_between_saves=0, progress=False)
    with pytest.raises(ValueError, match=r"a run with other settings \(seed\)"):
        pretrain(replace(recipe, seed=4), tmp_path / "resumed", progress=False)
    with pytest.raises(ValueError, match=r"a run with other settings \(languages\)"):
        pretrain(replace(recipe, languages=["en", "de"]), tmp_path / "resumed", progress=False)
    pretrain(recipe, tmp_path / "resumed", progress=False)
    models = [XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / name) for name in ("uninterrupted", "resumed")]
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(a, b)


def test_a_recipe_file_needs_the_right_fields(tmp_path):
    fields, decoder = (json.loads((PRETRAINED / name / "recipe.json").read_text()) for name in ("tiny", "tiny-decoder"))
    for wrong, why in (
        (json.dumps({**fields, "stpes": 3}), "stpes"),
        (json.dumps({"config": fields["config"]}), "languages"),
        ("{}", "config"),
        (json.dumps({**fields, "config": 3}), "config=3 is impossible"),
        ("[]", "list"),
        ("{", "line 1 column 2"),
        (json.dumps({**fields, "steps": "many"}), "steps='many' is impossible: it must be of type int"),
        (json.dumps({**fields, "languages": "en"}), "languages='en' is impossible"),
        (json.dumps({**fields, "languages": ["en", "xx"]}), "the Declaration is not here in xx"),
        (json.dumps({**fields, "languages": []}), r"languages=\[\] is impossible: name one or more"),
        (json.dumps({**fields, "languages": [1]}), r"languages\[0\] is of type int"),
        (json.dumps({**fields, "steps": 0}), "steps=0 is impossible"),
        (json.dumps({**fields, "steps": True}), "steps=True is impossible"),
        (json.dumps({**fields, "learning_rate": float("nan")}), "learning_rate=nan is impossible"),
        (json.dumps({**fields, "warmup_steps": -1}), "warmup_steps=-1 is impossible"),
        (json.dumps({**fields, "tokens_per_batch": 0}), "tokens_per_batch=0 is impossible"),
        (json.dumps({**fields, "held_out_article": 99}), "held_out_article=99 is impossible"),
        (json.dumps({**fields, "mask_prob": 15}), "mask_prob=15 is impossible"),
        (json.dumps({**fields, "pair_prob": -1}), "pair_prob=-1 is impossible"),
        (json.dumps({**fields, "matrix_learning_rate": -1}), "matrix_learning_rate=-1 is impossible"),
        (json.dumps({**fields, "dtype": "int8"}), "dtype='int8' is unknown"),
        (json.dumps({**fields, "config": {"hiden_size": 8}}), "config has 'hiden_size', but takes"),
        (json.dumps({**fields, "config": {"vocab_size": 8}}), "config has 'vocab_size', but takes"),
        (json.dumps({**fields, "config": {"hidden_size": 7, "num_attention_heads": 2}}), "hidden_size=7 is impossible"),
        (json.dumps({**fields, "config": {"is_decoder": True}}), "it lacks random_start_prob, noise_prob"),
        (json.dumps({**decoder, "encoder": "tiny"}), "a translator needs two languages or more, and a config with"),
        (json.dumps({**decoder, "noise_prob": 2}), "noise_prob=2 is impossible"),
        (json.dumps({**decoder, "alignment_loss_weight": -1}), "alignment_loss_weight=-1 is impossible"),
    ):
        (tmp_path / "recipe.json").write_text(wrong)
        with pytest.raises(ValueError, match=f"is no recipe: .*{why}") as caught:
            load_recipe(tmp_path / "recipe.json")
        assert str(caught.value).endswith(".")
        assert "\n" not in str(caught.value)
    (tmp_path / "recipe.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is no recipe"):
        load_recipe(tmp_path / "recipe.json")
    for wrong in (3, None, ["recipe.json"]):
        with pytest.raises(TypeError, match="the name of a file is a str or a Path"):
            pretrain(wrong, tmp_path)
        with pytest.raises(TypeError, match="the name of a folder is a str or a Path"):
            pretrain(tmp_path / "recipe.json", wrong)


def test_the_checkpoints_differ_in_their_positions_only():
    recipes = [json.loads((PRETRAINED / name / "recipe.json").read_text()) for name in CHECKPOINTS]
    types = [recipe["config"].pop("position_embedding_type", "absolute") for recipe in recipes]
    assert types == ["absolute", "relative_key", "relative_key_query"]
    assert recipes[0] == recipes[1] == recipes[2]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_bundled_recipe_and_record_belong_together(name):
    recipe = load_recipe(PRETRAINED / name / "recipe.json")
    assert isinstance(recipe, EncoderRecipe)
    record = json.loads((PRETRAINED / name / "record.json").read_text())
    assert record["history"][-1]["step"] == recipe.steps
    config = XLMRobertaXLConfig.from_pretrained(name)
    assert all(getattr(config, name) == value for name, value in recipe.config.items())
    assert record["made_by"].startswith("python -m xlmrxl_min pretrain RECIPE --into FOLDER")


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_record_holds_what_the_bundled_checkpoint_reaches(name, tokenizer):
    recipe, record = (json.loads((PRETRAINED / name / file).read_text()) for file in ("recipe.json", "record.json"))
    texts = [row.text for row in udhr(recipe["languages"]) if row.article != recipe["held_out_article"]]
    found = masked_accuracy(XLMRobertaXLForMaskedLM.from_pretrained(name), tokenizer, texts)
    assert found == pytest.approx(record["training_text"], rel=1e-4)
