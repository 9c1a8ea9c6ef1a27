"""Salvage: what replicas hold of a workspace whose journal is lost, read up to the last entry that can be reached.

It begins with the newest checkpoint that is whole, and goes on with the mirror of the journal, entry by entry, out of whichever
replica has the next one. Where none has it, that is the end: what comes behind a gap cannot be applied.
"""

import sqlite3
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from agentfs.chunks.contract import ChunkStore
from agentfs.journal.contract import Record
from agentfs.journal.mirror import MIRROR_PREFIX, decode_mirrored, parse_mirror_key
from agentfs.model.codec import decode_entry
from agentfs.model.entry import Entry
from agentfs.model.errors import AgentfsError, Corrupt
from agentfs.model.ids import Position
from agentfs.runtime import Runtime
from agentfs.state.apply import apply_entry
from agentfs.state.checkpoint import CheckpointKey, open_checkpoint, write_state
from agentfs.state.tables import Tables, open_tables
from agentfs.workspace.fetching import list_checkpoints
from agentfs.workspace.replay import remove_state
from agentfs.workspace.staging_log import disk_error

SAVE_EVERY: Final = 2048
"""Entries between two saves of State: a bound on what one has to write."""

DAMAGE_MAX: Final = 20
"""How many damaged objects are told of."""


class _Run(NamedTuple):
    """An object of the mirror, and where it is."""

    first: Position
    last: Position
    key: str
    place: str


class Salvage:
    """What can be read. `begin` comes first, then `entries`; the State at `path` follows, and is open as `tables`.

    `places`: the replicas' stores by what people call them, the most trusted first. `damage`: a line for each object that
    should have been good and was not. `close` closes the tables.
    """

    def __init__(self, workspace: str, places: Mapping[str, ChunkStore], path: Path, runtime: Runtime) -> None:
        self._workspace = workspace
        self._places = places
        self._path = path
        self._runtime = runtime
        self._runs: list[_Run] = []
        self.tables: Tables = open_tables(None)
        self.damage: list[str] = []
        self.time_ns: int | None = None
        """When the last entry was sent that was read; None if none was."""

    @property
    def position(self) -> Position:
        """The last entry that State has."""
        return self.tables.position

    @property
    def end(self) -> Position:
        """The last entry that there is any trace of."""
        return max((run.last for run in self._runs), default=self.position)

    def close(self) -> None:
        """Close the tables."""
        self.tables.close()

    async def begin(self) -> None:
        """Look at what there is, and open the newest checkpoint that is whole, or an empty State.

        Raises Unavailable, Denied where a replica cannot be listed, and NoSpace.
        """
        checkpoints: dict[CheckpointKey, list[str]] = {}
        for place, store in self._places.items():
            for key in await list_checkpoints(store):
                checkpoints.setdefault(key, []).append(place)
            async for info in store.list(MIRROR_PREFIX):
                if span := parse_mirror_key(info.key):
                    self._runs.append(_Run(*span, info.key, place))
        self._runs.sort(key=lambda run: run.first)
        for key in sorted(checkpoints, reverse=True):
            for place in checkpoints[key]:
                if await self._open(key, place):
                    return
        self.tables.close()
        self.tables = open_tables(self._path)

    async def _open(self, key: CheckpointKey, place: str) -> bool:
        try:
            body = await self._places[place].get(key.key, check=key.check)
            await self._runtime.in_thread(write_state, body, self._path)
            tables = open_checkpoint(self._path, key, workspace=self._workspace)
        except OSError as error:
            raise disk_error(error) from error
        except AgentfsError as error:
            self._damaged(f"checkpoint at position {key.position} in {place}: {error}")
            remove_state(self._path)
            return False
        self.tables.close()
        self.tables = tables
        return True

    async def entries(self) -> AsyncIterator[Record]:
        """The entries behind the checkpoint, each applied to State when it is yielded, to the last that can be reached."""
        waiting, following = [], 0
        while True:
            after = self.position
            while following < len(self._runs) and self._runs[following].first <= after + 1:
                waiting.append(self._runs[following])
                following += 1
            waiting = [run for run in waiting if run.last > after]
            if not waiting:
                break
            # The one that leads farthest; of equal ones, that of the most trusted place.
            run = max(waiting, key=lambda run: run.last)
            waiting.remove(run)
            for record in await self._read(run, after):
                if not self._apply(record, run):
                    break
                yield record
            if self.position < run.last and self.position > after:
                self._damaged(f"entries {self.position + 1} to {run.last} in {run.place}: the object ends before them")
        self.tables.save()

    async def _read(self, run: _Run, after: Position) -> list[Record]:
        try:
            records = decode_mirrored(await self._places[run.place].get(run.key))
        except AgentfsError as error:
            self._damaged(f"entries {run.first} to {run.last} in {run.place}: {error}")
            return []
        # A writer may have been killed when there was more in the object than its key says: nobody counts on that.
        return [record for record in records if after < record.position <= run.last]

    def _apply(self, record: Record, run: _Run) -> bool:
        if record.position != self.position + 1:
            return False
        mark = self.tables.mark()
        try:
            entry = decode_entry(record.payload)
            self._check(entry)
            apply_entry(self.tables, entry, record.position)
        except (Corrupt, AssertionError, OverflowError, sqlite3.IntegrityError) as error:
            self.tables.revert(mark)
            self._damaged(f"entry {record.position} in {run.place}: {error}")
            return False
        self.tables.settle()
        self.tables.touched_leases.clear()
        self.time_ns = entry.time_ns
        if record.position % SAVE_EVERY == 0:
            self.tables.save()
        return True

    def _check(self, entry: Entry) -> None:
        """Raise Corrupt for the first entry of another workspace."""
        if self.position == 0:
            changes = entry.transactions[0].changes if entry.transactions else []
            if not any(getattr(change, "workspace", None) == self._workspace for change in changes):
                raise Corrupt("it does not found this workspace")

    def _damaged(self, line: str) -> None:
        if len(self.damage) < DAMAGE_MAX:
            self.damage.append(line)
