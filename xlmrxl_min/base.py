"""What surrounds the model: its config's and output's behaviour, loading and saving, checks, pruning, the cache.

Nothing here is needed to understand the mathematics, which is all in model.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from einops import rearrange
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .model import Attention, XLMRobertaXLConfig, XLMRobertaXLModel

ACTIVATION_NAMES = ("gelu", "relu", "silu", "gelu_new")
POSITION_EMBEDDING_TYPES = ("absolute", "relative_key", "relative_key_query")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")

# ---- config


class ConfigOverrides(TypedDict, total=False):
    """The fields of XLMRobertaXLConfig as keyword arguments, so that a type checker knows them."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str | Callable[[Tensor], Tensor]
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    max_position_embeddings: int
    type_vocab_size: int
    initializer_range: float
    layer_norm_eps: float
    pad_token_id: int
    bos_token_id: int
    eos_token_id: int
    position_embedding_type: str
    use_cache: bool
    classifier_dropout: float | None
    is_decoder: bool
    add_cross_attention: bool
    tie_word_embeddings: bool
    num_labels: int | None
    problem_type: str | None
    id2label: dict[int, str] | None
    label2id: dict[str, int] | None
    pruned_heads: dict[int, list[int]]
    output_attentions: bool
    output_hidden_states: bool


class ModelOverrides(ConfigOverrides, total=False):
    """What a model's `from_pretrained` takes beside the fields of the config."""

    add_pooling_layer: bool  # of XLMRobertaXLModel
    torch_dtype: torch.dtype | str | None  # another name of dtype


class PreTrainedConfig:
    """The behaviour of XLMRobertaXLConfig, whose fields are in model.py."""

    if TYPE_CHECKING:  # the fields that are needed here
        extra: dict[str, Any]
        max_position_embeddings: int
        pad_token_id: int
        position_embedding_type: str
        hidden_dropout_prob: float
        classifier_dropout: float | None
        num_labels: int
        id2label: dict[int, str]
        label2id: dict[str, int]
        pruned_heads: dict[int, list[int]]

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], **config_overrides: Unpack[ConfigOverrides]) -> Self:
        """Read the `config.json` of a bundled checkpoint, a folder or a hub id; `config_overrides` replace fields.

        Raises CheckpointError if there is none or it is another model's, ValueError for impossible overrides.
        """
        from .checkpoints.config import load_config

        return load_config(cls, source, **config_overrides)  # type: ignore[arg-type, return-value]

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `config.json` into `folder`, with the keys of Hugging Face."""
        from .checkpoints.config import save_config

        save_config(self, folder)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        names = self.id2label or {i: f"LABEL_{i}" for i in range(2 if self.num_labels is None else self.num_labels)}
        names = dict(enumerate(names)) if isinstance(names, list) else names
        self.id2label = {int(i): name for i, name in names.items()}  # JSON turns integer keys into strings
        self.label2id = self.label2id or {name: i for i, name in self.id2label.items()}
        self.num_labels = len(self.id2label) if self.num_labels is None else self.num_labels
        self.pruned_heads = {int(layer): list(heads) for layer, heads in (self.pruned_heads or {}).items()}
        self.validate()

    def __getattr__(self, name: str) -> Any:  # called only for what is not a field
        if name in self.__dict__.get("extra", {}):
            return self.extra[name]
        raise AttributeError(f"{type(self).__name__} has no field {name!r}.")

    @property
    def max_seq_len(self) -> int:
        """Tokens of the longest input. Absolute positions start at pad_token_id + 1, relative ones have no offset."""
        return self.max_position_embeddings - (self.pad_token_id + 1) * (self.position_embedding_type == "absolute")

    @property
    def head_dropout_prob(self) -> float:
        """Dropout of the task heads for sequences and tokens."""
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout

    def validate(self) -> None:
        """Raise ValueError, in one sentence, if no model can be built from this config."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        for names, is_possible, allowed in CONFIG_RULES:
            for name in names.split():
                if not is_possible(values[name], self):
                    allowed = allowed.format_map(values)
                    raise ValueError(f"{name}={values[name]!r} is impossible: it must be {allowed}.")


def is_positive_integer(value: Any) -> bool:
    return isinstance(value, Integral) and int(value) > 0


def is_probability(value: Any) -> bool:  # of dropout: 1 would leave nothing
    return isinstance(value, Real) and 0 <= float(value) < 1


def one_of(names: Iterable[str]) -> str:
    return f"one of {', '.join(names)}"


# Names of fields; whether the value x is possible in the config c; what is allowed.
CONFIG_RULES: tuple[tuple[str, Callable[[Any, Any], bool], str], ...] = (
    ("vocab_size hidden_size num_hidden_layers", lambda x, c: is_positive_integer(x), "a positive integer"),
    ("num_attention_heads intermediate_size", lambda x, c: is_positive_integer(x), "a positive integer"),
    ("type_vocab_size num_labels", lambda x, c: is_positive_integer(x), "a positive integer"),
    ("pad_token_id bos_token_id eos_token_id", lambda x, c: x in range(c.vocab_size), "an id below {vocab_size}"),
    (
        "max_position_embeddings",
        lambda x, c: is_positive_integer(x) and x > c.pad_token_id + 1,
        "above pad_token_id + 1",
    ),
    ("hidden_size", lambda x, c: x % c.num_attention_heads == 0, "a multiple of num_attention_heads"),
    ("hidden_dropout_prob attention_probs_dropout_prob", lambda x, c: is_probability(x), "at least 0, and below 1"),
    ("classifier_dropout", lambda x, c: x is None or is_probability(x), "None, or at least 0 and below 1"),
    ("layer_norm_eps", lambda x, c: isinstance(x, Real) and float(x) > 0, "a number above 0"),
    ("initializer_range", lambda x, c: isinstance(x, Real) and float(x) >= 0, "a number, 0 or more"),
    ("hidden_act", lambda x, c: callable(x) or x in ACTIVATION_NAMES, f"a function or {one_of(ACTIVATION_NAMES)}"),
    ("position_embedding_type", lambda x, c: x in POSITION_EMBEDDING_TYPES, one_of(POSITION_EMBEDDING_TYPES)),
    ("problem_type", lambda x, c: x in (None, *PROBLEM_TYPES), f"None or {one_of(PROBLEM_TYPES)}"),
    ("num_labels", lambda x, c: x == len(c.id2label), "the number of names in id2label"),
    ("add_cross_attention", lambda x, c: c.is_decoder or not x, "False in an encoder"),
)


# ---- output


class ModelOutput(dict):
    """What every model returns; read `out.logits`, `out["logits"]` or `out[0]`. Fields that do not apply are None.

    loss; logits `b t v`, `b t c` or `b c`; start_logits, end_logits `b t`; last_hidden_state `b t e`; pooler_output
    `b e`; past_key_values: a Cache; hidden_states: l + 1 of `b t e`, the embeddings first, the last one after the final
    LayerNorm; attentions, cross_attentions: l of `b h q k`.
    """

    FIELDS = (
        "loss", "logits", "start_logits", "end_logits", "last_hidden_state", "pooler_output", "past_key_values",
        "hidden_states", "attentions", "cross_attentions",
    )  # fmt: skip

    def __init__(self, values: Any = (), **more: Any) -> None:
        values = {**dict(values), **more}
        super().__init__((name, values[name]) for name in self.FIELDS if values.get(name) is not None)

    def __getattr__(self, name: str) -> Any:
        if name in self.FIELDS:
            return self.get(name)
        raise AttributeError(f"a model's output has no {name!r}: it can have {', '.join(self.FIELDS)}.")

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __missing__(self, name: str) -> Any:
        raise KeyError(
            f"there is no {name!r} in this output, only {', '.join(self)}: ask for more, as output_{name}=True."
        )

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self.values())

    def with_logits(self, loss: Tensor | None, **logits: Tensor) -> ModelOutput:
        """The backbone's output with logits in place of its last hidden state."""
        rest = {name: value for name, value in self.items() if name not in ("last_hidden_state", "pooler_output")}
        return ModelOutput(loss=loss, **logits, **rest)


# ---- KV cache


class LayerCache:
    """Keys and values of one attention layer, `b h k d` each, in memory that is allocated ahead."""

    def __init__(self) -> None:
        self.length = 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append `b h t d` each; return all so far, `b h k d` each."""
        self.keys, self.values = self.append(self.keys, key), self.append(self.values, value)
        self.length += key.shape[2]
        return self.read()

    def read(self) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        return self.keys.narrow(2, 0, self.length), self.values.narrow(2, 0, self.length)

    def append(self, old: Tensor | None, new: Tensor) -> Tensor:
        end = self.length + new.shape[2]
        if torch.is_grad_enabled():  # writing in place would change tensors saved for the backward pass
            return new if old is None else torch.cat([old[:, :, : self.length], new], dim=2)
        is_frozen = False  # made in inference mode, and not to be written to outside it
        if old is not None and not torch.compiler.is_compiling():  # the compiler does not support is_inference
            is_frozen = old.is_inference() and not torch.is_inference_mode_enabled()
        if old is None or is_frozen or end >= old.shape[2]:  # one position stays free
            # Doubling copies fewer than 2 n positions in n steps. The compiler would trace a full tensor anew.
            larger = new.new_empty(*new.shape[:2], max(end + 1, 2 * (self.length + 1), 64), new.shape[3])
            if old is not None:
                larger[:, :, : self.length] = old[:, :, : self.length]
            old = larger
        old.narrow(2, self.length, new.shape[2]).copy_(new)
        return old


class Cache:
    """The KV cache of a decoder: for every layer the keys and values of self-attention and of cross-attention."""

    def __init__(self, num_layers: int) -> None:
        self.layers = [LayerCache() for _ in range(num_layers)]
        self.cross = [LayerCache() for _ in range(num_layers)]
        self.num_valid_tokens: Tensor | int = 0  # b 1: tokens of each row that were not padding

    def get_seq_length(self) -> int:
        """Cached tokens per row, padding included."""
        return self.layers[0].length

    def reorder(self, rows: Tensor) -> None:
        """Keep the rows `b`, in this order and possibly several times, as beam search needs it."""
        for layer in (*self.layers, *self.cross):
            if layer.keys is not None and layer.values is not None:
                layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        if isinstance(self.num_valid_tokens, Tensor):
            self.num_valid_tokens = self.num_valid_tokens[rows]


# ---- checks of the inputs


def is_readable(values: Tensor) -> bool:
    """Whether values can be read now: not while compiling, and not without storage."""
    return values.numel() > 0 and not (values.is_meta or torch.compiler.is_compiling())


def check_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        remedy = 'tokenize with return_tensors="pt", and call model(**encoding)'
        raise ValueError(f"{name} is a {type(value).__name__}, but must be a tensor: {remedy}.")


def check_binary_mask(name: str, mask: Tensor) -> None:
    if bool(((mask != 0) & (mask != 1)).any()):
        raise ValueError(f"{name} takes only 1 (may attend) and 0 (padding), and holds something else.")


def check_range(name: str, ids: Tensor, limit: int, remedy: str) -> None:
    """Raise ValueError for an id outside its table, where an IndexError or a CUDA assert would come later."""
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"{name} must be integers, not {ids.dtype}: use .long().")
    if is_readable(ids):
        low, high = (int(bound) for bound in ids.aminmax())
        if low < 0 or high >= limit:
            raise ValueError(f"{name} holds {low if low < 0 else high}, but allowed are 0 to {limit - 1}: {remedy}.")


def check_mask(
    name: str, mask: Tensor | None, batch: int, queries: int, keys: int, *, is_growing: bool = False
) -> None:
    """Raise ValueError for a mask that is not `b k` or `b q k`, not binary, or all padding in a row.

    is_growing: with a cache, a row may begin with nothing but padding.
    """
    if mask is None:
        return
    check_tensor(name, mask)
    shape, allowed = tuple(mask.shape), ((batch, keys), (batch, queries, keys))
    if shape not in allowed:
        remedy = f"{allowed[0]} or {allowed[1]}, an entry for every token, cached ones included"
        raise ValueError(f"{name} has shape {shape}, but must be {remedy}.")
    if is_readable(mask):
        check_binary_mask(name, mask)
        if mask.dim() == 2 and not is_growing:
            empty = (mask == 0).all(-1).nonzero()[:1, 0].tolist()
            if empty:
                raise ValueError(f"{name} has only padding in row {empty}: drop it, or mark its tokens with 1.")


def check_inputs(
    model: XLMRobertaXLModel, input_ids: Tensor | None, inputs_embeds: Tensor | None, attention_mask: Tensor | None,
    token_type_ids: Tensor | None, position_ids: Tensor | None, head_mask: Tensor | None,
    encoder_hidden_states: Tensor | None, encoder_attention_mask: Tensor | None, cache: Cache | None,
) -> Tensor:  # fmt: skip
    """Return input_ids or inputs_embeds. Raise ValueError, in one sentence, for inputs that cannot be right."""
    config, states = model.config, encoder_hidden_states
    given, width = input_ids if inputs_embeds is None else inputs_embeds, config.hidden_size
    if (input_ids is None) == (inputs_embeds is None):
        got = "neither" if given is None else "both"
        raise ValueError(f"got {got} of input_ids and inputs_embeds: pass one of them.")
    check_tensor("the input", given)
    assert given is not None
    rest = () if inputs_embeds is None else (width,)
    if given.dim() != 2 + len(rest) or given.shape[1] == 0 or given.shape[2:] != rest:
        allowed = f"(batch, tokens{', hidden_size=' + str(width) if rest else ''})"
        raise ValueError(f"the input has shape {tuple(given.shape)}, but must be {allowed} with at least one token.")
    batch, tokens = given.shape[:2]
    if input_ids is not None:
        check_range("input_ids", input_ids, config.vocab_size, "tokenize with this model's own vocabulary")
    by_token = (
        ("token_type_ids", token_type_ids, config.type_vocab_size),
        ("position_ids", position_ids, config.max_position_embeddings),
    )
    for name, ids, limit in by_token:
        if ids is not None:
            if tuple(ids.shape) not in ((batch, tokens), (1, tokens)):
                raise ValueError(f"{name} has shape {tuple(ids.shape)}, but must be {(batch, tokens)}.")
            check_range(name, ids, limit, f"leave {name} out for the usual ones")
    if head_mask is not None:
        shape = (config.num_hidden_layers, config.num_attention_heads)
        if tuple(head_mask.shape) not in (shape, shape[1:]):
            raise ValueError(f"head_mask has shape {tuple(head_mask.shape)}, but must be {shape[1:]} or {shape}.")
    if cache is not None:
        if not (isinstance(cache, Cache) and model.can_cache()):
            raise ValueError(f"past_key_values is a {type(cache).__name__}: only a decoder's own go back in.")
        keys = cache.layers[0].keys
        rows = None if keys is None else len(keys)
        if len(cache.layers) != len(model.layers) or rows not in (None, batch):
            needed = f"{len(model.layers)} layers and {batch} rows"
            held = f"{len(cache.layers)} layers and {rows} rows"
            raise ValueError(f"past_key_values hold {held}, but must hold {needed}.")
    if states is None:
        is_cached = cache is not None and cache.cross[0].length > 0
        if config.add_cross_attention and not is_cached:
            raise ValueError("cross-attention needs encoder_hidden_states: pass the encoder's last_hidden_state.")
    elif not config.add_cross_attention:
        remedy = "for encoder_hidden_states, build it with is_decoder=True, add_cross_attention=True"
        raise ValueError(f"this model has no cross-attention: {remedy}.")
    elif states.shape[::2] != (batch, width):
        needed = f"(batch={batch}, tokens, hidden_size={width})"
        raise ValueError(f"encoder_hidden_states are {tuple(states.shape)}, not {needed}.")
    num_cached = 0 if cache is None else cache.get_seq_length()
    is_growing = cache is not None or model.can_cache()
    check_mask("attention_mask", attention_mask, batch, tokens, num_cached + tokens, is_growing=is_growing)
    if config.add_cross_attention:
        length = states.shape[1] if states is not None else cache.cross[0].length if cache is not None else 0
        check_mask("encoder_attention_mask", encoder_attention_mask, batch, tokens, length)
    return given


def check_labels(name: str, labels: Tensor, logits: Tensor, ignore_index: int) -> None:
    """Raise ValueError unless labels `…` have a class of logits `… v`, or `ignore_index`."""
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"{name} have shape {tuple(labels.shape)}, but must be {tuple(logits.shape[:-1])}.")
    counted = labels.masked_fill(labels == ignore_index, 0)
    check_range(name, counted, logits.shape[-1], f"{ignore_index} marks what has no label")


def check_values(labels: Tensor, logits: Tensor, problem: str) -> None:
    """Raise ValueError unless labels have the shape of logits `b c`, or `b` where c is 1."""
    if labels.shape != logits.shape and not (logits.shape[1] == 1 and labels.shape == logits.shape[:1]):
        shapes = f"{tuple(labels.shape)}, but {problem} needs {tuple(logits.shape)}"
        raise ValueError(f"labels have shape {shapes}.")


def check_choices(given: Any, axes: int) -> int:
    """Return the number of choices of ids `b c t` or embeddings `b c t e`. Raise ValueError for another shape."""
    if not isinstance(given, Tensor) or given.dim() != axes:
        raise ValueError("multiple choice takes input_ids (batch, choices, tokens), or the same as inputs_embeds.")
    return given.shape[1]


def has_fully_masked_rows(model: XLMRobertaXLModel, mask: Tensor | None, given: Tensor | None) -> bool:
    """Whether a query of `mask` `b 1 q k` may attend to nothing; unreadable: whether `given` allows it."""
    if mask is None or is_readable(mask):
        return mask is not None and not bool(mask.any(-1).all())
    return given is not None and (model.config.is_decoder or given.dim() == 3)


def expand_head_mask(model: XLMRobertaXLModel, head_mask: Tensor | None) -> list[None] | Tensor:  # h or l h -> l h
    if head_mask is None:
        return [None] * len(model.layers)
    return head_mask.to(model.device, model.dtype).expand(len(model.layers), -1)


def check_length(config: XLMRobertaXLConfig, position_ids: Tensor, keys: int) -> None:
    """Raise ValueError for more tokens than there are positions, or, of relative positions, distances."""
    longest = keys
    if config.position_embedding_type == "absolute":
        longest = int(position_ids.max()) - config.pad_token_id if is_readable(position_ids) else 0
    if longest > config.max_seq_len:
        remedy = "so cut the text (truncation=True)"
        raise ValueError(f"{longest} tokens are too many: there is room for {config.max_seq_len}, {remedy}.")


# ---- models


class PreTrainedModel(nn.Module):
    """What all models share: initialisation, ties, loading and saving, resizing and pruning."""

    if TYPE_CHECKING:  # of the classes with a head
        backbone: XLMRobertaXLModel
        lm_head: Any

    def __init__(self, config: XLMRobertaXLConfig) -> None:
        super().__init__()
        config.validate()  # fields may have been changed since it was made
        self.config = config

    def __call__(self, *args: Any, return_dict: bool | None = None, **kwargs: Any) -> Any:
        out = super().__call__(*args, **kwargs)
        return out.to_tuple() if return_dict is False else out

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike[str], *, config: XLMRobertaXLConfig | None = None,
        dtype: torch.dtype | str | None = None, device: torch.device | str = "cpu", quantize: str | None = None,
        progress: bool = True, **config_overrides: Unpack[ModelOverrides],
    ) -> Self:  # fmt: skip
        """Build a model with the weights of `source`, in evaluation mode.

        source: a bundled checkpoint ("tiny"), a folder (safetensors or .bin, one file or sharded; or fairseq's
        model.pt), or a Hugging Face hub id. dtype: None for float32, or a torch dtype or its name. quantize: "int8" for
        the large matrices, with a scale per row. config_overrides: fields of the config, such as num_labels=3.

        A task head that the checkpoint lacks is newly initialised, with one warning. Raises CheckpointError, which
        lists all of it, for anything else missing, unexpected or of another shape, and for a model larger than the free
        memory. Weights are streamed from the memory-mapped file: on the CPU, in the file's own dtype, they stay mapped.
        """
        from .checkpoints.load import load

        return load(  # type: ignore[return-value]
            cls, source, config=config, dtype=dtype, device=device, quantize=quantize, progress=progress,
            **config_overrides,
        )  # fmt: skip

    def save_pretrained(self, folder: str | os.PathLike[str], *, max_shard_size: int | str = "5GB") -> None:
        """Write `config.json` and `model.safetensors` into `folder`, under Hugging Face's names: all files or none.

        max_shard_size: in bytes, or a text such as "5GB"; a larger model is written as several files and an index.
        Raises CheckpointError if it cannot be written.
        """
        from .checkpoints.save import save

        save(self, folder, max_shard_size=max_shard_size)

    # initialisation and ties

    def post_init(self) -> None:
        """The last line of every constructor: initialise, tie, and prune the heads that the config lists."""
        for child in self.children():
            if not isinstance(child, PreTrainedModel):  # a backbone has done all this itself
                child.apply(self.init_weights)
        self.tie_weights()
        if self.base_model is self:
            self.prune_heads(self.config.pruned_heads)

    def init_weights(self, module: nn.Module) -> None:
        """Normal with standard deviation `initializer_range`; zeros for biases and padding; LayerNorms as built."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])

    def tie_weights(self) -> None:
        """Make the LM head's matrix and the word embeddings one parameter, if the config says so."""
        if self.get_output_embeddings() is not None and self.config.tie_word_embeddings:
            for name, parameter in self.get_input_embeddings().named_parameters():  # weight; in int8 also its scale
                setattr(self.lm_head.decoder, name, parameter)

    # accessors

    @property
    def base_model(self) -> XLMRobertaXLModel:
        return self.backbone if hasattr(self, "backbone") else self  # type: ignore[return-value]

    @property
    def device(self) -> torch.device:
        return self.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.base_model.norm.weight.dtype  # the matrices may be in int8

    def get_input_embeddings(self) -> nn.Embedding:
        return self.base_model.embeddings.word

    def get_output_embeddings(self) -> nn.Linear | None:
        return self.lm_head.decoder if hasattr(self, "lm_head") else None

    def can_cache(self) -> bool:
        """Whether keys and values can be cached: in decoders, unless gradient checkpointing recomputes them."""
        return self.config.is_decoder and not (self.base_model.gradient_checkpointing and self.training)

    # changes of size

    def resize_token_embeddings(self, n: int) -> nn.Embedding:
        """Cut or grow the vocabulary to `n` ids; old rows keep their values, new ones are initialised. Returns it.

        Raises ValueError if the special tokens would be cut off.
        """
        special = max(self.config.pad_token_id, self.config.bos_token_id, self.config.eos_token_id)
        if n <= special:
            raise ValueError(f"a vocabulary of {n} is too small: the special tokens have ids up to {special}.")
        for table in filter(None, (self.get_input_embeddings(), self.get_output_embeddings())):
            old = dict(table.named_parameters())
            for name, parameter in old.items():
                resized = parameter.new_empty(n, *parameter.shape[1:])
                setattr(table, name, nn.Parameter(resized, parameter.requires_grad))
            self.init_weights(table)
            for name, parameter in old.items():
                getattr(table, name).data[: len(parameter)] = parameter.data[:n]
            setattr(table, "num_embeddings" if isinstance(table, nn.Embedding) else "out_features", n)
        self.tie_weights()
        self.config.vocab_size = n
        return self.get_input_embeddings()

    def prune_heads(self, heads: dict[int, list[int]]) -> None:
        """Remove attention heads, `{layer: [heads]}`, always by the numbers of the unpruned model.

        Raises ValueError, and changes nothing, for layers or heads that do not exist, and if a layer would have none.
        """
        layers, width = self.config.num_hidden_layers, self.config.num_attention_heads
        pruned: dict[int, list[int]] = {}
        for layer, numbers in heads.items():
            if layer not in range(layers) or not set(numbers) <= set(range(width)):
                ranges = f"there are layers 0 to {layers - 1} with heads 0 to {width - 1}"
                raise ValueError(f"prune_heads got layer {layer}, heads {list(numbers)}, but {ranges}.")
            pruned[layer] = sorted({*self.config.pruned_heads.get(layer, []), *numbers})
            if len(pruned[layer]) == width:
                raise ValueError(f"prune_heads would leave no head in layer {layer}: keep at least one.")
        for layer, numbers in pruned.items():
            prune_attention(self.base_model.layers[layer].attention, numbers)  # type: ignore[arg-type]
        self.config.pruned_heads = {**self.config.pruned_heads, **pruned}

    def gradient_checkpointing_enable(self, enable: bool = True) -> None:
        """In training, keep only each block's input and recompute the rest in the backward pass: saves memory."""
        self.base_model.gradient_checkpointing = enable

    def gradient_checkpointing_disable(self) -> None:
        self.gradient_checkpointing_enable(False)


def prune_attention(attention: Attention, heads: list[int]) -> None:
    """Remove heads: their rows of query, key and value, their columns of out."""
    kept = [head for head in attention.heads if head not in heads]
    rows = torch.tensor([attention.heads.index(head) for head in kept], device=attention.out.weight.device)
    rows = rearrange(rows, "h -> h 1") * attention.head_dim + torch.arange(attention.head_dim, device=rows.device)
    rows, attention.heads = rearrange(rows, "h d -> (h d)"), kept
    for linear in (attention.query, attention.key, attention.value):
        linear.weight, linear.bias = (nn.Parameter(x.detach()[rows]) for x in (linear.weight, linear.bias))
        linear.out_features = len(rows)
    attention.out.weight = nn.Parameter(attention.out.weight.detach()[:, rows])
    attention.out.in_features = len(rows)


class GenerationMixin:
    """Text generation, for XLMRobertaXLForCausalLM; the work is done in inference/generation.py."""

    def generate(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, max_new_tokens: int = 20,
        do_sample: bool = False, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0,
        generator: torch.Generator | None = None, num_beams: int = 1, length_penalty: float = 1.0,
        num_return_sequences: int = 1, eos_token_id: int | None = None, use_cache: bool = True,
        encoder_hidden_states: Tensor | None = None, encoder_attention_mask: Tensor | None = None,
        progress: bool = False,
    ) -> Tensor:  # fmt: skip
        """Continue prompts: input_ids `b t`, padded on the left -> the prompts and what follows them, `b t`.

        A sequence ends with `eos_token_id` (None: the config's; -1: never), after `max_new_tokens`, or with a warning
        where the model has no more positions; then it is padded. attention_mask `b t`: None finds padding by its id.

        Greedy decoding by default. do_sample: sample with `generator` from the softmax after temperature, top_k and
        top_p (none of them by default; transformers has top_k=50). num_beams above 1: beam search. Of each prompt,
        num_return_sequences samples or best beams are returned, one after another. encoder_hidden_states `b k e`,
        encoder_attention_mask `b k`: for cross-attention. use_cache=False recomputes earlier tokens for each new one,
        with the same result. Raises ValueError for settings that cannot be right.
        """
        settings = {name: value for name, value in locals().items() if name != "self"}
        from .inference.generation import generate

        return generate(self, **settings)  # type: ignore[arg-type]

    def stream(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, max_new_tokens: int = 20,
        do_sample: bool = False, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0,
        generator: torch.Generator | None = None, num_return_sequences: int = 1, eos_token_id: int | None = None,
        use_cache: bool = True, encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None, progress: bool = False,
    ) -> Iterator[Tensor]:  # fmt: skip
        """The new tokens of `generate` as they come: one id per sequence, `b`, each time; padding after its end.

        Not for beam search, which decides on its first token last.
        """
        settings = {name: value for name, value in locals().items() if name != "self"}
        from .inference.generation import stream

        return stream(self, **settings)  # type: ignore[arg-type]
