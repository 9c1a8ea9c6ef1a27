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
from agentfs.journal.sqlite_turn import PATIENCE_SECONDS
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


STOPPED = """
import sys
from pathlib import Path
from agentfs.journal.sqlite_turn import _NEXT, _TURN, open_turn
from agentfs.runtime import SystemRuntime

turn = open_turn(Path(sys.argv[1]), SystemRuntime())
assert turn._lock({"next": _NEXT, "turn": _TURN}[sys.argv[2]])
print("holding", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("place", ["turn", "next"])
async def test_a_process_that_is_stopped_costs_others_patience_once(path: Path, place: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(path), place], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"holding\n"
        process.send_signal(signal.SIGSTOP)
        try:
            async with open_sqlite_journal(path, runtime=SystemRuntime()) as journal:
                # Twenty times the patience, or SQLite's own, would be more.
                with trio.fail_after(4 * PATIENCE_SECONDS + 2):
                    assert [await journal.append(b"a") for _ in range(20)] == list(range(1, 21))
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()
