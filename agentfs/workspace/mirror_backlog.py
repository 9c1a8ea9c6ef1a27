"""The backlog: entries that were appended or followed a moment ago, so that copying them does not ask the journal for them."""

from bisect import bisect_right
from collections import deque
from typing import Final

from agentfs.journal.contract import Record
from agentfs.model.ids import Position

BACKLOG_BYTES: Final = 8 << 20
BACKLOG_ENTRIES: Final = 4096
"""What is kept at most; what is older is read from the journal."""

STAMPS_MAX: Final = 512
"""Entries whose times are remembered; where there would be more, every other one is forgotten."""


class Backlog:
    """The last entries of the journal that this mount knows, without a gap. `tail` is the last one's position."""

    def __init__(self, tail: Position) -> None:
        self.tail = tail
        self._records: deque[Record] = deque()
        self._bytes = 0
        self._stamps: list[tuple[Position, int]] = []

    def take(self, record: Record, time_ns: int, *, keep: bool) -> None:
        """One more entry, which follows the last one; without `keep` only its place and its time count. A hot path."""
        if not keep or record.position != self.tail + 1:
            self._records.clear()
            self._bytes = 0
        self.tail = record.position
        if keep:
            self._records.append(record)
            self._bytes += len(record.payload)
        while self._bytes > BACKLOG_BYTES or len(self._records) > BACKLOG_ENTRIES:
            self._drop_first()
        self._stamps.append((record.position, time_ns))
        if len(self._stamps) > STAMPS_MAX:
            del self._stamps[1::2]

    def forget(self, until: Position) -> None:
        """The entries up to `until` need not be kept any more. A hot path."""
        while self._records and self._records[0].position <= until:
            self._drop_first()

    def behind(self, after: Position, *, limit_bytes: int) -> list[Record]:
        """The entries that follow `after`, as many as `limit_bytes` hold but at least one; none where they are not kept."""
        records: list[Record] = []
        if not self._records or self._records[0].position > after + 1:
            return records
        size = 0
        for record in self._records:
            if record.position <= after:
                continue
            size += len(record.payload)
            if records and size > limit_bytes:
                break
            records.append(record)
        return records

    def time_behind(self, after: Position) -> int | None:
        """When the first entry behind `after` was sent, by its sender's wall clock, or one soon after it.

        None where that was too long ago to be remembered, or there is no such entry.
        """
        at = bisect_right(self._stamps, after, key=lambda stamp: stamp[0])
        if at == len(self._stamps) or (at == 0 and self._stamps[0][0] != after + 1):
            return None
        return self._stamps[at][1]

    def _drop_first(self) -> None:
        self._bytes -= len(self._records.popleft().payload)
