"""A read of several replicas: the nearest is asked; the next one too when that fails, or when its answer is late.

Late is what takes longer than 95 of 100 answers of that replica (The Tail at Scale, Dean and Barroso, 2013). A hedge, which is
the question to the next one, costs a token of a `Budget`, so that replicas that are slow because they have too much to do are
not given twice as much. When an answer is very late it costs nothing: then the replica has most likely fallen silent.
"""

import math
from collections import deque
from collections.abc import Sequence
from operator import itemgetter
from typing import Final, Generic, NamedTuple, TypeVar

import trio

from agentfs.chunks.latency import SizeClass, size_class
from agentfs.chunks.replica_failures import read_failure
from agentfs.chunks.replica_lane import SILENCE_SECONDS, Ask, Lane, Request, silence_seconds
from agentfs.model.errors import AgentfsError
from agentfs.model.extents import SEGMENT_MAX
from agentfs.runtime import Runtime

T = TypeVar("T")

HEDGED_SHARE: Final = 0.1
"""Hedges per read, on average."""

HEDGES_MAX: Final = 10
"""Hedges in a burst."""

VERY_LATE: Final = 4.0
"""How many times as late an answer is for which a hedge costs nothing."""

VERY_LATE_SECONDS: Final = 2.0
"""Before this, no answer is very late."""

LAST_RESORT_SECONDS: Final = 5.0
"""How long a replica that is down may take to answer a read that no other could answer."""


class Budget:
    """Tokens for hedges: each read brings a share of one, and no more than a burst of them is kept."""

    def __init__(self) -> None:
        self._tokens = float(HEDGES_MAX)

    def earn(self) -> None:
        """Count a read."""
        self._tokens = min(self._tokens + HEDGED_SHARE, HEDGES_MAX)

    @property
    def left(self) -> bool:
        """Whether there is a token to spend."""
        return self._tokens >= 1.0

    def spend(self) -> None:
        """Count a hedge."""
        self._tokens -= 1.0


class Answer(NamedTuple, Generic[T]):
    """An answer, whose it is, and why those that were asked before it have none; who was only slower is not among them."""

    value: T
    lane: Lane
    failures: dict[Lane, AgentfsError]


def nearest(lanes: Sequence[Lane], size: SizeClass, now: float, *, explore: bool) -> list[Lane]:
    """The replicas in the order to ask them: by latency, those that are down behind all others.

    With `explore`, one that was not asked for a while comes first: it may have become nearer, or may be again.
    """
    order = sorted(lanes, key=lambda lane: (not lane.breaker.up, lane.reads.distance_seconds(size), lane.replica))
    if explore:
        stale = [lane for lane in order[1:] if lane.breaker.up and lane.reads.of(size).stale(now)]
        order = stale[:1] + [lane for lane in order if lane not in stale[:1]]
    return order


class Question(NamedTuple, Generic[T]):
    """What a read asks a replica for, and about how many bytes the answer has; None for a whole object."""

    verb: str
    key: str
    ask: Ask[T]
    length: int | None

    @property
    def size(self) -> SizeClass:
        """The class of its latencies."""
        return size_class(self.length)

    def silence_seconds(self, lane: Lane) -> float:
        """How long a replica may take: less for one that is down, which has had its chance."""
        limit = silence_seconds(SEGMENT_MAX if self.length is None else self.length)
        return limit if lane.breaker.up else limit - SILENCE_SECONDS + LAST_RESORT_SECONDS


class Race(Generic[T]):
    """One question, to the replicas in `order`. Without a budget nothing is hedged: the next is asked when one has failed."""

    def __init__(self, question: Question[T], order: Sequence[Lane], budget: Budget | None, runtime: Runtime) -> None:
        self._question = question
        self._waiting = deque(order)
        self._budget = budget
        self._runtime = runtime
        self._asked: list[_Asked[T]] = []
        self._failures: dict[Lane, AgentfsError] = {}
        self._late_at = self._very_late_at = math.inf
        self._bell = trio.Event()

    async def run(self) -> Answer[T]:
        """The first answer; raises what the failures of all amount to. Who is slower is not asked any more."""
        if self._budget is not None:
            self._budget.earn()
        self._ask_next()
        try:
            while self._asked:
                await self._wait()
                answer = self._look()
                if answer is not None:
                    return answer
        finally:
            for asked in self._asked:
                asked.request.drop()
        what = f"{self._question.verb} of {self._question.key}"
        raise read_failure(what, {lane.replica: error for lane, error in self._failures.items()})

    async def _wait(self) -> None:
        """Until a request is over, or there is something to do because none is."""
        first = min(self._asked, key=lambda asked: asked.give_up_at)
        at, act = min(
            (self._late_at, self._hedge),
            (self._very_late_at, self._ask_next),
            (first.give_up_at, first.give_up),
            key=itemgetter(0),
        )
        with trio.move_on_after(max(at - self._runtime.boottime(), 0.0)):
            await self._bell.wait()
        if not self._bell.is_set():
            act()
        self._bell = trio.Event()

    def _look(self) -> Answer[T] | None:
        """Sort out the requests that are over: one of them has the answer, or others take the place of each."""
        over = [asked.request for asked in self._asked if asked.request.over]
        self._asked = [asked for asked in self._asked if not asked.request.over]
        self._failures |= {request.lane: request.error for request in over if request.error is not None}
        for request in over:
            if request.error is None:
                return Answer(request.result(), request.lane, self._failures)
        for _ in over:
            self._ask_next()
        return None

    def _ask_next(self) -> None:
        """Ask the next replica, if there is one, and note when its answer would be late."""
        self._late_at = self._very_late_at = math.inf
        if not self._waiting:
            return
        lane, question = self._waiting.popleft(), self._question
        request = lane.begin(
            question.verb, question.key, question.ask, on_over=self._ring, latencies=lane.reads.of(question.size)
        )
        self._asked.append(_Asked(request, question.silence_seconds(lane)))
        if self._waiting and self._budget is not None:
            late = self._late_seconds(lane)
            self._late_at = request.asked_at + late
            self._very_late_at = request.asked_at + max(late * VERY_LATE, VERY_LATE_SECONDS)

    def _late_seconds(self, lane: Lane) -> float:
        """From when on its answer is late. One that is asked before a nearer one gets no longer than the nearer one would."""
        size, following = self._question.size, self._waiting[0]
        late = lane.reads.of(size).late_seconds
        nearer = following.reads.distance_seconds(size) < lane.reads.distance_seconds(size)
        return min(late, following.reads.of(size).late_seconds) if nearer and following.breaker.up else late

    def _hedge(self) -> None:
        """Ask the next replica too, if it is likely to answer and there is a token."""
        self._late_at = math.inf
        if self._budget is not None and self._budget.left and self._waiting[0].breaker.up:
            self._budget.spend()
            self._ask_next()

    def _ring(self) -> None:
        self._bell.set()


class _Asked(NamedTuple, Generic[T]):
    """A request of a race, and how long it may take."""

    request: Request[T]
    silence_seconds: float

    @property
    def give_up_at(self) -> float:
        return self.request.asked_at + self.silence_seconds

    def give_up(self) -> None:
        self.request.give_up(self.silence_seconds)
