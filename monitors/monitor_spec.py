"""What a monitor is, complete and frozen: its components, how they become a score, and when the score fires.

A spec is made from a monitor pack (`monitors.pack`); it can't contradict itself, however it was made.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

from monitors import checks
from monitors.combination import Cascade, Combination, Ensemble, Single
from monitors.components import Component, FeatureScore, Inputs, ProbeScore
from monitors.errors import Problem, shown
from monitors.thresholds import Thresholds

Kind = Literal["feature", "features", "probe", "ensemble", "cascade"]
Role = Literal["system", "user", "assistant", "text", "reasoning"]
"""Whose words a token belongs to; `text` is a prompt without a chat template. `reasoning` is what the assistant thinks
before it answers, for monitors that ask for it; for others it is the assistant's."""
REPLY_ROLES: tuple[Role, ...] = ("assistant", "reasoning")
"""Whose words a reply is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorSpec:
    """What a monitor takes from each token, and when it fires."""

    name: str
    kind: Kind
    """One latent, a weighted set of latents, a probe, several under a rule, or one that another must agree with."""
    components: tuple[Component, ...]
    """At least one, no name twice."""
    combination: Combination
    window: int
    """Scored tokens in the rolling means, 1 or more. Until there are so many, the mean is over those there are."""
    min_tokens: int
    """Fires at the `min_tokens`-th scored token at the earliest, 1 or more."""
    cooldown_tokens: int
    """Scored tokens after the clearing one that cannot fire at a level reached before, 0 or more."""
    roles: tuple[Role, ...] = ("assistant",)
    """Whose tokens are scored, each role by itself: a mean never runs over two."""
    thresholds: Thresholds
    validated: bool = False
    """Whether held-out evidence supports the name. Travels to the client with every alert."""
    pack_sha256: str = ""
    """Content hash of the pack it was made from; empty if it was made by hand."""
    is_for_plain_text: bool = False
    """Whether what is read as the assistant's words is a plain text, to be scored as `text`; see `for_plain_text`."""

    def __post_init__(self) -> None:
        names = [component.name for component in self.components]
        checks.refuse(
            checks.slug("name", self.name),
            checks.choice("kind", self.kind, get_args(Kind)),
            checks.count("window", self.window, at_least=1),
            checks.count("min_tokens", self.min_tokens, at_least=1),
            checks.count("cooldown_tokens", self.cooldown_tokens, at_least=0),
            checks.flag("validated", self.validated),
            *checks.distinct("components", "name", names),
            *self._bad_roles(),
            *self._bad_kind(),
        )

    @property
    def latents(self) -> tuple[int, ...]:
        """Latents it reads, ascending."""
        return tuple(sorted({latent for component in self.components for latent in component.latents}))

    @property
    def probes(self) -> tuple[str, ...]:
        """Probes it reads, in the order of its components."""
        scores = (component.score for component in self.components)
        return tuple(score.probe for score in scores if isinstance(score, ProbeScore))

    def token_roles(self, role: Role) -> tuple[Role, ...]:
        """Roles of the tokens that are scored as `role`: thoughts are the assistant's unless scored by themselves."""
        spoken: tuple[Role, ...] = ("assistant",) if "reasoning" in self.roles else ("assistant", "reasoning")
        if role == "text" and self.is_for_plain_text:
            return (role, *spoken)
        return spoken if role == "assistant" else (role,)

    def for_plain_text(self) -> "MonitorSpec":
        """For a text that is read as if the assistant had written all of it. A monitor of `text` alone scores it as
        that; one that scores the assistant's words scores it as those."""
        is_of_text = "text" in self.roles and "assistant" not in self.roles
        return replace(self, is_for_plain_text=True) if is_of_text else self

    def is_off_scale(self, inputs: Inputs) -> bool:
        """Whether a token carries a massive activation where any component reads, so that it is not to be scored.

        MonitorError if a norm is missing.
        """
        return any(component.score.is_off_scale(inputs) for component in self.components)

    def _bad_roles(self) -> Iterator[Problem]:
        if not self.roles:
            yield Problem("roles", "at least one role", "none")
        for i, role in enumerate(self.roles):
            problem = checks.choice(f"roles.{i}", role, get_args(Role))
            if problem is not None:
                yield problem
            elif role in self.roles[:i]:
                yield Problem(f"roles.{i}", "a role not named yet", shown(role))

    def _bad_kind(self) -> Iterator[Problem]:
        num_components, combination = len(self.components), self.combination
        wanted = {"ensemble": Ensemble, "cascade": Cascade}.get(self.kind, Single)
        if not isinstance(combination, wanted):
            yield Problem("combination", f"{wanted.__name__} for kind {self.kind}", type(combination).__name__)
        elif num_components != combination.num_components:
            wanted_number = f"{combination.num_components} for kind {self.kind}"
            yield Problem("components", wanted_number, str(num_components))
        elif self.kind in ("feature", "features", "probe"):
            got = _kind_of(self.components[0])
            if got != self.kind:
                yield Problem("kind", f"{got}, which its one component is", shown(self.kind))


def _kind_of(component: Component) -> Kind:
    if isinstance(component.score, FeatureScore):
        return "feature" if len(component.score.features) == 1 else "features"
    return "probe"
