"""A journal in a bucket of an S3 server, and nothing else: an entry is an object that is put only if its key is free."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Final

import trio

from agentfs.journal import s3_head, s3_pointer
from agentfs.journal.contract import FIRST, Record, check_pointer
from agentfs.journal.news import News
from agentfs.journal.s3_appending import Appending
from agentfs.journal.s3_bucket import PAGE, Bucket, Requests
from agentfs.journal.s3_entries import Entries
from agentfs.journal.s3_head import Head, create_head
from agentfs.journal.s3_looking import Looking
from agentfs.journal.s3_pointer import Pointer
from agentfs.journal.s3_probe import check_conditional_puts
from agentfs.model.errors import Corrupt, Exists, Stale
from agentfs.model.ids import Position
from agentfs.runtime import Runtime
from agentfs.s3 import parse_s3_url

READS_MAX: Final = 8
"""How many entries are asked for at once: some threads stay free for appends and heartbeats."""

STEPS_MAX: Final = 3
"""How many new entries in a row are found one by one before the newest is asked for."""

_BEATS: Final = "beats/"


async def create_s3_journal(url: str, *, runtime: Runtime, first: Position = FIRST) -> None:
    """Make an empty journal in a place (`agentfs.s3.parse_s3_url`), whose first entry will be at `first`.

    Raises Exists, Invalid for a URL that will not do and for a server that does not honour conditional puts, Denied, NoSpace,
    Unavailable.
    """
    bucket = Bucket(parse_s3_url(url), runtime)
    try:
        if await bucket.get(s3_head.KEY) is not None:
            raise Exists(f"there is a journal in {bucket.text} already")
        if await Entries(bucket).newest() or await bucket.get(s3_pointer.KEY) is not None:
            raise Exists(
                f"there are remains of a journal in {bucket.text}: delete what is below its journal/, or name another place"
            )
        await check_conditional_puts(bucket, runtime)
        if not await create_head(bucket, runtime, first):
            raise Exists(f"there is a journal in {bucket.text} already")
    finally:
        bucket.close()


async def remove_s3_journal(url: str, *, runtime: Runtime) -> None:
    """Take the journal in a place away, with all that is in it. Raises Invalid, Denied, Unavailable."""
    bucket = Bucket(parse_s3_url(url), runtime)
    try:
        # Its head first: what is left if this breaks off is no journal that anybody could open.
        await bucket.delete([s3_head.KEY])
        while listed := await bucket.listing(""):
            await bucket.delete([one.key for one in listed])
    finally:
        bucket.close()


@asynccontextmanager
async def open_s3_journal(url: str, *, runtime: Runtime) -> "AsyncIterator[S3Journal]":
    """The journal in a place, closed on leaving.

    Raises NotFound where there is none, Invalid for a newer format and for a URL that will not do, Denied, Unavailable.
    """
    bucket = Bucket(parse_s3_url(url), runtime)
    try:
        head = Head(bucket, runtime)
        await head.open()
        # A journal that does not begin at 1 has a tail before it has entries.
        tail = max(await Entries(bucket).newest(), Position(head.before - 1))
        opened = S3Journal(bucket, head, tail, runtime)
    except BaseException:
        bucket.close()
        raise
    try:
        yield opened
    finally:
        await opened.aclose()


class S3Journal:
    """The contract of `Journal` on objects, one for each entry, in a bucket that others may use as well.

    To append is to put an object at the position behind the tail if there is none: the bucket lets one of several succeed.
    That position is asked for to find out whether there is news. What the server says of a position is believed once `Head`
    confirms that it was not trimmed away (docs/decisions/0021).
    """

    def __init__(self, bucket: Bucket, head: Head, tail: Position, runtime: Runtime) -> None:
        self._bucket = bucket
        self._head = head
        self._runtime = runtime
        self._entries = Entries(bucket)
        self._pointer = Pointer(bucket, head, runtime)
        self._news = News()
        self._news.learn(tail)
        self._looking = Looking(runtime)
        self._appending = Appending(bucket, self._entries, head, self._news, self._looking, runtime)

    @property
    def requests(self) -> Requests:
        """What was asked of the server so far."""
        return self._bucket.requests

    async def append(self, payload: bytes) -> Position:
        return await self._appending.append(payload)

    async def read(self, after: Position, *, limit_bytes: int = 4 << 20) -> list[Record]:
        self._bucket.refuse_when_closed()
        if after >= self._news.known:
            await self._look()
        records: list[Record] = []
        room, together = limit_bytes, 1
        while room >= 0 and (last := Position(after + len(records))) < self._news.known:
            for stored in await self._entries.get_several(Position(last + 1), min(together, self._news.known - last)):
                position = Position(after + len(records) + 1)
                if stored is None:
                    await self._explain_gap(position, after)
                elif records and len(stored.payload) > room:
                    room = -1
                else:
                    records.append(Record(position, stored.payload))
                    room -= len(stored.payload)
                if room < 0:
                    break
            # As many at once as are likely to fit.
            usual = max(1, (limit_bytes - room) // len(records))
            together = max(1, min(READS_MAX, room // usual))
        if records and await self._head.has_trimmed(records[0].position):
            raise _stale(self._head, after)
        return records

    async def tail(self) -> Position:
        await self._look()
        return self._news.known

    def tail_at_once(self) -> Position | None:
        # Only the server knows.
        return None

    async def wait(self, after: Position) -> None:
        await trio.lowlevel.checkpoint()
        self._bucket.refuse_when_closed()
        while self._news.known <= after:
            await self._news.wait(after, self._listen)
            self._bucket.refuse_when_closed()

    async def beat(self, session: int) -> None:
        # Nobody counts: what matters is that the object, and with it the ETag in a listing, is another one each time.
        await self._bucket.put(f"{_BEATS}{session}", self._runtime.random_bytes(16))

    async def beats(self) -> dict[int, int]:
        beats: dict[int, int] = {}
        last = ""
        while page := await self._bucket.listing(_BEATS, after=last):
            for key, etag in page:
                last = key
                session = key.removeprefix(_BEATS)
                if session.isdecimal():
                    beats[int(session)] = int.from_bytes(sha256(etag.encode()).digest()[:8])
            if len(page) < PAGE:
                break
        return beats

    async def forget_beat(self, session: int) -> None:
        await self._bucket.delete([f"{_BEATS}{session}"])

    async def trim(self, before: Position) -> None:
        """As in the contract. It takes GRACE_SECONDS and more, so that nobody takes a trimmed position for a free one."""
        self._bucket.refuse_when_closed()
        before = min(before, await self.tail())
        if before > 1:
            await self._head.announce(before)
            await self._runtime.sleep(s3_head.GRACE_SECONDS)
            await self._entries.delete_before(before)

    async def pointer(self) -> bytes:
        return await self._pointer.get()

    async def point(self, position: Position, text: bytes) -> None:
        check_pointer(text)
        await self._pointer.put(position, text)

    async def aclose(self) -> None:
        self._bucket.close()
        self._news.wake_all()

    # ---- looking

    async def _look(self) -> None:
        """Learn of everything whose append returned before this call."""
        self._bucket.refuse_when_closed()
        for _ in range(STEPS_MAX):
            asked = self._runtime.boottime()
            position = Position(self._news.known + 1)
            if await self._entries.get(position) is None:
                if await self._head.has_trimmed(position):
                    break
                self._looking.found_nothing(asked)
                return
            self._looking.heard()
            self._news.learn(position)
        self._news.learn(await self._entries.newest())

    async def _listen(self) -> None:
        """Look now and then, until cancelled."""
        while True:
            await self._runtime.sleep(self._looking.due_seconds())
            if not self._looking.due_seconds():
                await self._look()

    async def _explain_gap(self, position: Position, after: Position) -> None:
        """Raise Stale if the entry at a position in front of the tail is gone for a reason, Corrupt if it is missing."""
        await self._head.read()
        if await self._head.has_trimmed(position):
            raise _stale(self._head, after)
        raise Corrupt(f"the journal {self._bucket.text} lacks position {position}")


def _stale(head: Head, after: Position) -> Stale:
    return Stale(f"the journal was trimmed up to position {head.before - 1}, asked for what follows {after}")
