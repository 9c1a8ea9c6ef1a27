"""A small tmpfs for tests of full disks."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(directory: Path, *, size_mib: int) -> Iterator[Path]:
    """Mount a tmpfs of that size on `directory`, which is created; unmounted in the end."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small disk")
    directory.mkdir(exist_ok=True)
    options = f"size={size_mib}m,mode=755"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def fill(path: Path, *, leave_kib: int = 0) -> None:
    """Fill the disk that `path` is on with a file, but for `leave_kib`."""
    space = os.statvfs(path.parent)
    size = max(0, space.f_bavail * space.f_frsize - (leave_kib << 10))
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    os.posix_fallocate(descriptor, 0, max(size, 1))
    os.close(descriptor)
