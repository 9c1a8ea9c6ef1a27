"""What the PostgreSQL journal makes of lost answers, silent and dying servers, failover, and servers that notify nobody."""

import contextlib
import os
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import trio
import trio.testing

from agentfs.journal.contract import Record
from agentfs.journal.postgres import PostgresJournal, create_postgres_journal, open_postgres_journal
from agentfs.model.errors import AgentfsError, Corrupt, Denied, NoSpace, Unavailable
from agentfs.model.ids import Position
from agentfs.runtime import SystemRuntime
from tests.mount.small_disk import fill, small_disk
from tests.postgres_server import PostgresServer, postgres_server, shared_server
from tests.postgres_wire import Wire, wire_to

FIRST = Position(0)
BOUND_SECONDS = 120

WAITS_FOR_A_LOCK = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'agentfs'"


@pytest.fixture
def server() -> PostgresServer:
    return shared_server()


@pytest.fixture(scope="module")
def mortal() -> Iterator[PostgresServer]:
    """A server that tests may restart and set as they like."""
    with postgres_server() as server:
        yield server


@pytest.fixture
async def wire(server: PostgresServer) -> AsyncIterator[Wire]:
    with trio.fail_after(BOUND_SECONDS):
        async with wire_to(server.port) as wire:
            yield wire


@contextlib.asynccontextmanager
async def opened(url: str, workspace: str | None = None) -> AsyncIterator[PostgresJournal]:
    """A journal that is open: a new one, or that of a workspace."""
    if workspace is None:
        workspace = await created(url)
    with trio.fail_after(BOUND_SECONDS):
        async with open_postgres_journal(url, workspace=workspace, runtime=SystemRuntime()) as journal:
            yield journal


async def created(url: str) -> str:
    workspace = str(uuid.uuid4())
    await create_postgres_journal(url, workspace=workspace, runtime=SystemRuntime())
    return workspace


def through(wire: Wire, server: PostgresServer) -> str:
    return server.url().replace(str(server.port), str(wire.port))


async def found(query: str, server: PostgresServer) -> object:
    """What the query finds, once it finds something; the test's bound is this one's."""
    while not (rows := await trio.to_thread.run_sync(server.run, query)):
        await trio.lowlevel.checkpoint()
    return rows[0][0]


async def insisted(journal: PostgresJournal, payload: bytes) -> Position:
    """Append as a mount does: an entry whose answer was lost is sent again."""
    while True:
        try:
            return await journal.append(payload)
        except Unavailable:
            await trio.sleep(0.01)


async def followed(journal: PostgresJournal, until: Callable[[list[Record]], bool]) -> list[Record]:
    """Follow as a mount does, from the beginning."""
    records: list[Record] = []
    while not until(records):
        try:
            await journal.wait(Position(len(records)))
            records += await journal.read(Position(len(records)))
        except Unavailable:
            await trio.sleep(0.01)
    return records


async def test_an_append_whose_answer_is_lost_may_have_landed(server: PostgresServer, wire: Wire) -> None:
    workspace = await created(server.url())
    async with opened(through(wire, server), workspace) as journal, opened(server.url(), workspace) as other:
        await journal.append(b"a")
        wire.hold_answers()
        async with trio.open_nursery() as nursery:

            async def append() -> None:
                with pytest.raises(Unavailable):
                    await journal.append(b"b")

            nursery.start_soon(append)
            await other.wait(Position(1))
            wire.cut()
        assert await journal.append(b"b") == 3
        assert await other.read(FIRST) == [(1, b"a"), (2, b"b"), (3, b"b")]


async def test_an_append_that_the_server_gives_up_can_be_sent_again(server: PostgresServer) -> None:
    async with opened(server.url()) as journal:
        await journal.append(b"a")
        with server.connect() as busy, busy.transaction():
            busy.execute("SELECT * FROM agentfs_journals FOR UPDATE")
            async with trio.open_nursery() as nursery:

                async def append() -> None:
                    with pytest.raises(Unavailable):
                        await journal.append(b"b")

                nursery.start_soon(append)
                backend = await found(WAITS_FOR_A_LOCK, server)
                server.run("SELECT pg_terminate_backend(%s)", backend)
        assert await journal.append(b"b") == 2
        assert await journal.read(FIRST) == [(1, b"a"), (2, b"b")]


async def test_a_silent_server_is_unavailable_within_bounds(
    server: PostgresServer, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(through(wire, server)) as journal:
        await journal.append(b"a")
        monkeypatch.setattr("agentfs.journal.postgres_connection.SILENCE_SECONDS", 0.05)
        monkeypatch.setattr("agentfs.journal.postgres_connection.CONNECT_SECONDS", 0.05)
        wire.hold_answers()
        for _ in range(2):
            for use in (
                journal.tail,
                lambda: journal.append(bytes(4 << 20)),
                lambda: journal.read(FIRST),
                lambda: journal.beat(1),
            ):
                with pytest.raises(Unavailable):
                    await use()
        wire.let_answers_pass()
        monkeypatch.undo()
        assert await journal.tail() >= 1


async def test_who_waits_learns_of_a_connection_that_breaks_in_silence(
    server: PostgresServer, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentfs.journal.postgres_news.LOOK_SECONDS", 0.05)
    async with opened(through(wire, server)) as journal:
        with trio.move_on_after(0.2):
            await journal.wait(FIRST)
        monkeypatch.setattr("agentfs.journal.postgres_connection.SILENCE_SECONDS", 0.05)
        wire.hold_answers()
        with pytest.raises(Unavailable):
            await journal.wait(FIRST)


async def test_nothing_acknowledged_is_lost_when_the_server_is_killed_in_the_middle(mortal: PostgresServer) -> None:
    names, restarts = "abc", 4
    workspace = await created(mortal.url())
    acknowledged: dict[Position, bytes] = {}
    done = trio.Event()

    async def append(name: str) -> None:
        async with opened(mortal.url(), workspace) as journal:
            n = 0
            while not done.is_set():
                payload = f"{name} {n}".encode()
                acknowledged[await insisted(journal, payload)] = payload
                n += 1
            acknowledged[await insisted(journal, f"{name} end".encode())] = f"{name} end".encode()

    async with opened(mortal.url(), workspace) as reader, trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(append, name)
        for _ in range(restarts):
            seen = len(acknowledged)
            while len(acknowledged) < seen + 100:
                await trio.sleep(0.001)
            await trio.to_thread.run_sync(mortal.restart)
        done.set()
        ends = {f"{name} end".encode() for name in names}
        records = await followed(reader, lambda records: ends <= {record.payload for record in records})
    assert [record.position for record in records] == list(range(1, len(records) + 1))
    assert acknowledged.items() <= dict(records).items()
    assert len(acknowledged) > restarts * 100
    for name in names:
        # Sent again, but never out of order.
        own = [record.payload for record in records if record.payload.startswith(name.encode())]
        numbers = [int(payload.split()[1]) for payload in own if not payload.endswith(b"end")]
        assert numbers == sorted(numbers)


async def test_a_restart_while_nothing_is_under_way_goes_unnoticed(mortal: PostgresServer) -> None:
    async with opened(mortal.url()) as journal:
        await journal.append(b"a")
        await trio.to_thread.run_sync(mortal.restart)
        assert await journal.tail() == 1
        assert await journal.append(b"b") == 2


async def test_who_waits_is_told_of_a_restart_and_listens_again(
    mortal: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentfs.journal.postgres_news.LOOK_SECONDS", 10 * BOUND_SECONDS)
    workspace = await created(mortal.url())
    async with opened(mortal.url(), workspace) as journal, opened(mortal.url(), workspace) as other:
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(Unavailable):
                    await journal.wait(FIRST)

            for _ in range(3):
                nursery.start_soon(wait)
            await found("SELECT 1 FROM pg_stat_activity WHERE query LIKE 'LISTEN%' OR query LIKE '%tail FROM%'", mortal)
            await trio.to_thread.run_sync(mortal.stop)
        mortal.start()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journal.wait, FIRST)
            await trio.testing.wait_all_tasks_blocked(0.05)
            await other.append(b"a")


async def test_what_only_looks_outlasts_a_restart(mortal: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a file is such a look: a program need not notice that the server is restarted."""
    monkeypatch.setattr("agentfs.journal.postgres_pool.RESTART_SECONDS", float(BOUND_SECONDS))
    async with opened(mortal.url()) as journal:
        await journal.append(b"a")
        await trio.to_thread.run_sync(mortal.stop)
        looked: list[object] = []

        async def look() -> None:
            looked.append((await journal.tail(), await journal.read(FIRST)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            with pytest.raises(Unavailable):
                await journal.append(b"b")
            await trio.to_thread.run_sync(mortal.start)
        assert looked == [(1, [(1, b"a")])]


async def test_a_server_that_is_down_is_unavailable(mortal: PostgresServer) -> None:
    async with opened(mortal.url()) as journal:
        mortal.stop()
        try:
            with pytest.raises(Unavailable):
                await journal.tail()
            with pytest.raises(Unavailable):
                await journal.wait(FIRST)
            with pytest.raises(Unavailable):
                async with opened(mortal.url(), "any"):
                    pass
        finally:
            mortal.start()
        assert await journal.append(b"a") == 1


async def test_a_standby_takes_over() -> None:
    """Synchronous replication, the primary killed in the middle of appends, the standby promoted: both are in the URL."""
    with postgres_server("wal_level = replica\n") as primary, primary.standby() as standby:
        primary.run("ALTER SYSTEM SET synchronous_standby_names = '*'")
        primary.run("SELECT pg_reload_conf()")
        url = f"postgresql://postgres@127.0.0.1:{standby.port},127.0.0.1:{primary.port}/postgres"
        acknowledged: dict[Position, bytes] = {}
        async with opened(url) as journal:

            async def append() -> None:
                for n in range(400):
                    acknowledged[await insisted(journal, b"%d" % n)] = b"%d" % n

            async with trio.open_nursery() as nursery:
                nursery.start_soon(append)
                while len(acknowledged) < 200:
                    await trio.sleep(0.001)
                await trio.to_thread.run_sync(primary.stop)
                await trio.to_thread.run_sync(standby.promote)
            records = await journal.read(FIRST)
            assert [record.position for record in records] == list(range(1, len(records) + 1))
            assert acknowledged.items() <= dict(records).items()
            assert len(acknowledged) == 400


async def test_a_commit_that_only_one_server_has_is_not_acknowledged(mortal: PostgresServer) -> None:
    """Who cancels a transaction that waits for its standby makes it succeed with a warning."""
    async with opened(mortal.url()) as journal:
        await journal.append(b"a")
        mortal.run("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        mortal.run("SELECT pg_reload_conf()")
        try:
            async with trio.open_nursery() as nursery:

                async def append_on_and_on() -> None:
                    # The server takes up its new settings when it comes to it.
                    while True:
                        await journal.append(b"b")

                async def append() -> None:
                    with pytest.raises(Unavailable):
                        await append_on_and_on()

                nursery.start_soon(append)
                backend = await found("SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'", mortal)
                mortal.run("SELECT pg_cancel_backend(%s)", backend)
        finally:
            mortal.run("ALTER SYSTEM RESET synchronous_standby_names")
            mortal.run("SELECT pg_reload_conf()")


async def test_a_commit_is_on_disk_although_the_database_says_it_need_not_be(server: PostgresServer) -> None:
    database = server.new_database()
    server.run(f"ALTER DATABASE {database} SET synchronous_commit = off")
    async with opened(server.url(database)) as journal:
        server.run(
            """CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN NEW.payload = convert_to(current_setting('synchronous_commit'), 'UTF8'); RETURN NEW; END $$""",
            database=database,
        )
        server.run(
            "CREATE TRIGGER note BEFORE INSERT ON agentfs_entries FOR EACH ROW EXECUTE FUNCTION note()", database=database
        )
        await journal.append(b"a")
        assert await journal.read(FIRST) == [(1, b"on")]


@contextlib.contextmanager
def failing(server: PostgresServer, database: str, sqlstate: str, *, times: int) -> Iterator[None]:
    """So many inserts of entries fail, counted across transactions."""
    with server.connect(database) as connection:
        connection.execute("CREATE SEQUENCE attempts")
        connection.execute(
            f"""CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('attempts') <= {times} THEN RAISE 'it fails' USING ERRCODE = '{sqlstate}'; END IF;
            RETURN NEW; END $$"""  # type: ignore[arg-type]
        )
        connection.execute("CREATE TRIGGER fail BEFORE INSERT ON agentfs_entries FOR EACH ROW EXECUTE FUNCTION fail()")
        yield
        connection.execute("DROP TRIGGER fail ON agentfs_entries")


@pytest.mark.parametrize("sqlstate", ["40001", "40P01"])
async def test_conflicts_are_tried_again(server: PostgresServer, sqlstate: str) -> None:
    database = server.new_database()
    async with opened(server.url(database)) as journal:
        with failing(server, database, sqlstate, times=5):
            assert await journal.append(b"a") == 1
        assert await journal.read(FIRST) == [(1, b"a")]


async def test_conflicts_without_end_are_unavailable(server: PostgresServer) -> None:
    database = server.new_database()
    async with opened(server.url(database)) as journal:
        with failing(server, database, "40001", times=1 << 30), pytest.raises(Unavailable):
            await journal.append(b"a")
        assert await journal.append(b"a") == 1


async def test_serializable_transactions_append_together(server: PostgresServer) -> None:
    """As on engines that know no other isolation: those who append at the same time are given up in turn."""
    database = server.new_database()
    server.run(f"ALTER DATABASE {database} SET default_transaction_isolation = 'serializable'")
    workspace = await created(server.url(database))
    positions: list[Position] = []

    async def append() -> None:
        async with opened(server.url(database), workspace) as journal:
            for _ in range(30):
                position = await insisted(journal, b"a")
                assert await journal.tail() >= position
                positions.append(position)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(append)
    assert sorted(positions) == list(range(1, 121))


@pytest.mark.parametrize(
    ("sqlstate", "kind"),
    [
        ("53100", NoSpace),
        ("XX001", Corrupt),
        ("XX002", Corrupt),
        ("42501", Denied),
        ("57014", Unavailable),
        ("XX000", Unavailable),
    ],
)
async def test_refusals_say_what_they_are(server: PostgresServer, sqlstate: str, kind: type[AgentfsError]) -> None:
    database = server.new_database()
    async with opened(server.url(database)) as journal:
        with failing(server, database, sqlstate, times=1), pytest.raises(kind) as caught:
            await journal.append(b"a")
        assert type(caught.value) is kind
        assert "it fails" in str(caught.value)
        assert await journal.append(b"a") == 1


async def test_a_full_disk_leaves_the_journal_usable() -> None:
    with postgres_server() as server, small_disk(server.directory / "disk", size_mib=8) as disk:
        subprocess.run(["chown", "--reference", server.directory, disk], check=True)
        async with opened(server.url()) as journal:
            await journal.append(b"a")
            server.run(f"CREATE TABLESPACE small LOCATION '{disk}'")
            server.run("ALTER TABLE agentfs_entries SET TABLESPACE small")
            fill(disk / "ballast")
            with pytest.raises(NoSpace):
                await journal.append(os.urandom(1 << 20))
            assert await journal.read(FIRST) == [(1, b"a")]
            (disk / "ballast").unlink()
            assert await journal.append(b"b") == 2
        server.stop()


IGNORED = "CREATE FUNCTION {}.pg_notify(text, text) RETURNS void LANGUAGE sql AS ''"
"""As in YugabyteDB, where it does nothing."""

REFUSED = """CREATE FUNCTION {}.pg_notify(text, text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN RAISE 'not supported' USING ERRCODE = '0A000'; END $$"""
"""As in CockroachDB."""


@pytest.mark.parametrize("notify", [IGNORED, REFUSED])
async def test_who_waits_asks_now_and_then_where_the_server_does_not_notify(server: PostgresServer, notify: str) -> None:
    database = server.new_database()
    server.run("CREATE SCHEMA other", database=database)
    server.run(notify.format("other"), database=database)
    server.run(f"ALTER DATABASE {database} SET search_path = other, pg_catalog, public")
    workspace = await created(server.url(database))
    async with opened(server.url(database), workspace) as journal, opened(server.url(database), workspace) as other:
        for count in range(3):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(journal.wait, Position(count))
                await trio.testing.wait_all_tasks_blocked(0.03)
                assert await other.append(b"a") == count + 1


async def test_nobody_is_woken_by_what_others_say(server: PostgresServer) -> None:
    """Every role may notify, whatever it may read or write."""
    workspace = await created(server.url())
    ((number,),) = server.run("SELECT journal FROM agentfs_journals WHERE workspace = %s", workspace)
    woken: list[Position] = []
    async with opened(server.url(), workspace) as journal, opened(server.url(), workspace) as other:

        async def wait() -> None:
            await journal.wait(FIRST)
            woken.append(await journal.tail())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked(0.05)
            for payload in ("1000000", "nonsense", "", "-1", "²", "9" * 100):
                server.run("SELECT pg_notify(%s, %s)", f"agentfs_{number}", payload)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert woken == []
            await other.append(b"a")
    assert woken == [1, 1]


async def test_what_was_missed_is_seen_at_the_next_look(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that appended died before the server was told to notify."""
    monkeypatch.setattr("agentfs.journal.postgres_news.LOOK_SECONDS", 0.1)
    workspace = await created(server.url())
    async with opened(server.url(), workspace) as journal, trio.open_nursery() as nursery:
        nursery.start_soon(journal.wait, FIRST)
        await trio.testing.wait_all_tasks_blocked(0.05)
        server.run(
            """WITH placed AS (UPDATE agentfs_journals SET tail = tail + 1 WHERE workspace = %s RETURNING journal, tail)
            INSERT INTO agentfs_entries SELECT journal, tail, 'a' FROM placed""",
            workspace,
        )
