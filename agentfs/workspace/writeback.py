"""Writeback: staged bytes become chunks in segments that the replicas hold, and then a transaction names them."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import structlog
import trio

from agentfs.model.changes import AnyChange, ChunkRun, InlineRun, SetAttr, Truncate, Write
from agentfs.model.errors import AgentfsError, Collected, Fenced, NoSpace, ReadOnly, Unavailable
from agentfs.model.extents import CHUNK_MAX, INLINE_MAX, SEGMENT_MAX
from agentfs.model.ids import Ino
from agentfs.runtime import Runtime
from agentfs.workspace.backoff import Backoff
from agentfs.workspace.committer import Committer
from agentfs.workspace.packer import Packer, Piece
from agentfs.workspace.placements import Placement
from agentfs.workspace.staging import DirtyFile, Layer, Staging
from agentfs.workspace.staging_log import disk_error

AGE_SECONDS = 1.0
"""How long a change may stay staged before it is committed without being asked for."""

DIRTY_MAX = 64 << 20
"""Bytes staged of one file before a commit begins, and before its writers wait for that commit."""

FILES_MAX = 256
"""Files with staged changes before a writer waits until there are fewer: each holds a descriptor."""

CROWD = 192
"""Files with staged changes, and none of them being committed, before commits begin though nothing is old."""

CROWD_BYTES = SEGMENT_MAX - (SEGMENT_MAX >> 4)
"""Bytes of many files that fill a segment: so much is committed at once, and what is left waits for more."""

REMAINDER_MAX = 1 << 20
"""Bytes of files too large to go inline that do so all the same where a background commit has no more of them.

A segment of its own would cost a put for every second in which something is written, and a get for ever.
"""

CROWD_SECONDS = 0.02
"""How long it takes until the crowd is looked at again."""

Run = InlineRun | ChunkRun

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Built:
    """A layer, ready to be named in a transaction: its runs, and the segments that they are in."""

    runs: list[Run]
    segments: list[Placement]


class Writeback:
    """Commits staged files: when asked (fsync, close), when they are old, and when they grow or are many.

    `read_only_when_unreachable`: writers are told that the filesystem is read-only when the replicas cannot be reached, instead
    of an input/output error; and as long as they cannot, `refuses_writes`.
    """

    def __init__(self, staging: Staging, committer: Committer, packer: Packer, runtime: Runtime) -> None:
        self._staging = staging
        self._committer = committer
        self._packer = packer
        self._runtime = runtime
        self._backoff = Backoff(runtime, lambda: packer.reachable)
        self._crowded = trio.Event()
        self._ended = trio.Event()
        self._last_error: AgentfsError | None = None
        self.read_only_when_unreachable = False

    def refuses_writes(self) -> bool:
        """Whether nothing more is to be staged now. A hot path."""
        return self.read_only_when_unreachable and not self._packer.reachable

    async def commit(self, ino: Ino, *, inline_max: int = INLINE_MAX) -> None:
        """Commit what is staged of a file, and return once the journal has it. Raises why it could not be.

        Up to `inline_max` bytes of it, by layers, travel in the entry.
        After a failure what was staged stays staged, and goes out with the next commit, which `run` tries after a while. A file
        without a name is not committed: nobody could ever ask for it.
        """
        file = self._staging.files.get(ino)
        if file is None:
            return
        try:
            try:
                await self._commit(file, inline_max)
            except Collected:
                # What was put is gone, and what it was made of is staged still: it is put again once that is settled.
                await self._committer.sync()
                await self._commit(file, inline_max)
        except AgentfsError as error:
            self._last_error = error
            self._backoff.failed(ino, error)
            raise
        else:
            self._last_error = None
            self._backoff.succeeded(ino)
        finally:
            self._ended.set()
            self._ended = trio.Event()

    async def commit_all(self, inos: Sequence[Ino], report: Callable[[Ino, AgentfsError | None], None]) -> None:
        """Commit many files together; `report` is told of each when it is done, and why it could not be."""
        room = trio.CapacityLimiter(FILES_MAX)

        async def commit(ino: Ino) -> None:
            async with room:
                try:
                    await self.commit(ino)
                except AgentfsError as error:
                    report(ino, error)
                else:
                    report(ino, None)

        async with trio.open_nursery() as nursery:
            for ino in inos:
                nursery.start_soon(commit, ino)

    async def _commit(self, file: DirtyFile, inline_max: int) -> None:
        async with file.commit_order:
            try:
                layers = await self._send(file, inline_max)
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

    async def _send(self, file: DirtyFile, inline_max: int) -> list[Layer]:
        """Submit what is staged and not sent; return the layers that the transaction covers, none if there was nothing."""
        await self._committer.registered()
        if not self._has_name(file.ino):
            return []
        await self._forget_landed(file)
        # As long as what failed before fails again, nothing more is frozen: each layer holds a descriptor.
        built = await self._build_unsent(file, {}, inline_max)
        if self._staging.is_discarded(file) or not self._staging.freeze(file):
            return []
        return await self._submit(file, built, inline_max)

    def _has_name(self, ino: Ino) -> bool:
        inode = self._committer.tables.inode(ino)
        return inode is not None and inode.nlink > 0

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

    async def _submit(self, file: DirtyFile, built: dict[Layer, _Built], inline_max: int) -> list[Layer]:
        """Put the segments of what is frozen and submit the transaction that names them; return the layers it covers.

        `built` are the layers whose segments are in the replicas already.
        """
        built = await self._build_unsent(file, built, inline_max)
        await self._committer.registered()
        if file.set_aside:
            raise Fenced("the lock under which this was written was lost")
        layers = file.unsent
        segments = dict.fromkeys(segment for layer in layers for segment in built[layer].segments)
        changes: list[AnyChange] = [segment.naming() for segment in segments]
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

    async def _build_unsent(self, file: DirtyFile, built: dict[Layer, _Built], inline_max: int) -> dict[Layer, _Built]:
        """Build what is frozen, not sent and not in `built`, and return all."""
        # While segments are put, an older commit of the file may fail: then its layers come first again, below the newer ones.
        while missing := [layer for layer in file.unsent if layer not in built]:
            for layer in missing:
                built[layer] = await self._build(layer, inline_max)
        return built

    async def _build(self, layer: Layer, inline_max: int) -> _Built:
        """Make runs of a layer's bytes: inline ones, or chunks in segments that the replicas hold when this returns."""
        if layer.ranges.total <= inline_max:
            spans = _spans(layer, INLINE_MAX)
            return _Built([InlineRun(low, _read(layer.fd, low, high - low)) for low, high in spans], [])
        spans = _spans(layer, CHUNK_MAX)
        pieces = [Piece(high - low, partial(_read, layer.fd, low, high - low)) for low, high in spans]
        try:
            found = await self._packer.place(pieces)
        except AgentfsError as error:
            raise self._writers_error(error) from error
        runs = [ChunkRun(low, at.placement.name, at.chunk) for (low, _), at in zip(spans, found, strict=True)]
        return _Built([*runs], list(dict.fromkeys(at.placement for at in found)))

    def _writers_error(self, error: AgentfsError) -> AgentfsError:
        """What a writer is told of a put that failed: a full replica is ENOSPC; its permissions are not the file's."""
        if isinstance(error, NoSpace):
            return error
        if self.read_only_when_unreachable:
            return ReadOnly(f"the replicas did not take it: {error}")
        return error if isinstance(error, Unavailable) else Unavailable(f"the replicas did not take it: {error}")

    # ---- in the background

    async def run(self) -> None:
        """Commit files whose changes have become old, or that are too many, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                due = self._due()
                inline_max = self._inline_max(due)
                for file in due:
                    nursery.start_soon(self._commit_behind, file.ino, inline_max)
                try:
                    self._staging.compact_log(self._committer.transactions)
                except AgentfsError as error:
                    _log.warning("staging_log_not_compacted", reason=str(error))
                self._crowded = trio.Event()
                await self._runtime.sleep(CROWD_SECONDS)
                with trio.move_on_after(AGE_SECONDS / 4):
                    await self._crowded.wait()

    def _due(self) -> list[DirtyFile]:
        """What is to be committed now, oldest first. What failed lately is left alone.

        With one that is old all others go, so that they share segments and there are few: not as many as times to look.
        """
        self._backoff.keep(self._staging.files.__contains__)
        limit = self._runtime.boottime() - AGE_SECONDS
        waiting = [file for file in self._staging.files.values() if self._waits(file)]
        if any(file.since <= limit for file in waiting):
            return waiting
        return _whole_segments(waiting) if len(waiting) >= CROWD else []

    def _inline_max(self, files: list[DirtyFile]) -> int:
        """Up to what size files go inline that are committed together: further than usual where no segment is worth its put.

        Not to get round replicas that cannot be reached, or take no more: the journal is not there to hold what they should.
        """
        sizes = [size for size in map(_unsent_bytes, files) if size > INLINE_MAX]
        if not sizes or sum(sizes) > REMAINDER_MAX or not self._packer.calm or self._backoff.any_failed:
            return INLINE_MAX
        return max(sizes)

    def _waits(self, file: DirtyFile) -> bool:
        """Whether a file has changes that no commit is about, and may be committed."""
        if file.commit_order.locked() or not (file.active or file.unsent):
            return False
        return self._has_name(file.ino) and not self._backoff.holds_back(file.ino)

    async def _commit_behind(self, ino: Ino, inline_max: int) -> None:
        # Why it failed is logged, and nobody is there to be told.
        with suppress(AgentfsError):
            await self.commit(ino, inline_max=inline_max)

    async def bound(self, ino: Ino) -> None:
        """Keep what is staged within DIRTY_MAX bytes a file and FILES_MAX files: a writer waits here while there is more.

        Raises why it cannot be made less.
        """
        files = self._staging.files
        if len(files) >= CROWD:
            self._crowded.set()
        while self._is_over_full():
            await self._ended.wait()
            if self._last_error is not None and self._is_over_full():
                raise self._last_error
        file = files.get(ino)
        if file is not None and file.active is not None and file.active.ranges.total >= DIRTY_MAX:
            await self.commit(ino)

    def _is_over_full(self) -> bool:
        """Whether more than FILES_MAX files wait to be committed; files without a name are never committed."""
        files = self._staging.files
        return len(files) > FILES_MAX and sum(map(self._has_name, files)) > FILES_MAX


def _whole_segments(files: list[DirtyFile]) -> list[DirtyFile]:
    """The first of the files, so many that they fill segments; all of them if they are less than one."""
    total = sum(map(_unsent_bytes, files))
    wanted = total - total % CROWD_BYTES if total >= CROWD_BYTES else total
    chosen = []
    for file in files:
        if wanted <= 0:
            break
        chosen.append(file)
        wanted -= _unsent_bytes(file)
    return chosen


def _unsent_bytes(file: DirtyFile) -> int:
    layers = [*file.unsent, file.active] if file.active else file.unsent
    return sum(layer.ranges.total for layer in layers)


def _spans(layer: Layer, most: int) -> list[tuple[int, int]]:
    """The ranges of a layer, cut into pieces of at most so many bytes."""
    return [(low, min(low + most, end)) for start, end in layer.ranges for low in range(start, end, most)]


def _read(fd: int, offset: int, length: int) -> bytes:
    """Staged bytes; any thread may call it. Raises Unavailable when the disk fails."""
    try:
        return os.pread(fd, length, offset)
    except OSError as error:
        raise disk_error(error) from error


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
