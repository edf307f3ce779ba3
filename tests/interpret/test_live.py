"""The interactive pages of the course, in a browser: their numbers are those of the library."""

import math
import re

import pytest
import torch
from pages import data_of, press, sentence_of

from xlmrxl_min import XLMRobertaTokenizer, XLMRobertaXLForCausalLM, fill_mask
from xlmrxl_min.inference.generation import warp_logits
from xlmrxl_min.interpret import logit_lens
from xlmrxl_min.interpret.live import TEMPERATURES, TOP_PS, lens, live, mask_painter, sample_all, sampler
from xlmrxl_min.model import mask_to_bias
from xlmrxl_min.training.texts import udhr


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
    assert data_of(page.html)["masked"] == [[False] * 4 + [True] * 2] * 2
    assert data_of(page.html)["keys"] == TOKENS


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


# ---- notebook 00: a sentence

SENTENCES = ["The capital of France is <mask>.", "Jeder hat das Recht auf Leben.", "كل إنسان له الحق في الحياة."]
UNUSUAL = [
    "",
    " ",
    "a  b\u00a0c\t\nd",
    "<mask>",
    "one<mask> two",
    " <mask> <s>three</s>",
    "🦕🦕 🦕 中🦕",
    "ﬁne ½ ① Ａ１ tie～tie",
    "e\u0301 e\u0302\u0301 e\u0323\u0302 \u1e9b\u0323",  # letters and accents apart
    "\u0634\u063a\u0651\u0650\u0644 \u0634\u063a\u0650\u0651\u0644",  # marks in both orders
    "\u1112\u1161\u11ab\u1100\u116e\u11a8",  # Hangul letter by letter
    "\u0958\u0915\u093c",
    "▁under▁line\u200bnothing\ufeff",
    "\x01control\x7f",
    "x" * 300,
    '</script><script>window.hacked = 1</script>"',
]


@pytest.fixture(scope="module")
def sentences(tiny, tokenizer):
    return live(tiny, tokenizer, SENTENCES, layer=2)


def test_the_page_segments_as_the_tokenizer(show, sentences, tokenizer):
    texts = UNUSUAL + [row.text for row in udhr()[::3]]  # in fifty languages
    page = show(sentences)
    page.wait_for_selector("#tokens button")
    assert page.evaluate("texts => texts.map(tokenize)", texts) == [tokenizer(text).input_ids for text in texts]


def chip(at):
    return f"#tokens button:nth-child({at + 1})"


@each_view
def test_a_sentence_is_typed_masked_and_attended_to(show, sentences, tiny, tokenizer, scheme, width):
    page = show(sentences, **view(scheme, width))
    page.wait_for_selector("#tokens button")
    assert_accessible(page)
    for sentence in SENTENCES[:2]:
        page.select_option("#choice", label=sentence)
        inputs = tokenizer(sentence, return_tensors="pt")
        tokens = tokenizer.convert_ids_to_tokens(inputs.input_ids[0])
        assert page.input_value("#text") == sentence
        assert page.evaluate("[...document.querySelectorAll('#tokens bdi')].map(chip => chip.textContent)") == tokens
        at = tokens.index("<mask>") if "<mask>" in tokens else 3
        page.click(chip(at))
        masked = tokenizer.convert_ids_to_tokens(inputs.input_ids[0].tolist())
        masked[at] = "<mask>"
        ids = torch.tensor([tokenizer.convert_tokens_to_ids(masked)])
        with torch.no_grad():
            best = tiny(ids).logits[0, at].softmax(-1).topk(5)
            weights = tiny(**inputs, output_attentions=True).attentions
        shown = page.evaluate("[...document.querySelectorAll('#predictions dt')].map(token => token.textContent)")
        assert shown == tokenizer.convert_ids_to_tokens(best.indices)
        for layer, head in ((2, "mean"), (4, "5")):
            page.select_option("#layer", str(layer))
            page.select_option("#head", label=head)
            row = weights[layer][0, :, at].mean(0) if head == "mean" else weights[layer][0, int(head), at]
            shown = page.evaluate(
                "[...document.querySelectorAll('#tokens button')].map(chip => +chip.style.getPropertyValue('--weight'))"
            )
            torch.testing.assert_close(torch.tensor(shown), row, atol=1 / 400, rtol=0)
            top = row.argmax().item()
            if row.topk(2).values.diff().abs() > 1 / 100:
                assert sentence_of(page).startswith(f"{tokens[at]} ({at}) attends most to {tokens[top]} ({top}), ")
        page.select_option("#layer", "2")
    page.focus(chip(3))
    press(page, "ArrowRight", "ArrowRight", "ArrowLeft")
    assert sentence_of(page).startswith(f"{tokens[4]} (4) attends most to ")
    press(page, *["ArrowLeft"] * 4)
    assert "is never predicted" in page.text_content("#predictions")
    page.fill("#text", "Grüße 🦕")
    assert page.is_hidden("#answers")
    assert "1 of them is <unk>" in sentence_of(page)
    assert page.input_value("#choice") == ""
    page.fill("#text", SENTENCES[0])
    assert page.is_visible("#answers")
    [[best, *_]] = fill_mask(tiny, tokenizer, SENTENCES[0])
    token = tokenizer.convert_ids_to_tokens(best.token_id)
    assert sentence_of(page).endswith(f"the model predicts {token}, {round(100 * best.probability)}%.")


def test_sentences_take_up_little_room(sentences, tiny, tokenizer):
    assert len(sentences._repr_html_()) < 150_000
    assert live(tiny, tokenizer, SENTENCES, layer=2).html == sentences.html


def test_impossible_sentences_raise(tiny, tokenizer):
    for options, words in (
        ({"sentences": []}, "sentences has no text"),
        ({"sentences": ["word " * 70]}, "72 tokens are too many for this page: take a text of at most 64"),
        ({"sentences": SENTENCES, "layer": 6}, "layer=6 is impossible"),
        ({"sentences": SENTENCES, "head": 6}, "head=6 is unknown"),
        ({"sentences": SENTENCES, "top_k": 0}, "top_k=0 is impossible"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            live(tiny, tokenizer, **options)
    more = XLMRobertaTokenizer.from_pretrained("tiny")
    more.add_tokens("<new>")
    with pytest.raises(ValueError, match=r"the tokenizer has 12003 tokens, but the model"):
        live(tiny, more, SENTENCES)


# ---- notebook 05: the logit lens


@each_view
def test_the_lens_shows_each_layer(show, tiny, tokenizer, scheme, width):
    inputs = tokenizer(SENTENCES[0], return_tensors="pt")
    tokens = tokenizer.convert_ids_to_tokens(inputs.input_ids[0])
    expected = logit_lens(tiny, inputs.input_ids, torch.ones_like(inputs.input_ids) == 1)
    page = show(lens(tiny, tokenizer, SENTENCES[0]), **view(scheme, width))
    assert_accessible(page)
    shown = page.evaluate("[...document.querySelectorAll('td bdi')].map(cell => cell.textContent)")
    assert shown == tokenizer.convert_ids_to_tokens(expected.top_ids.flatten())
    weights = page.evaluate(
        "[...document.querySelectorAll('td button')].map(cell => +cell.style.getPropertyValue('--weight'))"
    )
    last = torch.tensor(weights).view(len(expected.top_ids), -1)[-1]
    torch.testing.assert_close(last, expected.probability[-1], atol=1e-4, rtol=0)
    torch.testing.assert_close(
        torch.tensor(data_of(lens(tiny, tokenizer, SENTENCES[0]).html)["final"]),
        expected.probability,
        atol=1e-4,
        rtol=0,
    )
    at = tokens.index("<mask>")
    own = tokenizer.convert_ids_to_tokens(expected.top_ids[-1, at])
    end = f"{100 * expected.probability[-1, at]:.0f}%"
    assert sentence_of(page) == f"After the last layer, at position {at} (<mask>), the model predicts {own}, {end}."
    page.focus("tbody tr:last-child td:nth-child(2) button")
    page.hover(f"tbody tr:nth-child(3) td:nth-child({at + 2}) button")
    first = tokenizer.convert_ids_to_tokens(expected.top_ids[2, at])
    assert sentence_of(page).startswith(f"After layer 1, at position {at} (<mask>), the lens predicts {first}, ")
    assert len(page.query_selector_all("#details dl:first-of-type dt")) == 5 + len(expected.top_ids)
    press(page, *["ArrowUp"] * 9)
    assert sentence_of(page).startswith("From the embeddings, at position 0 (<s>), the lens predicts ")


def test_impossible_texts_for_the_lens_raise(tiny, tokenizer):
    with pytest.raises(ValueError, match="text is of type list, but must be a text, a str"):
        lens(tiny, tokenizer, ["a"])
    with pytest.raises(ValueError, match="tokens are too many for this page"):
        lens(tiny, tokenizer, "word " * 70)
    with pytest.raises(ValueError, match="this needs an XLMRobertaXLForMaskedLM, but the model is of class"):
        lens(tiny.backbone, tokenizer, "a")


# ---- notebook 08: sampling

PROMPTS = ["And the king said", "Der König"]


@pytest.fixture(scope="module")
def decoder():
    return XLMRobertaXLForCausalLM.from_pretrained("tiny-decoder")


@pytest.fixture(scope="module")
def decoder_tokenizer():
    return XLMRobertaTokenizer.from_pretrained("tiny-decoder")


@pytest.fixture(scope="module")
def samples(decoder, decoder_tokenizer):
    return sampler(decoder, decoder_tokenizer, PROMPTS, new_tokens=6)


@each_view
def test_sliders_change_the_distribution_and_the_texts(show, samples, decoder, decoder_tokenizer, scheme, width):
    page = show(samples, **view(scheme, width))
    assert_accessible(page)

    def assert_shown(number, temperature, top_p):
        ids = torch.tensor([decoder_tokenizer.encode(PROMPTS[number])[:-1]])
        with torch.no_grad():
            logits = decoder(ids, use_cache=False).logits[0, -1]
        expected, best = warp_logits(logits, temperature, None, top_p).softmax(-1), logits.topk(12).indices
        widths = page.evaluate(
            "[...document.querySelectorAll('.track')].map(bar => +bar.style.getPropertyValue('--p'))"
        )
        torch.testing.assert_close(torch.tensor(widths).float(), expected[best], atol=1e-4, rtol=0)
        values = page.evaluate("[...document.querySelectorAll('dd:not(.track)')].map(value => value.textContent)")
        possible = int((expected > 0).sum())
        assert values.count("cut off") == max(0, 12 - possible)
        start = f"Temperature {temperature:.2f}, top-p {top_p:.2f}: {possible:,} of {len(decoder_tokenizer):,} tokens"
        assert sentence_of(page).startswith(start)
        place = TEMPERATURES.index(temperature) * len(TOP_PS) + TOP_PS.index(top_p)
        texts = page.evaluate("[...document.querySelectorAll('#texts li')].map(text => text.textContent)")
        prompt = data_of(samples.html)["prompts"][number]
        assert texts == [prompt["text"] + text for text in prompt["texts"][place]]

    assert_shown(0, 1.0, 1.0)
    page.focus("#temperature")
    press(page, "ArrowRight")
    assert_shown(0, 1.25, 1.0)
    page.focus("#topP")
    press(page, "ArrowLeft", "ArrowLeft")
    assert_shown(0, 1.25, 0.9)
    page.select_option("#prompt", label=f"{PROMPTS[1]} …")
    assert_shown(1, 1.25, 0.9)
    page.focus("#temperature")
    press(page, "Home")
    page.focus("#topP")
    press(page, "Home")
    assert_shown(1, 0.25, 0.25)


def test_sampled_tokens_are_possible_and_nearly_greedy_at_the_lowest_settings(decoder, decoder_tokenizer):
    ids = torch.tensor([decoder_tokenizer.encode(PROMPTS[0])[:-1]])
    settings = [(t, p) for t in TEMPERATURES for p in TOP_PS] * 2
    rows = sample_all(decoder, decoder_tokenizer, ids, 5, 2, 0)
    assert len(rows) == len(settings)
    for (temperature, top_p), row in list(zip(settings, rows, strict=True))[::13]:
        for i, token in enumerate(row):
            before = torch.cat([ids, torch.tensor([row[:i]], dtype=torch.long)], 1)
            with torch.no_grad():
                logits = decoder(before, use_cache=False).logits[0, -1]
            assert warp_logits(logits, temperature, None, top_p + 1e-4 * (top_p < 1))[token] > -math.inf
    greedy = decoder.generate(ids, max_new_tokens=1)[0, -1].item()
    assert rows[0][0] == greedy, "with temperature and top-p of 0.25"
    assert len({tuple(row) for row in rows}) > 10


def test_random_numbers_choose_as_often_as_the_probabilities_say(decoder, decoder_tokenizer):
    ids, count = torch.tensor([decoder_tokenizer.encode(PROMPTS[0])[:-1]]), len(TEMPERATURES) * len(TOP_PS)
    rows = sample_all(decoder, decoder_tokenizer, ids, 1, 60, 1)
    place = TEMPERATURES.index(1.0) * len(TOP_PS) + TOP_PS.index(0.75)
    with torch.no_grad():
        expected = warp_logits(decoder(ids, use_cache=False).logits[0, -1], top_p=0.75).softmax(-1)
    first = torch.tensor([row[0] if row else decoder_tokenizer.eos_token_id for row in rows[place::count]])
    best = int(expected.argmax())
    assert (first == best).float().mean().item() == pytest.approx(expected[best].item(), abs=0.15)


def test_samples_take_up_little_room(samples, decoder, decoder_tokenizer):
    assert len(samples._repr_html_()) < 100_000
    assert sampler(decoder, decoder_tokenizer, PROMPTS, new_tokens=6).html == samples.html


def test_impossible_prompts_raise(tiny, tokenizer, decoder, decoder_tokenizer):
    for options, words in (
        ({"prompts": []}, "prompts has no text"),
        ({"prompts": ["word " * 70]}, "tokens are too many for this page: take a text of at most 64"),
        ({"new_tokens": 0}, "new_tokens=0 is impossible"),
        ({"texts": 0}, "texts=0 is impossible"),
        ({"top_k": 0}, "top_k=0 is impossible"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            sampler(decoder, decoder_tokenizer, **{"prompts": PROMPTS, **options})
    with pytest.raises(ValueError, match="this needs an XLMRobertaXLForCausalLM, but the model is of class"):
        sampler(tiny, tokenizer, PROMPTS)


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
