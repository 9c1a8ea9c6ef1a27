"""How one mount behaves: what was chosen for it, as against what all mounts of the workspace share."""

from dataclasses import dataclass
from typing import Literal

from agentfs.workspace.session import Identity

Durability = Literal["close", "fsync"]
Unreachable = Literal["eio", "erofs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One mount's settings.

    - `put_timeout_seconds`: how long a write waits for enough replicas; `unreachable`: what it fails with then, and whether
      later ones fail at once.
    - `needs_quorum`: it does not start where so many replicas refuse to be used that nothing could be written, or read.
    - `offline`: the replicas are asked for nothing, and what is not here already cannot be read.
    - `edge_max_bytes`: the bound of the cache on disk. None: there is one if a replica is far, as big as the free space allows.
    """

    host: str
    pid: int
    label: str = ""
    read_only: bool = False
    durability: Durability = "close"
    lease_ttl_seconds: float = 10.0
    staleness_seconds: float = 0.0
    put_timeout_seconds: float = 30.0
    unreachable: Unreachable = "eio"
    hedging: bool = True
    needs_quorum: bool = True
    offline: bool = False
    edge_max_bytes: int | None = None

    @property
    def identity(self) -> Identity:
        """What the session says of the mount: one that only reads may have no right to put anything into the replicas."""
        upkeep = not (self.read_only or self.offline)
        return Identity(host=self.host, pid=self.pid, label=self.label, ttl_seconds=self.lease_ttl_seconds, upkeep=upkeep)
