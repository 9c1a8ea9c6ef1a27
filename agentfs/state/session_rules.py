"""The rules for the workspace and its sessions: who is registered, who ended, what ends with them."""

import stat

from msgspec.structs import replace

from agentfs.model.changes import CloseSession, Fence, Found, OpenSession
from agentfs.model.errors import Exists, NotFound
from agentfs.model.ids import NO_SESSION, ROOT_INO, SessionId, TxnNumber
from agentfs.model.inode import Inode
from agentfs.model.session import CLOSED, FENCED, OPEN, Session
from agentfs.state.name_rules import erase
from agentfs.state.step import Rules, Step


def _found(step: Step, change: Found) -> None:
    if step.tables.found is not None:
        raise Exists("the workspace has its first entry already")
    step.tables.put_found(change)
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
    number = SessionId(step.tables.count("session", 1))
    opened = (change.token, change.host, change.pid, change.label, change.time_ns)
    step.tables.put_session(Session(number, *opened, TxnNumber(0), OPEN))


def _close_session(step: Step, change: CloseSession) -> None:
    _end_session(step, step.session, CLOSED)


def _fence(step: Step, change: Fence) -> None:
    if change.session not in step.tables.sessions:
        raise NotFound(f"no session {change.session}")
    _end_session(step, change.session, FENCED)


def _end_session(step: Step, number: SessionId, standing: int) -> None:
    session = step.tables.sessions[number]
    if session.standing != OPEN:
        return
    step.tables.put_session(replace(session, standing=standing))
    for ino in sorted(ino for ino, owner in step.tables.orphans.items() if owner == number):
        erase(step, ino)


RULES: Rules = {
    Found: _found,
    OpenSession: _open_session,
    CloseSession: _close_session,
    Fence: _fence,
}
