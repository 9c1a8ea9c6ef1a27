"""Pending transactions: applied here, not known to be in the journal; and how many of them make an entry."""

from collections.abc import Iterator

import trio

from agentfs.model.changes import (
    AnyChange,
    Collect,
    Deleted,
    Fold,
    InlineRun,
    Link,
    Make,
    RemoveXattr,
    Rename,
    Rmdir,
    SetAttr,
    SetXattr,
    Truncate,
    Unlink,
    Unneeded,
    Write,
)
from agentfs.model.entry import Transaction
from agentfs.model.ids import Position
from agentfs.state.apply import Outcome
from agentfs.state.tables import Undo

GROUP_TRANSACTIONS = 1024
GROUP_BYTES = 4 << 20
"""Bounds of one entry."""

_PROMISES = Make | Link | Unlink | Rmdir | Rename | Truncate | Write | SetAttr | SetXattr | RemoveXattr
"""Changes that a program made and may be told are safe; the others are the business of sessions, leases and replicas."""

_CHANGE_BYTES = 128
"""What a change weighs in an entry besides the content it carries, roughly."""


class Pending:
    """A transaction that is applied here and not known to be in the journal; `outcome` counts once `done` is set.

    `position` is the one that it was applied as at; once it is committed, its entry's. `landed`: it was given up because the
    journal did not answer, and found to be in the journal after all. `undone` is the undo list of the last time it was taken
    back: what the kernel was shown of it. `promises`: whoever waits for it waits for the mirror, too.
    """

    __slots__ = ("done", "landed", "outcome", "position", "promises", "size", "transaction", "undo", "undone")

    def __init__(self, transaction: Transaction, undo: Undo, position: Position, size: int) -> None:
        self.transaction = transaction
        self.undo = undo
        self.undone: Undo = []
        self.position = position
        self.size = size
        self.outcome: Outcome = None
        self.landed = False
        self.promises = any(isinstance(change, _PROMISES) for change in transaction.changes)
        self.done = trio.Event()

    async def committed(self) -> None:
        """Return once it is in the journal; raise why it is not to be."""
        await self.done.wait()
        if self.outcome is not None:
            raise self.outcome


def groups(transactions: list[Transaction]) -> Iterator[list[Transaction]]:
    """Cut transactions into as many as an entry may carry, in order."""
    group: list[Transaction] = []
    size = 0
    for transaction in transactions:
        if is_full(len(group), size):
            yield group
            group, size = [], 0
        group.append(transaction)
        size += sum(map(weight, transaction.changes))
    if group:
        yield group


def is_full(transactions: int, size: int) -> bool:
    """Whether an entry with so many transactions and bytes takes no more."""
    return transactions >= GROUP_TRANSACTIONS or size >= GROUP_BYTES


def weight(change: AnyChange) -> int:
    """About how many bytes a change is in an entry."""
    match change:
        case Write(runs=runs):
            return sum(_CHANGE_BYTES + (run.length if isinstance(run, InlineRun) else 0) for run in runs)
        case Fold(runs=folded):
            return _CHANGE_BYTES * (1 + len(folded))
        case Unneeded(names=names) | Collect(names=names) | Deleted(names=names):
            return _CHANGE_BYTES + 40 * len(names)
        case SetXattr(value=value):
            return _CHANGE_BYTES + len(value)
        case _:
            return _CHANGE_BYTES
