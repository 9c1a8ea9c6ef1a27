"""Who opens a file that the replaying thread has open for writing waits until it is closed, and nobody else does."""

import trio
from trio.testing import wait_all_tasks_blocked

from agentfs.fuse.written import Written
from agentfs.model.ids import Ino


async def test_only_who_opens_that_file_waits_until_the_thread_has_closed_it() -> None:
    written, let_through = Written(), list[int]()

    async def opened(ino: int) -> None:
        await written.wait_ended(Ino(ino))
        let_through.append(ino)

    written.began(Ino(7))
    async with trio.open_nursery() as nursery:
        for ino in (7, 8, 7):
            nursery.start_soon(opened, ino)
        await wait_all_tasks_blocked()
        assert let_through == [8]
        await trio.to_thread.run_sync(written.ended)
    assert let_through == [8, 7, 7]


async def test_nobody_waits_afterwards() -> None:
    written = Written()
    for _ in range(2):
        written.began(Ino(7))
        await trio.to_thread.run_sync(written.ended)
        await written.wait_ended(Ino(7))
