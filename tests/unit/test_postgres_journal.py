"""The PostgreSQL journal across processes, beside other workspaces, and in what the shared suite does not reach."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import pytest
import trio
import trio.testing

from agentfs.journal.postgres import (
    PostgresJournal,
    create_postgres_journal,
    open_postgres_journal,
    remove_postgres_journal,
)
from agentfs.journal.postgres_pool import CONNECTIONS_MAX
from agentfs.journal.postgres_tables import PORTION_ENTRIES
from agentfs.model.errors import Corrupt, Exists, NotFound, Stale, Unavailable
from agentfs.model.ids import Position
from agentfs.runtime import SystemRuntime
from tests.postgres_server import PostgresServer, shared_server

FIRST = Position(0)
BOUND_SECONDS = 60

WAITS_FOR_A_LOCK = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'agentfs'"

APPENDER = """
import sys, trio
from agentfs.journal.postgres import open_postgres_journal
from agentfs.runtime import SystemRuntime

async def main(url, workspace, name, count):
    async with open_postgres_journal(url, workspace=workspace, runtime=SystemRuntime()) as journal:
        for n in range(int(count)):
            print(await journal.append(f"{name} {n}".encode()), flush=True)

trio.run(main, *sys.argv[1:])
"""


@pytest.fixture
def server() -> PostgresServer:
    return shared_server()


@pytest.fixture
async def workspace(server: PostgresServer) -> str:
    workspace = str(uuid.uuid4())
    await create_postgres_journal(server.url(), workspace=workspace, runtime=SystemRuntime())
    return workspace


@pytest.fixture
async def journal(server: PostgresServer, workspace: str) -> AsyncIterator[PostgresJournal]:
    with trio.fail_after(BOUND_SECONDS):
        async with opened(server, workspace) as journal:
            yield journal


def opened(server: PostgresServer, workspace: str) -> AbstractAsyncContextManager[PostgresJournal]:
    return open_postgres_journal(server.url(), workspace=workspace, runtime=SystemRuntime())


def appender(server: PostgresServer, workspace: str, name: str, count: int) -> list[str]:
    """The command of a process that appends `count` entries and prints their positions."""
    return [sys.executable, "-c", APPENDER, server.url(), workspace, name, str(count)]


def number_of(server: PostgresServer, workspace: str) -> object:
    ((number,),) = server.run("SELECT journal FROM agentfs_journals WHERE workspace = %s", workspace)
    return number


async def until(condition: str, server: PostgresServer) -> None:
    """Return once the query finds something; the test's bound is this one's."""
    while not await trio.to_thread.run_sync(server.run, condition):
        await trio.lowlevel.checkpoint()


async def test_processes_append_together(server: PostgresServer, workspace: str, journal: PostgresJournal) -> None:
    printed: dict[str, bytes] = {}

    async def run(name: str) -> None:
        printed[name] = (await trio.run_process(appender(server, workspace, name, 100), capture_stdout=True)).stdout

    async with trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(run, name)
        own = [await journal.append(b"d %d" % n) for n in range(100)]
    records = await journal.read(FIRST)
    assert [record.position for record in records] == list(range(1, 401))
    for name, positions in {**{name: printed[name].split() for name in "abc"}, "d": own}.items():
        assert [records[int(position) - 1].payload for position in positions] == [f"{name} {n}".encode() for n in range(100)]


async def test_another_process_wakes_those_who_wait(
    server: PostgresServer, workspace: str, journal: PostgresJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentfs.journal.postgres_news.LOOK_SECONDS", 10 * BOUND_SECONDS)
    async with trio.open_nursery() as nursery:
        for after in range(10):
            nursery.start_soon(journal.wait, Position(after))
        await trio.testing.wait_all_tasks_blocked(0.01)
        await trio.run_process(appender(server, workspace, "a", 10), capture_stdout=True)


async def test_a_killed_process_loses_no_acknowledged_entry_and_blocks_nobody(
    server: PostgresServer, workspace: str, journal: PostgresJournal
) -> None:
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            lambda task_status: trio.run_process(
                appender(server, workspace, "a", 1 << 30), stdout=subprocess.PIPE, check=False, task_status=task_status
            )
        )
        await journal.wait(Position(50))
        process.send_signal(signal.SIGKILL)
        assert process.stdout is not None
        acknowledged = [int(line) for line in b"".join([part async for part in process.stdout]).split(b"\n")[:-1]]
        await process.wait()
    appended = await journal.append(b"b")
    records = await journal.read(FIRST)
    assert acknowledged == list(range(1, len(acknowledged) + 1))
    assert len(acknowledged) <= appended - 1 <= len(acknowledged) + 1
    assert records == [(n + 1, f"a {n}".encode()) for n in range(appended - 1)] + [(appended, b"b")]


async def test_workspaces_in_one_database_are_apart(server: PostgresServer, workspace: str, journal: PostgresJournal) -> None:
    beside = f"{workspace} beside"
    await create_postgres_journal(server.url(), workspace=beside, runtime=SystemRuntime())
    async with opened(server, beside) as other, trio.open_nursery() as nursery:
        nursery.start_soon(journal.wait, FIRST)
        for payload in (b"a", b"b", b"c"):
            await other.append(payload)
        await other.beat(1)
        assert await journal.tail() == 0
        assert await journal.read(FIRST) == []
        assert await journal.beats() == {}
        assert await journal.append(b"mine") == 1
        await journal.beat(1)
        await journal.beat(1)
        await other.trim(Position(3))
        await other.forget_beat(1)
    assert await journal.read(FIRST) == [(1, b"mine")]
    assert await journal.beats() == {1: 2}


async def test_a_workspace_has_one_journal(server: PostgresServer, workspace: str) -> None:
    with pytest.raises(Exists, match=workspace):
        await create_postgres_journal(server.url(), workspace=workspace, runtime=SystemRuntime())


async def test_open_needs_a_journal(server: PostgresServer, workspace: str) -> None:
    with pytest.raises(NotFound, match="missing"):
        async with opened(server, f"{workspace} missing"):
            pass


async def test_who_uses_a_journal_that_was_removed_is_told(
    server: PostgresServer, workspace: str, journal: PostgresJournal
) -> None:
    server.run("DELETE FROM agentfs_journals WHERE workspace = %s", workspace)
    with pytest.raises(NotFound):
        await journal.append(b"a")
    with pytest.raises(NotFound):
        await journal.tail()


async def test_a_read_goes_on_while_there_is_room(server: PostgresServer, workspace: str, journal: PostgresJournal) -> None:
    """More entries fit than one statement looks at."""
    count = 2 * PORTION_ENTRIES + 10
    number = number_of(server, workspace)
    server.run("INSERT INTO agentfs_entries SELECT %s, n, '0123456789' FROM generate_series(1, %s) AS n", number, count)
    server.run("UPDATE agentfs_journals SET tail = %s WHERE journal = %s", count, number)
    assert [record.position for record in await journal.read(FIRST)] == list(range(1, count + 1))
    for room, expected in ((-1, 0), (0, 0), (1, 0), (9, 0), (10, 1), (95, 9)):
        records = await journal.read(FIRST, limit_bytes=10 * PORTION_ENTRIES + room)
        assert len(records) == PORTION_ENTRIES + expected - (room < 0)
    assert await journal.append(b"next") == count + 1


async def test_trimming_goes_through_in_steps(server: PostgresServer, workspace: str, journal: PostgresJournal) -> None:
    number = number_of(server, workspace)
    server.run("INSERT INTO agentfs_entries SELECT %s, n, 'x' FROM generate_series(1, 1700) AS n", number)
    server.run("UPDATE agentfs_journals SET tail = 1700 WHERE journal = %s", number)
    await journal.trim(Position(1600))
    with pytest.raises(Stale):
        await journal.read(Position(1598))
    assert len(await journal.read(Position(1599))) == 101


async def test_a_gap_is_damage(server: PostgresServer, workspace: str, journal: PostgresJournal) -> None:
    for _ in range(3):
        await journal.append(b"a")
    server.run("DELETE FROM agentfs_entries WHERE journal = %s AND position = 2", number_of(server, workspace))
    with pytest.raises(Corrupt):
        await journal.read(FIRST)


async def test_a_server_that_lost_entries_is_damage(server: PostgresServer, workspace: str, journal: PostgresJournal) -> None:
    """As after a standby that was behind took over: what is appended now would be taken for what was read already."""
    for _ in range(3):
        await journal.append(b"a")
    server.run("UPDATE agentfs_journals SET tail = 1 WHERE workspace = %s", workspace)
    server.run("DELETE FROM agentfs_entries WHERE journal = %s AND position > 1", number_of(server, workspace))
    with pytest.raises(Corrupt):
        await journal.tail()
    with pytest.raises(Corrupt):
        await journal.append(b"b")


async def test_a_large_payload(journal: PostgresJournal) -> None:
    payload = os.urandom(1 << 20) * 32
    await journal.append(payload)
    assert await journal.read(FIRST) == [(1, payload)]


async def test_reads_and_beats_do_not_wait_behind_appends(
    server: PostgresServer, workspace: str, journal: PostgresJournal
) -> None:
    await journal.append(b"a")
    with server.connect() as busy, busy.transaction():
        busy.execute("SELECT * FROM agentfs_journals WHERE workspace = %s FOR UPDATE", [workspace])
        async with trio.open_nursery() as nursery:
            for _ in range(2 * CONNECTIONS_MAX):
                nursery.start_soon(journal.append, b"b")
            await until(WAITS_FOR_A_LOCK, server)
            assert await journal.tail() == 1
            assert await journal.read(FIRST) == [(1, b"a")]
            await journal.beat(1)
            assert await journal.beats() == {1: 1}
            busy.execute("COMMIT")
    assert await journal.tail() == 1 + 2 * CONNECTIONS_MAX


async def test_who_is_cancelled_leaves_at_once_and_the_journal_usable(
    server: PostgresServer, workspace: str, journal: PostgresJournal
) -> None:
    with server.connect() as busy, busy.transaction():
        busy.execute("SELECT * FROM agentfs_journals WHERE workspace = %s FOR UPDATE", [workspace])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journal.append, b"a")
            await until(WAITS_FOR_A_LOCK, server)
            nursery.cancel_scope.cancel()
    assert await journal.append(b"b") in (1, 2)
    assert (await journal.read(FIRST))[-1].payload == b"b"


async def test_closing_ends_what_is_under_way(server: PostgresServer, workspace: str, journal: PostgresJournal) -> None:
    with server.connect() as busy, busy.transaction():
        busy.execute("SELECT * FROM agentfs_journals WHERE workspace = %s FOR UPDATE", [workspace])
        async with trio.open_nursery() as nursery:

            async def append() -> None:
                with pytest.raises(Unavailable):
                    await journal.append(b"a")

            for _ in range(3):
                nursery.start_soon(append)
            await until(WAITS_FOR_A_LOCK, server)
            await journal.aclose()
    with pytest.raises(Unavailable):
        await journal.tail()


async def test_connections_are_few_and_end_with_the_journal(server: PostgresServer) -> None:
    database = server.new_database()
    mine = f"SELECT 1 FROM pg_stat_activity WHERE datname = '{database}' AND application_name = 'agentfs'"
    url = server.url(database)
    await create_postgres_journal(url, workspace="w", runtime=SystemRuntime())
    with trio.fail_after(BOUND_SECONDS):
        async with open_postgres_journal(url, workspace="w", runtime=SystemRuntime()) as journal:
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(journal.tail)
                    nursery.start_soon(journal.append, b"a")
                    nursery.start_soon(journal.wait, FIRST)
            assert 1 <= len(server.run(mine)) <= CONNECTIONS_MAX + 1
        while server.run(mine):
            await trio.lowlevel.checkpoint()


async def test_a_journal_that_is_removed_leaves_nothing_and_no_other_is_touched(
    server: PostgresServer, workspace: str, journal: PostgresJournal
) -> None:
    beside = str(uuid.uuid4())
    await create_postgres_journal(server.url(), workspace=beside, runtime=SystemRuntime())
    async with opened(server, beside) as other:
        for each in (journal, other):
            await each.append(b"a")
            await each.beat(1)
            await each.point(Position(1), b"note")
        number = number_of(server, workspace)
        await remove_postgres_journal(server.url(), workspace=workspace, runtime=SystemRuntime())
        for table in ("journals", "entries", "beats", "pointers"):
            assert server.run(f"SELECT 1 FROM agentfs_{table} WHERE journal = %s", number) == []
        assert await other.read(FIRST) == [(1, b"a")]
        assert await other.pointer() == b"note"
    with pytest.raises(NotFound):
        await remove_postgres_journal(server.url(), workspace=workspace, runtime=SystemRuntime())
    with pytest.raises(NotFound, match="is gone"):
        await journal.append(b"b")
    await journal.point(Position(2), b"of nobody")
    assert server.run("SELECT 1 FROM agentfs_pointers WHERE journal = %s", number) == []
