"""Workspaces whose journal is in PostgreSQL or S3, by the command: made, found again by URL alone, taken back, refused."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentfs.cli.failures import FORBIDDEN, MISSING, TAKEN, UNAVAILABLE, USAGE
from agentfs.cli.main import main
from agentfs.model.errors import NoSpace
from tests.postgres_server import PostgresServer, shared_server
from tests.regions import MakeRegions, Region
from tests.unit.test_s3_journal_probe import ObjectServer, served

Captured = pytest.CaptureFixture[str]

SECRET = "Tr0ub4dor-and-3"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything below the test's directory, and no settings of the surroundings."""
    for name in [name for name in os.environ if name.startswith(("AGENTFS_", "PG"))]:
        monkeypatch.delenv(name)
    for variable in ("AGENTFS_ROOT", "AGENTFS_CACHE_DIR", "XDG_STATE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))


@pytest.fixture
def server() -> PostgresServer:
    return shared_server()


@pytest.fixture
def database(server: PostgresServer) -> str:
    """The URL of a database that is the test's own."""
    return server.url(server.new_database())


@pytest.fixture
def user(server: PostgresServer) -> Iterator[str]:
    """A user who needs a password."""
    server.run(f"CREATE ROLE with_password LOGIN PASSWORD '{SECRET}'")
    yield "with_password"
    server.run("DROP ROLE with_password")


@pytest.fixture
def region(regions: MakeRegions) -> Region:
    [region] = regions(1)
    return region


def keys(region: Region) -> list[str]:
    return sorted(one["Key"] for one in region.client.list_objects_v2(Bucket=region.bucket).get("Contents", []))


def run(capsys: Captured, *arguments: str | Path, code: int = 0) -> str:
    """Run a command; what it prints. What fails says why in one line, and never a secret."""
    capsys.readouterr()
    found = main([str(each) for each in arguments])
    printed = capsys.readouterr()
    assert found == code, (found, printed)
    assert SECRET not in printed.err + printed.out
    if code:
        assert len(printed.err.splitlines()) == 1, printed.err
    return printed.err if code else printed.out


def test_what_to_do_next_is_said(capsys: Captured, database: str, tmp_path: Path) -> None:
    said = run(capsys, "create", "demo", "--journal", database, "--replica", tmp_path / "disk")
    assert "agentfs mount demo DIR" in said
    assert f"agentfs mount '{database}?workspace=demo' DIR" in said


def create(capsys: Captured, url: str, *options: str | Path, name: str = "demo") -> dict[str, object]:
    return dict(json.loads(run(capsys, "create", name, "--journal", url, *options, "--json")))


# ---- made, and found by URL alone


def test_a_journal_in_a_database_is_found_by_its_url(capsys: Captured, database: str, tmp_path: Path) -> None:
    made = create(capsys, database, "--replica", tmp_path / "disk", "--history", "2h")
    url = f"{database}?workspace=demo"
    assert made["journal"] == url
    for source in (url, "demo"):
        [line] = run(capsys, "replicas", "list", source, "--json").splitlines()
        assert json.loads(line)["url"] == (tmp_path / "disk").as_uri()
        assert "no fault found" in run(capsys, "fsck", source)
    assert run(capsys, "events", url, "--json") == ""


def test_a_journal_in_s3_is_found_by_its_url(capsys: Captured, region: Region, tmp_path: Path) -> None:
    url = region.url("agents/demo")
    made = create(capsys, url)
    assert (made["journal"], made["replicas"]) == (url, [url])
    assert {key.split("/")[2] for key in keys(region)} == {"journal", "agentfs-replica.json"}
    [line] = run(capsys, "replicas", "list", url, "--json").splitlines()
    assert (json.loads(line)["url"], json.loads(line)["error"]) == (url, "")
    run(capsys, "replicas", "add", tmp_path / "disk", url)
    assert len(run(capsys, "replicas", "list", "demo", "--json").splitlines()) == 2
    assert "no fault found" in run(capsys, "fsck", url)


def test_a_database_holds_several_workspaces(capsys: Captured, database: str, tmp_path: Path) -> None:
    create(capsys, database, "--replica", tmp_path / "a", name="a")
    create(capsys, f"{database}?workspace=shared", "--replica", tmp_path / "b", name="b")
    for url, disk in ((f"{database}?workspace=a", "a"), (f"{database}?workspace=shared", "b")):
        assert (tmp_path / disk).as_uri() in run(capsys, "replicas", "list", url, "--json")


# ---- taken back


def test_a_creation_that_fails_leaves_nothing_in_the_database(
    capsys: Captured, database: str, server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("agentfs.cli.creation.put_in_place", _full)
        run(capsys, "create", "demo", "--journal", database, "--replica", tmp_path / "disk", code=8)
    name = database.rpartition("/")[2]
    for table in ("journals", "entries", "beats", "pointers"):
        assert server.run(f"SELECT 1 FROM agentfs_{table}", database=name) == []
    assert not (tmp_path / "disk").exists()
    create(capsys, database, "--replica", tmp_path / "disk")


def test_a_creation_that_fails_leaves_nothing_in_the_bucket(
    capsys: Captured, region: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("agentfs.cli.creation.put_in_place", _full)
        run(capsys, "create", "demo", "--journal", region.url("x"), code=8)
    assert keys(region) == []
    create(capsys, region.url("x"))


def _full(*_: object) -> None:
    raise NoSpace("no space left")


# ---- refused


def test_a_workspace_that_is_there_already(capsys: Captured, database: str, region: Region, tmp_path: Path) -> None:
    for url, mounted_by in ((database, f"{database}?workspace=demo"), (region.url("x"), region.url("x"))):
        replica = ("--replica", tmp_path / "disk") if url == database else ()
        create(capsys, url, *replica, "--root", tmp_path / f"first-{bool(replica)}")
        other = ("--replica", tmp_path / "other") if replica else ()
        line = run(capsys, "create", "demo", "--journal", url, *other, "--root", tmp_path / "second", code=TAKEN)
        assert f"agentfs mount '{mounted_by}' DIR" in line
    assert not (tmp_path / "second").exists()
    assert not (tmp_path / "other").exists()


def test_a_journal_without_a_workspace(capsys: Captured, region: Region, tmp_path: Path) -> None:
    create(capsys, region.url("x"), "--root", tmp_path / "first")
    [entry] = [key for key in keys(region) if "/entries/" in key]
    region.client.delete_object(Bucket=region.bucket, Key=entry)
    assert "without a workspace" in run(capsys, "create", "demo", "--journal", region.url("x"), code=TAKEN)
    assert "its first entry is missing" in run(capsys, "fsck", region.url("x"), code=USAGE)


def test_what_is_not_there(capsys: Captured, database: str, region: Region, server: PostgresServer, tmp_path: Path) -> None:
    no_database = server.url("no_such_database")
    assert "create it, or name another" in run(capsys, "fsck", f"{no_database}?workspace=demo", code=MISSING)
    line = run(capsys, "create", "demo", "--journal", no_database, "--replica", tmp_path / "disk", code=MISSING)
    assert "create it, or name another" in line
    assert "holds no workspace" in run(capsys, "fsck", f"{database}?workspace=demo", code=MISSING)
    create(capsys, database, "--replica", tmp_path / "disk", name="other")
    assert "no journal of the workspace demo" in run(capsys, "fsck", f"{database}?workspace=demo", code=MISSING)
    assert "add ?workspace=NAME" in run(capsys, "fsck", database, code=USAGE)
    assert "there is no journal in" in run(capsys, "fsck", region.url("x"), code=MISSING)
    no_bucket = region.url("x").replace(region.bucket, "no-such-bucket-anywhere")
    assert "no such bucket" in run(capsys, "fsck", no_bucket, code=FORBIDDEN)


def test_a_server_that_does_not_answer(capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, "x")
    for url in ("postgresql://postgres@127.0.0.1:1/db?workspace=demo", "s3://bucket/x?endpoint=http://127.0.0.1:1"):
        for command in (("fsck", url), ("create", "demo", "--journal", url, "--replica", tmp_path / "disk")):
            line = run(capsys, *command, code=UNAVAILABLE)
            assert "127.0.0.1:1" in line
    assert not (tmp_path / "disk").exists()


def test_wrong_credentials(
    capsys: Captured, server: PostgresServer, user: str, region: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{server.url(user=user)}?workspace=demo"
    assert "PGPASSFILE" in run(capsys, "fsck", url, code=FORBIDDEN)
    monkeypatch.setenv("PGPASSWORD", "wrong")
    assert "look at the user in the URL" in run(capsys, "fsck", url, code=FORBIDDEN)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert "the secret key is wrong" in run(capsys, "fsck", region.url("x"), code=FORBIDDEN)


def test_secrets_in_a_url(capsys: Captured, tmp_path: Path) -> None:
    for url in (f"postgresql://me:{SECRET}@127.0.0.1/db", f"postgresql://127.0.0.1/db?password={SECRET}"):
        for command in (("fsck", url), ("create", "demo", "--journal", url), ("mount", url, tmp_path)):
            assert "PGPASSFILE" in run(capsys, *command, code=USAGE)
    url = f"s3://key:{SECRET}@bucket/x"
    for command in (("fsck", url), ("create", "demo", "--journal", url), ("status", url), ("umount", url)):
        assert "AWS_SECRET_ACCESS_KEY" in run(capsys, *command, code=USAGE)


def test_another_kind_of_url(capsys: Captured) -> None:
    for command in (
        ("create", "demo", "--journal", "mysql://h/db"),
        ("mount", "mysql://h/db", "/mnt"),
        ("fsck", "mysql://h/db"),
    ):
        assert "a mysql: URL: name postgresql://" in run(capsys, *command, code=USAGE)


def test_an_endpoint_without_conditional_puts(capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, "x")
    s3 = ObjectServer(honours=frozenset())
    with served(s3):
        url = f"s3://bucket/x?endpoint={s3.endpoint}"
        line = run(capsys, "create", "demo", "--journal", url, "--replica", tmp_path / "disk", code=USAGE)
    assert "cannot keep a journal" in line
    assert "PostgreSQL" in line
    assert not (tmp_path / "disk").exists()


def test_what_is_mounted_nowhere(capsys: Captured, database: str, tmp_path: Path) -> None:
    create(capsys, database, "--replica", tmp_path / "disk")
    for source in (f"{database}?workspace=demo", "demo"):
        for command in ("status", "locks", "umount"):
            assert "is not mounted here" in run(capsys, command, source, code=MISSING)
