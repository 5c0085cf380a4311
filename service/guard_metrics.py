"""Metrics of the guards: tokens off distribution, silent inputs, drift of monitors' values."""

import math
from collections.abc import Iterable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge

from monitors.drift import FinishedReply
from monitors.silence import InputActivity, InputState
from service.guards import Guards
from service.records import StepRecord

STATISTIC, TOKEN_SCORE = "statistic", "token_score"


class GuardMetrics:
    """Everything that `guards` finds, as samples."""

    def __init__(self, registry: CollectorRegistry, guards: Guards) -> None:
        counter = partial(Counter, namespace="telltale", registry=registry)
        gauge = partial(Gauge, namespace="telltale", registry=registry)
        self._guards = guards
        self._off = counter("off_distribution_tokens", "Tokens whose FVU is above the dictionary's limit.")
        self._ordinary = counter("ordinary_tokens", "Tokens read, those off scale or not finite left out.")
        limit = gauge("off_distribution_fvu_limit", "FVU above which a token is off distribution; NaN without a guard.")
        max_fvu = guards.guarded.reconstruction.max_fvu
        limit.set(math.nan if max_fvu is None else max_fvu)
        silent_tokens = gauge("input_silent_tokens", "Tokens since the input was last active.", ["input"])
        silent = gauge("input_silent", "1 while an input is silent for longer than chance explains.", ["input"])
        for one in guards.inputs:
            # Asked for when scraped: an input costs nothing in a step.
            silent_tokens.labels(one.name).set_function(partial(_num_silent, one))
            silent.labels(one.name).set_function(partial(_is_silent, one))
        psi = gauge("monitor_psi", "Drift from the calibration; NaN with too few replies.", ["monitor", "of"])
        replies = gauge("monitor_psi_replies", "Replies that monitor_psi is about.", ["monitor"])
        self._psi = {
            name: (psi.labels(name, STATISTIC), psi.labels(name, TOKEN_SCORE), replies.labels(name))
            for name in guards.drifting
        }
        for name in self._psi:
            self._show_drift(name)

    def observe_step(self, record: StepRecord) -> None:
        """Count a pass's tokens."""
        self._ordinary.inc(record.num_ordinary_tokens)
        self._off.inc(record.num_off_distribution)

    def observe_replies(self, replies: Iterable[FinishedReply]) -> None:
        """Replies that the guards have counted."""
        for name in {reply.monitor for reply in replies}:
            self._show_drift(name)

    def _show_drift(self, name: str) -> None:
        drift = self._guards.drifting[name]
        of_statistic, of_tokens, replies = self._psi[name]
        of_statistic.set(math.nan if drift.statistic is None else drift.statistic)
        of_tokens.set(math.nan if drift.token_score is None else drift.token_score)
        replies.set(drift.num_replies)


def _num_silent(one: InputActivity) -> float:
    return float(one.num_silent)


def _is_silent(one: InputActivity) -> float:
    return float(one.state is InputState.SILENT)
