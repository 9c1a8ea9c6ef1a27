"""The runtime of a simulation: virtual clocks, seeded randomness, and no threads."""

from collections.abc import Callable
from random import Random
from typing import Final, TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Args = TypeVarTuple("Args")

EPOCH_NS: Final = 1_700_000_000 * 10**9


class VirtualRuntime:
    """The contract of `Runtime` on trio's clock, which a simulation replaces by a `MockClock`."""

    def __init__(self, random: Random, *, skew_ns: int = 0) -> None:
        self._random = random
        self._skew_ns = skew_ns
        self._stamps = 0

    def now_ns(self) -> int:
        # Virtual time stands still while tasks run: counting the stamps keeps a session's own times apart and in order.
        self._stamps += 1
        return EPOCH_NS + self._skew_ns + round(trio.current_time() * 10**9) + self._stamps

    def boottime(self) -> float:
        return trio.current_time()

    def random_bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def jitter(self) -> float:
        return self._random.random()

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def in_thread(self, function: Callable[[*Args], T], *args: *Args) -> T:
        await trio.lowlevel.checkpoint()
        return function(*args)

    async def in_new_thread(self, function: Callable[[*Args], T], *args: *Args) -> T:
        return await self.in_thread(function, *args)

    def threads(self, count: int) -> "_VirtualThreads":
        return _VirtualThreads()


class _VirtualThreads:
    async def run(self, function: Callable[[*Args], T], *args: *Args) -> T:
        await trio.lowlevel.checkpoint()
        return function(*args)
