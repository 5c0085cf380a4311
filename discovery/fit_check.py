"""Does a dictionary fit the residuals it is said to be for? A wrong hook point or scale shows at once.

    FVU = sum ||x - x_hat||^2 / sum ||x - mean||^2          must be below 0.5
    L0  = mean number of active latents a token             must lie within a factor 3 of what the files say

over residuals of a harvest, those with massive activations left out (see `shards.ordinary`). A dictionary that passes
may still be a bad one; one that fails reads something else than it was trained on.

Shape suffixes: N harvested tokens, D model width.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from discovery.errors import FitError
from discovery.reconstruction import measure_reconstruction
from discovery.shards import finished_shards, load_manifest, load_resid
from sae_runtime.checkpoint import LoadedSAE
from sae_runtime.formats import UNKNOWN
from sae_runtime.hook_point import HookPoint
from sae_runtime.usual_fvu import UsualFVU

MAX_FVU = 0.5
MAX_L0_FACTOR = 3.0


@dataclass(frozen=True, slots=True)
class Fit:
    """Figures on a harvest."""

    harvest: str
    tokens: int
    fvu: float
    """Fraction of variance unexplained, against the harvest's mean."""
    l0: float
    expected_l0: float | None
    """According to the dictionary's files."""
    mean_norm: float
    """Mean ||x|| of the harvest."""
    usual_fvu: UsualFVU
    """Of single tokens: what the server's guard compares with."""

    def as_json(self) -> dict[str, Any]:
        """The figures of the whole; those of single tokens have a place of their own in manifests."""
        return {name: value for name, value in asdict(self).items() if name != "usual_fvu"}


@torch.inference_mode()
def check_fit(sae: LoadedSAE, folder: Path, *, max_tokens: int = 50_000, progress: bool = False) -> Fit:
    """Figures of `sae` on the harvest in `folder`, and its mean residual put into `sae`.

    Raises:
        FitError: another width, hook point or model (where it is bound to one) than the harvest's, or a misfit.
        HarvestError: no harvest, or a shard that is missing or damaged.
    """
    harvest = load_manifest(folder)
    _check_settings(sae, folder, harvest)
    sae.resid_mean.copy_(torch.tensor(harvest["mean"]))
    sums = measure_reconstruction(sae, _pieces(folder, max_tokens, progress))
    record = sae.manifest.training.get("import", {})
    fit = Fit(
        harvest=folder.name,
        tokens=sums.num_tokens,
        fvu=sums.error / sums.spread,
        l0=sums.num_active / sums.num_tokens,
        expected_l0=record.get("expected_l0"),
        mean_norm=harvest["mean_norm"],
        usual_fvu=sums.usual_fvu(),
    )
    _refuse_misfit(sae, folder, fit)
    return fit


def _check_settings(sae: LoadedSAE, folder: Path, harvest: dict[str, Any]) -> None:
    if not harvest.get("finished"):
        raise FitError(f"{folder} must be a finished harvest")
    settings = harvest["settings"]
    if settings["d_model"] != sae.d_model:
        raise FitError(f"{folder} must have residuals of width {sae.d_model}, got {settings['d_model']}")
    hook_point = sae.manifest.hook_point
    if hook_point == UNKNOWN:
        raise FitError("hook point must be stated before it can be checked on a harvest (--hook-point)")
    if not HookPoint.parse(settings["hook_point"]).is_same_residual(sae.manifest.hook):
        raise FitError(f"{folder} must have residuals of {hook_point}, got {settings['hook_point']}")
    for name in ("model_sha256", "quantization"):
        wanted, got = getattr(sae.manifest, name), settings.get(name)
        if wanted not in (UNKNOWN, got):
            raise FitError(f"{folder} must have {name} {wanted}, which the dictionary is bound to, got {got}")


def _pieces(folder: Path, max_tokens: int, progress: bool) -> Iterator[Tensor]:
    """[N, D] residuals of whole shards, until there are `max_tokens`."""
    bar = tqdm(total=max_tokens, desc=f"checking on {folder.name}", unit="tok", unit_scale=True, disable=not progress)
    with bar:
        for path in takewhile(lambda _: bar.n < max_tokens, finished_shards(folder)):
            resid_ND = load_resid(path)[: max_tokens - bar.n]
            yield resid_ND
            bar.n += len(resid_ND)
            bar.refresh()


def _refuse_misfit(sae: LoadedSAE, folder: Path, fit: Fit) -> None:
    where = f"{sae.manifest.name} on {folder}"
    if not fit.fvu < MAX_FVU:
        raise FitError(
            f"fraction of variance unexplained of {where} must be below {MAX_FVU}, got {fit.fvu:.3f}: wrong hook "
            "point, model or normalisation"
        )
    expected = fit.expected_l0
    if expected and not expected / MAX_L0_FACTOR <= fit.l0 <= expected * MAX_L0_FACTOR:
        raise FitError(
            f"active latents a token of {where} must be about {expected:g}, as its files say, got {fit.l0:.1f}: wrong "
            "hook point, model or normalisation"
        )
