"""A PostgreSQL server of one's own in a folder of its own, to be stopped and started. Reached by a socket there."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
import tools

_USER = "postgres"
_PORT = 5432
"""Part of the socket's name; nothing listens on the network."""


def _program(name: str) -> str:
    """Where it is, on the path or where Debian puts it; the test can't run without (Debian: postgresql)."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = str(places[-1]) if places else shutil.which(name)
    if found is None:
        tools.missing(name)
    return found


class Postgres:
    """A server. It refuses to run as root, so that then it runs as the user that its package makes."""

    def __init__(self, folder: Path) -> None:
        self._data, self._folder = folder / "data", folder
        self._user = {"user": _USER, "group": _USER, "extra_groups": []} if os.geteuid() == 0 else {}

    def make(self) -> None:
        """Databases' files."""
        if self._user:
            shutil.chown(self._folder, _USER, _USER)
        self._run(_program("initdb"), "-D", self._data, "-U", _USER, "--auth=trust", "--encoding=UTF8", "--no-sync")

    def start(self) -> None:
        """Returns when it takes connections."""
        options = f"-k {self._folder} -p {_PORT} -c listen_addresses='' -c max_connections=20 -c fsync=off"
        self._run(_program("pg_ctl"), "-D", self._data, "-o", options, "-l", self._folder / "log", "-w", "start")

    def stop(self) -> None:
        """As by a crash: connections break off, and what was committed is recovered at the next start."""
        self._run(_program("pg_ctl"), "-D", self._data, "-m", "immediate", "-w", "stop")

    def new_database(self, name: str) -> str:
        """URL of an empty database."""
        place = ("-h", self._folder, "-p", str(_PORT), "-U", _USER)
        self._run(_program("psql"), *place, "-d", "postgres", "-qc", f"CREATE DATABASE {name}")
        return f"postgresql://{_USER}@/{name}?host={quote(str(self._folder), safe='')}&port={_PORT}"

    def _run(self, *command: object) -> None:
        done = subprocess.run(
            [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, cwd=self._folder, check=False, **self._user,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A server that runs until the block ends."""
    pytest.importorskip("psycopg")
    # Pytest's own folders can't be entered by other users, and sockets' names must be short.
    folder = Path(tempfile.mkdtemp(prefix="telltale-pg-"))
    server = Postgres(folder)
    try:
        server.make()
        server.start()
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
