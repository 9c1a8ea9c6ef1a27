"""A storm of remote creates: a session that makes files as fast as it is told, and does nothing else.

It appends entries that were encoded before to the journal itself, one for each create and one for each content, as a mount
does that closes file after file. So it takes little of the machine, and what is measured is the mount that follows.
"""

import os
import time
from collections import deque
from pathlib import Path
from time import perf_counter_ns
from typing import NamedTuple

import trio

from agentfs.journal.sqlite import SqliteJournal, open_sqlite_journal
from agentfs.model.changes import AnyChange, InlineRun, Make, OpenSession, Write
from agentfs.model.codec import decode_entry, encode_entry
from agentfs.model.entry import Entry, Transaction
from agentfs.model.ids import NO_SESSION, ROOT_INO, Ino, Position, SessionId, TxnNumber, first_ino
from agentfs.runtime import SystemRuntime
from scripts.benchmarks.watching import moment

DIRECTORY = "theirs"
"""Where the files are made, in the workspace's root."""

CONTENT = b"x" * 100
FASTEST = 4000
"""How many creates a second are encoded where no rate is given: more than can be appended."""

_TTL_MS = 3_600_000
_runtime = SystemRuntime()


class Storm(NamedTuple):
    """What was made: the names in their order, when each was in the journal, in nanoseconds, and the position of the last."""

    names: list[str]
    times: list[int]
    tail: int


class _Create(NamedTuple):
    """A file to be made, and the entries that make it."""

    name: str
    made: bytes
    written: bytes


class _Session:
    """The session that the storm is, and what it has encoded in advance: its transactions must be appended in their order."""

    def __init__(self, number: SessionId) -> None:
        self._number = number
        self._txn = 0
        self._ino = int(first_ino(number))
        self._directory = ROOT_INO
        self._stock: deque[_Create] = deque()

    def make_directory(self) -> bytes:
        """The entry that makes the directory for the files."""
        made = self._make(ROOT_INO, DIRECTORY, 0o40777)
        self._directory = Ino(self._ino)
        return made

    def encode(self, count: int) -> None:
        """Have so many creates ready."""
        while len(self._stock) < count:
            name = f"f{self._ino}"
            made = self._make(self._directory, name, 0o100666)
            written = self._entry(Write(Ino(self._ino), [InlineRun(0, CONTENT)], False, _runtime.now_ns()))
            self._stock.append(_Create(name, made, written))

    def next(self) -> _Create | None:
        """The next create, if one is ready."""
        return self._stock.popleft() if self._stock else None

    def _make(self, parent: Ino, name: str, mode: int) -> bytes:
        self._ino += 1
        return self._entry(Make(parent, os.fsencode(name), Ino(self._ino), mode, 0, 0, 0, b"", _runtime.now_ns()))

    def _entry(self, change: AnyChange) -> bytes:
        self._txn += 1
        return encode_entry(Entry(self._number, _runtime.now_ns(), [Transaction(TxnNumber(self._txn), [change])]))


_sessions: dict[Path, _Session] = {}


def begun(journal: Path) -> None:
    """Open the session in a workspace, and make the directory."""
    trio.run(_begin, journal)


def poured(journal: Path, rate: float, seconds: float, shared: Path) -> Storm:
    """Make files for some time, at `rate` a second or, with 0, as fast as it goes. The moment is when it begins."""
    _sessions[journal].encode(int((rate or FASTEST) * seconds) + 1)
    return trio.run(_pour, journal, rate, seconds, shared)


async def _begin(path: Path) -> None:
    token = os.urandom(16)
    opening = OpenSession(token, "elsewhere", 1, "storm", _runtime.now_ns(), _TTL_MS, upkeep=False)
    async with open_sqlite_journal(path, runtime=_runtime) as journal:
        await journal.append(encode_entry(Entry(NO_SESSION, _runtime.now_ns(), [Transaction(TxnNumber(1), [opening])])))
        session = _Session(await _number_of(journal, token))
        await journal.append(session.make_directory())
    _sessions[path] = session


async def _number_of(journal: SqliteJournal, token: bytes) -> SessionId:
    count, after = 0, Position(0)
    while records := await journal.read(after):
        after = records[-1].position
        for change in (
            change for record in records for txn in decode_entry(record.payload).transactions for change in txn.changes
        ):
            if isinstance(change, OpenSession):
                count += 1
                if change.token == token:
                    return SessionId(count)
    raise AssertionError("the session that was opened is in the journal")


async def _pour(path: Path, rate: float, seconds: float, shared: Path) -> Storm:
    storm = Storm([], [], 0)
    async with open_sqlite_journal(path, runtime=_runtime) as journal:
        began = moment(shared).mark() / 1e9
        while (now := time.perf_counter()) < began + seconds and (create := _sessions[path].next()):
            await journal.append(create.made)
            tail = await journal.append(create.written)
            storm = storm._replace(tail=tail)
            storm.names.append(create.name)
            storm.times.append(perf_counter_ns())
            if rate and (left := began + len(storm.names) / rate - now) > 0:
                await trio.sleep(left)
    return storm
