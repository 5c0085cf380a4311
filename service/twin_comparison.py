"""Compares a steered reply with its unsteered twin while both come, and makes one end of their two.

Readings taken before steering are of what the model computed up to the hook point: they differ between the two only
where the words do. What the following blocks saw is told beside them.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from service.request import (
    BaselineEvent,
    Event,
    FeatureDifference,
    FinishedEvent,
    Request,
    TokenEvent,
    TwinReport,
)


class TwinComparison:
    """One steered request and its twin."""

    def __init__(self, request: Request) -> None:
        self._watched, self._num_prompt = request.watched, len(request.prompt_ids)
        self._steered, self._baseline = _Side(len(request.watched)), _Side(len(request.watched))

    def take(self, events: Sequence[Event]) -> list[Event]:
        """What to send of these events: all but the ends, and once both are there the one end with the report.

        Those of the reply come before those of its twin, so that tokens of each share messages.
        """
        own = [event for event in events if not isinstance(event, BaselineEvent)]
        others = [event for event in events if isinstance(event, BaselineEvent)]
        sent: list[Event] = [event for event in own if self._steered.passes_on(event)]
        sent += [event for event in others if self._baseline.passes_on(event.event)]
        end, baseline = self._steered.end, self._baseline.end
        if end is not None and baseline is not None:
            sent.append(replace(end, twin=self._report(baseline)))
        return sent

    def _report(self, baseline: FinishedEvent) -> TwinReport:
        steered, other = self._steered, self._baseline
        columns = zip(
            steered.before.means(), other.before.means(), steered.before.peaks(), other.before.peaks(),
            steered.after.means(), steered.after.peaks(), strict=True,
        )  # fmt: skip
        return TwinReport(
            baseline=baseline,
            features=[FeatureDifference(f, *of_one) for f, of_one in zip(self._watched, columns, strict=True)],
            first_difference_position=self._first_difference(),
            text=steered.text,
            baseline_text=other.text,
        )

    def _first_difference(self) -> int | None:
        """By position: what a policy withheld from either leaves a gap in its tokens, and is not compared."""
        ids, others = self._steered.ids, self._baseline.ids
        found = [position for position in ids.keys() & others.keys() if ids[position] != others[position]]
        if self._steered.num_generated != self._baseline.num_generated:
            found.append(self._num_prompt + min(self._steered.num_generated, self._baseline.num_generated))
        return min(found, default=None)


class _Readings:
    """Sums over tokens of W readings."""

    def __init__(self, num_watched: int) -> None:
        self._num_tokens = 0
        self._sum_W = np.zeros(num_watched)
        self._peak_W = np.full(num_watched, -np.inf)

    def add(self, readings: Sequence[float]) -> None:
        readings_W = np.asarray(readings, dtype=np.float64)
        self._num_tokens += 1
        self._sum_W += readings_W
        self._peak_W = np.maximum(self._peak_W, readings_W)

    def means(self) -> list[float | None]:
        return [total / self._num_tokens if self._num_tokens else None for total in self._sum_W.tolist()]

    def peaks(self) -> list[float | None]:
        return [peak if self._num_tokens else None for peak in self._peak_W.tolist()]


class _Side:
    """One of the two replies."""

    def __init__(self, num_watched: int) -> None:
        self.before, self.after = _Readings(num_watched), _Readings(num_watched)
        self.ids: dict[int, int] = {}
        """By position."""
        self.end: FinishedEvent | None = None
        self._texts: list[str] = []

    @property
    def num_generated(self) -> int:
        """Tokens of the whole reply, withheld ones too; 0 before its end."""
        return 0 if self.end is None else self.end.completion_tokens

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def passes_on(self, event: Event) -> bool:
        """Take note of an event; whether it is sent as it is."""
        if isinstance(event, FinishedEvent):
            self.end = event
            return False
        if isinstance(event, TokenEvent) and not event.is_prompt:
            self._take(event)
        return True

    def _take(self, token: TokenEvent) -> None:
        self.ids[token.index] = token.id
        self._texts.append(token.text)
        if not token.off_scale:
            self.before.add(token.readings)
            self.after.add(token.steered_readings or token.readings)
