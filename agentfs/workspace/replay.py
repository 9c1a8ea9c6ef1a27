"""Reading a journal into State: opening the file of an earlier mount, and bringing it up to the journal's tail."""

import sqlite3
from pathlib import Path

from agentfs.journal.contract import Journal
from agentfs.model.codec import decode_entry
from agentfs.model.errors import Corrupt, Invalid, NoSpace, Stale
from agentfs.model.ids import Position
from agentfs.state.apply import apply_entry
from agentfs.state.tables import Tables, open_tables

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


async def open_state(path: Path, journal: Journal) -> Tables:
    """The State of the journal's tail, from the file at `path` as far as it goes; a file of no use is replaced.

    Raises Invalid for a journal without a first entry, and Corrupt for a damaged one.
    """
    tables = _open_file(path)
    try:
        if tables.position > await journal.tail() or not await _same_workspace(tables, journal):
            raise Stale("the State file belongs to another journal")
        await replay(tables, journal)
    except Stale:
        tables.close()
        remove_state(path)
        tables = open_tables(path)
        await replay(tables, journal)
    except sqlite3.OperationalError as error:
        tables.db.close()
        raise NoSpace(
            f"{path.parent}: the State cannot be written there ({error}): make room, or name another --cache-dir"
        ) from error
    except BaseException:
        tables.close()
        raise
    if tables.found is None:
        tables.close()
        raise Invalid("the journal is empty: it holds no workspace")
    tables.save()
    return tables


def remove_state(path: Path) -> None:
    """Forget a State file; the next mount replays the journal."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _open_file(path: Path) -> Tables:
    try:
        return open_tables(path)
    except Invalid:
        remove_state(path)
        return open_tables(path)


async def _same_workspace(tables: Tables, journal: Journal) -> bool:
    if tables.found is None:
        return tables.position == 0
    records = await journal.read(Position(0), limit_bytes=1)
    return bool(records) and tables.found in decode_entry(records[0].payload).transactions[0].changes
