"""The only door to clocks, randomness and threads; a simulation passes another implementation of `Runtime`."""

import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Args = TypeVarTuple("Args")


class Threads(Protocol):
    """A bounded number of threads for calls that may hang, as those over a network do."""

    async def run(self, function: Callable[[*Args], T], *args: *Args) -> T:
        """Run a blocking function once a thread is free. A caller that is cancelled leaves at once: the function goes on to its
        end, its result is dropped, and its thread stays taken until then.
        """
        ...


class Runtime(Protocol):
    """What the program takes from the world besides its journal, its replicas and its disk."""

    def now_ns(self) -> int:
        """The wall clock, nanoseconds since the epoch: for time stamps that people read, never to compare hosts."""
        ...

    def boottime(self) -> float:
        """Seconds on a clock that never jumps and counts suspend (CLOCK_BOOTTIME): for ages and leases."""
        ...

    def random_bytes(self, count: int) -> bytes:
        """`count` unpredictable bytes: for tokens and ids."""
        ...

    def jitter(self) -> float:
        """A number in [0, 1): for spreading retries."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...

    async def in_thread(self, function: Callable[[*Args], T], *args: *Args) -> T:
        """Run a blocking function beside the event loop. It is not interrupted by cancellation: the caller waits for it."""
        ...

    async def in_new_thread(self, function: Callable[[*Args], T], *args: *Args) -> T:
        """As `in_thread`, in a thread that does nothing before or after: for what changes the thread itself."""
        ...

    def threads(self, count: int) -> Threads:
        """At most `count` threads of one's own, whose calls a cancelled caller does not wait for."""
        ...


class SystemRuntime:
    """The real clocks, randomness and threads."""

    def __init__(self, *, threads_max: int = 16) -> None:
        self._limiter = trio.CapacityLimiter(threads_max)

    def now_ns(self) -> int:
        return time.time_ns()

    def boottime(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def random_bytes(self, count: int) -> bytes:
        return os.urandom(count)

    def jitter(self) -> float:
        return random.random()

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def in_thread(self, function: Callable[[*Args], T], *args: *Args) -> T:
        return await trio.to_thread.run_sync(function, *args, limiter=self._limiter)

    async def in_new_thread(self, function: Callable[[*Args], T], *args: *Args) -> T:
        def run() -> T:
            with ThreadPoolExecutor(1) as own:
                return own.submit(function, *args).result()

        return await self.in_thread(run)

    def threads(self, count: int) -> Threads:
        return _SystemThreads(count)


class _SystemThreads:
    def __init__(self, count: int) -> None:
        self._limiter = trio.CapacityLimiter(count)

    async def run(self, function: Callable[[*Args], T], *args: *Args) -> T:
        return await trio.to_thread.run_sync(function, *args, limiter=self._limiter, abandon_on_cancel=True)
