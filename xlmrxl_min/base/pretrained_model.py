"""What all models share: initialisation, ties, loading and saving, resizing and pruning."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import nn

from .config import as_heads, shown

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ..model import Attention, XLMRobertaXLConfig, XLMRobertaXLModel
    from .config import ModelOverrides


class PreTrainedModel(nn.Module):
    """What all models share: initialisation, ties, loading and saving, resizing and pruning."""

    warned_about_padding = False

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
        progress: bool = True, revision: str | None = None, cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False, token: str | bool | None = None, **config_overrides: Unpack[ModelOverrides],
    ) -> Self:  # fmt: skip
        """Build a model with the weights of `source`, in evaluation mode.

        source: a folder (safetensors or .bin, one file or sharded; or fairseq's model.pt), one of its files, a bundled
        checkpoint ("tiny"), or a Hugging Face hub id. Where both exist, the folder is taken, with a warning. dtype:
        None for float32, or a torch dtype or its name. quantize: "int8" for the large matrices, with a scale per row.
        revision, cache_dir, local_files_only, token: those of huggingface_hub, for a hub id; without an answer of the
        hub within 3 s, its cached files are taken. config_overrides: fields of the config, such as num_labels=3.

        A task head that the checkpoint lacks is newly initialised, with one warning. Weights are streamed from the
        memory-mapped file: on the CPU, in the file's own dtype, they stay mapped. Raises ValueError for a dtype,
        quantize or override that is not allowed; CheckpointError, which lists all of it, for anything else missing,
        unexpected or of another shape, and for a model larger than the free memory.
        """
        from ..checkpoints.load import load
        from ..checkpoints.locate import locate

        hub: Any = {"revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
        return load(  # type: ignore[return-value]
            cls, locate(source, **hub), config=config, dtype=dtype, device=device, quantize=quantize,
            progress=progress, **config_overrides,
        )  # fmt: skip

    def save_pretrained(self, folder: str | os.PathLike[str], *, max_shard_size: int | str = "5GB") -> None:
        """Write `config.json` and `model.safetensors` into `folder`, under Hugging Face's names: all files or none.

        max_shard_size: in bytes, or a text such as "5GB" (10⁹ bytes); a larger model is written as several files and an
        index. Weights of an earlier save in the folder are removed. Raises CheckpointError if it cannot be written,
        ValueError for an impossible max_shard_size and for weights that are not tied as the config says.
        """
        from ..checkpoints.save import save

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

        Raises ValueError if `n` is no integer, or the special tokens would be cut off.
        """
        special = max(self.config.pad_token_id, self.config.bos_token_id, self.config.eos_token_id)
        if isinstance(n, bool) or not isinstance(n, Integral) or n <= special:
            allowed = f"an integer above {special}, the largest id of a special token"
            raise ValueError(f"a vocabulary cannot have {shown(n)} ids: it needs {allowed}.")
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

    def prune_heads(self, heads: Mapping[int, Iterable[int]]) -> None:
        """Remove attention heads, `{layer: [heads]}`, always by the numbers of the unpruned model.

        Raises ValueError, and changes nothing, for layers or heads that are no numbers or do not exist, if a layer
        would have none, and for int8 weights.
        """
        layers, num_heads = self.config.num_hidden_layers, self.config.num_attention_heads
        pruned: dict[int, list[int]] = {}
        for layer, numbers in as_heads(heads, "prune_heads: heads").items():
            if layer not in range(layers) or not set(numbers) <= set(range(num_heads)):
                ranges = f"there are layers 0 to {layers - 1} with heads 0 to {num_heads - 1}"
                raise ValueError(f"prune_heads got layer {layer}, heads {numbers}, but {ranges}.")
            pruned[layer] = sorted({*self.config.pruned_heads.get(layer, []), *numbers})
            if len(pruned[layer]) == num_heads:
                raise ValueError(f"prune_heads would leave no head in layer {layer}: keep at least one.")
        if pruned and any(parameter.dtype == torch.int8 for parameter in self.parameters()):
            raise ValueError("prune_heads cannot prune int8 weights: prune first, then save and load with quantize.")
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
        for name, old in list(linear.named_parameters()):
            setattr(linear, name, nn.Parameter(old.detach()[rows], old.requires_grad))
        linear.out_features = len(rows)
    weight = attention.out.weight
    attention.out.weight = nn.Parameter(weight.detach()[:, rows], weight.requires_grad)
    attention.out.in_features = len(rows)
