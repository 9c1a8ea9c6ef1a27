"""What a journal engine does: order bytes. It knows nothing of files (the suite: tests/conformance/test_journal.py)."""

from typing import NamedTuple, Protocol

from agentfs.model.ids import Position


class Record(NamedTuple):
    """One entry as the engine keeps it."""

    position: Position
    payload: bytes


class Journal(Protocol):
    """An append-only, totally ordered log that several processes share.

    Errors: Unavailable where trying again may help, NoSpace when the disk or quota is full, Corrupt for damage. After an
    error from `append` the entry may or may not be in the journal: the caller sends it again, and `apply` ignores a
    transaction it has already seen.
    """

    async def append(self, payload: bytes) -> Position:
        """Put `payload` behind the last entry; return its position once it would survive a power cut."""
        ...

    async def read(self, after: Position, *, limit_bytes: int = 4 << 20) -> list[Record]:
        """The entries behind `after`, contiguous and in order: as many as `limit_bytes` hold but at least one; [] at the tail.

        What came since the engine last looked may be left out, but [] is always the tail as of this call. Raises Stale when
        entries behind `after` were trimmed away: the caller needs a checkpoint.
        """
        ...

    async def tail(self) -> Position:
        """The last entry's position, 0 if there is none: at least as new as every append that returned before this call.

        Every `open` of a file asks: it should cost less than a request, and may return without letting other tasks run.
        """
        ...

    def tail_at_once(self) -> Position | None:
        """As `tail`, if it can be told within microseconds and without waiting; None where it cannot, or not now."""
        ...

    async def wait(self, after: Position) -> None:
        """Return once there is an entry behind `after`, whoever appended it; at once if there is. Cancellable.

        It never returns early, and no entry is missed. While nobody else waits, appending should cost next to nothing more.
        """
        ...

    async def beat(self, session: int) -> None:
        """Show that this session lives, out of band of the order."""
        ...

    async def beats(self) -> dict[int, int]:
        """A number for every session that ever beat and was not forgotten, which each of its beats changes.

        Only whether it is the same as before means something: many engines count, others cannot.
        """
        ...

    async def forget_beat(self, session: int) -> None:
        """Remove a session's heartbeat: it ended. Unknown sessions are ignored."""
        ...

    async def trim(self, before: Position) -> None:
        """Forget the entries in front of `before`. The tail's entry always stays."""
        ...

    async def aclose(self) -> None:
        """Release files, connections and watches. Waiters are woken with Unavailable."""
        ...
