"""fill_mask and the command line: the model's own probabilities, in the order asked; `tiny` knows its document."""

import os
import subprocess
import sys

import pytest
import torch
import transformers
from reference import error

from xlmrxl_min import XLMRobertaTokenizer, XLMRobertaXLConfig, XLMRobertaXLForMaskedLM, fill_mask
from xlmrxl_min.__main__ import main
from xlmrxl_min.pretrained import HERE as PRETRAINED
from xlmrxl_min.pretrained import udhr
from xlmrxl_min.train import masked_accuracy

# The same sentence in ten languages: where the mask stands, and the word it hides.
SENTENCES = {
    "All human beings are born <mask> and equal in dignity and rights.": "free",
    "Tous les êtres humains naissent <mask> et égaux en dignité et en droits.": "libres",
    "Alle Menschen sind <mask> und gleich an Würde und Rechten geboren.": "frei",
    "Todos los seres humanos nacen <mask> e iguales en dignidad y derechos": "libres",
    "Tutti gli esseri umani nascono liberi ed <mask> in dignità e diritti.": "eguali",
    "Alle mensen worden <mask> en gelijk in waardigheid en rechten geboren.": "vrij",
    "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην <mask> και τα δικαιώματα.": "αξιοπρέπεια",
    "Bütün insanlar hür, <mask> ve haklar bakımından eşit doğarlar.": "haysiyet",
    "人人生而自由,在<mask>权利上一律平等。": "尊严和",
    "Semua orang dilahirkan merdeka dan mempunyai <mask> dan hak-hak yang sama.": "martabat",
}


@pytest.fixture(scope="module")
def tokenizer():
    return XLMRobertaTokenizer.from_pretrained("tiny")


@pytest.fixture(scope="module")
def tiny():
    return XLMRobertaXLForMaskedLM.from_pretrained("tiny")


@pytest.fixture
def random_model(tokenizer):
    """With a vocabulary larger than the tokenizer's, as XL's is."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = XLMRobertaXLConfig(
        vocab_size=len(tokenizer) + 500, initializer_range=0.2, hidden_dropout_prob=0.5, **sizes
    )
    return XLMRobertaXLForMaskedLM(config)


TEXTS = [
    "<mask> is long enough to make the other texts of this batch need a lot of padding, all of it ignored",
    "one <mask>",
    "two <mask> and <mask>",
    "<mask><mask><mask>",
    "of the same length <mask>",
]


def test_probabilities_are_the_models_own(random_model, tokenizer):
    results = fill_mask(random_model, tokenizer, TEXTS, top_k=7, batch_size=2)
    assert random_model.training, "the mode is put back"
    random_model.eval()
    assert [len(result) for result in results] == [1, 1, 2, 3, 1]
    for text, result in zip(TEXTS, results, strict=True):
        ids = torch.tensor([tokenizer.encode(text)])
        with torch.no_grad():
            probabilities = random_model(ids).logits.softmax(-1)[ids == tokenizer.mask_token_id]
        for place, predictions in zip(probabilities, result, strict=True):
            expected = place[: len(tokenizer)].topk(7)
            assert [p.token_id for p in predictions] == expected.indices.tolist()
            assert [p.probability for p in predictions] == pytest.approx(expected.values.tolist(), abs=1e-6)
            for p in predictions:
                assert p.text == (tokenizer.decode([p.token_id]) or " ")


def test_one_text_gives_what_it_gives_in_a_list(random_model, tokenizer):
    [alone] = [fill_mask(random_model, tokenizer, TEXTS[2])]
    [listed] = fill_mask(random_model, tokenizer, [TEXTS[2]])
    assert alone == listed
    assert len(alone[0]) == 5
    assert fill_mask(random_model, tokenizer, []) == []


def test_only_tokens_that_exist_are_offered(random_model, tokenizer):
    with torch.no_grad():
        random_model.lm_head.decoder.bias[len(tokenizer) :] = 50.0  # the filler rows would win everything
    [[*predictions]] = fill_mask(random_model, tokenizer, "a <mask>")
    assert max(p.token_id for p in predictions) < len(tokenizer)
    assert sum(p.probability for p in predictions) < 1e-6, "probabilities are over the model's whole vocabulary"


def test_frozen_parts_stay_in_their_mode(random_model, tokenizer):
    random_model.train().backbone.layers[0].eval()
    fill_mask(random_model, tokenizer, "a <mask>")
    assert random_model.training
    assert random_model.backbone.layers[1].training
    assert not random_model.backbone.layers[0].training


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("nothing hidden", {}, "nothing to fill in 'nothing hidden': put <mask>"),
        (["<mask>", ""], {}, "nothing to fill in ''"),
        ([3], {}, "nothing to fill in 3"),
        ("<mask>", {"top_k": 0}, "top_k=0 is impossible: take 1 to 8002"),
        ("<mask>", {"top_k": 9000}, "top_k=9000 is impossible"),
        ("<mask>", {"top_k": "3"}, "top_k='3' is impossible"),
        (None, {}, "nothing to fill in None"),
        ("<mask>", {"batch_size": 0}, "batch_size=0 is impossible"),
        ("<mask>" * 600, {}, "602 tokens are too many: there is room for 512"),
    ],
)
def test_bad_input(text, options, words, random_model, tokenizer):
    with pytest.raises(ValueError, match=words):
        fill_mask(random_model, tokenizer, text, **options)


# ---- the checkpoint that ships


def test_tiny_finds_the_right_word_in_most_languages(tiny, tokenizer):
    results = fill_mask(tiny, tokenizer, list(SENTENCES), top_k=1)
    right = [result[0][0].text == word for result, word in zip(results, SENTENCES.values(), strict=True)]
    assert sum(right) >= 8, dict(zip(SENTENCES.values(), right, strict=True))
    assert right[0]


def test_tiny_knows_its_own_text(tiny, tokenizer):
    """On three of its languages; the record beside it holds all fifteen, and the article that it has not studied."""
    rows = [row.text for row in udhr(["en", "ru", "zh"]) if row.article != 17]
    assert masked_accuracy(tiny, tokenizer, rows)["accuracy"] > 0.85


@pytest.mark.parametrize("name", ["tiny", "tiny-relative-key", "tiny-relative-key-query"])
def test_the_checkpoints_load_in_transformers(name, tokenizer, parity):
    ours = XLMRobertaXLForMaskedLM.from_pretrained(name)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(PRETRAINED / name, attn_implementation="eager").float()
    encoding = tokenizer([row.text for row in udhr(["en", "hi"])[:12]], padding=True, return_tensors="pt")
    with torch.no_grad():
        got, expected = (model(**encoding, output_hidden_states=True) for model in (ours, theirs))
    parity(error(got.logits, expected.logits))
    parity(error(got.hidden_states, expected.hidden_states))
    with torch.no_grad():  # logits reach 27, where float32 itself rounds to 2e-6; without that they are the same
        got, expected = (model.double()(**encoding).logits for model in (ours, theirs))
    parity((got - expected).abs().max().item(), limit=1e-10)


def test_their_pipeline_agrees_with_fill_mask(tiny, tokenizer):
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(PRETRAINED / "tiny").float()
    their_tokenizer = transformers.XLMRobertaTokenizer(str(PRETRAINED / "tiny" / "sentencepiece.bpe.model"))
    pipeline = transformers.pipeline("fill-mask", model=theirs, tokenizer=their_tokenizer, device="cpu")
    for text in list(SENTENCES)[:4]:
        [ours] = fill_mask(tiny, tokenizer, text)
        expected = pipeline(text)
        assert [p.token_id for p in ours] == [p["token"] for p in expected]
        assert [p.probability for p in ours] == pytest.approx([p["score"] for p in expected], abs=1e-5)


# ---- the command line


def test_fill_prints_words_and_bars(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "reconfigure", lambda **_: None, raising=False)
    assert main(["fill", "All human beings are born <mask> and equal in <mask> and rights.", "--top-k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("<mask>")] == ["<mask> 1", "<mask> 2"]
    assert "free" in lines[1]
    assert "%" in lines[1]
    assert len(lines) == 6


def test_fill_says_in_one_line_what_is_wrong(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "reconfigure", lambda **_: None, raising=False)
    for arguments, words in (
        (["no mask"], "nothing to fill"),
        (["<mask>", "--model", "nowhere"], "none of what this package holds (tiny, tiny-relative-key,"),
        (["<mask>", "--model", "xlm-roberta-xl"], "without its config.json, unlike tiny, tiny-relative-key"),
    ):
        assert main(["fill", *arguments]) == 2
        out = capsys.readouterr()
        assert words in out.err
        assert out.err.count("\n") == 1
        assert not out.out


def test_fill_writes_any_script_to_a_terminal_that_says_it_is_ascii():
    command = [sys.executable, "-m", "xlmrxl_min", "fill", "人人生而自由,在<mask>权利上一律平等。", "--top-k", "1"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(command, capture_output=True, env=environment, check=True)
    assert any("\u4e00" <= letter <= "\u9fff" for letter in done.stdout.decode("utf-8")), "Chinese, as written"
    assert not done.stderr
