"""The beginning: the note beside the journal that says where a reader begins who knows nothing of the workspace.

It is the journal's pointer, put up with each checkpoint. Without one the journal is whole, and is read from its first entry.
"""

import msgspec

from agentfs.journal.contract import Journal
from agentfs.model.changes import Found, ReplicaSpec
from agentfs.model.codec import decode_entry
from agentfs.model.errors import Corrupt, Invalid, Stale
from agentfs.model.ids import Position
from agentfs.state.checkpoint import CheckpointKey, parse_checkpoint_key
from agentfs.state.schema import SCHEMA_VERSION

FORMAT = 1
"""The newest format of the note that this program reads and the one it writes."""


class RecoveryNote(msgspec.Struct, frozen=True):
    """A recovery of the workspace: the position at which the journal's line begins that it made, and the name of that line."""

    recovered_at: Position
    incarnation: str


class Beginning(msgspec.Struct, frozen=True, kw_only=True):
    """What the note says: the newest checkpoint, and what must be known to fetch it.

    `position`, `key`, `size`: the checkpoint's; `schema`: the version of its tables. `transactions`: how many transactions of
    sessions State had met at the checkpoint. `first`: entries in front of it are trimmed. `replicas`: the members, with URLs
    as State has them. `incarnation` is the journal's line of its last recovery, "" for the first line, `recovered_at` where
    that begins, `recoveries` all of them, in order.
    """

    format: int = FORMAT
    workspace: str
    name: str
    durability: str
    replicas: list[ReplicaSpec]
    position: Position
    key: str
    size: int
    schema: int = SCHEMA_VERSION
    transactions: int = 0
    first: Position = Position(1)
    incarnation: str = ""
    recovered_at: Position = Position(0)
    recoveries: list[RecoveryNote] = []

    @property
    def checkpoint(self) -> CheckpointKey:
        """The key, taken apart. Raises Corrupt."""
        found = parse_checkpoint_key(self.key)
        if found is None or found.position != self.position:
            raise Corrupt(f"the journal's pointer names no checkpoint: {self.key}")
        return found


def encode_beginning(beginning: Beginning) -> bytes:
    """The note's bytes."""
    return msgspec.json.encode(beginning)


def decode_beginning(text: bytes) -> Beginning | None:
    """What a note says; None for b"", which is no note. Raises Invalid for a newer format, Corrupt."""
    if not text:
        return None
    try:
        found = msgspec.json.decode(text, type=_Format).format
        if found > FORMAT:
            raise Invalid(f"the journal's pointer is in format {found}, this program reads up to {FORMAT}: upgrade agentfs")
        return msgspec.json.decode(text, type=Beginning)
    except msgspec.DecodeError as error:
        raise Corrupt(f"the journal's pointer is damaged: {error}") from error


async def read_beginning(journal: Journal) -> Beginning | None:
    """The journal's note; None where the journal has none. Raises Invalid, Corrupt and what the journal raises."""
    return decode_beginning(await journal.pointer())


class _Format(msgspec.Struct):
    format: int


class Identity(msgspec.Struct, frozen=True):
    """Which workspace a journal is of, as can be told without a replica."""

    workspace: str
    name: str
    durability: str


async def identify(journal: Journal, beginning: Beginning | None) -> Identity:
    """Which workspace it is: as the note says, or without one the first entry.

    Raises Invalid for a journal that holds none, Corrupt for a damaged one.
    """
    if beginning is not None:
        return Identity(beginning.workspace, beginning.name, beginning.durability)
    try:
        records = await journal.read(Position(0), limit_bytes=1)
    except Stale as error:
        raise Corrupt(f"the journal has no pointer, and its first entries are gone: {error}") from error
    if records:
        for change in decode_entry(records[0].payload).transactions[0].changes:
            if isinstance(change, Found):
                return Identity(change.workspace, change.name, change.durability)
    raise Invalid("the journal holds no workspace: its first entry is missing")
