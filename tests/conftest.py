"""What every test shares."""

import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest


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
