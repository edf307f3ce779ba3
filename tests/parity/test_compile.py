"""torch.compile(model, fullgraph=True): one graph without breaks, whatever is asked of the model; the same numbers."""

import shutil

import pytest
import torch
from test_parity import compute_loss
from transformers_reference import TASKS, draw, error, output_error, twins

SEEDS = range(503, 519)  # with every task, position type and kind of mask (the second test)
FAST = {503, 509}
slow = pytest.mark.slow


@pytest.fixture(autouse=True)
def afresh():
    torch.compiler.reset()


def compiled(model, backend="aot_eager"):
    """Traced and differentiated as by default, but not turned into C++, which takes most of the time."""
    return torch.compile(model, fullgraph=True, backend=backend)


def gradients(model):
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.filterwarnings("ignore:input_ids hold padding")  # some have no mask
@pytest.mark.parametrize("seed", [seed if seed in FAST else pytest.param(seed, marks=slow) for seed in SEEDS])
def test_random_configurations(seed):
    """As in the parity tests: outputs and gradients."""
    task, build, config, inputs = draw(seed)
    _, model = twins(task, seed, build, **config)
    out, expected = compiled(model)(**inputs), model(**inputs)
    assert output_error(out, expected) < 1e-5
    compute_loss(expected).backward()
    wanted = gradients(model)
    model.zero_grad()
    compute_loss(out).backward()
    assert error(gradients(model), wanted) < 1e-5


def test_the_draw_reaches_every_corner():
    drawn = [draw(seed) for seed in SEEDS]
    assert {task for task, *_ in drawn} == set(TASKS)
    assert {config["position_embedding_type"] for _, _, config, _ in drawn} == {
        "absolute", "relative_key", "relative_key_query",
    }  # fmt: skip
    assert {inputs["attention_mask"].dim() for *_, inputs in drawn if "attention_mask" in inputs} == {2, 3}


@pytest.mark.parametrize(
    "position_embedding_type",
    ["absolute", pytest.param("relative_key", marks=slow), pytest.param("relative_key_query", marks=slow)],
)
def test_cached_decoding(position_embedding_type):
    """140 tokens: the cache grows twice. More graphs than PyTorch's limit, eight, would be an error."""
    config = {"position_embedding_type": position_embedding_type, "max_position_embeddings": 160}
    _, model = twins("ForCausalLM", is_decoder=True, add_cross_attention=True, num_hidden_layers=1, **config)
    ids, across = torch.randint(2, 60, (2, 140)), torch.randn(2, 5, 24)
    fast = compiled(model)
    with torch.no_grad():
        expected = model(ids, encoder_hidden_states=across).logits
        out = fast(ids[:, :9], encoder_hidden_states=across)
        logits = [out.logits]
        for token in ids[:, 9:].split(1, dim=1):
            out = fast(token, encoder_hidden_states=across, past_key_values=out.past_key_values)
            logits.append(out.logits)
    assert error(torch.cat(logits, dim=1), expected) < 1e-5


@pytest.mark.parametrize("position_embedding_type", [pytest.param("absolute", marks=slow), "relative_key_query"])
def test_many_shapes_make_few_graphs(position_embedding_type):
    _, model = twins("Model", position_embedding_type=position_embedding_type)
    fast = compiled(model)
    for batch, tokens in [(2, 9), (2, 12), (3, 9), (4, 20), (5, 31), (3, 17), (2, 11), (7, 13), (3, 3), (2, 30)]:
        ids = torch.randint(2, 60, (batch, tokens))
        mask = torch.ones_like(ids)
        mask[0, -1:] = 0
        with torch.no_grad():
            assert error(fast(ids, mask).last_hidden_state, model(ids, mask).last_hidden_state) < 1e-5


@slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch's own backend needs a C++ compiler, here is no g++")
def test_with_the_usual_backend():
    _, model = twins("ForMaskedLM", num_hidden_layers=1)
    ids = torch.randint(2, 60, (2, 9))
    out, expected = compiled(model, "inductor")(ids, labels=ids), model(ids, labels=ids)
    assert output_error(out, expected) < 1e-5
    expected.loss.backward()
    wanted = gradients(model)
    model.zero_grad()
    out.loss.backward()
    assert error(gradients(model), wanted) < 1e-5
