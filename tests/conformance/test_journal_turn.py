"""Those who write to one SQLite journal have their turn one after the other."""

import itertools
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from agentfs.journal.sqlite import create_sqlite_journal, open_sqlite_journal
from agentfs.journal.sqlite_turn import open_turn
from agentfs.model.errors import Unavailable
from agentfs.runtime import SystemRuntime

BOUND_SECONDS = 60
"""After how long a test that hangs fails. Nothing is expected to take that long."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "journal.sqlite"
    create_sqlite_journal(path)
    return path


HOG = """
import sys, time, trio
from pathlib import Path
from agentfs.journal.sqlite import open_sqlite_journal
from agentfs.runtime import SystemRuntime


async def hog(path):
    async with open_sqlite_journal(path, runtime=SystemRuntime()) as journal:
        print("hogging", flush=True)
        while True:
            await journal.append(b"hog")


trio.run(hog, Path(sys.argv[1]))
"""


async def test_who_writes_without_a_pause_lets_others_have_their_turn(path: Path) -> None:
    """SQLite alone lets the others starve: of a hundred entries of theirs, thousands of the hog's came between two."""
    with trio.fail_after(BOUND_SECONDS):
        positions = await positions_beside_a_hog(path)
    between = [later - sooner - 1 for sooner, later in itertools.pairwise(positions)]
    # One turn that is under way, and one more while this process is woken; a loaded machine may add a few.
    assert statistics.median(between) <= 3


async def positions_beside_a_hog(path: Path) -> list[int]:
    async with open_sqlite_journal(path, runtime=SystemRuntime()) as journal, trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            lambda task_status: trio.run_process(
                [sys.executable, "-c", HOG, str(path)], stdout=subprocess.PIPE, check=False, task_status=task_status
            )
        )
        assert process.stdout is not None
        await process.stdout.receive_some(1)
        positions = [await journal.append(b"a") for _ in range(100)]
        process.send_signal(signal.SIGKILL)
        await process.wait()
    return positions


def test_a_process_that_is_stopped_in_its_turn_makes_others_give_up(path: Path) -> None:
    runtime = SystemRuntime()
    turn = open_turn(path, runtime)
    other = open_turn(path, runtime)
    assert turn.take_at_once()
    assert not other.take_at_once()
    with pytest.raises(Unavailable, match="busy"):
        other.take(timeout_seconds=0)
    turn.end()
    assert other.take_at_once()
    other.end()
    turn.close()
    other.close()
