"""A file or folder that is there whole or not at all, whatever is killed, however many write it, and with a full disk.

It is written in a folder of its own beside its place, `NAME.????????.partial`, which the writer holds a lock on. The
system lets go of the lock when the writer ends, however it ends: so what nobody holds is what a kill left behind.
"""

import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PARTIAL = re.compile(r"(?P<name>.+)\.[a-z0-9_]{8}\.partial")
FAULTS_OF_DISKS = frozenset({errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO})
_PROBE_BYTES = 1 << 16


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path in a folder beside `path` to write the file to. At the block's end it is forced to disk and takes its
    place, with the rights of any new file.

    If the block fails, what it wrote is deleted and `path` is as it was. A full or broken disk is an OSError with
    `path` in it, also where the library that writes to it says something else, or hides what the system said.
    Of several writers at a time each one's file is whole, and the last to end has the place.
    """
    drop_partials(path.parent, path.name)
    with _own_folder(path) as folder, named_faults(path):
        mode = _mode_of_new_files(folder)
        partial = folder / path.name
        try:
            yield partial
        except OSError:
            raise
        except Exception as error:
            _raise_fault_of_disk(partial, error)
            raise
        _finish(partial, mode)
        partial.replace(path)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """`whole_file` for a folder of files: an empty one to write them to.

    A folder with files in it that is at `path` by the block's end stays, and what the block wrote is deleted.
    """
    drop_partials(path.parent, path.name)
    with _own_folder(path) as folder, named_faults(path):
        mode = _mode_of_new_files(folder)
        partial = folder / path.name
        partial.mkdir()
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                _finish(file, mode)
        try:
            partial.replace(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def _finish(file: Path, mode: int) -> None:
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())
    file.chmod(mode)  # safetensors writes for the owner alone


def drop_partials(folder: Path, name: str | None = None) -> None:
    """Delete what killed writers of files and folders in `folder` left behind; with `name`, of that one alone."""
    for path in folder.glob("*.partial"):
        found = _PARTIAL.fullmatch(path.name)
        if found is None or name not in (None, found["name"]):
            continue
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):  # others may be at it
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if _lock(handle, wait=False):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(handle)


@contextmanager
def named_faults(path: Path) -> Iterator[None]:
    """A full or broken disk says nothing of the file: the block's errors get `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in FAULTS_OF_DISKS:
            error.filename = str(path)
        raise


def _raise_fault_of_disk(partial: Path, error: Exception) -> None:
    """OSError if the disk is why `partial` could not be written; it is asked by writing more.

    torch's archive writer tells of a full disk as "unexpected pos 5056 vs 4950", SQLite as "disk I/O error".
    """
    try:
        with partial.open("ab") as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())  # some file systems find out only now
    except OSError as fault:
        if fault.errno in FAULTS_OF_DISKS:
            raise OSError(fault.errno, fault.strerror) from error


@contextmanager
def _own_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path` that is locked, and deleted at the end."""
    folder, handle = _locked_folder(path)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _locked_folder(path: Path) -> tuple[Path, int]:
    """The folder, and the handle that holds its lock. An OSError has `path` in it."""
    while True:
        try:
            folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=path.name + ".", suffix=".partial"))
        except OSError as error:
            error.filename = str(path)  # nobody has heard of the folder's
            raise
        with suppress(FileNotFoundError):
            handle = os.open(folder, os.O_RDONLY)
            _lock(handle, wait=True)
            if folder.exists():
                return folder, handle
            os.close(handle)
        # Before it was locked, another writer took it for a dead one's: a new one, then.


def _lock(handle: int, *, wait: bool) -> bool:
    """Lock an open folder. False if somebody has it, or where folders can't be locked: there nothing is dropped."""
    try:
        import fcntl  # not on every system

        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (ImportError, OSError):
        return False
    return True


def _mode_of_new_files(folder: Path) -> int:
    """The rights that the umask leaves, which can't be asked for without changing it for all threads."""
    probe = folder / ".rights"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    return mode
