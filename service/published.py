"""What one step of the engine has to say: events in mailboxes, alerts for watchers, records for the metrics."""

from dataclasses import dataclass, field

from service.records import EngineState, RequestRecord, RowFailure, StepRecord
from service.request import AlertEvent, Event, Mailbox


@dataclass(slots=True)
class Published:
    """All that one step has to say; handed to the event loop in one piece."""

    mailboxes: list[Mailbox] = field(default_factory=list)
    """Those with something new."""
    steps: list[StepRecord] = field(default_factory=list)
    failures: list[RowFailure] = field(default_factory=list)
    requests: list[RequestRecord] = field(default_factory=list)
    alerts: list[AlertEvent] = field(default_factory=list)
    state: EngineState | None = None

    def put(self, mailbox: Mailbox, events: list[Event]) -> None:
        """Deliver events; alerts among them are for those who watch all requests, too."""
        mailbox.put(events)
        self.mailboxes.append(mailbox)
        self.alerts.extend(event for event in events if isinstance(event, AlertEvent))

    def fail(self, mailbox: Mailbox, failure: Exception) -> None:
        """End a stream with an error."""
        mailbox.fail(failure)
        self.mailboxes.append(mailbox)

    @property
    def is_empty(self) -> bool:
        return not (self.mailboxes or self.steps or self.requests or self.failures)
