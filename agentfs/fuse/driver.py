"""Driving FUSE: mount, answer requests until the kernel lets go, leave nothing behind."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyfuse3
import trio

from agentfs.fuse import companion
from agentfs.fuse.attributes import Presentation
from agentfs.fuse.guard import Guard
from agentfs.fuse.invalidate import Invalidator
from agentfs.fuse.locks import LockRequests
from agentfs.fuse.operations import Operations
from agentfs.fuse.replay import Replay
from agentfs.fuse.replayed import ReplayedOperations
from agentfs.fuse.spin import install_spin
from agentfs.model.errors import NotSupported, Unavailable
from agentfs.runtime import Runtime
from agentfs.workspace.workspace import Workspace

_CAPABILITY = b"security.capability"

REQUESTS_MAX = 128
"""Requests in hand at once; more wait in the kernel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """What mount(8) was asked for. `kernel` are options that only the kernel or fusermount3 cares about, as they are."""

    fsname: str
    read_only: bool = False
    allow_other: bool = False
    uid: int | None = None
    gid: int | None = None
    umask: int | None = None
    strict: bool = False
    replay: bool = True
    kernel: tuple[str, ...] = ()

    def fuse(self) -> set[str]:
        """The options for libfuse. Permission checks are the kernel's: `default_permissions`."""
        options = {f"fsname={self.fsname}", "subtype=agentfs", "default_permissions", *self.kernel}
        if self.read_only:
            options.add("ro")
        if self.allow_other:
            options.add("allow_other")
        return options


async def serve(
    workspace: Workspace,
    mountpoint: Path,
    options: MountOptions,
    *,
    invalidator: Invalidator,
    runtime: Runtime,
    on_ready: Callable[[], None],
) -> None:
    """Mount, call `on_ready` once the mount answers, and return when it is unmounted.

    Raises Unavailable if mounting fails, NotSupported where locks would not reach this process: they would hold on this mount
    alone, and nobody would be told.
    """
    presentation = Presentation(options.uid, options.gid, options.umask, lambda: workspace.remaining_seconds, options.strict)
    replay = Replay(workspace, invalidator, runtime) if options.replay and not options.read_only else None
    if replay is None:
        operations = Operations(workspace, presentation, invalidator)
    else:
        operations = ReplayedOperations(workspace, presentation, invalidator, replay)
    try:
        pyfuse3.init(operations, os.fspath(mountpoint), options.fuse())
    except RuntimeError as error:
        raise Unavailable(f"{mountpoint}: FUSE refuses to mount ({error}); `agentfs doctor` looks for the cause") from error
    guard: Guard | None = None
    # What waits in here for the mount ends with the mount: closing it is what ends a system call that nobody answers.
    async with trio.open_nursery() as outlasting:
        try:
            async with trio.open_nursery() as nursery:
                locks = LockRequests(workspace.locks, workspace.files, nursery)
                companion.install(locks)
                _answer_for_capabilities(workspace)
                install_spin(lambda: workspace.is_committing() or locks.has_started(), runtime)
                nursery.start_soon(invalidator.run)
                nursery.start_soon(_answer_requests, nursery.cancel_scope)
                guard = Guard(mountpoint, (await runtime.in_thread(os.stat, mountpoint)).st_dev)
                if not companion.is_in_effect():
                    raise NotSupported("file locks do not reach agentfs here: `agentfs doctor` looks for the cause")
                if replay is not None:
                    outlasting.start_soon(replay.run, mountpoint)
                on_ready()
        finally:
            if replay is not None:
                replay.close()
            with trio.CancelScope(shield=True):
                await invalidator.close()
            if guard is not None:
                guard.dismiss()
            # On the way out of an error the kernel must not be left with a mount that nobody serves.
            pyfuse3.close(unmount=True)
        outlasting.cancel_scope.cancel()


def _answer_for_capabilities(workspace: Workspace) -> None:
    """Before each write the kernel asks for this attribute: while nobody has it, the answer needs no Python."""
    if not workspace.announce_xattr(_CAPABILITY, lambda: companion.answer_absent(())):
        companion.answer_absent((_CAPABILITY,))


async def _answer_requests(scope: trio.CancelScope) -> None:
    """Answer until the mount is gone; then nothing that was done for it is of use."""
    await pyfuse3.main(1, REQUESTS_MAX)
    scope.cancel()
