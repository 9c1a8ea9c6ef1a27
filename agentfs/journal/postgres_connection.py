"""One connection to a PostgreSQL server in trio's event loop: statements in one round trip, and what was notified."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import psycopg
import trio
from psycopg import pq
from psycopg.pq.abc import PGconn, PGresult

from agentfs.journal.postgres_errors import failed_connection, lost_connection, refusal
from agentfs.journal.postgres_place import Place
from agentfs.model.errors import AgentfsError, Unavailable
from agentfs.runtime import Threads

CONNECT_SECONDS: Final = 5.0
"""How long each address of the server has to let us in."""

SILENCE_SECONDS: Final = 10.0
"""How long the server may say nothing in the middle of a conversation."""

SESSION: Final = b"""
SELECT set_config('statement_timeout', '30s', false),
       set_config('synchronous_commit', CASE current_setting('synchronous_commit')
           WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, false)
"""
"""The settings of every session: what nobody waits for any more ends, and a commit that is reported would survive."""

_INT8, _BYTEA, _TEXT = 20, 17, 25

Value = int | bytes | str
Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Statement:
    """An SQL statement with its parameters $1, $2, …, each an int (bigint), bytes (bytea) or str (text).

    `kept`: the server keeps it prepared for as long as the connection lasts.
    """

    sql: bytes
    values: tuple[Value, ...] = ()
    kept: bool = True


async def connect(place: Place, threads: Threads) -> "Connection":
    """A connection to the first address of `place` that takes writes.

    Raises Denied, NotFound for a database that is not there, Unavailable: within CONNECT_SECONDS for each address.
    """
    error: AgentfsError | None = None
    for target in await place.targets(threads):
        try:
            return await _begin_session(target, place)
        except Unavailable as failure:
            error = failure
    assert error is not None, "a host has an address"
    raise error


async def _begin_session(target: bytes, place: Place) -> "Connection":
    connection = Connection(await _connect(target, place), place)
    try:
        await connection.ask(Statement(SESSION, kept=False))
    except BaseException:
        connection.close()
        raise
    return connection


async def _connect(target: bytes, place: Place) -> PGconn:
    pgconn: PGconn = pq.PGconn.connect_start(target)
    try:
        with trio.move_on_after(CONNECT_SECONDS):
            while pgconn.status != pq.ConnStatus.BAD:
                match pgconn.connect_poll():
                    case pq.PollingStatus.OK:
                        return pgconn
                    case pq.PollingStatus.READING:
                        await trio.lowlevel.wait_readable(pgconn.socket)
                    case pq.PollingStatus.WRITING:
                        await trio.lowlevel.wait_writable(pgconn.socket)
                    case _:
                        break
            raise failed_connection(pgconn.get_error_message(), place.text)
        raise failed_connection(f"no answer within {CONNECT_SECONDS:g} seconds", place.text)
    except BaseException:
        pgconn.finish()
        raise


class Connection:
    """A connection in libpq's pipeline mode: each statement is a transaction, and several travel together.

    It belongs to one task at a time. A conversation that was broken off, by cancellation or by an error of the network or the
    server, leaves it `spent`: whoever holds it closes it.
    """

    def __init__(self, pgconn: PGconn, place: Place) -> None:
        self._pgconn = pgconn
        self._place = place.text
        self._prepared: dict[bytes, bytes] = {}
        self._owed = 0
        self.warning: str | None = None
        self.spent = False
        pgconn.nonblocking = 1
        pgconn.enter_pipeline_mode()
        pgconn.notice_handler = self._note

    def is_usable(self) -> bool:
        """Whether another statement can be sent, as far as can be told without asking."""
        if self.spent:
            return False
        try:
            # The first may bring a server's last words, and only the second the end behind them.
            self._pgconn.consume_input()
            self._pgconn.consume_input()
        except psycopg.Error:
            return False
        return True

    async def ask(self, statement: Statement, *, then: Statement | None = None) -> list[Row]:
        """Run a statement as a transaction of its own and return its rows: one round trip.

        `then` is run behind it, as another transaction, and nobody waits for its answer. Raises what `refusal` says, and
        Unavailable for a connection that breaks and a server that is silent. `warning` is what it warned of meanwhile.
        """
        # Unless all goes well there may be an answer on its way that nobody will fetch, or a statement that was not prepared.
        self.spent = True
        earlier = self._owed
        try:
            self._send(statement)
            if then is not None:
                self._send(then)
            while self._pgconn.flush():
                # The server reads all of a statement before it answers at length: there is nothing to read meanwhile.
                await self._patiently(trio.lowlevel.wait_writable)
            for _ in range(earlier):
                await self._outcome()
            self.warning = None
            outcome = await self._outcome()
        except psycopg.Error as error:
            raise lost_connection(str(error), self._place) from error
        if isinstance(outcome, AgentfsError):
            raise outcome
        self.spent = False
        return outcome

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """The statements of the block take effect together or, if it raises, not at all."""
        await self.ask(Statement(b"BEGIN", kept=False))
        try:
            yield
        except BaseException:
            # Hanging up rolls back.
            self.spent = True
            raise
        await self.ask(Statement(b"COMMIT", kept=False))

    async def heard(self, seconds: float) -> list[bytes]:
        """The payloads of the notifications that came since the last call; waits for the first so long at most.

        Cancellation does the connection no harm. Raises Unavailable.
        """
        try:
            if heard := self._notified():
                return heard
            with trio.move_on_after(seconds):
                await self._watch(trio.lowlevel.wait_readable)
            self._pgconn.consume_input()
            return self._notified()
        except psycopg.Error as error:
            self.spent = True
            raise lost_connection(str(error), self._place) from error

    def close(self) -> None:
        """Hang up. Who waits for an answer gets Unavailable."""
        self.spent = True
        if self._pgconn.status == pq.ConnStatus.OK:
            trio.lowlevel.notify_closing(self._pgconn.socket)
        self._pgconn.finish()

    def _send(self, statement: Statement) -> None:
        types = [_type(value) for value in statement.values]
        values = [_encoded(value) for value in statement.values]
        formats = [pq.Format.BINARY] * len(values)
        if not statement.kept:
            self._pgconn.send_query_params(statement.sql, values, types, formats, pq.Format.BINARY)
        else:
            name = self._prepared.get(statement.sql)
            if name is None:
                name = self._prepared[statement.sql] = b"agentfs_%d" % len(self._prepared)
                self._pgconn.send_prepare(name, statement.sql, types)
            self._pgconn.send_query_prepared(name, values, formats, pq.Format.BINARY)
        self._pgconn.pipeline_sync()
        self._owed += 1

    async def _outcome(self) -> list[Row] | AgentfsError:
        """The answer to the oldest statement that was not answered yet."""
        rows: list[Row] = []
        error: AgentfsError | None = None
        while True:
            result = await self._result()
            match result.status:
                case pq.ExecStatus.PIPELINE_SYNC:
                    self._owed -= 1
                    return rows if error is None else error
                case pq.ExecStatus.TUPLES_OK:
                    rows = _rows(result)
                case pq.ExecStatus.FATAL_ERROR if error is None:
                    error = self._refusal(result)

    async def _result(self) -> PGresult:
        # The results of one statement end with None: between two of them, never twice in a row.
        for _ in range(2):
            while self._pgconn.is_busy():
                await self._patiently(trio.lowlevel.wait_readable)
                self._pgconn.consume_input()
            result = self._pgconn.get_result()
            if result is not None:
                return result
        raise psycopg.OperationalError(self._pgconn.get_error_message())

    def _refusal(self, result: PGresult) -> AgentfsError:
        sqlstate = result.error_field(pq.DiagnosticField.SQLSTATE)
        if sqlstate is None:
            # libpq's own: the connection broke.
            raise psycopg.OperationalError(result.get_error_message())
        return refusal(sqlstate.decode(), _text(result, pq.DiagnosticField.MESSAGE_PRIMARY), self._place)

    def _note(self, notice: PGresult) -> None:
        if notice.error_field(pq.DiagnosticField.SEVERITY_NONLOCALIZED) == b"WARNING":
            self.warning = _text(notice, pq.DiagnosticField.MESSAGE_PRIMARY)

    def _notified(self) -> list[bytes]:
        heard: list[bytes] = []
        while (notification := self._pgconn.notifies()) is not None:
            heard.append(notification.extra)
        return heard

    async def _patiently(self, wait: Callable[[int], Awaitable[None]]) -> None:
        with trio.move_on_after(SILENCE_SECONDS):
            return await self._watch(wait)
        raise lost_connection(f"nothing for {SILENCE_SECONDS:g} seconds", self._place)

    async def _watch(self, wait: Callable[[int], Awaitable[None]]) -> None:
        try:
            await wait(self._pgconn.socket)
        except trio.ClosedResourceError:
            raise Unavailable(f"the journal {self._place} is closed") from None


def _type(value: Value) -> int:
    match value:
        case int():
            return _INT8
        case bytes():
            return _BYTEA
        case str():
            return _TEXT


def _encoded(value: Value) -> bytes:
    match value:
        case int():
            return value.to_bytes(8, "big", signed=True)
        case bytes():
            return value
        case str():
            return value.encode()


def _rows(result: PGresult) -> list[Row]:
    decoders = [_DECODERS.get(result.ftype(column), bytes) for column in range(result.nfields)]
    return [
        tuple(decode(result.get_value(row, column) or b"") for column, decode in enumerate(decoders))
        for row in range(result.ntuples)
    ]


def _int(value: bytes) -> int:
    return int.from_bytes(value, "big", signed=True)


_DECODERS: Final[dict[int, Callable[[bytes], Value]]] = {_INT8: _int, _TEXT: bytes.decode}


def _text(result: PGresult, field: pq.DiagnosticField) -> str:
    return (result.error_field(field) or b"").decode(errors="replace")
