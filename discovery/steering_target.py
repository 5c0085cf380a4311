"""What is steered, and how strongly: a feature by name, a latent by index, or a vector file; strengths with a unit.

    raw         as it is: ADD multiples of the direction, SET the reading, SCALE a factor on the current reading
    reference   multiples of the feature's reference scale, its 99.9th percentile in ordinary text (ADD, SET); a feature
                file states it, `discovery.reading_scale` tells it of other latents
    maximum     multiples of its largest reading in held-out text (ADD, SET)
    relative    multiples of ||h|| at that position, along the direction's unit vector (ADD, SET)

"30x" alone says little: of its maximum (what papers clamp to), of its current reading (a factor, nothing where it is
silent), or of the bare decoder row are different things. All end up as a `SteeringSpec`, and so in the server's terms.

Shape suffixes: T positions, D model width.
"""

import math
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from discovery.errors import SearchError, SteerError
from discovery.latent_search import read_direction
from discovery.reading_scale import ReadingScale
from monitors.watchlist import NamedFeature, Watchlist
from sae_runtime.sae import SAE
from sae_runtime.steering_spec import ALL_BUT_FIRST, PositionScope, SteeringOp, SteeringSpec, StrengthUnit

Unit = Literal["raw", "reference", "maximum", "relative"]
UNITS: tuple[Unit, ...] = get_args(Unit)
OPS = (SteeringOp.ADD, SteeringOp.SET, SteeringOp.SCALE)


class Target(NamedTuple):
    """What is steered and read."""

    name: str
    direction: int | tuple[float, ...]
    reference_scale: float | None = None
    """A large reading, in units of the reading; None if nobody has said so."""
    maximum: float | None = None
    """Its largest reading in held-out text."""

    def read(self, sae: SAE, resid_TD: Tensor) -> Tensor:
        """[T] readings: the latent's activation, or the residual's coordinate along a vector."""
        if isinstance(self.direction, int):
            return sae.read(resid_TD, [self.direction])[:, 0]
        vector_D = torch.tensor(self.direction, dtype=torch.float32, device=resid_TD.device)
        return resid_TD.to(torch.float32) @ (vector_D / vector_D.norm())


class Grid(NamedTuple):
    """The strengths of a study, all of one operation and unit."""

    op: SteeringOp
    unit: Unit
    strengths: tuple[float, ...]
    scope: PositionScope = PositionScope.ALL
    first_position: bool = False
    """Whether position 0 is steered too. It carries a massive activation that all later tokens attend to, and a
    feature's reading there means nothing."""


def find_target(text: str, sae: SAE, watchlist: Watchlist | None) -> Target:
    """The target named by a latent's index, a feature's name, or a vector file. SteerError if it is none of them."""
    by_name = watchlist.by_name if watchlist else {}
    if text in by_name:
        return feature_target(by_name[text])
    if text.isdecimal() and int(text) < sae.num_latents:
        feature = watchlist.by_index.get(int(text)) if watchlist else None
        return feature_target(feature) if feature else Target(f"latent {text}", int(text))
    if not text.isdecimal() and Path(text).is_file():
        try:
            return Target(Path(text).name, tuple(read_direction(text, sae).tolist()))
        except SearchError as error:
            raise SteerError(str(error)) from None
    known = f"a feature ({', '.join(sorted(by_name))}), " if by_name else ""
    raise SteerError(f"feature must be {known}a latent in 0..{sae.num_latents - 1} or a vector file, got {text!r}")


def feature_target(feature: NamedFeature) -> Target:
    """A named feature, with the sizes that its file states."""
    stated = feature.evidence.get("max_held_out")
    maximum = float(stated) if isinstance(stated, int | float) and stated > 0 else None
    return Target(feature.name, feature.index, feature.reference_scale, maximum)


def with_scale(target: Target, scale: ReadingScale | None) -> Target:
    """The target with the sizes that nobody has stated."""
    if scale is None:
        return target
    reference = scale.reference if target.reference_scale is None else target.reference_scale
    return target._replace(
        reference_scale=reference, maximum=scale.maximum if target.maximum is None else target.maximum
    )


def spec_of(target: Target, grid: Grid, strength: float) -> SteeringSpec:
    """One point of the grid as the server would be asked for it. SteerError, SteeringError if it makes no sense."""
    if grid.op is SteeringOp.SCALE and grid.unit != "raw":
        raise SteerError(f"unit must be raw for scale (a factor on the current reading), got {grid.unit}")
    if not math.isfinite(strength):
        raise SteerError(f"strength must be finite, got {strength}")
    return SteeringSpec(
        direction=target.direction,
        op=grid.op,
        strength=strength * unit_size(target, grid.unit),
        unit=StrengthUnit.RELATIVE if grid.unit == "relative" else StrengthUnit.RAW,
        scope=grid.scope,
        window=None if grid.first_position else ALL_BUT_FIRST,
    )


def unit_size(target: Target, unit: Unit) -> float:
    """What 1 of `unit` is in the terms of a `SteeringSpec`. SteerError if nobody has said how large that is."""
    sizes = {"raw": 1.0, "relative": 1.0, "reference": target.reference_scale, "maximum": target.maximum}
    size = sizes[unit]
    if size is None or not (math.isfinite(size) and size > 0):
        flag = "--reference-scale" if unit == "reference" else "--maximum"
        raise SteerError(
            f"{flag} must say how large a reading of {target.name} is (above 0), or --store have it, got {size}"
        )
    return size


def parse_strengths(text: str) -> tuple[float, ...]:
    """Strengths with commas, each once, in order. SteerError for what is no list of finite numbers."""
    try:
        strengths = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise SteerError(f"strengths must be numbers with commas, got {text!r}") from None
    if not all(map(math.isfinite, strengths)):
        raise SteerError(f"strengths must be finite, got {text!r}")
    return tuple(strengths)
