"""Where segments are: in enough replicas before an entry names them, and in every member once all was quiet."""

from agentfs.chunks.segment import segment_key
from agentfs.model.ids import Position
from agentfs.state.apply import apply_entry
from agentfs.state.tables import open_tables
from tests.simulation.evidence import Evidence


def check(evidence: Evidence) -> list[str]:
    """Entries that named a segment too early, and members that lack one that files need, by State or in truth."""
    wrong = list(evidence.short)
    tables = open_tables(None)
    for number, entry in enumerate(evidence.entries, 1):
        apply_entry(tables, entry, Position(number))
        tables.settle()
    used = tables.db.execute("SELECT segment, name FROM segments WHERE segment IN (SELECT segment FROM extents)").fetchall()
    for segment, name in used:
        truly = {replica for replica, store in evidence.stores.items() if segment_key(name) in store._objects}
        if truly != tables.members.keys():
            wrong.append(f"segment {segment} is in replicas {sorted(truly)} of {sorted(tables.members)}, after all was quiet")
        if set(tables.replicas_with(segment)) != tables.members.keys():
            wrong.append(f"segment {segment} is not known to be in every member, after all was quiet")
    tables.close()
    return wrong
