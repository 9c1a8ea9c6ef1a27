"""A circuit breaker: whether a replica is worth asking, told from how it answered lately.

| state   | on                                                              | next    |
|---------|-----------------------------------------------------------------|---------|
| up      | FAILURES_MAX failures in a row, one that is Denied, or `trip`   | down    |
| down    | the pause is over                                               | probing |
| down    | an answer to a read that had nobody else to ask                 | up      |
| probing | an answer, also that there is no such object                    | up      |
| probing | another failure                                                 | down    |

The pauses grow from PAUSE_MIN_SECONDS to PAUSE_MAX_SECONDS. They go on growing for a replica that came up only to fail again,
as one does that answers questions and refuses to be written to. An outcome counts only in the turn, between two changes from up
to down or back, in which its request began: what was asked before says nothing about now.
"""

from typing import Final, Literal

from agentfs.model.errors import AgentfsError, Denied, Unavailable
from agentfs.runtime import Runtime

FAILURES_MAX: Final = 3
"""Failures in a row after which a replica is down. Each was retried already where that makes sense."""

PAUSE_MIN_SECONDS: Final = 1.0
"""The first pause before a replica that is down is asked again."""

PAUSE_MAX_SECONDS: Final = 60.0
"""The longest pause; and how long a replica must have been up for the next pause to be the first again."""

_PAUSES_MAX: Final = 6
"""Doublings that lead from the shortest pause beyond the longest."""

BreakerState = Literal["up", "down", "probing"]


class Breaker:
    """What is told each outcome, and says whether to ask; it asks nothing itself."""

    def __init__(self, runtime: Runtime) -> None:
        self.error: AgentfsError | None = None
        self.turn = 0
        self._runtime = runtime
        self._failures = 0
        self._pauses = 0
        self._probing = False
        self._since = runtime.boottime()

    @property
    def up(self) -> bool:
        """Whether the replica is to be asked; otherwise `error` says why not."""
        return self.error is None

    @property
    def state(self) -> BreakerState:
        """For people."""
        return "up" if self.up else "probing" if self._probing else "down"

    @property
    def down_seconds(self) -> float | None:
        """How long it has been down; None while it is up."""
        return None if self.up else self._runtime.boottime() - self._since

    def answered(self, turn: int) -> bool:
        """Count an answer to a request of that turn; True if the replica is up by it and was not before."""
        if turn != self.turn:
            return False
        self._failures = 0
        if self.up:
            return False
        self.error = None
        self.turn += 1
        self._probing = False
        self._since = self._runtime.boottime()
        return True

    def failed(self, turn: int, error: AgentfsError) -> bool:
        """Count a failure of a request of that turn; True if the replica is down by it and was not before."""
        if turn != self.turn:
            return False
        if not self.up:
            self.error = error
            self._probing = False
            return False
        self._failures += 1
        return (self._failures >= FAILURES_MAX or isinstance(error, Denied)) and self.trip(error)

    def trip(self, error: AgentfsError) -> bool:
        """Call the replica down without further ado; True if it was up before."""
        if not self.up:
            return False
        if self._runtime.boottime() - self._since >= PAUSE_MAX_SECONDS:
            self._pauses = 0
        self._since = self._runtime.boottime()
        self.error = error
        self.turn += 1
        self._failures = 0
        self._probing = False
        return True

    def next_pause_seconds(self) -> float:
        """How long to wait before the next probe; each call doubles what the next one says, give or take a quarter."""
        wanted = self.error.retry_after_seconds if isinstance(self.error, Unavailable) else None
        pause: float = min(PAUSE_MIN_SECONDS * 2.0**self._pauses, PAUSE_MAX_SECONDS)
        self._pauses = min(self._pauses + 1, _PAUSES_MAX)
        return min(max(pause * (0.75 + self._runtime.jitter() / 2), wanted or 0.0), PAUSE_MAX_SECONDS)

    def probe(self) -> None:
        """Say that a probe is under way: `state` shows it until its outcome is counted."""
        self._probing = True
