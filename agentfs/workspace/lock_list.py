"""Who holds and who waits for locks: the rows of `agentfs locks`, and the value of `user.agentfs.lock`."""

from collections.abc import Callable, Iterator
from typing import Literal

from agentfs.model.ids import Ino, SessionId
from agentfs.model.lease import EXCLUSIVE, FLOCK, OFFSET_MAX, Leases, Run
from agentfs.runtime import Runtime
from agentfs.state.tables import Tables
from agentfs.workspace.line import Key
from agentfs.workspace.lock_table import Lock
from agentfs.workspace.locks import Locks
from agentfs.workspace.paths import path_of
from agentfs.workspace.status import LockRow

State = Literal["held", "idle", "leased", "waiting"]


class LockList:
    """Looks at State's leases and at this mount's locks together."""

    def __init__(
        self,
        tables: Tables,
        locks: Locks,
        session: Callable[[], SessionId],
        ttl_of: Callable[[SessionId], float | None],
        runtime: Runtime,
    ) -> None:
        self._tables = tables
        self._locks = locks
        self._session = session
        self._ttl_of = ttl_of
        self._runtime = runtime

    def rows(self) -> list[LockRow]:
        """One for each run of each file that is locked, leased or waited for. Slow: it finds each file's path."""
        held = dict(self._locks.held())
        found = [row for key, leases in self._tables.leases.items() for row in self._rows(key, leases, held.get(key, ()))]
        return sorted(found, key=lambda row: (row.path, row.space, row.state == "waiting", row.first, row.age_seconds))

    def holders(self, ino: Ino) -> str:
        """Who holds the file's locks, as one line; empty when nobody does. An idle lease of this mount is no lock."""
        held = dict(self._locks.held())
        rows = (
            row
            for (each, space), leases in self._tables.leases.items()
            if each == ino
            for row in self._rows((each, space), leases, held.get((each, space), ()))
        )
        return ", ".join(_line(row) for row in rows if row.state in ("held", "leased"))

    def _rows(self, key: Key, leases: Leases, held: tuple[Lock, ...]) -> Iterator[LockRow]:
        own = self._session()
        for grant in leases.grants:
            inside = [lock for lock in held if grant.session == own and _overlap(lock.run, grant.run)]
            for lock in inside:
                yield self._row(key, lock.run, "held", own, lock.pid, grant.since_ns)
            if not inside:
                yield self._row(
                    key, grant.run, "idle" if grant.session == own else "leased", grant.session, None, grant.since_ns
                )
        for request in leases.queue:
            yield self._row(key, request.run, "waiting", request.session, None, request.since_ns)

    def _row(self, key: Key, run: Run, state: State, session: SessionId, pid: int | None, since_ns: int) -> LockRow:
        known = self._tables.sessions.get(session)
        return LockRow(
            path=path_of(self._tables, key[0]),
            ino=key[0],
            space="flock" if key[1] == FLOCK else "fcntl",
            mode="exclusive" if run.mode == EXCLUSIVE else "shared",
            first=run.first,
            last=None if run.last == OFFSET_MAX else run.last,
            state=state,
            session=session,
            holder=known.writer if known else f"session {session}",
            pid=pid,
            age_seconds=round(max(0, self._runtime.now_ns() - since_ns) / 1e9, 3),
            ttl_seconds=self._ttl_of(session),
        )


def _overlap(a: Run, b: Run) -> bool:
    return a.first <= b.last and b.first <= a.last


def _line(row: LockRow) -> str:
    where = "" if row.first == 0 and row.last is None else f" {row.first}-{'' if row.last is None else row.last}"
    process = f" pid {row.pid}" if row.pid else ""
    return f"{row.space} {row.mode}{where} {row.holder}{process}"
