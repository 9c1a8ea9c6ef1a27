"""`agentfs replicas` on a workspace that is mounted nowhere: what it prints, refuses and leaves behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from agentfs.cli.failures import DAMAGED, INTERRUPTED, MISSING, TAKEN, UNAVAILABLE, USAGE
from agentfs.cli.main import main
from agentfs.cli.replica_work import Target
from agentfs.cli.stack import open_source, open_stack
from agentfs.cli.workspace_source import source_of
from agentfs.model.errors import Unavailable
from agentfs.model.ids import ROOT_INO
from agentfs.runtime import SystemRuntime
from agentfs.workspace.replica_set import ReplicaSet
from agentfs.workspace.settings import Settings

NAME = "demo"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where everything is; the workspace has two replicas beside its journal and a file that is too big to be inline."""
    for variable in ("AGENTFS_ROOT", "AGENTFS_CACHE_DIR", "XDG_STATE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    assert main(["create", NAME]) == 0
    write_file(tmp_path)
    return tmp_path


def target(home: Path) -> Target:
    return Target(source_of(NAME, home / "agentfs_root"), home / "agentfs_cache_dir")


def write_file(home: Path) -> None:
    async def write() -> None:
        source, cache_dir = target(home)
        settings, runtime = Settings(host="h", pid=1), SystemRuntime()
        async with (
            open_source(source, runtime=runtime) as opened,
            open_stack(opened, cache_dir=cache_dir, settings=settings, runtime=runtime) as workspace,
        ):
            made = await workspace.names.make(ROOT_INO, b"file", 0o100644, uid=0, gid=0, wait=True)
            handle = await workspace.files.open(made.ino, os.O_WRONLY)
            await workspace.files.write(handle.number, 0, os.urandom(100_000))
            await workspace.files.flush(handle.number)
            workspace.files.release(handle.number)

    trio.run(write)


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> list[dict[str, Any]]:
    """Run a verb with --json; its records."""
    capsys.readouterr()
    done = main(["replicas", *arguments, "--json"])
    printed = capsys.readouterr()
    assert done == code, printed
    return [json.loads(line) for line in printed.out.splitlines()]


def segments(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*.seg"))


def test_the_list_says_how_each_does(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run(capsys, "list", NAME)
    assert [(row["replica"], row["missing_segments"], row["error"]) for row in rows] == [(1, 0, ""), (2, 0, "")]
    assert all(row["latency_seconds"] > 0 for row in rows)
    assert main(["replicas", NAME]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["REPLICA", "STATE", "LATENCY", "LACKS", "BEHIND", "URL"]
    assert table[2].split()[:2] == ["2", "up"]


def test_the_list_says_which_does_not_answer(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "agentfs_root/demo/replicas/2").rename(home / "away")
    rows = run(capsys, "list", NAME, code=UNAVAILABLE)
    assert [bool(row["error"]) for row in rows] == [False, True]
    assert main(["replicas", "list", NAME]) == UNAVAILABLE
    printed = capsys.readouterr()
    assert printed.out.splitlines()[2].split()[:2] == ["2", "down"]
    assert printed.err.startswith("replica 2: ")


def test_the_list_leaves_the_journal_alone(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = home / "agentfs_root/demo/journal.sqlite"
    before = journal.read_bytes()
    run(capsys, "list", NAME)
    assert journal.read_bytes() == before


def test_a_new_replica_is_given_what_there_is(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    added, *progress, filled = run(capsys, "add", str(home / "third"), NAME)
    assert added == {"event": "added", "replica": 3, "url": (home / "third").as_uri()}
    assert progress[-1]["done"] == progress[-1]["total"]
    assert filled == {"event": "filled", "replica": 3}
    assert len(segments(home / "third")) == 1
    assert len(run(capsys, "list", NAME)) == 3


def test_nobody_waits_with_no_wait(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [record["event"] for record in run(capsys, "add", str(home / "third"), NAME, "--no-wait")] == ["added"]


def test_a_replica_goes_and_its_number_with_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    third = home / "third"
    run(capsys, "add", str(third), NAME)
    assert run(capsys, "remove", "3", NAME) == [{"event": "removed", "replica": 3, "url": third.as_uri()}]
    assert len(segments(third)) == 1
    assert run(capsys, "add", str(third), NAME)[0]["replica"] == 4
    assert [row["replica"] for row in run(capsys, "list", NAME)] == [1, 2, 4]


def test_what_cannot_be_a_replica_is_left_as_it_was(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "full").mkdir()
    (home / "full/photo").touch()
    assert main(["create", "other", "--replica", str(home / "taken")]) == 0
    inside = home / "agentfs_root/demo/replicas/1/deeper"
    for place, code in ((home / "full", TAKEN), (home / "taken", TAKEN), (inside, USAGE)):
        before = sorted(home.rglob("*.json"))
        run(capsys, "add", str(place), NAME, code=code)
        assert sorted(home.rglob("*.json")) == before
        assert not inside.exists()
    assert len(run(capsys, "list", NAME)) == 2


def test_a_place_is_unmarked_when_the_workspace_refuses_it(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def taken(replicas: ReplicaSet) -> int:
        return 2

    with monkeypatch.context() as patched:
        patched.setattr(ReplicaSet, "next_number", taken)
        run(capsys, "add", str(home / "third"), NAME, code=TAKEN)
    assert not (home / "third").exists()


def test_a_place_stays_marked_when_nobody_knows_whether_it_is_a_member(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer of the journal is lost: had it taken the entry, mounts would find a member without its marker."""
    add = ReplicaSet.add

    async def unsure(replicas: ReplicaSet, *arguments: Any) -> None:
        await add(replicas, *arguments)
        raise Unavailable("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(ReplicaSet, "add", unsure)
        run(capsys, "add", str(home / "third"), NAME, code=UNAVAILABLE)
    assert [row["error"] for row in run(capsys, "list", NAME)] == ["", "", ""]


def test_what_would_be_lost_is_not_removed_by_mistake(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "add", str(home / "third"), NAME)
    run(capsys, "remove", "1", NAME)
    run(capsys, "remove", "2", NAME)
    (home / "third").rename(home / "away")
    run(capsys, "add", str(home / "fourth"), NAME, "--no-wait")
    assert "replica 3 alone holds 1 segment" in error_of(capsys, "remove", "3", NAME)
    assert len(run(capsys, "list", NAME, code=UNAVAILABLE)) == 2
    run(capsys, "remove", "3", NAME, "--force")
    assert [row["replica"] for row in run(capsys, "list", NAME)] == [4]


def test_ctrl_c_leaves_in_good_order(home: Path) -> None:
    """Nobody is to wait for the session to be judged dead."""
    (home / "agentfs_root/demo/replicas/2").rename(home / "away")
    shutil.rmtree(home / "agentfs_root/demo/replicas/1/segments")
    command = [sys.executable, "-m", "agentfs", "replicas", "add", str(home / "third"), NAME]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "0 B of 97.7 KiB" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.splitlines()[-1]) == (INTERRUPTED, "agentfs: interrupted")
    assert not list((home / "agentfs_cache_dir").rglob("owner.json"))


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(["replicas", *arguments])
    return capsys.readouterr().err


def test_removing_what_there_is_not(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "remove", "7", NAME, code=MISSING)
    run(capsys, "remove", "1", NAME)
    run(capsys, "remove", "2", NAME, code=USAGE)


def test_scrub_reports_and_repairs(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [lost] = segments(home / "agentfs_root/demo/replicas/2")
    body = lost.read_bytes()
    lost.unlink()
    scrubbed = {record["replica"]: record for record in run(capsys, "scrub", NAME) if record["event"] == "scrubbed"}
    assert (scrubbed[1]["missing"], scrubbed[2]["missing"], scrubbed[2]["repaired"]) == (0, 1, 1)
    assert lost.read_bytes() == body
    assert main(["replicas", "scrub", "--deep", NAME]) == 0
    assert capsys.readouterr().out.splitlines() == [f"✓ replica {number}: 1 object, nothing wrong" for number in (1, 2)]


def test_scrub_tells_what_is_lost_for_good(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in segments(home):
        path.unlink()
    assert main(["replicas", "scrub", NAME]) == DAMAGED
    assert "✗ replica 2: 0 objects, 1 missing, 1 NOT repaired" in capsys.readouterr().out


def test_scrub_tells_what_it_could_not_look_at(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "agentfs_root/demo/replicas/2").rename(home / "away")
    scrubbed = [record for record in run(capsys, "scrub", NAME, code=UNAVAILABLE) if record["event"] == "scrubbed"]
    assert [bool(record["error"]) for record in scrubbed] == [False, True]


@pytest.mark.parametrize("verb", [["list"], ["add", "/x"], ["remove", "1"], ["scrub"]])
def test_an_unknown_workspace(home: Path, capsys: pytest.CaptureFixture[str], verb: list[str]) -> None:
    assert main(["replicas", *verb, "nowhere"]) == MISSING
    assert "agentfs create nowhere" in capsys.readouterr().err
