"""The trial `engines`: what a commit, a lock, another mount's news and a cold start cost over each kind of journal."""

import os
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter, perf_counter_ns

from scripts.benchmarks.ground import hired
from scripts.benchmarks.handoff import Handoff
from scripts.benchmarks.phase import Place, Stage, in_turn, settle
from scripts.benchmarks.series import WARM_UP, Findings, Ledger, Series, Tally
from scripts.benchmarks.visibility import Visibility
from scripts.benchmarks.yard import Yard, forgotten
from tests.mount.place import Mount, wait_until
from tests.postgres_server import has_postgres, postgres_server

EMBEDDED, POSTGRES, S3 = "embedded", "PostgreSQL", "S3"

COMMIT = "commit (mkdir)"
COLD = "mount with an empty cache, to a byte of the last of {:,} files"
CONTENT = b"x" * 200


class Engines:
    """Two mounts of a workspace for each journal. The replicas are two directories each: only the journals differ."""

    name = "engines"
    about = "over each journal: a commit, a lock that goes to and fro between two mounts, from close to visible, a cold mount"
    rounds = 100
    needs_s3 = True

    def run(self, yard: Yard, rounds: int) -> Findings:
        """Each round does each thing over each journal; only the cold mounts are done a few times."""
        mounts, notes = _mounts(yard)
        with ExitStack() as stack:
            stages = {what: _stage(yard, mounts, what, stack) for what in ("commits", "locks", "news")}
            series = _commits(stages["commits"], WARM_UP + rounds)
            series += Handoff().measured(stages["locks"], WARM_UP + rounds)
            series += Visibility().measured(stages["news"], WARM_UP + rounds)
        ledger = Ledger()
        count = yard.scaled(1000, 20)
        for name, (mount, beside) in mounts.items():
            beside.umount()
            (mount.path / "many").mkdir()
            for number in range(count):
                (mount.path / "many" / f"f{number}").write_bytes(CONTENT)
            for _ in range(yard.scaled(5, 1)):
                ledger.add(COLD.format(count), name, _start(mount, mount.path / "many" / f"f{count - 1}"), "s")
        return Findings(self.name, series, figures=ledger.figures(), notes=notes)


def _mounts(yard: Yard) -> tuple[dict[str, tuple[Mount, Mount]], tuple[str, ...]]:
    """Two mounts for each journal that can be had, by its name, and who is missing."""
    (region,) = yard.regions(1)
    journals = {EMBEDDED: (), S3: ("--journal", region.url("engines"))}
    notes: tuple[str, ...] = ()
    if has_postgres():
        server = ExitStack()
        yard.on_leaving(server.close)
        journals[POSTGRES] = ("--journal", server.enter_context(postgres_server()).url())
    else:
        notes = (f"{POSTGRES}: skipped, since no server of it is installed: Debian's `postgresql`",)
    mounts = {}
    for name, journal in journals.items():
        replicas = [yard.directory(f"{name}-replica-{number}") for number in (1, 2)]
        options = [word for replica in replicas for word in ("--replica", str(replica))]
        mount = yard.workspace(name, *journal, *options)
        mount.mount()
        beside = mount.beside("b")
        yard.on_leaving(beside.discard)
        beside.mount()
        mounts[name] = (mount, beside)
    return mounts, notes


def _stage(yard: Yard, mounts: dict[str, tuple[Mount, Mount]], what: str, stack: ExitStack) -> Stage:
    """A directory in each workspace."""
    places = []
    for name, (mount, beside) in mounts.items():
        (mount.path / what).mkdir()
        there = beside.path / what
        wait_until(there.is_dir, "the second mount to see what the first made")
        places.append(Place(name, mount.path / what, there, is_mount=True))
    return Stage(tuple(places), (), lambda: hired(stack), yard.directory(what))


def _commits(stage: Stage, rounds: int) -> tuple[Series, ...]:
    """What waits for a commit and does nothing else."""
    tally = Tally()
    workers = {place: stage.hire() for place in stage.places}
    for number, place in in_turn(stage.places, rounds):
        settle()
        tally.add(COMMIT, place.name, [workers[place].do(made, place.here / f"d{number}")])
    return tally.series()


def made(path: Path) -> int:
    """Make a directory; how long that took, in nanoseconds."""
    began = perf_counter_ns()
    os.mkdir(path)
    return perf_counter_ns() - began


def _start(mount: Mount, path: Path) -> float:
    """From the start of `agentfs mount` to a byte of a file, in seconds."""
    forgotten(mount)
    began = perf_counter()
    mount.mount()
    with path.open("rb", buffering=0) as file:
        assert file.read(1) == CONTENT[:1]
    return perf_counter() - began
