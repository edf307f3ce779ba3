"""sizes: formulas against models, counters and a ledger of bytes; the command that prints them."""

import itertools
import random
import re
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import xlmrxl_min
from xlmrxl_min import XLMRobertaXLConfig
from xlmrxl_min import base as model_module
from xlmrxl_min.__main__ import main
from xlmrxl_min.checkpoints.int8 import with_int8
from xlmrxl_min.base import POSITION_EMBEDDING_TYPES as POSITION_TYPES
from xlmrxl_min.checkpoints import memory
from xlmrxl_min.checkpoints.memory import free_memory
from xlmrxl_min.scale import planner
from xlmrxl_min.scale.planner import weight_bytes, fits, flops, parameters, plan, report
from xlmrxl_min.training.loop import adamw

SMALL = {"vocab_size": 300, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
SMALL |= {"intermediate_size": 200, "attention_probs_dropout_prob": 0.0}


def small(**changes):
    return XLMRobertaXLConfig(**{**SMALL, **changes})


def build(config, head, device="meta"):
    with torch.device(device):
        return getattr(xlmrxl_min, f"XLMRobertaXL{head}")(config)


def inputs(config, head, batch, tokens, device="meta"):
    shape = (batch, 1, tokens) if head == "ForMultipleChoice" else (batch, tokens)
    given = {"input_ids": torch.full(shape, 5, device=device)}
    if config.add_cross_attention:
        given["encoder_hidden_states"] = torch.zeros(batch, tokens, config.hidden_size, device=device)
    return given


# ---- parameters and bytes


def some_configs():
    draw = random.Random(0)
    for positions, (decoder, cross) in itertools.product(POSITION_TYPES, [(False, False), (True, False), (True, True)]):
        width = 4 * draw.randint(1, 20)
        yield XLMRobertaXLConfig(
            vocab_size=draw.randint(20, 999),
            hidden_size=width,
            num_hidden_layers=draw.randint(1, 4),
            num_attention_heads=draw.choice([2, 4]),
            intermediate_size=draw.randint(1, 300),
            max_position_embeddings=draw.randint(20, 99),
            type_vocab_size=draw.randint(1, 3),
            position_embedding_type=positions,
            is_decoder=decoder,
            add_cross_attention=cross,
            tie_word_embeddings=draw.random() < 0.5,
            pruned_heads=draw.choice([{}, {0: [1]}]),
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


def counted(model):
    """By the names of a model's parameters."""
    counts = dict.fromkeys(COMPONENTS, 0)
    for name, parameter in model.named_parameters():
        part = next(part for part, pattern in COMPONENTS.items() if re.search(pattern, name))
        counts[part] += parameter.numel()
    return counts


@pytest.mark.filterwarnings("ignore:with is_decoder")
@pytest.mark.parametrize("head", planner.HEADS)
def test_parameters_are_those_of_the_model(head):
    for config in some_configs():
        assert parameters(config, head) == counted(build(config, head)), config


def test_the_published_sizes():
    assert sum(parameters(XLMRobertaXLConfig.xl()).values()) == 3_482_741_760
    assert sum(parameters(XLMRobertaXLConfig.xxl()).values()) == 10_712_994_816


def int8_bytes(model, size):
    """The definition, module by module."""
    total, seen = 0, set()
    for home, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in seen:
                continue
            seen.add(parameter)
            word = isinstance(module, torch.nn.Embedding) and module is model.get_input_embeddings()
            large = isinstance(module, torch.nn.Linear) and ("layers." in home or home.startswith("lm_head"))
            matrix = name == "weight" and (large or word)
            total += parameter.numel() + 4 * len(parameter) if matrix else parameter.numel() * size
    return total


@pytest.mark.filterwarnings("ignore:with is_decoder")
@pytest.mark.parametrize("head", planner.HEADS)
def test_bytes_of_weights(head):
    for config in some_configs():
        model = build(config, head)
        numbers = sum(parameter.numel() for parameter in model.parameters())
        for dtype, size in (("float32", 4), ("bfloat16", 2), ("float16", 2)):
            assert weight_bytes(config, dtype, head) == numbers * size
            assert weight_bytes(config, dtype, head, "int8") == int8_bytes(model, size)
    assert weight_bytes(XLMRobertaXLConfig.xl(), "float32") == 13_930_967_040


# ---- FLOPs


@pytest.mark.filterwarnings("ignore:with is_decoder")
@pytest.mark.parametrize("head", planner.HEADS)
@pytest.mark.parametrize("tokens", [1, 130, 300])
def test_flops_are_those_that_pytorch_counts(head, tokens):
    for config in some_configs():
        config.max_position_embeddings = 514
        model, given = build(config, head), inputs(config, head, 3, tokens)
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            model(**given)
        assert sum(flops(config, 3, tokens, head).values()) == counter.get_total_flops(), config


def test_flops_by_component():
    found = flops(XLMRobertaXLConfig.xl(), 2, 512)
    assert found["attention"] == 2 * 2 * 512 * 36 * 4 * 2560**2
    assert found["scores and mixing"] == 2 * 36 * 2 * (2 * 512 * 512 * 2560)
    assert found["feed-forward"] == 2 * found["attention"]
    assert found["distances"] == found["cross-attention"] == found["pooler"] == 0


# ---- the plan


class Ledger(TorchDispatchMode):
    """Adds up the bytes of all storages that operations make, and takes them off when they are freed."""

    def __init__(self, known):
        super().__init__()
        self.now = self.peak = 0
        self.alive = {tensor.untyped_storage()._cdata for tensor in known}

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
            weakref.finalize(storage, self.drop, key, size)

    def drop(self, key, size):
        self.alive.discard(key)
        self.now -= size


@contextmanager
def pretending(dtype="float32") -> Iterator[None]:
    """Tensors on the CPU that have a shape and no memory; values cannot be looked at."""
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode():
        patch.setattr(model_module, "is_readable", lambda values: False)
        before = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, dtype))
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def ledger_of_forward(config, head, dtype, batch, tokens, int8=False):
    """Bytes beside weights and inputs, at their fullest."""
    with pretending(dtype):
        model, given = build(config, head, "cpu").eval(), inputs(config, head, batch, tokens, "cpu")
        model = with_int8(model, getattr(torch, dtype)) if int8 else model
        ledger = Ledger([*model.parameters(), *model.buffers(), *given.values()])
        with torch.no_grad(), ledger:
            model(**given)
    return ledger.peak


def ledger_of_training(config, head, dtype, batch, tokens, share=0.15):
    """Bytes beside weights and optimizer, at their fullest, in the second step: the optimizer's numbers are there."""
    with pretending(dtype):
        model, given = build(config, head, "cpu").train(), inputs(config, head, batch, tokens, "cpu")
        optimizer = adamw(model, 1e-3, 0.0)
        for group in optimizer.param_groups:
            group["foreach"] = True  # as on a GPU: all parameters at once
        state = [torch.zeros_like(parameter) for parameter in model.parameters() for _ in range(2)]
        for parameter, *moments in zip(model.parameters(), state[::2], state[1::2], strict=True):
            named = dict(zip(("exp_avg", "exp_avg_sq"), moments, strict=True))
            optimizer.state[parameter] = {"step": torch.tensor(1.0), **named}
        count = round(share * batch * tokens) if head == "ForMaskedLM" else batch * (tokens - 1)
        chosen, labels = torch.zeros(count, dtype=torch.long), torch.zeros(count, dtype=torch.long)
        ledger = Ledger([*model.parameters(), *given.values(), *state])
        with ledger:  # train.compute_loss, which looks at the labels
            out = model.base_model(**given, use_cache=False)
            if "LM" in head:
                hidden = out.last_hidden_state.flatten(0, 1)[chosen]
                loss = F.cross_entropy(model.lm_head(hidden).float(), labels)
                del hidden
            else:
                loss = (out.last_hidden_state if out.pooler_output is None else out.pooler_output).sum()
            del out
            loss.backward()
            optimizer.step()
    return ledger.peak


def close(planned, measured, share=0.1):
    assert abs(planned / measured - 1) <= share, f"planned {planned:,}, measured {measured:,}: {planned / measured:.3f}"


SHAPES = [(2, 64), (3, 128), (1, 300), (2, 500)]
FORWARD = [
    {},
    {"intermediate_size": 48},
    {"num_hidden_layers": 7},
    {"vocab_size": 20_000},
    {"position_embedding_type": "relative_key"},
    {"position_embedding_type": "relative_key_query"},
    {"is_decoder": True},
    {"is_decoder": True, "add_cross_attention": True},
    {"is_decoder": True, "position_embedding_type": "relative_key", "use_cache": False},
    {"is_decoder": True, "position_embedding_type": "relative_key_query"},
]


@pytest.mark.parametrize("changes", FORWARD, ids=str)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [*((shape, "float32") for shape in SHAPES), ((2, 64), "bfloat16"), ((1, 300), "bfloat16")],
    ids=str,
)
def test_plan_of_a_forward_pass(changes, shape, dtype):
    config, (batch, tokens) = small(**changes), shape
    head = "ForCausalLM" if config.is_decoder else "ForMaskedLM"
    planned = plan(config, head=head, dtype=dtype, batch=batch, tokens=tokens)
    close(planned.activations + planned.cache, ledger_of_forward(config, head, dtype, batch, tokens))
    assert planned.total == planned.weights + planned.activations + planned.cache


@pytest.mark.parametrize("changes", [*FORWARD[:6], {"hidden_dropout_prob": 0.0}, *FORWARD[6:8]], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_plan_of_training(changes, shape):
    config, (batch, tokens) = small(**changes), shape
    head = "ForCausalLM" if config.is_decoder else "ForMaskedLM"
    planned = plan(config, head=head, batch=batch, tokens=tokens, train=True)
    measured = ledger_of_training(config, head, "float32", batch, tokens)
    close(planned.total - planned.weights - planned.optimizer, measured)


@pytest.mark.parametrize("head", ["Model", "ForSequenceClassification", "ForQuestionAnswering"])
def test_plan_of_other_heads(head):
    forward, training = (plan(small(), head=head, batch=2, tokens=200, train=train) for train in (False, True))
    close(forward.activations, ledger_of_forward(small(), head, "float32", 2, 200))
    close(training.total - training.weights - training.optimizer, ledger_of_training(small(), head, "float32", 2, 200))


@pytest.mark.parametrize(("batch", "tokens"), [(8, 512), (1, 128), (32, 256)])
def test_plan_of_xl_at_full_size(batch, tokens):
    config = XLMRobertaXLConfig.xl(attention_probs_dropout_prob=0.0)
    for dtype in ("float32", "bfloat16"):
        planned = plan(config, dtype=dtype, batch=batch, tokens=tokens)
        close(planned.activations, ledger_of_forward(config, "ForMaskedLM", dtype, batch, tokens), 0.02)
    planned = plan(config, batch=batch, tokens=tokens, train=True)
    measured = ledger_of_training(config, "ForMaskedLM", "float32", batch, tokens)
    close(planned.total, planned.weights + planned.optimizer + measured, 0.02)


def test_plan_of_half_precision_training():
    """16 bytes per parameter, and half the activations; the ledger's own optimizer has no float32 weights."""
    config = XLMRobertaXLConfig.xl()
    half, full = (plan(config, dtype=dtype, train=True, batch=8) for dtype in ("bfloat16", "float32"))
    for one in (half, full):
        assert one.weights + one.gradients + one.optimizer == 16 * 3_482_741_760
    assert 0.5 < half.activations / full.activations < 0.55


def test_the_cache_is_what_the_model_allocates():
    config = small(is_decoder=True, add_cross_attention=True, pruned_heads={1: [0, 2]})
    model, states = build(config, "ForCausalLM", "cpu").eval(), torch.zeros(2, 70, 48)
    with torch.no_grad():
        out = model(torch.full((2, 70), 5), encoder_hidden_states=states)
        for step in range(80):
            held = [*out.past_key_values.layers, *out.past_key_values.cross]
            bytes_held = sum(x.untyped_storage().nbytes() for layer in held for x in (layer.keys, layer.values))
            assert bytes_held == plan(config, head="ForCausalLM", batch=2, tokens=70, decode=step).cache
            out = model(torch.full((2, 1), 5), past_key_values=out.past_key_values)
    assert plan(small(is_decoder=True, use_cache=False), head="ForCausalLM").cache == 0
    config = small(is_decoder=True, add_cross_attention=True)
    one_place = 2 * 3 * 48 * 4  # key and value, layers, width, bytes
    assert plan(config, head="ForCausalLM", tokens=10).cache == 2 * 64 * one_place  # a cache begins with 64 places


@pytest.mark.parametrize("vocabulary", [50, 300, 5000])
@pytest.mark.parametrize(("batch", "tokens"), [(1, 2), (1, 9), (2, 64), (3, 300)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plan_of_int8(vocabulary, batch, tokens, dtype):
    config = small(vocab_size=vocabulary)
    planned = plan(config, batch=batch, tokens=tokens, dtype=dtype, quantize="int8")
    assert planned.weights == weight_bytes(config, dtype, quantize="int8")
    close(planned.activations, ledger_of_forward(config, "ForMaskedLM", dtype, batch, tokens, int8=True))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tokens": 513}, "513 tokens are too many: this model has room for 512"),
        ({"batch": 0}, "a batch of 0 texts"),
        ({"dtype": "float8"}, "dtype='float8' is unknown"),
        ({"quantize": "int4"}, "quantize='int4' is unknown"),
        ({"quantize": "int8", "train": True}, "cannot be trained"),
        ({"masked_fraction": 0}, "masked_fraction=0"),
        ({"decode": 3}, "only decoders"),
        ({"head": "ForSpeech"}, "head='ForSpeech' is unknown"),
    ],
)
def test_impossible_settings(settings, words):
    with pytest.raises(ValueError, match=words):
        plan(small(), **settings)


def test_decoding_reaches_no_further_than_the_positions():
    decoder = small(is_decoder=True)
    assert plan(decoder, head="ForCausalLM", tokens=500, decode=12).cache > 0
    with pytest.raises(ValueError, match="513 tokens are too many"):
        plan(decoder, head="ForCausalLM", tokens=500, decode=13)
    with pytest.raises(ValueError, match="training does not decode"):
        plan(decoder, head="ForCausalLM", train=True, decode=1)


# ---- what there is


def test_fits():
    xl, xxl = XLMRobertaXLConfig.xl(), XLMRobertaXLConfig.xxl()
    half, eighth = plan(xl, dtype="bfloat16"), plan(xxl, dtype="bfloat16", quantize="int8")
    assert {"RTX 3060", "T4", "H100"} <= set(fits(half))
    assert "RTX 3060" in fits(eighth)
    assert "RTX 4090" in fits(eighth)
    assert fits(plan(xxl, train=True)) == []
    edge = int(24 * 2**30 * 0.9)
    assert "L4" in fits(half._replace(total=edge))
    assert "L4" not in fits(half._replace(total=edge + 1))


def pretend_system(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return memory.free_ram(root)


MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:    4000 kB\n"}


def test_free_ram(tmp_path):
    kb = 1024
    assert pretend_system(tmp_path / "none", {}) is None
    assert pretend_system(tmp_path / "old", {"proc/meminfo": "MemTotal: 9000 kB\n"}) is None
    assert pretend_system(tmp_path / "plain", MEMINFO) == 4000 * kb
    group = {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n"}
    group |= {"sys/fs/cgroup/a/memory.max": f"{3000 * kb}\n", "sys/fs/cgroup/a/memory.current": f"{2000 * kb}\n"}
    group |= {"sys/fs/cgroup/a/memory.stat": f"anon 7\ninactive_file {500 * kb}\n"}
    assert pretend_system(tmp_path / "v2", {**MEMINFO, **group}) == 1500 * kb
    old = "sys/fs/cgroup/memory/c/memory"
    group = {"proc/self/cgroup": "3:cpu:/c\n2:memory:/c\n", f"{old}.limit_in_bytes": f"{2000 * kb}"}
    group |= {f"{old}.usage_in_bytes": f"{1900 * kb}", f"{old}.stat": "total_inactive_file 0\n"}
    assert pretend_system(tmp_path / "v1", {**MEMINFO, **group}) == 100 * kb
    group[f"{old}.usage_in_bytes"] = f"{2100 * kb}"
    assert pretend_system(tmp_path / "over", {**MEMINFO, **group}) == 0
    group[f"{old}.limit_in_bytes"] = "9223372036854771712"
    assert pretend_system(tmp_path / "no limit", {**MEMINFO, **group}) == 4000 * kb


def test_free_memory_asks_the_device(monkeypatch):
    class Module:
        @staticmethod
        def mem_get_info(device):
            assert str(device) == "cuda:1"
            return 123, 456

    monkeypatch.setattr(torch, "get_device_module", lambda device: Module)
    assert free_memory("cuda:1") == 123
    monkeypatch.setattr(torch, "get_device_module", lambda device: object())
    assert free_memory("mps") is None
    assert free_memory("cpu") == pytest.approx(memory.free_ram(), rel=0.2)


@pytest.mark.cuda
def test_plan_against_a_gpu():
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    config = small(hidden_size=512, num_attention_heads=8, intermediate_size=2048, vocab_size=20_000)
    model = build(config, "ForMaskedLM", "cuda").eval()
    with torch.no_grad():
        model(torch.full((8, 256), 5, device="cuda"))
    close(plan(config, batch=8, tokens=256).total, torch.cuda.max_memory_allocated() - before)


# ---- the command


def test_the_command_prints_the_plan(capsys, tmp_path):
    assert main(["plan", "xl", "--dtype", "bfloat16", "--batch", "8"]) == 0
    out = capsys.readouterr().out
    assert report(plan(XLMRobertaXLConfig.xl(), dtype="bfloat16", batch=8)) in out
    assert "3,482,741,760" in out
    assert "6.97 GB" in out
    assert main(["plan", "xxl", "--int8", "--dtype", "bfloat16"]) == 0
    assert "10,712,994,816" in capsys.readouterr().out
    assert main(["plan", "tiny", "--train", "--tokens", "64"]) == 0
    out = capsys.readouterr().out
    assert "5,414,210" in out
    assert "optimizer" in out
    config = small(is_decoder=True, num_labels=3)
    xlmrxl_min.XLMRobertaXLForCausalLM(config).save_pretrained(tmp_path / "decoder")
    assert main(["plan", str(tmp_path / "decoder")]) == 0
    assert "cache" in capsys.readouterr().out
    xlmrxl_min.XLMRobertaXLForTokenClassification(small(num_labels=3)).save_pretrained(tmp_path / "tagger")
    assert main(["plan", str(tmp_path / "tagger")]) == 0
    assert f"{sum(parameters(small(num_labels=3), 'ForTokenClassification').values()):,}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["xl", "--tokens", "600"], "600 tokens are too many"),
        (["xl", "--int8", "--train"], "int8 weights cannot be trained"),
        (["xl", "--batch", "0"], "a batch of 0 texts"),
        (["./nowhere"], "nowhere"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, words, capsys):
    assert main(["plan", *arguments]) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert said.out == ""
