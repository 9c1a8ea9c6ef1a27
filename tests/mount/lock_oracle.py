"""Processes that lock a file on command, one operation at a time, and what the kernel itself lists about that file."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agentfs.model.lease import EXCLUSIVE, OFFSET_MAX, SHARED, Run

SCRIPT = """
import errno, fcntl, json, os, struct, sys

PATH, FLOCK = sys.argv[1], "hhqqi4x"
KINDS = {0: fcntl.F_UNLCK, 1: fcntl.F_RDLCK, 2: fcntl.F_WRLCK}
MODES = {kind: mode for mode, kind in KINDS.items()}
MAX = 2**63 - 1
files = {}

def packed(first, last, mode):
    return struct.pack(FLOCK, KINDS[mode], os.SEEK_SET, first, 0 if last == MAX else last - first + 1, 0)

def opened(name):
    files[name] = os.open(PATH, os.O_RDWR)

def close(name):
    os.close(files.pop(name))

def lock(name, verb, first, last, mode):
    fcntl.fcntl(files[name], getattr(fcntl, verb), packed(first, last, mode))

def probe(name, verb, first, last, mode):
    answer = fcntl.fcntl(files[name], getattr(fcntl, verb), packed(first, last, mode))
    kind, _, start, length, pid = struct.unpack(FLOCK, answer)
    return [start, start + length - 1 if length else MAX, MODES[kind], pid] if MODES[kind] else None

def flock(name, mode):
    fcntl.flock(files[name], {0: fcntl.LOCK_UN, 1: fcntl.LOCK_SH, 2: fcntl.LOCK_EX}[mode] | fcntl.LOCK_NB)

for line in sys.stdin:
    verb, *arguments = json.loads(line)
    try:
        answer = {"is": globals()[verb](*arguments)}
    except OSError as error:
        answer = {"errno": error.errno}
    print(json.dumps(answer), flush=True)
"""


class LockingProcess:
    """A process with any number of open file descriptions, each under a name, all of one file.

    What the system refuses raises OSError here.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def open(self, name: str) -> None:
        """Open the file once more; the description is called `name`."""
        self._call("opened", name)

    def close(self, name: str) -> None:
        """Close it: the process's own fcntl(2) locks go too, as POSIX wants."""
        self._call("close", name)

    def lock(self, name: str, run: Run, *, of_description: bool = False) -> None:
        """F_SETLK, or F_OFD_SETLK; a run with mode 0 unlocks."""
        verb = "F_OFD_SETLK" if of_description else "F_SETLK"
        self._call("lock", name, verb, run.first, run.last, run.mode)

    def probe(self, name: str, run: Run, *, of_description: bool = False) -> tuple[Run, int] | None:
        """F_GETLK, or F_OFD_GETLK: a lock in the way and its pid (-1 if a description owns it), or None."""
        verb = "F_OFD_GETLK" if of_description else "F_GETLK"
        answer = self._call("probe", name, verb, run.first, run.last, run.mode)
        return answer and (Run(*answer[:3]), answer[3])

    def flock(self, name: str, mode: int) -> None:
        """flock(2) with LOCK_NB; mode 0 unlocks."""
        self._call("flock", name, mode)

    def _call(self, *request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "errno" in answer:
            raise OSError(answer["errno"], f"{request}")
        return answer["is"]


@contextmanager
def locking_process(path: Path) -> Iterator[LockingProcess]:
    """A process that locks `path` on command; it and its locks are gone afterwards."""
    command = [sys.executable, "-S", "-E", "-c", SCRIPT, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield LockingProcess(process)
        finally:
            process.kill()


class KernelTable:
    """What /proc/locks says of one file; only for files whose locks the kernel itself keeps."""

    def __init__(self, witness: LockingProcess) -> None:
        """`witness` must hold no lock yet; the name that /proc/locks has for the file is learnt from a lock of its own."""
        witness.open("witness")
        witness.flock("witness", EXCLUSIVE)
        (self._file,) = {fields[5] for fields in _listed() if fields[4] == str(witness.pid)}
        witness.close("witness")

    def locks(self, *kinds: str) -> list[tuple[Run, int]]:
        """Runs and pids (-1 if a description owns it) of the locks of these kinds: FLOCK, POSIX, OFDLCK; sorted."""
        mode = {"READ": SHARED, "WRITE": EXCLUSIVE}
        return sorted(
            (Run(int(first), OFFSET_MAX if last == "EOF" else int(last), mode[access]), int(pid))
            for _, kind, _, access, pid, file, first, last in _listed()
            if file == self._file and kind in kinds
        )


def _listed() -> list[list[str]]:
    """The lines of granted locks; a waiting one has an arrow more."""
    lines = Path("/proc/locks").read_text().splitlines()
    return [fields for line in lines if len(fields := line.split()) == 8]
