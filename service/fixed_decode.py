"""Decode passes of fixed shapes: which shape a pass takes, and who runs it.

Rows, latents and largest latents are rounded up, so that few shapes serve all passes; each is prepared when first
needed. On a GPU a shape is recorded as CUDA graphs (`cuda_graphs`); without, it is run as it is, which is slower than
a pass of the very shape, and made for tests.
"""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sae_runtime.errors import TapError
from service.config import TOP_FEATURES_LIMIT
from service.decode_step import DecodeStep, Machinery, Shape, StepResult

logger = logging.getLogger(__name__)

Play = Callable[[Callable[[], None] | None], None]
"""Runs a filled step to its end; calls its argument, if there is one, between the halves."""

_FEWEST_LATENTS = 64
_MOST_LATENTS = 4096
"""More are read the usual way: their shapes would hardly be used twice."""


class DecodedRows(NamedTuple):
    """What a pass gave. The tensors hold it until the next pass."""

    result: StepResult
    resid_BD: Tensor
    passed_on_BD: Tensor
    logits_BV: Tensor


class FixedDecode:
    """Runs decode passes in fixed shapes."""

    def __init__(
        self, machinery: Machinery, device: torch.device, *, record: Callable[[DecodeStep], Play] | None = None
    ) -> None:
        """Without `record` steps are run as they are."""
        self.machinery, self._device = machinery, device
        self._record = record or _as_it_is
        self._steps: dict[Shape, tuple[DecodeStep, Play]] = {}
        self.way = "fixed shapes" if record is None else "CUDA graphs"
        """How passes are run, in words."""
        self._has_failed = False

    @staticmethod
    def row_counts(most: int) -> list[int]:
        """The numbers of rows that passes over up to `most` rows are rounded to."""
        return [1 << bits for bits in range((most - 1).bit_length() + 1)]

    def prepare(self, num_rows: int) -> None:
        """Get ready for passes over up to so many rows that read the usual number of latents."""
        for rounded in self.row_counts(num_rows):
            self.takes(rounded, 1, 0)

    def takes(self, num_rows: int, num_latents: int, num_top: int) -> bool:
        """Whether passes of that size can be run here. The first time this prepares one; where that fails, the reason
        is logged, and no pass is run here any more."""
        if self._has_failed or num_latents > _MOST_LATENTS or num_top > TOP_FEATURES_LIMIT:
            return False
        shape = self._shape(num_rows, num_latents, num_top)
        if shape not in self._steps:
            try:
                self._steps[shape] = self._prepared(shape)
            except Exception:
                logger.exception("decode passes are run eagerly from now on: %s could not be recorded", shape)
                self._has_failed, self.way = True, "transformers (recording CUDA graphs failed, see the log)"
        return not self._has_failed

    def decode(
        self,
        ids: Sequence[int],
        slots: Sequence[int],
        positions: Sequence[int],
        latents: Sequence[int],
        num_top: int,
        edit: Callable[[Tensor, Tensor], None] | None,
    ) -> DecodedRows:
        """One token of each row, in a size that `takes` was asked about.

        Args:
            edit: gets the residuals [B, D] as the tap saw them, and as the following blocks will read them: to be
                written to where rows are steered.

        Raises:
            TapError: the hook did not count every row.
        """
        num_rows = len(ids)
        step, play = self._steps[self._shape(num_rows, len(latents), num_top)]
        step.fill(ids, slots, positions, latents)
        seen_BD, passed_on_BD = step.resid_BD[:num_rows], step.passed_on_BD[:num_rows]
        with torch.inference_mode():
            play(None if edit is None else lambda: edit(seen_BD, passed_on_BD))
        result = step.result(num_rows)
        if result.num_tapped != num_rows:
            raise TapError(
                f"the tap in a recorded pass must count {num_rows} tokens, got {result.num_tapped}",
                num_wanted=num_rows,
                num_seen=result.num_tapped,
            )
        return DecodedRows(result, seen_BD, passed_on_BD, step.logits_BV[:num_rows])

    def _prepared(self, shape: Shape) -> tuple[DecodeStep, Play]:
        with torch.inference_mode():
            step = DecodeStep(self.machinery, shape, self._device)
            step.fill([], [], [], [])
            return step, self._record(step)

    def _shape(self, num_rows: int, num_latents: int, num_top: int) -> Shape:
        if num_latents and self.machinery.reading.has_latents:
            num_latents = max(_FEWEST_LATENTS, 1 << (num_latents - 1).bit_length())
        else:
            num_latents = 0
        return Shape(self.row_counts(num_rows)[-1], num_latents, TOP_FEATURES_LIMIT if num_top else 0)


def _as_it_is(step: DecodeStep) -> Play:
    def play(between: Callable[[], None] | None) -> None:
        step.send()
        step.run(between or (lambda: None))
        step.receive()

    return play
