"""The feature file: which latents of a dictionary have names. Monitors are packs (`monitors.pack`).

`features.json` lies beside the dictionary and is bound to it by the weights' hash: a latent's index means nothing in
another one. It is read strictly. A key too many, a number as a string or a name used twice is refused, and one error
lists everything wrong, because a file that is half understood makes a monitor that is half on.

    watchlist = Watchlist.load(folder / FEATURES_FILE)
    watchlist.check_binding(sae_sha256, num_latents)
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from monitors import checks
from monitors.errors import MonitorError, Problem, WatchlistError, shown
from monitors.strict_files import STRICT, problems_of, write_whole

FEATURES_FILE = "features.json"
"""Its name in a dictionary's folder."""

FORMAT_VERSION = 2
MAX_DEFAULT_WATCHED = 64
"""Each watched feature is a label value of several metrics; more would make the time series explode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedFeature:
    """A latent that somebody named, and why."""

    index: int
    """Index of the latent."""
    name: str
    description: str
    reference_scale: float
    """A large reading on a benign corpus (its maximum or 99.9th percentile), above 0. Divides readings, so that
    features can be compared."""
    validated: bool
    """Whether held-out evidence supports the name."""
    default_watched: bool
    """Whether the server watches it in every request and exports it."""
    evidence: Mapping[str, Any]
    """Free JSON object: how the name was found, and the measurements and examples for and against it."""

    def __post_init__(self) -> None:
        checks.refuse(
            checks.count("index", self.index, at_least=0),
            checks.slug("name", self.name),
            checks.positive("reference_scale", self.reference_scale),
            checks.flag("validated", self.validated),
            checks.flag("default_watched", self.default_watched),
            checks.json_object("evidence", self.evidence),
        )

    @property
    def slug(self) -> str:
        """The feature's metric label: unique even where two dictionaries give one name to different latents."""
        return f"f{self.index}_{self.name}"


@dataclass(frozen=True)
class Watchlist:
    """Named features of one dictionary. Constructing one raises WatchlistError if they contradict."""

    sae_sha256: str
    """Weights hash of the dictionary."""
    features: tuple[NamedFeature, ...]

    def __post_init__(self) -> None:
        num_default = len(self.default_watched)
        cap = Problem("features", f"at most {MAX_DEFAULT_WATCHED} default_watched", str(num_default))
        _refuse(
            checks.sha256("sae_sha256", self.sae_sha256),
            *checks.distinct("features", "name", [feature.name for feature in self.features]),
            *checks.distinct("features", "index", [feature.index for feature in self.features]),
            cap if num_default > MAX_DEFAULT_WATCHED else None,
        )

    @classmethod
    def load(cls, path: Path) -> "Watchlist":
        """Reads a feature file.

        Raises WatchlistError naming every problem found, OSError if the file cannot be read.
        """
        text = path.read_bytes()
        try:
            return _File.model_validate_json(text).watchlist()
        except ValidationError as error:
            raise WatchlistError(*problems_of(error), path=path) from error
        except MonitorError as error:
            raise WatchlistError(*error.problems, path=path) from error

    def save(self, path: Path) -> None:
        """Writes a feature file in one step: a reader sees the old file or the new one, never half of one."""
        text = json.dumps(self._as_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_whole(path, text)

    def check_binding(self, sae_sha256: str, num_latents: int) -> None:
        """Raises WatchlistError unless this list was made for that dictionary: same weights, every index in it."""
        wanted = f"a latent below {num_latents}"
        indices = [(f"features.{i}.index", feature.index) for i, feature in enumerate(self.features)]
        _refuse(
            _other_hash("sae_sha256", self.sae_sha256, wanted=sae_sha256),
            *(Problem(field, wanted, shown(index)) for field, index in indices if index >= num_latents),
        )

    @cached_property
    def by_name(self) -> dict[str, NamedFeature]:
        """Features by name."""
        return {feature.name: feature for feature in self.features}

    @cached_property
    def by_index(self) -> dict[int, NamedFeature]:
        """Features by latent."""
        return {feature.index: feature for feature in self.features}

    @cached_property
    def default_watched(self) -> tuple[NamedFeature, ...]:
        """Features that the server watches in every request, in the order of the file."""
        return tuple(feature for feature in self.features if feature.default_watched)

    def _as_json(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "sae_sha256": self.sae_sha256,
            "features": [asdict(feature) for feature in self.features],
        }


class _File(BaseModel):
    model_config = STRICT

    format_version: Literal[2]
    sae_sha256: str
    features: tuple[NamedFeature, ...]

    def watchlist(self) -> Watchlist:
        return Watchlist(self.sae_sha256, self.features)


def _refuse(*problems: Problem | None) -> None:
    found = [problem for problem in problems if problem is not None]
    if found:
        raise WatchlistError(*found)


def _other_hash(field: str, got: str, *, wanted: str) -> Problem | None:
    return None if got == wanted else Problem(field, f"{wanted!r}, the dictionary's", shown(got))


NOTHING_NAMED = Watchlist(hashlib.sha256(b"").hexdigest(), ())
"""What is named where there is no dictionary. It is bound to no weights at all."""
