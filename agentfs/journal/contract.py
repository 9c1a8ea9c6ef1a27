"""What a journal engine does: order bytes. It knows nothing of files (the suite: tests/conformance/test_journal.py)."""

from typing import Final, NamedTuple, Protocol

from agentfs.model.errors import Invalid
from agentfs.model.ids import Position

FIRST: Final = Position(1)
"""Where a journal begins that is nobody's continuation."""

POINTER_MAX: Final = 64 << 10
"""How many bytes a pointer has at most."""


class Record(NamedTuple):
    """One entry as the engine keeps it."""

    position: Position
    payload: bytes


class Journal(Protocol):
    """An append-only, totally ordered log that several processes share.

    It is made empty, with the position that its first entry will have: one that does not begin at 1 is like one that was
    trimmed up to there.

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

    async def pointer(self) -> bytes:
        """The note for whoever reads this journal for the first time and wants to know where to begin; b"" if there is none.

        As new as every `point` that returned before this call.
        """
        ...

    async def point(self, position: Position, text: bytes) -> None:
        """Replace the pointer, unless the present one is for a later position. It survives a power cut, and trimming.

        `position` is only compared with those of other pointers. Raises Invalid for more than POINTER_MAX bytes. After an error
        it may have been replaced or not.
        """
        ...

    async def aclose(self) -> None:
        """Release files, connections and watches. Waiters are woken with Unavailable."""
        ...


def check_pointer(text: bytes) -> None:
    """Raise Invalid for a pointer that is too long."""
    if len(text) > POINTER_MAX:
        raise Invalid(f"a journal's pointer has at most {POINTER_MAX} bytes, not {len(text)}")
