"""The witness: sees each entry the moment it enters the journal, and what it did to leases, to counters and to the arena."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from agentfs.model.changes import Acquire, AddSegment, AnyChange, Collect, Fence, InlineRun, Write
from agentfs.model.entry import Entry
from agentfs.model.errors import Collected
from agentfs.model.ids import Ino, Position, SessionId, TxnNumber
from agentfs.model.lease import Leases, Request, conflicts, covers, runs_of
from agentfs.model.session import OPEN
from agentfs.state.apply import Outcome, apply_entry
from agentfs.state.tables import open_tables

NUMBER_BYTES = 16
"""A number in a file of counters."""

Key = tuple[Ino, int]


@dataclass(frozen=True, slots=True)
class Done:
    """A change of a transaction that `apply` had not seen before, and what came of the transaction."""

    position: Position
    session: SessionId
    change: AnyChange
    outcome: Outcome


class Witness:
    """A State that is always at the journal's tail, and what is wrong with how it came there.

    `arena_names` says, from position 1 on, which names the arena had. `overtaken` counts, for a waiting request, how often what
    it waits for was granted to somebody who came later. `late` are the transactions that name what was collected before.
    """

    def __init__(self) -> None:
        self.tables = open_tables(None)
        self.arena = Ino(0)
        self.counters: set[Ino] = set()
        self.arena_names: list[frozenset[bytes]] = []
        self.done: list[Done] = []
        self.wrong: list[str] = []
        self.late: set[tuple[SessionId, TxnNumber]] = set()
        self.collected = Position(0)
        self.overtaken: Counter[tuple[Key, SessionId, int]] = Counter()
        self.on_verdict: Callable[[SessionId], None] = lambda session: None
        self.read: Callable[[Ino], bytes] = lambda ino: b""
        self._leases: dict[Key, Leases] = {}
        self._numbers: dict[Ino, list[int]] = {}

    def take(self, entry: Entry) -> None:
        """Apply an entry that stands behind all before."""
        position = Position(self.tables.position + 1)
        sessions = self.tables.sessions
        seen = sessions[entry.session].seen if entry.session else 0
        open_before = {number for number, each in sessions.items() if each.standing == OPEN}
        outcomes = apply_entry(self.tables, entry, position)
        self.tables.settle()
        done = [
            Done(position, entry.session, change, outcome)
            for transaction, outcome in zip(entry.transactions, outcomes, strict=True)
            for change in transaction.changes
            if not entry.session or transaction.number > seen
        ]
        self.done += done
        self._look_at_collected(entry, outcomes)
        self._look_at_verdicts(done, open_before)
        self._look_at_leases(done)
        self._look_at_counters(done)
        self.arena_names.append(frozenset(each.name for each in self.tables.listing(self.arena, 0, 1000)))

    def _look_at_collected(self, entry: Entry, outcomes: list[Outcome]) -> None:
        """Only what was put before something was collected is refused for that."""
        for transaction, outcome in zip(entry.transactions, outcomes, strict=True):
            if isinstance(outcome, Collected):
                self.late.add((entry.session, transaction.number))
                since = [change.since for change in transaction.changes if isinstance(change, AddSegment)]
                if not since or min(since) >= self.collected:
                    self.wrong.append(f"entry {self.tables.position}: refused as collected, put after {since}")
            elif any(isinstance(change, Collect) for change in transaction.changes):
                self.collected = self.tables.position

    def is_open(self, session: SessionId) -> bool:
        """Whether a session has not ended, as the journal has it."""
        return self.tables.sessions[session].standing == OPEN

    def has_written(self, ino: Ino, offset: int, data: bytes) -> bool:
        """Whether a write with these bytes at this place took effect."""
        writes = [each.change for each in self.done if each.outcome is None]
        runs = [run for change in writes if isinstance(change, Write) and change.ino == ino for run in change.runs]
        return any(has(run, offset, data) for run in runs if isinstance(run, InlineRun))

    def _look_at_verdicts(self, done: list[Done], open_before: set[SessionId]) -> None:
        for each in done:
            change = each.change
            if isinstance(change, Fence) and change.seen is not None and each.outcome is None and change.session in open_before:
                self.on_verdict(change.session)

    def _look_at_leases(self, done: list[Done]) -> None:
        for key in set(self._leases) | set(self.tables.leases):
            old, new = self._leases.get(key, Leases()), self.tables.leases.get(key, Leases())
            if new != old:
                self._check_grants(key, new)
                self._count_overtaken(key, old, new, done)
        self._leases = dict(self.tables.leases)

    def _check_grants(self, key: Key, leases: Leases) -> None:
        where = f"entry {self.tables.position}, file {key[0]}, space {key[1]}"
        for at, one in enumerate(leases.grants):
            if not self.is_open(one.session):
                self.wrong.append(f"{where}: session {one.session} has ended and holds {one.run}")
            for two in leases.grants[at + 1 :]:
                if one.session != two.session and conflicts(one.run, two.run):
                    self.wrong.append(f"{where}: {one} and {two} are both granted")
        self.wrong += [
            f"{where}: session {each.session} has ended and waits" for each in leases.queue if not self.is_open(each.session)
        ]

    def _count_overtaken(self, key: Key, old: Leases, new: Leases, done: list[Done]) -> None:
        hasty = {each.session for each in done if isinstance(each.change, Acquire) and not each.change.wait}
        hasty |= {request.session for request in old.queue if not request.wait}
        for at, request in enumerate(old.queue):
            if not request.wait or request not in new.queue:
                continue
            entitled = hasty | {earlier.session for earlier in old.queue[:at]} | {request.session}
            if any(_is_news(old, new, request, session) for session in {each.session for each in new.grants} - entitled):
                self.overtaken[key, request.session, request.number] += 1

    def _look_at_counters(self, done: list[Done]) -> None:
        """Who adds one under a lock never writes a number that was there before."""
        written = {each.change.ino for each in done if isinstance(each.change, Write) and each.outcome is None}
        for ino in sorted(written & self.counters):
            before, now = self._numbers.get(ino, []), numbers_of(self.read(ino))
            before += [0] * (len(now) - len(before))
            if sum(now) <= sum(before) or any(a < b for a, b in zip(now, before, strict=True)):
                self.wrong.append(f"entry {self.tables.position}: the counters of file {ino} were {before} and are {now}")
            self._numbers[ino] = now


def numbers_of(body: bytes) -> list[int]:
    """The numbers in a file of counters, 0 where nothing was written."""
    places = [body[start : start + NUMBER_BYTES] for start in range(0, len(body), NUMBER_BYTES)]
    return [int(place.strip(b"\0\n") or b"0") for place in places]


def _is_news(old: Leases, new: Leases, request: Request, session: SessionId) -> bool:
    """Whether a session was granted something that is in a waiting request's way."""
    before = runs_of(old, session)
    return any(conflicts(run, request.run) and not covers(before, run) for run in runs_of(new, session))


def has(run: InlineRun, offset: int, data: bytes) -> bool:
    """Whether a run has these bytes at this place."""
    start = offset - run.offset
    return start >= 0 and run.data[start : start + len(data)] == data
