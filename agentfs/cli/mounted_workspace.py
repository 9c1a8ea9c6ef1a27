"""A workspace as the control protocol sees it: what a mount is asked, in the protocol's values."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from agentfs.cli.amounts import bytes_text
from agentfs.cli.control import DrainStep, VersionLine, WarmStep
from agentfs.workspace.status import LockRow, WorkspaceStatus

if TYPE_CHECKING:
    from agentfs.workspace.warming import WarmProgress
    from agentfs.workspace.workspace import DrainProgress, VersionRecord, Workspace


class MountedWorkspace:
    """What `control_server` serves."""

    def __init__(self, workspace: "Workspace") -> None:
        self._workspace = workspace

    def status(self) -> WorkspaceStatus:
        """The mount at this moment."""
        return self._workspace.status()

    async def drain(self, report: Callable[[DrainStep], None], *, timeout_seconds: float) -> list[str]:
        """Save what is unsaved; the names of what could not be in that time."""
        undrained: list[str] = []
        with trio.move_on_after(timeout_seconds) as scope:
            undrained = await self._workspace.drain(lambda progress: report(_drain_step(progress)))
        if not scope.cancelled_caught:
            return undrained
        left = self.status()
        return [f"{left.dirty_files} files with {bytes_text(left.dirty_bytes)} unsaved after {timeout_seconds:g} s"]

    async def warm(self, path: bytes, report: Callable[[WarmStep], None]) -> list[str]:
        """Fetch what is not here of what lies at `path`; a line for each file that could not be."""
        return await self._workspace.warming.warm(path, lambda progress: report(_warm_step(progress)))

    async def history(self, path: bytes) -> list[VersionLine]:
        """The versions of the file at `path`, the oldest first."""
        return [_version_line(version) for version in self._workspace.history(path)]

    def locks(self) -> list[LockRow]:
        """Who holds and who waits for locks."""
        return self._workspace.list_locks()

    async def break_locks(self, path: bytes) -> list[str]:
        """Fence the other sessions that hold leases on the file at `path`; their writers."""
        return await self._workspace.break_locks(path)


def _drain_step(progress: "DrainProgress") -> DrainStep:
    return DrainStep(
        saved_bytes=progress.saved_bytes,
        total_bytes=progress.total_bytes,
        dirty_files=progress.dirty_files,
        pending_transactions=progress.pending_transactions,
    )


def _warm_step(progress: "WarmProgress") -> WarmStep:
    return WarmStep(
        bytes_done=progress.bytes_done,
        bytes_total=progress.bytes_total,
        files_done=progress.files_done,
        files_total=progress.files_total,
        failed=progress.failed,
    )


def _version_line(version: "VersionRecord") -> VersionLine:
    return VersionLine(
        version=version.version,
        time_ns=version.time_ns,
        size_bytes=version.size,
        writer=version.writer,
        position=version.position,
    )
