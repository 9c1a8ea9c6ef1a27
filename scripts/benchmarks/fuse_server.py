"""A FUSE filesystem of another project: its process in the foreground, its mountpoint, and the end of both."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.mount.place import WAIT_SECONDS, wait_until


class FuseServer:
    """One such process at one mountpoint, mounted when this has been made. It does not outlive the benchmark."""

    def __init__(self, command: Sequence[str], path: Path, log: Path, environment: Mapping[str, str] | None = None) -> None:
        self._path = path
        self._log = log
        path.mkdir(exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            wait_until(lambda: _is_mounted(path) or self._process.poll() is not None, f"{path} to be mounted")
            if self._process.poll() is not None:
                raise OSError(f"{command[0]} ended with code {self._process.returncode}: {self.log_tail()}")
        except BaseException:
            self.end()
            raise

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def unmount(self) -> None:
        """Unmount in good order; returns when the process is gone."""
        # The mountpoint is busy for a moment after the last file was closed.
        wait_until(lambda: not _is_mounted(self._path) or _unmounted(self._path), f"{self._path} to be unmounted")
        self._process.wait(timeout=WAIT_SECONDS)

    def end(self) -> None:
        """Kill the process; whoever waits for an answer gets an error."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(timeout=WAIT_SECONDS)
        while _is_mounted(self._path):
            _unmounted(self._path, lazily=True)

    def log_tail(self) -> str:
        """The end of what it said."""
        return self._log.read_text(errors="replace")[-500:].strip()


def _is_mounted(path: Path) -> bool:
    """Whether a FUSE filesystem is mounted there, as the kernel knows it."""
    rows = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return any(row[4] == str(path.resolve()) and row[row.index("-") + 1].startswith("fuse") for row in rows)


def _unmounted(path: Path, *, lazily: bool = False) -> bool:
    """Try to unmount; whether that was done."""
    as_root = ["umount", *(["-l"] if lazily else [])]
    command = as_root if os.geteuid() == 0 else ["fusermount3", "-uz" if lazily else "-u"]
    done = subprocess.run([*command, path], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode and lazily:
        print(done.stderr, file=sys.stderr)
    return done.returncode == 0
