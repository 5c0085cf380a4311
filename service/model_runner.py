"""Runs forward passes: ids in, logits, readings and probes out. No other module of the service handles activations.

Owns the model, the key-value slots, the tap and the dictionary, on one thread. Knows nothing of queues, text or
clients. A pass is one prompt chunk of one row (`prefill`) or one token of many rows (`decode`).

Shape suffixes: B rows, T tokens per row, N = B * T, D model width, V vocabulary, U latents read in this pass, P probes.
"""

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

from monitors.components import OFF_SCALE_NORMS
from sae_runtime.cache_argument import cache_argument
from sae_runtime.language_model import LanguageModel
from sae_runtime.last_position import last_position
from sae_runtime.latent_reader import LatentReader
from sae_runtime.probes import ProbeSet
from sae_runtime.tap import Tap, TapRecord
from service.fixed_decode import DecodedRows, FixedDecode
from service.pass_output import Fetched, PassOutput, RowInput, SteeredRow, TokenStats, fetch
from service.pass_readers import DeviceReader, HostReader, steered
from service.sampling import Draw
from service.slot_cache import SlotCache


class ModelRunner:
    """A model, its slots, its tap, its dictionary and its probes."""

    def __init__(
        self,
        language_model: LanguageModel,
        sae: LatentReader,
        tap: Tap,
        cache: SlotCache,
        *,
        resid_norm_mean: float | None = None,
        probes: ProbeSet | None = None,
        fixed: FixedDecode | None = None,
    ) -> None:
        """
        Args:
            sae: the dictionary; `NoDictionary` where there is none, and probes alone are read.
            resid_norm_mean: the dictionary's usual ||residual||; without it only position 0 counts as off scale.
            probes: those that monitors may ask for; made with `tap` as the shared one.
            fixed: runs decode passes in shapes that are known beforehand; None runs them as any others.
        """
        self.language_model = language_model
        self.sae = sae
        self.tap = tap
        self.cache = cache
        self.probes = probes
        self.fixed = fixed
        self._device = language_model.device
        limit, blocks = largest_norm(resid_norm_mean), language_model.blocks
        self.reader = DeviceReader(sae, limit)
        if blocks is not None:
            self.reader = HostReader(sae, limit, blocks, tap.d_model)

    @property
    def probe_names(self) -> tuple[str, ...]:
        """What the columns of `TokenStats.probes_NP` are."""
        return () if self.probes is None else self.probes.names

    @property
    def passes(self) -> str:
        """How they are run, in words; `CUDA graphs` are those of decode passes."""
        if self.language_model.blocks is not None:
            return "native kernels"
        return "transformers" if self.fixed is None else self.fixed.way

    @property
    def reads_evenly(self) -> bool:
        """Whether a pass takes about as long as it has tokens, whatever it is made of: as native kernels compute."""
        return self.language_model.blocks is not None

    def forward(
        self,
        rows: Sequence[RowInput],
        latents: Sequence[int],
        *,
        num_top: int = 0,
        all_logits: bool = False,
        with_probes: bool = False,
        with_logprobs: bool = False,
    ) -> PassOutput:
        """One pass over rows of equally many tokens.

        Args:
            rows: what to read, each row into its own slot.
            latents: U latents to read at every token.
            num_top: how many of the largest latents to report besides.
            all_logits: give logits for every token, not for each row's last alone.
            with_probes: compute the probes, all of them: it is one small product for each residual they read.
            with_logprobs: give those of the most likely tokens, where a pass finds these.

        Raises:
            TapError: a tap did not see every token. Whatever torch raises is passed on; slots may then hold part
            of the pass, which a repetition overwrites.
        """
        # By numpy, which is faster with lists than torch.
        ids_BT = torch.from_numpy(np.array([row.ids for row in rows], dtype=np.int64)).to(self._device)
        steered_rows = [b for b, row in enumerate(rows) if self._is_steered(row)]

        def edit(resid_BTD: Tensor) -> Tensor:
            return self.reader.steer(rows, steered_rows, resid_BTD)

        probes = self.probes if with_probes else None
        probing: AbstractContextManager[Sequence[TapRecord | None]] = nullcontext(())
        if probes is not None:
            probing = probes.step(ids_BT.numel())
        tapping = self.tap.step(ids_BT.numel(), edit if steered_rows else None)
        with torch.inference_mode():
            with tapping as record, probing as probed:
                logits_BTV = self.logits(ids_BT, rows, all_logits=all_logits)
            started = time.perf_counter()
            values_and_norms = () if probes is None else (probes.read(probed, record), probes.norms(probed, record))
            stats = self.reader.read(record, rows, latents, num_top, values_and_norms)
            found = self._account(rows, steered_rows, record.resid_BTD, record.edited_BTD, latents)
            encode_seconds = time.perf_counter() - started
            greedy = None
            if self.language_model.blocks is not None:
                likely = self.language_model.blocks.most_likely(logits_BTV[:, -1], with_logprobs=with_logprobs)
                greedy = Draw(*likely)
        return PassOutput(logits_BTV, stats, found, record.num_tokens, encode_seconds, greedy)

    def logits(self, ids_BT: Tensor, rows: Sequence[RowInput], *, all_logits: bool) -> Tensor:
        """Run the model over `ids_BT`, the ids of `rows`: fp32 [B, T, V], T being 1 without `all_logits`."""
        slots, starts = [row.slot for row in rows], [row.start for row in rows]
        blocks = self.language_model.blocks
        if blocks is not None:
            return blocks.logits(ids_BT, self.cache, slots, starts, all_logits=all_logits)
        positions_BT, mask_B1TL = self.cache.begin(slots, starts, ids_BT.shape[1])
        made = self.language_model.model(
            input_ids=ids_BT,
            position_ids=positions_BT,
            attention_mask=mask_B1TL,
            use_cache=True,
            logits_to_keep=0 if all_logits else last_position(ids_BT),
            **cache_argument(self.cache),
        )
        return made.logits.to(torch.float32)

    def decode(
        self,
        rows: Sequence[RowInput],
        latents: Sequence[int],
        *,
        num_top: int = 0,
        with_probes: bool = False,
        with_logprobs: bool = False,
    ) -> PassOutput:
        """One pass over one token of each row: `forward`, or its like in a fixed shape where there is one."""
        fixed = self.fixed
        if fixed is None or not fixed.takes(len(rows), len(latents), num_top):
            return self.forward(rows, latents, num_top=num_top, with_probes=with_probes, with_logprobs=with_logprobs)
        steered_rows = [b for b, row in enumerate(rows) if self._is_steered(row)]

        def edit(resid_BD: Tensor, passed_on_BD: Tensor) -> None:
            passed_on_BD[steered_rows] = steered(rows, steered_rows, resid_BD[steered_rows, None])[:, 0]

        done = fixed.decode(
            [row.ids[0] for row in rows],
            [row.slot for row in rows],
            [row.start for row in rows],
            latents,
            num_top,
            edit if steered_rows else None,
        )
        return self._output_of(done, rows, steered_rows, latents, with_probes)

    def _output_of(
        self,
        done: DecodedRows,
        rows: Sequence[RowInput],
        steered_rows: list[int],
        latents: Sequence[int],
        with_probes: bool,
    ) -> PassOutput:
        result, shown = done.result, slice(None if with_probes else 0)
        finite_N = result.finite_N.astype(bool) & np.isfinite(result.probes_NP[:, shown]).all(-1)
        stats = TokenStats(
            result.readings_NU[:, : len(latents)],
            result.top_values_Nk,
            result.top_indices_Nk,
            result.l0_N,
            result.fvu_N,
            finite_N.astype(np.float32),
            result.off_scale_N,
            result.probes_NP[:, shown],
            result.norms_NP[:, shown],
        )
        greedy = Draw(result.tokens_B, result.logprobs_B, result.finite_logits_B)
        with torch.inference_mode():
            found = self._account(rows, steered_rows, done.resid_BD[:, None], done.passed_on_BD[:, None], latents)
        return PassOutput(done.logits_BV[:, None], stats, found, result.num_tapped, None, greedy)

    @staticmethod
    def fetch(output: PassOutput, extra: Sequence[Tensor]) -> Fetched:
        """Copy a pass's readings, and `extra` tensors, to the host in one piece, as fp32.

        Token ids, latents and counts are far below 2^24, so fp32 holds them exactly.
        """
        return fetch(output, extra)

    def warm_up(self) -> None:
        """Run a prompt and a token through slot 0, so that the first request does not pay for first times."""
        latents = [0] if self.sae.num_latents else []
        self.forward([RowInput(0, 0, [0] * 8)], latents, num_top=len(latents), with_probes=True)
        self.forward([RowInput(0, 8, [0])], latents, num_top=len(latents), with_probes=True)
        if self.fixed is not None:
            self.fixed.prepare(self.cache.num_slots)
        self.release(0, 9)

    def release(self, slot: int, num_used: int) -> None:
        """Make a slot ready for its next tenant."""
        with torch.inference_mode():
            self.cache.scrub(slot, num_used)

    def move(self, source: int, target: int, num_used: int) -> None:
        """Take a row to a slot that was released, and release its own."""
        with torch.inference_mode():
            self.cache.move(source, target, num_used)

    @staticmethod
    def _is_steered(row: RowInput) -> bool:
        return row.steering is not None and row.steering.covers(row.start, row.start + len(row.ids))

    def _account(
        self,
        rows: Sequence[RowInput],
        steered_rows: Sequence[int],
        before_BTD: Tensor | None,
        after_BTD: Tensor | None,
        latents: Sequence[int],
    ) -> dict[int, SteeredRow]:
        """What steering did, its rows read once more as they were left."""
        if not steered_rows:
            return {}
        assert before_BTD is not None
        assert after_BTD is not None
        return self.reader.account(rows, steered_rows, before_BTD, after_BTD, latents)


def largest_norm(resid_norm_mean: float | None) -> float:
    """Residuals that are longer are off scale; infinite where nothing is known of what is usual."""
    return math.inf if resid_norm_mean is None else OFF_SCALE_NORMS * resid_norm_mean
