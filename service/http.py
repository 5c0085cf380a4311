"""`/metrics` and `/healthz` over plain HTTP, in threads of their own: they answer while the event loop is busy."""

import json
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

_POLL_SECONDS = 0.1
"""How soon `close` is noticed."""

Health = Callable[[], dict[str, Any]]
"""Facts for `/healthz`; `serving` among them says whether the answer is 200 or 503."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes every few seconds are no news."""


class HttpServer:
    """Serves until `close`."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry, health: Health) -> None:
        """OSError if the port is taken; 0 is any free one, `port` tells which."""
        metrics_app: Any = make_wsgi_app(registry)

        def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            match environ["PATH_INFO"]:
                case "/metrics":
                    return metrics_app(environ, start_response)
                case "/healthz":
                    facts = health()
                    status = "200 OK" if facts["serving"] else "503 Service Unavailable"
                    return _answer(start_response, status, json.dumps(facts), "application/json")
                case _:
                    return _answer(start_response, "404 Not Found", "Try /metrics or /healthz.", "text/plain")

        server_class = _Server6 if ":" in host else _Server
        self._server = make_server(host, port, app, server_class=server_class, handler_class=_QuietHandler)
        self.port = int(self._server.server_port)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": _POLL_SECONDS}, name="http", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _answer(start_response: Any, status: str, body: str, content_type: str) -> Iterable[bytes]:
    data = (body + "\n").encode()
    start_response(status, [("Content-Type", f"{content_type}; charset=utf-8"), ("Content-Length", str(len(data)))])
    return [data]
