"""Memory: a big file must not grow the daemon."""

import hashlib
import os
import random

import pytest

from tests.mount.conftest import Place

MIB = 1 << 20
BOUND_KIB = 300 << 10


@pytest.mark.slow
def test_a_big_file_does_not_grow_the_daemon(mounted: Place) -> None:
    """Half of the content compresses. AGENTFS_BIG_MIB=4096 is the size that the promise names; less says the same sooner."""
    size_mib = int(os.environ.get("AGENTFS_BIG_MIB", "512"))
    path = mounted.path / "big"
    written = hashlib.sha256()
    with open(path, "wb", buffering=0) as file:
        for number in range(size_mib):
            part = random.Random(number).randbytes(MIB // 2) + bytes([number % 251]) * (MIB // 2)
            written.update(part)
            assert file.write(part) == MIB
    assert path.stat().st_size == size_mib * MIB
    for again in [lambda: None, mounted.remount] if mounted.is_mount else [lambda: None]:
        again()
        seen = hashlib.sha256()
        with open(path, "rb", buffering=0) as file:
            while part := file.read(MIB):
                seen.update(part)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert seen.digest() == written.digest()
        if mounted.is_mount:
            print(f"VmHWM {mounted.peak_kib() >> 10} MiB at {size_mib} MiB")
            assert mounted.peak_kib() < BOUND_KIB


@pytest.mark.slow
def test_random_writes_do_not_grow_the_daemon(mounted: Place) -> None:
    path = mounted.path / "sparse"
    source = random.Random(1)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    places = {source.randrange(1 << 34): number for number in range(3000)}
    for place, number in places.items():
        os.pwrite(descriptor, b"%08d" % number, place)
    os.close(descriptor)
    descriptor = os.open(path, os.O_RDONLY)
    assert all(os.pread(descriptor, 8, place) == b"%08d" % number for place, number in places.items())
    os.close(descriptor)
    if mounted.is_mount:
        assert mounted.peak_kib() < BOUND_KIB
