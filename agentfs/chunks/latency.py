"""How long a replica takes to answer: which one is nearest, and from when on an answer is late."""

from bisect import bisect_left, insort
from collections import deque
from enum import IntEnum
from typing import Final

WINDOW: Final = 128
"""Answers that are remembered, of each kind."""

KNOWN_MIN: Final = 8
"""Answers that it takes to tell which one is late."""

LATE_UNKNOWN_SECONDS: Final = 0.25
"""When an answer is late before KNOWN_MIN have come."""

LATE_FLOOR_SECONDS: Final = 0.02
"""No answer is late before this: the process itself may have been busy as long."""

STALE_SECONDS: Final = 60.0
"""After how long without a question it is worth asking again how far a replica is."""

_ANSWER_WEIGHT: Final = 0.2
_WAIT_WEIGHT: Final = 0.5
_SMALL_MAX: Final = 256 << 10
_MEDIUM_MAX: Final = 2 << 20


class SizeClass(IntEnum):
    """How much a read asks for: answers of different sizes take different times."""

    SMALL = 0
    MEDIUM = 1
    LARGE = 2


def size_class(length: int | None) -> SizeClass:
    """The class of a read of `length` bytes; one of a whole object counts as large."""
    if length is None or length > _MEDIUM_MAX:
        return SizeClass.LARGE
    return SizeClass.SMALL if length <= _SMALL_MAX else SizeClass.MEDIUM


class Latencies:
    """The last WINDOW answers of one kind, in seconds, and a moving average that follows the newest."""

    def __init__(self) -> None:
        self.average_seconds: float | None = None
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []
        self._asked_at: float | None = None
        self._answered_at = float("-inf")

    def asked(self, now: float) -> None:
        """Count a question."""
        self._asked_at = now

    def stale(self, now: float) -> bool:
        """Whether it was asked once, and not for a while."""
        return self._asked_at is not None and now - self._asked_at >= STALE_SECONDS

    def answered(self, seconds: float, now: float) -> None:
        """Count an answer. The first one, also after a long silence, is the average."""
        self._count(seconds, now, _ANSWER_WEIGHT)

    def waited(self, seconds: float, now: float) -> None:
        """Count a question that was taken back after `seconds`, which tells something if answers come sooner on average.

        Without this a replica that fell silent would stay the nearest, because only answers were counted. It weighs more than
        an answer, because the answer would have taken longer still.
        """
        if seconds > (self.average_seconds or 0.0):
            self._count(seconds, now, _WAIT_WEIGHT)

    @property
    def median_seconds(self) -> float | None:
        """The median; None before the first answer."""
        return self._sorted[len(self._sorted) // 2] if self._sorted else None

    @property
    def late_seconds(self) -> float:
        """What 95 of 100 answers keep within."""
        if len(self._sorted) < KNOWN_MIN:
            return LATE_UNKNOWN_SECONDS
        return max(self._sorted[len(self._sorted) * 95 // 100], LATE_FLOOR_SECONDS)

    def _count(self, seconds: float, now: float, weight: float) -> None:
        fresh = now - self._answered_at < STALE_SECONDS
        average = self.average_seconds if self.average_seconds is not None and fresh else seconds
        self.average_seconds = average + weight * (seconds - average)
        self._answered_at = now
        if len(self._recent) == WINDOW:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        self._recent.append(seconds)
        insort(self._sorted, seconds)


class ReadLatencies:
    """The latencies of reads, for each class of size."""

    def __init__(self) -> None:
        self._classes = [Latencies() for _ in SizeClass]

    def of(self, size: SizeClass) -> Latencies:
        """Those of one class."""
        return self._classes[size]

    def distance_seconds(self, size: SizeClass) -> float:
        """What to order replicas by: the average of the class, else of the next smaller or larger one, else 0.

        So a replica that was never asked is asked first.
        """
        for one in (self._classes[size], *self._classes):
            if one.average_seconds is not None:
                return one.average_seconds
        return 0.0

    @property
    def median_seconds(self) -> float | None:
        """The median of small reads, or of larger ones if there were none; None if there were none at all."""
        medians = (one.median_seconds for one in self._classes)
        return next((median for median in medians if median is not None), None)
