"""The attention viewer: the page holds the model's weights, and a real browser says of them what the model says."""

import base64
import html
import itertools
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from browser import PROGRAM, Browser, until

from xlmrxl_min import XLMRobertaTokenizer, XLMRobertaXLConfig, XLMRobertaXLForCausalLM, XLMRobertaXLForMaskedLM
from xlmrxl_min.__main__ import main
from xlmrxl_min.interpret.explore import LARGEST_PAGE, TEMPLATE, explore
from xlmrxl_min.training.texts import udhr

HOSTILE = [
    "<s>",
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 2</script>",
    '"><img src=x onerror="window.hacked = 3">',
    "'",
    "&",
    "&lt;b&gt;",
    "<!--",
    "{{data}}",
    "\\u003c",
    "two\nlines\u2028and\u2029more",
    "👍🏽",
    "▁جميع",
    "\ud800",  # half a letter, which UTF-8 cannot hold
    "",
    "</s>",
]


@pytest.fixture(scope="module")
def tokenizer():
    return XLMRobertaTokenizer.from_pretrained("tiny")


@pytest.fixture(scope="module")
def tiny():
    return XLMRobertaXLForMaskedLM.from_pretrained("tiny")


@pytest.fixture(scope="module")
def pair(tiny, tokenizer):
    """tiny on Article 3 in English and Russian: its attentions, and the tokens."""
    english, russian = (next(row.text for row in udhr(code) if row.article == 3) for code in ("en", "ru"))
    encoding = tokenizer(english, russian, return_tensors="pt")
    with torch.no_grad():
        attentions = tiny(**encoding, output_attentions=True).attentions
    return attentions, tokenizer.convert_ids_to_tokens(encoding.input_ids[0])


def uniform(*shape):
    return torch.full(shape, 1 / shape[-1])


def data_of(page):
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)[1])


# ---- the page as text


def test_its_bytes_are_the_weights(pair):
    attentions, tokens = pair
    data = data_of(explore(attentions, tokens).html)
    assert data["queries"] == data["keys"] == tokens
    for layer, heads, packed in zip(attentions, data["heads"], data["layers"], strict=True):
        stored = torch.frombuffer(bytearray(base64.b64decode(packed)), dtype=torch.uint8)
        assert heads == layer.shape[1]
        assert (stored.view(layer.shape) / 255 - layer).abs().max() <= 1 / 510 + 1e-6


def test_every_form_that_a_model_returns(pair):
    attentions, tokens = pair
    page = explore(attentions, tokens).html
    assert explore([layer[0] for layer in attentions], tokens).html == page
    assert explore(torch.cat(attentions), tokens).html == page, "l h q k"
    assert explore(torch.stack(attentions), tokens).html == page, "l 1 h q k"
    assert explore([layer.double() for layer in attentions], tuple(tokens)).html == page
    rounded_up = torch.full((1, 1, 1), 1.0005, requires_grad=True)
    assert base64.b64decode(data_of(explore([rounded_up], ["a"]).html)["layers"][0]) == b"\xff"


def test_the_same_input_gives_the_same_page(pair):
    assert explore(*pair).html == explore(*pair).html
    assert explore(*pair)._repr_html_() == explore(*pair)._repr_html_()
    assert repr(explore(*pair)) == "Explorer(title='Attention')"


def test_nothing_comes_from_outside(pair):
    page = explore(*pair).html
    for foreign in ("http:", "https:", "://", "src=", "<link", "@import", "url(", "fetch(", "import("):
        assert foreign not in page
    [policy] = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    assert "explore.html" in (Path(__file__).parents[2] / "pyproject.toml").read_text(), "it has to be shipped"


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append(tag)


def test_no_token_can_become_markup():
    weights = uniform(2, 3, len(HOSTILE), len(HOSTILE))
    page, tame = explore(weights, HOSTILE, title=HOSTILE[2]), explore(weights, ["a"] * len(HOSTILE))
    assert data_of(page.html)["queries"] == HOSTILE
    assert Tags(page.html).found == Tags(tame.html).found
    raw = re.search(r'<script id="data".*?>(.*?)</script>', page.html, re.DOTALL)[1]
    assert raw.isascii()
    assert not set("<>&\n") & set(raw)
    assert f"<title>{html.escape(HOSTILE[2])}</title>" in page.html
    assert explore(weights, HOSTILE, title="\ud800").html.encode("utf-8")
    assert "<script" not in page._repr_html_()


def test_in_a_notebook_it_is_a_frame(pair):
    page = explore(*pair, title='"quoted" & <s>')
    shown = page._repr_html_()
    assert re.match(r'<iframe srcdoc="[^"]*" sandbox="allow-scripts" title="[^"]*" style="[^"]*"></iframe>$', shown)
    assert html.unescape(re.search(r'srcdoc="([^"]*)"', shown)[1]) == page.html
    assert html.unescape(re.search(r' title="([^"]*)"', shown)[1]) == page.title
    heights = [
        int(re.search(r"height: (\d+)px", explore(uniform(1, 1, n, n), ["a"] * n)._repr_html_())[1])
        for n in (1, 15, 300)
    ]
    assert heights == sorted(set(heights))
    assert 400 < heights[0] < heights[-1] < 800


def test_saving_is_whole_or_not_at_all(pair, tmp_path, monkeypatch):
    page = explore(*pair)
    path = page.save(tmp_path / "new" / "folder" / "page.html")
    assert path.read_bytes() == page.html.encode("utf-8")
    write = Path.write_bytes

    def fails(self, content):
        write(self, content[:1000])
        raise OSError("no space left on the device")

    monkeypatch.setattr(Path, "write_bytes", fails)
    with pytest.raises(OSError, match="no space"):
        explore(*pair, title="another").save(str(path))
    assert path.read_bytes() == page.html.encode("utf-8")
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(IsADirectoryError, match=r"is a folder: name a file in it, such as .*attention\.html"):
        page.save(tmp_path)


@pytest.mark.parametrize(
    ("attentions", "tokens", "words"),
    [
        (None, "ab", "attentions=None holds no layer: call the model with output_attentions=True"),
        ((), "ab", "holds no layer"),
        ([None, None], "ab", "attentions[0] is None, no tensor of weights: call the model with output_attentions"),
        ([[[0.5]]], "a", "attentions[0] is a list"),
        ([uniform(1, 3, 2, 2), uniform(2, 3, 2, 2)], "ab", "attentions[1] holds 2 texts, and a page shows one"),
        (uniform(3, 2, 2), "ab", "attentions[0] has the shape (2, 2), but weights are 1 h q k or h q k"),
        ([uniform(1, 0, 2, 2)], "ab", "has the shape (1, 0, 2, 2), which is no head"),
        ([uniform(3, 2, 2)], "abc", "attentions[0] has 2 queries, but tokens names 3: pass one string for each"),
        ([uniform(3, 2, 5)], "ab", "attentions[0] has 5 keys, but keys names 2"),
        ([uniform(3, 2, 2), torch.full((3, 2, 2), torch.nan)], "ab", "attentions[1] holds nan, but"),
        ([torch.full((3, 2, 2), torch.inf)], "ab", "holds inf, but attention weights are from 0 to 1"),
        ([uniform(3, 2, 2) - 0.75], "ab", "holds -0.25, but"),
        ([uniform(3, 2, 2) * 2.5], "ab", "holds 1.25, but attention weights are from 0 to 1: pass what comes out"),
        ([uniform(3, 2, 2).long()], [1, 2], "tokens is a list of something else, but it takes a list of strings"),
        ([uniform(3, 2, 2)], [], "tokens is empty"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(attentions, tokens, words):
    tokens = list(tokens) if isinstance(tokens, str) else tokens
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        explore(attentions, tokens)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_strings_that_are_no_list():
    for tokens in ("ab", torch.tensor([1, 2]), None):
        with pytest.raises(ValueError, match=f"tokens is a {type(tokens).__name__}, but it takes a list of strings"):
            explore([uniform(3, 2, 2)], tokens)
    with pytest.raises(ValueError, match="keys is a str"):
        explore([uniform(3, 2, 2)], ["a", "b"], keys="ab")


def test_a_page_that_is_too_large_is_refused_before_it_is_made():
    layers = [torch.empty(1, 32, 512, 512, device="meta")] * 36  # XL on its longest text
    with pytest.raises(
        ValueError, match=r"36 layers on 512 tokens .* 302 MB .* 24 MB: take fewer layers .*\[:2\]\) or a"
    ):
        explore(layers, ["a"] * 512)
    with pytest.raises(ValueError, match=r"1 layers on 512 .*: take a shorter text\.$"):
        explore([torch.empty(1, 92, 512, 512, device="meta")], ["a"] * 512)
    side = int((LARGEST_PAGE / 24) ** 0.5)
    assert len(explore([torch.zeros(24, side, side)], ["a"] * side).html) < 1.4 * LARGEST_PAGE


# ---- the command line


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    """Runs it in an empty folder; the exit status, what it printed, and what it complained of."""
    monkeypatch.setattr(sys.stdout, "reconfigure", lambda **_: None, raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        status = main(["attend", *arguments])
        return status, *capsys.readouterr()

    return run


def test_attend_writes_the_page(command, tmp_path, pair, tokenizer):
    attentions, tokens = pair
    english, russian = (next(row.text for row in udhr(code) if row.article == 3) for code in ("en", "ru"))
    status, out, err = command(english, "--pair", russian, "-o", "made/here.html")
    page = (tmp_path / "made" / "here.html").read_text(encoding="utf-8")
    assert (status, err) == (0, "")
    assert re.fullmatch(r"made/here\.html: 4 layers on 39 tokens, \d\d kB\n", out)
    assert page == explore(attentions, tokens, title="Attention of tiny").html
    for text in ("人人生而自由", "one more"):  # the second over the first
        assert command(text)[0] == 0
        assert data_of((tmp_path / "attention.html").read_text(encoding="utf-8"))["queries"][
            1:-1
        ] == tokenizer.tokenize(text)


def test_attend_says_in_one_line_what_is_wrong(command, tmp_path):
    (tmp_path / "file").write_text("")
    for arguments, words in (
        ([""], "there is nothing to look at in '': give a text"),
        (["fine", "--pair", "  "], "there is nothing to look at in '  '"),
        (["freedom " * 600], "602 tokens are too many: there is room for 512"),
        (["fine", "-o", str(tmp_path)], "is a folder: name a file in it"),
        (["fine", "-o", "file/page.html"], "file"),
        (["fine", "--model", "nowhere"], "none of what this package holds"),
    ):
        status, out, err = command(*arguments)
        assert (status, out, err.count("\n")) == (2, "", 1), err
        assert words in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# ---- the page in a browser


@pytest.fixture(scope="module")
def browser():
    if PROGRAM is None:
        pytest.skip("needs Chromium or Chrome, and there is none here")
    with Browser() as running:
        yield running


@pytest.fixture
def show(browser, tmp_path):
    """Opens an explorer's page; afterwards nothing must have gone wrong in it, nor been fetched but the page itself."""
    opened = []

    def show(explorer, **options):
        path = tmp_path / f"{len(opened)}.html"
        explorer.save(path)
        opened.append((browser.open(path, **options), path))
        return opened[-1][0]

    yield show
    for page, path in opened:
        assert page.complaints() == []
        assert page.requests() == [path.as_uri()]
        assert page.evaluate("window.hacked === undefined")


def query(at):
    return f"#queries button:nth-child({at + 1})"


def key(at):
    return f"#keys button:nth-child({at + 1})"


def head_button(head):
    return f"#heads button:nth-child({head + 2})"


def said(page):
    return page.evaluate("document.getElementById('sentence').textContent")


def subject(page):
    """Whom it speaks of."""
    return re.match(r"Layer \d+, .*?: (.*) looks most at ", said(page))[1]


def percent(share):
    return int(100 * share + 0.5)


def name(tokens, at):
    return f"{tokens[at]} ({at})" if tokens.count(tokens[at]) > 1 else tokens[at]


def ranking(shares, tokens):
    """What the page says of the five strongest of these shares, told from the numbers alone."""
    best = sorted(range(len(shares)), key=lambda i: (-shares[i], i))[:5]
    first, *others = [f"{name(tokens, i)}, {percent(shares[i])}%" for i in best if percent(shares[i])]
    return first + (f"; then {'; '.join(others)}" if others else "") + "."


def stored(weights):
    return (weights.double() * 255).round() / 255


def without(weights, tokens):
    """Without <s> and </s>: their columns are zero, and each row sums to one."""
    kept = torch.tensor([token not in ("<s>", "</s>") for token in tokens])
    weights = weights * kept
    return weights / weights.sum(-1, keepdim=True)


def certain(candidates, shares, tokens):
    """Those of the candidates for which 1/255 changes nothing in what is said; `shares` of (candidate, of what)."""
    return [
        candidate
        for candidate in candidates
        if ranking(shares(candidate, lambda w: w.double()).tolist(), tokens)
        == ranking(shares(candidate, stored).tolist(), tokens)
    ]


def middle(page, selector):
    """The height of the middle of a token in the window, where it is."""
    box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
    return page.evaluate(f"(box => box.top + box.height / 2)({box})")


def thickest(page):
    """The heights in the window at which the thickest line begins and ends."""
    return page.evaluate(
        """(line => {
            const [place, end] = [line.getScreenCTM(), line.getTotalLength()];
            return [0, end].map(at => line.getPointAtLength(at).matrixTransform(place).y);
        })([...document.querySelectorAll('path')].sort((a, b) =>
            b.getAttribute('stroke-width') - a.getAttribute('stroke-width'))[0])"""
    )


def show_head(page, layer, head):
    page.press("Escape", *["PageDown"] * layer)
    page.click(head_button(head))


def test_pointing_at_a_token_names_what_it_looks_at_most(show, pair):
    attentions, tokens = pair
    page = show(explore(attentions, tokens))
    show_head(page, 2, 3)
    weights = attentions[2][0, 3]
    rows = certain(range(len(tokens)), lambda q, of: of(weights)[q], tokens)
    columns = certain(range(len(tokens)), lambda k, of: of(weights)[:, k], tokens)
    right, pravo = tokens.index("▁right"), tokens.index("▁право")
    assert min(len(rows), len(columns)) >= 5
    page.hover(query(pravo))
    assert weights[pravo].argmax() == right
    assert said(page).startswith(
        f"Layer 2, head 3: ▁право looks most at ▁right, {percent(weights[pravo, right])}%; then "
    )
    for q in rows[:5]:
        page.hover(query(q))
        shares = weights[q].tolist()
        assert said(page) == f"Layer 2, head 3: {name(tokens, q)} looks most at {ranking(shares, tokens)}"
        labels = page.evaluate("[...document.querySelectorAll('#keys .share')].map(share => share.textContent)")
        top = weights[q].topk(5).indices.tolist()
        assert labels == [
            f"{percent(shares[k])}%" if k in top and percent(shares[k]) else "" for k in range(len(tokens))
        ]
        lines = page.evaluate("[...document.querySelectorAll('path')].map(path => path.getAttribute('d'))")
        drawn = stored(weights)[q] > stored(weights)[q].max() / 20
        assert lines == [
            f"M0 {q + 0.5}C45 {q + 0.5} 55 {k + 0.5} 100 {k + 0.5}" for k in drawn.nonzero()[:, 0].tolist()
        ]
    for k in columns[:5]:
        page.hover(key(k))
        shares = weights[:, k].tolist()
        assert said(page) == f"Layer 2, head 3: {name(tokens, k)} is looked at most by {ranking(shares, tokens)}"
    page.hover("h1")
    assert "the strongest link is" in said(page)


def strongest_link(weights, tokens):
    q, k = divmod(weights.argmax().item(), len(tokens))
    return f"the strongest link is {name(tokens, q)} → {name(tokens, k)}, {percent(weights.max().item())}%."


def test_stepping_through_layers_and_heads(show, pair):
    attentions, tokens = pair
    page = show(explore(attentions, tokens))
    layers = torch.cat(attentions).double()
    heard = []
    for layer, head in itertools.product(range(4), range(-1, 8)):  # -1: the mean
        weights = layers[layer].mean(0) if head < 0 else layers[layer, head]
        quantised = stored(layers[layer]).mean(0) if head < 0 else stored(layers[layer, head])
        expected = strongest_link(weights, tokens)
        if expected == strongest_link(quantised, tokens) and (quantised == quantised.max()).sum() == 1:
            what = "all heads (mean)" if head < 0 else f"head {head}"
            heard.append((layer, head, f"Layer {layer}, {what}: {expected}"))
    assert len(heard) >= 12
    assert {-1, 0} <= {head for _, head, _ in heard}
    now = [0, -1]
    for step, (layer, head, expected) in enumerate(heard):
        if step % 2:  # by keys
            page.press(*["PageDown"] * (layer - now[0]))
            page.press(*["ArrowRight"] * (head - now[1]), *["ArrowLeft"] * (now[1] - head))
        else:  # by buttons
            for _ in range(layer - now[0]):
                page.click("#next")
            page.click(head_button(head))
        assert said(page) == expected
        pressed = "[...document.querySelectorAll('#heads [aria-pressed=true]')].map(b => b.textContent)"
        assert page.evaluate(pressed) == ["mean" if head < 0 else str(head)]
        assert page.evaluate("document.getElementById('layer').value") == str(layer)
        now = [layer, head]
    page.press(*["PageDown"] * 9, *["ArrowRight"] * 9)
    assert said(page).startswith("Layer 3, head 7: "), "the last ones are the last"
    assert page.evaluate("document.getElementById('next').getAttribute('aria-disabled')") == "true"
    page.click("#previous")
    page.press("PageUp", "ArrowLeft")
    assert said(page).startswith("Layer 1, head 6: ")


def test_several_tokens_show_their_mean(show, pair):
    attentions, tokens = pair
    page = show(explore(attentions, tokens))
    show_head(page, 1, 5)
    weights = attentions[1][0, 5]
    pairs = [(q, q + 2) for q in range(len(tokens) - 2)]
    for q, other in certain(pairs, lambda at, of: of(weights)[list(at)].mean(0), tokens)[:3]:
        expected = ranking(weights[[q, other]].mean(0).tolist(), tokens)
        names = f"{name(tokens, q)}, {name(tokens, other)}"
        page.click(query(other))
        page.click(query(q))
        assert said(page) == f"Layer 1, head 5: the mean of {names} looks most at {expected}"
        pressed = (
            "[...document.querySelectorAll('#queries button')].flatMap((b, i) => b.ariaPressed === 'true' ? i : [])"
        )
        assert page.evaluate(pressed) == [q, other]
        page.press("Escape")
        assert page.evaluate(pressed) == []
        page.click(query(q))  # and by keys
        page.press("ArrowDown", "ArrowDown", " ")
        assert said(page) == f"Layer 1, head 5: the mean of {names} looks most at {expected}"
        page.press("Enter")
        assert said(page).startswith(f"Layer 1, head 5: {name(tokens, q)} looks most at "), "taken out again"
        page.click("#clear")
        assert page.evaluate(pressed) == []
        assert "the strongest link is" in said(page)
    [(k, other), *_] = certain(pairs, lambda at, of: of(weights)[:, list(at)].sum(-1), tokens)
    page.click(query(0))
    page.click(key(k))
    page.click(key(other))
    expected = ranking(weights[:, [k, other]].sum(-1).tolist(), tokens)
    names = f"{name(tokens, k)}, {name(tokens, other)}"
    assert said(page) == f"Layer 1, head 5: {names} are together looked at most by {expected}"


def test_pointer_selection_and_keys_take_turns(show, pair):
    attentions, tokens = pair
    page = show(explore(attentions, tokens))
    page.press("ArrowDown", "ArrowDown")
    assert subject(page) == "▁Everyone"
    page.hover(query(4))
    assert subject(page) == "▁right", "pointing goes before the keyboard's focus"
    page.press("ArrowDown")
    assert subject(page) == "▁has", "but a pointer that only rests has no say"
    page.press("Escape")
    assert "the strongest link is" in said(page)
    page.click(query(2))
    page.click(query(4))
    x, y = page.middle(query(4))
    page.mouse("mouseMoved", x + 2, y + 2)
    assert subject(page) == "the mean of ▁has, ▁right", "also where the hand shakes"
    page.hover(query(1))
    assert subject(page) == "▁Everyone", "pointing elsewhere shows that for as long"
    page.hover("h1")
    assert subject(page) == "the mean of ▁has, ▁right"


def test_without_special_tokens_rows_sum_to_one_again(show, pair):
    attentions, tokens = pair
    page = show(explore(attentions, tokens))
    show_head(page, 2, 3)
    page.hover(query(tokens.index("▁right")))
    before = said(page)
    page.click("#hide")
    assert page.evaluate("!document.getElementById('hidden-note').hidden")
    for column in ("queries", "keys"):
        seen = f"[...document.querySelectorAll('#{column} button:not([hidden]) bdi')].map(name => name.textContent)"
        assert page.evaluate(seen) == [token for token in tokens if token not in ("<s>", "</s>")]
    weights = attentions[2][0, 3]
    candidates = [q for q, token in enumerate(tokens) if token not in ("<s>", "</s>")]
    rows = certain(candidates, lambda q, of: without(of(weights), tokens)[q], tokens)
    changed = 0
    for q in [tokens.index("▁right"), *rows][:6]:
        expected = ranking(without(stored(weights), tokens)[q].tolist(), tokens)
        page.hover(query(q))
        assert said(page) == f"Layer 2, head 3: {name(tokens, q)} looks most at {expected}"
        changed += expected != ranking(stored(weights)[q].tolist(), tokens)
        strongest = without(stored(weights), tokens)[q].argmax().item()
        assert [middle(page, query(q)), middle(page, key(strongest))] == pytest.approx(thickest(page), abs=1)
    assert len(rows) >= 3
    assert changed >= 3, "it must matter"
    page.click("#hide")
    page.hover(query(tokens.index("▁right")))
    assert said(page) == before


def test_a_row_with_next_to_nothing_left_is_not_blown_up(show):
    weights = torch.tensor([[[0.25, 0.75], [0.98, 0.02]]])
    page = show(explore([weights], ["<s>", "a"]))
    page.click("#hide")
    page.hover(query(1))
    assert said(page) == "Layer 0, all heads (mean): a: under 5% of the attention is left."


def test_hostile_tokens_are_only_text(show):
    tokens = [*HOSTILE, HOSTILE[1]]
    page = show(explore(uniform(1, 2, len(tokens), len(tokens)), tokens, title=HOSTILE[1]))
    shown = page.evaluate("[...document.querySelectorAll('#keys bdi')].map(name => name.textContent)")
    half = HOSTILE.index("\ud800")
    breaks = re.compile("[\n\u2028\u2029]")
    assert [s for i, s in enumerate(shown) if i != half] == [
        breaks.sub("↵", t) for i, t in enumerate(tokens) if i != half
    ]
    for at in range(len(tokens)):
        page.hover(query(at))
        page.hover(key(at))
    page.hover(query(1))
    assert said(page).startswith(f"Layer 0, all heads (mean): {HOSTILE[1]} (1) looks most at <s>, 6%; then ")
    assert page.evaluate("document.title") == page.evaluate("document.querySelector('h1').textContent") == HOSTILE[1]
    assert page.evaluate("document.querySelectorAll('img, main script').length") == 0
    arabic = HOSTILE.index("▁جميع")
    assert page.evaluate(f"getComputedStyle(document.querySelectorAll('#keys bdi')[{arabic}]).direction") == "rtl"


def test_in_a_frame_it_works_as_well(browser, pair, tmp_path):
    attentions, tokens = pair
    frame_html = explore(attentions, tokens)._repr_html_()
    (tmp_path / "notebook.html").write_text(f"<!doctype html><p>before</p>{frame_html}<p>after</p>", encoding="utf-8")
    page = browser.open(tmp_path / "notebook.html")
    frame = page.frame()
    frame.wait_for("document.readyState === 'complete'")
    left, top = page.evaluate("(b => [b.x, b.y])(document.querySelector('iframe').getBoundingClientRect())")
    weights = torch.cat(attentions)[0].mean(0)
    [q, *_] = certain(range(len(tokens)), lambda q, of: of(torch.cat(attentions)[0]).mean(0)[q], tokens)
    x, y = frame.middle(query(q))
    expected = ranking(weights[q].tolist(), tokens)
    sentence = f"Layer 0, all heads (mean): {name(tokens, q)} looks most at {expected}"

    def pointed():  # until the browser knows where the frame is, it passes no movement on
        page.mouse("mouseMoved", left + x, top + y)
        return said(frame) == sentence

    until(pointed, sentence)
    assert page.complaints() == frame.complaints() == []
    assert page.requests() == [(tmp_path / "notebook.html").as_uri()]
    assert frame.evaluate("self.origin") == "null", "a stranger to the page around it"


@pytest.mark.parametrize(("queries", "width"), [(12, 1200), (90, 1200), (90, 480)])
def test_lines_end_at_their_tokens(show, queries, width):
    """In short and long texts, scrolled or not, with fewer keys than queries."""
    keys = queries - 5
    weights = torch.nn.functional.one_hot(torch.arange(queries) * 7 % keys, keys)[None].float()  # one key for each
    page = show(explore([weights], [f"q{i}" for i in range(queries)], keys=[f"k{i}" for i in range(keys)]), width=width)
    assert page.evaluate("document.querySelectorAll('path').length") == (queries if queries <= 64 else 0)
    assert ("With 90 tokens, lines are drawn for those you point at" in said(page)) == (queries > 64)
    for q in (1, queries - 2):
        page.hover(query(q))
        assert said(page) == f"Layer 0, all heads (mean): q{q} looks most at k{7 * q % keys}, 100%."
        ends = [middle(page, query(q)), middle(page, key(7 * q % keys))]
        assert thickest(page) == pytest.approx(ends, abs=1)
        assert page.evaluate("document.querySelectorAll('path').length") == 1
    if queries > 64:
        there = page.evaluate("document.getElementById('links').scrollTop")
        assert there > 0
        page.mouse("mouseWheel", *page.middle("#links"), deltaX=0, deltaY=-300)
        page.wait_for(f"document.getElementById('links').scrollTop < {there}")
        assert thickest(page) == pytest.approx([middle(page, query(q)), middle(page, key(7 * q % keys))], abs=1)


def test_pruned_heads_and_other_keys(show, tokenizer):
    """A decoder's cross-attention, where the second layer has lost heads."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = XLMRobertaXLConfig(
        vocab_size=len(tokenizer), initializer_range=0.6, is_decoder=True, add_cross_attention=True, **sizes
    )
    model = XLMRobertaXLForCausalLM(config).eval()
    model.prune_heads({1: [0, 2]})
    ids = tokenizer("All human beings are born free", return_tensors="pt").input_ids
    tokens, keys = tokenizer.convert_ids_to_tokens(ids[0]), [f"source{i}" for i in range(5)]
    with torch.no_grad():
        out = model(ids, encoder_hidden_states=torch.randn(1, 5, 32), output_attentions=True)
    own = show(explore(out.attentions, tokens))
    own.press(*["ArrowRight"] * 9)
    assert said(own).startswith("Layer 0, head 3: ")
    own.press("PageDown")
    assert said(own).startswith("Layer 1, head 1: ")
    cross = show(explore(out.cross_attentions, tokens, keys=keys))
    weights = out.cross_attentions[0][0].mean(0)
    [q, *_] = certain(range(len(tokens)), lambda q, of: of(out.cross_attentions[0][0]).mean(0)[q], keys)
    cross.hover(query(q))
    expected = ranking(weights[q].tolist(), keys)
    assert said(cross) == f"Layer 0, all heads (mean): {name(tokens, q)} looks most at {expected}"


def test_all_of_it_by_keyboard(show, pair):
    page = show(explore(*pair))
    focus = "(e => e.id || e.parentElement.id || e.tagName)(document.activeElement)"
    stops = []
    while len(stops) < 12:
        page.press("Tab")
        stops.append(page.evaluate(focus))
        if stops[-1] == "keys":
            break
    assert stops == ["layer", "previous", "next", "hide", "clear", "heads", "queries", "keys"], (
        "each column is one stop"
    )
    assert said(page).startswith("Layer 0, all heads (mean): <s> is looked at most by ")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    name = "control.ariaLabel || (control.labels?.length ? control.labels[0] : control).innerText.trim()"
    names = page.evaluate(f"[...document.querySelectorAll('button, select, input')].map(control => {name})")
    assert len(names) == 3 + 2 + 9 + 2 * 39
    assert all(names)
    assert page.evaluate("document.getElementById('sentence').ariaLive") == "polite"


def test_light_and_dark(show, pair):
    """Text stands out from the paper in both, by WCAG's 4.5 to 1."""

    def light(colour):
        channels = [int(channel) / 255 for channel in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    papers = []
    for scheme in ("light", "dark"):
        page = show(explore(*pair), color_scheme=scheme)
        page.hover(query(3))
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        for text in ("h1", "#sentence", ".faint bdi", ".place", "footer", "#heads [aria-pressed=false]"):
            colour = page.evaluate(f"getComputedStyle(document.querySelector('{text}')).color")
            low, high = sorted((light(colour), light(paper)))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (scheme, colour, paper)
        papers.append(light(paper))
    assert papers[0] > 0.9 > 0.1 > papers[1]


def test_the_template_keeps_its_promises():
    page = TEMPLATE.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>\n<html lang=")
    assert "innerHTML" not in page
    assert "Math.random" not in page
    assert len(re.findall(r"\{\{\w+\}\}", page)) == 3
