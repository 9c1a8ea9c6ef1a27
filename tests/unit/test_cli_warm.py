"""`agentfs warm`: what it shows while it works and at the end, its exit code, and that Ctrl-C ends it in the daemon too."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio

from agentfs.cli.control import WarmStep
from agentfs.cli.control_server import serve_control
from agentfs.cli.main import main
from agentfs.cli.mountinfo import Mounted
from agentfs.cli.records import MountRecord, control_socket, write_record
from agentfs.model.errors import NotFound
from tests.unit.test_cli_control import FakeMount

PATIENCE_SECONDS = 60

# The command, in a process that takes a directory for a mount.
ELSEWHERE = """if 1:
    import os, sys
    from pathlib import Path
    from agentfs.cli import mountinfo
    from agentfs.cli.main import main
    mounted = mountinfo.Mounted(Path(sys.argv[1]), "fuse.agentfs", "demo", "rw", os.geteuid())
    mountinfo.all_mounts = lambda: [mounted]
    sys.exit(main(["warm", sys.argv[2]]))
"""


class Warmable(FakeMount):
    """A mount in which `tree` has two files, one of which nobody has, and `endless` never comes."""

    async def warm(self, path: bytes, report: Callable[[WarmStep], None]) -> list[str]:
        if path == b"endless":
            return await super().warm(path, report)
        if path not in (b"tree", b"."):
            raise NotFound(f"{path.decode()}: no such file in the workspace")
        report(WarmStep(bytes_done=0, bytes_total=4096, files_done=0, files_total=2, failed=0))
        await trio.lowlevel.checkpoint()
        if path == b".":
            report(WarmStep(bytes_done=4096, bytes_total=4096, files_done=2, files_total=2, failed=0))
            return []
        report(WarmStep(bytes_done=1024, bytes_total=4096, files_done=1, files_total=2, failed=1))
        return ["tree/lost: replica 1: no such object"]


@pytest.fixture
async def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Path, Warmable]]:
    """A directory that passes for a mount, and the daemon that answers for it."""
    (tmp_path / "run").mkdir()
    directory = tmp_path / "mnt"
    (directory / "tree").mkdir(parents=True)
    (directory / "endless").touch()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    found = Mounted(directory, "fuse.agentfs", "demo", "rw", os.geteuid())
    monkeypatch.setattr("agentfs.cli.mountinfo.all_mounts", lambda: [found])
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
    fake = Warmable()
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, fake, socket)
        yield directory, fake
        nursery.cancel_scope.cancel()


async def run(*arguments: str | Path) -> int:
    """The exit code of `agentfs warm …`."""
    return await trio.to_thread.run_sync(main, ["warm", *map(str, arguments)])


async def test_all_is_well(mounted: tuple[Path, Warmable], capfd: pytest.CaptureFixture[str]) -> None:
    directory, _ = mounted
    assert await run(directory) == 0
    shown = capfd.readouterr()
    assert shown.out == f"{directory}: 2 files are here; fetched 4.0 KiB\n"
    assert shown.err.splitlines()[-1] == "warming: 4.0 KiB of 4.0 KiB (2 of 2 files)"


async def test_what_could_not_be_fetched_is_named(mounted: tuple[Path, Warmable], capfd: pytest.CaptureFixture[str]) -> None:
    directory, _ = mounted
    assert await run(directory, directory / "tree") == 6
    shown = capfd.readouterr()
    assert shown.out.splitlines()[-1] == f"{directory}/tree: 1 of 2 files are here; fetched 1.0 KiB"
    assert shown.err.splitlines()[-1] == "agentfs: not fetched: tree/lost: replica 1: no such object"


async def test_records(mounted: tuple[Path, Warmable], capfd: pytest.CaptureFixture[str]) -> None:
    directory, _ = mounted
    assert await run(directory / "tree", "--json") == 6
    *steps, end = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [(step["event"], step["unit"], step["done"], step["total"]) for step in steps] == [
        ("warming", "bytes", 0, 4096),
        ("warming", "bytes", 1024, 4096),
    ]
    assert end == {
        "event": "warmed",
        "path": f"{directory}/tree",
        "bytes": 1024,
        "files": 1,
        "unfetched": 1,
        "failed": ["tree/lost: replica 1: no such object"],
    }


async def test_a_path_that_is_not_there_or_on_no_mount(
    mounted: tuple[Path, Warmable], capfd: pytest.CaptureFixture[str]
) -> None:
    directory, _ = mounted
    assert await run(directory / "missing") == 3
    assert await run(directory.parent) == 3
    assert await run() == 2
    assert capfd.readouterr().err.count("\n") == 3


async def test_an_interrupt_ends_it_in_the_daemon_too(mounted: tuple[Path, Warmable]) -> None:
    directory, fake = mounted
    with trio.fail_after(PATIENCE_SECONDS):
        warming = subprocess.Popen([sys.executable, "-c", ELSEWHERE, directory, directory / "endless"], stderr=subprocess.PIPE)
        try:
            await fake.warming.wait()
            warming.send_signal(signal.SIGINT)
            _, said = await trio.to_thread.run_sync(warming.communicate)
            await fake.given_up.wait()
        finally:
            warming.kill()
    assert warming.returncode == 130
    assert said.split() == [b"agentfs:", b"interrupted"]
