"""Metrics of the alert journal: what it holds, what could not be written, how far a database's copy is behind, and what
reviewers said. Without a journal none of them is there.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from monitors.journal_entry import Verdict
from monitors.journal_precision import Precision
from service.journal_keeper import JournalStatus

NAMESPACE = "telltale"
VERDICTS: tuple[Verdict, ...] = ("true", "false", "unsure")
APPEND_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class JournalMetrics:
    """Of one server's journal. Call `observe` every second or so."""

    def __init__(self, registry: CollectorRegistry, packs: Mapping[str, str]) -> None:
        """`packs` maps the monitors that are served to the hashes of their packs: reviews of others don't count."""
        gauge = partial(Gauge, namespace=NAMESPACE, subsystem="journal", registry=registry)
        self._packs = dict(packs)
        self._entries = gauge("entries", "Entries in the alert journal.")
        self._writable = gauge("writable", "1 if the last entry could be written.")
        self._waiting = gauge("forward_waiting_entries", "Entries that the database has not got yet.")
        self._lag = gauge("forward_lag_seconds", "Age of the oldest entry that the database has not got yet.")
        self._forwarding = gauge("forward_up", "1 if the last try to send entries to the database worked.")
        self._failures = Counter(
            "write_failures", "Writes that failed.", namespace=NAMESPACE, subsystem="journal", registry=registry
        )
        self._append = Histogram(
            "append_seconds",
            "Time the engine waited for a step's alerts to be on disk.",
            namespace=NAMESPACE,
            subsystem="journal",
            registry=registry,
            buckets=APPEND_BUCKETS,
        )
        self._num_failures = 0
        self._reviews = Gauge(
            "alert_reviews",
            "Alerts by what their last review says.",
            ["monitor", "verdict"],
            namespace=NAMESPACE,
            registry=registry,
        )
        self._precision = Gauge(
            "alert_precision_ratio",
            "true / (true + false) of the reviews; not there without either.",
            ["monitor"],
            namespace=NAMESPACE,
            registry=registry,
        )
        for monitor in self._packs:
            for verdict in VERDICTS:
                self._reviews.labels(monitor, verdict)

    def observe(self, status: JournalStatus, append_seconds: Iterable[float], precisions: Iterable[Precision]) -> None:
        """How things stand, and how long each write took since the last call."""
        self._entries.set(status.num_entries)
        self._writable.set(status.is_writable)
        self._waiting.set(status.num_waiting)
        self._lag.set(status.lag_seconds)
        self._forwarding.set(not status.forward_error)
        self._failures.inc(status.num_write_failures - self._num_failures)
        self._num_failures = status.num_write_failures
        for seconds in append_seconds:
            self._append.observe(seconds)
        found = {(each.monitor, each.pack_sha256): each for each in precisions}
        for served in self._packs.items():
            # Retention may have deleted the reviews that there were.
            self._observe_precision(found.get(served) or Precision(*served, num_true=0, num_false=0, num_unsure=0))

    def _observe_precision(self, of: Precision) -> None:
        counts = {"true": of.num_true, "false": of.num_false, "unsure": of.num_unsure}
        for verdict, number in counts.items():
            self._reviews.labels(of.monitor, verdict).set(number)
        if of.precision is not None:
            self._precision.labels(of.monitor).set(of.precision)
            return
        with suppress(KeyError):  # what some releases raise for a series that is not there
            self._precision.remove(of.monitor)
