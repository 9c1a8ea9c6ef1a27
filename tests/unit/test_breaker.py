"""The circuit breaker: when a replica counts as down, when it is probed, and what brings it up again."""

from collections.abc import Callable
from random import Random

import pytest
import trio
import trio.testing

from agentfs.chunks.breaker import FAILURES_MAX, PAUSE_MAX_SECONDS, Breaker
from agentfs.model.errors import AgentfsError, Denied, Unavailable
from tests.simulation.runtime import VirtualRuntime
from tests.simulation.virtual_time import in_virtual_time

AWAY = Unavailable("away")


class Even(VirtualRuntime):
    """Jitter that changes nothing."""

    def jitter(self) -> float:
        return 0.5


def a_breaker() -> Breaker:
    return Breaker(Even(Random(1)))


def fail(breaker: Breaker, times: int, error: AgentfsError = AWAY) -> list[bool]:
    return [breaker.failed(breaker.turn, error) for _ in range(times)]


@in_virtual_time
async def test_failures_in_a_row_bring_it_down() -> None:
    breaker = a_breaker()
    assert fail(breaker, FAILURES_MAX - 1) == [False] * (FAILURES_MAX - 1)
    assert breaker.state == "up"
    assert breaker.failed(breaker.turn, AWAY)
    assert (breaker.state, breaker.error) == ("down", AWAY)


@in_virtual_time
async def test_an_answer_between_failures_keeps_it_up() -> None:
    breaker = a_breaker()
    for _ in range(10):
        fail(breaker, FAILURES_MAX - 1)
        assert not breaker.answered(breaker.turn)
    assert breaker.up


@in_virtual_time
async def test_one_denial_brings_it_down() -> None:
    breaker = a_breaker()
    assert fail(breaker, 1, Denied("forbidden")) == [True]


@in_virtual_time
async def test_an_answer_brings_it_up_once() -> None:
    breaker = a_breaker()
    breaker.trip(AWAY)
    turn = breaker.turn
    assert breaker.answered(turn)
    assert breaker.up
    assert not breaker.answered(turn)


@in_virtual_time
async def test_what_was_asked_before_says_nothing_about_now() -> None:
    breaker = a_breaker()
    before = breaker.turn
    breaker.trip(AWAY)
    assert not breaker.answered(before)
    assert not breaker.up
    down = breaker.turn
    breaker.answered(down)
    assert [breaker.failed(down, AWAY) for _ in range(FAILURES_MAX)] == [False] * FAILURES_MAX
    assert breaker.up


@in_virtual_time
async def test_the_newest_failure_is_the_reason() -> None:
    breaker = a_breaker()
    breaker.trip(Denied("forbidden"))
    breaker.failed(breaker.turn, AWAY)
    assert breaker.error is AWAY


@in_virtual_time
async def test_pauses_grow_to_a_minute() -> None:
    breaker = a_breaker()
    breaker.trip(AWAY)
    assert [breaker.next_pause_seconds() for _ in range(9)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]


@pytest.mark.parametrize(("up_seconds", "pause"), [(PAUSE_MAX_SECONDS - 1, 4), (PAUSE_MAX_SECONDS, 1)])
@in_virtual_time
async def test_only_a_replica_that_stays_up_begins_anew(up_seconds: float, pause: float) -> None:
    breaker = a_breaker()
    breaker.trip(AWAY)
    assert [breaker.next_pause_seconds() for _ in range(2)] == [1, 2]
    breaker.answered(breaker.turn)
    await trio.sleep(up_seconds)
    breaker.trip(AWAY)
    assert breaker.next_pause_seconds() == pause


@pytest.mark.parametrize(("asked", "pause"), [(7.0, 7.0), (0.1, 1.0), (1e6, PAUSE_MAX_SECONDS)])
@in_virtual_time
async def test_a_pause_that_the_replica_asks_for_is_kept_within_bounds(asked: float, pause: float) -> None:
    breaker = a_breaker()
    error = Unavailable("slow down")
    error.retry_after_seconds = asked
    breaker.trip(error)
    assert breaker.next_pause_seconds() == pause


@in_virtual_time
async def test_jitter_spreads_the_pauses() -> None:
    pauses = set()
    for seed in range(20):
        breaker = Breaker(VirtualRuntime(Random(seed)))
        breaker.trip(AWAY)
        pauses.add(breaker.next_pause_seconds())
    assert len(pauses) == 20
    assert min(pauses) >= 0.75
    assert max(pauses) <= 1.25


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (lambda breaker: breaker.answered(breaker.turn), "up"),
        (lambda breaker: breaker.failed(breaker.turn, AWAY), "down"),
    ],
)
@in_virtual_time
async def test_a_probe_is_seen_until_its_outcome(outcome: Callable[[Breaker], bool], state: str) -> None:
    breaker = a_breaker()
    breaker.trip(AWAY)
    breaker.probe()
    assert breaker.state == "probing"
    outcome(breaker)
    assert breaker.state == state


@in_virtual_time
async def test_how_long_it_has_been_down() -> None:
    breaker = a_breaker()
    assert breaker.down_seconds is None
    breaker.trip(AWAY)
    await trio.sleep(90)
    assert breaker.down_seconds == 90
    breaker.answered(breaker.turn)
    assert breaker.down_seconds is None
