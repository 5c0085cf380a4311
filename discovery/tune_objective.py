"""What a search makes small.

The recipe's loss will not do: with a penalty lambda it gets smaller as lambda does, whatever the dictionary is worth,
and held-out FVU alone is best where most latents are active. So

    fvu    FVU * max(1, L0 / limit)      all held out

A latent beyond the limit has to pay for itself: L0 higher by 10 % must lower FVU by more than 10 %. Trials that miss
the limit are so told apart by how far, which matters to a scheduler: it compares them long before their L0 has settled.
In the end the best is the one of the smallest score within the limit, if any trial is.

    loss   the recipe's own loss, held out; only where nothing that changes its meaning is searched
"""

from typing import Literal, NamedTuple, get_args

from discovery.errors import TuneError
from discovery.held_out import HeldOutFigures

ObjectiveName = Literal["fvu", "loss"]
NAMES: tuple[str, ...] = get_args(ObjectiveName)

_CHANGES_LOSS = ("activation", "sparsity_weight", "sparsity_warmup_share", "l0_target", "k")
"""Fields between whose values losses are not comparable. (k: topk's loss is D * FVU, which falls as k rises.)"""


DEFAULT_L0_LIMIT = 70.4
"""1.1 * 64: a batchtopk dictionary of k = 64 reads with a threshold fitted to k on average, and on held-out text has an
L0 of up to 4 % above k. A limit of k itself would leave out the very trials that were asked to hold it."""


class Objective(NamedTuple):
    """What is made small. `l0_limit` 0 is none."""

    name: str
    l0_limit: float

    def score(self, figures: HeldOutFigures) -> float:
        """Smaller is better."""
        if self.name == "loss":
            return figures.loss
        excess = figures.l0 / self.l0_limit if self.l0_limit else 0.0
        return figures.fvu * max(1.0, excess)

    def is_within_limit(self, l0: float) -> bool:
        """Whether a trial that ended there may be the best although others have a smaller score."""
        return self.name != "fvu" or not self.l0_limit or l0 <= self.l0_limit

    def words(self) -> str:
        """The formula."""
        if self.name == "loss":
            return "held-out loss of the recipe"
        return f"held-out FVU * max(1, L0 / {self.l0_limit:g})" if self.l0_limit else "held-out FVU, whatever the L0"


def objective_of(name: str, l0_limit: float, searched: list[str]) -> Objective:
    """TuneError if the objective can't compare trials of that search."""
    if name not in NAMES:
        raise TuneError(f"--objective must be one of {', '.join(NAMES)}, got {name!r}")
    if not l0_limit >= 0:
        raise TuneError(f"--l0-limit must not be negative, got {l0_limit}")
    mixed = [field for field in _CHANGES_LOSS if field in searched]
    if name == "loss" and mixed:
        raise TuneError(f"--objective loss can't compare trials of different {', '.join(mixed)}: use fvu")
    return Objective(name, l0_limit)
