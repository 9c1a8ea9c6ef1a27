"""Upkeep: one mount does the chores, another when that one is gone, nobody while the journal is away; failures are retried."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from agentfs.model.changes import CloseSession, Fence, OpenSession
from agentfs.model.entry import Entry, Transaction
from agentfs.model.errors import AgentfsError, Unavailable
from agentfs.model.ids import NO_SESSION, SessionId, TxnNumber
from agentfs.workspace.upkeep import INTERVAL_SECONDS, RETRY_MAX_SECONDS, Upkeep
from tests.simulation.entries import put
from tests.simulation.parts import Parts, World, make_world, open_parts, replayed
from tests.simulation.virtual_time import in_virtual_time

A, B = SessionId(1), SessionId(2)


@dataclass
class Count:
    """A chore that notes when it is done; `left` pieces remain, and it fails while `error` is set."""

    left: int = 0
    error: AgentfsError | None = None
    times: list[float] = field(default_factory=list)

    async def run_once(self) -> bool:
        await trio.lowlevel.checkpoint()
        self.times.append(trio.current_time())
        if self.error is not None:
            raise self.error
        self.left = max(0, self.left - 1)
        return self.left > 0


@dataclass
class Running:
    """Upkeep at work in one session."""

    parts: Parts
    upkeep: Upkeep
    lapsed: bool = False


@asynccontextmanager
async def running(world: World, directory: Path, *chores: Count, session: int = 1) -> AsyncIterator[Running]:
    async with open_parts(world, directory, session=session) as parts, trio.open_nursery() as nursery:
        upkeep = Upkeep(parts.committer, chores, parts.runtime, lapsed=lambda: state.lapsed)
        state = Running(parts, upkeep)
        nursery.start_soon(upkeep.run)
        yield state
        nursery.cancel_scope.cancel()


@in_virtual_time
async def test_the_lowest_open_session_does_the_chores(tmp_path: Path) -> None:
    world, ours, theirs = make_world(), Count(), Count()
    async with running(world, tmp_path / "1", ours), running(world, tmp_path / "2", theirs, session=2) as other:
        await trio.sleep(INTERVAL_SECONDS * 3)
        assert len(ours.times) >= 3
        assert theirs.times == []
        world.foreign(1, CloseSession())
        await other.parts.committer.catch_up()
        await trio.sleep(INTERVAL_SECONDS + 1)
        assert len(theirs.times) == 1


def test_who_cannot_do_them_is_passed_over() -> None:
    tables = replayed(make_world().log)
    guest = OpenSession(b"guest", "host", 7, "", 2, upkeep=False)
    put(tables, Entry(NO_SESSION, 2, [Transaction(TxnNumber(1), [guest, Fence(A), Fence(B)])]))
    assert tables.keeper() is None
    last = OpenSession(b"last", "host", 7, "", 2)
    put(tables, Entry(NO_SESSION, 2, [Transaction(TxnNumber(2), [last])]))
    assert tables.keeper() == SessionId(4)
    tables.close()


@in_virtual_time
async def test_pieces_follow_each_other_at_once_and_chores_take_turns(tmp_path: Path) -> None:
    one, two = Count(left=5), Count(left=2)
    async with running(make_world(), tmp_path / "1", one, two):
        await trio.sleep(1)
        assert (len(one.times), len(two.times)) == (5, 5)
        await trio.sleep(INTERVAL_SECONDS)
        assert (len(one.times), len(two.times)) == (6, 6)


@in_virtual_time
async def test_waking_is_at_once(tmp_path: Path) -> None:
    chore = Count()
    async with running(make_world(), tmp_path / "1", chore) as state:
        await trio.sleep(1)
        state.upkeep.wake()
        await trio.sleep(0.1)
        assert len(chore.times) == 2


@in_virtual_time
async def test_a_chore_that_fails_is_tried_again_ever_more_rarely_and_holds_up_no_other(tmp_path: Path) -> None:
    failing, fine = Count(error=Unavailable("away")), Count()
    async with running(make_world(), tmp_path / "1", failing, fine) as state:
        await trio.sleep(600)
        assert 10 < len(failing.times) < 25
        assert max(two - one for one, two in zip(failing.times, failing.times[1:], strict=False)) < RETRY_MAX_SECONDS * 2
        assert len(fine.times) > 30
        failing.error = None
        state.upkeep.wake()
        await trio.sleep(0.1)
        tried = len(failing.times)
        await trio.sleep(INTERVAL_SECONDS * 2 + 1)
        assert len(failing.times) == tried + 2


@in_virtual_time
async def test_nothing_is_done_while_the_session_may_be_dead(tmp_path: Path) -> None:
    world, chore = make_world(), Count(left=1000)
    async with running(world, tmp_path / "1", chore) as state:
        state.lapsed = True
        await trio.sleep(INTERVAL_SECONDS * 3)
        assert chore.times == []
        state.lapsed = False
        state.upkeep.wake()
        await trio.sleep(1)
        assert len(chore.times) == 1000


@in_virtual_time
async def test_who_was_fenced_does_no_more(tmp_path: Path) -> None:
    world, chore = make_world(), Count()
    async with running(world, tmp_path / "1", chore) as state:
        await trio.sleep(1)
        world.foreign(2, Fence(A))
        await state.parts.committer.catch_up()
        done = len(chore.times)
        state.upkeep.wake()
        await trio.sleep(INTERVAL_SECONDS * 3)
        assert len(chore.times) == done
