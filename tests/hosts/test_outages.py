"""The servers crash in mid-write and come back: nothing that was acknowledged is lost, and nothing is done twice."""

import errno

import pytest

from tests.hosts.network import PRIVILEGES
from tests.hosts.world import WRITES, World

pytestmark = PRIVILEGES

CRASHES = 2


def test_the_journal_crashes(world: World) -> None:
    """PostgreSQL as by `pg_ctl restart -m immediate`, S3 as by `kill -9` of its gateway."""
    world.mount()
    sessions = [host.session() for host in (world.a, world.b)]
    writers = [world.write(host) for host in (world.a, world.b)]
    for _ in range(CRASHES):
        for writing in writers:
            writing.progress(WRITES)
        world.journal.crash()
    for writing in writers:
        writing.progress(WRITES)
        writing.stop()
        # What waits for a commit waits for as long as it takes, but `open` may be refused.
        assert {number for number, _ in writing.record.failures()} <= {errno.EIO}
    assert [host.session() for host in (world.a, world.b)] == sessions
    for host in (world.a, world.b):
        world.assert_nothing_lost(host)


@pytest.mark.parametrize("world", ["postgres"], indirect=True)
def test_most_replicas_crash(world: World) -> None:
    """Nothing large can be saved until one of them is back."""
    world.mount()
    writers = [world.write(host) for host in (world.a, world.b)]
    for writing in writers:
        writing.progress(WRITES)
    for region in world.stores[-2:]:
        region.kill("gateway")
    for region in world.stores[-2:]:
        region.start()
    for writing in writers:
        writing.progress(WRITES)
        writing.stop()
        assert {number for number, _ in writing.record.failures()} <= {errno.EIO}
    for host in (world.a, world.b):
        world.assert_nothing_lost(host)
