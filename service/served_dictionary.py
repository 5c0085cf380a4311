"""The dictionary of a server with what belongs to it: named features, catalogue, and how well it fits the model.

What can't be served is refused; what is not known to hold is refused too, unless the operator allows it. A model may be
served without one: `NothingToRead` stands where `ServedDictionary` would.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from monitors.latent_catalogue import CATALOGUE_FILE, LatentCatalogue
from monitors.watchlist import FEATURES_FILE, Watchlist
from sae_runtime.checkpoint import LoadedSAE, Manifest, load_sae
from sae_runtime.errors import CheckpointError, ModelError
from sae_runtime.hook_point import HookPoint
from sae_runtime.latent_reader import NoDictionary
from sae_runtime.steering_spec import SteeringLimits
from service.catalog import Catalog, ModelFacts, provenance_mismatches
from service.config import EMBEDDED, NO_DICTIONARY, Settings
from service.monitor_packs import ServedMonitor

EMBEDDED_DICTIONARY = "smollm2-135m-instruct-layer16"
DICTIONARIES = Path(__file__).parent.parent / "sae_runtime" / "dictionaries"


@dataclass(frozen=True)
class ServedDictionary:
    """A dictionary that was checked against the served model."""

    sae: LoadedSAE
    mismatches: tuple[str, ...]
    """What does not match the model; empty if it was made for it."""
    watchlist: Watchlist
    latents: LatentCatalogue | None

    @property
    def manifest(self) -> Manifest:
        return self.sae.manifest

    @property
    def tapped(self) -> HookPoint:
        """Where residuals are read, and steered."""
        return self.manifest.hook

    @property
    def num_bytes(self) -> int:
        """Of its tensors."""
        return sum(t.numel() * t.element_size() for t in self.sae.state_dict().values())

    def steering_limits(self, max_relative_norm: float) -> SteeringLimits:
        return SteeringLimits.of(self.sae, self.manifest.resid_norm_mean, max_relative_norm)

    def catalog(self, model: ModelFacts, monitors: tuple[ServedMonitor, ...]) -> Catalog:
        """What a request may refer to."""
        norms = self.steering_limits(1.0).direction_norms
        return Catalog(model, self.manifest, self.mismatches, self.watchlist, norms, monitors, self.latents)


@dataclass(frozen=True)
class NothingToRead:
    """No dictionary, and where residuals are steered all the same."""

    sae: NoDictionary
    num_layers: int
    d_model: int
    hook_point: HookPoint | None
    """None if nothing is to be steered."""

    manifest = None
    num_bytes = 0

    @property
    def tapped(self) -> HookPoint:
        """Where residuals are steered. If nowhere, the last block's output shows that the model read every token, and
        that it is finite."""
        return self.hook_point or HookPoint(self.num_layers - 1)

    def steering_limits(self, max_relative_norm: float) -> SteeringLimits:
        return SteeringLimits.without_dictionary(self.d_model, max_relative_norm)

    def catalog(self, model: ModelFacts, monitors: tuple[ServedMonitor, ...]) -> Catalog:
        """What a request may refer to."""
        hook_point = None if self.hook_point is None else str(self.hook_point)
        return Catalog.without_dictionary(model, monitors, hook_point=hook_point)


def dictionary_folder(settings: Settings) -> Path | None:
    """Where the dictionary lies that was asked for; None if the model is to be served without one."""
    if settings.sae == NO_DICTIONARY:
        return None
    return DICTIONARIES / EMBEDDED_DICTIONARY if settings.sae == EMBEDDED else Path(settings.sae)


def load_dictionary(
    settings: Settings, folder: Path | None, model: ModelFacts, device: torch.device
) -> ServedDictionary | NothingToRead:
    """The one in `folder`, or none. CheckpointError, ModelError or MonitorError say what is wrong with it, or does not
    fit the model."""
    if folder is None:
        return _without(settings.hook_point, model, device)
    sae = load_sae(folder, device=device)
    own = sae.manifest.hook
    if settings.hook_point is not None and not HookPoint.parse(settings.hook_point).is_same_residual(own):
        raise CheckpointError(f"hook_point must be unset or {own}, the dictionary's, got {settings.hook_point}")
    try:
        mismatches = _check_fit(sae.manifest, model, allow_unverified=settings.allow_unverified)
    except CheckpointError as error:
        if settings.sae != EMBEDDED:
            raise
        # Nobody chose it: it is the default.
        raise CheckpointError(
            f"{error}. The embedded dictionary is for the embedded model: name this model's own with --sae FOLDER, or "
            "serve it with probe monitors alone, --sae none"
        ) from None
    watchlist = _load_watchlist(sae.manifest, settings.features_file, folder)
    latents = _load_catalogue(sae.manifest, settings.catalogue_file, folder)
    return ServedDictionary(sae, tuple(mismatches), watchlist, latents)


def _without(steered: str | None, model: ModelFacts, device: torch.device) -> NothingToRead:
    hook_point = None if steered is None else HookPoint.parse(steered)
    if hook_point is not None and hook_point.layer >= model.num_layers:
        raise ModelError(f"hook_point must name one of the model's {model.num_layers} layers, got {hook_point}")
    return NothingToRead(NoDictionary(device), model.num_layers, model.d_model, hook_point)


def _check_fit(manifest: Manifest, model: ModelFacts, *, allow_unverified: bool) -> list[str]:
    """What does not match but is allowed to."""
    if manifest.d_model != model.d_model:
        raise CheckpointError(
            f"dictionary {manifest.name} is for width {manifest.d_model}, the model has {model.d_model}"
        )
    if manifest.hook.layer >= model.num_layers:
        raise CheckpointError(
            f"dictionary {manifest.name} reads {manifest.hook_point}, the model has {model.num_layers} layers"
        )
    mismatches = provenance_mismatches(manifest, model)
    if mismatches and not allow_unverified:
        raise CheckpointError(f"{'; '.join(mismatches)}. Use allow_unverified to serve it all the same")
    return mismatches


def _load_watchlist(manifest: Manifest, asked_for: Path | None, folder: Path) -> Watchlist:
    """The feature file, checked against the dictionary; an empty list where there is none and none was asked for."""
    path = asked_for or folder / FEATURES_FILE
    if asked_for is None and not path.exists():
        return Watchlist(manifest.sae_sha256, ())
    watchlist = Watchlist.load(path)
    watchlist.check_binding(manifest.sae_sha256, manifest.num_latents)
    return watchlist


def _load_catalogue(manifest: Manifest, asked_for: Path | None, folder: Path) -> LatentCatalogue | None:
    """The latent catalogue, checked against the dictionary; None where there is none and none was asked for."""
    path = asked_for or folder / CATALOGUE_FILE
    if asked_for is None and not path.exists():
        return None
    catalogue = LatentCatalogue.open(path)
    catalogue.check_binding(manifest.sae_sha256, manifest.num_latents)
    return catalogue
