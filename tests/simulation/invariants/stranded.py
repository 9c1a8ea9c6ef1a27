"""What was written under a lock that was lost is in a recovery folder."""

from tests.simulation.evidence import Evidence


def check(evidence: Evidence) -> list[str]:
    """What is nowhere."""
    return evidence.stranded
