"""How the client connects: channel options that match the server's, and TLS."""

import json
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from service.errors import ConfigError

_SERVICE_CONFIG: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}

CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    # The server takes pings down to every 5 s and sends its own every 30 s. Without pings a dead peer, or a
    # firewall that dropped the connection, shows only when the deadline passes.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # A long prefill sends no data; the default of two such pings would end our own pinging in the middle of it.
    ("grpc.http2.max_pings_without_data", 0),
    # The answer to Score holds the readings of a whole context at once.
    ("grpc.max_receive_message_length", 64 * 2**20),
    # HTTP/2 keeps one connection for ever; with several addresses behind the name, spread calls over them.
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
]


def open_channel(target: str, *, tls: bool | str | Path) -> Any:
    """A channel to `target`. Call it in the event loop that will use it.

    Args:
        target: `host:port`, or any gRPC target.
        tls: False is plaintext, True trusts gRPC's own roots, a path is a PEM file of the authorities to trust.

    Raises:
        ConfigError: the file can't be read.
    """
    if tls is False:
        return grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
    roots = None if tls is True else _read(Path(tls))
    return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(roots), options=CHANNEL_OPTIONS)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"certificate file {path} can't be read: {error.strerror}.") from None
