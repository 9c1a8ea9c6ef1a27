"""Transactions and entries: the atomic step, and the group commit that the journal orders."""

import msgspec

from agentfs.model.changes import AnyChange
from agentfs.model.ids import Position, SessionId, TxnNumber


class Transaction(msgspec.Struct, frozen=True, array_like=True):
    """One atomic step of a session: all its changes commit, or none does."""

    number: TxnNumber
    changes: list[AnyChange]


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One group commit of one session: what it had pending, in order. `time_ns` is the sender's wall clock.

    `mirrored`: the sender knows that enough replicas hold every entry up to here. It is hearsay for other mounts, not State.
    """

    session: SessionId
    time_ns: int
    transactions: list[Transaction]
    mirrored: Position = Position(0)
