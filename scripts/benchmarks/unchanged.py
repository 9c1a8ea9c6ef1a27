"""The phase `open`: opening, reading and closing a file that nobody changes, again and again."""

import os
from pathlib import Path
from time import perf_counter_ns

from scripts.benchmarks.phase import Stage, in_turn
from scripts.benchmarks.series import Findings, Tally
from scripts.benchmarks.watching import read

BURST = 10
"""How many in a row before it is another place's turn."""

CONTENT = b"x" * 4096


class Unchanged:
    """Beside a stat of the same file, which the kernel answers from its cache."""

    name = "open"
    about = "open + read + close of an unchanged file of 4 KiB, hot"
    rounds = 300

    def run(self, stage: Stage, rounds: int) -> Findings:
        """One process; a file in each place."""
        worker = stage.hire()
        for place in stage.alone:
            (place.here / "f").write_bytes(CONTENT)
        tally = Tally()
        for _, place in in_turn(stage.alone, rounds):
            tally.add("open + read + close", place.name, worker.do(read_burst, place.here / "f"))
            tally.add("stat", place.name, worker.do(stat_burst, place.here / "f"))
        return Findings(self.name, tally.series())


def read_burst(path: Path) -> list[int]:
    """How long each of some reads took, in nanoseconds."""
    took = []
    for _ in range(BURST):
        began = perf_counter_ns()
        content = read(path)
        took.append(perf_counter_ns() - began)
        assert content == CONTENT
    return took


def stat_burst(path: Path) -> list[int]:
    """How long each of some stats took, in nanoseconds."""
    took = []
    for _ in range(BURST):
        began = perf_counter_ns()
        os.stat(path)
        took.append(perf_counter_ns() - began)
    return took
