"""The exercises of notebooks/06_masked_language_model.ipynb."""

import torch

from ..checks import exercise

ALWAYS_MASK = (
    "Every selected token becomes <mask>, and only 80% should: let a second random number decide, not the one that "
    "selected the word."
)


def mask_cases():
    word_ids = (torch.arange(60).expand(400, 60) + 1) // 2  # <s>, 29 words of two pieces, </s>
    ids = torch.randint(4, 40, (400, 60), generator=torch.Generator().manual_seed(0))  # a vocabulary of 41
    ids[:, 0], ids[:, -1] = 0, 2
    return [(ids, word_ids, 0.15, torch.tensor([0, 1, 2, 3, 40]), 40)]


def grade_masking(result, case):
    (inputs, labels), ids, ids_after = result, case[0], case[5]
    selected = labels != -100
    replaced = selected & (inputs != ids) & (inputs != 40)
    inner = selected[:, 1:-1]
    masked, unchanged = (((inputs == x) & selected).sum() / selected.sum() for x in (40, ids))
    faults = {
        "`ids` itself was changed: work on a copy.": (ids_after != ids).any(),
        "Labels are -100 for tokens that were not selected.": selected.all(),
        "No token is selected.": not inner.any(),
        "Special tokens are selected: leave them out.": selected[:, [0, -1]].any(),
        "A label is the original token, not the one in the input.": (labels != ids)[selected].any(),
        "Tokens without a label are changed.": (inputs != ids)[~selected].any(),
        "15% of the words are to be selected.": abs(inner.float().mean() - 0.15) > 0.02,
        ALWAYS_MASK: masked > 0.97,
        "The 10% that stay as they are need their labels, too.": unchanged == 0,
        "Words are selected in part: all tokens of a word need the same random number.": (
            (inner[:, ::2] != inner[:, 1::2]).any()
        ),
        "Random tokens must not be special: sample from 4 to mask_id - 1.": (inputs[replaced] < 4).any(),
        "It should be 80% <mask>, 10% random, 10% unchanged.": max(abs(masked - 0.8), abs(unchanged - 0.1)) > 0.05,
    }
    return next((message for message, is_wrong in faults.items() if is_wrong), "")


@exercise(mask_cases, grade=grade_masking)
def my_mask_tokens(ids, word_ids, mask_prob, special_ids, mask_id):
    random = torch.rand(ids.shape).gather(1, word_ids)
    selected = (random < mask_prob) & ~torch.isin(ids, special_ids)
    fate, random_ids = torch.rand(ids.shape), torch.randint(4, mask_id, ids.shape)
    masked = ids.masked_fill(selected & (fate < 0.8), mask_id)
    return random_ids.where(selected & (fate >= 0.9), masked), ids.masked_fill(~selected, -100)


def mask_with(whole_words=True, keep_special=True, same_random=False, lowest=4, in_place=False, make_labels=None):
    """my_mask_tokens with a mistake. make_labels: ids, inputs, selected -> labels."""

    def mistaken(ids, word_ids, mask_prob, special_ids, mask_id):
        random = torch.rand(ids.shape).gather(1, word_ids) if whole_words else torch.rand(ids.shape)
        selected = (random < mask_prob) & (~torch.isin(ids, special_ids) | (not keep_special))
        fate = random if same_random else torch.rand(ids.shape)
        random_ids, original = torch.randint(lowest, mask_id, ids.shape), ids.clone()
        inputs = (ids.masked_fill_ if in_place else ids.masked_fill)(selected & (fate < 0.8), mask_id)
        inputs = random_ids.where(selected & (fate >= 0.9), inputs)
        if make_labels is not None:
            return inputs, make_labels(original, inputs, selected)
        return inputs, original.masked_fill(~selected, -100)

    return mistaken


my_mask_tokens.misconceptions = {
    "Words are selected in part: all tokens of a word need the same random number.": mask_with(whole_words=False),
    "Special tokens are selected: leave them out.": mask_with(keep_special=False),
    ALWAYS_MASK: mask_with(same_random=True),
    "Random tokens must not be special: sample from 4 to mask_id - 1.": mask_with(lowest=0),
    "`ids` itself was changed: work on a copy.": mask_with(in_place=True),
    "Labels are -100 for tokens that were not selected.": mask_with(make_labels=lambda ids, inputs, selected: ids),
    "A label is the original token, not the one in the input.": (
        mask_with(make_labels=lambda ids, inputs, selected: inputs.masked_fill(~selected, -100))
    ),
    "The 10% that stay as they are need their labels, too.": (
        mask_with(make_labels=lambda ids, inputs, selected: ids.masked_fill(inputs == ids, -100))
    ),
}
check_mask_tokens = my_mask_tokens.check
