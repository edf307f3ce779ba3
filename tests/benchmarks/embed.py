"""`embed` beside transformers with padded batches: for which widths and lengths packing is faster, and why.

    python tests/benchmarks/embed.py

64 texts of mixed length, and 1,024, which transformers gets in batches of 64; random weights, 2 layers, mean pooling.
Ours starts from texts and tokenizes them; theirs starts from padded tensors. Medians of alternating runs in one
process. Prints a table: tokens with padding divided by tokens without (if each token took the same time, this would be
the speed-up), the speed-up, and the share of our time that tokenization takes. Fails if the vectors differ by 1e-5 or
more.
"""

import argparse
import math
import statistics

import torch
import transformers
from against_peers import timed
from tqdm import tqdm

from xlmrxl_min import XLMRobertaTokenizer, XLMRobertaXLConfig, XLMRobertaXLModel, embed
from xlmrxl_min.checkpoints.names import hugging_face_name

LONGEST = 256  # tokens of a text
ROWS = [(64, width, mean) for width in (192, 768) for mean in (12, 30, 75)]  # texts, hidden_size, mean tokens
ROWS += [(1024, 192, 12), (1024, 192, 30), (1024, 768, 12)]


def make_texts(tokenizer: XLMRobertaTokenizer, count: int, mean: int) -> list[str]:
    """Random words of one token each; lengths in tokens, `<s>` and `</s>` included, are log-normally distributed."""
    generator, spread = torch.Generator().manual_seed(0), 0.7
    center = mean / math.exp(spread**2 / 2)
    lengths = (center * (spread * torch.randn(count, generator=generator)).exp()).round().long().clamp(3, LONGEST)
    pieces = tokenizer.convert_ids_to_tokens(range(4, 2000))
    words = [piece[1:] for piece in pieces if piece.startswith("▁") and tokenizer.tokenize(piece[1:]) == [piece]]
    draws = [torch.randint(len(words), (n - 2,), generator=generator) for n in lengths.tolist()]
    texts = [" ".join(words[i] for i in row.tolist()) for row in draws]
    assert [len(tokenizer.encode(text)) for text in texts] == lengths.tolist()
    return texts


def models(width: int) -> tuple[torch.nn.Module, XLMRobertaXLModel]:
    """(theirs, ours) with the same weights."""
    torch.manual_seed(0)
    config = {"vocab_size": 12002, "hidden_size": width, "num_hidden_layers": 2, "intermediate_size": 4 * width}
    config["num_attention_heads"] = width // 64
    theirs = transformers.XLMRobertaXLModel(transformers.XLMRobertaXLConfig(**config), add_pooling_layer=False).eval()
    ours = XLMRobertaXLModel(XLMRobertaXLConfig(**config), add_pooling_layer=False)
    weights = theirs.state_dict()
    ours.load_state_dict({name: weights[hugging_face_name(name)] for name in ours.state_dict()})
    return theirs, ours


def their_embed(model: torch.nn.Module, batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    vectors = []
    with torch.inference_mode():
        for batch in batches:
            hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
            vectors.append((hidden * mask).sum(1) / mask.sum(1))
    return torch.cat(vectors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = XLMRobertaTokenizer.from_pretrained("tiny")
    lines = []
    for count, width, mean in tqdm(ROWS, unit="row"):
        theirs, ours = models(width)
        texts = make_texts(tokenizer, count, mean)
        batches = [
            tokenizer(texts[start : start + 64], padding=True, return_tensors="pt") for start in range(0, count, 64)
        ]
        work = {
            "theirs": lambda model=theirs, batches=batches: their_embed(model, batches),
            "ours": lambda model=ours, texts=texts: embed(model, tokenizer, texts, progress=False),
            "tokenize": lambda texts=texts: tokenizer(texts),
        }
        difference = float((work["ours"]() - work["theirs"]()).abs().max())  # this warms up, too
        assert difference < 1e-5, f"the vectors differ by {difference:.1e}"
        rounds = [{name: timed(one) for name, one in work.items()} for _ in range(options.rounds)]
        seconds = {name: statistics.median(one[name] for one in rounds) for name in work}
        padded = sum(batch["input_ids"].numel() for batch in batches)
        ratio = padded / sum(int(batch["attention_mask"].sum()) for batch in batches)
        cells = f"{ratio:.2f} | {seconds['theirs'] / seconds['ours']:.2f} | {seconds['tokenize'] / seconds['ours']:.0%}"
        lines.append(f"| {count} | {width} | {mean} | {seconds['ours']:.3g} | {cells} |")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads\n")
    print("| texts | width | mean length | ours, s | tokens with padding / without | speed-up | tokenization |")
    print("|---" * 7 + "|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
