"""A replica as State holds it: one object store that is, or was, a member of the workspace."""

from typing import Final

import msgspec

from agentfs.model.ids import ReplicaId

MEMBER: Final = 0
REMOVED: Final = 1


class Replica(msgspec.Struct, frozen=True):
    """One row of State's `replicas`. `url` says where it is, without credentials; a removed one keeps its number for ever."""

    replica: ReplicaId
    url: str
    standing: int = MEMBER
