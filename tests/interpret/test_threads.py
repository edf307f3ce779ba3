"""Several threads use one model, or draw, at the same time: each gets what it would get alone."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import matplotlib
import pytest
import torch
from transformers_reference import twins

from xlmrxl_min import XLMRobertaTokenizer, XLMRobertaXLForMaskedLM, fill_mask
from xlmrxl_min.interpret import (
    ablated,
    ablation_effects,
    contributions,
    each_layer,
    entropy,
    gradient_times_input,
    head_means,
    head_metrics,
    hooked,
    logit_lens,
    plot,
)
from xlmrxl_min.interpret.saliency import embeddings_replaced
from xlmrxl_min.utils import eval_mode

IDS = torch.tensor([[0, 7, 9, 7, 2]])


def in_another_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(timeout=60)


@pytest.fixture
def model():
    return twins("ForMaskedLM")[1].eval()


@pytest.mark.parametrize("what", ["each_layer", "ablated", "embeddings_replaced", "hooked", "hooked before"])
def test_hooks_act_only_in_their_own_thread(model, what):
    def zero(module, args, output=None):
        return torch.zeros_like(args[0]) if output is not None else (torch.zeros_like(args[0]),)

    norms = [(model.backbone.norm, zero)]
    contexts = {
        "each_layer": lambda: each_layer(model, entropy),
        "ablated": lambda: ablated(model, {0: [1], 1: [0, 2]}),
        "embeddings_replaced": lambda: embeddings_replaced(model, torch.zeros(1, 5, 24)),
        "hooked": lambda: hooked(norms),
        "hooked before": lambda: hooked(norms, before=True),
    }

    def run():
        with torch.no_grad():
            out = model(IDS, output_attentions=True)
        return out.logits, out.attentions

    logits, attentions = run()
    with contexts[what]() as results:
        torch.testing.assert_close(in_another_thread(run), (logits, attentions))
        mine = run()
        assert mine[1][0] is None if what == "each_layer" else (mine[0] - logits).abs().max() > 1e-2
    assert len(results) == 2 if what == "each_layer" else results is None, "only those of this thread's call"


def test_the_last_thread_in_eval_mode_puts_the_modes_back():
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout()))
    model[1][1].eval()
    before = [module.training for module in model.modules()]
    first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))

    def first():
        with eval_mode(model):
            first_is_in.set()
            assert second_is_in.wait(60)
        first_is_out.set()

    def second():  # a part of the model, as the backbone is
        assert first_is_in.wait(60)
        with eval_mode(model[1]):
            second_is_in.set()
            assert first_is_out.wait(60)
            assert not any(module.training for module in model[1].modules())
            assert model[0].training, "nobody uses it now"

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(first), pool.submit(second)]:
            done.result(timeout=60)
    assert [module.training for module in model.modules()] == before
    with eval_mode(model), eval_mode(model):
        pass
    assert [module.training for module in model.modules()] == before


def in_threads(tasks, rounds, workers=8):
    """Run every task `rounds` times, in `workers` threads that start together; (name, result) of each run."""
    start = threading.Barrier(workers)
    todo = [list(tasks.items())[i % len(tasks)] for i in range(rounds * len(tasks))]

    def work(number):
        start.wait(60)
        return [(name, task()) for name, task in todo[number::workers]]

    with ThreadPoolExecutor(workers) as pool:
        return [pair for done in [pool.submit(work, i) for i in range(workers)] for pair in done.result(timeout=300)]


def test_one_model_in_many_threads():
    """With dropout and in training mode, so that a mode put back too early changes results."""
    model = XLMRobertaXLForMaskedLM.from_pretrained("tiny", hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    tokenizer = XLMRobertaTokenizer.from_pretrained("tiny")
    inputs = tokenizer("Everyone has the right", return_tensors="pt")
    ids, score = inputs.input_ids, lambda out: out.logits[0, 1, 7]
    model.train()
    tasks = {
        "fill_mask": lambda: fill_mask(model, tokenizer, "Everyone has the <mask> to life."),
        "head_metrics": lambda: head_metrics(model, ids, progress=False),
        "head_means": lambda: head_means(model, ids),
        "ablation_effects": lambda: ablation_effects(model, inputs, score, progress=False)[0],
        "gradient_times_input": lambda: gradient_times_input(model, inputs, score),
        "contributions": lambda: contributions(model, inputs).fraction,
        "logit_lens": lambda: logit_lens(model, ids, ids > 2).probability,
    }
    expected = {name: task() for name, task in tasks.items()}
    results = in_threads(tasks, rounds=8)
    assert len(results) == 8 * len(tasks)
    for name, found in results:
        if name == "fill_mask":
            assert [x.token_id for x in found[0]] == [x.token_id for x in expected[name][0]]
        else:
            torch.testing.assert_close(found, expected[name], equal_nan=True, msg=name)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_figures_in_many_threads_leave_the_settings_alone():
    maps, tokens = torch.rand(2, 3, 4, 4).softmax(-1), ["<s>", "a", "$b$", "</s>"]
    tasks = {
        "map": partial(plot.attention_map, maps[0, 0], tokens),
        "grid": partial(plot.head_grid, maps),
        "lines": partial(plot.attention_lines, maps[1, 1], tokens),
    }
    with matplotlib.rc_context({"font.size": 31, "text.parse_math": True}):
        before = dict(matplotlib.rcParams)
        expected = {name: task().png() for name, task in tasks.items()}
        results = in_threads({name: lambda task=task: task().png() for name, task in tasks.items()}, rounds=4)
        assert all(png == expected[name] for name, png in results)
        assert dict(matplotlib.rcParams) == before
