"""agentfs among the subjects: a mount of a new workspace."""

import os

from scripts.benchmarks.gateway import Gateway
from scripts.benchmarks.small_files import FOLDED_BYTES, FOLDED_SECONDS
from scripts.benchmarks.subject import Subject
from scripts.benchmarks.yard import mounted_cold, told
from tests.mount.place import Mount, wait_until

AGENTFS = "agentfs"
OVER_S3 = "agentfs, S3"


class MountedWorkspace(Subject):
    """A workspace that was just made, mounted. Its daemon ends with the yard."""

    def __init__(self, name: str, mount: Mount, gateway: Gateway | None = None) -> None:
        super().__init__(name, mount.path)
        self.mount = mount
        self.gateway = gateway
        mount.mount()

    def make_cold(self) -> None:
        """As on a host that has never seen the workspace."""
        mounted_cold(self.mount)

    def settle(self) -> None:
        """What fsync(2) promises, for the whole workspace: fsync of its root waits for everything."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        wait_until(self._is_saved, "everything to be durable", seconds=FOLDED_SECONDS)

    def _is_saved(self) -> bool:
        status = told(self.mount)
        return not status["dirty_files"] and not status["pending_transactions"]

    def rest(self) -> None:
        """Small bodies have moved from the journal into segments."""
        wait_until(
            lambda: told(self.mount)["inline_bytes"] <= FOLDED_BYTES, "small bodies to be folded", seconds=FOLDED_SECONDS
        )

    def pids(self) -> tuple[int, ...]:
        """The daemon."""
        return (self.mount.pid,)
