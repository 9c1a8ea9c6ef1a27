"""Fixtures of the mount tests.

`mounted` is a workspace of the test's own, mounted; `shared_mount` is one for a whole module and `here` an empty directory in
it. With AGENTFS_TEST_DIR=DIR the suite runs in that local directory, without agentfs: it shows that the tests ask for what a
filesystem does, and not for what this one does. Tests that remount, kill or ask agentfs something are skipped then. Use a
tmpfs, such as /dev/shm: ext4 cannot hold the largest extended attributes.

Other switches: AGENTFS_KILL_ROUNDS (rounds of kill -9 under a writer), AGENTFS_BIG_MIB (size of the file of test_memory.py),
AGENTFS_TEST_HANG_SECONDS (after how long a daemon is killed so that its tests fail instead of hanging).
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.place import Mount, Plain, mounts_under, wait_until

DESCRIPTORS_SPARE = 24
"""Descriptors that a daemon may have open at a module's end beyond those at its start: pools that fill on demand."""

Place = Mount | Plain


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker of slow tests."""
    config.addinivalue_line("markers", "slow: takes more than some seconds")


def plain_directory() -> Path | None:
    """The local directory to test in instead of a mount, if any."""
    directory = os.environ.get("AGENTFS_TEST_DIR")
    return Path(directory) if directory else None


def open_place(factory: pytest.TempPathFactory) -> Place:
    """A mount of a new workspace, or a new plain directory."""
    if plain := plain_directory():
        return Plain(Path(tempfile.mkdtemp(dir=plain)) / "plain")
    place = Mount(factory.mktemp("m"))
    place.create()
    place.mount()
    return place


@pytest.fixture
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A mounted workspace of the test's own."""
    place = open_place(tmp_path_factory)
    yield place
    place.discard()


@pytest.fixture
def unmounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A workspace of the test's own that does not exist yet."""
    if plain_directory():
        pytest.skip("AGENTFS_TEST_DIR is a plain directory: nothing to create or mount")
    place = Mount(tmp_path_factory.mktemp("m"))
    yield place
    place.discard()


@pytest.fixture(scope="module")
def shared_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A mounted workspace for all of a module's tests; it must not leak descriptors over them."""
    place = open_place(tmp_path_factory)
    if not isinstance(place, Mount):
        yield place
        place.discard()
        return
    before = place.descriptors()
    yield place
    try:
        if place.mounted:
            wait_until(lambda: place.descriptors() <= before + DESCRIPTORS_SPARE, f"open descriptors to sink to {before}")
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
