"""A real HTTP server on this machine that speaks the OpenAI chat protocol, with replies that a test decides."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any]  # status, and the text of the message or a whole body


@dataclass
class ChatServer:
    """What the server was asked, and what it says."""

    answer: Callable[[dict[str, Any]], Reply]
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    def texts(self) -> list[str]:
        """The user's text of every request."""
        return [text_of(request) for request in self.requests]


def text_of(request: dict[str, Any]) -> str:
    """The text part of the one user message of a request."""
    content = request["messages"][0]["content"]
    return str(content if isinstance(content, str) else content[0]["text"])


@contextmanager
def chat_server(
    answer: Callable[[dict[str, Any]], Reply], path: str = "/v1/chat/completions", encoding: str = "identity"
) -> Iterator[ChatServer]:
    """Serve POST of `path` on a free port; `answer` gives (status, text) per request, `encoding` is claimed of it."""
    state = ChatServer(answer)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                state.requests.append(body)
                state.headers.append(dict(self.headers))
                status, said = (404, "no such path") if self.path != path else state.answer(body)
            if status == 200 and (said is None or isinstance(said, str)):
                said = {"choices": [{"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}]}
            payload = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Encoding", encoding)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
