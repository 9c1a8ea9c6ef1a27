"""Rounds of faults, one host or one server at a time, while both hosts write: nothing that was acknowledged is lost."""

import errno
import os
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from tests.hosts.conftest import Say
from tests.hosts.host import Host
from tests.hosts.network import PRIVILEGES
from tests.hosts.world import WRITES, World

pytestmark = PRIVILEGES

ROUNDS_OF_CI = 1
ROUNDS = int(os.environ.get("AGENTFS_HOST_ROUNDS", ROUNDS_OF_CI))
SEED = os.environ.get("AGENTFS_HOST_SEED", "")

WRITES_MAX = WRITES if ROUNDS <= ROUNDS_OF_CI else 40 * WRITES
"""In long runs some faults last longer, so that hosts are fenced and connections given up."""


@contextmanager
def killed(world: World, host: Host, source: random.Random) -> Iterator[None]:
    """All that runs on the host is killed, and it starts again with the disk that it has."""
    host.kill9()
    yield
    world.mount(host)


@contextmanager
def without_power(world: World, host: Host, source: random.Random) -> Iterator[None]:
    """The same, and nobody hears of it, not even by the end of a connection."""
    host.cut("all")
    host.kill9()
    yield
    host.heal("all")
    world.mount(host)


@contextmanager
def cut_off(world: World, host: Host, source: random.Random) -> Iterator[None]:
    """The host is cut off from the journal, from the replicas, or from both."""
    what = source.choice(["journal", "s3", "all"])
    host.cut(what)
    yield
    host.heal(what)


@contextmanager
def answers_lost(world: World, host: Host, source: random.Random) -> Iterator[None]:
    """What the host asks for is done, and it does not hear of it."""
    what = source.choice(["journal", "s3"])
    host.lose_answers(what)
    yield
    host.heal(what)


@contextmanager
def journal_crashed(world: World, host: Host, source: random.Random) -> Iterator[None]:
    """The journal's server crashes and starts again."""
    world.journal.crash()
    yield


@contextmanager
def replica_gone(world: World, host: Host, source: random.Random) -> Iterator[None]:
    """A replica's server crashes and starts again later."""
    region = source.choice(world.stores)
    region.kill("gateway")
    yield
    region.start()


Fault = Callable[[World, Host, random.Random], AbstractContextManager[None]]

FAULTS: list[Fault] = [killed, without_power, cut_off, answers_lost, journal_crashed, replica_gone]


def shuffled(source: random.Random) -> Iterator[Fault]:
    """All faults in random order, again and again."""
    while True:
        yield from source.sample(FAULTS, len(FAULTS))


@pytest.fixture
def source(say: Say) -> random.Random:
    """What decides; its seed is shown, and decides the same again as AGENTFS_HOST_SEED."""
    seed = SEED or str(random.randrange(10**6))
    say(f"\nAGENTFS_HOST_SEED={seed} AGENTFS_HOST_ROUNDS={ROUNDS}")
    return random.Random(seed)


def test_rounds(world: World, source: random.Random, say: Say) -> None:
    hosts = [world.a, world.b]
    world.mount()
    for number, fault in zip(range(1, ROUNDS + 1), shuffled(source), strict=False):
        victim, other = source.sample(hosts, 2)
        writers = {host: world.write(host) for host in hosts}
        for writing in writers.values():
            writing.progress(WRITES)
        with fault(world, victim, source):
            writers[other].progress(source.randint(WRITES, WRITES_MAX))
        if not writers[victim].goes_on():
            writers[victim] = world.write(victim)
        for writing in writers.values():
            writing.progress(WRITES)
            writing.stop()
            assert {number for number, _ in writing.record.failures()} <= {errno.EIO}
        for host in hosts:
            world.assert_nothing_lost(host)
        say(f"round {number}, {fault.__name__}, {victim.name}: {world.acknowledged()} operations acknowledged, none lost")
    for host in hosts:
        host.umount()
    world.assert_clean(world.a)
    say(f"{ROUNDS} rounds with the journal on {world.journal.what}")
