"""A real HTTP server on a free port that speaks OpenAI's chat protocol, faults included.

A *turn* is what the server does with one request. Turns are used up in order; then every request gets `otherwise`.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """One HTTP response. `holds`: wait for the server's end before it; `drops`: break the connection off half-way."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    holds: bool = False
    drops: bool = False


Turn = Answer | Callable[[Body], Answer]


def completion(content: str | None, **changes: Any) -> Answer:
    """What an endpoint says when all is well; `usage=None` leaves that out, other changes are the choice's."""
    usage = changes.pop("usage", {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110})
    message = {"role": "assistant", "content": content} | changes.pop("message", {})
    body = {"id": "c", "object": "chat.completion", "choices": [{"index": 0, "message": message} | changes]}
    body["choices"][0].setdefault("finish_reason", "stop")
    return Answer(body=json.dumps(body | ({"usage": usage} if usage else {})).encode())


def error(status: int, message: str = "something is wrong", **headers: str) -> Answer:
    """An error as OpenAI words it."""
    body = json.dumps({"error": {"message": message, "type": "x", "code": None}}).encode()
    return Answer(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


@dataclass
class ChatServer:
    """The running server, and what it was asked."""

    turns: list[Turn] = field(default_factory=list)
    otherwise: Turn = field(default_factory=lambda: completion("{}"))
    requests: list[Body] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    port: int = 0
    closing: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def answer(self, path: str, headers: dict[str, str], body: Body) -> Answer:
        with self.lock:
            self.requests.append(body)
            self.headers.append(headers)
            self.paths.append(path)
            turn = self.turns.pop(0) if self.turns else self.otherwise
        return turn(body) if callable(turn) else turn


@contextmanager
def chat_server() -> Iterator[ChatServer]:
    """A server for the time of the block."""
    state = ChatServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # header and body are two writes: the second would wait for an answer

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["content-length"]))
            answer = state.answer(self.path, {k.lower(): v for k, v in self.headers.items()}, json.loads(raw))
            if answer.holds:
                state.closing.wait(30)
            if answer.holds or answer.drops:
                self.close_connection = True
            if answer.holds:
                return
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body[: len(answer.body) // 2] if answer.drops else answer.body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield state
        finally:
            state.closing.set()
            server.shutdown()
            thread.join()
