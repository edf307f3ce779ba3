"""In which language is a text? After huggingface.co/docs/transformers/tasks/sequence_classification."""

from pathlib import Path
from types import ModuleType
from typing import Any

import guide
from datasets import Dataset
from transformers import DataCollatorWithPadding, Trainer, pipeline

from xlmrxl_min.training.texts import udhr

LANGUAGES = ["en", "de", "sw"]
START = "tiny"
MODEL = "XLMRobertaXLForSequenceClassification"
CONFIG = {"id2label": dict(enumerate(LANGUAGES))}


def accuracy(evaluated: Any) -> dict[str, float]:
    return {"accuracy": float((evaluated.predictions.argmax(-1) == evaluated.label_ids).mean())}


def run(library: ModuleType, folder: Path) -> dict[str, Any]:
    tokenizer = guide.tokenizer_class(library).from_pretrained(folder / "start")
    model = library.XLMRobertaXLForSequenceClassification.from_pretrained(folder / "start")

    rows = [{"text": row.text, "label": LANGUAGES.index(row.language)} for row in udhr(LANGUAGES)[::6]]
    texts = Dataset.from_list(rows).train_test_split(test_size=0.2, seed=0)
    tokenized = texts.map(lambda batch: tokenizer(batch["text"], truncation=True, max_length=48), batched=True)

    output = folder / library.__name__
    trainer = Trainer(
        model=model,
        args=guide.arguments(model, output),
        train_dataset=tokenized["train"],
        eval_dataset=tokenized["test"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
    )
    trainer.train()
    trainer.save_model(output)

    model = library.XLMRobertaXLForSequenceClassification.from_pretrained(output)
    classifier = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    answers = classifier(texts["test"]["text"][:4], top_k=None)
    return guide.results(trainer, tokenized["test"], answers)
