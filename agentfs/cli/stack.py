"""The stack of a mount, from the journal and the replicas up to the workspace: the one place that composes it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast, get_args

from agentfs.cli.journal_place import open_journal
from agentfs.cli.layout import check_name
from agentfs.cli.replica_marker import Marked
from agentfs.cli.replica_place import open_place
from agentfs.cli.workspace_file import FORMAT, Durability, WorkspaceFile
from agentfs.cli.workspace_source import Source
from agentfs.journal.contract import Journal
from agentfs.model.errors import Corrupt, Invalid
from agentfs.model.replica import Replica
from agentfs.runtime import Runtime
from agentfs.workspace.beginning import Identity, identify, read_beginning
from agentfs.workspace.kernel import Kernel
from agentfs.workspace.settings import Settings
from agentfs.workspace.storage import Opened
from agentfs.workspace.workspace import Workspace, open_workspace


class OpenedSource(NamedTuple):
    """A workspace whose journal is open. `file` is what its directory says or, where this host has none, its journal."""

    source: Source
    file: WorkspaceFile
    journal: Journal


@asynccontextmanager
async def open_source(source: Source, *, runtime: Runtime) -> AsyncIterator[OpenedSource]:
    """Open a workspace's journal, and find out which workspace it is if that is not known.

    Raises NotFound, Invalid, Corrupt, Denied, Unavailable.
    """
    async with open_journal(source.journal, runtime) as journal:
        file = source.file
        if file is None:
            file = _file_of(source, await identify(journal, await read_beginning(journal)))
        yield OpenedSource(source, file, journal)


@asynccontextmanager
async def open_stack(
    opened: OpenedSource,
    *,
    cache_dir: Path,
    settings: Settings,
    runtime: Runtime,
    kernel: Kernel | None = None,
) -> AsyncIterator[Workspace]:
    """A session of a workspace; without `kernel`, one that is mounted nowhere."""

    def open_store(replica: Replica) -> Opened:
        return open_replica(opened, replica, runtime)

    async with open_workspace(
        journal=opened.journal,
        open_store=open_store,
        cache_dir=cache_dir,
        settings=settings,
        runtime=runtime,
        kernel=kernel,
        journal_replicated=opened.source.journal.is_shared,
    ) as workspace:
        yield workspace


def open_replica(opened: OpenedSource, replica: Replica, runtime: Runtime) -> Opened:
    """A replica's store, where this host finds it. Raises Invalid for a kind of URL that this version does not know."""
    place = open_place(opened.file.url_of(replica.replica, replica.url), opened.source.base, runtime)
    store = Marked(place, workspace=opened.file.workspace, replica=replica.replica)
    return Opened(
        store,
        far=place.directory is None,
        check=store.check,
        requests=place.requests,
        grow=None
        if place.directory is None or opened.source.journal.is_shared
        else partial(store.grow, device=_device(opened)),
    )


def _device(opened: OpenedSource) -> int:
    """The filesystem that an embedded journal is on."""
    return Path(opened.source.journal.url).stat().st_dev


def _file_of(source: Source, identity: Identity) -> WorkspaceFile:
    """What a workspace's file would say on this host. Raises Corrupt for what no workspace can be."""
    try:
        check_name(identity.name)
    except Invalid as error:
        raise Corrupt(f"the journal {source.journal.text}: {error}") from error
    if identity.durability not in get_args(Durability):
        raise Corrupt(f"the journal {source.journal.text} knows a durability {identity.durability!r}, which there is not")
    return WorkspaceFile(
        format=FORMAT,
        workspace=identity.workspace,
        name=identity.name,
        journal=source.journal.url,
        durability=cast(Durability, identity.durability),
    )
