"""The phase `lock`: taking and giving back a lock that nobody else wants, again and again."""

import contextlib
import os
from time import perf_counter_ns

from scripts.benchmarks.ground import LOCAL, ONE_MOUNT
from scripts.benchmarks.locking import KINDS, lock, unlock
from scripts.benchmarks.phase import Stage, in_turn
from scripts.benchmarks.series import Aim, Findings, Series, Tally, median

BURST = 10
"""How many in a row before it is another place's turn."""

REQUESTS = "two requests"


class Uncontended:
    """Beside the same calls on the local directory, and beside two requests that always reach the daemon."""

    name = "lock"
    about = "lock + unlock, uncontended; two requests: two getxattr of what is not there"
    rounds = 300

    def run(self, stage: Stage, rounds: int) -> Findings:
        """One process; files of its own in each place."""
        worker = stage.hire()
        opened = {
            (place, kind): worker.do(os.open, place.here / kind, os.O_RDWR | os.O_CREAT)
            for place in stage.alone
            for kind in KINDS
        }
        tally = Tally()
        for _, place in in_turn(stage.alone, rounds):
            for kind in KINDS:
                tally.add(kind, place.name, worker.do(lock_burst, opened[place, kind], kind))
            if place.is_mount:
                tally.add(REQUESTS, place.name, worker.do(request_burst, opened[place, KINDS[0]]))
        series = tally.series()
        return Findings(self.name, series, tuple(_aim(series, kind) for kind in KINDS))


def _aim(series: tuple[Series, ...], kind: str) -> Aim:
    floor = median(series, kind, LOCAL) + median(series, REQUESTS, ONE_MOUNT)
    return Aim(f"{kind} ÷ ({LOCAL} + {REQUESTS})", median(series, kind, ONE_MOUNT) / floor, 2, "×")


def lock_burst(descriptor: int, kind: str) -> list[int]:
    """How long each of some pairs of lock and unlock took, in nanoseconds."""
    took = []
    for _ in range(BURST):
        began = perf_counter_ns()
        lock(descriptor, kind)
        unlock(descriptor, kind)
        took.append(perf_counter_ns() - began)
    return took


def request_burst(descriptor: int) -> list[int]:
    """How long each of some pairs of requests took, in nanoseconds. No kernel remembers that an attribute is not there."""
    took = []
    for _ in range(BURST):
        began = perf_counter_ns()
        for _ in range(2):
            with contextlib.suppress(OSError):
                os.getxattr(descriptor, "user.absent")
        took.append(perf_counter_ns() - began)
    return took
