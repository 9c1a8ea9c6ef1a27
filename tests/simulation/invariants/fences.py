"""After its fence nothing of a session takes effect: no row says that it made a change later."""

from agentfs.model.changes import Fence
from agentfs.model.ids import Position
from agentfs.state.apply import apply_entry
from agentfs.state.tables import open_tables
from tests.simulation.evidence import Evidence


def check(evidence: Evidence) -> list[str]:
    """Rows that a fenced session changed, found entry by entry."""
    wrong = []
    fenced: set[int] = set()
    tables = open_tables(None)
    for number, entry in enumerate(evidence.entries, 1):
        position = Position(number)
        outcomes = apply_entry(tables, entry, position)
        tables.settle()
        if entry.session in fenced:
            tables.flush()
            for query in (
                'SELECT ino FROM inodes WHERE "commit" = ? AND writer = ?',
                "SELECT ino FROM versions WHERE position = ? AND session = ?",
            ):
                wrong += [f"entry {number}: {row}" for row in tables.db.execute(query, (position, entry.session))]
        for transaction, outcome in zip(entry.transactions, outcomes, strict=True):
            if outcome is None:
                fenced |= {change.session for change in transaction.changes if isinstance(change, Fence)}
    tables.close()
    return wrong
