"""The rules that `apply` keeps about leases, looked for in a State's rows: apart from the code that keeps them."""

from collections.abc import Iterator
from itertools import islice

from agentfs.model.ids import SessionId
from agentfs.model.lease import EXCLUSIVE, Grant, Leases
from agentfs.model.session import OPEN
from agentfs.state.tables import Tables
from agentfs.workspace.findings import FINDINGS_MAX, Finding
from agentfs.workspace.paths import path_of


def check_leases(tables: Tables) -> list[Finding]:
    """What is wrong with the leases, one finding each, up to a bound."""
    return list(islice(_findings(tables), FINDINGS_MAX))


def _findings(tables: Tables) -> Iterator[Finding]:
    open_sessions = {session.session for session in tables.sessions.values() if session.standing == OPEN}
    for (ino, space), leases in sorted(tables.leases.items(), key=lambda item: item[0]):
        for fault in _faults(leases, open_sessions):
            subject = f"{path_of(tables, ino)} (inode {ino})"
            yield Finding("rule", f"State at position {tables.position}: the leases on {subject} in space {space}: {fault}")


def _faults(leases: Leases, open_sessions: set[SessionId]) -> Iterator[str]:
    if not leases.grants and not leases.queue:
        yield "a row without any"
    sessions = {grant.session for grant in leases.grants} | {request.session for request in leases.queue}
    for session in sorted(sessions - open_sessions):
        yield f"session {session} holds or asks for one and is not open"
    in_order = sorted(leases.grants, key=lambda grant: grant.run.first)
    for at, one in enumerate(in_order):
        for other in islice(in_order, at + 1, None):
            if other.run.first > one.run.last:
                break
            if _clash(one, other):
                yield f"sessions {one.session} and {other.session} both hold byte {other.run.first}"


def _clash(one: Grant, other: Grant) -> bool:
    """Whether two grants that share a byte must not both be: one of them is exclusive, or they are one session's."""
    return one.session == other.session or EXCLUSIVE in (one.run.mode, other.run.mode)
