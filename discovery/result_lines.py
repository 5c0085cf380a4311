"""A results file that grows line by line and survives a kill: JSON lines behind a first line with the settings.

A run that is started again with the same settings finds what is done; one with other settings is refused. What a kill
left of a half-written line is cut off.
"""

import json
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from discovery.errors import LabError
from discovery.file_lock import locked
from discovery.line_files import append_line, as_line, read_lines
from sae_runtime.checkpoint import write_atomically


class Results(NamedTuple):
    """What a file holds."""

    settings: dict[str, Any]
    lines: list[dict[str, Any]]
    num_bytes: int
    """Of whole lines."""


class ResultLines:
    """The lines of `path`, and more to come. Without a path they are kept in memory alone."""

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        """Raises LabError if `path` holds results of other settings, or something else."""
        # As the file would give it back: tuples are lists there.
        self.settings: dict[str, Any] = json.loads(json.dumps(settings, allow_nan=False))
        self.lines: list[dict[str, Any]] = []
        self._path = path
        if path is not None and path.exists() and path.stat().st_size:
            self.lines = self._continue(path)
        elif path is not None:
            # Whole or not at all: a part of this line would be taken for somebody else's file.
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, as_line(self.settings))

    def append(self, line: dict[str, Any]) -> None:
        """Add one result; it is on disk when this returns."""
        self.lines.append(line)
        if self._path is not None:
            append_line(self._path, line)

    def _continue(self, path: Path) -> list[dict[str, Any]]:
        found = read_results(path)
        if found.settings != self.settings:
            keys = found.settings.keys() | self.settings.keys()
            other = sorted(key for key in keys if found.settings.get(key) != self.settings.get(key))
            raise LabError(f"{path} must hold results with the same settings, got others ({', '.join(other)})")
        os.truncate(path, found.num_bytes)
        return found.lines


def claimed(path: Path | None) -> AbstractContextManager[None]:
    """Keeps other processes off a results file for the time of the block: two would write every line twice."""
    return nullcontext() if path is None else locked(path.with_name(path.name + ".lock"), wait=False)


def read_results(path: Path) -> Results:
    """What a results file holds so far. LabError if it is none, with the line that is no JSON object."""
    records = read_lines(path)
    if not records:
        raise LabError(f"{path} must be a results file, got something else")
    return Results(records[0], records[1:], path.read_bytes().rfind(b"\n") + 1)
