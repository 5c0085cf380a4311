"""What the client makes of a whole call: the events of a generation gathered into a `Reply`, and a `ScoreResult`.

Fields are named as those of `service.client_events`. Knows nothing of gRPC.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from service.client_catalog import ModelInfo, SaeInfo, WatchedFeature
from service.client_events import (
    Alert,
    Baseline,
    Event,
    Finished,
    MonitorSummary,
    Started,
    SteeringReport,
    Token,
    Usage,
)
from service.client_guards import NO_GUARD, ReconstructionGuard
from service.client_monitors import Monitor


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreResult:
    """What was read in an existing text."""

    request_id: str
    watched: tuple[WatchedFeature, ...]
    tokens: tuple[Token, ...]
    monitors: tuple[MonitorSummary, ...]
    alerts: tuple[Alert, ...]
    usage: Usage
    steering: SteeringReport | None
    model: ModelInfo
    sae: SaeInfo | None
    """None if the model is served without a dictionary."""
    monitor_definitions: tuple[Monitor, ...] = ()
    """The monitors that ran, with their thresholds."""
    reconstruction_guard: ReconstructionGuard = NO_GUARD
    off_distribution_tokens: int | None = None
    """Tokens that the dictionary does not describe; None without a guard."""

    def readings(self, feature: str | int) -> list[float]:
        """A watched feature's reading at every token, by name or latent."""
        return [token.reading(feature) for token in self.tokens]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole generation."""

    started: Started
    tokens: tuple[Token, ...]
    """Generated tokens."""
    prompt: tuple[Token, ...]
    """Prompt tokens, if they were asked for."""
    alerts: tuple[Alert, ...]
    finished: Finished
    baseline: "Reply | None" = None
    """The unsteered twin, if one was asked for."""

    @property
    def text(self) -> str:
        """The generated text."""
        return "".join(token.text for token in self.tokens)

    def readings(self, feature: str | int) -> list[float]:
        """A watched feature's reading at every generated token, by name or latent."""
        return [token.reading(feature) for token in self.tokens]


def gather(events: Iterable[Event]) -> Reply:
    """All events of a generation as one reply.

    Raises:
        ValueError: the events do not begin with Started and end with Finished.
    """
    gathered = list(events)
    of_baseline: list[Event] = [event.event for event in gathered if isinstance(event, Baseline)]
    match [event for event in gathered if not isinstance(event, Baseline)]:
        case [Started() as started, *between, Finished() as finished]:
            tokens = [event for event in between if isinstance(event, Token)]
            twin = finished.twin
            return Reply(
                started=started,
                tokens=tuple(token for token in tokens if not token.is_prompt),
                prompt=tuple(token for token in tokens if token.is_prompt),
                alerts=tuple(event for event in between if isinstance(event, Alert)),
                finished=finished,
                baseline=None if twin is None else gather([*of_baseline, twin.baseline]),
            )
        case other:
            raise ValueError(f"events must begin with Started and end with Finished. Got {len(other)} events.")
