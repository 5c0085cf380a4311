"""The tiny model and its dictionary on disk, as `telltale serve` takes them."""

import json
from pathlib import Path

import tiny
from serving import manifest, watchlist

from monitors.monitor import MonitorSpec
from monitors.watchlist import Watchlist
from sae_runtime.checkpoint import Manifest, save_sae
from sae_runtime.language_model import load_language_model

LONG_CONTEXT = 8192


def write_model(folder: Path, *, context_length: int = LONG_CONTEXT) -> str:
    """Save the tiny model and its tokenizer; returns the hash of the weights."""
    made = tiny.language_model()
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": context_length}
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load_language_model(str(folder), dtype="float32", device="cpu", cache_dir=folder.parent / "cache")
    return loaded.identity.weights_sha256


def write_dictionary(folder: Path, model_sha256: str, **changes: object) -> Manifest:
    """Save the tiny dictionary, as made for these weights."""
    return save_sae(tiny.sae(), manifest(model_sha256=model_sha256, **changes), folder)


def write_features(folder: Path, sae_sha256: str) -> None:
    """Save the test's named features and monitors beside a dictionary."""
    made = watchlist()

    def bound(spec: MonitorSpec) -> MonitorSpec:
        fields = {name: getattr(spec, name) for name in MonitorSpec.__dataclass_fields__}
        return MonitorSpec(**(fields | {"sae_sha256": sae_sha256}))

    Watchlist(sae_sha256, made.features, tuple(map(bound, made.monitors))).save(folder / "features.json")
