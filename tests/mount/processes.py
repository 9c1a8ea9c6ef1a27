"""Other processes for tests: as another user, or running a piece of Python beside the test."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

ALICE, BOB, GROUP = 61001, 61002, 61003
"""Ids that no machine gives to a real user."""


def needs_root() -> None:
    """Skip the test unless it may change its user."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to act as other users")


def run_as(
    uid: int, directory: Path, action: Callable[[], object], *, gid: int | None = None, groups: tuple[int, ...] = ()
) -> int:
    """Run `action` in a child process of that user, working in `directory`; the errno it failed with, 0 if it did not.

    The child enters `directory` before it changes its user, because the directories above are the test's own: `action`
    must use relative paths.
    """
    needs_root()
    with warnings.catch_warnings():
        # Python warns of forks beside threads; the child only makes system calls and leaves.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 255
        try:
            os.chdir(directory)
            os.setgroups(list(groups))
            os.setgid(uid if gid is None else gid)
            os.setuid(uid)
            action()
            code = 0
        except OSError as error:
            code = error.errno or 255
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def start(script: str, *arguments: object, cwd: Path | None = None) -> subprocess.Popen[str]:
    """Start a Python process that runs `script`; its standard input and output are pipes."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], *, timeout: float = 300) -> str:
    """Wait for a process that must succeed; its output."""
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, output
    return output


def shell(
    *command: str | Path, cwd: Path | None = None, timeout: float = 600, environment: dict[str, str] | None = None
) -> str:
    """Run a tool that must succeed; its standard output."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout
