"""What every model returns."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


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
        if name not in self.FIELDS:
            raise AttributeError(f"a model's output has no {name!r}: it can have {', '.join(self.FIELDS)}.")
        self[name] = value

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __missing__(self, name: str) -> Any:
        remedies = {"loss": "pass labels", "hidden_states": "call with output_hidden_states=True"}
        remedies |= dict.fromkeys(("attentions", "cross_attentions"), "call with output_attentions=True")
        remedy = f": {remedies[name]}" if name in remedies else ""
        raise KeyError(f"there is no {name!r} in this output, only {', '.join(self)}{remedy}.")

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self.values())

    def with_logits(self, loss: Tensor | None, **logits: Tensor) -> ModelOutput:
        """The backbone's output with logits in place of its last hidden state."""
        rest = {name: value for name, value in self.items() if name not in ("last_hidden_state", "pooler_output")}
        return ModelOutput(loss=loss, **logits, **rest)


pytree.register_pytree_node(  # so that torch.export and DDP find its tensors
    ModelOutput,
    lambda out: (list(out.values()), list(out)),
    lambda values, names: ModelOutput(zip(names, values, strict=True)),
    serialized_type_name="xlmrxl_min.ModelOutput",
)
