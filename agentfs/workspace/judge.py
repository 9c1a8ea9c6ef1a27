"""The judge: watches the other sessions' signs of life, and fences those that gave none for their whole TTL.

A sign is a changed heartbeat or a transaction. Only this mount's own clock counts (CLOCK_BOOTTIME, which goes on while a
machine is suspended); the others' clocks are never looked at. The verdict is an entry of the journal, so it is exact: a
transaction of the accused that comes before it counts, and makes a verdict void that was reached without knowing of it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from agentfs.journal.contract import Journal
from agentfs.model.errors import AgentfsError, Busy
from agentfs.model.ids import SessionId, TxnNumber
from agentfs.model.session import OPEN, Session
from agentfs.runtime import Runtime
from agentfs.workspace.committer import Committer

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Sign:
    """The last sign of life of a session: its heartbeat, its last transaction, and when they were first seen so (boot time)."""

    beats: int
    seen: TxnNumber
    since: float


class Judge:
    """Watches the sessions of one workspace for one mount. `run` is its task."""

    def __init__(self, journal: Journal, committer: Committer, runtime: Runtime, *, interval_seconds: float) -> None:
        self._journal = journal
        self._committer = committer
        self._runtime = runtime
        self._interval_seconds = interval_seconds
        self._signs: dict[SessionId, Sign] = {}
        # Silence counts from here on: while this mount could not show itself either, the journal was silent, not the others.
        self.counts_from: Callable[[], float] = lambda: 0.0

    def remaining_seconds(self, session: SessionId) -> float | None:
        """How long a session has before it would be judged dead; None for one that was not looked at yet."""
        sign, known = self._signs.get(session), self._committer.tables.sessions.get(session)
        if sign is None or known is None:
            return None
        return max(0.0, sign.since + known.ttl_ms / 1000 - self._runtime.boottime())

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await self._runtime.sleep(self._interval_seconds)
            try:
                await self.look()
            except AgentfsError as error:
                _log.warning("sessions_not_looked_at", reason=str(error))

    async def look(self) -> None:
        """Read the heartbeats once, and fence who is dead. Raises Unavailable."""
        if not self._others():
            # To ask would be a request, and every few seconds one.
            self._signs = {}
            return
        # What is read after this moment is a sign that was given before it or later, never a later one missed.
        now = self._runtime.boottime()
        beats = await self._journal.beats()
        others = self._others()
        self._signs = {each.session: self._sign(each, beats.get(each.session, 0), now) for each in others}
        for session in others:
            if now - max(self._signs[session.session].since, self.counts_from()) >= session.ttl_ms / 1000:
                await self._fence(session, now)

    def _others(self) -> list[Session]:
        own = self._committer.session
        return [each for each in self._committer.tables.sessions.values() if each.standing == OPEN and each.session != own]

    def _sign(self, session: Session, beats: int, now: float) -> Sign:
        old = self._signs.get(session.session)
        if old is not None and old.beats == beats and old.seen == session.seen:
            return old
        return Sign(beats, session.seen, now)

    async def _fence(self, session: Session, looked: float) -> None:
        if self._runtime.boottime() - looked >= self._interval_seconds:
            # This mount itself was frozen since it looked: the accused may have shown itself meanwhile.
            return
        try:
            await self._committer.fence(session.session, seen=self._signs[session.session].seen)
        except Busy:
            return
        _log.warning("session_fenced", session=session.session, writer=session.writer)
        await self._journal.forget_beat(session.session)
