"""A PostgreSQL server for tests: Debian's, run by an unprivileged user in a directory of its own, on loopback."""

import atexit
import contextlib
import functools
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

START_TRIES = 5

SETTINGS = """
listen_addresses = '127.0.0.1'
max_connections = 60
shared_buffers = 32MB
logging_collector = off
log_min_messages = log
"""

KEEPER = """
import os, shutil, subprocess, sys
sys.stdin.read()
pg_ctl, directory = sys.argv[1:]
owner = os.stat(directory).st_uid if os.geteuid() == 0 else None
command = [pg_ctl, "-D", directory + "/data", "-m", "immediate", "stop"]
subprocess.run(command, cwd="/", user=owner, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
shutil.rmtree(directory, ignore_errors=True)
"""
"""Stops the server and removes its directory once nobody holds its standard input open."""

WHO_MAY = """
local all all trust
local replication all trust
host all with_password 127.0.0.1/32 scram-sha-256
host all nobody 127.0.0.1/32 reject
host all all 127.0.0.1/32 trust
"""


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """A running server. `directory` holds its data, its socket and its log."""

    directory: Path
    port: int

    def url(self, database: str = "postgres", *, user: str = "postgres") -> str:
        """Where a database is, over loopback."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str = "postgres") -> "psycopg.Connection[tuple[object, ...]]":
        """A connection for the test itself, as the superuser, each statement a transaction."""
        return psycopg.connect(f"host={self.directory} port={self.port} user=postgres dbname={database}", autocommit=True)

    def run(self, statement: str, *values: object, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run a statement as the superuser; its rows, if it has any."""
        with contextlib.closing(self.connect(database)) as connection:
            cursor = connection.execute(statement, values or None)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def new_database(self) -> str:
        """The name of a database that was made for this call."""
        name = f"test_{uuid.uuid4().hex}"
        self.run(f"CREATE DATABASE {name}")
        return name

    @contextlib.contextmanager
    def standby(self) -> Iterator["PostgresServer"]:
        """A server that follows this one by streaming replication."""
        with _home() as directory:
            source = f"host={self.directory} port={self.port} user=postgres"
            _run("pg_basebackup", "-D", directory / "data", "-d", source, "-R", "--no-sync", "-c", "fast", cwd=directory)
            yield _started(directory, (self.directory / "data" / "postgresql.conf").read_text())

    def promote(self) -> None:
        """Make a standby the primary."""
        self._pg_ctl("promote")

    def restart(self) -> None:
        """What a crash of the server is to its clients: `pg_ctl restart -m immediate`."""
        self._pg_ctl("restart", "-m", "immediate")

    def start(self) -> None:
        """Start it, on the port that it has."""
        self._pg_ctl("start")

    def stop(self) -> None:
        """Stop it at once, if it runs."""
        if (self.directory / "data" / "postmaster.pid").exists():
            self._pg_ctl("stop", "-m", "immediate")

    def _pg_ctl(self, *arguments: str) -> None:
        log = self.directory / "log"
        _run("pg_ctl", "-D", self.directory / "data", "-l", log, "-w", "-t", "60", *arguments, cwd=self.directory)


@functools.cache
def shared_server() -> PostgresServer:
    """A server for all tests of this process, which ends with it. Tests use workspaces or databases of their own."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(postgres_server())


@contextlib.contextmanager
def postgres_server(settings: str = "") -> Iterator[PostgresServer]:
    """A server of its own, for a test that restarts it."""
    with _home() as directory:
        _run("initdb", "-D", directory / "data", "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", cwd=directory)
        (directory / "data" / "pg_hba.conf").write_text(WHO_MAY)
        yield _started(directory, SETTINGS + settings)


@contextlib.contextmanager
def _home() -> Iterator[Path]:
    """A directory of the server's own user; short, because a socket's path must be. In the end it goes, and its server too."""
    programs = _binaries()
    directory = Path(tempfile.mkdtemp(prefix="agentfs-postgres-"))
    if (user := _user()) is not None:
        os.chown(directory, user.pw_uid, user.pw_gid)
    # A pipe that closes when this process ends, however it ends: a server that was left behind would run for ever.
    keeper = [sys.executable, "-c", KEEPER, programs / "pg_ctl", directory]
    with subprocess.Popen(keeper, stdin=subprocess.PIPE, cwd="/", start_new_session=True):
        yield directory


def _started(directory: Path, settings: str) -> PostgresServer:
    for last in (False,) * (START_TRIES - 1) + (True,):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        own = f"unix_socket_directories = '{directory}'\nport = {port}\n"
        (directory / "data" / "postgresql.conf").write_text(settings + own)
        server = PostgresServer(directory, port)
        try:
            server.start()
        except subprocess.CalledProcessError:
            # Somebody else may have taken the port.
            if last:
                raise
        else:
            return server
    raise AssertionError


def _run(program: str, *arguments: str | Path, cwd: Path) -> None:
    user = _user()
    identity = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [user.pw_gid]}
    command = [_binaries() / program, *arguments]
    # The server keeps its parent's descriptors: it must not hold a pipe to here open.
    subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **identity)  # type: ignore[call-overload]


def _user() -> "pwd.struct_passwd | None":
    """Whom to run the server as; None for whoever runs the tests, since only root may not."""
    return pwd.getpwnam("postgres") if os.geteuid() == 0 else None


def has_postgres() -> bool:
    """Whether there is a server to start."""
    return _programs() is not None


def _binaries() -> Path:
    if (found := _programs()) is None:
        pytest.skip("needs PostgreSQL's server")
    return found


@functools.cache
def _programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    if found:
        return found[-1].parent
    if (on_path := shutil.which("postgres")) is not None:
        return Path(on_path).parent
    return None
