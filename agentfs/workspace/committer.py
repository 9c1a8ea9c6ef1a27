"""The committer: speculates transactions on State, appends them in groups, and rebases them over foreign entries.

A transaction is applied the moment it is submitted, as if it stood in the entry that is most likely to carry it. When the
journal's answer agrees, it is committed as it is. When it does not (another session's entry came between, a group was
cut elsewhere), everything pending is taken back, the journal's entries are applied, and what is still pending is redone under
the same rules, so that rows always say what a fresh replay would say.
"""

import math
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import structlog
import trio

from agentfs.journal.contract import Journal, Record
from agentfs.model.changes import AnyChange, Fence, Make
from agentfs.model.codec import decode_entry, encode_entry
from agentfs.model.entry import Entry, Transaction
from agentfs.model.errors import AgentfsError, Corrupt, Fenced, NoSpace, Unavailable
from agentfs.model.ids import Ino, Position, SessionId, TxnNumber
from agentfs.model.session import FENCED
from agentfs.runtime import Runtime
from agentfs.state.apply import Outcome, advance, apply_entry, apply_transaction
from agentfs.state.tables import Tables, Undo
from agentfs.state.touched import Touched, touched
from agentfs.workspace.mirror import Mirror
from agentfs.workspace.pending import Pending, is_full, weight

NOWHERE = Position(0)
"""The position of a pending transaction that would abort as things stand."""

LINGER_SECONDS = 0.05
"""How long a transaction that nobody waits for may stay pending, so that others join its entry."""

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

T = TypeVar("T")
_log = structlog.get_logger()


class Committer:
    """One session's pending transactions. `run` is its task; everything else is called from the same event loop.

    `renews`: somebody adopts another session when this one is lost; otherwise everything fails then.
    """

    def __init__(self, journal: Journal, tables: Tables, session: SessionId, runtime: Runtime, *, renews: bool = True) -> None:
        self.session = session
        self._renews = renews
        self.tables = tables
        self._journal = journal
        self._runtime = runtime
        self._number = TxnNumber(tables.sessions[session].seen)
        self._queue: deque[Pending] = deque()
        self._flying: list[Pending] = []
        self._given_up: dict[TxnNumber, Pending] = {}
        # The last entry that carries something of this mount's programs.
        self._promised = Position(0)
        self._verdicts: list[Pending] = []
        self._work = trio.Event()
        self._urgent = trio.Event()
        self._room = trio.Event()
        self._since_save = 0
        self._unsaved_bytes = 0
        self._registered = trio.Event()
        self._registered.set()
        # Is shown each entry that State has from now on, and waited for when a program is to hear that something is safe;
        # without `promises`, by `sync` alone.
        self.mirror: Mirror | None = None
        self.promises = True
        # Called before a transaction is queued; what it raises refuses the transaction. `on_withdraw` must not raise.
        self.on_submit: Callable[[Transaction], None] = lambda transaction: None
        self.on_withdraw: Callable[[TxnNumber], None] = lambda number: None
        # Called with each entry of another session once it is applied, its transactions' outcomes and how to take it back; and
        # with what it changed, also for what was shown here and did not commit.
        self.on_foreign: Callable[[Entry, list[Outcome], Undo], None] = lambda entry, outcomes, undo: None
        self.on_touched: Callable[[Touched], None] = lambda rows: None
        # Called with a transaction that was shown here and did not commit.
        self.on_refused: Callable[[Transaction], None] = lambda transaction: None
        # Called whenever State has moved to another committed position, or something pending has failed.
        self.on_progress: Callable[[], None] = lambda: None
        # Called with the files that the session had leases on when it ended under this mount: nothing pending commits before
        # `adopt`.
        self.on_lost: Callable[[set[Ino]], None] = lambda leased: None

    @property
    def pending(self) -> int:
        """How many transactions are not known to be in the journal."""
        return len(self._queue) + len(self._flying)

    @property
    def lost(self) -> bool:
        """Whether the session has ended under this mount, and no other is adopted yet."""
        return not self._registered.is_set()

    def submit(self, changes: list[AnyChange]) -> Pending:
        """Apply a transaction and queue it.

        Raises what the rules say when it cannot commit; then nothing happened. Raises Fenced while the session is lost.
        """
        if self.lost:
            raise Fenced("the session was declared dead")
        transaction = Transaction(TxnNumber(self._number + 1), changes)
        position = Position(self.tables.position + (2 if self._flying else 1))
        pending = Pending(transaction, [], position, sum(map(weight, changes)))
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
        """Submit a transaction and wait until it is in the journal and, if it is a program's and `promises`, mirrored."""
        await self.registered()
        pending = self.submit(changes)
        undo = [*pending.undo]
        await self.settled(pending)
        if self.promises and pending.promises:
            try:
                await self.mirrored(pending.position)
            except AgentfsError:
                # It happened all the same, and the kernel, which hears of a failure, would take it that nothing did.
                self.on_touched(touched(undo))
                raise

    async def decide(self, changes: list[AnyChange]) -> None:
        """Submit a transaction and wait until it is in the journal: that it is safe is for something later to say."""
        await self.registered()
        await self.settled(self.submit(changes))

    async def fence(self, session: SessionId, *, seen: TxnNumber | None = None) -> None:
        """Declare another session dead, unless it shows to be alive after `seen`. Raises Busy, Unavailable, Fenced.

        State shows its leases as ended at once, which is a guess like everything pending: as long as `judging`, nobody may rely
        on a lease.
        """
        await self.registered()
        verdict = self.submit([Fence(session, self._runtime.now_ns(), seen)])
        self._verdicts.append(verdict)
        await self.settled(verdict)

    @property
    def judging(self) -> bool:
        """Whether a verdict about another session is on its way to the journal. A hot path."""
        if self._verdicts:
            self._verdicts = [verdict for verdict in self._verdicts if not verdict.done.is_set()]
        return bool(self._verdicts)

    async def settled(self, pending: Pending) -> None:
        """Have `pending` sent now, and wait until it is in the journal."""
        self._urgent.set()
        await pending.committed()

    async def mirrored(self, position: Position) -> None:
        """Wait until enough replicas hold every entry up to `position`, which is in the journal. Raises as `Mirror.reach`."""
        if self.mirror is not None:
            await self.mirror.reach(position)

    def owes(self, ino: Ino) -> bool:
        """Whether the file's last change is this session's, and whoever wants it to be safe has to wait for the mirror."""
        inode = self.tables.inode(ino)
        return (
            self.mirror is not None
            and inode is not None
            and inode.writer == self.session
            and self.mirror.owes(min(inode.commit, self.tables.position))
        )

    async def registered(self) -> None:
        """Return at once, or when a session that was lost has a successor. A hot path. Raises Fenced where it has none."""
        if self.lost:
            if not self._renews:
                raise Fenced(f"session {self.session} was declared dead")
            await self._registered.wait()

    def hurry(self) -> None:
        """Have everything that is pending sent now."""
        self._urgent.set()

    async def sync(self) -> None:
        """Wait until everything submitted before this call is settled and, as far as it is a program's, mirrored.

        Raises NoSpace, Unavailable or Fenced if the journal refused it, and as `Mirror.reach` does if it is not mirrored; a
        single transaction that a foreign one overtook is no reason.
        """
        last = self._queue[-1] if self._queue else self._flying[-1] if self._flying else None
        if last is not None:
            self._urgent.set()
            await last.done.wait()
            if isinstance(last.outcome, NoSpace | Unavailable | Fenced):
                raise last.outcome
        # Also what was settled before: whoever waited for that may have waited in vain.
        await self.mirrored(self._promised)

    async def throttle(self) -> None:
        """Return at once while little is pending; otherwise wait until some of it is in the journal, or for a new session."""
        await self.registered()
        while len(self._queue) >= PENDING_MAX:
            self._urgent.set()
            await self._room.wait()

    async def run(self) -> None:
        """Append what is pending, group by group, until cancelled."""
        while True:
            await self._wait_for_work()
            await self.registered()
            self._take_group()
            group, session = list(self._flying), self.session
            if not group:
                continue
            mirrored = self.mirror.position if self.mirror is not None else Position(0)
            entry = Entry(session, self._runtime.now_ns(), [pending.transaction for pending in group], mirrored)
            payload = encode_entry(entry)
            try:
                position = await self._persist(partial(self._journal.append, payload))
                await self._confirm(Record(position, payload), entry, group)
            except AgentfsError as error:
                # What was sent for a session that is lost is another one's business by now.
                if session == self.session:
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
            entries = [decode_entry(record.payload) for record in fresh]
            self._take_back()
            for record, entry in zip(fresh, entries, strict=True):
                self._apply(entry, record.position)
                if self.mirror is not None:
                    self.mirror.take(record, entry)
            self._redo()
            self.on_progress()

    def adopt(self, session: SessionId, refused: Callable[[Transaction], bool]) -> None:
        """Go on as `session`, whose registration is applied: what is pending is sent under its numbers, in order.

        The rules for conflicts decide about each; what `refused` says ends with Fenced, and so does what builds on an inode
        that could not be made.
        """
        assert self.lost, "a session is adopted when the old one is lost"
        waiting = list(self._queue)
        self._queue.clear()
        # Numbers go on where they were: the staging log knows transactions by number alone.
        self.session = session
        self._registered.set()
        unmade: set[Ino] = set()
        for pending in waiting:
            old = pending.transaction
            # While it was taken back the kernel was shown State without it.
            self.on_touched(touched(pending.undone))
            if refused(old) or any(getattr(change, "ino", None) in unmade for change in old.changes):
                self._refuse(pending, Fenced("the session under which this was done was lost"))
            else:
                self.on_withdraw(old.number)
                self._resubmit(pending, Transaction(TxnNumber(self._number + 1), old.changes))
            if pending.outcome is not None:
                unmade.update(change.ino for change in old.changes if isinstance(change, Make))
        self._work.set()
        self._urgent.set()
        self.on_progress()

    def refuse_pending(self, error: AgentfsError) -> None:
        """Fail everything that is held for a new session: none can be had for too long."""
        waiting = list(self._queue)
        self._queue.clear()
        for pending in waiting:
            self._refuse(pending, error)

    def _resubmit(self, pending: Pending, transaction: Transaction) -> None:
        pending.transaction = transaction
        pending.position = Position(self.tables.position + 1)
        outcome = self._speculate(pending)
        if outcome is None:
            try:
                self.on_submit(transaction)
            except AgentfsError as error:
                self.tables.take_back(pending.undo)
                pending.undo, outcome = [], error
        if outcome is None:
            self._number = transaction.number
            self._queue.append(pending)
        else:
            self._refuse(pending, outcome)

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
        while self._queue and not is_full(len(self._flying), size):
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

    async def _confirm(self, record: Record, entry: Entry, group: list[Pending]) -> None:
        """The group is in the journal, as this entry: it stands as speculated, or everything is rebased."""
        position = record.position
        self._since_save += 1
        self._unsaved_bytes += sum(pending.size for pending in group)
        as_guessed = position == self.tables.position + 1 and all(pending.position == position for pending in group)
        # Meanwhile the group may have been settled, or taken over by another session.
        if not as_guessed or self._flying != group:
            await self._persist(partial(self.catch_up, position))
            return
        self._flying = []
        # What was given up before and arrives only now is ignored by `apply`: its number is lower.
        self._given_up.clear()
        mark = self.tables.mark()
        advance(self.tables, position)
        self.tables.cut(mark)
        if self.mirror is not None:
            self.mirror.take(record, entry)
        for pending in group:
            pending.undo.clear()
            pending.done.set()
            if pending.promises:
                self._promised = position
        if self._queue and self._queue[0].position != position + 1:
            self._take_back()
            self._redo()
        self.on_progress()

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
            pending.undo, pending.undone = [], pending.undo

    def _apply(self, entry: Entry, position: Position) -> None:
        """Apply an entry of the journal; if it carries what is pending here, that is settled."""
        seen = self.tables.sessions[self.session].seen
        leased = self._leased() if _fences(entry, self.session) else None
        mark = self.tables.mark()
        outcomes = apply_entry(self.tables, entry, position)
        undo = self.tables.cut(mark)
        self.tables.settle()
        rows = touched(undo)
        if entry.session != self.session:
            self.on_touched(rows)
            self.on_foreign(entry, outcomes, undo)
            if self.tables.sessions[self.session].standing == FENCED:
                self._lose(leased or set())
        elif not self._settle_own(entry, position, outcomes, seen):
            # Something was sent under our number that we did not send: a copy of this session runs elsewhere.
            self.on_touched(rows)
            self._lose(self._leased())

    def _settle_own(self, entry: Entry, position: Position, outcomes: list[Outcome], seen: TxnNumber) -> bool:
        """What of an entry under our number is what we sent, has its outcome now; whether that is all of it.

        What a fence stopped is not settled: it goes out under the next session.
        """
        sent = {transaction.number: transaction for transaction in self.transactions}
        fresh = [(txn, outcome) for txn, outcome in zip(entry.transactions, outcomes, strict=True) if txn.number > seen]
        ours = {txn.number: outcome for txn, outcome in fresh if sent.get(txn.number) == txn}
        known = {number: outcome for number, outcome in ours.items() if not (self.lost and isinstance(outcome, Fenced))}
        self._flying = [pending for pending in self._flying if not self._settle(pending, position, known)]
        # A copy may have sent what waits here still, from before it was made.
        self._queue = deque(pending for pending in self._queue if not self._settle(pending, position, known))
        for number, outcome in known.items():
            if number in self._given_up:
                late = self._given_up.pop(number)
                late.landed, late.position = outcome is None, position
                self._promised = position if late.promises else self._promised
        return len(ours) == len(fresh)

    def _leased(self) -> set[Ino]:
        grants = ((ino, grant) for (ino, _), leases in self.tables.leases.items() for grant in leases.grants)
        return {ino for ino, grant in grants if grant.session == self.session}

    def _lose(self, leased: set[Ino]) -> None:
        """The session is not ours any more: what of the pending did not land by now never will, under its number."""
        if self.lost:
            return
        _log.error("session_lost", session=self.session, pending=self.pending)
        self._registered = trio.Event()
        self._queue.extendleft(reversed(self._flying))
        self._flying = []
        self._given_up.clear()
        self.on_lost(leased)
        if not self._renews:
            self.refuse_pending(Fenced(f"session {self.session} was declared dead"))

    def _settle(self, pending: Pending, position: Position, known: dict[TxnNumber, Outcome]) -> bool:
        if pending.transaction.number not in known:
            return False
        pending.outcome, pending.position = known[pending.transaction.number], position
        self._promised = position if pending.promises else self._promised
        if pending.outcome is not None:
            self._withdraw_refused(pending)
        pending.done.set()
        return True

    def _redo(self) -> None:
        if self.lost:
            return
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
        self.on_progress()

    def _refuse(self, pending: Pending, outcome: AgentfsError) -> None:
        changes = [type(change).__name__ for change in pending.transaction.changes]
        _log.info("transaction_refused", reason=str(outcome), changes=changes, number=pending.transaction.number)
        pending.outcome = outcome
        self._withdraw_refused(pending)
        pending.done.set()

    def _withdraw_refused(self, pending: Pending) -> None:
        self.on_withdraw(pending.transaction.number)
        self.on_touched(touched(pending.undone))
        self.on_refused(pending.transaction)


def _fences(entry: Entry, session: SessionId) -> bool:
    changes = (change for transaction in entry.transactions for change in transaction.changes)
    return any(isinstance(change, Fence) and change.session == session for change in changes)
