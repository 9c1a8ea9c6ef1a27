"""What the S3 journal makes of lost answers, of servers that are silent, killed or refuse, and of callers that leave."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio
import trio.testing

from agentfs.journal.contract import Record
from agentfs.journal.s3 import S3Journal, create_s3_journal, open_s3_journal
from agentfs.journal.s3_bucket import Bucket
from agentfs.model.errors import AgentfsError, Denied, NoSpace, Unavailable
from agentfs.model.ids import Position
from agentfs.runtime import SystemRuntime
from agentfs.s3 import parse_s3_url
from tests.postgres_wire import Wire, wire_to
from tests.regions import MakeRegions, Region
from tests.unit.s3_stand_in import Answer, StandIn, open_stand_in, refusal

FIRST = Position(0)

BOUND_SECONDS = 120
"""After how long a test that hangs fails. Nothing is expected to take that long."""


@pytest.fixture(autouse=True)
async def bound() -> AsyncIterator[None]:
    with trio.fail_after(BOUND_SECONDS):
        yield


@pytest.fixture
def region(regions: MakeRegions) -> Region:
    [region] = regions(1)
    return region


@pytest.fixture
async def url(region: Region) -> str:
    await create_s3_journal(region.url(), runtime=SystemRuntime())
    return region.url()


@pytest.fixture
async def wire(region: Region) -> AsyncIterator[Wire]:
    async with wire_to(urlsplit(region.endpoint).port or 0) as wire:
        yield wire


@pytest.fixture
async def journal(region: Region, url: str, wire: Wire) -> AsyncIterator[S3Journal]:
    """The journal as a session has it open whose way to the server is the wire."""
    async with opened(url.replace(region.endpoint, f"http://127.0.0.1:{wire.port}")) as journal:
        yield journal


@pytest.fixture
async def other(url: str) -> AsyncIterator[S3Journal]:
    async with opened(url) as other:
        yield other


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with open_stand_in() as stand_in:
        yield stand_in


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked twice within one operation."""
    monkeypatch.setattr("agentfs.journal.s3_bucket.ATTEMPTS_MAX", 1)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[S3Journal]:
    async with open_s3_journal(url, runtime=SystemRuntime()) as journal:
        yield journal


async def insisted(journal: S3Journal, payload: bytes) -> Position:
    """Append as a mount does: what failed for a reason that may pass is sent again."""
    while True:
        try:
            return await journal.append(payload)
        except Unavailable:
            await trio.sleep(0.01)


async def everything(journal: S3Journal) -> list[bytes]:
    """The payloads of all entries."""
    await journal.tail()
    return [record.payload for record in await journal.read(FIRST)]


async def followed(journal: S3Journal, until: Callable[[list[Record]], bool]) -> list[Record]:
    """Follow as a mount does, from the beginning."""
    records: list[Record] = []
    while not until(records):
        try:
            await journal.wait(Position(len(records)))
            records += await journal.read(Position(len(records)))
        except Unavailable:
            await trio.sleep(0.01)
    return records


# ---- lost answers


async def test_an_append_whose_answer_is_lost_lands_once(journal: S3Journal, other: S3Journal, wire: Wire) -> None:
    await journal.append(b"a")
    wire.hold_answers()
    async with trio.open_nursery() as nursery:

        async def append() -> None:
            assert await journal.append(b"b") == 2

        nursery.start_soon(append)
        await other.wait(Position(1))
        wire.cut()
    assert await other.read(FIRST) == [(1, b"a"), (2, b"b")]
    assert await journal.append(b"c") == 3


@pytest.mark.usefixtures("impatient")
async def test_an_append_that_is_sent_again_lands_once(journal: S3Journal, other: S3Journal, wire: Wire) -> None:
    await journal.append(b"a")
    wire.hold_answers()
    async with trio.open_nursery() as nursery:

        async def append() -> None:
            with pytest.raises(Unavailable):
                await journal.append(b"b")

        nursery.start_soon(append)
        await other.wait(Position(1))
        # The same words from somebody else are another entry.
        assert await other.append(b"b") == 3
        wire.cut()
    assert await journal.tail() == 3
    assert await journal.append(b"b") == 2
    assert await journal.append(b"b") == 4
    assert await everything(other) == [b"a", b"b", b"b", b"b"]


@pytest.mark.usefixtures("impatient")
async def test_an_append_that_did_not_arrive_is_sent_again(region: Region, url: str, other: S3Journal) -> None:
    async with opened(url) as journal:
        await journal.append(b"a")
        region.kill("gateway")
        with pytest.raises(Unavailable):
            await journal.append(b"b")
        region.start()
        assert await insisted(other, b"first") == 2
        assert await insisted(journal, b"b") == 3
        assert await everything(other) == [b"a", b"first", b"b"]


async def test_an_append_whose_caller_left_is_an_entry_like_any_other(journal: S3Journal, other: S3Journal, wire: Wire) -> None:
    wire.hold_answers()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.append, b"left")
        await other.wait(FIRST)
        nursery.cancel_scope.cancel()
    wire.let_answers_pass()
    assert await journal.append(b"next") == 2
    assert await journal.append(b"left") == 3
    assert await everything(other) == [b"left", b"next", b"left"]


# ---- servers that are silent or gone


async def test_a_silent_server_is_unavailable_within_bounds(url: str, region: Region, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentfs.journal.s3_bucket.TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr("agentfs.journal.s3_bucket.PATIENCE_SECONDS", 0.1)
    async with opened(url) as journal:
        await journal.append(b"a")
        region.freeze("gateway")
        for use in (
            journal.tail,
            lambda: journal.append(b"b"),
            lambda: journal.wait(Position(1)),
            lambda: journal.beat(1),
            journal.beats,
        ):
            with trio.fail_after(10), pytest.raises(Unavailable, match="did not answer in time"):
                await use()
        region.thaw()
        assert await insisted(journal, b"b") == 2


async def test_a_cancelled_caller_leaves_a_silent_server_at_once(journal: S3Journal, wire: Wire) -> None:
    wire.hold_answers()
    started = trio.current_time()
    for use in (
        journal.tail,
        lambda: journal.append(b"a"),
        lambda: journal.beat(1),
        journal.beats,
        lambda: journal.read(FIRST),
    ):
        with trio.move_on_after(0.1) as scope:
            await use()
        assert scope.cancelled_caught
    assert trio.current_time() - started < 3
    wire.let_answers_pass()
    await journal.tail()


async def test_a_server_that_is_killed_again_and_again_loses_nothing(region: Region, url: str) -> None:
    appended: dict[bytes, Position] = {}
    count, names = 40, "abc"

    async def append(name: str) -> None:
        async with opened(url) as journal:
            for n in range(count):
                payload = f"{name} {n}".encode()
                appended[payload] = await insisted(journal, payload)

    records: list[Record] = []

    async def follow(journal: S3Journal) -> None:
        records.extend(await followed(journal, lambda seen: len(seen) == count * len(names)))

    async with opened(url) as journal, trio.open_nursery() as nursery:
        nursery.start_soon(follow, journal)
        for name in names:
            nursery.start_soon(append, name)
        for killed in (1, 2):
            while len(appended) < killed * count * len(names) // 3:
                await trio.sleep(0.01)
            await trio.to_thread.run_sync(region.kill, "gateway")
            await trio.to_thread.run_sync(region.start)
    # Each once, each where its append said, and each appender's in its order.
    assert {record.payload: record.position for record in records} == appended
    assert [record.position for record in records] == list(range(1, count * len(names) + 1))
    for name in names:
        own = [record.payload for record in records if record.payload.startswith(name.encode())]
        assert own == [f"{name} {n}".encode() for n in range(count)]


# ---- servers that refuse


async def test_a_wrong_secret_is_named_and_not_shown(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    with pytest.raises(Denied, match="the secret key is wrong") as caught:
        async with opened(url):
            pass
    assert "hunter2" not in str(caught.value)


async def test_credentials_that_are_mended_are_used(
    region: Region, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    credentials = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)

    def write(key: str) -> None:
        secret = region.environment["AWS_SECRET_ACCESS_KEY"]
        credentials.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")

    write(region.environment["AWS_ACCESS_KEY_ID"])
    async with opened(url) as journal:
        await journal.append(b"a")
        region.deny()
        with pytest.raises(Denied, match=r"suspended|access denied"):
            await journal.append(b"b")
        region.allow()
        assert await journal.append(b"b") == 2


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (refusal(409, "ConditionalRequestConflict"), Unavailable),
        (refusal(500, "InternalError"), Unavailable),
        (refusal(503, "SlowDown"), Unavailable),
        (refusal(403, "QuotaExceeded"), NoSpace),
        (refusal(403, "AccessDenied"), Denied),
        (refusal(404, "NoSuchBucket"), Denied),
    ],
    ids=lambda value: f"{value.status}" if isinstance(value, Answer) else "",
)
async def test_refusals(stand_in: StandIn, answer: Answer, kind: type[AgentfsError]) -> None:
    stand_in.answer = answer
    bucket = Bucket(parse_s3_url(f"s3://bucket?endpoint={stand_in.endpoint}"), SystemRuntime())
    for ask in (lambda: bucket.put_new("x", b""), lambda: bucket.get("x"), lambda: bucket.listing("")):
        with pytest.raises(kind):
            await ask()
    bucket.close()


async def test_a_404_that_is_not_s3s_is_no_word_about_the_entry(stand_in: StandIn) -> None:
    stand_in.answer = Answer(404, b"<html>no such page</html>")
    bucket = Bucket(parse_s3_url(f"s3://bucket?endpoint={stand_in.endpoint}"), SystemRuntime())
    with pytest.raises(Unavailable, match="not in S3's words"):
        await bucket.get("x")
    stand_in.answer = refusal(404, "NoSuchKey")
    assert await bucket.get("x") is None
    bucket.close()


async def test_what_may_pass_is_tried_again_and_not_for_long(stand_in: StandIn) -> None:
    stand_in.answer = refusal(503, "SlowDown")
    bucket = Bucket(parse_s3_url(f"s3://bucket?endpoint={stand_in.endpoint}"), SystemRuntime())
    with pytest.raises(Unavailable):
        await bucket.get("x")
    assert len(stand_in.requests) == 4
    stand_in.answer = refusal(503, "SlowDown", retry_after="60")
    with trio.fail_after(5), pytest.raises(Unavailable):
        await bucket.get("x")
    assert len(stand_in.requests) == 5
    bucket.close()
