"""Where things are: workspaces, caches, logs, and the runtime directory of control sockets and mount records."""

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentfs.model.errors import Denied, Invalid

WORKSPACE_FILE: Final = "workspace.toml"
JOURNAL_FILE: Final = "journal.sqlite"

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OPEN_BITS: Final = 0o077


def check_name(name: str) -> str:
    """`name` itself if a workspace may be called that; raises Invalid."""
    if not _NAME.fullmatch(name):
        raise Invalid(f"{name!r} is no workspace name: use 1 to 64 of A-Z a-z 0-9 . _ - and begin with a letter or digit")
    return name


def data_root(option: Path | None) -> Path:
    """The directory that holds workspaces: `--root`, else AGENTFS_ROOT, else the XDG data directory."""
    return _chosen(option, "AGENTFS_ROOT", "user_data_path")


def cache_root(option: Path | None) -> Path:
    """The directory for staging and cached chunks: `--cache-dir`, else AGENTFS_CACHE_DIR, else the XDG cache directory."""
    return _chosen(option, "AGENTFS_CACHE_DIR", "user_cache_path")


def _chosen(option: Path | None, variable: str, default: str) -> Path:
    import platformdirs

    if option is not None:
        return option.absolute()
    if named := os.environ.get(variable):
        return Path(named).absolute()
    path: Path = getattr(platformdirs, default)("agentfs")
    return path


def log_path(name: str, mountpoint: Path) -> Path:
    """The log file of a mount, in the XDG state directory: what the workspace is called and the mountpoint say which."""
    import platformdirs

    parts = [re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-")[-100:] for text in (name, str(mountpoint))]
    return platformdirs.user_state_path("agentfs") / "log" / f"{parts[0] or 'workspace'}-{parts[1] or 'root'}.log"


@dataclass(frozen=True, slots=True)
class WorkspaceDirectory:
    """The directory that holds a workspace's file, and by default its journal and replicas."""

    path: Path

    @property
    def name(self) -> str:
        """What the directory is called; for a workspace under a data root, the workspace's name."""
        return self.path.name

    @property
    def file(self) -> Path:
        """What says which workspace this is and where its parts are."""
        return self.path / WORKSPACE_FILE

    @property
    def exists(self) -> bool:
        """Whether there is a workspace."""
        return self.file.exists()


def workspace_directory(source: str, root: Path) -> WorkspaceDirectory:
    """The workspace that a user named: anything with a slash (or `.`) is a path, the rest is a name under `root`."""
    if "/" in source or source in (".", ".."):
        return WorkspaceDirectory(Path(os.path.realpath(source)))
    return WorkspaceDirectory(root / check_name(source))


def workspaces_in(root: Path) -> list[str]:
    """The names of the workspaces under `root`, sorted."""
    if not root.is_dir():
        return []
    return sorted(entry.parent.name for entry in root.glob(f"[!.]*/{WORKSPACE_FILE}"))


def mountpoint_key(mountpoint: Path) -> str:
    """A short name for a mountpoint, for files that belong to its mount."""
    return hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16]


def runtime_directory() -> Path:
    """This user's directory for sockets and mount records, made if need be.

    Raises Denied if somebody else could read it or owns it: under /tmp anybody may have made a directory of that name.
    """
    directory = next(runtime_directories(os.geteuid()))
    directory.mkdir(mode=0o700, exist_ok=True)
    if not _private(directory, os.geteuid()):
        raise Denied(f"{directory} must be a directory of yours that nobody else can enter: remove it, or `chmod 700` it")
    return directory


def runtime_directories(uid: int) -> Iterator[Path]:
    """Where the user `uid` may have put sockets and mount records, the likeliest first.

    A session's XDG_RUNTIME_DIR is missing under cron, sudo and mount(8), so that one user's mounts may be in several.
    """
    named = os.environ.get("XDG_RUNTIME_DIR")
    if named and _owned(Path(named), uid):
        yield Path(named) / "agentfs"
    if uid == 0:
        yield Path("/run/agentfs")
    else:
        yield Path(f"/tmp/agentfs-{uid}")
    if _owned(Path(f"/run/user/{uid}"), uid):
        yield Path(f"/run/user/{uid}/agentfs")


def private_runtime_directories(uid: int) -> list[Path]:
    """Those of `runtime_directories` that exist and only `uid` can have written."""
    return [directory for directory in dict.fromkeys(runtime_directories(uid)) if _private(directory, uid)]


def _owned(directory: Path, uid: int) -> bool:
    try:
        found = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == uid


def _private(directory: Path, uid: int) -> bool:
    return _owned(directory, uid) and not directory.lstat().st_mode & _OPEN_BITS
