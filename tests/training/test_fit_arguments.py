"""What `fit` takes as batches and settings; anything else is refused in one sentence, before the first step."""

import copy
import io
import math
from collections import UserDict
from fractions import Fraction

import numpy
import pytest
import torch
import transformers
from refusal import refused
from test_loop import head, part
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler

from xlmrxl_min import XLMRobertaTokenizer, XLMRobertaXLForMaskedLM
from xlmrxl_min.training.loop import STATE_FILE, compute_loss, fit


class Texts(Dataset):
    """Six texts with their labels, as a map-style dataset of dicts."""

    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return 6

    def __getitem__(self, i):
        return {name: values[i] for name, values in self.batch.items()}


# ---- batches that are accepted


def steps_taken(batches, model, batch, **settings):
    """The texts of each step, by their index in `batch`."""
    taken = []

    def record(given, generator):
        taken.append([i for row in given["input_ids"] for i in range(6) if torch.equal(row, batch["input_ids"][i])])
        return given

    fit(copy.deepcopy(model), batches, learning_rate=0.01, transform=record, progress=False, **settings)
    return taken


def sampled(dataset):
    return DataLoader(dataset, sampler=RandomSampler(dataset, generator=torch.Generator().manual_seed(7)))


LOADERS = {
    "in order": lambda dataset: DataLoader(dataset, batch_size=2),
    "shuffled": lambda dataset: DataLoader(dataset, batch_size=2, shuffle=True),
    "its own generator": lambda dataset: DataLoader(dataset, 2, shuffle=True, generator=torch.Generator()),
    "a sampler with a generator": sampled,
    "a batch sampler": lambda dataset: DataLoader(
        dataset, batch_sampler=BatchSampler(RandomSampler(dataset, generator=torch.Generator()), 2, drop_last=False)
    ),
    "a function with one loader": lambda dataset: (lambda loader: lambda epoch: loader)(
        LOADERS["its own generator"](dataset)
    ),
    "a function of the epoch": lambda dataset: lambda epoch: DataLoader(dataset, batch_size=2, shuffle=True),
    "a function that draws": lambda dataset: lambda epoch: [dataset[torch.randperm(6)[:3]], dataset[torch.randperm(6)]],
}


@pytest.mark.parametrize("kind", LOADERS)
def test_a_data_loader_has_new_orders_and_resumes_exactly(kind, tmp_path):
    model, batch = head("ForSequenceClassification")
    make = lambda: LOADERS[kind](Texts(batch))  # noqa: E731
    settings = {"steps": 14, "learning_rate": 0.01, "progress": False}
    taken = steps_taken(make(), model, batch, steps=14)
    assert taken == steps_taken(make(), model, batch, steps=14), "the seed decides"
    per_epoch = len(list(make()(0) if kind.startswith("a function") else make()))
    epochs = [taken[start : start + per_epoch] for start in range(0, 14 - per_epoch, per_epoch)]
    if kind != "a function that draws":
        assert all(sorted(i for step in epoch for i in step) == list(range(6)) for epoch in epochs)
    assert (epochs[0] == epochs[1]) == (kind == "in order")
    if kind != "in order":
        assert taken != steps_taken(make(), model, batch, steps=14, seed=1)

    whole, resumed = copy.deepcopy(model), copy.deepcopy(model)
    expected = fit(whole, make(), **settings)
    with pytest.raises(KeyboardInterrupt):
        fit(copy.deepcopy(model), make(), **settings, folder=tmp_path, minutes_between_saves=0, transform=stop_after(8))
    torch.randn(3)  # another state of PyTorch's generator
    history = fit(resumed, make(), **settings, folder=tmp_path)
    assert [entry["loss"] for entry in history] == [entry["loss"] for entry in expected]
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def stop_after(count):
    calls = iter(range(count + 1))

    def transform(batch, generator):
        if next(calls) == count:
            raise KeyboardInterrupt
        return batch

    return transform


@pytest.mark.parametrize(
    "make",
    [
        lambda batch: [batch],
        lambda batch: (batch,),
        lambda batch: lambda epoch: [batch],
        lambda batch: lambda epoch: (one for one in [batch]),
        lambda batch: endless(batch),
        lambda batch: DataLoader(Texts(batch), batch_size=6),
        lambda batch: DataLoader(Stream(batch), batch_size=None),
        lambda batch: [transformers.BatchEncoding(batch)],
        lambda batch: [UserDict(batch)],
    ],
)
def test_all_these_are_the_same_batch(make):
    model, batch = head("ForSequenceClassification")
    for values in (fit(copy.deepcopy(model), given, steps=2, learning_rate=0.01) for given in ([batch], make(batch))):
        assert values[0]["loss"] == pytest.approx(compute_loss(model, batch).item(), rel=1e-5)


def endless(batch):
    def batches(epoch):
        while True:
            yield batch

    return batches


class Stream(IterableDataset):
    def __init__(self, batch):
        self.batch = batch

    def __iter__(self):
        while True:
            yield self.batch


def test_encodings_of_both_tokenizers(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    theirs = transformers.XLMRobertaTokenizer(str(tmp_path / "sentencepiece.bpe.model"))
    model = head("ForSequenceClassification", vocab_size=len(tokenizer))[0]
    losses = []
    for tokenize in (tokenizer, theirs):
        encoding = tokenize(["all are free", "and equal"], padding=True, return_tensors="pt")
        encoding["labels"] = torch.tensor([0, 1])
        losses.append(fit(copy.deepcopy(model), [encoding], steps=1, learning_rate=0.01)[0]["loss"])
    assert losses[0] == losses[1]
    listed = tokenizer(["all are free"])
    refused(
        lambda: fit(model, [listed], steps=1, learning_rate=0.01), "input_ids is of type list, but must be a tensor"
    )


def test_compiled_models_are_trained():
    for task in ("ForMaskedLM", "ForQuestionAnswering"):
        model, batch = head(task)
        compiled = torch.compile(copy.deepcopy(model), backend="eager")
        losses = [fit(one, [batch], steps=2, learning_rate=0.01)[1]["loss"] for one in (model, compiled)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# ---- batches that are refused


def test_what_is_no_list_of_batches_is_refused():
    model, batch = head("ForMaskedLM")
    for batches, words in (
        (batch, "batches is of type dict, but must be a list of .*: a single batch goes into a list, .batch.*"),
        (transformers.BatchEncoding(batch), "is of type BatchEncoding, .* a single batch goes into a list"),
        ((one for one in [batch]), "is of type generator, .* one epoch would use it up"),
        (iter([batch]), "is of type list_iterator, .* one epoch would use it up"),
        (Texts(batch), "is of type Texts, .* pass a DataLoader of it"),
        ("tiny", "is of type str"),
        (batch["input_ids"], "is of type Tensor"),
        (None, "is of type NoneType"),
        (3, "is of type int"),
        ([], "epoch 0 has no batches"),
        (lambda epoch: [], "epoch 0 has no batches"),
        (lambda epoch: batch, "the batches of epoch 0 are of type dict"),
        (lambda epoch: None, "the batches of epoch 0 are of type NoneType"),
        (lambda epoch: [batch] if epoch == 0 else [], "epoch 1 has no batches"),
    ):
        refused(lambda batches=batches: fit(model, batches, steps=2, learning_rate=0.1), words)


REFUSED = {
    "no mapping": ("ForMaskedLM", lambda x: x["input_ids"], "batch 0 of epoch 0 cannot be trained on: it is of type"),
    "a text": ("ForMaskedLM", lambda x: "free", "it is of type str, but must be a dict of tensors"),
    "a pair": ("ForMaskedLM", lambda x: (x["input_ids"], x["labels"]), "it is of type tuple"),
    "an empty dict": ("ForMaskedLM", lambda x: {}, "it is empty"),
    "no rows": ("ForMaskedLM", lambda x: part(x, slice(0, 0)), "it is empty"),
    "lists": ("ForMaskedLM", lambda x: {**x, "labels": x["labels"].tolist()}, "labels is of type list"),
    "None": ("ForMaskedLM", lambda x: {**x, "attention_mask": None}, "attention_mask is of type NoneType"),
    "numpy": ("ForMaskedLM", lambda x: {**x, "labels": x["labels"].numpy()}, "labels is of type ndarray"),
    "no labels": ("ForMaskedLM", lambda x: without(x, "labels"), "has no labels, .* transform=dynamic_masking"),
    "no class": ("ForSequenceClassification", lambda x: without(x, "labels"), "no labels, from which .* add them"),
    "no end": ("ForQuestionAnswering", lambda x: without(x, "end_positions"), "it has no end_positions"),
    "no answer": ("ForQuestionAnswering", lambda x: {"input_ids": x["input_ids"]}, "no start_positions and no end_pos"),
    "labels of another task": (
        "ForQuestionAnswering", lambda x: {"input_ids": x["input_ids"], "labels": x["start_positions"]}, "no start_pos",
    ),
    "unknown": ("ForTokenClassification", lambda x: {**x, "offset_mapping": x["labels"]}, "take offset_mapping"),
    "shorter labels": ("ForTokenClassification", lambda x: {**x, "labels": x["labels"][:, 1:]}, r"shape \(6, 7\), but"),
    "fewer labels": ("ForSequenceClassification", lambda x: {**x, "labels": x["labels"][1:]}, r"shape \(5,\), but .*6"),
    "labels by token": ("ForSequenceClassification", lambda x: {**x, "labels": x["input_ids"]}, r"shape \(6, 8\), but"),
    "one label": ("ForMaskedLM", lambda x: {**x, "labels": torch.tensor(3)}, r"labels have shape \(\), but must be"),
    "a text's labels": ("ForCausalLM", lambda x: {**x, "labels": x["labels"][0]}, r"labels have shape \(8,\), but"),
    "a class too many": ("ForMultipleChoice", lambda x: {**x, "labels": x["labels"] + 2}, "allowed are 0 to 1"),
    "a token too many": ("ForMaskedLM", lambda x: {**x, "labels": x["input_ids"] + 60}, "allowed are 0 to 60"),
    "floats": ("ForMaskedLM", lambda x: {**x, "labels": x["labels"].float()}, "must be integers, not torch.f"),
    "truth values": ("ForTokenClassification", lambda x: {**x, "labels": x["labels"] == 1}, "must be integers"),
    "half an answer": (
        "ForQuestionAnswering", lambda x: {**x, "start_positions": x["start_positions"] + 0.5}, "start_positions must",
    ),
    "one text": ("ForMaskedLM", lambda x: part(x, 0), r"the input has shape \(8,\), but must be \(batch, tokens\)"),
}  # fmt: skip


def without(batch, name):
    return {key: values for key, values in batch.items() if key != name}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("position", [0, 1])
def test_a_batch_that_cannot_be_trained_on_is_refused_before_the_first_step(case, position):
    task, change, words = REFUSED[case]
    model, batch = head(task)
    before = copy.deepcopy(model.state_dict())
    batches = [batch, batch]
    batches[position] = change(batch)
    words = words.replace("batch 0", f"batch {position}")
    refused(lambda: fit(model, lambda epoch: batches, steps=9, learning_rate=0.1), words)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert not model.training
    after = "what transform returned in step 1 cannot be trained on"
    refused(lambda: fit(model, [batch], steps=9, learning_rate=0.1, transform=lambda x, generator: change(x)), after)
    refused(lambda: fit(model, [batch], steps=1, learning_rate=0.1, transform=lambda x, generator: None), "NoneType")


def test_a_loss_function_returns_one_number():
    model, batch = head("ForSequenceClassification")
    for returned, what in ((None, "NoneType"), (1.0, "float"), (model(**batch).logits, r"a tensor of shape \(6, 2\)")):
        refused(
            lambda returned=returned: fit(
                model, [batch], steps=1, learning_rate=0.1, loss_function=lambda *_: returned
            ),
            f"loss_function returned {what}, but must return a tensor with one number",
        )


# ---- settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": "3"}, {"steps": 1.5}, {"steps": 0}, {"steps": -1}, {"steps": None}, {"steps": True},
        {"learning_rate": math.nan}, {"learning_rate": math.inf}, {"learning_rate": 0}, {"learning_rate": -0.1},
        {"learning_rate": "0.1"}, {"learning_rate": None}, {"learning_rate": torch.tensor(0.1)},
        {"warmup_steps": -1}, {"warmup_steps": 0.5}, {"warmup_steps": "1"}, {"decay_fraction": 1.1},
        {"decay_fraction": -0.1}, {"decay_fraction": math.nan}, {"decay_fraction": "1"}, {"weight_decay": -1},
        {"weight_decay": math.nan}, {"weight_decay": "0"}, {"max_grad_norm": 0}, {"max_grad_norm": math.nan},
        {"max_grad_norm": None}, {"gradient_accumulation_steps": 0}, {"gradient_accumulation_steps": 2.0},
        {"gradient_accumulation_steps": "2"}, {"dtype": "int8"}, {"dtype": torch.bfloat16}, {"dtype": None},
        {"seed": 0.5}, {"seed": "a"}, {"seed": 2**70}, {"seed": None}, {"minutes_between_saves": -1},
        {"minutes_between_saves": "5"}, {"optimizers": []}, {"optimizers": "adamw"}, {"optimizers": [1]},
    ],
)  # fmt: skip
def test_impossible_settings(wrong):
    model, batch = head("ForSequenceClassification")
    [(name, value)] = wrong.items()
    shown = "" if isinstance(value, torch.Tensor) else str(value)
    words = f"{name}=.*{shown}.* is (impossible: it must be|unknown: take one of) "
    refused(lambda: fit(model, [batch], **{"steps": 1, "learning_rate": 0.1, **wrong}), words.replace("[]", r"\[\]"))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"transform": 3}, "transform is of type int, but must be a function"),
        ({"loss_function": "mse"}, "loss_function is of type str, but must be a function"),
        ({"metadata": {"data": object()}}, "metadata must be a dict of numbers, texts, lists and dicts"),
        ({"metadata": "data"}, "metadata must be a dict"),
    ],
)
def test_other_arguments_that_cannot_be_used(wrong, words):
    model, batch = head("ForSequenceClassification")
    refused(lambda: fit(model, [batch], steps=1, learning_rate=0.1, **wrong), words)


def test_models_that_cannot_be_trained():
    _, batch = head("ForSequenceClassification")
    with torch.device("meta"):
        empty = head("ForSequenceClassification")[0].to("meta")
    for model, words in (
        ("tiny", "model is of type str, but must be a model of this package"),
        (torch.nn.Linear(2, 2), "model is of type Linear"),
        (
            head("ForSequenceClassification")[0].backbone,
            "XLMRobertaXLModel has no loss of its own: take a model with a",
        ),
        (empty, "model has no weights"),
    ):
        refused(lambda model=model: fit(model, [batch], steps=1, learning_rate=0.1), words)


def test_settings_of_other_number_types_can_be_saved_and_resumed(tmp_path):
    model, batch = head("ForSequenceClassification")
    settings = {"steps": numpy.int64(3), "learning_rate": numpy.float64(0.01), "weight_decay": Fraction(1, 100)}
    settings |= {"warmup_steps": numpy.int32(1), "max_grad_norm": numpy.float32(1), "seed": numpy.int64(3)}
    first = fit(copy.deepcopy(model), [batch], **settings, folder=str(tmp_path))
    again = fit(model, [batch], **settings, folder=tmp_path)
    assert [entry["loss"] for entry in again] == [entry["loss"] for entry in first]


# ---- a saved state that cannot be resumed


def test_a_damaged_state_is_refused(tmp_path):
    model, batch = head("ForSequenceClassification")

    def run():
        fit(copy.deepcopy(model), [batch], steps=2, learning_rate=0.1, folder=tmp_path)

    run()
    whole = (tmp_path / STATE_FILE).read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not a state", whole[:-40]):
        (tmp_path / STATE_FILE).write_bytes(content)
        refused(run, f"{STATE_FILE} is damaged, or no state of a training run: choose another folder, or delete")
    state = torch.load(io.BytesIO(whole), weights_only=True)
    lacking = [{key: x for key, x in state.items() if key != name} for name in ("position", "history", "scaler")]
    for other in ({"a": 1}, [1], model.state_dict(), *lacking, {**state, "history": []}, {**state, "position": None}):
        torch.save(other, tmp_path / STATE_FILE)
        refused(run, "is damaged, or no state")
    (tmp_path / STATE_FILE).unlink()
    (tmp_path / STATE_FILE).mkdir()
    refused(run, "is damaged, or no state")


@pytest.mark.parametrize(
    ("kind", "labels", "words"),
    [
        ("regression", [math.nan], "must be finite numbers"),
        ("multi_label_classification", [[1.0, -100.0]], "must be numbers from 0 to 1"),
        ("multi_label_classification", [[1.0, math.nan]], "must be numbers from 0 to 1"),
    ],
)
def test_impossible_numbers_as_labels(kind, labels, words):
    model = head("ForSequenceClassification")[0]
    model.config.problem_type = kind
    if kind == "regression":
        model.config.num_labels = 1
    batch = {"input_ids": torch.tensor([[0, 5, 2]]), "labels": torch.tensor(labels)}
    refused(lambda: fit(model, [batch], steps=1, learning_rate=0.1), words)


def test_a_loss_without_a_gradient():
    model, batch = head("ForSequenceClassification")
    loss = lambda model, batch: torch.tensor(1.0)  # noqa: E731
    refused(lambda: fit(model, [batch], steps=1, learning_rate=0.1, loss_function=loss), "without a gradient")


def test_the_state_of_another_model_is_refused_and_changes_nothing(tmp_path):
    model, batch = head("ForSequenceClassification")
    fit(model, [batch], steps=2, learning_rate=0.1, folder=tmp_path)
    other, its_batch = head("ForTokenClassification")
    before = copy.deepcopy(other.state_dict())
    words = "holds a run of another model, or with other optimizers: choose another folder"
    refused(lambda: fit(other, [its_batch], steps=2, learning_rate=0.1, folder=tmp_path), words)
    torch.testing.assert_close(other.state_dict(), before, rtol=0, atol=0)
    two = [torch.optim.SGD([p for p in model.parameters() if p.dim() == n], lr=0.1) for n in (1, 2)]
    refused(lambda: fit(model, [batch], steps=2, learning_rate=0.1, folder=tmp_path, optimizers=two), words)


def test_a_model_ends_in_evaluation_mode_after_an_error_too():
    model, batch = head("ForSequenceClassification")
    with pytest.raises(KeyboardInterrupt):
        fit(model, [batch], steps=9, learning_rate=0.1, transform=stop_after(2))
    assert not any(module.training for module in model.modules())


def test_padded_ids_without_a_mask_warn_once_in_a_run():
    model = XLMRobertaXLForMaskedLM.from_pretrained("tiny")
    tokenizer = XLMRobertaTokenizer.from_pretrained("tiny")
    ids = tokenizer(["all human beings", "free"], padding=True, return_tensors="pt").input_ids
    with pytest.warns(UserWarning, match="attention_mask") as caught:
        fit(model, [{"input_ids": ids, "labels": ids}], steps=3, learning_rate=1e-5)
    assert len([one for one in caught if "padding" in str(one.message)]) == 1
