"""How a process hears of what is appended to a PostgreSQL journal."""

from typing import Final

from agentfs.journal import postgres_tables as tables
from agentfs.journal.news import News
from agentfs.journal.postgres_connection import Connection, Row
from agentfs.journal.postgres_pool import Pool
from agentfs.model.ids import Position
from agentfs.runtime import Runtime

LOOK_SECONDS: Final = 5.0
"""How often who listens in vain makes sure that the server is there and that nothing was missed."""

POLL_SECONDS: Final = 0.02
POLL_MAX_SECONDS: Final = 1.0
"""How often the tail is asked for where the server cannot notify: after news, and at most once nothing happens; it doubles."""


class Ears:
    """How the process that waits hears of appends: through LISTEN on a connection of its own, or by asking again and again."""

    def __init__(self, journal: int, pool: Pool, news: News, runtime: Runtime, *, is_notified: bool) -> None:
        self._journal = journal
        self._pool = pool
        self._news = news
        self._runtime = runtime
        self._is_notified = is_notified
        self._connection: Connection | None = None

    async def listen(self) -> None:
        """Bring news until cancelled. Raises what `Connection.ask` does; the next call begins anew."""
        if self._is_notified:
            await self._listen()
        else:
            await self._poll()

    async def _listen(self) -> None:
        connection = self._connection
        if connection is None or not connection.is_usable():
            connection = await self._begin()
        try:
            while True:
                heard = await connection.heard(LOOK_SECONDS)
                for payload in heard:
                    if payload.isdigit():
                        self._news.hear(Position(int(payload)))
                if not heard:
                    await self._look(connection)
        finally:
            if connection.spent:
                self._drop()

    async def _begin(self) -> Connection:
        self._drop()
        self._connection = connection = await self._pool.new()
        try:
            # The look comes behind: what was appended before it is seen, and what is appended after it is heard.
            await connection.ask(tables.listen(self._journal))
            await self._look(connection)
        except BaseException:
            self._drop()
            raise
        return connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.discard(connection)

    async def _look(self, connection: Connection) -> None:
        self._learn(await connection.ask(tables.tail(self._journal)))

    async def _poll(self) -> None:
        pause = POLL_SECONDS
        while True:
            self._learn(await self._pool.ask(tables.tail(self._journal)))
            # Whoever waited for news is gone now: who still listens is idle.
            await self._runtime.sleep(pause)
            pause = min(2 * pause, POLL_MAX_SECONDS)

    def _learn(self, tail: list[Row]) -> None:
        for (position,) in tail:
            self._news.learn(Position(position))
