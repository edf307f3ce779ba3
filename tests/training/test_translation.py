"""Translation examples with their alignment, the alignment loss, and tiny-translator itself."""

import random

import pytest
import torch

from xlmrxl_min import XLMRobertaXLConfig, XLMRobertaXLForCausalLM, XLMRobertaXLModel
from xlmrxl_min.training.loop import compute_loss, fit
from xlmrxl_min.training.texts import translated_words, udhr
from xlmrxl_min.training.translation import ParallelCorpus, alignment_loss, encode_sources, language_prompt, translate

CONFIG = {
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.06,
    "is_decoder": True,
    "add_cross_attention": True,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@pytest.fixture(scope="module")
def encoder():
    return XLMRobertaXLModel.from_pretrained("tiny", add_pooling_layer=False)


@pytest.fixture(scope="module")
def corpus(tokenizer, encoder):
    text = [row for row in udhr(["en", "fr"]) if row.article not in (0, 17)]
    return ParallelCorpus(text, encoder, tokenizer, phrase_prob=0.5)


def test_alignment_finds_the_words_found_by_hand(corpus):
    """Of ten concepts, English to French: most are right, and far more than by relative position."""
    known = {(word.concept, word.language): word for word in translated_words()}
    right, asked = 0, 0
    for concept in dict.fromkeys(word.concept for word in translated_words()):
        ours, theirs = known[concept, "fr"], known[concept, "en"]
        place = ours[1:3]
        x, y = corpus.texts["en"][place], corpus.texts["fr"][place]
        aligned = corpus.alignments["en", "fr", place]
        rows = [q for q, name in enumerate(y.names) if ours.word.lower() in name]
        right += theirs.word.lower() in x.names[int(aligned[rows[0]].argmax())]
        asked += 1
    assert asked == 10
    assert right >= 7


def test_examples_have_an_alignment(corpus, tokenizer):
    rng, kinds = random.Random(0), set()
    for _ in range(60):
        one = corpus.example(rng)
        assert one.source[0] == one.target[0] == 0
        assert one.source[-1] == one.target[-1] == 2
        assert tokenizer.decode(one.target[1 : 1 + one.code_length]).strip() in ("en", "fr")
        assert one.alignment.shape == (len(one.target), len(one.source))
        assert not one.alignment[: 1 + one.code_length].any()
        assert not one.alignment[-1].any()
        assert (one.alignment.sum(-1) < 1.001).all()
        kinds.add(
            any(len(one.target) == len(tokenizer.encode(row.text)) + one.code_length for row in udhr(["en", "fr"]))
        )
    assert kinds == {True, False}, "paragraphs and phrases"


def test_labels_are_the_translation_without_its_prompt(corpus, tokenizer):
    batches = corpus.batches(0, 512)
    assert sum(len(batch["labels"]) for batch in batches) == 240
    for batch in batches:
        ids, labels = batch["input_ids"], batch["labels"]
        for row, label in zip(ids.tolist(), labels.tolist(), strict=True):
            prompts = [language_prompt(tokenizer, code) for code in ("en", "fr")]
            [length] = [len(prompt) for prompt in prompts if row[: len(prompt)] == prompt]
            assert label == [-100] * length + [-100 if i == 1 else i for i in row[length:]]
        assert ids.numel() <= 512 or len(ids) == 1


def test_alignment_loss_is_a_cross_entropy_of_two_heads(corpus, tokenizer, encoder):
    torch.manual_seed(0)
    model = XLMRobertaXLForCausalLM(XLMRobertaXLConfig(vocab_size=len(tokenizer), **CONFIG))
    batch = encode_sources(encoder, lambda batch, _: batch)(corpus.batches(0, 512)[0], None)
    ordinary = {name: value for name, value in batch.items() if name != "alignment"}
    out = model(**{**ordinary, "labels": None}, output_attentions=True)
    expected = compute_loss(model, ordinary)
    torch.testing.assert_close(alignment_loss(0.0)(model, batch), expected)
    alignment = batch["alignment"]
    for layer, shift in ((0, 0), (-1, 1)):
        logs, count = 0.0, 0
        for row, wanted in enumerate(alignment):
            for q, one in enumerate(wanted):
                if one.any():
                    logs -= (one * out.cross_attentions[layer][row, 0, q - shift].log())[one > 0].sum()
                    count += 1
        expected = expected + 0.7 * logs / count
    torch.testing.assert_close(alignment_loss(0.7)(model, batch), expected)


def test_fit_reduces_the_alignment_loss(corpus, tokenizer, encoder):
    torch.manual_seed(0)
    model = XLMRobertaXLForCausalLM(XLMRobertaXLConfig(vocab_size=len(tokenizer), **CONFIG))
    batches = [max(corpus.batches(0, 256), key=lambda batch: batch["input_ids"].numel())]
    history = fit(
        model, batches, steps=8, learning_rate=0.002, loss_function=alignment_loss(1.0),
        transform=encode_sources(encoder, lambda batch, _: batch), progress=False,
    )  # fmt: skip
    assert history[-1]["loss"] < history[0]["loss"] - 1


def test_tiny_translator_knows_its_text(tokenizer, encoder):
    model = XLMRobertaXLForCausalLM.from_pretrained("tiny-translator")
    english = next(row.text for row in udhr("en") if row.article == 3)
    french = translate(model, encoder, tokenizer, english, "fr")
    assert french.endswith("a droit à la vie, à la liberté et à la sûreté de sa personne.")
