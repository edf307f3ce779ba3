"""The steps of notebooks/06_masked_language_model.ipynb."""

import math

import torch
import torch.nn.functional as F

from ...checkpoints.locate import PRETRAINED
from ..checks import exercise, randn
from . import solution
from .attention import HIDDEN
from .tokens_and_embeddings import ABSOLUTE, IDS, RELATIVE_KEY


def mask_cases():
    ids = torch.randint(4, 40, (400, 60), generator=torch.Generator().manual_seed(0))  # a vocabulary of 41
    ids[:, 0], ids[:, -1] = 0, 2
    return [(ids, 0.15, torch.tensor([0, 1, 2, 3, 40]), 40)]


def grade_masking(result, case):
    (masked, labels), ids, ids_after = result, case[0], case[4]
    selected = labels != -100
    replaced = selected & (masked != ids) & (masked != 40)
    share_masked, share_same = (((masked == x) & selected).sum() / selected.sum() for x in (40, ids))
    faults = {
        "`ids` itself was changed: work on a copy.": (ids_after != ids).any(),
        "Labels are -100 for tokens that were not selected.": selected.all(),
        "No token is selected.": not selected.any(),
        "Special tokens are selected: leave them out.": selected[:, [0, -1]].any(),
        "A label is the original token, not the one in the input.": (labels != ids)[selected].any(),
        "Tokens without a label are changed.": (masked != ids)[~selected].any(),
        "15% of the tokens are to be selected.": abs(selected[:, 1:-1].float().mean() - 0.15) > 0.02,
        "Every selected token becomes <mask>: what becomes of it needs random numbers of its own.": share_masked > 0.97,
        "The 10% that stay as they are need their labels, too.": share_same == 0,
        "Random tokens must not be special: sample from 4 to mask_id - 1.": (masked[replaced] < 4).any(),
        "Random tokens can have any id from 4 to mask_id - 1, both included.": len(masked[replaced].unique()) < 36,
        "It should be 80% <mask>, 10% random, 10% unchanged.": max(abs(share_masked - 0.8), abs(share_same - 0.1))
        > 0.05,
    }
    return next((message for message, is_wrong in faults.items() if is_wrong), "")


mask_tokens = exercise(
    mask_cases,
    grade=grade_masking,
    hint="One random number decides whether a token is selected, a second one what becomes of it.",
)(solution.mask_tokens)


def mask_with(keep_special=True, same_random=False, lowest=4, in_place=False, shares=(0.8, 0.9), make_labels=None):
    """mask_tokens with a mistake. make_labels: ids, masked, selected -> labels."""

    def mistaken(ids, mask_prob, special_ids, mask_id):
        random = torch.rand(ids.shape)
        selected = (random < mask_prob) & (~torch.isin(ids, special_ids) | (not keep_special))
        fate = random if same_random else torch.rand(ids.shape)
        random_ids, original = torch.randint(lowest, mask_id, ids.shape), ids.clone()
        masked = (ids.masked_fill_ if in_place else ids.masked_fill)(selected & (fate < shares[0]), mask_id)
        masked = random_ids.where(selected & (fate >= shares[1]), masked)
        labels = original.masked_fill(~selected, -100)
        return masked, labels if make_labels is None else make_labels(original, masked, selected)

    return mistaken


mask_tokens.misconceptions = {
    "Special tokens are selected: leave them out.": mask_with(keep_special=False),
    "Every selected token becomes <mask>: what becomes of it needs random numbers of its own.": (
        mask_with(same_random=True)
    ),
    "Random tokens must not be special: sample from 4 to mask_id - 1.": mask_with(lowest=0),
    "Random tokens can have any id from 4 to mask_id - 1, both included.": mask_with(lowest=5),
    "`ids` itself was changed: work on a copy.": mask_with(in_place=True),
    "It should be 80% <mask>, 10% random, 10% unchanged.": mask_with(shares=(0.7, 0.8)),
    "Labels are -100 for tokens that were not selected.": mask_with(make_labels=lambda ids, masked, selected: ids),
    "A label is the original token, not the one in the input.": mask_with(
        make_labels=lambda ids, masked, selected: masked.masked_fill(~selected, -100)
    ),
    "The 10% that stay as they are need their labels, too.": mask_with(
        make_labels=lambda ids, masked, selected: ids.masked_fill(masked == ids, -100)
    ),
}


lm_head = exercise(
    lambda: [(ABSOLUTE, HIDDEN, randn(11, 12))], hint="`dense`, `gelu`, `norm`, then times `word`, plus `bias`."
)(solution.LMHead)


def head_with(forward):
    """LMHead with a mistake. forward: the module, hidden, word -> b t v."""
    return type("Mistaken", (solution.LMHead,), {"forward": forward})


lm_head.misconceptions = {
    "The activation after `dense` is missing.": head_with(
        lambda self, hidden, word: self.norm(self.dense(hidden)) @ word.T + self.bias
    ),
    "The LayerNorm is missing.": head_with(
        lambda self, hidden, word: solution.gelu(self.dense(hidden)) @ word.T + self.bias
    ),
    "The LayerNorm comes after the activation, not before it.": head_with(
        lambda self, hidden, word: solution.gelu(self.norm(self.dense(hidden))) @ word.T + self.bias
    ),
    "`dense` is missing.": head_with(lambda self, hidden, word: self.norm(solution.gelu(hidden)) @ word.T + self.bias),
    "The bias of the vocabulary is missing.": head_with(
        lambda self, hidden, word: solution.LMHead.forward(self, hidden, word) - self.bias
    ),
    "These are probabilities: return logits, as the loss contains the softmax.": head_with(
        lambda self, hidden, word: solution.LMHead.forward(self, hidden, word).softmax(-1)
    ),
    "There is no residual in the head: it is not a block.": head_with(
        lambda self, hidden, word: self.norm(hidden + solution.gelu(self.dense(hidden))) @ word.T + self.bias
    ),
    "The logits are not divided by √e.": head_with(
        lambda self, hidden, word: self.norm(solution.gelu(self.dense(hidden))) @ word.T / 12**0.5 + self.bias
    ),
}


masked_lm = exercise(
    lambda: [(config, ids) for config in (ABSOLUTE, RELATIVE_KEY) for ids in (IDS[:1], IDS)],
    hint="The encoder, then the head with the encoder's word embeddings.",
)(solution.MaskedLM)


def model_with(forward):
    """MaskedLM with a mistake. forward: the module, its word embeddings, ids -> b t v."""

    def mistaken(self, ids):
        return forward(self, self.encoder.embeddings.word.weight, ids)

    return type("Mistaken", (solution.MaskedLM,), {"forward": mistaken})


masked_lm.misconceptions = {
    "These are probabilities: return logits.": model_with(
        lambda self, word, ids: self.lm_head(self.encoder(ids), word).softmax(-1)
    ),
    "The head reads the embeddings: give it the encoder's output.": model_with(
        lambda self, word, ids: self.lm_head(self.encoder.embeddings(ids), word)
    ),
    "The final LayerNorm is used twice: the encoder has done it.": model_with(
        lambda self, word, ids: self.lm_head(self.encoder.norm(self.encoder(ids)), word)
    ),
    "The encoder's output is multiplied by the word embeddings directly: lm_head is missing.": model_with(
        lambda self, word, ids: self.encoder(ids) @ word.T
    ),
    "These are the encoder's hidden states: lm_head makes logits of them.": model_with(
        lambda self, word, ids: self.encoder(ids)
    ),
    "These are the most probable tokens: return all logits.": model_with(
        lambda self, word, ids: self.lm_head(self.encoder(ids), word).argmax(-1)
    ),
}


def loss_cases():
    labels = torch.tensor([[-100, 3, -100, -100, 8], [-100, -100, 0, -100, -100]])
    return [(2 * randn(2, 5, 9), labels)]


masked_lm_loss = exercise(
    loss_cases, hint="Take only the positions whose label is not -100; `F.cross_entropy` averages."
)(solution.masked_lm_loss)


def losses(logits, labels):
    return F.cross_entropy(logits[labels >= 0], labels[labels >= 0], reduction="none")


masked_lm_loss.misconceptions = {
    "-100 is no label: leave those positions out.": (
        lambda logits, labels: F.cross_entropy(logits.flatten(0, 1), labels.clamp_min(0).flatten())
    ),
    "Divide by the number of labels, not of positions.": (
        lambda logits, labels: losses(logits, labels).sum() / labels.numel()
    ),
    "Return the mean over the labels, not the sum.": lambda logits, labels: losses(logits, labels).sum(),
    "Return the mean, one number, not a loss for each label.": losses,
    "That is the perplexity: the loss is its logarithm.": lambda logits, labels: losses(logits, labels).mean().exp(),
    "The sign: a cross-entropy is not negative.": lambda logits, labels: -losses(logits, labels).mean(),
    "The loss is in nats, with the natural logarithm: this is in bits.": (
        lambda logits, labels: losses(logits, labels).mean() / math.log(2)
    ),
    "A masked token is predicted at its own position: only a causal model predicts the next one.": (
        lambda logits, labels: losses(logits[:, :-1], labels[:, 1:])[None].mean()
    ),
    "cross_entropy contains the softmax: give it logits, not probabilities.": (
        lambda logits, labels: losses(logits.softmax(-1), labels).mean()
    ),
}


def name_cases():
    """The name of every weight of a checkpoint with relative positions, once for each kind of weight; two layers."""
    parts = {
        "roberta.embeddings": ["word_embeddings.weight", "position_embeddings.weight", "token_type_embeddings.weight"],
        "roberta.encoder": ["LayerNorm.weight", "LayerNorm.bias"],
        "roberta.encoder.layer.0": ["attention.self_attn_layer_norm.weight", "LayerNorm.weight"],
        "roberta.encoder.layer.0.attention": ["self.query.weight", "self.key.bias", "self.value.bias"],
        "roberta.encoder.layer.1": ["attention.output.dense.bias", "attention.self.distance_embedding.weight"],
        "roberta.encoder.layer.10": ["intermediate.dense.weight", "output.dense.weight"],
        "lm_head": ["dense.weight", "layer_norm.bias", "bias"],
    }
    return [(f"{prefix}.{name}",) for prefix, names in parts.items() for name in names]


my_name = exercise(name_cases, hint="Print both lists of names side by side, and replace part by part.")(
    solution.my_name
)


def name_with(*wrong):
    """my_name with a mistake: pairs of what stands in the right name, and what in the wrong one."""

    def mistaken(name):
        right = solution.my_name(name)
        for old, new in wrong:
            right = right.replace(old, new)
        return right

    return mistaken


my_name.misconceptions = {
    "The name is as it was: change what differs.": lambda name: name,
    "Only `roberta.` is gone: the parts have other names, too.": lambda name: name.removeprefix("roberta."),
    "The prefix is encoder, as MaskedLM calls that part, not roberta.": name_with(("encoder.", "roberta.")),
    "The list of blocks is called layers here, not layer.": name_with(("layers", "layer")),
    "A block has two dense layers called output: attention.output is `out`, the other is `down`.": (
        name_with(("feed_forward.down", "attention.out"))
    ),
    "A block's own LayerNorm is feed_forward_norm: only the encoder's, outside the layers, is norm.": (
        name_with(("feed_forward_norm", "norm"))
    ),
    "attention_norm is a part of the block here, not of attention.": name_with(("attention_norm", "attention.norm")),
    "lm_head.layer_norm is called norm here.": name_with(("lm_head.norm", "lm_head.layer_norm")),
    "The relative positions' distance_embedding is called distance here.": (
        name_with(("distance", "distance_embedding"))
    ),
}


def grade_load(result, case):
    if not isinstance(result, torch.nn.Module):
        return "Return the model itself."
    expected, found = solution.load(case[0]).state_dict(), result.state_dict()
    if any(name not in found or found[name].shape != tensor.shape for name, tensor in expected.items()):
        return "The sizes are not those of this folder: read its config.json."
    if any(tensor.dtype != torch.float32 for tensor in found.values()):
        return "The parameters should be float32: load_state_dict converts the file's tensors, unless assign=True."
    wrong = [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])]
    if len(wrong) == len(expected):
        return "All weights are still random: load_state_dict is missing."
    if wrong:
        return f"These weights are not loaded: {', '.join(wrong[:3])} … Does my_name give their names?"
    return ""


load = exercise(
    lambda: [(PRETRAINED / name,) for name in ("tiny", "tiny-relative-key")],
    grade=grade_load,
    hint="`SimpleNamespace(**values)` is a config; rename the tensors of `load_file` before `load_state_dict`.",
)(solution.load)


def tensors_of(folder):
    return {solution.my_name(name): x for name, x in solution.load_file(folder / "model.safetensors").items()}


def unloaded(folder):
    config = solution.json.loads((folder / "config.json").read_text())
    return solution.MaskedLM(solution.SimpleNamespace(**config))


def load_encoder_only(folder):
    model = unloaded(folder)
    model.load_state_dict({k: x for k, x in tensors_of(folder).items() if k.startswith("enc")}, strict=False)
    return model


load.misconceptions = {
    "All weights are still random: load_state_dict is missing.": unloaded,
    "Return the model itself.": lambda folder: unloaded(folder).load_state_dict(tensors_of(folder)),
    "The parameters should be float32: load_state_dict converts the file's tensors, unless assign=True.": (
        lambda folder: solution.load(folder).half()
    ),
    "The sizes are not those of this folder: read its config.json.": lambda folder: solution.MaskedLM(ABSOLUTE),
    "These weights are not loaded: lm_head.bias, lm_head.dense.weight, lm_head.dense.bias … Does my_name give their "
    "names?": load_encoder_only,
}
