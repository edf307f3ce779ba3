"""What the six guides share. Each is a script in the manner of huggingface.co/docs/transformers/tasks.

`python tests/guides/guide.py [NAME …]` runs those named, or all six, with this package and with transformers, and
prints a table of the losses.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import transformers

import xlmrxl_min

NAMES = [
    "sequence_classification", "token_classification", "multiple_choice", "question_answering", "language_modeling",
    "masked_language_modeling",
]  # fmt: skip
LIBRARIES = (xlmrxl_min, transformers)


def tokenizer_class(library: ModuleType) -> Any:
    """That of this package; of transformers the fast one, as the slow one knows no words."""
    return getattr(library, "XLMRobertaTokenizerFast", library.XLMRobertaTokenizer)


def arguments(model: Any, output: Path, **others: Any) -> transformers.TrainingArguments:
    """Two epochs, each with an evaluation and a checkpoint; the best of these is loaded at the end.

    transformers' own class offers no gradient checkpointing, which changes no number. adam_epsilon is RoBERTa's: with
    the default, gradients that are zero but for rounding, as those of biases before a softmax, would move weights.
    """
    return transformers.TrainingArguments(
        str(output), num_train_epochs=2, per_device_train_batch_size=4, learning_rate=2e-4, adam_epsilon=1e-6,
        eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True, logging_steps=1, use_cpu=True,
        gradient_checkpointing=model.supports_gradient_checkpointing, report_to="none", disable_tqdm=True, **others,
    )  # fmt: skip


def results(trainer: transformers.Trainer, dataset: Any, answers: Any) -> dict[str, Any]:
    """The losses of each step and each evaluation, the logits for `dataset`, and what the trained model answers."""
    logs = trainer.state.log_history
    return {
        "training": [log["loss"] for log in logs if "loss" in log],
        "evaluation": [log["eval_loss"] for log in logs if "eval_loss" in log],
        "logits": trainer.predict(dataset).predictions,
        "answers": answers,
    }


def run_both(name: str, folder: Path) -> list[dict[str, Any]]:
    """The results of a guide with this package, and with transformers, each from the same checkpoint in `folder`."""
    script = importlib.import_module(name)
    transformers.set_seed(0)
    model = getattr(xlmrxl_min, script.MODEL).from_pretrained(script.START, hidden_dropout_prob=0.0, **script.CONFIG)
    model.save_pretrained(folder / "start")
    xlmrxl_min.XLMRobertaTokenizer.from_pretrained(script.START).save_pretrained(folder / "start")
    return [script.run(library, folder) for library in LIBRARIES]


def row(name: str, ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """A row of the table: the mean training loss, the evaluation losses, and the largest difference of any loss."""
    cells = []
    for kind in ("training", "evaluation"):
        for losses in (ours[kind], theirs[kind]):
            losses = [sum(losses) / len(losses)] if kind == "training" else losses
            cells.append(", ".join(f"{loss:.6f}" for loss in losses))
    pairs = [pair for kind in ("training", "evaluation") for pair in zip(ours[kind], theirs[kind], strict=True)]
    return " | ".join([f"| {name}", str(len(ours["training"])), *cells, f"{max(abs(a - b) for a, b in pairs):.0e} |"])


HEADER = """\
| guide | steps | mean training loss: ours | theirs | evaluation losses: ours | theirs | largest difference |
|---|---|---|---|---|---|---|"""

if __name__ == "__main__":
    rows = []
    for name in sys.argv[1:] or NAMES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(name, *run_both(name, Path(folder))))
    print(HEADER, *rows, sep="\n")
