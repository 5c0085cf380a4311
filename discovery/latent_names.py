"""What latents are called: a feature's name if somebody named it, else the title of its explanation.

Where nobody has said anything, the latent's largest reading in its context is better than nothing. Titles and readings
are those of an example file, or of the dictionary's catalogue where there is none.
"""

from collections.abc import Mapping
from pathlib import Path

from discovery.catalogued_latents import CataloguedLatents
from discovery.example_store import ExampleStore
from monitors.latent_catalogue import CATALOGUE_FILE
from monitors.watchlist import FEATURES_FILE, NamedFeature, Watchlist
from sae_runtime.checkpoint import Manifest

STORE_FILE = "examples.sqlite"
"""Where a dictionary's own example file lies, in its folder."""

KnownLatents = ExampleStore | CataloguedLatents
"""What knows latents by titles, largest readings and words."""

_TOKENS_BEFORE, _TOKENS_AFTER = 6, 2


class LatentNames:
    """Names of a dictionary's latents."""

    def __init__(
        self, features: Mapping[int, NamedFeature], titles: Mapping[int, str], known: KnownLatents | None = None
    ) -> None:
        self.features, self.titles, self._known = features, titles, known

    def of(self, latent: int) -> str:
        """The name, else the title, else nothing."""
        feature = self.features.get(latent)
        return feature.name if feature else self.titles.get(latent, "")

    def index(self, name: str) -> int | None:
        """The latent that a feature file gives that name; None if it gives it to none."""
        return next((latent for latent, feature in self.features.items() if feature.name == name), None)

    def example(self, latent: int) -> str:
        """The latent's largest reading, a few tokens before it, itself between » and «; nothing if it is not known."""
        best = self._known.best_example(latent) if self._known else None
        if best is None:
            return ""
        before = "".join(best.pieces[max(0, best.focus - _TOKENS_BEFORE) : best.focus])
        after = "".join(best.pieces[best.focus + 1 : best.focus + 1 + _TOKENS_AFTER])
        here = best.pieces[best.focus]
        word = here.lstrip(" ") or here
        return f"{before}{here[: len(here) - len(word)]}»{word}«{after}".strip()


def load_watchlist(folder: Path, manifest: Manifest, path: Path | None = None) -> Watchlist | None:
    """The feature file at `path`, else the dictionary's own if it has one. WatchlistError if it is another one's."""
    if path is None and not (folder / FEATURES_FILE).is_file():
        return None
    watchlist = Watchlist.load(path or folder / FEATURES_FILE)
    watchlist.check_binding(manifest.sae_sha256, manifest.num_latents)
    return watchlist


def load_names(folder: Path, manifest: Manifest, known: KnownLatents | None) -> LatentNames:
    """The names in the dictionary's folder and the titles of `known`, as far as they are there and belong to it."""
    watchlist = load_watchlist(folder, manifest)
    return LatentNames(watchlist.by_index if watchlist else {}, known.titles() if known else {}, known)


def open_store(path: Path | None, folder: Path, manifest: Manifest) -> ExampleStore | None:
    """The example file at `path`, else the dictionary's own if it has one. ExampleError if it is another one's."""
    if path is None and not (folder / STORE_FILE).is_file():
        return None
    return ExampleStore.open(path or folder / STORE_FILE, sae_sha256=manifest.sae_sha256)


def open_known(path: Path | None, folder: Path, manifest: Manifest) -> KnownLatents | None:
    """The example file that `open_store` gives, else the dictionary's catalogue if it has one.

    ExampleError, CatalogueError if what there is can't be used, or is another dictionary's.
    """
    store = open_store(path, folder, manifest)
    if store is not None or not (folder / CATALOGUE_FILE).is_file():
        return store
    return CataloguedLatents.open(
        folder / CATALOGUE_FILE, sae_sha256=manifest.sae_sha256, num_latents=manifest.num_latents
    )
