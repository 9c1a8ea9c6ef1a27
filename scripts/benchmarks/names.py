"""The phase `create`: from the creation of a file to another process's first sight of the name."""

import os
from pathlib import Path
from time import perf_counter_ns

from scripts.benchmarks.phase import Stage, in_turn, settle
from scripts.benchmarks.series import Findings, Tally
from scripts.benchmarks.watching import forget, moment, new_moment, saw_name

SEEN, CREATE = "to lookup", "create itself"


class Names:
    """The other process has looked the name up before, so that its kernel remembers that there is no such name."""

    name = "create"
    about = "from the call of open(O_CREAT) to the first lookup that finds the name; create itself: open + close"
    rounds = 300

    def run(self, stage: Stage, rounds: int) -> Findings:
        """A process that creates and one that looks, in each place."""
        shared = new_moment(stage.scratch / "moment")
        pairs = {place: (stage.hire(), stage.hire()) for place in stage.places}
        tally = Tally()
        for number, place in in_turn(stage.places, rounds):
            maker, looker = pairs[place]
            maker.do(forget, shared)
            looker.begin(saw_name, _path(place.there, number), shared)
            settle()
            began, ended = maker.do(created, _path(place.here, number), shared)
            tally.add(SEEN, place.name, [looker.end() - began])
            tally.add(CREATE, place.name, [ended - began])
        return Findings(self.name, tally.series())


def _path(directory: Path, number: int) -> Path:
    return directory / f"f{number}"


def created(path: Path, shared: Path) -> tuple[int, int]:
    """Create an empty file and close it; when that began and when it ended, in nanoseconds."""
    began = moment(shared).mark()
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644))
    return began, perf_counter_ns()
