"""The guards of a server: is the dictionary on its distribution, do inputs fire at all, have monitors' values drifted?

Fed on the event loop with the engine's records; what they find is told to clients and to the metrics. They judge, and
change nothing: no score is dropped and no reply stopped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from monitors.drift import Drift, DriftWindow, FinishedReply
from monitors.silence import InputActivity
from sae_runtime.fidelity_figures import FidelityFigures
from service.catalog import Catalog
from service.reconstruction_guard import ReconstructionGuard
from service.records import RequestRecord, StepRecord


@dataclass(frozen=True, slots=True)
class Guarded:
    """What there is to guard."""

    reconstruction: ReconstructionGuard
    fidelity: tuple[FidelityFigures, ...]
    latents: tuple[int, ...]
    """Those that monitors read or that are watched by default, ascending."""

    @classmethod
    def of(cls, catalog: Catalog) -> Self:
        """CheckpointError for figures in the dictionary's manifest that make no sense."""
        read = {latent for monitor in catalog.monitors for latent in monitor.spec.latents}
        return cls(
            ReconstructionGuard.of(catalog.manifest),
            () if catalog.manifest is None else FidelityFigures.all_of(catalog.manifest),
            tuple(sorted(read.union(catalog.default_latents))),
        )


class Guards:
    """All guards of one server. One thread uses it."""

    def __init__(self, guarded: Guarded, catalog: Catalog, probe_names: Sequence[str]) -> None:
        """`probe_names` are the columns of the records' probes."""
        self.guarded = guarded
        self._latents = [
            InputActivity(_label(catalog, latent), latent, _density(catalog, latent)) for latent in guarded.latents
        ]
        self._probes = [InputActivity(name, None, None) for name in probe_names]
        self._last_values_P: NDArray[np.float32] | None = None
        self._windows = {
            monitor.pack.name: DriftWindow(monitor.pack.calibration.reference)
            for monitor in catalog.monitors
            if monitor.pack.calibration is not None and monitor.pack.calibration.reference is not None
        }

    @property
    def inputs(self) -> list[InputActivity]:
        """All inputs: latents, then probes."""
        return [*self._latents, *self._probes]

    @property
    def drifting(self) -> dict[str, Drift]:
        """How far each monitor has moved, of those that can be told."""
        return {name: window.drift() for name, window in self._windows.items()}

    def inputs_of(self, monitor: Any) -> list[InputActivity]:
        """Those that one monitor reads."""
        latents, probes = set(monitor.spec.latents), set(monitor.spec.probes)
        return [one for one in self.inputs if (one.name in probes if one.feature is None else one.feature in latents)]

    def drift(self, monitor: str) -> Drift | None:
        """How far a monitor has moved; None if its pack has nothing to compare with."""
        window = self._windows.get(monitor)
        return None if window is None else window.drift()

    def observe_step(self, record: StepRecord) -> None:
        """Count a pass's tokens."""
        if record.inputs_NG is not None:
            _add_all(self._latents, record.inputs_NG > 0)
        if record.probes_NP is not None and len(record.probes_NP):
            _add_all(self._probes, self._changes(record.probes_NP))

    def observe_request(self, record: RequestRecord) -> list[FinishedReply]:
        """Count a request's reply; the replies that were compared with a calibration."""
        counted = [reply for reply in record.monitored if reply.monitor in self._windows]
        for reply in counted:
            self._windows[reply.monitor].add(reply)
        return counted

    def _changes(self, values_NP: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Where a value is another than the last one of the pass before; everywhere in the first pass.

        Tokens of one pass are not compared: requests that are alike and go in step read the same there.
        """
        before_P = self._last_values_P
        self._last_values_P = values_NP[-1]
        return np.ones(values_NP.shape, np.bool_) if before_P is None else np.asarray(values_NP != before_P)


def _add_all(inputs: Sequence[InputActivity], active_NG: NDArray[np.bool_]) -> None:
    """Count tokens (rows) of each input (columns)."""
    num_tokens = len(active_NG)
    num_active_G = active_NG.sum(axis=0).tolist()
    since_G = active_NG[::-1].argmax(axis=0).tolist() if num_tokens else num_active_G
    for one, num_active, since in zip(inputs, num_active_G, since_G, strict=True):
        one.add(num_tokens, num_active, since)


def _label(catalog: Catalog, latent: int) -> str:
    """The same as in the metrics of its readings."""
    named = catalog.watchlist.by_index.get(latent)
    return named.slug if named else f"f{latent}"


def _density(catalog: Catalog, latent: int) -> float | None:
    """Share of tokens of the catalogue's corpus at which the latent is active; None if that is not known, or none."""
    catalogue = catalog.latents
    if catalogue is None or not catalogue.figures[latent].num_active:
        return None
    return catalogue.figures[latent].num_active / catalogue.num_tokens
