"""One replica among several: its store, the requests to it, and what is known of its health."""

from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import structlog
import trio

from agentfs.chunks.breaker import Breaker, BreakerState
from agentfs.chunks.contract import ChunkStore
from agentfs.chunks.latency import Latencies, ReadLatencies
from agentfs.chunks.replica_failures import bare
from agentfs.model.errors import AgentfsError, Denied, NotFound, Unavailable
from agentfs.model.ids import ReplicaId
from agentfs.runtime import Runtime

T = TypeVar("T")
Ask = Callable[[ChunkStore], Awaitable[T]]

STRAGGLERS_MAX: Final = 8
"""Puts that one replica may have outstanding behind their callers: each holds an object in memory."""

SILENCE_SECONDS: Final = 30.0
"""How long a replica may take to answer, and what it sends or takes in that time at `SLOWEST_BYTES_PER_SECOND` on top."""

SLOWEST_BYTES_PER_SECOND: Final = 256 << 10
"""The slowest connection to a replica that is worth having."""

PROBE_SECONDS: Final = 10.0
"""How long a replica that is down may take for a sign of life."""

_PROBE_KEY: Final = "segments/sign-of-life"

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ReplicaHealth:
    """How a replica does, for people.

    `down_seconds` says for how long it has been down; None while it is up.
    `latency_seconds` is the median of recent reads, of small ones if there were any, or of puts if there were no reads.
    `last_error` is the newest failure of a kind of operation that has not succeeded there since; "" if all is well.
    `outstanding` counts the puts that returned without waiting for it.
    """

    state: BreakerState
    down_seconds: float | None
    latency_seconds: float | None
    last_error: str
    outstanding: int


def silence_seconds(size: int) -> float:
    """How long a replica may take for a request with a body of `size` bytes."""
    return SILENCE_SECONDS + size / SLOWEST_BYTES_PER_SECOND


class Lane:
    """A replica as the store over all of them sees it. `on_returned` is called when it takes puts again, after it did not."""

    def __init__(self, replica: ReplicaId, store: ChunkStore, *, runtime: Runtime, nursery: trio.Nursery) -> None:
        self.replica = replica
        self.store = store
        self.breaker = Breaker(runtime)
        self.reads = ReadLatencies()
        self.puts = Latencies()
        self.putting: Counter[str] = Counter()
        self.stragglers = 0
        self.on_returned: Callable[[], None] = lambda: None
        self.runtime = runtime
        self._nursery = nursery
        self._errors: dict[str, AgentfsError] = {}
        self._running = 0
        self._refusing = False
        self._changed = trio.Event()
        self._watching = trio.CancelScope()

    @property
    def health(self) -> ReplicaHealth:
        """How it does."""
        latency = self.reads.median_seconds
        return ReplicaHealth(
            state=self.breaker.state,
            down_seconds=self.breaker.down_seconds,
            latency_seconds=self.puts.median_seconds if latency is None else latency,
            last_error=str(list(self._errors.values())[-1]) if self._errors else "",
            outstanding=self.stragglers,
        )

    # ---- asking

    def begin(
        self, verb: str, key: str, ask: Ask[T], *, on_over: Callable[[], None], latencies: Latencies | None = None
    ) -> "Request[T]":
        """Start a request and return at once; `on_over` is called when its outcome is known."""
        request = Request(self, verb, key, ask, on_over, latencies)
        self._running += 1
        self._nursery.start_soon(request.run)
        return request

    async def ask(self, verb: str, key: str, ask: Ask[T], *, seconds: float, latencies: Latencies | None = None) -> T:
        """The answer; raises what the store did, or Unavailable after `seconds`. Who is cancelled leaves at once."""
        over = trio.Event()
        request = self.begin(verb, key, ask, on_over=over.set, latencies=latencies)
        try:
            with trio.move_on_after(seconds):
                await over.wait()
            request.give_up(seconds)
            return request.result()
        finally:
            request.drop()

    def ended(self) -> None:
        """Count a request less; and tell who waits for the last one to end."""
        self._running -= 1
        if not self._running:
            self._tell()

    async def wait_idle(self) -> None:
        """Return once no request is under way."""
        while self._running:
            await self._changed.wait()

    # ---- health

    def succeeded(self, verb: str, turn: int) -> None:
        """Count an answer to a request that began in that turn of the breaker."""
        self._errors.pop(verb, None)
        self._alive(turn)

    def failed(self, verb: str, key: str, error: AgentfsError, turn: int) -> None:
        """Count a failure of a request that began in that turn of the breaker."""
        error = bare(error)
        if self.breaker.up:
            # Of a replica that is down it is said once.
            _log.warning("replica failed", operation=verb, key=key, replica=self.replica, reason=str(error))
        if not isinstance(error, NotFound):
            # That one object is missing says nothing about the replica.
            self._remember(verb, error)
        if not isinstance(error, Unavailable | Denied):
            self._alive(turn)
        elif self.breaker.failed(turn, error):
            self._gone(error)

    def trip(self, error: AgentfsError) -> None:
        """Call it down: a put could not do without it and waited for nothing."""
        if self.breaker.trip(error):
            self._gone(error)

    async def watch(self) -> None:
        """While it is down, ask for a sign of life, at growing intervals; until `stop_watching`."""
        with self._watching:
            while True:
                while self.breaker.up:
                    await self._changed.wait()
                await self.runtime.sleep(self.breaker.next_pause_seconds())
                if not self.breaker.up:
                    self.breaker.probe()
                    # The breaker knows the outcome already.
                    with suppress(AgentfsError):
                        await self.ask("probe", _PROBE_KEY, _sign_of_life, seconds=PROBE_SECONDS)

    def stop_watching(self) -> None:
        """End `watch`."""
        self._watching.cancel()

    def _alive(self, turn: int) -> None:
        if self.breaker.answered(turn):
            self._refusing = False
            self._errors = {verb: error for verb, error in self._errors.items() if not isinstance(error, Unavailable)}
            _log.info("replica returned", replica=self.replica)
            self._tell()
            self.on_returned()

    def _gone(self, error: AgentfsError) -> None:
        _log.warning("replica down", replica=self.replica, reason=str(error))
        self._tell()

    def _remember(self, verb: str, error: AgentfsError) -> None:
        self._errors.pop(verb, None)
        self._errors[verb] = error

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # ---- taking puts

    def refusal(self) -> AgentfsError | None:
        """Why it takes no put now; None if it does."""
        if not self.breaker.up:
            return self.breaker.error
        if not self._refusing:
            return None
        error = Unavailable(f"{self.stragglers} puts are still outstanding")
        self._remember("put", error)
        return error

    async def wait_until_taking(self) -> None:
        """Return once it takes puts."""
        while not self.breaker.up or self._refusing:
            await self._changed.wait()

    async def wait_for_room(self) -> None:
        """Return once it has room for a put, or has been refused as too slow, or is down."""
        while self.breaker.up and not self._refusing and self.stragglers >= STRAGGLERS_MAX:
            await self._changed.wait()

    def refuse_if_full(self) -> None:
        """Refuse further puts, if there is no room now, until one that is outstanding is acknowledged, or none is left."""
        self._refusing = self._refusing or self.stragglers >= STRAGGLERS_MAX

    def straggler_done(self, *, acknowledged: bool) -> None:
        """Count one straggler less, and let those in that wait: if it moves, or nothing is outstanding any more."""
        self.stragglers -= 1
        refused = self._refusing
        self._refusing = refused and not acknowledged and self.stragglers > 0
        self._tell()
        if refused and acknowledged and self.breaker.up:
            self.on_returned()


class Request(Generic[T]):
    """One request to one replica.

    It runs in the nursery of the store over all replicas, so that whoever waits for it can leave at once, even where the
    replica's own store cannot be interrupted.
    """

    def __init__(
        self, lane: Lane, verb: str, key: str, ask: Ask[T], on_over: Callable[[], None], latencies: Latencies | None
    ) -> None:
        self.lane = lane
        self.asked_at = lane.runtime.boottime()
        self.over = False
        self.error: AgentfsError | None = None
        self._answer: T | None = None
        self._verb = verb
        self._key = key
        self._ask = ask
        self._on_over = on_over
        self._latencies = latencies
        self._turn = lane.breaker.turn
        self._scope = trio.CancelScope()
        if latencies is not None:
            latencies.asked(self.asked_at)

    async def run(self) -> None:
        """Ask, and note the outcome."""
        try:
            with self._scope:
                answer = await self._ask(self.lane.store)
                self._note(answer)
        except AgentfsError as error:
            self._note_failure(error)
        finally:
            self._end(Unavailable("the store was closed before it answered"))
            self.lane.ended()

    def result(self) -> T:
        """The answer of a request that is over; raises its error."""
        assert self.over, "only what is over has a result"
        if self.error is not None:
            raise self.error
        return self._answer  # type: ignore[return-value]  # What is over without an error has one, which may be None.

    def give_up(self, seconds: float) -> None:
        """Let it have failed, if it is not over, because there was no answer in that time."""
        self._note_failure(Unavailable(f"no answer in {seconds:g} s"))
        self._scope.cancel()

    def drop(self) -> None:
        """Take it back, if it is not over: nobody waits for it. That it took so long is noted."""
        if not self.over:
            self._measure(late=True)
            self._end(Unavailable("nobody waits for the answer"))
            self._scope.cancel()

    def _note(self, answer: T) -> None:
        if not self.over:
            self._answer = answer
            self._measure()
            self._end(None)
            self.lane.succeeded(self._verb, self._turn)

    def _note_failure(self, error: AgentfsError) -> None:
        if not self.over:
            self._end(error)
            self.lane.failed(self._verb, self._key, error, self._turn)

    def _end(self, error: AgentfsError | None) -> None:
        if not self.over:
            self.over = True
            self.error = error
            self._on_over()

    def _measure(self, *, late: bool = False) -> None:
        if self._latencies is not None:
            now = self.lane.runtime.boottime()
            count = self._latencies.waited if late else self._latencies.answered
            count(now - self.asked_at, now)


async def _sign_of_life(store: ChunkStore) -> None:
    """Any answer will do."""
    with suppress(NotFound):
        await store.size(_PROBE_KEY)
