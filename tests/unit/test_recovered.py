"""The change that begins another line of the journal: what ends with it, who is a member from then on, and who may send it."""

from pathlib import Path

from agentfs.model.changes import AddReplica, AddSegment, ChunkRun, Recovered, ReplicaSpec, Write
from agentfs.model.entry import Entry, Transaction
from agentfs.model.errors import Fenced, Invalid, NotPermitted
from agentfs.model.extents import Chunk
from agentfs.model.ids import NO_SESSION, Ino, Position, ReplicaId, SessionId, TxnNumber, first_ino
from agentfs.model.replica import MEMBER, REMOVED, Replica
from agentfs.model.session import FENCED
from agentfs.state.apply import Outcome, apply_transaction
from agentfs.state.checksum import checksum
from agentfs.state.queries import held_by_none, missing
from agentfs.state.tables import Tables, open_tables
from tests.simulation.entries import founding, make, opening, put, send

A, B = SessionId(1), SessionId(2)
ONE, TWO, THREE = ReplicaId(1), ReplicaId(2), ReplicaId(3)
F = first_ino(A)


def opened(path: Path | None = None) -> Tables:
    """Two sessions, two replicas, and a file whose two segments are in one replica each."""
    tables = open_tables(path)
    for entry in (founding(), opening(b"A"), opening(b"B")):
        put(tables, entry)
    assert send(tables, A, make(F, b"f")) is None
    for number, replica in enumerate((ONE, TWO)):
        name = bytes([number]) * 32
        run = ChunkRun(number * 10, name, Chunk(4, 10, 10, b"d" * 32))
        assert send(tables, A, AddSegment(name, 100, [replica], 5), Write(Ino(F), [run], False, 6)) is None
    return tables


def recover(tables: Tables, *replicas: tuple[int, str], sender: SessionId = NO_SESSION, name: str = "line") -> Outcome:
    change = Recovered(name, [ReplicaSpec(ReplicaId(number), url) for number, url in replicas], 9)
    number = tables.sessions[sender].seen + 1 if sender else 1
    (outcome,) = put(tables, Entry(sender, 9, [Transaction(TxnNumber(number), [change])]))
    return outcome


def test_every_session_ends() -> None:
    tables = opened()
    assert recover(tables, (ONE, "memory:1")) is None
    assert [session.standing for session in tables.sessions.values()] == [FENCED, FENCED]
    assert isinstance(send(tables, A, make(F + 1, b"late")), Fenced)
    tables.close()


def test_the_members_are_those_that_are_named() -> None:
    tables = opened()
    assert recover(tables, (TWO, "elsewhere"), (THREE, "new")) is None
    assert tables.replicas == {
        ONE: Replica(ONE, "memory:1", REMOVED),
        TWO: Replica(TWO, "elsewhere", MEMBER),
        THREE: Replica(THREE, "new", MEMBER),
    }
    assert (missing(tables, TWO).segments, missing(tables, THREE).segments) == (1, 2)
    assert held_by_none(tables) == 1, "what only the first had"
    put(tables, opening(b"C"))
    assert send(tables, SessionId(3), AddReplica(ReplicaId(4), "memory:4")) is None
    tables.close()


def test_a_line_has_a_name_that_a_file_keeps(tmp_path: Path) -> None:
    tables = opened(tmp_path / "state")
    assert tables.incarnation == ""
    at = tables.position + 1
    recover(tables, (ONE, "memory:1"))
    recover(tables, (ONE, "memory:1"), name="another")
    tables.save()
    tables.close()
    again = open_tables(tmp_path / "state")
    assert again.recoveries == {Position(at): "line", Position(at + 1): "another"}
    assert again.incarnation == "another"
    again.close()


def test_what_was_collected_before_is_another_epochs() -> None:
    tables = opened()
    recover(tables, (ONE, "memory:1"))
    assert tables.counters["collected"] == tables.position
    tables.close()


def test_it_can_be_taken_back() -> None:
    tables = opened()
    before, mark = checksum(tables), tables.mark()
    change = Recovered("line", [ReplicaSpec(TWO, "elsewhere")], 9)
    position = Position(tables.position + 1)
    assert apply_transaction(tables, NO_SESSION, Transaction(TxnNumber(1), [change]), position) is None
    tables.revert(mark)
    assert (checksum(tables), tables.incarnation) == (before, "")
    tables.close()


def test_no_session_can_say_so() -> None:
    tables = opened()
    assert isinstance(recover(tables, (ONE, "memory:1"), sender=A), NotPermitted)
    assert isinstance(recover(tables), Invalid)
    assert tables.recoveries == {}
    tables.close()
