"""What must be true of every simulation, a checker a file; each returns what is wrong, a line each."""

from collections.abc import Callable

from tests.simulation.evidence import Evidence
from tests.simulation.invariants import (
    acknowledged,
    agreement,
    counters,
    fences,
    leases,
    mirror,
    once,
    placement,
    quiet,
    reading,
    realtime,
    stranded,
    tree,
)

Check = Callable[[Evidence], list[str]]

EVERY: tuple[Check, ...] = (
    placement.check,
    mirror.check,
    once.check,
    fences.check,
    tree.check,
    agreement.check,
    acknowledged.check,
    reading.check,
    leases.check,
    counters.check,
    stranded.check,
    realtime.check,
    quiet.check,
)


def violations(evidence: Evidence) -> list[str]:
    """What is wrong, by every checker."""
    return [f"{check.__module__.rsplit('.', 1)[1]}: {line}" for check in EVERY for line in check(evidence)]
