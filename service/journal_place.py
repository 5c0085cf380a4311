"""Where a server's alert journal lies.

By default in the user's state folder, `$XDG_STATE_HOME/telltale` or `~/.local/state/telltale`: a cache may be emptied
at any time, which alerts must outlast, and a configuration folder is not written to by programs. A port belongs to one
server at a time, and a journal too; so the file is named after the gRPC port, and servers on one machine don't meet.
A server that takes any free port takes the first `alerts-any` that nobody has.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from service.config import NO_JOURNAL, Settings

DEFAULT_PORT = Settings.model_fields["grpc_port"].default
_MOST_SERVERS = 64
"""With any free port, on one machine at a time, before one is asked to name its journal."""


def state_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where this user's programs keep what is to stay."""
    home = environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "telltale"


def default_place(grpc_port: int = DEFAULT_PORT) -> Path:
    """The journal of the server on a port."""
    return state_folder() / f"alerts-{grpc_port or 'any'}.sqlite"


def places(settings: Settings) -> list[Path]:
    """Where a server with these settings may keep its journal: the first that no other server has. Empty: it keeps
    none."""
    if settings.journal == NO_JOURNAL:
        return []
    if settings.journal is not None:
        return [Path(settings.journal)]
    first = default_place(settings.grpc_port)
    if settings.grpc_port:
        return [first]
    return [first, *(first.with_name(f"alerts-any-{i}.sqlite") for i in range(2, _MOST_SERVERS + 1))]


def key_path(journal: Path) -> Path:
    """Where the key lies that texts are hashed with."""
    return journal.with_name(f"{journal.name}.key")
