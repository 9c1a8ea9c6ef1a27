"""Registering a mount in the journal, and leaving it in good order."""

import trio

from agentfs.journal.contract import Journal
from agentfs.model.changes import CloseSession, OpenSession
from agentfs.model.codec import encode_entry
from agentfs.model.entry import Entry, Transaction
from agentfs.model.errors import AgentfsError
from agentfs.model.ids import NO_SESSION, SessionId, TxnNumber
from agentfs.runtime import Runtime
from agentfs.state.tables import Tables
from agentfs.workspace.committer import Committer
from agentfs.workspace.replay import replay

CLOSE_SECONDS = 5.0
"""How long an unmount waits for the journal to take its goodbye; without it the session is judged dead later."""


async def open_session(tables: Tables, journal: Journal, runtime: Runtime, *, host: str, pid: int, label: str) -> SessionId:
    """Register a session and return its number; State has everything up to its registration."""
    token = runtime.random_bytes(16)
    change = OpenSession(token, host, pid, label, runtime.now_ns())
    entry = Entry(NO_SESSION, runtime.now_ns(), [Transaction(TxnNumber(1), [change])])
    position = await journal.append(encode_entry(entry))
    await replay(tables, journal, position)
    return next(session.session for session in tables.sessions.values() if session.token == token)


async def close_session(committer: Committer) -> bool:
    """Say goodbye in the journal; False if it cannot be reached in time."""
    with trio.move_on_after(CLOSE_SECONDS) as scope:
        try:
            await committer.commit([CloseSession()])
        except AgentfsError:
            return False
    return not scope.cancelled_caught
