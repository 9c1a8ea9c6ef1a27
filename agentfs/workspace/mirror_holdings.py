"""Holdings: which of the journal's entries each replica holds, as far as this mount knows."""

from collections.abc import Iterable
from typing import Final

from agentfs.model.ids import Position, ReplicaId
from agentfs.model.ranges import RangeSet

RUNS_MAX: Final = 4096
"""Separate runs of entries that are remembered of a replica; where there would be more, it has to be looked at again."""

Run = tuple[Position, Position]
"""Entries from the first to the last position, both included."""


class Holdings:
    """What the mirror and its filling learn of the replicas. Of a replica that was never looked at nothing is known."""

    def __init__(self) -> None:
        self._known: dict[ReplicaId, _Known] = {}

    def begin(self, replica: ReplicaId) -> None:
        """Somebody looks at a replica now: what it is given from here on is remembered beside what is found there."""
        self._known[replica] = _Known()

    def found(self, replica: ReplicaId, runs: Iterable[Run], *, base: Position) -> None:
        """A look at a replica found these runs of entries; those up to `base` it does not need, for it has a checkpoint."""
        known = self._known.get(replica)
        if known is not None:
            known.base = base
            for first, last in runs:
                known.held.add(first, last + 1)

    def given(self, replica: ReplicaId, run: Run) -> None:
        """A replica has acknowledged a run of entries."""
        known = self._known.get(replica)
        if known is not None:
            known.held.add(run[0], run[1] + 1)
            if len(known.held) > RUNS_MAX:
                self.forget(replica)

    def forget(self, replica: ReplicaId) -> None:
        """What a replica holds is not known any more."""
        self._known.pop(replica, None)

    def keep(self, members: Iterable[ReplicaId]) -> None:
        """Forget every replica but these."""
        self._known = {replica: self._known[replica] for replica in members if replica in self._known}

    def position(self, replica: ReplicaId) -> Position | None:
        """Up to where a replica has every entry, or a checkpoint in place of it; None if that is not known."""
        known = self._known.get(replica)
        return None if known is None or known.base is None else known.position(known.base)

    def skip(self, replica: ReplicaId, until: Position) -> None:
        """Nobody has the entries up to `until` any more: a replica is not to be given them."""
        known = self._known.get(replica)
        if known is not None and known.base is not None:
            known.base = max(known.base, until)

    def gaps(self, replica: ReplicaId, until: Position) -> list[Run]:
        """What a replica lacks of the entries up to `until`, in order; nothing where that is not known."""
        known = self._known.get(replica)
        if known is None or known.base is None:
            return []
        gaps, at = [], known.base + 1
        for start, end in known.held.overlap(at, until + 1):
            if start > at:
                gaps.append((Position(at), Position(start - 1)))
            at = end
        if at <= until:
            gaps.append((Position(at), until))
        return gaps


class _Known:
    """What is known of one replica; `base` is None until a look at it is over."""

    def __init__(self) -> None:
        self.base: Position | None = None
        self.held = RangeSet()

    def position(self, base: Position) -> Position:
        first = self.held.overlap(base + 1, self.held.end)
        return Position(first[0][1] - 1) if first and first[0][0] == base + 1 else base
