"""A host for tests: a network of its own, its own directories, and what runs there; it can lose its network, or die.

Mounts need no namespace of their own: hosts have mountpoints, caches, and runtime and data directories apart from each other,
and the test looks into all of them from outside.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from tests.hosts.keeper import kill_all_in, processes_in
from tests.hosts.network import Network
from tests.mount.lockers import Locker
from tests.mount.place import COMMAND, HANG_SECONDS, Cli

CLONE_NEWNET: Final = 0x40000000

COMMAND_SECONDS: Final = 120.0
"""How long a command may take: a bound, not an expectation."""

CACHE_SIZE: Final = "64M"


class Host:
    """A machine with one mountpoint. `ways` has the ports of the servers, by what a test calls them, such as "journal"."""

    live: ClassVar[list["Host"]] = []

    def __init__(self, network: Network, name: str, base: Path, ways: Mapping[str, Sequence[int]]) -> None:
        base.mkdir()
        self.name = name
        self.base = base
        self.mountpoint = base / "mnt"
        self.mountpoint.mkdir()
        self.cli = Cli(base)
        self._ways = ways
        self._wire = network.add(name)
        self._enter = ("nsenter", f"--net={self._wire.namespace}", "--")
        self._hired: list[Locker] = []
        self._started: list[subprocess.Popen[str]] = []
        self._log = base / "none.log"
        self._watchdog: threading.Timer | None = None
        Host.live.append(self)

    # ---- what runs there

    def run(self, *command: str | Path, seconds: float = COMMAND_SECONDS) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, whatever its exit code."""
        return subprocess.run(
            [*self._enter, *map(str, command)],
            env=self.cli.environment,
            cwd=self.base,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def agentfs(self, *arguments: str | Path, seconds: float = COMMAND_SECONDS) -> str:
        """Run an agentfs command that must succeed; its standard output."""
        done = self.run(*COMMAND, *arguments, seconds=seconds)
        words = " ".join(map(str, arguments))
        assert done.returncode == 0, f"{self.name}: agentfs {words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def mount(self, workspace: str, *options: str) -> None:
        """Mount a workspace, by its journal's URL."""
        self._watch()
        own = ("--cache-dir", self.base / "cache", "--cache-size", CACHE_SIZE, "--label", self.name, "-o", "allow_other")
        answer = json.loads(self.agentfs("mount", workspace, self.mountpoint, *own, *options, "--json"))
        self._log = Path(answer["log"])

    def umount(self) -> None:
        """Drain and unmount."""
        self.agentfs("umount", self.mountpoint)

    def status(self) -> dict[str, Any]:
        """What `agentfs status` says of the mount."""
        return dict(json.loads(self.agentfs("status", self.mountpoint, "--json")))

    def session(self) -> int:
        """The number of the mount's session."""
        return next(int(row["session"]) for row in self.status()["sessions"] if row["this"])

    def start(self, program: str, *arguments: object) -> subprocess.Popen[str]:
        """Start a module of the tests as a process there; its standard output is a pipe."""
        self._watch()
        command = [*self._enter, sys.executable, "-m", program, *map(str, arguments)]
        process = subprocess.Popen(command, env=self.cli.environment, cwd=self.base, stdout=subprocess.PIPE, text=True)
        self._started.append(process)
        return process

    def hire(self, path: Path, flags: int = os.O_RDWR) -> Locker:
        """A process there, with a file open."""
        locker = Locker(path, flags)
        locker.do(join_network, str(self._wire.namespace))
        self._hired.append(locker)
        return locker

    def processes(self) -> set[int]:
        """What runs there."""
        return processes_in(self._wire.namespace)

    # ---- what happens to it

    def cut(self, what: str) -> None:
        """Cut it off from "journal", from "s3", or from "all": what it says, and what is said to it, is lost in silence."""
        if what == "all":
            self._wire.unplug()
            return
        for port in self._ways[what]:
            self._wire.cut(port)

    def lose_answers(self, what: str) -> None:
        """What it says arrives, and what is said to it is lost: it does not know what of its doing came about."""
        for port in self._ways[what]:
            self._wire.lose_answers(port)

    def heal(self, what: str) -> None:
        """Take back what was done about that part of the network."""
        if what == "all":
            self._wire.plug()
            return
        for port in self._ways[what]:
            self._wire.heal(port)

    def kill9(self) -> None:
        """Kill everything that runs there, daemons and programs alike, and end its mounts. Its disk stays.

        The connections are closed; where servers shall hear nothing, cut it off before.
        """
        kill_all_in(self._wire.namespace, self.base)
        for locker in self._hired:
            locker.kill()
        for process in self._started:
            process.communicate(timeout=COMMAND_SECONDS)
        self._hired.clear()
        self._started.clear()

    def discard(self) -> None:
        """Leave nothing of it."""
        if self._watchdog:
            self._watchdog.cancel()
        self.kill9()
        self._wire.remove()
        Host.live.remove(self)

    def _watch(self) -> None:
        """Let the host be killed if it is still there long after this: a mount that hangs fails its test, and ends."""
        if self._watchdog:
            self._watchdog.cancel()
        self._watchdog = threading.Timer(HANG_SECONDS, kill_all_in, (self._wire.namespace, self.base))
        self._watchdog.daemon = True
        self._watchdog.start()

    def log_tail(self, lines: int = 60) -> str:
        """The end of the daemon's log."""
        if not self._log.is_file():
            return "(no log)"
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])


def stop(process: subprocess.Popen[str]) -> None:
    """Have a process of a host end itself, as soon as it is at a point to do so."""
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=COMMAND_SECONDS)


def join_network(namespace: str) -> None:
    """Go over to another network namespace; what is connected stays where it was."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(namespace, os.O_RDONLY)
    try:
        if libc.setns(descriptor, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(descriptor)
