"""Several ranks, on the CPU: their result is that of one process."""

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
from torch.distributed.device_mesh import init_device_mesh

import xlmrxl_min
from xlmrxl_min import XLMRobertaXLConfig, XLMRobertaXLForMaskedLM
from xlmrxl_min.__main__ import main
from xlmrxl_min.checkpoints.int8 import convert_to_int8
from xlmrxl_min.scale import mesh, parallel
from xlmrxl_min.scale.mesh import RankError, init_mesh
from xlmrxl_min.scale.parallel import num_local_parameters, parallelize, tensor_plan
from xlmrxl_min.scale.planner import plan
from xlmrxl_min.scale.sharded_checkpoint import load

HERE = Path(__file__).parent
TEXT = "Alle Menschen sind frei und <mask> an Würde"

if mesh.is_torch_too_old():
    pytest.skip(f"torch {torch.__version__} is too old for several ranks", allow_module_level=True)


def torchrun(count, *arguments, timeout=300, gpu=False):
    """Run `arguments` in `count` ranks, each on one thread of the CPU, unless it may have a GPU."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent / "parity")}
    environment |= {} if gpu else {"CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        [*torchrun, *arguments], env=environment, start_new_session=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # if torchrun hangs, its ranks, too
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


SLOW = pytest.mark.slow
PROC = pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="needs /proc, to see which pages are read")
FAST_JOBS, SLOW_JOBS = (
    [pytest.param(job, marks=PROC) if job == "reads_only_its_shards" else job for job in on_ranks.JOBS[tier]]
    for tier in ("fast", "slow")
)
MESHES = {2: ("1x2", "2x1"), 4: ("1x4", "4x1", "2x2")}  # data x tensor


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """A function of the number of ranks and the tier: {mesh and job: what went wrong, or nothing}, of every rank."""
    finished = {}

    def run(count, tier):
        if (count, tier) not in finished:
            folder = tmp_path_factory.mktemp("ranks")
            done = torchrun(count, str(HERE / "on_ranks.py"), str(folder), tier)
            assert done.returncode == 0, done.stderr[-3000:]
            assert "Warning" not in done.stderr, done.stderr[:3000]
            files = sorted(folder.glob("outcomes-*.json"))
            finished[count, tier] = [json.loads(file.read_text()) for file in files]
        return finished[count, tier]

    return run


def assert_done(outcomes, count, tier, job):
    reports = outcomes(count, tier)
    assert len(reports) == count
    names = [f"{shape}-{job}" for shape in MESHES[count] if f"{shape}-{job}" in reports[0]]
    assert names
    for rank, report in enumerate(reports):
        errors = {name: report[name] for name in names if report[name]}
        assert not errors, f"rank {rank} of {count}: {errors}"


@pytest.mark.parametrize("job", FAST_JOBS)
def test_two_ranks_equal_one_process(job, outcomes):
    assert_done(outcomes, 2, "fast", job)


@pytest.mark.slow
@pytest.mark.parametrize("job", SLOW_JOBS)
def test_two_ranks_equal_one_process_in_more_cases(job, outcomes):
    assert_done(outcomes, 2, "slow", job)


@pytest.mark.slow
@pytest.mark.parametrize("job", FAST_JOBS + SLOW_JOBS)
def test_four_ranks_equal_one_process(job, outcomes):
    assert_done(outcomes, 4, "slow", job)


@PROC
@pytest.mark.parametrize(("count", "tier"), [(2, "fast"), pytest.param(4, "slow", marks=SLOW)])
def test_the_shards_of_all_ranks_are_the_file_about_once(count, tier, outcomes):
    """Norms and positions, which all ranks hold, are small. What a rank reads: on_ranks.reads_only_its_shards."""
    for shape in MESHES[count]:
        read = [report[f"{shape}-bytes"] for report in outcomes(count, tier)]
        assert sum(rank["own"] for rank in read) < 1.1 * read[0]["file"]
        assert max(rank["own"] for rank in read) < 1.1 * read[0]["file"] / count


# ---- the command line


@pytest.fixture
def one_rank(monkeypatch):
    """torchrun's environment for one rank, in this process."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # at a free port, as torchrun's
    settings = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
    for name, value in {**settings, "TORCHELASTIC_USE_AGENT_STORE": "True", "CUDA_VISIBLE_DEVICES": ""}.items():
        monkeypatch.setenv(name, str(value))
    return store


def test_command_fills_a_mask(one_rank, capsys):
    assert main(["fill", TEXT]) == 0
    expected = capsys.readouterr().out
    assert main(["distributed", "fill", TEXT]) == 0
    line, _, predictions = capsys.readouterr().out.partition("\n")
    assert predictions == expected
    assert re.match(r"rank 0 \(data 0, tensor 0\) on cpu: ([\d,]+) of \1 parameters", line)


def test_command_trains_and_saves(one_rank, tmp_path, capsys):
    arguments = ["distributed", "train", "--steps", "2", "--batch", "2", "--into", str(tmp_path / "new")]
    assert main(arguments) == 0
    assert len(re.findall(r"step \d: loss \d+\.\d+", capsys.readouterr().out)) == 2
    trained, tiny = (XLMRobertaXLForMaskedLM.from_pretrained(source) for source in (tmp_path / "new", "tiny"))
    assert not torch.equal(trained.lm_head.decoder.weight, tiny.lm_head.decoder.weight)
    assert (tmp_path / "new" / "sentencepiece.bpe.model").exists()


def test_command_reports_errors(one_rank, capsys, monkeypatch):
    assert main(["distributed", "train", "--steps", "1", "--batch", "1000"]) == 2
    assert "texts are too few for 1 batches of 1000: take a smaller batch_size (--batch)" in capsys.readouterr().err
    assert main(["distributed", "fill", "<mask>", "--model", "no such model"]) == 2
    assert "no such model" in capsys.readouterr().err
    for options, words in (
        (["--steps", "0"], "steps=0 is impossible: it must be an integer, 1 or more"),
        (["--batch", "-3"], "batch_size=-3 is impossible: it must be an integer, 1 or more"),
        (["--timeout", "0"], "timeout_s=0.0 is impossible"),
        (["--timeout", "nan"], "timeout_s=nan is impossible"),
        (["--into", ""], "it is empty, which would mean the working folder"),
    ):
        assert main(["distributed", "train", *options]) == 2
        assert words in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["distributed", "fill", "<mask>", "--tensor", "3"]) == 2
    assert "tensor=3 does not divide the number of ranks, 2" in capsys.readouterr().err


@pytest.mark.slow
def test_commands_on_two_ranks(tmp_path, capsys):
    assert main(["fill", TEXT]) == 0
    done = torchrun(2, "-m", "xlmrxl_min", "distributed", "fill", TEXT)
    assert done.returncode == 0, done.stderr
    ranks, _, predictions = done.stdout.partition("<mask>")
    assert f"<mask>{predictions}" == capsys.readouterr().out
    assert re.findall(r"rank (\d) \(data 0, tensor (\d)\)", ranks) == [("0", "0"), ("1", "1")]

    def losses(count, *options):
        done = torchrun(count, "-m", "xlmrxl_min", "distributed", "train", "--steps", "3", *options)
        assert done.returncode == 0, done.stderr
        return re.findall(r"step \d: loss (\d+\.\d+)", done.stdout)

    alone = losses(1, "--batch", "4", "--into", str(tmp_path / "one"))
    assert losses(2, "--batch", "4", "--tensor", "2", "--into", str(tmp_path / "two")) == alone
    assert len(losses(2, "--batch", "2")) == len(alone) == 3
    one, two = (XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / name) for name in ("one", "two"))
    for ours, expected in zip(two.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)  # AdamW's steps are of 1e-3
    for option, message in (("--tensor=3", "tensor=3 does not divide"), ("--model=no such model", "no such model")):
        done = torchrun(2, "-m", "xlmrxl_min", "distributed", "fill", "<mask>", option)
        assert done.returncode != 0
        assert message in done.stderr


@pytest.mark.cuda
def test_commands_on_gpus(tmp_path):
    """On as many ranks as there are GPUs; the tests above are the same on the CPU."""
    count = min(2, torch.cuda.device_count())
    filled = torchrun(count, "-m", "xlmrxl_min", "distributed", "fill", TEXT, gpu=True)
    assert filled.returncode == 0, filled.stderr
    assert "on cuda:0" in filled.stdout
    assert "gleich" in filled.stdout.splitlines()[count + 1]
    arguments = ("distributed", "train", "--steps", "3", "--into", str(tmp_path))
    trained = torchrun(count, "-m", "xlmrxl_min", *arguments, gpu=True)
    assert trained.returncode == 0, trained.stderr
    assert len(re.findall("step .: loss", trained.stdout)) == 3
    XLMRobertaXLForMaskedLM.from_pretrained(tmp_path)


# ---- without code of ours: accelerate


@pytest.mark.parametrize(
    "name", ["tiny-decoder", *(pytest.param(x, marks=SLOW) for x in ("tiny", "tiny-relative-key"))]
)
def test_accelerate_keeps_weights_on_disk_until_they_are_used(name, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    cls = xlmrxl_min.XLMRobertaXLForCausalLM if name == "tiny-decoder" else XLMRobertaXLForMaskedLM
    model, in_memory = cls.from_pretrained(name), cls.from_pretrained(name)
    limits = {"cpu": 14_000_000, "disk": 10**9}  # bytes
    devices = accelerate.infer_auto_device_map(model, max_memory=limits, no_split_module_classes=["Block"])
    assert set(devices.values()) == {"cpu", "disk"}
    options = {"main_device": "cpu", "offload_dir": tmp_path, "preload_module_classes": ["Attention"]}
    accelerate.dispatch_model(model, devices, **options)
    offloaded = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    assert any("layers.3" in name for name in offloaded)
    assert sum(file.stat().st_size for file in tmp_path.glob("*.dat")) > 4_000_000
    ids = torch.tensor([[0, 5, 9, 7, 2]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, in_memory(ids).logits, atol=0, rtol=0)
    if name == "tiny-decoder":
        settings = {"max_new_tokens": 8, "eos_token_id": -1}
        assert torch.equal(model.generate(ids[:, :-1], **settings), in_memory.generate(ids[:, :-1], **settings))


# ---- one process with a fake process group: shards and errors


@pytest.fixture
def fake_mesh():
    """A mesh of four ranks that do not communicate, of which this process is the first."""
    dist.init_process_group("fake", rank=0, world_size=4, store=dist.HashStore())
    yield lambda data, tensor: init_device_mesh("cpu", (data, tensor), mesh_dim_names=("data", "tensor"))
    dist.destroy_process_group()


def small_model(**changes):
    return XLMRobertaXLForMaskedLM(XLMRobertaXLConfig(**{**on_ranks.SIZES, **changes}))


def test_plan_names_every_matrix_of_a_block():
    config = XLMRobertaXLConfig(**on_ranks.SIZES, is_decoder=True, add_cross_attention=True)
    model = xlmrxl_min.XLMRobertaXLForCausalLM(config)
    linear = [name for name, module in model.backbone.layers[0].named_modules() if isinstance(module, torch.nn.Linear)]
    assert sorted(name for name, how in parallel.BLOCK_PLAN.items() if how != "replicated") == sorted(linear)
    assert all(isinstance(model.get_submodule(name), torch.nn.Module) for name in tensor_plan(model))
    assert "lm_head.decoder" in tensor_plan(model)


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False, "position_embedding_type": "relative_key"}])
@pytest.mark.parametrize(("data", "tensor"), [(1, 4), (4, 1), (2, 2)])
def test_planned_parameters_are_those_of_the_first_rank(data, tensor, changes, fake_mesh):
    config = XLMRobertaXLConfig.xl(num_hidden_layers=4, **changes)
    with torch.device("meta"):
        model = XLMRobertaXLForMaskedLM(config)
    parallelize(model, fake_mesh(data, tensor))
    planned = plan(config, tensor=tensor, data=data)
    assert planned.weights / 4 == pytest.approx(num_local_parameters(model), rel=1e-4)  # of 1 row and of 514 rows
    if data == 1:
        assert planned.weights / 4 == num_local_parameters(model)


@pytest.mark.parametrize(
    ("changes", "pruned", "shape", "message"),
    [
        ({"num_attention_heads": 1}, {}, (1, 4), "1 heads cannot be sharded over 4 ranks: take a divisor"),
        ({}, {1: [2]}, (1, 4), r"3 heads \(in layer 1, after pruning\) cannot be sharded over 4 ranks"),
        ({"intermediate_size": 29}, {}, (2, 2), "intermediate_size=29 cannot be sharded over 2 ranks"),
    ],
)
def test_indivisible_sizes(changes, pruned, shape, message, fake_mesh):
    model = small_model(**changes)
    model.prune_heads(pruned)
    with pytest.raises(ValueError, match=message):
        parallelize(model, fake_mesh(*shape))
    parallelize(model, fake_mesh(4, 1))  # FSDP shards anything


def test_int8_is_not_sharded(fake_mesh):
    model = convert_to_int8(small_model(), torch.float32)
    with pytest.raises(ValueError, match="int8 weights are not sharded"):
        parallelize(model, fake_mesh(1, 4))
    with pytest.raises(ValueError, match="leave out quantize"):
        load(XLMRobertaXLForMaskedLM, "tiny", fake_mesh(1, 4), quantize="int8")


def test_sizes_are_fixed_after_sharding(fake_mesh):
    model = parallelize(small_model(), fake_mesh(1, 4))
    for change in (lambda: model.prune_heads({0: [0]}), lambda: model.resize_token_embeddings(99)):
        with pytest.raises(ValueError, match="prune and resize before"):
            change()


# ---- the mesh: what is missing, and ranks that die


def test_a_rank_needs_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda number: None)
    assert mesh.rank_device(0) == torch.device("cuda", 0)
    with pytest.raises(ValueError, match="rank 1 of this machine has no GPU, as there are 1: start one rank for each"):
        mesh.rank_device(1)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    assert mesh.rank_device(1) == torch.device("cpu")  # no communication backend for this one


def test_ranks_need_a_new_torch(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.11.3+cu128")
    with (
        pytest.raises(ValueError, match=r"torch 2.11.3\+cu128 is too old for several ranks: install 2.12"),
        init_mesh(),
    ):
        pass


def test_ranks_need_torchrun(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="start this with torchrun"), init_mesh():
        pass
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="tensor=3 does not divide the number of ranks, 4"), init_mesh(3):
        pass


def test_ranks_that_cannot_connect_say_why(one_rank, monkeypatch):
    def fail(*args, **kwargs):
        raise dist.DistBackendError("NCCL error: the driver is too old\nand more")

    monkeypatch.setattr(dist, "init_process_group", fail)
    message = r"rank 0 of 1 could not reach the others.*the driver is too old\)\.$"
    with pytest.raises(RankError, match=message), init_mesh():
        pass


DYING = """
import os, sys, time, torch, torch.distributed as dist
from xlmrxl_min.scale.mesh import RankError, init_mesh
try:
    with init_mesh(2, timeout_s={timeout_s}) as mesh:
        {setup}
        {step}
        if os.environ["RANK"] == "1":
            {fate}
        {step}
except RankError as error:
    sys.exit(str(error))
"""
COLLECTIVE = {"setup": "x = torch.ones(1)", "step": "dist.all_reduce(x)"}
MODEL = {
    "setup": "from xlmrxl_min import XLMRobertaXLForMaskedLM; from xlmrxl_min.scale.sharded_checkpoint import load; "
    "model = load(XLMRobertaXLForMaskedLM, 'tiny', mesh)",
    "step": "model(torch.tensor([[0, 5, 2]]))",
}


@pytest.mark.parametrize(
    ("work", "fate", "timeout_s", "status"),
    [
        (COLLECTIVE, "os._exit(7)", 120, 7),
        pytest.param(MODEL, "os._exit(7)", 120, 7, marks=SLOW),
        pytest.param(MODEL, "raise MemoryError('no room')", 120, 1, marks=SLOW),
        pytest.param(MODEL, "time.sleep(600)", 20, None, marks=SLOW),
    ],
)
def test_a_rank_that_dies_or_hangs_ends_the_others(work, fate, timeout_s, status):
    """Without torchrun, which would stop the other ranks itself."""
    script = DYING.format(**work, fate=fate, timeout_s=timeout_s)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # at a free port, as torchrun's
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2"}
    environment |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command, pipe = [sys.executable, "-c", script], subprocess.PIPE
    processes = [
        subprocess.Popen(command, env={**environment, "RANK": str(rank)}, stderr=pipe, text=True) for rank in range(2)
    ]
    try:
        if status is not None:
            _, error = processes[1].communicate(timeout=180)
            assert processes[1].returncode == status, error
        start = time.monotonic()
        _, error = processes[0].communicate(timeout=180)
        waited = time.monotonic() - start
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert processes[0].returncode == 1, error
    assert f"rank 0 of 2 has lost the others: one has died, or did not answer within {timeout_s} s" in error
    assert status is None or waited < timeout_s / 2, "it waited for a dead rank"


@pytest.mark.slow
def test_torchrun_ends_when_a_rank_dies(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(DYING.format(**MODEL, fate="raise MemoryError('no room')", timeout_s=300))
    done = torchrun(2, str(script), timeout=180)
    assert done.returncode != 0
    assert "MemoryError: no room" in done.stderr
