"""The embedded dictionary's own catalogue: it belongs to it, stays small, and quotes what may be quoted alone."""

import pytest

from monitors.latent_catalogue import CATALOGUE_FILE, LatentCatalogue
from monitors.latent_words import rank
from monitors.watchlist import Watchlist
from sae_runtime.checkpoint import load_manifest
from service.served_dictionary import DICTIONARIES, EMBEDDED_DICTIONARY

FOLDER = DICTIONARIES / EMBEDDED_DICTIONARY
MANIFEST = load_manifest(FOLDER)


@pytest.fixture(scope="module")
def catalogue():
    opened = LatentCatalogue.open(FOLDER / CATALOGUE_FILE)
    yield opened
    opened.close()


def test_it_belongs_to_the_dictionary_and_the_model(catalogue):
    catalogue.check_binding(MANIFEST.sae_sha256, MANIFEST.num_latents)
    for name in ("model_sha256", "quantization", "hook_point"):
        assert catalogue.manifest[name] == getattr(MANIFEST, name)


def test_it_stays_small():
    assert (FOLDER / CATALOGUE_FILE).stat().st_size < 6e6


def test_every_live_latent_can_be_shown_and_quotes_only_what_may_be_quoted(catalogue):
    quoted = catalogue.manifest["quoted_sources"]
    assert quoted and all(licence.strip() for licence in quoted.values())
    for latent, figures in enumerate(catalogue.figures):
        entry = catalogue.entry(latent)
        assert {example.source for example in entry.examples} <= set(quoted)
        assert sum(entry.histogram) == figures.num_active
        assert bool(entry.promoted) == (figures.num_active > 0)
        if entry.examples:
            readings = [example.reading for example in entry.examples]
            assert readings == sorted(readings, reverse=True) and readings[0] <= figures.max * (1 + 1e-6)


def test_named_features_are_live_and_whales_are_found(catalogue):
    for feature in Watchlist.load(FOLDER / "features.json").features:
        assert catalogue.figures[feature.index].num_active > 0
    (first, _), *others = rank([catalogue.latents_with("whale")], len(catalogue.figures))
    assert "whale" in catalogue.entry(first).said.dominant_tokens
    assert others
