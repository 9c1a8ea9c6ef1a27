"""The stack of a mount, from the journal and the replicas up to the workspace: the one place that composes it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from agentfs.cli.layout import WorkspaceDirectory
from agentfs.cli.replica_marker import Marked
from agentfs.cli.replica_place import open_place
from agentfs.cli.workspace_file import WorkspaceFile
from agentfs.journal.sqlite import open_sqlite_journal
from agentfs.model.replica import Replica
from agentfs.runtime import Runtime
from agentfs.workspace.kernel import Kernel
from agentfs.workspace.settings import Settings
from agentfs.workspace.storage import Opened
from agentfs.workspace.workspace import Workspace, open_workspace


@asynccontextmanager
async def open_stack(
    directory: WorkspaceDirectory,
    file: WorkspaceFile,
    *,
    cache_dir: Path,
    settings: Settings,
    runtime: Runtime,
    kernel: Kernel | None = None,
) -> AsyncIterator[Workspace]:
    """A session of the workspace in a directory; without `kernel`, one that is mounted nowhere."""

    def open_store(replica: Replica) -> Opened:
        return open_replica(directory, file, replica, runtime)

    async with (
        open_sqlite_journal(directory.path / file.journal, runtime=runtime) as journal,
        open_workspace(
            journal=journal, open_store=open_store, cache_dir=cache_dir, settings=settings, runtime=runtime, kernel=kernel
        ) as workspace,
    ):
        yield workspace


def open_replica(directory: WorkspaceDirectory, file: WorkspaceFile, replica: Replica, runtime: Runtime) -> Opened:
    """A replica's store, where this host finds it. Raises Invalid for a kind of URL that this version does not know."""
    place = open_place(file.url_of(replica.replica, replica.url), directory.path, runtime)
    store = Marked(place, workspace=file.workspace, replica=replica.replica)
    return Opened(store, far=place.directory is None, check=store.check, requests=place.requests)
