"""The one place that touches model internals: reads the residual at a hook point, and changes it.

The hook is put on once and stays. It does something only inside `Tap.step`, so that passes made by others over the
same model are left alone, and every step proves that its hook ran, once, over all of its tokens.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sae_runtime.errors import TapError
from sae_runtime.hook_point import HookPoint

Edit = Callable[[Tensor], Tensor]
"""[B, T, D] residuals -> [B, T, D] residuals of the same dtype; must not write to its argument."""


@dataclass(slots=True)
class TapRecord:
    """What the tap saw in one forward pass."""

    edit: Edit | None
    resid_BTD: Tensor | None = None
    """Residuals as the model computed them, before any steering, in the model's dtype."""
    edited_BTD: Tensor | None = None
    """Residuals as the following blocks read them; None if nothing was edited."""
    num_tokens: int = 0


class Tap:
    """Reads and edits the residual of `model` (a Llama-like causal LM of transformers) at `hook_point`."""

    def __init__(self, model: nn.Module, hook_point: HookPoint, d_model: int) -> None:
        layers = decoder_layers(model)
        if hook_point.layer >= len(layers):
            raise TapError(f"hook point {hook_point} must name one of the model's {len(layers)} layers")
        self.hook_point = hook_point
        self.d_model = d_model
        self._record: TapRecord | None = None
        block = layers[hook_point.layer]
        if hook_point.side == "output":
            self._handle = block.register_forward_hook(self._on_output)
        else:
            self._handle = block.register_forward_pre_hook(self._on_input, with_kwargs=True)

    def remove(self) -> None:
        """Take the hook off the model."""
        self._handle.remove()

    @contextmanager
    def step(self, num_tokens: int, edit: Edit | None = None) -> Iterator[TapRecord]:
        """Tap the forward pass made inside the block. TapError if it did not pass over exactly `num_tokens` tokens."""
        if self._record is not None:
            raise TapError("a step is already being tapped: steps must not nest")
        self._record = record = TapRecord(edit)
        try:
            yield record
        finally:
            self._record = None
        if record.num_tokens != num_tokens:
            raise TapError(
                f"tap at {self.hook_point} must see {num_tokens} tokens, got {record.num_tokens}",
                num_wanted=num_tokens,
                num_seen=record.num_tokens,
            )

    def _on_output(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        if self._record is None:
            return None
        # Decoder layers return the residual alone, or first in a tuple, depending on the release of transformers.
        if isinstance(output, tuple):
            return (self._pass(output[0]), *output[1:])
        return self._pass(output)

    def _on_input(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._record is None:
            return None
        if args:
            return (self._pass(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._pass(kwargs["hidden_states"])}

    def _pass(self, resid_BTD: Tensor) -> Tensor:
        record = self._record
        assert record is not None
        if resid_BTD.dim() != 3 or resid_BTD.shape[-1] != self.d_model:
            raise TapError(f"residual must have shape [B, T, {self.d_model}], got {list(resid_BTD.shape)}")
        if record.resid_BTD is not None:
            raise TapError(f"tap at {self.hook_point} ran twice in one step")
        record.num_tokens = resid_BTD.shape[0] * resid_BTD.shape[1]
        record.resid_BTD = resid_BTD
        if record.edit is None:
            return resid_BTD
        edited_BTD = record.edit(resid_BTD)
        if edited_BTD.shape != resid_BTD.shape or edited_BTD.dtype != resid_BTD.dtype:
            raise TapError(
                f"an edit must keep shape {list(resid_BTD.shape)} and {resid_BTD.dtype}, "
                f"got {list(edited_BTD.shape)} and {edited_BTD.dtype}"
            )
        record.edited_BTD = edited_BTD
        return edited_BTD


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The list of transformer blocks of a Llama-like causal LM; TapError if there is none."""
    layers = getattr(getattr(model, "model", None), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise TapError(f"{type(model).__name__} has no model.layers: only Llama-like decoders can be tapped")
    return layers
