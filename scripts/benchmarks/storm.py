"""The trial `storm`: what a mount's own work loses while another session makes thousands of files."""

import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter_ns
from typing import NamedTuple

from scripts.benchmarks.remote_creates import DIRECTORY, Storm, begun, poured
from scripts.benchmarks.series import Aim, Findings, Ledger
from scripts.benchmarks.watching import forget, moment, new_moment, wait_for
from scripts.benchmarks.yard import Yard, mounted_anew
from tests.mount.place import Mount, wait_until
from tests.mount.watching import Watcher

QUIET, ELSEWHERE, HERE = "no storm", "storm elsewhere", "storm here"
"""Beside what the work is done. Elsewhere is another workspace's journal on the same disk: as much load, nothing to follow."""

RATES = (300, 0)
"""Creates a second: what a remote mount reaches, and as fast as the journal takes them."""

OPTIONS = ((), ("-o", "noreplay"))
"""Mounts that tell watchers what others did, and mounts that do not."""

SHARE = 0.8
"""What a storm must leave of local work."""

FILES = 50
"""How many the local work saves, in turn."""

CONTENT = b"y" * 1000

SLACK_SECONDS = 0.2
"""How much longer the storm lasts than the work beside it."""

LOST = 5
"""How many creates watchers may miss without a hint. A watch that was just set, and one that is removed, may miss some."""


class Sight(NamedTuple):
    """What a watcher was told: the names that appeared, and when it was last told only that something changed, or 0."""

    names: set[str]
    summed_up: int

    def lacks(self, name: str, made: int) -> bool:
        """Whether nothing pointed to a name that was made at that time."""
        return name not in self.names and made > self.summed_up


class RemoteStorm:
    """Local work is saving a file as editors do (write another, rename it over) and reading it back."""

    name = "storm"
    about = "saves a second beside a storm of remote creates: write, rename over, read back"
    rounds = 3
    needs_s3 = False

    def run(self, yard: Yard, rounds: int) -> Findings:
        """The same with replay and without it."""
        scene = _Scene(yard)
        ledger = Ledger()
        for options in OPTIONS:
            mounted_anew(scene.mount, *options)
            scene.prepare()
            for number in range(rounds):
                for rate in RATES:
                    for beside in _in_turn(number):
                        scene.measure(ledger, _work(rate, options), beside, rate, replays=not options)
        return Findings(self.name, figures=ledger.figures(), aims=tuple(_aims(ledger)))


def _work(rate: int, options: tuple[str, ...]) -> str:
    return f"{f'{rate}/s' if rate else 'unthrottled'}{', noreplay' if options else ''}"


def _aims(ledger: Ledger) -> Iterator[Aim]:
    for work in (_work(rate, options) for options in OPTIONS for rate in RATES):
        # What was measured one after the other stands side by side: the machine may be busier in one round than in another.
        pairs = zip(ledger.values(f"saves, {work}", HERE), ledger.values(f"saves, {work}", ELSEWHERE), strict=True)
        ratio = statistics.median(here / elsewhere for here, elsewhere in pairs)
        yield Aim(f"saves, {work}: {HERE} ÷ {ELSEWHERE}", ratio, SHARE, "×", at_least=True)
    for work in (_work(rate, OPTIONS[0]) for rate in RATES):
        yield Aim(f"lost silently, {work}", ledger.median(f"lost silently, {work}", HERE), LOST, "creates")


def _in_turn(number: int) -> list[str]:
    beside = [QUIET, ELSEWHERE, HERE]
    return beside[number % 3 :] + beside[: number % 3]


class _Scene:
    """A mount, another workspace beside it, and the processes: who works, who storms, who watches."""

    def __init__(self, yard: Yard) -> None:
        self.mount = yard.workspace("here")
        other = yard.workspace("elsewhere")
        self._journals = {HERE: self.mount.journal, ELSEWHERE: other.journal}
        self._seconds = 0.15 if yard.is_smoke else 4.0
        self._told_seconds = 0.5 if yard.is_smoke else 3.0
        self._pouring, self._watching, self._over = (new_moment(yard.base / name) for name in ("pouring", "watching", "over"))
        self._worker, self._storm, self._watcher = yard.hire(), yard.hire(), yard.hire()
        for journal in self._journals.values():
            self._storm.do(begun, journal)

    def prepare(self) -> None:
        """Where the work is done is there, and the kernel knows the directory that the storm is in."""
        (self.mount.path / "mine").mkdir(exist_ok=True)
        wait_until((self.mount.path / DIRECTORY).is_dir, "the storm's directory")
        self._worker.do(saves, self.mount.path / "mine", 0.3)

    def measure(self, ledger: Ledger, work: str, beside: str, rate: int, *, replays: bool) -> None:
        """One stretch of work, beside a storm or not."""
        watched = beside == HERE and replays
        for each in (self._pouring, self._watching, self._over):
            forget(each)
        if watched:
            self._watcher.begin(told, self.mount.path / DIRECTORY, self._watching, self._over, self._told_seconds)
            wait_for(self._watching)
        if beside != QUIET:
            self._storm.begin(poured, self._journals[beside], rate, self._seconds + SLACK_SECONDS, self._pouring)
            wait_for(self._pouring)
        done = self._worker.do(saves, self.mount.path / "mine", self._seconds)
        ledger.add(f"saves, {work}", beside, done, "/s")
        if beside == QUIET:
            return
        storm: Storm = self._storm.end()
        ledger.add(f"creates, {work}", beside, _rate(storm), "/s")
        if beside == HERE:
            ledger.add(f"behind at the end, {work}", beside, _behind(self.mount, storm), "ms")
        if watched:
            moment(self._over).mark()
            told_of: Sight = self._watcher.end()
            silent = [name for name, at in zip(storm.names, storm.times, strict=True) if told_of.lacks(name, at)]
            ledger.add(f"only summed up, {work}", beside, len(set(storm.names) - told_of.names) - len(silent), "creates")
            ledger.add(f"lost silently, {work}", beside, len(silent), "creates")


def _rate(storm: Storm) -> float:
    return (len(storm.times) - 1) / (storm.times[-1] - storm.times[0]) * 1e9


def _behind(mount: Mount, storm: Storm) -> float:
    """How long after the storm's end the mount has applied all of it, in milliseconds."""
    wait_until(lambda: mount.position() >= storm.tail, "the mount to have followed")
    return (perf_counter_ns() - storm.times[-1]) / 1e6


def saves(directory: Path, seconds: float) -> float:
    """Work for some time: saves a second."""
    began, count = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < seconds:
        path = directory / f"f{count % FILES}"
        spare = path.with_suffix(".tmp")
        spare.write_bytes(CONTENT)
        os.rename(spare, path)
        assert path.read_bytes() == CONTENT
        count += 1
    return count / took


def told(directory: Path, watching: Path, over: Path, seconds: float) -> Sight:
    """Watch a directory until it is over and nothing has come for so long."""
    watcher = Watcher(here=directory)
    moment(watching).mark()
    sight, heard = Sight(set(), 0), time.monotonic()
    try:
        while not moment(over).is_before(perf_counter_ns()) or time.monotonic() < heard + seconds:
            for event in watcher.poll(0.1):
                heard = time.monotonic()
                assert event.kind != "overflow", "the watcher was too slow for what it was told"
                if event.kind == "create":
                    sight.names.add(event.name)
                elif event.kind == "attrib" and not event.name:
                    sight = sight._replace(summed_up=perf_counter_ns())
    finally:
        watcher.close()
    return sight
