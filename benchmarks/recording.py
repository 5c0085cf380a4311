"""When, where and with what something was measured, and files of results that keep what was not measured anew."""

import datetime
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.peers.serving.common import machine


def facts() -> dict[str, Any]:
    """Date, machine and versions of a run."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "grpcio")},
    }


def keep(path: Path, measured: Mapping[str, Any]) -> None:
    """Put what was measured into a file of results, name by name at all depths: what was not measured stays."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write(path, merged(kept, measured))


def merged(old: Any, new: Any) -> Any:
    """`new`, and what `old` has besides."""
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return new
    return {**old, **{name: merged(old.get(name), value) for name, value in new.items()}}


def write(path: Path, result: Any) -> None:
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
