"""The behaviour of XLMRobertaXLConfig, whose fields are in model.py: reading, writing, validation."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from numbers import Integral, Real
from operator import index
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

POSITION_EMBEDDING_TYPES = ("absolute", "relative_key", "relative_key_query")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


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
    bos_token_id: int | None
    eos_token_id: int | None
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
    low_cpu_mem_usage: bool
    use_safetensors: bool | None
    trust_remote_code: bool


class PreTrainedConfig:
    """The behaviour of XLMRobertaXLConfig, whose fields are in model.py."""

    model_type = "xlm-roberta-xl"
    is_encoder_decoder, use_return_dict = False, True
    sub_configs: ClassVar[dict[str, Any]] = {}
    _commit_hash = None  # of the hub: transformers' pipelines read it
    _attn_implementation = "sdpa"
    _is_built = False

    if TYPE_CHECKING:  # the fields that are needed here
        extra: dict[str, Any]
        activations: ClassVar[dict[str, Any]]
        max_position_embeddings: int
        pad_token_id: int
        position_embedding_type: str
        hidden_dropout_prob: float
        classifier_dropout: float | None
        num_labels: int
        problem_type: str | None
        id2label: dict[int, str]
        label2id: dict[str, int]
        pruned_heads: dict[int, list[int]]
        hidden_act: str | Callable[[Tensor], Tensor]

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *, revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None, local_files_only: bool = False,
        token: str | bool | None = None, **config_overrides: Unpack[ConfigOverrides],
    ) -> Self:  # fmt: skip
        """Read the `config.json` of a folder, a bundled checkpoint or a hub id; `config_overrides` replace fields.

        The other arguments are those of a model's `from_pretrained`; the path may also be that of the file. Raises
        CheckpointError if there is none or it is another model's, ValueError for impossible overrides.
        """
        from ..checkpoints.config import load_config
        from ..checkpoints.locate import locate

        hub: Any = {"revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
        return load_config(cls, locate(pretrained_model_name_or_path, **hub), **config_overrides)  # type: ignore[type-var]

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `config.json` into `folder`, with the keys of Hugging Face."""
        from ..checkpoints.config import save_config

        save_config(self, folder)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **overrides: Any) -> Self:
        """Build a config from the keys of a `config.json`, with `overrides` on top; unknown keys go to `extra`."""
        names = [field.name for field in fields(cls) if field.name != "extra"]  # type: ignore[arg-type]
        unknown = sorted(set(overrides) - set(names))
        if unknown:
            raise ValueError(f"got {', '.join(unknown)}, which is neither an argument nor a field of the config.")
        labels = overrides.get("num_labels")
        is_new = "id2label" in overrides or (  # num_labels: 2 by default
            labels is not None and labels != len(values.get("id2label") or range(2))
        )
        stale = ("num_labels", "id2label", "label2id") if is_new else ()
        known = {**{name: value for name, value in values.items() if name not in (*stale, "model_type")}, **overrides}
        extra = {name: known.pop(name) for name in list(known) if name not in names}
        return cls(**known, extra=extra)  # type: ignore[call-arg]

    @classmethod
    def convert(cls, config: Any) -> Self:
        """The config itself, or that of transformers with the same values. TypeError for anything else."""
        if isinstance(config, cls):
            return config
        if not hasattr(config, "to_diff_dict") or getattr(config, "model_type", None) != cls.model_type:
            allowed = f"an {cls.__name__} of this package, or of transformers"
            raise TypeError(f"config is a {type(config).__name__}, but must be {allowed}.")
        return cls.from_dict(config.to_diff_dict())

    def to_dict(self) -> dict[str, Any]:
        """The keys and values of the config's `config.json`, those of `extra` included."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {**values.pop("extra"), **values, "model_type": self.model_type}

    def to_json_string(self) -> str:
        """The text of the config's `config.json`. ValueError if hidden_act is a function."""
        if callable(self.hidden_act):
            remedy = "name one of the built-in activations instead"
            raise ValueError(f"hidden_act is a function, which JSON cannot hold: {remedy}.")
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def __post_init__(self) -> None:
        names = self.id2label or {i: f"LABEL_{i}" for i in range(2 if self.num_labels is None else self.num_labels)}
        self.id2label = as_id2label(names)
        self.label2id = self.label2id or {name: i for i, name in self.id2label.items()}
        self.num_labels = len(self.id2label) if self.num_labels is None else self.num_labels
        self.pruned_heads = as_heads({} if self.pruned_heads is None else self.pruned_heads, "pruned_heads")
        self._is_built = True
        self.validate()

    def __getattr__(self, name: str) -> Any:  # called only for what is not a field
        if name in self.__dict__.get("extra", {}):
            return self.extra[name]
        if name == "task_specific_params":  # transformers' text-generation pipeline reads it of every config
            return None
        raise AttributeError(f"{type(self).__name__} has no field {name!r}.")

    def __setattr__(self, name: str, value: Any) -> None:
        if self._is_built and name == "id2label":
            value = as_id2label(value)
        is_field = name in self.__dict__ or hasattr(type(self), name) or name.startswith("_")
        if not self._is_built or is_field:
            super().__setattr__(name, value)
        else:
            self.extra[name] = value  # and so it is saved
        if self._is_built and name == "num_labels" and is_positive_integer(value) and value != len(self.id2label):
            self.id2label = {i: f"LABEL_{i}" for i in range(value)}
        if self._is_built and name == "id2label":
            super().__setattr__("num_labels", len(value))
            self.label2id = {label: i for i, label in value.items()}

    def get_text_config(self, **options: Any) -> Self:
        """The config itself: transformers asks for it, as some models have several."""
        return self

    @property
    def max_seq_len(self) -> int:
        """Tokens of the longest input. Absolute positions start at pad_token_id + 1, relative ones have no offset."""
        is_absolute = self.position_embedding_type == "absolute"
        return self.max_position_embeddings - (self.pad_token_id + 1 if is_absolute else 0)

    @property
    def head_dropout_prob(self) -> float:
        """Dropout of the task heads for sequences and tokens."""
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout

    def validate(self) -> None:
        """Raise ValueError, in one sentence, if no model can be built from this config."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        values["activations"] = ", ".join(self.activations)
        for names, is_possible, allowed in CONFIG_RULES:
            for name in names.split():
                if not is_possible(values[name], self):
                    allowed = allowed.format_map(values)
                    raise ValueError(f"{name}={shown(values[name])} is impossible: it must be {allowed}.")


def shown(value: Any) -> str:
    """A value for a message: on one line, and not long."""
    return " ".join(f"{value!r:.80}".split())


def as_id2label(names: Any) -> dict[int, str]:
    """Names by their integers, from a list of names, or from JSON, which turns integer keys into strings."""
    names = dict(enumerate(names)) if isinstance(names, list) else names
    return {int(i): name for i, name in names.items()}


def as_heads(heads: Any, name: str) -> dict[int, list[int]]:
    """`{layer: [heads]}` with Python's integers, each once; JSON has the layers as strings. ValueError for others."""
    found: dict[int, set[int]] = {}
    try:
        for layer, numbers in heads.items():
            layer = int(layer) if isinstance(layer, str) else as_integer(layer)
            found.setdefault(layer, set()).update(map(as_integer, list(numbers)))
    except (AttributeError, TypeError, ValueError):
        allowed = "{layer: [heads]} with integers, such as {0: [1, 2]}"
        raise ValueError(f"{name}={shown(heads)} is impossible: it must be {allowed}.") from None
    return {layer: sorted(numbers) for layer, numbers in found.items()}


def as_integer(value: Any) -> int:
    """One of Python, numpy or PyTorch; TypeError for others, and for True and False, which come from a mask."""
    if isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")):
        raise TypeError
    return index(value)


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
    ("pad_token_id", lambda x, c: x in range(c.vocab_size), "an id below {vocab_size}"),
    (
        "bos_token_id eos_token_id",
        lambda x, c: x is None or x in range(c.vocab_size),
        "an id below {vocab_size}, or None",
    ),
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
    ("hidden_act", lambda x, c: callable(x) or x in [*c.activations], "a function or one of {activations}"),
    ("position_embedding_type", lambda x, c: x in POSITION_EMBEDDING_TYPES, one_of(POSITION_EMBEDDING_TYPES)),
    ("problem_type", lambda x, c: x in (None, *PROBLEM_TYPES), f"None or {one_of(PROBLEM_TYPES)}"),
    ("num_labels", lambda x, c: x == len(c.id2label), "the number of names in id2label"),
    ("add_cross_attention", lambda x, c: c.is_decoder or not x, "False in an encoder"),
)
