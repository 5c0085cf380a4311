"""What is read of the residuals of a pass, and how they are steered: on the device that they are on, or on the host.

Two ways of one contract. `DeviceReader` computes with torch, wherever the model is. `HostReader` is for models that the
native kernels compute: there all is on the host anyway, and for few tokens torch's calls would take longer than what
they compute, and wake threads that stand in the kernels' way.

Shape suffixes: B rows, T tokens per row, N = B * T, D model width, U latents read in this pass, P probes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_runtime.latent_reader import LatentReader
from sae_runtime.native_blocks import NativeBlocks
from sae_runtime.native_sae import HostReadings, NativeSAE
from sae_runtime.native_steering import NativeSteering
from sae_runtime.steering import Steering, relative_moves, steer_rows
from sae_runtime.tap import TapRecord
from service.pass_output import RowInput, SteeredRow, TokenStats


class DeviceReader:
    """With torch."""

    def __init__(self, sae: LatentReader, largest_norm: float) -> None:
        """`largest_norm`: residuals that are longer are off scale."""
        self._sae, self.largest_norm = sae, largest_norm
        self._latents = _LatentTensor(sae.device)

    def steer(self, rows: Sequence[RowInput], steered_rows: Sequence[int], resid_BTD: Tensor) -> Tensor:
        """The residuals as the following blocks are to read them: those of `steered_rows` steered as their requests
        ask, the others bit for bit as they are."""
        edited_BTD = resid_BTD.clone()
        edited_BTD[steered_rows] = steered(rows, steered_rows, resid_BTD[steered_rows])
        return edited_BTD

    def read(
        self,
        record: TapRecord,
        rows: Sequence[RowInput],
        latents: Sequence[int],
        num_top: int,
        probed: Sequence[Tensor],
    ) -> TokenStats:
        """All residuals encoded. `probed` are values and norms of the probes [N, P], or nothing."""
        resid_ND, read_on_ND = _seen(record)
        seen = self._sae.read_tokens(resid_ND, self._latents.of(latents), num_top)
        finite_N = read_on_ND.isfinite().all(-1) & seen.fvu_T.isfinite()
        nothing_N0 = read_on_ND.new_empty((len(read_on_ND), 0))
        probes_NP, norms_NP = probed or (nothing_N0, nothing_N0)
        finite_N &= probes_NP.isfinite().all(-1)
        is_first_N = torch.from_numpy(_is_first(rows)).to(resid_ND.device)
        off_scale_N = is_first_N | (resid_ND.to(torch.float32).norm(dim=-1) > self.largest_norm)
        return TokenStats(
            seen.readings_TW, seen.top_values_TN, seen.top_indices_TN, seen.l0_T, seen.fvu_T, finite_N, off_scale_N,
            probes_NP, norms_NP,
        )  # fmt: skip

    def account(
        self,
        rows: Sequence[RowInput],
        steered_rows: Sequence[int],
        before_BTD: Tensor,
        after_BTD: Tensor,
        latents: Sequence[int],
    ) -> dict[int, SteeredRow]:
        """What steering did to each of `steered_rows`; the residuals are those of all rows."""
        before_BTD, after_BTD = before_BTD[list(steered_rows)], after_BTD[list(steered_rows)]
        readings_NU = self._sae.read(after_BTD.flatten(0, 1), self._latents.of(latents))
        moves_BT = relative_moves(before_BTD, after_BTD)
        covered_BT = torch.tensor(_covered(rows, steered_rows), device=after_BTD.device)
        made = zip(readings_NU.view(*after_BTD.shape[:2], -1), moves_BT, covered_BT, strict=True)
        return {b: SteeredRow(*row) for b, row in zip(steered_rows, made, strict=True)}


class HostReader(DeviceReader):
    """With the native kernels, in arrays."""

    def __init__(self, sae: LatentReader, largest_norm: float, blocks: NativeBlocks, d_model: int) -> None:
        super().__init__(sae, largest_norm)
        self._blocks = blocks
        self._steering = NativeSteering(blocks.library, sae) if NativeSteering.takes(sae, d_model) else None

    def steer(self, rows: Sequence[RowInput], steered_rows: Sequence[int], resid_BTD: Tensor) -> Tensor:
        if self._steering is not None:
            return self._steering.steer([(b, *asked) for b, asked in _asked(rows, steered_rows)], resid_BTD)
        return super().steer(rows, steered_rows, resid_BTD)

    def read(
        self,
        record: TapRecord,
        rows: Sequence[RowInput],
        latents: Sequence[int],
        num_top: int,
        probed: Sequence[Tensor],
    ) -> TokenStats:
        resid_ND, read_on_ND = _seen(record)
        seen = self._readings(resid_ND, latents, num_top)
        read_on_N = seen.norms_T if read_on_ND is resid_ND else self._blocks.norms(read_on_ND)
        finite_N = np.isfinite(read_on_N) & np.isfinite(seen.fvu_T)
        nothing_N0 = np.empty((len(resid_ND), 0), dtype=np.float32)
        probes_NP, norms_NP = [part.numpy() for part in probed] or (nothing_N0, nothing_N0)
        if probes_NP.size:
            finite_N &= np.isfinite(probes_NP).all(-1)
        off_scale_N = _is_first(rows) | (seen.norms_T > self.largest_norm)
        return TokenStats(*seen[:5], finite_N, off_scale_N, probes_NP, norms_NP)

    def _readings(self, resid_ND: Tensor, latents: Sequence[int], num_top: int) -> HostReadings:
        latents_U = self._latents.of(latents)
        if isinstance(self._sae, NativeSAE) and self._sae.reads_on_host(resid_ND):
            return self._sae.read_on_host(resid_ND, latents_U.numpy(), num_top)
        seen = self._sae.read_tokens(resid_ND, latents_U, num_top)
        return HostReadings._make([*(part.numpy() for part in seen), self._blocks.norms(resid_ND)])

    def account(
        self,
        rows: Sequence[RowInput],
        steered_rows: Sequence[int],
        before_BTD: Tensor,
        after_BTD: Tensor,
        latents: Sequence[int],
    ) -> dict[int, SteeredRow]:
        before_ND, after_ND = _lines(before_BTD, steered_rows), _lines(after_BTD, steered_rows)
        shape = len(steered_rows), after_BTD.shape[1], len(latents)
        readings_BTU = self._sae.read(after_ND, self._latents.of(latents)).numpy().reshape(shape)
        moves_BT = self._blocks.moves(before_ND, after_ND).reshape(shape[:2])
        made = zip(readings_BTU, moves_BT, np.array(_covered(rows, steered_rows)), strict=True)
        return {b: SteeredRow(*row) for b, row in zip(steered_rows, made, strict=True)}


def _lines(resid_BTD: Tensor, chosen: Sequence[int]) -> Tensor:
    """The tokens of these rows, one behind the other: [N, D] in bf16."""
    if len(chosen) == len(resid_BTD):
        return resid_BTD.flatten(0, 1)
    # numpy does not know bf16, and to pick is to copy bits.
    return torch.from_numpy(resid_BTD.view(torch.int16).numpy()[list(chosen)]).view(torch.bfloat16).flatten(0, 1)


def steered(rows: Sequence[RowInput], steered_rows: Sequence[int], resid_BTD: Tensor) -> Tensor:
    """The residuals of `steered_rows`, each steered as its request asks."""
    return steer_rows([asked for _, asked in _asked(rows, steered_rows)], resid_BTD)


def _asked(rows: Sequence[RowInput], steered_rows: Sequence[int]) -> list[tuple[int, tuple[Steering, int]]]:
    """By row, its steering and where it starts."""
    asked = [(b, rows[b].steering, rows[b].start) for b in steered_rows]
    return [(b, (steering, start)) for b, steering, start in asked if steering is not None]


def _covered(rows: Sequence[RowInput], steered_rows: Sequence[int]) -> list[list[bool]]:
    """For each of these rows and of its tokens, whether it is steered."""
    return [
        [steering.covers(position, position + 1) for position in range(start, start + len(rows[b].ids))]
        for b, (steering, start) in _asked(rows, steered_rows)
    ]


class _LatentTensor:
    """Latents as a tensor, [U] long: mostly that of the pass before."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last: Sequence[int] = ()
        self._last_U = torch.empty(0, dtype=torch.long, device=device)

    def of(self, latents: Sequence[int]) -> Tensor:
        if self._last is not latents:
            self._last, self._last_U = latents, torch.tensor(latents, dtype=torch.long, device=self._device)
        return self._last_U


def _seen(record: TapRecord) -> tuple[Tensor, Tensor]:
    """The residuals of N tokens as they were tapped, and as the following blocks read them: the same tensor where
    nothing was edited."""
    assert record.resid_BTD is not None
    resid_ND = record.resid_BTD.flatten(0, 1)
    return resid_ND, resid_ND if record.edited_BTD is None else record.edited_BTD.flatten(0, 1)


def _is_first(rows: Sequence[RowInput]) -> NDArray[np.bool_]:
    """Which of the N tokens stand at position 0."""
    is_first_N = np.zeros(sum(len(row.ids) for row in rows), dtype=np.bool_)
    for b, row in enumerate(rows):
        if row.start == 0:
            is_first_N[b * len(row.ids)] = True
    return is_first_N
