"""Reading a journal into State: opening the file of an earlier mount, and bringing it up to the journal's tail."""

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

from agentfs.journal.contract import Journal
from agentfs.model.codec import decode_entry
from agentfs.model.errors import Corrupt, Invalid, NoSpace, Stale, Unavailable
from agentfs.model.ids import Position
from agentfs.state.apply import apply_entry
from agentfs.state.tables import Tables, open_tables
from agentfs.workspace.beginning import Beginning

_SAVE_EVERY = 2048
"""Entries between two saves while a long journal is replayed."""


async def replay(tables: Tables, journal: Journal, until: Position | None = None) -> None:
    """Apply the journal's entries behind the State's position, to `until` or to the tail. Nothing may be speculative."""
    while until is None or tables.position < until:
        records = await journal.read(tables.position)
        for record in records:
            if until is not None and record.position > until:
                return
            if record.position != tables.position + 1:
                raise Corrupt(f"the journal has a gap: entry {record.position} follows {tables.position}")
            apply_entry(tables, decode_entry(record.payload), record.position)
            tables.settle()
            if record.position % _SAVE_EVERY == 0:
                tables.save()
        if not records:
            return


Fetch = Callable[[Path], Awaitable[Tables | None]]
"""Makes the State file at a path of the newest checkpoint that can be had, and opens it; None, and no file, without one."""


async def _no_checkpoint(path: Path) -> Tables | None:
    return None


async def open_state(path: Path, journal: Journal, beginning: Beginning | None = None, fetch: Fetch = _no_checkpoint) -> Tables:
    """The State of the journal's tail, from the file at `path` as far as it goes; one of no use is replaced, by a checkpoint.

    `beginning` is what the journal's pointer says. Raises Invalid for a journal without a first entry, Corrupt for a damaged
    one, and Unavailable where entries that are needed were trimmed and no checkpoint can be had.
    """
    with ExitStack() as failing:
        try:
            tables = _kept(_open_file(path), failing)
            if not await _is_of(tables, journal, beginning):
                tables = _kept(await _begin_again(path, fetch, failing), failing)
            try:
                await replay(tables, journal)
            except Stale:
                tables = _kept(await _begin_again(path, fetch, failing), failing)
                await replay(tables, journal)
        except sqlite3.OperationalError as error:
            what = f"the State cannot be written there ({error}): make room, or name another --cache-dir"
            raise NoSpace(f"{path.parent}: {what}") from error
        except Stale as error:
            raise Unavailable(f"no checkpoint can be had from the replicas (the log says why), and {error}") from error
        if tables.found is None:
            raise Invalid("the journal is empty: it holds no workspace")
        tables.save()
        failing.pop_all()
    return tables


def _kept(tables: Tables, failing: ExitStack) -> Tables:
    failing.callback(tables.db.close)
    return tables


async def _begin_again(path: Path, fetch: Fetch, failing: ExitStack) -> Tables:
    """Tables that the journal's entries can follow, in place of those that they cannot follow."""
    failing.close()
    remove_state(path)
    return await fetch(path) or open_tables(path)


def remove_state(path: Path) -> None:
    """Forget a State file; the next mount replays the journal."""
    for suffix in ("", "-wal", "-shm", ".new"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _open_file(path: Path) -> Tables:
    try:
        return open_tables(path)
    except Invalid:
        remove_state(path)
        return open_tables(path)


async def _is_of(tables: Tables, journal: Journal, beginning: Beginning | None) -> bool:
    """Whether a State is what the journal's first entries give, as far as can be told without reading them all."""
    if beginning is not None:
        return tables.found is not None and tables.position <= await journal.tail() and _is_of_line(tables, beginning)
    if tables.found is None:
        return tables.position == 0
    if tables.recoveries or tables.position > await journal.tail():
        return False
    records = await journal.read(Position(0), limit_bytes=1)
    return bool(records) and tables.found in decode_entry(records[0].payload).transactions[0].changes


def _is_of_line(tables: Tables, beginning: Beginning) -> bool:
    """Whether a State met the recoveries that the journal went through: else it may hold entries that were lost in one."""
    assert tables.found is not None, "it was asked before"
    met = {each.recovered_at: each.incarnation for each in beginning.recoveries if each.recovered_at <= tables.position}
    return tables.found.workspace == beginning.workspace and tables.recoveries == met
