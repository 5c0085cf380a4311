"""How the command line tells what the guards of a server found. Callers sanitise."""

from collections.abc import Iterator, Sequence

from service.client_guards import Fidelity, MonitorDrift, MonitorInput, ReconstructionGuard
from service.client_monitors import Monitor


def guard(found: ReconstructionGuard) -> str:
    """What marks tokens as off distribution."""
    if not found.active:
        return f"NO RECONSTRUCTION GUARD: {found.source or 'the server says nothing of it'}"
    return f"tokens are off distribution above FVU {found.max_fvu:.3g} ({found.source})"


def fidelity(found: Sequence[Fidelity]) -> str:
    """What the dictionary reads on other forms of its model."""
    return "; ".join(map(_one, found)) or "not measured (telltale lab fidelity --write)"


def inputs(found: Sequence[MonitorInput]) -> str:
    """How many there are, and which are silent."""
    silent = [one.name for one in found if one.state == "silent"]
    counts = {state: sum(one.state == state for one in found) for state in ("alive", "untested", "unknown")}
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    parts = [told, f"SILENT: {', '.join(silent)}" if silent else ""]
    return "; ".join(part for part in parts if part) or "none"


def behaviour(monitor: Monitor) -> Iterator[str]:
    """What is worth saying of a monitor under traffic; nothing where a server says nothing."""
    for one in monitor.inputs:
        if one.state == "silent":
            yield f"SILENT: {one.name} has not been active in {one.silent_tokens:,} tokens"
    if monitor.drift is not None:
        yield f"drift: {_drift(monitor.drift)}"


def _drift(drift: MonitorDrift) -> str:
    if not drift.has_reference:
        return "not measured, as the pack keeps no histograms of its calibration"
    if drift.statistic_psi is None or drift.token_score_psi is None:
        return f"{drift.replies} of {drift.min_replies} replies needed"
    expected = "" if drift.expected_psi is None else f" (about {drift.expected_psi:.2g} if nothing has moved)"
    statistic = f"PSI {drift.statistic_psi:.2g} over {drift.replies} replies{expected}"
    return f"{statistic}, of tokens {drift.token_score_psi:.2g}"


def _one(figures: Fidelity) -> str:
    verdict = "may be served" if figures.may_be_served else "SHOULD NOT be served"
    return (
        f"{figures.against} {verdict}, against {figures.first}: median correlation {figures.median_correlation:.3f}, "
        f"{figures.flip_ratio:.1%} of readings flip, variance explained {figures.first_variance_explained:.3f} -> "
        f"{figures.against_variance_explained:.3f}, over {figures.tokens:,} tokens"
    )
