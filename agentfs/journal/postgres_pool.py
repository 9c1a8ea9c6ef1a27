"""The connections of one open PostgreSQL journal: a few, made when they are needed, each lent to one task at a time."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from agentfs.journal.postgres_connection import Connection, Row, Statement, connect
from agentfs.journal.postgres_errors import Conflict
from agentfs.journal.postgres_place import Place
from agentfs.model.errors import Unavailable
from agentfs.runtime import Runtime

CONNECTIONS_MAX: Final = 4
"""How many statements of one journal are under way at once, each on a connection of its own."""

CONFLICT_TRIES: Final = 10
CONFLICT_PAUSE_SECONDS: Final = 0.005
"""How often a transaction is run that the server gives up for others' sake, and the longest first pause; it doubles."""

RESTART_SECONDS: Final = 5.0
RESTART_PAUSE_SECONDS: Final = 0.05
RESTART_PAUSE_MAX_SECONDS: Final = 0.5
"""For how long what can be asked twice is asked again, so that it outlasts a server's restart; the pauses, which double."""

_LOOK_UP_THREADS: Final = 2


class Pool:
    """Connections to one place. Errors are those of `connect` and `Connection.ask`."""

    def __init__(self, place: Place, runtime: Runtime) -> None:
        self.place = place
        self._runtime = runtime
        self._threads = runtime.threads(_LOOK_UP_THREADS)
        self._free = trio.Semaphore(CONNECTIONS_MAX)
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._closed = False

    async def ask(self, statement: Statement, *, then: Statement | None = None) -> list[Row]:
        """Run a statement and return its rows, `then` behind it as in `Connection.ask`. Conflicts are tried again a few times.

        Raises Unavailable, too, for a commit of which the server says that it may not outlive it.
        """
        pause = CONFLICT_PAUSE_SECONDS
        for _ in range(CONFLICT_TRIES - 1):
            try:
                return await self._ask_once(statement, then)
            except Conflict:
                await self._runtime.sleep(pause * self._runtime.jitter())
                pause *= 2
        return await self._ask_once(statement, then)

    async def ask_patiently(self, statement: Statement) -> list[Row]:
        """As `ask`, for a statement that does no harm if it runs twice: it outlasts a short absence of the server."""
        give_up = self._runtime.boottime() + RESTART_SECONDS
        pause = RESTART_PAUSE_SECONDS
        while True:
            try:
                return await self.ask(statement)
            except Unavailable:
                self.refuse_when_closed()
                if self._runtime.boottime() + pause >= give_up:
                    raise
            await self._runtime.sleep(pause * (0.5 + 0.5 * self._runtime.jitter()))
            pause = min(2 * pause, RESTART_PAUSE_MAX_SECONDS)

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[Connection]:
        """A connection for this task alone."""
        async with self._free:
            connection = self._pick() or await self.new()
            try:
                yield connection
            finally:
                if connection.spent:
                    self.discard(connection)
                else:
                    self._idle.append(connection)

    async def new(self) -> Connection:
        """A connection beside those that are lent, for somebody who keeps it; `discard` ends it."""
        self.refuse_when_closed()
        connection = await connect(self.place, self._threads)
        self._open.add(connection)
        if self._closed:
            self.discard(connection)
        self.refuse_when_closed()
        return connection

    def discard(self, connection: Connection) -> None:
        """Hang up on one."""
        self._open.discard(connection)
        connection.close()

    def close(self) -> None:
        """Hang up on all, and make no more: whoever waits for an answer gets Unavailable."""
        self._closed = True
        self._idle.clear()
        for connection in list(self._open):
            self.discard(connection)

    def refuse_when_closed(self) -> None:
        """Raise Unavailable once `close` was called."""
        if self._closed:
            raise Unavailable(f"the journal {self.place.text} is closed")

    async def _ask_once(self, statement: Statement, then: Statement | None) -> list[Row]:
        async with self.lent() as connection:
            rows = await connection.ask(statement, then=then)
            if connection.warning is not None:
                # Such as "canceling wait for synchronous replication": it is committed, but on this server alone.
                raise Unavailable(f"the journal {self.place.text} warns: {connection.warning}")
            return rows

    def _pick(self) -> Connection | None:
        """The idle connection that was used last, if the server has not hung up on it."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable():
                return connection
            self.discard(connection)
        return None
