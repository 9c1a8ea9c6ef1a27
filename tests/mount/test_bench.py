"""scripts/bench works: every phase measures something in every place. How fast it is, is not tested."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from scripts.benchmarks.__main__ import PHASES
from tests.mount.conftest import plain_directory
from tests.mount.place import REPOSITORY, WAIT_SECONDS, mounts_under, wait_until

BENCH = REPOSITORY / "scripts" / "bench"

pytestmark = pytest.mark.skipif(plain_directory() is not None, reason="AGENTFS_TEST_DIR: the benchmark mounts by itself")


def test_every_phase_gives_figures(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [BENCH, "--smoke", "--json", figures, "--directory", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(figures.read_text())
    assert set(found["phases"]) == {phase.name for phase in PHASES}
    for phase in PHASES:
        rows = found["phases"][phase.name]["series"]
        assert {"local", "one mount"} <= {row["place"] for row in rows}
        for row in rows:
            assert min(row["samples_us"]) > 0, row
            assert row["fastest_us"] <= row["median_us"] <= row["p99_us"], row
        assert f"\n{phase.name}: {phase.about}\n" in done.stdout
    assert found["machine"]["kernel"] in done.stdout
    assert os.listdir(tmp_path) == [figures.name]


def test_a_run_that_is_ended_leaves_nothing(tmp_path: Path) -> None:
    command = [BENCH, "--phase", "handoff", "--directory", tmp_path]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: len(mounts_under(tmp_path)) == 2 or process.poll() is not None, "the benchmark to mount")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=WAIT_SECONDS)
        assert process.returncode == 128 + signal.SIGTERM, errors
        assert not mounts_under(tmp_path)
        assert not os.listdir(tmp_path)
    finally:
        process.kill()
        process.communicate()
