"""What a trial runs on: a directory, in which it makes workspaces of its own, and S3 servers where it wants them."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec

from agentfs.cli.control import StatusReply, StatusRequest, connected, exchange
from agentfs.cli.layout import mountpoint_key
from scripts.benchmarks.ground import LOG_LINES, hired, temporary
from scripts.benchmarks.phase import Measured
from scripts.benchmarks.series import Findings
from scripts.benchmarks.worker import ANSWER_SECONDS, Worker
from tests.mount.place import WAIT_SECONDS, Cli, Mount
from tests.regions import Region, Servers

PROGRAMS = ("radosgw", "ceph-mon", "ceph-osd")
"""What an S3 server is made of."""


class Trial(Measured, Protocol):
    """Something measured on workspaces of its own: big things, a few times."""

    needs_s3: bool

    def run(self, yard: "Yard", rounds: int) -> Findings:
        """Do it. Whatever does not work raises."""


def has_s3() -> bool:
    """Whether S3 servers can be started without installing anything."""
    return all(map(shutil.which, PROGRAMS))


class Regions:
    """The S3 servers of a run. They start when they are first asked for, and stop on leaving."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._servers: Servers | None = None

    def __enter__(self) -> "Regions":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def some(self, count: int) -> list[Region]:
        """So many servers, each with a new bucket, to be restored by who asked."""
        if self._servers is None:
            self._servers = Servers("memstore")
            self._stack.callback(self._servers.close)
        return self._servers.regions(count)


@dataclass(frozen=True, slots=True)
class Yard:
    """The ground of one trial. What is made here is gone when the trial is over."""

    base: Path
    is_smoke: bool
    subjects: tuple[str, ...]
    """Which subjects are wanted; with none, the usual ones."""

    peer_rounds: int
    """How many rounds peers take part in."""

    _stack: ExitStack
    _regions: Regions
    _given: list[Region] = field(default_factory=list)
    _mounts: list[Mount] = field(default_factory=list)

    def scaled(self, full: int, smoke: int) -> int:
        """How much of something: what is worth measuring, or what shows that it works."""
        return smoke if self.is_smoke else full

    def directory(self, name: str) -> Path:
        """A new local directory."""
        path = self.base / name
        path.mkdir()
        return path

    def regions(self, count: int) -> list[Region]:
        """So many S3 servers, each with a new bucket."""
        found = self._regions.some(count)
        for one in found:
            self._stack.callback(one.restore)
        self._given.extend(found)
        return found

    def workspace(self, name: str, *options: str) -> Mount:
        """A new workspace, made with these options, not mounted yet; it has what it needs to ask the regions given so far."""
        base = self.directory(name)
        cli = Cli(base)
        # The path of a socket must be short, whatever the directory is.
        cli.environment["XDG_RUNTIME_DIR"] = str(temporary(self._stack, None))
        if self._given:
            for variable in [variable for variable in cli.environment if variable.startswith("AWS_")]:
                del cli.environment[variable]
            cli.environment |= self._given[0].environment
        mount = Mount(base, label=name, cli=cli)
        self._stack.callback(mount.discard)
        self._mounts.append(mount)
        mount.create(*options)
        return mount

    def hire(self, answer_seconds: float = ANSWER_SECONDS) -> Worker:
        """A process of its own, each of whose calls may take so long."""
        return hired(self._stack, answer_seconds)

    def on_leaving(self, act: Callable[[], None]) -> None:
        """Have something done when the trial is over, before what was made earlier goes."""
        self._stack.callback(act)

    def logs(self) -> Iterator[str]:
        """The end of each daemon's log."""
        return (f"{mount.label}:\n{mount.log_tail(LOG_LINES)}" for mount in self._mounts)


@contextmanager
def open_yard(
    directory: Path, regions: Regions, *, is_smoke: bool, subjects: tuple[str, ...] = (), peer_rounds: int = 1
) -> Iterator[Yard]:
    """A yard in a new directory below `directory`, removed on leaving."""
    with ExitStack() as stack:
        yard = Yard(temporary(stack, directory), is_smoke, subjects, peer_rounds, stack, regions)
        try:
            yield yard
        except (OSError, AssertionError):
            # The logs go with the directory.
            print(*yard.logs(), sep="\n", file=sys.stderr)
            raise


def on(regions: list[Region], prefix: str = "w") -> list[str]:
    """The options of `agentfs create` for a replica in each region."""
    return [word for region in regions for word in ("--replica", region.url(prefix))]


def mounted_cold(mount: Mount, *options: str) -> None:
    """Mount with an empty cache directory, as on a host that has never seen the workspace."""
    forgotten(mount)
    mount.mount(*options)


def forgotten(mount: Mount) -> None:
    """Unmount, and empty the cache directory."""
    _left(mount)
    shutil.rmtree(mount.cache)
    mount.cache.mkdir()


def mounted_anew(mount: Mount, *options: str) -> None:
    """Mount with what is in the cache directory; the kernel has nothing of the workspace's files any more."""
    _left(mount)
    mount.mount(*options)


def _left(mount: Mount) -> None:
    if mount.mounted:
        mount.umount()


def told(mount: Mount) -> dict[str, Any]:
    """What `agentfs status` says of a mount. No process is started for it: what is measured must not wait for that."""
    point = mount.path.resolve()
    sockets = Path(mount.cli.environment["XDG_RUNTIME_DIR"]).rglob(f"{mountpoint_key(point)}.sock")
    with connected(next(sockets), point, timeout_seconds=WAIT_SECONDS) as connection:
        (reply,) = exchange(connection, StatusRequest(), point)
    assert isinstance(reply, StatusReply), "the protocol answers status with StatusReply"
    return dict(msgspec.to_builtins(reply.status))


def asked_each(mount: Mount) -> list[dict[str, int]]:
    """What this mount has asked of each replica since it began: requests by verb, `bytes_in` and `bytes_out`."""
    return [replica["requests"] for replica in told(mount)["replicas"]]


def asked(mount: Mount) -> dict[str, int]:
    """The same of all replicas together."""
    counts = asked_each(mount)
    return {verb: sum(count[verb] for count in counts) for verb in counts[0]}


def worked_seconds(pid: int) -> float:
    """The processor time that a process has taken since it began (proc_pid_stat(5)). A busy machine changes it little."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def forget_pages(path: Path) -> None:
    """Have the kernel drop what it has of a file's content (posix_fadvise(2))."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
