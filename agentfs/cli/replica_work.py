"""What `agentfs replicas` does, in a session of its own: no mount is needed for it, and those there are take part."""

import os
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import msgspec
import trio

from agentfs.cli.amounts import bytes_text, count_text, seconds_text
from agentfs.cli.failures import line_of
from agentfs.cli.layout import log_path
from agentfs.cli.logs import logging_to
from agentfs.cli.replica_marker import MARKER_FORMAT, MARKER_KEY, PreparedReplica, ReplicaMarker
from agentfs.cli.replica_place import check_apart, open_place
from agentfs.cli.stack import OpenedSource, open_replica, open_source, open_stack
from agentfs.cli.workspace_source import Source
from agentfs.model.errors import AgentfsError, NotFound, Unavailable
from agentfs.model.ids import ReplicaId
from agentfs.model.replica import Replica
from agentfs.runtime import Runtime, SystemRuntime
from agentfs.state.queries import Missing, missing
from agentfs.workspace.settings import Settings
from agentfs.workspace.storage import Opened
from agentfs.workspace.trimming import forget_copies
from agentfs.workspace.workspace import Workspace, open_seat_and_state

LOOK_SECONDS: Final = 5.0
"""How long a replica may take to say that it is there."""

STEP_SECONDS: Final = 0.25
"""Between two looks at how far filling is."""

T = TypeVar("T")


class Target(NamedTuple):
    """The workspace that is worked on, where this host finds it."""

    source: Source
    cache_dir: Path


class Session(NamedTuple):
    """An open workspace, and where it came from."""

    opened: OpenedSource
    workspace: Workspace
    runtime: Runtime


class ReplicaRow(msgspec.Struct, frozen=True, kw_only=True):
    """One replica: `error` says why it does not answer here, "" if it does; `lag_seconds` as in `agentfs status`."""

    replica: int
    url: str
    latency_seconds: float | None
    missing_segments: int
    missing_bytes: int
    lag_seconds: float | None
    error: str

    def cells(self) -> tuple[str, ...]:
        """The line of a table."""
        lacks = f"{count_text(self.missing_segments, 'segment')}, {bytes_text(self.missing_bytes)}"
        return (
            str(self.replica),
            "down" if self.error else "up",
            "-" if self.latency_seconds is None else f"{self.latency_seconds * 1000:.1f} ms",
            lacks if self.missing_segments else "-",
            "-" if self.lag_seconds is None else seconds_text(self.lag_seconds),
            self.url,
        )


def run_session(target: Target, work: Callable[[Session], Awaitable[T]]) -> T:
    """Register a session, let `work` use it, and leave in good order, also when it fails or is interrupted.

    What is logged goes beside the logs of mounts.
    """
    runtime = SystemRuntime()
    settings = Settings(host=socket.gethostname(), pid=os.getpid(), label="agentfs replicas", needs_quorum=False)

    async def run() -> T:
        async with (
            open_source(target.source, runtime=runtime) as opened,
            open_stack(opened, cache_dir=target.cache_dir, settings=settings, runtime=runtime) as workspace,
        ):
            outcome = await _outcome(work, Session(opened, workspace, runtime))
        if isinstance(outcome, _Failed):
            raise outcome.error
        return outcome

    with logging_to(log_path(target.source.name, Path("replicas")), runtime=runtime):
        return trio.run(run)


class _Failed(NamedTuple):
    """What ended some work early."""

    error: AgentfsError | KeyboardInterrupt


async def _outcome(work: Callable[[Session], Awaitable[T]], session: Session) -> T | _Failed:
    """What came of some work; Ctrl-C ends it."""
    outcome: T | _Failed = _Failed(KeyboardInterrupt())
    async with trio.open_nursery() as nursery:
        await nursery.start(_cancel_when_interrupted, nursery.cancel_scope)
        try:
            outcome = await work(session)
        except AgentfsError as error:
            outcome = _Failed(error)
        nursery.cancel_scope.cancel()
    return outcome


async def _cancel_when_interrupted(scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()


async def look_at_replicas(target: Target) -> list[ReplicaRow]:
    """Every member, asked by itself whether it is there; no session is needed for that."""
    runtime = SystemRuntime()
    rows: list[ReplicaRow] = []

    async def look(replica: Replica, lacks: Missing, opened: Opened) -> None:
        latency, error = await _latency_of(opened, runtime)
        await opened.store.aclose()
        lag_ns = None if lacks.since_ns is None else max(0, runtime.now_ns() - lacks.since_ns)
        rows.append(
            ReplicaRow(
                replica=replica.replica,
                url=replica.url,
                latency_seconds=latency,
                missing_segments=lacks.segments,
                missing_bytes=lacks.bytes,
                lag_seconds=None if lag_ns is None else round(lag_ns / 1e9, 3),
                error=error,
            )
        )

    async with open_source(target.source, runtime=runtime) as opened:
        open_store = partial(open_replica, opened, runtime=runtime)
        state = open_seat_and_state(opened.journal, target.cache_dir, open_store=open_store, runtime=runtime, recovers=False)
        async with state as (_, tables), trio.open_nursery() as nursery:
            for number, replica in tables.members.items():
                nursery.start_soon(look, replica, missing(tables, number), open_store(replica))
    return sorted(rows, key=lambda row: row.replica)


async def _latency_of(opened: Opened, runtime: Runtime) -> tuple[float | None, str]:
    """How long a small read takes, and why there is none."""
    assert opened.check is not None, "open_replica gives one"
    try:
        with trio.fail_after(LOOK_SECONDS):
            await opened.check()  # Connecting takes longer than asking does.
            before = runtime.boottime()
            await opened.store.get(MARKER_KEY)
            return round(runtime.boottime() - before, 6), ""
    except trio.TooSlowError:
        return None, f"no answer within {LOOK_SECONDS:g} s"
    except AgentfsError as error:
        return None, line_of(error)


async def add_replica(session: Session, url: str) -> ReplicaId:
    """Mark the place at a URL and make it a member; its number. Raises why it cannot be one: then it is left as it was."""
    opened, replicas = session.opened, session.workspace.replicas
    number = await replicas.next_number()
    base = opened.source.base
    check_apart([*(opened.file.url_of(each, other) for each, other in replicas.urls.items()), url], base)
    place = open_place(url, base, session.runtime)
    marker = ReplicaMarker(format=MARKER_FORMAT, workspace=opened.file.workspace, name=opened.file.name, replica=number)
    prepared = PreparedReplica(place)
    async with aclosing(place.store), AsyncExitStack() as undo:
        undo.push_async_callback(prepared.undo)
        await prepared.prepare(marker, retired=replicas.retired)
        await forget_copies(place.store)
        try:
            await replicas.add(number, url)
        except Unavailable:
            # It may be in the journal all the same: then the place must be marked. If it is not, the next attempt finds it so.
            undo.pop_all()
            raise
        undo.pop_all()
    return number


async def wait_until_filled(session: Session, replica: ReplicaId, report: Callable[[int, int, str], None]) -> None:
    """Return once State says that a replica lacks nothing.

    `report` is told the bytes done, all of them, and what else there is to say.
    """
    most = 0
    while True:
        lacks = session.workspace.replicas.missing(replica)
        most = max(most, lacks.bytes)
        report(most - lacks.bytes, most, _note(session, replica, lacks))
        if not lacks.segments:
            return
        await session.runtime.sleep(STEP_SECONDS)


def _note(session: Session, replica: ReplicaId, lacks: Missing) -> str:
    state = next((each for each in session.workspace.replicas.states() if each.replica == replica), None)
    left = f"{count_text(lacks.segments, 'segment')} left"
    return f"{left}, {state.last_error}" if state is not None and state.last_error else left


async def remove_replica(session: Session, replica: ReplicaId, may_lose: Callable[[int], bool]) -> str | None:
    """End a replica's membership; its URL, or None if that was not wanted.

    `may_lose` is asked if segments would be lost with it, told how many. Raises NotFound, Invalid.
    """
    replicas = session.workspace.replicas
    alone = await replicas.held_only_by(replica)
    url = replicas.urls.get(replica)
    if url is None:
        raise NotFound(f"no replica {replica}: `agentfs replicas` lists them")
    if alone and not may_lose(alone):
        return None
    await replicas.remove(replica, force=alone > 0)
    return url
