"""Each measurement of decoders on a case whose number is known, and all of them on small checkpoints."""

import json

import pytest
import torch

from xlmrxl_min import XLMRobertaXLConfig, XLMRobertaXLForCausalLM, XLMRobertaXLForMaskedLM, XLMRobertaXLModel
from xlmrxl_min.training import decoder_measurements, measurements
from xlmrxl_min.training.decoder_measurements import (
    continuations,
    evaluate_decoder,
    format_decoder_evaluation,
    translated_words_by_counting,
    translation_accuracy,
)
from xlmrxl_min.training.decoders import DecoderRecipe
from xlmrxl_min.training.evaluation import WordPair, attention_to_words, next_token_accuracy
from xlmrxl_min.training.pretrain import pretrain
from xlmrxl_min.training.translation import language_prompt

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SMALL |= {"initializer_range": 0.1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DECODER = {**SMALL, "is_decoder": True}


@pytest.fixture
def encoder(tokenizer):
    return XLMRobertaXLModel(XLMRobertaXLConfig(vocab_size=len(tokenizer), **SMALL), add_pooling_layer=False).eval()


@pytest.fixture
def translator(tokenizer):
    config = XLMRobertaXLConfig(vocab_size=len(tokenizer), add_cross_attention=True, **DECODER)
    return XLMRobertaXLForCausalLM(config).eval()


def predict_always(model, token):
    with torch.no_grad():
        model.lm_head.decoder.bias[token] = 1000.0
    return model


@torch.no_grad()
def test_next_token_accuracy_is_of_the_tokens_that_are_not_given(encoder, translator, tokenizer):
    texts = ["Everyone has the right to life.", "No one shall be held in slavery", "liberty"]
    sources, rows = ([tokenizer.encode(text) for text in some] for some in (texts[::-1], texts))
    found = next_token_accuracy(translator, tokenizer, rows, encoder, sources, [1, 2, 0])
    loss, right = [], []
    for source, row, given in zip(sources, rows, (1, 2, 0), strict=True):
        logits = translator(torch.tensor([row]), encoder_hidden_states=encoder(torch.tensor([source]))[0])
        for i in range(given, len(row) - 1):
            loss.append(float(-logits.logits[0, i].log_softmax(-1)[row[i + 1]]))
            right.append(int(logits.logits[0, i].argmax()) == row[i + 1])
    assert found == pytest.approx(
        {"accuracy": sum(right) / len(right), "loss": sum(loss) / len(loss), "tokens": len(loss)}
    )


@torch.no_grad()
def test_attention_to_words_looks_at_the_query_before_and_after_the_word(encoder, translator, tokenizer):
    source, target = "the right of man", "the king of men"
    assert tokenizer.tokenize(source)[:2] == ["▁the", "▁right"]  # after <s>: position 2
    assert tokenizer.tokenize(target)[1] == "▁king"
    found = attention_to_words(translator, encoder, tokenizer, [WordPair(source, "right", target, "king", "de")])
    ids = torch.tensor([[*language_prompt(tokenizer, "de"), *tokenizer.encode(target)[1:]]])
    [at] = [i for i, token in enumerate(ids[0].tolist()) if token == tokenizer.convert_tokens_to_ids("▁king")]
    states = encoder(torch.tensor([tokenizer.encode(source)])).last_hidden_state
    weights = torch.cat(translator(ids, encoder_hidden_states=states, output_attentions=True).cross_attentions)
    for name, query in (("predicting", at - 1), ("reading", at)):
        hits = (weights[:, :, query].argmax(-1) == 2).float()
        assert found[name] == hits.tolist()
        assert found["best"][name] == hits.max()
        assert found["mean"][name] == (weights[:, :, query].mean((0, 1)).argmax() == 2)
    assert found["random_baseline"] == pytest.approx(1 / len(tokenizer.encode(source)))
    assert found["pairs"] == 1


def bible(section, texts):
    return {("bible", str(section), str(i)): both for i, both in enumerate(texts)}


def test_words_are_paired_by_the_places_where_they_occur():
    other = "one two three four five six seven"
    studied = bible(1, [
        *({"en": f"dog {other}", "de": f"Hund {other}"} for _ in range(6)),  # always together
        *({"en": f"cat {other}", "de": f"Katze {other}"} for _ in range(5)),
        *({"en": f"cat {other}", "de": other} for _ in range(20)),  # mostly not: Dice 10/30
        *({"en": f"owl {other}", "de": f"Eule {other}"} for _ in range(3)),  # seldom
    ])  # fmt: skip
    held_out = bible(2, [{"en": f"A dog, a cat and an owl: {other}", "de": f"Hund, Katze, Eule. {other}"}])
    pairs = translated_words_by_counting(studied, held_out, ["en", "de"], 5)
    assert {(pair.source_word, pair.target_word, pair.language) for pair in pairs} == {
        ("dog", "Hund", "de"), ("Hund", "dog", "en"),
    }  # fmt: skip
    held_out = bible(2, [{"en": f"A dog and a dog: {other}", "de": f"Hund. {other} A a"}])
    assert not translated_words_by_counting(studied, held_out, ["en", "de"], 5), "a word that occurs twice"


def test_the_wrong_source_is_that_of_another_pair(encoder, translator, tokenizer, monkeypatch):
    calls = []

    def record(model, tokenizer, rows, encoder, sources, given):
        calls.append([tokenizer.decode(row, skip_special_tokens=True) for row in sources])
        return {"accuracy": len(calls) / 10}

    monkeypatch.setattr(decoder_measurements, "next_token_accuracy", record)
    places = bible(1, [{"en": f"{n} a a a a a a a", "fr": f"{n} b"} for n in ("one", "two", "three")])
    found = translation_accuracy(translator, encoder, tokenizer, places, ["en", "fr"], 5, progress=False)
    assert list(found["by_pair"]) == ["en-fr", "fr-en"]
    assert calls[1] == calls[0][1:] + calls[0][:1]
    assert found["mean"] == pytest.approx({"right": 0.2, "wrong": 0.3})
    assert found["difference"] == pytest.approx(-0.1)


class OnePassage:
    """All passages of English are the same."""

    def __init__(self, text, studied):
        self.held_out, self.studied, self.words = {"en": [text]}, {"en": [studied], "fr": ["de"]}, {}


def test_continuations_of_a_model_that_repeats_one_token(tokenizer):
    model = XLMRobertaXLForCausalLM(XLMRobertaXLConfig(vocab_size=len(tokenizer), **DECODER)).eval()
    predict_always(model, tokenizer.convert_tokens_to_ids("▁right"))
    words = ["the", "right", "to", "life"] * 16  # 64 tokens with <s>
    found = continuations(model, tokenizer, OnePassage(" ".join(words), "human right"), progress=False)
    assert found["repeated"]["greedy"] == found["repeated"]["sampled"] == pytest.approx(1 - 1 / 45)
    assert found["repeated"]["text"] == pytest.approx(1 - 4 / 45)
    assert found["in_language"] == {"text": 0.25, "greedy": 1, "sampled": 1}
    assert found["in_other_languages"] == {"text": 0, "greedy": 0, "sampled": 0}
    [example] = found["examples"]
    assert example["prompt"] == " ".join(words[:15])
    assert example["text"] == " ".join(words[15:63])
    assert example["greedy"] == " ".join(["right"] * 48)


def test_evaluation_of_both_kinds(tokenizer, small_corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(measurements, "FEWEST_PASSAGES", 1)
    monkeypatch.setattr(measurements, "LARGE", 100)
    encoder = XLMRobertaXLForMaskedLM(XLMRobertaXLConfig(vocab_size=len(tokenizer), **SMALL))
    encoder.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    recipe = {
        "config": DECODER, "encoder": str(tmp_path / "encoder"), "steps": 1, "tokens_per_batch": 256,
        "learning_rate": 0.002, "matrix_learning_rate": 0.02, "warmup_steps": 0, "matrix_weight_decay": 0.1,
        "decay_fraction": 0.5, "dtype": "float32", "seed": 3,
    }  # fmt: skip
    pretrain(DecoderRecipe(**recipe), small_corpus, tmp_path / "decoder", progress=False)
    found = evaluate_decoder(tmp_path / "decoder", small_corpus, progress=False)
    assert json.loads(json.dumps(found)) == found
    assert set(found["next_token"]["held_out"]) == set(found["next_token"]["studied"]) == {"en", "fr", "de", "zh"}
    assert len(found["next_token"]["large"]) == 4
    assert {example["language"] for example in found["continuations"]["examples"]} == {"en", "fr", "de", "zh"}
    assert "Continuations, 4-grams that occurred before: text" in format_decoder_evaluation(found)

    config = {**DECODER, "add_cross_attention": True}
    recipe |= {"config": config, "languages": ["en", "fr", "de"]}
    pretrain(DecoderRecipe(**recipe), small_corpus, tmp_path / "translator", progress=False)
    found = evaluate_decoder(tmp_path / "translator", small_corpus, progress=False)
    assert json.loads(json.dumps(found)) == found
    assert len(found["held_out"]["by_pair"]) == len(found["studied"]["by_pair"]) == 6
    assert found["word_alignment"]["by_hand"]["pairs"] == 52
    assert {example["languages"] for example in found["examples"]} == {"en-fr", "fr-en", "en-de", "de-en"}
    assert "(52 words, by hand): of the best head" in format_decoder_evaluation(found)
