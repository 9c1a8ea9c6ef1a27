"""How a workspace comes to be: built beside its place, renamed into it at the end, so that it is never half there."""

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from agentfs.cli.amounts import path_text
from agentfs.cli.layout import JOURNAL_FILE, WORKSPACE_FILE, WorkspaceDirectory, check_name
from agentfs.cli.replica_directory import MARKER_FORMAT, PreparedReplica, ReplicaMarker, sync_directory, write_durably
from agentfs.cli.workspace_file import FORMAT, Durability, ReplicaPlace, Replication, WorkspaceFile
from agentfs.model.changes import Found, ReplicaSpec
from agentfs.model.codec import FORMAT as ENTRY_FORMAT
from agentfs.model.codec import encode_entry
from agentfs.model.entry import Entry, Transaction
from agentfs.model.errors import Busy, Exists, Invalid
from agentfs.model.ids import NO_SESSION, TxnNumber

StartJournal = Callable[[Path, bytes], None]
"""Makes the journal at a path and appends its first entry."""

DEFAULT_REPLICAS = ("replicas/1", "replicas/2")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewWorkspace:
    """What is to be made. Without `replicas`, two directories beside the journal. `time_ns` is since the epoch."""

    name: str
    root: Path
    workspace: str
    replicas: tuple[Path, ...]
    replication: Replication
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
        urls = [path.as_uri() for path in self.replicas] or [f"file:{path}" for path in DEFAULT_REPLICAS]
        return [ReplicaPlace(number, url) for number, url in enumerate(urls, start=1)]

    def file(self) -> WorkspaceFile:
        """What workspace.toml will say."""
        return WorkspaceFile(
            format=FORMAT,
            workspace=self.workspace,
            name=self.name,
            journal=JOURNAL_FILE,
            replication=self.replication,
            durability=self.durability,
            replicas=self.places(),
        )

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
        )
        return Entry(NO_SESSION, self.time_ns, [Transaction(TxnNumber(1), [found])])


def create_workspace(new: NewWorkspace, *, start_journal: StartJournal) -> WorkspaceDirectory:
    """Make the workspace. Whatever goes wrong, what was there before is there again.

    Raises Exists for a taken name or a replica directory in use, Invalid for a bad name or overlapping replicas.
    """
    check_name(new.name)
    _check_apart(new.replicas)
    target = new.directory
    if os.path.lexists(target.path):
        raise Exists(f"{path_text(target.path)} exists: choose another name, or mount it with `agentfs mount {new.name} DIR`")
    with ExitStack() as undo:
        _make_root(new.root, undo)
        draft = Path(tempfile.mkdtemp(prefix=f".{new.name}.", suffix=".creating", dir=new.root))
        undo.callback(shutil.rmtree, draft, ignore_errors=True)
        for place in new.places():
            _prepare(new, place, draft, undo)
        start_journal(draft / JOURNAL_FILE, encode_entry(new.first_entry()))
        write_durably(draft / WORKSPACE_FILE, new.file().as_toml().encode())
        _put_in_place(draft, target.path)
        undo.pop_all()
    sync_directory(new.root)
    return target


def _check_apart(replicas: tuple[Path, ...]) -> None:
    """Replicas inside one another would not fail apart, and would hold each other's files."""
    places = [Path(os.path.realpath(path)) for path in replicas]
    for index, one in enumerate(places):
        for other in places[:index]:
            if one.is_relative_to(other) or other.is_relative_to(one):
                raise Invalid(f"replicas {path_text(other)} and {path_text(one)} overlap: each needs a directory of its own")


def _make_root(root: Path, undo: ExitStack) -> None:
    missing = []
    while not root.exists():
        missing.append(root)
        root = root.parent
    for directory in reversed(missing):
        directory.mkdir(mode=0o700)
        undo.callback(directory.rmdir)


def _prepare(new: NewWorkspace, place: ReplicaPlace, draft: Path, undo: ExitStack) -> None:
    replica = PreparedReplica(place.directory(draft))
    if new.replicas:
        undo.callback(replica.undo)
    replica.prepare(ReplicaMarker(format=MARKER_FORMAT, workspace=new.workspace, name=new.name, replica=place.id))


def _put_in_place(draft: Path, target: Path) -> None:
    try:
        draft.rename(target)
    except OSError as error:
        if os.path.lexists(target):
            raise Busy(f"{path_text(target)} was created by somebody else at the same time") from error
        raise
