"""Generation beside transformers 4.56.2: tokens per second; and what a token costs as the text grows.

    python tests/benchmarks/generation.py

A decoder of XL's width and vocabulary with 4 layers and random weights (4 GB), and tiny-decoder, from a prompt of 16
tokens, greedily, with a cache; batches of 1 and 8; alternating runs of one process, medians. Both models hold the same
parameters, and what they write is compared first, token for token. Then the seconds from one token to the next of a
text that is already long, with a cache and, for tiny-decoder, without one.
"""

import argparse
import statistics
import time

import torch
import transformers
from tqdm import tqdm

from xlmrxl_min import XLMRobertaXLConfig, XLMRobertaXLForCausalLM
from xlmrxl_min.checkpoints.locate import PRETRAINED
from xlmrxl_min.checkpoints.names import hugging_face_name

PROMPT, LENGTHS, SETTLED = 16, (16, 64, 128, 256, 448), 8
WIDE = {"num_hidden_layers": 4, "is_decoder": True}


def wide() -> tuple:
    """Ours and theirs, with one set of parameters."""
    torch.manual_seed(0)
    ours = XLMRobertaXLForCausalLM(XLMRobertaXLConfig(**WIDE)).eval()
    with torch.device("meta"):
        theirs = transformers.XLMRobertaXLForCausalLM(transformers.XLMRobertaXLConfig(**WIDE)).eval()
    theirs.load_state_dict(
        {hugging_face_name(name): p for name, p in ours.state_dict().items()}, assign=True, strict=False
    )
    theirs.tie_weights()
    theirs.lm_head.bias = theirs.lm_head.decoder.bias = ours.lm_head.decoder.bias
    for name, buffer in list(theirs.named_buffers()):
        if buffer.is_meta:
            module, _, key = name.rpartition(".")
            room = torch.arange(buffer.shape[-1])[None] if key == "position_ids" else torch.zeros(buffer.shape)
            setattr(theirs.get_submodule(module), key, room.to(buffer.dtype))
    return ours, theirs


def tiny() -> tuple:
    theirs = transformers.XLMRobertaXLForCausalLM.from_pretrained(PRETRAINED / "tiny-decoder", dtype=torch.float32)
    return XLMRobertaXLForCausalLM.from_pretrained("tiny-decoder"), theirs.eval()


def rate(ours, theirs, batch: int, new: int, rounds: int) -> tuple[float, float]:
    """Tokens per second, ours and theirs, of texts that are the same."""
    ids = torch.randint(5, ours.config.vocab_size - 5, (batch, PROMPT), generator=torch.Generator().manual_seed(batch))
    mask, shared = torch.ones_like(ids), {"max_new_tokens": new, "eos_token_id": -1, "do_sample": False}
    writers = [lambda: ours.generate(ids, mask, **shared)]
    writers.append(lambda: theirs.generate(ids, attention_mask=mask, pad_token_id=1, **shared))
    texts = [write().tolist() for write in writers]
    assert texts[0] == texts[1], "they do not write the same"
    seconds = [[], []]
    for _ in tqdm(range(rounds), unit="round", desc=f"batch {batch}"):
        for series, write in zip(seconds, writers, strict=True):
            start = time.perf_counter()
            write()
            series.append(time.perf_counter() - start)
    return tuple(batch * new / statistics.median(series) for series in seconds)


def per_token(model, length: int, *, use_cache: bool, steps: int, rounds: int) -> float:
    """Median seconds from one token to the next, once `length` tokens are there."""
    ids = torch.randint(5, model.config.vocab_size - 5, (1, length), generator=torch.Generator().manual_seed(length))
    seconds = []
    for _ in range(rounds):
        last = None
        for place, _ in enumerate(model.stream(ids, max_new_tokens=steps, eos_token_id=-1, use_cache=use_cache)):
            now = time.perf_counter()
            if place > 1:  # the first has read the prompt, the second has made room in the cache
                seconds.append(now - last)
            last = now
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads"
    print(f"{versions}; the texts are equal, token for token\n")
    rates, costs = [], []
    for name, build, new in (("tiny-decoder", tiny, 128), ("XL's width, 4 layers", wide, 12)):
        ours, theirs = build()
        for batch in (1, 8):
            mine, other = rate(ours, theirs, batch, new, rounds)
            rates.append(f"| {name} | {batch} | {other:.1f} | {mine:.1f} | {mine / other:.2f} |")
        for use_cache in (True, False) if build is tiny else (True,):
            cost = [per_token(ours, n, use_cache=use_cache, steps=SETTLED, rounds=rounds) for n in LENGTHS]
            how = "with a cache" if use_cache else "without"
            costs.append(f"| {name}, {how} | " + " | ".join(f"{1000 * c:.1f}" for c in cost) + " |")
        del ours, theirs
    print("| tokens per second | batch | transformers | ours | ratio |\n|---|---|---|---|---|")
    print("\n".join(rates), "\n")
    print(
        "| ms per token, after | "
        + " | ".join(f"{n} tokens" for n in LENGTHS)
        + " |\n|---"
        + "|---" * len(LENGTHS)
        + "|"
    )
    print("\n".join(costs))


if __name__ == "__main__":
    main()
