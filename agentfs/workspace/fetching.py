"""Fetching: the newest checkpoint that can be had from the replicas becomes a State file."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import structlog

from agentfs.chunks.contract import ChunkStore
from agentfs.chunks.replicated import Replicated, open_replicated
from agentfs.model.errors import AgentfsError
from agentfs.model.ids import ReplicaId
from agentfs.model.replica import Replica
from agentfs.runtime import Runtime
from agentfs.state.checkpoint import CHECKPOINTS, CheckpointKey, open_checkpoint, parse_checkpoint_key, write_state
from agentfs.state.tables import Tables
from agentfs.workspace.beginning import Beginning
from agentfs.workspace.replay import remove_state
from agentfs.workspace.staging_log import disk_error
from agentfs.workspace.storage import OpenStore

CLOSE_SECONDS: Final = 1.0
"""How long replicas that were late are waited for in the end."""

_log = structlog.get_logger()


Choose = Callable[[list[CheckpointKey]], Sequence[CheckpointKey]]
"""Which checkpoints to try, and in which order, of those that there are, the oldest first."""

FetchChosen = Callable[[Path, Beginning, Choose], Awaitable[Tables | None]]
"""`fetch_chosen` of the replicas that somebody can open."""


async def fetch_state(path: Path, beginning: Beginning, open_store: OpenStore, runtime: Runtime) -> Tables | None:
    """Make the State file at `path` of the checkpoint that the journal's pointer names, else of an older one, and open it.

    None, and no file, if none can be had: why goes to the log. Raises NoSpace and Unavailable for the file's own disk.
    """
    newest = beginning.checkpoint

    def older(found: list[CheckpointKey]) -> list[CheckpointKey]:
        return [key for key in reversed(found) if key != newest]

    async with _open_replicas(beginning, open_store, runtime) as store:
        if store is None:
            return None
        tables = await _take(path, newest, beginning.workspace, store, runtime)
        return tables or await _take_listed(path, beginning, older, store, runtime)


async def fetch_chosen(
    path: Path, beginning: Beginning, choose: Choose, open_store: OpenStore, runtime: Runtime
) -> Tables | None:
    """As `fetch_state`, of the first of the chosen ones that can be had."""
    async with _open_replicas(beginning, open_store, runtime) as store:
        return None if store is None else await _take_listed(path, beginning, choose, store, runtime)


async def list_checkpoints(store: ChunkStore) -> list[CheckpointKey]:
    """The checkpoints in a store, the oldest first. Raises what the store does."""
    found = [parse_checkpoint_key(info.key) async for info in store.list(CHECKPOINTS)]
    return [key for key in found if key is not None]


async def _take_listed(path: Path, beginning: Beginning, choose: Choose, store: ChunkStore, runtime: Runtime) -> Tables | None:
    try:
        found = await list_checkpoints(store)
    except AgentfsError as error:
        _log.warning("checkpoints_not_listed", reason=str(error))
        return None
    for key in choose([key for key in found if key.position <= beginning.position]):
        tables = await _take(path, key, beginning.workspace, store, runtime)
        if tables is not None:
            return tables
    return None


async def _take(path: Path, key: CheckpointKey, workspace: str, store: ChunkStore, runtime: Runtime) -> Tables | None:
    try:
        body = await store.get(key.key, check=key.check)
        await runtime.in_thread(write_state, body, path)
        return open_checkpoint(path, key, workspace=workspace)
    except OSError as error:
        raise disk_error(error) from error
    except AgentfsError as error:
        _log.warning("checkpoint_not_usable", position=key.position, reason=str(error))
    remove_state(path)
    return None


@asynccontextmanager
async def _open_replicas(beginning: Beginning, open_store: OpenStore, runtime: Runtime) -> AsyncIterator[Replicated | None]:
    """The replicas that the pointer names, as far as they can be opened; None if none can."""
    stores: dict[ReplicaId, ChunkStore] = {}
    for spec in beginning.replicas:
        try:
            stores[spec.replica] = open_store(Replica(spec.replica, spec.url)).store
        except AgentfsError as error:
            _log.warning("replica_not_opened", replica=spec.replica, url=spec.url, reason=str(error))
    if not stores:
        yield None
        return
    async with open_replicated(stores, replication="async", timeout_seconds=CLOSE_SECONDS, runtime=runtime) as replicas:
        yield replicas
