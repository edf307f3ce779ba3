"""The exercises of notebooks/06_masked_language_model.ipynb."""

import torch
import torch.nn.functional as F

from ..checks import exercise, randn


@exercise(
    lambda: [(2 * randn(2, 5, 9), torch.tensor([[-100, 3, -100, -100, 8], [-100, -100, 0, -100, -100]]))],
    hint="One number: compare with the formula.",
)
def my_perplexity(logits, labels):
    is_label = labels != -100
    log_probs = logits[is_label].log_softmax(-1).gather(-1, labels[is_label][:, None])
    return (-log_probs.mean()).exp()


def losses(logits, labels):
    return F.cross_entropy(logits[labels >= 0], labels[labels >= 0], reduction="none")


my_perplexity.misconceptions = {
    "That is the loss: e to it.": lambda logits, labels: losses(logits, labels).mean(),
    "First the mean, then the exponential.": lambda logits, labels: losses(logits, labels).exp().mean(),
    "The loss is in nats: e to it, not 2.": lambda logits, labels: 2 ** losses(logits, labels).mean(),
    "The sign: a perplexity is 1 or more.": lambda logits, labels: (-losses(logits, labels).mean()).exp(),
    "A mean over the labels, not a sum.": lambda logits, labels: losses(logits, labels).sum().exp(),
    "Divide by the number of labels, not of tokens.": (
        lambda logits, labels: (losses(logits, labels).sum() / labels.numel()).exp()
    ),
    "-100 is no label: leave those tokens out.": (
        lambda logits, labels: F.cross_entropy(logits.flatten(0, 1), labels.clamp_min(0).flatten()).exp()
    ),
}
check_perplexity = my_perplexity.check


def mask_cases():
    word_ids = (torch.arange(60).expand(400, 60) + 1) // 2  # <s>, 29 words of two pieces, </s>
    ids = torch.randint(4, 40, (400, 60), generator=torch.Generator().manual_seed(0))  # a vocabulary of 41
    ids[:, 0], ids[:, -1] = 0, 2
    return [(ids, word_ids, 0.15, torch.tensor([0, 1, 2, 3, 40]), 40)]


def grade_masking(result, case):
    (inputs, labels), ids, ids_after = result, case[0], case[5]
    chosen = labels != -100
    replaced = chosen & (inputs != ids) & (inputs != 40)
    inner = chosen[:, 1:-1]
    masked, unchanged = (((inputs == x) & chosen).sum() / chosen.sum() for x in (40, ids))
    faults = {
        "`ids` itself was changed: work on a copy.": (ids_after != ids).any(),
        "Labels are -100 where nothing was chosen.": chosen.all(),
        "Nothing is chosen.": not inner.any(),
        "Special tokens are chosen: leave them out.": chosen[:, [0, -1]].any(),
        "A label is the original token, not the one in the input.": (labels != ids)[chosen].any(),
        "Tokens without a label are changed.": (inputs != ids)[~chosen].any(),
        "It is always <mask>: the same random numbers are used twice.": masked > 0.97,
        "The tenth that stays as it is needs its label, too.": unchanged == 0,
        "Words are chosen in part: all pieces of a word need the same random number.": (
            (inner[:, ::2] != inner[:, 1::2]).any()
        ),
        "15% of the words are to be chosen.": abs(inner.float().mean() - 0.15) > 0.02,
        "Random tokens must not be special: sample from 4 to mask_id - 1.": (inputs[replaced] < 4).any(),
        "It should be 80% masked, 10% random, 10% unchanged.": max(abs(masked - 0.8), abs(unchanged - 0.1)) > 0.05,
    }
    return next((message for message, is_wrong in faults.items() if is_wrong), "")


@exercise(mask_cases, grade=grade_masking)
def my_mask_tokens(ids, word_ids, mask_prob, special_ids, mask_id):
    random = torch.rand(ids.shape).gather(1, word_ids)
    chosen = (random < mask_prob) & ~torch.isin(ids, special_ids)
    action, other_ids = torch.rand(ids.shape), torch.randint(4, mask_id, ids.shape)
    inputs = ids.masked_fill(chosen & (action < 0.8), mask_id)
    inputs = other_ids.where(chosen & (action >= 0.9), inputs)
    return inputs, ids.masked_fill(~chosen, -100)


def mask_with(whole_words=True, keep_special=True, same_random=False, lowest=4, in_place=False, make_labels=None):
    """my_mask_tokens with a mistake. make_labels: ids, inputs, chosen -> labels."""

    def mistaken(ids, word_ids, mask_prob, special_ids, mask_id):
        random = torch.rand(ids.shape).gather(1, word_ids) if whole_words else torch.rand(ids.shape)
        chosen = (random < mask_prob) & (~torch.isin(ids, special_ids) | (not keep_special))
        action = random if same_random else torch.rand(ids.shape)
        other_ids, original = torch.randint(lowest, mask_id, ids.shape), ids.clone()
        inputs = (ids.masked_fill_ if in_place else ids.masked_fill)(chosen & (action < 0.8), mask_id)
        inputs = other_ids.where(chosen & (action >= 0.9), inputs)
        if make_labels is not None:
            return inputs, make_labels(original, inputs, chosen)
        return inputs, original.masked_fill(~chosen, -100)

    return mistaken


my_mask_tokens.misconceptions = {
    "Words are chosen in part: all pieces of a word need the same random number.": mask_with(whole_words=False),
    "Special tokens are chosen: leave them out.": mask_with(keep_special=False),
    "It is always <mask>: the same random numbers are used twice.": mask_with(same_random=True),
    "Random tokens must not be special: sample from 4 to mask_id - 1.": mask_with(lowest=0),
    "`ids` itself was changed: work on a copy.": mask_with(in_place=True),
    "Labels are -100 where nothing was chosen.": mask_with(make_labels=lambda ids, inputs, chosen: ids),
    "A label is the original token, not the one in the input.": (
        mask_with(make_labels=lambda ids, inputs, chosen: inputs.masked_fill(~chosen, -100))
    ),
    "The tenth that stays as it is needs its label, too.": (
        mask_with(make_labels=lambda ids, inputs, chosen: ids.masked_fill(inputs == ids, -100))
    ),
}
check_mask_tokens = my_mask_tokens.check
