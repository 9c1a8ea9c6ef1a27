"""The head of a journal in S3: the object that states its format, and how far it was trimmed."""

from typing import Final

import msgspec

from agentfs.journal.s3_bucket import Bucket, Object, Patience
from agentfs.model.errors import Corrupt, Denied, Invalid, NotFound, Unavailable
from agentfs.model.ids import Position
from agentfs.runtime import Runtime

KEY: Final = "journal.json"

FORMAT: Final = 1
"""The newest format that this program reads and the one it writes."""

TRUST_SECONDS: Final = 60.0
"""How long what the head said of trimming is relied upon."""

GRACE_SECONDS: Final = 70.0
"""How long a trim waits between its announcement and the first deletion: more than others trust what they read before it, by
clocks that may run a little differently."""


class HeadRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The object's JSON.

    `id`: the journal's own. `before`: the entries in front of this position are forgotten, or about to be.
    """

    format: int
    id: str
    before: int


class Head:
    """What is known of the head.

    A trimmed entry's key is free again, and a put at it would succeed: whoever slept through a trim must not take the free key
    for the journal's end. So a trim is announced here, and deletes nothing before everybody has either seen the
    announcement or lost trust in what it read before. Whoever relies on a key, as a free one, as one just put, or as one just
    read, asks `has_trimmed` *behind* it. No clocks are compared for this, and it does not matter who is frozen for how long.
    """

    def __init__(self, bucket: Bucket, runtime: Runtime) -> None:
        self._bucket = bucket
        self._runtime = runtime
        # The entries in front of this position are forgotten, or about to be.
        self.before = Position(1)
        self._asked = 0.0
        self._id = ""

    async def open(self) -> None:
        """Read it for the first time. Raises NotFound, Invalid for a newer format, Denied, Unavailable."""
        found = await self._ask()
        if found is None:
            raise NotFound(f"there is no journal in {self._bucket.text}")
        record = self._decode(found)
        if record.format > FORMAT:
            raise Invalid(
                f"the journal {self._bucket.text} is in format {record.format}, this program reads up to {FORMAT}: "
                "upgrade agentfs"
            )

    async def has_trimmed(self, position: Position) -> bool:
        """Whether the entry at `position` may have been deleted before this call. Raises Denied, Unavailable."""
        if position >= self.before and self._runtime.boottime() - self._asked >= TRUST_SECONDS:
            await self.read()
        return position < self.before

    async def read(self) -> Object:
        """Ask for it anew. Raises Denied, Unavailable."""
        found = await self._ask()
        if found is None:
            raise Denied(f"the journal in {self._bucket.text} was removed")
        return found

    async def announce(self, before: Position) -> None:
        """Say that what is in front of `before` will be deleted."""
        patience = Patience(self._runtime)
        while True:
            found = await self.read()
            record = self._decode(found)
            if record.before >= before:
                return
            changed = msgspec.json.encode(msgspec.structs.replace(record, before=before))
            try:
                if await self._bucket.replace(KEY, changed, found.etag):
                    return
            except Unavailable as error:
                await patience.wait_after(error)

    async def _ask(self) -> Object | None:
        asked = self._runtime.boottime()
        found = await self._bucket.get(KEY)
        if found is not None:
            record = self._decode(found)
            if record.id != self._id and self._id:
                raise Denied(f"the journal in {self._bucket.text} was removed, and another one was made there")
            self._id = record.id
            self.before = max(self.before, Position(record.before))
            self._asked = asked
        return found

    def _decode(self, found: Object) -> HeadRecord:
        try:
            return msgspec.json.decode(found.body, type=HeadRecord)
        except msgspec.DecodeError as error:
            raise Corrupt(f"the journal {self._bucket.text}: its {KEY} is not readable: {error}") from error


async def create_head(bucket: Bucket, runtime: Runtime, first: Position) -> bool:
    """Put the head of an empty journal, whose first entry will be at `first`; False if there is one."""
    record = HeadRecord(format=FORMAT, id=runtime.random_bytes(16).hex(), before=first)
    return await bucket.put_new(KEY, msgspec.json.encode(record))
