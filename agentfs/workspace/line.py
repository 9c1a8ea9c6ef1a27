"""The line of those who want a file's locks, and the table of those who have them."""

from dataclasses import dataclass, field

import trio

from agentfs.model.errors import AgentfsError
from agentfs.model.ids import Ino, SessionId
from agentfs.model.lease import Request, conflicts
from agentfs.workspace.lock_table import Lock, LockTable

Key = tuple[Ino, int]
"""A file, and the space of its locks (model.lease.FLOCK, POSIX)."""

NOBODY = -1
"""No lock owner: kernels hand out numbers that are not negative."""


@dataclass(eq=False, slots=True)
class Waiter:
    """A process's request. `number` names the request in the journal, None while there is none.

    `ready`: State had the journal's tail after the request came. `probe`: it asks (F_GETLK) and takes nothing. `before`: the
    requests of other sessions that came when this one waited already, for a lock that needs no lease.
    """

    key: Key
    lock: Lock
    wait: bool
    probe: bool = False
    ready: bool = False
    number: int | None = None
    blocker: Lock | None = None
    before: set[tuple[SessionId, int]] = field(default_factory=set)
    outcome: AgentfsError | None = None
    done: trio.Event = field(default_factory=trio.Event)


class FileLocks:
    """The locks of one file in one space: those that processes hold, and the line of those who want one."""

    __slots__ = ("asking", "key", "line", "seen", "table", "yielding")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.table = LockTable()
        self.line: list[Waiter] = []
        self.asking = 0
        self.yielding = False
        self.seen: set[tuple[SessionId, int]] = set()


def name_of(request: Request) -> tuple[SessionId, int]:
    """What tells a request of the journal's queue from all others."""
    return request.session, request.number


def is_in_the_way(other: Waiter, waiter: Waiter) -> bool:
    """Whether a request that came earlier keeps this one waiting."""
    return not other.probe and other.lock.owner != waiter.lock.owner and conflicts(other.lock.run, waiter.lock.run)
