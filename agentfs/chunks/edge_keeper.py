"""What is written to an edge cache's disk behind those who read: a bounded queue, and the looks that hold the bound."""

import errno
import os
from typing import Final

import structlog
import trio

from agentfs.chunks.edge_bound import cost, is_short_of_room, look
from agentfs.chunks.edge_files import EdgeFiles, Piece
from agentfs.model.extents import SEGMENT_MAX
from agentfs.runtime import Runtime

QUEUE_BYTES: Final = 64 << 20
"""Bytes that may wait to be written; what comes beyond is not kept, so that a slow disk holds nobody up."""

QUEUE_MAX: Final = 1024
"""Pieces that may wait to be written."""

LOOK_PARTS: Final = 64
"""A process looks at the directory again when it added this part of the bound."""

LOOK_FILES: Final = 2048
"""A process looks at the directory again when it added so many files."""

PAUSE_SECONDS: Final = 60.0
"""How long nothing is kept after the disk refused."""

WATCH_SECONDS: Final = 10.0
"""How often an idle cache looks whether others need the room on its disk."""

_log = structlog.get_logger()


class Keeper:
    """Keeps pieces in `files`. Whatever the disk answers, it goes on; `trouble` says what is wrong, "" if nothing is."""

    def __init__(self, files: EdgeFiles, *, max_bytes: int, runtime: Runtime) -> None:
        self.trouble = ""
        self._files = files
        self._max_bytes = max_bytes
        self._runtime = runtime
        self._queue: dict[Piece, bytes] = {}
        self._queued_bytes = 0
        self._arrived = trio.Event()
        self._settled = trio.Event()
        self._disk = trio.Lock()
        self._paused_until = 0.0
        self._used_bytes = 0
        self._added_bytes = 0
        self._added_files = 0

    @property
    def used_bytes(self) -> int:
        """Bytes of the bound that are used, as of the last look, and what this process added since."""
        return self._used_bytes + self._added_bytes

    def keep(self, piece: Piece, body: bytes) -> None:
        """Write a piece soon; or not at all, if too much is waiting or the disk refuses."""
        full = len(self._queue) >= QUEUE_MAX or self._queued_bytes + len(body) > QUEUE_BYTES
        if full or not 0 < len(body) <= SEGMENT_MAX or piece in self._queue or self._runtime.boottime() < self._paused_until:
            return
        if self._settled.is_set():
            self._settled = trio.Event()
        self._queue[piece] = body
        self._queued_bytes += len(body)
        self._arrived.set()

    async def settle(self) -> None:
        """Returns once nothing waits to be written."""
        if self._queue:
            await self._settled.wait()

    async def forget(self, name: bytes) -> None:
        """Drop every piece of a segment, written or waiting."""
        for piece in [piece for piece in self._queue if piece.name == name]:
            self._take(piece)
        async with self._disk:
            await self._runtime.in_thread(self._files.forget, name)

    async def run(self) -> None:
        """Write what waits, for ever."""
        await self._look(0)
        while True:
            while self._queue:
                await self._keep_first()
            self._settled.set()
            self._arrived = trio.Event()
            with trio.move_on_after(WATCH_SECONDS) as idle:
                await self._arrived.wait()
            if idle.cancelled_caught:
                await self._watch()

    def _take(self, piece: Piece) -> bytes:
        body = self._queue.pop(piece)
        self._queued_bytes -= len(body)
        return body

    async def _keep_first(self) -> None:
        """Write the piece that waits longest. It stays in the queue meanwhile: it still takes memory, and is not settled."""
        piece, body = next(iter(self._queue.items()))
        async with self._disk:
            # It may have been forgotten before the disk was free.
            if piece in self._queue:
                await self._keep(piece, body)
        if piece in self._queue:
            self._take(piece)

    async def _keep(self, piece: Piece, body: bytes) -> None:
        """Write a piece; where the bound or the disk has no room for it, what was used least recently makes way first."""
        due = self._added_bytes + len(body) > self._max_bytes // LOOK_PARTS or self._added_files > LOOK_FILES
        if due and not await self._look(len(body)):
            return
        try:
            if not await self._write(piece, body) and await self._look(len(body)) and not await self._write(piece, body):
                self._pause(os.strerror(errno.ENOSPC))
        except FileNotFoundError:
            # Somebody removes the directory at this moment.
            return
        except OSError as error:
            self._pause(error.strerror or str(error))

    async def _write(self, piece: Piece, body: bytes) -> bool:
        """Whether there was room for it. Raises OSError for whatever else the disk refuses."""
        token = self._runtime.random_bytes(8).hex()
        try:
            size = await self._runtime.in_thread(self._write_in_room, piece, body, token)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            return False
        if size:
            self._added_bytes += cost(size)
            self._added_files += 1
        if self.trouble:
            _log.info("cache_keeps_again", directory=str(self._files.directory))
            self.trouble = ""
        return True

    def _write_in_room(self, piece: Piece, body: bytes, token: str) -> int:
        if is_short_of_room(self._files.directory, len(body)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._files.write(piece, body, token)

    async def _watch(self) -> None:
        try:
            short = await self._runtime.in_thread(is_short_of_room, self._files.directory, 0)
        except OSError as error:
            self._pause(error.strerror or str(error))
            return
        if short:
            await self._look(0)

    async def _look(self, wanted_bytes: int) -> bool:
        """Look at the directory, and evict; whether so many bytes more may be written now.

        While another process is looking they may: it frees more than a few processes can add.
        """
        try:
            looked = await self._runtime.in_thread(look, self._files, self._max_bytes, wanted_bytes, self._runtime.now_ns())
        except OSError as error:
            self._pause(error.strerror or str(error))
            return False
        if looked is None:
            return True
        self._used_bytes, self._added_bytes, self._added_files = looked.used_bytes, 0, 0
        if not looked.room:
            self._pause(os.strerror(errno.ENOSPC))
        return looked.room

    def _pause(self, reason: str) -> None:
        """Keep nothing for a while. It is logged once for as long as the reason stays the same."""
        self._paused_until = self._runtime.boottime() + PAUSE_SECONDS
        for piece in list(self._queue):
            self._take(piece)
        if reason != self.trouble:
            _log.warning("cache_keeps_nothing", directory=str(self._files.directory), reason=reason)
        self.trouble = reason
