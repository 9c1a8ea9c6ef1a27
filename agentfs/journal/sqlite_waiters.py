"""The tasks that wait for an entry of one open journal: they sleep on one bell between them, and are woken as they need."""

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from agentfs.journal.sqlite_bells import Bell
from agentfs.model.ids import Position


class Waiter:
    """One task that waits for an entry behind `after`."""

    def __init__(self, after: Position) -> None:
        self.after = after
        self.nap = trio.CancelScope()

    def prepare(self) -> None:
        """To be called before a look at the tail: what happens from here on ends the next sleep, even before it begins."""
        self.nap = trio.CancelScope()

    def wake(self) -> None:
        """End this sleep or, for one that is awake, the next."""
        self.nap.cancel()


class Waiters:
    """The tasks that wait on one journal object. The first to sleep listens to the bell for all of them.

    While tasks wait, one of them listens or one of them is awake, so that no ring goes unheard: whoever goes to sleep
    listens if nobody does, whoever hears the bell wakes all, and whoever leaves while nobody listens wakes another. An awake
    one looks at the tail, and then leaves or sleeps.
    """

    def __init__(self) -> None:
        self._waiters: dict[Waiter, None] = {}
        self._listening = False

    @contextmanager
    def joined(self, after: Position) -> Iterator[Waiter]:
        """A waiter that is woken by the others as long as the block lasts."""
        waiter = Waiter(after)
        self._waiters[waiter] = None
        try:
            yield waiter
        finally:
            del self._waiters[waiter]
            if not self._listening:
                self._wake_one()

    async def sleep(self, waiter: Waiter, bell: Bell) -> None:
        """Return when there may be news for `waiter`. Who takes the bell down meanwhile must call `wake_all` first."""
        if waiter.nap.cancel_called:
            return
        with waiter.nap:
            if self._listening:
                await trio.sleep_forever()
            await self._listen(bell)
            self.wake_all()

    def wake_passed(self, tail: Position) -> None:
        """Wake those who waited for an entry up to `tail`."""
        for waiter in self._waiters:
            if waiter.after < tail:
                waiter.wake()

    def wake_all(self) -> None:
        """Let everyone look again."""
        for waiter in self._waiters:
            waiter.wake()

    async def _listen(self, bell: Bell) -> None:
        self._listening = True
        try:
            await trio.lowlevel.wait_readable(bell)
        finally:
            self._listening = False
        bell.hear()

    def _wake_one(self) -> None:
        for waiter in self._waiters:
            waiter.wake()
            return
