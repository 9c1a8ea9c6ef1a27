"""The places that tests run in: a mount of a workspace of its own, or a plain local directory."""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from agentfs.chunks.edge_files import EDGE_DIRECTORY
from tests.regions import Region

REPOSITORY = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "agentfs"]
NAME = "w"
WAIT_SECONDS = 60
"""How long a condition may take to come true before the test is failed: a bound, not an expectation."""

HANG_SECONDS = float(os.environ.get("AGENTFS_TEST_HANG_SECONDS", "1200"))
"""How long one mount may live. A daemon that hangs is killed then, so that the suite fails and does not stand still."""

_GUARD = (
    "import os, select, signal, sys\n"
    "if not select.select([0], [], [], float(sys.argv[2]))[0]: os.kill(int(sys.argv[1]), signal.SIGKILL)\n"
)


def wait_until(condition: Callable[[], bool], what: str, *, seconds: float = WAIT_SECONDS) -> None:
    """Return once `condition` holds; fail the test, naming `what`, when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.005)


def mounts_under(directory: Path) -> list[str]:
    """The agentfs mountpoints at and below `directory`, as the kernel knows them."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    fields = [line.split() for line in lines]
    points = [row[4] for row in fields if row[row.index("-") + 1].startswith("fuse.agentfs")]
    return [point for point in points if Path(point).is_relative_to(directory.resolve())]


class Cli:
    """The agentfs command with an environment below `base`, so that nothing of the user's is read or written."""

    def __init__(self, base: Path) -> None:
        self.root = base / "root"
        self.environment = dict(os.environ)
        for variable in ("HOME", "XDG_RUNTIME_DIR", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
            directory = base / variable.lower().replace("_", "-")
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.environment[variable] = str(directory)
        path = self.environment.get("PYTHONPATH")
        self.environment["PYTHONPATH"] = f"{REPOSITORY}:{path}" if path else str(REPOSITORY)

    def run(
        self, *arguments: str | Path, prefix: tuple[str, ...] = (), timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Run one command to its end; whatever its exit code."""
        command = [*prefix, *COMMAND, *map(str, arguments)]
        return subprocess.run(
            command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def check(self, *arguments: str | Path, timeout: float = 300) -> str:
        """Run one command that must succeed; its standard output."""
        done = self.run(*arguments, timeout=timeout)
        assert done.returncode == 0, f"agentfs {' '.join(map(str, arguments))}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout


class Plain:
    """A directory of the local filesystem, for AGENTFS_TEST_DIR; whatever needs a daemon skips the test."""

    is_mount = False

    def __init__(self, path: Path, *, same_as: Path | None = None) -> None:
        self.path = path
        if same_as:
            path.symlink_to(same_as)
        else:
            path.mkdir()

    def beside(self, label: str) -> "Plain":
        """The same directory by another path: what several mounts of one workspace should be like."""
        return Plain(self.path.with_name(label), same_as=self.path)

    def __getattr__(self, name: str) -> Any:
        pytest.skip(f"AGENTFS_TEST_DIR is a plain directory: nothing to {name}")

    def discard(self) -> None:
        """Remove the directory, and the one it was made in if nothing else is there."""
        if self.path.is_symlink():
            self.path.unlink()
        else:
            shutil.rmtree(self.path, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.path.parent.rmdir()


class Mount:
    """One workspace, one cache directory and one mountpoint, all below `base`; with `regions`, the replicas are in those.

    `source`: what it is mounted by, its name unless a test says otherwise.
    """

    is_mount = True
    live: ClassVar[list["Mount"]] = []

    def __init__(self, base: Path, *, label: str = "", cli: Cli | None = None, regions: Sequence[Region] = ()) -> None:
        self.base = base
        self.label = label
        self.path = base / "mnt"
        self.cache = base / "cache"
        self.cli = cli or Cli(base)
        self.source = NAME
        self.log = base / "none.log"
        self.pid = 0
        self._daemon = -1
        self._guard: subprocess.Popen[bytes] | None = None
        self._options: tuple[str, ...] = ()
        self._regions = regions
        self.path.mkdir()
        self.cache.mkdir()

    @property
    def mounted(self) -> bool:
        """Whether a daemon of this object runs."""
        return self._daemon >= 0

    @property
    def journal(self) -> Path:
        """The file that the workspace's journal is in."""
        return self.cli.root / NAME / "journal.sqlite"

    def replica(self, number: int) -> Path:
        """The directory of a replica; a test that looks in there is skipped where replicas are in S3."""
        if self._regions:
            pytest.skip("the replicas are in S3: there is no directory to look into")
        return self.cli.root / NAME / "replicas" / str(number)

    def needs(self, what: str) -> None:
        """Say that the test is about agentfs itself: `Plain` skips here."""

    def beside(self, label: str) -> "Mount":
        """Another mount of the same workspace, with a mountpoint and a cache directory of its own; not mounted yet."""
        base = self.base / f"beside-{label}"
        base.mkdir()
        return Mount(base, label=label, cli=self.cli, regions=self._regions)

    def create(self, *options: str) -> None:
        """Create the workspace, in the regions if there are any and the options do not name other replicas."""
        if "--replica" not in options:
            urls = [region.url(self.base.name) for region in self._regions]
            options = (*options, *(word for url in urls for word in ("--replica", url)))
        self.cli.check("create", NAME, "--root", self.cli.root, *options)

    def mount(self, *options: str) -> None:
        """Mount the workspace; the options stay for `remount`."""
        self._options = options
        if self._regions:
            # The edge cache has all that was written here: what is read after mounting again shall come from the regions.
            shutil.rmtree(self.cache / EDGE_DIRECTORY, ignore_errors=True)
        shared = ("-o", "allow_other") if os.geteuid() == 0 and "-o" not in options else ()
        where = ("--root", self.cli.root, "--cache-dir", self.cache, *(("--label", self.label) if self.label else ()))
        answer = json.loads(self.cli.check("mount", self.source, self.path, *where, *shared, *options, "--json"))
        self.pid, self.log = int(answer["pid"]), Path(answer["log"])
        self._daemon = os.pidfd_open(self.pid)
        self._guard = subprocess.Popen([sys.executable, "-c", _GUARD, str(self.pid), str(HANG_SECONDS)], stdin=subprocess.PIPE)
        Mount.live.append(self)

    def umount(self) -> None:
        """Drain and unmount; returns once the daemon is gone."""
        self.cli.check("umount", self.path)
        self.wait_gone()
        assert not mounts_under(self.path)

    def remount(self) -> None:
        """Unmount and mount again."""
        self.umount()
        self.mount_again()

    def mount_again(self) -> None:
        """Mount with the options of the last time."""
        self.mount(*self._options)

    def kill9(self, *, remount: bool = True) -> None:
        """Kill the daemon without warning and mount over what it left."""
        signal.pidfd_send_signal(self._daemon, signal.SIGKILL)
        self.wait_gone()
        if remount:
            self.mount_again()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop the daemon as if its host were suspended; whoever enters the mount waits until the block ends."""
        signal.pidfd_send_signal(self._daemon, signal.SIGSTOP)
        try:
            wait_until(lambda: self._state() == "T", f"the daemon {self.pid} to stop")
            yield
        finally:
            signal.pidfd_send_signal(self._daemon, signal.SIGCONT)

    def _state(self) -> str:
        """The daemon's state letter (proc(5))."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def wait_gone(self) -> None:
        """Return once the daemon's process has ended."""
        poller = select.poll()
        poller.register(self._daemon, select.POLLIN)
        assert poller.poll(WAIT_SECONDS * 1000), f"the daemon {self.pid} did not end:\n{self.log_tail()}"
        self._release()

    def _release(self) -> None:
        os.close(self._daemon)
        self._daemon = -1
        assert self._guard is not None
        self._guard.communicate(timeout=WAIT_SECONDS)
        Mount.live.remove(self)

    def status(self) -> dict[str, Any]:
        """What `agentfs status` says of this mount."""
        return dict(json.loads(self.cli.check("status", self.path, "--json")))

    def position(self) -> int:
        """The last entry that this mount has applied."""
        return int(os.getxattr(self.path, "user.agentfs.position"))

    def session(self) -> int:
        """The number of this mount's session."""
        return next(int(row["session"]) for row in self.status()["sessions"] if row["this"])

    def locks(self) -> list[dict[str, Any]]:
        """What `agentfs locks` says in this mount."""
        return [json.loads(line) for line in self.cli.check("locks", self.path, "--json").splitlines()]

    def versions(self, path: Path) -> list[dict[str, Any]]:
        """What `agentfs log` says of a file."""
        return [json.loads(line) for line in self.cli.check("log", path, "--json").splitlines()]

    def fsck(self) -> subprocess.CompletedProcess[str]:
        """Check the workspace."""
        return self.cli.run("fsck", NAME, "--root", self.cli.root, "--json")

    def descriptors(self) -> int:
        """How many files the daemon has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def peak_kib(self) -> int:
        """The most memory the daemon ever had resident (VmHWM)."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

    def log_tail(self, lines: int = 60) -> str:
        """The end of the daemon's log."""
        if not self.log.is_file():
            return "(no log)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def discard(self) -> None:
        """Leave nothing behind, whatever state the test left things in; a daemon that does not drain fails the test."""
        try:
            if self.mounted:
                self.umount()
        finally:
            if self.mounted:
                self.kill9(remount=False)
            while mounts_under(self.path):
                subprocess.run(
                    ["umount", "-l", self.path] if os.geteuid() == 0 else ["fusermount3", "-uz", self.path], check=True
                )
            shutil.rmtree(self.base, ignore_errors=True)
