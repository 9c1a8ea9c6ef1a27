"""Checkpoints: a chore that puts State's file into the replicas now and then, so that nobody has to replay a long journal.

The file is compressed in a thread while State goes on: what is saved meanwhile waits in the WAL. Once enough replicas have the
object, the journal's pointer names it; then older ones go, and what of the journal and of its mirror only they needed
(`trimming`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import structlog
from msgspec.structs import replace

from agentfs.journal.contract import Journal
from agentfs.model.changes import ReplicaSpec
from agentfs.model.errors import NoSpace, TooLarge
from agentfs.model.ids import Position
from agentfs.runtime import Runtime
from agentfs.state.checkpoint import CheckpointKey, CheckpointWriter, hold_file, release_file
from agentfs.state.tables import SAVE_ROOM, Tables, has_room
from agentfs.workspace.beginning import Beginning, RecoveryNote, encode_beginning, read_beginning
from agentfs.workspace.committer import Committer
from agentfs.workspace.staging_log import disk_error

ENTRIES: Final = 2000
TRANSACTIONS: Final = 4000
"""How much may follow a checkpoint before there is another: a fresh mount replays so much in some tenths of a second."""

INTERVAL_SECONDS: Final = 30.0
"""How long from one checkpoint to the next at least."""

EFFORT: Final = 50
"""How many times as long as it took to make one, likewise: a large State is not compressed all the time."""

SIZE_MAX: Final = 1 << 30
"""Bytes of a checkpoint, which is in memory as a whole while it is put or fetched."""

_log = structlog.get_logger()


class Sink(Protocol):
    """Where checkpoints are put."""

    async def put(self, key: str, body: bytes) -> None:
        """Put an object into as many replicas as the replication asks for."""
        ...


class Checkpoints:
    """A chore. `state` is State's file, in a directory where there is room for another."""

    def __init__(self, committer: Committer, journal: Journal, sink: Sink, state: Path, runtime: Runtime) -> None:
        self._committer = committer
        self._journal = journal
        self._sink = sink
        self._state = state
        self._runtime = runtime
        self._asked = False
        self._not_before = 0.0
        self.beginning: Beginning | None = None
        """What the journal's pointer said when this last looked, or put it up; None if there was none, or it did not look."""
        # The entries in front of it are trimmed, as far as is known.
        self._first = Position(1)
        # Called once there is another checkpoint, or was one when this looked first.
        self.on_found: Callable[[], None] = lambda: None
        # Called with the first entry that is not trimmed, and the position of the older checkpoint, once there is a newer one.
        self.on_older: Callable[[Position, Position], None] = lambda first, before: None

    @property
    def newest(self) -> CheckpointKey | None:
        """The newest checkpoint, as far as this has looked."""
        return None if self.beginning is None else self.beginning.checkpoint

    async def run_once(self) -> bool:
        """Make a checkpoint if it is time for one. Raises what the journal, the replicas or the cache's disk refuse."""
        if not self._asked:
            await self._ask()
            self._asked = True
            self.on_found()
        if self._is_due():
            # Another mount may have made one meanwhile.
            await self._ask()
            if self._is_due():
                await self._make()
        return False

    def _is_due(self) -> bool:
        if self._runtime.boottime() < self._not_before:
            return False
        last, tables = self.beginning, self._committer.tables
        position, transactions = (last.position, last.transactions) if last is not None else (Position(0), 0)
        return tables.position - position >= ENTRIES or transactions_in(tables) - transactions >= TRANSACTIONS

    async def _make(self) -> None:
        older, begun = self.beginning, self._runtime.boottime()
        self._not_before = begun + INTERVAL_SECONDS
        try:
            beginning = await self._put()
            await self._point(beginning)
        finally:
            took = self._runtime.boottime() - begun
            self._not_before = max(self._not_before, begun + EFFORT * took)
        _log.info("checkpoint", position=beginning.position, size=beginning.size, seconds=round(took, 3))
        self.on_found()
        if older is not None:
            self.on_older(self._first, older.position)

    async def trimmed(self, first: Position) -> None:
        """Say that entries in front of `first` are trimmed. Raises what the journal refuses."""
        self._first = max(self._first, first)
        if self.beginning is not None:
            await self._point(self.beginning)

    async def _point(self, beginning: Beginning) -> None:
        """Put up the pointer, with what is trimmed as of then: that may become more meanwhile."""
        while True:
            beginning = replace(beginning, first=self._first)
            await self._journal.point(beginning.position, encode_beginning(beginning))
            if beginning.first == self._first:
                break
        if self.beginning is None or self.beginning.position <= beginning.position:
            self.beginning = beginning

    async def _ask(self) -> None:
        self.beginning = await read_beginning(self._journal)
        if self.beginning is not None:
            self._first = max(self._first, self.beginning.first)

    async def _put(self) -> Beginning:
        """Put State as it is now into the replicas."""
        tables = self._committer.tables
        if not has_room(self._state.parent, SAVE_ROOM + self._state.stat().st_size):
            raise NoSpace("the cache directory's disk has too little room for a checkpoint")
        position = hold_file(tables, self._committer.save)
        if position is None:
            raise NoSpace("the cache directory's disk has too little room to save State")
        try:
            described = describe(tables, position, self._first)
            key, body = await pack(self._state, position, self._runtime)
        finally:
            release_file(tables)
        await self._sink.put(key.key, body)
        return replace(described, key=key.key, size=len(body))


async def pack(state: Path, position: Position, runtime: Runtime) -> tuple[CheckpointKey, bytes]:
    """The checkpoint of a State file that is at `position` and that nobody changes meanwhile.

    Raises NoSpace or Unavailable for its disk, and TooLarge.
    """
    draft = state.with_name("checkpoint.new")
    try:
        writer = CheckpointWriter(state, draft)
        try:
            while await runtime.in_thread(writer.step):
                if writer.size > SIZE_MAX:
                    raise TooLarge(f"State is too large for a checkpoint: more than {SIZE_MAX} bytes when compressed")
        finally:
            writer.close()
        return CheckpointKey(position, writer.digest), await runtime.in_thread(draft.read_bytes)
    except OSError as error:
        raise disk_error(error) from error
    finally:
        draft.unlink(missing_ok=True)


def describe(tables: Tables, position: Position, first: Position) -> Beginning:
    """What a pointer says of State at `position`, but for which object is its checkpoint."""
    found = tables.found
    assert found is not None, "State was replayed"
    recoveries = [RecoveryNote(at, incarnation) for at, incarnation in tables.recoveries.items()]
    return Beginning(
        workspace=found.workspace,
        name=found.name,
        durability=found.durability,
        replicas=[ReplicaSpec(number, replica.url) for number, replica in sorted(tables.members.items())],
        position=position,
        key="",
        size=0,
        transactions=transactions_in(tables),
        first=first,
        incarnation=tables.incarnation,
        recovered_at=recoveries[-1].recovered_at if recoveries else Position(0),
        recoveries=recoveries,
    )


def transactions_in(tables: Tables) -> int:
    """How many transactions of sessions State has met: in one entry there may be hundreds."""
    return sum(session.seen for session in tables.sessions.values())
