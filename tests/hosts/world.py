"""A workspace with its journal and its replicas behind a network, and two hosts that mount it by the journal's URL."""

import itertools
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from tests.hosts.host import Host, stop
from tests.hosts.network import Network
from tests.hosts.servers import JournalServer, port_of
from tests.hosts.writer import Record
from tests.mount.lockers import Locker
from tests.mount.place import COMMAND, NAME, wait_until
from tests.regions import Region

TTL_SECONDS: Final = 4.0
TIMEOUT_SECONDS: Final = 5.0
"""`--lease-ttl` and `--timeout` of the mounts."""

OPTIONS: Final = ("--lease-ttl", f"{TTL_SECONDS:g}", "--timeout", f"{TIMEOUT_SECONDS:g}")

NOTICE_SECONDS: Final = 15.0
"""What a busy machine may take beyond the time that is promised."""

FREE_SECONDS: Final = 1.25 * TTL_SECONDS + NOTICE_SECONDS
"""Within this a dead host's locks are others' (S56): its TTL, one beat, and notice."""

WRITES: Final = 10
"""How many operations a writer does between two things that happen."""

PROGRESS_SECONDS: Final = 90.0
"""How long some writes may take, with all retries that a fault leaves behind: a bound, not an expectation."""


class World:
    """Hosts `a` and `b`, and what was acknowledged to writers on them."""

    def __init__(self, network: Network, base: Path, journal: JournalServer, regions: Sequence[Region]) -> None:
        self.journal = journal
        self.regions = regions
        self.stores = [region for region in regions if region is not journal.region]
        ways = {"journal": (journal.port,), "s3": tuple(port_of(region) for region in self.stores)}
        self._base = base
        self.a, self.b = (Host(network, name, base / name, ways) for name in ("a", "b"))
        self._records: list[Record] = []
        self._seeds = itertools.count(1)

    def create(self) -> None:
        """Make the workspace, with a replica in each region, most of which have to take what is written."""
        places = [option for region in self.regions for option in ("--replica", region.url("replica"))]
        self.a.agentfs("create", NAME, "--journal", self.journal.url, *places, "--replication", "quorum")

    def mount(self, *hosts: Host) -> None:
        """Mount it; on all hosts unless some are named. They do it at the same time."""
        hosts = hosts or (self.a, self.b)
        with ThreadPoolExecutor(len(hosts)) as pool:
            list(pool.map(lambda host: host.mount(self.journal.url, *OPTIONS), hosts))

    def write(self, host: Host) -> "Writing":
        """Start a writer on a host."""
        seed = next(self._seeds)
        record = Record(self._base / f"record-{seed}-of-{host.name}")
        self._records.append(record)
        return Writing(host, record, seed)

    def hire_beside(self, host: Host, path: Path) -> Locker:
        """A process on a host, with a file of the mountpoint open that another host has by that name."""
        own = host.mountpoint / path.name
        wait_until(own.exists, f"{own} to appear")
        return host.hire(own)

    def assert_nothing_lost(self, host: Host) -> None:
        """What was acknowledged anywhere is there, as that host sees it. Nobody may write meanwhile."""
        records = [record.path for record in self._records]
        done = host.run(sys.executable, "-m", "tests.hosts.judge", host.mountpoint, *records, seconds=PROGRESS_SECONDS)
        assert (done.returncode, done.stdout) == (0, ""), f"on {host.name}: {done.stdout[-4000:]}{done.stderr[-4000:]}"

    def acknowledged(self) -> int:
        """How many operations were acknowledged so far, to anybody."""
        return sum(record.acknowledged() for record in self._records)

    def assert_clean(self, host: Host) -> None:
        """The workspace is free of faults, as that host sees it."""
        done = host.run(*COMMAND, "fsck", self.journal.url, "--json")
        assert done.returncode == 0, done.stdout + done.stderr

    def discard(self) -> None:
        """Leave nothing of it running."""
        for host in (self.a, self.b):
            host.discard()


class Writing:
    """A writer that works on a host."""

    def __init__(self, host: Host, record: Record, seed: int) -> None:
        self.record = record
        self._process = host.start("tests.hosts.writer", host.mountpoint, record.path, seed)

    def progress(self, count: int) -> None:
        """Return once so many more operations were acknowledged."""
        wanted = self.record.acknowledged() + count

        def come_so_far() -> bool:
            assert self.goes_on(), f"the writer ended: {self.record.failures()[-3:]}"
            return self.record.acknowledged() >= wanted

        wait_until(come_so_far, f"{count} more writes; failures: {self.record.failures()}", seconds=PROGRESS_SECONDS)

    def goes_on(self) -> bool:
        """Whether it still writes: it ends with its host, and with its mount."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Let it end after its operation."""
        stop(self._process)
