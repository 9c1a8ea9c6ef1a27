"""Other filesystems over S3, as their users mount them: rclone and s3fs, each with a bucket of its own."""

import json
import os
import shutil
import subprocess
from abc import abstractmethod
from pathlib import Path

from scripts.benchmarks.fuse_server import FuseServer
from scripts.benchmarks.gateway import Gateway
from scripts.benchmarks.subject import Subject
from tests.mount.place import wait_until

RCLONE, S3FS = "rclone", "s3fs"
UPLOADED_SECONDS = 3600
"""How long what was written may take to reach the server: a bound, not an expectation."""


class Peer(Subject):
    """A FUSE program over a bucket, with a cache directory. What it is told beyond its defaults is in `_command`."""

    is_peer = True

    def __init__(self, name: str, base: Path, gateway: Gateway) -> None:
        base.mkdir()
        super().__init__(name, base / "mnt")
        self.gateway = gateway
        self._cache = base / "cache"
        self._log = base / "log"
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
            **gateway.region.environment,
            "HOME": str(base),
        }
        self._server = self._started(gateway)

    def _started(self, gateway: Gateway) -> FuseServer:
        shutil.rmtree(self._cache, ignore_errors=True)
        self._cache.mkdir()
        return FuseServer(self._command(gateway), self.path, self._log, self._environment)

    @abstractmethod
    def _command(self, gateway: Gateway) -> list[str]:
        """The program and its arguments; it stays in the foreground."""

    def make_cold(self) -> None:
        """Unmount when everything is on the server; mount with an empty cache directory."""
        self.settle()
        self._server.unmount()
        assert self.gateway is not None
        self._server = self._started(self.gateway)

    def settle(self) -> None:
        """Nothing to wait for, unless a peer says otherwise."""

    def pids(self) -> tuple[int, ...]:
        """The program."""
        return (self._server.pid,)

    def is_there(self) -> bool:
        """Whether it is mounted."""
        return os.path.ismount(self.path)

    def end(self) -> None:
        """What is in the bucket goes with the bucket."""
        self._server.end()


class Rclone(Peer):
    """`rclone mount --vfs-cache-mode full`. It uploads behind close(2), 5 s after the last one."""

    def _command(self, gateway: Gateway) -> list[str]:
        region = gateway.region
        self._environment |= {
            "RCLONE_CONFIG": str(self._cache / "no.conf"),
            "RCLONE_S3_PROVIDER": "Ceph",
            "RCLONE_S3_ENV_AUTH": "true",
            "RCLONE_S3_ENDPOINT": region.endpoint,
        }
        # It says how much is still to be uploaded at its remote control.
        control = ["--rc", "--rc-no-auth", "--rc-addr", f"unix://{self._control}"]
        cache = ["--vfs-cache-mode", "full", "--cache-dir", str(self._cache)]
        return ["rclone", "mount", f":s3:{region.bucket}", str(self.path), *cache, *control]

    @property
    def _control(self) -> Path:
        return self._log.with_name("rc")

    def settle(self) -> None:
        """Return once nothing is to be uploaded any more."""
        wait_until(self._is_uploaded, "rclone to have uploaded everything", seconds=UPLOADED_SECONDS)

    def _is_uploaded(self) -> bool:
        command = ["rclone", "rc", "--unix-socket", str(self._control), "vfs/stats"]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=True)
        cache = json.loads(done.stdout)["diskCache"]
        return not cache["uploadsQueued"] and not cache["uploadsInProgress"]


class S3fs(Peer):
    """`s3fs`, with a cache directory, which it does not have by default. It uploads in close(2)."""

    def _command(self, gateway: Gateway) -> list[str]:
        region = gateway.region
        options = f"url={region.endpoint},use_path_request_style,endpoint=us-east-1,use_cache={self._cache}"
        return ["s3fs", f"{region.bucket}:/", str(self.path), "-f", "-o", options]
