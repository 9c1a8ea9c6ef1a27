"""A number in a file, to which processes on two hosts add one under a lock, again and again: no addition is lost."""

from pathlib import Path

import pytest

from tests.hosts.counting import counted
from tests.hosts.host import Host
from tests.hosts.network import PRIVILEGES
from tests.hosts.world import PROGRESS_SECONDS, World
from tests.mount.place import wait_until

pytestmark = PRIVILEGES

PROCESSES = 2
"""How many count on each host."""

ROUNDS = 20
FEW_ROUNDS = 5
"""How often each adds one; and after how often of each a host dies."""

ENDLESS = 1_000_000


class Counters:
    """Processes on a host that count, with a record for each."""

    def __init__(self, host: Host, records: Path, rounds: int) -> None:
        self.records = [records / f"counted-{host.name}-{number}" for number in range(PROCESSES)]
        path = host.mountpoint / "number"
        self.processes = [host.start("tests.hosts.counting", path, record, rounds) for record in self.records]

    def counted(self) -> int:
        """What they added and was acknowledged."""
        return sum(map(counted, self.records))

    def finish(self) -> None:
        """Return when all have ended, which they must do in good order."""
        for process in self.processes:
            output, _ = process.communicate(timeout=PROGRESS_SECONDS)
            assert process.returncode == 0, output


@pytest.fixture
def number(world: World) -> Path:
    """A new file with a number, on both hosts."""
    world.mount()
    path = world.a.mountpoint / "number"
    path.write_bytes(b"0")
    wait_until((world.b.mountpoint / "number").exists, "the file to appear")
    return path


def test_a_counter(world: World, number: Path, tmp_path: Path) -> None:
    crowd = [Counters(host, tmp_path, ROUNDS) for host in (world.a, world.b)]
    for counters in crowd:
        counters.finish()
    for host in (world.a, world.b):
        assert (host.mountpoint / "number").read_bytes() == b"%d" % (2 * PROCESSES * ROUNDS)


def test_a_counter_when_a_host_dies(world: World, number: Path, tmp_path: Path) -> None:
    near, far = (Counters(host, tmp_path, ENDLESS) for host in (world.a, world.b))

    def go_on(counters: Counters) -> None:
        wanted = counters.counted() + PROCESSES * FEW_ROUNDS
        wait_until(lambda: counters.counted() >= wanted, "counting to go on", seconds=PROGRESS_SECONDS)

    for counters in (near, far):
        go_on(counters)
    world.a.kill9()
    go_on(far)
    world.b.kill9()
    world.mount(world.a)
    acknowledged = near.counted() + far.counted()
    # Of the round that each was in, both outcomes are right.
    assert acknowledged <= int(number.read_bytes()) <= acknowledged + 2 * PROCESSES
