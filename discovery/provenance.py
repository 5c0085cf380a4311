"""Whether residuals are of the model and the place that a dictionary was made for, and new to it; named if not.

Of an imported dictionary the model is often unknown, and what it was trained on too; what is unknown is not compared.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from discovery.errors import FitError, HarvestError
from sae_runtime.checkpoint import Manifest
from sae_runtime.formats import UNKNOWN
from sae_runtime.hook_point import HookPoint
from sae_runtime.language_model import LanguageModel

COMPARED = ("model_sha256", "quantization", "hook_point", "d_model")


def check_provenance(manifest: Manifest, facts: Mapping[str, Any], what: object) -> None:
    """FitError if one of `facts`, by the names they have in manifests, is not the dictionary's. Others are passed over.

    A fact that `facts` has as None is refused: it should be known.
    """
    for name in COMPARED:
        wanted = getattr(manifest, name)
        if name in facts and wanted != UNKNOWN and not _agree(name, wanted, facts[name]):
            raise FitError(
                f"{name} of {what} must be the dictionary's {wanted}, got {facts[name]} (--unverified goes on)"
            )


def check_model(manifest: Manifest, lm: LanguageModel, *, unverified: bool) -> None:
    """FitError if `lm` is not the dictionary's model; if it is `unverified`, only if the dictionary can't read it."""
    what = f"model {lm.identity.name}"
    if lm.d_model != manifest.d_model:
        raise FitError(f"d_model of {what} must be the dictionary's {manifest.d_model}, got {lm.d_model}")
    if not unverified:
        check_provenance(manifest, model_facts(lm), what)


def check_harvest(manifest: Manifest, settings: Mapping[str, Any], folder: Path) -> None:
    """FitError if the harvest in `folder`, of these `settings`, is of another model, quantisation or place."""
    check_provenance(manifest, {name: settings.get(name) for name in COMPARED}, f"harvest {folder}")


def check_unseen(manifest: Manifest, contexts_sha256: str | None, what: object) -> None:
    """HarvestError if the dictionary, or one that it went on from, was trained on these contexts."""
    training: Any = manifest.training
    while isinstance(training, dict):
        data = training.get("data")
        for source in data if isinstance(data, list) else []:
            is_same = isinstance(source, dict) and source.get("contexts_sha256") == contexts_sha256
            if is_same and contexts_sha256 is not None:
                raise HarvestError(
                    f"{what}: the dictionary must not have been trained on it, but its training data have the same "
                    f"contexts_sha256 {contexts_sha256} (--trained-on goes on)"
                )
        training = training.get("started_from")


def model_facts(lm: LanguageModel) -> dict[str, Any]:
    """What `check_provenance` compares of a model."""
    return {
        "model_sha256": lm.identity.weights_sha256,
        "quantization": lm.identity.quantization,
        "d_model": lm.d_model,
    }


def _agree(name: str, wanted: Any, got: Any) -> bool:
    if name == "hook_point" and isinstance(got, str) and got != UNKNOWN:
        return HookPoint.parse(got).is_same_residual(HookPoint.parse(wanted))
    return bool(got == wanted)
