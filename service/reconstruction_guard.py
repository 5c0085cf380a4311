"""Marks tokens at which the dictionary is off its distribution, and counts them where scores were made of them.

A token is off if its FVU lies above the dictionary's own 99.9 % quantile (`sae_runtime.usual_fvu`). It is marked, not
dropped: what was read there is streamed and scored all the same, and whoever reads it is told not to trust it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from monitors.monitor_spec import MonitorSpec, Role
from sae_runtime.checkpoint import Manifest
from sae_runtime.usual_fvu import LIMIT, QUANTILES, UsualFVU

USUAL_RATIO = 1 - QUANTILES[LIMIT]
"""Share of ordinary tokens that are off by the limit's meaning."""


@dataclass(frozen=True, slots=True)
class ReconstructionGuard:
    """The limit, and where it comes from."""

    max_fvu: float | None
    """None if the dictionary has no figures: then nothing is marked."""
    source: str

    @classmethod
    def of(cls, manifest: Manifest | None) -> Self:
        """The guard of a dictionary, if there is one. CheckpointError if its figures make no sense."""
        if manifest is None:
            return cls(None, "the model is served without a dictionary")
        usual = UsualFVU.of(manifest)
        if usual is None:
            return cls(
                None,
                f"the dictionary {manifest.name} has no record of its usual FVU: `telltale lab evaluate --write`, or "
                "`telltale lab import --check` for an imported one, adds it",
            )
        return cls(usual.limit, f"{LIMIT} quantile over {usual.tokens:,} ordinary tokens, from {manifest.name}")


@dataclass(frozen=True, slots=True)
class OffDistribution:
    """Tokens of a request that were off, at its end."""

    num_tokens: int
    """All that were read, prompt and reply."""
    by_monitor: dict[tuple[str, Role], int]
    """Of tokens that a monitor scores as a role."""


class OffDistributionTokens:
    """The tokens of one request that were off. Without a limit there are none, and `summary` says so."""

    def __init__(self, max_fvu: float | None, monitors: Iterable[MonitorSpec] = ()) -> None:
        self._max_fvu = max_fvu
        self._token_roles = {(spec.name, role): spec.token_roles(role) for spec in monitors for role in spec.roles}
        self._positions: list[tuple[int, Role | None]] = []

    def observe(self, position: int, role: Role | None, *, fvu: float, off_scale: bool) -> bool:
        """Whether this token is off. One off scale, to the dictionary or to a monitor that scores its role, has no
        reading to be trusted anyway: so whatever is off was scored by all monitors of its role."""
        is_off = self._max_fvu is not None and not off_scale and fvu > self._max_fvu
        if is_off:
            self._positions.append((position, role))
        return is_off

    def in_span(self, start: int, end: int, monitor: str, role: Role) -> int | None:
        """How many of the tokens that `monitor` scores as `role` from `start` to `end`, both included; None without a
        limit.

        A monitor's window holds just these tokens of its role: it slides over all of them.
        """
        if self._max_fvu is None:
            return None
        roles = self._token_roles[monitor, role]
        return sum(start <= position <= end and who in roles for position, who in self._positions)

    def summary(self) -> OffDistribution | None:
        """All so far; None without a limit."""
        if self._max_fvu is None:
            return None
        counts = {key: sum(who in roles for _, who in self._positions) for key, roles in self._token_roles.items()}
        return OffDistribution(len(self._positions), counts)
