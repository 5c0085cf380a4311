"""One token of many rows in shapes that never change: what a CUDA graph can record, and a processor can run as well.

Numbers that change from pass to pass - ids, slots, positions, latents - lie in tensors that stay where they are. A pass
holds as many rows as it was made for; those left over stand at the scratch position of slot 0, and nobody looks at what
they give. The pass is cut in two at the tap: what the hook saw is kept, and what the following blocks read may be
changed in between. The hook also counts the rows that are no padding, on the device: the count comes back with the
readings and proves that the tap is part of what ran.

Shape suffixes: B rows, D model width, V vocabulary, U latents read, k largest latents, P probes, W columns.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_runtime.cache_argument import cache_argument
from sae_runtime.fused_blocks import FusedBlocks, Places
from sae_runtime.probes import ProbeSet
from sae_runtime.sae import TokenReadings
from sae_runtime.static_reading import StaticReading
from sae_runtime.tap import Tap, TapRecord
from service.sampling import token_logprobs
from service.slot_cache import SlotCache


class Shape(NamedTuple):
    """What a step is made for."""

    num_rows: int
    num_latents: int
    num_top: int


@dataclass(frozen=True, slots=True)
class Machinery:
    """What all steps work with."""

    model: Any
    """transformers' *ForCausalLM."""
    tap: Tap
    cache: SlotCache
    """With a scratch position."""
    reading: StaticReading
    probes: ProbeSet | None
    largest_norm: float
    """Residuals that are longer are off scale."""
    fused: FusedBlocks | None
    """None computes as transformers does."""

    @property
    def num_bytes(self) -> int:
        """Of what is kept besides model, dictionary and slots."""
        return self.reading.num_bytes + (0 if self.fused is None else self.fused.num_bytes)


class StepResult(NamedTuple):
    """What one step gave for its rows, in fp32 on the host; fields as in `TokenStats` and `Draw`."""

    readings_NU: NDArray[np.float32]
    top_values_Nk: NDArray[np.float32]
    top_indices_Nk: NDArray[np.float32]
    l0_N: NDArray[np.float32]
    fvu_N: NDArray[np.float32]
    finite_N: NDArray[np.float32]
    """Without the probes: not everybody asked for them."""
    off_scale_N: NDArray[np.float32]
    probes_NP: NDArray[np.float32]
    norms_NP: NDArray[np.float32]
    tokens_B: NDArray[np.float32]
    """The most likely next tokens."""
    logprobs_B: NDArray[np.float32]
    finite_logits_B: NDArray[np.float32]
    num_tapped: int
    """Rows that the hook counted."""


_ONE_COLUMN = ("l0_N", "fvu_N", "finite_N", "off_scale_N", "tokens_B", "logprobs_B", "finite_logits_B")


class Beside(Protocol):
    """Where the dictionary reads while the following blocks go on."""

    def __enter__(self) -> object: ...

    def __exit__(self, *_: object) -> None: ...

    def join(self) -> None:
        """What comes after needs what was computed inside."""
        ...


class _InLine:
    """Nowhere else: one after the other."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def join(self) -> None:
        pass


class DecodeStep:
    """A pass over `shape.num_rows` rows, in two halves: `lower` up to and with the tap, `upper` the rest."""

    def __init__(self, machinery: Machinery, shape: Shape, device: torch.device) -> None:
        self.shape = shape
        self._m, self._device = machinery, device
        assert machinery.cache.scratch_position is not None, "the cache must have a scratch position"
        self._scratch: int = machinery.cache.scratch_position
        rows, pinned = shape.num_rows, device.type == "cuda"
        # One piece, so that one copy takes it to the device: ids, slots, positions, latents, and a count of 0.
        self._sent = torch.zeros(3 * rows + shape.num_latents + 1, dtype=torch.long, pin_memory=pinned)
        self._inputs = torch.zeros_like(self._sent, device=device)
        self._ids_B, self._slots_B, self._positions_B, self._latents_U, self._num_tapped_1 = torch.split(
            self._inputs, [rows, rows, rows, shape.num_latents, 1]
        )
        d_model, dtype = machinery.tap.d_model, machinery.model.dtype
        self.resid_BD = torch.zeros(rows, d_model, dtype=dtype, device=device)
        """The residuals as the tap saw them."""
        self.passed_on_BD = torch.zeros_like(self.resid_BD)
        """The same as the following blocks read them: to be changed between the halves where rows are steered."""
        self.logits_BV = torch.zeros(rows, machinery.model.config.vocab_size, device=device)
        num_probes = 0 if machinery.probes is None else len(machinery.probes.names)
        top = machinery.reading.top_limit(shape.num_top)
        self._widths = [shape.num_latents, top, top, 1, 1, 1, 1, num_probes, num_probes, 1, 1, 1, 1]
        self._outputs_BW = torch.zeros(rows, sum(self._widths), device=device)
        self._received_BW = torch.zeros(self._outputs_BW.shape, pin_memory=pinned)

    def fill(self, ids: Sequence[int], slots: Sequence[int], positions: Sequence[int], latents: Sequence[int]) -> None:
        """Say what the next pass reads. Rows that are left over become padding."""
        rows, sent = self.shape.num_rows, self._sent.numpy()
        sent[:] = 0
        sent[: len(ids)] = ids
        sent[rows : rows + len(slots)] = slots
        sent[2 * rows : 3 * rows] = self._scratch
        sent[2 * rows : 2 * rows + len(positions)] = positions
        sent[3 * rows : 3 * rows + len(latents)] = latents

    def send(self) -> None:
        """Take what was filled in to the device."""
        self._inputs.copy_(self._sent, non_blocking=True)

    def receive(self) -> None:
        """Take what came out to the host."""
        self._received_BW.copy_(self._outputs_BW, non_blocking=True)

    def run(self, cut: Callable[[], None], beside: Beside | None = None) -> None:
        """The whole pass; `cut` is called at the tap, between the halves."""
        m, beside = self._m, beside or _InLine()
        readings: list[TokenReadings] = []

        def at_tap(resid_B1D: Tensor) -> Tensor:
            self._num_tapped_1 += (self._positions_B != self._scratch).sum()
            self.resid_BD.copy_(resid_B1D[:, 0])
            self.passed_on_BD.copy_(self.resid_BD)
            cut()
            with beside:
                readings.append(m.reading.read_tokens(self.resid_BD, self._latents_U, self.shape.num_top))
            return self.passed_on_BD[:, None]

        probing: AbstractContextManager[Sequence[TapRecord | None]] = nullcontext(())
        if m.probes is not None:
            probing = m.probes.step(self.shape.num_rows)
        with m.tap.step(self.shape.num_rows, at_tap) as record, probing as probed, self._blocks() as mask:
            logits_B1V = m.model(
                input_ids=self._ids_B[:, None],
                position_ids=self._positions_B[:, None],
                attention_mask=mask,
                use_cache=True,
                **cache_argument(m.cache),
            ).logits
        self.logits_BV.copy_(logits_B1V[:, 0])
        nothing_B0 = self.logits_BV[:, :0]
        probes_BP = nothing_B0 if m.probes is None else m.probes.read(probed, record)
        norms_BP = nothing_B0 if m.probes is None else m.probes.norms(probed, record)
        beside.join()
        self._pack(readings[0], probes_BP, norms_BP)

    @contextmanager
    def _blocks(self) -> Iterator[Tensor]:
        """The way blocks compute, and the attention mask they need."""
        m = self._m
        if m.fused is None:
            yield m.cache.begin_fixed(self._slots_B, self._positions_B)
            return
        is_padding_B = self._positions_B == self._scratch
        lengths_B = torch.where(is_padding_B, 0, self._positions_B + 1)
        places = Places(m.cache.keys, m.cache.values, self._slots_B, self._positions_B, lengths_B)
        with m.fused.decoding(places):
            # Lengths take a mask's place; transformers leaves one of four dimensions as it is.
            yield is_padding_B[:, None, None, None]

    def _pack(self, read: TokenReadings, probes_BP: Tensor, norms_BP: Tensor) -> None:
        """Everything that the host is to know, in one piece."""
        finite_B = self.passed_on_BD.isfinite().all(-1) & read.fvu_T.isfinite()
        off_scale_B = self._positions_B == 0
        if self._m.largest_norm < math.inf:
            norm_B = self.resid_BD.to(torch.float32).norm(dim=-1)
            off_scale_B |= norm_B > self._m.largest_norm
        tokens_B = self.logits_BV.argmax(-1)
        columns = [
            *read,
            finite_B,
            off_scale_B,
            probes_BP,
            norms_BP,
            tokens_B,
            token_logprobs(self.logits_BV, tokens_B),
            self.logits_BV.isfinite().all(-1),
            self._num_tapped_1.expand(self.shape.num_rows),
        ]
        torch.cat([c.to(torch.float32).reshape(self.shape.num_rows, -1) for c in columns], dim=1, out=self._outputs_BW)

    def result(self, num_rows: int) -> StepResult:
        """What the pass gave for its first rows, once the device has done it."""
        ends = np.cumsum(self._widths)
        parts = np.split(self._received_BW.numpy()[:num_rows].copy(), ends[:-1], axis=1)
        columns: dict[str, Any] = dict(zip(StepResult._fields, parts, strict=True))
        for name in _ONE_COLUMN:
            columns[name] = columns[name][:, 0]
        return StepResult(**columns | {"num_tapped": int(columns["num_tapped"][0, 0])})
