"""The tiny model and its dictionary on disk, as `telltale serve` takes them."""

import json
from dataclasses import replace
from pathlib import Path

import tiny
from serving import manifest, monitor_packs, watchlist

from monitors.pack import PACK_SUFFIX
from monitors.watchlist import Watchlist
from sae_runtime.checkpoint import Manifest, save_sae
from sae_runtime.language_model import LanguageModel, load_language_model

LONG_CONTEXT = 8192


def write_model(folder: Path, *, context_length: int = LONG_CONTEXT, made: LanguageModel | None = None) -> str:
    """Save the tiny model, or the one given, and its tokenizer; returns the hash of the weights."""
    made = made or tiny.language_model()
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": context_length}
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load_language_model(str(folder), dtype="float32", device="cpu", cache_dir=folder.parent / "cache")
    return loaded.identity.weights_sha256


def write_dictionary(folder: Path, model_sha256: str, d_model: int = tiny.D_MODEL, **changes: object) -> Manifest:
    """Save the tiny dictionary, as made for these weights."""
    made = manifest(model_sha256=model_sha256, d_model=d_model, **changes)
    return save_sae(tiny.sae(d_model=d_model), made, folder)


def write_features(folder: Path, sae_sha256: str) -> None:
    """Save the test's named features beside a dictionary."""
    Watchlist(sae_sha256, watchlist().features).save(folder / "features.json")


def write_packs(folder: Path, model_sha256: str, sae_sha256: str) -> None:
    """Save the test's monitors, as made for these weights and this dictionary."""
    folder.mkdir(exist_ok=True)
    for pack in monitor_packs():
        bindings = replace(pack.bindings, model_sha256=model_sha256, sae_sha256=sae_sha256)
        replace(pack, bindings=bindings).save(folder / f"{pack.name}{PACK_SUFFIX}")
