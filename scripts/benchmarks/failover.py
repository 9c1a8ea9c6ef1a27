"""The trial `failover`: how long reads and writes stand still when one of three replicas goes."""

import os
import random
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from time import perf_counter_ns

from scripts.benchmarks.series import Findings, Ledger
from scripts.benchmarks.stream import BLOCK, write
from scripts.benchmarks.watching import forget, moment, new_moment, wait_for
from scripts.benchmarks.yard import Yard, asked_each, mounted_cold, on
from tests.mount.place import Mount
from tests.regions import Region

BEFORE = "all up"
FAILURES: dict[str, tuple[Callable[[Region], None], Callable[[Region], None]]] = {
    "one killed": (lambda region: region.kill("gateway"), Region.start),
    "one frozen": (lambda region: region.freeze("gateway"), Region.thaw),
}
"""What happens to the replica that reads come from, and how it is undone. One that is frozen takes requests and is silent."""

READ_BYTES = 4096
WRITE_BYTES = 256 << 10
PAUSE_SECONDS = 0.020
"""Between two reads, and between two writes, so that the machine is not what they wait for."""


class Failover:
    """A gap is the time between the ends of two reads, or of two writes, one after the other. Replication is `quorum`."""

    name = "failover"
    about = "one of three S3 servers goes in the middle of reading what is not cached, and of writing files of 256 KiB"
    rounds = 3
    needs_s3 = True

    def run(self, yard: Yard, rounds: int) -> Findings:
        """A mount for each failure; the replica comes back before the next."""
        regions = yard.regions(3)
        mount = yard.workspace("replicated", "--replication", "quorum", *on(regions))
        seconds = 0.4 if yard.is_smoke else 6.0
        # Each chunk has bytes of its own, and few of them once it is compressed: many reads must fit into the servers' memory.
        count = int(2.5 * seconds / PAUSE_SECONDS)
        mount.mount()
        write(mount.path / "f", [os.urandom(BLOCK // 64) * 64 for _ in range(count)])
        ledger = Ledger()
        reader, writer = yard.hire(), yard.hire()
        reading, writing, over = (new_moment(yard.base / name) for name in ("reading", "writing", "over"))
        for number in range(rounds):
            for failure, (fail, mend) in FAILURES.items():
                mounted_cold(mount)
                for each in (reading, writing, over):
                    forget(each)
                directory = mount.path / f"{failure} {number}"
                directory.mkdir()
                reader.begin(reads, mount.path / "f", random.sample(range(count), count), reading, over)
                writer.begin(writes, directory, writing, over)
                for each in (reading, writing):
                    wait_for(each)
                time.sleep(seconds)
                region = _nearest(mount, regions)
                began = perf_counter_ns()
                try:
                    fail(region)
                    time.sleep(seconds)
                    moment(over).mark()
                    for what, times in (("reads", reader.end()), ("writes", writer.end())):
                        _note(ledger, what, failure, times, began)
                finally:
                    mend(region)
        return Findings(self.name, figures=ledger.figures())


def _nearest(mount: Mount, regions: list[Region]) -> Region:
    """The region that was asked for most."""
    counts = [requests["get"] for requests in asked_each(mount)]
    return regions[counts.index(max(counts))]


def _note(ledger: Ledger, what: str, failure: str, times: list[int], failed: int) -> None:
    """What was done before the replica failed, and from the last of it on."""
    first = next(number for number, ended in enumerate(times) if ended > failed)
    for place, some in ((BEFORE, [*times[:first], failed]), (failure, times[first - 1 :])):
        ledger.add(f"{what}, longest gap", place, max(after - before for before, after in pairwise(some)) / 1e6, "ms")
        ledger.add(f"{what} a second", place, (len(some) - 1) / (some[-1] - some[0]) * 1e9, "/s")


def reads(path: Path, chunks: list[int], begun: Path, over: Path) -> list[int]:
    """Read some bytes of one chunk after the other until it is over: when each read ended, in nanoseconds.

    It has begun with the end of the first one.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)

        def read(number: int) -> None:
            assert len(os.pread(descriptor, READ_BYTES, chunks[number] * BLOCK)) == READ_BYTES

        return _repeated(read, begun, over)
    finally:
        os.close(descriptor)


def writes(directory: Path, begun: Path, over: Path) -> list[int]:
    """The same for writing one file after the other: when each had been closed."""
    return _repeated(lambda number: _save(directory / f"f{number}"), begun, over)


def _save(path: Path) -> None:
    path.write_bytes(os.urandom(WRITE_BYTES))


def _repeated(act: Callable[[int], None], begun: Path, over: Path) -> list[int]:
    times: list[int] = []
    while not moment(over).is_before(perf_counter_ns()):
        act(len(times))
        times.append(perf_counter_ns())
        if len(times) == 1:
            moment(begun).mark()
        time.sleep(PAUSE_SECONDS)
    return times
