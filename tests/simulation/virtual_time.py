"""Tests in virtual time: a second that nobody uses takes none, and the scheduler's order is the same in every run."""

from collections.abc import Awaitable, Callable
from functools import partial, wraps
from random import Random
from typing import ParamSpec, TypeVar

import trio
import trio._core._run as scheduler
from trio.testing import MockClock

P = ParamSpec("P")
T = TypeVar("T")

BOUND_SECONDS = 100_000
"""Virtual seconds after which a test, or a simulation, waits for something that never comes."""


def run_in_virtual_time(main: Callable[[], Awaitable[T]], *, seed: int = 0) -> T:
    """Run `main` to its end. The same seed gives the same order of tasks."""
    # What trio documents for libraries that replay: the batch of runnable tasks is ordered by this generator.
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    scheduler._r = Random(seed)

    async def bounded() -> T:
        with trio.fail_after(BOUND_SECONDS):
            return await main()

    return trio.run(bounded, clock=MockClock(autojump_threshold=0))


def in_virtual_time(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """A test that runs in virtual time; its fixtures must not be asynchronous."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        run_in_virtual_time(partial(test, *args, **kwargs))

    return run
