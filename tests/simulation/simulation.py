"""One simulation: actors on one journal and its replicas, from a seed to what is wrong with it."""

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import structlog
import trio

from agentfs.chunks.memory import MemoryStore
from agentfs.journal.memory import MemoryJournal, MemoryLog
from agentfs.model.changes import Fence
from agentfs.model.codec import encode_entry
from agentfs.model.entry import Entry, Transaction
from agentfs.model.ids import NO_SESSION, Ino, Position, ReplicaId, SessionId, TxnNumber, first_ino
from tests.simulation.actor import Actor
from tests.simulation.entries import founding, make, opening
from tests.simulation.evidence import Evidence
from tests.simulation.invariants import violations
from tests.simulation.invariants.agreement import final_checksum
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
    with tempfile.TemporaryDirectory(prefix="agentfs-simulation-") as directory, structlog.testing.capture_logs():
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
        states=len(evidence.states),
        wrong=violations(evidence),
    )


async def _main(evidence: Evidence, directory: Path, random: Random, sessions: int, steps: int, replication: str) -> None:
    log = MemoryLog()
    evidence.payloads = log.payloads
    evidence.stores = {ReplicaId(number): MemoryStore() for number in range(1, REPLICAS + 1)}
    log.payloads.extend(encode_entry(entry) for entry in _beginning(evidence, sessions, replication))
    journal = ObservedJournal(log, evidence)
    actors = [
        Actor(number, evidence, journal, directory / str(number), steps=steps, replication=replication)
        for number in range(sessions)
    ]
    async with trio.open_nursery() as nursery:
        if random.random() < 0.5:
            nursery.start_soon(_fence_some, evidence, journal, actors, random)
        async with trio.open_nursery() as running:
            for actor in actors:
                running.start_soon(actor.run)
        nursery.cancel_scope.cancel()


def _beginning(evidence: Evidence, sessions: int, replication: str) -> list[Entry]:
    """The workspace, and the files that actors share without removing them, made by a session that does nothing else."""
    founder = SessionId(1)
    inos = iter(range(first_ino(founder), first_ino(founder) + sessions + 2))
    evidence.ledger, evidence.slots = Ino(next(inos)), Ino(next(inos))
    evidence.large = {number: Ino(ino) for number, ino in enumerate(inos)}
    made = [make(evidence.ledger, b"ledger"), make(evidence.slots, b"slots")]
    made += [make(ino, b"large-%d" % number) for number, ino in evidence.large.items()]
    transaction = Transaction(TxnNumber(1), list(made))
    return [founding(REPLICAS, replication=replication), opening(b"founder"), Entry(founder, 1, [transaction])]


async def _fence_some(evidence: Evidence, journal: ObservedJournal, actors: list[Actor], random: Random) -> None:
    """Somebody who takes live sessions for dead ones."""
    while True:
        await trio.sleep(random.expovariate(1 / 20))
        session = random.choice(actors).session
        if session is not None:
            evidence.fences += 1
            await journal.append(encode_entry(Entry(NO_SESSION, 1, [Transaction(TxnNumber(1), [Fence(session)])])))
