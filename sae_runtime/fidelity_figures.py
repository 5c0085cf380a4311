"""What a dictionary reads on another form of its model than it was trained on: comparisons kept in its manifest.

`telltale lab fidelity --write` makes them and has the formulas; the server tells its clients. They lie under
`metrics.fidelity`, one for each pair of forms.
"""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sae_runtime.checkpoint import Manifest
from sae_runtime.errors import CheckpointError

KEY = "fidelity"


class FidelityFigures(BaseModel):
    """One comparison."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    first: str
    """The form it was trained on, in words."""
    against: str
    """The other."""
    tokens: int = Field(gt=0)
    residual_relative_error: float = Field(ge=0, allow_inf_nan=False)
    """Norm of the residuals' difference, relative to their spread."""
    median_correlation: float = Field(ge=-1, le=1)
    """Over latents, of their readings on the two."""
    flip_ratio: float = Field(ge=0, le=1)
    """Of the readings active on either, the share active on one only."""
    l0: tuple[float, float]
    variance_explained: tuple[float, float]
    may_be_served: bool
    """Whether all limits of the comparison held."""

    @classmethod
    def all_of(cls, manifest: Manifest) -> tuple[Self, ...]:
        """Those of a manifest; CheckpointError for one that makes no sense."""
        records = manifest.metrics.get(KEY, [])
        if not isinstance(records, list):
            raise CheckpointError(f"metrics.{KEY} must be a list of comparisons, got {type(records).__name__}")
        try:
            return tuple(cls.model_validate(record) for record in records)
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise CheckpointError(f"metrics.{KEY}: {problems}") from None

    def added_to(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """A manifest's metrics with this comparison, in the place of an earlier one of the same two."""
        others = [r for r in metrics.get(KEY, []) if (r.get("first"), r.get("against")) != (self.first, self.against)]
        return {**metrics, KEY: [*others, self.model_dump(mode="json")]}
