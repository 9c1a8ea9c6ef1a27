"""A mount as it is to be: every name resolved and every default chosen, before a daemon is started for it."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agentfs.cli.layout import cache_root, data_root, log_path
from agentfs.cli.mount_options import MountOptions
from agentfs.cli.mountinfo import canonical
from agentfs.cli.workspace_file import Durability, WorkspaceFile
from agentfs.cli.workspace_source import Source, source_of
from agentfs.model.changes import LEASE_TTL_MS

if TYPE_CHECKING:
    from agentfs.workspace.settings import Settings

TIMEOUT_SECONDS: Final = 30.0
"""How long a write waits for enough replicas, unless it is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MountPlan:
    """What the daemon is to serve, and where. `log` is None when the log goes to stderr.

    `durability`: None is the workspace's own.
    """

    source: Source
    mountpoint: Path
    options: MountOptions
    durability: Durability | None
    lease_ttl_seconds: float
    staleness_seconds: float
    timeout_seconds: float
    cache_size_bytes: int | None
    cache_dir: Path
    log: Path | None

    @property
    def label(self) -> str:
        """What stands for the writer in `agentfs log`, empty for host and process."""
        return self.options.label or ""

    def settings(self, file: WorkspaceFile) -> "Settings":
        """What the workspace that `file` describes is told."""
        from agentfs.workspace.settings import Settings

        return Settings(
            host=socket.gethostname(),
            pid=os.getpid(),
            label=self.label,
            read_only=self.options.read_only or self.options.offline,
            durability=self.durability or file.durability,
            lease_ttl_seconds=self.lease_ttl_seconds,
            staleness_seconds=self.staleness_seconds,
            put_timeout_seconds=self.timeout_seconds,
            unreachable=self.options.unreachable or "eio",
            hedging=self.options.hedging,
            offline=self.options.offline,
            edge_max_bytes=self.cache_size_bytes,
        )

    def arguments(self) -> list[str]:
        """The arguments of `agentfs mount` that lead to this plan again, whatever the working directory is."""
        named = {
            "-o": _option_list(self.options),
            "--durability": self.durability,
            "--lease-ttl": repr(self.lease_ttl_seconds),
            "--staleness": repr(self.staleness_seconds),
            "--timeout": repr(self.timeout_seconds),
            "--label": self.options.label,
            "--cache-size": str(self.cache_size_bytes) if self.cache_size_bytes else None,
            "--cache-dir": os.fspath(self.cache_dir),
            "--log-file": os.fspath(self.log) if self.log else "-",
        }
        flags = [word for flag, value in named.items() if value for word in (flag, value)]
        return [*flags, "--", self.source.text, os.fspath(self.mountpoint)]


def plan_mount(text: str, directory: Path, options: MountOptions, *, log_file: str | None) -> MountPlan:
    """Resolve a mount's names, of which `text` is the workspace's. `log_file` may be `-` for stderr.

    Nothing is asked of a journal yet. Raises NotFound and Invalid for the workspace.
    """
    source = source_of(text, data_root(options.root))
    mountpoint = canonical(directory)
    if log_file is None:
        log: Path | None = log_path(source.name, mountpoint)
    else:
        log = None if log_file == "-" else Path(log_file).absolute()
    return MountPlan(
        source=source,
        mountpoint=mountpoint,
        options=options,
        durability=options.durability,
        lease_ttl_seconds=LEASE_TTL_MS / 1000 if options.lease_ttl_seconds is None else options.lease_ttl_seconds,
        staleness_seconds=options.staleness_seconds or 0.0,
        timeout_seconds=options.timeout_seconds or TIMEOUT_SECONDS,
        cache_size_bytes=options.cache_size_bytes,
        cache_dir=cache_root(options.cache_dir),
        log=log,
    )


def _option_list(options: MountOptions) -> str:
    words = ["ro"] if options.read_only else []
    if options.allow_other:
        words.append("allow_other")
    if options.strict:
        words.append("strict")
    if not options.replay:
        words.append("noreplay")
    if options.offline:
        words.append("offline")
    if not options.hedging:
        words.append("nohedge")
    if options.unreachable:
        words.append(f"unreachable={options.unreachable}")
    words += [f"{name}={value}" for name, value in (("uid", options.uid), ("gid", options.gid)) if value is not None]
    if options.umask is not None:
        words.append(f"umask={options.umask:o}")
    return ",".join([*words, *options.kernel])
