"""The planner's formulas against models, PyTorch's FLOP counter and measured peaks; the command that prints a plan."""

import itertools
import random
import re
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import xlmrxl_min
from xlmrxl_min import XLMRobertaXLConfig
from xlmrxl_min.__main__ import main
from xlmrxl_min.base.config import POSITION_EMBEDDING_TYPES
from xlmrxl_min.checkpoints.int8 import convert_to_int8
from xlmrxl_min.scale import planner
from xlmrxl_min.scale.planner import fits, flops, format_plan, parameters, plan, weight_bytes
from xlmrxl_min.training.loop import adamw, compute_loss

# XL's proportions, in small; on a CPU, only without dropout of attention weights are these never stored
SIZES = {"vocab_size": 8000, "hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 1024, "attention_probs_dropout_prob": 0.0}
XL, XXL = XLMRobertaXLConfig.xl(), XLMRobertaXLConfig.xxl()

pytestmark = pytest.mark.filterwarnings("ignore:with is_decoder")


def small(**changes):
    return XLMRobertaXLConfig(**{**SIZES, **changes})


def build(config, head, device="meta"):
    with torch.device(device):
        return getattr(xlmrxl_min, f"XLMRobertaXL{head}")(config)


def inputs(config, head, batch, tokens, device="meta", dtype=torch.float32):
    shape = (batch, 1, tokens) if head == "ForMultipleChoice" else (batch, tokens)
    given = {"input_ids": torch.full(shape, 5, device=device)}
    if config.add_cross_attention:
        given["encoder_hidden_states"] = torch.zeros(batch, tokens, config.hidden_size, device=device, dtype=dtype)
    return given


# ---- parameters and bytes


def some_configs(cross_attention=True):
    rng = random.Random(0)
    decoders = [(False, False), (True, False), (True, True)][: 3 if cross_attention else 2]
    for positions, (decoder, cross) in itertools.product(POSITION_EMBEDDING_TYPES, decoders):
        yield XLMRobertaXLConfig(
            vocab_size=rng.randint(20, 999),
            hidden_size=4 * rng.randint(1, 20),
            num_hidden_layers=rng.randint(1, 4),
            num_attention_heads=rng.choice([2, 4]),
            intermediate_size=rng.randint(1, 300),
            max_position_embeddings=rng.randint(20, 99),
            type_vocab_size=rng.randint(1, 3),
            position_embedding_type=positions,
            is_decoder=decoder,
            add_cross_attention=cross,
            tie_word_embeddings=rng.random() < 0.5,
            pruned_heads=rng.choice([{}, {0: [1]}]),
        )


COMPONENTS = {
    "word embeddings": r"embeddings\.word\.",
    "positions": r"embeddings\.position\.",
    "token types": r"embeddings\.token_type\.",
    "distance tables": r"attention\.distance\.",
    "cross-attention": r"cross_attention\.(query|key|value|out)\.",
    "attention": r"\battention\.(query|key|value|out)\.",
    "feed-forward": r"feed_forward\.(up|down)\.",
    "head": r"^(lm_head|classifier|qa_outputs)\.",
    "norms": r"norm\.",
    "pooler": r"pooler\.",
}


def count_by_name(model):
    counts = dict.fromkeys(COMPONENTS, 0)
    for name, parameter in model.named_parameters():
        component = next(component for component, pattern in COMPONENTS.items() if re.search(pattern, name))
        counts[component] += parameter.numel()
    return counts


@pytest.mark.parametrize("head", planner.MODEL_HEADS)
def test_parameters_and_bytes_are_those_of_the_model(head):
    for config in some_configs():
        model = build(config, head)
        assert parameters(config, head) == count_by_name(model), config
        number = sum(parameter.numel() for parameter in model.parameters())
        quantized = list(convert_to_int8(model, torch.float32).parameters())
        for dtype, size in (("float32", 4), ("bfloat16", 2), ("float16", 2)):
            assert weight_bytes(config, dtype, head) == number * size
            sizes = [p.numel() * (size if p.requires_grad else p.itemsize) for p in quantized]
            assert weight_bytes(config, dtype, head, "int8") == sum(sizes)


def test_the_published_sizes():
    assert sum(parameters(XL).values()) == 3_482_741_760
    assert sum(parameters(XXL).values()) == 10_712_994_816
    assert weight_bytes(XL, "float32") == 13_930_967_040


# ---- FLOPs


@pytest.mark.parametrize("head", planner.MODEL_HEADS)
@pytest.mark.parametrize(
    ("tokens", "step"), [(130, 2), *(pytest.param(n, 1, marks=pytest.mark.slow) for n in (1, 130, 300))]
)
def test_flops_are_those_that_pytorch_counts(head, tokens, step):
    for config in list(some_configs(cross_attention=head in ("Model", "ForMaskedLM", "ForCausalLM")))[::step]:
        config.max_position_embeddings = 514
        model, given = build(config, head), inputs(config, head, 3, tokens)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(**given)
        assert sum(flops(config, 3, tokens, head).values()) == counter.get_total_flops(), config


def test_flops_by_component():
    found = flops(XL, 2, 512)
    assert found["attention"] == 2 * 2 * 512 * 36 * 4 * 2560**2
    assert found["scores and mixing"] == 2 * 36 * 2 * (2 * 512 * 512 * 2560)
    assert found["feed-forward"] == 2 * found["attention"]
    assert found["distances"] == found["cross-attention"] == found["pooler"] == 0


# ---- peak memory


class PeakMemory(TorchDispatchMode):
    """Add the bytes of every storage that an operation allocates, until it is freed; `known` ones do not count."""

    def __init__(self, *known):
        super().__init__()
        self.now = self.peak = 0
        self.alive = {tensor.untyped_storage()._cdata for tensor in tree_leaves(known)}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return out

    def add(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key not in self.alive:
            self.alive.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.free, key, size)

    def free(self, key, size):
        self.alive.discard(key)
        self.now -= size


def measure_forward(config, head, batch, tokens, dtype, quantize):
    """The peak without weights and inputs."""
    model, given = build(config, head, "cpu").eval(), inputs(config, head, batch, tokens, "cpu", dtype)
    if quantize:
        convert_to_int8(model, dtype)
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter, dtype=dtype if parameter.requires_grad else parameter.dtype)
    model.tie_weights()
    with torch.no_grad(), PeakMemory(list(model.parameters()), given) as memory:
        model(**given)
    return memory.peak


def measure_training(config, head, batch, tokens):
    """The peak of the second step, without weights, inputs and optimizer."""
    model, given = build(config, head, "cpu").train(), inputs(config, head, batch, tokens, "cpu")
    labels = given["input_ids"].clone()
    if head == "ForMaskedLM":
        labels.view(-1)[round(0.15 * batch * tokens) :] = -100
    given["labels"] = labels[:, 0] * 0 if head == "ForSequenceClassification" else labels
    optimizer = adamw(model, 1e-3, 0.0)
    for group in optimizer.param_groups:
        group["foreach"] = True  # as on a GPU: all parameters at once
    compute_loss(model, given).backward()
    optimizer.step()
    optimizer.zero_grad()
    with PeakMemory(list(model.parameters()), given, list(optimizer.state.values())) as memory:
        compute_loss(model, given).backward()
        optimizer.step()
    return memory.peak


def assert_close(planned, measured, limit=0.15):
    assert abs(planned / measured - 1) <= limit, f"planned {planned:,}, measured {measured:,}: {planned / measured:.3f}"


HALF, SMALL_VOCABULARY = torch.bfloat16, {"vocab_size": 500}  # few logits: blocks need most
DECODER = {"is_decoder": True, "add_cross_attention": True, **SMALL_VOCABULARY}
FORWARD = [
    ({}, "ForMaskedLM", 2, 128, torch.float32, None),
    ({}, "ForMaskedLM", 1, 500, HALF, None),
    ({}, "ForMaskedLM", 2, 256, HALF, "int8"),
    (DECODER, "ForCausalLM", 2, 200, torch.float32, None),
    ({}, "Model", 4, 256, torch.float32, None),
    *(
        ({"position_embedding_type": positions, **SMALL_VOCABULARY}, "ForMaskedLM", *shape, torch.float32, None)
        for positions in ("relative_key", "relative_key_query")
        for shape in ((2, 128), (1, 500))
    ),
]
TRAINING = [
    ({}, "ForMaskedLM", 2, 128),  # the optimizer step needs more than the activations
    (SMALL_VOCABULARY, "ForMaskedLM", 1, 500),
    (DECODER, "ForCausalLM", 1, 300),
    ({"hidden_dropout_prob": 0.0}, "ForSequenceClassification", 4, 256),
    ({"position_embedding_type": "relative_key", **SMALL_VOCABULARY}, "ForMaskedLM", 1, 500),
    ({"position_embedding_type": "relative_key_query", **SMALL_VOCABULARY}, "ForMaskedLM", 2, 256),
]


@pytest.mark.parametrize(("changes", "head", "batch", "tokens", "dtype", "quantize"), FORWARD)
def test_planned_peak_of_a_forward_pass(changes, head, batch, tokens, dtype, quantize):
    config, name = small(**changes), str(dtype).removeprefix("torch.")
    planned = plan(config, head=head, dtype=name, quantize=quantize, batch=batch, tokens=tokens)
    assert_close(planned.activations + planned.cache, measure_forward(config, head, batch, tokens, dtype, quantize))
    assert planned.weights == weight_bytes(config, name, head, quantize)
    assert planned.total == planned.weights + planned.activations + planned.cache


@pytest.mark.parametrize(("changes", "head", "batch", "tokens"), TRAINING)
def test_planned_peak_of_training(changes, head, batch, tokens):
    config = small(**changes)
    planned = plan(config, head=head, batch=batch, tokens=tokens, train=True)
    assert_close(planned.total - planned.weights - planned.optimizer, measure_training(config, head, batch, tokens))


def test_half_precision_training():
    """16 bytes per parameter, and half the activations."""
    half, full = (plan(XL, dtype=dtype, train=True, batch=8) for dtype in ("bfloat16", "float32"))
    for planned in (half, full):
        assert planned.weights + planned.gradients + planned.optimizer == 16 * 3_482_741_760
    assert 0.5 < half.activations / full.activations < 0.55


@pytest.mark.parametrize("tokens", [10, 70])
def test_the_cache_is_what_the_model_allocates(tokens):
    config = small(is_decoder=True, add_cross_attention=True, pruned_heads={1: [0, 2]})
    model, states = build(config, "ForCausalLM", "cpu").eval(), torch.zeros(2, tokens, 256)
    with torch.no_grad():
        cache = model(torch.full((2, tokens), 5), encoder_hidden_states=states).past_key_values
    tensors = [x for layer in (*cache.layers, *cache.cross) for x in (layer.keys, layer.values)]
    allocated = sum(tensor.untyped_storage().nbytes() for tensor in tensors)
    assert allocated == plan(config, head="ForCausalLM", batch=2, tokens=tokens).cache
    assert plan(small(is_decoder=True, use_cache=False), head="ForCausalLM").cache == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": 513}, "513 tokens are too many: this model has room for 512"),
        ({"batch": 0}, "a batch of 0 texts"),
        ({"dtype": "float8"}, "dtype='float8' is unknown"),
        ({"quantize": "int4"}, "quantize='int4' is unknown"),
        ({"quantize": "int8", "train": True}, "cannot be trained"),
        ({"quantize": "int8", "data": 2}, "int8 weights are not sharded"),
        ({"head": "ForSpeech"}, "head='ForSpeech' is unknown"),
        ({"tensor": 3}, "4 heads cannot be sharded over 3 ranks"),
        ({"tensor": 4, "intermediate_size": 1022}, "intermediate_size=1022 cannot be sharded over 4 ranks"),
        ({"data": 0}, "0 ranks are impossible"),
    ],
)
def test_impossible_settings(settings, message):
    changes = {name: settings.pop(name) for name in list(settings) if name in SIZES}
    with pytest.raises(ValueError, match=message):
        plan(small(**changes), **settings)


@pytest.mark.cuda
def test_plan_against_a_gpu():
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    config = small(hidden_size=512, num_attention_heads=8, intermediate_size=2048, vocab_size=20_000)
    model = build(config, "ForMaskedLM", "cuda").eval()
    with torch.no_grad():
        model(torch.full((8, 256), 5, device="cuda"))
    assert_close(plan(config, batch=8, tokens=256).total, torch.cuda.max_memory_allocated() - before)


# ---- several ranks; that the parameters of a rank are those that PyTorch gives it is in test_parallel.py


@pytest.mark.parametrize("count", [2, 4, 8])
def test_plan_of_xxl_on_ranks(count):
    """Along data, the ranks together store the model once; along tensor, norms, positions and some biases each."""
    total, e, layers = sum(parameters(XXL).values()), XXL.hidden_size, XXL.num_hidden_layers
    data, trained = (plan(XXL, data=count, dtype="bfloat16", train=train) for train in (False, True))
    assert data.weights == 2 * total / count
    block = 2 * (4 * (e * e + e) + 2 * 4 * e * e + 4 * e + e + 4 * e)  # weights, biases, norms; bfloat16
    assert data.gathered == 2 * total - (layers - 3) * block
    assert trained.gradients + trained.optimizer + trained.weights == 16 * total / count
    assert trained.total == 16 * total / count + trained.gathered + trained.activations
    tensor = plan(XXL, tensor=count, dtype="bfloat16")
    replicated = 514 * e + e + (2 * layers + 1) * 2 * e + layers * 2 * e + e * e + 3 * e  # also the LM head's dense
    assert tensor.weights == 2 * ((total - replicated) // count + replicated)
    logits = 2 * 512 * XXL.vocab_size
    assert tensor.gathered == logits + logits // count


# ---- GPUs and the command line


def test_fits():
    half, eighth = plan(XL, dtype="bfloat16"), plan(XXL, dtype="bfloat16", quantize="int8")
    assert {"RTX 3060", "T4", "H100"} <= set(fits(half))
    assert {"RTX 3060", "RTX 4090"} <= set(fits(eighth))
    assert fits(plan(XXL, train=True)) == []
    limit = int(24 * 2**30 * 0.9)
    assert "L4" in fits(half._replace(total=limit))
    assert "L4" not in fits(half._replace(total=limit + 1))


def test_command_prints_the_plan(capsys, tmp_path):
    assert main(["plan", "xl", "--dtype", "bfloat16", "--batch", "8"]) == 0
    out = capsys.readouterr().out
    assert format_plan(plan(XL, dtype="bfloat16", batch=8)) in out
    assert all(text in out for text in ("3,482,741,760", "6.97 GB"))
    assert main(["plan", "xxl", "--int8", "--dtype", "bfloat16"]) == 0
    assert "10,712,994,816" in capsys.readouterr().out
    assert main(["plan", "tiny", "--train", "--tokens", "64"]) == 0
    out = capsys.readouterr().out
    assert all(text in out for text in ("5,073,122", "optimizer"))
    config = small(is_decoder=True, num_labels=3)
    xlmrxl_min.XLMRobertaXLForCausalLM(config).save_pretrained(tmp_path / "decoder")
    assert main(["plan", str(tmp_path / "decoder")]) == 0
    assert "cache" in capsys.readouterr().out
    xlmrxl_min.XLMRobertaXLForTokenClassification(small(num_labels=3)).save_pretrained(tmp_path / "tagger")
    assert main(["plan", str(tmp_path / "tagger")]) == 0
    assert f"{sum(parameters(small(num_labels=3), 'ForTokenClassification').values()):,}" in capsys.readouterr().out


def test_command_plans_for_ranks(capsys):
    assert main(["plan", "xxl", "--dtype", "bfloat16", "--ranks", "2", "4", "8"]) == 0
    rows = re.findall(r"^ +(\d)  (tensor|data) +([\d.]+)", capsys.readouterr().out, flags=re.MULTILINE)
    assert [(int(count), dimension) for count, dimension, _ in rows] == list(
        itertools.product((2, 4, 8), ("tensor", "data"))
    )
    assert [float(weights) for *_, weights in rows] == [10.73, 10.71, 5.39, 5.36, 2.71, 2.68]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["xl", "--tokens", "600"], "600 tokens are too many"),
        (["xl", "--int8", "--train"], "int8 weights cannot be trained"),
        (["xl", "--batch", "0"], "a batch of 0 texts"),
        (["./nowhere"], "nowhere"),
    ],
)
def test_command_says_what_is_wrong(arguments, message, capsys):
    assert main(["plan", *arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert len(printed.err.strip().splitlines()) == 1
    assert printed.out == ""


def test_command_rejects_impossible_ranks(capsys):
    assert main(["plan", "xl", "--ranks", "3"]) == 2
    assert "32 heads cannot be sharded over 3 ranks" in capsys.readouterr().err
    assert main(["plan", "xl", "--int8", "--ranks", "2"]) == 2
