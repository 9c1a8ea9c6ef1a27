"""The file that the replaying thread has open for writing: who opens it to run it meanwhile would get ETXTBSY (execve(2))."""

import trio

from agentfs.model.ids import Ino


class Written:
    """`began` and `wait_ended` belong to the event loop, `ended` to a thread that the loop has started."""

    def __init__(self) -> None:
        self._ino: Ino | None = None
        self._loop: trio.lowlevel.TrioToken | None = None
        self._end: trio.Event | None = None

    def began(self, ino: Ino) -> None:
        """The thread is about to be told that it has the file open."""
        self._loop = trio.lowlevel.current_trio_token()
        self._ino = ino

    def ended(self) -> None:
        """The thread has closed whatever it had open, and the kernel knows."""
        if self._ino is not None:
            self._ino = None
            # Whoever is noted as waiting only after this line looks at `_ino` once more.
            if self._end is not None:
                trio.from_thread.run_sync(self._wake, trio_token=self._loop)

    async def wait_ended(self, ino: Ino) -> None:
        """Return once the thread does not have this file open: at once, but for the less than a millisecond that it takes."""
        if self._ino != ino:
            return
        if self._end is None:
            self._end = trio.Event()
        end = self._end
        if self._ino == ino:
            await end.wait()

    def _wake(self) -> None:
        assert self._end is not None, "only the loop takes it away"
        self._end.set()
        self._end = None
