"""The rules for leases: who is granted which locks of a file, who waits, and who is next (model/lease.py decides)."""

from agentfs.model import lease
from agentfs.model.changes import Acquire, Deny, Release, Renew, Withdraw
from agentfs.model.errors import Fenced, Invalid
from agentfs.model.ids import Ino, SessionId
from agentfs.model.lease import FLOCK, POSIX, Leases, Request
from agentfs.model.session import OPEN
from agentfs.state.queries import leased
from agentfs.state.step import Rules, Step


def _leases(step: Step, ino: Ino, space: int) -> Leases:
    # An earlier change of the same transaction may have ended the session: nobody would end its leases after that.
    sender = step.tables.sessions.get(step.session)
    if sender is None or sender.standing != OPEN:
        raise Fenced("only an open session can hold a lease")
    if space not in (FLOCK, POSIX):
        raise Invalid(f"there is no space {space} of locks")
    return step.tables.leases.get((ino, space), Leases())


def _put(step: Step, ino: Ino, space: int, old: Leases, new: Leases) -> None:
    if new != old:
        step.tables.put_leases(ino, space, new if new.grants or new.queue else None)


def _acquire(step: Step, change: Acquire) -> None:
    old = _leases(step, change.ino, change.space)
    request = Request(step.session, change.number, change.run, change.wait, change.time_ns, change.passes)
    _put(step, change.ino, change.space, old, lease.acquire(old, request, change.time_ns))


def _withdraw(step: Step, change: Withdraw) -> None:
    old = _leases(step, change.ino, change.space)
    _put(step, change.ino, change.space, old, lease.withdraw(old, step.session, change.number, change.time_ns))


def _release(step: Step, change: Release) -> None:
    old = _leases(step, change.ino, change.space)
    _put(step, change.ino, change.space, old, lease.release(old, step.session, change.keep, change.time_ns))


def _deny(step: Step, change: Deny) -> None:
    old = _leases(step, change.ino, change.space)
    new = lease.deny(old, step.session, change.session, change.number, change.time_ns)
    _put(step, change.ino, change.space, old, new)


def _renew(step: Step, change: Renew) -> None:
    """That it was applied, and counted in the session's `seen`, is all."""


def end_leases(step: Step, session: SessionId, time_ns: int) -> None:
    """A session ended: what it holds goes, and what it asked for; whoever waited for it is next."""
    for ino, space in leased(step.tables, session):
        old = step.tables.leases[ino, space]
        _put(step, ino, space, old, lease.end(old, session, time_ns))


RULES: Rules = {
    Acquire: _acquire,
    Withdraw: _withdraw,
    Release: _release,
    Deny: _deny,
    Renew: _renew,
}
