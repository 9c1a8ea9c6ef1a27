"""scripts/bench works: every phase measures something in every place. How fast it is, is not tested."""

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmarks.__main__ import PHASES, TRIALS
from scripts.benchmarks.yard import has_s3
from tests.mount.conftest import plain_directory
from tests.mount.place import REPOSITORY, WAIT_SECONDS, mounts_under, wait_until

BENCH = REPOSITORY / "scripts" / "bench"

ZERO_MAY_BE = ("GETs", "PUTs", "fetched", "bytes", "lost", "only summed up")
"""How figures begin that can be nothing."""

pytestmark = pytest.mark.skipif(plain_directory() is not None, reason="AGENTFS_TEST_DIR: the benchmark mounts by itself")


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A directory with a short path: the S3 servers have sockets in there."""
    with tempfile.TemporaryDirectory(prefix="bench-") as path:
        yield Path(path)


def test_every_phase_gives_figures(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [BENCH, "--smoke", "--json", figures, "--directory", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(figures.read_text())
    measured = [*PHASES, *(trial for trial in TRIALS if has_s3() or not trial.needs_s3)]
    assert set(found["phases"]) == {one.name for one in measured}
    for one in measured:
        assert f"\n{one.name}: {one.about}\n" in done.stdout
        check_rows(found["phases"][one.name])
    for phase in PHASES:
        assert {"local", "one mount"} <= {row["place"] for row in found["phases"][phase.name]["series"]}
    for trial in TRIALS:
        assert trial in measured or f"\n{trial.name}: skipped" in done.stdout
    assert found["machine"]["kernel"] in done.stdout
    assert os.listdir(tmp_path) == [figures.name]


def check_rows(found: dict[str, Any]) -> None:
    """What a phase found are numbers that can be, and nothing stands alone: each phase compares at least two places."""
    for row in found["series"]:
        assert min(row["samples_us"]) > 0, row
        assert row["fastest_us"] <= row["median_us"] <= row["p99_us"], row
    for row in found["figures"]:
        assert row["values"], row
        assert min(row["values"]) > 0 or (min(row["values"]) == 0 and row["what"].startswith(ZERO_MAY_BE)), row
    assert len({row["place"] for row in (*found["series"], *found["figures"])}) > 1


@pytest.mark.parametrize(("phase", "name"), [("handoff", "handoff"), ("storm", "mine"), ("stream", "f0")])
def test_a_run_that_is_ended_leaves_nothing(phase: str, name: str, tmp_path: Path, temporary: Path) -> None:
    """It is ended when it has made the file or directory `name` in a mount."""
    if phase == "stream" and not has_s3():
        pytest.skip("no S3 server is installed")
    command = [BENCH, "--phase", phase, "--directory", tmp_path]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(
            lambda: any(Path(point, name).exists() for point in mounts_under(tmp_path)) or process.poll() is not None,
            "the benchmark to begin with its work",
        )
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=2 * WAIT_SECONDS)
        assert process.returncode == 128 + signal.SIGTERM, errors
        assert not mounts_under(tmp_path)
        assert not os.listdir(tmp_path)
        assert not os.listdir(temporary)
    finally:
        process.kill()
        process.communicate()
