"""The jobs of test_parallel.py: `torchrun … tests/scale/on_ranks.py FOLDER fast|slow`; each rank reports to FOLDER.

Every job compares a sharded model with the same model unsharded, which each rank also has.
"""

import copy
import json
import math
import os
import re
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from einops import rearrange
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers_reference import SMALL, TASKS, uneven

import xlmrxl_min
from xlmrxl_min import XLMRobertaTokenizer, XLMRobertaXLConfig, fill_mask
from xlmrxl_min.base.config import POSITION_EMBEDDING_TYPES
from xlmrxl_min.checkpoints import CheckpointError
from xlmrxl_min.scale.mesh import init_mesh
from xlmrxl_min.scale.parallel import call_unsharded, num_local_parameters, parallelize
from xlmrxl_min.scale.sharded_checkpoint import MeshSharding, load, save
from xlmrxl_min.scale.train import train_step, weighted_loss
from xlmrxl_min.training.loop import adamw, compute_loss, count_labels, fit, lr_schedule

# a vocabulary of 61, which no number of ranks divides
SIZES = {**SMALL, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
REPORT = {}
JOBS = {"fast": {}, "slow": {}}


def job(function, *args, tier="fast"):
    JOBS[tier]["-".join([function.__name__, *map(str, args)])] = partial(function, *args)
    return function


def pair(task, **config):
    """Two equal models, the second to be sharded."""
    torch.manual_seed(0)
    one = uneven(getattr(xlmrxl_min, f"XLMRobertaXL{task}")(XLMRobertaXLConfig(**{**SIZES, **config}))).eval()
    return one, copy.deepcopy(one)


def example(task, rows=8, tokens=9, across=False, seed=0):
    """Texts of several lengths with labels of all kinds, the same on all ranks; the first rows have no label."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, 2, tokens) if task == "ForMultipleChoice" else (rows, tokens)
    ids = torch.randint(3, 61, shape, generator=generator)
    for row in range(1, rows):
        ids[row, ..., tokens - row % 4 :] = 1
    batch = {"input_ids": ids, "attention_mask": (ids != 1).long()}
    if across:
        batch["encoder_hidden_states"] = torch.randn(rows, 5, SIZES["hidden_size"], generator=generator)
    if task in ("ForMaskedLM", "ForCausalLM"):
        batch["labels"] = ids.masked_fill((torch.rand(shape, generator=generator) < 0.5) | (ids == 1), -100)
        batch["labels"][:4] = -100
    elif task == "ForTokenClassification":
        batch["labels"] = torch.randint(0, 2, shape, generator=generator).masked_fill(ids == 1, -100)
        batch["labels"][:2] = -100
    elif task == "ForQuestionAnswering":
        for name in ("start_positions", "end_positions"):
            batch[name] = torch.randint(0, tokens, (rows,), generator=generator)
        batch["start_positions"][: rows // 2] = 1000  # cut away: no start
        batch["end_positions"][[0, 1, rows - 1]] = tokens
    elif task != "Model":
        batch["labels"] = torch.randint(0, 2, (rows,), generator=generator)
    return batch


def inputs_of(batch):
    return {name: values for name, values in batch.items() if not re.search("labels|positions", name)}


def local_rows(batch, mesh):
    """This rank's rows of a batch or of one tensor."""
    if isinstance(batch, torch.Tensor):
        return batch.chunk(mesh["data"].size())[mesh["data"].get_local_rank()]
    return {name: local_rows(values, mesh) for name, values in batch.items()}


def full(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def mean_over_data(loss, mesh):
    mean = loss.detach() / mesh["data"].size()
    dist.all_reduce(mean, group=mesh["data"].get_group())
    return mean


def assert_close(ours, expected, limit=1e-5):
    assert ours.shape == expected.shape, f"{tuple(ours.shape)} is not {tuple(expected.shape)}"
    difference = (ours - expected).abs().max().item() if ours.numel() else 0.0
    assert difference <= limit, f"{difference:.2e} apart"


def assert_gradients_close(sharded, one):
    """Within 1e-5, or where gradients are larger than 1, within that fraction of the largest."""
    expected, names = {name: p.grad for name, p in one.named_parameters()}, []
    limit = 1e-5 * max(1.0, *(gradient.abs().max().item() for gradient in expected.values() if gradient is not None))
    for name, parameter in sharded.named_parameters():
        names.append(name)
        assert (parameter.grad is None) == (expected[name] is None), name
        if parameter.grad is not None:
            assert_close(full(parameter.grad), expected[name], limit)
    assert names == list(expected)


# ---- outputs and gradients


def outputs_and_gradients(task, positions, mesh):
    across = task == "ForCausalLM"
    config = {"position_embedding_type": positions, "is_decoder": across, "add_cross_attention": across}
    one, sharded = pair(task, **config)
    parallelize(sharded, mesh)
    batch = example(task, across=across)
    inputs = inputs_of(batch)
    outputs, expected = (
        sharded(**local_rows(inputs, mesh), output_attentions=True),
        one(**inputs, output_attentions=True),
    )
    assert [name for name in outputs if name != "past_key_values"] == [n for n in expected if n != "past_key_values"]
    for name in ("last_hidden_state", "pooler_output", "logits", "start_logits", "end_logits"):
        if name in expected:
            assert_close(outputs[name], local_rows(expected[name], mesh))
    choices = {"c": 2 if task == "ForMultipleChoice" else 1}
    for kind in ("attentions", "cross_attentions"):
        for pair_of_weights in zip(outputs.get(kind) or (), expected.get(kind) or (), strict=True):
            ours, theirs = (rearrange(x, "(b c) h q k -> b c h q k", **choices) for x in pair_of_weights)
            assert_close(ours, local_rows(theirs, mesh))
    if task == "Model":
        one(**inputs).last_hidden_state.square().sum().backward()
        (sharded(**local_rows(inputs, mesh)).last_hidden_state.square().sum() * mesh["data"].size()).backward()
    else:
        expected_loss, loss = compute_loss(one, batch), weighted_loss(sharded, local_rows(batch, mesh), mesh)
        expected_loss.backward()
        loss.backward()
        assert_close(mean_over_data(loss, mesh), expected_loss.detach())
    assert_gradients_close(sharded, one)


for i, task in enumerate(TASKS):
    for j, positions in enumerate(POSITION_EMBEDDING_TYPES):
        job(outputs_and_gradients, task, positions, tier="fast" if i % 3 == j else "slow")


@job
def pruned_untied_head_mask_checkpointing_left_padding(mesh):
    one, sharded = pair("ForMaskedLM", tie_word_embeddings=False, position_embedding_type="relative_key_query")
    for model in (one, sharded):
        model.prune_heads({1: []} if mesh["tensor"].size() == 4 else {1: [0, 2]})
        model.gradient_checkpointing_enable()
        model.train()
    parallelize(sharded, mesh)
    batch = {name: values.flip(-1) for name, values in inputs_of(example("ForMaskedLM")).items()}
    extra = {"head_mask": torch.tensor([1.0, 0.5, 0.0, 2.0])}
    expected, logits = one(**batch, **extra).logits, sharded(**local_rows(batch, mesh), **extra).logits
    assert_close(logits, local_rows(expected, mesh))
    (expected * 0.1).square().sum().backward()
    ((logits * 0.1).square().sum() * mesh["data"].size()).backward()
    assert_gradients_close(sharded, one)


def generation(positions, mesh):
    config = {"is_decoder": True, "add_cross_attention": True, "position_embedding_type": positions}
    one, sharded = pair("ForCausalLM", **config)
    parallelize(sharded, mesh)
    batch = example("Model", rows=4, across=True)
    prompts = {**batch, "input_ids": batch["input_ids"].flip(1), "attention_mask": batch["attention_mask"].flip(1)}
    for settings in ({}, {"num_beams": 3}):

        def generate(model, inputs, settings=settings):
            return model.generate(**inputs, max_new_tokens=3, eos_token_id=-1, **settings)

        ours = call_unsharded(sharded, generate, local_rows(prompts, mesh))
        assert torch.equal(ours, local_rows(generate(one, prompts), mesh))
    with torch.no_grad():  # the cache holds the rank's own heads: logits equal to those without one
        ids, states = local_rows(batch, mesh)["input_ids"], batch["encoder_hidden_states"]
        first = sharded(ids[:, :4], encoder_hidden_states=local_rows(states, mesh))
        second = sharded(ids[:, 4:], past_key_values=first.past_key_values)
        expected = one(batch["input_ids"], encoder_hidden_states=states, use_cache=False).logits
        assert_close(torch.cat([first.logits, second.logits], 1), local_rows(expected, mesh))
    assert first.past_key_values.layers[0].keys.shape[1] == 4 // mesh["tensor"].size()
    labels = {"labels": batch["input_ids"].masked_fill(batch["input_ids"] == 1, -100)}
    compute_loss(one, {**batch, **labels}).backward()
    weighted_loss(sharded, local_rows({**batch, **labels}, mesh), mesh).backward()  # training after inference mode
    assert_gradients_close(sharded, one)


for positions in POSITION_EMBEDDING_TYPES:
    job(generation, positions, tier="fast" if positions == "relative_key" else "slow")


@job
def attention_dropout_differs_between_heads(mesh):
    """Ranks of a tensor group have the same dropout, except of attention weights, where each has other heads."""
    config = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.5}
    _, sharded = pair("ForMaskedLM", **config)
    parallelize(sharded.train(), mesh)
    torch.manual_seed(mesh["data"].get_local_rank())
    out = sharded(**local_rows(inputs_of(example("ForMaskedLM")), mesh), output_attentions=True)
    dropped = out.attentions[0] == 0
    assert 0.3 < dropped.float().mean() < 0.7
    for head in range(1, 4):
        assert not torch.equal(dropped[:, 0], dropped[:, head])
    group = [torch.empty_like(out.logits) for _ in range(mesh["tensor"].size())]
    dist.all_gather(group, out.logits.detach().contiguous(), group=mesh["tensor"].get_group())
    assert all(torch.equal(logits, group[0]) for logits in group)


@job
def collectives(mesh):
    """Two sums per block and direction, one for the words, one for the LM head's input, one gathering of logits."""
    _, sharded = pair("ForMaskedLM")
    parallelize(sharded, mesh)
    if mesh["data"].size() > 1:
        return  # FSDP adds its own
    ids, layers = torch.randint(3, 61, (8, 9)), len(sharded.backbone.layers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the hooks that the counter registers
        with CommDebugMode() as forward:
            loss = sharded(ids, labels=ids).loss
        with CommDebugMode() as backward:
            loss.backward()
    forward, backward = ({str(op): n for op, n in c.get_comm_counts().items()} for c in (forward, backward))
    assert forward == {"c10d_functional.all_reduce": 2 * layers + 1, "c10d_functional.all_gather_into_tensor": 1}
    assert backward == {"c10d_functional.all_reduce": 2 * layers + 1}


# ---- training


def training_steps(task, mesh):
    """In float64, as AdamW makes a full step of a gradient that is only rounding; but the logits are in float32."""
    one, sharded = (model.double() for model in pair(task, position_embedding_type="relative_key"))
    parallelize(sharded, mesh)
    batches = [example(task, seed=seed) for seed in range(4)]
    settings = {"steps": 4, "learning_rate": 0.01, "warmup_steps": 3, "max_grad_norm": 0.5}
    history = fit(one, lambda epoch: batches, **settings, progress=False)
    assert any(entry["grad_norm"] > 0.5 for entry in history)  # some are clipped
    optimizer, losses = adamw(sharded.train(), 0.01, 0.01), []
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * lr_schedule(step, 4, 3, 1.0)
        losses.append(train_step(sharded, optimizer, local_rows(batch, mesh), mesh, max_grad_norm=0.5))
    assert_close(torch.tensor(losses), torch.tensor([entry["loss"] for entry in history]))
    for ours, expected in zip(sharded.parameters(), one.parameters(), strict=True):
        assert_close(full(ours), expected, 1e-7)
    head = sharded.get_output_embeddings()
    assert head is None or head.weight is sharded.get_input_embeddings().weight


job(training_steps, "ForMaskedLM")
job(training_steps, "ForTokenClassification", tier="slow")


@job
def training_around_inference(mesh):
    """A forward pass without gradients between two steps changes neither."""
    one, sharded = pair("ForMaskedLM")
    parallelize(sharded, mesh)
    batch = example("ForMaskedLM")
    for _ in range(2):
        compute_loss(one, batch).backward()
        weighted_loss(sharded, local_rows(batch, mesh), mesh).backward()
        assert_gradients_close(sharded, one)
        with torch.no_grad():
            sharded(**inputs_of(batch))
            call_unsharded(sharded, lambda model: model.backbone(**inputs_of(batch)).last_hidden_state)
        one.zero_grad()
        sharded.zero_grad()


@job
def some_rank_has_no_labels(mesh):
    """So the jobs above include a rank without labels, which must still take part: the first rows have none."""
    counts = [None] * dist.get_world_size()
    own = local_rows(example("ForMaskedLM"), mesh)
    dist.all_gather_object(counts, count_labels(pair("ForMaskedLM")[0], own).item())
    assert (0 in counts) == (mesh["data"].size() > 1)


@job
def mixed_precision(mesh):
    """FSDP's: weights and gradients in float32, arithmetic in bfloat16."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    one, sharded = pair("ForSequenceClassification", num_labels=1)
    if mesh["data"].size() == 1:
        with pytest.raises(ValueError, match="mixed_precision is FSDP's"):
            parallelize(sharded, mesh, mixed_precision=policy)
        return
    parallelize(sharded, mesh, mixed_precision=policy)
    batch = {**example("Model"), "labels": torch.full((8,), 3.0)}
    loss, expected = weighted_loss(sharded, local_rows(batch, mesh), mesh), compute_loss(one, batch)
    loss.backward()
    assert 0 < abs(mean_over_data(loss, mesh) / expected.detach() - 1) < 0.05
    assert {p.dtype for p in sharded.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in sharded.parameters() if p.grad is not None} == {torch.float32}
    assert sharded(**local_rows(inputs_of(batch), mesh)).logits.dtype == torch.bfloat16


def answers_cut_away(starts, ends, mesh):
    """In the first `starts` and `ends` of 8 texts: the two terms of the loss have different numbers of labels."""
    one, sharded = (model.double() for model in pair("ForQuestionAnswering"))
    parallelize(sharded.train(), mesh)
    batch = example("ForQuestionAnswering", seed=starts)
    for name, count in (("start_positions", starts), ("end_positions", ends)):
        batch[name] %= 9
        batch[name][:count] = 9
    before = [full(parameter).detach().clone() for parameter in sharded.parameters()]
    optimizer = torch.optim.SGD(sharded.parameters(), lr=0.1, weight_decay=0.1)
    loss = train_step(sharded, optimizer, local_rows(batch, mesh), mesh, max_grad_norm=1e9)
    settings = {"steps": 1, "learning_rate": 0.1, "max_grad_norm": 1e9, "progress": False}
    optimizer = torch.optim.SGD(one.parameters(), lr=0.1, weight_decay=0.1)
    [entry] = fit(one, [batch], **settings, optimizers=[optimizer])
    assert_close(torch.tensor(loss).nan_to_num(-1), torch.tensor(entry["loss"]).nan_to_num(-1), 1e-9)
    for ours, expected, old in zip(sharded.parameters(), one.parameters(), before, strict=True):
        assert_close(full(ours), expected, 1e-9)
        assert torch.equal(full(ours), old) == (starts == ends == 8)


job(answers_cut_away, 4, 6)  # with two ranks, one has no start
job(answers_cut_away, 8, 8)
for starts, ends in ((0, 4), (2, 2), (4, 4), (5, 1), (8, 3), (1, 8), (7, 7)):
    job(answers_cut_away, starts, ends, tier="slow")


@job
def no_rank_has_labels(mesh):
    """A step changes nothing then, not even by weight decay."""
    for task in ("ForMaskedLM", "ForTokenClassification"):
        _, sharded = pair(task)
        parallelize(sharded, mesh)
        batch = {**example(task), "labels": torch.full((8, 9), -100)}
        before = [full(parameter).detach().clone() for parameter in sharded.parameters()]
        assert math.isnan(train_step(sharded, adamw(sharded, 0.1, 0.1), local_rows(batch, mesh), mesh))
        assert all(torch.equal(full(p), old) for p, old in zip(sharded.parameters(), before, strict=True))


# ---- checkpoints


def shared_folder():
    """The same new folder on all ranks."""
    base = Path(sys.argv[1])
    path = [base / f"model-{len(list(base.glob('model-*')))}"]
    dist.broadcast_object_list(path)
    path[0].mkdir(exist_ok=True)
    dist.barrier()
    return path[0]


def saved_by_one_process(one):
    folder = shared_folder()
    if dist.get_rank() == 0:
        one.save_pretrained(folder)
    dist.barrier()
    return folder


def load_and_save(task, mesh):
    decoder = {"is_decoder": True, "add_cross_attention": True} if task == "ForCausalLM" else {}
    one, _ = pair(task, position_embedding_type="relative_key", **decoder)
    folder, cls = saved_by_one_process(one), type(one)
    inputs = inputs_of(example(task, across=bool(decoder)))
    for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 0.3)):
        sharded = load(cls, folder, mesh, dtype=dtype)
        inputs = {name: values.to(dtype) if values.is_floating_point() else values for name, values in inputs.items()}
        for name, values in one.to(dtype).named_parameters():
            assert torch.equal(full(sharded.get_parameter(name)).detach(), values.detach()), name
        with torch.no_grad():
            assert_close(sharded(**local_rows(inputs, mesh))[0], local_rows(one(**inputs)[0], mesh), limit)
    again = shared_folder()
    save(load(cls, folder, mesh), again, max_shard_size="10KB")
    assert len(list(again.glob("*.safetensors"))) > 1
    back, first = cls.from_pretrained(again), cls.from_pretrained(folder)
    for (name, ours), expected in zip(back.named_parameters(), first.parameters(), strict=True):
        assert torch.equal(ours, expected), name
    assert json.loads((again / "config.json").read_text()) == json.loads((folder / "config.json").read_text())


for task in TASKS:
    job(load_and_save, task, tier="fast" if task in ("Model", "ForMaskedLM") else "slow")


@job
def reads_only_its_shards(mesh):
    """Of the mapped file, a rank reads the pages that its shards lie on, and few others."""
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024, "num_hidden_layers": 1}
    one = xlmrxl_min.XLMRobertaXLForMaskedLM(XLMRobertaXLConfig(vocab_size=60_000, **sizes))
    folder, touched = saved_by_one_process(one), []

    def measure(module, name, parameter):
        text = Path("/proc/self/smaps").read_text()
        pages = re.findall(rf"{re.escape(str(folder))}/model\.safetensors\n(?:.*\n)*?Rss:\s+(\d+) kB", text)
        touched.append(1024 * sum(map(int, pages)))

    hook = register_module_parameter_registration_hook(measure)  # called for every weight, once it is read
    try:
        sharded = load(type(one), folder, mesh, dtype="bfloat16")  # another dtype, so that all of it is converted
    finally:
        hook.remove()
    column_shards = 0  # where a shard has a piece of every row, every page is read
    for parameter in sharded.parameters():
        shape = MeshSharding(mesh).shard(torch.empty(parameter.shape, device="meta"), parameter).shape
        assert tuple(shape) == tuple((parameter.to_local() if isinstance(parameter, DTensor) else parameter).shape)
        if len(shape) == 2:
            column_shards += 4 * shape[0] * (parameter.shape[1] - shape[1])
    size, own = (folder / "model.safetensors").stat().st_size, 4 * num_local_parameters(sharded)
    REPORT["bytes"] = {"file": size, "own": own, "column shards": column_shards, "touched": max(touched)}
    slack = 2 * 2**18 * len(list(sharded.parameters()))  # the system maps some 64 to 256 kB at a time, at both ends
    assert 0.9 * own < max(touched) < own + column_shards + slack, REPORT["bytes"]
    assert max(touched) < size * (1 / mesh.size() + 0.25), REPORT["bytes"]


@job
def new_head_is_equal_on_all_ranks(mesh):
    folder = saved_by_one_process(pair("ForMaskedLM")[0])
    torch.manual_seed(dist.get_rank())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sharded = load(xlmrxl_min.XLMRobertaXLForSequenceClassification, folder, mesh, num_labels=3)
    assert any("initialised at random" in str(warning.message) for warning in caught)
    head = full(sharded.classifier.out_proj.weight).detach().contiguous()
    assert head.shape == (3, 32)
    assert head.std() > 0
    heads = [torch.empty_like(head) for _ in range(dist.get_world_size())]
    dist.all_gather(heads, head)
    assert all(torch.equal(other, head) for other in heads)


@job
def tiny_fills_a_mask(mesh):
    if 6 % mesh["tensor"].size():
        with pytest.raises(ValueError, match="6 heads cannot be sharded over 4 ranks"):
            load(xlmrxl_min.XLMRobertaXLForMaskedLM, "tiny", mesh, progress=False)
        return
    tokenizer = XLMRobertaTokenizer.from_pretrained("tiny")
    sharded = load(xlmrxl_min.XLMRobertaXLForMaskedLM, "tiny", mesh, progress=False)
    one = xlmrxl_min.XLMRobertaXLForMaskedLM.from_pretrained("tiny")
    text = "The people heard the voice of the <mask>."
    ours, theirs = call_unsharded(sharded, fill_mask, tokenizer, text)[0], fill_mask(one, tokenizer, text)[0]
    assert [p.token_id for p in ours] == [p.token_id for p in theirs]
    assert_close(torch.tensor([p.probability for p in ours]), torch.tensor([p.probability for p in theirs]))
    assert ours[0].text == "people"


@job
def every_rank_reports_a_failed_save(mesh):
    _, sharded = pair("ForMaskedLM")
    parallelize(sharded, mesh)
    file = Path(sys.argv[1]) / "a file"
    file.touch()
    with pytest.raises(CheckpointError, match="could not be written"):
        save(sharded, file / "below")


def main():
    torch.set_num_threads(1)
    folder, tier = Path(sys.argv[1]), sys.argv[2]
    outcomes, count = {}, int(os.environ["WORLD_SIZE"])
    # two ranks run each job along one dimension, four run the fast ones so, and all along both dimensions
    meshes = {(1, count): JOBS[tier], (count, 1): JOBS[tier]}
    if count == 4:
        meshes |= dict.fromkeys([(1, 4), (4, 1)], JOBS["fast"])
        meshes[2, 2] = JOBS["fast"] | JOBS["slow"]
    with init_mesh(count, timeout_s=120):
        for (data, tensor), jobs in meshes.items():
            mesh = init_device_mesh("cpu", (data, tensor), mesh_dim_names=("data", "tensor"))
            for name, function in jobs.items():
                key = f"{data}x{tensor}-{name}"
                try:
                    function(mesh)
                    outcomes[key] = ""
                except Exception as error:
                    frame = error.__traceback__
                    while frame.tb_next is not None and frame.tb_next.tb_frame.f_code.co_filename == __file__:
                        frame = frame.tb_next
                    outcomes[key] = f"line {frame.tb_lineno}: {type(error).__name__}: {error}"
            outcomes[f"{data}x{tensor}-bytes"] = REPORT.pop("bytes", None)
        (folder / f"outcomes-{dist.get_rank()}.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main()
