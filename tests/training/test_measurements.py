"""Each measurement on a case whose number is known, and the command that makes all of them."""

import json
from collections import Counter
from contextlib import contextmanager
from itertools import count, cycle
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from xlmrxl_min import XLMRobertaXLConfig, XLMRobertaXLForMaskedLM
from xlmrxl_min.__main__ import main
from xlmrxl_min.training import measurements
from xlmrxl_min.training.corpus import CORPUS_FILE, Row, is_held_out
from xlmrxl_min.training.measurements import (
    Passages,
    ablation_costs,
    by_place,
    choose_pairs,
    count_words,
    cut_passages,
    emoji_fine_tuning,
    emoji_probe,
    fit_probe,
    lens_layers,
    mask_targets,
    masked_accuracy_by_language,
    retrieval_by_language,
    translation_effect,
    translation_heads,
    unigram_accuracy,
)
from xlmrxl_min.training.texts import Emoji


@pytest.fixture
def model(tokenizer):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return XLMRobertaXLForMaskedLM(XLMRobertaXLConfig(vocab_size=len(tokenizer), initializer_range=0.1, **sizes)).eval()


@pytest.fixture(scope="module")
def words(tokenizer):
    """Fifty words that are one token each."""
    tokens = tokenizer.convert_ids_to_tokens(range(4, len(tokenizer) - 1))
    known = (x[1:] for x in tokens if x.startswith("▁") and x[1:].isascii() and len(x) > 3)
    return [word for word, _ in zip((x for x in known if x.isalpha()), range(50), strict=False)]


def page(section, *texts, language="en"):
    return [Row(language, "help", "", str(section), str(i), text) for i, text in enumerate(texts)]


# ---- running text


def test_passages_are_whole_texts_of_one_page(tokenizer, words):
    a, b, c = (" ".join([word] * 4) for word in words[:3])
    assert list(cut_passages(tokenizer, [a, b, c], 8)) == [f"{a} {b}", c]
    assert list(cut_passages(tokenizer, [a, f"{b} {b}", c], 7)) == [a, c]
    held_out = [row for i in range(12) for row in page(i, a, b)] + page(0, a, language="fr")
    studied = [row for i in range(30) for row in page(i, c)]
    passages = Passages(SimpleNamespace(config=XLMRobertaXLConfig()), tokenizer, held_out, studied, 11)
    assert passages.held_out == {"en": [f"{a} {b}"] * 11}  # one passage in French is too few
    assert passages.studied == {"en": [c] * 11}
    assert passages.some(2, held_out=False) == [c, c]
    assert passages.words == {"en": 120}


def test_words_are_counted():
    rows = [*page(0, "one two three"), *page(0, "人人生而自由", language="zh"), Row("en", "words", "", "1", "", "one")]
    assert count_words(rows) == {"en": 3, "zh": 3}


def test_masked_accuracy_by_language(model, tokenizer, words, monkeypatch):
    """A model that always predicts one token is right on a text of nothing else, and never on another text."""
    monkeypatch.setattr(measurements, "LARGE", 3)
    with torch.no_grad():
        model.lm_head.decoder.bias[tokenizer.convert_tokens_to_ids("▁" + words[0])] = 1000.0
    first, second = (" ".join([word] * 40) for word in words[:2])
    texts = {"held_out": {"en": [first], "ru": [second]}, "studied": {"en": [second], "ru": [second]}}
    passages = SimpleNamespace(words={"en": 4, "ru": 3}, **texts)
    found = masked_accuracy_by_language(model, tokenizer, passages, progress=False)
    assert found["held_out"]["en"]["accuracy"] == 1
    assert found["held_out"]["ru"]["accuracy"] == found["studied"]["en"]["accuracy"] == 0
    assert found["unigram"] == {"en": 0, "ru": 1}
    assert found["large"] == ["en"]
    assert found["mean"] == {"held_out": 1, "studied": 0, "unigram": 0}


def test_unigram_accuracy(tokenizer, words):
    a, b = words[:2]
    assert unigram_accuracy(tokenizer, [f"{a} {a}", b], [f"{b} {b}", f"{b} {a}"]) == 1 / 4
    assert unigram_accuracy(tokenizer, [], [a]) == 0


# ---- translations


def sentences(words):
    """One of eight words at each place, the same in English and in Russian."""
    rows = [row for i, word in enumerate(words) for row in page(i, " ".join([word] * 8))]
    return by_place([*rows, *(row._replace(language="ru") for row in rows)])


def test_pairs_are_distinct_and_long_enough(words):
    long = " ".join([words[0]] * 8)
    rows = [*page(0, long), *page(1, long), *page(2, "three words here"), *page(3, long + " " + long)]
    places = by_place([*rows, *(row._replace(language="ru", text=row.text[::-1]) for row in rows)])
    pairs = choose_pairs(places, "ru", "en", 10, longest=15)
    assert pairs == [[long[::-1], long]]
    assert len(choose_pairs(places, "ru", "en", 10)) == 2
    assert len(choose_pairs(places, "ru", "en", 1)) == 1
    assert not choose_pairs(places, "ru", "de", 10)


def test_one_version_of_the_bible_in_each_language():
    rows = [Row("en", "bible", version, "1.1", "1", version) for version in "4k"]
    assert by_place(rows) == {("bible", "1.1", "1"): {"en": "4"}}


def test_retrieval_by_language(model, tokenizer, words):
    places = {key: {**texts, "ja": texts["en"]} for key, texts in sentences(words[:20]).items()}
    for texts, word in zip(places.values(), words[20:], strict=False):
        texts["ru"] = word  # not a translation
    found = retrieval_by_language(model, tokenizer, places, 15, progress=False)
    assert found["sentences"] == {"ru": 15, "ja": 15}
    assert found["accuracy_by_layer"]["ja"] == [1, 1, 1]
    assert max(found["accuracy_by_layer"]["ru"]) < 0.3
    last = found["accuracy_by_layer"]["ru"][-1]
    assert found["mean"] == {"all": (1 + last) / 2, "other_scripts": (1 + last) / 2}


def test_targets_are_masked_beside_a_right_and_a_wrong_source(tokenizer, words):
    pairs = choose_pairs(sentences(words[:3]), "en", "ru", 3)
    [right], [wrong] = mask_targets(tokenizer, pairs, 512)
    assert right["labels"].equal(wrong["labels"])
    assert mask_targets(tokenizer, pairs, 19) == [[], []]  # 2 x 8 words and 4 special tokens
    ids = [tokenizer.convert_tokens_to_ids("▁" + pair[0].split()[0]) for pair in pairs]
    sources = {tuple(row[row > 3][:1].tolist()): row for row in right["input_ids"]}
    assert set(sources) == {(i,) for i in ids}
    for row, label in zip(right["input_ids"], right["labels"], strict=True):
        assert row[[0, 9, 10, 19]].tolist() == [0, 2, 2, 2]
        assert (row[label != -100] == tokenizer.mask_token_id).all()
        assert set(label.tolist()) == {-100, int(row[1])}
    for row, label in zip(wrong["input_ids"], wrong["labels"], strict=True):
        assert int(row[1]) not in label.tolist()


def test_translation_effect_of_a_model_that_copies(model, tokenizer, words, monkeypatch):
    """It predicts the token at the same place of the source: always right there, and never in another sentence."""

    def copying(model, ids, masked):
        rows, places = masked.nonzero(as_tuple=True)
        length = (ids == tokenizer.sep_token_id).int().argmax(1)
        return F.one_hot(ids[rows, places - length[rows] - 1], model.config.vocab_size).float()

    monkeypatch.setattr(measurements, "masked_logits", copying)
    found = translation_effect(model, tokenizer, sentences(words[:6]), progress=False)
    assert set(found["by_pair"]) == {"en-ru", "ru-en"}
    assert found["by_pair"]["en-ru"]["pairs"] == 6
    assert (found["mean"], found["difference"]) == ({"right": 1, "wrong": 0}, 1)


# ---- inside the model


@pytest.fixture
def costs(monkeypatch):
    """Each head costs 0.1 per layer and 0.03 per number, whatever the model does; other scores are 0.5."""
    state = {}

    @contextmanager
    def ablated(model, heads, means):
        state["cost"] = sum(0.1 * layer + 0.03 * head for layer, numbers in heads.items() for head in numbers)
        yield
        state["cost"] = 0.0

    def install(*bases):
        state["cost"], base = 0.0, cycle(bases)

        def score(model, batches):
            expected = next(base)
            return {"accuracy": expected - state["cost"] if expected > 0.5 else expected}

        monkeypatch.setattr(measurements, "ablated", ablated)
        monkeypatch.setattr(measurements, "score", score)

    return install


def test_ablation_costs(model, tokenizer, words, costs):
    costs(0.8)
    passages = SimpleNamespace(some=lambda number, held_out: [" ".join(words)] * number)
    found = ablation_costs(model, tokenizer, passages, 2, progress=False)
    assert found["accuracy"] == 0.8
    assert found["heads"] == [pytest.approx([0, -0.03]), pytest.approx([-0.1, -0.13])]
    assert found["layers"] == pytest.approx([-0.03, -0.23])
    assert found["upper_half"] == pytest.approx(-0.23)
    assert "heads" not in ablation_costs(model, tokenizer, passages, 1, each=False, progress=False)


def test_translation_heads(model, tokenizer, words, costs):
    costs(0.9, 0.5)  # with the right translation, with a wrong one
    found = translation_heads(model, tokenizer, sentences(words[:4]), progress=False)
    assert found["difference"] == pytest.approx(0.4)
    assert found["lost"] == [pytest.approx([0, 0.03 / 0.4]), pytest.approx([0.1 / 0.4, 0.13 / 0.4])]
    assert (found["layer"], found["head"], found["most"]) == (1, 1, pytest.approx(0.13 / 0.4))


def test_a_head_that_writes_nothing_costs_nothing(model, tokenizer, words):
    with torch.no_grad():
        for block in model.backbone.layers:
            block.attention.out.weight.zero_()
    passages = SimpleNamespace(some=lambda number, held_out: [" ".join(words)] * number)
    found = ablation_costs(model, tokenizer, passages, 2, progress=False)
    assert found["heads"] == [[0, 0], [0, 0]]
    assert found["upper_half"] == 0


def test_lens_layers(model, tokenizer, words):
    """Layers that add nothing, but the last one writes what makes the LM head predict one token."""
    favourite, other = (tokenizer.convert_tokens_to_ids("▁" + word) for word in words[:2])
    head, word = model.lm_head, model.backbone.embeddings.word.weight
    direction = torch.randn(16)
    with torch.no_grad():
        for block in model.backbone.layers:
            for linear in (block.attention.out, block.feed_forward.down):
                linear.weight.zero_()
                linear.bias.zero_()
        features = head.norm(F.gelu(head.dense(model.backbone.norm(1000 * direction))))
        word[favourite] = 10 * features / features.norm()
        head.decoder.bias[other] = 0.9 * 10 * features.norm()
    passages = SimpleNamespace(some=lambda number, held_out: [" ".join([words[0]] * 60)] * number)
    assert lens_layers(model, tokenizer, passages, 1)["tokens"] == 0  # `other` is always predicted
    model.backbone.layers[1].feed_forward.down.bias.data += 1000 * direction
    found = lens_layers(model, tokenizer, passages, 1)
    assert found["first"] == [0, 0, 1]
    assert found["upper_half"] == 1
    assert found["tokens"] > 3
    head.decoder.bias.data[other] = 0
    head.decoder.bias.data[favourite] = 1000
    assert lens_layers(model, tokenizer, passages, 1)["first"] == [1, 0, 0]


# ---- emoji


@pytest.fixture
def emoji(words):
    """Names of two words, of which the first says the group: in Russian as in English, in Greek the other one."""
    numbers = count()
    names = [(group, f"{words[group]} {words[i]}") for i in range(2, 22) for group in (0, 1)]
    rows = [Emoji(str(next(numbers)), "ab"[group], "train", "en", name) for group, name in names[:24]]
    for language, swapped in (("en", False), ("ru", False), ("el", True)):
        rows += [
            Emoji(str(i), "ab"[group ^ swapped], "test", language, name) for i, (group, name) in enumerate(names[24:])
        ]
    return rows


def test_the_emoji_probe(model, tokenizer, emoji):
    found = emoji_probe(model, tokenizer, emoji, progress=False)
    assert found["accuracy"]["en"] == found["accuracy"]["ru"] >= 0.9
    assert found["accuracy"]["el"] == pytest.approx(1 - found["accuracy"]["en"])
    assert found["majority"] == 0.5
    assert (found["mean"], found["at_least_35"]) == (pytest.approx(0.5), 1)


def test_emoji_fine_tuning(model, tokenizer, emoji, tmp_path):
    model.save_pretrained(tmp_path)
    found = emoji_fine_tuning(tmp_path, tokenizer, emoji, epochs=40, learning_rate=1e-2, progress=False)
    assert found["accuracy"]["en"] == found["accuracy"]["ru"] >= 0.9
    assert found["accuracy"]["el"] == pytest.approx(1 - found["accuracy"]["en"])
    again = emoji_fine_tuning(tmp_path, tokenizer, emoji, epochs=40, learning_rate=1e-2, progress=False)
    assert again == found


def test_the_probe_is_a_linear_classifier():
    centres = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 300.0]])
    labels = torch.arange(30) % 3
    vectors = centres[labels] + torch.randn(30, 2) * torch.tensor([0.5, 50])
    assert fit_probe(vectors, labels)(centres) == [0, 1, 2]


# ---- the command


def test_evaluate_adds_to_the_record(model, tokenizer, words, emoji, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measurements, "emoji_names", lambda: emoji)
    rows, held_out = [], Counter()
    for i in count():
        text = " ".join([words[i % 50], words[i // 50], *words[:8]])
        for language in ("en", "ru"):
            rows += page(f"page{i}", text, language=language)
        held_out[is_held_out(rows[-1])] += 1
        if held_out[True] >= 12:
            break
    (tmp_path / CORPUS_FILE).write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "record.json").write_text('{"hours": 1}', encoding="utf-8")
    assert main(["evaluate", tmp_path, "--corpus", tmp_path, "--quick"]) == 0
    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    assert record["hours"] == 1
    found = record["evaluation"]
    assert set(found["masked"]["held_out"]) == set(found["masked"]["studied"]) == {"en", "ru"}
    assert found["retrieval"]["accuracy_by_layer"]["ru"] == [1, 1, 1]
    assert found["retrieval"]["sentences"] == {"ru": held_out[True]}
    assert found["translation"]["by_pair"]["en-ru"]["pairs"] == held_out[True]
    assert "emoji_fine_tuned" not in found
    table = capsys.readouterr().out
    assert "held out" in table
    assert "Logit lens" in table
