"""What every test shares."""

import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest

from tests.regions import region_servers, regions  # noqa: F401


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the mount tests run over S3, and the long tests run at all."""
    parser.addoption("--long", action="store_true", help="run the tests marked long, too: the others are to take 25 minutes")
    about = "where the mount tests keep their workspaces: in directories, or in two S3 regions"
    parser.addoption("--replicas", choices=["directories", "s3"], default="directories", help=about)


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers that any test may have."""
    config.addinivalue_line("markers", "long: takes minutes, and something shorter shows most of it; needs --long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes long, unless it is asked for."""
    if not config.getoption("long"):
        left_out = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.fixture(autouse=True)
def _states_in_memory_are_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A State in memory is a test's scratch paper and needs no closing of its own; Python 3.13 warns of one that is not."""
    connect, opened = sqlite3.connect, list[sqlite3.Connection]()

    def remember(database: Any, *args: Any, **kwargs: Any) -> sqlite3.Connection:
        connection = connect(database, *args, **kwargs)
        if database == ":memory:":
            opened.append(connection)
        return connection

    monkeypatch.setattr(sqlite3, "connect", remember)
    yield
    for connection in opened:
        connection.close()
