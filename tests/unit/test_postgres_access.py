"""Who may use a PostgreSQL journal and how its tables come to be: URLs, credentials, what is refused, versions."""

import os
import subprocess
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from agentfs.journal import postgres_tables
from agentfs.journal.postgres import create_postgres_journal, open_postgres_journal
from agentfs.journal.postgres_place import place_of
from agentfs.model.errors import AgentfsError, Denied, Invalid, NotFound, Unavailable
from agentfs.model.ids import Position
from agentfs.runtime import SystemRuntime
from tests.postgres_server import PostgresServer, postgres_server, shared_server

SECRET = "correct horse battery staple"
WRONG = "Tr0ub4dor"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    server = shared_server()
    server.run(f"CREATE ROLE with_password LOGIN PASSWORD '{SECRET}'")
    server.run("CREATE ROLE nobody LOGIN")
    yield server
    server.run("DROP ROLE with_password")
    server.run("DROP ROLE nobody")


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PGPASSFILE", "/nowhere")


async def refused(url: str, kind: type[AgentfsError]) -> str:
    """What is said when a journal cannot be created there, in one line and without a secret even in the traceback."""
    with trio.fail_after(60), pytest.raises(kind) as caught:
        await create_postgres_journal(url, workspace="w", runtime=SystemRuntime())
    assert type(caught.value) is kind
    for secret in (SECRET, WRONG):
        assert secret not in "".join(traceback.format_exception(caught.value))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://somebody:{WRONG}@127.0.0.1/postgres",
        f"postgresql://somebody:{WRONG}@host@127.0.0.1/postgres",
        f"postgresql://somebody@127.0.0.1/postgres?password={WRONG}",
        f"postgresql://somebody@127.0.0.1/postgres?sslpassword={WRONG}",
        f"postgresql://somebody@127.0.0.1/postgres?pasword={WRONG}",
        f"postgresql://somebody:{WRONG}/postgres",
        f"postgresql://somebody:{WRONG}",
        f"postgresql://[{WRONG}",
        "postgresql://127.0.0.1:99999/postgres",
        "postgresql://127.0.0.1/postgres?service=one",
        f"host=127.0.0.1 password={WRONG}",
        "sqlite:///journal",
        "",
    ],
)
async def test_a_url_that_will_not_do_is_refused_without_repeating_it(url: str) -> None:
    assert "URL" in await refused(url, Invalid)


async def test_a_password_in_the_url_is_refused_with_the_places_where_it_may_be() -> None:
    said = await refused(f"postgresql://somebody:{WRONG}@127.0.0.1/postgres", Invalid)
    assert "PGPASSFILE" in said
    assert "PGPASSWORD" in said


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("postgresql://me@db.example:6543/work", "postgresql://db.example:6543/work"),
        ("postgresql://me@a:1,b:2/work?sslmode=require", "postgresql://a:1,b:2/work"),
        ("postgres:///work?host=/run/postgresql", "postgresql:///run/postgresql:5432/work"),
    ],
)
def test_a_place_is_named_without_its_user(url: str, text: str) -> None:
    assert place_of(url).text == text


def test_what_the_url_leaves_open_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PGHOST", "one.example")
    monkeypatch.setenv("PGPORT", "1234")
    assert place_of("postgresql:///work").text == "postgresql://one.example:1234/work"
    assert place_of("postgresql://two.example/work").text == "postgresql://two.example:1234/work"
    monkeypatch.delenv("PGHOST")
    monkeypatch.delenv("PGPORT")
    (tmp_path / "services").write_text("[one]\nhost=three.example\nport=5678\n")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    monkeypatch.setenv("PGSERVICE", "one")
    assert place_of("postgresql:///work").text == "postgresql://three.example:5678/work"


async def test_a_wrong_password_is_denied(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", WRONG)
    assert "PGPASSFILE" in await refused(server.url(user="with_password"), Denied)


async def test_a_missing_password_is_denied(server: PostgresServer) -> None:
    assert "PGPASSFILE" in await refused(server.url(user="with_password"), Denied)


async def test_who_may_not_connect_is_denied(server: PostgresServer) -> None:
    await refused(server.url(user="nobody"), Denied)
    await refused(server.url(user="unknown"), Denied)


async def test_who_may_not_make_tables_is_denied(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", SECRET)
    assert "permission denied for schema public" in await refused(
        server.url(server.new_database(), user="with_password"), Denied
    )


async def test_a_database_that_is_not_there_is_not_found(server: PostgresServer) -> None:
    assert "missing" in await refused(server.url("missing"), NotFound)


async def test_a_server_that_is_not_there_is_unavailable(server: PostgresServer) -> None:
    await refused("postgresql://127.0.0.1:1/postgres", Unavailable)
    assert "no-such-host.invalid" in await refused("postgresql://no-such-host.invalid/postgres", Unavailable)
    await refused("postgresql:///postgres?host=/nowhere", Unavailable)


async def test_a_service_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSERVICE", "missing")
    assert "missing" in await refused("postgresql://", Unavailable)


@pytest.mark.parametrize("source", ["environment", "password file", "service file"])
async def test_passwords_come_from_the_usual_places(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str
) -> None:
    file = tmp_path / "file"
    database = server.new_database()
    url = server.url(database, user="with_password")
    match source:
        case "environment":
            monkeypatch.setenv("PGPASSWORD", SECRET)
        case "password file":
            file.write_text(f"127.0.0.1:{server.port}:*:with_password:{SECRET}\n")
            file.chmod(0o600)
            monkeypatch.setenv("PGPASSFILE", str(file))
        case _:
            where = f"host=127.0.0.1\nport={server.port}\ndbname={database}\nuser=with_password"
            file.write_text(f"[one]\n{where}\npassword={SECRET}\n")
            monkeypatch.setenv("PGSERVICEFILE", str(file))
            monkeypatch.setenv("PGSERVICE", "one")
            url = "postgresql://"
    with pytest.raises(NotFound, match="workspace"):
        async with open_postgres_journal(url, workspace="missing", runtime=SystemRuntime()):
            pass


async def test_the_host_that_takes_writes_is_found(server: PostgresServer) -> None:
    with postgres_server("default_transaction_read_only = on\n") as standby:
        url = f"postgresql://postgres@127.0.0.1:1,127.0.0.1:{standby.port},127.0.0.1:{server.port}/postgres"
        await create_postgres_journal(url, workspace="whose host was found", runtime=SystemRuntime())
        assert "read-only" in await refused(standby.url(), Unavailable)


async def test_payloads_pass_through_tls(tmp_path: Path) -> None:
    with postgres_server() as server:
        data = server.directory / "data"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
        subprocess.run([*command, "-keyout", data / "server.key", "-out", data / "server.crt"], check=True, capture_output=True)
        for name in ("server.key", "server.crt"):
            subprocess.run(["chown", "--reference", data, data / name], check=True)
            (data / name).chmod(0o600)
        server.run("ALTER SYSTEM SET ssl = on")
        server.restart()
        certificate = tmp_path / "root.crt"
        certificate.write_bytes((data / "server.crt").read_bytes())
        url = f"postgresql://postgres@localhost:{server.port}/postgres?sslmode=verify-full&sslrootcert={certificate}"
        await create_postgres_journal(url, workspace="w", runtime=SystemRuntime())
        async with (
            open_postgres_journal(url, workspace="w", runtime=SystemRuntime()) as journal,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(journal.wait, Position(1))
            payloads = [os.urandom(5 << 20), b"small"]
            for payload in payloads:
                await journal.append(payload)
            assert [record.payload for record in await journal.read(Position(0), limit_bytes=6 << 20)] == payloads
        await refused(
            f"postgresql://postgres@127.0.0.1:{server.port}/postgres?sslmode=verify-full&sslrootcert=system", Unavailable
        )


async def test_a_database_without_tables_holds_no_workspace(server: PostgresServer) -> None:
    with pytest.raises(NotFound, match="no workspace"):
        async with open_postgres_journal(server.url(server.new_database()), workspace="w", runtime=SystemRuntime()):
            pass


async def test_who_comes_first_makes_the_tables(server: PostgresServer) -> None:
    url = server.url(server.new_database())
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for n in range(8):
                nursery.start_soon(lambda n=n: create_postgres_journal(url, workspace=f"{n}", runtime=SystemRuntime()))
        for n in range(8):
            async with open_postgres_journal(url, workspace=f"{n}", runtime=SystemRuntime()) as journal:
                assert await journal.append(b"a") == 1


async def test_older_tables_are_brought_up_to_date_once(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    url = server.url(database := server.new_database())
    await create_postgres_journal(url, workspace="w", runtime=SystemRuntime())
    step = (b"ALTER TABLE agentfs_journals ADD COLUMN colour text NOT NULL DEFAULT 'blue'",)
    monkeypatch.setattr(postgres_tables, "MIGRATIONS", (*postgres_tables.MIGRATIONS, step))
    with trio.fail_after(60):

        async def use() -> None:
            async with open_postgres_journal(url, workspace="w", runtime=SystemRuntime()) as journal:
                await journal.append(b"a")

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(use)
    assert server.run("SELECT tail, colour FROM agentfs_journals", database=database) == [(8, "blue")]
    assert server.run("SELECT version FROM agentfs_schema", database=database) == [(len(postgres_tables.MIGRATIONS),)]


async def test_a_journal_of_the_first_version_is_used_on(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    url = server.url(database := server.new_database())
    for sql in postgres_tables.MIGRATIONS[0]:
        server.run(sql.decode(), database=database)
    server.run("CREATE TABLE agentfs_schema AS SELECT 1::bigint AS version", database=database)
    server.run("INSERT INTO agentfs_journals (workspace, tail) VALUES ('w', 2)", database=database)
    server.run("INSERT INTO agentfs_entries VALUES (1, 1, 'a'), (1, 2, 'b')", database=database)
    async with open_postgres_journal(url, workspace="w", runtime=SystemRuntime()) as journal:
        assert await journal.read(Position(0)) == [(1, b"a"), (2, b"b")]
        assert await journal.append(b"c") == 3
        assert await journal.pointer() == b""
        await journal.point(Position(3), b"note")
        assert await journal.pointer() == b"note"


async def test_a_step_that_fails_changes_nothing(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    url = server.url(database := server.new_database())
    await create_postgres_journal(url, workspace="w", runtime=SystemRuntime())
    step = (b"ALTER TABLE agentfs_journals ADD COLUMN colour text", b"SELECT colour FROM missing")
    with monkeypatch.context() as patched:
        patched.setattr(postgres_tables, "MIGRATIONS", (*postgres_tables.MIGRATIONS, step))
        with pytest.raises(AgentfsError):
            async with open_postgres_journal(url, workspace="w", runtime=SystemRuntime()):
                pass
    assert server.run("SELECT version FROM agentfs_schema", database=database) == [(len(postgres_tables.MIGRATIONS),)]
    async with open_postgres_journal(url, workspace="w", runtime=SystemRuntime()) as journal:
        assert await journal.append(b"a") == 1


async def test_newer_tables_are_refused(server: PostgresServer) -> None:
    url = server.url(database := server.new_database())
    await create_postgres_journal(url, workspace="w", runtime=SystemRuntime())
    server.run("UPDATE agentfs_schema SET version = 99", database=database)
    assert "upgrade agentfs" in await refused(url, Invalid)
    with pytest.raises(Invalid, match="upgrade agentfs"):
        async with open_postgres_journal(url, workspace="w", runtime=SystemRuntime()):
            pass
