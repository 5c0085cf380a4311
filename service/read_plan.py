"""Which latents and probes a pass reads, and where each row finds its own among them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]
_NO_PROBES: Mapping[str, int] = {}


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a row finds its latents among those that a pass read."""

    watched: Places
    """In the order the request named them."""
    monitored: Places
    """In the order of `monitored_latents`."""
    monitored_latents: tuple[int, ...]
    probed: Places
    """In the order of `probes`, among all probes."""
    probes: tuple[str, ...]


class ReadPlan(NamedTuple):
    """The union of what everybody in a pass wants to read."""

    latents: list[int]
    columns: list[Columns]
    """One per row."""
    server_watch: Places
    """Where the server's own watch list is."""
    with_probes: bool
    """Whether anybody wants a probe."""


class Wants(NamedTuple):
    """What one row wants to read."""

    watched: tuple[int, ...]
    monitored: tuple[int, ...]
    probes: tuple[str, ...] = ()


def plan_reading(
    rows: Sequence[Wants], server_watch: tuple[int, ...], probe_places: Mapping[str, int] = _NO_PROBES
) -> ReadPlan:
    """The plan of a pass over `rows`. `probe_places` says where each probe is among all."""
    latents = sorted(set(server_watch).union(*(latent for row in rows for latent in (row.watched, row.monitored))))
    place = {latent: i for i, latent in enumerate(latents)}

    def places(of: tuple[int, ...]) -> Places:
        return np.array([place[latent] for latent in of], dtype=np.int64)

    def columns_of(row: Wants) -> Columns:
        probed = np.array([probe_places[probe] for probe in row.probes], dtype=np.int64)
        return Columns(places(row.watched), places(row.monitored), row.monitored, probed, row.probes)

    with_probes = any(row.probes for row in rows)
    return ReadPlan(latents, [columns_of(row) for row in rows], places(server_watch), with_probes)
