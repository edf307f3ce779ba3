"""The capstone: the model answer passes, and each part that is broken is reported, and no other."""

import re

import pytest

from xlmrxl_min.__main__ import main
from xlmrxl_min.course.capstone import PARTS, WHOLE, check_step, check_whole, find_step
from xlmrxl_min.course.notebooks import list_notebooks, prose, read_notebook
from xlmrxl_min.course.steps import ANSWER, STEPS, find_definitions, run

SLIPS = {  # the step -> a piece of the answer, and what a learner writes in its place
    "token_id": ("number + 1", "number"),
    "encode": (', "</s>"]]', "]]"),
    "pad_rows": ("[1] *", "[0] *"),
    "make_position_ids": ("is_token + 1", "is_token"),
    "Embeddings": ("self.token_type(torch.zeros_like(ids))", "0"),
    "attention_scores": (" / math.sqrt(query.shape[-1])", ""),
    "split_heads": ('"b t (h d) -> b h t d"', '"b t (d h) -> b h t d"'),
    "merge_heads": ('"b h t d -> b t (h d)"', '"b h t d -> b t (d h)"'),
    "attend": ("~may_attend, torch", "may_attend, torch"),
    "Attention": ("self.scores(query, key), value", "self.scores(key, query), value"),
    "skew": ("[..., rows:]", "[..., rows - 1 : -1]"),
    "relative_scores": (".flip(0)  # from", "  # from"),
    "position_bias": ("table.flip(0)", "table"),
    "RelativeAttention": ("super().scores(query, key) + ", ""),
    "LayerNorm": ("square().mean", "var"),
    "gelu": (" / 2\n", "\n"),
    "FeedForward": ("gelu(self.up(hidden))", "self.up(hidden)"),
    "Block": ("self.feed_forward_norm(hidden))", "hidden)"),
    "Encoder": ("return self.norm(hidden)", "return hidden"),
    "mask_tokens": ("fate < 0.8", "fate < 0.7"),
    "LMHead": (" + self.bias", ""),
    "MaskedLM": ("self.lm_head(self.encoder(ids)", "self.lm_head(self.encoder.embeddings(ids)"),
    "masked_lm_loss": ("F.cross_entropy(", "-F.cross_entropy("),
    "my_name": ('"distance."', '"distances."'),
    "load": ("return model\n", "return model.half()\n"),
    "causal_mask": (".tril(keys - queries)", ".tril()"),
    "CachedAttention": ("torch.cat([keys, key], dim=2)", "torch.cat([key, keys], dim=2)"),
    "CrossAttention": ("(part(states)", "(part(hidden)"),
    "generate": (".argmax(-1)", ".argmin(-1)"),
    "top_p": ("kept / kept.sum()", "kept"),
    "read_header": ("return header, 8 + length", "return header, length"),
    "map_tensors": ('.view(entry["shape"])', ""),
    "fairseq_name": ('"fc1.": "feed_forward.up."', '"fc1.": "feed_forward.down."'),
    "build": ("tensor.to(dtype)", "tensor"),
    "load_large": ("build(config, tensors, dtype)", "build(config, tensors, torch.bfloat16)"),
    "forward_bytes": ("5 * hidden", "4 * hidden"),
}
WHOLE_SLIPS = {  # what only the whole model shows: no step alone is wrong
    "logits of tiny-relative-key": ("attend(self.scores(query", "attend(attention_scores(query"),
    "logits of tiny-relative-key-query": ("attend(self.scores(query", "attend(attention_scores(query"),
    "gradients of every parameter": ("(self.attention_norm(hidden)", "(self.attention_norm(hidden).detach()"),
}


def slip(name):
    old, new = (SLIPS | WHOLE_SLIPS)[name]
    start, end = find_definitions(ANSWER).get(name, (0, None))
    lines = ANSWER.splitlines(keepends=True)
    part = "".join(lines[start:end])
    assert part.count(old) >= 1, name
    return "".join([*lines[:start], part.replace(old, new, 1), *lines[end:]]) if end else part.replace(old, new, 1)


@pytest.fixture
def check(tmp_path, capsys):
    def check(text):
        file = tmp_path / "my_model.py"
        file.write_text(text, encoding="utf-8")
        status = main(["course", "check", file])
        out, err = capsys.readouterr()
        return status, out, err

    return check


def test_parts_hold_every_step_once_and_name_its_notebook():
    names = [name for names in PARTS.values() for name in names]
    assert sorted(names) == sorted(STEPS)
    for path in list_notebooks():
        for number, name in re.findall(r"\*\*Step (\d): `(\w+)`", "\n".join(prose(read_notebook(path)))):
            if name in STEPS:
                assert find_step(name) == f"`{name}`, step {number} of notebook {path.stem[:2]}"


def test_the_model_answer_passes(check):
    status, out, err = check(ANSWER)
    assert (status, err) == (0, "")
    assert out.count("✓ ") == 1 + len(PARTS) + len(WHOLE)
    assert "All parts agree with the library" in out


@pytest.mark.parametrize("name", STEPS)
def test_a_broken_step_is_reported_and_no_other(name):
    text = slip(name)
    [*faults] = check_step(text, name)
    assert faults
    assert all(fault[-1] in ".?" for fault in faults)
    [part] = [names for names in PARTS.values() if name in names]
    assert [other for other in part if check_step(text, other)] == [name]


@pytest.mark.parametrize("name", WHOLE_SLIPS)
def test_a_fault_that_no_step_shows_is_reported_by_the_whole_model(name):
    text = slip(name)
    module = run(text)
    assert not check_step(text, "Attention")
    assert not check_step(text, "Block")
    assert check_whole(module, name)
    assert not check_whole(module, "logits of tiny")


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("logits of tiny", "LayerNorm"),
        ("logits of a checkpoint of XL's shape", "gelu"),
        ("load_large with your own build", "build"),
        ("load_large with your own build", "map_tensors"),
        ("padding changes nothing", "attend"),
        ("gradients of every parameter", "masked_lm_loss"),
        ("generated text", "CachedAttention"),
        ("generated text", "generate"),
    ],
)
def test_the_whole_model_differs_with_a_broken_step(name, step):
    assert check_whole(run(slip(step)), name)


def test_code_that_stops_is_located():
    text = ANSWER.replace('rearrange(attention_mask, "b k', 'rearrange(attention_mask, "b q k')
    assert re.match("The code stops in attend with EinopsError", check_whole(run(text), "logits of tiny"))


def test_the_report_of_a_file_with_a_fault_and_without_the_last_notebooks(check):
    text = slip("attend")
    text = text[: text.index("\n\n\ndef causal_mask")] + "\n"
    status, out, err = check(text)
    assert status == 2
    assert err == "Not yet the library's model. Begin with: attention.\n"
    assert f"{len(STEPS) - 11} of {len(STEPS)} steps are there" in out
    assert re.findall(r"^✗ (.+?)  ", out, flags=re.MULTILINE) == ["attention"]
    assert re.findall(r"^– (.+?)  ", out, flags=re.MULTILINE) == ["decoder", "generation", "full size"]
    assert "    `attend`, step 4 of notebook 02: The mask is inverted" in out
    assert re.search(r"^        .*Different in .+ where .+ should be", out, flags=re.MULTILINE)
    assert "✗ logits of tiny\n    The first part that differs: block 0 (notebooks 02, 04 and 05). " in out
    assert "the model answer stands in for what is not there" in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:\n", r"Line 1 of .*my_model\.py is not Python"),
        ("import no_such_thing\n", r"my_model\.py stops with ModuleNotFoundError: No module named 'no_such_thing'"),
    ],
)
def test_a_file_that_cannot_be_run_gets_a_sentence(check, text, message):
    status, out, err = check(text)
    assert (status, out) == (2, "")
    assert re.search(message, err)


def test_a_missing_file_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["course", "check"]) == 2
    assert capsys.readouterr().err == "my_model.py: No such file or directory.\n"
