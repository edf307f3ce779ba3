"""Random calls of public functions with a hostile argument: each gives a right answer, or an error of ours.

    python tests/test_hostile_calls.py [CALLS [SEED]]     prints the counts, and each call that gave an answer

An answer is right if it equals that of the usual form of the same argument, where there is one, such as a tuple for a
list; in any case its numbers are finite, its probabilities are from 0 to 1, and nothing is left behind: no hook, no
changed mode, weight or setting of matplotlib. An error is ours if a `raise` in this package raised a ValueError or a
TypeError (OSError: for files) with a sentence.
"""

import ast
import copy
import math
import os
import random
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import matplotlib
import numpy
import pytest
import torch

import xlmrxl_min
from xlmrxl_min import (
    XLMRobertaTokenizer,
    XLMRobertaXLConfig,
    XLMRobertaXLForCausalLM,
    XLMRobertaXLForMaskedLM,
    XLMRobertaXLForMultipleChoice,
    XLMRobertaXLForQuestionAnswering,
    XLMRobertaXLForSequenceClassification,
    XLMRobertaXLForTokenClassification,
    XLMRobertaXLModel,
    answer,
    choose,
    classify,
    embed,
    fill_mask,
    interpret,
    tag,
)
from xlmrxl_min.interpret import plot
from xlmrxl_min.interpret.explore import ablate_each_head, explore
from xlmrxl_min.interpret.live import lens, live, mask_painter
from xlmrxl_min.training.evaluation import masked_accuracy
from xlmrxl_min.training.loop import fit

PACKAGE = Path(xlmrxl_min.__file__).parent
SECONDS_PER_CALL = 30
# NaN where no query has such a key; as in transformers, the loss where all answers lie beyond the text
MAY_LACK_NUMBERS = ("head_metrics", "attention_mass", "question answering")


class Same:
    """Another form of the right argument: the answer must be the same."""

    def __init__(self, form):
        self.form = form


# ---- what is called, with right arguments


@cache
def tiny(cls, pretrained_model_name_or_path="tiny", **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a new head
        torch.manual_seed(0)
        return cls.from_pretrained(pretrained_model_name_or_path, **options)


def right_calls():
    """name -> function, right keyword arguments."""
    tokenizer, lm, encoder = tiny(XLMRobertaTokenizer), tiny(XLMRobertaXLForMaskedLM), tiny(XLMRobertaXLModel)
    decoder = tiny(XLMRobertaXLForCausalLM, "tiny-decoder")
    texts, masked = (
        ["Everyone has the right to life.", "Toute personne"],
        ["Everyone has the <mask> to life.", "<mask>"],
    )
    encoding = tokenizer(texts[0], return_tensors="pt")
    ids = encoding.input_ids[0]
    other = torch.cat([ids[:2], ids[3:4], ids[3:]])
    rows, tokens = [ids, tokenizer("Toute personne", return_tensors="pt").input_ids[0]], tokenizer.tokenize(texts[0])
    tokens = ["<s>", *tokens, "</s>"]
    with torch.no_grad():
        out = lm(**encoding, output_attentions=True, output_hidden_states=True)
    weights = out.attentions[0][0, 0]
    metrics = interpret.head_metrics(lm, rows)
    read_out = interpret.logit_lens(lm, encoding.input_ids, torch.arange(len(ids))[None] == 2)
    words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    pair = tokenizer("a life", "une vie")["input_ids"]
    batch = {"input_ids": encoding.input_ids, "attention_mask": encoding.attention_mask, "labels": encoding.input_ids}
    inputs = {"input_ids": encoding.input_ids, "attention_mask": encoding.attention_mask}
    history = [{"step": 1, "loss": 2.0, "lr": 1.0, "seconds": 1.0}, {"step": 2, "loss": 1.0, "lr": 0.5, "seconds": 2.0}]
    states = interpret.mean_states(lm, tokenizer, texts)
    score = lambda output: output.last_hidden_state[0, 1].sum() if "logits" not in output else output.logits[0, 1, 7]  # noqa: E731
    lm_text = {"model": lm, "tokenizer": tokenizer, "texts": texts, "batch_size": 16, "truncation": False}
    return {
        "fill_mask": (fill_mask, {**lm_text, "texts": masked, "top_k": 3}),
        "embed": (embed, {**lm_text, "pooling": "mean"}),
        "classify": (classify, {**lm_text, "model": tiny(XLMRobertaXLForSequenceClassification), "top_k": 2}),
        "tag": (tag, {**lm_text, "model": tiny(XLMRobertaXLForTokenClassification), "by_word": True}),
        "choose": (choose, {"model": tiny(XLMRobertaXLForMultipleChoice), "tokenizer": tokenizer,
                            "question": "A?", "options": ["b", "c"], "batch_size": 2}),
        "answer": (answer, {"model": tiny(XLMRobertaXLForQuestionAnswering), "tokenizer": tokenizer, "question": "A?",
                            "passage": texts[0], "top_k": 2, "max_answer_len": 5, "batch_size": 2}),
        "tokenizer": (tokenizer, {"text": texts, "text_pair": texts[::-1], "padding": True, "truncation": True,
                                  "max_length": 16, "padding_side": "right", "return_tensors": "pt"}),
        "tokenize": (tokenizer.tokenize, {"text": texts[0]}),
        "encode": (tokenizer.encode, {"text": texts[0], "text_pair": texts[1]}),
        "decode": (tokenizer.decode, {"token_ids": ids.tolist(), "skip_special_tokens": True}),
        "batch_decode": (tokenizer.batch_decode, {"sequences": [ids.tolist()]}),
        "convert_ids_to_tokens": (tokenizer.convert_ids_to_tokens, {"ids": ids.tolist()}),
        "convert_tokens_to_ids": (tokenizer.convert_tokens_to_ids, {"tokens": tokens}),
        "tokenizer.from_pretrained": (XLMRobertaTokenizer.from_pretrained, {"pretrained_model_name_or_path": "tiny"}),
        "from_pretrained": (XLMRobertaXLForMaskedLM.from_pretrained,
                            {"pretrained_model_name_or_path": "tiny", "dtype": torch.float32, "device": "cpu",
                             "quantize": None}),
        "config": (XLMRobertaXLConfig, {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                                        "vocab_size": 50, "max_position_embeddings": 20, "pruned_heads": {}}),
        "forward": (lm, {**inputs, "head_mask": torch.ones(6), "labels": encoding.input_ids}),
        "backbone": (encoder, {**inputs, "position_ids": torch.arange(len(ids))[None] + 2}),
        "question answering": (tiny(XLMRobertaXLForQuestionAnswering),
                               {**inputs, "start_positions": torch.tensor([1]), "end_positions": torch.tensor([2])}),
        "generate": (decoder.generate, {"input_ids": encoding.input_ids[:, :3], "max_new_tokens": 3, "num_beams": 1,
                                        "temperature": 1.0, "top_p": 1.0}),
        "prune_heads": (lambda heads: copy.deepcopy(encoder).prune_heads(heads), {"heads": {0: [1]}}),
        "resize_token_embeddings": (lambda n: copy.deepcopy(encoder).resize_token_embeddings(n), {"n": 9000}),
        "fit": (lambda batches, **options: fit(copy.deepcopy(lm), batches, progress=False, **options),
                {"batches": [batch], "steps": 1, "learning_rate": 1e-3, "gradient_accumulation_steps": 1,
                 "warmup_steps": 0, "dtype": "float32"}),
        "masked_accuracy": (masked_accuracy, {"model": lm, "tokenizer": tokenizer, "texts": texts}),
        "mean_states": (interpret.mean_states, {"model": lm, "tokenizer": tokenizer, "texts": texts, "batch_size": 4}),
        "retrieval": (interpret.retrieval, {"source": states, "target": states.flip(0), "centred": False}),
        "head_metrics": (interpret.head_metrics, {"model": lm, "texts": rows}),
        "head_means": (interpret.head_means, {"model": lm, "texts": rows}),
        "head_classes": (interpret.head_classes, {"metrics": metrics}),
        "ablation_effects": (interpret.ablation_effects, {"model": lm, "inputs": inputs, "score": score}),
        "patch_effects": (interpret.patch_effects, {"model": lm, "clean": {"input_ids": ids[None]}, "score": score,
                                                    "corrupted": {"input_ids": other[None]}, "site": "stream"}),
        "gradient_times_input": (interpret.gradient_times_input, {"model": lm, "inputs": inputs, "score": score}),
        "integrated_gradients": (interpret.integrated_gradients, {"model": lm, "inputs": inputs, "score": score,
                                                                  "baseline_id": 3, "steps": 2}),
        "occlusion": (interpret.occlusion, {"model": lm, "inputs": inputs, "score": score, "replacement_id": 3}),
        "logit_lens": (interpret.logit_lens, {"model": lm, "input_ids": encoding.input_ids,
                                              "positions": torch.arange(len(ids))[None] == 2}),
        "contributions": (interpret.contributions, {"model": lm, "inputs": inputs}),
        "entropy": (interpret.entropy, {"weights": weights}),
        "mean_distance": (interpret.mean_distance, {"weights": weights}),
        "offset_profile": (interpret.offset_profile, {"weights": weights, "reach": 2}),
        "attention_mass": (interpret.attention_mass, {"weights": weights, "input_ids": ids}),
        "interpret.rollout": (interpret.rollout, {"attentions": out.attentions, "residual": 0.5}),
        "merge_tokens": (interpret.merge_tokens, {"weights": weights, "queries": [range(2)], "keys": [range(3)]}),
        "value_norms": (interpret.value_norms, {"attention": lm.backbone.layers[0].attention,
                                                "hidden": out.hidden_states[0]}),
        "explore": (explore, {"attentions": out.attentions, "tokens": tokens, "title": "a", "layer": 1, "head": 2,
                              "token": 1}),
        "ablate_each_head": (ablate_each_head, {"model": lm, "tokenizer": tokenizer, "inputs": inputs, "position": 1,
                                                "target": tokens[1], "top_k": 2}),
        "live": (live, {"model": lm, "tokenizer": tokenizer, "sentences": texts, "layer": 1, "head": 2, "top_k": 3}),
        "lens": (lens, {"model": lm, "tokenizer": tokenizer, "text": texts[0], "top_k": 3, "title": "a"}),
        "mask_painter": (mask_painter, {"scores": weights, "tokens": tokens, "head_dim": 32, "title": "a"}),
        "save page": (explore(out.attentions, tokens).save, {"path": "page.html"}),
        "save model": (encoder.save_pretrained, {"folder": "saved", "max_shard_size": "5GB"}),
        "save figure": (plot.attention_map(weights, tokens).save, {"path": "map.png"}),
        "attention_map": (plot.attention_map, {"weights": weights, "tokens": tokens, "title": "a"}),
        "attention_lines": (plot.attention_lines, {"weights": weights, "tokens": tokens, "min_weight": 0.1}),
        "head_grid": (plot.head_grid, {"weights": torch.cat(out.attentions), "first_layer": 0}),
        "plot.head_metrics": (plot.head_metrics, {"metrics": metrics}),
        "class_map": (plot.class_map, {"classes": interpret.head_classes(metrics)}),
        "offset_profiles": (plot.offset_profiles, {"profiles": torch.rand(2, 3, 5)}),
        "plot.rollout": (plot.rollout, {"steps": interpret.rollout([x[0] for x in out.attentions]), "tokens": tokens,
                                        "position": 2}),
        "cross_lingual_map": (plot.cross_lingual_map, {"weights": torch.eye(len(pair)),
                                                       "tokens": tokenizer.convert_ids_to_tokens(pair)}),
        "effects": (plot.effects, {"values": torch.rand(2, len(tokens)), "tokens": tokens}),
        "saliency": (plot.saliency, {"scores": {"a": torch.rand(len(tokens))}, "tokens": tokens}),
        "plot.logit_lens": (plot.logit_lens, {"lens": read_out, "targets": ["a"],
                                              "predictions": [["b"] for _ in read_out.top_ids]}),
        "residual_norms": (plot.residual_norms, {"parts": interpret.contributions(lm, inputs)}),
        "retrieval_curves": (plot.retrieval_curves, {"found": {"a": interpret.retrieval(states, states)}}),
        "training_curves": (plot.training_curves, {"histories": {"a": history}}),
        "distributions": (plot.distributions, {"probabilities": {"a": torch.ones(len(words)) / len(words)},
                                               "vocabulary": words, "top": 3}),
    }  # fmt: skip


# ---- hostile arguments


def other_forms(value):
    """The same argument as users have it: Same(...) of a tuple, a generator, an array, …"""
    if isinstance(value, list) and value and all(isinstance(x, (str, int)) for x in value):
        return [Same(lambda: (x for x in value)), Same(lambda: numpy.array(value))]
    if isinstance(value, list) and value and all(isinstance(x, torch.Tensor) for x in value):
        return [Same(lambda: (x for x in value)), Same(lambda: [x.numpy() for x in value]), Same(lambda: tuple(value))]
    if isinstance(value, tuple) and value and all(isinstance(x, torch.Tensor) for x in value):
        return [Same(lambda: list(value)), Same(lambda: torch.stack(value))]
    if isinstance(value, dict) and "input_ids" in value:
        return [Same(lambda: dict(reversed(value.items())))]
    return []


def hostile_values(value, huge_is_quick):
    """Values in the place of `value`: other forms of it, near misses of its kind, and anything at all."""
    near = [*other_forms(value)]
    huge = 10**9 if huge_is_quick else 3
    if isinstance(value, torch.Tensor):
        near += [value[None], value[..., :-1], value[..., :0], value.tolist(), value * -1, value.half(), value.bool()]
        near += [value.numpy(), torch.full_like(value, 10**6), value.flatten(), value.float() * math.nan]
    if isinstance(value, (list, tuple)) and value:
        near += [value[:-1], [*value, *value], [value], [None, *value[1:]], value[0], {*map(str, value)}]
        near += [dict.fromkeys(map(str, value)), [*value[:-1], b"bytes"]]
    if isinstance(value, dict) and value:
        first = next(iter(value))
        near += [{first: None}, {"": value[first]}, {str(key): x for key, x in value.items()}, {**value, "other": 1}]
        near += [{k: x[..., :-1] if isinstance(x, torch.Tensor) else x for k, x in value.items()}]
    if isinstance(value, bool):
        near += ["yes", "only_first", 2]
    elif isinstance(value, (int, float)):
        near += [-value, value + 0.5, str(value), huge, -1, math.nan, math.inf, True, numpy.int64(2), numpy.float64(1)]
    if isinstance(value, str):
        near += [value.encode(), value.upper(), value + "\udce9", "", " ", "\u200f", Path(value), [value], value * 999]
    anything = [None, 0, -1, 1.5, math.nan, "", "tiny", "a\udce9", [], [None], [[]], ["a", 3], {}, {1}, b"a", object()]
    anything += [numpy.zeros((2, 2)), torch.zeros(()), torch.zeros(2, 3, 4), torch.tensor([10**6]), Path("x"), bool, 1j]
    return near + anything if not near or random.random() < 0.5 else near


# ---- judging what a call gave


def is_raise(frame):
    """Whether the frame of a traceback stands at a `raise` statement of this package."""
    path = Path(frame.tb_frame.f_code.co_filename)
    if PACKAGE not in path.parents:
        return False
    raises = (node for node in ast.walk(syntax(path)) if isinstance(node, ast.Raise))
    return any(node.lineno <= frame.tb_lineno <= node.end_lineno for node in raises)


@cache
def syntax(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def fault_of_error(error, writes):
    """None, or why the error is none of ours."""
    frame = error.__traceback__
    while frame.tb_next is not None:
        frame = frame.tb_next
    message = str(error)
    if not isinstance(error, (ValueError, TypeError, *((OSError,) if writes else ()))):
        return f"a {type(error).__name__}"
    if not is_raise(frame):
        return f"raised in {frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}"
    if len(message.split()) < 4 or "\n" in message or not message.endswith((".", "?", ")")):
        return "no sentence"
    return None


def numbers(result):
    """All floats of a result, wherever they are."""
    if isinstance(result, torch.Tensor):
        return result.detach().double().flatten().tolist() if result.is_floating_point() else []
    if isinstance(result, float):
        return [result]
    if isinstance(result, dict):
        return [x for value in result.values() for x in numbers(value)]
    if isinstance(result, (list, tuple)):
        return [x for value in result for x in numbers(value)]
    return []


def fault_of_answer(name, result):
    if isinstance(result, plot.CaptionedFigure):
        return None if result.caption and "nan" not in result.caption else f"caption {result.caption!r}"
    if name not in MAY_LACK_NUMBERS and not all(map(math.isfinite, numbers(result))):
        return "numbers that are not finite"
    return None


def comparable(result):
    if isinstance(result, plot.CaptionedFigure):
        return result.caption
    return getattr(result, "html", result)


def same(a, b):
    a, b = comparable(a), comparable(b)
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.shape == b.shape and torch.allclose(a, b, atol=1e-5, equal_nan=True)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == pytest.approx(b, nan_ok=True) if isinstance(a, float) else a == b


def leftovers():
    """What must be as before after each call: hooks, modes, and the settings of matplotlib; weights by their sum."""
    models = [tiny(XLMRobertaXLForMaskedLM), tiny(XLMRobertaXLModel), tiny(XLMRobertaXLForCausalLM, "tiny-decoder")]
    modules = [module for model in models for module in model.modules()]
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)
    weights = [sum(float(x.detach().double().sum()) for x in model.parameters()) for model in models]
    return hooks, sum(module.training for module in modules), weights, dict(matplotlib.rcParams)


@contextmanager
def time_limit(seconds):
    def stop(*_):
        raise TimeoutError(f"took more than {seconds} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def attempt(function, arguments):
    torch.manual_seed(0)
    with warnings.catch_warnings(), time_limit(SECONDS_PER_CALL):
        warnings.simplefilter("ignore")
        return function(**arguments)


def hostile_calls(count, seed, report=lambda line: None):
    """Make `count` calls; return how many gave an answer or an error of ours, and the faults."""
    random.seed(seed)
    calls, outcomes, faults = right_calls(), Counter(), []
    answers = {name: attempt(*call) for name, call in calls.items() if not name.startswith("save")}
    before = leftovers()
    names = sorted(calls)
    for number in range(count):
        name = names[number % len(names)]
        function, arguments = calls[name]
        which = random.choice([key for key in arguments if key != "score"])
        value = random.choice(hostile_values(arguments[which], huge_is_quick=which not in ("steps", "n")))
        given = value.form() if isinstance(value, Same) else value
        line = f"{name}({which}={given!r:.60})".replace("\n", " ")
        try:
            result = attempt(function, {**arguments, which: given})
        except Exception as error:
            fault = fault_of_error(error, writes=name.startswith("save"))
            if isinstance(value, Same) and which != "batches":
                fault = fault or "another form of a right argument was refused"
            outcomes[type(error).__name__] += 1
            line += f" -> {type(error).__name__}: {error}"
            if fault:
                where = traceback.extract_tb(error.__traceback__)[-1]
                line += f" [{where.filename}:{where.lineno}]"
        else:
            holds_nan = any(map(math.isnan, numbers(given)))  # such as a head_mask of NaN
            fault = None if holds_nan else fault_of_answer(name, result)
            if isinstance(value, Same) and not same(result, answers[name]):
                fault = "another answer than that of the usual form"
            outcomes["answer"] += 1
            line += f" -> {comparable(result)!r:.80}".replace("\n", " ")
        if leftovers() != before:
            fault, before = "something was left behind", leftovers()
        report(line)
        if fault:
            faults.append(f"{fault}: {line}")
    return outcomes, faults


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("count", [120, pytest.param(500, marks=pytest.mark.slow)])
def test_a_hostile_argument_gives_a_right_answer_or_a_sentence_of_ours(empty_folder, count):
    outcomes, faults = hostile_calls(count, seed=0)
    print(dict(outcomes))
    assert not faults, "\n".join([f"{len(faults)} of {count}:", *faults])


if __name__ == "__main__":
    count, seed = (int(x) for x in [*sys.argv[1:], 500, 0][:2]) if len(sys.argv) != 2 else (int(sys.argv[1]), 0)
    os.chdir(tempfile.mkdtemp())
    outcomes, faults = hostile_calls(count, seed, print)
    print(f"\n{count} calls: {dict(outcomes)}; faults: {len(faults)}", *faults, sep="\n")
    sys.exit(bool(faults))
