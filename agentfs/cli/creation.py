"""How a workspace comes to be: built beside its place, renamed into it at the end, so that it is never half there."""

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import trio

from agentfs.cli.amounts import path_text
from agentfs.cli.journal_place import JournalPlace, file_place
from agentfs.cli.layout import JOURNAL_FILE, WORKSPACE_FILE, WorkspaceDirectory, check_name
from agentfs.cli.replica_marker import MARKER_FORMAT, PreparedReplica, ReplicaMarker
from agentfs.cli.replica_place import Place, check_apart
from agentfs.cli.workspace_file import FORMAT, Durability, ReplicaPlace, Replication, WorkspaceFile
from agentfs.model.changes import Found, ReplicaSpec
from agentfs.model.codec import FORMAT as ENTRY_FORMAT
from agentfs.model.codec import encode_entry
from agentfs.model.entry import Entry, Transaction
from agentfs.model.errors import AgentfsError, Busy, Exists, Invalid
from agentfs.model.ids import NO_SESSION, TxnNumber


class Journals(Protocol):
    """What is done to the journal. Errors are those of `agentfs.cli.journal_place`."""

    async def check_free(self, place: JournalPlace) -> None:
        """Raise Exists if there is a journal in a place that hosts share."""
        ...

    async def create(self, place: JournalPlace) -> None:
        """Make an empty journal."""
        ...

    async def begin(self, place: JournalPlace, payload: bytes) -> None:
        """Append its first entry."""
        ...

    async def remove(self, place: JournalPlace) -> None:
        """Take away the journal that was made."""
        ...


OpenPlace = Callable[[str, Path], Place]
"""Opens the place at a URL; the path is the workspace's directory."""

DEFAULT_REPLICAS: Final = ("file:replicas/1", "file:replicas/2")

UNDO_SECONDS: Final = 30.0
"""How long a server is waited for that should forget a journal again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewWorkspace:
    """What is to be made. `time_ns` is since the epoch.

    `journal`: where hosts share it; None: in a file of this host. `replicas` are URLs; without any, two directories beside the
    file, or the journal's own place where that can hold one. `write_quorum`: how many replicas `quorum` replication waits for;
    0 is the majority. `history_seconds`: how old an entry is before it may be forgotten; 0 keeps all.
    """

    name: str
    root: Path
    workspace: str
    journal: JournalPlace | None = None
    replicas: tuple[str, ...]
    replication: Replication
    write_quorum: int = 0
    durability: Durability
    history_seconds: int = 0
    time_ns: int
    uid: int
    gid: int

    @property
    def directory(self) -> WorkspaceDirectory:
        """Its place."""
        return WorkspaceDirectory(self.root / self.name)

    def places(self) -> list[ReplicaPlace]:
        """The replicas by number and URL."""
        defaults = DEFAULT_REPLICAS if self.journal is None else (self.journal.url,)
        return [ReplicaPlace(number, url) for number, url in enumerate(self.replicas or defaults, start=1)]

    def file(self) -> WorkspaceFile:
        """What workspace.toml will say."""
        return WorkspaceFile(
            format=FORMAT,
            workspace=self.workspace,
            name=self.name,
            journal=JOURNAL_FILE if self.journal is None else self.journal.url,
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
            history_seconds=self.history_seconds,
        )
        return Entry(NO_SESSION, self.time_ns, [Transaction(TxnNumber(1), [found])])


async def create_workspace(new: NewWorkspace, *, journals: Journals, open_place: OpenPlace) -> WorkspaceDirectory:
    """Make the workspace. Whatever goes wrong, what was there before is there again.

    Raises Exists for a taken name, journal or replica's place, Invalid for a bad name, a write quorum that cannot be reached,
    replicas that overlap or that other hosts cannot reach, Denied and Unavailable for stores and journals.
    """
    check_name(new.name)
    _check_reach(new)
    _check_quorum(new)
    target = new.directory
    check_apart([place.url for place in new.places()], target.path)
    if os.path.lexists(target.path):
        raise Exists(f"{path_text(target.path)} exists: choose another name, or mount it with `agentfs mount {new.name} DIR`")
    if new.journal is not None:
        await journals.check_free(new.journal)
    with ExitStack() as undo:
        make_root(new.root, undo)
        draft = Path(tempfile.mkdtemp(prefix=f".{new.name}.", suffix=".creating", dir=new.root))
        undo.callback(shutil.rmtree, draft, ignore_errors=True)
        async with AsyncExitStack() as opened, AsyncExitStack() as unmark:
            for place in new.places():
                opened_place = open_place(place.url, draft)
                opened.push_async_callback(opened_place.store.aclose)
                replica = PreparedReplica(opened_place)
                unmark.push_async_callback(replica.undo)
                await replica.prepare(new.marker(place))
            journal = new.journal or file_place(draft / JOURNAL_FILE)
            await journals.create(journal)
            if journal.is_shared:
                unmark.push_async_callback(_remove, journals, journal)
            await journals.begin(journal, encode_entry(new.first_entry()))
            write_durably(draft / WORKSPACE_FILE, new.file().as_toml().encode())
            put_in_place(draft, target.path)
            unmark.pop_all()
        undo.pop_all()
    sync_directory(new.root)
    return target


async def _remove(journals: Journals, place: JournalPlace) -> None:
    with trio.move_on_after(UNDO_SECONDS, shield=True):
        # The failure that made us undo is the one to tell of.
        with suppress(AgentfsError):
            await journals.remove(place)


def _check_reach(new: NewWorkspace) -> None:
    """Raise Invalid for replicas that other hosts will look for in vain."""
    if new.journal is None:
        return
    if not new.replicas and new.journal.engine != "s3":
        raise Invalid(
            f"{new.journal.text} holds the journal alone, and other hosts cannot reach a directory of this one: name where the "
            "bytes go with --replica s3://BUCKET/PREFIX?endpoint=URL, or --replica /PATH of a directory that every host has"
        )
    for url in new.replicas:
        if url.startswith("file:") and not url.startswith("file:/"):
            raise Invalid(f"replica {url} is a path in a directory that other hosts do not have: write /PATH")


def _check_quorum(new: NewWorkspace) -> None:
    if not new.write_quorum:
        return
    if new.replication != "quorum":
        raise Invalid(f"a write quorum means something with quorum replication only, not with {new.replication}")
    count = len(new.places())
    if not 1 <= new.write_quorum <= count:
        raise Invalid(f"a write quorum of {new.write_quorum}: with {count} replicas it can be 1 to {count}")


def make_root(root: Path, undo: ExitStack) -> None:
    """Make the directory that holds workspaces, if need be."""
    missing = []
    while not root.exists():
        missing.append(root)
        root = root.parent
    for directory in reversed(missing):
        directory.mkdir(mode=0o700)
        undo.callback(directory.rmdir)


def put_in_place(draft: Path, target: Path) -> None:
    """Give a finished directory its name. Raises Busy for one that came to be there meanwhile."""
    try:
        draft.rename(target)
    except OSError as error:
        if os.path.lexists(target):
            raise Busy(f"{path_text(target)} was created by somebody else at the same time") from error
        raise


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
