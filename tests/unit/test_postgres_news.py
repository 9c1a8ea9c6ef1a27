"""Those who wait for a journal's news in one process: one listens for all, rumours are checked, and nobody is forgotten."""

import trio
import trio.testing

from agentfs.journal.news import News
from agentfs.model.errors import Unavailable
from agentfs.model.ids import Position


class Listening:
    """Counts who listens at the same time; raises what it is told to."""

    def __init__(self) -> None:
        self.now = 0
        self.begun = 0
        self.failure = trio.Event()

    async def __call__(self) -> None:
        self.now += 1
        self.begun += 1
        assert self.now == 1, "one listens for all"
        try:
            await self.failure.wait()
            raise Unavailable("the connection broke")
        finally:
            self.now -= 1


async def test_one_listens_for_all_and_the_next_takes_over() -> None:
    news, listening, woken = News(), Listening(), []

    async def wait(after: int) -> None:
        await news.wait(Position(after), listening)
        woken.append(after)

    async with trio.open_nursery() as nursery:
        for after in (0, 0, 1, 2):
            nursery.start_soon(wait, after)
            await trio.testing.wait_all_tasks_blocked()
        news.learn(Position(1))
        await trio.testing.wait_all_tasks_blocked()
        assert woken == [0, 0]
        assert listening.now == 1
        news.learn(Position(1))
        news.learn(Position(2))
        await trio.testing.wait_all_tasks_blocked()
        assert woken == [0, 0, 1]
        assert listening.now == 1
        news.wake_all()
    assert listening.now == 0


async def test_each_who_waits_is_told_that_listening_fails() -> None:
    news, listening, told = News(), Listening(), []

    async def wait() -> None:
        try:
            await news.wait(Position(0), listening)
        except Unavailable:
            told.append(True)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        listening.failure.set()
    assert told == [True] * 3


async def test_who_knows_need_not_wait() -> None:
    news, listening = News(), Listening()
    news.learn(Position(3))
    await news.wait(Position(2), listening)
    assert listening.begun == 0


async def test_a_rumour_that_is_not_true_wakes_once() -> None:
    news, listening = News(), Listening()
    news.hear(Position(9))
    rumours = news.rumours
    await news.wait(Position(0), listening)
    news.disbelieve(rumours)
    with trio.move_on_after(0):
        await news.wait(Position(0), listening)
        raise AssertionError


async def test_a_rumour_heard_while_another_is_checked_is_checked_as_well() -> None:
    """The true one may be lower than the false one."""
    news, listening = News(), Listening()
    news.hear(Position(9))
    rumours = news.rumours
    news.hear(Position(1))
    news.disbelieve(rumours)
    await news.wait(Position(0), listening)
    assert listening.begun == 0


async def test_what_is_known_is_no_rumour() -> None:
    news = News()
    news.learn(Position(5))
    news.hear(Position(5))
    assert news.rumours == 0
