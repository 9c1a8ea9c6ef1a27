"""A chunk store over several replicas: a put counts votes, a get asks the nearest, and what is found wrong is repaired.

A put starts on every replica at once and returns when enough have acknowledged it; the others, the stragglers, finish behind
(`ballot`). A get asks the nearest replica, and the next one when that fails or is late (`hedging`). Where a segment was wrong
or missing in one that was asked before, it is copied there from another, behind the caller (`repairs`). A replica that keeps
failing is left alone until it shows a sign of life (`breaker`). Tasks that work behind a caller live in `open_replicated`.
"""

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, TypeVar

import trio

from agentfs.chunks.ballot import Ballot
from agentfs.chunks.contract import Capacity, Check, ChunkStore, ObjectInfo
from agentfs.chunks.hedging import Answer, Budget, Question, Race, nearest
from agentfs.chunks.merged_listing import merged_listing
from agentfs.chunks.repairs import Repair, Repairs
from agentfs.chunks.replica_failures import bare, read_failure, write_failure
from agentfs.chunks.replica_lane import SILENCE_SECONDS, Ask, Lane, ReplicaHealth, silence_seconds
from agentfs.chunks.segment import segment_name
from agentfs.model.errors import AgentfsError, Corrupt, Invalid, NoSpace, NotFound, Unavailable
from agentfs.model.extents import digest_of
from agentfs.model.ids import ReplicaId
from agentfs.runtime import Runtime

T = TypeVar("T")
OnStraggler = Callable[[str, ReplicaId], None]

TIMEOUT_SECONDS: Final = 30.0
"""How long a put waits for enough replicas, unless told otherwise."""

PATIENCE_SECONDS: Final = 0.5
"""How long a put waits for replicas with STRAGGLERS_MAX outstanding, before it goes on without them."""

PLACEMENTS_MAX: Final = 4096
"""Puts whose acknowledgements are remembered until `placed` asks."""

CAPACITY_SECONDS: Final = 5.0
"""How long a replica may take to say how much it can hold: programs that ask for free space do not like to wait."""

CLOSE_SECONDS: Final = 5.0
"""How long the replicas' own stores may take to close."""


@asynccontextmanager
async def open_replicated(
    stores: Mapping[ReplicaId, ChunkStore],
    *,
    replication: str,
    write_quorum: int = 0,
    timeout_seconds: float = TIMEOUT_SECONDS,
    hedging: bool = True,
    runtime: Runtime,
) -> AsyncIterator["Replicated"]:
    """A store over `stores`, which it closes at its end, after it has waited up to `timeout_seconds` for stragglers.

    `replication` says how many replicas a put waits for: "sync" all, "quorum" `write_quorum` of them or, with 0, a majority,
    "async" the first. Raises Invalid for anything else. A put waits up to `timeout_seconds` for as many as it needs. Without
    `hedging` a read asks the next replica only when one has failed.
    """
    _check_replication(replication, write_quorum)
    if not stores:
        raise Invalid("a workspace needs at least one replica")
    replicated: Replicated | None = None
    try:
        async with trio.open_nursery() as nursery:
            replicated = Replicated(replication, write_quorum, timeout_seconds, hedging, runtime, nursery)
            for replica, store in stores.items():
                replicated.add(replica, store)
            yield replicated
            await replicated._finish()
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # Tasks in the nursery report instead of raising, so a single exception is the caller's own and goes on as it was.
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from group.exceptions[0].__cause__
        raise
    finally:
        for store in replicated.stores.values() if replicated else ():
            await _close(store)


class Replicated:
    """The contract of a chunk store over several; `open_replicated` makes it.

    `on_straggler` is called with a key and a replica that has that object since a moment ago: it acknowledged a put that had
    returned without it, or the object was copied there behind a reader. `on_returned` is called with a replica that takes puts
    again and may lack some, because it was down or too slow.
    """

    def __init__(
        self,
        replication: str,
        write_quorum: int,
        timeout_seconds: float,
        hedging: bool,
        runtime: Runtime,
        nursery: trio.Nursery,
    ) -> None:
        self.on_straggler: OnStraggler | None = None
        self.on_returned: Callable[[ReplicaId], None] = lambda replica: None
        self._lanes: list[Lane] = []
        self._replication = replication
        self._write_quorum = write_quorum
        self._timeout_seconds = timeout_seconds
        self._budget = Budget() if hedging else None
        self._runtime = runtime
        self._nursery = nursery
        self._reachable = True
        self._placements: OrderedDict[str, Ballot] = OrderedDict()
        self._repairs = Repairs(self._repair)
        nursery.start_soon(self._repairs.run)

    # ---- the replicas

    @property
    def stores(self) -> dict[ReplicaId, ChunkStore]:
        """Each replica's own store: for scrub and fsck."""
        return {lane.replica: lane.store for lane in self._lanes}

    def health(self) -> dict[ReplicaId, ReplicaHealth]:
        """How each replica does."""
        return {lane.replica: lane.health for lane in self._lanes}

    @property
    def needed(self) -> int:
        """How many replicas a put waits for: never more than there are, so that the others go on when one is removed."""
        count = len(self._lanes)
        quorum = min(self._write_quorum, count) or count // 2 + 1
        return {"sync": count, "quorum": quorum, "async": 1}[self._replication]

    @property
    def reachable(self) -> bool:
        """False from the moment a put did not find enough replicas, until one does or so many are back."""
        return self._reachable

    def add(self, replica: ReplicaId, store: ChunkStore) -> None:
        """Take in a replica for what begins from now on, and close its store in the end. Invalid if it is there already."""
        if replica in self.stores:
            raise Invalid(f"replica {replica} is open already")
        lane = Lane(replica, store, runtime=self._runtime, nursery=self._nursery)
        lane.on_returned = partial(self._returned, lane)
        self._lanes = sorted([*self._lanes, lane], key=lambda each: each.replica)
        self._nursery.start_soon(lane.watch)

    async def remove(self, replica: ReplicaId) -> None:
        """Do without a replica from now on; return once its store is closed. Invalid if it is not there, or is the last one.

        What it is asked already goes on, for `timeout_seconds` at most: a put ends by the rules that it began with.
        """
        lane = self._find(replica)
        if lane is None or len(self._lanes) == 1:
            raise Invalid(f"replica {replica} is not open" if lane is None else "a workspace needs at least one replica")
        self._lanes = [each for each in self._lanes if each is not lane]
        self._reachable |= self._enough_are_up
        lane.stop_watching()
        try:
            with trio.move_on_after(self._timeout_seconds):
                await lane.wait_idle()
        finally:
            await _close(lane.store)

    def set_replication(self, replication: str, write_quorum: int) -> None:
        """How many replicas a put waits for that begins from now on, as in `open_replicated`."""
        _check_replication(replication, write_quorum)
        self._replication, self._write_quorum = replication, write_quorum
        self._reachable |= self._enough_are_up

    # ---- writing

    async def put(self, key: str, body: bytes) -> None:
        """As in the contract, for as many replicas as the replication asks for.

        Those that cannot take it for a passing reason are asked again, for `timeout_seconds`. Once so many refuse for good that
        the others do not suffice it fails at once. Raises the most telling reason: NoSpace before Denied before Unavailable.
        """
        await self._wait_for_room()
        ballot = Ballot(self.needed, self._lanes)
        for lane in self._lanes:
            self._nursery.start_soon(ballot.ask, lane, key, body, partial(self._straggled, key, lane))
        try:
            with trio.move_on_after(self._timeout_seconds):
                await ballot.decided.wait()
        finally:
            ballot.leave()
        if not ballot.reached:
            raise self._not_reached(key, ballot)
        self._reachable = True
        self._placements.pop(key, None)
        self._placements[key] = ballot
        if len(self._placements) > PLACEMENTS_MAX:
            self._placements.popitem(last=False)

    def placed(self, key: str) -> list[ReplicaId]:
        """The replicas that acknowledged the last `put` of `key` so far; and forgets it, so that a second call answers [].

        Who asks right after `put` misses nothing: each later one goes to `on_straggler`. One that came between `put`'s return
        and this call was reported there and is listed here too. The record is bounded: the oldest of PLACEMENTS_MAX goes.
        """
        ballot = self._placements.pop(key, None)
        return sorted(ballot.acknowledged) if ballot else []

    async def fill(self, key: str, replica: ReplicaId, *, replace: bool = False) -> None:
        """Copy a whole segment to a replica from the nearest other one that has it right, over what is there with `replace`.

        Only the hash of the whole object tells that it is right, so that damage does not spread. Raises NotFound if no other
        replica has it, what the replica itself has to say, or Unavailable if it is down.
        """
        await self._fill(key, self._find(replica), replace=replace)

    async def put_into(self, key: str, body: bytes, replica: ReplicaId) -> None:
        """Have one replica keep an object. Raises what it has to say, or Unavailable if it is down."""
        await _give(_taking(self._find(replica)), key, body)

    async def delete(self, key: str) -> None:
        """As in the contract, on every replica; raises the most telling error if one could not.

        It waits for all of them, so that no late deletion meets a later put of the same object.
        """
        _, failures = await _ask_all(self._lanes, "delete", key, lambda store: store.delete(key), SILENCE_SECONDS)
        if failures:
            raise write_failure(f"delete of {key}", failures)

    # ---- reading

    async def get(self, key: str, start: int = 0, length: int | None = None, *, check: Check | None = None) -> bytes:
        """As in the contract; raises Corrupt if any replica did, NotFound if all did, and otherwise Unavailable."""
        question = Question("get", key, lambda store: store.get(key, start, length, check=check), length)
        answer = await self._ask_nearest(question, self._lanes)
        for lane, error in answer.failures.items():
            # What is on its way there already is not missing.
            if isinstance(error, Corrupt) or (isinstance(error, NotFound) and not lane.putting[key]):
                self._ask_for_repair(Repair(key, lane, isinstance(error, Corrupt)))
        return answer.value

    async def size(self, key: str) -> int:
        """As in the contract, from the nearest replica that knows."""
        answer = await self._ask_nearest(Question("size", key, lambda store: store.size(key), 0), self._lanes)
        return answer.value

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Every object that any replica holds. A replica that fails is left out; raises Unavailable if all do."""
        return merged_listing(self._lanes, prefix)

    async def capacity(self) -> Capacity | None:
        """That of the replica with the least free; replicas that do not answer, or know no bound, do not count."""
        known, failures = await _ask_all(self._lanes, "capacity", "", lambda store: store.capacity(), CAPACITY_SECONDS)
        if not known:
            raise read_failure("capacity of all replicas", failures)
        return min((capacity for capacity in known if capacity), key=lambda capacity: capacity.free, default=None)

    async def aclose(self) -> None:
        """Does nothing: the end of `open_replicated` closes the replicas, when the stragglers are done with them."""
        await trio.lowlevel.checkpoint()

    # ---- behind the callers

    def _find(self, replica: ReplicaId) -> Lane | None:
        return next((lane for lane in self._lanes if lane.replica == replica), None)

    async def _wait_for_room(self) -> None:
        """A slow replica slows its writers; one that hangs costs them PATIENCE_SECONDS once, and is refused until it moves."""
        with trio.move_on_after(min(PATIENCE_SECONDS, self._timeout_seconds)):
            for lane in self._lanes:
                await lane.wait_for_room()
        for lane in self._lanes:
            lane.refuse_if_full()

    def _not_reached(self, key: str, ballot: Ballot) -> AgentfsError:
        """What a put raises that found too few replicas. Those that it waited for in vain are down until shown alive."""
        if not ballot.decided.is_set():
            ballot.give_up(self._timeout_seconds)
            for lane, why in ballot.failures.items():
                if isinstance(why, Unavailable):
                    lane.trip(why)
        error = write_failure(f"put of {key}", {lane.replica: why for lane, why in ballot.failures.items()})
        if not isinstance(error, NoSpace):
            # If enough are up, there would be nobody whose return ends it.
            self._reachable = self._enough_are_up
        return error

    @property
    def _enough_are_up(self) -> bool:
        return sum(lane.breaker.up for lane in self._lanes) >= self.needed

    def _returned(self, lane: Lane) -> None:
        if lane in self._lanes:
            self._reachable |= self._enough_are_up
            self.on_returned(lane.replica)

    def _straggled(self, key: str, lane: Lane) -> None:
        if self.on_straggler is not None:
            self.on_straggler(key, lane.replica)

    async def _finish(self) -> None:
        """Wait for stragglers, bounded, and for nothing else."""
        self._repairs.stop()
        for lane in self._lanes:
            lane.stop_watching()
        with trio.move_on_after(self._timeout_seconds):
            for lane in self._lanes:
                await lane.wait_idle()

    # ---- asking

    async def _ask_nearest(self, question: Question[T], lanes: Sequence[Lane]) -> Answer[T]:
        explore = self._budget is not None and self._budget.left
        order = nearest(lanes, question.size, self._runtime.boottime(), explore=explore)
        return await Race(question, order, self._budget, self._runtime).run()

    # ---- repairing

    def _ask_for_repair(self, repair: Repair) -> None:
        if segment_name(repair.key) is not None:
            self._repairs.ask(repair)

    async def _repair(self, repair: Repair) -> None:
        await self._fill(repair.key, repair.lane, replace=repair.replace)
        self._straggled(repair.key, repair.lane)

    async def _fill(self, key: str, lane: Lane | None, *, replace: bool) -> None:
        name = segment_name(key)
        if name is None:
            raise Invalid(f"{key} is not a segment")
        lane = _taking(lane if lane in self._lanes else None)
        source = Question("get", key, lambda store: store.get(key, check=lambda body: digest_of(body) == name), None)
        body = (await self._ask_nearest(source, [each for each in self._lanes if each is not lane])).value
        if replace:
            # A put may take an object of the right size for the right one.
            await lane.ask("delete", key, lambda store: store.delete(key), seconds=SILENCE_SECONDS)
        await _give(lane, key, body)


def _taking(lane: Lane | None) -> Lane:
    """A replica that takes puts. Raises Unavailable for one that does not, or is not open."""
    if lane is None:
        raise Unavailable("the replica is not open")
    if (refusal := lane.refusal()) is not None:
        raise bare(refusal)
    return lane


async def _give(lane: Lane, key: str, body: bytes) -> None:
    await lane.ask("put", key, lambda store: store.put(key, body), seconds=silence_seconds(len(body)), latencies=lane.puts)


async def _close(store: ChunkStore) -> None:
    with trio.move_on_after(CLOSE_SECONDS, shield=True):
        await store.aclose()


def _check_replication(replication: str, write_quorum: int) -> None:
    if replication not in ("sync", "quorum", "async"):
        raise Invalid(f"replication is sync, quorum or async, not {replication!r}")
    if write_quorum < 0:
        raise Invalid(f"the write quorum is a number of replicas, or 0 for a majority, not {write_quorum}")


async def _ask_all(
    lanes: Sequence[Lane], verb: str, key: str, ask: Ask[T], seconds: float
) -> tuple[list[T], dict[ReplicaId, AgentfsError]]:
    """What each replica answers, or why it does not; one that is down is not asked."""
    answers: list[T] = []
    failures: dict[ReplicaId, AgentfsError] = {}

    async def ask_one(lane: Lane) -> None:
        try:
            answers.append(await lane.ask(verb, key, ask, seconds=seconds))
        except AgentfsError as error:
            failures[lane.replica] = error

    async with trio.open_nursery() as nursery:
        for lane in lanes:
            if lane.breaker.error is None:
                nursery.start_soon(ask_one, lane)
            else:
                failures[lane.replica] = lane.breaker.error
    return answers, failures
