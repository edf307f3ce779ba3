"""Small valid checkpoints in every format, and the logits of a model for comparison."""

import json

import torch
from safetensors.torch import save_file

from xlmrxl_min.checkpoints.readers import DTYPES, WEIGHT_FILES

IDS = torch.randint(2, 60, (2, 7), generator=torch.Generator().manual_seed(0))
SAFETENSORS, SAFETENSORS_INDEX, BIN, BIN_INDEX, MODEL_PT = WEIGHT_FILES


def samples():
    """Every dtype, a scalar, an empty vector, and a shape with a zero in it."""
    generator = torch.Generator().manual_seed(0)
    tensors = {name: (torch.randn(3, 5, generator=generator) * 50).to(dtype) for name, dtype in DTYPES.items()}
    return {**tensors, "scalar": torch.tensor(3.5), "none": torch.zeros(0), "no rows": torch.zeros(0, 4)}


def equal(a, b):
    """Whether two tensors are equal bit for bit, NaN included, and in dtype and shape."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return bits(a).equal(bits(b))


def bits(tensor):  # a copy: the stride of an axis with one element may be anything
    return tensor.flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8)


def write(path, tensors=None, old=False):
    """Save `tensors` (default: the samples) as safetensors or with torch.save, `old`: as before torch 1.6."""
    tensors = samples() if tensors is None else tensors
    if path.suffix == ".safetensors":
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=not old)
    return path


def write_shards(folder, suffix=".safetensors"):
    """Write the samples into three files with an index, whose path is returned."""
    tensors, index = samples(), SAFETENSORS_INDEX if suffix == ".safetensors" else BIN_INDEX
    stem = index.split(".")[0]
    weight_map = {name: f"{stem}-{i % 3 + 1:05}-of-00003{suffix}" for i, name in enumerate(tensors)}
    for shard in set(weight_map.values()):
        write(folder / shard, {name: tensors[name] for name, to in weight_map.items() if to == shard})
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return folder / index


def logits(model):
    with torch.no_grad():
        return model(IDS).logits
