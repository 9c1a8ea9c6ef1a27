"""Damage to the leases of a State is found and named."""

from collections.abc import Iterator

import pytest

from agentfs.model.changes import CloseSession
from agentfs.model.ids import Ino, SessionId
from agentfs.model.lease import EXCLUSIVE, FLOCK, POSIX, SHARED, WHOLE, Grant, Leases, Request, Run
from agentfs.state.tables import Tables, open_tables
from agentfs.workspace.findings import FINDINGS_MAX
from agentfs.workspace.fsck_rules import check_rules
from tests.simulation.entries import founding, make, opening, put, send

A, B, ENDED = (SessionId(number) for number in (1, 2, 3))
FILE = Ino(1 << 32)


@pytest.fixture
def tables() -> Iterator[Tables]:
    """`/f`, two open sessions and one that ended."""
    tables = open_tables(None)
    for entry in (founding(), opening(b"A"), opening(b"B"), opening(b"C")):
        put(tables, entry)
    send(tables, A, make(FILE, b"f"))
    send(tables, ENDED, CloseSession())
    yield tables
    tables.close()


def granted(*grants: tuple[SessionId, int, int, int]) -> Leases:
    return Leases(tuple(Grant(session, Run(first, last, mode), 1) for session, first, last, mode in grants))


def test_sound_leases(tables: Tables) -> None:
    tables.put_leases(FILE, POSIX, granted((A, 0, 4, SHARED), (A, 5, 5, EXCLUSIVE), (B, 0, 4, SHARED), (B, 6, 9, EXCLUSIVE)))
    tables.put_leases(FILE, FLOCK, Leases((Grant(A, WHOLE, 1),), (Request(B, 1, WHOLE, True, 2),)))
    assert check_rules(tables) == []


@pytest.mark.parametrize(
    ("leases", "says"),
    [
        (granted((A, 0, 4, SHARED), (B, 4, 9, EXCLUSIVE)), "sessions 1 and 2 both hold byte 4"),
        (granted((A, 0, 100, EXCLUSIVE), (B, 2, 2, SHARED)), "sessions 1 and 2 both hold byte 2"),
        (granted((A, 0, 4, SHARED), (A, 4, 9, SHARED)), "sessions 1 and 1 both hold byte 4"),
        (granted((ENDED, 0, 4, SHARED)), "session 3 holds or asks for one and is not open"),
        (Leases((Grant(A, WHOLE, 1),), (Request(ENDED, 1, WHOLE, True, 2),)), "session 3 holds or asks"),
    ],
)
def test_each_kind_of_damage(tables: Tables, leases: Leases, says: str) -> None:
    tables.put_leases(FILE, POSIX, leases)
    (finding,) = check_rules(tables)
    assert finding.message.startswith(f"State at position {tables.position}: the leases on f (inode {FILE}) in space 1: {says}")


def test_much_damage_is_bounded(tables: Tables) -> None:
    for ino in range(FINDINGS_MAX + 5):
        tables.put_leases(Ino(ino), FLOCK, granted((ENDED, 0, 4, SHARED)))
    assert len(check_rules(tables)) == FINDINGS_MAX
