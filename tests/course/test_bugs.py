"""The planted bugs of notebook 12: each does what the notebook says, and nothing else is wrong with the model."""

import inspect
import json
import re
from html import unescape
from pathlib import Path

import pytest
import torch

from xlmrxl_min import XLMRobertaTokenizer
from xlmrxl_min.course import bugs
from xlmrxl_min.course.checks import guess
from xlmrxl_min.course.exercises import spot_the_bug

CELLS = json.loads((Path(__file__).parents[2] / "notebooks" / "12_spot_the_bug.ipynb").read_text("utf-8"))["cells"]
IDS = torch.tensor([[0, 14, 75, 300, 7001, 512, 77, 9, 2]])
PADDED = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])  # an attention_mask

each_case = pytest.mark.parametrize("letter", sorted(bugs.CASES))


def test_unknown_case_raises():
    with pytest.raises(ValueError, match="there is no case 'Z': the cases are A, B"):
        bugs.buggy("Z")


@each_case
def test_answer_shows_the_part_and_the_wrong_lines(letter):
    case, answer = bugs.CASES[letter], bugs.Answer(letter.lower())
    html, code = answer._repr_html_(), inspect.getsource(case.code)
    assert html.startswith(f"<details><summary>Show where bug {letter} is</summary>")
    assert f"{letter}: {case.part}." in answer.drawing.caption
    assert f'alt="{answer.drawing.caption}"' in html
    assert case.why in unescape(html)
    marked = [unescape(line) for line in re.findall(r"<b style=[^>]*>(.*?)</b>", html)]
    assert 1 <= len(marked) <= 2
    assert all(line in code.splitlines() for line in marked)
    assert repr(answer).endswith(code.rstrip())


def test_answer_compares_the_guess():
    assert bugs.Answer("B", guess("Which?", "Mask")).text.startswith("You said Mask; it is mask. Right! The model, ")
    assert bugs.Answer("B", guess("Which?", "loss")).text.startswith("You said loss; it is mask. ")
    assert bugs.Answer("B", guess("Which?")).text == bugs.Answer("B").text


@each_case
def test_notebook_has_symptom_test_answer_and_story(letter):
    """In this order; what gives the answer away is folded."""
    texts = ["".join(cell["source"]) for cell in CELLS]
    found = [re.search(f"^## (?:Optional: )?{letter}: ", text, flags=re.MULTILINE) for text in texts]
    i, heading = next((i, match) for i, match in enumerate(found) if match)
    question = re.sub(r"<details>.*?</details>", "", texts[i][heading.start() :], flags=re.DOTALL)
    assert f"**Your test.** `test_{letter.lower()}(" in question or letter == "E"
    assert letter in "DEJKL" or bugs.CASES[letter].part not in question, "there the symptom is in one part"
    assert any("image/png" in output.get("data", {}) for output in CELLS[i + 1]["outputs"])
    assert f'Answer("{letter}", guess(' in texts[i + 2]
    after = i + 3 if CELLS[i + 3]["cell_type"] == "markdown" else i + 4
    story = texts[after].split("</details>")[0]
    assert story.startswith(f"<details><summary>Our test, and the origin of bug {letter}</summary>")
    assert "https://github.com/" in story, "where it really happened"


@pytest.mark.parametrize("letter", "ABCEFGHI")
def test_which_tests_find_which_bugs(letter):
    """What the last exercise says."""
    model, ids = bugs.buggy(letter), torch.arange(100, 112)[None]
    with torch.no_grad():
        found = {name for name in "abcf" if not getattr(spot_the_bug, f"test_{name}").solution(model, ids)}
    assert found == {"A": {"a", "b", "c"}, "B": {"b"}, "C": {"c"}, "F": {"f"}}.get(letter, set())


def logits(model, ids=IDS, **inputs):
    torch.manual_seed(0)
    with torch.no_grad():
        return model(ids, **inputs).logits


def padded_logits(model):
    return logits(model, IDS.expand(2, -1), attention_mask=PADDED)[:, :6]


def pruned_logits(model):
    model.prune_heads({0: [1, 3, 5]})
    return logits(model)


def chunked_logits(model):
    first = model(IDS[:, :4])
    return torch.cat([first.logits, model(IDS[:, 4:], past_key_values=first.past_key_values).logits], dim=1)


def loss(model):
    return model(IDS, labels=IDS).loss


SYMPTOMS = {
    "A": logits, "B": padded_logits, "C": logits, "E": logits, "F": logits, "I": pruned_logits, "J": loss,
    "K": chunked_logits,
}  # fmt: skip
CORRECT = {"J": bugs.tiny_decoder, "K": bugs.tiny_relative_decoder}


@pytest.mark.parametrize("letter", SYMPTOMS)
def test_the_buggy_class_alone_is_wrong(letter):
    """With the original class given back to its modules, the same weights give the correct answer."""
    symptom, correct = SYMPTOMS[letter], CORRECT.get(letter, bugs.tiny)().eval()
    model = bugs.buggy(letter)
    assert type(model).__name__ == type(correct).__name__
    expected = symptom(correct)
    assert (symptom(bugs.buggy(letter)) - expected).abs().max() > 1e-3
    for module in model.modules():
        if type(module).__module__ == bugs.__name__:  # its classes: disguised, buggy, original
            module.__class__ = type(module).__mro__[2]
    torch.testing.assert_close(symptom(model), expected, atol=1e-4, rtol=0)


def test_printing_a_model_does_not_show_the_bug():
    for letter in SYMPTOMS:
        names = {type(module).__name__ for module in bugs.buggy(letter).modules()}
        assert not names & {case.code.__name__ for case in bugs.CASES.values()}
    assert type(bugs.buggy("D")[1]).__name__ == "XLMRobertaTokenizer"


def test_d_has_another_mask_id_and_nothing_else():
    model, tokenizer = bugs.buggy("D")
    correct = XLMRobertaTokenizer.from_pretrained("tiny")
    assert tokenizer.mask_token_id == correct.mask_token_id + 3 < model.config.vocab_size
    assert tokenizer.encode("a<s>b") == correct.encode("a<s>b")
    torch.testing.assert_close(logits(model)[..., :12002], logits(bugs.tiny().eval()))


def test_g_has_the_two_norms_of_each_layer_swapped():
    model, correct = bugs.buggy("G"), bugs.tiny().eval()
    assert (logits(model) - logits(correct)).abs().max() > 1
    for layer in model.backbone.layers:
        layer.attention.norm, layer.feed_forward.norm = layer.feed_forward.norm, layer.attention.norm
    torch.testing.assert_close(logits(model), logits(correct))


def test_h_is_correct_once_tied_again():
    model, correct = bugs.buggy("H"), bugs.tiny()
    count = [sum(parameter.numel() for parameter in one.parameters()) for one in (model, correct)]
    assert count[0] - count[1] == 12002 * 192
    model.tie_weights()
    assert model.lm_head.decoder.weight is model.backbone.embeddings.word.weight


def test_l_is_correct_only_for_parts_with_equally_many_labels():
    accumulate, model = bugs.buggy("L"), bugs.tiny().eval()
    ids, labels = IDS.expand(4, -1), IDS.repeat(4, 1)

    def gradient(*parts):
        accumulate(model, parts)
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    halves = [(ids[:2], labels[:2]), (ids[2:], labels[2:])]
    torch.testing.assert_close(gradient(*halves), gradient((ids, labels)), atol=1e-5, rtol=1e-3)
    labels[0, 1:] = -100
    at_once = gradient((ids, labels))
    parts = [(ids[:1], labels[:1]), (ids[1:], labels[1:])]
    assert (gradient(*parts) - at_once).norm() > 0.05 * at_once.norm()


def test_j_scores_the_token_after_the_next():
    ids = IDS.repeat(1, 2)
    with torch.no_grad():
        out = bugs.buggy("J")(ids, labels=ids)
    expected = torch.nn.functional.cross_entropy(out.logits[0, :-2], ids[0, 2:])
    torch.testing.assert_close(out.loss, expected)
