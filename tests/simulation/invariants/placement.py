"""Every segment that an entry names is in enough replicas before the entry is in the journal."""

from tests.simulation.evidence import Evidence


def check(evidence: Evidence) -> list[str]:
    """Entries that named a segment too early."""
    return evidence.short
