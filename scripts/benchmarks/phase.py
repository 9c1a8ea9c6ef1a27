"""What a phase of the benchmark is, and what it is given to run on."""

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from scripts.benchmarks.series import Findings
from scripts.benchmarks.worker import Worker
from tests.mount.place import wait_until

SETTLE_SECONDS = (0.010, 0.030)
"""How long a round rests before what it measures: long enough that a request which was sent has arrived everywhere, and never
the same, so that rounds do not keep step with anything periodic."""


@dataclass(frozen=True, slots=True)
class Place:
    """One directory by two paths, `here` and `there`: the same path, or the mountpoints of two mounts of one workspace."""

    name: str
    here: Path
    there: Path
    is_mount: bool

    @property
    def crosses(self) -> bool:
        """Whether what is done here must reach another mount to be seen there."""
        return self.here != self.there


@dataclass(frozen=True, slots=True)
class Stage:
    """What a phase runs on: an empty directory in each place, and processes to hire, which end with the phase."""

    places: tuple[Place, ...]
    floor: tuple[Place, ...]
    """What else there is for one process by itself: passthrough_ll, where it could be compiled."""

    hire: Callable[[], Worker]
    scratch: Path
    """A local directory for what is not measured."""

    @property
    def alone(self) -> tuple[Place, ...]:
        """The places for what one process does by itself."""
        return (*(place for place in self.places if not place.crosses), *self.floor)


class Measured(Protocol):
    """Something to measure, with a name and a line that says what it is."""

    name: str
    about: str
    rounds: int
    """How often it is done in each place unless the user says otherwise."""


class Phase(Measured, Protocol):
    """Something measured in every place, alternately: small things, many times."""

    def run(self, stage: Stage, rounds: int) -> Findings:
        """Do it. Whatever does not work raises."""


def in_turn(places: Sequence[Place], rounds: int) -> Iterator[tuple[int, Place]]:
    """Each place once a round, with the round's number; another place begins each time."""
    for number in range(rounds):
        first = number % len(places)
        for place in (*places[first:], *places[:first]):
            yield number, place


def make(place: Place, name: str) -> None:
    """Make an empty file that the place shows both here and there when this returns."""
    (place.here / name).touch()
    wait_until((place.there / name).exists, f"{place.there / name} to appear")


def opened(worker: Worker, path: Path) -> tuple[Worker, int]:
    """A worker, and its descriptor of a file that is there."""
    return worker, worker.do(os.open, path, os.O_RDWR)


def settle() -> None:
    """Rest before what is measured."""
    time.sleep(random.uniform(*SETTLE_SECONDS))
