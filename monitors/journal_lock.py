"""The right to write to a journal's file, which one process has at a time.

The system lets go of it when the process ends, however it ends; what stays is a file that nobody holds.
"""

import os
from pathlib import Path

from monitors.errors import JournalError, JournalLocked, Problem


class WriterLock:
    """Held until `release`."""

    def __init__(self, handle: int) -> None:
        self._handle: int | None = handle

    @classmethod
    def take(cls, journal: Path) -> "WriterLock":
        """The lock of the journal at that path. JournalLocked names the process that has it.

        Raises JournalError if its folder can't be written to.
        """
        import fcntl  # not on every system

        path = Path(f"{journal}.lock")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            wanted = f"a folder that this user may write to: {path.parent}"
            raise JournalError(Problem("file", wanted, error.strerror or str(error)), where=str(journal)) from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 20, 0).decode("ascii", "replace").strip() or "another"
            os.close(handle)
            wanted = "no other process that writes there (through a running server go by --target HOST:PORT)"
            problem = Problem("writer", wanted, f"process {holder}, which does")
            raise JournalLocked(problem, where=str(journal)) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        return cls(handle)

    def release(self) -> None:
        """Let others write. Does nothing the second time: by then the number may be another file's."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)
