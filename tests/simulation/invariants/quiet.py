"""Bounded time: requests are answered, and when faults stop, locks are granted and everybody reaches the tail."""

from tests.simulation.evidence import Evidence


def check(evidence: Evidence) -> list[str]:
    """What came too late or not at all."""
    return evidence.late + evidence.unsettled
