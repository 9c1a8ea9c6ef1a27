"""One simulation: actors on one journal and its replicas, from a seed to what is wrong with it."""

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from unittest.mock import patch

import structlog
import trio

from agentfs.journal.memory import MemoryJournal, MemoryLog
from agentfs.model.codec import encode_entry
from agentfs.model.entry import Entry, Transaction
from agentfs.model.ids import Ino, Position, ReplicaId, SessionId, TxnNumber, first_ino
from agentfs.workspace import collecting, compaction, folding, upkeep
from tests.simulation.actor import Actor
from tests.simulation.entries import DIRECTORY, founding, make, opening
from tests.simulation.evidence import Evidence, ObservedStore
from tests.simulation.gathering import Gathering
from tests.simulation.harm import Harm
from tests.simulation.invariants import violations
from tests.simulation.invariants.agreement import final_checksum
from tests.simulation.invariants.tree import content
from tests.simulation.virtual_time import run_in_virtual_time

REPLICAS = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a seed. The same seed gives the same outcome."""

    seed: int
    checksum: str
    position: int
    operations: int
    acknowledged: int
    crashes: int
    fences: int
    copies: int
    freezes: int
    added: int
    states: int
    wrong: list[str]


class ObservedJournal(MemoryJournal):
    """A journal in memory that shows each entry to the evidence at the moment it is appended."""

    def __init__(self, log: MemoryLog, evidence: Evidence) -> None:
        super().__init__(log)
        self._evidence = evidence

    async def append(self, payload: bytes) -> Position:
        position = await super().append(payload)
        self._evidence.appended(position, payload)
        return position


def simulate(seed: int, *, sessions: int = 3, steps: int = 60) -> Outcome:
    """Run `sessions` actors of `steps` operations each, and check the invariants."""
    random = Random(seed)
    replication = random.choice(("sync", "quorum", "async"))
    evidence = Evidence(seed, {"sync": REPLICAS, "quorum": REPLICAS // 2 + 1, "async": 1}[replication])
    with (
        tempfile.TemporaryDirectory(prefix="agentfs-simulation-") as directory,
        structlog.testing.capture_logs(),
        # A simulation has too few small files, and too little time, for them to be folded otherwise.
        patch.multiple(folding, INLINE_ALLOWED=1, WORTHWHILE_BYTES=1),
        patch.multiple(compaction, SEGMENTS_MIN=4, REST_SECONDS=2.0),
        patch.multiple(collecting, GRACE_SECONDS=5.0, SETTLE_SECONDS=5.0, LOOK_SECONDS=2.0),
        patch.multiple(upkeep, INTERVAL_SECONDS=2.0),
    ):
        main = partial(_main, evidence, Path(directory), random, sessions, steps, replication)
        run_in_virtual_time(main, seed=seed)
    return Outcome(
        seed=seed,
        checksum=final_checksum(evidence),
        position=len(evidence.payloads),
        operations=evidence.operations,
        acknowledged=evidence.acknowledged,
        crashes=evidence.crashes,
        fences=evidence.fences,
        copies=evidence.copies,
        freezes=evidence.freezer.times.total(),
        added=len(evidence.added),
        states=len(evidence.states),
        wrong=violations(evidence),
    )


async def _main(evidence: Evidence, directory: Path, random: Random, sessions: int, steps: int, replication: str) -> None:
    log = MemoryLog()
    evidence.payloads = log.payloads
    evidence.stores = {ReplicaId(number): ObservedStore(ReplicaId(number), evidence) for number in range(1, REPLICAS + 1)}
    # In every other simulation the replicas are directories beside the journal.
    evidence.beside = evidence.seed % 2 == 1
    beginning = _beginning(evidence, sessions, replication)
    evidence.watch()
    evidence.witness.read = partial(content, evidence, evidence.witness.tables)
    journal = ObservedJournal(log, evidence)
    for entry in beginning:
        await journal.append(encode_entry(entry))
    gathering = Gathering(sessions)
    actors = [Actor(number, evidence, journal, directory / str(number), gathering, steps=steps) for number in range(sessions)]
    evidence.witness.on_verdict = partial(_check_verdict, evidence, actors)
    trio.lowlevel.add_instrument(evidence.freezer)
    async with trio.open_nursery() as running:
        for actor in actors:
            running.start_soon(actor.run)
        async with trio.open_nursery() as faults:
            harm = Harm(evidence, log, journal, actors, random)
            for task in harm.tasks():
                faults.start_soon(task)
            await gathering.first.wait()
            faults.cancel_scope.cancel()


def _check_verdict(evidence: Evidence, actors: list[Actor], session: SessionId) -> None:
    """A session is judged dead: then its own clock must have said so before."""
    for actor in actors:
        if actor.session == session and actor.is_safe:
            evidence.clashes.append(f"entry {len(evidence.payloads)}: session {session} was judged dead and had time left")


def _beginning(evidence: Evidence, sessions: int, replication: str) -> list[Entry]:
    """The workspace, and the files that actors share without removing them, made by a session that does nothing else."""
    founder = SessionId(1)
    inos = iter(range(first_ino(founder), first_ino(founder) + sessions + 5))
    evidence.ledger, evidence.slots = Ino(next(inos)), Ino(next(inos))
    evidence.flocked, evidence.ranged, evidence.arena = Ino(next(inos)), Ino(next(inos)), Ino(next(inos))
    evidence.large = {number: Ino(ino) for number, ino in enumerate(inos)}
    made = [make(evidence.ledger, b"ledger"), make(evidence.slots, b"slots")]
    made += [make(evidence.flocked, b"flocked"), make(evidence.ranged, b"ranged")]
    made += [make(evidence.arena, b"arena", mode=DIRECTORY)]
    made += [make(ino, b"large-%d" % number) for number, ino in evidence.large.items()]
    transaction = Transaction(TxnNumber(1), list(made))
    return [
        founding(REPLICAS, replication=replication, history_seconds=1),
        opening(b"founder"),
        Entry(founder, 1, [transaction]),
    ]
