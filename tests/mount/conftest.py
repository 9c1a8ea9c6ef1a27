"""Fixtures of the mount tests.

`mounted` is a workspace of the test's own, mounted; `shared_mount` is one for a whole module and `here` an empty directory in
it. `mounts` makes several mounts of one workspace, and `shared_mounts` are three of them for a whole module.

With AGENTFS_TEST_DIR=DIR the suite runs in that local directory, without agentfs: it shows that the tests ask for what a
filesystem does, and not for what this one does. Tests that remount, kill or ask agentfs something are skipped then. Use a
tmpfs, such as /dev/shm: ext4 cannot hold the largest extended attributes.

With --replicas s3 the workspaces are in two S3 regions, but for those whose replicas a test names itself, and the mounts have
edge caches, which are emptied before a workspace is mounted again.

Other switches: AGENTFS_KILL_ROUNDS (rounds of kill -9 under a writer), AGENTFS_BIG_MIB (size of the file of test_memory.py),
AGENTFS_TEST_HANG_SECONDS (after how long a daemon is killed so that its tests fail instead of hanging).
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.mount.lockers import Locker
from tests.mount.place import Mount, Plain, mounts_under, wait_until
from tests.regions import Region, ServersByStore

DESCRIPTORS_SPARE = 24
"""Descriptors that a daemon may have open at a module's end beyond those at its start: pools that fill on demand."""

LABELS = ("mount-a", "mount-b", "mount-c")
"""What several mounts of one workspace are called."""

Place = Mount | Plain


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers of the mount tests."""
    config.addinivalue_line("markers", "slow: takes more than some seconds")
    config.addinivalue_line("markers", "over_s3: scripts/test runs it a second time, with --replicas s3")


def plain_directory() -> Path | None:
    """The local directory to test in instead of a mount, if any."""
    directory = os.environ.get("AGENTFS_TEST_DIR")
    return Path(directory) if directory else None


def open_place(factory: pytest.TempPathFactory, regions: list[Region]) -> Place:
    """A mount of a new workspace, or a new plain directory."""
    if plain := plain_directory():
        return Plain(Path(tempfile.mkdtemp(dir=plain)) / "plain")
    place = Mount(factory.mktemp("m"), regions=regions)
    place.create()
    place.mount()
    return place


@contextmanager
def several_places(factory: pytest.TempPathFactory, regions: list[Region]) -> Iterator[Callable[..., list[Place]]]:
    """A function that makes `count` mounts of one new workspace with the same options, discarded on leaving.

    In place of mounts, a plain directory is the same one under several paths.
    """
    with ExitStack() as stack:

        def make(count: int, *options: str) -> list[Place]:
            first: Place
            if plain := plain_directory():
                first = Plain(Path(tempfile.mkdtemp(dir=plain)) / LABELS[0])
            else:
                first = Mount(factory.mktemp("m"), label=LABELS[0], regions=regions)
                first.create()
            stack.callback(first.discard)
            places = [first]
            for label in LABELS[1:count]:
                places.append(first.beside(label))
                stack.callback(places[-1].discard)
            for place in places:
                if isinstance(place, Mount):
                    place.mount(*options)
            return places

        yield make


@contextmanager
def no_leaks(places: list[Place]) -> Iterator[None]:
    """The daemons may have at most a few more descriptors open on leaving than on entering."""
    before = [(mount, mount.descriptors()) for mount in places if isinstance(mount, Mount)]
    yield
    for mount, count in before:
        if mount.mounted:
            wait_until(
                lambda mount=mount, count=count: mount.descriptors() <= count + DESCRIPTORS_SPARE,
                f"open descriptors of {mount.label or mount.path} to sink to {count}",
            )


@pytest.fixture(scope="session")
def homes(request: pytest.FixtureRequest) -> Iterator[list[Region]]:
    """The two regions that workspaces are in, each at a prefix of its own; with replicas in directories there are none."""
    if request.config.getoption("replicas") == "directories":
        yield []
        return
    servers: ServersByStore = request.getfixturevalue("region_servers")
    with pytest.MonkeyPatch.context() as patch:
        # What they hold goes when the servers do.
        regions = servers["memstore"].regions(2)
        servers["memstore"].lend_credentials(patch)
        yield regions


@pytest.fixture
def mounts(tmp_path_factory: pytest.TempPathFactory, homes: list[Region]) -> Iterator[Callable[..., list[Place]]]:
    """Makes mounts of a new workspace: `a, b = mounts(2, "--lease-ttl", "2")`."""
    with several_places(tmp_path_factory, homes) as make:
        yield make


@pytest.fixture(scope="module")
def shared_mounts(tmp_path_factory: pytest.TempPathFactory, homes: list[Region]) -> Iterator[list[Place]]:
    """Three mounts of one workspace for all of a module's tests."""
    with several_places(tmp_path_factory, homes) as make:
        places = make(3)
        with no_leaks(places):
            yield places


@pytest.fixture
def hire() -> Iterator[Callable[..., Locker]]:
    """Starts a process that locks a file: `hire(path)`; it is gone after the test."""
    hired: list[Locker] = []

    def start(path: Path, flags: int = os.O_RDWR) -> Locker:
        hired.append(Locker(path, flags))
        return hired[-1]

    yield start
    for locker in hired:
        locker.kill()


@pytest.fixture
def mounted(tmp_path_factory: pytest.TempPathFactory, homes: list[Region]) -> Iterator[Place]:
    """A mounted workspace of the test's own."""
    place = open_place(tmp_path_factory, homes)
    yield place
    place.discard()


@pytest.fixture
def unmounted(tmp_path_factory: pytest.TempPathFactory, homes: list[Region]) -> Iterator[Mount]:
    """A workspace of the test's own that does not exist yet."""
    if plain_directory():
        pytest.skip("AGENTFS_TEST_DIR is a plain directory: nothing to create or mount")
    place = Mount(tmp_path_factory.mktemp("m"), regions=homes)
    yield place
    place.discard()


@pytest.fixture(scope="module")
def shared_mount(tmp_path_factory: pytest.TempPathFactory, homes: list[Region]) -> Iterator[Place]:
    """A mounted workspace for all of a module's tests; it must not leak descriptors over them."""
    place = open_place(tmp_path_factory, homes)
    try:
        with no_leaks([place]):
            yield place
    finally:
        place.discard()


@pytest.fixture
def here(shared_mount: Place, request: pytest.FixtureRequest) -> Path:
    """An empty directory of the test's own on the module's mount."""
    return Path(tempfile.mkdtemp(prefix=f"{request.node.name[:60].replace('/', '_')}.", dir=shared_mount.path))


@pytest.fixture(scope="session", autouse=True)
def nothing_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """At the end no mount and no daemon of the tests may be left."""
    yield
    left = [mount.pid for mount in Mount.live]
    for mount in list(Mount.live):
        mount.discard()
    assert not left, f"daemons were left running: {left}"
    assert not mounts_under(tmp_path_factory.getbasetemp())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show the end of the daemons' logs with a failure."""
    report = yield
    if report.failed:
        for mount in Mount.live:
            report.sections.append((f"log of daemon {mount.pid} on {mount.path}", mount.log_tail()))
    return report
