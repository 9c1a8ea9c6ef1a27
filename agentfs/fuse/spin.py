"""Waiting for the kernel's next request by looking for a moment before sleeping.

On a virtual machine most of a request's cost is waking a process that sleeps, and a program's next system call usually
follows within some ten microseconds. The looking is bounded, and off when no request came lately or when something else of the
daemon's is about to have news, such as a commit.
"""

import select
from collections.abc import Callable
from typing import Any

import pyfuse3
import trio

from agentfs.runtime import Runtime

SPIN_SECONDS = 60e-6
"""How long to look before sleeping."""

LATELY_SECONDS = 2e-3
"""How long after a request its successor is looked for."""

FAIR_REQUESTS = 16
"""Requests taken without sleeping before other tasks get their turn."""


class _SpinningLowlevel:
    """`trio.lowlevel` with another `wait_readable`."""

    def __init__(self, busy: Callable[[], bool], runtime: Runtime) -> None:
        self._busy = busy
        self._now = runtime.boottime
        self._last = 0.0
        self._in_a_row = 0
        self._poll: Callable[[int], list[Any]] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)

    async def wait_readable(self, fd: int) -> None:
        """Return once `fd` can be read. A hot path."""
        now = self._now()
        if self._in_a_row < FAIR_REQUESTS and now - self._last < LATELY_SECONDS and not self._busy() and self._look(fd, now):
            self._in_a_row += 1
        else:
            self._in_a_row = 0
            await trio.lowlevel.wait_readable(fd)
        self._last = self._now()

    def _look(self, fd: int, now: float) -> bool:
        if self._poll is None:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            self._poll = poll.poll
        end = now + SPIN_SECONDS
        while not self._poll(0):
            if self._now() > end:
                return False
        return True


class _SpinningTrio:
    """`trio` as pyfuse3 is to see it."""

    def __init__(self, lowlevel: _SpinningLowlevel) -> None:
        self.lowlevel = lowlevel

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


def install_spin(busy: Callable[[], bool], runtime: Runtime) -> None:
    """Make pyfuse3 wait this way: it looks `trio` up as an attribute of its module, where its asyncio mode replaces it too."""
    setattr(pyfuse3, "trio", _SpinningTrio(_SpinningLowlevel(busy, runtime)))  # noqa: B010
