"""A way to a server that a test makes slow, or silent: a TCP proxy on loopback."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit


class Proxy:
    """Passes bytes on both ways; what the server says is passed on `delay_seconds` later, or never while `silent`."""

    def __init__(self, endpoint: str) -> None:
        self.delay_seconds = 0.0
        self._parts = urlsplit(endpoint)
        self._talks = threading.Event()
        self._talks.set()
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    @property
    def endpoint(self) -> str:
        """The server, by this way."""
        return urlunsplit(self._parts._replace(netloc=f"127.0.0.1:{self._listener.getsockname()[1]}"))

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Within the block connections are taken, requests too, and nobody answers."""
        self._talks.clear()
        try:
            yield
        finally:
            self._talks.set()

    def close(self) -> None:
        """Cut all connections."""
        self._over.set()
        self._talks.set()
        for each in [self._listener, *self._sockets]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(30)
        for each in [self._listener, *self._sockets]:
            each.close()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection((self._parts.hostname or "", self._parts.port or 80))
            except OSError:
                continue
            self._sockets += [client, server]
            self._start(self._pass, client, server, False)
            self._start(self._pass, server, client, True)

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _pass(self, one: socket.socket, other: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := one.recv(1 << 16):
                if answers:
                    self._over.wait(self.delay_seconds)
                    self._talks.wait()
                other.sendall(piece)
        for each in (one, other):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
