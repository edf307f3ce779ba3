"""The patients of notebook 12: ill in the way that is told, of what is told, and well again without it."""

import json
import re
from pathlib import Path

import pytest
import torch

from xlmrxl_min import XLMRobertaTokenizer, XLMRobertaXLForCausalLM, XLMRobertaXLForMaskedLM
from xlmrxl_min.course import bugs
from xlmrxl_min.training.texts import udhr

CELLS = json.loads((Path(__file__).parents[2] / "notebooks" / "12_spot_the_bug.ipynb").read_text("utf-8"))["cells"]
IDS = torch.tensor([[0, 14, 75, 300, 8001, 512, 77, 9, 2]])
PADDED = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])  # an attention_mask


@pytest.mark.parametrize("letter", sorted(bugs.CASES))
def test_diagnosis(letter):
    case = bugs.CASES[letter]
    named = bugs.suspects(letter)
    assert len(named) >= 4
    assert named == sorted(named)
    assert bugs.diagnose(letter) == f"Who is it? {'; '.join(named)}."
    right = bugs.diagnose(letter, f" {case.culprit.upper()} ")
    assert right.startswith(f"Yes, {case.culprit}. {case.why}\n\n")
    assert re.search(r"^(class|def) ", right, flags=re.MULTILINE), "the guilty lines"
    for suspect, why in case.innocent.items():
        assert bugs.diagnose(letter, suspect) == f"Not {suspect}: {why}"
        assert why.endswith(".")
    assert "is not among the suspects" in bugs.diagnose(letter, "the weather")


def test_spelling_is_no_obstacle():
    assert bugs.diagnose("b", "Mask") == bugs.diagnose("B", "the mask")
    assert bugs.diagnose("L", "mean of means").startswith("Yes, a mean of means. ")
    assert bugs.diagnose("B", "padding’s embedding").startswith("Not padding's embedding: ")


def test_there_is_no_case_z():
    with pytest.raises(ValueError, match="there is no case 'Z': the cases are A, B"):
        bugs.patient("Z")


@pytest.mark.parametrize("letter", sorted(bugs.CASES))
def test_notebook_asks_and_tells(letter):
    """A cell that ends with the question, the suspects under it; the answer stands in the folded story only."""
    texts = ["".join(cell["source"]) for cell in CELLS]
    where = next(i for i, text in enumerate(texts) if text.startswith(f"## {letter}: "))
    asks = next(
        i for i in range(where, len(texts)) if f'diagnose("{letter}", ' in texts[i] and CELLS[i]["cell_type"] == "code"
    )
    shown, folded = texts[where].split("<details>", 1)
    assert "<summary>" in folded
    assert "https://github.com/" in folded, "where it really happened"
    assert "**The test**" in folded
    said = "".join(line for output in CELLS[asks]["outputs"] for line in output.get("text", []))
    if letter == "A":  # the one that is shown
        assert bugs.diagnose("A", "dropout") in said
    else:
        assert f"`{bugs.CASES[letter].culprit}`." in folded
        assert f"`{bugs.CASES[letter].culprit}`" not in shown
        assert f'diagnose("{letter}", None)' in texts[asks]
        assert bugs.diagnose(letter) in said


def logits(model, ids=IDS, **inputs):
    torch.manual_seed(0)
    with torch.no_grad():
        return model(ids, **inputs).logits


def of_pieces(model, ids=IDS):
    first = model(ids[:, :4])
    return torch.cat([first.logits, model(ids[:, 4:], past_key_values=first.past_key_values).logits], dim=1)


def pruned(model):
    model.prune_heads({0: [0, 2]})
    return logits(model)


def loss(model):
    return model(IDS, labels=IDS).loss


def padded(model):
    return logits(model, IDS.expand(2, -1), attention_mask=PADDED)[:, :6]


SYMPTOMS = {"A": logits, "B": padded, "C": logits, "E": logits, "F": logits, "I": pruned, "J": loss, "K": of_pieces}


@pytest.mark.parametrize("letter", SYMPTOMS)
def test_the_culprit_alone_makes_ill(letter):
    """With the healthy class given back to its parts, the same weights have the healthy answer."""
    symptom, patient = SYMPTOMS[letter], bugs.patient(letter)
    kind = type(patient)
    healthy = {"J": "tiny-decoder", "K": "tiny-relative-key"}.get(letter, "tiny")
    options = {"is_decoder": True} if letter == "K" else {}
    model = XLMRobertaXLForCausalLM if letter in "JK" else XLMRobertaXLForMaskedLM
    expected = symptom(model.from_pretrained(healthy, **options).eval())
    assert (symptom(patient) - expected).abs().max() > 1e-3
    cured = bugs.patient(letter)
    for module in cured.modules():
        if type(module).__module__ == bugs.__name__:  # disguised, then ill, then healthy
            module.__class__ = type(module).__mro__[2]
    torch.testing.assert_close(symptom(cured), expected, atol=1e-4, rtol=0)
    assert kind.__name__ == model.__name__


def test_nothing_gives_a_patient_away():
    for letter in SYMPTOMS:
        names = {type(module).__name__ for module in bugs.patient(letter).modules()}
        assert not names & {case.guilty.__name__ for case in bugs.CASES.values()}
    assert type(bugs.patient("D")[1]).__name__ == "XLMRobertaTokenizer"


def test_d_differs_in_the_mask_alone():
    model, theirs = bugs.patient("D")
    ours = XLMRobertaTokenizer.from_pretrained("tiny")
    assert theirs.mask_token_id == ours.mask_token_id + 3 < model.config.vocab_size
    assert theirs.encode("a<s>b") == ours.encode("a<s>b")
    healthy = XLMRobertaXLForMaskedLM.from_pretrained("tiny").eval()
    torch.testing.assert_close(logits(model)[..., :8002], logits(healthy))


def test_g_has_the_two_norms_of_each_layer_exchanged():
    model, healthy = bugs.patient("G"), XLMRobertaXLForMaskedLM.from_pretrained("tiny").eval()
    assert (logits(model) - logits(healthy)).abs().max() > 1
    for layer in model.backbone.layers:
        layer.attention.norm, layer.feed_forward.norm = layer.feed_forward.norm, layer.attention.norm
    torch.testing.assert_close(logits(model), logits(healthy))


def test_h_is_well_once_tied_again():
    model, healthy = bugs.patient("H"), XLMRobertaXLForMaskedLM.from_pretrained("tiny")
    count = [sum(parameter.numel() for parameter in one.parameters()) for one in (model, healthy)]
    assert count[0] - count[1] == 8002 * 256
    model.tie_weights()
    assert model.lm_head.decoder.weight is model.backbone.embeddings.word.weight


def test_l_is_right_for_parts_of_one_size_only():
    gather, model = bugs.patient("L"), XLMRobertaXLForMaskedLM.from_pretrained("tiny").eval()
    ids, labels = IDS.expand(4, -1), IDS.repeat(4, 1)

    def gradient(*parts):
        gather(model, parts)
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    halves = [(ids[:2], labels[:2]), (ids[2:], labels[2:])]
    torch.testing.assert_close(gradient(*halves), gradient((ids, labels)), atol=1e-5, rtol=1e-3)
    labels[0, 1:] = -100
    at_once = gradient((ids, labels))
    halves = [(ids[:1], labels[:1]), (ids[1:], labels[1:])]
    assert (gradient(*halves) - at_once).norm() > 0.05 * at_once.norm()


def test_j_reports_more_than_the_sum():
    """What speaks against "sum in place of mean"."""
    model = bugs.patient("J")
    ids = torch.tensor(
        [XLMRobertaTokenizer.from_pretrained("tiny").encode(next(row.text for row in udhr("en") if row.article == 1))]
    )
    with torch.no_grad():
        out = model(ids, labels=ids)
    total = torch.nn.functional.cross_entropy(out.logits[0, :-1], ids[0, 1:], reduction="sum")
    assert 0.5 < total < out.loss - 1
