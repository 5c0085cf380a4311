"""What one step of the engine has to say: events for mailboxes, alerts for watchers, records for the metrics.

Nothing reaches a mailbox before `deliver`: until then what a request was to be told can be taken back.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from service.alert_evidence import Raised
from service.records import EngineState, Outcome, RequestRecord, RowFailure, StepRecord
from service.request import AlertEvent, Event, Mailbox
from service.submission import Submission


class Post(NamedTuple):
    """What is to be put into one mailbox."""

    submission: Submission
    events: list[Event]
    failure: Exception | None
    """The error that ends the stream, if one does."""


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
    raised: list[Raised] = field(default_factory=list)
    """Alerts that have to be kept before anything is delivered."""
    posts: list[Post] = field(default_factory=list)

    def put(self, submission: Submission, events: list[Event]) -> None:
        """Events for a request; alerts among them are for those who watch all requests, too."""
        self.posts.append(Post(submission, events, None))
        if submission.request.replay is None:
            self.alerts.extend(event for event in events if isinstance(event, AlertEvent))

    def fail(self, submission: Submission, failure: Exception) -> None:
        """End a stream with an error."""
        self.posts.append(Post(submission, [], failure))

    def withhold(
        self, request_ids: Collection[str], alert_ids: Collection[str], outcome: Outcome, failure: Exception
    ) -> None:
        """Tell these requests nothing of this step but that they failed, and nobody of these alerts.

        Others of theirs are kept, from steps before, and had yet to be told: watchers are.
        """

        def is_concerned(post: Post) -> bool:
            return post.submission.request.request_id in request_ids

        concerned = {post.submission.request.request_id: post.submission for post in filter(is_concerned, self.posts)}
        self.posts = [post for post in self.posts if not is_concerned(post)]
        for submission in concerned.values():
            self.posts.append(Post(submission, [], failure))
            submission.cancel_twin(outcome)
        self.alerts = [event for event in self.alerts if event.id not in alert_ids]
        # Two that are twins have one record, under the id of one of them.
        twins = {one.twin.request.request_id for one in concerned.values() if one.twin is not None}
        self.requests = [
            replace(record, outcome=outcome) if record.request_id in twins.union(request_ids) else record
            for record in self.requests
        ]

    def deliver(self) -> None:
        """Put everything where it belongs."""
        for submission, events, failure in self.posts:
            if events:
                submission.mailbox.put(events)
            if failure is not None:
                submission.mailbox.fail(failure)
            self.mailboxes.append(submission.mailbox.address)
        self.posts = []

    @property
    def is_empty(self) -> bool:
        return not (self.mailboxes or self.steps or self.requests or self.failures)
