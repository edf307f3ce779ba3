"""Which word is hidden? After huggingface.co/docs/transformers/tasks/masked_language_modeling."""

from pathlib import Path
from types import ModuleType
from typing import Any

import guide
from datasets import Dataset
from language_modeling import join_blocks
from transformers import DataCollatorForLanguageModeling, Trainer, pipeline

from xlmrxl_min.training.texts import udhr

START = "tiny"
MODEL = "XLMRobertaXLForMaskedLM"
CONFIG: dict[str, Any] = {}


def run(library: ModuleType, folder: Path) -> dict[str, Any]:
    tokenizer = guide.tokenizer_class(library).from_pretrained(folder / "start")
    model = library.XLMRobertaXLForMaskedLM.from_pretrained(folder / "start")

    rows = [{"text": row.text} for row in udhr(["en", "de"])[::4]]
    texts = Dataset.from_list(rows).train_test_split(test_size=0.2, seed=0)
    tokenized = texts.map(lambda batch: tokenizer(batch["text"]), batched=True, remove_columns=["text"])
    blocks = tokenized.map(join_blocks, batched=True)

    output = folder / library.__name__
    trainer = Trainer(
        model=model,
        args=guide.arguments(model, output),
        train_dataset=blocks["train"],
        eval_dataset=blocks["test"],
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15, seed=0),
    )
    trainer.train()
    trainer.save_model(output)

    model = library.XLMRobertaXLForMaskedLM.from_pretrained(output)
    filler = pipeline("fill-mask", model=model, tokenizer=tokenizer, device="cpu")
    answers = filler(["Everyone has the <mask> to life.", "Jeder hat das <mask> auf Leben."], top_k=3)
    return guide.results(trainer, blocks["test"], answers)
