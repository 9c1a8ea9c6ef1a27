"""The packer: pieces of many commits go together into segments, and the segments into the replicas.

Whoever has pieces to place puts them in one queue. Each of PUTS_MAX workers takes what is at its head, as much as one segment
holds, has a thread build the segment, and puts it. So a piece leaves at once while little is under way, and goes together with
others while much is: nobody waits for company. Pieces are places, not bytes: no more than PUTS_MAX segments are in memory.
"""

from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import trio

from agentfs.chunks.contract import ChunkStore
from agentfs.chunks.segment import Segment, SegmentBuilder
from agentfs.model.errors import AgentfsError, Corrupt, Unavailable
from agentfs.model.extents import SEGMENT_MAX, Chunk
from agentfs.model.ids import Position
from agentfs.runtime import Runtime
from agentfs.workspace.committer import Committer
from agentfs.workspace.placements import Beginning, Placement, Placements, Replicas

PUTS_MAX = 4
"""Segments being built or put at once."""

BUILDS_MAX = 2
"""Segments being built at once: that takes a processor each."""

RAW_MAX = 2 * SEGMENT_MAX
"""File bytes in a segment, at most: what compresses better than to a half leaves it shorter than it could be."""

QUEUE_MAX = 1 << 14
"""Pieces in the queue before whoever comes with more has to wait."""


class Piece(NamedTuple):
    """File bytes to be packed: how many, 1 to CHUNK_MAX, and how a thread reads them, which may raise AgentfsError."""

    length: int
    read: Callable[[], bytes]


class ChunkAt(NamedTuple):
    """Where a piece is now: a chunk of a segment that the replicas hold."""

    placement: Placement
    chunk: Chunk


@asynccontextmanager
async def open_packer(store: ChunkStore, replicas: Replicas, committer: Committer, runtime: Runtime) -> AsyncIterator["Packer"]:
    """A packer with its workers. At its end whoever still waits for a piece is told Unavailable.

    It puts into `store`, which is `replicas` or a cache over them, and asks `replicas` where a segment is.
    """
    placements = Placements(store, replicas, committer, runtime)
    packer = Packer(placements, replicas, runtime)
    replicas.on_straggler = placements.straggler
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(placements.run)
            for _ in range(PUTS_MAX):
                nursery.start_soon(packer._work)
            yield packer
            nursery.cancel_scope.cancel()
    finally:
        replicas.on_straggler = None
        packer._close()


class Packer:
    """Places pieces; `open_packer` makes it."""

    def __init__(self, placements: Placements, replicas: Replicas, runtime: Runtime) -> None:
        self._placements = placements
        self._replicas = replicas
        self._runtime = runtime
        self._orders: dict[_Order, None] = {}
        self._queue: OrderedDict[_Order, None] = OrderedDict()
        self._queued = 0
        self._came = trio.Event()
        self._room = trio.Event()
        self._builders = trio.CapacityLimiter(BUILDS_MAX)

    @property
    def reachable(self) -> bool:
        """Whether the replicas took the last segment that they were given."""
        return self._replicas.reachable

    @property
    def calm(self) -> bool:
        """Whether they took it, and nothing is under way of which nobody knows yet whether they will."""
        return self.reachable and not self._orders

    async def place(self, pieces: Sequence[Piece]) -> list[ChunkAt]:
        """Put pieces into segments that the replicas hold when this returns; say where each is, in their order.

        Raises why a piece could not be read or put: NoSpace, Unavailable, Denied. What was put of the others stays there, named
        by nobody. No piece is read any more once this has returned, raised or been cancelled.
        """
        while self._queued >= QUEUE_MAX:
            await self._room.wait()
        order = _Order(pieces, self._runtime.boottime())
        self._orders[order] = None
        self._enqueue(order, range(len(pieces)))
        try:
            if pieces:
                await order.done.wait()
        finally:
            self._dequeue(order)
            del self._orders[order]
            order.done.set()
            with trio.CancelScope(shield=True):
                await order.wait_unread()
        if order.error is not None:
            raise order.error
        return [found for found in order.found if found is not None]

    # ---- the queue

    def _enqueue(self, order: "_Order", numbers: Sequence[int]) -> None:
        """Put pieces of an order at the queue's end, or, where they were taken before, back to where they were."""
        if not numbers or order.done.is_set():
            return
        if order not in self._queue:
            self._queue[order] = None
            self._queue.move_to_end(order, last=order.is_new)
        order.is_new = False
        order.waiting.extendleft(reversed(numbers))
        self._queued += len(numbers)
        self._came.set()

    def _dequeue(self, order: "_Order") -> None:
        if order in self._queue:
            del self._queue[order]
            self._queued -= len(order.waiting)
            order.waiting.clear()
            self._make_room()

    def _claim(self) -> "list[_Claim]":
        """Take from the queue's head what may go into one segment."""
        claims: list[_Claim] = []
        room = RAW_MAX
        while self._queue:
            order = next(iter(self._queue))
            while order.waiting and (piece := order.pieces[order.waiting[0]]).length <= room:
                claims.append(_Claim(order, order.waiting.popleft(), piece))
                room -= piece.length
            if order.waiting:
                break
            del self._queue[order]
        self._queued -= len(claims)
        self._make_room()
        return claims

    def _make_room(self) -> None:
        if self._queued < QUEUE_MAX:
            self._room.set()
            self._room = trio.Event()

    # ---- working

    async def _work(self) -> None:
        while True:
            async with self._builders:
                while not self._queue:
                    self._came = trio.Event() if self._came.is_set() else self._came
                    await self._came.wait()
                beginning = self._placements.begin()
                built = await self._build(self._claim(), beginning)
            if built.segment is not None:
                await self._put(built.segment, built.chunks, beginning.since)

    async def _build(self, claims: "list[_Claim]", beginning: Beginning) -> "_Built":
        """Build one segment; what did not fit goes back to the queue's head."""
        orders = dict.fromkeys(claim.order for claim in claims)
        for order in orders:
            order.readers += 1
        try:
            built = await self._runtime.in_thread(_fill, claims, beginning.epoch)
        finally:
            for order in orders:
                order.readers -= 1
                order.unread.set()
        for order, error in built.unreadable:
            self._fail(order, error)
        left = claims[built.taken :]
        for order in reversed(dict.fromkeys(claim.order for claim in left)):
            self._enqueue(order, [claim.number for claim in left if claim.order is order])
        return built

    async def _put(self, segment: Segment, chunks: "list[tuple[_Claim, Chunk]]", since: Position) -> None:
        began = self._runtime.boottime()
        try:
            placement = await self._placements.put(segment, since)
        except AgentfsError as error:
            for claim, _ in chunks:
                self._fail(claim.order, error)
            if isinstance(error, Unavailable):
                self._fail_waiting(began, error)
        else:
            for claim, chunk in chunks:
                claim.order.take(claim.number, ChunkAt(placement, chunk))

    def _fail_waiting(self, since: float, error: AgentfsError) -> None:
        """Who has waited through all of a put that was given up has waited long enough too."""
        for order in list(self._queue):
            if order.since <= since:
                self._fail(order, error)

    def _fail(self, order: "_Order", error: AgentfsError) -> None:
        self._dequeue(order)
        order.fail(error)

    def _close(self) -> None:
        for order in self._orders:
            order.fail(Unavailable("the workspace was closed before the replicas had it"))


class _Order:
    """What one caller wants placed: its pieces, the numbers of those in the queue, and what has become of the others.

    `readers` are the threads that may be reading its pieces.
    """

    def __init__(self, pieces: Sequence[Piece], since: float) -> None:
        self.pieces = pieces
        self.since = since
        self.is_new = True
        self.waiting: deque[int] = deque()
        self.found: list[ChunkAt | None] = [None] * len(pieces)
        self.missing = len(pieces)
        self.error: AgentfsError | None = None
        self.done = trio.Event()
        self.readers = 0
        self.unread = trio.Event()

    def take(self, number: int, found: ChunkAt) -> None:
        """One piece is placed."""
        self.found[number] = found
        self.missing -= 1
        if not self.missing:
            self.done.set()

    def fail(self, error: AgentfsError) -> None:
        """One piece cannot be placed."""
        if not self.done.is_set():
            self.error = error
            self.done.set()

    async def wait_unread(self) -> None:
        """Return once no thread reads its pieces."""
        while self.readers:
            self.unread = trio.Event()
            await self.unread.wait()


class _Claim(NamedTuple):
    """One piece of an order, taken from the queue."""

    order: _Order
    number: int
    piece: Piece


class _Built(NamedTuple):
    """A segment, None where no piece could be read; how many claims were dealt with, the chunks, and the orders that failed."""

    segment: Segment | None
    taken: int
    chunks: list[tuple[_Claim, Chunk]]
    unreadable: list[tuple[_Order, AgentfsError]]


def _fill(claims: list[_Claim], epoch: Position) -> _Built:
    """Fill one segment with the first of the claims that fit. It runs in a thread."""
    builder = SegmentBuilder()
    if epoch:
        # A chunk that no file refers to: all that it does is make the name another one.
        builder.add(b"epoch %d" % epoch)
    chunks: list[tuple[_Claim, Chunk]] = []
    unreadable: list[tuple[_Order, AgentfsError]] = []
    taken = 0
    for claim in claims:
        if not builder.has_room(claim.piece.length):
            break
        taken += 1
        try:
            chunks.append((claim, builder.add(_read(claim.piece))))
        except AgentfsError as error:
            unreadable.append((claim.order, error))
    return _Built(builder.finish() if chunks else None, taken, chunks, unreadable)


def _read(piece: Piece) -> bytes:
    raw = piece.read()
    if len(raw) != piece.length:
        raise Corrupt(f"{len(raw)} bytes were read where {piece.length} were staged")
    return raw
