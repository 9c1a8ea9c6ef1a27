"""Which subjects there are, which of them this machine can have, and how they are set up."""

import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from scripts.benchmarks.gateway import Gateway
from scripts.benchmarks.passthrough import PASSTHROUGH, WRITEBACK, Passthrough, compiled
from scripts.benchmarks.peers import RCLONE, S3FS, Peer, Rclone, S3fs
from scripts.benchmarks.subject import LOCAL, Subject
from scripts.benchmarks.workspaces import AGENTFS, OVER_S3, MountedWorkspace
from scripts.benchmarks.yard import PROGRAMS, Yard, has_s3, on

SUBJECTS = (LOCAL, PASSTHROUGH, WRITEBACK, AGENTFS, OVER_S3, RCLONE, S3FS)
"""In the order of the table."""

QUICK = (LOCAL, PASSTHROUGH, AGENTFS)
"""What --smoke takes unless told otherwise."""

PEERS: dict[str, type[Peer]] = {RCLONE: Rclone, S3FS: S3fs}


class Cast:
    """The subjects of one trial, set up one after the other; `absent` says why some are not there."""

    def __init__(self, yard: Yard, names: Collection[str] | None = None) -> None:
        self.absent: list[str] = []
        self._yard = yard
        self._base = yard.directory("subjects")
        wanted = yard.subjects or (QUICK if yard.is_smoke else SUBJECTS)
        self._wanted = [name for name in wanted if names is None or name in names]
        self.subjects = tuple(self._open())

    def _open(self) -> Iterator[Subject]:
        program = self._passthrough() if {PASSTHROUGH, WRITEBACK} & {*self._wanted} else "nobody wants it"
        for number, name in enumerate(self._wanted):
            if reason := self._missing(name, program):
                self.absent.append(f"{name}: skipped, {reason}")
                continue
            subject = self._made(name, self._base / str(number), program)
            self._yard.on_leaving(subject.end)
            yield subject

    def _passthrough(self) -> Path | str:
        return compiled(self._yard.directory("passthrough"))

    def _missing(self, name: str, program: Path | str) -> str:
        """Why a subject cannot be had, or nothing. Nothing is installed for it."""
        if name in (PASSTHROUGH, WRITEBACK) and isinstance(program, str):
            return program
        if name in (OVER_S3, *PEERS) and not has_s3():
            return f"no S3 server is installed ({', '.join(PROGRAMS)})"
        if name in PEERS and not shutil.which(name):
            return f"{name} is not installed: docs/benchmarks.md says where it comes from"
        return ""

    def _made(self, name: str, base: Path, program: Path | str) -> Subject:
        if name == LOCAL:
            base.mkdir()
            return Subject(name, base)
        if name in (PASSTHROUGH, WRITEBACK):
            assert isinstance(program, Path)
            return Passthrough(name, base, program, *(("writeback",) if name == WRITEBACK else ()))
        if name == AGENTFS:
            return MountedWorkspace(name, self._yard.workspace("embedded"))
        gateway = Gateway(self._yard.regions(1)[0])
        if name == OVER_S3:
            # Those beside it say nothing of durability at close(2) either: rclone uploads behind it.
            mount = self._yard.workspace("over-s3", "--durability", "fsync", *on([gateway.region]))
            return MountedWorkspace(name, mount, gateway)
        return PEERS[name](name, base, gateway)
