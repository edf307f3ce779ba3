"""The command line: `python -m xlmrxl_min fill TEXT`."""

import argparse
import sys

from .model import XLMRobertaXLForMaskedLM
from .predict import fill_mask
from .tokenizer import XLMRobertaTokenizer


def fill(options: argparse.Namespace) -> None:
    model = XLMRobertaXLForMaskedLM.from_pretrained(options.model)
    tokenizer = XLMRobertaTokenizer.from_pretrained(options.model)
    for place, predictions in enumerate(fill_mask(model, tokenizer, options.text, top_k=options.top_k), start=1):
        print(f"<mask> {place}")
        for prediction in predictions:
            bar = "█" * round(30 * prediction.probability)
            # the word comes last: how wide a script is on the screen, and which way it runs, then moves no column
            print(f"  {prediction.probability:6.1%}  {bar:<30}  {prediction.text}")


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
    options = parser.parse_args(arguments)
    sys.stdout.reconfigure(encoding="utf-8")  # a terminal may have been declared to be ASCII; the text is not
    try:
        options.run(options)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
