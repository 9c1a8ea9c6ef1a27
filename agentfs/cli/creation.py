"""How a workspace comes to be: built beside its place, renamed into it at the end, so that it is never half there."""

import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path

from agentfs.cli.amounts import path_text
from agentfs.cli.layout import JOURNAL_FILE, WORKSPACE_FILE, WorkspaceDirectory, check_name
from agentfs.cli.replica_marker import MARKER_FORMAT, PreparedReplica, ReplicaMarker
from agentfs.cli.replica_place import Place, check_apart
from agentfs.cli.workspace_file import FORMAT, Durability, ReplicaPlace, Replication, WorkspaceFile
from agentfs.model.changes import Found, ReplicaSpec
from agentfs.model.codec import FORMAT as ENTRY_FORMAT
from agentfs.model.codec import encode_entry
from agentfs.model.entry import Entry, Transaction
from agentfs.model.errors import Busy, Exists, Invalid
from agentfs.model.ids import NO_SESSION, TxnNumber

StartJournal = Callable[[Path, bytes], Awaitable[None]]
"""Makes the journal at a path and appends its first entry."""

OpenPlace = Callable[[str, Path], Place]
"""Opens the place at a URL; the path is the workspace's directory."""

DEFAULT_REPLICAS = ("file:replicas/1", "file:replicas/2")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewWorkspace:
    """What is to be made. `replicas` are URLs; without any, two directories beside the journal. `time_ns` is since the epoch.

    `write_quorum`: how many replicas `quorum` replication waits for; 0 is the majority.
    """

    name: str
    root: Path
    workspace: str
    replicas: tuple[str, ...]
    replication: Replication
    write_quorum: int = 0
    durability: Durability
    time_ns: int
    uid: int
    gid: int

    @property
    def directory(self) -> WorkspaceDirectory:
        """Its place."""
        return WorkspaceDirectory(self.root / self.name)

    def places(self) -> list[ReplicaPlace]:
        """The replicas by number and URL."""
        return [ReplicaPlace(number, url) for number, url in enumerate(self.replicas or DEFAULT_REPLICAS, start=1)]

    def file(self) -> WorkspaceFile:
        """What workspace.toml will say."""
        return WorkspaceFile(
            format=FORMAT,
            workspace=self.workspace,
            name=self.name,
            journal=JOURNAL_FILE,
            durability=self.durability,
            replicas=self.places(),
        )

    def marker(self, place: ReplicaPlace) -> ReplicaMarker:
        """What says in a replica's place whose it is."""
        return ReplicaMarker(format=MARKER_FORMAT, workspace=self.workspace, name=self.name, replica=place.id)

    def first_entry(self) -> Entry:
        """What every mount's State begins with."""
        found = Found(
            workspace=self.workspace,
            name=self.name,
            format=ENTRY_FORMAT,
            replication=self.replication,
            durability=self.durability,
            replicas=[ReplicaSpec(place.replica, place.url) for place in self.places()],
            uid=self.uid,
            gid=self.gid,
            time_ns=self.time_ns,
            write_quorum=self.write_quorum,
        )
        return Entry(NO_SESSION, self.time_ns, [Transaction(TxnNumber(1), [found])])


async def create_workspace(new: NewWorkspace, *, start_journal: StartJournal, open_place: OpenPlace) -> WorkspaceDirectory:
    """Make the workspace. Whatever goes wrong, what was there before is there again.

    Raises Exists for a taken name or a replica's place in use, Invalid for a bad name, a write quorum that cannot be reached or
    overlapping replicas, Denied and Unavailable for stores.
    """
    check_name(new.name)
    _check_quorum(new)
    target = new.directory
    check_apart([place.url for place in new.places()], target.path)
    if os.path.lexists(target.path):
        raise Exists(f"{path_text(target.path)} exists: choose another name, or mount it with `agentfs mount {new.name} DIR`")
    with ExitStack() as undo:
        _make_root(new.root, undo)
        draft = Path(tempfile.mkdtemp(prefix=f".{new.name}.", suffix=".creating", dir=new.root))
        undo.callback(shutil.rmtree, draft, ignore_errors=True)
        async with AsyncExitStack() as opened, AsyncExitStack() as unmark:
            for place in new.places():
                opened_place = open_place(place.url, draft)
                opened.push_async_callback(opened_place.store.aclose)
                replica = PreparedReplica(opened_place)
                unmark.push_async_callback(replica.undo)
                await replica.prepare(new.marker(place))
            await start_journal(draft / JOURNAL_FILE, encode_entry(new.first_entry()))
            _write_durably(draft / WORKSPACE_FILE, new.file().as_toml().encode())
            _put_in_place(draft, target.path)
            unmark.pop_all()
        undo.pop_all()
    _sync_directory(new.root)
    return target


def _check_quorum(new: NewWorkspace) -> None:
    if not new.write_quorum:
        return
    if new.replication != "quorum":
        raise Invalid(f"a write quorum means something with quorum replication only, not with {new.replication}")
    count = len(new.places())
    if not 1 <= new.write_quorum <= count:
        raise Invalid(f"a write quorum of {new.write_quorum}: with {count} replicas it can be 1 to {count}")


def _make_root(root: Path, undo: ExitStack) -> None:
    missing = []
    while not root.exists():
        missing.append(root)
        root = root.parent
    for directory in reversed(missing):
        directory.mkdir(mode=0o700)
        undo.callback(directory.rmdir)


def _put_in_place(draft: Path, target: Path) -> None:
    try:
        draft.rename(target)
    except OSError as error:
        if os.path.lexists(target):
            raise Busy(f"{path_text(target)} was created by somebody else at the same time") from error
        raise


def _write_durably(path: Path, body: bytes) -> None:
    """A new file that survives a power cut once this returns."""
    with path.open("xb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    """Make the names in a directory survive a power cut."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
