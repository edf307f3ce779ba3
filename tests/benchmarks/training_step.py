"""A step of masked-LM training beside transformers 4.56.2: time, and the memory that the logits take.

    python tests/benchmarks/training_step.py

XL's width and vocabulary, 2 layers, 8 texts of 128 tokens, 15% of them labelled. Forward, backward, clipping and AdamW,
in alternating runs of one process (13 GB); both models hold the very same parameters, and loss and gradients are
compared first. transformers computes the logits of every place, `fit` those of the labelled places only. Their memory
is counted: all new tensors with the vocabulary as last axis, from the logits to their gradients.
"""

import argparse
import statistics
import time

import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from xlmrxl_min import XLMRobertaXLConfig, XLMRobertaXLForMaskedLM
from xlmrxl_min.checkpoints.names import hugging_face_name
from xlmrxl_min.training.loop import adamw, compute_loss

BATCH, TOKENS, SHARE, VOCABULARY, WIDTH = 8, 128, 0.15, 250_880, 2560
CONFIG = {"num_hidden_layers": 2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class LogitBytes(TorchDispatchMode):
    """Bytes of new tensors whose last axis is the vocabulary, but for what is as large as the table of words."""

    def __init__(self):
        super().__init__()
        self.bytes, self.seen = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.dim() > 1 and x.shape[-1] == VOCABULARY and x.shape[-2] != WIDTH:
                storage = x.untyped_storage()
                if all(storage.data_ptr() != other.data_ptr() for other in self.seen):
                    self.seen.append(storage)  # kept alive, so that no other tensor gets its address
                    self.bytes += storage.nbytes()
        return out


def twins():
    """Ours and theirs, with one set of parameters."""
    torch.manual_seed(0)
    theirs = transformers.XLMRobertaXLForMaskedLM(transformers.XLMRobertaXLConfig(**CONFIG)).train()
    ours = XLMRobertaXLForMaskedLM(XLMRobertaXLConfig(**CONFIG)).train()
    mine = {hugging_face_name(name): parameter for name, parameter in ours.named_parameters()}
    for name, module in theirs.named_modules():
        for key, _ in list(module.named_parameters(recurse=False)):
            full = f"{name}.{key}"
            if full in mine:
                setattr(module, key, mine[full])
    theirs.tie_weights()
    theirs.lm_head.bias = theirs.lm_head.decoder.bias = ours.lm_head.decoder.bias
    assert {id(parameter) for parameter in theirs.parameters()} == {id(parameter) for parameter in ours.parameters()}
    return ours, theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    ours, theirs = twins()
    ids = torch.randint(5, 250_000, (BATCH, TOKENS))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch["labels"] = ids.masked_fill(torch.rand(BATCH, TOKENS) >= SHARE, -100)
    losses = {"ours": lambda: compute_loss(ours, batch), "transformers": lambda: theirs(**batch).loss}

    found, logits = {}, {}
    for name, loss_now in losses.items():
        with LogitBytes() as counter:
            loss = loss_now()
            loss.backward()
        logits[name] = counter.bytes / 1e6
        del counter
        small = {key: p.grad.clone() for key, p in ours.named_parameters() if "word" not in key}
        rows = ours.get_input_embeddings().weight.grad[ids[0]].clone()
        found[name] = {"loss": loss.detach(), "rows of words": rows, **small}
        ours.zero_grad()
    for key, value in found["transformers"].items():
        scale = (
            value.abs().max().clamp_min(1e-4)
        )  # of some, such as the bias of the keys, the gradient is 0 but for rounding
        torch.testing.assert_close(found["ours"][key] / scale, value / scale, rtol=0, atol=1e-4, msg=key)
    del found, loss

    optimizer, seconds = adamw(ours, 1e-5, 0.01), {name: [] for name in losses}
    for turn in tqdm(range(options.rounds + 1), unit="round"):
        for name, loss_now in losses.items():
            start = time.perf_counter()
            loss_now().backward()
            torch.nn.utils.clip_grad_norm_(ours.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads"
    print(f"{versions}; loss and gradients agree within 1e-4 of their scale\n")
    print("| measured | transformers | ours | ratio |\n|---|---|---|---|")
    medians = {name: statistics.median(series) for name, series in seconds.items()}
    for what, pair in (("seconds per step", medians), ("logits, MB", logits)):
        ratio = pair["transformers"] / pair["ours"]
        print(f"| {what} | {pair['transformers']:.1f} | {pair['ours']:.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
