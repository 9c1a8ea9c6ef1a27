"""A chunk store over several replicas: a put counts votes, a get asks the nearest, and what is found wrong is repaired.

A put starts on every replica at once and returns when enough have acknowledged it; the others, the stragglers, finish behind. A
get asks one replica after another until one answers. Where a segment was wrong or missing in one that was asked before, it is
copied there from the one that answered, behind the caller. Tasks that work behind a caller live in `open_replicated`.
"""

from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, NamedTuple, TypeVar

import structlog
import trio

from agentfs.chunks.contract import Capacity, Check, ChunkStore, ObjectInfo
from agentfs.chunks.segment import segment_name
from agentfs.model.errors import AgentfsError, Corrupt, Denied, Invalid, NoSpace, NotFound, Unavailable
from agentfs.model.extents import digest_of
from agentfs.model.ids import ReplicaId
from agentfs.runtime import Runtime

T = TypeVar("T")
OnStraggler = Callable[[str, ReplicaId], None]

STRAGGLERS_MAX: Final = 8
"""Puts that one replica may have outstanding behind their callers: each holds an object in memory."""

PATIENCE_SECONDS: Final = 5.0
"""How long a put waits for a replica with STRAGGLERS_MAX outstanding, before it goes on without it."""

REPAIRS_MAX: Final = 64
"""Repairs waiting for their turn; a further one is left to the next reader."""

PLACEMENTS_MAX: Final = 4096
"""Puts whose acknowledgements are remembered until `placed` asks."""

AVOID_SECONDS: Final = 10.0
"""How long a replica that did not answer is asked last."""

_LATENCY_WEIGHT: Final = 0.2

_log = structlog.get_logger()


@asynccontextmanager
async def open_replicated(
    stores: Mapping[ReplicaId, ChunkStore], *, replication: str, runtime: Runtime
) -> AsyncIterator["Replicated"]:
    """A store over `stores`, which it closes at its end, after it has waited for stragglers and cancelled repairs.

    `replication` says how many replicas a put waits for: "sync" all, "quorum" a majority, "async" the first. Raises Invalid for
    anything else.
    """
    needed = _needed(replication, len(stores))
    try:
        async with trio.open_nursery() as nursery:
            replicated = Replicated(stores, needed=needed, runtime=runtime, nursery=nursery)
            repairing = trio.CancelScope()
            nursery.start_soon(replicated._repair_all, repairing)
            try:
                yield replicated
            finally:
                repairing.cancel()
    except BaseExceptionGroup as group:
        # Tasks in the nursery report instead of raising, so a single exception is the caller's own and goes on as it was.
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from group.exceptions[0].__cause__
        raise
    finally:
        with trio.CancelScope(shield=True):
            for store in stores.values():
                await store.aclose()


class Replicated:
    """The contract of a chunk store over several; `open_replicated` makes it.

    `on_straggler` is called with a key and a replica when that replica acknowledges a put that had returned without it.
    """

    def __init__(self, stores: Mapping[ReplicaId, ChunkStore], *, needed: int, runtime: Runtime, nursery: trio.Nursery) -> None:
        self.on_straggler: OnStraggler | None = None
        self._lanes = [_Lane(replica, store) for replica, store in sorted(stores.items())]
        self._needed = needed
        self._runtime = runtime
        self._nursery = nursery
        self._placements: OrderedDict[str, _Ballot] = OrderedDict()
        self._repairs: set[tuple[str, ReplicaId]] = set()
        self._repairs_in, self._repairs_out = trio.open_memory_channel[_Repair](REPAIRS_MAX)

    @property
    def stores(self) -> dict[ReplicaId, ChunkStore]:
        """Each replica's own store: for scrub and fsck."""
        return {lane.replica: lane.store for lane in self._lanes}

    def placed(self, key: str) -> list[ReplicaId]:
        """The replicas that acknowledged the last `put` of `key` so far; and forgets it, so that a second call answers [].

        Who asks right after `put` misses nothing: each later one goes to `on_straggler`. One that came between `put`'s return
        and this call was reported there and is listed here too. The record is bounded: the oldest of PLACEMENTS_MAX goes.
        """
        ballot = self._placements.pop(key, None)
        return sorted(ballot.acknowledged) if ballot else []

    def last_errors(self) -> dict[ReplicaId, str]:
        """What is wrong with each replica: the newest failure of a kind of operation that has not succeeded there since."""
        return {lane.replica: list(lane.errors.values())[-1] for lane in self._lanes if lane.errors}

    async def put(self, key: str, body: bytes) -> None:
        """As in the contract, for as many replicas as the replication asks for.

        When they cannot be reached any more, raises the most telling error: NoSpace before Denied before Unavailable.
        """
        for lane in self._lanes:
            await lane.wait_for_room()
        ballot = await self._vote(key, body)
        self._placements.pop(key, None)
        self._placements[key] = ballot
        if len(self._placements) > PLACEMENTS_MAX:
            self._placements.popitem(last=False)

    async def get(self, key: str, start: int = 0, length: int | None = None, *, check: Check | None = None) -> bytes:
        """As in the contract; raises Corrupt if any replica did, NotFound if all did, and otherwise Unavailable."""
        body, good, failures = await self._ask_nearest("get", key, lambda store: store.get(key, start, length, check=check))
        for lane, error in failures.items():
            if isinstance(error, Corrupt | NotFound):
                self._ask_for_repair(_Repair(key, good, lane, isinstance(error, Corrupt)))
        return body

    async def size(self, key: str) -> int:
        """As in the contract, from the nearest replica that knows."""
        size, _, _ = await self._ask_nearest("size", key, lambda store: store.size(key))
        return size

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Every object that any replica holds. A replica that fails is left out; raises Unavailable if all do."""
        listings = {lane: lane.store.list(prefix) for lane in self._lanes}
        failures: dict[_Lane, AgentfsError] = {}
        heads: dict[_Lane, ObjectInfo] = {}
        behind = set(listings)
        while True:
            for lane in sorted(behind, key=lambda lane: lane.replica):
                await self._advance(lane, listings[lane], heads, failures)
            if not heads:
                break
            first = min(heads.values())
            yield first
            behind = {lane for lane, info in heads.items() if info.key == first.key}
        if len(failures) == len(self._lanes):
            raise _read_failure("list", prefix, failures)

    async def delete(self, key: str) -> None:
        """As in the contract, on every replica; raises the most telling error if one could not.

        It waits for all of them, so that no late deletion meets a later put of the same object.
        """
        failures: dict[_Lane, AgentfsError] = {}
        async with trio.open_nursery() as nursery:
            for lane in self._lanes:
                nursery.start_soon(self._delete_on, lane, key, failures)
        if failures:
            raise _write_failure("delete", key, failures)

    async def capacity(self) -> Capacity | None:
        """That of the replica with the least free; replicas that do not answer, or know no bound, do not count."""
        known: list[Capacity] = []
        failures: dict[_Lane, AgentfsError] = {}
        for lane in self._lanes:
            try:
                capacity = await lane.store.capacity()
            except AgentfsError as error:
                self._failed("capacity", "", lane, error)
                failures[lane] = error
            else:
                lane.errors.pop("capacity", None)
                known.extend([capacity] if capacity else [])
        if len(failures) == len(self._lanes):
            raise _read_failure("capacity", "", failures)
        return min(known, key=lambda capacity: capacity.free, default=None)

    async def aclose(self) -> None:
        """Does nothing: the end of `open_replicated` closes the replicas, when the stragglers are done with them."""
        await trio.lowlevel.checkpoint()

    # ---- asking all

    async def _vote(self, key: str, body: bytes) -> "_Ballot":
        """Put on every replica; return once enough have it, or raise once they cannot."""
        ballot = _Ballot(self._needed, set(self._lanes))
        for lane in self._lanes:
            self._nursery.start_soon(self._put_on, lane, key, body, ballot)
        try:
            await ballot.decided.wait()
        finally:
            for lane in ballot.outstanding:
                lane.stragglers += 1
            ballot.left = True
        if not ballot.reached:
            raise _write_failure("put", key, ballot.failures)
        ballot.returned = True
        return ballot

    async def _put_on(self, lane: "_Lane", key: str, body: bytes, ballot: "_Ballot") -> None:
        error: AgentfsError | None = Unavailable("the store was closed before it answered")
        try:
            if lane.refusing:
                raise Unavailable(f"{lane.stragglers} puts are still outstanding")
            await lane.store.put(key, body)
            error = None
        except AgentfsError as failure:
            error = failure
            self._failed("put", key, lane, failure)
        finally:
            # Also when cancelled, because who waits for the vote may not be.
            ballot.count(lane, error)
            if ballot.left:
                lane.straggler_done()
        if error is None:
            lane.errors.pop("put", None)
            if ballot.returned and self.on_straggler is not None:
                self.on_straggler(key, lane.replica)

    async def _delete_on(self, lane: "_Lane", key: str, failures: "dict[_Lane, AgentfsError]") -> None:
        try:
            await lane.store.delete(key)
        except AgentfsError as error:
            failures[lane] = error
            self._failed("delete", key, lane, error)
        else:
            lane.errors.pop("delete", None)

    # ---- asking one

    async def _ask_nearest(self, verb: str, key: str, ask: "_Ask[T]") -> "tuple[T, _Lane, dict[_Lane, AgentfsError]]":
        """The first answer, whose it is, and why those that were asked before have none."""
        failures: dict[_Lane, AgentfsError] = {}
        for lane in self._nearest():
            asked = self._runtime.boottime()
            try:
                answer = await ask(lane.store)
            except AgentfsError as error:
                failures[lane] = error
                self._failed(verb, key, lane, error)
                if not isinstance(error, NotFound | Corrupt):
                    lane.avoid_until = self._runtime.boottime() + AVOID_SECONDS
                continue
            lane.errors.pop(verb, None)
            if verb == "get":
                lane.measure(self._runtime.boottime() - asked)
            return answer, lane, failures
        raise _read_failure(verb, key, failures)

    def _nearest(self) -> "Sequence[_Lane]":
        """The replicas by latency, one that was never measured first; those that lately did not answer behind all others."""
        now = self._runtime.boottime()
        return sorted(self._lanes, key=lambda lane: (now < lane.avoid_until, lane.latency_seconds))

    async def _advance(
        self,
        lane: "_Lane",
        listing: AsyncIterator[ObjectInfo],
        heads: "dict[_Lane, ObjectInfo]",
        failures: "dict[_Lane, AgentfsError]",
    ) -> None:
        heads.pop(lane, None)
        try:
            heads[lane] = await anext(listing)
        except StopAsyncIteration:
            lane.errors.pop("list", None)
        except AgentfsError as error:
            failures[lane] = error
            self._failed("list", "", lane, error)

    def _failed(self, verb: str, key: str, lane: "_Lane", error: AgentfsError) -> None:
        _log.warning("replica failed", operation=verb, key=key, replica=lane.replica, reason=str(error))
        # That one object is missing says nothing about the replica.
        if not isinstance(error, NotFound):
            lane.errors.pop(verb, None)
            lane.errors[verb] = str(error)

    # ---- repairing

    def _ask_for_repair(self, repair: "_Repair") -> None:
        place = repair.key, repair.bad.replica
        if place in self._repairs or segment_name(repair.key) is None:
            return
        try:
            self._repairs_in.send_nowait(repair)
        except trio.WouldBlock:
            _log.warning("repair put off", key=repair.key, replica=repair.bad.replica, waiting=REPAIRS_MAX)
        else:
            self._repairs.add(place)

    async def _repair_all(self, scope: trio.CancelScope) -> None:
        """Repair what readers came upon, one after the other, until `scope` is cancelled."""
        with scope:
            async for repair in self._repairs_out:
                try:
                    await self._repair(repair)
                finally:
                    self._repairs.discard((repair.key, repair.bad.replica))

    async def _repair(self, repair: "_Repair") -> None:
        key, good, bad = repair.key, repair.good, repair.bad
        name = segment_name(key)
        try:
            # Only the hash of the whole object tells that it is right, so that no repair spreads damage.
            body = await good.store.get(key, check=lambda body: digest_of(body) == name)
        except AgentfsError as error:
            self._failed("repair from", key, good, error)
            return
        try:
            if repair.replace:
                # A put may take an object of the right size for the right one.
                await bad.store.delete(key)
            await bad.store.put(key, body)
        except AgentfsError as error:
            self._failed("repair", key, bad, error)
        else:
            bad.errors.pop("repair", None)
            _log.info("replica repaired", key=key, replica=bad.replica, source=good.replica)


_Ask = Callable[[ChunkStore], Awaitable[T]]


class _Lane:
    """One replica, and what was learned about it: where a circuit breaker, or the delay before hedging, has its numbers."""

    def __init__(self, replica: ReplicaId, store: ChunkStore) -> None:
        self.replica = replica
        self.store = store
        self.errors: dict[str, str] = {}
        self.latency_seconds = 0.0
        self.avoid_until = float("-inf")
        self.stragglers = 0
        self.refusing = False
        self._room = trio.Event()

    def measure(self, seconds: float) -> None:
        """Bring one latency into the moving average; the first one is the average."""
        weight = _LATENCY_WEIGHT if self.latency_seconds else 1.0
        self.latency_seconds += weight * (seconds - self.latency_seconds)

    async def wait_for_room(self) -> None:
        """Return once a put may start. A replica that makes no room in PATIENCE_SECONDS is refused until it does.

        So a slow replica slows its writers, and one that hangs costs them this time once.
        """
        with trio.move_on_after(PATIENCE_SECONDS):
            while self.stragglers >= STRAGGLERS_MAX and not self.refusing:
                self._room = trio.Event() if self._room.is_set() else self._room
                await self._room.wait()
        self.refusing = self.stragglers >= STRAGGLERS_MAX

    def straggler_done(self) -> None:
        """Count one straggler less, and let those in that wait."""
        self.stragglers -= 1
        self.refusing = False
        self._room.set()


class _Ballot:
    """The votes on one put, decided once `needed` replicas have the object or so many no longer can.

    `left` says that the caller waits no more, `returned` that it left with a success, to which late votes add.
    """

    def __init__(self, needed: int, outstanding: set[_Lane]) -> None:
        self.decided = trio.Event()
        self.acknowledged: list[ReplicaId] = []
        self.failures: dict[_Lane, AgentfsError] = {}
        self.outstanding = outstanding
        self.left = False
        self.returned = False
        self._needed = needed

    @property
    def reached(self) -> bool:
        """Whether enough replicas have the object."""
        return len(self.acknowledged) >= self._needed

    def count(self, lane: _Lane, error: AgentfsError | None) -> None:
        """Count one replica's vote: that it has the object, or why not."""
        self.outstanding.discard(lane)
        if error is None:
            self.acknowledged.append(lane.replica)
        else:
            self.failures[lane] = error
        if self.reached or len(self.acknowledged) + len(self.outstanding) < self._needed:
            self.decided.set()


class _Repair(NamedTuple):
    """A segment to copy from one replica to another, over what is there if `replace`."""

    key: str
    good: _Lane
    bad: _Lane
    replace: bool


def _needed(replication: str, replicas: int) -> int:
    counts = {"sync": replicas, "quorum": replicas // 2 + 1, "async": 1}
    if replication not in counts:
        raise Invalid(f"replication is sync, quorum or async, not {replication!r}")
    if not replicas:
        raise Invalid("a workspace needs at least one replica")
    return counts[replication]


def _write_failure(verb: str, key: str, failures: Mapping[_Lane, AgentfsError]) -> AgentfsError:
    errors = list(failures.values())
    kinds = [kind for kind in (NoSpace, Denied, Unavailable) if any(isinstance(error, kind) for error in errors)]
    return (kinds[0] if kinds else type(errors[0]))(f"{verb} of {key} failed: {_reasons(failures)}")


def _read_failure(verb: str, key: str, failures: Mapping[_Lane, AgentfsError]) -> AgentfsError:
    message = f"{verb} of {key or 'all replicas'} failed: {_reasons(failures)}"
    if any(isinstance(error, Corrupt) for error in failures.values()):
        return Corrupt(message)
    if all(isinstance(error, NotFound) for error in failures.values()):
        return NotFound(message)
    return Unavailable(message)


def _reasons(failures: Mapping[_Lane, AgentfsError]) -> str:
    return "; ".join(f"replica {lane.replica}: {error}" for lane, error in failures.items())
