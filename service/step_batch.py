"""Step records on their way to the metrics: what is counted token by token is counted for many steps at once.

A step of one stream takes a few milliseconds, and counting two dozen readings by bucket takes numpy as long for one
token as for a hundred.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from service.records import StepRecord

MOST_STEPS = 64
LONGEST_SECONDS = 0.2
"""What metrics are behind at most: whoever adds the first record has what waits taken after that time."""


class StepBatch:
    """Records that wait to be counted."""

    def __init__(self) -> None:
        self._records: list[StepRecord] = []

    def add(self, records: Sequence[StepRecord]) -> None:
        self._records.extend(records)

    @property
    def is_full(self) -> bool:
        """Whether as much waits as is worth counting at once."""
        return len(self._records) >= MOST_STEPS

    def take(self) -> list[StepRecord]:
        """All that waits, in order; the readings of all tokens stand in the last."""
        records, self._records = self._records, []
        return _merged(records) if len(records) > 1 else records


def _merged(records: Sequence[StepRecord]) -> list[StepRecord]:
    inputs = [record.inputs_NG for record in records if record.inputs_NG is not None]
    last = replace(
        records[-1],
        readings_NW=np.concatenate([record.readings_NW for record in records]),
        inputs_NG=np.concatenate(inputs) if inputs else None,
    )
    return [*(replace(record, readings_NW=record.readings_NW[:0], inputs_NG=None) for record in records[:-1]), last]
