"""Writers and readers that work on mounts all the time, and note whatever is not as it should be.

They are threads of the test's process, so that readers know what was acknowledged to writers at the moment they ask. A thread
that waits in a mount comes back when its daemon ends, at the latest.
"""

import errno
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.chaos.ledger import Ledger
from tests.chaos.reader import Reader, content, unlike
from tests.chaos.writer import Writer
from tests.mount.place import wait_until

REST_SECONDS: Final = 0.2
"""The longest rest between two operations of one thread: two cores serve mounts, stores and tests, and nothing is collected."""

GONE: Final = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.ENOENT, errno.EIO, errno.ESTALE, errno.ENODEV})
"""What programs see of a mount whose daemon was killed, until it is mounted again."""


class Load:
    """Threads that write through one mount, and read through this and others.

    `wrong` holds what must never be, such as "far1: w1/f7: it is not there". `refused` counts errors of operations by who met
    them and their errno: whether they may be is the test's to say.
    """

    def __init__(self, seed: str) -> None:
        self.ledger = Ledger()
        self.wrong: list[str] = []
        self.refused: Counter[tuple[str, str]] = Counter()
        self.acknowledged = 0
        self.reads: Counter[str] = Counter()
        self.slowest_seconds: dict[str, float] = {}
        self._seed = seed
        self._lock = threading.Lock()
        self._running = threading.Event()
        self._running.set()
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []
        self._busy: dict[str, float] = {}
        self._gates: dict[Path, threading.Event] = {}
        self._used: dict[str, Path] = {}

    # ---- who works

    def write(self, root: Path, name: str) -> None:
        """Start a writer with a directory of its own below a mountpoint."""
        (root / name).mkdir()
        writer = Writer(self.ledger, root, name, random.Random(f"{self._seed} {name}"))

        def step() -> None:
            writer.step()
            with self._lock:
                self.acknowledged += 1

        self._start(name, root, step)

    def read(self, root: Path, name: str, *, name_lag_seconds: float = 0.0) -> None:
        """Start a reader of what all writers wrote; new names may come to its mount so late."""
        source = random.Random(f"{self._seed} {name}")
        reader = Reader(self.ledger, root, source, name_lag_seconds=name_lag_seconds)
        self.reads[name] = 0

        def step() -> None:
            wrong = reader.step()
            if wrong:
                self.wrong.append(f"{name}: {wrong}")
            self.reads[name] += wrong == ""

        self._start(name, root, step)

    @contextmanager
    def away(self, root: Path, *, idle: bool) -> Iterator[None]:
        """Who uses that mount rests until the block ends; what it meets while the mount goes away is no fault.

        `idle` lets what is under way end first.
        """
        gate = self._gates[root]
        gate.clear()
        names = [name for name, used in self._used.items() if used == root]
        try:
            wait_until(lambda: not idle or not self._busy.keys() & names, f"{names} to be idle", seconds=120)
            yield
        finally:
            gate.set()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nobody does anything within the block."""
        self._running.clear()
        try:
            wait_until(lambda: not self._busy, "the operations under way to end", seconds=120)
            yield
        finally:
            self._running.set()

    def end(self) -> None:
        """Stop all of them; the mounts must still be there, or be gone for good."""
        self._ending.set()
        self._running.set()
        for gate in self._gates.values():
            gate.set()
        for thread in self._threads:
            thread.join(120)
        stuck = {name: time.monotonic() - since for name, since in self._busy.items()}
        assert not stuck, f"operations that do not end, and their seconds: {stuck}"

    # ---- what came of it

    def progress(self, *, writes: int, reads: int, seconds: float = 60) -> None:
        """Return once so many more writes were acknowledged, and so many more reads of each reader were right."""
        wanted = self.acknowledged + writes
        each = {name: count + reads for name, count in self.reads.items()}

        def enough() -> bool:
            assert not self.wrong, self.wrong
            return self.acknowledged >= wanted and all(self.reads[name] >= count for name, count in each.items())

        wait_until(enough, f"{writes} writes and {reads} reads of each; refused so far: {dict(self.refused)}", seconds=seconds)

    def check(self, root: Path, what: str) -> None:
        """Read every file through a mount and compare it; where two outcomes were right, the one found is from then on.

        Nobody may write meanwhile.
        """
        for path in self.ledger.paths():
            fact = self.ledger.fact(path)
            assert fact is not None
            found = content(root / path)
            if fact.whole and found not in fact.outcomes:
                self.wrong.append(f"{what}: {path}: {unlike(fact, found)}")
            elif fact.whole and found is None:
                self.ledger.forget(path)
            elif fact.whole:
                self.ledger.done(path, found)
        assert not self.wrong, self.wrong

    def _start(self, name: str, root: Path, step: Callable[[], None]) -> None:
        gate = self._gates.setdefault(root, threading.Event())
        gate.set()
        self._used[name] = root
        self._threads.append(threading.Thread(target=self._work, args=(name, step, gate), name=name, daemon=True))
        self._threads[-1].start()

    def _work(self, name: str, step: Callable[[], None], gate: threading.Event) -> None:
        source = random.Random(f"{self._seed} rests of {name}")
        while not self._ending.is_set():
            gate.wait()
            self._running.wait()
            self._busy[name] = time.monotonic()
            # Who wants it to rest looks at `_busy` after saying so; and we the other way round.
            if gate.is_set() and self._running.is_set():
                self._take(name, step, gate)
            del self._busy[name]
            time.sleep(source.uniform(0, REST_SECONDS))

    def _take(self, name: str, step: Callable[[], None], gate: threading.Event) -> None:
        try:
            step()
        except OSError as error:
            if gate.is_set() or error.errno not in GONE:
                self._refused(name, error)
        except Exception as error:
            self.wrong.append(f"{name}: {error!r}")
        with self._lock:
            took = time.monotonic() - self._busy[name]
            self.slowest_seconds[name] = max(took, self.slowest_seconds.get(name, 0.0))

    def _refused(self, name: str, error: OSError) -> None:
        if isinstance(error, FileNotFoundError | FileExistsError):
            self.wrong.append(f"{name}: {error}")
        with self._lock:
            self.refused[name, errno.errorcode.get(error.errno or 0, str(error))] += 1
