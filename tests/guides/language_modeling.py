"""How does a text go on? After huggingface.co/docs/transformers/tasks/language_modeling."""

from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import guide
from datasets import Dataset
from transformers import DataCollatorForLanguageModeling, Trainer, pipeline

from xlmrxl_min.training.texts import udhr

BLOCK = 32
START = "tiny-decoder"
MODEL = "XLMRobertaXLForCausalLM"
CONFIG: dict[str, Any] = {}


def join_blocks(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
    """All tokens of a batch in blocks of the same length; the rest is dropped."""
    joined = {name: list(chain(*rows)) for name, rows in batch.items()}
    ends = range(BLOCK, len(joined["input_ids"]) + 1, BLOCK)
    return {name: [tokens[end - BLOCK : end] for end in ends] for name, tokens in joined.items()}


def run(library: ModuleType, folder: Path) -> dict[str, Any]:
    tokenizer = guide.tokenizer_class(library).from_pretrained(folder / "start")
    model = library.XLMRobertaXLForCausalLM.from_pretrained(folder / "start")

    rows = [{"text": row.text} for row in udhr(["en", "de"])[::2]]
    texts = Dataset.from_list(rows).train_test_split(test_size=0.2, seed=0)
    tokenized = texts.map(lambda batch: tokenizer(batch["text"]), batched=True, remove_columns=["text"])
    blocks = tokenized.map(join_blocks, batched=True)

    output = folder / library.__name__
    trainer = Trainer(
        model=model,
        args=guide.arguments(model, output, gradient_accumulation_steps=2),
        train_dataset=blocks["train"],
        eval_dataset=blocks["test"],
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    trainer.train()
    trainer.save_model(output)

    model = library.XLMRobertaXLForCausalLM.from_pretrained(output)
    generator = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    answers = generator(["Everyone has the right to", "Jeder hat das Recht auf"], max_new_tokens=12, do_sample=False)
    return guide.results(trainer, blocks["test"], answers)
