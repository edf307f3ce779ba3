"""Shared by the training tests: tiny's tokenizer, interruptions of training, and a small corpus."""

from contextlib import contextmanager
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from xlmrxl_min import XLMRobertaXLModel
from xlmrxl_min.training import teacher
from xlmrxl_min.training.corpus import CORPUS_FILE, Row, is_held_out
from xlmrxl_min.training.texts import udhr


@pytest.fixture
def interrupted():
    """`with interrupted(after=n):` raises KeyboardInterrupt in the n + 1st forward pass of a model in training mode."""

    @contextmanager
    def context(after):
        passes = iter(range(after + 1))

        def count(module, args):
            if isinstance(module, XLMRobertaXLModel) and module.training and next(passes) == after:
                raise KeyboardInterrupt

        handle = register_module_forward_pre_hook(count)
        try:
            with pytest.raises(KeyboardInterrupt):
                yield
        finally:
            handle.remove()

    return context


@pytest.fixture(scope="session")
def corpus_rows():
    """The Declaration as a corpus: in English, French, German and Chinese, and without its preamble.

    Articles 1 to 20 are four chapters of a Bible, 21 to 30 pages of help, of which those with Articles 6 to 10 and 30
    are held out. English has a second version of the Bible. Words follow.
    """

    def names(source, held_out):
        named = (Row("", source, "", f"1.{i}", "", "") for i in count())
        return (row.section for row in named if is_held_out(row) == held_out)

    sections, versions = {}, {"en": ("4", "k"), "fr": ("l",), "de": ("e",), "zh": ("",)}
    for source, articles in (("bible", range(1, 21)), ("help", range(21, 31))):
        free, hidden = names(source, False), names(source, True)
        for i in articles:
            is_hidden = 6 <= i <= 10 or i == 30
            is_new = source == "help" or i % 5 == 1
            sections[i] = source, next(hidden if is_hidden else free) if is_new else sections[i - 1][1]
    rows = []
    for language, of_bible in versions.items():
        text = [row for row in udhr(language) if row.article]
        for row in text:
            source, section = sections[row.article]
            for version in of_bible if source == "bible" else ("",):
                words = f"Yea, {row.text}" if version == "k" else row.text
                rows.append(Row(language, source, version, section, f"{row.article}.{row.paragraph}", words))
        words = sorted({word for row in text for word in row.text.split() if word.isalpha()})[:50]
        rows += [Row(language, "words", "", str(i), "", word) for i, word in enumerate(words, start=1)]
    return rows


@pytest.fixture(scope="session")
def corpus_folder(corpus_rows, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    (folder / CORPUS_FILE).write_text("".join("\t".join(row) + "\n" for row in corpus_rows), encoding="utf-8")
    tokenizer.save_pretrained(folder)
    taught = [row for row in corpus_rows if not is_held_out(row) and teacher.has_vector(row)]
    vectors = torch.randn(len(taught), 32, generator=torch.Generator().manual_seed(0)).half()
    torch.save({"keys": [teacher.place_of(row) for row in taught], "vectors": vectors}, folder / teacher.TEACHER_FILE)
    return folder


@pytest.fixture
def small_corpus(corpus_folder, monkeypatch):
    """The folder of a corpus with `corpus_rows`, and with a teacher of width 32: random vectors and embeddings."""
    embeddings = torch.randn(250_002, 32, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(teacher, "load_teacher", lambda folder: SimpleNamespace(weights={"emb.word": embeddings}))
    return corpus_folder
