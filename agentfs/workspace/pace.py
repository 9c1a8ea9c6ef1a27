"""Pace: how often something may be done that others cause, so that a storm of theirs does not take all of this mount's time."""

from agentfs.runtime import Runtime


class Pace:
    """Lets something happen at once after a quiet time, `burst` times in a row, and `per_second` times in the long run."""

    def __init__(self, runtime: Runtime, *, burst: int, per_second: float) -> None:
        self._runtime = runtime
        self._burst = burst
        self._per_second = per_second
        self._allowance = float(burst)
        self._counted = runtime.boottime()

    def count(self) -> float:
        """Count one; return the seconds to wait before it is done, 0 nearly always, and never more than from one to the next.

        Whoever cannot wait that long, and does it at once all the same, does not make later ones wait for it.
        """
        now = self._runtime.boottime()
        self._allowance = min(self._burst, self._allowance + (now - self._counted) * self._per_second)
        self._counted = now
        self._allowance = max(-1.0, self._allowance - 1)
        return max(0.0, -self._allowance / self._per_second)
