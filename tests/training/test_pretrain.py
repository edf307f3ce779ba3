"""The recipe of the encoders: its batches and losses, a run from start to checkpoint, resuming, and recipe files."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from xlmrxl_min import XLMRobertaTokenizer, XLMRobertaXLConfig, XLMRobertaXLForMaskedLM, training
from xlmrxl_min.training.dataset import Dataset, Sampler, similar_in_length
from xlmrxl_min.training.encoders import (
    ROW_KINDS,
    EncoderBatches,
    EncoderRecipe,
    encoder_loss,
    initialize,
    sinusoids,
    teacher_loss,
)
from xlmrxl_min.training.evaluation import masked_accuracy
from xlmrxl_min.training.pretrain import load_recipe, pretrain
from xlmrxl_min.training.teacher import TeacherVectors, place_of

RECIPES = Path(training.__file__).parent / "recipes"
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture
def recipe():
    return EncoderRecipe(
        config={**SMALL, "initializer_range": 0.1}, steps=24, learning_rate=0.01, matrix_learning_rate=0.02,
        matrix_weight_decay=0.1, warmup_steps=5, decay_fraction=0.5, dtype="float32", seed=3,
        tokens_per_batch=dict.fromkeys(ROW_KINDS, 300), mask_prob=[0.3, 0.1],
        pair_mask_prob=[0.3, 0.3], pair_lengths=[126], short_fraction=0.0, teacher_weight=0.5,
    )  # fmt: skip


@pytest.fixture
def make_batches(recipe, small_corpus, tokenizer):
    def make(**changes):
        of = TeacherVectors(small_corpus, 16).of
        return EncoderBatches(replace(recipe, **changes), Dataset(small_corpus, tokenizer), tokenizer, of)

    return make


def without_special(row):
    return [i for i in row if i > 2]


# ---- batches


def test_nothing_held_out_is_studied(small_corpus, tokenizer, corpus_rows):
    dataset = Dataset(small_corpus, tokenizer)
    assert 0 < len(dataset.rows) < len(corpus_rows)
    arrest = next(row for row in corpus_rows if "arbitrary arrest" in row.text)  # Article 9, which is held out
    assert arrest.text not in {row.text for row in dataset.rows}
    assert not {row.place for row in dataset.rows if row.source == "bible"} & {arrest.place}
    for ids, row in zip(dataset.ids, dataset.rows, strict=True):
        assert ids == tokenizer.encode(row.text)[1:-1]


def test_each_kind_of_rows_holds_what_it_should(make_batches, tokenizer):
    batches = make_batches(mask_prob=[0.0, 0.0], pair_mask_prob=[0.0, 0.0])
    text = {tuple(ids): row for ids, row in zip(batches.ids, batches.rows, strict=True)}
    chapters = {" ".join(map(str, [i for j in group for i in batches.ids[j]])) for group in [
        group for sources in batches.passages.items for groups in sources for group in groups
    ]}  # fmt: skip
    for batch in batches(0):
        assert all(batch[kind].numel() <= 600 for kind in ROW_KINDS)  # one row may be longer than the limit
        for row in batch["passages"].tolist():
            assert any(" ".join(map(str, without_special(row))) in chapter for chapter in chapters)
        for row in batch["pairs"].tolist():
            end = row.index(2)
            assert row[end + 1] == 2
            sides = [tuple(without_special(part)) for part in (row[:end], row[end:])]
            first, second = (next(r for ids, r in text.items() if ids[: len(side)] == side) for side in sides)
            assert first[1] == second[1]
            assert (first.language, first.version) != (second.language, second.version)
        for kind in ("sentences", "words"):
            for row, number in zip(batch[kind].tolist(), batch[f"{kind}_teacher"].tolist(), strict=True):
                same = [of for ids, of in zip(batches.ids, batches.rows, strict=True) if ids == without_special(row)]
                assert number in {
                    batches.of.get(place_of(of)) for of in same if (of.source == "words") == (kind == "words")
                }


def test_pairs_are_of_the_same_place(make_batches):
    batches = make_batches()
    for sources in batches.parallel[0].items:
        for groups in sources:
            for group in groups:
                assert len({(batches.rows[i].source, *batches.rows[i][3:5]) for i in group}) == 1


def test_masks_get_fewer_and_words_have_none(make_batches, tokenizer):
    batches = make_batches(tokens_per_batch=dict.fromkeys(ROW_KINDS, 4000), mask_prob=[0.4, 0.1])

    def masked_share(batch, kind):
        return float((batch[f"{kind}_labels"] != -100).sum() / (batch[kind] > 2).sum())

    generator = torch.Generator().manual_seed(0)
    first, last = batches.batch(0, generator), batches.batch(24, generator)
    assert masked_share(first, "passages") == pytest.approx(0.4, abs=0.05)
    assert masked_share(last, "passages") == pytest.approx(0.1, abs=0.04)
    assert masked_share(first, "words") == 0
    unmasked = (first["sentences_labels"] == -100).all(1).float().mean()
    assert 0.1 < float(unmasked) < 0.5


def test_one_text_of_a_pair_keeps_all_its_words(make_batches):
    batches = make_batches(tokens_per_batch=dict.fromkeys(ROW_KINDS, 4000), pair_mask_prob=[0.4, 0.0])
    batch = batches.batch(0, torch.Generator().manual_seed(0))
    is_second = (batch["pairs"] == 2).cumsum(1) > 0
    is_labelled = batch["pairs_labels"] != -100
    in_first, in_second = (is_labelled & ~is_second).any(1), (is_labelled & is_second).any(1)
    assert not (in_first & in_second).any()
    assert in_first.any()
    assert in_second.any()
    words = (batch["pairs"] > 2).sum()
    assert float(is_labelled.sum() / words) == pytest.approx(0.2, abs=0.05)  # 40% of half of them


def test_pairs_of_short_texts_first(make_batches):
    batches = make_batches(pair_lengths=[14, 126])  # of 24 steps
    generators = [torch.Generator().manual_seed(0) for _ in range(3)]
    first, middle, second = (batches.batch(*x)["pairs"] for x in zip((0, 11, 12), generators, strict=True))
    assert first.shape[1] <= middle.shape[1] <= 2 * 14 + 4 < second.shape[1]
    assert int(first.max()) > 2


def test_only_short_passages_at_first(make_batches):
    batches = make_batches(short_fraction=0.25)  # of 24 steps
    early, later = (batches.batch(step, torch.Generator().manual_seed(0)) for step in (5, 6))
    assert early["passages"].shape[1] <= 24
    assert early["pairs"].shape[1] <= 24
    assert later["pairs"].shape[1] > 24


def test_an_epoch_is_the_same_each_time_and_differs_from_the_next(make_batches):
    batches = make_batches()
    first, again, second = batches(0), batches(0), batches(1)
    for a, b in zip(first, again, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(a[name].shape != b[name].shape or not torch.equal(a[name], b[name])
               for a, b in zip(first, second, strict=True) for name in a)  # fmt: skip


def test_small_groups_are_drawn_more_often_than_their_share():
    sampler = Sampler(list(range(101)), [("en", "bible")] * 100 + [("sw", "udhr")])
    drawn = sampler.draw(4000, torch.Generator().manual_seed(0))
    assert drawn.count(100) / 4000 == pytest.approx(1 / 11, abs=0.02)  # 1 : sqrt(100), not 1 : 100


def test_rows_of_similar_length_fit():
    generator = torch.Generator().manual_seed(0)
    rows = [[0] * length for length in torch.randint(3, 40, (60,), generator=generator).tolist()]
    for _ in range(50):
        chosen = similar_in_length(rows, 120, generator)
        lengths = [len(rows[i]) for i in chosen]
        assert len(set(chosen)) == len(chosen)
        assert len(chosen) * max(lengths) <= 120
    assert similar_in_length([[0] * 500], 120, generator) == [0]  # a long row is a batch of its own


# ---- losses and the start


def test_the_teacher_loss_is_smallest_at_the_teachers_vectors():
    torch.manual_seed(0)
    targets, negatives = (F.normalize(torch.randn(n, 8), dim=1) for n in (5, 30))
    states = 3 * targets[:, None].repeat(1, 4, 1)
    states[:, 3] = 100 * torch.randn(5, 8)  # padding does not count
    mask = torch.tensor([[1, 1, 1, 0]] * 5)
    assert float(teacher_loss(states, mask, targets, negatives)) == pytest.approx(0, abs=1e-5)
    other = states.roll(1, 0)
    cosines = (targets * targets.roll(1, 0)).sum(1)
    own, wanted = ((20 * x @ negatives.T).softmax(1) for x in (targets.roll(1, 0), targets))
    divergence = (wanted * (wanted / own).log()).sum(1).mean()
    loss = float(teacher_loss(other, mask, targets, negatives))
    assert loss == pytest.approx(float(1 - cosines.mean() + divergence), rel=1e-4)


def test_the_loss_is_the_masked_language_models_and_the_teachers(recipe, make_batches, tokenizer):
    torch.manual_seed(0)
    model = XLMRobertaXLForMaskedLM(XLMRobertaXLConfig(vocab_size=len(tokenizer), **recipe.config)).eval()
    batch = make_batches().batch(0, torch.Generator().manual_seed(0))
    vectors = F.normalize(torch.randn(1000, 16), dim=1)
    logits, labels, taught = [], [], 0.0
    for kind in ROW_KINDS:
        mask = (batch[kind] != 1).long()
        out = model(batch[kind], mask, output_hidden_states=True)
        chosen = batch[f"{kind}_labels"] != -100
        logits.append(out.logits[chosen])
        labels.append(batch[kind + "_labels"][chosen])
        if f"{kind}_teacher" in batch:
            of = (vectors[batch[f"{kind}_{name}"]] for name in ("teacher", "negatives"))
            taught += teacher_loss(out.hidden_states[-1], mask, *of)
    masked = F.cross_entropy(torch.cat(logits), torch.cat(labels))
    torch.testing.assert_close(encoder_loss(model, batch, vectors, 0.0), masked)
    torch.testing.assert_close(encoder_loss(model, batch, vectors, 0.5), masked + 0.5 * taught)


def test_training_starts_from_the_embeddings_alone(recipe, small_corpus, tokenizer):
    torch.manual_seed(0)
    config = {**recipe.config, "num_hidden_layers": 2}
    model = XLMRobertaXLForMaskedLM(XLMRobertaXLConfig(vocab_size=len(tokenizer), **config)).eval()
    initialize(model, small_corpus, tokenizer, [[5, 5, 5, 9]])
    ids = torch.tensor([tokenizer.encode("All human beings are born free.")])
    states = model(ids, output_hidden_states=True).hidden_states
    assert torch.equal(states[0], states[1])
    words = model.backbone.embeddings.word.weight
    assert float(words.detach().std()) == pytest.approx(1, abs=0.01)
    assert not words[1].any()
    bias = model.lm_head.decoder.bias.detach().exp()
    assert (4 * bias[9] / bias[5], bias.sum()) == pytest.approx((2, 1), abs=1e-4)
    assert float(model.backbone.embeddings.position.weight.detach().std()) == pytest.approx(1, abs=0.1)


def test_sinusoids_tell_positions_apart_by_their_distance():
    table = sinusoids(258, 64)
    similarity = F.normalize(table, dim=1) @ F.normalize(table, dim=1).T
    torch.testing.assert_close(similarity[10, 11:20], similarity[100, 101:110])
    assert float((similarity - 2 * torch.eye(258)).max()) < 0.99


# ---- runs


def test_a_run_learns_and_saves_a_checkpoint(recipe, small_corpus, tokenizer, corpus_rows, tmp_path):
    record = pretrain(replace(recipe, steps=60), small_corpus, tmp_path, progress=False)
    assert record == json.loads((tmp_path / "record.json").read_text())
    model = XLMRobertaXLForMaskedLM.from_pretrained(tmp_path)
    studied = [row.text for row in Dataset(small_corpus, tokenizer).rows if row.source != "words"][:60]
    found = masked_accuracy(model, XLMRobertaTokenizer.from_pretrained(tmp_path), studied)
    torch.manual_seed(0)
    untrained = XLMRobertaXLForMaskedLM(XLMRobertaXLConfig(vocab_size=len(tokenizer), **recipe.config))
    assert found["loss"] < masked_accuracy(untrained, tokenizer, studied)["loss"] - 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.json", "model.safetensors", "recipe.json", "record.json", "sentencepiece.bpe.model",
        "tokenizer_config.json",
    ]  # fmt: skip
    assert asdict(load_recipe(tmp_path / "recipe.json")) == asdict(replace(recipe, steps=60))


def test_a_resumed_run_ends_in_the_same_weights(recipe, small_corpus, tmp_path, interrupted):
    pretrain(recipe, small_corpus, tmp_path / "uninterrupted", progress=False)
    with interrupted(after=16 * len(ROW_KINDS)):
        pretrain(recipe, small_corpus, tmp_path / "resumed", minutes_between_saves=0, progress=False)
    with pytest.raises(ValueError, match=r"a run with other settings \(seed\)"):
        pretrain(replace(recipe, seed=4), small_corpus, tmp_path / "resumed", progress=False)
    pretrain(recipe, small_corpus, tmp_path / "resumed", progress=False)
    models = [XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / name) for name in ("uninterrupted", "resumed")]
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(a, b)


# ---- recipe files


def test_a_recipe_file_needs_the_right_fields(recipe, tmp_path):
    fields = asdict(recipe)
    for changes, why in (
        ({"stpes": 3}, "it has unknown fields: stpes"),
        ({"config": 3}, "config is of type int, but must be a dict of fields"),
        ({"steps": "many"}, "steps='many' is impossible"),
        ({"steps": 0}, "steps=0 is impossible"),
        ({"learning_rate": float("nan")}, "learning_rate=nan is impossible"),
        ({"warmup_steps": -1}, "warmup_steps=-1 is impossible"),
        ({"tokens_per_batch": 4096}, "tokens_per_batch=4096 is impossible"),
        ({"tokens_per_batch": {"passages": 10}}, "tokens_per_batch={'passages': 10} is impossible"),
        ({"mask_prob": [15, 0]}, "mask_prob=15 is impossible"),
        ({"mask_prob": 0.15}, "mask_prob=0.15 is impossible"),
        ({"pair_lengths": []}, "pair_lengths=[] is impossible"),
        ({"pair_lengths": [0]}, "pair_lengths=0 is impossible"),
        ({"short_fraction": 2}, "short_fraction=2 is impossible"),
        ({"teacher_weight": -1}, "teacher_weight=-1 is impossible"),
        ({"matrix_learning_rate": -1}, "matrix_learning_rate=-1 is impossible"),
        ({"dtype": "int8"}, "dtype='int8' is unknown"),
        ({"config": {"hiden_size": 8}}, "config has 'hiden_size', but takes"),
        ({"config": {"vocab_size": 8}}, "config has 'vocab_size', but takes"),
        ({"config": {"hidden_size": 7, "num_attention_heads": 2}}, "hidden_size=7 is impossible"),
    ):
        (tmp_path / "recipe.json").write_text(json.dumps({**fields, **changes}))
        with pytest.raises(ValueError, match=f"is no recipe: .*{re.escape(why)}") as caught:
            load_recipe(tmp_path / "recipe.json")
        assert str(caught.value).endswith(".")
        assert "\n" not in str(caught.value)
    for text, why in (("[]", "list"), ("{", "line 1 column 2"), ("{}", "it lacks config")):
        (tmp_path / "recipe.json").write_text(text)
        with pytest.raises(ValueError, match=f"is no recipe: .*{why}"):
            load_recipe(tmp_path / "recipe.json")
    (tmp_path / "recipe.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is no recipe"):
        load_recipe(tmp_path / "recipe.json")
    for wrong in (3, None, ["recipe.json"]):
        with pytest.raises(TypeError, match="the name of a file is a str or a Path"):
            pretrain(wrong, tmp_path, tmp_path)


def test_the_relative_checkpoints_differ_in_their_positions_only_and_start_from_tiny():
    names = ("tiny-relative-key", "tiny-relative-key-query")
    recipes = [asdict(load_recipe(RECIPES / f"{name}.json")) for name in names]
    types = [recipe["config"].pop("position_embedding_type") for recipe in recipes]
    assert types == ["relative_key", "relative_key_query"]
    assert recipes[0] == recipes[1]
    assert recipes[0]["start_from"] == "tiny"
    assert recipes[0]["config"] == load_recipe(RECIPES / "tiny.json").config
