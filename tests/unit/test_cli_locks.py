"""`agentfs locks`: what it lists, and that nothing is broken without a yes."""

import json
import os
import pty
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
import trio

from agentfs.cli.control import DrainStep, VersionLine
from agentfs.cli.control_server import serve_control
from agentfs.cli.main import main
from agentfs.cli.mountinfo import Mounted
from agentfs.cli.records import MountRecord, control_socket, write_record
from agentfs.model.errors import Busy
from agentfs.workspace.status import LockRow, WorkspaceStatus
from tests.unit.test_cli_control import STATUS


@dataclass(slots=True)
class FakeMount:
    """A mount whose locks are given; breaking takes those that others have."""

    rows: list[LockRow] = field(default_factory=list)
    broken: list[bytes] = field(default_factory=list)

    def status(self) -> WorkspaceStatus:
        return STATUS

    async def drain(self, report: Callable[[DrainStep], None], *, timeout_seconds: float) -> list[str]:
        raise AssertionError("nobody drains here")

    async def history(self, path: bytes) -> list[VersionLine]:
        raise AssertionError("nobody asks for versions here")

    def locks(self) -> list[LockRow]:
        return self.rows

    async def break_locks(self, path: bytes) -> list[str]:
        await trio.lowlevel.checkpoint()
        for row in self.rows:
            if row.state == "held":
                raise Busy(f"{row.path} is locked by process {row.pid} of this mount: end it")
        self.broken.append(path)
        fenced = [row.holder for row in self.rows if row.state == "leased"]
        self.rows = [row for row in self.rows if row.state != "leased"]
        return fenced


@dataclass(frozen=True, slots=True)
class Place:
    """A directory that passes for a mount, with a file, and the daemon that answers for it."""

    directory: Path
    file: Path
    fake: FakeMount

    def row(self, **facts: object) -> LockRow:
        """A lease that another mount has on the file, with what the test says otherwise."""
        usual = LockRow(
            path=self.file.name,
            ino=self.file.stat().st_ino,
            space="flock",
            mode="exclusive",
            first=0,
            last=None,
            state="leased",
            session=2,
            holder="builder",
            pid=None,
            age_seconds=61.0,
            ttl_seconds=7.5,
        )
        return msgspec.structs.replace(usual, **facts)


@asynccontextmanager
async def a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    (tmp_path / "run").mkdir()
    directory = tmp_path / "mnt"
    directory.mkdir()
    (directory / "data.db").touch()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    mounted = Mounted(directory, "fuse.agentfs", "demo", "rw", os.geteuid())
    monkeypatch.setattr("agentfs.cli.mountinfo.all_mounts", lambda: [mounted])
    socket = control_socket(directory)
    record = MountRecord(
        workspace="demo",
        source="/data/demo",
        mountpoint=str(directory),
        pid=1,
        label="",
        log="",
        control=str(socket),
        since_ns=2,
    )
    write_record(record, directory)
    place = Place(directory, directory / "data.db", FakeMount())
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, place.fake, socket)
        yield place
        nursery.cancel_scope.cancel()


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    async with a_place(tmp_path, monkeypatch) as made:
        yield made


async def run(*arguments: str | Path) -> int:
    """The exit code of `agentfs locks …`."""
    return await trio.to_thread.run_sync(main, ["locks", *map(str, arguments)])


async def test_the_table(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    place.fake.rows = [
        place.row(state="held", holder="here:1", pid=77, ttl_seconds=None),
        place.row(space="fcntl", mode="shared", first=0, last=9, state="idle", holder="here:1", ttl_seconds=None),
        place.row(space="fcntl", first=10, last=None),
        place.row(state="waiting", age_seconds=0.25),
    ]
    assert await run(place.directory) == 0
    assert [re.split(" {2,}", line) for line in capfd.readouterr().out.splitlines()] == [
        ["PATH", "KIND", "MODE", "RANGE", "STATE", "HOLDER", "PID", "AGE", "TTL"],
        ["data.db", "flock", "exclusive", "all", "held", "here:1", "77", "1 min 1 s", "-"],
        ["data.db", "fcntl", "shared", "0-9", "idle", "here:1", "-", "1 min 1 s", "-"],
        ["data.db", "fcntl", "exclusive", "10-", "leased", "builder", "-", "1 min 1 s", "7.5 s"],
        ["data.db", "flock", "exclusive", "all", "waiting", "builder", "-", "0.2 s", "7.5 s"],
    ]


async def test_no_locks(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    assert await run(place.directory) == 0
    assert capfd.readouterr().out == "no locks\n"
    assert await run(place.directory, "--json") == 0
    assert capfd.readouterr().out == ""


async def test_without_a_directory_every_mount_is_named(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    assert await run() == 0
    assert capfd.readouterr().out == f"{place.directory}:\nno locks\n"


async def test_records(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    row = place.row()
    place.fake.rows = [row]
    for arguments in (["--json"], ["list", "--json"], ["--json", place.directory]):
        assert await run(*arguments) == 0
        assert json.loads(capfd.readouterr().out) == {"mountpoint": str(place.directory), **msgspec.to_builtins(row)}


async def test_a_directory_called_break_is_listed_by_its_path(
    place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (place.directory / "break").mkdir()
    monkeypatch.chdir(place.directory)
    assert await run("./break") == 0
    assert capfd.readouterr().out == "no locks\n"


async def test_without_a_terminal_and_a_yes_nothing_is_broken(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    place.fake.rows = [place.row()]
    assert await run("break", place.file) == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert "builder" in shown.err
    assert "--yes" in shown.err
    assert place.fake.broken == []


async def test_a_yes_breaks(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    place.fake.rows = [place.row()]
    assert await run("break", place.file, "--yes") == 0
    assert capfd.readouterr().out == "fenced builder; their unsaved changes to locked files are kept in their recovery folder\n"
    assert place.fake.broken == [b"data.db"]
    assert await run("break", "--yes", "--json", place.file) == 0
    assert json.loads(capfd.readouterr().out) == {"event": "broken", "path": str(place.file), "fenced": []}


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1), ("", 1)])
async def test_a_person_is_shown_who_is_hit_and_asked(
    place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], answer: str, code: int
) -> None:
    place.fake.rows = [place.row(), place.row(ino=1, path="other", holder="bystander")]
    controlling, terminal = pty.openpty()
    with open(controlling, "wb", buffering=0) as typing, open(terminal) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        typing.write(f"{answer}\n".encode())
        assert await run("break", place.file) == code
    shown = capfd.readouterr().err
    assert "builder" in shown
    assert "recovery folder" in shown
    assert "bystander" not in shown
    assert place.fake.broken == ([b"data.db"] if code == 0 else [])


async def test_what_nobody_else_holds_needs_no_yes(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    place.fake.rows = [place.row(state="idle")]
    assert await run("break", place.file) == 0
    assert capfd.readouterr().out == f"no other mount holds a lock on {place.file}\n"


async def test_a_lock_of_this_mount_is_not_broken(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    place.fake.rows = [place.row(state="held", pid=77)]
    assert await run("break", place.file, "--yes") == 4
    assert capfd.readouterr().err == "agentfs: data.db is locked by process 77 of this mount: end it\n"


async def test_status_tells_of_leases_sessions_and_recovery(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    assert await trio.to_thread.run_sync(main, ["status", str(place.directory)]) == 0
    lines = [re.split(" {2,}", line) for line in capfd.readouterr().out.splitlines()]
    facts = {line[0]: line[1] for line in lines}
    assert facts["leases"] == "1, lost after 10.0 s of silence"
    assert facts["session 1"].endswith(", TTL 9.5 s, this mount")
    assert facts["recovered"] == "/cache/recovered-3-0"


async def test_a_path_that_is_on_no_mount_or_is_not_there(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    assert await run("break", place.directory / "missing", "--yes") == 3
    assert await run("break", place.directory.parent, "--yes") == 3
    assert capfd.readouterr().err.count("\n") == 2
