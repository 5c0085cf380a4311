"""Errors of this package.

    ValueError
    └── MonitorError        a rule, monitor, reading, score or policy that cannot be used
        ├── WatchlistError  a feature file that cannot be used
        ├── CatalogueError  a latent catalogue that cannot be used
        ├── JournalError    an alert journal that cannot be used
        │   ├── JournalLocked       another process writes there
        │   ├── JournalWriteFailed  an alert that could not be kept: the disk is full, or broken
        │   └── JournalUnreachable  the database does not answer
        └── PackError       a monitor pack that cannot be used

Every error carries its `problems`, one per fault, so that a caller can turn each into a field violation of its
own; `str(error)` is one line per problem.
"""

from dataclasses import dataclass, replace
from pathlib import Path

MAX_SHOWN_CHARS = 120
"""A value's text in a message is cut at this length. Long enough for a sha256."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault: which field, what it should have been and what it was."""

    field: str
    """Dotted path, list positions as numbers: `monitors.0.rule.window`."""
    wanted: str
    got: str

    def __str__(self) -> str:
        return f"{self.field}: wanted {self.wanted}, got {self.got}"

    def within(self, parent: str) -> "Problem":
        """The same problem seen from one level further out."""
        return replace(self, field=".".join(part for part in (parent, self.field) if part))


class MonitorError(ValueError):
    """Something a monitor cannot work with. Never caught to skip a token: the request fails instead."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class WatchlistError(MonitorError):
    """A feature file that is malformed, contradicts itself or belongs to another dictionary."""

    def __init__(self, *problems: Problem, path: Path | None = None) -> None:
        super().__init__(*problems)
        self.path = path

    def __str__(self) -> str:
        text = super().__str__()
        return text if self.path is None else f"cannot use feature file {self.path}:\n{text}"


class CatalogueError(MonitorError):
    """A latent catalogue that is damaged, is none, or belongs to another dictionary."""

    def __init__(self, *problems: Problem, path: Path | None = None) -> None:
        super().__init__(*problems)
        self.path = path

    def __str__(self) -> str:
        text = super().__str__()
        return text if self.path is None else f"cannot use latent catalogue {self.path}:\n{text}"


class JournalError(MonitorError):
    """An alert journal that is damaged, is none, or was made by another version, or an entry that can't be in one."""

    def __init__(self, *problems: Problem, where: str | None = None) -> None:
        """`where` is the journal's path, or its URL without the password."""
        super().__init__(*problems)
        self.where = where

    def __str__(self) -> str:
        text = super().__str__()
        return text if self.where is None else f"cannot use alert journal {self.where}:\n{text}"


class JournalLocked(JournalError):
    """Another process writes to this journal. Reading is possible all the same."""


class JournalWriteFailed(JournalError):
    """An entry could not be kept. The journal is as it was before."""


class JournalUnreachable(JournalError):
    """The database does not answer, or broke off."""


class PackError(MonitorError):
    """A monitor pack that is malformed, was changed after it was signed, or belongs to another model."""

    def __init__(self, *problems: Problem, path: Path | None = None) -> None:
        super().__init__(*problems)
        self.path = path

    def __str__(self) -> str:
        text = super().__str__()
        return text if self.path is None else f"cannot use monitor pack {self.path}:\n{text}"


def shown(value: object) -> str:
    """A value as it stands in a message."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."
