"""Fixtures of the chaos tests: `world` is a workspace over three S3 regions that survive any kill.

AGENTFS_CHAOS_ROUNDS: how many faults are made (more than the few of CI for a long run); AGENTFS_CHAOS_SEED: in which order.
"""

from collections.abc import Iterator

import pytest

from tests.chaos.world import World, opened
from tests.mount.conftest import nothing_left, pytest_runtest_makereport  # noqa: F401
from tests.regions import MakeRegions


@pytest.fixture
def world(regions: MakeRegions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A workspace that is not made yet, and its regions."""
    with opened(tmp_path_factory.mktemp("w"), regions(3, store="bluestore")) as world:
        yield world
