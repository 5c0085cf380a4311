"""What the guards find -> wire messages."""

from typing import Any

from telltale.v1 import guard_pb2

from monitors.drift import MIN_REPLIES, Drift
from monitors.silence import InputActivity, InputState
from sae_runtime.fidelity_figures import FidelityFigures
from service.reconstruction_guard import USUAL_RATIO, OffDistribution, ReconstructionGuard

_STATES = {
    InputState.ALIVE: guard_pb2.INPUT_STATE_ALIVE,
    InputState.UNTESTED: guard_pb2.INPUT_STATE_UNTESTED,
    InputState.SILENT: guard_pb2.INPUT_STATE_SILENT,
    InputState.UNKNOWN: guard_pb2.INPUT_STATE_UNKNOWN,
}


def reconstruction_guard(guard: ReconstructionGuard) -> Any:
    is_active = guard.max_fvu is not None
    return guard_pb2.ReconstructionGuard(
        active=is_active, max_fvu=guard.max_fvu or 0, source=guard.source, usual_ratio=USUAL_RATIO if is_active else 0
    )


def num_off(found: OffDistribution | None) -> int | None:
    """Of a whole request."""
    return None if found is None else found.num_tokens


def num_off_of(found: OffDistribution | None, monitor: str, role: Any) -> int | None:
    """Of the tokens that one monitor scores as one role."""
    return None if found is None else found.by_monitor.get((monitor, role), 0)


def fidelity(figures: FidelityFigures) -> Any:
    return guard_pb2.Fidelity(
        first=figures.first,
        against=figures.against,
        tokens=figures.tokens,
        residual_relative_error=figures.residual_relative_error,
        median_correlation=figures.median_correlation,
        flip_ratio=figures.flip_ratio,
        first_l0=figures.l0[0],
        against_l0=figures.l0[1],
        first_variance_explained=figures.variance_explained[0],
        against_variance_explained=figures.variance_explained[1],
        may_be_served=figures.may_be_served,
    )


def monitor_input(activity: InputActivity) -> Any:
    return guard_pb2.MonitorInput(
        name=activity.name,
        feature=activity.feature,
        tokens=activity.num_tokens,
        active_tokens=activity.num_active,
        silent_tokens=activity.num_silent,
        density_ratio=activity.density,
        silence_probability=activity.probability,
        state=_STATES[activity.state],
    )


def monitor_drift(drift: Drift | None) -> Any:
    """None is a pack without anything to compare with."""
    if drift is None:
        return guard_pb2.MonitorDrift(has_reference=False, min_replies=MIN_REPLIES)
    return guard_pb2.MonitorDrift(
        has_reference=True,
        replies=drift.num_replies,
        statistic_psi=drift.statistic,
        token_score_psi=drift.token_score,
        expected_psi=drift.expected,
        min_replies=MIN_REPLIES,
    )
