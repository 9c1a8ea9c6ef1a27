"""The phase `handoff`: from one process's unlock to the wake of the one that waits for the lock."""

from scripts.benchmarks.ground import TWO_MOUNTS
from scripts.benchmarks.locking import KINDS, lock, released, woken
from scripts.benchmarks.phase import Place, Stage, in_turn, make, opened, settle
from scripts.benchmarks.series import Aim, Findings, Series, Tally, median

HANDOFF_MS = 5


class Handoff:
    """The lock goes to and fro between two processes, in two mounts where the place has two."""

    name = "handoff"
    about = "from unlock to the waiter's wake"
    rounds = 300

    def run(self, stage: Stage, rounds: int) -> Findings:
        """Two processes in each place, for each kind of lock."""
        series = self.measured(stage, rounds)
        aims = (Aim(f"{kind}, {TWO_MOUNTS}", median(series, kind, TWO_MOUNTS) / 1e6, HANDOFF_MS, "ms") for kind in KINDS)
        return Findings(self.name, series, tuple(aims))

    def measured(self, stage: Stage, rounds: int) -> tuple[Series, ...]:
        """How long it took in each place."""
        pairs = {(place, kind): _Pair(stage, place, kind) for place in stage.places for kind in KINDS}
        tally = Tally()
        for _, place in in_turn(stage.places, rounds):
            for kind in KINDS:
                tally.add(kind, place.name, [pairs[place, kind].hand_over()])
        return tally.series()


class _Pair:
    """The one that holds the lock, and the one that will."""

    def __init__(self, stage: Stage, place: Place, kind: str) -> None:
        self._kind = kind
        make(place, kind)
        self._holder = opened(stage.hire(), place.here / kind)
        self._waiter = opened(stage.hire(), place.there / kind)
        self._holder[0].do(lock, self._holder[1], kind)

    def hand_over(self) -> int:
        """How long it took, in nanoseconds; then they change roles."""
        (holder, held), (waiter, wanted) = self._holder, self._waiter
        waiter.begin(woken, wanted, self._kind)
        settle()
        unlocked = holder.do(released, held, self._kind)
        asked, had = waiter.end()
        self._holder, self._waiter = self._waiter, self._holder
        if unlocked < asked:
            # On a busy machine the waiter may come too late to wait.
            return self.hand_over()
        assert unlocked < had, f"two held the lock ({self._kind}) for {unlocked - had} ns"
        return int(had - unlocked)
