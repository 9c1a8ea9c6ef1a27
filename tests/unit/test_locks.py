"""The lock manager between whole mounts: who is granted what and when, what it costs, and what happens when nobody answers."""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from agentfs.model.changes import Acquire
from agentfs.model.errors import AgentfsError, Deadlock, LeaseHeld, NoLocks
from agentfs.model.lease import EXCLUSIVE, POSIX, SHARED, WHOLE, Run
from agentfs.workspace.lock_table import Lock
from agentfs.workspace.locks import IMPATIENT_SECONDS
from tests.simulation.mounts import FILE, Mount, Shared, make_shared, open_mount
from tests.simulation.virtual_time import in_virtual_time

BOUND_SECONDS = 20.0
"""More than any of this takes: who waits longer waits for ever."""

SHARED_WHOLE = Run(WHOLE.first, WHOLE.last, SHARED)
LOW, HIGH = Run(0, 9, EXCLUSIVE), Run(10, 19, EXCLUSIVE)


@pytest.fixture
def shared() -> Shared:
    return make_shared()


async def mounts(stack: AsyncExitStack, shared: Shared, cache: Path, count: int = 2) -> list[Mount]:
    """Mounts that are closed with the stack."""
    return [await stack.enter_async_context(open_mount(shared, cache, number)) for number in range(1, count + 1)]


class Asking:
    """Processes that wait for locks; `granted` are the names of those that got theirs, in order."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.granted: list[str] = []
        self.refused: dict[str, type[AgentfsError]] = {}
        self._nursery = nursery

    async def ask(self, name: str, lock: Callable[[], Awaitable[None]], *, settle_seconds: float = 1.0) -> None:
        """Start a process, and give it time to get into the queue."""

        async def process() -> None:
            try:
                await lock()
            except AgentfsError as error:
                self.refused[name] = type(error)
            else:
                self.granted.append(name)

        self._nursery.start_soon(process)
        await trio.sleep(settle_seconds)


# ---- between mounts


@in_virtual_time
async def test_the_next_mount_waits_until_the_lock_is_gone(shared: Shared, tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        a, b = await mounts(stack, shared, tmp_path)
        asking = Asking(nursery)
        await a.lock(1)
        await asking.ask("b", lambda: b.lock(1), settle_seconds=60)
        assert asking.granted == []
        a.unlock(1)
        await trio.sleep(0.5)
        assert asking.granted == ["b"]


@in_virtual_time
async def test_locking_again_asks_nobody(shared: Shared, tmp_path: Path) -> None:
    async with open_mount(shared, tmp_path) as mount:
        await mount.lock(1)
        mount.unlock(1)
        before = len(shared.log.payloads)
        for _ in range(100):
            await mount.lock(1)
            mount.unlock(1)
        await trio.sleep(1)
        assert len(shared.log.payloads) == before


@in_virtual_time
async def test_what_was_written_under_a_lock_is_seen_under_the_next(shared: Shared, tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        a, b = await mounts(stack, shared, tmp_path)
        asking = Asking(nursery)
        await a.lock(1)
        handle = await a.open()
        await asking.ask("b", lambda: b.lock(1))
        await a.workspace.files.write(handle, 0, b"no fsync, no close")
        a.unlock(1)
        await trio.sleep(0.5)
        assert asking.granted == ["b"]
        reader = b.workspace.files.open_known(FILE, 0)
        assert await b.workspace.files.read(reader.number, 0, 100) == b"no fsync, no close"


@in_virtual_time
async def test_a_lease_is_not_given_up_before_the_file_is_committed(shared: Shared, tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        a, b = await mounts(stack, shared, tmp_path)
        asking = Asking(nursery)
        await a.lock(1)
        await asking.ask("b", lambda: b.lock(1))
        handle = await a.open()
        gate = a.cable.held["append"] = trio.Event()
        await a.workspace.files.write(handle, 0, b"late")
        a.unlock(1)
        await trio.sleep(2)
        assert asking.granted == []
        a.cable.held.clear()
        gate.set()
        await trio.sleep(2)
        assert asking.granted == ["b"]
        assert await shared.body() == b"late"


@in_virtual_time
async def test_shared_locks_are_held_by_many_mounts_and_an_exclusive_one_waits_for_all(shared: Shared, tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        a, b, c = await mounts(stack, shared, tmp_path, 3)
        asking = Asking(nursery)
        await asking.ask("a", lambda: a.lock(1, SHARED_WHOLE))
        await asking.ask("b", lambda: b.lock(1, SHARED_WHOLE))
        assert asking.granted == ["a", "b"]
        await asking.ask("c", lambda: c.lock(1))
        a.unlock(1)
        await trio.sleep(1)
        assert asking.granted == ["a", "b"]
        b.unlock(1)
        await trio.sleep(1)
        assert asking.granted == ["a", "b", "c"]


@in_virtual_time
async def test_disjoint_ranges_are_held_by_two_mounts_at_once(shared: Shared, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        a, b = await mounts(stack, shared, tmp_path)
        with trio.fail_after(BOUND_SECONDS):
            await a.lock(1, LOW, space=POSIX)
            await b.lock(1, HIGH, space=POSIX)
        with pytest.raises(LeaseHeld):
            await a.lock(1, HIGH, space=POSIX, wait=False)


@in_virtual_time
async def test_flock_and_fcntl_locks_do_not_see_each_other(shared: Shared, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        a, b = await mounts(stack, shared, tmp_path)
        with trio.fail_after(BOUND_SECONDS):
            await a.lock(1)
            await b.lock(1, space=POSIX)


# ---- who is next


@in_virtual_time
async def test_mounts_are_granted_in_the_order_in_which_they_asked(shared: Shared, tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        held, *others = await mounts(stack, shared, tmp_path, 5)
        asking = Asking(nursery)
        await held.lock(1)
        for number, mount in enumerate(others):
            await asking.ask(str(number), lambda mount=mount: mount.lock(1))  # type: ignore[misc]
        held.unlock(1)
        for number, mount in enumerate(others):
            await trio.sleep(1)
            assert asking.granted == [str(each) for each in range(number + 1)]
            mount.unlock(1)


@in_virtual_time
async def test_the_holders_own_processes_do_not_pass_a_mount_that_waits(shared: Shared, tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        a, b = await mounts(stack, shared, tmp_path)
        asking = Asking(nursery)
        await a.lock(1)
        await asking.ask("b", lambda: b.lock(1))
        await asking.ask("a", lambda: a.lock(2))
        a.unlock(1)
        await trio.sleep(1)
        assert asking.granted == ["b"]
        b.unlock(1)
        await trio.sleep(1)
        assert asking.granted == ["b", "a"]


@in_virtual_time
async def test_who_came_first_and_asked_the_journal_second_stops_nobody(shared: Shared, tmp_path: Path) -> None:
    """A process that has its place here but does not know yet that State is at the tail asks after the one behind it."""
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        a, b = await mounts(stack, shared, tmp_path)
        asking = Asking(nursery)
        await a.lock(1)
        early = b.begin(2)
        await asking.ask("b's second", lambda: b.lock(3))
        await asking.ask("a's other", lambda: a.lock(4))
        await asking.ask("b's first", lambda: b.workspace.locks.finish(early))
        a.unlock(1)
        await trio.sleep(1)
        assert asking.granted == ["b's second"]
        b.unlock(3)
        await trio.sleep(1)
        assert asking.granted == ["b's second", "a's other"]
        a.unlock(4)
        await trio.sleep(1)
        assert asking.granted == ["b's second", "a's other", "b's first"]


@in_virtual_time
async def test_who_gives_up_leaves_no_trace_in_the_queue(shared: Shared, tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        a, b, c = await mounts(stack, shared, tmp_path, 3)
        asking = Asking(nursery)
        await a.lock(1)
        with trio.move_on_after(1) as interrupted:
            await b.lock(1)
        assert interrupted.cancelled_caught
        await asking.ask("c", lambda: c.lock(1))
        assert [request.session for request in shared.leases().queue] == [c.session]
        a.unlock(1)
        await trio.sleep(1)
        assert asking.granted == ["c"]


@in_virtual_time
async def test_a_mount_that_dies_is_followed_within_its_ttl_and_a_beat(shared: Shared, tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        (b,) = await mounts(stack, shared, tmp_path, 1)
        asking = Asking(nursery)
        with trio.CancelScope() as life:
            async with open_mount(shared, tmp_path, 9) as a:
                await a.lock(1)
                await trio.sleep(5)
                life.cancel()
                await trio.sleep(0)
        await asking.ask("b", lambda: b.lock(1), settle_seconds=10.0 + 2 * 10.0 / 4)
        assert asking.granted == ["b"]


# ---- those who do not want to wait


@in_virtual_time
async def test_trying_tells_the_truth_across_mounts(shared: Shared, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        a, b = await mounts(stack, shared, tmp_path)
        await a.lock(1)
        with trio.fail_after(IMPATIENT_SECONDS), pytest.raises(LeaseHeld):
            await b.lock(1, wait=False)
        a.unlock(1)
        with trio.fail_after(IMPATIENT_SECONDS):
            await b.lock(1, wait=False)
        assert shared.leases().queue == ()


@in_virtual_time
async def test_trying_ends_when_the_holder_does_not_answer(shared: Shared, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        a, b = await mounts(stack, shared, tmp_path)
        await a.lock(1)
        a.cable.cut = True
        began = trio.current_time()
        with pytest.raises(LeaseHeld):
            await b.lock(1, wait=False)
        assert trio.current_time() - began <= IMPATIENT_SECONDS
        await trio.sleep(1)
        assert shared.leases().queue == ()


@in_virtual_time
async def test_asking_who_holds_it_takes_nothing(shared: Shared, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        a, b = await mounts(stack, shared, tmp_path)
        await a.lock(7, LOW, space=POSIX)
        same = await a.workspace.locks.test(FILE, Lock(8, WHOLE, 108, 8))
        assert same is not None
        assert (same.pid, same.run) == (107, LOW)
        elsewhere = await b.workspace.locks.test(FILE, Lock(8, WHOLE, 108, 8))
        assert elsewhere is not None
        assert elsewhere.run == LOW
        a.unlock(7, space=POSIX)
        assert await b.workspace.locks.test(FILE, Lock(8, WHOLE, 108, 8)) is None
        assert b.workspace.locks.held() == []


# ---- deadlocks


@in_virtual_time
async def test_two_processes_of_a_mount_that_would_wait_for_each_other_are_told(shared: Shared, tmp_path: Path) -> None:
    async with open_mount(shared, tmp_path) as mount, trio.open_nursery() as nursery:
        asking = Asking(nursery)
        await mount.lock(1, LOW, space=POSIX)
        await mount.lock(2, HIGH, space=POSIX)
        await asking.ask("one", lambda: mount.lock(1, HIGH, space=POSIX))
        with pytest.raises(Deadlock):
            await mount.lock(2, LOW, space=POSIX)
        mount.unlock(2, space=POSIX)
        await trio.sleep(1)
        assert asking.granted == ["one"]


# ---- nobody answers


@in_virtual_time
async def test_without_a_journal_there_are_no_locks(shared: Shared, tmp_path: Path) -> None:
    async with open_mount(shared, tmp_path) as mount:
        mount.cable.cut = True
        with trio.fail_after(BOUND_SECONDS), pytest.raises(NoLocks):
            await mount.lock(1)


@in_virtual_time
async def test_who_waits_for_a_lock_is_told_when_the_journal_is_gone(shared: Shared, tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        a, b = await mounts(stack, shared, tmp_path)
        asking = Asking(nursery)
        await a.lock(1)
        await asking.ask("b", lambda: b.lock(1))
        b.cable.cut = True
        await trio.sleep(BOUND_SECONDS)
        assert asking.refused == {"b": NoLocks}


@in_virtual_time
async def test_a_verdict_that_is_not_in_the_journal_grants_nothing(shared: Shared, tmp_path: Path) -> None:
    """A mount fences the holder, and its verdict does not arrive: until it does the holder has its locks."""
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        a, b = await mounts(stack, shared, tmp_path)
        asking = Asking(nursery)
        await a.lock(1, LOW, space=POSIX)
        await asking.ask("b", lambda: b.lock(1, LOW, space=POSIX))
        gate = b.cable.held["append"] = trio.Event()
        nursery.start_soon(b.workspace.break_locks, b"file")
        await trio.sleep(1)
        # Whatever has the file looked at again: a process that comes and goes.
        with trio.move_on_after(1):
            await b.lock(2, HIGH, space=POSIX)
        assert asking.granted == []
        b.cable.held.clear()
        gate.set()
        await trio.sleep(1)
        assert asking.granted == ["b"]


@in_virtual_time
async def test_a_request_that_is_under_way_is_not_taken_for_granted(shared: Shared, tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        a, b = await mounts(stack, shared, tmp_path)
        asking = Asking(nursery)
        gate = b.cable.held["append"] = trio.Event()
        await asking.ask("b", lambda: b.lock(1))
        await a.lock(1)
        b.cable.held.clear()
        gate.set()
        await trio.sleep(5)
        assert asking.granted == []
        assert (
            sum(isinstance(change, Acquire) for entry in shared.entries() for t in entry.transactions for change in t.changes)
            == 2
        )
