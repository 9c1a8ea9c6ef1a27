"""Rounds of faults under load: no acknowledged byte is lost, no read is wrong, and what the mode promises stays available."""

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import pytest

from tests.chaos.load import Load
from tests.chaos.world import OPTIONS, World
from tests.mount.place import wait_until

SEED = os.environ.get("AGENTFS_CHAOS_SEED", "")
ROUNDS_OF_CI = 2
ROUNDS = int(os.environ.get("AGENTFS_CHAOS_ROUNDS", ROUNDS_OF_CI))
ROUNDS_OF_ONE = 3
"""Rounds in which the same region is concerned, before it is waited for and another one may be."""

WRITERS = ("w1", "w2")
WRITES, READS = 20, 10
"""What has to be done, and right, while a fault lasts: writes of all, reads of each reader."""

WRITES_MAX = WRITES if ROUNDS <= ROUNDS_OF_CI else 150
"""In long runs some faults last longer."""

NAME_LAG_SECONDS = 5.0
"""A bound, not an expectation, of how late a new name may be on another mount."""

REMOUNT_SECONDS = 60.0
"""For two mounts: each waits up to `--timeout` for puts that are still under way to a region that is frozen."""

SLOWEST_SECONDS = 20.0
"""With 3 s of `--timeout` no operation may take longer: an overwrite of a big file waits for the commits before it too."""


@dataclass
class Round:
    """What a fault works on: `region` is the number of the replica that it concerns."""

    world: World
    load: Load
    region: int
    source: random.Random


@contextmanager
def killed(here: Round) -> Iterator[None]:
    """A region is killed, all of it or its gateway, and started again."""
    region = here.world.regions[here.region - 1]
    region.kill(here.source.choice(["", "gateway"]))
    yield
    region.start()


@contextmanager
def frozen(here: Round) -> Iterator[None]:
    """A region takes connections and answers nothing."""
    region = here.world.regions[here.region - 1]
    region.freeze("gateway")
    yield
    region.thaw("gateway")


@contextmanager
def denied(here: Round) -> Iterator[None]:
    """A region refuses everything."""
    region = here.world.regions[here.region - 1]
    region.deny()
    yield
    region.allow()


@contextmanager
def corrupted(here: Round) -> Iterator[None]:
    """Objects of a region are overwritten with other bytes, cut, and deleted; scrub finds what no reader came upon."""
    spoilt = here.world.spoil_some(here.region, here.source, 9)
    assert spoilt
    yield
    here.world.scrub()


@contextmanager
def killed_mount(here: Round) -> Iterator[None]:
    """The daemon is killed, and the mount made again over what it left."""
    with here.load.away(here.world.near.path, idle=False):
        here.world.near.kill9()
    yield


@contextmanager
def lost_host(here: Round) -> Iterator[None]:
    """The daemon is killed, while a region is out, and the mount made on a new host."""
    region = here.world.regions[here.region - 1]
    region.kill("gateway")
    with here.load.away(here.world.near.path, idle=False):
        here.world.near.kill9(remount=False)
        here.world.fresh_cache(here.world.near)
        here.world.near.mount(*OPTIONS)
    yield
    region.start()


@contextmanager
def remounted(here: Round) -> Iterator[None]:
    """Both mounts are unmounted and made anew, one of them as on a new host, while a region is frozen."""
    region = here.world.regions[here.region - 1]
    region.freeze("gateway")
    before = time.monotonic()
    for mount, fresh in ((here.world.near, False), (here.world.far, True)):
        with here.load.away(mount.path, idle=True):
            mount.umount()
            if fresh:
                here.world.fresh_cache(mount)
            mount.mount(*OPTIONS)
    assert time.monotonic() - before < REMOUNT_SECONDS
    yield
    region.thaw("gateway")


Fault = Callable[[Round], AbstractContextManager[None]]

FAULTS: list[Fault] = [killed, frozen, denied, corrupted, killed_mount, lost_host, remounted]


def shuffled(source: random.Random) -> Iterator[Fault]:
    """All faults in random order, again and again."""
    while True:
        yield from source.sample(FAULTS, len(FAULTS))


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Shows a line at once."""

    def show(line: str) -> None:
        with capsys.disabled():
            print(line, flush=True)

    return show


@pytest.fixture
def source(say: Callable[[str], None]) -> random.Random:
    """What decides; its seed is shown, and decides the same again as AGENTFS_CHAOS_SEED."""
    seed = SEED or str(random.randrange(10**6))
    say(f"\nAGENTFS_CHAOS_SEED={seed} AGENTFS_CHAOS_ROUNDS={ROUNDS}")
    return random.Random(seed)


@contextmanager
def loaded(world: World, source: random.Random, *options: str) -> Iterator[Load]:
    """Two writers and a reader on the near mount, and two readers on the far one, which have done something when it begins."""
    load = Load(str(source.random()))
    world.near.mount(*OPTIONS, *options)
    world.renew(world.far)
    for name in WRITERS:
        load.write(world.near.path, name)
    load.read(world.near.path, "near")
    for name in ("far1", "far2"):
        load.read(world.far.path, name, name_lag_seconds=NAME_LAG_SECONDS)
    try:
        load.progress(writes=WRITES, reads=READS)
        yield load
    finally:
        load.end()


def assert_equal_in_the_end(world: World, load: Load) -> None:
    """Every replica has everything, and a new host reads it; nobody may write meanwhile."""
    world.wait_until_equal()
    world.assert_clean()
    world.renew(world.far)
    load.check(world.far.path, "in the end")


def test_quorum(world: World, source: random.Random, say: Callable[[str], None]) -> None:
    """One region at a time is out, and nobody is refused anything."""
    world.create("quorum")
    with loaded(world, source) as load:
        region = source.randint(1, 3)
        for number, fault in zip(range(1, ROUNDS + 1), shuffled(source), strict=False):
            if number % ROUNDS_OF_ONE == 0:
                # What only two regions have may be in the one that goes out next.
                world.wait_until_equal()
                region = source.randint(1, 3)
            with load.away(world.far.path, idle=True):
                world.renew(world.far)
            with fault(Round(world, load, region, source)):
                load.progress(writes=source.randint(WRITES, WRITES_MAX), reads=READS)
            with load.paused():
                what = f"round {number}, {fault.__name__}, region {region}"
                load.check(world.near.path, f"{what}, near")
                wait_until(lambda: world.far.position() >= world.near.position(), "the far mount to have heard of everything")
                load.check(world.far.path, f"{what}, far")
            assert not load.refused, load.refused
            say(f"{what}: {load.acknowledged} writes, {load.reads.total()} reads")
        with load.paused():
            assert_equal_in_the_end(world, load)
        say(f"slowest operation: { {name: round(seconds, 1) for name, seconds in load.slowest_seconds.items()} } s")


def test_sync(world: World, source: random.Random) -> None:
    """With a region out writes that need it fail in time, reads go on; what failed goes out when it is back."""
    world.create("sync")
    with loaded(world, source, "--timeout", "3") as load:
        region = source.choice(world.regions)
        region.kill("gateway")
        wait_until(lambda: len(load.refused) == len(WRITERS), "both writers to be refused something")
        load.progress(writes=0, reads=READS)
        region.start()
        load.progress(writes=WRITES, reads=READS)
        assert load.refused.keys() == {(name, "EIO") for name in WRITERS}
        assert max(load.slowest_seconds.values()) < SLOWEST_SECONDS
        with load.paused():
            assert_equal_in_the_end(world, load)
            load.check(world.near.path, "after the outage")


def test_async(world: World, source: random.Random) -> None:
    """With two regions out nobody is refused anything."""
    world.create("async")
    first, second = source.sample(world.regions, 2)
    first.kill()
    second.freeze("gateway")
    with loaded(world, source) as load:
        load.progress(writes=WRITES, reads=READS)
        first.start()
        second.thaw("gateway")
        load.progress(writes=WRITES, reads=READS)
        assert not load.refused, load.refused
        with load.paused():
            assert_equal_in_the_end(world, load)
