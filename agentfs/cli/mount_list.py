"""The list of mounts: what the kernel says, joined with what the daemons left in the runtime directory."""

import msgspec

from agentfs.cli.amounts import path_text, time_text
from agentfs.cli.liveness import is_dead
from agentfs.cli.mountinfo import Mounted, our_mounts
from agentfs.cli.records import find_record


class MountLine(msgspec.Struct, frozen=True, kw_only=True):
    """One mount. `state` is up or dead; what only its owner may know is None for others."""

    workspace: str
    mountpoint: str
    state: str
    read_only: bool
    pid: int | None
    since_ns: int | None
    log: str | None

    def row(self) -> tuple[str, str, str, str, str, str]:
        """The mount as table cells."""
        return (
            self.workspace,
            self.mountpoint,
            f"{self.state} (ro)" if self.read_only else self.state,
            str(self.pid or "-"),
            time_text(self.since_ns) if self.since_ns else "-",
            self.log or "-",
        )


def list_mounts() -> list[MountLine]:
    """Every workspace that is mounted, in the kernel's order."""
    return [_line(mounted) for mounted in our_mounts()]


def _line(mounted: Mounted) -> MountLine:
    record = find_record(mounted)
    return MountLine(
        workspace=record.workspace if record else mounted.source,
        mountpoint=path_text(mounted.mountpoint),
        state="dead" if is_dead(mounted) else "up",
        read_only="ro" in mounted.options.split(","),
        pid=record.pid if record else None,
        since_ns=record.since_ns if record else None,
        log=record.log if record else None,
    )
