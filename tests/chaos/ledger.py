"""What each file may hold, told from what its writer was told: the judge of every read."""

import random
import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fact:
    """What a file may hold: one of `outcomes`, None for a file that is not there.

    There are several while a change of it is under way, or after one that failed: both outcomes are right then. `whole` says
    that a reader sees one of them entirely; a change that takes several requests may show between them.
    """

    outcomes: tuple[bytes | None, ...]
    whole: bool = True

    @property
    def settled(self) -> bool:
        """Whether only one outcome is right."""
        return len(self.outcomes) == 1 and self.whole


class Ledger:
    """The facts of all files that concern a test, by their paths below the mountpoint. Any thread may ask."""

    def __init__(self) -> None:
        self._facts: dict[str, Fact] = {}
        self._lock = threading.Lock()

    def begin(self, path: str, outcome: bytes | None, *, whole: bool = True) -> None:
        """A change of the file begins, which makes `outcome` of it."""
        with self._lock:
            before = self._facts.get(path, Fact((None,)))
            self._facts[path] = Fact((*before.outcomes, outcome), whole and before.whole)

    def done(self, path: str, outcome: bytes | None) -> None:
        """The change was acknowledged: nothing else is right from now on."""
        with self._lock:
            self._facts[path] = Fact((outcome,))

    def forget(self, path: str) -> None:
        """Nothing is known of the file any more."""
        with self._lock:
            self._facts.pop(path, None)

    def fact(self, path: str) -> Fact | None:
        """What the file may hold."""
        with self._lock:
            return self._facts.get(path)

    def paths(self) -> list[str]:
        """Every file that something is known of."""
        with self._lock:
            return list(self._facts)

    def pick(self, source: random.Random) -> tuple[str, Fact] | None:
        """A file that has a content by all that is known; None if there is none yet."""
        with self._lock:
            known = [(path, fact) for path, fact in self._facts.items() if fact.settled and fact.outcomes[0] is not None]
        return source.choice(known) if known else None
