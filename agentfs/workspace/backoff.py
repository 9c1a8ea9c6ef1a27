"""Backoff: which files could not be committed, and when they are tried again without being asked for."""

from collections.abc import Callable

import structlog

from agentfs.model.errors import AgentfsError
from agentfs.model.ids import Ino
from agentfs.runtime import Runtime

PAUSE_MIN_SECONDS = 1.0
PAUSE_MAX_SECONDS = 30.0
"""How long files that failed are left alone: it doubles while any of them fails again."""

_log = structlog.get_logger()


class Backoff:
    """The files whose last commit failed. They share one pause, and one line in the log for each time that they are tried.

    They are tried at once when the replicas, which were not `reachable`, are so again.
    """

    def __init__(self, runtime: Runtime, reachable: Callable[[], bool]) -> None:
        self._runtime = runtime
        self._reachable = reachable
        self._failed: set[Ino] = set()
        self._pause_seconds = PAUSE_MIN_SECONDS
        self._until = 0.0
        self._cut_off = False

    @property
    def any_failed(self) -> bool:
        """Whether a file waits whose last commit failed."""
        return bool(self._failed)

    def failed(self, ino: Ino, error: AgentfsError) -> None:
        """A commit of the file failed."""
        self._failed.add(ino)
        self._cut_off = self._cut_off or not self._reachable()
        now = self._runtime.boottime()
        if now >= self._until:
            _log.warning("writeback_failed", files=len(self._failed), reason=str(error), retry_seconds=self._pause_seconds)
            self._until = now + self._pause_seconds
            self._pause_seconds = min(self._pause_seconds * 2, PAUSE_MAX_SECONDS)

    def succeeded(self, ino: Ino) -> None:
        """The file is committed, or has nothing to commit any more."""
        self._failed.discard(ino)
        if not self._failed:
            self._pause_seconds = PAUSE_MIN_SECONDS
            self._until = 0.0
            self._cut_off = False

    def keep(self, staged: Callable[[Ino], bool]) -> None:
        """Forget the files of which nothing is staged any more; note it when the replicas are back."""
        for ino in [ino for ino in self._failed if not staged(ino)]:
            self.succeeded(ino)
        if self._cut_off and self._reachable():
            self._cut_off = False
            self._until = 0.0

    def holds_back(self, ino: Ino) -> bool:
        """Whether the file is to be left alone for now."""
        return ino in self._failed and self._runtime.boottime() < self._until
