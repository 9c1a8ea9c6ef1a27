"""The network that the other tests here rest upon: what is cut is silent, what is healed goes on, and nothing is left."""

import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hosts.host import Host
from tests.hosts.keeper import NAMESPACES, mounts_left
from tests.hosts.network import PRIVILEGES, REPOSITORY, Network
from tests.mount.lockers import lingering_child
from tests.mount.place import wait_until

pytestmark = PRIVILEGES

SILENCE_SECONDS = 0.5
"""After how long without an answer there is none."""

MADE_AND_LEFT = """
import os, signal, subprocess, sys
from pathlib import Path
from tests.hosts.keeper import NAMESPACES
from tests.hosts.network import network

with network(Path(sys.argv[1])) as lan:
    wire = lan.add("a")
    subprocess.Popen(["nsenter", f"--net={wire.namespace}", "sleep", "1000"])
    print(wire.namespace.name, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""

Servers = dict[str, "Echo"]
MakeHost = Callable[[str], Host]


class Echo(socketserver.ThreadingTCPServer):
    """A server on loopback that says what it heard, and remembers it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.heard: list[str] = []
        self.port: int = self.socket.getsockname()[1]
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Answer(socketserver.StreamRequestHandler):
    """One conversation."""

    def handle(self) -> None:
        assert isinstance(self.server, Echo)
        for line in self.rfile:
            self.server.heard.append(line.decode().strip())
            self.wfile.write(line)


@pytest.fixture
def servers() -> Iterator[Servers]:
    made = {"journal": Echo(), "s3": Echo()}
    yield made
    for server in made.values():
        server.shutdown()
        server.server_close()


@pytest.fixture
def host(lan: Network, servers: Servers, tmp_path: Path) -> Iterator[MakeHost]:
    """Makes a host that knows the servers."""
    made: list[Host] = []

    def make(name: str) -> Host:
        made.append(Host(lan, name, tmp_path / name, {what: (server.port,) for what, server in servers.items()}))
        return made[-1]

    yield make
    for each in made:
        each.discard()


class Caller:
    """A program on a host that talks with a server over one connection."""

    def __init__(self, host: Host, port: int) -> None:
        self._program = host.hire(Path("/dev/null"))
        self._program.do(dial, port)

    def hears(self, word: str, *, seconds: float = 60.0) -> str | None:
        """What the server answers, within so many seconds."""
        answer = self._program.do(talk, word, seconds)
        return None if answer is None else str(answer)


def dial(port: int) -> None:
    """Make the connection that `talk` uses; for ever, if need be."""
    _connections.append(socket.create_connection(("127.0.0.1", port), timeout=60))


def talk(word: str, seconds: float) -> str | None:
    """Say a word, unless it is empty, and return the next answer; None for none in time."""
    [connection] = _connections
    connection.settimeout(seconds)
    try:
        if word:
            connection.sendall(f"{word}\n".encode())
        return connection.recv(100).decode().strip()
    except TimeoutError:
        return None


_connections: list[socket.socket] = []


def test_a_host_is_cut_off_from_one_server(host: MakeHost, servers: Servers) -> None:
    a, b = host("a"), host("b")
    journal, s3, other = Caller(a, servers["journal"].port), Caller(a, servers["s3"].port), Caller(b, servers["journal"].port)
    assert [each.hears("before") for each in (journal, s3, other)] == ["before"] * 3
    a.cut("journal")
    assert journal.hears("lost", seconds=SILENCE_SECONDS) is None
    assert "lost" not in servers["journal"].heard
    assert [each.hears("meanwhile") for each in (s3, other)] == ["meanwhile"] * 2
    a.heal("journal")
    # The connection was not told of anything: what was said is sent again.
    assert journal.hears("") == "lost"
    assert journal.hears("after") == "after"


def test_new_connections_of_a_host_that_is_cut_off_are_silent_too(host: MakeHost, servers: Servers) -> None:
    a = host("a")
    ask = f"import socket; socket.create_connection(('127.0.0.1', {servers['journal'].port}), timeout={SILENCE_SECONDS})"
    a.cut("journal")
    assert "TimeoutError" in a.run(sys.executable, "-c", ask).stderr
    a.heal("journal")
    assert a.run(sys.executable, "-c", ask.replace(str(SILENCE_SECONDS), "60")).returncode == 0


def test_answers_are_lost(host: MakeHost, servers: Servers) -> None:
    a = host("a")
    journal = Caller(a, servers["journal"].port)
    assert journal.hears("before") == "before"
    a.lose_answers("journal")
    assert journal.hears("question", seconds=SILENCE_SECONDS) is None
    wait_until(lambda: "question" in servers["journal"].heard, "the server to hear the question")
    a.heal("journal")
    assert journal.hears("") == "question"


def test_a_host_is_unplugged(host: MakeHost, servers: Servers) -> None:
    a = host("a")
    callers = [Caller(a, servers[what].port) for what in ("journal", "s3")]
    a.cut("all")
    assert [each.hears("lost", seconds=SILENCE_SECONDS) for each in callers] == [None, None]
    a.heal("all")
    assert [each.hears("") for each in callers] == ["lost", "lost"]


def test_a_host_dies_alone(host: MakeHost) -> None:
    a, b = host("a"), host("b")
    for each in (a, b):
        Path(each.base / "f").touch()
    program, other = a.hire(a.base / "f"), b.hire(b.base / "f")
    child = program.do(lingering_child)
    assert {program.pid, child} <= a.processes()
    a.kill9()
    assert a.processes() == set()
    assert other.read() == b""


def test_nothing_is_left_of_tests_that_were_killed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MADE_AND_LEFT, tmp_path],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    namespace = NAMESPACES / done.stdout.strip()
    prefix = namespace.name.rpartition("-")[0]
    assert prefix.startswith("agentfs-"), done.stderr
    wait_until(lambda: not list(NAMESPACES.glob(f"{prefix}-*")), "the namespaces to be removed")
    interface = Path("/sys/class/net") / f"afs{prefix.rpartition('-')[2]}"
    wait_until(lambda: not interface.exists(), "the interface to go")
    assert not mounts_left(tmp_path)
