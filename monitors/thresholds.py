"""Thresholds that hold per reply, for any length, however often one looks.

Scored tokens are counted t = 1, 2, ... *Strata* are ranges of t: up to 64, 65 to 256, and so on. In stratum k

    excess    e_t = S_t - g_k           g_k the stratum's offset: the part of a high score that mere length explains
    statistic T   = max over t >= min_tokens of e_t
    level l fires at t                  if e_t > its offset q_l, that is if S_t > g_k + q_l

so a reply reaches a level if and only if its statistic exceeds the level's offset (`monitors.alarm`). That is why a q_l
taken as an order statistic of T over benign replies (`monitors.conformal`) bounds the share of benign *replies* that
ever reach it. A level without enough replies in some stratum is *absent* there: it does not fire, and the pack says so.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Literal, NamedTuple

from monitors import checks
from monitors.errors import Problem, shown

Level = Literal["warning", "critical"]
LEVELS: tuple[Level, ...] = ("warning", "critical")
"""Lowest first."""


@dataclass(frozen=True, slots=True)
class Stratum:
    """A range of scored tokens, from where the one before ends."""

    max_tokens: int
    """Last scored token of the range, counted from 1."""
    offset: float
    """g_k, in units of the score."""

    def __post_init__(self) -> None:
        checks.refuse(checks.count("max_tokens", self.max_tokens, at_least=1), checks.finite("offset", self.offset))


@dataclass(frozen=True, slots=True)
class LevelThreshold:
    """One level, and where it stands."""

    alpha: float
    """Share of benign replies that it may reach, in (0, 1)."""
    offset: float
    """q_l, in units of the score."""
    strata: tuple[int, ...]
    """`max_tokens` of the strata it was calibrated in."""
    absent: tuple[int, ...] = ()
    """`max_tokens` of the strata in which there were too few replies: it does not fire there."""

    def __post_init__(self) -> None:
        checks.refuse(
            None
            if isinstance(self.alpha, int | float) and 0 < self.alpha < 1
            else Problem("alpha", "a share between 0 and 1", shown(self.alpha)),
            checks.finite("offset", self.offset),
            None if self.strata else Problem("strata", "at least one stratum; a level without any is null", "none"),
            *(
                Problem(f"absent.{i}", "a stratum that is not in strata too", shown(bound))
                for i, bound in enumerate(self.absent)
                if bound in self.strata
            ),
        )


@dataclass(frozen=True, slots=True)
class Levels:
    """Both levels; None for one that no stratum has replies enough for."""

    warning: LevelThreshold | None
    critical: LevelThreshold | None

    def named(self) -> Iterator[tuple[Level, LevelThreshold]]:
        """Those there are, lowest first."""
        if self.warning is not None:
            yield "warning", self.warning
        if self.critical is not None:
            yield "critical", self.critical


class Marks(NamedTuple):
    """What an excess is compared with; None for a level that is absent here."""

    clear: float
    warning: float | None
    critical: float | None

    @property
    def can_fire(self) -> bool:
        """Whether any level stands here."""
        return self.warning is not None or self.critical is not None


class Stretch(NamedTuple):
    """One stratum as it is used."""

    max_tokens: int
    profile: float
    """g_k."""
    marks: Marks


@dataclass(frozen=True)
class Thresholds:
    """Of one monitor. MonitorError if strata or levels contradict each other."""

    strata: tuple[Stratum, ...]
    """At least one, rising, and no offset below the one before."""
    levels: Levels
    clear_offset: float
    """An alert clears strictly below; at most the lowest level's offset. The gap is the hysteresis."""

    def __post_init__(self) -> None:
        levels = dict(self.levels.named())
        checks.refuse(
            checks.finite("clear_offset", self.clear_offset),
            None if self.strata else Problem("strata", "at least one stratum", "none"),
            None if levels else Problem("levels", "at least one level", "none"),
            *self._falling_strata(),
            *(problem for name, level in levels.items() for problem in self._misfit(f"levels.{name}", level)),
            *self._disorder(levels),
        )

    def stretch_at(self, token: int) -> Stretch:
        """Where scored token `token`, counted from 1, lies. Beyond the last stratum it is the last one."""
        index = bisect_left(self._bounds, token)
        return self.stretches[min(index, len(self.stretches) - 1)]

    @cached_property
    def max_tokens(self) -> int:
        """Scored tokens up to which a level stands throughout: the last of the last stratum before the first that has
        none. 0 if the first one has none. Beyond it no rate is known, and where no level stands nothing fires."""
        standing = takewhile(lambda stretch: stretch.marks.can_fire, self.stretches)
        return max((stretch.max_tokens for stretch in standing), default=0)

    @cached_property
    def stretches(self) -> tuple[Stretch, ...]:
        """The strata with what holds in each."""
        return tuple(Stretch(s.max_tokens, s.offset, self._marks(s.max_tokens)) for s in self.strata)

    @cached_property
    def _bounds(self) -> tuple[int, ...]:
        return tuple(stratum.max_tokens for stratum in self.strata)

    def _marks(self, bound: int) -> Marks:
        def offset(level: LevelThreshold | None) -> float | None:
            return level.offset if level is not None and bound in level.strata else None

        return Marks(self.clear_offset, offset(self.levels.warning), offset(self.levels.critical))

    def _falling_strata(self) -> Iterator[Problem]:
        for i, (before, after) in enumerate(zip(self.strata, self.strata[1:], strict=False), start=1):
            if after.max_tokens <= before.max_tokens:
                yield Problem(f"strata.{i}.max_tokens", f"more than {before.max_tokens}", shown(after.max_tokens))
            # A reply's largest score only grows with its length: what that explains can't shrink.
            if after.offset < before.offset:
                wanted = f"at least that of the stratum before, {before.offset}"
                yield Problem(f"strata.{i}.offset", wanted, shown(after.offset))

    def _misfit(self, field: str, level: LevelThreshold) -> Iterator[Problem]:
        said = {*level.strata, *level.absent}
        for bound in self._bounds:
            if bound not in said:
                yield Problem(field, f"the stratum up to {bound} tokens, in strata or in absent", "neither")
        for bound in sorted(said - set(self._bounds)):
            yield Problem(field, f"strata that there are ({', '.join(map(str, self._bounds))})", shown(bound))

    def _disorder(self, levels: dict[Level, LevelThreshold]) -> Iterator[Problem]:
        if len(levels) == 2 and levels["critical"].offset < levels["warning"].offset:
            wanted = f"at least the warning's, {levels['warning'].offset}"
            yield Problem("levels.critical.offset", wanted, shown(levels["critical"].offset))
        if len(levels) == 2 and levels["critical"].alpha > levels["warning"].alpha:
            wanted = f"at most the warning's, {levels['warning'].alpha}"
            yield Problem("levels.critical.alpha", wanted, shown(levels["critical"].alpha))
        lowest = min((level.offset for level in levels.values()), default=self.clear_offset)
        if self.clear_offset > lowest:
            yield Problem("clear_offset", f"at most the lowest level's offset, {lowest}", shown(self.clear_offset))
