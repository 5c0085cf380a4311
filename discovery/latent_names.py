"""What latents are called: a feature's name if somebody named it, else the title of its explanation.

Where nobody has said anything, the latent's largest reading in its context is better than nothing.
"""

from collections.abc import Mapping
from pathlib import Path

from discovery.example_store import ExampleStore
from monitors.watchlist import FEATURES_FILE, NamedFeature, Watchlist
from sae_runtime.checkpoint import Manifest

STORE_FILE = "examples.sqlite"
"""Where a dictionary's own example file lies, in its folder."""

_TOKENS_BEFORE, _TOKENS_AFTER = 6, 2


class LatentNames:
    """Names of a dictionary's latents."""

    def __init__(
        self, features: Mapping[int, NamedFeature], titles: Mapping[int, str], store: ExampleStore | None = None
    ) -> None:
        self.features, self.titles, self._store = features, titles, store

    def of(self, latent: int) -> str:
        """The name, else the title, else nothing."""
        feature = self.features.get(latent)
        return feature.name if feature else self.titles.get(latent, "")

    def index(self, name: str) -> int | None:
        """The latent that a feature file gives that name; None if it gives it to none."""
        return next((latent for latent, feature in self.features.items() if feature.name == name), None)

    def example(self, latent: int) -> str:
        """The latent's largest reading, a few tokens before it, itself between » and «; nothing without a store."""
        best = self._store.best_example(latent) if self._store else None
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


def load_names(folder: Path, manifest: Manifest, store: ExampleStore | None) -> LatentNames:
    """The names in the dictionary's folder and the titles in `store`, as far as they are there and belong to it."""
    watchlist = load_watchlist(folder, manifest)
    titles = {explanation.latent: explanation.title for explanation in store.explanations()} if store else {}
    return LatentNames(watchlist.by_index if watchlist else {}, titles, store)


def open_store(path: Path | None, folder: Path, manifest: Manifest) -> ExampleStore | None:
    """The example file at `path`, else the dictionary's own if it has one. ExampleError if it is another one's."""
    if path is None and not (folder / STORE_FILE).is_file():
        return None
    return ExampleStore.open(path or folder / STORE_FILE, sae_sha256=manifest.sae_sha256)
