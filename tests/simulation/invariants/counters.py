"""Numbers that are counted under locks: each one that was acknowledged was written once, and the last one is the greatest."""

from collections import Counter

from tests.simulation.evidence import Evidence
from tests.simulation.witness import numbers_of


def check(evidence: Evidence) -> list[str]:
    """Numbers that two processes were told they wrote, and numbers that are gone."""
    times = Counter(evidence.added)
    wrong = [
        f"file {ino}, number {slot}: {value} was acknowledged {n} times" for (ino, slot, value), n in times.items() if n > 1
    ]
    for ino, slot in sorted({(ino, slot) for ino, slot, _ in evidence.added}):
        highest = max(value for each, where, value in evidence.added if (each, where) == (ino, slot))
        found = numbers_of(evidence.witness.read(ino))[slot:]
        if not found or found[0] < highest:
            wrong.append(f"file {ino}, number {slot} is {found[:1]}, and {highest} was acknowledged")
    return wrong
