"""Masking and batching: statistics of the masks, whole words, batch sizes."""

import torch

from xlmrxl_min.training.batching import batch_by_length
from xlmrxl_min.training.masking import dynamic_masking, mask_tokens, word_starts
from xlmrxl_min.training.texts import udhr


def test_masking_follows_its_probabilities(tokenizer):
    ids = torch.randint(4, tokenizer.mask_token_id, (400, 100))
    ids[:, 0], ids[:, -1], ids[::2, 50:] = 0, 2, 1
    masked, labels = mask_tokens(ids, 0.15, tokenizer, torch.Generator().manual_seed(0))
    selected = labels != -100
    assert abs(selected.sum().item() / (ids > 3).sum().item() - 0.15) < 0.01
    assert torch.equal(labels[selected], ids[selected])
    assert not selected[ids < 4].any(), "special tokens are never selected"
    assert torch.equal(masked[~selected], ids[~selected])
    is_mask, unchanged = (masked == tokenizer.mask_token_id)[selected], (masked == ids)[selected]
    assert abs(is_mask.float().mean().item() - 0.8) < 0.02
    assert abs(unchanged.float().mean().item() - 0.1) < 0.02
    random = masked[selected][~is_mask & ~unchanged]
    assert random.min() >= 4
    assert random.max() < tokenizer.mask_token_id


def test_whole_word_masking(tokenizer):
    starts = word_starts(tokenizer)
    for token, is_start in (("▁free", True), ("ings", False), ("<s>", True), ("自由", True), (".", False)):
        assert starts[tokenizer.convert_tokens_to_ids(token)] == is_start, token
    texts = [row.text for row in udhr(["en", "de", "zh", "ar"])]
    ids = tokenizer(texts, padding=True, return_tensors="pt").input_ids
    ids = ids[(ids != tokenizer.unk_token_id).all(1)]  # which is special, and never selected
    labels = mask_tokens(ids, 0.3, tokenizer, torch.Generator().manual_seed(0), whole_words=True)[1]
    selected, inner = labels != -100, ~starts[ids]
    assert torch.equal(selected[:, 1:][inner[:, 1:]], selected[:, :-1][inner[:, 1:]]), "a piece goes with the last one"
    assert abs(selected[ids > 3].float().mean() - 0.3) < 0.02
    apart = mask_tokens(ids, 0.3, tokenizer, torch.Generator().manual_seed(0))[1] != -100
    assert not torch.equal(apart[:, 1:][inner[:, 1:]], apart[:, :-1][inner[:, 1:]])


def test_dynamic_masking_masks_anew_and_keeps_the_rest(tokenizer):
    batch = {"input_ids": torch.randint(4, 8000, (8, 50)), "attention_mask": torch.ones(8, 50)}
    transform, generator = dynamic_masking(tokenizer, 0.5), torch.Generator().manual_seed(0)
    first, second = transform(batch, generator), transform(batch, generator)
    assert not torch.equal(first["labels"], second["labels"])
    for masked in (first, second):
        assert masked["attention_mask"] is batch["attention_mask"]
        selected = masked["labels"] != -100
        assert abs(selected.float().mean() - 0.5) < 0.1
        assert torch.equal(masked["labels"][selected], batch["input_ids"][selected])


def test_batches_hold_every_row_once_within_their_size():
    rows = [[i] * (1 + i % 37) for i in range(1, 200)]
    batches = batch_by_length(rows, 128, 0, torch.Generator().manual_seed(0))
    assert all(batch.numel() <= 128 for batch in batches)
    found = sorted([int(i) for i in row if i] for batch in batches for row in batch)
    assert found == sorted(rows)
    padding = sum(int((batch == 0).sum()) for batch in batches) / sum(batch.numel() for batch in batches)
    assert padding < 0.25
