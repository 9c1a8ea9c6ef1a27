"""The numbers and names that other values refer to, each a type of its own."""

from typing import Final, NewType

Ino = NewType("Ino", int)
"""An inode number: `session << 32 | counter`, so that no two sessions ever choose the same."""

Position = NewType("Position", int)
"""An entry's place in the journal, from 1; 0 is before the first."""

SessionId = NewType("SessionId", int)
"""A session's number, given by `apply` in journal order, from 1."""

TxnNumber = NewType("TxnNumber", int)
"""A transaction's number within its session, from 1, growing by one."""

SegmentId = NewType("SegmentId", int)
"""A segment's number within State, given by `apply`; 0 means that an extent is inline."""

ReplicaId = NewType("ReplicaId", int)
"""A replica's number within its workspace, from 1."""

ROOT_INO: Final = Ino(1)
NO_SESSION: Final = SessionId(0)
INO_SESSION_SHIFT: Final = 32


def first_ino(session: SessionId) -> Ino:
    """The first of the inode numbers that `session` may give to what it creates."""
    return Ino(session << INO_SESSION_SHIFT)
