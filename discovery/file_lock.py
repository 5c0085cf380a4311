"""A file that only one process can hold at a time. The system lets go of it when the process ends, however it ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from discovery.errors import LabError


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the file at `path`, which is made if need be. LabError if another process does, and not to `wait` for it."""
    import fcntl  # not on every system, and few commands need it

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise LabError(f"{path} is held by another process, which writes there: wait for it") from None
        yield
