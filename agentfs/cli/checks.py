"""What `agentfs doctor` looks at: each thing that mounting needs, whether it is there, and how to mend it."""

import ctypes
import importlib
import importlib.metadata
import os
import re
import shutil
import sqlite3
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

from agentfs.cli.amounts import bytes_text, path_text
from agentfs.cli.failures import from_os_error, line_of
from agentfs.cli.layout import cache_root, data_root, runtime_directory
from agentfs.cli.preflight import FUSE_CONFIG, FUSE_DEVICE, allows_other, check_fuse_device, find_fusermount
from agentfs.model.errors import AgentfsError

MOUNT_HELPER: Final = Path("/sbin/mount.agentfs")
PYTHON_MIN: Final = (3, 11)
KERNEL_MIN: Final = (5, 4)
SQLITE_MIN: Final = (3, 37, 0)
FREE_MIN: Final = 1 << 30

_PACKAGES: Final = "`apt-get install fuse3 libfuse3-dev`"
_BUILD_PACKAGES: Final = "`apt-get install gcc libc6-dev libfuse3-dev pkg-config python3-dev`"


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at. `state` is ok, missing, or optional: not there, but not needed for every mount."""

    name: str
    state: Literal["ok", "missing", "optional"]
    detail: str
    mend: str = ""


def run_checks() -> Iterator[Check]:
    """Every check, in the order in which to mend."""
    yield _python()
    yield _companion()
    yield _pyfuse3()
    yield _libfuse()
    yield _kernel()
    yield _attempt("FUSE device", _fuse_device)
    yield _fusermount()
    yield _user_allow_other()
    yield _mount_helper()
    yield _sqlite()
    yield _attempt("data directory", lambda: _writable(data_root(None)))
    yield _attempt("cache directory", lambda: _writable(cache_root(None)))
    yield _attempt("runtime directory", lambda: path_text(runtime_directory()))
    yield _space()
    yield _attempt("disk cache", _disk_cache)
    yield _library("boto3", "what is in S3")
    yield _library("psycopg", "journals in PostgreSQL")


def _attempt(name: str, look: Callable[[], str]) -> Check:
    """Ok with what `look` says, missing with what it raises: our errors name their mend."""
    try:
        return Check(name=name, state="ok", detail=look())
    except AgentfsError as error:
        return Check(name=name, state="missing", detail=line_of(error))
    except OSError as error:
        return Check(name=name, state="missing", detail=line_of(from_os_error(error)), mend="choose a directory you can write")


def _at_least(name: str, found: tuple[int, ...], least: tuple[int, ...], mend: str, *, more: str = "") -> Check:
    shown, needed = (".".join(map(str, version)) for version in (found, least))
    if found >= least:
        return Check(name=name, state="ok", detail=shown + more)
    return Check(name=name, state="missing", detail=f"{shown}, {needed} is needed", mend=mend)


def _fuse_device() -> str:
    check_fuse_device()
    return str(FUSE_DEVICE)


def _python() -> Check:
    return _at_least("Python", sys.version_info[:3], PYTHON_MIN, "install Python 3.11 or newer")


def _companion() -> Check:
    """Looked at before pyfuse3 is imported: after that it cannot be loaded any more."""
    try:
        importlib.import_module("agentfs.fuse.companion")
    except (AgentfsError, ImportError) as error:
        mend = f"{_BUILD_PACKAGES}, then install agentfs-workspace again"
        return Check(name="companion", state="missing", detail=str(error), mend=mend)
    return Check(name="companion", state="ok", detail="file locks can be served")


def _pyfuse3() -> Check:
    try:
        importlib.import_module("pyfuse3")
    except ImportError as error:
        mend = f"{_PACKAGES} and a C compiler, then install agentfs-workspace again"
        return Check(name="pyfuse3", state="missing", detail=str(error), mend=mend)
    return Check(name="pyfuse3", state="ok", detail=importlib.metadata.version("pyfuse3"))


def _libfuse() -> Check:
    for name in ("libfuse3.so.4", "libfuse3.so.3"):
        try:
            version = ctypes.CDLL(name).fuse_pkgversion
        except (OSError, AttributeError):
            continue
        version.restype = ctypes.c_char_p
        return Check(name="libfuse3", state="ok", detail=version().decode())
    return Check(name="libfuse3", state="missing", detail="no libfuse3.so", mend=_PACKAGES)


def _kernel() -> Check:
    release = os.uname().release
    found = tuple(int(number) for number in re.findall(r"\d+", release)[:2])
    return _at_least("kernel", found, KERNEL_MIN, "run a newer kernel", more=f" ({release})")


def _fusermount() -> Check:
    try:
        path = find_fusermount()
    except AgentfsError as error:
        state: Literal["missing", "optional"] = "optional" if os.geteuid() == 0 else "missing"
        return Check(name="fusermount3", state=state, detail=line_of(error), mend=_PACKAGES)
    found = path.stat()
    if found.st_mode & stat.S_ISUID and found.st_uid == 0:
        return Check(name="fusermount3", state="ok", detail=f"{path}, setuid root")
    if os.geteuid() == 0:
        return Check(name="fusermount3", state="ok", detail=f"{path}, not setuid: root does not need that")
    return Check(name="fusermount3", state="missing", detail=f"{path} is not setuid root", mend=f"`chmod u+s {path}` as root")


def _user_allow_other() -> Check:
    if os.geteuid() == 0 or allows_other():
        return Check(name="allow_other", state="ok", detail="permitted")
    return Check(
        name="allow_other",
        state="optional",
        detail=f"{FUSE_CONFIG} lacks user_allow_other: other users cannot be let in",
        mend=f"add the line `user_allow_other` to {FUSE_CONFIG} as root",
    )


def _mount_helper() -> Check:
    if os.access(MOUNT_HELPER, os.X_OK):
        return Check(name="mount.agentfs", state="ok", detail=str(MOUNT_HELPER))
    return Check(
        name="mount.agentfs",
        state="optional",
        detail=f"{MOUNT_HELPER} is not installed: `mount -t agentfs` and fstab do not work",
        mend="`scripts/run` as root installs it",
    )


def _sqlite() -> Check:
    with sqlite3.connect(":memory:") as database:
        options = {row[0] for row in database.execute("pragma compile_options")}
    database.close()
    if "OMIT_WAL" in options:
        return Check(name="SQLite", state="missing", detail="built without WAL", mend="use a Python whose SQLite has WAL")
    return _at_least("SQLite", sqlite3.sqlite_version_info, SQLITE_MIN, "use a Python with a newer SQLite", more=", with WAL")


def _writable(directory: Path) -> str:
    """The nearest directory that exists must take a new entry."""
    nearest = _existing(directory)
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(13, "Permission denied", os.fspath(nearest))
    return path_text(directory)


def _existing(directory: Path) -> Path:
    return next(path for path in (directory, *directory.parents) if path.exists())


def _disk_cache() -> str:
    """How big the cache of chunks becomes here that mounts of far replicas share."""
    from agentfs.chunks.edge_bound import default_max_bytes
    from agentfs.chunks.edge_files import EDGE_DIRECTORY

    directory = cache_root(None) / EDGE_DIRECTORY
    return f"up to {bytes_text(default_max_bytes(directory))} at {path_text(directory)}"


def _library(name: str, serves: str) -> Check:
    try:
        importlib.import_module(name)
    except ImportError as error:
        detail = f"{error}: {serves} cannot be used"
        return Check(name=name, state="optional", detail=detail, mend="install agentfs-workspace again")
    return Check(name=name, state="ok", detail=importlib.metadata.version(name))


def _space() -> Check:
    frees = {path: shutil.disk_usage(_existing(path)).free for path in (data_root(None), cache_root(None))}
    detail = ", ".join(f"{bytes_text(free)} at {path_text(path)}" for path, free in frees.items())
    if min(frees.values()) >= FREE_MIN:
        return Check(name="free space", state="ok", detail=detail)
    return Check(name="free space", state="missing", detail=detail, mend="free some, or set AGENTFS_ROOT and AGENTFS_CACHE_DIR")
