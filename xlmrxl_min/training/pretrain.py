"""Pre-training by a recipe, as the bundled checkpoints were made; decoders.py has what decoders need.

Walked through in notebooks/06_masked_language_model.ipynb. `python -m xlmrxl_min pretrain RECIPE --into FOLDER`
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..files import atomic_write, explain_errors, make_folder, to_path
from ..inputs import check_integer, check_number, shown
from ..model import PreTrainedModel, XLMRobertaXLConfig, XLMRobertaXLForCausalLM, XLMRobertaXLForMaskedLM
from ..tokenizer import XLMRobertaTokenizer
from .batching import batch_by_length
from .evaluation import masked_accuracy, without_positions
from .loop import STATE_FILE, Batch, fit
from .masking import dynamic_masking
from .settings import check_settings
from .texts import Paragraph, udhr

RECORD_FILE = "record.json"
FIELD_KINDS: dict[str, Any] = {
    "int": int, "float": (int, float), "str": str, "str | None": (str, type(None)), "list[str]": (list, tuple),
    "dict[str, Any]": dict,
}  # fmt: skip
FIT_DEFAULTS = {"gradient_accumulation_steps": 1, "weight_decay": 0.0, "max_grad_norm": 1.0}


@dataclass(kw_only=True)
class Recipe:
    """Everything that determines the result of a pre-training run."""

    languages: list[str]
    vocabulary: str  # a name or folder for XLMRobertaTokenizer.from_pretrained
    config: dict[str, Any]  # fields of XLMRobertaXLConfig
    held_out_article: int  # not trained on
    steps: int
    tokens_per_batch: int  # padding included
    learning_rate: float  # peak, of AdamW
    matrix_learning_rate: float  # peak, of Muon, for most matrices of the blocks; 0: AdamW for all parameters
    matrix_weight_decay: float  # of Muon
    warmup_steps: int
    decay_fraction: float  # of the steps, at the end, over which the learning rates fall to 0
    dtype: str  # of the arithmetic: float32, or bfloat16 by autocast
    seed: int

    def __post_init__(self) -> None:
        for field in fields(self):
            if not isinstance(value := getattr(self, field.name), FIELD_KINDS[str(field.type)]):
                raise ValueError(f"{field.name}={shown(value)} is impossible: it must be of type {field.type}.")
        for name in [field.name for field in fields(self) if field.name.endswith("_prob")]:
            check_number(name, getattr(self, name), 0, 1)
        for name in ("matrix_learning_rate", "matrix_weight_decay"):
            check_number(name, getattr(self, name), 0)
        check_settings({**FIT_DEFAULTS, **vars(self)})
        check_integer("tokens_per_batch", self.tokens_per_batch)
        check_integer("held_out_article", self.held_out_article, 0, 30)
        if not udhr(self.languages):
            raise ValueError("languages=[] is impossible: name one or more.")
        known = {field.name for field in fields(XLMRobertaXLConfig)} - {"vocab_size"}  # the vocabulary determines it
        if unknown := [name for name in self.config if name not in known]:
            raise ValueError(f"config has {', '.join(map(repr, unknown))}, but takes {', '.join(sorted(known))}.")
        XLMRobertaXLConfig(**self.config)  # ValueError if impossible

    def generator(self, epoch: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed_of_epoch(epoch))

    def seed_of_epoch(self, epoch: int) -> int:
        return self.seed * 1_000_003 + epoch

    def pretrain(self, folder: Path, **options: Any) -> dict[str, Any]:
        raise NotImplementedError("take a recipe of encoders or of decoders.")


@dataclass(kw_only=True)
class EncoderRecipe(Recipe):
    mask_prob: float
    pair_prob: float  # of a paragraph to be paired with its translation
    split_prob: float  # of a paragraph without spaces to be tokenized in two parts

    def pretrain(self, folder: Path, **options: Any) -> dict[str, Any]:
        return pretrain_encoder(self, folder, **options)


def pretrain(recipe: Recipe | str | os.PathLike[str], folder: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """Train by `recipe` (or its file); save checkpoint, vocabulary and record in `folder`; return the record.

    options: minutes_between_saves and progress, as in `fit`. After an interruption, the same call resumes, to the same
    result.
    """
    into = to_path(folder, "folder")
    return (recipe if isinstance(recipe, Recipe) else load_recipe(recipe)).pretrain(into, **options)


def load_recipe(file: str | os.PathLike[str]) -> Recipe:
    """Read a recipe.json: a DecoderRecipe if its config has is_decoder.

    ValueError for missing and unknown fields, for impossible ones, and for what is no JSON.
    """
    from .decoders import DecoderRecipe  # which imports this file

    path = to_path(file)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"it holds a {type(values).__name__}, but must hold a dict of fields")
        config = values.get("config")
        kind = DecoderRecipe if isinstance(config, dict) and config.get("is_decoder") else EncoderRecipe
        missing = [field.name for field in fields(kind) if field.default is MISSING and field.name not in values]
        unknown = [name for name in values if name not in {field.name for field in fields(kind)}]
        for what, names in (("lacks", missing), ("has unknown fields:", unknown)):
            if names:
                raise ValueError(f"it {what} {', '.join(names)}")
        return kind(**values)
    except ValueError as error:  # of JSON, too
        raise ValueError(f"{file} is no recipe: {str(error).rstrip('.')}.") from error


# ---- what all recipes have in common


def train(
    recipe: Recipe, model: XLMRobertaXLForMaskedLM | XLMRobertaXLForCausalLM, tokenizer: XLMRobertaTokenizer,
    batches: Callable[[int], Sequence[Batch]], evaluate: Callable[[Any], Mapping[str, Any]], folder: Path,
    **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Run `fit` by `recipe`, then save the checkpoint (float16), the vocabulary and the record in `folder`.

    options: those of `fit`. The record holds the metrics that `evaluate` returns for the saved checkpoint.
    """
    with explain_errors(folder):  # before the training
        make_folder(folder)
    history = fit(
        model, batches, steps=recipe.steps, learning_rate=recipe.learning_rate, warmup_steps=recipe.warmup_steps,
        decay_fraction=recipe.decay_fraction, weight_decay=0.0, dtype=recipe.dtype, seed=recipe.seed,
        optimizers=make_optimizers(model, recipe), metadata=asdict(recipe), folder=folder, **options,
    )  # fmt: skip
    model.to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    saved = type(model).from_pretrained(folder)
    record = {
        "made_by": f"python -m xlmrxl_min pretrain RECIPE --into FOLDER (torch {torch.__version__.split('+')[0]})",
        "hours": round(history[-1]["seconds"] / 3600, 2),
        "parameters": sum(p.numel() for p in saved.parameters()),
        **evaluate(saved),
        "history": running_mean(history, every=250),
    }
    with atomic_write(folder / RECORD_FILE) as (draft,):
        draft.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (folder / STATE_FILE).unlink(missing_ok=True)
    return record


def make_optimizers(model: PreTrainedModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon (Jordan 2024) for most matrices of the blocks if the recipe asks for it: it needs fewer steps.

    Query, key and distance matrices stay with AdamW. With Muon attention collapsed to a single token, or, with weight
    decay, became uniform.
    """
    by_adamw = ("query.weight", "key.weight", "distance.weight")
    blocks = model.backbone.layers.named_parameters() if recipe.matrix_learning_rate else ()
    matrices = [p for name, p in blocks if p.dim() == 2 and not name.endswith(by_adamw)]
    in_muon = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in in_muon]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=recipe.learning_rate, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0)
    ]
    if matrices:
        muon = torch.optim.Muon(matrices, lr=recipe.matrix_learning_rate, weight_decay=recipe.matrix_weight_decay)
        optimizers.append(muon)
    return optimizers


def running_mean(history: Sequence[Mapping[str, float]], every: int) -> list[dict[str, float]]:
    """The exponential moving average of the loss (new values weigh 1%), once in `every` steps."""
    kept, average = [], math.nan
    for entry in history:
        if not math.isnan(entry["loss"]):
            average = entry["loss"] if math.isnan(average) else 0.99 * average + 0.01 * entry["loss"]
        if entry["step"] % every == 0:
            kept.append({"step": entry["step"], "loss": round(average, 4)})
    return kept


# ---- encoders


def encoder_examples(
    recipe: EncoderRecipe, tokenizer: XLMRobertaTokenizer, text: Sequence[Paragraph], epoch: int
) -> list[list[int]]:
    """The token ids of each paragraph of `text`, some of them with the same paragraph in another language.

    The pairs are those of translation language modelling (Lample and Conneau 2019, arXiv:1901.07291): the translation
    helps to predict a masked word. XLM-R itself was trained without parallel text.
    """
    languages = list(dict.fromkeys(row.language for row in text))
    by_position = {row[:3]: row.text for row in text}
    samples = torch.rand(len(text), 3, generator=recipe.generator(epoch)).tolist()
    rows = []
    for row, (kind, which, where) in zip(text, samples, strict=True):
        other = languages[int(which * len(languages))]
        translation = by_position.get((other, row.article, row.paragraph))
        # The paragraphs of the preamble differ from language to language, so there are no pairs of it.
        if kind < recipe.pair_prob and translation and other != row.language and row.article > 0:
            rows.append(tokenizer.encode(row.text, translation))
        elif kind > 1 - recipe.split_prob:
            rows.append(encode_in_two_parts(tokenizer, row.text, where))
        else:
            rows.append(tokenizer.encode(row.text))
    return rows


def encode_in_two_parts(tokenizer: XLMRobertaTokenizer, text: str, fraction: float) -> list[int]:
    """Tokenize a text without spaces as if a `<mask>` split it at `fraction` of its length.

    A piece after `<mask>` begins with ▁, which in Chinese or Japanese is otherwise found only at the start of a text.
    """
    if " " in text:
        return tokenizer.encode(text)
    at = int(fraction * len(text))
    return [*tokenizer.encode(text[:at])[:-1], *tokenizer.encode(text[at:])[1:]]


def pretrain_encoder(recipe: EncoderRecipe, folder: Path, **options: Any) -> dict[str, Any]:
    torch.manual_seed(recipe.seed)
    tokenizer = XLMRobertaTokenizer.from_pretrained(recipe.vocabulary)
    text = [row for row in udhr(recipe.languages) if row.article != recipe.held_out_article]
    model = XLMRobertaXLForMaskedLM(XLMRobertaXLConfig(vocab_size=len(tokenizer), **recipe.config))

    def batches(epoch: int) -> list[Batch]:
        rows, pad = encoder_examples(recipe, tokenizer, text, epoch), tokenizer.pad_token_id
        batched = batch_by_length(rows, recipe.tokens_per_batch, pad, recipe.generator(epoch))
        return [{"input_ids": ids, "attention_mask": (ids != pad).long()} for ids in batched]

    transform = dynamic_masking(tokenizer, recipe.mask_prob)
    evaluate = partial(evaluate_encoder, tokenizer=tokenizer, recipe=recipe)
    return train(recipe, model, tokenizer, batches, evaluate, folder, transform=transform, **options)


def evaluate_encoder(
    model: XLMRobertaXLForMaskedLM, tokenizer: XLMRobertaTokenizer, recipe: EncoderRecipe
) -> dict[str, Any]:
    """Accuracy with 15% of the tokens masked, on the training text and on the held-out article.

    On the training text also with shuffled tokens and without positions, to measure how much word order matters.
    """
    text = udhr(recipe.languages)
    training = [row for row in text if row.article != recipe.held_out_article]
    training_texts = [row.text for row in training]
    held_out_texts = [row.text for row in text if row.article == recipe.held_out_article]
    by_language = {}
    for language in recipe.languages:
        found = masked_accuracy(model, tokenizer, [row.text for row in training if row.language == language])
        by_language[language] = round(found["accuracy"], 3)
    return {
        "training_text": masked_accuracy(model, tokenizer, training_texts),
        "training_text_shuffled": masked_accuracy(model, tokenizer, training_texts, shuffled=True),
        "training_text_without_positions": masked_accuracy(without_positions(model), tokenizer, training_texts),
        "held_out_article": masked_accuracy(model, tokenizer, held_out_texts, rounds=10),
        "training_text_by_language": by_language,
    }
