"""How an entry comes into a journal in S3: put at the position behind the tail, or behind whoever was first there."""

from dataclasses import dataclass
from typing import Final

import trio

from agentfs.journal.news import News
from agentfs.journal.s3_bucket import Bucket, Patience
from agentfs.journal.s3_entries import Entries, Stored
from agentfs.journal.s3_head import Head
from agentfs.journal.s3_looking import Looking
from agentfs.model.errors import Unavailable
from agentfs.model.ids import Position
from agentfs.runtime import Runtime

STRIDE: Final = 4
"""After how many positions in a row that others were first at the newest one is asked for."""

MET_SECONDS: Final = 1.0
"""How long others that were met are expected to go on appending."""

YIELD_SHARE: Final = 2.0
"""The longest time for which others are let go first, as a multiple of what a put takes."""


@dataclass(slots=True)
class Attempt:
    """An append that is not known to have succeeded.

    `position`: the only one at which it may have landed, or still may; None if there is none.
    """

    stored: Stored
    position: Position | None = None


class Appending:
    """The appends of one process, one after the other."""

    def __init__(self, bucket: Bucket, entries: Entries, head: Head, news: News, looking: Looking, runtime: Runtime) -> None:
        self._bucket = bucket
        self._entries = entries
        self._head = head
        self._news = news
        self._looking = looking
        self._runtime = runtime
        self._turn = trio.Lock()
        self._attempt: Attempt | None = None
        self._courtesy = Courtesy(runtime)

    async def append(self, payload: bytes) -> Position:
        """As in the contract. The same payload again after an error is the same entry, and lands once."""
        async with self._turn:
            attempt = self._attempt
            if attempt is None or attempt.stored.payload != payload:
                attempt = Attempt(Stored(bytes(payload), self._runtime.random_bytes(16).hex()))
            self._attempt = attempt
            position = await self._place(attempt)
            self._attempt = None
            self._looking.sent()
            self._news.learn(position)
            return position

    async def _place(self, attempt: Attempt) -> Position:
        patience, lost = Patience(self._runtime), 0
        await self._runtime.sleep(self._courtesy.pause_seconds())
        while True:
            try:
                position = await self._try(attempt)
            except Unavailable as error:
                self._bucket.refuse_when_closed()
                await patience.wait_after(error)
                continue
            if position is not None:
                self._courtesy.landed()
                return position
            # Who lost tries the next position without finding out whether it is free: otherwise those who win would always
            # be a request ahead.
            lost += 1
            if lost % STRIDE == 0:
                self._news.learn(await self._entries.newest())

    async def _try(self, attempt: Attempt) -> Position | None:
        """Put an entry at the next position; None if another one is there, which is known then."""
        unsure = attempt.position is not None
        position = attempt.position = attempt.position or Position(self._news.known + 1)
        # Where it may have landed, and others have come behind, a look is enough.
        done = (not unsure or position > self._news.known) and await self._put(position, attempt.stored)
        if not done and unsure:
            there = await self._entries.get(position)
            done = there is not None and there.token == attempt.stored.token
        trimmed = await self._head.has_trimmed(position)
        if done and not trimmed:
            return position
        if done:
            # Its key was free because the entry that was there is trimmed away: nobody who reads the journal finds it there.
            await self._entries.delete(position)
        attempt.position = None
        if trimmed:
            self._news.learn(await self._entries.newest())
        else:
            self._looking.heard()
            self._courtesy.met_others()
            self._news.learn(position)
        return None

    async def _put(self, position: Position, stored: Stored) -> bool:
        began = self._runtime.boottime()
        done = await self._entries.put(position, stored)
        self._courtesy.took(self._runtime.boottime() - began)
        return done


class Courtesy:
    """Lets others go first now and then: whoever has just appended knows the next position and would win it again and again."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._put_seconds = 0.0
        self._met = self._landed = -MET_SECONDS

    def took(self, seconds: float) -> None:
        """A put took so long."""
        self._put_seconds += (seconds - self._put_seconds) / 4

    def met_others(self) -> None:
        """Others were first at a position."""
        self._met = self._runtime.boottime()

    def landed(self) -> None:
        """An append succeeded."""
        self._landed = self._runtime.boottime()

    def pause_seconds(self) -> float:
        """How long to wait before the next append: not at all, unless others append too and this one follows upon the last."""
        now = self._runtime.boottime()
        if now - self._met >= MET_SECONDS or now - self._landed >= self._put_seconds:
            return 0.0
        return YIELD_SHARE * self._put_seconds * self._runtime.jitter()
