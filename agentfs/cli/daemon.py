"""How a mount's daemon is started and how it tells that it is ready: one line on a pipe."""

import os
import site
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import agentfs
from agentfs.cli.amounts import path_text
from agentfs.cli.defaults import variables
from agentfs.cli.failures import GENERAL
from agentfs.cli.mount_plan import MountPlan

_READY: Final = "ok"


@dataclass(frozen=True, slots=True)
class Started:
    """The daemon serves the mount of the workspace of that name."""

    pid: int
    workspace: str


@dataclass(frozen=True, slots=True)
class NotStarted:
    """The daemon ended before the mount was there: why, and the exit code to pass on."""

    line: str
    exit_code: int


class ReadyPipe:
    """The daemon's end of the pipe; without one (`mount -f`) it says nothing."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        if fd is not None:
            os.set_inheritable(fd, False)

    @property
    def connected(self) -> bool:
        """Whether somebody still waits for the word."""
        return self._fd is not None

    def ready(self, workspace: str) -> None:
        """Tell that the mount of the workspace of that name answers."""
        self._tell(f"{_READY} {workspace}")

    def failed(self, line: str, exit_code: int) -> None:
        """Tell that there will be no mount; nothing if the word was given already."""
        self._tell(f"{exit_code} {line}")

    def _tell(self, line: str) -> None:
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        try:
            os.write(fd, f"{line}\n".encode(errors="backslashreplace"))
        except BrokenPipeError:
            pass  # Whoever started the mount did not wait for it.
        finally:
            os.close(fd)


def start_daemon(plan: MountPlan, log: Path) -> Started | NotStarted:
    """Start the daemon in a session of its own and wait for its word; its stdout and stderr go to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    reading, writing = os.pipe()
    with open(reading, "rb") as word, open(log, "ab", opener=_private) as output:
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "agentfs", "mount", "-f", "--ready-fd", str(writing), *plan.arguments()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[writing],
                start_new_session=True,
                cwd="/",
                umask=0o077,
                env=_environment(),
            )
        finally:
            os.close(writing)
        try:
            line = word.readline().decode(errors="replace").rstrip("\n")
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
    word_said, _, name = line.partition(" ")
    if word_said == _READY:
        process.returncode = 0  # It outlives this process on purpose: subprocess must not warn that it still runs.
        return Started(process.pid, name)
    return _not_started(line, process.wait(), log)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _environment() -> dict[str, str]:
    """The environment, with the way to this package if it is run from a source tree.

    What it says of options was looked at already, and what was made of it is in the arguments.
    """
    environment = {name: value for name, value in os.environ.items() if name not in variables()}
    home = os.fspath(Path(agentfs.__file__).parents[1])
    if home in site.getsitepackages():
        return environment
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)}


def _not_started(line: str, exit_code: int, log: Path) -> NotStarted:
    code, _, message = line.partition(" ")
    if message and code.isdigit():
        return NotStarted(message, int(code))
    last = last_line(log).removeprefix("agentfs: ")
    how = f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
    return NotStarted(
        f"the daemon ended before the mount answered ({how}): {last or 'it said nothing'}; log: {path_text(log)}",
        exit_code if exit_code > 0 else GENERAL,
    )


def last_line(log: Path, *, tail_bytes: int = 4096) -> str:
    """The last line of a log that is not blank, "" if there is none."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - tail_bytes))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""
