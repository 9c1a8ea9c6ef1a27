"""Saved States: the State files that ended mounts left in a cache, each measured from a copy so that it stays as it is."""

import fcntl
import os
import shutil
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from agentfs.model.errors import Invalid
from agentfs.model.ids import Position
from agentfs.state.checksum import checksum
from agentfs.state.schema import SCHEMA_VERSION
from agentfs.state.tables import open_tables
from agentfs.workspace.findings import Finding
from agentfs.workspace.paths import printable


@dataclass(frozen=True, slots=True)
class SavedState:
    """A State file that no mount uses, and the checksum of what it holds."""

    path: Path
    position: Position
    checksum: str


def read_saved_states(cache: Path) -> tuple[list[SavedState], list[Finding]]:
    """Every State file of the free seats in a workspace's cache directory, and what is wrong with those that are unreadable.

    Slow: it reads all of each. One copy at a time lies in the directory for temporary files.
    """
    saved, findings = [], []
    for path in sorted(cache.glob("*/state.sqlite")):
        try:
            with tempfile.TemporaryDirectory(prefix="agentfs-fsck-") as directory:
                copy = Path(directory) / path.name
                if _copy_if_free(path, copy):
                    saved.append(_measure(path, copy))
        except _OtherVersion as error:
            message = f"State file {printable(str(path))} is of version {error}: the next mount replaces it"
            findings.append(Finding("state", message, "note"))
        except (Invalid, sqlite3.DatabaseError) as error:
            reason = str(error).removeprefix(f"{copy}: ")
            findings.append(Finding("state", f"State file {printable(str(path))} is damaged ({reason}): {_mend(path)}"))
        except OSError as error:
            message = f"State file {printable(str(path))} could not be compared: {error.strerror}"
            findings.append(Finding("state", message, "note"))
    return saved, findings


def differs(saved: SavedState, replayed: str) -> Finding:
    """The fault that a State file is not what a replay of the journal to its position gives."""
    what = f"at position {saved.position} its checksum is {saved.checksum[:16]}, a replay of the journal gives {replayed[:16]}"
    return Finding("state", f"State file {printable(str(saved.path))}: {what}: {_mend(saved.path)}")


def is_ahead(saved: SavedState, tail: Position) -> Finding:
    """The fault that a State file holds what the journal does not."""
    what = f"is at position {saved.position}, the journal ends at {tail}: entries were lost, or it is another journal's"
    return Finding("state", f"State file {printable(str(saved.path))} {what}")


class _OtherVersion(Exception):
    """The file is a State of another version of the schema."""


def _mend(path: Path) -> str:
    return f"`rm {printable(str(path))}*` while nothing is mounted; the next mount replays the journal"


def _measure(path: Path, copy: Path) -> SavedState:
    with closing(sqlite3.connect(copy)) as db:
        version = db.execute("PRAGMA user_version").fetchone()[0]
    if version not in (0, SCHEMA_VERSION):
        raise _OtherVersion(version)
    tables = open_tables(copy)
    try:
        return SavedState(path, tables.position, checksum(tables))
    finally:
        tables.close()


def _copy_if_free(path: Path, copy: Path) -> bool:
    """Copy a State file with its WAL; False if a mount has it or took it meanwhile."""
    before = _stamps(path)
    if _in_use(path.with_name("lock")):
        return False
    for suffix in ("", "-wal"):
        if (source := path.with_name(path.name + suffix)).exists():
            shutil.copyfile(source, copy.with_name(path.name + suffix))
    return not _in_use(path.with_name("lock")) and _stamps(path) == before


def _in_use(lock: Path) -> bool:
    """Whether a mount holds the seat. The lock is not kept: a mount that starts must find the seat, to recover it."""
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _stamps(path: Path) -> list[tuple[int, int, int] | None]:
    stamps: list[tuple[int, int, int] | None] = []
    for suffix in ("", "-wal"):
        try:
            status = path.with_name(path.name + suffix).stat()
        except FileNotFoundError:
            stamps.append(None)
        else:
            stamps.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return stamps
