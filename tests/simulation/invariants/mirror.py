"""The mirror: what was acknowledged could be rebuilt from replicas at that moment, and in the end from any single one."""

from collections import Counter

from agentfs.journal.mirror import decode_mirrored, parse_mirror_key
from agentfs.model.ids import Position
from agentfs.state.apply import apply_entry
from agentfs.state.checkpoint import parse_checkpoint_key
from agentfs.state.tables import open_tables
from tests.simulation.evidence import Evidence


def check(evidence: Evidence) -> list[str]:
    """What was acknowledged too early, and replicas that hold something else than the journal, or not all of it."""
    return _too_early(evidence) + _not_whole(evidence)


def _too_early(evidence: Evidence) -> list[str]:
    """As many replicas as a put asks for must have held every entry up to the one that was acknowledged."""
    wrong = []
    holders: Counter[int] = Counter()
    seen: set[tuple[int, int]] = set()
    whole = at = 0
    for promise in evidence.promises:
        for replica, (first, last) in evidence.mirrored[at : promise.puts]:
            fresh = {(replica, position) for position in range(first, last + 1)} - seen
            seen |= fresh
            holders.update(position for _, position in fresh)
        at = max(at, promise.puts)
        while holders[whole + 1] >= evidence.needed:
            whole += 1
        done = (each for each in evidence.witness.done if each.outcome is None and promise.is_kept_by(each.change))
        position = next((each.position for each in done), None)
        if position is not None and position > whole:
            wrong.append(f"entry {position} ({promise.what}) was acknowledged when the mirror was whole up to {whole}")
    return wrong


def _not_whole(evidence: Evidence) -> list[str]:
    wrong = []
    for replica in _members(evidence):
        objects = evidence.stores[replica]._objects
        checkpoints = sorted(key.position for each in objects if (key := parse_checkpoint_key(each)) is not None)
        held: set[int] = set()
        for key, body in objects.items():
            if parse_mirror_key(key) is None:
                continue
            for record in decode_mirrored(body):
                held.add(record.position)
                if record.payload != evidence.payloads[record.position - 1]:
                    wrong.append(f"replica {replica} holds another entry {record.position} than the journal, in {key}")
        base = checkpoints[-2:][0] if checkpoints else 0
        missing = sorted(set(range(base + 1, len(evidence.payloads) + 1)) - held)
        if missing:
            count = len(evidence.payloads)
            wrong.append(f"replica {replica} lacks {len(missing)} of {count} entries, from {missing[0]}, after all was quiet")
    return wrong


def _members(evidence: Evidence) -> list[int]:
    tables = open_tables(None)
    for number, entry in enumerate(evidence.entries, 1):
        apply_entry(tables, entry, Position(number))
        tables.settle()
    members = sorted(tables.members)
    tables.close()
    return members
