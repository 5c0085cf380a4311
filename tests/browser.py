"""A real browser without a window: opens a page as a file and gives back its DOM and what it did meanwhile.

Everything that is not a file it asks of a proxy of ours, which answers nothing and remembers what was asked for.
"""

import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import tools

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

needs_browser = pytest.mark.skipif(CHROMIUM is None and not tools.are_required(), reason="chromium is not installed")

_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--virtual-time-budget=5000",
    "--enable-logging=stderr",
]
# What the browser itself asks for now and then, whatever page is open; and hints at a script's speed.
_OWN_HOSTS = re.compile(r"google|gstatic|gvt1")
_HINTS = re.compile(r'"(Canvas2D: Multiple readback|\[\.WebGL.*Performance)')


class Opened(NamedTuple):
    """A page as the browser left it."""

    dom: str
    console: list[str]
    """Errors and messages."""
    requests: list[str]
    """Request lines of what was not a file."""


def open_page(page: Path, profile: Path, *, query: str = "") -> Opened:
    """Open `page`, let its scripts run, and take its DOM. `query` is appended to its address."""
    if CHROMIUM is None:
        tools.missing("chromium")
    with _recording_proxy() as (port, requests):
        flags = [*_FLAGS, f"--user-data-dir={profile}", f"--proxy-server=127.0.0.1:{port}"]
        command = [CHROMIUM, *flags, "--dump-dom", page.as_uri() + query]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in re.findall(r"CONSOLE[^\]]*\] (.*)", ran.stderr) if not _HINTS.match(line)]
    return Opened(ran.stdout, console, [line for line in requests if not _OWN_HOSTS.search(line)])


@contextmanager
def _recording_proxy() -> Iterator[tuple[int, list[str]]]:
    """(port, first lines of all requests so far)."""
    requests: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                connection, _ = server.accept()
                with connection:
                    line = connection.recv(4096).split(b"\r\n")[0].decode(errors="replace")
                if line == "stop":
                    return
                if line:  # a connection that the browser opened ahead and closed unused asks for nothing
                    requests.append(line)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        port = server.getsockname()[1]
        try:
            yield port, requests
        finally:
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(b"stop")
            thread.join()
