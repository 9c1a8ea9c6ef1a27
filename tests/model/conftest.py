"""Fixtures of the model tests: the filesystem under test and the one that is right.

With AGENTFS_TEST_DIR=DIR the left side is that local directory instead of a mount (tests/mount/conftest.py).
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import homes, mounted, nothing_left, pytest_runtest_makereport

__all__ = ["homes", "mounted", "nothing_left", "pytest_runtest_makereport"]


@pytest.fixture
def tmpfs() -> Iterator[Path]:
    """An empty directory on tmpfs."""
    if not os.path.ismount("/dev/shm"):
        pytest.skip("no tmpfs on /dev/shm to compare with")
    directory = Path(tempfile.mkdtemp(prefix="agentfs-model-", dir="/dev/shm"))
    yield directory
    shutil.rmtree(directory)
