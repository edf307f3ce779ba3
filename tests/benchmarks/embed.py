"""`embed` beside transformers 4.56.2 with all texts in one padded batch: seconds for 256 texts of mixed length.

    python tests/benchmarks/embed.py

The same weights, mean pooling; medians of alternating runs in one process. Ours starts from texts and tokenizes them;
theirs starts from finished tensors, so that two tokenizers do not enter the comparison. Prints a table, ours against
theirs, and fails if the vectors differ by 1e-5 or more.
"""

import argparse
import statistics
import time

import torch
import transformers
from tqdm import tqdm

from xlmrxl_min import XLMRobertaTokenizer, XLMRobertaXLConfig, XLMRobertaXLModel, embed
from xlmrxl_min.checkpoints.locate import PRETRAINED
from xlmrxl_min.checkpoints.names import hugging_face_name

TEXTS, LONGEST, MEAN = 256, 128, 30  # lengths in tokens, <s> and </s> included


def make_texts(tokenizer: XLMRobertaTokenizer) -> list[str]:
    """Random words that are one token each, so that the lengths are the ones that were drawn."""
    generator = torch.Generator().manual_seed(0)
    lengths = (24 * (0.7 * torch.randn(TEXTS, generator=generator)).exp()).round().long().clamp(3, LONGEST)
    lengths[0] = LONGEST
    pieces = tokenizer.convert_ids_to_tokens(range(4, len(tokenizer) - 1))
    words = [piece[1:] for piece in pieces if piece.startswith("▁") and tokenizer.tokenize(piece[1:]) == [piece]]
    draws = [torch.randint(len(words), (n - 2,), generator=generator) for n in lengths.tolist()]
    texts = [" ".join(words[i] for i in row.tolist()) for row in draws]
    assert [len(tokenizer.encode(text)) for text in texts] == lengths.tolist()
    assert abs(float(lengths.float().mean()) - MEAN) < 1
    return texts


def models(name: str) -> tuple[torch.nn.Module, XLMRobertaXLModel]:
    """(theirs, ours) with the same weights."""
    if name == "tiny":
        path = PRETRAINED / "tiny"
        theirs = transformers.XLMRobertaXLModel.from_pretrained(path, add_pooling_layer=False, dtype=torch.float32)
        return theirs.eval(), XLMRobertaXLModel.from_pretrained("tiny", add_pooling_layer=False)
    torch.manual_seed(0)
    config = {"vocab_size": 12002, "hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8}
    config["intermediate_size"] = 2048
    theirs = transformers.XLMRobertaXLModel(transformers.XLMRobertaXLConfig(**config), add_pooling_layer=False).eval()
    ours = XLMRobertaXLModel(XLMRobertaXLConfig(**config), add_pooling_layer=False)
    weights = theirs.state_dict()
    ours.load_state_dict({ours_name: weights[hugging_face_name(ours_name)] for ours_name in ours.state_dict()})
    return theirs, ours


def their_embed(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        return (hidden * mask).sum(1) / mask.sum(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = XLMRobertaTokenizer.from_pretrained("tiny")
    texts = make_texts(tokenizer)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    lines = []
    for name in tqdm(("4 layers of 512", "tiny"), unit="row"):
        theirs, ours = models(name)
        work = {
            "theirs": lambda model=theirs: their_embed(model, batch),
            "ours": lambda model=ours: embed(model, tokenizer, texts, batch_size=options.batch_size, progress=False),
        }
        results, times = {}, {"theirs": [], "ours": []}
        for measured in [False] + options.rounds * [True]:  # the first round warms up
            for contender, series in times.items():
                start = time.perf_counter()
                results[contender] = work[contender]()
                series += [time.perf_counter() - start] if measured else []
            torch.testing.assert_close(results["ours"], results["theirs"], rtol=0, atol=1e-5)
        pair = {contender: statistics.median(series) for contender, series in times.items()}
        error = float((results["ours"] - results["theirs"]).abs().max())
        faster = pair["theirs"] / pair["ours"]
        lines.append(f"| {name} | {pair['theirs']:.3g} | {pair['ours']:.3g} | {faster:.2f} | {error:.1e} |")
    real, whole = int(batch["attention_mask"].sum()), batch["input_ids"].numel()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads"
    print(f"{versions}; {TEXTS} texts, {real} tokens; {whole} with padding in one batch\n")
    print("| model | theirs, s | ours, s | times as fast | difference |\n|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
