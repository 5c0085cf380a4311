"""What is served, in the words of the API: model, dictionary, latents, features, monitors, what is watched.

Plain lookups over things that do not change while the server runs. No tensors, no wire messages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from monitors.latent_catalogue import LatentCatalogue
from monitors.monitor_spec import MonitorSpec
from monitors.pack_parts import Served
from monitors.watchlist import NOTHING_NAMED, NamedFeature, Watchlist
from sae_runtime.checkpoint import Manifest
from sae_runtime.language_model import ModelIdentity
from service.errors import NotFound
from service.monitor_packs import ServedMonitor


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The served model, as far as clients are told."""

    identity: ModelIdentity
    num_layers: int
    d_model: int
    vocab_size: int
    context_length: int
    eos_token_ids: tuple[int, ...]
    chat_template_sha256: str | None = None
    """Of the template's text; None for a model without one."""


@dataclass(frozen=True)
class Catalog:
    """Everything a request may refer to by name or index."""

    model: ModelFacts
    manifest: Manifest | None
    """The dictionary; None if the model is served without one. There are no features then."""
    mismatches: tuple[str, ...]
    """What does not match between model and dictionary; empty if verified."""
    watchlist: Watchlist
    direction_norms: Sequence[float]
    """Per latent, the norm of what one unit of activation adds to the residual."""
    monitors: tuple[ServedMonitor, ...] = ()
    """By name."""
    latents: LatentCatalogue | None = None
    """What is known of every latent; None if the dictionary has no catalogue."""
    generation: int = 1
    """Grows when named features or monitors change."""
    hook_point: str | None = None
    """Without a dictionary: where raw vectors steer; None if nothing does."""

    @classmethod
    def without_dictionary(
        cls, model: ModelFacts, monitors: tuple[ServedMonitor, ...], *, hook_point: str | None = None
    ) -> "Catalog":
        """A model with probe monitors alone."""
        return cls(model, None, (), NOTHING_NAMED, (), monitors, hook_point=hook_point)

    @property
    def num_latents(self) -> int:
        """0 without a dictionary."""
        return 0 if self.manifest is None else self.manifest.num_latents

    @property
    def steering_point(self) -> str | None:
        """Where steering acts; None if it is refused."""
        return self.hook_point if self.manifest is None else self.manifest.hook_point

    @property
    def default_latents(self) -> tuple[int, ...]:
        """Latents read by requests that name none."""
        return tuple(feature.index for feature in self.watchlist.default_watched)

    @property
    def default_monitors(self) -> tuple[MonitorSpec, ...]:
        """Monitors run by requests that name none: all."""
        return tuple(monitor.spec for monitor in self.monitors)

    @cached_property
    def monitors_by_name(self) -> dict[str, ServedMonitor]:
        """Monitors by name."""
        return {monitor.pack.name: monitor for monitor in self.monitors}

    def monitor_by_name(self, name: str) -> ServedMonitor:
        """NotFound if no monitor has that name."""
        try:
            return self.monitors_by_name[name]
        except KeyError:
            raise NotFound(f"monitor {name!r}") from None

    def feature_by_name(self, name: str) -> NamedFeature:
        """NotFound if no feature has that name."""
        try:
            return self.watchlist.by_name[name]
        except KeyError:
            raise NotFound(f"feature {name!r}") from None


def what_is_served(model: ModelFacts, manifest: Manifest | None) -> Served:
    """What monitor packs are bound to."""
    identity = model.identity
    return Served(
        model_name=identity.name,
        model_sha256=identity.weights_sha256,
        quantization=identity.quantization,
        dtype=identity.dtype,
        chat_template_sha256=model.chat_template_sha256,
        sae_sha256=None if manifest is None else manifest.sae_sha256,
        d_model=model.d_model,
        num_layers=model.num_layers,
        num_latents=0 if manifest is None else manifest.num_latents,
    )


def provenance_mismatches(manifest: Manifest, model: ModelFacts) -> list[str]:
    """Why `manifest`'s dictionary is not known to hold for `model`: one sentence each, empty if it was made for it.

    A different width or too few layers is not among them: such a dictionary can't be served at all.
    """
    identity = model.identity
    pairs = [
        ("model weights", manifest.model_sha256, identity.weights_sha256),
        ("quantization", manifest.quantization, identity.quantization),
    ]
    return [
        f"the dictionary was trained on {what} {trained}, the server runs {served}"
        for what, trained, served in pairs
        if trained != served
    ]
