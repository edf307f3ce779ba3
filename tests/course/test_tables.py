"""Tables of the notebooks."""

from xlmrxl_min.course.tables import LANGUAGES, SCRIPTS, Table
from xlmrxl_min.training.corpus import LANGUAGES as STUDIED
from xlmrxl_min.training.texts import udhr


def test_every_language_of_the_declaration_has_a_name_and_a_script():
    assert list(LANGUAGES) == list(dict.fromkeys(row.language for row in udhr()))
    assert sorted(code for codes in SCRIPTS.values() for code in codes) == sorted(LANGUAGES)
    assert tuple(LANGUAGES)[:15] == STUDIED


def test_a_table_escapes_its_cells_and_says_their_language():
    table = Table(["a", "b"], [("<s>", 1), ("x\ny", ("право", "ru"))])
    html = table._repr_html_()
    assert html.count("<tr>") == html.count("</tr>") == 3
    assert "lang='en'>&lt;s&gt;</td>" in html
    assert "lang='en'>x<br>y</td>" in html
    assert "lang='ru'>право</td>" in html
    assert Table([], [(1,)])._repr_html_().count("<tr>") == 1
    assert repr(table) == "A table of 2 rows: a, b"
