"""Recovery: what a killed mount had submitted or staged is committed in its name before anything else happens.

Its transactions go out with their own numbers, so that those the journal already has are ignored; then its staged bytes. What
cannot be committed any more (the session was fenced, the machine lost power) is set aside in a folder and reported.
"""

import structlog
import trio

from agentfs.journal.contract import Journal
from agentfs.model.changes import CloseSession, Truncate, Write
from agentfs.model.codec import encode_entry
from agentfs.model.entry import Entry, Transaction
from agentfs.model.errors import AgentfsError
from agentfs.model.ids import Ino, SessionId, TxnNumber
from agentfs.model.ranges import RangeSet
from agentfs.model.session import OPEN
from agentfs.runtime import Runtime
from agentfs.state.tables import Tables
from agentfs.workspace.committer import Committer
from agentfs.workspace.replay import replay
from agentfs.workspace.seat import Seat, boot_id
from agentfs.workspace.staging import Staging
from agentfs.workspace.staging_log import Cut, Forgotten, Frozen, Staged, StagingRecord, Submitted, Withdrawn, read_staging_log
from agentfs.workspace.writeback import Replicas, Writeback

_log = structlog.get_logger()


class LeftFile:
    """What a log says is staged of one file: byte ranges by staging file, oldest first, and the size it was cut to."""

    def __init__(self) -> None:
        self.slots: dict[int, RangeSet] = {}
        self.cut: int | None = None
        self.append = False

    def stage(self, record: Staged) -> None:
        """Take in a write."""
        self.append = record.append and (self.append or not self.slots)
        self.slots.setdefault(record.slot, RangeSet()).add(record.offset, record.offset + record.length)

    def truncate(self, size: int) -> None:
        """Take in a truncation."""
        self.append = False
        self.cut = size if self.cut is None else min(size, self.cut)
        for ranges in self.slots.values():
            ranges.remove(size, ranges.end)


class LeftOver:
    """What a log says was submitted, and what was staged and not covered by that."""

    def __init__(self) -> None:
        self.submitted: dict[TxnNumber, Transaction] = {}
        self.files: dict[Ino, list[LeftFile]] = {}
        self._frozen: dict[Ino, list[LeftFile]] = {}
        self._covered: dict[TxnNumber, dict[Ino, list[LeftFile]]] = {}

    def take(self, record: StagingRecord) -> None:
        """Take in the next record of the log."""
        match record:
            case Staged(ino=ino):
                self._newest(ino).stage(record)
            case Cut(ino=ino, size=size):
                for left in self._frozen.get(ino, []):
                    left.truncate(size)
                self._newest(ino).truncate(size)
            case Frozen(ino=ino):
                self._frozen.setdefault(ino, []).extend(self.files.pop(ino, []))
            case Submitted(transaction=transaction):
                self._submit(transaction)
            case Withdrawn(number=number):
                self.submitted.pop(number, None)
                for ino, files in self._covered.pop(number, {}).items():
                    self._frozen.setdefault(ino, []).extend(files)
            case Forgotten(ino=ino):
                self.files.pop(ino, None)
                self._frozen.pop(ino, None)

    def finish(self) -> None:
        """The log is at its end: what was frozen and not submitted is staged still."""
        for ino, files in self._frozen.items():
            self.files[ino] = [*files, *self.files.get(ino, [])]
        self._frozen.clear()

    def _newest(self, ino: Ino) -> LeftFile:
        files = self.files.setdefault(ino, [])
        if not files:
            files.append(LeftFile())
        return files[-1]

    def _submit(self, transaction: Transaction) -> None:
        self.submitted[transaction.number] = transaction
        written = {change.ino for change in transaction.changes if isinstance(change, Write | Truncate)}
        self._covered[transaction.number] = {ino: self._frozen.pop(ino) for ino in written if ino in self._frozen}


async def recover(seat: Seat, tables: Tables, journal: Journal, replicas: Replicas, runtime: Runtime) -> None:
    """Commit what the seat's last mount left, or set it aside; afterwards nothing is staged in the seat.

    Raises Unavailable or NoSpace when the journal or the replicas cannot take it now: then it stays for the next mount.
    """
    owner = seat.owner()
    if owner is None:
        seat.clear()
        return
    session = tables.sessions.get(owner.session)
    left = _read(seat)
    if session is None or session.standing != OPEN or owner.boot != boot_id():
        if left.submitted or left.files:
            folder = seat.set_aside(owner.session)
            seat.staging_path.mkdir(mode=0o700)
            _log.error("staged_data_set_aside", folder=str(folder), session=owner.session)
        if session is not None and session.standing == OPEN:
            await _append(tables, journal, owner.session, [], runtime, close=True)
        seat.clear()
        return
    resend = [transaction for number, transaction in sorted(left.submitted.items()) if number > session.seen]
    await _append(tables, journal, owner.session, resend, runtime)
    await _commit_staged(seat, left, tables, journal, owner.session, replicas, runtime)
    await _append(tables, journal, owner.session, [], runtime, close=True)
    _log.info("recovered", session=owner.session, transactions=len(resend), files=len(left.files))
    seat.clear()


def _read(seat: Seat) -> LeftOver:
    left = LeftOver()
    path = seat.staging_path / "log"
    if path.exists():
        for record in read_staging_log(path):
            left.take(record)
    left.finish()
    return left


async def _append(
    tables: Tables,
    journal: Journal,
    session: SessionId,
    transactions: list[Transaction],
    runtime: Runtime,
    *,
    close: bool = False,
) -> None:
    if close:
        number = TxnNumber(tables.sessions[session].seen + 1)
        transactions = [*transactions, Transaction(number, [CloseSession()])]
    if transactions:
        position = await journal.append(encode_entry(Entry(session, runtime.now_ns(), transactions)))
        await replay(tables, journal, position)


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
    committer = Committer(journal, tables, session, runtime)
    # The log goes on, so that a recovery that is killed in its turn sends nothing twice either.
    committer.on_submit = staging.log_submitted
    committer.on_withdraw = staging.log_withdrawn
    writeback = Writeback(staging, committer, replicas, runtime)
    failures: list[AgentfsError] = []
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(committer.run)
            for ino, files in left.files.items():
                inode = tables.inode(ino)
                if inode is None or not inode.is_file:
                    continue
                for file in files:
                    staging.adopt(ino, file.slots, cut=file.cut, append=file.append, size=inode.size, now_ns=runtime.now_ns())
                staging.log.append(Frozen(ino))
                try:
                    await writeback.commit(ino)
                except AgentfsError as error:
                    failures.append(error)
            nursery.cancel_scope.cancel()
    finally:
        replicas.on_straggler = None
        staging.close()
    if failures:
        raise failures[0]
