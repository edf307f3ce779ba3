"""The command line: `python -m xlmrxl_min fill TEXT`, `… attend TEXT -o attention.html`, `… plan xl`."""

import argparse
import sys
import warnings
from pathlib import Path

import torch

import xlmrxl_min

from .checkpoints.config import CONFIG_FILE
from .checkpoints.load import config_for, locate_weights
from .checkpoints.locate import folder_of
from .checkpoints.names import hugging_face_tensors
from .checkpoints.readers import open_store
from .inference.predict import fill_mask, format_predictions
from .interpret.explore import explore
from .model import XLMRobertaXLConfig, XLMRobertaXLForMaskedLM
from .scale.planner import BYTES, HEADS, report
from .scale.planner import plan as plan_of
from .tokenizer import XLMRobertaTokenizer


def fill(options: argparse.Namespace) -> None:
    model = XLMRobertaXLForMaskedLM.from_pretrained(options.model)
    tokenizer = XLMRobertaTokenizer.from_pretrained(options.model)
    print(format_predictions(fill_mask(model, tokenizer, options.text, top_k=options.top_k)))


def attend(options: argparse.Namespace) -> None:
    model = XLMRobertaXLForMaskedLM.from_pretrained(options.model)
    tokenizer = XLMRobertaTokenizer.from_pretrained(options.model)
    for text in (options.text, options.pair):
        if text is not None and not tokenizer.tokenize(text):
            raise ValueError(f"there is nothing to look at in {text!r}: give a text of one word or more.")
    encoding = tokenizer(options.text, options.pair, return_tensors="pt")
    with torch.no_grad():
        attentions = model(**encoding, output_attentions=True).attentions
    tokens = tokenizer.convert_ids_to_tokens(encoding.input_ids[0])
    page = explore(attentions, tokens, title=f"Attention of {Path(options.model).name}")
    path = page.save(options.output)
    print(f"{path}: {len(attentions)} layers on {len(tokens)} tokens, {path.stat().st_size / 1000:,.0f} kB")


def config_and_head(source: str) -> tuple[XLMRobertaXLConfig, str]:
    """The config of `source`, and what it was saved as: "Model", "ForMaskedLM" (where nothing says), and so on."""
    known = {"xl": XLMRobertaXLConfig.xl, "xxl": XLMRobertaXLConfig.xxl}
    folder = folder_of(source)
    if folder is not None and not (folder / CONFIG_FILE).exists() and (folder / "model.pt").exists():
        with open_store(folder) as store:
            stored = hugging_face_tensors(store)
            head = "ForSequenceClassification" if "classifier.dense.weight" in stored else "ForMaskedLM"
            return config_for(source, store, stored, None, {}), head
    config = known[source]() if source in known else XLMRobertaXLConfig.from_pretrained(source)
    head = "ForCausalLM" if config.is_decoder else "ForMaskedLM"
    named = [str(name).removeprefix("XLMRobertaXL") for name in config.extra.get("architectures") or []]
    return config, next((name for name in named if name in HEADS), head)


def plan(options: argparse.Namespace) -> None:
    config, head = config_and_head(options.source)
    settings = {"dtype": options.dtype, "quantize": "int8" if options.int8 else None, "train": options.train}
    tokens = min(512, config.max_seq_len) if options.tokens is None else options.tokens
    planned = plan_of(config, head=head, batch=options.batch, tokens=tokens, **settings)
    how = f"{'int8 weights, the rest ' if options.int8 else ''}{options.dtype}"
    task = f"{'training' if options.train else 'forward pass'}, {options.batch} x {tokens} tokens"
    print(f"{options.source}: XLMRobertaXL{head}, {how}; {task}\n\n{report(planned)}")
    if options.ranks:
        from .scale import parallel  # here, as PyTorch's engines take a second to import

        if options.int8:
            raise ValueError("int8 weights are not divided among ranks: leave out --int8.")
        settings = {"head": head, "dtype": options.dtype, "train": options.train, "batch": options.batch}
        print(f"\n{parallel.report(config, options.ranks, tokens=tokens, **settings)}")


def convert(options: argparse.Namespace) -> None:
    """Once converted, a checkpoint loads in seconds: its weights are used where they lie."""
    _, head = config_and_head(options.source)
    settings = {"dtype": options.dtype, "quantize": "int8" if options.int8 else None}
    if head == "Model":
        with open_store(locate_weights(options.source)) as store:
            settings["add_pooling_layer"] = any("pooler." in name for name in store.entries)
    with warnings.catch_warnings():  # what is made up here would pass for trained ever after
        warnings.filterwarnings("error", message=".*initialised at random")
        try:
            model = getattr(xlmrxl_min, f"XLMRobertaXL{head}").from_pretrained(options.source, **settings)
        except UserWarning as warning:
            what = str(warning).partition(":")[0]
            raise ValueError(
                f"{what}, which XLMRobertaXL{head} needs: name the right class in config.json, as architectures."
            ) from warning
    model.save_pretrained(options.folder)
    try:
        XLMRobertaTokenizer.from_pretrained(options.source).save_pretrained(options.folder)
    except FileNotFoundError:
        print(f"{options.source} has no sentencepiece.bpe.model: put one into {options.folder}.", file=sys.stderr)
    size = sum(path.stat().st_size for path in Path(options.folder).glob("*.safetensors"))
    print(f"{options.folder}: XLMRobertaXL{head}, {size / 1e9:.2f} GB of weights")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m xlmrxl_min", description="XLM-RoBERTa-XL, to understand and to use."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("fill", help="say what a <mask> in a text stands for")
    command.add_argument("text", help='such as "Alle Menschen sind frei und <mask> an Würde"')
    command.add_argument("--model", default="tiny", help="a checkpoint's name, folder or hub id (default: tiny)")
    command.add_argument("--top-k", type=int, default=5, metavar="K", help="how many predictions per mask (default: 5)")
    command.set_defaults(run=fill)
    command = commands.add_parser("attend", help="write a page that shows which token looks at which")
    command.add_argument("text", help='such as "Everyone has the right to life"')
    command.add_argument("--pair", metavar="TEXT", help="a second text, such as its translation")
    command.add_argument("--model", default="tiny", help="a checkpoint's name, folder or hub id (default: tiny)")
    command.add_argument(
        "-o", "--output", default="attention.html", metavar="FILE", help="the page (default: attention.html)"
    )
    command.set_defaults(run=attend)
    command = commands.add_parser("plan", help="say how much memory a model needs, before there is one")
    command.add_argument(
        "source", help="xl, xxl, or a checkpoint's name, folder or hub id, of which the config is read"
    )
    command.add_argument(
        "--dtype", choices=BYTES, default="float32", help="of weights and arithmetic (default: float32)"
    )
    command.add_argument("--int8", action="store_true", help="matrices and word embeddings as int8")
    command.add_argument("--batch", type=int, default=1, metavar="N", help="texts at once (default: 1)")
    command.add_argument("--tokens", type=int, metavar="N", help="of each text (default: 512, or as many as fit)")
    command.add_argument("--train", action="store_true", help="a step of training with AdamW, not a forward pass")
    command.add_argument(
        "--ranks", type=int, nargs="+", metavar="N", help="also on so many GPUs, by tensor parallelism and by FSDP"
    )
    command.set_defaults(run=plan)
    command = commands.add_parser("convert", help="write a checkpoint anew: as safetensors, of another type")
    command.add_argument("source", help="a checkpoint's name, folder or hub id; a folder with fairseq's model.pt, too")
    command.add_argument("folder", help="where to write it")
    command.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16 (default: float32)")
    command.add_argument("--int8", action="store_true", help="the large matrices in eight bits, a scale per row")
    command.set_defaults(run=convert)
    options = parser.parse_args(arguments)
    sys.stdout.reconfigure(encoding="utf-8")  # a terminal may have been declared to be ASCII; the text is not
    try:
        options.run(options)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
