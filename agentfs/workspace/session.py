"""Registering a mount in the journal, again when its session was lost, and leaving it in good order."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog
import trio

from agentfs.journal.contract import Journal
from agentfs.model.changes import AnyChange, CloseSession, Fence, OpenSession
from agentfs.model.codec import encode_entry
from agentfs.model.entry import Entry, Transaction
from agentfs.model.errors import AgentfsError, Unavailable
from agentfs.model.ids import NO_SESSION, Position, SessionId, TxnNumber
from agentfs.runtime import Runtime
from agentfs.state.tables import Tables
from agentfs.workspace.committer import Committer
from agentfs.workspace.replay import replay

CLOSE_SECONDS = 5.0
"""How long an unmount waits for the journal to take its goodbye; without it the session is judged dead later."""

REGISTER_SECONDS = 30.0
"""How long the journal may be unreachable before a registration fails."""

T = TypeVar("T")

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a session says of its mount.

    `ttl_seconds`: how long it may be silent before others declare it dead. `upkeep`: it can do the workspace's chores, for
    which it must be able to write to the replicas.
    """

    host: str
    pid: int
    label: str = ""
    ttl_seconds: float = 10.0
    upkeep: bool = True


@dataclass(frozen=True, slots=True)
class Registration:
    """A session that was registered. `sent`: when its registration was sent (boot time), its first sign of life."""

    session: SessionId
    sent: float


async def open_session(tables: Tables, journal: Journal, runtime: Runtime, identity: Identity) -> Registration:
    """Register a session; State has everything up to its registration. Raises Unavailable."""

    async def until(position: Position) -> None:
        await replay(tables, journal, position)

    return await _register(tables, journal, runtime, identity, until)


async def open_next_session(committer: Committer, journal: Journal, runtime: Runtime, identity: Identity) -> Registration:
    """Register another session for a mount that has lost its own. Raises Unavailable.

    The old one ends with that, should it be a copy's by now: nothing that is still on its way under its number counts.
    """
    before = Fence(committer.session, runtime.now_ns())
    return await _register(committer.tables, journal, runtime, identity, committer.catch_up, before)


async def _register(
    tables: Tables,
    journal: Journal,
    runtime: Runtime,
    identity: Identity,
    reach: Callable[[Position], Awaitable[None]],
    *before: AnyChange,
) -> Registration:
    token = runtime.random_bytes(16)
    ttl_ms = round(identity.ttl_seconds * 1000)
    opened = OpenSession(token, identity.host, identity.pid, identity.label, runtime.now_ns(), ttl_ms, identity.upkeep)
    payload = encode_entry(Entry(NO_SESSION, runtime.now_ns(), [Transaction(TxnNumber(1), [*before, opened])]))
    sent = runtime.boottime()
    # The token makes a second registration of the same session harmless, should the first answer have been lost.
    position = await _persist(lambda: journal.append(payload), runtime)
    await _persist(lambda: reach(position), runtime)
    return Registration(next(each.session for each in tables.sessions.values() if each.token == token), sent)


async def _persist(ask: Callable[[], Awaitable[T]], runtime: Runtime) -> T:
    deadline = runtime.boottime() + REGISTER_SECONDS
    pause = 0.05
    while True:
        try:
            return await ask()
        except Unavailable as error:
            if runtime.boottime() + pause > deadline:
                raise
            _log.warning("not_registered", reason=str(error), retry_seconds=pause)
        await runtime.sleep(pause * (0.5 + runtime.jitter()))
        pause = min(pause * 2, 2.0)


async def close_session(committer: Committer, journal: Journal) -> bool:
    """Say goodbye in the journal; False if it cannot be reached in time."""
    with trio.move_on_after(CLOSE_SECONDS) as scope:
        try:
            await committer.commit([CloseSession()])
            await journal.forget_beat(committer.session)
        except AgentfsError:
            return False
    return not scope.cancelled_caught
