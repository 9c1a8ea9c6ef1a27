"""The check of a whole workspace: its journal, every State that can be compared, the rules of the tree, and every chunk.

It works on the entries up to the tail that it finds at its start, and changes nothing, so that mounts may go on beside it.
"""

import sqlite3
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from agentfs.chunks.contract import ChunkStore
from agentfs.journal.contract import Journal, Record
from agentfs.model.codec import decode_entry
from agentfs.model.errors import Corrupt, Stale
from agentfs.model.ids import Position, ReplicaId
from agentfs.model.replica import Replica
from agentfs.runtime import Runtime
from agentfs.state.apply import apply_entry
from agentfs.state.checkpoint import CheckpointKey
from agentfs.state.checksum import checksum
from agentfs.state.tables import Tables, open_tables
from agentfs.workspace.beginning import read_beginning
from agentfs.workspace.fetching import FetchChosen
from agentfs.workspace.findings import FINDINGS_MAX, Finding
from agentfs.workspace.fsck_chunks import Report, check_chunks
from agentfs.workspace.fsck_rules import check_rules
from agentfs.workspace.paths import printable
from agentfs.workspace.saved_states import SavedState, differs, is_ahead, read_saved_states

Stage = Callable[[str, Literal["bytes", "items"]], AbstractContextManager[Report]]
"""Opens a stage of the work under its name, in the unit that its progress is reported in."""

OpenStores = Callable[[Mapping[ReplicaId, Replica]], Awaitable[Mapping[ReplicaId, ChunkStore]]]
"""Opens the stores of the members that State turned out to have, as far as they can be opened and are theirs, to be closed."""

_READ_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found, and how much was looked at: entries of the journal, and State files that could be compared."""

    findings: list[Finding]
    entries: int
    states: int

    @property
    def faults(self) -> list[Finding]:
        """Those of the findings that need mending."""
        return [finding for finding in self.findings if finding.severity == "fault"]


async def check_workspace(
    *,
    workspace: str,
    journal: Journal,
    open_stores: OpenStores,
    fetch: FetchChosen,
    cache_dir: Path,
    runtime: Runtime,
    stage: Stage,
) -> Checked:
    """Check the workspace of that id. `cache_dir` is where its mounts keep their State files, `fetch` gets checkpoints.

    Raises what the journal raises when it cannot be read at all, and Invalid for entries in a newer format.
    """
    saved, findings = await runtime.in_thread(read_saved_states, cache_dir / workspace)
    # The tail is asked for after the State files, so that none of them can be ahead of it through a mount that ran beside.
    tail = await journal.tail()
    tables, more = await _begin(journal, fetch)
    findings += more
    try:
        with stage("journal", "items") as report:
            replay = _Replay(tables, journal, tail, saved, report)
            findings += await replay.run()
        found = tables.found
        if found is None:
            findings.append(Finding("journal", "journal: it does not begin with the founding of a workspace"))
            return Checked(findings, tables.position, len(saved))
        if found.workspace != workspace:
            message = f"journal: it is that of workspace {found.workspace}, workspace.toml says {workspace}"
            findings.append(Finding("journal", printable(message)))
        findings += await runtime.in_thread(check_rules, tables)
        with stage("segments", "bytes") as report:
            complete = tables.position == tail
            stores = await open_stores(tables.members)
            try:
                findings += await check_chunks(tables, found, stores, complete=complete, runtime=runtime, report=report)
            finally:
                for store in stores.values():
                    await store.aclose()
        return Checked(findings, tables.position, len(saved))
    finally:
        tables.close()


async def _begin(journal: Journal, fetch: FetchChosen) -> tuple[Tables, list[Finding]]:
    """What the replay begins with: nothing, or if the first entries were trimmed the oldest checkpoint that they led to."""
    try:
        await journal.read(Position(0), limit_bytes=1)
    except Stale as error:
        reason = str(error)
    except Corrupt:
        # The replay will come to it.
        return open_tables(None), []
    else:
        return open_tables(None), []
    beginning = await read_beginning(journal)
    if beginning is None:
        return open_tables(None), []
    first = beginning.first

    def reached(found: list[CheckpointKey]) -> list[CheckpointKey]:
        return [key for key in found if key.position >= first - 1]

    with tempfile.TemporaryDirectory(prefix="agentfs-fsck-") as directory:
        tables = await fetch(Path(directory) / "state.sqlite", beginning, reached)
    if tables is None:
        return open_tables(None), [Finding("journal", f"journal: no checkpoint can be read, and {reason}")]
    message = f"entries in front of {first} were trimmed: what follows the checkpoint at position {tables.position} was checked"
    return tables, [Finding("journal", message, "note")]


class _Replay:
    """One replay of the journal into a State in memory, that meets each saved State at its position."""

    def __init__(self, tables: Tables, journal: Journal, tail: Position, saved: list[SavedState], report: Report) -> None:
        self._tables = tables
        self._journal = journal
        self._tail = tail
        self._saved = saved
        self._report = report
        self._findings: list[Finding] = []
        self._read_bytes = _READ_BYTES

    async def run(self) -> list[Finding]:
        """Replay to the tail, or to the first entry that does not allow it; what follows that is looked at singly."""
        self._findings += [is_ahead(saved, self._tail) for saved in self._saved if saved.position > self._tail]
        self._compare()
        while self._tables.position < self._tail:
            try:
                for record in await self._read(self._tables.position):
                    self._apply(record)
            except (Corrupt, Stale) as error:
                await self._look_behind(str(error))
                break
            self._report(self._tables.position, self._tail)
        return self._findings

    async def _read(self, after: Position) -> list[Record]:
        try:
            records = await self._journal.read(after, limit_bytes=self._read_bytes)
        except Corrupt:
            if self._read_bytes == 1:
                raise
            # What is wrong may lie far behind: from here on one entry at a time, to come as close to it as can be.
            self._read_bytes = 1
            records = await self._journal.read(after, limit_bytes=1)
        if not records:
            raise Corrupt(f"the journal ends here, it said it would at {self._tail}")
        return records

    def _apply(self, record: Record) -> None:
        """Apply an entry. Raises Corrupt if it is damaged, out of order, or against the rules; State is then as before it."""
        tables = self._tables
        if record.position > self._tail:
            return
        if record.position != tables.position + 1:
            raise Corrupt(f"entry {record.position} follows entry {tables.position}")
        entry = decode_entry(record.payload)
        mark = tables.mark()
        try:
            apply_entry(tables, entry, record.position)
        except (AssertionError, OverflowError, sqlite3.IntegrityError) as error:
            tables.revert(mark)
            raise Corrupt(f"it cannot be applied: {error}") from error
        tables.settle()
        self._compare()

    def _compare(self) -> None:
        here = [saved for saved in self._saved if saved.position == self._tables.position]
        if here:
            replayed = checksum(self._tables)
            self._findings += [differs(saved, replayed) for saved in here if saved.checksum != replayed]

    async def _look_behind(self, reason: str) -> None:
        """Say why the replay ends, and which of the entries behind it are damaged too: they are read, not applied."""
        first, last = self._tables.position + 1, self._tables.position + 1
        skipped = [saved for saved in self._saved if first <= saved.position <= self._tail]
        for position in range(first + 1, self._tail + 1):
            another = await self._examine(Position(position))
            if another is not None and last == position - 1:
                last = position
            elif another is not None:
                self._tell(first, last, reason)
                first, last, reason = position, position, another
            if len(self._findings) >= FINDINGS_MAX:
                break
        self._tell(first, last, reason)
        good = self._tables.position
        self._findings.append(Finding("journal", f"State and segments were checked as of position {good} only", "note"))
        for saved in skipped:
            message = f"State file {printable(str(saved.path))} at position {saved.position} could not be compared"
            self._findings.append(Finding("state", message, "note"))

    async def _examine(self, position: Position) -> str | None:
        """Why an entry cannot be read, None if it can."""
        try:
            records = await self._journal.read(Position(position - 1), limit_bytes=1)
            if not records or records[0].position != position:
                return "it is not there"
            decode_entry(records[0].payload)
        except (Corrupt, Stale) as error:
            return str(error)
        return None

    def _tell(self, first: int, last: int, reason: str) -> None:
        which = f"entry {first}" if first == last else f"entries {first} to {last}"
        self._findings.append(Finding("journal", printable(f"journal: {which}: {reason}")))
