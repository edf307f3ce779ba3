"""What test_parallel.py has ranks do: `torchrun … tests/on_ranks.py FOLDER`, where each leaves what came of it.

Every job compares a divided model with the whole one, which each rank also has.
"""

import copy
import json
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
from reference import SMALL, TASKS, uneven
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

import xlmrxl_min
from xlmrxl_min import XLMRobertaTokenizer, XLMRobertaXLConfig, fill_mask
from xlmrxl_min.checkpoints.readers import CheckpointError, CheckpointReader
from xlmrxl_min.scale.mesh import init_mesh
from xlmrxl_min.scale.parallel import call_unsharded, parallelize
from xlmrxl_min.scale.sharded_checkpoint import MeshSharding, load, save
from xlmrxl_min.scale.train import train_step, weighted_loss
from xlmrxl_min.training.loop import adamw, compute_loss, count_labels, fit, lr_schedule

# 61 words, which nothing divides
SIZES = {**SMALL, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
POSITIONS = ("absolute", "relative_key", "relative_key_query")
FOLDER, REPORT = Path(sys.argv[-1]), {}
JOBS = {}
SLOW = ("there_and_back", "generation_equal", "ten_steps-ForTokenClassification")


def job(function, *args):
    JOBS["-".join([function.__name__, *map(str, args)])] = partial(function, *args)
    return function


def pair(task, **config):
    """Two equal models, the second to be divided."""
    torch.manual_seed(0)
    one = uneven(getattr(xlmrxl_min, f"XLMRobertaXL{task}")(XLMRobertaXLConfig(**{**SIZES, **config}))).eval()
    return one, copy.deepcopy(one)


def example(task, rows=8, tokens=9, across=False, seed=0):
    """Texts of several lengths with labels of all kinds, the same on all ranks; the first rows have no label."""
    draw = torch.Generator().manual_seed(seed)
    shape = (rows, 2, tokens) if task == "ForMultipleChoice" else (rows, tokens)
    ids = torch.randint(3, 61, shape, generator=draw)
    for row in range(1, rows):
        ids[row, ..., tokens - row % 4 :] = 1
    batch = {"input_ids": ids, "attention_mask": (ids != 1).long()}
    if across:
        batch["encoder_hidden_states"] = torch.randn(rows, 5, SIZES["hidden_size"], generator=draw)
    if task in ("ForMaskedLM", "ForCausalLM"):
        batch["labels"] = ids.masked_fill((torch.rand(shape, generator=draw) < 0.5) | (ids == 1), -100)
        batch["labels"][:4] = -100
    elif task == "ForTokenClassification":
        batch["labels"] = torch.randint(0, 2, shape, generator=draw).masked_fill(ids == 1, -100)
        batch["labels"][:2] = -100
    elif task == "ForQuestionAnswering":
        for name in ("start_positions", "end_positions"):
            batch[name] = torch.randint(0, tokens, (rows,), generator=draw)
    elif task != "Model":
        batch["labels"] = torch.randint(0, 2, (rows,), generator=draw)
    return batch


def inputs_of(batch):
    return {name: values for name, values in batch.items() if not re.search("labels|positions", name)}


def my_rows(batch, mesh):
    count, here = mesh["data"].size(), mesh["data"].get_local_rank()
    return {name: values.chunk(count)[here] for name, values in batch.items()}


def mine(values, mesh):
    return my_rows({"x": values}, mesh)["x"]


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def close(ours, expected, limit=1e-5):
    assert ours.shape == expected.shape, f"{tuple(ours.shape)} is not {tuple(expected.shape)}"
    difference = (ours - expected).abs().max().item() if ours.numel() else 0.0
    assert difference <= limit, f"{difference:.2e} apart"


def equal_gradients(divided, one):
    """Within 1e-5, or where gradients are larger than 1, within that share of the largest."""
    expected, names = {name: p.grad for name, p in one.named_parameters()}, []
    limit = 1e-5 * max(1.0, *(gradient.abs().max().item() for gradient in expected.values() if gradient is not None))
    for name, parameter in divided.named_parameters():
        names.append(name)
        assert (parameter.grad is None) == (expected[name] is None), name
        if parameter.grad is not None:
            close(whole(parameter.grad), expected[name], limit)
    assert names == list(expected)


def numbers_equal(task, positions, mesh):
    across = task == "ForCausalLM"
    config = {"position_embedding_type": positions, "is_decoder": across, "add_cross_attention": across}
    one, divided = pair(task, **config)
    parallelize(divided, mesh)
    batch = example(task, across=across)
    inputs = inputs_of(batch)
    outputs, theirs = divided(**my_rows(inputs, mesh), output_attentions=True), one(**inputs, output_attentions=True)
    assert [name for name in outputs if name != "past_key_values"] == [n for n in theirs if n != "past_key_values"]
    for name in ("last_hidden_state", "pooler_output", "logits", "start_logits", "end_logits"):
        if name in theirs:
            close(outputs[name], mine(theirs[name], mesh))
    choices = {"c": 2 if task == "ForMultipleChoice" else 1}
    for kind in ("attentions", "cross_attentions"):
        for ours, expected in zip(outputs.get(kind) or (), theirs.get(kind) or (), strict=True):
            ours, expected = (rearrange(x, "(b c) h q k -> b c h q k", **choices) for x in (ours, expected))
            close(ours, mine(expected, mesh))
    if task == "Model":
        one(**inputs).last_hidden_state.square().sum().backward()
        (divided(**my_rows(inputs, mesh)).last_hidden_state.square().sum() * mesh["data"].size()).backward()
    else:
        expected, loss = compute_loss(one, batch), weighted_loss(divided, my_rows(batch, mesh), mesh)
        expected.backward()
        loss.backward()
        mean = loss.detach() / mesh["data"].size()
        dist.all_reduce(mean, group=mesh["data"].get_group())
        close(mean, expected.detach())
    equal_gradients(divided, one)


for task in TASKS:
    for positions in POSITIONS:
        job(numbers_equal, task, positions)


@job
def in_all_ways(mesh):
    """Untied, pruned, with a head mask, recomputing, with padding on the left."""
    one, divided = pair("ForMaskedLM", tie_word_embeddings=False, position_embedding_type="relative_key_query")
    for model in (one, divided):
        model.prune_heads({1: []} if mesh["tensor"].size() == 4 else {1: [0, 2]})
        model.gradient_checkpointing_enable()
        model.train()
    parallelize(divided, mesh)
    batch = {name: values.flip(-1) for name, values in inputs_of(example("ForMaskedLM")).items()}
    extra = {"head_mask": torch.tensor([1.0, 0.5, 0.0, 2.0])}
    expected, logits = one(**batch, **extra).logits, divided(**my_rows(batch, mesh), **extra).logits
    close(logits, mine(expected, mesh))
    (expected * 0.1).square().sum().backward()
    ((logits * 0.1).square().sum() * mesh["data"].size()).backward()
    equal_gradients(divided, one)


def generation_equal(positions, mesh):
    config = {"is_decoder": True, "add_cross_attention": True, "position_embedding_type": positions}
    one, divided = pair("ForCausalLM", **config)
    parallelize(divided, mesh)
    batch = example("Model", rows=4, across=True)
    prompts = {**batch, "input_ids": batch["input_ids"].flip(1), "attention_mask": batch["attention_mask"].flip(1)}
    for settings in ({}, {"num_beams": 3}):

        def write(model, inputs, settings=settings):
            return model.generate(**inputs, max_new_tokens=6, eos_token_id=-1, **settings)

        assert torch.equal(call_unsharded(divided, write, my_rows(prompts, mesh)), mine(write(one, prompts), mesh))
    with torch.no_grad():  # the cache holds the rank's own heads: logits equal to those without one
        own, states = my_rows(batch, mesh)["input_ids"], batch["encoder_hidden_states"]
        first = divided(own[:, :4], encoder_hidden_states=mine(states, mesh))
        second = divided(own[:, 4:], past_key_values=first.past_key_values)
        expected = one(batch["input_ids"], encoder_hidden_states=states, use_cache=False).logits
        close(torch.cat([first.logits, second.logits], 1), mine(expected, mesh))
    assert first.past_key_values.layers[0].keys.shape[1] == 4 // mesh["tensor"].size()
    labels = {"labels": batch["input_ids"].masked_fill(batch["input_ids"] == 1, -100)}
    compute_loss(one, {**batch, **labels}).backward()
    weighted_loss(divided, my_rows({**batch, **labels}, mesh), mesh).backward()  # what has written can still learn
    equal_gradients(divided, one)


for positions in POSITIONS:
    job(generation_equal, positions)


def ten_steps(task, mesh):
    """In float64, as AdamW makes a whole step of a gradient that is only rounding; but the logits are in float32."""
    one, divided = (model.double() for model in pair(task, position_embedding_type="relative_key"))
    parallelize(divided, mesh)
    batches = [example(task, seed=seed) for seed in range(10)]
    settings = {"steps": 10, "learning_rate": 0.01, "warmup_steps": 3, "max_grad_norm": 0.5}
    history = fit(one, lambda epoch: batches, **settings, progress=False)
    assert any(entry["grad_norm"] > 0.5 for entry in history)  # some are cut short
    optimizer, losses = adamw(divided.train(), 0.01, 0.01), []
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * lr_schedule(step, 10, 3, 1.0)
        losses.append(train_step(divided, optimizer, my_rows(batch, mesh), mesh, max_grad_norm=0.5))
    close(torch.tensor(losses), torch.tensor([entry["loss"] for entry in history]))
    for ours, expected in zip(divided.parameters(), one.parameters(), strict=True):
        close(whole(ours), expected, 1e-7)
    head = divided.get_output_embeddings()
    assert head is None or head.weight is divided.get_input_embeddings().weight


job(ten_steps, "ForMaskedLM")
job(ten_steps, "ForTokenClassification")


@job
def after_looking(mesh):
    """A forward pass without gradients between two steps changes neither."""
    one, divided = pair("ForMaskedLM")
    parallelize(divided, mesh)
    batch = example("ForMaskedLM")
    for _ in range(2):
        compute_loss(one, batch).backward()
        weighted_loss(divided, my_rows(batch, mesh), mesh).backward()
        equal_gradients(divided, one)
        with torch.no_grad():
            divided(batch["input_ids"])
            call_unsharded(divided, lambda model: model.backbone(batch["input_ids"]).last_hidden_state)
        one.zero_grad()
        divided.zero_grad()


@job
def collectives_counted(mesh):
    """Two sums per block and direction, one for the words, one for the LM head's input, one gathering of logits."""
    _, divided = pair("ForMaskedLM")
    parallelize(divided, mesh)
    if mesh["data"].size() > 1:
        return  # FSDP's own come on top
    ids, layers = example("Model")["input_ids"], len(divided.backbone.layers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of hooks, which the counter sets everywhere
        with CommDebugMode() as forward:
            loss = divided(ids, labels=ids).loss
        with CommDebugMode() as backward:
            loss.backward()
    forward, backward = ({str(op): n for op, n in c.get_comm_counts().items()} for c in (forward, backward))
    assert forward == {"c10d_functional.all_reduce": 2 * layers + 1, "c10d_functional.all_gather_into_tensor": 1}
    assert backward == {"c10d_functional.all_reduce": 2 * layers + 1}


@job
def one_without_labels(mesh):
    """example() leaves the first rows without any: some rank has nothing to learn from, and still takes part."""
    everybody = [None] * dist.get_world_size()
    own = my_rows(example("ForMaskedLM"), mesh)
    dist.all_gather_object(everybody, count_labels(pair("ForMaskedLM")[0], own))
    assert (0 in everybody) == (mesh["data"].size() > 1)


@job
def drops_its_own_heads(mesh):
    """Ranks of a row drop alike, but for attention weights, of which each has other heads; and they stay in step."""
    config = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.5}
    _, divided = pair("ForMaskedLM", **config)
    parallelize(divided.train(), mesh)
    torch.manual_seed(mesh["data"].get_local_rank())
    out = divided(my_rows(inputs_of(example("ForMaskedLM")), mesh)["input_ids"], output_attentions=True)
    dropped = out.attentions[0] == 0
    assert 0.3 < dropped.float().mean() < 0.7
    for head in range(1, 4):
        assert not torch.equal(dropped[:, 0], dropped[:, head])
    row = [torch.empty_like(out.logits) for _ in range(mesh["tensor"].size())]
    dist.all_gather(row, out.logits.detach().contiguous(), group=mesh["tensor"].get_group())
    assert all(torch.equal(theirs, row[0]) for theirs in row)


@job
def in_two_types(mesh):
    """FSDP's mixed precision: weights and gradients in float32, arithmetic in bfloat16."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    one, divided = pair("ForSequenceClassification", num_labels=1)
    if mesh["data"].size() == 1:
        with pytest.raises(ValueError, match="mixed_precision is FSDP's"):
            parallelize(divided, mesh, mixed_precision=policy)
        return
    parallelize(divided, mesh, mixed_precision=policy)
    batch = {**example("Model"), "labels": torch.full((8,), 3.0)}
    loss, expected = weighted_loss(divided, my_rows(batch, mesh), mesh), compute_loss(one, batch)
    loss.backward()
    mean = loss.detach() / mesh["data"].size()
    dist.all_reduce(mean, group=mesh["data"].get_group())
    assert 0 < abs(mean / expected.detach() - 1) < 0.05
    assert {p.dtype for p in divided.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in divided.parameters() if p.grad is not None} == {torch.float32}
    assert divided(**my_rows(inputs_of(batch), mesh)).logits.dtype == torch.bfloat16


@job
def answer_beyond_the_text(mesh):
    _, divided = pair("ForQuestionAnswering")
    parallelize(divided, mesh)
    batch = example("ForQuestionAnswering")
    batch["end_positions"][:] = 9
    with pytest.raises(ValueError, match="end_positions lie beyond the text"):
        weighted_loss(divided, my_rows(batch, mesh), mesh)


# ---- files


def shared_folder():
    """The same new folder on all ranks."""
    path = [FOLDER / f"model-{len(list(FOLDER.glob('model-*')))}"]
    dist.broadcast_object_list(path)
    path[0].mkdir(exist_ok=True)
    dist.barrier()
    return path[0]


def save_whole(one):
    folder = shared_folder()
    if dist.get_rank() == 0:
        one.save_pretrained(folder)
    dist.barrier()
    return folder


def there_and_back(task, mesh):
    """Load from a folder, compare, save, compare the files."""
    decoder = {"is_decoder": True, "add_cross_attention": True} if task == "ForCausalLM" else {}
    one, _ = pair(task, position_embedding_type="relative_key", **decoder)
    folder, cls = save_whole(one), type(one)
    inputs = inputs_of(example(task, across=bool(decoder)))
    for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 0.3)):
        divided, inputs = load(cls, folder, mesh, dtype=dtype), cast(inputs, dtype)
        for name, values in one.to(dtype).named_parameters():
            assert torch.equal(whole(divided.get_parameter(name)).detach(), values.detach()), name
        with torch.no_grad():
            close(divided(**my_rows(inputs, mesh))[0], mine(one(**inputs)[0], mesh), limit)
    again = shared_folder()
    save(load(cls, folder, mesh), again, max_shard_size="10KB")
    assert len(list(again.glob("*.safetensors"))) > 1
    back, first = cls.from_pretrained(again), cls.from_pretrained(folder)
    for (name, ours), expected in zip(back.named_parameters(), first.parameters(), strict=True):
        assert torch.equal(ours, expected), name
    assert json.loads((again / "config.json").read_text()) == json.loads((folder / "config.json").read_text())


def cast(inputs, dtype):
    return {name: values.to(dtype) if values.is_floating_point() else values for name, values in inputs.items()}


for task in TASKS:
    job(there_and_back, task)


@job
def reads_its_part(mesh):
    """Of the mapped file, a rank touches the pages that its part lies on, and few others."""
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024, "num_hidden_layers": 1}
    one = xlmrxl_min.XLMRobertaXLForMaskedLM(XLMRobertaXLConfig(vocab_size=60_000, **sizes))
    folder, touched, close_store = save_whole(one), [], CheckpointReader.close

    def look_and_close(store):
        text = Path("/proc/self/smaps").read_text()
        pages = re.findall(rf"{re.escape(str(folder))}/model\.safetensors\n(?:.*\n)*?Rss:\s+(\d+) kB", text)
        touched.append(1024 * sum(map(int, pages)))
        close_store(store)

    CheckpointReader.close = look_and_close
    try:
        divided = load(type(one), folder, mesh, dtype="bfloat16")  # another type, so that all of it is read and turned
    finally:
        CheckpointReader.close = close_store
    own = columns = 0
    for parameter in divided.parameters():
        pieces = [rows.stop - rows.start for rows in MeshSharding(mesh).own(parameter)]
        assert tuple(pieces) == tuple((parameter.to_local() if isinstance(parameter, DTensor) else parameter).shape)
        own += 4 * torch.Size(pieces).numel()
        if len(pieces) == 2:  # where there is a piece of every row, no page is without one
            columns += 4 * pieces[0] * (parameter.shape[1] - pieces[1])
    size = (folder / "model.safetensors").stat().st_size
    REPORT["bytes"] = {"file": size, "own": own, "rows shared": columns, "touched": touched[0]}
    slack = 2 * 2**18 * len(list(divided.parameters()))  # the system maps some 64 to 256 kB at a time, at both ends
    assert 0.9 * own < touched[0] < own + columns + slack, REPORT["bytes"]
    assert touched[0] < size * (1 / mesh.size() + 0.25), REPORT["bytes"]


@job
def new_head(mesh):
    """A head that the file lacks is drawn, and drawn alike on all ranks."""
    folder = save_whole(pair("ForMaskedLM")[0])
    torch.manual_seed(dist.get_rank())  # ranks that did not care
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        divided = load(xlmrxl_min.XLMRobertaXLForSequenceClassification, folder, mesh, num_labels=3)
    assert any("initialised at random" in str(warning.message) for warning in caught)
    head = whole(divided.classifier.out_proj.weight).detach().contiguous()
    assert head.shape == (3, 32)
    assert head.std() > 0
    everybody = [torch.empty_like(head) for _ in range(dist.get_world_size())]
    dist.all_gather(everybody, head)
    assert all(torch.equal(theirs, head) for theirs in everybody)


@job
def real_model_fills(mesh):
    tokenizer = XLMRobertaTokenizer.from_pretrained("tiny")
    divided = load(xlmrxl_min.XLMRobertaXLForMaskedLM, "tiny", mesh, progress=False)
    one = xlmrxl_min.XLMRobertaXLForMaskedLM.from_pretrained("tiny")
    text = "Alle Menschen sind frei und <mask> an Würde"
    ours, theirs = call_unsharded(divided, fill_mask, tokenizer, text)[0], fill_mask(one, tokenizer, text)[0]
    assert [p.token_id for p in ours] == [p.token_id for p in theirs]
    close(torch.tensor([p.probability for p in ours]), torch.tensor([p.probability for p in theirs]))
    assert ours[0].text == "gleich"


@job
def cannot_write(mesh):
    """Every rank hears of it, and none waits for ever."""
    _, divided = pair("ForMaskedLM")
    parallelize(divided, mesh)
    (FOLDER / "a file").touch()
    with pytest.raises(CheckpointError, match="could not be written"):
        save(divided, FOLDER / "a file" / "below")


def main():
    torch.set_num_threads(1)
    outcomes, count = {}, int(os.environ["WORLD_SIZE"])
    with init_mesh(count, timeout_s=120):
        for data, tensor in [(1, count), (count, 1)] + ([(2, 2)] if count == 4 else []):
            mesh = init_device_mesh("cpu", (data, tensor), mesh_dim_names=("data", "tensor"))
            for name, function in JOBS.items():
                if count == 4 and data != tensor and name.startswith(SLOW):
                    continue  # two ranks do them along one axis, and four along both
                try:
                    function(mesh)
                    outcomes[f"{data}x{tensor}-{name}"] = ""
                except Exception as error:
                    at = error.__traceback__
                    while at.tb_next is not None and at.tb_next.tb_frame.f_code.co_filename == __file__:
                        at = at.tb_next
                    outcomes[f"{data}x{tensor}-{name}"] = f"line {at.tb_lineno}: {type(error).__name__}: {error}"
            outcomes[f"{data}x{tensor}-bytes"] = REPORT.get("bytes")
        (FOLDER / f"outcomes-{dist.get_rank()}.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main()
