"""The rules for the workspace and its sessions: who is registered, who ended, what ends with them."""

import stat

from msgspec.structs import replace

from agentfs.model.changes import CloseSession, Fence, Found, OpenSession, Recovered
from agentfs.model.errors import Busy, Exists, Invalid, NotFound, NotPermitted
from agentfs.model.ids import NO_SESSION, ROOT_INO, SessionId, TxnNumber
from agentfs.model.inode import Inode
from agentfs.model.replica import REMOVED, Replica
from agentfs.model.session import CLOSED, FENCED, OPEN, Session
from agentfs.state.lease_rules import end_leases
from agentfs.state.name_rules import erase
from agentfs.state.step import Rules, Step


def _found(step: Step, change: Found) -> None:
    if step.tables.found is not None:
        raise Exists("the workspace has its first entry already")
    step.tables.put_found(change)
    for spec in change.replicas:
        step.tables.put_replica(Replica(spec.replica, spec.url))
    step.tables.put_inode(
        Inode(
            ino=ROOT_INO,
            mode=stat.S_IFDIR | 0o755,
            nlink=2,
            uid=change.uid,
            gid=change.gid,
            rdev=0,
            size=0,
            allocated=0,
            atime_ns=change.time_ns,
            mtime_ns=change.time_ns,
            ctime_ns=change.time_ns,
            version=0,
            commit=step.position,
            writer=NO_SESSION,
            parent=ROOT_INO,
            xattrs=0,
            target=b"",
        )
    )


def _open_session(step: Step, change: OpenSession) -> None:
    # The token makes sending the same registration again harmless.
    if any(session.token == change.token for session in step.tables.sessions.values()):
        return
    if change.ttl_ms < 1:
        raise Invalid("a session must be allowed to be silent for a while")
    number = SessionId(step.tables.count("session", 1))
    opened = (change.token, change.host, change.pid, change.label, change.time_ns)
    step.tables.put_session(Session(number, *opened, TxnNumber(0), OPEN, change.ttl_ms, change.upkeep))


def _close_session(step: Step, change: CloseSession) -> None:
    # The change carries no time: whoever is granted a lease by this is said to hold it since it asked.
    _end_session(step, step.session, CLOSED, time_ns=0)


def _fence(step: Step, change: Fence) -> None:
    session = step.tables.sessions.get(change.session)
    if session is None:
        raise NotFound(f"no session {change.session}")
    if session.standing == OPEN and change.seen is not None and session.seen > change.seen:
        raise Busy(f"session {change.session} has shown that it lives")
    _end_session(step, change.session, FENCED, time_ns=change.time_ns)


def _recovered(step: Step, change: Recovered) -> None:
    if step.session != NO_SESSION:
        raise NotPermitted("a session cannot say that the workspace was recovered")
    if not change.replicas:
        raise Invalid("a workspace needs a replica")
    tables = step.tables
    # Mounts of the line that was lost may live, and reach the new journal: nothing that they send counts.
    for number in sorted(number for number, session in tables.sessions.items() if session.standing == OPEN):
        _end_session(step, number, FENCED, time_ns=change.time_ns)
    tables.put_recovery(change.incarnation, step.position)
    # What was collected on the line that was lost, and is being deleted still, must not meet segments of this one.
    tables.count("collected", step.position - tables.counters["collected"])
    kept = {spec.replica for spec in change.replicas}
    for member in tables.members.values():
        if member.replica not in kept:
            tables.put_replica(replace(member, standing=REMOVED))
            tables.displace_all(member.replica)
    for spec in change.replicas:
        if tables.members.get(spec.replica) != Replica(spec.replica, spec.url):
            tables.put_replica(Replica(spec.replica, spec.url))


def _end_session(step: Step, number: SessionId, standing: int, *, time_ns: int) -> None:
    session = step.tables.sessions[number]
    if session.standing != OPEN:
        return
    step.tables.put_session(replace(session, standing=standing))
    end_leases(step, number, time_ns)
    for ino in sorted(ino for ino, owner in step.tables.orphans.items() if owner == number):
        erase(step, ino)


RULES: Rules = {
    Found: _found,
    OpenSession: _open_session,
    CloseSession: _close_session,
    Fence: _fence,
    Recovered: _recovered,
}
