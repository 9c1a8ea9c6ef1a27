"""What every test shares."""

import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest

from tests.regions import region_servers, regions  # noqa: F401


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the mount tests run over S3."""
    about = "where the mount tests keep their workspaces: in directories, or in two S3 regions"
    parser.addoption("--replicas", choices=["directories", "s3"], default="directories", help=about)


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
