"""libfuse's example `passthrough_ll`, the floor of what FUSE costs: a local directory, served by a small program in C."""

import gzip
import shutil
import subprocess
from pathlib import Path

from scripts.benchmarks.fuse_server import FuseServer
from scripts.benchmarks.subject import Subject

PASSTHROUGH = "passthrough_ll"
WRITEBACK = "passthrough_ll, writeback"

EXAMPLES = Path("/usr/share/doc/libfuse3-dev/examples")
SOURCES = ("passthrough_ll.c", "passthrough_helpers.h")


class Passthrough(Subject):
    """With what it does by default, and `flock`, so that locks reach it too; `options` are said to it besides."""

    def __init__(self, name: str, base: Path, program: Path, *options: str) -> None:
        self._source = base / "source"
        self._source.mkdir(parents=True)
        super().__init__(name, base / "mnt")
        self._log = base / "log"
        words = ",".join((f"source={self._source}", "flock", *options))
        self._command = [str(program), "-f", "-o", words, str(self.path)]
        self._server = self._started()

    def _started(self) -> FuseServer:
        return FuseServer(self._command, self.path, self._log)

    def make_cold(self) -> None:
        """Mount it anew. What it serves stays in the kernel's caches, as with everything else."""
        self._server.unmount()
        self._server = self._started()

    def settle(self) -> None:
        """FUSE does not pass syncfs(2) on to such a program."""
        subprocess.run(["sync", "-f", self._source], check=True)

    def pids(self) -> tuple[int, ...]:
        """The program."""
        return (self._server.pid,)

    def end(self) -> None:
        """Its files go with the directory that it was made in."""
        self._server.end()


def compiled(directory: Path) -> Path | str:
    """The program, made in a directory from the source that comes with libfuse3-dev; or why there is none."""
    for tool in ("cc", "pkg-config"):
        if not shutil.which(tool):
            return f"{tool} is not installed"
    for name in SOURCES:
        content = _source(name)
        if content is None:
            return f"there is no {EXAMPLES / name}: it comes with libfuse3-dev"
        (directory / name).write_bytes(content)
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], capture_output=True, text=True, check=False)
    if flags.returncode:
        return flags.stderr.strip()
    program = directory / PASSTHROUGH
    command = ["cc", "-O2", str(directory / SOURCES[0]), "-o", str(program), *flags.stdout.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return program if done.returncode == 0 else f"it does not compile: {done.stderr.strip()[-300:]}"


def _source(name: str) -> bytes | None:
    """A source file; some packages have it compressed."""
    plain, packed = EXAMPLES / name, EXAMPLES / f"{name}.gz"
    if plain.is_file():
        return plain.read_bytes()
    return gzip.decompress(packed.read_bytes()) if packed.is_file() else None
