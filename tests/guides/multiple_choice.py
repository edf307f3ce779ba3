"""Which text is the translation? After huggingface.co/docs/transformers/tasks/multiple_choice."""

from pathlib import Path
from types import ModuleType
from typing import Any

import guide
import torch
from datasets import Dataset
from transformers import DataCollatorForMultipleChoice, Trainer

from xlmrxl_min.training.texts import udhr

CHOICES = 3
START = "tiny"
MODEL = "XLMRobertaXLForMultipleChoice"
CONFIG: dict[str, Any] = {}


def questions() -> list[dict[str, Any]]:
    """An English text, and German ones of which one is its translation."""
    english, german = ([row.text for row in udhr(language)] for language in ("en", "de"))
    rows = []
    for i in range(0, 30, CHOICES):
        rows += [{"text": english[i + k], "choices": german[i : i + CHOICES], "label": k} for k in range(CHOICES)]
    return rows


def run(library: ModuleType, folder: Path) -> dict[str, Any]:
    tokenizer = guide.tokenizer_class(library).from_pretrained(folder / "start")
    model = library.XLMRobertaXLForMultipleChoice.from_pretrained(folder / "start")

    def tokenize(batch: dict[str, Any]) -> dict[str, Any]:
        """Each text with each of its choices as a pair; then grouped by question again."""
        texts = [text for text in batch["text"] for _ in range(CHOICES)]
        choices = [choice for several in batch["choices"] for choice in several]
        encoding = tokenizer(texts, choices, truncation=True, max_length=48)
        starts = range(0, len(texts), CHOICES)
        return {name: [rows[i : i + CHOICES] for i in starts] for name, rows in encoding.items()}

    dataset = Dataset.from_list(questions()).train_test_split(test_size=0.2, seed=0)
    tokenized = dataset.map(tokenize, batched=True, remove_columns=["text", "choices"])

    output = folder / library.__name__
    trainer = Trainer(
        model=model,
        args=guide.arguments(model, output),
        train_dataset=tokenized["train"],
        eval_dataset=tokenized["test"],
        processing_class=tokenizer,
        data_collator=DataCollatorForMultipleChoice(tokenizer),
    )
    trainer.train()
    trainer.save_model(output)

    model = library.XLMRobertaXLForMultipleChoice.from_pretrained(output)  # there is no pipeline for this task
    question = dataset["test"][0]
    pairs = [[question["text"], choice] for choice in question["choices"]]
    inputs = tokenizer(pairs, return_tensors="pt", padding=True)
    out = model(**{name: rows.unsqueeze(0) for name, rows in inputs.items()}, labels=torch.tensor([question["label"]]))
    answers = [out.loss.item(), out.logits.argmax().item(), *out.logits[0].tolist()]
    return guide.results(trainer, tokenized["test"], answers)
