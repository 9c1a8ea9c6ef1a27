"""The committer: speculates transactions on State, appends them in groups, and rebases them over foreign entries.

A transaction is applied the moment it is submitted, as if it stood in the entry that is most likely to carry it. When the
journal's answer agrees, it is committed as it is. When it does not (another session's entry came between, a group was
cut elsewhere), everything pending is taken back, the journal's entries are applied, and what is still pending is redone under
the same rules, so that rows always say what a fresh replay would say.
"""

import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import TypeVar

import structlog
import trio

from agentfs.journal.contract import Journal
from agentfs.model.changes import AnyChange, InlineRun, SetXattr, Write
from agentfs.model.codec import decode_entry, encode_entry
from agentfs.model.entry import Entry, Transaction
from agentfs.model.errors import AgentfsError, Corrupt, Fenced, NoSpace, Unavailable
from agentfs.model.ids import Position, SessionId, TxnNumber
from agentfs.runtime import Runtime
from agentfs.state.apply import Outcome, advance, apply_entry, apply_transaction
from agentfs.state.tables import Tables, Undo

NOWHERE = Position(0)
"""The position of a pending transaction that would abort as things stand."""

LINGER_SECONDS = 0.05
"""How long a transaction that nobody waits for may stay pending, so that others join its entry."""

GROUP_TRANSACTIONS = 1024
GROUP_BYTES = 4 << 20
"""Bounds of one entry."""

PENDING_MAX = 4096
"""Transactions pending before operations that need not wait are made to."""

RETRY_SECONDS = 30.0
"""How long the journal may be unreachable before what is pending fails."""

SAVE_ENTRIES = 128
"""Entries between two saves of State: what a mount replays after a crash."""

IDLE_SAVE_SECONDS = 1.0
"""How long nothing may be pending before State is saved."""

SAVE_BYTES = 2 << 20
"""Bytes of content in State and not saved, likewise: what a save has to write."""

FORCED_SAVE_ENTRIES = 4096
FORCED_SAVE_BYTES = 4 << 20
"""How much is saved even though something is always pending."""

_CHANGE_BYTES = 128
"""What a change weighs in an entry besides the content it carries, roughly."""

T = TypeVar("T")
_log = structlog.get_logger()


class Pending:
    """A transaction that is applied here and not known to be in the journal; `outcome` counts once `done` is set.

    `landed`: it was given up because the journal did not answer, and found to be in the journal after all.
    """

    __slots__ = ("done", "landed", "outcome", "position", "size", "transaction", "undo")

    def __init__(self, transaction: Transaction, undo: Undo, position: Position, size: int) -> None:
        self.transaction = transaction
        self.undo = undo
        self.position = position
        self.size = size
        self.outcome: Outcome = None
        self.landed = False
        self.done = trio.Event()

    async def committed(self) -> None:
        """Return once it is in the journal; raise why it is not to be."""
        await self.done.wait()
        if self.outcome is not None:
            raise self.outcome


class Committer:
    """One session's pending transactions. `run` is its task; everything else is called from the same event loop."""

    def __init__(self, journal: Journal, tables: Tables, session: SessionId, runtime: Runtime) -> None:
        self.session = session
        self.tables = tables
        self._journal = journal
        self._runtime = runtime
        self._number = TxnNumber(tables.sessions[session].seen)
        self._queue: deque[Pending] = deque()
        self._flying: list[Pending] = []
        self._given_up: dict[TxnNumber, Pending] = {}
        self._work = trio.Event()
        self._urgent = trio.Event()
        self._room = trio.Event()
        self._since_save = 0
        self._unsaved_bytes = 0
        # Called before a transaction is queued; what it raises refuses the transaction. `on_withdraw` must not raise.
        self.on_submit: Callable[[Transaction], None] = lambda transaction: None
        self.on_withdraw: Callable[[TxnNumber], None] = lambda number: None

    @property
    def pending(self) -> int:
        """How many transactions are not known to be in the journal."""
        return len(self._queue) + len(self._flying)

    def submit(self, changes: list[AnyChange]) -> Pending:
        """Apply a transaction and queue it.

        Raises what the rules say when it cannot commit; then nothing happened.
        """
        transaction = Transaction(TxnNumber(self._number + 1), changes)
        position = Position(self.tables.position + (2 if self._flying else 1))
        pending = Pending(transaction, [], position, sum(map(_weight, changes)))
        outcome = self._speculate(pending)
        if outcome is not None:
            raise outcome
        try:
            self.on_submit(transaction)
        except AgentfsError:
            self.tables.take_back(pending.undo)
            raise
        self._number = transaction.number
        self._queue.append(pending)
        self._work.set()
        return pending

    async def commit(self, changes: list[AnyChange]) -> None:
        """Submit a transaction and wait until it is in the journal."""
        pending = self.submit(changes)
        self._urgent.set()
        await pending.committed()

    async def settled(self, pending: Pending) -> None:
        """Have `pending` sent now, and wait until it is in the journal."""
        self._urgent.set()
        await pending.committed()

    async def sync(self) -> None:
        """Wait until everything submitted before this call is settled.

        Raises NoSpace, Unavailable or Fenced if the journal refused it; a single transaction that a foreign one overtook is no
        reason.
        """
        last = self._queue[-1] if self._queue else self._flying[-1] if self._flying else None
        if last is not None:
            self._urgent.set()
            await last.done.wait()
            if isinstance(last.outcome, NoSpace | Unavailable | Fenced):
                raise last.outcome

    async def throttle(self) -> None:
        """Return at once while little is pending; otherwise wait until some of it is in the journal."""
        while len(self._queue) >= PENDING_MAX:
            self._urgent.set()
            await self._room.wait()

    async def run(self) -> None:
        """Append what is pending, group by group, until cancelled."""
        while True:
            await self._wait_for_work()
            self._take_group()
            entry = Entry(self.session, self._runtime.now_ns(), [pending.transaction for pending in self._flying])
            try:
                position = await self._persist(partial(self._journal.append, encode_entry(entry)))
                await self._confirm(position)
            except AgentfsError as error:
                self._fail(error)
            if self._should_save():
                self.save()
            self._room.set()
            self._room = trio.Event()

    def withdraw(self, pending: Pending) -> None:
        """What was given up did not arrive, as `catch_up` has shown: what it said will be sent under another number."""
        self._given_up.pop(pending.transaction.number, None)
        self.on_withdraw(pending.transaction.number)

    def abandon(self) -> None:
        """Take back what is pending: nobody will append it. `run` must have ended."""
        self._take_back()
        self._flying = []
        self._queue.clear()

    def save(self) -> None:
        """Save State; what is pending is taken back around it and redone."""
        self._take_back()
        if self.tables.save():
            self._since_save = self._unsaved_bytes = 0
        else:
            _log.warning("state_not_saved", reason="the cache directory's disk is full", entries=self._since_save)
        self._redo()

    async def catch_up(self, until: Position | None = None) -> None:
        """Apply the journal's entries behind State's position, to `until` or to the tail, and rebase what is pending."""
        while until is None or self.tables.position < until:
            records = await self._journal.read(self.tables.position)
            fresh = [record for record in records if record.position > self.tables.position]
            if not fresh and until is None:
                return
            if not records:
                raise Corrupt(f"entry {until} was appended and cannot be read")
            entries = [(decode_entry(record.payload), record.position) for record in fresh]
            self._take_back()
            for entry, position in entries:
                self._apply(entry, position)
            self._redo()

    @property
    def transactions(self) -> list[Transaction]:
        """What is, or after a silence of the journal may be, on its way there, in order."""
        return [pending.transaction for pending in (*self._given_up.values(), *self._flying, *self._queue)]

    def _should_save(self) -> bool:
        if self.pending and self._unsaved_bytes < FORCED_SAVE_BYTES:
            return self._since_save >= FORCED_SAVE_ENTRIES
        return self._since_save >= SAVE_ENTRIES or self._unsaved_bytes >= SAVE_BYTES

    # ---- groups

    async def _wait_for_work(self) -> None:
        while not self._queue:
            self._work = trio.Event()
            with trio.move_on_after(IDLE_SAVE_SECONDS if self._since_save else math.inf):
                await self._work.wait()
            if not self._queue and self._since_save:
                self.save()
        with trio.move_on_after(LINGER_SECONDS):
            await self._urgent.wait()
        self._urgent = trio.Event()

    def _take_group(self) -> None:
        size = 0
        while self._queue and not _is_full(len(self._flying), size):
            pending = self._queue.popleft()
            size += pending.size
            self._flying.append(pending)
        if self._queue:
            # What did not fit goes with the next entry, and at once: somebody may be waiting for it.
            self._urgent.set()

    async def _persist(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask the journal, again after a failure that may pass: `apply` ignores what it has already seen of this session."""
        deadline = self._runtime.boottime() + RETRY_SECONDS
        pause = 0.05
        while True:
            try:
                return await ask()
            except Unavailable as error:
                if self._runtime.boottime() + pause > deadline:
                    raise
                _log.warning("journal_unavailable", reason=str(error), retry_seconds=pause)
            await self._runtime.sleep(pause * (0.5 + self._runtime.jitter()))
            pause = min(pause * 2, 2.0)

    async def _confirm(self, position: Position) -> None:
        """The group is in the journal at `position`: it stands as speculated, or everything is rebased."""
        self._since_save += 1
        self._unsaved_bytes += sum(pending.size for pending in self._flying)
        as_guessed = position == self.tables.position + 1 and all(p.position == position for p in self._flying)
        if not as_guessed:
            await self._persist(partial(self.catch_up, position))
            return
        group, self._flying = self._flying, []
        # What was given up before and arrives only now is ignored by `apply`: its number is lower.
        self._given_up.clear()
        mark = self.tables.mark()
        advance(self.tables, position)
        self.tables.cut(mark)
        for pending in group:
            pending.undo.clear()
            pending.done.set()
        if self._queue and self._queue[0].position != position + 1:
            self._take_back()
            self._redo()

    # ---- speculation

    def _speculate(self, pending: Pending) -> Outcome:
        mark = self.tables.mark()
        outcome = apply_transaction(self.tables, self.session, pending.transaction, pending.position)
        if outcome is not None:
            self.tables.revert(mark)
        pending.undo = self.tables.cut(mark)
        return outcome

    def _take_back(self) -> None:
        for pending in [*self._queue][::-1] + self._flying[::-1]:
            self.tables.take_back(pending.undo)
            pending.undo = []

    def _apply(self, entry: Entry, position: Position) -> None:
        """Apply an entry of the journal; if it carries what is pending here, that is settled."""
        seen = self.tables.sessions[self.session].seen
        outcomes = apply_entry(self.tables, entry, position)
        self.tables.settle()
        if entry.session != self.session:
            return
        known = {txn.number: outcome for txn, outcome in zip(entry.transactions, outcomes, strict=True) if txn.number > seen}
        self._flying = [pending for pending in self._flying if not self._settle(pending, known)]
        for number, outcome in known.items():
            if number in self._given_up:
                self._given_up.pop(number).landed = outcome is None

    def _settle(self, pending: Pending, known: dict[TxnNumber, Outcome]) -> bool:
        if pending.transaction.number not in known:
            return False
        pending.outcome = known[pending.transaction.number]
        if pending.outcome is not None:
            self.on_withdraw(pending.transaction.number)
        pending.done.set()
        return True

    def _redo(self) -> None:
        following = Position(self.tables.position + 1)
        for pending in self._flying:
            # Whatever comes of it now, what counts is the outcome where the journal puts it: an abort is no guess that holds.
            pending.position = following
            if self._speculate(pending) is not None:
                pending.position = NOWHERE
        following = Position(following + bool(self._flying))
        queue, self._queue = self._queue, deque()
        for pending in queue:
            pending.position = following
            outcome = self._speculate(pending)
            if outcome is None:
                self._queue.append(pending)
            else:
                self._refuse(pending, outcome)

    def _fail(self, error: AgentfsError) -> None:
        """The journal will not take the group: nothing that is pending is to be, since each builds on the one before."""
        _log.error("commit_failed", reason=str(error), transactions=self.pending)
        self._take_back()
        flying, queue = self._flying, [*self._queue]
        self._flying = []
        self._queue.clear()
        for pending in flying:
            if isinstance(error, Unavailable):
                # It may have arrived, or still arrive: it stays submitted until that is known.
                self._given_up[pending.transaction.number] = pending
                pending.outcome = error
                pending.done.set()
            else:
                self._refuse(pending, error)
        for pending in queue:
            self._refuse(pending, error)

    def _refuse(self, pending: Pending, outcome: AgentfsError) -> None:
        if isinstance(outcome, Fenced):
            _log.error("session_fenced", session=self.session)
        pending.outcome = outcome
        self.on_withdraw(pending.transaction.number)
        pending.done.set()


def groups(transactions: list[Transaction]) -> Iterator[list[Transaction]]:
    """Cut transactions into as many as an entry may carry, in order."""
    group: list[Transaction] = []
    size = 0
    for transaction in transactions:
        if _is_full(len(group), size):
            yield group
            group, size = [], 0
        group.append(transaction)
        size += sum(map(_weight, transaction.changes))
    if group:
        yield group


def _is_full(transactions: int, size: int) -> bool:
    """Whether an entry with so many transactions and bytes takes no more."""
    return transactions >= GROUP_TRANSACTIONS or size >= GROUP_BYTES


def _weight(change: AnyChange) -> int:
    """About how many bytes a change is in an entry."""
    match change:
        case Write(runs=runs):
            return sum(_CHANGE_BYTES + (run.length if isinstance(run, InlineRun) else 0) for run in runs)
        case SetXattr(value=value):
            return _CHANGE_BYTES + len(value)
        case _:
            return _CHANGE_BYTES
