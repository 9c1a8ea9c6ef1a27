"""Every journal engine keeps `agentfs.journal.contract`, and SQLite's also holds across processes and faults."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Set
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, contextmanager
from functools import wraps
from pathlib import Path
from typing import ParamSpec

import pytest
import trio
import trio.testing
from watchdog.observers.inotify_c import InotifyConstants, inotify_add_watch, inotify_init

from agentfs.journal.contract import FIRST as BEGINNING
from agentfs.journal.contract import POINTER_MAX, Journal, Record
from agentfs.journal.memory import MemoryJournal, MemoryLog
from agentfs.journal.postgres import create_postgres_journal, open_postgres_journal
from agentfs.journal.s3 import create_s3_journal, open_s3_journal
from agentfs.journal.sqlite import create_sqlite_journal, open_sqlite_journal
from agentfs.journal.sqlite_tables import FORMAT
from agentfs.model.errors import AgentfsError, Corrupt, Denied, Exists, Invalid, NoSpace, NotFound, Stale, Unavailable
from agentfs.model.ids import Position
from agentfs.runtime import SystemRuntime
from tests.mount.small_disk import fill, small_disk
from tests.postgres_server import shared_server

P = ParamSpec("P")

BOUND_SECONDS = 60
"""After how long a test that hangs fails. Nothing is expected to take that long."""

FIRST = Position(0)
"""The position before the first entry."""

Open = Callable[[], AbstractAsyncContextManager[Journal]]


class Sleepless(SystemRuntime):
    """The real runtime, without `sleep`: who waits must be woken and cannot poll."""

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("a journal must not poll")


@pytest.fixture
def first() -> Position:
    """Where the test's journal begins; a test that is parametrised with `first` says otherwise."""
    return BEGINNING


@pytest.fixture(params=["memory", "sqlite", "postgres", "s3"])
async def open_again(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: Position) -> Open:
    """Opens the test's journal, any number of times: each is a session's own."""
    match request.param:
        case "memory":
            return memory_opener(first)
        case "sqlite":
            return sqlite_opener(tmp_path / "journal.sqlite", first)
        case "s3":
            # Nothing of what was read before is relied upon, so that a trim need not wait until nobody does.
            monkeypatch.setattr("agentfs.journal.s3_head.TRUST_SECONDS", 0.0)
            monkeypatch.setattr("agentfs.journal.s3_head.GRACE_SECONDS", 0.0)
            [region] = request.getfixturevalue("regions")(1)
            return await s3_opener(region.url("workspace"), first)
        case _:
            # Who waits must be woken: a look now and then would hide that it is not.
            monkeypatch.setattr("agentfs.journal.postgres_news.LOOK_SECONDS", 10 * BOUND_SECONDS)
            return await postgres_opener(tmp_path.name, first)


@pytest.fixture
async def journal(open_again: Open) -> AsyncIterator[Journal]:
    async with open_again() as journal:
        yield journal


@pytest.fixture
async def other(open_again: Open, journal: Journal) -> AsyncIterator[Journal]:
    """The same journal as another session has it open."""
    async with open_again() as other:
        yield other


def bounded(test: Callable[P, Awaitable[None]]) -> Callable[P, Awaitable[None]]:
    """Makes a test whose fault would be to wait for ever fail instead."""

    @wraps(test)
    async def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with trio.fail_after(BOUND_SECONDS):
            await test(*args, **kwargs)

    return run


def memory_opener(first: Position) -> Open:
    log = MemoryLog(first)

    @asynccontextmanager
    async def open_again() -> AsyncIterator[Journal]:
        journal = MemoryJournal(log)
        yield journal
        await journal.aclose()

    return open_again


def sqlite_opener(path: Path, first: Position) -> Open:
    create_sqlite_journal(path, first=first)
    return lambda: open_sqlite_journal(path, runtime=Sleepless())


async def postgres_opener(name: str, first: Position) -> Open:
    """Every test is a workspace of its own, all in one database."""
    url = shared_server().url()
    workspace = f"{name} {uuid.uuid4()}"
    await create_postgres_journal(url, workspace=workspace, runtime=Sleepless(), first=first)
    return lambda: open_postgres_journal(url, workspace=workspace, runtime=Sleepless())


async def s3_opener(url: str, first: Position) -> Open:
    """It must look for news now and then: nobody wakes those who wait."""
    await create_s3_journal(url, runtime=SystemRuntime(), first=first)
    return lambda: open_s3_journal(url, runtime=SystemRuntime())


async def fill_with(journal: Journal, *payloads: bytes) -> None:
    for payload in payloads:
        await journal.append(payload)


async def everything(journal: Journal, after: Position = FIRST) -> list[Record]:
    """All entries behind `after`, read in several steps."""
    records: list[Record] = []
    while step := await journal.read(records[-1].position if records else after, limit_bytes=1000):
        records += step
    return records


async def test_a_new_journal_is_empty(journal: Journal) -> None:
    assert await journal.tail() == 0
    assert await journal.read(FIRST) == []
    assert await journal.beats() == {}


async def test_positions_count_from_one(journal: Journal) -> None:
    assert [await journal.append(bytes([n])) for n in range(5)] == [1, 2, 3, 4, 5]
    assert await journal.tail() == 5


async def test_payloads_come_back_as_they_were(journal: Journal) -> None:
    payloads = [b"", b"\x00", b"text", bytes(range(256)) * 40, bytes(3 << 20)]
    await fill_with(journal, *payloads)
    assert await journal.read(FIRST) == [Record(Position(n), payload) for n, payload in enumerate(payloads, start=1)]


@bounded
async def test_tasks_append_together(journal: Journal, other: Journal) -> None:
    got: dict[int, bytes] = {}

    async def append(journal: Journal, name: str) -> None:
        for n in range(20):
            payload = f"{name} {n}".encode()
            got[await journal.append(payload)] = payload

    async with trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(append, journal, name)
            nursery.start_soon(append, other, name.upper())
    assert sorted(got) == list(range(1, 121))
    assert await everything(journal) == sorted(got.items())
    for name in "abcABC":
        own = [payload for _, payload in await everything(other) if payload.startswith(name.encode())]
        assert own == [f"{name} {n}".encode() for n in range(20)]


async def test_read_continues_where_it_is_told(journal: Journal) -> None:
    await fill_with(journal, b"a", b"b", b"c")
    assert await journal.read(Position(1)) == [(2, b"b"), (3, b"c")]
    assert await journal.read(Position(3)) == []
    assert await journal.read(Position(9)) == []


@pytest.mark.parametrize(
    ("limit_bytes", "count"), [(0, 1), (1, 1), (9, 1), (10, 1), (19, 1), (20, 2), (29, 2), (30, 3), (31, 3), (1000, 3)]
)
async def test_read_takes_as_many_as_the_limit_holds(journal: Journal, limit_bytes: int, count: int) -> None:
    await fill_with(journal, *[bytes(10)] * 3)
    assert len(await journal.read(FIRST, limit_bytes=limit_bytes)) == count


async def test_read_stops_at_the_first_that_does_not_fit(journal: Journal) -> None:
    await fill_with(journal, b"a", bytes(100), b"b")
    assert [record.position for record in await journal.read(FIRST, limit_bytes=50)] == [1]
    assert [record.position for record in await journal.read(Position(1), limit_bytes=50)] == [2]
    assert [record.position for record in await journal.read(Position(2), limit_bytes=50)] == [3]


async def test_read_counts_empty_payloads_as_nothing(journal: Journal) -> None:
    await fill_with(journal, bytes(10), b"", b"", b"x")
    assert [record.position for record in await journal.read(FIRST, limit_bytes=10)] == [1, 2, 3]


async def test_another_session_sees_what_was_appended(journal: Journal, other: Journal) -> None:
    for n in range(20):
        position = await journal.append(bytes([n]))
        assert await other.tail() == position
        assert await other.read(Position(position - 1)) == [(position, bytes([n]))]


async def test_reopening_sees_everything(open_again: Open) -> None:
    async with open_again() as journal:
        await fill_with(journal, b"a", b"b")
        await journal.beat(7)
        beats = await journal.beats()
    async with open_again() as journal:
        assert await journal.read(FIRST) == [(1, b"a"), (2, b"b")]
        assert beats.keys() == {7}
        assert await journal.beats() == beats
        assert await journal.append(b"c") == 3


@bounded
async def test_wait_returns_at_once_behind_the_tail(journal: Journal, other: Journal) -> None:
    await fill_with(journal, b"a", b"b")
    await journal.wait(FIRST)
    await journal.wait(Position(1))
    await other.wait(Position(1))


@pytest.mark.parametrize("settle", [True, False], ids=["settled", "racing"])
@bounded
async def test_wait_is_woken_by_an_append(journal: Journal, other: Journal, settle: bool) -> None:
    async with trio.open_nursery() as nursery:
        for waiting in (journal, other, journal):
            nursery.start_soon(waiting.wait, FIRST)
        if settle:
            await trio.testing.wait_all_tasks_blocked(0.01)
        await journal.append(b"a")


@bounded
async def test_wait_sleeps_until_its_position(journal: Journal, other: Journal) -> None:
    woken: list[Position] = []

    async def wait(after: Position) -> None:
        await journal.wait(after)
        woken.append(after)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, Position(2))
        nursery.start_soon(wait, Position(0))
        await other.append(b"a")
        await journal.wait(FIRST)
        await other.append(b"b")
        await journal.wait(Position(1))
        await trio.testing.wait_all_tasks_blocked()
        assert woken == [0]
        await other.append(b"c")
    assert woken == [0, 2]


@bounded
async def test_no_wake_up_is_lost(journal: Journal, other: Journal) -> None:
    """Two sessions answer each other: one lost wake-up and both wait for ever."""
    rounds = 60

    async def answer(own: Journal, *, odd: bool) -> None:
        for after in range(rounds):
            if after % 2 == odd:
                await own.append(b"my turn")
            else:
                await own.wait(Position(after))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: answer(journal, odd=False))
        nursery.start_soon(lambda: answer(other, odd=True))
    assert await journal.tail() == rounds


@bounded
async def test_wait_can_be_cancelled(journal: Journal, other: Journal) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.wait, FIRST)
        nursery.start_soon(other.wait, FIRST)
        await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()
    assert await journal.append(b"a") == 1
    await journal.wait(FIRST)
    await other.wait(FIRST)


@bounded
async def test_the_others_are_woken_when_one_that_waits_is_cancelled(journal: Journal, other: Journal) -> None:
    async with trio.open_nursery() as nursery:
        scopes = [trio.CancelScope() for _ in range(4)]

        async def wait_in(scope: trio.CancelScope) -> None:
            with scope:
                await journal.wait(FIRST)

        for scope in scopes:
            nursery.start_soon(wait_in, scope)
            await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.start_soon(journal.wait, FIRST)
        await trio.testing.wait_all_tasks_blocked(0.01)
        # Two one by one, so that listening is handed on each time, and two at once: the second just when it may have got it.
        for scope in scopes[:2]:
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked(0.01)
        scopes[2].cancel()
        await trio.lowlevel.checkpoint()
        scopes[3].cancel()
        await other.append(b"a")


@bounded
async def test_many_wait(journal: Journal, other: Journal) -> None:
    """Of two hundred tasks at different positions each is woken by its own entry and by none before."""
    woken: list[int] = []

    async def wait(session: Journal, after: int) -> None:
        await session.wait(Position(after))
        assert await session.tail() > after
        woken.append(after)

    async with trio.open_nursery() as nursery:
        for after in range(20):
            for session in (journal, other) * 5:
                nursery.start_soon(wait, session, after)
        await trio.testing.wait_all_tasks_blocked(0.01)
        for count in range(20):
            assert all(after < count for after in woken)
            await (other if count % 3 else journal).append(b"a")
            await journal.wait(Position(count))
            await other.wait(Position(count))
    assert sorted(woken) == [after for after in range(20) for _ in range(10)]


@bounded
async def test_a_tail_beside_long_reads(journal: Journal, other: Journal) -> None:
    big = bytes(1 << 20)

    async def read() -> None:
        for _ in range(5):
            assert [record.payload for record in (await journal.read(FIRST))[:3]] == [big] * 3

    await fill_with(journal, big, big, big)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(read)
        for n in range(4, 40):
            appended = await other.append(b"a")
            assert appended == n == await journal.tail()
            assert await journal.read(Position(n - 1)) == [(n, b"a")]


async def test_a_beat_is_seen_by_all(journal: Journal, other: Journal) -> None:
    seen: list[int] = []
    for beating in (journal, other, journal):
        await beating.beat(1)
        beats = await other.beats()
        assert beats == await journal.beats()
        seen.append(beats[1])
    assert len(set(seen)) == 3
    await other.beat(1 << 40)
    after = await journal.beats()
    assert after.keys() == {1, 1 << 40}
    assert after[1] == seen[-1]
    assert await journal.tail() == 0


async def test_a_beat_is_forgotten(journal: Journal, other: Journal) -> None:
    await journal.beat(1)
    await journal.beat(2)
    before = await journal.beats()
    await other.forget_beat(1)
    await other.forget_beat(3)
    assert await journal.beats() == {2: before[2]}
    await journal.beat(1)
    assert (await other.beats()).keys() == {1, 2}


async def test_what_is_trimmed_is_stale(journal: Journal, other: Journal) -> None:
    await fill_with(journal, b"a", b"b", b"c", b"d")
    await journal.trim(Position(3))
    for after in (0, 1):
        with pytest.raises(Stale):
            await other.read(Position(after))
    assert await other.read(Position(2)) == [(3, b"c"), (4, b"d")]
    assert await journal.append(b"e") == 5


async def test_the_last_entry_is_never_trimmed(open_again: Open) -> None:
    async with open_again() as journal:
        await journal.trim(Position(5))
        await fill_with(journal, b"a", b"b")
        await journal.trim(Position(100))
    async with open_again() as journal:
        assert await journal.tail() == 2
        assert await journal.read(Position(1)) == [(2, b"b")]
        assert await journal.append(b"c") == 3


async def test_trimming_less_does_nothing(journal: Journal) -> None:
    await fill_with(journal, b"a", b"b", b"c")
    await journal.trim(Position(2))
    await journal.trim(Position(1))
    await journal.trim(Position(0))
    assert await journal.read(Position(1)) == [(2, b"b"), (3, b"c")]


@bounded
async def test_closing_wakes_those_who_wait(open_again: Open, other: Journal) -> None:
    async with open_again() as journal, trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(Unavailable):
                await journal.wait(FIRST)

        for _ in range(3):
            nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked(0.01)
        await journal.aclose()
    assert await other.append(b"a") == 1


@bounded
async def test_a_closed_journal_is_unavailable(journal: Journal) -> None:
    await journal.aclose()
    await journal.aclose()
    for use in (
        lambda: journal.append(b"a"),
        lambda: journal.read(FIRST),
        journal.tail,
        lambda: journal.wait(FIRST),
        lambda: journal.beat(1),
        journal.beats,
        lambda: journal.forget_beat(1),
        lambda: journal.trim(FIRST),
        journal.pointer,
        lambda: journal.point(FIRST, b"note"),
    ):
        with pytest.raises(Unavailable):
            await use()


@pytest.mark.parametrize("first", [7])
@bounded
async def test_a_journal_may_begin_later(journal: Journal, other: Journal) -> None:
    assert await journal.tail() == 6
    assert await journal.read(Position(6)) == []
    assert [await journal.append(b"a"), await other.append(b"b")] == [7, 8]
    assert await everything(other, Position(6)) == [(7, b"a"), (8, b"b")]
    await journal.wait(Position(6))
    await other.wait(Position(7))
    assert await other.tail() == 8


@pytest.mark.parametrize("first", [7])
@bounded
async def test_what_is_in_front_of_its_beginning_is_stale(open_again: Open) -> None:
    async def check() -> None:
        async with open_again() as journal:
            for after in (0, 5):
                with pytest.raises(Stale):
                    await journal.read(Position(after))

    await check()
    async with open_again() as journal:
        await journal.trim(Position(5))
        await fill_with(journal, b"a", b"b")
    await check()
    async with open_again() as journal:
        await journal.trim(Position(8))
        assert await journal.read(Position(7)) == [(8, b"b")]
    await check()


async def test_without_a_pointer_there_is_nothing(journal: Journal) -> None:
    assert await journal.pointer() == b""


@bounded
async def test_a_pointer_is_seen_by_all(journal: Journal, other: Journal) -> None:
    for position, text in [(3, b'{"position": 3}'), (9, bytes(range(256)) * (POINTER_MAX // 256)), (9, b"again"), (12, b"")]:
        await journal.point(Position(position), text)
        assert await journal.pointer() == await other.pointer() == text
    assert await journal.tail() == 0


@bounded
async def test_an_older_pointer_is_ignored(journal: Journal, other: Journal) -> None:
    await journal.point(Position(10), b"newer")
    await other.point(Position(9), b"older")
    assert await other.pointer() == b"newer"
    await other.point(Position(10), b"as new")
    assert await journal.pointer() == b"as new"


@bounded
async def test_of_pointers_at_the_same_time_the_newest_stays(journal: Journal, other: Journal) -> None:
    async with trio.open_nursery() as nursery:
        for position in (3, 8, 1, 6, 5, 2, 7, 4):
            pointing = journal if position % 2 else other
            nursery.start_soon(pointing.point, Position(position), b"%d" % position)
    assert await journal.pointer() == await other.pointer() == b"8"


@bounded
async def test_a_pointer_survives_trimming_and_reopening(open_again: Open) -> None:
    async with open_again() as journal:
        await fill_with(journal, b"a", b"b", b"c")
        await journal.point(Position(2), b"begin behind 2")
        await journal.trim(Position(3))
    async with open_again() as journal:
        assert await journal.pointer() == b"begin behind 2"
        await journal.point(Position(1), b"older")
        assert await journal.pointer() == b"begin behind 2"


async def test_a_pointer_that_is_too_long_is_refused(journal: Journal) -> None:
    await journal.point(Position(1), b"short")
    with pytest.raises(Invalid):
        await journal.point(Position(2), bytes(POINTER_MAX + 1))
    assert await journal.pointer() == b"short"


@bounded
async def test_closes_although_cancelled(open_again: Open) -> None:
    with trio.CancelScope() as scope:
        async with open_again() as journal:
            await journal.append(b"a")
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(journal.wait, FIRST)
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    async with open_again() as journal:
        assert await journal.tail() == 1


# From here on: what only an engine on a disk must do.

APPENDER = """
import sys, trio
from pathlib import Path
from agentfs.journal.sqlite import open_sqlite_journal
from agentfs.runtime import SystemRuntime

async def main(path, name, count):
    async with open_sqlite_journal(Path(path), runtime=SystemRuntime()) as journal:
        for n in range(int(count)):
            print(await journal.append(f"{name} {n}".encode()), flush=True)

trio.run(main, *sys.argv[1:])
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "journal.sqlite"
    create_sqlite_journal(path)
    return path


def appender(path: Path, name: str, count: int) -> list[str]:
    """The command of a process that appends `count` entries and prints their positions."""
    return [sys.executable, "-c", APPENDER, str(path), name, str(count)]


@bounded
async def test_processes_append_together(path: Path) -> None:
    async with open_sqlite_journal(path, runtime=Sleepless()) as journal:
        printed: dict[str, bytes] = {}

        async def run(name: str) -> None:
            printed[name] = (await trio.run_process(appender(path, name, 40), capture_stdout=True)).stdout

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, "a")
            nursery.start_soon(run, "b")
            own = [await journal.append(b"c %d" % n) for n in range(40)]
        records = await everything(journal)
    assert [record.position for record in records] == list(range(1, 121))
    for name, positions in {"a": printed["a"].split(), "b": printed["b"].split(), "c": own}.items():
        assert [records[int(position) - 1].payload for position in positions] == [f"{name} {n}".encode() for n in range(40)]


@bounded
async def test_another_process_wakes_those_who_wait(path: Path) -> None:
    async with open_sqlite_journal(path, runtime=Sleepless()) as journal, trio.open_nursery() as nursery:
        for after in range(10):
            nursery.start_soon(journal.wait, Position(after))
        await trio.testing.wait_all_tasks_blocked(0.01)
        await trio.run_process(appender(path, "a", 10), capture_stdout=True)


ANSWERER = """
import sys, trio
from pathlib import Path
from agentfs.journal.sqlite import open_sqlite_journal
from agentfs.runtime import SystemRuntime

async def main(path, rounds):
    for after in range(int(rounds)):
        async with open_sqlite_journal(Path(path), runtime=SystemRuntime()) as journal:
            await (journal.wait(after) if after % 2 == 0 else journal.append(b"my turn"))

trio.run(main, *sys.argv[1:])
"""

WAITER = """
import os, sys, trio
from pathlib import Path
from agentfs.journal.sqlite import open_sqlite_journal
from agentfs.runtime import SystemRuntime

async def main(path):
    async with open_sqlite_journal(Path(path), runtime=SystemRuntime()) as journal, trio.open_nursery() as nursery:
        nursery.start_soon(journal.wait, await journal.tail())
        while not os.path.isdir(path + "-bells") or not os.listdir(path + "-bells"):
            await trio.sleep(0.001)
        print("waits", flush=True)

trio.run(main, *sys.argv[1:])
"""


def bells(path: Path) -> set[Path]:
    """The bells that hang beside the journal at `path`."""
    directory = Path(f"{path}-bells")
    return set(directory.iterdir()) if directory.exists() else set()


async def hung(path: Path, count: int, *, beside: Set[Path] = frozenset()) -> set[Path]:
    """The bells beside the journal at `path`, without those named, once there are so many; the test's bound is this one's."""
    while len(found := bells(path) - beside) != count:
        await trio.lowlevel.checkpoint()
    return found


@bounded
async def test_two_processes_that_open_anew_each_time_answer_each_other(path: Path) -> None:
    """Each waiter comes while the other process appends: one lost wake-up and both wait for ever."""
    rounds = 60
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.run_process, [sys.executable, "-c", ANSWERER, str(path), str(rounds)])
        for after in range(rounds):
            async with open_sqlite_journal(path, runtime=Sleepless()) as journal:
                await (journal.wait(Position(after)) if after % 2 else journal.append(b"my turn"))
    assert bells(path) == set()


@bounded
async def test_who_begins_to_wait_while_another_appends_is_woken(path: Path) -> None:
    async with open_sqlite_journal(path, runtime=Sleepless()) as journal:

        async def wait(after: int) -> None:
            async with open_sqlite_journal(path, runtime=Sleepless()) as other:
                await other.wait(Position(after))

        for after in range(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait, after)
                for _ in range(after * 3):
                    await trio.lowlevel.checkpoint()
                assert await journal.append(b"a") == after + 1


@bounded
async def test_appending_rings_the_others_and_never_oneself(path: Path) -> None:
    async with (
        open_sqlite_journal(path, runtime=Sleepless()) as journal,
        open_sqlite_journal(path, runtime=Sleepless()) as other,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(journal.wait, Position(3))
        (bell,) = await hung(path, 1)
        with counted_rings(bell) as rings:
            await journal.append(b"a")
            await journal.beat(1)
            await other.beat(2)
            assert rings() == 0
            await other.append(b"b")
            assert rings() == 1
            await journal.append(b"c")
            assert rings() == 0
            await other.append(b"d")


@bounded
async def test_a_killed_process_leaves_a_bell_that_the_next_waiter_removes(path: Path) -> None:
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            lambda task_status: trio.run_process(
                [sys.executable, "-c", WAITER, str(path)], stdout=subprocess.PIPE, check=False, task_status=task_status
            )
        )
        assert process.stdout is not None
        assert await process.stdout.receive_some(1) == b"w"
        process.send_signal(signal.SIGKILL)
        await process.wait()
    (dead,) = bells(path)
    async with (
        open_sqlite_journal(path, runtime=Sleepless()) as journal,
        open_sqlite_journal(path, runtime=Sleepless()) as other,
    ):
        assert await other.append(b"a") == 1
        assert bells(path) == {dead}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journal.wait, Position(1))
            (alive,) = await hung(path, 1, beside={dead})
            assert bells(path) == {alive}
            nursery.start_soon(other.wait, Position(1))
            assert alive in await hung(path, 2)
            await other.append(b"b")
    assert left_of(path) == [path]


@bounded
async def test_who_waits_is_woken_although_the_bells_were_removed(path: Path) -> None:
    async with (
        open_sqlite_journal(path, runtime=Sleepless()) as journal,
        open_sqlite_journal(path, runtime=Sleepless()) as other,
        trio.open_nursery() as nursery,
    ):
        for _ in range(3):
            nursery.start_soon(journal.wait, FIRST)
        await hung(path, 1)
        await trio.testing.wait_all_tasks_blocked(0.01)
        shutil.rmtree(f"{path}-bells")
        await hung(path, 1)
        await other.append(b"a")


@bounded
async def test_waiting_says_why_it_cannot(path: Path) -> None:
    Path(f"{path}-bells").write_bytes(b"in the way")
    async with open_sqlite_journal(path, runtime=Sleepless()) as journal:
        with pytest.raises(Unavailable) as caught:
            await journal.wait(FIRST)
    assert "-bells" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@bounded
async def test_waiting_needs_permission(path: Path) -> None:
    async with open_sqlite_journal(path, runtime=Sleepless()) as journal:
        await journal.append(b"a")
        path.parent.chmod(0o500)
        try:
            with pytest.raises(Denied):
                await journal.wait(Position(1))
        finally:
            path.parent.chmod(0o700)


@contextmanager
def counted_rings(bell: Path) -> Iterator[Callable[[], int]]:
    """Counts the rings of a bell since the last call; several that nobody counted may come as one."""
    ears = inotify_init()
    try:
        os.set_blocking(ears, False)
        assert inotify_add_watch(ears, os.fsencode(bell), InotifyConstants.IN_CLOSE_WRITE) >= 0

        def count() -> int:
            try:
                return len(os.read(ears, 4096)) // 16
            except BlockingIOError:
                return 0

        yield count
    finally:
        os.close(ears)


@bounded
async def test_a_killed_process_loses_no_acknowledged_entry(path: Path) -> None:
    async with open_sqlite_journal(path, runtime=Sleepless()) as journal, trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            lambda task_status: trio.run_process(
                appender(path, "a", 1 << 30), stdout=subprocess.PIPE, check=False, task_status=task_status
            )
        )
        await journal.wait(Position(50))
        process.send_signal(signal.SIGKILL)
        assert process.stdout is not None
        acknowledged = [int(line) for line in b"".join([part async for part in process.stdout]).split(b"\n")[:-1]]
        await process.wait()
        records = await everything(journal)
        assert acknowledged == list(range(1, len(acknowledged) + 1))
        assert len(acknowledged) <= len(records) <= len(acknowledged) + 1
        assert records == [(n + 1, f"a {n}".encode()) for n in range(len(records))]
        assert await journal.append(b"b") == len(records) + 1


@bounded
async def test_append_waits_for_a_busy_journal(path: Path) -> None:
    async with open_sqlite_journal(path, runtime=Sleepless()) as journal:
        with closing(sqlite3.connect(path, isolation_level=None)) as busy:
            busy.execute("BEGIN IMMEDIATE")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(journal.append, b"a")
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert await journal.tail() == 0
                busy.execute("ROLLBACK")
        assert await journal.tail() == 1


async def test_a_journal_that_stays_busy_is_unavailable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentfs.journal.sqlite_file.BUSY_SECONDS", 0.01)
    async with open_sqlite_journal(path, runtime=Sleepless()) as journal:
        with closing(sqlite3.connect(path, isolation_level=None)) as busy:
            busy.execute("BEGIN IMMEDIATE")
            with pytest.raises(Unavailable):
                await journal.append(b"a")
            busy.execute("ROLLBACK")
        assert await journal.append(b"b") == 1


async def test_a_full_disk_leaves_the_journal_usable(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size_mib=4) as disk:
        path = disk / "journal.sqlite"
        create_sqlite_journal(path)
        async with open_sqlite_journal(path, runtime=Sleepless()) as journal:
            await journal.append(b"a")
            fill(disk / "ballast")
            with pytest.raises(NoSpace):
                await journal.append(bytes(1 << 20))
            assert await journal.read(FIRST) == [(1, b"a")]
            (disk / "ballast").unlink()
            assert await journal.append(b"b") == 2
            assert await journal.read(Position(1)) == [(2, b"b")]


async def test_no_journal_is_made_or_opened_on_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size_mib=1) as disk:
        path = disk / "journal.sqlite"
        fill(disk / "ballast")
        with pytest.raises(NoSpace):
            create_sqlite_journal(path)
        assert [file.name for file in disk.iterdir()] == ["ballast"]
        (disk / "ballast").unlink()
        create_sqlite_journal(path)
        fill(disk / "ballast")
        with pytest.raises(NoSpace):
            await opened(path)


async def test_trimming_goes_through_in_steps(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.executemany("INSERT INTO entries VALUES (?, ?)", [(n, b"x") for n in range(1, 3501)])
    async with open_sqlite_journal(path, runtime=Sleepless()) as journal:
        await journal.trim(Position(3400))
        with pytest.raises(Stale):
            await journal.read(Position(3398))
        assert len(await journal.read(Position(3399))) == 101


async def test_a_gap_is_damage(path: Path) -> None:
    async with open_sqlite_journal(path, runtime=Sleepless()) as journal:
        await fill_with(journal, b"a", b"b", b"c")
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("DELETE FROM entries WHERE position = 2")
        with pytest.raises(Corrupt):
            await journal.read(FIRST)


def left_of(path: Path) -> list[Path]:
    """What is beside a journal, but for the file whose bytes are locked in turn."""
    return [each for each in path.parent.iterdir() if each.name != f"{path.name}-turn"]


@bounded
async def test_leaves_one_file_behind(path: Path) -> None:
    async with open_sqlite_journal(path, runtime=Sleepless()) as journal:
        await journal.append(b"a")
        with trio.move_on_after(0):
            await journal.wait(Position(1))
    assert left_of(path) == [path]


@bounded
async def test_a_path_with_odd_characters(tmp_path: Path) -> None:
    path = tmp_path / "a ?#%41&ü\udcff" / "j?mode=ro"
    path.parent.mkdir()
    create_sqlite_journal(path)
    async with (
        open_sqlite_journal(path, runtime=Sleepless()) as journal,
        open_sqlite_journal(path, runtime=Sleepless()) as other,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(other.wait, FIRST)
        await trio.testing.wait_all_tasks_blocked(0.01)
        await journal.append(b"a")
    assert left_of(path) == [path]


@pytest.mark.parametrize("content", [None, b"", b"something else"])
async def test_create_refuses_what_exists(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "journal.sqlite"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(Exists):
        create_sqlite_journal(path)
    assert path.is_dir() if content is None else path.read_bytes() == content


async def test_create_needs_its_directory(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        create_sqlite_journal(tmp_path / "missing" / "journal.sqlite")


async def opened(path: Path) -> None:
    async with open_sqlite_journal(path, runtime=Sleepless()) as journal:
        await journal.append(b"a")


async def test_open_needs_a_journal(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await opened(tmp_path / "missing")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Invalid):
        await opened(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x00\xff garbage " * 1000])
async def test_open_refuses_other_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(content)
    with pytest.raises(Invalid):
        await opened(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "change",
    [
        "DROP TABLE meta",
        "DELETE FROM meta",
        "UPDATE meta SET value = 'one'",
        "ALTER TABLE meta RENAME COLUMN value TO other",
    ],
)
async def test_open_refuses_other_databases(path: Path, change: str) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(change)
    with pytest.raises(Invalid):
        await opened(path)


async def test_open_refuses_a_newer_format(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE meta SET value = ?", (FORMAT + 1,))
    with pytest.raises(Invalid, match="upgrade agentfs"):
        await opened(path)


@pytest.mark.parametrize("eighths", range(1, 8))
async def test_a_journal_that_was_cut_is_damaged(path: Path, eighths: int) -> None:
    async with open_sqlite_journal(path, runtime=Sleepless()) as journal:
        await fill_with(journal, *[bytes(5000)] * 20)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * eighths // 8])
    with pytest.raises(AgentfsError) as caught:
        async with open_sqlite_journal(path, runtime=Sleepless()) as journal:
            await everything(journal)
    assert isinstance(caught.value, Corrupt | Invalid)
