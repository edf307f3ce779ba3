"""The attention explorer: the page holds the model's weights, and in a browser its sentences and lines match them."""

import base64
import html
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from pages import data_of, press, sentence_of, wait_until

from xlmrxl_min import (
    XLMRobertaXLConfig,
    XLMRobertaXLForCausalLM,
    fill_mask,
)
from xlmrxl_min.__main__ import main
from xlmrxl_min.interpret import ablated, ablation_effects, head_means
from xlmrxl_min.interpret.explore import MAX_WEIGHTS, ablate_each_head, explore
from xlmrxl_min.interpret.page import FOLDER
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
def pair(tiny, tokenizer):
    """tiny on Article 3 in English and Russian: its attentions, and the tokens."""
    english, russian = (next(row.text for row in udhr(code) if row.article == 3) for code in ("en", "ru"))
    encoding = tokenizer(english, russian, return_tensors="pt")
    with torch.no_grad():
        attentions = tiny(**encoding, output_attentions=True).attentions
    return attentions, tokenizer.convert_ids_to_tokens(encoding.input_ids[0])


def uniform(*shape):
    return torch.full(shape, 1 / shape[-1])


# ---- the page as text


def test_the_page_holds_the_weights(pair):
    attentions, tokens = pair
    data = data_of(explore(attentions, tokens).html)
    assert data["queries"] == data["keys"] == tokens
    for layer, heads, packed in zip(attentions, data["heads"], data["layers"], strict=True):
        stored = torch.frombuffer(bytearray(base64.b64decode(packed)), dtype=torch.uint8)
        assert heads == list(range(layer.shape[1]))
        assert (stored.view(layer.shape) / 255 - layer).abs().max() <= 1 / 510 + 1e-6


def test_every_form_of_attentions(pair):
    attentions, tokens = pair
    page = explore(attentions, tokens).html
    assert explore([layer[0] for layer in attentions], tokens).html == page
    assert explore(torch.cat(attentions), tokens).html == page, "l h q k"
    assert explore(torch.stack(attentions), tokens).html == page, "l 1 h q k"
    assert explore([layer.double() for layer in attentions], tuple(tokens)).html == page
    rounded_up = torch.full((1, 1, 1), 1.0005, requires_grad=True)
    assert base64.b64decode(data_of(explore([rounded_up], ["a"]).html)["layers"][0]) == b"\xff"


def test_the_page_is_deterministic(pair):
    assert explore(*pair).html == explore(*pair).html
    assert explore(*pair)._repr_html_() == explore(*pair)._repr_html_()
    assert repr(explore(*pair)) == "Page(title='Attention')"


def test_the_page_loads_nothing(pair):
    page = explore(*pair).html
    for foreign in ("http:", "https:", "://", "src=", "<link", "@import", "url(", "fetch(", "import("):
        assert foreign not in page
    [policy] = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    assert "interpret/*.html" in (Path(__file__).parents[2] / "pyproject.toml").read_text(), "it has to be shipped"


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


def test_a_notebook_shows_the_page_in_a_frame(pair):
    page = explore(*pair, title='"quoted" & <s>')
    shown = page._repr_html_()
    form = r'<iframe srcdoc="[^"]*" sandbox="allow-scripts" title="[^"]*" style="[^"]*" onload="[^"]*"></iframe>'
    assert re.fullmatch(form, shown)
    assert html.unescape(re.search(r'srcdoc="([^"]*)"', shown)[1]) == page.html
    assert html.unescape(re.search(r' title="([^"]*)"', shown)[1]) == page.title
    heights = [
        int(re.search(r"height: (\d+)px", explore(uniform(1, 1, n, n), ["a"] * n)._repr_html_())[1])
        for n in (1, 15, 300)
    ]
    assert heights == sorted(set(heights))
    assert 400 < heights[0] < heights[-1] < 800


def test_saving_is_atomic(pair, tmp_path, monkeypatch):
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
    with pytest.raises(IsADirectoryError, match="is a folder: name a file in it"):
        page.save(tmp_path)


@pytest.mark.parametrize(
    ("attentions", "tokens", "words"),
    [
        (None, "ab", "attentions holds no weights, or None for a layer: call the model with output_attentions=True"),
        ((), "ab", "holds no weights"),
        ([None, None], "ab", "or None for a layer: call the model with output_attentions"),
        ([[[0.5]]], "a", "attentions[0] has the shape (1, 1), but weights are 1 h q k or h q k"),
        ([["a"]], "a", "attentions[0] is of type list, but must hold weights"),
        ([uniform(1, 3, 2, 2), uniform(2, 3, 2, 2)], "ab", "attentions[1] holds 2 texts, but must be of one"),
        (uniform(3, 2, 2), "ab", "attentions[0] has the shape (2, 2), but weights are 1 h q k or h q k"),
        (
            [uniform(1, 0, 2, 2)],
            "ab",
            "has the shape (1, 0, 2, 2), but weights are 1 h q k or h q k, with",
        ),
        ([uniform(3, 2, 2)], "abc", "tokens has 3 strings, but there are 2 tokens: pass one for each"),
        ([uniform(3, 2, 5)], "ab", "keys has 2 strings, but there are 5 tokens"),
        ([uniform(3, 2, 2), torch.full((3, 2, 2), torch.nan)], "ab", "attentions[1] holds nan, but"),
        ([torch.full((3, 2, 2), torch.inf)], "ab", "holds inf, but attention weights are from 0 to 1"),
        ([uniform(3, 2, 2) - 0.75], "ab", "holds -0.25, but"),
        (
            [uniform(3, 2, 2) * 2.5],
            "ab",
            "holds 1.25, but attention weights are from 0 to 1: pass the output of the softmax",
        ),
        ([uniform(3, 2, 2).long()], [1, 2], "tokens holds 1, but must be strings"),
        ([uniform(3, 2, 2)], [], "tokens has 0 strings, but there are 2"),
    ],
)
def test_wrong_weights_raise_one_sentence(attentions, tokens, words):
    tokens = list(tokens) if isinstance(tokens, str) else tokens
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        explore(attentions, tokens)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_tokens_must_be_a_list_of_strings():
    for tokens, words in (("ab", "is of type str"), (torch.tensor([1, 2]), "holds 1"), (None, "is of type NoneType")):
        with pytest.raises(ValueError, match=f"tokens {words}, but must be"):
            explore([uniform(3, 2, 2)], tokens)
    with pytest.raises(ValueError, match="keys is of type str"):
        explore([uniform(3, 2, 2)], ["a", "b"], keys="ab")


def test_a_page_has_a_maximum_size():
    layers = [torch.zeros(()).expand(1, 32, 512, 512)] * 36  # XL on its longest text
    with pytest.raises(
        ValueError,
        match=r"36 layers with 512 queries and 512 keys .* 302 MB .* 24 MB: take fewer layers .*\[:2\]\) or a",
    ):
        explore(layers, ["a"] * 512)
    with pytest.raises(ValueError, match=r"1 layers with 512 .*: take a shorter text\.$"):
        explore([torch.zeros(()).expand(1, 92, 512, 512)], ["a"] * 512)
    side = int((MAX_WEIGHTS / 24) ** 0.5)
    assert len(explore([torch.zeros(24, side, side)], ["a"] * side).html) < 1.4 * MAX_WEIGHTS


# ---- the command line


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    """Runs it in an empty folder; the exit status, what it printed, and what it complained of."""
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
    assert re.fullmatch(r"made/here\.html: 6 layers on \d\d tokens, \d+ kB\n", out)
    assert page == explore(attentions, tokens, title="Attention of tiny").html
    for text in ("人人生而自由", "one more"):  # the second over the first
        assert command(text)[0] == 0
        assert data_of((tmp_path / "attention.html").read_text(encoding="utf-8"))["queries"][
            1:-1
        ] == tokenizer.tokenize(text)


def test_attend_reports_errors_in_one_line(command, tmp_path):
    (tmp_path / "file").write_text("")
    for arguments, words in (
        ([""], "there is nothing to look at in '': give a text"),
        (["fine", "--pair", "  "], "there is nothing to look at in '  '"),
        (["freedom " * 600], "1202 tokens are too many: there is room for 256"),
        (["fine", "-o", str(tmp_path)], "is a folder: name a file in it"),
        (["fine", "-o", "file/page.html"], "file"),
        (["fine", "--model", "nowhere"], "none of what this package holds"),
    ):
        status, out, err = command(*arguments)
        assert (status, out, err.count("\n")) == (2, "", 1), err
        assert words in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# ---- the page in a browser


def query(at):
    return f"#queries button:nth-child({at + 1})"


def key(at):
    return f"#keys button:nth-child({at + 1})"


def head_button(head):
    return f"#heads button:nth-child({head + 2})"


def subject(page):
    return re.match(r"Layer \d+, .*?: (.*) attends most to ", sentence_of(page))[1]


def percent(weight):
    return int(100 * weight + 0.5)


def name(tokens, at):
    return f"{tokens[at]} ({at})" if tokens.count(tokens[at]) > 1 else tokens[at]


def ranking(weights, tokens):
    """The page's text for the five largest of these weights, made from the numbers alone."""
    best = sorted(range(len(weights)), key=lambda i: (-weights[i], i))[:5]
    first, *others = [f"{name(tokens, i)}, {percent(weights[i])}%" for i in best if percent(weights[i])]
    return first + (f"; then {'; '.join(others)}" if others else "") + "."


def stored(weights):
    return (weights.double() * 255).round() / 255


def without(weights, tokens):
    """Without <s> and </s>: their columns are 0, and each row sums to 1."""
    kept = torch.tensor([token not in ("<s>", "</s>") for token in tokens])
    weights = weights * kept
    return weights / weights.sum(-1, keepdim=True)


def certain(candidates, weights_of, tokens):
    """The candidates for which rounding to 1/255 does not change the text; weights_of: (candidate, rounding)."""
    return [
        candidate
        for candidate in candidates
        if ranking(weights_of(candidate, lambda w: w.double()).tolist(), tokens)
        == ranking(weights_of(candidate, stored).tolist(), tokens)
    ]


def middle(page, selector):
    """The vertical centre of a token in the window."""
    box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
    return page.evaluate(f"(box => box.top + box.height / 2)({box})")


def thickest(page):
    """The vertical positions in the window of the ends of the thickest line."""
    return page.evaluate(
        """(line => {
            const [place, end] = [line.getScreenCTM(), line.getTotalLength()];
            return [0, end].map(at => line.getPointAtLength(at).matrixTransform(place).y);
        })([...document.querySelectorAll('path')].sort((a, b) =>
            b.getAttribute('stroke-width') - a.getAttribute('stroke-width'))[0])"""
    )


def show_head(page, layer, head):
    press(page, "Escape", *["PageDown"] * layer)
    page.click(head_button(head))


def test_pointing_at_a_token_names_its_largest_weights(show, pair):
    attentions, tokens = pair
    page = show(explore(attentions, tokens))
    show_head(page, 2, 3)
    weights = attentions[2][0, 3]
    rows = certain(range(len(tokens)), lambda q, of: of(weights)[q], tokens)
    seen = [k for k in range(len(tokens)) if weights[:, k].max() >= 0.01]
    columns = certain(seen, lambda k, of: of(weights)[:, k], tokens)
    assert min(len(rows), len(columns)) >= 3
    for q in rows[:5]:
        page.hover(query(q))
        row = weights[q].tolist()
        assert sentence_of(page) == f"Layer 2, head 3: {name(tokens, q)} attends most to {ranking(row, tokens)}"
        labels = page.evaluate("[...document.querySelectorAll('#keys .weight')].map(weight => weight.textContent)")
        top = weights[q].topk(5).indices.tolist()
        assert labels == [f"{percent(w)}%" if k in top and percent(w) else "" for k, w in enumerate(row)]
        lines = page.evaluate("[...document.querySelectorAll('path')].map(path => path.getAttribute('d'))")
        drawn = stored(weights)[q] > stored(weights)[q].max() / 20
        assert lines == [
            f"M0 {q + 0.5}C45 {q + 0.5} 55 {k + 0.5} 100 {k + 0.5}" for k in drawn.nonzero()[:, 0].tolist()
        ]
    for k in columns[:5]:
        page.hover(key(k))
        column = ranking(weights[:, k].tolist(), tokens)
        assert sentence_of(page) == f"Layer 2, head 3: {name(tokens, k)} gets most attention from {column}"
    page.hover("h1")
    assert "the largest weight is" in sentence_of(page)


def largest_weight(weights, tokens):
    q, k = divmod(weights.argmax().item(), len(tokens))
    return f"the largest weight is {name(tokens, q)} → {name(tokens, k)}, {percent(weights.max().item())}%."


@pytest.mark.slow
def test_stepping_through_layers_and_heads(show, pair):
    attentions, tokens = pair
    page = show(explore(attentions, tokens))
    layers = torch.cat(attentions).double()
    steps = []
    for layer, head in itertools.product(range(4), range(-1, 6)):  # -1: the mean
        weights = layers[layer].mean(0) if head < 0 else layers[layer, head]
        quantised = stored(layers[layer]).mean(0) if head < 0 else stored(layers[layer, head])
        expected = largest_weight(weights, tokens)
        if expected == largest_weight(quantised, tokens) and (quantised == quantised.max()).sum() == 1:
            what = "all heads (mean)" if head < 0 else f"head {head}"
            steps.append((layer, head, f"Layer {layer}, {what}: {expected}"))
    assert len(steps) >= 12
    assert {-1, 0} <= {head for _, head, _ in steps}
    now = [0, -1]
    for step, (layer, head, expected) in enumerate(steps):
        if step % 2:  # by keys
            press(page, *["PageDown"] * (layer - now[0]))
            press(page, *["ArrowRight"] * (head - now[1]), *["ArrowLeft"] * (now[1] - head))
        else:  # by buttons
            for _ in range(layer - now[0]):
                page.click("#next")
            page.click(head_button(head))
        assert sentence_of(page) == expected
        pressed = "[...document.querySelectorAll('#heads [aria-pressed=true]')].map(b => b.textContent)"
        assert page.evaluate(pressed) == ["mean" if head < 0 else str(head)]
        assert page.evaluate("document.getElementById('layer').value") == str(layer)
        now = [layer, head]
    press(page, *["PageDown"] * 9, *["ArrowRight"] * 9)
    assert sentence_of(page).startswith("Layer 5, head 5: "), "no step beyond the last"
    assert page.evaluate("document.getElementById('next').getAttribute('aria-disabled')") == "true"
    page.click("#previous")
    press(page, "PageUp", "ArrowLeft")
    assert sentence_of(page).startswith("Layer 3, head 4: ")


@pytest.mark.slow
def test_several_queries_are_averaged_and_keys_summed(show, pair):
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
        assert sentence_of(page) == f"Layer 1, head 5: the mean of {names} attends most to {expected}"
        pressed = (
            "[...document.querySelectorAll('#queries button')].flatMap((b, i) => b.ariaPressed === 'true' ? i : [])"
        )
        assert page.evaluate(pressed) == [q, other]
        press(page, "Escape")
        assert page.evaluate(pressed) == []
        page.click(query(q))  # and by keys
        press(page, "ArrowDown", "ArrowDown", " ")
        assert sentence_of(page) == f"Layer 1, head 5: the mean of {names} attends most to {expected}"
        press(page, "Enter")
        assert sentence_of(page).startswith(f"Layer 1, head 5: {name(tokens, q)} attends most to "), "deselected"
        page.click("#clear")
        assert page.evaluate(pressed) == []
        assert "the largest weight is" in sentence_of(page)
    [(k, other), *_] = certain(pairs, lambda at, of: of(weights)[:, list(at)].sum(-1), tokens)
    page.click(query(0))
    page.click(key(k))
    page.click(key(other))
    expected = ranking(weights[:, [k, other]].sum(-1).tolist(), tokens)
    names = f"{name(tokens, k)}, {name(tokens, other)}"
    assert sentence_of(page) == f"Layer 1, head 5: {names} together get most attention from {expected}"


@pytest.mark.slow
def test_precedence_of_pointer_selection_and_focus(show, pair):
    attentions, tokens = pair
    page = show(explore(attentions, tokens))
    press(page, "ArrowDown", "ArrowDown")
    assert subject(page) == "▁E"
    page.hover(query(4))
    assert subject(page) == "ne", "the pointer takes precedence over the focus"
    press(page, "ArrowDown")
    assert subject(page) == "ver", "but a resting pointer does not"
    press(page, "Escape")
    assert "the largest weight is" in sentence_of(page)
    page.click(query(2))
    page.click(query(4))
    box = page.locator(query(4)).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 + 2, box["y"] + box["height"] / 2 + 2)
    assert subject(page) == "the mean of ver, ne", "also after a small movement"
    page.hover(query(1))
    assert subject(page) == "▁E", "another token is shown while the pointer is on it"
    page.hover("h1")
    assert subject(page) == "the mean of ver, ne"


@pytest.mark.slow
def test_without_special_tokens_rows_are_renormalised(show, pair):
    attentions, tokens = pair
    page = show(explore(attentions, tokens))
    show_head(page, 0, 1)
    page.hover(query(tokens.index("▁right")))
    before = sentence_of(page)
    page.click("#filter")
    assert page.evaluate("!document.getElementById('filter-note').hidden")
    for column in ("queries", "keys"):
        seen = f"[...document.querySelectorAll('#{column} button:not([hidden]) bdi')].map(name => name.textContent)"
        assert page.evaluate(seen) == [token for token in tokens if token not in ("<s>", "</s>")]
    weights = attentions[0][0, 1]
    candidates = [q for q, token in enumerate(tokens) if token not in ("<s>", "</s>")]
    rows = certain(candidates, lambda q, of: without(of(weights), tokens)[q], tokens)
    changed = 0
    for q in [tokens.index("▁right"), *rows][:6]:
        expected = ranking(without(stored(weights), tokens)[q].tolist(), tokens)
        page.hover(query(q))
        assert sentence_of(page) == f"Layer 0, head 1: {name(tokens, q)} attends most to {expected}"
        changed += expected != ranking(stored(weights)[q].tolist(), tokens)
        strongest = without(stored(weights), tokens)[q].argmax().item()
        assert [middle(page, query(q)), middle(page, key(strongest))] == pytest.approx(thickest(page), abs=1)
    assert len(rows) >= 3
    assert changed >= 3, "the option makes a difference"
    page.click("#filter")
    page.hover(query(tokens.index("▁right")))
    assert sentence_of(page) == before


@pytest.mark.slow
def test_rows_with_little_attention_left_are_not_renormalised(show):
    weights = torch.tensor([[[0.25, 0.75], [0.98, 0.02]]])
    page = show(explore([weights], ["<s>", "a"]))
    page.click("#filter")
    page.hover(query(1))
    assert sentence_of(page) == "Layer 0, all heads (mean): a: under 5% of the attention is left."


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
    page.hover(query(1))
    assert sentence_of(page).startswith(f"Layer 0, all heads (mean): {HOSTILE[1]} (1) attends most to <s>, 6%; then ")
    assert page.evaluate("document.title") == page.evaluate("document.querySelector('h1').textContent") == HOSTILE[1]
    assert page.evaluate("document.querySelectorAll('img, main script').length") == 0
    arabic = HOSTILE.index("▁جميع")
    assert page.evaluate(f"getComputedStyle(document.querySelectorAll('#keys bdi')[{arabic}]).direction") == "rtl"


@pytest.mark.slow
def test_the_page_works_in_a_frame(open_page, pair, tmp_path):
    attentions, tokens = pair
    frame_html = explore(attentions, tokens)._repr_html_()
    (tmp_path / "notebook.html").write_text(f"<!doctype html><p>before</p>{frame_html}<p>after</p>", encoding="utf-8")
    frame = open_page(tmp_path / "notebook.html").frames[1]
    weights = torch.cat(attentions)[0]
    [q, *_] = certain(range(len(tokens)), lambda q, of: of(weights).mean(0)[q], tokens)
    frame.hover(query(q))
    expected = ranking(weights.mean(0)[q].tolist(), tokens)
    assert sentence_of(frame) == f"Layer 0, all heads (mean): {name(tokens, q)} attends most to {expected}"
    assert frame.evaluate("self.origin") == "null", "no access to the page around it"


@pytest.mark.slow
@pytest.mark.parametrize(("queries", "width"), [(12, 1200), (90, 1200), (90, 480)])
def test_lines_end_at_their_tokens(show, queries, width):
    """In short and long texts, scrolled or not, with fewer keys than queries."""
    keys = queries - 5
    weights = torch.nn.functional.one_hot(torch.arange(queries) * 7 % keys, keys)[None].float()  # one key for each
    page = show(
        explore([weights], [f"q{i}" for i in range(queries)], keys=[f"k{i}" for i in range(keys)]),
        viewport={"width": width, "height": 900},
    )
    assert page.evaluate("document.querySelectorAll('path').length") == (queries if queries <= 64 else 0)
    assert ("With 90 tokens, lines are shown for those you point at" in sentence_of(page)) == (queries > 64)
    for q in (1, queries - 2):
        page.hover(query(q))
        assert sentence_of(page) == f"Layer 0, all heads (mean): q{q} attends most to k{7 * q % keys}, 100%."
        ends = [middle(page, query(q)), middle(page, key(7 * q % keys))]
        assert thickest(page) == pytest.approx(ends, abs=1)
        assert page.evaluate("document.querySelectorAll('path').length") == 1
    if queries > 64:
        there = page.evaluate("document.getElementById('links').scrollTop")
        assert there > 0
        page.click(query(q))
        page.hover(".above")  # between the columns
        page.mouse.wheel(0, -300)
        at_rest = "new Promise(done => setTimeout(() => done(links.scrollTop === now), 100))"
        wait_until(
            page,
            "(() => { const links = document.getElementById('links'), now = links.scrollTop;"
            f" return now < {there} && {at_rest}; }})()",
        )
        assert thickest(page) == pytest.approx([middle(page, query(q)), middle(page, key(7 * q % keys))], abs=1)


NAMES_OF_HEADS = "[...document.querySelectorAll('#heads button')].map(button => button.textContent)"


@pytest.mark.slow
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
    heads = [layer.attention.heads for layer in model.backbone.layers]
    own = show(explore(out.attentions, tokens, heads=heads))
    assert own.evaluate(NAMES_OF_HEADS) == ["mean", "0", "1", "2", "3"]
    for steps, seen in ((4, 3), (1, 1), (3, 3)):  # to head 3, 0 and 2 of layer 0; 0 and 2 are pruned in layer 1
        press(own, "PageUp", *["ArrowLeft"] * 9, *["ArrowRight"] * steps)
        assert sentence_of(own).startswith(f"Layer 0, head {steps - 1}: ")
        press(own, "PageDown")
        assert sentence_of(own).startswith(f"Layer 1, head {seen}: ")
    assert own.evaluate(NAMES_OF_HEADS) == ["mean", "1", "3"]
    with pytest.raises(ValueError, match="some are pruned: pass heads="):
        explore(out.attentions, tokens)
    cross = show(explore(out.cross_attentions, tokens, keys=keys))
    weights = out.cross_attentions[0][0].mean(0)
    [q, *_] = certain(range(len(tokens)), lambda q, of: of(out.cross_attentions[0][0]).mean(0)[q], keys)
    cross.hover(query(q))
    expected = ranking(weights[q].tolist(), keys)
    assert sentence_of(cross) == f"Layer 0, all heads (mean): {name(tokens, q)} attends most to {expected}"


@pytest.mark.slow
def test_keyboard_navigation(show, pair):
    page = show(explore(*pair))
    focus = "(e => e.id || e.parentElement.id || e.tagName)(document.activeElement)"
    stops = []
    while len(stops) < 12:
        press(page, "Tab")
        stops.append(page.evaluate(focus))
        if stops[-1] == "keys":
            break
    assert stops == ["layer", "previous", "next", "all", "filter", "clear", "heads", "queries", "keys"], (
        "each column is one tab stop"
    )
    assert sentence_of(page).startswith("Layer 0, all heads (mean): <s> gets most attention from ")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    name = "control.ariaLabel || (control.labels?.length ? control.labels[0] : control).innerText.trim()"
    names = page.evaluate(f"[...document.querySelectorAll('button, select, input')].map(control => {name})")
    assert len(names) == 3 + 2 + 2 + 7 + 2 * len(pair[1])
    assert all(names)
    assert page.evaluate("document.getElementById('sentence').ariaLive") == "polite"


@pytest.mark.slow
def test_contrast_in_light_and_dark(show, pair):
    """The contrast of text and background is WCAG's 4.5 to 1 or more in both."""

    def light(colour):
        channels = [int(channel) / 255 for channel in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    papers = []
    for scheme in ("light", "dark"):
        page = show(explore(*pair), color_scheme=scheme)
        page.hover(query(3))
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        for text in ("h1", "#sentence", ".faint bdi", ".position", "footer", "#heads [aria-pressed=false]"):
            colour = page.evaluate(f"getComputedStyle(document.querySelector('{text}')).color")
            low, high = sorted((light(colour), light(paper)))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (scheme, colour, paper)
        papers.append(light(paper))
    assert papers[0] > 0.9 > 0.1 > papers[1]


# ---- all heads at once, a start, and ablation


@pytest.fixture(scope="module")
def masked(tiny, tokenizer):
    """A text with a mask: its attentions and tokens, and the prediction without each head."""
    inputs = tokenizer("The capital of France is <mask>.", return_tensors="pt")
    texts = [tokenizer(row.text).input_ids for row in itertools.islice(udhr("en"), 4)]
    means = head_means(tiny, texts)
    with torch.no_grad():
        attentions = tiny(**inputs, output_attentions=True).attentions
    ablation = ablate_each_head(tiny, tokenizer, inputs, means, progress=False)
    return attentions, tokenizer.convert_ids_to_tokens(inputs.input_ids[0]), ablation, inputs, means


def test_ablation_is_that_of_the_interventions(tiny, tokenizer, masked):
    _, tokens, ablation, inputs, means = masked
    assert tokens[ablation.position] == "<mask>"
    assert ablation.before[0] == (ablation.target, pytest.approx(ablation.probability))
    target = tokenizer.convert_tokens_to_ids(ablation.target)

    def score(output):
        return output.logits[0, ablation.position].log_softmax(-1)[target]

    effects = ablation_effects(tiny, inputs, score, means, progress=False)
    torch.testing.assert_close(torch.tensor(ablation.costs), -effects, atol=1e-5, rtol=0)
    with torch.no_grad(), ablated(tiny, {2: [3]}, means):
        [[best, *_]] = fill_mask(tiny, tokenizer, "The capital of France is <mask>.")
    assert ablation.after[2][3][0] == (tokenizer.convert_ids_to_tokens(best.token_id), pytest.approx(best.probability))
    zeros = ablate_each_head(tiny, tokenizer, inputs, position=1, target="▁la", progress=False)
    assert (zeros.position, zeros.target, zeros.by) == (1, "▁la", "zeros")


def test_ablation_and_start_take_up_little_room(masked):
    attentions, tokens, ablation, *_ = masked
    plain, full = explore(attentions, tokens).html, explore(attentions, tokens, ablation=ablation).html
    assert len(full) - len(plain) < 5_000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layer": 6}, "layer=6 is impossible: it must be an integer from 0 to 5"),
        ({"layer": 1, "head": 6}, "head=6 is unknown: take one of 0, 1, 2, 3, 4, 5"),
        ({"token": "nowhere"}, "token='nowhere' is unknown: take one of '<s>', "),
        ({"token": 99}, "token=99 is impossible"),
        ({"ablation": "all"}, "ablation is of type str, but must be what ablate_each_head returns"),
    ],
)
def test_a_start_that_does_not_exist_raises(masked, options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        explore(*masked[:2], **options)


def test_ablation_of_another_model_or_text_raises(tiny, tokenizer, masked):
    attentions, tokens, ablation, *_ = masked
    with pytest.raises(ValueError, match="ablation is of another model or text"):
        explore(attentions[:2], tokens, ablation=ablation)
    no_mask = tokenizer("No mask.", return_tensors="pt")
    with pytest.raises(ValueError, match="the text has no <mask>: put one in, or pass the position of a token"):
        ablate_each_head(tiny, tokenizer, no_mask, progress=False)
    two = tokenizer(["a <mask>", "b <mask>"], return_tensors="pt")
    with pytest.raises(ValueError, match="inputs holds 2 texts, but must hold one"):
        ablate_each_head(tiny, tokenizer, two, progress=False)
    one = tokenizer("a <mask>", return_tensors="pt")
    with pytest.raises(ValueError, match="target='nowhere' is no token of this vocabulary: pass one of"):
        ablate_each_head(tiny, tokenizer, one, target="nowhere", progress=False)


def test_the_start_is_shown(show, masked):
    attentions, tokens, *_ = masked
    page = show(explore(attentions, tokens, layer=2, head=3, token="<mask>"))
    assert sentence_of(page).startswith("Layer 2, head 3: <mask> attends most to ")
    assert page.evaluate("document.querySelector('#queries [aria-pressed=true]').textContent").endswith("<mask>")
    assert page.is_hidden("#ablate")
    phone = show(explore(attentions, tokens, layer=2, head=5), viewport={"width": 360, "height": 760})
    box = phone.locator(head_button(5)).bounding_box()
    assert 0 <= box["x"] <= 360 - box["width"], "the chosen head is in sight"


SHOWN = "[...document.querySelectorAll('#change dl')].map(list => [...list.children].map(part => part.textContent))"


def test_a_head_is_ablated(show, masked):
    attentions, tokens, ablation, *_ = masked
    page = show(explore(attentions, tokens, layer=1, head=2, ablation=ablation))
    assert page.is_hidden("#change")
    page.click("#ablate")
    for layer, head in ((1, 2), (1, 3), (2, 3)):
        expected = [[part for word, p in predictions for part in (word, "", percents(p))]
                    for predictions in (ablation.before, ablation.after[layer][head])]  # fmt: skip
        assert page.evaluate(SHOWN) == expected
        assert f"({signed(ablation.costs[layer][head])} nats)" in sentence_of(page)
        press(page, "ArrowRight" if (layer, head) == (1, 2) else "PageDown")
    page.click(head_button(-1))
    assert page.is_hidden("#change")
    assert sentence_of(page).endswith("Choose one head to ablate it.")


def percents(probability):
    return f"{100 * round(probability, 4):.1f}%" if round(probability, 4) >= 0.0005 else "under 0.1%"


def signed(number):
    return ("−" if number < 0 else "+") + f"{abs(round(number, 4)):.2f}"


@pytest.mark.parametrize("width", [1200, 360])
def test_all_heads_at_once(show, masked, width):
    attentions, tokens, ablation, *_ = masked
    page = show(explore(attentions, tokens, ablation=ablation), viewport={"width": width, "height": 760})
    page.focus("#all")
    press(page, "Enter")
    shown = page.evaluate("[...document.querySelectorAll('#overview button .cost')].map(cost => cost.textContent)")
    assert shown == [signed(cost) for layer in ablation.costs for cost in layer]
    assert page.evaluate("document.documentElement.scrollWidth") == width, "nothing is beside the page"
    assert sentence_of(page).startswith("All 36 heads: ")
    page.focus("#overview button")
    press(page, "ArrowDown", "ArrowDown", "ArrowRight", "ArrowLeft", "ArrowRight")
    assert page.evaluate("document.activeElement.ariaLabel").startswith("layer 2, head 1, costs ")
    expected = largest_weight(stored(attentions[2][0, 1].double()), tokens)
    assert sentence_of(page).startswith(f"Layer 2, head 1: {expected} Without this head, ")
    press(page, "Enter")
    assert page.is_hidden("#overview")
    assert sentence_of(page) == f"Layer 2, head 1: {expected}"
    page.click("#all")
    press(page, "Escape")
    assert page.is_hidden("#overview")
    page.click("#all")
    page.click("[aria-label^='layer 4, head 5']")
    assert sentence_of(page).startswith("Layer 4, head 5: ")


def test_the_frame_follows_the_theme_of_jupyterlab(open_page, masked, tmp_path):
    frame = explore(*masked[:2])._repr_html_()
    (tmp_path / "lab.html").write_text(f'<!doctype html><body data-jp-theme-light="false">{frame}', encoding="utf-8")
    page = open_page(tmp_path / "lab.html")
    dark = "document.documentElement.style.colorScheme === '{}'"
    wait_until(page.frames[1], dark.format("dark"))
    page.evaluate("document.body.dataset.jpThemeLight = 'true'")
    wait_until(page.frames[1], dark.format("light"))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.html")), ids=lambda path: path.stem)
def test_the_templates_are_safe(path):
    page = path.read_text(encoding="utf-8")
    assert "innerHTML" not in page
    assert "Math.random" not in page
    assert set(re.findall(r"\{\{(\w+)\}\}", page)) <= {"title", "data", "style", "body", "script"}
    assert path.stem == "page" or "{{data}}" not in page
