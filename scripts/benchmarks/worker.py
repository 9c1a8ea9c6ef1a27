"""A process that does what the benchmark tells it, so that what is timed has a process of its own."""

import pickle
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
ANSWER_SECONDS = 60.0
"""How long one call may take before the benchmark fails, unless said otherwise: a bound, not an expectation."""

# Without the garbage collector, as in `timeit`. A ^C is for the benchmark, which ends its workers.
_PROGRAM = (
    "import gc, signal; gc.disable(); signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    "from tests.mount.lockers import serve; serve()"
)


class Worker:
    """One such process. It calls functions of modules; their errors are raised here.

    Times that different workers take with `time.perf_counter_ns` can be compared: it is CLOCK_MONOTONIC.
    """

    def __init__(self, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._answer_seconds = answer_seconds
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Have a function called; its result."""
        self.begin(function, *arguments)
        return self.end()

    def begin(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Have a function called that may wait for something."""
        assert self._process.stdin is not None
        self._process.stdin.write(pickle.dumps((function, arguments, {})))
        self._process.stdin.flush()

    def end(self) -> Any:
        """The result of what was begun."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], self._answer_seconds)[0]:
            raise TimeoutError(f"process {self._process.pid} has been at one call for {self._answer_seconds:g} s")
        result, error = pickle.load(self._process.stdout)
        if error is not None:
            raise error
        return result

    def stop(self) -> None:
        """End the process, whatever it does; returns when it is gone."""
        self._process.kill()
        self._process.communicate(timeout=ANSWER_SECONDS)
