"""The lock calls that phases time, for both kinds of locks."""

import fcntl
from time import perf_counter_ns

KINDS = ("flock", "fcntl")


def lock(descriptor: int, kind: str) -> None:
    """Wait for an exclusive lock on the whole file."""
    _call(descriptor, kind, fcntl.LOCK_EX)


def unlock(descriptor: int, kind: str) -> None:
    """Give it back."""
    _call(descriptor, kind, fcntl.LOCK_UN)


def woken(descriptor: int, kind: str) -> tuple[int, int]:
    """Wait for a lock and keep it; when it was asked for and when it was had, in nanoseconds."""
    asked = perf_counter_ns()
    lock(descriptor, kind)
    return asked, perf_counter_ns()


def passed_on(descriptor: int, kind: str) -> tuple[int, int]:
    """Wait for a lock and give it back at once; the same times."""
    times = woken(descriptor, kind)
    unlock(descriptor, kind)
    return times


def released(descriptor: int, kind: str) -> int:
    """Give a lock back; when the call began, in nanoseconds."""
    began = perf_counter_ns()
    unlock(descriptor, kind)
    return began


def _call(descriptor: int, kind: str, operation: int) -> None:
    if kind == "flock":
        fcntl.flock(descriptor, operation)
    else:
        fcntl.lockf(descriptor, operation)
