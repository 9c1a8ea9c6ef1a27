"""scripts/bench works: every phase measures something in every place. How fast it is, is not tested."""

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmarks import race as race_module
from scripts.benchmarks.__main__ import PHASES, TRIALS
from scripts.benchmarks.big_file import BigFile
from scripts.benchmarks.edits import Edits
from scripts.benchmarks.passthrough import PASSTHROUGH, Passthrough, compiled
from scripts.benchmarks.race import Race
from scripts.benchmarks.start import Start
from scripts.benchmarks.subject import LOCAL, Subject
from scripts.benchmarks.tree import Tree
from scripts.benchmarks.workspaces import AGENTFS
from scripts.benchmarks.yard import Regions, has_s3, open_yard
from tests.mount.conftest import plain_directory
from tests.mount.place import REPOSITORY, WAIT_SECONDS, mounts_under, wait_until

BENCH = REPOSITORY / "scripts" / "bench"

ZERO_MAY_BE = ("GETs", "PUTs", "fetched", "bytes", "lost", "only summed up")
"""How figures begin that can be nothing."""

SIDE_BY_SIDE = (Tree, Edits, BigFile, Start)
"""What the subjects do in turn."""

pytestmark = pytest.mark.skipif(plain_directory() is not None, reason="AGENTFS_TEST_DIR: the benchmark mounts by itself")


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A directory with a short path: the S3 servers have sockets in there."""
    with tempfile.TemporaryDirectory(prefix="bench-") as path:
        yield Path(path)


def test_every_phase_gives_figures(tmp_path: Path) -> None:
    """In two runs at a time: what is measured does not matter here, and the test is over sooner."""
    measured = [*PHASES, *(trial for trial in TRIALS if has_s3() or not trial.needs_s3)]
    over_s3 = [trial.name for trial in TRIALS if trial.needs_s3]
    others = [one.name for one in measured if one.name not in over_s3]
    with ThreadPoolExecutor() as threads:
        runs = list(threads.map(partial(smoke, tmp_path), [others, over_s3] if has_s3() else [[]]))
    printed = "\n".join(output for output, _ in runs)
    phases = {name: phase for _, found in runs for name, phase in found["phases"].items()}
    assert set(phases) == {one.name for one in measured}
    for one in measured:
        assert f"\n{one.name}: {one.about}\n" in printed
        check_rows(phases[one.name])
    for phase in PHASES:
        assert {"local", "one mount"} <= {row["place"] for row in phases[phase.name]["series"]}
    for trial in TRIALS:
        assert trial in measured or f"\n{trial.name}: skipped" in printed
    check_subjects(phases, printed)
    assert runs[0][1]["machine"]["kernel"] in printed
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def smoke(directory: Path, names: list[str]) -> tuple[str, dict[str, Any]]:
    """Run these phases, or all: what is printed, and what is in the file."""
    figures = directory / f"figures-{len(names)}.json"
    options = [word for name in names for word in ("--phase", name)]
    chart = figures.with_suffix("")
    command = [BENCH, "--smoke", *options, "--json", figures, "--chart", chart, "--directory", directory]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    drawn = [chart.with_suffix(suffix) for suffix in (".png", ".svg")]
    assert "\nchart: skipped, since" in done.stdout or all(path.stat().st_size for path in drawn)
    return done.stdout, json.loads(figures.read_text())


def check_rows(found: dict[str, Any]) -> None:
    """What a phase found are numbers that can be, and nothing stands alone: each phase compares at least two places."""
    for row in found["series"]:
        assert min(row["samples_us"]) > 0, row
        assert row["fastest_us"] <= row["median_us"] <= row["p99_us"], row
    for row in found["figures"]:
        assert row["values"], row
        assert min(row["values"]) > 0 or (min(row["values"]) == 0 and row["what"].startswith(ZERO_MAY_BE)), row
    assert len({row["place"] for row in (*found["series"], *found["figures"])}) > 1


def check_subjects(phases: dict[str, Any], printed: str) -> None:
    """Each step was done by each subject that is there; who is not is said to be missing. A missed aim is no failure."""
    for trial in SIDE_BY_SIDE:
        found = phases[trial.name]
        places = {row["place"] for row in found["figures"]}
        assert {AGENTFS} <= places <= {LOCAL, PASSTHROUGH, AGENTFS}
        assert PASSTHROUGH in places or f"{PASSTHROUGH}: skipped, " in printed
        for what in {
            row["what"] for row in found["figures"] if row["unit"] in ("s", "µs", "MiB/s") and "mount" not in row["what"]
        }:
            assert {row["place"] for row in found["figures"] if row["what"] == what} == places, what
        assert {row["place"] for row in found["costs"]} == places - {LOCAL}
        assert min(row["peak_mib"] for row in found["costs"]) > 0
        if PASSTHROUGH in places:
            assert any(PASSTHROUGH in aim["what"] for aim in found["aims"]) or trial is Start


def test_a_neighbour_that_is_not_there_is_skipped(tmp_path: Path) -> None:
    """Nothing is installed for it."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("sync", "rm", "setpriv", "dirname", "bash", "env"):
        (tools / tool).symlink_to(f"/usr/bin/{tool}")
    chosen = [word for name in (LOCAL, PASSTHROUGH, "rclone") for word in ("--subject", name)]
    command = [BENCH, "--smoke", "--phase", "edits", *chosen, "--directory", tmp_path]
    done = subprocess.run(command, env={"PATH": str(tools)}, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert f"note: {PASSTHROUGH}: skipped, cc is not installed" in done.stdout
    assert "note: rclone: skipped, no S3 server is installed" in done.stdout
    assert "aim:" not in done.stdout


def test_a_peer_that_fails_is_said_to(tmp_path: Path) -> None:
    """The others go on, and so does the peer with what comes next."""

    class Peer(Subject):
        is_peer = True

    with Regions() as regions, open_yard(tmp_path, regions, is_smoke=True, peer_rounds=2) as yard:
        good, bad = Subject(LOCAL, yard.directory("good")), Peer("peer", yard.directory("bad"))
        (bad.path / "d").mkdir()
        race = Race(yard, (bad, good))
        for _ in race.rounds(1):
            race.step("make", lambda subject: partial(os.mkdir, subject.path / "d"))
            race.step("remove", lambda subject: partial(os.rmdir, subject.path / "d"))
    assert {(figure.what, figure.place) for figure in race.ledger.figures()} == {
        ("make", LOCAL),
        ("remove", LOCAL),
        ("remove", "peer"),
    }
    (note,) = race.notes
    assert note.startswith("peer: make failed in round 1: [Errno 17] File exists")


def test_passthrough_ll_serves_its_directory(tmp_path: Path) -> None:
    """What is there is seen again after mounting it anew, and nothing is mounted when it has ended."""
    program = compiled(tmp_path)
    if isinstance(program, str):
        pytest.skip(program)
    subject = Passthrough(PASSTHROUGH, tmp_path / "served", program)
    try:
        (subject.path / "f").write_text("content")
        subject.settle()
        (first,) = subject.pids()
        subject.make_cold()
        assert (subject.path / "f").read_text() == "content"
        assert subject.pids() != (first,)
        assert os.path.ismount(subject.path)
    finally:
        subject.end()
    assert not os.path.ismount(subject.path)


def test_a_peer_that_hangs_takes_no_further_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for it is ended, and nothing stays mounted; the others go on."""
    program = compiled(tmp_path)
    if isinstance(program, str):
        pytest.skip(program)

    class Peer(Passthrough):
        is_peer = True

    monkeypatch.setattr(race_module, "PATIENCE_SECONDS", 1.0)
    with Regions() as regions, open_yard(tmp_path, regions, is_smoke=True) as yard:
        peer = Peer("peer", tmp_path / "peer", program)
        yard.on_leaving(peer.end)
        race = Race(yard, (peer, Subject(LOCAL, yard.directory("local"))))
        os.kill(*peer.pids(), signal.SIGSTOP)
        for _ in race.rounds(1):
            race.step("make", lambda subject: partial(os.mkdir, subject.path / "d"))
            race.step("remove", lambda subject: partial(os.rmdir, subject.path / "d"))
        assert not os.path.ismount(peer.path)
    assert {figure.place for figure in race.ledger.figures()} == {LOCAL}
    (note,) = race.notes
    assert note.startswith("peer: make failed in round 1: process ")
    assert note.endswith("; it takes no further part")


@pytest.mark.parametrize(("phase", "name"), [("handoff", "handoff"), ("storm", "mine"), ("stream", "f0"), ("bigfile", "big")])
def test_a_run_that_is_ended_leaves_nothing(phase: str, name: str, tmp_path: Path, temporary: Path) -> None:
    """It is ended when it has made the file or directory `name` in a mount."""
    if phase == "stream" and not has_s3():
        pytest.skip("no S3 server is installed")
    command = [BENCH, "--phase", phase, "--directory", tmp_path, *(("--smoke",) if phase == "bigfile" else ())]
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
        assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
        assert not os.listdir(tmp_path)
        assert not os.listdir(temporary)
    finally:
        process.kill()
        process.communicate()
