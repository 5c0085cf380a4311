"""A file that is there whole or not at all, whatever is killed, and however full the disk is."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside `path` to write the file to. At the block's end it is forced to disk and takes `path`'s place.

    If the block fails, what it wrote is deleted and `path` is as it was. What a kill leaves behind, `NAME.partial`, the
    next writer of the same file replaces.
    """
    partial = path.with_name(path.name + ".partial")
    # SQLite would go on with what a kill left behind.
    partial.unlink(missing_ok=True)
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.chmod(0o644)  # as any other file: safetensors writes for the owner alone
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
