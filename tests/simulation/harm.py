"""Harm: machines that are judged wrongly, frozen or copied, and replicas that go, come back or are new."""

from collections.abc import Awaitable, Callable
from random import Random

import trio

from agentfs.journal.contract import Journal
from agentfs.journal.memory import MemoryLog
from agentfs.model.changes import AddReplica, Fence
from agentfs.model.codec import encode_entry
from agentfs.model.entry import Entry, Transaction
from agentfs.model.ids import NO_SESSION, ReplicaId, TxnNumber
from tests.simulation.actor import Actor
from tests.simulation.clones import run_copy
from tests.simulation.evidence import Evidence, ObservedStore

REPLICAS_MORE = 2
"""Replicas that are added in one simulation."""


class Harm:
    """The harm that a seed has in store for the actors."""

    def __init__(self, evidence: Evidence, log: MemoryLog, journal: Journal, actors: list[Actor], random: Random) -> None:
        self._evidence = evidence
        self._log = log
        self._journal = journal
        self._actors = actors
        self._random = random

    def tasks(self) -> list[Callable[[], Awaitable[None]]]:
        """Some of what can happen, to be run until all is to be quiet."""
        every = (self._fence_some, self._freeze_some, self._copy_some, self._cut_some, self._add_some)
        return [task for task in every if self._random.random() < 0.5]

    async def _fence_some(self) -> None:
        """Somebody takes live sessions for dead ones."""
        while True:
            await trio.sleep(self._random.expovariate(1 / 20))
            session = self._random.choice(self._actors).session
            if session is not None:
                self._evidence.fences += 1
                fence = Entry(NO_SESSION, 1, [Transaction(TxnNumber(1), [Fence(session)])])
                await self._journal.append(encode_entry(fence))

    async def _freeze_some(self) -> None:
        """Machines stand still, some for longer than others wait for a sign of life."""
        freezer = self._evidence.freezer
        while True:
            await trio.sleep(self._random.expovariate(1 / 20))
            machine = self._random.choice(self._actors).number
            freezer.freeze(machine)
            try:
                await trio.sleep(self._random.choice((1.0, 8.0, 11.0, 40.0)))
            finally:
                freezer.thaw(machine)

    async def _cut_some(self) -> None:
        """Replicas answer nobody for a while."""
        while True:
            await trio.sleep(self._random.expovariate(1 / 20))
            cable = self._evidence.cables[self._random.choice(list(self._evidence.stores))]
            cable.cut, cable.patience_seconds = True, self._random.choice((0.1, 25.0))
            try:
                await trio.sleep(self._random.choice((1.0, 10.0, 60.0)))
            finally:
                cable.cut = False

    async def _add_some(self) -> None:
        """Empty replicas become members."""
        for _ in range(REPLICAS_MORE):
            await trio.sleep(self._random.expovariate(1 / 20))
            number = ReplicaId(len(self._evidence.stores) + 1)
            self._evidence.stores[number] = ObservedStore(number, self._evidence)
            added = Entry(NO_SESSION, 1, [Transaction(TxnNumber(1), [AddReplica(number, f"memory:{number}")])])
            await self._journal.append(encode_entry(added))

    async def _copy_some(self) -> None:
        """Snapshots of machines are started beside them."""
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(self._random.expovariate(1 / 25))
                actor = self._random.choice(self._actors)
                if actor.workspace is not None and not self._evidence.freezer.is_frozen(actor.number):
                    copys = Random(self._random.random())
                    nursery.start_soon(run_copy, actor.workspace, self._evidence, self._log, self._journal, copys)
