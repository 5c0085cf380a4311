"""A folder's list of files, forced to disk: without it a power cut can take a new file whose content is there."""

import os
from pathlib import Path


def sync_folder(path: Path) -> None:
    """Forces the list of the folder that `path` is in to disk. SQLite does that for its log, not for a new database."""
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
