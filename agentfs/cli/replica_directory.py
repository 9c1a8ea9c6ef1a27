"""A replica's directory as `create` prepares it: marked with whose it is, and put back as it was if that fails."""

import os
from pathlib import Path
from typing import Final

import msgspec

from agentfs.cli.amounts import path_text
from agentfs.model.errors import Exists, Invalid, NotDirectory

MARKER_FILE: Final = "agentfs-replica.json"
MARKER_FORMAT: Final = 1

_NOT_CONTENT: Final = frozenset({"lost+found"})
"""What a new ext4 filesystem holds: it counts as empty."""


class ReplicaMarker(msgspec.Struct, frozen=True, kw_only=True):
    """Whose replica a directory is: the workspace's UUID and name, and the replica's number in it."""

    format: int
    workspace: str
    name: str
    replica: int


def read_marker(directory: Path) -> ReplicaMarker | None:
    """The marker in a directory, None without one. Raises Invalid if it is not readable or newer."""
    path = directory / MARKER_FILE
    try:
        marker = msgspec.json.decode(path.read_bytes(), type=ReplicaMarker)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise Invalid(f"{path_text(path)} is not readable: {error}") from error
    if marker.format > MARKER_FORMAT:
        raise Invalid(f"{path_text(path)} is in format {marker.format}, this program reads {MARKER_FORMAT}: upgrade agentfs")
    return marker


def check_marker(directory: Path, *, workspace: str, replica: int) -> None:
    """Raise Invalid if a directory that is there is not this replica of this workspace: another disk may be mounted there.

    A directory that is missing is a replica that is down: the replication mode says what works without it.
    """
    if not directory.is_dir():
        return
    found = read_marker(directory)
    if found is None:
        raise Invalid(f"{path_text(directory)} is not marked as replica {replica} of this workspace: is its disk mounted?")
    if (found.workspace, found.replica) != (workspace, replica):
        raise Invalid(
            f"{path_text(directory)} holds replica {found.replica} of workspace {found.name} ({found.workspace}),"
            f" not replica {replica} of this one: put the right directory back",
        )


class PreparedReplica:
    """One directory while a workspace is being created; `undo` restores it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made: list[Path] = []
        self._marked = False

    def prepare(self, marker: ReplicaMarker) -> None:
        """Make the directory if it is absent, and mark it.

        Raises Exists if it holds another workspace's replica or anything else, NotDirectory if it is no directory.
        """
        self._make()
        found = read_marker(self._directory)
        if found == marker:
            return
        if found is not None:
            raise Exists(
                f"{path_text(self._directory)} holds replica {found.replica} of workspace {found.name} ({found.workspace}):"
                " name another directory",
            )
        if any(name not in _NOT_CONTENT for name in os.listdir(self._directory)):
            raise Exists(f"{path_text(self._directory)} is not empty: a replica needs a directory of its own")
        self._marked = True
        write_durably(self._directory / MARKER_FILE, msgspec.json.encode(marker))

    def undo(self) -> None:
        """Remove what `prepare` added."""
        if self._marked:
            (self._directory / MARKER_FILE).unlink(missing_ok=True)
        for made in reversed(self._made):
            made.rmdir()

    def _make(self) -> None:
        missing = []
        directory = self._directory
        while not os.path.lexists(directory):
            missing.append(directory)
            directory = directory.parent
        if not directory.is_dir():
            raise NotDirectory(f"{path_text(directory)} is not a directory")
        for made in reversed(missing):
            made.mkdir(mode=0o700)
            self._made.append(made)


def write_durably(path: Path, body: bytes) -> None:
    """A new file that survives a power cut once this returns."""
    with path.open("xb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory survive a power cut."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
