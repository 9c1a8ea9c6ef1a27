"""Recovery: what a killed mount had submitted or staged is committed in its name before anything else happens.

Its transactions go out with their own numbers, so that those the journal already has are ignored; then its staged bytes. What
cannot be committed any more (the session was fenced, the machine lost power) is set aside in a folder and reported.
"""

from contextlib import suppress

import structlog
import trio

from agentfs.journal.contract import Journal
from agentfs.model.changes import AddSegment, CloseSession, Truncate, Write
from agentfs.model.codec import encode_entry
from agentfs.model.entry import Entry, Transaction
from agentfs.model.errors import AgentfsError, Fenced
from agentfs.model.ids import Ino, SessionId, TxnNumber
from agentfs.model.session import FENCED, OPEN
from agentfs.runtime import Runtime
from agentfs.state.tables import Tables
from agentfs.workspace.committer import Committer
from agentfs.workspace.left_over import LeftOver
from agentfs.workspace.packer import open_packer
from agentfs.workspace.pending import groups
from agentfs.workspace.placements import Replicas
from agentfs.workspace.replay import replay
from agentfs.workspace.seat import Seat, boot_id
from agentfs.workspace.staging import Staging
from agentfs.workspace.staging_log import Frozen, Withdrawn, read_staging_log
from agentfs.workspace.writeback import Writeback

_log = structlog.get_logger()


async def recover(seat: Seat, tables: Tables, journal: Journal, replicas: Replicas, runtime: Runtime) -> None:
    """Commit what the seat's last mount left, or set it aside; afterwards nothing is staged in the seat.

    Raises Unavailable or NoSpace when the journal or the replicas cannot take it now: then it stays for the next mount.
    """
    owner = seat.owner()
    if owner is None:
        seat.clear()
        return
    left = _read(seat)
    if owner.incarnation != seat.incarnation:
        # The journal was lost since: there the number is another session's, or nobody's.
        if left.submitted or left.files:
            _set_aside(seat, owner.session)
        seat.clear()
        return
    session = tables.sessions.get(owner.session)
    resend = [transaction for number, transaction in sorted(left.submitted.items()) if session and number > session.seen]
    if session is None or session.standing != OPEN or owner.boot != boot_id():
        if resend or left.files:
            _set_aside(seat, owner.session)
        if session is not None and session.standing == OPEN:
            await _close(tables, journal, owner.session, runtime)
        seat.clear()
        return
    resend = _without_late(tables, resend, left)
    try:
        await _append(tables, journal, owner.session, resend, runtime)
        await _commit_staged(seat, left, tables, journal, owner.session, replicas, runtime)
    except Fenced:
        # Others have waited long enough: what has not arrived by now would come behind what they did since.
        _set_aside(seat, owner.session)
        seat.clear()
        return
    await _close(tables, journal, owner.session, runtime)
    _log.info("recovered", session=owner.session, transactions=len(resend), files=len(left.files))
    seat.clear()


def _set_aside(seat: Seat, session: SessionId) -> None:
    folder = seat.set_aside(session)
    seat.staging_path.mkdir(mode=0o700)
    _log.error("staged_data_set_aside", folder=str(folder), session=session)


def _without_late(tables: Tables, transactions: list[Transaction], left: LeftOver) -> list[Transaction]:
    """Transactions but for those that name a segment which was collected since it was put: they would be refused.

    Their bytes are staged still, and are put once more with the others; and so are those that were written to the same files
    after them, so that the order stays.
    """
    again: set[Ino] = set()
    kept, late = [], []
    for transaction in transactions:
        written = {change.ino for change in transaction.changes if isinstance(change, Write | Truncate)}
        named = [change for change in transaction.changes if isinstance(change, AddSegment)]
        if written & again or any(tables.may_be_collected(change.name, change.since) for change in named):
            again |= written
            late.append(transaction)
        else:
            kept.append(transaction)
    # Each is laid below what was withdrawn before it.
    for transaction in reversed(late):
        left.take(Withdrawn(transaction.number))
    left.finish()
    return kept


def _read(seat: Seat) -> LeftOver:
    left = LeftOver()
    path = seat.staging_path / "log"
    if path.exists():
        for record in read_staging_log(path):
            left.take(record)
    left.finish()
    return left


async def _close(tables: Tables, journal: Journal, session: SessionId, runtime: Runtime) -> None:
    """The session's goodbye. Others may have judged it dead a moment before: what it had to say is in the journal by then."""
    number = TxnNumber(tables.sessions[session].seen + 1)
    with suppress(Fenced):
        await _append(tables, journal, session, [Transaction(number, [CloseSession()])], runtime)


async def _append(
    tables: Tables, journal: Journal, session: SessionId, transactions: list[Transaction], runtime: Runtime
) -> None:
    for group in groups(transactions):
        position = await journal.append(encode_entry(Entry(session, runtime.now_ns(), group)))
        await replay(tables, journal, position)
        if tables.sessions[session].standing == FENCED:
            raise Fenced(f"session {session} was declared dead before it could be recovered")


async def _commit_staged(
    seat: Seat,
    left: LeftOver,
    tables: Tables,
    journal: Journal,
    session: SessionId,
    replicas: Replicas,
    runtime: Runtime,
) -> None:
    """Commit staged bytes through the same writeback that their mount would have used."""
    staging = Staging(seat.staging_path, runtime.boottime)
    committer = Committer(journal, tables, session, runtime, renews=False)
    # The log goes on, so that a recovery that is killed in its turn sends nothing twice either.
    committer.on_submit = staging.log_submitted
    committer.on_withdraw = staging.log_withdrawn
    failures: list[AgentfsError] = []
    try:
        async with open_packer(replicas, replicas, committer, runtime) as packer, trio.open_nursery() as nursery:
            writeback = Writeback(staging, committer, packer, runtime)
            nursery.start_soon(committer.run)
            for ino, files in left.files.items():
                inode = tables.inode(ino)
                if inode is None or not inode.is_file:
                    continue
                for file in files:
                    staging.adopt(ino, file, size=inode.size, now_ns=runtime.now_ns())
                staging.log.append(Frozen(ino))
            await writeback.commit_all(list(staging.files), lambda ino, error: failures.append(error) if error else None)
            nursery.cancel_scope.cancel()
    finally:
        committer.abandon()
        staging.close()
    if failures:
        raise failures[0]
