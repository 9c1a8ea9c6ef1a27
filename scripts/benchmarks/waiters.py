"""The phase `waiters`: ten processes wait for one lock, and each passes it on at once."""

from itertools import pairwise

from scripts.benchmarks.locking import lock, passed_on, released
from scripts.benchmarks.phase import Place, Stage, in_turn, make, opened, settle
from scripts.benchmarks.series import Findings, Tally

WAITERS = 10
KIND = "flock"


class Waiters:
    """Those of odd numbers are in the other mount where the place has two, so that each hand-off may cross."""

    name = "waiters"
    about = "ten waiters in turn: from the first unlock to the last wake, and from wake to wake"
    rounds = 30

    def run(self, stage: Stage, rounds: int) -> Findings:
        """Eleven processes in each place: the first holds the lock while the others queue."""
        crews = {place: _Crew(stage, place) for place in stage.places}
        tally = Tally()
        for _, place in in_turn(stage.places, rounds):
            unlocked, *woke = crews[place].pass_round()
            tally.add("all ten", place.name, [woke[-1] - unlocked])
            tally.add("one hand-off", place.name, [after - before for before, after in pairwise([unlocked, *woke])])
        return Findings(self.name, tally.series())


class _Crew:
    def __init__(self, stage: Stage, place: Place) -> None:
        make(place, "f")
        paths = [place.here / "f", *([place.here / "f", place.there / "f"] * (WAITERS // 2))]
        self._members = [opened(stage.hire(), path) for path in paths]

    def pass_round(self) -> list[int]:
        """When the lock was given back first, and when each one had it, in nanoseconds."""
        (holder, held), *waiting = self._members
        holder.do(lock, held, KIND)
        for worker, descriptor in waiting:
            worker.begin(passed_on, descriptor, KIND)
        settle()
        unlocked = holder.do(released, held, KIND)
        times = [worker.end() for worker, _ in waiting]
        if any(unlocked < asked for asked, _ in times):
            # On a busy machine one of them may come too late to wait.
            return self.pass_round()
        assert all(unlocked < had for _, had in times), "the lock was had before it was given back"
        return [unlocked, *sorted(had for _, had in times)]
