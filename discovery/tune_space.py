"""What a search over recipes varies: fields of `TrainSettings`, each with the values it may take.

    sparsity_weight=loguniform:0.5:20     drawn, even in its logarithm; rounded to four digits
    decay_share=uniform:0.1:0.8           drawn, even
    k=randint:16:128                      a whole number, both ends included
    num_latents=choice:4096,8192          drawn from a list
    batch_size=grid:1024,2048             every one of a list, with all other draws

A trial's draws follow from the seed and its number alone. Draws that repeat an earlier trial are drawn again: the same
recipe gives the same dictionary.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from typing import Any, NamedTuple

from discovery.errors import TuneError
from discovery.train_settings import TrainSettings

KINDS = ("loguniform", "uniform", "randint", "choice", "grid")

_FIELDS = asdict(TrainSettings())
_REPEATS = 1000
"""Draws in a row that bring nothing new, after which a space counts as used up."""

_SPARSITY = {
    "relu": "sparsity_weight=loguniform:0.5:20",
    "gated": "sparsity_weight=loguniform:0.5:20",
    "jumprelu": "sparsity_weight=loguniform:0.1:5",
    "topk": "k=choice:32,64,128",
    "batchtopk": "k=choice:32,64,128",
}


class Dimension(NamedTuple):
    """One field and where its values come from."""

    name: str
    kind: str
    values: tuple[Any, ...]
    """(lowest, highest), or the list."""

    @classmethod
    def parse(cls, text: str) -> "Dimension":
        """`FIELD=KIND:...`; TuneError with what is wrong."""
        name, equals, rest = text.partition("=")
        kind, colon, values = rest.partition(":")
        name = name.strip().replace("-", "_")
        if not equals or not colon or kind not in KINDS:
            raise TuneError(f"--search must be FIELD=KIND:VALUES with KIND one of {', '.join(KINDS)}, got {text!r}")
        if name not in _FIELDS:
            raise TuneError(f"--search must name one of {', '.join(_FIELDS)}, got {name!r}")
        separator = "," if kind in ("choice", "grid") else ":"
        made = cls(name, kind, tuple(_value(name, value, text) for value in values.split(separator)))
        made._check(text)
        return made

    def _check(self, text: str) -> None:
        if self.kind in ("choice", "grid"):
            if len(set(self.values)) < len(self.values):
                raise TuneError(f"--search {text}: values must differ from each other")
            return
        if len(self.values) != 2 or isinstance(self.values[0], str) or not self.values[0] < self.values[1]:
            raise TuneError(f"--search {text}: {self.kind} must have LOWEST:HIGHEST, the lowest below the highest")
        if self.kind == "loguniform" and self.values[0] <= 0:
            raise TuneError(f"--search {text}: loguniform must begin above 0, got {self.values[0]}")
        if self.kind == "randint" and not isinstance(self.values[0], int):
            raise TuneError(f"--search {text}: {self.name} is no whole number: use uniform or loguniform")

    def draw(self, source: random.Random) -> Any:
        """One value; not for a grid."""
        if self.kind == "choice":
            return source.choice(self.values)
        low, high = self.values
        if self.kind == "randint":
            return source.randint(low, high)
        value = (
            math.exp(source.uniform(math.log(low), math.log(high)))
            if self.kind == "loguniform"
            else source.uniform(low, high)
        )
        rounded = round(value) if isinstance(low, int) else float(f"{value:.4g}")
        return min(max(rounded, low), high)

    def __str__(self) -> str:
        separator = "," if self.kind in ("choice", "grid") else ":"
        return f"{self.name}={self.kind}:{separator.join(map(str, self.values))}"


def parse_space(texts: list[str]) -> list[Dimension]:
    """The dimensions of a command line; TuneError if a field is there twice."""
    space = [Dimension.parse(text) for text in texts]
    names = [dimension.name for dimension in space]
    for name in names:
        if names.count(name) > 1:
            raise TuneError(f"--search must name a field once, got {name} {names.count(name)} times")
    return space


def default_space(activation: str, fixed: dict[str, Any]) -> list[Dimension]:
    """Sparsity, learning rate, and width x batch size, without what is fixed. A steered lambda is not searched."""
    texts = [
        _SPARSITY[activation],
        "learning_rate=loguniform:3e-4:1e-2",
        "num_latents=choice:4096,8192",
        "batch_size=choice:1024,2048,4096",
    ]
    if fixed.get("l0_target"):
        texts = texts[1:]
    return [dimension for dimension in parse_space(texts) if dimension.name not in fixed]


def draw_trials(space: list[Dimension], num_samples: int, seed: int) -> list[dict[str, Any]]:
    """The fields of every trial, in order: `num_samples` draws, each with every point of the grid.

    Fewer if the space has no more to give.
    """
    drawn = [dimension for dimension in space if dimension.kind != "grid"]
    grids = [dimension for dimension in space if dimension.kind == "grid"]
    trials = []
    for fields in _distinct_draws(drawn, num_samples, seed):
        for point in product(*(grid.values for grid in grids)):
            on_grid = dict(zip([grid.name for grid in grids], point, strict=True))
            found = fields | on_grid
            trials.append({dimension.name: found[dimension.name] for dimension in space})
    return trials


def _distinct_draws(drawn: list[Dimension], num_samples: int, seed: int) -> Iterator[dict[str, Any]]:
    seen: set[tuple[Any, ...]] = set()
    number, repeats = 0, 0
    while len(seen) < num_samples and repeats < _REPEATS:
        source = random.Random(f"{seed}/{number}")
        fields = {dimension.name: dimension.draw(source) for dimension in drawn}
        number += 1
        if tuple(fields.values()) in seen:
            repeats += 1
            continue
        repeats = 0
        seen.add(tuple(fields.values()))
        yield fields


def _value(name: str, value: str, text: str) -> Any:
    kind = type(_FIELDS[name])
    try:
        return kind(value)
    except ValueError:
        raise TuneError(f"--search {text}: values of {name} must be of type {kind.__name__}, got {value!r}") from None
