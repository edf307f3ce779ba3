"""Our models beside transformers' own, with the same weights, and random tasks, configurations and inputs for both."""

import random

import torch

import xlmrxl_min
from xlmrxl_min.checkpoints.names import hugging_face_name

TASKS = (
    "Model",
    "ForMaskedLM",
    "ForCausalLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForMultipleChoice",
    "ForQuestionAnswering",
)
SMALL = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 29,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,  # large enough that attention is far from even and mistakes show
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def uneven(model):
    """The model itself; its norms and biases, ones and zeros at first, where mistakes could hide, are so no longer."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def twins(task, seed=0, build=None, **config):
    """(theirs, ours) for one of TASKS, in evaluation mode, ours with their weights."""
    import transformers  # here: ranks have no peer, and importing it takes seconds

    config = {**SMALL, **config}
    build = build or {}
    torch.manual_seed(seed)
    their_config = transformers.XLMRobertaXLConfig(**config, attn_implementation="eager")
    theirs = uneven(getattr(transformers, f"XLMRobertaXL{task}")(their_config, **build)).eval()
    ours = getattr(xlmrxl_min, f"XLMRobertaXL{task}")(xlmrxl_min.XLMRobertaXLConfig(**config), **build).eval()
    weights = theirs.state_dict()
    ours.load_state_dict({name: weights[hugging_face_name(name)] for name in ours.state_dict()})
    return theirs, ours


def error(ours, theirs):
    """The largest difference, relative to the largest value where that is above 1; for tensors or tuples of them."""
    if isinstance(theirs, torch.Tensor):
        assert ours.shape == theirs.shape, f"{tuple(ours.shape)} is not {tuple(theirs.shape)}"
        assert bool((ours.isnan() == theirs.isnan()).all())  # the mean over no labels is not a number, there as here
        ours, theirs = ours.nan_to_num(), theirs.nan_to_num()
        return ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1)).item()
    assert len(ours) == len(theirs)
    return max((error(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0)


def output_error(ours, theirs):
    """`error` over all fields of two outputs but the cache; both must hold the same fields."""
    names = [name for name in theirs if name != "past_key_values"]
    assert [name for name in ours if name != "past_key_values"] == names
    return max(error(ours[name], theirs[name]) for name in names)


def gradient_error(ours, theirs):
    """`error` over the gradients of all parameters."""
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters(remove_duplicate=False)}
    worst = 0.0
    for name, parameter in ours.named_parameters():
        gradient = expected[hugging_face_name(name)]
        assert (gradient is None) == (parameter.grad is None), name
        worst = worst if gradient is None else max(worst, error(parameter.grad, gradient))
    return worst


def draw(seed):
    """A random task, configuration and input, all decided by `seed`: (task, build, config, inputs)."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)

    def integers(low, high, *shape):
        return torch.randint(low, high, shape, generator=generator)

    task = rng.choice(TASKS)
    heads, layers, vocab = rng.randint(1, 4), rng.randint(1, 3), rng.randint(12, 70)
    batch, tokens, choices = rng.randint(1, 3), rng.randint(1, 9), rng.randint(2, 4)
    decoder = task == "ForCausalLM" or (task == "Model" and rng.random() < 0.5)
    cross = decoder and rng.random() < 0.5
    labels = {"ForQuestionAnswering": 2}.get(task, rng.randint(1, 5))
    config = {
        "vocab_size": vocab,
        # LayerNorm leaves of two features only their order: their gradients are rounding, in float32, on both sides.
        "hidden_size": heads * rng.randint(2 if heads > 1 else 4, 9),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": rng.randint(3, 40),
        "hidden_act": rng.choice(("gelu", "relu", "silu", "gelu_new")),
        "max_position_embeddings": rng.randint(tokens + 2, 30),
        "type_vocab_size": rng.randint(1, 3),
        "layer_norm_eps": rng.choice((1e-5, 1e-12, 1e-3)),
        "position_embedding_type": rng.choice(("absolute", "relative_key", "relative_key_query")),
        "is_decoder": decoder,
        "add_cross_attention": cross,
        "tie_word_embeddings": rng.random() < 0.8,
        "num_labels": labels,
        "use_cache": False,  # caches have tests of their own
    }
    build = {"add_pooling_layer": rng.random() < 0.7} if task == "Model" else {}
    if layers * heads > 1 and rng.random() < 0.2 and heads > 1:
        config["pruned_heads"] = {rng.randrange(layers): [rng.randrange(heads)]}

    flat = batch * choices if task == "ForMultipleChoice" else batch
    ids = integers(2, vocab, flat, tokens)
    padding = torch.zeros(flat, tokens, dtype=torch.bool)
    if rng.random() < 0.6:
        side = rng.choice(("left", "right"))
        for row in range(flat):
            n = rng.randrange(tokens)
            padding[row, :n] = True
            if side == "right":
                padding[row] = padding[row].flip(-1)
    ids[padding] = 1
    inputs = {}
    if rng.random() < 0.25:
        inputs["inputs_embeds"] = torch.randn(flat, tokens, config["hidden_size"], generator=generator)
    else:
        inputs["input_ids"] = ids
    style = rng.choice(("none", "b k", "b k", "b q k"))
    if style == "b k":
        inputs["attention_mask"] = (~padding).long()
    if style == "b q k" and task not in ("ForMultipleChoice", "ForTokenClassification"):
        mask = integers(0, 2, flat, tokens, tokens)
        mask[0, rng.randrange(tokens)] = 0  # a query that may attend to nothing
        inputs["attention_mask"] = mask
    if rng.random() < 0.5:
        inputs["token_type_ids"] = integers(0, config["type_vocab_size"], flat, tokens)
    if rng.random() < 0.3:
        inputs["position_ids"] = integers(0, config["max_position_embeddings"], flat, tokens)
    if rng.random() < 0.3 and "pruned_heads" not in config:
        shape = rng.choice(((heads,), (layers, heads)))
        inputs["head_mask"] = torch.rand(shape, generator=generator).round(decimals=1)
    if cross:
        across = rng.randint(1, 7)
        inputs["encoder_hidden_states"] = torch.randn(flat, across, config["hidden_size"], generator=generator)
        if rng.random() < 0.5:
            mask = integers(0, 2, flat, across)
            mask[:, 0] = 1
            inputs["encoder_attention_mask"] = mask
    if task == "ForMultipleChoice":
        flat_names = ("input_ids", "inputs_embeds", "attention_mask", "token_type_ids", "position_ids")
        inputs = {
            name: value.reshape(batch, choices, *value.shape[1:]) if name in flat_names else value
            for name, value in inputs.items()
        }
    inputs |= draw_labels(task, rng, integers, generator, batch, tokens, choices, labels, vocab, config)
    return task, build, config, inputs


def draw_labels(task, rng, integers, generator, batch, tokens, choices, labels, vocab, config):
    if rng.random() < 0.1 or task == "Model":
        return {}
    if task == "ForQuestionAnswering":  # some of them beyond the text: no answer
        spans = {name: integers(0, tokens + 2, batch) for name in ("start_positions", "end_positions")}
        for span in spans.values():
            span[0] = min(int(span[0]), tokens - 1)
        return spans
    if task == "ForMultipleChoice":
        return {"labels": integers(0, choices, batch)}
    if task == "ForSequenceClassification":
        problem = rng.choice((None, "regression", "single_label_classification", "multi_label_classification"))
        config["problem_type"] = problem
        if problem == "regression" or (problem is None and labels == 1):
            shape = (batch,) if labels == 1 else (batch, labels)
            return {"labels": torch.randn(shape, generator=generator)}
        if problem == "multi_label_classification" or (problem is None and rng.random() < 0.5):
            return {"labels": integers(0, 2, batch, labels).float()}
        return {"labels": integers(0, labels, batch)}
    wanted = integers(0, labels if task == "ForTokenClassification" else vocab, batch, tokens)
    wanted[torch.rand(wanted.shape, generator=generator) < 0.3] = -100
    return {"labels": wanted}
