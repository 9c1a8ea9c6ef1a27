"""The trial `start`: how soon a host that has nothing works with a workspace of many files, and what each file costs."""

import os
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from time import perf_counter

from scripts.benchmarks.passthrough import PASSTHROUGH
from scripts.benchmarks.race import Race, each, peak_mib
from scripts.benchmarks.series import Aim, Findings, Ledger
from scripts.benchmarks.subject import Subject
from scripts.benchmarks.subjects import Cast
from scripts.benchmarks.workspaces import AGENTFS, OVER_S3, MountedWorkspace
from scripts.benchmarks.yard import Yard, forgotten

MAKE, FIRST_WALK, WALK = "make, each up to", "first walk, each of", "walk, each of"
"""The time for one file, in steps of so many."""

TOGETHER = (PASSTHROUGH, AGENTFS, OVER_S3)
COUNTS, SMOKE_COUNTS = (1_000, 10_000, 100_000), (40, 160)
FILES_A_DIRECTORY = 100
CONTENT = b"x" * 200

QUIET_SECONDS = 90
"""How long nothing happens after files were made, so that a checkpoint of them is there: they come at most every 30 s."""

START_SECONDS = 1
RESIDENT_MIB = 250 * 1000**2 / 2**20
FLAT = 1.2
"""How much more a file may cost among the most than among the fewest."""


class Start:
    """The tree grows: what is there at 10,000 files is part of what is there at 100,000."""

    name = "start"
    about = "mount to first byte, walking, memory and time per file with 1,000, 10,000 and 100,000 files (--smoke: 40, 160)"
    rounds = 3
    needs_s3 = False

    def run(self, yard: Yard, rounds: int) -> Findings:
        """The files are made once; each round then mounts anew so many times."""
        counts = SMOKE_COUNTS if yard.is_smoke else COUNTS
        cast = Cast(yard, TOGETHER)
        race = Race(yard, cast.subjects)
        made = 0
        for count in counts:
            for _ in race.rounds(1):
                _grow(race, made, count)
            time.sleep(yard.scaled(QUIET_SECONDS, 0))
            for _ in race.rounds(rounds):
                _visit(race, cast.subjects, count)
            made = count
        aims = _aims(race.ledger, counts)
        return Findings(self.name, (), tuple(aims), race.ledger.figures(), tuple(race.costs), tuple(cast.absent))


def _grow(race: Race, made: int, count: int) -> None:
    """Make what is missing of so many files."""
    race.step(
        f"{MAKE} {count:,}", lambda subject: partial(make, subject.path, made, count), gauge=each(count - made), durable=True
    )


def _visit(race: Race, subjects: Sequence[Subject], count: int) -> None:
    """Come to so many files with nothing, and walk through them."""
    for subject in subjects:
        if isinstance(subject, MountedWorkspace):
            _start(race.ledger, subject, count)
    # Each step lets the peak begin anew.
    mounted = {subject.name: sum(map(peak_mib, subject.pids())) for subject in subjects}
    earlier = len(race.costs)
    for what in (FIRST_WALK, WALK):
        race.step(f"{what} {count:,}", lambda subject: partial(walk, subject.path, count), gauge=each(count))
    for name, peak in mounted.items():
        peaks = (cost.peak_mib for cost in race.costs[earlier:] if cost.place == name)
        race.ledger.add(f"resident, walked {count:,}", name, max(peak, *peaks), "MiB")


def _start(ledger: Ledger, subject: MountedWorkspace, count: int) -> None:
    """From the start of `agentfs mount`, with an empty cache directory, to a byte of the last file."""
    forgotten(subject.mount)
    began = perf_counter()
    subject.mount.mount()
    mounted = perf_counter()
    with path_of(subject.path, count - 1).open("rb", buffering=0) as file:
        assert file.read(1) == CONTENT[:1]
    ledger.add(f"mount to first byte, {count:,} files", subject.name, perf_counter() - began, "s")
    ledger.add(f"of that the mount, {count:,} files", subject.name, mounted - began, "s")


def _aims(ledger: Ledger, counts: tuple[int, ...]) -> list[Aim]:
    if not ledger.has(f"{WALK} {counts[0]:,}", AGENTFS):
        return []
    few, most = counts[0], counts[-1]
    start, resident = f"mount to first byte, {most:,} files", f"resident, walked {most:,}"
    aims = [
        Aim(f"{start}: {AGENTFS}", ledger.median(start, AGENTFS), START_SECONDS, "s"),
        Aim(f"{resident}: {AGENTFS}", ledger.median(resident, AGENTFS), round(RESIDENT_MIB), "MiB"),
    ]
    for what in (MAKE, WALK):
        ratio = ledger.median(f"{what} {most:,}", AGENTFS) / ledger.median(f"{what} {few:,}", AGENTFS)
        aims.append(Aim(f"{what} {most:,} ÷ {few:,}: {AGENTFS}", ratio, FLAT, "×"))
    return aims


def path_of(root: Path, number: int) -> Path:
    """Where a file is."""
    return root / f"d{number // FILES_A_DIRECTORY:04}" / f"f{number}"


def make(root: Path, first: int, last: int) -> None:
    """Make these files."""
    for number in range(first, last):
        path = path_of(root, number)
        if number % FILES_A_DIRECTORY == 0 or number == first:
            path.parent.mkdir(exist_ok=True)
        path.write_bytes(CONTENT)


def walk(root: Path, count: int) -> None:
    """List everything, and look at each file's attributes."""
    sizes = [entry.stat().st_size for directory in os.scandir(root) for entry in os.scandir(directory)]
    assert (len(sizes), statistics.mode(sizes)) == (count, len(CONTENT)), f"{len(sizes)} of {count} files are there"
