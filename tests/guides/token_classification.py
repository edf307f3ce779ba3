"""In which language is each word? After huggingface.co/docs/transformers/tasks/token_classification."""

from pathlib import Path
from types import ModuleType
from typing import Any

import guide
from datasets import Dataset
from transformers import DataCollatorForTokenClassification, Trainer, pipeline

from xlmrxl_min.training.texts import udhr

LANGUAGES = ["en", "de"]
START = "tiny"
MODEL = "XLMRobertaXLForTokenClassification"
CONFIG = {"id2label": dict(enumerate(LANGUAGES))}


def switch_language() -> list[dict[str, Any]]:
    """Sentences that begin in English and end in German, word by word."""
    english, german = ([row.text.split() for row in udhr(language)] for language in LANGUAGES)
    pairs = zip(english[::3], german[::3], strict=True)
    return [{"words": a[:8] + b[:8], "tags": [0] * len(a[:8]) + [1] * len(b[:8])} for a, b in pairs]


def run(library: ModuleType, folder: Path) -> dict[str, Any]:
    tokenizer = guide.tokenizer_class(library).from_pretrained(folder / "start")
    model = library.XLMRobertaXLForTokenClassification.from_pretrained(folder / "start")

    def tokenize(batch: dict[str, Any]) -> Any:
        """The first token of each word has the word's label; the others have none."""
        encoding = tokenizer(batch["words"], is_split_into_words=True, truncation=True)
        encoding["labels"] = []
        for i, tags in enumerate(batch["tags"]):
            words = encoding.word_ids(i)
            starts = [word is not None and word != before for before, word in zip([None, *words], words, strict=False)]
            labels = [tags[word] if start else -100 for word, start in zip(words, starts, strict=True)]
            encoding["labels"].append(labels)
        return encoding

    sentences = Dataset.from_list(switch_language()).train_test_split(test_size=0.2, seed=0)
    tokenized = sentences.map(tokenize, batched=True, remove_columns=["words", "tags"])

    output = folder / library.__name__
    trainer = Trainer(
        model=model,
        args=guide.arguments(model, output),
        train_dataset=tokenized["train"],
        eval_dataset=tokenized["test"],
        processing_class=tokenizer,
        data_collator=DataCollatorForTokenClassification(tokenizer),
    )
    trainer.train()
    trainer.save_model(output)

    model = library.XLMRobertaXLForTokenClassification.from_pretrained(output)
    tagger = pipeline(
        "token-classification", model=model, tokenizer=tokenizer, aggregation_strategy="simple", device="cpu"
    )
    answers = tagger([" ".join(words) for words in sentences["test"]["words"][:4]])
    return guide.results(trainer, tokenized["test"], answers)
