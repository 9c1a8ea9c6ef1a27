"""Driving FUSE: mount, answer requests until the kernel lets go, leave nothing behind."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyfuse3
import trio

from agentfs.fuse import companion
from agentfs.fuse.attributes import Presentation
from agentfs.fuse.invalidate import Invalidator
from agentfs.fuse.locks import LockRequests
from agentfs.fuse.operations import Operations
from agentfs.fuse.spin import install_spin
from agentfs.model.errors import NotSupported, Unavailable
from agentfs.runtime import Runtime
from agentfs.workspace.workspace import Workspace

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
    operations = Operations(workspace, presentation, invalidator)
    try:
        pyfuse3.init(operations, os.fspath(mountpoint), options.fuse())
    except RuntimeError as error:
        raise Unavailable(f"{mountpoint}: FUSE refuses to mount ({error}); `agentfs doctor` looks for the cause") from error
    install_spin(workspace.is_committing, runtime)
    try:
        async with trio.open_nursery() as nursery:
            companion.install(LockRequests(workspace.locks, workspace.files, nursery))
            nursery.start_soon(invalidator.run)
            nursery.start_soon(_answer_requests, nursery.cancel_scope)
            await runtime.in_thread(os.stat, mountpoint)
            if not companion.is_in_effect():
                raise NotSupported("file locks do not reach agentfs here: `agentfs doctor` looks for the cause")
            on_ready()
    finally:
        with trio.CancelScope(shield=True):
            await invalidator.close()
        # On the way out of an error the kernel must not be left with a mount that nobody serves.
        pyfuse3.close(unmount=True)


async def _answer_requests(scope: trio.CancelScope) -> None:
    """Answer until the mount is gone; then nothing that was done for it is of use."""
    await pyfuse3.main(1, REQUESTS_MAX)
    scope.cancel()
