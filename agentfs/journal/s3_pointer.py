"""The pointer of a journal in S3: an object that is replaced only by one for the same position or a later one."""

from typing import Final

from agentfs.journal.s3_bucket import Bucket, Object, Patience
from agentfs.journal.s3_head import Head
from agentfs.model.errors import Unavailable
from agentfs.model.ids import Position
from agentfs.runtime import Runtime

KEY: Final = "pointer.json"


class Pointer:
    """The object and, as its note, the position that it is for. One that lost its note gives way to any other."""

    def __init__(self, bucket: Bucket, head: Head, runtime: Runtime) -> None:
        self._bucket = bucket
        self._head = head
        self._runtime = runtime

    async def get(self) -> bytes:
        """The pointer, b"" if there is none. Raises Denied, Unavailable."""
        found = await self._bucket.get(KEY)
        return b"" if found is None else found.body

    async def put(self, position: Position, text: bytes) -> None:
        """Replace it unless it is for a later position. Raises Denied, NoSpace, Unavailable."""
        # Not into a journal that was made where this one was removed: it says where to begin, whoever said so.
        await self._head.read()
        patience = Patience(self._runtime)
        while True:
            try:
                if await self._put_once(position, text):
                    return
            except Unavailable as error:
                self._bucket.refuse_when_closed()
                await patience.wait_after(error)

    async def _put_once(self, position: Position, text: bytes) -> bool:
        """Whether it is there, or a later one is; False if others were faster."""
        found = await self._bucket.get(KEY)
        if found is None:
            return await self._bucket.put_new(KEY, text, note=str(position))
        if _position(found) > position or (_position(found) == position and found.body == text):
            return True
        return await self._bucket.replace(KEY, text, found.etag, note=str(position))


def _position(found: Object) -> Position:
    return Position(int(found.note) if found.note.isdecimal() else 0)
