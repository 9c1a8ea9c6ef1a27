"""A journal in a PostgreSQL database, which the mounts of many hosts share."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from agentfs.journal import postgres_tables as tables
from agentfs.journal.contract import FIRST, Record, check_pointer
from agentfs.journal.news import News
from agentfs.journal.postgres_connection import Row
from agentfs.journal.postgres_news import Ears
from agentfs.journal.postgres_place import place_of
from agentfs.journal.postgres_pool import Pool
from agentfs.model.errors import Corrupt, NotFound, Stale
from agentfs.model.ids import Position
from agentfs.runtime import Runtime


async def create_postgres_journal(url: str, *, workspace: str, runtime: Runtime, first: Position = FIRST) -> None:
    """Make an empty journal for `workspace`, whose first entry will be at `first`, and the tables if there are none.

    Raises Exists, NotFound without the database, Invalid for a URL that will not do, Denied, NoSpace, Unavailable.
    """
    pool = Pool(place_of(url), runtime)
    try:
        async with pool.lent() as connection:
            await tables.make(connection, pool.place.text)
            await tables.enter(connection, workspace, first, pool.place.text)
    finally:
        pool.close()


async def remove_postgres_journal(url: str, *, workspace: str, runtime: Runtime) -> None:
    """Take the journal of `workspace` away, with all that is in it. The tables stay.

    Raises NotFound, Invalid, Denied, Unavailable.
    """
    pool = Pool(place_of(url), runtime)
    try:
        async with pool.lent() as connection:
            found = await tables.find(connection, workspace, pool.place.text)
            await tables.remove(connection, found.journal)
    finally:
        pool.close()


@asynccontextmanager
async def open_postgres_journal(url: str, *, workspace: str, runtime: Runtime) -> "AsyncIterator[PostgresJournal]":
    """The journal of `workspace`, closed on leaving. Tables of an older version are brought up to date first.

    `url` is libpq's, https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS, without a password.
    Raises NotFound for a database or workspace that is not there, Invalid for newer tables and for a URL that will not do,
    Denied, Unavailable.
    """
    pool = Pool(place_of(url), runtime)
    try:
        async with pool.lent() as connection:
            await tables.check(connection, pool.place.text)
            found = await tables.find(connection, workspace, pool.place.text)
        async with pool.lent() as connection:
            is_notified = await tables.has_notifications(connection)
    except BaseException:
        pool.close()
        raise
    opened = PostgresJournal(found, pool, runtime, is_notified=is_notified)
    try:
        yield opened
    finally:
        await opened.aclose()


class PostgresJournal:
    """The contract of `Journal` on tables that the journals of several workspaces share, each under its own number.

    A statement is a transaction and a round trip. The entry's position is the workspace's row counted up: the row's lock
    orders those who append. Who waits is notified by them (docs/decisions/0019).
    """

    def __init__(self, found: tables.Found, pool: Pool, runtime: Runtime, *, is_notified: bool) -> None:
        self._journal = found.journal
        self._first = found.first
        self._pool = pool
        self._news = News()
        self._ears = Ears(found.journal, pool, self._news, runtime, is_notified=is_notified)
        self._ring = tables.ring(found.journal) if is_notified else None
        self._appending = trio.Lock()
        self._seen = Position(0)

    async def append(self, payload: bytes) -> Position:
        # One at a time: the server would have the others wait, on connections that reading and beating may need.
        async with self._appending:
            seen = self._seen
            # The ring travels with the entry but is not part of its transaction, whose commit would have to wait for those of
            # all others in the server that ring. Should the server fail in between, all who listen lose it, and look anew.
            rows = await self._pool.ask(tables.append(self._journal, payload), then=self._ring)
            return self._reached(rows, Position(seen + 1))

    async def read(self, after: Position, *, limit_bytes: int = 4 << 20) -> list[Record]:
        if after < self._first - 1:
            raise _stale(self._first, after)
        records: list[Record] = []
        room = limit_bytes
        while True:
            last = Position(after + len(records))
            portion = _records(await self._pool.ask_patiently(tables.entries(self._journal, last, room)))
            if portion and portion[0].position != last + 1:
                if not records:
                    raise _stale(portion[0].position, after)
                # Trimmed since the last portion: the next read says so.
                return records
            if records and portion and len(portion[0].payload) > room:
                return records
            records += portion
            room -= sum(len(record.payload) for record in portion)
            if len(portion) < tables.PORTION_ENTRIES or room < 0:
                return records

    async def tail(self) -> Position:
        seen = self._seen
        return self._reached(await self._pool.ask_patiently(tables.tail(self._journal)), seen)

    def tail_at_once(self) -> Position | None:
        # Only the server knows.
        return None

    async def wait(self, after: Position) -> None:
        await trio.lowlevel.checkpoint()
        self._pool.refuse_when_closed()
        while self._news.known <= after:
            await self._news.wait(after, self._ears.listen)
            self._pool.refuse_when_closed()
            if self._news.known <= after < self._news.rumoured:
                rumours = self._news.rumours
                await self.tail()
                self._news.disbelieve(rumours)

    async def beat(self, session: int) -> None:
        await self._pool.ask(tables.beat(self._journal, session))

    async def beats(self) -> dict[int, int]:
        return dict(await self._pool.ask(tables.beats(self._journal)))

    async def forget_beat(self, session: int) -> None:
        await self._pool.ask(tables.forget_beat(self._journal, session))

    async def trim(self, before: Position) -> None:
        # In steps, so that none takes long.
        while (await self._pool.ask(tables.trim_some(self._journal, before)))[0][0]:
            pass

    async def pointer(self) -> bytes:
        rows = await self._pool.ask_patiently(tables.pointer(self._journal))
        return bytes(rows[0][0]) if rows else b""

    async def point(self, position: Position, text: bytes) -> None:
        check_pointer(text)
        await self._pool.ask(tables.point(self._journal, position, text))

    async def aclose(self) -> None:
        self._pool.close()
        self._news.wake_all()

    def _reached(self, rows: list[Row], at_least: Position) -> Position:
        """The position that the server gives as the tail or as a new entry's."""
        if not rows:
            raise NotFound(f"the workspace's journal is gone from {self._pool.place.text}")
        position = Position(rows[0][0])
        if position < at_least:
            # A standby that took over without having all of it: what follows would be taken for what was read already.
            raise Corrupt(
                f"the journal {self._pool.place.text} went back to position {position}, {at_least} was expected: "
                "its server has lost entries"
            )
        self._seen = max(self._seen, position)
        self._news.learn(position)
        return position


def _records(rows: list[Row]) -> list[Record]:
    """Positions and payloads as records. Raises Corrupt where a position is missing between them."""
    records = [Record(Position(position), payload) for position, payload in rows]
    for expected, record in enumerate(records, start=records[0].position if records else 0):
        if record.position != expected:
            raise Corrupt(f"the journal lacks position {expected}")
    return records


def _stale(first: Position, after: Position) -> Stale:
    return Stale(f"the journal was trimmed up to position {first - 1}, asked for what follows {after}")
