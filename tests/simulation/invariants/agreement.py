"""Every mount's State at a position is the one that a fresh replay has there."""

from agentfs.model.ids import Position
from agentfs.state.apply import apply_entry
from agentfs.state.checksum import checksum
from agentfs.state.tables import open_tables
from tests.simulation.evidence import Evidence


def check(evidence: Evidence) -> list[str]:
    """Mounts whose State was another."""
    asked = {position for position, _, _ in evidence.states}
    right: dict[int, str] = {}
    tables = open_tables(None)
    for number, entry in enumerate(evidence.entries, 1):
        apply_entry(tables, entry, Position(number))
        tables.settle()
        if number in asked:
            right[number] = checksum(tables)
    tables.close()
    return [
        f"session {session} at position {position}: {state[:8]}, a replay has {right.get(position, 'no such entry')[:8]}"
        for position, state, session in evidence.states
        if right.get(position) != state
    ]


def final_checksum(evidence: Evidence) -> str:
    """The checksum of the whole journal's State: by it two runs of a seed are compared."""
    tables = open_tables(None)
    for number, entry in enumerate(evidence.entries, 1):
        apply_entry(tables, entry, Position(number))
        tables.settle()
    found = checksum(tables)
    tables.close()
    return found
