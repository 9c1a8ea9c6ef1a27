"""The daemon: puts the parts of a mount together, serves it until it is unmounted, and closes it in good order."""

import os
import signal
import socket
import traceback
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog
import trio

from agentfs.cli.allocator import return_large_buffers
from agentfs.cli.amounts import path_text
from agentfs.cli.control_server import serve_control
from agentfs.cli.daemon import ReadyPipe
from agentfs.cli.failures import BUG, INTERRUPTED, exit_code_of, line_of, operating_error
from agentfs.cli.logs import open_log
from agentfs.cli.mount_plan import MountPlan
from agentfs.cli.mounted_workspace import MountedWorkspace
from agentfs.cli.mountinfo import mount_at
from agentfs.cli.mountpoint_lock import lock_mountpoint
from agentfs.cli.records import MountRecord, control_socket, remove_record, write_record
from agentfs.cli.unmounting import unmount
from agentfs.model.errors import AgentfsError, Busy
from agentfs.runtime import Runtime, SystemRuntime

if TYPE_CHECKING:
    from agentfs.fuse.driver import MountOptions as FuseOptions

SIGNAL_DRAIN_SECONDS: Final = 60.0

Announce = Callable[[str], None]
"""Is told the workspace's name."""

log = structlog.get_logger()


def fuse_options(plan: MountPlan, name: str) -> "FuseOptions":
    """What the FUSE layer is told of a workspace called `name`."""
    from agentfs.fuse.driver import MountOptions as FuseOptions

    return FuseOptions(
        fsname=name,
        read_only=plan.options.read_only,
        allow_other=plan.options.allow_other,
        uid=plan.options.uid,
        gid=plan.options.gid,
        umask=plan.options.umask,
        strict=plan.options.strict,
        replay=plan.options.replay,
        kernel=plan.options.kernel,
    )


def run_daemon(plan: MountPlan, ready: ReadyPipe, *, announce: Announce) -> int:
    """Serve the mount until it is unmounted; return the exit code. `announce` is called once the mount answers.

    What goes wrong before that goes to `ready`. A bug is logged with its traceback, the mount is closed, and the exit code
    says so; what was staged is recovered at the next mount.
    """
    return_large_buffers()
    runtime = SystemRuntime()
    file = open_log(plan.log, runtime=runtime, take_over=ready.connected)
    try:
        trio.run(_hold_and_serve, plan, ready, announce, runtime)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        return _report(error, plan, ready)
    finally:
        if file:
            file.close()
    return 0


def _report(error: Exception, plan: MountPlan, ready: ReadyPipe) -> int:
    known = operating_error(error)
    if known is None:
        log.critical("bug", workspace=plan.source.name, traceback="".join(traceback.format_exception(error)))
        ready.failed(f"a fault in agentfs itself ({type(error).__name__}): {plan.log or 'the log'} has the traceback", BUG)
        return BUG
    log.error("mount failed", workspace=plan.source.name, error=type(known).__name__, message=line_of(known))
    if plan.log is not None and ready.connected:
        ready.failed(line_of(known), exit_code_of(known))
        return exit_code_of(known)
    raise known


def _close_mount(plan: MountPlan) -> None:
    """Nobody serves the mountpoint any more: it must not stay behind and answer ENOTCONN."""
    mounted = mount_at(plan.mountpoint)
    if mounted is not None and mounted.ours:
        unmount(plan.mountpoint, lazily=True)


async def _hold_and_serve(plan: MountPlan, ready: ReadyPipe, announce: Announce, runtime: Runtime) -> None:
    """Serve, and clear every trace of the mount away while the mountpoint is still this process's alone."""
    async with lock_mountpoint(plan.mountpoint, runtime=runtime):
        try:
            await _serve(plan, ready, announce, runtime)
        finally:
            remove_record(plan.mountpoint, owner=os.geteuid())
            _close_mount(plan)


async def _serve(plan: MountPlan, ready: ReadyPipe, announce: Announce, runtime: Runtime) -> None:
    from agentfs.cli.stack import open_source, open_stack
    from agentfs.fuse import driver
    from agentfs.fuse.invalidate import Invalidator

    invalidator = Invalidator(runtime)
    log.info("starting", workspace=plan.source.name, mountpoint=path_text(plan.mountpoint), pid=os.getpid())
    async with open_source(plan.source, runtime=runtime) as opened:
        name, settings = opened.file.name, plan.settings(opened.file)
        stack = open_stack(opened, cache_dir=plan.cache_dir, settings=settings, runtime=runtime, kernel=invalidator)
        async with stack as workspace, trio.open_nursery() as nursery:
            mounted = MountedWorkspace(workspace)
            await nursery.start(serve_control, mounted, control_socket(plan.mountpoint))
            await nursery.start(_unmount_on_signal, mounted, plan, runtime, nursery.cancel_scope)
            on_ready = partial(_on_ready, plan, name, ready, announce, runtime)
            await driver.serve(
                workspace,
                plan.mountpoint,
                fuse_options(plan, name),
                invalidator=invalidator,
                runtime=runtime,
                on_ready=on_ready,
            )
            nursery.cancel_scope.cancel()
    log.info("ended", workspace=name)


def _on_ready(plan: MountPlan, name: str, ready: ReadyPipe, announce: Announce, runtime: Runtime) -> None:
    record = MountRecord(
        workspace=name,
        source=path_text(os.fsencode(plan.source.text)),
        journal=plan.source.journal.text,
        mountpoint=path_text(plan.mountpoint),
        pid=os.getpid(),
        label=plan.label,
        log=path_text(plan.log) if plan.log else "",
        control=path_text(control_socket(plan.mountpoint)),
        since_ns=runtime.now_ns(),
    )
    write_record(record, plan.mountpoint)
    log.info("mounted", workspace=name)
    ready.ready(name)
    announce(name)
    notify_systemd("READY=1")


def notify_systemd(state: str) -> None:
    """Tell systemd, if it waits to hear (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notifying:
        notifying.connect("\0" + address[1:] if address.startswith("@") else address)
        notifying.sendall(state.encode())


async def _unmount_on_signal(
    mounted: MountedWorkspace,
    plan: MountPlan,
    runtime: Runtime,
    scope: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """On SIGTERM or SIGINT, drain and unmount, which ends the serving; a second signal ends it without waiting."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async with trio.open_nursery() as nursery:
            count = 0
            async for number in signals:
                count += 1
                log.info("signal", number=number, count=count)
                if count > 1:
                    scope.cancel()
                else:
                    nursery.start_soon(_drain_and_unmount, mounted, plan, runtime, scope)


async def _drain_and_unmount(mounted: MountedWorkspace, plan: MountPlan, runtime: Runtime, scope: trio.CancelScope) -> None:
    try:
        undrained = await mounted.drain(lambda _: None, timeout_seconds=SIGNAL_DRAIN_SECONDS)
        if undrained:
            log.error("not saved; kept for the next mount", names=undrained)
        await runtime.in_thread(unmount, plan.mountpoint)
    except Busy as error:
        log.warning("in use; detached", message=line_of(error))
        scope.cancel()
    except AgentfsError as error:
        log.error("unmounting failed", error=type(error).__name__, message=line_of(error))
        scope.cancel()
