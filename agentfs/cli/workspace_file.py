"""workspace.toml: which workspace a directory holds, where its journal is, and where this host finds its replicas."""

import json
import tomllib
from pathlib import Path
from typing import Final, Literal

import msgspec

from agentfs.cli.layout import WorkspaceDirectory, workspaces_in
from agentfs.model.errors import Invalid, NotFound
from agentfs.model.ids import ReplicaId

FORMAT: Final = 3
"""The newest format of the file that this program reads, and the one it writes."""

Replication = Literal["sync", "quorum", "async"]
Durability = Literal["close", "fsync"]


class ReplicaPlace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A replica's number and where this host finds it: `file:PATH` is relative to the workspace's directory."""

    id: int
    url: str

    @property
    def replica(self) -> ReplicaId:
        """The replica's number."""
        return ReplicaId(self.id)


class WorkspaceFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What workspace.toml says. `workspace` is a UUID; `journal` is a path, relative to the file, or from format 3 on a URL.

    The journal says which replicas there are and where; `replicas` says where this host finds them, if not there. `replication`
    is in files of format 1; the journal says it.
    """

    format: int
    workspace: str
    name: str
    journal: str
    durability: Durability
    replicas: list[ReplicaPlace] = []
    replication: Replication | None = None

    def url_of(self, replica: ReplicaId, url: str) -> str:
        """Where this host finds a replica that the journal says is at `url`."""
        return next((place.url for place in self.replicas if place.replica == replica), url)

    def as_toml(self) -> str:
        """The file's text."""
        lines = [
            f"format = {self.format}",
            f"workspace = {_quoted(self.workspace)}",
            f"name = {_quoted(self.name)}",
            f"journal = {_quoted(self.journal)}",
            f"durability = {_quoted(self.durability)}",
        ]
        for place in self.replicas:
            lines += ["", "[[replicas]]", f"id = {place.id}", f"url = {_quoted(place.url)}"]
        return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def read_workspace_file(directory: WorkspaceDirectory, *, root: Path) -> WorkspaceFile:
    """The workspace of `directory`.

    Raises NotFound naming the workspaces under `root`, Invalid for a newer format and for what is not such a file.
    """
    try:
        text = directory.file.read_bytes().decode()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(_missing(directory, root)) from None
    except UnicodeDecodeError as error:
        raise Invalid(f"{directory.file} is not readable: {error}") from error
    return parse_workspace_file(text, origin=str(directory.file))


def parse_workspace_file(text: str, *, origin: str) -> WorkspaceFile:
    """The values in `text`; `origin` is named in errors, which are Invalid."""
    try:
        plain = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Invalid(f"{origin} is not readable: {error}") from error
    found = plain.get("format")
    if isinstance(found, int) and found > FORMAT:
        raise Invalid(f"{origin} is in format {found}, this program reads up to {FORMAT}: upgrade agentfs")
    try:
        file = msgspec.convert(plain, WorkspaceFile)
    except msgspec.ValidationError as error:
        raise Invalid(f"{origin} is not readable: {error}") from error
    if len({place.id for place in file.replicas}) < len(file.replicas):
        raise Invalid(f"{origin} is not readable: each replica needs a number of its own")
    return file


def _missing(directory: WorkspaceDirectory, root: Path) -> str:
    here = ", ".join(workspaces_in(root)) or "none"
    if directory.path.parent == root:
        return f"no workspace {directory.name}: `agentfs create {directory.name}` makes one; workspaces in {root}: {here}"
    return f"{directory.path} holds no workspace.toml: name a workspace, or a directory that holds one; in {root}: {here}"
