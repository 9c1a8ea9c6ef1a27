"""Steps that every subject does in turn, round after round: how long each takes, and what it costs."""

import os
import sqlite3
import statistics
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from scripts.benchmarks.gateway import Requests
from scripts.benchmarks.series import Aim, Cost, Ledger
from scripts.benchmarks.subject import Subject
from scripts.benchmarks.yard import Yard, worked_seconds

PATIENCE_SECONDS = 1800.0
"""How long one step of one subject may take before it counts as failed."""

FAULTS = (OSError, RuntimeError, AssertionError, sqlite3.Error, UnicodeError)
"""How a step fails."""

Task = partial[Any]
"""What the process is to do: a function of a module, and its arguments."""


class Gauge(NamedTuple):
    """What the seconds that a step took are turned into."""

    unit: str
    value: Callable[[float], float]


SECONDS = Gauge("s", lambda seconds: seconds)


def each(count: int) -> Gauge:
    """How long one of so many took."""
    return Gauge("µs", lambda seconds: seconds * 1e6 / count)


def rate(mebibytes: float) -> Gauge:
    """How much a second."""
    return Gauge("MiB/s", lambda seconds: mebibytes / seconds)


class Race:
    """The subjects, in a process of their own for all of them, and what was found."""

    def __init__(self, yard: Yard, subjects: Sequence[Subject]) -> None:
        self.ledger = Ledger()
        self.costs: list[Cost] = []
        self.notes: list[str] = []
        self._yard = yard
        self._subjects = list(subjects)
        self._round = 0
        self._was_cold = False
        self._worker = yard.hire(PATIENCE_SECONDS)

    def rounds(self, count: int) -> Iterator[int]:
        """The numbers of the rounds; peers take part in the first `yard.peer_rounds` of them."""
        for self._round in range(count):
            self._was_cold = False
            yield self._round

    def step(
        self,
        what: str,
        task: Callable[[Subject], Task],
        *,
        gauge: Gauge = SECONDS,
        warm: bool = False,
        durable: bool = False,
    ) -> None:
        """Have each subject do what `task` gives for it, and note how long that took; with `warm` it is done once before.

        With `durable`, the subjects over S3 are also timed to the moment when all of it has reached the server.
        """
        for subject in self._in_turn():
            act = partial(self._timed, what, subject, task(subject), gauge, warm=warm, durable=durable)
            self._attempt(what, subject, act)

    def prepare(self, task: Task) -> None:
        """Have the process do what nobody is timed for."""
        self._worker.do(task)

    def requests_at_most(self, what: str, place: str, verb: str, bound: int) -> Iterator[Aim]:
        """The aim for how many requests a step makes, `verb` being `puts` or `gets`; nothing where it was not done."""
        counts = [getattr(cost, verb) for cost in self.costs if (cost.what, cost.place) == (what, place)]
        if counts:
            yield Aim(f"{what}: {verb.upper()[:-1]}s, {place}", statistics.median(counts), bound, "")

    def chore(self, what: str, task: Callable[[Subject], Task]) -> None:
        """Have each subject do what nobody is timed for."""

        def done(subject: Subject) -> None:
            self._worker.do(task(subject))
            subject.settle()

        for subject in self._in_turn():
            self._attempt(what, subject, partial(done, subject))

    def make_cold(self) -> None:
        """Mount each subject anew, with nothing cached; in a smoke test once a round, which shows that it works."""
        if self._was_cold and self._yard.is_smoke:
            return
        self._was_cold = True
        for subject in self._in_turn():
            self._attempt("mounting anew", subject, subject.make_cold)

    def rest(self, what: str) -> None:
        """Wait for what goes on in the background, and note what it costs."""
        for subject in self._in_turn():
            self._attempt(what, subject, partial(self._counted, what, subject, subject.rest))

    def _in_turn(self) -> list[Subject]:
        """Who takes part in this round; another one begins each time."""
        here = [one for one in self._subjects if not one.is_peer or self._round < self._yard.peer_rounds]
        first = self._round % max(len(here), 1)
        return [*here[first:], *here[:first]]

    def _attempt(self, what: str, subject: Subject, act: Callable[[], None]) -> None:
        """Do it; where a peer fails, say so. One that does not answer is out."""
        try:
            act()
        except FAULTS as error:
            if not subject.is_peer:
                raise
            reason = (str(error) or type(error).__name__).strip().splitlines()[-1][:200]
            self.notes.append(f"{subject.name}: {what} failed in round {self._round + 1}: {reason}")
            if isinstance(error, TimeoutError | subprocess.TimeoutExpired) or not subject.is_there():
                self.notes[-1] += "; it takes no further part"
                self._subjects.remove(subject)
                # First the server: a process that waits for an answer cannot be killed.
                subject.end()
                self._worker.stop()
                self._worker = self._yard.hire(PATIENCE_SECONDS)

    def _timed(self, what: str, subject: Subject, task: Task, gauge: Gauge, *, warm: bool, durable: bool) -> None:
        if warm:
            self._worker.do(task)
            subject.settle()
        self._worker.do(know, task.func.__module__)
        times: list[float] = []

        def act() -> None:
            began = perf_counter()
            self._worker.do(task)
            times.append(perf_counter() - began)
            subject.settle()
            times.append(perf_counter() - began)

        self._counted(what, subject, act)
        taken, settled = times
        self.ledger.add(what, subject.name, gauge.value(taken), gauge.unit)
        if durable and subject.gateway:
            self.ledger.add(f"{what}, durable", subject.name, gauge.value(settled), gauge.unit)

    def _counted(self, what: str, subject: Subject, act: Callable[[], None]) -> None:
        """Do it, and note what it costs."""
        before = subject.gateway.requests() if subject.gateway else None
        pids = subject.pids()
        worked = sum(map(worked_seconds, pids))
        for pid in pids:
            _forget_peak(pid)
        act()
        asked: Requests | None = None
        if subject.gateway and before:
            asked = subject.gateway.requests().since(before)
        if pids:
            spent = sum(map(worked_seconds, pids)) - worked
            peak = sum(map(peak_mib, pids))
            self.costs.append(Cost(what, subject.name, self._round, spent, peak, *(asked or (None,) * len(Requests._fields))))


def _forget_peak(pid: int) -> None:
    """Let the peak of resident memory begin anew (proc_pid_clear_refs(5))."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_mib(pid: int) -> float:
    """The most memory that a process had resident since then, in MiB (VmHWM)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


# ---- what the process is told to do


def know(module: str) -> None:
    """Have a module imported before what it does is timed."""
    import_module(module)


def run(command: Sequence[str], environment: Mapping[str, str], lines: int | None) -> bytes:
    """Run a command, which must succeed and, where a number is given, print so many lines; what it prints."""
    done = subprocess.run(
        command, env={**os.environ, "LC_ALL": "C", **environment}, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]}: code {done.returncode}: {done.stderr.decode(errors='replace').strip()[-300:]}")
    found = done.stdout.count(b"\n")
    if lines is not None and found != lines:
        raise RuntimeError(f"{command[0]} printed {found} lines instead of {lines}")
    return done.stdout


def removed(path: Path) -> Task:
    """A task: remove a file or a tree."""
    return partial(run, ["rm", "-rf", str(path)], {}, None)
