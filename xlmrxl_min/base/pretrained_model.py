"""What all models share: initialisation, ties, loading and saving, resizing and pruning."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from .config import as_heads, is_positive_integer, shown

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ..model import Attention, XLMRobertaXLConfig, XLMRobertaXLModel
    from .config import ModelOverrides


class ConfigClass:
    """The attribute `config_class` of all models: XLMRobertaXLConfig, which is defined after this file is read."""

    def __get__(self, model: PreTrainedModel | None, cls: type[PreTrainedModel]) -> type[XLMRobertaXLConfig]:
        from ..model import XLMRobertaXLConfig

        return XLMRobertaXLConfig


class PreTrainedModel(nn.Module):
    """What all models share: initialisation, ties, loading and saving, resizing and pruning."""

    warned_about_padding = False
    gradient_checkpointing_kwargs: Mapping[str, Any] = {"use_reentrant": False}
    # read by transformers' Trainer and pipelines, accelerate, and peft
    main_input_name, base_model_prefix = "input_ids", "backbone"
    supports_gradient_checkpointing = _supports_sdpa = True
    _is_stateful = _can_compile_fullgraph = _supports_attention_backend = False
    _no_split_modules: ClassVar = ["Embeddings", "Block"]
    _keys_to_ignore_on_save = None
    config_class = ConfigClass()

    if TYPE_CHECKING:  # of the classes with a head
        backbone: XLMRobertaXLModel
        lm_head: Any

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        return super().__new__(add_transformers_base(cls) if "transformers" in sys.modules else cls)  # type: ignore

    def __init__(self, config: XLMRobertaXLConfig) -> None:
        nn.Module.__init__(self)  # not that of transformers
        self.config: XLMRobertaXLConfig = self.config_class.convert(config)
        self.config.validate()  # fields may have been changed since it was made
        self.gradient_checkpointing = bool(self.config.extra.get("gradient_checkpointing", False))  # of old versions

    def __call__(self, *args: Any, return_dict: bool | None = None, **kwargs: Any) -> Any:
        out = super().__call__(*args, **kwargs)
        return out.to_tuple() if return_dict is False else out

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *, config: XLMRobertaXLConfig | None = None,
        dtype: torch.dtype | str | None = None, device: torch.device | str | None = None,
        device_map: str | Mapping[str, Any] | None = None, quantize: str | None = None,
        ignore_mismatched_sizes: bool = False, output_loading_info: bool = False, attn_implementation: str = "sdpa",
        progress: bool = True, revision: str | None = None, cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False, token: str | bool | None = None, **config_overrides: Unpack[ModelOverrides],
    ) -> Self:  # fmt: skip
        """Build a model with the weights of a checkpoint, in evaluation mode.

        pretrained_model_name_or_path: a folder (safetensors or .bin, one file or sharded; or fairseq's model.pt), one
        of its files, a bundled checkpoint ("tiny"), or a Hugging Face hub id. Where both exist, the folder is taken,
        with a warning. config: one of this package or of transformers. dtype, or torch_dtype: None for float32, "auto"
        for that of the file, or a torch dtype or its name. device: None for PyTorch's default device. device_map: a
        device; or "auto" or {module: device}, with the modules' names here, for which accelerate is needed. quantize:
        "int8" for the large matrices, with a scale per row. ignore_mismatched_sizes: initialise weights that are stored
        in another shape.
        output_loading_info: return (model, {"missing_keys": …, "unexpected_keys": …, "mismatched_keys": …}).
        attn_implementation: "sdpa", or "eager", which never uses the fused kernels; the result is the same.
        revision, cache_dir, local_files_only, token: those of huggingface_hub, for a hub id; without an answer of the
        hub within 3 s, its cached files are taken. config_overrides: fields of the config, such as num_labels=3;
        low_cpu_mem_usage, use_safetensors and trust_remote_code change nothing here.

        A task head that the checkpoint lacks is newly initialised, with one warning. Weights are streamed from the
        memory-mapped file: on the CPU, in the file's own dtype, they stay mapped. Raises ValueError for a dtype,
        quantize or override that is not allowed; CheckpointError, which lists all of it, for anything else missing,
        unexpected or of another shape, and for a model larger than the free memory.
        """
        from ..checkpoints.load import load
        from ..checkpoints.locate import locate

        hub: Any = {"revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
        model, info = load(
            cls, locate(pretrained_model_name_or_path, **hub), config=config, dtype=dtype, device=device,
            device_map=device_map, quantize=quantize, ignore_mismatched_sizes=ignore_mismatched_sizes,
            attn_implementation=attn_implementation, progress=progress, **config_overrides,
        )  # fmt: skip
        return (model, info) if output_loading_info else model  # type: ignore[return-value]

    def save_pretrained(
        self, folder: str | os.PathLike[str], is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None, save_function: Any = None, *,
        max_shard_size: int | str = "5GB", safe_serialization: bool = True,
    ) -> None:  # fmt: skip
        """Write `config.json` and `model.safetensors` into `folder`, under Hugging Face's names: all files or none.

        is_main_process: False does nothing, for all but one of several processes. state_dict: the weights by this
        model's names, if they are not to be taken from it. max_shard_size: in bytes, or a text such as "5GB" (10⁹
        bytes); a larger model is written as several files and an index. Weights of an earlier save in the folder are
        removed. save_function changes nothing: safetensors are written by their own. Raises CheckpointError if the
        files cannot be written, ValueError for an impossible max_shard_size, for safe_serialization=False, and for
        weights that are not tied as the config says.
        """
        from ..checkpoints.save import save

        if not safe_serialization:
            raise ValueError("safe_serialization=False is not offered: only safetensors are written.")
        if is_main_process:
            save(self, folder, max_shard_size=max_shard_size, state_dict=state_dict)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As in PyTorch. A state dict with the names of transformers is renamed first.

        Raises ValueError, also with strict=False, if no name is known.
        """
        from ..checkpoints.names import rename_state_dict

        return super().load_state_dict(rename_state_dict(self, state_dict), strict, assign)

    @classmethod
    def _from_config(cls, config: Any, *, attn_implementation: str | None = None, **options: Any) -> Self:
        """A new model, as transformers' `from_config` makes it; options: dtype or torch_dtype."""
        model = cls(config, **{name: options[name] for name in options if name not in ("dtype", "torch_dtype")})
        model.config._attn_implementation = attn_implementation or "sdpa"
        return model.to(dtype=options.get("dtype", options.get("torch_dtype")))

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

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    def get_input_embeddings(self) -> nn.Embedding:
        return self.base_model.embeddings.word

    def set_input_embeddings(self, module: nn.Embedding) -> None:
        self.base_model.embeddings.word = module

    def get_output_embeddings(self) -> nn.Linear | None:
        return self.lm_head.decoder if hasattr(self, "lm_head") else None

    @property
    def _tied_weights_keys(self) -> list[str] | None:
        return None if self.get_output_embeddings() is None else ["lm_head.decoder.weight"]

    def set_output_embeddings(self, module: nn.Linear) -> None:
        self.lm_head.decoder = module

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """The number of parameters, each counted once; exclude_embeddings: without those of nn.Embedding modules."""
        tables = {id(m.weight) for m in self.modules() if isinstance(m, nn.Embedding)} if exclude_embeddings else set()
        parameters = (p for p in self.parameters() if id(p) not in tables)
        return sum(p.numel() for p in parameters if p.requires_grad or not only_trainable)

    @classmethod
    def can_generate(cls) -> bool:
        return False

    def can_cache(self) -> bool:
        """Whether keys and values can be cached: in decoders, unless gradient checkpointing recomputes them."""
        return self.config.is_decoder and not (self.base_model.gradient_checkpointing and self.training)

    # changes of size

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Cut or grow the vocabulary to `new_num_tokens` ids, and return the word embeddings.

        None: leave it. pad_to_multiple_of: round up. Old rows keep their values. New ones are the mean of the old ones,
        except for the bias of a tied LM head, or with mean_resizing=False initialised as in a new model; all this as in
        Hugging Face. ValueError if new_num_tokens is no integer, or cuts off special tokens, and for int8 weights.
        """
        n = self.config.vocab_size if new_num_tokens is None else new_num_tokens
        special = max(self.config.pad_token_id, self.config.bos_token_id or 0, self.config.eos_token_id or 0)
        if isinstance(n, bool) or not isinstance(n, Integral) or n <= special:
            allowed = f"an integer above {special}, the largest id of a special token"
            raise ValueError(f"a vocabulary cannot have {shown(n)} ids: it needs {allowed}.")
        if pad_to_multiple_of is not None:
            if not is_positive_integer(pad_to_multiple_of):
                raise ValueError(f"pad_to_multiple_of={shown(pad_to_multiple_of)} must be an integer of 1 or more.")
            n += -n % pad_to_multiple_of
        if n != self.config.vocab_size:
            self.refuse_int8("resize")
        for table in filter(None, (self.get_input_embeddings(), self.get_output_embeddings())):
            old = dict(table.named_parameters())
            for name, parameter in old.items():
                resized = parameter.new_empty(n, *parameter.shape[1:])
                setattr(table, name, nn.Parameter(resized, parameter.requires_grad))
            self.init_weights(table)
            for name, parameter in old.items():
                if mean_resizing and not (name == "bias" and self.config.tie_word_embeddings):
                    getattr(table, name).data[:] = parameter.data.float().mean(0)
                getattr(table, name).data[: len(parameter)] = parameter.data[:n]
            setattr(table, "num_embeddings" if isinstance(table, nn.Embedding) else "out_features", n)
        self.tie_weights()
        self.config.vocab_size = n
        return self.get_input_embeddings()

    def prune_heads(self, heads: Mapping[int, Iterable[int]]) -> None:
        """Remove attention heads, `{layer: [heads]}`, by the numbers of the unpruned model; layer -1 is the last.

        Raises ValueError, and changes nothing, for layers or heads that are no numbers or do not exist, if a layer
        would have none, and for int8 weights.
        """
        layers, num_heads = self.config.num_hidden_layers, self.config.num_attention_heads
        pruned: dict[int, list[int]] = {}
        for layer, numbers in as_heads(heads, "prune_heads: heads").items():
            layer = layer + layers if layer in range(-layers, 0) else layer
            if layer not in range(layers) or not set(numbers) <= set(range(num_heads)):
                ranges = f"there are layers 0 to {layers - 1} with heads 0 to {num_heads - 1}"
                raise ValueError(f"prune_heads got layer {layer}, heads {numbers}, but {ranges}.")
            pruned[layer] = sorted({*self.config.pruned_heads.get(layer, []), *pruned.get(layer, []), *numbers})
            if len(pruned[layer]) == num_heads:
                raise ValueError(f"prune_heads would leave no head in layer {layer}: keep at least one.")
        if pruned:
            self.refuse_int8("prune")
        for layer, numbers in pruned.items():
            prune_attention(self.base_model.layers[layer].attention, numbers)  # type: ignore[arg-type]
        self.config.pruned_heads = {**self.config.pruned_heads, **pruned}

    def refuse_int8(self, change: str) -> None:
        """Raise ValueError if there are int8 weights, whose scales `change` would not follow."""
        if any(parameter.dtype == torch.int8 for parameter in self.parameters()):
            raise ValueError(f"cannot {change} int8 weights: {change} first, then save, and load with quantize.")

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None, *, every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:  # fmt: skip
        """In training, keep only each block's input and recompute the rest in the backward pass: saves memory.

        gradient_checkpointing_kwargs: those of torch.utils.checkpoint.checkpoint; use_reentrant is False without them.
        ValueError for other values of every_n_layers and offload, which transformers 5 has.
        """
        if every_n_layers != 1 or offload:
            given = f"every_n_layers={every_n_layers}, offload={offload}"
            raise ValueError(f"{given} is not offered: all layers are recomputed, from inputs on the same device.")
        self.gradient_checkpointing = self.base_model.gradient_checkpointing = True
        options = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        self.base_model.gradient_checkpointing_kwargs = options

    def gradient_checkpointing_disable(self) -> None:
        self.gradient_checkpointing = self.base_model.gradient_checkpointing = False

    @property
    def is_gradient_checkpointing(self) -> bool:
        return self.base_model.gradient_checkpointing


@cache
def add_transformers_base(cls: type) -> type:
    """The class with transformers' PreTrainedModel as its last base, which changes no method of this package.

    transformers' Trainer saves a checkpoint that can be loaded only of instances of that class.
    """
    try:
        from transformers import PreTrainedModel as Base
    except ImportError:  # a transformers without PyTorch, for its tokenizers
        return cls
    if issubclass(cls, Base):
        return cls

    def reduce_ex(self: Any, protocol: Any) -> Any:  # pickled as the class that can be imported
        return cls.__new__, (cls,), *object.__reduce_ex__(self, protocol)[2:]

    names = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(cls.__name__, (cls, Base), {**names, "__reduce_ex__": reduce_ex})


def prune_attention(attention: Attention, heads: list[int]) -> None:
    """Remove heads: their rows of query, key and value, their columns of out."""
    kept = [head for head in attention.heads if head not in heads]
    rows = torch.tensor([attention.heads.index(head) for head in kept], device=attention.out.weight.device)
    rows = rearrange(rows, "h -> h 1") * attention.head_dim + torch.arange(attention.head_dim, device=rows.device)
    rows, attention.heads = rearrange(rows, "h d -> (h d)"), kept
    for linear in (attention.query, attention.key, attention.value):
        for name, old in list(linear.named_parameters()):
            setattr(linear, name, nn.Parameter(old.detach()[rows], old.requires_grad))
        linear.out_features = len(rows)
    weight = attention.out.weight
    attention.out.weight = nn.Parameter(weight.detach()[:, rows], weight.requires_grad)
    attention.out.in_features = len(rows)
