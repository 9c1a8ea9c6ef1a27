"""The entries of a journal in S3: their keys, their objects, and those of them that are kept in memory for a while."""

from collections import OrderedDict
from typing import Final, NamedTuple

import trio

from agentfs.journal.s3_bucket import PAGE, Bucket
from agentfs.model.errors import AgentfsError, Corrupt
from agentfs.model.ids import Position

PREFIX: Final = "entries/"

RECENT_BYTES: Final = 8 << 20
RECENT_ENTRIES: Final = 4096
"""How much of what was put or read last is kept, so that whoever asks next needs no request."""

_LAST: Final = (1 << 64) - 1


class Stored(NamedTuple):
    """A payload, and the token of the append that put it."""

    payload: bytes
    token: str


class Entries:
    """The entries in a bucket. An object under a position's key is never changed: it may be remembered.

    Keys sort backwards, so that the newest entry is the first that a listing shows: one request finds the tail, however
    many there are.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._recent = Recent()

    async def put(self, position: Position, entry: Stored) -> bool:
        """Put an entry at a free position; False if it is taken. After Unavailable it may be there or not."""
        done = await self._bucket.put_new(key_of(position), entry.payload, note=entry.token)
        if done:
            self._recent.add(position, entry)
        return done

    async def get(self, position: Position) -> Stored | None:
        """The entry at a position; None where none is."""
        entry = self._recent.get(position)
        if entry is None:
            found = await self._bucket.get(key_of(position))
            if found is None:
                return None
            entry = Stored(found.body, found.note)
            self._recent.add(position, entry)
        return entry

    async def get_several(self, first: Position, count: int) -> list[Stored | None]:
        """The entries at so many positions, asked for at the same time."""
        found: list[Stored | None] = [None] * count
        failures: list[AgentfsError] = []

        async def get(index: int) -> None:
            try:
                found[index] = await self.get(Position(first + index))
            except AgentfsError as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for index in range(count):
                nursery.start_soon(get, index)
        if failures:
            raise failures[0]
        return found

    async def newest(self) -> Position:
        """The newest entry's position, 0 without any."""
        listed = await self._bucket.listing(PREFIX, limit=1)
        return self._position_of(listed[0].key) if listed else Position(0)

    async def delete(self, position: Position) -> None:
        """Remove one entry."""
        await self._bucket.delete([key_of(position)])

    async def delete_before(self, position: Position) -> None:
        """Remove all entries in front of a position."""
        while listed := await self._bucket.listing(PREFIX, after=key_of(position), limit=PAGE):
            await self._bucket.delete([one.key for one in listed])

    def _position_of(self, key: str) -> Position:
        text = key.rpartition(".")[2]
        if not text.isdecimal() or key_of(Position(int(text))) != key:
            raise Corrupt(f"the journal {self._bucket.text} has an object that is no entry: {key}")
        return Position(int(text))


class Recent:
    """The entries that were added last, as many as RECENT_BYTES and RECENT_ENTRIES allow."""

    def __init__(self) -> None:
        self._entries: OrderedDict[Position, Stored] = OrderedDict()
        self._size = 0

    def add(self, position: Position, entry: Stored) -> None:
        if position in self._entries or len(entry.payload) > RECENT_BYTES:
            return
        self._entries[position] = entry
        self._size += len(entry.payload)
        while self._size > RECENT_BYTES or len(self._entries) > RECENT_ENTRIES:
            _, oldest = self._entries.popitem(last=False)
            self._size -= len(oldest.payload)

    def get(self, position: Position) -> Stored | None:
        return self._entries.get(position)


def key_of(position: Position) -> str:
    """Where an entry is: what is left to the highest number, so that the newest comes first; and the position, for people."""
    return f"{PREFIX}{_LAST - position:016x}.{position}"
