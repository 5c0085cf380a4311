"""Places for results, looked at before anything is computed: what can't be written must not be found out at the end."""

import os
from pathlib import Path

from discovery.errors import LabError


def check_output(name: str, path: Path | None, *, is_folder: bool = False, is_replaced: bool = False) -> None:
    """LabError, with `path` as it was given, if the file (or folder) that the flag `name` gives can't be written to.

    Nothing is made; missing folders above it are no fault, since `made_for` makes them. None is no output at all.
    A folder that `is_replaced` is built beside the old one, and so needs room there.
    """
    if path is None:
        return
    if path.exists() and path.is_dir() != is_folder:
        wanted, got = ("a folder", "a file") if is_folder else ("a file", "a folder")
        raise LabError(f"{name} must be {wanted}, got {got}: {path}")
    above = path if is_folder and not is_replaced else path.parent
    there = next(folder for folder in (above, *above.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise LabError(f"{name} {path} can't be written: {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise LabError(f"{name} {path} can't be written: {there} is read-only, or not for this user to write to")


def made_for(path: Path) -> Path:
    """`path`, with the folders above it made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
