"""Masked-LM training: hide, batch by length, loop. Walked through in notebooks/06_masked_language_model.ipynb.

    python -m xlmrxl_min.train xlmrxl_min/pretrained/tiny/recipe.json --into FOLDER

trains from scratch on the Universal Declaration of Human Rights. Stop it at any time: the same command goes on from the
last state that it saved, to the same result. Every random choice is drawn from the recipe's seed and the step's number.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from .checkpoint import all_or_nothing
from .measure import without_positions
from .model import XLMRobertaXLConfig, XLMRobertaXLForMaskedLM
from .predict import evaluating
from .pretrained import Paragraph, udhr
from .tokenizer import XLMRobertaTokenizer

STATE_FILE, RECORD_FILE = "training_state.pt", "record.json"


@dataclass
class Recipe:
    """All that decides what a training run gives."""

    languages: list[str]
    vocabulary: str  # a name or a folder, as XLMRobertaTokenizer.from_pretrained takes it
    config: dict[str, Any]  # fields of XLMRobertaXLConfig
    held_out_article: int  # never trained on
    steps: int
    tokens_per_batch: int  # padding included
    learning_rate: float  # of AdamW at its peak
    matrix_learning_rate: float  # of Muon, for most of the blocks' matrices; 0: AdamW for all
    matrix_weight_decay: float  # of Muon
    warmup_steps: int
    decay_share: float  # the share of the steps, at the end, over which the learning rates fall to 0
    mask_share: float
    pair_share: float  # how many of the examples are a paragraph with its translation
    cut_share: float  # how many are tokenized in two parts, where the language writes no spaces
    dtype: str  # of the arithmetic: float32, or bfloat16 by autocast
    seed: int


# ---- examples


def hide(
    ids: Tensor, share: float, tokenizer: XLMRobertaTokenizer, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """BERT's masking (Devlin et al. 2019, section 3.1): ids `b t` -> what the model sees, and the labels, `b t` each.

    Each token that is not special is chosen with probability `share`; of the chosen ones 80% become `<mask>`, 10% a
    random token, 10% stay. Labels are -100 where nothing was chosen.
    """
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    chosen = (torch.rand(ids.shape, generator=generator) < share) & ~special
    fate = torch.rand(ids.shape, generator=generator)
    anything = torch.randint(4, tokenizer.mask_token_id, ids.shape, generator=generator)  # between the special tokens
    seen = ids.where(~chosen | (fate >= 0.9), anything).masked_fill(chosen & (fate < 0.8), tokenizer.mask_token_id)
    return seen, ids.masked_fill(~chosen, -100)


def examples(recipe: Recipe, tokenizer: XLMRobertaTokenizer, text: Sequence[Paragraph], epoch: int) -> list[list[int]]:
    """One pass over `text`: each paragraph once, a `pair_share` of them with the same paragraph in another language.

    Pairs are the translation language modelling of Lample and Conneau 2019 (arXiv:1901.07291): to find a hidden word,
    the model may look at its translation. XLM-R itself had no parallel text.
    """
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch)
    languages = list(dict.fromkeys(row.language for row in text))
    by_place = {row[:3]: row.text for row in text}
    draws = torch.rand(len(text), 3, generator=generator).tolist()
    rows = []
    for row, (draw, which, where) in zip(text, draws, strict=True):
        other = languages[int(which * len(languages))]
        translation = by_place.get((other, row.article, row.paragraph))
        # The preamble is cut into paragraphs differently from language to language: there, no pairs.
        if draw < recipe.pair_share and translation and other != row.language and row.article > 0:
            rows.append(tokenizer.encode(row.text, translation))
        elif draw > 1 - recipe.cut_share:
            rows.append(cut(tokenizer, row.text, where))
        else:
            rows.append(tokenizer.encode(row.text))
    return rows


def cut(tokenizer: XLMRobertaTokenizer, text: str, where: float) -> list[int]:
    """Tokenize the two parts of a text that is written without spaces apart, as a `<mask>` between them would.

    What follows a `<mask>` begins with ▁ like a new word. In Chinese or Japanese nothing else in a text does.
    """
    if " " in text:
        return tokenizer.encode(text)
    at = int(where * len(text))
    return [*tokenizer.encode(text[:at])[:-1], *tokenizer.encode(text[at:])[1:]]


def batches(rows: list[list[int]], tokens: int, pad: int, generator: torch.Generator) -> list[Tensor]:
    """Rows of like length together, at most `tokens` in a batch, padding included; `b t` each, in random order."""
    jitter = (torch.rand(len(rows), generator=generator) * 10).tolist()  # so that rows meet others in each epoch
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]) + jitter[i])
    groups: list[list[int]] = []
    for i in order:
        longest = max(len(rows[j]) for j in [*(groups[-1] if groups else []), i])
        if not groups or longest * (len(groups[-1]) + 1) > tokens:
            groups.append([])
        groups[-1].append(i)
    shuffled = torch.randperm(len(groups), generator=generator).tolist()
    return [padded([rows[i] for i in groups[g]], pad) for g in shuffled]


def padded(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    length = max(map(len, rows))
    return torch.tensor([[*row, *[pad] * (length - len(row))] for row in rows])


# ---- measuring


def masked_accuracy(
    model: XLMRobertaXLForMaskedLM,
    tokenizer: XLMRobertaTokenizer,
    texts: Sequence[str],
    *,
    mask_share: float = 0.15,
    rounds: int = 1,
    shuffled: bool = False,
    seed: int = 0,
) -> dict[str, float]:
    """Hide `mask_share` of the tokens behind `<mask>`, `rounds` times, and count how many come first in the prediction.

    shuffled: the tokens between `<s>` and `</s>` come in random order. Returns accuracy, loss (mean negative
    log-likelihood, nats) and tokens, the number of places asked for.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = [tokenizer.encode(text, truncation=True) for text in texts] * rounds
    if shuffled:
        rows = [[row[0], *mixed(row[1:-1], generator), row[-1]] for row in rows]
    hits, loss, tokens = 0, 0.0, 0
    with evaluating(model):
        for ids in batches(rows, 4096, tokenizer.pad_token_id, generator):
            chosen = hide(ids, mask_share, tokenizer, generator)[1] != -100
            logits, answers = scores(model, ids.masked_fill(chosen, tokenizer.mask_token_id), chosen), ids[chosen]
            hits += int((logits.argmax(-1) == answers).sum())
            loss += float(F.cross_entropy(logits, answers, reduction="sum"))
            tokens += len(answers)
    if not tokens:
        raise ValueError(f"of {len(texts)} texts no token was hidden: give more text, or more rounds.")
    return {"accuracy": hits / tokens, "loss": loss / tokens, "tokens": tokens}


def mixed(row: list[int], generator: torch.Generator) -> list[int]:
    return [row[i] for i in torch.randperm(len(row), generator=generator)]


# b t, b t -> (chosen places) v
def scores(model: XLMRobertaXLForMaskedLM, ids: Tensor, chosen: Tensor, **options: bool) -> Tensor:
    """Logits at the chosen places only: the other places' are most of the work, and nobody asks for them."""
    attention_mask = ids != model.config.pad_token_id
    hidden = model.backbone(ids, attention_mask, **options).last_hidden_state
    return model.lm_head(hidden[chosen]).float()


# ---- the loop


def pretrain(recipe: Recipe, folder: Path, *, minutes_between_saves: float = 5, progress: bool = True) -> None:
    """Train by `recipe`; leave in `folder` a checkpoint, its vocabulary and a record. Resumes what it finds there."""
    torch.manual_seed(recipe.seed)
    tokenizer = XLMRobertaTokenizer.from_pretrained(recipe.vocabulary)
    text = [row for row in udhr(recipe.languages) if row.article != recipe.held_out_article]
    model = XLMRobertaXLForMaskedLM(XLMRobertaXLConfig(vocab_size=len(tokenizer), **recipe.config))
    optimizers = make_optimizers(model, recipe)
    step = epoch = done_in_epoch = 0
    seconds, history, average = 0.0, [], None
    if (folder / STATE_FILE).exists():
        state = torch.load(folder / STATE_FILE, weights_only=True)
        if state["recipe"] != asdict(recipe):
            raise ValueError(
                f"{folder} holds a run of another recipe: choose another folder, or delete {STATE_FILE} there."
            )
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, epoch, done_in_epoch = state["step"], state["epoch"], state["done_in_epoch"]
        seconds, history, average = state["seconds"], state["history"], state["average"]
    model.train()
    last_save = start = time.monotonic() - seconds
    with tqdm(total=recipe.steps, initial=step, unit="step", disable=not progress, mininterval=5) as bar:
        while step < recipe.steps:
            order = torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch)
            todo = batches(
                examples(recipe, tokenizer, text, epoch), recipe.tokens_per_batch, tokenizer.pad_token_id, order
            )
            for ids in todo[done_in_epoch:]:
                if step == recipe.steps:
                    break
                loss = training_step(model, optimizers, recipe, tokenizer, ids, step)
                average = loss if average is None else 0.99 * average + 0.01 * loss
                step, done_in_epoch = step + 1, done_in_epoch + 1
                bar.update()
                if step % 250 == 0:
                    history.append({"step": step, "loss": round(average, 4)})
                    bar.set_postfix(loss=f"{average:.3f}")
                if time.monotonic() - last_save > 60 * minutes_between_saves:
                    last_save = time.monotonic()
                    state = {"step": step, "epoch": epoch, "done_in_epoch": done_in_epoch, "history": history}
                    state["average"] = average
                    save_state(folder, model, optimizers, recipe, seconds=last_save - start, **state)
            else:
                epoch, done_in_epoch = epoch + 1, 0
    save_result(folder, model, tokenizer, recipe, history, time.monotonic() - start)


def make_optimizers(model: XLMRobertaXLForMaskedLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW; and for most of the blocks' matrices, if the recipe says so, Muon (Jordan 2024), which needs fewer steps.

    Not for what makes the scores: with Muon they grew until a head attended to one token only, or, with weight decay,
    shrank until it attended to all alike.
    """
    by_adamw = ("query.weight", "key.weight", "distance.weight")
    blocks = model.backbone.layers.named_parameters() if recipe.matrix_learning_rate else ()
    matrices = [p for name, p in blocks if p.dim() == 2 and not name.endswith(by_adamw)]
    taken = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in taken]
    optimizers = [torch.optim.AdamW(others, lr=recipe.learning_rate, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0)]
    if matrices:
        optimizers.append(
            torch.optim.Muon(matrices, lr=recipe.matrix_learning_rate, weight_decay=recipe.matrix_weight_decay)
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def rate(recipe: Recipe, step: int) -> float:
    """The share of the peak learning rate at `step`: a linear rise, a plateau, a linear fall."""
    rise = (step + 1) / max(1, recipe.warmup_steps)
    fall = (recipe.steps - step) / max(1, recipe.decay_share * recipe.steps)
    return min(1.0, rise, fall)


def training_step(model, optimizers, recipe: Recipe, tokenizer: XLMRobertaTokenizer, ids: Tensor, step: int) -> float:
    """One batch `b t`: hide, predict, correct. Returns the loss."""
    generator = torch.manual_seed(recipe.seed * 1_000_003 + step)  # the one that dropout draws from, too
    seen, labels = hide(ids, recipe.mask_share, tokenizer, generator)
    chosen = labels != -100
    if not chosen.any():
        return 0.0
    dtype = getattr(torch, recipe.dtype)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        # Asking for the weights takes the written-out path: on a CPU the fused kernel's bfloat16 gradients are slow.
        logits = scores(model, seen, chosen, output_attentions=dtype != torch.float32)
    loss = F.cross_entropy(logits, labels[chosen])
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate(recipe, step)
        optimizer.step()
    model.zero_grad()
    return loss.item()


def save_state(folder: Path, model, optimizers, recipe: Recipe, **where: object) -> None:
    state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "recipe": asdict(recipe)}
    with all_or_nothing(folder / STATE_FILE) as (draft,):
        torch.save({**state, **where}, draft)


def save_result(folder: Path, model, tokenizer, recipe: Recipe, history: list[dict], seconds: float) -> None:
    """The checkpoint in half precision, and the record of how it came about, measured on what was saved."""
    model.to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    saved = XLMRobertaXLForMaskedLM.from_pretrained(folder)
    record = {
        "made_by": f"python -m xlmrxl_min.train RECIPE --into FOLDER (torch {torch.__version__.split('+')[0]})",
        "hours": round(seconds / 3600, 2),
        "parameters": sum(p.numel() for p in saved.parameters()),
        **evaluate(saved, tokenizer, recipe),
        "history": history,
    }
    with all_or_nothing(folder / RECORD_FILE) as (draft,):
        draft.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (folder / STATE_FILE).unlink(missing_ok=True)


def evaluate(model: XLMRobertaXLForMaskedLM, tokenizer: XLMRobertaTokenizer, recipe: Recipe) -> dict[str, object]:
    """Masked accuracy, 15% masked, on the text that was studied and on the article that was not.

    And, of how much use the order of the tokens is: with the tokens shuffled, and without any positions.
    """
    text = udhr(recipe.languages)
    studied = [row for row in text if row.article != recipe.held_out_article]
    own = [row.text for row in studied]
    unseen = [row.text for row in text if row.article == recipe.held_out_article]
    by_language = {
        language: masked_accuracy(model, tokenizer, [row.text for row in studied if row.language == language])[
            "accuracy"
        ]
        for language in recipe.languages
    }
    return {
        "own_text": masked_accuracy(model, tokenizer, own),
        "own_text_shuffled": masked_accuracy(model, tokenizer, own, shuffled=True),
        "own_text_without_positions": masked_accuracy(without_positions(model), tokenizer, own),
        "held_out_article": masked_accuracy(model, tokenizer, unseen, rounds=10),
        "own_text_by_language": {language: round(share, 3) for language, share in by_language.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--into", type=Path, required=True, metavar="FOLDER", help="for the state and the result")
    options = parser.parse_args()
    recipe = Recipe(**json.loads(options.recipe.read_text(encoding="utf-8")))
    options.into.mkdir(parents=True, exist_ok=True)
    pretrain(recipe, options.into)
    print(json.dumps(json.loads((options.into / RECORD_FILE).read_text())["own_text"]))


if __name__ == "__main__":
    main()
