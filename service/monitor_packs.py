"""The monitors of a server: packs found in folders, checked against what is served.

A pack that was made for other weights, another quantisation, number format or chat template is refused, or with an
explicit flag served with its mismatches told in every answer. One that can't be computed at all is refused in any case.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from monitors.errors import PackError, Problem
from monitors.monitor_spec import MonitorSpec
from monitors.pack import PACK_SUFFIX, MonitorPack
from monitors.pack_parts import Served

logger = logging.getLogger(__name__)

SHIPPED_PACKS = Path(__file__).parent.parent / "monitors" / "packs"
"""One folder per model."""


@dataclass(frozen=True)
class ServedMonitor:
    """A pack that runs on the served model."""

    pack: MonitorPack
    mismatches: tuple[str, ...] = ()
    """What does not match between the pack and what is served; empty if it was made for it."""

    @cached_property
    def spec(self) -> MonitorSpec:
        return self.pack.spec()


def shipped_monitors(served: Served, *, allow_unverified: bool, root: Path = SHIPPED_PACKS) -> list[ServedMonitor]:
    """The packs that come with the package and were made for the served model.

    Those of a model of the same name that do not fit it are left out, and the log says why.
    """
    found = []
    for path in _files(root / _folder_name(served.model_name)):
        pack = MonitorPack.load(path)
        problems = _no_thresholds(pack) or pack.misfits(served) or ([] if allow_unverified else pack.mismatches(served))
        if problems:
            logger.warning("monitor %s is not loaded: %s", pack.name, "; ".join(map(str, problems)))
        else:
            found.append(_served(pack, served))
    return found


def added_monitors(folder: Path, served: Served, *, allow_unverified: bool) -> list[ServedMonitor]:
    """All packs of an operator's folder. PackError for one that is broken, without thresholds, or made for another
    model."""
    paths = _files(folder)
    if not paths:
        raise PackError(Problem("monitor_packs", f"a folder with files *{PACK_SUFFIX}", f"{folder}, which has none"))
    return [_added(path, served, allow_unverified=allow_unverified) for path in paths]


def merged(shipped: Iterable[ServedMonitor], added: Iterable[ServedMonitor]) -> tuple[ServedMonitor, ...]:
    """All monitors by name; an added one replaces a shipped one. PackError if two added ones have one name."""
    by_name = {monitor.pack.name: monitor for monitor in shipped}
    own: dict[str, ServedMonitor] = {}
    for monitor in added:
        name = monitor.pack.name
        if name in own:
            raise PackError(Problem("monitor_packs", "one pack of each name", f"two called {name!r}"))
        if name in by_name:
            logger.info("monitor %s of the folder replaces the shipped one", name)
        own[name] = monitor
    return tuple(monitor for _, monitor in sorted((by_name | own).items()))


def _added(path: Path, served: Served, *, allow_unverified: bool) -> ServedMonitor:
    pack = MonitorPack.load(path)
    problems, mismatches = _no_thresholds(pack) or pack.misfits(served), pack.mismatches(served)
    if problems:
        raise PackError(*problems, path=path)
    if mismatches and not allow_unverified:
        hint = Problem("allow_unverified", "true, to serve it all the same", "false")
        raise PackError(*mismatches, hint, path=path)
    return _served(pack, served)


def _served(pack: MonitorPack, served: Served) -> ServedMonitor:
    return ServedMonitor(pack, tuple(str(problem) for problem in pack.mismatches(served)))


def _no_thresholds(pack: MonitorPack) -> list[Problem]:
    return [] if pack.thresholds else [Problem("thresholds", "calibrated thresholds", "nothing")]


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{PACK_SUFFIX}"))


def _folder_name(model_name: str) -> str:
    """`Qwen/Qwen2.5-Coder-1.5B-Instruct` on the hub and a folder `Qwen2.5-Coder-1.5B-Instruct` are one."""
    return model_name.rsplit("/", 1)[-1]
