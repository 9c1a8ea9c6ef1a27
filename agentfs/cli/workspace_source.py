"""Which workspace a command is about that takes a name, a path, its journal's URL or a directory in a mount, or nothing."""

import os
from dataclasses import dataclass
from pathlib import Path

from agentfs.cli.amounts import path_text
from agentfs.cli.journal_place import JournalPlace, file_place, is_url, journal_place
from agentfs.cli.layout import WorkspaceDirectory, data_root, workspace_directory, workspaces_in
from agentfs.cli.mountinfo import Mounted, canonical, mount_at, mount_holding, our_mounts
from agentfs.cli.records import MountRecord, find_record
from agentfs.cli.workspace_file import WorkspaceFile, read_workspace_file
from agentfs.model.errors import Denied, Invalid


@dataclass(frozen=True, slots=True)
class Source:
    """Where this host finds a workspace: by its directory and the file in there, or without them by its journal alone.

    `base` is where the relative paths of replicas begin.
    """

    journal: JournalPlace
    base: Path
    file: WorkspaceFile | None = None

    @property
    def text(self) -> str:
        """What `agentfs mount` finds it by again, wherever it runs."""
        return self.journal.url if self.file is None else os.fspath(self.base)

    @property
    def name(self) -> str:
        """What to call it before its journal was asked."""
        return self.journal.workspace if self.file is None else self.file.name


def source_of(text: str, root: Path) -> Source:
    """The workspace that a user named: its journal's URL, a path, or a name under the data root. Raises NotFound, Invalid."""
    if is_url(text):
        return Source(journal_place(text), Path("/"))
    return source_in(workspace_directory(text, root), root=root)


def source_in(directory: WorkspaceDirectory, *, root: Path) -> Source:
    """The workspace of a directory. Raises NotFound naming the workspaces under `root`, Invalid."""
    file = read_workspace_file(directory, root=root)
    base = directory.path.absolute()
    place = journal_place(file.journal) if is_url(file.journal) else file_place(base / file.journal)
    return Source(place, base, file)


def find_source(text: str | None, root: Path | None) -> Source:
    """The workspace that is meant: a plain name is a workspace's if there is one under the data root.

    Without `text`: that of the working directory, or else of the only mount. Raises NotFound, Invalid, Denied.
    """
    place = data_root(root)
    if text is not None and (is_url(text) or text in workspaces_in(place)):
        return source_of(text, place)
    mounted = mount_holding(canonical(Path(text or "")))
    if mounted is not None and mounted.ours:
        return _behind(mounted, place)
    if text is not None:
        return source_of(text, place)
    mounts = our_mounts()
    if len(mounts) != 1:
        raise Invalid(f"{len(mounts) or 'no'} workspaces are mounted: name one, or a directory in its mount")
    return _behind(mounts[0], place)


def mounts_named(text: str, root: Path) -> list[Mounted] | None:
    """The mounts of the workspace that a URL or a plain name means, as far as this user may know them; None for a path.

    A plain name that is no workspace's is a path. Raises Invalid for a URL that will not do.
    """
    if not is_url(text) and (mount_at(canonical(Path(text))) is not None or text not in workspaces_in(root)):
        return None
    journal = source_of(text, root).journal.text
    records = [(mounted, find_record(mounted)) for mounted in our_mounts()]
    return [mounted for mounted, record in records if record is not None and record.journal == journal]


def _behind(mounted: Mounted, root: Path) -> Source:
    record = find_record(mounted)
    if record is None:
        raise Denied(f"which workspace is mounted on {path_text(mounted.mountpoint)} cannot be read: name the workspace itself")
    return source_behind(record, root)


def source_behind(record: MountRecord, root: Path) -> Source:
    """The workspace that a mount is of."""
    if is_url(record.source):
        return source_of(record.source, root)
    return source_in(WorkspaceDirectory(Path(record.source)), root=root)
