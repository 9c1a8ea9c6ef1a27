"""Fixtures of the host tests: `world` is a workspace that two hosts can mount, once with each engine for its journal.

AGENTFS_HOST_ROUNDS: how many faults test_rounds.py makes with each engine (more than the few of CI for a long run);
AGENTFS_HOST_SEED: in which order.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest

from tests.hosts.host import Host
from tests.hosts.network import Network, network
from tests.hosts.servers import on_postgres, on_s3, postgres_for
from tests.hosts.world import World
from tests.postgres_server import PostgresServer
from tests.regions import MakeRegions

Say = Callable[[str], None]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Shows a line at once."""

    def show(line: str) -> None:
        with capsys.disabled():
            print(line, flush=True)

    return show


@pytest.fixture(scope="session")
def lan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """A network."""
    with network(tmp_path_factory.mktemp("lan")) as made:
        yield made


@pytest.fixture(scope="session")
def postgres(lan: Network) -> Iterator[PostgresServer]:
    """A PostgreSQL server on that network."""
    with postgres_for(lan) as server:
        yield server


@pytest.fixture(params=["postgres", "s3"])
def world(request: pytest.FixtureRequest, regions: MakeRegions, lan: Network) -> Iterator[World]:
    """A new workspace, not mounted yet, with a replica in each of three S3 regions and its journal on PostgreSQL or on S3."""
    replicas = regions(3)
    match request.param:
        case "s3":
            journal = on_s3(replicas[0])
        case _:
            journal = on_postgres(request.getfixturevalue("postgres"))
    world = World(lan, Path(mkdtemp(prefix="w", dir=lan.directory)), journal, replicas)
    try:
        world.create()
        yield world
    finally:
        world.discard()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show the end of the daemons' logs with a failure."""
    report = yield
    if report.failed:
        for host in Host.live:
            report.sections.append((f"log of host {host.name}", host.log_tail()))
    return report
