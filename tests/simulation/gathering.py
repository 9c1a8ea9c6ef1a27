"""A gathering: a place where machines wait for each other."""

import trio


class Gathering:
    """Lets `count` tasks go on when all of them have come, again and again."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._here = 0
        self._complete = trio.Event()
        self.first = self._complete

    async def come(self) -> None:
        """Return once everybody has come."""
        self._here += 1
        complete = self._complete
        if self._here == self._count:
            self._here, self._complete = 0, trio.Event()
            complete.set()
        await complete.wait()
