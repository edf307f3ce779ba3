"""The interactive pages of the course, in a browser: their numbers are those of the library."""

import json
import re

import pytest
import torch

from xlmrxl_min import XLMRobertaTokenizer, XLMRobertaXLForMaskedLM
from xlmrxl_min.interpret.live import mask_painter
from xlmrxl_min.model import mask_to_bias


@pytest.fixture(scope="module")
def tokenizer():
    return XLMRobertaTokenizer.from_pretrained("tiny")


@pytest.fixture(scope="module")
def tiny():
    return XLMRobertaXLForMaskedLM.from_pretrained("tiny")


def data_of(page):
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page.html, re.DOTALL)[1])


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def sentence_of(page):
    return page.text_content("#sentence")


def assert_accessible(page):
    """Every control has a name; nothing is beside the page; text has WCAG's contrast of 4.5 to 1 on its background."""
    name = "control.ariaLabel || (control.labels?.length ? control.labels[0] : control).innerText.trim()"
    unnamed = f"[...document.querySelectorAll('button, select, input, textarea')].filter(control => !({name}))"
    assert page.evaluate(f"{unnamed}.map(control => control.outerHTML)") == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("document.getElementById('sentence').ariaLive") == "polite"
    for colour in ("--ink", "--soft", "--query", "--key"):
        assert contrast(page, colour) >= (4.5 if colour in ("--ink", "--soft") else 3), colour


def contrast(page, colour):
    """Between a colour of the skeleton and its background."""
    light = """name => {
        const probe = document.body.appendChild(document.createElement("i"));
        probe.style.color = `var(${name})`;
        const channels = getComputedStyle(probe).color.match(/\\d+/g).slice(0, 3).map(channel => channel / 255);
        probe.remove();
        const linear = channels.map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    }"""
    low, high = sorted(page.evaluate(light, name) for name in (colour, "--paper"))
    return (high + 0.05) / (low + 0.05)


each_view = pytest.mark.parametrize(("scheme", "width"), [("light", 1000), ("dark", 1000), ("light", 360)])


def view(scheme, width):
    return {"color_scheme": scheme, "viewport": {"width": width, "height": 760}}


# ---- notebook 02: masks and the scale

TOKENS = ["<s>", "▁Jeder", "▁hat", "▁das", "▁Recht", "</s>"]


@pytest.fixture(scope="module")
def scores():
    return 12 * torch.randn(6, 6, generator=torch.Generator().manual_seed(0))


def cell(q, k):
    return f"tbody tr:nth-child({q + 1}) td:nth-child({k + 2}) button"


def shown_weights(page):
    cells = page.evaluate(
        "[...document.querySelectorAll('td button')].map(cell => cell.style.getPropertyValue('--weight'))"
    )
    return torch.tensor([float(weight) for weight in cells]).view(6, 6)


def expected_weights(scores, divisor, may_attend):
    return (scores / divisor + mask_to_bias(may_attend, torch.float)).softmax(-1)


@each_view
def test_masks_are_painted(show, scores, scheme, width):
    page = show(mask_painter(scores, TOKENS, head_dim=32), **view(scheme, width))
    assert_accessible(page)
    may_attend = torch.ones(6, 6, dtype=torch.bool)

    def assert_shown(divisor=32**0.5):
        torch.testing.assert_close(
            shown_weights(page), expected_weights(scores, divisor, may_attend), atol=1e-4, rtol=0
        )

    assert_shown()
    page.click(cell(1, 2))
    may_attend[1, 2] = False
    assert_shown()
    assert sentence_of(page) == "▁Jeder (1) → ▁hat (2): masked, so the weight is 0%, and the others share 100%."
    page.focus(cell(1, 3))
    press(page, "ArrowRight", "ArrowDown", "Enter")
    may_attend[2, 4] = False
    assert_shown()
    press(page, *["ArrowUp"] * 3, "Enter")  # the key's name: its column
    may_attend[:, 4] = False
    assert_shown()
    for k in (0, 1, 2, 3, 5):
        page.click(cell(5, k))
    may_attend[5] = False
    assert_shown()
    assert "every key of this query is masked" in sentence_of(page)
    page.click("#causal")
    may_attend = torch.ones(6, 6, dtype=torch.bool).tril()
    assert_shown()
    page.click("#padding")
    may_attend = torch.tensor([True] * 4 + [False] * 2).expand(6, 6)
    assert_shown()
    page.click("#one")
    assert_shown(divisor=1)
    page.click("#none")
    may_attend = torch.ones(6, 6, dtype=torch.bool)
    page.focus("#divisor")
    press(page, *["ArrowRight"] * 20)
    assert page.text_content("#shown") == "2.00"
    assert_shown(divisor=2)
    entropy = -(expected_weights(scores, 2, may_attend) * expected_weights(scores, 2, may_attend).log()).sum(-1)
    mean = entropy.exp().mean().item()
    page.hover("h1")
    expected = f"With scores divided by 2.00, a query attends to as many keys as {mean:.1f} equal ones, on average."
    assert sentence_of(page) == expected
    page.click("#root")
    assert_shown()
    page.focus(cell(0, 3))
    score = f"{scores[0, 3].item():.2f} / 5.66 = {scores[0, 3].item() / 32**0.5:.2f}".replace("-", "−")
    assert f"score {score}, weight " in sentence_of(page)


def test_a_mask_to_start_with(scores):
    page = mask_painter(scores[:2], TOKENS[:2], keys=TOKENS, head_dim=8, may_attend=torch.arange(6) < 4)
    assert data_of(page)["masked"] == [[False] * 4 + [True] * 2] * 2
    assert data_of(page)["keys"] == TOKENS


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scores": torch.zeros(65, 65), "tokens": ["a"] * 65}, "65 tokens are too many for this page"),
        ({"scores": torch.full((6, 6), torch.nan)}, "scores holds nan, but must hold finite numbers"),
        ({"tokens": ["a"]}, "tokens has 1 strings, but there are 6"),
        ({"head_dim": 0}, "head_dim=0 is impossible"),
        ({"may_attend": torch.zeros(6, 6)}, "may_attend is torch.float32 (6, 6), but must be bool (6, 6)"),
        ({"may_attend": torch.zeros(5) == 0}, "may_attend is torch.bool (5,), but must be bool (6, 6)"),
    ],
)
def test_impossible_scores_and_masks_raise(scores, options, words):
    arguments = {"scores": scores, "tokens": TOKENS, "head_dim": 32, **options}
    with pytest.raises(ValueError, match=re.escape(words)):
        mask_painter(**arguments)


# ---- the reading version


def test_the_reading_version_shows_the_page(open_page, scores, tmp_path):
    from xlmrxl_min.course.notebooks import FOLDER
    from xlmrxl_min.course.reading import Site

    page = mask_painter(scores, TOKENS, head_dim=32)
    data = {"text/html": [page._repr_html_()], "text/plain": [repr(page)]}
    cell = {"cell_type": "code", "source": "page", "outputs": [{"output_type": "execute_result", "data": data}]}
    site = Site()
    site.add("page.html", "A page", "\n".join(site.render_cell(cell, FOLDER / "02_attention.ipynb")), "page")
    assert "onload" not in site.pages["page.html"], "the page around the frame runs no script"
    (tmp_path / "page.html").write_text(site.pages["page.html"], encoding="utf-8")
    frame = open_page(tmp_path / "page.html").frames[1]
    frame.click("tbody button")
    assert sentence_of(frame) == "<s> (0) → <s> (0): masked, so the weight is 0%, and the others share 100%."
