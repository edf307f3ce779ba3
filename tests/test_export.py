"""torch.export, torch.jit.trace and ONNX: made from one example, right for other batches, lengths and masks."""

import importlib.util

import pytest
import torch
from torch.export import Dim
from transformers_reference import SMALL, TASKS, error, twins

slow = pytest.mark.slow
RELATIVE = [(task, kind) for task in ("Model", "ForCausalLM") for kind in ("relative_key", "relative_key_query")]
CASES = [*((task, "absolute") for task in TASKS), *RELATIVE]
FAST = ("ForSequenceClassification", "absolute")  # in the default run
OTHERS = ((2, 7, 0), (3, 12, 3), (1, 30, 0), (2, 6, 1), (2, 150, 2))  # batch, tokens, padding of the first row
NAMES = ["input_ids", "attention_mask"]


class WithTuple(torch.nn.Module):
    """A model of two inputs that returns a tuple."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask, return_dict=False)


def draw(task, batch, tokens, padding):
    choices = (2,) if task == "ForMultipleChoice" else ()
    ids = torch.randint(2, SMALL["vocab_size"], (batch, *choices, tokens))
    ids[0, ..., tokens - padding :] = 1
    return ids, (ids != 1).long()


def pair(task, position_embedding_type):
    sizes = {"num_hidden_layers": 1, "max_position_embeddings": 160, "use_cache": False}
    is_decoder = task == "ForCausalLM"
    return twins(task, position_embedding_type=position_embedding_type, is_decoder=is_decoder, **sizes)


def ranges(ids):
    """Of any batch, and of 3 to 158 tokens, for each input."""
    return [{0: Dim("b"), ids.dim() - 1: Dim("t", min=3, max=158)}] * 2


def worst(task, theirs, run):
    """The largest difference of run(ids, mask) from transformers over OTHERS."""
    errors = []
    with torch.no_grad():
        for sizes in OTHERS:
            ids, mask = draw(task, *sizes)
            errors.append(error(tuple(run(ids, mask)), theirs(input_ids=ids, attention_mask=mask).to_tuple()))
    return max(errors)


@slow  # PyTorch takes several seconds for each
@pytest.mark.parametrize(("task", "position_embedding_type"), CASES)
def test_export(task, position_embedding_type, parity):
    theirs, ours = pair(task, position_embedding_type)
    ids, mask = draw(task, 2, 7, 0)
    inputs, shapes = (dict(zip(NAMES, values, strict=True)) for values in ((ids, mask), ranges(ids)))
    program = torch.export.export(ours, (), inputs, dynamic_shapes=shapes)
    exported = program.module()
    parity(worst(task, theirs, lambda ids, mask: exported(input_ids=ids, attention_mask=mask).to_tuple()))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize(
    ("task", "position_embedding_type"), [case if case == FAST else pytest.param(*case, marks=slow) for case in CASES]
)
def test_trace(task, position_embedding_type, parity):
    """The example's mask has no padding: the others' is not lost."""
    theirs, ours = pair(task, position_embedding_type)
    with torch.no_grad():  # as PyTorch's own check of the trace is run: with gradients, decoders take another kernel
        traced = torch.jit.trace(WithTuple(ours).eval(), draw(task, 2, 7, 0))
    parity(worst(task, theirs, traced))


@slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("task", "position_embedding_type", "dynamo"),
    [*((*case, False) for case in CASES), (*FAST, True), ("Model", "relative_key_query", True)],
    ids=lambda value: {False: "traced", True: "exported"}.get(value, value),
)
def test_onnx(task, position_embedding_type, dynamo, parity, tmp_path):
    """By torch.onnx's two ways: from a trace, and from torch.export, which takes onnxscript."""
    pytest.importorskip("onnx", reason="onnx is not installed: pip install onnx")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install onnxruntime")
    if dynamo and importlib.util.find_spec("onnxscript") is None:
        pytest.skip("onnxscript is not installed: pip install onnxscript")
    theirs, ours = pair(task, position_embedding_type)
    ids, mask = draw(task, 2, 7, 0)
    if dynamo:
        named = {"dynamic_shapes": ranges(ids)}
    else:
        named = {"dynamic_axes": {name: {0: "b", ids.dim() - 1: "t"} for name in NAMES}}
    path = tmp_path / "model.onnx"
    torch.onnx.export(WithTuple(ours).eval(), (ids, mask), path, input_names=NAMES, dynamo=dynamo, **named)
    session = runtime.InferenceSession(path)

    def run(ids, mask):
        return map(torch.from_numpy, session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}))

    parity(worst(task, theirs, run))
