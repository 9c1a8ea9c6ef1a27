"""The file of an SQLite journal: making it, opening it, and what its errors mean."""

import errno
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

from agentfs.journal.sqlite_tables import FORMAT
from agentfs.model.errors import AgentfsError, Corrupt, Denied, Exists, Invalid, NoSpace, NotFound, Unavailable

BUSY_SECONDS: Final = 10.0
"""How long an append waits for other processes' appends before it gives up."""

_WAL_MAX_BYTES: Final = 64 << 20
_PROBE_BYTES: Final = 256 << 10


def claim(path: Path) -> None:
    """Create `path` as an empty file. Raises Exists, NotFound without its directory, Denied, Unavailable."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))
    except FileExistsError as error:
        raise Exists(f"{path} already exists") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"there is no directory {path.parent} for the journal") from error
    except PermissionError as error:
        raise Denied(f"no permission to create {path}") from error
    except OSError as error:
        raise Unavailable(f"cannot create {path}: {error.strerror}") from error


def open_both(path: Path) -> tuple[sqlite3.Connection, sqlite3.Connection]:
    """A connection for writing and one for reading, to a file that is known to be a journal.

    Raises NotFound, Denied, Invalid, Corrupt, Unavailable.
    """
    if not path.exists():
        raise NotFound(f"there is no journal at {path}")
    if not path.is_file():
        raise Invalid(f"{path} is not a journal: it is not a file")
    if not os.access(path, os.R_OK | os.W_OK):
        raise Denied(f"no permission to read and write the journal {path}")
    writer = _open(path)
    try:
        return writer, _open(path)
    except BaseException:
        writer.close()
        raise


def _open(path: Path) -> sqlite3.Connection:
    with translated(path):
        db = connect(path)
        try:
            _check_format(db, path)
            configure(db, path)
        except BaseException:
            db.close()
            raise
        return db


def connect(path: Path) -> sqlite3.Connection:
    """A connection to an existing file, in which transactions are explicit."""
    uri = f"file:{quote(os.fsencode(path.absolute()))}?mode=rw"
    return sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)


def configure(db: sqlite3.Connection, path: Path) -> None:
    """Let reading go on beside writing, and a commit survive a power cut."""
    ((mode,),) = db.execute("PRAGMA journal_mode = WAL").fetchall()
    if mode != "wal":
        raise Invalid(f"the filesystem of {path} cannot hold a journal that processes share: use one on a local disk")
    db.execute("PRAGMA synchronous = FULL")
    db.execute(f"PRAGMA journal_size_limit = {_WAL_MAX_BYTES}")


def _check_format(db: sqlite3.Connection, path: Path) -> None:
    try:
        rows = db.execute("SELECT value FROM meta WHERE key = 'format'").fetchall()
    except sqlite3.DatabaseError as error:
        # Of another kind of file SQLite says NOTADB, of another kind of database ERROR: no such table or column.
        if _primary_code(error) in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
            raise Invalid(f"{path} is not an agentfs journal: {error}") from error
        raise
    if len(rows) != 1 or not isinstance(rows[0][0], int):
        raise Invalid(f"{path} is not an agentfs journal: it states no format")
    if rows[0][0] > FORMAT:
        raise Invalid(f"the journal {path} is in format {rows[0][0]}, this program reads up to {FORMAT}: upgrade agentfs")


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into the contract's."""
    try:
        yield
    except sqlite3.Error as error:
        translated = _translate(error, path)
        if translated is None:
            raise
        raise translated from error


def _translate(error: sqlite3.Error, path: Path) -> AgentfsError | None:
    """The error to raise instead; None for what only a bug in this program can cause."""
    match _primary_code(error):
        case sqlite3.SQLITE_FULL:
            return NoSpace(f"no space left for the journal {path}")
        case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_CANTOPEN if _disk_is_full(path):
            # SQLite says FULL when a write finds no space, but not when its shared memory or a quota does.
            return NoSpace(f"no space left for the journal {path}")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return Corrupt(f"the journal {path} is damaged: {error}")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return Unavailable(f"the journal {path} is busy: {error}")
    if isinstance(error, sqlite3.OperationalError):
        return Unavailable(f"the journal {path} does not answer: {error}")
    return None


def _primary_code(error: sqlite3.Error) -> int:
    # The low byte is the kind, the rest its details. Errors of Python's own module have no code.
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def _disk_is_full(path: Path) -> bool:
    """Whether a small file beside `path` finds no room: the only question that also covers quotas and reserved blocks."""
    try:
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            probe.write(bytes(_PROBE_BYTES))
    except OSError as error:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return False
