"""The planted bugs of notebook 12: each does what the notebook says, and nothing else is wrong with the model."""

import json
import re
from pathlib import Path

import pytest
import torch

from xlmrxl_min import XLMRobertaTokenizer
from xlmrxl_min.course import bugs
from xlmrxl_min.training.texts import udhr

CELLS = json.loads((Path(__file__).parents[2] / "notebooks" / "12_spot_the_bug.ipynb").read_text("utf-8"))["cells"]
IDS = torch.tensor([[0, 14, 75, 300, 8001, 512, 77, 9, 2]])
PADDED = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])  # an attention_mask

each_case = pytest.mark.parametrize("letter", sorted(bugs.CASES))


@each_case
def test_diagnosis(letter):
    case, suspects = bugs.CASES[letter], bugs.suspects(letter)
    assert len(suspects) >= 4
    assert suspects == sorted(suspects)
    assert bugs.diagnose(letter) == f"Who is it? {'; '.join(suspects)}."
    right = bugs.diagnose(letter, f" {case.cause.upper()} ")
    assert right.startswith(f"Yes, {case.cause}. {case.why}\n\n")
    assert re.search(r"^(class|def) ", right, flags=re.MULTILINE), "the buggy code"
    for suspect, why in case.others.items():
        assert bugs.diagnose(letter, suspect) == f"Not {suspect}: {why}"
        assert why.endswith(".")
    assert "is not among the suspects" in bugs.diagnose(letter, "the weather")


def test_diagnosis_ignores_case_article_and_quotation_mark():
    assert bugs.diagnose("b", "Mask") == bugs.diagnose("B", "the mask")
    assert bugs.diagnose("L", "mean of means").startswith("Yes, a mean of means. ")
    assert bugs.diagnose("B", "padding’s embedding").startswith("Not padding's embedding: ")


def test_unknown_case_raises():
    with pytest.raises(ValueError, match="there is no case 'Z': the cases are A, B"):
        bugs.buggy("Z")


@each_case
def test_notebook_asks_and_hides_the_answer(letter):
    """The cause is named in the folded answer, and nowhere before."""
    texts = ["".join(cell["source"]) for cell in CELLS]
    question = next(text for text in texts if text.startswith(f"## {letter}: "))
    shown, folded = question.split("<details>", 1)
    assert "<summary>" in folded
    assert "https://github.com/" in folded, "where it really happened"
    assert "**The test**" in folded
    if letter != "A":  # A is solved in the notebook
        assert f"`{bugs.CASES[letter].cause}`." in folded
        assert f"`{bugs.CASES[letter].cause}`" not in shown
        assert any(f'diagnose("{letter}", None)' in text for text in texts)


@each_case
def test_notebook_was_run_with_the_suspects(letter):
    cell = next(
        cell for cell in CELLS if cell["cell_type"] == "code" and f'diagnose("{letter}", ' in "".join(cell["source"])
    )
    printed = "".join(line for output in cell["outputs"] for line in output.get("text", []))
    assert bugs.diagnose(letter, "dropout" if letter == "A" else None) in printed


def logits(model, ids=IDS, **inputs):
    torch.manual_seed(0)
    with torch.no_grad():
        return model(ids, **inputs).logits


def padded_logits(model):
    return logits(model, IDS.expand(2, -1), attention_mask=PADDED)[:, :6]


def pruned_logits(model):
    model.prune_heads({0: [0, 2]})
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
    correct = XLMRobertaTokenizer.from_pretrained("tiny-udhr")
    assert tokenizer.mask_token_id == correct.mask_token_id + 3 < model.config.vocab_size
    assert tokenizer.encode("a<s>b") == correct.encode("a<s>b")
    torch.testing.assert_close(logits(model)[..., :8002], logits(bugs.tiny().eval()))


def test_g_has_the_two_norms_of_each_layer_swapped():
    model, correct = bugs.buggy("G"), bugs.tiny().eval()
    assert (logits(model) - logits(correct)).abs().max() > 1
    for layer in model.backbone.layers:
        layer.attention.norm, layer.feed_forward.norm = layer.feed_forward.norm, layer.attention.norm
    torch.testing.assert_close(logits(model), logits(correct))


def test_h_is_correct_once_tied_again():
    model, correct = bugs.buggy("H"), bugs.tiny()
    count = [sum(parameter.numel() for parameter in one.parameters()) for one in (model, correct)]
    assert count[0] - count[1] == 8002 * 256
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


def test_j_reports_more_than_the_sum_of_the_losses():
    """What speaks against "sum in place of mean"."""
    text = next(row.text for row in udhr("en") if row.article == 1)
    ids = torch.tensor([XLMRobertaTokenizer.from_pretrained("tiny-udhr").encode(text)])
    with torch.no_grad():
        out = bugs.buggy("J")(ids, labels=ids)
    total = torch.nn.functional.cross_entropy(out.logits[0, :-1], ids[0, 1:], reduction="sum")
    assert 0.5 < total < out.loss - 1
