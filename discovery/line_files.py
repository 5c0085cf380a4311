"""Files of JSON lines that grow while a run goes on. A kill leaves at most the last line cut short."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from discovery.errors import LabError
from sae_runtime.checkpoint import write_atomically
from sae_runtime.whole_files import named_faults


def as_line(record: dict[str, Any]) -> str:
    """`record` as one line. LabError for NaN and infinity, which are no JSON."""
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError:
        raise LabError(f"results must be finite numbers, got {record!r:.200}") from None


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Add one line, on disk when this returns. OSError with `path` in it if the disk is full."""
    with named_faults(path), path.open("a", encoding="utf-8") as file:
        file.write(as_line(record))
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines; none if there is no file. LabError names the line that is no JSON object."""
    if not path.exists():
        return []
    *whole, _cut_short = path.read_bytes().split(b"\n")
    return [parse_record(path, number, line) for number, line in enumerate(whole, start=1)]


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Replace the file. Also cuts off a line that was cut short, to which the next would be added."""
    write_atomically(path, "".join(map(as_line, records)))


def parse_record(path: Path, number: int, line: str | bytes, error_class: type[LabError] = LabError) -> dict[str, Any]:
    """The JSON object of line `number`. `error_class` names file and line if it is none."""
    try:
        record = json.loads(line)
    except ValueError as error:
        raise error_class(f"{path}, line {number}, must be JSON: {error}") from None
    if not isinstance(record, dict):
        raise error_class(f"{path}, line {number}, must be a JSON object, got {type(record).__name__}")
    return record
