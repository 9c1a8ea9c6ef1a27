"""A process reads what it wrote: a mount shows every record and number that it acknowledged itself."""

from tests.simulation.evidence import Evidence


def check(evidence: Evidence) -> list[str]:
    """What mounts showed and should not have."""
    return evidence.misread
