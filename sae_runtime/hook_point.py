"""Names of places in the residual stream, and the translation between the conventions in use.

`layers.15.output` is the output of block 15 (counting from 0), the 16th block. The same tensor is
`hidden_states[16]` in transformers, `layers.16.input`, and in TransformerLens words
`blocks.15.hook_resid_post` and `blocks.16.hook_resid_pre`.
"""

import re
from dataclasses import dataclass
from typing import Literal

Side = Literal["input", "output"]

_OWN = re.compile(r"layers\.(\d+)\.(input|output)")
_TRANSFORMER_LENS = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")


@dataclass(frozen=True, slots=True)
class HookPoint:
    """One side of one transformer block; `layer` counts from 0."""

    layer: int
    side: Side = "output"

    def __post_init__(self) -> None:
        if self.layer < 0:
            raise ValueError(f"hook point layer must be 0 or more, got {self.layer}")
        if self.side not in ("input", "output"):
            raise ValueError(f"hook point side must be 'input' or 'output', got {self.side!r}")

    @classmethod
    def parse(cls, text: str) -> "HookPoint":
        """Read `layers.15.output` or `blocks.15.hook_resid_post`; ValueError for anything else."""
        if match := _OWN.fullmatch(text):
            return cls(int(match[1]), "input" if match[2] == "input" else "output")
        if match := _TRANSFORMER_LENS.fullmatch(text):
            return cls(int(match[1]), "input" if match[2] == "pre" else "output")
        raise ValueError(f"hook point must look like 'layers.15.output' or 'blocks.15.hook_resid_post', got {text!r}")

    @property
    def hidden_state_index(self) -> int:
        """Index into transformers' `hidden_states`. (The last one is normed there, so it is not a residual.)"""
        return self.layer + (self.side == "output")

    def is_same_residual(self, other: "HookPoint") -> bool:
        """True for two names of one tensor: a block's output is the next block's input."""
        return self.hidden_state_index == other.hidden_state_index

    def __str__(self) -> str:
        return f"layers.{self.layer}.{self.side}"
