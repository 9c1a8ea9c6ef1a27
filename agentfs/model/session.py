"""A session as State holds it: one mount's registration."""

from typing import Final

import msgspec

from agentfs.model.changes import LEASE_TTL_MS
from agentfs.model.ids import SessionId, TxnNumber

OPEN: Final = 0
CLOSED: Final = 1
FENCED: Final = 2


class Session(msgspec.Struct, frozen=True):
    """One row of State's `sessions`. `seen` is the highest transaction number that `apply` has met of it, committed or not.

    `upkeep`: it can do the workspace's chores.
    """

    session: SessionId
    token: bytes
    host: str
    pid: int
    label: str
    opened_ns: int
    seen: TxnNumber
    standing: int
    ttl_ms: int = LEASE_TTL_MS
    upkeep: bool = True

    @property
    def writer(self) -> str:
        """How people know it: its label, or host:pid."""
        return self.label or f"{self.host}:{self.pid}"
