"""int8: rounding, loading, saving, forward passes."""

import pytest
import torch
import torch.nn.functional as F
from formats import IDS, logits
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers_reference import SMALL, error, twins

from xlmrxl_min import (
    CheckpointError,
    XLMRobertaTokenizer,
    XLMRobertaXLConfig,
    XLMRobertaXLForMaskedLM,
    XLMRobertaXLForSequenceClassification,
    fill_mask,
)
from xlmrxl_min.checkpoints.int8 import FEWEST_ON_CUDA, TOKEN_CHUNK, Int8Linear, quantize_rows
from xlmrxl_min.checkpoints.names import hugging_face_name


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of transformers."""
    twins("ForMaskedLM")[0].save_pretrained(tmp_path / "float32")
    return tmp_path / "float32"


def test_rows_are_quantized_independently():
    weight = torch.randn(37, 24, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    integers, scale = quantize_rows(weight)
    chunks = [quantize_rows(chunk) for chunk in weight.split(5)]
    assert torch.equal(integers, torch.cat([chunk for chunk, _ in chunks]))
    assert torch.equal(scale, torch.cat([chunk for _, chunk in chunks]))
    assert integers.abs().amax(-1)[torch.arange(37) != 3].eq(127).all()
    assert not integers[3].any()
    assert (integers * scale[:, None] - weight).abs().max() <= scale.max() / 2 + 1e-6


@pytest.fixture
def without_vnni(monkeypatch):
    """A CPU whose int8 products are slow: the weights are dequantized."""
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)


def int8_layer(inputs=24, outputs=37, bias=True):
    torch.manual_seed(0)
    linear = torch.nn.Linear(inputs, outputs, bias=bias)
    layer = Int8Linear(linear)
    layer.weight.data, layer.scale.data = quantize_rows(linear.weight.detach())
    return layer


@pytest.mark.parametrize("tokens", [0, 1, 2, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_the_product_of_int8_matrices_is_exact(tokens, dtype, bias):
    layer = int8_layer(bias=bias).to(dtype)
    layer.scale.data = layer.scale.data.float()
    x = torch.randn(tokens, 24, dtype=dtype)
    integers, scale = quantize_rows(x)
    expected = (integers.double() @ layer.weight.double().T) * scale[:, None].double() * layer.scale.double()
    expected = expected + (layer.bias.double() if bias else 0)
    torch.testing.assert_close(layer.int8_product(x), expected.float())


class RowsOfProducts(TorchDispatchMode):
    """How many rows each torch._int_mm has."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._int_mm.default:
            self.rows.append(len(args[0]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("tokens", [17, 128, 129, 144, 272, 300])
def test_no_product_has_too_few_rows_for_cuda(tokens):
    layer, x = int8_layer(), torch.randn(tokens, 24)
    with torch.no_grad(), RowsOfProducts() as seen:
        out = layer.quantized(x)
    torch.testing.assert_close(out, layer.int8_product(x))
    assert sum(seen.rows) == tokens
    assert FEWEST_ON_CUDA <= min(seen.rows) <= max(seen.rows) <= TOKEN_CHUNK


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here; the test above counts rows on the CPU")
@pytest.mark.parametrize("tokens", [1, 16, 17, 129, 144, 272])
def test_int8_on_cuda_equals_int8_on_a_cpu(tokens):
    layer, x = int8_layer(inputs=32, outputs=64), torch.randn(tokens, 32)
    with torch.no_grad():
        expected = layer.quantized(x) if tokens >= FEWEST_ON_CUDA else layer.dequantized(x)
        out = layer.cuda()(x.cuda()).cpu()
    torch.testing.assert_close(out, expected)


def test_each_token_is_quantized_by_itself(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    layer = int8_layer()
    x = torch.randn(3, 100, 24)
    x[0, 0] *= 1000  # which costs the other tokens nothing
    with torch.no_grad():
        out = layer(x)
        alone = torch.stack([torch.cat([layer(token[None]) for token in text]) for text in x])
        exact = layer.dequantized(x)
    assert out.shape == (3, 100, 37)
    torch.testing.assert_close(out, alone)
    errors = (out - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert errors.max() < 0.03  # twice what rounding to 1/254 of the largest of 24 numbers costs


@pytest.mark.usefixtures("without_vnni")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_without_vnni_a_few_tokens_round_like_bfloat16(dtype, bias):
    layer = int8_layer(inputs=48, bias=bias)
    x = torch.randn(2, 4, 48).to(dtype)
    with torch.no_grad():
        out = layer(x)
        product = x.bfloat16().double() @ (layer.weight * layer.scale[:, None]).double().T
    assert out.dtype == dtype
    expected = (product + (layer.bias.double() if bias else 0)).to(dtype)
    assert not torch.equal(out, layer.dequantized(x)), "these weights are dequantized in registers"
    torch.testing.assert_close(out, expected, rtol=2**-7, atol=2**-8)


def test_gradients_flow_through_int8_layers():
    layer = int8_layer()
    x = torch.randn(2, 24, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, (layer.weight * layer.scale[:, None]).sum(0).expand(2, -1))
    torch.testing.assert_close(layer.bias.grad, torch.full((37,), 2.0))


@pytest.mark.usefixtures("without_vnni")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_model_equals_the_model_of_its_dequantized_weights(dtype, folder):
    stored = load_file(folder / "model.safetensors")
    ours = XLMRobertaXLForMaskedLM.from_pretrained(folder, quantize="int8", dtype=dtype)
    dequantized = XLMRobertaXLForMaskedLM.from_pretrained(folder, dtype=dtype)
    with torch.no_grad():
        for name, module in dequantized.named_modules():
            if isinstance(module, torch.nn.Linear) or name == "backbone.embeddings.word":
                name = "backbone.embeddings.word" if name == "lm_head.decoder" else name  # tied, and stored once
                integers, scale = quantize_rows(stored[hugging_face_name(f"{name}.weight")])
                assert torch.equal(ours.get_submodule(name).weight, integers)
                module.weight.copy_(integers * scale[:, None])
    assert ours.lm_head.decoder.weight is ours.backbone.embeddings.word.weight
    assert ours.lm_head.decoder.scale is ours.backbone.embeddings.word.scale
    assert logits(ours).dtype == ours.dtype == dtype
    assert error(logits(ours).float(), logits(dequantized).float()) < (1e-5 if dtype == torch.float32 else 0.05)


def test_large_weights_are_quantized_and_dequantized_in_chunks(tmp_path):
    """Chunks are of 4 MiB: more than one in loading, and in dequantizing."""
    config = XLMRobertaXLConfig(**{**SMALL, "vocab_size": 100_000})
    model = XLMRobertaXLForMaskedLM(config).eval()
    model.save_pretrained(tmp_path)
    ours = XLMRobertaXLForMaskedLM.from_pretrained(tmp_path, quantize="int8").lm_head.decoder
    integers, scale = quantize_rows(model.lm_head.decoder.weight)
    assert torch.equal(ours.weight, integers)
    assert torch.equal(ours.scale, scale)
    hidden = torch.randn(2, 24)
    with torch.no_grad():
        expected = F.linear(hidden, integers * scale[:, None], model.lm_head.decoder.bias)
        assert error(ours.dequantized(hidden), expected) < 1e-5


def test_int8_models_are_saved_and_loaded(folder, tmp_path):
    ours = XLMRobertaXLForMaskedLM.from_pretrained(folder, quantize="int8")
    ours.save_pretrained(tmp_path / "int8", max_shard_size="10KB")
    again = XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "int8")
    assert torch.equal(logits(again), logits(ours))
    assert again.lm_head.decoder.weight.dtype == torch.int8
    with pytest.warns(UserWarning, match="holds no classifier"):  # a new head is not quantized: it is to be trained
        model = XLMRobertaXLForSequenceClassification.from_pretrained(tmp_path / "int8", num_labels=3)
    model(IDS, labels=torch.tensor([0, 1])).loss.backward()
    assert model.classifier.dense.weight.grad.abs().max() > 0
    assert model.backbone.embeddings.position.weight.grad.abs().max() > 0


def test_int8_fills_masks():
    tokenizer = XLMRobertaTokenizer.from_pretrained("tiny")
    model = XLMRobertaXLForMaskedLM.from_pretrained("tiny", quantize="int8")
    pair = "The king went to the house of his father.</s></s>El rey fue a la <mask> de su padre."
    [[first], [second]] = fill_mask(model, tokenizer, ["Il a ouvert la <mask> de la maison.", pair])
    assert (first[0].text, second[0].text) == ("maison", "casa")
    assert first[0].probability > 0.5
    assert second[0].probability > 0.5


def test_a_new_lm_head_cannot_be_int8(folder, tmp_path):
    XLMRobertaXLForMaskedLM.from_pretrained(folder).backbone.save_pretrained(tmp_path / "bare")
    with pytest.raises(CheckpointError, match="holds no LM head, and a new one could not learn in int8"):
        XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "bare", quantize="int8")


def test_unknown_quantization_is_rejected(folder):
    with pytest.raises(ValueError, match="quantize='int4' is unknown: take one of None, 'int8'"):
        XLMRobertaXLForMaskedLM.from_pretrained(folder, quantize="int4")
