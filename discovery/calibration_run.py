"""Thresholds of a frozen monitor from benign replies, and what is known of them.

The thresholds are `monitors.conformal.calibrate`'s. What they come to on replies they were not set on is measured by
cross-fitting: benign groups are dealt into folds; each fold runs through the streaming code with thresholds set on the
other folds. Those rates are of somewhat less data than the final thresholds have. Where it is so little that a level
does not stand in a stratum in which it stands in the end, replies that end there say nothing of it, and are left out.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from discovery.benign_replies import BenignRows, alert_rates, shares_by
from discovery.monitor_scores import ScoredReply, score_replies
from discovery.reply_readings import ReplyReadings
from monitors.conformal import Calibration, Scores, calibrate, needed_replies, order_statistic
from monitors.drift import REFERENCE_KEY, Reference
from monitors.errors import MonitorError
from monitors.pack import MonitorPack
from monitors.pack_parts import PackCalibration
from monitors.thresholds import LEVELS, Level, Thresholds

NUM_FOLDS = 5
CURVE_ALPHAS = (0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01, 0.005, 0.003, 0.002, 0.001)


class CalibrationSettings(NamedTuple):
    """What is asked for."""

    bounds: Sequence[int]
    alphas: Mapping[Level, float]
    seed: str = ""


def calibrated(
    pack: MonitorPack,
    rows: BenignRows,
    readings: ReplyReadings,
    settings: CalibrationSettings,
    hard_negatives: tuple[BenignRows, ReplyReadings] | None = None,
) -> MonitorPack:
    """The pack's next version, with thresholds. MonitorError if there are too few replies for any level."""
    bare = replace(pack, thresholds=None, calibration=None, validated=False)
    scored = score_replies(bare, readings, rows.replies)
    calibration = _calibrate(bare, scored, settings)
    made = with_thresholds(bare, calibration.thresholds, _in_words(rows, settings))
    figures = {
        "strata": _strata(calibration, settings),
        "cross_fitted": _cross_fitted(made, rows, readings, scored, settings),
        "left_out": rows.left_out,
        "hard_negatives": _hard_negatives(made, hard_negatives),
        "curve": _curve(calibration),
        "frozen_sha256": pack.frozen_sha256,
        "folds_seed": settings.seed,
    }
    reference = reference_of(made, score_replies(made, readings, rows.replies))
    if reference is not None:
        figures[REFERENCE_KEY] = reference.as_json()
    assert made.calibration is not None
    return replace(
        made,
        version=pack.version + 1,
        validated_reason="Calibrated; not evaluated since.",
        calibration=replace(made.calibration, figures=figures),
    )


def reference_of(pack: MonitorPack, scored: Sequence[ScoredReply]) -> Reference | None:
    """What a server compares its traffic with: the pack's own statistic and scores on the replies, both halves.

    Of answers alone, as there, if the monitor scores reasoning by itself.
    """
    answers = [run for reply in scored for run in reply.runs if run.role == "assistant"]
    return Reference.of(
        [(run.statistic, run.scores[pack.min_tokens - 1 :]) for run in answers if run.statistic is not None]
    )


def with_thresholds(pack: MonitorPack, thresholds: Thresholds, source: str) -> MonitorPack:
    """The pack with these thresholds."""
    calibration = PackCalibration(method="conformal_by_length", source=source)
    return replace(pack, thresholds=thresholds, calibration=calibration)


def _calibrate(pack: MonitorPack, scored: Sequence[ScoredReply], settings: CalibrationSettings) -> Calibration:
    benign = [run for reply in scored for run in _long_enough(reply, pack.min_tokens)]
    return calibrate(benign, min_tokens=pack.min_tokens, bounds=settings.bounds, alphas=settings.alphas)


def _long_enough(reply: ScoredReply, min_tokens: int) -> Sequence[Scores]:
    """What each role's rate is set by. Of a reply of one role that is all of it, whatever its length."""
    scores = [run.scores for run in reply.runs]
    return scores if len(scores) <= 1 else [of_role for of_role in scores if len(of_role) >= min_tokens]


class _Crossed(NamedTuple):
    """A reply, scored with thresholds that it had no part in."""

    reply: ScoredReply
    stratum: int
    dataset: str
    counts: frozenset[Level]
    """Levels whose rate it says something of."""


def _cross_fitted(
    made: MonitorPack,
    rows: BenignRows,
    readings: ReplyReadings,
    scored: Sequence[ScoredReply],
    settings: CalibrationSettings,
) -> dict[str, Any]:
    """Rates on replies that thresholds were not set on; `left_out` of each level: replies that say nothing of it."""
    places = [_fold(conversation.full_group, settings.seed) for conversation in rows.conversations]
    crossed: list[_Crossed] = []
    for fold in range(NUM_FOLDS):
        inside = [index for index, place in enumerate(places) if place == fold]
        others = [scored[index] for index, place in enumerate(places) if place != fold]
        try:
            thresholds = _calibrate(made, others, settings).thresholds
        except MonitorError:  # too few replies for any level
            continue
        pack = with_thresholds(made, thresholds, "Other folds.")
        for index, reply in zip(inside, _scored_of(pack, rows, readings, inside), strict=True):
            stratum = next(bound for bound in settings.bounds if len(reply.scores) <= bound)
            counts = frozenset(level for level in LEVELS if _stands_as_in(made, thresholds, level, stratum))
            crossed.append(_Crossed(reply, stratum, rows.conversations[index].dataset, counts))
    return {
        "num_folds": NUM_FOLDS,
        "all": _shares(crossed, lambda _: "all").get("all"),
        "by_stratum": _shares(crossed, lambda one: one.stratum),
        "by_set": _shares(crossed, lambda one: one.dataset),
        "left_out": {level: len(scored) - sum(level in one.counts for one in crossed) for level in LEVELS},
        "alerts": alert_rates([one.reply for one in crossed]),
    }


def _scored_of(
    pack: MonitorPack, rows: BenignRows, readings: ReplyReadings, indices: Sequence[int]
) -> Sequence[ScoredReply]:
    return score_replies(pack, readings.take(indices), [rows.replies[i] for i in indices]) if indices else []


def _stands_as_in(made: MonitorPack, thresholds: Thresholds, level: Level, stratum: int) -> bool:
    """Whether a level stands in a stratum, if it does in the end."""
    assert made.thresholds is not None
    in_the_end, here = (stratum in _standing(found, level) for found in (made.thresholds, thresholds))
    return here or not in_the_end


def _standing(thresholds: Thresholds, level: Level) -> Sequence[int]:
    found = dict(thresholds.levels.named()).get(level)
    return () if found is None else found.strata


def _shares(crossed: Sequence[_Crossed], name: Callable[[_Crossed], Any]) -> dict[str, dict[str, Any]]:
    """Name -> level -> share of those replies that reached it."""
    found: dict[str, dict[str, Any]] = {}
    for level in LEVELS:
        counted = [one for one in crossed if level in one.counts]
        for of, shares in shares_by([name(one) for one in counted], [one.reply for one in counted]).items():
            found.setdefault(of, {})[level] = shares[level]
    return found


def _fold(group: str, seed: str) -> int:
    return hashlib.sha256(f"fold\0{seed}\0{group}".encode("utf-8", "surrogatepass")).digest()[0] % NUM_FOLDS


def _hard_negatives(pack: MonitorPack, given: tuple[BenignRows, ReplyReadings] | None) -> dict[str, Any]:
    """Rates with the final thresholds on replies that had no part in them; by set."""
    if given is None:
        return {}
    rows, readings = given
    scored = score_replies(pack, readings, rows.replies)
    return shares_by([conversation.dataset for conversation in rows.conversations], scored)


def _strata(calibration: Calibration, settings: CalibrationSettings) -> list[dict[str, Any]]:
    """What each stratum's numbers rest on, and how many replies each level would have needed there."""
    return [
        {
            "max_tokens": figures.max_tokens,
            "profile": stratum.offset,
            "num_replies": figures.num_replies,
            "thresholds": dict(figures.thresholds),
            "needed_replies": {level: needed_replies(settings.alphas[level]) for level in LEVELS},
        }
        for figures, stratum in zip(calibration.strata, calibration.thresholds.strata, strict=True)
    ]


def _curve(calibration: Calibration) -> list[dict[str, float]]:
    """Offsets for a range of shares, all strata together: what a calibration curve is drawn against."""
    found = [(alpha, order_statistic(calibration.statistics, alpha)) for alpha in CURVE_ALPHAS]
    return [{"alpha": alpha, "offset": offset} for alpha, offset in found if offset is not None]


def _in_words(rows: BenignRows, settings: CalibrationSettings) -> str:
    counts: dict[str, int] = {}
    for conversation in rows.conversations:
        counts[conversation.dataset] = counts.get(conversation.dataset, 0) + 1
    sets = ", ".join(f"{name} ({count})" for name, count in counts.items())
    shares = " and ".join(f"{settings.alphas[level]:.1%} for {level}" for level in LEVELS)
    return f"Conformal order statistics over {len(rows.conversations)} benign replies, {shares}, by length: {sets}."
