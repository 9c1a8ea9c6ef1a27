"""Trimming a journal in S3 frees keys; nobody takes one of them for the journal's end, however long it was asleep."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio

from agentfs.journal import s3_head
from agentfs.journal.s3 import S3Journal, create_s3_journal, open_s3_journal
from agentfs.journal.s3_entries import key_of
from agentfs.model.errors import Stale
from agentfs.model.ids import Position
from agentfs.runtime import SystemRuntime
from tests.regions import MakeRegions, Region

FIRST = Position(0)

BOUND_SECONDS = 60
"""After how long a test that hangs fails. Nothing is expected to take that long."""


class Host(SystemRuntime):
    """The real runtime of a host that a test suspends: the time counts on its own clock. It can be held where it sleeps."""

    def __init__(self) -> None:
        super().__init__()
        self.suspended_seconds = 0.0
        self.slept: list[float] = []
        self.may_sleep_on = trio.Event()

    def boottime(self) -> float:
        return super().boottime() + self.suspended_seconds

    async def sleep(self, seconds: float) -> None:
        if seconds > 10:
            self.slept.append(seconds)
            await self.may_sleep_on.wait()
        else:
            await super().sleep(seconds)


@pytest.fixture
def region(regions: MakeRegions) -> Region:
    [region] = regions(1)
    return region


@pytest.fixture
async def url(region: Region) -> AsyncIterator[str]:
    """A journal of ten entries."""
    with trio.fail_after(BOUND_SECONDS):
        url = region.url()
        await create_s3_journal(url, runtime=SystemRuntime())
        async with opened(url) as journal:
            for n in range(1, 11):
                await journal.append(b"%d" % n)
        yield url


@asynccontextmanager
async def opened(url: str, host: SystemRuntime | None = None) -> AsyncIterator[S3Journal]:
    async with open_s3_journal(url, runtime=host or SystemRuntime()) as journal:
        yield journal


async def trim(url: str, before: int) -> None:
    """Trim at once, as if everybody had slept for the time that a trim leaves them."""
    host = Host()
    host.may_sleep_on.set()
    async with opened(url, host) as journal:
        await journal.trim(Position(before))


async def grow(url: str, until: int) -> None:
    """Let others append up to a position."""
    async with opened(url) as journal:
        while await journal.append(b"grown") < until:
            pass


def positions(region: Region) -> list[int]:
    """The positions that have an object."""
    listed = region.client.list_objects_v2(Bucket=region.bucket, Prefix="journal/entries/").get("Contents", [])
    return sorted(int(one["Key"].rpartition(".")[2]) for one in listed)


def put(region: Region, position: int, body: bytes) -> None:
    region.client.put_object(Bucket=region.bucket, Key=f"journal/{key_of(Position(position))}", Body=body)


async def test_nothing_is_deleted_before_nobody_trusts_what_it_read(region: Region, url: str) -> None:
    host = Host()
    async with opened(url, host) as journal, trio.open_nursery() as nursery:
        nursery.start_soon(journal.trim, Position(8))
        while not host.slept:
            await trio.sleep(0.01)
        assert host.slept[0] > s3_head.TRUST_SECONDS * 1.1
        head = region.client.get_object(Bucket=region.bucket, Key="journal/journal.json")["Body"].read()
        assert msgspec.json.decode(head)["before"] == 8
        assert positions(region) == list(range(1, 11))
        host.may_sleep_on.set()
    assert positions(region) == [8, 9, 10]


async def test_who_slept_through_a_trim_does_not_append_into_the_hole(region: Region, url: str) -> None:
    host = Host()
    async with opened(url, host) as sleeper:
        await grow(url, 20)
        await trim(url, 18)
        host.suspended_seconds = s3_head.GRACE_SECONDS
        # The key of position 11 is free.
        assert await sleeper.append(b"late") == 21
        assert positions(region) == [18, 19, 20, 21]
        with pytest.raises(Stale, match="trimmed up to position 17, asked for what follows 10"):
            await sleeper.read(Position(10))
        assert await sleeper.read(Position(20)) == [(21, b"late")]


async def test_who_slept_through_a_trim_does_not_take_the_hole_for_the_tail(url: str) -> None:
    host = Host()
    async with opened(url, host) as sleeper:
        await grow(url, 20)
        await trim(url, 18)
        host.suspended_seconds = s3_head.GRACE_SECONDS
        assert await sleeper.tail() == 20
    async with opened(url, host) as sleeper:
        await grow(url, 30)
        await trim(url, 28)
        host.suspended_seconds *= 2
        with pytest.raises(Stale):
            await sleeper.read(Position(20))


async def test_who_waits_is_woken_although_the_next_entry_was_trimmed(url: str) -> None:
    host = Host()
    async with opened(url, host) as sleeper, trio.open_nursery() as nursery:
        await grow(url, 20)
        await trim(url, 18)
        host.suspended_seconds = s3_head.GRACE_SECONDS
        nursery.start_soon(sleeper.wait, Position(10))
        nursery.start_soon(sleeper.wait, Position(19))


async def test_what_was_read_ahead_is_not_served_once_it_is_trimmed(url: str) -> None:
    host = Host()
    async with opened(url, host) as sleeper:
        assert len(await sleeper.read(FIRST)) == 10
        await trim(url, 5)
        host.suspended_seconds = s3_head.GRACE_SECONDS
        with pytest.raises(Stale):
            await sleeper.read(FIRST)
        assert [record.position for record in await sleeper.read(Position(4))] == [5, 6, 7, 8, 9, 10]


async def test_what_somebody_left_in_the_hole_is_no_entry(region: Region, url: str) -> None:
    """An append of a host that was suspended in the middle of its request, and was not there any more to take it back."""
    host = Host()
    async with opened(url, host) as sleeper:
        await grow(url, 20)
        await trim(url, 18)
        for position in (11, 12):
            put(region, position, b"void")
        host.suspended_seconds = s3_head.GRACE_SECONDS
        with pytest.raises(Stale):
            await sleeper.read(Position(10))
        assert await sleeper.tail() == 20
    async with opened(url, host) as sleeper:
        assert await sleeper.append(b"late") == 21
    await trim(url, 19)
    assert positions(region) == [19, 20, 21]


async def test_a_trim_that_was_interrupted_is_done_by_the_next(region: Region, url: str) -> None:
    host = Host()
    async with opened(url, host) as journal, trio.open_nursery() as nursery:
        nursery.start_soon(journal.trim, Position(5))
        while not host.slept:
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert positions(region) == list(range(1, 11))
    await trim(url, 7)
    assert positions(region) == [7, 8, 9, 10]


async def test_a_trim_interrupted_in_its_deletions_leaves_no_journal_that_ends_early(region: Region, url: str) -> None:
    await trim(url, 8)
    for position in (1, 2, 3):
        put(region, position, b"%d" % position)
    async with opened(url) as journal:
        for after in range(7):
            with pytest.raises(Stale):
                await journal.read(Position(after))
        assert len(await journal.read(Position(7))) == 3


async def test_several_trim_at_once(region: Region, url: str) -> None:
    async with trio.open_nursery() as nursery:
        for before in (3, 9, 6, 8):
            nursery.start_soon(trim, url, before)
    assert positions(region) == [9, 10]
    async with opened(url) as journal:
        with pytest.raises(Stale, match="up to position 8"):
            await journal.read(FIRST)
