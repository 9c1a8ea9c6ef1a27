"""How often a process that waits looks into the bucket for news: quickly while something happens, seldom once nothing does."""

from typing import Final

from agentfs.runtime import Runtime

BUSY_SECONDS: Final = 0.05
"""The time between two looks just after others appended."""

OWN_SECONDS: Final = 0.25
"""The same after this process did: somebody may answer."""

IDLE_SECONDS: Final = 2.0
"""The same once nothing has happened for long: so late, and a quarter, may others' changes be noticed by who only waits."""

_SHARE: Final = 0.1
"""In between it is this part of the time for which nothing has happened."""


class Looking:
    """When the next look is due."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._due = self._heard = self._sent = runtime.boottime()

    def heard(self) -> None:
        """Others appended: there may be more at once."""
        self._due = self._heard = self._runtime.boottime()

    def sent(self) -> None:
        """This process appended."""
        self._sent = self._runtime.boottime()
        self._due = min(self._due, self._sent + OWN_SECONDS)

    def found_nothing(self, asked: float) -> None:
        """A look that began at `asked` (boot time) found nothing, whoever took it."""
        pause = min(
            IDLE_SECONDS, max(BUSY_SECONDS, _SHARE * (asked - self._heard)), max(OWN_SECONDS, _SHARE * (asked - self._sent))
        )
        # Many mounts that look on the same occasion are not to come back together.
        self._due = max(self._due, asked + pause * (0.75 + 0.5 * self._runtime.jitter()))

    def due_seconds(self) -> float:
        """How long there is no need to look."""
        return max(0.0, self._due - self._runtime.boottime())
