"""A host dies: what it acknowledged is on another, its locks are free in time, and it may come back."""

import fcntl
import time

from tests.hosts.conftest import Say
from tests.hosts.network import PRIVILEGES
from tests.hosts.world import FREE_SECONDS, TTL_SECONDS, WRITES, World
from tests.mount.lockers import Locker

pytestmark = PRIVILEGES


def holder_on_a(world: World) -> Locker:
    """A process on the first host that has locked a new file."""
    path = world.a.mountpoint / "held"
    path.write_bytes(b"")
    holder = world.a.hire(path)
    holder.flock(fcntl.LOCK_EX)
    return holder


def test_another_host_goes_on(world: World, say: Say) -> None:
    """One that had nothing to do with the workspace before."""
    a, b = world.a, world.b
    world.mount(a)
    holder_on_a(world)
    world.write(a).progress(WRITES)
    a.kill9()

    world.mount(b)
    mounted = time.monotonic()
    heir = b.hire(b.mountpoint / "held")
    heir.want("flock")
    heir.end(FREE_SECONDS)
    say(f"\nthe lock was had {time.monotonic() - mounted:.1f} s after mounting, with a TTL of {TTL_SECONDS:g} s")
    heir.close()
    writing = world.write(b)
    writing.progress(WRITES)
    writing.stop()
    world.assert_nothing_lost(b)
    b.umount()
    world.assert_clean(b)


def test_a_host_without_power(world: World, say: Say) -> None:
    """Nobody hears of its end, not even by that of a connection. It comes back later, with its disk."""
    a, b = world.a, world.b
    world.mount()
    holder = holder_on_a(world)
    waiter = world.hire_beside(b, holder.path)
    waiter.want("flock")
    waiter.blocks()
    world.write(a).progress(WRITES)
    a.cut("all")
    died = time.monotonic()
    a.kill9()
    waiter.end(FREE_SECONDS)
    say(f"\nthe lock was free after {time.monotonic() - died:.1f} s, with a TTL of {TTL_SECONDS:g} s")
    waiter.close()
    world.assert_nothing_lost(b)

    a.heal("all")
    world.mount(a)
    for host in (a, b):
        writing = world.write(host)
        writing.progress(WRITES)
        writing.stop()
    for host in (a, b):
        world.assert_nothing_lost(host)
        host.umount()
    world.assert_clean(b)
