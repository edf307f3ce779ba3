"""Several ranks, on the CPU: what they find together is what one process finds."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import on_ranks
import pytest
import torch
import torch.distributed as dist
from reference import twins
from torch.distributed.device_mesh import init_device_mesh

import xlmrxl_min
from xlmrxl_min import XLMRobertaXLConfig, XLMRobertaXLForMaskedLM
from xlmrxl_min.__main__ import main as command_line
from xlmrxl_min.checkpoints.int8 import with_int8
from xlmrxl_min.scale import parallel, planner
from xlmrxl_min.scale.parallel import RankError, load, parallelize, plan_rank, ranks, tensor_plan

HERE = Path(__file__).parent
GRIDS = {2: ("1x2", "2x1"), 4: ("1x4", "4x1", "2x2")}  # data x tensor


def needs_a_new_torch():
    if tuple(map(int, torch.__version__.split(".")[:2])) < parallel.OLDEST:
        pytest.skip(f"torch {torch.__version__} is older than parallel.py can use")


def torchrun(count, *arguments, timeout=300, gpu=False):
    """What torchrun prints, and its exit status; each rank on one thread of the CPU, unless it may have a GPU."""
    needs_a_new_torch()
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(count),
        *arguments,
    ]
    path = {"PYTHONPATH": str(HERE.parent)}  # on_ranks.py imports reference.py
    environment = {**os.environ, **path, "OMP_NUM_THREADS": "1", **({} if gpu else {"CUDA_VISIBLE_DEVICES": ""})}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=environment, cwd=HERE.parents[1], start_new_session=True, **pipes)
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # of a torchrun that hangs the ranks, too
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.fixture(scope="module", params=[2, 4])
def outcomes(request, tmp_path_factory):
    """{grid and job: what went wrong, or nothing}, of every rank."""
    folder = tmp_path_factory.mktemp("ranks")
    done = torchrun(request.param, str(HERE / "on_ranks.py"), str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr, done.stderr[:3000]
    return request.param, [json.loads(file.read_text()) for file in sorted(folder.glob("outcomes-*.json"))]


@pytest.mark.parametrize("job", on_ranks.JOBS)
def test_ranks_find_what_one_process_finds(job, outcomes):
    count, of_ranks = outcomes
    assert len(of_ranks) == count
    names = [name for name in (f"{grid}-{job}" for grid in GRIDS[count]) if name in of_ranks[0]]
    assert names
    for rank, outcome in enumerate(of_ranks):
        wrong = {name: outcome[name] for name in names if outcome[name]}
        assert not wrong, f"rank {rank} of {count}: {wrong}"


def test_ranks_share_the_reading(outcomes):
    """Together they read the file about once: what all need, norms and positions, is small."""
    count, of_ranks = outcomes
    for grid in GRIDS[count]:
        read = [outcome[f"{grid}-bytes"] for outcome in of_ranks]
        assert sum(each["own"] for each in read) < 1.1 * read[0]["file"]
        assert max(each["own"] for each in read) < 1.1 * read[0]["file"] / count


def test_command_line_fills_in_as_one_process_does(capsys):
    text = "Alle Menschen sind frei und <mask> an Würde"
    assert command_line(["fill", text]) == 0
    alone = capsys.readouterr().out
    done = torchrun(2, "-m", "xlmrxl_min.scale.parallel", "fill", text)
    assert done.returncode == 0, done.stderr
    shares, _, found = done.stdout.partition("<mask>")
    assert f"<mask>{found}" == alone
    assert re.findall(r"rank (\d) \(data 0, tensor (\d)\)", shares) == [("0", "0"), ("1", "1")]


def test_command_line_trains_and_saves(tmp_path):
    def losses(count, *options):
        done = torchrun(count, "-m", "xlmrxl_min.scale.parallel", "train", "--steps", "3", *options)
        assert done.returncode == 0, done.stderr
        return re.findall(r"step \d: loss (\d+\.\d+)", done.stdout)

    alone = losses(1, "--batch", "4", "--into", str(tmp_path / "one"))
    assert losses(2, "--batch", "4", "--tensor", "2", "--into", str(tmp_path / "two")) == alone
    assert len(losses(2, "--batch", "2")) == len(alone) == 3
    one, two = (XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / name) for name in ("one", "two"))
    for ours, expected in zip(two.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)  # AdamW's steps are of 1e-3
    assert (tmp_path / "two" / "sentencepiece.bpe.model").exists()


@pytest.mark.cuda
def test_on_gpus(tmp_path):
    """As many ranks as there are GPUs; the tests above are its counterparts on the CPU."""
    count = min(2, torch.cuda.device_count())
    text = "Alle Menschen sind frei und <mask> an Würde"
    filled = torchrun(count, "-m", "xlmrxl_min.scale.parallel", "fill", text, gpu=True)
    assert filled.returncode == 0, filled.stderr
    assert "on cuda:0" in filled.stdout
    assert "gleich" in filled.stdout.splitlines()[count + 1]
    trained = torchrun(
        count, "-m", "xlmrxl_min.scale.parallel", "train", "--steps", "3", "--into", str(tmp_path), gpu=True
    )
    assert trained.returncode == 0, trained.stderr
    assert len(re.findall("step .: loss", trained.stdout)) == 3
    XLMRobertaXLForMaskedLM.from_pretrained(tmp_path)


# ---- without a line of code: accelerate


@pytest.mark.parametrize("name", ["tiny", "tiny-relative-key", "tiny-decoder"])
def test_accelerate_keeps_weights_on_disk_until_they_are_used(name, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    cls = xlmrxl_min.XLMRobertaXLForCausalLM if name == "tiny-decoder" else XLMRobertaXLForMaskedLM
    model, whole = cls.from_pretrained(name), cls.from_pretrained(name)
    room = {"cpu": 14_000_000, "disk": 10**9}  # bytes
    places = accelerate.infer_auto_device_map(model, max_memory=room, no_split_module_classes=["Block"])
    assert set(places.values()) == {"cpu", "disk"}
    options = {"main_device": "cpu", "offload_dir": tmp_path, "preload_module_classes": ["Attention"]}
    accelerate.dispatch_model(model, places, **options)
    held_back = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    assert any("layers.3" in name for name in held_back)
    assert sum(file.stat().st_size for file in tmp_path.glob("*.dat")) > 4_000_000
    ids = torch.tensor([[0, 5, 9, 7, 2]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, whole(ids).logits, atol=0, rtol=0)
    if name == "tiny-decoder":
        settings = {"max_new_tokens": 8, "eos_token_id": -1}
        assert torch.equal(model.generate(ids[:, :-1], **settings), whole.generate(ids[:, :-1], **settings))


# ---- what cannot be


def test_a_rank_needs_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda number: None)
    assert parallel.own_device(0) == torch.device("cuda", 0)
    with pytest.raises(ValueError, match="rank 1 of this machine has no GPU, as there are 1: start one rank for each"):
        parallel.own_device(1)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    assert parallel.own_device(1) == torch.device("cpu")  # no backend sends from there


@pytest.fixture
def pretend():
    """Four ranks that only seem to be there, of which this process is the first."""
    dist.init_process_group("fake", rank=0, world_size=4, store=dist.HashStore())
    yield lambda data, tensor: init_device_mesh("cpu", (data, tensor), mesh_dim_names=("data", "tensor"))
    dist.destroy_process_group()


def test_heads_that_cannot_be_dealt(pretend):
    _, three = twins("ForMaskedLM", intermediate_size=64)
    with pytest.raises(ValueError, match="3 heads cannot be dealt to 4 ranks: take a divisor"):
        parallelize(three, pretend(1, 4))
    parallelize(three, pretend(4, 1))  # the other axis cuts anything


def test_heads_that_cannot_be_dealt_after_pruning(pretend):
    _, model = twins("ForMaskedLM", hidden_size=32, num_attention_heads=4, intermediate_size=64)
    model.prune_heads({1: [2]})
    with pytest.raises(ValueError, match=r"3 heads \(in layer 1, after pruning\) cannot be dealt to 4 ranks"):
        parallelize(model, pretend(1, 4))


def test_width_that_cannot_be_dealt(pretend):
    _, model = twins("ForMaskedLM", hidden_size=32, num_attention_heads=4)
    with pytest.raises(ValueError, match="intermediate_size=29 cannot be dealt to 2 ranks"):
        parallelize(model, pretend(2, 2))


def test_int8_is_not_divided(pretend):
    _, model = twins("ForMaskedLM", hidden_size=32, num_attention_heads=4, intermediate_size=64)
    with_int8(model, torch.float32)
    with pytest.raises(ValueError, match="int8 weights are not divided"):
        parallelize(model, pretend(1, 4))
    with pytest.raises(ValueError, match="leave out quantize"):
        load(XLMRobertaXLForMaskedLM, "tiny", pretend(1, 4), quantize="int8")


def test_sizes_stay_once_divided(pretend):
    _, model = twins("ForMaskedLM", hidden_size=32, num_attention_heads=4, intermediate_size=64)
    parallelize(model, pretend(1, 4))
    for change in (lambda: model.prune_heads({0: [0]}), lambda: model.resize_token_embeddings(99)):
        with pytest.raises(ValueError, match="prune and resize before"):
            change()


def test_ranks_need_a_new_torch(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.11.3+cu128")
    with pytest.raises(ValueError, match=r"torch 2.11.3\+cu128 is too old for several ranks: install 2.12"), ranks():
        pass


def test_ranks_that_never_met_say_why(monkeypatch):
    needs_a_new_torch()

    def refused(*args, **kwargs):
        raise dist.DistBackendError("NCCL error: the driver is too old\nand more")

    monkeypatch.setattr(dist, "init_process_group", refused)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(RankError, match=r"rank 0 of 2 could not reach the others.*the driver is too old\)\.$"), ranks():
        pass


def test_ranks_need_torchrun(monkeypatch):
    needs_a_new_torch()
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="start this with torchrun"), ranks():
        pass
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="4 ranks cannot stand in rows of 3: take a divisor"), ranks(3):
        pass


@pytest.mark.parametrize("arguments", [("--tensor", "3"), ("--model", "no such model")])
def test_command_line_says_what_is_wrong(arguments):
    done = torchrun(2, "-m", "xlmrxl_min.scale.parallel", "fill", "<mask>", *arguments, timeout=180)
    assert done.returncode != 0
    assert ("cannot stand in rows of 3" if "--tensor" in arguments else "no such model") in done.stderr


# ---- ranks that die

DEATH = """
import os, sys, time, torch
from xlmrxl_min import XLMRobertaXLForMaskedLM
from xlmrxl_min.scale.parallel import RankError, load, ranks
try:
    with ranks(2, timeout_s={timeout_s}) as mesh:
        model = load(XLMRobertaXLForMaskedLM, "tiny", mesh)
        ids = torch.tensor([[0, 5, 2]])
        model(ids)
        if os.environ["RANK"] == "1":
            {fate}
        model(ids)
except RankError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize(
    ("fate", "timeout_s", "status"),
    [("os._exit(7)", 120, 7), ("raise MemoryError('no room')", 120, 1), ("time.sleep(600)", 20, None)],
)
def test_a_rank_that_dies_or_hangs_ends_the_others(fate, timeout_s, status):
    """Without torchrun, which would stop the others itself: what they do on their own."""
    needs_a_new_torch()
    script = DEATH.format(fate=fate, timeout_s=timeout_s)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # here, as torchrun does: a free port
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2"}
    environment |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script], env={**environment, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        if status is not None:
            _, its_last_words = processes[1].communicate(timeout=180)
            assert processes[1].returncode == status, its_last_words
        start = time.monotonic()
        _, said = processes[0].communicate(timeout=180)
        waited = time.monotonic() - start
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert processes[0].returncode == 1, said
    assert f"rank 0 of 2 has lost the others: one has died, or did not answer within {timeout_s} s" in said
    assert status is None or waited < timeout_s / 2, "it waited for one who was dead"


def test_torchrun_ends_when_a_rank_dies(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(DEATH.format(fate="raise MemoryError('no room')", timeout_s=300))
    done = torchrun(2, str(script), timeout=180)
    assert done.returncode != 0
    assert "MemoryError: no room" in done.stderr


# ---- planning


def test_plan_names_every_matrix_of_a_block():
    config = XLMRobertaXLConfig(
        vocab_size=61,
        hidden_size=32,
        num_attention_heads=4,
        num_hidden_layers=2,
        is_decoder=True,
        add_cross_attention=True,
    )
    model = xlmrxl_min.XLMRobertaXLForCausalLM(config)
    linear = [name for name, module in model.backbone.layers[0].named_modules() if isinstance(module, torch.nn.Linear)]
    assert sorted(name for name, cut in parallel.BLOCK_PLAN.items() if cut != "nothing") == sorted(linear)
    assert all(isinstance(model.get_submodule(name), torch.nn.Module) for name in tensor_plan(model))
    assert "lm_head.decoder" in tensor_plan(model)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_plan_of_xxl_adds_up(count):
    """Cut by FSDP, the ranks hold it once; by tensor parallelism, norms, positions and some biases on every rank."""
    config = XLMRobertaXLConfig.xxl()
    whole = sum(planner.parameters(config).values())
    by_data = plan_rank(config, data=count, dtype="bfloat16")
    assert whole / count <= by_data.parameters < 1.0001 * whole / count
    by_tensor = plan_rank(config, tensor=count, dtype="bfloat16")
    e, layers = config.hidden_size, config.num_hidden_layers
    everywhere = (
        514 * e + e + (2 * layers + 1) * 2 * e + layers * 2 * e + e * e + 3 * e
    )  # … rows' biases, LM head's dense
    assert by_tensor.parameters == (whole - everywhere) // count + everywhere
    logits = 2 * 512 * config.vocab_size
    assert by_tensor.gathered == logits + logits // count
    block = 2 * (4 * (e * e + e) + 2 * 4 * e * e + 4 * e + e + 4 * e)  # weights, biases, norms; bfloat16
    assert by_data.gathered == 2 * whole - (layers - 3) * block
    assert by_tensor.weights == 2 * by_tensor.parameters
    trained = plan_rank(config, data=count, dtype="bfloat16", train=True)
    assert trained.gradients + trained.optimizer + trained.weights == 16 * trained.parameters
    assert trained.total == 16 * trained.parameters + trained.gathered + trained.activations


@pytest.mark.parametrize("decoder", [False, True])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("tokens", [16, 512])
def test_plan_of_one_rank_is_no_less_than_the_plan(tokens, train, decoder):
    for config in (XLMRobertaXLConfig.xl(is_decoder=decoder), XLMRobertaXLConfig.xxl(tie_word_embeddings=False)):
        head = "ForCausalLM" if config.is_decoder else "ForMaskedLM"
        settings = {"head": head, "dtype": "bfloat16", "train": train, "tokens": tokens, "batch": 4}
        alone, one = planner.plan(config, **settings).total, plan_rank(config, **settings).total
        assert alone <= one
        if not train:
            assert alone == one


@pytest.mark.parametrize(("data", "tensor"), [(1, 4), (4, 1), (2, 2)])
def test_plan_is_what_ranks_hold(data, tensor, pretend):
    """The same cut of real memory: the first rank's, which is the fullest."""
    sizes_ = {"vocab_size": 61, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    config = XLMRobertaXLConfig(num_hidden_layers=3, max_position_embeddings=40, **sizes_)
    model = parallelize(XLMRobertaXLForMaskedLM(config), pretend(data, tensor))
    dist.destroy_process_group()
    expected = plan_rank(config, tensor, data, tokens=20)
    dist.init_process_group("fake", rank=0, world_size=4, store=dist.HashStore())
    parts = [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters()]
    assert sum(part.numel() for part in parts) == expected.parameters
    assert sum(part.nbytes for part in parts) == expected.weights


def test_plan_refuses_what_cannot_be():
    with pytest.raises(ValueError, match="32 heads cannot be dealt to 3 ranks"):
        plan_rank(XLMRobertaXLConfig.xl(), tensor=3)
    assert not dist.is_initialized()


def test_command_line_plans_for_ranks(capsys):
    assert command_line(["plan", "xxl", "--dtype", "bfloat16", "--ranks", "2", "4", "8"]) == 0
    rows = re.findall(r"^ +(\d)  (tensor|data) +([\d.]+)", capsys.readouterr().out, flags=re.MULTILINE)
    assert [(int(count), axis) for count, axis, _ in rows] == [
        (n, axis) for n in (2, 4, 8) for axis in ("tensor", "data")
    ]
    assert [float(weights) for *_, weights in rows] == [10.73, 10.71, 5.39, 5.36, 2.71, 2.68]
    assert command_line(["plan", "xl", "--ranks", "3"]) == 2
    assert "32 heads cannot be dealt to 3 ranks" in capsys.readouterr().err
    assert command_line(["plan", "xl", "--int8", "--ranks", "2"]) == 2
