"""Training: `fit` for every head; masking and pre-training. Walked through in notebooks/06_masked_language_model.ipynb.

    python -m xlmrxl_min.training.loop xlmrxl_min/pretrained/tiny/recipe.json --into FOLDER

trains from scratch on the Universal Declaration of Human Rights. Stop it at any time: the same command goes on from the
last state that it saved, to the same result. Every random choice is drawn from a seed and a step's or epoch's number.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..interpret.metrics import without_positions
from ..model import PreTrainedModel, XLMRobertaXLConfig, XLMRobertaXLForCausalLM, XLMRobertaXLForMaskedLM, cross_entropy
from ..tokenizer import XLMRobertaTokenizer
from ..utils import atomic_write, eval_mode
from .texts import Paragraph, udhr

Batch = Mapping[str, Tensor]  # what a model's forward takes, labels among it
Change = Callable[[Batch, torch.Generator], Batch]
Loss = Callable[[PreTrainedModel, Batch], Tensor]
STATE_FILE, RECORD_FILE = "training_state.pt", "record.json"


# ---- the loop


def fit(
    model: PreTrainedModel,
    batches: Sequence[Batch] | Callable[[int], Sequence[Batch]],
    *,
    steps: int,
    learning_rate: float,
    warmup_steps: int = 0,
    decay_fraction: float = 1.0,
    weight_decay: float = 0.01,
    clip: float = 1.0,
    accumulate: int = 1,
    dtype: str = "float32",
    seed: int = 0,
    change: Change | None = None,
    loss: Loss | None = None,
    optimizers: Sequence[torch.optim.Optimizer] | None = None,
    folder: Path | None = None,
    minutes_between_saves: float = 5,
    about: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train `model`, with whatever head, and return its history: step, loss, rate, gradient, seconds, for every step.

    batches: those of an epoch, which come in a new order each time; or a function that gives the batches of epoch
    0, 1, … in their order. change: done to a batch whenever it comes, such as `masking(tokenizer)`. The learning rate
    rises for `warmup_steps` and falls to 0 over the last `decay_fraction` of all steps. accumulate: batches per step, each
    with the weight of its labels, so that the gradient is that of one large batch. clip: the longest gradient allowed.
    loss: of a batch, instead of `compute_loss`. dtype: of the arithmetic, by autocast; "float16" also scales the loss.
    optimizers: instead of AdamW, at their peak rates. folder: where the state is kept and, if it holds one, taken up
    again, to the same result. about: what else the run is, such as its data, in numbers and words; a state is taken up
    only where it is the same. Parameters that require no gradient stay as they are. ValueError for impossible settings,
    and for the state of another run.
    """
    settings = {"steps": steps, "learning_rate": learning_rate, "warmup_steps": warmup_steps, "clip": clip}
    settings |= {"decay_fraction": decay_fraction, "weight_decay": weight_decay, "accumulate": accumulate}
    settings |= {"dtype": dtype, "seed": seed, **(about or {})}
    if not (steps >= 1 and accumulate >= 1 and learning_rate > 0 and 0 <= decay_fraction <= 1):
        raise ValueError(f"no training is possible with {settings}: take steps, accumulate and learning_rate above 0.")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype={dtype!r} is unknown: take float32, bfloat16 or float16.")
    run = Run(model, optimizers or [adamw(model, learning_rate, weight_decay)], settings, loss or compute_loss)
    if folder is not None:
        run.load(folder)
    model.train()
    last_save = time.monotonic()
    with tqdm(total=steps, initial=run.step, unit="step", disable=not progress, mininterval=1, delay=2) as bar:
        while run.step < steps:
            entry = run.learn(run.next_group(batches, change))
            bar.update()
            bar.set_postfix(loss=f"{entry['loss']:.3f}", refresh=False)
            if folder is not None and (run.step == steps or time.monotonic() - last_save > 60 * minutes_between_saves):
                last_save = time.monotonic()
                run.save(folder)
    model.eval()
    return run.history


class Run:
    """A training run: all that changes in it, and so all that must be kept to go on with it."""

    def __init__(self, model: PreTrainedModel, optimizers: Sequence[torch.optim.Optimizer], settings, loss) -> None:
        self.model, self.optimizers, self.settings, self.loss = model, optimizers, settings, loss
        self.peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=settings["dtype"] == "float16")
        self.step = self.epoch = self.done = 0  # done: batches of this epoch
        self.history: list[dict[str, float]] = []
        self.todo: Sequence[Batch] | None = None
        self.start = time.monotonic()

    def next_group(self, batches: Sequence[Batch] | Callable, change: Change | None) -> list[Batch]:
        """The batches of the next step. Seeds everything by the number of the step: what dropout draws, too."""
        generator, group = torch.manual_seed(self.settings["seed"] * 1_000_003 + self.step), []
        while len(group) < self.settings["accumulate"]:
            if self.todo is None:
                self.todo = self.batches_of_epoch(batches)
            if self.done == len(self.todo):
                self.epoch, self.done, self.todo = self.epoch + 1, 0, None
                continue
            batch = self.todo[self.done]
            group.append(batch if change is None else change(batch, generator))
            self.done += 1
        return group

    def batches_of_epoch(self, batches: Sequence[Batch] | Callable) -> Sequence[Batch]:
        if callable(batches):
            todo = batches(self.epoch)
        else:
            order = torch.Generator().manual_seed(self.settings["seed"] * 1_000_003 + self.epoch)
            todo = [batches[i] for i in torch.randperm(len(batches), generator=order).tolist()]
        if not todo:
            raise ValueError(f"epoch {self.epoch} has no batches: give at least one.")
        return todo

    def learn(self, group: list[Batch]) -> dict[str, float]:
        """One step. A group without any label teaches nothing: its loss is not a number, and nothing is changed."""
        dtype, weights = self.settings["dtype"], [labelled(self.model, batch) for batch in group]
        loss = gradient = math.nan
        share = rate(self.step, self.settings["steps"], self.settings["warmup_steps"], self.settings["decay_fraction"])
        if any(weights):
            loss = 0.0
            for batch, weight in zip(group, weights, strict=True):
                with torch.autocast(self.model.device.type, getattr(torch, dtype), enabled=dtype != "float32"):
                    part = self.loss(self.model, {name: x.to(self.model.device) for name, x in batch.items()})
                part = part * (weight / sum(weights)) if weight else part
                self.scaler.scale(part).backward()
                loss += part.item()
            for optimizer, peaks in zip(self.optimizers, self.peaks, strict=True):
                self.scaler.unscale_(optimizer)
                for settings, peak in zip(optimizer.param_groups, peaks, strict=True):
                    settings["lr"] = peak * share
            gradient = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings["clip"]).item()
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
            self.scaler.update()
            self.model.zero_grad()
        self.step += 1
        seconds = round(time.monotonic() - self.start, 3)
        entry = {"step": self.step, "loss": loss, "rate": self.settings["learning_rate"] * share}
        self.history.append({**entry, "gradient": gradient, "seconds": seconds})
        return self.history[-1]

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "position": (self.step, self.epoch, self.done),
            "history": self.history,
            "settings": {**self.settings, **{name: str(value) for name, value in vars(self.model.config).items()}},
        }

    def save(self, folder: Path) -> None:
        with atomic_write(Path(folder) / STATE_FILE) as (draft,):
            torch.save(self.state(), draft)

    def load(self, folder: Path) -> None:
        """Go on where the state in `folder` ends; from the beginning if there is none."""
        path = Path(folder) / STATE_FILE
        if not path.exists():
            return
        state, settings = torch.load(path, weights_only=True, map_location=self.model.device), self.state()["settings"]
        other = {
            name for name in {**settings, **state["settings"]} if settings.get(name) != state["settings"].get(name)
        }
        if other:
            names = ", ".join(sorted(other))
            cure = f"choose another folder, or delete {STATE_FILE} there"
            raise ValueError(f"{folder} holds a run with other settings ({names}): {cure}.")
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.scaler.load_state_dict(state["scaler"])
        (self.step, self.epoch, self.done), self.history = state["position"], state["history"]
        self.start -= self.history[-1]["seconds"]  # time goes on where it stopped


def adamw(model: PreTrainedModel, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019); biases and norms do not decay, as nothing is gained by making them small."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("no parameter of this model requires a gradient: there is nothing to train.")
    groups = [
        {"params": [parameter for parameter in trained if parameter.dim() >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), eps=1e-6)


def rate(step: int, steps: int, warmup_steps: int, decay_fraction: float) -> float:
    """The share of the peak learning rate at `step`: a linear rise, a plateau, a linear fall."""
    rise = (step + 1) / max(1, warmup_steps)
    fall = (steps - step) / max(1, decay_fraction * steps)
    return min(1.0, rise, fall)


def labelled(model: PreTrainedModel, batch: Batch) -> int:
    """How many labels the loss of a batch is a mean over: tokens, texts, or numbers."""
    if "labels" not in batch:
        return len(batch["start_positions"])
    labels = batch["labels"][:, 1:] if isinstance(model, XLMRobertaXLForCausalLM) else batch["labels"]
    return labels.numel() if labels.is_floating_point() else int((labels != -100).sum())


def compute_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The model's own loss. Of language models only the labelled places go through the head: the logits of the others,
    tokens times vocabulary, would be most of the memory and of the work. 0 where there is no label.
    """
    if not isinstance(model, (XLMRobertaXLForMaskedLM, XLMRobertaXLForCausalLM)):
        return model(**batch).loss
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    hidden, labels = model.backbone(**inputs, use_cache=False).last_hidden_state, batch["labels"]
    if labels.shape != hidden.shape[:2]:
        raise ValueError(f"labels have shape {tuple(labels.shape)}, but must be {tuple(hidden.shape[:2])}.")
    if isinstance(model, XLMRobertaXLForCausalLM):  # each place is scored on the label to its right
        hidden, labels = hidden[:, :-1], labels[:, 1:]
    chosen = labels != -100
    if not chosen.any():
        return hidden.sum() * 0
    return cross_entropy(model.lm_head(hidden[chosen]).float(), labels[chosen])


# ---- pre-training


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
    decay_fraction: float  # the share of the steps, at the end, over which the learning rates fall to 0
    mask_prob: float
    pair_prob: float  # how many of the examples are a paragraph with its translation
    cut_prob: float  # how many are tokenized in two parts, where the language writes no spaces
    dtype: str  # of the arithmetic: float32, or bfloat16 by autocast
    seed: int


# ---- examples


def hide(
    ids: Tensor, share: float, tokenizer: XLMRobertaTokenizer, generator: torch.Generator, *, whole_words: bool = False
) -> tuple[Tensor, Tensor]:
    """BERT's masking (Devlin et al. 2019, section 3.1): ids `b t` -> what the model sees, and the labels, `b t` each.

    Each token that is not special is chosen with probability `share`; of the chosen ones 80% become `<mask>`, 10% a
    random token, 10% stay. Labels are -100 where nothing was chosen. whole_words: all pieces of a word are chosen, or
    none of them.
    """
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids, device=ids.device))
    draws = torch.rand(ids.shape, generator=generator).to(ids.device)
    if whole_words:  # each piece takes the draw of the place where its word begins
        begins = word_begins(tokenizer).to(ids.device)[ids]
        places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        draws = draws.gather(1, places.where(begins, 0).cummax(1).values)
    chosen = (draws < share) & ~special
    fate = torch.rand(ids.shape, generator=generator).to(ids.device)
    anything = torch.randint(4, tokenizer.mask_token_id, ids.shape, generator=generator).to(
        ids.device
    )  # no special one
    seen = ids.where(~chosen | (fate >= 0.9), anything).masked_fill(chosen & (fate < 0.8), tokenizer.mask_token_id)
    return seen, ids.masked_fill(~chosen, -100)


UNSPACED = (
    "CJK",
    "HIRAGANA",
    "KATAKANA",
    "THAI",
    "LAO",
    "KHMER",
    "MYANMAR",
)  # scripts that write no space between words


def word_begins(tokenizer: XLMRobertaTokenizer) -> Tensor:  # v
    """Which tokens begin a word: those with ▁, special ones, and every piece of a script without spaces."""

    def begins(token: str) -> bool:
        return token[:1] == "▁" or unicodedata.name(token[:1] or " ", "").startswith(UNSPACED)

    starts = [begins(token) for token in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))]
    starts = torch.tensor(starts)
    starts[tokenizer.all_special_ids] = True
    return starts


def masking(tokenizer: XLMRobertaTokenizer, share: float = 0.15, *, whole_words: bool = False) -> Change:
    """For `fit`: hides anew in every step what a batch holds (dynamic masking, Liu et al. 2019, section 4.1)."""

    def change(batch: Batch, generator: torch.Generator) -> Batch:
        seen, labels = hide(batch["input_ids"], share, tokenizer, generator, whole_words=whole_words)
        return {**batch, "input_ids": seen, "labels": labels}

    return change


def examples(recipe: Recipe, tokenizer: XLMRobertaTokenizer, text: Sequence[Paragraph], epoch: int) -> list[list[int]]:
    """One pass over `text`: each paragraph once, a `pair_prob` of them with the same paragraph in another language.

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
        if draw < recipe.pair_prob and translation and other != row.language and row.article > 0:
            rows.append(tokenizer.encode(row.text, translation))
        elif draw > 1 - recipe.cut_prob:
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
    groups = groups_by_length([len(row) for row in rows], tokens, generator)
    return [padded([rows[i] for i in group], pad) for group in groups]


def groups_by_length(lengths: Sequence[int], tokens: int, generator: torch.Generator | None = None) -> list[list[int]]:
    """The numbers of rows that go together: of like length, at most `tokens` in a group with its padding.

    In random order, and rows meet others each time; without a generator by length. A row that is too long is alone.
    """
    if tokens < 1:
        raise ValueError(f"{tokens} tokens in a batch are impossible: take 1 or more.")
    jitter = (
        [0.0] * len(lengths) if generator is None else (torch.rand(len(lengths), generator=generator) * 10).tolist()
    )
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i] + jitter[i]):
        longest = max(lengths[j] for j in [*(groups[-1] if groups else []), i])
        if not groups or longest * (len(groups[-1]) + 1) > tokens:
            groups.append([])
        groups[-1].append(i)
    return groups if generator is None else [groups[g] for g in torch.randperm(len(groups), generator=generator)]


def padded(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    length = max(map(len, rows))
    return torch.tensor([[*row, *[pad] * (length - len(row))] for row in rows])


# ---- measuring


def masked_accuracy(
    model: XLMRobertaXLForMaskedLM,
    tokenizer: XLMRobertaTokenizer,
    texts: Sequence[str],
    *,
    mask_prob: float = 0.15,
    rounds: int = 1,
    shuffled: bool = False,
    seed: int = 0,
) -> dict[str, float]:
    """Hide `mask_prob` of the tokens behind `<mask>`, `rounds` times, and count how many come first in the prediction.

    shuffled: the tokens between `<s>` and `</s>` come in random order. Returns accuracy, loss (mean negative
    log-likelihood, nats) and tokens, the number of places asked for.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = [tokenizer.encode(text, truncation=True) for text in texts] * rounds
    if shuffled:
        rows = [[row[0], *mixed(row[1:-1], generator), row[-1]] for row in rows]
    hits, loss, tokens = 0, 0.0, 0
    with eval_mode(model):
        for ids in batches(rows, 4096, tokenizer.pad_token_id, generator):
            chosen = hide(ids, mask_prob, tokenizer, generator)[1] != -100
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


# ---- the whole run


def pretrain(recipe: Recipe, folder: Path, *, minutes_between_saves: float = 5, progress: bool = True) -> None:
    """Train by `recipe`; leave in `folder` a checkpoint, its vocabulary and a record. Resumes what it finds there."""
    torch.manual_seed(recipe.seed)
    tokenizer = XLMRobertaTokenizer.from_pretrained(recipe.vocabulary)
    text = [row for row in udhr(recipe.languages) if row.article != recipe.held_out_article]
    model = XLMRobertaXLForMaskedLM(XLMRobertaXLConfig(vocab_size=len(tokenizer), **recipe.config))

    def batches_of(epoch: int) -> list[Batch]:
        order = torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch)
        rows = examples(recipe, tokenizer, text, epoch)
        made = batches(rows, recipe.tokens_per_batch, tokenizer.pad_token_id, order)
        return [{"input_ids": ids, "attention_mask": (ids != tokenizer.pad_token_id).long()} for ids in made]

    saving = {"folder": folder, "minutes_between_saves": minutes_between_saves, "progress": progress}
    history = fit_by(recipe, model, batches_of, change=masking(tokenizer, recipe.mask_prob), **saving)
    save_result(
        folder, model, tokenizer, history, lambda saved: evaluate(saved, tokenizer, recipe), "xlmrxl_min.training.loop"
    )


def fit_by(
    recipe: Any, model: PreTrainedModel, batches_of: Callable[[int], Sequence[Batch]], **options: Any
) -> list[dict[str, float]]:
    """`fit` with the settings of a recipe. options: the others of fit's."""
    return fit(
        model, batches_of, steps=recipe.steps, learning_rate=recipe.learning_rate, warmup_steps=recipe.warmup_steps,
        decay_fraction=recipe.decay_fraction, weight_decay=0.0, dtype=recipe.dtype, seed=recipe.seed,
        optimizers=make_optimizers(model, recipe), about=asdict(recipe), **options,
    )  # fmt: skip


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
    return optimizers


def averages(history: list[dict[str, float]], every: int) -> list[dict[str, float]]:
    """The running mean of the loss, where a step counts 1% and what was before it 99%, once in `every` steps."""
    kept, average = [], None
    for entry in history:
        if not math.isnan(entry["loss"]):
            average = entry["loss"] if average is None else 0.99 * average + 0.01 * entry["loss"]
        if entry["step"] % every == 0:
            kept.append({"step": entry["step"], "loss": round(average, 4)})
    return kept


def save_result(
    folder: Path, model, tokenizer, history: list[dict[str, float]], measured: Callable[[Any], dict], program: str
) -> None:
    """The checkpoint in half precision, and the record of how it came about, measured on what was saved."""
    model.to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    saved = type(model).from_pretrained(folder)
    record = {
        "made_by": f"python -m {program} RECIPE --into FOLDER (torch {torch.__version__.split('+')[0]})",
        "hours": round(history[-1]["seconds"] / 3600, 2),
        "parameters": sum(p.numel() for p in saved.parameters()),
        **measured(saved),
        "history": averages(history, every=250),
    }
    with atomic_write(folder / RECORD_FILE) as (draft,):
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


def main(description: str | None = __doc__, kind: type = Recipe, run: Callable[[Any, Path], None] = pretrain) -> None:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--into", type=Path, required=True, metavar="FOLDER", help="for the state and the result")
    options = parser.parse_args()
    recipe = kind(**json.loads(options.recipe.read_text(encoding="utf-8")))
    options.into.mkdir(parents=True, exist_ok=True)
    run(recipe, options.into)
    print(json.dumps(json.loads((options.into / RECORD_FILE).read_text())["own_text"]))


if __name__ == "__main__":
    main()
