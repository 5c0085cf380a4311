"""Which latents a pass reads, and where each row finds its own among them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a row finds its latents among those that a pass read."""

    watched: Places
    """In the order the request named them."""
    monitored: Places
    """In the order of `monitored_latents`."""
    monitored_latents: tuple[int, ...]


class ReadPlan(NamedTuple):
    """The union of what everybody in a pass wants to read."""

    latents: list[int]
    columns: list[Columns]
    """One per row."""
    server_watch: Places
    """Where the server's own watch list is."""


class Wants(NamedTuple):
    """What one row wants to read."""

    watched: tuple[int, ...]
    monitored: tuple[int, ...]


def plan_reading(rows: Sequence[Wants], server_watch: tuple[int, ...]) -> ReadPlan:
    """The plan of a pass over `rows`."""
    latents = sorted(set(server_watch).union(*(latent for row in rows for latent in (row.watched, row.monitored))))
    place = {latent: i for i, latent in enumerate(latents)}

    def places(of: tuple[int, ...]) -> Places:
        return np.array([place[latent] for latent in of], dtype=np.int64)

    columns = [Columns(places(row.watched), places(row.monitored), row.monitored) for row in rows]
    return ReadPlan(latents, columns, places(server_watch))
