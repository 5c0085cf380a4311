"""What a token's fraction of variance unexplained usually is: frozen in a dictionary's manifest, read by the server.

    fvu = ||x - x_hat||^2 / ||x - mean||^2          mean: `resid_mean`, which the dictionary carries

A token whose FVU lies above the 99.9 % quantile over ordinary held-out tokens is one that the dictionary does not
describe: what it reads there is of a residual unlike those it was trained on. By the quantile's meaning one ordinary
token in 1,000 is such a token too. The quantiles lie in the manifest under `metrics.token_fvu`, where `telltale lab
evaluate --write` and, for an imported dictionary, `telltale lab import --check` put them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sae_runtime.checkpoint import Manifest
from sae_runtime.errors import CheckpointError

KEY = "token_fvu"
QUANTILES = {"50%": 0.5, "95%": 0.95, "99%": 0.99, "99.9%": 0.999}
LIMIT = "99.9%"
MIN_TOKENS = 10_000
"""With fewer, ten tokens or none lie above the quantile, and it says little."""


@dataclass(frozen=True, slots=True)
class UsualFVU:
    """Quantiles of a token's FVU over ordinary tokens that the dictionary was not trained on."""

    tokens: int
    """Tokens they were measured on."""
    quantiles: Mapping[str, float]
    """By the names of QUANTILES."""

    @property
    def limit(self) -> float:
        """Above it a token is off distribution."""
        return self.quantiles[LIMIT]

    def as_json(self) -> dict[str, Any]:
        """As the manifest has it."""
        return {"tokens": self.tokens, "quantiles": dict(self.quantiles)}

    @classmethod
    def of(cls, manifest: Manifest) -> "UsualFVU | None":
        """What a manifest says; None if it says nothing.

        CheckpointError for figures that make no sense, or that rest on fewer than MIN_TOKENS.
        """
        record = manifest.metrics.get(KEY)
        if record is None:
            return None
        record = record if isinstance(record, dict) else {}
        quantiles = record.get("quantiles")
        quantiles = quantiles if isinstance(quantiles, dict) else {}
        found = quantiles.get(LIMIT)
        if not isinstance(found, int | float) or not (math.isfinite(found) and found >= 0):
            raise CheckpointError(f"metrics.{KEY}.quantiles.{LIMIT} must be a number of 0 or more, got {found!r}")
        tokens = record.get("tokens")
        if not isinstance(tokens, int) or tokens < MIN_TOKENS:
            raise CheckpointError(f"metrics.{KEY}.tokens must be at least {MIN_TOKENS}, got {tokens!r}")
        return cls(tokens, {str(name): float(value) for name, value in quantiles.items()})
