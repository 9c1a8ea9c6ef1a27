"""Which workspace a command is about that takes a name, a path or a directory in a mount, or nothing."""

from pathlib import Path

from agentfs.cli.amounts import path_text
from agentfs.cli.layout import WorkspaceDirectory, data_root, workspace_directory, workspaces_in
from agentfs.cli.mountinfo import Mounted, canonical, mount_holding, our_mounts
from agentfs.cli.records import find_record
from agentfs.model.errors import Denied, Invalid


def find_workspace(source: str | None, root: Path | None) -> WorkspaceDirectory:
    """The workspace that is meant: a plain name is a workspace's if there is one under the data root.

    Without `source`: that of the working directory, or else of the only mount. Raises NotFound, Invalid, Denied.
    """
    place = data_root(root)
    if source in workspaces_in(place):
        return workspace_directory(source, place)
    mounted = mount_holding(canonical(Path(source or "")))
    if mounted is not None and mounted.ours:
        return _behind(mounted)
    if source is not None:
        return workspace_directory(source, place)
    mounts = our_mounts()
    if len(mounts) != 1:
        raise Invalid(f"{len(mounts) or 'no'} workspaces are mounted: name one, or a directory in its mount")
    return _behind(mounts[0])


def _behind(mounted: Mounted) -> WorkspaceDirectory:
    record = find_record(mounted)
    if record is None:
        raise Denied(f"which workspace is mounted on {path_text(mounted.mountpoint)} cannot be read: name the workspace itself")
    return WorkspaceDirectory(Path(record.directory))
