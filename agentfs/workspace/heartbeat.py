"""The heartbeat: shows that this session is alive, and knows until when nobody can have declared it dead.

Others fence a session that has shown no sign of life for a whole TTL on their clocks. A sign is a heartbeat, which goes out of
band, or a transaction. So from the moment at which the last acknowledged sign was *sent*, the session cannot be fenced for TTL;
a margin is kept for clocks that do not run alike. Behind that it has *lapsed*: it may be dead in the eyes of others, and a
heartbeat alone proves nothing, for a fence may be on its way. A `Renew` proves it: it commits only if no fence came before it,
and a fence that was decided before it was seen aborts.
"""

from collections.abc import Callable

import structlog
import trio

from agentfs.journal.contract import Journal
from agentfs.model.changes import Renew
from agentfs.model.errors import AgentfsError, Unavailable
from agentfs.runtime import Runtime
from agentfs.workspace.committer import Committer

BEATS_PER_TTL = 4
MARGIN = 0.1
"""The part of the TTL that is kept for clocks of different speed."""

CONFIRM_SECONDS = 5.0
"""How long an operation on a locked file waits to hear whether a session that lapsed is still alive."""

_log = structlog.get_logger()


class Heartbeat:
    """The heartbeat of one mount. `run` and `watch` are its tasks; `ttl_seconds` is what the session was registered with."""

    def __init__(self, journal: Journal, committer: Committer, runtime: Runtime, *, ttl_seconds: float, sent: float) -> None:
        self.ttl_seconds = ttl_seconds
        # Called when the session has lapsed and the journal does not say soon that it is alive all the same.
        self.on_lapse: Callable[[], None] = lambda: None
        self._journal = journal
        self._committer = committer
        self._runtime = runtime
        self._confirming = trio.Lock()
        self._valid_until = 0.0
        self._steady_since = 0.0
        self.registered(sent)

    @property
    def interval_seconds(self) -> float:
        """Time from one beat to the next."""
        return self.ttl_seconds / BEATS_PER_TTL

    @property
    def remaining_seconds(self) -> float:
        """How long the session is safe from being declared dead, 0 once it has lapsed. A hot path."""
        return max(0.0, self._valid_until - self._runtime.boottime())

    @property
    def lapsed(self) -> bool:
        """Whether others may have declared the session dead. A hot path."""
        return self._runtime.boottime() >= self._valid_until

    def steady_since(self) -> float:
        """Since when (boot time) this session could show that it is alive whenever it had to; now, while it cannot."""
        return self._runtime.boottime() if self.lapsed else self._steady_since

    def registered(self, sent: float) -> None:
        """A sign of life that was sent at `sent` (boot time) is in the journal."""
        if self.lapsed:
            self._steady_since = self._runtime.boottime()
        self._valid_until = max(self._valid_until, sent + self.ttl_seconds * (1 - MARGIN))

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            await self._beat()
            await self._runtime.sleep(self.interval_seconds)

    async def watch(self) -> None:
        """Notice when the session has lapsed, and win it back or learn that it is lost; until cancelled."""
        while True:
            while not self.lapsed:
                await self._runtime.sleep(self.remaining_seconds + 0.001)
            _log.warning("session_lapsed", session=self._committer.session, ttl_seconds=self.ttl_seconds)
            while self.lapsed:
                try:
                    await self.confirm()
                except AgentfsError as error:
                    _log.warning("session_not_renewed", reason=str(error))
                    self.on_lapse()
                    await self._runtime.sleep(self.interval_seconds)

    async def confirm(self) -> None:
        """Return if the session is certainly alive, at once unless it has lapsed. Raises Fenced, and Unavailable in the end."""
        if not self.lapsed:
            return
        with trio.move_on_after(CONFIRM_SECONDS):
            await self._renew()
            return
        raise Unavailable("the journal does not say whether the session is still alive")

    async def _beat(self) -> None:
        session, sent = self._committer.session, self._runtime.boottime()
        try:
            await self._journal.beat(session)
        except AgentfsError as error:
            _log.warning("heartbeat_failed", reason=str(error))
            return
        if not self.lapsed and session == self._committer.session:
            self.registered(sent)

    async def _renew(self) -> None:
        async with self._confirming:
            if self.lapsed:
                sent = self._runtime.boottime()
                await self._committer.commit([Renew()])
                self.registered(sent)
