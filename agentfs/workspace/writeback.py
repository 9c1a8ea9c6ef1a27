"""Writeback: staged bytes become chunks, chunks become segments in the replicas, and then a transaction names them."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog
import trio

from agentfs.chunks.contract import ChunkStore
from agentfs.chunks.segment import Segment, SegmentBuilder
from agentfs.model.changes import AddSegment, AnyChange, ChunkRun, InlineRun, Placed, SetAttr, Truncate, Write
from agentfs.model.errors import AgentfsError, Fenced, NoSpace, Unavailable
from agentfs.model.extents import CHUNK_MAX, INLINE_MAX
from agentfs.model.ids import Ino, ReplicaId
from agentfs.runtime import Runtime
from agentfs.workspace.committer import Committer
from agentfs.workspace.staging import DirtyFile, Layer, Staging

AGE_SECONDS = 1.0
"""How long a change may stay staged before it is committed without being asked for."""

DIRTY_MAX = 64 << 20
"""Bytes staged of one file before a commit begins, and before its writers wait for that commit."""

FILES_MAX = 256
"""Files with staged changes: each holds a descriptor."""

PUTS_MAX = 2
"""Segments of one commit under way to the replicas at once: 16 MiB of memory."""

Run = InlineRun | ChunkRun

_log = structlog.get_logger()


class Replicas(ChunkStore, Protocol):
    """A chunk store over several replicas that says where an object is."""

    on_straggler: Callable[[str, ReplicaId], None] | None

    def placed(self, key: str) -> list[ReplicaId]:
        """The replicas that hold a key that was put."""
        ...


@dataclass(frozen=True, slots=True)
class _Sent:
    """A segment that the replicas hold: its name, key and size in bytes."""

    name: bytes
    key: str
    size: int


@dataclass(frozen=True, slots=True)
class _Built:
    """A layer, ready to be named in a transaction."""

    runs: list[Run]
    segments: list[_Sent]


class Writeback:
    """Commits staged files: when asked (fsync, close), when they are old, and when they grow."""

    def __init__(self, staging: Staging, committer: Committer, replicas: Replicas, runtime: Runtime) -> None:
        self._staging = staging
        self._committer = committer
        self._replicas = replicas
        self._runtime = runtime
        self._placed: dict[bytes, list[ReplicaId]] = {}
        replicas.on_straggler = self._straggler

    async def commit(self, ino: Ino) -> None:
        """Commit what is staged of a file, and return once the journal has it. Raises why it could not be.

        After a failure what was staged stays staged, and the next commit sends it again. A file without a name is not
        committed: nobody could ever ask for it.
        """
        file = self._staging.files.get(ino)
        if file is None:
            return
        async with file.commit_order:
            try:
                layers = await self._send(file)
            finally:
                if self._staging.is_discarded(file):
                    self._staging.give_up(file)
        if file.set_aside:
            raise Fenced("the lock under which this was written was lost")
        under_way = [layer.pending for layer in file.frozen if layer.shown]
        if layers:
            await self._settle(file, layers)
        elif under_way and under_way[-1] is not None:
            await self._committer.settled(under_way[-1])

    async def _send(self, file: DirtyFile) -> list[Layer]:
        """Submit what is staged and not sent; return the layers that the transaction covers, none if there was nothing."""
        await self._committer.registered()
        inode = self._committer.tables.inode(file.ino)
        if inode is None or inode.nlink == 0:
            return []
        await self._forget_landed(file)
        return await self._submit(file) if self._staging.freeze(file) else []

    async def _forget_landed(self, file: DirtyFile) -> None:
        """What an unreachable journal was asked to take, and gave no answer to, may have arrived: then it is not sent again."""
        asked = [layer for layer in file.unsent if layer.pending is not None]
        if not asked:
            return
        await self._committer.catch_up()
        self._staging.committed(file, [layer for layer in asked if layer.pending is not None and layer.pending.landed])
        for layer in file.unsent:
            if layer.pending is not None:
                self._committer.withdraw(layer.pending)
                layer.pending = None

    async def _submit(self, file: DirtyFile) -> list[Layer]:
        """Put the segments of what is frozen and submit the transaction that names them; return the layers it covers."""
        built: dict[Layer, _Built] = {}
        # While segments are put, an older commit of the file may fail: then its layers come first again, below the newer ones.
        while missing := [layer for layer in file.unsent if layer not in built]:
            for layer in missing:
                built[layer] = await self._build(layer)
        await self._committer.registered()
        if file.set_aside:
            raise Fenced("the lock under which this was written was lost")
        layers = file.unsent
        changes: list[AnyChange] = []
        for layer in layers:
            changes += [AddSegment(each.name, each.size, self._holders(each)) for each in built[layer].segments]
        inode = self._committer.tables.inode(file.ino)
        size = inode.size if inode else 0
        for layer in layers:
            size = _describe(file.ino, layer, built[layer].runs, size, changes)
        pending = self._committer.submit(changes)
        for layer in layers:
            layer.pending, layer.shown = pending, True
        return layers

    async def _settle(self, file: DirtyFile, layers: list[Layer]) -> None:
        pending = layers[-1].pending
        assert pending is not None, "what was submitted is pending"
        try:
            await self._committer.settled(pending)
        except AgentfsError:
            for layer in layers:
                layer.shown = False
            raise
        self._staging.committed(file, layers)
        if not self._committer.pending:
            self._staging.empty_log()

    # ---- chunks and segments

    async def _build(self, layer: Layer) -> "_Built":
        """Make runs of a layer's bytes: inline ones, or chunks in segments that the replicas hold when this returns."""
        ranges = list(layer.ranges)
        if layer.ranges.total <= INLINE_MAX:
            return _Built([InlineRun(start, os.pread(layer.fd, end - start, start)) for start, end in ranges], [])
        built = _Built([], [])
        spans = [(low, min(low + CHUNK_MAX, end)) for start, end in ranges for low in range(start, end, CHUNK_MAX)]
        failures: list[AgentfsError] = []
        slots = trio.CapacityLimiter(PUTS_MAX)
        async with trio.open_nursery() as nursery:
            while spans and not failures:
                # Building waits for a free slot, so that no more than PUTS_MAX segments are in memory.
                await slots.acquire_on_behalf_of(token := object())
                segment, runs, spans = await self._runtime.in_thread(_fill, layer.fd, spans)
                built.runs.extend(runs)
                built.segments.append(_Sent(segment.name, segment.key, len(segment.body)))
                nursery.start_soon(self._put, segment, failures, slots, token)
        if failures:
            raise _writers_error(failures[0])
        return built

    async def _put(self, segment: Segment, failures: list[AgentfsError], slots: trio.CapacityLimiter, token: object) -> None:
        try:
            await self._replicas.put(segment.key, segment.body)
        except AgentfsError as error:
            failures.append(error)
        else:
            self._placed.setdefault(segment.name, []).extend(self._replicas.placed(segment.key))
        finally:
            slots.release_on_behalf_of(token)

    def _holders(self, sent: "_Sent") -> list[ReplicaId]:
        """The replicas that hold a segment by now, those that finished behind the put among them."""
        return self._placed.pop(sent.name, [])

    def _straggler(self, key: str, replica: ReplicaId) -> None:
        name = bytes.fromhex(Path(key).stem)
        if self._committer.tables.segment_id(name) is None:
            # The transaction that names the segment is still to come, and will say this too.
            self._placed.setdefault(name, []).append(replica)
            return
        try:
            self._committer.submit([Placed(name, replica)])
        except AgentfsError as error:
            _log.warning("placement_not_recorded", segment=key, replica=replica, reason=str(error))

    # ---- in the background

    async def run(self) -> None:
        """Commit files whose changes have become old, until cancelled."""
        while True:
            await self._runtime.sleep(AGE_SECONDS / 4)
            await self.commit_older_than(AGE_SECONDS)
            try:
                self._staging.compact_log(self._committer.transactions)
            except AgentfsError as error:
                _log.warning("staging_log_not_compacted", reason=str(error))

    async def commit_older_than(self, seconds: float) -> None:
        """Commit every file with changes staged for longer than `seconds`; what fails is logged and stays staged."""
        limit = self._runtime.boottime() - seconds
        old = [file.ino for file in self._staging.files.values() if file.since <= limit and not file.commit_order.locked()]
        async with trio.open_nursery() as nursery:
            for ino in old:
                nursery.start_soon(self._commit_reporting, ino)

    async def _commit_reporting(self, ino: Ino) -> None:
        try:
            await self.commit(ino)
        except AgentfsError as error:
            _log.warning("writeback_failed", ino=ino, reason=str(error))

    async def bound(self, ino: Ino) -> None:
        """Keep what is staged within DIRTY_MAX bytes a file and FILES_MAX files: a writer waits here while there is more."""
        if len(self._staging.files) > FILES_MAX:
            await self.commit_older_than(0.0)
        file = self._staging.files.get(ino)
        if file is not None and file.active is not None and file.active.ranges.total >= DIRTY_MAX:
            await self.commit(ino)


def _writers_error(error: AgentfsError) -> AgentfsError:
    """What a writer is told of a put that failed: a full replica is ENOSPC; its permissions are not the file's."""
    return error if isinstance(error, NoSpace | Unavailable) else Unavailable(f"the replicas did not take it: {error}")


def _fill(fd: int, spans: list[tuple[int, int]]) -> tuple[Segment, list[ChunkRun], list[tuple[int, int]]]:
    """Fill one segment from a staging file; return it, the runs in it, and the spans that did not fit."""
    builder = SegmentBuilder()
    placed = []
    for start, end in spans:
        if builder.full:
            break
        placed.append((start, builder.add(os.pread(fd, end - start, start))))
    segment = builder.finish()
    return segment, [ChunkRun(start, segment.name, chunk) for start, chunk in placed], spans[len(placed) :]


def _describe(ino: Ino, layer: Layer, runs: list[Run], size: int, changes: list[AnyChange]) -> int:
    """Add a layer's changes to a transaction; `size` is the file's size before them, the result its size after them."""
    if layer.written_ns is not None:
        size = _describe_content(ino, layer, runs, size, layer.written_ns, changes)
    if layer.set_mtime is not None:
        mtime_ns, now_ns = layer.set_mtime
        changes.append(SetAttr(ino, now_ns, mtime_ns=mtime_ns))
    return size


def _describe_content(ino: Ino, layer: Layer, runs: list[Run], size: int, time_ns: int, changes: list[AnyChange]) -> int:
    before = len(changes)
    if layer.cut is not None and layer.cut < size:
        changes.append(Truncate(ino, layer.cut, time_ns))
        size = layer.cut
    if runs and layer.append and len(layer.ranges) == 1:
        start = runs[0].offset
        changes.append(Write(ino, [_moved(run, -start) for run in runs], True, time_ns))
        size += layer.ranges.total
    elif runs:
        changes.append(Write(ino, runs, False, time_ns))
        size = max(size, layer.ranges.end)
    if layer.grown is not None and layer.grown > size:
        changes.append(Truncate(ino, layer.grown, time_ns))
        size = layer.grown
    if len(changes) == before:
        # O_TRUNC of an empty file: nothing but the time stamps change.
        changes.append(SetAttr(ino, time_ns, mtime_ns=time_ns))
    return size


def _moved(run: Run, by: int) -> Run:
    if isinstance(run, InlineRun):
        return InlineRun(run.offset + by, run.data)
    return ChunkRun(run.offset + by, run.segment, run.chunk)
