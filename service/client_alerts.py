"""The server's alert journal, as the client hands it on. Conventions as in `client_events`. Knows nothing of gRPC."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from service.client_events import Alert

Verdict = Literal["unspecified", "true", "false", "unsure"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledgement:
    """Somebody took notice of an alert."""

    by: str
    note: str
    time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """Somebody judged an alert."""

    verdict: Verdict
    reviewer: str
    note: str
    time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalAlert:
    """An alert as the journal keeps it."""

    alert: Alert
    journal: str
    seq: int
    hash: str
    """sha256 of the entry's line, which the next entry names."""
    pack_version: str
    action: str
    cleared_id: str
    """For one that cleared, the id of the alert that it ends."""
    generated: bool
    """Whether the model wrote the text."""
    server_version: str
    has_text: bool
    acknowledgements: tuple[Acknowledgement, ...]
    reviews: tuple[Review, ...]
    """Oldest first: the last one counts."""
    entry: str
    """The entry's line, with all that is kept; from `get_alert` alone. `monitors.journal_entry.parsed` reads it."""

    @property
    def review(self) -> Review | None:
        """The one that counts."""
        return self.reviews[-1] if self.reviews else None


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertPage:
    """Some of the alerts that were asked for."""

    alerts: tuple[JournalAlert, ...]
    """Newest first."""
    next_page_token: str
    """Asks for the next page; empty if there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorPrecision:
    """What reviews say of one monitor, as one pack defines it."""

    monitor: str
    pack_sha256: str
    num_true: int
    num_false: int
    num_unsure: int
    precision: float | None
    """None if no verdict was true or false."""
    interval_low: float
    interval_high: float
    """Wilson's 95 % interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesComparison:
    """A feature, probe or score over the span of a replayed alert."""

    name: str
    kind: str
    num_compared: int
    largest_difference: float
    scale: float
    """The largest recorded value, by magnitude."""
    within_tolerance: bool
    num_missing: int = 0
    """Positions at which only one of the two has a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayComparison:
    """One replay against the record."""

    reproduced: bool
    tolerance: float
    num_tokens: int
    first_difference: int | None
    """Position of the first token that is another; None if all are the same."""
    raised_again: bool
    series: tuple[SeriesComparison, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertReplay:
    """What came of doing an alert's request again."""

    alert_id: str
    differences: tuple[str, ...]
    """What is not as it was when the alert was raised."""
    read: ReplayComparison
    """The recorded tokens read again."""
    generated: ReplayComparison | None
    """The reply written again; None for an alert in a prompt."""
