"""What a process knows of a journal's tail: who waits for more, and the one among them that listens for all."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import trio

from agentfs.model.ids import Position


class News:
    """The newest position that is known, one that is only rumoured, and the tasks that wait for one behind a position.

    Every role of the server may notify anybody of anything: what was notified is a reason to ask, and no more.

    All who wait know how to listen, and one at a time does, in the order in which they came. Who learns of a position wakes
    those that waited for it; if the one that listens is among them, or is cancelled, or fails, the next takes over.
    """

    def __init__(self) -> None:
        self.known = Position(0)
        self.rumoured = Position(0)
        self.rumours = 0
        self._waiting: dict[trio.CancelScope, Position] = {}
        self._listening = trio.Lock()

    def learn(self, position: Position) -> None:
        """The server said that the journal reaches to `position`."""
        if position > self.known:
            self.known = position
            self._wake(lambda after: after < position)

    def hear(self, position: Position) -> None:
        """Somebody said that the journal reaches to `position`."""
        if position > self.known:
            self.rumours += 1
            self.rumoured = max(self.rumoured, position)
            self._wake(lambda after: after < position)

    def disbelieve(self, rumours: int) -> None:
        """The server was asked after so many rumours: what is not known by now is not true, unless more was heard meanwhile."""
        if self.rumours == rumours:
            self.rumoured = Position(0)

    def wake_all(self) -> None:
        """Let everyone who waits look again at whether it may."""
        self._wake(lambda after: True)

    async def wait(self, after: Position, listen: Callable[[], Awaitable[None]]) -> None:
        """Return once there may be more than `after`, or on `wake_all`. `listen` brings news until it is cancelled."""
        if max(self.known, self.rumoured) <= after:
            with self._asleep(after):
                async with self._listening:
                    await listen()

    @contextmanager
    def _asleep(self, after: Position) -> Iterator[None]:
        with trio.CancelScope() as scope:
            self._waiting[scope] = after
            try:
                yield
            finally:
                del self._waiting[scope]

    def _wake(self, concerns: Callable[[Position], bool]) -> None:
        for scope, after in self._waiting.items():
            if concerns(after):
                scope.cancel()
