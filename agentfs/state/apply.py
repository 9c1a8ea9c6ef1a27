"""The rules, once: how an entry changes State. Deterministic: no clock, no randomness, no I/O beyond the rows.

Each transaction commits whole or aborts with the error that its caller gets. The rules are those of the man pages of
rename(2), link(2), unlink(2), rmdir(2), truncate(2), setxattr(2) and of inode(7) for time stamps. A hot path: every
operation of a mount passes here twice at most.
"""

from msgspec.structs import replace

from agentfs.model.entry import Entry, Transaction
from agentfs.model.errors import AgentfsError, Fenced
from agentfs.model.ids import NO_SESSION, Position, SessionId
from agentfs.model.session import OPEN
from agentfs.state import attribute_rules, content_rules, lease_rules, name_rules, replica_rules, session_rules
from agentfs.state.step import Rules, Step
from agentfs.state.tables import Tables

RULES: Rules = (
    session_rules.RULES
    | lease_rules.RULES
    | name_rules.RULES
    | content_rules.RULES
    | replica_rules.RULES
    | attribute_rules.RULES
)
"""The rule for each kind of change."""

Outcome = AgentfsError | None
"""Why a transaction aborted, or None: it committed."""


def apply_entry(tables: Tables, entry: Entry, position: Position) -> list[Outcome]:
    """Apply the entry that stands at `position`, which must be the next one; return each transaction's outcome."""
    assert position == tables.position + 1, f"entry {position} cannot follow {tables.position}"
    outcomes = [apply_transaction(tables, entry.session, transaction, position) for transaction in entry.transactions]
    advance(tables, position)
    return outcomes


def advance(tables: Tables, position: Position) -> None:
    """Say that the entry at `position` is applied: its transactions were, one by one."""
    tables.count("position", position - tables.position)


def apply_transaction(tables: Tables, session: SessionId, transaction: Transaction, position: Position) -> Outcome:
    """Apply one transaction of the entry at `position`. Its row changes can be taken back through `tables.mark()`."""
    sender = tables.sessions.get(session)
    if session != NO_SESSION:
        if sender is None or sender.standing != OPEN:
            return Fenced(f"session {session} is not open")
        if transaction.number <= sender.seen:
            return None
        tables.put_session(replace(sender, seen=transaction.number))
    mark = tables.mark()
    step = Step(tables, session, position)
    try:
        for change in transaction.changes:
            RULES[type(change)](step, change)
    except AgentfsError as error:
        tables.revert(mark)
        return error
    step.count_versions()
    return None
