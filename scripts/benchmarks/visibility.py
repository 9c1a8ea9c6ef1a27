"""The phase `close`: from one process's close of a file that it wrote to another's first sight of the content."""

import os
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns

from scripts.benchmarks.ground import TWO_MOUNTS
from scripts.benchmarks.phase import Place, Stage, in_turn, settle
from scripts.benchmarks.series import Aim, Findings, Series, Tally, median
from scripts.benchmarks.watching import forget, moment, new_moment, saw_closed, saw_content, saw_size
from scripts.benchmarks.worker import Worker

READABLE_MS = 5
READABLE, STAT, EVENT, CLOSE = "to open + read", "to stat", "to inotify event", "close() itself"


class Visibility:
    """Times count from the call of close(), not from its return. The other process looks all the time."""

    name = "close"
    about = "from the call of close() to the first open + read begun since that shows it, such a stat, and inotify"
    rounds = 300

    def run(self, stage: Stage, rounds: int) -> Findings:
        """A writer and a reader in each place."""
        series = self.measured(stage, rounds)
        aim = Aim(f"{READABLE}, {TWO_MOUNTS}", median(series, READABLE, TWO_MOUNTS) / 1e6, READABLE_MS, "ms")
        return Findings(self.name, series, (aim,))

    def measured(self, stage: Stage, rounds: int) -> tuple[Series, ...]:
        """How long it took in each place."""
        shared = new_moment(stage.scratch / "moment")
        pairs = {place: _Pair(stage, place, shared) for place in stage.places}
        tally = Tally()
        for number, place in in_turn(stage.places, rounds):
            pair = pairs[place]
            # No two rounds write the same content, nor the same length.
            content = b"%0100d" % number + b"\n" * (number + 1)
            looks = ((READABLE, saw_content, content), (STAT, saw_size, len(content)), (EVENT, saw_closed, content))
            for what, look, sign in looks:
                seen, closing, closed = pair.watch(what.rpartition(" ")[2], content, look, sign)
                tally.add(what, place.name, [seen - closing])
                tally.add(CLOSE, place.name, [closed - closing])
        return tally.series()


class _Pair:
    def __init__(self, stage: Stage, place: Place, shared: Path) -> None:
        self._place = place
        self._shared = shared
        self._writer: Worker = stage.hire()
        self._reader: Worker = stage.hire()
        for name in ("read", "stat", "event"):
            self._writer.do(saved, place.here / name, b"", shared)

    def watch(self, name: str, content: bytes, look: Callable[..., int], sign: object) -> tuple[int, int, int]:
        """When the reader saw what the writer wrote, when close() was called and when it returned, in nanoseconds."""
        self._writer.do(forget, self._shared)
        self._reader.begin(look, self._place.there / name, sign, self._shared)
        settle()
        closing, closed = self._writer.do(saved, self._place.here / name, content, self._shared)
        return self._reader.end(), closing, closed


def saved(path: Path, content: bytes, shared: Path) -> tuple[int, int]:
    """Write a file anew; when close() was called and when it returned, in nanoseconds. The moment is the first of them."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(descriptor, content)
    closing = moment(shared).mark()
    os.close(descriptor)
    return closing, perf_counter_ns()
