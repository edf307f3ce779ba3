"""Where is a word's translation? After huggingface.co/docs/transformers/tasks/question_answering."""

from pathlib import Path
from types import ModuleType
from typing import Any

import guide
from datasets import Dataset
from transformers import DefaultDataCollator, Trainer, pipeline

from xlmrxl_min.training.texts import translated_words, udhr

START = "tiny"
MODEL = "XLMRobertaXLForQuestionAnswering"
CONFIG: dict[str, Any] = {}


def questions() -> list[dict[str, Any]]:
    """An English word, a paragraph in another language, and the word of it with this meaning."""
    paragraphs = {(row.language, row.article, row.paragraph): row.text for row in udhr()}
    rows = []
    for word in translated_words():
        context = paragraphs[word.language, word.article, word.paragraph]
        if word.language in ("de", "hi", "zh"):
            answer = {"text": [word.word], "answer_start": [context.index(word.word)]}
            rows.append({"question": word.concept, "context": context, "answers": answer})
    return rows


def run(library: ModuleType, folder: Path) -> dict[str, Any]:
    tokenizer = guide.tokenizer_class(library).from_pretrained(folder / "start")
    model = library.XLMRobertaXLForQuestionAnswering.from_pretrained(folder / "start")

    def tokenize(batch: dict[str, Any]) -> Any:
        """Parts of 40 tokens; the first and the last token of the answer, or 0 in a part that lacks it."""
        encoding = tokenizer(
            batch["question"], batch["context"], truncation="only_second", max_length=40, stride=12,
            padding="max_length", return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        encoding["start_positions"], encoding["end_positions"] = [], []
        samples = encoding.pop("overflow_to_sample_mapping")
        for i, (sample, offsets) in enumerate(zip(samples, encoding.pop("offset_mapping"), strict=True)):
            answer = batch["answers"][sample]
            start = answer["answer_start"][0]
            end = start + len(answer["text"][0])
            context = [t for t, sequence in enumerate(encoding.sequence_ids(i)) if sequence == 1]
            is_here = offsets[context[0]][0] <= start and end <= offsets[context[-1]][1]
            tokens = [t for t in context if offsets[t][0] < end and start < offsets[t][1]] if is_here else [0]
            encoding["start_positions"].append(tokens[0])
            encoding["end_positions"].append(tokens[-1])
        return encoding

    dataset = Dataset.from_list(questions()).train_test_split(test_size=0.2, seed=0)
    tokenized = dataset.map(tokenize, batched=True, remove_columns=["question", "context", "answers"])

    output = folder / library.__name__
    trainer = Trainer(
        model=model,
        args=guide.arguments(model, output),
        train_dataset=tokenized["train"],
        eval_dataset=tokenized["test"],
        processing_class=tokenizer,
        data_collator=DefaultDataCollator(),  # all parts have one length
    )
    trainer.train()
    trainer.save_model(output)

    model = library.XLMRobertaXLForQuestionAnswering.from_pretrained(output)
    answerer = pipeline("question-answering", model=model, tokenizer=tokenizer, device="cpu")
    rows = dataset["test"][:4]
    answers = answerer(question=rows["question"], context=rows["context"], max_seq_len=40, doc_stride=12, top_k=2)
    return guide.results(trainer, tokenized["test"], answers)
