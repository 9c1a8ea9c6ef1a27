"""What the S3 journal keeps in its bucket, what it asks of the server for it, and what it makes of what others do."""

import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import astuple
from random import Random

import msgspec
import pytest
import trio
import trio.testing

from agentfs.journal.contract import Record
from agentfs.journal.s3 import S3Journal, create_s3_journal, open_s3_journal, remove_s3_journal
from agentfs.journal.s3_bucket import Requests
from agentfs.journal.s3_looking import Looking
from agentfs.model.errors import Corrupt, Denied, Exists, Invalid, NotFound
from agentfs.model.ids import Position
from agentfs.runtime import SystemRuntime
from tests.regions import MakeRegions, Region
from tests.simulation.runtime import VirtualRuntime

FIRST = Position(0)

BOUND_SECONDS = 120
"""After how long a test that hangs fails. Nothing is expected to take that long."""

HEAD = "workspace/journal/journal.json"


@pytest.fixture
def region(regions: MakeRegions) -> Region:
    [region] = regions(1)
    return region


@pytest.fixture
async def url(region: Region) -> AsyncIterator[str]:
    """A new journal."""
    with trio.fail_after(BOUND_SECONDS):
        url = region.url("workspace")
        await create_s3_journal(url, runtime=SystemRuntime())
        yield url


@pytest.fixture
async def journal(url: str) -> AsyncIterator[S3Journal]:
    async with opened(url) as journal:
        yield journal


@pytest.fixture
async def other(url: str, journal: S3Journal) -> AsyncIterator[S3Journal]:
    """The same journal as another session has it open."""
    async with opened(url) as other:
        yield other


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[S3Journal]:
    async with open_s3_journal(url, runtime=SystemRuntime()) as journal:
        yield journal


async def asked_for(journal: S3Journal, do: Callable[[], Awaitable[object]]) -> Requests:
    """What an operation asks of the server. Nothing else may be going on."""
    before = astuple(journal.requests)
    await do()
    return Requests(*(new - old for new, old in zip(astuple(journal.requests), before, strict=True)))


def keys(region: Region) -> list[str]:
    """Everything in the test's bucket."""
    return [one["Key"] for one in region.client.list_objects_v2(Bucket=region.bucket).get("Contents", [])]


# ---- making and opening


async def test_a_journal_is_made_once(region: Region, url: str) -> None:
    with pytest.raises(Exists, match=f"there is a journal in s3://{region.bucket}/workspace at {region.endpoint} already"):
        await create_s3_journal(url, runtime=SystemRuntime())


async def test_of_several_that_make_it_at_once_one_does(region: Region) -> None:
    made: list[str] = []

    async def make(name: str) -> None:
        try:
            await create_s3_journal(region.url(), runtime=SystemRuntime())
            made.append(name)
        except Exists:
            pass

    async with trio.open_nursery() as nursery:
        for name in ("one", "two", "three"):
            nursery.start_soon(make, name)
    assert len(made) == 1
    async with opened(region.url()) as journal:
        assert await journal.tail() == 0


async def test_making_leaves_nothing_but_the_head(region: Region, url: str) -> None:
    assert keys(region) == [HEAD]
    body = region.client.get_object(Bucket=region.bucket, Key=HEAD)["Body"].read()
    assert re.fullmatch(rb'\{"format":1,"id":"[0-9a-f]{32}","before":1\}', body)


async def test_there_is_no_journal(region: Region) -> None:
    with pytest.raises(NotFound, match=f"there is no journal in s3://{region.bucket}"):
        async with opened(region.url()):
            pass


async def test_a_newer_format_is_refused(region: Region, url: str) -> None:
    region.client.put_object(Bucket=region.bucket, Key=HEAD, Body=b'{"format":2,"id":"","before":1,"more":0}')
    with pytest.raises(Invalid, match="is in format 2, this program reads up to 1: upgrade agentfs"):
        async with opened(url):
            pass


async def test_a_damaged_head_is_corrupt(region: Region, url: str) -> None:
    region.client.put_object(Bucket=region.bucket, Key=HEAD, Body=b'{"format":')
    with pytest.raises(Corrupt, match=r"journal\.json is not readable"):
        async with opened(url):
            pass


async def test_a_bucket_that_is_not_there(region: Region) -> None:
    url = region.url().replace(region.bucket, "no-such-bucket")
    with pytest.raises(Denied, match="there is no such bucket"):
        await create_s3_journal(url, runtime=SystemRuntime())
    with pytest.raises(Denied, match="there is no such bucket"):
        async with opened(url):
            pass


@pytest.mark.parametrize("action", ["ListBucket", "PutObject", "GetObject", "DeleteObject"])
async def test_a_user_who_may_not_do_all_is_told_so_at_once(region: Region, action: str) -> None:
    where = [f"arn:aws:s3:::{region.bucket}", f"arn:aws:s3:::{region.bucket}/*"]
    refused = {"Effect": "Deny", "Principal": "*", "Action": f"s3:{action}", "Resource": where}
    policy = msgspec.json.encode({"Version": "2012-10-17", "Statement": [refused]}).decode()
    region.client.put_bucket_policy(Bucket=region.bucket, Policy=policy)
    with pytest.raises(Denied, match="access denied"):
        await create_s3_journal(region.url(), runtime=SystemRuntime())
    region.client.delete_bucket_policy(Bucket=region.bucket)
    assert not [key for key in keys(region) if key.endswith("journal.json")]


async def test_journals_and_other_things_share_a_bucket(region: Region, journal: S3Journal) -> None:
    for key in ("workspace/journal", "workspace/segments/ab/abcd.seg", "workspace2/journal/entries/0.0", "x"):
        region.client.put_object(Bucket=region.bucket, Key=key, Body=b"not of this journal")
    await create_s3_journal(region.url(), runtime=SystemRuntime())
    async with opened(region.url()) as outer:
        assert [await journal.append(b"a"), await outer.append(b"b"), await outer.append(b"c")] == [1, 1, 2]
        await outer.beat(1)
        assert await journal.read(FIRST) == [(1, b"a")]
        assert await journal.beats() == {}


async def test_an_entry_is_an_object_that_holds_its_payload(region: Region, journal: S3Journal) -> None:
    for n in range(10):
        await journal.append(b"%d" % n)
    entries = [key for key in keys(region) if "/entries/" in key]
    assert [key.rpartition(".")[2] for key in entries] == [str(position) for position in range(10, 0, -1)]
    assert entries[-1] == "workspace/journal/entries/fffffffffffffffe.1"
    assert region.client.get_object(Bucket=region.bucket, Key=entries[0])["Body"].read() == b"9"


async def test_an_object_that_is_no_entry_is_corrupt(region: Region, url: str) -> None:
    region.client.put_object(Bucket=region.bucket, Key="workspace/journal/entries/0.1", Body=b"")
    with pytest.raises(Corrupt, match=r"an object that is no entry: entries/0\.1"):
        async with opened(url):
            pass


async def test_an_entry_that_vanished_is_corrupt(region: Region, url: str, journal: S3Journal) -> None:
    for n in range(3):
        await journal.append(b"%d" % n)
    region.client.delete_object(Bucket=region.bucket, Key="workspace/journal/entries/fffffffffffffffd.2")
    async with opened(url) as other:
        with pytest.raises(Corrupt, match="lacks position 2"):
            await other.read(FIRST)
        assert await other.read(Position(2)) == [(3, b"2")]


async def test_a_journal_that_was_removed_is_noticed(
    region: Region, journal: S3Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentfs.journal.s3_head.TRUST_SECONDS", 0.0)
    await journal.append(b"a")
    for key in keys(region):
        region.client.delete_object(Bucket=region.bucket, Key=key)
    for use in (journal.tail, lambda: journal.wait(Position(1)), lambda: journal.append(b"b")):
        with pytest.raises(Denied, match="was removed"):
            await use()


async def test_another_journal_in_the_same_place_is_noticed(
    region: Region, url: str, journal: S3Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentfs.journal.s3_head.TRUST_SECONDS", 0.0)
    for key in keys(region):
        region.client.delete_object(Bucket=region.bucket, Key=key)
    await create_s3_journal(url, runtime=SystemRuntime())
    for use in (journal.tail, lambda: journal.append(b"b")):
        with pytest.raises(Denied, match="was removed, and another one was made there"):
            await use()


async def test_a_pointer_is_an_object_that_holds_its_text(region: Region, journal: S3Journal) -> None:
    await journal.point(Position(3), b'{"position": 3}')
    assert [key for key in keys(region) if "pointer" in key] == ["workspace/journal/pointer.json"]
    assert (
        region.client.get_object(Bucket=region.bucket, Key="workspace/journal/pointer.json")["Body"].read()
        == b'{"position": 3}'
    )


async def test_a_pointer_that_lost_its_position_gives_way(region: Region, journal: S3Journal) -> None:
    """As one does that a tool copied which keeps no metadata."""
    region.client.put_object(Bucket=region.bucket, Key="workspace/journal/pointer.json", Body=b"copied")
    assert await journal.pointer() == b"copied"
    await journal.point(Position(1), b"new")
    assert await journal.pointer() == b"new"


async def test_no_pointer_is_left_in_a_journal_that_took_the_place_of_this_one(
    region: Region, url: str, journal: S3Journal
) -> None:
    await remove_s3_journal(url, runtime=SystemRuntime())
    await create_s3_journal(url, runtime=SystemRuntime())
    with pytest.raises(Denied, match="another one was made there"):
        await journal.point(Position(9), b"of the old one")
    async with opened(url) as new:
        assert await new.pointer() == b""


async def test_a_journal_that_is_removed_leaves_nothing(region: Region, url: str, journal: S3Journal) -> None:
    region.client.put_object(Bucket=region.bucket, Key="workspace/segments/one", Body=b"not the journal's")
    await journal.append(b"a")
    await journal.beat(1)
    await journal.point(Position(1), b"note")
    await remove_s3_journal(url, runtime=SystemRuntime())
    assert keys(region) == ["workspace/segments/one"]


async def test_remains_of_a_journal_are_not_taken_for_a_free_place(region: Region, url: str, journal: S3Journal) -> None:
    await journal.point(Position(9), b"note")
    region.client.delete_object(Bucket=region.bucket, Key="workspace/journal/journal.json")
    with pytest.raises(Exists, match="remains of a journal"):
        await create_s3_journal(url, runtime=SystemRuntime())


# ---- what is asked of the server


async def test_what_operations_ask_of_the_server(journal: S3Journal, other: S3Journal) -> None:
    assert await asked_for(journal, lambda: journal.append(b"a")) == Requests(put=1)
    assert await asked_for(journal, lambda: journal.read(FIRST)) == Requests()
    assert await asked_for(journal, journal.tail) == Requests(get=1)
    # The first look finds the entry, the second that there is no other; what was found is there to be read.
    assert await asked_for(other, other.tail) == Requests(get=2)
    assert await asked_for(other, lambda: other.read(FIRST)) == Requests()
    assert await asked_for(journal, lambda: journal.beat(1)) == Requests(put=1)
    assert await asked_for(journal, journal.beats) == Requests(list=1)
    assert await asked_for(journal, lambda: journal.forget_beat(1)) == Requests(delete=1)


async def test_who_comes_late_finds_the_tail_in_few_requests(url: str, journal: S3Journal, other: S3Journal) -> None:
    for n in range(100):
        await journal.append(b"%d" % n)
    assert await asked_for(other, other.tail) == Requests(get=3, list=1)
    async with opened(url) as anew:
        assert anew.requests == Requests(get=1, list=1)
        assert await anew.tail() == 100
        assert await asked_for(anew, lambda: anew.read(FIRST)) == Requests(get=100)


async def test_who_appends_late_finds_its_place_in_few_requests(journal: S3Journal, other: S3Journal) -> None:
    for n in range(50):
        await journal.append(b"%d" % n)
    assert await asked_for(other, lambda: other.append(b"late")) == Requests(put=5, list=1)
    assert await journal.tail() == 51


async def test_a_read_asks_for_little_more_than_fits(url: str, journal: S3Journal) -> None:
    for _ in range(20):
        await journal.append(bytes(1000))
    async with opened(url) as other:
        before = other.requests.get
        assert len(await other.read(FIRST, limit_bytes=1)) == 1
        assert other.requests.get == before + 1
        assert len(await other.read(FIRST, limit_bytes=4500)) == 4
        assert other.requests.get <= before + 5


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch, journal: S3Journal) -> None:
    monkeypatch.setattr("agentfs.journal.s3_entries.RECENT_BYTES", 2500)
    for n in range(5):
        await journal.append(b"%d" % n * 1000)
    assert await asked_for(journal, lambda: journal.read(Position(3))) == Requests()
    assert (await asked_for(journal, lambda: journal.read(FIRST))).get >= 3


async def test_beats_of_more_sessions_than_a_page_holds(region: Region, journal: S3Journal) -> None:
    def put(sessions: range) -> None:
        for session in sessions:
            region.client.put_object(Bucket=region.bucket, Key=f"workspace/journal/beats/{session}", Body=b"x")

    async with trio.open_nursery() as nursery:
        for first in range(1, 1002, 143):
            nursery.start_soon(trio.to_thread.run_sync, put, range(first, first + 143))
    before = await journal.beats()
    assert before.keys() == set(range(1, 1002))
    await journal.beat(1000)
    assert {session for session, beat in (await journal.beats()).items() if beat != before[session]} == {1000}


# ---- waiting


async def test_looks_become_rare_when_nothing_happens(autojump_clock: trio.testing.MockClock) -> None:
    looking = Looking(VirtualRuntime(Random(1)))

    async def looks_in(seconds: float) -> int:
        looks = 0
        with trio.move_on_after(seconds):
            while True:
                await trio.sleep(looking.due_seconds())
                looks += 1
                looking.found_nothing(trio.current_time())
        return looks

    assert 12 <= await looks_in(1) <= 28
    assert 15 <= await looks_in(10) <= 40
    await looks_in(20)
    assert 25 <= await looks_in(60) <= 40
    looking.sent()
    assert 2 <= await looks_in(1) <= 6
    await looks_in(60)
    looking.heard()
    assert looking.due_seconds() == 0
    assert 12 <= await looks_in(1) <= 28


async def test_a_look_for_an_open_is_one_for_those_who_wait(autojump_clock: trio.testing.MockClock) -> None:
    looking = Looking(VirtualRuntime(Random(1)))
    await trio.sleep(60)
    looking.found_nothing(trio.current_time())
    assert looking.due_seconds() > 1


async def test_who_waits_is_woken_by_its_own_process_without_a_look(journal: S3Journal) -> None:
    async def wait() -> None:
        async with trio.open_nursery() as nursery:
            for after in (0, 0, 1):
                nursery.start_soon(journal.wait, Position(after))
            # Longer than to the first look.
            while journal.requests.get == 1:
                await trio.sleep(0.01)
            await journal.append(b"a")
            await journal.append(b"b")

    asked = await asked_for(journal, wait)
    assert asked.put == 2
    assert asked.get < 10


# ---- several processes

APPENDER = """
import sys, trio
from agentfs.journal.s3 import open_s3_journal
from agentfs.runtime import SystemRuntime

async def main(url, name, count):
    async with open_s3_journal(url, runtime=SystemRuntime()) as journal:
        for n in range(int(count)):
            print(await journal.append(f"{name} {n}".encode()), flush=True)

trio.run(main, *sys.argv[1:])
"""


async def test_processes_append_together(url: str, journal: S3Journal) -> None:
    count, names = 15, "abcd"
    printed: dict[str, list[int]] = {}

    async def run(name: str) -> None:
        command = [sys.executable, "-c", APPENDER, url, name, str(count)]
        printed[name] = [int(line) for line in (await trio.run_process(command, capture_stdout=True)).stdout.split()]

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(run, name)
        # Who follows sees all of them, in the order of their positions and without a gap.
        followed: list[Record] = []
        while len(followed) < count * len(names):
            await journal.wait(Position(len(followed)))
            followed += await journal.read(Position(len(followed)))
    assert [record.position for record in followed] == list(range(1, count * len(names) + 1))
    for name, positions in printed.items():
        assert [followed[position - 1].payload for position in positions] == [f"{name} {n}".encode() for n in range(count)]
