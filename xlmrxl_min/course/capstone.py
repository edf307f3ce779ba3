"""The capstone: the learner's file against the library, part by part. `python -m xlmrxl_min course check my_model.py`.

Each part is checked by the steps that make it, and beside the model answer for all others, so that a fault is reported
where it is. Then the whole model, as it is in the file, is compared with the library's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from traceback import walk_tb
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.locate import PRETRAINED
from ..checkpoints.names import hugging_face_name
from ..model import XLMRobertaXLConfig, XLMRobertaXLForCausalLM, XLMRobertaXLForMaskedLM
from ..tokenizer import XLMRobertaTokenizer
from .checks import TOLERANCE, Exercise, call, compare, copy_case
from .steps import ANSWERS, FILE, NOTEBOOKS, STEPS, find_definitions, missing, run
from .steps.solution import split_heads

PARTS = {
    "tokens": ("token_id", "encode", "pad_rows"),
    "embeddings, absolute positions": ("make_position_ids", "Embeddings"),
    "attention": ("attention_scores", "split_heads", "merge_heads", "attend", "Attention"),
    "relative positions, both kinds": ("skew", "relative_scores", "position_bias", "RelativeAttention"),
    "block": ("LayerNorm", "gelu", "FeedForward", "Block"),
    "encoder": ("Encoder",),
    "masking": ("mask_tokens",),
    "LM head, whole model": ("LMHead", "MaskedLM"),
    "loss": ("masked_lm_loss",),
    "checkpoints": ("my_name", "load"),
    "decoder": ("causal_mask", "CachedAttention", "CrossAttention"),
    "generation": ("generate", "top_p"),
    "full size": ("read_header", "map_tensors", "fairseq_name", "build", "load_large", "forward_bytes"),
}
TEXTS = ["All human beings are <mask> free.", "No", "Alle Menschen sind frei und <mask> an Würde und Rechten geboren."]


def find_step(name: str) -> str:
    for part in NOTEBOOKS:
        names = [step.solution.__name__ for step in vars(part).values() if isinstance(step, Exercise)]
        if name in names:
            [number] = re.findall(r"notebooks/(\d\d)_", part.__doc__ or "")
            return f"`{name}`, step {names.index(name) + 1} of notebook {number}"
    raise KeyError(name)


# ---- the parts


def check_step(text: str, name: str) -> list[str]:
    """What is wrong with one step of a file: the misconception, and what was given and expected. Empty if it is right.

    The model answer stands in for the others.
    """
    lines = text.splitlines()
    for other, (start, end) in reversed(find_definitions(text).items()):
        if other in STEPS and other != name:
            lines[start:end] = ANSWERS[other].splitlines()
    try:
        mine = getattr(run("\n".join(lines)), name)
    except Exception as error:
        return [f"The file stops with {type(error).__name__}: {error}."]
    message = STEPS[name].check(mine)
    if message.startswith("Right"):
        return []
    fault = first_fault(STEPS[name], mine)
    message = message.removeprefix("Not quite. ")
    return [message, *([fault] if fault and fault not in message else [])]


def first_fault(step: Exercise, mine: Callable) -> str:
    for case, expected in step.cases:
        arguments = copy_case(case)
        with suppress(Exception):  # `check` has described it
            if fault := step.find_fault(call(mine, arguments), expected, case, arguments):
                return fault
    return ""


# ---- the whole model


def difference(mine: Any, expected: Tensor, scale: float | None = None) -> str:
    """compare's message, or "" if they are equal but for rounding: relative to the largest number, or to `scale`."""
    comparison = compare(mine, expected)
    if isinstance(mine, Tensor) and mine.shape == expected.shape:
        allowed = TOLERANCE * (float(expected.abs().max()) if scale is None else scale)
        if float((mine - expected).abs().max()) <= allowed:
            return ""
    return "" if comparison.is_close else comparison.message


def record_outputs(parts: dict[str, nn.Module], found: dict[str, Tensor]) -> None:
    """Keep in `found` what each part of a model returns, from now on."""
    for name, part in parts.items():

        def keep(_: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
            found[name] = output[0] if isinstance(output, tuple) else output

        part.register_forward_hook(keep)


def name_parts(encoder: Any, lm_head: nn.Module) -> dict[str, nn.Module]:
    blocks = {f"block {i} (notebooks 02, 04 and 05)": block for i, block in enumerate(encoder.layers)}
    return {
        "embeddings (notebook 01)": encoder.embeddings, **blocks, "the final LayerNorm (notebook 05)": encoder.norm,
        "the LM head (notebook 06)": lm_head,
    }  # fmt: skip


def compare_logits(mine: Any, library: XLMRobertaXLForMaskedLM, ids: Tensor) -> str:
    """The first part of the two models whose outputs differ where there is no padding; "" if none does."""
    given: dict[str, Tensor] = {}
    expected: dict[str, Tensor] = {}
    record_outputs(name_parts(mine.encoder, mine.lm_head), given)
    record_outputs(name_parts(library.backbone, library.lm_head), expected)
    with torch.no_grad():
        logits = mine(ids)
        right = library(ids, attention_mask=(ids != 1).long()).logits
    for name, wanted in expected.items():
        is_given = name in given and given[name].shape == wanted.shape
        if is_given and (fault := difference(given[name][ids != 1], wanted[ids != 1])):
            return f"The first part that differs: {name}. {fault}"
    return difference(logits, right)


def encode_texts(module: Any, checkpoint: str) -> Tensor:
    sp = XLMRobertaTokenizer.from_pretrained(checkpoint).sp_model
    return module.pad_rows([module.encode(text, sp) for text in TEXTS])


def check_checkpoint(module: Any, name: str) -> str:
    library = XLMRobertaXLForMaskedLM.from_pretrained(name)
    return compare_logits(module.load(PRETRAINED / name), library, encode_texts(module, name))


def check_xl_shape(module: Any) -> str:
    """Layers, heads, vocabulary and positions of XL, in several files as XL is; random weights, and narrow."""
    with torch.random.fork_rng([]), TemporaryDirectory() as folder:
        torch.manual_seed(0)
        config = XLMRobertaXLConfig.xl(hidden_size=64, intermediate_size=256, initializer_range=0.2)
        library = XLMRobertaXLForMaskedLM(config).eval()
        library.save_pretrained(folder, max_shard_size="50MB")
        ids = torch.randint(4, config.vocab_size, (2, 9))
        ids[0, 6:] = config.pad_token_id
        return compare_logits(module.load_large(Path(folder), torch.float32), library, ids)


def check_load_large(module: Any) -> str:
    """The check of the step, but with the learner's own map_tensors, my_name and build."""
    message = STEPS["load_large"].check(module.load_large)
    return "" if message.startswith("Right") else message.removeprefix("Not quite. ")


def check_padding(module: Any) -> str:
    """A text has the same logits alone and beside a longer one."""
    model, ids = module.load(PRETRAINED / "tiny"), encode_texts(module, "tiny")
    [short] = (ids[1:2] != 1).sum(-1)
    with torch.no_grad():
        fault = difference(model(ids)[1:2, :short], model(ids[1:2, :short]))
    return f"Beside a longer text a text has other logits than alone (mask: notebooks 02 and 05). {fault}" * bool(fault)


def check_gradients(module: Any) -> str:
    """Of the loss on masked tokens, for every parameter."""
    library, mine = XLMRobertaXLForMaskedLM.from_pretrained("tiny"), module.load(PRETRAINED / "tiny")
    ids = encode_texts(module, "tiny")
    labels = ids.masked_fill(torch.arange(ids.numel()).reshape(ids.shape) % 4 > 0, -100).masked_fill(ids == 1, -100)
    expected, given = library(ids, attention_mask=(ids != 1).long(), labels=labels).loss, mine(ids)
    loss = module.masked_lm_loss(given, labels)
    if fault := difference(loss.detach(), expected.detach()):
        return f"The loss (notebook 06): {fault}"
    expected.backward()
    loss.backward()
    found = dict(mine.named_parameters())
    wanted = {name: parameter.grad for name, parameter in library.named_parameters() if parameter.grad is not None}
    scale = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        my_name = module.my_name(hugging_face_name(name).replace("lm_head.decoder.bias", "lm_head.bias"))
        if fault := difference(getattr(found.get(my_name), "grad", None), gradient, scale):
            return f"The gradient of {my_name}: {fault}"
    return ""


def with_cache(model: Any, head_dim: int) -> Callable[[Tensor, dict], Tensor]:
    """The model as `generate` takes it, 1 t -> 1 t v. Its attention is a CachedAttention.

    The cache holds all ids so far, and of each block the keys and values.
    """
    encoder = model.encoder

    def decode(ids: Tensor, cache: dict) -> Tensor:
        earlier = cache.get("ids", ids[:, :0])
        cache["ids"] = torch.cat([earlier, ids], 1)
        hidden = encoder.embeddings(cache["ids"])[:, earlier.shape[1] :]
        for i, block in enumerate(encoder.layers):
            normed = block.attention_norm(hidden)
            nothing = split_heads(normed[:, :0], head_dim)
            states, *cache[i] = block.attention(normed, *cache.get(i, (nothing, nothing)))
            hidden = hidden + states
            hidden = hidden + block.feed_forward(block.feed_forward_norm(hidden))
        return model.lm_head(encoder.norm(hidden), encoder.embeddings.word.weight)

    return decode


def check_generation(module: Any) -> str:
    """With causal attention and a cache the model is a decoder: it continues a text as the library does."""
    library = XLMRobertaXLForCausalLM.from_pretrained("tiny-decoder")
    tokenizer = XLMRobertaTokenizer.from_pretrained("tiny-decoder")
    attention, module.Attention = module.Attention, module.CachedAttention
    try:
        model = module.load(PRETRAINED / "tiny-decoder")
    finally:
        module.Attention = attention
    decode = with_cache(model, library.config.hidden_size // library.config.num_attention_heads)
    ids = torch.tensor([module.encode("Alle Menschen sind frei", tokenizer.sp_model)[:-1]])
    with torch.no_grad():
        rows = library.generate(ids, max_new_tokens=12), module.generate(decode, ids, 12, 2)
    expected, given = (tokenizer.decode(row[0], skip_special_tokens=True) for row in rows)
    return f"It writes {given!r}, and should write {expected!r} (notebooks 02 and 08)." * (given != expected)


WHOLE: dict[str, Callable[[Any], str]] = {
    **{
        f"logits of {name}": partial(check_checkpoint, name=name)
        for name in ("tiny", "tiny-relative-key", "tiny-relative-key-query")
    },
    "logits of a checkpoint of XL's shape": check_xl_shape,
    "load_large with your own build": check_load_large,
    "padding changes nothing": check_padding,
    "gradients of every parameter": check_gradients,
    "generated text": check_generation,
}


def check_whole(module: ModuleType, name: str) -> str:
    try:
        return WHOLE[name](module)
    except Exception as error:
        codes = [frame.f_code for frame, _ in walk_tb(error.__traceback__) if frame.f_code.co_filename == FILE]
        where = f" in {getattr(codes[-1], 'co_qualname', codes[-1].co_name)}" if codes else ""  # names: Python 3.11
        return f"The code stops{where} with {type(error).__name__}: {str(error).partition(chr(10))[0]}"


# ---- the report


def check(path: Path) -> None:
    """Print a line for each part. ValueError if the file is no Python, or if a part is wrong or missing."""
    text = path.read_text(encoding="utf-8")
    try:
        others = missing(text)
        module = run(text)
    except SyntaxError as error:
        raise ValueError(f"Line {error.lineno} of {path} is not Python: {error.msg}.") from error
    except Exception as error:
        raise ValueError(f"{path} stops with {type(error).__name__}: {error}.") from error
    print(f"{path}: {len(STEPS) - len(others)} of {len(STEPS)} steps are there. ✓ right, ✗ wrong, – not there yet\n")
    wrong = []
    for part, names in PARTS.items():
        faults = {name: lines for name in names if name not in others and (lines := check_step(text, name))}
        absent = [name for name in names if name in others]
        print(f"{'✗' if faults else '–' if absent else '✓'} {part:<32}{', '.join(names)}")
        for name, lines in faults.items():
            print(f"    {find_step(name)}: {lines[0]}", *lines[1:], sep="\n        ")
        if absent:
            print(f"    to write: {'; '.join(map(find_step, absent))}")
        wrong += [part] if faults else []
    stand_in = "; the model answer stands in for what is not there" if others else ""
    print(f"\nThe whole model beside the library{stand_in}\n", flush=True)
    for part in WHOLE:
        fault = check_whole(module, part)
        print(f"{'✗' if fault else '✓'} {part}" + (f"\n    {fault}" if fault else ""), flush=True)
        wrong += [part] if fault else []
    print()
    if wrong:
        raise ValueError(f"Not yet the library's model. Begin with: {wrong[0]}.")
    if others:
        raise ValueError(f"Right so far. The next step: {find_step(others[0])}.")
    print("All parts agree with the library: you have written XLM-RoBERTa-XL.")
