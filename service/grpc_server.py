"""The gRPC server around the servicers: transport options, API keys, health, reflection, and its port."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from telltale.v1 import alert_pb2, feature_pb2, generation_pb2, monitor_pb2

from service import rpc
from service.config import Settings
from service.errors import ConfigError, ServiceError

GENERATION = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"]
FEATURES = feature_pb2.DESCRIPTOR.services_by_name["FeatureService"]
MONITORS = monitor_pb2.DESCRIPTOR.services_by_name["MonitorService"]
ALERTS = alert_pb2.DESCRIPTOR.services_by_name["AlertService"]

_MAX_MESSAGE_BYTES = 4 * 2**20


def make_grpc_server(
    settings: Settings, servicers: Mapping[Any, Any], health_servicer: Any, counter: rpc.RpcCounter
) -> Any:
    """A server of `servicers` by the descriptors of their services; made on the event loop that it serves on."""
    keys = rpc.ApiKeys(_read_keys(settings.api_keys_file))
    server = grpc.aio.server(options=_options(settings))
    refused = {GENERATION: servicers[GENERATION].count_refused}
    for service, servicer in servicers.items():
        handler = rpc.handlers(service, servicer, counter, keys, refused.get(service, _ignore))
        server.add_generic_rpc_handlers([handler])
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    if settings.reflection:
        names = [service.full_name for service in servicers]
        reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    return server


def bind(server: Any, settings: Settings) -> int:
    """Open the port, with TLS if there is a certificate; its number. RuntimeError if it is taken."""
    host, port = settings.host, settings.grpc_port
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if not settings.uses_tls:
        return int(server.add_insecure_port(address))
    assert settings.tls_key is not None
    assert settings.tls_certificate is not None
    pair = (settings.tls_key.read_bytes(), settings.tls_certificate.read_bytes())
    return int(server.add_secure_port(address, grpc.ssl_server_credentials([pair])))


def _ignore(_method: str, _error: ServiceError) -> None:
    """Only requests to read or generate are counted by outcome."""


def _options(settings: Settings) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),  # else a second server would silently share the port
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        # The core allows a ping every 5 minutes by default and cuts clients off that ask more often.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # So that clients find new replicas; streams that run may end first.
        ("grpc.max_connection_age_ms", 30 * 60_000),
        ("grpc.max_connection_age_grace_ms", int(settings.max_request_seconds * 1000) + 60_000),
    ]


def _read_keys(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        keys = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ConfigError(f"api_keys_file must be UTF-8 text. {path} is not.") from None
    if not keys:
        raise ConfigError(f"api_keys_file must hold at least one key, one per line. {path} holds none.")
    return keys
