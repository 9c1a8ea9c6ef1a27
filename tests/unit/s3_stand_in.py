"""An HTTP server that gives the answers a test wants, for what a real S3 server cannot be made to say."""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Answer(NamedTuple):
    """What is sent for every request. `length`: the one in the header, if it is not the body's."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = {}
    length: int | None = None


class Request(NamedTuple):
    """What was asked, and from which port."""

    port: int
    verb: str
    path: str
    headers: Mapping[str, str]


class StandIn:
    """The server: it gives `answer` to everything, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answer = Answer(200)
        self.requests: list[Request] = []
        self.endpoint = ""


def refusal(status: int, code: str, message: str = "because", **headers: str) -> Answer:
    """An answer of S3 that refuses."""
    body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Answer(status, body.encode(), {name.replace("_", "-"): value for name, value in headers.items()})


@contextlib.contextmanager
def open_stand_in() -> Iterator[StandIn]:
    """A server on a free port of loopback."""
    stand_in = StandIn()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            stand_in.requests.append(Request(self.client_address[1], self.command, self.path, dict(self.headers)))
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body, headers, length = stand_in.answer
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
            # Whoever was promised more sees the end.
            self.close_connection = length is not None

        do_GET = do_PUT = do_HEAD = do_DELETE = answer

        def log_message(self, format: str, *arguments: object) -> None:
            """Tests are quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        stand_in.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield stand_in
        finally:
            server.shutdown()
            thread.join()
