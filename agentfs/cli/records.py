"""Mount records: what a daemon leaves in the runtime directory so that other commands find it."""

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agentfs.cli.layout import mountpoint_key, private_runtime_directories, runtime_directory
from agentfs.cli.mountinfo import Mounted
from agentfs.model.errors import Invalid

_SOCKET_PATH_MAX = 107


class MountRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One mount, for people to read: paths are as `path_text` shows them. `log` is empty when the log goes to stderr.

    `source` is what the workspace is found by: its directory, or its journal's URL. `journal` names the journal, the same for
    every mount of it (`JournalPlace.text`). `control` is the socket that the daemon listens on.
    """

    workspace: str
    # Mounts whose daemon is of an earlier version have a directory and call it so.
    source: str = msgspec.field(name="directory")
    journal: str = ""
    mountpoint: str
    pid: int
    label: str
    log: str
    control: str
    since_ns: int


def control_socket(mountpoint: Path) -> Path:
    """Where the daemon of `mountpoint` listens. Raises Invalid if the kernel could not take so long a path (unix(7))."""
    path = runtime_directory() / f"{mountpoint_key(mountpoint)}.sock"
    if len(os.fsencode(path)) > _SOCKET_PATH_MAX:
        raise Invalid(f"{path} is too long for a socket ({_SOCKET_PATH_MAX} bytes): set XDG_RUNTIME_DIR to a shorter path")
    return path


def write_record(record: MountRecord, mountpoint: Path) -> None:
    """Publish the record of `mountpoint`: readers see all of it or none."""
    path = _path(runtime_directory(), mountpoint)
    draft = path.with_suffix(f".{record.pid}.new")
    draft.write_bytes(msgspec.json.encode(record))
    draft.replace(path)


def remove_record(mountpoint: Path, *, owner: int) -> None:
    """Forget the mount's record and its socket, wherever the user `owner` may have put them; none is no error."""
    for directory in private_runtime_directories(owner):
        path = _path(directory, mountpoint)
        path.unlink(missing_ok=True)
        path.with_suffix(".sock").unlink(missing_ok=True)


def find_record(mounted: Mounted) -> MountRecord | None:
    """The record of a mount, if we may read it: its owner and root may."""
    for path in _candidates(mounted):
        try:
            return msgspec.json.decode(path.read_bytes(), type=MountRecord)
        except (OSError, msgspec.DecodeError):
            continue
    return None


def _candidates(mounted: Mounted) -> Iterator[Path]:
    owner = os.geteuid() if mounted.owner is None else mounted.owner
    for directory in private_runtime_directories(owner):
        yield _path(directory, mounted.mountpoint)


def _path(directory: Path, mountpoint: Path) -> Path:
    return directory / f"{mountpoint_key(mountpoint)}.json"
