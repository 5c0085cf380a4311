"""How the command line shows monitors: in a few lines each, or one in full. All text passes `sanitize`."""

from collections.abc import Iterable, Iterator

import yaml
from rich.text import Text

from service import guard_view
from service.client_monitors import Monitor, MonitorComponent
from service.evidence_view import readable
from service.rendering import sanitize


def brief(monitor: Monitor) -> Text:
    """What it is, when it fires, what that rests on, and what it does not show."""
    return Text(sanitize("\n  ".join(_brief_lines(monitor))))


def whole(monitor: Monitor) -> Iterator[Text]:
    """Everything about one monitor, part by part."""
    yield brief(monitor)
    for component in monitor.components:
        yield Text(sanitize(f"  {component.name}: {component.reads}{_place(component)}"))
    if len(monitor.components) > 1:
        yield Text(sanitize(f"  score: {monitor.combination}"))
    for title, facts in (("calibration", monitor.calibration), ("evidence", monitor.evidence)):
        if facts:
            yield Text(f"\n{title}", style="bold")
            told = readable(facts, [level.severity for level in monitor.levels])
            text = yaml.safe_dump(told, allow_unicode=True, sort_keys=False, width=110)
            yield Text(sanitize(text.rstrip()))


def cautions(monitors: Iterable[Monitor]) -> Text | None:
    """What to say before scores that were not calibrated for what is served or asked; None if all were.

    What goes for several monitors is said once.
    """
    names_of: dict[str, list[str]] = {}
    for monitor in monitors:
        for caution in (*monitor.mismatches, *monitor.cautions):
            names_of.setdefault(caution, []).append(monitor.name)
    lines = [f"{', '.join(names)}: {caution}." for caution, names in names_of.items()]
    return Text(sanitize("\n".join(lines)), style="yellow") if lines else None


def _brief_lines(monitor: Monitor) -> Iterator[str]:
    validated = "validated" if monitor.validated else "NOT VALIDATED"
    yield f"monitor {monitor.name} ({monitor.severity}, {validated}): {monitor.description}"
    roles = "" if set(monitor.roles) <= {"assistant"} else f", on words of {', '.join(monitor.roles)}"
    yield (
        f"fires above {monitor.threshold:.3g}, clears below {monitor.clear_threshold:.3g}, mean over "
        f"{monitor.window} tokens, from {monitor.min_tokens} tokens on{roles}"
    )
    if monitor.strata:
        yield f"by length: {'; '.join(_strata(monitor))}"
    for level in monitor.levels:
        if level.absent:
            bounds = ", ".join(map(str, level.absent))
            yield f"no {level.severity} in the strata up to {bounds} tokens: too few replies to set it by"
    yield f"threshold from: {monitor.threshold_source or 'unknown'}"
    if monitor.limits:
        yield f"limits: {monitor.limits}"
    if monitor.validated_reason:
        yield f"{'validated' if monitor.validated else 'not validated'}: {monitor.validated_reason}"
    for mismatch in monitor.mismatches:
        yield f"MISMATCH: {mismatch}"
    yield from guard_view.behaviour(monitor)
    if monitor.pack_sha256:
        yield f"pack: {monitor.kind}, version {monitor.version}, sha256 {monitor.pack_sha256[:12]}"


def _strata(monitor: Monitor) -> Iterator[str]:
    for stratum in monitor.strata:
        levels = (("warning", stratum.warning), ("critical", stratum.critical))
        told = ", ".join(f"{name} {value:.3g}" for name, value in levels if value is not None)
        yield f"up to {stratum.max_tokens} tokens {told or 'none'}"


def _place(component: MonitorComponent) -> str:
    if component.hook_point:
        return f" (probe at {component.hook_point}, {component.method})"
    return f" (latents {', '.join(map(str, component.features))})"
