"""A file that only one process can hold at a time. The system lets go of it when the process ends, however it ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from discovery.errors import LabError


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the file at `path` for the time of the block. LabError if another process does, and not to `wait` for it.

    The file and the folders above it are made if need be. At the end the file is gone, and so is each folder made for
    it that nothing else was put into: a run that is refused leaves nothing behind.
    """
    made: set[Path] = set()
    try:
        with _held(path, made, wait=wait):
            try:
                yield
            finally:
                path.unlink(missing_ok=True)  # while it is held: nobody else's, then
    finally:
        with suppress(OSError):
            for folder in sorted(made, key=lambda folder: len(folder.parts), reverse=True):
                folder.rmdir()


def _opened(path: Path, made: set[Path]) -> IO[str]:
    """The file, and the folders above it; those that are not there are put into `made`, and made."""
    made.update(folder for folder in (path.parent, *path.parent.parents) if not folder.exists())
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a")


def _held(path: Path, made: set[Path], *, wait: bool) -> IO[str]:
    """The open file, with the lock on it; closing it lets go. `made` is told of folders made for it."""
    import fcntl  # not on every system, and few commands need it

    while True:
        try:
            file = _opened(path, made)
        except FileNotFoundError:  # another run, which ended just then, deleted a folder that it had made
            file = _opened(path, made)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_at(file, path):
                return file
        except BlockingIOError:
            file.close()
            raise LabError(f"{path} is held by another process, which writes there: wait for it") from None
        file.close()
        # Its holder deleted it between our opening and our locking: a lock on it would keep nobody off. A new one.


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether the open file is the one that `path` leads to now."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False
