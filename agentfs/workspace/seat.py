"""A seat: the directory in the cache that one mount has for itself, locked as long as it runs.

`CACHE/WORKSPACE-ID/N` for N = 0, 1, …: `lock`, `owner.json`, the State file and `staging/`. A mount takes the first free seat;
what a killed mount left in it is recovered first.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import structlog

from agentfs.model.errors import AgentfsError, Busy, Denied, NoSpace, Unavailable
from agentfs.model.ids import SessionId

SEATS_MAX = 64
"""Mounts of one workspace with one cache directory."""

_OWNER = "owner.json"

_log = structlog.get_logger()


class Owner(msgspec.Struct, frozen=True):
    """The session that staged what lies in a seat, the machine's boot it did so in, and the journal's line it was a session of.

    After a recovery of the workspace the number of a session that was lost in it may be another one's.
    """

    session: SessionId
    boot: str
    incarnation: str = ""


class Seat:
    """A locked seat."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state_path = path / "state.sqlite"
        self.staging_path = path / "staging"
        self._owner_path = path / _OWNER
        # The journal's line that State is of, once that is open.
        self.incarnation = ""

    def owner(self) -> Owner | None:
        """Who staged what is here, None in a seat that was left in good order."""
        try:
            return msgspec.json.decode(self._owner_path.read_bytes(), type=Owner)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            _log.warning("owner_file_damaged", path=str(self._owner_path), reason=str(error))
            return None

    def same_boot(self) -> bool:
        """Whether the machine has run since this seat was last used; from now on it counts as used in this run."""
        path = self.path / "boot"
        before = path.read_text() if path.exists() else ""
        if before != boot_id():
            path.write_text(boot_id())
        return before == boot_id()

    def take(self, session: SessionId) -> None:
        """Say that what is staged here from now on belongs to `session`. Raises NoSpace, Unavailable."""
        temporary = self._owner_path.with_suffix(".tmp")
        try:
            temporary.write_bytes(msgspec.json.encode(Owner(session, boot_id(), self.incarnation)))
            temporary.replace(self._owner_path)
        except OSError as error:
            raise _disk_error(self.path, error) from error

    def clear(self) -> None:
        """Remove what was staged: all of it is committed. The State file stays."""
        self._owner_path.unlink(missing_ok=True)
        if self.staging_path.exists():
            for path in self.staging_path.iterdir():
                path.unlink()

    def set_aside(self, session: SessionId) -> Path:
        """Move what is staged to a recovery folder, and return it."""
        folder = self.recovery_folder(session)
        self.staging_path.rename(folder)
        self._owner_path.unlink(missing_ok=True)
        return folder

    def recovery_folder(self, session: SessionId) -> Path:
        """The name of a recovery folder that does not exist yet. Such a folder is never removed."""
        number = 0
        while (folder := self.path.parent / f"recovered-{session}-{number}").exists():
            number += 1
        return folder


def boot_id() -> str:
    """Differs after every start of the machine: what was staged before a power cut need not be whole."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def recovery_folders(cache: Path) -> list[str]:
    """What could not be recovered by itself, of every seat of a workspace's cache."""
    return sorted(str(path) for path in cache.glob("recovered-*"))


@contextmanager
def open_seat(cache: Path, *, recovers: bool = True) -> Iterator[Seat]:
    """Lock the first free seat in a workspace's cache directory; without `recovers`, one in which nothing was left.

    Raises Busy, Denied, NoSpace.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        path, lock = _lock_one(cache, recovers=recovers)
        (path / "staging").mkdir(exist_ok=True, mode=0o700)
    except PermissionError as error:
        raise Denied(f"{cache}: {error.strerror}; name another with --cache-dir") from error
    except OSError as error:
        raise _disk_error(cache, error) from error
    try:
        yield Seat(path)
    finally:
        os.close(lock)


def _disk_error(path: Path, error: OSError) -> AgentfsError:
    kind = NoSpace if error.errno in (errno.ENOSPC, errno.EDQUOT) else Unavailable
    return kind(f"{path}: {error.strerror}; name another with --cache-dir")


def _lock_one(cache: Path, *, recovers: bool) -> tuple[Path, int]:
    seats = [cache / str(number) for number in range(SEATS_MAX)]
    left = [path for path in seats if (path / _OWNER).exists()]
    # First those that a killed mount left something in: nobody else would ever see to it.
    for path in [*left, *seats] if recovers else [path for path in seats if path not in left]:
        path.mkdir(exist_ok=True, mode=0o700)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            return path, lock
    raise Busy(f"{cache}: {SEATS_MAX} mounts use it already; name another with --cache-dir")
