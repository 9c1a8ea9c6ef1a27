"""What a close, an fsync or a call that waits acknowledged is in the final tree, and nothing is there twice."""

from agentfs.model.ids import ROOT_INO
from tests.simulation.dictionary import Dictionary
from tests.simulation.evidence import Counter, Evidence

SLOT = 16
LARGE = 40_000


def slot_of(number: int) -> bytes:
    """What an actor writes into its slot."""
    return b"%015d\n" % number


def large_of(number: int) -> bytes:
    """What an actor writes as its whole large file."""
    return (b"%09d," % number) * (LARGE // 10)


def check(evidence: Evidence) -> list[str]:
    """Records, numbers and names that are missing, and records that are there twice."""
    tree = Dictionary(evidence.recall, evidence.witness.late)
    for entry in evidence.entries:
        tree.apply(entry)
    wrong = _records(evidence, tree.nodes[evidence.ledger].body)
    slots = tree.nodes[evidence.slots].body
    for actor, counter in evidence.counters.items():
        place = slots[actor * SLOT : (actor + 1) * SLOT]
        wrong += _counter(f"slot {actor}", place, [slot_of(n) for n in range(counter.written + 1)], counter)
    for actor, ino in evidence.large.items():
        counter, body = evidence.large_counters[actor], tree.nodes[ino].body
        wrong += _counter(f"large file {actor}", body, [large_of(n) for n in range(counter.written + 1)], counter)
    names = tree.nodes[ROOT_INO].names
    wrong += [f"{name.decode()} was made and is not there" for name in sorted(evidence.made - set(names))]
    wrong += [f"{name.decode()} was removed and is there" for name in sorted(evidence.removed & set(names))]
    return wrong


def _records(evidence: Evidence, ledger: bytes) -> list[str]:
    lines = ledger.splitlines()
    wrong = [f"the ledger has {line!r}, which nobody wrote" for line in lines if line not in evidence.records]
    wrong += [f"record {line!r} is there {lines.count(line)} times" for line in sorted(set(lines)) if lines.count(line) > 1]
    missing = sorted(record for record, safe in evidence.records.items() if safe and record not in lines)
    return wrong + [f"record {record!r} was acknowledged and is not there" for record in missing]


def _counter(what: str, body: bytes, versions: list[bytes], counter: Counter) -> list[str]:
    if not counter.acknowledged and not body.strip(b"\0"):
        return []
    if body in versions[counter.acknowledged :]:
        return []
    found = f"version {versions.index(body)}" if body in versions else f"{body[:20]!r}… ({len(body)} bytes)"
    return [f"{what} is {found}, {counter.acknowledged} was acknowledged and {counter.written} written"]
