"""An object in a directory that grows at once: all of it under its new name, and nothing where that cannot be."""

import os
from pathlib import Path

import pytest

from agentfs.chunks.directory import DirectoryStore
from agentfs.runtime import SystemRuntime

OLD, NEW = "mirror/1", "mirror/2"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "mirror").mkdir()
    return tmp_path


@pytest.fixture
def store(root: Path) -> DirectoryStore:
    return DirectoryStore(root, runtime=SystemRuntime())


@pytest.fixture
def device(root: Path) -> int:
    return root.stat().st_dev


def names(root: Path) -> list[str]:
    return sorted(os.listdir(root / "mirror"))


async def test_it_begins_and_grows(store: DirectoryStore, root: Path, device: int) -> None:
    assert store.grow(None, OLD, b"one", device=device)
    assert store.grow(OLD, NEW, b"two", device=device)
    assert (names(root), await store.get(NEW)) == (["2"], b"onetwo")


def test_another_filesystem_is_not_as_safe_as_the_journal(store: DirectoryStore, root: Path, device: int) -> None:
    assert not store.grow(None, OLD, b"one", device=device + 1)
    assert names(root) == []
    assert store.grow(None, OLD, b"one", device=device)
    assert not store.grow(OLD, NEW, b"two", device=device + 1)
    assert (names(root), (root / OLD).read_bytes()) == (["1"], b"one")


def test_what_is_gone_does_not_grow(store: DirectoryStore, root: Path, device: int) -> None:
    assert not store.grow(OLD, NEW, b"two", device=device)
    (root / "mirror").rmdir()
    assert not store.grow(None, OLD, b"one", device=device)
    assert list(root.iterdir()) == []


def test_what_somebody_put_anew_meanwhile_keeps_its_name(
    store: DirectoryStore, root: Path, device: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.grow(None, OLD, b"one", device=device)
    write = os.write

    def write_and_replace(descriptor: int, body: bytes) -> int:
        (root / "mirror/other").write_bytes(b"one")
        os.rename(root / "mirror/other", root / OLD)
        return write(descriptor, body)

    monkeypatch.setattr(os, "write", write_and_replace)
    assert not store.grow(OLD, NEW, b"two", device=device)
    assert (names(root), (root / OLD).read_bytes()) == (["1"], b"one")


def test_a_full_disk_grows_nothing(store: DirectoryStore, root: Path, device: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.grow(None, OLD, b"one", device=device)
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, body: write(descriptor, body[:1]))
    assert not store.grow(OLD, NEW, b"two", device=device)
    assert not store.grow(None, NEW, b"two", device=device)
    assert names(root) == ["1"]
