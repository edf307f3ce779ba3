"""The command line: `python -m xlmrxl_min COMMAND`, see `--help`."""

import argparse
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

import xlmrxl_min

from .checkpoints.config import CONFIG_FILE
from .checkpoints.load import locate_weights, resolve_config
from .checkpoints.locate import resolve_folder
from .checkpoints.names import hugging_face_tensors
from .checkpoints.readers import open_checkpoint
from .inference.predict import Prediction, fill_mask
from .interpret.explore import explore
from .model import XLMRobertaXLConfig, XLMRobertaXLForMaskedLM
from .scale import planner
from .tokenizer import XLMRobertaTokenizer


def fill(options: argparse.Namespace) -> None:
    model = XLMRobertaXLForMaskedLM.from_pretrained(options.model)
    tokenizer = XLMRobertaTokenizer.from_pretrained(options.model)
    print(format_predictions(fill_mask(model, tokenizer, options.text, top_k=options.top_k)))


def format_predictions(predictions: list[list[Prediction]]) -> str:
    """Format fill_mask's result for one text as lines for a terminal, with a bar for each probability."""
    lines = []
    for number, candidates in enumerate(predictions, start=1):
        lines.append(f"<mask> {number}")
        for candidate in candidates:
            bar = "█" * round(30 * candidate.probability)
            # the text comes last: whatever its width and direction on the screen, the columns stay aligned
            lines.append(f"  {candidate.probability:6.1%}  {bar:<30}  {candidate.text}")
    return "\n".join(lines)


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
    folder = resolve_folder(source)
    if folder is not None and not (folder / CONFIG_FILE).exists() and (folder / "model.pt").exists():
        checkpoint = open_checkpoint(folder)
        tensors = hugging_face_tensors(checkpoint)
        head = "ForSequenceClassification" if "classifier.dense.weight" in tensors else "ForMaskedLM"
        return resolve_config(source, checkpoint, tensors), head
    config = known[source]() if source in known else XLMRobertaXLConfig.from_pretrained(source)
    head = "ForCausalLM" if config.is_decoder else "ForMaskedLM"
    named = [str(name).removeprefix("XLMRobertaXL") for name in config.extra.get("architectures") or []]
    return config, next((name for name in named if name in planner.MODEL_HEADS), head)


def plan(options: argparse.Namespace) -> None:
    config, head = config_and_head(options.source)
    tokens = min(512, config.max_seq_len) if options.tokens is None else options.tokens
    settings: dict[str, Any] = {"head": head, "dtype": options.dtype, "quantize": "int8" if options.int8 else None}
    settings |= {"batch": options.batch, "tokens": tokens, "train": options.train}
    planned = planner.plan(config, **settings)
    how = f"{'int8 weights, the rest ' if options.int8 else ''}{options.dtype}"
    task = f"{'training' if options.train else 'forward pass'}, {options.batch} x {tokens} tokens"
    print(f"{options.source}: XLMRobertaXL{head}, {how}; {task}\n\n{planner.format_plan(planned)}")
    if options.ranks:
        print(f"\n{planner.format_rank_plans(config, options.ranks, **settings)}")


def convert(options: argparse.Namespace) -> None:
    """Once converted, a checkpoint loads in seconds: its weights stay in the memory-mapped file."""
    _, head = config_and_head(options.source)
    settings = {"dtype": options.dtype, "quantize": "int8" if options.int8 else None}
    if head == "Model":
        tensors = open_checkpoint(locate_weights(options.source)).tensors
        settings["add_pooling_layer"] = any("pooler." in name for name in tensors)
    with warnings.catch_warnings():  # saved, newly initialised weights would look like trained ones
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


def pretrain(options: argparse.Namespace) -> None:
    from .training.pretrain import pretrain

    record = pretrain(options.recipe, options.into)
    print(json.dumps({name: value for name, value in record.items() if name != "history"}))


def distributed_fill(options: argparse.Namespace) -> None:
    from .scale import commands  # here, as torch.distributed takes a second to import

    predictions = commands.fill(
        options.text, options.model, tensor=options.tensor, dtype=options.dtype, timeout_s=options.timeout
    )
    if os.environ["RANK"] == "0":
        print(format_predictions(predictions), flush=True)


def distributed_train(options: argparse.Namespace) -> None:
    from .scale import commands

    commands.train(
        options.model, language=options.language, tensor=options.tensor, dtype=options.dtype, steps=options.steps,
        batch_size=options.batch, learning_rate=options.lr, folder=options.into, timeout_s=options.timeout,
    )  # fmt: skip


def course(options: argparse.Namespace) -> None:
    from .course import notebooks

    if options.tool == "tidy":
        notebooks.tidy()
    elif options.tool == "run":
        notebooks.run(options.names)
    elif options.tool == "read":
        from .course import reading  # needs nbconvert and latex2mathml

        reading.read(options.folder.resolve())
    else:
        print(notebooks.badges(options.repository))


# ---- the parser


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m xlmrxl_min", description="XLM-RoBERTa-XL, to understand and to use."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("fill", help="predict the <mask> tokens of a text")
    command.add_argument("text", help='such as "Alle Menschen sind frei und <mask> an Würde"')
    add_model(command)
    command.add_argument("--top-k", type=int, default=5, metavar="K", help="predictions per mask (default: 5)")
    command.set_defaults(run=fill)

    command = commands.add_parser("attend", help="write a page that shows the attention of every head")
    command.add_argument("text", help='such as "Everyone has the right to life"')
    command.add_argument("--pair", metavar="TEXT", help="a second text, such as its translation")
    add_model(command)
    page = "attention.html"
    command.add_argument("-o", "--output", default=page, metavar="FILE", help=f"the page (default: {page})")
    command.set_defaults(run=attend)

    command = commands.add_parser("plan", help="compute how much memory a model needs, without building it")
    command.add_argument("source", help="xl, xxl, or a checkpoint's name, folder or hub id, whose config is read")
    add_dtype(command)
    command.add_argument("--int8", action="store_true", help="matrices and word embeddings as int8")
    command.add_argument("--batch", type=int, default=1, metavar="N", help="texts per batch (default: 1)")
    command.add_argument("--tokens", type=int, metavar="N", help="per text (default: 512, or as many as fit)")
    command.add_argument("--train", action="store_true", help="a training step with AdamW, not a forward pass")
    ranks = "also on so many GPUs, by tensor parallelism and by FSDP"
    command.add_argument("--ranks", type=int, nargs="+", metavar="N", help=ranks)
    command.set_defaults(run=plan)

    command = commands.add_parser("convert", help="write a checkpoint as safetensors, in another dtype")
    command.add_argument("source", help="a checkpoint's name, folder or hub id; or a folder with fairseq's model.pt")
    command.add_argument("folder", help="where to write it")
    add_dtype(command)
    command.add_argument("--int8", action="store_true", help="the large matrices in int8, with a scale per row")
    command.set_defaults(run=convert)

    command = commands.add_parser("pretrain", help="train a model from a recipe, as the bundled checkpoints were")
    command.add_argument("recipe", type=Path, help="a recipe.json")
    into = "for the state and the result; a run that was stopped resumes from it"
    command.add_argument("--into", type=Path, required=True, metavar="FOLDER", help=into)
    command.set_defaults(run=pretrain)

    command = commands.add_parser("course", help="link, execute and render the notebooks of the course")
    tools = command.add_subparsers(required=True, metavar="TOOL", dest="tool")
    tools.add_parser("tidy", help="update glossary links, header cards and footers")
    tool = tools.add_parser("run", help="execute notebooks in place")
    tool.add_argument("names", nargs="+", metavar="NAME", help="such as 03")
    tools.add_parser("read", help="write the reading version").add_argument("folder", type=Path)
    tools.add_parser("badges", help="print Binder and Colab badges").add_argument("repository", metavar="OWNER/NAME")
    command.set_defaults(run=course)

    command = commands.add_parser(
        "distributed", help="run on several GPUs: torchrun --nproc-per-node N -m xlmrxl_min distributed TASK"
    )
    tasks = command.add_subparsers(required=True, metavar="TASK")
    task = tasks.add_parser("fill", help="predict the <mask> tokens of a text")
    task.add_argument("text")
    task.add_argument("--tensor", type=int, metavar="N", help="ranks that shard each matrix (default: all)")
    task.set_defaults(run=distributed_fill)
    task = tasks.add_parser("train", help="train on the Universal Declaration of Human Rights in one language")
    task.add_argument("--language", default="pt", help="(default: pt, Portuguese, new to tiny)")
    task.add_argument("--tensor", type=int, default=1, metavar="N", help="ranks that shard each matrix (default: 1)")
    task.add_argument("--steps", type=int, default=10, metavar="N", help="(default: 10)")
    task.add_argument("--batch", type=int, default=8, metavar="N", help="texts per rank and step (default: 8)")
    rate = "initial learning rate (default: 1e-3, for tiny; 1e-5 suits XL)"
    task.add_argument("--lr", type=float, default=1e-3, metavar="X", help=rate)
    task.add_argument("--into", type=Path, metavar="FOLDER", help="where to save the result")
    task.set_defaults(run=distributed_train)
    for task in tasks.choices.values():
        add_model(task)
        add_dtype(task)
        task.add_argument("--timeout", type=float, default=600, metavar="SECONDS", help="to wait for another rank")
    return parser


def add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", default="tiny", help="a checkpoint's name, folder or hub id (default: tiny)")


def add_dtype(command: argparse.ArgumentParser) -> None:
    names = ", ".join(planner.ITEMSIZES)
    command.add_argument("--dtype", choices=planner.ITEMSIZES, default="float32", help=f"{names} (default: float32)")


def main(arguments: list[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]  # a terminal may claim to be ASCII
    try:
        options.run(options)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
